//! Sums by channel in one pass over the activations.
//!
//! The mean of a channel may be hundreds of times its spread (much of the outlier energy is a constant
//! vector), so squares are taken about a pivot, the channel's first value in a piece of rows, and pieces are
//! joined by the rule of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
//! sample variances", 1979), which loses nothing where means are equal. What is added later, another batch,
//! is joined by the same rule.

use super::{larger, rows_of};
use crate::isa::multiversion;
use crate::threads::map_row_pieces;

/// Rows that are added up in registers before the totals are touched.
const GROUP: usize = 8;
/// Channels side by side: one AVX-512 register of float64, two AVX2 ones.
const LANES: usize = 8;
/// Elements in a piece of rows, 256 KiB.
const PIECE: usize = 64 * 1024;

/// Moments of each channel over the rows seen so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelMoments {
    /// Rows seen, n.
    pub rows: u64,
    /// Mean over rows of each channel.
    pub mean: Vec<f64>,
    /// Σ over rows of (x - channel's mean)². Exactly 0 for a channel that is constant.
    pub deviations: Vec<f64>,
    /// Σ over rows of (x - row's mean)².
    pub centred: Vec<f64>,
    /// max |x| over all entries; NaN if one is.
    pub max_abs: f32,
}

impl ChannelMoments {
    /// Joins the moments of other rows of the same channels.
    ///
    /// # Panics
    /// If both have rows and their numbers of channels differ.
    pub fn merge(&mut self, other: &Self) {
        if other.rows == 0 {
            return;
        }
        if self.rows == 0 {
            self.clone_from(other);
            return;
        }
        assert_eq!(self.mean.len(), other.mean.len(), "moments of the same channels are joined");
        let (n, m) = (self.rows as f64, other.rows as f64);
        for c in 0..self.mean.len() {
            let step = other.mean[c] - self.mean[c];
            self.mean[c] += step * (m / (n + m));
            self.deviations[c] += other.deviations[c] + step * step * (n * (m / (n + m)));
            self.centred[c] += other.centred[c];
        }
        self.rows += other.rows;
        self.max_abs = larger(self.max_abs, other.max_abs);
    }

    /// Σ over rows of x² of each channel. Two terms of one sign: nothing cancels.
    pub fn squares(&self) -> Vec<f64> {
        let n = self.rows as f64;
        self.deviations.iter().zip(&self.mean).map(|(deviation, mean)| deviation + n * mean * mean).collect()
    }
}

/// The moments of `x`, rows of `width`.
///
/// # Panics
/// If `width` is 0 or does not divide the length.
pub fn channel_moments(x: &[f32], width: usize) -> ChannelMoments {
    let pieces = map_row_pieces(rows_of(x, width), width, PIECE, |first, rows| {
        piece(&x[first * width..(first + rows) * width], width)
    });
    let mut total = ChannelMoments { mean: vec![0.0; width], ..Default::default() };
    (total.deviations, total.centred) = (vec![0.0; width], vec![0.0; width]);
    for piece in &pieces {
        total.merge(piece);
    }
    total
}

fn piece(x: &[f32], width: usize) -> ChannelMoments {
    let rows = x.len() / width;
    let mut moments = ChannelMoments {
        rows: rows as u64,
        mean: vec![0.0; width],
        deviations: vec![0.0; width],
        centred: vec![0.0; width],
        max_abs: 0.0,
    };
    let pivot: Vec<f64> = x[..width].iter().map(|&v| f64::from(v)).collect();
    for group in x.chunks(GROUP * width) {
        let mut means = [0.0; GROUP];
        for (mean, row) in means.iter_mut().zip(group.chunks_exact(width)) {
            let (sum, peak) = sum_and_peak(row);
            *mean = sum / width as f64;
            moments.max_abs = larger(moments.max_abs, peak);
        }
        let ChannelMoments { mean, deviations, centred, .. } = &mut moments;
        add_group(group, width, &means, &pivot, mean, deviations, centred);
    }
    // So far sums about the pivot: first of x - p, then of its square.
    let n = rows as f64;
    for ((mean, deviation), pivot) in moments.mean.iter_mut().zip(&mut moments.deviations).zip(&pivot) {
        let shift = *mean / n;
        let about_mean = *deviation - *mean * shift;
        // Rounding may leave a little below 0; NaN must stay.
        *deviation = if about_mean < 0.0 { 0.0 } else { about_mean };
        *mean = pivot + shift;
    }
    moments
}

multiversion! {
    /// Σ x and max |x| of a row.
    pub(super) fn sum_and_peak(row: &[f32]) -> (f64, f32) {
        let mut sums = [0.0f64; 2 * LANES];
        let mut peaks = [0.0f32; 2 * LANES];
        let chunks = row.chunks_exact(2 * LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for l in 0..2 * LANES {
                sums[l] += f64::from(chunk[l]);
                peaks[l] = larger(peaks[l], chunk[l].abs());
            }
        }
        let (mut sum, mut peak) = (0.0, 0.0f32);
        for l in 0..2 * LANES {
            sum += sums[l];
            peak = larger(peak, peaks[l]);
        }
        for &v in rest {
            sum += f64::from(v);
            peak = larger(peak, v.abs());
        }
        (sum, peak)
    }
}

multiversion! {
    /// Adds at most [`GROUP`] rows: x - pivot, its square, and (x - row's mean)².
    fn add_group(
        rows: &[f32],
        width: usize,
        means: &[f64; GROUP],
        pivot: &[f64],
        first: &mut [f64],
        second: &mut [f64],
        centred: &mut [f64],
    ) {
        let whole = width - width % LANES;
        for at in (0..whole).step_by(LANES) {
            let end = at + LANES;
            let mut p = [0.0f64; LANES];
            p.copy_from_slice(&pivot[at..end]);
            let (mut a, mut b, mut c) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
            for (row, mean) in rows.chunks_exact(width).zip(means) {
                let x = &row[at..end];
                for l in 0..LANES {
                    let v = f64::from(x[l]);
                    let (from_pivot, from_mean) = (v - p[l], v - mean);
                    a[l] += from_pivot;
                    b[l] += from_pivot * from_pivot;
                    c[l] += from_mean * from_mean;
                }
            }
            let totals = (&mut first[at..end], &mut second[at..end], &mut centred[at..end]);
            for l in 0..LANES {
                totals.0[l] += a[l];
                totals.1[l] += b[l];
                totals.2[l] += c[l];
            }
        }
        for at in whole..width {
            let (mut a, mut b, mut c) = (0.0f64, 0.0f64, 0.0f64);
            for (row, mean) in rows.chunks_exact(width).zip(means) {
                let v = f64::from(row[at]);
                let (from_pivot, from_mean) = (v - pivot[at], v - mean);
                a += from_pivot;
                b += from_pivot * from_pivot;
                c += from_mean * from_mean;
            }
            first[at] += a;
            second[at] += b;
            centred[at] += c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_a_small_matrix() {
        let moments = channel_moments(&[1.0, -2.0, 3.0, 0.0, 4.0, -1.0], 3);
        assert_eq!((moments.rows, moments.max_abs), (2, 4.0));
        assert_eq!(moments.mean, [0.5, 1.0, 1.0]);
        assert_eq!(moments.deviations, [0.5, 18.0, 8.0]);
        assert_eq!(moments.squares(), [1.0, 20.0, 10.0]);
        // Row means 2/3 and 1.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-14;
        assert!(near(moments.centred[0], 1.0 / 9.0 + 1.0) && near(moments.centred[1], 64.0 / 9.0 + 9.0));
    }

    #[test]
    fn a_constant_channel_has_no_deviation_however_it_is_cut() {
        let (rows, width) = (PIECE, 3);
        let x: Vec<f32> = (0..rows * width).map(|i| [0.1, 300.3, i as f32][i % width]).collect();
        let mut moments = channel_moments(&x, width);
        moments.merge(&channel_moments(&x[..7 * width], width));
        assert_eq!(moments.deviations[..2], [0.0, 0.0]);
        assert!(moments.deviations[2] > 0.0);
    }

    #[test]
    fn nan_shows() {
        assert!(channel_moments(&[1.0, f32::NAN], 2).max_abs.is_nan());
    }
}
