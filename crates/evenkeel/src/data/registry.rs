//! The corpus that every machine with this source has: the crates cargo has unpacked.
//!
//! Cargo keeps the sources of each registry package under `registry/src/INDEX/NAME-VERSION` of its
//! home folder, byte for byte the same everywhere. A fixed list of crate names together with the
//! versions of a `Cargo.lock` is therefore a corpus of real text that needs no download and no
//! licence of its own, and [`RegistryCorpus::hash`] lets two machines check that they used the
//! same.

use crate::random::{FNV_OFFSET, fnv1a};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use walkdir::WalkDir;

use super::corpus::Document;
use super::error::DataError;

/// Documents taken from crate sources.
#[derive(Debug, Clone)]
pub struct RegistryCorpus {
    /// One document for each file, named "NAME-VERSION/relative/path.rs", in order.
    pub documents: Vec<Document>,
    /// The number of files.
    pub files: usize,
    /// Bytes of text.
    pub bytes: u64,
    /// 64-bit FNV-1a over the text of all documents, one after the other.
    pub hash: u64,
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    source: Option<String>,
}

impl LockedPackage {
    /// Whether a listed `name` or `name@version` means this package.
    fn is(&self, listed: &str) -> bool {
        match listed.split_once('@') {
            Some((name, version)) => self.name == name && self.version == version,
            None => self.name == listed,
        }
    }

    fn is_from_registry(&self) -> bool {
        self.source
            .as_deref()
            .is_some_and(|source| source.starts_with("registry+") || source.starts_with("sparse+"))
    }
}

/// The `*.rs` files of the crates in `crate_names`, at the versions of `lock` (the text of a
/// `Cargo.lock`) and in its order, the files of a crate sorted by relative path. It ends before
/// the file that would pass `max_bytes` of text; crates past that point are not looked for. A name
/// stands for every version in `lock`; `name@version` for one, where a build has no need of the others. Files
/// that are empty or not UTF-8 (test cases of some parsers) are left out, on every machine alike.
///
/// # Errors
/// [`DataError::LockParse`]; [`DataError::CrateNotLocked`] for a name that `lock` has no registry
/// package of; [`DataError::CrateMissing`] for a crate that is not unpacked on this machine;
/// [`DataError::RegistryEmpty`] if not even one file fits; [`DataError::Io`].
pub fn cargo_registry_corpus(
    lock: &str,
    crate_names: &[&str],
    cargo_home: &Path,
    max_bytes: u64,
) -> Result<RegistryCorpus, DataError> {
    let lock: Lock =
        toml::from_str(lock).map_err(|error| DataError::LockParse { reason: error.message().to_owned() })?;
    let named = |package: &&LockedPackage| package.is_from_registry();
    for &name in crate_names {
        if !lock.package.iter().filter(named).any(|p| p.is(name)) {
            return Err(DataError::CrateNotLocked { name: name.to_owned() });
        }
    }
    let sources = cargo_home.join("registry").join("src");
    let mut corpus = RegistryCorpus { documents: Vec::new(), files: 0, bytes: 0, hash: FNV_OFFSET };
    let packages = lock.package.iter().filter(named);
    'all: for package in packages.filter(|p| crate_names.iter().any(|name| p.is(name))) {
        let label = format!("{}-{}", package.name, package.version);
        let folder = find_crate(&sources, &label).ok_or_else(|| DataError::CrateMissing {
            name: package.name.clone(),
            version: package.version.clone(),
            path: sources.clone(),
        })?;
        for relative in rust_files(&folder)? {
            let path = folder.join(&relative);
            let bytes = fs::read(&path).map_err(DataError::io("read", &path))?;
            let Ok(text) = String::from_utf8(bytes) else {
                continue;
            };
            if text.is_empty() || text.contains('\0') {
                continue;
            }
            if corpus.bytes + text.len() as u64 > max_bytes {
                break 'all;
            }
            corpus.bytes += text.len() as u64;
            corpus.files += 1;
            corpus.hash = fnv1a(corpus.hash, text.as_bytes());
            corpus.documents.push(Document { name: format!("{label}/{relative}"), text });
        }
    }
    if corpus.documents.is_empty() {
        return Err(DataError::RegistryEmpty { max_bytes });
    }
    Ok(corpus)
}

/// Where cargo keeps its files: `$CARGO_HOME`, else `.cargo` in `$HOME` or `%USERPROFILE%`.
pub fn default_cargo_home() -> Option<PathBuf> {
    let set = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
    set("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = set("HOME").or_else(|| set("USERPROFILE"))?;
        Some(PathBuf::from(home).join(".cargo"))
    })
}

/// `sources/*/label`, the first by name if several indices have it: they hold the same files.
fn find_crate(sources: &Path, label: &str) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = fs::read_dir(sources)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join(label)))
        .filter(|folder| folder.is_dir())
        .collect();
    folders.sort();
    folders.into_iter().next()
}

/// Relative paths with `/`, so that the order is the same on every platform.
fn rust_files(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_path_buf();
            let reason =
                error.into_io_error().unwrap_or_else(|| std::io::Error::other("the folder cannot be listed"));
            DataError::io("read", &path)(reason)
        })?;
        let path = entry.path();
        if entry.file_type().is_file() && path.extension().is_some_and(|e| e == "rs") {
            let relative = path.strip_prefix(folder).unwrap_or(path);
            let parts: Vec<String> =
                relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            files.push(parts.join("/"));
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 4

[[package]]
name = "beta"
version = "2.0.0"
source = "registry+https://example.org/index"
checksum = "00"

[[package]]
name = "alpha"
version = "1.0.0"
source = "registry+https://example.org/index"

[[package]]
name = "local"
version = "0.1.0"
"#;

    fn home() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("alpha-1.0.0/src/lib.rs", "lib a"),
            ("alpha-1.0.0/build.rs", "build"),
            ("alpha-1.0.0/README.md", "readme"),
            ("alpha-1.0.0/src/empty.rs", ""),
            ("beta-2.0.0/src/lib.rs", "lib beta"),
            ("beta-1.9.0/src/lib.rs", "another version"),
        ] {
            let path = dir.path().join("registry/src/index-1").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_order_is_that_of_the_lock_then_of_the_paths() {
        let home = home();
        let corpus = cargo_registry_corpus(LOCK, &["alpha", "beta"], home.path(), 1000).unwrap();
        let names: Vec<&str> = corpus.documents.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["beta-2.0.0/src/lib.rs", "alpha-1.0.0/build.rs", "alpha-1.0.0/src/lib.rs"]);
        assert_eq!((corpus.files, corpus.bytes), (3, 18));
        assert_eq!(corpus.hash, fnv1a(FNV_OFFSET, b"lib betabuildlib a"));
    }

    #[test]
    fn a_version_may_be_singled_out() {
        let home = home();
        let two = LOCK.replace("alpha", "beta");
        let bytes = |names: &[&str]| cargo_registry_corpus(&two, names, home.path(), 1000).map(|c| c.bytes);
        assert_eq!(bytes(&["beta@2.0.0"]).unwrap(), 8);
        assert!(
            matches!(bytes(&["beta"]), Err(DataError::CrateMissing { version, .. }) if version == "1.0.0")
        );
        assert!(matches!(bytes(&["beta@3.0.0"]), Err(DataError::CrateNotLocked { .. })));
    }

    #[test]
    fn the_hash_is_fnv1a() {
        // Published test values: the empty string and "a".
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf29ce484222325);
        assert_eq!(fnv1a(FNV_OFFSET, b"a"), 0xaf63dc4c8601ec8c);
    }

    #[test]
    fn the_cap_ends_before_the_file_that_passes_it() {
        let home = home();
        let bytes = |cap| cargo_registry_corpus(LOCK, &["alpha", "beta"], home.path(), cap).map(|c| c.bytes);
        assert_eq!(bytes(13).unwrap(), 13);
        assert_eq!(bytes(12).unwrap(), 8);
        assert!(matches!(bytes(7), Err(DataError::RegistryEmpty { max_bytes: 7 })));
    }

    #[test]
    fn missing_crates_are_named() {
        let home = home();
        let read = |names: &[&str], home: &Path| cargo_registry_corpus(LOCK, names, home, 1000).unwrap_err();
        assert!(
            matches!(read(&["gamma"], home.path()), DataError::CrateNotLocked { name } if name == "gamma")
        );
        assert!(matches!(read(&["local"], home.path()), DataError::CrateNotLocked { .. }));
        let error = read(&["alpha"], Path::new("/no/such/home"));
        assert!(error.to_string().starts_with("the sources of alpha 1.0.0 were not found"), "{error}");
        let error = cargo_registry_corpus("[[package]", &[], home.path(), 1).unwrap_err();
        assert!(matches!(error, DataError::LockParse { .. }));
    }
}
