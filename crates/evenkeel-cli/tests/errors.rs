//! Every way to be refused: exit code 2, nothing on stdout, one sentence and a hint on stderr.
//!
//! The sentences are snapshots, one file for each area, so that they can be read from top to bottom as a user
//! would meet them. `INSTA_UPDATE=always cargo test` rewrites them; read the difference before committing it.

mod common;

use common::{Sandbox, text};
use std::fmt::Write;

/// Refusals in the order they were provoked.
struct Cases<'a> {
    sandbox: &'a Sandbox,
    shown: String,
}

impl<'a> Cases<'a> {
    fn of(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, shown: String::new() }
    }

    fn refused(&mut self, args: &[&str]) {
        let stderr = self.sandbox.refused(args);
        let args: Vec<String> =
            args.iter().map(|a| if a.is_empty() { "''".to_string() } else { a.to_string() }).collect();
        writeln!(self.shown, "$ evenkeel {}\n{stderr}", args.join(" ")).unwrap();
    }
}

macro_rules! snapshot {
    ($cases:expr) => {
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!($cases.shown);
        })
    };
}

#[test]
fn usage() {
    let sandbox = Sandbox::new();
    let mut cases = Cases::of(&sandbox);
    for args in [
        &[][..],
        &["data"],
        &["trian", "tiny.toml"],
        &["train"],
        &["data", "tokenize", "--out", "data"],
        &["data", "tokenize", "corpus"],
        &["train", "tiny.toml", "--resum"],
        &["train", "tiny.toml", "--resume"],
        &["eval", "run"],
        &["eval", "run", "--data", "data", "--text", "x.txt"],
        &["data", "tokenize", "corpus", "--out", "data", "--bytes", "--train-bpe", "300"],
        &["doctor", "--device", "cuda"],
        &["doctor", "--threads", "0"],
        &["doctor", "--threads", "many"],
        &["doctor", "--color", "sometimes"],
        &["doctor", "--quiet", "--verbose"],
        &["doctor", "--set", "novalue"],
        &["doctor", "--set", "=3"],
    ] {
        cases.refused(args);
    }
    snapshot!(cases);
}

#[test]
fn configuration() {
    let sandbox = Sandbox::new();
    sandbox.write("typo.toml", "[optim]\nlr_peek = 1e-3\n");
    sandbox.write("foreign.toml", "[model]\nzzz = 1\n");
    sandbox.write("section.toml", "[modle]\ndepth = 2\n");
    sandbox.write("type.toml", "[model]\ndepth = \"two\"\n");
    sandbox.write("bad.toml", "[model\ndepth = 2\n");
    sandbox.write("latin.toml", b"[data]\npath = \"caf\xe9\"\n");
    sandbox.write("optimizer.toml", "[optim]\nname = \"adam\"\n");
    sandbox.write("soap-key.toml", "[optim]\nname = \"adamw\"\nprecondition_frequency = 5\n");
    sandbox.write("fine.toml", "[model]\npreset = \"pre_ln\"\n");
    let mut cases = Cases::of(&sandbox);
    for file in ["typo", "foreign", "section", "type", "bad", "latin", "optimizer", "soap-key", "missing"] {
        cases.refused(&["config", "check", &format!("{file}.toml")]);
    }
    cases.refused(&["config", "check", "."]);
    cases.refused(&["config", "show", "opp"]);
    for set in [
        "model.dept=3",
        "train=3",
        "train.steps=0",
        "train.steps=2.5",
        "train.steps=-1",
        "train.precision=fp8",
        "train.recompute=attention",
        "train.batch_sequences=0",
        "train.micro_batch_sequences=33",
        "train.log_every_steps=0",
        "train.checkpoint_keep=0",
        "optim.lr_peak=0",
        "optim.lr_peak=nan",
        "optim.beta1=1",
        "optim.eps=-1",
        "optim.warmup_fraction=2",
        "optim.schedule=zigzag",
        "optim.group=3",
        "telemetry.sites=[\"blocks.{\"]",
        "model.norm=lyer",
        "model.init=normal(x)",
        "model.beta=true",
        "model.width=0",
        "model.heads=3",
        "model.norm_eps=-1",
        "model.biases=[\"q\", \"z\"]",
    ] {
        cases.refused(&["config", "check", "fine.toml", "--set", set]);
    }
    cases.refused(&[
        "config",
        "check",
        "fine.toml",
        "--set",
        "model.norm=none",
        "--set",
        "model.norm_position=post",
    ]);
    cases.refused(&["config", "check", "fine.toml", "--seed", "18446744073709551615"]);
    snapshot!(cases);
}

#[test]
fn benchmarks() {
    let sandbox = Sandbox::new();
    sandbox.write("occupied", "a file\n");
    let mut cases = Cases::of(&sandbox);
    for args in [
        &["bench"][..],
        &["bench", "gemms"],
        &["bench", "step", "--heads", "5"],
        &["bench", "step", "--heads", "0"],
        &["bench", "step", "--width", "0"],
        &["bench", "step", "--depth", "0"],
        &["bench", "step", "--vocab", "0"],
        &["bench", "step", "--context", "0"],
        &["bench", "step", "--sequences", "0"],
        &["bench", "step", "--steps", "0"],
        &["bench", "step", "--precision", "fp8"],
        &["bench", "step", "--optimizer", "lion"],
        &["bench", "step", "--recompute", "attention"],
        &["bench", "step", "--width", "99999999999999999999"],
        &["bench", "gemm", "--precision", "f32,int8"],
        &["bench", "gemm", "--rounds", "0"],
        &["bench", "gemm", "--width", "0"],
        &["bench", "ops", "--rounds", "0"],
        &["bench", "ops", "--heads", "7"],
        &["bench", "scale", "--width", "0"],
        &["bench", "scale", "--width", "100"],
        &["bench", "scale", "--depth", ","],
        &["bench", "scale", "--steps", "0"],
        &["bench", "step", "--profile", "--out", "occupied"],
    ] {
        cases.refused(args);
    }
    snapshot!(cases);
}

#[test]
fn making_data() {
    let sandbox = Sandbox::new();
    sandbox.corpus("corpus", 2);
    sandbox.write("empty.txt", "");
    sandbox.write("folder-of-empty/a.txt", "");
    sandbox.write("binary.dat", [0u8, 1, 2, 3, 0xff, 0]);
    sandbox.write("folder-of-binary/a.dat", [0u8, 1, 2, 3, 0xff, 0]);
    sandbox.write("latin.txt", b"na\xefve caf\xe9\n");
    sandbox.write("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"not");
    sandbox.write("other-key.jsonl", "{\"content\": \"fine\"}\n");
    sandbox.write("number.jsonl", "{\"text\": 3}\n");
    sandbox.write("list.jsonl", "[1, 2]\n");
    sandbox.write("tokenizer.json", "not JSON at all");
    sandbox.write("list.json", "[]");
    sandbox.write("occupied/notes.txt", "mine");
    std::fs::create_dir(sandbox.path("folder-of-nothing")).unwrap();
    let mut cases = Cases::of(&sandbox);
    for input in [
        "nowhere",
        "folder-of-nothing",
        "empty.txt",
        "folder-of-empty",
        "binary.dat",
        "folder-of-binary",
        "latin.txt",
        "broken.jsonl",
        "other-key.jsonl",
        "number.jsonl",
        "list.jsonl",
    ] {
        cases.refused(&["data", "tokenize", input, "--bytes", "--out", "data"]);
    }
    for options in [
        &["--train-bpe", "100", "--out", "data"][..],
        &["--tokenizer", "tokenizer.json", "--out", "data"],
        &["--tokenizer", "list.json", "--out", "data"],
        &["--tokenizer", "nowhere.json", "--out", "data"],
        &["--bytes", "--glob", "*.rs", "--out", "data"],
        &["--bytes", "--glob", "{a", "--out", "data"],
        &["--bytes", "--val-fraction", "1", "--out", "data"],
        &["--bytes", "--val", "nowhere.txt", "--out", "data"],
        &["--bytes", "--val", "corpus/part-00.txt", "--val", "corpus/part-01.txt", "--out", "data"],
        &["--bytes", "--out", "occupied"],
        &["--bytes", "--out", "empty.txt"],
    ] {
        cases.refused(&[&["data", "tokenize", "corpus"][..], options].concat());
    }
    assert!(!sandbox.path("data").exists(), "a refused tokenize left a data folder");
    assert_eq!(sandbox.read("occupied/notes.txt"), "mine");
    snapshot!(cases);
}

#[test]
fn reading_data() {
    let sandbox = Sandbox::with_data();
    let shard = "train_000000.bin";
    let bytes = sandbox.bytes(&format!("data/{shard}"));
    let damaged = |name: &str, bytes: &[u8]| {
        for file in ["val_000000.bin", "data.json", "tokenizer.json"] {
            sandbox.copy(&format!("data/{file}"), &format!("{name}/{file}"));
        }
        sandbox.write(&format!("{name}/{shard}"), bytes);
    };
    damaged("truncated", &bytes[..bytes.len() - 11]);
    damaged("trailing", &[&bytes[..], &[0, 0]].concat());
    damaged("short", &bytes[..100]);
    let with = |at: usize, value: i32| {
        let mut bytes = bytes.clone();
        bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    damaged("magic", &with(0, 12345));
    damaged("byte-order", &with(0, 20240520i32.swap_bytes()));
    damaged("version", &with(1, 3));
    damaged("count", &with(2, -1));
    damaged("counts-differ", &[&with(2, 100)[..1024], &bytes[1024..1224]].concat());
    damaged("json-list", &bytes);
    sandbox.write("json-list/data.json", "[]");
    std::fs::create_dir(sandbox.path("no-shards")).unwrap();
    let mut cases = Cases::of(&sandbox);
    for folder in [
        "nowhere",
        "no-shards",
        "truncated",
        "trailing",
        "short",
        "magic",
        "byte-order",
        "version",
        "count",
        "counts-differ",
        "json-list",
        "tiny.toml",
    ] {
        cases.refused(&["data", "inspect", folder]);
    }
    snapshot!(cases);
}

#[test]
fn training() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.write("tiny.txt", "too short");
    sandbox.ok(&["data", "tokenize", "tiny.txt", "--bytes", "--out", "short-data"]);
    sandbox.write("no-data.toml", "[train]\nsteps = 5\n");
    let mut cases = Cases::of(&sandbox);
    cases.refused(&["train", "nowhere.toml", "--out", "new"]);
    cases.refused(&["train", "no-data.toml", "--out", "new"]);
    for set in [
        "data.path=nowhere",
        "data.path=short-data",
        "model.vocab=100",
        "model.heads=5",
        "model.init_from=nowhere",
        "model.norm_position=post",
    ] {
        let and = if set.ends_with("post") { "model.norm=none" } else { "train.steps=3" };
        let folder = format!("new-{set}");
        cases.refused(&["train", "tiny.toml", "--out", &folder, "--set", set, "--set", and]);
    }
    cases.refused(&[
        "train",
        "tiny.toml",
        "--out",
        "wide",
        "--set",
        "model.init_from=run",
        "--set",
        "model.width=64",
    ]);
    cases.refused(&["train", "tiny.toml", "--out", "run"]);
    cases.refused(&["train", "tiny.toml", "--out", "tiny.txt"]);
    cases.refused(&["train", "tiny.toml", "--out", "run", "--resume", "--set", "optim.lr_peak=1e-4"]);
    cases.refused(&["train", "tiny.toml", "--out", "run", "--resume", "--set", "model.width=64"]);
    cases.refused(&["train", "tiny.toml", "--dry-run", "--set", "model.heads=5"]);
    cases.refused(&["quickstart", "--corpus", "nowhere", "--out", "quick"]);
    snapshot!(cases);
}

#[test]
fn models() {
    let sandbox = Sandbox::with_run("pre_ln");
    let checkpoint = "run/checkpoints/step-000050";
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    for name in ["cut", "no-weights", "list", "bert", "not-json", "no-sizes", "wider", "deeper"] {
        for file in ["config.json", "model.safetensors"] {
            sandbox.copy(&format!("{checkpoint}/{file}"), &format!("{name}/{file}"));
        }
    }
    let weights = sandbox.bytes("cut/model.safetensors");
    sandbox.write("cut/model.safetensors", &weights[..weights.len() / 2]);
    std::fs::remove_file(sandbox.path("no-weights/model.safetensors")).unwrap();
    sandbox.write("list/config.json", "[]");
    sandbox.write("bert/config.json", "{\"model_type\": \"bert\"}");
    sandbox.write("not-json/config.json", "{");
    sandbox.write(
        "no-sizes/config.json",
        "{\"model_type\": \"evenkeel\", \"architectures\": [], \"model\": {\"preset\": \"op\"}}",
    );
    let config = sandbox.read("wider/config.json");
    sandbox.write("wider/config.json", config.replace("\"width\": 32", "\"width\": 48"));
    sandbox.write("deeper/config.json", config.replace("\"depth\": 2", "\"depth\": 3"));
    let mut cases = Cases::of(&sandbox);
    for model in [
        "nowhere",
        "empty",
        "tiny.toml",
        "cut",
        "no-weights",
        "list",
        "bert",
        "not-json",
        "no-sizes",
        "wider",
        "deeper",
    ] {
        cases.refused(&["eval", model, "--data", "data"]);
    }
    snapshot!(cases);
}

#[test]
fn running_models() {
    let sandbox = Sandbox::with_run("pre_ln");
    let checkpoint = "run/checkpoints/step-000050";
    for file in ["config.json", "model.safetensors"] {
        sandbox.copy(&format!("{checkpoint}/{file}"), &format!("mute/{file}"));
    }
    sandbox.write("x.txt", text(99, 500));
    sandbox.write("short.txt", "short");
    sandbox.write("latin.txt", b"na\xefve caf\xe9 and a good deal more text after it\n");
    let ids = |rows: &[Vec<u32>]| serde_json::to_string(rows).unwrap();
    sandbox.write("not-json.json", "1, 2, 3");
    sandbox.write("flat.json", "[1, 2, 3]");
    sandbox.write("negative.json", "[[1, -2, 3]]");
    sandbox.write("ragged.json", "[[1, 2, 3], [4, 5]]");
    sandbox.write("none.json", "[]");
    sandbox.write("none-in-row.json", "[[]]");
    sandbox.write("one.json", "[[1], [2]]");
    sandbox.write("beyond.json", ids(&[vec![1, 2, 257]]));
    sandbox.write("long.json", ids(&[vec![7; 40]]));
    sandbox.write("good.json", ids(&[vec![1, 2, 3], vec![4, 5, 6]]));
    sandbox.corpus("more", 30);
    sandbox.ok(&["data", "tokenize", "more", "--train-bpe", "300", "--out", "bpe"]);
    let mut cases = Cases::of(&sandbox);
    for file in ["nowhere", "not-json", "flat", "negative", "ragged", "none", "none-in-row", "beyond", "long"]
    {
        cases.refused(&["inspect", "run", "--ids", &format!("{file}.json")]);
    }
    cases.refused(&["eval", "run", "--ids", "one.json"]);
    cases.refused(&["eval", "run", "--ids", "beyond.json"]);
    cases.refused(&["eval", "run", "--ids", "long.json"]);
    cases.refused(&["quantize", "run", "--ids", "one.json"]);
    cases.refused(&["quantize", "run", "--ids", "good.json", "--context", "2"]);
    cases.refused(&["quantize", "run", "--data", "data", "--calib", "nowhere"]);
    cases.refused(&["eval", "mute", "--text", "x.txt"]);
    cases.refused(&["eval", "run", "--text", "nowhere.txt"]);
    cases.refused(&["eval", "run", "--text", "short.txt"]);
    cases.refused(&["eval", "run", "--text", "latin.txt"]);
    cases.refused(&["eval", "run", "--data", "nowhere"]);
    cases.refused(&["eval", "run", "--data", "bpe"]);
    cases.refused(&["quantize", "run", "--scheme", "w5a5", "--data", "data"]);
    cases.refused(&["quantize", "run", "--calib-batches", "0", "--data", "data"]);
    for limit in ["kurtosis", "kurtosis=", "kurtosis=ten", "shape=3"] {
        cases.refused(&["inspect", "run", "--data", "data", "--fail-above", limit]);
    }
    cases.refused(&["inspect", "run", "--ids", "good.json", "--dump", "nowhere/dump.safetensors"]);
    cases.refused(&["sample", "run", "--prompt", ""]);
    cases.refused(&["sample", "run", "--prompt", "let", "--temperature=-1"]);
    cases.refused(&["sample", "run", "--prompt", "let", "--temperature", "-1"]);
    cases.refused(&["sample", "run", "--prompt", "let", "--temperature", "nan"]);
    cases.refused(&["sample", "run", "--prompt", "let", "--top-p", "0"]);
    cases.refused(&["sample", "run", "--prompt", "let", "--samples", "0"]);
    cases.refused(&["sample", "mute", "--prompt", "let"]);
    snapshot!(cases);
}

#[test]
fn a_limit_that_nothing_exceeds_is_refused() {
    let sandbox = Sandbox::with_run("pre_ln");
    let stderr = sandbox.refused(&["inspect", "run", "--data", "data", "--fail-above", "kurtosis=nan"]);
    assert!(stderr.contains("kurtosis=nan"), "{stderr}");
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_is_refused_before_anything_is_printed() {
    let sandbox = Sandbox::with_run("op");
    sandbox.ok(&["data", "tokenize", "corpus", "--train-bpe", "300", "--out", "bpe"]);
    sandbox.copy("bpe/tokenizer.json", "run/checkpoints/step-000050/tokenizer.json");
    let stderr = sandbox.refused(&["sample", "run", "--prompt", "    return width * count"]);
    assert!(stderr.contains("257"), "{stderr}");
}
