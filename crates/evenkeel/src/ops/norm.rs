//! LayerNorm, RMSNorm and SRMSNorm over the last axis; formulas in `evenkeel_kernels::norm`. And DyT, which stands where
//! a norm stands and normalises nothing.

use super::all_fast;
use super::linear::flat;
use crate::slices::{slice, tensor};
use crate::tape::{Tape, Value};
use candle_core::{D, Result, Tensor};
use evenkeel_kernels::norm::{self as kernel, Centre};

/// What is subtracted and added; gain and bias are given by the presence of their tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Whether the row's mean is subtracted (LayerNorm) or not (RMSNorm).
    pub centred: bool,
    /// Added to the variance, inside the root.
    pub eps: f64,
}

/// `(x - μ) / √(variance + ε) · gain + bias` over the last axis.
///
/// # Errors
/// If shapes disagree.
pub fn norm(
    tape: &Tape,
    x: &Value,
    gain: Option<&Value>,
    bias: Option<&Value>,
    spec: NormSpec,
) -> Result<Value> {
    let _span = tape.span("norm");
    let mut inputs = vec![x];
    inputs.extend(gain);
    inputs.extend(bias);
    if !all_fast(&inputs) {
        let has_gain = gain.is_some();
        return tape.compose(&inputs, |t| {
            let gain = has_gain.then(|| &t[1]);
            let bias = t.get(1 + has_gain as usize);
            composed(&t[0], gain, bias, spec)
        });
    }

    let (_, width) = flat(x.tensor())?;
    let centre = if spec.centred { Centre::Mean } else { Centre::Nothing };
    let mut y = vec![0.0; x.tensor().elem_count()];
    let rows = {
        let xs = slice(x.tensor())?;
        let g = gain.map(|v| slice(v.tensor())).transpose()?;
        let b = bias.map(|v| slice(v.tensor())).transpose()?;
        kernel::forward(&xs, g.as_deref(), b.as_deref(), width, centre, spec.eps as f32, &mut y)
    };
    let y = tensor(y, x.tensor().shape())?;
    let captured = (x.clone(), gain.cloned(), bias.cloned());
    Ok(tape.push("norm", y, &inputs, move |dy, sink| {
        let (x, gain, bias) = captured;
        let mut dx = vec![0.0; x.tensor().elem_count()];
        let sums = {
            let (xs, dy) = (slice(x.tensor())?, slice(&dy)?);
            let g = gain.as_ref().map(|v| slice(v.tensor())).transpose()?;
            kernel::backward(&xs, g.as_deref(), &dy, &rows, width, centre, &mut dx)
        };
        sink.add(&x, tensor(dx, x.tensor().shape())?)?;
        for (value, sums) in [(gain, sums.gain), (bias, sums.bias)] {
            if let Some(value) = value {
                sink.add(&value, tensor(sums.iter().map(|&v| v as f32).collect(), width)?)?;
            }
        }
        Ok(())
    }))
}

fn composed(x: &Tensor, gain: Option<&Tensor>, bias: Option<&Tensor>, spec: NormSpec) -> Result<Tensor> {
    let centred = if spec.centred { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let mut y = centred.broadcast_div(&(variance + spec.eps)?.sqrt()?)?;
    if let Some(gain) = gain {
        y = y.broadcast_mul(gain)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    Ok(y)
}

/// `tanh(α x) · gain + bias` with a scalar α: Dynamic Tanh. Composed only.
///
/// # Errors
/// If shapes disagree.
pub fn dynamic_tanh(tape: &Tape, x: &Value, alpha: &Value, gain: &Value, bias: &Value) -> Result<Value> {
    let _span = tape.span("norm");
    tape.compose(&[x, alpha, gain, bias], |t| {
        t[0].broadcast_mul(&t[1])?.tanh()?.broadcast_mul(&t[2])?.broadcast_add(&t[3])
    })
}
