//! Axes: which values they span, where their ticks are, and how the ticks are written.
//!
//! Linear ticks are 1, 2 or 5 times a power of ten apart. A logarithmic axis is labelled at its
//! decades; where it spans few of them at 1, 2 and 5, and where it spans hardly any it is ticked
//! like a linear one. Tick values are built from integers and one multiplication or division by
//! a power of ten, so that 0.3 is 0.3 and not 0.30000000000000004.
//!
//! Values that an axis cannot show (not finite, beyond 1e150 in size, on a logarithmic axis zero
//! or negative) do not take part, and [`Axis::position`] has no answer for them.

/// How values are laid along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equal distances.
    #[default]
    Linear,
    /// Equal ratios are equal distances; only positive values can be shown.
    Log,
}

/// Beyond this size, differences and ratios of values may overflow.
const LARGEST: f64 = 1e150;

impl Scale {
    /// Whether a value can be shown on such an axis.
    pub fn admits(self, value: f64) -> bool {
        match self {
            Scale::Linear => value.abs() <= LARGEST,
            Scale::Log => (1.0 / LARGEST..=LARGEST).contains(&value),
        }
    }
}

/// Whether an axis ends at the data or at the ticks around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// At a round number at or beyond the data.
    Round,
    /// At the data.
    Tight,
}

/// A labelled tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where it is, in the units of the data.
    pub value: f64,
    /// How it is written.
    pub label: String,
}

/// An axis fitted to data.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// How values are laid along it.
    pub scale: Scale,
    /// Smallest value shown.
    pub lo: f64,
    /// Largest value shown; always more than `lo`.
    pub hi: f64,
    /// Labelled ticks, ascending.
    pub major: Vec<Tick>,
    /// Ticks without a label, ascending.
    pub minor: Vec<f64>,
}

impl Axis {
    /// An axis over `values` with about `ticks` labels (at least two are aimed for). With no
    /// value that can be shown it spans 0 to 1, or 1 to 10; a single value gets room around it.
    pub fn fit(scale: Scale, values: impl IntoIterator<Item = f64>, ticks: usize, ends: Ends) -> Self {
        let ticks = ticks.max(2);
        let extent =
            values.into_iter().filter(|&value| scale.admits(value)).fold(None, |seen, value| match seen {
                None => Some((value, value)),
                Some((lo, hi)) => Some((f64::min(lo, value), f64::max(hi, value))),
            });
        let (lo, hi) = match (extent, scale) {
            (None, Scale::Linear) => (0.0, 1.0),
            (None, Scale::Log) => (1.0, 10.0),
            (Some((lo, hi)), _) => roomy(scale, lo, hi),
        };
        match scale {
            Scale::Linear => Self::linear(scale, lo, hi, ticks, ends),
            // Within a factor of four, powers of ten say nothing.
            Scale::Log if hi / lo < 4.0 => Self::linear(scale, lo, hi, ticks, ends),
            Scale::Log => Self::log(lo, hi, ticks, ends),
        }
    }

    /// Where a value lies: 0 at `lo`, 1 at `hi`; `None` where the axis cannot show it.
    pub fn position(&self, value: f64) -> Option<f64> {
        if !self.scale.admits(value) {
            return None;
        }
        Some(match self.scale {
            Scale::Linear => (value - self.lo) / (self.hi - self.lo),
            Scale::Log => (value / self.lo).ln() / (self.hi / self.lo).ln(),
        })
    }

    fn linear(scale: Scale, lo: f64, hi: f64, ticks: usize, ends: Ends) -> Self {
        let (mantissa, exponent) = linear_step((hi - lo) / ticks as f64);
        let at = |i: f64| scaled(i * mantissa, exponent);
        let step = at(1.0);
        let (mut lo, mut hi) = (lo, hi);
        if ends == Ends::Round {
            // The small slack keeps 0.3 / 0.1 = 2.9999… from adding an empty interval.
            let down = at((lo / step + 1e-9).floor());
            if scale.admits(down) {
                lo = down.min(lo);
            }
            hi = at((hi / step - 1e-9).ceil()).max(hi);
        }
        let first = (lo / step - 1e-9).ceil();
        let last = (hi / step + 1e-9).floor();
        let mut values = Vec::new();
        let mut i = first;
        // 64 is far beyond what `linear_step` allows; it bounds the loop whatever happens.
        while i <= last && values.len() < 64 {
            values.push(at(i));
            i += 1.0;
        }
        let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let major =
            values.into_iter().map(|value| Tick { value, label: tick_label(value, step, largest) }).collect();
        Axis { scale, lo, hi, major, minor: Vec::new() }
    }

    fn log(lo: f64, hi: f64, ticks: usize, ends: Ends) -> Self {
        let (first, last) = (exponent_of(lo) - 1, exponent_of(hi) + 1);
        let every = |mantissas: &[f64]| -> Vec<f64> {
            (first..=last).flat_map(|e| mantissas.iter().map(move |m| scaled(*m, e))).collect()
        };
        let round = every(&[1.0, 2.0, 5.0]);
        let (mut lo, mut hi) = (lo, hi);
        if ends == Ends::Round {
            lo = round.iter().copied().filter(|v| *v <= lo * (1.0 + 1e-9)).fold(lo, |_, v| v.min(lo));
            let above = round.iter().copied().find(|v| *v >= hi * (1.0 - 1e-9));
            hi = above.map_or(hi, |v| v.max(hi));
        }
        let inside = |v: &f64| *v >= lo * (1.0 - 1e-9) && *v <= hi * (1.0 + 1e-9);
        let decades: Vec<f64> = every(&[1.0]).into_iter().filter(inside).collect();
        let round: Vec<f64> = round.into_iter().filter(inside).collect();
        let fine = every(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let few = round.len() <= ticks || decades.len() < 2;
        let (labelled, mut minor): (Vec<f64>, Vec<f64>) = if few {
            (round, fine)
        } else {
            let stride = decades.len().div_ceil(ticks).max(1);
            let labelled = decades.iter().copied().step_by(stride).collect();
            // Nine lines in each of many decades are a grey wash.
            let minor = if decades.len() > 10 { decades } else { fine };
            (labelled, minor)
        };
        minor.retain(|v| inside(v) && !labelled.contains(v));
        let major = labelled
            .into_iter()
            .map(|value| Tick { value, label: tick_label(value, value, value) })
            .collect();
        Axis { scale: Scale::Log, lo, hi, major, minor }
    }
}

/// Gives a span that is (nearly) a single value some room.
fn roomy(scale: Scale, lo: f64, hi: f64) -> (f64, f64) {
    let size = lo.abs().max(hi.abs());
    // Closer than this, neighbouring tick values would be the same number, or no normal number.
    if hi - lo > (size * 1e-9).max(1.0 / LARGEST) || (scale == Scale::Log && hi > lo * 1.001) {
        return (lo, hi);
    }
    match scale {
        Scale::Log => (lo / 2.0, hi * 2.0),
        Scale::Linear if size < 1.0 / LARGEST => (0.0, 1.0),
        Scale::Linear => (lo - size * 0.1, hi + size * 0.1),
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `raw`, as (mantissa, exponent).
fn linear_step(raw: f64) -> (f64, i32) {
    let exponent = exponent_of(raw);
    for mantissa in [1.0, 2.0, 5.0] {
        if scaled(mantissa, exponent) >= raw * (1.0 - 1e-9) {
            return (mantissa, exponent);
        }
    }
    (1.0, exponent + 1)
}

/// The power of ten at or below a positive value.
fn exponent_of(value: f64) -> i32 {
    (value.log10() + 1e-12).floor() as i32
}

/// `mantissa` × 10^`exponent`, by one exactly rounded operation for small integers.
fn scaled(mantissa: f64, exponent: i32) -> f64 {
    if exponent >= 0 { mantissa * 10f64.powi(exponent) } else { mantissa / 10f64.powi(-exponent) }
}

/// A tick's text. `step` is the distance of ticks, `largest` the size of the largest tick on the
/// axis: together they decide decimals and notation, so that one axis is written one way.
fn tick_label(value: f64, step: f64, largest: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !(0.999e-2..1e15).contains(&largest) {
        return scientific(value, exponent_of(size) - exponent_of(step));
    }
    let (unit, suffix) = if size >= 0.999e9 {
        (1e9, "B")
    } else if size >= 0.999e6 {
        (1e6, "M")
    } else if size >= 0.999e3 && largest >= 0.999e4 {
        (1e3, "k")
    } else {
        (1.0, "")
    };
    let decimals = (-exponent_of(step / unit)).clamp(0, 9) as usize;
    let text = format!("{:.decimals$}", value / unit);
    if suffix.is_empty() { text } else { format!("{}{suffix}", trim_zeros(&text)) }
}

/// `value` as 3e-3 or 2.5e4, with at most `digits` digits after the point and no trailing zeros.
/// A value that is not finite is written as a dash.
pub fn scientific(value: f64, digits: i32) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let text = format!("{:.*e}", digits.clamp(0, 9) as usize, value);
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{}e{exponent}", trim_zeros(mantissa)),
        None => text,
    }
}

fn trim_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.major.iter().map(|t| t.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_written_alike() {
        let axis = Axis::fit(Scale::Linear, [0.03, 0.97], 5, Ends::Round);
        assert_eq!(labels(&axis), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!((axis.lo, axis.hi), (0.0, 1.0));
        let axis = Axis::fit(Scale::Linear, [0.0, 2_000_000.0], 4, Ends::Tight);
        assert_eq!(labels(&axis), ["0", "500k", "1M", "1.5M", "2M"]);
        let axis = Axis::fit(Scale::Linear, [0.0, 1500.0], 3, Ends::Tight);
        assert_eq!(labels(&axis), ["0", "500", "1000", "1500"]);
        let axis = Axis::fit(Scale::Linear, [0.0, 20e3], 4, Ends::Tight);
        assert_eq!(labels(&axis), ["0", "5k", "10k", "15k", "20k"]);
        let axis = Axis::fit(Scale::Linear, [0.0, 3e-3], 3, Ends::Tight);
        assert_eq!(labels(&axis), ["0", "1e-3", "2e-3", "3e-3"]);
        let axis = Axis::fit(Scale::Linear, [-1.0, 1.0], 4, Ends::Round);
        assert_eq!(labels(&axis), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
    }

    #[test]
    fn log_ticks_are_decades_with_minor_ticks_between() {
        let axis = Axis::fit(Scale::Log, [1.3e-3, 90e3], 9, Ends::Round);
        assert_eq!(labels(&axis), ["1e-3", "0.01", "0.1", "1", "10", "100", "1000", "10k", "100k"]);
        assert!(axis.minor.contains(&0.3) && axis.minor.contains(&7000.0));
        let axis = Axis::fit(Scale::Log, [0.3, 30.0], 8, Ends::Round);
        assert_eq!(labels(&axis), ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]);
        let axis = Axis::fit(Scale::Log, [2.1, 3.9], 4, Ends::Round);
        assert_eq!(labels(&axis), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
    }

    #[test]
    fn no_value_and_one_value_still_make_an_axis() {
        let empty = Axis::fit(Scale::Linear, [f64::NAN, f64::INFINITY], 5, Ends::Round);
        assert_eq!((empty.lo, empty.hi), (0.0, 1.0));
        let empty = Axis::fit(Scale::Log, [0.0, -1.0], 5, Ends::Round);
        assert_eq!((empty.lo, empty.hi), (1.0, 10.0));
        let constant = Axis::fit(Scale::Linear, [5.0, 5.0], 5, Ends::Round);
        assert!(constant.lo < 5.0 && constant.hi > 5.0 && constant.major.len() >= 2);
        for nothing in [[0.0, 0.0], [0.0, 1e-308], [-5e-324, 0.0]] {
            let zero = Axis::fit(Scale::Linear, nothing, 5, Ends::Round);
            assert_eq!((zero.lo, zero.hi), (0.0, 1.0));
        }
        let constant = Axis::fit(Scale::Log, [3.0], 5, Ends::Round);
        assert!(constant.lo < 3.0 && constant.hi > 3.0 && constant.major.len() >= 2);
    }

    #[test]
    fn what_a_log_axis_cannot_show_has_no_position() {
        let axis = Axis::fit(Scale::Log, [1.0, 100.0], 5, Ends::Round);
        assert_eq!(axis.position(10.0), Some(0.5));
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(axis.position(value), None);
        }
    }

    #[test]
    fn scientific_notation_is_short() {
        assert_eq!(scientific(3e-3, 2), "3e-3");
        assert_eq!(scientific(2.5e4, 2), "2.5e4");
        assert_eq!(scientific(f64::NAN, 2), "–");
    }

    proptest! {
        #[test]
        fn any_axis_holds_its_data_and_its_ticks(
            values in proptest::collection::vec(proptest::num::f64::ANY, 0..6),
            log in any::<bool>(),
            round in any::<bool>(),
            ticks in 0usize..12,
        ) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let ends = if round { Ends::Round } else { Ends::Tight };
            let axis = Axis::fit(scale, values.clone(), ticks, ends);
            prop_assert!(axis.lo.is_finite() && axis.hi.is_finite() && axis.lo < axis.hi);
            for value in values {
                if let Some(at) = axis.position(value) {
                    prop_assert!((-1e-6..=1.0 + 1e-6).contains(&at), "{value} at {at}");
                }
            }
            prop_assert!(axis.major.windows(2).all(|w| w[0].value < w[1].value));
            for tick in &axis.major {
                prop_assert!(!tick.label.contains("NaN") && !tick.label.contains("inf"));
                prop_assert!(tick.label.len() <= 16, "{}", tick.label);
            }
        }

        #[test]
        fn ordinary_axes_have_a_few_distinct_labels(
            lo in -1e6..1e6f64, span in 1e-3..1e6f64, ticks in 3usize..9,
        ) {
            let axis = Axis::fit(Scale::Linear, [lo, lo + span], ticks, Ends::Round);
            let mut seen = labels(&axis);
            let count = seen.len();
            prop_assert!((2..=ticks + 2).contains(&count), "{count} for {ticks}");
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), count);
        }
    }
}
