//! Named settings of one block: final names, used in configs, run names and reports.

use super::config::{Beta, BetaRule, Init, ModelConfig, Norm, NormPosition, Positions, Projection, QkNorm};
use crate::ops::Activation;

/// A preset's name and what it is, one line each.
pub const PRESETS: &[(&str, &str)] = &[
    ("pre_ln", "Pre-LN: LayerNorm before each branch, the usual GPT block"),
    ("pre_rms", "Pre-RMS: RMSNorm before each branch"),
    (
        "op",
        "Outlier Protected: no norms in the blocks, 1/sqrt(depth) on each branch, QK-RMSNorm, a norm on the embedding",
    ),
    (
        "op_paper",
        "Outlier Protected as in the authors' code: 0.2 on each branch, N(0, 0.02), LayerNorm before attention in block 0 only",
    ),
];

/// The preset of that name at its default size, or `None`.
pub fn preset(name: &str) -> Option<ModelConfig> {
    let base = ModelConfig {
        preset: name.to_string(),
        depth: 6,
        width: 256,
        heads: 4,
        vocab: 0,
        context: 128,
        mlp_ratio: 4,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        norm_position: NormPosition::Pre,
        first_norm: Norm::None,
        embed_norm: Norm::None,
        final_norm: Norm::Layer,
        beta: Beta::Value(1.0),
        beta_trainable: false,
        alpha: 1.0,
        alpha_trainable: false,
        qk_norm: QkNorm::None,
        qk_norm_eps: 1e-6,
        activation: Activation::Relu,
        positions: Positions::Learned,
        tie_head: false,
        biases: vec![
            Projection::Q,
            Projection::K,
            Projection::V,
            Projection::Out,
            Projection::Up,
            Projection::Down,
        ],
        init: Init::FanIn,
    };
    let op = ModelConfig {
        norm: Norm::None,
        embed_norm: Norm::Layer,
        beta: Beta::Rule(BetaRule::InvSqrtDepth),
        qk_norm: QkNorm::Rms,
        biases: vec![Projection::Q, Projection::K],
        ..base.clone()
    };
    Some(match name {
        "pre_ln" => base,
        "pre_rms" => ModelConfig { norm: Norm::Rms, final_norm: Norm::Rms, ..base },
        "op" => op,
        "op_paper" => ModelConfig {
            embed_norm: Norm::None,
            first_norm: Norm::Layer,
            beta: Beta::Value(0.2),
            init: Init::Normal(0.02),
            ..op
        },
        _ => return None,
    })
}
