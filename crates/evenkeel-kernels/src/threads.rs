//! Cutting work by shape and running the pieces on the rayon pool.
//!
//! The number of rows in a piece depends on the shape alone. Threads only decide who computes a piece,
//! so results are bit-identical for every thread count.

use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows per piece so that a piece is about `target` elements, at least one row.
pub fn rows_per_piece(columns: usize, target: usize) -> usize {
    (target / columns.max(1)).max(1)
}

/// Elements per piece of an elementwise pass: 64 Ki floats, 256 KiB, a part of L2.
pub const PIECE: usize = 64 * 1024;

/// Runs `f(first_row, rows)` for each piece of `out`, a matrix with `columns` columns.
pub fn for_row_pieces<T: Send>(
    out: &mut [T],
    columns: usize,
    target: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() || columns == 0 {
        return;
    }
    let rows = rows_per_piece(columns, target);
    out.par_chunks_mut(rows * columns).enumerate().for_each(|(i, piece)| f(i * rows, piece));
}

/// Runs `f(first_row, row_count)` over `rows` rows of `columns` columns and returns the pieces' results
/// in order, ready for a fixed-order reduction.
pub fn map_row_pieces<R: Send>(
    rows: usize,
    columns: usize,
    target: usize,
    f: impl Fn(usize, usize) -> R + Sync,
) -> Vec<R> {
    let step = rows_per_piece(columns, target);
    (0..rows.div_ceil(step)).into_par_iter().map(|i| f(i * step, step.min(rows - i * step))).collect()
}

/// Sums vectors of equal length in their order, into the first.
pub fn sum_in_order(parts: Vec<Vec<f64>>, length: usize) -> Vec<f64> {
    let mut total = vec![0.0; length];
    for part in parts {
        for (t, p) in total.iter_mut().zip(&part) {
            *t += p;
        }
    }
    total
}

/// A mutable buffer that several threads write at once, each at places no other thread touches.
pub struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `Shared` hands out raw pointers only; every use states why its writes are disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above; the pointer itself may move between threads.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Borrows `slice` for the parallel region that uses the result.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), slice: PhantomData }
    }

    /// A buffer that may not hold values yet.
    ///
    /// # Safety
    /// `start` is valid for writes of `length` elements, by nobody else, as long as the result is used.
    pub unsafe fn from_raw(start: *mut T, length: usize) -> Self {
        Self { start, length, slice: PhantomData }
    }

    /// A pointer to element `offset`.
    ///
    /// # Panics
    /// If `offset` is past the end.
    pub fn at(&self, offset: usize) -> *mut T {
        assert!(offset <= self.length);
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.add(offset) }
    }
}

/// `out[i] = f(a[i], b[i])` in parallel; a helper for elementwise passes over two inputs.
pub fn zip_map(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) {
    assert!(a.len() == b.len() && a.len() == out.len());
    out.par_chunks_mut(PIECE)
        .zip(a.par_chunks(PIECE))
        .zip(b.par_chunks(PIECE))
        .for_each(|((o, a), b)| f(a, b, o));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_rows_once() {
        for rows in [0, 1, 7, 100] {
            let counts = map_row_pieces(rows, 3, 10, |first, n| (first, n));
            let mut next = 0;
            for (first, n) in counts {
                assert_eq!(first, next);
                next += n;
            }
            assert_eq!(next, rows);
        }
    }
}
