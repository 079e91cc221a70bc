//! Named settings of one block: final names, used in configs, run names and reports. Each says how it differs from
//! another, and nothing else: an ablation is such a difference.

use super::config::{
    AttentionMatrix, Beta, BetaRule, Branches, Gate, Init, ModelConfig, Nonlinearity, Norm, NormPosition,
    Positions, Projection, QkNorm, QueryInit, Readout, RopeScaling, SoftmaxChoice, ValueInit,
};
use crate::ops::Activation;

/// A preset: its name, what it is in one line, and how to make it.
type Preset = (&'static str, &'static str, fn() -> ModelConfig);

const TABLE: &[Preset] = &[
    ("pre_ln", "Pre-LN: LayerNorm before each branch, the usual GPT block", pre_ln),
    ("pre_rms", "Pre-RMS: RMSNorm before each branch", || with_norm(Norm::Rms)),
    ("pre_srms", "Pre-SRMS: RMSNorm without parameters before each branch", || with_norm(Norm::Srms)),
    (
        "post_ln",
        "Post-LN: LayerNorm on the sum of stream and branch, and on the embedding, as in BERT",
        post_ln,
    ),
    (
        "op",
        "Outlier Protected: no norms in the blocks, 1/sqrt(depth) on each branch, QK-RMSNorm, a norm on the embedding",
        op,
    ),
    (
        "op_paper",
        "Outlier Protected as in the authors' code: 0.2 on each branch, N(0, 0.02), LayerNorm before attention in block 0 only",
        op_paper,
    ),
    (
        "op_tanh",
        "Outlier Protected with the soft cap 30 tanh(x / 30) on the scores instead of QK-RMSNorm",
        || ModelConfig { qk_norm: QkNorm::None, logit_softcap: 30.0, ..op() },
    ),
    ("op_no_entropy", "Outlier Protected without its entropy regulator, to show that it then fails", || {
        ModelConfig { qk_norm: QkNorm::None, ..op() }
    }),
    ("layerscale", "Pre-LN with a learned gain per channel on each branch, 0.1 at the start", layerscale),
    (
        "gated_attention",
        "Pre-LN with a sigmoid gate per token on each head, open by 0.25 at the start",
        || ModelConfig { gate: Gate::PerToken, gate_init: 0.25, ..pre_ln() },
    ),
    (
        "clipped_softmax",
        "Pre-LN with probabilities stretched by 12/context below 0 and clipped there",
        || ModelConfig { softmax: SoftmaxChoice::ClippedByContext, ..pre_ln() },
    ),
    ("parallel", "Pre-LN with attention and MLP side by side on one norm", || ModelConfig {
        branches: Branches::Parallel,
        ..pre_ln()
    }),
    (
        "skipless",
        "Pre-RMS without a skip around attention: shaped attention, identity values and output",
        skipless,
    ),
    ("osp", "OSP: SSNorm, projections after the embedding and before the head, RoPE, SwiGLU, no biases", osp),
    (
        "vit",
        "ViT: Pre-LN on patches of 4 of images of 32 x 32, a class token, GELU; what other image presets start from",
        || of_images(pre_ln()),
    ),
    ("vit_layerscale", "ViT with a learned gain per channel on each branch, 0.1 at the start", || {
        of_images(layerscale())
    }),
    ("vit_op", "ViT with the Outlier Protected block", || of_images(op())),
    ("vit_b16", "ViT-B/16: images of 224 x 224, 12 blocks of 768 channels", vit_b16),
];

/// The presets' names and what they are, one line each.
pub fn presets() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|p| (p.0, p.1))
}

/// The preset of that name at its default size, or `None`.
pub fn preset(name: &str) -> Option<ModelConfig> {
    let (name, _, make) = TABLE.iter().find(|p| p.0 == name)?;
    Some(ModelConfig { preset: (*name).to_string(), ..make() })
}

/// What every other preset starts from.
pub(crate) fn pre_ln() -> ModelConfig {
    use Projection::{Down, K, Out, Q, Up, V};
    ModelConfig {
        preset: "pre_ln".into(),
        depth: 6,
        width: 256,
        heads: 4,
        head_dim: 0,
        kv_heads: 0,
        vocab: 0,
        context: 128,
        patch_size: 0,
        image: [0; 3],
        padding_id: None,
        embed_dim: 0,
        embed_scale: 1.0,
        mlp_ratio: 4,
        mlp_hidden: 0,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        norm_position: NormPosition::Pre,
        branches: Branches::Sequential,
        first_norm: Norm::None,
        embed_norm: Norm::None,
        embed_proj: false,
        final_norm: Norm::Layer,
        beta: Beta::Value(1.0),
        beta_trainable: false,
        beta_per_channel: false,
        attn_skip: 1.0,
        mlp_skip: 1.0,
        alpha: 1.0,
        alpha_trainable: false,
        causal: true,
        window: 0,
        window_blocks: Vec::new(),
        qk_norm: QkNorm::None,
        qk_norm_eps: 1e-6,
        logit_softcap: 0.0,
        softmax: SoftmaxChoice::Standard,
        attention_matrix: AttentionMatrix::Softmax,
        value_init: ValueInit::Random,
        query_init: QueryInit::Random,
        gate: Gate::None,
        gate_init: 0.5,
        activation: Nonlinearity::Plain(Activation::Relu),
        positions: Positions::Learned,
        rope_base: 10_000.0,
        rope_fraction: 1.0,
        rope_scaling: RopeScaling::None,
        tie_head: false,
        head_bias: false,
        head_transform: false,
        readout: Readout::Tokens,
        biases: vec![Q, K, V, Out, Up, Down],
        dropout_embed: 0.0,
        dropout_residual: 0.0,
        dropout_attention: 0.0,
        init: Init::FanIn,
    }
}

fn with_norm(norm: Norm) -> ModelConfig {
    ModelConfig { norm, final_norm: norm, ..pre_ln() }
}

/// The last block's norm is the norm before the head.
fn post_ln() -> ModelConfig {
    ModelConfig {
        norm_position: NormPosition::Post,
        embed_norm: Norm::Layer,
        final_norm: Norm::None,
        ..pre_ln()
    }
}

fn op() -> ModelConfig {
    ModelConfig {
        norm: Norm::None,
        embed_norm: Norm::Layer,
        beta: Beta::Rule(BetaRule::InvSqrtDepth),
        qk_norm: QkNorm::Rms,
        biases: vec![Projection::Q, Projection::K],
        ..pre_ln()
    }
}

fn layerscale() -> ModelConfig {
    ModelConfig { beta: Beta::Value(0.1), beta_trainable: true, beta_per_channel: true, ..pre_ln() }
}

/// The block of `text` in a classifier of small images.
fn of_images(text: ModelConfig) -> ModelConfig {
    ModelConfig {
        width: 192,
        // Patches and the class token.
        context: 65,
        patch_size: 4,
        image: [32, 32, 3],
        causal: false,
        activation: Nonlinearity::Plain(Activation::Gelu),
        readout: Readout::First,
        head_bias: true,
        ..text
    }
}

/// Dosovitskiy et al., arXiv 2010.11929, table 1.
fn vit_b16() -> ModelConfig {
    ModelConfig {
        depth: 12,
        width: 768,
        heads: 12,
        context: 197,
        patch_size: 16,
        image: [224, 224, 3],
        norm_eps: 1e-6,
        ..of_images(pre_ln())
    }
}

fn op_paper() -> ModelConfig {
    ModelConfig {
        embed_norm: Norm::None,
        first_norm: Norm::Layer,
        beta: Beta::Value(0.2),
        init: Init::Normal(0.02),
        ..op()
    }
}

/// He and Hofmann, arXiv 2311.01906: at the start attention is the identity and the MLP a tenth of the stream.
fn skipless() -> ModelConfig {
    ModelConfig {
        attn_skip: 0.0,
        beta: Beta::Value(0.1),
        beta_trainable: true,
        attention_matrix: AttentionMatrix::Shaped,
        value_init: ValueInit::Identity,
        query_init: QueryInit::Zero,
        biases: vec![Projection::Q, Projection::K],
        ..with_norm(Norm::Rms)
    }
}

/// The block of arXiv 2506.19697; its optimiser, Muon, is another matter.
fn osp() -> ModelConfig {
    ModelConfig {
        embed_proj: true,
        positions: Positions::Rope,
        activation: Nonlinearity::Gated(Activation::Silu),
        biases: Vec::new(),
        ..with_norm(Norm::Ss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_makes_a_network_and_differs_from_every_other() {
        let named: Vec<ModelConfig> = presets().map(|(name, _)| preset(name).unwrap()).collect();
        for (i, config) in named.iter().enumerate() {
            ModelConfig { vocab: 10, ..config.clone() }.validate().unwrap();
            for other in &named[..i] {
                let same = ModelConfig { preset: other.preset.clone(), ..config.clone() };
                assert_ne!(&same, other, "{} and {} are the same", config.preset, other.preset);
            }
        }
        assert!(preset("pre-ln").is_none());
    }

    #[test]
    fn vit_b16_has_the_parameters_of_the_paper() {
        let (d, hidden, classes) = (768, 3072, 1000);
        let embedding = 3 * 16 * 16 * d + d + d + 197 * d;
        let block = 2 * 2 * d + 4 * (d * d + d) + (d * hidden + hidden) + (hidden * d + d);
        let formula = embedding + 12 * block + 2 * d + classes * d + classes;
        let config = ModelConfig { vocab: classes, ..preset("vit_b16").unwrap() };
        let shapes = crate::model::Transformer::shapes(config).unwrap();
        let counted: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        // 86.6 million, as in the paper and in every implementation of it.
        assert_eq!((counted, formula), (86_567_656, 86_567_656));
    }
}
