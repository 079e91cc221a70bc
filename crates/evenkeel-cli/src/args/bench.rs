//! What was typed after `bench`. Sizes default to the reference model: 6 blocks of 384 channels, 8192 words, and
//! 32 sequences of 128 tokens.

use super::KvCache;
use clap::{Args, Subcommand};
use evenkeel::optim::OptimizerName;
use evenkeel::tape::{Precision, Recompute};
use serde::de::value::Error as NameError;
use serde::de::{DeserializeOwned, IntoDeserializer};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// What the machine can do: multiply-adds for each instruction set, and copying
    Peak,
    /// Matrix products at the model's shapes, as a share of the roofline
    Gemm(Gemm),
    /// Each operation, forward and backward, as a share of the compute or bandwidth peak
    Ops(Ops),
    /// Whole training steps: forward, backward, optimiser; no clipping, no telemetry
    Step(Step),
    /// Going on from cached keys and values: tokens per second of a prompt, and of single tokens after it
    Decode(Decode),
    /// What it costs to measure the residual stream at every step: steps with and without, taking turns
    Telemetry(Telemetry),
    /// How a step's time and memory grow with width, depth, context and sequences
    Scale(Scale),
    /// A forward pass in integers beside bfloat16 and float32, taking turns, and decoding
    Int8(Int8),
}

/// What decides the shapes of the matrix products.
#[derive(Clone, Debug, Args)]
pub(crate) struct Sizes {
    /// Channels of the residual stream; the MLP has four times as many
    #[arg(long, default_value_t = 384, value_name = "N")]
    pub(crate) width: usize,
    /// Token ids
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub(crate) vocab: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) context: usize,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub(crate) sequences: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Gemm {
    #[command(flatten)]
    pub(crate) sizes: Sizes,
    /// Arithmetic of the products: f32, bf16, or both with a comma
    #[arg(long, default_value = "f32,bf16", value_delimiter = ',', value_parser = named::<Precision>, value_name = "NAME,...")]
    pub(crate) precision: Vec<Precision>,
    /// Times that peak and product are measured in turn
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Ops {
    #[command(flatten)]
    pub(crate) sizes: Sizes,
    /// Attention heads; must divide the width
    #[arg(long, default_value_t = 6, value_name = "N")]
    pub(crate) heads: usize,
    /// Arithmetic of the products: f32, bf16, or both with a comma
    #[arg(long, default_value = "f32,bf16", value_delimiter = ',', value_parser = named::<Precision>, value_name = "NAME,...")]
    pub(crate) precision: Vec<Precision>,
    /// Times that each operation is run; the median counts
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub(crate) rounds: usize,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Step {
    /// Blocks
    #[arg(long, default_value_t = 6, value_name = "N")]
    pub(crate) depth: usize,
    /// Attention heads; must divide the width
    #[arg(long, default_value_t = 6, value_name = "N")]
    pub(crate) heads: usize,
    #[command(flatten)]
    pub(crate) sizes: Sizes,
    /// Arithmetic of the products: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = named::<Precision>, value_name = "NAME")]
    pub(crate) precision: Precision,
    /// Optimiser: adamw, sgd, adafactor, adafactor_torch, rotated_adafactor, shampoo, soap or muon
    #[arg(long, default_value = "adamw", value_parser = named::<OptimizerName>, value_name = "NAME")]
    pub(crate) optimizer: OptimizerName,
    /// What the forward pass forgets and the backward pass computes again: none, mlp or block
    #[arg(long, default_value = "none", value_parser = named::<Recompute>, value_name = "NAME")]
    pub(crate) recompute: Recompute,
    /// Steps to time, after two that are not
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) steps: usize,
    /// Account the time by operation and pass
    #[arg(long)]
    pub(crate) profile: bool,
    /// Write the profile as a stacked bar chart, step-profile.svg, into this folder
    #[arg(long, value_name = "DIR", requires = "profile")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Decode {
    /// Blocks
    #[arg(long, default_value_t = 6, value_name = "N")]
    pub(crate) depth: usize,
    /// Attention heads; must divide the width
    #[arg(long, default_value_t = 6, value_name = "N")]
    pub(crate) heads: usize,
    /// Channels of the residual stream; the MLP has four times as many
    #[arg(long, default_value_t = 384, value_name = "N")]
    pub(crate) width: usize,
    /// Token ids
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub(crate) vocab: usize,
    /// Longest sequence; prompt and tokens must fit
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub(crate) context: usize,
    /// Sequences that are decoded at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) sequences: usize,
    /// Tokens of the prompt of each
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub(crate) prompt: usize,
    /// Tokens decoded after it
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) tokens: usize,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = KvCache::F32, value_name = "TYPE")]
    pub(crate) kv_cache: KvCache,
    /// Times that all of it is run; the median counts
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Telemetry {
    #[command(flatten)]
    pub(crate) step: Step,
    /// Pairs of a step with telemetry and one without
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) pairs: usize,
    /// Pairs of a step that takes the Gram metrics too and one without telemetry
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) gram_pairs: usize,
    /// Steps between two that take the Gram metrics, for the sum
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) gram_every: usize,
}

/// Each list is one axis; while it varies, the others stay at the middle of theirs.
#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Channels of the residual stream, each a multiple of --d-head
    #[arg(long, default_value = "128,192,256,384,512", value_delimiter = ',', value_name = "N,...")]
    pub(crate) width: Vec<usize>,
    /// Blocks
    #[arg(long, default_value = "2,4,8", value_delimiter = ',', value_name = "N,...")]
    pub(crate) depth: Vec<usize>,
    /// Tokens in a sequence
    #[arg(long, default_value = "64,128,256,512", value_delimiter = ',', value_name = "N,...")]
    pub(crate) context: Vec<usize>,
    /// Sequences in a batch
    #[arg(long, default_value = "2,4,8", value_delimiter = ',', value_name = "N,...")]
    pub(crate) sequences: Vec<usize>,
    /// Token ids
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub(crate) vocab: usize,
    /// Channels of an attention head
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) d_head: usize,
    /// Arithmetic of the products: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = named::<Precision>, value_name = "NAME")]
    pub(crate) precision: Precision,
    /// Optimiser: adamw, sgd, adafactor, adafactor_torch, rotated_adafactor, shampoo, soap or muon
    #[arg(long, default_value = "adamw", value_parser = named::<OptimizerName>, value_name = "NAME")]
    pub(crate) optimizer: OptimizerName,
    /// What the forward pass forgets: none, mlp or block
    #[arg(long, default_value = "none", value_parser = named::<Recompute>, value_name = "NAME")]
    pub(crate) recompute: Recompute,
    /// Steps to time at each size, after two that are not
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) steps: usize,
    /// Write scale-time.svg and scale-memory.svg into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Sizes default to those of GPT-2 small.
#[derive(Debug, Args)]
pub(crate) struct Int8 {
    /// An int8 folder that `quantize --out` wrote, in place of a model with random weights; sizes but context and sequences,
    /// preset and scheme are its own, and float stands for a float model of its shape
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<std::path::PathBuf>,
    /// Blocks
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub(crate) depth: usize,
    /// Channels of the residual stream; the MLP has four times as many
    #[arg(long, default_value_t = 768, value_name = "N")]
    pub(crate) width: usize,
    /// Attention heads; must divide the width
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub(crate) heads: usize,
    /// Token ids
    #[arg(long, default_value_t = 50_257, value_name = "N")]
    pub(crate) vocab: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) context: usize,
    /// Sequences in a batch
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) sequences: usize,
    /// The block: a preset such as pre_ln or op
    #[arg(long, default_value = "pre_ln", value_name = "NAME")]
    pub(crate) preset: String,
    /// The quantisation scheme, whose activations are int8
    #[arg(long, default_value = "w8a8_int8_head", value_name = "NAME")]
    pub(crate) scheme: String,
    /// Times that the modes take turns
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) repeat: usize,
    /// Say {"ready":true}, then time one pass for each line `run MODE` on stdin
    #[arg(long)]
    pub(crate) serve: bool,
}

/// A value by the name that configurations give it.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, NameError> {
    T::deserialize(text.into_deserializer())
}
