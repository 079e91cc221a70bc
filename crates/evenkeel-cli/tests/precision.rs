//! Training with products in bfloat16 learns what training in float32 learns, and sees the same outliers grow.

mod common;

use common::{Sandbox, number};
use serde_json::Value;
use std::collections::BTreeMap;

/// Validation loss at the end, and kurtosis by site and step.
fn train(sandbox: &Sandbox, preset: &str, precision: &str) -> (f64, BTreeMap<(String, u64), f64>) {
    let run = format!("{preset}-{precision}");
    sandbox.write(
        "run.toml",
        format!(
            "[model]\npreset = \"{preset}\"\ndepth = 2\nwidth = 64\nheads = 2\ncontext = 64\n\n\
             [data]\npath = \"data\"\n\n\
             [optim]\nname = \"adamw\"\nlr_peak = 3e-3\n\n\
             [train]\nsteps = 300\nbatch_sequences = 8\nprecision = \"{precision}\"\n\n\
             [telemetry]\nstats_every_steps = 50\n"
        ),
    );
    sandbox.ok(&["train", "run.toml", "--out", &run, "--quiet"]);
    let lines = |file: &str| -> Vec<Value> {
        let text = sandbox.read(&format!("{run}/{file}"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let losses = lines("metrics.jsonl");
    let last = losses.iter().rev().find_map(|line| line["val/loss"].as_f64()).unwrap();
    let stats = lines("stats.jsonl").into_iter().filter(|line| line["kurtosis"].is_number());
    let kurtosis = stats.map(|line| {
        let (site, step) = (line["site"].as_str().unwrap(), line["step"].as_u64().unwrap());
        ((site.to_string(), step), number(&line["kurtosis"]))
    });
    (last, kurtosis.collect())
}

#[test]
fn three_hundred_steps_in_bf16_are_those_in_f32() {
    let sandbox = Sandbox::with_data();
    for preset in ["pre_ln", "op"] {
        let (loss, curves) = train(&sandbox, preset, "f32");
        let (rounded_loss, rounded) = train(&sandbox, preset, "bf16");
        let off = (rounded_loss / loss - 1.0).abs();
        assert!(loss < 3.0, "{preset} did not learn: {loss}");
        assert!(rounded_loss != loss, "bf16 rounded nothing");
        assert!(off < 0.01, "{preset}: loss {rounded_loss} in bf16, {loss} in f32");
        assert!(curves.len() >= 3 * 7 && curves.keys().eq(rounded.keys()));
        for (key, k) in &curves {
            let off = (rounded[key] / k - 1.0).abs();
            assert!(off < 0.05, "{preset} {key:?}: kurtosis {} in bf16, {k} in f32", rounded[key]);
        }
    }
}
