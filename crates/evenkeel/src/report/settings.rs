//! Which runs are of one setting: they differ in nothing but `train.seed`.
//!
//! Runs of a setting share a colour, a dash and a marker. Where a figure lays runs over one another, each is a thin line
//! and their mean a full one, taken at the steps that all of them have; a run by itself is its own line.

use super::chart::{Draw, Point, Series};
use super::palette::Style;
use super::run::RunCurves;
use std::collections::BTreeMap;

/// Runs of one setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    /// What its runs' names have in common.
    pub(super) name: String,
    /// Places of its runs.
    pub(super) runs: Vec<usize>,
}

/// The settings of `runs`, in the order in which they first occur.
pub(super) fn settings(runs: &[RunCurves]) -> Vec<Setting> {
    let mut known: Vec<Known> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let mut config = run.config.clone();
        let train = config.as_mut().and_then(|c| c.get_mut("train")).and_then(toml::Value::as_table_mut);
        let seed = train.and_then(|train| train.remove("seed"));
        // The same seed twice is the same run twice, which a mean would hide.
        let same = |k: &&mut Known| k.config.is_some() && k.config == config && !k.seeds.contains(&seed);
        match known.iter_mut().find(same) {
            Some(setting) => {
                setting.seeds.push(seed);
                setting.runs.push(i);
            }
            None => known.push(Known { config, seeds: vec![seed], runs: vec![i] }),
        }
    }
    known.into_iter().map(|k| Setting { name: name(runs, &k.runs), runs: k.runs }).collect()
}

/// A setting that was met.
struct Known {
    /// Configuration without the seed.
    config: Option<toml::Table>,
    seeds: Vec<Option<toml::Value>>,
    runs: Vec<usize>,
}

/// A single run's name, or what several begin with, without the beginning of "s0" or "seed-1".
fn name(runs: &[RunCurves], places: &[usize]) -> String {
    let names: Vec<&str> = places.iter().map(|&i| runs[i].name.as_str()).collect();
    let [first, others @ ..] = &names[..] else { return String::new() };
    if others.is_empty() {
        return first.to_string();
    }
    let common = |a: &str, b: &str| a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).count();
    let shared = others.iter().map(|other| common(first, other)).min().unwrap_or(0);
    let start: String = first.chars().take(shared).collect();
    let start = start.trim_end_matches(|c: char| c.is_ascii_digit());
    let apart = ['-', '_', '.', ' '];
    // Not the last letter of "bias".
    let word = start.rsplit(apart).next().unwrap_or(start);
    let start = if ["seed", "s"].contains(&word) { start.trim_end_matches(word) } else { start };
    let start = start.trim_end_matches(apart);
    match start {
        "" => format!("{first} and {} more", others.len()),
        start => start.to_string(),
    }
}

/// The keys, dotted and in their order, in which the configurations that are known differ, with the value of each as TOML.
pub(crate) fn differences(configs: &[Option<&toml::Table>]) -> Vec<(String, Vec<Option<String>>)> {
    let flat: Vec<Option<BTreeMap<String, String>>> = configs
        .iter()
        .map(|config| {
            let mut keys = BTreeMap::new();
            flatten("", (*config)?, &mut keys);
            Some(keys)
        })
        .collect();
    let names: std::collections::BTreeSet<&String> = flat.iter().flatten().flat_map(BTreeMap::keys).collect();
    let mut found = Vec::new();
    for name in names {
        let mut known = flat.iter().flatten().map(|keys| keys.get(name));
        let first = known.next();
        if known.any(|value| Some(value) != first) {
            let values = flat.iter().map(|keys| keys.as_ref()?.get(name).cloned()).collect();
            found.push((name.clone(), values));
        }
    }
    found
}

fn flatten(above: &str, table: &toml::Table, keys: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&path, inner, keys),
            other => {
                keys.insert(path, other.to_string());
            }
        }
    }
}

/// What a figure over all runs has of each setting: a line for each run, and for several seeds their mean.
pub(super) fn overlay(
    settings: &[Setting],
    runs: &[RunCurves],
    draw: Draw,
    curve: impl Fn(&RunCurves) -> Vec<Point>,
) -> Vec<Series> {
    let mut series = Vec::new();
    for (i, setting) in settings.iter().enumerate() {
        let curves: Vec<Vec<Point>> = setting.runs.iter().map(|&run| curve(&runs[run])).collect();
        let style = Style::nth(i);
        if curves.len() == 1 {
            let points = curves.into_iter().flatten().collect();
            series.push(Series { name: setting.name.clone(), points, style, draw });
            continue;
        }
        let mean = Series {
            name: format!("{}, mean of {} seeds", setting.name, curves.len()),
            points: mean(&curves),
            style,
            draw,
        };
        let thin = |points| Series { name: String::new(), points, style, draw: Draw::Thin };
        series.extend(curves.into_iter().map(thin));
        series.push(mean);
    }
    series
}

/// The mean where all have a point. Undefined in one is undefined in the mean.
fn mean(curves: &[Vec<Point>]) -> Vec<Point> {
    let mut sums: BTreeMap<u64, (f64, f64, usize)> = BTreeMap::new();
    for &(x, y) in curves.iter().flatten() {
        // Steps and tokens are not negative, where bits have the order of numbers.
        let sum = sums.entry(x.abs().to_bits()).or_insert((x, 0.0, 0));
        (sum.1, sum.2) = (sum.1 + y, sum.2 + 1);
    }
    let all = sums.into_values().filter(|(_, _, count)| *count == curves.len());
    all.map(|(x, sum, count)| (x, sum / count as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, config: &str) -> RunCurves {
        let config = (!config.is_empty()).then(|| config.parse().unwrap());
        RunCurves { name: name.into(), config, ..RunCurves::default() }
    }

    #[test]
    fn only_the_seed_may_differ_and_it_must() {
        let of = |lr: &str, seed: u32| format!("[optim]\nlr = {lr}\n[train]\nseed = {seed}\n");
        let runs = [
            run("op-soap-s0", &of("1e-3", 0)),
            run("op-soap-s1", &of("1e-3", 1)),
            run("op-soap-large", &of("1e-2", 0)),
            run("again", &of("1e-3", 1)),
            run("without", ""),
            run("without-too", ""),
        ];
        let found = settings(&runs);
        let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["op-soap", "op-soap-large", "again", "without", "without-too"]);
        assert_eq!(found[0].runs, [0, 1]);
    }

    #[test]
    fn keys_that_differ_are_named_with_their_values() {
        let of = |text: &str| text.parse::<toml::Table>().unwrap();
        let (a, b) =
            (of("x = 1\n[t]\ny = \"p\"\nz = [1]\n"), of("x = 1\n[t]\ny = \"q\"\nw = true\nz = [1]\n"));
        let found = differences(&[Some(&a), None, Some(&b)]);
        let text = |value: &str| Some(value.to_string());
        assert_eq!(
            found,
            [
                ("t.w".to_string(), vec![None, None, text("true")]),
                ("t.y".to_string(), vec![text("\"p\""), None, text("\"q\"")]),
            ]
        );
    }

    #[test]
    fn a_setting_is_called_what_its_runs_have_in_common() {
        let of = |names: &[&str]| {
            let runs: Vec<RunCurves> = names.iter().map(|n| run(n, "")).collect();
            name(&runs, &(0..names.len()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["op-seed10", "op-seed11"]), "op");
        assert_eq!(of(&["op_0", "op_1", "op_2"]), "op");
        assert_eq!(of(&["bias-0", "bias-1"]), "bias");
        assert_eq!(of(&["bias0", "bias1"]), "bias");
        assert_eq!(of(&["a", "b", "c"]), "a and 2 more");
        assert_eq!(of(&["s0", "s1"]), "s0 and 1 more");
    }

    #[test]
    fn a_mean_is_taken_where_all_are() {
        let config = |seed: u32| format!("[train]\nseed = {seed}\n");
        let mut runs = vec![run("a-s0", &config(0)), run("a-s1", &config(1)), run("b", "")];
        runs[0].alarms = vec![Default::default()];
        let curve = |run: &RunCurves| match run.alarms.len() {
            1 => vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
            _ => vec![(0.0, 2.0), (1.0, 2.0)],
        };
        let series = overlay(&settings(&runs), &runs, Draw::Line, curve);
        let names: Vec<&str> = series.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["", "", "a, mean of 2 seeds", "b"]);
        assert_eq!(series[2].points[0], (0.0, 1.5));
        assert!(series[2].points[1].1.is_nan() && series[2].points.len() == 2);
        assert_eq!((series[0].draw, series[2].draw), (Draw::Thin, Draw::Line));
        assert_eq!(series[0].style, series[2].style);
        assert_ne!(series[2].style, series[3].style);
    }
}
