//! One transformer. What differs between blocks is data in [`ModelConfig`]; there is one forward pass to read.
//!
//! Shapes: b sequences, t tokens, d width, f MLP hidden, v vocabulary; `x_btd` is (b, t, d).

use super::ModelError;
use super::config::{Init, ModelConfig, Norm, NormPosition, Positions, Projection, QkNorm};
use super::params::{Builder, Parameter, Source, Start};
use crate::ops::{self, AttentionSpec, Inner, NormSpec, QkNormSpec};
use crate::tap::{NoTap, Place, Site, Tap};
use crate::tape::{Recompute, Tape, Value};
use candle_core::{Result as CandleResult, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Names and shapes of parameters, in order.
pub(super) type Shapes = Vec<(String, Vec<usize>)>;

/// A matrix with an optional bias.
#[derive(Clone, Debug)]
struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
}

/// Gain and bias of a norm; both absent where the norm has none.
#[derive(Clone, Debug)]
struct NormLayer {
    spec: NormSpec,
    gain: Option<Parameter>,
    bias: Option<Parameter>,
}

/// A scalar on a branch, learned or not.
#[derive(Clone, Debug)]
enum Gain {
    Fixed(Tensor),
    Learned(Parameter),
}

#[derive(Clone, Debug)]
struct Attention {
    norm: Option<NormLayer>,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_gains: Option<(Parameter, Parameter)>,
    out: Linear,
    beta: Gain,
}

#[derive(Clone, Debug)]
struct Mlp {
    norm: Option<NormLayer>,
    alpha: Option<Gain>,
    up: Linear,
    down: Linear,
    beta: Gain,
}

/// A transformer with its parameters.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: ModelConfig,
    parameters: Vec<Parameter>,
    token: Parameter,
    position: Option<Parameter>,
    embed_norm: Option<NormLayer>,
    blocks: Vec<(Attention, Mlp)>,
    final_norm: Option<NormLayer>,
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
        let (d, f, v) = (c.width, c.hidden(), c.vocab);
        let mut b = Builder::new(source);

        let embed_start = Start::Normal(match c.init {
            Init::FanIn => 1.0 / (d as f64).sqrt(),
            Init::Normal(std) => std,
        });
        let token = b.parameter("embed.token.weight".into(), &[v, d], embed_start)?;
        let position = match c.positions {
            Positions::Learned => {
                Some(b.parameter("embed.position.weight".into(), &[c.context, d], embed_start)?)
            }
            Positions::None => None,
        };
        let embed_norm = norm_layer(&mut b, "embed.norm", c.embed_norm, c)?;

        let mut blocks = Vec::with_capacity(c.depth);
        for layer in 0..c.depth {
            let at = |name: &str| format!("blocks.{layer}.{name}");
            let attention = Attention {
                norm: norm_layer(&mut b, &at("attn.norm"), c.attn_norm(layer), c)?,
                q: linear_layer(&mut b, at("attn.q"), d, d, Projection::Q, c)?,
                k: linear_layer(&mut b, at("attn.k"), d, d, Projection::K, c)?,
                v: linear_layer(&mut b, at("attn.v"), d, d, Projection::V, c)?,
                qk_gains: match c.qk_norm {
                    QkNorm::None => None,
                    QkNorm::Rms => Some((
                        b.parameter(at("attn.q_norm.gain"), &[c.d_head()], Start::Constant(1.0))?,
                        b.parameter(at("attn.k_norm.gain"), &[c.d_head()], Start::Constant(1.0))?,
                    )),
                },
                out: linear_layer(&mut b, at("attn.out"), d, d, Projection::Out, c)?,
                beta: gain(&mut b, at("attn.beta"), c.beta.resolve(c.depth), c.beta_trainable)?,
            };
            let mlp = Mlp {
                norm: norm_layer(&mut b, &at("mlp.norm"), c.norm, c)?,
                alpha: if c.alpha != 1.0 || c.alpha_trainable {
                    Some(gain(&mut b, at("mlp.alpha"), c.alpha, c.alpha_trainable)?)
                } else {
                    None
                },
                up: linear_layer(&mut b, at("mlp.up"), d, f, Projection::Up, c)?,
                down: linear_layer(&mut b, at("mlp.down"), f, d, Projection::Down, c)?,
                beta: gain(&mut b, at("mlp.beta"), c.beta.resolve(c.depth), c.beta_trainable)?,
            };
            blocks.push((attention, mlp));
        }
        let final_norm = norm_layer(&mut b, "final_norm", c.final_norm, c)?;
        let head =
            if c.tie_head { token.clone() } else { b.parameter("head.weight".into(), &[v, d], embed_start)? };

        let shapes = std::mem::take(&mut b.shapes);
        let parameters = b.finish()?;
        Ok((Self { config, parameters, token, position, embed_norm, blocks, final_norm, head }, shapes))
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
        x = normed(tape, &self.embed_norm, x)?;
        x = visit(tap, Site::outside(Place::Embed), x)?;
        for (layer, (attention, mlp)) in self.blocks.iter().enumerate() {
            x = match tape.recompute() {
                Recompute::None => {
                    let x = self.attention_branch(tape, tap, layer, attention, x)?;
                    self.mlp_branch(tape, tap, layer, mlp, x)?
                }
                Recompute::Mlp => {
                    let x = self.attention_branch(tape, tap, layer, attention, x)?;
                    self.forgetting(tape, tap, x, move |model, tape, tap, x| {
                        model.mlp_branch(tape, tap, layer, &model.blocks[layer].1, x)
                    })?
                }
                Recompute::Block => self.forgetting(tape, tap, x, move |model, tape, tap, x| {
                    let (attention, mlp) = &model.blocks[layer];
                    let x = model.attention_branch(tape, tap, layer, attention, x)?;
                    model.mlp_branch(tape, tap, layer, mlp, x)
                })?,
            };
        }
        x = normed(tape, &self.final_norm, x)?;
        Ok(visit(tap, Site::outside(Place::FinalNorm), x)?)
    }

    /// Runs `part` without a record, to be run again with one in the backward pass.
    fn forgetting(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        x: Value,
        part: impl Fn(&Self, &Tape, &mut dyn Tap, Value) -> Result<Value, ModelError> + 'static,
    ) -> Result<Value, ModelError> {
        let constant = Value::constant(x.tensor().clone());
        let y = part(self, &tape.twin_off(), tap, constant)?;
        let model = self.clone();
        Ok(tape.push_forgotten(y.tensor().clone(), &x, move |tape, x| {
            part(&model, tape, &mut NoTap, x.clone()).map_err(candle_core::Error::wrap)
        }))
    }

    fn attention_branch(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        attn: &Attention,
        x_btd: Value,
    ) -> Result<Value, ModelError> {
        let site = |place| Site::block(layer, place);
        let pre = self.config.norm_position == NormPosition::Pre;
        let h_btd = if pre { normed(tape, &attn.norm, x_btd.clone())? } else { x_btd.clone() };
        let h_btd = visit(tap, site(Place::AttnIn), h_btd)?;
        let q_btd = visit(tap, site(Place::AttnQ), attn.q.forward(tape, &h_btd, None)?)?;
        let k_btd = visit(tap, site(Place::AttnK), attn.k.forward(tape, &h_btd, None)?)?;
        let v_btd = visit(tap, site(Place::AttnV), attn.v.forward(tape, &h_btd, None)?)?;

        let gains = attn.qk_gains.as_ref().map(|(q, k)| (param(tape, q), param(tape, k)));
        let qk_norm = gains.as_ref().map(|(q_gain, k_gain)| QkNormSpec {
            q_gain,
            k_gain,
            eps: self.config.qk_norm_eps,
        });
        let spec = AttentionSpec { heads: self.config.heads, causal: true };
        let places = [Place::AttnQNorm, Place::AttnKNorm, Place::AttnScores, Place::AttnProbs];
        let looked_into = if places.iter().any(|&p| tap.wants(site(p))) {
            let tap = RefCell::new(&mut *tap);
            let off = Tape::off();
            let composed =
                ops::attention_composed(&off, &q_btd, &k_btd, &v_btd, qk_norm, spec, |inner, tensor| {
                    let place = match inner {
                        Inner::QNorm => Place::AttnQNorm,
                        Inner::KNorm => Place::AttnKNorm,
                        Inner::Scores => Place::AttnScores,
                        Inner::Probs => Place::AttnProbs,
                    };
                    let mut tap = tap.borrow_mut();
                    if tap.wants(site(place)) { tap.visit(site(place), tensor) } else { Ok(tensor) }
                })?;
            Some(composed)
        } else {
            None
        };
        // Who only looks must not change a bit of what is computed: the kernel runs all the same.
        let context_btd = match looked_into {
            Some(composed) if tap.transforms() => composed,
            _ => ops::attention(tape, &q_btd, &k_btd, &v_btd, qk_norm, spec)?,
        };
        let context_btd = visit(tap, site(Place::AttnContext), context_btd)?;
        let sites = [site(Place::AttnOut), site(Place::AttnBranch)];
        let x_btd = join(tape, tap, sites, x_btd, &context_btd, &attn.out, &attn.beta)?;
        let x_btd = if pre { x_btd } else { normed(tape, &attn.norm, x_btd)? };
        Ok(visit(tap, site(Place::ResidMid), x_btd)?)
    }

    fn mlp_branch(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        mlp: &Mlp,
        x_btd: Value,
    ) -> Result<Value, ModelError> {
        let site = |place| Site::block(layer, place);
        let pre = self.config.norm_position == NormPosition::Pre;
        let mut h_btd = if pre { normed(tape, &mlp.norm, x_btd.clone())? } else { x_btd.clone() };
        if let Some(alpha) = &mlp.alpha {
            h_btd = ops::scale(tape, &h_btd, &alpha.value(tape, &h_btd)?)?;
        }
        let h_btd = visit(tap, site(Place::MlpIn), h_btd)?;
        let hidden_btf = mlp.up.forward(tape, &h_btd, Some(self.config.activation))?;
        let hidden_btf = visit(tap, site(Place::MlpHidden), hidden_btf)?;
        let sites = [site(Place::MlpOut), site(Place::MlpBranch)];
        let x_btd = join(tape, tap, sites, x_btd, &hidden_btf, &mlp.down, &mlp.beta)?;
        let x_btd = if pre { x_btd } else { normed(tape, &mlp.norm, x_btd)? };
        Ok(visit(tap, site(Place::Resid), x_btd)?)
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
        let x_btd = self.hidden(tape, tap, ids, sequences)?;
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
        let x_btd = self.hidden(tape, tap, ids, sequences)?;
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

impl Linear {
    fn forward(&self, tape: &Tape, x: &Value, act: Option<ops::Activation>) -> CandleResult<Value> {
        let (weight, bias) = self.values(tape);
        ops::linear(tape, x, &weight, bias.as_ref(), act)
    }

    fn values(&self, tape: &Tape) -> (Value, Option<Value>) {
        (param(tape, &self.weight), self.bias.as_ref().map(|b| param(tape, b)))
    }
}

impl Gain {
    /// As a value of the same dtype as `like`.
    fn value(&self, tape: &Tape, like: &Value) -> CandleResult<Value> {
        match self {
            Gain::Fixed(tensor) => Ok(Value::constant(tensor.to_dtype(like.tensor().dtype())?)),
            Gain::Learned(p) => Ok(param(tape, p)),
        }
    }

    fn is_one(&self) -> bool {
        matches!(self, Gain::Fixed(t) if t.to_vec1::<f32>().is_ok_and(|v| v == [1.0]))
    }
}

/// x + β · branch with branch = layer(inner), through the sites of the branch before and after β if they are wanted.
fn join(
    tape: &Tape,
    tap: &mut dyn Tap,
    [out_site, branch_site]: [Site; 2],
    x: Value,
    inner: &Value,
    layer: &Linear,
    beta: &Gain,
) -> CandleResult<Value> {
    if let (Gain::Fixed(beta), false, false) = (beta, tap.wants(out_site), tap.wants(branch_site)) {
        let beta = beta.to_vec1::<f32>()?[0];
        let (weight, bias) = layer.values(tape);
        return ops::linear_onto(tape, &x, inner, &weight, bias.as_ref(), beta);
    }
    let branch = visit(tap, out_site, layer.forward(tape, inner, None)?)?;
    let gain = beta.value(tape, &x)?;
    if !tap.wants(branch_site) {
        return ops::residual(tape, &x, &branch, &gain);
    }
    let branch = if beta.is_one() { branch } else { ops::scale(tape, &branch, &gain)? };
    let branch = visit(tap, branch_site, branch)?;
    let one = Tensor::ones(1, x.tensor().dtype(), x.tensor().device())?;
    ops::residual(tape, &x, &branch, &Value::constant(one))
}

fn param(tape: &Tape, p: &Parameter) -> Value {
    tape.parameter(p.index, &p.tensor)
}

fn normed(tape: &Tape, layer: &Option<NormLayer>, x: Value) -> CandleResult<Value> {
    let Some(layer) = layer else { return Ok(x) };
    let gain = layer.gain.as_ref().map(|p| param(tape, p));
    let bias = layer.bias.as_ref().map(|p| param(tape, p));
    ops::norm(tape, &x, gain.as_ref(), bias.as_ref(), layer.spec)
}

/// Calls the tap if it wants the site; keeps the value's place on the tape, since only observing taps see one.
fn visit(tap: &mut dyn Tap, site: Site, x: Value) -> CandleResult<Value> {
    if !tap.wants(site) {
        return Ok(x);
    }
    let seen = tap.visit(site, x.tensor().clone())?;
    Ok(if tap.transforms() { Value::constant(seen) } else { x })
}

fn norm_layer(
    b: &mut Builder,
    name: &str,
    norm: Norm,
    c: &ModelConfig,
) -> Result<Option<NormLayer>, ModelError> {
    let spec = NormSpec { centred: norm == Norm::Layer, eps: c.norm_eps };
    let mut vector = |part: &str, value: f64| {
        b.parameter(format!("{name}.{part}"), &[c.width], Start::Constant(value)).map(Some)
    };
    Ok(Some(match norm {
        Norm::None => return Ok(None),
        Norm::Layer => NormLayer { spec, gain: vector("gain", 1.0)?, bias: vector("bias", 0.0)? },
        Norm::Rms => NormLayer { spec, gain: vector("gain", 1.0)?, bias: None },
        Norm::Srms => NormLayer { spec, gain: None, bias: None },
    }))
}

fn linear_layer(
    b: &mut Builder,
    name: String,
    d_in: usize,
    d_out: usize,
    projection: Projection,
    c: &ModelConfig,
) -> Result<Linear, ModelError> {
    let std = match c.init {
        Init::FanIn => 1.0 / (d_in as f64).sqrt(),
        Init::Normal(std) => std,
    };
    Ok(Linear {
        weight: b.parameter(format!("{name}.weight"), &[d_out, d_in], Start::Normal(std))?,
        bias: if c.has_bias(projection) {
            Some(b.parameter(format!("{name}.bias"), &[d_out], Start::Constant(0.0))?)
        } else {
            None
        },
    })
}

fn gain(b: &mut Builder, name: String, value: f64, trainable: bool) -> Result<Gain, ModelError> {
    Ok(if trainable {
        Gain::Learned(b.parameter(name, &[1], Start::Constant(value))?)
    } else {
        Gain::Fixed(Tensor::new(&[value as f32], &candle_core::Device::Cpu)?)
    })
}
