//! Whole corpora to whole folders.

use std::sync::Arc;

use super::*;
use crate::data::dataset::Dataset;
use crate::data::sampler::ValidationBlocks;

fn documents(texts: &[&str]) -> Vec<Document> {
    let document =
        |(at, text): (usize, &&str)| Document { name: format!("document {at}"), text: (*text).to_owned() };
    texts.iter().enumerate().map(document).collect()
}

fn bytes_settings(out: PathBuf) -> TokenizeSettings {
    TokenizeSettings {
        tokenizer: TokenizerChoice::Bytes,
        val: ValSplit::Fraction(0.0),
        ..TokenizeSettings::new(Vec::<PathBuf>::new(), out)
    }
}

fn all(dataset: &Dataset, split: Split) -> Vec<u32> {
    let mut ids = vec![0; dataset.len(split) as usize];
    dataset.read(split, 0, &mut ids).unwrap();
    ids
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Twenty documents of ten different lines.
fn lines() -> Vec<Document> {
    let texts: Vec<String> =
        (0..20).map(|d| (0..10).map(|l| format!("document {d} line {l}\n")).collect()).collect();
    documents(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_separator_follows_each_document_and_shards_fill_up() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/data");
    let settings = TokenizeSettings { shard_tokens: 4, ..bytes_settings(out.clone()) };
    let report = tokenize_documents(&documents(&["abc", "", "de"]), &settings, &mut |_| {}).unwrap();
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(all(&dataset, Split::Train), [97, 98, 99, 256, 100, 101, 256]);
    assert_eq!(names(&out), ["data.json", "tokenizer.json", "train_000000.bin", "train_000001.bin"]);
    assert_eq!(names(&dir.path().join("new")), ["data"]);
    let summary = report.summary;
    assert_eq!(summary.sample.unwrap(), "abc<|endoftext|>de<|endoftext|>");
    assert_eq!((summary.train.tokens, summary.train.documents, summary.train.shards), (7, Some(2), 2));
    assert_eq!((report.empty_documents, report.split), (1, SplitOutcome::None));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(out.join("data.json")).unwrap()).unwrap();
    let expected = serde_json::json!({
        "schema": 1, "vocab": 257, "dtype": "uint16", "separator": 256,
        "train": {"tokens": 7, "documents": 2, "shards": 2},
        "val": {"tokens": 0, "documents": 0, "shards": 0},
        "tokenizer": "bytes", "source": {"files": 3, "bytes": 5},
        "bytes_per_token": 5.0 / 7.0,
    });
    assert_eq!(json, expected);
}

#[test]
fn a_trained_bpe_gives_the_text_back_and_the_same_folder_twice() {
    let dir = tempfile::tempdir().unwrap();
    let tokenize_to = |name: &str| {
        let out = dir.path().join(name);
        let settings = TokenizeSettings {
            tokenizer: TokenizerChoice::TrainBpe(300),
            val: ValSplit::Fraction(0.2),
            ..bytes_settings(out.clone())
        };
        let report = tokenize_documents(&lines(), &settings, &mut |_| {}).unwrap();
        assert_eq!(report.split, SplitOutcome::ByDocument { moved: false });
        out
    };
    let (one, two) = (tokenize_to("one"), tokenize_to("two"));
    for name in names(&one) {
        assert_eq!(fs::read(one.join(&name)).unwrap(), fs::read(two.join(&name)).unwrap());
    }
    let dataset = Dataset::open(&one).unwrap();
    assert_eq!(dataset.data_json().unwrap().tokenizer, TokenizerKind::Bpe);
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let text = |split| tokenizer.decode(&all(&dataset, split));
    let (train, val) = (text(Split::Train), text(Split::Val));
    let mut found: Vec<&str> = train.split("<|endoftext|>").collect();
    found.extend(val.split("<|endoftext|>"));
    found.retain(|text| !text.is_empty());
    found.sort_unstable();
    let source = lines();
    let mut expected: Vec<&str> = source.iter().map(|d| d.text.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(!val.is_empty());
}

#[test]
fn the_bpe_does_not_see_validation_text() {
    let dir = tempfile::tempdir().unwrap();
    let val = dir.path().join("val.txt");
    fs::write(&val, "unseen ".repeat(100)).unwrap();
    let settings = TokenizeSettings {
        tokenizer: TokenizerChoice::TrainBpe(300),
        val: ValSplit::Fraction(0.05),
        ..bytes_settings(dir.path().join("out"))
    };
    let tokenizer_of = |documents: &[Document], settings: &TokenizeSettings| {
        tokenize_documents(documents, settings, &mut |_| {}).unwrap();
        fs::read(settings.out.join("tokenizer.json")).unwrap()
    };
    // The document of the right size is moved; whatever it says, the tokenizer is the same.
    let long = "some words, and some more words\n".repeat(40);
    let moved = |text: &str| {
        let settings = TokenizeSettings {
            force: true,
            // Seed 0 keeps both documents for training.
            seed: 0,
            ..settings.clone()
        };
        tokenizer_of(&documents(&[&long, &text.repeat(11)]), &settings)
    };
    assert_eq!(moved("unseen "), moved("hidden "));
    let settings =
        TokenizeSettings { val: ValSplit::Files(vec![val]), out: dir.path().join("files"), ..settings };
    let seen = tokenizer_of(&documents(&[&long]), &settings);
    assert!(!String::from_utf8(seen).unwrap().contains("uns"));
}

#[test]
fn one_document_is_cut_near_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let text = "0123456\n".repeat(1000);
    let settings =
        TokenizeSettings { val: ValSplit::Fraction(0.05), ..bytes_settings(dir.path().join("out")) };
    let report = tokenize_documents(&documents(&[&text]), &settings, &mut |_| {}).unwrap();
    let SplitOutcome::WithinDocument { at_byte } = report.split else {
        panic!("{:?}", report.split);
    };
    assert_eq!(at_byte % 8, 0);
    assert_eq!(report.summary.train.tokens, at_byte as u64 + 1);
    assert_eq!(report.summary.val.tokens, (8000 - at_byte) as u64 + 1);
    let dataset = Arc::new(Dataset::open(&settings.out).unwrap());
    let blocks = ValidationBlocks::new(dataset, Split::Val, 64, 2, None).unwrap();
    assert_eq!(blocks.tokens(), 384);
    // One character cannot be cut.
    let settings = TokenizeSettings { out: dir.path().join("short"), ..settings };
    let report = tokenize_documents(&documents(&["é"]), &settings, &mut |_| {}).unwrap();
    assert_eq!(report.split, SplitOutcome::None);
    assert_eq!(report.summary.train.tokens, 3);
}

#[test]
fn validation_files_are_taken_out_of_the_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let texts = dir.path().join("texts");
    fs::create_dir(&texts).unwrap();
    fs::write(texts.join("a.txt"), "aa").unwrap();
    fs::write(texts.join("b.txt"), "b").unwrap();
    fs::write(texts.join("c.bin"), "\0").unwrap();
    let settings = TokenizeSettings {
        inputs: vec![texts.clone()],
        val: ValSplit::Files(vec![texts.join("b.txt")]),
        ..bytes_settings(dir.path().join("out"))
    };
    let report = tokenize(&settings, &mut |_| {}).unwrap();
    assert_eq!(report.split, SplitOutcome::Files);
    assert_eq!(report.held_out, [texts.join("b.txt")]);
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.summary.source.unwrap(), SourceCounts { files: 2, bytes: 3 });
    let dataset = Dataset::open(&settings.out).unwrap();
    assert_eq!(all(&dataset, Split::Train), [97, 97, 256]);
    assert_eq!(all(&dataset, Split::Val), [98, 256]);
    let settings = TokenizeSettings { inputs: vec![texts.join("b.txt")], force: true, ..settings };
    let result = tokenize(&settings, &mut |_| {});
    assert!(matches!(result, Err(DataError::AllValidation)));
}

#[test]
fn a_folder_in_use_is_refused_and_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_path_buf();
    fs::write(out.join("notes.txt"), "keep me").unwrap();
    let mut settings = TokenizeSettings { shard_tokens: 2, ..bytes_settings(out.clone()) };
    let refused = tokenize_documents(&documents(&["abcde"]), &settings, &mut |_| {});
    assert!(matches!(refused, Err(DataError::OutputExists { .. })));
    assert_eq!(names(&out), ["notes.txt"]);
    settings.force = true;
    tokenize_documents(&documents(&["abcde"]), &settings, &mut |_| {}).unwrap();
    assert_eq!(names(&out).len(), 6);
    // The old shards are gone, other files and the corpus itself are not.
    settings.inputs = vec![out.clone()];
    let report = tokenize(&settings, &mut |_| {}).map(|report| report.summary.train.tokens);
    assert!(matches!(report, Err(DataError::AllEmpty { .. })), "{report:?}");
    settings.inputs = vec![out.join("notes.txt")];
    settings.shard_tokens = 100;
    tokenize(&settings, &mut |_| {}).unwrap();
    assert_eq!(names(&out), ["data.json", "notes.txt", "tokenizer.json", "train_000000.bin"]);
    settings.out = out.join("notes.txt");
    let refused = tokenize(&settings, &mut |_| {});
    assert!(matches!(refused, Err(DataError::OutputIsFile { .. })));
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let words = dir.path().join("words.json");
    let json = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}}"#;
    fs::write(&words, json).unwrap();
    let settings = TokenizeSettings {
        tokenizer: TokenizerChoice::File(words),
        ..bytes_settings(dir.path().join("out"))
    };
    let result = tokenize_documents(&documents(&["a a", "b"]), &settings, &mut |_| {});
    assert!(matches!(result, Err(DataError::Encode { .. })));
    assert_eq!(names(dir.path()), ["words.json"]);
    // Without a separator the documents follow each other directly.
    tokenize_documents(&documents(&["a a", "a"]), &settings, &mut |_| {}).unwrap();
    let dataset = Dataset::open(&settings.out).unwrap();
    assert_eq!(all(&dataset, Split::Train), [0, 0, 0]);
    assert_eq!(dataset.data_json().unwrap().separator, None);
}

#[test]
fn settings_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = bytes_settings(dir.path().join("out"));
    let run = |settings: TokenizeSettings| tokenize_documents(&lines(), &settings, &mut |_| {}).unwrap_err();
    for fraction in [-0.1, 1.0, f64::NAN] {
        let val = ValSplit::Fraction(fraction);
        let error = run(TokenizeSettings { val, ..base.clone() });
        assert!(matches!(error, DataError::ValFraction { .. }), "{fraction}");
    }
    for shard_tokens in [0, 1 << 31] {
        let error = run(TokenizeSettings { shard_tokens, ..base.clone() });
        assert!(matches!(error, DataError::ShardTokens { .. }));
    }
    let tokenizer = TokenizerChoice::TrainBpe(256);
    let error = run(TokenizeSettings { tokenizer, ..base });
    assert!(matches!(error, DataError::VocabTooSmall { .. }));
}

#[test]
fn folders_whose_files_are_missing_or_exchanged_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TokenizeSettings { shard_tokens: 3, ..bytes_settings(dir.path().join("out")) };
    tokenize_documents(&documents(&["abcde"]), &settings, &mut |_| {}).unwrap();
    let out = &settings.out;
    let mut other = serde_json::to_value(Dataset::open(out).unwrap().data_json()).unwrap();
    other["vocab"] = 300.into();
    fs::write(out.join("data.json"), other.to_string()).unwrap();
    let exchanged = Dataset::open(out).unwrap().tokenizer();
    assert!(matches!(exchanged, Err(DataError::TokenizerVocab { found: 257, expected: 300, .. })));
    fs::remove_file(out.join("train_000001.bin")).unwrap();
    assert!(matches!(
        Dataset::open(out),
        Err(DataError::DataJsonCounts { split: "train", expected_tokens: 6, found_tokens: 3, .. })
    ));
}

#[test]
fn progress_goes_through_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    let text = "some words and some more\n".repeat(60_000);
    let settings = TokenizeSettings {
        tokenizer: TokenizerChoice::TrainBpe(300),
        ..bytes_settings(dir.path().join("out"))
    };
    let mut seen = Vec::new();
    let report = tokenize_documents(&documents(&[&text]), &settings, &mut |p| seen.push(p));
    let mut stages: Vec<TokenizeStage> = seen.iter().map(|p| p.stage).collect();
    stages.dedup();
    use TokenizeStage::{Encoding, Reading, TrainingBpe};
    assert_eq!(stages, [Reading, TrainingBpe, Encoding]);
    let last = seen.last().unwrap();
    assert_eq!(Some(last.bytes), last.total_bytes);
    assert_eq!(last.tokens, report.unwrap().summary.train.tokens);
}
