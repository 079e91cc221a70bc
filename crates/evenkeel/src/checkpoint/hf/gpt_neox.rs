//! GPT-NeoX (Pythia): partial rotary positions, attention and MLP side by side with a norm each (or one after the other), fused
//! queries, keys and values head by head, a head of its own.

use super::keys::{Keys, RopeNames};
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use crate::model::config::{Branches, Positions, Projection};

use Layout::{FusedHeads, Same};

const NAMES: RopeNames = RopeNames {
    base: &["rope_theta", "rotary_emb_base"],
    fraction: &["rotary_pct", "partial_rotary_factor"],
};

pub(super) fn setup(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    let context = keys.size("max_position_embeddings")?;
    let (width, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let rope = keys.rope(&NAMES, 0.25, context)?;
    let mut biases = vec![Projection::Up, Projection::Down];
    if keys.flag("attention_bias", true)? {
        biases.extend([Projection::Q, Projection::K, Projection::V, Projection::Out]);
    }
    let config = ModelConfig {
        depth: keys.size("num_hidden_layers")?,
        width,
        heads,
        vocab: keys.size("vocab_size")?,
        context,
        mlp_hidden: keys.size("intermediate_size")?,
        norm_eps: keys.number("layer_norm_eps", 1e-5)?,
        branches: match keys.flag("use_parallel_residual", true)? {
            true => Branches::ParallelTwoNorms,
            false => Branches::Sequential,
        },
        activation: keys.activation("hidden_act", "gelu", false)?,
        positions: Positions::Rope,
        rope_base: rope.base,
        rope_fraction: rope.whole_fraction(width / heads),
        rope_scaling: rope.scaling,
        biases,
        tie_head: keys.flag("tie_word_embeddings", false)? && task == Task::NextToken,
        readout: task.readout(),
        ..super::plain("gpt_neox")
    };
    let ignored = vec![
        ".attention.bias",
        ".attention.masked_bias",
        ".rotary_emb.inv_freq",
        "score.*",
        "classifier.*",
        "qa_outputs.*",
    ];
    let map = Map {
        entries: vec![
            entry("embed.token.weight", &["embed_in.weight"], Same),
            entry("attn.norm.gain", &["layers.{}.input_layernorm.weight"], Same),
            entry("attn.norm.bias", &["layers.{}.input_layernorm.bias"], Same),
            entry("attn.q.weight", &["layers.{}.attention.query_key_value.weight"], FusedHeads(0)),
            entry("attn.q.bias", &["layers.{}.attention.query_key_value.bias"], FusedHeads(0)),
            entry("attn.k.weight", &["layers.{}.attention.query_key_value.weight"], FusedHeads(1)),
            entry("attn.k.bias", &["layers.{}.attention.query_key_value.bias"], FusedHeads(1)),
            entry("attn.v.weight", &["layers.{}.attention.query_key_value.weight"], FusedHeads(2)),
            entry("attn.v.bias", &["layers.{}.attention.query_key_value.bias"], FusedHeads(2)),
            entry("attn.out.weight", &["layers.{}.attention.dense.weight"], Same),
            entry("attn.out.bias", &["layers.{}.attention.dense.bias"], Same),
            entry("mlp.norm.gain", &["layers.{}.post_attention_layernorm.weight"], Same),
            entry("mlp.norm.bias", &["layers.{}.post_attention_layernorm.bias"], Same),
            entry("mlp.up.weight", &["layers.{}.mlp.dense_h_to_4h.weight"], Same),
            entry("mlp.up.bias", &["layers.{}.mlp.dense_h_to_4h.bias"], Same),
            entry("mlp.down.weight", &["layers.{}.mlp.dense_4h_to_h.weight"], Same),
            entry("mlp.down.bias", &["layers.{}.mlp.dense_4h_to_h.bias"], Same),
            entry("final_norm.gain", &["final_layer_norm.weight"], Same),
            entry("final_norm.bias", &["final_layer_norm.bias"], Same),
            entry("head.weight", &["embed_out.weight"], Same),
        ],
        prefixes: &["gpt_neox.", ""],
        bare: &["embed_out."],
        ignored,
        twins: &["embed_out.weight"],
    };
    Ok(Setup::new(config, map))
}

pub(super) const HEADS: Heads =
    Heads { family: &["GPTNeoX"], next_token: &["GPTNeoXForCausalLM"], masked: &[], classes: &[] };
