//! int8 folders: what is written after repairs and overrides can be read; what was damaged is refused.

mod common;

use common::{Sandbox, close, lossy, number};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn whatever_was_done_before_what_is_written_can_be_read() {
    let sandbox = Sandbox::with_data();
    let gates = "*.attn.gate.*=int8";
    for (preset, scheme, more) in [
        ("pre_ln", "w8a8_int8_head", &["--repair", "hadamard"][..]),
        ("pre_ln", "w8a8_token", &["--repair", "hadamard", "--head", "int8"]),
        ("pre_ln", "w8a8", &["--repair", "smoothquant", "--repair", "gptq", "--repair", "bias-correction"]),
        ("op", "w8a8_int8_head", &["--repair", "gptq"]),
        ("op", "w8a8", &["--residual", "float"]),
        ("op", "w8a8", &["--site", "blocks.0.attn.q*=float", "--site", "blocks.*.mlp.hidden=min_max"]),
        ("layerscale", "w8a8_channel", &["--head", "bf16"]),
    ] {
        if !sandbox.path(preset).exists() {
            sandbox.config("tiny.toml", preset, "adamw");
            sandbox.ok(&["train", "tiny.toml", "--out", preset]);
        }
        let args = ["quantize", preset, "--scheme", scheme, "--data", "data", "--out", "int8", "--force"];
        let report = sandbox.json(&[&args[..], more].concat());
        let run = number(&sandbox.json(&["eval", "int8", "--data", "data"])["perplexity"]);
        let simulated = number(&report["quantized"]["perplexity"]);
        assert!(close(run, simulated, 0.003), "{preset} {scheme} {more:?}: {run}, simulated {simulated}");
        let errors = report["sites"].as_array().unwrap().iter().filter_map(|site| site["error"].as_f64());
        assert!(errors.fold(0.0, f64::max) < 0.5, "weights are compared with what was rounded: {report}");
    }
    // Gates are no quantised weights, so a glob that names nothing else names nothing.
    sandbox.config("tiny.toml", "gated_attention", "adamw");
    sandbox.ok(&["train", "tiny.toml", "--out", "gated"]);
    let said = lossy(&sandbox.run(&["quantize", "gated", "--data", "data", "--site", gates], 2).stderr);
    assert!(said.contains("matches no site"), "{said}");
}

/// The tensors of a file: dtype, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn written(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn damaged_folders_are_refused() {
    let sandbox = Sandbox::with_run("pre_ln");
    sandbox.ok(&["quantize", "run", "--scheme", "w8a8_channel", "--data", "data", "--out", "int8"]);
    let (good, config) = (sandbox.bytes("int8/model.safetensors"), sandbox.read("int8/config.json"));
    let (q, bias) = ("blocks.0.attn.q.weight", "blocks.0.attn.q.bias");
    let scale = |tensors: &mut Tensors, name: &str, values: &[f32]| {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.insert(format!("{name}.scale"), (Dtype::F32, vec![values.len()], data));
    };
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Tensors) + 'a>);
    let damages: Vec<Damage> = vec![
        ("it is missing", Box::new(|t| drop(t.remove(q)))),
        ("it has no scale", Box::new(|t| drop(t.remove(&format!("{q}.scale"))))),
        ("a wrong number of scales", Box::new(move |t| scale(t, q, &[0.1; 3]))),
        ("a negative scale", Box::new(move |t| scale(t, q, &[-0.1; 32]))),
        ("an infinite scale", Box::new(move |t| scale(t, q, &[f32::INFINITY; 32]))),
        ("no zero point", Box::new(|t| drop(t.remove(&format!("{q}.zero_point"))))),
        ("another zero point", Box::new(|t| t.get_mut(&format!("{q}.zero_point")).unwrap().2[0] = 3)),
        ("another shape", Box::new(|t| t.get_mut(q).unwrap().1 = vec![16, 64])),
        ("another rank", Box::new(|t| t.get_mut(q).unwrap().1 = vec![1024])),
        (
            "another dtype",
            Box::new(|t| {
                let old = t.get_mut(q).unwrap();
                *old = (Dtype::BF16, vec![16, 32], old.2.clone());
            }),
        ),
        (
            "a short bias",
            Box::new(|t| {
                let old = t.get_mut(bias).unwrap();
                *old = (Dtype::I32, vec![31], old.2[4..].to_vec());
            }),
        ),
        (
            "a bias that overflows",
            Box::new(|t| {
                let old = t.get_mut(bias).unwrap();
                old.2[..4].copy_from_slice(&i32::MIN.to_le_bytes());
            }),
        ),
        ("a site without a grid", Box::new(|t| drop(t.remove("activation.blocks.0.attn.in.scale")))),
        ("a site without a zero point", Box::new(|t| drop(t.remove("activation.blocks.1.resid.zero_point")))),
        (
            "a gain of another length",
            Box::new(|t| {
                let gain = t.get_mut("final_norm.gain").unwrap();
                *gain = (gain.0, vec![31], gain.2[..31].to_vec());
            }),
        ),
    ];
    for (what, damage) in damages {
        let mut tensors = read(&good);
        damage(&mut tensors);
        sandbox.write("int8/model.safetensors", written(&tensors));
        let said = lossy(&sandbox.run(&["eval", "int8", "--data", "data"], 2).stderr);
        assert!(said.contains("hint: "), "{what}: {said}");
    }
    for cut in [0, 7, 100, good.len() / 2, good.len() - 1] {
        sandbox.write("int8/model.safetensors", &good[..cut]);
        sandbox.run(&["eval", "int8", "--data", "data"], 2);
    }
    sandbox.write("int8/model.safetensors", &good);
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 5] = [
        ("another schema", |c| c["quantization"]["schema"] = json!(2)),
        ("an unknown site", |c| c["quantization"]["activations"]["blocks.9.resid"] = json!("int8 static")),
        ("a quantiser of 4 bits", |c| {
            c["quantization"]["activations"]["blocks.0.resid"] = json!("int4 static")
        }),
        ("words that mean nothing", |c| c["quantization"]["activations"]["embed"] = json!("nonsense")),
        ("another width", |c| c["model"]["width"] = json!(64)),
    ];
    for (what, change) in changes {
        let mut changed: Value = serde_json::from_str(&config).unwrap();
        change(&mut changed);
        sandbox.write("int8/config.json", changed.to_string());
        let said = lossy(&sandbox.run(&["eval", "int8", "--data", "data"], 2).stderr);
        assert!(said.contains("hint: "), "{what}: {said}");
    }
    sandbox.write("int8/config.json", config);
    sandbox.ok(&["eval", "int8", "--data", "data"]);
}
