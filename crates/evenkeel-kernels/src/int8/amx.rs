//! AMX: 32 rows by a panel of 32 columns as two by two tile registers of 16 × 16 sums, sixty-four bytes deep. The loop of
//! `gemm/amx.rs`, with `tdpbusd`, which multiplies unsigned by signed bytes, and without old sums to add to.

use std::arch::asm;

/// # Safety
/// That of [`super::micro::Run`], between `enter` and `leave` of `gemm/amx.rs` on this thread.
pub(super) unsafe fn tile(groups: usize, x: *const u8, w: *const i8, out: *mut i32, stride: usize) {
    debug_assert!(groups.is_multiple_of(super::micro::LINE));
    // SAFETY: `x` is groups/16 blocks of 32 rows × 64 bytes, read 16 rows at a time; `w` is groups/16 blocks of 16
    // rows × 128 bytes, read 64 bytes wide; `out` is 32 rows of 128 bytes, stride · 4 apart. All by the contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {blocks}, {blocks}",
            "jz 3f",
            "2:",
            "tileloadd tmm6, [{w} + {w_stride}*1]",
            "tileloadd tmm4, [{x} + {x_stride}*1]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {w_stride}*1 + 64]",
            "tdpbusd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x} + {x_stride}*1 + 1024]",
            "tdpbusd tmm2, tmm5, tmm6",
            "tdpbusd tmm3, tmm5, tmm7",
            "add {x}, 2048",
            "add {w}, 2048",
            "dec {blocks}",
            "jnz 2b",
            "3:",
            "tilestored [{out} + {stride}*1], tmm0",
            "tilestored [{out} + {stride}*1 + 64], tmm1",
            "tilestored [{low} + {stride}*1], tmm2",
            "tilestored [{low} + {stride}*1 + 64], tmm3",
            blocks = inout(reg) groups / 16 => _,
            x = inout(reg) x => _,
            w = inout(reg) w => _,
            x_stride = in(reg) 64usize,
            w_stride = in(reg) 128usize,
            out = in(reg) out,
            low = in(reg) out.add(16 * stride),
            stride = in(reg) stride * 4,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
