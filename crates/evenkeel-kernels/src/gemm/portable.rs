//! Plain Rust over a tile of 4 × 16, eight columns at a time: two SSE2 registers a row on x86-64.

/// Rows of a tile.
const ROWS: usize = 4;
/// Columns of a tile.
const COLUMNS: usize = 16;
/// Columns whose sums are held at once, so that they fit in sixteen registers of four.
const WIDTH: usize = 8;

/// # Safety
/// That of [`super::micro::Run`].
pub(super) unsafe fn f32(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    for first in (0..COLUMNS).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for g in 0..groups {
            // SAFETY: inside the buffers by the contract of `Run`.
            unsafe {
                let b = &*b.add(g * COLUMNS + first).cast::<[f32; WIDTH]>();
                let a = a.add((g / 16) * ROWS * 16 + g % 16);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = f32::from_bits(*a.add(r * 16));
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        *sum += a * b;
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as above; read only where it holds numbers.
            unsafe {
                let c = c.add(r * c_stride + first).cast::<[f32; WIDTH]>();
                let old = if add { c.read() } else { [0.0; WIDTH] };
                c.write(std::array::from_fn(|i| if add { old[i] + sums[i] } else { sums[i] }));
            }
        }
    }
}
