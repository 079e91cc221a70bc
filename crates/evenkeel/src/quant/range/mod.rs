//! Choosing a range from values: extremes, percentiles, searches.

pub mod observer;
pub mod percentile;
pub mod search;
pub mod sketch;

pub use observer::Observer;
pub use sketch::Sketch;

use super::spec::{Format, Range};
use percentile::percentile;

/// Weight of the old range when a batch comes.
pub(crate) const MOMENTUM: f64 = 0.9;

/// The range of values that are all there, finite, such as those of a weight.
pub fn of_values(range: Range, format: Format, values: &[f32], unsigned: bool) -> (f64, f64) {
    match range {
        Range::MinMax | Range::Running => extremes(values),
        Range::RunningPercentile(p) | Range::PercentileExact(p) => {
            let mut values = values.to_vec();
            (percentile(&mut values, 100.0 - p), percentile(&mut values, p))
        }
        Range::Percentile(p) => {
            let sketch = Sketch::of(values);
            (sketch.percentile(100.0 - p), sketch.percentile(p))
        }
        Range::Mse(_) | Range::MseFixed => search::least_squares(range, format, values, unsigned),
        Range::Kl => search::least_divergence(format, &Sketch::of(values), unsigned),
    }
}

/// Smallest and largest; zeros for nothing.
pub(crate) fn extremes(values: &[f32]) -> (f64, f64) {
    let Some(&first) = values.first() else { return (0.0, 0.0) };
    let (lo, hi) = values.iter().fold((first, first), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    (f64::from(lo), f64::from(hi))
}
