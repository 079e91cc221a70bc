//! The tap that quantises activations: calibrating, then fixed.
//!
//! Calibration is one joint pass with all quantisers on: each updates its range with what it sees and quantises with it at
//! once, so that later ones see what earlier ones have rounded.

use super::QuantError;
use super::grid::Cell;
use super::int8::ActivationGrid;
use super::range::Observer;
use super::rounding::{Layout, Rounding, peak, round_dynamic};
use super::scheme::Plan;
use super::spec::{Range, Scale, Spec};
use crate::slices::with_slice_mut;
use crate::tap::{Site, Tap};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One site's quantiser: what it saw, its cells once fixed, and the error it made.
#[derive(Clone, Debug)]
struct Activation {
    spec: Spec,
    /// One, or one for each channel; none where nothing is calibrated.
    observers: Vec<Observer>,
    fixed: Option<Fixed>,
    error: f64,
    energy: f64,
}

/// A calibrated quantiser.
#[derive(Clone, Debug)]
struct Fixed {
    ranges: Vec<(f64, f64)>,
    rounding: Rounding,
}

/// A transforming tap that calibrates or applies the activation quantisers.
#[derive(Clone, Debug)]
pub struct QuantTap {
    calibrating: bool,
    sites: BTreeMap<Site, Activation>,
    /// Sites that are left alone for now.
    off: BTreeSet<Site>,
    failure: Option<QuantError>,
}

/// A calibrated quantiser as it is reported.
pub struct Calibrated<'a> {
    /// Where it stands.
    pub site: Site,
    /// Its data.
    pub spec: Spec,
    /// Ranges of its cells; none if they come from the values.
    pub ranges: &'a [(f64, f64)],
    /// Its cells; `None` if they come from the values.
    pub rounding: Option<&'a Rounding>,
    /// √(Σ (x - x̂)² / Σ x²) since calibration; `None` if everything was 0.
    pub error: Option<f64>,
}

impl QuantTap {
    /// Starts calibrating.
    pub fn new(plan: &Plan) -> Self {
        let activation = |(&site, &spec): (&Site, &Spec)| {
            (site, Activation { spec, observers: Vec::new(), fixed: None, error: 0.0, energy: 0.0 })
        };
        Self {
            calibrating: true,
            sites: plan.activations.iter().map(activation).collect(),
            off: BTreeSet::new(),
            failure: None,
        }
    }

    /// Quantisers to bytes whose grids are known: static ones, and those of each token.
    pub(super) fn fixed(specs: &BTreeMap<Site, Spec>, grids: &BTreeMap<Site, ActivationGrid>) -> Self {
        let activation = |(&site, &spec): (&Site, &Spec)| {
            let fixed = match grids.get(&site) {
                Some(ActivationGrid::Static(q)) => Some(Fixed {
                    ranges: vec![q.limits()],
                    rounding: Rounding { layout: Layout::Tensor, cells: vec![Cell::Int(*q)] },
                }),
                Some(ActivationGrid::Token) | None => None,
            };
            (site, Activation { spec, observers: Vec::new(), fixed, error: 0.0, energy: 0.0 })
        };
        Self {
            calibrating: false,
            sites: specs.iter().map(activation).collect(),
            off: BTreeSet::new(),
            failure: None,
        }
    }

    /// Ends calibration: every range is fixed.
    ///
    /// # Errors
    /// A site that calibration did not reach.
    pub fn fix(&mut self) -> Result<(), QuantError> {
        self.calibrating = false;
        for (site, a) in &mut self.sites {
            a.fixed = a.calibrated();
            if a.fixed.is_none() && a.is_calibrated() {
                return Err(QuantError::Uncalibrated { site: site.to_string() });
            }
        }
        Ok(())
    }

    /// Leaves all sites alone but those that `on` names.
    pub fn enable_where(&mut self, on: impl Fn(Site) -> bool) {
        self.off = self.sites.keys().copied().filter(|&site| !on(site)).collect();
    }

    /// These sites' quantisers alone.
    pub(super) fn part(&self, keep: impl Fn(Site) -> bool) -> Self {
        let sites = self.sites.iter().filter(|(site, _)| keep(**site)).map(|(&site, a)| (site, a.clone()));
        Self { sites: sites.collect(), failure: None, off: self.off.clone(), ..*self }
    }

    /// All quantisers, calibrated.
    pub fn quantisers(&self) -> impl Iterator<Item = Calibrated<'_>> + '_ {
        self.sites.iter().map(|(&site, a)| Calibrated {
            site,
            spec: a.spec,
            ranges: a.fixed.as_ref().map_or(&[], |f| &f.ranges),
            rounding: a
                .fixed
                .as_ref()
                .filter(|_| !a.spec.dynamic && a.spec.scale == Scale::Float)
                .map(|f| &f.rounding),
            error: (a.energy > 0.0).then(|| (a.error / a.energy).sqrt()),
        })
    }

    /// What stopped the last forward pass, if it was a quantiser.
    pub fn take_failure(&mut self) -> Option<QuantError> {
        self.failure.take()
    }

    fn quantise(&mut self, site: Site, x: &mut [f32], width: usize) -> Result<(), QuantError> {
        let Some(a) = self.sites.get_mut(&site) else { return Ok(()) };
        if self.calibrating {
            a.observe(site, x, width)?;
            a.fixed = a.calibrated();
        }
        let before = if self.calibrating { Vec::new() } else { x.to_vec() };
        a.round(site, x, width)?;
        if !self.calibrating {
            let (error, energy) = errors(&before, x);
            a.error += error;
            a.energy += energy;
        }
        Ok(())
    }
}

impl Activation {
    /// Whether its range comes from calibration.
    fn is_calibrated(&self) -> bool {
        !self.spec.dynamic
    }

    fn observe(&mut self, site: Site, x: &[f32], width: usize) -> Result<(), QuantError> {
        if !self.is_calibrated() {
            return Ok(());
        }
        let name = site.to_string();
        if Layout::of_activation(self.spec.granularity) != Layout::Column {
            let method = match self.spec.scale {
                // Of two scales only the tensor's is calibrated, and that by its peak.
                Scale::E4m3 => Range::MinMax,
                Scale::Float | Scale::PowerOfTwo => self.spec.range,
            };
            if self.observers.is_empty() {
                self.observers.push(Observer::new(method));
            }
            return self.observers.iter_mut().try_for_each(|o| o.update(&name, x));
        }
        self.observers.resize_with(width, || Observer::new(self.spec.range));
        self.observers.par_iter_mut().enumerate().try_for_each(|(column, observer)| {
            let values: Vec<f32> = x.iter().skip(column).step_by(width).copied().collect();
            observer.update(&name, &values)
        })
    }

    /// The cells so far.
    fn calibrated(&self) -> Option<Fixed> {
        let ranges: Vec<_> = self.observers.iter().filter_map(|o| o.range(self.spec.format)).collect();
        let complete = !ranges.is_empty() && ranges.len() == self.observers.len();
        complete.then(|| Fixed { rounding: Rounding::of_ranges(self.spec, &ranges), ranges })
    }

    fn round(&self, site: Site, x: &mut [f32], width: usize) -> Result<(), QuantError> {
        let dynamic = self.spec.dynamic || self.spec.scale != Scale::Float;
        match &self.fixed {
            None if self.is_calibrated() => return Err(QuantError::Uncalibrated { site: site.to_string() }),
            Some(fixed) if !dynamic => fixed.rounding.apply(x, width),
            _ if x.iter().any(|v| !v.is_finite()) => {
                return Err(QuantError::NonFinite { site: site.to_string() });
            }
            fixed => {
                let range = fixed.as_ref().and_then(|f| f.ranges.first().copied());
                round_dynamic(self.spec, range.map(peak), x, width);
            }
        }
        Ok(())
    }
}

/// Σ (x - x̂)² and Σ x², pieces added in order.
pub(super) fn errors(x: &[f32], rounded: &[f32]) -> (f64, f64) {
    let parts: Vec<(f64, f64)> = x
        .par_chunks(1 << 16)
        .zip(rounded.par_chunks(1 << 16))
        .map(|(x, y)| {
            x.iter().zip(y).fold((0.0, 0.0), |(e, s), (&x, &y)| {
                let (x, y) = (x as f64, y as f64);
                (e + (x - y) * (x - y), s + x * x)
            })
        })
        .collect();
    parts.into_iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d))
}

impl Tap for QuantTap {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains_key(&site) && !self.off.contains(&site)
    }

    fn transforms(&self) -> bool {
        true
    }

    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        let width = x.dims().last().copied().unwrap_or(1);
        // A copy: the tensor may be shared with the residual stream.
        let y = x.contiguous()?.copy()?;
        let outcome = with_slice_mut(&y, |data| Ok(self.quantise(site, data, width)))?;
        if let Err(failure) = outcome {
            let message = failure.to_string();
            self.failure = Some(failure);
            candle_core::bail!("{message}");
        }
        Ok(y)
    }
}
