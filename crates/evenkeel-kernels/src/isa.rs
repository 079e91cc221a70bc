//! Which instruction set the vector code runs on, chosen once at run time.
//!
//! `EVENKEEL_ISA=portable|avx2|avx512` forces one that this machine has, so that every path can be
//! tested on one machine. A name that is unknown or not available here is ignored by [`active`] and
//! reported by [`requested`], which `evenkeel doctor` prints.

use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of the target (SSE2 on x86-64, NEON on aarch64).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
}

impl Isa {
    /// The name used by `EVENKEEL_ISA` and printed by `doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

/// The best instruction set of this machine that the kernels have code for.
pub fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
        {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
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

/// What `EVENKEEL_ISA` asks for: `None` if unset, `Some(Err(text))` if it names nothing we know.
pub fn requested() -> Option<Result<Isa, String>> {
    let text = std::env::var("EVENKEEL_ISA").ok()?;
    Some([Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().find(|isa| isa.name() == text).ok_or(text))
}

/// The instruction set in use. Never above [`detected`].
pub fn active() -> Isa {
    static ACTIVE: OnceLock<Isa> = OnceLock::new();
    *ACTIVE.get_or_init(|| match requested() {
        Some(Ok(isa)) => isa.min(detected()),
        _ => detected(),
    })
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
                    // SAFETY: `active` is at most what `detected` found on this machine.
                    $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable => {}
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
    fn active_is_never_more_than_the_machine_has() {
        assert!(active() <= detected());
        assert_eq!(Isa::Avx2.name(), "avx2");
    }
}
