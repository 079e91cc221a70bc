//! Making data, training, configurations, and what holds for every command, when all is well.

mod common;

use common::{IMAGE_PRESETS, PRESETS, Sandbox, close, keys, lossy, number, tensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

#[test]
fn tokenize_and_inspect_agree() {
    let sandbox = Sandbox::new();
    sandbox.corpus("corpus", 40);
    for (how, vocab) in [(&["--bytes"][..], 257), (&["--train-bpe", "300"], 300)] {
        let args = [&["data", "tokenize", "corpus", "--out", "data", "--force"], how].concat();
        let made = sandbox.json(&args);
        let mut inspected = sandbox.json(&["data", "inspect", "data"]);
        // How much of the text is shown is not part of the bargain.
        for key in ["sample", "sample_ids"] {
            inspected[key] = made[key].clone();
        }
        assert_eq!(inspected, made);
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
    let expected = ["schema", "dir", "status", "reason", "step", "train_loss", "val_loss", "tokens_per_sec"];
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
fn a_dry_run_prints_json_when_asked() {
    let sandbox = Sandbox::with_run("op");
    sandbox.json(&["train", "tiny.toml", "--dry-run"]);
    sandbox.json(&["data", "tokenize", "corpus", "--bytes", "--out", "dry", "--dry-run"]);
    sandbox.json(&["quantize", "run", "--data", "data", "--dry-run"]);
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
fn every_preset_is_shown_in_a_form_that_can_be_read_back() {
    let sandbox = Sandbox::new();
    let list = sandbox.json(&["config", "list"]);
    let names: Vec<&str> =
        list["presets"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&PRESETS[..], &IMAGE_PRESETS[..]].concat());
    let plain = sandbox.ok(&["config", "list"]);
    for preset in names {
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
    assert!(
        ["portable", "neon", "avx2", "avx512", "amx"].contains(&report["isa"]["active"].as_str().unwrap()),
        "{report}"
    );
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
#[cfg(target_os = "linux")]
fn names_that_are_not_unicode_are_no_obstacle() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::with_data();
    let odd = std::ffi::OsStr::from_bytes(b"run-\xff");
    for (variable, out) in [(Some(odd), "plain".as_ref()), (None, odd)] {
        let mut command = sandbox.command(&["train", "tiny.toml", "--set", "train.steps=2", "--out"]);
        command.arg(out).envs(variable.map(|value| ("ODD", value)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{out:?}: {}", lossy(&output.stderr));
    }
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
    assert_eq!(lossy(&output.stdout).lines().count(), 3, "{}", lossy(&output.stdout));
    assert!(lossy(&output.stderr).contains("step 50/50"), "{}", lossy(&output.stderr));
    assert!(!lossy(&output.stderr).contains('\u{1b}'), "colour or a bar where there is no terminal");
    let output = sandbox.run(&["train", "tiny.toml", "--out", "quiet", "--quiet"], 0);
    assert_eq!(lossy(&output.stderr), "");
    let output = sandbox.run(&["data", "inspect", "nowhere", "--color", "always"], 2);
    assert!(lossy(&output.stderr).contains('\u{1b}'));
    let output = sandbox.run(&["data", "inspect", "nowhere", "--color", "never"], 2);
    assert!(!lossy(&output.stderr).contains('\u{1b}'));
}
