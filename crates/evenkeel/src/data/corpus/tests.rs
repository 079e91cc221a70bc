use super::*;

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn names(corpus: &Corpus, dir: &Path) -> Vec<String> {
    corpus.files().map(|p| p.strip_prefix(dir).unwrap().display().to_string()).collect()
}

fn find(dir: &Path, globs: &[&str]) -> Result<Corpus, DataError> {
    Corpus::find(&CorpusSettings {
        globs: globs.iter().map(|g| (*g).to_owned()).collect(),
        ..CorpusSettings::new([dir])
    })
}

#[test]
fn folders_are_sorted_filtered_and_without_hidden_files() {
    let dir = folder(&[
        ("b.txt", b"b"),
        ("a/z.rs", b"z"),
        ("a/deep/y.rs", b"y"),
        ("a.md", b"m"),
        (".hidden", b"h"),
        (".git/x.txt", b"x"),
    ]);
    let path = dir.path();
    assert_eq!(names(&find(path, &[]).unwrap(), path), ["a/deep/y.rs", "a/z.rs", "a.md", "b.txt"]);
    assert_eq!(names(&find(path, &["*.rs"]).unwrap(), path), ["a/deep/y.rs", "a/z.rs"]);
    assert_eq!(names(&find(path, &["a/*.rs"]).unwrap(), path), ["a/z.rs"]);
    assert_eq!(names(&find(path, &["*.md", "b.*"]).unwrap(), path), ["a.md", "b.txt"]);
    assert!(matches!(find(path, &["*.py"]), Err(DataError::NothingFound { globs, .. }) if globs == ["*.py"]));
    assert!(matches!(find(path, &["a{"]), Err(DataError::BadGlob { .. })));
}

#[test]
fn files_named_outright_keep_their_place_and_ignore_globs() {
    let dir = folder(&[("a.txt", b"a"), ("b.txt", b"b"), (".c", b"c")]);
    let path = dir.path();
    let corpus = Corpus::find(&CorpusSettings {
        inputs: vec![path.join(".c"), path.join("b.txt"), path.to_path_buf()],
        globs: vec!["*.txt".into()],
        text_key: "text".into(),
    })
    .unwrap();
    // b.txt was named first and is not read again when found.
    assert_eq!(names(&corpus, path), [".c", "b.txt", "a.txt"]);
    let (documents, _) = corpus.read_all().unwrap();
    let text: String = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(text, "cba");
}

#[test]
fn missing_inputs_are_named() {
    let missing = Corpus::find(&CorpusSettings::new(["/no/such/path"]));
    assert!(matches!(missing, Err(DataError::PathMissing { path }) if path == Path::new("/no/such/path")));
    let none = Corpus::find(&CorpusSettings::new(Vec::<PathBuf>::new()));
    assert!(matches!(none, Err(DataError::NoInputs)));
}

#[test]
fn junk_is_an_error_outright_and_skipped_in_a_folder() {
    let dir = folder(&[
        ("a.bin", b"ab\0c"),
        ("b.txt", b"abc\xE9d"),
        ("c.txt", b"fine"),
        ("d.txt", b"\xFF\xFEh\0i\0"),
    ]);
    let path = dir.path();
    let (documents, skipped) = find(path, &[]).unwrap().read_all().unwrap();
    assert_eq!(documents.len(), 1);
    let reasons: Vec<SkipReason> = skipped.iter().map(|s| s.reason).collect();
    assert_eq!(reasons, [SkipReason::Binary, SkipReason::NotUtf8, SkipReason::NotUtf8]);
    let read = |name: &str| find(&path.join(name), &[]).unwrap().read_all();
    assert!(matches!(read("a.bin"), Err(DataError::Binary { offset: 2, .. })));
    assert!(matches!(read("b.txt"), Err(DataError::NotUtf8 { offset: 3, .. })));
    assert!(matches!(read("d.txt"), Err(DataError::NotUtf8 { offset: 0, .. })));
    let junk = find(path, &["*.bin"]).unwrap().read_all();
    assert!(matches!(junk, Err(DataError::AllSkipped { skipped: 1, .. })));
}

#[test]
fn empty_files_are_not_a_corpus() {
    let dir = folder(&[("a.txt", b""), ("b.jsonl", b"\n  \n{\"text\": \"\"}\n")]);
    let result = find(dir.path(), &[]).unwrap().read_all();
    assert!(matches!(result, Err(DataError::AllEmpty { .. })));
}

#[test]
fn jsonl_lines_are_documents() {
    let dir =
        folder(&[("a.jsonl", b"\xEF\xBB\xBF{\"text\": \"one\\n\"}\r\n\n{\"id\": 1, \"text\": \"two\"}")]);
    let (documents, _) = find(dir.path(), &[]).unwrap().read_all().unwrap();
    let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["one\n", "two"]);
    assert!(documents[1].name.ends_with("a.jsonl:3"));
}

#[test]
fn jsonl_errors_name_the_line() {
    let read = |bytes: &[u8]| {
        let dir = folder(&[("a.jsonl", bytes)]);
        find(dir.path(), &[]).unwrap().read_all().unwrap_err()
    };
    let bad = read(b"{\"text\": \"x\"}\n\n{\"text\": }\n");
    assert!(matches!(bad, DataError::JsonlLine { line: 3, .. }), "{bad}");
    let keys = read(b"{\"body\": \"x\", \"id\": 1}\n");
    assert!(keys.to_string().contains("the keys body, id"), "{keys}");
    assert!(matches!(keys, DataError::JsonlText { line: 1, .. }));
    assert!(read(b"{\"text\": 3}\n").to_string().ends_with("a number"));
    assert!(read(b"[1]\n").to_string().ends_with("an array"));
}

#[test]
fn the_cap_stops_before_a_document_and_cuts_only_the_first() {
    let dir = folder(&[("a.txt", b"12345"), ("b.txt", b"123"), ("c.txt", b"1")]);
    let corpus = find(dir.path(), &[]).unwrap();
    let total = |cap| {
        let (documents, _) = read_capped(&corpus, cap).unwrap();
        documents.iter().map(|d| d.text.len()).sum::<usize>()
    };
    assert_eq!(total(100), 9);
    assert_eq!(total(8), 8);
    assert_eq!(total(7), 5);
    assert_eq!(total(5), 5);
    assert_eq!(total(4), 4);
    let dir = folder(&[("a.txt", "one\ntwo\nthrée".as_bytes())]);
    let corpus = find(dir.path(), &[]).unwrap();
    let head = |cap| read_capped(&corpus, cap).unwrap().0.remove(0).text;
    assert_eq!(head(9), "one\ntwo\n");
    assert_eq!(head(13), "one\ntwo\n");
    assert_eq!(head(14), "one\ntwo\nthrée");
    assert_eq!(head(2), "on");
    assert!(matches!(read_capped(&corpus, 0), Err(DataError::AllEmpty { .. })));
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_or_in_a_circle_are_skipped() {
    let dir = folder(&[("a.txt", b"a")]);
    std::os::unix::fs::symlink("nowhere", dir.path().join("b.txt")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    let (documents, skipped) = find(dir.path(), &[]).unwrap().read_all().unwrap();
    assert_eq!(documents.len(), 1);
    assert_eq!(skipped.len(), 2);
    assert!(skipped.iter().all(|s| s.reason == SkipReason::BrokenLink));
}

/// Name of a file, what its texts are called, and each of them.
type GoldenFile = (String, String, Vec<Option<String>>);

/// Files that scripts/golden/datasets.py wrote, copied into a folder: what is read of them, and what is expected.
fn golden(names: impl Fn(&str) -> bool) -> (tempfile::TempDir, Vec<GoldenFile>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/datasets");
    let expected = fs::read(source.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for (name, file) in expected["files"].as_object().unwrap().iter().filter(|(name, _)| names(name)) {
        fs::copy(source.join(name), dir.path().join(name)).unwrap();
        let texts = &expected["texts"][file["texts"].as_u64().unwrap() as usize];
        let texts = serde_json::from_value(texts.clone()).unwrap();
        cases.push((name.clone(), file["key"].as_str().unwrap().to_owned(), texts));
    }
    (dir, cases)
}

#[test]
fn packed_files_are_read_as_what_is_in_them() {
    let (dir, cases) = golden(|name| name.ends_with(".gz") || name.ends_with(".zst"));
    assert_eq!(cases.len(), 7);
    for (name, _, texts) in cases {
        let path = dir.path().join(&name);
        let corpus = Corpus::find(&CorpusSettings::new([&path])).unwrap();
        let documents: Vec<Document> = corpus
            .documents()
            .map(|found| match found.unwrap() {
                Found::Document(document) => document,
                other => panic!("{name}: {other:?}"),
            })
            .collect();
        let read: Vec<Option<String>> = documents.iter().map(|d| Some(d.text.clone())).collect();
        assert_eq!(read, texts, "{name}");
        let whole = name.starts_with("plain");
        let first = if whole { path.display().to_string() } else { format!("{}:1", path.display()) };
        assert_eq!(documents[0].name, first);
        // The cap is of text, not of the file.
        if whole {
            let (documents, _) = read_capped(&corpus, 8).unwrap();
            let text = texts[0].as_deref().unwrap();
            let line = text[..text.floor_char_boundary(8)].rfind('\n').unwrap() + 1;
            assert_eq!(documents[0].text, text[..line]);
        }
    }
}

#[test]
fn a_packed_file_that_was_cut_or_changed_is_named() {
    let (dir, cases) = golden(|name| name.starts_with("lines.jsonl."));
    for (name, ..) in cases {
        let path = dir.path().join(&name);
        let read = || Corpus::find(&CorpusSettings::new([&path])).unwrap().read_all();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let cut = read().unwrap_err();
        assert!(matches!(&cut, DataError::Packed { window: false, .. }), "{cut}");
        let mut changed = whole.clone();
        // In the checksum, which both have at the end.
        let at = changed.len() - 6 + 4 * usize::from(name.ends_with(".zst"));
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        let changed = read().unwrap_err();
        assert!(matches!(&changed, DataError::Packed { .. }), "{changed}");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/datasets");
    let window = Corpus::find(&CorpusSettings::new([source.join("refused_window.jsonl.zst")])).unwrap();
    let error = window.read_all().unwrap_err();
    assert!(
        error.to_string().ends_with("it asks for a window of 2048 MiB, and 128 MiB are the most"),
        "{error}"
    );
    assert!(crate::error::Hint::hint(&error).contains("zstd -d --long=31"));
}

#[cfg(feature = "parquet")]
#[test]
fn rows_of_tables_are_documents_and_nulls_are_counted() {
    let (dir, cases) = golden(|name| name.starts_with("nulls_plain") || name == "binary.parquet");
    for (name, key, texts) in cases {
        let path = dir.path().join(&name);
        let settings = CorpusSettings { text_key: key, ..CorpusSettings::new([&path]) };
        let corpus = Corpus::find(&settings).unwrap();
        let (mut read, mut nulls) = (Vec::new(), 0);
        for found in corpus.documents() {
            match found.unwrap() {
                Found::Document(document) => read.push(document),
                Found::Nulls(rows) => nulls += rows,
                Found::Skipped(file) => panic!("{file:?}"),
            }
        }
        let expected: Vec<Document> = texts
            .iter()
            .enumerate()
            .filter_map(|(row, text)| {
                Some(Document { name: format!("{}:{row}", path.display()), text: text.clone()? })
            })
            .collect();
        assert_eq!(read, expected);
        assert_eq!(nulls as usize, texts.len() - expected.len());
        let wrong = Corpus::find(&CorpusSettings { text_key: "body".into(), ..settings }).unwrap();
        assert!(matches!(wrong.read_all(), Err(DataError::Parquet { .. })));
    }
}

#[test]
fn the_folder_of_a_dataset_holds_splits() {
    let line = |text: &str| format!("{{\"text\": \"{text}\"}}\n").into_bytes();
    let dir = folder(&[
        ("README.md", b"# not text of it"),
        ("dataset_infos.json", b"{}"),
        ("data/train-00000-of-00002.jsonl", &line("a")),
        ("data/train-00001-of-00002.jsonl", &line("b")),
        ("data/validation-00000-of-00001.jsonl", &line("c")),
        ("data/test-00000-of-00001.jsonl", &line("d")),
    ]);
    let path = dir.path();
    let mut corpus = find(path, &[]).unwrap();
    assert_eq!(names(&corpus, path), ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]);
    assert_eq!(corpus.test_files(), [path.join("data/test-00000-of-00001.jsonl")]);
    let validation = corpus.take_validation().unwrap();
    assert_eq!(names(&validation, path), ["data/validation-00000-of-00001.jsonl"]);
    assert_eq!(validation.read_all().unwrap().0[0].text, "c");
    assert!(corpus.take_validation().is_none());
    // What a glob leaves is all there is.
    assert_eq!(names(&find(path, &["test-*"]).unwrap(), path), ["data/test-00000-of-00001.jsonl"]);
    // Named outright, a validation file is for training.
    let both = Corpus::find(&CorpusSettings::new([
        path.to_path_buf(),
        path.join("data/validation-00000-of-00001.jsonl"),
    ]));
    let mut both = both.unwrap();
    assert_eq!(both.files().len(), 3);
    assert!(both.take_validation().is_none());
    // A text that is none of a dataset's: the folder is like any other.
    fs::write(path.join("notes.txt"), "notes").unwrap();
    assert_eq!(find(path, &[]).unwrap().files().len(), 7);
}

#[test]
fn datasets_in_arrow_files_are_refused_by_name() {
    let dir =
        folder(&[("state.json", b"{}"), ("dataset_info.json", b"{}"), ("data-00000-of-00001.arrow", b"\0")]);
    let arrow = dir.path().join("data-00000-of-00001.arrow");
    assert!(matches!(find(dir.path(), &[]), Err(DataError::Arrow { path }) if path == arrow));
    let outright = Corpus::find(&CorpusSettings::new([&arrow])).unwrap();
    assert!(matches!(outright.read_all(), Err(DataError::Arrow { .. })));
    // Among other files it is one that is not text.
    fs::write(dir.path().join("a.txt"), "text").unwrap();
    let (documents, skipped) = find(dir.path(), &["*.txt", "*.arrow"]).unwrap().read_all().unwrap();
    assert_eq!((documents.len(), skipped.len()), (1, 1));
}
