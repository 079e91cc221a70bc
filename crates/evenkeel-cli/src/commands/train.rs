//! `train CONFIG`.

use crate::args::Train;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress::TrainProgress;
use crate::settings::Settings;
use crate::signals;
use evenkeel::checkpoint::CheckpointError;
use evenkeel::config::RunConfig;
use evenkeel::report::compare::Comparison;
use evenkeel::report::run::read_run;
use evenkeel::train::{Control, Event, MemoryPlan, Outcome, Prepared, RunDir, RunInfo, Trainer, plan_memory};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(crate) fn run(args: Train, settings: &Settings) -> Result<Exit, Failure> {
    let prepared = Prepared::new(RunConfig::load(&args.config, &settings.overrides)?)?;
    if settings.dry_run {
        print_plan(&plan_memory(prepared.config())?, settings);
        return Ok(Exit::Done);
    }
    let stem = args.config.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    let root = args.out.unwrap_or_else(|| default_dir(&stem, prepared.config().train.seed));
    let text = std::fs::read_to_string(&args.config)
        .map_err(|source| CheckpointError::Io { path: args.config.clone(), source })?;
    // Everything that could refuse the run has been checked: only now is anything touched.
    let replace = settings.force && !args.resume && root.join("run.json").is_file();
    let dir = RunDir::create(&root, args.resume || replace)?;
    if replace {
        dir.clear()?;
    }
    if !dir.root().join("config.toml").exists() {
        dir.write("config.toml", &text)?;
    }
    let control = signals::listen(settings.quiet, signals::TRAINING)?;
    let run = execute(prepared, dir, args.resume, &stem, settings, &control)?;
    let page = run.root.join("report");
    std::fs::create_dir_all(&page).map_err(|source| CheckpointError::Io { path: page.clone(), source })?;
    Comparison::new(vec![read_run(&run.root)?]).write(&page)?;
    report(&run, settings);
    Ok(run.exit())
}

/// A run that ended, in whichever way.
pub(crate) struct Run {
    pub(crate) root: PathBuf,
    pub(crate) outcome: Outcome,
    pub(crate) trainer: Trainer,
    pub(crate) tokens_per_sec: Option<f64>,
    val_loss: Option<f64>,
    val_accuracy: Option<f64>,
    train_loss: Option<f64>,
}

impl Run {
    fn exit(&self) -> Exit {
        match self.outcome {
            Outcome::Finished => Exit::Done,
            Outcome::Interrupted => Exit::Interrupted,
            Outcome::Diverged(_) | Outcome::Alarmed(_) => Exit::No,
        }
    }

    fn status(&self) -> &'static str {
        match self.outcome {
            Outcome::Finished => "finished",
            Outcome::Interrupted => "interrupted",
            Outcome::Diverged(_) => "diverged",
            Outcome::Alarmed(_) => "alarmed",
        }
    }

    fn reason(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Diverged(divergence) => Some(divergence.to_string()),
            Outcome::Alarmed(alarm) => Some(alarm.to_string()),
            Outcome::Finished | Outcome::Interrupted => None,
        }
    }
}

/// Runs to the end and keeps run.json true.
pub(crate) fn execute(
    prepared: Prepared,
    dir: RunDir,
    resume: bool,
    name: &str,
    settings: &Settings,
    control: &Control,
) -> Result<Run, Failure> {
    let steps = prepared.config().train.steps;
    let mut trainer = Trainer::new(prepared, dir.clone(), resume)?;
    if resume && trainer.step() == 0 && !settings.quiet {
        output::note(&format!("{name}: no complete checkpoint to resume from, so it starts anew"));
    }
    let mut info = run_info(settings, trainer.step());
    // A run that is finished stays as it is described.
    let done = trainer.step() == steps;
    if done && !settings.quiet {
        output::note(&format!("{name}: already finished, nothing to do"));
    }
    if !done {
        dir.write_info(&info)?;
    }
    let mut progress = TrainProgress::new(settings, name, steps);
    let (mut rates, mut val_loss, mut val_accuracy, mut train_loss) = (Vec::new(), None, None, None);
    let outcome = trainer.run(control, &mut |event: Event| {
        if let Event::Step { line, logged: true } = &event {
            // The first line's time holds one step only, and starting up.
            if line.step > 1 {
                rates.extend(line.tokens_per_sec);
            }
            (train_loss, val_loss) = (line.train_loss, line.val_loss.or(val_loss));
            val_accuracy = line.val_accuracy.or(val_accuracy);
        }
        progress.event(&event);
    });
    progress.finish();
    let outcome = outcome.inspect_err(|e| {
        (info.status, info.reason, info.step) = ("failed".into(), Some(e.to_string()), trainer.step());
        // The error itself is what the user has to see; one about run.json would hide it.
        let _ = dir.write_info(&info);
    })?;
    if train_loss.is_none()
        && let Some(last) = read_run(dir.root())?.metrics.pop()
    {
        // Nothing was left to do: the figures are those of the command that finished it.
        (train_loss, val_loss, val_accuracy) = (last.train_loss, last.val_loss, last.val_accuracy);
        rates.extend(last.tokens_per_sec);
    }
    rates.sort_by(f64::total_cmp);
    let run = Run {
        root: dir.root().to_path_buf(),
        tokens_per_sec: rates.get(rates.len() / 2).copied(),
        outcome,
        val_loss,
        val_accuracy,
        train_loss,
        trainer,
    };
    info.step = run.trainer.step();
    info.status = run.status().into();
    info.reason = run.reason();
    if !done {
        dir.write_info(&info)?;
    }
    Ok(run)
}

fn report(run: &Run, settings: &Settings) {
    let step = run.trainer.step();
    if settings.json {
        let mut result = json!({
            "schema": 1,
            "dir": run.root,
            "status": run.status(),
            "reason": run.reason(),
            "step": step,
            "train_loss": run.train_loss,
            "val_loss": run.val_loss,
            "tokens_per_sec": run.tokens_per_sec,
        });
        if let Some(accuracy) = run.val_accuracy {
            result["val_accuracy"] = json!(accuracy);
        }
        output::json(&result);
        return;
    }
    let loss = |l: Option<f64>| l.map_or("-".to_string(), |l| format!("{l:.4}"));
    output::line(&format!("{} after {step} steps: {}", run.status(), run.root.display()));
    if let Some(reason) = run.reason() {
        output::line(&reason);
    } else {
        let accuracy = run.val_accuracy.map_or(String::new(), |a| format!(", accuracy {:.2}%", 100.0 * a));
        output::line(&format!(
            "train loss {}, validation loss {}{accuracy}",
            loss(run.train_loss),
            loss(run.val_loss)
        ));
        output::line(&format!("curves: {}", run.root.join("report/index.html").display()));
    }
}

fn print_plan(plan: &MemoryPlan, settings: &Settings) {
    if settings.json {
        output::json(&json!({"schema": 1, "plan": plan}));
        return;
    }
    let total = plan.weights_bytes + plan.gradients_bytes + plan.optimizer_bytes + plan.activations_bytes;
    output::line(&format!("parameters   {:>14}", plan.parameters));
    output::line(&format!("steps        {:>14}", plan.steps));
    output::line(&format!("tokens       {:>14}", plan.tokens));
    for (part, bytes) in [
        ("weights", plan.weights_bytes),
        ("gradients", plan.gradients_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("activations", plan.activations_bytes),
        ("memory", total),
    ] {
        output::line(&format!("{part:12} {:>10.1} MiB", bytes as f64 / (1 << 20) as f64));
    }
}

/// What run.json says of this process.
pub(crate) fn run_info(settings: &Settings, step: u64) -> RunInfo {
    RunInfo {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("EVENKEEL_REVISION").map(String::from),
        host: host(),
        device: format!("cpu ({})", evenkeel_kernels::isa::active().name()),
        threads: settings.threads,
        argv: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        status: "running".into(),
        step,
        reason: None,
    }
}

/// Operating system and architecture; no names of machines or people.
pub(crate) fn host() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}

/// runs/2026-11-23T1456-op-soap-s0
fn default_dir(stem: &str, seed: u64) -> PathBuf {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let stamp: String = now.chars().take(16).filter(|c| *c != ':').collect();
    let base = format!("{stamp}-{stem}-s{seed}");
    let names = std::iter::once(base.clone()).chain((2..).map(|n| format!("{base}-{n}")));
    names
        .map(|name| Path::new("runs").join(name))
        .find(|path| !path.exists())
        .unwrap_or_else(|| Path::new("runs").join(base))
}
