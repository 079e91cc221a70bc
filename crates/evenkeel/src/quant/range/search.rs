//! Ranges by search: a hundred candidates, the best kept, the narrower of equals.

use super::super::grid::Cell;
use super::super::spec::{Format, Range};
use super::extremes;
use super::sketch::Sketch;
use rayon::prelude::*;

/// Candidates of a search.
const CANDIDATES: usize = 100;
/// A search of fixed margin goes this far beyond max|w|: that of the published code.
const MARGIN: f64 = 0.5;
/// Bins of the divergence.
const BINS: usize = 2048;
/// Share that a bin gets which the rounded distribution leaves empty.
const EMPTY: f64 = 1e-9;

/// Range number `i` from 1 to 100 of values between `lo` and `hi`.
fn candidate(range: Range, format: Format, (lo, hi): (f64, f64), i: usize) -> (f64, f64) {
    let share = i as f64 / CANDIDATES as f64;
    let (lo, hi) = match format.is_symmetric() {
        true => (-hi.max(-lo), hi.max(-lo)),
        false => (lo, hi),
    };
    match range {
        Range::MseFixed => (share * (lo - MARGIN), share * (hi + MARGIN)),
        Range::Mse(margin) => (share * (1.0 + margin) * lo, share * (1.0 + margin) * hi),
        _ => (share * lo, share * hi),
    }
}

/// The range among the candidates whose cost is least.
fn best(candidates: Vec<(f64, (f64, f64))>) -> (f64, f64) {
    let first = candidates.first().copied().unwrap_or((0.0, (0.0, 0.0)));
    candidates.into_iter().fold(first, |best, next| if next.0 < best.0 { next } else { best }).1
}

/// Least Σ (x - x̂)².
pub fn least_squares(range: Range, format: Format, values: &[f32], unsigned: bool) -> (f64, f64) {
    let seen = extremes(values);
    let cost = |i: usize| {
        let range = candidate(range, format, seen, i);
        (Cell::of_range(format, range, unsigned).squared_error(values), range)
    };
    best((1..=CANDIDATES).into_par_iter().map(cost).collect())
}

/// The same of the points of a sketch.
pub fn least_squares_of_sketch(range: Range, format: Format, sketch: &Sketch) -> (f64, f64) {
    let (points, counts): (Vec<f32>, Vec<f64>) = sketch.points().into_iter().unzip();
    let cost = |i: usize| {
        let range = candidate(range, format, sketch.extremes(), i);
        let mut rounded = points.clone();
        Cell::of_range(format, range, false).round_serial(&mut rounded);
        let terms = points.iter().zip(&rounded).zip(&counts);
        (terms.map(|((x, y), n)| n * f64::from(x - y) * f64::from(x - y)).sum(), range)
    };
    best((1..=CANDIDATES).into_par_iter().map(cost).collect())
}

/// Least Σ P log(P/Q) over 2048 bins between the extremes: P is the distribution with what a range cuts off moved to its ends,
/// Q has each level's own share spread evenly over those of its bins that P occupies. `unsigned` as of [`Cell::of_range`].
pub fn least_divergence(format: Format, sketch: &Sketch, unsigned: bool) -> (f64, f64) {
    let seen = sketch.extremes();
    let (lo, hi) = (seen.0.min(0.0), seen.1.max(0.0));
    if hi <= lo {
        return (0.0, 0.0);
    }
    let width = (hi - lo) / BINS as f64;
    let mut counts = vec![0.0; BINS];
    for (middle, count) in sketch.points() {
        let bin = ((f64::from(middle) - lo) / (hi - lo) * BINS as f64).floor() as usize;
        counts[bin.min(BINS - 1)] += count;
    }
    let centres: Vec<f64> = (0..BINS).map(|i| lo + (i as f64 + 0.5) * width).collect();
    let cost = |i: usize| {
        let range = candidate(Range::Kl, format, (lo, hi), i);
        Some((divergence(&counts, &centres, range, Cell::of_range(format, range, unsigned))?, range))
    };
    best((1..=CANDIDATES).into_par_iter().filter_map(cost).collect())
}

/// `None` if no bin lies in the range.
fn divergence(counts: &[f64], centres: &[f64], (lo, hi): (f64, f64), cell: Cell) -> Option<f64> {
    let first = centres.iter().position(|&c| c >= lo && c <= hi)?;
    let last = centres.iter().rposition(|&c| c >= lo && c <= hi)?;
    let inside = counts.get(first..=last)?;
    let mut p = inside.to_vec();
    *p.first_mut()? += counts[..first].iter().sum::<f64>();
    *p.last_mut()? += counts[last + 1..].iter().sum::<f64>();

    let mut levels: Vec<f32> = centres[first..=last].iter().map(|&c| c as f32).collect();
    cell.round_serial(&mut levels);
    let mut q = vec![0.0; p.len()];
    let mut start = 0;
    // Rounding is monotone, so the bins of a level are neighbours.
    while start < levels.len() {
        let end = start + levels[start..].iter().take_while(|&&l| l == levels[start]).count();
        let occupied = p[start..end].iter().filter(|&&p| p > 0.0).count();
        let mass: f64 = inside[start..end].iter().sum();
        for bin in start..end {
            if p[bin] > 0.0 {
                q[bin] = mass / occupied as f64;
            }
        }
        start = end;
    }
    let (p_total, q_total): (f64, f64) = (p.iter().sum(), q.iter().sum());
    let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
    Some(
        terms
            .map(|(&p, &q)| {
                let p = p / p_total;
                let q = if q > 0.0 { q / q_total } else { EMPTY };
                p * (p / q).ln()
            })
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT4: Format = Format::Int { bits: 4, symmetric: true };

    #[test]
    fn a_lone_outlier_is_cut_off_where_that_costs_less() {
        // Denser near 0: spread out again, an even distribution would lose nothing to the widest range.
        let mut values: Vec<f32> =
            (0..4000).map(|i| (((i * 37 % 4001) as f32 - 2000.0) / 2000.0).powi(3)).collect();
        values.push(6.0);
        for range in [
            least_squares(Range::Mse(0.0), INT4, &values, false),
            least_squares_of_sketch(Range::Mse(0.0), INT4, &Sketch::of(&values)),
            least_divergence(INT4, &Sketch::of(&values), false),
        ] {
            assert!(range.1 < 3.0 && range.1 > 0.5, "{range:?}");
        }
    }

    #[test]
    fn zeros_have_the_range_zero() {
        assert_eq!(least_divergence(INT4, &Sketch::of(&[0.0; 5]), false), (0.0, 0.0));
        assert_eq!(least_squares(Range::Mse(0.2), INT4, &[0.0; 5], false), (0.0, 0.0));
    }
}
