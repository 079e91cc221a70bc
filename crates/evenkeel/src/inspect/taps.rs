//! What is gathered while a model runs, and from its parameters.

use super::Options;
use crate::metrics::int8::{self, Int8Verdict};
use crate::metrics::{AttentionTap, GainReport, MassiveTap, MetricsTap, WeightReport, weights};
use crate::model::config::NormPosition;
use crate::model::{Input, ModelConfig, Parameter};
use crate::quant::places::{has_quantiser, is_quantised_weight};
use crate::tap::{Place, Site, Tap};
use candle_core::{Result, Tensor};
use std::collections::BTreeSet;

/// All that is gathered in a forward pass, and the order of the sites in it.
pub(super) struct InspectTap {
    pub(super) metrics: MetricsTap,
    pub(super) massive: MassiveTap,
    pub(super) attention: AttentionTap,
    /// The verdict on activations, in the order of the sites.
    pub(super) int8: Vec<Int8Verdict>,
    pub(super) order: Vec<Site>,
    /// Whether the batch that runs is the first: attention and the verdict are of it alone.
    pub(super) is_first: bool,
    pub(super) ids: FirstIds,
    options: Options,
    config: ModelConfig,
}

/// Token ids of the first batch, to name the token behind an outlier.
#[derive(Default)]
pub(super) struct FirstIds(Vec<u32>);

impl FirstIds {
    pub(super) fn of(input: &Input) -> Self {
        match input {
            Input::Tokens { ids, .. } => Self(ids.clone()),
            Input::Images { .. } => Self::default(),
        }
    }
}

impl InspectTap {
    pub(super) fn new(config: &ModelConfig, options: &Options) -> Self {
        Self {
            metrics: MetricsTap::with(None, options.selection),
            massive: MassiveTap::new(options.top_k),
            attention: AttentionTap::new(config.causal),
            int8: Vec::new(),
            order: Vec::new(),
            is_first: false,
            ids: FirstIds::default(),
            options: *options,
            config: config.clone(),
        }
    }

    /// Gives back the memory of the sites `passed`, as far as they want no more, or if no more inputs come after the `last`.
    pub(super) fn settle(&mut self, last: bool, passed: impl Fn(Site) -> bool) {
        let passed = self.metrics.stats.iter_mut().filter(|(site, _)| passed(**site));
        passed.for_each(|(_, stats)| stats.settle(last));
    }

    /// Whether W8A8 rounds the activations at `site`, and they have channels. A norm after the branch leaves the branch's
    /// input as it is, a site that has been rounded before.
    fn is_rounded(&self, site: Site) -> bool {
        let post = self.config.norm_position == NormPosition::Post;
        let again = post && matches!(site.place, Place::AttnIn | Place::MlpIn);
        site.place.has_channels() && !again && has_quantiser(&self.config, site)
    }
}

impl Tap for InspectTap {
    fn wants(&self, site: Site) -> bool {
        let attention = self.options.attention && self.is_first && self.attention.wants(site);
        self.metrics.wants(site) || attention
    }

    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        if !site.place.has_channels() {
            return self.attention.visit(site, x);
        }
        if !self.metrics.stats.contains_key(&site) {
            self.order.push(site);
        }
        if self.is_first && self.options.int8 && self.is_rounded(site) {
            self.int8.push(int8::of_activations(site, &x, &self.ids.0, &self.config)?);
        }
        let x = if self.massive.wants(site) { self.massive.visit(site, x)? } else { x };
        self.metrics.visit(site, x)
    }
}

/// What is told of the parameters, part by part; a part that comes again is passed over.
pub(super) struct WeightTap {
    wanted: bool,
    seen: BTreeSet<String>,
    pub(super) reports: Vec<WeightReport>,
    pub(super) gains: Vec<GainReport>,
    pub(super) int8: Vec<Int8Verdict>,
}

impl WeightTap {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, seen: BTreeSet::new(), reports: Vec::new(), gains: Vec::new(), int8: Vec::new() }
    }

    pub(super) fn add(&mut self, parameters: &[Parameter]) -> Result<()> {
        if !self.wanted {
            return Ok(());
        }
        let new: Vec<Parameter> =
            parameters.iter().filter(|p| self.seen.insert(p.name.clone())).cloned().collect();
        self.reports.extend(weights::weights(&new)?);
        self.gains.extend(weights::gains(&new)?);
        for p in new.iter().filter(|p| p.tensor.rank() == 2 && is_quantised_weight(&p.name)) {
            self.int8.push(int8::of_weight(&p.name, &p.tensor)?);
        }
        Ok(())
    }
}
