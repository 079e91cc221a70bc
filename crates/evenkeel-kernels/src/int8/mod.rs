//! Products of unsigned by signed bytes with exact sums, and what an int8 network does around them.
//!
//! The weights are packed once, when they are loaded ([`PackedI8`]), in one layout for all instruction sets (`micro`).
//! The output is cut into blocks of rows and columns such that the block's weights stay in L2. One thread walks a
//! block by tiles of a few rows: it packs them, which keeps them in L1, passes all panels of the block over them, and hands
//! each row's sums to the epilogue while they are in L1. One row alone, as in decoding, is the same walk: it reads the weights
//! once, in the order of memory.
//!
//! Sums are integers and exact: neither the instruction set nor the number of threads changes a result.
//!
//! [`requantise`] has what turns sums into numbers or into the next layer's bytes, [`attention`] the fully quantised attention.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod joint;
pub mod layer;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
mod pack;
#[cfg(not(target_arch = "x86_64"))]
mod portable;
pub mod requantise;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod sse2;

pub use micro::Path;

use crate::gemm::cut::Cut;
use crate::gemm::scratch::{self, Line, Scratch};
use crate::threads::Shared;
use micro::{Kernel, LINE, PANEL};
use pack::{Bytes, Panels};
use rayon::prelude::*;
use std::ops::Range;

/// Longest inner dimension: 255 · 128 · 65793 is the largest multiple below 2³¹, so no sum overflows.
pub const MAX_INNER: usize = 65_793;

/// Bytes of a block's weights, which stay in L2.
const BLOCK: usize = 384 << 10;
/// Products (of two bytes) below which other threads take longer to wake up than they save.
const WORTH_THREADS: usize = 1 << 22;

/// A matrix of signed bytes, (outputs, inner) as in a checkpoint, packed for the products x Wᵀ. It can be the only copy of
/// the matrix in memory.
pub struct PackedI8 {
    outputs: usize,
    inner: usize,
    lines: Vec<Line>,
    sums: Vec<i32>,
}

impl PackedI8 {
    /// Packs on all threads.
    ///
    /// # Panics
    /// If `weights` is not outputs · inner long, or `inner` exceeds [`MAX_INNER`].
    pub fn new(weights: &[i8], outputs: usize, inner: usize) -> Self {
        assert_eq!(outputs.checked_mul(inner), Some(weights.len()), "weights must be outputs * inner long");
        assert!(inner <= MAX_INNER, "sums over more than {MAX_INNER} could overflow");
        let w = Bytes::new(weights, outputs, inner, inner);
        let mut lines = vec![Line([0; 16]); Panels::size(outputs, inner) / LINE];
        let mut sums = vec![0; outputs];
        let panel = Panels::size(1, inner);
        if panel > 0 {
            let panels = scratch::groups_mut(&mut lines).par_chunks_mut(panel);
            let pieces = panels.zip(sums.par_chunks_mut(PANEL)).enumerate();
            pieces.for_each(|(i, (out, sums))| pack::pack_outputs(w, i * PANEL, out, sums));
        }
        Self { outputs, inner, lines, sums }
    }

    /// Rows of the matrix: columns of a product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix, over which a product sums.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Σ_k w[n, k] for each output: what a zero point of x is multiplied with.
    pub fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Row `n` as it was, such as an embedding.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `inner` long.
    pub fn row(&self, n: usize, out: &mut [i8]) {
        assert!(n < self.outputs, "row {n} of {}", self.outputs);
        assert_eq!(out.len(), self.inner);
        self.panels().unpack(n, out);
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + size_of_val(self.sums.as_slice())
    }

    fn panels(&self) -> Panels<'_> {
        Panels::new(scratch::groups(&self.lines), self.outputs, self.inner)
    }
}

/// Σ_k x[m, k] w[n, k] for all m and n, on all threads: `epilogue(row, first_column, sums)` gets every element once, in pieces
/// of rows, while the piece is in L1. `x` is (rows, inner), row-major. Pieces are cut by shape and number of
/// threads: what the epilogue makes of an element must not depend on them.
///
/// # Panics
/// If `x` has another size.
pub fn gemm_i8(x: &[u8], rows: usize, w: &PackedI8, epilogue: impl Fn(usize, usize, &[i32]) + Sync) {
    gemm_i8_by(Path::active(), x, rows, w, epilogue);
}

/// As [`gemm_i8`] into a row-major `out` of (rows, outputs): the epilogue also gets the piece of `out` that belongs to its
/// sums, to fill or to add to.
///
/// # Panics
/// As [`gemm_i8`], and if `out` has another size.
pub fn gemm_i8_into<T: Send>(
    x: &[u8],
    rows: usize,
    w: &PackedI8,
    out: &mut [T],
    epilogue: impl Fn(usize, usize, &[i32], &mut [T]) + Sync,
) {
    assert_eq!(rows.checked_mul(w.outputs), Some(out.len()), "output must be rows * outputs long");
    let shared = Shared::new(out);
    gemm_i8(x, rows, w, |row, first, sums| {
        // SAFETY: every element is handed out once, and lies inside the buffer.
        let piece = unsafe { std::slice::from_raw_parts_mut(shared.at(row * w.outputs + first), sums.len()) };
        epilogue(row, first, sums, piece);
    });
}

/// As [`gemm_i8`] by a given way to multiply, so that one process can compare them.
///
/// # Panics
/// As [`gemm_i8`], and if this machine does not have `path`.
pub fn gemm_i8_by(
    path: Path,
    x: &[u8],
    rows: usize,
    w: &PackedI8,
    epilogue: impl Fn(usize, usize, &[i32]) + Sync,
) {
    let (x, kernel) = prepare(path, x, rows, w);
    let threads = match rows.saturating_mul(w.outputs).saturating_mul(w.inner) {
        few if few < WORTH_THREADS => 1,
        _ => rayon::current_num_threads(),
    };
    let Some(cut) = cut(rows, w, kernel, threads) else { return };
    let block = |block| {
        let mut room = Room::default();
        multiply(kernel, x, cut.rows(block), w.panels(), cut.columns(block), &mut room, &epilogue);
    };
    match threads {
        1 => (0..cut.blocks()).for_each(block),
        _ => (0..cut.blocks()).into_par_iter().for_each(block),
    }
}

/// As [`gemm_i8`] on the calling thread, for callers that are already parallel.
///
/// # Panics
/// As [`gemm_i8`].
pub fn gemm_i8_serial(x: &[u8], rows: usize, w: &PackedI8, mut epilogue: impl FnMut(usize, usize, &[i32])) {
    let (x, kernel) = prepare(Path::active(), x, rows, w);
    let Some(cut) = cut(rows, w, kernel, 1) else { return };
    let mut room = Room::default();
    for block in 0..cut.blocks() {
        multiply(kernel, x, cut.rows(block), w.panels(), cut.columns(block), &mut room, &mut epilogue);
    }
}

fn prepare<'a>(path: Path, x: &'a [u8], rows: usize, w: &PackedI8) -> (Bytes<'a, u8>, Kernel) {
    assert_eq!(rows.checked_mul(w.inner), Some(x.len()), "x must be rows * inner long");
    assert!(path.available(), "this machine has no {}", path.name());
    (Bytes::new(x, rows, w.inner, w.inner), Kernel::select(path, rows))
}

/// `None` if there is nothing to compute.
fn cut(rows: usize, w: &PackedI8, kernel: Kernel, threads: usize) -> Option<Cut> {
    let widest = (BLOCK / w.inner.max(1)).next_multiple_of(PANEL).clamp(2 * PANEL, 512);
    let some = rows > 0 && w.outputs > 0;
    some.then(|| Cut::new([rows, w.outputs], [kernel.rows, PANEL], widest, threads))
}

/// Work buffers of a thread, kept from one [`multiply`] to the next.
struct Room {
    packed: Scratch,
    sums: Scratch,
}

impl Default for Room {
    fn default() -> Self {
        Self { packed: Scratch::take(0), sums: Scratch::take(0) }
    }
}

impl Room {
    /// At least so many groups of `x` and so many sums.
    fn fit(&mut self, packed: usize, sums: usize) -> (&mut [u8], &mut [i32]) {
        for (scratch, least) in [(&mut self.packed, packed), (&mut self.sums, sums)] {
            if scratch.groups().len() < least {
                *scratch = Scratch::take(least);
            }
        }
        (self.packed.bytes_mut(), self.sums.integers_mut())
    }
}

/// These rows of `x` times these outputs of `w`, the first of which begins a panel, on this thread.
fn multiply(
    kernel: Kernel,
    x: Bytes<u8>,
    rows: Range<usize>,
    w: Panels,
    outputs: Range<usize>,
    room: &mut Room,
    mut epilogue: impl FnMut(usize, usize, &[i32]),
) {
    assert!(x.columns() == w.inner() && rows.end <= x.rows() && outputs.end <= w.outputs());
    assert!(outputs.start.is_multiple_of(PANEL));
    let lines = w.inner().div_ceil(4 * LINE);
    let stride = outputs.len().next_multiple_of(PANEL);
    let most = kernel.height(kernel.rows.min(rows.len()));
    let (packed, sums) = room.fit(most * lines * LINE, most * stride);
    let groups = kernel.groups(w.inner());
    let tiles = rows.len().div_ceil(kernel.rows);
    if let Some([enter, _]) = kernel.session {
        // SAFETY: `Kernel::select` was given a path that this machine has.
        unsafe { enter() };
    }
    for tile in 0..tiles {
        // All but equal heights: a low last tile would keep fewer sums in flight.
        let at = |tile: usize| rows.start + rows.len() * tile / tiles;
        let rows = at(tile)..at(tile + 1);
        let height = kernel.height(rows.len());
        pack::pack_x(x, rows.clone(), height, packed);
        let run = kernel.run(rows.len());
        assert!(packed.len() >= height * lines * 64 && sums.len() >= height * stride);
        for column in (0..stride).step_by(PANEL) {
            let panel = w.panel(outputs.start + column);
            assert!(panel.len() >= groups * PANEL);
            // SAFETY: the sizes were just checked, buffers of lines are aligned to 64 bytes and panels are whole lines.
            unsafe {
                let out = sums.as_mut_ptr().add(column);
                run(groups, packed.as_ptr(), panel.as_ptr().cast(), out, stride);
            }
        }
        for (row, sums) in rows.zip(sums.chunks_exact(stride)) {
            epilogue(row, outputs.start, &sums[..outputs.len()]);
        }
    }
    if let Some([_, leave]) = kernel.session {
        // SAFETY: entered above, on this thread.
        unsafe { leave() };
    }
}
