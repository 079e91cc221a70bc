//! Matrix products: the error bounds that the module states, element by element, and what may never be touched.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U, product_bound};
use crate::{refuses, same_on_any_threads};
use evenkeel_kernels::gemm::{
    Compute, Packed, View, Write, blend_gram, gemm, gemm_new, gemm_packed, gemm_serial, gemm_serial_packed,
    gemm_shared, gemm_then, mirror,
};
use evenkeel_kernels::threads::Shared;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// A matrix as it lies in memory: perhaps transposed, perhaps with NaN between its rows and after the last.
struct Stored {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
    gap: usize,
    transposed: bool,
}

impl Stored {
    /// `values` is the matrix itself, row-major.
    fn new(values: &[f32], rows: usize, columns: usize, transposed: bool, gap: usize) -> Self {
        let (r, c) = if transposed { (columns, rows) } else { (rows, columns) };
        let mut data = vec![f32::NAN; r * (c + gap)];
        for i in 0..r {
            for j in 0..c {
                data[i * (c + gap) + j] =
                    if transposed { values[j * columns + i] } else { values[i * columns + j] };
            }
        }
        Self { data, rows, columns, gap, transposed }
    }

    fn view(&self) -> View<'_> {
        let (r, c) = if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let view = if self.gap == 0 {
            View::new(&self.data, r, c)
        } else {
            View::strided(&self.data, r, c, c + self.gap)
        };
        if self.transposed { view.t() } else { view }
    }
}

/// Σ a b and Σ |a b| of row-major factors, in float64.
fn sums(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut value, mut size) = (vec![0.0; m * n], vec![0.0; m * n]);
    for i in 0..m {
        let (value, size) = (&mut value[i * n..(i + 1) * n], &mut size[i * n..(i + 1) * n]);
        for l in 0..k {
            let (a, b) = (a[i * k + l], &b[l * n..(l + 1) * n]);
            for ((v, s), b) in value.iter_mut().zip(size.iter_mut()).zip(b) {
                *v += a * b;
                *s += (a * b).abs();
            }
        }
    }
    (value, size)
}

/// To eight significant bits, nearest, ties to even, by arithmetic and not by bits.
fn bf16(x: f32) -> f64 {
    let x = x as f64;
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let step = 2f64.powi(x.abs().log2().floor() as i32 - 7);
    (x / step).round_ties_even() * step
}

/// A product and what it must be: by the stated bound, and for bfloat16 also, sharper, from rounded factors.
struct Product {
    m: usize,
    k: usize,
    n: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    bounds: [Vec<Expected>; 2],
}

impl Product {
    fn new(m: usize, k: usize, n: usize) -> Self {
        Self::of([m, k, n], fill(m * k, 1), fill(k * n, 2))
    }

    fn of([m, k, n]: [usize; 3], a: Vec<f32>, b: Vec<f32>) -> Self {
        let c = fill(m * n, 3);
        let f32_bound = product_bound(Compute::F32, k);
        let from = |round: fn(f32) -> f64, bound: f64| {
            let wide = |x: &[f32]| x.iter().map(|&v| round(v)).collect::<Vec<f64>>();
            let (value, size) = sums(&wide(&a), &wide(&b), m, k, n);
            Expected { value, error: size.iter().map(|s| s * bound).collect() }
        };
        let exact = from(|x| x as f64, f32_bound);
        let mut stated = exact.clone();
        stated.error.iter_mut().for_each(|e| *e *= product_bound(Compute::Bf16, k) / f32_bound);
        let rounded = from(bf16, f32_bound);
        Self { m, k, n, a, b, c, bounds: [vec![exact], vec![stated, rounded]] }
    }

    /// Checks what was written over, or added to, the first columns of `c`'s rows.
    #[track_caller]
    fn check(&self, what: &str, compute: Compute, write: Write, got: &[f32]) {
        for bound in &self.bounds[compute as usize] {
            let mut bound = bound.clone();
            if write == Write::Add {
                for ((value, error), &c) in bound.value.iter_mut().zip(&mut bound.error).zip(&self.c) {
                    *value += c as f64;
                    // What was there is one more summand: as many more roundings, of itself too.
                    *error += (self.k + 2) as f64 * U * c.abs() as f64;
                }
            }
            let shape = (self.m, self.k, self.n);
            bound.check(&format!("{what}, {compute:?}, {write:?}, (m, k, n) = {shape:?}"), got);
        }
    }

    /// Every driver on this layout of the factors.
    fn check_all(&self, a: View, b: View) {
        for compute in COMPUTES {
            for write in [Write::Replace, Write::Add] {
                // NaN that is to be replaced must leave no trace.
                let start =
                    if write == Write::Add { self.c.clone() } else { vec![f32::NAN; self.m * self.n] };
                let mut c = start.clone();
                gemm(compute, a, b, &mut c, write);
                self.check("gemm", compute, write, &c);
                let stride = self.n + 3;
                let mut padded = vec![GAP; self.m * stride];
                for (to, from) in padded.chunks_mut(stride).zip(start.chunks(self.n.max(1))) {
                    to[..self.n].copy_from_slice(from);
                }
                gemm_serial(compute, a, b, &mut padded, stride, write);
                let mut rows = Vec::new();
                for row in padded.chunks(stride) {
                    rows.extend_from_slice(&row[..self.n]);
                    assert!(row[self.n..].iter().all(|v| v.to_bits() == GAP.to_bits()), "wrote between rows");
                }
                self.check("gemm_serial", compute, write, &rows);
            }
        }
    }
}

const GAP: f32 = 12_345.678;

#[test]
fn odd_shapes_in_every_layout_keep_the_stated_bound() {
    let sizes = [0, 1, 15, 16, 17, 31, 33, 67];
    let all: Vec<_> =
        sizes.iter().flat_map(|&m| sizes.iter().flat_map(move |&k| sizes.map(move |n| (m, k, n)))).collect();
    all.into_par_iter().for_each(|(m, k, n)| {
        let product = Product::new(m, k, n);
        // Transposed or not, with gaps or without: all sixteen pairs.
        for layout in 0..16 {
            let bit = |i: usize| layout >> i & 1;
            let a = Stored::new(&product.a, m, k, bit(0) == 1, 5 * bit(1));
            let b = Stored::new(&product.b, k, n, bit(2) == 1, 3 * bit(3));
            product.check_all(a.view(), b.view());
        }
    });
}

#[test]
fn shapes_past_every_block_keep_the_stated_bound() {
    // Deep (several stretches of the inner dimension), wide (several column blocks), tall (several row blocks),
    // and one row or one column of each.
    let shapes = [
        (197, 37, 523),
        (67, 1031, 131),
        (13, 2053, 67),
        (389, 257, 65),
        (13, 515, 1103),
        (1, 777, 1999),
        (1999, 300, 1),
        (1009, 3, 33),
        (1, 4099, 1),
    ];
    for (m, k, n) in shapes {
        let product = Product::new(m, k, n);
        for layout in 0..4 {
            let bit = |i: usize| layout >> i & 1;
            let a = Stored::new(&product.a, m, k, bit(0) == 1, 7 * bit(1));
            let b = Stored::new(&product.b, k, n, bit(1) == 1, 9 * bit(0));
            product.check_all(a.view(), b.view());
        }
    }
}

#[test]
fn bfloat16_rounds_to_nearest_ties_to_even() {
    // Halfway above an even and above an odd last bit, just off halfway, and carries into the exponent.
    let e = 2f32.powi(-8);
    let mut a = vec![1.0 + e, 1.0 + 3.0 * e, 1.0 + e + e / 256.0, 1.0 + 3.0 * e - e / 256.0, 2.0 - e, 255.75];
    a.extend(fill(27, 4));
    a.extend(a.clone().iter().map(|v| -v * 3.0));
    let k = a.len();
    let mut one = vec![0.0; k * k];
    (0..k).for_each(|i| one[i * k + i] = 1.0);
    let want: Vec<f64> = a.iter().map(|&v| bf16(v)).collect();
    assert_eq!(want[..2], [1.0, 1.0 + 4.0 * e as f64]);
    let (mut right, mut left) = (vec![0.0; k], vec![0.0; k]);
    gemm(Compute::Bf16, View::new(&a, 1, k), View::new(&one, k, k), &mut right, Write::Replace);
    gemm(Compute::Bf16, View::new(&one, k, k), View::new(&a, k, 1), &mut left, Write::Replace);
    for got in [right, left] {
        assert!(got.iter().zip(&want).all(|(&g, &w)| g as f64 == w), "{got:?} is not {want:?}");
    }
}

#[test]
fn an_empty_inner_dimension_writes_zeros_or_keeps() {
    for compute in COMPUTES {
        let (a, b) = (View::new(&[], 19, 0), View::new(&[], 0, 35));
        let mut c = vec![f32::NAN; 19 * 35];
        gemm(compute, a, b, &mut c, Write::Replace);
        assert!(c.iter().all(|v| v.to_bits() == 0));
        let start = fill(19 * 35, 1);
        let mut c = start.clone();
        gemm(compute, a, b, &mut c, Write::Add);
        assert_eq!(c, start);
        gemm_serial(compute, a, b, &mut c, 35, Write::Add);
        assert_eq!(c, start);
        gemm_serial(compute, a, b, &mut c, 35, Write::Replace);
        assert!(c.iter().all(|v| v.to_bits() == 0));
    }
}

/// Special values at every place of a factor; the zeros in the other one make NaN of an infinity.
#[test]
fn nan_and_infinity_reach_the_outputs_they_must_and_no_other() {
    let (m, k, n) = (13, 19, 37);
    let mut a = fill(m * k, 1);
    let mut b = fill(k * n, 2);
    (0..k).for_each(|l| b[l * n + l] = 0.0);
    (0..m).for_each(|i| a[i * k + i] = 0.0);
    for compute in COMPUTES {
        let run = |a: &[f32], b: &[f32]| {
            let (mut c, mut serial) = (vec![0.0; m * n], vec![0.0; m * n]);
            let (a, b) = (View::new(a, m, k), View::new(b, k, n));
            gemm(compute, a, b, &mut c, Write::Replace);
            gemm_serial(compute, a, b, &mut serial, n, Write::Replace);
            [c, serial]
        };
        let clean = run(&a, &b);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..m * k + k * n {
                let (mut a, mut b) = (a.clone(), b.clone());
                if at < m * k {
                    a[at] = special
                } else {
                    b[at - m * k] = special
                }
                let wide = |x: &[f32]| x.iter().map(|&v| v as f64).collect::<Vec<f64>>();
                let (want, _) = sums(&wide(&a), &wide(&b), m, k, n);
                for (got, clean) in run(&a, &b).iter().zip(&clean) {
                    for ((&got, &want), &clean) in got.iter().zip(&want).zip(clean) {
                        let good = match want {
                            w if w.is_nan() => got.is_nan(),
                            w if w.is_infinite() => got as f64 == w,
                            _ => got.to_bits() == clean.to_bits(),
                        };
                        assert!(good, "{compute:?}, {special} at {at}: {got} instead of {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn special_values_in_the_output_are_replaced_or_kept() {
    let product = Product::new(9, 5, 35);
    for compute in COMPUTES {
        let (a, b) = (View::new(&product.a, 9, 5), View::new(&product.b, 5, 35));
        let mut c = product.c.clone();
        c[7] = f32::NAN;
        c[200] = f32::INFINITY;
        gemm(compute, a, b, &mut c, Write::Add);
        assert!(c[7].is_nan() && c[200] == f32::INFINITY);
        assert_eq!(c.iter().filter(|v| !v.is_finite()).count(), 2);
    }
}

#[test]
fn the_epilogue_sees_every_element_once_and_finished() {
    for (m, k, n) in [(1, 1, 1), (67, 33, 17), (517, 300, 47), (33, 700, 1103)] {
        let product = Product::new(m, k, n);
        let (a, b) = (View::new(&product.a, m, k), View::new(&product.b, k, n));
        for compute in COMPUTES {
            for write in [Write::Replace, Write::Add] {
                let mut plain = product.c.clone();
                gemm(compute, a, b, &mut plain, write);
                let seen: Vec<AtomicUsize> = (0..m * n).map(|_| AtomicUsize::new(0)).collect();
                let epilogue = |row: usize, first: usize, piece: &mut [f32]| {
                    let at = row * n + first;
                    assert!(first + piece.len() <= n, "past the end of a row");
                    for (i, v) in piece.iter_mut().enumerate() {
                        assert_eq!(v.to_bits(), plain[at + i].to_bits(), "not finished");
                        seen[at + i].fetch_add(1, Ordering::Relaxed);
                        *v *= -2.0;
                    }
                };
                let mut c = product.c.clone();
                gemm_then(compute, a, b, &mut c, write, epilogue);
                if write == Write::Replace {
                    seen.iter().for_each(|s| s.store(0, Ordering::Relaxed));
                    let fresh = gemm_new(compute, a, b, epilogue);
                    assert!(fresh.iter().zip(&c).all(|(x, y)| x.to_bits() == y.to_bits()));
                }
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
                assert!(c.iter().zip(&plain).all(|(x, y)| *x == -2.0 * y), "the epilogue's work was lost");
            }
        }
    }
}

#[test]
fn a_packed_factor_serves_many_products() {
    let (k, n) = (301, 83);
    let products = [1, 17, 130, 0, 5].map(|m| Product::new(m, k, n));
    for compute in COMPUTES {
        let packed = Packed::new(compute, View::new(&products[0].b, k, n));
        for product in products.iter().chain(&products) {
            let mut c = product.c.clone();
            let a = View::new(&product.a, product.m, k);
            gemm_packed(a, &packed, &mut c, Write::Add, |_, _, _| {});
            product.check("gemm_packed", compute, Write::Add, &c);
            gemm_packed(a, &packed, &mut c, Write::Replace, |_, _, _| {});
            product.check("gemm_packed", compute, Write::Replace, &c);
        }
    }
}

#[test]
fn a_part_of_a_packed_factor_is_a_factor() {
    let (m, k, n) = (37, 301, 83);
    let whole = Product::new(m, k, n);
    for compute in COMPUTES {
        for across in [false, true] {
            let turned: Vec<f32> = (0..n * k).map(|i| whole.b[i % k * n + i / k]).collect();
            let b = if across { View::new(&turned, n, k).t() } else { View::new(&whole.b, k, n) };
            let packed = Packed::new_serial(compute, b);
            for (inner, columns) in [(301, 83), (300, 83), (256, 1), (17, 16), (1, 40), (0, 5), (64, 64)] {
                let a = View::strided(&whole.a, m, inner, k);
                let part = View::strided(&whole.b, inner, columns, n);
                let (mut want, mut got) = (vec![0.5; m * columns], vec![0.5; m * (columns + 3)]);
                for write in [Write::Replace, Write::Add] {
                    gemm_serial(compute, a, part, &mut want, columns, write);
                    gemm_serial_packed(a, &packed, columns, &mut got, columns + 3, write);
                    for (want, got) in want.chunks_exact(columns).zip(got.chunks_exact(columns + 3)) {
                        assert!(want.iter().zip(got).all(|(x, y)| x == y), "{compute:?} {inner} {columns}");
                        assert!(got[columns..].iter().all(|&v| v == 0.5), "wrote past a row");
                    }
                }
            }
        }
    }
}

/// The transpose of a row-major matrix.
fn turned(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// A row-major square matrix with its lower triangle mirrored.
fn mirrored(lower: &[f32], n: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| lower[i.max(j) * n + i.min(j)];
    (0..n * n).map(|i| at(i / n, i % n)).collect()
}

/// The factors on a blended Gram matrix.
const KEPT: [(f32, f32); 3] = [(0.9, 0.1), (0.999, 1.0), (0.0, 0.37)];

#[test]
fn a_blended_gram_matrix_keeps_the_stated_bound_and_is_an_ordinary_product() {
    // One to three blocks of 48 rows, the last of that height and the first of 96, blocks of 96 with a rest of one row
    // and with none; inner dimensions from nothing to several stretches.
    let small = [0, 1, 2, 15, 16, 17, 31, 33, 47, 48, 49, 95, 96, 97, 143, 145];
    let shapes = small.into_iter().flat_map(|n| [0, 1, 17, 33].map(|k| (n, k)));
    let large = [(97, 301), (49, 1031), (767, 5), (768, 17), (769, 17), (863, 3), (864, 0), (865, 3)];
    for (n, k) in shapes.chain(large) {
        let a = fill(n * k, 1);
        let product = Product::of([n, k, n], a.clone(), turned(&a, n, k));
        // What is above the diagonal is never read.
        let before = mirrored(&product.c, n);
        let start: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NAN } else { before[i] }).collect();
        for layout in 0..4 {
            let a = Stored::new(&a, n, k, layout & 1 == 1, 5 * (layout >> 1));
            for (compute, (decay, weight)) in COMPUTES.into_iter().flat_map(|c| KEPT.map(|kept| (c, kept))) {
                let what = format!("{compute:?}, {decay} and {weight}, (n, k) = {:?}", (n, k));
                let mut got = start.clone();
                blend_gram(compute, a.view(), &mut got, decay, weight);
                let above =
                    |x: &[f32]| (0..n).all(|i| x[i * n + i + 1..][..n - i - 1].iter().all(|v| v.is_nan()));
                assert!(above(&got), "{what}: something was written above the diagonal");
                mirror(&mut got, n);
                for bound in &product.bounds[compute as usize] {
                    let mut want = bound.clone();
                    for ((value, error), &c) in want.value.iter_mut().zip(&mut want.error).zip(&before) {
                        let (kept, new) = (decay as f64 * c as f64, weight as f64 * *value);
                        let new_error = weight as f64 * *error;
                        *value = kept + new;
                        // Each factor rounds once and the sum once.
                        *error = new_error + 3.0 * U * (kept.abs() + new.abs() + new_error);
                    }
                    want.check(&what, &got);
                }
                let mut whole = vec![f32::NAN; n * n];
                gemm(compute, a.view(), a.view().t(), &mut whole, Write::Replace);
                let blended: Vec<f32> =
                    before.iter().zip(&whole).map(|(c, new)| decay * c + weight * new).collect();
                let want = Bits::default().and(&mirrored(&blended, n));
                assert!(Bits::default().and(&got) == want, "{what}: not the bits of a product");
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_their_row_and_column_of_a_gram_matrix_and_no_other() {
    let (n, k) = (53, 5);
    let mut a = fill(n * k, 1);
    // Zeros make NaN of an infinity.
    (0..n).step_by(7).for_each(|i| a[i * k + i % k] = 0.0);
    let start = mirrored(&fill(n * n, 3), n);
    let (decay, weight) = KEPT[0];
    for compute in COMPUTES {
        let run = |a: &[f32], start: &[f32]| {
            let mut c = start.to_vec();
            blend_gram(compute, View::new(a, n, k), &mut c, decay, weight);
            mirror(&mut c, n);
            c
        };
        let clean = run(&a, &start);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..n * k {
                let mut a = a.clone();
                a[at] = special;
                let wide = |x: &[f32]| x.iter().map(|&v| v as f64).collect::<Vec<f64>>();
                let (want, _) = sums(&wide(&a), &wide(&turned(&a, n, k)), n, k, n);
                for ((&got, &want), &clean) in run(&a, &start).iter().zip(&want).zip(&clean) {
                    let good = match want {
                        w if w.is_nan() => got.is_nan(),
                        w if w.is_infinite() => got as f64 == w,
                        _ => got.to_bits() == clean.to_bits(),
                    };
                    assert!(good, "{compute:?}, {special} at {at}: {got} where the product is {want}");
                }
            }
            for at in (0..n * n).step_by(11) {
                let mut start = start.clone();
                start[at] = special;
                let (row, column) = (at / n, at % n);
                for (i, (&got, &clean)) in run(&a, &start).iter().zip(&clean).enumerate() {
                    let hit = column <= row && (i == at || i == column * n + row);
                    let good = if !hit {
                        got.to_bits() == clean.to_bits()
                    } else {
                        got == special || got.is_nan() && special.is_nan()
                    };
                    assert!(good, "{compute:?}, {special} at {at} of what was there: {got}");
                }
            }
        }
    }
}

#[test]
fn threads_write_windows_of_one_buffer() {
    // Seven products side by side in rows of 7 · 19 + 2.
    let (m, k, n, count) = (45, 33, 19, 7);
    let stride = count * n + 2;
    let product = Product::new(m, k, n);
    for compute in COMPUTES {
        let mut c = vec![GAP; 3 + m * stride];
        let shared = Shared::new(&mut c);
        (0..count).into_par_iter().for_each(|i| {
            let (a, b) = (View::new(&product.a, m, k), View::new(&product.b, k, n));
            // SAFETY: columns i · n.. of every row are this product's own, and the last row ends inside.
            unsafe { gemm_shared(compute, a, b, &shared, 3 + i * n, stride, Write::Replace) };
        });
        assert!(c[..3].iter().all(|&v| v == GAP));
        for i in 0..count {
            let window: Vec<f32> =
                c[3..].chunks(stride).flat_map(|row| row[i * n..(i + 1) * n].to_vec()).collect();
            product.check("gemm_shared", compute, Write::Replace, &window);
        }
        assert!(c[3..].chunks(stride).all(|row| row[count * n..].iter().all(|&v| v == GAP)));
    }
}

#[test]
fn threads_change_no_bit() {
    for (m, k, n) in [(33, 17, 65), (517, 129, 331), (5, 600, 1200), (1200, 600, 5)] {
        let (a, b, start) = (fill(m * k, 1), fill(k * n, 2), fill(m * n, 3));
        for compute in COMPUTES {
            same_on_any_threads("gemm", || {
                let mut c = start.clone();
                gemm(compute, View::new(&a, k, m).t(), View::new(&b, k, n), &mut c, Write::Add);
                Bits::default().and(&c)
            });
        }
    }
    for (n, k) in [(47, 17), (97, 301), (769, 33)] {
        let (a, start) = (fill(n * k, 1), fill(n * n, 3));
        for compute in COMPUTES {
            same_on_any_threads("blend_gram", || {
                let mut c = start.clone();
                blend_gram(compute, View::new(&a, n, k), &mut c, 0.9, 0.1);
                mirror(&mut c, n);
                Bits::default().and(&c)
            });
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let x = [0.0f32; 64];
    let v = |r, c| View::new(&x[..r * c], r, c);
    refuses("a view larger than its data", || _ = View::new(&x, 8, 9));
    refuses("a view smaller than its data", || _ = View::new(&x, 7, 9));
    refuses("a last row past the end", || _ = View::strided(&x, 8, 5, 9));
    refuses("an overflowing stride", || _ = View::strided(&x, 3, 2, usize::MAX));
    assert_eq!(View::strided(&x, 8, 1, 9).t().columns(), 8);
    refuses("different inner dimensions", move || {
        gemm(Compute::F32, v(4, 5), v(4, 5), &mut [0.0; 20], Write::Replace);
    });
    refuses("a short output", move || gemm(Compute::F32, v(4, 5), v(5, 4), &mut [0.0; 15], Write::Replace));
    refuses("a long output", move || gemm(Compute::F32, v(4, 5), v(5, 4), &mut [0.0; 17], Write::Replace));
    refuses("different inner dimensions, serially", move || {
        gemm_serial(Compute::Bf16, v(4, 5), v(4, 5), &mut [0.0; 20], 5, Write::Replace);
    });
    refuses("a stride below the width", move || {
        gemm_serial(Compute::F32, v(4, 5), v(5, 4), &mut [0.0; 64], 3, Write::Replace);
    });
    refuses("a last row past the output's end", move || {
        gemm_serial(Compute::F32, v(4, 5), v(5, 4), &mut [0.0; 21], 6, Write::Replace);
    });
    refuses("a short Gram matrix", move || blend_gram(Compute::F32, v(4, 5), &mut [0.0; 15], 0.9, 0.1));
    refuses("a matrix to mirror that is not square", || mirror(&mut [0.0; 8], 3));
    refuses("a long Gram matrix", move || blend_gram(Compute::F32, v(4, 5), &mut [0.0; 17], 0.9, 0.1));
    refuses("a Gram matrix of columns", move || blend_gram(Compute::F32, v(4, 5), &mut [0.0; 25], 0.9, 0.1));
    refuses("a Gram matrix of no rows", move || blend_gram(Compute::F32, v(0, 5), &mut [0.0; 1], 0.9, 0.1));
    refuses("different inner dimensions, packed", move || {
        gemm_packed(v(4, 6), &Packed::new(Compute::F32, v(5, 4)), &mut [0.0; 16], Write::Add, |_, _, _| {});
    });
}
