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

/// Trains two blocks for 20 steps with every log.
fn train_with_all(sandbox: &Sandbox, out: &str) {
    let sets = [
        "train.steps=20",
        "train.log_every_steps=2",
        "train.eval_every_steps=10",
        "telemetry.stats_every_steps=2",
        "telemetry.gram_every_steps=4",
        "telemetry.optim_every_steps=10",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    sandbox.ok(&[&["train", "tiny.toml", "--out", out][..], &sets].concat());
}

#[test]
fn a_run_has_a_report_of_its_own_with_all_that_was_measured() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "soap");
    train_with_all(&sandbox, "run");
    let own = sandbox.read("run/report/index.html");
    let summary: serde_json::Value = serde_json::from_str(&sandbox.read("run/report/summary.json")).unwrap();
    assert_eq!((&summary["schema"], &summary["runs"][0]["status"]), (&1.into(), &"finished".into()));
    assert!(sandbox.read("run/report/summary.md").starts_with("| run "));
    for file in [
        "loss",
        "lr",
        "grad_norm",
        "kurtosis",
        "kurtosis_heat",
        "kurtosis_mean",
        "input_corr_mean_by_block",
        "effective_rank_by_block",
        "update_ratio",
        "condition",
        "updates-run",
        "conditions-run",
    ] {
        let svg = sandbox.read(&format!("run/report/{file}.svg"));
        assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("no data"), "{file}");
    }
    for title in ["Training", "Outlier features", "Signal propagation", "Optimiser"] {
        assert!(own.contains(&format!("<h2>{title}</h2>")), "{title}");
    }
    assert!(!own.contains("<h2>Quantisation</h2>"));
    sandbox.ok(&["quantize", "run", "--data", "data", "--tokens", "512", "--report", "run/w8a8"]);
    sandbox.ok(&["report", "run", "--out", "page"]);
    let page = sandbox.read("page/index.html");
    assert!(page.contains("<h2>Quantisation</h2>") && page.contains("w8a8/summary.json"));

    // Killed while it wrote: the last line torn, run.json as it was while it ran, one figure undefined.
    let log = sandbox.read("run/metrics.jsonl");
    let torn = &log[..log.len() - 40];
    let first = sandbox.lines("run/metrics.jsonl")[0]["train/loss"].to_string();
    sandbox.write("run/metrics.jsonl", torn.replacen(&first, "null", 1));
    let info = sandbox.read("run/run.json").replace("\"finished\"", "\"running\"");
    sandbox.write("run/run.json", info);
    let report = sandbox.json(&["report", "run", "--out", "page"]);
    assert_eq!((&report["runs"][0]["status"], &report["runs"][0]["step"]), (&"running".into(), &18.into()));
    let page = sandbox.read("page/index.html");
    assert!(page.contains("step 18 of 20") && page.contains("was killed") && !page.contains("NaN"));
}

#[test]
fn twenty_runs_fit_on_a_page() {
    let sandbox = Sandbox::with_data();
    train_with_all(&sandbox, "run");
    let names: Vec<String> = (0..20).map(|i| format!("setting-{}-s{}", i / 4, i % 4)).collect();
    for (i, name) in names.iter().enumerate() {
        for file in ["metrics.jsonl", "stats.jsonl", "optim.jsonl", "run.json"] {
            sandbox.copy(&format!("run/{file}"), &format!("{name}/{file}"));
        }
        let config = sandbox.read("run/resolved.toml").replace("seed = 0", &format!("seed = {}", i % 4));
        sandbox.write(
            &format!("{name}/resolved.toml"),
            config.replace("lr_peak = 0.003", &format!("lr_peak = 0.00{}", i / 4 + 1)),
        );
    }
    let mut args = vec!["report"];
    args.extend(names.iter().map(String::as_str));
    args.extend(["--out", "page"]);
    sandbox.ok(&args);
    let page = sandbox.read("page/index.html");
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert!(page.contains("setting-3, mean of 4 seeds") && page.contains("optim.lr_peak"));
    assert!(names.iter().all(|name| page.contains(&format!(">{name}</text>"))));
}
