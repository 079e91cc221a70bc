//! Going on token by token, by whichever path runs the model.

use super::{FusedDecoder, IntegerModel};
use crate::cache::CacheKind;
use crate::decode::{Continues, Decoder};
use crate::error::Result;
use crate::model::ModelError;
use crate::quant::QuantTap;
use candle_core::Tensor;

/// A batch of sequences of equal length that an integer model continues; as [`Decoder`].
pub enum IntegerDecoder<'a> {
    /// On bytes.
    Fused(Box<FusedDecoder<'a>>),
    /// With quantisers between float32 tensors. Keys and values lie on their grids, and are kept as the cache's kind says.
    Generic(Box<(Decoder<'a>, QuantTap)>),
}

impl<'a> IntegerDecoder<'a> {
    pub(super) fn new(model: &'a IntegerModel, sequences: usize, cache: Option<CacheKind>) -> Result<Self> {
        // On bytes, keys and values are bytes too.
        let bytes = matches!(cache, None | Some(CacheKind::Int8));
        Ok(match model.fused().filter(|fused| bytes && fused.holds(fused.config().context)) {
            Some(fused) => Self::Fused(Box::new(FusedDecoder::new(fused, sequences)?)),
            None => {
                let decoder = Decoder::new(model.model(), sequences, cache.unwrap_or(CacheKind::F32))?;
                Self::Generic(Box::new((decoder, model.tap())))
            }
        })
    }

    /// Runs any number of tokens of each sequence, (sequences, tokens), after those held; gives the logits of the last
    /// position, (sequences, vocab).
    ///
    /// # Errors
    /// Ids beyond the vocabulary, none, or not as many for each sequence: nothing is added then.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Self::Fused(decoder) => decoder.prefill(ids)?,
            Self::Generic(generic) => generic.0.run(&mut generic.1, ids)?,
        })
    }

    /// Runs one token of each sequence, after those held; gives its logits, (sequences, vocab).
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn decode(&mut self, ids: &[u32]) -> Result<Tensor> {
        match ids.len() == self.sequences() {
            true => self.prefill(ids),
            false => Err(ModelError::Empty.into()),
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        match self {
            Self::Fused(decoder) => decoder.reset(),
            Self::Generic(generic) => generic.0.reset(),
        }
    }

    /// The same decoder for `times` copies of its sequences, all of them one after the other, which may then go different ways.
    pub fn repeated(self, times: usize) -> Self {
        match self {
            Self::Fused(decoder) => Self::Fused(Box::new(decoder.repeated(times))),
            Self::Generic(generic) => Self::Generic(Box::new((generic.0.repeated(times), generic.1))),
        }
    }

    /// Tokens held of each sequence, at most the model's context.
    pub fn len(&self) -> usize {
        match self {
            Self::Fused(decoder) => decoder.len(),
            Self::Generic(generic) => generic.0.len(),
        }
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        match self {
            Self::Fused(decoder) => decoder.sequences(),
            Self::Generic(generic) => generic.0.sequences(),
        }
    }

    /// Bytes of the keys and values that are held.
    pub fn cache_bytes(&self) -> usize {
        match self {
            Self::Fused(decoder) => decoder.cache_bytes(),
            Self::Generic(generic) => generic.0.cache_bytes(),
        }
    }
}

impl Continues for IntegerDecoder<'_> {
    fn prefill(&mut self, ids: &[u32]) -> Result<Tensor> {
        IntegerDecoder::prefill(self, ids)
    }
    fn repeated(self, times: usize) -> Self {
        IntegerDecoder::repeated(self, times)
    }
    fn held(&self) -> usize {
        self.len()
    }
    fn cache_bytes(&self) -> usize {
        IntegerDecoder::cache_bytes(self)
    }
}
