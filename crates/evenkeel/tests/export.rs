//! Export and back: what a stock class computes, and what our own file carries, is the model that was exported.

use candle_core::{DType, Tensor};
use evenkeel::checkpoint::OnDisk;
use evenkeel::checkpoint::hf::{Target, export};
use evenkeel::model::config::{Branches, Positions, QkNorm};
use evenkeel::model::{ModelConfig, Transformer, preset};
use evenkeel::tap::NoTap;
use evenkeel::tape::Tape;
use std::path::Path;

const IDS: [u32; 14] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7];

fn logits(model: &Transformer) -> Vec<f32> {
    let logits = model.logits(&Tape::off(), &mut NoTap, &IDS, 2).unwrap();
    logits.tensor().flatten_all().unwrap().to_vec1().unwrap()
}

/// A small model whose every parameter differs from its start, so that gains and biases matter.
fn model(config: ModelConfig) -> Transformer {
    let mut place = 0u64;
    let fresh = Transformer::new(config, 3).unwrap();
    fresh
        .map_parameters(|p| {
            let n = p.tensor.elem_count();
            let noise: Vec<f32> = (0..n as u64)
                .map(|i| 0.1 * ((((place + i) * 7919 + 13) % 1009) as f32 / 504.5 - 1.0))
                .collect();
            place += n as u64;
            let noise = Tensor::from_vec(noise, p.tensor.shape(), p.tensor.device())?;
            Ok((&p.tensor + noise)?.to_dtype(DType::F32)?)
        })
        .unwrap()
}

fn tiny(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (2, 12, 3, 11, 8);
    c
}

/// Exports, reads back, and gives the largest deviation of the logits over their largest, and what was written.
fn round_trip(model: &Transformer, target: Target) -> (f32, Target) {
    let dir = tempfile::tempdir().unwrap();
    let written = export(dir.path(), model, None, target).unwrap();
    let read = OnDisk::open(dir.path()).unwrap().load().unwrap();
    let (before, after) = (logits(model), logits(&read));
    let size = before.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let off = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (off / size, written)
}

#[test]
fn every_preset_comes_back_as_it_went() {
    let stock = [
        ("pre_ln", Target::Gpt2),
        ("layerscale", Target::Gpt2),
        ("osp", Target::Llama),
        ("op", Target::Evenkeel),
        ("op_paper", Target::Evenkeel),
        ("op_tanh", Target::Evenkeel),
        ("post_ln", Target::Evenkeel),
        ("skipless", Target::Evenkeel),
        ("gated_attention", Target::Evenkeel),
        ("clipped_softmax", Target::Evenkeel),
        ("pre_srms", Target::Evenkeel),
    ];
    for (name, expected) in stock {
        let model = model(tiny(name));
        let (off, written) = round_trip(&model, Target::Auto);
        assert_eq!(written, expected, "{name}");
        // What is folded is rounded once more.
        let bound = if expected == Target::Evenkeel || name == "pre_ln" { 0.0 } else { 1e-5 };
        assert!(off <= bound, "{name}: {off}");
        assert_eq!(round_trip(&model, Target::Evenkeel), (0.0, Target::Evenkeel), "{name}");
    }
}

#[test]
fn what_folds_into_a_stock_class_is_folded() {
    type Change = fn(&mut ModelConfig);
    let cases: &[(&str, Target, Change)] = &[
        ("pre_ln", Target::Opt, |_| {}),
        ("pre_ln", Target::Gpt2, |c| (c.tie_head, c.biases) = (true, Vec::new())),
        ("pre_ln", Target::Opt, |c| c.tie_head = true),
        ("pre_ln", Target::Gpt2, |c| (c.alpha, c.beta) = (0.7, evenkeel::model::config::Beta::Value(0.3))),
        ("pre_ln", Target::Gpt2, |c| (c.alpha_trainable, c.beta_trainable) = (true, true)),
        ("pre_ln", Target::Gpt2, |c| c.value_init = evenkeel::model::config::ValueInit::Identity),
        ("pre_ln", Target::Gpt2, |c| (c.embed_scale, c.tie_head) = (2.5, true)),
        ("pre_ln", Target::Gpt2, |c| c.embed_proj = true),
        ("pre_ln", Target::Opt, |c| c.embed_dim = 5),
        ("pre_ln", Target::Opt, |c| (c.embed_dim, c.embed_scale, c.tie_head) = (5, 2.5, true)),
        ("osp", Target::Llama, |c| c.tie_head = true),
        ("osp", Target::Llama, |c| (c.kv_heads, c.embed_proj) = (1, false)),
        ("osp", Target::Llama, |c| (c.head_dim, c.embed_proj) = (6, false)),
        ("osp", Target::Llama, |c| c.norm = evenkeel::model::config::Norm::Srms),
    ];
    for (i, (name, target, change)) in cases.iter().enumerate() {
        let mut config = tiny(name);
        change(&mut config);
        let (off, written) = round_trip(&model(config), *target);
        assert_eq!(written, *target);
        assert!(off < 1e-5, "case {i}, {name}: {off}");
    }
}

#[test]
fn what_no_stock_class_computes_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut odd = tiny("pre_ln");
    (odd.qk_norm, odd.branches) = (QkNorm::Rms, Branches::Parallel);
    let said = export(dir.path(), &model(odd), None, Target::Gpt2).unwrap_err().to_string();
    assert!(said.contains("as gpt2") && said.contains("qk_norm") && said.contains("branches"), "{said}");
    let said = export(dir.path(), &model(tiny("osp")), None, Target::Opt).unwrap_err().to_string();
    assert!(said.contains("activation is \"swiglu\""), "{said}");
    let mut partial = tiny("osp");
    partial.rope_fraction = 0.5;
    let said = export(dir.path(), &model(partial), None, Target::Llama).unwrap_err().to_string();
    assert!(said.contains("rope_fraction is 0.5"), "{said}");
    let mut rotating = tiny("pre_ln");
    rotating.positions = Positions::Rope;
    assert_eq!(round_trip(&model(rotating), Target::Auto).1, Target::Evenkeel);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of what was refused");
}

/// A stock folder that was read and is written again holds the same tensors.
#[test]
fn a_stock_folder_is_written_as_it_was_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf");
    for (name, target) in [
        ("gpt2_1_tied", Target::Gpt2),
        ("gpt2_2_untied", Target::Gpt2),
        ("opt_1_pre", Target::Opt),
        ("opt_2_post", Target::Opt),
        ("llama_1_tied", Target::Llama),
        ("llama_2_llama3", Target::Llama),
        ("llama_3_dynamic", Target::Llama),
        ("mistral_2_full", Target::Llama),
        ("qwen3_1_bias", Target::Evenkeel),
        ("gpt_neox_1_parallel", Target::Evenkeel),
        ("mistral_1_window", Target::Evenkeel),
    ] {
        let read = OnDisk::open(&root.join(name)).unwrap();
        let model = read.load().unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(export(dir.path(), &model, None, Target::Auto).unwrap(), target, "{name}");
        let again = OnDisk::open(dir.path()).unwrap();
        let (a, b) = (model.parameters(), again.load().unwrap());
        for (a, b) in a.iter().zip(b.parameters()) {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!((&a.name, flat(&a.tensor)), (&b.name, flat(&b.tensor)), "{name}");
        }
        let (mut before, mut after) = (read.config().clone(), again.config().clone());
        (before.preset, after.preset) = Default::default();
        (before.mlp_ratio, after.mlp_ratio) = (0, 0);
        (before.kv_heads, after.kv_heads) = (before.kv_heads(), after.kv_heads());
        assert_eq!(before, after, "{name}");
    }
}

#[test]
fn models_that_predict_no_next_token_are_not_exported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf");
    let model = OnDisk::open(&root.join("bert_1_mlm")).unwrap().load().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for target in [Target::Auto, Target::Gpt2, Target::Evenkeel] {
        let said = export(dir.path(), &model, None, target).unwrap_err().to_string();
        assert!(said.contains("does not predict the next token"), "{said}");
    }
}
