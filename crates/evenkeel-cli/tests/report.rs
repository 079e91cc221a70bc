//! `report`: runs side by side.

mod common;

use common::{Sandbox, close, keys, number};

#[test]
fn two_runs_side_by_side() {
    let sandbox = Sandbox::with_data();
    for preset in ["op", "pre_ln"] {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&[
            "train",
            "tiny.toml",
            "--out",
            preset,
            "--set",
            "telemetry.gram_every_steps=10",
            "--set",
            "telemetry.moments_every_steps=10",
        ]);
    }
    let args = ["report", "op", "pre_ln", "--out", "both"];
    let before = sandbox.files();
    sandbox.json(&[&args[..], &["--dry-run"]].concat());
    assert!(sandbox.files() == before, "a dry run wrote something");
    let report = sandbox.json(&args);
    assert_eq!(keys(&report), ["schema", "page", "runs"].into());
    let ends = report["runs"].as_array().unwrap();
    assert_eq!((ends[0]["name"].as_str(), ends[1]["name"].as_str()), (Some("op"), Some("pre_ln")));
    let last = sandbox.lines("op/metrics.jsonl").pop().unwrap();
    assert!(close(number(&ends[0]["val_loss"]), number(&last["val/loss"]), 1e-12));
    for file in ["index.html", "summary.json", "summary.md", "loss.svg", "kurtosis.svg", "effective_rank.svg"]
    {
        assert!(sandbox.path(&format!("both/{file}")).is_file(), "{file}");
    }
    assert!(sandbox.path("both/moments-op.svg").is_file() && !sandbox.path("both/inf_norm.svg").exists());
    // Again into the same folder, but not over something else.
    assert!(sandbox.ok(&args).contains("pre_ln"));
    let said = sandbox.refused(&["report", "op", "--out", "op"]);
    assert!(said.contains("op exists") && said.contains("--force"), "{said}");
    sandbox.refused(&["report", "data", "--out", "x"]);
    assert!(!sandbox.path("x").exists());
}
