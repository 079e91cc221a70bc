//! LayerNorm and RMSNorm: values, saved statistics, gradients.

use crate::common::{Bits, fill};
use crate::reference::{Norm, wide};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::norm::{Centre, RowScale, backward, forward};

const CENTRES: [Centre; 2] = [Centre::Mean, Centre::Nothing];
const EPS: f32 = 1e-5;

/// Rows around 2, so that the mean matters.
fn rows(n: usize, seed: u32) -> Vec<f32> {
    fill(n, seed).iter().map(|v| 2.0 + 3.0 * v).collect()
}

#[test]
fn values_and_gradients_follow_the_formula() {
    for width in LENGTHS.into_iter().skip(1) {
        for count in [0, 1, 3, 37] {
            let (x, dy) = (rows(width * count, 1), fill(width * count, 2));
            let (gain, bias) = (fill(width, 3), fill(width, 4));
            for centre in CENTRES {
                for (gain, bias) in
                    [(None, None), (Some(&gain), None), (None, Some(&bias)), (Some(&gain), Some(&bias))]
                {
                    let reference = Norm {
                        gain: gain.map(|g| wide(g)),
                        bias: bias.map(|b| wide(b)),
                        width,
                        centre,
                        eps: EPS as f64,
                    };
                    let (gain, bias) = (gain.map(Vec::as_slice), bias.map(Vec::as_slice));
                    let what = format!("{centre:?}, {count} rows of {width}");
                    let mut y = vec![f32::NAN; x.len()];
                    let scale = forward(&x, gain, bias, width, centre, EPS, &mut y);
                    let (want_y, want_mean, want_rstd) = reference.forward(&wide(&x));
                    want_y.check(&format!("y, {what}"), &y);
                    want_mean.check(&format!("mean, {what}"), &scale.mean);
                    want_rstd.check(&format!("rstd, {what}"), &scale.rstd);
                    let mut dx = vec![f32::NAN; x.len()];
                    let got = backward(&x, gain, &dy, &scale, width, centre, &mut dx);
                    let want = reference.backward(&wide(&x), &wide(&dy));
                    want.x.check(&format!("dx, {what}"), &dx);
                    want.gain.check_wide(&format!("dgain, {what}"), &got.gain);
                    want.bias.check_wide(&format!("dbias, {what}"), &got.bias);
                }
            }
        }
    }
}

#[test]
fn a_constant_row_is_finite() {
    for centre in CENTRES {
        for value in [0.0f32, -3.0] {
            let x = [value; 17];
            let mut y = [f32::NAN; 17];
            let scale = forward(&x, None, None, 17, centre, EPS, &mut y);
            let reference = Norm { gain: None, bias: None, width: 17, centre, eps: EPS as f64 };
            reference.forward(&wide(&x)).0.check("y", &y);
            let mut dx = [f32::NAN; 17];
            backward(&x, None, &fill(17, 1), &scale, 17, centre, &mut dx);
            assert!(dx.iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn nan_and_infinity_fill_their_row_and_no_other() {
    let (width, count, row) = (35, 5, 2);
    let (x, dy, gain) = (rows(width * count, 1), fill(width * count, 2), fill(width, 3));
    let run = |x: &[f32], dy: &[f32], centre| {
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let scale = forward(x, Some(&gain), None, width, centre, EPS, &mut y);
        let sums = backward(x, Some(&gain), dy, &scale, width, centre, &mut dx);
        (y, dx, sums)
    };
    let other_rows_equal = |a: &[f32], b: &[f32]| {
        (0..a.len()).filter(|i| i / width != row).all(|i| a[i].to_bits() == b[i].to_bits())
    };
    for centre in CENTRES {
        let clean = run(&x, &dy, centre);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for c in 0..width {
                let at = row * width + c;
                let mut bad = x.clone();
                bad[at] = special;
                let (y, dx, sums) = run(&bad, &dy, centre);
                assert!(!y[at].is_finite() && !dx[at].is_finite() && !sums.gain[c].is_finite());
                if special.is_nan() {
                    let range = row * width..(row + 1) * width;
                    assert!(y[range.clone()].iter().chain(&dx[range]).all(|v| v.is_nan()));
                }
                assert!(other_rows_equal(&y, &clean.0) && other_rows_equal(&dx, &clean.1));
                assert_eq!(sums.bias, clean.2.bias);

                let mut bad = dy.clone();
                bad[at] = special;
                let (_, dx, sums) = run(&x, &bad, centre);
                assert!(dx[row * width..(row + 1) * width].iter().all(|v| !v.is_finite()));
                assert!(other_rows_equal(&dx, &clean.1));
                for i in 0..width {
                    let finite = (sums.gain[i].is_finite(), sums.bias[i].is_finite());
                    assert_eq!(finite, (i != c, i != c), "gradients of channel {i}");
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (width, count) = (193, 1021);
    let (x, dy, gain, bias) =
        (rows(width * count, 1), fill(width * count, 2), fill(width, 3), fill(width, 4));
    for centre in CENTRES {
        same_on_any_threads("norm", || {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            let scale = forward(&x, Some(&gain), Some(&bias), width, centre, EPS, &mut y);
            let sums = backward(&x, Some(&gain), &dy, &scale, width, centre, &mut dx);
            let bits = Bits::default().and(&y).and(&dx).and(&scale.mean).and(&scale.rstd);
            bits.and_wide(&sums.gain).and_wide(&sums.bias)
        });
    }
}

#[test]
fn sizes_that_disagree_are_refused() {
    let x = [1.0f32; 12];
    let run = |gain: usize, bias: usize, width, y: usize| {
        move || {
            let (gain, bias, mut y) = (vec![1.0; gain], vec![1.0; bias], vec![0.0; y]);
            forward(&x, Some(&gain), Some(&bias), width, Centre::Mean, EPS, &mut y);
        }
    };
    run(4, 4, 4, 12)();
    refuses("no width", run(0, 0, 0, 12));
    refuses("a width that does not divide", run(5, 5, 5, 12));
    refuses("a short output", run(4, 4, 4, 8));
    refuses("a short gain", run(3, 4, 4, 12));
    refuses("a long gain", run(5, 4, 4, 12));
    refuses("a long bias", run(4, 5, 4, 12));
}

/// A backward over twelve elements.
fn back(gain: usize, width: usize, dy: usize, rows: usize) -> impl FnOnce() + std::panic::UnwindSafe {
    move || {
        let (gain, dy, mut dx) = (vec![1.0; gain], vec![1.0; dy], [0.0; 12]);
        let scale = RowScale { mean: vec![0.0; rows], rstd: vec![1.0; rows] };
        backward(&[1.0; 12], Some(&gain), &dy, &scale, width, Centre::Mean, &mut dx);
    }
}

#[test]
fn the_backward_refuses_what_is_too_short() {
    back(4, 4, 12, 3)();
    refuses("no width", back(0, 0, 12, 3));
    refuses("a short gradient", back(4, 4, 8, 3));
    refuses("a short gain", back(3, 4, 12, 3));
    refuses("too few statistics", back(4, 4, 12, 2));
}

#[test]
fn the_backward_refuses_what_is_too_long() {
    refuses("a long gain", back(5, 4, 12, 3));
    refuses("too many statistics", back(4, 4, 12, 4));
    refuses("a width that does not divide", back(5, 5, 12, 3));
}
