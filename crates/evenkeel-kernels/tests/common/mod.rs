//! What both test programs use: reproducible numbers, and a look at bits instead of values.

/// `n` numbers in [-1, 1), the same for the same seed; few of them are exact in fewer bits than float32 has.
pub(crate) fn fill(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// `n` token numbers below `limit`.
pub(crate) fn tokens(n: usize, limit: usize, seed: u32) -> Vec<u32> {
    fill(n, seed).iter().map(|x| ((x + 1.0) * 0.5 * limit as f32) as u32 % limit as u32).collect()
}

/// The bits of everything that an operation left behind, to be compared with those of another run.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// Of float32 numbers.
    pub(crate) fn and(mut self, x: &[f32]) -> Self {
        self.0.extend(x.iter().map(|v| v.to_bits() as u64));
        self
    }

    /// Of float64 numbers.
    pub(crate) fn and_wide(mut self, x: &[f64]) -> Self {
        self.0.extend(x.iter().map(|v| v.to_bits()));
        self
    }
}
