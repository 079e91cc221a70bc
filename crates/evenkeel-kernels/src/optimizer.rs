//! Passes over parameters, gradients and optimiser state: one read and one write of each.

use crate::isa::multiversion;
use crate::threads::PIECE;
use rayon::prelude::*;

/// Decays of the two moments, with 1 - β rounded once from float64: `1 - 0.999f32` is off by 1e-5 of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Betas {
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
}

impl Betas {
    /// Of β1 and β2.
    pub fn new(beta1: f64, beta2: f64) -> Self {
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
        }
    }
}

/// Coefficients of one AdamW step, with everything that depends on the step count folded in.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Decays of the first and second moment.
    pub betas: Betas,
    /// lr / (1 - β1^n).
    pub step_size: f32,
    /// 1 / √(1 - β2^n).
    pub inv_sqrt_correction: f32,
    /// Added to the corrected √v.
    pub eps: f32,
    /// 1 - lr · weight decay.
    pub keep: f32,
}

/// One AdamW step (Loshchilov and Hutter, arXiv 1711.05101) in place on `p`, `m`, `v`.
///
/// # Panics
/// If lengths differ.
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamW) {
    assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len());
    p.par_chunks_mut(PIECE)
        .zip(g.par_chunks(PIECE))
        .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
        .for_each(|((p, g), (m, v))| adamw_piece(p, g, m, v, c));
}

multiversion! {
    fn adamw_piece(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamW) {
        let n = p.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            m[i] = c.betas.beta1 * m[i] + c.betas.one_minus_beta1 * g[i];
            v[i] = c.betas.beta2 * v[i] + c.betas.one_minus_beta2 * g[i] * g[i];
            let denominator = v[i].sqrt() * c.inv_sqrt_correction + c.eps;
            p[i] = p[i] * c.keep - c.step_size * quotient(m[i], denominator);
        }
    }
}

/// Adam's moments and the direction they give: `m` and `v` take `g`, `u = m / (√v · inv_sqrt_correction + ε)`.
///
/// # Panics
/// If lengths differ.
pub fn adam_direction(
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    u: &mut [f32],
    betas: Betas,
    inv_sqrt_correction: f32,
    eps: f32,
) {
    assert!(u.len() == g.len() && m.len() == g.len() && v.len() == g.len());
    u.par_chunks_mut(PIECE)
        .zip(g.par_chunks(PIECE))
        .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
        .for_each(|((u, g), (m, v))| direction_piece(g, m, v, u, betas, inv_sqrt_correction, eps));
}

multiversion! {
    fn direction_piece(
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        u: &mut [f32],
        betas: Betas,
        inv_sqrt_correction: f32,
        eps: f32,
    ) {
        let n = g.len();
        let (m, v, u) = (&mut m[..n], &mut v[..n], &mut u[..n]);
        for i in 0..n {
            m[i] = betas.beta1 * m[i] + betas.one_minus_beta1 * g[i];
            v[i] = betas.beta2 * v[i] + betas.one_minus_beta2 * g[i] * g[i];
            u[i] = quotient(m[i], v[i].sqrt() * inv_sqrt_correction + eps);
        }
    }
}

/// a / b for b ≥ 0, and 0 where b is 0: without an ε nothing says how far a parameter without a second moment
/// should go, and 0 / 0 would spread.
#[inline(always)]
fn quotient(a: f32, b: f32) -> f32 {
    let q = a / b;
    if b == 0.0 { 0.0 } else { q }
}

/// Coefficients of one step of gradient descent with momentum.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Factor on the buffer; 0 at the first step, when the buffer becomes the gradient.
    pub momentum: f32,
    /// Weight of the gradient in the buffer.
    pub take: f32,
    /// Factor on the buffer in the direction g + lead · buffer; `None` moves along the buffer itself.
    pub nesterov: Option<f32>,
    /// L2 penalty, added to the gradient as `penalty · p`.
    pub penalty: f32,
    /// Learning rate.
    pub lr: f32,
    /// 1 - lr · decoupled weight decay.
    pub keep: f32,
}

/// One step of stochastic gradient descent with momentum, in place on `p` and `buffer`.
///
/// # Panics
/// If lengths differ.
pub fn sgd(p: &mut [f32], g: &[f32], buffer: &mut [f32], c: Sgd) {
    assert!(p.len() == g.len() && buffer.len() == g.len());
    p.par_chunks_mut(PIECE)
        .zip(g.par_chunks(PIECE))
        .zip(buffer.par_chunks_mut(PIECE))
        .for_each(|((p, g), buffer)| sgd_piece(p, g, buffer, c));
}

multiversion! {
    fn sgd_piece(p: &mut [f32], g: &[f32], buffer: &mut [f32], c: Sgd) {
        let n = p.len();
        let (g, buffer) = (&g[..n], &mut buffer[..n]);
        for i in 0..n {
            let gradient = g[i] + c.penalty * p[i];
            buffer[i] = c.momentum * buffer[i] + c.take * gradient;
            let direction = match c.nesterov {
                Some(lead) => gradient + lead * buffer[i],
                None => buffer[i],
            };
            p[i] = p[i] * c.keep - c.lr * direction;
        }
    }
}

/// `p = (p - step · u) · keep`: the step first, the decay after it, as SOAP's reference does.
///
/// # Panics
/// If lengths differ.
pub fn step_then_decay(p: &mut [f32], u: &[f32], step: f32, keep: f32) {
    assert_eq!(p.len(), u.len());
    p.par_chunks_mut(PIECE).zip(u.par_chunks(PIECE)).for_each(|(p, u)| {
        for (p, u) in p.iter_mut().zip(u) {
            *p = (*p - step * u) * keep;
        }
    });
}

/// `y = x · factor + y`, in parallel.
///
/// # Panics
/// If lengths differ.
pub fn add_scaled(y: &mut [f32], x: &[f32], factor: f32) {
    assert_eq!(y.len(), x.len());
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += factor * x;
        }
    });
}

/// `y = decay · y + weight · x`, in parallel.
///
/// # Panics
/// If lengths differ.
pub fn blend(y: &mut [f32], x: &[f32], decay: f32, weight: f32) {
    assert_eq!(y.len(), x.len());
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = decay * *y + weight * x;
        }
    });
}

/// Σ x² in float64, lanes and pieces added in a fixed order. NaN or infinite if any entry is.
pub fn sum_squares(x: &[f32]) -> f64 {
    dot(x, x)
}

/// Σ (a - b)², as [`sum_squares`].
///
/// # Panics
/// If lengths differ.
pub fn sum_squared_differences(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let parts: Vec<f64> =
        a.par_chunks(4096).zip(b.par_chunks(4096)).map(|(a, b)| difference_piece(a, b)).collect();
    parts.iter().sum()
}

multiversion! {
    fn difference_piece(a: &[f32], b: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..8 {
                let d = a[l] as f64 - b[l] as f64;
                lanes[l] += d * d;
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| (a as f64 - b as f64).powi(2));
        lanes.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

/// Σ a b, as [`sum_squares`].
///
/// # Panics
/// If lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let parts: Vec<f64> = a.par_chunks(4096).zip(b.par_chunks(4096)).map(|(a, b)| dot_piece(a, b)).collect();
    parts.iter().sum()
}

multiversion! {
    fn dot_piece(a: &[f32], b: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..8 {
                lanes[l] += a[l] as f64 * b[l] as f64;
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| a as f64 * b as f64);
        lanes.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_on_integers() {
        let x: Vec<f32> = (0..10_000).map(|i| (i % 7) as f32).collect();
        let want: f64 = x.iter().map(|&v| (v * v) as f64).sum();
        assert_eq!(sum_squares(&x), want);
        assert_eq!(dot(&x, &x), want);
        assert!(sum_squares(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn adamw_moves_against_the_gradient_by_the_learning_rate_at_first() {
        let (mut p, mut m, mut v) = ([1.0f32], [0.0], [0.0]);
        let c = AdamW {
            betas: Betas::new(0.9, 0.999),
            step_size: 0.01 / (1.0 - 0.9),
            inv_sqrt_correction: 1.0 / (1.0f32 - 0.999).sqrt(),
            eps: 0.0,
            keep: 1.0,
        };
        adamw(&mut p, &[3.0], &mut m, &mut v, c);
        assert!((p[0] - 0.99).abs() < 1e-5);
    }
}
