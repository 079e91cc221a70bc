//! Products of bytes on every path of this machine, which must be exact, and the way from sums to bytes and back.

use crate::common::{Bits, fill};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::activation::{self, Activation};
use evenkeel_kernels::int8::requantise::{
    Scale, Terms, dequantise_into, dequantise_u8, dequantise_u8_serial, quantise_u8, quantise_u8_serial,
    requantise_into, row_grid,
};
use evenkeel_kernels::int8::{MAX_INNER, PackedI8, Path, gemm_i8, gemm_i8_by, gemm_i8_into, gemm_i8_serial};
use evenkeel_kernels::quant::{Grid, quantise};
use evenkeel_kernels::threads::Shared;

/// Bytes of every value, the same for the same seed.
pub(crate) fn bytes(n: usize, seed: u32) -> Vec<u8> {
    fill(n, seed).iter().map(|x| ((x + 1.0) * 128.0) as u8).collect()
}

pub(crate) fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|&b| b as i8).collect()
}

/// Σ x w in 64 bits.
fn reference(x: &[u8], w: &[i8], rows: usize, outputs: usize, inner: usize) -> Vec<i32> {
    let mut sums = Vec::with_capacity(rows * outputs);
    for m in 0..rows {
        for n in 0..outputs {
            let pairs = x[m * inner..][..inner].iter().zip(&w[n * inner..][..inner]);
            let sum: i64 = pairs.map(|(&x, &w)| i64::from(x) * i64::from(w)).sum();
            sums.push(sum.try_into().unwrap());
        }
    }
    sums
}

/// What `run` hands to its epilogue, each element once.
fn collect(
    rows: usize,
    outputs: usize,
    run: impl FnOnce(&(dyn Fn(usize, usize, &[i32]) + Sync)),
) -> Vec<i32> {
    let mut sums = vec![0; rows * outputs];
    let mut seen = vec![0u8; rows * outputs];
    {
        let (sums, seen) = (Shared::new(&mut sums), Shared::new(&mut seen));
        run(&|row, first, piece| {
            assert!(row < rows && first + piece.len() <= outputs, "a piece lies outside");
            for (i, &sum) in piece.iter().enumerate() {
                // SAFETY: pieces do not overlap, which `seen` checks.
                unsafe {
                    sums.at(row * outputs + first + i).write(sum);
                    *seen.at(row * outputs + first + i) += 1;
                }
            }
        });
    }
    assert!(seen.iter().all(|&s| s == 1), "an element was not handed out once");
    sums
}

fn check(x: &[u8], w: &[i8], rows: usize, outputs: usize, inner: usize) {
    let packed = PackedI8::new(w, outputs, inner);
    let want = reference(x, w, rows, outputs, inner);
    for path in Path::ALL.into_iter().filter(|path| path.available()) {
        let got = collect(rows, outputs, |each| gemm_i8_by(path, x, rows, &packed, each));
        assert!(got == want, "{}: {rows} × {inner} by {outputs}", path.name());
    }
    let got = collect(rows, outputs, |each| gemm_i8_serial(x, rows, &packed, each));
    assert!(got == want, "serial: {rows} × {inner} by {outputs}");
    let mut added = vec![7; want.len()];
    gemm_i8_into(x, rows, &packed, &mut added, |_, _, sums, out| {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += i64::from(*sum));
    });
    assert!(
        added.iter().zip(&want).all(|(&a, &w)| a == i64::from(w) + 7),
        "into: {rows} × {inner} by {outputs}"
    );
}

#[test]
fn odd_shapes_are_exact_on_every_path() {
    assert!(Path::active().available() && Path::Portable.available());
    for rows in [0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 17, 33, 64] {
        for outputs in [0, 1, 7, 15, 16, 31, 33, 65] {
            for inner in [0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 257] {
                let (x, w) = (bytes(rows * inner, 1), signed(&bytes(outputs * inner, 2)));
                check(&x, &w, rows, outputs, inner);
            }
        }
    }
}

#[test]
fn shapes_past_every_block_are_exact() {
    for (rows, outputs, inner) in
        [(401, 39, 70), (3, 1603, 259), (205, 545, 33), (1, 70, 20_001), (40, 65, 9000)]
    {
        let (x, w) = (bytes(rows * inner, 3), signed(&bytes(outputs * inner, 4)));
        check(&x, &w, rows, outputs, inner);
    }
}

#[test]
fn extreme_values_do_not_saturate() {
    for inner in [1, 2, 4, 6, 64, 257, MAX_INNER] {
        for rows in [1, 2, 13] {
            let outputs = if inner == MAX_INNER { 2 } else { 33 };
            for x in [255u8, 0, 128, 127] {
                for w in [[-128i8, -128], [127, 127], [-128, 127], [0, -128], [-1, 1]] {
                    let x = vec![x; rows * inner];
                    let w: Vec<i8> = (0..outputs * inner).map(|i| w[i % 2]).collect();
                    check(&x, &w, rows, outputs, inner);
                }
            }
        }
    }
}

#[test]
fn threads_change_no_sum() {
    let (rows, outputs, inner) = (217, 331, 129);
    let (x, w) = (bytes(rows * inner, 5), signed(&bytes(outputs * inner, 6)));
    let packed = PackedI8::new(&w, outputs, inner);
    same_on_any_threads("gemm_i8", || {
        let sums = collect(rows, outputs, |each| gemm_i8(&x, rows, &packed, each));
        Bits::default().and_wide(&sums.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
    });
}

#[test]
fn a_packed_matrix_gives_back_its_rows_and_their_sums() {
    for (outputs, inner) in [(1, 1), (33, 65), (70, 64), (5, 0), (0, 5), (40, 259)] {
        let w = signed(&bytes(outputs * inner, 7));
        let packed = PackedI8::new(&w, outputs, inner);
        assert_eq!((packed.outputs(), packed.inner(), packed.sums().len()), (outputs, inner, outputs));
        assert!(packed.bytes() >= outputs * inner);
        let mut row = vec![0; inner];
        for n in 0..outputs {
            packed.row(n, &mut row);
            assert_eq!(row, w[n * inner..][..inner]);
            assert_eq!(packed.sums()[n], row.iter().map(|&v| i32::from(v)).sum::<i32>());
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    refuses("short weights", || drop(PackedI8::new(&[1; 5], 2, 3)));
    refuses("a long inner dimension", || drop(PackedI8::new(&vec![1; MAX_INNER + 1], 1, MAX_INNER + 1)));
    refuses("short x", || gemm_i8(&[1; 5], 2, &PackedI8::new(&[1; 6], 2, 3), |_, _, _| {}));
    refuses("short output", || {
        gemm_i8_into(&[1; 6], 2, &PackedI8::new(&[1; 6], 2, 3), &mut [0; 3], |_, _, _, _| {})
    });
    refuses("a row past the end", || PackedI8::new(&[1; 6], 2, 3).row(2, &mut [0; 3]));
}

const GRIDS: [Grid; 3] = [
    Grid { scale: 0.03125, zero_point: 128.0, low: 0.0, high: 255.0 },
    Grid { scale: 0.0123, zero_point: 117.0, low: 0.0, high: 255.0 },
    Grid { scale: 0.3, zero_point: 0.0, low: 0.0, high: 15.0 },
];

#[test]
fn bytes_are_those_of_quantise() {
    for grid in GRIDS {
        for n in LENGTHS.into_iter().chain([300, 70_001]) {
            let mut x: Vec<f32> = fill(n, 1).iter().map(|v| 3.0 * v).collect();
            // Ties and what is far outside.
            x.iter_mut().step_by(3).enumerate().for_each(|(i, v)| *v = (i as f32 - 80.5) * grid.scale);
            x.iter_mut().step_by(31).for_each(|v| *v *= 1e30);
            let want: Vec<u8> = quantise(&x, grid).iter().map(|&q| q as u8).collect();
            let (mut all, mut serial) = (vec![7; n], vec![7; n]);
            quantise_u8(&x, grid, &mut all);
            quantise_u8_serial(&x, grid, &mut serial);
            assert!(all == want && serial == want);
            let numbers: Vec<f32> =
                want.iter().map(|&q| grid.scale * (f32::from(q) - grid.zero_point)).collect();
            let (mut all, mut serial) = (vec![7.0; n], vec![7.0; n]);
            dequantise_u8(&want, grid, &mut all);
            dequantise_u8_serial(&want, grid, &mut serial);
            assert!(all == numbers && serial == numbers);
        }
        let mut special = [1; 3];
        quantise_u8(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY], grid, &mut special);
        assert_eq!(special, [0, grid.low as u8, grid.high as u8]);
    }
    let signed = Grid { low: -128.0, high: 127.0, ..GRIDS[0] };
    refuses("a signed grid", move || quantise_u8(&[1.0], signed, &mut [0]));
}

/// The formula, a number at a time.
fn number(sum: i32, terms: &Terms, i: usize) -> f32 {
    let scale = match terms.scale {
        Scale::One(scale) => scale,
        Scale::Columns(scales) => scales[i],
    };
    let mut y = [(sum + terms.offset[i]) as f32 * scale];
    y[0] = terms.bias.map_or(y[0], |bias| y[0] + bias[i]);
    terms.activation.inspect(|&act| activation::forward(act, &mut y));
    y[0]
}

#[test]
fn sums_become_numbers_and_bytes_by_the_formula() {
    for n in LENGTHS.into_iter().chain([256, 777]) {
        let sums: Vec<i32> = fill(n, 1).iter().map(|v| (v * 3e7) as i32).collect();
        let offset: Vec<i32> = fill(n, 2).iter().map(|v| (v * 1e6) as i32).collect();
        let scales: Vec<f32> = fill(n, 3).iter().map(|v| 1e-7 * (v + 1.1)).collect();
        let bias = fill(n, 4);
        for scale in [Scale::One(1.3e-7), Scale::Columns(&scales)] {
            for bias in [None, Some(bias.as_slice())] {
                for activation in [None, Some(Activation::Relu), Some(Activation::Gelu)] {
                    let terms = Terms { offset: &offset, scale, bias, activation };
                    let want: Vec<f32> = (0..n).map(|i| number(sums[i], &terms, i)).collect();
                    let mut got = vec![7.0; n];
                    dequantise_into(&sums, terms, &mut got);
                    assert_eq!(got, want);
                    for grid in GRIDS {
                        let levels = quantise(&want, grid);
                        let (mut got, half) = (vec![7; n], n / 2);
                        requantise_into(&sums, terms, grid, &mut got);
                        assert!(got.iter().zip(&levels).all(|(&g, &w)| i32::from(g) == w));
                        let mut part = vec![7; n - half];
                        requantise_into(&sums[half..], terms.columns(half, n - half), grid, &mut part);
                        assert_eq!(part, got[half..]);
                    }
                }
            }
        }
    }
}

#[test]
fn the_grid_of_a_row_is_that_of_its_range() {
    for n in LENGTHS.into_iter().chain([500]) {
        for (factor, shift) in [(1.0, 0.0), (1.0, 3.0), (2.0, -5.0), (0.0, 0.0), (1e-9, 0.0), (1e30, 0.0)] {
            let x: Vec<f32> = fill(n, 9).iter().map(|v| v * factor + shift).collect();
            let lo = x.iter().fold(0.0f64, |m, &v| m.min(f64::from(v)));
            let hi = x.iter().fold(1e-8f64, |m, &v| m.max(f64::from(v)));
            let delta = (hi - lo) / 255.0;
            let zero = (-lo / delta).round_ties_even().clamp(0.0, 255.0);
            let want = Grid { scale: delta.max(1e-8) as f32, zero_point: zero as f32, low: 0.0, high: 255.0 };
            assert_eq!(row_grid(&x), want);
        }
    }
}
