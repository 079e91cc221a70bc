//! Hugging Face folders: config.json and tensor names of other architectures, mapped to the one [`Transformer`].
//!
//! An architecture is a file here: how its configuration becomes a [`ModelConfig`], and a table that says where each of our
//! parameters is stored. `keys` reads the configuration and refuses by name what would be computed otherwise, `layout` reads and
//! writes the tensors, `export` goes the other way.
//!
//! [`Transformer`]: crate::model::Transformer

mod bert;
pub(super) mod export;
mod gpt2;
mod gpt_neox;
mod keys;
mod layout;
mod llama;
mod opt;
mod vit;

pub(crate) use export::{StockModel, as_stock};
pub use export::{Target, copy_tokenizer, export};
pub(super) use layout::{Found, Layout, Map};

use super::weights::shown;
use crate::error::Hint;
use crate::model::config::Readout;
use crate::model::presets::pre_ln;
use crate::model::{ModelConfig, ModelError, list};
use keys::Keys;
use serde_json::Value;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A folder of another architecture that cannot be read.
#[derive(Debug, Error)]
pub enum HfError {
    /// config.json is no object.
    #[error("{path} holds {found} where an object with the model's configuration was expected")]
    NotAnObject {
        /// The config.json.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// No model_type.
    #[error("{path} has no \"model_type\", which names the architecture")]
    NoType {
        /// The config.json.
        path: PathBuf,
    },
    /// A model that this version does not know.
    #[error("{path} describes a model of type \"{found}\", and known are {known}", found = shown(found))]
    UnknownArchitecture {
        /// The config.json.
        path: PathBuf,
        /// Its model_type.
        found: String,
        /// All that are known.
        known: String,
    },
    /// A class that computes something else than its type does.
    #[error("{path} names the class \"{class}\", which is not one of this architecture's", class = shown(class))]
    UnknownClass {
        /// The config.json.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A key that is missing, malformed, or asks for what is not computed.
    #[error("{path}: the key {key} {problem}")]
    Key {
        /// The config.json.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Sizes that make no network together.
    #[error("{path} describes no network that can be computed: {source}")]
    Sizes {
        /// The config.json.
        path: PathBuf,
        /// What is wrong, by the key of our configuration.
        source: ModelError,
    },
    /// Keys that nobody asked for.
    #[error("{path} sets keys that are not known, and may change what the model computes: {}", list(keys))]
    UnknownKeys {
        /// The config.json.
        path: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
}

impl Hint for HfError {
    fn hint(&self) -> String {
        match self {
            HfError::NotAnObject { .. } => {
                "give the folder as `save_pretrained` of transformers wrote it".into()
            }
            HfError::NoType { .. } => {
                "old files lack it: add for example \"model_type\": \"bert\" to config.json".into()
            }
            HfError::Sizes { .. } => {
                "heads divide widths, and key heads divide heads; check config.json".into()
            }
            HfError::UnknownArchitecture { .. } => {
                "docs/checkpoints.md lists what is read, and says how to add an architecture".into()
            }
            HfError::UnknownClass { .. } => {
                "a class that brings its own code may compute anything; export the model to a stock class"
                    .into()
            }
            HfError::Key { .. } => "docs/checkpoints.md says what of each architecture is computed".into(),
            HfError::UnknownKeys { .. } => {
                "if the keys do not change the computation, remove them from a copy of config.json".into()
            }
        }
    }
}

/// A model as its folder describes it.
pub(super) struct Setup {
    pub(super) config: ModelConfig,
    pub(super) map: Map,
}

impl Setup {
    /// Where there is no head of its own, because it is tied or because none is read, a stored one may be left over.
    fn new(config: ModelConfig, mut map: Map) -> Self {
        if config.tie_head || config.readout == Readout::None {
            map.ignored.extend(map.twins);
        }
        Self { config, map }
    }
}

/// What the head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    NextToken,
    Masked,
    Classes,
    /// There is none, or none that is read.
    Bare,
}

impl Task {
    fn readout(self) -> Readout {
        match self {
            Task::NextToken | Task::Masked => Readout::Tokens,
            Task::Classes => Readout::First,
            Task::Bare => Readout::None,
        }
    }
}

/// Names of an architecture's stock classes.
struct Heads {
    /// What the names of all begin with.
    family: &'static [&'static str],
    next_token: &'static [&'static str],
    masked: &'static [&'static str],
    classes: &'static [&'static str],
}

/// Ends of the names of stock classes without a head that is read; the stream is that of every other.
const OTHER_HEADS: &[&str] = &[
    "Model",
    "PreTrainedModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForMaskedImageModeling",
];

impl Heads {
    /// What the configuration's class is for. Heads of other kinds are left aside; the stream is the same.
    fn task(&self, path: &Path, class: Option<&str>) -> Result<Task, HfError> {
        let Some(class) = class else {
            return Ok(if self.next_token.is_empty() { Task::Bare } else { Task::NextToken });
        };
        for (names, task) in
            [(self.next_token, Task::NextToken), (self.masked, Task::Masked), (self.classes, Task::Classes)]
        {
            if names.contains(&class) {
                return Ok(task);
            }
        }
        let kinds = self.family.iter().filter_map(|family| class.strip_prefix(family));
        match kinds.into_iter().any(|kind| OTHER_HEADS.contains(&kind)) {
            true => Ok(Task::Bare),
            false => Err(HfError::UnknownClass { path: path.into(), class: class.into() }),
        }
    }
}

/// Reads a configuration for a task.
type Read = fn(&mut Keys, Task) -> Result<Setup, HfError>;

/// Every architecture: its model_type, its reader, its heads.
const ARCHITECTURES: &[(&str, Read, &Heads)] = &[
    ("gpt2", gpt2::setup, &gpt2::HEADS),
    ("opt", opt::setup, &opt::HEADS),
    ("gpt_neox", gpt_neox::setup, &gpt_neox::HEADS),
    ("llama", llama::setup, &llama::HEADS),
    ("mistral", llama::setup, &llama::HEADS),
    ("qwen2", llama::setup, &llama::HEADS),
    ("qwen3", llama::setup, &llama::HEADS),
    ("gemma", llama::setup, &llama::HEADS),
    ("bert", bert::bert, &bert::HEADS),
    ("roberta", bert::roberta, &bert::HEADS),
    ("xlm-roberta", bert::roberta, &bert::HEADS),
    ("vit", vit::setup, &vit::HEADS),
];

/// The model that config.json at `path` describes; `None` if it is one of ours.
///
/// # Errors
/// [`HfError`] for what is not known, by name.
pub(super) fn read_config(path: &Path, value: &Value) -> Result<Option<Setup>, HfError> {
    let Some(object) = value.as_object() else {
        let found = match value {
            Value::Array(_) => "a list",
            Value::String(_) => "a text",
            _ => "a single value",
        };
        return Err(HfError::NotAnObject { path: path.into(), found });
    };
    let Some(kind) = object.get("model_type").and_then(Value::as_str) else {
        return Err(HfError::NoType { path: path.into() });
    };
    if kind == super::MODEL_TYPE {
        return Ok(None);
    }
    let Some((_, read, heads)) = ARCHITECTURES.iter().find(|a| a.0 == kind) else {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.0).chain([super::MODEL_TYPE]).collect();
        return Err(HfError::UnknownArchitecture {
            path: path.into(),
            found: kind.into(),
            known: known.join(", "),
        });
    };
    let class = match object.get("architectures") {
        None | Some(Value::Null) => None,
        Some(Value::Array(classes)) if classes.is_empty() => None,
        Some(classes) => match classes.get(0).and_then(Value::as_str) {
            Some(class) => Some(class),
            None => return Err(Keys::new(path, object).refused("architectures", "must be a list of names")),
        },
    };
    let task = heads.task(path, class)?;
    let mut keys = Keys::new(path, object);
    keys.only_flag("is_causal", !matches!(kind, "bert" | "roberta" | "xlm-roberta" | "vit"))?;
    let setup = read(&mut keys, task)?;
    keys.finish()?;
    setup.config.validate().map_err(|source| HfError::Sizes { path: path.into(), source })?;
    Ok(Some(setup))
}

/// What an architecture's configuration starts from: the plain pre-norm block with all biases, under the architecture's name.
fn plain(name: &str) -> ModelConfig {
    ModelConfig { preset: name.into(), ..pre_ln() }
}
