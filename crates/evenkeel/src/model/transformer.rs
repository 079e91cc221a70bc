//! One transformer. What differs between blocks is data in [`ModelConfig`]; there is one forward pass to read.
//!
//! It has three kinds of part: [`Embedding`], [`Block`] and [`Head`]. A [`Transformer`] holds them all; whoever wants one at a
//! time asks for [`Parts`].
//!
//! Shapes: b sequences, t tokens, d width, f MLP hidden, v vocabulary; `x_btd` is (b, t, d).

use super::ModelError;
use super::block::Block;
use super::config::{ModelConfig, Positions};
use super::embedding::Embedding;
use super::head::Head;
use super::input::{Examples, Input, check_ids};
use super::matrix::StoredMatrix;
use super::params::{Builder, Parameter, Source};
use crate::ops::{self, Rope};
use crate::quant::QuantTap;
use crate::tap::Tap;
use crate::tape::{Tape, Value};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names and shapes of parameters, in order.
pub(crate) type Shapes = Vec<(String, Vec<usize>)>;

/// A transformer with its parameters.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: ModelConfig,
    parameters: Vec<Parameter>,
    /// Matrices that are stored otherwise than as parameters.
    stored: BTreeMap<String, Arc<StoredMatrix>>,
    /// Scalars of all parameters, also of matrices that are stored otherwise.
    count: usize,
    embedding: Embedding,
    blocks: Vec<Block>,
    head: Head,
}

/// A model whose parts can be had one at a time: held in memory, or read as they are asked for.
pub trait Parts {
    /// What the model is.
    fn config(&self) -> &ModelConfig;

    /// Number of scalars in all parameters.
    fn parameter_count(&self) -> usize;

    /// The way in.
    ///
    /// # Errors
    /// If it cannot be read.
    fn embedding(&self) -> Result<Embedding, ModelError>;

    /// Block `layer`, below the model's depth.
    ///
    /// # Errors
    /// If it cannot be read.
    fn block(&self, layer: usize) -> Result<Block, ModelError>;

    /// The way out.
    ///
    /// # Errors
    /// If it cannot be read.
    fn head(&self) -> Result<Head, ModelError>;

    /// What rounds activations in every pass, for a model of integers.
    fn quantisers(&self) -> Option<QuantTap> {
        None
    }
}

impl Parts for Transformer {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn parameter_count(&self) -> usize {
        Transformer::parameter_count(self)
    }
    fn embedding(&self) -> Result<Embedding, ModelError> {
        Ok(self.embedding.clone())
    }
    fn block(&self, layer: usize) -> Result<Block, ModelError> {
        Ok(self.blocks[layer].clone())
    }
    fn head(&self) -> Result<Head, ModelError> {
        Ok(self.head.clone())
    }
}

/// Reads a parameter of this name and shape.
pub type Reader<'a> = dyn Fn(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

/// The parts of a model whose parameters a reader has, built when they are asked for and not kept.
pub struct Streamed<'a> {
    config: ModelConfig,
    parameters: usize,
    rope: Option<Arc<Rope>>,
    reader: &'a Reader<'a>,
}

impl<'a> Streamed<'a> {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// If the configuration makes no network.
    pub fn new(config: ModelConfig, reader: &'a Reader<'a>) -> Result<Self, ModelError> {
        let shapes = Transformer::shapes(config.clone())?;
        let parameters = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let rope = rope(&config);
        Ok(Self { config, parameters, rope, reader })
    }

    fn part<T>(&self, make: impl FnOnce(&mut Builder) -> Result<T, ModelError>) -> Result<T, ModelError> {
        let mut b = Builder::new(Source::Reader(self.reader));
        let part = make(&mut b)?;
        b.finish()?;
        Ok(part)
    }
}

impl Parts for Streamed<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn parameter_count(&self) -> usize {
        self.parameters
    }
    fn embedding(&self) -> Result<Embedding, ModelError> {
        self.part(|b| Embedding::new(b, &self.config))
    }
    fn block(&self, layer: usize) -> Result<Block, ModelError> {
        self.part(|b| Block::new(b, layer, &self.config, self.rope.clone()))
    }
    fn head(&self) -> Result<Head, ModelError> {
        self.part(|b| Head::new(b, &self.config, None))
    }
}

/// The angles that all blocks share.
fn rope(c: &ModelConfig) -> Option<Arc<Rope>> {
    let made = || Arc::new(Rope::of_context(c.rope_base, c.rotated(), c.context, c.rope_scaling));
    (c.positions == Positions::Rope).then(made)
}

impl Transformer {
    /// A fresh model; parameters depend on the seed and their names alone.
    ///
    /// # Errors
    /// If the configuration makes no network.
    pub fn new(config: ModelConfig, seed: u64) -> Result<Self, ModelError> {
        Self::build(config, Source::Seed(seed)).map(|(model, _)| model)
    }

    /// A model with these parameters.
    ///
    /// # Errors
    /// If the configuration makes no network; or every tensor that is missing, misshapen or left over.
    pub fn from_tensors(
        config: ModelConfig,
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> Result<Self, ModelError> {
        Self::build(config, Source::Tensors(tensors)).map(|(model, _)| model)
    }

    /// Names and shapes of the parameters without making them.
    ///
    /// # Errors
    /// If the configuration makes no network.
    pub fn shapes(config: ModelConfig) -> Result<Shapes, ModelError> {
        Self::build(config, Source::Shapes).map(|(_, shapes)| shapes)
    }

    /// A model whose parameters `reader` has.
    ///
    /// # Errors
    /// If the configuration makes no network, or the reader's.
    pub fn read(config: ModelConfig, reader: &Reader) -> Result<Self, ModelError> {
        Self::build(config, Source::Reader(reader)).map(|(model, _)| model)
    }

    /// A model some of whose matrices are stored otherwise, `reader` having its other parameters.
    ///
    /// # Errors
    /// If the configuration makes no network, the reader's, or matrices that do not fit.
    pub fn stored(
        config: ModelConfig,
        matrices: &mut BTreeMap<String, StoredMatrix>,
        reader: &Reader,
    ) -> Result<Self, ModelError> {
        Self::build(config, Source::Stored(matrices, reader)).map(|(model, _)| model)
    }

    fn build(config: ModelConfig, source: Source) -> Result<(Self, Shapes), ModelError> {
        config.validate()?;
        let c = &config;
        let mut b = Builder::new(source);
        let embedding = Embedding::new(&mut b, c)?;
        // Counting parameters needs no angles.
        let rope = if b.counts_only() { None } else { rope(c) };
        let blocks = (0..c.depth).map(|layer| Block::new(&mut b, layer, c, rope.clone()));
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        let head = Head::new(&mut b, c, embedding.token_table())?;
        let shapes = std::mem::take(&mut b.shapes);
        let count = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let stored = std::mem::take(&mut b.stored);
        let parameters = b.finish()?;
        Ok((Self { config, parameters, stored, count, embedding, blocks, head }, shapes))
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All parameters, in a fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The matrix `name`, if it is stored otherwise than as a parameter.
    pub fn stored_matrix(&self, name: &str) -> Option<&StoredMatrix> {
        self.stored.get(name).map(Arc::as_ref)
    }

    /// Number of scalars in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.count
    }

    /// The same network in another dtype, with copies of the parameters (float64 for exact checks).
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn to_dtype(&self, dtype: candle_core::DType) -> Result<Self, ModelError> {
        self.map_parameters(|p| Ok(p.tensor.to_dtype(dtype)?))
    }

    /// The same network with each parameter replaced by a tensor of the same shape.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn map_parameters(
        &self,
        mut f: impl FnMut(&Parameter) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        for p in &self.parameters {
            tensors.insert(p.name.clone(), f(p)?);
        }
        Self::from_tensors(self.config.clone(), &mut tensors)
    }

    /// Checks ids and lengths before anything is computed.
    ///
    /// # Errors
    /// An id beyond the vocabulary, a sequence longer than the context, or nothing at all.
    pub fn check_input(&self, ids: &[u32], sequences: usize) -> Result<(), ModelError> {
        check_ids(&self.config, ids, sequences)
    }

    /// The forward pass up to and including the final norm: (b, t, d).
    ///
    /// # Errors
    /// Inputs that do not fit; or a transforming tap while the tape records.
    pub fn run(&self, tape: &Tape, tap: &mut dyn Tap, input: &Input) -> Result<Value, ModelError> {
        input.check(&self.config)?;
        if tape.is_recording() && tap.transforms() {
            return Err(ModelError::TransformWhileRecording);
        }
        let mut x_btd = self.embedding.forward(tape, tap, input)?;
        for block in &self.blocks {
            x_btd = block.forward(tape, tap, &x_btd)?;
        }
        self.head.final_norm(tape, tap, &x_btd)
    }

    /// [`Self::run`] of token ids.
    ///
    /// # Errors
    /// As there.
    pub fn hidden(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        self.run(tape, tap, &Input::Tokens { ids: ids.to_vec(), sequences })
    }

    /// Logits (b, t, v).
    ///
    /// # Errors
    /// As [`Self::run`], and if the model has no head.
    pub fn logits(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        let x_btd = self.hidden(tape, tap, ids, sequences)?;
        self.head.logits(tape, tap, &x_btd)
    }

    /// Logits (b, t, v) of any input; (b, 1, v) where a sequence is classified.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn logits_of(&self, tape: &Tape, tap: &mut dyn Tap, input: &Input) -> Result<Value, ModelError> {
        let x_btd = self.run(tape, tap, input)?;
        self.head.logits(tape, tap, &x_btd)
    }

    /// Logits of the last position alone, (b, 1, v).
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn last_logits(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        let x_btd = self.hidden(tape, tap, ids, sequences)?;
        let last = x_btd.tensor().dim(1)? - 1;
        let x_b1d = tape.compose(&[&x_btd], |t| t[0].narrow(1, last, 1)?.contiguous())?;
        self.head.logits(tape, tap, &x_b1d)
    }

    /// Mean cross-entropy of `targets`, one per id, without holding the logits unless a tap wants them.
    ///
    /// # Errors
    /// As [`Self::logits`], and if the model does not predict the next token.
    pub fn loss(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        targets: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        if !self.config.predicts_next_token() {
            return Err(ModelError::NoNextToken);
        }
        self.check_input(targets, sequences)?;
        let x_btd = self.hidden(tape, tap, ids, sequences)?;
        self.head.loss(tape, tap, &x_btd, targets)
    }

    /// Mean cross-entropy of examples: of the next tokens, or of the images' classes.
    ///
    /// # Errors
    /// As [`Self::loss`], and if the examples are of the wrong kind or size.
    pub fn loss_of(&self, tape: &Tape, tap: &mut dyn Tap, examples: &Examples) -> Result<Value, ModelError> {
        match &examples.input {
            Input::Tokens { ids, sequences } => self.loss(tape, tap, ids, &examples.targets, *sequences),
            Input::Images { .. } => {
                let logits = self.class_logits(tape, tap, examples)?;
                Ok(ops::cross_entropy(tape, &logits, &examples.targets)?)
            }
        }
    }

    /// Logits (b, 1, v) of labelled images, the labels checked.
    ///
    /// # Errors
    /// As [`Self::logits`], and if the model does not classify images or a label is no class of it.
    pub fn class_logits(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        examples: &Examples,
    ) -> Result<Value, ModelError> {
        if !self.config.classifies_images() {
            return Err(ModelError::NoClasses);
        }
        examples.check_classes(&self.config)?;
        self.logits_of(tape, tap, &examples.input)
    }
}
