//! Runs the cells that have no record, several at a time, each in a process of its own.

use super::cell::Task;
use super::plan;
use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::{CheckpointError, files};
use evenkeel::sweep::{Cell, Figure, Records};
use evenkeel::train::Control;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What is said when a sweep is asked to stop.
pub(crate) const STOPPING: &str = "stopping the runs after their steps, each with a checkpoint";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Every cell has a record.
    All,
    /// It was asked to stop.
    Interrupted,
}

/// Where runs are made, and how.
pub(crate) struct Runner<'a> {
    /// Runs are in `runs/KEY` below it.
    pub(crate) out: &'a Path,
    /// Folder of records.
    pub(crate) records: &'a Path,
    /// The folder that a `data.path` stands for, if it is only a name.
    pub(crate) data: &'a dyn Fn(&str) -> Option<PathBuf>,
    /// Whether checkpoints of finished runs stay.
    pub(crate) keep: bool,
    /// Runs at a time, see [`jobs()`].
    pub(crate) jobs: usize,
    /// The common options.
    pub(crate) settings: &'a Settings,
}

/// Processes at most; beyond it a typing error only exhausts memory.
pub(crate) const MOST_JOBS: usize = 1024;
/// How a process ends that was asked to stop, see [`crate::failure::Exit::Interrupted`].
const INTERRUPTED: i32 = 130;

impl Runner<'_> {
    /// Runs them; a run that cannot be made ends the others after their steps, and nothing is lost.
    pub(crate) fn run(
        &self,
        cells: &[Cell],
        records: &mut Records,
        control: &Control,
    ) -> Result<Done, Failure> {
        let mut queue: VecDeque<&Cell> = cells.iter().filter(|c| records.get(&c.key).is_none()).collect();
        let total = queue.len();
        if total < cells.len() {
            self.say(&format!("{} of {} runs have a record already", cells.len() - total, cells.len()));
        }
        let (sender, ended) = mpsc::channel::<(String, std::io::Result<Output>)>();
        let mut running: BTreeMap<String, (&Cell, Option<ChildStdin>)> = BTreeMap::new();
        let (begun, mut done, mut work_done) = (Instant::now(), 0, 0.0);
        let all_work: f64 = queue.iter().filter_map(|c| plan::cost(c).ok()).map(|p| plan::flops(&p)).sum();
        let mut failure = None;
        loop {
            let stop = control.stop.load(Ordering::Relaxed) || failure.is_some();
            while !stop && running.len() < self.jobs {
                let Some(cell) = queue.pop_front() else { break };
                let mut child = self.start(cell)?;
                running.insert(cell.key.clone(), (cell, child.stdin.take()));
                let (sender, key) = (sender.clone(), cell.key.clone());
                std::thread::spawn(move || {
                    // The receiver goes away only with the program.
                    let _ = sender.send((key, child.wait_with_output()));
                });
            }
            if stop {
                // An end of its stdin is what asks a process to stop.
                running.values_mut().for_each(|r| drop(r.1.take()));
            }
            if running.is_empty() {
                break;
            }
            let Ok((key, output)) = ended.recv_timeout(Duration::from_millis(200)) else { continue };
            let Some((cell, _)) = running.remove(&key) else { continue };
            if records.reread(&key)? {
                done += 1;
                work_done += plan::cost(cell).map_or(0.0, |p| plan::flops(&p));
                let left = begun.elapsed().as_secs_f64() * (all_work / work_done - 1.0);
                self.say(&finished(cell, records, done, total, left));
            } else if output.as_ref().is_ok_and(|o| o.status.code() == Some(INTERRUPTED)) {
                // Ctrl-C reaches every process at a terminal, and this one's turn may come last.
                control.stop.store(true, Ordering::SeqCst);
            } else if !control.stop.load(Ordering::Relaxed) && failure.is_none() {
                failure = Some(failed(cell, output));
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if queue.is_empty() && !control.stop.load(Ordering::Relaxed) => Ok(Done::All),
            None if cells.iter().all(|c| records.get(&c.key).is_some()) => Ok(Done::All),
            None => {
                self.say("stopped; the same command goes on");
                Ok(Done::Interrupted)
            }
        }
    }

    fn start(&self, cell: &Cell) -> Result<Child, Failure> {
        let dir = self.out.join("runs").join(&cell.key);
        let io = |source| CheckpointError::Io { path: dir.clone(), source };
        std::fs::create_dir_all(&dir).map_err(io)?;
        let task = Task {
            name: cell.name(),
            data_path: (self.data)(&cell.config.data.path),
            measure: cell.measure.clone(),
            records: self.records.to_path_buf(),
            keep: self.keep,
        };
        files::write(&dir.join("cell.toml"), cell.config.to_toml()?.as_bytes())?;
        files::write_json(&dir.join("cell.json"), &task)?;
        let program = std::env::current_exe().map_err(io)?;
        let threads = (self.settings.threads / self.jobs).max(1).to_string();
        let child = Command::new(program)
            .arg("cell")
            .arg(&dir)
            .args(["--quiet", "--no-progress", "--threads", &threads])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Ok(child.map_err(io)?)
    }

    fn say(&self, text: &str) {
        if !self.settings.quiet {
            output::note(text);
        }
    }
}

/// "3/12 NAME: val_loss 3.412, kurtosis_peak 4.51; about 6 min left"
fn finished(cell: &Cell, records: &Records, done: usize, total: usize, left: f64) -> String {
    let figure = |name: &str| {
        let figure = Figure::parse(name).ok()?;
        let value = figure.of(records.get(&cell.key)?)?;
        Some(format!("{name} {}", figure.write(value)))
    };
    let figures: Vec<String> =
        ["val_loss", "accuracy", "kurtosis_peak"].iter().filter_map(|n| figure(n)).collect();
    let left = match done < total {
        true => format!("; about {:.0} min left", (left / 60.0).ceil()),
        false => String::new(),
    };
    format!("{done}/{total} {}: {}{left}", cell.name(), figures.join(", "))
}

/// What the process said.
fn failed(cell: &Cell, output: std::io::Result<Output>) -> Failure {
    let said = match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            match text.trim() {
                "" => format!("its process ended with {} and no message", output.status),
                text => text.to_string(),
            }
        }
        Err(e) => e.to_string(),
    };
    let (sentence, hint) = said.split_once("\n\n").unwrap_or((&said, ""));
    let strip =
        |text: &str, word: &str| text.trim().strip_prefix(word).unwrap_or(text.trim()).trim().to_string();
    let hint = match strip(hint, "hint:") {
        hint if hint.is_empty() => "the same command tries it again".into(),
        hint => hint,
    };
    Failure::input(format!("{}: {}", cell.name(), strip(sentence, "error:")), hint)
}

/// Runs at a time, of those asked for; settled before anything is touched.
pub(crate) fn jobs(asked: usize) -> Result<usize, Failure> {
    match asked {
        1..=MOST_JOBS => Ok(asked),
        _ => Err(Failure::input(
            format!("--jobs must lie between 1 and {MOST_JOBS}, not {asked}"),
            "as many as cores is a good choice for small models",
        )),
    }
}

/// `I/N`, from 1/1 where nothing is asked.
pub(crate) fn shard(text: Option<&str>) -> Result<(usize, usize), Failure> {
    let Some(text) = text else { return Ok((1, 1)) };
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((i, n)) if 1 <= i && i <= n => Ok((i, n)),
        _ => Err(Failure::input(
            format!("--shard takes I/N with I between 1 and N, not \"{text}\""),
            "--shard 2/8 is the second of eight parts",
        )),
    }
}
