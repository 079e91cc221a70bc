//! Tokenizers made from a folder's parts against the ids that transformers gives for awkward texts
//! (tests/golden/tokenizers/, made by scripts/golden/tokenizer_ids.py).
//!
//! Both sides encode text that spells a special token as ordinary text. It matters for the text with
//! "<|endoftext|>", "</s>" and "[CLS]", and for "<DOC>" and "[PAD]" among the added tokens; "<extra>" and
//! codegen's runs of spaces are added tokens without that flag, and are found in text.

use evenkeel::data::{Tokenizer, TokenizerKind};
use serde_json::Value;
use std::path::PathBuf;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn golden() -> (PathBuf, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers");
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    (folder, serde_json::from_slice(&expected).unwrap())
}

#[test]
fn ids_and_frames_are_those_of_transformers() {
    let (folder, expected) = golden();
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    let cases = expected["cases"].as_object().unwrap();
    assert_eq!((texts.len(), cases.len()), (17, 9));
    for (name, case) in cases {
        let tokenizer = Tokenizer::load_folder(&folder.join(name)).unwrap().unwrap();
        assert_eq!(tokenizer.kind(), TokenizerKind::File);
        assert_eq!(Some(tokenizer.vocab_size() as u64), case["vocab"].as_u64(), "{name}");
        assert_eq!(tokenizer.frame(), (ids(&case["before"]), ids(&case["after"])), "{name}");
        for (text, want) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text).unwrap(), ids(want), "{name}: {text:?}");
        }
    }
}

#[test]
fn saved_as_a_tokenizer_json_it_is_the_same() {
    let (folder, expected) = golden();
    for name in expected["cases"].as_object().unwrap().keys() {
        let parts = Tokenizer::load_folder(&folder.join(name)).unwrap().unwrap();
        let dir = tempfile::tempdir().unwrap();
        parts.save(dir.path()).unwrap();
        let loaded = Tokenizer::load_folder(dir.path()).unwrap().unwrap();
        assert_eq!(loaded.to_json(), parts.to_json(), "{name}");
        assert_eq!((loaded.frame(), loaded.separator()), (parts.frame(), parts.separator()), "{name}");
        for text in expected["texts"].as_array().unwrap().iter().filter_map(Value::as_str) {
            assert_eq!(loaded.encode(text).unwrap(), parts.encode(text).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn byte_level_tokenizers_give_the_text_back() {
    let (folder, expected) = golden();
    for name in ["gpt2", "opt", "roberta"] {
        let tokenizer = Tokenizer::load_folder(&folder.join(name)).unwrap().unwrap();
        for text in expected["texts"].as_array().unwrap().iter().filter_map(Value::as_str) {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text, "{name}");
        }
    }
}
