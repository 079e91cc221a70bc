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
