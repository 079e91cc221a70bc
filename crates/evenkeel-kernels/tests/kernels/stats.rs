//! The sums behind the outlier metrics.

use crate::common::{Bits, fill};
use crate::reference::{Expected, wide};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::stats::{
    ChannelMoments, GramSums, Side, channel_moments, gram_add, gram_sums, magnitudes_above, max_median_sums,
    median_magnitude, row_squares, sequence_moments, token_sums,
};

/// Float64 sums of n terms, with room for the order of addition.
fn near(value: Vec<f64>, n: usize) -> Expected {
    let error = value.iter().map(|v| 2.3e-16 * (n + 4) as f64 * v.abs()).collect();
    Expected { value, error }
}

/// Each channel's mean, Σ (x - mean)², Σ (x - row mean)² and Σ x², from the formulas.
fn plain_moments(x: &[f32], width: usize) -> [Vec<f64>; 4] {
    let x = wide(x);
    let rows = x.len() / width;
    let column = |c: usize| x.iter().skip(c).step_by(width).copied();
    let row_means: Vec<f64> = x.chunks_exact(width).map(|r| r.iter().sum::<f64>() / width as f64).collect();
    let mean: Vec<f64> = (0..width).map(|c| column(c).sum::<f64>() / rows as f64).collect();
    let about = |c: usize| column(c).map(|v| (v - mean[c]).powi(2)).sum();
    let centred = |c: usize| column(c).zip(&row_means).map(|(v, m)| (v - m).powi(2)).sum();
    let deviations = (0..width).map(about).collect();
    let squares = (0..width).map(|c| column(c).map(|v| v * v).sum()).collect();
    [mean.clone(), deviations, (0..width).map(centred).collect(), squares]
}

fn agree(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs(), "{what} {i}: {got}, not {want}");
    }
}

#[test]
fn channel_moments_are_right_to_float64() {
    for width in LENGTHS.into_iter().skip(1) {
        // Groups of 8 rows; pieces of 65536 elements.
        for rows in [1, 7, 8, 17, 256, 521] {
            let x = fill(rows * width, 1);
            let got = channel_moments(&x, width);
            let [mean, deviations, centred, squares] = plain_moments(&x, width);
            let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14);
            assert!(close(&got.mean, &mean), "{width} {rows}");
            // Of rows with one channel the centred sum is 0 on both sides.
            agree("deviations", &got.deviations, &deviations, 1e-11);
            agree("centred", &got.centred, &centred, 1e-11);
            near(squares, rows + 64).check_wide("squares", &got.squares());
            assert_eq!(got.rows, rows as u64);
            assert_eq!(got.max_abs, x.iter().fold(0.0, |m: f32, v| m.max(v.abs())));
        }
    }
    assert_eq!(channel_moments(&[], 3).rows, 0);
}

#[test]
fn a_far_mean_and_a_far_first_value_cost_no_digits() {
    let (rows, width) = (3000, 5);
    let noise = fill(rows * width, 1);
    // Channel means up to 3e4 times the spread; the first row far away from all others; huge and tiny scales.
    for scale in [1.0f32, 1e30, 1e-30] {
        for first in [0.0f32, 1e4] {
            let value = |(i, v): (usize, &f32)| {
                let offset = if i < width { first } else { [0.0, 300.0, -3e4, 7.0, 1.0][i % width] };
                (v + offset) * scale
            };
            let x: Vec<f32> = noise.iter().enumerate().map(value).collect();
            let got = channel_moments(&x, width);
            let [_, deviations, centred, squares] = plain_moments(&x, width);
            agree("deviations", &got.deviations, &deviations, 1e-9);
            agree("centred", &got.centred, &centred, 1e-9);
            agree("squares", &got.squares(), &squares, 1e-10);
        }
    }
}

#[test]
fn parts_join_to_the_whole() {
    let (rows, width) = (700, 33);
    let x: Vec<f32> = fill(rows * width, 2).iter().enumerate().map(|(i, v)| v + (i % width) as f32).collect();
    let whole = channel_moments(&x, width);
    for cut in [0, 1, 9, 350, 699, 700] {
        let mut joined = ChannelMoments::default();
        joined.merge(&channel_moments(&x[..cut * width], width));
        joined.merge(&channel_moments(&x[cut * width..], width));
        assert_eq!((joined.rows, joined.max_abs), (whole.rows, whole.max_abs));
        agree("mean", &joined.mean, &whole.mean, 1e-11);
        agree("deviations", &joined.deviations, &whole.deviations, 1e-11);
        agree("centred", &joined.centred, &whole.centred, 1e-12);
    }
}

#[test]
fn gram_matrices_of_both_sides() {
    for (rows, width) in [(1, 1), (1, 9), (5, 3), (17, 33), (64, 65), (131, 66), (70, 257)] {
        let x = fill(rows * width, 3);
        let wide = wide(&x);
        let dot = |side: Side, i: usize, j: usize| -> f64 {
            match side {
                Side::Channels => (0..rows).map(|r| wide[r * width + i] * wide[r * width + j]).sum(),
                Side::Tokens => (0..width).map(|c| wide[i * width + c] * wide[j * width + c]).sum(),
            }
        };
        for (side, m) in [(Side::Channels, width), (Side::Tokens, rows)] {
            let mut gram = vec![1.0; m * m];
            gram_add(&x, width, side, &mut gram);
            let mut want = GramSums::default();
            for i in 0..m {
                for j in 0..=i {
                    let g = dot(side, i, j);
                    assert!((gram[i * m + j] - 1.0 - g).abs() < 1e-12, "{side:?} {i} {j}");
                    gram[i * m + j] -= 1.0;
                    if i == j {
                        want.trace += g;
                        want.diagonal += g * g;
                    } else {
                        want.off_diagonal += 2.0 * g * g;
                    }
                }
            }
            for got in [gram_sums(&x, width, side), GramSums::of_lower(&gram, m)] {
                let (got, want) = (
                    [got.trace, got.diagonal, got.off_diagonal],
                    [want.trace, want.diagonal, want.off_diagonal],
                );
                agree("Gram sums", &got, &want, 1e-11);
            }
        }
        let norm = |side| {
            let sums = gram_sums(&x, width, side);
            sums.diagonal + sums.off_diagonal
        };
        agree("trace identity", &[norm(Side::Tokens)], &[norm(Side::Channels)], 1e-13);
    }
}

#[test]
fn tokens_and_sequences() {
    for width in LENGTHS.into_iter().skip(2) {
        for rows in [1, 17, 521] {
            let mut x = fill(rows * width, 4);
            // Every third row constant, every fifth zero.
            x.chunks_exact_mut(width).step_by(3).for_each(|row| row.fill(0.3));
            x.chunks_exact_mut(width).step_by(5).for_each(|row| row.fill(0.0));
            let (mut excess, mut spread, mut some) = (0.0, 0, 0);
            let mut directions = vec![0.0; width];
            for row in wide(&x).chunks_exact(width) {
                let mean = row.iter().sum::<f64>() / width as f64;
                let second: f64 = row.iter().map(|v| (v - mean).powi(2)).sum();
                let fourth: f64 = row.iter().map(|v| v.powi(4)).sum();
                let square: f64 = row.iter().map(|v| v * v).sum();
                if row.iter().any(|v| *v != row[0]) {
                    let variance = second / (width - 1) as f64;
                    excess += (fourth / width as f64 / variance.powi(2) - 3.0).max(0.0);
                    spread += 1;
                }
                if square > 0.0 {
                    directions.iter_mut().zip(row).for_each(|(d, v)| *d += v / square.sqrt());
                    some += 1;
                }
            }
            let got = token_sums(&x, width);
            assert_eq!((got.excess_rows, got.direction_rows), (spread, some));
            agree("excess", &[got.excess], &[excess], 1e-10);
            assert!(got.directions.iter().zip(&directions).all(|(a, b)| (a - b).abs() < 1e-11));
            let squares: Vec<f64> =
                wide(&x).chunks_exact(width).map(|r| r.iter().map(|v| v * v).sum()).collect();
            agree("row squares", &row_squares(&x, width), &squares, 1e-13);
            let one = sequence_moments(&x, x.len());
            let mean = wide(&x).iter().sum::<f64>() / x.len() as f64;
            let power = |p| wide(&x).iter().map(|v| (v - mean).powi(p)).sum::<f64>();
            agree("sequence", &[one[0].second, one[0].fourth], &[power(2), power(4)], 1e-10);
            assert_eq!(sequence_moments(&x, width).len(), rows);
        }
    }
}

#[test]
fn magnitudes_by_rank() {
    for n in [1, 2, 15, 4096, 10_001] {
        let x = fill(n, 5);
        let mut sorted: Vec<f32> = x.iter().map(|v| v.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        assert_eq!(median_magnitude(&x), sorted[(n - 1) / 2]);
        for k in [1, 3, 20] {
            let found = magnitudes_above(&x, 0.0, k);
            let mut sizes: Vec<f32> = found.iter().map(|&i| x[i].abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            let want: Vec<f32> = sorted.iter().rev().take(k).copied().collect();
            assert_eq!(sizes[..want.len()], want);
            assert!(found.is_sorted());
        }
    }
}

#[test]
fn max_over_the_lower_median() {
    for width in LENGTHS.into_iter().skip(1) {
        for rows in [0, 1, 17, 521] {
            let mut x = fill(rows * width, 1);
            // Every third row more than half zeros: left out.
            for row in x.chunks_exact_mut(width).step_by(3) {
                row[width / 3..].fill(-0.0);
            }
            let (mut sum, mut counted, mut skipped) = (0.0, 0, 0);
            for row in x.chunks_exact(width) {
                let mut sorted: Vec<f64> = wide(row).iter().map(|v| v.abs()).collect();
                sorted.sort_by(f64::total_cmp);
                let median = sorted[(width - 1) / 2];
                if median == 0.0 {
                    skipped += 1;
                } else {
                    sum += sorted[width - 1] / median;
                    counted += 1;
                }
            }
            let got = max_median_sums(&x, width);
            assert_eq!((got.1, got.2), (counted, skipped));
            near(vec![sum], rows).check_wide("sum", &[got.0]);
        }
    }
}

#[test]
fn nan_and_infinity_show_and_stay_in_their_channel() {
    let (width, rows) = (35, 5);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..width * rows {
            let mut x = fill(width * rows, 1);
            let clean = channel_moments(&x, width);
            x[at] = special;
            let got = channel_moments(&x, width);
            assert!(got.max_abs.is_nan() == special.is_nan() && !got.max_abs.is_finite());
            for (c, (got, clean)) in got.squares().iter().zip(&clean.squares()).enumerate() {
                assert!(if c == at % width { !got.is_finite() } else { got == clean });
            }
            // The mean of its row is gone, and with it every centred sum.
            assert!(!got.deviations[at % width].is_finite() && got.centred.iter().all(|v| !v.is_finite()));
            let tokens = token_sums(&x, width);
            assert!(!tokens.excess.is_finite() && !tokens.directions[at % width].is_finite());
            let sequence = sequence_moments(&x, width)[at / width];
            assert!(!sequence.fourth.is_finite() && !sequence.max_abs.is_finite());
            for side in [Side::Channels, Side::Tokens] {
                assert!(!gram_sums(&x, width, side).trace.is_finite());
            }
            let (sum, counted, _) = max_median_sums(&x, width);
            assert!(sum.is_nan() == special.is_nan() && !sum.is_finite());
            assert_eq!(counted, rows as u64);
        }
    }
}

#[test]
fn nan_shows_in_a_row_that_would_be_left_out() {
    // "The sum is NaN if a row holds NaN", whatever the median of the rest.
    for row in [[0.0, 0.0, f32::NAN], [f32::NAN, 0.0, 0.0]] {
        let (sum, counted, skipped) = max_median_sums(&row, 3);
        assert!(sum.is_nan(), "{row:?} gave {sum}, {counted} counted, {skipped} left out");
    }
}

#[test]
fn threads_change_no_bit() {
    let x = fill(193 * 1021, 1);
    same_on_any_threads("stats", || {
        let moments = channel_moments(&x, 193);
        let (ratio, counted, skipped) = max_median_sums(&x, 193);
        let bits = Bits::default().and_wide(&moments.mean).and_wide(&moments.deviations);
        let bits = bits.and_wide(&moments.centred).and(&[moments.max_abs]);
        let tokens = token_sums(&x, 193);
        let bits =
            bits.and_wide(&tokens.directions).and_wide(&[tokens.excess]).and_wide(&row_squares(&x, 193));
        let grams = [Side::Channels, Side::Tokens].map(|side| gram_sums(&x[..193 * 300], 193, side));
        let bits = bits.and_wide(&grams.map(|g| g.off_diagonal)).and_wide(&grams.map(|g| g.diagonal));
        bits.and_wide(&[ratio, counted as f64, skipped as f64])
    });
}

#[test]
fn widths_that_do_not_divide_are_refused() {
    for width in [0, 5] {
        refuses("channel_moments", move || _ = channel_moments(&[1.0; 12], width));
        refuses("token_sums", move || _ = token_sums(&[1.0; 12], width));
        refuses("sequence_moments", move || _ = sequence_moments(&[1.0; 12], width));
        refuses("gram_sums", move || _ = gram_sums(&[1.0; 12], width, Side::Channels));
        refuses("max_median_sums", move || _ = max_median_sums(&[1.0; 12], width));
    }
}
