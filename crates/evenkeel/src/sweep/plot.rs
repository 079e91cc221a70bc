//! The pictures of an experiment and of a sweep: curves over training, figures by layer, one figure against another.

use super::figure::{curve, number};
use super::{Figure, Group, SweepError};
use crate::metrics::Metrics;
use crate::report::table::{Align, Table};
use crate::report::{Block, Draw, Figure as Picture, LineChart, Scale, Series, Style, Target};
use serde::Deserialize;

/// What is drawn.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a plot is { curve = METRIC }, { layers = FIGURE } or { x = FIGURE, y = FIGURE }"
)]
pub enum Plot {
    /// A metric over training, mean over the residual stream and over seeds; `"train_loss"` too.
    Curve {
        /// Its name.
        curve: String,
    },
    /// A figure at each residual site, from the embedding to the last block.
    Layers {
        /// Its name.
        layers: String,
    },
    /// A marker per run.
    Points {
        /// The figure to the right.
        x: String,
        /// The figure upwards.
        y: String,
    },
}

/// Points of a group: (x, y).
type Line = (String, Vec<(f64, f64)>);

impl Plot {
    /// Whether its figures exist.
    ///
    /// # Errors
    /// [`SweepError::Figure`] that names one which does not.
    pub fn check(&self) -> Result<(), SweepError> {
        match self {
            Plot::Curve { curve } if Metrics::is_known(curve) || curve == "train_loss" => Ok(()),
            Plot::Curve { curve } => Err(SweepError::Figure { name: curve.clone() }),
            Plot::Layers { layers } => Figure::parse(layers).map(|_| ()),
            Plot::Points { x, y } => Figure::parse(x).and_then(|_| Figure::parse(y)).map(|_| ()),
        }
    }

    /// What it shows, in words.
    pub fn caption(&self) -> String {
        match self {
            Plot::Curve { curve } if curve == "train_loss" => "Training loss, mean over seeds.".into(),
            Plot::Curve { curve } => {
                format!("`{curve}` over training, mean over the residual stream and over seeds.")
            }
            Plot::Layers { layers } => {
                format!("`{layers}` of what enters the first block and of what leaves each, mean over seeds.")
            }
            Plot::Points { x, y } => format!("`{y}` against `{x}`, a marker per run."),
        }
    }

    /// The chart; `None` if no run has its figures.
    pub fn chart(&self, groups: &[Group]) -> Option<LineChart> {
        let lines = self.lines(groups);
        if lines.iter().all(|l| l.1.is_empty()) {
            return None;
        }
        let (x_floor, y_floor) = self.floors();
        let (x_label, y_label) = self.labels();
        let draw = match self {
            Plot::Curve { .. } => Draw::Line,
            Plot::Layers { .. } => Draw::MarkedLine,
            Plot::Points { .. } => Draw::Markers,
        };
        let above = |name: &str, floor: f64| match floor > 0.0 {
            true => format!("{name} − {floor}"),
            false => name.to_string(),
        };
        let log = |name: &str| ["kurtosis", "mmr", "rms", "max_abs"].iter().any(|m| name.starts_with(m));
        let scale = |name: &str| if log(name) { Scale::Log } else { Scale::Linear };
        let series = lines.into_iter().enumerate().map(|(i, (name, points))| Series {
            name,
            points: points.into_iter().map(|(x, y)| (x - x_floor, y - y_floor)).collect(),
            style: Style::nth(i),
            draw,
        });
        Some(LineChart {
            y_scale: scale(&y_label),
            x_scale: match self {
                Plot::Points { .. } => scale(&x_label),
                _ => Scale::Linear,
            },
            x_label: above(&x_label, x_floor),
            y_label: above(&y_label, y_floor),
            series: series.collect(),
            plot_height: 260.0,
            ..LineChart::default()
        })
    }

    /// The chart with its caption and its numbers.
    pub fn block(&self, groups: &[Group]) -> Option<Block> {
        let chart = self.chart(groups)?;
        let table = self.table(groups);
        let draw = |width: f64| LineChart { width, ..chart.clone() }.render(Target::Page);
        Some(Block::Figure(Picture::new(self.caption(), draw).with_table(table)))
    }

    fn floors(&self) -> (f64, f64) {
        let floor = |name: &str| Figure::parse(name).map_or(0.0, |f| f.floor());
        match self {
            Plot::Curve { curve } => (0.0, floor(curve)),
            Plot::Layers { layers } => (0.0, floor(layers)),
            Plot::Points { x, y } => (floor(x), floor(y)),
        }
    }

    fn labels(&self) -> (String, String) {
        match self {
            Plot::Curve { curve } => ("step".into(), curve.clone()),
            Plot::Layers { layers } => ("block (0 is the embedding)".into(), layers.clone()),
            Plot::Points { x, y } => (x.clone(), y.clone()),
        }
    }

    fn lines(&self, groups: &[Group]) -> Vec<Line> {
        groups.iter().map(|g| (g.name.clone(), self.line(g))).collect()
    }

    fn line(&self, group: &Group) -> Vec<(f64, f64)> {
        match self {
            Plot::Curve { curve: metric } => {
                let curves = group.records().filter_map(|record| match metric.as_str() {
                    "train_loss" => {
                        let steps = record.curves.steps.iter().map(|s| *s as f64);
                        let known = steps.zip(&record.curves.train_loss);
                        Some(known.filter_map(|(s, l)| Some((s, (*l)?))).collect())
                    }
                    metric => curve(record, metric, None),
                });
                mean_curve(&curves.collect::<Vec<_>>())
            }
            Plot::Layers { layers } => {
                let mut points = Vec::new();
                for (i, site) in residual_sites(group).iter().enumerate() {
                    let at = Figure::parse(&format!("{layers}@{site}"));
                    if let Some(e) = at.ok().and_then(|f| group.estimate(&f)) {
                        points.push((i as f64, e.mean));
                    }
                }
                points
            }
            Plot::Points { x, y } => match (Figure::parse(x), Figure::parse(y)) {
                (Ok(x), Ok(y)) => group.records().filter_map(|r| Some((x.of(r)?, y.of(r)?))).collect(),
                _ => Vec::new(),
            },
        }
    }

    /// The numbers behind the chart, at no more than nine places.
    fn table(&self, groups: &[Group]) -> Table {
        let lines = self.lines(groups);
        if let Plot::Points { x, y } = self {
            let mut table = Table::new(&[("settings", Align::Left), (x, Align::Right), (y, Align::Right)]);
            for (name, points) in lines {
                for (x, y) in points {
                    table.push([name.clone(), number(x), number(y)]);
                }
            }
            return table;
        }
        let longest = lines.iter().map(|l| &l.1).max_by_key(|p| p.len()).cloned().unwrap_or_default();
        let n = longest.len();
        let places: Vec<f64> = match n <= 9 {
            true => longest.iter().map(|p| p.0).collect(),
            false => (0..9).map(|i| longest[i * (n - 1) / 8].0).collect(),
        };
        let mut columns = vec![("settings".to_string(), Align::Left)];
        columns.extend(places.iter().map(|x| (format!("{x}"), Align::Right)));
        let columns: Vec<(&str, Align)> = columns.iter().map(|c| (c.0.as_str(), c.1)).collect();
        let mut table = Table::new(&columns);
        for (name, points) in lines {
            let at = |x: &f64| points.iter().find(|p| p.0 == *x).map_or("–".into(), |p| number(p.1));
            table.push(std::iter::once(name).chain(places.iter().map(at)).collect::<Vec<_>>());
        }
        table
    }
}

/// Mean at the steps that every curve has.
fn mean_curve(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let Some(first) = curves.first() else { return Vec::new() };
    let at = |step: f64| {
        let values = curves.iter().map(|c| c.iter().find(|p| p.0 == step).map(|p| p.1));
        values.collect::<Option<Vec<f64>>>().map(|v| v.iter().sum::<f64>() / v.len() as f64)
    };
    first.iter().filter_map(|p| Some((p.0, at(p.0)?))).collect()
}

/// `embed` and every block's, in order of depth.
fn residual_sites(group: &Group) -> Vec<String> {
    let mut sites: Vec<String> = group
        .records()
        .flat_map(|r| r.curves.sites.get("kurtosis").into_iter().flat_map(|s| s.keys().cloned()))
        .collect();
    let depth = |site: &String| {
        site.split('.').nth(1).and_then(|n| n.parse::<usize>().ok()).map_or(0, |layer| layer + 1)
    };
    sites.sort_by_key(|site| (depth(site), site.clone()));
    sites.dedup();
    sites
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::figure::tests::record;

    #[test]
    fn every_kind_is_drawn_and_has_its_numbers() {
        let record = record();
        let groups = [Group { name: "A".into(), runs: vec![(0, Some(&record)), (1, Some(&record))] }];
        let plots = [
            Plot::Curve { curve: "kurtosis".into() },
            Plot::Curve { curve: "train_loss".into() },
            Plot::Layers { layers: "kurtosis_peak".into() },
            Plot::Points { x: "kurtosis".into(), y: "w8a8_cost".into() },
        ];
        let rows =
            [vec!["A", "1.50", "5.00", "1.00"], vec!["A", "3.00", "2.00", "1.50"], vec!["A", "2.00", "8.00"]];
        for (plot, row) in plots.iter().zip(&rows) {
            plot.check().unwrap();
            assert_eq!(plot.table(&groups).rows[0], *row, "{plot:?}");
            assert!(plot.chart(&groups).unwrap().render(Target::File).contains("<svg"));
        }
        assert_eq!(plots[3].table(&groups).rows.len(), 2);
        assert!(plots[0].chart(&[]).is_none());
        assert!(Plot::Curve { curve: "val_loss".into() }.check().is_err());
        let parsed: Vec<Plot> =
            toml::from_str::<toml::Table>("p = [{ curve = \"mmr\" }, { x = \"mmr\", y = \"rms\" }]").unwrap()
                ["p"]
                .clone()
                .try_into()
                .unwrap();
        assert_eq!(parsed[0], Plot::Curve { curve: "mmr".into() });
    }
}
