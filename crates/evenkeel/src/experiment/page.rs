//! What an experiment is shown as: text on a terminal, a page, and its part of docs/reproduction.md.

use super::{Experiment, ExperimentError, Judgement, Scale, Verdict};
use crate::report::table::{Align, Table};
use crate::report::{Block, LineChart, Page, Section, Target};
use crate::sweep::{Group, Plot, RunRecord, summary};
use std::collections::BTreeSet;

/// An experiment with its runs, judged.
pub struct Result<'a> {
    /// The experiment.
    pub experiment: &'a Experiment,
    /// Its runs.
    pub groups: Vec<Group<'a>>,
    /// Its claims.
    pub judgements: Vec<Judgement>,
}

impl<'a> Result<'a> {
    /// Judges.
    ///
    /// # Errors
    /// If a figure is unknown.
    pub fn new(
        experiment: &'a Experiment,
        groups: Vec<Group<'a>>,
    ) -> std::result::Result<Self, ExperimentError> {
        let judgements = experiment.judge(&groups)?;
        Ok(Self { experiment, groups, judgements })
    }

    /// Paper, measured, verdict.
    pub fn claims(&self) -> Table {
        let mut table =
            Table::new(&[("paper", Align::Left), ("measured", Align::Left), ("verdict", Align::Left)]);
        for j in &self.judgements {
            let paper = j.paper.as_ref().map_or(String::new(), |p| format!(" ({p})"));
            table.push([format!("{}{paper}", j.says), j.measured.clone(), j.verdict.words().into()]);
        }
        table
    }

    /// A row per group.
    pub fn table(&self) -> Table {
        summary::table(&self.groups, &self.experiment.figures)
    }

    /// For a terminal: claims one below the other, since they are sentences.
    pub fn to_text(&self) -> String {
        let mut out =
            format!("{} ({})\n\n{}\n", self.experiment.title, self.experiment.name, self.table().to_text());
        for j in &self.judgements {
            let paper = j.paper.as_ref().map_or(String::new(), |p| format!(" ({p})"));
            out.push_str(&format!(
                "paper:    {}{paper}\nmeasured: {}\nverdict:  {}\n\n",
                j.says,
                j.measured,
                j.verdict.words()
            ));
        }
        out
    }

    /// A page of its own.
    pub fn page(&self, scale: Scale) -> String {
        let e = self.experiment;
        let mut about = vec![Block::Text(e.about.clone())];
        about.extend(e.note(scale).map(|note| Block::Text(note.to_string())));
        let mut sections = vec![
            Section { title: "What is asked".into(), blocks: about },
            Section {
                title: "What came out".into(),
                blocks: vec![
                    Block::Table(self.claims(), "The paper's outcome, and what was measured.".into()),
                    Block::Table(self.table(), "Mean ± standard error over seeds.".into()),
                ],
            },
        ];
        let figures: Vec<Block> = e.plots.iter().filter_map(|p| p.block(&self.groups)).collect();
        if !figures.is_empty() {
            sections.push(Section { title: "Figures".into(), blocks: figures });
        }
        sections.push(Section {
            title: "How it was made".into(),
            blocks: vec![Block::Code(command(e, scale)), Block::List(origins(self.records()))],
        });
        Page {
            title: e.title.clone(),
            lead: vec![format!("{}, at the scale `{}`.", e.section, scale.name())],
            sections,
        }
        .render()
    }

    /// Its pictures as files: a name and an SVG document each.
    pub fn pictures(&self) -> Vec<(String, String)> {
        let chart = |(i, plot): (usize, &Plot)| {
            let chart = LineChart { width: 760.0, ..plot.chart(&self.groups)? };
            Some((format!("{}-{}.svg", self.experiment.name, i + 1), chart.render(Target::File)))
        };
        self.experiment.plots.iter().enumerate().filter_map(chart).collect()
    }

    /// Every run's record.
    pub fn records(&self) -> impl Iterator<Item = &RunRecord> {
        self.groups.iter().flat_map(Group::records)
    }

    fn markdown(&self, scale: Scale, pictures: &str) -> String {
        let e = self.experiment;
        let mut out =
            format!("## {}\n\n{}. `{}`\n\n{}\n", e.title, e.section, command(e, scale), fold(&e.about));
        if let Some(note) = e.note(scale) {
            out.push_str(&format!("\n{}\n", fold(note)));
        }
        out.push_str(&format!("\n{}", self.claims().to_markdown()));
        out.push_str(&format!("\n{}", self.table().to_markdown()));
        for ((name, _), plot) in
            self.pictures().iter().zip(e.plots.iter().filter(|p| p.chart(&self.groups).is_some()))
        {
            let caption = plot.caption();
            out.push_str(&format!("\n![{}]({pictures}/{name})\n", caption.replace('`', "")));
        }
        out
    }
}

/// docs/reproduction.md: verdicts first, then every experiment. `pictures` is where the page finds them.
pub fn reproduction(results: &[Result], scale: Scale, pictures: &str) -> String {
    let mut verdicts = Table::new(&[
        ("experiment", Align::Left),
        ("the paper's outcome", Align::Left),
        ("seen here", Align::Left),
    ]);
    let mut counts = [0usize; 4];
    for r in results {
        for (i, j) in r.judgements.iter().enumerate() {
            let name = if i == 0 { r.experiment.name.clone() } else { String::new() };
            verdicts.push([name, j.says.clone(), j.verdict.words().into()]);
            counts[j.verdict as usize] += 1;
        }
    }
    let total: usize = counts.iter().sum();
    let mut seen = BTreeSet::new();
    let records: Vec<&RunRecord> =
        results.iter().flat_map(|r| r.records()).filter(|r| seen.insert(r.key.clone())).collect();
    let minutes: f64 = records.iter().map(|r| r.origin.seconds * r.origin.threads as f64).sum::<f64>() / 60.0;
    let mut out = String::from("# What of the paper shows on a small machine\n\n");
    out.push_str(&fold(&format!(
        "Written by `evenkeel experiment --all --scale {}`; do not edit. Of {total} outcomes of the paper {} are seen under every \
         seed, {} in the mean over seeds only, {} are not seen{}. The models are a hundred to a thousand times smaller than the \
         paper's and see a thousandth of its tokens: an outcome that is not seen here is not refuted. How a verdict comes about, \
         and how to run the paper's own sizes: [Experiments](experiments.md).",
        scale.name(),
        counts[Verdict::Yes as usize],
        counts[Verdict::InTheMean as usize],
        counts[Verdict::No as usize],
        match counts[Verdict::NotRun as usize] {
            0 => String::new(),
            n => format!(", {n} have runs missing"),
        },
    )));
    out.push_str(&format!("\n{}\n", verdicts.to_markdown()));
    for origin in origins(records.iter().copied()) {
        out.push_str(&format!("- {origin}\n"));
    }
    out.push_str(&format!("- {} runs, {minutes:.0} minutes of one core in all\n", records.len()));
    for r in results {
        out.push_str(&format!("\n{}", r.markdown(scale, pictures)));
    }
    out
}

/// What the runs were made with, a line for each that differs.
fn origins<'r>(records: impl Iterator<Item = &'r RunRecord>) -> Vec<String> {
    let (mut made, mut data, mut seeds) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for r in records {
        let revision = r.origin.revision.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
        made.insert(format!("evenkeel {}{revision}, {}", r.origin.version, r.origin.machine));
        data.insert(r.origin.data.clone());
        seeds.extend(r.config.get("train").and_then(|t| t.get("seed")).and_then(toml::Value::as_integer));
    }
    let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join("; ");
    let seeds: BTreeSet<String> = seeds.iter().map(i64::to_string).collect();
    vec![
        format!("made with {}", list(made)),
        format!("seeds {}", list(seeds).replace("; ", ", ")),
        format!("data {}", list(data)),
    ]
}

fn command(e: &Experiment, scale: Scale) -> String {
    format!("evenkeel experiment {} --scale {}", e.name, scale.name())
}

/// Lines of at most 120 characters.
fn fold(text: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let n = word.chars().count();
        if length > 0 && length + 1 + n > 120 {
            out.push('\n');
            length = 0;
        } else if length > 0 {
            out.push(' ');
            length += 1;
        }
        out.push_str(word);
        length += n;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::library;

    #[test]
    fn pages_of_experiments_without_runs_say_so() {
        let experiments = library::all().unwrap();
        let records = crate::sweep::Records::default();
        let results: Vec<Result> = experiments
            .iter()
            .map(|e| {
                let sweep = e.sweep(Scale::Small, &[]).unwrap();
                let groups = crate::sweep::groups(&sweep.cells, &records);
                Result::new(e, groups).unwrap()
            })
            .collect();
        let page = reproduction(&results, Scale::Small, "img");
        assert!(page.contains("| not run |") && !page.contains("| yes |"), "{page}");
        assert!(results[0].page(Scale::Small).contains("not run"));
        assert!(page.lines().filter(|l| !l.starts_with('|')).all(|l| l.chars().count() <= 130));
    }
}
