//! A run that was stopped and went on equals one that was not, bit for bit.
//!
//! Also here: what a run's result may not depend on (threads, micro-batches beyond rounding), where it may start
//! from, how it ends when it diverges, and that a run which is refused leaves no trace and takes nothing away.
#![cfg(unix)]

mod common;

use common::{Sandbox, events, lossy};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes steps slow enough to stop a run within them.
const SLOWER: [&str; 14] = [
    "--set",
    "model.width=64",
    "--set",
    "train.batch_sequences=48",
    "--set",
    "train.checkpoint_every_steps=10",
    "--set",
    "train.checkpoint_keep=10",
    "--set",
    "train.log_every_steps=5",
    "--set",
    "train.eval_every_steps=20",
    "--threads",
    "1",
];

fn slower(sandbox: &Sandbox, out: &str, more: &[&str]) -> std::process::Output {
    sandbox.run(&[&["train", "tiny.toml", "--out", out], &SLOWER[..], more].concat(), 0)
}

/// Starts the slower run in the background and waits until its 20th step is on disk.
fn started(sandbox: &Sandbox, out: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["train", "tiny.toml", "--out", out])
        .args(SLOWER)
        .current_dir(sandbox.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !sandbox.path(&format!("{out}/checkpoints/step-000020/state.json")).exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Both runs must hold the same weights, the same optimiser state, and the same log but for time and memory.
fn assert_same_run(sandbox: &Sandbox, a: &str, b: &str, step: u64) {
    for file in ["model.safetensors", "optim.safetensors", "state.json", "config.json", "tokenizer.json"] {
        let of = |run: &str| sandbox.bytes(&format!("{run}/checkpoints/step-{step:06}/{file}"));
        assert!(of(a) == of(b), "{file} of {a} and {b} differ");
    }
    let figures = |run: &str| -> Vec<Value> {
        let mut lines = sandbox.lines(&format!("{run}/metrics.jsonl"));
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            line.remove("tokens_per_sec");
            line.remove("mem/peak");
            line.remove("optim/time_share");
        }
        lines
    };
    assert_eq!(figures(a), figures(b));
    let shown = |run: &str| {
        let mut tags = events::read(&sandbox.path(&format!("{run}/tb")));
        for tag in ["tokens_per_sec", "mem/peak", "optim/time_share"] {
            tags.remove(tag);
        }
        tags
    };
    assert_eq!(shown(a), shown(b));
    assert_eq!(sandbox.read(&format!("{a}/stats.jsonl")), sandbox.read(&format!("{b}/stats.jsonl")));
    assert_eq!(sandbox.read(&format!("{a}/resolved.toml")), sandbox.read(&format!("{b}/resolved.toml")));
}

fn killed_and_resumed(optimizer: &str) {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", optimizer);
    slower(&sandbox, "straight", &[]);
    let mut child = started(&sandbox, "killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !sandbox.path("killed/checkpoints/step-000050").exists(),
        "the run was over before it was killed"
    );
    let resumed = slower(&sandbox, "killed", &["--resume"]);
    assert!(lossy(&resumed.stderr).contains("goes on after step"), "{}", lossy(&resumed.stderr));
    assert_same_run(&sandbox, "straight", "killed", 50);
    let steps: Vec<u64> =
        sandbox.lines("killed/metrics.jsonl").iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]);
}

#[test]
fn sigkill_then_resume_equals_straight_with_adamw() {
    killed_and_resumed("adamw");
}

#[test]
fn sigkill_then_resume_equals_straight_with_soap() {
    killed_and_resumed("soap");
}

#[test]
fn sigterm_writes_a_checkpoint_at_the_interrupted_step() {
    let sandbox = Sandbox::with_data();
    slower(&sandbox, "straight", &[]);
    let child = started(&sandbox, "stopped");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", lossy(&output.stderr));
    let info: Value = serde_json::from_str(&sandbox.read("stopped/run.json")).unwrap();
    assert_eq!(info["status"], "interrupted");
    let step = info["step"].as_u64().unwrap();
    assert!((20..50).contains(&step), "{step}");
    let state = sandbox.read(&format!("stopped/checkpoints/step-{step:06}/state.json"));
    assert_eq!(serde_json::from_str::<Value>(&state).unwrap()["step"], step);
    assert_eq!(sandbox.read("stopped/checkpoints/latest"), format!("step-{step:06}"));
    assert!(lossy(&output.stdout).starts_with(&format!("interrupted after {step} steps")));
    slower(&sandbox, "stopped", &["--resume"]);
    assert_same_run(&sandbox, "straight", "stopped", 50);
}

#[test]
fn a_checkpoint_left_half_written_and_a_torn_log_line_are_passed_over() {
    let sandbox = Sandbox::with_data();
    slower(&sandbox, "straight", &[]);
    slower(&sandbox, "torn", &[]);
    for step in [30, 40, 50] {
        std::fs::remove_dir_all(sandbox.path(&format!("torn/checkpoints/step-{step:06}"))).unwrap();
    }
    sandbox.write("torn/checkpoints/.step-000030.tmp/model.safetensors", "half");
    sandbox.write("torn/checkpoints/latest", "step-000050");
    let log = sandbox.read("torn/metrics.jsonl");
    sandbox.write("torn/metrics.jsonl", &log[..log.len() - 20]);
    let file = std::fs::read_dir(sandbox.path("torn/tb")).unwrap().next().unwrap().unwrap().path();
    let shown = std::fs::read(&file).unwrap();
    std::fs::write(&file, &shown[..shown.len() - 20]).unwrap();
    slower(&sandbox, "torn", &["--resume"]);
    assert_same_run(&sandbox, "straight", "torn", 50);
}

#[test]
fn threads_change_nothing() {
    let sandbox = Sandbox::with_data();
    // The second shape takes eigendecompositions of 320 x 320, which are computed in blocks.
    for (name, sets) in [
        ("narrow", ["model.width=64", "model.depth=2", "train.steps=20", "model.mlp_ratio=4"]),
        ("wide", ["model.width=320", "model.depth=1", "train.steps=5", "model.mlp_ratio=1"]),
    ] {
        sandbox.config("tiny.toml", "op", "soap");
        let runs = ["1", "2"].map(|threads| {
            let out = format!("{name}-{threads}");
            let mut args = vec!["train", "tiny.toml", "--out", &out, "--threads", threads];
            args.extend(["--set", "model.heads=4", "--set", "optim.precondition_frequency=2"]);
            args.extend(sets.iter().flat_map(|set| ["--set", set]));
            sandbox.ok(&args);
            out
        });
        let step = if name == "wide" { 5 } else { 20 };
        assert_same_run(&sandbox, &runs[0], &runs[1], step);
    }
}

#[test]
fn micro_batches_give_the_curve_of_the_whole_batch() {
    let sandbox = Sandbox::with_data();
    let curve = |out: &str, micro: &str| -> Vec<f64> {
        let micro = format!("train.micro_batch_sequences={micro}");
        sandbox.ok(&[
            "train",
            "tiny.toml",
            "--out",
            out,
            "--set",
            &micro,
            "--set",
            "train.log_every_steps=1",
        ]);
        sandbox
            .lines(&format!("{out}/metrics.jsonl"))
            .iter()
            .map(|l| l["train/loss"].as_f64().unwrap())
            .collect()
    };
    let whole = curve("whole", "0");
    assert_eq!(whole.len(), 50);
    for (out, micro) in [("ones", "1"), ("threes", "3"), ("fours", "4")] {
        for (step, (a, b)) in whole.iter().zip(curve(out, micro)).enumerate() {
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{out}, line {step}: {a} and {b}");
        }
    }
}

#[test]
fn resuming_a_finished_run_ends_at_once() {
    let sandbox = Sandbox::with_run("op");
    let (log, weights) =
        (sandbox.read("run/metrics.jsonl"), sandbox.bytes("run/checkpoints/step-000050/model.safetensors"));
    let stdout = sandbox.ok(&["train", "tiny.toml", "--out", "run", "--resume"]);
    assert!(stdout.starts_with("finished after 50 steps"), "{stdout}");
    assert_eq!(sandbox.read("run/metrics.jsonl"), log);
    assert_eq!(sandbox.bytes("run/checkpoints/step-000050/model.safetensors"), weights);
}

#[test]
fn resuming_without_a_checkpoint_starts_anew_with_a_note() {
    let sandbox = Sandbox::with_run("op");
    let output = sandbox.run(&["train", "tiny.toml", "--out", "fresh", "--resume"], 0);
    assert!(lossy(&output.stderr).contains("starts anew"), "{}", lossy(&output.stderr));
    assert_same_run(&sandbox, "run", "fresh", 50);
    assert_eq!(sandbox.read("fresh/config.toml"), sandbox.read("tiny.toml"));
}

#[test]
fn init_from_goes_on_from_the_weights_of_another_run() {
    let sandbox = Sandbox::with_run("op");
    let losses = |run: &str| -> Vec<f64> {
        sandbox
            .lines(&format!("{run}/metrics.jsonl"))
            .iter()
            .map(|l| l["train/loss"].as_f64().unwrap())
            .collect()
    };
    let old = losses("run");
    for model in ["run", "run/checkpoints/step-000050"] {
        let from = format!("model.init_from={model}");
        sandbox.ok(&["train", "tiny.toml", "--out", "next", "--force", "--set", &from]);
        let new = losses("next");
        assert!((new[0] - old[old.len() - 1]).abs() < 0.3, "{old:?} then {new:?}");
        assert!(new[0] < old[0] - 1.0, "{old:?} then {new:?}");
        assert!(sandbox.read("next/resolved.toml").contains(&format!("init_from = \"{model}\"")));
    }
}

#[test]
fn a_diverging_run_says_where() {
    let sandbox = Sandbox::with_data();
    let args =
        ["train", "tiny.toml", "--out", "run", "--set", "optim.lr_peak=1e3", "--set", "optim.clip_norm=0"];
    let output = sandbox.run(&args, 1);
    let info: Value = serde_json::from_str(&sandbox.read("run/run.json")).unwrap();
    assert_eq!(info["status"], "diverged");
    let reason = info["reason"].as_str().unwrap();
    assert!(reason.contains("the loss is") || reason.contains("not finite"), "{reason}");
    assert!(lossy(&output.stdout).contains(reason), "{}", lossy(&output.stdout));
    let output = sandbox.run(&[&args[..], &["--force", "--json"]].concat(), 1);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["status"].as_str(), report["reason"].as_str()), (Some("diverged"), Some(reason)));
}

#[test]
fn a_run_that_blows_up_names_a_site_or_a_parameter() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "adamw");
    let sets =
        ["optim.lr_peak=1e25", "optim.clip_norm=0", "model.final_norm=none", "optim.warmup_fraction=0"];
    let mut args = vec!["train", "tiny.toml", "--out", "run"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let output = sandbox.run(&args, 1);
    let stdout = lossy(&output.stdout);
    assert!(stdout.contains("not finite"), "{stdout}");
    assert!(
        ["blocks.", "embed", "head", "norm", "logits"].iter().any(|site| stdout.contains(site)),
        "{stdout}"
    );
}

#[test]
fn a_refused_run_leaves_no_directory_that_stops_the_next() {
    let sandbox = Sandbox::with_data();
    sandbox.refused(&["train", "tiny.toml", "--out", "run", "--set", "model.heads=5"]);
    sandbox.refused(&["train", "tiny.toml", "--out", "run", "--set", "data.path=nowhere"]);
    sandbox.ok(&["train", "tiny.toml", "--out", "run", "--set", "train.steps=2"]);
}

#[test]
fn a_refused_run_takes_nothing_away_even_with_force() {
    let sandbox = Sandbox::with_run("op");
    for set in ["model.heads=5", "data.path=nowhere", "model.vocab=3"] {
        sandbox.refused(&["train", "tiny.toml", "--out", "run", "--force", "--set", set]);
        assert!(
            sandbox.path("run/checkpoints/step-000050/state.json").exists(),
            "{set}: the old run is gone"
        );
        assert!(sandbox.path("run/metrics.jsonl").exists(), "{set}: the old log is gone");
    }
}

#[test]
fn an_optimizer_state_that_is_incomplete_is_not_resumed() {
    let sandbox = Sandbox::with_data();
    let args = ["train", "tiny.toml", "--out", "run", "--set", "train.steps=20"];
    sandbox.ok(&args);
    let header = br#"{"__metadata__":{"format":"pt"}}"#;
    let empty = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    sandbox.write("run/checkpoints/step-000020/optim.safetensors", empty);
    let stderr = sandbox.refused(&[&args[..], &["--resume"]].concat());
    assert!(stderr.contains("optim.safetensors"), "{stderr}");
}

#[test]
fn a_run_begun_before_a_key_existed_goes_on_with_its_default() {
    let sandbox = Sandbox::with_data();
    let args = ["train", "tiny.toml", "--out", "run", "--set", "train.checkpoint_every_steps=20"];
    sandbox.ok(&args);
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step-000050")).unwrap();
    // As the version before wrote it: configuration and checkpoint without what came later.
    let later =
        ["kv_heads", "gate", "gate_init", "branches", "softmax", "rope_base", "dropout_embed", "attn_skip"];
    let resolved: Vec<String> = sandbox
        .read("run/resolved.toml")
        .lines()
        .filter(|line| !later.contains(&line.split(" =").next().unwrap()))
        .map(String::from)
        .collect();
    sandbox.write("run/resolved.toml", resolved.join("\n"));
    let path = "run/checkpoints/step-000040/config.json";
    let mut config: Value = serde_json::from_str(&sandbox.read(path)).unwrap();
    let model = config["model"].as_object_mut().unwrap();
    assert!(later.iter().all(|key| model.remove(*key).is_some()));
    sandbox.write(path, config.to_string());
    let said = sandbox.run(&[&args[..], &["--resume"]].concat(), 0);
    assert!(!lossy(&said.stderr).contains("anew"), "{}", lossy(&said.stderr));
    // Another value than the default is another run.
    let other = [&args[..], &["--resume", "--set", "model.gate=per_head"]].concat();
    assert!(sandbox.refused(&other).contains("gate"));
}

#[test]
fn dropout_resumes_and_is_cut_into_micro_batches_exactly() {
    let sandbox = Sandbox::with_data();
    let drop =
        ["dropout_embed", "dropout_residual", "dropout_attention"].map(|key| format!("model.{key}=0.1"));
    let run = |out: &str, more: &[&str]| {
        let mut args = vec!["train", "tiny.toml", "--out", out, "--set", "train.checkpoint_every_steps=20"];
        args.extend(drop.iter().flat_map(|set| ["--set", set.as_str()]));
        args.extend(more);
        sandbox.ok(&args);
    };
    run("straight", &[]);
    run("again", &[]);
    std::fs::remove_dir_all(sandbox.path("again/checkpoints/step-000050")).unwrap();
    run("again", &["--resume"]);
    assert_same_run(&sandbox, "straight", "again", 50);
    run("cut", &["--set", "train.micro_batch_sequences=3"]);
    run("forgetting", &["--set", "train.recompute=block"]);
    let losses = |run: &str| -> Vec<f64> {
        let lines = sandbox.lines(&format!("{run}/metrics.jsonl"));
        lines.iter().map(|line| line["train/loss"].as_f64().unwrap()).collect()
    };
    let straight = losses("straight");
    assert_eq!(straight, losses("forgetting"));
    for (whole, cut) in straight.iter().zip(losses("cut")) {
        assert!((whole - cut).abs() < 1e-3 * whole, "{whole} and {cut}");
    }
    sandbox.ok(&["train", "tiny.toml", "--out", "plain"]);
    assert!(straight != losses("plain"), "dropout changed nothing");
}
