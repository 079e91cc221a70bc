//! Where a branch joins the residual stream: the branch's last product and the sum, one pass, bytes in and bytes out.
//!
//! With the product's numbers y, `b = β y` on the branch's grid and the stream x on its own, the new stream is `skip · x + b` on
//! the grid of the sum. Every step rounds as float32 does, in this order, so that the bytes are those of the steps one by one.

use super::requantise::{LANES, Scale, Terms, byte, check, numbers_of_lanes};
use super::{PackedI8, gemm_i8};
use crate::isa::multiversion;
use crate::quant::Grid;
use crate::threads::Shared;

/// How a branch joins the stream.
#[derive(Clone, Copy, Debug)]
pub struct Joint<'a> {
    /// β; `None` is 1.
    pub beta: Option<Scale<'a>>,
    /// The grid of β times the branch.
    pub branch: Grid,
    /// The factor on the stream.
    pub skip: f32,
    /// The stream's grid before.
    pub stream: Grid,
    /// Its grid after.
    pub sum: Grid,
}

/// Joins the layer of `x`, (rows, inner), to `stream`, (rows, outputs), in place and on all threads. The layer has no activation.
///
/// # Panics
/// If sizes disagree, or a grid's integers are not bytes.
pub fn layer_onto(x: &[u8], rows: usize, w: &PackedI8, terms: Terms, joint: Joint, stream: &mut [u8]) {
    let width = w.outputs();
    assert_eq!(stream.len(), rows * width);
    assert!(terms.activation.is_none(), "what joins the stream is a matrix's own output");
    check(joint.branch);
    check(joint.sum);
    let stream = Shared::new(stream);
    gemm_i8(x, rows, w, |row, first, sums| {
        // SAFETY: `gemm_i8` hands out every element once, so the piece is this call's own; it lies inside by the assertion.
        let piece = unsafe { std::slice::from_raw_parts_mut(stream.at(row * width + first), sums.len()) };
        join(sums, terms, joint, first, piece);
    });
}

multiversion! {
    /// A piece of a row whose first column is `first`.
    fn join(sums: &[i32], terms: Terms, joint: Joint, first: usize, stream: &mut [u8]) {
        let (sums, sums_rest) = sums.as_chunks::<LANES>();
        let (stream, stream_rest) = stream.as_chunks_mut::<LANES>();
        let rest = first + sums.len() * LANES;
        for (i, (stream, sums)) in stream.iter_mut().zip(sums).enumerate() {
            *stream = join_lanes(sums, terms, joint, first + i * LANES, *stream);
        }
        for (i, (stream, &sum)) in stream_rest.iter_mut().zip(sums_rest).enumerate() {
            [*stream] = join_lanes(&[sum], terms, joint, rest + i, [*stream]);
        }
    }
}

/// `N` columns from `first` on.
#[inline(always)]
fn join_lanes<const N: usize>(
    sums: &[i32; N],
    terms: Terms,
    joint: Joint,
    first: usize,
    stream: [u8; N],
) -> [u8; N] {
    let (b, s, t) = (joint.branch, joint.stream, joint.sum);
    let mut y = numbers_of_lanes(sums, terms, first);
    match joint.beta {
        Some(Scale::One(beta)) => (0..N).for_each(|l| y[l] *= beta),
        Some(Scale::Columns(betas)) => {
            let betas = &betas[first..first + N];
            (0..N).for_each(|l| y[l] *= betas[l]);
        }
        None => {}
    }
    // The same steps on all lanes before the next ones, which is how they become vectors.
    for y in &mut y {
        let level = f32::from(byte((*y / b.scale).round_ties_even(), b));
        *y = b.scale * (level - b.zero_point);
    }
    for (y, &x) in y.iter_mut().zip(&stream) {
        *y += s.scale * (f32::from(x) - s.zero_point) * joint.skip;
    }
    y.map(|y| byte((y / t.scale).round_ties_even(), t))
}

#[cfg(test)]
mod tests {
    use super::super::layer::{Rows, layer};
    use super::super::requantise::{dequantise_u8_serial, quantise_u8_serial};
    use super::*;

    #[test]
    fn one_pass_gives_the_bytes_of_the_steps() {
        let (rows, outputs, inner) = (5, 70, 33);
        let bytes = |n: usize, seed: usize| -> Vec<u8> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 256) as u8).collect()
        };
        let weights: Vec<i8> = bytes(outputs * inner, 1).into_iter().map(|b| b as i8).collect();
        let (w, x, stream) =
            (PackedI8::new(&weights, outputs, inner), bytes(rows * inner, 2), bytes(rows * outputs, 3));
        let grid = |scale, zero_point| Grid { scale, zero_point, low: 0.0, high: 255.0 };
        let offset = vec![17; outputs];
        let betas: Vec<f32> = (0..outputs).map(|i| 0.5 + 0.01 * i as f32).collect();
        let terms = Terms { offset: &offset, scale: Scale::One(1.3e-4), bias: None, activation: None };
        for (beta, skip) in [(None, 1.0), (Some(Scale::One(0.3)), 0.9), (Some(Scale::Columns(&betas)), 1.0)] {
            let joint = Joint {
                beta,
                branch: grid(0.11, 120.0),
                skip,
                stream: grid(0.07, 99.0),
                sum: grid(0.13, 110.0),
            };
            let mut found = stream.clone();
            layer_onto(&x, rows, &w, terms, joint, &mut found);
            let mut y = vec![0.0; rows * outputs];
            layer(&x, rows, &w, terms, Rows::default(), &mut y);
            for (i, y) in y.iter_mut().enumerate() {
                *y *= match beta {
                    None => 1.0,
                    Some(Scale::One(beta)) => beta,
                    Some(Scale::Columns(betas)) => betas[i % outputs],
                };
            }
            let mut levels = vec![0; y.len()];
            quantise_u8_serial(&y, joint.branch, &mut levels);
            dequantise_u8_serial(&levels, joint.branch, &mut y);
            let mut before = vec![0.0; y.len()];
            dequantise_u8_serial(&stream, joint.stream, &mut before);
            let sum: Vec<f32> = before.iter().zip(&y).map(|(x, y)| x * skip + y).collect();
            let mut want = vec![0; y.len()];
            quantise_u8_serial(&sum, joint.sum, &mut want);
            assert_eq!(found, want, "{beta:?} {skip}");
        }
    }
}
