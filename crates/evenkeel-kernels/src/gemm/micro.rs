//! The innermost loops, one file per instruction set: a tile of `rows` × `columns` of the output.
//!
//! All share one data layout, in *groups* of four bytes along the inner dimension ([`Element`]): one float32 or two
//! bfloat16 (four bytes have loops of their own, in `int8`). Per group a kernel broadcasts one group of each row of
//! `a`, multiplies it with the `columns` groups of `b` and adds to float32 accumulators that stay in registers:
//!
//! * `a`: row r, group g at `(g / 16) · rows · 16 + r · 16 + g mod 16`: sixteen groups of a row in one cache line;
//! * `b`: group g, column j at `g · columns + j` of its panel.
//!
//! A new instruction set is one function of type [`Run`] and one line in [`Kernel::select`].

use super::Compute;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::isa::Isa;

/// What a group of four bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// One float32 as it is.
    F32,
    /// One float32 that was rounded to bfloat16: for instruction sets that multiply no bfloat16. The product of two
    /// has 16 bits and is exact in float32, so sums round exactly where those of a bfloat16 unit may.
    Bf16AsF32,
    /// Two bfloat16, the even inner index in the low half.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Bf16Pair,
}

impl Element {
    /// Inner indices in a group.
    pub(super) fn per_group(self) -> usize {
        match self {
            Element::F32 | Element::Bf16AsF32 => 1,
            Element::Bf16Pair => 2,
        }
    }
}

/// Most elements of a tile.
pub(super) const MAX_TILE: usize = 32 * 32;

/// `c[r][j] (+)= Σ_g a[r][g] · b[g][j]` for a whole tile. `add` says whether to keep what `c` holds.
///
/// # Safety
/// `a` holds `groups` rounded up to 16 times `rows` groups, zero past the end; `b` holds `groups · columns`; both are
/// 64-byte aligned; `c` is valid for `rows` rows of `columns` that start `c_stride` apart and hold numbers if `add`;
/// the instruction set exists on this machine; `groups` is a multiple of the kernel's.
pub(super) type Run =
    unsafe fn(groups: usize, a: *const u32, b: *const u32, c: *mut f32, c_stride: usize, add: bool);

/// A micro-kernel, its tile and its layout.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile, a multiple of 16.
    pub(super) columns: usize,
    /// What the groups hold.
    pub(super) element: Element,
    /// The inner dimension is padded with zeros to a multiple of this many groups: 1 or 16.
    pub(super) multiple: usize,
    /// The loop.
    pub(super) run: Run,
    /// Registers that need setting up before, and giving back after, a number of tiles on one thread.
    pub(super) session: Option<Session>,
}

/// What must run around any number of tiles, on their thread.
#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) enter: unsafe fn(),
    pub(super) leave: unsafe fn(),
}

impl Kernel {
    /// The fastest kernel for `compute` on `isa`, which must exist on this machine.
    pub(super) fn select(compute: Compute, isa: Isa) -> Self {
        let rounded = match compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16AsF32,
        };
        let plain =
            |rows, columns, run| Self { rows, columns, element: rounded, multiple: 1, run, session: None };
        match (isa, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Compute::Bf16) => Self {
                rows: 32,
                columns: 32,
                element: Element::Bf16Pair,
                multiple: 16,
                run: amx::bf16,
                session: Some(Session { enter: amx::enter, leave: amx::leave }),
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Compute::Bf16) if crate::isa::has_avx512_bf16() => {
                Self { element: Element::Bf16Pair, ..plain(12, 32, avx512::bf16) }
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Amx, _) => plain(12, 32, avx512::f32),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => plain(6, 16, avx2::f32),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon, _) => plain(6, 16, neon::f32),
            _ => plain(4, 16, portable::f32),
        }
    }

    /// Rows and columns of a tile.
    pub(super) fn tile(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Groups of an inner dimension, padding included.
    pub(super) fn groups(&self, inner: usize) -> usize {
        inner.div_ceil(self.element.per_group()).next_multiple_of(self.multiple)
    }

    /// From one panel of a packed `b` to the next. Sixteen lines lie between, else panels as long as a power
    /// of two would begin in the same set of every cache, and those that are packed together drive each other out.
    pub(super) fn panel(&self, inner: usize) -> usize {
        match self.groups(inner) {
            0 => 0,
            groups => groups * self.columns + 256,
        }
    }
}
