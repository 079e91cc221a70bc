//! The page of a sweep: its table over seeds, and its pictures.

use super::{Figure, Group, Plot, summary};
use crate::report::{Block, LineChart, Page, ReportError, Section, Target, write_file};
use serde_json::json;
use std::path::Path;

/// A sweep's runs, ready to be shown.
pub struct SweepPage<'a> {
    /// What is asked.
    pub title: &'a str,
    /// Its runs.
    pub groups: &'a [Group<'a>],
    /// Columns of the table.
    pub figures: &'a [Figure],
}

impl SweepPage<'_> {
    /// Kurtosis and loss over training, and one against the other.
    fn plots() -> [Plot; 4] {
        [
            Plot::Curve { curve: "train_loss".into() },
            Plot::Curve { curve: "kurtosis".into() },
            Plot::Layers { layers: "kurtosis_peak".into() },
            Plot::Points { x: "kurtosis_peak".into(), y: "val_loss".into() },
        ]
    }

    /// The page.
    pub fn html(&self) -> String {
        let caption = "Mean ± standard error over seeds.";
        let table = summary::table(self.groups, self.figures);
        let figures = Self::plots().iter().filter_map(|p| p.block(self.groups)).collect();
        let sections = vec![
            Section { title: "Results".into(), blocks: vec![Block::Table(table, caption.into())] },
            Section { title: "Figures".into(), blocks: figures },
        ];
        Page { title: self.title.to_string(), lead: Vec::new(), sections }.render()
    }

    /// A group with every figure's mean, standard error, and the values by seed.
    pub fn json(&self) -> serde_json::Value {
        let figure = |group: &Group, figure: &Figure| {
            let by_seed: Vec<_> =
                group.values(figure).iter().map(|(s, v)| json!({"seed": s, "value": v})).collect();
            let mut value = json!(group.estimate(figure));
            if let Some(value) = value.as_object_mut() {
                value.insert("values".into(), json!(by_seed));
            }
            (figure.name().to_string(), value)
        };
        let groups = self.groups.iter().map(|g| {
            let figures: serde_json::Map<_, _> = self.figures.iter().map(|f| figure(g, f)).collect();
            let runs: Vec<_> =
                g.runs.iter().map(|(s, r)| json!({"seed": s, "key": r.map(|r| &r.key)})).collect();
            json!({"settings": g.name, "runs": runs, "figures": figures})
        });
        json!({"schema": 1, "title": self.title, "groups": groups.collect::<Vec<_>>()})
    }

    /// Writes `index.html`, `summary.json`, `summary.md` and the pictures into a folder that exists.
    ///
    /// # Errors
    /// [`ReportError::Write`] if it cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let names = ["train_loss", "kurtosis", "layers", "loss-kurtosis"];
        for (plot, name) in Self::plots().iter().zip(names) {
            if let Some(chart) = plot.chart(self.groups) {
                let chart = LineChart { width: 760.0, ..chart };
                write_file(&folder.join(format!("{name}.svg")), &chart.render(Target::File))?;
            }
        }
        write_file(&folder.join("summary.json"), &format!("{:#}\n", self.json()))?;
        write_file(&folder.join("summary.md"), &summary::table(self.groups, self.figures).to_markdown())?;
        write_file(&folder.join("index.html"), &self.html())
    }
}
