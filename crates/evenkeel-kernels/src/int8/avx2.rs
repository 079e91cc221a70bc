//! AVX2, eight columns to a register.
//!
//! With AVX-VNNI `vpdpbusd` does it all. Without, `vpmaddubsw` would be the instruction to use if it did not saturate; so the
//! even and the odd bytes of a group are widened to 16 bits, where `vpmaddwd` multiplies and adds pairs exactly.

use super::micro::{LINE, PANEL, Run};
use std::arch::x86_64::*;

/// By the number of rows. What is left over of sixteen registers holds the factors.
pub(super) const RUNS: [Run; 4] = [tile::<1, 4>, tile::<2, 4>, tile::<3, 2>, tile::<4, 2>];
/// The same with AVX-VNNI.
pub(super) const VNNI_RUNS: [Run; 6] =
    [vnni::<1, 4>, vnni::<2, 4>, vnni::<3, 4>, vnni::<4, 2>, vnni::<5, 2>, vnni::<6, 2>];

/// The loop over groups, for `REGISTERS` registers of columns at a time. `$load` makes what `$product` takes of a
/// register of `w`, `$spread` of a group of `x`.
macro_rules! kernel {
    ($name:ident, $features:literal, $load:expr, $spread:expr, $product:expr) => {
        /// # Safety
        /// That of [`Run`]; the instruction set exists.
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const REGISTERS: usize>(
            groups: usize,
            x: *const u8,
            w: *const i8,
            out: *mut i32,
            stride: usize,
        ) {
            for first in (0..PANEL).step_by(REGISTERS * 8) {
                let mut sums = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
                // SAFETY: inside the buffers by the contract of `Run`.
                unsafe {
                    for g in 0..groups {
                        let w = w.cast::<i32>().add(g * PANEL + first);
                        let x = x.cast::<i32>().add(g / LINE * ROWS * LINE + g % LINE);
                        let mut factors = [$load(_mm256_setzero_si256()); REGISTERS];
                        for (i, factor) in factors.iter_mut().enumerate() {
                            *factor = $load(_mm256_load_si256(w.add(i * 8).cast()));
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let x = $spread(_mm256_set1_epi32(*x.add(r * LINE)));
                            for (sum, &w) in sums.iter_mut().zip(&factors) {
                                *sum = $product(*sum, x, w);
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        for (i, &sum) in sums.iter().enumerate() {
                            _mm256_storeu_si256(out.add(r * stride + first + i * 8).cast(), sum);
                        }
                    }
                }
            }
        }
    };
}

kernel!(vnni, "avx2,avxvnni", |w| w, |x| x, |sum, x, w| _mm256_dpbusd_avx_epi32(sum, x, w));

kernel!(
    tile,
    "avx2",
    |w| (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)), _mm256_srai_epi16::<8>(w)),
    |x| (_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(x)),
    |sum, x: (__m256i, __m256i), w: (__m256i, __m256i)| {
        let (even, odd) = (_mm256_madd_epi16(x.0, w.0), _mm256_madd_epi16(x.1, w.1));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }
);
