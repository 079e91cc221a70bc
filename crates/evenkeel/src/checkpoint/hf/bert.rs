//! BERT and RoBERTa: encoders with LayerNorm after each branch and on the embedding, bare or with the head of masked language
//! modelling. A text is one segment, so that the first token type belongs to every token: it is added to the positions.

use super::keys::Keys;
use super::layout::{Layout, Map, entry};
use super::{Heads, HfError, Setup, Task};
use crate::model::ModelConfig;
use crate::model::config::{Norm, NormPosition, Readout};

use Layout::{PlusFirstRow, Same, SkipRowsPlusFirstRow};

const TYPES: &str = "embeddings.token_type_embeddings.weight";

pub(super) fn bert(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    let config = encoder(keys, task, "bert", 0)?;
    let map = map(&config, PlusFirstRow(TYPES), &BERT);
    Ok(Setup::new(config, map))
}

pub(super) fn roberta(keys: &mut Keys, task: Task) -> Result<Setup, HfError> {
    // Positions are counted from the padding's id + 1.
    let padding = keys.size_or_zero("pad_token_id")?.unwrap_or(1);
    let Some(id) = u32::try_from(padding).ok().filter(|&id| id < u32::MAX) else {
        return Err(keys.refused("pad_token_id", "is no token id"));
    };
    // A padding token has no position, so that the tokens after it would be counted otherwise.
    let config = ModelConfig { padding_id: Some(id), ..encoder(keys, task, "roberta", padding + 1)? };
    if config.head_transform && config.activation.to_string() != "gelu" {
        let problem = format!("is \"{}\", and the head's own is gelu: one model has one", config.activation);
        return Err(keys.refused("hidden_act", problem));
    }
    let map = map(&config, SkipRowsPlusFirstRow(padding + 1, TYPES), &ROBERTA);
    Ok(Setup::new(config, map))
}

fn encoder(keys: &mut Keys, task: Task, name: &str, skipped: usize) -> Result<ModelConfig, HfError> {
    for flag in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
        keys.only_flag(flag, false)?;
    }
    keys.only_word("position_embedding_type", "absolute")?;
    keys.only_word("directionality", "bidi")?;
    keys.size_if_any("type_vocab_size")?;
    let positions = keys.size("max_position_embeddings")?;
    let masked = task == Task::Masked;
    Ok(ModelConfig {
        depth: keys.size("num_hidden_layers")?,
        width: keys.size("hidden_size")?,
        heads: keys.size("num_attention_heads")?,
        vocab: keys.size("vocab_size")?,
        context: positions
            .checked_sub(skipped)
            .filter(|&n| n > 0)
            .ok_or_else(|| keys.refused("max_position_embeddings", "leaves no position"))?,
        mlp_hidden: keys.size("intermediate_size")?,
        norm_position: NormPosition::Post,
        norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        embed_norm: Norm::Layer,
        final_norm: Norm::None,
        causal: false,
        activation: keys.activation("hidden_act", "gelu", false)?,
        tie_head: keys.flag("tie_word_embeddings", true)? && masked,
        head_bias: masked,
        head_transform: masked,
        readout: if masked { Readout::Tokens } else { Readout::None },
        ..super::plain(name)
    })
}

/// What the two call their heads.
struct Names {
    prefixes: &'static [&'static str],
    dense: [&'static [&'static str]; 2],
    norm: [&'static [&'static str]; 2],
    decoder: &'static [&'static str],
    bias: &'static [&'static str],
}

static BERT: Names = Names {
    prefixes: &["bert.", ""],
    dense: [&["cls.predictions.transform.dense.weight"], &["cls.predictions.transform.dense.bias"]],
    norm: [
        &["cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.gamma"],
        &["cls.predictions.transform.LayerNorm.bias", "cls.predictions.transform.LayerNorm.beta"],
    ],
    decoder: &["cls.predictions.decoder.weight"],
    bias: &["cls.predictions.bias", "cls.predictions.decoder.bias"],
};

static ROBERTA: Names = Names {
    prefixes: &["roberta.", ""],
    dense: [&["lm_head.dense.weight"], &["lm_head.dense.bias"]],
    norm: [&["lm_head.layer_norm.weight"], &["lm_head.layer_norm.bias"]],
    decoder: &["lm_head.decoder.weight"],
    bias: &["lm_head.bias", "lm_head.decoder.bias"],
};

fn map(c: &ModelConfig, positions: Layout, names: &'static Names) -> Map {
    let mut ignored = vec![
        ".position_ids",
        "embeddings.token_type_ids",
        "pooler.*",
        "cls.seq_relationship.*",
        "classifier.*",
        "qa_outputs.*",
        // One of two names of the same bias.
        "cls.predictions.decoder.bias",
        "lm_head.decoder.bias",
    ];
    if c.readout == Readout::None {
        ignored.extend(["cls.*", "lm_head.*"]);
    }
    Map {
        entries: vec![
            entry("embed.token.weight", &["embeddings.word_embeddings.weight"], Same),
            entry("embed.position.weight", &["embeddings.position_embeddings.weight"], positions),
            entry("embed.norm.gain", &["embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"], Same),
            entry("embed.norm.bias", &["embeddings.LayerNorm.bias", "embeddings.LayerNorm.beta"], Same),
            entry("attn.q.weight", &["encoder.layer.{}.attention.self.query.weight"], Same),
            entry("attn.q.bias", &["encoder.layer.{}.attention.self.query.bias"], Same),
            entry("attn.k.weight", &["encoder.layer.{}.attention.self.key.weight"], Same),
            entry("attn.k.bias", &["encoder.layer.{}.attention.self.key.bias"], Same),
            entry("attn.v.weight", &["encoder.layer.{}.attention.self.value.weight"], Same),
            entry("attn.v.bias", &["encoder.layer.{}.attention.self.value.bias"], Same),
            entry("attn.out.weight", &["encoder.layer.{}.attention.output.dense.weight"], Same),
            entry("attn.out.bias", &["encoder.layer.{}.attention.output.dense.bias"], Same),
            entry(
                "attn.norm.gain",
                &[
                    "encoder.layer.{}.attention.output.LayerNorm.weight",
                    "encoder.layer.{}.attention.output.LayerNorm.gamma",
                ],
                Same,
            ),
            entry(
                "attn.norm.bias",
                &[
                    "encoder.layer.{}.attention.output.LayerNorm.bias",
                    "encoder.layer.{}.attention.output.LayerNorm.beta",
                ],
                Same,
            ),
            entry("mlp.up.weight", &["encoder.layer.{}.intermediate.dense.weight"], Same),
            entry("mlp.up.bias", &["encoder.layer.{}.intermediate.dense.bias"], Same),
            entry("mlp.down.weight", &["encoder.layer.{}.output.dense.weight"], Same),
            entry("mlp.down.bias", &["encoder.layer.{}.output.dense.bias"], Same),
            entry(
                "mlp.norm.gain",
                &["encoder.layer.{}.output.LayerNorm.weight", "encoder.layer.{}.output.LayerNorm.gamma"],
                Same,
            ),
            entry(
                "mlp.norm.bias",
                &["encoder.layer.{}.output.LayerNorm.bias", "encoder.layer.{}.output.LayerNorm.beta"],
                Same,
            ),
            entry("head.transform.weight", names.dense[0], Same),
            entry("head.transform.bias", names.dense[1], Same),
            entry("head.norm.gain", names.norm[0], Same),
            entry("head.norm.bias", names.norm[1], Same),
            entry("head.weight", names.decoder, Same),
            entry("head.bias", names.bias, Same),
        ],
        prefixes: names.prefixes,
        bare: &["cls.", "lm_head."],
        ignored,
        twins: names.decoder,
    }
}

pub(super) const HEADS: Heads = Heads {
    family: &["Bert", "Roberta", "XLMRoberta"],
    next_token: &[],
    masked: &["BertForMaskedLM", "BertForPreTraining", "RobertaForMaskedLM", "XLMRobertaForMaskedLM"],
    classes: &[],
};
