//! The way out: final norm, the matrices before the head, the head.
//!
//! Shapes: b sequences, t tokens, d width, v vocabulary or classes.

use super::ModelError;
use super::config::{ModelConfig, Norm, Readout};
use super::embedding::TOKEN_TABLE;
use super::layers::{Linear, NormLayer, normed, param, projected, visit};
use super::matrix::{Matrix, StoredMatrix};
use super::params::{Builder, Parameter, Start};
use crate::ops::{self, Activation};
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::{Result as CandleResult, Tensor};

/// What turns the stream that leaves the last block into logits.
#[derive(Clone, Debug)]
pub struct Head {
    norm: Option<NormLayer>,
    proj: Option<Linear>,
    transform: Option<Transform>,
    /// `None` for a model without a head.
    weight: Option<Matrix>,
    /// `None` too where the stored matrix holds it.
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
    pub(super) fn new(b: &mut Builder, c: &ModelConfig, shared: Option<&Matrix>) -> Result<Self, ModelError> {
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
            (true, true, None) => Some(b.matrix(TOKEN_TABLE.into(), [c.vocab, d_embed], start)?),
            (true, false, _) => Some(b.matrix("head.weight".into(), [c.vocab, d_embed], start)?),
        };
        // That of a tied head is no part of the table's matrix.
        let held = !c.tie_head && weight.as_ref().is_some_and(Matrix::holds_bias);
        let bias = match (c.head_bias, held) {
            (false, _) => None,
            (true, false) => Some(b.parameter("head.bias".into(), &[c.vocab], Start::Constant(0.0))?),
            (true, true) => {
                b.held("head.bias".into(), c.vocab);
                None
            }
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

    /// Logits (b, t, v) of what the final norm gave, or (b, 1, v) where a sequence is classified.
    ///
    /// # Errors
    /// If the model has no head, or the tap or the tensor library refuses.
    pub fn logits(&self, tape: &Tape, tap: &mut dyn Tap, x_btd: &Value) -> Result<Value, ModelError> {
        let x = match self.readout {
            Readout::First => tape.compose(&[x_btd], |t| t[0].narrow(1, 0, 1)?.contiguous())?,
            Readout::Mean => tape.compose(&[x_btd], |t| t[0].mean_keepdim(1))?,
            Readout::Tokens | Readout::None => x_btd.clone(),
        };
        let logits = match self.before(tape, x)? {
            (x, Matrix::Float(weight), bias) => {
                ops::linear(tape, &x, &param(tape, &weight), bias.as_ref(), None)?
            }
            (x, Matrix::Stored(matrix), bias) => stored_logits(&matrix, x.tensor(), bias.as_ref())?,
        };
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
        let site = Site::outside(Place::Logits);
        let (x, weight, bias) = match self.before(tape, x_btd.clone())? {
            (x, Matrix::Float(weight), bias) => (x, param(tape, &weight), bias),
            (x, Matrix::Stored(matrix), bias) => {
                if tap.wants(site) {
                    let logits = visit(tap, site, stored_logits(&matrix, x.tensor(), bias.as_ref())?)?;
                    return Ok(ops::cross_entropy(tape, &logits, targets)?);
                }
                return Ok(stored_loss(tape, &matrix, x.tensor(), bias.as_ref(), targets)?);
            }
        };
        if tap.wants(site) {
            let constant = |v: &Value| Value::constant(v.tensor().clone());
            let bias = bias.as_ref().map(constant);
            let off = tape.twin_off();
            visit(tap, site, ops::linear(&off, &constant(&x), &constant(&weight), bias.as_ref(), None)?)?;
        }
        Ok(ops::head_cross_entropy(tape, &x, &weight, bias.as_ref(), targets)?)
    }

    /// What the head's matrix reads, the matrix, and its bias.
    fn before(&self, tape: &Tape, x: Value) -> Result<(Value, Matrix, Option<Value>), ModelError> {
        let weight = self.weight.as_ref().ok_or(ModelError::NoHead)?;
        let x = projected(tape, &self.proj, x)?;
        let x = match &self.transform {
            Some(transform) => transform.forward(tape, &x)?,
            None => x,
        };
        Ok((x, weight.clone(), self.bias.as_ref().map(|bias| param(tape, bias))))
    }
}

/// Logits held at a time: 64 MB of them.
const LOGITS: usize = 1 << 24;

/// Mean cross-entropy of a stored head, some rows after the other.
fn stored_loss(
    tape: &Tape,
    matrix: &StoredMatrix,
    x: &Tensor,
    bias: Option<&Value>,
    targets: &[u32],
) -> CandleResult<Value> {
    let [vocab, inner] = matrix.shape();
    let x = x.reshape((targets.len(), inner))?;
    let some = (LOGITS / vocab.max(1)).max(1);
    let mut sum = 0.0;
    for (i, targets) in targets.chunks(some).enumerate() {
        let logits = stored_logits(matrix, &x.narrow(0, i * some, targets.len())?, bias)?;
        let mean = ops::cross_entropy(tape, &logits, targets)?;
        sum += f64::from(mean.tensor().to_scalar::<f32>()?) * targets.len() as f64;
    }
    Ok(Value::constant(Tensor::new((sum / targets.len() as f64) as f32, x.device())?))
}

/// x Wᵀ + b of a stored matrix.
fn stored_logits(matrix: &StoredMatrix, x: &Tensor, bias: Option<&Value>) -> CandleResult<Value> {
    let logits = matrix.forward(x, None)?;
    Ok(Value::constant(match bias {
        Some(bias) => logits.broadcast_add(bias.tensor())?,
        None => logits,
    }))
}

impl Transform {
    fn forward(&self, tape: &Tape, x: &Value) -> CandleResult<Value> {
        normed(tape, &self.norm, &self.matrix.forward(tape, x, Some(self.activation))?)
    }
}
