//! The splits of a Hugging Face dataset, which the names of its files say.
//!
//! A dataset's folder has shards such as `data/train-00000-of-00010.parquet`, `validation.jsonl` or
//! `default/test/0000.parquet`, and beside them a README.md and other files that are no text of it. A folder is taken for
//! one if it holds tables or files of lines, and nothing else but what goes with them: one of other texts is read as
//! any folder is.

use std::path::{Path, PathBuf};

use super::format::{self, Layout};

/// A split, as it is called in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedSplit {
    /// `train`, `training`.
    Train,
    /// `validation`, `valid`, `val`, `dev`.
    Validation,
    /// `test`, `testing`, `eval`, `evaluation`.
    Test,
}

impl NamedSplit {
    /// By its name, in any case.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(NamedSplit::Train),
            "validation" | "valid" | "val" | "dev" => Some(NamedSplit::Validation),
            "test" | "testing" | "eval" | "evaluation" => Some(NamedSplit::Test),
            _ => None,
        }
    }

    /// The split that a path names: by a word of the file's name, else by the nearest folder of that name. Words are what lies
    /// between `-`, `_`, `.` and digits; the first that is a split's name counts.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy();
        let word = |c: char| !c.is_alphabetic();
        let folder = |part: &Path| NamedSplit::of_name(&part.file_name()?.to_string_lossy());
        name.split(word).find_map(NamedSplit::of_name).or_else(|| path.ancestors().skip(1).find_map(folder))
    }
}

/// The files of a dataset's folder, by their splits.
#[derive(Debug, Default)]
pub(super) struct Splits {
    /// Files to train on: those of the training split, or all if none is named so.
    pub(super) train: Vec<PathBuf>,
    /// Files of the validation split, if there are some of the training split.
    pub(super) validation: Vec<PathBuf>,
    /// Files of the test split, likewise.
    pub(super) test: Vec<PathBuf>,
}

/// Whether files of this kind are what datasets consist of.
pub(crate) fn is_data(path: &Path) -> bool {
    format::of(path).0 != Layout::Text
}

pub(super) fn is_arrow(path: &Path) -> bool {
    format::of(path).0 == Layout::Arrow
}

/// Whether a file goes with a dataset and is no text of it.
fn is_companion(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let end = Path::new(&name).extension().unwrap_or_default();
    ["md", "json", "yaml", "yml"].iter().any(|known| end == *known) || name.starts_with("license")
}

/// Sorts what was found below `folder`; `None` if it is no dataset.
pub(super) fn sort(folder: &Path, found: &[PathBuf]) -> Option<Splits> {
    let split = |path: &Path| NamedSplit::of_path(path.strip_prefix(folder).unwrap_or(path));
    let (data, others): (Vec<&PathBuf>, Vec<&PathBuf>) = found.iter().partition(|path| is_data(path));
    if data.is_empty() || !others.iter().all(|path| is_companion(path)) {
        return None;
    }
    let has_train = data.iter().any(|path| split(path) == Some(NamedSplit::Train));
    let mut splits = Splits::default();
    for path in data {
        let side = match split(path) {
            Some(NamedSplit::Validation) if has_train => &mut splits.validation,
            Some(NamedSplit::Test) if has_train => &mut splits.test,
            // What names no split is more to train on, as a dataset without splits is.
            _ => &mut splits.train,
        };
        side.push(path.clone());
    }
    Some(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_recognised_by_name() {
        use NamedSplit::{Test, Train, Validation};
        for (path, split) in [
            ("data/train-00000-of-00010.parquet", Some(Train)),
            ("data/train-00000-of-00010-a09b74b3ef9c3b56.parquet", Some(Train)),
            ("data/validation-00000-of-00001.parquet", Some(Validation)),
            ("valid.jsonl.zst", Some(Validation)),
            ("val_000.jsonl", Some(Validation)),
            ("my_dev.jsonl", Some(Validation)),
            ("default/train/0000.parquet", Some(Train)),
            ("default/partial-train/0000.parquet", None),
            ("default/test/0000.parquet", Some(Test)),
            ("train/test.jsonl", Some(Test)),
            ("sample/10BT/000_00000.parquet", None),
            ("trainer.jsonl", None),
            ("latest.parquet", None),
            ("file-000000000001.json.gz", None),
        ] {
            assert_eq!(NamedSplit::of_path(Path::new(path)), split, "{path}");
        }
    }

    #[test]
    fn a_folder_of_other_files_is_no_dataset() {
        let sorted = |names: &[&str]| {
            let found: Vec<PathBuf> = names.iter().map(|name| Path::new("d").join(name)).collect();
            let names = |paths: Vec<PathBuf>| {
                paths.iter().map(|p| p.strip_prefix("d").unwrap().display().to_string()).collect::<Vec<_>>()
            };
            sort(Path::new("d"), &found).map(|s| (names(s.train), names(s.validation), names(s.test)))
        };
        assert_eq!(sorted(&["README.md", "src/train.rs", "train.jsonl", "test.parquet"]), None);
        let (train, validation, test) =
            sorted(&["README.md", "dataset_infos.json", "train.jsonl", "test.jsonl", "val.jsonl"]).unwrap();
        assert_eq!(
            (train, validation, test),
            (vec!["train.jsonl".into()], vec!["val.jsonl".into()], vec!["test.jsonl".into()])
        );
        assert_eq!(sorted(&["README.md", "package.json"]), None);
        // Nothing to train on but what is named otherwise: then that is it.
        let (train, validation, test) = sorted(&["README.md", "test-0.parquet", "a.parquet"]).unwrap();
        assert_eq!(train, ["test-0.parquet", "a.parquet"]);
        assert!(validation.is_empty() && test.is_empty());
    }
}
