//! `bench gemm`: the matrix products of one block and the head, forward, input gradient and weight gradient, and the
//! forward ones in int8, each with its requantisation.
//!
//! The roofline of a product is min(peak, intensity · bandwidth): the peak of its arithmetic on all threads, and its
//! operations over the bytes of its three matrices, each moved once, times the speed of copying. Both are
//! measured again beside every measurement of a product, since clocks change on a shared machine, and the share is
//! the median of the rounds' shares.

use super::{bf16_note, compute, median, milliseconds, peak_of, percent, precision_name};
use crate::args::bench::Gemm;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::report::table::{Align, Table};
use evenkeel_kernels::gemm::{Compute, View, Write, gemm};
use evenkeel_kernels::int8::requantise::{Scale, Terms, requantise_into};
use evenkeel_kernels::int8::{PackedI8, gemm_i8_into};
use evenkeel_kernels::peak::{Copying, Factors, Threads};
use evenkeel_kernels::quant::Grid;
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

/// A product, rows by columns over the inner dimension, with its buffers.
trait Case {
    /// Rows, columns, inner dimension.
    fn shape(&self) -> [usize; 3];
    /// Of the three matrices.
    fn bytes(&self) -> f64;
    /// The product, once.
    fn run(&mut self);

    /// Multiplications and additions.
    fn operations(&self) -> f64 {
        2.0 * self.shape().iter().map(|&n| n as f64).product::<f64>()
    }

    /// Seconds of one product, from as many as take about 30 ms, after one that is not timed.
    fn seconds(&mut self) -> f64 {
        self.run();
        let begun = Instant::now();
        let mut count = 0;
        while count == 0 || begun.elapsed().as_secs_f64() < 0.03 {
            self.run();
            count += 1;
        }
        begun.elapsed().as_secs_f64() / f64::from(count)
    }
}

/// A product of float32 matrices.
struct Float {
    product: Product,
    compute: Compute,
    shape: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Float {
    fn new(layer: &Layer, product: Product, compute: Compute, tokens: usize) -> Self {
        let (rows, columns, inner) = match product {
            Product::Forward => (tokens, layer.d_out, layer.d_in),
            Product::InputGradient => (tokens, layer.d_in, layer.d_out),
            Product::WeightGradient => (layer.d_out, layer.d_in, tokens),
        };
        // Small numbers of both signs: sums of any length stay ordinary.
        let fill = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let shape = [rows, columns, inner];
        Self {
            product,
            compute,
            shape,
            a: fill(rows * inner),
            b: fill(inner * columns),
            c: vec![0.0; rows * columns],
        }
    }
}

impl Case for Float {
    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn bytes(&self) -> f64 {
        4.0 * (self.a.len() + self.b.len() + self.c.len()) as f64
    }

    /// As the layer calls it: factors lie as they do in training.
    fn run(&mut self) {
        let [m, n, k] = self.shape;
        let (a, b) = match self.product {
            Product::Forward => (View::new(&self.a, m, k), View::new(&self.b, n, k).t()),
            Product::InputGradient => (View::new(&self.a, m, k), View::new(&self.b, k, n)),
            Product::WeightGradient => (View::new(&self.a, k, m).t(), View::new(&self.b, k, n)),
        };
        gemm(self.compute, a, b, &mut self.c, Write::Replace);
    }
}

/// The forward product of bytes by packed weights, requantised to bytes.
struct Bytes {
    rows: usize,
    x: Vec<u8>,
    w: PackedI8,
    offset: Vec<i32>,
    out: Vec<u8>,
}

impl Bytes {
    fn new(layer: &Layer, tokens: usize) -> Self {
        let level = |i: usize| (i * 37 % 251) as u8;
        let w: Vec<i8> = (0..layer.d_out * layer.d_in).map(|i| level(i) as i8).collect();
        Self {
            rows: tokens,
            x: (0..tokens * layer.d_in).map(level).collect(),
            w: PackedI8::new(&w, layer.d_out, layer.d_in),
            offset: vec![1; layer.d_out],
            out: vec![0; tokens * layer.d_out],
        }
    }
}

impl Case for Bytes {
    fn shape(&self) -> [usize; 3] {
        [self.rows, self.w.outputs(), self.w.inner()]
    }

    fn bytes(&self) -> f64 {
        (self.x.len() + self.w.bytes() + self.out.len()) as f64
    }

    fn run(&mut self) {
        let terms = Terms { offset: &self.offset, scale: Scale::One(1e-4), bias: None, activation: None };
        let grid = Grid { scale: 0.05, zero_point: 128.0, low: 0.0, high: 255.0 };
        gemm_i8_into(&self.x, self.rows, &self.w, &mut self.out, |_, first, sums, out| {
            requantise_into(sums, terms.columns(first, sums.len()), grid, out);
        });
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
    let total = ((args.precision.len() * Product::ALL.len() + 1) * layers.len()) as u64;
    let bar = progress::bar(settings, total, "{bar:24} {pos}/{len} products");
    let mut measure = |precision: &str, layer: &Layer, product: Product, factors, case: &mut dyn Case| {
        let (mut seconds, mut roofs, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let (peak, bandwidth) = (peak_of(factors), copying.gbps(Threads::All, 1));
            let time = case.seconds();
            let roof = peak.min(case.operations() / case.bytes() * bandwidth);
            seconds.push(time);
            roofs.push(roof);
            shares.push(case.operations() / time / 1e9 / roof);
        }
        let (time, roof, share) = (median(&seconds), median(&roofs), median(&shares));
        let gflops = case.operations() / time / 1e9;
        let [m, n, k] = case.shape();
        table.push([
            precision.into(),
            layer.name.into(),
            product.name().into(),
            format!("{m} × {n} × {k}"),
            milliseconds(time),
            format!("{gflops:.1}"),
            format!("{roof:.1}"),
            percent(share),
        ]);
        rows.push(json!({
            "precision": precision, "layer": layer.name, "product": product.name(),
            "rows": m, "columns": n, "inner": k,
            "seconds_median": time, "gflops": gflops, "roofline_gflops": roof, "share": share,
        }));
        bar.inc(1);
    };
    for &precision in &args.precision {
        for (layer, product) in layers.iter().flat_map(|l| Product::ALL.map(|p| (l, p))) {
            let compute = compute(precision);
            let mut case = Float::new(layer, product, compute, tokens);
            measure(precision_name(precision), layer, product, compute.into(), &mut case);
        }
    }
    for layer in &layers {
        measure("int8", layer, Product::Forward, Factors::Int8, &mut Bytes::new(layer, tokens));
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
