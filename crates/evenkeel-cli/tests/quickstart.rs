//! A one-minute quickstart through the real binary; run by CI with `--ignored`, since it trains for a minute.

use assert_cmd::Command;
use serde_json::Value;

#[test]
#[ignore = "trains for about two minutes"]
fn one_minute_quickstart_prints_the_documented_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("quickstart");
    let run = |json: bool| {
        let mut command = Command::cargo_bin("evenkeel").unwrap();
        command.args(["quickstart", "--minutes", "1", "--out"]).arg(&out);
        if json {
            command.arg("--json");
        }
        command.assert().success().get_output().clone()
    };
    let first = run(true);
    let summary: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(summary["schema"], 1);
    assert!(summary["corpus"]["files"].as_u64().unwrap() > 100);
    assert!(summary["corpus"]["bytes"].as_u64().unwrap() > 1_000_000);
    let runs = summary["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        for key in ["name", "block", "optimizer", "dir", "kurtosis_max_site"] {
            assert!(run[key].as_str().is_some_and(|s| !s.is_empty()), "{key} in {run}");
        }
        for key in [
            "lr_peak",
            "tokens_per_sec",
            "val_loss",
            "kurtosis_mean",
            "kurtosis_max",
            "float_perplexity",
            "w8a8_perplexity",
        ] {
            assert!(run[key].as_f64().is_some_and(|v| v > 0.0), "{key} in {run}");
        }
        assert!(run["steps"].as_u64().unwrap() >= 20 && run["parameters"].as_u64().unwrap() > 1_000_000);
        assert!(run["kurtosis_max"].as_f64() >= run["kurtosis_mean"].as_f64());
        let loss = run["val_loss"].as_f64().unwrap();
        assert!(loss < 7.6, "a run did not learn: {run}");
        assert!((loss.exp() / run["float_perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-6);
        assert!(out.join(run["dir"].as_str().unwrap()).join("checkpoints/latest").is_file());
    }
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg") && !page.contains("NaN"));
    assert!(!page.contains("http://") && !page.contains("src=\"https"), "the page is self-contained");

    // The same command again finds everything done, and says the same but for speed.
    let again: Value = serde_json::from_slice(&run(true).stdout).unwrap();
    for (a, b) in runs.iter().zip(again["runs"].as_array().unwrap()) {
        for key in ["name", "steps", "val_loss", "kurtosis_mean", "w8a8_perplexity"] {
            assert_eq!(a[key], b[key], "{key}");
        }
    }
    let table = String::from_utf8(run(false).stdout).unwrap();
    assert!(table.contains("pre_ln") || table.contains("Pre-LN"), "{table}");
}
