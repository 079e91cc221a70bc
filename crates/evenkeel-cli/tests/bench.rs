//! `bench` at sizes of milliseconds: every subcommand reports all of its figures. No figure is judged: how fast a
//! machine is, is not a property of the program.

mod common;

use common::{Sandbox, keys, number};
use serde_json::Value;

const TINY: [&str; 8] = ["--width", "32", "--vocab", "64", "--context", "16", "--sequences", "2"];

fn positive(value: &Value) -> f64 {
    let figure = number(value);
    assert!(figure.is_finite() && figure > 0.0, "{value}");
    figure
}

fn rows<'a>(report: &'a Value, key: &str) -> &'a Vec<Value> {
    report[key].as_array().unwrap_or_else(|| panic!("{key} is no list in {report}"))
}

#[test]
fn peak() {
    let sandbox = Sandbox::new();
    let report = sandbox.json(&["bench", "peak", "--threads", "2"]);
    assert_eq!(report["threads"], 2);
    for multiply in rows(&report, "multiply") {
        positive(&multiply["gflops"]);
        positive(&multiply["gflops_one_thread"]);
    }
    positive(&report["copy"]["gbps"]);
    let known: Vec<&Value> = rows(&report, "multiply").iter().map(|m| &m["name"]).collect();
    assert!(["f32", "bf16", "int8"].iter().all(|factors| known.contains(&&report["bounding"][factors])));
}

#[test]
fn gemm() {
    let sandbox = Sandbox::new();
    let args = [&["bench", "gemm", "--rounds", "1", "--threads", "1"][..], &TINY].concat();
    let report = sandbox.json(&args);
    let products = rows(&report, "products");
    assert_eq!(
        products.len(),
        (2 * 3 + 1) * 4,
        "three products in two precisions, one in int8, of four layers"
    );
    for product in products {
        for key in ["seconds_median", "gflops", "roofline_gflops", "share"] {
            positive(&product[key]);
        }
    }
    let plain = sandbox.ok(&[&args[..], &["--precision", "bf16"]].concat());
    assert!(plain.contains("weight gradient") && !plain.contains("\nf32 "), "{plain}");
}

#[test]
fn ops() {
    let sandbox = Sandbox::new();
    let args = [&["bench", "ops", "--rounds", "1", "--heads", "2", "--precision", "f32"][..], &TINY].concat();
    let report = sandbox.json(&args);
    let mut seen: Vec<&str> = Vec::new();
    for line in rows(&report, "operations") {
        positive(&line["seconds_median"]);
        positive(&line["peak_share"]);
        assert!(line["gflops"].is_null() != line["gbps"].is_null(), "{line}");
        seen.push(line["operation"].as_str().unwrap());
    }
    for operation in
        ["attention", "attention, QK-norm", "norm", "residual", "embedding", "head, cross-entropy", "AdamW"]
    {
        assert!(seen.contains(&operation), "{operation} is missing in {seen:?}");
    }
    assert!(sandbox.ok(&args).contains("share of peak"));
}

#[test]
fn step() {
    let sandbox = Sandbox::new();
    let step = ["bench", "step", "--depth", "2", "--heads", "2", "--steps", "2"];
    for (precision, optimizer, recompute) in
        [("f32", "adamw", "none"), ("bf16", "soap", "mlp"), ("bf16", "adamw", "block")]
    {
        let how = ["--precision", precision, "--optimizer", optimizer, "--recompute", recompute];
        let report = sandbox.json(&[&step[..], &TINY, &how].concat());
        let contract =
            ["schema", "seconds_median", "tokens_per_sec", "gflops", "peak_share", "peak_rss_bytes"];
        assert!(contract.iter().all(|key| keys(&report).contains(key)), "{report}");
        for key in ["seconds_median", "tokens_per_sec", "gflops", "peak_share", "loss"] {
            positive(&report[key]);
        }
        if cfg!(target_os = "linux") {
            positive(&report["peak_rss_bytes"]);
        }
        assert_eq!(rows(&report, "seconds").len(), 2);
        assert_eq!(report["precision"], precision);
        assert_eq!(report["optimizer"], optimizer);
        assert!(report.get("profile").is_none());
        // 2 blocks of 12 width² and 13 width (biases and norms), tables of 64 and 16, the head, the final norm.
        assert_eq!(report["model"]["parameters"], 2 * (12 * 1024 + 13 * 32) + (64 + 16 + 64) * 32 + 64);
    }
}

#[test]
fn decode() {
    let sandbox = Sandbox::new();
    let args = [
        "bench", "decode", "--depth", "2", "--heads", "2", "--rounds", "1", "--prompt", "9", "--tokens", "7",
    ];
    // Keys and values of 2 blocks, 2 sequences, 16 tokens, 32 channels; in int8 5 bytes more for each head.
    for (kind, bytes) in [("f32", 4096 * 4), ("bf16", 4096 * 2), ("int8", 4096 + 256 * 5)] {
        let report = sandbox.json(&[&args[..], &TINY, &["--kv-cache", kind]].concat());
        for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "decode_seconds_median"] {
            positive(&report[key]);
        }
        assert_eq!((&report["kv_cache"], report["cache_bytes"].as_u64()), (&Value::from(kind), Some(bytes)));
    }
    assert!(sandbox.ok(&[&args[..], &TINY].concat()).contains("tokens/s"));
    let stderr = sandbox.refused(&["bench", "decode", "--context", "16", "--prompt", "9", "--tokens", "8"]);
    assert!(stderr.contains("--context"), "{stderr}");
}

#[test]
fn a_step_learns_the_same_for_every_way_to_remember() {
    let sandbox = Sandbox::new();
    let step = ["bench", "step", "--depth", "2", "--heads", "2", "--steps", "3"];
    let loss = |recompute: &str, threads: &str| {
        let how = ["--recompute", recompute, "--threads", threads];
        number(&sandbox.json(&[&step[..], &TINY, &how].concat())["loss"])
    };
    let plain = loss("none", "1");
    // ln 64 for one who knows nothing.
    assert!(plain < 64f64.ln() + 1.0);
    assert_eq!(loss("mlp", "2"), plain);
    assert_eq!(loss("block", "2"), plain);
}

#[test]
fn a_profile_adds_up_and_is_drawn() {
    let sandbox = Sandbox::new();
    let args = ["bench", "step", "--depth", "1", "--heads", "2", "--steps", "3", "--profile"];
    let args = [&args[..], &TINY, &["--recompute", "block", "--out", "figures"]].concat();
    let report = sandbox.json(&args);
    let profile = rows(&report, "profile");
    let sum: f64 = profile.iter().map(|p| positive(&p["seconds"])).sum();
    let mean = positive(&report["seconds_mean"]);
    // The clock also runs between the steps, so the accounts hold a little more than the steps do.
    assert!(sum > 0.9 * mean, "{sum} of {mean}");
    let has = |operation: &str, pass: &str| {
        profile.iter().any(|p| p["operation"] == operation && p["pass"] == pass)
    };
    for operation in ["linear", "attention", "norm"] {
        assert!(has(operation, "forward") && has(operation, "recompute") && has(operation, "backward"));
    }
    assert!(has("embedding", "backward") && has("head", "forward") && has("adamw", "optimizer"));
    let figure = sandbox.read("figures/step-profile.svg");
    assert!(figure.starts_with("<svg") && figure.contains("optimizer") && figure.contains("linear"));
    let table = sandbox.ok(&args);
    assert!(table.contains("forward  recompute  backward  optimizer"), "{table}");
}

#[test]
fn scale() {
    let sandbox = Sandbox::new();
    let args = [
        "bench",
        "scale",
        "--width",
        "32,16",
        "--depth",
        "1,2",
        "--context",
        "8,16",
        "--sequences",
        "1,2",
        "--d-head",
        "16",
        "--vocab",
        "64",
        "--steps",
        "1",
        "--out",
        "figures",
    ];
    let report = sandbox.json(&args);
    let axes = rows(&report, "axes");
    assert_eq!(axes.len(), 4);
    for axis in axes {
        let points = rows(axis, "points");
        assert_eq!(points.len(), 2);
        assert!(number(&points[0]["value"]) < number(&points[1]["value"]), "ascending");
        for point in points {
            for key in ["seconds_median", "gflop", "planned_bytes"] {
                positive(&point[key]);
            }
        }
        assert!(number(&axis["time_exponent"]).is_finite());
        positive(&axis["flop_exponent"]);
        positive(&axis["planned_memory_exponent"]);
    }
    // Operations are proportional to the sequences.
    assert!((number(&axes[3]["flop_exponent"]) - 1.0).abs() < 1e-9);
    for file in ["scale-time", "scale-memory"] {
        assert!(sandbox.read(&format!("figures/{file}.svg")).starts_with("<svg"));
    }
}
