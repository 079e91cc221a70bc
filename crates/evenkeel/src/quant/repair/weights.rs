//! A model's parameters taken out of it, to be folded into one another and put back.

use super::RepairError;
use crate::model::config::{Beta, ModelConfig, Projection, ValueInit};
use crate::model::{ModelError, Transformer};
use crate::slices::{slice, tensor};
use std::collections::BTreeMap;

/// Parameters by name, and what they are the parameters of. A matrix is named without its `.weight`.
pub(super) struct Weights {
    pub(super) config: ModelConfig,
    tensors: BTreeMap<String, Weight>,
}

struct Weight {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Weights {
    /// Copies of a model's.
    ///
    /// # Errors
    /// If they are not float32 on the CPU.
    pub(super) fn of(model: &Transformer) -> Result<Self, RepairError> {
        let mut tensors = BTreeMap::new();
        for p in model.parameters() {
            let weight = Weight { shape: p.tensor.dims().to_vec(), data: slice(&p.tensor)?.to_vec() };
            tensors.insert(p.name.clone(), weight);
        }
        Ok(Self { config: model.config().clone(), tensors })
    }

    /// The model that they make.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    pub(super) fn into_model(self) -> Result<Transformer, RepairError> {
        let tensors = self.tensors.into_iter().map(|(name, w)| Ok((name, tensor(w.data, w.shape)?)));
        let mut tensors = tensors.collect::<Result<BTreeMap<_, _>, ModelError>>()?;
        Ok(Transformer::from_tensors(self.config, &mut tensors)?)
    }

    /// The entries of a parameter, row by row; none if there is no such parameter.
    pub(super) fn data(&self, name: &str) -> &[f32] {
        self.tensors.get(name).map_or(&[], |w| &w.data)
    }

    /// The same, to be changed.
    pub(super) fn data_mut(&mut self, name: &str) -> &mut [f32] {
        self.tensors.get_mut(name).map_or(&mut [], |w| &mut w.data)
    }

    /// The entries in float64.
    pub(super) fn doubles(&self, name: &str) -> Vec<f64> {
        self.data(name).iter().map(|&v| f64::from(v)).collect()
    }

    /// Overwrites a parameter with one value.
    pub(super) fn fill(&mut self, name: &str, value: f32) {
        self.data_mut(name).fill(value);
    }

    /// Takes a parameter away.
    pub(super) fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        self.tensors.remove(name).map(|w| w.data)
    }

    /// Adds or replaces a parameter.
    pub(super) fn insert(&mut self, name: String, shape: Vec<usize>, data: Vec<f32>) {
        self.tensors.insert(name, Weight { shape, data });
    }

    /// Each row of a matrix, and entry of its bias, times its factor.
    pub(super) fn scale_rows(&mut self, matrix: &str, factors: &[f64]) {
        let weight = self.data_mut(&format!("{matrix}.weight"));
        let columns = (weight.len() / factors.len().max(1)).max(1);
        for (row, factor) in weight.chunks_mut(columns).zip(factors) {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        let bias = self.data_mut(&format!("{matrix}.bias"));
        bias.iter_mut().zip(factors).for_each(|(v, factor)| *v = (f64::from(*v) * factor) as f32);
    }

    /// Each column of a matrix times its factor.
    pub(super) fn scale_columns(&mut self, matrix: &str, factors: &[f64]) {
        for row in self.data_mut(&format!("{matrix}.weight")).chunks_mut(factors.len().max(1)) {
            row.iter_mut().zip(factors).for_each(|(v, factor)| *v = (f64::from(*v) * factor) as f32);
        }
    }

    /// W x of a matrix.
    pub(super) fn times(&self, matrix: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.data(&format!("{matrix}.weight")).chunks(x.len().max(1));
        rows.map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
    }

    /// Gives a projection a bias of zeros in every block, if it has none.
    pub(super) fn ensure_bias(&mut self, projection: Projection) {
        if self.config.has_bias(projection) {
            return;
        }
        self.config.biases.push(projection);
        for layer in 0..self.config.depth {
            let matrix = format!("blocks.{layer}.{}", name_of(projection));
            let shape = self.tensors.get(&format!("{matrix}.weight")).map(|w| &w.shape[..]);
            if let Some(&[rows, _]) = shape {
                self.insert(format!("{matrix}.bias"), vec![rows], vec![0.0; rows]);
            }
        }
    }

    /// Adds to a bias.
    pub(super) fn add_to_bias(&mut self, matrix: &str, what: &[f64]) {
        let bias = self.data_mut(&format!("{matrix}.bias"));
        bias.iter_mut().zip(what).for_each(|(v, w)| *v = (f64::from(*v) + w) as f32);
    }

    /// Values and outputs of the form s x + r (x Wᵀ + b) as plain matrices.
    pub(super) fn merge_identity(&mut self) {
        if self.config.value_init != ValueInit::Identity {
            return;
        }
        let width = self.config.width;
        for matrix in
            (0..self.config.depth).flat_map(|l| ["v", "out"].map(|m| format!("blocks.{l}.attn.{m}")))
        {
            let mut scalar = |part: &str| {
                let taken = self.take(&format!("{matrix}.{part}"));
                taken.and_then(|v| v.first().copied()).map_or(1.0, f64::from)
            };
            let (skip, gain) = (scalar("skip"), scalar("gain"));
            self.scale_rows(&matrix, &vec![gain; width]);
            let diagonal = self.data_mut(&format!("{matrix}.weight")).iter_mut().step_by(width + 1);
            diagonal.for_each(|v| *v = (f64::from(*v) + skip) as f32);
        }
        self.config.value_init = ValueInit::Random;
    }

    /// A β with a value for each channel, into the last matrix of its branch.
    pub(super) fn merge_channel_gains(&mut self) {
        if !self.config.beta_per_channel {
            return;
        }
        for layer in 0..self.config.depth {
            for (branch, matrix) in [("attn", "out"), ("mlp", "down")] {
                // A branch that replaces the stream has none.
                if let Some(beta) = self.take(&format!("blocks.{layer}.{branch}.beta")) {
                    let beta: Vec<f64> = beta.into_iter().map(f64::from).collect();
                    self.scale_rows(&format!("blocks.{layer}.{branch}.{matrix}"), &beta);
                }
            }
        }
        let c = &mut self.config;
        (c.beta, c.beta_trainable, c.beta_per_channel) = (Beta::Value(1.0), false, false);
    }

    /// α of a block: the factor on what its MLP reads.
    pub(super) fn alpha(&self, layer: usize) -> f64 {
        let learned = self.data(&format!("blocks.{layer}.mlp.alpha")).first();
        learned.map_or(self.config.alpha, |&a| f64::from(a))
    }

    /// Gives a head that is the token table a copy of it.
    pub(super) fn untie(&mut self) {
        if !std::mem::take(&mut self.config.tie_head) {
            return;
        }
        if let Some(table) = self.tensors.get("embed.token.weight") {
            let (shape, data) = (table.shape.clone(), table.data.clone());
            self.insert("head.weight".into(), shape, data);
        }
    }
}

/// What a projection is called within its block.
pub(super) fn name_of(projection: Projection) -> &'static str {
    match projection {
        Projection::Q => "attn.q",
        Projection::K => "attn.k",
        Projection::V => "attn.v",
        Projection::Out => "attn.out",
        Projection::Up => "mlp.up",
        Projection::Gate => "mlp.gate",
        Projection::Down => "mlp.down",
    }
}
