//! A model that goes on token by token: prefill what is given, then decode one token at a time.
//!
//! **When the context is full.** Keys and values hold for the positions that their tokens had, so nothing can be dropped from
//! the middle of a pass. The decoder then empties its cache and runs the latest tokens again as a new beginning: half a
//! context of those it holds, and the new ones. A first prefill that is longer than the context is cut to its last
//! tokens. Angles of a dynamic RoPE scaling change with every token beyond the length that it starts from, so there
//! every call runs all tokens again.

use crate::cache::{CacheKind, KvCache};
use crate::error::Result;
use crate::model::{ModelError, Transformer};
use crate::ops::RopeScaling;
use crate::tap::{NoTap, Tap};
use crate::tape::Tape;
use candle_core::Tensor;
pub(crate) use held::{Held, when_full};

mod held;
#[cfg(test)]
mod tests;

/// What continues a batch of sequences of equal length.
pub trait Continues: Sized {
    /// Runs any number of tokens of each sequence, (sequences, tokens), after those held; gives the logits of the last
    /// position, (sequences, vocab).
    ///
    /// # Errors
    /// Ids beyond the vocabulary, none, or not as many for each sequence.
    fn prefill(&mut self, ids: &[u32]) -> Result<Tensor>;

    /// `times` copies of its sequences, all of them one after the other.
    fn repeated(self, times: usize) -> Self;

    /// Tokens held of each sequence.
    fn held(&self) -> usize;

    /// Bytes of the keys and values that are held.
    fn cache_bytes(&self) -> usize;
}

impl Continues for Decoder<'_> {
    fn prefill(&mut self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.run(&mut NoTap, ids)?)
    }
    fn repeated(self, times: usize) -> Self {
        Decoder::repeated(self, times)
    }
    fn held(&self) -> usize {
        self.len()
    }
    fn cache_bytes(&self) -> usize {
        Decoder::cache_bytes(self)
    }
}

/// A batch of sequences of equal length that a causal language model continues.
pub struct Decoder<'a> {
    model: &'a Transformer,
    tape: Tape,
    /// What the cache holds.
    held: Held,
}

impl<'a> Decoder<'a> {
    /// With nothing held yet.
    ///
    /// # Errors
    /// If the model does not predict the next token, or there is no sequence.
    pub fn new(
        model: &'a Transformer,
        sequences: usize,
        kind: CacheKind,
    ) -> std::result::Result<Self, ModelError> {
        if !model.config().predicts_next_token() {
            return Err(ModelError::NoNextToken);
        }
        let held = Held::new(sequences)?;
        let tape = Tape::continuing(KvCache::new(model.config(), sequences, kind));
        Ok(Self { model, tape, held })
    }

    /// Runs any number of tokens of each sequence, (sequences, tokens), after those held; gives the logits of the last
    /// position, (sequences, vocab).
    ///
    /// # Errors
    /// Ids beyond the vocabulary, none, or not as many for each sequence: nothing is added then.
    pub fn prefill(&mut self, ids: &[u32]) -> std::result::Result<Tensor, ModelError> {
        self.run(&mut NoTap, ids)
    }

    /// Runs one token of each sequence, after those held; gives its logits, (sequences, vocab).
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode(&mut self, ids: &[u32]) -> std::result::Result<Tensor, ModelError> {
        if ids.len() != self.sequences() {
            return Err(ModelError::Empty);
        }
        self.run(&mut NoTap, ids)
    }

    /// As [`Self::prefill`], with a tap that looks or reaches in. It sees the new tokens alone (all held tokens again where the
    /// cache starts anew), scores and probabilities with those of all keys, and the logits of the last position.
    ///
    /// # Errors
    /// As there, and what the tap returns: then the decoder holds what it held before, or nothing if it was to begin anew.
    pub fn run(&mut self, tap: &mut dyn Tap, ids: &[u32]) -> std::result::Result<Tensor, ModelError> {
        let next = self.held.next(ids, |total, new| self.beginning(total, new))?;
        self.model.check_input(&next.input, self.sequences())?;
        if next.anew {
            self.reset();
        }
        let logits = self.model.last_logits(&self.tape, tap, &next.input, self.sequences())?;
        self.held.add(&next);
        if let Some(mut cache) = self.tape.cache() {
            cache.advance(next.tokens);
        }
        Ok(logits.tensor().squeeze(1)?)
    }

    /// How many of the latest tokens are a new beginning if there are to be `total`, of them `new` new ones; `None` if the
    /// cache can go on.
    fn beginning(&self, total: usize, new: usize) -> Option<usize> {
        let c = self.model.config();
        let turns = match c.rope_scaling {
            RopeScaling::Dynamic { original, .. } => total as f64 > original,
            _ => false,
        };
        when_full(c.context, total, new).or_else(|| turns.then_some(total))
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.held.clear();
        if let Some(mut cache) = self.tape.cache() {
            cache.clear();
        }
    }

    /// The same decoder for `times` copies of its sequences, at least one, all of them one after the other, which may then go
    /// different ways.
    pub fn repeated(mut self, times: usize) -> Self {
        let times = times.max(1);
        if let Some(mut cache) = self.tape.cache() {
            cache.repeat(times);
        }
        self.held.repeat(times);
        self
    }

    /// Tokens held of each sequence, at most the model's context.
    pub fn len(&self) -> usize {
        self.tape.past()
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
        self.tape.cache().map_or(0, |cache| cache.bytes())
    }
}
