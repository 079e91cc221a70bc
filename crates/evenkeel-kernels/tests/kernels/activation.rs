//! The nonlinearities and the elementary functions under them, with the accuracy that `math` states.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U};
use crate::{LENGTHS, refuses};
use evenkeel_kernels::activation::{Activation, backward, forward};
use evenkeel_kernels::math;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

const ALL: [Activation; 6] = [
    Activation::Relu,
    Activation::LeakyRelu(0.1),
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::SquaredRelu,
];

/// erf by e^(-x²) 2/√π Σ 2ⁿ x^(2n+1) / (2n+1)!!, whose terms are all of one sign: accurate to float64.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Numbers from 1e-30 to beyond `limit`, of both signs, closer together towards zero, and zero.
fn sweep(limit: f32) -> impl Iterator<Item = f32> {
    (1e-30f32.to_bits()..limit.to_bits() + 7_919)
        .step_by(7_919)
        .flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)])
        .chain([0.0, -0.0])
}

#[test]
fn exp_is_within_two_ulp() {
    for x in sweep(87.2).chain((0..1500).map(|i| 87.2 + i as f32 * 1e-3)) {
        let want = (x as f64).exp();
        let got = math::exp(x) as f64;
        let ulp = 2f64.powi(want.log2().floor() as i32 - 23);
        assert!((got - want).abs() <= 2.0 * ulp, "exp({x:e}) is {got:e}, {} ulp off", (got - want) / ulp);
    }
    assert_eq!(math::exp(-87.4), 0.0);
    assert_eq!(math::exp(88.71), f32::INFINITY);
    assert_eq!((math::exp(f32::NEG_INFINITY), math::exp(f32::INFINITY)), (0.0, f32::INFINITY));
    assert_eq!((math::exp(f32::MIN), math::exp(f32::MAX)), (0.0, f32::INFINITY));
    assert!(math::exp(f32::NAN).is_nan());
}

/// Fails with the worst of all arguments.
fn within_2e_7(name: &str, f: fn(f32) -> f32, exact: fn(f64) -> f64) {
    let off = |x: f32| (f(x) as f64 - exact(x as f64)).abs();
    let worst = sweep(20.0).max_by(|&x, &y| off(x).total_cmp(&off(y))).unwrap();
    assert!(off(worst) < 2e-7, "{name}({worst:e}) is {:e} off", off(worst));
    for x in [f32::INFINITY, f32::MAX] {
        assert_eq!([f(x), f(-x)], [1.0, -1.0], "{name}({x})");
    }
    assert!(f(f32::NAN).is_nan(), "{name}(NaN)");
}

#[test]
fn tanh_is_within_2e_7() {
    within_2e_7("tanh", math::tanh, f64::tanh);
}

#[test]
fn erf_is_within_2e_7() {
    within_2e_7("erf", math::erf, erf);
}

#[test]
fn reductions_have_no_favourite_length() {
    for n in LENGTHS {
        let x = fill(n, 1);
        let y = fill(n, 2);
        let sum = |f: &dyn Fn(usize) -> f64| {
            let (value, size) = (0..n).fold((0.0, 0.0), |(v, s), i| (v + f(i), s + f(i).abs()));
            Expected { value: vec![value], error: vec![(crate::reference::depth(n) + 1.0) * U * size] }
        };
        sum(&|i| x[i] as f64).check("sum", &[math::sum_by(&x, |v| v)]);
        sum(&|i| x[i] as f64 * y[i] as f64).check("product", &[math::sum_by2(&x, &y, |a, b| a * b)]);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(math::max(&x), max);
        for i in 0..n {
            let mut bad = x.clone();
            bad[i] = f32::NAN;
            assert!(math::max(&bad).is_nan() && math::sum_by(&bad, |v| v).is_nan());
            bad[i] = f32::INFINITY;
            assert!(math::max(&bad) == f32::INFINITY && math::sum_by(&bad, |v| v) == f32::INFINITY);
        }
    }
}

/// act(x) and act'(x) with the error that 2e-7 in erf and tanh, 2 ulp in exp and the other roundings amount to.
fn reference(act: Activation, x: f64) -> [(f64, f64); 2] {
    match act {
        Activation::Relu => [(x.max(0.0), 0.0), (if x > 0.0 { 1.0 } else { 0.0 }, 0.0)],
        Activation::LeakyRelu(slope) => {
            let slope = if x > 0.0 { 1.0 } else { slope as f64 };
            [(slope * x, U * x.abs()), (slope, U)]
        }
        Activation::SquaredRelu => {
            let x = x.max(0.0);
            [(x * x, U * x * x), (2.0 * x, 2.0 * U * x)]
        }
        Activation::Silu => {
            // exp is 2 ulp off, the sum and the quotient half a one each.
            let open = 1.0 / (1.0 + (-x).exp());
            let slope = open * (1.0 + x * (1.0 - open));
            let slope_error = open * (1.0 + x.abs()) * 12.0 * U;
            [(x * open, x.abs() * open * 8.0 * U), (slope, slope_error)]
        }
        Activation::Gelu => {
            let cdf = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
            let value_error = x.abs() * (1e-7 + 4.0 * U);
            [(x * cdf, value_error), (cdf + x * density, 1e-7 + 10.0 * U)]
        }
        Activation::GeluTanh => {
            let scale = (2.0 / PI).sqrt();
            let t = (scale * (x + 0.044_715 * x.powi(3))).tanh();
            let inner = scale * (1.0 + 3.0 * 0.044_715 * x * x);
            let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
            let slope_error = 1e-7 + 5.0 * U + 0.5 * x.abs() * inner * (4e-7 + 8.0 * U);
            [(0.5 * x * (1.0 + t), x.abs() * (1e-7 + 4.0 * U)), (slope, slope_error)]
        }
    }
}

fn slopes(act: Activation, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut saved = x.to_vec();
    if !act.backward_needs_input() {
        forward(act, &mut saved);
    }
    let mut dx = dy.to_vec();
    backward(act, &saved, &mut dx);
    dx
}

#[test]
fn values_and_gradients_follow_the_formula() {
    for act in ALL {
        for n in LENGTHS {
            let x: Vec<f32> = fill(n, 1).iter().map(|v| 6.0 * v).collect();
            let dy = fill(n, 2);
            let (mut want_y, mut want_dx) = (Expected::default(), Expected::default());
            for (&x, &dy) in x.iter().zip(&dy) {
                let [(y, y_error), (slope, slope_error)] = reference(act, x as f64);
                want_y.push(y, y_error);
                want_dx.push(slope * dy as f64, (slope_error + U * slope.abs()) * dy.abs() as f64);
            }
            let mut y = x.clone();
            forward(act, &mut y);
            want_y.check(&format!("{act:?} of {n}"), &y);
            want_dx.check(&format!("{act:?}' of {n}"), &slopes(act, &x, &dy));
        }
    }
}

#[test]
fn far_from_zero_they_are_zero_or_the_identity() {
    for act in [Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
        for big in [20.0f32, 1e4, 1e18] {
            let mut y = [big, -big];
            forward(act, &mut y);
            assert_eq!(y, [big, 0.0], "{act:?}");
            assert_eq!(slopes(act, &[big, -big], &[3.0, 3.0]), [3.0, 0.0], "{act:?}'");
        }
    }
    // SiLU comes there later.
    let mut y = [1e4f32, -1e4];
    forward(Activation::Silu, &mut y);
    assert_eq!((y, slopes(Activation::Silu, &[1e4, -1e4], &[3.0, 3.0])), ([1e4, 0.0], vec![3.0, 0.0]));
}

#[test]
fn nan_and_infinity_stay_where_they_are() {
    for act in ALL {
        let x = fill(37, 1);
        let dy = fill(37, 2);
        let run = |x: &[f32], dy: &[f32]| {
            let mut y = x.to_vec();
            forward(act, &mut y);
            [y, slopes(act, x, dy)]
        };
        let clean = run(&x, &dy);
        for i in 0..37 {
            let mut bad = x.clone();
            bad[i] = f32::INFINITY;
            assert_eq!(run(&bad, &dy)[0][i], f32::INFINITY);
            bad[i] = f32::NAN;
            let mut bad_dy = dy.clone();
            bad_dy[i] = f32::NAN;
            let (from_x, from_dy) = (run(&bad, &dy), run(&x, &bad_dy));
            assert!(from_x[0][i].is_nan());
            if !act.backward_needs_input() {
                // A step function of its saved output: it lets the gradient through or makes it 0.
                assert!(from_dy[1][i].is_nan() || x[i] <= 0.0, "{act:?}");
            } else {
                assert!(from_x[1][i].is_nan() && from_dy[1][i].is_nan());
            }
            for got in [from_x, from_dy] {
                for (got, clean) in got.iter().zip(&clean) {
                    let same = |j: usize| got[j].to_bits() == clean[j].to_bits();
                    assert!((0..37).all(|j| j == i || same(j)));
                }
            }
        }
    }
}

#[test]
fn a_value_does_not_depend_on_its_neighbours() {
    // Vector code and the code for what is left over must agree, or one token's result depends on the batch.
    for act in ALL {
        let x: Vec<f32> = fill(67, 1).iter().map(|v| 4.0 * v).collect();
        let mut whole = x.clone();
        forward(act, &mut whole);
        let mut single = x.clone();
        single.chunks_mut(1).for_each(|x| forward(act, x));
        assert!(Bits::default().and(&whole) == Bits::default().and(&single), "{act:?}");
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    for act in ALL {
        refuses("a longer gradient", move || backward(act, &[1.0; 3], &mut [1.0; 4]));
        refuses("a shorter gradient", move || backward(act, &[1.0; 4], &mut [1.0; 3]));
    }
}
