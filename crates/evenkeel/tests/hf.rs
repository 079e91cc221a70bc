//! Folders of other architectures against `transformers`: the hidden states at every layer and the logits of tiny random models,
//! which scripts/golden/hf.py computed in float64.

use candle_core::{DType, Device, Tensor};
use evenkeel::checkpoint::{OnDisk, read_tensors};
use evenkeel::inspect::activations_of;
use evenkeel::model::Input;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest deviation, of the largest entry of a site (or of 1, where all are smaller).
const TOLERANCE: f64 = 1e-5;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf");
    let mut all: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn input(expected: &BTreeMap<String, Tensor>) -> Input {
    match expected.get("ids") {
        Some(ids) => {
            let flat: Vec<i64> = ids.flatten_all().unwrap().to_vec1().unwrap();
            let ids = flat.into_iter().map(|id| u32::try_from(id).unwrap()).collect();
            Input::Tokens { ids, sequences: expected["ids"].dim(0).unwrap() }
        }
        None => Input::Images { pixels: expected["pixel_values"].clone() },
    }
}

/// Largest |a - b| over the largest |b|, or over 1.
fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (flat(a), flat(b));
    let size = b.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

#[test]
fn every_architecture_agrees_with_transformers() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut worst = 0.0f64;
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let on_disk = OnDisk::open(&folder).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = read_tensors(&folder.join("expected.safetensors")).unwrap();
        let input = input(&expected);
        let whole = activations_of(&on_disk.load().unwrap(), &input).unwrap();
        let parts = on_disk.with_parts(|parts| activations_of(parts, &input)).unwrap().unwrap();
        assert_eq!(whole.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>(), "{name}");
        for (site, want) in
            expected.iter().filter(|(site, _)| !["ids", "pixel_values"].contains(&site.as_str()))
        {
            // A stream without a final norm leaves the model as it left the last block.
            let got = whole.get(site).unwrap_or_else(|| panic!("{name} has no {site}"));
            assert_eq!(got.dims(), want.dims(), "{name} {site}");
            let off = deviation(got, want);
            worst = worst.max(off);
            assert!(off < TOLERANCE, "{name}: {site} is off by {off:.1e}");
            assert_eq!(deviation(&parts[site], got), 0.0, "{name}: {site} read part by part");
        }
        let blocks = expected.keys().filter(|key| key.ends_with(".resid")).count();
        assert_eq!(blocks, on_disk.config().depth, "{name}: every block is compared");
        *seen.entry(on_disk.config().preset.clone()).or_default() += 1;
    }
    for architecture in
        ["gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "bert", "roberta", "vit"]
    {
        assert!(seen.get(architecture).is_some_and(|&n| n >= 3), "{architecture}: {seen:?}");
    }
    assert!(worst > 0.0, "nothing was compared");
}

/// Names of tensors do not depend on how they are spread over files; neither does the digest.
#[test]
fn the_digest_is_of_the_tensors() {
    let digests: Vec<u64> =
        folders().iter().map(|folder| OnDisk::open(folder).unwrap().digest().unwrap()).collect();
    let mut distinct = digests.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), digests.len(), "all models differ");
    let again: Vec<u64> =
        folders().iter().map(|folder| OnDisk::open(folder).unwrap().digest().unwrap()).collect();
    assert_eq!(again, digests);
}

/// Changing one key of a configuration, which the folder then no longer fits, or which asks for another computation.
fn refused(folder: &str, change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> String {
    changed(folder, change).expect_err("it was read all the same")
}

fn changed(
    folder: &str,
    change: impl Fn(&mut serde_json::Map<String, serde_json::Value>),
) -> Result<(), String> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf").join(folder);
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(&path, config.to_string()).unwrap();
    match OnDisk::open(copy.path()) {
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string().replace(&copy.path().display().to_string(), "DIR")),
    }
}

#[test]
fn what_would_be_computed_otherwise_is_refused_by_name() {
    let cases: &[(&str, &str, &str)] = &[
        ("gpt2_1_tied", r#"{"scale_attn_by_inverse_layer_idx": true}"#, "scale_attn_by_inverse_layer_idx"),
        ("gpt2_1_tied", r#"{"scale_attn_weights": false}"#, "scale_attn_weights"),
        ("gpt2_1_tied", r#"{"add_cross_attention": true}"#, "add_cross_attention"),
        ("gpt2_1_tied", r#"{"activation_function": "quick_gelu"}"#, "quick_gelu"),
        ("gpt2_1_tied", r#"{"new_attention": "linear"}"#, "new_attention"),
        ("gpt2_1_tied", r#"{"quantization_config": {"bits": 4}}"#, "quantization_config"),
        ("gpt2_1_tied", r#"{"n_embd": 18}"#, "wte.weight has shape [37, 15], not [37, 18]"),
        ("gpt2_1_tied", r#"{"n_layer": 3}"#, "h.2.attn.c_attn.weight is missing"),
        ("gpt2_1_tied", r#"{"n_layer": 1}"#, "is not part of this model"),
        ("gpt2_1_tied", r#"{"n_layer": 1e30}"#, "n_layer"),
        ("gpt2_1_tied", r#"{"n_head": 4}"#, "heads"),
        (
            "gpt2_1_tied",
            r#"{"vocab_size": "many"}"#,
            "vocab_size must be a whole number above 0, not \"many\"",
        ),
        ("gpt2_1_tied", r#"{"model_type": "mamba"}"#, "type \"mamba\", and known are gpt2, opt"),
        (
            "gpt2_1_tied",
            r#"{"architectures": ["GPT2ForCausalLMWithExtras", "x"], "model_type": "gpt2"}"#,
            "names the class \"GPT2ForCausalLMWithExtras\"",
        ),
        ("llama_1_tied", r#"{"architectures": ["OtherForCausalLM"]}"#, "OtherForCausalLM"),
        ("llama_1_tied", r#"{"rope_parameters": {"rope_type": "yarn", "factor": 2}}"#, "yarn"),
        (
            "llama_1_tied",
            r#"{"rope_parameters": {"rope_type": "linear", "factor": 2, "beta": 3}}"#,
            "rope_parameters.beta",
        ),
        ("llama_1_tied", r#"{"rope_parameters": {"rope_type": "linear"}}"#, "factor is missing"),
        ("llama_1_tied", r#"{"rope_parameters": [1]}"#, "rope_parameters must be an object, not [1]"),
        ("llama_1_tied", r#"{"hidden_act": "relu6"}"#, "relu6"),
        ("qwen2_2_window", r#"{"layer_types": ["full_attention", "chunked", "full_attention"]}"#, "chunked"),
        ("bert_1_mlm", r#"{"position_embedding_type": "relative_key"}"#, "relative_key"),
        ("bert_1_mlm", r#"{"is_decoder": true}"#, "is_decoder"),
        ("roberta_1_mlm", r#"{"hidden_act": "relu"}"#, "hidden_act"),
        ("gpt2_1_tied", r#"{"is_causal": false}"#, "is_causal is false"),
        ("llama_1_tied", r#"{"is_causal": false}"#, "is_causal"),
        ("bert_1_mlm", r#"{"is_causal": true}"#, "is_causal is true"),
        ("llama_1_tied", r#"{"some_new_switch": false}"#, "some_new_switch"),
        ("llama_1_tied", r#"{"architectures": ["LlamaEncoderModel"]}"#, "LlamaEncoderModel"),
        ("llama_1_tied", r#"{"architectures": "LlamaForCausalLM"}"#, "architectures must be a list"),
        ("llama_1_tied", r#"{"auto_map": {"AutoModel": "own.Model"}}"#, "auto_map names code"),
        (
            "llama_1_tied",
            r#"{"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}"#,
            "something else than rope_parameters",
        ),
        (
            "llama_1_tied",
            r#"{"rope_parameters": {"rope_type": "linear", "factor": 0.5}}"#,
            "rope_parameters.factor must be at least 1",
        ),
        ("roberta_1_mlm", r#"{"pad_token_id": 1.5}"#, "pad_token_id"),
        ("roberta_1_mlm", r#"{"pad_token_id": 40}"#, "max_position_embeddings leaves no position"),
        ("vit_1_classes", r#"{"image_size": 9}"#, "whole patches"),
        ("vit_1_classes", r#"{"patch_size": [2, 3]}"#, "square"),
    ];
    for (folder, change, said) in cases {
        let more: serde_json::Map<String, serde_json::Value> = serde_json::from_str(change).unwrap();
        let message = refused(folder, |config| config.extend(more.clone()));
        assert!(message.contains(said), "{folder} with {change} said: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

/// What folders of the Hub say beside the computation.
#[test]
fn harmless_keys_are_passed_over() {
    for (folder, more) in [
        (
            "gpt2_1_tied",
            r#"{"_num_labels": 1, "n_special": 0, "predict_special_tokens": true, "n_ctx": 16,
            "task_specific_params": {"text-generation": {"do_sample": true}}, "summary_type": "cls_index"}"#,
        ),
        (
            "llama_1_tied",
            r#"{"is_llama_config": true, "rope_interleaved": false, "pretraining_tp": 1,
            "transformers.js_config": {"dtype": "q4"}, "unsloth_version": "2024.9", "rope_scaling": null,
            "use_mrope": false, "architectures": ["LlamaForSequenceClassification"], "max_length": 20}"#,
        ),
        (
            "bert_1_mlm",
            r#"{"directionality": "bidi", "gradient_checkpointing": false, "pooler_fc_size": 768}"#,
        ),
        ("opt_1_pre", r#"{"learned_embeddings": true, "prefix": "</s>", "activation_dropout": 0.0}"#),
    ] {
        let more: serde_json::Map<String, serde_json::Value> = serde_json::from_str(more).unwrap();
        let read = changed(folder, |config| config.extend(more.clone()));
        read.unwrap_or_else(|e| panic!("{folder}: {e}"));
    }
}

/// Sizes that no file backs are refused before anything is made for them.
#[test]
fn a_configuration_alone_allocates_nothing() {
    let message = refused("llama_1_tied", |config| {
        for (key, value) in [("hidden_size", 65536), ("vocab_size", 1 << 24), ("intermediate_size", 1 << 22)]
        {
            config.insert(key.into(), value.into());
        }
        config.extend(["num_attention_heads", "num_key_value_heads"].map(|key| (key.into(), 256.into())));
    });
    assert!(message.contains("has shape"), "{message}");
}

#[test]
fn images_of_another_size_and_ids_for_a_model_of_images_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf/vit_1_classes");
    let model = OnDisk::open(&folder).unwrap().load().unwrap();
    let pixels = Tensor::zeros((1, 3, 8, 6), DType::F32, &Device::Cpu).unwrap();
    let said = activations_of(&model, &Input::Images { pixels }).unwrap_err().to_string();
    assert!(said.contains("[3, 8, 8]") && said.contains("[1, 3, 8, 6]"), "{said}");
    let ids = Input::Tokens { ids: vec![1, 2], sequences: 1 };
    assert!(activations_of(&model, &ids).unwrap_err().to_string().contains("reads images"));
}
