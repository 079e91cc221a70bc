//! A claim, the rule that checks it, and the verdict.
//!
//! | rule | holds if |
//! | --- | --- |
//! | `rising = [A, B, ...]` | the figure of each group is larger than that of the one before |
//! | `apart = { high, low, factor }` | what `high` has above the figure's floor is at least `factor` times that of `low` |
//! | `above = { groups, value }`, `below` | every group's figure is above, or below, the value |
//! | `close = { groups, within }` | the figures of all groups lie within this share of their mean |
//! | `grows = { groups, from, factor }` | above its floor the figure is at least `factor` times the figure `from` of the same run |
//! | `follows = { figure, at_least }` | Spearman's rank correlation with another figure, over all runs, is at least this |
//!
//! A rule is checked on the means over seeds and again under each seed by itself. It holds if every seed agrees, it holds *in
//! the mean* if the means alone do. With three seeds, two groups that do not differ agree by chance once in eight.

use crate::sweep::figure::number;
use crate::sweep::{Figure, Group, SweepError};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// What the paper says, and how it is checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Table")]
pub struct Claim {
    /// The paper's outcome as a sentence.
    pub says: String,
    /// The paper's figures, where it gives some.
    pub paper: Option<String>,
    /// Name of the figure that is compared.
    pub figure: String,
    /// The rule.
    pub rule: Rule,
}

/// What is neither a sentence nor a figure is the rule, of which there is one.
impl TryFrom<Table> for Claim {
    type Error = String;

    fn try_from(mut table: Table) -> Result<Self, String> {
        let mut text = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` of a claim must be text")),
        };
        let says = text("says")?.ok_or("a claim says nothing: `says` is missing")?;
        let (paper, figure) = (text("paper")?, text("figure")?);
        let figure = figure.ok_or_else(|| format!("the claim \"{says}\" has no `figure`"))?;
        if table.len() != 1 {
            let keys: Vec<&str> = table.keys().map(String::as_str).collect();
            let has = if keys.is_empty() { "none".into() } else { keys.join(", ") };
            return Err(format!("the claim \"{says}\" needs one rule, and has {has}"));
        }
        let rule = Value::Table(table).try_into();
        let rule = rule.map_err(|e: toml::de::Error| format!("the claim \"{says}\": {}", e.message()))?;
        Ok(Self { says, paper, figure, rule })
    }
}

/// See the table above.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Groups from the smallest figure to the largest.
    Rising(Vec<String>),
    /// Two groups, and how far apart they are.
    Apart {
        /// The group with the larger figure.
        high: String,
        /// The group with the smaller one.
        low: String,
        /// At least so many times as large.
        factor: f64,
    },
    /// Groups above a value.
    Above {
        /// The groups.
        groups: Vec<String>,
        /// The value.
        value: f64,
    },
    /// Groups below a value.
    Below {
        /// The groups.
        groups: Vec<String>,
        /// The value.
        value: f64,
    },
    /// Groups that do not differ.
    Close {
        /// The groups.
        groups: Vec<String>,
        /// Largest distance from their mean, as a share of it.
        within: f64,
    },
    /// Growth within each run.
    Grows {
        /// The groups.
        groups: Vec<String>,
        /// Name of the figure that it grew from.
        from: String,
        /// At least so many times as large.
        factor: f64,
    },
    /// Two figures that rise together.
    Follows {
        /// The other figure.
        figure: String,
        /// The least rank correlation.
        at_least: f64,
        /// The groups; all if left out.
        #[serde(default)]
        groups: Vec<String>,
    },
}

/// How a claim came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Under every seed.
    Yes,
    /// For the means, and not under every seed.
    InTheMean,
    /// Not even for the means.
    No,
    /// Runs are missing.
    NotRun,
}

impl Verdict {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Yes => "yes",
            Verdict::InTheMean => "in the mean only",
            Verdict::No => "no",
            Verdict::NotRun => "not run",
        }
    }
}

/// A claim beside what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// The paper's outcome.
    pub says: String,
    /// The paper's figures.
    pub paper: Option<String>,
    /// What was measured, in words.
    pub measured: String,
    /// Whether they agree.
    pub verdict: Verdict,
}

/// A group's name and one figure per seed.
type Values = (String, Vec<(u64, f64)>);

impl Claim {
    /// Every name of a group in it.
    pub fn groups(&self) -> Vec<&String> {
        match &self.rule {
            Rule::Rising(groups)
            | Rule::Above { groups, .. }
            | Rule::Below { groups, .. }
            | Rule::Close { groups, .. }
            | Rule::Grows { groups, .. }
            | Rule::Follows { groups, .. } => groups.iter().collect(),
            Rule::Apart { high, low, .. } => vec![high, low],
        }
    }

    /// Every figure in it.
    ///
    /// # Errors
    /// If one is unknown.
    pub fn figures(&self) -> Result<Vec<Figure>, SweepError> {
        let other = match &self.rule {
            Rule::Grows { from, .. } => Some(from),
            Rule::Follows { figure, .. } => Some(figure),
            _ => None,
        };
        std::iter::once(&self.figure).chain(other).map(|name| Figure::parse(name)).collect()
    }

    /// Checks it on these groups.
    ///
    /// # Errors
    /// If a figure is unknown.
    pub fn judge(&self, groups: &[Group]) -> Result<Judgement, SweepError> {
        let figures = self.figures()?;
        let figure = &figures[0];
        let all = matches!(&self.rule, Rule::Follows { groups, .. } if groups.is_empty());
        let names: Vec<&str> = match all {
            true => groups.iter().map(|g| g.name.as_str()).collect(),
            false => self.groups().into_iter().map(String::as_str).collect(),
        };
        let found: Vec<&Group> = names.iter().filter_map(|n| groups.iter().find(|g| g.name == *n)).collect();
        let of = |figure: &Figure| -> Vec<Values> {
            found.iter().map(|g| (g.name.clone(), g.values(figure))).collect()
        };
        let values = of(figure);
        let complete = |v: &[Values]| {
            v.len() == names.len() && v.iter().zip(&found).all(|(v, g)| v.1.len() == g.runs.len())
        };
        let (measured, verdict) = if !complete(&values) {
            (self.in_words(figure, &found, &[]), Verdict::NotRun)
        } else if let Rule::Follows { at_least, .. } = &self.rule {
            let other = of(&figures[1]);
            match complete(&other).then(|| rank_correlation(&values, &other)) {
                Some(r) => {
                    let verdict = if r >= *at_least { Verdict::Yes } else { Verdict::No };
                    let runs: usize = values.iter().map(|v| v.1.len()).sum();
                    (format!("rank correlation {r:.2} over {runs} runs"), verdict)
                }
                None => (format!("{} is missing", figures[1].name()), Verdict::NotRun),
            }
        } else {
            let other = figures.get(1).map(&of).unwrap_or_default();
            (self.in_words(figure, &found, &other), self.verdict(figure, &values, &other))
        };
        Ok(Judgement { says: self.says.clone(), paper: self.paper.clone(), measured, verdict })
    }

    fn verdict(&self, figure: &Figure, values: &[Values], other: &[Values]) -> Verdict {
        let means = |values: &[Values]| -> Vec<f64> { values.iter().map(|v| mean(&v.1)).collect() };
        if !self.holds(figure, &means(values), &means(other)) {
            return Verdict::No;
        }
        let seeds = values.iter().map(|v| v.1.len()).min().unwrap_or(0);
        let at = |values: &[Values], i: usize| -> Vec<f64> {
            values.iter().filter_map(|v| Some(v.1.get(i)?.1)).collect()
        };
        match (0..seeds).all(|i| self.holds(figure, &at(values, i), &at(other, i))) {
            true => Verdict::Yes,
            false => Verdict::InTheMean,
        }
    }

    /// The rule on one value per group, and of the second figure if it has one.
    fn holds(&self, figure: &Figure, values: &[f64], other: &[f64]) -> bool {
        let above = |v: f64| v - figure.floor();
        match &self.rule {
            Rule::Rising(_) => values.windows(2).all(|pair| pair[0] < pair[1]),
            Rule::Apart { factor, .. } => above(values[0]) >= factor * above(values[1]),
            Rule::Above { value, .. } => values.iter().all(|v| v > value),
            Rule::Below { value, .. } => values.iter().all(|v| v < value),
            Rule::Close { within, .. } => {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                values.iter().all(|v| (v - mean).abs() <= within * mean.abs())
            }
            Rule::Grows { factor, .. } => {
                values.len() == other.len()
                    && values.iter().zip(other).all(|(v, o)| above(*v) >= factor * above(*o))
            }
            Rule::Follows { .. } => false,
        }
    }

    fn in_words(&self, figure: &Figure, groups: &[&Group], other: &[Values]) -> String {
        let one = |g: &Group| g.estimate(figure).map_or("–".to_string(), |e| e.write(figure));
        let listed = |between: &str| {
            groups.iter().map(|g| format!("{} {}", g.name, one(g))).collect::<Vec<_>>().join(between)
        };
        match &self.rule {
            Rule::Apart { .. } => {
                let above = |g: &Group| g.estimate(figure).map(|e| e.mean - figure.floor());
                let ratio = match groups {
                    [high, low] => above(high).zip(above(low)).map(|(h, l)| h / l),
                    _ => None,
                };
                let over = if figure.floor() > 0.0 { " above the floor" } else { "" };
                let ratio = ratio.map_or(String::new(), |r| format!(": a factor of {}{over}", number(r)));
                format!("{}{ratio}", listed(" against "))
            }
            Rule::Grows { .. } => groups
                .iter()
                .zip(other)
                .map(|(g, from)| format!("{}: {} → {}", g.name, figure.write(mean(&from.1)), one(g)))
                .collect::<Vec<_>>()
                .join("; "),
            _ => listed("; "),
        }
    }
}

fn mean(values: &[(u64, f64)]) -> f64 {
    values.iter().map(|v| v.1).sum::<f64>() / values.len() as f64
}

/// Spearman's correlation over all runs of all groups; equal values share their rank.
fn rank_correlation(a: &[Values], b: &[Values]) -> f64 {
    let flat = |v: &[Values]| -> Vec<f64> { v.iter().flat_map(|v| v.1.iter().map(|p| p.1)).collect() };
    let (a, b) = (ranks(&flat(a)), ranks(&flat(b)));
    let n = a.len() as f64;
    let centre = (n - 1.0) / 2.0;
    let product =
        |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x - centre) * (y - centre)).sum() };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|o| **o < v).count() as f64;
    let same = |v: f64| values.iter().filter(|o| **o == v).count() as f64;
    values.iter().map(|&v| below(v) + (same(v) - 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::RunRecord;
    use crate::sweep::figure::tests::record;

    fn claim(rule: &str) -> Claim {
        toml::from_str(&format!("says = \"it does\"\nfigure = \"val_loss\"\n{rule}")).unwrap()
    }

    fn runs(values: &[f64]) -> Vec<RunRecord> {
        let with = |v: &f64| RunRecord { val_loss: Some(*v), train_loss: Some(-v), ..record() };
        values.iter().map(with).collect()
    }

    fn judged(rule: &str, a: &[f64], b: &[f64]) -> (Verdict, String) {
        let (a, b) = (runs(a), runs(b));
        fn group<'a>(name: &str, runs: &'a [RunRecord]) -> Group<'a> {
            Group {
                name: name.into(),
                runs: runs.iter().enumerate().map(|(i, r)| (i as u64, Some(r))).collect(),
            }
        }
        let groups = [group("A", &a), group("B", &b)];
        let j = claim(rule).judge(&groups).unwrap();
        (j.verdict, j.measured)
    }

    #[test]
    fn an_order_holds_under_every_seed_or_in_the_mean() {
        let rule = "rising = [\"A\", \"B\"]";
        let (verdict, words) = judged(rule, &[1.0, 2.0], &[3.0, 4.0]);
        assert_eq!((verdict, words.as_str()), (Verdict::Yes, "A 1.500 ± 0.500; B 3.500 ± 0.500"));
        assert_eq!(judged(rule, &[1.0, 5.0], &[4.0, 4.5]).0, Verdict::InTheMean);
        assert_eq!(judged(rule, &[3.0, 3.0], &[3.0, 3.0]).0, Verdict::No, "equal is no order");
        assert_eq!(judged(rule, &[1.0], &[f64::INFINITY]).0, Verdict::Yes, "a run that failed is the worst");
        assert_eq!(judged("rising = [\"A\", \"C\"]", &[1.0], &[2.0]).0, Verdict::NotRun);
    }

    #[test]
    fn the_other_rules() {
        let apart = "apart = { high = \"B\", low = \"A\", factor = 3 }";
        let (verdict, words) = judged(apart, &[1.0], &[3.5]);
        assert_eq!(verdict, Verdict::Yes);
        assert!(words.ends_with("a factor of 3.50"), "{words}");
        assert_eq!(judged(apart, &[1.0], &[2.9]).0, Verdict::No);
        assert_eq!(judged("below = { groups = [\"A\"], value = 2.0 }", &[1.0, 1.9], &[]).0, Verdict::Yes);
        assert_eq!(
            judged("below = { groups = [\"A\"], value = 2.0 }", &[1.0, 2.1], &[]).0,
            Verdict::InTheMean
        );
        assert_eq!(judged("above = { groups = [\"A\"], value = 2.0 }", &[1.0, 2.1], &[]).0, Verdict::No);
        let close = "close = { groups = [\"A\", \"B\"], within = 0.1 }";
        assert_eq!(judged(close, &[1.0], &[1.2]).0, Verdict::Yes);
        assert_eq!(judged(close, &[1.0], &[1.3]).0, Verdict::No);
        let grows = "grows = { groups = [\"A\"], from = \"train_loss\", factor = 1 }";
        assert_eq!(judged(grows, &[1.0], &[]).0, Verdict::Yes);
        let with = |at: f64| format!("follows = {{ figure = \"train_loss\", at_least = {at} }}");
        assert_eq!(judged(&with(-1.0), &[1.0, 2.0], &[4.0, 8.0]).0, Verdict::Yes);
        assert_eq!(
            judged(&with(0.5), &[1.0, 2.0], &[4.0, 8.0]),
            (Verdict::No, "rank correlation -1.00 over 4 runs".into())
        );
    }

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(ranks(&[2.0, 1.0, 2.0, 5.0]), [1.5, 0.0, 1.5, 3.0]);
    }
}
