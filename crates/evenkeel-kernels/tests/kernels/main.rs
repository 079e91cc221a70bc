//! Every kernel against its formula in float64, on whatever instruction set `EVENKEEL_ISA` chose for this process.
//!
//! A reference returns each value with the most that float32 arithmetic may be away from it, derived from the
//! formula and not from what the kernels were seen to do. Shapes are those at which vector code goes wrong: 0, 1,
//! around one and two registers of lanes, primes, and sizes past every block. What holds for all kernels is tested
//! for each: NaN and infinity come through and stay in their row, and threads do not change a bit.

// Formulas are written by index, as they are in the text.
#![allow(clippy::needless_range_loop)]

#[path = "../common/mod.rs"]
mod common;
mod reference;

mod activation;
mod attention;
mod embedding;
mod factored;
mod gemm;
mod int8;
mod int8_attention;
mod norm;
mod optimizer;
mod quant;
mod stats;
mod xent;

/// Lengths at which lanes of 4, 8 and 16 begin, end and are left over.
const LENGTHS: [usize; 13] = [0, 1, 2, 7, 15, 16, 17, 31, 33, 61, 64, 127, 257];

/// Runs `f` on a pool of 1, 2 and 3 threads and asks for the same bits from each.
fn same_on_any_threads(what: &str, f: impl Fn() -> common::Bits + Sync) {
    let run = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{what}: {threads} threads change the result");
    }
}

/// Asks for a panic.
fn refuses(what: &str, f: impl FnOnce() + std::panic::UnwindSafe) {
    assert!(std::panic::catch_unwind(f).is_err(), "{what} was accepted");
}
