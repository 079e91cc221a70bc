//! The numbers that can be asked of a record, by name.
//!
//! | name | what |
//! | --- | --- |
//! | `val_loss`, `train_loss`, `perplexity`, `accuracy` | how well it does; a run that diverged has an infinite loss |
//! | `kurtosis`, `mmr`, ... | a metric of [`Metrics::NAMES`], mean over the residual stream at the end, on validation data |
//! | `kurtosis_peak`, `..._peak` | the largest over training of that mean, on training batches |
//! | `kurtosis_start`, `..._start` | that mean at the first measured step |
//! | `kurtosis_max` | the largest over residual sites at the end |
//! | `...@blocks.0.resid` | any of the three of one site |
//! | `u41`, `u42`, `u43`, `u44` | the summed term of moment control over the last m2², in units of kurtosis; mean over sites |
//! | `u42_share` | the sum of u42 over the sum of the absolute values of all four; mean over sites |
//! | `w8a8_cost`, `SCHEME_cost` | perplexity after quantisation over that before, minus 1 |
//! | `w8a8_perplexity`, `SCHEME_perplexity` | perplexity after quantisation |

use super::SweepError;
use super::record::{Moments, RunRecord, Status};
use crate::metrics::Metrics;
use crate::quant::PRESETS;
use std::collections::BTreeMap;

pub(super) const NAMES_HINT: &str = "figures are val_loss, train_loss, perplexity, accuracy, a metric such as kurtosis with _peak, _start, _max or @SITE, u41 to u44, u42_share, and SCHEME_cost or SCHEME_perplexity";

/// One of the names above, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    name: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    ValLoss,
    TrainLoss,
    Perplexity,
    Accuracy,
    Metric { metric: String, when: When, site: Option<String> },
    Term(usize),
    TermShare,
    Cost(String),
    Quantised(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    End,
    Largest,
    Peak,
    Start,
}

impl Figure {
    /// The figure of that name.
    ///
    /// # Errors
    /// [`SweepError::Figure`] if there is none.
    pub fn parse(name: &str) -> Result<Self, SweepError> {
        let unknown = || SweepError::Figure { name: name.to_string() };
        let scheme = |suffix: &str| {
            let scheme = name.strip_suffix(suffix)?;
            PRESETS.iter().any(|p| p.0 == scheme).then(|| scheme.to_string())
        };
        let what = match name {
            "val_loss" => What::ValLoss,
            "train_loss" => What::TrainLoss,
            "perplexity" => What::Perplexity,
            "accuracy" => What::Accuracy,
            "u41" | "u42" | "u43" | "u44" => What::Term(usize::from(name.as_bytes()[2] - b'1')),
            "u42_share" => What::TermShare,
            _ => match (scheme("_cost"), scheme("_perplexity")) {
                (Some(scheme), _) => What::Cost(scheme),
                (None, Some(scheme)) => What::Quantised(scheme),
                (None, None) => metric(name).ok_or_else(unknown)?,
            },
        };
        Ok(Self { name: name.to_string(), what })
    }

    /// As it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its floor, which ratios and logarithmic axes are taken above: 1 for a kurtosis, 0 for others.
    pub fn floor(&self) -> f64 {
        match &self.what {
            What::Metric { metric, .. } if metric == "kurtosis" => 1.0,
            _ => 0.0,
        }
    }

    /// Its value; `None` where the run has none.
    pub fn of(&self, record: &RunRecord) -> Option<f64> {
        let diverged = record.status == Status::Diverged;
        match &self.what {
            What::ValLoss | What::TrainLoss | What::Perplexity if diverged => Some(f64::INFINITY),
            What::ValLoss => record.val_loss,
            What::TrainLoss => record.train_loss,
            What::Perplexity => record.val_loss.map(f64::exp),
            What::Accuracy => record.accuracy,
            What::Metric { metric, when: When::End | When::Largest, site: Some(site) } => {
                record.sites.get(metric)?.get(site).copied()
            }
            What::Metric { metric, when: When::End, site: None } => {
                mean(record.sites.get(metric)?.values().copied())
            }
            What::Metric { metric, when: When::Largest, site: None } => {
                record.sites.get(metric)?.values().copied().max_by(f64::total_cmp)
            }
            What::Metric { metric, when, site } => {
                let curve = curve(record, metric, site.as_deref())?;
                let mut known = curve.iter().map(|p| p.1);
                match when {
                    When::Start => known.next(),
                    _ => known.max_by(f64::total_cmp),
                }
            }
            What::Term(i) => mean_over(&record.moments, |m| {
                let m2 = m.m2[1]?;
                Some(m.sums[*i]? / (m2 * m2))
            }),
            What::TermShare => mean_over(&record.moments, |m| {
                let sums = m.sums.iter().map(|s| s.map(f64::abs)).sum::<Option<f64>>()?;
                Some(m.sums[1]? / sums).filter(|share| share.is_finite())
            }),
            What::Cost(scheme) => quantised(record, scheme)
                .map(|q| q.perplexity / q.float_perplexity - 1.0)
                .filter(|cost| !cost.is_nan()),
            What::Quantised(scheme) => quantised(record, scheme).map(|q| q.perplexity),
        }
    }

    /// As it is written in a table.
    pub fn write(&self, value: f64) -> String {
        match &self.what {
            _ if !value.is_finite() => "diverged".into(),
            What::Cost(_) => format!("{:+.2}%", 100.0 * value),
            What::Accuracy | What::TermShare => format!("{:.1}%", 100.0 * value),
            What::ValLoss | What::TrainLoss => format!("{value:.3}"),
            _ => number(value),
        }
    }
}

/// About three significant digits, as people write them.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{value:.1e}"),
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn metric(name: &str) -> Option<What> {
    let (name, site) = match name.split_once('@') {
        Some((name, site)) => (name, Some(site.to_string())),
        None => (name, None),
    };
    let ends = [("_peak", When::Peak), ("_start", When::Start), ("_max", When::Largest)];
    let cut = ends.iter().find_map(|(end, when)| Some((name.strip_suffix(end)?, *when)));
    let (metric, when) = cut.filter(|(m, _)| Metrics::is_known(m)).unwrap_or((name, When::End));
    Metrics::is_known(metric).then(|| What::Metric { metric: metric.into(), when, site })
}

/// Step and value of a metric over training: of a site, or the mean over the residual stream.
pub fn curve(record: &RunRecord, metric: &str, site: Option<&str>) -> Option<Vec<(f64, f64)>> {
    let sites: &BTreeMap<String, Vec<Option<f64>>> = record.curves.sites.get(metric)?;
    let at = |i: usize| match site {
        Some(site) => *sites.get(site)?.get(i)?,
        None => mean(sites.values().filter_map(|values| *values.get(i)?)),
    };
    let steps = record.curves.steps.iter().enumerate();
    let points: Vec<(f64, f64)> = steps.filter_map(|(i, &step)| Some((step as f64, at(i)?))).collect();
    (!points.is_empty()).then_some(points)
}

fn quantised<'a>(record: &'a RunRecord, scheme: &str) -> Option<&'a super::Quantised> {
    record.quantised.iter().find(|q| q.scheme == scheme)
}

fn mean_over(moments: &[Moments], value: impl Fn(&Moments) -> Option<f64>) -> Option<f64> {
    mean(moments.iter().filter_map(value))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sweep::record::{Curves, Measure, Origin};
    use crate::sweep::{Quantised, Status};

    /// A record with two residual sites.
    pub(crate) fn record() -> RunRecord {
        let sites = |a, b| BTreeMap::from([("embed".to_string(), a), ("blocks.0.resid".to_string(), b)]);
        RunRecord {
            schema: 1,
            key: "k".into(),
            status: Status::Finished,
            reason: None,
            origin: Origin::default(),
            measure: Measure::default(),
            parameters: 1,
            step: 20,
            train_loss: Some(1.5),
            val_loss: Some(2.0),
            accuracy: None,
            sites: BTreeMap::from([("kurtosis".into(), sites(1.0, 4.0))]),
            quantised: vec![Quantised {
                scheme: "w8a8".into(),
                float_perplexity: 10.0,
                perplexity: 12.0,
                kl: 0.1,
            }],
            moments: vec![Moments {
                site: "embed".into(),
                m2: [Some(1.0), Some(2.0)],
                m4: [Some(1.0), Some(9.0)],
                sums: [Some(-1.0), Some(6.0), Some(0.5), Some(0.5)],
            }],
            curves: Curves {
                steps: vec![1, 10, 20],
                train_loss: vec![Some(3.0), Some(2.0), Some(1.5)],
                sites: BTreeMap::from([(
                    "kurtosis".into(),
                    BTreeMap::from([
                        ("embed".into(), vec![Some(1.0), Some(2.0), Some(1.0)]),
                        ("blocks.0.resid".into(), vec![Some(2.0), Some(8.0), None]),
                    ]),
                )]),
            },
            config: toml::Table::new(),
        }
    }

    #[test]
    fn every_kind_of_figure() {
        let record = record();
        let of = |name: &str| Figure::parse(name).unwrap().of(&record);
        assert_eq!((of("val_loss"), of("train_loss"), of("accuracy")), (Some(2.0), Some(1.5), None));
        assert_eq!(of("perplexity"), Some(2.0f64.exp()));
        assert_eq!(
            (of("kurtosis"), of("kurtosis_max"), of("kurtosis@embed")),
            (Some(2.5), Some(4.0), Some(1.0))
        );
        assert_eq!((of("kurtosis_peak"), of("kurtosis_start")), (Some(5.0), Some(1.5)));
        assert_eq!(of("kurtosis_peak@blocks.0.resid"), Some(8.0));
        assert_eq!(of("mmr"), None);
        assert_eq!((of("u41"), of("u42"), of("u42_share")), (Some(-0.25), Some(1.5), Some(0.75)));
        assert_eq!(
            (of("w8a8_cost").map(|c| (c * 1e9).round()), of("w8a8_perplexity")),
            (Some(2e8), Some(12.0))
        );
        assert_eq!(of("w4a8_cost"), None);
        let failed = RunRecord { status: Status::Diverged, val_loss: None, ..record.clone() };
        assert_eq!(Figure::parse("val_loss").unwrap().of(&failed), Some(f64::INFINITY));
        for name in ["kurtosi", "w9_cost", "u45", "kurtosis_pea", ""] {
            assert!(Figure::parse(name).is_err(), "{name}");
        }
        assert_eq!(Figure::parse("kurtosis_mean_removed").unwrap().floor(), 0.0);
        assert_eq!(Figure::parse("kurtosis_peak").unwrap().floor(), 1.0);
    }
}
