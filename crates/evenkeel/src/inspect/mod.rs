//! Looking into a model: the metrics at every site over some text, the largest activations, what attention
//! heads do, the weights, what 8 bits would cost, and dumps of the activations themselves.

mod taps;

use crate::error::Result;
use crate::metrics::{
    ChannelStrip, GainReport, GramMode, GramSpec, HeadReport, Int8Verdict, KurtosisSummary,
    MassiveActivation, Metrics, Selection, WeightReport, summarise,
};
use crate::model::{Head, Input, ModelError, Parts};
use crate::quant::int8::Seen;
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};
use crate::train::peak_rss_bytes;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use taps::{FirstIds, InspectTap, WeightTap};

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
    /// Whether the cost of 8 bits is worked out: for activations from the first batch, and for the weights if they are
    /// looked at.
    pub int8: bool,
    /// Elements of the residual stream held at a time; the inputs that go over it are still taken.
    pub held_elements: usize,
    /// Elements of the logits held at a time, but at least one sequence's.
    pub logit_elements: usize,
}

/// A gigabyte of stream, enough for 64k tokens of 4096 channels.
const HELD_ELEMENTS: usize = 1 << 28;
/// 128 MB of logits.
const LOGIT_ELEMENTS: usize = 1 << 25;

impl Options {
    /// Everything at every site, nothing left out: for one batch.
    pub fn exact() -> Self {
        Self {
            selection: Selection::everything(),
            top_k: 20,
            attention: true,
            weights: true,
            int8: true,
            held_elements: HELD_ELEMENTS,
            // All that is reported is of the one batch, so that nothing is cut.
            logit_elements: usize::MAX,
        }
    }

    /// As much over a stream of batches, with the Gram metrics on the residual stream and its first
    /// [`GRAM_TOKENS`] tokens only.
    pub fn stream() -> Self {
        let gram = GramSpec { tokens: Some(GRAM_TOKENS), mode: GramMode::Batch };
        let selection = Selection { gram: Some(gram), gram_everywhere: false, ..Selection::everything() };
        Self { selection, logit_elements: LOGIT_ELEMENTS, ..Self::exact() }
    }

    /// What the summary needs, which costs little.
    pub fn summary() -> Self {
        let selection = Selection { mmr_tokens: Some(0), ..Selection::cheap() };
        Self { selection, top_k: 0, attention: false, weights: false, int8: false, ..Self::stream() }
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

/// Runs `inputs` through the model and measures every site that has channels.
///
/// Each part of the model is asked for once for as many inputs as the options hold at a time, so that a model whose parts are read
/// from disk needs one block's weights in memory, the residual stream of these inputs, and what one input makes inside a
/// block. `progress` is told parts done and parts in all; the total grows when there are more inputs than are held.
///
/// # Errors
/// If an input does not fit the model, or a part cannot be read.
pub fn inspect<I: Into<Input>>(
    model: &dyn Parts,
    inputs: impl Iterator<Item = Result<I>>,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<InspectReport> {
    let config = model.config();
    let mut quantisers = model.quantisers();
    // What lies on its grid already loses nothing more, which would be no verdict on the model.
    let options = &Options { int8: options.int8 && quantisers.is_none(), ..*options };
    let mut tap = InspectTap::new(config, options);
    let mut inputs = inputs.peekable();
    let (mut done, mut total) = (0, 0);
    let mut step = |more: u64| {
        total += more;
        done += u64::from(more == 0);
        progress(done, total);
    };
    let mut weights = WeightTap::new(options.weights);
    let (mut tokens, mut first_tokens) = (0, 0);
    while inputs.peek().is_some() {
        step(2 + config.depth as u64);
        // The stream of these inputs, replaced block by block.
        let embedding = model.embedding()?;
        weights.add(embedding.parameters())?;
        let mut streams: Vec<Value> = Vec::new();
        let mut held = 0;
        while held < options.held_elements
            && let Some(input) = inputs.next()
        {
            let input: Input = input?.into();
            input.check(config)?;
            let here = input.tokens(config);
            if tokens == 0 {
                first_tokens = here;
                tap.ids = FirstIds::of(&input);
            }
            tokens += here;
            held += here * config.width;
            tap.is_first = tokens == here;
            streams.push(embedding.forward(
                &Tape::off(),
                &mut Seen::new(&mut quantisers, &mut tap),
                &input,
            )?);
        }
        drop(embedding);
        let last = inputs.peek().is_none();
        tap.settle(last, |site| site.place == Place::Embed);
        step(0);
        let holds_first = tokens == streams.iter().map(rows).sum::<usize>();
        for layer in 0..config.depth {
            let block = model.block(layer)?;
            weights.add(block.parameters())?;
            for (i, x) in streams.iter_mut().enumerate() {
                tap.is_first = holds_first && i == 0;
                *x = block.forward(&Tape::off(), &mut Seen::new(&mut quantisers, &mut tap), x)?;
            }
            tap.settle(last, |site| site.layer == Some(layer));
            step(0);
        }
        let head = model.head()?;
        weights.add(head.parameters())?;
        for (i, x) in streams.iter().enumerate() {
            tap.is_first = holds_first && i == 0;
            let x = head.final_norm(&Tape::off(), &mut Seen::new(&mut quantisers, &mut tap), x)?;
            if head.exists() {
                logits(&head, &mut tap, &x, config.vocab, options)?;
            }
        }
        step(0);
    }
    let stats = &tap.metrics.stats;
    let figures: Vec<(Site, Metrics)> = tap.order.iter().map(|site| (*site, stats[site].metrics())).collect();
    let strips = tap.order.iter().filter(|site| site.is_residual_stream());
    let strips = strips
        .map(|site| ChannelStrip {
            site: site.to_string(),
            layer: site.layer,
            rms: stats[site].channel_rms(),
        })
        .collect();
    let gram_tokens = stats.values().filter_map(|s| s.gram_tokens()).max();
    Ok(InspectReport {
        schema: 1,
        model: ModelSummary {
            architecture: config.preset.clone(),
            parameters: model.parameter_count() as u64,
            depth: config.depth,
            width: config.width,
        },
        tokens: tokens as u64,
        gram_tokens,
        gram: options.selection.gram.map(|g| g.mode).filter(|_| gram_tokens.is_some()),
        attention_tokens: if options.attention { first_tokens as u64 } else { 0 },
        summary: summarise(figures.iter().map(|(s, m)| (*s, m))),
        sites: figures
            .into_iter()
            .map(|(site, metrics)| SiteReport { site: site.to_string(), layer: site.layer, metrics })
            .collect(),
        massive: tap.massive.into_found(),
        attention: tap.attention.reports(),
        int8_tokens: if options.int8 { first_tokens as u64 } else { 0 },
        int8: ranked(tap.int8, weights.int8),
        weights: weights.reports,
        gains: weights.gains,
        strips,
        peak_memory_bytes: peak_rss_bytes(),
    })
}

/// Tokens of a stream (b, t, d).
fn rows(x: &Value) -> usize {
    x.tensor().dims().iter().take(2).product()
}

/// The head's logits, of a few sequences at a time where that is allowed: a vocabulary is wide.
fn logits(head: &Head, tap: &mut InspectTap, x: &Value, vocab: usize, options: &Options) -> Result<()> {
    let (sequences, tokens, _) = x.tensor().dims3()?;
    let most = options.logit_elements / (tokens * vocab).max(1);
    let most = most.clamp(1, sequences.max(1));
    for first in (0..sequences).step_by(most) {
        let some = x.tensor().narrow(0, first, most.min(sequences - first))?.contiguous()?;
        head.logits(&Tape::off(), tap, &Value::constant(some))?;
    }
    Ok(())
}

/// The verdict, the worst first; what is not finite is worst of all.
fn ranked(activations: Vec<Int8Verdict>, weights: Vec<Int8Verdict>) -> Vec<Int8Verdict> {
    // Stable: of equals the first, and of what is not finite the weights, which spoil what comes after them.
    let mut all = weights;
    all.extend(activations);
    all.sort_by(|a, b| b.severity().total_cmp(&a.severity()));
    all
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

/// The activations of one batch of ids by site name, (sequences, tokens, channels), float32.
///
/// # Errors
/// If the batch does not fit the model.
pub fn activations(
    model: &dyn Parts,
    ids: &[u32],
    sequences: usize,
) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    activations_of(model, &Input::Tokens { ids: ids.to_vec(), sequences })
}

/// The same of any input.
///
/// # Errors
/// If it does not fit the model, or a part cannot be read.
pub fn activations_of(
    model: &dyn Parts,
    input: &Input,
) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    input.check(model.config())?;
    let (mut dump, mut quantisers) = (DumpTap(BTreeMap::new()), model.quantisers());
    let mut tap = Seen::new(&mut quantisers, &mut dump);
    let tape = Tape::off();
    let mut x = model.embedding()?.forward(&tape, &mut tap, input)?;
    for layer in 0..model.config().depth {
        x = model.block(layer)?.forward(&tape, &mut tap, &x)?;
    }
    let head = model.head()?;
    x = head.final_norm(&tape, &mut tap, &x)?;
    if head.exists() {
        head.logits(&tape, &mut tap, &x)?;
    }
    Ok(dump.0)
}

/// Writes [`activations_of`] as safetensors.
///
/// # Errors
/// If the input does not fit the model, or the disk refuses.
pub fn dump(model: &dyn Parts, input: &Input, path: &Path) -> Result<()> {
    Ok(crate::checkpoint::write_tensors(path, &activations_of(model, input)?)?)
}
