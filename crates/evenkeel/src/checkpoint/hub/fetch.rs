//! Downloading a model into the cache, with the cargo feature `hub`.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
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
    fetch_from(&variable("HF_ENDPOINT").unwrap_or_else(|| HUB.into()), name, cache, told)
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
    let repo = open(endpoint, name, &cache).map_err(|e| failed("the list of files", e.to_string()))?;
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

fn open(endpoint: &str, name: &HubName, cache: &Path) -> Result<ApiRepo, ApiError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(cache.to_path_buf()))
        .with_progress(false)
        .with_retries(3)
        .with_endpoint(endpoint.into());
    if let Some(token) = variable("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let repo = Repo::with_revision(name.repository().into(), RepoType::Model, name.revision().into());
    Ok(builder.build()?.repo(repo))
}

fn variable(key: &str) -> Option<String> {
    std::env::var(key).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::hub::parse;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Serves these files as the Hub does, until the test ends; gives the address.
    fn server(files: &'static [(&'static str, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, files)));
        address
    }

    fn answer(mut stream: TcpStream, files: &[(&str, &str)]) {
        let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_string();
        let range = lines.iter().find_map(|line| {
            let (key, value) = line.split_once(": bytes=")?;
            key.eq_ignore_ascii_case("range").then(|| value.split_once('-').unwrap())
        });
        let list: Vec<_> = files.iter().map(|(file, _)| serde_json::json!({"rfilename": file})).collect();
        let list = serde_json::json!({"sha": COMMIT, "siblings": list}).to_string();
        let body = match path.strip_prefix("/owner/tiny/resolve/main/") {
            None if path == "/api/models/owner/tiny/revision/main" => Some(list.as_str()),
            None => None,
            Some(file) => files.iter().find(|(name, _)| *name == file).map(|(_, text)| *text),
        };
        let Some(body) = body else {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .unwrap();
            return;
        };
        let (from, to) = range.map_or((0, body.len()), |(from, to)| {
            (from.parse().unwrap(), to.parse::<usize>().map_or(body.len(), |to| to + 1))
        });
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
             ETag: \"{:x}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n{}",
            to - from,
            to - 1,
            body.len(),
            crate::random::fnv1a(crate::random::FNV_OFFSET, body.as_bytes()),
            &body[from..to],
        )
        .unwrap();
    }

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
