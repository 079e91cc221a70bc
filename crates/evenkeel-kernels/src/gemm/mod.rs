//! Matrix products `c = a b`, in float32 or with both factors rounded to bfloat16.
//!
//! The right-hand side is packed whole into panels of 16 or 32 columns ([`Packed`]; once, however many products use
//! it). The output is cut into blocks. One thread walks a block in equal steps of at most `DEPTH` groups of the
//! inner dimension: it packs that stretch of its rows of `a`, which stays in L2 together with the block itself,
//! and for each panel, whose stretch (16 or 32 KiB) stays in L1, passes every tile of rows over it. The epilogue runs
//! on the finished block while it is in cache. Which loop and layout there are for an instruction set stands in `micro`,
//! the loops in a file each, the packing in `pack`. A few rows are multiplied without packing, in `few`.
//!
//! A result does not depend on the number of threads. It does depend on the instruction set, by the order of
//! rounding: with k the inner dimension and u = 2⁻²⁴, |error| ≤ (k + 2) u Σ|a||b| in float32, and in bfloat16
//! at most (2⁻⁷ + 2⁻¹⁶ + (k + 2) u) Σ|a||b| (each factor is rounded to nearest with relative error 2⁻⁸; the sum is
//! float32; factors below 2⁻¹²⁶ may count as zero). Where the product is added to c, |c| joins the sum. For k below
//! 2²⁰, beyond which the bounds lose their meaning. NaN and infinity propagate.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod cut;
mod few;
mod gram;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod pack;
mod portable;
pub(crate) mod scratch;

pub use few::{FEW_ROWS, few_rows};
pub use gram::{blend_gram, mirror, mirror_serial};
pub(crate) use pack::bf16_bits;

use crate::isa;
use crate::threads::Shared;
use cut::Cut;
use micro::{Kernel, MAX_TILE};
use rayon::prelude::*;
use scratch::Scratch;
use std::ops::Range;

/// What the factors of a product are rounded to. Sums are float32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compute {
    /// As they are.
    #[default]
    F32,
    /// bfloat16, to nearest, ties to even.
    Bf16,
}

/// Most groups of a panel that stay in L1 while the rows pass: 256 × 16 or 32 × 4 bytes. A multiple of 16.
const DEPTH: usize = 256;
/// Most columns of a block: with its rows of `a` it stays in L2.
const MAX_COLUMNS: usize = 512;

/// A read-only matrix view: `at(i, j) = data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// If the slice is not `rows * columns` long.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(rows.checked_mul(columns), Some(data.len()), "matrix data must be rows * columns long");
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that start `row_stride` apart, such as one head's columns of a (tokens, width) matrix.
    ///
    /// # Panics
    /// If the last row ends past the slice.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(window(rows, columns, row_stride) <= data.len(), "the last row must end inside the data");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Rows `first..first + count`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn take(self, first: usize, count: usize) -> Self {
        let inside = first <= self.rows && count <= self.rows - first;
        assert!(inside, "rows must lie inside the matrix");
        let start = (first * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: count, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// Whether a product replaces what the output holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// c = a b
    Replace,
    /// c += a b
    Add,
}

/// A right-hand side in the micro-kernels' layout, for any number of products.
pub struct Packed {
    kernel: Kernel,
    inner: usize,
    columns: usize,
    panels: Scratch,
}

impl Packed {
    /// Packs `b` on all threads.
    pub fn new(compute: Compute, b: View) -> Self {
        Self::build(compute, b, true)
    }

    /// Packs `b` on the calling thread, for callers that are already parallel.
    pub fn new_serial(compute: Compute, b: View) -> Self {
        Self::build(compute, b, false)
    }

    fn build(compute: Compute, b: View, parallel: bool) -> Self {
        let kernel = Kernel::select(compute, isa::active());
        let panel = kernel.panel(b.rows);
        let size = b.columns.div_ceil(kernel.columns) * panel;
        let mut panels = Scratch::take(size);
        if size > 0 {
            let used = &mut panels.groups_mut()[..size];
            let some = pack::panels_at_once(kernel);
            let pack =
                |(i, out): (usize, &mut [u32])| pack::pack_b(kernel, b.t(), i * some * kernel.columns, out);
            if parallel {
                used.par_chunks_mut(some * panel).enumerate().for_each(pack);
            } else {
                used.chunks_mut(some * panel).enumerate().for_each(pack);
            }
        }
        Self { kernel, inner: b.rows, columns: b.columns, panels }
    }
}

/// `c = a b` or `c += a b` for row-major `c` of a.rows × b.columns, on all threads.
///
/// # Panics
/// If the inner dimensions differ or `c` has another size.
pub fn gemm(compute: Compute, a: View, b: View, c: &mut [f32], write: Write) {
    gemm_then(compute, a, b, c, write, |_, _, _| {});
}

/// As [`gemm`], then `epilogue(row, first_column, piece)` on every piece of a row of `c`, once, while it is in cache.
/// Pieces are cut by shape and number of threads: what the epilogue makes of an element must not depend on them.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_then(
    compute: Compute,
    a: View,
    b: View,
    c: &mut [f32],
    write: Write,
    epilogue: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions must agree");
    assert_eq!(c.len(), size(a.rows, b.columns), "output must be rows * columns long");
    if !c.is_empty() {
        gemm_packed(a, &Packed::new(compute, b), c, write, epilogue);
    }
}

/// As [`gemm_then`] into a new buffer, which is not cleared first.
///
/// # Panics
/// If the inner dimensions differ.
pub fn gemm_new(
    compute: Compute,
    a: View,
    b: View,
    epilogue: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    assert_eq!(a.columns, b.rows, "inner dimensions must agree");
    let size = size(a.rows, b.columns);
    let mut c = Vec::with_capacity(size);
    if size > 0 {
        let target = Shared::new(&mut c.spare_capacity_mut()[..size]);
        // SAFETY: the buffer has that size and is this call's own.
        unsafe { product(a, &Packed::new(compute, b), target.at(0).cast(), Write::Replace, epilogue) };
        // SAFETY: `product` has written every element.
        unsafe { c.set_len(size) };
    }
    c
}

/// As [`gemm_then`] with a right-hand side that was packed before.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_packed(
    a: View,
    b: &Packed,
    c: &mut [f32],
    write: Write,
    epilogue: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    assert_eq!(a.columns, b.inner, "inner dimensions must agree");
    assert_eq!(c.len(), size(a.rows, b.columns), "output must be rows * columns long");
    // SAFETY: the buffer has that size and is exclusively borrowed.
    unsafe { product(a, b, c.as_mut_ptr(), write, epilogue) };
}

/// # Safety
/// `c` is valid for, and nobody else touches, a.rows rows of b.columns; they hold numbers if `write` adds to them.
unsafe fn product(
    a: View,
    b: &Packed,
    c: *mut f32,
    write: Write,
    epilogue: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (m, n) = (a.rows, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    let cut = Cut::new([m, n], b.kernel.tile(), MAX_COLUMNS, rayon::current_num_threads());
    // SAFETY: the caller's; a raw pointer, since the buffer may not hold numbers yet.
    let target = unsafe { Shared::from_raw(c, m * n) };
    (0..cut.blocks()).into_par_iter().for_each(|block| {
        let (rows, columns) = (cut.rows(block), cut.columns(block));
        // SAFETY: these columns of these rows are nobody else's.
        unsafe { multiply_block(a, rows.clone(), b, columns.clone(), target.at(rows.start * n), n, write) };
        for row in rows {
            let at = row * n + columns.start;
            // SAFETY: as above, and written by now.
            let piece = unsafe { std::slice::from_raw_parts_mut(target.at(at), columns.len()) };
            epilogue(row, columns.start, piece);
        }
    });
}

/// A product on the calling thread, for callers that are already parallel. `c` has rows `c_stride` apart.
///
/// # Panics
/// If the inner dimensions differ or `c` is too short.
pub fn gemm_serial(compute: Compute, a: View, b: View, c: &mut [f32], c_stride: usize, write: Write) {
    assert_eq!(a.columns, b.rows, "inner dimensions must agree");
    if a.rows > 0 && b.columns > 0 {
        gemm_serial_packed(a, &Packed::new_serial(compute, b), b.columns, c, c_stride, write);
    }
}

/// As [`gemm_serial`] with the upper left part of a right-hand side that was packed before: as many of its rows as `a`
/// has columns, and its first `columns` columns. The next rows of `b`, 31 at most, may be multiplied by zero, so a NaN
/// or infinity in them may show.
///
/// # Panics
/// If the part is larger than `b` or `c` is too short.
pub fn gemm_serial_packed(a: View, b: &Packed, columns: usize, c: &mut [f32], c_stride: usize, write: Write) {
    let inside = c_stride >= columns && window(a.rows, columns, c_stride) <= c.len();
    assert!(inside || a.rows == 0 || columns == 0, "output must hold every row");
    // SAFETY: bounds checked above; `c` is exclusively borrowed.
    unsafe { serial(a, b, columns, c.as_mut_ptr(), c_stride, write) };
}

/// As [`gemm_serial_packed`], writing at `offset` of a buffer that other threads write elsewhere.
///
/// # Safety
/// No other thread may touch the `a.rows` × `columns` window at `offset` with rows `c_stride` apart, and the
/// window must lie inside the buffer.
pub unsafe fn gemm_shared_packed(
    a: View,
    b: &Packed,
    columns: usize,
    c: &Shared<'_, f32>,
    offset: usize,
    c_stride: usize,
    write: Write,
) {
    // SAFETY: the caller promises an in-bounds window of its own.
    unsafe { serial(a, b, columns, c.at(offset), c_stride, write) };
}

/// As [`gemm_serial`], writing at `offset` of a buffer that other threads write elsewhere.
///
/// # Safety
/// As [`gemm_shared_packed`], with all columns of `b`.
pub unsafe fn gemm_shared(
    compute: Compute,
    a: View,
    b: View,
    c: &Shared<'_, f32>,
    offset: usize,
    c_stride: usize,
    write: Write,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions must agree");
    if a.rows > 0 && b.columns > 0 {
        let packed = Packed::new_serial(compute, b);
        // SAFETY: the caller's promise.
        unsafe { gemm_shared_packed(a, &packed, b.columns, c, offset, c_stride, write) };
    }
}

/// # Safety
/// `c` is valid for, and nobody else touches, a.rows rows of `columns` that start `c_stride` apart.
unsafe fn serial(a: View, b: &Packed, columns: usize, c: *mut f32, c_stride: usize, write: Write) {
    assert!(a.columns <= b.inner && columns <= b.columns, "inner dimensions must agree");
    if a.rows == 0 || columns == 0 {
        return;
    }
    let cut = Cut::new([a.rows, columns], b.kernel.tile(), MAX_COLUMNS, 1);
    for block in 0..cut.blocks() {
        let rows = cut.rows(block);
        // SAFETY: rows of the caller's window.
        unsafe {
            let c = c.add(rows.start * c_stride);
            multiply_block(a, rows, b, cut.columns(block), c, c_stride, write);
        }
    }
}

/// These rows of `a` times the given columns of the first a.columns rows of `b`, on this thread. `c` points to column 0 of the
/// first row.
///
/// # Safety
/// `c` is valid for, and nobody else touches, these columns of as many rows that start `c_stride` apart.
unsafe fn multiply_block(
    a: View,
    rows: Range<usize>,
    b: &Packed,
    columns: Range<usize>,
    c: *mut f32,
    c_stride: usize,
    write: Write,
) {
    let (kernel, first, count) = (b.kernel, rows.start, rows.len());
    let (groups, pitch) = (kernel.groups(a.columns), kernel.panel(b.inner));
    let tiles = count.div_ceil(kernel.rows);
    // Equal stretches: a short last one would be all beginning and end.
    let stretch = groups.div_ceil(groups.div_ceil(DEPTH).max(1)).next_multiple_of(16).max(16);
    let mut packed_a = Scratch::take(tiles * kernel.rows * stretch);
    let mut edge = [0.0f32; MAX_TILE];
    if let Some(session) = kernel.session {
        // SAFETY: `Kernel::select` was asked for an instruction set that this machine has.
        unsafe { (session.enter)() };
    }
    // At least once, so that an empty inner dimension writes zeros.
    for depth in (0..groups.max(1)).step_by(stretch) {
        let deep = stretch.min(groups - depth);
        let add = depth > 0 || write == Write::Add;
        let a_size = deep.next_multiple_of(16) * kernel.rows;
        pack::pack_a(kernel, a, first, count, depth, deep, packed_a.groups_mut());
        for column in columns.clone().step_by(kernel.columns) {
            let b_tile = &b.panels.groups()[column / kernel.columns * pitch + depth * kernel.columns..]
                [..deep * kernel.columns];
            // The next panel's stretch is fetched a share at a time while this one is used.
            let next = b_tile.as_ptr().wrapping_add(pitch);
            let share = b_tile.len().div_ceil(tiles * 16);
            let wide = kernel.columns.min(columns.end - column);
            for tile in 0..tiles {
                let a_tile = &packed_a.groups()[tile * a_size..][..a_size];
                let row = tile * kernel.rows;
                let high = kernel.rows.min(count - row);
                for line in tile * share..(tile + 1) * share {
                    isa::prefetch(next.wrapping_add(line * 16));
                }
                // SAFETY: the tiles hold `deep` groups; a whole tile of the output lies inside the caller's window,
                // and a part of one is computed aside and copied.
                unsafe {
                    let target = c.add(row * c_stride + column);
                    if high == kernel.rows && wide == kernel.columns {
                        (kernel.run)(deep, a_tile.as_ptr(), b_tile.as_ptr(), target, c_stride, add);
                        continue;
                    }
                    (kernel.run)(
                        deep,
                        a_tile.as_ptr(),
                        b_tile.as_ptr(),
                        edge.as_mut_ptr(),
                        kernel.columns,
                        false,
                    );
                    // By pointer: the output may not hold numbers yet.
                    for r in 0..high {
                        let target = target.add(r * c_stride);
                        for (j, e) in edge[r * kernel.columns..][..wide].iter().enumerate() {
                            let target = target.add(j);
                            target.write(if add { target.read() + e } else { *e });
                        }
                    }
                }
            }
        }
    }
    if let Some(session) = kernel.session {
        // SAFETY: entered above, on this thread.
        unsafe { (session.leave)() };
    }
}

/// Elements of a matrix, which a view with a stride of 0 can make more than there is memory.
fn size(rows: usize, columns: usize) -> usize {
    rows.checked_mul(columns).expect("rows * columns must fit in memory")
}

/// Elements from the first to the last of a strided matrix; the largest number if that overflows.
fn window(rows: usize, columns: usize, row_stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    (rows - 1).checked_mul(row_stride).and_then(|n| n.checked_add(columns)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (s >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn reference(a: &View, b: &View, c: &[f32], write: Write) -> Vec<f32> {
        let mut out = vec![0.0; a.rows * b.columns];
        for i in 0..a.rows {
            for j in 0..b.columns {
                let mut sum = 0.0f64;
                for k in 0..a.columns {
                    sum += a.data[i * a.row_stride + k * a.column_stride] as f64
                        * b.data[k * b.row_stride + j * b.column_stride] as f64;
                }
                let old = if write == Write::Add { c[i * b.columns + j] as f64 } else { 0.0 };
                out[i * b.columns + j] = (sum + old) as f32;
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn agrees_with_the_definition(m in 0usize..90, n in 0usize..70, k in 0usize..65,
                                      ta: bool, tb: bool, add: bool) {
            let (da, db) = (fill(m * k, 1), fill(k * n, 2));
            let a = if ta { View::new(&da, k, m).t() } else { View::new(&da, m, k) };
            let b = if tb { View::new(&db, n, k).t() } else { View::new(&db, k, n) };
            let write = if add { Write::Add } else { Write::Replace };
            let start = fill(m * n, 3);
            let want = reference(&a, &b, &start, write);
            let mut got = start.clone();
            gemm(Compute::F32, a, b, &mut got, write);
            for (g, w) in got.iter().zip(&want) {
                prop_assert!((g - w).abs() <= 1e-5 * (1.0 + k as f32).sqrt());
            }
            let mut serial = start;
            gemm_serial(Compute::F32, a, b, &mut serial, n, write);
            for (g, w) in serial.iter().zip(&want) {
                prop_assert!((g - w).abs() <= 1e-5 * (1.0 + k as f32).sqrt());
            }
        }
    }

    #[test]
    fn same_bits_on_one_and_on_three_threads() {
        let (m, n, k) = (517, 331, 129);
        let (da, db) = (fill(m * k, 4), fill(k * n, 5));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut c = vec![0.0; m * n];
                gemm(Compute::F32, View::new(&da, m, k), View::new(&db, k, n), &mut c, Write::Replace);
                c
            })
        };
        let (one, three) = (run(1), run(3));
        assert!(one.iter().zip(&three).all(|(x, y)| x.to_bits() == y.to_bits()));
    }
}
