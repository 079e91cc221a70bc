//! Every optimiser through the program: training, resuming, groups, steps that are left out, optim.jsonl, memory; and
//! the example that replays gradients.

mod common;

use common::{Sandbox, close, lossy, number, tensors};
use evenkeel::checkpoint::{read_tensors, write_tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const OPTIMIZERS: [&str; 8] =
    ["adamw", "sgd", "adafactor", "adafactor_torch", "rotated_adafactor", "shampoo", "soap", "muon"];

/// A run's log without what depends on the clock or the machine.
fn log(sandbox: &Sandbox, run: &str) -> Vec<Value> {
    let mut lines = sandbox.lines(&format!("{run}/metrics.jsonl"));
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        ["tokens_per_sec", "mem/peak", "optim/time_share"].iter().for_each(|key| {
            line.remove(*key);
        });
    }
    lines
}

#[test]
fn each_trains_at_its_defaults_and_goes_on_to_the_bit() {
    let sandbox = Sandbox::with_data();
    for name in OPTIMIZERS {
        sandbox.write(
            "run.toml",
            format!(
                "[model]\npreset = \"pre_srms\"\ndepth = 1\nwidth = 16\nheads = 2\ncontext = 32\n[data]\npath = \"data\"\n\
                 [optim]\nname = \"{name}\"\n[train]\nsteps = 40\nbatch_sequences = 8\neval_tokens = 512\n\
                 checkpoint_every_steps = 20\n[telemetry]\noptim_every_steps = 10\n"
            ),
        );
        let run = |out: &str, more: &[&str]| {
            sandbox.ok(&[&["train", "run.toml", "--out", out, "--threads", "1"], more].concat())
        };
        let (straight, torn) = (format!("{name}-straight"), format!("{name}-torn"));
        run(&straight, &[]);
        run(&torn, &[]);
        std::fs::remove_dir_all(sandbox.path(&format!("{torn}/checkpoints/step-000040"))).unwrap();
        run(&torn, &["--resume"]);
        for file in ["model.safetensors", "optim.safetensors"] {
            let of = |run: &str| sandbox.bytes(&format!("{run}/checkpoints/step-000040/{file}"));
            assert!(of(&straight) == of(&torn), "{name}: {file} differs");
        }
        assert_eq!(log(&sandbox, &straight), log(&sandbox, &torn), "{name}");
        let of = |run: &str| sandbox.read(&format!("{run}/optim.jsonl"));
        assert_eq!(of(&straight), of(&torn), "{name}");
        let lines = sandbox.lines(&format!("{straight}/metrics.jsonl"));
        let losses: Vec<f64> = lines.iter().map(|l| number(&l["train/loss"])).collect();
        assert!(losses.last().unwrap() + 0.1 < losses[0], "{name}: {losses:?}");
        for line in &lines[1..] {
            assert!(number(&line["optim/update_ratio"]) > 0.0, "{name}: {line}");
            let share = number(&line["optim/time_share"]);
            assert!((0.0..1.0).contains(&share) && share > 0.0, "{name}: {line}");
            assert_eq!(line["optim/skipped"], 0);
        }
    }
}

#[test]
fn optim_jsonl_tells_of_every_parameter() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "soap");
    sandbox.ok(&["train", "tiny.toml", "--out", "run", "--set", "telemetry.optim_every_steps=25"]);
    let lines = sandbox.lines("run/optim.jsonl");
    let weights = tensors(&sandbox.path("run/checkpoints/step-000050/model.safetensors"));
    assert_eq!(lines.len(), 2 * weights.len());
    for line in &lines {
        assert_eq!(line["optimizer"], "soap");
        assert!(weights.contains_key(line["parameter"].as_str().unwrap()));
        if let (Some(ratio), Some(weight), Some(update)) =
            (line["update_ratio"].as_f64(), line["weight_rms"].as_f64(), line["update_rms"].as_f64())
        {
            assert!(close(ratio * weight, update, 1e-6), "{line}");
        }
    }
    let square = |l: &&Value| l["parameter"].as_str().unwrap().ends_with("attn.out.weight");
    assert!(lines.iter().filter(square).all(|l| l["condition"].is_null() || number(&l["condition"]) >= 1.0));
    // The last step has the rate 0 + one part in 50: small, but no rest.
    let total: f64 = lines.iter().map(|l| l["update_rms"].as_f64().unwrap()).sum();
    assert!(total > 0.0);
}

#[test]
fn groups_choose_optimisers_and_the_state_says_which() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "soap");
    let text = sandbox.read("tiny.toml");
    let groups = "\n[[optim.group]]\nmatch = [\"embed.*\", \"head.*\"]\noptimizer = \"adamw\"\nlr_factor = 0.5\n\
                  [[optim.group]]\nmatch = [\"blocks.1.*\"]\noptimizer = { name = \"sgd\", momentum = 0.5 }\n";
    sandbox.write("tiny.toml", text + groups);
    sandbox.ok(&["train", "tiny.toml", "--out", "run"]);
    let state = read_tensors(&sandbox.path("run/checkpoints/step-000050/optim.safetensors")).unwrap();
    let keys = |parameter: &str| -> Vec<&str> {
        state.keys().filter_map(|k| k.strip_prefix(parameter)?.strip_prefix('/')).collect()
    };
    assert_eq!(keys("embed.token.weight"), ["m", "steps", "v"]);
    assert_eq!(keys("blocks.1.attn.q.weight"), ["buffer", "steps"]);
    assert!(keys("blocks.0.attn.q.weight").contains(&"q_left"));
    let resolved = sandbox.read("run/resolved.toml");
    assert!(resolved.contains("beta1 = 0.5") && !resolved.contains("momentum"), "{resolved}");
    // A file that `config show` wrote takes groups below it; a group's SOAP has the limits of a run's.
    let shown = sandbox.ok(&["config", "show", "op", "--set", "data.path=data"]);
    sandbox.write("shown.toml", shown + "\n[[optim.group]]\nmatch = [\"head.*\"]\noptimizer = \"soap\"\n");
    sandbox.ok(&["config", "check", "shown.toml"]);
    sandbox.ok(&[
        "train",
        "shown.toml",
        "--out",
        "shown",
        "--set",
        "train.steps=1",
        "--set",
        "model.depth=1",
    ]);
    assert!(sandbox.read("shown/resolved.toml").contains("max_precond_dim = 2048"));
    // What was resolved says the same again.
    sandbox.ok(&["config", "check", "run/resolved.toml"]);
    let other =
        sandbox.refused(&["train", "tiny.toml", "--out", "run", "--resume", "--set", "optim.group=[]"]);
    assert!(other.contains("optim.group"), "{other}");
}

#[test]
fn bad_optimisers_are_refused_by_name() {
    let sandbox = Sandbox::with_data();
    for (set, part) in [
        ("optim.name=soup", "adamw, sgd, adafactor, adafactor_torch, rotated_adafactor, shampoo, soap, muon"),
        ("optim.beta3=0.9", "`optim.beta"),
        ("optim.precondition_frequency=3", "unknown key `optim.precondition_frequency`"),
        ("optim.skip_spike_factor=0.5", "above 1"),
        ("optim.clip_value=-1", "optim.clip_value"),
        ("optim.schedule=step", "schedule"),
        ("optim.group=[{match=[\"embed.*\"], optimizer=\"soup\"}]", "\"soup\""),
        (
            "optim.group=[{match=[\"embed.*\"], optimizer={name=\"sgd\", bta1=0.5}}]",
            "`optim.group[0].optimizer.beta1`",
        ),
        (
            "optim.group=[{match=[\"embed.*\"], optimizer={name=\"sgd\", beta1=1.5}}]",
            "optim.group[0].optimizer.beta1",
        ),
        ("optim.group=[{match=[\"embed.*\"], optimizer=3}]", "optim.group[0].optimizer"),
    ] {
        let stderr = sandbox.refused(&["train", "tiny.toml", "--out", "run", "--set", set]);
        assert!(stderr.contains(part), "{set}: {stderr}");
    }
    for (set, part) in [
        ("optim.skip_patience_steps=0", "skip_patience_steps must be at least 1"),
        ("optim.group=[{match=[\"lm_head.*\"]}]", "optim.group[0] matches no parameter"),
    ] {
        let args = ["train", "tiny.toml", "--out", "run", "--set", "optim.skip_nonfinite=true", "--set", set];
        let stderr = sandbox.refused(&args);
        assert!(stderr.contains(part), "{set}: {stderr}");
    }
    // A file that spells AdamW out is not run with another rule's meaning of its keys; nor do two names of a key agree.
    sandbox.write("spelled.toml", sandbox.ok(&["config", "show", "op", "--set", "data.path=data"]));
    let stderr = sandbox.refused(&["train", "spelled.toml", "--out", "run", "--set", "optim.name=adafactor"]);
    assert!(stderr.contains("the file is for \"adamw\" and sets beta1, beta2, eps"), "{stderr}");
    sandbox.write("two.toml", "[optim]\nname = \"sgd\"\nmomentum = 0.9\nbeta1 = 0.9\n");
    assert!(sandbox.refused(&["config", "check", "two.toml"]).contains("are one key"));
    sandbox.write("one.toml", "[optim]\nname = \"sgd\"\nmomentum = 0.9\n");
    sandbox.ok(&["config", "check", "one.toml"]);
    sandbox.config("tiny.toml", "op", "shampoo");
    let stderr = sandbox.refused(&["train", "tiny.toml", "--out", "run", "--set", "optim.exponent=0"]);
    assert!(stderr.contains("optim.exponent must be above 0"), "{stderr}");
    sandbox.config("tiny.toml", "op", "sgd");
    let set = ["--set", "optim.nesterov=true", "--set", "optim.momentum=0"];
    let stderr = sandbox.refused(&[&["train", "tiny.toml", "--out", "run"], &set[..]].concat());
    assert!(stderr.contains("optim.nesterov needs momentum"), "{stderr}");
    let stderr = sandbox.refused(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--set",
        "optim.schedule=inverse_sqrt",
        "--set",
        "optim.warmup_fraction=0",
    ]);
    assert!(stderr.contains("warmup_steps"), "{stderr}");
    assert!(!sandbox.path("run").exists());
}

#[test]
fn spikes_are_left_out_counted_and_remembered() {
    let sandbox = Sandbox::with_data();
    let args = |out: &'static str, more: &[&'static str]| {
        let mut all = vec!["train", "tiny.toml", "--out", out, "--set", "optim.skip_spike_factor=1.02"];
        all.extend(["--set", "train.checkpoint_every_steps=25", "--set", "optim.skip_patience_steps=3"]);
        all.extend(more);
        all
    };
    let output = sandbox.run(&args("run", &[]), 0);
    let lines = log(&sandbox, "run");
    let skipped = lines.last().unwrap()["optim/skipped"].as_u64().unwrap();
    assert!(skipped > 0, "no step was left out");
    let said = lossy(&output.stderr).matches("was left out").count() as u64;
    assert_eq!(said, skipped);
    // A step that was left out has a line, moved nothing and says so.
    let still = lines.iter().filter(|l| l["optim/update_ratio"].is_null()).count() as u64;
    assert_eq!(still, skipped);
    sandbox.run(&args("torn", &[]), 0);
    std::fs::remove_dir_all(sandbox.path("torn/checkpoints/step-000050")).unwrap();
    sandbox.run(&args("torn", &["--resume"]), 0);
    assert_eq!(lines, log(&sandbox, "torn"));
}

#[test]
fn steps_that_are_not_finite_are_left_out_for_a_while_and_then_end_the_run() {
    let sandbox = Sandbox::with_data();
    let wild =
        ["--set", "optim.lr_peak=1e30", "--set", "optim.clip_norm=0", "--set", "optim.warmup_fraction=0"];
    let skip = ["--set", "optim.skip_nonfinite=true", "--set", "optim.skip_patience_steps=4"];
    let base = ["train", "tiny.toml", "--out"];
    sandbox.run(&[&base[..], &["plain"], &wild[..]].concat(), 1);
    let output = sandbox.run(&[&base[..], &["patient"], &wild[..], &skip[..]].concat(), 1);
    assert_eq!(lossy(&output.stderr).matches("was left out, its loss or gradient").count(), 4);
    let last = log(&sandbox, "patient").pop().unwrap();
    assert_eq!(last["optim/skipped"], 4);
    assert!(last["train/loss"].is_null() || last["grad_norm"].is_null(), "{last}");
}

#[test]
fn a_dry_run_knows_each_optimisers_memory() {
    let sandbox = Sandbox::with_data();
    let bytes = |name: &str, set: &[&str]| {
        sandbox.config("tiny.toml", "pre_ln", name);
        let plan = sandbox.json(&[&["train", "tiny.toml", "--dry-run"], set].concat());
        (number(&plan["plan"]["optimizer_bytes"]), number(&plan["plan"]["weights_bytes"]))
    };
    let (adamw, weights) = bytes("adamw", &[]);
    assert_eq!(adamw, 2.0 * weights);
    assert_eq!(bytes("sgd", &[]).0, weights);
    assert_eq!(bytes("sgd", &["--set", "optim.momentum=0"]).0, 0.0);
    assert!(bytes("adafactor", &["--set", "optim.beta1=0"]).0 < 0.2 * weights);
    let soap = bytes("soap", &[]).0;
    assert!(soap > 4.0 * weights);
    assert!(bytes("soap", &["--set", "optim.one_sided=true"]).0 < soap);
    assert!(bytes("soap", &["--set", "optim.factorised=true"]).0 < soap);
    assert!(bytes("muon", &[]).0 < adamw);
}

/// The example, built with the tests.
fn replay(sandbox: &Sandbox, config: &str, trace: &Path, out: &str) -> Output {
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.pop();
    program.push("examples/replay_optimizer");
    assert!(program.exists(), "build it with `cargo build --release --example replay_optimizer`");
    sandbox.write("optim.toml", config);
    let args = ["--config", "optim.toml", "--out", out, "--trace"];
    Command::new(program).args(args).arg(trace).current_dir(sandbox.path("")).output().unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn the_replay_example_follows_the_traces() {
    let sandbox = Sandbox::new();
    for (case, config) in [
        ("adamw", "name = \"adamw\"\nlr_peak = 1e-2\nweight_decay = 0.1"),
        ("sgd", "name = \"sgd\"\nmomentum = 0.9\nlr_peak = 0.05\nweight_decay = 0.01"),
        ("adafactor_torch", "name = \"adafactor_torch\"\nlr_peak = 1e-2\nweight_decay = 0.1"),
        ("muon", "name = \"muon\"\nlr_peak = 0.02\nweight_decay = 0.1"),
        (
            "soap",
            "name = \"soap\"\nlr_peak = 3e-2\nbeta1 = 0.9\nbeta2 = 0.95\nmax_precond_dim = 16\nweight_decay = 0.01",
        ),
    ] {
        let trace = golden("optimizer_trace.safetensors");
        let output = replay(&sandbox, &format!("[optim]\n{config}\n"), &trace, "steps.safetensors");
        assert!(output.status.success(), "{case}: {}", lossy(&output.stderr));
        let got = tensors(&sandbox.path("steps.safetensors"));
        assert_eq!(got.len(), 60 * 9);
        for (name, (_, want)) in tensors(&golden(&format!("optimizer_{case}.safetensors"))) {
            let (_, got) = &got[&name.replace("expected.", "param.")];
            let peak = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / peak;
            assert!(off < 2e-5, "{case}: {name} deviates by {off:.1e}");
        }
    }
}

#[test]
fn the_replay_example_refuses_what_it_cannot_replay() {
    let sandbox = Sandbox::new();
    let trace = golden("optimizer_trace.safetensors");
    let refused = |config: &str, trace: &Path, part: &str| {
        let output = replay(&sandbox, config, trace, "out.safetensors");
        let stderr = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part) && stderr.contains("\n\nhint: "), "{part}: {stderr}");
        assert!(!sandbox.path("out.safetensors").exists());
    };
    refused("[train]\nsteps = 3\n", &trace, "no table [optim]");
    refused("[optim]\nname = \"adam\"\n", &trace, "no optimizer named \"adam\"");
    refused("[optim]\nname = \"soap\"\n[[optim.group]]\nmatch = [\"a\"]\n", &trace, "[[optim.group]]");
    let all = read_tensors(&trace).unwrap();
    let without = |drop: &str| {
        let path = sandbox.path("less.safetensors");
        let kept: BTreeMap<_, _> =
            all.iter().filter(|(k, _)| !k.starts_with(drop)).map(|(k, v)| (k.clone(), v.clone())).collect();
        write_tensors(&path, &kept).unwrap();
        path
    };
    refused("[optim]\n", &without("param."), "no parameter");
    refused("[optim]\n", &without("grad.7.square"), "grad.7.square is missing");
    refused("[optim]\n", &without("grad.7."), "belong to no parameter or to no step");
    refused("[optim]\n", &without("param.square"), "belong to no parameter or to no step");
}
