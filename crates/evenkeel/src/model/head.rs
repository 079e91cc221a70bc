//! The way out: final norm, the matrices before the head, the head.
//!
//! Shapes: b sequences, t tokens, d width, v vocabulary or classes.

use super::ModelError;
use super::config::{ModelConfig, Norm, Readout};
use super::embedding::TOKEN_TABLE;
use super::layers::{Linear, NormLayer, normed, param, projected, visit};
use super::params::{Builder, Parameter, Start};
use crate::ops::{self, Activation};
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::Result as CandleResult;

/// What turns the stream that leaves the last block into logits.
#[derive(Clone, Debug)]
pub struct Head {
    norm: Option<NormLayer>,
    proj: Option<Linear>,
    transform: Option<Transform>,
    /// `None` for a model without a head.
    weight: Option<Parameter>,
    bias: Option<Parameter>,
    readout: Readout,
    parameters: Vec<Parameter>,
}

/// N(act(x Wᵀ + b)).
#[derive(Clone, Debug)]
struct Transform {
    matrix: Linear,
    activation: Activation,
    norm: Option<NormLayer>,
}

impl Head {
    /// `shared` is the token table of a model that is built whole; a tied head that is built alone asks for it again.
    pub(super) fn new(
        b: &mut Builder,
        c: &ModelConfig,
        shared: Option<&Parameter>,
    ) -> Result<Self, ModelError> {
        let mark = b.mark();
        let (d, d_embed) = (c.width, c.d_embed());
        let norm = NormLayer::new(b, "final_norm", c.final_norm, c)?;
        let headed = c.readout != Readout::None;
        let proj = match c.has_embed_proj() && headed {
            true => Some(Linear::between(b, "head.proj", [d, d_embed])?),
            false => None,
        };
        let transform = match c.head_transform {
            true => Some(Transform {
                matrix: Linear::new(b, "head.transform".into(), [d, d], Start::Normal(c.init.std(d)), true)?,
                activation: c.activation.activation(),
                norm: NormLayer::new(b, "head.norm", Norm::Layer, c)?,
            }),
            false => None,
        };
        let start = Start::Normal(c.init.std(d_embed));
        let weight = match (headed, c.tie_head, shared) {
            (false, ..) => None,
            (true, true, Some(table)) => Some(table.clone()),
            (true, true, None) => Some(b.parameter(TOKEN_TABLE.into(), &[c.vocab, d_embed], start)?),
            (true, false, _) => Some(b.parameter("head.weight".into(), &[c.vocab, d_embed], start)?),
        };
        let bias = match c.head_bias {
            true => Some(b.parameter("head.bias".into(), &[c.vocab], Start::Constant(0.0))?),
            false => None,
        };
        let parameters = b.since(mark);
        Ok(Self { norm, proj, transform, weight, bias, readout: c.readout, parameters })
    }

    /// Its parameters; a tied head's matrix only if it was built alone.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether there are logits at all.
    pub fn exists(&self) -> bool {
        self.weight.is_some()
    }

    /// `x_btd` after the final norm.
    ///
    /// # Errors
    /// If the tap or the tensor library refuses.
    pub fn final_norm(&self, tape: &Tape, tap: &mut dyn Tap, x_btd: &Value) -> Result<Value, ModelError> {
        let x = normed(tape, &self.norm, x_btd)?;
        Ok(visit(tap, Site::outside(Place::FinalNorm), x)?)
    }

    /// Logits (b, t, v) of what the final norm gave, or (b, 1, v) where the first token alone is read.
    ///
    /// # Errors
    /// If the model has no head, or the tap or the tensor library refuses.
    pub fn logits(&self, tape: &Tape, tap: &mut dyn Tap, x_btd: &Value) -> Result<Value, ModelError> {
        let x = match self.readout {
            Readout::First => tape.compose(&[x_btd], |t| t[0].narrow(1, 0, 1)?.contiguous())?,
            Readout::Tokens | Readout::None => x_btd.clone(),
        };
        let (x, weight, bias) = self.before(tape, x)?;
        let logits = ops::linear(tape, &x, &weight, bias.as_ref(), None)?;
        Ok(visit(tap, Site::outside(Place::Logits), logits)?)
    }

    /// Mean cross-entropy of `targets`, one per token, without holding the logits unless a tap wants them.
    ///
    /// # Errors
    /// If the model has no head that reads every token, or the tap or the tensor library refuses.
    pub fn loss(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        x_btd: &Value,
        targets: &[u32],
    ) -> Result<Value, ModelError> {
        let (x, weight, bias) = self.before(tape, x_btd.clone())?;
        let site = Site::outside(Place::Logits);
        if tap.wants(site) {
            let constant = |v: &Value| Value::constant(v.tensor().clone());
            let bias = bias.as_ref().map(constant);
            let off = tape.twin_off();
            visit(tap, site, ops::linear(&off, &constant(&x), &constant(&weight), bias.as_ref(), None)?)?;
        }
        Ok(ops::head_cross_entropy(tape, &x, &weight, bias.as_ref(), targets)?)
    }

    /// What the head's matrix reads, the matrix, and its bias.
    fn before(&self, tape: &Tape, x: Value) -> Result<(Value, Value, Option<Value>), ModelError> {
        let weight = self.weight.as_ref().ok_or(ModelError::NoHead)?;
        let x = projected(tape, &self.proj, x)?;
        let x = match &self.transform {
            Some(transform) => transform.forward(tape, &x)?,
            None => x,
        };
        Ok((x, param(tape, weight), self.bias.as_ref().map(|bias| param(tape, bias))))
    }
}

impl Transform {
    fn forward(&self, tape: &Tape, x: &Value) -> CandleResult<Value> {
        normed(tape, &self.norm, &self.matrix.forward(tape, x, Some(self.activation))?)
    }
}
