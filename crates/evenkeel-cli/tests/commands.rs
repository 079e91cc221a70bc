//! What the commands print and write when all is well.

mod common;

use common::{Sandbox, lossy, tensors, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

const PRESETS: [&str; 4] = ["pre_ln", "pre_rms", "op", "op_paper"];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * a.abs().max(b.abs()).max(1e-12)
}

#[test]
fn tokenize_and_inspect_agree() {
    let sandbox = Sandbox::new();
    sandbox.corpus("corpus", 40);
    for (how, vocab) in [(&["--bytes"][..], 257), (&["--train-bpe", "300"], 300)] {
        let args = [&["data", "tokenize", "corpus", "--out", "data", "--force"], how].concat();
        let made = sandbox.json(&args);
        assert_eq!(sandbox.json(&["data", "inspect", "data"]), made);
        assert_eq!(made["vocab"], vocab);
        assert_eq!(number(&made["train"]["documents"]) + number(&made["val"]["documents"]), 40.0);
        assert_eq!(made["source"]["files"], 40);
        let tokens = number(&made["train"]["tokens"]) + number(&made["val"]["tokens"]);
        let bytes = number(&made["source"]["bytes"]);
        assert!(close(number(&made["bytes_per_token"]), bytes / tokens, 1e-9));
        if vocab == 257 {
            assert_eq!(tokens, bytes + 40.0, "one id per byte and a separator per document");
            assert_eq!(made["separator"], 256);
        } else {
            assert!(tokens < 0.7 * bytes, "BPE does not compress: {tokens} of {bytes}");
        }
        let sample = made["sample"].as_str().unwrap();
        assert!(made["sample_ids"].as_array().unwrap().iter().all(|id| number(id) < f64::from(vocab)));
        assert!(sandbox.files().values().any(|f| String::from_utf8_lossy(f).contains(sample)), "{sample}");
        let plain = sandbox.ok(&["data", "inspect", "data"]);
        assert!(plain.contains(&format!("vocabulary {vocab}")), "{plain}");
    }
}

#[test]
fn tokenizing_twice_gives_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.corpus("corpus", 10);
    for (out, threads) in [("a", "1"), ("b", "2")] {
        sandbox.ok(&["data", "tokenize", "corpus", "--train-bpe", "300", "--out", out, "--threads", threads]);
    }
    for file in ["train_000000.bin", "val_000000.bin", "tokenizer.json", "data.json"] {
        assert!(sandbox.bytes(&format!("a/{file}")) == sandbox.bytes(&format!("b/{file}")), "{file} differs");
    }
    sandbox.ok(&["data", "tokenize", "corpus", "--tokenizer", "a/tokenizer.json", "--out", "c"]);
    assert!(sandbox.bytes("c/train_000000.bin") == sandbox.bytes("a/train_000000.bin"));
}

#[test]
fn a_shard_header_is_that_of_llm_c() {
    let sandbox = Sandbox::with_data();
    let bytes = sandbox.bytes("data/train_000000.bin");
    let header: Vec<i32> = bytes[..12].chunks(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(header[..2], [20240520, 1]);
    assert_eq!(bytes.len(), 1024 + 2 * header[2] as usize);
    let made = sandbox.json(&["data", "inspect", "data"]);
    assert_eq!(made["train"]["tokens"], header[2]);
}

#[test]
fn a_configuration_may_name_a_shard() {
    let sandbox = Sandbox::with_data();
    let report = sandbox.json(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--set",
        "data.path=data/train_000000.bin",
        "--set",
        "data.val_path=data/val_000000.bin",
        "--set",
        "model.vocab=257",
        "--set",
        "train.steps=3",
    ]);
    assert!(number(&report["val_loss"]) > 0.0);
}

#[test]
fn train_reports_and_leaves_a_run_directory() {
    let sandbox = Sandbox::with_data();
    let report = sandbox.json(&["train", "tiny.toml", "--out", "run", "--seed", "7"]);
    let expected =
        ["schema", "dir", "status", "reason", "step", "train_loss", "val_loss", "tokens_per_sec"];
    assert_eq!(keys(&report), expected.into());
    assert_eq!((report["status"].as_str(), report["step"].as_u64()), (Some("finished"), Some(50)));
    assert!(number(&report["val_loss"]) < 4.5, "nothing was learnt: {report}");
    assert!(number(&report["tokens_per_sec"]) > 0.0);

    assert_eq!(sandbox.read("run/config.toml"), sandbox.read("tiny.toml"));
    assert!(sandbox.read("run/resolved.toml").contains("seed = 7"));
    assert_eq!(sandbox.read("run/checkpoints/latest"), "step-000050");
    for file in ["model.safetensors", "config.json", "tokenizer.json", "optim.safetensors", "state.json"] {
        assert!(sandbox.path(&format!("run/checkpoints/step-000050/{file}")).is_file(), "{file}");
    }
    let info: Value = serde_json::from_str(&sandbox.read("run/run.json")).unwrap();
    assert_eq!((info["status"].as_str(), info["step"].as_u64()), (Some("finished"), Some(50)));
    assert!(info["argv"].as_array().unwrap().contains(&json!("--seed")));
    let log = sandbox.lines("run/metrics.jsonl");
    assert_eq!(log.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 10, 20, 30, 40, 50]);
    assert_eq!(log.last().unwrap()["tokens"], 50 * 8 * 32);
    assert_eq!(log.last().unwrap()["val/loss"], report["val_loss"]);
    let sites: BTreeSet<String> =
        sandbox.lines("run/stats.jsonl").iter().map(|l| l["site"].as_str().unwrap().to_string()).collect();
    assert_eq!(sites, ["blocks.0.resid", "blocks.1.resid", "embed"].map(String::from).into());
}

#[test]
fn weights_carry_the_metadata_of_a_hugging_face_folder() {
    let sandbox = Sandbox::with_run("op");
    let bytes = sandbox.bytes("run/checkpoints/step-000050/model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["__metadata__"]["format"], "pt");
    let config: Value =
        serde_json::from_str(&sandbox.read("run/checkpoints/step-000050/config.json")).unwrap();
    assert!(config["architectures"].is_array() && config["model_type"].is_string());
}

#[test]
fn a_dry_run_writes_nothing_and_counts_right() {
    let sandbox = Sandbox::with_data();
    for preset in PRESETS {
        sandbox.config("tiny.toml", preset, "soap");
        let before = sandbox.files();
        let plan = sandbox.json(&["train", "tiny.toml", "--out", "dry", "--dry-run"])["plan"].clone();
        let plain = sandbox.ok(&["train", "tiny.toml", "--out", "dry", "--dry-run"]);
        assert!(sandbox.files() == before, "a dry run wrote something");
        for word in ["parameters", "steps", "tokens", "weights", "gradients", "optimizer", "activations"] {
            assert!(plain.contains(word), "{plain}");
        }
        sandbox.ok(&["train", "tiny.toml", "--out", preset, "--set", "train.steps=2"]);
        let weights = tensors(&sandbox.path(&format!("{preset}/checkpoints/step-000002/model.safetensors")));
        let count: usize = weights.values().map(|(_, values)| values.len()).sum();
        assert_eq!(plan["parameters"], count, "{preset}");
        assert_eq!(number(&plan["weights_bytes"]), 4.0 * count as f64);
        assert_eq!(plan["tokens"], 50 * 8 * 32);
        let inspected = sandbox.json(&["inspect", preset, "--data", "data", "--tokens", "64"]);
        assert_eq!(inspected["model"]["parameters"], count, "{preset}");
    }
    let before = sandbox.files();
    sandbox.ok(&["data", "tokenize", "corpus", "--bytes", "--out", "dry", "--dry-run"]);
    sandbox.ok(&["quantize", "op", "--data", "data", "--dry-run"]);
    sandbox.ok(&["inspect", "op", "--data", "data", "--tokens", "64", "--dump", "dump", "--dry-run"]);
    assert!(sandbox.files() == before, "a dry run wrote something");
}

#[test]
fn force_replaces_a_run_and_nothing_else() {
    let sandbox = Sandbox::with_run("op");
    sandbox.write("run/notes.txt", "mine");
    sandbox.ok(&["train", "tiny.toml", "--out", "run", "--force", "--set", "train.steps=3"]);
    assert!(!sandbox.path("run/checkpoints/step-000050").exists());
    assert!(sandbox.path("run/checkpoints/step-000003").exists());
    assert_eq!(sandbox.read("run/notes.txt"), "mine");
}

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
    let rows: Vec<Vec<u32>> = (0..3u32).map(|s| (0..20).map(|t| (s * 31 + t * t * 7 + 40) % 257).collect()).collect();
    sandbox.write("ids.json", serde_json::to_string(&rows).unwrap());
    for preset in PRESETS {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        let report = sandbox.json(&["inspect", preset, "--ids", "ids.json", "--dump", "dump.safetensors"]);
        assert_eq!(report["tokens"], 60);
        assert_eq!((report["model"]["depth"].as_u64(), report["model"]["width"].as_u64()), (Some(2), Some(32)));
        assert_eq!(report["model"]["architecture"], preset);
        let dump = tensors(&sandbox.path("dump.safetensors"));
        let sites = report["sites"].as_array().unwrap();
        let names: BTreeSet<&str> = sites.iter().map(|s| s["site"].as_str().unwrap()).collect();
        assert_eq!(names, dump.keys().map(String::as_str).collect(), "{preset}");
        let stream = ["embed", "blocks.0.attn.in", "blocks.0.resid_mid", "blocks.1.mlp.hidden", "blocks.1.resid"];
        assert!(stream.iter().chain(&["final_norm", "logits"]).all(|s| names.contains(s)), "{names:?}");
        let mut kurtosis_of_stream = Vec::new();
        for site in sites {
            let name = site["site"].as_str().unwrap();
            let (shape, values) = &dump[name];
            assert_eq!(shape[..2], [3, 20], "{name}");
            let (kurtosis, mmr, rms, max_abs) = figures(values, shape[2]);
            for (key, ours) in [("kurtosis", kurtosis), ("mmr", mmr), ("rms", rms), ("max_abs", max_abs)] {
                assert!(close(number(&site[key]), ours, 1e-5), "{preset} {name} {key}: {} and {ours}", site[key]);
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
    run(&["kurtosis=1e6", "mmr=1e6", "rms=1e6", "max_abs=1e6"], 0);
    let output = run(&["kurtosis=1e6", "rms=0.0001"], 1);
    assert!(lossy(&output.stderr).contains("rms of embed is above 0.0001"), "{}", lossy(&output.stderr));
    assert!(lossy(&output.stdout).contains("residual stream"), "the result is printed all the same");
}

#[test]
fn quantize_reports_every_quantiser() {
    let sandbox = Sandbox::with_data();
    for (preset, weights, activations) in [("pre_ln", 8 * 2 + 3, 13 * 2 + 2), ("op", 0, 13 * 2 + 2)] {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        let args = ["quantize", preset, "--scheme", "w8a8", "--data", "data", "--calib-batches", "2"];
        let report = sandbox.json(&args);
        assert_eq!(keys(&report), ["schema", "scheme", "float", "quantized", "sites", "summary"].into());
        assert_eq!(keys(&report["float"]), ["perplexity", "bytes"].into());
        assert_eq!(keys(&report["quantized"]), ["perplexity", "bytes", "kl", "top1_agreement"].into());
        let summary = &report["summary"];
        assert_eq!((summary["calib_batches"].as_u64(), summary["calib_tokens"].as_u64()), (Some(2), Some(2 * 8 * 32)));
        assert_eq!(summary["activation_quantisers"], activations, "{preset}");
        if weights > 0 {
            assert_eq!(summary["weight_quantisers"], weights, "{preset}");
        }
        let sites = report["sites"].as_array().unwrap();
        assert_eq!(sites.len() as u64, summary["weight_quantisers"].as_u64().unwrap() + activations);
        for site in sites {
            let expected = ["site", "bits", "scale", "zero_point", "lo", "hi", "error"];
            assert_eq!(keys(site), expected.into());
            assert_eq!(site["bits"], 8);
            assert!(number(&site["lo"]) <= number(&site["hi"]) && number(&site["scale"]) > 0.0, "{site}");
            assert!((0.0..0.5).contains(&number(&site["error"])), "{site}");
        }
        let float = number(&report["float"]["perplexity"]);
        let evaluated = number(&sandbox.json(&["eval", preset, "--data", "data"])["perplexity"]);
        assert!(close(float, evaluated, 1e-5), "{float} by quantize, {evaluated} by eval");
        assert!(close(number(&report["quantized"]["perplexity"]), float, 0.2), "{report}");
        assert!(number(&report["quantized"]["bytes"]) < 0.6 * number(&report["float"]["bytes"]));
        assert!(number(&report["quantized"]["top1_agreement"]) > 0.7);
        assert!((0.0..0.5).contains(&number(&report["quantized"]["kl"])));
        assert_eq!(sandbox.json(&args), report, "a second time gives the same figures");
    }
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
        let args = ["sample", "run", "--prompt", "let ", "--max-tokens", "12", "--temperature", "50", "--top-p", "1"];
        let args = [&args[..], &["--seed", seed]].concat();
        let report = sandbox.json(&args);
        assert_eq!(keys(&report), ["schema", "prompt", "text", "tokens"].into());
        assert_eq!(sandbox.ok(&args), format!("let {}\n", report["text"].as_str().unwrap()));
    }
}

#[test]
fn every_preset_is_shown_in_a_form_that_can_be_read_back() {
    let sandbox = Sandbox::new();
    let list = sandbox.json(&["config", "list"]);
    let names: Vec<&str> = list["presets"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, PRESETS);
    let plain = sandbox.ok(&["config", "list"]);
    for preset in PRESETS {
        assert!(plain.contains(preset));
        for optimizer in ["optim.name=adamw", "optim.name=soap"] {
            let shown = sandbox.ok(&["config", "show", preset, "--set", optimizer]);
            sandbox.write("shown.toml", &shown);
            let checked = sandbox.ok(&["config", "check", "shown.toml"]);
            assert_eq!(checked, "shown.toml is a valid configuration\n");
            let of_file = sandbox.json(&["config", "check", "shown.toml"]);
            assert_eq!(of_file, sandbox.json(&["config", "show", preset, "--set", optimizer]));
        }
    }
}

#[test]
fn flag_beats_set_beats_environment_beats_file_beats_preset() {
    let sandbox = Sandbox::new();
    sandbox.write("c.toml", "[model]\npreset = \"op\"\n[optim]\nlr_peak = 0.125\n[train]\nseed = 1\n");
    let check = |environment: &[(&str, &str)], more: &[&str]| -> Value {
        let args = [&["config", "check", "c.toml", "--json"], more].concat();
        let mut command = sandbox.command(&args);
        command.envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["config"].clone()
    };
    assert_eq!(check(&[], &[])["model"]["norm"], "none");
    assert_eq!(check(&[], &[])["optim"]["lr_peak"], 0.125);
    let environment = [("EVENKEEL_SET_OPTIM__LR_PEAK", "0.25"), ("EVENKEEL_SET_TRAIN__SEED", "2")];
    assert_eq!(check(&environment, &[])["optim"]["lr_peak"], 0.25);
    assert_eq!(check(&environment, &["--set", "optim.lr_peak=0.5"])["optim"]["lr_peak"], 0.5);
    assert_eq!(check(&environment, &[])["train"]["seed"], 2);
    assert_eq!(check(&environment, &["--set", "train.seed=3", "--seed", "4"])["train"]["seed"], 4);
    assert_eq!(check(&[], &["--set", "model.preset=pre_ln"])["model"]["norm"], "layer");

    let mut command = sandbox.command(&["config", "check", "c.toml"]);
    let output = command.env("EVENKEEL_SET_OPTIM__LR_PEEK", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(lossy(&output.stderr).contains("`optim.lr_peak`"), "{}", lossy(&output.stderr));
}

#[test]
fn doctor_knows_the_machine() {
    let sandbox = Sandbox::new();
    let report = sandbox.json(&["doctor", "--threads", "3"]);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["threads"], 3);
    assert!(number(&report["cores"]) >= 1.0);
    assert!(["portable", "avx2", "avx512"].contains(&report["isa"]["active"].as_str().unwrap()), "{report}");
    assert!(sandbox.ok(&["doctor"]).starts_with(&format!("evenkeel {}", env!("CARGO_PKG_VERSION"))));
    let output = sandbox.command(&["doctor"]).env("EVENKEEL_ISA", "mmx").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(lossy(&output.stderr).contains("EVENKEEL_ISA=mmx"), "{}", lossy(&output.stderr));
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let sandbox = Sandbox::new();
    for args in [&["config", "show", "op"][..], &["config", "list"], &["--help"], &["doctor", "--json"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(args)
            .current_dir(sandbox.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The reader goes away before the program has come as far as printing.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), lossy(&output.stderr)), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_no_success() {
    let sandbox = Sandbox::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["config", "show", "op"])
        .current_dir(sandbox.path(""))
        .stdout(full)
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0), "the result was lost");
}

#[test]
fn every_command_explains_itself() {
    let sandbox = Sandbox::new();
    for command in [
        &[][..],
        &["quickstart"],
        &["data"],
        &["data", "tokenize"],
        &["data", "inspect"],
        &["train"],
        &["eval"],
        &["inspect"],
        &["quantize"],
        &["sample"],
        &["doctor"],
        &["config"],
        &["config", "list"],
        &["config", "show"],
        &["config", "check"],
    ] {
        let help = sandbox.ok(&[command, &["--help"]].concat());
        assert!(help.contains("Usage: evenkeel"), "{help}");
        assert!(help.contains("--threads"), "{help}");
        let short = sandbox.ok(&[command, &["-h"]].concat());
        assert!(short.contains("Usage: evenkeel"), "{short}");
    }
    assert_eq!(sandbox.ok(&["--version"]), format!("evenkeel {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn stdout_holds_the_result_alone_and_quiet_silences_stderr() {
    let sandbox = Sandbox::with_data();
    let output = sandbox.run(&["train", "tiny.toml", "--out", "loud"], 0);
    assert_eq!(lossy(&output.stdout).lines().count(), 2, "{}", lossy(&output.stdout));
    assert!(lossy(&output.stderr).contains("step 50/50"), "{}", lossy(&output.stderr));
    assert!(!lossy(&output.stderr).contains('\u{1b}'), "colour or a bar where there is no terminal");
    let output = sandbox.run(&["train", "tiny.toml", "--out", "quiet", "--quiet"], 0);
    assert_eq!(lossy(&output.stderr), "");
    let output = sandbox.run(&["data", "inspect", "nowhere", "--color", "always"], 2);
    assert!(lossy(&output.stderr).contains('\u{1b}'));
    let output = sandbox.run(&["data", "inspect", "nowhere", "--color", "never"], 2);
    assert!(!lossy(&output.stderr).contains('\u{1b}'));
}
