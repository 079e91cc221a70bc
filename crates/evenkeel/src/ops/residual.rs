//! `y = x + β b` with scalar β, learned or fixed; and `y = α x`.
//!
//! Backward: dx = dy, db = β dy, dβ = Σ dy · b.

use super::all_fast;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Tape, Value};
use candle_core::Result;
use evenkeel_kernels::optimizer::{add_scaled, dot};
use evenkeel_kernels::threads::zip_map;
use evenkeel_kernels::xent::scale_in_place;

/// `x + β b`; `beta` has shape (1).
///
/// # Errors
/// If shapes disagree.
pub fn residual(tape: &Tape, x: &Value, branch: &Value, beta: &Value) -> Result<Value> {
    let _span = tape.span("residual");
    let inputs = [x, branch, beta];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| &t[0] + t[1].broadcast_mul(&t[2])?);
    }
    let factor = slice(beta.tensor())?[0];
    let mut y = vec![0.0; x.tensor().elem_count()];
    {
        let (xs, bs) = (slice(x.tensor())?, slice(branch.tensor())?);
        zip_map(&xs, &bs, &mut y, |x, b, y| {
            for ((y, x), b) in y.iter_mut().zip(x).zip(b) {
                *y = x + factor * b;
            }
        });
    }
    let y = tensor(y, x.tensor().shape())?;
    let (x, branch, beta) = (x.clone(), branch.clone(), beta.clone());
    Ok(tape.push("residual", y, &inputs, move |dy, sink| {
        scaled_gradients(&dy, &branch, &beta, factor, sink)?;
        sink.add(&x, dy)
    }))
}

/// `α x`; `alpha` has shape (1).
///
/// # Errors
/// If shapes disagree.
pub fn scale(tape: &Tape, x: &Value, alpha: &Value) -> Result<Value> {
    let _span = tape.span("scale");
    let inputs = [x, alpha];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| t[0].broadcast_mul(&t[1]));
    }
    let factor = slice(alpha.tensor())?[0];
    let mut y = slice(x.tensor())?.to_vec();
    scale_in_place(&mut y, factor);
    let y = tensor(y, x.tensor().shape())?;
    let (x, alpha) = (x.clone(), alpha.clone());
    Ok(tape.push("scale", y, &inputs, move |dy, sink| scaled_gradients(&dy, &x, &alpha, factor, sink)))
}

fn scaled_gradients(
    dy: &candle_core::Tensor,
    x: &Value,
    gain: &Value,
    factor: f32,
    sink: &mut crate::tape::Sink,
) -> Result<()> {
    let d = slice(dy)?;
    if gain.needs_gradient() {
        let sum = dot(&d, &slice(x.tensor())?);
        sink.add(gain, tensor(vec![sum as f32], 1)?)?;
    }
    if x.needs_gradient() {
        let dx = tensor(vec![0.0; d.len()], x.tensor().shape())?;
        with_slice_mut(&dx, |dx| {
            add_scaled(dx, &d, factor);
            Ok(())
        })?;
        sink.add(x, dx)?;
    }
    Ok(())
}
