//! tb/: what TensorBoard is given is what the logs say. How a file goes on when its run was killed is in resume.rs.
// What is skipped is said.
#![allow(clippy::print_stdout)]

mod common;

use common::events::{self, Said};
use common::{Sandbox, lossy};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// Everything that can be logged, undefined figures among it.
const EVERYTHING: [&str; 8] = [
    "train.steps=24",
    "train.log_every_steps=3",
    "telemetry.stats_every_steps=2",
    "telemetry.gram_every_steps=4",
    "telemetry.token_metrics=true",
    "telemetry.moments_every_steps=7",
    "telemetry.sites=[\"embed\", \"blocks.*.resid\", \"final_norm\"]",
    "alarm=[{metric=\"rms\", above=0.0, sites=[\"blocks.1.resid\"]}]",
];

fn train(sandbox: &Sandbox, out: &str, sets: &[&str], more: &[&str]) {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["train", "tiny.toml", "--out", out].into_iter().chain(sets).collect();
    sandbox.ok(&[&args[..], more].concat());
}

/// What the logs say, by tag.
fn logged(sandbox: &Sandbox, run: &str) -> BTreeMap<String, Vec<(u64, Said)>> {
    let mut tags: BTreeMap<String, Vec<(u64, Said)>> = BTreeMap::new();
    for log in ["metrics", "stats", "moments"] {
        for line in sandbox.lines(&format!("{run}/{log}.jsonl")) {
            let site = line["site"].as_str().unwrap_or_default();
            let site = site.replace("blocks.0.", "blocks.00.").replace("blocks.1.", "blocks.01.");
            for (key, value) in line.as_object().unwrap() {
                let Some(value) = value.as_f64() else { continue };
                let tag = match (log, key.as_str()) {
                    (_, "step" | "layer" | "mmr_tokens" | "gram_tokens") => continue,
                    ("metrics", key) => key.to_string(),
                    ("stats", key) => format!("{key}/{site}"),
                    (_, key) => format!("moments/{site}/{key}"),
                };
                let step = line["step"].as_u64().unwrap();
                tags.entry(tag).or_default().push((step, Said::Scalar(value as f32)));
            }
        }
    }
    tags
}

#[test]
fn every_figure_of_the_logs_is_there_and_no_other() {
    let sandbox = Sandbox::with_data();
    train(&sandbox, "run", &EVERYTHING, &[]);
    let mut found = events::read(&sandbox.path("run/tb"));
    let alarms = found.remove("alarm").expect("no alarm");
    let fired: Vec<Value> = sandbox.lines("run/alarms.jsonl");
    assert_eq!((alarms.len(), alarms[0].0), (fired.len(), fired[0]["step"].as_u64().unwrap()));
    let Said::Text(texts) = &alarms[0].1 else { panic!("{alarms:?}") };
    assert!(texts[0].starts_with("rms at blocks.1.resid is "), "{texts:?}");
    assert_eq!(found, logged(&sandbox, "run"));
    for tag in ["train/loss", "val/loss", "lr", "optim/update_ratio", "kurtosis/blocks.01.resid", "mmr/embed"]
    {
        assert!(found.contains_key(tag), "{tag}");
    }
    assert!(found.contains_key("effective_rank/embed") && found.contains_key("moments/blocks.00.resid/u42"));
    // SOAP alone has factors.
    assert!(!found.contains_key("optim/condition"));
}

#[test]
fn tensorboard_reads_the_same() {
    let found = std::env::var("EVENKEEL_TENSORBOARD_PYTHON").ok().or_else(|| {
        let has = Command::new("python3").args(["-c", "import tensorboard"]).output();
        has.is_ok_and(|output| output.status.success()).then(|| "python3".to_string())
    });
    let Some(python) = found else {
        println!("skipped: no Python with tensorboard (EVENKEEL_TENSORBOARD_PYTHON names one)");
        return;
    };
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "soap");
    train(&sandbox, "run", &EVERYTHING, &[]);
    train(&sandbox, "plain", &[], &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/check_tensorboard.py");
    let mut check = Command::new(python);
    let output = check.arg(script).args(["run", "plain"]).current_dir(sandbox.path("")).output().unwrap();
    let stdout = lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains(" 0 tags deviate"),
        "{stdout}{}",
        lossy(&output.stderr)
    );
}

#[test]
fn it_can_be_turned_off_and_goes_with_the_run() {
    let sandbox = Sandbox::with_data();
    train(&sandbox, "run", &["train.steps=2"], &[]);
    assert!(sandbox.path("run/tb").exists());
    sandbox.write("run/tb/notes.txt", "of the user, in the folder of the run");
    train(&sandbox, "run", &["train.steps=2", "telemetry.tensorboard=false"], &["--force"]);
    assert!(!sandbox.path("run/tb").exists());
    // From where the run goes on, if it is turned on then.
    std::fs::remove_dir_all(sandbox.path("run")).unwrap();
    let sets = ["train.steps=20", "train.checkpoint_every_steps=10", "train.log_every_steps=5"];
    train(&sandbox, "run", &[&sets[..], &["telemetry.tensorboard=false"]].concat(), &[]);
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step-000020")).unwrap();
    train(&sandbox, "run", &sets, &["--resume"]);
    let steps: Vec<u64> = events::read(&sandbox.path("run/tb"))["train/loss"].iter().map(|v| v.0).collect();
    assert_eq!(steps, [15, 20]);
    // And again, by another command, with nothing left to do.
    train(&sandbox, "run", &sets, &["--resume"]);
    let steps: Vec<u64> = events::read(&sandbox.path("run/tb"))["train/loss"].iter().map(|v| v.0).collect();
    assert_eq!(steps, [15, 20]);
}
