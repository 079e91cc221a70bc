//! Looking into a model: the metrics at every site over some text, the largest activations, what attention
//! heads do, the weights, and dumps of the activations themselves.

use crate::data::Batch;
use crate::error::Result;
use crate::metrics::{
    AttentionTap, ChannelStrip, GainReport, GramMode, GramSpec, HeadReport, Int8Verdict, KurtosisSummary,
    MassiveActivation, MassiveTap, Metrics, MetricsTap, Selection, WeightReport, summarise, weights,
};
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

/// Tokens of the Gram metrics where they are not taken over all.
pub const GRAM_TOKENS: usize = 4096;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Metrics of every site.
    pub selection: Selection,
    /// How many of the largest activations are listed.
    pub top_k: usize,
    /// Whether attention heads are looked at, in the first batch. Their matrices exist only in the composed
    /// form of attention, which takes long and much memory.
    pub attention: bool,
    /// Whether weights and gains are looked at.
    pub weights: bool,
}

impl Options {
    /// Everything at every site, nothing left out: for one batch.
    pub fn exact() -> Self {
        Self { selection: Selection::everything(), top_k: 20, attention: true, weights: true }
    }

    /// As much over a stream of batches, with the Gram metrics on the residual stream and its first
    /// [`GRAM_TOKENS`] tokens only.
    pub fn stream() -> Self {
        let gram = GramSpec { tokens: Some(GRAM_TOKENS), mode: GramMode::Batch };
        let selection = Selection { gram: Some(gram), gram_everywhere: false, ..Selection::everything() };
        Self { selection, ..Self::exact() }
    }

    /// What the summary needs, which costs little.
    pub fn summary() -> Self {
        let selection = Selection { mmr_tokens: Some(0), ..Selection::cheap() };
        Self { selection, top_k: 0, attention: false, weights: false }
    }

    /// With the Gram metrics taken over all tokens together or per sequence.
    pub fn with_gram(mut self, mode: GramMode) -> Self {
        if let Some(gram) = &mut self.selection.gram {
            gram.mode = mode;
        }
        self
    }
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
    /// Tokens that the Gram metrics (`input_corr_rms`, `feature_corr_rms`, `effective_rank`) are of; null
    /// without them.
    #[serde(default)]
    pub gram_tokens: Option<u64>,
    /// Over which tokens a Gram matrix is taken; null without them.
    #[serde(default)]
    pub gram: Option<GramMode>,
    /// Tokens that the figures of attention are of: those of the first batch.
    #[serde(default)]
    pub attention_tokens: u64,
    /// Every site, in the order of the forward pass.
    pub sites: Vec<SiteReport>,
    /// The largest activations over all sites and tokens.
    #[serde(default)]
    pub massive: Vec<MassiveActivation>,
    /// Every attention head.
    #[serde(default)]
    pub attention: Vec<HeadReport>,
    /// Every matrix.
    #[serde(default)]
    pub weights: Vec<WeightReport>,
    /// Learned gains that are no norm's: β, α, and those of shaped attention and identity projections.
    #[serde(default)]
    pub gains: Vec<GainReport>,
    /// What 8 bits would cost: every rounded site and matrix, the worst first.
    #[serde(default)]
    pub int8: Vec<Int8Verdict>,
    /// Tokens that the verdict on activations is of.
    #[serde(default)]
    pub int8_tokens: u64,
    /// Sizes of the channels of the residual stream, for the report's picture; not in the JSON.
    #[serde(skip)]
    pub strips: Vec<ChannelStrip>,
    /// Largest resident memory of the process so far, bytes; null where the system does not tell.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// The residual stream in three figures.
    pub summary: KurtosisSummary,
}

/// Runs `batches` through the model and measures every site that has channels.
///
/// # Errors
/// If a batch does not fit the model.
pub fn inspect(
    model: &Transformer,
    batches: impl Iterator<Item = Result<Batch>>,
    options: &Options,
) -> Result<InspectReport> {
    let mut tap = InspectTap {
        metrics: MetricsTap::with(None, options.selection),
        massive: MassiveTap::new(options.top_k),
        // Every model so far is causal.
        attention: AttentionTap::new(true),
        look_at_attention: options.attention,
        order: Vec::new(),
    };
    let (mut tokens, mut attention_tokens) = (0, 0);
    for batch in batches {
        let batch = batch?;
        tokens += batch.tokens() as u64;
        model.logits(&Tape::off(), &mut tap, &batch.inputs, batch.sequences)?;
        if std::mem::take(&mut tap.look_at_attention) {
            attention_tokens = batch.tokens() as u64;
        }
    }
    let stats = &tap.metrics.stats;
    let figures: Vec<(Site, Metrics)> = tap.order.iter().map(|site| (*site, stats[site].metrics())).collect();
    let gram_tokens = stats.values().filter_map(|s| s.gram_tokens()).max();
    let parameters = if options.weights { model.parameters() } else { &[] };
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
        gram_tokens,
        gram: options.selection.gram.map(|g| g.mode).filter(|_| gram_tokens.is_some()),
        attention_tokens,
        summary: summarise(figures.iter().map(|(s, m)| (*s, m))),
        sites: figures
            .into_iter()
            .map(|(site, metrics)| SiteReport { site: site.to_string(), layer: site.layer, metrics })
            .collect(),
        massive: tap.massive.into_found(),
        attention: tap.attention.reports(),
        weights: weights::weights(parameters)?,
        gains: weights::gains(parameters)?,
        int8: Vec::new(),
        int8_tokens: 0,
        strips: Vec::new(),
        peak_memory_bytes: None,
    })
}

/// All that is gathered in a forward pass, and the order of the sites in it.
struct InspectTap {
    metrics: MetricsTap,
    massive: MassiveTap,
    attention: AttentionTap,
    look_at_attention: bool,
    order: Vec<Site>,
}

impl Tap for InspectTap {
    fn wants(&self, site: Site) -> bool {
        self.metrics.wants(site) || self.look_at_attention && self.attention.wants(site)
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        if !site.place.has_channels() {
            return self.attention.visit(site, x);
        }
        if !self.metrics.stats.contains_key(&site) {
            self.order.push(site);
        }
        let x = if self.massive.wants(site) { self.massive.visit(site, x)? } else { x };
        self.metrics.visit(site, x)
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
