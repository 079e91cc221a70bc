//! What came of a run, in one small file: its configuration, how it ended, what was measured, and its curves, thinned.
//!
//! A record is enough for every table and figure of a sweep, so the run's own folder may be removed, and a record that was
//! made on another machine is as good as one that was made here. Files are named `KEY.json`; figures are rounded to six
//! significant digits, which keeps a record at a few kilobytes.

use super::{SweepError, key};
use crate::checkpoint::files;
use crate::config::RunConfig;
use crate::metrics::Metrics;
use crate::quant::{PRESETS, QuantReport};
use crate::report::run::{RunCurves, StatLine};
use crate::train::{MomentsLine, Outcome};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is measured when a run has finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Measure {
    /// Validation tokens that the metrics of every residual site are taken over; 0 for none.
    pub inspect_tokens: u64,
    /// Names of quantisation schemes, whose perplexity is measured on the validation text.
    pub quantize: Vec<String>,
    /// Validation tokens that it is measured on; 0 for all.
    pub quantize_tokens: u64,
}

impl Default for Measure {
    fn default() -> Self {
        Self { inspect_tokens: 16_384, quantize: Vec::new(), quantize_tokens: 0 }
    }
}

impl Measure {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// A sentence that names the unknown scheme.
    pub fn check(&self) -> Result<(), String> {
        let known = |name: &String| PRESETS.iter().any(|p| p.0 == *name);
        match self.quantize.iter().find(|n| !known(n)) {
            None => Ok(()),
            Some(name) => Err(format!(
                "[measure] quantize names \"{name}\", which is no scheme; known are {}",
                PRESETS.iter().map(|p| p.0).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All steps done.
    Finished,
    /// Stopped by the guard: its loss went up, or was not finite.
    Diverged,
    /// Stopped by an alarm of its configuration.
    Alarmed,
}

/// Where and with what a run was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of evenkeel.
    pub version: String,
    /// Source revision, if known.
    #[serde(default)]
    pub revision: Option<String>,
    /// Operating system and architecture, and the instruction set.
    pub machine: String,
    /// Threads.
    pub threads: usize,
    /// Wall-clock seconds of training and measuring.
    pub seconds: f64,
    /// Hash of the tokens that it was trained and measured on.
    pub data: String,
}

/// A scheme's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantised {
    /// Name of the scheme.
    pub scheme: String,
    /// Perplexity before. Infinite if it is beyond numbers, for which JSON has null; so are the two that follow.
    #[serde(deserialize_with = "or_infinite")]
    pub float_perplexity: f64,
    /// Perplexity after.
    #[serde(deserialize_with = "or_infinite")]
    pub perplexity: f64,
    /// Mean KL divergence over tokens, nats.
    #[serde(deserialize_with = "or_infinite")]
    pub kl: f64,
}

fn or_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// Sums of the terms of moment control at a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Site's name.
    pub site: String,
    /// Second moment before the first measured step and before the last.
    pub m2: [Option<f64>; 2],
    /// Fourth moment likewise.
    pub m4: [Option<f64>; 2],
    /// u41, u42, u43, u44 summed over all measured steps.
    pub sums: [Option<f64>; 4],
}

/// The curves, all at the same steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// Steps at which sites were measured.
    pub steps: Vec<u64>,
    /// Training loss, averaged over the lines since the step before.
    pub train_loss: Vec<Option<f64>>,
    /// Metric, then site, then one value per step.
    pub sites: BTreeMap<String, BTreeMap<String, Vec<Option<f64>>>>,
}

/// A run and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Layout version, 1.
    pub schema: u32,
    /// See [`key()`].
    pub key: String,
    /// How it ended.
    pub status: Status,
    /// What the guard or an alarm said.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where and with what.
    pub origin: Origin,
    /// What was measured.
    pub measure: Measure,
    /// Scalars of the model.
    pub parameters: u64,
    /// Steps finished.
    pub step: u64,
    /// Training loss, mean over the last twentieth of the logged lines.
    pub train_loss: Option<f64>,
    /// Loss on the validation data.
    pub val_loss: Option<f64>,
    /// Share of validation images whose class was found; null for text.
    #[serde(default)]
    pub accuracy: Option<f64>,
    /// Metric, then residual site: its value on validation data at the end.
    pub sites: BTreeMap<String, BTreeMap<String, f64>>,
    /// Every scheme of the measure.
    pub quantised: Vec<Quantised>,
    /// Where moments were followed.
    pub moments: Vec<Moments>,
    /// Thinned logs.
    pub curves: Curves,
    /// The configuration as resolved.
    pub config: toml::Table,
}

/// Metrics whose curves a record keeps.
const CURVES: [&str; 7] =
    ["kurtosis", "mmr", "rms", "input_corr_mean", "input_corr_rms", "feature_corr_rms", "effective_rank"];
/// Points of a curve at most.
const POINTS: usize = 41;

/// What a record is made of, beside the logs.
pub struct Measured {
    /// How the run ended, of which an interrupted one has no record.
    pub outcome: Outcome,
    /// Where and with what.
    pub origin: Origin,
    /// Scalars of the model.
    pub parameters: u64,
    /// Steps finished.
    pub step: u64,
    /// Loss on the validation data, and the share of classes found.
    pub validation: Option<(f64, Option<f64>)>,
    /// Residual sites.
    pub sites: Vec<(String, Metrics)>,
    /// Quantisation, by the names of [`Measure::quantize`].
    pub quantised: Vec<(String, QuantReport)>,
}

impl RunRecord {
    /// The record of a run that ended.
    ///
    /// # Errors
    /// If its logs cannot be read, or the configuration not be written out.
    pub fn new(
        config: &RunConfig,
        measure: &Measure,
        measured: Measured,
        logs: &RunCurves,
    ) -> crate::error::Result<Self> {
        let (status, reason) = match &measured.outcome {
            Outcome::Finished | Outcome::Interrupted => (Status::Finished, None),
            Outcome::Diverged(why) => (Status::Diverged, Some(why.to_string())),
            Outcome::Alarmed(why) => (Status::Alarmed, Some(why.to_string())),
        };
        let mut record = Self {
            schema: 1,
            key: key(config, measure)?,
            status,
            reason,
            origin: measured.origin,
            measure: measure.clone(),
            parameters: measured.parameters,
            step: measured.step,
            train_loss: last_loss(logs),
            val_loss: measured.validation.map(|v| v.0),
            accuracy: measured.validation.and_then(|v| v.1),
            sites: by_metric(&measured.sites),
            quantised: measured
                .quantised
                .iter()
                .map(|(scheme, q)| Quantised {
                    scheme: scheme.clone(),
                    float_perplexity: q.float.perplexity,
                    perplexity: q.quantized.perplexity,
                    kl: q.quantized.kl,
                })
                .collect(),
            moments: moments(&logs.dir)?,
            curves: curves(logs),
            config: config.to_toml()?.parse().unwrap_or_default(),
        };
        record.round();
        Ok(record)
    }

    fn round(&mut self) {
        for v in [&mut self.train_loss, &mut self.val_loss, &mut self.accuracy].into_iter().flatten() {
            *v = rounded(*v);
        }
        for q in &mut self.quantised {
            for v in [&mut q.float_perplexity, &mut q.perplexity, &mut q.kl] {
                *v = rounded(*v);
            }
        }
        let curves = self.curves.sites.values_mut().flat_map(|sites| sites.values_mut());
        for v in curves.chain([&mut self.curves.train_loss]).flatten().flatten() {
            *v = rounded(*v);
        }
        for m in &mut self.moments {
            for v in m.m2.iter_mut().chain(&mut m.m4).chain(&mut m.sums).flatten() {
                *v = rounded(*v);
            }
        }
        for v in self.sites.values_mut().flat_map(|sites| sites.values_mut()) {
            *v = rounded(*v);
        }
        self.origin.seconds = rounded(self.origin.seconds);
    }
}

fn by_metric(sites: &[(String, Metrics)]) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut out: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for (site, metrics) in sites {
        for &name in Metrics::NAMES {
            if let Some(value) = metrics.get(name).filter(|v| v.is_finite()) {
                out.entry(name.into()).or_default().insert(site.clone(), value);
            }
        }
    }
    out
}

/// Six significant digits.
fn rounded(v: f64) -> f64 {
    format!("{v:.5e}").parse().unwrap_or(v)
}

fn last_loss(logs: &RunCurves) -> Option<f64> {
    let losses: Vec<f64> = logs.metrics.iter().filter_map(|m| m.train_loss).collect();
    let last = &losses[losses.len() - (losses.len() / 20).max(1).min(losses.len())..];
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

/// Of moments.jsonl, if there is one.
fn moments(dir: &Path) -> crate::error::Result<Vec<Moments>> {
    let path = dir.join("moments.jsonl");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut found: Vec<Moments> = Vec::new();
    for line in crate::train::read_lines::<MomentsLine>(&path)? {
        let sums = [line.cum_u41, line.cum_u42, line.cum_u43, line.cum_u44];
        match found.iter_mut().find(|m| m.site == line.site) {
            Some(m) => (m.m2[1], m.m4[1], m.sums) = (line.m2, line.m4, sums),
            None => found.push(Moments { site: line.site, m2: [line.m2; 2], m4: [line.m4; 2], sums }),
        }
    }
    Ok(found)
}

fn curves(logs: &RunCurves) -> Curves {
    let mut steps: Vec<u64> = logs.stats.iter().map(|line| line.step).collect();
    steps.dedup();
    let steps = thinned(&steps);
    let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
    let mut loss = Vec::new();
    let mut after = 0;
    for &step in &steps {
        let within = logs.metrics.iter().filter(|m| m.step > after && m.step <= step);
        let (sum, count) = within.filter_map(|m| m.train_loss).fold((0.0, 0), |(s, n), l| (s + l, n + 1));
        loss.push(finite((count > 0).then(|| sum / f64::from(count))));
        after = step;
    }
    let mut sites: BTreeMap<String, BTreeMap<String, Vec<Option<f64>>>> = BTreeMap::new();
    let mut at: BTreeMap<(u64, &str), &StatLine> = BTreeMap::new();
    let mut names: Vec<&str> = Vec::new();
    for line in &logs.stats {
        at.insert((line.step, &line.site), line);
        if !names.contains(&line.site.as_str()) {
            names.push(&line.site);
        }
    }
    for metric in CURVES {
        for &site in &names {
            let values: Vec<Option<f64>> = steps
                .iter()
                .map(|&step| finite(at.get(&(step, site)).and_then(|line| line.metrics.get(metric))))
                .collect();
            if values.iter().any(Option::is_some) {
                sites.entry(metric.into()).or_default().insert(site.into(), values);
            }
        }
    }
    Curves { steps, train_loss: loss, sites }
}

/// At most [`POINTS`], the first and the last among them.
fn thinned(steps: &[u64]) -> Vec<u64> {
    let n = steps.len();
    match n <= POINTS {
        true => steps.to_vec(),
        false => (0..POINTS).map(|i| steps[i * (n - 1) / (POINTS - 1)]).collect(),
    }
}

/// The records in a folder.
#[derive(Clone, Debug, Default)]
pub struct Records {
    folder: PathBuf,
    found: BTreeMap<String, RunRecord>,
}

impl Records {
    /// Reads a folder; one that does not exist holds none. Each is known by the key that its configuration has today.
    ///
    /// # Errors
    /// If a file is no record.
    pub fn open(folder: &Path) -> Result<Self, SweepError> {
        let mut found = BTreeMap::new();
        let io = |source| SweepError::Read { path: folder.to_path_buf(), source };
        if folder.is_dir() {
            for entry in std::fs::read_dir(folder).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.extension().is_some_and(|e| e == "json")
                    && let Some(record) = read(&path)?
                {
                    found.insert(record.key.clone(), record);
                }
            }
        }
        Ok(Self { folder: folder.to_path_buf(), found })
    }

    /// The record of a run.
    pub fn get(&self, key: &str) -> Option<&RunRecord> {
        self.found.get(key)
    }

    /// Where a run's record is.
    pub fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Takes in a record that has been written since, if it has.
    ///
    /// # Errors
    /// If the file is no record.
    pub fn reread(&mut self, key: &str) -> Result<bool, SweepError> {
        let path = self.path(key);
        if path.is_file()
            && let Some(record) = read(&path)?
        {
            self.found.insert(key.to_string(), record);
        }
        Ok(self.found.contains_key(key))
    }

    /// Every record.
    pub fn iter(&self) -> impl Iterator<Item = &RunRecord> {
        self.found.values()
    }
}

/// Writes a record to where [`Records::path`] says.
///
/// # Errors
/// If the disk refuses.
pub fn write(folder: &Path, record: &RunRecord) -> crate::error::Result<()> {
    let io = |source| crate::checkpoint::CheckpointError::Io { path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    Ok(files::write_json(&folder.join(format!("{}.json", record.key)), record)?)
}

/// `None` where the configuration means nothing to this version: the record is of no run that can be asked for.
fn read(path: &Path) -> Result<Option<RunRecord>, SweepError> {
    let bad = |problem: String| SweepError::Record { path: path.to_path_buf(), problem };
    let bytes =
        std::fs::read(path).map_err(|source| SweepError::Read { path: path.to_path_buf(), source })?;
    let mut record: RunRecord = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if record.schema != 1 {
        return Err(bad(format!("its schema is {}, and this version reads 1", record.schema)));
    }
    let Ok(config) = RunConfig::from_table(record.config.clone(), &[]) else { return Ok(None) };
    record.key = key(&config, &record.measure).map_err(|e| bad(e.to_string()))?;
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run::MetricLine;

    fn logs() -> RunCurves {
        let stat = |step, site: &str, kurtosis| StatLine {
            step,
            site: site.into(),
            layer: None,
            metrics: Metrics { kurtosis, ..Metrics::default() },
        };
        RunCurves {
            metrics: (1..=100)
                .map(|step| MetricLine {
                    step,
                    train_loss: Some(10.0 / step as f64),
                    ..MetricLine::default()
                })
                .collect(),
            stats: (1..=100)
                .flat_map(|s| [stat(s, "embed", Some(1.0)), stat(s, "blocks.0.resid", Some(s as f64))])
                .collect(),
            ..RunCurves::default()
        }
    }

    #[test]
    fn curves_are_thinned_with_both_ends_and_figures_rounded() {
        let made = curves(&logs());
        assert_eq!((made.steps.len(), made.steps[0], made.steps[40]), (POINTS, 1, 100));
        assert_eq!(made.sites["kurtosis"]["blocks.0.resid"][40], Some(100.0));
        assert!(!made.sites.contains_key("mmr"));
        assert_eq!(made.train_loss[0], Some(10.0));
        assert_eq!(last_loss(&logs()), Some((96..=100).map(|s| 10.0 / f64::from(s)).sum::<f64>() / 5.0));
        assert_eq!(rounded(1.0 / 3.0), 0.333333);
        assert_eq!(rounded(1234567.0), 1234570.0);
    }

    #[test]
    fn a_record_of_what_is_beyond_numbers_comes_back() {
        let text = r#"{"scheme": "w8a8", "float_perplexity": 10.0, "perplexity": 1.0, "kl": 0.1}"#;
        let mut record = crate::sweep::figure::tests::record();
        record.quantised = vec![serde_json::from_str(text).unwrap()];
        record.quantised[0].perplexity = f64::INFINITY;
        let back: RunRecord = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(back, record);
        let site =
            |kurtosis| ("embed".to_string(), Metrics { kurtosis: Some(kurtosis), ..Metrics::default() });
        assert!(!by_metric(&[site(f64::INFINITY)]).contains_key("kurtosis"));
        assert_eq!(by_metric(&[site(2.0)])["kurtosis"]["embed"], 2.0);
    }

    #[test]
    fn a_record_comes_back_under_todays_key() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            RunConfig::from_table("[model]\npreset = \"op\"\nvocab = 8".parse().unwrap(), &[]).unwrap();
        let measured = Measured {
            outcome: Outcome::Finished,
            origin: Origin::default(),
            parameters: 10,
            step: 100,
            validation: Some((2.0, None)),
            sites: vec![("embed".into(), Metrics { kurtosis: Some(1.0 / 3.0), ..Metrics::default() })],
            quantised: Vec::new(),
        };
        let measure = Measure::default();
        let mut record = RunRecord::new(&config, &measure, measured, &logs()).unwrap();
        let name = record.key.clone();
        // A key that came later: the record does not have it.
        let removed = record.config["train"].as_table_mut().unwrap().remove("guard_patience_steps");
        assert!(removed.is_some());
        write(dir.path(), &record).unwrap();
        let records = Records::open(dir.path()).unwrap();
        let back = records.get(&key(&config, &measure).unwrap()).unwrap();
        assert_eq!((back.sites["kurtosis"]["embed"], back.val_loss, &back.key), (0.333333, Some(2.0), &name));
        assert!(records.path(&name).metadata().unwrap().len() < 16_000);

        std::fs::write(dir.path().join("x.json"), "{}").unwrap();
        assert!(Records::open(dir.path()).unwrap_err().to_string().contains("x.json is no record"));
        assert_eq!(Records::open(&dir.path().join("none")).unwrap().iter().count(), 0);
    }
}
