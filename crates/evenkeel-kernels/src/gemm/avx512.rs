//! AVX-512: a tile of 12 × 32 in twenty-four of the thirty-two registers, in float32 or in pairs of bfloat16
//! (`vdpbf16ps`, which multiplies two pairs and adds both products).

use std::arch::x86_64::*;

/// Rows of a tile.
const ROWS: usize = 12;
/// Columns of a tile.
const COLUMNS: usize = 32;

/// One function per way to multiply; the rest of the loop is the same.
macro_rules! kernel {
    ($name:ident, $features:literal, $step:expr) => {
        /// # Safety
        /// That of [`super::micro::Run`]; the instruction set exists.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(
            groups: usize,
            a: *const u32,
            b: *const u32,
            c: *mut f32,
            c_stride: usize,
            add: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            let (mut a, mut b) = (a, b);
            // SAFETY: inside the buffers by the contract of `Run`.
            unsafe {
                let step = |sums: &mut [[__m512; 2]; ROWS], a: *const u32, b: *const u32| {
                    let (b0, b1) = (_mm512_load_si512(b.cast()), _mm512_load_si512(b.add(16).cast()));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*a.add(r * 16) as i32);
                        sums[0] = $step(sums[0], x, b0);
                        sums[1] = $step(sums[1], x, b1);
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
                        let c = c.add(r * c_stride + half * 16);
                        _mm512_storeu_ps(c, if add { _mm512_add_ps(_mm512_loadu_ps(c), sum) } else { sum });
                    }
                }
            }
        }
    };
}

kernel!(f32, "avx512f", |sum, x, b| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(b), sum));
kernel!(bf16, "avx512f,avx512bf16", |sum, x, b| {
    // The same bits, seen as 32 bfloat16.
    _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512i, __m512bh>(x),
        std::mem::transmute::<__m512i, __m512bh>(b),
    )
});
