//! Plain Rust, up to four rows by eight columns at a time, so that the sums fit in sixteen registers of four.

use super::micro::{LINE, PANEL, Run};

/// By the number of rows.
pub(super) const RUNS: [Run; 4] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>];
/// Columns whose sums are held at once.
const WIDTH: usize = 8;

/// # Safety
/// That of [`Run`].
unsafe fn tile<const ROWS: usize>(groups: usize, x: *const u8, w: *const i8, out: *mut i32, stride: usize) {
    for first in (0..PANEL).step_by(WIDTH) {
        let mut sums = [[0i32; WIDTH]; ROWS];
        for g in 0..groups {
            // SAFETY: inside the buffers by the contract of `Run`.
            let (w, x) = unsafe {
                let w = &*w.add((g * PANEL + first) * 4).cast::<[[i8; 4]; WIDTH]>();
                (w, x.add((g / LINE * ROWS * LINE + g % LINE) * 4))
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let x = unsafe { &*x.add(r * LINE * 4).cast::<[u8; 4]>() };
                for (sum, w) in sums.iter_mut().zip(w) {
                    for i in 0..4 {
                        *sum += i32::from(x[i]) * i32::from(w[i]);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { out.add(r * stride + first).cast::<[i32; WIDTH]>().write(*sums) };
        }
    }
}
