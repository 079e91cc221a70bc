//! What is done with a trained model: eval, inspect, sample; quantize has a file of its own.
//!
//! Figures are checked against each other and, for inspect, against their definitions applied to its dump.

mod common;

use common::{PRESETS, Sandbox, close, keys, lossy, number, tensors, text};
use std::collections::BTreeSet;

#[test]
fn eval_gives_loss_and_perplexity() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.write("x.txt", text(77, 3000));
    sandbox.write("ids.json", "[[1, 2, 3, 4], [5, 6, 7, 8]]");
    let val = number(&sandbox.json(&["data", "inspect", "data"])["val"]["tokens"]);
    for (source, tokens) in [
        (["--data", "data"], ((val - 1.0) / 32.0).floor() * 32.0),
        (["--text", "x.txt"], f64::NAN),
        (["--ids", "ids.json"], 6.0),
    ] {
        let report = sandbox.json(&[&["eval", "run"], &source[..]].concat());
        assert_eq!(keys(&report), ["schema", "tokens", "loss", "perplexity"].into());
        let (loss, perplexity) = (number(&report["loss"]), number(&report["perplexity"]));
        assert!(close(perplexity, loss.exp(), 1e-12), "{report}");
        assert!((0.5..12.0).contains(&loss), "{report}");
        assert!(tokens.is_nan() || number(&report["tokens"]) == tokens, "{report}, not {tokens}");
        let of_checkpoint = [&["eval", "run/checkpoints/step-000050"], &source[..]].concat();
        assert_eq!(sandbox.json(&of_checkpoint), report);
    }
}

/// Eq 1, Eq 2 with the lower median, and size, from the plain definitions in float64.
fn figures(x: &[f64], width: usize) -> (f64, f64, f64, f64) {
    let rows: Vec<&[f64]> = x.chunks(width).collect();
    let squares: Vec<f64> =
        (0..width).map(|j| rows.iter().map(|r| r[j] * r[j]).sum::<f64>() / rows.len() as f64).collect();
    let second = squares.iter().sum::<f64>() / width as f64;
    let fourth = squares.iter().map(|s| s * s).sum::<f64>() / width as f64;
    let (mut ratios, mut counted) = (0.0, 0);
    for row in &rows {
        let mut sizes: Vec<f64> = row.iter().map(|v| v.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let median = sizes[(width - 1) / 2];
        if median > 0.0 {
            ratios += sizes[width - 1] / median;
            counted += 1;
        }
    }
    let max = x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    (fourth / (second * second), ratios / counted as f64, second.sqrt(), max)
}

#[test]
fn inspect_reports_what_its_dump_says() {
    let sandbox = Sandbox::with_data();
    let rows: Vec<Vec<u32>> =
        (0..3u32).map(|s| (0..20).map(|t| (s * 31 + t * t * 7 + 40) % 257).collect()).collect();
    sandbox.write("ids.json", serde_json::to_string(&rows).unwrap());
    for preset in PRESETS {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        let report = sandbox.json(&["inspect", preset, "--ids", "ids.json", "--dump", "dump.safetensors"]);
        assert_eq!(report["tokens"], 60);
        assert_eq!(
            (report["model"]["depth"].as_u64(), report["model"]["width"].as_u64()),
            (Some(2), Some(32))
        );
        assert_eq!(report["model"]["architecture"], preset);
        let dump = tensors(&sandbox.path("dump.safetensors"));
        let sites = report["sites"].as_array().unwrap();
        let names: BTreeSet<&str> = sites.iter().map(|s| s["site"].as_str().unwrap()).collect();
        assert_eq!(names, dump.keys().map(String::as_str).collect(), "{preset}");
        let stream =
            ["embed", "blocks.0.attn.in", "blocks.0.attn.context", "blocks.1.mlp.hidden", "blocks.1.resid"];
        assert!(stream.iter().chain(&["final_norm", "logits"]).all(|s| names.contains(s)), "{names:?}");
        let mut kurtosis_of_stream = Vec::new();
        for site in sites {
            let name = site["site"].as_str().unwrap();
            let (shape, values) = &dump[name];
            assert_eq!(shape[..2], [3, 20], "{name}");
            let (kurtosis, mmr, rms, max_abs) = figures(values, shape[2]);
            for (key, ours) in [("kurtosis", kurtosis), ("mmr", mmr), ("rms", rms), ("max_abs", max_abs)] {
                assert!(
                    close(number(&site[key]), ours, 1e-5),
                    "{preset} {name} {key}: {} and {ours}",
                    site[key]
                );
            }
            let layer = name.strip_prefix("blocks.").map(|rest| rest[..1].parse::<u64>().unwrap());
            assert_eq!(site["layer"].as_u64(), layer);
            if name == "embed" || name.ends_with(".resid") {
                kurtosis_of_stream.push((kurtosis, name));
            }
        }
        let mean = kurtosis_of_stream.iter().map(|k| k.0).sum::<f64>() / 3.0;
        assert!(close(number(&report["summary"]["kurtosis_mean"]), mean, 1e-5));
        let worst = kurtosis_of_stream.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert!(close(number(&report["summary"]["kurtosis_max"]), worst.0, 1e-5));
        assert_eq!(report["summary"]["kurtosis_max_site"], worst.1);
    }
}

#[test]
fn inspect_over_data_counts_its_tokens_and_prints_a_table() {
    let sandbox = Sandbox::with_run("pre_ln");
    assert_eq!(sandbox.json(&["inspect", "run", "--data", "data", "--tokens", "320"])["tokens"], 320);
    let plain = sandbox.ok(&["inspect", "run", "--data", "data", "--tokens", "320"]);
    for word in ["kurtosis", "blocks.1.resid", "residual stream: mean kurtosis", "320 tokens, 32 channels"] {
        assert!(plain.contains(word), "{plain}");
    }
}

#[test]
fn inspect_says_what_it_left_out_and_takes_its_options() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.write("ids.json", "[[1, 2, 3, 4], [5, 6, 7, 8]]");
    let data = ["inspect", "run", "--data", "data", "--tokens", "320"];
    let report = sandbox.json(&data);
    assert_eq!((report["gram"].as_str(), report["gram_tokens"].as_u64()), (Some("batch"), Some(320)));
    let sites = report["sites"].as_array().unwrap();
    for site in sites {
        let stream = site["site"] == "embed" || site["site"].as_str().unwrap().ends_with(".resid");
        assert_eq!(site["effective_rank"].is_null(), !stream, "{site}");
        assert!(site["input_corr_mean"].is_number() && site["kurtosis_elementwise"].is_number(), "{site}");
    }
    assert_eq!(report["massive"].as_array().unwrap().len(), 20);
    assert!(!report["attention"].as_array().unwrap().is_empty() && report["attention_tokens"].is_number());
    assert!(report["weights"].as_array().unwrap().iter().all(|w| number(&w["max_over_rms"]) >= 1.0));
    let by_sequence =
        sandbox.json(&["inspect", "run", "--ids", "ids.json", "--gram", "sequence", "--top-k", "3"]);
    assert_eq!(by_sequence["gram"], "sequence");
    assert_eq!(by_sequence["massive"].as_array().unwrap().len(), 3);
    // Four tokens a sequence: no rank beyond 4 in any, where all eight may have more.
    let ranks = |report: &serde_json::Value| -> Vec<f64> {
        report["sites"].as_array().unwrap().iter().map(|s| number(&s["effective_rank"])).collect()
    };
    assert!(ranks(&by_sequence).iter().all(|r| (1.0..=4.0).contains(r)));
    let together = ranks(&sandbox.json(&["inspect", "run", "--ids", "ids.json"]));
    assert!(together.iter().all(|r| (1.0..=8.0).contains(r)));
    assert_ne!(together, ranks(&by_sequence));
}

#[test]
fn the_table_of_inspect_fits_a_terminal() {
    let sandbox = Sandbox::with_run("pre_ln");
    let plain = sandbox.ok(&["inspect", "run", "--data", "data", "--tokens", "320"]);
    assert!(plain.contains("largest activations") && plain.contains("weights that stand out"), "{plain}");
    assert!(plain.lines().all(|line| line.chars().count() <= 100), "{plain}");
}

#[test]
fn fail_above_is_a_verdict() {
    let sandbox = Sandbox::with_run("pre_ln");
    let inspect = ["inspect", "run", "--data", "data", "--tokens", "320"];
    let with = |limits: &[&str]| {
        let mut args = inspect.to_vec();
        args.extend(limits.iter().flat_map(|limit| ["--fail-above", limit]));
        args.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let run = |limits: &[&str], code| {
        let args = with(limits);
        sandbox.run(&args.iter().map(String::as_str).collect::<Vec<_>>(), code)
    };
    run(&["kurtosis=1e6", "mmr=1e6", "rms=1e6", "max_abs=1e6", "effective_rank=33"], 0);
    run(&["effective_rank=0.5"], 1);
    let output = run(&["kurtosis=1e6", "rms=0.0001"], 1);
    let stderr = lossy(&output.stderr);
    assert!(stderr.contains("rms of embed is 0.") && stderr.contains(", above 0.0001"), "{stderr}");
    assert!(lossy(&output.stdout).contains("residual stream"), "the result is printed all the same");
}

#[test]
fn a_model_that_holds_nan_is_above_every_limit() {
    let sandbox = Sandbox::with_run("pre_ln");
    let weights = "run/checkpoints/step-000050/model.safetensors";
    let mut bytes = sandbox.bytes(weights);
    let from = bytes.len() - 4;
    bytes[from..].copy_from_slice(&f32::NAN.to_le_bytes());
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // Of every tensor some part, so that it shows at every site.
    for at in (header..from).step_by(256) {
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    sandbox.write(weights, bytes);
    let args = ["inspect", "run", "--data", "data", "--tokens", "64", "--fail-above", "kurtosis=10"];
    let output = sandbox.run(&args, 1);
    assert!(lossy(&output.stderr).contains("kurtosis of "), "{}", lossy(&output.stderr));
}

#[test]
fn sample_follows_its_seed() {
    let sandbox = Sandbox::with_run("op");
    let sample = |seed: &str, more: &[&str]| {
        let args = ["sample", "run", "--prompt", "let ", "--max-tokens", "40", "--seed", seed];
        sandbox.ok(&[&args[..], more].concat())
    };
    let one = sample("1", &[]);
    assert!(one.starts_with("let ") && one.ends_with('\n'), "{one:?}");
    assert_eq!(sample("1", &[]), one);
    assert_eq!(sample("1", &["--threads", "2"]), one);
    assert_ne!(sample("2", &[]), one);
    let greedy = sample("1", &["--temperature", "0"]);
    assert_eq!(sample("2", &["--temperature", "0"]), greedy);
    assert_eq!(sample("3", &["--top-k", "1"]), greedy);
}

#[test]
fn sample_prints_the_same_text_with_and_without_json() {
    let sandbox = Sandbox::with_run("op");
    // Hot enough that bytes come which are no text; these must be shown as well, in the end.
    for seed in ["1", "2", "3", "4", "5", "6"] {
        let args = [
            "sample",
            "run",
            "--prompt",
            "let ",
            "--max-tokens",
            "12",
            "--temperature",
            "50",
            "--top-p",
            "1",
        ];
        let args = [&args[..], &["--seed", seed]].concat();
        let report = sandbox.json(&args);
        let expected = [
            "schema",
            "prompt",
            "text",
            "tokens",
            "samples",
            "kv_cache",
            "cache_bytes",
            "prefill_tokens_per_second",
            "decode_tokens_per_second",
        ];
        assert_eq!(keys(&report), expected.into());
        assert_eq!(sandbox.ok(&args), format!("let {}\n", report["text"].as_str().unwrap()));
    }
}

#[test]
fn samples_are_drawn_at_once_from_a_cache_of_any_kind() {
    let sandbox = Sandbox::with_run("op");
    let args = ["sample", "run", "--prompt", "let ", "--max-tokens", "20", "--seed", "1"];
    let one = sandbox.json(&args);
    let three = sandbox.json(&[&args[..], &["--samples", "3"]].concat());
    let samples = three["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    assert_eq!((&three["text"], &three["tokens"]), (&one["text"], &one["tokens"]));
    assert_eq!(samples[0]["text"], one["text"]);
    assert!(number(&three["decode_tokens_per_second"]) > 0.0);
    assert_eq!(number(&three["cache_bytes"]), 3.0 * number(&one["cache_bytes"]));
    let text = |i: usize| format!("let {}", samples[i]["text"].as_str().unwrap());
    let plain = sandbox.ok(&[&args[..], &["--samples", "3"]].concat());
    assert_eq!(plain, format!("{}\n\n{}\n\n{}\n", text(0), text(1), text(2)));
    for (kind, share) in [("bf16", 0.5), ("int8", 0.5)] {
        let report = sandbox.json(&[&args[..], &["--kv-cache", kind]].concat());
        assert_eq!(report["kv_cache"], kind);
        assert!(number(&report["cache_bytes"]) <= share * number(&one["cache_bytes"]));
    }
    let spoken = sandbox.run(&args, 0);
    assert!(String::from_utf8_lossy(&spoken.stderr).contains("tokens/s"));
    let quiet = sandbox.run(&[&args[..], &["--quiet"]].concat(), 0);
    assert!(quiet.stderr.is_empty());
}
