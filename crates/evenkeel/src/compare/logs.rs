//! Two logs of JSON lines, matched by step and what a line is about (a site, a parameter, an alarm's metric): where they first say
//! something else.

use crate::report::ReportError;
use crate::report::run::read_lines;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// The logs of a run.
pub(super) const LOGS: [&str; 5] =
    ["metrics.jsonl", "stats.jsonl", "moments.jsonl", "optim.jsonl", "alarms.jsonl"];
/// What depends on the machine and its load, and on nothing that was computed.
const MACHINE: [&str; 3] = ["tokens_per_sec", "mem/peak", "optim/time_share"];
/// Keys that say what a line is about, besides its step.
const ABOUT: [&str; 3] = ["site", "parameter", "metric"];

/// Two logs of one name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogComparison {
    /// Name of the files.
    pub file: &'static str,
    /// Lines of each; null where there is no such log.
    pub lines: [Option<usize>; 2],
    /// Lines of the first that the second does not have, and the other way round.
    pub unmatched: [usize; 2],
    /// The earliest step with a line in only one of the two.
    pub unmatched_step: Option<u64>,
    /// The first value that is not the same, in a line that both have.
    pub first: Option<LogDifference>,
}

/// A value that two logs do not agree about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogDifference {
    /// The step.
    pub step: u64,
    /// The site, parameter or metric that the line is about.
    pub about: Option<String>,
    /// The key.
    pub key: String,
    /// Its value in the first; null also where there is none.
    pub a: Value,
    /// Its value in the second.
    pub b: Value,
}

impl LogComparison {
    /// Whether both say the same.
    pub fn is_same(&self) -> bool {
        self.unmatched == [0, 0] && self.first.is_none()
    }

    /// Where they part, and a sentence on it; `None` if they are the same.
    pub(super) fn difference(&self) -> Option<(u64, String)> {
        let value = self.first.as_ref().map(|d| {
            let about = d.about.as_ref().map_or(String::new(), |about| format!(" of {about}"));
            (d.step, format!("{} step {}: {}{about} is {} and {}", self.file, d.step, d.key, d.a, d.b))
        });
        let line = self.unmatched_step.map(|step| {
            let [a, b] = self.unmatched;
            let which = match (a, b) {
                (_, 0) => "the first",
                (0, _) => "the second",
                _ => "one of the two",
            };
            (step, format!("{} step {step}: only {which} has a line", self.file))
        });
        value.into_iter().chain(line).min_by_key(|(step, _)| *step)
    }
}

/// Compares a log of two runs. Numbers are the same if they do not differ by more than `tolerance` times the larger.
pub(super) fn compare_logs(
    file: &'static str,
    a: &Path,
    b: &Path,
    tolerance: f64,
) -> Result<LogComparison, ReportError> {
    let read = |dir: &Path| -> Result<Option<Vec<Map<String, Value>>>, ReportError> {
        read_lines(&dir.join(file), "an object with \"step\"")
    };
    let (first, second) = (read(a)?, read(b)?);
    let lines = [&first, &second].map(|log| log.as_ref().map(Vec::len));
    Ok(compared(file, lines, &first.unwrap_or_default(), &second.unwrap_or_default(), tolerance))
}

type Line = Map<String, Value>;

fn compared(
    file: &'static str,
    lines: [Option<usize>; 2],
    a: &[Line],
    b: &[Line],
    tolerance: f64,
) -> LogComparison {
    let mut others: HashMap<(u64, Option<String>), &Line> = b.iter().map(|line| (key(line), line)).collect();
    let (mut found, mut unmatched, mut steps) = (None, [0, 0], Vec::new());
    for line in a {
        match others.remove(&key(line)) {
            Some(other) if found.is_none() => found = first_value(line, other, tolerance),
            Some(_) => {}
            None => {
                unmatched[0] += 1;
                steps.push(key(line).0);
            }
        }
    }
    unmatched[1] = others.len();
    steps.extend(others.into_keys().map(|(step, _)| step));
    LogComparison { file, lines, unmatched, unmatched_step: steps.into_iter().min(), first: found }
}

/// The step of a line and what it is about.
fn key(line: &Line) -> (u64, Option<String>) {
    let about: Vec<&str> = ABOUT.iter().filter_map(|key| line.get(*key)?.as_str()).collect();
    let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
    (step, (!about.is_empty()).then(|| about.join(" ")))
}

fn first_value(a: &Line, b: &Line, tolerance: f64) -> Option<LogDifference> {
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    for name in keys.filter(|name| !MACHINE.contains(&name.as_str())) {
        let [one, other] = [a, b].map(|line| line.get(name).unwrap_or(&Value::Null));
        if !same(one, other, tolerance) {
            let (step, about) = key(a);
            return Some(LogDifference { step, about, key: name.clone(), a: one.clone(), b: other.clone() });
        }
    }
    None
}

fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    if a == b {
        return true;
    }
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => tolerance > 0.0 && (a - b).abs() <= tolerance * a.abs().max(b.abs()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Vec<Line> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn of(a: &str, b: &str, tolerance: f64) -> LogComparison {
        compared("x.jsonl", [None, None], &log(a), &log(b), tolerance)
    }

    #[test]
    fn clocks_and_memory_do_not_count() {
        let a = "{\"step\":1,\"x\":1.5,\"tokens_per_sec\":1.0,\"mem/peak\":5,\"optim/time_share\":0.1}";
        let b = "{\"step\":1,\"x\":1.5,\"tokens_per_sec\":2.0,\"mem/peak\":6,\"optim/time_share\":null}";
        assert!(of(a, b, 0.0).is_same());
        let c = b.replace("1.5", "1.5000000000000002");
        let found = of(a, &c, 0.0);
        assert_eq!(found.difference().unwrap().1, "x.jsonl step 1: x is 1.5 and 1.5000000000000002");
        assert!(of(a, &c, 1e-15).is_same());
    }

    #[test]
    fn lines_are_matched_by_step_and_site() {
        let a = "{\"step\":1,\"site\":\"embed\",\"k\":1}\n{\"step\":1,\"site\":\"final\",\"k\":2}\n\
                 {\"step\":3,\"site\":\"embed\",\"k\":null}";
        let b = "{\"step\":1,\"site\":\"final\",\"k\":2}\n{\"step\":1,\"site\":\"embed\",\"k\":1}\n\
                 {\"step\":3,\"site\":\"embed\",\"k\":4}\n{\"step\":2,\"site\":\"embed\",\"k\":4}";
        let found = of(a, b, 0.0);
        assert_eq!(found.unmatched, [0, 1]);
        let first = found.first.clone().unwrap();
        assert_eq!((first.step, first.about.as_deref(), first.key.as_str()), (3, Some("embed"), "k"));
        assert_eq!(found.difference().unwrap(), (2, "x.jsonl step 2: only the second has a line".into()));
        assert!(!of("", b, 0.0).is_same() && of(b, b, 0.0).is_same());
    }
}
