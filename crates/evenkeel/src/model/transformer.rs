//! One transformer. What differs between blocks is data in [`ModelConfig`]; there is one forward pass to read.
//!
//! Shapes: b sequences, t tokens, d width, f MLP hidden, v vocabulary; `x_btd` is (b, t, d).

use super::ModelError;
use super::attention::Attention;
use super::config::{Branches, ModelConfig, NormPosition, Positions};
use super::layers::{Linear, NormLayer, normed, param, visit};
use super::mlp::Mlp;
use super::params::{Builder, Parameter, Source, Start};
use crate::ops::{self, Dropout, Rope};
use crate::tap::{NoTap, Place, Site, Tap};
use crate::tape::{Recompute, Tape, Value};
use candle_core::{Result as CandleResult, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names and shapes of parameters, in order.
pub(super) type Shapes = Vec<(String, Vec<usize>)>;

/// A transformer with its parameters.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: ModelConfig,
    parameters: Vec<Parameter>,
    token: Parameter,
    position: Option<Parameter>,
    embed_proj: Option<Linear>,
    embed_norm: Option<NormLayer>,
    blocks: Vec<(Attention, Mlp)>,
    final_norm: Option<NormLayer>,
    head_proj: Option<Linear>,
    head: Parameter,
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

    fn build(config: ModelConfig, source: Source) -> Result<(Self, Shapes), ModelError> {
        config.validate()?;
        let c = &config;
        let (d, v) = (c.width, c.vocab);
        let mut b = Builder::new(source);

        let embed_start = Start::Normal(c.init.std(d));
        let token = b.parameter("embed.token.weight".into(), &[v, d], embed_start)?;
        let position = match c.positions {
            Positions::Learned => {
                Some(b.parameter("embed.position.weight".into(), &[c.context, d], embed_start)?)
            }
            Positions::Rope | Positions::None => None,
        };
        // Counting parameters needs no angles.
        let positions = if b.counts_only() { 0 } else { c.context };
        let rope = (c.positions == Positions::Rope)
            .then(|| Arc::new(Rope::new(c.rope_base, c.rotated(), positions)));
        let projection = |b: &mut Builder, name: &str| match c.embed_proj {
            true => Linear::new(b, name.into(), [d, d], Start::Orthogonal, false).map(Some),
            false => Ok(None),
        };
        let embed_proj = projection(&mut b, "embed.proj")?;
        let embed_norm = NormLayer::new(&mut b, "embed.norm", c.embed_norm, c)?;
        let mut blocks = Vec::with_capacity(c.depth);
        for layer in 0..c.depth {
            blocks.push((Attention::new(&mut b, layer, c, rope.clone())?, Mlp::new(&mut b, layer, c)?));
        }
        let final_norm = NormLayer::new(&mut b, "final_norm", c.final_norm, c)?;
        let head_proj = projection(&mut b, "head.proj")?;
        let head =
            if c.tie_head { token.clone() } else { b.parameter("head.weight".into(), &[v, d], embed_start)? };

        let shapes = std::mem::take(&mut b.shapes);
        let parameters = b.finish()?;
        let model = Self {
            config,
            parameters,
            token,
            position,
            embed_proj,
            embed_norm,
            blocks,
            final_norm,
            head_proj,
            head,
        };
        Ok((model, shapes))
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All parameters, in a fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of scalars in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.tensor.elem_count()).sum()
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
    pub fn check_input(&self, ids: &[u32], sequences: usize, tokens: usize) -> Result<(), ModelError> {
        if ids.is_empty() || ids.len() != sequences * tokens {
            return Err(ModelError::Empty);
        }
        if tokens > self.config.context && self.config.positions == Positions::Learned {
            return Err(ModelError::TooLong { tokens, context: self.config.context });
        }
        match ids.iter().find(|&&id| id as usize >= self.config.vocab) {
            Some(&id) => Err(ModelError::IdBeyondVocabulary { id, vocab: self.config.vocab }),
            None => Ok(()),
        }
    }

    /// The forward pass up to and including the final norm: ids (b, t) to x_btd.
    ///
    /// # Errors
    /// Bad ids; or a transforming tap while the tape records.
    pub fn hidden(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        let tokens = ids.len() / sequences.max(1);
        self.check_input(ids, sequences, tokens)?;
        if tape.is_recording() && tap.transforms() {
            return Err(ModelError::TransformWhileRecording);
        }
        let token = param(tape, &self.token);
        let position = self.position.as_ref().map(|p| param(tape, p));
        let mut x = ops::embedding(tape, &token, position.as_ref(), ids, sequences, tokens)?;
        x = projected(tape, &self.embed_proj, x)?;
        x = normed(tape, &self.embed_norm, &x)?;
        x = ops::dropout(tape, x, Dropout::of(tape, self.config.dropout_embed, 0))?;
        x = visit(tap, Site::outside(Place::Embed), x)?;
        for layer in 0..self.blocks.len() {
            x = match tape.recompute() {
                Recompute::Block => self.forgetting(tape, tap, &[&x], move |model, tape, tap, x| {
                    model.block(tape, tap, layer, &x[0])
                })?,
                Recompute::None | Recompute::Mlp => self.block(tape, tap, layer, &x)?,
            };
        }
        x = normed(tape, &self.final_norm, &x)?;
        Ok(visit(tap, Site::outside(Place::FinalNorm), x)?)
    }

    /// Runs `part` without a record, to be run again with one in the backward pass.
    fn forgetting(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        inputs: &[&Value],
        part: impl Fn(&Self, &Tape, &mut dyn Tap, &[Value]) -> Result<Value, ModelError> + 'static,
    ) -> Result<Value, ModelError> {
        let constants: Vec<Value> = inputs.iter().map(|x| Value::constant(x.tensor().clone())).collect();
        let y = part(self, &tape.twin_off(), tap, &constants)?;
        let model = self.clone();
        Ok(tape.push_forgotten(y.tensor().clone(), inputs, move |tape, inputs| {
            part(&model, tape, &mut NoTap, inputs).map_err(candle_core::Error::wrap)
        }))
    }

    /// What leaves block `layer`.
    fn block(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        x_btd: &Value,
    ) -> Result<Value, ModelError> {
        let (attention, mlp) = &self.blocks[layer];
        let y_btd = match self.config.branches {
            Branches::Sequential => {
                let (h, onto) = self.enter(tape, &attention.norm, x_btd)?;
                let x = attention.forward(tape, tap, layer, &h, onto)?;
                let x =
                    visit(tap, Site::block(layer, Place::ResidMid), self.leave(tape, &attention.norm, x)?)?;
                self.forget_mlp(tape, tap, &[&x], move |model, tape, tap, x| {
                    let mlp = &model.blocks[layer].1;
                    let (h, onto) = model.enter(tape, &mlp.norm, &x[0])?;
                    let y = mlp.forward(tape, tap, layer, &h, onto)?;
                    Ok(model.leave(tape, &mlp.norm, y)?)
                })?
            }
            Branches::Parallel | Branches::ParallelTwoNorms => {
                let (h, onto) = self.enter(tape, &attention.norm, x_btd)?;
                let own = if mlp.norm.is_some() { x_btd } else { &h };
                let x = attention.forward(tape, tap, layer, &h, onto)?;
                self.forget_mlp(tape, tap, &[own, &x], move |model, tape, tap, x| {
                    let mlp = &model.blocks[layer].1;
                    mlp.forward(tape, tap, layer, &normed(tape, &mlp.norm, &x[0])?, x[1].clone())
                })?
            }
        };
        Ok(visit(tap, Site::block(layer, Place::Resid), y_btd)?)
    }

    /// The MLP's part of a block, forgotten if that is asked for.
    fn forget_mlp(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        inputs: &[&Value],
        part: impl Fn(&Self, &Tape, &mut dyn Tap, &[Value]) -> Result<Value, ModelError> + 'static,
    ) -> Result<Value, ModelError> {
        if tape.recompute() == Recompute::Mlp {
            return self.forgetting(tape, tap, inputs, part);
        }
        let inputs: Vec<Value> = inputs.iter().map(|&x| x.clone()).collect();
        part(self, tape, tap, &inputs)
    }

    /// What a branch reads, and the stream that it joins.
    fn enter(&self, tape: &Tape, norm: &Option<NormLayer>, x: &Value) -> CandleResult<(Value, Value)> {
        Ok(match self.config.norm_position {
            NormPosition::Pre => (normed(tape, norm, x)?, x.clone()),
            NormPosition::Post => (x.clone(), x.clone()),
            NormPosition::PostStream => {
                let n = normed(tape, norm, x)?;
                (n.clone(), n)
            }
        })
    }

    /// The stream after a branch has joined it.
    fn leave(&self, tape: &Tape, norm: &Option<NormLayer>, x: Value) -> CandleResult<Value> {
        match self.config.norm_position {
            NormPosition::Post => normed(tape, norm, &x),
            NormPosition::Pre | NormPosition::PostStream => Ok(x),
        }
    }

    /// Logits (b, t, v).
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn logits(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        let x_btd = projected(tape, &self.head_proj, self.hidden(tape, tap, ids, sequences)?)?;
        let logits_btv = ops::head_logits(tape, &x_btd, &param(tape, &self.head))?;
        Ok(visit(tap, Site::outside(Place::Logits), logits_btv)?)
    }

    /// Mean cross-entropy of `targets`, one per id, without holding the logits unless a tap wants them.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn loss(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        ids: &[u32],
        targets: &[u32],
        sequences: usize,
    ) -> Result<Value, ModelError> {
        self.check_input(targets, sequences, targets.len() / sequences.max(1))?;
        let x_btd = projected(tape, &self.head_proj, self.hidden(tape, tap, ids, sequences)?)?;
        let head = param(tape, &self.head);
        let logits = Site::outside(Place::Logits);
        if tap.wants(logits) {
            let off = tape.twin_off();
            let plain = Value::constant(x_btd.tensor().clone());
            visit(tap, logits, ops::head_logits(&off, &plain, &Value::constant(head.tensor().clone()))?)?;
        }
        Ok(ops::head_cross_entropy(tape, &x_btd, &head, targets)?)
    }
}

fn projected(tape: &Tape, layer: &Option<Linear>, x: Value) -> CandleResult<Value> {
    match layer {
        Some(layer) => layer.forward(tape, &x, None),
        None => Ok(x),
    }
}
