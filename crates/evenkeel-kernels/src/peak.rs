//! What this machine can do at most: multiply-add loops that never leave the registers, one for each instruction set,
//! and a copy loop far larger than the caches.
//!
//! The loops iterate x ← x/2 + 1, or add up very slowly, which stays far from overflow and from slow subnormal
//! numbers.
//!
//! A kernel's efficiency is quoted against these, measured in the same run and close in time: clocks change with
//! temperature, instruction set and neighbours. A peak is a maximum, so each figure is the best of a few short runs.
//! A multiply-add counts as two operations; bandwidth counts what is read and what is written.

use crate::gemm::Compute;
#[cfg(target_arch = "x86_64")]
use crate::int8::Path;
use crate::isa::{self, Isa};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The type of a product's factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// float32, added up in float32.
    F32,
    /// bfloat16, added up in float32.
    Bf16,
    /// Unsigned by signed bytes, added up in 32-bit integers.
    Int8,
}

impl From<Compute> for Factors {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Factors::F32,
            Compute::Bf16 => Factors::Bf16,
        }
    }
}

/// A loop of independent multiply-adds on registers.
#[derive(Clone, Copy, Debug)]
pub struct Multiply {
    name: &'static str,
    isa: Isa,
    factors: Factors,
    /// Operations (multiplications and additions) of one round.
    round: usize,
    /// Runs that many rounds and gives the sum of all accumulators, so that none can be left out.
    ///
    /// Safety: the machine has the instruction set.
    run: unsafe fn(rounds: usize) -> f32,
}

/// How many of the pool's threads run a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// Every thread of the pool, all at once.
    All,
}

impl Multiply {
    /// The loops that this machine can run, from the least instruction set. A new instruction set is a line here.
    pub fn available() -> Vec<Self> {
        let row = |name, isa: Isa, factors, round, run| {
            isa.available().then_some(Self { name, isa, factors, round, run })
        };
        let mut rows = vec![row("portable f32", Isa::Portable, Factors::F32, portable::ROUND, portable::f32)];
        #[cfg(target_arch = "aarch64")]
        rows.push(row("neon f32", Isa::Neon, Factors::F32, neon::ROUND, neon::f32));
        #[cfg(target_arch = "x86_64")]
        {
            use Isa::{Avx2, Avx512};
            rows.push(row("avx2 f32", Avx2, Factors::F32, x86::AVX2_F32_ROUND, x86::avx2_f32));
            rows.push(row("avx512 f32", Avx512, Factors::F32, x86::AVX512_F32_ROUND, x86::avx512_f32));
            let dot = row("avx512 bf16", Avx512, Factors::Bf16, x86::AVX512_BF16_ROUND, x86::avx512_bf16);
            rows.push(dot.filter(|_| isa::has_avx512_bf16()));
            rows.push(row("amx bf16", Isa::Amx, Factors::Bf16, x86::AMX_BF16_ROUND, x86::amx_bf16));
            let int8 = |name, path: Path, round, run| {
                row(name, path.isa(), Factors::Int8, round, run).filter(|_| path.available())
            };
            rows.push(int8("avx2 int8", Path::Avx2, x86::AVX2_INT8_ROUND, x86::avx2_int8));
            rows.push(int8("avx2 vnni int8", Path::Avx2Vnni, x86::AVX2_VNNI_ROUND, x86::avx2_vnni));
            rows.push(int8("avx512 vnni int8", Path::Avx512Vnni, x86::AVX512_VNNI_ROUND, x86::avx512_vnni));
            rows.push(int8("amx int8", Path::Amx, x86::AMX_INT8_ROUND, x86::amx_int8));
        }
        rows.into_iter().flatten().collect()
    }

    /// The loop that bounds the kernels' products of this kind on the instruction set in use. Where it has no
    /// multiplier for bfloat16 that is the one for float32, which the kernels then use on the rounded factors; where there
    /// is no loop for bytes it is the same one, for comparison.
    pub fn bounding(factors: impl Into<Factors>) -> Self {
        let usable: Vec<Self> = Self::available().into_iter().filter(|l| l.isa <= isa::active()).collect();
        let best = |factors| usable.iter().rev().find(|l| l.factors == factors);
        // The portable loop is always there.
        *best(factors.into()).or_else(|| best(Factors::F32)).unwrap_or(&usable[0])
    }

    /// Instruction set and type of the factors, such as `avx2 f32`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The type of the factors.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// 10⁹ operations per second, the best of `runs` runs of about `each`.
    pub fn gflops(&self, threads: Threads, runs: usize, each: Duration) -> f64 {
        // SAFETY: a loop is only made if the machine has its instruction set.
        let one = |rounds| black_box(unsafe { (self.run)(black_box(rounds)) });
        let seconds = |rounds| {
            let begun = Instant::now();
            match threads {
                Threads::One => {
                    one(rounds);
                }
                Threads::All => {
                    rayon::broadcast(|_| one(rounds));
                }
            }
            begun.elapsed().as_secs_f64().max(1e-9)
        };
        let count = match threads {
            Threads::One => 1,
            Threads::All => rayon::current_num_threads(),
        };
        // Doubled until a run is long enough to tell the speed; this also wakes the clock up.
        let mut rounds = 1 << 10;
        while seconds(rounds) < 1e-3 {
            rounds *= 2;
        }
        let rounds = ((rounds as f64 * each.as_secs_f64() / seconds(rounds)) as usize).max(1);
        let operations = count as f64 * self.round as f64 * rounds as f64;
        (0..runs.max(1)).map(|_| operations / seconds(rounds) / 1e9).fold(0.0, f64::max)
    }
}

/// Two buffers to copy between, kept so that measuring again does not fault their pages in again.
pub struct Copying {
    from: Vec<f32>,
    to: Vec<f32>,
}

impl Copying {
    /// Twice 256 MiB: several times the largest cache of common machines.
    pub const BYTES: usize = 256 << 20;

    /// Takes the buffers, `bytes` each, and touches every page.
    pub fn new(bytes: usize) -> Self {
        let n = (bytes / 4).max(1);
        // Ones, since zeros could be pages that do not exist yet.
        Self { from: vec![1.0; n], to: vec![2.0; n] }
    }

    /// 10⁹ bytes read or written per second, the best of `runs` copies. Each thread copies one stretch.
    pub fn gbps(&mut self, threads: Threads, runs: usize) -> f64 {
        let bytes = 8.0 * self.from.len() as f64;
        let stretch = match threads {
            Threads::One => self.from.len(),
            Threads::All => self.from.len().div_ceil(rayon::current_num_threads()),
        };
        let mut best: f64 = 0.0;
        for _ in 0..runs.max(1) {
            let begun = Instant::now();
            let (from, to) = (black_box(&self.from), black_box(&mut self.to));
            to.par_chunks_mut(stretch)
                .zip(from.par_chunks(stretch))
                .for_each(|(to, from)| to.copy_from_slice(from));
            best = best.max(bytes / begun.elapsed().as_secs_f64().max(1e-9) / 1e9);
        }
        best
    }
}

/// Plain Rust, for targets whose baseline is not spelled out below.
#[cfg(not(target_arch = "x86_64"))]
mod portable {
    use std::hint::black_box;

    const CHAINS: usize = 12;
    const LANES: usize = 4;
    pub(super) const ROUND: usize = CHAINS * LANES * 2;

    pub(super) fn f32(rounds: usize) -> f32 {
        let (a, b) = (black_box(0.5f32), black_box(1.0f32));
        let mut sums = black_box([[0.0f32; LANES]; CHAINS]);
        for _ in 0..rounds {
            for x in sums.iter_mut().flatten() {
                *x = *x * a + b;
            }
        }
        sums.iter().flatten().sum()
    }
}

/// The baseline of x86-64, in intrinsics because the compiler spills registers when it vectorises plain Rust here.
#[cfg(target_arch = "x86_64")]
mod portable {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Enough chains to hide the latency of a multiplication and an addition, few enough for sixteen registers.
    const CHAINS: usize = 12;
    pub(super) const ROUND: usize = CHAINS * 4 * 2;

    #[target_feature(enable = "sse2")]
    pub(super) fn f32(rounds: usize) -> f32 {
        let (a, b) = (_mm_set1_ps(black_box(0.5)), _mm_set1_ps(black_box(1.0)));
        let mut sums = [_mm_set1_ps(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm_add_ps(_mm_mul_ps(*sum, a), b);
            }
        }
        let total = sums.into_iter().fold(_mm_setzero_ps(), |t, s| _mm_add_ps(t, s));
        let mut lanes = [0.0f32; 4];
        // SAFETY: four floats fit.
        unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), total) };
        lanes.iter().sum()
    }
}

/// The baseline of aarch64.
#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    /// Four units with a latency of four cycles; there are 32 registers.
    const CHAINS: usize = 20;
    pub(super) const ROUND: usize = CHAINS * 4 * 2;

    #[target_feature(enable = "neon")]
    pub(super) fn f32(rounds: usize) -> f32 {
        let (a, b) = (vdupq_n_f32(black_box(0.5)), vdupq_n_f32(black_box(1.0)));
        let mut sums = [vdupq_n_f32(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = vfmaq_f32(b, *sum, a);
            }
        }
        vaddvq_f32(sums.into_iter().fold(vdupq_n_f32(0.0), |t, s| vaddq_f32(t, s)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::gemm::amx;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Two units with a latency of four or five cycles need ten independent chains; sixteen registers hold twelve
    /// and both factors.
    const CHAINS: usize = 12;
    pub(super) const AVX2_F32_ROUND: usize = CHAINS * 8 * 2;
    pub(super) const AVX512_F32_ROUND: usize = CHAINS * 16 * 2;
    /// Products of bfloat16 have a latency of six cycles on some machines; there are 32 registers.
    const DOT_CHAINS: usize = 16;
    pub(super) const AVX512_BF16_ROUND: usize = DOT_CHAINS * 16 * 2 * 2;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2_f32(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [_mm256_set1_ps(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        let total = sums.into_iter().fold(_mm256_setzero_ps(), |t, s| _mm256_add_ps(t, s));
        let mut lanes = [0.0f32; 8];
        // SAFETY: eight floats fit.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
        lanes.iter().sum()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512_f32(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [_mm512_set1_ps(black_box(0.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |t, s| _mm512_add_ps(t, s)))
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16(rounds: usize) -> f32 {
        // Pairs of 1.0 and of 2⁻²⁰ in bfloat16.
        let (one, small) = (_mm512_set1_epi32(0x3f80_3f80), _mm512_set1_epi32(0x3580_3580));
        // SAFETY: the same 512 bits, seen as 32 bfloat16.
        let (a, b): (__m512bh, __m512bh) = unsafe {
            (
                std::mem::transmute::<__m512i, __m512bh>(black_box(one)),
                std::mem::transmute::<__m512i, __m512bh>(black_box(small)),
            )
        };
        let mut sums = [_mm512_set1_ps(black_box(0.0)); DOT_CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |t, s| _mm512_add_ps(t, s)))
    }

    /// As the kernel without VNNI has it: two products of sixteen pairs of 16 bits, and their additions, for 32 bytes.
    pub(super) const AVX2_INT8_ROUND: usize = CHAINS * 32 * 2;
    pub(super) const AVX2_VNNI_ROUND: usize = CHAINS * 32 * 2;
    pub(super) const AVX512_VNNI_ROUND: usize = DOT_CHAINS * 64 * 2;

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_int8(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_epi16(black_box(1)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [_mm256_set1_epi32(black_box(0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // In assembly, since the compiler would take products that are all the same out of the loop.
                // SAFETY: arithmetic on registers; AVX2 exists.
                unsafe {
                    std::arch::asm!(
                        "vpmaddwd {even}, {a}, {b}",
                        "vpmaddwd {odd}, {b}, {a}",
                        "vpaddd {even}, {even}, {odd}",
                        "vpaddd {sum}, {sum}, {even}",
                        a = in(ymm_reg) a,
                        b = in(ymm_reg) b,
                        even = out(ymm_reg) _,
                        odd = out(ymm_reg) _,
                        sum = inout(ymm_reg) *sum,
                        options(nomem, nostack, preserves_flags),
                    );
                }
            }
        }
        total(sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi32(t, s)))
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn avx2_vnni(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(1)));
        let mut sums = [_mm256_set1_epi32(black_box(0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        total(sums.into_iter().fold(_mm256_setzero_si256(), |t, s| _mm256_add_epi32(t, s)))
    }

    #[target_feature(enable = "avx2")]
    fn total(sums: __m256i) -> f32 {
        let mut lanes = [0i32; 8];
        // SAFETY: eight integers fit.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
        lanes.iter().map(|&v| v as f32).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512_vnni(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        let mut sums = [_mm512_set1_epi32(black_box(0)); DOT_CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        _mm512_reduce_add_epi32(sums.into_iter().fold(_mm512_setzero_si512(), |t, s| _mm512_add_epi32(t, s)))
            as f32
    }

    /// Four tiles of sums, as the kernels have them; each of the 16 × 16 takes 32 products a round.
    pub(super) const AMX_BF16_ROUND: usize = 4 * 16 * 16 * 32 * 2;
    /// And 64 of bytes.
    pub(super) const AMX_INT8_ROUND: usize = 2 * AMX_BF16_ROUND;

    /// A loop of one tile product; `$one` and `$small` are what groups of the factors hold, `$number` the sums' type.
    macro_rules! tiles {
        ($name:ident, $product:literal, $one:expr, $small:expr, $number:ty) => {
            /// # Safety
            /// The machine has AMX with this product and the system has allowed its use.
            pub(super) unsafe fn $name(rounds: usize) -> f32 {
                let (one, small) = (black_box([$one; 256]), black_box([$small; 256]));
                let mut sums = [<$number>::default(); 4 * 256];
                // SAFETY: the contract; factors are 1 KiB each, sums four times that; every jump stays inside.
                unsafe {
                    amx::enter();
                    std::arch::asm!(
                        "tileloadd tmm4, [{a} + {line}*1]",
                        "tileloadd tmm5, [{a} + {line}*1]",
                        "tileloadd tmm6, [{b} + {line}*1]",
                        "tileloadd tmm7, [{b} + {line}*1]",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "test {rounds}, {rounds}",
                        "jz 3f",
                        "2:",
                        concat!($product, " tmm0, tmm4, tmm6"),
                        concat!($product, " tmm1, tmm4, tmm7"),
                        concat!($product, " tmm2, tmm5, tmm6"),
                        concat!($product, " tmm3, tmm5, tmm7"),
                        "dec {rounds}",
                        "jnz 2b",
                        "3:",
                        "tilestored [{c} + {line}*1], tmm0",
                        "tilestored [{c} + {line}*1 + 1024], tmm1",
                        "tilestored [{c} + {line}*1 + 2048], tmm2",
                        "tilestored [{c} + {line}*1 + 3072], tmm3",
                        rounds = inout(reg) rounds => _,
                        a = in(reg) one.as_ptr(),
                        b = in(reg) small.as_ptr(),
                        c = in(reg) sums.as_mut_ptr(),
                        line = in(reg) 64usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                    amx::leave();
                }
                sums.iter().map(|&sum| sum as f32).sum()
            }
        };
    }

    // Pairs of 1.0 and of 2⁻²⁰ in bfloat16.
    tiles!(amx_bf16, "tdpbf16ps", 0x3f80_3f80u32, 0x3580_3580u32, f32);
    tiles!(amx_int8, "tdpbusd", 0x0101_0101u32, 0x0101_0101u32, i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_computes_what_it_says() {
        for multiply in Multiply::available() {
            // SAFETY: available on this machine.
            let sum = f64::from(unsafe { (multiply.run)(64) });
            let per_sum = match multiply.factors {
                // Fixed point of x/2 + 1, in accumulators of two operations a round.
                Factors::F32 => 2.0 * multiply.round as f64 / 2.0,
                // 64 rounds of two products of 2⁻²⁰, in accumulators of four operations a round.
                Factors::Bf16 => 64.0 * 2.0 * 2f64.powi(-20) * multiply.round as f64 / 4.0,
                // 64 rounds of products of 1.
                Factors::Int8 => 64.0 * multiply.round as f64 / 2.0,
            };
            assert!((sum / per_sum - 1.0).abs() < 1e-5, "{}: {sum}, not {per_sum}", multiply.name);
        }
    }

    #[test]
    fn figures_are_positive_and_the_bound_is_in_use() {
        for factors in [Factors::F32, Factors::Bf16, Factors::Int8] {
            let bound = Multiply::bounding(factors);
            assert!(bound.isa() <= isa::active());
            let speed = bound.gflops(Threads::All, 1, Duration::from_millis(2));
            assert!(speed.is_finite() && speed > 0.0);
        }
        let mut copying = Copying::new(1 << 16);
        for threads in [Threads::One, Threads::All] {
            let speed = copying.gbps(threads, 2);
            assert!(speed.is_finite() && speed > 0.0);
        }
        assert!(copying.to.iter().all(|&v| v == 1.0));
    }
}
