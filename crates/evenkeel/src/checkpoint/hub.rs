//! Names of models on the Hugging Face Hub, and the folders of the local cache that they mean.
//!
//! The cache is the one that Python's `huggingface_hub` keeps, so that a model that is there for other programs
//! is there for this one:
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION      holds the COMMIT that a branch or tag stood at
//! models--OWNER--NAME/snapshots/COMMIT/  the files, mostly links to ../../blobs/
//! ```
//!
//! Nothing here uses the network, except `fetch` of the cargo feature `hub`. What is read from a `refs` file is
//! only used if it is a commit, and a revision only if it is a plain name, so that neither leads out of the cache.

#[cfg(feature = "hub")]
pub mod datasets;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(all(test, feature = "hub"))]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::error::Hint;

#[cfg(feature = "hub")]
pub use fetch::fetch;

/// The revision meant when none is given.
const MAIN: &str = "main";

/// Files one of which must be there: the weights, or the list of the files that hold them.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// A model on the Hub: `owner/name`, at a revision. Made by [`parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    repository: String,
    revision: Option<String>,
}

impl HubName {
    /// `owner/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit; "main" if none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for HubName {
    /// As it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// A model of the Hub that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// The cache does not hold the model at this revision.
    #[error("{name} is not in the Hugging Face cache at {cache}{}", other_revisions(.revisions))]
    NotCached {
        /// What was asked for.
        name: HubName,
        /// The cache.
        cache: PathBuf,
        /// Branches, tags and commits of the model that are there.
        revisions: Vec<String>,
    },
    /// The cache holds the model in part.
    #[error("{path} lacks {missing}: expected all files of {name}")]
    Incomplete {
        /// What was asked for.
        name: HubName,
        /// The folder of its snapshot.
        path: PathBuf,
        /// The first file that is missing.
        missing: String,
    },
    /// A file of the cache does not hold what it should.
    #[error("{path} is damaged: expected {expected}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A download that failed.
    #[cfg(feature = "hub")]
    #[error("cannot download {file} of {name}: {reason}")]
    Download {
        /// What was asked for.
        name: HubName,
        /// The file, or "the list of files".
        file: String,
        /// What the server or the system said.
        reason: String,
    },
    /// The same of a dataset.
    #[cfg(feature = "hub")]
    #[error("cannot download {file} of the dataset {name}: {reason}")]
    DatasetDownload {
        /// What was asked for.
        name: HubName,
        /// The file, or "the list of files".
        file: String,
        /// What the server or the system said.
        reason: String,
    },
    /// A dataset without a file to read.
    #[cfg(feature = "hub")]
    #[error(
        "the dataset {name} has no file to download{wanted}: expected .parquet, .jsonl, .json.gz or the like"
    )]
    NoDataFiles {
        /// What was asked for.
        name: HubName,
        /// What was asked of the files, behind a space, or nothing.
        wanted: String,
    },
    /// A glob or the name of a split that means nothing.
    #[cfg(feature = "hub")]
    #[error("{problem}")]
    Selection {
        /// A sentence that names it.
        problem: String,
    },
    /// A model whose weights are in no file that is known here.
    #[cfg(feature = "hub")]
    #[error("{name} has no weights on the Hub: expected {}", WEIGHTS.join(" or "))]
    NoWeights {
        /// What was asked for.
        name: HubName,
    },
}

fn other_revisions(revisions: &[String]) -> String {
    if revisions.is_empty() { String::new() } else { format!(", which holds it at {}", revisions.join(", ")) }
}

impl Hint for HubError {
    fn hint(&self) -> String {
        match self {
            HubError::NotCached { name, revisions, .. } if revisions.is_empty() => get(name),
            HubError::NotCached { name, revisions, .. } => {
                let there = revisions.first().map_or(MAIN, String::as_str);
                format!("ask for {}@{there}, or {}", name.repository(), get(name))
            }
            HubError::Incomplete { name, .. } => get(name),
            HubError::Damaged { path, .. } => {
                format!("remove {} and download the model again", path.display())
            }
            #[cfg(feature = "hub")]
            HubError::Download { name, .. } => format!(
                "check the spelling at https://huggingface.co/{}, the network, and for a closed model the token in HF_TOKEN",
                name.repository()
            ),
            #[cfg(feature = "hub")]
            HubError::DatasetDownload { name, .. } => format!(
                "check the spelling at https://huggingface.co/datasets/{}, the network, and for a closed dataset the token in HF_TOKEN; what was loaded is kept",
                name.repository()
            ),
            #[cfg(feature = "hub")]
            HubError::NoDataFiles { name, .. } => format!(
                "see which files it has at https://huggingface.co/datasets/{}/tree/{}, and name them with --files GLOB",
                name.repository(),
                name.revision()
            ),
            #[cfg(feature = "hub")]
            HubError::Selection { .. } => {
                "for example --split train, and --files 'data/train-*.parquet' in quotes".into()
            }
            #[cfg(feature = "hub")]
            HubError::NoWeights { .. } => {
                "look for a version of the model in the format of transformers".into()
            }
        }
    }
}

/// How a model gets into the cache.
fn get(name: &HubName) -> String {
    let revision = name.revision.as_ref().map(|r| format!(" --revision {r}")).unwrap_or_default();
    let command = format!("huggingface-cli download {}{revision}", name.repository());
    if cfg!(feature = "hub") {
        format!("run it without HF_HUB_OFFLINE, or download it with `{command}`")
    } else {
        format!("download it with `{command}`, or build with the cargo feature `hub`, which does so itself")
    }
}

/// Reads `owner/name` or `owner/name@revision` as the Hub allows them; `None` for any other text, and for one
/// that is a path on this machine.
pub fn parse(text: &str) -> Option<HubName> {
    if Path::new(text).exists() {
        return None;
    }
    let (repository, revision) = match text.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (text, None),
    };
    let (owner, name) = repository.split_once('/')?;
    let valid = is_part(owner) && is_part(name) && repository.len() <= 96 && !name.ends_with(".git");
    (valid && revision.is_none_or(is_revision))
        .then(|| HubName { repository: repository.into(), revision: revision.map(String::from) })
}

/// An owner's or model's name: letters, digits, and `-`, `_`, `.` inside, the first and last of them neither
/// doubled nor at an end.
fn is_part(part: &str) -> bool {
    let ends = |c: char| c == '-' || c == '.';
    !part.is_empty()
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !part.starts_with(ends)
        && !part.ends_with(ends)
        && !part.contains("--")
        && !part.contains("..")
}

/// A branch, tag or commit; `refs/pr/1` is one. No step of it is hidden, empty or `..`.
fn is_revision(revision: &str) -> bool {
    revision.split('/').all(|step| {
        !step.is_empty()
            && !step.starts_with(['.', '-'])
            && step.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
    })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The root of the Hugging Face cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`, with
/// `XDG_CACHE_HOME` in place of `~/.cache` where it is set.
pub fn cache_dir() -> PathBuf {
    cache_dir_in(&|key| std::env::var(key).ok(), std::env::home_dir().unwrap_or_default())
}

fn cache_dir_in(variable: &dyn Fn(&str) -> Option<String>, home: PathBuf) -> PathBuf {
    let folder = |key: &str| {
        let text = variable(key).filter(|text| !text.is_empty())?;
        Some(text.strip_prefix("~/").map_or_else(|| PathBuf::from(&text), |rest| home.join(rest)))
    };
    folder("HF_HUB_CACHE").unwrap_or_else(|| {
        let home = folder("HF_HOME").unwrap_or_else(|| {
            folder("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface")
        });
        home.join("hub")
    })
}

/// The folder of a model in `cache`, with its configuration and all of its weights.
///
/// # Errors
/// [`HubError::NotCached`], [`HubError::Incomplete`], [`HubError::Damaged`].
pub fn cached(name: &HubName, cache: &Path) -> Result<PathBuf, HubError> {
    let folder = folder(name, cache);
    let snapshot = snapshot(name, &folder)?.ok_or_else(|| HubError::NotCached {
        name: name.clone(),
        cache: cache.to_path_buf(),
        revisions: revisions(&folder),
    })?;
    match missing(&snapshot)? {
        None => Ok(snapshot),
        Some(missing) => Err(HubError::Incomplete { name: name.clone(), path: snapshot, missing }),
    }
}

fn folder(name: &HubName, cache: &Path) -> PathBuf {
    cache.join(format!("models--{}", name.repository.replace('/', "--")))
}

/// The snapshot that a revision stands for, if it is there.
fn snapshot(name: &HubName, folder: &Path) -> Result<Option<PathBuf>, HubError> {
    let revision = name.revision();
    let path = folder.join("refs").join(revision);
    let commit = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_string(),
        Err(_) if is_commit(revision) => revision.to_string(),
        Err(_) => return Ok(None),
    };
    if !is_commit(&commit) {
        return Err(HubError::Damaged { path, expected: "a commit of 40 hexadecimal digits" });
    }
    Ok(Some(folder.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir()))
}

/// The first file without which a snapshot is no model.
fn missing(snapshot: &Path) -> Result<Option<String>, HubError> {
    let lacks = |name: &str| !snapshot.join(name).is_file();
    if lacks("config.json") {
        return Ok(Some("config.json".into()));
    }
    match WEIGHTS.into_iter().find(|name| !lacks(name)) {
        None => Ok(Some(WEIGHTS[0].into())),
        Some(index) if index.ends_with(".json") => {
            Ok(shards(&snapshot.join(index))?.into_iter().find(|shard| lacks(shard)))
        }
        Some(_) => Ok(None),
    }
}

/// The files that an index of weights names.
fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let damaged =
        || HubError::Damaged { path: index.to_path_buf(), expected: "a `weight_map` of file names" };
    let bytes = fs::read(index).map_err(|_| damaged())?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    if files.iter().any(|file| !is_revision(file)) { Err(damaged()) } else { Ok(files) }
}

/// Branches and tags of a model in the cache, and commits that none of them stands at.
fn revisions(folder: &Path) -> Vec<String> {
    let refs = folder.join("refs");
    let mut found = Vec::new();
    let mut named = BTreeSet::new();
    for entry in walkdir::WalkDir::new(&refs).sort_by_file_name().into_iter().flatten() {
        let commit = fs::read_to_string(entry.path()).unwrap_or_default().trim().to_string();
        let name =
            entry.path().strip_prefix(&refs).unwrap_or(entry.path()).to_string_lossy().replace('\\', "/");
        if is_commit(&commit) && folder.join("snapshots").join(&commit).is_dir() {
            found.push(name);
            named.insert(commit);
        }
    }
    let snapshots = fs::read_dir(folder.join("snapshots")).into_iter().flatten().flatten();
    let commits: BTreeSet<String> = snapshots
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|commit| is_commit(commit) && !named.contains(commit))
        .collect();
    found.extend(commits);
    found
}

/// The folder of a model: from the cache where it is whole, else, with the cargo feature `hub` and unless
/// `HF_HUB_OFFLINE` forbids it, after a download. `told` hears the name of each file that is about to be loaded.
///
/// # Errors
/// As [`cached`] without the feature or offline; a download that fails.
pub fn locate(name: &HubName, cache: &Path, told: &mut dyn FnMut(&str)) -> Result<PathBuf, HubError> {
    let found = cached(name, cache);
    #[cfg(feature = "hub")]
    if matches!(found, Err(HubError::NotCached { .. } | HubError::Incomplete { .. })) && !offline() {
        return fetch(name, cache, told);
    }
    #[cfg(not(feature = "hub"))]
    let _ = told;
    found
}

/// Whether `HF_HUB_OFFLINE` forbids downloads.
#[cfg(feature = "hub")]
fn offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

#[cfg(test)]
mod tests;
