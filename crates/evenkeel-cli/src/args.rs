//! What was typed.

pub(crate) mod bench;
pub(crate) mod sweep;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use evenkeel::cache::CacheKind;
use evenkeel::quant::{HeadFormat, scheme};
use std::path::PathBuf;

/// Train transformers without outlier features, find them in checkpoints, and cash the gain in as int8.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, about, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// Override a configuration key; repeatable (train, sweep, experiment, config)
    #[arg(long, global = true, value_name = "KEY.PATH=VALUE", help_heading = "Everywhere")]
    pub(crate) set: Vec<String>,
    /// Where to compute; only `cpu` for now
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE", help_heading = "Everywhere")]
    pub(crate) device: String,
    /// Threads; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    pub(crate) threads: Option<usize>,
    /// Seed of initialisation, batches and draws [default: that of the configuration, 0]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64), help_heading = "Everywhere")]
    pub(crate) seed: Option<u64>,
    /// Print one JSON object on stdout
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Say what would be done and write nothing (quickstart, data tokenize, train, inspect, report, compare, sweep,
    /// experiment, quantize, export, man)
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) dry_run: bool,
    /// Only errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// More on stderr
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
    /// Colour
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, help_heading = "Everywhere")]
    pub(crate) color: Color,
    /// No progress bar; plain lines instead
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) no_progress: bool,
    /// Replace what an earlier run left at the output path (quickstart, data tokenize, train, report, compare,
    /// sweep, quantize, export)
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) force: bool,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// If the output is a terminal and NO_COLOR is not set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The headline on this machine: train Pre-LN + AdamW and OP + SOAP, quantise both, compare
    Quickstart(Quickstart),
    /// Make and look at token shards
    Data(Data),
    /// Train a model from a TOML configuration
    Train(Train),
    /// Loss of a model on text, and perplexity; or on images, and accuracy
    Eval(Eval),
    /// Outlier metrics of a model at every site
    Inspect(Inspect),
    /// Training runs side by side: a page, and a figure for each metric
    Report(Report),
    /// Train every combination of settings in a file, under several seeds, and compare
    Sweep(sweep::Sweep),
    /// The paper's findings: run what shows each, judge it, and print paper, measured, verdict
    Experiment(sweep::Experiment),
    /// A run of a sweep, as the sweep starts it
    #[command(hide = true)]
    Cell(sweep::Cell),
    /// What differs between two runs or two models, or that nothing does
    Compare(Compare),
    /// Quantise a model and measure what it costs
    Quantize(Quantize),
    /// Continue a prompt
    Sample(Sample),
    /// Write a model as a folder that Hugging Face transformers loads
    Export(Export),
    /// Measure speed and memory: the machine, products, operations, whole steps, scaling
    Bench(bench::Bench),
    /// What this machine and this build can do
    Doctor,
    /// Presets and configuration files
    Config(Config),
    /// A script by which a shell completes commands and options
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Manual pages: one for the program and one for each command
    Man {
        /// Folder to write them into; other files there stay
        dir: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Quickstart {
    /// Folder for data, runs and the report; continues what is there
    #[arg(long, default_value = "quickstart", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Minutes that training may take; the number of steps follows from a short timing
    #[arg(long, default_value_t = 9.0, value_name = "M", allow_negative_numbers = true)]
    pub(crate) minutes: f64,
    /// Text to train on: a file or folder [default: the sources of this project's dependencies]
    #[arg(long, value_name = "PATH")]
    pub(crate) corpus: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Data {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Text to token shards
    Tokenize(Tokenize),
    /// Download the files of a dataset from the Hugging Face Hub (needs a build with the cargo feature `hub`)
    Fetch(Fetch),
    /// What a data folder holds
    Inspect {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Tokenize {
    /// Files and folders: text, .jsonl with a document per line (both also as .gz and .zst), .parquet with one per row;
    /// folders of Hugging Face datasets
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Use this tokenizer.json
    #[arg(long, value_name = "FILE", group = "how")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Train a byte-level BPE of N ids, special tokens included [default: 4096]
    #[arg(long, value_name = "N", group = "how")]
    pub(crate) train_bpe: Option<usize>,
    /// One id per byte; documents are separated by id 256
    #[arg(long, group = "how")]
    pub(crate) bytes: bool,
    /// Only files in folders that match; repeatable
    #[arg(long, value_name = "G")]
    pub(crate) glob: Vec<String>,
    /// Field of .jsonl lines, or column of .parquet files, that holds the text
    #[arg(long, default_value = "text", value_name = "KEY")]
    pub(crate) text_key: String,
    /// Validation file; repeatable
    #[arg(long, value_name = "FILE", group = "split")]
    pub(crate) val: Vec<PathBuf>,
    /// Share of documents kept for validation [default: the validation split of a dataset folder that has one, else 0.05]
    #[arg(long, value_name = "F", group = "split")]
    pub(crate) val_fraction: Option<f64>,
}

#[derive(Debug, ClapArgs)]
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "a build without network takes them and refuses"))]
pub(crate) struct Fetch {
    /// Dataset on the Hub, OWNER/NAME or OWNER/NAME@REVISION
    pub(crate) repo: String,
    /// Folder to lay the files into, as links to the cache [default: print the folder in the cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Only the files of this split: train, validation or test
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Only files that match; without a `/` the name at any depth
    #[arg(long, value_name = "GLOB")]
    pub(crate) files: Option<String>,
    /// Stop before the file that would pass this many bytes
    #[arg(long, value_name = "N")]
    pub(crate) max_bytes: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Train {
    /// TOML configuration; `evenkeel config show op` prints one to start from
    pub(crate) config: PathBuf,
    /// Run directory [default: runs/DATE-CONFIG-sSEED]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on from the newest complete checkpoint in --out
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,
}

/// Text, or images, to run a model on.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct TextArgs {
    /// Data folder; its validation shards are run (quantize calibrates on its training shards)
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Text file, tokenised with the model's tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// JSON array of arrays of token ids, run as given as one batch
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<PathBuf>,
    /// For a model of images: a folder with val/CLASS/*.jpg, or the word `shapes` for images that are drawn
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

/// How running text is cut.
#[derive(Debug, ClapArgs)]
#[group(skip)]
pub(crate) struct CutArgs {
    /// Tokens per sequence of --data and --text [default: the model's context, but at most 2048, for inspect 1024]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Eval {
    /// Run directory, checkpoint, Hugging Face folder or name on the Hub
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) cut: CutArgs,
    /// Tokens of --data and --text, or patches of --images, to run at most [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// Run directory, checkpoint, Hugging Face folder or name on the Hub; several are compared, by step where they have one
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) cut: CutArgs,
    /// Images for a model of images: safetensors with `pixel_values` (images, colours, height, width)
    #[arg(long, value_name = "FILE", group = "TextArgs")]
    pub(crate) pixels: Option<PathBuf>,
    /// Tokens of --data and --text, or patches of --images, to run at most; --ids and --pixels are run as they are given
    #[arg(long, default_value_t = 65536, value_name = "N")]
    pub(crate) tokens: u64,
    /// Write the activations of the first batch as safetensors, replacing the file
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// Correlations of tokens and channels over all tokens together or per sequence
    #[arg(long, value_enum, default_value_t = Gram::Batch, value_name = "MODE")]
    pub(crate) gram: Gram,
    /// How many of the largest activations --json and --report list; a terminal shows five
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) top_k: usize,
    /// Folder to write a page with figures, index.html, and its numbers, summary.json, into
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Exit 1 if a metric of any site (a key of a site or of the int8 verdict in --json) is above a value, such as
    /// kurtosis=10 or int8_error=0.1; repeatable
    #[arg(long, value_name = "METRIC=VALUE")]
    pub(crate) fail_above: Vec<String>,
}

/// Tokens of a Gram matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gram {
    /// All together
    Batch,
    /// Those of one sequence; figures are means over sequences
    Sequence,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Report {
    /// Run directories, finished or not
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Folder to write index.html, summary.json, summary.md and the figures into
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Compare {
    /// Run directory, checkpoint, Hugging Face or int8 folder, or name on the Hub
    pub(crate) a: PathBuf,
    /// What it is compared with; two run directories are compared as runs, anything else as models
    pub(crate) b: PathBuf,
    /// Exit 1 unless logs and final weights (of models, all tensors) are the same, bit for bit
    #[arg(long)]
    pub(crate) assert_equal: bool,
    /// Let numbers of logs differ by this share, and tensors by this share of their RMS
    #[arg(long, value_name = "X", requires = "assert_equal", allow_negative_numbers = true)]
    pub(crate) tolerance: Option<f64>,
    /// Folder to write a report of both runs into
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Quantize {
    /// Run directory, checkpoint, Hugging Face folder or name on the Hub
    pub(crate) model: PathBuf,
    /// A scheme by name (`evenkeel config list`), or a TOML file that describes one
    #[arg(long, default_value = "w8a8", value_name = "NAME")]
    pub(crate) scheme: String,
    /// How the head's matrix is stored [default: the scheme's]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) head: Option<Head>,
    /// Whether the residual stream is quantised [default: the scheme's]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) residual: Option<Residual>,
    /// Another quantiser for sites and weights whose names match: `float`, or words of docs/quantisation.md; repeatable
    #[arg(long, value_name = "GLOB=WORDS")]
    pub(crate) site: Vec<String>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) cut: CutArgs,
    /// Repair the model first: smoothquant[=ALPHA], hadamard, gptq[=DAMP], bias-correction; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) repair: Vec<String>,
    /// Folder to write the integer model into, for int8 schemes: a MODEL for eval, sample, inspect, bench and export
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Calibrate on this instead: a data folder (its training part), a text file, or a .json file of ids
    #[arg(long, value_name = "PATH")]
    pub(crate) calib: Option<PathBuf>,
    /// Tokens of --data and --text to evaluate on at most [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<u64>,
    /// Calibration batches of 8 sequences; ids are one batch
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) calib_batches: usize,
    /// Say what each quantiser costs: with it alone, and with all but it. Two passes for each quantiser, half of them on
    /// average; Ctrl-C keeps what whole batches gave
    #[arg(long)]
    pub(crate) attribution: bool,
    /// Tokens of the evaluation text for --attribution, at most
    #[arg(long, default_value_t = 8192, value_name = "N", requires = "attribution")]
    pub(crate) attribution_tokens: u64,
    /// Folder to write a page, index.html, its numbers, summary.json, and its figures into
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
}

/// How the head's matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Head {
    /// float32
    Float,
    /// bfloat16
    Bf16,
    /// As the other weights; its input is quantised too
    Int8,
}

impl Head {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Head::Float => "float",
            Head::Bf16 => "bf16",
            Head::Int8 => "int8",
        }
    }
}

impl From<Head> for HeadFormat {
    fn from(head: Head) -> Self {
        match head {
            Head::Float => HeadFormat::Float,
            Head::Bf16 => HeadFormat::Bf16,
            Head::Int8 => HeadFormat::Int8,
        }
    }
}

/// What the residual stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Residual {
    /// float32
    Float,
    /// Quantised after the embedding and after each sum
    Int8,
}

impl Residual {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Residual::Float => "float",
            Residual::Int8 => "int8",
        }
    }
}

impl From<Residual> for scheme::Residual {
    fn from(residual: Residual) -> Self {
        match residual {
            Residual::Float => scheme::Residual::Float,
            Residual::Int8 => scheme::Residual::Int8,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Sample {
    /// Run directory, checkpoint, Hugging Face folder or name on the Hub
    pub(crate) model: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Tokens to add at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.8, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Only the K most likely tokens; 0 means all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_k: usize,
    /// Only the most likely tokens that together hold this probability
    #[arg(long, default_value_t = 0.95, value_name = "P")]
    pub(crate) top_p: f64,
    /// Continuations to draw at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) samples: usize,
    /// How the keys and values of earlier tokens are kept [default: f32; for an int8 folder as the bytes that they are]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv_cache: Option<KvCache>,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCache {
    /// Exactly: the text is that of running everything again for every token
    F32,
    /// In half the memory
    Bf16,
    /// In little more than a quarter, with a scale for every token and head
    Int8,
}

impl KvCache {
    pub(crate) fn kind(self) -> CacheKind {
        match self {
            KvCache::F32 => CacheKind::F32,
            KvCache::Bf16 => CacheKind::Bf16,
            KvCache::Int8 => CacheKind::Int8,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            KvCache::F32 => "f32",
            KvCache::Bf16 => "bf16",
            KvCache::Int8 => "int8",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// Run directory, checkpoint, Hugging Face folder or name on the Hub
    pub(crate) model: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Hf, value_name = "FORMAT")]
    pub(crate) to: Format,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// What a model is exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A stock class that computes the same if there is one, else `evenkeel`
    Hf,
    /// GPT-2
    Gpt2,
    /// OPT
    Opt,
    /// Llama
    Llama,
    /// Our own names, with a modelling file that transformers loads with trust_remote_code=True
    Evenkeel,
    /// A graph that onnxruntime runs, of a float model or an int8 folder
    Onnx,
    /// An int8 folder as transformers and vLLM load it, of the class OPT or Llama
    CompressedTensors,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// The presets and sizes of models and the schemes of quantisation, a line each
    List,
    /// Every key of a preset with its default, or of a quantisation scheme, as TOML
    Show {
        /// Name of the preset or scheme
        preset: String,
    },
    /// The JSON Schema of configuration files, by which editors complete and check them
    Schema,
    /// Try a configuration without running it
    Check {
        /// TOML configuration
        file: PathBuf,
    },
}
