//! A signal that reaches a sweep and the processes of its runs alike, as Ctrl-C in a terminal and the end of a
//! cluster's job do: every run ends after its step, with a checkpoint of it.
#![cfg(unix)]

mod common;

use common::Sandbox;
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SWEEP: &str = "seeds = [0, 1]\nbase = \"tiny.toml\"\n[run]\ntrain.steps = 100000\n\
    train.checkpoint_every_steps = 50000\ntrain.log_every_steps = 1\ntelemetry.tensorboard = false\n";

/// Starts the sweep in a process group of its own.
fn start(sandbox: &Sandbox, out: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["sweep", "long.toml", "--jobs", "2", "--threads", "2", "--out", out])
        .current_dir(sandbox.path(""))
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn runs(sandbox: &Sandbox, out: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(sandbox.path(out).join("runs")) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).collect()
}

/// Waits until both runs have logged a step.
fn wait_for_steps(sandbox: &Sandbox, out: &str) {
    let begun = Instant::now();
    let logged = |run: &PathBuf| run.join("metrics.jsonl").metadata().is_ok_and(|m| m.len() > 0);
    while runs(sandbox, out).iter().filter(|r| logged(r)).count() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no steps within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, group: u32) {
    let sent = Command::new("kill").args([name, "--", &format!("-{group}")]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn every_run_ends_with_a_checkpoint_of_its_last_step() {
    let sandbox = Sandbox::with_data();
    sandbox.write("long.toml", SWEEP);
    for (name, out) in [("-INT", "interrupted"), ("-TERM", "terminated")] {
        let child = start(&sandbox, out);
        wait_for_steps(&sandbox, out);
        let group = child.id();
        signal(name, group);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        for run in runs(&sandbox, out) {
            let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
            let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
            let step = last["step"].as_u64().unwrap();
            let checkpoint = run.join(format!("checkpoints/step-{step:06}/state.json"));
            assert!(checkpoint.is_file(), "{name}: no checkpoint of step {step} in {}", run.display());
        }
    }
}

#[test]
fn a_sweep_that_waits_for_a_run_of_another_can_be_stopped() {
    let sandbox = Sandbox::with_data();
    sandbox.write("long.toml", SWEEP);
    let first = start(&sandbox, "both");
    wait_for_steps(&sandbox, "both");
    let second = start(&sandbox, "both");
    std::thread::sleep(Duration::from_millis(700));
    // The parent alone: its runs learn of it when their stdin ends.
    assert!(Command::new("kill").args(["-TERM", &second.id().to_string()]).status().unwrap().success());
    let begun = Instant::now();
    assert_eq!(second.wait_with_output().unwrap().status.code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(20));
    signal("-TERM", first.id());
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(130));
}
