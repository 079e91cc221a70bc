//! Going on token by token on bytes: the cache holds keys and values as the bytes that they are.

use super::block::Span;
use super::{Fused, Work, fitted};
use crate::decode::{Held, when_full};
use crate::model::{ModelError, check_ids};
use candle_core::Tensor;
use evenkeel_kernels::int8::requantise::less_128;
use rayon::prelude::*;

/// Keys and values of one block less 128, (sequences, capacity, channels).
#[derive(Clone, Default)]
pub(super) struct LayerKeys {
    keys: Vec<i8>,
    values: Vec<i8>,
}

impl LayerKeys {
    /// Adds those of the tokens of `span`, bytes of (sequences, tokens, channels).
    pub(super) fn store(&mut self, keys: &[u8], values: &[u8], span: Span) {
        for (new, held) in [(keys, &mut self.keys), (values, &mut self.values)] {
            let width = new.len() / (span.sequences * span.tokens);
            let held = fitted(held, span.sequences * span.capacity * width);
            let each = held.par_chunks_mut(span.capacity * width).zip(new.par_chunks(span.tokens * width));
            each.for_each(|(held, new)| less_128(new, &mut held[span.past * width..][..new.len()]));
        }
    }

    pub(super) fn keys(&self) -> &[i8] {
        &self.keys
    }

    pub(super) fn values(&self) -> &[i8] {
        &self.values
    }

    /// Makes room for `to` instead of `from` tokens of each of some sequences that hold `tokens`.
    fn grow(&mut self, sequences: usize, tokens: usize, from: usize, to: usize, width: usize) {
        for held in [&mut self.keys, &mut self.values] {
            let mut grown = vec![0; sequences * to * width];
            let rows = grown.chunks_exact_mut(to * width).zip(held.chunks_exact((from * width).max(1)));
            rows.for_each(|(grown, held)| {
                grown[..tokens * width].copy_from_slice(&held[..tokens * width]);
            });
            *held = grown;
        }
    }
}

/// A batch of sequences of equal length that a fused model continues; as [`crate::decode::Decoder`], which says what happens when
/// the context is full.
pub struct FusedDecoder<'a> {
    model: &'a Fused,
    held: Held,
    layers: Vec<LayerKeys>,
    /// Tokens of each sequence that the layers have room for.
    capacity: usize,
    work: Work,
}

/// Tokens that a cache has room for at first.
const FIRST_CAPACITY: usize = 64;

impl<'a> FusedDecoder<'a> {
    /// With nothing held yet.
    ///
    /// # Errors
    /// If there is no sequence.
    pub fn new(model: &'a Fused, sequences: usize) -> Result<Self, ModelError> {
        let layers = vec![LayerKeys::default(); model.blocks.len()];
        Ok(Self { model, held: Held::new(sequences)?, layers, capacity: 0, work: Work::default() })
    }

    /// Runs any number of tokens of each sequence, (sequences, tokens), after those held; gives the logits of the last
    /// position, (sequences, vocab).
    ///
    /// # Errors
    /// Ids beyond the vocabulary, none, or not as many for each sequence: nothing is added then.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<Tensor, ModelError> {
        let context = self.model.config.context;
        let next = self.held.next(ids, |total, new| when_full(context, total, new))?;
        let sequences = self.sequences();
        check_ids(&self.model.config, &next.input, sequences)?;
        if next.anew {
            self.reset();
        }
        let past = self.len();
        self.fit(past + next.tokens);
        let span = Span { sequences, tokens: next.tokens, past, capacity: self.capacity };
        self.model.enter(&next.input, span, &mut self.work);
        for (block, keys) in self.model.blocks.iter().zip(&mut self.layers) {
            block.forward(span, &mut self.work, keys);
        }
        let stream = &self.work.stream[..next.input.len() * self.model.config.width];
        let logits = self.model.last(stream, span)?.squeeze(1)?;
        self.held.add(&next);
        Ok(logits)
    }

    /// Runs one token of each sequence, after those held; gives its logits, (sequences, vocab).
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode(&mut self, ids: &[u32]) -> Result<Tensor, ModelError> {
        match ids.len() == self.sequences() {
            true => self.prefill(ids),
            false => Err(ModelError::Empty),
        }
    }

    /// Room for so many tokens of each sequence.
    fn fit(&mut self, tokens: usize) {
        if tokens <= self.capacity {
            return;
        }
        let c = &self.model.config;
        let capacity = tokens.max(2 * self.capacity).max(FIRST_CAPACITY).min(c.context.max(tokens));
        let (sequences, held, width) = (self.sequences(), self.len(), c.kv_heads() * c.d_head());
        for layer in &mut self.layers {
            layer.grow(sequences, held, self.capacity, capacity, width);
        }
        self.capacity = capacity;
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.held.clear();
    }

    /// The same decoder for `times` copies of its sequences, all of them one after the other, which may then go different ways.
    pub fn repeated(mut self, times: usize) -> Self {
        let times = times.max(1);
        self.held.repeat(times);
        for layer in &mut self.layers {
            for held in [&mut layer.keys, &mut layer.values] {
                *held = held.repeat(times);
            }
        }
        self
    }

    /// Tokens held of each sequence, at most the model's context.
    pub fn len(&self) -> usize {
        self.held.tokens()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.held.sequences()
    }

    /// Bytes of the keys and values that are held.
    pub fn cache_bytes(&self) -> usize {
        let c = &self.model.config;
        2 * c.depth * self.sequences() * self.len() * c.kv_heads() * c.d_head()
    }
}
