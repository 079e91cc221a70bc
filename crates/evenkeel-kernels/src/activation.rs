//! Elementwise nonlinearities, forward and backward.

use crate::isa::multiversion;
use crate::math;

/// √(2/π), of the tanh form of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
/// 1/√(2π), of the derivative of the exact GELU.
const NORMAL_DENSITY: f32 = 0.398_942_3;

/// A nonlinearity between the two matrices of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(0, x)
    Relu,
    /// x Φ(x), exact
    Gelu,
    /// x Φ(x) by the tanh approximation
    GeluTanh,
}

impl Activation {
    /// Whether the backward can be computed from the output alone, so that the input need not be kept.
    pub fn backward_needs_input(self) -> bool {
        self != Activation::Relu
    }
}

/// x ← act(x) in place, on the calling thread.
pub fn forward(act: Activation, x: &mut [f32]) {
    match act {
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
    }
}

/// dy ← dy · act'(x) in place. `saved` is the activation's output for ReLU, its input otherwise.
pub fn backward(act: Activation, saved: &[f32], dy: &mut [f32]) {
    assert_eq!(saved.len(), dy.len());
    match act {
        Activation::Relu => relu_backward(saved, dy),
        Activation::Gelu => gelu_backward(saved, dy),
        Activation::GeluTanh => gelu_tanh_backward(saved, dy),
    }
}

multiversion! {
    fn relu(x: &mut [f32]) {
        for v in x {
            // Written so that NaN stays NaN.
            *v = if *v < 0.0 { 0.0 } else { *v };
        }
    }
}

multiversion! {
    fn relu_backward(y: &[f32], dy: &mut [f32]) {
        for (d, &y) in dy.iter_mut().zip(y) {
            *d = if y <= 0.0 { 0.0 } else { *d };
        }
    }
}

multiversion! {
    fn gelu(x: &mut [f32]) {
        for v in x {
            *v *= 0.5 * (1.0 + math::erf(*v * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

multiversion! {
    fn gelu_backward(x: &[f32], dy: &mut [f32]) {
        for (d, &x) in dy.iter_mut().zip(x) {
            let cdf = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
            *d *= cdf + x * NORMAL_DENSITY * math::exp(-0.5 * x * x);
        }
    }
}

multiversion! {
    fn gelu_tanh(x: &mut [f32]) {
        for v in x {
            let t = math::tanh(GELU_SCALE * (*v + 0.044_715 * *v * *v * *v));
            *v *= 0.5 * (1.0 + t);
        }
    }
}

multiversion! {
    fn gelu_tanh_backward(x: &[f32], dy: &mut [f32]) {
        for (d, &x) in dy.iter_mut().zip(x) {
            let t = math::tanh(GELU_SCALE * (x + 0.044_715 * x * x * x));
            let inner = GELU_SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
            *d *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backward_is_the_derivative_of_forward() {
        for act in [Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
            for i in -40..40 {
                let x = i as f32 * 0.11 + 0.05;
                let f = |v: f32| {
                    let mut y = [v];
                    forward(act, &mut y);
                    y[0] as f64
                };
                let h = 1e-2;
                let numeric = (f(x + h) - f(x - h)) / (2.0 * h as f64);
                let mut saved = [x];
                if !act.backward_needs_input() {
                    forward(act, &mut saved);
                }
                let mut d = [1.0];
                backward(act, &saved, &mut d);
                assert!((d[0] as f64 - numeric).abs() < 2e-3, "{act:?} at {x}");
            }
            let mut nan = [f32::NAN];
            forward(act, &mut nan);
            assert!(nan[0].is_nan());
        }
    }
}
