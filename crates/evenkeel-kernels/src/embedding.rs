//! Token (and position) embedding: a gather forward, a scatter backward.
//!
//! The scatter is cut by columns: each piece walks all tokens in order for its own channels, so two threads
//! never write one place and the order of additions is that of the tokens.

use crate::threads::{PIECE, Shared, for_row_pieces};
use rayon::prelude::*;

/// Channels per piece of the scatter: one cache line's worth times four.
const COLUMNS: usize = 64;

/// `out[t] = table[ids[t]] (+ positions[t mod context])`; rows of `width`.
///
/// # Panics
/// If an id lies outside the table or sizes disagree.
pub fn forward(
    table: &[f32],
    positions: Option<&[f32]>,
    ids: &[u32],
    context: usize,
    width: usize,
    out: &mut [f32],
) {
    assert_eq!(out.len(), ids.len() * width);
    for_row_pieces(out, width, PIECE, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let id = ids[first + i] as usize;
            row.copy_from_slice(&table[id * width..(id + 1) * width]);
            if let Some(positions) = positions {
                let t = (first + i) % context;
                for (r, p) in row.iter_mut().zip(&positions[t * width..(t + 1) * width]) {
                    *r += p;
                }
            }
        }
    });
}

/// `table[ids[t]] += dy[t]` for every token t in order.
///
/// # Panics
/// If an id lies outside the table or sizes disagree.
pub fn backward(dy: &[f32], ids: impl Fn(usize) -> usize + Sync, width: usize, table: &mut [f32]) {
    assert!(width > 0 && dy.len().is_multiple_of(width));
    let rows = table.len() / width;
    let tokens = dy.len() / width;
    let shared = Shared::new(table);
    (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|piece| {
        let first = piece * COLUMNS;
        let count = COLUMNS.min(width - first);
        for t in 0..tokens {
            let id = ids(t);
            assert!(id < rows, "token id outside the embedding table");
            // SAFETY: id < rows keeps the window inside the table, and only this piece touches these columns.
            let target = unsafe { std::slice::from_raw_parts_mut(shared.at(id * width + first), count) };
            for (w, d) in target.iter_mut().zip(&dy[t * width + first..][..count]) {
                *w += d;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_is_the_transpose_of_gather() {
        let (vocab, width, context) = (7, 70, 4);
        let table: Vec<f32> = (0..vocab * width).map(|i| i as f32).collect();
        let positions: Vec<f32> = (0..context * width).map(|i| 0.5 * i as f32).collect();
        let ids = [3u32, 0, 6, 3, 1, 3, 2, 2];
        let mut out = vec![0.0; ids.len() * width];
        forward(&table, Some(&positions), &ids, context, width, &mut out);
        assert_eq!(out[5 * width + 2], table[3 * width + 2] + positions[width + 2]);
        let dy: Vec<f32> = (0..out.len()).map(|i| (i % 13) as f32).collect();
        let mut grad = vec![0.0; table.len()];
        backward(&dy, |t| ids[t] as usize, width, &mut grad);
        for c in 0..width {
            let want: f32 = [0, 3, 5].iter().map(|t| dy[t * width + c]).sum();
            assert_eq!(grad[3 * width + c], want);
            assert_eq!(grad[4 * width + c], 0.0);
        }
    }
}
