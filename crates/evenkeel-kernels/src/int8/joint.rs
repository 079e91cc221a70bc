//! Where a branch joins the residual stream: the branch's last product and the sum, one pass, bytes in and bytes out.
//!
//! With the product's numbers y, `b = β y` on the branch's grid and the stream x on its own, the new stream is `skip · x + b` on
//! the grid of the sum. Every step rounds as float32 does, in this order, so that the bytes are those of the steps one by one.

use super::requantise::{Scale, Terms, byte, check, dequantise_into};
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

/// Numbers at a time, which stay in L1.
const CHUNK: usize = 256;

/// Joins the layer of `x`, (rows, inner), to `stream`, (rows, outputs), in place and on all threads.
///
/// # Panics
/// If sizes disagree, or a grid's integers are not bytes.
pub fn layer_onto(x: &[u8], rows: usize, w: &PackedI8, terms: Terms, joint: Joint, stream: &mut [u8]) {
    let width = w.outputs();
    assert_eq!(stream.len(), rows * width);
    check(joint.branch);
    check(joint.sum);
    let stream = Shared::new(stream);
    gemm_i8(x, rows, w, |row, first, sums| {
        // SAFETY: `gemm_i8` hands out every element once, so the piece is this call's own; it lies inside by the assertion.
        let piece = unsafe { std::slice::from_raw_parts_mut(stream.at(row * width + first), sums.len()) };
        let mut numbers = [0.0; CHUNK];
        for (i, (sums, piece)) in sums.chunks(CHUNK).zip(piece.chunks_mut(CHUNK)).enumerate() {
            let (numbers, first) = (&mut numbers[..sums.len()], first + i * CHUNK);
            dequantise_into(sums, terms.columns(first, sums.len()), numbers);
            match joint.beta {
                Some(Scale::One(beta)) => by_one(numbers, beta),
                Some(Scale::Columns(betas)) => by_each(numbers, &betas[first..first + sums.len()]),
                None => {}
            }
            join(numbers, joint, piece);
        }
    });
}

multiversion! {
    fn by_one(x: &mut [f32], beta: f32) {
        for x in x {
            *x *= beta;
        }
    }
}

multiversion! {
    fn by_each(x: &mut [f32], betas: &[f32]) {
        for (x, beta) in x.iter_mut().zip(betas) {
            *x *= beta;
        }
    }
}

multiversion! {
    fn join(branch: &[f32], joint: Joint, stream: &mut [u8]) {
        let (b, s, t) = (joint.branch, joint.stream, joint.sum);
        for (stream, &y) in stream.iter_mut().zip(branch) {
            let level = f32::from(byte((y / b.scale).round_ties_even(), b));
            let branch = b.scale * (level - b.zero_point);
            let x = s.scale * (f32::from(*stream) - s.zero_point) * joint.skip + branch;
            *stream = byte((x / t.scale).round_ties_even(), t);
        }
    }
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
