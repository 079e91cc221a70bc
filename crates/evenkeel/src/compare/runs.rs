//! Two runs: configuration, ends, logs, and the weights of their newest checkpoints.

use super::logs::{LOGS, LogComparison, compare_logs};
use super::models::{ModelComparison, compare_models};
use crate::checkpoint::{complete, step_of};
use crate::error::Result;
use crate::report::compare::RunSummary;
use crate::report::run::{RunCurves, read_run};
use crate::report::settings::differences;
use serde::Serialize;
use std::path::Path;

/// How two runs differ.
#[derive(Clone, Debug, Serialize)]
pub struct RunsComparison {
    /// Keys of the resolved configuration that differ. Empty too where one of them cannot be read.
    pub config: Vec<KeyDifference>,
    /// How each ended.
    pub ends: [RunSummary; 2],
    /// Kurtosis of each site of the residual stream at the last measured step of each.
    pub kurtosis: Vec<SiteDifference>,
    /// Their logs.
    pub logs: Vec<LogComparison>,
    /// Step of the newest checkpoint of each.
    pub checkpoint_steps: [Option<u64>; 2],
    /// Their weights there; null where one has no checkpoint.
    pub weights: Option<ModelComparison>,
    /// What differs by this share at most is the same; 0 means bit for bit.
    pub tolerance: f64,
}

/// A key of the configuration with two values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyDifference {
    /// Dotted.
    pub key: String,
    /// Its value in the first, as TOML; null where there is none.
    pub a: Option<String>,
    /// Its value in the second.
    pub b: Option<String>,
}

/// The kurtosis of a site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteDifference {
    /// The site.
    pub site: String,
    /// In the first.
    pub a: Option<f64>,
    /// In the second.
    pub b: Option<f64>,
}

impl RunsComparison {
    /// A sentence on what differs first: in the logs the earliest step, then the checkpoints. `None` if logs and final weights are
    /// the same. The configuration does not count: what changes nothing that is computed may differ.
    pub fn first_difference(&self) -> Option<String> {
        let logs = self.logs.iter().filter_map(LogComparison::difference);
        if let Some((_, text)) = logs.min_by_key(|(step, _)| *step) {
            return Some(text);
        }
        let Some(weights) = &self.weights else {
            return Some(match self.checkpoint_steps {
                [None, None] => "neither has a checkpoint, so that their weights are not known".into(),
                [None, _] => "the first has no checkpoint".into(),
                _ => "the second has no checkpoint".into(),
            });
        };
        match self.checkpoint_steps {
            [Some(a), Some(b)] if a != b => {
                Some(format!("their newest checkpoints are of steps {a} and {b}"))
            }
            _ => weights.first_difference(self.tolerance),
        }
    }
}

/// Compares two run directories, finished or not.
///
/// # Errors
/// If one is no run directory, or a log or a checkpoint cannot be read.
pub fn compare_runs(a: &Path, b: &Path, tolerance: f64) -> Result<RunsComparison> {
    let (first, second) = (read_run(a)?, read_run(b)?);
    let config = match [&first.config, &second.config] {
        [Some(a), Some(b)] => differences(&[Some(a), Some(b)]),
        _ => Vec::new(),
    };
    let key = |(key, mut values): (String, Vec<Option<String>>)| {
        let b = values.pop().flatten();
        KeyDifference { key, a: values.pop().flatten(), b }
    };
    let logs = LOGS.map(|file| compare_logs(file, a, b, tolerance));
    let mut known = logs.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    known.retain(|log| log.lines != [None, None]);
    let newest = |dir: &Path| -> Result<Option<u64>> {
        let folder = complete(&dir.join("checkpoints"))?.pop();
        Ok(folder.and_then(|folder| step_of(&folder)))
    };
    let checkpoint_steps = [newest(a)?, newest(b)?];
    let weights = match checkpoint_steps {
        [Some(_), Some(_)] => Some(compare_models(a, b)?),
        _ => None,
    };
    Ok(RunsComparison {
        config: config.into_iter().map(key).collect(),
        ends: [RunSummary::of(&first), RunSummary::of(&second)],
        kurtosis: sites(&first, &second),
        logs: known,
        checkpoint_steps,
        weights,
        tolerance,
    })
}

fn sites(a: &RunCurves, b: &RunCurves) -> Vec<SiteDifference> {
    let last = |run: &RunCurves| -> Vec<(String, Option<f64>)> {
        let end = |points: Vec<(f64, f64)>| points.last().map(|p| p.1).filter(|k| k.is_finite());
        run.residual_kurtosis().into_iter().map(|(site, points)| (site, end(points))).collect()
    };
    let (a, b) = (last(a), last(b));
    let of =
        |sites: &[(String, Option<f64>)], site: &str| sites.iter().find(|s| s.0 == site).and_then(|s| s.1);
    let mut names: Vec<&String> = a.iter().map(|s| &s.0).collect();
    names.extend(b.iter().map(|s| &s.0).filter(|site| !a.iter().any(|s| s.0 == **site)));
    names
        .into_iter()
        .map(|site| SiteDifference { site: site.clone(), a: of(&a, site), b: of(&b, site) })
        .collect()
}
