//! What can be wrong with data, one variant for each way it can be wrong.
//!
//! A message is one sentence that names the file, key or number at fault and what was expected;
//! [`Hint::hint`] says what to try next. The variants follow the order of the module: corpus,
//! tokenizer, shards, dataset, sampler.

use std::path::PathBuf;

use crate::error::Hint;

/// An input of the data module that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to read, write or rename something.
    #[error("cannot {action} {path}: {reason}")]
    Io {
        /// What was attempted, as a verb: "read", "create", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// No input was given.
    #[error("no input was given: expected at least one file or folder")]
    NoInputs,
    /// An input does not exist.
    #[error("{path} does not exist: expected a text, .jsonl or .parquet file, or a folder")]
    PathMissing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A glob cannot be parsed.
    #[error("the glob `{glob}` cannot be parsed: {reason}")]
    BadGlob {
        /// The glob as it was given.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folders hold no file to read.
    #[error("no file to read was found in {inputs}{}", glob_clause(.globs))]
    NothingFound {
        /// The inputs, joined by commas.
        inputs: String,
        /// The globs in force; empty when there are none.
        globs: Vec<String>,
    },
    /// Files were found, and every one was skipped as binary or not UTF-8.
    #[error("none of the {skipped} files found in {inputs} is UTF-8 text: all of them were skipped")]
    AllSkipped {
        /// The inputs, joined by commas.
        inputs: String,
        /// How many files were skipped.
        skipped: usize,
    },
    /// Every document is empty.
    #[error("{inputs} holds no text: every document in it is empty")]
    AllEmpty {
        /// The inputs, joined by commas.
        inputs: String,
    },
    /// A file named outright holds a NUL byte.
    #[error("{path} is not text: expected UTF-8, found a NUL byte at byte {offset}")]
    Binary {
        /// The file.
        path: PathBuf,
        /// Where the first NUL byte is, counted from 0.
        offset: u64,
    },
    /// A file named outright is not UTF-8.
    #[error("{path} is not UTF-8: the bytes from byte {offset} on are no valid character")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first invalid sequence starts, counted from 0.
        offset: u64,
    },
    /// A line of a `.jsonl` file is not JSON.
    #[error("{path}, line {line}: expected one JSON object, found: {reason}")]
    JsonlLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What the parser said.
        reason: String,
    },
    /// A line of a `.jsonl` file has no text.
    #[error("{path}, line {line}: expected a string under the key `{key}`, found {found}")]
    JsonlText {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The key that should hold the text.
        key: String,
        /// What is there instead.
        found: String,
    },
    /// A packed file that is damaged, or asks for more memory than there is for it.
    #[error("{path} cannot be unpacked as {format}: {reason}")]
    Packed {
        /// The file.
        path: PathBuf,
        /// "gzip" or "zstd".
        format: &'static str,
        /// What is wrong with it.
        reason: String,
        /// Whether its window is too large, and nothing else wrong.
        window: bool,
    },
    /// A text of a packed file that goes on and on.
    #[error("{name} is longer than 2 GiB once it is unpacked: expected texts of at most 2 GiB")]
    TextTooLong {
        /// The file, with the line.
        name: String,
    },
    /// A Parquet file, or its column of texts, that cannot be read.
    #[cfg(feature = "parquet")]
    #[error("{path} {fault}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: super::parquet::ParquetFault,
    },
    /// A Parquet file where none can be read.
    #[cfg(not(feature = "parquet"))]
    #[error("{path} is a Parquet file, and this build reads no Parquet")]
    NoParquet {
        /// The file.
        path: PathBuf,
    },
    /// A table in Arrow's format.
    #[error(
        "{path} is an Arrow file, as datasets.save_to_disk writes them, which is not read: expected Parquet"
    )]
    Arrow {
        /// The file.
        path: PathBuf,
    },
    /// The corpus was different the second time it was read.
    #[error("{name} changed while it was being tokenized")]
    CorpusChanged {
        /// The document.
        name: String,
    },

    /// A `Cargo.lock` cannot be parsed.
    #[error("the Cargo.lock text cannot be parsed: {reason}")]
    LockParse {
        /// What the parser said.
        reason: String,
    },
    /// A crate is not in the lock file, or does not come from a registry.
    #[error("the crate `{name}` is not among the registry packages of the Cargo.lock")]
    CrateNotLocked {
        /// The crate.
        name: String,
    },
    /// The sources of a crate are not on this machine.
    #[error("the sources of {name} {version} were not found under {path}")]
    CrateMissing {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
        /// The `registry/src` folder that was searched.
        path: PathBuf,
    },
    /// The cap leaves no file at all.
    #[error("no source file of the named crates fits into {max_bytes} bytes")]
    RegistryEmpty {
        /// The cap, in bytes.
        max_bytes: u64,
    },

    /// The vocabulary asked for is too small.
    #[error("the vocabulary size {vocab} is too small: expected at least 257, 256 bytes and the separator")]
    VocabTooSmall {
        /// The size asked for.
        vocab: usize,
    },
    /// A tokenizer file cannot be understood.
    #[error("{path} is not a tokenizer.json: {reason}")]
    TokenizerParse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that a tokenizer is made from cannot be understood.
    #[error("{path}{}: {reason}", line_clause(.line))]
    TokenizerPart {
        /// The file, or the folder where no single file is at fault.
        path: PathBuf,
        /// The line, counted from 1, in a file of lines.
        line: Option<u64>,
        /// What was expected, and what was found.
        reason: String,
    },
    /// A folder names a tokenizer whose rules are not known.
    #[error(
        "{path} names \"{name}\", whose tokenizer cannot be made from {files}: expected a tokenizer.json"
    )]
    TokenizerClass {
        /// The file that holds the name.
        path: PathBuf,
        /// The class of the tokenizer or the type of the model.
        name: String,
        /// The files that are there.
        files: &'static str,
    },
    /// The only tokenizer of a folder is one of SentencePiece.
    #[error("{path} is a SentencePiece model, which cannot be read: expected a tokenizer.json beside it")]
    SentencePiece {
        /// The file.
        path: PathBuf,
    },
    /// Training a tokenizer failed.
    #[error("the tokenizer could not be trained: {reason}")]
    TokenizerTrain {
        /// What is wrong.
        reason: String,
    },
    /// A text cannot be expressed by the tokenizer.
    #[error("the tokenizer cannot encode the text that starts with {text:?}: {reason}")]
    Encode {
        /// The first characters of the text.
        text: String,
        /// What the tokenizer said.
        reason: String,
    },

    /// A shard is shorter than its header.
    #[error("{path} is {bytes} bytes long: expected a token shard with a header of 1024 bytes")]
    ShardTooShort {
        /// The shard.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
    },
    /// A file is not a shard.
    #[error("{path} is not a token shard: expected magic number 20240520 or 20240801, found {found}")]
    ShardMagic {
        /// The file.
        path: PathBuf,
        /// The first number of the header.
        found: i32,
    },
    /// A shard was written in the other byte order.
    #[error("{path} is in big-endian byte order: expected little-endian")]
    ShardByteOrder {
        /// The shard.
        path: PathBuf,
    },
    /// A shard has a version that does not belong to its magic number.
    #[error("{path} has version {found}: expected version {expected} for its magic number")]
    ShardVersion {
        /// The shard.
        path: PathBuf,
        /// The version in the header.
        found: i32,
        /// The version of the format.
        expected: i32,
    },
    /// A shard gives an impossible count.
    #[error("{path} gives {found} as its number of tokens: expected a number of 0 or more")]
    ShardCount {
        /// The shard.
        path: PathBuf,
        /// The count in the header.
        found: i32,
    },
    /// A shard ends before its last token.
    #[error("{path} is cut short: its header promises {expected} bytes, it has {found}")]
    ShardTruncated {
        /// The shard.
        path: PathBuf,
        /// The length that follows from the header, in bytes.
        expected: u64,
        /// The length of the file, in bytes.
        found: u64,
    },
    /// A shard goes on after its last token.
    #[error("{path} has bytes after its last token: its header promises {expected} bytes, it has {found}")]
    ShardTrailing {
        /// The shard.
        path: PathBuf,
        /// The length that follows from the header, in bytes.
        expected: u64,
        /// The length of the file, in bytes.
        found: u64,
    },
    /// A shard would hold more tokens than its header can say.
    #[error(
        "a shard of {tokens} tokens cannot be written: expected from 1 to 2147483647 tokens for each shard"
    )]
    ShardTokens {
        /// The number of tokens.
        tokens: u64,
    },
    /// An id does not fit the type of the shard.
    #[error("the token id {id} cannot be written to {path}: expected at most {max} for {dtype}")]
    IdTooLarge {
        /// The shard.
        path: PathBuf,
        /// The id.
        id: u32,
        /// The largest id of the type.
        max: u32,
        /// The name of the type.
        dtype: &'static str,
    },
    /// A shard holds an id outside the vocabulary.
    #[error("{path} holds the id {id} at token {position}: expected ids below the vocabulary size {vocab}")]
    IdBeyondVocab {
        /// The shard.
        path: PathBuf,
        /// The position in the shard, counted from 0.
        position: u64,
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },

    /// The fraction for validation is out of range.
    #[error("the validation fraction is {fraction}: expected a number from 0 up to, not including, 1")]
    ValFraction {
        /// The fraction.
        fraction: f64,
    },
    /// Nothing is left to train on once the validation files are taken out.
    #[error("every input is also a validation file: expected text to train on")]
    AllValidation,
    /// The output folder is in use.
    #[error("{path} exists and is not empty: expected a new or empty folder")]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// The output path is a file.
    #[error("{path} is a file: expected a folder, or nothing yet")]
    OutputIsFile {
        /// The path.
        path: PathBuf,
    },
    /// There is no data folder at this path.
    #[error("{path} does not exist: expected a folder of token shards, or one shard file")]
    DatasetMissing {
        /// The path.
        path: PathBuf,
    },
    /// A folder has no shards for training.
    #[error("{path} holds no token shards: expected files named train_*.bin")]
    NoShards {
        /// The folder.
        path: PathBuf,
    },
    /// A `data.json` cannot be understood.
    #[error("{path} is not the data.json of a data folder: {reason}")]
    DataJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The shards are not those that `data.json` describes.
    #[error(
        "{path} promises {expected_tokens} {split} tokens in {expected_shards} shards: found {found_tokens} in {found_shards}"
    )]
    DataJsonCounts {
        /// The `data.json`.
        path: PathBuf,
        /// "train" or "val".
        split: &'static str,
        /// Tokens by data.json.
        expected_tokens: u64,
        /// Shards by data.json.
        expected_shards: usize,
        /// Tokens in the shards.
        found_tokens: u64,
        /// Shard files.
        found_shards: usize,
    },
    /// The vocabulary of the data is larger than what is to read it.
    #[error("{path} has a vocabulary of {data}: expected at most {limit}")]
    VocabBeyond {
        /// The data folder.
        path: PathBuf,
        /// Its vocabulary size.
        data: usize,
        /// The largest vocabulary accepted.
        limit: usize,
    },
    /// The tokenizer of a folder does not belong to its shards.
    #[error("{path} has a vocabulary of {found}: expected {expected}, as data.json says")]
    TokenizerVocab {
        /// The tokenizer.json.
        path: PathBuf,
        /// Its vocabulary size.
        found: usize,
        /// The vocabulary size by data.json.
        expected: usize,
    },
    /// Tokens past the end were asked for.
    #[error("tokens {start} to {end} of the {split} split were asked for: it has {len}")]
    OutOfRange {
        /// "train" or "val".
        split: &'static str,
        /// The first token asked for.
        start: u64,
        /// One past the last token asked for.
        end: u64,
        /// The length of the split, in tokens.
        len: u64,
    },

    /// A split is too short for one window.
    #[error(
        "the {split} split has {have} tokens: expected at least {need}, one window of the context and the token after it"
    )]
    CorpusTooShort {
        /// "train" or "val".
        split: &'static str,
        /// Tokens in the split.
        have: u64,
        /// Tokens needed: context + 1.
        need: u64,
    },
    /// A size of the sampler is zero.
    #[error("{key} is 0: expected at least 1")]
    ZeroSize {
        /// The setting.
        key: &'static str,
    },
}

fn glob_clause(globs: &[String]) -> String {
    match globs {
        [] => String::new(),
        [one] => format!(" that matches the glob `{one}`"),
        many => format!(" that matches one of the globs `{}`", many.join("`, `")),
    }
}

fn line_clause(line: &Option<u64>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

impl DataError {
    /// The closure for `map_err` on a result of the file system.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.to_path_buf();
        move |reason| DataError::Io { action, path, reason }
    }
}

impl Hint for DataError {
    fn hint(&self) -> String {
        use DataError as E;
        match self {
            E::Io { path, .. } => format!(
                "check that {} and the folders above it may be read and written, and that the disk is not full",
                path.display()
            ),
            E::NoInputs => "name the files or folders to read after the command".into(),
            E::PathMissing { .. } => "check the spelling; a relative path starts at the current folder".into(),
            E::BadGlob { .. } => "quote the glob for the shell; `*.txt`, `src/**/*.rs` and `*.{md,txt}` are valid".into(),
            E::NothingFound { globs, .. } if globs.is_empty() => {
                "hidden files and folders are left out; name a file outright to read it all the same".into()
            }
            E::NothingFound { .. } => {
                "a glob without `/` matches file names at any depth, one with `/` the path below the folder; files named outright need no glob".into()
            }
            E::AllSkipped { .. } => "give a glob for the text files, or name one file outright to see what is wrong with it".into(),
            E::AllEmpty { .. } => "name files that hold text".into(),
            E::Binary { .. } => "leave the file out, or extract its text first".into(),
            E::NotUtf8 { path, .. } => format!(
                "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {} > converted.txt (for a UTF-16 file: -f UTF-16)",
                path.display()
            ),
            E::JsonlLine { .. } => "each line of a .jsonl file is one object such as {\"text\": \"...\"}; rename the file to .txt to read it as plain text".into(),
            E::JsonlText { .. } => "name the key that holds the text with --text-key, or add the missing text".into(),
            E::Packed { path, window: true, .. } => {
                let path = path.display();
                format!("unpack it first, with `zstd -d --long=31 {path}`")
            }
            E::Packed { path, format, .. } => {
                format!("copy or download it again; `{format} -t {}` says whether it is whole", path.display())
            }
            E::TextTooLong { .. } => "cut the text into documents, for example the lines of a .jsonl file".into(),
            #[cfg(feature = "parquet")]
            E::Parquet { fault, .. } => fault.hint(),
            #[cfg(not(feature = "parquet"))]
            E::NoParquet { .. } => {
                "build with the cargo feature `parquet`, or write it as .jsonl with Python: pandas.read_parquet(path).to_json(\"out.jsonl\", orient=\"records\", lines=True)".into()
            }
            E::Arrow { .. } => "write Parquet with Python: datasets.load_from_disk(DIR)[\"train\"].to_parquet(\"train.parquet\")".into(),
            E::CorpusChanged { .. } => "run again once nothing writes to the input files any more".into(),
            E::LockParse { .. } => "write it anew with `cargo generate-lockfile`".into(),
            E::CrateNotLocked { .. } | E::RegistryEmpty { .. } => "pass --corpus PATH to name a text file or folder instead".into(),
            E::CrateMissing { .. } => "run `cargo fetch` in the source folder, or pass --corpus PATH to name a text file or folder instead".into(),
            E::VocabTooSmall { .. } => "ask for 257 or more (4096 is a good start), or use --bytes".into(),
            E::TokenizerParse { .. } => "give a tokenizer.json as the Hugging Face tokenizers library writes it, or train one with --train-bpe N".into(),
            E::TokenizerPart { .. } => "copy or download the files of the tokenizer again".into(),
            E::TokenizerClass { path, .. } | E::SentencePiece { path } => {
                let dir = path.parent().unwrap_or(path).display();
                format!("make one with Python: transformers.AutoTokenizer.from_pretrained(\"{dir}\").save_pretrained(\"{dir}\")")
            }
            E::TokenizerTrain { .. } => "check that the corpus holds text, or use --bytes".into(),
            E::Encode { .. } => "the tokenizer has no token for unknown text; use a byte-level one, train one with --train-bpe N, or use --bytes".into(),
            E::ShardTooShort { .. } | E::ShardMagic { .. } => "name a .bin file written by `evenkeel data tokenize` or by llm.c; text files go through `evenkeel data tokenize` first".into(),
            E::ShardByteOrder { .. } | E::ShardVersion { .. } | E::ShardCount { .. } => "write the shard again with `evenkeel data tokenize`".into(),
            E::ShardTruncated { .. } | E::ShardTrailing { .. } => "copy or download the shard again: the transfer was not complete".into(),
            E::ShardTokens { .. } => "choose a shard size between, say, one million and one thousand million tokens".into(),
            E::IdTooLarge { .. } => "check that the ids come from the tokenizer of this data folder".into(),
            E::IdBeyondVocab { .. } => "use the vocabulary size of the tokenizer that wrote the shard, or write the data again".into(),
            E::ValFraction { .. } => "0.05 keeps one document in twenty for validation; 0 keeps none".into(),
            E::AllValidation => "name more inputs, or fewer validation files".into(),
            E::OutputExists { .. } => "choose another folder, or pass --force to replace the data in it".into(),
            E::OutputIsFile { .. } => "choose another name for the output folder".into(),
            E::DatasetMissing { .. } | E::NoShards { .. } => "make one with `evenkeel data tokenize INPUT --out DIR`".into(),
            E::DataJson { .. } | E::DataJsonCounts { .. } => "copy the whole folder again, or write it again with `evenkeel data tokenize --force`".into(),
            E::VocabBeyond { data, .. } => format!("set model.vocab to {data} or more, or use the data the model was made for"),
            E::TokenizerVocab { .. } => "put back the tokenizer.json that was written with the shards".into(),
            E::OutOfRange { .. } => "ask for a range inside the split".into(),
            E::CorpusTooShort { split: "val", .. } => "give more validation text, a larger validation fraction, or a smaller model.context".into(),
            E::CorpusTooShort { .. } => "give more text or a smaller model.context".into(),
            E::ZeroSize { .. } => "set it to 1 or more".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_sentence_and_name_the_globs() {
        let error =
            DataError::NothingFound { inputs: "docs".into(), globs: vec!["*.rs".into(), "*.md".into()] };
        assert_eq!(
            error.to_string(),
            "no file to read was found in docs that matches one of the globs `*.rs`, `*.md`"
        );
        assert!(error.hint().contains("glob"));
    }

    #[test]
    fn the_encoding_hint_names_the_file() {
        let error = DataError::NotUtf8 { path: "notes.txt".into(), offset: 7 };
        assert!(error.to_string().contains("byte 7"));
        assert!(error.hint().contains("iconv") && error.hint().contains("notes.txt"));
    }
}
