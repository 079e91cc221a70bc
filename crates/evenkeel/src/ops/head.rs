//! The output head with cross-entropy as one operation that never holds all logits `x Wᵀ`.

use super::all_fast;
use super::linear::flat;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Tape, Value};
use candle_core::{D, Result, Tensor};
use evenkeel_kernels::xent;

/// Mean over tokens of -log softmax(x Wᵀ + b) at the target, a scalar in float64 for float64 inputs and float32
/// otherwise. `targets` are ids below the vocabulary (checked by the caller).
///
/// The kernel computes the gradients during the forward pass, while a chunk of logits is in cache, and the
/// backward only scales them.
///
/// # Errors
/// If shapes disagree.
pub fn head_cross_entropy(
    tape: &Tape,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    targets: &[u32],
) -> Result<Value> {
    let _span = tape.span("head");
    let inputs: Vec<&Value> = [x, weight].into_iter().chain(bias).collect();
    // The kernel knows no bias, which no model that is trained here has by default.
    if !all_fast(&inputs) || bias.is_some() {
        return tape.compose(&inputs, |t| composed(&t[0], &t[1], t.get(2), targets));
    }
    let (_, width) = flat(x.tensor())?;
    let (loss, gradients) = {
        let (xs, ws) = (slice(x.tensor())?, slice(weight.tensor())?);
        xent::head_cross_entropy(tape.compute(), &xs, &ws, targets, width, tape.is_recording())
    };
    let loss = Tensor::new(loss as f32, x.tensor().device())?;
    let Some(gradients) = gradients else { return Ok(Value::constant(loss)) };
    let dx = tensor(gradients.x, x.tensor().shape())?;
    let dw = tensor(gradients.weight, weight.tensor().shape())?;
    let (x, weight) = (x.clone(), weight.clone());
    Ok(tape.push("head", loss, &inputs, move |seed, sink| {
        let seed = seed.to_scalar::<f32>()?;
        for (value, gradient) in [(&x, dx), (&weight, dw)] {
            if seed != 1.0 {
                with_slice_mut(&gradient, |g| {
                    xent::scale_in_place(g, seed);
                    Ok(())
                })?;
            }
            sink.add(value, gradient)?;
        }
        Ok(())
    }))
}

/// The same of logits (..., vocab) that are there, biases included; for inputs that nothing is learned from.
///
/// # Errors
/// If shapes disagree.
pub fn cross_entropy(tape: &Tape, logits: &Value, targets: &[u32]) -> Result<Value> {
    let _span = tape.span("head");
    let (rows, vocab) = flat(logits.tensor())?;
    if !all_fast(&[logits]) || tape.is_recording() {
        return tape.compose(&[logits], |t| loss_of(&t[0].reshape((rows, vocab))?, targets));
    }
    let mut own = slice(logits.tensor())?.to_vec();
    let loss = xent::logits_cross_entropy(&mut own, targets);
    Ok(Value::constant(Tensor::new(loss as f32, logits.tensor().device())?))
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, targets: &[u32]) -> Result<Tensor> {
    let (rows, width) = flat(x)?;
    let mut logits = x.reshape((rows, width))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        logits = logits.broadcast_add(bias)?;
    }
    loss_of(&logits, targets)
}

/// Of logits (rows, vocab).
fn loss_of(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let rows = targets.len();
    let peak = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&peak)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let index = Tensor::from_slice(targets, (rows, 1), logits.device())?;
    (log_sum - shifted.gather(&index, 1)?)?.mean_all()
}
