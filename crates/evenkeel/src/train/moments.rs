//! moments.jsonl: what each measured optimiser step did to the moments of a fixed probe batch.
//!
//! The probe is the first `telemetry.probe_sequences` validation sequences, or images, so it is the same for the whole run and
//! after resuming. On a measured step it is run, in float32, before the update and after it; the activations at the
//! sites that `telemetry.moment_sites` names are X and X' of [`crate::metrics::moments`]. Where the next step is
//! measured too, X' is its X, and one forward pass a step is enough. The passes record nothing and change nothing
//! that training computes. Any optimiser can be watched.

use super::log::{LineLog, read_lines};
use super::{Feed, RunDir, measured};
use crate::config::{ConfigError, RunConfig};
use crate::data::Split;
use crate::error::Result;
use crate::metrics::moments::{MomentKind, MomentTerms, moment_terms};
use crate::model::{Input, Transformer};
use crate::names::NameFilter;
use crate::slices::slice;
use crate::tap::{Place, Site, Tap};
use crate::tape::Tape;
use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A line of moments.jsonl. What is not finite is null, and so are the sums from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MomentsLine {
    /// Steps finished, the one that is described included.
    pub step: u64,
    /// Site's name.
    pub site: String,
    /// Block index; null outside blocks.
    pub layer: Option<usize>,
    /// Which moments.
    pub moments: MomentKind,
    /// Second moment before the step.
    pub m2: Option<f64>,
    /// Fourth moment before the step.
    pub m4: Option<f64>,
    /// Eq 1 before the step; null for element-wise moments, whose ratio is another quantity.
    pub kurtosis: Option<f64>,
    /// Linear part of the change of m2.
    pub u21: Option<f64>,
    /// Quadratic part of it.
    pub u22: Option<f64>,
    /// Linear part of the change of m4.
    pub u41: Option<f64>,
    /// Quadratic part of it.
    pub u42: Option<f64>,
    /// Cubic part of it.
    pub u43: Option<f64>,
    /// Quartic part of it.
    pub u44: Option<f64>,
    /// `u21` summed over all measured steps so far; likewise the others.
    pub cum_u21: Option<f64>,
    /// Sum of `u22`.
    pub cum_u22: Option<f64>,
    /// Sum of `u41`.
    pub cum_u41: Option<f64>,
    /// Sum of `u42`.
    pub cum_u42: Option<f64>,
    /// Sum of `u43`.
    pub cum_u43: Option<f64>,
    /// Sum of `u44`.
    pub cum_u44: Option<f64>,
}

/// Sums of u21, u22, u41, u42, u43, u44; none where one of the terms was undefined.
type Sums = [Option<f64>; 6];

impl MomentsLine {
    fn new(step: u64, site: Site, moments: MomentKind, terms: &MomentTerms, sums: &Sums) -> Self {
        let finite = |v: f64| v.is_finite().then_some(v);
        let [cum_u21, cum_u22, cum_u41, cum_u42, cum_u43, cum_u44] = *sums;
        Self {
            step,
            site: site.to_string(),
            layer: site.layer,
            moments,
            m2: finite(terms.m2),
            m4: finite(terms.m4),
            kurtosis: terms.ratio().filter(|_| moments == MomentKind::Neuron),
            u21: finite(terms.u21),
            u22: finite(terms.u22),
            u41: finite(terms.u41),
            u42: finite(terms.u42),
            u43: finite(terms.u43),
            u44: finite(terms.u44),
            cum_u21,
            cum_u22,
            cum_u41,
            cum_u42,
            cum_u43,
            cum_u44,
        }
    }

    fn sums(&self) -> Sums {
        [self.cum_u21, self.cum_u22, self.cum_u41, self.cum_u42, self.cum_u43, self.cum_u44]
    }
}

/// Activations by site: the channels, and the rows one after another.
type Activations = BTreeMap<Site, (usize, Vec<f32>)>;

/// Follows the moments of the probe over a run.
pub(super) struct MomentTracker {
    every: u64,
    steps: u64,
    kind: MomentKind,
    filter: NameFilter,
    probe: Input,
    log: LineLog,
    sums: BTreeMap<String, Sums>,
    /// The probe's activations after so many steps.
    held: Option<(u64, Activations)>,
}

impl MomentTracker {
    /// Opens the log, cut at `step`; none if the configuration measures no moments.
    pub(super) fn open(config: &RunConfig, feed: &Feed, dir: &RunDir, step: u64) -> Result<Option<Self>> {
        let t = &config.telemetry;
        let wanted = t.moments_every_steps > 0;
        let Some(log) = LineLog::open_if(wanted, &dir.moments(), step)? else { return Ok(None) };
        let split = if feed.is_empty(Split::Val) { Split::Train } else { Split::Val };
        let mut blocks = feed.in_order(&config.model, split, t.probe_sequences, None)?;
        let Some(probe) = blocks.next().transpose()? else { return Ok(None) };
        let mut sums = BTreeMap::new();
        for line in read_lines::<MomentsLine>(&dir.moments())? {
            // Sums of other moments are not gone on with.
            if line.moments == t.moments {
                sums.insert(line.site.clone(), line.sums());
            } else {
                sums.remove(&line.site);
            }
        }
        Ok(Some(Self {
            every: t.moments_every_steps,
            steps: config.train.steps,
            kind: t.moments,
            filter: NameFilter::new(&t.moment_sites)
                .map_err(|e| ConfigError::Value { problem: format!("telemetry.moment_sites: {e}") })?,
            probe: probe.into(),
            log,
            sums,
            held: None,
        }))
    }

    /// To be called before the update that follows `step` finished steps.
    pub(super) fn before(&mut self, model: &Transformer, step: u64) -> Result<()> {
        if !measured(step, self.every, self.steps) {
            self.held = None;
        } else if self.held.as_ref().is_none_or(|(at, _)| *at != step) {
            self.held = Some((step, self.run(model)?));
        }
        Ok(())
    }

    /// To be called after the update, `step` now counting it: writes the lines of a measured step, and returns them.
    pub(super) fn after(&mut self, model: &Transformer, step: u64) -> Result<Vec<MomentsLine>> {
        let Some((_, before)) = self.held.take() else { return Ok(Vec::new()) };
        let after = self.run(model)?;
        let mut lines = Vec::with_capacity(before.len());
        for (site, (width, x)) in &before {
            let Some((_, moved)) = after.get(site) else { continue };
            let terms = moment_terms(self.kind, x, moved, *width);
            let sums = self.sums.entry(site.to_string()).or_insert([Some(0.0); 6]);
            let parts = [terms.u21, terms.u22, terms.u41, terms.u42, terms.u43, terms.u44];
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum = sum.map(|s| s + part).filter(|s| s.is_finite());
            }
            let line = MomentsLine::new(step, *site, self.kind, &terms, sums);
            self.log.append(&line)?;
            lines.push(line);
        }
        if measured(step, self.every, self.steps) {
            self.held = Some((step, after));
        }
        Ok(lines)
    }

    fn run(&self, model: &Transformer) -> Result<Activations> {
        let mut tap = KeepTap { filter: &self.filter, kept: Activations::new() };
        // The head is the most expensive matrix, and seldom asked for.
        if tap.wants(Site::outside(Place::Logits)) {
            model.logits_of(&Tape::off(), &mut tap, &self.probe)?;
        } else {
            model.run(&Tape::off(), &mut tap, &self.probe)?;
        }
        Ok(tap.kept)
    }
}

/// Keeps copies of the activations at the sites that it wants.
struct KeepTap<'a> {
    filter: &'a NameFilter,
    kept: Activations,
}

impl Tap for KeepTap<'_> {
    fn wants(&self, site: Site) -> bool {
        site.place.has_channels() && self.filter.matches(&site.to_string())
    }

    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        let plain = x.to_dtype(DType::F32)?.contiguous()?;
        // A copy: what comes after in the pass may write over its input.
        self.kept.insert(site, (x.dim(D::Minus1)?, slice(&plain)?.to_vec()));
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_to_the_last_bit_and_holds_no_nan() {
        let terms = MomentTerms {
            m2: 0.1 + 0.2,
            m4: 1.0 / 3.0,
            u21: -2.0f64.sqrt() * 1e-9,
            u22: 5e-324,
            u41: f64::NAN,
            u42: 0.7000000000000001,
            u43: f64::INFINITY,
            u44: std::f64::consts::PI * 1e-17,
        };
        let sums = [Some(1.0 / 49.0 * 49.0), None, Some(-0.0), Some(4e-17 / 3.0), None, Some(1e300 / 7.0)];
        let site = Site::block(3, Place::Resid);
        let line = MomentsLine::new(7, site, MomentKind::Neuron, &terms, &sums);
        let text = serde_json::to_string(&line).unwrap();
        let back: MomentsLine = serde_json::from_str(&text).unwrap();
        assert_eq!(back, line);
        assert_eq!(back.sums().map(|s| s.map(f64::to_bits)), sums.map(|s| s.map(f64::to_bits)));
        assert_eq!((line.u41, line.u43), (None, None));
        assert!(text.contains("\"moments\":\"neuron\"") && text.contains("\"cum_u22\":null"), "{text}");
    }

    #[test]
    fn numbers_of_logs_are_read_exactly() {
        // Without its feature float_roundtrip, serde_json gets nearly half of these wrong by one unit.
        let mut value = 0.1f64;
        for _ in 0..2000 {
            value = (value * 3.7).fract() + 1e-3;
            let scaled = value * 1e-9;
            let text = serde_json::to_string(&scaled).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&text).unwrap().to_bits(), scaled.to_bits(), "{text}");
        }
    }
}
