//! No kernel reads or writes outside its slices, wherever they lie.
//!
//! Each kernel runs with all its slices at the end of their pages, at the start, and at every offset in a cache line
//! (see `guarded`), over lengths that leave something over at every vector width. The results must be those of
//! ordinary memory bit for bit. A fault ends the process: run with `--test-threads=1` to see whose it was.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod guarded;

use common::{Bits, fill, tokens};
use evenkeel_kernels::gemm::{
    Compute, Packed, View, Write, blend_gram, gemm, gemm_new, gemm_packed, gemm_serial, gemm_serial_packed,
    gemm_shared, gemm_then, mirror, mirror_serial,
};
use evenkeel_kernels::threads::Shared;
use evenkeel_kernels::{
    activation, attention, embedding, factored, gate, math, norm, optimizer, quant, stats, threads, xent,
};
use guarded::{Arena, Place};

const LENGTHS: [usize; 12] = [0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 67, 257];
const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// Runs a kernel in ordinary memory and in every place.
#[track_caller]
fn everywhere(what: &str, run: impl Fn(&Arena) -> Bits) {
    let want = run(&Arena::new(None));
    for place in Place::all() {
        let arena = Arena::new(Some(place));
        assert!(run(&arena) == want, "{what}: another result with slices at {place:?}");
        assert!(arena.intact(), "{what}: a write outside of slices at {place:?}");
    }
}

#[test]
fn matrix_products() {
    let shapes =
        [(0, 5, 7), (5, 0, 7), (1, 1, 1), (2, 3, 2), (4, 16, 32), (5, 17, 33), (13, 31, 67), (37, 259, 101)];
    for (m, k, n) in shapes {
        let (a, b, c) = (fill(m * k, 1), fill(k * n, 2), fill(m * n, 3));
        for compute in COMPUTES {
            for layout in 0..4 {
                let (ta, tb) = (layout & 1 == 1, layout & 2 == 2);
                let write = if layout == 0 { Write::Add } else { Write::Replace };
                everywhere(&format!("{compute:?}, {:?}, layout {layout}", (m, k, n)), |arena| {
                    let (a, b) = (arena.read(&a), arena.read(&b));
                    let a = if ta { View::new(a, k, m).t() } else { View::new(a, m, k) };
                    let b = if tb { View::new(b, n, k).t() } else { View::new(b, k, n) };
                    let [plain, then, packed, serial, part] = [(); 5].map(|()| arena.write(&c));
                    let fresh =
                        gemm_new(compute, a, b, |_, _, piece| piece.iter_mut().for_each(|v| *v += 1.0));
                    gemm(compute, a, b, plain, write);
                    gemm_then(compute, a, b, then, write, |_, _, piece| {
                        piece.iter_mut().for_each(|v| *v += 1.0)
                    });
                    gemm_packed(a, &Packed::new(compute, b), packed, write, |_, _, _| {});
                    gemm_serial(compute, a, b, serial, n, write);
                    let columns = n.div_ceil(2);
                    let whole = Packed::new_serial(compute, b);
                    gemm_serial_packed(a, &whole, columns, part, n, write);
                    Bits::default().and(plain).and(then).and(packed).and(serial).and(part).and(&fresh)
                });
            }
        }
    }
}

#[test]
fn strided_matrix_products() {
    // Each slice ends with the last element of its last row.
    let length = |rows: usize, columns: usize, stride: usize| (rows - 1) * stride + columns;
    for (m, k, n) in [(1, 1, 1), (5, 17, 33), (17, 2, 31), (13, 33, 67)] {
        let (a_stride, b_stride, c_stride) = (k + 3, n + 1, n + 5);
        let (a, b) = (fill(length(m, k, a_stride), 1), fill(length(k, n, b_stride), 2));
        let c = fill(length(m, n, c_stride), 3);
        let across = fill(length(k, m, m + 2), 4);
        for compute in COMPUTES {
            for write in [Write::Replace, Write::Add] {
                everywhere(&format!("strided, {compute:?}, {write:?}, {:?}", (m, k, n)), |arena| {
                    let a = View::strided(arena.read(&a), m, k, a_stride);
                    let a_across = View::strided(arena.read(&across), k, m, m + 2).t();
                    let b = View::strided(arena.read(&b), k, n, b_stride);
                    let [serial, across, shared] = [(); 3].map(|()| arena.write(&c));
                    gemm_serial(compute, a, b, serial, c_stride, write);
                    gemm_serial(compute, a_across, b, across, c_stride, write);
                    // SAFETY: the window is the whole buffer, and this is the only thread.
                    unsafe { gemm_shared(compute, a, b, &Shared::new(shared), 0, c_stride, write) };
                    Bits::default().and(serial).and(across).and(shared)
                });
            }
        }
    }
}

#[test]
fn gram_matrices() {
    for (n, k) in [(0, 5), (5, 0), (1, 1), (2, 3), (17, 33), (33, 16), (49, 7), (97, 31), (145, 2), (769, 3)]
    {
        let (a, c) = (fill(n * k, 1), fill(n * n, 2));
        for compute in COMPUTES {
            for across in [false, true] {
                everywhere(&format!("Gram matrix, {compute:?}, {:?}, across: {across}", (n, k)), |arena| {
                    let a = arena.read(&a);
                    let a = if across { View::new(a, k, n).t() } else { View::new(a, n, k) };
                    let c = arena.write(&c);
                    blend_gram(compute, a, c, 0.9, 0.1);
                    mirror(c, n);
                    mirror_serial(c, n);
                    Bits::default().and(c)
                });
            }
        }
    }
}

#[test]
fn norms() {
    for width in LENGTHS.into_iter().skip(1) {
        let rows = 3;
        let (x, dy, gain, bias) =
            (fill(rows * width, 1), fill(rows * width, 2), fill(width, 3), fill(width, 4));
        for centre in [norm::Centre::Mean, norm::Centre::Nothing] {
            for affine in [false, true] {
                everywhere(&format!("{centre:?}, width {width}"), |arena| {
                    let (x, dy) = (arena.read(&x), arena.read(&dy));
                    let gain = affine.then(|| arena.read(&gain));
                    let bias = affine.then(|| arena.read(&bias));
                    let (y, dx) = (arena.write(dy), arena.write(dy));
                    let scale = norm::forward(x, gain, bias, width, centre, 1e-5, y);
                    let sums = norm::backward(x, gain, dy, &scale, width, centre, dx);
                    let bits = Bits::default().and(y).and(dx).and(&scale.mean).and(&scale.rstd);
                    bits.and_wide(&sums.gain).and_wide(&sums.bias)
                });
            }
        }
    }
}

#[test]
fn activations() {
    use activation::Activation::{Gelu, GeluTanh, LeakyRelu, Relu, Silu, SquaredRelu};
    for n in LENGTHS {
        let (x, dy) = (fill(n, 1), fill(n, 2));
        for act in [Relu, LeakyRelu(0.1), Gelu, GeluTanh, Silu, SquaredRelu] {
            everywhere(&format!("{act:?} of {n}"), |arena| {
                let (y, dx) = (arena.write(&x), arena.write(&dy));
                activation::forward(act, y);
                activation::backward(act, arena.read(&x), dx);
                let (unit, dy, d_gate) = (arena.write(&dy), arena.write(&dy), arena.write(&dy));
                let (gate, up) = (arena.read(&x), arena.read(&x));
                activation::gated_forward(act, gate, up, unit);
                activation::gated_backward(act, gate, up, dy, d_gate);
                Bits::default().and(y).and(dx).and(unit).and(dy).and(d_gate)
            });
        }
    }
}

#[test]
fn gates() {
    for channels in LENGTHS.into_iter().skip(1) {
        let (rows, heads) = (3, 2);
        let x = fill(rows * heads * channels, 1);
        let (logits, weight, bias) = (fill(rows * heads, 2), fill(heads * channels, 3), fill(heads, 4));
        everywhere(&format!("gates on {channels}"), |arena| {
            let (xs, ls) = (arena.read(&x), arena.read(&logits));
            let (y, dy) = (arena.write(&x), arena.write(&x));
            gate::sigmoid_gate(y, ls, channels);
            let d_logits = gate::sigmoid_gate_backward(xs, ls, channels, dy);
            let (weight, bias) = (arena.read(&weight), arena.read(&bias));
            let made = gate::gate_logits(xs, weight, bias);
            let back = gate::gate_logits_backward(xs, weight, ls, heads);
            let bits = Bits::default().and(y).and(dy).and(&d_logits).and(&made).and(&back.x);
            bits.and_wide(&back.weight).and_wide(&back.bias)
        });
    }
}

#[test]
fn reductions() {
    for n in LENGTHS {
        let (a, b) = (fill(n, 1), fill(n, 2));
        everywhere(&format!("reductions of {n}"), |arena| {
            let (a, b) = (arena.read(&a), arena.read(&b));
            let sums = [math::sum_by(a, |v| v), math::sum_by2(a, b, |a, b| a * b), math::max(a)];
            let wide = [optimizer::sum_squares(a), optimizer::dot(a, b)];
            Bits::default().and(&sums).and_wide(&wide).and_wide(&[optimizer::sum_squared_differences(a, b)])
        });
    }
}

#[test]
fn attention_forward_and_backward() {
    for (tokens, d_head) in [(1, 1), (7, 16), (17, 7), (33, 33), (67, 5)] {
        let heads = 2;
        let n = tokens * heads * d_head;
        let half = d_head / 2;
        let (cos, sin) = (fill(tokens * half, 9), fill(tokens * half, 10));
        let gains = [fill(d_head, 5), fill(d_head, 6), fill(d_head, 7), fill(d_head, 8)];
        let clipped = attention::Softmax::Clipped { gamma: -0.1, eta: 1.1 };
        for compute in COMPUTES {
            for (causal, qk_norm, kv_heads, softcap, softmax) in [
                (false, 2, heads, 0.0, attention::Softmax::Standard),
                (true, 0, heads, 0.0, attention::Softmax::Standard),
                (true, 2, heads, 0.0, attention::Softmax::NullSlot),
                (true, 4, 1, 0.5, attention::Softmax::Standard),
                (true, 0, 1, 0.5, clipped),
            ] {
                let kv = tokens * kv_heads * d_head;
                let inputs = [fill(n, 1), fill(kv, 2), fill(kv, 3), fill(n, 4)];
                let shape = attention::Shape {
                    sequences: 1,
                    tokens,
                    heads,
                    kv_heads,
                    d_head,
                    causal,
                    window: if causal && heads == 2 { 3 } else { 0 },
                    scale: 0.3,
                    softcap,
                    softmax,
                    compute,
                };
                everywhere(&format!("{shape:?}"), |arena| {
                    let [q, k, v, d_out] = [0, 1, 2, 3].map(|i: usize| arena.read(&inputs[i]));
                    let norm = (qk_norm > 0).then(|| attention::QkNorm {
                        q_gain: arena.read(&gains[0]),
                        k_gain: arena.read(&gains[1]),
                        biases: (qk_norm > 2).then(|| (arena.read(&gains[2]), arena.read(&gains[3]))),
                        eps: 1e-3,
                        eps_inside: causal,
                    });
                    let rope = (kv_heads == 1).then(|| attention::Rope {
                        cos: arena.read(&cos),
                        sin: arena.read(&sin),
                        half,
                    });
                    let norm = attention::Prepare { norm, rope };
                    let out = arena.write(&vec![0.0; n]);
                    let lse = attention::forward(shape, q, k, v, norm, out);
                    let lse = arena.read(&lse);
                    let back = attention::backward(shape, q, k, v, norm, arena.read(out), lse, d_out);
                    let bits = Bits::default().and(out).and(lse).and(&back.q).and(&back.k).and(&back.v);
                    let (q_gain, k_gain) = back.gains.unwrap_or_default();
                    let (q_bias, k_bias) = back.biases.unwrap_or_default();
                    bits.and_wide(&q_gain).and_wide(&k_gain).and_wide(&q_bias).and_wide(&k_bias)
                });
            }
        }
    }
}

#[test]
fn head_and_cross_entropy() {
    for (rows, vocab, width) in [(1, 1, 1), (2, 33, 17), (17, 31, 16), (33, 67, 7)] {
        let (x, weight, targets) = (fill(rows * width, 1), fill(vocab * width, 2), tokens(rows, vocab, 3));
        for compute in COMPUTES {
            everywhere(&format!("head, {compute:?}, {:?}", (rows, vocab, width)), |arena| {
                let (x, weight, targets) = (arena.read(&x), arena.read(&weight), arena.read(&targets));
                let (alone, _) = xent::head_cross_entropy(compute, x, weight, targets, width, false);
                let (loss, back) = xent::head_cross_entropy(compute, x, weight, targets, width, true);
                let back = back.unwrap();
                Bits::default().and_wide(&[alone, loss]).and(&back.x).and(&back.weight)
            });
        }
    }
}

#[test]
fn embeddings() {
    let (vocab, context, count) = (5, 3, 8);
    for width in LENGTHS.into_iter().skip(1) {
        let (table, positions, dy) =
            (fill(vocab * width, 1), fill(context * width, 2), fill(count * width, 3));
        let mut ids = tokens(count, vocab, 4);
        ids[6] = vocab as u32 - 1;
        everywhere(&format!("embedding of {width}"), |arena| {
            let ids = arena.read(&ids);
            let (out, sums) = (arena.write(&dy), arena.write(&table));
            let positions = Some(arena.read(&positions));
            embedding::forward(arena.read(&table), positions, ids, context, width, out);
            embedding::backward(arena.read(&dy), |t| ids[t] as usize, width, sums);
            Bits::default().and(out).and(sums)
        });
    }
}

#[test]
fn passes_over_parameters() {
    let betas = optimizer::Betas::new(0.9, 0.99);
    let c = optimizer::AdamW { betas, step_size: 0.1, inv_sqrt_correction: 1.3, eps: 1e-8, keep: 0.9 };
    let descent =
        optimizer::Sgd { momentum: 0.9, take: 0.8, nesterov: Some(0.9), penalty: 0.2, lr: 0.1, keep: 0.9 };
    for n in LENGTHS {
        let inputs: [Vec<f32>; 3] = [fill(n, 1), fill(n, 2), fill(n, 3)];
        let squares: Vec<f32> = inputs[2].iter().map(|v| v * v).collect();
        everywhere(&format!("optimiser passes over {n}"), |arena| {
            let g = arena.read(&inputs[0]);
            let [p, m, m2, u] = [(); 4].map(|()| arena.write(&inputs[1]));
            let [v, v2] = [(); 2].map(|()| arena.write(&squares));
            optimizer::adamw(p, g, m, v, c);
            optimizer::adam_direction(g, m2, v2, u, betas, 1.1, 1e-8);
            let [decayed, added, moved, scaled, zipped] = [(); 5].map(|()| arena.write(&inputs[1]));
            optimizer::step_then_decay(decayed, g, 0.1, 0.9);
            optimizer::add_scaled(added, g, 0.1);
            optimizer::blend(moved, g, 0.9, 0.1);
            xent::scale_in_place(scaled, 0.3);
            threads::zip_map(g, arena.read(&inputs[2]), zipped, |a, b, out| {
                (0..out.len()).for_each(|i| out[i] = a[i] - b[i]);
            });
            let [descended, buffer] = [(); 2].map(|()| arena.write(&inputs[1]));
            optimizer::sgd(descended, g, buffer, descent);
            let bits = Bits::default().and(p).and(m).and(v).and(m2).and(v2).and(u);
            let bits = bits.and(descended).and(buffer);
            bits.and(decayed).and(added).and(moved).and(scaled).and(zipped)
        });
    }
}

#[test]
fn factored_moments() {
    for (rows, columns) in LENGTHS.into_iter().flat_map(|n| [(3, n), (n, 3)]) {
        let (x, by_row, by_column) = (fill(rows * columns, 1), fill(rows, 2), fill(columns, 3));
        everywhere(&format!("factored moments of {rows} x {columns}"), |arena| {
            let (x, u) = (arena.read(&x), arena.write(&x));
            let means = factored::mean_squares(x, rows, columns);
            factored::divide(x, arena.read(&by_row), arena.read(&by_column), 0.1, 1e-3, u);
            Bits::default().and_wide(&means.0).and_wide(&means.1).and(u)
        });
    }
}

#[test]
fn statistics_and_grids() {
    let grid = quant::Grid { scale: 0.0123, zero_point: 7.0, low: 0.0, high: 127.0 };
    for width in LENGTHS.into_iter().skip(1) {
        let x = fill(3 * width, 1);
        everywhere(&format!("statistics of {width}"), |arena| {
            let (slice, rounded) = (arena.read(&x), arena.write(&x));
            let moments = stats::channel_moments(slice, width);
            let tokens = stats::token_sums(slice, width);
            let sides = [stats::Side::Channels, stats::Side::Tokens];
            let grams = sides.map(|side| stats::gram_sums(slice, width, side).off_diagonal);
            let sequence = stats::sequence_moments(slice, 3 * width)[0];
            let (ratio, counted, skipped) = stats::max_median_sums(slice, width);
            quant::fake_quantise(rounded, grid);
            let integers: Vec<f64> = quant::quantise(slice, grid).into_iter().map(f64::from).collect();
            let bits = Bits::default().and_wide(&moments.squares()).and_wide(&moments.centred);
            let bits =
                bits.and(&[moments.max_abs]).and(rounded).and_wide(&tokens.directions).and_wide(&grams);
            let bits = bits.and_wide(&[tokens.excess, sequence.second, sequence.fourth]);
            let counts = [ratio, counted as f64, skipped as f64, quant::squared_error(slice, grid)];
            bits.and_wide(&counts).and_wide(&integers)
        });
    }
}
