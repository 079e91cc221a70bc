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
            p[i] = p[i] * c.keep - c.step_size * (m[i] / denominator);
        }
    }
}

/// The Adam moments of SOAP in the rotated space: `m` and `v` take `g`, `u = m / (√v + ε)`.
///
/// # Panics
/// If lengths differ.
pub fn adam_direction(g: &[f32], m: &mut [f32], v: &mut [f32], u: &mut [f32], betas: Betas, eps: f32) {
    assert!(u.len() == g.len() && m.len() == g.len() && v.len() == g.len());
    u.par_chunks_mut(PIECE)
        .zip(g.par_chunks(PIECE))
        .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
        .for_each(|((u, g), (m, v))| direction_piece(g, m, v, u, betas, eps));
}

multiversion! {
    fn direction_piece(
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        u: &mut [f32],
        betas: Betas,
        eps: f32,
    ) {
        let n = g.len();
        let (m, v, u) = (&mut m[..n], &mut v[..n], &mut u[..n]);
        for i in 0..n {
            m[i] = betas.beta1 * m[i] + betas.one_minus_beta1 * g[i];
            v[i] = betas.beta2 * v[i] + betas.one_minus_beta2 * g[i] * g[i];
            u[i] = m[i] / (v[i].sqrt() + eps);
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

/// `y = y + weight · (x - y)`, in parallel: an exponential moving average.
///
/// # Panics
/// If lengths differ.
pub fn lerp(y: &mut [f32], x: &[f32], weight: f32) {
    assert_eq!(y.len(), x.len());
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += weight * (x - *y);
        }
    });
}

/// Σ x² in float64, lanes and pieces added in a fixed order. NaN or infinite if any entry is.
pub fn sum_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(4096).map(square_piece).collect();
    parts.iter().sum()
}

multiversion! {
    fn square_piece(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let chunks = x.chunks_exact(8);
        let rest = chunks.remainder();
        for chunk in chunks {
            for l in 0..8 {
                let v = chunk[l] as f64;
                lanes[l] += v * v;
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&v| v as f64 * v as f64).sum::<f64>()
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
