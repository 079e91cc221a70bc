//! Feeds damaged files to the readers of weights, packed texts and Parquet: none may panic, or hold more memory than 64
//! bytes for each of the file's and one MiB, or eight where zstd is unpacked.
//!
//! ```console
//! cargo run --release --example fuzz_readers -- --cases 1000000 --seed 1
//! ```
//!
//! A case depends on the seed and its number only. One that fails is run again by itself with `--first N --cases 1`.

mod engine;
mod memory;

use clap::Parser;
use engine::{READERS, Seeds, judge};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Feeds damaged files to the readers of weights and texts
#[derive(Parser)]
struct Args {
    /// Damaged files to make
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    cases: u64,
    /// The number of the first
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// What they depend on beside their number
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seeds = Seeds::new();
    if let Some(problem) = seeds.sound().find_map(|file| judge(&file).err()) {
        anstream::eprintln!("error: of a sound file, {problem}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let limit = args.seconds.map_or(Duration::MAX, Duration::from_secs);
    let mut cases = 0;
    let mut accepted = [0u64; READERS.len()];
    // Bytes held, and bytes of the file.
    let mut largest = (0, 0);
    while cases < args.cases && start.elapsed() < limit {
        let number = args.first.saturating_add(cases);
        let file = seeds.case(args.seed, number);
        match judge(&file) {
            Ok(outcome) => {
                accepted.iter_mut().zip(outcome.accepted).for_each(|(count, was)| *count += u64::from(was));
                largest = largest.max((outcome.held, file.len()));
            }
            Err(problem) => {
                anstream::eprintln!("error: seed {} case {number}: {problem}", args.seed);
                return ExitCode::FAILURE;
            }
        }
        cases += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    anstream::println!("{cases} cases in {seconds:.1} s, {:.0} a second", cases as f64 / seconds);
    for ((name, ..), accepted) in READERS.iter().zip(accepted) {
        anstream::println!("{name:<12} {accepted:>9} accepted {:>9} refused", cases - accepted);
    }
    anstream::println!("largest: {} bytes held for a file of {}", largest.0, largest.1);
    ExitCode::SUCCESS
}
