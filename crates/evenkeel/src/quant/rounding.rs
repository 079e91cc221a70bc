//! Rounding whole tensors: which values share a cell, and each cell's range.

use super::QuantError;
use super::grid::Cell;
use super::range::{extremes, of_values};
use super::spec::{Format, Granularity, Scale, Spec};
use rayon::prelude::*;

/// Which entries of a tensor, seen as rows of its last axis, share a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All.
    Tensor,
    /// Those of a row.
    Row,
    /// Those of a column.
    Column,
    /// So many neighbours of a row; the last group may be shorter.
    Group(usize),
}

impl Layout {
    /// Of a weight (out, in), whose channels are its rows.
    pub fn of_weight(granularity: Granularity) -> Self {
        match granularity {
            Granularity::Tensor => Layout::Tensor,
            Granularity::Channel | Granularity::Token => Layout::Row,
            Granularity::Group(n) => Layout::Group(n),
        }
    }

    /// Of an activation (..., channels).
    pub fn of_activation(granularity: Granularity) -> Self {
        match granularity {
            Granularity::Tensor => Layout::Tensor,
            Granularity::Channel => Layout::Column,
            Granularity::Token => Layout::Row,
            Granularity::Group(n) => Layout::Group(n),
        }
    }

    /// Cells of a tensor with rows of `width`; columns are not pieces and have none.
    fn pieces(self, width: usize) -> Option<(usize, usize)> {
        let width = width.max(1);
        match self {
            Layout::Tensor | Layout::Column => None,
            Layout::Row => Some((width, 1)),
            Layout::Group(n) => Some((n.clamp(1, width), width.div_ceil(n.clamp(1, width)))),
        }
    }
}

/// The cells of a tensor, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounding {
    /// Who shares them.
    pub layout: Layout,
    /// One, or one for each row, column or group.
    pub cells: Vec<Cell>,
}

impl Rounding {
    /// Of a weight whose values are all there, rows of `width`.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn of_weight(name: &str, spec: Spec, values: &[f32], width: usize) -> Result<Self, QuantError> {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(QuantError::NonFinite { site: name.into() });
        }
        let (layout, own) = (Layout::of_weight(spec.granularity), WeightCells::of(spec, values));
        let cells = match layout.pieces(width) {
            None => vec![own.cell(values)],
            Some((size, _)) => cells_of_pieces(values, width, size, |piece| own.cell(piece)),
        };
        Ok(Self { layout, cells })
    }

    /// Of an activation with the calibrated ranges of its cells: one, or one for each column.
    pub fn of_ranges(spec: Spec, ranges: &[(f64, f64)]) -> Self {
        let cells = ranges.iter().map(|&range| Cell::of_range(spec.format, range, false)).collect();
        Self { layout: Layout::of_activation(spec.granularity), cells }
    }

    /// Of an activation, rows of `width`, whose cells take their ranges from its finite values. `tensor_peak` is the largest
    /// magnitude that calibration found, which NVFP4 scales a tensor by; without one it is that of the values.
    pub fn of_dynamic(spec: Spec, tensor_peak: Option<f64>, values: &[f32], width: usize) -> Self {
        let layout = Layout::of_activation(spec.granularity);
        let tensor_peak = match spec.scale {
            Scale::E4m3 => tensor_peak.unwrap_or_else(|| peak(extremes(values))),
            Scale::Float | Scale::PowerOfTwo => 0.0,
        };
        let cell = |values: &[f32]| own_cell(spec, values, tensor_peak);
        let cells = match (layout, layout.pieces(width)) {
            (Layout::Column, _) => {
                let column = |c| values.iter().skip(c).step_by(width.max(1)).copied().collect::<Vec<_>>();
                (0..width).into_par_iter().map(|c| cell(&column(c))).collect()
            }
            (_, None) => vec![cell(values)],
            (_, Some((size, _))) => cells_of_pieces(values, width, size, cell),
        };
        Self { layout, cells }
    }

    /// What stands for each value of a tensor with rows of `width`: its integer, or its floating-point number before the scale
    /// multiplies it.
    pub fn levels(&self, values: &[f32], width: usize) -> Vec<f32> {
        let width = width.max(1);
        match (self.layout.pieces(width), &self.cells[..]) {
            (None, [cell]) => cell.levels(values),
            (None, cells) => {
                let pairs = values.chunks(width).flat_map(|row| row.iter().zip(cells));
                pairs.flat_map(|(v, cell)| cell.levels(std::slice::from_ref(v))).collect()
            }
            (Some((size, count)), cells) => {
                let rows = values.chunks(width).zip(cells.chunks(count));
                let pieces = rows.flat_map(|(row, cells)| row.chunks(size).zip(cells));
                pieces.flat_map(|(piece, cell)| cell.levels(piece)).collect()
            }
        }
    }

    /// x ← x̂, on all threads.
    pub fn apply(&self, x: &mut [f32], width: usize) {
        let width = width.max(1);
        match (self.layout.pieces(width), &self.cells[..]) {
            (None, [cell]) => cell.round(x),
            (None, cells) => x.par_chunks_mut(width).for_each(|row| {
                for (v, cell) in row.iter_mut().zip(cells) {
                    cell.round_serial(std::slice::from_mut(v));
                }
            }),
            (Some((size, count)), cells) => {
                x.par_chunks_mut(width).zip(cells.par_chunks(count)).for_each(|(row, cells)| {
                    for (piece, cell) in row.chunks_mut(size).zip(cells) {
                        cell.round_serial(piece);
                    }
                });
            }
        }
    }
}

/// What the cells of a weight have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightCells {
    spec: Spec,
    unsigned: bool,
    /// Largest magnitude, which two scales need.
    peak: f64,
}

impl WeightCells {
    /// Of the weight with these values.
    pub(super) fn of(spec: Spec, values: &[f32]) -> Self {
        Self { spec, unsigned: values.iter().all(|&v| v >= 0.0), peak: peak(extremes(values)) }
    }

    /// The cell of some of its values.
    pub(super) fn cell(&self, values: &[f32]) -> Cell {
        let Spec { format, scale, range, .. } = self.spec;
        match (format, scale) {
            (Format::Float(_), Scale::PowerOfTwo | Scale::E4m3) => own_cell(self.spec, values, self.peak),
            _ => Cell::of_range(format, of_values(range, format, values, self.unsigned), self.unsigned),
        }
    }
}

/// x ← x̂ for an activation whose cells take their ranges from the values themselves, as [`Rounding::of_dynamic`] has them.
pub fn round_dynamic(spec: Spec, tensor_peak: Option<f64>, x: &mut [f32], width: usize) {
    Rounding::of_dynamic(spec, tensor_peak, x, width).apply(x, width);
}

/// The cells of rows of `width` cut into pieces of `size`, row by row.
fn cells_of_pieces(
    values: &[f32],
    width: usize,
    size: usize,
    cell: impl Fn(&[f32]) -> Cell + Sync,
) -> Vec<Cell> {
    let rows = values.par_chunks(width.max(1));
    rows.flat_map_iter(|row| row.chunks(size).map(&cell).collect::<Vec<_>>()).collect()
}

/// The cell of these values by their extremes alone.
fn own_cell(spec: Spec, values: &[f32], tensor_peak: f64) -> Cell {
    let range = extremes(values);
    match (spec.format, spec.scale) {
        (Format::Float(format), Scale::PowerOfTwo) => Cell::of_shared_exponent(format, peak(range) as f32),
        (Format::Float(format), Scale::E4m3) => {
            Cell::of_two_scales(format, peak(range) as f32, Cell::tensor_scale(format, tensor_peak))
        }
        _ => Cell::of_range(spec.format, range, false),
    }
}

/// The larger magnitude.
pub(super) fn peak((lo, hi): (f64, f64)) -> f64 {
    hi.max(-lo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_and_each_group_has_its_own_step() {
        let values: Vec<f32> = (0..3 * 10).map(|i| (i % 10) as f32 * 10f32.powi(i / 10)).collect();
        for (words, cells) in [("tensor", 1), ("channel", 3), ("group:4", 9), ("group:64", 3)] {
            let spec = Spec::WEIGHT.with(&format!("int4 min_max {words}")).unwrap();
            let rounding = Rounding::of_weight("w", spec, &values, 10).unwrap();
            assert_eq!(rounding.cells.len(), cells, "{words}");
            let mut rounded = values.clone();
            rounding.apply(&mut rounded, 10);
            for (i, (x, y)) in values.iter().zip(&rounded).enumerate() {
                let step = match words {
                    "tensor" => 60.0,
                    _ => 0.6 * 10f32.powi(i as i32 / 10),
                };
                assert!((x - y).abs() <= step / 2.0 + 1e-5, "{words} {i}");
            }
        }
    }

    #[test]
    fn a_dynamic_token_does_not_see_its_neighbours() {
        let spec = Spec::ACTIVATION.with("int8 token dynamic").unwrap();
        let mut x = [0.1, 0.2, 0.3, 1000.0, -5.0, 7.0];
        round_dynamic(spec, None, &mut x, 3);
        assert!((x[2] - 0.3).abs() < 1e-6 && (x[0] - 0.1).abs() < 1e-3);
    }
}
