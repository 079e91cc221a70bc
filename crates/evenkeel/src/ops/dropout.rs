//! Dropout from a counter: whether an entry is dropped is a function of (seed, step, place, index in the step's batch).
//!
//! Nothing is kept for the backward, which draws the same numbers again; a resumed run and one with other micro-batches
//! drop the same entries. `y = x / (1 - p)` where kept, 0 where dropped; dx = dy / (1 - p) or 0.

use super::all_fast;
use crate::random;
use crate::slices::{slice, tensor, with_slice_mut};
use crate::tape::{Tape, Value};
use candle_core::{DType, Device, Result, Tensor};
use evenkeel_kernels::threads::{PIECE, for_row_pieces};

/// One place's dropout in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    p: f64,
    key: u64,
    first_sequence: usize,
}

impl Dropout {
    /// With probability `p` at `place`, any number that no other place of the model has; `None` outside training.
    pub fn of(tape: &Tape, p: f64, place: u64) -> Option<Self> {
        let noise = tape.noise().filter(|_| p > 0.0)?;
        Some(Self { p, key: random::key(&[noise.key, place]), first_sequence: noise.first_sequence })
    }

    /// What entries `first..` of a pass with `per_sequence` entries for each sequence are multiplied by.
    fn factors(self, per_sequence: usize, first: usize) -> impl FnMut() -> f32 {
        let keep = (1.0 / (1.0 - self.p)) as f32;
        // The top 53 bits below p 2^53: the comparison `uniform < p` in integers.
        let threshold = (self.p * (1u64 << 53) as f64) as u64;
        let mut counter = (self.first_sequence * per_sequence + first) as u64;
        move || {
            let drawn = random::mix(self.key.wrapping_add(counter)) >> 11;
            counter += 1;
            if drawn < threshold { 0.0 } else { keep }
        }
    }

    /// The factors of a whole tensor whose first axis is sequences.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub(super) fn mask(self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let mut next = self.factors(n / shape[0].max(1), 0);
        let data: Vec<f32> = (0..n).map(|_| next()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)
    }
}

/// `x` with some of its entries dropped: x (sequences, ...).
///
/// # Errors
/// If memory cannot be had.
pub fn dropout(tape: &Tape, x: Value, dropout: Option<Dropout>) -> Result<Value> {
    let Some(dropout) = dropout else { return Ok(x) };
    let _span = tape.span("dropout");
    let dims = x.tensor().dims().to_vec();
    if !all_fast(&[&x]) {
        let mask = dropout.mask(&dims, x.tensor().dtype())?;
        return tape.compose(&[&x], |t| &t[0] * &mask);
    }
    let per_sequence = x.tensor().elem_count() / dims[0].max(1);
    let apply = move |x: &mut [f32]| {
        for_row_pieces(x, 1, PIECE, |first, x| {
            let mut next = dropout.factors(per_sequence, first);
            x.iter_mut().for_each(|v| *v *= next());
        });
    };
    let mut y = slice(x.tensor())?.to_vec();
    apply(&mut y);
    let y = tensor(y, dims)?;
    Ok(tape.push("dropout", y, &[&x.clone()], move |dy, sink| {
        with_slice_mut(&dy, |dy| {
            apply(dy);
            Ok(())
        })?;
        sink.add(&x, dy)
    }))
}
