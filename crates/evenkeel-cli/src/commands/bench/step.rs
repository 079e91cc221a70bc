//! `bench step`: whole training steps on random ids, after construction and two steps that are not timed.

use super::{folder, median, milliseconds, peak_gflops, percent, precision_name, step_flop};
use crate::args::bench::Step;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::config::ConfigError;
use evenkeel::model::Transformer;
use evenkeel::optim::{Groups, OptimConfig, State};
use evenkeel::profile::{Account, Pass, Profile};
use evenkeel::random;
use evenkeel::report::stacked::{Part, StackedBar, StackedBars};
use evenkeel::report::table::{Align, Table};
use evenkeel::report::{Target, write_file};
use evenkeel::tap::{NoTap, Tap};
use evenkeel::tape::{Execution, Gradients, Tape};
use evenkeel::train::peak_rss_bytes;
use evenkeel_kernels::isa;
use evenkeel_kernels::peak::Multiply;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Steps before the clock: the first faults pages in, and SOAP's only takes its bases.
pub(super) const WARM_UP: usize = 2;

/// What is trained: one model, one batch, over and over.
pub(super) struct Bench {
    pub(super) model: Transformer,
    groups: Groups,
    lr: f64,
    gradients: Gradients,
    states: Vec<State>,
    ids: Vec<u32>,
    targets: Vec<u32>,
    sequences: usize,
    execution: Execution,
}

impl Bench {
    pub(super) fn new(args: &Step, seed: u64) -> Result<Self, Failure> {
        let config = super::model(args.depth, args.heads, &args.sizes)?;
        let optim = OptimConfig::defaults(args.optimizer);
        let (sequences, vocab) = (args.sizes.sequences, config.vocab);
        let draw = |stream: u64| -> Vec<u32> {
            let key = random::key(&[seed, stream]);
            let id = |i: usize| (random::uniform(key, i as u64) * vocab as f64) as u32;
            (0..sequences * config.context).map(|i| id(i).min(vocab as u32 - 1)).collect()
        };
        let (ids, targets) = (draw(0), draw(1));
        let model = Transformer::new(config, seed)?;
        let named = model.parameters().iter().map(|p| (p.name.as_str(), p.tensor.dims()));
        let groups = Groups::new(&optim, named).map_err(|e| ConfigError::Value { problem: e.to_string() })?;
        let gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor))?;
        let states = vec![State::default(); model.parameters().len()];
        Ok(Self {
            groups,
            lr: optim.lr_peak,
            gradients,
            states,
            ids,
            targets,
            sequences,
            execution: Execution { precision: args.precision, recompute: args.recompute },
            model,
        })
    }

    /// One step, `tap` looking on; gives the loss before it.
    pub(super) fn step(&mut self, profile: Option<&Profile>, tap: &mut dyn Tap) -> Result<f64, Failure> {
        self.gradients.clear();
        let tape = Tape::recording_as(self.execution);
        let tape = match profile {
            Some(profile) => tape.profiled(profile),
            None => tape,
        };
        let loss = self.model.loss(&tape, tap, &self.ids, &self.targets, self.sequences)?;
        tape.backward(&loss, 1.0, &mut self.gradients)?;
        let _span = profile.map(|p| p.span(self.groups.name(), Pass::Optimizer));
        let parameters = self.model.parameters().iter().zip(&mut self.states);
        let gradients = &self.gradients;
        let parts = parameters.map(|(p, state)| (&p.tensor, gradients.get(p.index), state));
        self.groups.step(parts, self.lr)?;
        Ok(f64::from(loss.tensor().to_scalar::<f32>()?))
    }
}

pub(super) fn run(args: Step, settings: &Settings) -> Result<Exit, Failure> {
    super::at_least_one("steps", args.steps, 1_000_000)?;
    let mut bench = Bench::new(&args, settings.seed.unwrap_or(0))?;
    let out = folder(&args.out)?;
    let mut loss = f64::NAN;
    for _ in 0..WARM_UP {
        loss = bench.step(None, &mut NoTap)?;
    }
    // Before and after, since either may fall into a slow moment.
    let peak = peak_gflops(args.precision);
    let profile = args.profile.then(Profile::start);
    let mut seconds = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        let begun = Instant::now();
        loss = bench.step(profile.as_ref(), &mut NoTap)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let times = profile.map(|p| p.take());
    let memory = peak_rss_bytes();

    let time = median(&seconds);
    let flop = step_flop(bench.model.config(), bench.sequences);
    let gflops = flop / time / 1e9;
    let peak = peak.max(peak_gflops(args.precision));
    let bound = Multiply::bounding(super::compute(args.precision));
    let tokens = (bench.ids.len() as f64) / time;
    if settings.json {
        let mut report = json!({
            "schema": 1,
            "seconds_median": time,
            "tokens_per_sec": tokens,
            "gflops": gflops,
            "peak_share": gflops / peak,
            "peak_rss_bytes": memory,
            "seconds": seconds,
            "seconds_mean": seconds.iter().sum::<f64>() / seconds.len() as f64,
            "gflop_per_step": flop / 1e9,
            "peak": {"loop": bound.name(), "gflops": peak},
            "loss": loss.is_finite().then_some(loss),
            "model": {
                "depth": args.depth, "width": args.sizes.width, "heads": args.heads, "vocab": args.sizes.vocab,
                "context": args.sizes.context, "parameters": bench.model.parameter_count(),
            },
            "sequences": bench.sequences,
            "precision": args.precision,
            "optimizer": args.optimizer,
            "recompute": args.recompute,
            "threads": settings.threads,
            "isa": isa::active().name(),
        });
        if let Some(times) = &times {
            report["profile"] = per_step(times, args.steps)
                .into_iter()
                .map(|((operation, pass), s)| json!({"operation": operation, "pass": pass.name(), "seconds": s}))
                .collect::<Vec<Value>>()
                .into();
        }
        output::json(&report);
    } else {
        output::line(&format!(
            "{} ms per step (median of {}), {tokens:.0} tokens/s",
            milliseconds(time),
            args.steps
        ));
        output::line(&format!(
            "{gflops:.1} GFLOP/s, {} of {peak:.1} ({} on {} threads); {:.1} GFLOP per step, attention in full",
            percent(gflops / peak),
            bound.name(),
            settings.threads,
            flop / 1e9
        ));
        let shown = memory.map_or("unknown".into(), |b| format!("{:.0} MiB", b as f64 / f64::from(1 << 20)));
        output::line(&format!("{shown} peak memory, {} parameters", bench.model.parameter_count()));
        if let Some(times) = &times {
            output::line("");
            output::result(&table(&per_step(times, args.steps)).to_text());
        }
    }
    if let (Some(folder), Some(times)) = (out, &times) {
        let title = format!(
            "milliseconds of a step: {} × {}, {} words, {} × {} tokens, {}",
            args.depth,
            args.sizes.width,
            args.sizes.vocab,
            args.sizes.sequences,
            args.sizes.context,
            precision_name(args.precision)
        );
        let figure = figure(&per_step(times, args.steps), title).render(Target::File);
        write_file(&folder.join("step-profile.svg"), &figure)?;
    }
    Ok(Exit::Done)
}

/// Mean seconds of a step by account.
fn per_step(times: &BTreeMap<Account, Duration>, steps: usize) -> BTreeMap<Account, f64> {
    times.iter().map(|(&account, time)| (account, time.as_secs_f64() / steps as f64)).collect()
}

/// Operations with their total, the longest first.
fn operations(times: &BTreeMap<Account, f64>) -> Vec<(&'static str, f64)> {
    let mut totals: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (&(operation, _), seconds) in times {
        *totals.entry(operation).or_default() += seconds;
    }
    let mut sorted: Vec<_> = totals.into_iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    sorted
}

/// The passes that took any time.
fn passes(times: &BTreeMap<Account, f64>) -> Vec<Pass> {
    Pass::ALL.into_iter().filter(|&pass| times.keys().any(|k| k.1 == pass)).collect()
}

/// Milliseconds by operation and pass.
fn table(times: &BTreeMap<Account, f64>) -> Table {
    let (passes, all) = (passes(times), times.values().sum::<f64>());
    let mut columns = vec![("ms of a step", Align::Left)];
    columns.extend(passes.iter().map(|p| (p.name(), Align::Right)));
    columns.extend([("total", Align::Right), ("share", Align::Right)]);
    let mut table = Table::new(&columns);
    let mut row = |name: &str, in_pass: &dyn Fn(Pass) -> Option<f64>, total: f64| {
        let mut cells = vec![name.to_string()];
        cells.extend(passes.iter().map(|&p| in_pass(p).map_or(String::new(), |s| format!("{:.2}", 1e3 * s))));
        cells.extend([format!("{:.2}", 1e3 * total), format!("{:.1}%", 100.0 * total / all)]);
        table.push(cells);
    };
    for (operation, total) in operations(times) {
        row(operation, &|pass| times.get(&(operation, pass)).copied(), total);
    }
    row("all", &|pass| Some(times.iter().filter(|(k, _)| k.1 == pass).map(|(_, s)| s).sum()), all);
    table
}

/// A bar for each pass, a part for each operation.
fn figure(times: &BTreeMap<Account, f64>, x_label: String) -> StackedBars {
    let order = operations(times);
    let bars = passes(times).into_iter().map(|pass| {
        let in_pass = |operation| times.get(&(operation, pass)).copied().unwrap_or(0.0);
        let total: f64 = order.iter().map(|&(operation, _)| in_pass(operation)).sum();
        StackedBar {
            name: pass.name().into(),
            label: format!("{} ms", milliseconds(total)),
            values: order.iter().map(|&(operation, _)| 1e3 * in_pass(operation)).collect(),
        }
    });
    let part = |&(operation, total): &(&str, f64)| Part {
        name: operation.into(),
        label: format!("{operation} {} ms", milliseconds(total)),
    };
    StackedBars { x_label, parts: order.iter().map(part).collect(), bars: bars.collect(), width: 880.0 }
}
