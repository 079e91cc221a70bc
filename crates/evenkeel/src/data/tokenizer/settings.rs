//! What the small JSON files of a checkpoint folder say of its tokenizer: the class, switches, and the tokens
//! that are special or were added to the vocabulary.
//!
//! `tokenizer_config.json` is the newest of them. Where its `added_tokens_decoder` lists the added tokens, the
//! older `special_tokens_map.json` and `added_tokens.json` say nothing new and are not read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::data::error::DataError;

/// Class names that say nothing of the rules.
const GENERIC: [&str; 3] = ["PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"];

/// A token beside those of the vocabulary file, or one of them with a part to play.
struct Added {
    content: String,
    /// The id it must get, and the file that says so.
    id: Option<(u32, PathBuf)>,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

/// The settings of a folder.
pub(super) struct Settings {
    path: PathBuf,
    config: Map<String, Value>,
    /// The name of the class, or of the model's type where no class is named, and the file that holds it.
    named: Option<(String, PathBuf)>,
    model_type: Option<String>,
    /// Special tokens by their part, such as "bos_token".
    parts: BTreeMap<String, Option<String>>,
    /// Special tokens without a part.
    extra: Vec<String>,
    added: Vec<Added>,
}

impl Settings {
    /// Reads what is there of the four files in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("tokenizer_config.json");
        let model_path = dir.join("config.json");
        let config = object(&path)?;
        let text =
            |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(String::from);
        let model_type = text(&object(&model_path)?, "model_type");
        let class = text(&config, "tokenizer_class").filter(|class| !GENERIC.contains(&class.as_str()));
        let named = class
            .map(|class| (class, path.clone()))
            .or_else(|| model_type.clone().map(|model_type| (model_type, model_path)));
        let mut settings = Self {
            path: path.clone(),
            config,
            named,
            model_type,
            parts: BTreeMap::new(),
            extra: Vec::new(),
            added: Vec::new(),
        };
        settings.name(&settings.config.clone(), &path)?;
        if let Some(tokens) = settings.config.get("added_tokens_decoder").filter(|v| !v.is_null()).cloned() {
            settings.added = decoder(&tokens, &path)?;
        } else {
            let map = dir.join("special_tokens_map.json");
            settings.name(&object(&map)?, &map)?;
            let list = dir.join("added_tokens.json");
            for (content, id) in object(&list)? {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| part(&list, format!("expected a token id for `{content}`")))?;
                settings.added.push(Added { id: Some((id, list.clone())), ..plain(content) });
            }
        }
        settings.added.sort_by_key(|token| token.id.as_ref().map(|(id, _)| *id));
        Ok(settings)
    }

    /// Takes up the special tokens that a file names, by part or in a list.
    fn name(&mut self, map: &Map<String, Value>, path: &Path) -> Result<(), DataError> {
        let wrong =
            |key: &str| part(path, format!("expected a token, as text or with its `content`, for `{key}`"));
        for (key, value) in map {
            if key == "additional_special_tokens" || key == "extra_special_tokens" {
                let tokens: Vec<&Value> = match value {
                    Value::Array(list) => list.iter().collect(),
                    Value::Object(by_name) => by_name.values().collect(),
                    Value::Null => Vec::new(),
                    _ => return Err(wrong(key)),
                };
                for token in tokens {
                    self.extra.push(content(token).ok_or_else(|| wrong(key))?);
                }
            } else if key.ends_with("_token") && !value.is_boolean() {
                let token =
                    if value.is_null() { None } else { Some(content(value).ok_or_else(|| wrong(key))?) };
                self.parts.insert(key.clone(), token);
            }
        }
        Ok(())
    }

    /// The class that the folder names, or else the model's type, without "TokenizerFast"; `None` if the folder
    /// names neither.
    pub(super) fn rules(&self) -> Option<&str> {
        let (name, _) = self.named.as_ref()?;
        Some(name.strip_suffix("Fast").unwrap_or(name).trim_end_matches("Tokenizer"))
    }

    /// The error for a folder whose tokenizer cannot be made from `files`.
    pub(super) fn unknown_rules(&self, files: &'static str) -> DataError {
        let (name, path) = self.named.clone().unwrap_or_else(|| ("none".into(), self.path.clone()));
        DataError::TokenizerClass { path, name, files }
    }

    /// Whether config.json gives this type of model.
    pub(super) fn is_model(&self, model_type: &str) -> bool {
        self.model_type.as_deref() == Some(model_type)
    }

    /// A switch of tokenizer_config.json; `None` where it is absent or null.
    pub(super) fn switch(&self, key: &str) -> Result<Option<bool>, DataError> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => {
                Err(part(&self.path, format!("expected true or false for `{key}`, found {other}")))
            }
        }
    }

    /// The special token with this part, or `default` where no file speaks of the part.
    pub(super) fn token(&self, key: &str, default: &str) -> String {
        self.parts.get(key).cloned().flatten().unwrap_or_else(|| default.into())
    }

    /// The list `added_tokens` of a tokenizer.json over this vocabulary. `defaults` are the special tokens of
    /// the class by their part; they count where the vocabulary has them.
    pub(super) fn added_tokens(
        &self,
        vocab: &BTreeMap<String, u32>,
        defaults: &[(&str, &str)],
    ) -> Result<Vec<Value>, DataError> {
        let named = self.parts.values().flatten().chain(&self.extra).cloned();
        let usual = defaults
            .iter()
            .filter(|(key, token)| !self.parts.contains_key(*key) && vocab.contains_key(*token))
            .map(|(_, token)| token.to_string());
        let special: Vec<String> = named.chain(usual).collect();
        let listed = |content: &String| self.added.iter().any(|token| &token.content == content);
        let mut unlisted: Vec<&String> = special.iter().filter(|content| !listed(content)).collect();
        unlisted.sort_by_key(|content| vocab.get(*content).copied().unwrap_or(u32::MAX));
        unlisted.dedup();

        // The library numbers on from the size of the vocabulary; what a file says must agree.
        let mut next = vocab.len() as u32;
        let mut give = |content: &str| {
            vocab.get(content).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            })
        };
        let mut tokens = Vec::new();
        for token in &self.added {
            let id = give(&token.content);
            if let Some((said, path)) = token.id.as_ref().filter(|(said, _)| *said != id) {
                let reason =
                    format!("it gives `{}` the id {said}: expected {id} with this vocabulary", token.content);
                return Err(part(path, reason));
            }
            let special_here = token.special || special.contains(&token.content);
            tokens.push(token.json(id, special_here));
        }
        tokens.extend(unlisted.into_iter().map(|content| plain(content.clone()).json(give(content), true)));
        Ok(tokens)
    }
}

impl Added {
    fn json(&self, id: u32, special: bool) -> Value {
        json!({
            "id": id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized && !special,
            "special": special,
        })
    }
}

fn plain(content: String) -> Added {
    Added {
        content,
        id: None,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: true,
        special: false,
    }
}

/// The table `added_tokens_decoder`: objects by their id.
fn decoder(tokens: &Value, path: &Path) -> Result<Vec<Added>, DataError> {
    let wrong = |what: &str| part(path, format!("expected {what} in `added_tokens_decoder`"));
    let tokens = tokens.as_object().ok_or_else(|| wrong("tokens by their id"))?;
    let mut added = Vec::new();
    for (id, token) in tokens {
        let number: u32 = id.parse().map_err(|_| wrong(&format!("a token id for the key `{id}`")))?;
        let content =
            content(token).ok_or_else(|| wrong(&format!("a token with its `content` for `{id}`")))?;
        let on = |key: &str, default: bool| token.get(key).and_then(Value::as_bool).unwrap_or(default);
        let special = on("special", false);
        added.push(Added {
            content,
            id: Some((number, path.to_path_buf())),
            single_word: on("single_word", false),
            lstrip: on("lstrip", false),
            rstrip: on("rstrip", false),
            normalized: on("normalized", !special),
            special,
        });
    }
    Ok(added)
}

/// A token given as text, or as an object with its `content`.
fn content(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(String::from)
}

/// The object in a JSON file; an empty one if there is no such file.
fn object(path: &Path) -> Result<Map<String, Value>, DataError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text(path)?)
        .map_err(|error| part(path, format!("expected a JSON object, found: {error}")))
}

/// The text of a file of the tokenizer.
pub(super) fn text(path: &Path) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    String::from_utf8(bytes).map_err(|error| {
        part(
            path,
            format!("expected UTF-8, found an invalid byte at byte {}", error.utf8_error().valid_up_to()),
        )
    })
}

/// The error for a file that is not what it should be.
pub(super) fn part(path: &Path, reason: String) -> DataError {
    DataError::TokenizerPart { path: path.to_path_buf(), line: None, reason }
}
