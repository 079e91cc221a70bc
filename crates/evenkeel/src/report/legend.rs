//! Legends of line charts: entries with a sample of line and marker, either beside the ends of the
//! lines or in rows below the plot. Both stand outside the plot, so they never lie on a line.

use super::chart::{Draw, LINE, Point, SIZE, Series};
use super::panel::{Frame, draw_line, draw_marker, line_class};
use super::scale::Axis;
use super::svg::{Anchor, Canvas, ellipsize, escape, px, text_width};

/// Width of a legend entry's sample of line and marker.
const SAMPLE: f64 = 26.0;
/// Room between the plot and a legend to its right.
const LEAD: f64 = 16.0;

/// The series that have an entry.
pub(super) fn named(series: &[Series]) -> impl Iterator<Item = &Series> {
    series.iter().filter(|s| !s.name.is_empty())
}

/// Width of a legend to the right of a plot `height` pixels high, if it fits into a third of
/// `width`.
pub(super) fn side_width(series: &[Series], width: f64, height: f64) -> Option<f64> {
    let (mut count, mut widest) = (0, 0.0f64);
    for series in named(series) {
        count += 1;
        widest = widest.max(text_width(&series.name, SIZE));
    }
    let wide = LEAD + SAMPLE + 6.0 + widest;
    (count > 0 && wide <= width / 3.0 && f64::from(count) * LINE <= height).then_some(wide)
}

/// Entries to the right of the plot, each as near to the end of its line as the others let it.
pub(super) fn draw_beside(c: &mut Canvas, frame: Frame, x: &Axis, y: &Axis, series: &[Series]) {
    let mut entries: Vec<_> =
        named(series).map(|s| (s.points.iter().rev().find_map(|&p| frame.place(x, y, p)), s)).collect();
    // A series without points has its entry at the bottom.
    let height = |end: Option<Point>| end.map_or(frame.y + frame.h, |e| e.1);
    // Stable, so that lines that end together keep their order.
    entries.sort_by(|a, b| height(a.0).total_cmp(&height(b.0)));
    let mut at: Vec<f64> = entries.iter().map(|e| height(e.0)).collect();
    spread(&mut at, frame.y + 4.0, frame.y + frame.h - 4.0, LINE);
    let from = frame.x + frame.w;
    for ((end, series), at) in entries.into_iter().zip(at) {
        // Only a line that reaches the edge of the plot can be led on to its name.
        if let Some(end) = end.filter(|end| end.0 > from - 3.0) {
            c.raw(&format!(
                "<path class=\"e\" {} fill=\"none\" stroke=\"{}\" d=\"M{} {}L{} {}\"/>",
                series.style.colour.style(),
                series.style.colour.hex()[0],
                px(end.0 + 2.0),
                px(end.1),
                px(from + LEAD - 2.0),
                px(at)
            ));
        }
        draw_entry(c, series, from + LEAD, at, &series.name);
    }
}

/// Moves ascending positions apart to at least `gap`, within `lo` to `hi` if they fit there.
fn spread(at: &mut [f64], lo: f64, hi: f64, gap: f64) {
    let mut least = lo;
    for y in at.iter_mut() {
        *y = y.max(least);
        least = *y + gap;
    }
    let mut most = hi;
    for y in at.iter_mut().rev() {
        *y = y.min(most);
        most = *y - gap;
    }
}

/// A legend entry: a sample of the line and its marker, then the name.
fn draw_entry(c: &mut Canvas, series: &Series, x: f64, y: f64, name: &str) {
    let style = series.style;
    if series.draw != Draw::Markers {
        let d = format!("M{} {}H{}", px(x), px(y), px(x + SAMPLE));
        draw_line(c, line_class(series.draw), style, &d);
    }
    if matches!(series.draw, Draw::MarkedLine | Draw::Markers) {
        draw_marker(c, style, (x + SAMPLE / 2.0, y));
    }
    let cut = name != series.name;
    if cut {
        c.raw(&format!("<g><title>{}</title>", escape(&series.name)));
    }
    c.text("t", (x + SAMPLE + 6.0, y + 4.0), Anchor::Start, name);
    if cut {
        c.raw("</g>");
    }
}

/// Entries in columns of equal width below `top`; returns where they end.
pub(super) fn draw_below(c: &mut Canvas, series: &[Series], left: f64, top: f64, width: f64) -> f64 {
    let names = named(series).map(|s| text_width(&s.name, SIZE));
    let widest = names.fold(0.0, f64::max);
    let count = named(series).count();
    if count == 0 {
        return top;
    }
    let cell = (SAMPLE + 6.0 + widest + 20.0).min(width);
    let fit = ((width + 20.0) / cell) as usize;
    // Rows as even as can be: seven entries where six fit are four and three.
    let rows = count.div_ceil(fit.max(1));
    let columns = count.div_ceil(rows);
    for (i, entry) in named(series).enumerate() {
        let x = left + (i % columns) as f64 * cell;
        let y = top + LINE * 0.5 + (i / columns) as f64 * (LINE + 2.0);
        let name = ellipsize(&entry.name, SIZE, (width - SAMPLE - 6.0).max(SIZE));
        draw_entry(c, entry, x, y, &name);
    }
    top + rows as f64 * (LINE + 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_at_the_side_keep_their_distance() {
        let mut at = [50.0, 50.0, 51.0, 99.0];
        spread(&mut at, 0.0, 100.0, 16.0);
        assert!(at.windows(2).all(|w| w[1] - w[0] >= 16.0), "{at:?}");
        assert!(at[3] <= 100.0);
    }
}
