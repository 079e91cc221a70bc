//! What the name of a file says about it: how documents lie in it, and how it is packed.
//!
//! | name | read as |
//! | --- | --- |
//! | `*.jsonl`, `*.jsonl.gz`, `*.jsonl.zst`, and `*.json.gz`, `*.json.zst` as datasets call the same | a document for each line |
//! | `*.parquet` | a document for each row |
//! | `*.arrow` | refused with a hint |
//! | any other, after a last `.gz` or `.zst` is taken away | one document |

use std::path::Path;

use super::packing::Packing;

/// How documents lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One document.
    Text,
    /// An object for each line.
    Lines,
    /// A table with a column of texts.
    Parquet,
    /// A table in the format of Arrow, which is not read.
    Arrow,
}

/// What a name says.
pub(super) fn of(path: &Path) -> (Layout, Packing) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (name, packing) = if let Some(name) = name.strip_suffix(".gz") {
        (name, Packing::Gzip)
    } else if let Some(name) = name.strip_suffix(".zst") {
        (name, Packing::Zstd)
    } else {
        (name.as_str(), Packing::None)
    };
    let end = name.rsplit_once('.').map(|(_, end)| end);
    let layout = match (end, packing) {
        (Some("jsonl"), _) | (Some("json"), Packing::Gzip | Packing::Zstd) => Layout::Lines,
        (Some("parquet"), Packing::None) => Layout::Parquet,
        (Some("arrow"), Packing::None) => Layout::Arrow,
        _ => Layout::Text,
    };
    (layout, packing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_decides() {
        for (name, layout, packing) in [
            ("a.txt", Layout::Text, Packing::None),
            ("a.txt.gz", Layout::Text, Packing::Gzip),
            ("a.ZST", Layout::Text, Packing::Zstd),
            ("a.b.jsonl", Layout::Lines, Packing::None),
            ("A.JSONL.Zst", Layout::Lines, Packing::Zstd),
            ("file-000000000001.json.gz", Layout::Lines, Packing::Gzip),
            ("package.json", Layout::Text, Packing::None),
            ("train-00000-of-00002.parquet", Layout::Parquet, Packing::None),
            ("a.parquet.gz", Layout::Text, Packing::Gzip),
            ("data-00000-of-00001.arrow", Layout::Arrow, Packing::None),
            ("jsonl", Layout::Text, Packing::None),
        ] {
            assert_eq!(of(Path::new(name)), (layout, packing), "{name}");
        }
    }
}
