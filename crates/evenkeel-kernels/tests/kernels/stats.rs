//! The sums behind the outlier metrics.

use crate::common::{Bits, fill};
use crate::reference::{Expected, wide};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::stats::{channel_sums, max_median_sums};

/// Float64 sums of n terms, with room for the order of addition.
fn near(value: Vec<f64>, n: usize) -> Expected {
    let error = value.iter().map(|v| 2.3e-16 * (n + 4) as f64 * v.abs()).collect();
    Expected { value, error }
}

#[test]
fn channel_sums_are_exact_to_float64() {
    for width in LENGTHS.into_iter().skip(1) {
        // Pieces have 256 rows.
        for rows in [0, 1, 17, 256, 521] {
            let x = fill(rows * width, 1);
            let got = channel_sums(&x, width);
            let squares =
                (0..width).map(|c| x.iter().skip(c).step_by(width).map(|&v| (v as f64).powi(2)).sum());
            near(squares.collect(), rows).check_wide("squares", &got.squares);
            assert_eq!(got.max_abs, x.iter().fold(0.0, |m: f32, v| m.max(v.abs())));
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
            let clean = channel_sums(&x, width);
            x[at] = special;
            let got = channel_sums(&x, width);
            assert!(got.max_abs.is_nan() == special.is_nan() && !got.max_abs.is_finite());
            for (c, (got, clean)) in got.squares.iter().zip(&clean.squares).enumerate() {
                assert!(if c == at % width { !got.is_finite() } else { got == clean });
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
        let sums = channel_sums(&x, 193);
        let (ratio, counted, skipped) = max_median_sums(&x, 193);
        let bits = Bits::default().and_wide(&sums.squares).and(&[sums.max_abs]);
        bits.and_wide(&[ratio, counted as f64, skipped as f64])
    });
}

#[test]
fn widths_that_do_not_divide_are_refused() {
    for width in [0, 5] {
        refuses("channel_sums", move || _ = channel_sums(&[1.0; 12], width));
        refuses("max_median_sums", move || _ = max_median_sums(&[1.0; 12], width));
    }
}
