//! The choices that a block is made of: enums, their names in configuration files, and the sources they come from.
//!
//! A choice with numbers is written as a call, `leaky_relu(0.01)` or `clipped(-0.03, 1)`.

use crate::ops::{Activation, RopeScaling, Softmax};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A normalisation over channels; ε = `norm_eps` inside the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// LayerNorm with gain and bias.
    Layer,
    /// RMSNorm with gain.
    Rms,
    /// RMSNorm without parameters.
    Srms,
    /// RMSNorm with one scalar gain (SSNorm of OSP, arXiv 2506.19697).
    Ss,
    /// No statistics at all: tanh(α x) · gain + bias with scalar α (Dynamic Tanh, arXiv 2503.10622).
    Dyt,
    /// No norm.
    None,
}

/// Where a block's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// On the branch's input: x ← x + f(N(x)).
    Pre,
    /// On the sum of stream and branch: x ← N(x + f(x)).
    Post,
    /// On the stream, before branch and skip part: x ← N(x), then x ← x + f(x) (the paper's authors' `post`).
    PostStream,
}

/// How the two branches of a block are joined to the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Branches {
    /// Attention first, the MLP reads what it left.
    #[default]
    Sequential,
    /// Both read the same normalised stream (GPT-J).
    Parallel,
    /// Both read the same stream, each through its own norm (GPT-NeoX, Pythia).
    ParallelTwoNorms,
}

impl Branches {
    /// Whether both branches read the stream as it enters the block.
    pub fn parallel(self) -> bool {
        self != Branches::Sequential
    }
}

/// Norm of queries and keys, per head over its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None: scores are free to grow.
    None,
    /// RMSNorm with one gain vector shared by all heads, ε outside the root.
    Rms,
    /// The same with ε inside the root (Qwen3).
    RmsInside,
    /// LayerNorm with one gain and one bias vector shared by all heads, ε inside the root.
    Layer,
}

/// What multiplies the values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionMatrix {
    /// The probabilities P.
    #[default]
    Softmax,
    /// a I + b P - c C per head, with the uniform causal matrix C and learned a, b, c (Noci et al., arXiv 2306.17759;
    /// He and Hofmann, arXiv 2311.01906): the identity at the start, when queries start at zero.
    Shaped,
}

/// How the value and output projections of attention are parametrised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueInit {
    /// A random matrix.
    #[default]
    Random,
    /// s x + r (x Wᵀ + b) with learned scalars s and r and W = 0 at the start: the identity.
    Identity,
}

/// How the query projection starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueryInit {
    /// As every other matrix.
    #[default]
    Random,
    /// At zero, so that attention starts uniform.
    Zero,
}

/// A sigmoid gate on each head's weighted values before the heads are merged (Bondarenko et al., arXiv 2306.12929). One
/// that averages over the sequence would see the future, so there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// No gate.
    #[default]
    None,
    /// One number per head, whatever the input.
    PerHead,
    /// Linear in the head's own channels of the attention input.
    PerToken,
    /// A small ReLU network of the head's own channels.
    Mlp,
    /// Linear in all channels, one number per head.
    AllFeatures,
    /// Linear in all channels, one number per channel (Qiu et al., arXiv 2505.06708).
    Elementwise,
}

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector per position, added to the token's.
    Learned,
    /// Queries and keys are rotated by angles that grow with the position (Su et al., arXiv 2104.09864).
    Rope,
    /// Nothing but the causal mask.
    None,
}

/// What the head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readout {
    /// Every token: logits (sequences, tokens, vocab).
    #[default]
    Tokens,
    /// The first token alone, to classify the sequence: logits (sequences, 1, vocab).
    First,
    /// The mean of all tokens, to classify the sequence: logits (sequences, 1, vocab).
    Mean,
    /// There is no head.
    None,
}

/// A linear map of the block, as named by `biases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The matrix of a gated MLP that goes through the nonlinearity.
    Gate,
}

/// The gain on both branches of every block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number or \"inv_sqrt_depth\"")]
pub enum Beta {
    /// A number.
    Value(f64),
    /// A rule.
    Rule(BetaRule),
}

/// Rules for β.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// A choice that is written as a word or as a call with numbers.
macro_rules! written_as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                let (name, numbers) = call(&text).unwrap_or(("", Vec::new()));
                Self::named(name, &numbers).ok_or_else(|| format!("{}, not \"{text}\"", Self::CHOICES))
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                text_schema(Self::CHOICES)
            }
        }
    };
}

/// Texts as `choices` has them in quotes: words, and calls, each with as many numbers as it shows.
fn text_schema(choices: &str) -> Schema {
    const NUMBER: &str = r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*";
    let (calls, words): (Vec<&str>, Vec<&str>) =
        choices.split('"').skip(1).step_by(2).partition(|choice| choice.contains('('));
    let pattern = |call: &&str| {
        let (name, arguments) = call.split_once('(')?;
        let numbers = vec![NUMBER; arguments.split(',').count()].join(",");
        Some(format!(r"^{name}\({numbers}\)$"))
    };
    let calls = calls.iter().filter_map(pattern).map(|pattern| json_schema!({ "pattern": pattern }));
    let ways: Vec<Schema> = std::iter::once(json_schema!({ "enum": words })).chain(calls).collect();
    json_schema!({ "type": "string", "anyOf": ways })
}

/// `name` or `name(1, 2)` as the name and its numbers, all finite in float32 too.
fn call(text: &str) -> Option<(&str, Vec<f64>)> {
    let Some((name, rest)) = text.split_once('(') else { return Some((text.trim(), Vec::new())) };
    let numbers = rest.trim_end().strip_suffix(')')?.split(',').map(|n| n.trim().parse::<f64>().ok());
    let numbers: Vec<f64> = numbers.collect::<Option<_>>()?;
    numbers.iter().all(|&n| (n as f32).is_finite()).then_some((name.trim(), numbers))
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

written_as_text!(Init);

impl Init {
    const CHOICES: &str = "init must be \"fan_in\" or \"normal(STD)\"";

    fn named(name: &str, numbers: &[f64]) -> Option<Self> {
        match (name, numbers) {
            ("fan_in", []) => Some(Init::FanIn),
            ("normal", &[std]) if std >= 0.0 => Some(Init::Normal(std)),
            _ => None,
        }
    }

    /// Standard deviation of a matrix with this many inputs.
    pub fn std(self, fan_in: usize) -> f64 {
        match self {
            Init::FanIn => 1.0 / (fan_in as f64).sqrt(),
            Init::Normal(std) => std,
        }
    }
}

impl std::fmt::Display for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Init::FanIn => f.write_str("fan_in"),
            Init::Normal(std) => write!(f, "normal({std})"),
        }
    }
}

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SoftmaxChoice {
    /// As everywhere.
    #[default]
    Standard,
    /// clip((η - γ) softmax + γ, 0, 1) with γ = -12 / `context` and η = 1 (Bondarenko et al., their OPT runs).
    ClippedByContext,
    /// The same with these γ and η.
    Clipped(f64, f64),
    /// exp(s) / (1 + Σ exp(s)): a slot with score and value 0 beside the keys.
    NullSlot,
}

written_as_text!(SoftmaxChoice);

impl SoftmaxChoice {
    const CHOICES: &str =
        "softmax must be \"standard\", \"clipped\", \"clipped(GAMMA, ETA)\" or \"null_slot\"";

    fn named(name: &str, numbers: &[f64]) -> Option<Self> {
        match (name, numbers) {
            ("standard", []) => Some(Self::Standard),
            ("clipped", []) => Some(Self::ClippedByContext),
            ("clipped", &[gamma, eta]) => Some(Self::Clipped(gamma, eta)),
            ("null_slot", []) => Some(Self::NullSlot),
            _ => None,
        }
    }

    /// With its numbers, for a model trained on blocks of `context` tokens.
    pub fn resolve(self, context: usize) -> Softmax {
        match self {
            Self::Standard => Softmax::Standard,
            Self::ClippedByContext => Softmax::Clipped { gamma: -12.0 / context as f64, eta: 1.0 },
            Self::Clipped(gamma, eta) => Softmax::Clipped { gamma, eta },
            Self::NullSlot => Softmax::NullSlot,
        }
    }
}

impl std::fmt::Display for SoftmaxChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Standard => f.write_str("standard"),
            Self::ClippedByContext => f.write_str("clipped"),
            Self::Clipped(gamma, eta) => write!(f, "clipped({gamma}, {eta})"),
            Self::NullSlot => f.write_str("null_slot"),
        }
    }
}

written_as_text!(RopeScaling);

impl RopeScaling {
    const CHOICES: &str = "rope_scaling must be \"none\", \"linear(FACTOR)\", \"dynamic(FACTOR, ORIGINAL)\" or \
                           \"llama3(FACTOR, LOW, HIGH, ORIGINAL)\", factors at least 1, LOW below HIGH, lengths at least 1";

    fn named(name: &str, numbers: &[f64]) -> Option<Self> {
        match (name, numbers) {
            ("none", []) => Some(Self::None),
            ("linear", &[factor]) if factor >= 1.0 => Some(Self::Linear { factor }),
            ("dynamic", &[factor, original]) if factor >= 1.0 && original >= 1.0 => {
                Some(Self::Dynamic { factor, original })
            }
            ("llama3", &[factor, low, high, original])
                if factor >= 1.0 && 0.0 < low && low < high && original >= 1.0 =>
            {
                Some(Self::Llama3 { factor, low, high, original })
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Linear { factor } => write!(f, "linear({factor})"),
            Self::Dynamic { factor, original } => write!(f, "dynamic({factor}, {original})"),
            Self::Llama3 { factor, low, high, original } => {
                write!(f, "llama3({factor}, {low}, {high}, {original})")
            }
        }
    }
}

/// What stands between the matrices of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Nonlinearity {
    /// act(x W_upᵀ).
    Plain(Activation),
    /// act(x W_gateᵀ) ⊙ x W_upᵀ (Shazeer, arXiv 2002.05202).
    Gated(Activation),
}

written_as_text!(Nonlinearity);

/// Names of the nonlinearities without numbers.
const NONLINEARITIES: [(&str, Nonlinearity); 9] = [
    ("relu", Nonlinearity::Plain(Activation::Relu)),
    ("gelu", Nonlinearity::Plain(Activation::Gelu)),
    ("gelu_tanh", Nonlinearity::Plain(Activation::GeluTanh)),
    ("silu", Nonlinearity::Plain(Activation::Silu)),
    ("squared_relu", Nonlinearity::Plain(Activation::SquaredRelu)),
    ("swiglu", Nonlinearity::Gated(Activation::Silu)),
    ("geglu", Nonlinearity::Gated(Activation::Gelu)),
    ("geglu_tanh", Nonlinearity::Gated(Activation::GeluTanh)),
    ("reglu", Nonlinearity::Gated(Activation::Relu)),
];

impl Nonlinearity {
    const CHOICES: &str = "activation must be \"relu\", \"leaky_relu(SLOPE)\", \"gelu\", \"gelu_tanh\", \"silu\", \
                           \"squared_relu\", \"swiglu\", \"geglu\", \"geglu_tanh\" or \"reglu\"";

    fn named(name: &str, numbers: &[f64]) -> Option<Self> {
        match (name, numbers) {
            // With a negative slope the sign of the output would no longer tell that of the input.
            ("leaky_relu", &[slope]) if slope >= 0.0 => {
                Some(Nonlinearity::Plain(Activation::LeakyRelu(slope as f32)))
            }
            (name, []) => NONLINEARITIES.iter().find(|n| n.0 == name).map(|n| n.1),
            _ => None,
        }
    }

    /// The function itself.
    pub fn activation(self) -> Activation {
        match self {
            Nonlinearity::Plain(act) | Nonlinearity::Gated(act) => act,
        }
    }

    /// Whether a second matrix multiplies its output.
    pub fn is_gated(self) -> bool {
        matches!(self, Nonlinearity::Gated(_))
    }
}

impl std::fmt::Display for Nonlinearity {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match (self, NONLINEARITIES.iter().find(|n| n.1 == *self)) {
            (_, Some((name, _))) => f.write_str(name),
            (other, None) => match other.activation() {
                Activation::LeakyRelu(slope) => write!(f, "leaky_relu({slope})"),
                // Every other function has its names in the table.
                act => write!(f, "{act:?}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_with_numbers_survive_being_written() {
        let softmaxes = ["standard", "clipped", "clipped(-0.03, 1)", "null_slot"];
        let activations = [
            "relu",
            "leaky_relu(0.1)",
            "gelu_tanh",
            "swiglu",
            "geglu",
            "geglu_tanh",
            "reglu",
            "squared_relu",
        ];
        for text in ["none", "linear(8)", "dynamic(2.5, 2048)", "llama3(8, 1, 4, 8192)"] {
            assert_eq!(RopeScaling::try_from(text.to_string()).unwrap().to_string(), text);
        }
        assert!(RopeScaling::try_from("llama3(8, 4, 1, 8192)".to_string()).is_err());
        for text in softmaxes {
            assert_eq!(SoftmaxChoice::try_from(text.to_string()).unwrap().to_string(), text);
        }
        for text in activations {
            assert_eq!(Nonlinearity::try_from(text.to_string()).unwrap().to_string(), text);
        }
        for text in ["fan_in", "normal(0.02)"] {
            assert_eq!(Init::try_from(text.to_string()).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "normal",
            "normal(",
            "normal(x)",
            "normal(-1)",
            "normal(inf)",
            "normal(1e39)",
            "fan_in(2)",
            "normal(1,2)",
        ] {
            let said = Init::try_from(bad.to_string()).unwrap_err();
            assert!(said.contains("normal(STD)") && said.ends_with(&format!("\"{bad}\"")), "{said}");
        }
        assert!(Nonlinearity::try_from("leaky_relu(-1)".to_string()).is_err());
        assert!(SoftmaxChoice::try_from("clipped(1)".to_string()).is_err());
    }
}
