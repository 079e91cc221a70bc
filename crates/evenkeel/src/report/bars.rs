//! A grouped bar chart as SVG, with bars lying on their side: the names of groups can then be
//! long without being turned or cut, on a narrow screen too. Each value is written at the end of
//! its bar, for bars from zero rarely show a difference of a per cent. The first bar of a group
//! is outlined and the others filled, so that greyscale tells them apart.

use super::chart::{EDGE, LINE, SIZE, sane};
use super::palette::Colour;
use super::scale::{Axis, Ends, Scale};
use super::svg::{Anchor, Canvas, Target, ellipsize, px, text_width, wrap};

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is, for the legend.
    pub name: String,
    /// Its length; nothing is drawn where it is undefined, not finite or negative.
    pub value: Option<f64>,
    /// Text at its end, usually the value as written in the table.
    pub label: String,
}

/// Bars that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct BarGroup {
    /// Text above the bars.
    pub name: String,
    /// Colour of all its bars.
    pub colour: Colour,
    /// The bars, from the top.
    pub bars: Vec<Bar>,
}

/// A grouped bar chart from zero.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    /// Name of the axis with its unit.
    pub x_label: String,
    /// The groups, from the top.
    pub groups: Vec<BarGroup>,
    /// Width of the figure in pixels; below 120 it is taken as 120.
    pub width: f64,
}

const BAR: f64 = 13.0;

impl BarChart {
    /// The chart as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let bars = || self.groups.iter().flat_map(|g| &g.bars);
        let values = bars().filter_map(|b| b.value).chain([0.0]);
        let labels = bars().map(|b| text_width(&b.label, SIZE));
        let room = (labels.fold(0.0, f64::max) + 8.0).min(width * 0.45);
        // Group names stand in a column of their own where the width allows, above otherwise.
        let names = self.groups.iter().map(|g| text_width(&g.name, SIZE));
        let widest = names.fold(0.0, f64::max);
        let beside = widest + 12.0 < width * 0.3;
        let left = if beside { EDGE + widest + 12.0 } else { EDGE };
        let plot = (width - left - EDGE - room).max(40.0);
        let axis = Axis::fit(Scale::Linear, values, (plot / 80.0) as usize, Ends::Round);
        let across = |value: f64| Some(left + axis.position(value)? * plot);

        let mut c = Canvas::new();
        let mut at = self.legend(&mut c, width);
        let top = at;
        let mut marks = Canvas::new();
        at += 4.0;
        for group in &self.groups {
            at += 6.0;
            if beside {
                let middle = at + group.bars.len() as f64 * (BAR + 2.0) / 2.0 + 3.0;
                marks.text("t", (left - 12.0, middle), Anchor::End, &group.name);
            } else {
                let name = ellipsize(&group.name, SIZE, width - 2.0 * EDGE);
                marks.text("t", (left, at + 11.0), Anchor::Start, &name);
                at += LINE;
            }
            for (i, bar) in group.bars.iter().enumerate() {
                let drawn = bar.value.filter(|v| *v >= 0.0).and_then(across);
                if let Some(end) = drawn {
                    marks.raw(&bar_markup(group.colour, i, left, at, end - left));
                }
                let from = drawn.unwrap_or(left) + 6.0;
                let label = ellipsize(&bar.label, SIZE, (width - from).max(SIZE));
                marks.text("t", (from, at + BAR - 2.5), Anchor::Start, &label);
                at += BAR + 2.0;
            }
            at += 6.0;
        }
        for tick in &axis.major {
            let Some(x) = across(tick.value) else {
                continue;
            };
            c.line("g", (x, top), (x, at));
            let half = text_width(&tick.label, SIZE) / 2.0;
            let x = x.clamp(half, (width - half).max(half));
            c.text("m", (x, at + 15.0), Anchor::Middle, &tick.label);
        }
        // The bars come after the grid, so as to lie on it.
        c.raw(&marks.into_body());
        c.line("x", (left, top), (left, at));
        let mut bottom = at + 20.0;
        for line in wrap(&self.x_label, SIZE, width - left - EDGE, 2) {
            c.text("m", (left, bottom + 12.0), Anchor::Start, &line);
            bottom += LINE;
        }
        let names: Vec<&str> = self.groups.iter().map(|g| g.name.as_str()).collect();
        let label = format!("Bar chart: {}, for {}", self.x_label, names.join("; "));
        c.finish(target, width, bottom + EDGE, &label)
    }

    /// What an outlined and what a filled bar is; returns where it ends.
    fn legend(&self, c: &mut Canvas, width: f64) -> f64 {
        let longest = self.groups.iter().max_by_key(|g| g.bars.len());
        let (mut x, mut y) = (EDGE, EDGE);
        let Some(group) = longest else {
            return y;
        };
        for (i, bar) in group.bars.iter().enumerate() {
            let name = ellipsize(&bar.name, SIZE, width - 2.0 * EDGE - 32.0);
            let wide = 32.0 + text_width(&name, SIZE);
            if x > EDGE && x + wide > width - EDGE {
                (x, y) = (EDGE, y + LINE);
            }
            // Grey stands for any group's colour.
            c.raw(&bar_markup(Colour::Hue(5), i, x, y + 2.0, 22.0));
            c.text("t", (x + 28.0, y + 12.0), Anchor::Start, &name);
            x += wide + 16.0;
        }
        y + LINE + 6.0
    }
}

fn bar_markup(colour: Colour, i: usize, x: f64, y: f64, length: f64) -> String {
    let light = &colour.hex()[0];
    let (class, fill) = if i == 0 { ("o", "#fff") } else { ("f", light.as_str()) };
    format!(
        "<rect class=\"{class}\" {} fill=\"{fill}\" stroke=\"{light}\" x=\"{}\" y=\"{}\" \
         width=\"{}\" height=\"{}\"/>",
        colour.style(),
        px(x),
        px(y + 1.0),
        px(length.max(0.0)),
        px(BAR - 2.0)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[Option<f64>], width: f64) -> BarChart {
        let bars = values.iter().map(|&value| Bar { name: "float".into(), value, label: "text".into() });
        BarChart {
            x_label: "perplexity".into(),
            groups: vec![BarGroup { name: "a <group>".into(), colour: Colour::Hue(0), bars: bars.collect() }],
            width,
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let svg = chart(&[Some(10.0), Some(5.0)], 500.0).render(Target::File);
        let widths: Vec<f64> = svg
            .split("<rect class=\"")
            .filter(|part| part.starts_with(['o', 'f']))
            .filter_map(|part| part.split(" width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        // Two samples in the legend, then two bars.
        assert_eq!(widths.len(), 4);
        assert!((widths[2] / widths[3] - 2.0).abs() < 0.01, "{widths:?}");
    }

    #[test]
    fn undefined_values_have_no_bar_and_names_are_escaped() {
        let values = [None, Some(f64::NAN), Some(f64::INFINITY), Some(-1.0)];
        for width in [f64::NAN, 1.0, 380.0, 880.0] {
            let svg = chart(&values, width).render(Target::File);
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
            assert!(!svg.contains("<group>"));
            let bars = svg.matches("<rect class=\"o\"").count();
            assert_eq!(bars, 1, "only the legend's sample");
        }
        let none = BarChart { x_label: String::new(), groups: Vec::new(), width: 300.0 };
        assert!(none.render(Target::Page).starts_with("<svg"));
    }
}
