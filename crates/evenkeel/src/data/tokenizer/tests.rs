use super::*;
use proptest::prelude::*;

fn train(texts: &[&str], vocab: usize) -> Tokenizer {
    let documents = texts.iter().map(|text| Ok(*text));
    Tokenizer::train_bpe(documents, vocab, &mut |_| {}).unwrap()
}

/// Text with plenty of pairs that are equally frequent.
fn corpus() -> String {
    let mut state = 1_u32;
    let mut text = String::new();
    for line in 0..600 {
        for _ in 0..8 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = ["fn ", "let ", "der Fluß ", "  if", "x = 1;", "naïve", "日本 ", "ab"];
            text.push_str(word[(state >> 20) as usize % word.len()]);
        }
        text.push('\n');
        if line % 7 == 0 {
            text.push_str("\n    ");
        }
    }
    text
}

#[test]
fn training_is_deterministic() {
    let text = corpus();
    let halves = text.split_at(text.floor_char_boundary(text.len() / 2));
    let first = train(&[halves.0, halves.1], 400);
    for _ in 0..8 {
        assert_eq!(train(&[halves.0, halves.1], 400).to_json(), first.to_json());
    }
}

#[test]
fn all_ids_are_below_the_vocabulary_asked_for() {
    let text = corpus();
    for vocab in [257, 258, 300] {
        let tokenizer = train(&[&text], vocab);
        assert_eq!(tokenizer.vocab_size(), vocab);
        let separator = tokenizer.separator().unwrap();
        assert!((separator as usize) < vocab);
        let ids = tokenizer.encode(&text).unwrap();
        assert!(ids.iter().all(|&id| (id as usize) < vocab && id != separator));
    }
    assert!(train(&["ab"], 5000).vocab_size() < 5000);
    let small = Tokenizer::train_bpe([Ok("ab")].into_iter(), 256, &mut |_| {});
    assert!(matches!(small, Err(DataError::VocabTooSmall { vocab: 256 })));
}

#[test]
fn an_error_among_the_documents_ends_training() {
    let documents = [Ok("a b a b"), Err(DataError::NoInputs), Ok("c")];
    let result = Tokenizer::train_bpe(documents.into_iter(), 300, &mut |_| {});
    assert!(matches!(result, Err(DataError::NoInputs)));
}

#[test]
fn special_tokens_in_text_are_ordinary_text() {
    let text = format!("a{SEPARATOR_TOKEN}b");
    for tokenizer in [train(&[&corpus()], 300), Tokenizer::bytes()] {
        let ids = tokenizer.encode(&text).unwrap();
        assert!(!ids.contains(&tokenizer.separator().unwrap()));
        assert_eq!(tokenizer.decode(&ids), text);
        let separator = [tokenizer.separator().unwrap()];
        assert_eq!(tokenizer.decode(&separator), SEPARATOR_TOKEN);
    }
}

#[test]
fn saved_and_loaded_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let text = corpus();
    let tokenizer = train(&[&text], 300);
    tokenizer.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.kind(), TokenizerKind::File);
    assert_eq!(loaded.to_json(), tokenizer.to_json());
    assert_eq!(loaded.separator(), tokenizer.separator());
    assert_eq!(loaded.encode(&text).unwrap(), tokenizer.encode(&text).unwrap());
}

#[test]
fn the_bytes_kind_is_an_ordinary_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes();
    tokenizer.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(&dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(loaded.kind(), TokenizerKind::Bytes);
    // The library, which other programs use, sees the same ids.
    let library = Library::parse(tokenizer.to_json(), TokenizerKind::File).unwrap();
    assert_eq!((library.vocab, library.separator), (257, Some(256)));
    let text = "Größe\n\t日本 🦀\u{7f}\u{a0} e\u{301}  \r\n";
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(tokenizer.encode(text).unwrap(), bytes);
    assert_eq!(library.encode_piece(text).unwrap(), bytes);
    assert_eq!(library.decode(&bytes), text);
}

#[test]
fn decoding_shows_what_it_does_not_know() {
    assert_eq!(Tokenizer::bytes().decode(&[104, 0xC3, 999]), "h\u{FFFD}\u{FFFD}");
    let tokenizer = train(&["ab ab"], 300);
    let mut ids = tokenizer.encode("ab").unwrap();
    ids.push(9_999);
    assert_eq!(tokenizer.decode(&ids), "ab\u{FFFD}");
}

#[test]
fn a_text_in_pieces_has_the_ids_of_the_whole() {
    let text = corpus();
    let tokenizer = train(&[&text], 400);
    let Engine::Library(library) = &tokenizer.engine else {
        panic!("a trained tokenizer is one of the library's");
    };
    assert!(library.divisible);
    let whole = library.encode_piece(&text).unwrap();
    for size in [1, 10, 1000] {
        let cut: Vec<&str> = pieces(&text, size).collect();
        assert_eq!(cut.concat(), text);
        assert!(cut.len() > text.len() / 1100, "{size}");
        let ids: Vec<u32> = cut.iter().flat_map(|piece| library.encode_piece(piece).unwrap()).collect();
        assert_eq!(ids, whole, "{size}");
    }
}

#[test]
fn a_very_long_run_of_spaces_survives() {
    let tokenizer = train(&[&corpus()], 300);
    let text = format!("a{}b", " ".repeat(300_000));
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(tokenizer.decode(&ids), text);
}

#[test]
fn files_that_would_lose_text_are_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let text = corpus();
    let mut value: Value = serde_json::from_str(&train(&[&text], 300).to_json()).unwrap();
    let plain = dir.path().join("plain.json");
    fs::write(&plain, value.to_string()).unwrap();
    value["truncation"] = json!({
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    });
    value["padding"] = json!({
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    });
    value["model"]["dropout"] = json!(0.5);
    let changed = dir.path().join("changed.json");
    fs::write(&changed, value.to_string()).unwrap();
    let plain = Tokenizer::load(&plain).unwrap();
    let changed = Tokenizer::load(&changed).unwrap();
    for text in [text.as_str(), "ab"] {
        assert_eq!(plain.encode(text).unwrap(), changed.encode(text).unwrap());
    }
}

#[test]
fn a_given_file_without_separator_has_none_and_may_fail_to_encode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words.json");
    let words = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 7}, "unk_token": "?"},
    });
    fs::write(&path, words.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.separator()), (8, None));
    assert_eq!(tokenizer.encode("a b a").unwrap(), [0, 7, 0]);
    let error = tokenizer.encode("a c").unwrap_err();
    assert!(matches!(error, DataError::Encode { .. }), "{error}");
    for wrong in ["{", "[]", "{\"model\": {\"type\": \"What\"}}"] {
        fs::write(&path, wrong).unwrap();
        let result = Tokenizer::load(&path);
        assert!(matches!(result, Err(DataError::TokenizerParse { .. })), "{wrong}");
    }
}

#[test]
fn batches_keep_their_order() {
    let tokenizer = train(&[&corpus()], 300);
    let texts: Vec<String> = (0..40).map(|i| format!("text {i} ").repeat(i)).collect();
    let batch = tokenizer.encode_batch(&texts).unwrap();
    for (text, ids) in texts.iter().zip(&batch) {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids);
        assert_eq!(&tokenizer.decode(ids), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_text_round_trips(text in "\\PC{0,40}|[\\s\\S]{0,60}|([a-z]|\n| |ß|👩‍🚀){0,60}") {
        static BPE: std::sync::LazyLock<Tokenizer> =
            std::sync::LazyLock::new(|| train(&[&corpus()], 300));
        prop_assert_eq!(BPE.decode(&BPE.encode(&text).unwrap()), text.as_str());
        let bytes = Tokenizer::bytes();
        prop_assert_eq!(bytes.decode(&bytes.encode(&text).unwrap()), text.as_str());
        // Pieces of one byte ask for every permitted cut.
        let Engine::Library(library) = &BPE.engine else { unreachable!() };
        let cut: Vec<u32> = pieces(&text, 1)
            .flat_map(|piece| library.encode_piece(piece).unwrap())
            .collect();
        prop_assert_eq!(cut, library.encode_piece(&text).unwrap());
    }
}
