//! Reading the curves of a run directory.
//!
//! `metrics.jsonl` has an object per logged step, `stats.jsonl` and `moments.jsonl` one per step and
//! site, `optim.jsonl` one per step and parameter, `alarms.jsonl` one for each alarm that fired. All grow while a run goes on,
//! and a process that is killed leaves a torn last line: such a line is left
//! out. Any other line that is not as it should be is an error that names file and line, since a
//! hole in the middle of a log would make a figure say what did not happen. Undefined figures are
//! `null` or missing; keys this version does not know are passed over. Of `resolved.toml`, `run.json` and what
//! `quantize` and `quickstart` left in the directory, what cannot be read is left out: none of it is needed for a curve.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ReportError;
use super::chart::Point;
use super::quantised::{Quantised, read_quantised};
use crate::metrics::Metrics;
use crate::train::RunInfo;

/// A line of `metrics.jsonl`: what was logged at one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricLine {
    /// Optimiser steps done.
    pub step: u64,
    /// Training tokens seen so far.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Training loss of the step, nats per token.
    #[serde(default, rename = "train/loss")]
    pub train_loss: Option<f64>,
    /// Validation loss, nats per token, at steps that evaluate.
    #[serde(default, rename = "val/loss")]
    pub val_loss: Option<f64>,
    /// Learning rate of the step.
    #[serde(default)]
    pub lr: Option<f64>,
    /// Norm of the whole gradient before clipping.
    #[serde(default)]
    pub grad_norm: Option<f64>,
    /// Training speed.
    #[serde(default)]
    pub tokens_per_sec: Option<f64>,
    /// Share of validation examples whose class is found, at steps that evaluate a model that has classes.
    #[serde(default, rename = "val/accuracy")]
    pub val_accuracy: Option<f64>,
    /// How far the step moved all parameters over their norm.
    #[serde(default, rename = "optim/update_ratio")]
    pub update_ratio: Option<f64>,
    /// Largest over smallest eigenvalue of the worst factor.
    #[serde(default, rename = "optim/condition")]
    pub condition: Option<f64>,
}

/// A line of `stats.jsonl`: the metrics of one site at one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatLine {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of the site, such as `blocks.0.resid`.
    pub site: String,
    /// Block the site is in, from 0; none for `embed`.
    #[serde(default)]
    pub layer: Option<u64>,
    /// The figures.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// A line of `optim.jsonl`: what a step did to one parameter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateLine {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of the parameter.
    pub parameter: String,
    /// Its optimiser.
    #[serde(default)]
    pub optimizer: String,
    /// RMS of the parameter before the step.
    #[serde(default)]
    pub weight_rms: Option<f64>,
    /// RMS of its gradient.
    #[serde(default)]
    pub gradient_rms: Option<f64>,
    /// RMS of what the step added.
    #[serde(default)]
    pub update_rms: Option<f64>,
    /// The last over the first.
    #[serde(default)]
    pub update_ratio: Option<f64>,
    /// Condition number of its worse factor.
    #[serde(default)]
    pub condition: Option<f64>,
}

/// A line of `moments.jsonl`, of which a page shows the sums: how far the terms of each degree have
/// moved the moments of one site since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MomentLine {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of the site.
    pub site: String,
    /// Block the site is in, from 0; none for `embed`.
    #[serde(default)]
    pub layer: Option<u64>,
    /// Second moment before the step.
    #[serde(default)]
    pub m2: Option<f64>,
    /// Fourth moment before the step.
    #[serde(default)]
    pub m4: Option<f64>,
    /// Sum of the linear terms of the second moment.
    #[serde(default)]
    pub cum_u21: Option<f64>,
    /// Sum of the quadratic terms of it.
    #[serde(default)]
    pub cum_u22: Option<f64>,
    /// Sum of the linear terms of the fourth moment; likewise the others.
    #[serde(default)]
    pub cum_u41: Option<f64>,
    /// Sum of the quadratic terms.
    #[serde(default)]
    pub cum_u42: Option<f64>,
    /// Sum of the cubic terms.
    #[serde(default)]
    pub cum_u43: Option<f64>,
    /// Sum of the quartic terms.
    #[serde(default)]
    pub cum_u44: Option<f64>,
}

impl MomentLine {
    /// The sums of the terms of degree 1 and 2 of the second moment. Undefined is NaN.
    pub fn sums_of_m2(&self) -> [f64; 2] {
        [self.cum_u21, self.cum_u22].map(|sum| sum.unwrap_or(f64::NAN))
    }

    /// The sums of the terms of degree 1 to 4 of the fourth moment. Undefined is NaN.
    pub fn sums(&self) -> [f64; 4] {
        [self.cum_u41, self.cum_u42, self.cum_u43, self.cum_u44].map(|sum| sum.unwrap_or(f64::NAN))
    }
}

/// A line of `alarms.jsonl`: an alarm that fired.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Firing {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of the metric.
    pub metric: String,
    /// Name of the site.
    pub site: String,
    /// The metric there; none where the activations are not finite.
    #[serde(default)]
    pub value: Option<f64>,
    /// The bound.
    pub above: f64,
    /// What was done: `log`, `checkpoint` or `stop`.
    pub action: String,
}

/// A named sequence of points, such as the kurtosis of one site.
pub type Curve = (String, Vec<Point>);

/// What a run logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunCurves {
    /// Name of the run directory.
    pub name: String,
    /// The run directory as it was given.
    pub dir: PathBuf,
    /// Lines of `metrics.jsonl` in file order.
    pub metrics: Vec<MetricLine>,
    /// Lines of `stats.jsonl` in file order; empty without telemetry.
    pub stats: Vec<StatLine>,
    /// Lines of `moments.jsonl` in file order; empty where moments are not followed.
    pub moments: Vec<MomentLine>,
    /// Lines of `optim.jsonl` in file order; empty where parameters are not followed.
    pub updates: Vec<UpdateLine>,
    /// Lines of `alarms.jsonl` in file order.
    pub alarms: Vec<Firing>,
    /// `resolved.toml`, the configuration as used.
    pub config: Option<toml::Table>,
    /// `run.json`: who made it, and how it ended.
    pub info: Option<RunInfo>,
    /// What quantising its model cost.
    pub quantised: Vec<Quantised>,
}

/// Reads `metrics.jsonl` and, where there are any, the other logs of a run directory.
///
/// # Errors
/// [`ReportError::NotARun`] without `metrics.jsonl`, [`ReportError::Read`] if a file cannot be
/// read, [`ReportError::BadLine`] for a line that is not as it should be, unless it is the last
/// one and torn.
pub fn read_run(dir: &Path) -> Result<RunCurves, ReportError> {
    let Some(metrics) =
        read_lines(&dir.join("metrics.jsonl"), "an object with \"step\" and the metrics of that step")?
    else {
        return Err(ReportError::NotARun { dir: dir.to_path_buf() });
    };
    let stats =
        read_lines(&dir.join("stats.jsonl"), "an object with \"step\", \"site\" and the metrics there")?;
    let moments =
        read_lines(&dir.join("moments.jsonl"), "an object with \"step\", \"site\" and the terms there")?;
    let updates = read_lines(
        &dir.join("optim.jsonl"),
        "an object with \"step\", \"parameter\" and what the step did to it",
    )?;
    let alarms = read_lines(
        &dir.join("alarms.jsonl"),
        "an object with \"step\", \"metric\", \"site\", \"above\" and \"action\"",
    )?;
    // `.` and `..` have no name of their own; their full path has.
    let name = match dir.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => std::fs::canonicalize(dir)
            .ok()
            .and_then(|full| Some(full.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_else(|| dir.display().to_string()),
    };
    Ok(RunCurves {
        name,
        dir: dir.to_path_buf(),
        metrics,
        stats: stats.unwrap_or_default(),
        moments: moments.unwrap_or_default(),
        updates: updates.unwrap_or_default(),
        alarms: alarms.unwrap_or_default(),
        config: read_bounded(&dir.join("resolved.toml")).and_then(|text| text.parse().ok()),
        info: read_bounded(&dir.join("run.json")).and_then(|text| serde_json::from_str(&text).ok()),
        quantised: read_quantised(dir),
    })
}

/// A text that is not larger than what we write; `None` if it cannot be read.
pub(super) fn read_bounded(path: &Path) -> Option<String> {
    let size = std::fs::metadata(path).ok().filter(|m| m.is_file())?.len();
    if size <= LARGEST { std::fs::read_to_string(path).ok() } else { None }
}

/// More than the largest of the files beside the logs, in bytes.
const LARGEST: u64 = 64 << 20;

/// The lines of a JSON-lines file; `None` if there is no such file.
pub(crate) fn read_lines<T: DeserializeOwned>(
    path: &Path,
    expected: &'static str,
) -> Result<Option<Vec<T>>, ReportError> {
    // Bytes, since a torn line may end within a character.
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ReportError::Read { path: path.to_path_buf(), source });
        }
    };
    let lines: Vec<(usize, &[u8])> = bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .collect();
    let mut out = Vec::with_capacity(lines.len());
    for (i, (at, line)) in lines.iter().enumerate() {
        match serde_json::from_slice(line) {
            Ok(value) => out.push(value),
            // JSON that parses but says the wrong thing was not torn by a kill.
            Err(error) if i + 1 == lines.len() && !error.is_data() => {}
            Err(error) => {
                return Err(ReportError::BadLine {
                    path: path.to_path_buf(),
                    line: at + 1,
                    expected,
                    reason: error.to_string(),
                });
            }
        }
    }
    Ok(Some(out))
}

/// Whether a site is on the residual stream as the paper plots it: `embed`, and what leaves each
/// block.
pub fn is_residual(site: &str) -> bool {
    site == "embed" || (site.starts_with("blocks.") && site.ends_with(".resid"))
}

impl RunCurves {
    /// Training loss against tokens. Steps where it is undefined are NaN, which breaks a line.
    pub fn train_loss(&self) -> Vec<Point> {
        self.metric(|m| Some(m.train_loss.unwrap_or(f64::NAN)))
    }

    /// Validation loss against tokens, at the steps that have one.
    pub fn val_loss(&self) -> Vec<Point> {
        self.metric(|m| m.val_loss)
    }

    fn metric(&self, value: impl Fn(&MetricLine) -> Option<f64>) -> Vec<Point> {
        let point = |m: &MetricLine| Some((m.tokens? as f64, value(m)?));
        self.metrics.iter().filter_map(point).collect()
    }

    /// Validation accuracy against tokens, at the steps that have one.
    pub fn val_accuracy(&self) -> Vec<Point> {
        self.metric(|m| m.val_accuracy)
    }

    /// The steps that the configuration asks for.
    pub fn steps(&self) -> Option<u64> {
        let steps = self.config.as_ref()?.get("train")?.get("steps")?.as_integer()?;
        u64::try_from(steps).ok()
    }

    /// A figure of the log against steps, at the lines that have it.
    pub fn by_step(&self, value: impl Fn(&MetricLine) -> Option<f64>) -> Vec<Point> {
        let point = |m: &MetricLine| Some((m.step as f64, value(m)?));
        self.metrics.iter().filter_map(point).collect()
    }

    /// Kurtosis against steps for each site of the residual stream, in the order of the network:
    /// `embed`, then what leaves each block. Undefined is NaN.
    pub fn residual_kurtosis(&self) -> Vec<Curve> {
        self.residual("kurtosis", true)
    }

    /// A metric against steps for each site of the residual stream in the order of the network. Where it is
    /// undefined, NaN breaks the line, or the step is left out if `gaps` is false: a metric that is taken at some
    /// steps only would else have no line at all.
    pub fn residual(&self, metric: &str, gaps: bool) -> Vec<Curve> {
        let mut sites: Vec<(Option<u64>, &str)> =
            self.stats.iter().filter(|s| is_residual(&s.site)).map(|s| (s.layer, s.site.as_str())).collect();
        sites.sort_unstable();
        sites.dedup_by(|a, b| a.1 == b.1);
        let points = |site: &str| {
            let lines = self.stats.iter().filter(|s| s.site == site);
            let value = |s: &StatLine| match s.metrics.get(metric) {
                None if gaps => Some(f64::NAN),
                other => other,
            };
            lines.filter_map(|s| Some((s.step as f64, value(s)?))).collect()
        };
        sites.into_iter().map(|(_, site)| (site.to_string(), points(site))).collect()
    }

    /// Mean kurtosis over the sites of the residual stream against steps; NaN at a step where
    /// the kurtosis of any of them is undefined.
    pub fn mean_kurtosis(&self) -> Vec<Point> {
        let mut sums: std::collections::BTreeMap<u64, (f64, usize)> = Default::default();
        for line in self.stats.iter().filter(|s| is_residual(&s.site)) {
            let (sum, count) = sums.entry(line.step).or_default();
            *sum += line.metrics.kurtosis.unwrap_or(f64::NAN);
            *count += 1;
        }
        let mean = |(step, (sum, count)): (u64, (f64, usize))| (step as f64, sum / count as f64);
        sums.into_iter().map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Hint;

    fn folder(metrics: &[u8], stats: Option<&[u8]>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("metrics.jsonl"), metrics).unwrap();
        if let Some(stats) = stats {
            std::fs::write(dir.path().join("stats.jsonl"), stats).unwrap();
        }
        dir
    }

    #[test]
    fn both_logs_are_read_and_missing_figures_are_none() {
        let dir = folder(
            b"{\"step\":1,\"tokens\":4096,\"train/loss\":8.1,\"mem/peak\":1}\n\
              {\"step\":2,\"tokens\":8192,\"train/loss\":null,\"val/loss\":7.5,\"lr\":1e-3}\n",
            Some(
                b"{\"step\":1,\"site\":\"blocks.10.resid\",\"layer\":10,\"kurtosis\":3.0}\n\
                  {\"step\":1,\"site\":\"blocks.9.resid\",\"layer\":9,\"kurtosis\":2.0}\n\
                  {\"step\":1,\"site\":\"blocks.9.mlp.out\",\"layer\":9,\"kurtosis\":99.0}\n\
                  {\"step\":1,\"site\":\"embed\",\"layer\":null,\"kurtosis\":1.0}\n",
            ),
        );
        let run = read_run(dir.path()).unwrap();
        assert_eq!(run.metrics[0].val_loss, None);
        assert_eq!(run.val_loss(), [(8192.0, 7.5)]);
        assert!(run.train_loss()[1].1.is_nan());
        assert_eq!(run.mean_kurtosis(), [(1.0, 2.0)]);
        let sites = run.residual_kurtosis();
        let sites: Vec<&str> = sites.iter().map(|s| s.0.as_str()).collect();
        assert_eq!(sites, ["embed", "blocks.9.resid", "blocks.10.resid"]);
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        for torn in [&b"{\"step\":2,\"tok"[..], b"{\"step\":2,\"a\":\"\xc3", b"\0\0\0\0"] {
            let mut log = b"{\"step\":1}\n".to_vec();
            log.extend_from_slice(torn);
            let run = read_run(folder(&log, None).path()).unwrap();
            assert_eq!(run.metrics.len(), 1);
        }
    }

    #[test]
    fn any_other_bad_line_is_an_error_with_its_number() {
        let cases: [(&[u8], usize); 3] = [
            (b"{\"step\":1}\n\n{\"step\":\n{\"step\":3}\n", 3),
            (b"{\"step\":1}\n{\"step\":\"two\"}\n", 2),
            (b"{\"loss\":1}\n", 1),
        ];
        for (log, expected) in cases {
            let error = read_run(folder(log, None).path()).unwrap_err();
            let ReportError::BadLine { line, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(*line, expected);
            let text = error.to_string();
            assert!(text.contains("metrics.jsonl line"), "{text}");
            assert!(error.hint().contains(&format!("line {expected}")));
        }
    }

    #[test]
    fn what_stands_beside_the_logs_is_read_where_it_can_be() {
        let dir = folder(b"{\"step\":1}\n", None);
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let cost = "{\"scheme\":\"w8a8\",\"float\":{\"perplexity\":2.0,\"bytes\":8},\
                     \"quantized\":{\"perplexity\":null,\"bytes\":2,\"kl\":0.5}}";
        write("resolved.toml", "[train]\nsteps = 7\n");
        write("run.json", "{");
        write("w8a8.json", cost);
        write("page/summary.json", cost);
        write("other.json", "{\"scheme\":\"w8a8\"}");
        write("broken/summary.json", "[");
        let run = read_run(dir.path()).unwrap();
        assert_eq!((run.steps(), &run.info), (Some(7), &None));
        let files: Vec<&str> = run.quantised.iter().map(|q| q.file.as_str()).collect();
        assert_eq!(files, ["page/summary.json", "w8a8.json"]);
        assert_eq!(run.quantised[1].perplexity, [Some(2.0), None]);
        assert_eq!((run.quantised[1].bytes, run.quantised[1].kl), ([Some(8), Some(2)], Some(0.5)));
    }

    #[test]
    fn a_folder_without_metrics_is_no_run() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_run(dir.path()).unwrap_err();
        assert!(matches!(error, ReportError::NotARun { .. }), "{error}");
    }

    #[test]
    fn an_undefined_site_leaves_the_mean_undefined() {
        let stats = b"{\"step\":1,\"site\":\"embed\",\"kurtosis\":1.0}\n\
                      {\"step\":1,\"site\":\"blocks.0.resid\",\"layer\":0,\"kurtosis\":null}\n";
        let run = read_run(folder(b"", Some(stats)).path()).unwrap();
        assert!(run.mean_kurtosis()[0].1.is_nan());
    }
}
