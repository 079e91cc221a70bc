//! Texts as datasets come: tables, packed files, folders with splits; and sizes of models, which are never allocated.

mod common;

use common::{Sandbox, text};
use std::path::Path;

/// A file that scripts/golden/datasets.py wrote.
fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/datasets").join(name))
        .unwrap()
}

/// The texts of a golden file, those that are empty or null left out.
fn texts(name: &str) -> Vec<String> {
    let expected: serde_json::Value = serde_json::from_slice(&golden("expected.json")).unwrap();
    let list = expected["files"][name]["texts"].as_u64().unwrap() as usize;
    let all: Vec<Option<String>> = serde_json::from_value(expected["texts"][list].clone()).unwrap();
    all.into_iter().flatten().filter(|text| !text.is_empty()).collect()
}

fn add(sandbox: &Sandbox, golden_name: &str, path: &str) {
    sandbox.write(path, golden(golden_name));
}

/// Bytes of text in a folder that `data tokenize --bytes` made: every document has a separator behind it.
fn held(sandbox: &Sandbox, dir: &str) -> (u64, u64) {
    let summary = sandbox.json(&["data", "inspect", dir]);
    let split =
        |name: &str| summary[name]["tokens"].as_u64().unwrap() - summary[name]["documents"].as_u64().unwrap();
    (split("train"), split("val"))
}

fn bytes(texts: &[String]) -> u64 {
    texts.iter().map(|text| text.len() as u64).sum()
}

#[test]
fn every_format_holds_the_same_texts() {
    let sandbox = Sandbox::new();
    for (name, key) in [
        ("snappy_dict_v1.parquet", "text"),
        ("gzip_plain_v1.parquet", "text"),
        ("zstd_plain_v2.parquet", "text"),
        ("nulls_dict_v2.parquet", "text"),
        ("binary.parquet", "content"),
        ("lines.jsonl.gz", "text"),
        ("lines.json.gz", "text"),
        ("frames.jsonl.zst", "text"),
        ("plain.txt.zst", "text"),
    ] {
        add(&sandbox, name, name);
        let out = format!("data-{name}");
        let run =
            ["data", "tokenize", name, "--text-key", key, "--bytes", "--val-fraction", "0", "--out", &out];
        let output = sandbox.run(&run, 0);
        assert_eq!(held(&sandbox, &out), (bytes(&texts(name)), 0), "{name}");
        let nulls = common::lossy(&output.stderr).contains("rows without a text (null)");
        assert_eq!(nulls, ["nulls_dict_v2.parquet", "binary.parquet"].contains(&name), "{name}");
    }
}

#[test]
fn a_dataset_folder_brings_its_validation_split() {
    let sandbox = Sandbox::new();
    sandbox.write("books/README.md", text(1, 5000));
    sandbox.write("books/dataset_infos.json", "{}");
    let (train, val) = ("snappy_dict_v1.parquet", "none_plain_v1.parquet");
    add(&sandbox, train, "books/data/train-00000-of-00001.parquet");
    add(&sandbox, val, "books/data/validation-00000-of-00001.parquet");
    add(&sandbox, "pages.parquet", "books/data/test-00000-of-00001.parquet");
    let tokenize = |out: &str, more: &[&str]| {
        let run = [&["data", "tokenize", "books", "--bytes", "--out", out][..], more].concat();
        common::lossy(&sandbox.run(&run, 0).stderr)
    };
    let stderr = tokenize("data", &[]);
    assert_eq!(held(&sandbox, "data"), (bytes(&texts(train)), bytes(&texts(val))));
    assert!(
        stderr.contains("left out 1 files of other splits, books/data/test-00000-of-00001.parquet"),
        "{stderr}"
    );
    // A fraction that was asked for is taken of the training split.
    let stderr = tokenize("fraction", &["--val-fraction", "0.1"]);
    let (of_train, of_val) = held(&sandbox, "fraction");
    assert_eq!(of_train + of_val, bytes(&texts(train)));
    assert!(of_val > 0 && stderr.contains("left out 2 files"), "{stderr}");
    tokenize("test", &["--glob", "test-*", "--val-fraction", "0"]);
    assert_eq!(held(&sandbox, "test").0, bytes(&texts("pages.parquet")));
    let plan = sandbox.json(&["data", "tokenize", "books", "--out", "none", "--dry-run"]);
    assert_eq!((plan["files"].as_u64(), plan["validation_files"].as_u64()), (Some(2), Some(1)));
    // Two datasets, one with a validation split: it is that of both.
    add(&sandbox, "lines.jsonl.zst", "wiki/train.jsonl.zst");
    sandbox.ok(&["data", "tokenize", "books", "wiki", "--bytes", "--out", "both"]);
    let both = bytes(&texts(train)) + bytes(&texts("lines.jsonl.zst"));
    assert_eq!(held(&sandbox, "both"), (both, bytes(&texts(val))));
}

#[test]
fn what_cannot_be_read_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    let refused = |name: &str, key: &str| {
        let stderr = sandbox.refused(&["data", "tokenize", name, "--text-key", key, "--out", "data"]);
        assert!(!sandbox.path("data").exists());
        stderr
    };
    let names = [
        "refused_integers.parquet",
        "refused_latin1.parquet",
        "refused_brotli.parquet",
        "neighbours.parquet",
    ];
    names.iter().for_each(|name| add(&sandbox, name, name));
    assert!(
        refused(names[0], "text")
            .contains("refused_integers.parquet holds whole numbers in its column `text`")
    );
    assert!(refused(names[0], "code").contains("has no column `code`: its columns are text, body"));
    assert!(refused(names[3], "tags").contains("lists or structs"));
    assert!(refused(names[1], "text").contains("row 1"));
    assert!(refused(names[2], "text").contains("Brotli"));
    let whole = golden("zstd_dict_v1.parquet");
    sandbox.write("cut.parquet", &whole[..whole.len() - 9]);
    assert!(refused("cut.parquet", "text").contains("cut.parquet is a damaged Parquet file"));
    let whole = golden("lines.jsonl.gz");
    sandbox.write("cut.jsonl.gz", &whole[..whole.len() - 9]);
    assert!(
        refused("cut.jsonl.gz", "text").contains("cut.jsonl.gz cannot be unpacked as gzip: it ends early")
    );
    sandbox.write("saved/state.json", "{}");
    sandbox.write("saved/data-00000-of-00001.arrow", b"\xff\xff\xff\xff");
    let stderr = refused("saved", "text");
    assert!(stderr.contains("datasets.save_to_disk") && stderr.contains("to_parquet"), "{stderr}");
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_download_needs_the_feature() {
    let stderr =
        Sandbox::new().refused(&["data", "fetch", "owner/name", "--split", "train", "--max-bytes", "100"]);
    assert!(stderr.contains("owner/name cannot be downloaded: this build has no network"), "{stderr}");
    assert!(stderr.contains("--features hub") && stderr.contains("huggingface-cli download"), "{stderr}");
}

#[cfg(feature = "hub")]
#[test]
fn a_dataset_has_an_owner_and_a_name() {
    let stderr = Sandbox::new().refused(&["data", "fetch", "wikipedia"]);
    assert!(stderr.contains("`wikipedia` is no dataset on the Hub: expected OWNER/NAME"), "{stderr}");
}

/// 27 GB of weights are planned, not made.
#[test]
fn the_largest_size_is_planned_without_being_made() {
    let sandbox = Sandbox::with_data();
    sandbox.write("large.toml", "[model]\npreset = \"op\"\nsize = \"7b\"\n\n[data]\npath = \"data\"\n");
    let shown = sandbox.ok(&["config", "show", "op", "--set", "model.size=7b"]);
    for line in ["depth = 32", "width = 4096", "heads = 32", "context = 2048"] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    let list = sandbox.json(&["config", "list"]);
    let names: Vec<&str> =
        list["sizes"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["codeparrot", "100m", "320m", "1.2b", "7b"]);
    let plan = sandbox.json(&["train", "large.toml", "--dry-run", "--set", "train.batch_sequences=1"]);
    let parameters = plan["plan"]["parameters"].as_u64().unwrap();
    assert!((6_400_000_000..6_500_000_000).contains(&parameters), "{plan}");
    let stderr = sandbox.refused(&["train", "tiny.toml", "--dry-run", "--set", "model.size=7b"]);
    assert!(
        stderr.contains("model.size cannot be set to \"7b\": the file sets depth, width, heads, context"),
        "{stderr}"
    );
}
