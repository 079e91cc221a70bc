//! Linear layers on bytes: a product and what turns its sums into the layer's output, one pass.
//!
//! `y[m, n] = act(s[m] s[n] (Σ x w - z[m] Σ w[n] - z_w Σ x[m] + offset[n]) + bias[n])`, the integers exact. Where
//! all rows share one grid, its zero point is part of the offsets and its step of the columns' scales.

use super::requantise::{Scale, Terms, dequantise_into, requantise_into};
use super::{PackedI8, gemm_i8_into};
use crate::quant::Grid;

/// What differs from row to row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows<'a> {
    /// Zero point and step of each row's own grid; the columns' terms know nothing of them.
    pub grids: Option<&'a [Grid]>,
    /// Zero point of the weights, z_w.
    pub weight_zero_point: i32,
}

/// The layer's output in float32, (rows, outputs), on all threads. `x` is (rows, inner).
///
/// # Panics
/// If sizes disagree.
pub fn layer(x: &[u8], rows: usize, w: &PackedI8, terms: Terms, by_row: Rows, out: &mut [f32]) {
    assert_eq!(out.len(), rows * w.outputs());
    assert!(by_row.grids.is_none_or(|grids| grids.len() == rows));
    let own = by_row.grids.is_some() || by_row.weight_zero_point != 0;
    gemm_i8_into(x, rows, w, out, |row, first, sums, piece| {
        let terms = terms.columns(first, sums.len());
        if own {
            of_row(x, row, w, first, sums, terms, by_row, piece);
        } else {
            dequantise_into(sums, terms, piece);
        }
    });
}

/// A piece of a row that has a grid of its own, or of weights with a zero point.
#[allow(clippy::too_many_arguments)]
fn of_row(
    x: &[u8],
    row: usize,
    w: &PackedI8,
    first: usize,
    sums: &[i32],
    terms: Terms,
    by_row: Rows,
    out: &mut [f32],
) {
    let (zero, step) = match by_row.grids {
        Some(grids) => (grids[row].zero_point as i32, grids[row].scale),
        None => (0, 1.0),
    };
    let constant = match by_row.weight_zero_point {
        0 => 0,
        weight_zero => {
            let x = &x[row * w.inner()..][..w.inner()];
            let sum: i32 = x.iter().map(|&b| i32::from(b)).sum();
            weight_zero.wrapping_mul((w.inner() as i32).wrapping_mul(zero).wrapping_sub(sum))
        }
    };
    let offset: Vec<i32> = w.sums()[first..first + sums.len()]
        .iter()
        .zip(terms.offset)
        .map(|(sum, offset)| offset.wrapping_add(constant).wrapping_sub(zero.wrapping_mul(*sum)))
        .collect();
    let scale: Vec<f32> = match terms.scale {
        Scale::One(scale) => vec![step * scale],
        Scale::Columns(scales) => scales.iter().map(|scale| step * scale).collect(),
    };
    let scale = match scale[..] {
        [only] if sums.len() != 1 => Scale::One(only),
        _ => Scale::Columns(&scale),
    };
    dequantise_into(sums, Terms { offset: &offset, scale, ..terms }, out);
}

/// The layer's output as bytes on `grid`, on all threads.
///
/// # Panics
/// If sizes disagree, or the grid's integers are not bytes.
pub fn layer_u8(x: &[u8], rows: usize, w: &PackedI8, terms: Terms, grid: Grid, out: &mut [u8]) {
    assert_eq!(out.len(), rows * w.outputs());
    gemm_i8_into(x, rows, w, out, |_, first, sums, piece| {
        requantise_into(sums, terms.columns(first, sums.len()), grid, piece);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize, seed: usize) -> Vec<u8> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 256) as u8).collect()
    }

    #[test]
    fn zero_points_of_rows_and_weights_come_off_the_sums() {
        let (rows, outputs, inner) = (3, 5, 7);
        let x = bytes(rows * inner, 1);
        let w: Vec<i8> = bytes(outputs * inner, 2).into_iter().map(|b| b as i8).collect();
        let packed = PackedI8::new(&w, outputs, inner);
        let grids: Vec<Grid> = (0..rows)
            .map(|m| Grid { scale: 0.5 + m as f32, zero_point: 10.0 * m as f32, low: 0.0, high: 255.0 })
            .collect();
        let (offset, scales, bias) = (vec![3; outputs], [1.0, 2.0, 3.0, 4.0, 5.0], [0.25; 5]);
        let terms =
            Terms { offset: &offset, scale: Scale::Columns(&scales), bias: Some(&bias), activation: None };
        let mut out = vec![0.0; rows * outputs];
        layer(&x, rows, &packed, terms, Rows { grids: Some(&grids), weight_zero_point: -128 }, &mut out);
        for m in 0..rows {
            for n in 0..outputs {
                let sum: i64 = (0..inner)
                    .map(|k| {
                        (i64::from(x[m * inner + k]) - 10 * m as i64) * (i64::from(w[n * inner + k]) + 128)
                    })
                    .sum();
                let want = (sum + 3) as f32 * ((0.5 + m as f32) * scales[n]) + 0.25;
                assert_eq!(out[m * outputs + n], want, "{m} {n}");
            }
        }
    }
}
