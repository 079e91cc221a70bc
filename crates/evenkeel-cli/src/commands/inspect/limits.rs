//! `--fail-above METRIC=VALUE`.

use crate::failure::{Exit, Failure};
use crate::output;
use evenkeel::inspect::{InspectReport, SiteReport};
use evenkeel::metrics::{Int8Verdict, Metrics};

/// A metric and the value that it may not pass.
pub(super) struct Limit {
    metric: String,
    value: f64,
}

/// Metrics of the verdict that can be limited.
const INT8: [&str; 4] = ["int8_error", "int8_error_median", "int8_error_token", "int8_error_channel"];

impl Limit {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = text.split_once('=').and_then(|(m, v)| Some((m.trim(), v.trim().parse::<f64>().ok()?)));
        match parsed {
            Some((metric, value))
                if (Metrics::is_known(metric) || INT8.contains(&metric)) && !value.is_nan() =>
            {
                Ok(Self { metric: metric.into(), value })
            }
            _ => Err(Failure::input(
                format!(
                    "--fail-above {text} is not of the form METRIC=VALUE with METRIC one of {}, {}",
                    Metrics::NAMES.join(", "),
                    INT8.join(", ")
                ),
                "write for example --fail-above kurtosis=10",
            )),
        }
    }

    /// The sites above it, with their values. One whose values are not finite is above every limit; other figures may be
    /// undefined where all is well, such as the kurtosis of zeros.
    fn broken<'a>(&self, report: &'a InspectReport) -> Vec<(&'a str, Option<f64>)> {
        let above = |value: Option<f64>, finite: bool| !finite || value.is_some_and(|v| v > self.value);
        if INT8.contains(&self.metric.as_str()) {
            let of = |v: &Int8Verdict| match self.metric.as_str() {
                "int8_error_median" => v.int8_error_median,
                "int8_error_token" => v.int8_error_token,
                "int8_error_channel" => v.int8_error_channel,
                _ => v.int8_error,
            };
            let broken = report.int8.iter().filter(|v| above(of(v), v.int8_error.is_some()));
            return broken.map(|v| (v.site.as_str(), of(v))).collect();
        }
        let of = |site: &SiteReport| site.metrics.get(&self.metric);
        let broken = report.sites.iter().filter(|s| above(of(s), s.metrics.rms.is_some()));
        broken.map(|s| (s.site.as_str(), of(s))).collect()
    }
}

/// Says which limits are broken.
pub(super) fn verdict(limits: &[Limit], report: &InspectReport, of: &str) -> Exit {
    let mut verdict = Exit::Done;
    for limit in limits {
        for (site, value) in limit.broken(report) {
            let value = value.map_or("undefined".to_string(), |v| format!("{v:.4}"));
            output::note(&format!("{} of {site}{of} is {value}, above {}", limit.metric, limit.value));
            verdict = Exit::No;
        }
    }
    verdict
}
