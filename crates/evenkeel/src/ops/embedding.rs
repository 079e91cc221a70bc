//! `x[b, t] = table[ids[b, t]] + positions[t]`: ids (sequences, tokens), x (sequences, tokens, width).

use super::all_fast;
use crate::slices::{slice, tensor};
use crate::tape::{Tape, Value};
use candle_core::{Result, Tensor};
use evenkeel_kernels::embedding as kernel;

/// Looks up token vectors and adds learned positions if there are any.
///
/// `ids` holds `sequences * tokens` ids below the table's rows (checked by the caller).
///
/// # Errors
/// If shapes disagree.
pub fn embedding(
    tape: &Tape,
    table: &Value,
    positions: Option<&Value>,
    ids: &[u32],
    sequences: usize,
    tokens: usize,
) -> Result<Value> {
    let _span = tape.span("embedding");
    let mut inputs = vec![table];
    inputs.extend(positions);
    let width = table.tensor().dim(1)?;
    if !all_fast(&inputs) {
        let index = Tensor::from_slice(ids, ids.len(), table.tensor().device())?;
        return tape.compose(&inputs, |t| {
            let x = t[0].index_select(&index, 0)?.reshape((sequences, tokens, width))?;
            match t.get(1) {
                Some(positions) => x.broadcast_add(&positions.narrow(0, 0, tokens)?),
                None => Ok(x),
            }
        });
    }
    let mut x = vec![0.0; ids.len() * width];
    {
        let t = slice(table.tensor())?;
        let p = positions.map(|p| slice(p.tensor())).transpose()?;
        kernel::forward(&t, p.as_deref(), ids, tokens, width, &mut x);
    }
    let x = tensor(x, (sequences, tokens, width))?;
    let (ids, table, positions) = (ids.to_vec(), table.clone(), positions.cloned());
    Ok(tape.push("embedding", x, &inputs, move |dy, sink| {
        let dy = slice(&dy)?;
        let clear = |buffer: &mut [f32], accumulate: bool| {
            if !accumulate {
                buffer.fill(0.0);
            }
        };
        sink.write(&table, |buffer, accumulate| {
            clear(buffer, accumulate);
            kernel::backward(&dy, |t| ids[t] as usize, width, buffer);
            Ok(())
        })?;
        if let Some(positions) = &positions {
            sink.write(positions, |buffer, accumulate| {
                clear(buffer, accumulate);
                kernel::backward(&dy, |t| t % tokens, width, buffer);
                Ok(())
            })?;
        }
        Ok(())
    }))
}
