//! Stacked bars as SVG, lying on their side: how a few totals are made of the same parts.
//!
//! A part keeps its colour and its place in every bar. So that greyscale tells them apart, parts are filled and
//! outlined in turn, and each carries its name where that fits; the legend below lists all of them in the order of
//! the bars.

use super::chart::{EDGE, LINE, SIZE, sane};
use super::palette::{Colour, HUE_COUNT};
use super::scale::{Axis, Ends, Scale};
use super::svg::{Anchor, Canvas, Target, ellipsize, px, text_width, wrap};

/// What a bar is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Short name, written on the bar.
    pub name: String,
    /// Text in the legend.
    pub label: String,
}

/// One total.
#[derive(Clone, Debug, PartialEq)]
pub struct StackedBar {
    /// Text before it.
    pub name: String,
    /// Text at its end, usually the total.
    pub label: String,
    /// The size of each part, in their order; what is not finite or not positive is left out.
    pub values: Vec<f64>,
}

/// Bars on a common axis from zero.
#[derive(Clone, Debug, PartialEq)]
pub struct StackedBars {
    /// Name of the axis with its unit.
    pub x_label: String,
    /// The parts, from the axis on.
    pub parts: Vec<Part>,
    /// The bars, from the top.
    pub bars: Vec<StackedBar>,
    /// Width of the figure in pixels; below 120 it is taken as 120.
    pub width: f64,
}

const BAR: f64 = 26.0;
const SAMPLE: f64 = 14.0;

impl StackedBar {
    fn shown(&self) -> impl Iterator<Item = (usize, f64)> {
        self.values.iter().copied().enumerate().filter(|(_, v)| v.is_finite() && *v > 0.0)
    }

    fn total(&self) -> f64 {
        self.shown().map(|(_, v)| v).sum()
    }
}

impl StackedBars {
    /// The chart as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let widest = |texts: &mut dyn Iterator<Item = &str>| {
            texts.map(|t| text_width(t, SIZE)).fold(0.0, f64::max).min(width * 0.25)
        };
        let left = EDGE + widest(&mut self.bars.iter().map(|b| b.name.as_str())) + 10.0;
        let right = widest(&mut self.bars.iter().map(|b| b.label.as_str())) + 10.0 + EDGE;
        let plot = (width - left - right).max(40.0);
        let totals = self.bars.iter().map(StackedBar::total).chain([0.0]);
        let axis = Axis::fit(Scale::Linear, totals, (plot / 80.0) as usize, Ends::Tight);
        let across = |value: f64| axis.position(value).map_or(left, |p| left + p * plot);

        let mut c = Canvas::new();
        let mut marks = Canvas::new();
        let top = EDGE;
        let mut at = top + 6.0;
        for bar in &self.bars {
            let middle = at + BAR / 2.0 + 4.0;
            marks.text("t", (left - 10.0, middle), Anchor::End, &ellipsize(&bar.name, SIZE, width * 0.25));
            let mut sum = 0.0;
            for (i, value) in bar.shown() {
                let (from, to) = (across(sum), across(sum + value));
                sum += value;
                marks.raw(&segment(i, from, at, to - from));
                let name = self.parts.get(i).map_or("", |p| p.name.as_str());
                if text_width(name, SIZE) + 8.0 <= to - from {
                    let class = if filled(i) { "v" } else { "t" };
                    marks.text(class, ((from + to) / 2.0, middle), Anchor::Middle, name);
                }
            }
            let label = ellipsize(&bar.label, SIZE, width * 0.25);
            marks.text("t", (across(sum) + 8.0, middle), Anchor::Start, &label);
            at += BAR + 8.0;
        }
        for tick in &axis.major {
            let x = across(tick.value);
            c.line("g", (x, top), (x, at));
            c.text("m", (x, at + 15.0), Anchor::Middle, &tick.label);
        }
        // The bars come after the grid, so as to lie on it.
        c.raw(&marks.into_body());
        c.line("x", (left, top), (left, at));
        at += 20.0;
        for line in wrap(&self.x_label, SIZE, width - 2.0 * EDGE, 2) {
            c.text("m", (EDGE, at + 12.0), Anchor::Start, &line);
            at += LINE;
        }
        at = self.legend(&mut c, width, at + 8.0);
        let names: Vec<&str> = self.bars.iter().map(|b| b.name.as_str()).collect();
        let label = format!("Stacked bars: {}, for {}", self.x_label, names.join("; "));
        c.finish(target, width, at + EDGE, &label)
    }

    /// Every part in rows; returns where they end.
    fn legend(&self, c: &mut Canvas, width: f64, top: f64) -> f64 {
        let (mut x, mut y) = (EDGE, top);
        for (i, part) in self.parts.iter().enumerate() {
            let label = ellipsize(&part.label, SIZE, width - 2.0 * EDGE - SAMPLE - 6.0);
            let wide = SAMPLE + 6.0 + text_width(&label, SIZE);
            if x > EDGE && x + wide > width - EDGE {
                (x, y) = (EDGE, y + LINE + 2.0);
            }
            c.raw(&rectangle(i, x, y + 2.0, SAMPLE, 12.0));
            c.text("t", (x + SAMPLE + 6.0, y + 12.0), Anchor::Start, &label);
            x += wide + 16.0;
        }
        y + LINE
    }
}

/// Every other part is filled; where the hues begin again, the other half.
fn filled(part: usize) -> bool {
    (part + part / HUE_COUNT).is_multiple_of(2)
}

/// A part of a bar, a little short of the next one so that the two are seen apart.
fn segment(part: usize, x: f64, y: f64, length: f64) -> String {
    rectangle(part, x + 0.6, y + 0.6, (length - 1.2).max(0.3), BAR - 1.2)
}

fn rectangle(part: usize, x: f64, y: f64, width: f64, height: f64) -> String {
    let colour = Colour::Hue(part);
    let light = &colour.hex()[0];
    let (class, fill) = if filled(part) { ("f", light.as_str()) } else { ("o", "#fff") };
    format!(
        "<rect class=\"{class}\" {} fill=\"{fill}\" stroke=\"{light}\" x=\"{}\" y=\"{}\" width=\"{}\" \
         height=\"{}\"/>",
        colour.style(),
        px(x),
        px(y),
        px(width),
        px(height)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[&[f64]], width: f64) -> StackedBars {
        let part = |name: &str| Part { name: name.into(), label: format!("{name} & more") };
        let bar = |values: &&[f64]| StackedBar {
            name: "<pass>".into(),
            label: "ms".into(),
            values: values.to_vec(),
        };
        StackedBars {
            x_label: "milliseconds".into(),
            parts: vec![part("linear"), part("norm"), part("head")],
            bars: values.iter().map(bar).collect(),
            width,
        }
    }

    /// (x, width) of every part of a bar, without the legend's samples.
    fn segments(svg: &str) -> Vec<(f64, f64)> {
        let number = |part: &str, key: &str| {
            part.split(&format!(" {key}=\"")).nth(1)?.split('"').next()?.parse::<f64>().ok()
        };
        svg.split("<rect class=\"")
            .filter(|part| part.starts_with(['o', 'f']))
            .filter(|part| number(part, "height") != Some(12.0))
            .filter_map(|part| Some((number(part, "x")?, number(part, "width")?)))
            .collect()
    }

    #[test]
    fn parts_follow_one_another_and_are_as_long_as_their_values() {
        let parts = segments(&chart(&[&[40.0, 20.0, 10.0]], 600.0).render(Target::File));
        assert_eq!(parts.len(), 3);
        assert!(((parts[0].1 + 1.2) / (parts[1].1 + 1.2) - 2.0).abs() < 0.01, "{parts:?}");
        for pair in parts.windows(2) {
            assert!((pair[0].0 + pair[0].1 + 1.2 - pair[1].0).abs() < 0.31, "{parts:?}");
        }
    }

    #[test]
    fn what_has_no_size_is_left_out_and_names_are_escaped() {
        let values: &[&[f64]] = &[&[f64::NAN, -1.0, 0.0], &[f64::INFINITY, 3.0]];
        for width in [f64::NAN, 1.0, 300.0, 880.0] {
            let svg = chart(values, width).render(Target::File);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<pass>"));
            assert_eq!(segments(&svg).len(), 1);
            assert!(svg.contains("linear &amp; more") || width < 300.0 || width.is_nan());
        }
        let none = StackedBars { x_label: String::new(), parts: Vec::new(), bars: Vec::new(), width: 300.0 };
        assert!(none.render(Target::Page).starts_with("<svg"));
    }
}
