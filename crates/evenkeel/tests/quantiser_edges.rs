//! Quantisers at the edges: constants, single values, the largest float32, infinities, one token.

use candle_core::{Device, Tensor};
use evenkeel::data::Batch;
use evenkeel::model::{Transformer, preset};
use evenkeel::quant::grid::Cell;
use evenkeel::quant::range::{Observer, Sketch, of_values};
use evenkeel::quant::rounding::{Rounding, round_dynamic};
use evenkeel::quant::spec::{Float, Format, Range};
use evenkeel::quant::{PRESETS, QuantError, QuantTap, Quantiser, Scheme, Simulation, Spec};
use evenkeel::tap::Tap;

const METHODS: [Range; 8] = [
    Range::MinMax,
    Range::Running,
    Range::RunningPercentile(99.999),
    Range::Percentile(99.999),
    Range::PercentileExact(99.999),
    Range::Mse(0.2),
    Range::MseFixed,
    Range::Kl,
];

/// Every format that a method goes with.
fn formats(method: Range) -> impl Iterator<Item = Format> {
    let integers = (2..=8).flat_map(|bits| [true, false].map(|symmetric| Format::Int { bits, symmetric }));
    let floats = [Float::E4m3, Float::E5m2, Float::E2m1].map(Format::Float);
    integers.chain(floats.into_iter().filter(move |_| method != Range::Kl))
}

/// The range of a lone batch.
fn observed(method: Range, format: Format, values: &[f32]) -> (f64, f64) {
    let mut observer = Observer::new(method);
    assert!(observer.range(format).is_none(), "{method:?} has a range before it saw anything");
    observer.update("x", values).unwrap();
    observer.range(format).unwrap()
}

fn rounded(cell: Cell, values: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    cell.round(&mut values);
    values
}

#[test]
fn constants_keep_their_value_and_zeros_stay_zeros() {
    for method in METHODS {
        for format in formats(method) {
            let what = format!("{method:?} {format:?}");
            for values in [&[0.3f32; 5][..], &[-0.7; 5], &[0.7], &[-0.3], &[2.5, 2.5]] {
                let range = observed(method, format, values);
                let of_values = of_values(method, format, values, false);
                assert!(range.0.is_finite() && range.0 <= range.1, "{what}: {range:?}");
                let error = |range| {
                    let cell = Cell::of_range(format, range, false);
                    (rounded(cell, values)[0] - values[0]).abs()
                };
                // The worst is E2M1, 5 between 4 and 6, as a share of the value.
                for range in [range, of_values] {
                    let most = if method == Range::MinMax { 1e-6 } else { 0.2 };
                    assert!(error(range) <= most * values[0].abs(), "{what}: {values:?} in {range:?}");
                }
            }
            for values in [&[0.0f32][..], &[0.0, -0.0, 0.0]] {
                let range = observed(method, format, values);
                let first = if method == Range::MseFixed { 0.5 / 100.0 } else { 0.0 };
                assert_eq!(range.1, first, "{what}");
                let cell = Cell::of_range(format, range, false);
                assert!(rounded(cell, values).iter().all(|&v| v == 0.0), "{what}");
            }
        }
    }
}

#[test]
fn integers_of_zeros_have_the_smallest_step() {
    for (symmetric, bits) in [(true, 8), (false, 8), (true, 2), (false, 2)] {
        let cell = Cell::of_range(Format::Int { bits, symmetric }, (0.0, 0.0), false);
        assert!(matches!(cell, Cell::Int(Quantiser { scale: 1e-8, zero_point: 0, .. })), "{cell:?}");
    }
}

/// All of it in range, from either side: the worst that a tensor can hold.
#[test]
fn nothing_overflows_up_to_the_largest_float() {
    for values in
        [[-f32::MAX, f32::MAX, 1.0], [-3e38, 3e38, 1e38], [1.0, 0.0, f32::MAX], [-f32::MAX, 0.0, -1.0]]
    {
        for method in METHODS {
            for format in formats(method) {
                let ranges = [observed(method, format, &values), of_values(method, format, &values, false)];
                for range in ranges {
                    let what = format!("{method:?} {format:?} of {values:?} in {range:?}");
                    assert!(range.0.is_finite() && range.1.is_finite(), "{what}");
                    let cell = Cell::of_range(format, range, false);
                    assert!((cell.scale() as f32).is_finite(), "{what}");
                    // Also of what calibration has not seen.
                    let got = rounded(cell, &[-f32::MAX, values[0], values[1], values[2], f32::MAX]);
                    assert!(got.iter().all(|v| v.is_finite()), "{what}: {got:?}");
                }
            }
        }
        let (lo, hi) =
            (values.iter().copied().fold(0.0, f32::min), values.iter().copied().fold(0.0, f32::max));
        for bits in 2..=8 {
            let q = Quantiser::asymmetric(bits, lo.into(), hi.into());
            for (x, y) in values.iter().zip(rounded(Cell::Int(q), &values)) {
                let error = (f64::from(*x) - f64::from(y)).abs();
                assert!(error <= 0.501 * q.scale, "{bits} bits: {x:e} becomes {y:e}");
            }
        }
        for words in ["e4m3 mx", "e5m2 mx", "e2m1 mx", "e2m1 nv dynamic"] {
            let mut x = values;
            round_dynamic(Spec::ACTIVATION.with(words).unwrap(), None, &mut x, 3);
            assert!(x.iter().all(|v| v.is_finite()), "{words}: {x:?}");
        }
    }
}

#[test]
fn a_sketch_holds_the_largest_floats() {
    let sketch = Sketch::of(&[-f32::MAX, f32::MAX, f32::MAX, 1.0]);
    for p in [0.0, 0.001, 30.0, 60.0, 99.999, 100.0] {
        let value = sketch.percentile(p);
        assert!(value.is_finite() && value.abs() <= f64::from(f32::MAX), "{p}: {value}");
    }
    // To within a bucket.
    for (p, sign) in [(0.0, -1.0), (100.0, 1.0)] {
        assert!((sketch.percentile(p) * sign / f64::from(f32::MAX) - 1.0).abs() < 1.0 / 128.0);
    }
    let points = sketch.points();
    assert_eq!(points.iter().map(|p| p.1).sum::<f64>(), 4.0);
    assert!(points.iter().all(|p| p.0.is_finite()));
}

/// All candidates but the last cut off everything there is, which leaves the rounded distribution empty.
#[test]
fn a_divergence_with_everything_cut_off_is_no_nan() {
    for (bits, symmetric) in [(8, true), (8, false), (2, false)] {
        let range = observed(Range::Kl, Format::Int { bits, symmetric }, &[-1.0, 1.0]);
        assert_eq!(range, (-1.0, 1.0), "{bits} {symmetric}");
    }
}

#[test]
fn what_is_not_finite_is_refused_with_its_name() {
    let refused = |outcome: Result<(), QuantError>, name: &str| {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, QuantError::NonFinite { site } if site == name), "{error}");
        assert!(error.to_string().contains(name));
    };
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let values = [0.5, bad, 1.0];
        for method in METHODS {
            refused(Observer::new(method).update("blocks.1.resid", &values), "blocks.1.resid");
        }
        for words in ["int8", "int4 group:2 kl", "e4m3 channel", "e2m1 nv", "e4m3 mx"] {
            let spec = Spec::WEIGHT.with(words).unwrap();
            refused(Rounding::of_weight("head.weight", spec, &values, 3).map(|_| ()), "head.weight");
        }
    }
}

/// As [`what_is_not_finite_is_refused_with_its_name`], in a forward pass: while calibrating, and of dynamic ranges always.
#[test]
fn a_tap_refuses_what_is_not_finite() {
    let model = small_model();
    let names = || model.parameters().iter().map(|p| p.name.as_str());
    let bad = Tensor::new(&[[[1.0f32, f32::INFINITY]]], &Device::Cpu).unwrap();
    let good = Tensor::new(&[[[1.0f32, 2.0]]], &Device::Cpu).unwrap();
    for preset in ["w8a8", "w8a8_token", "mxfp4", "nvfp4"] {
        let plan = Scheme::preset(preset).unwrap().plan(model.config(), names()).unwrap();
        let (&site, spec) = plan.activations.first_key_value().unwrap();
        let mut tap = QuantTap::new(&plan);
        assert!(
            tap.visit(site, bad.clone()).unwrap_err().to_string().contains(&site.to_string()),
            "{preset}"
        );
        assert!(matches!(tap.take_failure(), Some(QuantError::NonFinite { .. })));
        for &site in plan.activations.keys() {
            tap.visit(site, good.clone()).unwrap();
        }
        tap.fix().unwrap();
        assert_eq!(tap.visit(site, bad.clone()).is_err(), spec.dynamic || preset == "nvfp4", "{preset}");
    }
}

fn small_model() -> Transformer {
    let mut c = preset("pre_ln").unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (2, 8, 2, 7, 4);
    Transformer::new(c, 1).unwrap()
}

#[test]
fn one_token_is_enough_to_calibrate() {
    let batch = Batch { inputs: vec![3], targets: vec![4], sequences: 1, context: 1 };
    for (name, _, _) in PRESETS {
        let ranges =
            ["running_percentile", "percentile", "percentile_exact", "mse", "kl", "min_max", "running"];
        for words in ranges {
            let mut scheme = Scheme::preset(name).unwrap();
            if words == "kl" && name.contains("fp") || scheme.activations == "float" {
                continue;
            }
            let is_range = |word: &&str| ranges.contains(&word.split(':').next().unwrap());
            let others: Vec<&str> = scheme.activations.split(' ').filter(|word| !is_range(word)).collect();
            scheme.activations = format!("{} {words}", others.join(" "));
            let mut simulation =
                Simulation::new(&small_model(), &scheme, &[], std::slice::from_ref(&batch), &mut || {})
                    .unwrap();
            let logits = simulation.logits(&batch.inputs, 1).unwrap();
            let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
            assert!(logits.len() == 7 && logits.iter().all(|v| v.is_finite()), "{name} {words}");
        }
    }
    let none = Simulation::new(&small_model(), &Scheme::preset("w8a8").unwrap(), &[], &[], &mut || {});
    assert!(none.is_err());
}
