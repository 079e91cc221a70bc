//! A heat map as SVG: rows of cells whose colour is a value, with a legend of the colours.
//!
//! Where there are more columns than can be told apart, or than a page should carry, neighbours are pooled by
//! their maximum, so that a single large value is never lost. Values are quantised to `LEVELS` colours; of
//! equal neighbours in a row one line is drawn, and all lines of a colour are one path in units of cells,
//! which costs about six bytes a line. What an axis cannot show (undefined, or not positive on a logarithmic
//! one) is left blank.

use super::chart::{EDGE, LINE, SIZE, sane};
use super::html::NARROW;
use super::palette::Colour;
use super::panel::{Frame, fit_x};
use super::scale::{Axis, Ends, Scale, Tick};
use super::svg::{Anchor, Canvas, Target, ellipsize, px, text_width, wrap};
use super::ticks::{Mark, thin, ticked};

/// Colours of the map.
const LEVELS: usize = 24;
/// Columns on wide and on narrow screens.
const COLUMNS: [usize; 2] = [512, 160];
/// Cells on wide and on narrow screens: beyond these a map has fewer columns.
const CELLS: [usize; 2] = [20_000, 6_000];
/// Longest bar of the legend, in pixels.
pub(super) const BAR: f64 = 320.0;

/// A row of cells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeatRow {
    /// Text to its left; rows of many are labelled at round numbers only.
    pub label: String,
    /// The number in the label; a row without one is labelled first.
    pub number: Option<usize>,
    /// Values from the left, `None` where undefined.
    pub values: Vec<Option<f64>>,
}

/// What the columns are.
#[derive(Clone, Debug, PartialEq)]
pub enum Columns {
    /// Numbered from 0, and pooled where there are many.
    Numbered,
    /// Named one by one, and never pooled.
    Named(Vec<String>),
    /// At these ascending numbers, such as training steps: labelled at round ones, and pooled where there are many.
    At(Vec<f64>),
}

/// A heat map.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// From the top.
    pub rows: Vec<HeatRow>,
    /// What the columns are.
    pub columns: Columns,
    /// Name of the columns, below them.
    pub x_label: String,
    /// Name of the values with their unit, at the legend.
    pub value_label: String,
    /// How values are laid along the colours.
    pub scale: Scale,
    /// Values that the colours must reach besides the data's.
    pub reach: Vec<f64>,
    /// Width of the figure in pixels; below 120 it is taken as 120.
    pub width: f64,
}

/// How many neighbours of `columns` share a column on a figure of `width` pixels and `rows` rows.
pub(super) fn pooled(columns: usize, rows: usize, width: f64) -> usize {
    let screen = usize::from(width <= NARROW);
    let most = COLUMNS[screen].min(CELLS[screen] / rows.max(1)).max(1);
    columns.div_ceil(most).max(1)
}

impl HeatMap {
    /// The map as an SVG document, or as an element for a page.
    pub fn render(&self, target: Target) -> String {
        let width = sane(self.width, 120.0);
        let colours = self.colours();
        let mut c = Canvas::new();
        let mut top = self.draw(&mut c, (0.0, EDGE), width, &colours);
        for line in wrap(&self.value_label, SIZE, width - 2.0 * EDGE, 2) {
            c.text("m", (EDGE, top + 11.0), Anchor::Start, &line);
            top += LINE;
        }
        let bottom = legend(&mut c, &colours, EDGE, top + 4.0, (width - 2.0 * EDGE - 20.0).min(BAR));
        let label = format!("Heat map: {} against {}", self.value_label, self.x_label);
        c.finish(target, width, bottom + EDGE, &label)
    }

    /// The values of the colours, fitted to the map.
    fn colours(&self) -> Axis {
        let values = self.rows.iter().flat_map(|row| row.values.iter().flatten());
        Axis::fit(self.scale, values.chain(&self.reach).copied(), 6, Ends::Tight)
    }

    /// Cells and labels, without the legend, `width` pixels wide from `at`; returns where they end.
    pub(super) fn draw(&self, c: &mut Canvas, at: (f64, f64), width: f64, colours: &Axis) -> f64 {
        let count = self.rows.iter().map(|row| row.values.len()).max().unwrap_or(0);
        let group = match self.columns {
            Columns::Numbered | Columns::At(_) => pooled(count, self.rows.len(), width),
            Columns::Named(_) => 1,
        };
        let labels = self.rows.iter().map(|row| text_width(&row.label, SIZE));
        let room = labels.fold(0.0, f64::max).min(width * 0.3);
        let row_height = (300.0 / self.rows.len().max(1) as f64).clamp(3.0, 18.0);
        let left = EDGE + room + 8.0;
        let frame = Frame {
            x: at.0 + left,
            y: at.1,
            w: (width - left - EDGE - 10.0).max(40.0),
            h: row_height * self.rows.len().max(3) as f64,
        };
        if count == 0 {
            let middle = (frame.x + frame.w / 2.0, frame.y + frame.h / 2.0);
            c.text("m", middle, Anchor::Middle, "no data");
        } else {
            let columns = count as f64 / group as f64;
            let scale = (frame.w / columns, row_height);
            c.raw(&cells(&self.levels(colours, group), columns, (frame.x, frame.y), scale));
        }
        outline(c, frame);
        self.row_labels(c, frame, row_height, room);
        self.column_labels(c, frame, count, (at.0, at.0 + width))
    }

    /// The colour of every cell, neighbours of a group pooled by their maximum.
    fn levels(&self, colours: &Axis, group: usize) -> Vec<Vec<Option<usize>>> {
        let level = |values: &[Option<f64>]| {
            let shown = values.iter().flatten().filter_map(|&v| colours.position(v));
            shown.reduce(f64::max).map(|at| ((at * LEVELS as f64) as usize).min(LEVELS - 1))
        };
        self.rows.iter().map(|row| row.values.chunks(group).map(level).collect()).collect()
    }

    fn row_labels(&self, c: &mut Canvas, frame: Frame, row_height: f64, room: f64) {
        let middle = |i: usize| frame.y + (i as f64 + 0.5) * row_height;
        let mark = |(i, row): (usize, &HeatRow)| Mark { at: middle(i), half: 6.5, number: row.number };
        let marks: Vec<Mark> = self.rows.iter().enumerate().map(mark).collect();
        for i in thin(&marks) {
            let text = ellipsize(&self.rows[i].label, SIZE, room + 1e-6);
            // A label at the top of thin rows stays inside the figure.
            let at = (middle(i) + 4.0).max(EDGE + 8.0);
            c.text("m", (frame.x - 8.0, at), Anchor::End, &text);
        }
    }

    /// Ticks and name below the cells, between the sides of the figure; returns where they end.
    fn column_labels(&self, c: &mut Canvas, frame: Frame, count: usize, sides: (f64, f64)) -> f64 {
        let bottom = frame.y + frame.h;
        let inside = |at: f64, half: f64| at.clamp(sides.0 + half, (sides.1 - half).max(sides.0 + half));
        for (place, label) in self.ticks(frame.w, count) {
            let at = frame.x + (place + 0.5) / count.max(1) as f64 * frame.w;
            c.line("x", (at, bottom), (at, bottom + 4.5));
            let at = inside(at, text_width(&label, SIZE) / 2.0);
            c.text("m", (at, bottom + 17.0), Anchor::Middle, &label);
        }
        if self.x_label.is_empty() {
            return bottom + 22.0;
        }
        let label = ellipsize(&self.x_label, SIZE, sides.1 - sides.0 - 2.0 * EDGE);
        let centre = inside(frame.x + frame.w / 2.0, text_width(&label, SIZE) / 2.0);
        c.text("m", (centre, bottom + 35.0), Anchor::Middle, &label);
        bottom + 35.0 + LINE
    }

    /// Labels and the columns, as numbers from 0, under whose middle they stand.
    fn ticks(&self, width: f64, count: usize) -> Vec<(f64, String)> {
        let last = count.saturating_sub(1) as f64;
        let whole = |axis: Axis| {
            let ticks = axis.major.into_iter().filter(|t| t.value <= last && t.value.fract() == 0.0);
            ticks.map(|t| (t.value, t.label)).collect()
        };
        match &self.columns {
            Columns::Numbered => whole(fit_x(Scale::Linear, vec![0.0, last.max(1.0)], width)),
            Columns::Named(names) => {
                let ticks = names.iter().enumerate();
                let ticks: Vec<Tick> =
                    ticks.map(|(i, name)| Tick { value: i as f64, label: name.clone() }).collect();
                whole(ticked(&ticks, width))
            }
            Columns::At(places) => {
                let ends = [places.first(), places.last()];
                let ends: Vec<f64> = ends.into_iter().flatten().copied().collect();
                let axis = fit_x(Scale::Linear, ends, width);
                let labelled =
                    axis.major.into_iter().filter_map(|t| Some((between(places, t.value)?, t.label)));
                apart(labelled.filter(|(at, _)| *at <= last).collect(), width / count.max(1) as f64)
            }
        }
    }
}

/// Where a value lies among ascending ones, in units of their places; `None` outside.
fn between(places: &[f64], value: f64) -> Option<f64> {
    let after = places.partition_point(|p| *p < value);
    match (after.checked_sub(1).and_then(|i| places.get(i)), places.get(after)) {
        (_, Some(&at)) if at == value => Some(after as f64),
        (Some(before), Some(at)) => Some(after as f64 - (at - value) / (at - before)),
        _ => None,
    }
}

/// Labels that do not touch; places that are not evenly spaced may have pushed them together.
fn apart(labels: Vec<(f64, String)>, column: f64) -> Vec<(f64, String)> {
    let mut free = f64::NEG_INFINITY;
    let keep = |(at, label): &(f64, String)| {
        let half = text_width(label, SIZE) / 2.0;
        let clear = at * column - half > free;
        if clear {
            free = at * column + half + 8.0;
        }
        clear
    };
    labels.into_iter().filter(keep).collect()
}

/// One path for each colour that occurs. A cell is a line one unit long and one unit thick; the map is
/// `columns` units wide, of which the last may be a part.
fn cells(levels: &[Vec<Option<usize>>], columns: f64, at: (f64, f64), scale: (f64, f64)) -> String {
    let mut paths: Vec<String> = vec![String::new(); LEVELS];
    for (row, levels) in levels.iter().enumerate() {
        // Where the last line of each colour ended in this row.
        let mut ends: Vec<Option<usize>> = vec![None; LEVELS];
        let mut start = 0;
        for run in levels.chunk_by(|a, b| a == b) {
            let end = start + run.len();
            if let Some(level) = run[0] {
                let length = px((end as f64).min(columns) - start as f64);
                let path = &mut paths[level];
                path.push_str(&match ends[level] {
                    None => format!("M{start} {row}h{length}"),
                    Some(before) => format!("m{} 0h{length}", start - before),
                });
                ends[level] = Some(end);
            }
            start = end;
        }
    }
    let mut out = format!(
        "<g transform=\"translate({} {}) scale({:.4} {:.4})\">",
        px(at.0),
        px(at.1 + scale.1 / 2.0),
        scale.0,
        scale.1
    );
    for (level, d) in paths.iter().enumerate().filter(|(_, d)| !d.is_empty()) {
        let colour = Colour::Heat(level as f64 / (LEVELS - 1) as f64);
        let (style, light) = (colour.style(), &colour.hex()[0]);
        out.push_str(&format!("<path class=\"h\" {style} fill=\"none\" stroke=\"{light}\" d=\"{d}\"/>"));
    }
    out.push_str("</g>");
    out
}

/// The colours as a bar with their values; returns where it ends.
pub(super) fn legend(c: &mut Canvas, colours: &Axis, x: f64, y: f64, width: f64) -> f64 {
    let all: Vec<Option<usize>> = (0..LEVELS).map(Some).collect();
    c.raw(&cells(&[all], LEVELS as f64, (x, y), (width / LEVELS as f64, 12.0)));
    outline(c, Frame { x, y, w: width, h: 12.0 });
    let mut free = f64::NEG_INFINITY;
    for tick in &colours.major {
        let Some(at) = colours.position(tick.value).map(|share| x + share * width) else {
            continue;
        };
        c.line("x", (at, y + 12.0), (at, y + 16.0));
        let half = text_width(&tick.label, SIZE) / 2.0;
        let at = at.max(x + half);
        if at - half > free {
            c.text("m", (at, y + 28.0), Anchor::Middle, &tick.label);
            free = at + half + 6.0;
        }
    }
    y + 30.0
}

fn outline(c: &mut Canvas, frame: Frame) {
    c.raw(&format!(
        "<path class=\"x\" fill=\"none\" d=\"M{} {}h{}v{}h-{}Z\"/>",
        px(frame.x),
        px(frame.y),
        px(frame.w),
        px(frame.h),
        px(frame.w)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: Vec<Vec<Option<f64>>>, width: f64) -> HeatMap {
        let row = |(i, values)| HeatRow { label: format!("block {i}"), number: Some(i), values };
        HeatMap {
            rows: rows.into_iter().enumerate().map(row).collect(),
            columns: Columns::Numbered,
            x_label: "channel".into(),
            value_label: "size".into(),
            scale: Scale::Log,
            reach: vec![0.1, 10.0],
            width,
        }
    }

    /// Path data of the map alone, without the legend's.
    fn paths(svg: &str) -> Vec<&str> {
        let first = svg.split("<g transform").nth(1).unwrap().split("</g>").next().unwrap();
        first.split(" d=\"").skip(1).filter_map(|part| part.split('"').next()).collect()
    }

    #[test]
    fn equal_neighbours_are_one_line_and_gaps_stay_blank() {
        let row = vec![Some(1.0), Some(1.0), Some(10.0), None, Some(1.0), Some(f64::NAN), Some(0.0)];
        let svg = map(vec![row], 500.0).render(Target::File);
        assert_eq!(paths(&svg), ["M0 0h2m2 0h1", "M2 0h1"]);
    }

    #[test]
    fn a_single_large_channel_survives_pooling() {
        let mut row = vec![Some(1.0); 4096];
        row[1234] = Some(1000.0);
        let svg = map(vec![row], 880.0).render(Target::Page);
        // Eight channels share a column.
        assert_eq!(paths(&svg), ["M0 0h154m1 0h357", "M154 0h1"]);
        let mut part = vec![Some(1.0); 1025];
        part[1024] = Some(100.0);
        let svg = map(vec![part], 880.0).render(Target::Page);
        assert_eq!(paths(&svg), ["M0 0h341", "M341 0h0.7"]);
    }

    #[test]
    fn no_map_is_large_or_holds_what_is_no_number() {
        // The worst case: no two neighbours alike.
        let noise = |i: usize| Some(10f64.powf((i * 7919 % 1000) as f64 / 250.0 - 1.0));
        let rows: Vec<_> = (0..100).map(|r| (0..4096).map(|i| noise(i * 31 + r)).collect()).collect();
        assert!(map(rows.clone(), 880.0).render(Target::Page).len() < 150_000);
        assert!(map(rows, 380.0).render(Target::Page).len() < 50_000);
        for rows in [vec![], vec![vec![]], vec![vec![None]], vec![vec![Some(f64::INFINITY)], vec![]]] {
            for width in [f64::NAN, 1.0, 380.0, 880.0] {
                let svg = map(rows.clone(), width).render(Target::File);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn steps_are_labelled_where_they_are() {
        let mut steps = map(vec![vec![Some(1.0); 40]], 600.0);
        steps.columns = Columns::At((1..=40).map(|i| f64::from(i * 5)).collect());
        let svg = steps.render(Target::File);
        assert!(svg.contains(">100</text>") && svg.contains(">200</text>") && !svg.contains(">5</text>"));
        assert_eq!(between(&[5.0, 10.0, 20.0], 10.0), Some(1.0));
        assert_eq!(between(&[5.0, 10.0, 20.0], 15.0), Some(1.5));
        assert_eq!((between(&[5.0], 4.0), between(&[5.0], 6.0), between(&[], 6.0)), (None, None, None));
    }

    #[test]
    fn names_are_escaped_and_rows_thinned() {
        let mut named = map(vec![vec![Some(1.0)]; 60], 400.0);
        named.columns = Columns::Named(vec!["<script>".into()]);
        named.rows[0].label = "a<b".into();
        let svg = named.render(Target::Page);
        assert!(!svg.contains("<script>") && !svg.contains("a<b") && svg.contains("a&lt;b"));
        let labelled = svg.matches(">block ").count();
        assert!((5..25).contains(&labelled), "{labelled}");
    }
}
