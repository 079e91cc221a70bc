//! Which quantiser costs how much loss.
//!
//! A model with many quantisers loses more, or less, than the sum of what each costs by itself, so three questions are asked
//! of each: what does it cost with all others off ([`Attribution::alone`]), what is left with all others on
//! ([`Attribution::without`]), and how does the loss grow as the network is quantised from its first stage to its last
//! ([`Attribution::cumulative`])? Beside them stands how far the stream itself has moved ([`Attribution::deviation`]).
//!
//! Nothing is rounded twice: every model in between takes each parameter from the float or from the quantised one. Nor is a stage
//! run twice with the same quantisers on: a pass starts at the stage of the quantiser that is switched, from the stream that
//! entered that stage in the float or in the quantised pass.

use super::HeadFormat;
use super::comparison::log_sum_exp;
use super::simulation::Simulation;
use super::stages::{Start, Trace, logits, stage_names, stage_of};
use super::tap::{QuantTap, errors};
use crate::data::{Batch, DataError};
use crate::error::Result;
use crate::model::{Input, Transformer};
use crate::slices::slice;
use crate::tap::NoTap;
use crate::tape::Value;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::{Add, ControlFlow};

/// What a quantiser rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantiserKind {
    /// A parameter.
    Weight,
    /// The values at a site.
    Activation,
}

/// The loss with one quantiser switched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantiserCost {
    /// Parameter or site.
    pub quantiser: String,
    /// Which of the two.
    pub kind: QuantiserKind,
    /// Above the float loss, nats per token.
    pub loss_increase: f64,
    /// Standard error over tokens of what the switch changes: of the difference to the float loss in
    /// [`Attribution::alone`], to the loss with all quantisers on in [`Attribution::without`].
    pub standard_error: f64,
}

/// The loss with the first stages quantised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CumulativeCost {
    /// The last of them: `embed`, `blocks.0` and so on, `head`, which is everything.
    pub through: String,
    /// Above the float loss, nats per token.
    pub loss_increase: f64,
    /// Its standard error over tokens.
    pub standard_error: f64,
}

/// How far quantisation has moved what passes a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteDeviation {
    /// `embed`, `blocks.0.resid` and so on, `final_norm`, `logits`.
    pub site: String,
    /// √(Σ (x - x̂)² / Σ x²) over tokens and channels, with all quantisers on; null where x is 0.
    pub relative: Option<f64>,
}

/// What each quantiser of a model costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attribution {
    /// Tokens that were evaluated.
    pub tokens: u64,
    /// Mean loss of the float model on them, repaired where repairs were asked for, nats.
    pub float_loss: f64,
    /// With this quantiser alone, stage by stage.
    pub alone: Vec<QuantiserCost>,
    /// With all quantisers but this one, in the same order.
    pub without: Vec<QuantiserCost>,
    /// With everything up to a stage quantised and the rest in float.
    pub cumulative: Vec<CumulativeCost>,
    /// How far each stage's output is off with everything quantised.
    pub deviation: Vec<SiteDeviation>,
}

impl Attribution {
    /// The loss that everything together adds, nats per token.
    pub fn full_increase(&self) -> f64 {
        self.cumulative.last().map_or(0.0, |all| all.loss_increase)
    }

    /// Its standard error over tokens.
    pub fn full_error(&self) -> f64 {
        self.cumulative.last().map_or(0.0, |all| all.standard_error)
    }
}

/// A quantiser, and what it takes to switch it.
struct Switch {
    name: String,
    kind: QuantiserKind,
    stage: usize,
    /// Parameters that it changes: a weight, and a bias that was corrected for it.
    parameters: Vec<String>,
}

impl Switch {
    fn is_on_at(&self, site: &str) -> bool {
        self.kind == QuantiserKind::Activation && self.name == site
    }
}

/// All quantisers, stage by stage, weights first.
fn switches(simulation: &Simulation) -> Vec<Switch> {
    let rounded = simulation.rounded();
    let depth = rounded.model.config().depth;
    let bf16_head = simulation.plan().head == HeadFormat::Bf16;
    let of = |name: String, kind, parameters| {
        let stage = stage_of(&name, depth);
        Switch { name, kind, stage, parameters }
    };
    let weights = rounded.model.parameters().iter().map(|p| p.name.as_str());
    let weights =
        weights.filter(|&name| rounded.weights.contains_key(name) || bf16_head && name == "head.weight");
    let weights = weights.map(|name| {
        let bias = name.strip_suffix(".weight").map(|matrix| format!("{matrix}.bias"));
        let parameters = std::iter::once(name.to_string()).chain(bias).collect();
        of(name.to_string(), QuantiserKind::Weight, parameters)
    });
    let sites = simulation.plan().activations.keys();
    let sites = sites.map(|site| of(site.to_string(), QuantiserKind::Activation, Vec::new()));
    let mut all: Vec<Switch> = weights.chain(sites).collect();
    all.sort_by_key(|switch| switch.stage);
    all
}

/// `model` with the parameters that `names` lists taken from `other`, which has the same ones.
fn with_parameters(model: &Transformer, other: &Transformer, names: &[String]) -> Result<Transformer> {
    if names.is_empty() {
        return Ok(model.clone());
    }
    Ok(model.map_parameters(|p| {
        let taken = names.contains(&p.name).then(|| other.parameters().get(p.index)).flatten();
        Ok(taken.unwrap_or(p).tensor.clone())
    })?)
}

/// Losses of a pass beside those of another on the same tokens, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    loss: f64,
    /// Σ of the differences to the other pass.
    moved: f64,
    /// Σ of their squares.
    squares: f64,
}

impl Tally {
    fn of(losses: &[f64], others: &[f64]) -> Self {
        losses.iter().zip(others).fold(Self::default(), |sum, (&loss, other)| {
            let moved = loss - other;
            sum + Self { loss, moved, squares: moved * moved }
        })
    }

    /// Of the mean difference.
    fn standard_error(&self, tokens: f64) -> f64 {
        let mean = self.moved / tokens;
        ((self.squares / tokens - mean * mean).max(0.0) / tokens).sqrt()
    }
}

impl Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            loss: self.loss + other.loss,
            moved: self.moved + other.moved,
            squares: self.squares + other.squares,
        }
    }
}

/// Sums over the tokens of some batches.
#[derive(Default)]
struct Sums {
    tokens: u64,
    float: f64,
    /// Beside the float pass.
    alone: Vec<Tally>,
    /// Beside the quantised pass.
    without: Vec<Tally>,
    /// Beside the float pass.
    cumulative: Vec<Tally>,
    /// Σ (x - x̂)² and Σ x².
    deviation: Vec<(f64, f64)>,
}

impl Sums {
    fn add(self, other: Sums) -> Sums {
        if self.tokens == 0 {
            return other;
        }
        let sum = |a: Vec<Tally>, b: Vec<Tally>| a.into_iter().zip(b).map(|(a, b)| a + b).collect();
        let pairs = self.deviation.into_iter().zip(other.deviation);
        Sums {
            tokens: self.tokens + other.tokens,
            float: self.float + other.float,
            alone: sum(self.alone, other.alone),
            without: sum(self.without, other.without),
            cumulative: sum(self.cumulative, other.cumulative),
            deviation: pairs.map(|((e, s), (f, t))| (e + f, s + t)).collect(),
        }
    }
}

/// The float model, the quantised one, and the quantisers between them.
struct Switchboard<'a> {
    float: &'a Transformer,
    quantised: &'a Transformer,
    /// A copy: what passes here is no part of the simulation's own errors.
    tap: QuantTap,
    switches: &'a [Switch],
}

impl Switchboard<'_> {
    /// Passes per batch that are counted as progress.
    fn passes(&self) -> u64 {
        2 * self.switches.len() as u64 + self.quantised.config().depth as u64 + 2
    }

    /// `None` if `go_on`, asked after each pass, says no.
    fn measure(&mut self, batch: &Batch, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Sums>> {
        let input = Input::from(batch.clone());
        let float = Trace::of(self.float, &mut NoTap, &input)?;
        self.tap.enable_where(|_| true);
        let quantised = Trace::of(self.quantised, &mut self.tap, &input)?;
        let losses = |logits: &Value| losses(logits, &batch.targets);
        let (of_float, of_all) = (losses(&float.logits)?, losses(&quantised.logits)?);
        let mut sums = Sums {
            tokens: batch.tokens() as u64,
            float: of_float.iter().sum(),
            deviation: deviations(&float, &quantised)?,
            ..Sums::default()
        };
        for stage in 0..self.quantised.config().depth + 1 {
            let start = quantised.start(stage + 1, &input);
            let logits = logits(self.float, &mut NoTap, start, &mut |_| {})?;
            sums.cumulative.push(Tally::of(&losses(&logits)?, &of_float));
            if !go_on() {
                return Ok(None);
            }
        }
        sums.cumulative.push(Tally::of(&of_all, &of_float));
        if !go_on() {
            return Ok(None);
        }
        for switch in self.switches {
            let start = float.start(switch.stage, &input);
            sums.alone.push(Tally::of(&losses(&self.alone(switch, start)?)?, &of_float));
            if !go_on() {
                return Ok(None);
            }
            let start = quantised.start(switch.stage, &input);
            sums.without.push(Tally::of(&losses(&self.without(switch, start)?)?, &of_all));
            if !go_on() {
                return Ok(None);
            }
        }
        Ok(Some(sums))
    }

    fn alone(&mut self, switch: &Switch, start: Start) -> Result<Value> {
        let model = with_parameters(self.float, self.quantised, &switch.parameters)?;
        self.tap.enable_where(|site| switch.is_on_at(&site.to_string()));
        logits(&model, &mut self.tap, start, &mut |_| {})
    }

    fn without(&mut self, switch: &Switch, start: Start) -> Result<Value> {
        let model = with_parameters(self.quantised, self.float, &switch.parameters)?;
        self.tap.enable_where(|site| !switch.is_on_at(&site.to_string()));
        logits(&model, &mut self.tap, start, &mut |_| {})
    }
}

/// Cross-entropy of each of `targets` under logits (b, t, v), nats.
fn losses(logits: &Value, targets: &[u32]) -> Result<Vec<f64>> {
    let logits = logits.tensor().contiguous()?;
    let vocab = logits.dims().last().copied().unwrap_or(1);
    let logits = slice(&logits)?;
    let rows = logits.par_chunks(vocab.max(1)).zip(targets);
    let loss = |(row, &target): (&[f32], &u32)| {
        let own = row.get(target as usize).map_or(f64::NAN, |&v| f64::from(v));
        log_sum_exp(row).1 - own
    };
    Ok(rows.map(loss).collect())
}

/// Squared errors and squares at the output of each stage, the final norm and the head.
fn deviations(float: &Trace, quantised: &Trace) -> Result<Vec<(f64, f64)>> {
    let pairs = float.left.iter().zip(&quantised.left).chain([(&float.logits, &quantised.logits)]);
    let pairs = pairs.map(|(x, y)| {
        let (x, y) = (x.tensor().contiguous()?, y.tensor().contiguous()?);
        Ok(errors(&slice(&x)?, &slice(&y)?))
    });
    pairs.collect()
}

/// Names of the sites of [`deviations`].
fn deviation_sites(depth: usize) -> impl Iterator<Item = String> {
    let blocks = (0..depth).map(|layer| format!("blocks.{layer}.resid"));
    let last = ["final_norm", "logits"].map(String::from);
    std::iter::once("embed".to_string()).chain(blocks).chain(last)
}

impl Simulation {
    /// What each quantiser costs on `batches`, of `sequences` in all. `progress(done, total)` counts sequences through all passes, and a break ends
    /// the work: what whole batches gave by then is returned, or `None` if there is none.
    ///
    /// # Errors
    /// If the batches cannot be read or do not fit the model, or a value is not finite where a quantiser needs it to be.
    pub fn attribute(
        &self,
        batches: impl Iterator<Item = std::result::Result<Batch, DataError>>,
        sequences: u64,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<Attribution>> {
        let switches = switches(self);
        let quantised = &self.rounded().model;
        let tap = self.activation_quantisers().clone();
        let mut board = Switchboard { float: self.float(), quantised, tap, switches: &switches };
        let (mut done, total) = (0, sequences * board.passes());
        let mut sums = Sums::default();
        for batch in batches {
            let batch = batch?;
            let measured = board.measure(&batch, &mut || {
                done += batch.sequences as u64;
                progress(done, total).is_continue()
            })?;
            match measured {
                Some(of_batch) => sums = sums.add(of_batch),
                None => break,
            }
        }
        Ok((sums.tokens > 0).then(|| of_sums(sums, &switches, quantised.config().depth)))
    }
}

fn of_sums(sums: Sums, switches: &[Switch], depth: usize) -> Attribution {
    let tokens = sums.tokens as f64;
    let increase = |tally: &Tally| (tally.loss - sums.float) / tokens;
    let costs = |tallies: &[Tally]| {
        let cost = |(switch, tally): (&Switch, &Tally)| QuantiserCost {
            quantiser: switch.name.clone(),
            kind: switch.kind,
            loss_increase: increase(tally),
            standard_error: tally.standard_error(tokens),
        };
        switches.iter().zip(tallies).map(cost).collect()
    };
    let stages = stage_names(depth).zip(&sums.cumulative);
    let sites = deviation_sites(depth).zip(&sums.deviation);
    Attribution {
        tokens: sums.tokens,
        float_loss: sums.float / tokens,
        alone: costs(&sums.alone),
        without: costs(&sums.without),
        cumulative: stages
            .map(|(through, tally)| CumulativeCost {
                through,
                loss_increase: increase(tally),
                standard_error: tally.standard_error(tokens),
            })
            .collect(),
        deviation: sites
            .map(|(site, (error, energy))| SiteDeviation {
                site,
                relative: (*energy > 0.0).then(|| (error / energy).sqrt()),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests;
