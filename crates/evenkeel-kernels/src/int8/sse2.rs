//! The baseline of x86-64, up to four rows by eight columns at a time: what `avx2.rs` does without VNNI, in half the width. In
//! intrinsics, because the compiler finds no `pmaddwd` in plain Rust and is ten times slower.

use super::micro::{LINE, PANEL, Run};
use std::arch::x86_64::*;

/// By the number of rows.
pub(super) const RUNS: [Run; 4] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>];
/// Columns at a time: two registers.
const WIDTH: usize = 8;

/// # Safety
/// That of [`Run`].
#[target_feature(enable = "sse2")]
unsafe fn tile<const ROWS: usize>(groups: usize, x: *const u8, w: *const i8, out: *mut i32, stride: usize) {
    // The even and the odd ones of four bytes, as 16 bits.
    let signed = |v| (_mm_srai_epi16::<8>(_mm_slli_epi16::<8>(v)), _mm_srai_epi16::<8>(v));
    let unsigned = |v| (_mm_and_si128(v, _mm_set1_epi16(0xff)), _mm_srli_epi16::<8>(v));
    for first in (0..PANEL).step_by(WIDTH) {
        let mut sums = [[_mm_setzero_si128(); 2]; ROWS];
        // SAFETY: inside the buffers by the contract of `Run`.
        unsafe {
            for g in 0..groups {
                let w = w.cast::<i32>().add(g * PANEL + first);
                let x = x.cast::<i32>().add(g / LINE * ROWS * LINE + g % LINE);
                let w = [signed(_mm_load_si128(w.cast())), signed(_mm_load_si128(w.add(4).cast()))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = unsigned(_mm_set1_epi32(*x.add(r * LINE)));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        let (even, odd) = (_mm_madd_epi16(x.0, w.0), _mm_madd_epi16(x.1, w.1));
                        *sum = _mm_add_epi32(*sum, _mm_add_epi32(even, odd));
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (i, &sum) in sums.iter().enumerate() {
                    _mm_storeu_si128(out.add(r * stride + first + i * 4).cast(), sum);
                }
            }
        }
    }
}
