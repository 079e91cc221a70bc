//! Alarms: bounds on metrics, looked at whenever sites are measured.
//!
//! An alarm counts, for each of its sites, the measurements in a row above its bound. It fires when that count
//! reaches its patience, and not again before it has been at or below the bound: once for each crossing. The counts
//! are part of a checkpoint, so a resumed run fires when the uninterrupted one does.

use super::log::LineLog;
use super::{RunDir, TrainError};
use crate::checkpoint::{AlarmCount, RunState};
use crate::config::{AlarmAction, AlarmConfig, ConfigError, GRAM_METRICS};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::names::NameFilter;
use crate::tap::Site;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A line of alarms.jsonl: an alarm that fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmLine {
    /// Steps finished.
    pub step: u64,
    /// Name of the metric.
    pub metric: String,
    /// Site's name.
    pub site: String,
    /// The metric there; null where the activations are not finite.
    pub value: Option<f64>,
    /// The bound.
    pub above: f64,
    /// Measurements in a row above it.
    pub patience: u64,
    /// What is done.
    pub action: AlarmAction,
}

impl fmt::Display for AlarmLine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { metric, site, above, patience, .. } = self;
        match self.value {
            Some(value) => write!(f, "{metric} at {site} is {value:.4}, above {above}")?,
            None => write!(f, "{metric} at {site} is not finite, above {above}")?,
        }
        if *patience > 1 {
            write!(f, " for {patience} measurements in a row")?;
        }
        Ok(())
    }
}

/// The alarms of a run.
pub(super) struct Alarms {
    watched: Vec<(AlarmConfig, NameFilter)>,
    /// Measurements in a row above the bound, by alarm and site; 0 is left out.
    counts: BTreeMap<(usize, String), u64>,
    log: Option<LineLog>,
    /// Whether every alarm was seen to match a site.
    matched: bool,
}

impl Alarms {
    /// The alarms as they stood in `state`.
    pub(super) fn open(alarms: &[AlarmConfig], dir: &RunDir, state: &RunState) -> Result<Self> {
        let mut watched = Vec::new();
        let mut counts = BTreeMap::new();
        for (i, alarm) in alarms.iter().enumerate() {
            let filter = NameFilter::new(&alarm.sites)
                .map_err(|e| ConfigError::Alarm { problem: format!("alarm[{i}].sites: {e}") })?;
            watched.push((alarm.clone(), filter));
            let same = |c: &&AlarmCount| {
                (&c.metric, c.above, c.patience) == (&alarm.metric, alarm.above, alarm.patience)
            };
            counts.extend(state.alarms.iter().filter(same).map(|c| ((i, c.site.clone()), c.count)));
        }
        let log = LineLog::open_if(!alarms.is_empty(), &dir.alarms(), state.step)?;
        Ok(Self { watched, counts, log, matched: false })
    }

    /// Looks at what was measured after `step` steps; logs and returns the alarms that fire.
    /// `gram` says whether the Gram metrics were taken: an alarm on one that was not stays as it is.
    pub(super) fn check(
        &mut self,
        step: u64,
        gram: bool,
        stats: &[(Site, Metrics)],
    ) -> Result<Vec<AlarmLine>> {
        let mut fired = Vec::new();
        for (i, (alarm, filter)) in self.watched.iter().enumerate() {
            let mut matched = self.matched;
            for (site, metrics) in stats {
                let site = site.to_string();
                if !filter.matches(&site) {
                    continue;
                }
                matched = true;
                let value = metrics.get(&alarm.metric);
                // The RMS is defined for all values but those that are not finite.
                let above = metrics.rms.is_none() || value.is_some_and(|v| v > alarm.above);
                let key = (i, site);
                let taken = gram || !GRAM_METRICS.contains(&alarm.metric.as_str());
                if !above && !taken {
                    continue;
                }
                if !above {
                    self.counts.remove(&key);
                    continue;
                }
                let count = self.counts.get(&key).map_or(1, |count| count.saturating_add(1));
                if count == alarm.patience {
                    fired.push(AlarmLine {
                        step,
                        metric: alarm.metric.clone(),
                        site: key.1.clone(),
                        value,
                        above: alarm.above,
                        patience: alarm.patience,
                        action: alarm.action,
                    });
                }
                self.counts.insert(key, count);
            }
            if !matched {
                let sites = alarm.sites.join(", ");
                return Err(TrainError::AlarmSites { metric: alarm.metric.clone(), sites }.into());
            }
        }
        self.matched = true;
        if let Some(log) = &mut self.log {
            for line in &fired {
                log.append(line)?;
            }
        }
        Ok(fired)
    }

    /// For the checkpoint.
    pub(super) fn counts(&self) -> Vec<AlarmCount> {
        let of = |((i, site), count): (&(usize, String), &u64)| {
            let alarm = &self.watched[*i].0;
            AlarmCount {
                metric: alarm.metric.clone(),
                above: alarm.above,
                patience: alarm.patience,
                site: site.clone(),
                count: *count,
            }
        };
        let mut counts: Vec<AlarmCount> = self.counts.iter().map(of).collect();
        // Two alarms may compare the same and differ in what they do.
        counts.dedup();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Place;

    const SITE: Site = Site { layer: None, place: Place::Embed };

    fn alarm(above: f64, patience: u64) -> AlarmConfig {
        AlarmConfig {
            metric: "kurtosis".into(),
            sites: vec!["embed".into()],
            above,
            patience,
            action: AlarmAction::Log,
        }
    }

    fn state(step: u64, alarms: Vec<AlarmCount>) -> RunState {
        RunState {
            schema: 1,
            step,
            tokens: 0,
            first_loss: None,
            guard_count: 0,
            skip: Default::default(),
            alarms,
        }
    }

    fn measured(kurtosis: Option<f64>) -> Metrics {
        Metrics { kurtosis, rms: Some(1.0), ..Metrics::default() }
    }

    /// Steps at which the alarm fires when the kurtosis takes these values at steps 1, 2, ...
    fn firings(alarm: AlarmConfig, values: &[f64]) -> Vec<u64> {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::create(folder.path(), true).unwrap();
        let alarms = [alarm];
        let straight = |pause: Option<usize>| {
            let mut watching = Alarms::open(&alarms, &dir, &state(0, Vec::new())).unwrap();
            let mut steps = Vec::new();
            for (i, value) in values.iter().enumerate() {
                if pause == Some(i) {
                    // As after a kill: what is kept is what the checkpoint holds.
                    let text = serde_json::to_string(&state(i as u64, watching.counts())).unwrap();
                    watching = Alarms::open(&alarms, &dir, &serde_json::from_str(&text).unwrap()).unwrap();
                }
                let fired = watching.check(i as u64 + 1, false, &[(SITE, measured(Some(*value)))]).unwrap();
                steps.extend(fired.iter().map(|f| f.step));
            }
            (steps, std::fs::read_to_string(dir.alarms()).unwrap())
        };
        let uninterrupted = straight(None);
        for pause in 0..values.len() {
            assert_eq!(straight(Some(pause)), uninterrupted, "paused before step {}", pause + 1);
        }
        uninterrupted.0
    }

    #[test]
    fn an_alarm_fires_once_for_each_crossing() {
        let values = [1.0, 3.0, 3.0, 2.0, 3.0, 3.0, 3.0, 1.0, 3.0];
        assert_eq!(firings(alarm(2.0, 1), &values), [2, 5, 9]);
        assert_eq!(firings(alarm(2.0, 2), &values), [3, 6]);
        assert_eq!(firings(alarm(2.0, 3), &values), [7]);
        assert_eq!(firings(alarm(3.0, 1), &values), [0u64; 0]);
    }

    #[test]
    fn undefined_is_not_above_and_not_finite_is() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::create(folder.path(), true).unwrap();
        let mut watching = Alarms::open(&[alarm(2.0, 1)], &dir, &state(0, Vec::new())).unwrap();
        assert!(watching.check(1, false, &[(SITE, measured(None))]).unwrap().is_empty());
        let broken = Metrics { rms: None, ..measured(None) };
        let fired = watching.check(2, false, &[(SITE, broken)]).unwrap();
        assert_eq!(fired[0].to_string(), "kurtosis at embed is not finite, above 2");
    }

    #[test]
    fn a_metric_that_is_not_taken_at_every_step_keeps_its_count() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::create(folder.path(), true).unwrap();
        let mut alarms = [AlarmConfig { metric: "effective_rank".into(), ..alarm(2.0, 2) }];
        alarms[0].sites = vec!["embed".into()];
        let mut watching = Alarms::open(&alarms, &dir, &state(0, Vec::new())).unwrap();
        let with = |effective_rank| Metrics { effective_rank, ..measured(Some(1.0)) };
        let mut fired = Vec::new();
        // Taken at odd steps: above, above, above, below, above, above.
        for (step, rank) in (1..).step_by(2).zip([3.0, 3.0, 3.0, 1.0, 3.0, 3.0]) {
            for (step, gram, rank) in [(step, true, Some(rank)), (step + 1, false, None)] {
                fired.extend(watching.check(step, gram, &[(SITE, with(rank))]).unwrap());
            }
        }
        assert_eq!(fired.iter().map(|f| f.step).collect::<Vec<_>>(), [3, 11]);
    }

    #[test]
    fn a_changed_alarm_begins_anew_and_one_that_matches_no_site_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::create(folder.path(), true).unwrap();
        let mut first = Alarms::open(&[alarm(2.0, 2)], &dir, &state(0, Vec::new())).unwrap();
        first.check(1, false, &[(SITE, measured(Some(9.0)))]).unwrap();
        let counts = first.counts();
        assert_eq!(counts[0].count, 1);
        let mut second = Alarms::open(&[alarm(3.0, 2), alarm(2.0, 2)], &dir, &state(1, counts)).unwrap();
        let fired = second.check(2, false, &[(SITE, measured(Some(9.0)))]).unwrap();
        assert_eq!(fired.iter().map(|f| f.above).collect::<Vec<_>>(), [2.0]);
        let elsewhere = AlarmConfig { sites: vec!["embd".into()], ..alarm(2.0, 1) };
        let mut third = Alarms::open(&[elsewhere], &dir, &state(0, Vec::new())).unwrap();
        let error = third.check(1, false, &[(SITE, measured(Some(9.0)))]).unwrap_err();
        assert!(error.to_string().contains("embd"), "{error}");
    }
}
