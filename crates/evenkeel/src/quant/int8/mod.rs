//! The model in integers: matrices of signed bytes, and the quantisers of a calibrated simulation.
//!
//! [`IntegerModel`] is the same [`Transformer`] with its matrices stored as bytes and multiplied as such; between them the
//! quantisers put every value on its grid, so that a product's input is bytes already. It agrees with the simulation to the
//! order of float32 sums: products are exact here and rounded there.
//!
//! Beyond the simulation it rounds two things. Biases become integers of the unit s_x s_w of their layer's sums. A matrix
//! whose input has no quantiser (behind a gate, or after the embedding) gets a grid for each token.
//!
//! Two paths run it. The generic one is the float model's forward pass with float32 tensors between operations, right for every
//! block. [`Fused`] keeps bytes between them, for the plain blocks whose every place has a static grid.

mod decoder;
mod folder;
mod fused;
mod grids;
mod stored;

pub use decoder::IntegerDecoder;
pub use folder::{Dequantised, MODEL_TYPE, check, convert, dequantised, is_integer, read, write};
pub use fused::{Fused, FusedDecoder};
pub use grids::ActivationGrid;

use super::simulation::explained;
use super::tap::QuantTap;
use crate::cache::CacheKind;
use crate::error::Result;
use crate::model::{Block, Embedding, Head, ModelConfig, ModelError, Parts, Transformer};
use crate::tap::{Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an integer folder says of itself in config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Layout version.
    pub schema: u32,
    /// Name of the scheme.
    pub scheme: String,
    /// What was done to the model before, in order.
    #[serde(default)]
    pub repairs: Vec<String>,
    /// Tokens of calibration.
    pub calib_tokens: u64,
    /// Words of each site's quantiser.
    pub activations: BTreeMap<String, String>,
}

/// A model whose products are of integers.
pub struct IntegerModel {
    model: Transformer,
    tap: QuantTap,
    grids: BTreeMap<Site, ActivationGrid>,
    description: Description,
    bytes: usize,
    fused: Option<Fused>,
}

impl IntegerModel {
    fn new(
        model: Transformer,
        tap: QuantTap,
        grids: BTreeMap<Site, ActivationGrid>,
        description: Description,
        bytes: usize,
    ) -> Self {
        let mut made = Self { model, tap, grids, description, bytes, fused: None };
        made.fused = Fused::new(&made);
        made
    }

    /// The network: its matrices multiply as they are stored. Run with [`Self::tap`].
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The quantisers, to be on in every pass.
    pub fn tap(&self) -> QuantTap {
        self.tap.clone()
    }

    /// The grid at each quantised site.
    pub fn grids(&self) -> &BTreeMap<Site, ActivationGrid> {
        &self.grids
    }

    /// Where it comes from.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Bytes of memory that the parameters take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Logits (sequences, tokens, vocabulary), by the fastest path.
    ///
    /// # Errors
    /// If the ids do not fit the model.
    pub fn logits(&self, ids: &[u32], sequences: usize) -> Result<Tensor> {
        match self.fused_for(ids, sequences) {
            Some(fused) => Ok(fused.logits(ids, sequences)?),
            None => self.logits_generic(ids, sequences),
        }
    }

    /// Logits of the last position alone, (sequences, 1, vocabulary), by the fastest path.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn last_logits(&self, ids: &[u32], sequences: usize) -> Result<Tensor> {
        match self.fused_for(ids, sequences) {
            Some(fused) => Ok(fused.last_logits(ids, sequences)?),
            None => self.with_quantisers(|tap| self.model.last_logits(&Tape::off(), tap, ids, sequences)),
        }
    }

    /// Mean cross-entropy of `targets`, one per id, by the fastest path.
    ///
    /// # Errors
    /// As [`Self::logits`], and if the targets do not fit the model.
    pub fn loss(&self, ids: &[u32], targets: &[u32], sequences: usize) -> Result<f64> {
        let loss = match self.fused_for(ids, sequences) {
            Some(fused) => fused.loss(ids, targets, sequences)?.tensor().clone(),
            None => {
                self.with_quantisers(|tap| self.model.loss(&Tape::off(), tap, ids, targets, sequences))?
            }
        };
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// Logits with float32 tensors between operations, on which every quantiser is run: right for every block, and what the
    /// fast path is held against.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn logits_generic(&self, ids: &[u32], sequences: usize) -> Result<Tensor> {
        self.with_quantisers(|tap| self.model.logits(&Tape::off(), tap, ids, sequences))
    }

    /// A pass with the quantisers on; a quantiser's own error instead of the tensor library's.
    fn with_quantisers(
        &self,
        pass: impl FnOnce(&mut QuantTap) -> std::result::Result<Value, ModelError>,
    ) -> Result<Tensor> {
        let mut tap = self.tap();
        let outcome = pass(&mut tap);
        Ok(explained(outcome, &mut tap)?.tensor().clone())
    }

    /// What continues `sequences` sequences token by token: by the fastest path, unless a kind of cache asks for the generic one.
    ///
    /// # Errors
    /// If the model does not predict the next token, or there is no sequence.
    pub fn decoder(&self, sequences: usize, cache: Option<CacheKind>) -> Result<IntegerDecoder<'_>> {
        IntegerDecoder::new(self, sequences, cache)
    }

    /// The path on bytes, if the model is one for it.
    pub fn fused(&self) -> Option<&Fused> {
        self.fused.as_ref()
    }

    fn fused_for(&self, ids: &[u32], sequences: usize) -> Option<&Fused> {
        self.fused().filter(|fused| fused.holds(ids.len() / sequences.max(1)))
    }
}

impl Parts for IntegerModel {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }
    fn parameter_count(&self) -> usize {
        self.model.parameter_count()
    }
    fn embedding(&self) -> std::result::Result<Embedding, ModelError> {
        self.model.embedding()
    }
    fn block(&self, layer: usize) -> std::result::Result<Block, ModelError> {
        self.model.block(layer)
    }
    fn head(&self) -> std::result::Result<Head, ModelError> {
        self.model.head()
    }
    fn quantisers(&self) -> Option<QuantTap> {
        Some(self.tap())
    }
}

/// Quantisers, if there are any, and a tap that sees what they leave.
pub struct Seen<'a> {
    /// Those of the model.
    pub quantisers: Option<&'a mut QuantTap>,
    /// Who looks.
    pub then: &'a mut dyn Tap,
}

impl<'a> Seen<'a> {
    /// `quantisers` first, then `then`.
    pub fn new(quantisers: &'a mut Option<QuantTap>, then: &'a mut dyn Tap) -> Self {
        Self { quantisers: quantisers.as_mut(), then }
    }
}

impl Tap for Seen<'_> {
    fn wants(&self, site: Site) -> bool {
        self.quantisers.as_ref().is_some_and(|q| q.wants(site)) || self.then.wants(site)
    }

    fn visit(&mut self, site: Site, mut x: Tensor) -> candle_core::Result<Tensor> {
        if let Some(quantisers) = self.quantisers.as_mut().filter(|q| q.wants(site)) {
            x = quantisers.visit(site, x)?;
        }
        match self.then.wants(site) {
            true => self.then.visit(site, x),
            false => Ok(x),
        }
    }

    fn transforms(&self) -> bool {
        self.quantisers.is_some() || self.then.transforms()
    }
}
