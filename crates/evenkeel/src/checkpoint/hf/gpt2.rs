//! GPT-2: learned positions, LayerNorm before each branch, fused queries, keys and values in matrices stored (in, out).

use super::keys::Keys;
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use serde_json::{Value, json};

use Layout::{FusedColumns, Same, Transposed};

pub(super) fn setup(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    for flag in ["add_cross_attention", "is_encoder_decoder", "scale_attn_by_inverse_layer_idx"] {
        keys.only_flag(flag, false)?;
    }
    keys.only_flag("scale_attn_weights", true)?;
    let width = keys.size("n_embd")?;
    let config = ModelConfig {
        depth: keys.size("n_layer")?,
        width,
        heads: keys.size("n_head")?,
        vocab: keys.size("vocab_size")?,
        context: keys.size("n_positions")?,
        mlp_hidden: keys.size_if_any("n_inner")?.unwrap_or(4 * width),
        norm_eps: keys.number("layer_norm_epsilon", 1e-5)?,
        activation: keys.activation("activation_function", "gelu_new", false)?,
        tie_head: keys.flag("tie_word_embeddings", true)? && task == Task::NextToken,
        readout: task.readout(),
        ..super::plain("gpt2")
    };
    Ok(Setup::new(config, map()))
}

fn map() -> Map {
    let ignored = vec![
        ".attn.bias",
        ".attn.masked_bias",
        "score.*",
        "classifier.*",
        "qa_outputs.*",
        "multiple_choice_head.*",
    ];
    Map {
        entries: vec![
            entry("embed.token.weight", &["wte.weight"], Same),
            entry("embed.position.weight", &["wpe.weight"], Same),
            entry("attn.norm.gain", &["h.{}.ln_1.weight"], Same),
            entry("attn.norm.bias", &["h.{}.ln_1.bias"], Same),
            entry("attn.q.weight", &["h.{}.attn.c_attn.weight"], FusedColumns(0)),
            entry("attn.q.bias", &["h.{}.attn.c_attn.bias"], FusedColumns(0)),
            entry("attn.k.weight", &["h.{}.attn.c_attn.weight"], FusedColumns(1)),
            entry("attn.k.bias", &["h.{}.attn.c_attn.bias"], FusedColumns(1)),
            entry("attn.v.weight", &["h.{}.attn.c_attn.weight"], FusedColumns(2)),
            entry("attn.v.bias", &["h.{}.attn.c_attn.bias"], FusedColumns(2)),
            entry("attn.out.weight", &["h.{}.attn.c_proj.weight"], Transposed),
            entry("attn.out.bias", &["h.{}.attn.c_proj.bias"], Same),
            entry("mlp.norm.gain", &["h.{}.ln_2.weight"], Same),
            entry("mlp.norm.bias", &["h.{}.ln_2.bias"], Same),
            entry("mlp.up.weight", &["h.{}.mlp.c_fc.weight"], Transposed),
            entry("mlp.up.bias", &["h.{}.mlp.c_fc.bias"], Same),
            entry("mlp.down.weight", &["h.{}.mlp.c_proj.weight"], Transposed),
            entry("mlp.down.bias", &["h.{}.mlp.c_proj.bias"], Same),
            entry("final_norm.gain", &["ln_f.weight"], Same),
            entry("final_norm.bias", &["ln_f.bias"], Same),
            entry("head.weight", &["lm_head.weight"], Same),
        ],
        prefixes: &["transformer.", ""],
        bare: &["lm_head."],
        ignored,
        twins: &["lm_head.weight"],
    }
}

/// What a model has to be for the class to compute it, apart from missing biases and gains that can be folded.
pub(super) fn expresses(c: &ModelConfig) -> Result<(), String> {
    super::export::activation_name(c.activation)?;
    super::export::expect(c, &super::plain("gpt2"))
}

/// config.json of a model that it expresses, with the map to store it by.
pub(super) fn export(c: &ModelConfig) -> Result<(Value, Map), String> {
    let value = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": super::export::activation_name(c.activation)?,
        "n_embd": c.width,
        "n_layer": c.depth,
        "n_head": c.heads,
        "n_inner": c.hidden(),
        "n_positions": c.context,
        "vocab_size": c.vocab,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie_head,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "attn_pdrop": c.dropout_attention,
        "embd_pdrop": c.dropout_embed,
        "resid_pdrop": c.dropout_residual,
    });
    Ok((value, map()))
}

pub(super) const HEADS: Heads = Heads {
    family: &["GPT2"],
    next_token: &["GPT2LMHeadModel", "GPT2DoubleHeadsModel"],
    masked: &[],
    classes: &[],
};
