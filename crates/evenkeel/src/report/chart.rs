//! A line chart as SVG.
//!
//! The text of a chart is laid out first (title, name of the y axis, tick labels, legend), and
//! the plot gets what is left, so nothing overlaps and nothing is cut off. The legend stands to
//! the right, each entry beside the end of its line, if the names are short for the width, and
//! in rows below otherwise; it never lies on the lines. A series is told from another by colour,
//! by dash pattern and by marker ([`Style`]).
//!
//! A point that an axis cannot show (not finite, or not positive on a logarithmic axis) breaks
//! the line and is never drawn. Where many points fall on one column of pixels only the first,
//! the lowest, the highest and the last are kept, which draws the same and keeps pages small.
//!
//! ```ignore
//! let chart = LineChart {
//!     x_label: "tokens".into(),
//!     y_label: "loss (nats per token)".into(),
//!     series: vec![Series::new("OP + SOAP", 0, points)],
//!     ..LineChart::default()
//! };
//! std::fs::write("loss.svg", chart.render(Target::File))?;
//! ```

use super::legend;
use super::palette::Style;
use super::panel::{Frame, draw_panel, fit_x, label_width};
use super::scale::{Axis, Ends, Scale, Tick};
use super::svg::{Anchor, Canvas, Target, ellipsize, text_width, wrap};
use super::ticks::ticked;

/// Font size of all text but titles, in pixels.
pub(super) const SIZE: f64 = 12.0;
/// Height of a line of text.
pub(super) const LINE: f64 = 16.0;
/// Height of an entry of a legend beside the plot.
pub(super) const LEGEND_LINE: f64 = LINE;
/// Distance to the edge of the figure.
pub(super) const EDGE: f64 = 6.0;
/// An (x, y) pair.
pub type Point = (f64, f64);

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draw {
    /// A line.
    #[default]
    Line,
    /// A line with a few markers along it, each on a point.
    MarkedLine,
    /// A marker at every point and no line.
    Markers,
    /// A thin, paler line: one of several of which another series is the mean.
    Thin,
}

/// A named sequence of points, drawn in the order given.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend; an empty name keeps it out of the legend.
    pub name: String,
    /// (x, y) in the units of the axes.
    pub points: Vec<Point>,
    /// Colour, dash and marker.
    pub style: Style,
    /// Line, markers or both.
    pub draw: Draw,
}

impl Series {
    /// A line in the `i`-th style of [`Style::nth`].
    pub fn new(name: impl Into<String>, i: usize, points: Vec<Point>) -> Self {
        Series { name: name.into(), points, style: Style::nth(i), draw: Draw::Line }
    }
}

/// Where the legend stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legend {
    /// To the right if that leaves the plot two thirds of the width, below otherwise.
    #[default]
    Auto,
    /// In rows below the plot.
    Below,
    /// None.
    Hidden,
}

/// A line chart. Fill in the fields and call [`LineChart::render`].
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Bold text above; may be empty.
    pub title: String,
    /// Name of the x axis with its unit, below it.
    pub x_label: String,
    /// Name of the y axis with its unit, above it and level, where it can be read.
    pub y_label: String,
    /// How x values are laid out.
    pub x_scale: Scale,
    /// How y values are laid out.
    pub y_scale: Scale,
    /// The lines; later ones lie on top.
    pub series: Vec<Series>,
    /// Width of the figure in pixels; below 120 it is taken as 120.
    pub width: f64,
    /// Height of the plot alone, without text, in pixels.
    pub plot_height: f64,
    /// Where the legend stands.
    pub legend: Legend,
    /// Labels of the x axis for things that have names (blocks, revisions), in place of round numbers: the axis
    /// goes from the first to the last, and as many are shown as have room.
    pub x_ticks: Vec<Tick>,
    /// Values that the x axis must reach besides the data's.
    pub x_reach: Vec<f64>,
    /// Values that the y axis must reach besides the data's.
    pub y_reach: Vec<f64>,
}

impl Default for LineChart {
    fn default() -> Self {
        LineChart {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            x_scale: Scale::Linear,
            y_scale: Scale::Linear,
            series: Vec::new(),
            width: 880.0,
            plot_height: 280.0,
            legend: Legend::Auto,
            x_ticks: Vec::new(),
            x_reach: Vec::new(),
            y_reach: Vec::new(),
        }
    }
}

impl LineChart {
    /// The chart as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let height = sane(self.plot_height, 40.0);
        let y = self.y_axis(height);
        let left = EDGE + label_width(&y) + 8.0;
        let side = match self.legend {
            Legend::Auto => legend::side_width(&self.series, width, height),
            Legend::Below | Legend::Hidden => None,
        };
        let right = side.map_or(EDGE + 10.0, |wide| wide + EDGE);
        let plot_width = (width - left - right).max(40.0);
        let x = self.x_axis(plot_width);

        let mut c = Canvas::new();
        let mut top = EDGE;
        for line in wrap(&self.title, SIZE * 1.1, width - 2.0 * EDGE, 2) {
            c.text("b", (EDGE, top + 12.0), Anchor::Start, &line);
            top += LINE + 2.0;
        }
        for line in wrap(&self.y_label, SIZE, width - 2.0 * EDGE, 2) {
            c.text("m", (EDGE, top + 11.0), Anchor::Start, &line);
            top += LINE;
        }
        top += 8.0;
        let frame = Frame { x: left, y: top, w: plot_width, h: height };
        draw_panel(&mut c, frame, &x, &y, &self.series, true, width);
        let mut bottom = top + height + 24.0;
        if !self.x_label.is_empty() {
            let label = ellipsize(&self.x_label, SIZE, width - 2.0 * EDGE);
            let half = text_width(&label, SIZE) / 2.0;
            let centre = (left + plot_width / 2.0).clamp(half, (width - half).max(half));
            c.text("m", (centre, bottom + 11.0), Anchor::Middle, &label);
            bottom += LINE + 2.0;
        }
        if side.is_some() {
            legend::draw_beside(&mut c, frame, &x, &y, &self.series);
        } else if self.legend != Legend::Hidden {
            bottom = legend::draw_below(&mut c, &self.series, EDGE, bottom + 6.0, width - 2.0 * EDGE);
        }
        c.finish(target, width, bottom + EDGE, &self.description())
    }

    /// The y axis fitted to the series, for a plot `height` pixels high.
    pub(super) fn y_axis(&self, height: f64) -> Axis {
        let values = self.series.iter().flat_map(|s| {
            let seen = s.points.iter().filter(|p| self.x_scale.admits(p.0));
            seen.map(|p| p.1)
        });
        let ticks = (height / 45.0) as usize;
        let reach = self.y_reach.iter().copied();
        Axis::fit(self.y_scale, values.chain(reach), ticks, Ends::Round)
    }

    /// The x axis for a plot `width` pixels wide.
    pub(super) fn x_axis(&self, width: f64) -> Axis {
        if self.x_ticks.is_empty() {
            fit_x(self.x_scale, self.x_values(), width)
        } else {
            ticked(&self.x_ticks, width)
        }
    }

    /// x of every point whose y can be shown.
    fn x_values(&self) -> Vec<f64> {
        let points = self.series.iter().flat_map(|s| &s.points);
        let seen = points.filter(|p| self.y_scale.admits(p.1)).map(|p| p.0);
        seen.chain(self.x_reach.iter().copied()).collect()
    }

    /// What the chart shows, in words, for those who cannot see it.
    fn description(&self) -> String {
        let names: Vec<&str> = legend::named(&self.series).map(|s| s.name.as_str()).collect();
        let mut text = String::from("Line chart");
        for part in [&self.title, &self.y_label] {
            if !part.is_empty() {
                text.push_str(": ");
                text.push_str(part);
            }
        }
        if !self.x_label.is_empty() {
            text.push_str(&format!(" against {}", self.x_label));
        }
        if !names.is_empty() {
            text.push_str(&format!(", for {}", names.join("; ")));
        }
        text
    }
}

/// A size that is finite and at least `least`.
pub(super) fn sane(value: f64, least: f64) -> f64 {
    if value.is_finite() { value.clamp(least, 1e5) } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(points: Vec<Point>) -> LineChart {
        LineChart { series: vec![Series::new("a", 0, points)], ..LineChart::default() }
    }

    /// Path data of the lines alone, without the legend's samples.
    fn lines(svg: &str) -> Vec<&str> {
        svg.split("<path class=\"s\"")
            .skip(1)
            .filter_map(|part| part.split(" d=\"").nth(1)?.split('"').next())
            .filter(|d| !d.contains('H'))
            .collect()
    }

    #[test]
    fn a_point_that_cannot_be_shown_breaks_the_line() {
        let svg =
            chart(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 2.0), (4.0, 1.0)]).render(Target::File);
        let d = lines(&svg);
        assert_eq!(d.len(), 1);
        assert_eq!(d[0].matches('M').count(), 2, "{}", d[0]);
        assert_eq!(d[0].matches('L').count(), 2, "{}", d[0]);
    }

    #[test]
    fn a_log_axis_leaves_out_zero_and_less() {
        let mut log = chart(vec![(0.0, 0.0), (1.0, 1.0), (2.0, 10.0), (3.0, -5.0)]);
        log.y_scale = Scale::Log;
        let svg = log.render(Target::File);
        assert_eq!(lines(&svg)[0].matches(['M', 'L']).count(), 2);
    }

    #[test]
    fn no_point_and_one_point_are_drawn_without_a_line() {
        let none = chart(Vec::new()).render(Target::File);
        assert!(none.contains("no data"));
        let one = chart(vec![(1.0, 1.0)]).render(Target::File);
        assert!(lines(&one).is_empty() && one.contains("class=\"p\""));
        assert!(LineChart::default().render(Target::Page).contains("no data"));
    }

    #[test]
    fn names_and_labels_are_escaped() {
        let mut evil = chart(vec![(0.0, 1.0), (1.0, 2.0)]);
        evil.title = "</svg><script>".into();
        evil.series[0].name = "a<b & \"c\"".into();
        evil.x_label = "x<y".into();
        let svg = evil.render(Target::Page);
        assert!(!svg.contains("<script>") && !svg.contains("a<b") && !svg.contains("x<y"));
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;"));
    }

    #[test]
    fn thousands_of_points_are_thinned_and_keep_their_extremes() {
        let mut points: Vec<Point> = (0..50_000).map(|i| (f64::from(i), 1.0)).collect();
        points[31_415].1 = 9.0;
        let svg = chart(points).render(Target::Page);
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        let heights: Vec<f64> =
            lines(&svg)[0].split(['M', 'L']).filter_map(|p| p.split(' ').nth(1)?.parse().ok()).collect();
        let peak = heights.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(heights.iter().filter(|h| **h == peak).count() == 1);
    }

    proptest! {
        #[test]
        fn no_chart_contains_a_number_that_is_none(
            points in proptest::collection::vec(
                (proptest::num::f64::ANY, proptest::num::f64::ANY), 0..30),
            x_log in any::<bool>(),
            y_log in any::<bool>(),
            width in prop_oneof![Just(f64::NAN), -5.0..2000.0f64],
        ) {
            let of = |log| if log { Scale::Log } else { Scale::Linear };
            let mut any = chart(points);
            (any.x_scale, any.y_scale, any.width) = (of(x_log), of(y_log), width);
            any.series[0].draw = Draw::MarkedLine;
            let svg = any.render(Target::File);
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
