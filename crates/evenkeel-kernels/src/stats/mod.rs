//! Sums over activations from which the outlier metrics are made: one pass, float64, a fixed order.
//!
//! A site's activations are n tokens (rows) × d channels. [`channels`] holds what the cheap metrics need,
//! sums by channel; [`tokens`] what is taken row by row or sequence by sequence; [`gram`] the two Gram
//! matrices.
//!
//! All of it is float64 from the first operation on. Memory is what these passes wait for, so that float64
//! costs little, and it spares every special case: the fourth power of the largest float32 is 1e154, that of the
//! smallest 1e-180, and a channel of 300 ± 1 keeps its variance. NaN and infinity come through in the sums that
//! they belong to.

pub mod channels;
pub mod gram;
pub mod tokens;

pub use channels::{ChannelMoments, channel_moments};
pub use gram::{GramSums, Side, gram_add, gram_sums};
pub use tokens::{
    SequenceMoments, TokenSums, magnitudes_above, max_median_sums, median_magnitude, row_squares,
    sequence_moments, token_sums,
};

/// Whether `x` is whole rows of `width`; the number of rows.
fn rows_of(x: &[f32], width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "activations must be whole rows");
    x.len() / width
}

/// The larger magnitude, NaN once one was seen.
#[inline(always)]
fn larger(peak: f32, magnitude: f32) -> f32 {
    if magnitude > peak || magnitude.is_nan() { magnitude } else { peak }
}
