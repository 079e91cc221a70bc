//! `y = act(x Wᵀ + b)`: x (..., in), W (out, in), b (out), y (..., out).
//!
//! Backward, with dz = dy · act'(z): dx = dz W, dW += dzᵀ x, db += Σ dz.

use super::all_fast;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Tape, Value};
use candle_core::{Result, Tensor};
use evenkeel_kernels::activation;
use evenkeel_kernels::gemm::{View, Write, gemm, gemm_new};
use evenkeel_kernels::threads::{PIECE, for_row_pieces, map_row_pieces};
use serde::{Deserialize, Serialize};

/// The nonlinearity between the two matrices of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(0, x)
    Relu,
    /// x Φ(x)
    Gelu,
    /// x Φ(x) by the tanh approximation
    GeluTanh,
}

impl Activation {
    fn kernel(self) -> activation::Activation {
        match self {
            Activation::Relu => activation::Activation::Relu,
            Activation::Gelu => activation::Activation::Gelu,
            Activation::GeluTanh => activation::Activation::GeluTanh,
        }
    }

    fn composed(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Relu => x.relu(),
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
        }
    }
}

/// `act(x Wᵀ + b)`.
///
/// # Errors
/// If shapes disagree.
pub fn linear(
    tape: &Tape,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    act: Option<Activation>,
) -> Result<Value> {
    let _span = tape.span("linear");
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| composed(&t[0], &t[1], t.get(2), act));
    }

    let (rows, d_in) = flat(x.tensor())?;
    let d_out = weight.tensor().dim(0)?;
    let compute = tape.compute();
    let keeps_input = act.is_some_and(|a| a.kernel().backward_needs_input());
    let keep = tape.is_recording() && keeps_input;
    let mut y = {
        let (x, w) = (slice(x.tensor())?, slice(weight.tensor())?);
        let b = bias.map(|b| slice(b.tensor())).transpose()?;
        let b = b.as_deref();
        let (x, w) = (View::new(&x, rows, d_in), View::new(&w, d_out, d_in));
        gemm_new(compute, x, w.t(), |_, first, piece| {
            if let Some(b) = b {
                for (y, b) in piece.iter_mut().zip(&b[first..]) {
                    *y += b;
                }
            }
            if let (Some(act), false) = (act, keep) {
                activation::forward(act.kernel(), piece);
            }
        })
    };
    let mut pre_activation = Vec::new();
    if let (Some(act), true) = (act, keep) {
        pre_activation = y.clone();
        for_row_pieces(&mut y, d_out, PIECE, |_, rows| activation::forward(act.kernel(), rows));
    }
    let mut shape = x.tensor().dims().to_vec();
    *shape.last_mut().expect("flat() checked that x has a last axis") = d_out;
    let y = tensor(y, shape)?;

    let saved = match act {
        Some(_) if !tape.is_recording() => None,
        Some(_) if keeps_input => Some(tensor(pre_activation, rows * d_out)?),
        Some(_) => Some(y.clone()),
        None => None,
    };
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let inputs: Vec<&Value> = [&x, &weight].into_iter().chain(&bias).collect();
    Ok(tape.push("linear", y, &inputs, {
        let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
        move |dy, sink| {
            if let (Some(act), Some(saved)) = (act, &saved) {
                let saved = slice(saved)?;
                with_slice_mut(&dy, |dy| {
                    for_row_pieces(dy, d_out, PIECE, |first, rows| {
                        let saved = &saved[first * d_out..][..rows.len()];
                        activation::backward(act.kernel(), saved, rows);
                    });
                    Ok(())
                })?;
            }
            let dz = slice(&dy)?;
            if let Some(bias) = &bias {
                sink.write(bias, |buffer, accumulate| {
                    column_sums(&dz, d_out, buffer, accumulate);
                    Ok(())
                })?;
            }
            let dz = View::new(&dz, rows, d_out);
            let xs = slice(x.tensor())?;
            sink.write(&weight, |buffer, accumulate| {
                let write = if accumulate { Write::Add } else { Write::Replace };
                gemm(compute, dz.t(), View::new(&xs, rows, d_in), buffer, write);
                Ok(())
            })?;
            drop(xs);
            if x.needs_gradient() {
                let w = slice(weight.tensor())?;
                let w = View::new(&w, d_out, d_in);
                match sink.held(&x) {
                    // Where several layers read x, the product is added as it is made.
                    Some(held) => with_slice_mut(held, |held| {
                        gemm(compute, dz, w, held, Write::Add);
                        Ok(())
                    })?,
                    None => {
                        let dx = gemm_new(compute, dz, w, |_, _, _| {});
                        sink.add(&x, tensor(dx, x.tensor().shape())?)?;
                    }
                }
            }
            Ok(())
        }
    }))
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, act: Option<Activation>) -> Result<Tensor> {
    let (rows, d_in) = flat(x)?;
    let mut y = x.reshape((rows, d_in))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(act) = act {
        y = act.composed(&y)?;
    }
    let mut shape = x.dims().to_vec();
    *shape.last_mut().expect("flat() checked that x has a last axis") = weight.dim(0)?;
    y.reshape(shape)
}

/// (rows, columns) of a tensor seen as a matrix over its last axis.
pub(super) fn flat(x: &Tensor) -> Result<(usize, usize)> {
    let columns = x.dim(candle_core::D::Minus1)?;
    Ok((x.elem_count() / columns.max(1), columns))
}

/// Column sums of a matrix, pieces of rows added in their order.
pub(super) fn column_sums(x: &[f32], columns: usize, out: &mut [f32], accumulate: bool) {
    let rows = x.len() / columns.max(1);
    let parts = map_row_pieces(rows, columns, PIECE, |first, count| {
        let mut sums = vec![0.0f32; columns];
        for row in x[first * columns..(first + count) * columns].chunks_exact(columns) {
            for (s, v) in sums.iter_mut().zip(row) {
                *s += v;
            }
        }
        sums
    });
    if !accumulate {
        out.fill(0.0);
    }
    for part in parts {
        for (o, p) in out.iter_mut().zip(&part) {
            *o += p;
        }
    }
}
