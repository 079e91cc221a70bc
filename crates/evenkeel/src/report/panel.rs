//! The plot of a line chart: grid, ticks, lines and markers inside one rectangle. Charts and small
//! multiples lay out their text and then draw their plots with this.

use super::chart::{Draw, Point, SIZE, Series};
use super::palette::Style;
use super::scale::{Axis, Ends, Scale};
use super::svg::{Anchor, Canvas, px, text_width};

/// Markers along a line.
const MARKERS: f64 = 5.0;

/// Width of the widest tick label.
pub(super) fn label_width(axis: &Axis) -> f64 {
    let widths = axis.major.iter().map(|t| text_width(&t.label, SIZE));
    widths.fold(0.0, f64::max)
}

/// An x axis with as many labels as fit beside each other on `width` pixels.
pub(super) fn fit_x(scale: Scale, values: Vec<f64>, width: f64) -> Axis {
    // Two labels say little about an axis: start with four, also where the plot is narrow.
    let mut ticks = ((width / 56.0) as usize).max(4);
    loop {
        let axis = Axis::fit(scale, values.iter().copied(), ticks, Ends::Tight);
        let mut free = f64::NEG_INFINITY;
        let fits = axis.major.iter().all(|tick| {
            let half = text_width(&tick.label, SIZE) / 2.0;
            let at = axis.position(tick.value).unwrap_or(0.0) * width;
            let clear = at - half > free;
            free = at + half + 8.0;
            clear
        });
        if fits || ticks <= 2 {
            return axis;
        }
        ticks -= 1;
    }
}

/// The rectangle in which the lines are drawn, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

impl Frame {
    /// The pixel of a point, if both axes can show it.
    pub(super) fn place(&self, x: &Axis, y: &Axis, point: Point) -> Option<Point> {
        let (at_x, at_y) = (x.position(point.0)?, y.position(point.1)?);
        Some((self.x + at_x * self.w, self.y + (1.0 - at_y) * self.h))
    }
}

/// Grid, ticks and lines of one plot. `figure_width` keeps tick labels inside the figure.
pub(super) fn draw_panel(
    c: &mut Canvas,
    frame: Frame,
    x: &Axis,
    y: &Axis,
    series: &[Series],
    y_labels: bool,
    figure_width: f64,
) {
    let (right, bottom) = (frame.x + frame.w, frame.y + frame.h);
    let level = |v: f64| y.position(v).map(|at| bottom - at * frame.h);
    let across = |v: f64| x.position(v).map(|at| frame.x + at * frame.w);
    for at in y.minor.iter().filter_map(|&v| level(v)) {
        c.line("n", (frame.x, at), (right, at));
    }
    for tick in &y.major {
        let Some(at) = level(tick.value) else {
            continue;
        };
        c.line("g", (frame.x, at), (right, at));
        if y_labels {
            c.text("m", (frame.x - 8.0, at + 4.0), Anchor::End, &tick.label);
        }
    }
    c.line("x", (frame.x, bottom), (right, bottom));
    for at in x.minor.iter().filter_map(|&v| across(v)) {
        c.line("x", (at, bottom), (at, bottom + 2.5));
    }
    for tick in &x.major {
        let Some(at) = across(tick.value) else {
            continue;
        };
        c.line("x", (at, bottom), (at, bottom + 4.5));
        let half = text_width(&tick.label, SIZE) / 2.0;
        let at = at.clamp(half, (figure_width - half).max(half));
        c.text("m", (at, bottom + 17.0), Anchor::Middle, &tick.label);
    }
    let mut drawn = false;
    for (i, series_i) in series.iter().enumerate() {
        let share = (i as f64 + 0.5) / series.len() as f64;
        drawn |= draw_series(c, frame, x, y, series_i, share);
    }
    if !drawn {
        let middle = (frame.x + frame.w / 2.0, frame.y + frame.h / 2.0);
        c.text("m", middle, Anchor::Middle, "no data");
    }
}

/// One series; `share` in 0..1 shifts its markers against those of the others. Returns whether
/// there was anything to draw.
fn draw_series(c: &mut Canvas, frame: Frame, x: &Axis, y: &Axis, series: &Series, share: f64) -> bool {
    let mut pieces: Vec<Vec<Point>> = vec![Vec::new()];
    for &point in &series.points {
        match (frame.place(x, y, point), pieces.last_mut()) {
            (Some(at), Some(piece)) => piece.push(at),
            (None, Some(piece)) if !piece.is_empty() => pieces.push(Vec::new()),
            _ => {}
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    let all: Vec<Point> = pieces.iter().flatten().copied().collect();
    let marked: Vec<Point> = match series.draw {
        Draw::Markers => all,
        // A point between two gaps has no line to show it.
        Draw::Line | Draw::MarkedLine | Draw::Thin => {
            let single = pieces.iter().filter(|p| p.len() == 1);
            let mut marked: Vec<Point> = single.map(|p| p[0]).collect();
            if series.draw == Draw::MarkedLine {
                marked.extend(along(&all, frame, share));
            }
            let mut d = String::new();
            for piece in pieces.iter().filter(|p| p.len() > 1) {
                for (i, (px_x, px_y)) in thin(piece).into_iter().enumerate() {
                    d.push(if i == 0 { 'M' } else { 'L' });
                    d.push_str(&format!("{} {}", px(px_x), px(px_y)));
                }
            }
            if !d.is_empty() {
                draw_line(c, line_class(series.draw), series.style, &d);
            }
            marked
        }
    };
    // A single point of a thin line is as little to be dwelt on as the line.
    for at in marked.into_iter().filter(|_| series.draw != Draw::Thin) {
        draw_marker(c, series.style, at);
    }
    !pieces.is_empty()
}

/// Points on which markers are set: the nearest to a few places evenly along the width.
fn along(all: &[Point], frame: Frame, share: f64) -> Vec<Point> {
    let mut out: Vec<Point> = Vec::new();
    for k in 0..MARKERS as usize {
        let target = frame.x + frame.w * (k as f64 + share) / MARKERS;
        let nearest = all.iter().min_by(|a, b| (a.0 - target).abs().total_cmp(&(b.0 - target).abs()));
        if let Some(&at) = nearest
            && !out.contains(&at)
        {
            out.push(at);
        }
    }
    out
}

/// Keeps the first, lowest, highest and last point of every run that shares a column of pixels.
fn thin(piece: &[Point]) -> Vec<Point> {
    let mut out = Vec::new();
    for run in piece.chunk_by(|a, b| a.0.round() == b.0.round()) {
        if run.len() <= 4 {
            out.extend_from_slice(run);
            continue;
        }
        let (mut low, mut high) = (0, 0);
        for (i, point) in run.iter().enumerate() {
            if point.1 < run[low].1 {
                low = i;
            }
            if point.1 > run[high].1 {
                high = i;
            }
        }
        let mut keep = [0, low.min(high), low.max(high), run.len() - 1].to_vec();
        keep.dedup();
        out.extend(keep.into_iter().map(|i| run[i]));
    }
    out
}

/// The class of the style sheet for a line.
pub(super) fn line_class(draw: Draw) -> &'static str {
    if draw == Draw::Thin { "i" } else { "s" }
}

/// A line along path data made of [`px`] numbers.
pub(super) fn draw_line(c: &mut Canvas, class: &str, style: Style, d: &str) {
    c.raw(&format!(
        "<path class=\"{class}\" {} fill=\"none\" stroke=\"{}\"{} d=\"{d}\"/>",
        style.colour.style(),
        style.colour.hex()[0],
        style.dash.attribute()
    ));
}

/// A hollow marker.
pub(super) fn draw_marker(c: &mut Canvas, style: Style, at: Point) {
    c.raw(&format!(
        "<path class=\"p\" {} fill=\"#fff\" stroke=\"{}\" d=\"{}\"/>",
        style.colour.style(),
        style.colour.hex()[0],
        style.marker.path(at.0, at.1, 3.2)
    ));
}
