//! `compare`: two runs, two models, and what must be the same bit for bit.

mod common;

use common::{Sandbox, close, keys, number, tensors};
use serde_json::Value;

/// Trains the tiny configuration for 20 steps, with all logs and a checkpoint halfway.
fn train(sandbox: &Sandbox, out: &str, more: &[&str]) {
    let logs = [
        "train.steps=20",
        "train.log_every_steps=5",
        "train.checkpoint_every_steps=10",
        "train.checkpoint_keep=5",
        "train.eval_every_steps=10",
        "telemetry.moments_every_steps=5",
        "telemetry.optim_every_steps=10",
    ];
    let logs: Vec<&str> = logs.iter().flat_map(|set| ["--set", *set]).collect();
    sandbox.ok(&[&["train", "tiny.toml", "--out", out][..], &logs, more].concat());
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    sandbox.json(&[&["compare"], args].concat())
}

fn copy(sandbox: &Sandbox, from: &str, to: &str) {
    let root = sandbox.path("");
    for path in sandbox.files().into_keys().filter(|p| p.starts_with(root.join(from)) && p.is_file()) {
        let inner = path.strip_prefix(root.join(from)).unwrap().display().to_string();
        sandbox.copy(&format!("{from}/{inner}"), &format!("{to}/{inner}"));
    }
}

#[test]
fn runs_are_equal_where_they_must_be_and_nowhere_else() {
    let sandbox = Sandbox::with_data();
    train(&sandbox, "a", &["--threads", "1"]);
    train(&sandbox, "b", &["--threads", "2"]);
    train(&sandbox, "seed", &["--seed", "1"]);
    let said = sandbox.ok(&["compare", "a", "b", "--assert-equal"]);
    assert!(said.ends_with("equal, bit for bit\n"), "{said}");
    let same = json(&sandbox, &["a", "b"]);
    let expected = [
        "schema",
        "kind",
        "a",
        "b",
        "equal",
        "first_difference",
        "config",
        "ends",
        "kurtosis",
        "logs",
        "checkpoint_steps",
        "weights",
        "tolerance",
    ];
    assert_eq!(keys(&same), expected.into());
    assert_eq!((&same["equal"], &same["first_difference"]), (&Value::Bool(true), &Value::Null));
    let logs: Vec<&str> =
        same["logs"].as_array().unwrap().iter().map(|l| l["file"].as_str().unwrap()).collect();
    assert_eq!(logs, ["metrics.jsonl", "stats.jsonl", "moments.jsonl", "optim.jsonl"]);

    // A run that was killed after its checkpoint of step 10, and went on.
    copy(&sandbox, "a", "resumed");
    std::fs::remove_dir_all(sandbox.path("resumed/checkpoints/step-000020")).unwrap();
    let said = sandbox.run(&["compare", "a", "resumed", "--assert-equal"], 1);
    assert!(common::lossy(&said.stdout).contains("of steps 20 and 10"), "{said:?}");
    train(&sandbox, "resumed", &["--resume"]);
    sandbox.ok(&["compare", "a", "resumed", "--assert-equal"]);

    // Another seed.
    let said = common::lossy(&sandbox.run(&["compare", "a", "seed", "--assert-equal"], 1).stdout);
    assert!(said.contains("train.seed") && said.contains("not equal: metrics.jsonl step"), "{said}");
    sandbox.ok(&["compare", "a", "seed"]);
    let other = json(&sandbox, &["a", "seed"]);
    assert_eq!(other["config"][0]["key"], "train.seed");
    let last = |run: &str| number(&sandbox.lines(&format!("{run}/metrics.jsonl")).pop().unwrap()["val/loss"]);
    for (i, run) in ["a", "seed"].iter().enumerate() {
        assert!(close(number(&other["ends"][i]["val_loss"]), last(run), 1e-12));
    }
    let stats = sandbox.lines("seed/stats.jsonl");
    let embed = stats.iter().rfind(|line| line["site"] == "embed").unwrap();
    assert_eq!(other["kurtosis"][0]["site"], "embed");
    assert!(close(number(&other["kurtosis"][0]["b"]), number(&embed["kurtosis"]), 1e-12));
    let first = &other["logs"][0]["first"];
    assert_eq!(first["a"], sandbox.lines("a/metrics.jsonl")[0][first["key"].as_str().unwrap()]);

    // A page of both, but not into somebody's folder.
    let said = sandbox.refused(&["compare", "a", "b", "--out", "data"]);
    assert!(said.contains("data exists"), "{said}");
    sandbox.ok(&["compare", "a", "seed", "--out", "page"]);
    assert!(sandbox.read("page/index.html").contains("2 runs"));
}

#[test]
fn one_bit_of_a_log_or_a_weight_is_told() {
    let sandbox = Sandbox::with_data();
    train(&sandbox, "a", &[]);
    copy(&sandbox, "a", "b");
    let log = sandbox.read("a/stats.jsonl");
    let lines = sandbox.lines("a/stats.jsonl");
    let value = lines[4]["kurtosis"].to_string();
    let near = format!("{}", number(&lines[4]["kurtosis"]) * (1.0 + 1e-7));
    sandbox.write("b/stats.jsonl", log.replacen(&value, &near, 1));
    let said = json(&sandbox, &["a", "b"]);
    let expected = format!("stats.jsonl step {}: kurtosis of", lines[4]["step"]);
    assert!(said["first_difference"].as_str().unwrap().starts_with(&expected), "{said}");
    sandbox.run(&["compare", "a", "b", "--assert-equal", "--tolerance", "1e-8"], 1);
    sandbox.ok(&["compare", "a", "b", "--assert-equal", "--tolerance", "1e-6"]);
    sandbox.write("b/stats.jsonl", log);
    sandbox.ok(&["compare", "a", "b", "--assert-equal"]);

    let weights = "b/checkpoints/step-000020/model.safetensors";
    let mut bytes = sandbox.bytes(weights);
    *bytes.last_mut().unwrap() ^= 1;
    sandbox.write(weights, bytes);
    let said = common::lossy(&sandbox.run(&["compare", "a", "b", "--assert-equal"], 1).stdout);
    assert!(said.contains("not equal: tensor ") && said.contains("1 of "), "{said}");
}

#[test]
fn models_are_compared_tensor_by_tensor() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "pre_ln", "adamw");
    train(&sandbox, "a", &[]);
    let folder = |step: u32| format!("a/checkpoints/step-0000{step}");
    let found = json(&sandbox, &[&folder(10), &folder(20)]);
    assert_eq!((&found["kind"], &found["equal"]), (&Value::from("models"), &Value::Bool(false)));
    let read = |step| tensors(&sandbox.path(&format!("{}/model.safetensors", folder(step))));
    let (first, second) = (read(10), read(20));
    let told = found["tensors"].as_array().unwrap();
    assert_eq!(told.len(), first.len());
    for tensor in told {
        let name = tensor["name"].as_str().unwrap();
        let (a, b) = (&first[name].1, &second[name].1);
        let apart: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        let largest = apart.iter().copied().fold(0.0, f64::max);
        let rms = (apart.iter().map(|d| d * d).sum::<f64>() / a.len() as f64).sqrt();
        assert!(close(number(&tensor["max_abs"]), largest, 1e-12), "{name}");
        assert!(close(number(&tensor["rms"]), rms, 1e-9), "{name}");
        let same = apart.iter().filter(|d| **d == 0.0).count();
        assert_eq!(tensor["identical"], same, "{name}");
    }
    sandbox.run(&["compare", &folder(10), &folder(20), "--assert-equal"], 1);
    sandbox.ok(&["compare", "a", &folder(20), "--assert-equal"]);

    // The same model under other names.
    sandbox.ok(&["export", "a", "--out", "hf"]);
    let found = json(&sandbox, &["a", "hf"]);
    assert_eq!(found["equal"], true, "{found}");

    let said = sandbox.refused(&["compare", "a", "nowhere"]);
    assert!(said.contains("nowhere"), "{said}");
    let said = sandbox.refused(&["compare", &folder(10), &folder(20), "--out", "page"]);
    assert!(said.contains("--out"), "{said}");
    sandbox.refused(&["compare", "a", "a", "--assert-equal", "--tolerance", "-1"]);
    sandbox.refused(&["compare", "a", "a", "--tolerance", "1"]);
    assert!(!sandbox.path("page").exists());
}
