//! ViT: patches of an image and a class token, LayerNorm before each branch, bare or with a classifier on the class token.

use super::keys::Keys;
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use crate::model::config::{Projection, Readout};

use Layout::{Reshaped, Same};

pub(super) fn setup(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    let [height, width] = keys.size_or_pair("image_size")?;
    let [patch, patch_width] = keys.size_or_pair("patch_size")?;
    if patch != patch_width {
        return Err(keys.refused("patch_size", "must be square"));
    }
    if patch > height || patch > width {
        return Err(keys.refused("patch_size", format!("must be at most the image's {height} x {width}")));
    }
    let classes = match task {
        Task::Classes => keys.count_of("id2label")?.or(keys.size_if_any("num_labels")?).unwrap_or(2),
        _ => 1,
    };
    let colours = keys.size_if_any("num_channels")?.unwrap_or(3);
    let mut biases = vec![Projection::Out, Projection::Up, Projection::Down];
    if keys.flag("qkv_bias", true)? {
        biases.extend([Projection::Q, Projection::K, Projection::V]);
    }
    let config = ModelConfig {
        depth: keys.size("num_hidden_layers")?,
        width: keys.size("hidden_size")?,
        heads: keys.size("num_attention_heads")?,
        vocab: classes,
        context: (height / patch) * (width / patch) + 1,
        patch_size: patch,
        image: [height, width, colours],
        mlp_hidden: keys.size("intermediate_size")?,
        norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        causal: false,
        activation: keys.activation("hidden_act", "gelu", false)?,
        biases,
        head_bias: task == Task::Classes,
        readout: if task == Task::Classes { Readout::First } else { Readout::None },
        ..super::plain("vit")
    };
    let mut ignored = vec!["pooler.*", "embeddings.mask_token"];
    if config.readout == Readout::None {
        ignored.extend(["classifier.*", "decoder.*"]);
    }
    let map = Map {
        entries: vec![
            entry("embed.patch.weight", &["embeddings.patch_embeddings.projection.weight"], Reshaped),
            entry("embed.patch.bias", &["embeddings.patch_embeddings.projection.bias"], Same),
            entry("embed.class", &["embeddings.cls_token"], Reshaped),
            entry("embed.position.weight", &["embeddings.position_embeddings"], Reshaped),
            entry("attn.norm.gain", &["encoder.layer.{}.layernorm_before.weight"], Same),
            entry("attn.norm.bias", &["encoder.layer.{}.layernorm_before.bias"], Same),
            entry("attn.q.weight", &["encoder.layer.{}.attention.attention.query.weight"], Same),
            entry("attn.q.bias", &["encoder.layer.{}.attention.attention.query.bias"], Same),
            entry("attn.k.weight", &["encoder.layer.{}.attention.attention.key.weight"], Same),
            entry("attn.k.bias", &["encoder.layer.{}.attention.attention.key.bias"], Same),
            entry("attn.v.weight", &["encoder.layer.{}.attention.attention.value.weight"], Same),
            entry("attn.v.bias", &["encoder.layer.{}.attention.attention.value.bias"], Same),
            entry("attn.out.weight", &["encoder.layer.{}.attention.output.dense.weight"], Same),
            entry("attn.out.bias", &["encoder.layer.{}.attention.output.dense.bias"], Same),
            entry("mlp.norm.gain", &["encoder.layer.{}.layernorm_after.weight"], Same),
            entry("mlp.norm.bias", &["encoder.layer.{}.layernorm_after.bias"], Same),
            entry("mlp.up.weight", &["encoder.layer.{}.intermediate.dense.weight"], Same),
            entry("mlp.up.bias", &["encoder.layer.{}.intermediate.dense.bias"], Same),
            entry("mlp.down.weight", &["encoder.layer.{}.output.dense.weight"], Same),
            entry("mlp.down.bias", &["encoder.layer.{}.output.dense.bias"], Same),
            entry("final_norm.gain", &["layernorm.weight"], Same),
            entry("final_norm.bias", &["layernorm.bias"], Same),
            entry("head.weight", &["classifier.weight"], Same),
            entry("head.bias", &["classifier.bias"], Same),
        ],
        prefixes: &["vit.", ""],
        bare: &["classifier."],
        ignored,
        twins: &[],
    };
    Ok(Setup::new(config, map))
}

pub(super) const HEADS: Heads =
    Heads { family: &["ViT"], next_token: &[], masked: &[], classes: &["ViTForImageClassification"] };
