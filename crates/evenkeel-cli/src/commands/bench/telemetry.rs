//! `bench telemetry`: whole training steps with the residual stream measured and without, taking turns in one process.
//!
//! Every step measures kurtosis (Eq 1, centred, mean-removed), rms, max_abs and input_corr_mean at `embed` and every
//! `.resid` over all tokens, and mmr on 256 of them; every `--gram-every`-th takes the Gram metrics too. A pair is a step
//! of each kind, the one that goes first changing from pair to pair; its ratio is the figure, and the median of the
//! ratios counts. Steps with Gram matrices are rare, so they have pairs of their own, and the overhead of a run is
//! `((every - 1) · without + with) / every`. On a machine whose steps differ by more than what is measured, the time that
//! is spent measuring, by the clock, as a share of the step without, is the steadier figure: it is given too.

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
        _ = measured(&mut bench, &filter, telemetry.selection(true))?;
    }
    let plain = pairs(&mut bench, &filter, telemetry.selection(false), args.pairs)?;
    let gram = pairs(&mut bench, &filter, telemetry.selection(true), args.gram_pairs)?;
    let every = args.gram_every as f64;
    let in_all = |without: f64, with: f64| ((every - 1.0) * without + with) / every;
    let (without, with) = (overhead(&plain), overhead(&gram));
    let (spent, spent_gram) = (share(&plain), share(&gram));
    let step = median(&plain.iter().map(|p| p.plain).collect::<Vec<_>>());
    if settings.json {
        let raw = |pairs: &[Pair]| {
            pairs.iter().map(|p| json!([p.plain, p.measured, p.measuring])).collect::<Vec<_>>()
        };
        output::json(&json!({
            "schema": 1,
            "overhead": in_all(without, with),
            "overhead_per_step": without,
            "overhead_of_gram_step": with,
            "measuring": in_all(spent, spent_gram),
            "measuring_per_step": spent,
            "measuring_of_gram_step": spent_gram,
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
        let line = |what: &str, overhead: f64, spent: f64| {
            output::line(&format!("{:+.2}%, {:.2}% by the clock: {what}", 100.0 * overhead, 100.0 * spent));
        };
        line(&format!("every residual site at every step (median of {} pairs)", args.pairs), without, spent);
        line(
            &format!("at a step with the Gram metrics too (median of {} pairs)", args.gram_pairs),
            with,
            spent_gram,
        );
        line(
            &format!("in all, with Gram metrics every {} steps", args.gram_every),
            in_all(without, with),
            in_all(spent, spent_gram),
        );
    }
    Ok(Exit::Done)
}

/// Seconds of a step without telemetry, of one with it, and of what the latter spent measuring.
struct Pair {
    plain: f64,
    measured: f64,
    measuring: f64,
}

/// Median of measured / plain, less 1.
fn overhead(pairs: &[Pair]) -> f64 {
    median(&pairs.iter().map(|p| p.measured / p.plain).collect::<Vec<_>>()) - 1.0
}

/// Median of the time spent measuring over that of the plain step.
fn share(pairs: &[Pair]) -> f64 {
    median(&pairs.iter().map(|p| p.measuring / p.plain).collect::<Vec<_>>())
}

fn pairs(
    bench: &mut Bench,
    filter: &NameFilter,
    selection: Selection,
    count: usize,
) -> Result<Vec<Pair>, Failure> {
    let plain = |bench: &mut Bench| -> Result<f64, Failure> {
        let begun = Instant::now();
        bench.step(None, &mut NoTap)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let pair = |i: usize| {
        let before = if i.is_multiple_of(2) { Some(plain(bench)?) } else { None };
        let (measured, measuring) = measured(bench, filter, selection)?;
        let plain = match before {
            Some(seconds) => seconds,
            None => plain(bench)?,
        };
        Ok(Pair { plain, measured, measuring })
    };
    (0..count).map(pair).collect()
}

/// Seconds of a step whose residual stream is measured, figures included, and of the measuring alone.
fn measured(bench: &mut Bench, filter: &NameFilter, selection: Selection) -> Result<(f64, f64), Failure> {
    let begun = Instant::now();
    let mut tap = MetricsTap::with(Some(filter.clone()), selection);
    bench.step(None, &mut tap)?;
    let visited = Instant::now();
    for (site, stats) in &tap.stats {
        black_box((site.to_string(), stats.metrics()));
    }
    let measuring = tap.spent + visited.elapsed();
    Ok((begun.elapsed().as_secs_f64(), measuring.as_secs_f64()))
}
