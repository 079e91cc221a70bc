//! Gather and scatter of embedding rows.

use crate::common::{Bits, fill, tokens};
use crate::reference::{Expected, U};
use crate::{LENGTHS, refuses, same_on_any_threads};
use evenkeel_kernels::embedding::{backward, forward};

const VOCAB: usize = 23;
const CONTEXT: usize = 7;

#[test]
fn rows_are_copied_exactly_and_positions_added() {
    for width in LENGTHS {
        for count in [0, 1, 7, 31] {
            let (table, positions) = (fill(VOCAB * width, 1), fill(CONTEXT * width, 2));
            let ids = tokens(count, VOCAB, 3);
            let mut out = vec![f32::NAN; count * width];
            forward(&table, None, &ids, CONTEXT, width, &mut out);
            for (t, &id) in ids.iter().enumerate() {
                assert_eq!(out[t * width..(t + 1) * width], table[id as usize * width..][..width]);
            }
            forward(&table, Some(&positions), &ids, CONTEXT, width, &mut out);
            for (t, &id) in ids.iter().enumerate() {
                for c in 0..width {
                    let want = table[id as usize * width + c] + positions[t % CONTEXT * width + c];
                    assert_eq!(out[t * width + c], want);
                }
            }
        }
    }
}

#[test]
fn gradients_add_up_in_the_table() {
    for width in LENGTHS.into_iter().skip(1) {
        for count in [0, 1, 7, 131] {
            let (start, dy, ids) = (fill(VOCAB * width, 1), fill(count * width, 2), tokens(count, VOCAB, 3));
            let mut want = Expected::zeros(start.len());
            let mut size: Vec<f64> = start.iter().map(|v| v.abs() as f64).collect();
            want.value = start.iter().map(|&v| v as f64).collect();
            for (t, &id) in ids.iter().enumerate() {
                for c in 0..width {
                    let at = id as usize * width + c;
                    want.value[at] += dy[t * width + c] as f64;
                    size[at] += dy[t * width + c].abs() as f64;
                    want.error[at] += 1.0;
                }
            }
            want.error.iter_mut().zip(&size).for_each(|(additions, s)| *additions *= U * s);
            let mut table = start.clone();
            backward(&dy, |t| ids[t] as usize, width, &mut table);
            want.check(&format!("{count} rows of {width}"), &table);
        }
    }
}

#[test]
fn nan_and_infinity_go_to_their_place_only() {
    let (width, ids) = (67, [4u32, 0, 4, 9]);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for c in 0..width {
            let mut table = vec![1.0; 10 * width];
            table[4 * width + c] = special;
            let mut out = vec![0.0; ids.len() * width];
            forward(&table, Some(&vec![1.0; 2 * width]), &ids, 2, width, &mut out);
            for (i, v) in out.iter().enumerate() {
                let expect = ids[i / width] == 4 && i % width == c;
                assert_eq!(!v.is_finite(), expect);
            }
            let mut dy = vec![1.0; ids.len() * width];
            dy[2 * width + c] = special;
            let mut sums = vec![0.0; 10 * width];
            backward(&dy, |t| ids[t] as usize, width, &mut sums);
            for (i, v) in sums.iter().enumerate() {
                assert_eq!(!v.is_finite(), i == 4 * width + c);
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (width, count) = (193, 701);
    let (table, positions, ids) = (fill(VOCAB * width, 1), fill(CONTEXT * width, 2), tokens(count, VOCAB, 3));
    same_on_any_threads("embedding", || {
        let mut out = vec![0.0; count * width];
        forward(&table, Some(&positions), &ids, CONTEXT, width, &mut out);
        let mut sums = table.clone();
        backward(&out, |t| ids[t] as usize, width, &mut sums);
        Bits::default().and(&out).and(&sums)
    });
}

#[test]
fn what_lies_outside_is_refused() {
    let table = [0.0f32; 12];
    let run = move |id: u32, positions: usize, context, out: usize| {
        move || {
            let (positions, mut out) = (vec![0.0; positions], vec![0.0; out]);
            forward(&table, Some(&positions), &[1, id], context, 3, &mut out);
        }
    };
    run(3, 6, 2, 6)();
    refuses("an id past the table", run(4, 6, 2, 6));
    refuses("the largest id", run(u32::MAX, 6, 2, 6));
    refuses("too few positions", run(3, 5, 2, 6));
    refuses("no context", run(3, 6, 0, 6));
    refuses("a short output", run(3, 6, 2, 3));
    let scatter =
        |id: usize, width, dy: usize| move || backward(&vec![0.0; dy], |_| id, width, &mut [0.0; 11]);
    scatter(2, 3, 6)();
    // Eleven elements are three whole rows of three.
    refuses("a scatter past the last whole row", scatter(3, 3, 6));
    refuses("an id that overflows", scatter(usize::MAX, 3, 6));
    refuses("half a row", scatter(2, 3, 5));
    refuses("no width", scatter(2, 0, 6));
}
