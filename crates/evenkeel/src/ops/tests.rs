//! Each kernel against its composition: values and gradients of every input, over odd shapes.

use super::*;
use crate::tape::{Gradients, Tape, Value};
use candle_core::{DType, Device, Result, Tensor};

/// Values in (-1, 1) that do not repeat.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<f64> = (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

type Op<'a> = &'a dyn Fn(&Tape, &[Value]) -> Result<Value>;

/// Output, and the gradient of every input when a fixed random tensor is sent back.
fn run(inputs: &[Tensor], dtype: DType, op: Op) -> Result<(Tensor, Vec<Tensor>)> {
    let inputs = inputs.iter().map(|t| t.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
    let mut gradients = Gradients::like(&inputs)?;
    let tape = Tape::recording();
    let values: Vec<Value> = inputs.iter().enumerate().map(|(i, t)| tape.parameter(i, t)).collect();
    let y = op(&tape, &values)?;
    let weight = numbers(y.tensor().dims(), 99).to_dtype(dtype)?;
    let loss = tape.compose(&[&y], |t| (&t[0] * &weight)?.sum_all())?;
    tape.backward(&loss, 1.0, &mut gradients)?;
    Ok((y.tensor().clone(), gradients.all().to_vec()))
}

/// The kernel in float32 against the composition in float64.
fn check(name: &str, inputs: &[Tensor], op: Op) {
    let (fast, fast_grads) = run(inputs, DType::F32, op).unwrap();
    let (slow, slow_grads) = run(inputs, DType::F64, op).unwrap();
    assert_eq!(fast.dims(), slow.dims(), "{name}");
    let values =
        |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let peak = |t: &Tensor| values(t).iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let deviation = |a: &Tensor, b: &Tensor, least: f64| {
        let (a, b, peak) = (values(a), values(b), peak(b).max(least));
        a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / peak
    };
    let d = deviation(&fast, &slow, 1e-3);
    assert!(d < 3e-6, "{name}: the value deviates by {d:e}");
    // A gradient that is zero in real numbers is what rounding leaves of terms as large as the others'.
    let least = slow_grads.iter().map(peak).fold(0.1f64, f64::max) * 5e-2;
    for (i, (a, b)) in fast_grads.iter().zip(&slow_grads).enumerate() {
        let d = deviation(a, b, least);
        assert!(d < 2e-5, "{name}: gradient {i} deviates by {d:e}");
    }
}

#[test]
fn linear_kernel_is_its_composition() {
    for (rows, d_in, d_out) in [(1, 1, 1), (3, 5, 7), (17, 33, 31), (130, 64, 48)] {
        let acts = [
            Activation::Relu,
            Activation::LeakyRelu(0.2),
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::SquaredRelu,
        ];
        for act in std::iter::once(None).chain(acts.map(Some)) {
            for bias in [false, true] {
                let mut inputs = vec![numbers(&[1, rows, d_in], 1), numbers(&[d_out, d_in], 2)];
                if bias {
                    inputs.push(numbers(&[d_out], 3));
                }
                check(&format!("linear {rows} {d_in} {d_out} {act:?} {bias}"), &inputs, &|tape, v| {
                    linear(tape, &v[0], &v[1], v.get(2), act)
                });
            }
        }
    }
}

#[test]
fn a_branch_onto_the_stream_is_its_composition_and_bit_for_bit_its_parts() -> Result<()> {
    for (rows, d_in, d_out) in [(1, 1, 1), (17, 33, 31), (230, 64, 48)] {
        for (bias, beta) in [(false, 1.0f32), (true, 1.0), (true, 0.3)] {
            let mut inputs =
                vec![numbers(&[1, rows, d_out], 4), numbers(&[1, rows, d_in], 1), numbers(&[d_out, d_in], 2)];
            if bias {
                inputs.push(numbers(&[d_out], 3));
            }
            let fused = |tape: &Tape, v: &[Value]| linear_onto(tape, &v[0], &v[1], &v[2], v.get(3), beta);
            let parts = |tape: &Tape, v: &[Value]| {
                let gain = Value::constant(Tensor::new(&[beta], &Device::Cpu)?);
                residual(tape, &v[0], &linear(tape, &v[1], &v[2], v.get(3), None)?, &gain)
            };
            check(&format!("linear onto {rows} {d_in} {d_out} {bias} {beta}"), &inputs, &fused);
            let (one, two) = (run(&inputs, DType::F32, &fused)?, run(&inputs, DType::F32, &parts)?);
            let bits = |t: &Tensor| -> Result<Vec<u32>> {
                Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            assert_eq!(bits(&one.0)?, bits(&two.0)?);
            for (a, b) in one.1.iter().zip(&two.1) {
                assert_eq!(bits(a)?, bits(b)?, "{rows} {bias} {beta}");
            }
        }
    }
    Ok(())
}

#[test]
fn norm_kernel_is_its_composition() {
    for width in [1, 2, 3, 15, 16, 17, 70] {
        for centred in [true, false] {
            // LayerNorm of one or two channels hardly depends on its input; its gradient is rounding noise.
            if width <= 2 && centred {
                continue;
            }
            for parameters in 0..=2 {
                let mut inputs = vec![numbers(&[2, 9, width], 4)];
                inputs.extend((0..parameters).map(|i| numbers(&[width], 5 + i as u64)));
                let spec = NormSpec { centred, eps: 1e-5 };
                check(&format!("norm {width} {centred} {parameters}"), &inputs, &|tape, v| {
                    norm(tape, &v[0], v.get(1), v.get(2), spec)
                });
            }
        }
    }
}

/// Every kind of attention: what is done to queries and keys, to scores, and how heads share keys.
fn attention_kinds() -> Vec<(AttentionSpec, usize)> {
    let plain = AttentionSpec::causal(4);
    let rope =
        |rotated| Some(std::sync::Arc::new(Rope::new(50.0, rotated, 9, RopeScaling::Linear { factor: 2.0 })));
    let clipped = Softmax::Clipped { gamma: -0.05, eta: 1.1 };
    let mut kinds = vec![
        plain.clone(),
        AttentionSpec { causal: false, ..plain.clone() },
        AttentionSpec { window: 5, ..plain.clone() },
        AttentionSpec { window: 70, kv_heads: 2, softcap: 0.5, softmax: clipped, ..plain.clone() },
        AttentionSpec { kv_heads: 2, ..plain.clone() },
        AttentionSpec { kv_heads: 1, rope: rope(6), ..plain.clone() },
        AttentionSpec { rope: rope(4), ..plain.clone() },
        AttentionSpec { softcap: 0.5, ..plain.clone() },
        AttentionSpec { softmax: Softmax::NullSlot, ..plain.clone() },
        AttentionSpec { softmax: clipped, ..plain.clone() },
        AttentionSpec { softmax: clipped, softcap: 0.7, causal: false, ..plain.clone() },
        AttentionSpec { softmax: Softmax::NullSlot, softcap: 0.7, kv_heads: 2, rope: rope(2), ..plain },
    ];
    kinds.push(AttentionSpec::causal(1));
    // Values per head of QK-norm: none, gains, gains and biases.
    kinds.into_iter().flat_map(|kind| [0, 2, 4].map(|values| (kind.clone(), values))).collect()
}

#[test]
fn attention_kernel_is_its_composition() {
    for (sequences, tokens, d_head) in [(1, 1, 6), (2, 7, 7), (1, 64, 8), (2, 131, 6)] {
        for (spec, norm_values) in attention_kinds() {
            let sizes = [spec.heads, spec.kv_heads, spec.kv_heads].map(|heads| heads * d_head);
            let mut inputs: Vec<Tensor> = sizes
                .into_iter()
                .zip(10..)
                .map(|(width, seed)| numbers(&[sequences, tokens, width], seed))
                .collect();
            inputs.extend((0..norm_values).map(|i| numbers(&[d_head], 20 + i as u64)));
            let name = format!("attention {tokens} {d_head} {norm_values} {spec:?}");
            check(&name, &inputs, &|tape, v| {
                let norm = (norm_values > 0).then(|| QkNormSpec {
                    q_gain: &v[3],
                    k_gain: &v[4],
                    biases: v.get(5).zip(v.get(6)),
                    // Large enough to matter, and on both sides of the root.
                    eps: if spec.causal { Epsilon::Outside(1e-2) } else { Epsilon::Inside(1e-2) },
                });
                attention(tape, &v[0], &v[1], &v[2], norm, &spec)
            });
        }
    }
}

/// What a looker is shown is what the composition goes through, sequence by sequence.
#[test]
fn looking_inside_attention_shows_what_the_composition_goes_through() -> Result<()> {
    type Seen = std::collections::BTreeMap<String, Vec<f32>>;
    for (sequences, tokens, d_head) in [(1, 1, 6), (2, 7, 8), (2, 67, 6)] {
        for (spec, norm_values) in attention_kinds() {
            let value = |shape: &[usize], seed| -> Result<Value> {
                Ok(Value::constant(numbers(shape, seed).to_dtype(DType::F32)?.contiguous()?))
            };
            let wide = |heads: usize, seed| value(&[sequences, tokens, heads * d_head], seed);
            let (q, k, v) = (wide(spec.heads, 1)?, wide(spec.kv_heads, 2)?, wide(spec.kv_heads, 3)?);
            let vectors =
                (0..norm_values).map(|i| value(&[d_head], 20 + i as u64)).collect::<Result<Vec<_>>>()?;
            let norm = || {
                (norm_values > 0).then(|| QkNormSpec {
                    q_gain: &vectors[0],
                    k_gain: &vectors[1],
                    biases: vectors.get(2).zip(vectors.get(3)),
                    eps: Epsilon::Inside(1e-3),
                })
            };
            let mut kernel = Seen::new();
            let keep = |seen: &mut Seen, place: Inner, x: &Tensor| -> Result<()> {
                let values = x.flatten_all()?.to_vec1::<f32>()?;
                seen.entry(format!("{place:?}")).or_default().extend(values);
                Ok(())
            };
            look_inside_attention(
                &q,
                &k,
                &v,
                norm(),
                &spec,
                |_| true,
                |place, x| {
                    keep(&mut kernel, place, &x)?;
                    Ok(x)
                },
            )?;
            let mut composed = Seen::new();
            attention_composed(&Tape::off(), &q, &k, &v, norm(), &spec, |place, x| {
                keep(&mut composed, place, &x)?;
                Ok(x)
            })?;
            assert_eq!(kernel.keys().collect::<Vec<_>>(), composed.keys().collect::<Vec<_>>());
            for (place, want) in &composed {
                let off = kernel[place].iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(
                    kernel[place].len() == want.len() && off < 1e-5,
                    "{place} of {spec:?} is off by {off}"
                );
            }
            // Only what is wanted is shown.
            let only = |place| place == Inner::Probs;
            look_inside_attention(&q, &k, &v, norm(), &spec, only, |place, x| {
                assert_eq!(place, Inner::Probs);
                Ok(x)
            })?;
        }
    }
    Ok(())
}

#[test]
fn residual_and_scale_kernels_are_their_compositions() {
    for rows in [3, 4000] {
        for gain in [1, 17] {
            let shape = [2, rows, 17];
            let inputs = [numbers(&shape, 30), numbers(&shape, 31), numbers(&[gain], 32)];
            check("residual", &inputs, &|tape, v| residual(tape, &v[0], &v[1], &v[2]));
            check("scale", &inputs[1..], &|tape, v| scale(tape, &v[0], &v[1]));
        }
    }
}

#[test]
fn gate_kernels_are_their_compositions() {
    for (tokens, heads, d_head) in [(1, 1, 1), (7, 3, 5), (900, 4, 33)] {
        let width = heads * d_head;
        let x = numbers(&[2, tokens, width], 60);
        for groups in [heads, width] {
            let inputs = [x.clone(), numbers(&[2, tokens, groups], 61)];
            check("sigmoid gate", &inputs, &|tape, v| sigmoid_gate(tape, &v[0], &v[1]));
        }
        let inputs = [x, numbers(&[heads, d_head], 62), numbers(&[heads], 63)];
        check("gate logits", &inputs, &|tape, v| gate_logits(tape, &v[0], &v[1], &v[2]));
    }
}

#[test]
fn gated_unit_kernel_is_its_composition() {
    for (rows, width) in [(1, 1), (3, 17), (900, 130)] {
        for act in [Activation::Silu, Activation::Gelu, Activation::Relu] {
            let inputs = [numbers(&[1, rows, width], 70), numbers(&[1, rows, width], 71)];
            check(&format!("gated unit {act:?}"), &inputs, &|tape, v| gated_unit(tape, &v[0], &v[1], act));
        }
    }
}

#[test]
fn dropout_kernel_is_its_composition_and_depends_on_no_cut() -> Result<()> {
    let noise = |first_sequence| crate::tape::Noise { key: 5, first_sequence };
    let x = numbers(&[3, 500, 70], 80);
    check("dropout", std::slice::from_ref(&x), &|tape, v| {
        let on = Tape::off().with_noise(noise(0));
        dropout(tape, v[0].clone(), Dropout::of(&on, 0.3, 2))
    });
    let dropped = |x: &Tensor, first, place| -> Result<Vec<f32>> {
        let on = Tape::off().with_noise(noise(first));
        let x = Value::constant(x.to_dtype(DType::F32)?.contiguous()?);
        dropout(&on, x, Dropout::of(&on, 0.3, place))?.tensor().flatten_all()?.to_vec1()
    };
    let whole = dropped(&x, 0, 2)?;
    let parts = [dropped(&x.narrow(0, 0, 1)?, 0, 2)?, dropped(&x.narrow(0, 1, 2)?, 1, 2)?].concat();
    assert_eq!(whole, parts, "micro-batches drop what the batch drops");
    assert_ne!(whole, dropped(&x, 0, 3)?, "another place drops others");
    let share = whole.iter().filter(|v| **v == 0.0).count() as f64 / whole.len() as f64;
    assert!((share - 0.3).abs() < 0.01, "{share}");
    assert!(Dropout::of(&Tape::off(), 0.3, 2).is_none(), "there is none outside training");
    Ok(())
}

#[test]
fn embedding_kernel_is_its_composition() {
    let ids = [3u32, 0, 6, 3, 1, 3, 2, 2, 5, 0];
    for width in [1, 17, 70] {
        let inputs = [numbers(&[7, width], 40), numbers(&[8, width], 41)];
        check("embedding", &inputs, &|tape, v| embedding(tape, &v[0], Some(&v[1]), &ids, 2, 5));
        check("embedding without positions", &inputs[..1], &|tape, v| {
            embedding(tape, &v[0], None, &ids, 2, 5)
        });
    }
}

#[test]
fn head_kernel_is_its_composition() {
    for (rows, width, vocab) in [(1, 3, 2), (5, 17, 33), (300, 8, 50)] {
        let targets: Vec<u32> = (0..rows as u32).map(|i| (i * 7) % vocab as u32).collect();
        let inputs = [numbers(&[1, rows, width], 50), numbers(&[vocab, width], 51)];
        check("head", &inputs, &|tape, v| head_cross_entropy(tape, &v[0], &v[1], None, &targets));
    }
}

#[test]
fn nan_goes_through_every_kernel() -> Result<()> {
    let mut data = vec![0.5f32; 2 * 4 * 6];
    data[7] = f32::NAN;
    let x = Value::constant(Tensor::from_vec(data, (2, 4, 6), &Device::Cpu)?);
    let w = Value::constant(Tensor::ones((5, 6), DType::F32, &Device::Cpu)?);
    let tape = Tape::off();
    let spec = &AttentionSpec::causal(2);
    let sees_nan = |v: Value| -> Result<bool> {
        Ok(v.tensor().flatten_all()?.to_vec1::<f32>()?.iter().any(|v| v.is_nan()))
    };
    assert!(sees_nan(linear(&tape, &x, &w, None, Some(Activation::Relu))?)?);
    assert!(sees_nan(linear(&tape, &x, &w, None, Some(Activation::Gelu))?)?);
    assert!(sees_nan(norm(&tape, &x, None, None, NormSpec { centred: true, eps: 1e-5 })?)?);
    assert!(sees_nan(attention(&tape, &x, &x, &x, None, spec)?)?);
    let loss = head_cross_entropy(&tape, &x, &w, None, &[0; 8])?;
    assert!(loss.tensor().to_scalar::<f32>()?.is_nan());
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let value = |shape: &[usize]| Value::constant(numbers(shape, 1).to_dtype(DType::F32).unwrap());
    let tape = Tape::off();
    let (x, w, long_bias) = (value(&[3, 4]), value(&[4, 4]), value(&[5]));
    assert!(linear(&tape, &x, &w, Some(&long_bias), None).is_err());
    assert!(linear_onto(&tape, &x, &x, &w, Some(&long_bias), 1.0).is_err());
    // As many elements, in other rows.
    assert!(linear_onto(&tape, &value(&[2, 6]), &x, &w, None, 1.0).is_err());
    assert!(linear_onto(&tape, &x, &x, &w, None, 1.0).is_ok());
}
