//! Which instruction set the vector code runs on, chosen once at run time.
//!
//! `EVENKEEL_ISA=portable|avx2|avx512|amx|neon` forces one that this machine has, so that every path can be
//! tested on one machine. A name that is unknown or not available here is ignored by [`active`] and
//! reported by [`requested`], which `evenkeel doctor` prints.

use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of plain Rust for the baseline of the target.
    Portable,
    /// NEON, which every aarch64 has.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// AMX tiles with bfloat16 products, beside AVX-512.
    Amx,
}

/// All of them, from the least.
const ALL: [Isa; 5] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

impl Isa {
    /// The name used by `EVENKEEL_ISA` and printed by `doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.available() && amx_bf16_allowed(),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// The best instruction set of this machine that the kernels have code for.
pub fn detected() -> Isa {
    ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Isa::Portable)
}

/// Whether the processor has AMX tiles with bfloat16 and the system lets this process use them. Asking is what
/// turns them on: Linux keeps the tile registers off until a process requests them, once, for all its threads.
#[cfg(target_arch = "x86_64")]
fn amx_bf16_allowed() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: register 0 exists wherever XSAVE does.
        unsafe { _xgetbv(0) }
    }
    *ALLOWED.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        /// Tile configuration and tile data in the extended state.
        const TILE_STATE: u64 = 3 << 17;
        let known = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
        if !known || !is_x86_feature_detected!("xsave") {
            return false;
        }
        // SAFETY: XSAVE was detected.
        let enabled = unsafe { enabled_state() } & TILE_STATE == TILE_STATE;
        enabled && request_tiles()
    })
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_tiles() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that reads no memory of ours; it clobbers rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems are not asked: their rules differ.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn request_tiles() -> bool {
    false
}

/// Whether this machine multiplies bfloat16 pairs in 512-bit registers (`vdpbf16ps`).
pub fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether this machine multiplies unsigned by signed bytes in 512-bit registers (`vpdpbusd`).
pub fn has_avx512_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether this machine multiplies unsigned by signed bytes in 256-bit registers without AVX-512.
pub fn has_avx_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether the processor's AMX tiles, if it has any, multiply bytes.
pub fn has_amx_int8() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const INT8: u32 = 1 << 25;
        static HAS: OnceLock<bool> = OnceLock::new();
        *HAS.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & INT8 != 0)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// What `EVENKEEL_ISA` asks for: `None` if unset, `Some(Err(text))` if it names nothing we know.
pub fn requested() -> Option<Result<Isa, String>> {
    let text = std::env::var("EVENKEEL_ISA").ok()?;
    Some(ALL.into_iter().find(|isa| isa.name() == text).ok_or(text))
}

/// The instruction set in use: what was requested if this machine has it, [`detected`] otherwise.
pub fn active() -> Isa {
    static ACTIVE: OnceLock<Isa> = OnceLock::new();
    *ACTIVE.get_or_init(|| match requested() {
        Some(Ok(isa)) if isa.available() => isa,
        _ => detected(),
    })
}

/// Asks for the cache line at `address`, which need not be valid, ahead of its use.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Defines a function whose body is compiled once per instruction set and dispatched at run time.
///
/// The body must be written so that the compiler can vectorise it: fixed-size lanes, no calls that are
/// not inlined. Reductions keep the order written in the source on every instruction set.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::isa::active() {
                    // SAFETY: `active` is available on this machine.
                    $crate::isa::Isa::Amx | $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_active_is_available() {
        assert!(active().available() && active() <= detected());
        for isa in ALL {
            assert!(!isa.available() || isa <= detected(), "{}", isa.name());
        }
    }
}
