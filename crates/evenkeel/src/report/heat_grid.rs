//! Heat maps in a grid that share their colours, so that a colour means the same in every panel: one run beside another.
//!
//! The name of the columns, the legend of the colours and their scale are those of the first map and stand once, at the bottom.

use super::chart::{EDGE, LINE, LineChart, SIZE, sane};
use super::heat::{BAR, HeatMap, legend};
use super::scale::{Axis, Ends};
use super::svg::{Anchor, Canvas, Target, ellipsize, wrap};

/// Distance between panels, in pixels.
const GAP: f64 = 10.0;

/// Titled heat maps in a grid.
///
/// Of each map the rows, the columns and `reach` are used; labels and scale are those of the first, and `width` is not used.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatGrid {
    /// Title and map of each panel, row by row. A title may be empty.
    pub panels: Vec<(String, HeatMap)>,
    /// Panels in a row; at least one.
    pub columns: usize,
    /// Width of the whole figure in pixels; below 120 it is taken as 120.
    pub width: f64,
}

impl HeatGrid {
    /// The figure as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let Some((_, first)) = self.panels.first() else {
            return LineChart { width, ..LineChart::default() }.render(target);
        };
        let values = self.panels.iter().flat_map(|(_, map)| {
            map.rows.iter().flat_map(|row| row.values.iter().flatten()).chain(&map.reach).copied()
        });
        let colours = Axis::fit(first.scale, values, 6, Ends::Tight);
        let columns = self.columns.clamp(1, self.panels.len());
        let panel = ((width - GAP * (columns - 1) as f64) / columns as f64).max(60.0);

        let mut c = Canvas::new();
        let mut top = EDGE;
        for row in self.panels.chunks(columns) {
            let titles: Vec<Vec<String>> =
                row.iter().map(|p| wrap(&p.0, SIZE * 1.05, panel - 2.0 * EDGE, 3)).collect();
            let lines = titles.iter().map(Vec::len).max().unwrap_or(0);
            let mut bottom = top;
            for (i, ((_, map), title)) in row.iter().zip(&titles).enumerate() {
                let left = i as f64 * (panel + GAP);
                // A shorter title stands at the bottom, by its map.
                let skip = lines - title.len();
                for (k, line) in title.iter().enumerate() {
                    let at = top + (skip + k) as f64 * LINE + 12.0;
                    c.text("b", (left + EDGE, at), Anchor::Start, line);
                }
                let map = HeatMap { x_label: String::new(), ..map.clone() };
                let below = if lines > 0 { top + lines as f64 * LINE + 4.0 } else { top };
                bottom = map.draw(&mut c, (left, below), panel, &colours).max(bottom);
            }
            top = bottom + 6.0;
        }
        if !first.x_label.is_empty() {
            let label = ellipsize(&first.x_label, SIZE, width - 2.0 * EDGE);
            c.text("m", (width / 2.0, top + 8.0), Anchor::Middle, &label);
            top += LINE + 4.0;
        }
        for line in wrap(&first.value_label, SIZE, width - 2.0 * EDGE, 2) {
            c.text("m", (EDGE, top + 11.0), Anchor::Start, &line);
            top += LINE;
        }
        let bottom = legend(&mut c, &colours, EDGE, top + 4.0, (width - 2.0 * EDGE - 20.0).min(BAR));
        let titles: Vec<&str> = self.panels.iter().map(|p| p.0.as_str()).filter(|t| !t.is_empty()).collect();
        let mut label = format!("Heat map: {} against {}", first.value_label, first.x_label);
        if !titles.is_empty() {
            label.push_str(&format!(", for {}", titles.join("; ")));
        }
        c.finish(target, width, bottom + EDGE, &label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heat::{Columns, HeatRow};
    use crate::report::scale::Scale;

    fn map(value: f64) -> HeatMap {
        HeatMap {
            rows: vec![HeatRow {
                label: "block 0".into(),
                number: Some(0),
                values: vec![Some(1.0), Some(value)],
            }],
            columns: Columns::At(vec![10.0, 20.0]),
            x_label: "step".into(),
            value_label: "kurtosis".into(),
            scale: Scale::Log,
            reach: Vec::new(),
            width: f64::NAN,
        }
    }

    #[test]
    fn a_colour_means_the_same_in_every_panel() {
        let grid = HeatGrid {
            panels: vec![("a<b".into(), map(100.0)), ("c".into(), map(10.0))],
            columns: 2,
            width: 700.0,
        };
        let svg = grid.render(Target::File);
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b") && !svg.contains("NaN"));
        // The second map's 10 is halfway, not at the end, and its 1 is the first colour as in the first map.
        let groups: Vec<&str> = svg.split("<g transform").skip(1).collect();
        let colours = |group: &str| -> Vec<String> {
            let part = group.split("</g>").next().unwrap();
            part.split("stroke=\"").skip(1).map(|s| s[..7].to_string()).collect()
        };
        assert_eq!(colours(groups[0])[0], colours(groups[1])[0]);
        assert_ne!(colours(groups[0])[1], colours(groups[1])[1]);
    }

    #[test]
    fn nothing_and_narrow_do_no_harm() {
        let none = HeatGrid { panels: Vec::new(), columns: 0, width: 1.0 };
        assert!(none.render(Target::Page).contains("no data"));
        let empty = HeatMap { rows: Vec::new(), columns: Columns::At(Vec::new()), ..map(1.0) };
        let many = HeatGrid { panels: vec![(String::new(), empty); 3], columns: 9, width: 1.0 };
        let svg = many.render(Target::File);
        assert!(svg.contains("no data") && !svg.contains("NaN"));
    }
}
