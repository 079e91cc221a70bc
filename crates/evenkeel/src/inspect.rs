//! Looking into a model: the metrics at every site over some text, and dumps of the activations themselves.

use crate::data::Batch;
use crate::error::Result;
use crate::metrics::{KurtosisSummary, Metrics, MetricsTap, summarise};
use crate::model::{ModelError, Transformer};
use crate::tap::{Site, Tap};
use crate::tape::Tape;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What the model is, in `inspect --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Preset or architecture.
    pub architecture: String,
    /// Scalars.
    pub parameters: u64,
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub width: usize,
}

/// One site's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteReport {
    /// Site's name.
    pub site: String,
    /// Block index; null outside blocks.
    pub layer: Option<usize>,
    /// The figures.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// What `inspect --json` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InspectReport {
    /// Layout version.
    pub schema: u32,
    /// The model.
    pub model: ModelSummary,
    /// Tokens seen.
    pub tokens: u64,
    /// Every site, in the order of the forward pass.
    pub sites: Vec<SiteReport>,
    /// The residual stream in three figures.
    pub summary: KurtosisSummary,
}

/// Runs `batches` through the model and measures every site that has channels.
///
/// # Errors
/// If a batch does not fit the model.
pub fn inspect(model: &Transformer, batches: impl Iterator<Item = Result<Batch>>) -> Result<InspectReport> {
    let mut tap = Ordered { inner: MetricsTap::new(None), order: Vec::new() };
    let mut tokens = 0;
    for batch in batches {
        let batch = batch?;
        tokens += batch.tokens() as u64;
        model.logits(&Tape::off(), &mut tap, &batch.inputs, batch.sequences)?;
    }
    let figures: Vec<(Site, Metrics)> =
        tap.order.iter().map(|site| (*site, tap.inner.stats[site].metrics())).collect();
    let config = model.config();
    Ok(InspectReport {
        schema: 1,
        model: ModelSummary {
            architecture: config.preset.clone(),
            parameters: model.parameter_count() as u64,
            depth: config.depth,
            width: config.width,
        },
        tokens,
        summary: summarise(figures.iter().map(|(s, m)| (*s, m))),
        sites: figures
            .into_iter()
            .map(|(site, metrics)| SiteReport { site: site.to_string(), layer: site.layer, metrics })
            .collect(),
    })
}

/// A metrics tap that remembers the order of the forward pass.
struct Ordered {
    inner: MetricsTap,
    order: Vec<Site>,
}

impl Tap for Ordered {
    fn wants(&self, site: Site) -> bool {
        self.inner.wants(site)
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        if !self.inner.stats.contains_key(&site) {
            self.order.push(site);
        }
        self.inner.visit(site, x)
    }
}

/// Keeps every activation that has channels.
struct DumpTap(BTreeMap<String, Tensor>);

impl Tap for DumpTap {
    fn wants(&self, site: Site) -> bool {
        site.place.has_channels()
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        self.0.insert(site.to_string(), x.to_dtype(DType::F32)?.contiguous()?);
        Ok(x)
    }
}

/// The activations of one batch by site name, (sequences, tokens, channels), float32.
///
/// # Errors
/// If the batch does not fit the model.
pub fn activations(
    model: &Transformer,
    ids: &[u32],
    sequences: usize,
) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    let mut tap = DumpTap(BTreeMap::new());
    model.logits(&Tape::off(), &mut tap, ids, sequences)?;
    Ok(tap.0)
}

/// Writes [`activations`] as safetensors.
///
/// # Errors
/// If the batch does not fit the model, or the disk refuses.
pub fn dump(model: &Transformer, ids: &[u32], sequences: usize, path: &Path) -> Result<()> {
    Ok(crate::checkpoint::write_tensors(path, &activations(model, ids, sequences)?)?)
}
