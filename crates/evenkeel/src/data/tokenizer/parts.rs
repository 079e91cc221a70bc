//! A `tokenizer.json` from a vocabulary file and the settings beside it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::bpe_json;
use super::settings::{Settings, part, text};
use crate::data::error::DataError;

type Vocab = BTreeMap<String, u32>;

/// Byte-level BPE that puts nothing around a text unless `add_bos_token` or `add_eos_token` says so: classes
/// without "Tokenizer", and types of model that use them.
const GPT2: [&str; 9] =
    ["GPT2", "CodeGen", "gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen", "opt", "phi"];

/// Byte-level BPE in the frame `<s>` .. `</s>`.
const ROBERTA: [&str; 12] = [
    "Roberta",
    "Bart",
    "Longformer",
    "LED",
    "Mvp",
    "roberta",
    "roberta-prelayernorm",
    "data2vec-text",
    "bart",
    "longformer",
    "led",
    "mvp",
];

/// WordPiece in the frame `[CLS]` .. `[SEP]`.
const BERT: [&str; 18] = [
    "Bert",
    "DistilBert",
    "Electra",
    "MobileBert",
    "SqueezeBert",
    "ConvBert",
    "LayoutLM",
    "Lxmert",
    "bert",
    "distilbert",
    "electra",
    "mobilebert",
    "squeezebert",
    "convbert",
    "layoutlm",
    "lxmert",
    "megatron-bert",
    "visual_bert",
];

const GPT2_TOKENS: [(&str, &str); 3] =
    [("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")];
const ROBERTA_TOKENS: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("sep_token", "</s>"),
    ("cls_token", "<s>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];
const BERT_TOKENS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// `vocab.json` and `merges.txt`.
pub(super) fn byte_level(dir: &Path, settings: &Settings) -> Result<Value, DataError> {
    let roberta = match settings.rules() {
        None => false,
        Some(rules) if GPT2.contains(&rules) => false,
        Some(rules) if ROBERTA.contains(&rules) => true,
        Some(_) => return Err(settings.unknown_rules("vocab.json and merges.txt")),
    };
    let path = dir.join("vocab.json");
    let vocab: Vocab = serde_json::from_str(&text(&path)?)
        .map_err(|error| part(&path, format!("expected an object of token ids, found: {error}")))?;
    let merges = merges(&dir.join("merges.txt"), &vocab)?;
    let prefix = settings.switch("add_prefix_space")?.unwrap_or(false);
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let defaults = if roberta { ROBERTA_TOKENS.as_slice() } else { GPT2_TOKENS.as_slice() };
    let added = settings.added_tokens(&vocab, defaults)?;
    let id = |token: &str| id_of(token, &vocab, &added, &path);
    let frame = if roberta {
        let (cls, sep) = (settings.token("cls_token", "<s>"), settings.token("sep_token", "</s>"));
        json!({
            "type": "RobertaProcessing",
            "cls": [cls, id(&cls)?],
            "sep": [sep, id(&sep)?],
            "trim_offsets": true,
            "add_prefix_space": prefix,
        })
    } else {
        // OPT's models all begin with </s>, whether or not the settings came along.
        let opt = settings.is_model("opt");
        let end = if opt { "</s>" } else { "<|endoftext|>" };
        let ask = |part: &str, switch: &str, default: bool| -> Result<Option<(String, u32)>, DataError> {
            let token = settings.token(part, end);
            let on = settings.switch(switch)?.unwrap_or(default);
            if on { id(&token).map(|id| Some((token, id))) } else { Ok(None) }
        };
        template(ask("bos_token", "add_bos_token", opt)?, ask("eos_token", "add_eos_token", false)?)
    };
    let model = bpe_json(json!(vocab), json!(merges));
    Ok(tokenizer_json(model, Value::Null, byte_level.clone(), frame, byte_level, added))
}

/// `vocab.txt`: one token a line, numbered from 0.
pub(super) fn word_piece(dir: &Path, settings: &Settings) -> Result<Value, DataError> {
    if settings.rules().is_some_and(|rules| !BERT.contains(&rules)) {
        return Err(settings.unknown_rules("vocab.txt"));
    }
    let path = dir.join("vocab.txt");
    let vocab: Vocab = text(&path)?.lines().zip(0..).map(|(token, id)| (token.to_string(), id)).collect();
    let normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": settings.switch("tokenize_chinese_chars")?.unwrap_or(true),
        "strip_accents": settings.switch("strip_accents")?,
        "lowercase": settings.switch("do_lower_case")?.unwrap_or(true),
    });
    let added = settings.added_tokens(&vocab, &BERT_TOKENS)?;
    let id = |token: &str| id_of(token, &vocab, &added, &path);
    let (cls, sep) = (settings.token("cls_token", "[CLS]"), settings.token("sep_token", "[SEP]"));
    let frame = json!({"type": "BertProcessing", "cls": [cls, id(&cls)?], "sep": [sep, id(&sep)?]});
    let model = json!({
        "type": "WordPiece",
        "unk_token": settings.token("unk_token", "[UNK]"),
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    });
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    Ok(tokenizer_json(model, normalizer, json!({"type": "BertPreTokenizer"}), frame, decoder, added))
}

/// The pairs of `merges.txt`, most urgent first. Its first line may be a comment with the version.
fn merges(path: &Path, vocab: &Vocab) -> Result<Vec<Value>, DataError> {
    let mut pairs = Vec::new();
    for (line, number) in text(path)?.lines().zip(1..) {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        let wrong = |reason: String| DataError::TokenizerPart {
            path: path.to_path_buf(),
            line: Some(number),
            reason,
        };
        let pair = line.split_once(' ').filter(|(a, b)| !(a.is_empty() || b.is_empty() || b.contains(' ')));
        let (a, b) =
            pair.ok_or_else(|| wrong(format!("expected two symbols and a space, found {line:?}")))?;
        if let Some(symbol) = [a, b, &format!("{a}{b}")].into_iter().find(|s| !vocab.contains_key(*s)) {
            return Err(wrong(format!("expected symbols of vocab.json, found `{symbol}`")));
        }
        pairs.push(json!([a, b]));
    }
    Ok(pairs)
}

/// The id of a token that the frame needs.
fn id_of(token: &str, vocab: &Vocab, added: &[Value], path: &Path) -> Result<u32, DataError> {
    let of_added = || {
        let of = added.iter().find(|one| one["content"] == token)?;
        of["id"].as_u64().map(|id| id as u32)
    };
    vocab.get(token).copied().or_else(of_added).ok_or_else(|| {
        part(path, format!("expected the token `{token}`, which the tokenizer puts around texts"))
    })
}

/// A template with a token before and after each text, where there is one.
fn template(before: Option<(String, u32)>, after: Option<(String, u32)>) -> Value {
    let special = |token: &Option<(String, u32)>, side: u32| {
        token.as_ref().map(|(name, _)| json!({"SpecialToken": {"id": name, "type_id": side}}))
    };
    let framed = |text: &str, side: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": text, "type_id": side}});
        special(&before, side).into_iter().chain([text]).chain(special(&after, side)).collect()
    };
    let tokens: serde_json::Map<String, Value> = [&before, &after]
        .into_iter()
        .flatten()
        .map(|(name, id)| (name.clone(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    let pair = [framed("A", 0), framed("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}

fn tokenizer_json(
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    added_tokens: Vec<Value>,
) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    })
}
