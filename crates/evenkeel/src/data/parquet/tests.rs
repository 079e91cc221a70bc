//! Files as pyarrow writes them, by scripts/golden/datasets.py, and what is refused.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use super::*;
use crate::error::Hint;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/datasets").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every row of a column; `None` for a null.
fn read(file: &[u8], key: &str) -> Result<Vec<Option<String>>, ParquetFault> {
    let mut texts = ParquetTexts::open(Cursor::new(file), key)?;
    let mut read = Vec::new();
    while let Some(row) = texts.next_row()? {
        match row {
            Row::Text { row, text } => {
                assert_eq!(row, read.len() as u64);
                read.push(Some(text));
            }
            Row::Nulls(count) => read.extend((0..count).map(|_| None)),
        }
    }
    assert_eq!(texts.rows(), read.len() as u64);
    Ok(read)
}

#[derive(serde::Deserialize)]
struct Expected {
    texts: Vec<Vec<Option<String>>>,
    files: BTreeMap<String, File>,
}

#[derive(serde::Deserialize)]
struct File {
    key: String,
    texts: usize,
}

#[test]
fn every_golden_file_is_read() {
    let expected: Expected = serde_json::from_slice(&golden("expected.json")).unwrap();
    let mut files = 0;
    for (name, file) in expected.files.iter().filter(|(name, _)| name.ends_with(".parquet")) {
        let texts = read(&golden(name), &file.key).unwrap_or_else(|fault| panic!("{name} {fault}"));
        assert_eq!(texts, expected.texts[file.texts], "{name}");
        files += 1;
    }
    assert!(files >= 20, "{files}");
}

#[test]
fn what_is_refused_is_named() {
    let fault = |name: &str, key: &str| {
        let fault = read(&golden(name), key).unwrap_err();
        assert!(!fault.hint().is_empty());
        fault.to_string()
    };
    assert_eq!(
        fault("refused_integers.parquet", "text"),
        "holds whole numbers in its column `text`: expected strings"
    );
    assert_eq!(
        fault("refused_integers.parquet", "content"),
        "has no column `content`: its columns are text, body"
    );
    assert_eq!(
        fault("neighbours.parquet", "content"),
        "has no column `content`: its columns are id, score, tags, text, meta, kept"
    );
    for (key, found) in [
        ("score", "floating-point numbers"),
        ("tags", "lists or structs"),
        ("meta", "lists or structs"),
        ("kept", "truth values"),
    ] {
        assert_eq!(
            fault("neighbours.parquet", key),
            format!("holds {found} in its column `{key}`: expected strings")
        );
    }
    assert_eq!(
        fault("refused_list.parquet", "text"),
        "holds lists or structs in its column `text`: expected strings"
    );
    assert_eq!(
        fault("refused_latin1.parquet", "text"),
        "holds a value that is not UTF-8 in its column `text`, row 1"
    );
    assert_eq!(
        fault("refused_brotli.parquet", "text"),
        "is a Parquet file that cannot be read: its column is packed by Brotli, and snappy, gzip and zstd are read"
    );
}

#[test]
fn a_cut_is_damage() {
    let file = golden("snappy_dict_v1.parquet");
    for cut in 0..file.len() {
        let fault = read(&file[..cut], "text").unwrap_err();
        assert!(matches!(fault, ParquetFault::Damaged(_)), "{cut}: {fault}");
        // Without its beginning the offsets point elsewhere.
        assert!(cut == 0 || read(&file[cut..], "text").is_err(), "{cut}");
    }
}

#[test]
fn a_page_that_was_changed_does_not_fit_its_checksum() {
    let mut file = golden("pages.parquet");
    // Within the first page, behind its header.
    file[100] ^= 1;
    let fault = read(&file, "text").unwrap_err().to_string();
    assert_eq!(fault, "is a damaged Parquet file: the checksum of a page does not fit");
}

/// A footer of a few bytes that promises the most of everything.
#[test]
fn a_promise_takes_no_memory() {
    // Field 2, a list; 2^32 - 1 structs.
    for footer in [
        &b"\x29\xfc\xff\xff\xff\xff\x0f\x00"[..],
        b"\x29\x1c\x48\xff\xff\xff\xff\x0f",
        b"\x15\x02\x19\xfc\xff\xff",
    ] {
        let length = (footer.len() as u32).to_le_bytes();
        let file = [b"PAR1", footer, &length, b"PAR1"].concat();
        assert!(matches!(read(&file, "text"), Err(ParquetFault::Damaged(_))));
    }
    let file = [&b"PAR1"[..], &u32::MAX.to_le_bytes(), b"PAR1"].concat();
    assert!(matches!(read(&file, "text"), Err(ParquetFault::Damaged(_))));
}
