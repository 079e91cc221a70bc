//! What the quickstart runs, and for how long.

use crate::failure::Failure;
use evenkeel::checkpoint::{CheckpointError, files};
use evenkeel::config::RunConfig;
use evenkeel::optim::{OptimizerName, Rule};
use evenkeel::train::{Control, Event, Outcome, Prepared, RunDir, Trainer};
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
const OP_BEST: f64 = 6e-3;
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
/// Steps of a run at least, and at most (16 MiB of text many times over).
const FEWEST_STEPS: u64 = 20;
const MOST_STEPS: u64 = 1_000_000;
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

/// plan.json: written when the folder is taken, and again when the steps are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) schema: u32,
    pub(super) request: Request,
    /// Steps of each run; null until both sides were timed.
    pub(super) steps: Option<u64>,
    /// Seconds per step as timed: Pre-LN + AdamW, OP + SOAP.
    pub(super) seconds_per_step: Option<[f64; 2]>,
}

const PLAN: &str = "plan.json";

/// Takes `out` for this request: goes on with an earlier command's plan, or begins one. Only a folder that holds a
/// quickstart is ever cleared, and only with `force`.
pub(super) fn open(out: &Path, request: Request, force: bool) -> Result<Plan, Failure> {
    let io = |source| CheckpointError::Io { path: out.to_path_buf(), source };
    let path = out.join(PLAN);
    if path.is_file() {
        if force {
            for name in ["data", "runs", "timing"] {
                if out.join(name).is_dir() {
                    std::fs::remove_dir_all(out.join(name)).map_err(io)?;
                }
            }
        } else {
            let plan: Plan = files::read_json(&path)?;
            if plan.request == request {
                return Ok(plan);
            }
            return Err(Failure::input(
                format!("{} holds a quickstart with other minutes, seed or corpus", out.display()),
                "add --force to replace it, or choose another folder with --out",
            ));
        }
    } else if out.exists() && std::fs::read_dir(out).map_err(io)?.next().is_some() {
        return Err(Failure::input(
            format!("{} is not empty and holds no quickstart", out.display()),
            "choose another folder with --out",
        ));
    }
    std::fs::create_dir_all(out).map_err(io)?;
    let plan = Plan { schema: 1, request, steps: None, seconds_per_step: None };
    files::write_json(&path, &plan)?;
    Ok(plan)
}

/// Times both sides and chooses the steps; `None` if it was interrupted.
pub(super) fn make(plan: Plan, data: &Path, out: &Path, control: &Control) -> Result<Option<Plan>, Failure> {
    let mut seconds = [0.0; 2];
    for (slot, (side, lr)) in seconds.iter_mut().zip(&RUNS[..2]) {
        match time_side(*side, *lr, &plan, data, &out.join("timing"), control)? {
            Some(measured) => *slot = measured,
            None => return Ok(None),
        }
    }
    let budget = plan.request.minutes * 60.0 * (1.0 - RESERVE);
    let steps = budget / (2.0 * (seconds[0] + seconds[1]));
    let steps = ((steps / 10.0) as u64 * 10).clamp(FEWEST_STEPS, MOST_STEPS);
    let plan = Plan { steps: Some(steps), seconds_per_step: Some(seconds), ..plan };
    files::write_json(&out.join(PLAN), &plan)?;
    Ok(Some(plan))
}

/// Seconds per step of one side; `None` if it was interrupted.
fn time_side(
    side: Side,
    lr: f64,
    plan: &Plan,
    data: &Path,
    timing: &Path,
    control: &Control,
) -> Result<Option<f64>, Failure> {
    let mut config = config(side, lr, TIMED.1, plan.request.seed, data)?;
    config.train.eval_tokens = CONTEXT as u64;
    let dir = RunDir::create(timing, true)?;
    let mut trainer = Trainer::new(Prepared::new(config)?, dir, false)?;
    let (mut begun, mut seconds) = (None, None);
    let outcome = trainer.run(control, &mut |event: Event| {
        if let Event::Step { line, .. } = event {
            if line.step == TIMED.0 {
                begun = Some(Instant::now());
            } else if line.step == TIMED.1 {
                seconds = begun.map(|b: Instant| b.elapsed().as_secs_f64() / (TIMED.1 - TIMED.0) as f64);
            }
        }
    })?;
    std::fs::remove_dir_all(timing)
        .map_err(|source| CheckpointError::Io { path: timing.to_path_buf(), source })?;
    match (outcome, seconds) {
        (Outcome::Interrupted, _) => Ok(None),
        (Outcome::Finished, Some(seconds)) if seconds > 0.0 => Ok(Some(seconds)),
        _ => Err(Failure::input(
            format!("the first {} steps of {} could not be timed", TIMED.1, side.block()),
            "try another seed with --seed, or another corpus with --corpus",
        )),
    }
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
    if let Rule::Soap(soap) = &mut c.optim.rule {
        // Below the vocabulary, whose side of embedding and head keeps the identity, and above the MLP's hidden width.
        soap.basis.max_precond_dim = 1024;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates are those of the committed search: each side's best, and the largest at which both finished.
    #[test]
    fn rates_come_from_the_committed_search() {
        let text = include_str!("../../../../../experiments/quickstart_lr.toml");
        let search: toml::Table = text.parse().unwrap();
        let results = search["result"].as_array().unwrap();
        let of = |side: Side| {
            let mut found: Vec<(f64, f64)> = results
                .iter()
                .filter(|r| r["block"].as_str() == Some(side.block()))
                .filter_map(|r| Some((r.get("val_loss")?.as_float()?, r["lr_peak"].as_float()?)))
                .collect();
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            found
        };
        let (pre, op) = (of(Side::PreLnAdamw), of(Side::OpSoap));
        assert!(pre.len() >= 4 && op.len() >= 4);
        assert_eq!((pre[0].1, op[0].1), (PRE_LN_BEST, OP_BEST));
        let largest = |runs: &[(f64, f64)]| runs.iter().map(|r| r.1).fold(0.0, f64::max);
        assert_eq!((largest(&pre), largest(&op)), (LARGER, LARGER));
    }
}
