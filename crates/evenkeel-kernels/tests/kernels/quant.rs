//! Rounding to an integer grid.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U, wide};
use crate::{LENGTHS, same_on_any_threads};
use evenkeel_kernels::quant::{Grid, fake_quantise, quantise, squared_error};

/// Steps that are and are not powers of two, symmetric and not, narrow enough that some numbers are clamped.
const GRIDS: [Grid; 4] = [
    Grid { scale: 0.03125, zero_point: 0.0, low: -127.0, high: 127.0 },
    Grid { scale: 0.0123, zero_point: 117.0, low: 0.0, high: 255.0 },
    Grid { scale: 0.3, zero_point: -3.0, low: -8.0, high: 7.0 },
    Grid { scale: 1e-4, zero_point: 0.0, low: -128.0, high: 127.0 },
];

/// The integer of x, and the only other one that the rounding of x / s to float32 can make of it.
fn integers(x: f32, grid: Grid) -> [f64; 2] {
    let ratio = x as f64 / grid.scale as f64;
    let q = |r: f64| (r.round_ties_even() + grid.zero_point as f64).clamp(grid.low as f64, grid.high as f64);
    let slack = ratio.abs() * U;
    // A quotient that float32 rounds to a tie goes to even.
    let near = if (ratio - slack).round() != (ratio + slack).round() {
        q(ratio + slack * if q(ratio) > ratio + grid.zero_point as f64 { -1.0 } else { 1.0 })
    } else {
        q(ratio)
    };
    [q(ratio), near]
}

#[test]
fn values_are_the_nearest_on_the_grid() {
    for grid in GRIDS {
        for n in LENGTHS.into_iter().chain([2049]) {
            let mut x: Vec<f32> = fill(n, 1).iter().map(|v| 2.0 * v).collect();
            // Ties, up to where the narrow grids clamp.
            x.iter_mut().step_by(3).enumerate().for_each(|(i, v)| *v = (i as f32 - 8.5) * grid.scale);
            let got = quantise(&x, grid);
            let mut rounded = x.clone();
            fake_quantise(&mut rounded, grid);
            let mut want = Expected::zeros(1);
            for ((&x, &q), &hat) in x.iter().zip(&got).zip(&rounded) {
                assert!(integers(x, grid).contains(&(q as f64)), "{x:e} on {grid:?} became {q}");
                let value = grid.scale as f64 * (q as f64 - grid.zero_point as f64);
                assert!((hat as f64 - value).abs() <= U * value.abs(), "{x:e} on {grid:?} became {hat:e}");
                let e = x as f64 - value;
                want.value[0] += e * e;
                let off = U * (value.abs() + e.abs());
                want.error[0] += 2.0 * e.abs() * off + off * off + 1e-13 * e * e;
            }
            want.check_wide("squared_error", &[squared_error(&x, grid)]);
        }
    }
}

#[test]
fn a_number_on_the_grid_stays() {
    for grid in GRIDS {
        let mut x: Vec<f32> =
            (grid.low as i32..=grid.high as i32).map(|q| grid.scale * (q as f32 - grid.zero_point)).collect();
        let before = x.clone();
        fake_quantise(&mut x, grid);
        assert_eq!(x, before);
        assert_eq!(squared_error(&x, grid), 0.0);
    }
}

#[test]
fn nan_stays_and_infinity_is_clamped() {
    for grid in GRIDS {
        let x = fill(37, 1);
        let ends = [grid.low, grid.high].map(|q| grid.scale * (q - grid.zero_point));
        let mut clean = x.clone();
        fake_quantise(&mut clean, grid);
        for (special, want) in [(f32::NAN, f32::NAN), (f32::NEG_INFINITY, ends[0]), (f32::INFINITY, ends[1])]
        {
            for i in 0..x.len() {
                let mut bad = x.clone();
                bad[i] = special;
                let cost = squared_error(&bad, grid);
                assert!(!cost.is_finite() && cost.is_nan() == special.is_nan());
                fake_quantise(&mut bad, grid);
                assert!(bad[i] == want || bad[i].is_nan() && want.is_nan());
                assert!((0..x.len()).all(|j| j == i || bad[j].to_bits() == clean[j].to_bits()));
            }
        }
        let all = quantise(&[f32::NEG_INFINITY, f32::INFINITY], grid);
        assert_eq!(wide(&[all[0] as f32, all[1] as f32]), wide(&[grid.low, grid.high]));
    }
}

#[test]
fn threads_change_no_bit() {
    let x = fill(3 * 64 * 1024 + 17, 1);
    same_on_any_threads("fake_quantise", || {
        let mut x = x.clone();
        fake_quantise(&mut x, GRIDS[1]);
        Bits::default().and(&x).and_wide(&[squared_error(&x, GRIDS[2])])
    });
}
