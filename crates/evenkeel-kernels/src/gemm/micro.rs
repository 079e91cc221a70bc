//! The innermost loops: a tile of `rows` × [`COLUMNS`] of the output, one instruction set each.
//!
//! All share one data layout, in *groups* of four bytes along the inner dimension: one float32, two bfloat16
//! (or, a seam for integer products, four int8). Per group a kernel broadcasts one group of each row of `a`,
//! multiplies it with 32 groups of `b` and adds to float32 accumulators that stay in registers:
//!
//! * `a`: row r, group g at `(g / 16) · rows · 16 + r · 16 + g mod 16`: sixteen groups of a row in one cache line;
//! * `b`: group g, column j at `g · 32 + j`.
//!
//! A new instruction set is one function of type [`Run`] and one line in [`Kernel::select`].

use super::Compute;
use crate::isa::{self, Isa};

/// Columns of a tile on every instruction set: two AVX-512 registers.
pub(super) const COLUMNS: usize = 32;

/// Most rows of a tile.
pub(super) const MAX_ROWS: usize = 12;

/// `c[r][j] (+)= Σ_g a[r][g] · b[g][j]` for a whole tile. `add` says whether to keep what `c` holds.
///
/// # Safety
/// `a` holds `groups` rounded up to 16 times `rows` groups, `b` holds `groups · 32` and is 64-byte aligned, `c` is
/// valid for `rows` rows of 32 that start `c_stride` apart; the instruction set exists on this machine.
pub(super) type Run =
    unsafe fn(groups: usize, a: *const u32, b: *const u32, c: *mut f32, c_stride: usize, add: bool);

/// A micro-kernel and its tile height.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// The loop.
    pub(super) run: Run,
}

impl Kernel {
    /// The fastest kernel for `compute` on `isa`, which must exist on this machine.
    pub(super) fn select(compute: Compute, isa: Isa) -> Self {
        match (isa, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Compute::F32) => Self { rows: 12, run: x86::avx512_f32 },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Compute::Bf16) if isa::has_avx512_bf16() => {
                Self { rows: 12, run: x86::avx512_bf16 }
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Compute::Bf16) => Self { rows: 8, run: x86::avx512_bf16_by_f32 },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Compute::F32) => Self { rows: 4, run: x86::avx2_f32 },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Compute::Bf16) => Self { rows: 4, run: x86::avx2_bf16 },
            (_, Compute::F32) => Self { rows: 4, run: portable_f32 },
            (_, Compute::Bf16) => Self { rows: 4, run: portable_bf16 },
        }
    }
}

/// The two bfloat16 of a group as float32: even inner index, odd inner index.
#[inline(always)]
fn pair(group: u32) -> (f32, f32) {
    (f32::from_bits(group << 16), f32::from_bits(group & 0xffff_0000))
}

/// `a · b + c`, fused where the target has it for free.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

/// Plain Rust over a tile of 4 × 32, eight columns at a time: SSE2 on x86-64, NEON on aarch64.
#[inline(always)]
unsafe fn portable(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
    step: impl Fn(&mut f32, u32, u32),
) {
    const ROWS: usize = 4;
    const WIDTH: usize = 8;
    for first in (0..COLUMNS).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for g in 0..groups {
            // SAFETY: inside the buffers by the contract of `Run`.
            unsafe {
                let b = &*b.add(g * COLUMNS + first).cast::<[u32; WIDTH]>();
                let a = a.add((g / 16) * ROWS * 16 + g % 16);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = *a.add(r * 16);
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        step(sum, a, b);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as above.
            let c = unsafe { &mut *c.add(r * c_stride + first).cast::<[f32; WIDTH]>() };
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = if add { *c + sum } else { *sum };
            }
        }
    }
}

unsafe fn portable_f32(groups: usize, a: *const u32, b: *const u32, c: *mut f32, c_stride: usize, add: bool) {
    // SAFETY: the same contract.
    unsafe {
        portable(groups, a, b, c, c_stride, add, |sum, a, b| {
            *sum = multiply_add(f32::from_bits(a), f32::from_bits(b), *sum);
        })
    }
}

unsafe fn portable_bf16(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: the same contract.
    unsafe {
        portable(groups, a, b, c, c_stride, add, |sum, a, b| {
            let ((a0, a1), (b0, b1)) = (pair(a), pair(b));
            *sum = multiply_add(a1, b1, multiply_add(a0, b0, *sum));
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::COLUMNS;
    use std::arch::x86_64::*;

    /// A 512-bit kernel of `ROWS` rows: two registers of sums a row.
    macro_rules! avx512 {
        ($name:ident, $features:literal, $rows:literal, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                groups: usize,
                a: *const u32,
                b: *const u32,
                c: *mut f32,
                c_stride: usize,
                add: bool,
            ) {
                const ROWS: usize = $rows;
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                // SAFETY: inside the buffers by the contract of `Run`.
                unsafe {
                    let mut a = a;
                    let mut b = b;
                    for _ in 0..groups / 16 {
                        for g in 0..16 {
                            let b0 = _mm512_load_si512(b.cast());
                            let b1 = _mm512_load_si512(b.add(16).cast());
                            for r in 0..ROWS {
                                let x = _mm512_set1_epi32(*a.add(r * 16 + g) as i32);
                                sums[r][0] = $step(sums[r][0], x, b0);
                                sums[r][1] = $step(sums[r][1], x, b1);
                            }
                            b = b.add(COLUMNS);
                        }
                        a = a.add(ROWS * 16);
                    }
                    for g in 0..groups % 16 {
                        let b0 = _mm512_load_si512(b.cast());
                        let b1 = _mm512_load_si512(b.add(16).cast());
                        for r in 0..ROWS {
                            let x = _mm512_set1_epi32(*a.add(r * 16 + g) as i32);
                            sums[r][0] = $step(sums[r][0], x, b0);
                            sums[r][1] = $step(sums[r][1], x, b1);
                        }
                        b = b.add(COLUMNS);
                    }
                    for r in 0..ROWS {
                        for half in 0..2 {
                            let c = c.add(r * c_stride + half * 16);
                            let mut sum = sums[r][half];
                            if add {
                                sum = _mm512_add_ps(_mm512_loadu_ps(c), sum);
                            }
                            _mm512_storeu_ps(c, sum);
                        }
                    }
                }
            }
        };
    }

    avx512!(avx512_f32, "avx512f", 12, |sum, x, b| _mm512_fmadd_ps(
        _mm512_castsi512_ps(x),
        _mm512_castsi512_ps(b),
        sum
    ));
    avx512!(avx512_bf16, "avx512f,avx512bf16", 12, |sum, x, b| {
        // The same bits, seen as 32 bfloat16.
        _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(x),
            std::mem::transmute::<__m512i, __m512bh>(b),
        )
    });
    avx512!(avx512_bf16_by_f32, "avx512f", 8, |sum, x: __m512i, b: __m512i| {
        let odd = _mm512_set1_epi32(0xffff_0000u32 as i32);
        let low = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
        let high = |v| _mm512_castsi512_ps(_mm512_and_si512(v, odd));
        _mm512_fmadd_ps(high(x), high(b), _mm512_fmadd_ps(low(x), low(b), sum))
    });

    /// A 256-bit kernel of four rows, sixteen columns at a time.
    macro_rules! avx2 {
        ($name:ident, $step:expr) => {
            #[target_feature(enable = "avx2,fma")]
            pub(super) unsafe fn $name(
                groups: usize,
                a: *const u32,
                b: *const u32,
                c: *mut f32,
                c_stride: usize,
                add: bool,
            ) {
                const ROWS: usize = 4;
                for first in (0..COLUMNS).step_by(16) {
                    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
                    // SAFETY: inside the buffers by the contract of `Run`.
                    unsafe {
                        for g in 0..groups {
                            let a = a.add((g / 16) * ROWS * 16 + g % 16);
                            let b0 = _mm256_load_si256(b.add(g * COLUMNS + first).cast());
                            let b1 = _mm256_load_si256(b.add(g * COLUMNS + first + 8).cast());
                            for r in 0..ROWS {
                                let x = _mm256_set1_epi32(*a.add(r * 16) as i32);
                                sums[r][0] = $step(sums[r][0], x, b0);
                                sums[r][1] = $step(sums[r][1], x, b1);
                            }
                        }
                        for r in 0..ROWS {
                            for half in 0..2 {
                                let c = c.add(r * c_stride + first + half * 8);
                                let mut sum = sums[r][half];
                                if add {
                                    sum = _mm256_add_ps(_mm256_loadu_ps(c), sum);
                                }
                                _mm256_storeu_ps(c, sum);
                            }
                        }
                    }
                }
            }
        };
    }

    avx2!(avx2_f32, |sum, x, b| _mm256_fmadd_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(b), sum));
    avx2!(avx2_bf16, |sum, x: __m256i, b: __m256i| {
        let odd = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
        let high = |v| _mm256_castsi256_ps(_mm256_and_si256(v, odd));
        _mm256_fmadd_ps(high(x), high(b), _mm256_fmadd_ps(low(x), low(b), sum))
    });
}
