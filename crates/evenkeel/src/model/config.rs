//! What a transformer is, as data: every block of the paper and its neighbours is a setting of these keys.
//!
//! The block is one formula. With branch f ∈ {attention, MLP}, norm N, gain β on the branch and s on the stream:
//! `pre`: x ← s x + β f(N(x)); `post`: x ← N(s x + β f(x)); `post_stream`: x ← N(x), then x ← s x + β f(x). The Outlier
//! Protected block is `pre` with N = none and β = 1/√depth (He et al., section 3). docs/blocks.md has them all.

pub use super::choices::{
    AttentionMatrix, Beta, BetaRule, Branches, Gate, Init, Nonlinearity, Norm, NormPosition, Positions,
    Projection, QkNorm, QueryInit, Readout, SoftmaxChoice, ValueInit,
};
pub use crate::ops::RopeScaling;
use crate::ops::Softmax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that shapes the network. In a configuration file this is the table `[model]`. Keys with a default may be missing
/// from a checkpoint: they did not exist when the first ones were written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelConfig {
    /// The preset that the other keys started from, for the record.
    pub preset: String,
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head; 0 means width / heads.
    #[serde(default)]
    pub head_dim: usize,
    /// Heads of keys and values, each shared by heads / kv_heads query heads; 0 means as many as `heads`.
    #[serde(default)]
    pub kv_heads: usize,
    /// Token ids, or the classes of a model of images; 0 in a configuration file means "that of the data".
    pub vocab: usize,
    /// Longest sequence.
    pub context: usize,
    /// Side of the square patches that images are cut into; 0 means that the model reads tokens. Patches are mapped to
    /// `width` channels, and a learned token stands before them, so that `context` is one more than there are patches.
    #[serde(default)]
    pub patch_size: usize,
    /// Height, width and colour channels of an image; all 0 if the model reads tokens.
    #[serde(default)]
    pub image: [usize; 3],
    /// An id that no input may hold: a padding token, which the model gives no position (RoBERTa).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding_id: Option<u32>,
    /// Channels of the token table; 0 means `width`. Others are mapped to `width` before positions are added, and mapped
    /// back before the head (OPT-350m).
    #[serde(default)]
    pub embed_dim: usize,
    /// Factor on the tokens' vectors; a tied head has none (Gemma).
    #[serde(default = "one")]
    pub embed_scale: f64,
    /// MLP hidden channels over width.
    pub mlp_ratio: usize,
    /// MLP hidden channels; 0 means mlp_ratio · width, and two thirds of that, rounded up to a multiple of 8, for a gated
    /// MLP, whose three matrices then hold as much as two.
    #[serde(default)]
    pub mlp_hidden: usize,
    /// Norm inside the blocks.
    pub norm: Norm,
    /// ε of every norm but QK-norm, inside the root.
    pub norm_eps: f64,
    /// Where the blocks' norms stand.
    pub norm_position: NormPosition,
    /// How the branches are joined.
    #[serde(default)]
    pub branches: Branches,
    /// Norm before attention in block 0, if the blocks have none (the authors' OP code keeps one there).
    pub first_norm: Norm,
    /// Norm on the embedding output.
    pub embed_norm: Norm,
    /// A width × width matrix after the embedding and one before the head, orthogonal at the start (EmbProj of OSP).
    #[serde(default)]
    pub embed_proj: bool,
    /// Norm before the head.
    pub final_norm: Norm,
    /// Gain on both branches.
    pub beta: Beta,
    /// Whether β is learned, one scalar per branch.
    pub beta_trainable: bool,
    /// Whether a learned β has a value for each channel (LayerScale).
    #[serde(default)]
    pub beta_per_channel: bool,
    /// Gain on the stream where attention joins it; 0 makes the block skipless, and attention then has no β.
    #[serde(default = "one")]
    pub attn_skip: f64,
    /// The same where the MLP joins it; in a parallel block, where both do.
    #[serde(default = "one")]
    pub mlp_skip: f64,
    /// Factor on the MLP's input.
    pub alpha: f64,
    /// Whether α is learned, one scalar per block.
    pub alpha_trainable: bool,
    /// Whether a token sees only itself and the tokens before it.
    #[serde(default = "yes")]
    pub causal: bool,
    /// How many of these it sees, itself included: the latest; 0 means all.
    #[serde(default)]
    pub window: usize,
    /// The blocks that the window is for; none named means all.
    #[serde(default)]
    pub window_blocks: Vec<usize>,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// ε of QK-norm.
    pub qk_norm_eps: f64,
    /// C of the soft cap C tanh(score / C), after the 1/√d_head scale; 0 means none.
    #[serde(default)]
    pub logit_softcap: f64,
    /// How scores become probabilities.
    #[serde(default)]
    pub softmax: SoftmaxChoice,
    /// What multiplies the values.
    #[serde(default)]
    pub attention_matrix: AttentionMatrix,
    /// Parametrisation of the value and output projections.
    #[serde(default)]
    pub value_init: ValueInit,
    /// Start of the query projection.
    #[serde(default)]
    pub query_init: QueryInit,
    /// Gate on the heads' outputs.
    #[serde(default)]
    pub gate: Gate,
    /// How far open gates start: σ(bias), between 0 and 1.
    #[serde(default = "half")]
    pub gate_init: f64,
    /// Nonlinearity of the MLP.
    pub activation: Nonlinearity,
    /// Positions.
    pub positions: Positions,
    /// Base of RoPE's angles.
    #[serde(default = "rope_base")]
    pub rope_base: f64,
    /// Share of each head's channels that RoPE rotates.
    #[serde(default = "one")]
    pub rope_fraction: f64,
    /// How RoPE's angles are stretched.
    #[serde(default)]
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding matrix.
    pub tie_head: bool,
    /// Whether the head has a bias.
    #[serde(default)]
    pub head_bias: bool,
    /// Whether a width × width matrix with bias, the MLP's nonlinearity and a LayerNorm stand before the head (BERT).
    #[serde(default)]
    pub head_transform: bool,
    /// What the head reads.
    #[serde(default)]
    pub readout: Readout,
    /// Which projections have a bias.
    pub biases: Vec<Projection>,
    /// Probability of dropping a channel of the embedding output, in training.
    #[serde(default)]
    pub dropout_embed: f64,
    /// Probability of dropping a channel of a branch's output, in training.
    #[serde(default)]
    pub dropout_residual: f64,
    /// Probability of dropping an attention probability, in training.
    #[serde(default)]
    pub dropout_attention: f64,
    /// Initialisation of the matrices.
    pub init: Init,
}

impl ModelConfig {
    /// Channels per head.
    pub fn d_head(&self) -> usize {
        if self.head_dim == 0 { self.width / self.heads } else { self.head_dim }
    }

    /// Channels of queries and of the context: those of all heads.
    pub fn d_attention(&self) -> usize {
        self.heads * self.d_head()
    }

    /// Channels of the token table.
    pub fn d_embed(&self) -> usize {
        if self.embed_dim == 0 { self.width } else { self.embed_dim }
    }

    /// Whether a matrix stands between the token table and the stream.
    pub fn has_embed_proj(&self) -> bool {
        self.embed_proj || self.d_embed() != self.width
    }

    /// Whether the model reads images.
    pub fn reads_images(&self) -> bool {
        self.patch_size > 0
    }

    /// Whether the model can be asked for the next token.
    pub fn predicts_next_token(&self) -> bool {
        self.causal && self.readout == Readout::Tokens && !self.reads_images()
    }

    /// Whether the model can be asked for the class of an image.
    pub fn classifies_images(&self) -> bool {
        self.reads_images() && matches!(self.readout, Readout::First | Readout::Mean)
    }

    /// How many tokens one sees in block `layer`, itself included; 0 means all before it.
    pub fn window(&self, layer: usize) -> usize {
        let here = self.window_blocks.is_empty() || self.window_blocks.contains(&layer);
        if here { self.window } else { 0 }
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        if self.kv_heads == 0 { self.heads } else { self.kv_heads }
    }

    /// MLP hidden channels.
    pub fn hidden(&self) -> usize {
        match (self.mlp_hidden, self.activation.is_gated()) {
            (0, false) => self.width * self.mlp_ratio,
            (0, true) => (2 * self.width * self.mlp_ratio).div_ceil(3).next_multiple_of(8),
            (hidden, _) => hidden,
        }
    }

    /// Channels of each head that RoPE rotates.
    pub fn rotated(&self) -> usize {
        (self.rope_fraction * self.d_head() as f64).round() as usize
    }

    /// How scores become probabilities, with its numbers.
    pub fn softmax(&self) -> Softmax {
        self.softmax.resolve(self.context)
    }

    /// Whether `projection` has a bias.
    pub fn has_bias(&self, projection: Projection) -> bool {
        self.biases.contains(&projection)
    }

    /// Norm of attention in block `layer`.
    pub fn attn_norm(&self, layer: usize) -> Norm {
        if self.norm == Norm::None && layer == 0 { self.first_norm } else { self.norm }
    }

    /// Norm of the MLP branch; a parallel block has one norm for both.
    pub fn mlp_norm(&self) -> Norm {
        if self.branches == Branches::Parallel { Norm::None } else { self.norm }
    }

    /// Gain on the stream where attention joins it; `None` where the branch alone goes on.
    pub fn attn_skip(&self) -> Option<f64> {
        match self.branches.parallel() {
            // The one skip of the block.
            true => Some(self.mlp_skip),
            false => Some(self.attn_skip).filter(|&s| s != 0.0),
        }
    }

    /// The same where the MLP joins it.
    pub fn mlp_skip(&self) -> Option<f64> {
        match self.branches.parallel() {
            true => Some(1.0),
            false => Some(self.mlp_skip).filter(|&s| s != 0.0),
        }
    }

    /// Whether β is more than a fixed 1.
    pub fn has_beta(&self) -> bool {
        self.beta_trainable || self.beta.resolve(self.depth) != 1.0
    }
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

fn rope_base() -> f64 {
    10_000.0
}
