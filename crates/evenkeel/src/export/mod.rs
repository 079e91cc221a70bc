//! Models for other programs to run: ONNX, and compressed-tensors folders for transformers.
//!
//! Both take a [`Quantised`]: the float parameters with the integer grids of those that are stored as integers and of the
//! activations. Without grids it is a float model. What a format cannot express is refused before anything is written.

pub mod compressed;
pub mod onnx;

use crate::checkpoint::CheckpointError;
use crate::error::Hint;
use crate::model::{ModelConfig, ModelError, Transformer};
use crate::quant::int8::{self, Dequantised};
use crate::slices::slice;
use crate::tap::Site;
use candle_core::Tensor;
use evenkeel_kernels::quant::{Grid, quantise};
use std::collections::BTreeMap;
use thiserror::Error;

/// A model as the exporters take it.
#[derive(Clone, Debug)]
pub struct Quantised<'a> {
    /// What the model is.
    pub config: &'a ModelConfig,
    /// Every parameter by name, float32: as it was before any rounding, or on its grid, which gives the same integers.
    pub parameters: BTreeMap<String, Tensor>,
    /// Grids of the parameters that are stored as integers. A grid of `head.weight` is for the head alone, also where it
    /// shares its table with the embedding.
    pub weights: BTreeMap<String, WeightGrid>,
    /// Grids of the activations that are quantised.
    pub activations: BTreeMap<Site, ActivationGrid>,
}

/// The integers of a parameter: q = clamp(round_half_even(w / scale), low, high), and 0 stands for 0.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightGrid {
    /// Steps, positive: a single one, or one for each row, that is for each output of a matrix.
    pub scales: Vec<f32>,
    /// Smallest integer: -128, or 0 in a tensor without negative entries.
    pub low: i32,
    /// Largest integer: 127, or 255.
    pub high: i32,
    /// Bits of an integer.
    pub bits: u32,
}

/// How an activation is quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActivationGrid {
    /// One grid for the whole tensor, set by calibration: q = clamp(round_half_even(x / scale) + zero_point, 0, 255).
    Static {
        /// Step, positive.
        scale: f32,
        /// The integer that stands for 0.
        zero_point: u8,
    },
    /// An asymmetric grid for each token, from the token's own range when it is run.
    DynamicToken,
}

/// A model that cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A model that the format cannot hold.
    #[error("the model cannot be exported as {format}: {why}")]
    NotExpressible {
        /// The format's name.
        format: &'static str,
        /// What stands in the way.
        why: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// Parameters or grids that do not belong to the model.
    #[error("{name} {problem}")]
    Unfit {
        /// Parameter or site.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A configuration that makes no network.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Files that cannot be read or written.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// A tensor that cannot be read.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl From<CheckpointError> for ExportError {
    fn from(e: CheckpointError) -> Self {
        Self::Checkpoint(Box::new(e))
    }
}

impl Hint for ExportError {
    fn hint(&self) -> String {
        match self {
            ExportError::NotExpressible { hint, .. } => (*hint).into(),
            ExportError::Unfit { .. } => {
                "quantise the model again and export the folder that this gives".into()
            }
            ExportError::Model(e) => e.hint(),
            ExportError::Checkpoint(e) => e.hint(),
            ExportError::Tensor(_) => "run again with RUST_BACKTRACE=1 and report what it prints".into(),
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, ExportError>;

impl<'a> Quantised<'a> {
    /// An int8 folder's model.
    pub fn integers(folder: &'a Dequantised) -> Self {
        let weight = |(name, (scales, unsigned)): (&String, &(Vec<f32>, bool))| {
            let (low, high) = if *unsigned { (0, 255) } else { (-128, 127) };
            (name.clone(), WeightGrid { scales: scales.clone(), low, high, bits: 8 })
        };
        let activation = |(&site, grid): (&Site, &int8::ActivationGrid)| {
            let grid = match grid {
                int8::ActivationGrid::Static(q) => {
                    ActivationGrid::Static { scale: q.scale as f32, zero_point: q.zero_point as u8 }
                }
                int8::ActivationGrid::Token => ActivationGrid::DynamicToken,
            };
            (site, grid)
        };
        let mut weights: BTreeMap<String, WeightGrid> = folder.weights.iter().map(weight).collect();
        // A table that is the head too has one grid for both.
        if folder.config.tie_head
            && let Some(table) = weights.get(TOKEN_TABLE)
        {
            weights.insert(HEAD.into(), table.clone());
        }
        Self {
            config: &folder.config,
            parameters: folder.parameters.clone(),
            weights,
            activations: folder.activations.iter().map(activation).collect(),
        }
    }

    /// A float model: no grids.
    pub fn float(model: &'a Transformer) -> Self {
        let parameters = model.parameters().iter().map(|p| (p.name.clone(), p.tensor.clone())).collect();
        Self { config: model.config(), parameters, weights: BTreeMap::new(), activations: BTreeMap::new() }
    }

    /// Checks that parameters and grids are those of the configuration.
    ///
    /// # Errors
    /// A parameter that is missing, misshapen or left over; a grid of something that is not there, or that 8 bits do not hold.
    pub fn check(&self) -> Result<()> {
        let shapes: BTreeMap<String, Vec<usize>> =
            Transformer::shapes(self.config.clone())?.into_iter().collect();
        for (name, shape) in &shapes {
            match self.parameters.get(name) {
                None => return Err(unfit(name, "is missing from the parameters")),
                Some(t) if t.dims() != shape => {
                    return Err(unfit(name, format!("has shape {:?}, not {shape:?}", t.dims())));
                }
                Some(_) => {}
            }
        }
        if let Some(name) = self.parameters.keys().find(|name| !shapes.contains_key(*name)) {
            return Err(unfit(name, "is not part of this model"));
        }
        for (name, grid) in &self.weights {
            let shape = shapes.get(self.table_of(name));
            let shape = shape.ok_or_else(|| unfit(name, "has a grid and is not part of this model"))?;
            grid.check(name, shape)?;
        }
        for (site, grid) in &self.activations {
            if let ActivationGrid::Static { scale, .. } = grid
                && !is_step(*scale)
            {
                return Err(unfit(
                    &site.to_string(),
                    format!("has the step {scale}, which is no positive number"),
                ));
            }
        }
        Ok(())
    }

    /// The parameter that holds `name`: a tied head lies in the token table.
    fn table_of<'n>(&self, name: &'n str) -> &'n str {
        if self.config.tie_head && name == HEAD { TOKEN_TABLE } else { name }
    }

    /// The parameter `name`, or the table that a tied head shares.
    fn parameter(&self, name: &str) -> Result<&Tensor> {
        self.parameters.get(self.table_of(name)).ok_or_else(|| unfit(name, "is missing from the parameters"))
    }

    fn has(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }
}

/// The head's matrix.
const HEAD: &str = "head.weight";
/// The token table.
const TOKEN_TABLE: &str = "embed.token.weight";

impl WeightGrid {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let rows = shape.first().copied().unwrap_or(1);
        let count = self.scales.len();
        if count != 1 && count != rows {
            return Err(unfit(name, format!("has {count} steps, not 1 or one for each of {rows} rows")));
        }
        if let Some(scale) = self.scales.iter().find(|&&s| !is_step(s)) {
            return Err(unfit(name, format!("has the step {scale}, which is no positive number")));
        }
        let signed = self.low >= -128 && self.high <= 127;
        let unsigned = self.low >= 0 && self.high <= 255;
        if self.low > 0 || self.high <= 0 || !(signed || unsigned) {
            let problem =
                format!("has integers from {} to {}, which 8 bits do not hold", self.low, self.high);
            return Err(unfit(name, problem));
        }
        Ok(())
    }

    /// Whether the integers are bytes without a sign.
    fn is_unsigned(&self) -> bool {
        self.high > 127
    }

    /// The integers of a contiguous parameter, as bytes: two's complement, or without a sign where the largest is above 127.
    fn bytes(&self, parameter: &Tensor) -> Result<Vec<u8>> {
        let values = slice(parameter)?;
        let row = (values.len() / self.scales.len().max(1)).max(1);
        let (low, high) = (self.low as f32, self.high as f32);
        let rows = values.chunks(row).zip(&self.scales);
        // The last byte of a two's complement number is the same in every width.
        let bytes = |q: Vec<i32>| q.into_iter().map(|q| q as u8);
        Ok(rows
            .flat_map(|(row, &scale)| bytes(quantise(row, Grid { scale, zero_point: 0.0, low, high })))
            .collect())
    }
}

fn is_step(scale: f32) -> bool {
    scale.is_finite() && scale > 0.0
}

fn unfit(name: &str, problem: impl Into<String>) -> ExportError {
    ExportError::Unfit { name: name.into(), problem: problem.into() }
}
