//! Passes over parameters and optimiser state, element by element, and sums over them.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::optimizer::{
    AdamW, Betas, Sgd, adam_direction, adamw, add_scaled, blend, dot, sgd, step_then_decay,
    sum_squared_differences, sum_squares,
};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f32 = 1e-3;

fn coefficients() -> AdamW {
    AdamW { betas: Betas::new(BETA1, BETA2), step_size: 0.02, inv_sqrt_correction: 1.7, eps: EPS, keep: 0.99 }
}

/// Descent as it is used: the first step, later ones, with either way of decay and either direction.
const DESCENTS: [Sgd; 4] = [
    Sgd { momentum: 0.0, take: 1.0, nesterov: None, penalty: 0.0, lr: 0.3, keep: 1.0 },
    Sgd { momentum: 0.9, take: 0.8, nesterov: None, penalty: 0.0, lr: 0.3, keep: 0.97 },
    Sgd { momentum: 0.9, take: 1.0, nesterov: Some(0.9), penalty: 0.4, lr: 0.3, keep: 1.0 },
    Sgd { momentum: 0.7, take: 0.3, nesterov: Some(0.6), penalty: 0.4, lr: 0.1, keep: 0.9 },
];

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
fn adamw_is_its_direction_and_a_decayed_step() {
    let c = coefficients();
    for n in LENGTHS {
        let [start, g, mut m, mut v] = state(n);
        let (mut p, mut m2, mut v2, mut u) = (start.clone(), m.clone(), v.clone(), vec![0.0; n]);
        adamw(&mut p, &g, &mut m, &mut v, c);
        adam_direction(&g, &mut m2, &mut v2, &mut u, c.betas, c.inv_sqrt_correction, c.eps);
        let mut p2 = start;
        blend(&mut p2, &u, c.keep, -c.step_size);
        let bits = |p: &[f32], m: &[f32], v: &[f32]| Bits::default().and(p).and(m).and(v);
        assert_eq!(bits(&p, &m, &v), bits(&p2, &m2, &v2));
    }
}

/// Without an ε the divisor can be 0. Then there is no step, only the decay; elsewhere nothing changes.
#[test]
fn without_a_second_moment_nothing_moves() {
    let n = 37;
    let run = |eps: f32, g: &[f32], v: &[f32]| {
        let c = AdamW { eps, ..coefficients() };
        let [mut p, _, mut m, _] = state(n);
        let (mut v, mut m2, mut v2, mut u) = (v.to_vec(), m.clone(), v.to_vec(), vec![f32::NAN; n]);
        adamw(&mut p, g, &mut m, &mut v, c);
        adam_direction(g, &mut m2, &mut v2, &mut u, c.betas, c.inv_sqrt_correction, eps);
        assert_eq!(Bits::default().and(&m).and(&v), Bits::default().and(&m2).and(&v2));
        [p, u, m, v]
    };
    let [start, g, m, v] = state(n);
    let clean = run(0.0, &g, &v);
    // A gradient of zero, and one whose square is less than any number above zero.
    for small in [0.0, 1e-30] {
        for i in 0..n {
            let (mut g, mut v) = (g.clone(), v.clone());
            (g[i], v[i]) = (small, 0.0);
            let [p, u, first, second] = run(0.0, &g, &v);
            assert_eq!([p[i], u[i], second[i]], [start[i] * coefficients().keep, 0.0, 0.0]);
            assert!((first[i] - 0.9 * m[i]).abs() <= 1e-6, "the first moment fades as ever");
            for (got, clean) in [p, u, first, second].iter().zip(&clean) {
                assert!((0..n).all(|j| j == i || got[j].to_bits() == clean[j].to_bits()));
            }
            let with_eps = run(0.5, &g, &v)[1][i];
            assert!((with_eps - 2.0 * 0.9 * m[i]).abs() <= 1e-6, "an ε divides as ever");
        }
    }
}

#[test]
fn descent_with_momentum_follows_the_formula() {
    for n in LENGTHS {
        let [start, g, held, _] = state(n);
        for c in DESCENTS {
            let [momentum, take, penalty, lr, keep] =
                [c.momentum, c.take, c.penalty, c.lr, c.keep].map(|x| x as f64);
            let (mut want_p, mut want_buffer) = (Expected::default(), Expected::default());
            for ((&p, &g), &b) in start.iter().zip(&g).zip(&held) {
                let (p, g, b) = (p as f64, g as f64, b as f64);
                let (gradient, gradient_size) = (g + penalty * p, g.abs() + penalty * p.abs());
                let buffer = momentum * b + take * gradient;
                let buffer_size = momentum * b.abs() + take * gradient_size;
                let (direction, size) = match c.nesterov.map(|lead| lead as f64) {
                    Some(lead) => (gradient + lead * buffer, gradient_size + lead * buffer_size),
                    None => (buffer, buffer_size),
                };
                // Two roundings make the gradient, two more the buffer, and two more each the direction and the step.
                want_buffer.push(buffer, 5.0 * U * buffer_size);
                want_p.push(keep * p - lr * direction, 9.0 * U * (keep * p.abs() + lr * size));
            }
            let (mut p, mut buffer) = (start.clone(), held.clone());
            sgd(&mut p, &g, &mut buffer, c);
            want_buffer.check(&format!("buffer of {c:?}"), &buffer);
            want_p.check(&format!("p of {c:?}"), &p);
        }
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
    // Pieces have 4096 elements. Products of float32 are exact in float64; differences, of numbers that share few bits
    // so that float32 would have to round, are all but exact.
    for n in LENGTHS.into_iter().chain([4095, 4097, 20_011]) {
        let (a, b): (_, Vec<f32>) = (fill(n, 1), fill(n, 2).iter().map(|v| 0.1 * v).collect());
        let expect = |term: &dyn Fn(f64, f64) -> f64| {
            let terms: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| term(a as f64, b as f64)).collect();
            let size: f64 = terms.iter().map(|t| t.abs()).sum();
            Expected { value: vec![terms.iter().sum()], error: vec![1e-15 * n as f64 * size] }
        };
        expect(&|a, _| a * a).check_wide("sum_squares", &[sum_squares(&a)]);
        expect(&|a, b| (a - b) * (a - b))
            .check_wide("sum_squared_differences", &[sum_squared_differences(&a, &b)]);
        expect(&|a, b| a * b).check_wide("dot", &[dot(&a, &b)]);
    }
}

#[test]
fn nan_and_infinity_stay_where_they_are() {
    let n = 37;
    let run = |[start, g, first, second]: &[Vec<f32>; 4]| {
        let mut out = Vec::new();
        let (mut p, mut m, mut v, mut u) = (start.clone(), first.clone(), second.clone(), vec![0.0; n]);
        adamw(&mut p, g, &mut m, &mut v, coefficients());
        out.extend([p, m, v]);
        let (mut m, mut v) = (first.clone(), second.clone());
        adam_direction(g, &mut m, &mut v, &mut u, Betas::new(BETA1, BETA2), 1.7, EPS);
        out.extend([m, v, u]);
        for c in DESCENTS {
            let (mut p, mut buffer) = (start.clone(), first.clone());
            sgd(&mut p, g, &mut buffer, c);
            out.extend([p, buffer]);
        }
        let [mut a, mut b, mut c] = [(); 3].map(|()| start.clone());
        step_then_decay(&mut a, g, 0.1, 0.9);
        add_scaled(&mut b, g, 0.1);
        blend(&mut c, g, 0.9, 0.1);
        out.extend([a, b, c]);
        out
    };
    let inputs = state(n);
    let clean = run(&inputs);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for input in 0..4 {
            for i in 0..n {
                let mut bad = inputs.clone();
                bad[input][i] = special;
                for (which, (got, clean)) in run(&bad).iter().zip(&clean).enumerate() {
                    // All depends on the gradient.
                    let reaches = input != 1 || !got[i].is_finite();
                    assert!(reaches, "output {which} of {special} is {}", got[i]);
                    assert!((0..n).all(|j| j == i || got[j].to_bits() == clean[j].to_bits()));
                }
                let bad = &bad[input];
                let both_ways = |f: fn(&[f32], &[f32]) -> f64| [f(bad, &clean[0]), f(&clean[0], bad)];
                let sums = [both_ways(dot), both_ways(sum_squared_differences)].concat();
                assert!(!sum_squares(bad).is_finite() && sums.iter().all(|s| !s.is_finite()));
            }
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
        sgd(&mut p, &g, &mut m, DESCENTS[3]);
        let bits = Bits::default().and(&p).and(&m).and(&v).and(&u);
        bits.and_wide(&[sum_squares(&p), dot(&p, &g), sum_squared_differences(&p, &g)])
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
        if short < 3 {
            refuses("sgd with one short slice", move || {
                sgd(&mut zeros(0), &zeros(1), &mut zeros(2), DESCENTS[0]);
            });
        }
    }
    refuses("step_then_decay", || step_then_decay(&mut [0.0; 4], &[0.0; 3], 1.0, 1.0));
    refuses("add_scaled", || add_scaled(&mut [0.0; 3], &[0.0; 4], 1.0));
    refuses("blend", || blend(&mut [0.0; 4], &[0.0; 3], 1.0, 1.0));
    refuses("sum_squared_differences", || _ = sum_squared_differences(&[0.0; 3], &[0.0; 4]));
    refuses("dot", || _ = dot(&[0.0; 4], &[0.0; 3]));
}
