//! A model's weights on their grids.

use super::rounding::Rounding;
use super::scheme::{HeadFormat, Plan};
use super::spec::Spec;
use crate::error::Result;
use crate::model::Transformer;
use crate::slices::{slice, tensor};
use std::collections::BTreeMap;

/// How a weight was rounded.
#[derive(Clone, Debug)]
pub struct WeightRounding {
    /// What was asked for.
    pub spec: Spec,
    /// The cells it got.
    pub rounding: Rounding,
}

/// A model whose weights lie on their grids, and the grids by name.
pub struct Rounded {
    /// In float32. A head that is stored in another way than the token table it was tied to is a parameter of its own.
    pub model: Transformer,
    /// For each quantised weight.
    pub weights: BTreeMap<String, WeightRounding>,
}

/// Rows of a parameter's last axis, as cells are laid out.
pub(super) fn row_width(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Rounds all that the plan names.
///
/// # Errors
/// If a weight is not finite.
pub fn quantise_weights(model: &Transformer, plan: &Plan) -> Result<Rounded> {
    let mut config = model.config().clone();
    let mut weights = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    let shared_head = config.tie_head && plan.head == HeadFormat::Int8;
    for p in model.parameters() {
        let values = slice(&p.tensor)?.to_vec();
        if config.tie_head && !shared_head && p.name == "embed.token.weight" {
            tensors.insert("head.weight".to_string(), tensor(head(values.clone(), plan), p.tensor.shape())?);
        }
        let rounded = match plan.weights.get(&p.name) {
            Some(&spec) => {
                let width = row_width(p.tensor.dims());
                let rounding = Rounding::of_weight(&p.name, spec, &values, width)?;
                let mut values = values;
                rounding.apply(&mut values, width);
                weights.insert(p.name.clone(), WeightRounding { spec, rounding });
                values
            }
            None if p.name == "head.weight" => head(values, plan),
            None => values,
        };
        tensors.insert(p.name.clone(), tensor(rounded, p.tensor.shape())?);
    }
    config.tie_head = shared_head;
    Ok(Rounded { model: Transformer::from_tensors(config, &mut tensors)?, weights })
}

/// A head that is no quantised weight, as it is stored.
fn head(mut values: Vec<f32>, plan: &Plan) -> Vec<f32> {
    if plan.head == HeadFormat::Bf16 {
        values.iter_mut().for_each(|v| *v = bf16(*v));
    }
    values
}

/// To nearest, ties to even, for finite values.
fn bf16(v: f32) -> f32 {
    let bits = v.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}
