//! What a transformer is, as data: every block of the paper is a setting of these keys.
//!
//! The block is one formula. With branch f ∈ {attention, MLP}, norm N, gain β on the branch:
//! `pre`: x ← x + β f(N(x)); `post`: x ← N(x + β f(x)). The Outlier Protected block is `pre` with N = none and
//! β = 1/√depth (He et al., section 3).

use super::ModelError;
use crate::ops::Activation;
use serde::{Deserialize, Serialize};

/// A normalisation over channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// LayerNorm with gain and bias.
    Layer,
    /// RMSNorm with gain.
    Rms,
    /// RMSNorm without parameters.
    Srms,
    /// No norm.
    None,
}

/// Where a block's norm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// On the branch's input.
    Pre,
    /// On the sum of stream and branch.
    Post,
}

/// Norm of queries and keys, per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None: scores are free to grow.
    None,
    /// RMSNorm with one gain vector shared by all heads, ε outside the root.
    Rms,
}

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector per position, added to the token's.
    Learned,
    /// Nothing but the causal mask.
    None,
}

/// A linear map of the block, as named by `biases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    Out,
    /// First MLP matrix.
    Up,
    /// Second MLP matrix.
    Down,
}

/// The gain on both branches of every block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number or \"inv_sqrt_depth\"")]
pub enum Beta {
    /// A number.
    Value(f64),
    /// A rule.
    Rule(BetaRule),
}

/// Rules for β.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaRule {
    /// 1/√depth.
    InvSqrtDepth,
}

impl Beta {
    /// The number, for a model of `depth` blocks.
    pub fn resolve(self, depth: usize) -> f64 {
        match self {
            Beta::Value(value) => value,
            Beta::Rule(BetaRule::InvSqrtDepth) => 1.0 / (depth as f64).sqrt(),
        }
    }
}

/// Distribution of weight matrices at the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Init {
    /// N(0, 1/fan_in); embeddings N(0, 1/width).
    FanIn,
    /// N(0, std²) everywhere.
    Normal(f64),
}

impl TryFrom<String> for Init {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "fan_in" {
            return Ok(Init::FanIn);
        }
        text.strip_prefix("normal(")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|number| number.trim().parse::<f64>().ok())
            .filter(|std| *std >= 0.0 && std.is_finite())
            .map(Init::Normal)
            .ok_or_else(|| format!("init must be \"fan_in\" or \"normal(STD)\", not \"{text}\""))
    }
}

impl From<Init> for String {
    fn from(init: Init) -> String {
        match init {
            Init::FanIn => "fan_in".into(),
            Init::Normal(std) => format!("normal({std})"),
        }
    }
}

/// Everything that shapes the network. In a configuration file this is the table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The preset that the other keys started from, for the record.
    pub preset: String,
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the residual stream.
    pub width: usize,
    /// Attention heads; width / heads channels each.
    pub heads: usize,
    /// Token ids; 0 in a configuration file means "that of the data".
    pub vocab: usize,
    /// Longest sequence.
    pub context: usize,
    /// MLP hidden channels over width.
    pub mlp_ratio: usize,
    /// Norm inside the blocks.
    pub norm: Norm,
    /// ε of every norm but QK-norm, inside the root.
    pub norm_eps: f64,
    /// Where the blocks' norms stand.
    pub norm_position: NormPosition,
    /// Norm before attention in block 0, if the blocks have none (the authors' OP code keeps one there).
    pub first_norm: Norm,
    /// Norm on the embedding output.
    pub embed_norm: Norm,
    /// Norm before the head.
    pub final_norm: Norm,
    /// Gain on both branches.
    pub beta: Beta,
    /// Whether β is learned, one scalar per branch.
    pub beta_trainable: bool,
    /// Factor on the MLP's input.
    pub alpha: f64,
    /// Whether α is learned, one scalar per block.
    pub alpha_trainable: bool,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// ε of QK-norm, outside the root.
    pub qk_norm_eps: f64,
    /// Nonlinearity of the MLP.
    pub activation: Activation,
    /// Positions.
    pub positions: Positions,
    /// Whether the head is the embedding matrix.
    pub tie_head: bool,
    /// Which projections have a bias.
    pub biases: Vec<Projection>,
    /// Initialisation of the matrices.
    pub init: Init,
}

impl ModelConfig {
    /// Channels per head.
    pub fn d_head(&self) -> usize {
        self.width / self.heads
    }

    /// MLP hidden channels.
    pub fn hidden(&self) -> usize {
        self.width * self.mlp_ratio
    }

    /// Whether `projection` has a bias.
    pub fn has_bias(&self, projection: Projection) -> bool {
        self.biases.contains(&projection)
    }

    /// Norm before (or after) attention in block `layer`.
    pub fn attn_norm(&self, layer: usize) -> Norm {
        if self.norm == Norm::None && layer == 0 { self.first_norm } else { self.norm }
    }

    /// Refuses sizes and combinations that make no network, with the reason.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        let refuse = |key: &'static str, problem: String| Err(ModelError::Config { key, problem });
        // The upper ends are far above any model and keep every product of sizes below 2^63.
        for (key, value, most) in [
            ("depth", self.depth, 1 << 12),
            ("width", self.width, 1 << 16),
            ("heads", self.heads, 1 << 16),
            ("vocab", self.vocab, 1 << 24),
            ("context", self.context, 1 << 20),
            ("mlp_ratio", self.mlp_ratio, 1 << 6),
        ] {
            if value == 0 || value > most {
                return refuse(key, format!("must lie between 1 and {most}, not {value}"));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            return refuse(
                "heads",
                format!("must divide width, and {} does not divide {}", self.heads, self.width),
            );
        }
        for (key, value) in [("norm_eps", self.norm_eps), ("qk_norm_eps", self.qk_norm_eps)] {
            if !value.is_finite() || value < 0.0 {
                return refuse(key, format!("must be a number of at least 0, not {value}"));
            }
        }
        for (key, value) in [("alpha", self.alpha), ("beta", self.beta.resolve(self.depth))] {
            if !value.is_finite() {
                return refuse(key, format!("must be a finite number, not {value}"));
            }
        }
        if self.norm_position == NormPosition::Post && self.norm == Norm::None {
            return refuse("norm_position", "\"post\" needs a norm to place, and norm is \"none\"".into());
        }
        if self.norm != Norm::None && self.first_norm != Norm::None {
            return refuse("first_norm", "applies only where the blocks have norm = \"none\"".into());
        }
        Ok(())
    }
}
