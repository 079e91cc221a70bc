//! Sigmoid gates on the heads' weighted values; formulas in `evenkeel_kernels::gate`.
//!
//! [`sigmoid_gate`] applies logits of shape (sequences, tokens, heads), or (sequences, tokens, channels) for a gate on
//! each channel. Logits that are linear in all channels come from [`super::linear`], the others from here.

use super::activation::sigmoid;
use super::all_fast;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Tape, Value};
use candle_core::{D, Result, Tensor, bail};
use evenkeel_kernels::gate as kernel;

/// `x ⊙ σ(logits)`: x (sequences, tokens, channels); each logit gates channels / logits of them.
///
/// # Errors
/// If the last axis of x is no multiple of that of the logits, or the others differ.
pub fn sigmoid_gate(tape: &Tape, x: &Value, logits: &Value) -> Result<Value> {
    let _span = tape.span("gate");
    let (b, t, d) = x.tensor().dims3()?;
    let (lb, lt, groups) = logits.tensor().dims3()?;
    if (b, t) != (lb, lt) || groups == 0 || !d.is_multiple_of(groups) {
        bail!("logits of shape {:?} cannot gate {:?}", logits.tensor().shape(), x.tensor().shape());
    }
    let channels = d / groups;
    let inputs = [x, logits];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |v| {
            let open = sigmoid(&v[1])?.unsqueeze(D::Minus1)?;
            v[0].reshape((b, t, groups, channels))?.broadcast_mul(&open)?.reshape((b, t, d))
        });
    }
    let mut y = slice(x.tensor())?.to_vec();
    kernel::sigmoid_gate(&mut y, &slice(logits.tensor())?, channels);
    let y = tensor(y, (b, t, d))?;
    let (x, logits) = (x.clone(), logits.clone());
    Ok(tape.push("gate", y, &inputs, move |dy, sink| {
        let d_logits = {
            let (xs, ls) = (slice(x.tensor())?, slice(logits.tensor())?);
            with_slice_mut(&dy, |dy| Ok(kernel::sigmoid_gate_backward(&xs, &ls, channels, dy)))?
        };
        sink.add(&x, dy)?;
        sink.add(&logits, tensor(d_logits, logits.tensor().shape())?)
    }))
}

/// σ of logits, for those who want to look at a gate.
///
/// # Errors
/// If memory cannot be had.
pub fn openness(logits: &Tensor) -> Result<Tensor> {
    sigmoid(logits)
}

/// `x` gated by what a transforming tap made of the [`openness`].
///
/// # Errors
/// If shapes disagree.
pub fn gate_by(x: &Tensor, open: &Tensor) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    let groups = open.dim(D::Minus1)?;
    let x = x.reshape((b, t, groups, d / groups.max(1)))?;
    x.broadcast_mul(&open.unsqueeze(D::Minus1)?)?.reshape((b, t, d))
}

/// Logits (sequences, tokens, heads) linear in each head's own channels: x (sequences, tokens, heads · d_head), weight
/// (heads, d_head), bias (heads).
///
/// # Errors
/// If shapes disagree.
pub fn gate_logits(tape: &Tape, x: &Value, weight: &Value, bias: &Value) -> Result<Value> {
    let _span = tape.span("gate");
    let (b, t, d) = x.tensor().dims3()?;
    let (heads, d_head) = weight.tensor().dims2()?;
    if heads * d_head != d || bias.tensor().dims() != [heads] {
        bail!("a gate of shape {:?} does not fit {d} channels", weight.tensor().shape());
    }
    let inputs = [x, weight, bias];
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |v| {
            let products = v[0].reshape((b, t, heads, d_head))?.broadcast_mul(&v[1])?;
            products.sum(D::Minus1)?.broadcast_add(&v[2])
        });
    }
    let logits = kernel::gate_logits(&slice(x.tensor())?, &slice(weight.tensor())?, &slice(bias.tensor())?);
    let logits = tensor(logits, (b, t, heads))?;
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
    Ok(tape.push("gate", logits, &inputs, move |dy, sink| {
        let g = {
            let (xs, ws, dy) = (slice(x.tensor())?, slice(weight.tensor())?, slice(&dy)?);
            kernel::gate_logits_backward(&xs, &ws, &dy, heads)
        };
        let narrow = |sums: Vec<f64>| sums.into_iter().map(|v| v as f32).collect::<Vec<_>>();
        sink.add(&x, tensor(g.x, (b, t, d))?)?;
        sink.add(&weight, tensor(narrow(g.weight), (heads, d_head))?)?;
        sink.add(&bias, tensor(narrow(g.bias), heads)?)
    }))
}

/// Logits from a ReLU network of each head's own channels: `w2_h · relu(W1_h x_h + b1_h) + b_h` with W1 (heads, r, d_head),
/// b1 (heads · r), w2 (heads, r), b (heads). Composed only: it is small.
///
/// # Errors
/// If shapes disagree.
pub fn gate_network(tape: &Tape, x: &Value, up: [&Value; 2], down: [&Value; 2]) -> Result<Value> {
    let (b, t, _) = x.tensor().dims3()?;
    let (heads, r, d_head) = up[0].tensor().dims3()?;
    tape.compose(&[x, up[0], up[1], down[0], down[1]], |v| {
        // (heads, b t, d_head) x (heads, d_head, r)
        let x = v[0].reshape((b * t, heads, d_head))?.transpose(0, 1)?.contiguous()?;
        let hidden = x.matmul(&v[1].transpose(1, 2)?.contiguous()?)?;
        let hidden = hidden.broadcast_add(&v[2].reshape((heads, 1, r))?)?.relu()?;
        let logits =
            hidden.matmul(&v[3].reshape((heads, r, 1))?)?.broadcast_add(&v[4].reshape((heads, 1, 1))?)?;
        logits.reshape((heads, b * t))?.t()?.contiguous()?.reshape((b, t, heads))
    })
}

/// The same logits (heads) at every token.
///
/// # Errors
/// If memory cannot be had.
pub fn constant_logits(tape: &Tape, bias: &Value, sequences: usize, tokens: usize) -> Result<Value> {
    let heads = bias.tensor().dim(0)?;
    tape.compose(&[bias], |v| v[0].broadcast_as((sequences, tokens, heads))?.contiguous())
}
