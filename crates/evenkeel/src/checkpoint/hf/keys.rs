//! config.json, read so that no key that changes the computation is passed over: what an adapter does not ask for and what is
//! not known to be harmless is refused by name.

use super::HfError;
use crate::checkpoint::weights::shown;
use crate::model::config::{Nonlinearity, RopeScaling};
use crate::ops::Activation;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Keys that say nothing about the forward pass: where a file comes from, how it was trained, how it generates, labels.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_stride",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "language",
    "layerdrop",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "model_type",
    "n_ctx",
    "n_special",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pooler_act",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_output_size",
    "pooler_size_per_head",
    "pooler_type",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Switches that stock classes know and that change nothing while they are off.
const HARMLESS_IF_FALSE: &[&str] = &[
    "add_cross_attention",
    "is_decoder",
    "is_encoder_decoder",
    "rope_interleaved",
    "scale_embeddings",
    "tie_encoder_decoder",
    "use_bidirectional_attention",
    "use_mrope",
    "use_sliding_window",
];

/// A configuration in the making: what was asked for is ticked off.
pub(super) struct Keys<'a> {
    path: &'a Path,
    within: &'static str,
    object: &'a Map<String, Value>,
    seen: BTreeSet<&'static str>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, within: "", object, seen: BTreeSet::new() }
    }

    /// The value; a null is none.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is not there at all, so that the class's own default holds; a null is there.
    pub(super) fn is_absent(&self, key: &str) -> bool {
        !self.object.contains_key(key)
    }

    /// A refusal that names the key.
    pub(super) fn refused(&self, key: &str, problem: impl Into<String>) -> HfError {
        HfError::Key {
            path: PathBuf::from(self.path),
            key: format!("{}{key}", self.within),
            problem: problem.into(),
        }
    }

    /// A whole number of at least 1.
    pub(super) fn size(&mut self, key: &'static str) -> Result<usize, HfError> {
        match self.size_if_any(key)? {
            Some(size) => Ok(size),
            None => Err(self.refused(key, "is missing")),
        }
    }

    /// The same, where it may be missing.
    pub(super) fn size_if_any(&mut self, key: &'static str) -> Result<Option<usize>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0) {
            Some(size) => Ok(Some(size)),
            None => Err(self.refused(key, format!("must be a whole number above 0, not {}", short(value)))),
        }
    }

    /// A whole number, 0 included, where it may be missing.
    pub(super) fn size_or_zero(&mut self, key: &'static str) -> Result<Option<usize>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.refused(key, format!("must be a whole number, not {}", short(value)))),
        }
    }

    /// How many entries an object has.
    pub(super) fn count_of(&mut self, key: &'static str) -> Result<Option<usize>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object().map(Map::len).filter(|&n| n > 0) {
            Some(entries) => Ok(Some(entries)),
            None => Err(self.refused(key, format!("must be an object with entries, not {}", short(value)))),
        }
    }

    /// A number.
    pub(super) fn number(&mut self, key: &'static str, default: f64) -> Result<f64, HfError> {
        Ok(self.number_if_any(key)?.unwrap_or(default))
    }

    /// The same, where it may be missing.
    pub(super) fn number_if_any(&mut self, key: &'static str) -> Result<Option<f64>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.refused(key, format!("must be a number, not {}", short(value)))),
        }
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, HfError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_bool() {
            Some(flag) => Ok(flag),
            None => Err(self.refused(key, format!("must be true or false, not {}", short(value)))),
        }
    }

    /// A word.
    pub(super) fn word(&mut self, key: &'static str) -> Result<Option<&'a str>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_str() {
            Some(word) => Ok(Some(word)),
            None => Err(self.refused(key, format!("must be a word, not {}", short(value)))),
        }
    }

    /// A list of words.
    pub(super) fn words(&mut self, key: &'static str) -> Result<Option<Vec<&'a str>>, HfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let words = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        match words {
            Some(words) => Ok(Some(words)),
            None => Err(self.refused(key, format!("must be a list of words, not {}", short(value)))),
        }
    }

    /// One size, or two.
    pub(super) fn size_or_pair(&mut self, key: &'static str) -> Result<[usize; 2], HfError> {
        if let Some(Value::Array(list)) = self.get(key) {
            let sizes: Option<Vec<usize>> =
                list.iter().map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok())).collect();
            return match sizes.as_deref() {
                Some(&[height, width]) if height > 0 && width > 0 => Ok([height, width]),
                _ => Err(self.refused(key, "must be a whole number above 0, or two of them")),
            };
        }
        self.size(key).map(|side| [side, side])
    }

    /// Refuses a flag that is set otherwise than to `only`.
    pub(super) fn only_flag(&mut self, key: &'static str, only: bool) -> Result<(), HfError> {
        match self.flag(key, only)? == only {
            true => Ok(()),
            false => Err(self.refused(key, format!("is {}, which this version does not compute", !only))),
        }
    }

    /// Refuses a word other than `only`.
    pub(super) fn only_word(&mut self, key: &'static str, only: &str) -> Result<(), HfError> {
        match self.word(key)? {
            Some(word) if word != only => {
                Err(self.refused(key, format!("is \"{}\", which this version does not compute", shown(word))))
            }
            _ => Ok(()),
        }
    }

    /// The nonlinearity, of an MLP with or without a gate.
    pub(super) fn activation(
        &mut self,
        key: &'static str,
        default: &'static str,
        gated: bool,
    ) -> Result<Nonlinearity, HfError> {
        let name = self.word(key)?.unwrap_or(default);
        let act = match name {
            "relu" => Activation::Relu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "relu2" | "relu_squared" if !gated => Activation::SquaredRelu,
            _ => {
                return Err(self.refused(
                    key,
                    format!(
                        "is \"{}\", and known are relu, gelu, gelu_new, gelu_pytorch_tanh, silu",
                        shown(name)
                    ),
                ));
            }
        };
        Ok(if gated { Nonlinearity::Gated(act) } else { Nonlinearity::Plain(act) })
    }

    /// RoPE's base, share of rotated channels and scaling, in the layout of transformers 4 or of transformers 5.
    pub(super) fn rope(
        &mut self,
        names: &RopeNames,
        default_fraction: f64,
        context: usize,
    ) -> Result<RopeKeys, HfError> {
        let mut found = RopeKeys { base: 10_000.0, fraction: default_fraction, scaling: RopeScaling::None };
        for key in names.base {
            found.base = self.number(key, found.base)?;
        }
        for key in names.fraction {
            found.fraction = self.number(key, found.fraction)?;
        }
        let mut parts = Vec::new();
        for (key, within) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
            let Some(value) = self.get(key) else { continue };
            let Some(object) = value.as_object() else {
                return Err(self.refused(key, format!("must be an object, not {}", short(value))));
            };
            if object.is_empty() {
                continue;
            }
            let mut inner = Keys { path: self.path, within, object, seen: BTreeSet::new() };
            let mut part = found;
            inner.rope_parameters(&mut part, context)?;
            inner.finish()?;
            parts.push(part);
        }
        match parts[..] {
            [] => Ok(found),
            [one] => Ok(one),
            // A file for both versions of transformers says the same twice.
            [a, b, ..] if a == b => Ok(a),
            _ => Err(self.refused("rope_scaling", "says something else than rope_parameters")),
        }
    }

    fn rope_parameters(&mut self, found: &mut RopeKeys, context: usize) -> Result<(), HfError> {
        found.base = self.number("rope_theta", found.base)?;
        found.fraction = self.number("partial_rotary_factor", found.fraction)?;
        let old = self.word("type")?;
        let kind = self.word("rope_type")?.or(old).unwrap_or("default");
        found.scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.factor()? },
            // Relative to what the configuration calls the longest sequence.
            "dynamic" => RopeScaling::Dynamic { factor: self.factor()?, original: context as f64 },
            "llama3" => {
                let factor = self.factor()?;
                let low = self.number("low_freq_factor", 1.0)?;
                let high = self.number("high_freq_factor", 4.0)?;
                if !(low > 0.0 && low < high && high.is_finite()) {
                    return Err(
                        self.refused("high_freq_factor", "must be above low_freq_factor, and that above 0")
                    );
                }
                let original = self.size("original_max_position_embeddings")? as f64;
                RopeScaling::Llama3 { factor, low, high, original }
            }
            other => {
                let problem =
                    format!("is \"{}\", and known are default, linear, dynamic, llama3", shown(other));
                return Err(self.refused("rope_type", problem));
            }
        };
        Ok(())
    }

    /// By how much angles are stretched.
    fn factor(&mut self) -> Result<f64, HfError> {
        match self.number_if_any("factor")? {
            Some(factor) if (1.0..1e6).contains(&factor) => Ok(factor),
            Some(_) => Err(self.refused("factor", "must be at least 1 and below a million")),
            None => Err(self.refused("factor", "is missing")),
        }
    }

    /// Refuses what nobody asked for and what is not known to be harmless. A null sets nothing.
    pub(super) fn finish(self) -> Result<(), HfError> {
        let own_code = |map: &Value| {
            let classes = ["AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"];
            classes.iter().any(|class| map.get(class).is_some())
        };
        if self.object.get("auto_map").is_some_and(own_code) {
            return Err(
                self.refused("auto_map", "names code of the folder's own, which may compute anything")
            );
        }
        if self.object.get("quantization_config").is_some_and(|v| !v.is_null()) {
            let problem = "says that the weights are quantised, and only floating-point weights are read";
            return Err(self.refused("quantization_config", problem));
        }
        let harmless = |key: &str| {
            HARMLESS.contains(&key)
                || key.ends_with("_token_id")
                || key.ends_with("dropout")
                || key.ends_with("dropout_prob")
                || key.ends_with("_pdrop")
        };
        let nothing = |key: &str, value: &Value| match value {
            Value::Null => true,
            Value::Bool(false) => HARMLESS_IF_FALSE.contains(&key),
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => false,
        };
        let unknown: Vec<&str> = self
            .object
            .iter()
            .filter(|(key, _)| {
                !self.seen.contains(key.as_str()) && !harmless(key) && key.as_str() != "auto_map"
            })
            .filter(|(key, value)| !nothing(key, value))
            .map(|(key, _)| key.as_str())
            .collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(HfError::UnknownKeys {
                path: PathBuf::from(self.path),
                keys: unknown.iter().map(|key| shown(&format!("{}{key}", self.within))).collect(),
            }),
        }
    }
}

/// What an architecture calls RoPE's base and share in the layout of transformers 4.
pub(super) struct RopeNames {
    pub(super) base: &'static [&'static str],
    pub(super) fraction: &'static [&'static str],
}

/// What a configuration says about rotary positions.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct RopeKeys {
    pub(super) base: f64,
    pub(super) fraction: f64,
    pub(super) scaling: RopeScaling,
}

impl RopeKeys {
    /// The share that leaves the whole number of channels which transformers rotates.
    pub(super) fn whole_fraction(&self, d_head: usize) -> f64 {
        (d_head as f64 * self.fraction).floor() / d_head as f64
    }
}

/// A value in few characters.
fn short(value: &Value) -> String {
    shown(&value.to_string()).replace("\\\"", "\"")
}
