//! Rounding to floating-point formats of 8 and 4 bits, on slices of float32.
//!
//! To nearest, ties to the even mantissa, with subnormals, and saturating: what lies beyond the largest finite value becomes it.
//! The formats are those of the OCP 8-bit and Microscaling specifications.

use crate::isa::multiversion;
use crate::threads::PIECE;
use rayon::prelude::*;

/// A format by its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MiniFloat {
    /// Bits of the mantissa.
    pub mantissa: i32,
    /// Exponent of the smallest normal number.
    pub smallest_exponent: i32,
    /// Exponent of the largest number.
    pub largest_exponent: i32,
    /// The largest number.
    pub largest: f32,
}

/// 4 exponent and 3 mantissa bits, up to 448, no infinity.
pub const E4M3: MiniFloat =
    MiniFloat { mantissa: 3, smallest_exponent: -6, largest_exponent: 8, largest: 448.0 };
/// 5 exponent and 2 mantissa bits, up to 57344.
pub const E5M2: MiniFloat =
    MiniFloat { mantissa: 2, smallest_exponent: -14, largest_exponent: 15, largest: 57344.0 };
/// 2 exponent bits and 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
pub const E2M1: MiniFloat =
    MiniFloat { mantissa: 1, smallest_exponent: 0, largest_exponent: 2, largest: 6.0 };

/// 2^exponent for exponents from -149 to 127.
fn power_of_two(exponent: i32) -> f32 {
    if exponent >= -126 {
        f32::from_bits(((exponent + 127) as u32) << 23)
    } else {
        f32::from_bits(1 << (exponent + 149).max(0))
    }
}

/// x ← s · round(x / s) in the format, in parallel. `scale` is positive.
pub fn fake_round(x: &mut [f32], format: MiniFloat, scale: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| fake_round_serial(x, format, scale));
}

/// As [`fake_round`], on the calling thread.
pub fn fake_round_serial(x: &mut [f32], format: MiniFloat, scale: f32) {
    round_piece(x, scale, Limits::of(format));
}

multiversion! {
    fn round_piece(x: &mut [f32], scale: f32, limits: Limits) {
        for v in x {
            *v = scale * rounded(*v / scale, limits);
        }
    }
}

/// A format as its rounding needs it.
#[derive(Clone, Copy)]
struct Limits {
    smallest_power: f32,
    largest_power: f32,
    /// Distance of neighbours as a share of the power of two below them.
    unit: f32,
    largest: f32,
}

impl Limits {
    fn of(format: MiniFloat) -> Self {
        Self {
            smallest_power: power_of_two(format.smallest_exponent),
            largest_power: power_of_two(format.largest_exponent),
            unit: power_of_two(-format.mantissa),
            largest: format.largest,
        }
    }
}

/// The value of the format nearest to `x`.
pub fn round(x: f32, format: MiniFloat) -> f32 {
    rounded(x, Limits::of(format))
}

#[inline(always)]
fn rounded(x: f32, limits: Limits) -> f32 {
    // The power of two below |x| sets the spacing; rounding up into the next power's range lands on its first value.
    let power =
        f32::from_bits(x.to_bits() & 0x7f80_0000).max(limits.smallest_power).min(limits.largest_power);
    let spacing = power * limits.unit;
    ((x / spacing).round_ties_even() * spacing).clamp(-limits.largest, limits.largest)
}

/// ⌊log2 x⌋ of a positive float32, subnormals included; -127 at least.
pub fn exponent(x: f32) -> i32 {
    ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(-127)
}

/// 2^e as a shared scale of a Microscaling group, for e in -127..=127.
pub fn shared_scale(e: i32) -> f32 {
    power_of_two(e.clamp(-127, 127))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values of a format from its definition.
    fn values(f: MiniFloat) -> Vec<f32> {
        let steps = 1 << f.mantissa;
        let mut all: Vec<f32> =
            (0..steps).map(|m| (m as f32 / steps as f32) * 2f32.powi(f.smallest_exponent)).collect();
        for e in f.smallest_exponent..=f.largest_exponent {
            all.extend((0..steps).map(|m| (1.0 + m as f32 / steps as f32) * 2f32.powi(e)));
        }
        all.retain(|&v| v <= f.largest);
        all
    }

    #[test]
    fn values_stay_and_midpoints_go_to_the_even_neighbour() {
        for f in [E4M3, E5M2, E2M1] {
            let all = values(f);
            assert_eq!(*all.last().unwrap(), f.largest);
            for (i, pair) in all.windows(2).enumerate() {
                assert_eq!(round(pair[0], f), pair[0]);
                assert_eq!(round(-pair[1], f), -pair[1]);
                let middle = (pair[0] + pair[1]) / 2.0;
                assert_eq!(round(middle, f), pair[i % 2], "{f:?} {middle}");
                assert_eq!(round(middle * 1.0001, f), pair[1]);
                assert_eq!(round(middle * 0.9999, f), pair[0]);
            }
            for x in [f.largest * 1.01, 1e30, f32::MAX, f32::INFINITY] {
                assert_eq!((round(x, f), round(-x, f)), (f.largest, -f.largest));
            }
        }
    }

    #[test]
    fn powers_of_two() {
        for e in -149..=127 {
            assert_eq!(power_of_two(e), 2f64.powi(e) as f32, "{e}");
        }
        assert_eq!((exponent(1.0), exponent(7.9), exponent(0.49), exponent(1e-42)), (0, 2, -2, -127));
    }
}
