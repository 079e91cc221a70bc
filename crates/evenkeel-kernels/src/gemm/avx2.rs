//! AVX2 with FMA: a tile of 6 × 16 in twelve of the sixteen registers.
//!
//! Per group two loads of `b`, six broadcasts of `a` and twelve multiply-adds: with two multiply-adds and two loads a
//! cycle the adds bound the loop, and twelve chains hide their latency of four cycles.

use std::arch::x86_64::*;

/// Rows of a tile.
const ROWS: usize = 6;
/// Columns of a tile.
const COLUMNS: usize = 16;

/// # Safety
/// That of [`super::micro::Run`]; AVX2 and FMA exist.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn f32(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // Into L1: the sums are added to these lines as soon as the loop ends.
    for r in 0..ROWS {
        _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * c_stride).cast());
        _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * c_stride + COLUMNS - 1).cast());
    }
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    // SAFETY: inside the buffers by the contract of `Run`.
    unsafe {
        let step = |sums: &mut [[__m256; 2]; ROWS], a: *const f32, b: *const f32| {
            let (b0, b1) = (_mm256_load_ps(b), _mm256_load_ps(b.add(8)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*a.add(r * 16));
                sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
            }
        };
        for _ in 0..groups / 16 {
            for g in 0..16 {
                step(&mut sums, a.add(g), b.add(g * COLUMNS));
            }
            a = a.add(ROWS * 16);
            b = b.add(16 * COLUMNS);
        }
        for g in 0..groups % 16 {
            step(&mut sums, a.add(g), b.add(g * COLUMNS));
        }
        for (r, row) in sums.iter().enumerate() {
            for (half, &sum) in row.iter().enumerate() {
                let c = c.add(r * c_stride + half * 8);
                _mm256_storeu_ps(c, if add { _mm256_add_ps(_mm256_loadu_ps(c), sum) } else { sum });
            }
        }
    }
}
