//! Choosing a range: mean-squared-error grid for weights, running percentiles for activations.

use super::QuantError;
use super::grid::Quantiser;
use evenkeel_kernels::quant::squared_error;
use rayon::prelude::*;

/// Candidates of the weight search.
const CANDIDATES: usize = 100;
/// The search goes this far beyond max|w|: the published code's fixed margin.
const MARGIN: f64 = 0.5;
/// Weight of the old range when a batch comes.
const MOMENTUM: f64 = 0.9;
/// Upper percentile of a batch's range; the lower one is its mirror image.
pub const PERCENTILE: f64 = 99.999;

/// The symmetric quantiser of least squared error among 100 candidates c_i = i (max|w| + 0.5)/100.
///
/// # Errors
/// If a value is not finite.
pub fn mse_symmetric(name: &str, w: &[f32]) -> Result<Quantiser, QuantError> {
    if w.iter().any(|v| !v.is_finite()) {
        return Err(QuantError::NonFinite { site: name.into() });
    }
    let peak = w.iter().fold(0.0f32, |m, v| m.max(v.abs())) as f64;
    let unsigned = w.iter().all(|v| *v >= 0.0);
    let step = (peak + MARGIN) / CANDIDATES as f64;
    let costs: Vec<f64> = (1..=CANDIDATES)
        .into_par_iter()
        .map(|i| squared_error(w, Quantiser::symmetric(i as f64 * step, unsigned).grid()))
        .collect();
    let mut best = 0;
    for (i, cost) in costs.iter().enumerate() {
        if *cost < costs[best] {
            best = i;
        }
    }
    Ok(Quantiser::symmetric((best + 1) as f64 * step, unsigned))
}

/// A range that follows batches: the first sets it, later ones move it by a tenth.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct RunningRange {
    range: Option<(f64, f64)>,
}

impl RunningRange {
    /// Takes the percentiles of a batch's tensor.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn update(&mut self, site: &str, x: &[f32]) -> Result<(), QuantError> {
        if x.iter().any(|v| !v.is_finite()) {
            return Err(QuantError::NonFinite { site: site.into() });
        }
        let mut scratch = x.to_vec();
        let lo = percentile(&mut scratch, 100.0 - PERCENTILE);
        let hi = percentile(&mut scratch, PERCENTILE);
        self.range = Some(match self.range {
            None => (lo, hi),
            Some((a, b)) => (MOMENTUM * a + (1.0 - MOMENTUM) * lo, MOMENTUM * b + (1.0 - MOMENTUM) * hi),
        });
        Ok(())
    }

    /// The range so far.
    pub fn range(&self) -> Option<(f64, f64)> {
        self.range
    }
}

/// The p-th percentile with linear interpolation between order statistics, as NumPy's default. Reorders `x`.
fn percentile(x: &mut [f32], p: f64) -> f64 {
    let Some(last) = x.len().checked_sub(1) else { return 0.0 };
    let position = p / 100.0 * last as f64;
    let index = (position.floor() as usize).min(last);
    let fraction = position - index as f64;
    let (_, &mut below, rest) = x.select_nth_unstable_by(index, f32::total_cmp);
    let below = below as f64;
    let above = rest.iter().copied().min_by(f32::total_cmp).map_or(below, |v| v as f64);
    // The two forms agree in exact arithmetic; NumPy switches so that the ends are hit exactly.
    if fraction < 0.5 {
        below + (above - below) * fraction
    } else {
        above - (above - below) * (1.0 - fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let mut x = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(percentile(&mut x, 0.0), 1.0);
        assert_eq!(percentile(&mut x, 100.0), 5.0);
        assert_eq!(percentile(&mut x, 50.0), 3.0);
        assert!((percentile(&mut x, 90.0) - 4.6).abs() < 1e-12);
        assert_eq!(percentile(&mut [7.0], 99.0), 7.0);
    }

    #[test]
    fn the_first_batch_sets_the_range() {
        let mut r = RunningRange::default();
        r.update("x", &[-1.0, 1.0]).unwrap();
        r.update("x", &[-2.0, 3.0]).unwrap();
        let (lo, hi) = r.range().unwrap();
        assert!((lo + 1.1).abs() < 1e-3 && (hi - 1.2).abs() < 1e-3);
        assert!(r.update("x", &[f32::NAN]).is_err());
    }
}
