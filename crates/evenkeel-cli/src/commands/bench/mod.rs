//! `bench`: how fast this machine computes what training and decoding need, and against what peak.
//!
//! One file for each subcommand; here is what they share: the benchmark's model, how its work is counted, and
//! medians. Times are wall clock. A step's figures on a shared machine mean something beside others of the same
//! minutes only; `docs/performance.md` has the protocol.

mod decode;
mod gemm;
mod int8;
mod ops;
mod peak;
mod scale;
mod step;
mod telemetry;

use crate::args::bench::{Bench, BenchCommand, Sizes};
use crate::failure::{Exit, Failure};
use crate::settings::Settings;
use evenkeel::model::{ModelConfig, ModelError, preset};
use evenkeel::tape::Precision;
use evenkeel_kernels::gemm::Compute;
use evenkeel_kernels::peak::{Factors, Multiply, Threads};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) fn run(args: Bench, settings: &Settings) -> Result<Exit, Failure> {
    match args.command {
        BenchCommand::Peak => peak::run(settings),
        BenchCommand::Gemm(a) => gemm::run(a, settings),
        BenchCommand::Ops(a) => ops::run(a, settings),
        BenchCommand::Step(a) => step::run(a, settings),
        BenchCommand::Decode(a) => decode::run(a, settings),
        BenchCommand::Telemetry(a) => telemetry::run(a, settings),
        BenchCommand::Scale(a) => scale::run(a, settings),
        BenchCommand::Int8(a) => int8::run(a, settings),
    }
}

/// LayerNorm pre-norm, ReLU MLP of 4 × width, biases, learned positions, untied head without bias.
fn model(depth: usize, heads: usize, sizes: &Sizes) -> Result<ModelConfig, Failure> {
    model_of("pre_ln", depth, heads, sizes)
}

/// A preset in these sizes.
fn model_of(name: &str, depth: usize, heads: usize, sizes: &Sizes) -> Result<ModelConfig, Failure> {
    let hint = "`evenkeel bench step --help` gives the sizes of the reference model";
    let base = preset(name).ok_or_else(|| {
        Failure::input(format!("there is no preset named {name}"), "`evenkeel config list` names the presets")
    })?;
    let config =
        ModelConfig { depth, heads, width: sizes.width, vocab: sizes.vocab, context: sizes.context, ..base };
    config.validate().map_err(|e| match e {
        ModelError::Config { key, problem } => Failure::input(format!("--{key} {problem}"), hint),
        other => other.into(),
    })?;
    at_least_one("sequences", sizes.sequences, 1 << 16)?;
    Ok(config)
}

/// Refuses a count that is zero or beyond all reason.
fn at_least_one(flag: &str, value: usize, most: usize) -> Result<(), Failure> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Failure::input(
        format!("--{flag} must lie between 1 and {most}, not {value}"),
        format!("leave --{flag} out to use its default"),
    ))
}

/// The folder for figures, made if it is not there.
fn folder(out: &Option<PathBuf>) -> Result<Option<&Path>, Failure> {
    let Some(path) = out else { return Ok(None) };
    std::fs::create_dir_all(path).map_err(|e| {
        Failure::input(
            format!("cannot make the folder {}: {e}", path.display()),
            "name a folder that you may write to",
        )
    })?;
    Ok(Some(path))
}

/// Floating-point operations of one training step: two for each weight of a matrix and each token in the forward
/// pass, and twice that in the backward pass; attention's two products in full, as if there were no causal mask, which
/// is how such figures are usually given. Nothing for norms, the optimiser, or what is computed again.
fn step_flop(c: &ModelConfig, sequences: usize) -> f64 {
    let (d, t) = (c.width as f64, c.context as f64);
    let tokens = sequences as f64 * t;
    let matrices = c.depth as f64 * (4.0 * d * d + 2.0 * d * c.hidden() as f64) + d * c.vocab as f64;
    6.0 * tokens * matrices + 12.0 * tokens * t * d * c.depth as f64
}

fn compute(precision: Precision) -> Compute {
    match precision {
        Precision::F32 => Compute::F32,
        Precision::Bf16 => Compute::Bf16,
    }
}

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// GFLOP/s that bound products of this precision on all threads, from a short run.
fn peak_gflops(precision: Precision) -> f64 {
    peak_of(compute(precision).into())
}

/// 10⁹ operations per second that bound products of these factors on all threads, from a short run.
fn peak_of(factors: Factors) -> f64 {
    Multiply::bounding(factors).gflops(Threads::All, 3, Duration::from_millis(15))
}

/// What to say where bfloat16 is no faster than float32 by construction.
fn bf16_note(precisions: &[Precision]) -> Option<String> {
    let bound = Multiply::bounding(Compute::Bf16);
    (precisions.contains(&Precision::Bf16) && bound.factors() == Factors::F32).then(|| {
        format!(
            "bf16: {} has no multiplier for bfloat16, so the rounded factors are multiplied in float32 and the peak \
             is that of {}",
            bound.isa().name(),
            bound.name()
        )
    })
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// A share as text.
fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// A time as text, in milliseconds with three significant digits.
fn milliseconds(seconds: f64) -> String {
    let ms = 1e3 * seconds;
    let decimals = if ms < 1.0 { 3 } else { (2 - ms.log10() as i32).max(0) as usize };
    format!("{ms:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_step_is_353_gflop() {
        let sizes = Sizes { width: 384, vocab: 8192, context: 128, sequences: 32 };
        let config = model(6, 6, &sizes).unwrap();
        // 6 · 4096 · (6 · 12 · 384² + 384 · 8192) + 12 · 4096 · 128 · 384 · 6
        assert_eq!(step_flop(&config, 32), 352_724_189_184.0);
    }

    #[test]
    fn medians_and_text() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
        let shown = [0.000_012_34, 0.001_234, 0.123_4, 12.34].map(milliseconds);
        assert_eq!(shown, ["0.012", "1.23", "123", "12340"]);
    }
}
