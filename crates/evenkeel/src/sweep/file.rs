//! The file of a sweep: which runs, and what is measured at the end of each.

use super::record::Measure;
use super::{SweepError, key};
use crate::config::{Override, RunConfig, syntax_problem};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// One run of a sweep.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What it has in common with the same settings under other seeds, in words.
    pub group: String,
    /// Its configuration.
    pub config: RunConfig,
    /// What is measured at its end.
    pub measure: Measure,
    /// Its name, see [`key()`].
    pub key: String,
}

impl Cell {
    /// Group and seed.
    pub fn name(&self) -> String {
        format!("{}, seed {}", self.group, self.config.train.seed)
    }
}

/// Runs that are compared with each other.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// What is asked.
    pub title: String,
    /// What is measured at the end of a run.
    pub measure: Measure,
    /// Runs at a time, unless the command says otherwise.
    pub jobs: Option<usize>,
    /// Every run: seeds innermost, then the grid, then the variants.
    pub cells: Vec<Cell>,
}

/// A named set of keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What it is called in tables and figures; what it sets, if left out.
    #[serde(default)]
    pub name: Option<String>,
    /// Keys of a configuration, nested or dotted.
    #[serde(default)]
    pub set: Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    title: Option<String>,
    base: Option<PathBuf>,
    #[serde(default)]
    run: Table,
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    grid: Table,
    #[serde(default)]
    variant: Vec<Variant>,
    #[serde(default)]
    measure: Measure,
    jobs: Option<usize>,
}

/// More runs than anybody waits for; beyond it a typing error only exhausts memory.
const MOST_CELLS: usize = 100_000;

impl Sweep {
    /// Reads a file; `overrides` hold for every run.
    ///
    /// # Errors
    /// If it is no sweep, or one of its runs has no valid configuration.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self, SweepError> {
        let text = read(path)?;
        let file = |problem: String| SweepError::File { path: path.to_path_buf(), problem };
        let parsed: Text = toml::from_str(&text).map_err(|e| file(syntax_problem(&text, &e)))?;
        let base = match &parsed.base {
            Some(base) => {
                let base = path.parent().unwrap_or(Path::new("")).join(base);
                let text = read(&base)?;
                text.parse()
                    .map_err(|e| SweepError::File { path: base, problem: syntax_problem(&text, &e) })?
            }
            None => Table::new(),
        };
        let plan = Plan {
            base,
            run: parsed.run,
            seeds: parsed.seeds,
            grid: leaves(&parsed.grid),
            variants: parsed.variant,
            measure: parsed.measure.clone(),
        };
        let stem = path.file_stem().map_or("sweep".into(), |s| s.to_string_lossy().into_owned());
        plan.measure.check().map_err(&file)?;
        if parsed.jobs == Some(0) {
            return Err(file("jobs must be at least 1".into()));
        }
        Ok(Self {
            title: parsed.title.unwrap_or(stem),
            measure: parsed.measure,
            jobs: parsed.jobs,
            cells: plan.cells(overrides).map_err(|e| e.at(path))?,
        })
    }
}

/// Part `i` of `n` of the cells, counted from 1: every n-th, so that parts cost about the same.
pub fn shard(cells: &[Cell], (i, n): (usize, usize)) -> Vec<Cell> {
    cells.iter().skip(i.saturating_sub(1)).step_by(n.max(1)).cloned().collect()
}

fn read(path: &Path) -> Result<String, SweepError> {
    std::fs::read_to_string(path).map_err(|source| SweepError::Read { path: path.to_path_buf(), source })
}

/// What becomes cells, whatever file it came from.
pub(crate) struct Plan {
    /// A whole configuration file.
    pub(crate) base: Table,
    /// What differs from it in every run.
    pub(crate) run: Table,
    /// The seeds; that of the configuration if not given.
    pub(crate) seeds: Option<Vec<u64>>,
    /// Keys with lists of values.
    pub(crate) grid: Vec<(String, Value)>,
    /// What is combined with the grid; none means one that sets nothing.
    pub(crate) variants: Vec<Variant>,
    /// What is measured.
    pub(crate) measure: Measure,
}

/// A plan that makes no cells; [`PlanError::at`] says in which file.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// In words.
    File(String),
    /// With a run's name.
    Sweep(SweepError),
}

impl PlanError {
    /// The error of the file at `path`.
    pub(crate) fn at(self, path: &Path) -> SweepError {
        match self {
            PlanError::File(problem) => SweepError::File { path: path.to_path_buf(), problem },
            PlanError::Sweep(e) => e,
        }
    }
}

impl Plan {
    /// All of them. `overrides` are the strongest, but for the seed where seeds are given.
    pub(crate) fn cells(&self, overrides: &[Override]) -> Result<Vec<Cell>, PlanError> {
        let file = |problem: String| Err(PlanError::File(problem));
        let mut axes: Vec<(&str, &[Value])> = Vec::new();
        for (key, values) in &self.grid {
            match values.as_array() {
                Some(values) if !values.is_empty() => axes.push((key, values)),
                _ => return file(format!("[grid] {key} must be a list of values, and not an empty one")),
            }
        }
        if let Some((key, _)) = axes.iter().find(|(k, _)| *k == "train.seed") {
            return file(format!("give seeds = [0, 1, 2] instead of {key} in [grid]"));
        }
        if self.seeds.as_ref().is_some_and(Vec::is_empty) {
            return file("seeds is empty".into());
        }
        let nothing = [Variant::default()];
        let variants: &[Variant] = if self.variants.is_empty() { &nothing } else { &self.variants };
        let seeds = self.seeds.as_ref().map_or(1, Vec::len);
        let combinations = axes.iter().try_fold(1usize, |n, a| n.checked_mul(a.1.len()));
        let count = combinations.and_then(|n| n.checked_mul(variants.len())?.checked_mul(seeds));
        let Some(combinations) = combinations.filter(|_| count.is_some_and(|n| n <= MOST_CELLS)) else {
            return file(format!("this makes more than {MOST_CELLS} runs"));
        };
        let common = self.start()?;
        let mut cells = Vec::new();
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        let mut groups = BTreeSet::new();
        for variant in variants {
            for combination in 0..combinations {
                let chosen = choose(&axes, combination);
                for cell in self.seeded(&common, variant, &chosen, overrides)? {
                    if let Some(first) = known.insert(cell.key.clone(), cell.name()) {
                        let second = cell.name();
                        return Err(PlanError::Sweep(SweepError::Twice { first, second }));
                    }
                    cells.push(cell);
                }
                // Seeds are averaged by this name.
                if let Some(last) = cells.last()
                    && !groups.insert(last.group.clone())
                {
                    return file(format!(
                        "two settings are called \"{}\"; give each variant a name of its own",
                        last.group
                    ));
                }
            }
        }
        Ok(cells)
    }

    /// The base with what every run changes.
    fn start(&self) -> Result<Table, PlanError> {
        let mut table = self.base.clone();
        for (key, value) in leaves(&self.run) {
            let o = Override { key, value };
            o.apply(&mut table).map_err(|e| PlanError::File(e.to_string()))?;
        }
        Ok(table)
    }

    /// One variant and combination under each seed.
    fn seeded(
        &self,
        common: &Table,
        variant: &Variant,
        chosen: &[(&str, &Value)],
        overrides: &[Override],
    ) -> Result<Vec<Cell>, PlanError> {
        let mut set: Vec<Override> =
            leaves(&variant.set).into_iter().map(|(key, value)| Override { key, value }).collect();
        set.extend(
            chosen.iter().map(|(key, value)| Override { key: key.to_string(), value: (*value).clone() }),
        );
        let settings: Vec<(String, String)> = set.iter().map(|o| (o.key.clone(), words(&o.value))).collect();
        let group = label(variant, chosen, &settings);
        set.extend(overrides.iter().cloned());
        let none = [None];
        let seeds: Vec<Option<u64>> = self.seeds.iter().flatten().map(|s| Some(*s)).collect();
        let seeds: &[Option<u64>] = if seeds.is_empty() { &none } else { &seeds };
        let cell = |seed: &Option<u64>| {
            let mut all = set.clone();
            all.extend(seed.map(|seed| Override::new("train.seed", &seed.to_string())));
            let bad =
                |source| PlanError::Sweep(SweepError::Run { run: group.clone(), source: Box::new(source) });
            let config = RunConfig::from_table(common.clone(), &all).map_err(bad)?;
            let key = key(&config, &self.measure).map_err(bad)?;
            Ok(Cell { group: group.clone(), measure: self.measure.clone(), config, key })
        };
        seeds.iter().map(cell).collect()
    }
}

/// The values of a combination, the last axis running fastest.
fn choose<'a>(axes: &[(&'a str, &'a [Value])], mut index: usize) -> Vec<(&'a str, &'a Value)> {
    let mut chosen: Vec<(&str, &Value)> = Vec::new();
    for (key, values) in axes.iter().rev() {
        chosen.push((key, &values[index % values.len()]));
        index /= values.len();
    }
    chosen.reverse();
    chosen
}

/// A name of the variant, or what it sets, and the values of the grid.
fn label(variant: &Variant, chosen: &[(&str, &Value)], settings: &[(String, String)]) -> String {
    let short = |key: &str| key.rsplit('.').next().unwrap_or(key).to_string();
    let own = settings.len() - chosen.len();
    let mut parts: Vec<String> = match &variant.name {
        Some(name) => vec![name.clone()],
        None => settings[..own].iter().map(|(k, v)| format!("{} {v}", short(k))).collect(),
    };
    parts.extend(settings[own..].iter().map(|(k, v)| format!("{} {v}", short(k))));
    match parts.is_empty() {
        true => "as configured".into(),
        false => parts.join(", "),
    }
}

/// A value as it is read aloud: no quotes, and small numbers with an exponent.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(v) if *v != 0.0 && (v.abs() < 1e-2 || v.abs() >= 1e5) => format!("{v:e}"),
        other => other.to_string(),
    }
}

/// Dotted paths and values of a nested table, in order of their names, level by level.
pub(crate) fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                out.extend(leaves(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            value => out.push((key.clone(), value.clone())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(text: &str) -> Result<Sweep, SweepError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.toml"), "[model]\nvocab = 64\ndepth = 2\n").unwrap();
        let path = dir.path().join("rates.toml");
        std::fs::write(&path, text).unwrap();
        Sweep::load(&path, &[])
    }

    #[test]
    fn every_combination_under_every_seed() {
        let made = sweep(
            "base = \"base.toml\"\nseeds = [0, 1]\n[run]\ntrain.steps = 7\n[grid]\noptim.lr_peak = [1e-3, 3e-3]\n\"optim.eps\" = [1e-8]\n[[variant]]\nname = \"Pre-LN\"\n[[variant]]\nset = { model.preset = \"op\" }\n",
        )
        .unwrap();
        assert_eq!((made.title.as_str(), made.cells.len()), ("rates", 8));
        let names: Vec<String> = made.cells.iter().map(Cell::name).collect();
        assert_eq!(names[0], "Pre-LN, lr_peak 1e-3, eps 1e-8, seed 0");
        assert_eq!(names[1], "Pre-LN, lr_peak 1e-3, eps 1e-8, seed 1");
        assert_eq!(names[7], "preset op, lr_peak 3e-3, eps 1e-8, seed 1");
        let last = &made.cells[7].config;
        assert_eq!((last.model.preset.as_str(), last.model.depth, last.train.steps), ("op", 2, 7));
        assert_eq!((last.optim.lr_peak, last.train.seed), (3e-3, 1));
        let parts: Vec<usize> = (1..=3).map(|i| shard(&made.cells, (i, 3)).len()).collect();
        assert_eq!(parts, [3, 3, 2]);
    }

    #[test]
    fn what_makes_no_sweep_is_said() {
        let said = |text: &str| sweep(text).unwrap_err().to_string();
        assert!(
            said("[grid]\noptim.lr_peak = 1e-3").contains("must be a list"),
            "{}",
            said("[grid]\noptim.lr_peak = 1e-3")
        );
        assert!(
            said("[grid]\noptim.lr_peek = [1e-3]").contains("lr_peak 1e-3")
                || said("[grid]\noptim.lr_peek = [1e-3]").contains("nearest")
        );
        assert!(said("[grid]\ntrain.seed = [1]").contains("seeds = [0, 1, 2]"));
        assert!(said("seeds = []").contains("empty"));
        assert!(said("sedes = [1]").contains("line 1"));
        assert!(
            said("[[variant]]\nname = \"a\"\n[[variant]]\nname = \"b\"")
                .contains("a, seed 0 and b, seed 0 are one run")
        );
        let called = "[[variant]]\nname = \"a\"\n[[variant]]\nname = \"a\"\nset = { train.steps = 3 }";
        assert!(said(called).contains("two settings are called \"a\""), "{}", said(called));
        assert!(said("base = \"none.toml\"").contains("none.toml"));
        let many: Vec<String> = (0..400).map(|i| i.to_string()).collect();
        let many = many.join(", ");
        let text = format!("[grid]\ntrain.steps = [{many}]\ntrain.log_every_steps = [{many}]");
        assert!(said(&text).contains("more than 100000 runs"));
        assert!(said("[measure]\nquantize = [\"w9\"]").contains("w9"));
    }
}
