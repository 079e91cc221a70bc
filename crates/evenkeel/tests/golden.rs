//! Agreement with independent implementations: PyTorch for the model, NumPy in float64 for quantisers (metrics: see
//! `metrics.rs`; optimisers: see `optimizers.rs`). The files in tests/golden were made by the scripts in scripts/golden; neither is needed to
//! build, and no Python is needed to test.

use candle_core::Tensor;
use evenkeel::checkpoint::read_tensors;
use evenkeel::data::Batch;
use evenkeel::inspect::activations;
use evenkeel::model::config::{Beta, Norm};
use evenkeel::model::{ModelConfig, Transformer, preset};
use evenkeel::optim::{self, AdamW, Optimizer, Slot, State};
use evenkeel::quant::grid::Cell;
use evenkeel::quant::range::Observer;
use evenkeel::quant::rounding::Rounding;
use evenkeel::quant::spec::{Format, Range};
use evenkeel::quant::{QuantTap, Quantiser, Scheme, Spec, quantise_weights};
use evenkeel::tap::NoTap;
use evenkeel::tape::{Gradients, Tape};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> Tensors {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    read_tensors(&path).unwrap()
}

fn part(all: &Tensors, prefix: &str) -> Tensors {
    all.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

fn ids(t: &Tensor) -> (Vec<u32>, Vec<u32>, usize) {
    let rows = t.to_vec2::<i64>().unwrap();
    let cast = |r: &[i64]| r.iter().map(|&v| v as u32).collect::<Vec<_>>();
    let inputs = rows.iter().flat_map(|r| cast(&r[..r.len() - 1])).collect();
    let targets = rows.iter().flat_map(|r| cast(&r[1..])).collect();
    (inputs, targets, rows.len())
}

/// Largest difference over the largest magnitude of `want`.
fn deviation(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let peak = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / peak
}

fn config(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (2, 24, 3, 37, 12);
    c
}

/// Ten AdamW steps as the script takes them: clip to 1, decay matrices only.
fn ten_steps(mut config: ModelConfig, file: &str) {
    let all = golden(file);
    if file.starts_with("op_paper") {
        (config.beta, config.beta_trainable) = (Beta::Value(0.2), true);
    }
    let model = Transformer::from_tensors(config, &mut part(&all, "param.")).unwrap();
    let (inputs, targets, sequences) = ids(&all["batch.0"]);

    let seen = activations(&model, &inputs, sequences).unwrap();
    let sites = part(&all, "site.");
    assert!(sites.len() > 20);
    for (site, want) in &sites {
        let got = seen.get(site).unwrap_or_else(|| panic!("no site {site}"));
        assert_eq!(got.dims(), want.dims(), "{site}");
        let d = deviation(&floats(got), &floats(want));
        assert!(d < 1e-4, "{file}: activation {site} deviates by {d:e}");
    }

    let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
    let mut states = vec![State::default(); model.parameters().len()];
    let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let losses = floats(&all["loss"]);
    for (step, want) in losses.iter().enumerate() {
        let (inputs, targets, sequences) = ids(&all[&format!("batch.{step}")]);
        gradients.clear();
        let tape = Tape::recording();
        let loss = model.loss(&tape, &mut NoTap, &inputs, &targets, sequences).unwrap();
        let got = loss.tensor().to_scalar::<f32>().unwrap() as f64;
        assert!((got - want).abs() < 1e-4 * want, "{file}: loss of step {step} is {got}, not {want}");
        tape.backward(&loss, 1.0, &mut gradients).unwrap();
        if step == 0 {
            for p in model.parameters() {
                let want = floats(&all[&format!("grad.{}", p.name)]);
                let got = floats(gradients.get(p.index));
                if p.name.ends_with("attn.k.bias") && !file.starts_with("op") {
                    // Softmax ignores what a key bias adds, so its gradient is rounding noise around zero.
                    assert!(got.iter().all(|g| g.abs() < 1e-6), "{}", p.name);
                    continue;
                }
                let d = deviation(&got, &want);
                assert!(d < 1e-4, "{file}: gradient of {} deviates by {d:e}", p.name);
            }
        }
        let norm = optim::global_norm(gradients.all()).unwrap();
        let want_norm = floats(&all["grad_norm"])[step];
        // Later steps: a ReLU input within rounding of zero may fall on either side, which moves the norm by
        // a few 1e-4 though it does not move the loss.
        let tolerance = if step == 0 { 1e-5 } else { 5e-4 };
        assert!(
            (norm - want_norm).abs() < tolerance * want_norm,
            "{file}: gradient norm of step {step} is {norm}, not {want_norm}"
        );
        optim::clip(gradients.all(), norm, 1.0).unwrap();
        let mut slots: Vec<Slot> = model
            .parameters()
            .iter()
            .zip(&mut states)
            .map(|(p, state)| Slot {
                parameter: &p.tensor,
                gradient: gradients.get(p.index),
                state,
                lr: 3e-3,
                weight_decay: if p.tensor.rank() >= 2 { 0.1 } else { 0.0 },
                phase: 0,
            })
            .collect();
        rule.step(&mut slots).unwrap();
    }
    let _ = targets;
}

#[test]
fn pre_ln_trains_as_in_pytorch() {
    ten_steps(config("pre_ln"), "pre_ln_steps.safetensors");
}

#[test]
fn pre_rms_trains_as_in_pytorch() {
    ten_steps(config("pre_rms"), "pre_rms_steps.safetensors");
}

#[test]
fn op_trains_as_in_pytorch() {
    ten_steps(config("op"), "op_steps.safetensors");
}

#[test]
fn op_paper_with_learned_gains_trains_as_in_pytorch() {
    ten_steps(config("op_paper"), "op_paper_steps.safetensors");
}

#[test]
fn weight_quantisers_pick_the_same_integers() {
    let all = golden("quantisers.safetensors");
    let cases: Vec<String> =
        part(&all, "w.").keys().filter_map(|k| Some(k.strip_suffix(".x")?.to_string())).collect();
    assert!(cases.len() >= 8);
    for case in cases {
        let x: Vec<f32> = floats(&all[&format!("w.{case}.x")]).iter().map(|&v| v as f32).collect();
        let spec = Spec::WEIGHT.with("mse_fixed").unwrap();
        let q = only(&Rounding::of_weight(&case, spec, &x, x.len()).unwrap());
        let scale = floats(&all[&format!("w.{case}.scale")])[0];
        assert!(
            (q.grid().scale as f64 - scale).abs() <= 1e-7 * scale,
            "{case}: scale {} not {scale}",
            q.scale
        );
        check_integers(&case, &x, q, &all, "w");
    }
}

#[test]
fn activation_quantisers_pick_the_same_integers() {
    let all = golden("quantisers.safetensors");
    let cases: Vec<String> =
        part(&all, "a.").keys().filter_map(|k| Some(k.strip_suffix(".batch.0")?.to_string())).collect();
    assert!(cases.len() >= 8);
    for case in cases {
        let mut range = Observer::new(Range::RunningPercentile(99.999));
        let (lo, hi) = (floats(&all[&format!("a.{case}.lo")]), floats(&all[&format!("a.{case}.hi")]));
        let mut last = Vec::new();
        for batch in 0..4 {
            last = floats(&all[&format!("a.{case}.batch.{batch}")]).iter().map(|&v| v as f32).collect();
            range.update(&case, &last).unwrap();
            let (a, b) = range.range(INT8).unwrap();
            for (got, want) in [(a, lo[batch]), (b, hi[batch])] {
                assert!((got - want).abs() <= 1e-12 * want.abs(), "{case}: range {got} not {want}");
            }
        }
        let (a, b) = range.range(INT8).unwrap();
        let q = Quantiser::asymmetric(8, a, b);
        let scale = floats(&all[&format!("a.{case}.scale")])[0];
        assert!(
            (q.grid().scale as f64 - scale).abs() <= 1e-7 * scale,
            "{case}: scale {} not {scale}",
            q.scale
        );
        assert_eq!(q.zero_point as f64, floats(&all[&format!("a.{case}.zero")])[0], "{case}");
        check_integers(&case, &last, q, &all, "a");
    }
}

const INT8: Format = Format::Int { bits: 8, symmetric: false };

/// The integer grid that all values share.
fn only(rounding: &Rounding) -> Quantiser {
    match rounding.cells[..] {
        [Cell::Int(q)] => q,
        _ => panic!("{rounding:?} is not one integer grid"),
    }
}

fn check_integers(case: &str, x: &[f32], q: Quantiser, all: &Tensors, kind: &str) {
    let want: Vec<i32> = floats(&all[&format!("{kind}.{case}.q")]).iter().map(|&v| v as i32).collect();
    assert_eq!(evenkeel_kernels::quant::quantise(x, q.grid()), want, "{case}");
    let mut rounded = x.to_vec();
    evenkeel_kernels::quant::fake_quantise(&mut rounded, q.grid());
    let want = floats(&all[&format!("{kind}.{case}.dq")]);
    for (got, want) in rounded.iter().zip(&want) {
        assert!((*got as f64 - want).abs() <= 1e-6 * want.abs(), "{case}: {got} not {want}");
    }
}

/// The whole recipe on a small model with an outlier channel: every range, scale and the loss.
fn whole_w8a8(config: ModelConfig, file: &str) {
    let all = golden(file);
    let model = Transformer::from_tensors(config, &mut part(&all, "param.")).unwrap();
    let names = model.parameters().iter().map(|p| p.name.as_str());
    let plan = Scheme::preset("w8a8").unwrap().plan(model.config(), names).unwrap();
    let rounded = quantise_weights(&model, &plan).unwrap();
    let (rounded, weights) = (rounded.model, rounded.weights);
    let want = part(&all, "wscale.");
    assert_eq!(weights.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, w) in &weights {
        let (q, scale) = (only(&w.rounding), floats(&want[name])[0]);
        assert!((q.grid().scale as f64 - scale).abs() <= 1e-7 * scale, "{name}: {} not {scale}", q.scale);
    }
    let mut tap = QuantTap::new(&plan);
    let calibration = part(&all, "calib.");
    assert_eq!(calibration.len(), 4);
    for batch in calibration.values() {
        let rows = batch.to_vec2::<i64>().unwrap();
        let ids: Vec<u32> = rows.iter().flatten().map(|&v| v as u32).collect();
        rounded.logits(&Tape::off(), &mut tap, &ids, rows.len()).unwrap();
    }
    tap.fix().unwrap();
    let ranges = part(&all, "range.");
    let sites: Vec<_> = tap.quantisers().collect();
    assert_eq!(sites.len(), ranges.len());
    for calibrated in sites {
        let (site, (lo, hi), q) = (calibrated.site, calibrated.ranges[0], only(calibrated.rounding.unwrap()));
        let want = floats(&ranges[&site.to_string()]);
        // A tenth of a step: a range may move by the rounding of what came before, not by a quantum.
        for (got, want) in [lo, hi].iter().zip(&want) {
            assert!((got - want).abs() < 0.1 * q.scale, "{site}: range end {got} not {want}");
        }
        assert_eq!(q.zero_point as f64, floats(&all[&format!("zero.{site}")])[0], "{site}");
    }
    let (inputs, targets, sequences) = ids(&all["eval"]);
    let float = model.loss(&Tape::off(), &mut NoTap, &inputs, &targets, sequences).unwrap();
    let quantised = rounded.loss(&Tape::off(), &mut tap, &inputs, &targets, sequences).unwrap();
    for (value, key, tolerance) in [(float, "loss_float", 1e-5), (quantised, "loss_w8a8", 1e-5)] {
        let got = value.tensor().to_scalar::<f32>().unwrap() as f64;
        let want = floats(&all[key])[0];
        assert!((got - want).abs() < tolerance * want, "{file}: {key} is {got}, not {want}");
    }
}

#[test]
fn w8a8_of_pre_ln_agrees_with_pytorch() {
    whole_w8a8(config("pre_ln"), "w8a8_pre_ln.safetensors");
}

#[test]
fn w8a8_of_op_agrees_with_pytorch() {
    whole_w8a8(config("op"), "w8a8_op.safetensors");
}

/// A pre-norm model without norms in its blocks is the OP block: the presets differ in data alone.
#[test]
fn a_tied_head_trains_through_both_uses() {
    let mut c = config("pre_ln");
    (c.tie_head, c.norm) = (true, Norm::Rms);
    let model = Transformer::new(c, 3).unwrap();
    assert!(model.parameters().iter().all(|p| p.name != "head.weight"));
    let batch = Batch { inputs: vec![1, 2, 3, 4], targets: vec![2, 3, 4, 5], sequences: 1, context: 4 };
    let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
    let tape = Tape::recording();
    let loss = model.loss(&tape, &mut NoTap, &batch.inputs, &batch.targets, 1).unwrap();
    tape.backward(&loss, 1.0, &mut gradients).unwrap();
    // Token 30 is neither input nor target: only the head's use of the matrix reaches its row.
    let rows = gradients.get(0).to_vec2::<f32>().unwrap();
    assert!(rows[30].iter().any(|v| *v != 0.0));
}
