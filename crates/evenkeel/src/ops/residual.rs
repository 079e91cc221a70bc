//! `y = x + β b` and `y = α x`, the gain a scalar or a value for each channel (LayerScale), learned or fixed.
//!
//! Backward: dx = dy, db = β dy, dβ = Σ dy · b over everything, or over the rows for each channel.

use super::all_fast;
use super::linear::flat;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Sink, Tape, Value};
use candle_core::{Result, Tensor, bail};
use evenkeel_kernels::optimizer::{add_scaled, dot};
use evenkeel_kernels::threads::{PIECE, for_row_pieces, map_row_pieces, sum_in_order, zip_map};
use evenkeel_kernels::xent::scale_in_place;

/// `x + β b`; `beta` has shape (1) or (channels).
///
/// # Errors
/// If shapes disagree.
pub fn residual(tape: &Tape, x: &Value, branch: &Value, beta: &Value) -> Result<Value> {
    let _span = tape.span("residual");
    let inputs = [x, branch, beta];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| &t[0] + t[1].broadcast_mul(&t[2])?);
    }
    check_gain(branch, beta)?;
    if x.tensor().dims() != branch.tensor().dims() {
        bail!("a branch of {:?} cannot join {:?}", branch.tensor().shape(), x.tensor().shape());
    }
    let mut y = vec![0.0; x.tensor().elem_count()];
    {
        let (xs, bs, gain) = (slice(x.tensor())?, slice(branch.tensor())?, slice(beta.tensor())?);
        match *gain {
            [factor] => zip_map(&xs, &bs, &mut y, |x, b, y| {
                for ((y, x), b) in y.iter_mut().zip(x).zip(b) {
                    *y = x + factor * b;
                }
            }),
            _ => for_row_pieces(&mut y, gain.len(), PIECE, |first, y| {
                let at = first * gain.len();
                let inputs = xs[at..].chunks_exact(gain.len()).zip(bs[at..].chunks_exact(gain.len()));
                for (y, (x, b)) in y.chunks_exact_mut(gain.len()).zip(inputs) {
                    for (((y, x), b), g) in y.iter_mut().zip(x).zip(b).zip(gain.iter()) {
                        *y = x + g * b;
                    }
                }
            }),
        }
    }
    let y = tensor(y, x.tensor().shape())?;
    let (x, branch, beta) = (x.clone(), branch.clone(), beta.clone());
    Ok(tape.push("residual", y, &inputs, move |dy, sink| {
        scaled_gradients(&dy, &branch, &beta, sink)?;
        sink.add(&x, dy)
    }))
}

/// `α x`; `alpha` has shape (1) or (channels).
///
/// # Errors
/// If shapes disagree.
pub fn scale(tape: &Tape, x: &Value, alpha: &Value) -> Result<Value> {
    let _span = tape.span("scale");
    let inputs = [x, alpha];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| t[0].broadcast_mul(&t[1]));
    }
    check_gain(x, alpha)?;
    let mut y = slice(x.tensor())?.to_vec();
    scale_rows(&mut y, &slice(alpha.tensor())?);
    let y = tensor(y, x.tensor().shape())?;
    let (x, alpha) = (x.clone(), alpha.clone());
    Ok(tape.push("scale", y, &inputs, move |dy, sink| scaled_gradients(&dy, &x, &alpha, sink)))
}

fn check_gain(x: &Value, gain: &Value) -> Result<()> {
    let (_, width) = flat(x.tensor())?;
    match gain.tensor().dims() {
        [1] => Ok(()),
        [n] if *n == width => Ok(()),
        other => bail!("a gain of shape {other:?} cannot multiply {width} channels"),
    }
}

/// Every row times the gain, which has one entry or as many as the row.
fn scale_rows(x: &mut [f32], gain: &[f32]) {
    match gain {
        [factor] => scale_in_place(x, *factor),
        _ => for_row_pieces(x, gain.len(), PIECE, |_, rows| {
            for row in rows.chunks_exact_mut(gain.len()) {
                for (x, g) in row.iter_mut().zip(gain) {
                    *x *= g;
                }
            }
        }),
    }
}

/// From the gradient of gain ⊙ x to those of the gain and of x.
fn scaled_gradients(dy: &Tensor, x: &Value, gain: &Value, sink: &mut Sink) -> Result<()> {
    let d = slice(dy)?;
    if gain.needs_gradient() {
        let sums = gain_gradient(&d, &slice(x.tensor())?, gain.tensor().elem_count());
        sink.add(gain, tensor(sums, gain.tensor().shape())?)?;
    }
    if x.needs_gradient() {
        let factors = slice(gain.tensor())?.to_vec();
        let dx = tensor(vec![0.0; d.len()], x.tensor().shape())?;
        with_slice_mut(&dx, |dx| {
            match factors[..] {
                [factor] => add_scaled(dx, &d, factor),
                _ => {
                    dx.copy_from_slice(&d);
                    scale_rows(dx, &factors);
                }
            }
            Ok(())
        })?;
        sink.add(x, dx)?;
    }
    Ok(())
}

/// Σ dy · x over everything for a single gain, over the rows for each channel otherwise.
fn gain_gradient(dy: &[f32], x: &[f32], width: usize) -> Vec<f32> {
    if width == 1 {
        return vec![dot(dy, x) as f32];
    }
    let parts = map_row_pieces(dy.len() / width, width, PIECE, |first, count| {
        let at = first * width..(first + count) * width;
        let mut sums = vec![0.0f64; width];
        for (dy, x) in dy[at.clone()].chunks_exact(width).zip(x[at].chunks_exact(width)) {
            for ((s, d), x) in sums.iter_mut().zip(dy).zip(x) {
                *s += (d * x) as f64;
            }
        }
        sums
    });
    sum_in_order(parts, width).into_iter().map(|v| v as f32).collect()
}
