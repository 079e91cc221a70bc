//! The tables `[telemetry]`, what is watched while training, and `[[alarm]]`, what is done about it.
//!
//! Nothing here changes what a step computes, so a run may be resumed with other telemetry and other alarms.

use super::{ConfigError, overlay, shown};
use crate::metrics::moments::MomentKind;
use crate::metrics::{GramMode, GramSpec, Metrics, Selection};
use crate::names::NameFilter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Metrics that are taken every `gram_every_steps` only.
pub(crate) const GRAM_METRICS: [&str; 3] = ["input_corr_rms", "feature_corr_rms", "effective_rank"];
/// Metrics that are taken with `token_metrics` only.
const TOKEN_METRICS: [&str; 4] =
    ["kurtosis_elementwise", "kurtosis_excess_token", "inf_norm", "input_cos_mean"];

/// The table `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TelemetryConfig {
    /// Steps between measurements; 0 turns them off.
    pub stats_every_steps: u64,
    /// Globs over site names.
    pub sites: Vec<String>,
    /// Steps between measurements that take the Gram metrics too, on the residual stream, which cost most: a multiple of
    /// `stats_every_steps`; 0 means never.
    pub gram_every_steps: u64,
    /// Most tokens that the Gram metrics are taken over; they cost tokens² or channels², whichever is less.
    pub gram_tokens: usize,
    /// Which tokens are compared with each other.
    pub gram: GramMode,
    /// Tokens of a measurement that the max-median ratio is taken over; 0 means all.
    pub mmr_tokens: usize,
    /// Whether the metrics that need a pass of their own over every token are taken: element-wise and excess
    /// kurtosis, infinity norm, input cosine.
    pub token_metrics: bool,
    /// Steps between measurements of moment control (see [`crate::metrics::moments`]); 0 turns them off.
    pub moments_every_steps: u64,
    /// Which moments.
    pub moments: MomentKind,
    /// Globs over the sites of moment control.
    pub moment_sites: Vec<String>,
    /// Sequences of the probe batch of moment control, which stays the same for the whole run.
    pub probe_sequences: usize,
    /// Steps between lines of optim.jsonl, what a step did to each parameter; 0 turns them off.
    pub optim_every_steps: u64,
    /// Whether an event file for TensorBoard is written beside the logs, with the same figures.
    pub tensorboard: bool,
}

/// One table `[[alarm]]`: a bound on a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlarmConfig {
    /// Name of a metric, one of [`Metrics::NAMES`].
    pub metric: String,
    /// Globs over site names. They are measured whether or not `telemetry.sites` names them.
    pub sites: Vec<String>,
    /// The bound.
    pub above: f64,
    /// Measurements in a row above it before the alarm fires; at least 1.
    pub patience: u64,
    /// What happens then.
    pub action: AlarmAction,
}

/// What an alarm does when it fires, besides a line in alarms.jsonl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmAction {
    /// Nothing more.
    Log,
    /// Writes a checkpoint.
    Checkpoint,
    /// Writes a checkpoint and ends the run.
    Stop,
}

/// The sites that the paper plots: what enters each block, and what leaves the last.
fn residual_stream() -> Vec<String> {
    vec!["embed".into(), "blocks.*.resid".into()]
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            stats_every_steps: 10,
            sites: residual_stream(),
            gram_every_steps: 0,
            gram_tokens: 4096,
            gram: GramMode::Batch,
            mmr_tokens: 256,
            token_metrics: false,
            moments_every_steps: 0,
            moments: MomentKind::Neuron,
            moment_sites: residual_stream(),
            probe_sequences: 8,
            optim_every_steps: 0,
            tensorboard: true,
        }
    }
}

impl TelemetryConfig {
    /// Globs of all sites whose metrics are taken: those named here and those of the alarms.
    pub fn measured_sites(&self, alarms: &[AlarmConfig]) -> Vec<String> {
        self.sites.iter().chain(alarms.iter().flat_map(|a| &a.sites)).cloned().collect()
    }

    /// What a measurement gathers: with the Gram metrics or without them.
    pub fn selection(&self, gram: bool) -> Selection {
        Selection {
            mmr_tokens: Some(self.mmr_tokens).filter(|&t| t > 0),
            token_metrics: self.token_metrics,
            gram: gram.then_some(GramSpec { tokens: Some(self.gram_tokens), mode: self.gram }),
            gram_everywhere: false,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |problem: &str| Err(ConfigError::Value { problem: problem.into() });
        if self.gram_tokens < 2 {
            return refuse(
                "telemetry.gram_tokens must be at least 2, since tokens are compared with each other",
            );
        }
        if !(1..=1 << 16).contains(&self.probe_sequences) {
            return refuse("telemetry.probe_sequences must lie between 1 and 65536");
        }
        let (stats, gram) = (self.stats_every_steps, self.gram_every_steps);
        if gram > 0 && (stats == 0 || !gram.is_multiple_of(stats)) {
            return refuse(
                "telemetry.gram_every_steps must be a multiple of stats_every_steps, since the Gram metrics are taken with the others",
            );
        }
        globs("telemetry.sites", &self.sites)?;
        globs("telemetry.moment_sites", &self.moment_sites)
    }
}

fn globs(key: &str, patterns: &[String]) -> Result<(), ConfigError> {
    let bad = |e| ConfigError::Value { problem: format!("{key}: {e}") };
    NameFilter::new(patterns).map(|_| ()).map_err(bad)
}

/// Keys that an `[[alarm]]` cannot be without.
pub(super) const ALARM_REQUIRED: [&str; 2] = ["metric", "above"];

/// Every key of an `[[alarm]]`, with its default where it has one.
pub(super) fn alarm_table() -> Table {
    let mut table = Table::new();
    table.insert("metric".into(), Value::String(String::new()));
    table.insert("sites".into(), residual_stream().into());
    table.insert("above".into(), Value::Float(0.0));
    table.insert("patience".into(), Value::Integer(1));
    table.insert("action".into(), Value::String("log".into()));
    table
}

/// The user's `[[alarm]]` tables with what they leave out filled in; keys and types are checked as elsewhere.
pub(super) fn complete_alarms(alarms: Vec<Value>) -> Result<Vec<Value>, ConfigError> {
    let complete = |(i, alarm): (usize, Value)| {
        let path = format!("alarm[{i}]");
        let Value::Table(given) = alarm else {
            return Err(ConfigError::Type { key: path, expected: "a table".into(), found: shown(&alarm) });
        };
        let missing = ALARM_REQUIRED.into_iter().find(|key| !given.contains_key(*key));
        let mut table = alarm_table();
        // First, so that a misspelt key is called that rather than missing.
        overlay(&mut table, given, &path)?;
        match missing {
            Some(key) => Err(ConfigError::Alarm { problem: format!("`{path}` has no `{key}`") }),
            None => Ok(Value::Table(table)),
        }
    };
    alarms.into_iter().enumerate().map(complete).collect()
}

pub(super) fn validate_alarms(
    alarms: &[AlarmConfig],
    telemetry: &TelemetryConfig,
) -> Result<(), ConfigError> {
    let refuse = |problem: String| Err(ConfigError::Alarm { problem });
    for (i, alarm) in alarms.iter().enumerate() {
        if !Metrics::is_known(&alarm.metric) {
            let likeness = |name: &&&str| (1e6 * strsim::jaro_winkler(name, &alarm.metric)) as u64;
            let nearest = Metrics::NAMES.iter().max_by_key(likeness).unwrap_or(&"kurtosis");
            return refuse(format!(
                "`alarm[{i}].metric`: there is no metric \"{}\"; the nearest is \"{nearest}\"",
                alarm.metric
            ));
        }
        // A metric that is never taken would never be above anything.
        let missing = match alarm.metric.as_str() {
            m if GRAM_METRICS.contains(&m) && telemetry.gram_every_steps == 0 => {
                Some("gram_every_steps = 100")
            }
            m if TOKEN_METRICS.contains(&m) && !telemetry.token_metrics => Some("token_metrics = true"),
            _ => None,
        };
        if let Some(key) = missing {
            return refuse(format!(
                "`alarm[{i}].metric`: {} is not taken; set for example telemetry.{key}",
                alarm.metric
            ));
        }
        if !alarm.above.is_finite() {
            return refuse(format!("`alarm[{i}].above` must be a finite number, not {}", alarm.above));
        }
        if alarm.patience == 0 {
            return refuse(format!("`alarm[{i}].patience` must be at least 1"));
        }
        if alarm.sites.is_empty() {
            return refuse(format!("`alarm[{i}].sites` names no site"));
        }
        globs(&format!("alarm[{i}].sites"), &alarm.sites)?;
    }
    if !alarms.is_empty() && telemetry.stats_every_steps == 0 {
        return refuse("an [[alarm]] looks at nothing while telemetry.stats_every_steps is 0".into());
    }
    Ok(())
}
