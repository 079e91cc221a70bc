//! A histogram of any number of values in bounded memory.
//!
//! A bucket for each bfloat16: the upper 16 bits of a float32. Neighbouring edges lie less than 1/128 apart relative to
//! themselves, so that is the largest error of a percentile. Counts add up, so the order of values does not matter.

use super::extremes;

/// Counts of values by their upper 16 bits.
#[derive(Clone, Debug)]
pub struct Sketch {
    counts: Vec<u64>,
    total: u64,
    seen: (f32, f32),
}

const BUCKETS: usize = 1 << 16;
const HALF: usize = BUCKETS / 2;

impl Default for Sketch {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, seen: (f32::INFINITY, f32::NEG_INFINITY) }
    }
}

/// Buckets in ascending order of value; both zeros count as +0.
fn bucket(x: f32) -> usize {
    let upper = (x.to_bits() >> 16) as usize;
    match x {
        0.0 => HALF,
        _ if upper < HALF => HALF + upper,
        // Magnitude 0 of the negative side is the bucket below +0.
        _ => HALF - 1 - (upper - HALF),
    }
}

/// Ends of a bucket.
fn edges(bucket: usize) -> (f64, f64) {
    let edge = |upper: usize| f64::from(f32::from_bits((upper as u32) << 16));
    if bucket >= HALF {
        (edge(bucket - HALF), edge(bucket - HALF + 1))
    } else {
        let magnitude = HALF - 1 - bucket;
        (-edge(magnitude + 1), -edge(magnitude))
    }
}

impl Sketch {
    /// Of these values.
    pub fn of(values: &[f32]) -> Self {
        let mut sketch = Self::default();
        sketch.add(values);
        sketch
    }

    /// Counts finite values.
    pub fn add(&mut self, values: &[f32]) {
        for &v in values {
            self.counts[bucket(v)] += 1;
        }
        if !values.is_empty() {
            let (lo, hi) = extremes(values);
            self.seen = (self.seen.0.min(lo as f32), self.seen.1.max(hi as f32));
        }
        self.total += values.len() as u64;
    }

    /// Whether nothing was counted yet.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Smallest and largest value; zeros before any came.
    pub fn extremes(&self) -> (f64, f64) {
        match self.total {
            0 => (0.0, 0.0),
            _ => (f64::from(self.seen.0), f64::from(self.seen.1)),
        }
    }

    /// Ends of a bucket that holds values. Beyond the largest bfloat16 there is no next one: there, the extreme value.
    fn ends(&self, bucket: usize) -> (f64, f64) {
        let (low, high) = edges(bucket);
        let (lo, hi) = self.extremes();
        (if low.is_finite() { low } else { lo }, if high.is_finite() { high } else { hi })
    }

    /// The p-th percentile, to within a bucket; between the extremes.
    pub fn percentile(&self, p: f64) -> f64 {
        let (lo, hi) = self.extremes();
        let rank = p / 100.0 * self.total.saturating_sub(1) as f64;
        let mut before = 0u64;
        for (bucket, &count) in self.counts.iter().enumerate() {
            if count > 0 && (before + count) as f64 > rank.floor() {
                let (low, high) = self.ends(bucket);
                let share = ((rank - before as f64 + 0.5) / count as f64).clamp(0.0, 1.0);
                return (low + (high - low) * share).clamp(lo, hi);
            }
            before += count;
        }
        hi
    }

    /// A value for each bucket that is not empty, its middle but inside the extremes, and how many values it stands for.
    pub fn points(&self) -> Vec<(f32, f64)> {
        let occupied = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        occupied
            .map(|(bucket, &count)| {
                let (low, high) = self.ends(bucket);
                let middle = ((low + high) / 2.0) as f32;
                (middle.clamp(self.seen.0, self.seen.1), count as f64)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::percentile::percentile;
    use super::*;

    #[test]
    fn buckets_ascend_and_hold_their_values() {
        let values = [-1e30, -3.5, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.3, 1.0, 1.003, 7.0, 3e38];
        for pair in values.windows(2) {
            assert!(bucket(pair[0]) <= bucket(pair[1]), "{pair:?}");
        }
        for v in values {
            let (low, high) = edges(bucket(v));
            assert!(low <= f64::from(v) && f64::from(v) <= high, "{v}: {low} {high}");
        }
    }

    #[test]
    fn percentiles_are_close_to_the_exact_ones() {
        let mut values: Vec<f32> =
            (0..50_000).map(|i| ((i * 7919 % 50_000) as f32 / 5000.0 - 5.0).powi(3)).collect();
        let sketch = Sketch::of(&values);
        for p in [0.0, 0.1, 5.0, 40.0, 77.7, 99.9, 100.0] {
            let exact = percentile(&mut values, p);
            assert!((sketch.percentile(p) - exact).abs() <= exact.abs() / 128.0, "{p}");
        }
    }
}
