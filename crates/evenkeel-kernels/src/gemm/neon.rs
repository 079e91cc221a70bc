//! NEON: a tile of 6 × 16 in twenty-four of the thirty-two registers.

use std::arch::aarch64::*;

/// Rows of a tile.
const ROWS: usize = 6;
/// Columns of a tile.
const COLUMNS: usize = 16;

/// # Safety
/// That of [`super::micro::Run`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn f32(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    // SAFETY: inside the buffers by the contract of `Run`.
    unsafe {
        let step = |sums: &mut [[float32x4_t; 4]; ROWS], a: *const f32, b: *const f32| {
            let b: [float32x4_t; 4] = std::array::from_fn(|i| vld1q_f32(b.add(4 * i)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = *a.add(r * 16);
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = vfmaq_n_f32(*sum, b, x);
                }
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
            for (quarter, &sum) in row.iter().enumerate() {
                let c = c.add(r * c_stride + quarter * 4);
                vst1q_f32(c, if add { vaddq_f32(vld1q_f32(c), sum) } else { sum });
            }
        }
    }
}
