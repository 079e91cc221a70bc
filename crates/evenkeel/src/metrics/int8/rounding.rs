//! Rounding a matrix to 8 bits, and what is lost of the whole, of each column and of each row.

use super::{finite, severity};
use crate::quant::Quantiser;
use evenkeel_kernels::quant::{ColumnGrids, Grid, add_column_errors};
use rayon::prelude::*;

/// What rounding loses: the error of the whole, and the larger of the medians over columns and over rows.
pub(super) struct Loss {
    pub(super) error: Option<f64>,
    pub(super) median: Option<f64>,
}

impl Loss {
    pub(super) fn severity(&self) -> Option<f64> {
        Some(severity(self.error?, self.median.unwrap_or(0.0)))
    }
}

/// Σ (x - x̂)² and Σ x² of every column and of every row.
struct Sums {
    errors: Vec<f64>,
    squares: Vec<f64>,
    rows: Vec<(f64, f64)>,
}

impl Sums {
    fn new(width: usize) -> Self {
        Self { errors: vec![0.0; width], squares: vec![0.0; width], rows: Vec::new() }
    }

    fn clear(&mut self) {
        self.errors.fill(0.0);
        self.squares.fill(0.0);
    }

    fn add_columns(&mut self, other: &Self) {
        self.errors.iter_mut().zip(&other.errors).for_each(|(s, v)| *s += v);
        self.squares.iter_mut().zip(&other.squares).for_each(|(s, v)| *s += v);
    }

    /// Adds the sums of a single row.
    fn add_row(&mut self, row: &Self) {
        self.add_columns(row);
        self.rows.push((row.errors.iter().sum(), row.squares.iter().sum()));
    }

    fn joined(parts: Vec<Self>, width: usize) -> Self {
        parts.into_iter().fold(Self::new(width), |mut all, part| {
            all.add_columns(&part);
            all.rows.extend(part.rows);
            all
        })
    }

    fn loss(&self) -> Loss {
        let energy: f64 = self.squares.iter().sum();
        if energy == 0.0 {
            return Loss { error: Some(0.0), median: Some(0.0) };
        }
        let error = finite((self.errors.iter().sum::<f64>() / energy).sqrt());
        let columns = self.errors.iter().copied().zip(self.squares.iter().copied());
        let median = [median_within(columns), median_within(self.rows.iter().copied())];
        let larger = median.into_iter().flatten().reduce(f64::max);
        Loss { error, median: error.and(larger) }
    }
}

/// Lower median of √(e / s) over the pairs whose s is not 0.
fn median_within(pairs: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let mut within: Vec<f64> = pairs.filter(|(_, s)| *s > 0.0).map(|(e, s)| (e / s).sqrt()).collect();
    let middle = within.len().checked_sub(1)? / 2;
    let (_, &mut median, _) = within.select_nth_unstable_by(middle, f64::total_cmp);
    finite(median)
}

/// Rows that one piece of work takes.
const ROWS: usize = 64;

/// What has a step of its own.
pub(super) enum By {
    All(Grid),
    Row(fn(&[f32]) -> Grid),
    Column(fn(&[f32], &[f32]) -> Vec<Grid>),
}

/// A matrix, row after row.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) width: usize,
}

impl Rows<'_> {
    fn piece(&self) -> usize {
        (ROWS * self.width).max(1)
    }

    /// What rounding loses.
    pub(super) fn rounded(&self, by: &By) -> Loss {
        let width = self.width;
        let columns = match by {
            By::Column(grids) => {
                let (lo, hi) = self.column_bounds();
                grids(&lo, &hi)
            }
            By::All(grid) => vec![*grid; width],
            By::Row(_) => Vec::new(),
        };
        let of = |grids: &[Grid]| -> (Vec<f32>, Vec<f32>) {
            grids.iter().map(|grid| (grid.scale, grid.zero_point)).unzip()
        };
        let (scale, zero) = of(&columns);
        let limits = |grids: &[Grid]| grids.first().map_or((0.0, 0.0), |grid| (grid.low, grid.high));
        let parts: Vec<Sums> = self
            .values
            .par_chunks(self.piece())
            .map(|rows| {
                let (mut sums, mut one) = (Sums::new(width), Sums::new(width));
                for row in rows.chunks_exact(width.max(1)) {
                    let own = if let By::Row(grid) = by { Some(grid(row)) } else { None };
                    let step = own.map(|grid| (vec![grid.scale; width], vec![grid.zero_point; width], grid));
                    let (scale, zero_point, (low, high)) = match &step {
                        Some((scale, zero, grid)) => (&scale[..], &zero[..], (grid.low, grid.high)),
                        None => (&scale[..], &zero[..], limits(&columns)),
                    };
                    one.clear();
                    let grids = ColumnGrids { scale, zero_point, low, high };
                    add_column_errors(row, grids, (&mut one.errors, &mut one.squares));
                    sums.add_row(&one);
                }
                sums
            })
            .collect();
        Sums::joined(parts, width).loss()
    }

    /// Smallest and largest entry of every column.
    fn column_bounds(&self) -> (Vec<f32>, Vec<f32>) {
        let none = || (vec![f32::INFINITY; self.width], vec![f32::NEG_INFINITY; self.width]);
        let of = |rows: &[f32]| {
            let (mut lo, mut hi) = none();
            for row in rows.chunks_exact(self.width.max(1)) {
                for ((lo, hi), &v) in lo.iter_mut().zip(&mut hi).zip(row) {
                    (*lo, *hi) = (lo.min(v), hi.max(v));
                }
            }
            (lo, hi)
        };
        self.values.par_chunks(self.piece()).map(of).reduce(none, |mut a, b| {
            a.0.iter_mut().zip(b.0).for_each(|(a, b)| *a = a.min(b));
            a.1.iter_mut().zip(b.1).for_each(|(a, b)| *a = a.max(b));
            a
        })
    }

    /// Where the entry of largest magnitude is, of equals the first; `None` for zeros.
    pub(super) fn peak(&self) -> Option<usize> {
        const PIECE: usize = 1 << 14;
        let largest = |(i, part): (usize, &[f32])| {
            part.iter().enumerate().fold((0, 0.0f32), |best, (j, v)| {
                if v.abs() > best.1 { (i * PIECE + j, v.abs()) } else { best }
            })
        };
        let parts: Vec<(usize, f32)> = self.values.par_chunks(PIECE).enumerate().map(largest).collect();
        let best = parts.into_iter().fold((0, 0.0f32), |a, b| if b.1 > a.1 { b } else { a });
        (best.1 > 0.0).then_some(best.0)
    }
}

pub(super) fn asymmetric(x: &[f32]) -> Grid {
    let bounds = |part: &[f32]| {
        part.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
    };
    let parts: Vec<(f32, f32)> = x.par_chunks(1 << 14).map(bounds).collect();
    let (lo, hi) =
        parts.into_iter().fold((f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)));
    Quantiser::asymmetric(8, f64::from(lo), f64::from(hi)).grid()
}

pub(super) fn symmetric(x: &[f32]) -> Grid {
    let peak = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    Quantiser::symmetric(8, f64::from(peak), false).grid()
}

pub(super) fn asymmetric_columns(lo: &[f32], hi: &[f32]) -> Vec<Grid> {
    let grid = |(&lo, &hi)| Quantiser::asymmetric(8, f64::from(lo), f64::from(hi)).grid();
    lo.iter().zip(hi).map(grid).collect()
}

pub(super) fn symmetric_columns(lo: &[f32], hi: &[f32]) -> Vec<Grid> {
    lo.iter().zip(hi).map(|(lo, hi)| symmetric(&[*lo, *hi])).collect()
}
