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
    let deviation = |a: &Tensor, b: &Tensor| {
        let a = a.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let b = b.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let peak = b.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / peak
    };
    let d = deviation(&fast, &slow);
    assert!(d < 3e-6, "{name}: the value deviates by {d:e}");
    for (i, (a, b)) in fast_grads.iter().zip(&slow_grads).enumerate() {
        let d = deviation(a, b);
        assert!(d < 2e-5, "{name}: gradient {i} deviates by {d:e}");
    }
}

#[test]
fn linear_kernel_is_its_composition() {
    for (rows, d_in, d_out) in [(1, 1, 1), (3, 5, 7), (17, 33, 31), (130, 64, 48)] {
        for act in [None, Some(Activation::Relu), Some(Activation::Gelu), Some(Activation::GeluTanh)] {
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

#[test]
fn attention_kernel_is_its_composition() {
    for (sequences, tokens, heads, d_head) in [(1, 1, 1, 2), (2, 7, 3, 5), (1, 64, 2, 8), (2, 131, 1, 16)] {
        for causal in [true, false] {
            for qk in [false, true] {
                let width = heads * d_head;
                let mut inputs: Vec<Tensor> =
                    (0..3).map(|i| numbers(&[sequences, tokens, width], 10 + i)).collect();
                if qk {
                    inputs.extend([numbers(&[d_head], 20), numbers(&[d_head], 21)]);
                }
                let spec = AttentionSpec { heads, causal };
                check(&format!("attention {tokens} {heads} {d_head} {causal} {qk}"), &inputs, &|tape, v| {
                    let norm = qk.then(|| QkNormSpec { q_gain: &v[3], k_gain: &v[4], eps: 1e-6 });
                    attention(tape, &v[0], &v[1], &v[2], norm, spec)
                });
            }
        }
    }
}

#[test]
fn residual_and_scale_kernels_are_their_compositions() {
    let inputs = [numbers(&[2, 3, 17], 30), numbers(&[2, 3, 17], 31), numbers(&[1], 32)];
    check("residual", &inputs, &|tape, v| residual(tape, &v[0], &v[1], &v[2]));
    check("scale", &inputs[1..], &|tape, v| scale(tape, &v[0], &v[1]));
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
        check("head", &inputs, &|tape, v| head_cross_entropy(tape, &v[0], &v[1], &targets));
    }
}

#[test]
fn nan_goes_through_every_kernel() -> Result<()> {
    let mut data = vec![0.5f32; 2 * 4 * 6];
    data[7] = f32::NAN;
    let x = Value::constant(Tensor::from_vec(data, (2, 4, 6), &Device::Cpu)?);
    let w = Value::constant(Tensor::ones((5, 6), DType::F32, &Device::Cpu)?);
    let tape = Tape::off();
    let spec = AttentionSpec { heads: 2, causal: true };
    let sees_nan = |v: Value| -> Result<bool> {
        Ok(v.tensor().flatten_all()?.to_vec1::<f32>()?.iter().any(|v| v.is_nan()))
    };
    assert!(sees_nan(linear(&tape, &x, &w, None, Some(Activation::Relu))?)?);
    assert!(sees_nan(linear(&tape, &x, &w, None, Some(Activation::Gelu))?)?);
    assert!(sees_nan(norm(&tape, &x, None, None, NormSpec { centred: true, eps: 1e-5 })?)?);
    assert!(sees_nan(attention(&tape, &x, &x, &x, None, spec)?)?);
    let loss = head_cross_entropy(&tape, &x, &w, &[0; 8])?;
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
