//! Elementwise nonlinearities, and the gated unit `act(g) ⊙ u` of an MLP with two first matrices.
//!
//! Backward of the unit: dg = dy u act'(g), du = dy act(g).

use super::all_fast;
use crate::slices::{slice, tensor, with_slices_mut};
use crate::tape::{Tape, Value};
use candle_core::{Result, Tensor};
pub use evenkeel_kernels::activation::Activation;
use evenkeel_kernels::activation::{gated_backward, gated_forward};
use evenkeel_kernels::threads::{PIECE, for_row_pieces};

/// `act(x)` from primitives that candle differentiates.
pub(super) fn composed(act: Activation, x: &Tensor) -> Result<Tensor> {
    match act {
        Activation::Relu => x.relu(),
        Activation::LeakyRelu(slope) => x.relu()? - (x.neg()?.relu()? * f64::from(slope))?,
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x * sigmoid(x)?,
        Activation::SquaredRelu => x.relu()?.sqr(),
    }
}

/// 1 / (1 + e^-x) from primitives that candle differentiates.
pub(super) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// `act(gate) ⊙ up`, two tensors of one shape.
///
/// # Errors
/// If shapes disagree.
pub fn gated_unit(tape: &Tape, gate: &Value, up: &Value, act: Activation) -> Result<Value> {
    let _span = tape.span("gated unit");
    let inputs = [gate, up];
    if !all_fast(&inputs) || gate.tensor().dims() != up.tensor().dims() {
        return tape.compose(&inputs, |t| composed(act, &t[0])? * &t[1]);
    }
    let mut y = vec![0.0; gate.tensor().elem_count()];
    {
        let (g, u) = (slice(gate.tensor())?, slice(up.tensor())?);
        for_row_pieces(&mut y, 1, PIECE, |first, y| {
            let at = first..first + y.len();
            gated_forward(act, &g[at.clone()], &u[at], y);
        });
    }
    let y = tensor(y, gate.tensor().shape())?;
    let (gate, up) = (gate.clone(), up.clone());
    Ok(tape.push("gated unit", y, &inputs, move |dy, sink| {
        let d_gate = tensor(vec![0.0; dy.elem_count()], dy.shape())?;
        {
            let (g, u) = (slice(gate.tensor())?, slice(up.tensor())?);
            with_slices_mut(&[&dy, &d_gate], |both| {
                let (dy, d_gate) = both.split_at_mut(1);
                pieces(dy[0], d_gate[0], |at, dy, d_gate| {
                    gated_backward(act, &g[at.clone()], &u[at], dy, d_gate);
                });
                Ok(())
            })?;
        }
        sink.add(&gate, d_gate)?;
        sink.add(&up, dy)
    }))
}

/// Runs `f(range, a, b)` on the pieces of two buffers of one length.
fn pieces(a: &mut [f32], b: &mut [f32], f: impl Fn(std::ops::Range<usize>, &mut [f32], &mut [f32]) + Sync) {
    use rayon::prelude::*;
    a.par_chunks_mut(PIECE).zip(b.par_chunks_mut(PIECE)).enumerate().for_each(|(i, (a, b))| {
        f(i * PIECE..i * PIECE + a.len(), a, b);
    });
}
