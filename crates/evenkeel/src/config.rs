//! A run's configuration: TOML tables over documented defaults, and nothing unknown.
//!
//! Precedence: default < preset < size < file < environment `EVENKEEL_SET_<SECTION>__<KEY>` < `--set` < flag. All of it
//! is merged as TOML tables; the defaults (written out in full by `evenkeel config show`) are also the list of
//! known keys and of their types, so that a misspelt key is an error that names the nearest one.

mod data;
mod optim;
mod schema;
mod telemetry;

pub use data::{DataConfig, DataKind};

pub(crate) use telemetry::GRAM_METRICS;
pub use telemetry::{AlarmAction, AlarmConfig, TelemetryConfig};

use crate::error::Hint;
use crate::metrics::Metrics;
use crate::model::{self, ModelConfig};
use crate::optim::{OptimConfig, OptimizerName};
use crate::tape::Execution;
pub use crate::tape::{Precision, Recompute};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml::{Table, Value};

/// A configuration that cannot be run.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// One line of what the parser said.
        problem: String,
    },
    /// A key that means nothing.
    #[error("unknown key `{key}`{}", nearest.as_ref().map(|n| format!("; the nearest known key is `{n}`")).unwrap_or_default())]
    UnknownKey {
        /// Its dotted path.
        key: String,
        /// The most similar known one.
        nearest: Option<String>,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {expected}, not {found}")]
    Type {
        /// Its dotted path.
        key: String,
        /// Type wanted.
        expected: String,
        /// Type given.
        found: String,
    },
    /// A value that cannot be used.
    #[error("{problem}")]
    Value {
        /// A sentence that names the key.
        problem: String,
    },
    /// Data of another kind than the model is for.
    #[error("{problem}")]
    Mismatch {
        /// A sentence that names the keys.
        problem: String,
    },
    /// No preset, size or optimiser of that name.
    #[error("there is no {kind} named \"{name}\"; known are {known}")]
    UnknownName {
        /// "preset", "size" or "optimizer".
        kind: &'static str,
        /// As given.
        name: String,
        /// All names.
        known: String,
    },
    /// An `[[alarm]]` that cannot be watched for.
    #[error("{problem}")]
    Alarm {
        /// A sentence that names the table and the key.
        problem: String,
    },
    /// A file that spells one preset out, with another set from outside.
    #[error(
        "model.preset cannot be set to \"{set}\": the file starts from \"{given}\" and sets {keys}, which would stay"
    )]
    Preset {
        /// The file's.
        given: String,
        /// From outside.
        set: String,
        /// The file's keys that say what the preset is.
        keys: String,
    },
    /// A file that says how large the network is, with a size set from outside.
    #[error("model.size cannot be set to \"{set}\": the file sets {keys}, which would stay")]
    Size {
        /// From outside.
        set: String,
        /// The file's keys that a size says.
        keys: String,
    },
    /// A file that spells one optimiser's settings out, with another set from outside.
    #[error(
        "optim.name cannot be set to \"{set}\": the file is for {given} and sets {keys}, which would stay"
    )]
    Optimizer {
        /// The file's.
        given: String,
        /// From outside.
        set: String,
        /// The file's keys that belong to the optimiser.
        keys: String,
    },
    /// `--set` without a key and a value.
    #[error("`{text}` is not of the form key.path=value")]
    Assignment {
        /// As given.
        text: String,
    },
}

impl Hint for ConfigError {
    fn hint(&self) -> String {
        match self {
            ConfigError::Read { .. } => {
                "give the path of a TOML file; `evenkeel config show op > my.toml` writes one to start from"
                    .into()
            }
            ConfigError::Syntax { .. } => {
                "strings need quotes, tables are [model], [data], [optim], [train], [telemetry], [[alarm]]"
                    .into()
            }
            // Not among the defaults that `config show` prints: there is no alarm by default.
            ConfigError::Alarm { .. } => alarm_hint(),
            ConfigError::UnknownKey { key, .. } | ConfigError::Type { key, .. }
                if key.starts_with("alarm") =>
            {
                alarm_hint()
            }
            ConfigError::UnknownKey { key, .. } if key.starts_with("optim") => {
                "each optimiser has keys of its own: `evenkeel config show op --set optim.name=soap` prints those of soap"
                    .into()
            }
            ConfigError::UnknownKey { .. } | ConfigError::Type { .. } => {
                "`evenkeel config show op` prints every key with its default".into()
            }
            ConfigError::Value { .. } => {
                "`evenkeel config show op` prints every key with a value that works".into()
            }
            ConfigError::Mismatch { .. } => {
                "text: [data] kind = \"tokens\" and path; images: kind = \"shapes\", or \"images\" and path, with a preset such as vit"
                    .into()
            }
            ConfigError::UnknownName { kind: kind @ ("preset" | "size"), .. } => {
                format!("`evenkeel config list` describes the {kind}s")
            }
            ConfigError::Size { .. } => {
                "take these keys out of the file, or set them from outside as well".into()
            }
            ConfigError::UnknownName { .. } => "write for example [optim] name = \"soap\"".into(),
            ConfigError::Preset { set, .. } => format!(
                "`evenkeel config show {set} > {set}.toml` writes a file of that preset; one that sets only sizes works with all"
            ),
            ConfigError::Optimizer { set, .. } => format!(
                "`evenkeel config show op --set optim.name={set}` prints the keys of {set}; a file without settings of one optimiser works with all"
            ),
            ConfigError::Assignment { .. } => "write --set optim.lr_peak=3e-3, without spaces".into(),
        }
    }
}

fn alarm_hint() -> String {
    format!(
        "write for example [[alarm]] metric = \"kurtosis\", above = 10.0, action = \"stop\"; metrics are {}",
        Metrics::NAMES.join(", ")
    )
}

/// The table `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences, or images, per step.
    pub batch_sequences: usize,
    /// Sequences per forward and backward pass; gradients are accumulated. 0 means the whole batch at once.
    pub micro_batch_sequences: usize,
    /// Arithmetic of the products in training; evaluation is float32.
    pub precision: Precision,
    /// What the forward pass forgets and the backward computes again.
    pub recompute: Recompute,
    /// Of initialisation and batches.
    pub seed: u64,
    /// Steps between log lines.
    pub log_every_steps: u64,
    /// Steps between evaluations; 0 means only at the end.
    pub eval_every_steps: u64,
    /// Most validation tokens per evaluation, for images counted as positions (patches and class token); 0 means all.
    pub eval_tokens: u64,
    /// Steps between checkpoints; 0 means only at the end.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept; older ones are removed.
    pub checkpoint_keep: usize,
    /// The run stops as diverged when the loss stays above this factor times the first step's loss ...
    pub guard_loss_factor: f64,
    /// ... for this many steps in a row.
    pub guard_patience_steps: u64,
}

impl TrainConfig {
    /// How the training passes run.
    pub fn execution(&self) -> Execution {
        Execution { precision: self.precision, recompute: self.recompute }
    }
}

/// Everything that determines a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunConfig {
    /// The network.
    pub model: ModelConfig,
    /// A MODEL whose weights the run starts from; empty for a fresh start. In files: `[model] init_from`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub init_from: String,
    /// The text, or the images.
    pub data: DataConfig,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The loop.
    pub train: TrainConfig,
    /// What is watched.
    pub telemetry: TelemetryConfig,
    /// What is done about it. In files: `[[alarm]]`.
    // Left out where there are none: below `alarm = []` a file could not have an [[alarm]].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarm: Vec<AlarmConfig>,
}

impl RunConfig {
    /// All defaults for a preset and an optimiser.
    ///
    /// # Errors
    /// If there is no preset of that name.
    pub fn defaults(preset: &str, optimizer: OptimizerName) -> Result<Self, ConfigError> {
        let model = model::preset(preset).ok_or_else(|| ConfigError::UnknownName {
            kind: "preset",
            name: preset.to_string(),
            known: model::presets().map(|p| p.0).collect::<Vec<_>>().join(", "),
        })?;
        let data = DataConfig::default_for(&model);
        Ok(Self {
            model,
            data,
            init_from: String::new(),
            optim: OptimConfig::defaults(optimizer),
            train: TrainConfig {
                steps: 1000,
                batch_sequences: 32,
                micro_batch_sequences: 0,
                precision: Precision::F32,
                recompute: Recompute::None,
                seed: 0,
                log_every_steps: 10,
                eval_every_steps: 250,
                eval_tokens: 0,
                checkpoint_every_steps: 250,
                checkpoint_keep: 2,
                guard_loss_factor: 1.5,
                guard_patience_steps: 20,
            },
            telemetry: TelemetryConfig::default(),
            alarm: Vec::new(),
        })
    }

    /// Reads a file and applies what overrides it, weakest first.
    ///
    /// # Errors
    /// Everything that [`ConfigError`] lists.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let table = text.parse::<Table>().map_err(|e| ConfigError::Syntax {
            path: path.to_path_buf(),
            problem: syntax_problem(&text, &e),
        })?;
        Self::from_table(table, overrides)
    }

    /// The same from a table in memory.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_table(mut user: Table, overrides: &[Override]) -> Result<Self, ConfigError> {
        let before = user.get("model").and_then(Value::as_table).cloned().unwrap_or_default();
        let optimizer = optim::apply(&mut user, overrides)?;
        check_preset(&before, &user)?;
        check_size(&before, &user)?;
        let text_of = |section: &str, key: &str| match user.get(section).and_then(|s| s.get(key)) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(ConfigError::Type {
                key: format!("{section}.{key}"),
                expected: "a string".into(),
                found: shown(other),
            }),
        };
        let preset = text_of("model", "preset")?.unwrap_or_else(|| "pre_ln".into());
        let init_from = text_of("model", "init_from")?.unwrap_or_default();
        let size = text_of("model", "size")?.filter(|name| !name.is_empty());
        if let Some(Value::Table(model)) = user.get_mut("model") {
            model.remove("init_from");
            model.remove("size");
        }
        let mut defaults = Self::defaults(&preset, optimizer)?;
        // The numbers that a size stands for are written out like all others, and it is not.
        if let Some(name) = size {
            let size = model::size(&name).ok_or_else(|| ConfigError::UnknownName {
                kind: "size",
                known: model::sizes().iter().map(|s| s.name).collect::<Vec<_>>().join(", "),
                name,
            })?;
            size.apply(&mut defaults.model);
        }
        let mut table = to_table(&defaults)?;
        table.insert("alarm".into(), Value::Array(Vec::new()));
        if let Some(Value::Table(optim)) = table.get_mut("optim") {
            optim.insert("group".into(), Value::Array(Vec::new()));
        }
        overlay(&mut table, user, "")?;
        if let Some(Value::Array(alarms)) = table.get_mut("alarm") {
            *alarms = telemetry::complete_alarms(std::mem::take(alarms))?;
        }
        if let Some(Value::Array(groups)) = table.get_mut("optim").and_then(|o| o.get_mut("group")) {
            *groups = optim::complete_groups(std::mem::take(groups))?;
        }
        let mut config: RunConfig = serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
            let (path, problem) = (e.path().to_string(), one_line(e.inner()));
            let problem = format!("`{path}` cannot be used: {problem}");
            match path.starts_with("alarm") {
                true => ConfigError::Alarm { problem },
                false => ConfigError::Value { problem },
            }
        })?;
        config.init_from = init_from;
        config.validate()?;
        Ok(config)
    }

    /// As TOML, every key written out.
    ///
    /// # Errors
    /// Never for a configuration that was loaded.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut table = to_table(self)?;
        table.remove("init_from");
        if let Some(Value::Table(model)) = table.get_mut("model") {
            model.insert("init_from".into(), Value::String(self.init_from.clone()));
        }
        toml::to_string_pretty(&table).map_err(|e| ConfigError::Value { problem: e.to_string() })
    }

    /// Ranges that types do not express. Sizes of the model are checked when it is built, once the vocabulary
    /// of the data is known.
    fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |problem: &str| Err(ConfigError::Value { problem: problem.into() });
        let t = &self.train;
        // The upper ends are far above any run and keep tokens and bytes below 2^63.
        if !(1..=1 << 32).contains(&t.steps) {
            return refuse("train.steps must lie between 1 and 2^32");
        }
        if !(1..=1 << 16).contains(&t.batch_sequences) {
            return refuse("train.batch_sequences must lie between 1 and 65536");
        }
        if !(t.guard_loss_factor.is_finite() && t.guard_loss_factor > 1.0) {
            return refuse("train.guard_loss_factor must be a number above 1");
        }
        if t.micro_batch_sequences > t.batch_sequences {
            return refuse("train.micro_batch_sequences cannot be larger than train.batch_sequences");
        }
        if t.log_every_steps == 0 {
            return refuse("train.log_every_steps must be at least 1");
        }
        if t.checkpoint_keep == 0 {
            return refuse("train.checkpoint_keep must be at least 1");
        }
        self.data.validate()?;
        self.data.validate_for(&self.model)?;
        optim::validate(&self.optim)?;
        self.telemetry.validate()?;
        telemetry::validate_alarms(&self.alarm, &self.telemetry)
    }
}

/// One assignment that overrides a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Dotted path.
    pub key: String,
    /// A TOML value; text that is none is taken as a string.
    pub value: Value,
}

impl Override {
    /// From `key.path=value`.
    ///
    /// # Errors
    /// If there is no `=` or no key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok(Self::new(key.trim(), value.trim())),
            _ => Err(ConfigError::Assignment { text: text.to_string() }),
        }
    }

    /// From a key and the text of a value.
    pub fn new(key: &str, value: &str) -> Self {
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        Self { key: key.to_string(), value: parsed.unwrap_or_else(|| Value::String(value.to_string())) }
    }

    /// A key with text as it stands, whatever it looks like.
    pub fn text(key: &str, value: &str) -> Self {
        Self { key: key.to_string(), value: Value::String(value.to_string()) }
    }

    /// From the environment variables `EVENKEEL_SET_<SECTION>__<KEY>`, in order of their names.
    pub fn from_environment(variables: impl Iterator<Item = (String, String)>) -> Vec<Self> {
        let mut found: Vec<Self> = variables
            .filter_map(|(name, value)| {
                let path = name.strip_prefix("EVENKEEL_SET_")?.to_lowercase().replace("__", ".");
                Some(Self::new(&path, &value))
            })
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    }

    pub(crate) fn apply(&self, table: &mut Table) -> Result<(), ConfigError> {
        let mut here = table;
        let mut parts = self.key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                here.insert(part.to_string(), self.value.clone());
                return Ok(());
            }
            let next = here.entry(part.to_string()).or_insert_with(|| Value::Table(Table::new()));
            let found = shown(next);
            here = next.as_table_mut().ok_or_else(|| ConfigError::Type {
                key: self.key.clone(),
                expected: format!("inside a table, and `{part}` is none"),
                found,
            })?;
        }
        Ok(())
    }
}

/// Keys of `[model]` that mean the same in every preset.
const SIZES: [&str; 11] = [
    "preset",
    "size",
    "depth",
    "width",
    "heads",
    "kv_heads",
    "vocab",
    "context",
    "mlp_ratio",
    "mlp_hidden",
    "init_from",
];

/// Refuses to lay a file that says what one preset is over another: it would make the one and call it the other.
fn check_preset(before: &Table, after: &Table) -> Result<(), ConfigError> {
    let preset = after.get("model").and_then(|m| m.get("preset"));
    let (Some(Value::String(given)), Some(Value::String(set))) = (before.get("preset"), preset) else {
        return Ok(());
    };
    let own: Vec<&str> = before.keys().map(String::as_str).filter(|k| !SIZES.contains(k)).collect();
    if given == set || own.is_empty() {
        return Ok(());
    }
    let (shown, more) = (own[..own.len().min(3)].join(", "), if own.len() > 3 { ", ..." } else { "" });
    Err(ConfigError::Preset { given: given.clone(), set: set.clone(), keys: format!("{shown}{more}") })
}

/// Refuses a size from outside beside numbers of the file, which are stronger than it.
fn check_size(before: &Table, after: &Table) -> Result<(), ConfigError> {
    let Some(Value::String(set)) = after.get("model").and_then(|m| m.get("size")) else { return Ok(()) };
    let says = |key: &&str| before.contains_key(*key);
    let own: Vec<&str> = ["depth", "width", "heads", "context"].into_iter().filter(says).collect();
    if before.get("size") == Some(&Value::String(set.clone())) || own.is_empty() {
        return Ok(());
    }
    Err(ConfigError::Size { set: set.clone(), keys: own.join(", ") })
}

fn to_table(config: &RunConfig) -> Result<Table, ConfigError> {
    match Value::try_from(config) {
        Ok(Value::Table(table)) => Ok(table),
        Ok(_) => Err(ConfigError::Value { problem: "a configuration must be a table".into() }),
        Err(e) => Err(ConfigError::Value { problem: e.to_string() }),
    }
}

/// Puts `user` over `base`, which knows every key and its type.
fn overlay(base: &mut Table, user: Table, path: &str) -> Result<(), ConfigError> {
    for (key, value) in user {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let Some(known) = base.get_mut(&key) else {
            let nearest = base
                .keys()
                .map(|k| (strsim::jaro_winkler(k, &key), k))
                .filter(|(similarity, _)| *similarity > 0.75)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, k)| if path.is_empty() { k.clone() } else { format!("{path}.{k}") });
            return Err(ConfigError::UnknownKey { key: full, nearest });
        };
        match (known, value) {
            (Value::Table(base), Value::Table(user)) => overlay(base, user, &full)?,
            // `beta` takes a number or a rule's name.
            (known, value) if full == "model.beta" => *known = value,
            (known @ Value::Float(_), Value::Integer(i)) => *known = Value::Float(i as f64),
            (known, value) if known.same_type(&value) => *known = value,
            (known, value) => {
                return Err(ConfigError::Type {
                    key: full,
                    expected: type_name(known),
                    found: shown(&value),
                });
            }
        }
    }
    Ok(())
}

fn type_name(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".into(),
        Value::Integer(_) => "a whole number".into(),
        Value::Float(_) => "a number".into(),
        Value::Boolean(_) => "true or false".into(),
        Value::Datetime(_) => "a date".into(),
        Value::Array(_) => "a list".into(),
        Value::Table(_) => "a table".into(),
    }
}

/// A value as it was given, cut short if it is long.
fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(_) => "a list".into(),
        other => other.to_string().chars().take(40).collect(),
    }
}

/// What is wrong with the text of a TOML file, and in which line.
pub(crate) fn syntax_problem(text: &str, e: &toml::de::Error) -> String {
    let line = 1 + text[..e.span().map_or(0, |s| s.start)].matches('\n').count();
    format!("line {line}: {}", e.message().lines().next().unwrap_or("not a table"))
}

fn one_line(e: &toml::de::Error) -> String {
    e.message().lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
