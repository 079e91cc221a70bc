//! AMX: a tile of 32 × 32 as two by two tile registers of 16 × 16 sums, sixteen pairs of bfloat16 deep.
//!
//! `tdpbf16ps` multiplies a tile of 16 rows × 16 groups by one of 16 groups × 16 columns. Four accumulators use each
//! loaded tile twice: four loads for four products. The tile registers are beyond what the compiler knows, so one
//! `asm!` block holds the whole loop, from clearing or loading the sums to storing them.
//!
//! The kernel gives a process the use of the tile registers when asked (`isa`); each thread
//! configures their shapes before its tiles ([`enter`]) and releases them after ([`leave`]), so that nothing is saved
//! at a switch of threads that do not multiply.

use std::arch::asm;

/// `ldtilecfg`'s memory: palette 1, rows and bytes per row of each of the eight registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures this thread's tile registers, all of 16 × 64 bytes.
///
/// # Safety
/// The machine has AMX and the system has allowed its use.
pub(crate) unsafe fn enter() {
    // SAFETY: reads 64 bytes of a static; the contract above.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// Gives the tile registers back.
///
/// # Safety
/// As [`enter`].
pub(crate) unsafe fn leave() {
    // SAFETY: the contract above.
    unsafe {
        asm!("tilerelease", options(nostack, nomem, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// # Safety
/// That of [`super::micro::Run`], with `groups` a multiple of 16, between [`enter`] and [`leave`] on this thread.
pub(super) unsafe fn bf16(
    groups: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    debug_assert!(groups.is_multiple_of(16));
    // SAFETY: `a` is groups/16 blocks of 32 rows × 64 bytes, read 16 rows at a time; `b` is groups/16 blocks of 16
    // rows × 128 bytes, read 64 bytes wide; `c` is 32 rows of 128 bytes, c_stride · 4 apart. All by the contract.
    unsafe {
        let low = c.add(16 * c_stride);
        asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {stride}*1]",
            "tileloadd tmm1, [{c} + {stride}*1 + 64]",
            "tileloadd tmm2, [{low} + {stride}*1]",
            "tileloadd tmm3, [{low} + {stride}*1 + 64]",
            "3:",
            "test {blocks}, {blocks}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b} + {b_stride}*1]",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {b_stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {a_stride}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {blocks}",
            "jnz 4b",
            "5:",
            "tilestored [{c} + {stride}*1], tmm0",
            "tilestored [{c} + {stride}*1 + 64], tmm1",
            "tilestored [{low} + {stride}*1], tmm2",
            "tilestored [{low} + {stride}*1 + 64], tmm3",
            add = in(reg) add as u32,
            blocks = inout(reg) groups / 16 => _,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            a_stride = in(reg) 64usize,
            b_stride = in(reg) 128usize,
            c = in(reg) c,
            low = in(reg) low,
            stride = in(reg) c_stride * 4,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
