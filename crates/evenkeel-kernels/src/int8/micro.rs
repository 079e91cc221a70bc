//! The innermost loops of the int8 product, one file per instruction set: some rows by one panel of 32 columns.
//!
//! All share one layout, in *groups* of four neighbours of the inner dimension, so that one packed matrix serves every
//! instruction set:
//!
//! * `x`: row r, group g at byte `((g / 16) · rows + r) · 64 + (g mod 16) · 4`: sixteen groups of a row in one cache line;
//! * `w`: group g, column j at byte `(g · 32 + j) · 4` of its panel.
//!
//! The sums are exact, so the instruction set never changes a result.

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(not(target_arch = "x86_64"))]
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512, sse2};
use crate::isa::{self, Isa};

/// Columns of a panel.
pub(super) const PANEL: usize = 32;
/// Groups of a cache line; the inner dimension is padded with zeros to a multiple.
pub(super) const LINE: usize = 16;

/// A way to multiply unsigned by signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// The baseline of the target: SSE2 on x86-64, plain Rust elsewhere.
    Portable,
    /// NEON, by products of 16 bits.
    Neon,
    /// AVX2, by products of 16 bits.
    Avx2,
    /// AVX2 with `vpdpbusd` (AVX-VNNI).
    Avx2Vnni,
    /// AVX-512 with `vpdpbusd`.
    Avx512Vnni,
    /// AMX tiles; few rows go by AVX-512.
    Amx,
}

impl Path {
    /// All of them, from the least.
    pub const ALL: [Path; 6] =
        [Path::Portable, Path::Neon, Path::Avx2, Path::Avx2Vnni, Path::Avx512Vnni, Path::Amx];

    /// The best one within the instruction set in use.
    pub fn active() -> Path {
        Self::within(isa::active())
    }

    /// The best one of this machine that needs no more than `isa`.
    fn within(isa: Isa) -> Path {
        Self::ALL.into_iter().rev().find(|p| p.isa() <= isa && p.available()).unwrap_or(Path::Portable)
    }

    /// The instruction set that it belongs to.
    pub fn isa(self) -> Isa {
        match self {
            Path::Portable => Isa::Portable,
            Path::Neon => Isa::Neon,
            Path::Avx2 | Path::Avx2Vnni => Isa::Avx2,
            Path::Avx512Vnni => Isa::Avx512,
            Path::Amx => Isa::Amx,
        }
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        self.isa().available()
            && match self {
                Path::Portable | Path::Neon | Path::Avx2 => true,
                Path::Avx2Vnni => isa::has_avx_vnni(),
                Path::Avx512Vnni => isa::has_avx512_vnni(),
                Path::Amx => isa::has_amx_int8() && isa::has_avx512_vnni(),
            }
    }

    /// A short name, such as `avx512 vnni`.
    pub fn name(self) -> &'static str {
        match self {
            Path::Portable => "portable",
            Path::Neon => "neon",
            Path::Avx2 => "avx2",
            Path::Avx2Vnni => "avx2 vnni",
            Path::Avx512Vnni => "avx512 vnni",
            Path::Amx => "amx",
        }
    }
}

/// `out[r][j] = Σ_g x[r][g] · w[g][j]` for the rows that the function is made for, and 32 columns.
///
/// # Safety
/// `x` holds its rows of `groups` groups, rounded up to whole lines; `w` holds `groups · 32` groups; both are 64-byte
/// aligned; `out` is valid for writing the rows' 32 sums at `stride` apart; the instruction set exists on this machine.
/// For a kernel of fixed height `groups` is a multiple of [`LINE`].
pub(super) type Run = unsafe fn(groups: usize, x: *const u8, w: *const i8, out: *mut i32, stride: usize);

/// The loops of one way to multiply.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Most rows that one loop takes.
    pub(super) rows: usize,
    /// The loops for 1, 2, … rows, or a single one that always takes [`Kernel::rows`], of whole lines.
    runs: &'static [Run],
    /// Registers that need setting up before, and giving back after, a number of tiles on one thread.
    pub(super) session: Option<[unsafe fn(); 2]>,
}

impl Kernel {
    /// The loops for a product of `rows` rows on `path`, which must be available.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(super) fn select(path: Path, rows: usize) -> Self {
        debug_assert!(path.available());
        let plain = |runs: &'static [Run]| Self { rows: runs.len(), runs, session: None };
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Amx if rows > avx512::RUNS.len() => {
                let session = Some([crate::gemm::amx::enter as unsafe fn(), crate::gemm::amx::leave]);
                Self { rows: 32, runs: &[amx::tile], session }
            }
            #[cfg(target_arch = "x86_64")]
            Path::Amx | Path::Avx512Vnni => plain(&avx512::RUNS),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2Vnni => plain(&avx2::VNNI_RUNS),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => plain(&avx2::RUNS),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => plain(&neon::RUNS),
            #[cfg(target_arch = "x86_64")]
            _ => plain(&sse2::RUNS),
            #[cfg(not(target_arch = "x86_64"))]
            _ => plain(&portable::RUNS),
        }
    }

    /// Rows that the loop for `rows` rows takes; those past the end are zero.
    pub(super) fn height(&self, rows: usize) -> usize {
        if self.runs.len() == 1 { self.rows } else { rows }
    }

    /// The loop for `rows` rows, from 1 to [`Kernel::rows`].
    pub(super) fn run(&self, rows: usize) -> Run {
        self.runs[(rows - 1).min(self.runs.len() - 1)]
    }

    /// Groups that a loop over `inner` elements takes.
    pub(super) fn groups(&self, inner: usize) -> usize {
        let groups = inner.div_ceil(4);
        if self.session.is_some() { groups.next_multiple_of(LINE) } else { groups }
    }
}
