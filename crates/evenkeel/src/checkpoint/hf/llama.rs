//! Llama and its kin, Mistral, Qwen2, Qwen3 and Gemma: RMSNorm before each branch, rotary positions, grouped queries, a gated
//! MLP. What differs between them is in [`FAMILIES`].

use super::keys::{Keys, RopeNames};
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use crate::model::config::{Norm, Positions, Projection, QkNorm};
use serde_json::{Value, json};

use Layout::{PlusOne, Same};

/// One of the family.
struct Family {
    name: &'static str,
    activation: &'static str,
    /// Biases of queries, keys and values that no key switches.
    qkv_bias: bool,
    qk_norm: bool,
    /// Channels of a head where the configuration does not say; 0 means width / heads.
    head_dim: usize,
    /// Whether embeddings are scaled by √width and gains stored less 1.
    scaled: bool,
    tied: bool,
    window: Window,
    /// Key and value heads where the configuration does not say; 0 means as many as query heads.
    kv_heads: usize,
}

/// How a configuration speaks of sliding windows.
#[derive(Clone, Copy, PartialEq)]
enum Window {
    /// Not at all.
    None,
    /// `sliding_window` is for all blocks.
    Always,
    /// It is for some blocks if `use_sliding_window` says so: those of `layer_types`, or from `max_window_layers` on.
    Switched,
}

const LLAMA: Family = Family {
    name: "llama",
    activation: "silu",
    qkv_bias: false,
    qk_norm: false,
    head_dim: 0,
    scaled: false,
    tied: false,
    window: Window::None,
    kv_heads: 0,
};

const FAMILIES: [Family; 5] = [
    LLAMA,
    Family { name: "mistral", window: Window::Always, kv_heads: 8, ..LLAMA },
    Family { name: "qwen2", qkv_bias: true, window: Window::Switched, ..LLAMA },
    Family { name: "qwen3", qk_norm: true, head_dim: 128, window: Window::Switched, ..LLAMA },
    Family {
        name: "gemma",
        activation: "gelu_pytorch_tanh",
        head_dim: 256,
        scaled: true,
        tied: true,
        ..LLAMA
    },
];

const NAMES: RopeNames = RopeNames { base: &["rope_theta"], fraction: &["partial_rotary_factor"] };

pub(super) fn setup(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    let kind = keys.word("model_type")?.unwrap_or_default();
    let family = FAMILIES.iter().find(|f| f.name == kind).unwrap_or(&LLAMA);
    keys.only_flag("use_bidirectional_attention", false)?;
    let (width, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let (depth, context) = (keys.size("num_hidden_layers")?, keys.size("max_position_embeddings")?);
    let head_dim = keys.size_if_any("head_dim")?.unwrap_or(family.head_dim);
    let d_head = if head_dim == 0 { width / heads } else { head_dim };
    let rope = keys.rope(&NAMES, 1.0, context)?;
    let (window, window_blocks) = windows(keys, family.window, depth)?;
    let mut biases = Vec::new();
    if keys.flag("attention_bias", false)? {
        biases.extend([Projection::Q, Projection::K, Projection::V, Projection::Out]);
    } else if family.qkv_bias {
        biases.extend([Projection::Q, Projection::K, Projection::V]);
    }
    if keys.flag("mlp_bias", false)? {
        biases.extend([Projection::Gate, Projection::Up, Projection::Down]);
    }
    let norm_eps = keys.number("rms_norm_eps", 1e-6)?;
    // Released Gemma files say "gelu" and mean its tanh form, which `hidden_activation` spells out where it is set.
    let activation = match (keys.word("hidden_activation")?, keys.word("hidden_act")?) {
        (Some(_), _) => keys.activation("hidden_activation", family.activation, true)?,
        (None, Some("gelu")) if family.scaled => {
            keys.activation("hidden_activation", family.activation, true)?
        }
        (None, _) => keys.activation("hidden_act", family.activation, true)?,
    };
    let config = ModelConfig {
        depth,
        width,
        heads,
        head_dim: if d_head * heads == width { 0 } else { d_head },
        kv_heads: match keys.size_if_any("num_key_value_heads")? {
            Some(kv_heads) => kv_heads,
            None if keys.is_absent("num_key_value_heads") && family.kv_heads > 0 => family.kv_heads,
            None => heads,
        },
        vocab: keys.size("vocab_size")?,
        context,
        embed_scale: if family.scaled { f64::from((width as f32).sqrt()) } else { 1.0 },
        mlp_hidden: keys.size("intermediate_size")?,
        norm: Norm::Rms,
        final_norm: Norm::Rms,
        norm_eps,
        window,
        window_blocks,
        qk_norm: if family.qk_norm { QkNorm::RmsInside } else { QkNorm::None },
        qk_norm_eps: norm_eps,
        activation,
        positions: Positions::Rope,
        rope_base: rope.base,
        rope_fraction: rope.whole_fraction(d_head),
        rope_scaling: rope.scaling,
        biases,
        tie_head: keys.flag("tie_word_embeddings", family.tied)? && task == Task::NextToken,
        readout: task.readout(),
        ..super::plain(family.name)
    };
    Ok(Setup::new(config, map(if family.scaled { PlusOne } else { Same })))
}

/// Window of Mistral, Qwen2 and Qwen3 where no key says otherwise.
const DEFAULT_WINDOW: usize = 4096;
/// Blocks of Qwen2 and Qwen3 that see everything where no key says otherwise.
const DEFAULT_FULL_LAYERS: usize = 28;

/// The window, and the blocks that it is for; an empty list means all.
fn windows(keys: &mut Keys, kind: Window, depth: usize) -> Result<(usize, Vec<usize>), HfError> {
    if kind == Window::None {
        return Ok((0, Vec::new()));
    }
    // A null is no window; a key that is not there leaves the class's own, for the lengths that both default to.
    let by_default = if keys.is_absent("sliding_window") { DEFAULT_WINDOW } else { 0 };
    let window = keys.size_if_any("sliding_window")?.unwrap_or(by_default);
    let used = keys.flag("use_sliding_window", false)?;
    let from = keys.size_or_zero("max_window_layers")?.unwrap_or(DEFAULT_FULL_LAYERS);
    let types = keys.words("layer_types")?;
    let slides: Vec<usize> = match types {
        Some(types) => {
            if let Some(other) = types.iter().find(|t| !["full_attention", "sliding_attention"].contains(t)) {
                return Err(keys.refused("layer_types", format!("names \"{other}\", which is not known")));
            }
            if types.len() != depth {
                return Err(keys.refused("layer_types", format!("names {} layers of {depth}", types.len())));
            }
            (0..depth).filter(|&layer| types[layer] == "sliding_attention").collect()
        }
        None if kind == Window::Always => (0..depth).collect(),
        None if used => (from.min(depth)..depth).collect(),
        None => Vec::new(),
    };
    match slides.len() {
        0 => Ok((0, Vec::new())),
        n if n == depth => Ok((window, Vec::new())),
        _ => Ok((window, slides)),
    }
}

fn map(gain: Layout) -> Map {
    Map {
        entries: vec![
            entry("embed.token.weight", &["embed_tokens.weight"], Same),
            entry("attn.norm.gain", &["layers.{}.input_layernorm.weight"], gain),
            entry("attn.q.weight", &["layers.{}.self_attn.q_proj.weight"], Same),
            entry("attn.q.bias", &["layers.{}.self_attn.q_proj.bias"], Same),
            entry("attn.k.weight", &["layers.{}.self_attn.k_proj.weight"], Same),
            entry("attn.k.bias", &["layers.{}.self_attn.k_proj.bias"], Same),
            entry("attn.v.weight", &["layers.{}.self_attn.v_proj.weight"], Same),
            entry("attn.v.bias", &["layers.{}.self_attn.v_proj.bias"], Same),
            entry("attn.q_norm.gain", &["layers.{}.self_attn.q_norm.weight"], Same),
            entry("attn.k_norm.gain", &["layers.{}.self_attn.k_norm.weight"], Same),
            entry("attn.out.weight", &["layers.{}.self_attn.o_proj.weight"], Same),
            entry("attn.out.bias", &["layers.{}.self_attn.o_proj.bias"], Same),
            entry("mlp.norm.gain", &["layers.{}.post_attention_layernorm.weight"], gain),
            entry("mlp.gate.weight", &["layers.{}.mlp.gate_proj.weight"], Same),
            entry("mlp.gate.bias", &["layers.{}.mlp.gate_proj.bias"], Same),
            entry("mlp.up.weight", &["layers.{}.mlp.up_proj.weight"], Same),
            entry("mlp.up.bias", &["layers.{}.mlp.up_proj.bias"], Same),
            entry("mlp.down.weight", &["layers.{}.mlp.down_proj.weight"], Same),
            entry("mlp.down.bias", &["layers.{}.mlp.down_proj.bias"], Same),
            entry("final_norm.gain", &["norm.weight"], gain),
            entry("head.weight", &["lm_head.weight"], Same),
        ],
        prefixes: &["model.", ""],
        bare: &["lm_head."],
        ignored: vec![".rotary_emb.inv_freq", "score.*", "classifier.*", "qa_outputs.*"],
        twins: &["lm_head.weight"],
    }
}

/// What a model has to be for the class to compute it.
pub(super) fn expresses(c: &ModelConfig) -> Result<(), String> {
    if c.rope_fraction != 1.0 {
        return Err(format!("rope_fraction is {}", c.rope_fraction));
    }
    if c.activation.to_string() != "swiglu" {
        return Err(format!("activation is \"{}\"", c.activation));
    }
    let expected = ModelConfig {
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        norm: Norm::Rms,
        final_norm: Norm::Rms,
        activation: c.activation,
        positions: Positions::Rope,
        rope_base: c.rope_base,
        rope_scaling: c.rope_scaling,
        ..super::plain("llama")
    };
    super::export::expect(c, &expected)
}

/// config.json of a model that it expresses, with the map to store it by.
pub(super) fn export(c: &ModelConfig) -> Result<(Value, Map), String> {
    use crate::model::config::RopeScaling::{Dynamic, Linear, Llama3, None as Unscaled};
    let scaling = match c.rope_scaling {
        Unscaled => json!({"rope_type": "default", "rope_theta": c.rope_base}),
        Linear { factor } => json!({"rope_type": "linear", "rope_theta": c.rope_base, "factor": factor}),
        Dynamic { factor, .. } => {
            json!({"rope_type": "dynamic", "rope_theta": c.rope_base, "factor": factor})
        }
        Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "rope_theta": c.rope_base, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original as u64,
        }),
    };
    let context = match c.rope_scaling {
        Dynamic { original, .. } => original as usize,
        _ => c.context,
    };
    let attention = [Projection::Q, Projection::K, Projection::V, Projection::Out];
    let mlp = [Projection::Gate, Projection::Up, Projection::Down];
    let value = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads(),
        "head_dim": c.d_head(),
        "intermediate_size": c.hidden(),
        "max_position_embeddings": context,
        "vocab_size": c.vocab,
        "rms_norm_eps": c.norm_eps,
        // In both layouts: versions 4 and 5 each look for their own.
        "rope_theta": c.rope_base,
        "rope_scaling": if c.rope_scaling == Unscaled { Value::Null } else { scaling.clone() },
        "rope_parameters": scaling,
        "attention_bias": attention.iter().any(|&p| c.has_bias(p)),
        "mlp_bias": mlp.iter().any(|&p| c.has_bias(p)),
        "tie_word_embeddings": c.tie_head,
        "attention_dropout": c.dropout_attention,
    });
    Ok((value, map(Same)))
}

pub(super) const HEADS: Heads = Heads {
    family: &["Llama", "LLaMA", "Mistral", "Qwen2", "Qwen3", "Gemma"],
    next_token: &[
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GemmaForCausalLM",
    ],
    masked: &[],
    classes: &[],
};
