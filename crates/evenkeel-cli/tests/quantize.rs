//! quantize: schemes, repairs, integer folders and what runs them, and what is refused.

mod common;

use common::{Sandbox, close, keys, lossy, number};
use serde_json::Value;

#[test]
fn quantize_reports_every_quantiser() {
    let sandbox = Sandbox::with_data();
    for (preset, weights, activations) in [("pre_ln", 8 * 2 + 3, 13 * 2 + 2), ("op", 0, 13 * 2 + 2)] {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        let args = ["quantize", preset, "--scheme", "w8a8", "--data", "data", "--calib-batches", "2"];
        let report = sandbox.json(&args);
        assert_eq!(
            keys(&report),
            ["schema", "scheme", "repairs", "float", "quantized", "sites", "summary"].into()
        );
        assert_eq!(keys(&report["float"]), ["perplexity", "bytes"].into());
        assert_eq!(keys(&report["quantized"]), ["perplexity", "bytes", "kl", "top1_agreement"].into());
        let summary = &report["summary"];
        assert_eq!(
            (summary["calib_batches"].as_u64(), summary["calib_tokens"].as_u64()),
            (Some(2), Some(2 * 8 * 32))
        );
        assert_eq!(summary["activation_quantisers"], activations, "{preset}");
        if weights > 0 {
            assert_eq!(summary["weight_quantisers"], weights, "{preset}");
        }
        let sites = report["sites"].as_array().unwrap();
        assert_eq!(sites.len() as u64, summary["weight_quantisers"].as_u64().unwrap() + activations);
        for site in sites {
            let expected =
                ["site", "quantiser", "bits", "scales", "scale", "zero_point", "lo", "hi", "error"];
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

/// All schemes.
const SCHEMES: [&str; 11] = [
    "w8a8",
    "w8a8_int8_head",
    "w8a8_channel",
    "w8a8_token",
    "w4a16",
    "w4a8",
    "w4a4",
    "fp8",
    "mxfp8",
    "mxfp4",
    "nvfp4",
];

#[test]
fn every_scheme_quantises_and_is_described() {
    let sandbox = Sandbox::with_run("pre_ln");
    let listed = sandbox.json(&["config", "list"]);
    let listed = listed["schemes"].as_array().unwrap();
    assert_eq!(listed.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), SCHEMES);
    let mut bytes = Vec::new();
    for scheme in SCHEMES {
        let report =
            sandbox.json(&["quantize", "run", "--scheme", scheme, "--data", "data", "--calib-batches", "1"]);
        assert_eq!(report["scheme"], scheme);
        let (float, quantised) = (&report["float"], &report["quantized"]);
        assert!(close(number(&quantised["perplexity"]), number(&float["perplexity"]), 0.3), "{report}");
        bytes.push(number(&quantised["bytes"]) / number(&float["bytes"]));
        // A scheme's own text is a scheme file.
        sandbox.write("own.toml", sandbox.ok(&["config", "show", scheme]));
        let again = sandbox.json(&[
            "quantize",
            "run",
            "--scheme",
            "own.toml",
            "--data",
            "data",
            "--calib-batches",
            "1",
        ]);
        assert_eq!(again, report, "{scheme}");
    }
    assert!(bytes[1] < bytes[0] && bytes[5] < bytes[3], "an int8 head and 4 bits are smaller: {bytes:?}");
}

#[test]
fn sites_head_and_stream_can_be_chosen() {
    let sandbox = Sandbox::with_run("op");
    let base = ["quantize", "run", "--data", "data", "--calib-batches", "1"];
    let with = |more: &[&str]| sandbox.json(&[&base[..], more].concat());
    let names = |report: &Value| -> Vec<String> {
        report["sites"].as_array().unwrap().iter().map(|s| s["site"].as_str().unwrap().to_string()).collect()
    };
    let plain = with(&[]);
    let without = with(&["--site", "blocks.0.*=float", "--site", "blocks.1.mlp.down.weight=int4 channel"]);
    assert!(names(&without).iter().all(|name| !name.starts_with("blocks.0.")));
    let down = without["sites"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["site"] == "blocks.1.mlp.down.weight")
        .unwrap();
    assert_eq!(
        (down["bits"].as_u64(), down["scales"].as_u64(), &down["scale"]),
        (Some(4), Some(32), &Value::Null)
    );
    assert!(
        names(&with(&["--residual", "float"])).iter().all(|name| !name.contains("resid") && name != "embed")
    );
    assert!(names(&with(&["--head", "int8"])).contains(&"head.weight".to_string()));
    let bf16 = with(&["--head", "bf16"]);
    assert!(number(&bf16["quantized"]["bytes"]) < number(&plain["quantized"]["bytes"]));
}

#[test]
fn integer_models_agree_with_their_simulation() {
    let sandbox = Sandbox::with_data();
    for preset in ["pre_ln", "op", "gated_attention", "osp", "parallel"] {
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        for scheme in ["w8a8", "w8a8_int8_head", "w8a8_channel", "w8a8_token"] {
            let args = [
                "quantize", preset, "--scheme", scheme, "--data", "data", "--out", "int8", "--force",
                "--head",
            ];
            for head in ["float", "bf16", "int8"] {
                let report = sandbox.json(&[&args[..], &[head]].concat());
                let eval = sandbox.json(&["eval", "int8", "--data", "data"]);
                let (simulated, run) =
                    (number(&report["quantized"]["perplexity"]), number(&eval["perplexity"]));
                assert!(
                    close(run, simulated, 0.002),
                    "{preset} {scheme} {head}: {run}, simulated {simulated}"
                );
                // A second reading gives the same to the bit.
                assert_eq!(sandbox.json(&["eval", "int8", "--data", "data"]), eval);
            }
        }
    }
}

#[test]
fn an_integer_folder_is_a_model() {
    let sandbox = Sandbox::with_run("pre_ln");
    let out = ["quantize", "run", "--scheme", "w8a8_int8_head", "--data", "data", "--out", "int8"];
    let said = sandbox.ok(&out);
    assert!(said.contains("wrote the integer model to int8"), "{said}");
    let inspected = sandbox.json(&["inspect", "int8", "--data", "data"]);
    let float = sandbox.json(&["inspect", "run", "--data", "data"]);
    assert_eq!(inspected["model"], float["model"]);
    let kurtosis = |report: &Value| number(&report["summary"]["kurtosis_mean"]);
    assert!(close(kurtosis(&inspected), kurtosis(&float), 0.05));
    let sample = ["sample", "int8", "--prompt", "let ", "--max-tokens", "20", "--seed", "3"];
    let text = sandbox.ok(&sample);
    assert!(text.starts_with("let ") && sandbox.ok(&sample) == text);
    // It is not overwritten, and holds nothing else.
    assert!(lossy(&sandbox.run(&out, 2).stderr).contains("int8 exists and is not empty"));
    let mut files: Vec<_> =
        std::fs::read_dir(sandbox.path("int8")).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);
    // What needs a float model says so.
    for args in [&["quantize", "int8", "--data", "data"][..], &["export", "int8", "--out", "x"]] {
        let said = lossy(&sandbox.run(args, 2).stderr);
        assert!(said.contains("int8 is a quantised model"), "{said}");
    }
}

#[test]
fn repairs_are_made_and_named() {
    let sandbox = Sandbox::with_run("pre_ln");
    for repairs in
        [&["smoothquant=0.6"][..], &["hadamard"], &["gptq"], &["bias-correction"], &["hadamard", "gptq"]]
    {
        let mut args = vec!["quantize", "run", "--scheme", "w4a8", "--data", "data", "--calib-batches", "1"];
        args.extend(repairs.iter().flat_map(|name| ["--repair", *name]));
        let report = sandbox.json(&args);
        let named: Vec<&str> =
            report["repairs"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        assert!(named.iter().zip(repairs).all(|(a, b)| a.starts_with(b)), "{named:?}");
        assert!(close(
            number(&report["quantized"]["perplexity"]),
            number(&report["float"]["perplexity"]),
            0.3
        ));
    }
}

#[test]
fn ids_and_one_token_are_enough_to_calibrate() {
    let sandbox = Sandbox::with_run("op");
    sandbox.write("ids.json", "[[1, 2]]");
    sandbox.write("more.json", "[[3, 4, 5, 6], [7, 8, 9, 10]]");
    let report = sandbox.json(&["quantize", "run", "--ids", "ids.json"]);
    assert_eq!(
        (report["summary"]["calib_tokens"].as_u64(), report["summary"]["eval_tokens"].as_u64()),
        (Some(1), Some(1))
    );
    let report = sandbox.json(&["quantize", "run", "--ids", "ids.json", "--calib", "more.json"]);
    assert_eq!(
        (report["summary"]["calib_tokens"].as_u64(), report["summary"]["eval_tokens"].as_u64()),
        (Some(6), Some(1))
    );
    let report =
        sandbox.json(&["quantize", "run", "--ids", "more.json", "--calib", "data", "--calib-batches", "2"]);
    assert_eq!(report["summary"]["calib_tokens"].as_u64(), Some(2 * 8 * 32));
    let said = lossy(&sandbox.run(&["quantize", "run", "--ids", "more.json"], 0).stderr);
    assert!(said.contains("on the same text"), "{said}");
}

#[test]
fn what_fits_nothing_is_refused() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.write("none.toml", "weights = \"float\"\nactivations = \"float\"\nplaces = \"all\"\nhead = \"float\"\nresidual = \"float\"\n");
    sandbox.write("typo.toml", "weigths = \"float\"\n");
    for (more, message) in [
        (&["--scheme", "none.toml"][..], "quantises nothing"),
        (&["--scheme", "typo.toml"], "weigths"),
        (&["--scheme", "nowhere.toml"], "nowhere.toml"),
        (&["--site", "blocks.7.*=float"], "matches no site"),
        (&["--site", "blocks.0.*=int9"], "\"int9\""),
        (&["--site", "blocks.0.*"], "GLOB=WORDS"),
        (&["--repair", "prayer"], "\"prayer\""),
        (&["--scheme", "w4a16", "--out", "x"], "int8"),
    ] {
        let args = [&["quantize", "run", "--data", "data", "--calib-batches", "1"], more].concat();
        let said = lossy(&sandbox.run(&args, 2).stderr);
        assert!(said.contains(message) && said.contains("hint: "), "{more:?}: {said}");
        assert!(!sandbox.path("x").exists(), "{more:?}");
    }
}
