//! Percentiles of values that are all there.

/// The p-th percentile with linear interpolation between order statistics, as NumPy's default; 0 of nothing. Reorders `x`.
pub fn percentile(x: &mut [f32], p: f64) -> f64 {
    let Some(last) = x.len().checked_sub(1) else { return 0.0 };
    let position = p / 100.0 * last as f64;
    let index = (position.floor() as usize).min(last);
    let fraction = position - index as f64;
    let (_, &mut below, rest) = x.select_nth_unstable_by(index, f32::total_cmp);
    let below = below as f64;
    let above = rest.iter().copied().min_by(f32::total_cmp).map_or(below, |v| v as f64);
    // The two forms agree in exact arithmetic; NumPy switches so that the ends are hit exactly.
    if fraction < 0.5 {
        below + (above - below) * fraction
    } else {
        above - (above - below) * (1.0 - fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let mut x = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(percentile(&mut x, 0.0), 1.0);
        assert_eq!(percentile(&mut x, 100.0), 5.0);
        assert_eq!(percentile(&mut x, 50.0), 3.0);
        assert!((percentile(&mut x, 90.0) - 4.6).abs() < 1e-12);
        assert_eq!(percentile(&mut [7.0], 99.0), 7.0);
    }
}
