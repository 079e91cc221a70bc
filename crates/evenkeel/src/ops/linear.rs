//! `y = act(x Wᵀ + b)`: x (..., in), W (out, in), b (out), y (..., out); and `y = stream + β (x Wᵀ + b)`.
//!
//! Backward, with dz = dy · act'(z) or dz = β dy: dx = dz W, dW += dzᵀ x, db += Σ dz, dstream = dy.

use super::{Activation, all_fast};
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Sink, Tape, Value};
use candle_core::{Result, Tensor, bail};
use evenkeel_kernels::activation;
use evenkeel_kernels::gemm::{Compute, FEW_ROWS, View, Write, few_rows, gemm, gemm_new};
use evenkeel_kernels::threads::{PIECE, for_row_pieces, map_row_pieces};
use evenkeel_kernels::xent::scale_in_place;

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
    check_bias(bias, d_out)?;
    let compute = tape.compute();
    let keeps_input = act.is_some_and(|a| a.backward_needs_input());
    let keep = tape.is_recording() && keeps_input;
    let mut y = {
        let (x, w) = (slice(x.tensor())?, slice(weight.tensor())?);
        let b = bias.map(|b| slice(b.tensor())).transpose()?;
        let b = b.as_deref();
        let (x, w) = (View::new(&x, rows, d_in), View::new(&w, d_out, d_in));
        product(compute, x, w, |_, first, piece| {
            add_bias(piece, b, first);
            if let (Some(act), false) = (act, keep) {
                activation::forward(act, piece);
            }
        })
    };
    let mut pre_activation = Vec::new();
    if let (Some(act), true) = (act, keep) {
        pre_activation = y.clone();
        for_row_pieces(&mut y, d_out, PIECE, |_, rows| activation::forward(act, rows));
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
    let layer = Layer { x: x.clone(), weight: weight.clone(), bias: bias.cloned(), compute };
    Ok(tape.push("linear", y, &inputs, move |dy, sink| {
        if let (Some(act), Some(saved)) = (act, &saved) {
            let saved = slice(saved)?;
            with_slice_mut(&dy, |dy| {
                for_row_pieces(dy, d_out, PIECE, |first, rows| {
                    let saved = &saved[first * d_out..][..rows.len()];
                    activation::backward(act, saved, rows);
                });
                Ok(())
            })?;
        }
        layer.backward(&dy, sink)
    }))
}

/// `stream + β (x Wᵀ + b)` with a fixed β: the end of a branch whose output nobody else wants, which is never held.
/// A learned β needs it for its gradient Σ dy · (x Wᵀ + b), so there [`super::residual`] follows a [`linear`].
///
/// # Errors
/// If shapes disagree.
pub fn linear_onto(
    tape: &Tape,
    stream: &Value,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    beta: f32,
) -> Result<Value> {
    let _span = tape.span("linear");
    let mut inputs = vec![stream, x, weight];
    inputs.extend(bias);
    if !all_fast(&inputs) {
        return tape.compose(&inputs, |t| &t[0] + composed(&t[1], &t[2], t.get(3), None)? * f64::from(beta));
    }
    let (rows, d_in) = flat(x.tensor())?;
    let d_out = weight.tensor().dim(0)?;
    check_bias(bias, d_out)?;
    let leading = |t: &Tensor| t.dims()[..t.rank() - 1].to_vec();
    if leading(stream.tensor()) != leading(x.tensor()) || stream.tensor().dims().last() != Some(&d_out) {
        let (stream, x) = (stream.tensor().shape(), x.tensor().shape());
        bail!("a branch from {x:?} with {d_out} channels cannot join a stream of shape {stream:?}");
    }
    let compute = tape.compute();
    let y = {
        let (base, x, w) = (slice(stream.tensor())?, slice(x.tensor())?, slice(weight.tensor())?);
        let b = bias.map(|b| slice(b.tensor())).transpose()?;
        let (x, w) = (View::new(&x, rows, d_in), View::new(&w, d_out, d_in));
        product(compute, x, w, |row, first, piece| {
            add_bias(piece, b.as_deref(), first);
            for (y, base) in piece.iter_mut().zip(&base[row * d_out + first..]) {
                *y = base + beta * *y;
            }
        })
    };
    let y = tensor(y, stream.tensor().shape())?;
    let layer = Layer { x: x.clone(), weight: weight.clone(), bias: bias.cloned(), compute };
    let stream = stream.clone();
    Ok(tape.push("linear", y, &inputs, move |dy, sink| {
        if beta == 1.0 {
            layer.backward(&dy, sink)?;
        } else {
            let mut dz = slice(&dy)?.to_vec();
            scale_in_place(&mut dz, beta);
            layer.backward(&tensor(dz, dy.shape())?, sink)?;
        }
        sink.add(&stream, dy)
    }))
}

/// x wᵀ with an epilogue on pieces of rows, without packing w for a few rows: those of tokens that are decoded one at a time.
fn product(
    compute: Compute,
    x: View,
    w: View,
    epilogue: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    match compute {
        Compute::F32 if x.rows() <= FEW_ROWS => few_rows(x, w, epilogue),
        _ => gemm_new(compute, x, w.t(), epilogue),
    }
}

/// A layer as its backward needs it.
struct Layer {
    x: Value,
    weight: Value,
    bias: Option<Value>,
    compute: Compute,
}

impl Layer {
    /// From the gradient of x Wᵀ + b to those of x, W and b.
    fn backward(self, dz: &Tensor, sink: &mut Sink) -> Result<()> {
        let Self { x, weight, bias, compute } = self;
        let (rows, d_in) = flat(x.tensor())?;
        let d_out = weight.tensor().dim(0)?;
        let dz = slice(dz)?;
        if let Some(bias) = &bias {
            sink.write(bias, |buffer, accumulate| {
                column_sums(&dz, d_out, buffer, accumulate);
                Ok(())
            })?;
        }
        let dz = View::new(&dz, rows, d_out);
        {
            let xs = slice(x.tensor())?;
            sink.write(&weight, |buffer, accumulate| {
                let write = if accumulate { Write::Add } else { Write::Replace };
                gemm(compute, dz.t(), View::new(&xs, rows, d_in), buffer, write);
                Ok(())
            })?;
        }
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
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, act: Option<Activation>) -> Result<Tensor> {
    let (rows, d_in) = flat(x)?;
    let mut y = x.reshape((rows, d_in))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(act) = act {
        y = super::activation::composed(act, &y)?;
    }
    let mut shape = x.dims().to_vec();
    *shape.last_mut().expect("flat() checked that x has a last axis") = weight.dim(0)?;
    y.reshape(shape)
}

/// Adds the bias of the channels from `first` on to a piece of a row.
fn add_bias(piece: &mut [f32], bias: Option<&[f32]>, first: usize) {
    if let Some(bias) = bias {
        for (y, b) in piece.iter_mut().zip(&bias[first..]) {
            *y += b;
        }
    }
}

fn check_bias(bias: Option<&Value>, d_out: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.tensor().dims() != [d_out] => {
            bail!("a bias of shape {:?} cannot be added to {d_out} channels", bias.tensor().shape())
        }
        _ => Ok(()),
    }
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
