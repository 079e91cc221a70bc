//! AVX-512 with `vpdpbusd`, which adds four products of an unsigned and a signed byte to each of sixteen sums: up to 12 rows
//! by 32 columns in twenty-four of the thirty-two registers.
//!
//! Per group two loads of `w`, a broadcast for each row and two products for each row: with two products and two loads a
//! cycle the products bound the loop of twelve rows, which also reads little enough of a panel for it to come from L2.

use super::micro::{LINE, PANEL, Run};
use std::arch::x86_64::*;

/// By the number of rows. Few rows have several sums for each column, to hide the latency of the products.
pub(super) const RUNS: [Run; 12] = [
    tile::<1, 4>,
    tile::<2, 2>,
    tile::<3, 2>,
    tile::<4, 1>,
    tile::<5, 1>,
    tile::<6, 1>,
    tile::<7, 1>,
    tile::<8, 1>,
    tile::<9, 1>,
    tile::<10, 1>,
    tile::<11, 1>,
    tile::<12, 1>,
];

/// # Safety
/// That of [`Run`]; AVX-512 VNNI exists.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<const ROWS: usize, const CHAINS: usize>(
    groups: usize,
    x: *const u8,
    w: *const i8,
    out: *mut i32,
    stride: usize,
) {
    let mut sums = [[[_mm512_setzero_si512(); 2]; ROWS]; CHAINS];
    let (mut x, mut w) = (x.cast::<i32>(), w.cast::<i32>());
    // SAFETY: inside the buffers by the contract of `Run`.
    unsafe {
        let step = |sums: &mut [[__m512i; 2]; ROWS], x: *const i32, w: *const i32| {
            let (w0, w1) = (_mm512_load_si512(w.cast()), _mm512_load_si512(w.add(16).cast()));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*x.add(r * LINE));
                sums[0] = _mm512_dpbusd_epi32(sums[0], x, w0);
                sums[1] = _mm512_dpbusd_epi32(sums[1], x, w1);
            }
        };
        for _ in 0..groups / LINE {
            for g in (0..LINE).step_by(CHAINS) {
                for (chain, sums) in sums.iter_mut().enumerate() {
                    step(sums, x.add(g + chain), w.add((g + chain) * PANEL));
                }
            }
            x = x.add(ROWS * LINE);
            w = w.add(LINE * PANEL);
        }
        for g in 0..groups % LINE {
            step(&mut sums[0], x.add(g), w.add(g * PANEL));
        }
        for r in 0..ROWS {
            for half in 0..2 {
                let sum = sums.iter().fold(_mm512_setzero_si512(), |t, s| _mm512_add_epi32(t, s[r][half]));
                _mm512_storeu_si512(out.add(r * stride + half * 16).cast(), sum);
            }
        }
    }
}
