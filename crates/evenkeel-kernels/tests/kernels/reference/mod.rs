//! The formulas in float64, each value with a bound on a float32 kernel's error.
//!
//! Bounds are first order in u = 2⁻²⁴ with small constants rounded up: a sum of n terms in a fixed tree of depth D is
//! off by at most D u Σ|terms| (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), a product, quotient or
//! square root by u of itself, and an error in an input passes on through the derivative.

mod attention;
mod head;
mod norm;

pub(crate) use attention::Attention;
pub(crate) use head::head_cross_entropy;
pub(crate) use norm::Norm;

use evenkeel_kernels::gemm::Compute;

/// Unit roundoff of float32.
pub(crate) const U: f64 = 1.0 / (1u32 << 24) as f64;

/// Float64 values, and how far from them a kernel may be.
#[derive(Clone, Default)]
pub(crate) struct Expected {
    pub(crate) value: Vec<f64>,
    pub(crate) error: Vec<f64>,
}

impl Expected {
    /// `n` zeros that are exact.
    pub(crate) fn zeros(n: usize) -> Self {
        Self { value: vec![0.0; n], error: vec![0.0; n] }
    }

    /// Appends a value and its bound.
    pub(crate) fn push(&mut self, value: f64, error: f64) {
        self.value.push(value);
        self.error.push(error);
    }

    /// Fails at the first value that is out of bounds. Where a NaN or an infinity is expected, nothing else will do.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, got: &[f32]) {
        self.check_wide(what, &wide(got));
    }

    /// As `check`, for results that the kernel gives in float64.
    #[track_caller]
    pub(crate) fn check_wide(&self, what: &str, got: &[f64]) {
        assert_eq!(got.len(), self.value.len(), "{what}: length");
        for (i, (&got, (&want, &error))) in got.iter().zip(self.value.iter().zip(&self.error)).enumerate() {
            let good = if want.is_finite() {
                assert!(error.is_finite(), "{what}: the bound of element {i} allows anything");
                (got - want).abs() <= error
            } else {
                got == want || (got.is_nan() && want.is_nan())
            };
            assert!(good, "{what}: element {i} is {got:e}, not {want:e} within {error:e}");
        }
    }
}

/// To float64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| v as f64).collect()
}

/// Roundings on the longest way through `math::sum_by` of n terms: sixteen lanes folded in four steps, or the rest.
pub(crate) fn depth(n: usize) -> f64 {
    ((n / 16 + 4).max(n % 16) + 1) as f64
}

/// The stated bound of a matrix product with inner dimension k, in units of Σ|a||b|.
pub(crate) fn product_bound(compute: Compute, k: usize) -> f64 {
    let rounding = match compute {
        Compute::F32 => 0.0,
        Compute::Bf16 => 2f64.powi(-7) + 2f64.powi(-16),
    };
    rounding + (k + 2) as f64 * U
}

/// The gradient of `f` at `x` by central differences, to show that the references' gradients are gradients.
pub(crate) fn numeric_gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let old = x[i];
            x[i] = old + h;
            let up = f(&x);
            x[i] = old - h;
            let down = f(&x);
            x[i] = old;
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// Fails unless two gradients agree to the accuracy of central differences.
#[track_caller]
pub(crate) fn same_gradient(what: &str, got: &[f64], numeric: &[f64]) {
    assert_eq!(got.len(), numeric.len());
    for (g, n) in got.iter().zip(numeric) {
        assert!((g - n).abs() <= 1e-7 * (1.0 + n.abs()), "{what}: {g} but numerically {n}");
    }
}
