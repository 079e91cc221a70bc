//! Models that were not made here: inspected, compared, exported; and files that lie.

mod common;

use common::{Sandbox, lossy, number, tensors, text};
use serde_json::{Value, json};
use std::path::Path;

/// Copies a golden folder into the sandbox.
fn golden(sandbox: &Sandbox, case: &str, to: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf").join(case);
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        sandbox.write(&format!("{to}/{name}"), std::fs::read(&path).unwrap());
    }
}

fn ids(sandbox: &Sandbox) {
    sandbox.write("ids.json", "[[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]");
}

#[test]
fn inspect_says_where_int8_breaks_in_a_folder_of_transformers() {
    let sandbox = Sandbox::new();
    ids(&sandbox);
    for (case, architecture) in [("gpt2_1_tied", "gpt2"), ("llama_5_old", "llama"), ("bert_5_hub", "bert")] {
        golden(&sandbox, case, "model");
        let report = sandbox.json(&["inspect", "model", "--ids", "ids.json", "--dump", "dump.safetensors"]);
        assert_eq!(report["model"]["architecture"], architecture);
        let verdict = report["int8"].as_array().unwrap();
        let severity = |v: &Value| {
            (number(&v["int8_error"]) / 0.1f64.powf(1.5)).max(number(&v["int8_error_median"]) / 0.1)
        };
        let order: Vec<f64> = verdict.iter().map(severity).collect();
        assert!(order.windows(2).all(|pair| pair[0] >= pair[1]), "the worst comes first: {order:?}");
        assert_eq!(number(&report["int8_tokens"]), 12.0);
        let dump = tensors(&sandbox.path("dump.safetensors"));
        let resid = verdict.iter().find(|v| v["site"] == "blocks.0.resid").unwrap();
        let (shape, x) = &dump["blocks.0.resid"];
        check_verdict(resid, x, shape[2]);
        assert!(verdict.iter().any(|v| v["kind"] == "weight" && v["site"] == "blocks.0.mlp.up.weight"));
        assert!(verdict.iter().all(|v| v["site"] != "logits"), "the head stays in float");
        assert!(number(&report["peak_memory_bytes"]) > 1e6);
        std::fs::remove_dir_all(sandbox.path("model")).unwrap();
    }
}

/// The verdict on activations of `width` channels, from its definition in float64.
fn check_verdict(verdict: &Value, x: &[f64], width: usize) {
    let rounding = |x: &[f64]| {
        let lo = x.iter().copied().fold(0.0, f64::min);
        let hi = x.iter().copied().fold(1e-8, f64::max);
        let step = (hi - lo) / 255.0;
        let zero = (-lo / step).round_ties_even().clamp(0.0, 255.0);
        let error = |v: f64| {
            let q = ((v / step).round_ties_even() + zero).clamp(0.0, 255.0);
            (v - step * (q - zero)).powi(2)
        };
        x.iter().map(|&v| error(v)).sum::<f64>()
    };
    let energy: f64 = x.iter().map(|v| v * v).sum();
    let relative = |error: f64| (error / energy).sqrt();
    let columns: Vec<Vec<f64>> =
        (0..width).map(|c| x.iter().skip(c).step_by(width).copied().collect()).collect();
    let (lo, hi) = x.iter().fold((0.0, 1e-8), |(lo, hi): (f64, f64), &v| (lo.min(v), hi.max(v)));
    let step = (hi - lo) / 255.0;
    let zero = (-lo / step).round_ties_even().clamp(0.0, 255.0);
    let by_all = |v: f64| v - step * (((v / step).round_ties_even() + zero).clamp(0.0, 255.0) - zero);
    let median = |parts: &[Vec<f64>]| {
        let squares = |part: &[f64]| part.iter().map(|v| v * v).sum::<f64>();
        let error = |part: &Vec<f64>| part.iter().map(|&v| by_all(v).powi(2)).sum::<f64>();
        let mut within: Vec<f64> = parts.iter().map(|p| (error(p) / squares(p)).sqrt()).collect();
        within.sort_by(f64::total_cmp);
        within[(within.len() - 1) / 2]
    };
    let rows: Vec<Vec<f64>> = x.chunks(width).map(<[f64]>::to_vec).collect();
    let close = |key: &str, want: f64| {
        let got = number(&verdict[key]);
        // A value on the edge between two steps may fall either way in float32.
        assert!((got - want).abs() < 1e-3 * want + 1e-6, "{key}: {got}, not {want}");
    };
    close("int8_error", relative(rounding(x)));
    close("int8_error_token", relative(x.chunks(width).map(rounding).sum()));
    close("int8_error_channel", relative(columns.iter().map(|c| rounding(c)).sum()));
    close("int8_error_median", median(&columns).max(median(&rows)));
    close("sqnr_db", -20.0 * number(&verdict["int8_error"]).log10());
    let largest = x.iter().map(|v| v.abs()).fold(0.0, f64::max);
    assert!((number(&verdict["culprit"]["value"]).abs() - largest).abs() < 1e-6 * largest);
}

#[test]
fn images_go_through_a_model_of_images() {
    let sandbox = Sandbox::new();
    golden(&sandbox, "vit_3_oblong", "vit");
    let report = sandbox.json(&["inspect", "vit", "--pixels", "vit/expected.safetensors"]);
    let sites = report["sites"].as_array().unwrap();
    assert!(
        sites.iter().any(|s| s["site"] == "logits") && sites.iter().any(|s| s["site"] == "blocks.1.resid")
    );
    ids(&sandbox);
    let said = sandbox.refused(&["inspect", "vit", "--ids", "ids.json"]);
    assert!(said.contains("reads images") && said.contains("--pixels"), "{said}");
    golden(&sandbox, "gpt2_1_tied", "gpt2");
    let said = sandbox.refused(&["inspect", "gpt2", "--pixels", "vit/expected.safetensors"]);
    assert!(said.contains("reads token ids"), "{said}");
    let said = sandbox.refused(&["inspect", "gpt2", "--pixels", "gpt2/model.safetensors"]);
    assert!(said.contains("pixel_values"), "{said}");
}

#[test]
fn models_without_a_next_token_are_inspected_and_nothing_else() {
    let sandbox = Sandbox::new();
    golden(&sandbox, "bert_1_mlm", "bert");
    ids(&sandbox);
    sandbox.json(&["inspect", "bert", "--ids", "ids.json"]);
    for args in [
        &["eval", "bert", "--ids", "ids.json"][..],
        &["sample", "bert", "--prompt", "x"],
        &["quantize", "bert", "--text", "ids.json"],
        &["export", "bert", "--out", "out"],
    ] {
        let said = sandbox.refused(args);
        assert!(said.contains("does not predict the next token"), "{said}");
    }
    assert!(!sandbox.path("out").exists());
}

#[test]
fn revisions_are_compared_and_equal_weights_warned_about() {
    let sandbox = Sandbox::with_data();
    sandbox.ok(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--set",
        "train.checkpoint_every_steps=20",
        "--set",
        "train.checkpoint_keep=9",
    ]);
    let [a, b, c] = [20, 40, 50].map(|step| format!("run/checkpoints/step-{step:06}"));
    std::fs::create_dir_all(sandbox.path("run/copy-step-60")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        sandbox.copy(&format!("{b}/{file}"), &format!("run/copy-step-60/{file}"));
    }
    let args = ["inspect", &a, &b, &c, "run/copy-step-60", "--data", "data", "--tokens", "512"];
    let all = sandbox.json(&[&args[..], &["--report", "page"]].concat());
    let models = all["models"].as_array().unwrap();
    let steps: Vec<f64> = models.iter().map(|m| number(&m["step"])).collect();
    assert_eq!(steps, [20.0, 40.0, 50.0, 60.0]);
    assert_eq!(models[1]["digest"], models[3]["digest"]);
    assert_ne!(models[0]["digest"], models[1]["digest"]);
    let warnings = all["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].as_str().unwrap().contains("identical weights"));
    for file in ["index.html", "summary.json", "kurtosis.svg"] {
        assert!(sandbox.path(&format!("page/{file}")).is_file(), "{file}");
    }
    assert!(sandbox.read("page/index.html").contains("identical weights"));
    // A line each, and the exit says whether one is above a limit.
    let output = sandbox.run(&[&args[..], &["--fail-above", "kurtosis=1.0"]].concat(), 1);
    assert_eq!(lossy(&output.stdout).lines().filter(|l| l.contains("step-")).count(), 4);
    sandbox.run(&[&args[..], &["--fail-above", "kurtosis=1000"]].concat(), 0);
    let said = sandbox.refused(&[&args[..], &["--dump", "x.safetensors"]].concat());
    assert!(said.contains("one model"), "{said}");
    // One model has a page of its own.
    sandbox.ok(&["inspect", "run", "--data", "data", "--report", "one"]);
    let page = sandbox.read("one/index.html");
    assert!(page.contains("Where int8 breaks") && page.contains("Massive activations"));
    assert!(!page.contains("http://") || page.contains("www.w3.org"), "the page needs no network");
}

#[test]
fn limits_hold_for_the_int8_verdict_too() {
    let sandbox = Sandbox::new();
    golden(&sandbox, "gpt2_1_tied", "m");
    ids(&sandbox);
    let base = ["inspect", "m", "--ids", "ids.json", "--fail-above"];
    sandbox.run(&[&base[..], &["int8_error=0.5"]].concat(), 0);
    let output = sandbox.run(&[&base[..], &["int8_error=0.001"]].concat(), 1);
    assert!(lossy(&output.stderr).contains("int8_error of "), "{}", lossy(&output.stderr));
    let said = sandbox.refused(&[&base[..], &["int9_error=0.1"]].concat());
    assert!(said.contains("int8_error_channel"), "{said}");
}

#[test]
fn a_run_is_exported_and_read_back() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.write("x.txt", text(5, 2000));
    let said = sandbox.ok(&["export", "run", "--out", "hf"]);
    assert!(said.contains("as gpt2 to hf"), "{said}");
    let config: Value = serde_json::from_str(&sandbox.read("hf/config.json")).unwrap();
    assert_eq!(config["architectures"], json!(["GPT2LMHeadModel"]));
    assert_eq!(sandbox.bytes("hf/tokenizer.json"), sandbox.bytes("data/tokenizer.json"));
    for args in [["eval"], ["inspect"]] {
        let of = |model: &str| sandbox.json(&[&args[..], &[model, "--text", "x.txt"]].concat());
        let (mut before, mut after) = (of("run"), of("hf"));
        for report in [&mut before, &mut after] {
            // What differs is what it is called, and how much memory that took.
            report["model"] = Value::Null;
            report["peak_memory_bytes"] = Value::Null;
        }
        assert_eq!(before, after, "{args:?}");
    }
    let said = sandbox.refused(&["export", "run", "--out", "hf"]);
    assert!(said.contains("not empty") && said.contains("--force"), "{said}");
    sandbox.ok(&["export", "run", "--out", "hf", "--to", "evenkeel", "--force"]);
    assert!(sandbox.read("hf/modeling_evenkeel.py").contains("EvenkeelForCausalLM"));
    assert!(sandbox.read("hf/config.json").contains("modeling_evenkeel.EvenkeelForCausalLM"));
    sandbox.ok(&["eval", "hf", "--text", "x.txt"]);
    let said = sandbox.ok(&["export", "run", "--out", "hf", "--to", "onnx", "--force"]);
    assert!(
        said.contains("as onnx") && said.contains("onnxruntime.InferenceSession(\"hf/model.onnx\")"),
        "{said}"
    );
    let held = std::fs::read_dir(sandbox.path("hf")).unwrap().map(|e| e.unwrap().file_name());
    let mut held: Vec<String> = held.map(|name| name.to_string_lossy().into_owned()).collect();
    held.sort();
    assert_eq!(held, ["model.onnx", "tokenizer.json", "tokenizer_config.json"]);
    sandbox.ok(&["export", "run", "--out", "hf", "--to", "evenkeel", "--force"]);
    let said = sandbox.refused(&["export", "run", "--out", "data", "--force"]);
    assert!(said.contains("which this command never writes"), "{said}");
    for out in ["run", "run/checkpoints/step-000050", "hf"] {
        let said =
            sandbox.refused(&["export", if out == "hf" { "hf" } else { "run" }, "--out", out, "--force"]);
        assert!(said.contains("holds the model that is read"), "{said}");
    }
    let said = sandbox.refused(&["export", "run", "--out", "new", "--to", "llama"]);
    assert!(said.contains("as llama"), "{said}");
    sandbox.ok(&["export", "run", "--out", "new", "--dry-run"]);
    assert!(!sandbox.path("new").exists());
    let left: Vec<_> =
        sandbox.files().into_keys().filter(|p| p.to_string_lossy().contains("partial")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn names_on_the_hub_are_looked_up_in_the_cache() {
    let sandbox = Sandbox::new();
    ids(&sandbox);
    golden(
        &sandbox,
        "gpt2_1_tied",
        "hub/models--someone--tiny/snapshots/0123456789abcdef0123456789abcdef01234567",
    );
    sandbox.write("hub/models--someone--tiny/refs/main", "0123456789abcdef0123456789abcdef01234567");
    let run = |name: &str| {
        let mut command = sandbox.command(&["inspect", name, "--ids", "ids.json", "--json"]);
        command.env("HF_HUB_CACHE", sandbox.path("hub")).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let output = run("someone/tiny");
    assert_eq!(output.status.code(), Some(0), "{}", lossy(&output.stderr));
    for name in ["someone/other", "someone/tiny@step1000"] {
        let output = run(name);
        let stderr = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("cache") && stderr.contains("hint: "), "{stderr}");
    }
}

/// A safetensors file with this header and so many bytes behind it.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; bytes]);
    file
}

#[test]
fn files_that_lie_are_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    ids(&sandbox);
    golden(&sandbox, "gpt2_1_tied", "m");
    golden(&sandbox, "llama_4_linear", "sharded");
    let whole = sandbox.bytes("m/model.safetensors");
    let index = sandbox.read("sharded/model.safetensors.index.json");
    let tensor =
        |from: usize, to: usize| format!(r#"{{"dtype":"F32","shape":[4],"data_offsets":[{from},{to}]}}"#);
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    // A pickle that would call os.system.
    let code = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec();
    let m = "m/model.safetensors";
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("half a file", m, whole[..whole.len() / 2].to_vec(), "model.safetensors"),
        ("a few bytes", m, whole[..5].to_vec(), "model.safetensors"),
        ("nothing", m, Vec::new(), "model.safetensors"),
        ("a header of 2^60 bytes", m, huge, "model.safetensors"),
        (
            "overlapping tensors",
            m,
            safetensors(&format!(r#"{{"a":{},"b":{}}}"#, tensor(0, 16), tensor(8, 24)), 24),
            "model.safetensors",
        ),
        (
            "a tensor beyond the file",
            m,
            safetensors(&format!(r#"{{"a":{}}}"#, tensor(0, 16)), 8),
            "model.safetensors",
        ),
        (
            "a shape that is not its bytes",
            m,
            safetensors(&format!(r#"{{"a":{}}}"#, tensor(0, 8)), 8),
            "model.safetensors",
        ),
        ("other tensors", m, safetensors(&format!(r#"{{"a":{}}}"#, tensor(0, 16)), 16), "is missing"),
        ("a configuration that is a list", "m/config.json", b"[1, 2]".to_vec(), "holds a list"),
        ("a configuration that is no JSON", "m/config.json", b"{".to_vec(), "config.json"),
        (
            "an index that leads outside",
            "sharded/model.safetensors.index.json",
            index.replacen("model-00001", "../model-00001", 1).into_bytes(),
            "index.json",
        ),
        ("an index that is no index", "sharded/model.safetensors.index.json", b"[]".to_vec(), "index.json"),
        (
            "missing shards",
            "sharded/model.safetensors.index.json",
            index.replace("model-0000", "model-9999").into_bytes(),
            "model-99991",
        ),
    ];
    for (what, file, bytes, said) in cases {
        let before = sandbox.bytes(file);
        sandbox.write(file, &bytes);
        let folder = file.split('/').next().unwrap();
        let message = sandbox.refused(&["inspect", folder, "--ids", "ids.json"]);
        assert!(message.contains(said), "{what}: {message}");
        sandbox.write(file, &before);
    }
    // The same folder with a pickle in place of its weights.
    std::fs::remove_file(sandbox.path(m)).unwrap();
    sandbox.write("m/pytorch_model.bin", zipped("archive/data.pkl", &code));
    let message = sandbox.refused(&["inspect", "m", "--ids", "ids.json"]);
    assert!(message.contains("os.system"), "{message}");
    std::fs::remove_file(sandbox.path("m/pytorch_model.bin")).unwrap();
    let message = sandbox.refused(&["inspect", "m", "--ids", "ids.json"]);
    assert!(message.contains("model.safetensors"), "{message}");
    golden(&sandbox, "opt_4_bin", "bin");
    let whole = sandbox.bytes("bin/pytorch_model.bin");
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        sandbox.write("bin/pytorch_model.bin", &whole[..cut]);
        sandbox.refused(&["inspect", "bin", "--ids", "ids.json"]);
    }
}

/// A zip archive of stored entries, as torch.save writes them: this one and a version.
fn zipped(name: &str, bytes: &[u8]) -> Vec<u8> {
    let crc = |data: &[u8]| {
        !data.iter().fold(!0u32, |crc, &byte| {
            (0..8)
                .fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
        })
    };
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [(name, bytes), ("archive/version", &b"3\n"[..])] {
        let at = (file.len() as u32).to_le_bytes();
        let size = (data.len() as u32).to_le_bytes();
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &crc(data).to_le_bytes(),
            &size,
            &size,
            &(name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        file.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), data].concat());
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &[0; 10], &at, name.as_bytes()].concat());
    }
    let start = (file.len() as u32).to_le_bytes();
    let size = (directory.len() as u32).to_le_bytes();
    [&file[..], &directory, b"PK\x05\x06\x00\x00\x00\x00\x02\x00\x02\x00", &size, &start, &[0, 0]].concat()
}
