//! The MLP branch: one or two matrices, the nonlinearity, the last matrix.
//!
//! Shapes: b sequences, t tokens, d width, f hidden channels.

use super::ModelError;
use super::attention::place;
use super::config::{ModelConfig, Nonlinearity, Projection};
use super::layers::{Gain, Joint, Linear, NormLayer, visit};
use super::params::Builder;
use crate::ops::{self, Dropout};
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};

/// The MLP branch of one block.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) norm: Option<NormLayer>,
    alpha: Gain,
    /// What goes through the nonlinearity of a gated MLP.
    gate: Option<Linear>,
    up: Linear,
    activation: Nonlinearity,
    joint: Joint,
    dropout: f64,
}

impl Mlp {
    pub(super) fn new(b: &mut Builder, layer: usize, c: &ModelConfig) -> Result<Self, ModelError> {
        let at = |name: &str| format!("blocks.{layer}.mlp.{name}");
        let (d, f) = (c.width, c.hidden());
        let projection =
            |b: &mut Builder, name: &str, sizes, which| Linear::projection(b, at(name), sizes, which, c);
        Ok(Self {
            norm: NormLayer::new(b, &at("norm"), c.mlp_norm(), c)?,
            alpha: Gain::new(b, at("alpha"), c.alpha, c.alpha_trainable.then_some(1))?,
            gate: match c.activation {
                Nonlinearity::Plain(_) => None,
                Nonlinearity::Gated(_) => Some(projection(b, "gate", [d, f], Projection::Gate)?),
            },
            up: projection(b, "up", [d, f], Projection::Up)?,
            activation: c.activation,
            joint: Joint {
                out: projection(b, "down", [f, d], Projection::Down)?,
                beta: Gain::beta(b, at("beta"), c.mlp_skip(), c)?,
                skip: c.mlp_skip(),
            },
            dropout: c.dropout_residual,
        })
    }

    /// `onto` joined by the MLP of `h_btd`.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        h_btd: &Value,
        onto_btd: Value,
    ) -> Result<Value, ModelError> {
        let site = |place| Site::block(layer, place);
        let h_btd = visit(tap, site(Place::MlpIn), self.alpha.times(tape, h_btd)?)?;
        let hidden_btf = match (&self.gate, self.activation) {
            (Some(gate), act) => {
                let (gate_btf, up_btf) =
                    (gate.forward(tape, &h_btd, None)?, self.up.forward(tape, &h_btd, None)?);
                ops::gated_unit(tape, &gate_btf, &up_btf, act.activation())?
            }
            (None, act) => self.up.forward(tape, &h_btd, Some(act.activation()))?,
        };
        let hidden_btf = visit(tap, site(Place::MlpHidden), hidden_btf)?;
        let sites = [site(Place::MlpOut), site(Place::MlpBranch)];
        let dropout = Dropout::of(tape, self.dropout, place(layer, 2));
        Ok(self.joint.forward(tape, tap, sites, onto_btd, &hidden_btf, dropout)?)
    }
}
