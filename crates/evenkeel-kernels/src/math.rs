//! Elementary functions that the compiler can vectorise, and reductions in a fixed order.
//!
//! `f32::exp` is a call into libm, one value at a time. [`exp`] is the usual range reduction
//! `x = n ln 2 + r` with a degree-6 polynomial on |r| <= ln 2 / 2 (Cephes' coefficients), within 2 ulp of
//! the true value; NaN and infinities come through as they should.

/// Lanes of the fixed-order reductions: one AVX-512 register, two AVX2 ones.
pub const LANES: usize = 16;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, so that n * LN2_HI is exact for |n| < 2^9.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer without a call.
const ROUND: f32 = 12_582_912.0;

/// e^x to 2 ulp; 0 below -87.3, infinity above 88.7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HI - n * LN2_LO;
    let y = near_one(r);
    // The last bits of the sum hold n: a conversion, which minds what does not fit, would go lane by lane.
    let whole = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    // n reaches 128 at the top, where 2^n overflows: scale in two halves.
    let half = whole >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let scaled = y * power(half) * power(whole.wrapping_sub(half));
    let bounded = if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else {
        scaled
    };
    if x.is_nan() { x } else { bounded }
}

/// e^x for x at most 0: what [`exp`] gives down to -86.6, and 0 below. In half as many operations.
#[inline(always)]
pub fn exp_negative(x: f32) -> f32 {
    const LOWEST: f32 = -86.6;
    let clamped = if x > LOWEST { x } else { LOWEST };
    // The last bits of the sum hold n; shifted they are n in the place of the exponent.
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HI - n * LN2_LO;
    let y = near_one(r);
    let scaled = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < LOWEST { 0.0 } else { scaled }
}

/// e^r for |r| at most ln 2 / 2.
#[inline(always)]
fn near_one(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    p * r * r + r + 1.0
}

/// tanh x through [`exp`]; absolute error below 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(2.0 * x.clamp(-10.0, 10.0));
    let y = 1.0 - 2.0 / (e + 1.0);
    if x.is_nan() { x } else { y }
}

/// 1 / (1 + e^-x) through [`exp`]; relative error below 3e-7 down to where it vanishes.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// erf x; absolute error below 2e-7. Near 0, where 1 - p(t) exp(-x²) cancels, the Taylor series; elsewhere Abramowitz
/// and Stegun 7.1.26.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let mut p = 1.061_405_4f32;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_72;
    p = p * t + 0.254_829_6;
    let far = 1.0 - p * t * exp(-a * a);
    // 2/√π Σ (-1)^n x^(2n+1) / (n! (2n+1)) to n = 9, whose next term is below 2e-8 at x = 1.
    let s = a * a;
    let mut q = -1.636_584_5e-7f32;
    q = q * s + 1.646_211_4e-6;
    q = q * s - 1.492_565e-5;
    q = q * s + 1.205_533e-4;
    q = q * s - 8.548_327e-4;
    q = q * s + 5.223_977_6e-3;
    q = q * s - 2.686_617_1e-2;
    q = q * s + 1.128_379_2e-1;
    q = q * s - 3.761_264e-1;
    q = q * s + std::f32::consts::FRAC_2_SQRT_PI;
    let y = if a < 1.0 { q * a } else { far };
    if x < 0.0 { -y } else { y }
}

/// Σ f(x) over a slice, in [`LANES`] partial sums added in a fixed tree.
#[inline(always)]
pub fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += f(chunk[l]);
        }
    }
    let mut tail = 0.0;
    for &v in rest {
        tail += f(v);
    }
    fold(lanes) + tail
}

/// Σ f(a, b) over two slices of equal length, in the same order as [`sum_by`].
#[inline(always)]
pub fn sum_by2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0f32; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (x, y) in ca.zip(cb) {
        for l in 0..LANES {
            lanes[l] += f(x[l], y[l]);
        }
    }
    let mut tail = 0.0;
    for (&x, &y) in ra.iter().zip(rb) {
        tail += f(x, y);
    }
    fold(lanes) + tail
}

/// The largest value, NaN if there is one, -infinity for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    // `!(v <= m)` is true for NaN on either side only if v is NaN or m is NaN: keep NaN once seen.
    let pick = |m: f32, v: f32| if m.is_nan() || v <= m { m } else { v };
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = pick(lanes[l], chunk[l]);
        }
    }
    // In pairs: one after the other they would wait for each other longer than all the chunks take.
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for l in 0..LANES {
        lanes[l] = pick(lanes[l], last[l]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = pick(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_a_few_ulp() {
        let mut x = -87.0f32;
        while x < 88.6 {
            let want = (x as f64).exp();
            assert!(((exp(x) as f64) - want).abs() <= 3e-7 * want, "exp({x})");
            x += 0.0137;
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_of_what_is_not_positive_is_exp() {
        let mut x = 0.0f32;
        while x > -86.6 {
            assert_eq!(exp_negative(x).to_bits(), exp(x).to_bits(), "exp_negative({x})");
            x -= 0.0137;
        }
        assert_eq!([-86.7, -200.0, f32::NEG_INFINITY].map(exp_negative), [0.0; 3]);
    }

    #[test]
    fn tanh_and_erf_match_known_values() {
        for (x, want) in [(0.5f32, 0.520_499_9_f32), (1.0, 0.842_700_8), (-2.0, -0.995_322_3)] {
            assert!((erf(x) - want).abs() < 4e-7);
        }
        for x in [-20.0f32, -1.3, 0.0, 0.2, 3.0, 40.0] {
            assert!((tanh(x) - x.tanh()).abs() < 4e-7);
        }
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }

    #[test]
    fn max_keeps_nan() {
        let mut x = vec![1.0; 37];
        assert_eq!(max(&x), 1.0);
        x[20] = f32::NAN;
        assert!(max(&x).is_nan());
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
