//! The second moment of a matrix as a row and a column, and the division by their product.

use crate::common::{Bits, fill};
use crate::reference::{Expected, U};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::factored::{divide, mean_squares};

/// Rows × columns: every pair of lengths, and more than one piece of 64 Ki elements, with one row to a piece and many.
fn shapes() -> impl Iterator<Item = (usize, usize)> {
    let pairs = LENGTHS.into_iter().flat_map(|rows| LENGTHS.map(|columns| (rows, columns)));
    pairs.chain([(301, 517), (3, 70_001), (70_001, 3), (140_000, 1)])
}

/// Numbers that are not negative.
fn squares(n: usize, seed: u32) -> Vec<f32> {
    fill(n, seed).iter().map(|v| v * v).collect()
}

#[test]
fn mean_squares_follow_the_formula() {
    for (rows, columns) in shapes() {
        let g = fill(rows * columns, 1);
        let (mut by_row, mut by_column) = (vec![0.0; rows], vec![0.0; columns]);
        for r in 0..rows {
            for c in 0..columns {
                let square = (g[r * columns + c] as f64).powi(2);
                by_row[r] += square;
                by_column[c] += square;
            }
        }
        // Squares are exact in float64; the mean of nothing is NaN.
        let expect = |sums: &[f64], count: usize| {
            let mut out = Expected::default();
            sums.iter().map(|s| s / count as f64).for_each(|v| out.push(v, 1e-15 * count as f64 * v));
            out
        };
        let got = mean_squares(&g, rows, columns);
        expect(&by_row, columns).check_wide(&format!("rows of {rows} x {columns}"), &got.0);
        expect(&by_column, rows).check_wide(&format!("columns of {rows} x {columns}"), &got.1);
    }
}

#[test]
fn divide_follows_the_formula() {
    for (m, n) in shapes() {
        let (x, rows, columns) = (fill(m * n, 1), squares(m, 2), squares(n, 3));
        for (floor, eps) in [(0.0f32, 0.0f32), (0.3, 0.0), (0.0, 1e-3), (0.2, 0.1)] {
            let mut want = Expected::default();
            for i in 0..m * n {
                let product = rows[i / n] as f64 * columns[i % n] as f64;
                let u = x[i] as f64 / (product.max(floor as f64) + eps as f64);
                // The product, the sum and the quotient are rounded.
                want.push(u, 4.0 * U * u.abs());
            }
            let mut u = vec![f32::NAN; m * n];
            divide(&x, &rows, &columns, floor, eps, &mut u);
            want.check(&format!("{m} x {n}, floor {floor}, ε {eps}"), &u);
        }
    }
}

#[test]
fn a_divisor_of_zero_gives_zero() {
    let (m, n) = (5, 37);
    let (x, rows, columns) = (fill(m * n, 1), squares(m, 2), squares(n, 3));
    let run = |rows: &[f32], columns: &[f32], floor: f32, eps: f32| {
        let mut u = vec![f32::NAN; m * n];
        divide(&x, rows, columns, floor, eps, &mut u);
        u
    };
    for at in 0..m + n {
        let (mut zero_rows, mut zero_columns) = (rows.clone(), columns.clone());
        if at < m {
            zero_rows[at] = 0.0
        } else {
            zero_columns[at - m] = 0.0
        }
        for (floor, eps, divisor) in [(0.0, 0.0, 0.0), (0.25, 0.0, 0.25), (0.0, 0.5, 0.5)] {
            let clean = run(&rows, &columns, floor, eps);
            let got = run(&zero_rows, &zero_columns, floor, eps);
            for i in 0..m * n {
                let hit = i / n == at || i % n + m == at;
                let want = match divisor {
                    _ if !hit => clean[i],
                    0.0 => 0.0,
                    divisor => x[i] / divisor,
                };
                assert_eq!(got[i].to_bits(), want.to_bits(), "element {i}, zero at {at}, {floor} and {eps}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_their_row_and_column() {
    let (m, n) = (5, 37);
    let g = fill(m * n, 1);
    let clean = mean_squares(&g, m, n);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..m * n {
            let mut bad = g.clone();
            bad[at] = special;
            let (by_row, by_column) = mean_squares(&bad, m, n);
            let want = special as f64 * special as f64;
            let good = |got: &[f64], clean: &[f64], at: usize| {
                (got[at] == want || got[at].is_nan() && want.is_nan())
                    && (0..got.len()).all(|i| i == at || got[i].to_bits() == clean[i].to_bits())
            };
            assert!(good(&by_row, &clean.0, at / n) && good(&by_column, &clean.1, at % n));
        }
    }
}

#[test]
fn nan_and_infinity_in_a_quotient_stay_where_they_are() {
    let (m, n) = (5, 37);
    let inputs = [fill(m * n, 1), squares(m, 2), squares(n, 3)];
    for (floor, eps) in [(0.0, 0.0), (0.2, 1e-3)] {
        let run = |[x, rows, columns]: &[Vec<f32>; 3]| {
            let mut u = vec![0.0; m * n];
            divide(x, rows, columns, floor, eps, &mut u);
            u
        };
        let clean = run(&inputs);
        for (special, input) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|s| [0, 1, 2].map(|i| (s, i)))
        {
            // Second moments are not negative.
            if input > 0 && special < 0.0 {
                continue;
            }
            for at in 0..inputs[input].len() {
                let mut bad = inputs.clone();
                bad[input][at] = special;
                let got = run(&bad);
                for i in 0..m * n {
                    let good = if at != [i, i / n, i % n][input] {
                        got[i].to_bits() == clean[i].to_bits()
                    } else if special.is_nan() {
                        got[i].is_nan()
                    } else if input == 0 {
                        got[i] == special
                    } else {
                        got[i] == 0.0
                    };
                    assert!(good, "{special} at {at} of input {input}: element {i} is {}", got[i]);
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for (m, n) in [(197, 1001), (5, 70_001), (70_001, 5)] {
        let g = fill(m * n, 1);
        same_on_any_threads("factored", || {
            let (by_row, by_column) = mean_squares(&g, m, n);
            let narrow = |x: &[f64]| x.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            let mut u = vec![0.0; m * n];
            divide(&g, &narrow(&by_row), &narrow(&by_column), 1e-3, 1e-8, &mut u);
            Bits::default().and_wide(&by_row).and_wide(&by_column).and(&u)
        });
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    refuses("too few elements", || _ = mean_squares(&[0.0; 11], 3, 4));
    refuses("too many elements", || _ = mean_squares(&[0.0; 13], 3, 4));
    refuses("elements of no columns", || _ = mean_squares(&[0.0; 3], 3, 0));
    let quotient = |x: usize, rows: usize, columns: usize, u: usize| {
        let [x, rows, columns, mut u] = [x, rows, columns, u].map(|n| vec![1.0f32; n]);
        divide(&x, &rows, &columns, 0.0, 0.0, &mut u);
    };
    quotient(12, 3, 4, 12);
    refuses("a short x", move || quotient(11, 3, 4, 12));
    refuses("a short u", move || quotient(12, 3, 4, 11));
    refuses("a long u", move || quotient(12, 3, 4, 13));
    refuses("a row too many", move || quotient(12, 4, 4, 12));
    refuses("a column too few", move || quotient(12, 3, 3, 12));
    refuses("elements of no columns", move || quotient(3, 3, 0, 3));
}
