//! `bench peak`: multiply-add loops that stay in registers, for each instruction set, and a copy loop.

use super::percent;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::report::table::{Align, Table};
use evenkeel_kernels::isa;
use evenkeel_kernels::peak::{Copying, Factors, Multiply, Threads};
use serde_json::{Value, json};
use std::time::Duration;

/// Runs of each loop; the best counts.
const RUNS: usize = 5;
/// Length of a run.
const EACH: Duration = Duration::from_millis(50);

pub(super) fn run(settings: &Settings) -> Result<Exit, Failure> {
    let mut table = Table::new(&[
        ("loop", Align::Left),
        ("1 thread", Align::Right),
        (&format!("{} threads", settings.threads), Align::Right),
        ("scaling", Align::Right),
        ("unit", Align::Left),
    ]);
    let mut loops: Vec<Value> = Vec::new();
    let scaling = |one: f64, all: f64| percent(all / one / settings.threads as f64);
    for multiply in Multiply::available() {
        let [one, all] = [Threads::One, Threads::All].map(|threads| multiply.gflops(threads, RUNS, EACH));
        table.push([
            multiply.name().into(),
            format!("{one:.1}"),
            format!("{all:.1}"),
            scaling(one, all),
            if multiply.factors() == Factors::Int8 { "GOP/s" } else { "GFLOP/s" }.into(),
        ]);
        loops.push(json!({"name": multiply.name(), "gflops_one_thread": one, "gflops": all}));
    }
    let mut copying = Copying::new(Copying::BYTES);
    let [one, all] = [Threads::One, Threads::All].map(|threads| copying.gbps(threads, RUNS));
    table.push([
        "copy".into(),
        format!("{one:.1}"),
        format!("{all:.1}"),
        scaling(one, all),
        "GB/s read and written".into(),
    ]);
    let bounds =
        [Factors::F32, Factors::Bf16, Factors::Int8].map(|factors| Multiply::bounding(factors).name());
    if settings.json {
        output::json(&json!({
            "schema": 1,
            "threads": settings.threads,
            "isa": {"detected": isa::detected().name(), "active": isa::active().name()},
            "multiply": loops,
            "copy": {"gbps_one_thread": one, "gbps": all, "bytes": Copying::BYTES},
            "bounding": {"f32": bounds[0], "bf16": bounds[1], "int8": bounds[2]},
        }));
    } else {
        output::result(&table.to_text());
        output::line(&format!(
            "bounds on {}: {} for f32 products, {} for bf16 products, {} for int8 products",
            isa::active().name(),
            bounds[0],
            bounds[1],
            bounds[2]
        ));
    }
    Ok(Exit::Done)
}
