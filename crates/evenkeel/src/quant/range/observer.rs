//! A range that forms while calibration batches pass.

use super::super::QuantError;
use super::super::spec::{Format, Range};
use super::percentile::percentile;
use super::search::{least_divergence, least_squares_of_sketch};
use super::sketch::Sketch;
use super::{MOMENTUM, extremes};

/// What has been seen so far, as much of it as the method needs.
#[derive(Clone, Debug)]
pub struct Observer {
    method: Range,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// A range that batches move.
    Following(Option<(f64, f64)>),
    /// Everything, counted.
    Sketched(Box<Sketch>),
    /// Everything.
    Kept(Vec<f32>),
}

impl Observer {
    /// Nothing seen.
    pub fn new(method: Range) -> Self {
        let state = match method {
            Range::MinMax | Range::Running | Range::RunningPercentile(_) => State::Following(None),
            Range::Percentile(_) | Range::Mse(_) | Range::MseFixed | Range::Kl => {
                State::Sketched(Box::default())
            }
            Range::PercentileExact(_) => State::Kept(Vec::new()),
        };
        Self { method, state }
    }

    /// Takes a batch's values.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn update(&mut self, site: &str, x: &[f32]) -> Result<(), QuantError> {
        if x.iter().any(|v| !v.is_finite()) {
            return Err(QuantError::NonFinite { site: site.into() });
        }
        match &mut self.state {
            State::Following(range) => {
                let (lo, hi) = match self.method {
                    Range::RunningPercentile(p) => {
                        let mut scratch = x.to_vec();
                        (percentile(&mut scratch, 100.0 - p), percentile(&mut scratch, p))
                    }
                    _ => extremes(x),
                };
                let follow = |old: f64, new: f64| MOMENTUM * old + (1.0 - MOMENTUM) * new;
                *range = Some(match (*range, self.method) {
                    (None, _) => (lo, hi),
                    (Some((a, b)), Range::MinMax) => (a.min(lo), b.max(hi)),
                    (Some((a, b)), _) => (follow(a, lo), follow(b, hi)),
                });
            }
            State::Sketched(sketch) => sketch.add(x),
            State::Kept(values) => values.extend_from_slice(x),
        }
        Ok(())
    }

    /// The range so far, for a format; `None` before anything was seen.
    pub fn range(&self, format: Format) -> Option<(f64, f64)> {
        match (&self.state, self.method) {
            (State::Following(range), _) => *range,
            (State::Sketched(sketch), _) if sketch.is_empty() => None,
            (State::Kept(values), _) if values.is_empty() => None,
            (State::Sketched(sketch), Range::Percentile(p)) => {
                Some((sketch.percentile(100.0 - p), sketch.percentile(p)))
            }
            (State::Sketched(sketch), Range::Kl) => Some(least_divergence(format, sketch, false)),
            (State::Sketched(sketch), method) => Some(least_squares_of_sketch(method, format, sketch)),
            (State::Kept(values), method) => {
                let p = if let Range::PercentileExact(p) = method { p } else { 100.0 };
                let mut values = values.clone();
                Some((percentile(&mut values, 100.0 - p), percentile(&mut values, p)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT8: Format = Format::Int { bits: 8, symmetric: false };

    fn after(method: Range, batches: &[&[f32]]) -> (f64, f64) {
        let mut observer = Observer::new(method);
        for batch in batches {
            observer.update("x", batch).unwrap();
        }
        observer.range(INT8).unwrap()
    }

    #[test]
    fn the_first_batch_sets_the_range() {
        let batches: [&[f32]; 2] = [&[-1.0, 1.0], &[-2.0, 3.0]];
        let (lo, hi) = after(Range::RunningPercentile(99.999), &batches);
        assert!((lo + 1.1).abs() < 1e-3 && (hi - 1.2).abs() < 1e-3);
        let (lo, hi) = after(Range::Running, &batches);
        assert!((lo + 1.1).abs() < 1e-12 && (hi - 1.2).abs() < 1e-12);
        assert_eq!(after(Range::MinMax, &batches), (-2.0, 3.0));
        assert_eq!(after(Range::PercentileExact(100.0), &batches), (-2.0, 3.0));
        assert_eq!(after(Range::Percentile(100.0), &batches), (-2.0, 3.0));
    }

    #[test]
    fn what_is_not_finite_has_no_range() {
        for v in [f32::NAN, f32::INFINITY] {
            assert!(Observer::new(Range::MinMax).update("x", &[v]).is_err());
        }
    }
}
