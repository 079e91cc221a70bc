//! Downloading a model into the cache, with the cargo feature `hub`.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubError, HubName, WEIGHTS, cached, folder, is_commit, offline, shards};

/// The server where `HF_ENDPOINT` names no other.
const HUB: &str = "https://huggingface.co";

/// What is loaded beside the weights, where a model has it.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
];

/// Downloads the configuration, tokenizer and weights of a model (safetensors where there is a choice) into
/// `cache`, and gives its folder there. Files that are there already are kept; a download that was cut off goes
/// on where it ended. `told` hears the name of each file before it is loaded. The variables `HF_ENDPOINT` and
/// `HF_TOKEN` are heeded, and with `HF_HUB_OFFLINE` nothing is loaded.
///
/// # Errors
/// [`HubError::Download`], [`HubError::NoWeights`]; offline as [`cached`].
pub fn fetch(name: &HubName, cache: &Path, told: &mut dyn FnMut(&str)) -> Result<PathBuf, HubError> {
    if offline() {
        return cached(name, cache);
    }
    fetch_from(&endpoint(), name, cache, told)
}

fn fetch_from(
    endpoint: &str,
    name: &HubName,
    cache: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<PathBuf, HubError> {
    let failed =
        |file: &str, reason: String| HubError::Download { name: name.clone(), file: file.into(), reason };
    let cache = std::path::absolute(cache).map_err(|e| failed("the list of files", e.to_string()))?;
    let (_, repo) = open(endpoint, RepoType::Model, name.repository(), name.revision(), &cache)
        .map_err(|e| failed("the list of files", e.to_string()))?;
    let info = repo.info().map_err(|e| failed("the list of files", e.to_string()))?;
    if !is_commit(&info.sha) {
        return Err(failed("the list of files", format!("the server gives the commit {:?}", info.sha)));
    }
    let snapshot = folder(name, &cache).join("snapshots").join(&info.sha);
    let offered: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let mut load = |file: &str| {
        let path = snapshot.join(file);
        if !path.is_file() {
            told(file);
            repo.download(file).map_err(|e| failed(file, e.to_string()))?;
        }
        Ok(path)
    };
    for file in SMALL_FILES.into_iter().filter(|file| offered.contains(file)) {
        load(file)?;
    }
    let weights = WEIGHTS.into_iter().find(|file| offered.contains(file));
    let weights = weights.ok_or_else(|| HubError::NoWeights { name: name.clone() })?;
    let path = load(weights)?;
    if weights.ends_with(".json") {
        for shard in shards(&path)? {
            load(&shard)?;
        }
    }
    cached(name, &cache)
}

/// The repository of a model or a dataset at a revision, behind the server at `endpoint`.
pub(super) fn open(
    endpoint: &str,
    kind: RepoType,
    repository: &str,
    revision: &str,
    cache: &Path,
) -> Result<(Api, ApiRepo), ApiError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(cache.to_path_buf()))
        .with_progress(false)
        .with_retries(3)
        .with_endpoint(endpoint.into());
    if let Some(token) = variable("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build()?;
    let repo = api.repo(Repo::with_revision(repository.into(), kind, revision.into()));
    Ok((api, repo))
}

/// The address of the server.
pub(super) fn endpoint() -> String {
    variable("HF_ENDPOINT").unwrap_or_else(|| HUB.into())
}

fn variable(key: &str) -> Option<String> {
    std::env::var(key).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::hub::parse;
    use crate::checkpoint::hub::server::{COMMIT, server};

    #[test]
    fn a_model_is_loaded_once_with_all_of_its_shards() {
        let address = server(&[
            ("README.md", "not needed"),
            ("config.json", "{\"model_type\": \"opt\"}"),
            ("vocab.json", "{\"a\": 0}"),
            (
                "model.safetensors.index.json",
                r#"{"weight_map": {"a": "w-1.safetensors", "b": "w-2.safetensors"}}"#,
            ),
            ("w-1.safetensors", "first"),
            ("w-2.safetensors", "second"),
            ("pytorch_model.bin", "not needed"),
        ]);
        let cache = tempfile::tempdir().unwrap();
        let name = parse("owner/tiny").unwrap();
        let fetch = || {
            let mut files = Vec::new();
            let found = fetch_from(&address, &name, cache.path(), &mut |file| files.push(file.to_string()));
            (found.unwrap(), files)
        };
        let (found, files) = fetch();
        assert_eq!(found, cached(&name, cache.path()).unwrap());
        assert!(found.ends_with(format!("snapshots/{COMMIT}")));
        let expected = [
            "config.json",
            "vocab.json",
            "model.safetensors.index.json",
            "w-1.safetensors",
            "w-2.safetensors",
        ];
        assert_eq!(files, expected);
        assert_eq!(std::fs::read_to_string(found.join("w-2.safetensors")).unwrap(), "second");
        assert_eq!(fetch(), (found.clone(), Vec::new()));
        std::fs::remove_file(found.join("w-1.safetensors")).unwrap();
        assert_eq!(fetch(), (found, vec!["w-1.safetensors".to_string()]));
    }

    #[test]
    fn what_the_hub_does_not_have_is_named() {
        let address = server(&[("config.json", "{}"), ("notes.txt", "none")]);
        let cache = tempfile::tempdir().unwrap();
        let fetch =
            |text: &str| fetch_from(&address, &parse(text).unwrap(), cache.path(), &mut |_| ()).unwrap_err();
        let error = fetch("owner/tiny").to_string();
        assert!(
            error.starts_with("owner/tiny has no weights on the Hub: expected model.safetensors or"),
            "{error}"
        );
        let error = fetch("owner/none@v1").to_string();
        assert!(error.starts_with("cannot download the list of files of owner/none@v1: "), "{error}");
        assert!(error.contains("404"), "{error}");
    }
}
