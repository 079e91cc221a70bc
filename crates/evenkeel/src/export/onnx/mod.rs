//! ONNX: a folder with `model.onnx`, from `input_ids` (batch, sequence) to `logits` (batch, sequence, vocab).
//!
//! Integers appear as the standard pair of operators: QuantizeLinear and DequantizeLinear around every activation that has a
//! grid, and DequantizeLinear behind every parameter that has one. Any runtime computes that in floats; those that have
//! integer kernels replace a matrix between such pairs by one. onnxruntime does; where a matrix has a grid and what it reads
//! has none, it rounds that too unless `session.qdq_matmulnbits_accuracy_level` is "1".

mod attention;
mod graph;
mod layers;
mod model;
mod proto;
#[cfg(test)]
mod tests;

use super::{ActivationGrid, ExportError, Quantised, Result};
use crate::checkpoint::{CheckpointError, hf};
use crate::files::AtomicFile;
use crate::model::ModelConfig;
use crate::model::config::{Positions, RopeScaling};
use graph::Graph;
use proto::File;
use std::path::Path;

/// Name of the format on the command line.
const FORMAT: &str = "onnx";
/// Name of the file in the folder.
pub const FILE: &str = "model.onnx";
/// What readers of protobuf take in one file.
const LARGEST: u64 = i32::MAX as u64;

/// Writes `model` into the existing folder `out`, with the tokenizer of the folder `from` if it has one.
///
/// # Errors
/// [`ExportError::NotExpressible`] if the format cannot hold the model, before anything is written; parameters or grids that
/// do not fit; or the disk refuses.
pub fn write(model: &Quantised, from: &Path, out: &Path) -> Result<()> {
    let graph = graph(model)?;
    let file = file(&graph)?;
    let path = out.join(FILE);
    let io = |source| CheckpointError::Io { path: path.clone(), source };
    let mut target = AtomicFile::create(&path).map_err(io)?;
    file.write(&graph, |bytes| Ok(target.write(bytes).map_err(io)?))?;
    target.persist().map_err(io)?;
    Ok(hf::copy_tokenizer(from, out)?)
}

/// The file of a graph, if readers take one as large.
fn file(graph: &Graph) -> Result<File> {
    let file = File::new(graph);
    if file.size > LARGEST {
        let why = format!("it takes {:.1} GB, and a file of this format holds 2 GB", file.size as f64 / 1e9);
        return Err(refused(why, "quantise it, or export a smaller model"));
    }
    Ok(file)
}

/// The graph of a model that has been checked.
fn graph(model: &Quantised) -> Result<Graph> {
    expresses(model.config)?;
    if let Some((site, _)) = model.activations.iter().find(|(_, grid)| **grid == ActivationGrid::DynamicToken)
    {
        let why = format!(
            "{site} is quantised by token, and the format's quantisers have one grid for a whole tensor"
        );
        return Err(refused(why, "quantise with static activations, or export --to compressed-tensors"));
    }
    model.check()?;
    model::Writer::new(model).graph()
}

/// Refuses what the graph has no operators for.
fn expresses(c: &ModelConfig) -> Result<()> {
    let why = if !c.predicts_next_token() {
        "it does not predict the next token"
    } else if c.positions == Positions::Rope && matches!(c.rope_scaling, RopeScaling::Dynamic { .. }) {
        "rope_scaling is \"dynamic\", whose angles depend on the length of the input"
    } else {
        return Ok(());
    };
    Err(refused(
        why.into(),
        "--to evenkeel exports every causal language model, with a modelling file of its own",
    ))
}

fn refused(why: String, hint: &'static str) -> ExportError {
    ExportError::NotExpressible { format: FORMAT, why, hint }
}
