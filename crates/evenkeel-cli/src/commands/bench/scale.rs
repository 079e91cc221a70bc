//! `bench scale`: how a step's time and memory grow with each size.
//!
//! Each size varies alone while the others stay at the middle of their lists. Every point is a process of its own,
//! this program's `bench step`, because the peak memory of a process cannot be lowered again. Beside the exponent that
//! was fitted to time stands that of the operations counted for the same points, and beside that of memory the
//! exponent of what the memory plan of a dry run predicts: at sizes this small neither is the one of the limit.

use super::{folder, milliseconds, step_flop};
use crate::args::bench::{Scale as Args, Sizes};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::config::RunConfig;
use evenkeel::model::ModelConfig;
use evenkeel::report::table::{Align, Table, cell};
use evenkeel::report::{Draw, LineChart, Scale, Series, Target, write_file};
use evenkeel::train::plan_memory;
use serde_json::{Value, json};
use std::process::Command;

/// One configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Size {
    width: usize,
    depth: usize,
    context: usize,
    sequences: usize,
}

/// What varies.
struct Axis {
    name: &'static str,
    values: Vec<usize>,
    set: fn(&mut Size, usize),
}

/// A size with what was measured and what was expected.
struct Point {
    size: Size,
    seconds: f64,
    bytes: Option<f64>,
    flop: f64,
    planned: f64,
}

/// The points along one axis.
struct Curve {
    axis: &'static str,
    points: Vec<(usize, usize)>,
}

pub(super) fn run(args: Args, settings: &Settings) -> Result<Exit, Failure> {
    super::at_least_one("steps", args.steps, 1_000_000)?;
    let axes = axes(&args);
    let middle = |axis: &Axis| axis.values[axis.values.len() / 2];
    let base = Size {
        width: middle(&axes[0]),
        depth: middle(&axes[1]),
        context: middle(&axes[2]),
        sequences: middle(&axes[3]),
    };
    let mut sizes: Vec<Size> = Vec::new();
    let mut curves: Vec<Curve> = Vec::new();
    for axis in &axes {
        let mut points = Vec::new();
        for &value in &axis.values {
            let mut size = base;
            (axis.set)(&mut size, value);
            let at = sizes.iter().position(|s| *s == size).unwrap_or(sizes.len());
            if at == sizes.len() {
                sizes.push(size);
            }
            points.push((value, at));
        }
        curves.push(Curve { axis: axis.name, points });
    }
    // All are checked before the first is run.
    let configs = sizes.iter().map(|size| config(&args, size)).collect::<Result<Vec<_>, _>>()?;
    let out = folder(&args.out)?;

    let bar = progress::bar(settings, sizes.len() as u64, "{bar:24} {pos}/{len} sizes");
    let mut points = Vec::new();
    for (size, config) in sizes.iter().zip(&configs) {
        let measured = measure(&args, size, config, settings)?;
        points.push(measured);
        bar.inc(1);
    }
    bar.finish_and_clear();

    if settings.json {
        output::json(&report(&curves, &points, &args, settings));
    } else {
        print(&curves, &points);
    }
    if let Some(folder) = out {
        let time = |p: &Point| Some(p.seconds);
        write_file(&folder.join("scale-time.svg"), &chart(&curves, &points, "seconds per step", time))?;
        let memory = |p: &Point| p.bytes.map(|b| b / f64::from(1 << 20));
        write_file(&folder.join("scale-memory.svg"), &chart(&curves, &points, "peak memory, MiB", memory))?;
    }
    Ok(Exit::Done)
}

/// The four axes in the order of [`Size`], their values ascending and each once.
fn axes(args: &Args) -> [Axis; 4] {
    let axis = |name, values: &[usize], set| {
        let mut values = values.to_vec();
        values.sort_unstable();
        values.dedup();
        Axis { name, values, set }
    };
    [
        axis("width", &args.width, |s, v| s.width = v),
        axis("depth", &args.depth, |s, v| s.depth = v),
        axis("context", &args.context, |s, v| s.context = v),
        axis("sequences", &args.sequences, |s, v| s.sequences = v),
    ]
}

fn config(args: &Args, size: &Size) -> Result<ModelConfig, Failure> {
    if args.d_head == 0 || size.width == 0 || !size.width.is_multiple_of(args.d_head) {
        return Err(Failure::input(
            format!("--d-head {} does not divide a --width of {}", args.d_head, size.width),
            "give widths that are multiples of --d-head",
        ));
    }
    let sizes =
        Sizes { width: size.width, vocab: args.vocab, context: size.context, sequences: size.sequences };
    super::model(size.depth, size.width / args.d_head, &sizes)
}

/// Runs `bench step` at this size in a process of its own.
fn measure(args: &Args, size: &Size, config: &ModelConfig, settings: &Settings) -> Result<Point, Failure> {
    let failed = |problem: String| {
        Failure::input(
            format!(
                "the step of width {}, depth {}, context {}, {} sequences could not be measured: {problem}",
                size.width, size.depth, size.context, size.sequences
            ),
            "leave the largest sizes out, or try `evenkeel bench step` with this one",
        )
    };
    let program =
        std::env::current_exe().map_err(|e| failed(format!("this program cannot be found: {e}")))?;
    let mut command = Command::new(program);
    command.args(["bench", "step", "--json"]);
    let numbers = [
        ("--threads", settings.threads),
        ("--width", size.width),
        ("--depth", size.depth),
        ("--heads", config.heads),
        ("--context", size.context),
        ("--sequences", size.sequences),
        ("--vocab", args.vocab),
        ("--steps", args.steps),
    ];
    for (flag, value) in numbers {
        command.arg(flag).arg(value.to_string());
    }
    let names = [
        ("--precision", json!(args.precision)),
        ("--optimizer", json!(args.optimizer)),
        ("--recompute", json!(args.recompute)),
    ];
    for (flag, name) in names {
        command.arg(flag).arg(name.as_str().unwrap_or_default());
    }
    if let Some(seed) = settings.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    let output = command.output().map_err(|e| failed(e.to_string()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(stderr.lines().next().map_or(output.status.to_string(), str::to_string)));
    }
    let step: Value = serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))?;
    let seconds = step["seconds_median"].as_f64().ok_or_else(|| failed("it reported no time".into()))?;
    let mut plan = RunConfig::defaults("pre_ln", args.optimizer)?;
    plan.model = config.clone();
    plan.train.batch_sequences = size.sequences;
    plan.train.recompute = args.recompute;
    let plan = plan_memory(&plan)?;
    let planned = plan.weights_bytes + plan.gradients_bytes + plan.optimizer_bytes + plan.activations_bytes;
    Ok(Point {
        size: *size,
        seconds,
        bytes: step["peak_rss_bytes"].as_f64(),
        flop: step_flop(config, size.sequences),
        planned: planned as f64,
    })
}

/// The slope of the least-squares line through (ln x, ln y): y grows as x to this power. `None` for fewer than two
/// points or a value that has no logarithm.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = logs.len() as f64;
    let (mx, my) = (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let across: f64 = logs.iter().map(|p| (p.0 - mx).powi(2)).sum();
    let along: f64 = logs.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum();
    Some(along / across).filter(|slope| slope.is_finite())
}

impl Curve {
    /// The exponent of a figure along this axis.
    fn exponent(&self, points: &[Point], figure: impl Fn(&Point) -> Option<f64>) -> Option<f64> {
        let pairs: Option<Vec<_>> =
            self.points.iter().map(|&(x, at)| Some((x as f64, figure(&points[at])?))).collect();
        exponent(&pairs?)
    }

    /// Of time, operations, memory and planned memory.
    fn exponents(&self, points: &[Point]) -> [Option<f64>; 4] {
        [
            self.exponent(points, |p| Some(p.seconds)),
            self.exponent(points, |p| Some(p.flop)),
            self.exponent(points, |p| p.bytes),
            self.exponent(points, |p| Some(p.planned)),
        ]
    }
}

fn print(curves: &[Curve], points: &[Point]) {
    let mut table = Table::new(&[
        ("varies", Align::Left),
        ("width", Align::Right),
        ("depth", Align::Right),
        ("context", Align::Right),
        ("sequences", Align::Right),
        ("ms per step", Align::Right),
        ("GFLOP/s", Align::Right),
        ("peak MiB", Align::Right),
    ]);
    for curve in curves {
        for &(_, at) in &curve.points {
            let p = &points[at];
            table.push([
                curve.axis.into(),
                p.size.width.to_string(),
                p.size.depth.to_string(),
                p.size.context.to_string(),
                p.size.sequences.to_string(),
                milliseconds(p.seconds),
                format!("{:.1}", p.flop / p.seconds / 1e9),
                cell(p.bytes, |b| format!("{:.0}", b / f64::from(1 << 20))),
            ]);
        }
    }
    output::result(&table.to_text());
    output::line("");
    let mut fits = Table::new(&[
        ("grows with", Align::Left),
        ("time", Align::Right),
        ("operations", Align::Right),
        ("memory", Align::Right),
        ("planned memory", Align::Right),
    ]);
    for curve in curves {
        let mut row = vec![curve.axis.to_string()];
        row.extend(curve.exponents(points).map(|e| cell(e, |e| format!("^{e:.2}"))));
        fits.push(row);
    }
    output::result(&fits.to_text());
    output::line(
        "fitted exponents over the points above: time beside the operations counted, memory beside the plan",
    );
}

fn report(curves: &[Curve], points: &[Point], args: &Args, settings: &Settings) -> Value {
    let axes: Vec<Value> = curves
        .iter()
        .map(|curve| {
            let [time, flop, memory, planned] = curve.exponents(points);
            let points: Vec<Value> = curve
                .points
                .iter()
                .map(|&(value, at)| {
                    let p = &points[at];
                    json!({
                        "value": value, "width": p.size.width, "depth": p.size.depth, "context": p.size.context,
                        "sequences": p.size.sequences, "seconds_median": p.seconds,
                        "peak_rss_bytes": p.bytes, "gflop": p.flop / 1e9, "planned_bytes": p.planned,
                    })
                })
                .collect();
            json!({
                "axis": curve.axis, "points": points, "time_exponent": time, "flop_exponent": flop,
                "memory_exponent": memory, "planned_memory_exponent": planned,
            })
        })
        .collect();
    json!({
        "schema": 1, "axes": axes, "vocab": args.vocab, "precision": args.precision, "optimizer": args.optimizer,
        "recompute": args.recompute, "steps": args.steps, "threads": settings.threads,
    })
}

/// A line for each axis over the size relative to its middle, where all of them meet.
fn chart(
    curves: &[Curve],
    points: &[Point],
    y_label: &str,
    figure: impl Fn(&Point) -> Option<f64> + Copy,
) -> String {
    let series = curves.iter().enumerate().map(|(i, curve)| {
        let middle = curve.points[curve.points.len() / 2].0 as f64;
        let place =
            |&(value, at): &(usize, usize)| (value as f64 / middle, figure(&points[at]).unwrap_or(f64::NAN));
        let name = match curve.exponent(points, figure) {
            Some(e) => format!("{} (^{e:.2})", curve.axis),
            None => curve.axis.to_string(),
        };
        let line = curve.points.iter().map(place).collect();
        Series { draw: Draw::MarkedLine, ..Series::new(name, i, line) }
    });
    LineChart {
        x_label: "size, relative to the middle of its list".into(),
        y_label: y_label.into(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        series: series.collect(),
        ..LineChart::default()
    }
    .render(Target::File)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_of_powers() {
        let cubic: Vec<(f64, f64)> = [1.0, 2.0, 5.0].map(|x: f64| (x, 7.0 * x.powi(3))).to_vec();
        assert!((exponent(&cubic).unwrap() - 3.0).abs() < 1e-12);
        assert_eq!(exponent(&cubic[..1]), None);
        assert_eq!(exponent(&[(1.0, 1.0), (2.0, 0.0)]), None);
    }
}
