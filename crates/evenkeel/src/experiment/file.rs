//! The file of an experiment.
//!
//! ```toml
//! title = "Larger learning rates, larger outliers"
//! section = "3"                            # where the paper says it
//! about = "..."                            # one paragraph: what is trained, and why it shows this
//! figures = ["val_loss", "kurtosis_peak"]  # columns of its table
//! plots = [{ curve = "kurtosis" }]
//!
//! [small]                                  # minutes on two cores
//! base = "small_text"                      # a configuration in experiments/base
//! seeds = [0, 1, 2]
//! run = { train.steps = 400 }              # what differs from it in every run
//!
//! [full]                                   # the paper's size, tokens and data
//! base = "codeparrot"
//! seeds = [0]
//!
//! [[variant]]
//! name = "lr 1e-3"
//! set = { optim.lr_peak = 1e-3 }
//! small = {}                               # more keys at one scale only
//!
//! [[claim]]
//! says = "Kurtosis grows with the learning rate."
//! figure = "kurtosis_peak"
//! rising = ["lr 1e-3", "lr 1e-2"]
//! ```

use super::claim::{Claim, Judgement};
use super::library;
use super::{ExperimentError, claim};
use crate::config::{Override, syntax_problem};
use crate::sweep::file::{Plan, Variant, leaves};
use crate::sweep::{Cell, Figure, Group, Measure, Plot, Sweep};
use serde::Deserialize;
use std::path::Path;
use toml::Table;

/// How large the runs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Minutes on two cores, on data that every machine has which built this project.
    Small,
    /// The paper's size, tokens and data.
    Full,
}

impl Scale {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Small => "small",
            Scale::Full => "full",
        }
    }
}

/// A question, the runs that answer it, and what the paper found.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// How it is called on the command line.
    pub name: String,
    /// What is asked, or found.
    pub title: String,
    /// Section, figure or table of the paper.
    pub section: String,
    /// What is trained, and why it shows this.
    pub about: String,
    /// Columns of its table.
    pub figures: Vec<Figure>,
    /// Its pictures.
    pub plots: Vec<Plot>,
    /// What the paper says.
    pub claims: Vec<Claim>,
    file: Text,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    title: String,
    section: String,
    about: String,
    figures: Vec<String>,
    #[serde(default)]
    plots: Vec<Plot>,
    small: ScaleText,
    full: ScaleText,
    #[serde(default)]
    variant: Vec<VariantText>,
    #[serde(default)]
    claim: Vec<Claim>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaleText {
    base: String,
    seeds: Vec<u64>,
    #[serde(default)]
    run: Table,
    /// What a reader has to know about this scale.
    #[serde(default)]
    note: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantText {
    name: String,
    #[serde(default)]
    set: Table,
    #[serde(default)]
    small: Table,
    #[serde(default)]
    full: Table,
}

impl Experiment {
    /// From the text of a file.
    ///
    /// # Errors
    /// If it is no experiment, a claim names a group or figure that there is not, or its runs have no valid configuration at
    /// either scale.
    pub fn parse(name: &str, text: &str) -> Result<Self, ExperimentError> {
        let bad = |problem: String| ExperimentError::File { file: format!("{name}.toml"), problem };
        let file: Text = toml::from_str(text).map_err(|e| bad(syntax_problem(text, &e)))?;
        let figures = file.figures.iter().map(|f| Figure::parse(f)).collect::<Result<_, _>>()?;
        let experiment = Self {
            name: name.to_string(),
            title: file.title.clone(),
            section: file.section.clone(),
            about: file.about.split_whitespace().collect::<Vec<_>>().join(" "),
            figures,
            plots: file.plots.clone(),
            claims: file.claim.clone(),
            file,
        };
        for claim in &experiment.claims {
            claim.figures()?;
            let known = |name: &String| experiment.file.variant.iter().any(|v| v.name == *name);
            if let Some(group) = claim.groups().into_iter().find(|g| !known(g)) {
                return Err(bad(format!(
                    "the claim \"{}\" names \"{group}\", which is no variant",
                    claim.says
                )));
            }
        }
        for plot in &experiment.plots {
            plot.check()?;
        }
        Ok(experiment)
    }

    /// Reads a file of one's own.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn load(path: &Path) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path).map_err(|e| ExperimentError::File {
            file: path.display().to_string(),
            problem: e.to_string(),
        })?;
        let name = path.file_stem().map_or("experiment".into(), |s| s.to_string_lossy().into_owned());
        Self::parse(&name, &text)
    }

    /// Its runs.
    ///
    /// # Errors
    /// If one has no valid configuration, or its base is unknown.
    pub fn sweep(&self, scale: Scale, overrides: &[Override]) -> Result<Sweep, ExperimentError> {
        let text = self.scale(scale);
        let bad = |problem: String| ExperimentError::File { file: format!("{}.toml", self.name), problem };
        let base = library::base(&text.base)
            .ok_or_else(|| bad(format!("there is no base \"{}\" in experiments/base", text.base)))?;
        let mut base: Table = base.parse().map_err(|e: toml::de::Error| bad(e.to_string()))?;
        let measure = match base.remove("measure") {
            None => Measure::default(),
            Some(table) => table.try_into().map_err(|e: toml::de::Error| bad(e.message().to_string()))?,
        };
        measure.check().map_err(bad)?;
        let variants = self.file.variant.iter().map(|v| {
            let mut set = Table::new();
            let own = match scale {
                Scale::Small => &v.small,
                Scale::Full => &v.full,
            };
            set.extend(leaves(&v.set).into_iter().chain(leaves(own)));
            Variant { name: Some(v.name.clone()), set }
        });
        let plan = Plan {
            base,
            run: text.run.clone(),
            seeds: Some(text.seeds.clone()),
            grid: Vec::new(),
            variants: variants.collect(),
            measure: measure.clone(),
        };
        let cells = plan.cells(overrides).map_err(|e| e.at(Path::new(&format!("{}.toml", self.name))))?;
        Ok(Sweep { title: self.title.clone(), measure, jobs: None, cells })
    }

    /// What a reader has to know about this scale.
    pub fn note(&self, scale: Scale) -> Option<&str> {
        self.scale(scale).note.as_deref()
    }

    /// Every claim beside what was measured.
    ///
    /// # Errors
    /// If a figure is unknown.
    pub fn judge(&self, groups: &[Group]) -> Result<Vec<Judgement>, ExperimentError> {
        Ok(self.claims.iter().map(|c: &claim::Claim| c.judge(groups)).collect::<Result<_, _>>()?)
    }

    fn scale(&self, scale: Scale) -> &ScaleText {
        match scale {
            Scale::Small => &self.file.small,
            Scale::Full => &self.file.full,
        }
    }
}

/// The cells of several experiments, each run once, in their order.
pub fn distinct<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<Cell> {
    let mut seen = std::collections::BTreeSet::new();
    cells.filter(|c| seen.insert(c.key.clone())).cloned().collect()
}
