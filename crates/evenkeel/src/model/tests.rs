//! The composed model in float64: gradients of every parameter against finite differences, for every preset.

use super::config::{Beta, NormPosition, QkNorm};
use super::*;
use crate::ops::Activation;
use crate::tap::{NoTap, Place, Site, Tap};
use crate::tape::{Execution, Gradients, Precision, Recompute, Tape};
use candle_core::{DType, Device, Tensor};

fn tiny(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context, c.mlp_ratio) = (2, 6, 2, 7, 5, 2);
    c
}

/// Every preset, and the settings that no preset uses.
fn variants() -> Vec<(String, ModelConfig)> {
    let mut all: Vec<(String, ModelConfig)> =
        PRESETS.iter().map(|(name, _)| (name.to_string(), tiny(name))).collect();
    let mut add = |name: &str, change: &dyn Fn(&mut ModelConfig), base: &str| {
        let mut c = tiny(base);
        change(&mut c);
        all.push((name.to_string(), c));
    };
    add("post", &|c| c.norm_position = NormPosition::Post, "pre_ln");
    add("pre_srms", &|c| c.norm = config::Norm::Srms, "pre_ln");
    add("trainable gains", &|c| (c.beta_trainable, c.alpha_trainable, c.alpha) = (true, true, 0.7), "op");
    add("tied", &|c| c.tie_head = true, "pre_rms");
    add("gelu", &|c| c.activation = Activation::Gelu, "pre_ln");
    add(
        "gelu_tanh, no positions",
        &|c| {
            (c.activation, c.positions) = (Activation::GeluTanh, config::Positions::None);
        },
        "op",
    );
    add("pre_ln with qk-norm and beta", &|c| (c.qk_norm, c.beta) = (QkNorm::Rms, Beta::Value(0.3)), "pre_ln");
    all
}

/// A float64 copy whose parameters are away from their symmetric starting points.
fn perturbed(config: &ModelConfig) -> Transformer {
    let mut i = 0u64;
    Transformer::new(config.clone(), 5)
        .unwrap()
        .map_parameters(|p| {
            i += 1;
            let n = p.tensor.elem_count();
            let noise: Vec<f64> =
                (0..n).map(|j| ((i * 7919 + j as u64 * 104_729) % 1009) as f64 / 1009.0 - 0.5).collect();
            let noise = Tensor::from_vec(noise, p.tensor.shape(), &Device::Cpu)?;
            Ok((p.tensor.to_dtype(DType::F64)? + (noise * 0.3)?)?)
        })
        .unwrap()
}

const IDS: [u32; 10] = [1, 4, 2, 6, 0, 3, 3, 5, 1, 2];
const TARGETS: [u32; 10] = [4, 2, 6, 0, 1, 3, 5, 1, 2, 6];

fn loss(model: &Transformer) -> f64 {
    let loss = model.loss(&Tape::off(), &mut NoTap, &IDS, &TARGETS, 2).unwrap();
    loss.tensor().to_scalar::<f64>().unwrap()
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (name, config) in variants() {
        let model = perturbed(&config);
        let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
        let tape = Tape::recording();
        let value = model.loss(&tape, &mut NoTap, &IDS, &TARGETS, 2).unwrap();
        tape.backward(&value, 1.0, &mut gradients).unwrap();
        for target in model.parameters() {
            let analytic = gradients.get(target.index).flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let n = analytic.len();
            // A few entries of each parameter, spread over it.
            for j in (0..n).step_by((n / 5).max(1)) {
                let at = |h: f64| {
                    let moved = model
                        .map_parameters(|p| {
                            let mut data = p.tensor.flatten_all()?.to_vec1::<f64>()?;
                            if p.index == target.index {
                                data[j] += h;
                            }
                            Ok(Tensor::from_vec(data, p.tensor.shape(), &Device::Cpu)?)
                        })
                        .unwrap();
                    loss(&moved)
                };
                let h = 1e-6;
                let numeric = (at(h) - at(-h)) / (2.0 * h);
                assert!(
                    (numeric - analytic[j]).abs() < 1e-7 + 1e-5 * numeric.abs(),
                    "{name}: {}[{j}] is {}, finite differences give {numeric}",
                    target.name,
                    analytic[j]
                );
            }
        }
    }
}

#[test]
fn kernels_agree_with_the_composition_in_the_whole_model() {
    for (name, config) in variants() {
        let wide = perturbed(&config);
        let narrow = wide.to_dtype(DType::F32).unwrap();
        let run = |model: &Transformer| {
            let mut g = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
            let tape = Tape::recording();
            let value = model.loss(&tape, &mut NoTap, &IDS, &TARGETS, 2).unwrap();
            tape.backward(&value, 1.0, &mut g).unwrap();
            g
        };
        let (a, b) = (run(&narrow), run(&wide));
        for p in wide.parameters() {
            let values =
                |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let (x, y) = (values(a.get(p.index)), values(b.get(p.index)));
            let peak = y.iter().fold(1e-2f64, |m, v| m.max(v.abs()));
            for (x, y) in x.iter().zip(&y) {
                assert!((x - y).abs() < 2e-5 * peak, "{name}: {}: {x} and {y}", p.name);
            }
        }
    }
}

struct Everything(Vec<Site>);

impl Tap for Everything {
    fn wants(&self, _: Site) -> bool {
        true
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        self.0.push(site);
        Ok(x)
    }
}

#[test]
fn looking_everywhere_changes_nothing() {
    for (name, config) in variants() {
        let model = Transformer::new(config.clone(), 1).unwrap();
        let plain = model.logits(&Tape::off(), &mut NoTap, &IDS, 2).unwrap();
        let mut tap = Everything(Vec::new());
        let seen = model.logits(&Tape::off(), &mut tap, &IDS, 2).unwrap();
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(plain.tensor()), bits(seen.tensor()), "{name}");
        let gradients = |tap: &mut dyn Tap| {
            let mut g = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
            let tape = Tape::recording();
            let loss = model.loss(&tape, tap, &IDS, &TARGETS, 2).unwrap();
            tape.backward(&loss, 1.0, &mut g).unwrap();
            g.all().iter().map(bits).collect::<Vec<_>>()
        };
        assert_eq!(gradients(&mut NoTap), gradients(&mut Everything(Vec::new())), "{name}");
        let qk = if config.qk_norm == QkNorm::Rms { 2 } else { 0 };
        assert_eq!(tap.0.len(), 3 + config.depth * (15 + qk), "{name}");
        assert_eq!(tap.0[0], Site::outside(Place::Embed));
    }
}

struct Zero;

impl Tap for Zero {
    fn wants(&self, site: Site) -> bool {
        site.place == Place::AttnBranch || site.place == Place::MlpBranch
    }
    fn visit(&mut self, _: Site, x: Tensor) -> candle_core::Result<Tensor> {
        x.zeros_like()
    }
    fn transforms(&self) -> bool {
        true
    }
}

#[test]
fn a_transforming_tap_reaches_in_but_not_while_recording() {
    let model = Transformer::new(tiny("op"), 1).unwrap();
    let mut tap = Zero;
    // With both branches off, every block passes the embedding on: depth does not matter.
    let deep = model.hidden(&Tape::off(), &mut tap, &IDS, 2).unwrap();
    let plain = model.hidden(&Tape::off(), &mut NoTap, &IDS, 2).unwrap();
    assert_ne!(
        deep.tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        plain.tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
    let refused = model.hidden(&Tape::recording(), &mut tap, &IDS, 2);
    assert!(matches!(refused, Err(ModelError::TransformWhileRecording)));
}

#[test]
fn bad_input_is_refused() {
    let model = Transformer::new(tiny("pre_ln"), 1).unwrap();
    let run = |ids: &[u32], n| model.hidden(&Tape::off(), &mut NoTap, ids, n).map(|_| ());
    assert!(matches!(run(&[7], 1), Err(ModelError::IdBeyondVocabulary { id: 7, vocab: 7 })));
    assert!(matches!(run(&[0; 6], 1), Err(ModelError::TooLong { tokens: 6, context: 5 })));
    assert!(matches!(run(&[], 1), Err(ModelError::Empty)));
    assert!(matches!(run(&[1, 2, 3], 2), Err(ModelError::Empty)));
    let mut c = tiny("pre_ln");
    c.heads = 4;
    assert!(matches!(Transformer::new(c, 0), Err(ModelError::Config { key: "heads", .. })));
}

#[test]
fn shapes_count_what_is_built() {
    for (_, config) in variants() {
        let model = Transformer::new(config.clone(), 0).unwrap();
        let shapes = Transformer::shapes(config).unwrap();
        let counted: usize = shapes.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(counted, model.parameter_count());
        assert_eq!(shapes.len(), model.parameters().len());
    }
}

#[test]
fn one_batch_is_learned_by_heart() {
    use crate::optim::{AdamW, Optimizer, Slot, State};
    for (name, config) in variants() {
        let model = Transformer::new(config, 2).unwrap();
        let mut states = vec![State::default(); model.parameters().len()];
        let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
        let rule = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8 };
        let mut last = f32::INFINITY;
        for _ in 0..300 {
            gradients.clear();
            let tape = Tape::recording();
            let value = model.loss(&tape, &mut NoTap, &IDS, &TARGETS, 2).unwrap();
            last = value.tensor().to_scalar().unwrap();
            tape.backward(&value, 1.0, &mut gradients).unwrap();
            let mut slots: Vec<Slot> = model
                .parameters()
                .iter()
                .zip(&mut states)
                .map(|(p, state)| Slot {
                    parameter: &p.tensor,
                    gradient: gradients.get(p.index),
                    state,
                    lr: 2e-2,
                    weight_decay: 0.0,
                })
                .collect();
            rule.step(&mut slots).unwrap();
        }
        assert!(last < 0.2, "{name}: the loss is still {last}");
    }
}

fn gradients_as(model: &Transformer, execution: Execution) -> (f32, Vec<Vec<f32>>) {
    let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
    let tape = Tape::recording_as(execution);
    let value = model.loss(&tape, &mut NoTap, &IDS, &TARGETS, 2).unwrap();
    tape.backward(&value, 1.0, &mut gradients).unwrap();
    let all = gradients.all().iter().map(|g| g.flatten_all().unwrap().to_vec1().unwrap()).collect();
    (value.tensor().to_scalar().unwrap(), all)
}

#[test]
fn what_was_forgotten_comes_back_bit_for_bit() {
    for (name, config) in variants() {
        let model = Transformer::new(config, 3).unwrap();
        for precision in [Precision::F32, Precision::Bf16] {
            let kept = gradients_as(&model, Execution { precision, recompute: Recompute::None });
            for recompute in [Recompute::Mlp, Recompute::Block] {
                let again = gradients_as(&model, Execution { precision, recompute });
                assert_eq!(kept, again, "{name} {precision:?} {recompute:?}");
            }
        }
    }
}

/// Rounding every factor to 8 bits moves a gradient by a per cent or two, never by its own size.
#[test]
fn bf16_gradients_point_where_float32_gradients_point() {
    for (name, config) in variants() {
        let model = Transformer::new(config, 3).unwrap();
        let (exact_loss, exact) = gradients_as(&model, Execution::default());
        let (loss, rounded) =
            gradients_as(&model, Execution { precision: Precision::Bf16, ..Execution::default() });
        assert!((loss - exact_loss).abs() < 0.02 * exact_loss, "{name}: loss {loss} against {exact_loss}");
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            let pairs = exact.iter().flatten().zip(rounded.iter().flatten());
            pairs.map(|(&e, &r)| f(e as f64, r as f64)).sum()
        };
        let distance = (sum(&|e, r| (e - r).powi(2)) / sum(&|e, _| e * e)).sqrt();
        assert!(distance < 0.05, "{name}: gradients differ by {distance} of their norm");
        assert!(distance > 0.0, "{name}: bf16 changed nothing");
    }
}
