//! How one series is told from another: a colour, a dash pattern and a marker, each on its own
//! enough in a small figure, so that a figure survives greyscale print and colour blindness.
//!
//! The hues are those of Okabe and Ito's palette for colour-blind readers, darkened for a light
//! ground and lightened for a dark one until every line has a contrast of at least 3 : 1 to its
//! ground (the bound for graphics in WCAG 2.2, criterion 1.4.11; a test holds it). Ordered
//! series, such as the layers of a network, use a ramp whose lightness rises steadily, after the
//! idea of matplotlib's plasma map.
//!
//! Every drawn element carries both its colours as the custom properties `--ek-l` and `--ek-d`;
//! the style sheet of [`chart_css`] picks one by `prefers-color-scheme`. On paper it is always
//! the light one. The light colour is repeated as a plain attribute for viewers that know
//! nothing of custom properties.

use super::svg::px;

/// The grounds the colours are made for: light and dark.
pub const GROUND: [&str; 2] = ["#ffffff", "#14181d"];

/// Light-ground and dark-ground colour of each hue.
const HUES: [[&str; 2]; 6] = [
    ["#0072b2", "#5bb4ec"], // blue
    ["#c85200", "#f58d4f"], // vermilion
    ["#00805c", "#3cc79a"], // bluish green
    ["#a8417e", "#e79ac8"], // reddish purple
    ["#8a6a00", "#e3c04b"], // yellow, as ochre where the ground is light
    ["#4c5560", "#b6bec8"], // grey
];

/// How many hues there are before they begin again.
pub(super) const HUE_COUNT: usize = HUES.len();

/// Stops of the ramp, first to last, for light and dark grounds.
const RAMP: [[[u8; 3]; 3]; 2] =
    [[[30, 20, 105], [156, 30, 145], [230, 100, 50]], [[135, 110, 250], [238, 110, 160], [250, 225, 135]]];

/// Stops of the map for cells, from the lowest to the highest. It starts near the ground and ends far from
/// it, so that what is large stands out on both; in between lightness changes in one direction only.
const HEAT: [[[u8; 3]; 4]; 2] = [
    [[246, 240, 226], [240, 160, 92], [176, 42, 108], [38, 10, 78]],
    [[32, 33, 58], [134, 38, 112], [236, 112, 62], [253, 241, 178]],
];

/// A colour by what it stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colour {
    /// One of six hues, for things that have no order; larger numbers start again.
    Hue(usize),
    /// A place on the ramp, for things that have one: 0 is the first, 1 the last.
    Ramp(f64),
    /// A value shown by the colour of a cell: 0 is the lowest, 1 the highest.
    Heat(f64),
}

impl Colour {
    /// `#rrggbb` on a light and on a dark ground.
    pub fn hex(self) -> [String; 2] {
        match self {
            Colour::Hue(i) => HUES[i % HUES.len()].map(String::from),
            Colour::Ramp(t) => RAMP.map(|stops| mixed(&stops, t)),
            Colour::Heat(t) => HEAT.map(|stops| mixed(&stops, t)),
        }
    }

    /// The `style` attribute that gives an element both its colours.
    pub(super) fn style(self) -> String {
        let [light, dark] = self.hex();
        format!("style=\"--ek-l:{light};--ek-d:{dark}\"")
    }
}

/// The colour at `t` in 0..1 along evenly spaced stops.
fn mixed(stops: &[[u8; 3]], t: f64) -> String {
    // Not `clamp` alone: it passes NaN on.
    let t = if t.is_finite() { t.clamp(0.0, 1.0) } else { 0.0 };
    let pairs: Vec<_> = stops.windows(2).collect();
    let along = t * pairs.len() as f64;
    let i = (along as usize).min(pairs.len() - 1);
    let mix = |channel: usize| {
        let (a, b) = (f64::from(pairs[i][0][channel]), f64::from(pairs[i][1][channel]));
        (a + (b - a) * (along - i as f64)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

/// A dash pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dash {
    /// Unbroken.
    Solid,
    /// Even dashes.
    Dashed,
    /// Dots.
    Dotted,
    /// A dash and a dot.
    DashDot,
    /// Long dashes.
    Long,
    /// A dash and two dots.
    DashDotDot,
}

impl Dash {
    /// The `i`-th pattern; after six they start again.
    pub fn nth(i: usize) -> Self {
        const ALL: [Dash; 6] =
            [Dash::Solid, Dash::Dashed, Dash::Dotted, Dash::DashDot, Dash::Long, Dash::DashDotDot];
        ALL[i % ALL.len()]
    }

    /// The `stroke-dasharray` attribute with a space before it, or nothing.
    pub(super) fn attribute(self) -> &'static str {
        match self {
            Dash::Solid => "",
            Dash::Dashed => " stroke-dasharray=\"6 3\"",
            Dash::Dotted => " stroke-dasharray=\"2 2.5\"",
            Dash::DashDot => " stroke-dasharray=\"7 2.5 2 2.5\"",
            Dash::Long => " stroke-dasharray=\"11 3\"",
            Dash::DashDotDot => " stroke-dasharray=\"8 2.5 2 2.5 2 2.5\"",
        }
    }
}

/// The shape of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A circle.
    Circle,
    /// A square on its side.
    Square,
    /// A triangle, point up.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// A triangle, point down.
    Wedge,
    /// A diagonal cross.
    Cross,
}

impl Marker {
    /// The `i`-th shape; after six they start again.
    pub fn nth(i: usize) -> Self {
        const ALL: [Marker; 6] =
            [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Wedge, Marker::Cross];
        ALL[i % ALL.len()]
    }

    /// Path data of the shape around a point; `r` is about its radius in pixels.
    pub(super) fn path(self, x: f64, y: f64, r: f64) -> String {
        let polygon = |corners: &[(f64, f64)]| {
            let mut d = String::new();
            for (i, (dx, dy)) in corners.iter().enumerate() {
                d.push(if i == 0 { 'M' } else { 'L' });
                d.push_str(&format!("{} {}", px(x + dx * r), px(y + dy * r)));
            }
            d.push('Z');
            d
        };
        match self {
            Marker::Circle => {
                let (left, r2, rr) = (px(x - r), px(2.0 * r), px(r));
                format!("M{left} {}a{rr} {rr} 0 1 0 {r2} 0a{rr} {rr} 0 1 0 -{r2} 0Z", px(y))
            }
            Marker::Square => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            Marker::Triangle => polygon(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
            Marker::Diamond => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            Marker::Wedge => polygon(&[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)]),
            Marker::Cross => format!(
                "M{} {}L{} {}M{} {}L{} {}",
                px(x - r),
                px(y - r),
                px(x + r),
                px(y + r),
                px(x - r),
                px(y + r),
                px(x + r),
                px(y - r)
            ),
        }
    }
}

/// Everything that tells one series from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Colour of line and marker.
    pub colour: Colour,
    /// Dash pattern of the line.
    pub dash: Dash,
    /// Shape of the markers.
    pub marker: Marker,
}

impl Style {
    /// The `i`-th of a sequence in which all three differ from one to the next. 36 are distinct.
    pub fn nth(i: usize) -> Self {
        // After one round of six the dashes are shifted against the hues, so pairs stay distinct.
        Style { colour: Colour::Hue(i), dash: Dash::nth(i + i / 6), marker: Marker::nth(i + i / 6) }
    }

    /// The `i`-th of `count` ordered series: a place on the ramp, and a dash and marker besides.
    pub fn ordered(i: usize, count: usize) -> Self {
        let place = if count > 1 { i as f64 / (count - 1) as f64 } else { 0.0 };
        Style { colour: Colour::Ramp(place), dash: Dash::nth(i), marker: Marker::nth(i) }
    }
}

/// The style sheet of every chart. Classes: `t` text, `m` muted text, `b` bold text, `g` grid line, `n` minor
/// grid line, `x` axis line, `s` a series' line, `i` a thin one, `e` the thin line to its label, `p` a marker, `f` a filled
/// bar, `o` an outlined bar, `k` the ground, `v` text on a filled bar, `h` cells of a heat map.
pub fn chart_css() -> &'static str {
    ".ek{--ek-ink:#1c2128;--ek-muted:#59636e;--ek-grid:#e3e6ea;--ek-minor:#f3f5f7;\
--ek-axis:#8b949e;--ek-ground:#ffffff;display:block;width:100%;height:auto;\
font-family:system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;\
font-size:12px}\
.ek text{fill:var(--ek-ink);font-variant-numeric:tabular-nums}\
.ek text.m{fill:var(--ek-muted)}\
.ek text.b{font-weight:600}\
.ek text.v{fill:var(--ek-ground);font-weight:600}\
.ek .g,.ek .n,.ek .x{fill:none;stroke:var(--ek-grid);stroke-width:1}\
.ek .n{stroke:var(--ek-minor)}\
.ek .x{stroke:var(--ek-axis)}\
.ek .s{fill:none;stroke:var(--ek-l);stroke-width:1.8;stroke-linejoin:round}\
.ek .i{fill:none;stroke:var(--ek-l);stroke-width:.9;stroke-linejoin:round;opacity:.5}\
.ek .e{fill:none;stroke:var(--ek-l);stroke-width:1;opacity:.55}\
.ek .p{fill:var(--ek-ground);stroke:var(--ek-l);stroke-width:1.6;stroke-linejoin:round}\
.ek .f{fill:var(--ek-l);stroke:var(--ek-l);stroke-width:1.2}\
.ek .o{fill:var(--ek-ground);stroke:var(--ek-l);stroke-width:1.2}\
.ek .k{fill:var(--ek-ground)}\
.ek .h{fill:none;stroke:var(--ek-l);stroke-width:1;shape-rendering:crispEdges}\
@media screen and (prefers-color-scheme:dark){\
.ek{--ek-ink:#e6e9ed;--ek-muted:#9aa5b1;--ek-grid:#2b323b;--ek-minor:#1c2228;\
--ek-axis:#6b7681;--ek-ground:#14181d}\
.ek .s,.ek .i,.ek .e,.ek .p,.ek .f,.ek .o,.ek .h{stroke:var(--ek-d)}\
.ek .f{fill:var(--ek-d)}}"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance of `#rrggbb`, as WCAG 2 defines it.
    fn luminance(hex: &str) -> f64 {
        let channel = |at: usize| {
            let c = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_colour_stands_out_from_its_ground() {
        let mut colours: Vec<Colour> = (0..HUES.len()).map(Colour::Hue).collect();
        colours.extend((0..=20).map(|i| Colour::Ramp(f64::from(i) / 20.0)));
        for colour in colours {
            for (hex, ground) in colour.hex().iter().zip(GROUND) {
                let ratio = contrast(hex, ground);
                assert!(ratio >= 3.0, "{colour:?} {hex} on {ground}: {ratio:.2}");
            }
        }
        for ground in GROUND {
            assert!(chart_css().contains(ground), "{ground}");
        }
    }

    #[test]
    fn the_ramp_gets_steadily_lighter() {
        for side in 0..2 {
            let values: Vec<f64> =
                (0..=20).map(|i| luminance(&Colour::Ramp(f64::from(i) / 20.0).hex()[side])).collect();
            assert!(values.windows(2).all(|w| w[0] < w[1]), "{values:?}");
        }
        assert_eq!(Colour::Ramp(f64::NAN).hex(), Colour::Ramp(0.0).hex());
    }

    #[test]
    fn heat_moves_away_from_the_ground_in_lightness_alone() {
        for (side, ground) in GROUND.iter().enumerate() {
            let steps = (0..=32).map(|i| contrast(&Colour::Heat(f64::from(i) / 32.0).hex()[side], ground));
            let steps: Vec<f64> = steps.collect();
            assert!(steps.windows(2).all(|w| w[0] < w[1]), "{steps:?}");
            assert!(steps[0] > 1.05 && steps[32] > 12.0, "{steps:?}");
        }
    }

    #[test]
    fn thirty_six_styles_are_distinct() {
        let styles: Vec<Style> = (0..36).map(Style::nth).collect();
        for (i, a) in styles.iter().enumerate() {
            for b in &styles[..i] {
                assert!(a.colour.hex() != b.colour.hex() || a.dash != b.dash);
            }
        }
    }
}
