//! Downloading the files of a dataset into the cache of the Hub, with the cargo feature `hub`.
//!
//! The cache is laid out as for models, under `datasets--OWNER--NAME`. Files that are there are kept, and one that was
//! cut off goes on where it ended. A dataset whose own files are of no use here is taken from the branch
//! `refs/convert/parquet`, on which the Hub keeps every dataset as Parquet.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use hf_hub::RepoType;

use super::fetch::{endpoint, open};
use super::{HubError, HubName, is_commit, is_revision, offline};
use crate::data::splits::{NamedSplit, is_data};

/// Where the Hub keeps datasets as Parquet.
const CONVERTED: &str = "refs/convert/parquet";

/// Which files of a dataset are wanted.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those of a split: train, validation or test.
    pub split: Option<String>,
    /// Those that match a glob: against the name at any depth without a `/`, else against the path.
    pub files: Option<String>,
    /// Most bytes, in the order of the names; the file that would pass them and all after it are left.
    pub max_bytes: Option<u64>,
}

/// What was downloaded, or was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder of the snapshot in the cache.
    pub snapshot: PathBuf,
    /// The files below it, sorted.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were wanted and left for `max_bytes`.
    pub left: usize,
}

/// Downloads files of the dataset into `cache`. `told` hears the name of each file before it is loaded.
///
/// # Errors
/// [`HubError::DatasetDownload`], [`HubError::NoDataFiles`], [`HubError::Selection`].
pub fn fetch(
    name: &HubName,
    cache: &Path,
    selection: &Selection,
    told: &mut dyn FnMut(&str),
) -> Result<Fetched, HubError> {
    if offline() {
        let reason = "HF_HUB_OFFLINE forbids it".into();
        let file = "the list of files".into();
        return Err(HubError::DatasetDownload { name: name.clone(), file, reason });
    }
    fetch_from(&endpoint(), name, cache, selection, told)
}

fn fetch_from(
    endpoint: &str,
    name: &HubName,
    cache: &Path,
    selection: &Selection,
    told: &mut dyn FnMut(&str),
) -> Result<Fetched, HubError> {
    let wanted = Wanted::new(selection)?;
    let failed = |file: &str, reason: String| HubError::DatasetDownload {
        name: name.clone(),
        file: file.into(),
        reason,
    };
    let list = "the list of files";
    let cache = std::path::absolute(cache).map_err(|e| failed(list, e.to_string()))?;
    let mut revisions = vec![name.revision()];
    if name.revision.is_none() {
        revisions.push(CONVERTED);
    }
    for revision in revisions {
        let (api, repo) = open(endpoint, RepoType::Dataset, name.repository(), revision, &cache)
            .map_err(|e| failed(list, e.to_string()))?;
        let info = match repo.info() {
            Ok(info) => info,
            // Not every dataset has been converted.
            Err(_) if revision == CONVERTED => break,
            Err(e) => return Err(failed(list, e.to_string())),
        };
        if !is_commit(&info.sha) {
            return Err(failed(list, format!("the server gives the commit {:?}", info.sha)));
        }
        let files = wanted.of(info.siblings.into_iter().map(|file| file.rfilename).collect());
        if files.is_empty() {
            continue;
        }
        let folder = format!("datasets--{}", name.repository().replace('/', "--"));
        let snapshot = cache.join(folder).join("snapshots").join(&info.sha);
        let mut fetched = Fetched { snapshot, files: Vec::new(), bytes: 0, left: 0 };
        let all = files.len();
        for file in files {
            let path = fetched.snapshot.join(&file);
            let there =
                path.metadata().ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
            let size = match there {
                Some(size) => size,
                None => {
                    api.metadata(&repo.url(&file)).map_err(|e| failed(&file, e.to_string()))?.size() as u64
                }
            };
            let bytes = fetched.bytes.saturating_add(size);
            if selection.max_bytes.is_some_and(|most| bytes > most) {
                break;
            }
            if there.is_none() {
                told(&file);
                repo.download(&file).map_err(|e| failed(&file, e.to_string()))?;
            }
            fetched.bytes = bytes;
            fetched.files.push(file);
        }
        fetched.left = all - fetched.files.len();
        return match fetched.files.is_empty() {
            true => Err(HubError::NoDataFiles { name: name.clone(), wanted: " of so few bytes".into() }),
            false => Ok(fetched),
        };
    }
    Err(HubError::NoDataFiles { name: name.clone(), wanted: wanted.clause() })
}

/// A selection that was understood.
struct Wanted {
    split: Option<(String, NamedSplit)>,
    files: Option<(String, GlobMatcher)>,
}

impl Wanted {
    fn new(selection: &Selection) -> Result<Self, HubError> {
        let split = selection.split.clone().map(|text| match NamedSplit::of_name(&text) {
            Some(split) => Ok((text, split)),
            None => Err(HubError::Selection {
                problem: format!("the split `{text}` is not known: expected train, validation or test"),
            }),
        });
        let files = selection.files.clone().map(|text| {
            let anywhere = if text.contains('/') { text.clone() } else { format!("**/{text}") };
            match GlobBuilder::new(&anywhere).literal_separator(true).build() {
                Ok(glob) => Ok((text, glob.compile_matcher())),
                Err(error) => Err(HubError::Selection {
                    problem: format!("the glob `{text}` cannot be parsed: {}", error.kind()),
                }),
            }
        });
        Ok(Self { split: split.transpose()?, files: files.transpose()? })
    }

    /// Those of a repository's files that are data and wanted, sorted. Names that lead elsewhere are not.
    fn of(&self, mut names: Vec<String>) -> Vec<String> {
        names.retain(|name| {
            is_revision(name)
                && is_data(Path::new(name))
                && self.files.as_ref().is_none_or(|(_, glob)| glob.is_match(name))
        });
        // Where no file names a split, the whole dataset is for training.
        let unnamed = names.iter().all(|name| NamedSplit::of_path(Path::new(name)).is_none());
        if let Some((_, split)) = &self.split
            && !(unnamed && *split == NamedSplit::Train)
        {
            names.retain(|name| NamedSplit::of_path(Path::new(name)) == Some(*split));
        }
        names.sort();
        names.dedup();
        names
    }

    fn clause(&self) -> String {
        let split = self.split.as_ref().map(|(text, _)| format!(" of the split `{text}`"));
        let files = self.files.as_ref().map(|(text, _)| format!(" that matches `{text}`"));
        [split, files].into_iter().flatten().collect()
    }
}

/// Lays the files into `out` under their names in the repository, as links into the cache, or as copies where there are
/// no links. What is there already under such a name is replaced.
///
/// # Errors
/// [`HubError::DatasetDownload`] with what the system said.
pub fn lay_out(name: &HubName, fetched: &Fetched, out: &Path) -> Result<(), HubError> {
    for file in &fetched.files {
        let lay = || -> std::io::Result<()> {
            let from = fetched.snapshot.join(file).canonicalize()?;
            let to = out.join(file);
            std::fs::create_dir_all(to.parent().unwrap_or(out))?;
            if to.symlink_metadata().is_ok() {
                std::fs::remove_file(&to)?;
            }
            #[cfg(unix)]
            {
                std::os::unix::fs::symlink(from, to)
            }
            #[cfg(not(unix))]
            {
                std::fs::copy(from, to).map(drop)
            }
        };
        let failed = |e: std::io::Error| HubError::DatasetDownload {
            name: name.clone(),
            file: file.clone(),
            reason: format!("it cannot be laid into {}: {e}", out.display()),
        };
        lay().map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::hub::parse;
    use crate::checkpoint::hub::server::{COMMIT, server};

    fn select(split: Option<&str>, files: Option<&str>, max_bytes: Option<u64>) -> Selection {
        Selection { split: split.map(Into::into), files: files.map(Into::into), max_bytes }
    }

    #[test]
    fn shards_are_loaded_once_in_order_and_within_a_cap() {
        let address = server(&[
            ("README.md", "not data"),
            ("data/train-00001-of-00002.parquet", "second shard"),
            ("data/train-00000-of-00002.parquet", "first shard"),
            ("data/validation-00000-of-00001.parquet", "held out"),
            ("../../outside.parquet", "elsewhere"),
        ]);
        let cache = tempfile::tempdir().unwrap();
        let name = parse("owner/tiny").unwrap();
        let fetch = |selection: Selection| {
            let mut loaded = Vec::new();
            let told = &mut |file: &str| loaded.push(file.to_string());
            (fetch_from(&address, &name, cache.path(), &selection, told).unwrap(), loaded)
        };
        let (found, loaded) = fetch(select(Some("train"), None, Some(20)));
        assert_eq!(found.files, ["data/train-00000-of-00002.parquet"]);
        assert_eq!((found.bytes, found.left, loaded.len()), (11, 1, 1));
        assert!(found.snapshot.ends_with(format!("datasets--owner--tiny/snapshots/{COMMIT}")));
        let (found, loaded) = fetch(select(Some("train"), None, None));
        assert_eq!(loaded, ["data/train-00001-of-00002.parquet"]);
        assert_eq!((found.bytes, found.left), (23, 0));
        let (found, _) = fetch(Selection::default());
        assert_eq!(found.files.len(), 3);
        let (held_out, _) = fetch(select(None, Some("valid*"), None));
        assert_eq!(held_out.files, ["data/validation-00000-of-00001.parquet"]);

        let out = cache.path().join("out");
        lay_out(&name, &found, &out).unwrap();
        lay_out(&name, &held_out, &out).unwrap();
        let read = |file: &str| std::fs::read_to_string(out.join("data").join(file)).unwrap();
        assert_eq!(read("train-00001-of-00002.parquet"), "second shard");
        assert_eq!(read("validation-00000-of-00001.parquet"), "held out");
    }

    #[test]
    fn a_dataset_of_other_files_is_taken_from_its_converted_branch() {
        let address = server(&[("script.py", "code"), ("convert/default/train/0000.parquet", "converted")]);
        let cache = tempfile::tempdir().unwrap();
        let fetch = |text: &str, selection: Selection| {
            fetch_from(&address, &parse(text).unwrap(), cache.path(), &selection, &mut |_| ())
        };
        let found = fetch("owner/tiny", select(Some("train"), None, None)).unwrap();
        assert_eq!(found.files, ["default/train/0000.parquet"]);
        assert_eq!(std::fs::read_to_string(found.snapshot.join(&found.files[0])).unwrap(), "converted");
        let message = |text: &str, selection| fetch(text, selection).unwrap_err().to_string();
        assert_eq!(
            message("owner/tiny@main", select(Some("test"), Some("*.parquet"), None)),
            "the dataset owner/tiny@main has no file to download of the split `test` that matches `*.parquet`: \
             expected .parquet, .jsonl, .json.gz or the like"
        );
        assert!(
            message("owner/tiny", select(Some("half"), None, None)).contains("the split `half` is not known")
        );
        assert!(message("owner/tiny", select(None, Some("a{"), None)).contains("the glob `a{`"));
        assert!(message("owner/none", Selection::default()).starts_with("cannot download the list of files"));
        assert!(message("owner/tiny", select(None, None, Some(3))).contains("of so few bytes"));
    }
}
