//! Passes over parameters and optimiser state, element by element, and sums over them.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U, depth};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::optimizer::{
    AdamW, Betas, adam_direction, adamw, add_scaled, blend, dot, step_then_decay, sum_squares,
};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f32 = 1e-3;

fn coefficients() -> AdamW {
    AdamW { betas: Betas::new(BETA1, BETA2), step_size: 0.02, inv_sqrt_correction: 1.7, eps: EPS, keep: 0.99 }
}

/// Parameters, gradient, first moment, second moment (not negative).
fn state(n: usize) -> [Vec<f32>; 4] {
    let square = |x: Vec<f32>| x.iter().map(|v| v * v).collect();
    [fill(n, 1), fill(n, 2), fill(n, 3), square(fill(n, 4))]
}

/// β1 m + (1 - β1) g, β2 v + (1 - β2) g², and the first one over `correction` √v + ε. The decays come in float64 and
/// are rounded once; each element then takes a handful of roundings.
fn moments(g: &[f32], m: &[f32], v: &[f32], correction: f64) -> [Expected; 3] {
    let mut out = <[Expected; 3]>::default();
    for ((&g, &m), &v) in g.iter().zip(m).zip(v) {
        let (g, m, v) = (g as f64, m as f64, v as f64);
        let (first, first_size) = (BETA1 * m + (1.0 - BETA1) * g, BETA1 * m.abs() + (1.0 - BETA1) * g.abs());
        let second = BETA2 * v + (1.0 - BETA2) * g * g;
        let denominator = correction * second.sqrt() + EPS as f64;
        out[0].push(first, 4.0 * U * first_size);
        out[1].push(second, 6.0 * U * second);
        out[2].push(first / denominator, 12.0 * U * first_size / denominator);
    }
    out
}

#[test]
fn adamw_follows_the_formula() {
    let c = coefficients();
    for n in LENGTHS {
        let [start, g, mut m, mut v] = state(n);
        let [want_m, want_v, u] = moments(&g, &m, &v, c.inv_sqrt_correction as f64);
        let mut want = Expected::default();
        for ((&p, &u), &error) in start.iter().zip(&u.value).zip(&u.error) {
            let (kept, step) = (p as f64 * c.keep as f64, c.step_size as f64);
            want.push(kept - step * u, step * error + 3.0 * U * (kept.abs() + step * u.abs()));
        }
        let mut p = start.clone();
        adamw(&mut p, &g, &mut m, &mut v, c);
        want_m.check("m", &m);
        want_v.check("v", &v);
        want.check("p", &p);
    }
}

#[test]
fn adam_direction_follows_the_formula() {
    for n in LENGTHS {
        let [_, g, mut m, mut v] = state(n);
        let want = moments(&g, &m, &v, 1.7f32 as f64);
        let mut u = vec![f32::NAN; n];
        adam_direction(&g, &mut m, &mut v, &mut u, Betas::new(BETA1, BETA2), 1.7, EPS);
        want[0].check("m", &m);
        want[1].check("v", &v);
        want[2].check("u", &u);
    }
}

#[test]
fn passes_over_two_vectors_follow_their_formulas() {
    for n in LENGTHS {
        let (y, x) = (fill(n, 1), fill(n, 2));
        let expect = |value: &dyn Fn(f64, f64) -> f64, size: &dyn Fn(f64, f64) -> f64| {
            let mut out = Expected::default();
            for (&y, &x) in y.iter().zip(&x) {
                out.push(value(y as f64, x as f64), 3.0 * U * size(y.abs() as f64, x.abs() as f64));
            }
            out
        };
        let (f, keep) = (0.3f32, 0.9f32);
        let (wide, wide_keep) = (f as f64, keep as f64);
        let mut got = y.clone();
        step_then_decay(&mut got, &x, f, keep);
        expect(&|y, x| (y - wide * x) * wide_keep, &|y, x| y + x).check("step_then_decay", &got);
        let mut got = y.clone();
        add_scaled(&mut got, &x, f);
        expect(&|y, x| y + wide * x, &|y, x| y + wide * x).check("add_scaled", &got);
        let mut got = y.clone();
        blend(&mut got, &x, keep, f);
        expect(&|y, x| wide_keep * y + wide * x, &|y, x| wide_keep * y + wide * x).check("blend", &got);
    }
}

#[test]
fn sums_over_many_pieces() {
    // Pieces have 4096 elements. Squares add in float64, products in float32 within a piece.
    for n in LENGTHS.into_iter().chain([4095, 4097, 20_011]) {
        let (a, b) = (fill(n, 1), fill(n, 2));
        let squares: f64 = a.iter().map(|&v| (v as f64).powi(2)).sum();
        let want = Expected { value: vec![squares], error: vec![1e-15 * n as f64 * squares] };
        want.check_wide("sum_squares", &[sum_squares(&a)]);
        let products: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| a as f64 * b as f64).collect();
        let size: f64 = products.iter().map(|p| p.abs()).sum();
        let bound = (depth(n.min(4096)) + 1.0) * U * size;
        let want = Expected { value: vec![products.iter().sum()], error: vec![bound] };
        want.check_wide("dot", &[dot(&a, &b)]);
    }
}

#[test]
fn nan_and_infinity_stay_where_they_are() {
    let n = 37;
    let run = |g: &[f32]| {
        let [mut p, _, mut m, mut v] = state(n);
        let (mut m2, mut v2, mut u) = (m.clone(), v.clone(), vec![0.0; n]);
        adamw(&mut p, g, &mut m, &mut v, coefficients());
        adam_direction(g, &mut m2, &mut v2, &mut u, Betas::new(BETA1, BETA2), 1.7, EPS);
        let [mut a, mut b, mut c] = [fill(n, 7), fill(n, 8), fill(n, 9)];
        step_then_decay(&mut a, g, 0.1, 0.9);
        add_scaled(&mut b, g, 0.1);
        blend(&mut c, g, 0.9, 0.1);
        [p, m, v, m2, v2, u, a, b, c]
    };
    let g = fill(n, 2);
    let clean = run(&g);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for i in 0..n {
            let mut bad = g.clone();
            bad[i] = special;
            for (which, (got, clean)) in run(&bad).iter().zip(&clean).enumerate() {
                assert!(!got[i].is_finite(), "output {which} of {special} is {}", got[i]);
                assert!((0..n).all(|j| j == i || got[j].to_bits() == clean[j].to_bits()));
            }
            assert!(!sum_squares(&bad).is_finite() && !dot(&bad, &clean[0]).is_finite());
            assert!(!dot(&clean[0], &bad).is_finite());
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let n = 3 * 64 * 1024 + 17;
    same_on_any_threads("optimizer", || {
        let [mut p, g, mut m, mut v] = state(n);
        adamw(&mut p, &g, &mut m, &mut v, coefficients());
        let mut u = vec![0.0; n];
        adam_direction(&g, &mut m, &mut v, &mut u, Betas::new(BETA1, BETA2), 1.7, EPS);
        step_then_decay(&mut p, &u, 0.1, 0.9);
        add_scaled(&mut p, &u, 0.1);
        blend(&mut p, &u, 0.9, 0.1);
        let bits = Bits::default().and(&p).and(&m).and(&v).and(&u);
        bits.and_wide(&[sum_squares(&p), dot(&p, &g)])
    });
}

#[test]
fn lengths_that_differ_are_refused() {
    for short in 0..4 {
        let lengths = move |i: usize| if i == short { 3 } else { 4 };
        let zeros = move |i: usize| vec![0.0f32; lengths(i)];
        refuses("adamw with one short slice", move || {
            adamw(&mut zeros(0), &zeros(1), &mut zeros(2), &mut zeros(3), coefficients());
        });
        refuses("adam_direction with one short slice", move || {
            let betas = Betas::new(BETA1, BETA2);
            adam_direction(&zeros(1), &mut zeros(2), &mut zeros(3), &mut zeros(0), betas, 1.0, EPS);
        });
    }
    refuses("step_then_decay", || step_then_decay(&mut [0.0; 4], &[0.0; 3], 1.0, 1.0));
    refuses("add_scaled", || add_scaled(&mut [0.0; 3], &[0.0; 4], 1.0));
    refuses("blend", || blend(&mut [0.0; 4], &[0.0; 3], 1.0, 1.0));
    refuses("dot", || _ = dot(&[0.0; 4], &[0.0; 3]));
}
