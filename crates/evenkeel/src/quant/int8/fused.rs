//! The integer model as it runs fastest: between operations nothing but bytes.
//!
//! Each operation reads bytes, sums in integers and writes the bytes of the next grid while its sums are in L1. That
//! is possible where every place has one grid of bytes and the block is a plain one; [`Fused::new`] says which. What it computes
//! is what the quantisers of the generic path make of every tensor: the same integers, but for values that float32 puts within
//! its last bits of half a level (scores, probabilities and QK-norms, whose factors are multiplied in another order).
//!
//! Embedding and blocks run here; the final norm and the head are those of the generic path, on the positions that are asked for.

mod block;
mod decoder;
mod embed;
mod parts;
#[cfg(test)]
mod tests;

pub use decoder::FusedDecoder;

use super::super::tap::QuantTap;
use super::IntegerModel;
use crate::model::{Head, ModelConfig, ModelError, Parts, check_ids};
use crate::slices::tensor;
use crate::tap::Place;
use crate::tape::{Tape, Value};
use block::{FusedBlock, Span};
use candle_core::Tensor;
use decoder::LayerKeys;
use embed::FusedEmbedding;
use evenkeel_kernels::int8::attention::MAX_KEYS;
use evenkeel_kernels::int8::requantise::dequantise_u8;
use evenkeel_kernels::quant::Grid;
use parts::{Ingredients, is_plain};
use std::sync::Mutex;

/// An integer model whose activations are bytes throughout.
pub struct Fused {
    config: ModelConfig,
    embedding: FusedEmbedding,
    blocks: Vec<FusedBlock>,
    /// The grid of the stream after the last block.
    leaving: Grid,
    head: Head,
    /// Quantisers after the last block.
    tap: QuantTap,
    /// Buffers not in use.
    works: Mutex<Vec<Work>>,
}

/// The activations of one pass, kept for the next one.
#[derive(Default)]
struct Work {
    stream: Vec<u8>,
    normed: Vec<u8>,
    q: Vec<u8>,
    k: Vec<u8>,
    v: Vec<u8>,
    context: Vec<u8>,
    hidden: Vec<u8>,
    /// Keys and values of the block that is run, where no cache keeps them.
    keys: LayerKeys,
}

impl Fused {
    /// `None` if the model has a place without a static grid of bytes, or a block that is not plain.
    pub fn new(model: &IntegerModel) -> Option<Self> {
        let config = model.model.config().clone();
        if !is_plain(&config) {
            return None;
        }
        let mut parts = Ingredients::new(&model.model, &model.grids);
        let (embedding, mut leaving) = FusedEmbedding::new(&mut parts)?;
        let mut blocks = Vec::with_capacity(config.depth);
        for layer in 0..config.depth {
            let (block, grid) = FusedBlock::new(&mut parts, layer, leaving)?;
            leaving = grid;
            blocks.push(block);
        }
        let after = |place| matches!(place, Place::FinalNorm | Place::Logits);
        if parts.left_over().any(|site| !after(site.place)) {
            return None;
        }
        let tap = model.tap.part(|site| after(site.place));
        let head = model.model.head().ok()?;
        Some(Self { config, embedding, blocks, leaving, head, tap, works: Mutex::default() })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether sums over so many tokens fit; only models without positions can be given more.
    pub fn holds(&self, tokens: usize) -> bool {
        tokens <= MAX_KEYS
    }

    /// Logits (sequences, tokens, vocabulary).
    ///
    /// # Errors
    /// If the ids do not fit the model.
    pub fn logits(&self, ids: &[u32], sequences: usize) -> Result<Tensor, ModelError> {
        let hidden = self.hidden(ids, sequences)?;
        Ok(self.head.logits(&Tape::off(), &mut self.tap.clone(), &hidden)?.tensor().clone())
    }

    /// Logits of the last position alone, (sequences, 1, vocabulary).
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn last_logits(&self, ids: &[u32], sequences: usize) -> Result<Tensor, ModelError> {
        self.with_stream(ids, sequences, |stream, span| self.last(stream, span))
    }

    /// Mean cross-entropy of `targets`, one per id.
    ///
    /// # Errors
    /// As [`Self::logits`], and if the targets do not fit the model.
    pub fn loss(&self, ids: &[u32], targets: &[u32], sequences: usize) -> Result<Value, ModelError> {
        check_ids(&self.config, targets, sequences)?;
        let hidden = self.hidden(ids, sequences)?;
        self.head.loss(&Tape::off(), &mut self.tap.clone(), &hidden, targets)
    }

    /// What the head reads, (sequences, tokens, width).
    fn hidden(&self, ids: &[u32], sequences: usize) -> Result<Value, ModelError> {
        self.with_stream(ids, sequences, |stream, span| self.normed(stream, [span.sequences, span.tokens]))
    }

    /// What `then` makes of the bytes that leave the last block, (sequences, tokens, width).
    fn with_stream<T>(
        &self,
        ids: &[u32],
        sequences: usize,
        then: impl FnOnce(&[u8], Span) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        check_ids(&self.config, ids, sequences)?;
        let tokens = ids.len() / sequences;
        let span = Span { sequences, tokens, past: 0, capacity: tokens };
        let mut work = self.works().pop().unwrap_or_default();
        self.enter(ids, span, &mut work);
        let mut keys = std::mem::take(&mut work.keys);
        for block in &self.blocks {
            block.forward(span, &mut work, &mut keys);
        }
        work.keys = keys;
        let result = then(&work.stream[..ids.len() * self.config.width], span);
        self.works().push(work);
        result
    }

    fn works(&self) -> std::sync::MutexGuard<'_, Vec<Work>> {
        self.works.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The stream that enters block 0.
    fn enter(&self, ids: &[u32], span: Span, work: &mut Work) {
        let stream = fitted(&mut work.stream, ids.len() * self.config.width);
        self.embedding.forward(ids, span, stream);
    }

    /// The logits of each sequence's last token, (sequences, 1, vocabulary).
    fn last(&self, stream: &[u8], span: Span) -> Result<Tensor, ModelError> {
        let d = self.config.width;
        let rows = stream.chunks_exact(span.tokens * d);
        let last: Vec<u8> = rows.flat_map(|rows| &rows[(span.tokens - 1) * d..]).copied().collect();
        let hidden = self.normed(&last, [span.sequences, 1])?;
        Ok(self.head.logits(&Tape::off(), &mut self.tap.clone(), &hidden)?.tensor().clone())
    }

    /// These rows of the stream as numbers, (sequences, tokens, width), after the final norm.
    fn normed(&self, stream: &[u8], [sequences, tokens]: [usize; 2]) -> Result<Value, ModelError> {
        let mut numbers = vec![0.0; stream.len()];
        dequantise_u8(stream, self.leaving, &mut numbers);
        let x = Value::constant(tensor(numbers, (sequences, tokens, self.config.width))?);
        self.head.final_norm(&Tape::off(), &mut self.tap.clone(), &x)
    }
}

/// The first `length` bytes of a buffer that grows and never shrinks.
fn fitted<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    &mut buffer[..length]
}
