//! What is taken token by token or sequence by sequence, and magnitudes by rank.
//!
//! Moments are two-pass in float64: the mean first, then powers about it. Equal float32 values have exactly
//! their own value as mean (fewer than 2²⁹ of them: their sum has no more than 53 bits), so that what is
//! constant has no spread.

use super::channels::sum_and_peak;
use super::{larger, rows_of};
use crate::isa::multiversion;
use crate::threads::map_row_pieces;
use rayon::prelude::*;

/// Lanes of the float64 reductions.
const LANES: usize = 16;
/// Elements of a piece where a row costs a few passes.
const PIECE: usize = 32 * 1024;

/// Σ over rows of max |x| / lower median |x|, the rows that count, and the rows left out because their
/// median is 0 (Eq 2 of the paper). The sum is NaN if a row holds NaN.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn max_median_sums(x: &[f32], width: usize) -> (f64, u64, u64) {
    let parts = map_row_pieces(rows_of(x, width), width, 16 * 1024, |first, rows| {
        let mut magnitudes = vec![0.0f32; width];
        let (mut sum, mut counted, mut skipped) = (0.0f64, 0u64, 0u64);
        for row in x[first * width..(first + rows) * width].chunks_exact(width) {
            for (m, v) in magnitudes.iter_mut().zip(row) {
                *m = v.abs();
            }
            // The lower median: entry (d - 1) / 2 of the sorted magnitudes. Its right part holds the maximum.
            let (_, &mut median, above) = magnitudes.select_nth_unstable_by((width - 1) / 2, f32::total_cmp);
            // total_cmp sorts NaN last, so that the peak is NaN if the row holds one.
            let peak = above.iter().fold(median, |m, &v| larger(m, v));
            if median == 0.0 && !peak.is_nan() {
                skipped += 1;
            } else {
                sum += peak as f64 / median as f64;
                counted += 1;
            }
        }
        (sum, counted, skipped)
    });
    parts.into_iter().fold((0.0, 0, 0), |(a, b, c), (x, y, z)| (a + x, b + y, c + z))
}

/// Sums over rows (tokens).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenSums {
    /// Σ of max(0, mean(x⁴) / std⁴ - 3) over the rows with a spread; std is centred and unbiased.
    pub excess: f64,
    /// How many rows have a spread: std not 0, and more than one channel.
    pub excess_rows: u64,
    /// Σ of x / ‖x‖ over the rows that are not all zero, by channel.
    pub directions: Vec<f64>,
    /// How many rows are not all zero.
    pub direction_rows: u64,
}

impl TokenSums {
    /// Adds the sums of other rows of the same channels.
    pub fn merge(&mut self, other: &Self) {
        self.excess += other.excess;
        self.excess_rows += other.excess_rows;
        self.direction_rows += other.direction_rows;
        self.directions.resize(other.directions.len().max(self.directions.len()), 0.0);
        self.directions.iter_mut().zip(&other.directions).for_each(|(t, v)| *t += v);
    }
}

/// The sums of `x`, rows of `width`. A row that holds NaN or infinity leaves no finite sum.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn token_sums(x: &[f32], width: usize) -> TokenSums {
    let pieces = map_row_pieces(rows_of(x, width), width, PIECE, |first, rows| {
        let mut sums = TokenSums { directions: vec![0.0; width], ..Default::default() };
        for row in x[first * width..(first + rows) * width].chunks_exact(width) {
            let (second, _) = powers(row, sum_and_peak(row).0 / width as f64);
            let (square, fourth) = powers(row, 0.0);
            if width > 1 && second != 0.0 {
                let variance = second / (width - 1) as f64;
                let excess = fourth / width as f64 / (variance * variance) - 3.0;
                // Not f64::max, which would drop NaN.
                sums.excess += if excess < 0.0 { 0.0 } else { excess };
                sums.excess_rows += 1;
            }
            if square != 0.0 {
                add_scaled(row, 1.0 / square.sqrt(), &mut sums.directions);
                sums.direction_rows += 1;
            }
        }
        sums
    });
    let mut total = TokenSums { directions: vec![0.0; width], ..Default::default() };
    pieces.iter().for_each(|piece| total.merge(piece));
    total
}

/// Moments of all entries of one sequence, pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceMoments {
    /// Σ (x - μ)².
    pub second: f64,
    /// Σ (x - μ)⁴.
    pub fourth: f64,
    /// max |x|; NaN if an entry is.
    pub max_abs: f32,
}

/// The moments of every sequence of `entries` values.
///
/// # Panics
/// If `entries` is 0 or does not divide the length.
pub fn sequence_moments(x: &[f32], entries: usize) -> Vec<SequenceMoments> {
    rows_of(x, entries);
    let of = |sequence: &[f32]| {
        let (sum, max_abs) = sum_and_peak(sequence);
        let (second, fourth) = powers(sequence, sum / entries as f64);
        SequenceMoments { second, fourth, max_abs }
    };
    x.par_chunks(entries).map(of).collect()
}

/// Σ x² of every row.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn row_squares(x: &[f32], width: usize) -> Vec<f64> {
    let pieces = map_row_pieces(rows_of(x, width), width, PIECE, |first, rows| {
        let part = &x[first * width..(first + rows) * width];
        part.chunks_exact(width).map(|row| powers(row, 0.0).0).collect::<Vec<f64>>()
    });
    pieces.concat()
}

multiversion! {
    /// Σ (x - centre)² and Σ (x - centre)⁴.
    fn powers(x: &[f32], centre: f64) -> (f64, f64) {
        let (mut seconds, mut fourths) = ([0.0f64; LANES], [0.0f64; LANES]);
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for l in 0..LANES {
                let v = f64::from(chunk[l]) - centre;
                let square = v * v;
                seconds[l] += square;
                fourths[l] += square * square;
            }
        }
        let (mut second, mut fourth) = (0.0, 0.0);
        for l in 0..LANES {
            second += seconds[l];
            fourth += fourths[l];
        }
        for &v in rest {
            let v = f64::from(v) - centre;
            let square = v * v;
            second += square;
            fourth += square * square;
        }
        (second, fourth)
    }
}

multiversion! {
    fn add_scaled(row: &[f32], factor: f64, out: &mut [f64]) {
        let n = row.len();
        let out = &mut out[..n];
        for c in 0..n {
            out[c] += f64::from(row[c]) * factor;
        }
    }
}

/// The lower median of |x| over all entries: entry (n - 1) / 2 of the sorted magnitudes, NaN counting as the
/// largest.
/// 0 if there are none.
pub fn median_magnitude(x: &[f32]) -> f32 {
    if x.is_empty() {
        return 0.0;
    }
    let mut magnitudes: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    *magnitudes.select_nth_unstable_by((x.len() - 1) / 2, f32::total_cmp).1
}

/// Places in `x` of finite entries with |x| > `floor`, at least the `k` largest of them (all equal to the
/// least of these are among them); in ascending order of place.
///
/// Rows of 4096 entries that hold nothing above the floor cost one look at their maximum.
pub fn magnitudes_above(x: &[f32], floor: f32, k: usize) -> Vec<usize> {
    const ROW: usize = 4096;
    if k == 0 {
        return Vec::new();
    }
    let parts: Vec<Vec<usize>> = x
        .par_chunks(ROW)
        .enumerate()
        .map(|(i, row)| {
            let peak = sum_and_peak(row).1;
            if peak <= floor {
                return Vec::new();
            }
            let above = |v: &f32| v.is_finite() && v.abs() > floor;
            let mut places: Vec<usize> = (0..row.len()).filter(|&j| above(&row[j])).collect();
            if places.len() > k {
                let mut sizes: Vec<f32> = places.iter().map(|&j| row[j].abs()).collect();
                let least = *sizes.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
                places.retain(|&j| row[j].abs() >= least);
            }
            places.iter().map(|j| i * ROW + j).collect()
        })
        .collect();
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_a_small_matrix() {
        // Row 1: 3/2. Row 2: |0, 4, 1| has lower median 1: 4.
        assert_eq!(max_median_sums(&[1.0, -2.0, 3.0, 0.0, 4.0, -1.0], 3), (5.5, 2, 0));
        assert_eq!(max_median_sums(&[0.0, 0.0, 5.0], 3), (0.0, 0, 1));
    }

    #[test]
    fn an_even_width_takes_the_lower_median() {
        assert_eq!(max_median_sums(&[1.0, 2.0, 4.0, 8.0], 4), (4.0, 1, 0));
        assert_eq!(median_magnitude(&[8.0, -1.0, 4.0, -2.0]), 2.0);
        assert_eq!(median_magnitude(&[]), 0.0);
    }

    #[test]
    fn rows_without_spread_or_direction_are_left_out() {
        // A constant row has a direction and no spread; zeros have neither; the last has both.
        let sums = token_sums(&[2.0, 2.0, 0.0, 0.0, 3.0, -4.0], 2);
        assert_eq!((sums.excess_rows, sums.direction_rows), (1, 2));
        let root = 0.5f64.sqrt();
        assert!((sums.directions[0] - root - 0.6).abs() < 1e-15);
        assert!((sums.directions[1] - root + 0.8).abs() < 1e-15);
        // One channel has a direction, never a spread.
        assert_eq!(token_sums(&[2.0, 5.0], 1).excess_rows, 0);
    }

    #[test]
    fn sequences_are_pooled() {
        let moments = sequence_moments(&[1.0, 3.0, -7.0, -7.0], 2);
        assert_eq!(moments[0], SequenceMoments { second: 2.0, fourth: 2.0, max_abs: 3.0 });
        assert_eq!(moments[1], SequenceMoments { second: 0.0, fourth: 0.0, max_abs: 7.0 });
    }

    #[test]
    fn the_largest_are_found_with_their_ties() {
        let mut x = vec![0.5f32; 10_000];
        (x[3], x[5000], x[9999], x[7]) = (-9.0, 8.0, f32::NAN, f32::INFINITY);
        assert_eq!(magnitudes_above(&x, 1.0, 2), [3, 5000]);
        assert_eq!(magnitudes_above(&x, 8.0, 2), [3]);
        assert_eq!(magnitudes_above(&[1.0, -2.0, 2.0, 2.0], 0.0, 2), [1, 2, 3]);
        assert_eq!(magnitudes_above(&x, 1.0, 0), [0; 0]);
    }
}
