//! Figures over seeds: mean and standard error.

use super::figure::Figure;
use super::record::RunRecord;
use super::{Cell, Records};
use crate::report::table::{Align, Table};
use serde::Serialize;

/// A mean over runs that differ in their seed only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean; infinite if one of the values is.
    pub mean: f64,
    /// Standard error of it: the standard deviation (n - 1) over √n; `None` for one value.
    pub standard_error: Option<f64>,
    /// Values.
    pub count: usize,
}

impl Estimate {
    /// Of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let error = (squares / (n as f64 - 1.0) / n as f64).sqrt();
        Some(Self { mean, standard_error: Some(error).filter(|e| n > 1 && e.is_finite()), count: n })
    }

    /// "mean ± standard error", as the figure is written.
    pub fn write(&self, figure: &Figure) -> String {
        match self.standard_error {
            Some(error) => {
                let error = figure.write(error);
                format!("{} ± {}", figure.write(self.mean), error.trim_start_matches('+'))
            }
            None => figure.write(self.mean),
        }
    }
}

/// The runs of one group of settings, in the order of their seeds.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// What they have in common.
    pub name: String,
    /// Each run's seed, and its record if there is one.
    pub runs: Vec<(u64, Option<&'a RunRecord>)>,
}

impl Group<'_> {
    /// A figure of every run that has it, by seed.
    pub fn values(&self, figure: &Figure) -> Vec<(u64, f64)> {
        self.runs.iter().filter_map(|(seed, record)| Some((*seed, figure.of((*record)?)?))).collect()
    }

    /// Mean and standard error of a figure.
    pub fn estimate(&self, figure: &Figure) -> Option<Estimate> {
        let values: Vec<f64> = self.values(figure).into_iter().map(|v| v.1).collect();
        Estimate::of(&values)
    }

    /// The records that there are.
    pub fn records(&self) -> impl Iterator<Item = &RunRecord> {
        self.runs.iter().filter_map(|r| r.1)
    }
}

/// Groups in the order of the cells.
pub fn groups<'a>(cells: &[Cell], records: &'a Records) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    for cell in cells {
        let run = (cell.config.train.seed, records.get(&cell.key));
        match groups.iter_mut().find(|g| g.name == cell.group) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { name: cell.group.clone(), runs: vec![run] }),
        }
    }
    groups
}

/// A row per group, a column per figure that any run has.
pub fn table(groups: &[Group], figures: &[Figure]) -> Table {
    let known: Vec<&Figure> =
        figures.iter().filter(|f| groups.iter().any(|g| g.estimate(f).is_some())).collect();
    let mut columns = vec![("settings", Align::Left), ("runs", Align::Right)];
    columns.extend(known.iter().map(|f| (f.name(), Align::Right)));
    let mut table = Table::new(&columns);
    for group in groups {
        let done = group.records().count();
        let runs = match done == group.runs.len() {
            true => done.to_string(),
            false => format!("{done} of {}", group.runs.len()),
        };
        let mut row = vec![group.name.clone(), runs];
        row.extend(known.iter().map(|f| group.estimate(f).map_or("–".into(), |e| e.write(f))));
        table.push(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_standard_error() {
        let e = Estimate::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((e.mean, e.count), (2.0, 3));
        assert!((e.standard_error.unwrap() - 1.0 / 3.0f64.sqrt()).abs() < 1e-15);
        assert_eq!(Estimate::of(&[5.0]).unwrap().standard_error, None);
        assert_eq!(Estimate::of(&[]), None);
        let infinite = Estimate::of(&[1.0, f64::INFINITY]).unwrap();
        assert_eq!((infinite.mean, infinite.standard_error), (f64::INFINITY, None));
        let loss = Figure::parse("val_loss").unwrap();
        assert_eq!(e.write(&loss), "2.000 ± 0.577");
        assert_eq!(infinite.write(&loss), "diverged");
        let cost = Figure::parse("w8a8_cost").unwrap();
        assert_eq!(Estimate::of(&[0.01, 0.03]).unwrap().write(&cost), "+2.00% ± 1.00%");
    }

    #[test]
    fn figures_that_no_run_has_get_no_column() {
        let record = crate::sweep::figure::tests::record();
        let groups = [
            Group { name: "a".into(), runs: vec![(0, Some(&record)), (1, None)] },
            Group { name: "b".into(), runs: vec![(0, None)] },
        ];
        let figures: Vec<Figure> =
            ["val_loss", "accuracy", "kurtosis_peak"].map(|f| Figure::parse(f).unwrap()).into();
        let table = table(&groups, &figures);
        assert_eq!(table.header, ["settings", "runs", "val_loss", "kurtosis_peak"]);
        assert_eq!(table.rows[0], ["a", "1 of 2", "2.000", "5.00"]);
        assert_eq!(table.rows[1], ["b", "0 of 1", "–", "–"]);
    }
}
