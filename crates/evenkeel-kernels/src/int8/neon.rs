//! NEON, up to three rows by sixteen columns at a time. A product of an unsigned and a signed byte lies between -32640 and
//! 32385, so a multiplication of 16 bits is exact; `vpadalq_s16` then adds pairs to sums of 32 bits. Each column has two
//! sums until the end, those of the first and of the last two of every group.

use super::micro::{LINE, PANEL, Run};
use std::arch::aarch64::*;

/// By the number of rows: three take twenty-four of thirty-two registers for their sums.
pub(super) const RUNS: [Run; 3] = [tile::<1>, tile::<2>, tile::<3>];
/// Columns at a time.
const COLUMNS: usize = 16;

/// # Safety
/// That of [`Run`].
#[target_feature(enable = "neon")]
unsafe fn tile<const ROWS: usize>(groups: usize, x: *const u8, w: *const i8, out: *mut i32, stride: usize) {
    for first in (0..PANEL).step_by(COLUMNS) {
        // Two columns to a register.
        let mut sums = [[vdupq_n_s32(0); COLUMNS / 2]; ROWS];
        // SAFETY: inside the buffers by the contract of `Run`.
        unsafe {
            for g in 0..groups {
                let w = w.add((g * PANEL + first) * 4);
                let x = x.add((g / LINE * ROWS * LINE + g % LINE) * 4);
                let mut wide = [vdupq_n_s16(0); ROWS];
                for (r, wide) in wide.iter_mut().enumerate() {
                    let four = vdup_n_u32(*x.add(r * LINE * 4).cast::<u32>());
                    *wide = vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(four)));
                }
                for pair in 0..COLUMNS / 2 {
                    let w = vmovl_s8(vld1_s8(w.add(pair * 8)));
                    for (sums, &x) in sums.iter_mut().zip(&wide) {
                        sums[pair] = vpadalq_s16(sums[pair], vmulq_s16(x, w));
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (i, two) in sums.chunks_exact(2).enumerate() {
                    vst1q_s32(out.add(r * stride + first + i * 4), vpaddq_s32(two[0], two[1]));
                }
            }
        }
    }
}
