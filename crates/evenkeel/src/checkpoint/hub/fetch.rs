//! Downloading a model into the cache, with the cargo feature `hub`.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubError, HubName, WEIGHTS, cached, folder, is_commit, offline, shards};

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
    let failed =
        |file: &str, reason: String| HubError::Download { name: name.clone(), file: file.into(), reason };
    let cache = std::path::absolute(cache).map_err(|e| failed("the list of files", e.to_string()))?;
    let repo = open(name, &cache).map_err(|e| failed("the list of files", e.to_string()))?;
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

fn open(name: &HubName, cache: &Path) -> Result<ApiRepo, ApiError> {
    let variable = |key: &str| std::env::var(key).ok().filter(|text| !text.is_empty());
    let mut builder =
        ApiBuilder::from_cache(Cache::new(cache.to_path_buf())).with_progress(false).with_retries(3);
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(token) = variable("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let repo = Repo::with_revision(name.repository().into(), RepoType::Model, name.revision().into());
    Ok(builder.build()?.repo(repo))
}
