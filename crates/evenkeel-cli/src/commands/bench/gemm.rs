//! `bench gemm`: the matrix products of one block and the head, forward, input gradient and weight gradient.
//!
//! The roofline of a product is min(peak, intensity · bandwidth): the peak of its arithmetic on all threads, and its
//! operations over the bytes of its three float32 matrices, each moved once, times the speed of copying. Both are
//! measured again beside every measurement of a product, since clocks change on a shared machine, and the share is
//! the median of the rounds' shares.

use super::{bf16_note, compute, median, milliseconds, peak_gflops, percent, precision_name};
use crate::args::bench::Gemm;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::report::table::{Align, Table};
use evenkeel_kernels::gemm::{Compute, View, Write, gemm};
use evenkeel_kernels::peak::{Copying, Threads};
use serde_json::{Value, json};
use std::time::Instant;

/// A layer's matrix, from `d_in` to `d_out` channels.
struct Layer {
    name: &'static str,
    d_in: usize,
    d_out: usize,
}

/// Which of a layer's three products.
#[derive(Clone, Copy)]
enum Product {
    /// y = x Wᵀ
    Forward,
    /// dx = dy W
    InputGradient,
    /// dW = dyᵀ x
    WeightGradient,
}

impl Product {
    const ALL: [Product; 3] = [Product::Forward, Product::InputGradient, Product::WeightGradient];

    fn name(self) -> &'static str {
        match self {
            Product::Forward => "forward",
            Product::InputGradient => "input gradient",
            Product::WeightGradient => "weight gradient",
        }
    }
}

/// One product's buffers, rows by columns over the inner dimension.
struct Case {
    product: Product,
    rows: usize,
    columns: usize,
    inner: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Case {
    fn new(layer: &Layer, product: Product, tokens: usize) -> Self {
        let (rows, columns, inner) = match product {
            Product::Forward => (tokens, layer.d_out, layer.d_in),
            Product::InputGradient => (tokens, layer.d_in, layer.d_out),
            Product::WeightGradient => (layer.d_out, layer.d_in, tokens),
        };
        // Small numbers of both signs: sums of any length stay ordinary.
        let fill = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let c = vec![0.0; rows * columns];
        Self { product, rows, columns, inner, a: fill(rows * inner), b: fill(inner * columns), c }
    }

    fn flop(&self) -> f64 {
        2.0 * self.rows as f64 * self.columns as f64 * self.inner as f64
    }

    fn bytes(&self) -> f64 {
        4.0 * (self.a.len() + self.b.len() + self.c.len()) as f64
    }

    /// As the layer calls it: factors lie as they do in training.
    fn run(&mut self, compute: Compute) {
        let (m, n, k) = (self.rows, self.columns, self.inner);
        let (a, b) = match self.product {
            Product::Forward => (View::new(&self.a, m, k), View::new(&self.b, n, k).t()),
            Product::InputGradient => (View::new(&self.a, m, k), View::new(&self.b, k, n)),
            Product::WeightGradient => (View::new(&self.a, k, m).t(), View::new(&self.b, k, n)),
        };
        gemm(compute, a, b, &mut self.c, Write::Replace);
    }

    /// Seconds of one product, from as many as take about 30 ms, after one that is not timed.
    fn seconds(&mut self, compute: Compute) -> f64 {
        self.run(compute);
        let begun = Instant::now();
        let mut count = 0;
        while count == 0 || begun.elapsed().as_secs_f64() < 0.03 {
            self.run(compute);
            count += 1;
        }
        begun.elapsed().as_secs_f64() / f64::from(count)
    }
}

pub(super) fn run(args: Gemm, settings: &Settings) -> Result<Exit, Failure> {
    super::at_least_one("rounds", args.rounds, 1000)?;
    let sizes = &args.sizes;
    super::model(1, 1, sizes)?;
    let (d, tokens) = (sizes.width, sizes.sequences * sizes.context);
    let layers = [
        Layer { name: "q, k, v, out", d_in: d, d_out: d },
        Layer { name: "MLP up", d_in: d, d_out: 4 * d },
        Layer { name: "MLP down", d_in: 4 * d, d_out: d },
        Layer { name: "head", d_in: d, d_out: sizes.vocab },
    ];
    let mut table = Table::new(&[
        ("precision", Align::Left),
        ("layer", Align::Left),
        ("product", Align::Left),
        ("rows × columns × inner", Align::Right),
        ("ms", Align::Right),
        ("GFLOP/s", Align::Right),
        ("roofline", Align::Right),
        ("share", Align::Right),
    ]);
    let mut rows: Vec<Value> = Vec::new();
    let mut copying = Copying::new(Copying::BYTES);
    let total = (args.precision.len() * layers.len() * Product::ALL.len()) as u64;
    let bar = progress::bar(settings, total, "{bar:24} {pos}/{len} products");
    for &precision in &args.precision {
        for (layer, product) in layers.iter().flat_map(|l| Product::ALL.map(|p| (l, p))) {
            let mut case = Case::new(layer, product, tokens);
            let (mut seconds, mut roofs, mut shares) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..args.rounds {
                let (peak, bandwidth) = (peak_gflops(precision), copying.gbps(Threads::All, 1));
                let time = case.seconds(compute(precision));
                let roof = peak.min(case.flop() / case.bytes() * bandwidth);
                seconds.push(time);
                roofs.push(roof);
                shares.push(case.flop() / time / 1e9 / roof);
            }
            let (time, roof, share) = (median(&seconds), median(&roofs), median(&shares));
            let gflops = case.flop() / time / 1e9;
            table.push([
                precision_name(precision).into(),
                layer.name.into(),
                product.name().into(),
                format!("{} × {} × {}", case.rows, case.columns, case.inner),
                milliseconds(time),
                format!("{gflops:.1}"),
                format!("{roof:.1}"),
                percent(share),
            ]);
            rows.push(json!({
                "precision": precision_name(precision), "layer": layer.name, "product": product.name(),
                "rows": case.rows, "columns": case.columns, "inner": case.inner,
                "seconds_median": time, "gflops": gflops, "roofline_gflops": roof, "share": share,
            }));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let note = bf16_note(&args.precision);
    if settings.json {
        output::json(
            &json!({"schema": 1, "threads": settings.threads, "rounds": args.rounds, "products": rows, "note": note}),
        );
    } else {
        output::result(&table.to_text());
        output::line(
            "roofline: the smaller of the measured peak and intensity × measured copy bandwidth, GFLOP/s",
        );
        if let Some(note) = note {
            output::line(&note);
        }
    }
    Ok(Exit::Done)
}
