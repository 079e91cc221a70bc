//! Models of images through the program: trained, resumed, evaluated, looked into, and what is refused.

mod common;

use common::{IMAGE_PRESETS, Sandbox, close, number};
use serde_json::Value;

/// Two blocks of 16 channels on 17 positions, 12 steps of 8 images.
fn config(sandbox: &Sandbox, preset: &str, more: &str) {
    sandbox.write(
        "vit.toml",
        format!(
            "[model]\npreset = \"{preset}\"\ndepth = 2\nwidth = 16\nheads = 2\nimage = [16, 16, 3]\npatch_size = 4\n\
             context = 17\n\n[data]\ntrain_images = 50\nval_images = 30\naugment_crop = \"padded\"\naugment_flip = true\n\n\
             [optim]\nlr_peak = 3e-3\n\n[train]\nsteps = 12\nbatch_sequences = 8\neval_every_steps = 6\n\
             checkpoint_every_steps = 4\ncheckpoint_keep = 9\nlog_every_steps = 1\n\n{more}"
        ),
    );
}

fn metrics(sandbox: &Sandbox, run: &str) -> Vec<Value> {
    let mut lines = sandbox.lines(&format!("{run}/metrics.jsonl"));
    for line in &mut lines {
        for key in ["tokens_per_sec", "mem/peak", "optim/time_share"] {
            line.as_object_mut().unwrap().remove(key);
        }
    }
    lines
}

fn assert_same(sandbox: &Sandbox, a: &str, b: &str) {
    let files =
        ["model.safetensors", "optim.safetensors", "state.json", "config.json", "preprocessor_config.json"];
    for file in files {
        let of = |run: &str| sandbox.bytes(&format!("{run}/checkpoints/step-000012/{file}"));
        assert!(of(a) == of(b), "{file} of {a} and {b} differ");
    }
    assert_eq!(metrics(sandbox, a), metrics(sandbox, b));
    for log in ["stats.jsonl", "moments.jsonl"] {
        assert_eq!(sandbox.read(&format!("{a}/{log}")), sandbox.read(&format!("{b}/{log}")), "{log}");
    }
}

#[test]
fn resuming_threads_and_micro_batches() {
    let sandbox = Sandbox::new();
    config(&sandbox, "vit_op", "[telemetry]\nmoments_every_steps = 2\nsites = [\"*\"]\n");
    sandbox.ok(&["train", "vit.toml", "--out", "one", "--threads", "1"]);
    sandbox.ok(&["train", "vit.toml", "--out", "four", "--threads", "4"]);
    assert_same(&sandbox, "one", "four");
    // What a run that was killed after its eighth step leaves.
    sandbox.ok(&["train", "vit.toml", "--out", "cut", "--threads", "3"]);
    std::fs::remove_dir_all(sandbox.path("cut/checkpoints/step-000012")).unwrap();
    sandbox.ok(&["train", "vit.toml", "--out", "cut", "--resume", "--threads", "2"]);
    assert_same(&sandbox, "one", "cut");
    sandbox.ok(&["train", "vit.toml", "--out", "micro", "--set", "train.micro_batch_sequences=3"]);
    let (whole, micro) = (metrics(&sandbox, "one"), metrics(&sandbox, "micro"));
    for (a, b) in whole.iter().zip(&micro) {
        assert!(close(number(&a["train/loss"]), number(&b["train/loss"]), 1e-4), "{a} and {b}");
    }
    // 8 images of 16 patches and a class token.
    assert_eq!(whole[0]["tokens"], 8 * 17);
    let last = whole.last().unwrap();
    let accuracy = number(&last["val/accuracy"]);
    assert!((0.0..=1.0).contains(&accuracy) && (accuracy * 30.0 - (accuracy * 30.0).round()).abs() < 1e-9);
    let sites = sandbox.read("one/stats.jsonl");
    for site in ["embed", "blocks.1.attn.q_norm", "blocks.0.mlp.hidden", "final_norm", "logits"] {
        assert!(sites.contains(&format!("\"site\":\"{site}\"")), "{site} was not measured");
    }
    assert!(sandbox.read("one/moments.jsonl").lines().count() >= 6);
}

#[test]
fn every_preset_of_images_is_trained_evaluated_and_looked_into() {
    let sandbox = Sandbox::new();
    for preset in IMAGE_PRESETS {
        config(&sandbox, preset, "");
        let plan = sandbox.json(&["train", "vit.toml", "--out", preset, "--dry-run"]);
        assert_eq!(plan["plan"]["tokens"], 12 * 8 * 17);
        let trained = sandbox.json(&["train", "vit.toml", "--out", preset, "--set", "data.val_images=2000"]);
        let found = sandbox.json(&["eval", preset, "--images", "shapes"]);
        assert_eq!(found["images"], 2000);
        assert!(close(number(&found["loss"]), number(&trained["val_loss"]), 1e-6), "{preset}");
        assert_eq!(found["accuracy"], trained["val_accuracy"], "{preset}");
        let few = sandbox.json(&["eval", preset, "--images", "shapes", "--tokens", "100"]);
        assert_eq!(few["images"], 100 / 17);
        let seen = sandbox.json(&["inspect", preset, "--images", "shapes", "--tokens", "200"]);
        assert_eq!(seen["tokens"], 200 / 17 * 17);
        assert_eq!(seen["model"]["parameters"], plan["plan"]["parameters"]);
        assert!(number(&seen["summary"]["kurtosis_mean"]) >= 1.0);
    }
    let said = sandbox.ok(&["eval", "vit", "--images", "shapes", "--tokens", "1000"]);
    assert!(said.contains("accuracy") && said.ends_with("over 58 images\n"), "{said}");
}

#[test]
fn some_steps_learn_something() {
    let sandbox = Sandbox::new();
    config(&sandbox, "vit", "");
    let sets = ["model.width=32", "train.steps=60", "train.batch_sequences=32", "optim.lr_peak=5e-3"];
    let mut args = vec!["train", "vit.toml", "--out", "run", "--set", "data.train_images=4000"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    sandbox.ok(&args);
    let lines = sandbox.lines("run/metrics.jsonl");
    let loss = |i: usize| number(&lines[i]["train/loss"]);
    let late: f64 = (50..60).map(loss).sum::<f64>() / 10.0;
    assert!(late < 2.29 && loss(0) > 2.2, "from {} to {late}", loss(0));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let sandbox = Sandbox::with_data();
    config(&sandbox, "vit", "");
    let before = sandbox.files();
    let cases = [
        ("data.kind=tokens", "means nothing"),
        ("model.patch_size=0", "the model reads text"),
        ("model.readout=tokens", "model.readout"),
        ("model.vocab=7", "10 classes"),
        ("model.context=18", "16 patches and one token"),
        ("model.image=[16,16,1]", "3 colours"),
        ("data.path=somewhere", "data.path is set"),
        ("data.augment_crop=resized", "data.kind = \"images\""),
        ("data.augment_crop=wide", "augment_crop"),
        ("data.image_std=[1,0,1]", "data.image_std"),
        ("data.image_mean=[1,2]", "image_mean"),
        ("data.train_images=0", "data.train_images"),
        ("data.image_maen=[0,0,0]", "data.image_mean"),
    ];
    for (set, said) in cases {
        let error = sandbox.refused(&["train", "vit.toml", "--out", "run", "--set", set]);
        assert!(error.contains(said), "{set}: {error}");
    }
    for (preset, set, said) in [
        ("op", "data.kind=shapes", "patch_size is 0"),
        ("op", "data.augment_flip=true", "data.augment_flip is set"),
        ("op", "model.causal=false", "model.causal"),
        ("vit", "data.kind=tokens", "makes a model of images"),
        ("vit", "data.kind=images", "names no images"),
    ] {
        let text = preset == "op" && set != "data.kind=shapes";
        let path = if text { "data.path=data" } else { "data.path=" };
        sandbox.write("other.toml", format!("[model]\npreset = \"{preset}\"\n"));
        let args = ["train", "other.toml", "--out", "run", "--set", set, "--set", path];
        let error = sandbox.refused(&args);
        assert!(error.contains(said), "{preset} {set}: {error}");
    }
    std::fs::remove_file(sandbox.path("other.toml")).unwrap();
    assert!(sandbox.files() == before, "a refused run wrote something");
}

#[test]
fn commands_for_text_refuse_a_model_of_images() {
    let sandbox = Sandbox::with_run("op");
    config(&sandbox, "vit", "");
    sandbox.ok(&["train", "vit.toml", "--out", "vit"]);
    for args in [
        &["eval", "vit", "--data", "data"][..],
        &["inspect", "vit", "--data", "data"],
        &["eval", "run", "--images", "shapes"],
        &["inspect", "run", "--images", "shapes"],
        &["quantize", "vit", "--images", "shapes"],
        &["quantize", "run", "--images", "shapes"],
        &["sample", "vit", "--prompt", "x"],
        &["export", "vit", "--out", "hf"],
        &["eval", "vit", "--images", "shapes", "--context", "4"],
        &["eval", "vit", "--images", "nowhere"],
        &["inspect", "vit", "--images", "nowhere"],
    ] {
        sandbox.refused(args);
    }
}

#[cfg(feature = "image")]
#[test]
fn a_folder_of_images_is_trained_on_and_a_broken_file_loses_nothing() {
    let sandbox = Sandbox::new();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/images");
    for class in ["train/ant", "train/bee", "train/cat", "val/ant", "val/cat"] {
        for entry in std::fs::read_dir(golden.join("set").join(class)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            sandbox.write(&format!("set/{class}/{name}"), std::fs::read(&path).unwrap());
        }
    }
    config(&sandbox, "vit", "");
    let text = sandbox.read("vit.toml").replace("train_images = 50\nval_images = 30\n", "");
    sandbox.write("vit.toml", text.replace("padded", "resized") + "\n");
    let sets = ["--set", "data.kind=images", "--set", "data.path=set", "--set", "train.batch_sequences=3"];
    let train = |out: &str, more: &[&str]| {
        [&["train", "vit.toml", "--out", out], &sets[..], more]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let run = |args: Vec<String>, code: i32| {
        sandbox.run(&args.iter().map(String::as_str).collect::<Vec<_>>(), code)
    };
    run(train("whole", &["--threads", "1"]), 0);
    run(train("again", &["--threads", "4"]), 0);
    assert!(
        sandbox.bytes("whole/checkpoints/step-000012/model.safetensors")
            == sandbox.bytes("again/checkpoints/step-000012/model.safetensors")
    );
    let found = sandbox.json(&["eval", "whole", "--images", "set"]);
    assert_eq!(found["images"], 2);
    sandbox.write("set/train/bee/deep.png", std::fs::read(golden.join("bad/cut.png")).unwrap());
    let args = train("broken", &[]);
    let said = common::lossy(&run(args, 2).stderr);
    assert!(said.contains("deep.png") && said.contains("hint: "), "{said}");
    assert!(sandbox.path("broken/checkpoints/latest").is_file());
    sandbox.write("set/train/bee/deep.png", std::fs::read(golden.join("set/train/bee/deep.png")).unwrap());
    run(train("broken", &["--resume"]), 0);
    assert!(
        sandbox.bytes("whole/checkpoints/step-000012/model.safetensors")
            == sandbox.bytes("broken/checkpoints/step-000012/model.safetensors")
    );
}

#[cfg(not(feature = "image"))]
#[test]
fn a_build_without_decoders_says_what_to_build() {
    let sandbox = Sandbox::new();
    sandbox.write("set/train/ant/1.png", "");
    sandbox.write("vit.toml", "[model]\npreset = \"vit\"\n[data]\nkind = \"images\"\npath = \"set\"\n");
    let said = sandbox.refused(&["train", "vit.toml", "--out", "run"]);
    assert!(said.contains("1.png") && said.contains("--features image"), "{said}");
}
