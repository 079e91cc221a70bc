//! One block: attention and MLP joined to the stream, in the order and with the norms that the configuration says.
//!
//! Shapes: b sequences, t tokens, d width; `x_btd` is (b, t, d).

use super::ModelError;
use super::attention::Attention;
use super::config::{Branches, ModelConfig, NormPosition};
use super::layers::{NormLayer, normed, visit};
use super::mlp::Mlp;
use super::params::{Builder, Parameter};
use crate::ops::Rope;
use crate::tap::{NoTap, Place, Site, Tap};
use crate::tape::{Recompute, Tape, Value};
use candle_core::Result as CandleResult;
use std::sync::Arc;

/// A part of a block, of its inputs.
type Part = fn(&Block, &Tape, &mut dyn Tap, &[Value]) -> Result<Value, ModelError>;

/// A block with its parameters.
#[derive(Clone, Debug)]
pub struct Block {
    layer: usize,
    attention: Attention,
    mlp: Mlp,
    branches: Branches,
    norm_position: NormPosition,
    parameters: Vec<Parameter>,
}

impl Block {
    pub(super) fn new(
        b: &mut Builder,
        layer: usize,
        c: &ModelConfig,
        rope: Option<Arc<Rope>>,
    ) -> Result<Self, ModelError> {
        let mark = b.mark();
        Ok(Self {
            layer,
            attention: Attention::new(b, layer, c, rope)?,
            mlp: Mlp::new(b, layer, c)?,
            branches: c.branches,
            norm_position: c.norm_position,
            parameters: b.since(mark),
        })
    }

    /// Its parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What leaves the block that `x_btd` enters.
    ///
    /// # Errors
    /// If the tap or the tensor library refuses.
    pub fn forward(&self, tape: &Tape, tap: &mut dyn Tap, x_btd: &Value) -> Result<Value, ModelError> {
        if tape.recompute() == Recompute::Block {
            let block = self.clone();
            return forgetting(tape, tap, &[x_btd], move |tape, tap, x| block.run(tape, tap, &x[0]));
        }
        self.run(tape, tap, x_btd)
    }

    fn run(&self, tape: &Tape, tap: &mut dyn Tap, x_btd: &Value) -> Result<Value, ModelError> {
        let (attention, layer) = (&self.attention, self.layer);
        let y_btd = match self.branches {
            Branches::Sequential => {
                let (h, onto) = self.enter(tape, &attention.norm, x_btd)?;
                let x = attention.forward(tape, tap, layer, &h, onto)?;
                let x =
                    visit(tap, Site::block(layer, Place::ResidMid), self.leave(tape, &attention.norm, x)?)?;
                self.forget_mlp(tape, tap, &[&x], |block, tape, tap, x| {
                    let (h, onto) = block.enter(tape, &block.mlp.norm, &x[0])?;
                    let y = block.mlp.forward(tape, tap, block.layer, &h, onto)?;
                    Ok(block.leave(tape, &block.mlp.norm, y)?)
                })?
            }
            Branches::Parallel | Branches::ParallelTwoNorms => {
                let (h, onto) = self.enter(tape, &attention.norm, x_btd)?;
                let own = if self.mlp.norm.is_some() { x_btd } else { &h };
                let x = attention.forward(tape, tap, layer, &h, onto)?;
                self.forget_mlp(tape, tap, &[own, &x], |block, tape, tap, x| {
                    let h = normed(tape, &block.mlp.norm, &x[0])?;
                    block.mlp.forward(tape, tap, block.layer, &h, x[1].clone())
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
        part: Part,
    ) -> Result<Value, ModelError> {
        if tape.recompute() == Recompute::Mlp {
            let block = self.clone();
            return forgetting(tape, tap, inputs, move |tape, tap, x| part(&block, tape, tap, x));
        }
        let inputs: Vec<Value> = inputs.iter().map(|&x| x.clone()).collect();
        part(self, tape, tap, &inputs)
    }

    /// What a branch reads, and the stream that it joins.
    fn enter(&self, tape: &Tape, norm: &Option<NormLayer>, x: &Value) -> CandleResult<(Value, Value)> {
        Ok(match self.norm_position {
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
        match self.norm_position {
            NormPosition::Post => normed(tape, norm, &x),
            NormPosition::Pre | NormPosition::PostStream => Ok(x),
        }
    }
}

/// Runs `part` without a record, to be run again with one in the backward pass.
fn forgetting(
    tape: &Tape,
    tap: &mut dyn Tap,
    inputs: &[&Value],
    part: impl Fn(&Tape, &mut dyn Tap, &[Value]) -> Result<Value, ModelError> + 'static,
) -> Result<Value, ModelError> {
    let constants: Vec<Value> = inputs.iter().map(|x| Value::constant(x.tensor().clone())).collect();
    let y = part(&tape.twin_off(), tap, &constants)?;
    Ok(tape.push_forgotten(y.tensor().clone(), inputs, move |tape, inputs| {
        part(tape, &mut NoTap, inputs).map_err(candle_core::Error::wrap)
    }))
}
