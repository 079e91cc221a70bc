//! One run of a sweep, as a process of its own: trains, measures, writes its record.
//!
//! The process stops after its step, with a checkpoint, when its stdin is closed: so it does when the one that started it is
//! killed. So it does at a signal too, since Ctrl-C in a terminal and the end of a cluster's job reach it as well as the one
//! that started it. A lock on its folder keeps a second one waiting until the first has ended.

use crate::args;
use crate::commands::calibration::Texts;
use crate::commands::quantize::{Recipe, quantise};
use crate::commands::train::{execute, host};
use crate::failure::{Exit, Failure};
use crate::settings::Settings;
use crate::signals;
use evenkeel::checkpoint::{CheckpointError, files};
use evenkeel::config::{DataKind, RunConfig};
use evenkeel::inspect;
use evenkeel::metrics::Metrics;
use evenkeel::model::config::NormPosition;
use evenkeel::quant::{QuantReport, Scheme};
use evenkeel::random::{FNV_OFFSET, fnv1a};
use evenkeel::report::run::{is_residual, read_run};
use evenkeel::sweep::record::{Measured, Origin, write};
use evenkeel::sweep::{Measure, RunRecord, key};
use evenkeel::train::{Control, Feed, Outcome, Prepared, RunDir, Trainer, evaluate};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Calibration batches of a scheme, as in `quantize`.
const CALIBRATION_BATCHES: usize = 4;

/// cell.json: what the process is to do with the configuration beside it, cell.toml, which is as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// In words.
    pub(crate) name: String,
    /// Where the data is, if `data.path` only names it.
    pub(crate) data_path: Option<PathBuf>,
    /// What is measured.
    pub(crate) measure: Measure,
    /// Folder of records.
    pub(crate) records: PathBuf,
    /// Whether checkpoints stay.
    pub(crate) keep: bool,
}

pub(crate) fn run(args: args::sweep::Cell, settings: &Settings) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let control = stopped_by_stdin()?;
    let task: Task = files::read_json(&args.dir.join("cell.json"))?;
    let config = RunConfig::load(&args.dir.join("cell.toml"), &[])?;
    let key = key(&config, &task.measure)?;
    let io = |source| CheckpointError::Io { path: args.dir.clone(), source };
    let lock = File::create(args.dir.join("lock")).map_err(io)?;
    if !locked(&lock, &control).map_err(io)? {
        return Ok(Exit::Interrupted);
    }
    if task.records.join(format!("{key}.json")).is_file() {
        return Ok(Exit::Done);
    }
    let mut trained = config.clone();
    if let Some(path) = &task.data_path {
        trained.data.path = path.display().to_string();
    }
    let dir = RunDir::create(&args.dir, true)?;
    dir.write("config.toml", &trained.to_toml()?)?;
    // Seconds of the processes before this one, so that a run that was cut off does not look fast.
    let before: f64 = files::read_json(&args.dir.join("seconds.json")).unwrap_or(0.0);
    let resume = dir.checkpoints().is_dir();
    let run = execute(Prepared::new(trained)?, dir, resume, &task.name, settings, &control)?;
    if run.outcome == Outcome::Interrupted {
        files::write_json(&args.dir.join("seconds.json"), &(before + begun.elapsed().as_secs_f64()))?;
        return Ok(Exit::Interrupted);
    }
    let trainer = &run.trainer;
    let finished = run.outcome == Outcome::Finished;
    let validation = if finished { validation(trainer)? } else { None };
    let sites = if finished { sites(trainer, task.measure.inspect_tokens)? } else { Vec::new() };
    let quantised = if finished { quantised(trainer, &task.measure, settings)? } else { Vec::new() };
    let origin = Origin {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("EVENKEEL_REVISION").map(String::from),
        machine: format!("{}, {}", host(), evenkeel_kernels::isa::active().name()),
        threads: settings.threads,
        seconds: before + begun.elapsed().as_secs_f64(),
        data: fingerprint(trainer.config(), &config)?,
    };
    let measured = Measured {
        outcome: run.outcome.clone(),
        origin,
        parameters: trainer.model().parameter_count() as u64,
        step: trainer.step(),
        validation,
        sites,
        quantised,
    };
    let record = RunRecord::new(&config, &task.measure, measured, &read_run(&args.dir)?)?;
    write(&task.records, &record)?;
    if !task.keep {
        let checkpoints = args.dir.join("checkpoints");
        if checkpoints.is_dir() {
            std::fs::remove_dir_all(checkpoints).map_err(io)?;
        }
    }
    Ok(Exit::Done)
}

/// Waits for a lock; false if it was asked to stop before.
fn locked(lock: &File, control: &Control) -> std::io::Result<bool> {
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if control.stop.load(Ordering::SeqCst) => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Asks to stop once stdin has ended, or at a signal.
fn stopped_by_stdin() -> Result<Control, Failure> {
    let control = signals::listen(true, signals::TRAINING)?;
    let stop = control.stop.clone();
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        stop.store(true, Ordering::SeqCst);
    });
    Ok(control)
}

/// Loss and accuracy on all of the validation data.
fn validation(trainer: &Trainer) -> Result<Option<(f64, Option<f64>)>, Failure> {
    match trainer.validation_inputs(0)? {
        None => Ok(None),
        Some(examples) => {
            let e = evaluate(trainer.model(), examples, None)?;
            Ok(Some((e.loss, e.accuracy)))
        }
    }
}

/// The metrics of the residual stream on validation data.
fn sites(trainer: &Trainer, tokens: u64) -> Result<Vec<(String, Metrics)>, Failure> {
    if tokens == 0 {
        return Ok(Vec::new());
    }
    let Some(examples) = trainer.validation_inputs(tokens)? else { return Ok(Vec::new()) };
    let inputs = examples.map(|e| e.map(|e| e.input));
    let options = inspect::Options {
        top_k: 0,
        attention: false,
        weights: false,
        int8: false,
        ..inspect::Options::stream()
    };
    let report = inspect::inspect(trainer.model(), inputs, &options, &mut |_, _| {})?;
    Ok(report.sites.into_iter().filter(|s| is_residual(&s.site)).map(|s| (s.site, s.metrics)).collect())
}

/// Every scheme of the measure; none for images and for post-norm models, which cannot be quantised yet.
fn quantised(
    trainer: &Trainer,
    measure: &Measure,
    settings: &Settings,
) -> Result<Vec<(String, QuantReport)>, Failure> {
    let Feed::Text(sampler) = trainer.feed() else { return Ok(Vec::new()) };
    let model = trainer.model();
    // A sweep over blocks is not to fail over the one that cannot be quantised.
    if measure.quantize.is_empty() || model.config().norm_position != NormPosition::Pre {
        return Ok(Vec::new());
    }
    let seed = trainer.config().train.seed;
    let tokens = Some(measure.quantize_tokens).filter(|&tokens| tokens > 0);
    let texts =
        Texts::of_dataset(sampler.dataset(), model.config().context, CALIBRATION_BATCHES, seed, tokens)?;
    let one = |name: &String| {
        let scheme = Scheme::preset(name)?;
        let recipe = Recipe { scheme: &scheme, repairs: &[] };
        Ok((name.clone(), quantise(model, &recipe, &texts, settings)?.1))
    };
    measure.quantize.iter().map(one).collect()
}

/// Which data it was: its name, and a hash of its description and of the beginning of each shard.
fn fingerprint(trained: &RunConfig, recorded: &RunConfig) -> Result<String, Failure> {
    /// Enough to tell corpora apart without reading a disk full.
    const BYTES: u64 = 1 << 20;
    if trained.data.kind == DataKind::Shapes {
        return Ok("shapes".into());
    }
    let path = Path::new(&trained.data.path);
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let mut paths: Vec<PathBuf> = vec![path.to_path_buf()];
    if path.is_dir() {
        paths = std::fs::read_dir(path)
            .map_err(io)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(io)?;
        paths.sort();
    }
    let mut hash = FNV_OFFSET;
    for path in paths.iter().filter(|p| p.is_file()) {
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(BYTES).read_to_end(&mut bytes)).map_err(io)?;
        hash = fnv1a(hash, &bytes);
    }
    let name = Path::new(&recorded.data.path)
        .file_name()
        .map_or("data".into(), |n| n.to_string_lossy().into_owned());
    Ok(format!("{name} {hash:016x}"))
}
