//! Small multiples: several line charts in a grid that share their axes, so that a height means
//! the same in every panel and the eye can compare across. The idea and the name are Tufte's.
//!
//! All panels have the axes' names, ranges and scales in common; the y axis is labelled at the
//! left of each row, the legend (which is one for all, by name) stands below.

use super::chart::{EDGE, LINE, LineChart, SIZE, Series, sane};
use super::legend::draw_below;
use super::panel::{Frame, draw_panel, label_width};
use super::svg::{Anchor, Canvas, Target, ellipsize, text_width, wrap};

/// Charts in a grid with shared axes.
///
/// Of each panel the title and the series are used. Axis names, scales and `plot_height` are
/// those of the first panel; `width` and `legend` of the panels are not used.
#[derive(Clone, Debug, PartialEq)]
pub struct SmallMultiples {
    /// The panels, row by row.
    pub panels: Vec<LineChart>,
    /// Panels in a row; at least one.
    pub columns: usize,
    /// Width of the whole figure in pixels; below 120 it is taken as 120.
    pub width: f64,
}

impl SmallMultiples {
    /// The figure as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let Some(first) = self.panels.first() else {
            return LineChart { width, ..LineChart::default() }.render(target);
        };
        let height = sane(first.plot_height, 40.0);
        // One chart with every series fits the axes to all of them.
        let whole = LineChart {
            series: self.panels.iter().flat_map(|p| p.series.clone()).collect(),
            x_reach: self.panels.iter().flat_map(|p| p.x_reach.clone()).collect(),
            y_reach: self.panels.iter().flat_map(|p| p.y_reach.clone()).collect(),
            ..first.clone()
        };
        let y = whole.y_axis(height);
        let columns = self.columns.clamp(1, self.panels.len());
        let left = EDGE + label_width(&y) + 8.0;
        // Named ticks may stand at both ends of a panel.
        let gap = if first.x_ticks.is_empty() { 26.0 } else { 30.0 };
        let gaps = gap * (columns - 1) as f64;
        let panel = ((width - left - EDGE - 10.0 - gaps) / columns as f64).max(30.0);
        let x = whole.x_axis(panel - 8.0);

        let mut c = Canvas::new();
        let mut top = EDGE;
        for line in wrap(&first.y_label, SIZE, width - 2.0 * EDGE, 2) {
            c.text("m", (EDGE, top + 11.0), Anchor::Start, &line);
            top += LINE;
        }
        for row in self.panels.chunks(columns) {
            top += 8.0;
            // Into the gap beside it; beside the last one is only the edge.
            let room = |i: usize| if i + 1 < columns { panel + gap - 8.0 } else { panel + 4.0 };
            let titles: Vec<Vec<String>> =
                row.iter().enumerate().map(|(i, p)| wrap(&p.title, SIZE * 1.05, room(i), 3)).collect();
            let lines = titles.iter().map(Vec::len).max().unwrap_or(0);
            let plot_top = top + lines as f64 * LINE + 6.0;
            for (i, (chart, title)) in row.iter().zip(&titles).enumerate() {
                let frame = Frame { x: left + i as f64 * (panel + gap), y: plot_top, w: panel, h: height };
                // A shorter title stands at the bottom, by its plot.
                let skip = (lines - title.len()) as f64;
                for (k, line) in title.iter().enumerate() {
                    let at = top + (skip + k as f64) * LINE + 12.0;
                    c.text("b", (frame.x, at), Anchor::Start, line);
                }
                draw_panel(&mut c, frame, &x, &y, &chart.series, i == 0, width);
            }
            top = plot_top + height + 26.0;
        }
        if !first.x_label.is_empty() {
            let label = ellipsize(&first.x_label, SIZE, width - 2.0 * EDGE);
            let half = text_width(&label, SIZE) / 2.0;
            let centre = ((left + width - EDGE - 10.0) / 2.0).clamp(half, (width - half).max(half));
            c.text("m", (centre, top + 10.0), Anchor::Middle, &label);
            top += LINE + 2.0;
        }
        let shared = legend_of(&self.panels);
        let bottom = draw_below(&mut c, &shared, EDGE, top + 6.0, width - 2.0 * EDGE);
        c.finish(target, width, bottom + EDGE, &describe(first, &self.panels))
    }
}

/// The first series of each name, in order of appearance and without its points.
fn legend_of(panels: &[LineChart]) -> Vec<Series> {
    let mut shared: Vec<Series> = Vec::new();
    for series in panels.iter().flat_map(|p| &p.series) {
        if !shared.iter().any(|s| s.name == series.name) {
            shared.push(Series { points: Vec::new(), ..series.clone() });
        }
    }
    shared
}

fn describe(first: &LineChart, panels: &[LineChart]) -> String {
    let titles: Vec<&str> = panels.iter().map(|p| p.title.as_str()).collect();
    format!(
        "{} line charts with shared axes: {} against {}, for {}",
        panels.len(),
        first.y_label,
        first.x_label,
        titles.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(title: &str, peak: f64) -> LineChart {
        LineChart {
            title: title.into(),
            series: vec![Series::new("embed", 0, vec![(0.0, 0.0), (1.0, peak)])],
            plot_height: 100.0,
            ..LineChart::default()
        }
    }

    fn line_tops(svg: &str) -> Vec<f64> {
        svg.split("<path class=\"s\"")
            .skip(1)
            .filter_map(|part| part.split(" d=\"").nth(1)?.split('"').next())
            .filter(|d| !d.contains('H'))
            .filter_map(|d| d.split(' ').next_back()?.parse().ok())
            .collect()
    }

    #[test]
    fn a_height_means_the_same_in_every_panel() {
        let svg =
            SmallMultiples { panels: vec![panel("a", 10.0), panel("b", 5.0)], columns: 2, width: 600.0 }
                .render(Target::File);
        let tops = line_tops(&svg);
        assert_eq!(tops.len(), 2);
        // The lower peak stands half the plot's height below the higher one.
        assert!((tops[1] - tops[0] - 50.0).abs() < 0.2, "{tops:?}");
    }

    #[test]
    fn the_legend_names_each_series_once() {
        let svg = SmallMultiples {
            panels: vec![panel("a", 1.0), panel("b", 2.0), panel("c", 3.0)],
            columns: 2,
            width: 400.0,
        }
        .render(Target::Page);
        assert_eq!(svg.matches(">embed</text>").count(), 1);
    }

    #[test]
    fn no_panels_and_many_columns_do_no_harm() {
        let none = SmallMultiples { panels: Vec::new(), columns: 0, width: f64::NAN };
        assert!(none.render(Target::Page).contains("no data"));
        let many = SmallMultiples {
            panels: vec![LineChart {
                series: vec![Series::new("embed", 0, vec![(0.0, f64::NAN)])],
                ..panel("only", 1.0)
            }],
            columns: 99,
            width: 10.0,
        };
        let svg = many.render(Target::File);
        assert!(!svg.contains("NaN") && svg.contains("no data"));
    }
}
