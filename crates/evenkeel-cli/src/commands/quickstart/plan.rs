//! What the quickstart runs, and for how long.

use crate::failure::Failure;
use evenkeel::checkpoint::{CheckpointError, files};
use evenkeel::config::RunConfig;
use evenkeel::optim::OptimizerName;
use evenkeel::train::{Control, Event, RunDir, TrainError, Trainer};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// The two sides of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What everybody trains.
    PreLnAdamw,
    /// What the paper proposes.
    OpSoap,
}

impl Side {
    pub(super) fn block(self) -> &'static str {
        match self {
            Side::PreLnAdamw => "pre_ln",
            Side::OpSoap => "op",
        }
    }

    pub(super) fn optimizer(self) -> &'static str {
        match self {
            Side::PreLnAdamw => "adamw",
            Side::OpSoap => "soap",
        }
    }
}

/// Each side's best rate of the search in experiments/quickstart_lr.toml, and the largest rate of its grid at
/// which both still train.
const PRE_LN_BEST: f64 = 3e-3;
const OP_BEST: f64 = 3e-3;
const LARGER: f64 = 1e-2;

/// The four runs, in order.
pub(super) const RUNS: [(Side, f64); 4] = [
    (Side::PreLnAdamw, PRE_LN_BEST),
    (Side::OpSoap, OP_BEST),
    (Side::PreLnAdamw, LARGER),
    (Side::OpSoap, LARGER),
];

const DEPTH: usize = 4;
const WIDTH: usize = 192;
const HEADS: usize = 3;
const CONTEXT: usize = 128;
const SEQUENCES: usize = 16;
/// Steps that are timed; the second ten of SOAP's hold one refresh of the bases, as every ten steps do.
const TIMED: (u64, u64) = (11, 21);
/// Share of the minutes that is left for tokenising, evaluating, measuring and quantising.
const RESERVE: f64 = 0.12;

/// What was asked for; a plan made for another request is not continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) minutes: f64,
    pub(super) seed: u64,
    pub(super) corpus_bytes: u64,
    pub(super) corpus_hash: String,
}

/// plan.json
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) schema: u32,
    pub(super) request: Request,
    /// Steps of each run.
    pub(super) steps: u64,
    /// Seconds per step as timed: Pre-LN + AdamW, OP + SOAP.
    pub(super) seconds_per_step: [f64; 2],
}

/// Prepares `out`: the plan of an earlier command with the same request, or nothing in an empty folder.
pub(super) fn open(out: &Path, request: &Request, force: bool) -> Result<Option<Plan>, Failure> {
    let io = |source| CheckpointError::Io { path: out.to_path_buf(), source };
    let path = out.join("plan.json");
    if path.is_file() && !force {
        let plan: Plan = files::read_json(&path)?;
        if plan.request == *request {
            return Ok(Some(plan));
        }
        return Err(Failure::input(
            format!("{} holds a quickstart with other minutes, seed or corpus", out.display()),
            "add --force to replace it, or choose another folder with --out",
        ));
    }
    if force {
        for name in ["data", "runs", "timing"] {
            if out.join(name).is_dir() {
                std::fs::remove_dir_all(out.join(name)).map_err(io)?;
            }
        }
    } else if out.join("runs").exists() {
        return Err(TrainError::Exists { path: out.to_path_buf() }.into());
    }
    std::fs::create_dir_all(out).map_err(io)?;
    Ok(None)
}

/// Times both sides and chooses the steps.
pub(super) fn make(request: Request, data: &Path, out: &Path, control: &Control) -> Result<Plan, Failure> {
    let timing = out.join("timing");
    let mut seconds = [0.0; 2];
    for (slot, (side, lr)) in seconds.iter_mut().zip(&RUNS[..2]) {
        let mut config = config(*side, *lr, TIMED.1, request.seed, data)?;
        config.train.eval_tokens = CONTEXT as u64;
        let mut trainer = Trainer::new(config, RunDir::create(&timing, true)?, false)?;
        let mut first = None;
        trainer.run(control, &mut |event: Event| {
            if let Event::Step { line, .. } = event {
                if line.step == TIMED.0 {
                    first = Some(Instant::now());
                } else if let (true, Some(first)) = (line.step == TIMED.1, first) {
                    *slot = first.elapsed().as_secs_f64() / (TIMED.1 - TIMED.0) as f64;
                }
            }
        })?;
        std::fs::remove_dir_all(&timing)
            .map_err(|source| CheckpointError::Io { path: timing.clone(), source })?;
    }
    let seconds_of_training = request.minutes * 60.0 * (1.0 - RESERVE);
    let steps = seconds_of_training / (2.0 * (seconds[0] + seconds[1]));
    let plan =
        Plan { schema: 1, steps: ((steps / 10.0) as u64 * 10).max(20), request, seconds_per_step: seconds };
    files::write_json(&out.join("plan.json"), &plan)?;
    Ok(plan)
}

/// One run's configuration. Both sides share everything but block, optimiser and rate.
pub(super) fn config(side: Side, lr: f64, steps: u64, seed: u64, data: &Path) -> Result<RunConfig, Failure> {
    let optimizer = match side {
        Side::PreLnAdamw => OptimizerName::Adamw,
        Side::OpSoap => OptimizerName::Soap,
    };
    let mut c = RunConfig::defaults(side.block(), optimizer)?;
    (c.model.depth, c.model.width, c.model.heads, c.model.context) = (DEPTH, WIDTH, HEADS, CONTEXT);
    c.data.path = data.display().to_string();
    c.optim.lr_peak = lr;
    if c.optim.max_precond_dim > 0 {
        // Below the vocabulary, whose side of embedding and head keeps the identity, and above the MLP's hidden width.
        c.optim.max_precond_dim = 1024;
    }
    c.train.steps = steps;
    c.train.seed = seed;
    c.train.batch_sequences = SEQUENCES;
    c.train.eval_every_steps = (steps / 8).max(1);
    c.train.eval_tokens = 16_384;
    c.train.checkpoint_every_steps = (steps / 4).max(1);
    c.train.checkpoint_keep = 1;
    c.telemetry.stats_every_steps = (steps / 100).max(1);
    Ok(c)
}

/// Size of the model in words.
pub(super) fn describe() -> String {
    format!("{DEPTH} blocks, width {WIDTH}, {HEADS} heads, context {CONTEXT}, {SEQUENCES} sequences a step")
}
