//! OPT: learned positions counted from 2, LayerNorm before each branch (or after, as in OPT-350m, whose token table also has
//! another width than the stream).

use super::keys::Keys;
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use crate::model::config::{Norm, NormPosition, Readout};
use serde_json::{Value, json};

use Layout::{Constant, Same, SkipRows};

pub(super) fn setup(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    keys.only_flag("is_encoder_decoder", false)?;
    keys.only_flag("learned_embeddings", true)?;
    let before = keys.flag("do_layer_norm_before", true)?;
    let removed = keys.flag("_remove_final_layer_norm", false)?;
    let affine = keys.flag("layer_norm_elementwise_affine", true)?;
    let width = keys.size("hidden_size")?;
    let base = super::plain("opt");
    let biases = if keys.flag("enable_bias", true)? { base.biases.clone() } else { Vec::new() };
    let config = ModelConfig {
        depth: keys.size("num_hidden_layers")?,
        width,
        heads: keys.size("num_attention_heads")?,
        vocab: keys.size("vocab_size")?,
        context: keys.size("max_position_embeddings")?,
        embed_dim: keys.size_if_any("word_embed_proj_dim")?.filter(|&d| d != width).unwrap_or(0),
        mlp_hidden: keys.size("ffn_dim")?,
        norm_position: if before { NormPosition::Pre } else { NormPosition::Post },
        final_norm: if before && !removed { Norm::Layer } else { Norm::None },
        activation: keys.activation("activation_function", "relu", false)?,
        biases,
        tie_head: keys.flag("tie_word_embeddings", true)? && task == Task::NextToken,
        readout: task.readout(),
        ..base
    };
    let mut map = map(affine);
    if config.readout == Readout::None {
        // The matrix behind the stream belongs to the decoder, so that a bare one has it too; it is not looked at there.
        map.ignored.push("project_out.weight");
    }
    Ok(Setup::new(config, map))
}

fn map(affine: bool) -> Map {
    let gain = if affine { Same } else { Constant(1.0) };
    let bias = if affine { Same } else { Constant(0.0) };
    Map {
        entries: vec![
            entry("embed.token.weight", &["embed_tokens.weight"], Same),
            entry("embed.position.weight", &["embed_positions.weight"], SkipRows(2)),
            entry("embed.proj.weight", &["project_in.weight"], Same),
            entry("attn.norm.gain", &["layers.{}.self_attn_layer_norm.weight"], gain),
            entry("attn.norm.bias", &["layers.{}.self_attn_layer_norm.bias"], bias),
            entry("attn.q.weight", &["layers.{}.self_attn.q_proj.weight"], Same),
            entry("attn.q.bias", &["layers.{}.self_attn.q_proj.bias"], Same),
            entry("attn.k.weight", &["layers.{}.self_attn.k_proj.weight"], Same),
            entry("attn.k.bias", &["layers.{}.self_attn.k_proj.bias"], Same),
            entry("attn.v.weight", &["layers.{}.self_attn.v_proj.weight"], Same),
            entry("attn.v.bias", &["layers.{}.self_attn.v_proj.bias"], Same),
            entry("attn.out.weight", &["layers.{}.self_attn.out_proj.weight"], Same),
            entry("attn.out.bias", &["layers.{}.self_attn.out_proj.bias"], Same),
            entry("mlp.norm.gain", &["layers.{}.final_layer_norm.weight"], gain),
            entry("mlp.norm.bias", &["layers.{}.final_layer_norm.bias"], bias),
            entry("mlp.up.weight", &["layers.{}.fc1.weight"], Same),
            entry("mlp.up.bias", &["layers.{}.fc1.bias"], Same),
            entry("mlp.down.weight", &["layers.{}.fc2.weight"], Same),
            entry("mlp.down.bias", &["layers.{}.fc2.bias"], Same),
            entry("final_norm.gain", &["final_layer_norm.weight"], gain),
            entry("final_norm.bias", &["final_layer_norm.bias"], bias),
            entry("head.proj.weight", &["project_out.weight"], Same),
            entry("head.weight", &["lm_head.weight"], Same),
        ],
        prefixes: &["model.decoder.", "decoder.", ""],
        bare: &["lm_head."],
        ignored: vec!["score.*", "classifier.*", "qa_outputs.*"],
        twins: &["lm_head.weight"],
    }
}

/// What a model has to be for the class to compute it.
pub(super) fn expresses(c: &ModelConfig) -> Result<(), String> {
    let norm_eps = 1e-5;
    let expected = ModelConfig {
        norm_position: c.norm_position,
        final_norm: if c.norm_position == NormPosition::Post { Norm::None } else { Norm::Layer },
        embed_dim: c.embed_dim,
        norm_eps,
        ..super::plain("opt")
    };
    if c.norm_eps != norm_eps {
        return Err(format!("norm_eps is {}, and the class has {norm_eps}", c.norm_eps));
    }
    if c.norm_position == NormPosition::PostStream {
        return Err("norm_position is \"post_stream\"".into());
    }
    super::export::activation_name(c.activation)?;
    super::export::expect(c, &expected)
}

/// config.json of a model that it expresses, with the map to store it by.
pub(super) fn export(c: &ModelConfig) -> Result<(Value, Map), String> {
    let before = c.norm_position == NormPosition::Pre;
    let value = json!({
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": super::export::activation_name(c.activation)?,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "ffn_dim": c.hidden(),
        "max_position_embeddings": c.context,
        "word_embed_proj_dim": c.d_embed(),
        "vocab_size": c.vocab,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": false,
        "enable_bias": true,
        "layer_norm_elementwise_affine": true,
        "tie_word_embeddings": c.tie_head,
        "dropout": c.dropout_residual,
        "attention_dropout": c.dropout_attention,
    });
    Ok((value, map(true)))
}

pub(super) const HEADS: Heads =
    Heads { family: &["OPT"], next_token: &["OPTForCausalLM"], masked: &[], classes: &[] };
