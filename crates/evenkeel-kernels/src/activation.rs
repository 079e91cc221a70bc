//! Elementwise nonlinearities, forward and backward.

use crate::isa::multiversion;
use crate::math;

/// √(2/π), of the tanh form of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
/// 1/√(2π), of the derivative of the exact GELU.
const NORMAL_DENSITY: f32 = 0.398_942_3;

/// A nonlinearity between the two matrices of the MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// max(0, x)
    Relu,
    /// x above 0, slope · x below; the slope is at least 0
    LeakyRelu(f32),
    /// x Φ(x), exact
    Gelu,
    /// x Φ(x) by the tanh approximation
    GeluTanh,
    /// x σ(x)
    Silu,
    /// max(0, x)²
    SquaredRelu,
}

impl Activation {
    /// Whether the backward can be computed from the output alone, so that the input need not be kept.
    pub fn backward_needs_input(self) -> bool {
        !matches!(self, Activation::Relu | Activation::LeakyRelu(_))
    }
}

/// x ← act(x) in place, on the calling thread.
pub fn forward(act: Activation, x: &mut [f32]) {
    match act {
        Activation::Relu => relu(x),
        Activation::LeakyRelu(slope) => leaky_relu(x, slope),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Silu => silu(x),
        Activation::SquaredRelu => squared_relu(x),
    }
}

/// dy ← dy · act'(x) in place. `saved` is the activation's output for ReLU and leaky ReLU, its input otherwise.
pub fn backward(act: Activation, saved: &[f32], dy: &mut [f32]) {
    assert_eq!(saved.len(), dy.len());
    match act {
        Activation::Relu => relu_backward(saved, dy),
        Activation::LeakyRelu(slope) => leaky_relu_backward(saved, dy, slope),
        Activation::Gelu => gelu_backward(saved, dy),
        Activation::GeluTanh => gelu_tanh_backward(saved, dy),
        Activation::Silu => silu_backward(saved, dy),
        Activation::SquaredRelu => squared_relu_backward(saved, dy),
    }
}

/// y ← act(g) · u for the two halves of a gated MLP, on the calling thread.
pub fn gated_forward(act: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    y.copy_from_slice(gate);
    forward(act, y);
    multiply(y, up);
}

/// The gradients of [`gated_forward`]: `d_gate` ← dy · u · act'(g) and `dy`, which becomes that of u, dy · act(g).
pub fn gated_backward(act: Activation, gate: &[f32], up: &[f32], dy: &mut [f32], d_gate: &mut [f32]) {
    assert!(gate.len() == dy.len() && up.len() == dy.len() && d_gate.len() == dy.len());
    let mut value = gate.to_vec();
    forward(act, &mut value);
    d_gate.copy_from_slice(dy);
    multiply(d_gate, up);
    backward(act, if act.backward_needs_input() { gate } else { &value }, d_gate);
    multiply(dy, &value);
}

multiversion! {
    fn multiply(x: &mut [f32], factor: &[f32]) {
        for (x, f) in x.iter_mut().zip(factor) {
            *x *= f;
        }
    }
}

multiversion! {
    fn leaky_relu(x: &mut [f32], slope: f32) {
        for v in x {
            *v = if *v < 0.0 { slope * *v } else { *v };
        }
    }
}

multiversion! {
    fn leaky_relu_backward(y: &[f32], dy: &mut [f32], slope: f32) {
        for (d, &y) in dy.iter_mut().zip(y) {
            // Where the slope is 0 the output says no more than that the input was not positive.
            *d = if y <= 0.0 { slope * *d } else { *d };
        }
    }
}

multiversion! {
    fn silu(x: &mut [f32]) {
        for v in x {
            *v *= math::sigmoid(*v);
        }
    }
}

multiversion! {
    fn silu_backward(x: &[f32], dy: &mut [f32]) {
        for (d, &x) in dy.iter_mut().zip(x) {
            let s = math::sigmoid(x);
            *d *= s * (1.0 + x * (1.0 - s));
        }
    }
}

multiversion! {
    fn squared_relu(x: &mut [f32]) {
        for v in x {
            *v = if *v < 0.0 { 0.0 } else { *v * *v };
        }
    }
}

multiversion! {
    fn squared_relu_backward(x: &[f32], dy: &mut [f32]) {
        for (d, &x) in dy.iter_mut().zip(x) {
            *d *= if x < 0.0 { 0.0 } else { 2.0 * x };
        }
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
        for act in [
            Activation::Relu,
            Activation::LeakyRelu(0.1),
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::SquaredRelu,
        ] {
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
