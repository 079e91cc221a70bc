//! Folders of tokenizers that are malformed, or not of a known class.

use super::*;
use crate::error::Hint;
use std::fs;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn load(files: &[(&str, &str)]) -> Result<Option<Tokenizer>, DataError> {
    Tokenizer::load_folder(folder(files).path())
}

/// The message, without the folder's own name.
#[track_caller]
fn refused(files: &[(&str, &str)]) -> String {
    let dir = folder(files);
    let error = Tokenizer::load_folder(dir.path()).unwrap_err();
    assert!(!error.hint().is_empty());
    error.to_string().replace(&format!("{}/", dir.path().display()), "")
}

const VOCAB: (&str, &str) =
    ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3, "</s>": 4, "<s>": 5}"#);
const MERGES: (&str, &str) = ("merges.txt", "#version: 0.2\na b\n");
const WORDS: (&str, &str) = ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\n##b\n");

#[test]
fn nothing_is_none_and_tokenizer_json_comes_first() {
    assert!(load(&[]).unwrap().is_none());
    assert!(load(&[("config.json", "{"), ("tokenizer_config.json", "{")]).unwrap().is_none());
    let json = Tokenizer::bytes().to_json();
    let bytes = load(&[("tokenizer.json", json.as_str()), ("vocab.json", "{")]).unwrap().unwrap();
    assert_eq!(bytes.kind(), TokenizerKind::Bytes);
    let bpe = load(&[VOCAB, MERGES, WORDS]).unwrap().unwrap();
    assert_eq!(bpe.encode("abb").unwrap(), [2, 1]);
    let words = load(&[WORDS, VOCAB]).unwrap().unwrap();
    assert_eq!(words.encode("ab A").unwrap(), [3, 4, 3]);
}

#[test]
fn class_and_type_choose_the_rules() {
    let frame = |files: &[(&str, &str)]| load(files).unwrap().unwrap().frame();
    let config = |text| ("config.json", text);
    let settings = |text| ("tokenizer_config.json", text);
    assert_eq!(frame(&[VOCAB, MERGES]), (vec![], vec![]));
    assert_eq!(frame(&[VOCAB, MERGES, config(r#"{"model_type": "opt"}"#)]), (vec![4], vec![]));
    let off = settings(r#"{"add_bos_token": false, "tokenizer_class": "PreTrainedTokenizerFast"}"#);
    assert_eq!(frame(&[VOCAB, MERGES, config(r#"{"model_type": "opt"}"#), off]), (vec![], vec![]));
    let both =
        settings(r#"{"add_bos_token": true, "add_eos_token": true, "eos_token": {"content": "</s>"}}"#);
    assert_eq!(frame(&[VOCAB, MERGES, both]), (vec![3], vec![4]));
    assert_eq!(frame(&[VOCAB, MERGES, config(r#"{"model_type": "roberta"}"#)]), (vec![5], vec![4]));
    // The class has the last word.
    let class = settings(r#"{"tokenizer_class": "GPT2TokenizerFast"}"#);
    assert_eq!(frame(&[VOCAB, MERGES, config(r#"{"model_type": "roberta"}"#), class]), (vec![], vec![]));
    assert_eq!(frame(&[WORDS]), (vec![1], vec![2]));
}

#[test]
fn tokens_that_a_file_names_are_numbered_on() {
    let special =
        ("special_tokens_map.json", r#"{"pad_token": "[PAD]", "additional_special_tokens": ["<x>", "a"]}"#);
    let tokenizer = load(&[VOCAB, MERGES, special]).unwrap().unwrap();
    assert_eq!(tokenizer.vocab_size(), 8);
    assert_eq!(tokenizer.decode(&[6, 7]).len(), "[PAD]<x>".len());
    let off = load(&[VOCAB, MERGES, ("tokenizer_config.json", r#"{"bos_token": null}"#)]).unwrap().unwrap();
    assert_eq!(off.vocab_size(), 6);
}

#[test]
fn other_tokenizers_are_refused_with_a_way_on() {
    let dir = folder(&[("tokenizer.model", "\u{a}\u{b}")]);
    let error = Tokenizer::load_folder(dir.path()).unwrap_err();
    assert!(matches!(error, DataError::SentencePiece { .. }), "{error}");
    assert!(error.hint().contains(&format!("from_pretrained(\"{}\")", dir.path().display())));
    let clip = ("tokenizer_config.json", r#"{"tokenizer_class": "CLIPTokenizer"}"#);
    assert_eq!(
        refused(&[VOCAB, MERGES, clip]),
        "tokenizer_config.json names \"CLIPTokenizer\", whose tokenizer cannot be made from vocab.json and \
         merges.txt: expected a tokenizer.json"
    );
    assert!(refused(&[VOCAB, MERGES, ("config.json", r#"{"model_type": "qwen2"}"#)]).contains("\"qwen2\""));
    assert!(refused(&[WORDS, ("config.json", r#"{"model_type": "mpnet"}"#)]).contains("from vocab.txt"));
}

#[test]
fn malformed_files_are_named_with_the_line() {
    let cases: [(&[(&str, &str)], &str); 17] = [
        (&[VOCAB], "vocab.json: expected merges.txt beside it"),
        (&[MERGES], "merges.txt: expected vocab.json beside it"),
        (&[("vocab.json", "[1]"), MERGES], "vocab.json: expected an object of token ids"),
        (&[("vocab.json", r#"{"a": -1}"#), MERGES], "vocab.json: expected an object of token ids"),
        (&[("vocab.json", "{}"), ("merges.txt", "")], "vocabulary is empty"),
        (&[VOCAB, ("merges.txt", "#version: 0.2\na b\n\nab\n")], "merges.txt, line 4: expected two symbols"),
        (&[VOCAB, ("merges.txt", "a b c\n")], "merges.txt, line 1: expected two symbols"),
        (&[VOCAB, ("merges.txt", "a b\na \n")], "merges.txt, line 2: expected two symbols"),
        (&[VOCAB, ("merges.txt", "a b\r\na z\r\n")], "line 2: expected symbols of vocab.json, found `z`"),
        (&[VOCAB, ("merges.txt", "b a\n")], "line 1: expected symbols of vocab.json, found `ba`"),
        (&[VOCAB, MERGES, ("tokenizer_config.json", "[]")], "tokenizer_config.json: expected a JSON object"),
        (
            &[VOCAB, MERGES, ("tokenizer_config.json", r#"{"add_prefix_space": "no"}"#)],
            "expected true or false for `add_prefix_space`, found \"no\"",
        ),
        (
            &[VOCAB, MERGES, ("tokenizer_config.json", r#"{"bos_token": 5}"#)],
            "expected a token, as text or with its `content`, for `bos_token`",
        ),
        (
            &[VOCAB, MERGES, ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {}}}"#)],
            "expected a token id for the key `x` in `added_tokens_decoder`",
        ),
        (
            &[VOCAB, MERGES, ("added_tokens.json", r#"{"<x>": 9}"#)],
            "added_tokens.json: it gives `<x>` the id 9: expected 6 with this vocabulary",
        ),
        (&[("vocab.txt", "[UNK]\na\n")], "vocab.txt: expected the token `[CLS]`"),
        (&[("vocab.txt", "")], "vocab.txt: expected the token `[CLS]`"),
    ];
    for (files, message) in cases {
        let error = refused(files);
        assert!(error.contains(message), "{error:?} does not say {message:?}");
    }
    let dir = folder(&[VOCAB]);
    fs::write(dir.path().join("merges.txt"), b"a b\n\xff").unwrap();
    let error = Tokenizer::load_folder(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("merges.txt: expected UTF-8, found an invalid byte at byte 4"), "{error}");
}
