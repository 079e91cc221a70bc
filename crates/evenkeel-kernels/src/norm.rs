//! LayerNorm and RMSNorm over the last axis, forward and backward.
//!
//! `y = (x - μ) r · gain + bias` with `r = 1/√(σ² + ε)` (LayerNorm) or μ = 0 and `r = 1/√(mean x² + ε)`
//! (RMSNorm). Gain and bias are optional: without a gain, RMSNorm is the parameter-free SRMSNorm.
//! The backward uses the saved μ and r of each row; with g = dy · gain and x̂ = (x - μ) r,
//! `dx = r (g - mean(g) - x̂ mean(g x̂))`, where RMSNorm has no mean(g) term.

use crate::isa::multiversion;
use crate::math;
use crate::threads::{self, PIECE};
use rayon::prelude::*;

/// What is removed before scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Centre {
    /// Subtract the row's mean (LayerNorm).
    Mean,
    /// Subtract nothing (RMSNorm).
    Nothing,
}

/// Mean and reciprocal scale of each row, kept for the backward.
#[derive(Clone, Debug, Default)]
pub struct RowScale {
    /// Row means; zero for RMSNorm.
    pub mean: Vec<f32>,
    /// 1/√(variance + ε) of each row.
    pub rstd: Vec<f32>,
}

/// `y = norm(x)` for rows of `width`; returns what the backward needs.
///
/// # Panics
/// If sizes disagree.
pub fn forward(
    x: &[f32],
    gain: Option<&[f32]>,
    bias: Option<&[f32]>,
    width: usize,
    centre: Centre,
    eps: f32,
    y: &mut [f32],
) -> RowScale {
    assert!(width > 0 && x.len() == y.len() && x.len().is_multiple_of(width));
    assert!(gain.is_none_or(|g| g.len() == width) && bias.is_none_or(|b| b.len() == width));
    let rows = x.len() / width;
    let mut scale = RowScale { mean: vec![0.0; rows], rstd: vec![0.0; rows] };
    let step = threads::rows_per_piece(width, PIECE);
    y.par_chunks_mut(step * width)
        .zip(x.par_chunks(step * width))
        .zip(scale.mean.par_chunks_mut(step).zip(scale.rstd.par_chunks_mut(step)))
        .for_each(|((y, x), (mean, rstd))| {
            for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                (mean[i], rstd[i]) = forward_row(x, gain, bias, centre, eps, y);
            }
        });
    scale
}

multiversion! {
    /// One row; returns its mean and 1/√(variance + ε).
    pub(crate) fn forward_row(
        x: &[f32],
        gain: Option<&[f32]>,
        bias: Option<&[f32]>,
        centre: Centre,
        eps: f32,
        y: &mut [f32],
    ) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = match centre {
            Centre::Mean => math::sum_by(x, |v| v) / n,
            Centre::Nothing => 0.0,
        };
        let variance = math::sum_by(x, |v| (v - mean) * (v - mean)) / n;
        let rstd = 1.0 / (variance + eps).sqrt();
        match gain {
            Some(gain) => {
                for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
                    *y = (x - mean) * rstd * g;
                }
            }
            None => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * rstd;
                }
            }
        }
        if let Some(bias) = bias {
            for (y, &b) in y.iter_mut().zip(bias) {
                *y += b;
            }
        }
        (mean, rstd)
    }
}

/// Gradients of gain and bias, each of `width`, in float64.
pub struct NormGradients {
    /// Σ over rows of dy · x̂.
    pub gain: Vec<f64>,
    /// Σ over rows of dy.
    pub bias: Vec<f64>,
}

/// `dx` from `dy`, and the gradients of gain and bias summed over rows in a fixed order.
///
/// # Panics
/// If sizes disagree.
pub fn backward(
    x: &[f32],
    gain: Option<&[f32]>,
    dy: &[f32],
    scale: &RowScale,
    width: usize,
    centre: Centre,
    dx: &mut [f32],
) -> NormGradients {
    assert!(width > 0 && x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    assert!(gain.is_none_or(|g| g.len() == width) && scale.mean.len() == rows && scale.rstd.len() == rows);
    let step = threads::rows_per_piece(width, PIECE);
    let parts: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(step * width)
        .enumerate()
        .map(|(i, dx)| {
            let first = i * step;
            let mut dgain = vec![0.0; width];
            let mut dbias = vec![0.0; width];
            for (r, dx) in dx.chunks_exact_mut(width).enumerate() {
                let row = first + r;
                let range = row * width..(row + 1) * width;
                backward_row(
                    &x[range.clone()],
                    gain,
                    &dy[range],
                    scale.mean[row],
                    scale.rstd[row],
                    centre,
                    dx,
                    &mut dgain,
                    &mut dbias,
                );
            }
            (dgain, dbias)
        })
        .collect();
    let mut out = NormGradients { gain: vec![0.0; width], bias: vec![0.0; width] };
    for (dgain, dbias) in parts {
        for c in 0..width {
            out.gain[c] += dgain[c] as f64;
            out.bias[c] += dbias[c] as f64;
        }
    }
    out
}

multiversion! {
    #[allow(clippy::too_many_arguments)]
    fn backward_row(
        x: &[f32],
        gain: Option<&[f32]>,
        dy: &[f32],
        mean: f32,
        rstd: f32,
        centre: Centre,
        dx: &mut [f32],
        dgain: &mut [f32],
        dbias: &mut [f32],
    ) {
        let n = x.len();
        let inv = 1.0 / n as f32;
        let (x, dy, dx) = (&x[..n], &dy[..n], &mut dx[..n]);
        let (dgain, dbias) = (&mut dgain[..n], &mut dbias[..n]);
        // dx holds g = dy * gain until the two means are known.
        match gain {
            Some(gain) => {
                let gain = &gain[..n];
                for c in 0..n {
                    dx[c] = dy[c] * gain[c];
                }
            }
            None => dx.copy_from_slice(dy),
        }
        let mean_g = match centre {
            Centre::Mean => math::sum_by(dx, |v| v) * inv,
            Centre::Nothing => 0.0,
        };
        let mean_gx = math::sum_by2(dx, x, |g, x| g * ((x - mean) * rstd)) * inv;
        for c in 0..n {
            let xhat = (x[c] - mean) * rstd;
            dgain[c] += dy[c] * xhat;
            dbias[c] += dy[c];
            dx[c] = rstd * (dx[c] - mean_g - xhat * mean_gx);
        }
    }
}
