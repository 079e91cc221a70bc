//! From text to batches of token ids, and from labelled images to batches of pixels.
//!
//! Read in the order data flows: [`corpus`] finds documents in files and folders, with the help of [`packing`] and
//! `parquet` (and [`registry`] finds them in the crate sources that cargo keeps), [`tokenizer`] turns text into
//! ids, [`shards`] stores ids in the `.bin` format of llm.c, [`mod@tokenize`] runs these three over a
//! whole corpus and leaves a folder, [`dataset`] opens that folder and reads tokens anywhere in
//! it, and [`sampler`] cuts batches as a pure function of (seed, step). [`mod@inspect`] says what a
//! folder holds. [`images`] is the same for models of images.
//!
//! Nothing here knows of tensors: batches are plain vectors, row-major.

pub mod corpus;
pub mod dataset;
pub mod error;
mod format;
pub mod images;
pub mod inspect;
mod output;
pub mod packing;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod permutation;
pub mod registry;
pub mod sampler;
pub mod shards;
pub mod split;
pub(crate) mod splits;
pub mod tokenize;
pub mod tokenizer;

pub use corpus::{Corpus, CorpusSettings, Document, Found, SkipReason, Skipped, read_capped};
pub use dataset::{DataJson, Dataset, SourceCounts, Split, SplitCounts};
pub use error::DataError;
pub use images::{ImageData, ImageFolder, ImageSettings, ImageSource, ImagesError, Shapes};
pub use inspect::{DatasetSummary, SplitSummary, inspect, summarise};
pub use permutation::Permutation;
pub use registry::{RegistryCorpus, cargo_registry_corpus, default_cargo_home};
pub use sampler::{Batch, SamplerSettings, TrainSampler, ValidationBlocks};
pub use shards::{Shard, ShardWriter, TokenDtype};
pub use split::SplitOutcome;
pub use tokenize::{
    Progress, TokenizeProgress, TokenizeReport, TokenizeSettings, TokenizeStage, TokenizerChoice, ValSplit,
    tokenize, tokenize_documents,
};
pub use tokenizer::{SEPARATOR_TOKEN, Tokenizer, TokenizerKind};
