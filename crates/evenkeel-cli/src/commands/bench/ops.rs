//! `bench ops`: every operation of a training step on its own, forward and backward.
//!
//! An operation runs on a tape as in training, and the tape's profile tells the two passes apart, so what is timed is
//! what a step pays, buffers included. Work is what has to be done: operations of the products (attention's only below
//! the diagonal, its recomputed scores not counted), or bytes of the tensors that are read and written, once each. The
//! share is of the compute peak or of the copy bandwidth on all threads, measured beside each round. A tensor that is
//! still in cache can be read faster than memory is, so small sizes may exceed the copy loop.

use super::{bf16_note, median, milliseconds, peak_gflops, percent, precision_name};
use crate::args::bench::Ops;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::model::ModelConfig;
use evenkeel::ops::{self, Activation, AttentionSpec, Epsilon, NormSpec, QkNormSpec};
use evenkeel::optim::{OptimConfig, OptimizerName, Slot, State};
use evenkeel::profile::{Pass, Profile};
use evenkeel::report::table::{Align, Table};
use evenkeel::slices::tensor;
use evenkeel::tape::{Execution, Gradients, Precision, Recompute, Tape, Value};
use evenkeel_kernels::peak::{Copying, Threads};
use serde_json::json;

/// How much an operation has to do in a pass.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations, bounded by the compute peak.
    Flop(f64),
    /// Bytes, bounded by the bandwidth of memory.
    Bytes(f64),
}

type Run = Box<dyn Fn(&Tape, &[Value]) -> evenkeel::Result<Value>>;

/// An operation at one size.
struct Case {
    name: &'static str,
    /// What it reads; each is given a gradient.
    inputs: Vec<Value>,
    passes: Vec<(Pass, Work)>,
    run: Run,
}

impl Case {
    fn both(name: &'static str, inputs: Vec<Value>, forward: Work, backward: Work, run: Run) -> Self {
        Self { name, inputs, passes: vec![(Pass::Forward, forward), (Pass::Backward, backward)], run }
    }

    /// Seconds of each of its passes, once.
    fn time(&self, precision: Precision, gradients: &mut Gradients) -> Result<Vec<f64>, Failure> {
        let profile = Profile::start();
        gradients.clear();
        let tape = Tape::recording_as(Execution { precision, recompute: Recompute::None }).profiled(&profile);
        let place = |(i, v): (usize, &Value)| tape.parameter(i, v.tensor());
        let inputs: Vec<Value> = self.inputs.iter().enumerate().map(place).collect();
        let output = (self.run)(&tape, &inputs)?;
        tape.backward(&output, 1.0, gradients)?;
        let times = profile.take();
        let of = |pass: Pass| times.iter().filter(move |(k, _)| k.1 == pass).map(|(_, t)| t.as_secs_f64());
        Ok(self.passes.iter().map(|&(pass, _)| of(pass).sum()).collect())
    }
}

/// A tensor of small numbers of both signs.
fn filled(shape: &[usize]) -> evenkeel::Result<Value> {
    let n = shape.iter().product::<usize>();
    let data = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    Ok(Value::constant(tensor(data, shape)?))
}

/// Ids that jump about the vocabulary as those of text do.
fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect()
}

fn linear(
    name: &'static str,
    tokens: usize,
    d_in: usize,
    d_out: usize,
    act: Option<Activation>,
) -> evenkeel::Result<Case> {
    let flop = 2.0 * tokens as f64 * d_in as f64 * d_out as f64;
    let inputs = vec![filled(&[tokens, d_in])?, filled(&[d_out, d_in])?, filled(&[d_out])?];
    let run: Run = Box::new(move |tape, v| Ok(ops::linear(tape, &v[0], &v[1], Some(&v[2]), act)?));
    Ok(Case::both(name, inputs, Work::Flop(flop), Work::Flop(2.0 * flop), run))
}

fn attention(name: &'static str, c: &ModelConfig, sequences: usize, qk_norm: bool) -> evenkeel::Result<Case> {
    let shape = [sequences, c.context, c.width];
    let mut inputs = vec![filled(&shape)?, filled(&shape)?, filled(&shape)?];
    if qk_norm {
        inputs.extend([filled(&[c.d_head()])?, filled(&[c.d_head()])?]);
    }
    // Two products over the pairs of a token and itself or one before it; four in the backward pass.
    let pairs = sequences as f64 * c.context as f64 * (c.context + 1) as f64 / 2.0;
    let flop = 4.0 * pairs * c.width as f64;
    let (spec, eps) = (AttentionSpec::causal(c.heads), Epsilon::Outside(c.qk_norm_eps));
    let run: Run = Box::new(move |tape, v| {
        let norm = qk_norm.then(|| QkNormSpec { q_gain: &v[3], k_gain: &v[4], biases: None, eps });
        Ok(ops::attention(tape, &v[0], &v[1], &v[2], norm, &spec)?)
    });
    Ok(Case::both(name, inputs, Work::Flop(flop), Work::Flop(2.0 * flop), run))
}

/// The operations that multiply matrices, at the model's sizes.
fn products(c: &ModelConfig, sequences: usize) -> evenkeel::Result<Vec<Case>> {
    let (t, d, v) = (sequences * c.context, c.width, c.vocab);
    let targets = ids(t, v);
    Ok(vec![
        linear("linear q, k, v, out", t, d, d, None)?,
        linear("linear MLP up, relu", t, d, c.hidden(), Some(Activation::Relu))?,
        linear("linear MLP down", t, c.hidden(), d, None)?,
        attention("attention", c, sequences, false)?,
        attention("attention, QK-norm", c, sequences, true)?,
        // Its forward pass computes the gradients too.
        Case {
            name: "head, cross-entropy",
            inputs: vec![filled(&[t, d])?, filled(&[v, d])?],
            passes: vec![(Pass::Forward, Work::Flop(6.0 * t as f64 * d as f64 * v as f64))],
            run: Box::new(move |tape, v| Ok(ops::head_cross_entropy(tape, &v[0], &v[1], None, &targets)?)),
        },
    ])
}

/// The operations that stream tensors. Bytes in units of the activations' size: what is read and what is written.
fn streams(c: &ModelConfig, sequences: usize) -> evenkeel::Result<Vec<Case>> {
    let (t, d, context) = (sequences * c.context, c.width, c.context);
    let activations = 4.0 * t as f64 * d as f64;
    let (table, positions) = (4.0 * (c.vocab * d) as f64, 4.0 * (context * d) as f64);
    let spec = NormSpec { centred: true, eps: c.norm_eps };
    let tokens = ids(t, c.vocab);
    let one = Value::constant(tensor(vec![1.0], 1)?);
    Ok(vec![
        Case::both(
            "norm",
            vec![filled(&[t, d])?, filled(&[d])?, filled(&[d])?],
            Work::Bytes(2.0 * activations),
            Work::Bytes(3.0 * activations),
            Box::new(move |tape, v| Ok(ops::norm(tape, &v[0], Some(&v[1]), Some(&v[2]), spec)?)),
        ),
        // Backward: the stream's gradient is handed on, the branch's is a scaled copy.
        Case::both(
            "residual",
            vec![filled(&[t, d])?, filled(&[t, d])?],
            Work::Bytes(3.0 * activations),
            Work::Bytes(2.0 * activations),
            Box::new(move |tape, v| Ok(ops::residual(tape, &v[0], &v[1], &one)?)),
        ),
        // Backward: the gradient is read for both tables, and both are written whole.
        Case::both(
            "embedding",
            vec![filled(&[c.vocab, d])?, filled(&[context, d])?],
            Work::Bytes(2.0 * activations),
            Work::Bytes(2.0 * activations + table + positions),
            Box::new(move |tape, v| {
                Ok(ops::embedding(tape, &v[0], Some(&v[1]), &tokens, sequences, context)?)
            }),
        ),
    ])
}

/// Seconds of AdamW on one matrix, many times.
struct AdamW {
    parameter: Value,
    gradient: Value,
    state: State,
}

impl AdamW {
    fn time(&mut self) -> Result<f64, Failure> {
        let config = OptimConfig::defaults(OptimizerName::Adamw);
        let begun = std::time::Instant::now();
        config.rule.build().step(&mut [Slot {
            parameter: self.parameter.tensor(),
            gradient: self.gradient.tensor(),
            state: &mut self.state,
            lr: config.lr_peak,
            weight_decay: config.weight_decay,
            phase: 0,
        }])?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// One line of the result: all rounds of an operation in a pass.
struct Line {
    name: &'static str,
    precision: Option<Precision>,
    pass: &'static str,
    work: Work,
    seconds: Vec<f64>,
    /// Peaks beside each round, GFLOP/s or GB/s.
    peaks: Vec<f64>,
}

impl Line {
    fn new(name: &'static str, precision: Option<Precision>, pass: &'static str, work: Work) -> Self {
        Self { name, precision, pass, work, seconds: Vec::new(), peaks: Vec::new() }
    }

    /// Median seconds, 10⁹ units of work per second, and median share of the peak.
    fn figures(&self) -> (f64, f64, f64) {
        let (Work::Flop(work) | Work::Bytes(work)) = self.work;
        let shares: Vec<f64> =
            self.seconds.iter().zip(&self.peaks).map(|(s, p)| work / s.max(1e-9) / 1e9 / p).collect();
        let seconds = median(&self.seconds).max(1e-9);
        (seconds, work / seconds / 1e9, median(&shares))
    }

    fn unit(&self) -> &'static str {
        match self.work {
            Work::Flop(_) => "GFLOP/s",
            Work::Bytes(_) => "GB/s",
        }
    }
}

pub(super) fn run(args: Ops, settings: &Settings) -> Result<Exit, Failure> {
    super::at_least_one("rounds", args.rounds, 1000)?;
    let c = super::model(1, args.heads, &args.sizes)?;
    let sequences = args.sizes.sequences;
    let products = products(&c, sequences)?;
    let streams = streams(&c, sequences)?;
    let work = (products.len() * args.precision.len() + streams.len() + 1) as u64;
    let bar = progress::bar(settings, work, "{bar:24} {pos}/{len} operations");
    let mut copying = Copying::new(Copying::BYTES);
    let mut lines: Vec<Line> = Vec::new();

    let multiplied = args.precision.iter().flat_map(|&p| products.iter().map(move |case| (case, Some(p))));
    for (case, precision) in multiplied.chain(streams.iter().map(|case| (case, None))) {
        let rounded = precision.unwrap_or_default();
        let mut gradients = Gradients::like(case.inputs.iter().map(|v| v.tensor()))?;
        let from = lines.len();
        lines.extend(case.passes.iter().map(|&(pass, work)| {
            // A single pass that holds the work of both.
            let name = if case.passes.len() == 1 { "both" } else { pass.name() };
            Line::new(case.name, precision, name, work)
        }));
        case.time(rounded, &mut gradients)?;
        for _ in 0..args.rounds {
            let peak = match precision {
                Some(precision) => peak_gflops(precision),
                None => copying.gbps(Threads::All, 1),
            };
            for (line, seconds) in lines[from..].iter_mut().zip(case.time(rounded, &mut gradients)?) {
                line.seconds.push(seconds);
                line.peaks.push(peak);
            }
        }
        bar.inc(1);
    }
    lines.push(adamw(&c, args.rounds, &mut copying)?);
    bar.finish_and_clear();
    print(&lines, &args, settings);
    Ok(Exit::Done)
}

/// AdamW on the head's matrix, which is read with its gradient and both moments, and all but the gradient written.
fn adamw(c: &ModelConfig, rounds: usize, copying: &mut Copying) -> Result<Line, Failure> {
    let shape = [c.vocab, c.width];
    let bytes = 7.0 * 4.0 * (c.vocab * c.width) as f64;
    let mut rule = AdamW { parameter: filled(&shape)?, gradient: filled(&shape)?, state: State::default() };
    let mut line = Line::new("AdamW", None, Pass::Optimizer.name(), Work::Bytes(bytes));
    rule.time()?;
    for _ in 0..rounds {
        line.peaks.push(copying.gbps(Threads::All, 1));
        line.seconds.push(rule.time()?);
    }
    Ok(line)
}

fn print(lines: &[Line], args: &Ops, settings: &Settings) {
    let note = bf16_note(&args.precision);
    if settings.json {
        let operations: Vec<_> = lines
            .iter()
            .map(|line| {
                let (seconds, rate, share) = line.figures();
                let (gflops, gbps) = match line.work {
                    Work::Flop(_) => (Some(rate), None),
                    Work::Bytes(_) => (None, Some(rate)),
                };
                json!({
                    "operation": line.name, "precision": line.precision, "pass": line.pass,
                    "seconds_median": seconds, "gflops": gflops, "gbps": gbps, "peak_share": share,
                })
            })
            .collect();
        output::json(&json!({
            "schema": 1, "threads": settings.threads, "rounds": args.rounds, "operations": operations, "note": note,
        }));
        return;
    }
    let mut table = Table::new(&[
        ("operation", Align::Left),
        ("precision", Align::Left),
        ("pass", Align::Left),
        ("ms", Align::Right),
        ("rate", Align::Right),
        ("unit", Align::Left),
        ("share of peak", Align::Right),
    ]);
    for line in lines {
        let (seconds, rate, share) = line.figures();
        table.push([
            line.name.into(),
            line.precision.map_or("–", precision_name).into(),
            line.pass.into(),
            milliseconds(seconds),
            format!("{rate:.1}"),
            line.unit().into(),
            percent(share),
        ]);
    }
    output::result(&table.to_text());
    output::line("share: of the multiply-add peak for GFLOP/s, of the copy loop for GB/s, all threads");
    if let Some(note) = note {
        output::line(&note);
    }
}
