//! Sums over activations from which the outlier metrics are made, in one pass and in a fixed order.

use crate::isa::multiversion;
use crate::threads::map_row_pieces;

/// Sums over the rows of one (rows, width) matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelSums {
    /// Σ x² of each channel, in float64.
    pub squares: Vec<f64>,
    /// max |x| over all entries.
    pub max_abs: f32,
}

/// Channel sums of `x`, rows of `width`.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn channel_sums(x: &[f32], width: usize) -> ChannelSums {
    assert!(width > 0 && x.len().is_multiple_of(width));
    let parts = map_row_pieces(x.len() / width, width, 256 * width, |first, rows| {
        let mut squares = vec![0.0f64; width];
        let mut peaks = vec![0.0f32; width];
        for row in x[first * width..(first + rows) * width].chunks_exact(width) {
            add_row(row, &mut squares, &mut peaks);
        }
        let peak = peaks.iter().fold(0.0f32, |m, &v| if v > m || v.is_nan() { v } else { m });
        (squares, peak)
    });
    let mut total = ChannelSums { squares: vec![0.0; width], max_abs: 0.0 };
    for (squares, peak) in parts {
        for (t, s) in total.squares.iter_mut().zip(&squares) {
            *t += s;
        }
        if peak > total.max_abs || peak.is_nan() {
            total.max_abs = peak;
        }
    }
    total
}

multiversion! {
    fn add_row(row: &[f32], squares: &mut [f64], peaks: &mut [f32]) {
        let n = row.len();
        let (squares, peaks) = (&mut squares[..n], &mut peaks[..n]);
        for c in 0..n {
            squares[c] += row[c] as f64 * row[c] as f64;
            let a = row[c].abs();
            peaks[c] = if a > peaks[c] || a.is_nan() { a } else { peaks[c] };
        }
    }
}

/// Σ over rows of max |x| / lower median |x|, the rows that count, and the rows left out because their
/// median is 0 (Eq 2 of the paper). The sum is NaN if a row holds NaN.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn max_median_sums(x: &[f32], width: usize) -> (f64, u64, u64) {
    assert!(width > 0 && x.len().is_multiple_of(width));
    let parts = map_row_pieces(x.len() / width, width, 16 * 1024, |first, rows| {
        let mut magnitudes = vec![0.0f32; width];
        let (mut sum, mut counted, mut skipped) = (0.0f64, 0u64, 0u64);
        for row in x[first * width..(first + rows) * width].chunks_exact(width) {
            for (m, v) in magnitudes.iter_mut().zip(row) {
                *m = v.abs();
            }
            // The lower median: entry (d - 1) / 2 of the sorted magnitudes. Its right part holds the maximum.
            let (_, &mut median, above) = magnitudes.select_nth_unstable_by((width - 1) / 2, f32::total_cmp);
            // total_cmp sorts NaN last, so that the peak is NaN if the row holds one.
            let peak = above.iter().fold(median, |m, &v| if v > m || v.is_nan() { v } else { m });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_small_matrix() {
        let x = [1.0, -2.0, 3.0, 0.0, 4.0, -1.0];
        let sums = channel_sums(&x, 3);
        assert_eq!(sums.squares, vec![1.0, 20.0, 10.0]);
        assert_eq!(sums.max_abs, 4.0);
        // Row 1: 3/2. Row 2: |0, 4, 1| has lower median 1: 4.
        assert_eq!(max_median_sums(&x, 3), (5.5, 2, 0));
        assert_eq!(max_median_sums(&[0.0, 0.0, 5.0], 3), (0.0, 0, 1));
    }

    #[test]
    fn an_even_width_takes_the_lower_median() {
        assert_eq!(max_median_sums(&[1.0, 2.0, 4.0, 8.0], 4), (4.0, 1, 0));
    }

    #[test]
    fn nan_shows() {
        assert!(channel_sums(&[1.0, f32::NAN], 2).max_abs.is_nan());
    }
}
