//! The head with its cross-entropy: loss and both gradients.

use crate::common::{Bits, fill, tokens};
use crate::reference::{Expected, U, head_cross_entropy as reference, wide};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::gemm::Compute;
use evenkeel_kernels::xent::{head_cross_entropy, scale_in_place};

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// Fails unless the loss, with and without gradients, and the gradients are what the formula says.
fn check(compute: Compute, x: &[f32], weight: &[f32], targets: &[u32], width: usize) {
    let shape = (targets.len(), weight.len() / width, width);
    let what = |name: &str| format!("{name}, {compute:?}, (rows, vocab, width) = {shape:?}");
    let want = reference(compute, &wide(x), &wide(weight), targets, width);
    let (loss, got) = head_cross_entropy(compute, x, weight, targets, width, true);
    let (loss_only, none) = head_cross_entropy(compute, x, weight, targets, width, false);
    let got = got.expect("gradients were asked for");
    assert!(none.is_none());
    want.loss.check_wide(&what("loss"), &[loss]);
    want.loss.check_wide(&what("loss alone"), &[loss_only]);
    want.x.check(&what("dx"), &got.x);
    want.weight.check(&what("dW"), &got.weight);
}

#[test]
fn loss_and_gradients_follow_the_formula() {
    for compute in COMPUTES {
        for vocab in [1, 15, 16, 17, 33, 127] {
            for width in [1, 16, 31, 61] {
                for rows in [1, 2, 17, 33] {
                    let (x, weight) = (fill(rows * width, 1), fill(vocab * width, 2));
                    check(compute, &x, &weight, &tokens(rows, vocab, 3), width);
                }
            }
        }
        // Chunks have 512 rows.
        for rows in [511, 513, 1031] {
            let (x, weight) = (fill(rows * 17, 1), fill(67 * 17, 2));
            check(compute, &x, &weight, &tokens(rows, 67, 3), 17);
        }
    }
}

#[test]
fn large_logits_neither_overflow_nor_vanish() {
    // Logits of ±400: e^400 is no float32, and a target far below the peak has a loss of hundreds.
    let (rows, vocab, width) = (9, 33, 4);
    let large = |x: Vec<f32>| x.iter().map(|v| 12.0 * v).collect::<Vec<f32>>();
    let (x, weight) = (large(fill(rows * width, 1)), large(fill(vocab * width, 2)));
    check(Compute::F32, &x, &weight, &tokens(rows, vocab, 3), width);
}

#[test]
fn nan_and_infinity_reach_the_loss_and_stay_in_their_row() {
    let (rows, vocab, width) = (5, 33, 17);
    let (x, weight, targets) = (fill(rows * width, 1), fill(vocab * width, 2), tokens(rows, vocab, 3));
    for compute in COMPUTES {
        let run = |x: &[f32], w: &[f32]| {
            let alone = head_cross_entropy(compute, x, w, &targets, width, false).0;
            let (loss, gradients) = head_cross_entropy(compute, x, w, &targets, width, true);
            (alone, loss, gradients.unwrap())
        };
        let clean = run(&x, &weight).2;
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..rows * width {
                let mut bad = x.clone();
                bad[at] = special;
                let (alone, loss, got) = run(&bad, &weight);
                assert!(alone.is_nan() && loss.is_nan() && got.weight.iter().all(|v| v.is_nan()));
                for (i, (got, clean)) in got.x.iter().zip(&clean.x).enumerate() {
                    let own = i / width == at / width;
                    assert!(if own { got.is_nan() } else { got.to_bits() == clean.to_bits() });
                }
            }
            for at in 0..vocab * width {
                let mut bad = weight.clone();
                bad[at] = special;
                let (alone, loss, got) = run(&x, &bad);
                // A logit of -infinity is a probability of 0: the loss is infinite where that is the target's, finite
                // where it is not.
                let want = reference(compute, &wide(&x), &wide(&bad), &targets, width).loss.value[0];
                for loss in [alone, loss] {
                    assert!(if want.is_finite() { loss.is_finite() } else { loss == want || loss.is_nan() });
                }
                if special.is_nan() {
                    assert!(got.x.iter().chain(&got.weight).all(|v| v.is_nan()));
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (rows, vocab, width) = (1031, 307, 67);
    let (x, weight, targets) = (fill(rows * width, 1), fill(vocab * width, 2), tokens(rows, vocab, 3));
    for compute in COMPUTES {
        same_on_any_threads("head_cross_entropy", || {
            let (loss, gradients) = head_cross_entropy(compute, &x, &weight, &targets, width, true);
            let gradients = gradients.unwrap();
            Bits::default().and_wide(&[loss]).and(&gradients.x).and(&gradients.weight)
        });
    }
}

#[test]
fn scaling_is_one_rounding() {
    for n in LENGTHS.into_iter().chain([64 * 1024 + 3]) {
        let start = fill(n, 1);
        let mut want = Expected::default();
        start.iter().for_each(|&v| {
            let scaled = v as f64 * 0.3f32 as f64;
            want.push(scaled, U * scaled.abs());
        });
        let mut x = start.clone();
        scale_in_place(&mut x, 0.3);
        want.check("scale_in_place", &x);
    }
    let mut x = [f32::NAN, f32::INFINITY];
    scale_in_place(&mut x, 0.3);
    assert!(x[0].is_nan() && x[1] == f32::INFINITY);
}

#[test]
fn sizes_that_disagree_are_refused() {
    let run = |x: usize, weight: usize, targets: &'static [u32], width: usize| {
        move || {
            head_cross_entropy(Compute::F32, &vec![1.0; x], &vec![1.0; weight], targets, width, true);
        }
    };
    run(8, 12, &[0, 2], 4)();
    refuses("a target outside the vocabulary", run(8, 12, &[0, 3], 4));
    refuses("no rows", run(0, 12, &[], 4));
    refuses("half a row of the head", run(8, 13, &[0, 2], 4));
    refuses("a row too many", run(12, 12, &[0, 2], 4));
    refuses("no vocabulary", run(8, 0, &[0, 0], 4));
    refuses("no width", run(0, 0, &[0, 0], 0));
}
