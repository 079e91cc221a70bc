//! `bench telemetry`: whole training steps with the residual stream measured and without, taking turns in one process.
//!
//! Every step measures kurtosis (Eq 1, centred, mean-removed), rms, max_abs and input_corr_mean at `embed` and every
//! `.resid` over all tokens, and mmr on 256 of them; every `--gram-every`-th takes the Gram metrics too. A pair is a step
//! of each kind, the one that goes first changing from pair to pair; its ratio is the figure, and the median of the
//! ratios counts. Steps with Gram matrices are rare, so they have pairs of their own, and the overhead of a run is
//! `((every - 1) · without + with) / every`.

use super::step::{Bench, WARM_UP};
use super::{median, milliseconds};
use crate::args::bench::Telemetry;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::config::TelemetryConfig;
use evenkeel::metrics::{MetricsTap, Selection};
use evenkeel::names::NameFilter;
use evenkeel::tap::NoTap;
use evenkeel_kernels::isa;
use serde_json::json;
use std::hint::black_box;
use std::time::Instant;

pub(super) fn run(args: Telemetry, settings: &Settings) -> Result<Exit, Failure> {
    for (flag, value) in
        [("pairs", args.pairs), ("gram-pairs", args.gram_pairs), ("gram-every", args.gram_every)]
    {
        super::at_least_one(flag, value, 1_000_000)?;
    }
    let mut bench = Bench::new(&args.step, settings.seed.unwrap_or(0))?;
    let telemetry = TelemetryConfig::default();
    let filter = NameFilter::new(&telemetry.sites)
        .map_err(|e| evenkeel::config::ConfigError::Value { problem: e.to_string() })?;
    for _ in 0..WARM_UP {
        measured(&mut bench, &filter, telemetry.selection(true))?;
    }
    let plain = pairs(&mut bench, &filter, telemetry.selection(false), args.pairs)?;
    let gram = pairs(&mut bench, &filter, telemetry.selection(true), args.gram_pairs)?;
    let every = args.gram_every as f64;
    let (without, with) = (overhead(&plain), overhead(&gram));
    let total = ((every - 1.0) * without + with) / every;
    let step = median(&plain.iter().map(|p| p.0).collect::<Vec<_>>());
    if settings.json {
        let raw = |pairs: &[(f64, f64)]| pairs.iter().map(|p| json!([p.0, p.1])).collect::<Vec<_>>();
        output::json(&json!({
            "schema": 1,
            "overhead": total,
            "overhead_per_step": without,
            "overhead_of_gram_step": with,
            "gram_every": args.gram_every,
            "step_seconds": step,
            "pairs": raw(&plain),
            "gram_pairs": raw(&gram),
            "precision": args.step.precision,
            "threads": settings.threads,
            "isa": isa::active().name(),
        }));
    } else {
        output::line(&format!("{} ms per step without telemetry", milliseconds(step)));
        output::line(&format!(
            "{:+.2}% with every residual site measured at every step (median of {} pairs)",
            100.0 * without,
            args.pairs
        ));
        output::line(&format!(
            "{:+.2}% at a step that takes the Gram metrics too (median of {} pairs)",
            100.0 * with,
            args.gram_pairs
        ));
        output::line(&format!(
            "{:+.2}% in all, with Gram metrics every {} steps",
            100.0 * total,
            args.gram_every
        ));
    }
    Ok(Exit::Done)
}

/// Median of measured / plain, less 1.
fn overhead(pairs: &[(f64, f64)]) -> f64 {
    median(&pairs.iter().map(|(plain, measured)| measured / plain).collect::<Vec<_>>()) - 1.0
}

/// Seconds of (a plain step, a measured one).
fn pairs(
    bench: &mut Bench,
    filter: &NameFilter,
    selection: Selection,
    count: usize,
) -> Result<Vec<(f64, f64)>, Failure> {
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        let plain = |bench: &mut Bench| -> Result<f64, Failure> {
            let begun = Instant::now();
            bench.step(None, &mut NoTap)?;
            Ok(begun.elapsed().as_secs_f64())
        };
        pairs.push(if i % 2 == 0 {
            let first = plain(bench)?;
            (first, measured(bench, filter, selection)?)
        } else {
            let first = measured(bench, filter, selection)?;
            (plain(bench)?, first)
        });
    }
    Ok(pairs)
}

/// Seconds of a step whose residual stream is measured, figures included.
fn measured(bench: &mut Bench, filter: &NameFilter, selection: Selection) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut tap = MetricsTap::with(Some(filter.clone()), selection);
    bench.step(None, &mut tap)?;
    for (site, stats) in &tap.stats {
        black_box((site.to_string(), stats.metrics()));
    }
    Ok(begun.elapsed().as_secs_f64())
}
