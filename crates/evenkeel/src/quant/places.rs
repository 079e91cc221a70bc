//! Where quantisers stand: the places of the paper's recipe, and the inputs of matrix products alone.

use crate::model::config::{Gate, ModelConfig, Norm, QkNorm};
use crate::tap::{Place, Site};

/// All sites that a forward pass of the model reaches.
pub fn sites(config: &ModelConfig) -> impl Iterator<Item = Site> + use<'_> {
    let outside = [Place::Embed, Place::FinalNorm, Place::Logits].map(Site::outside);
    let inside = |layer| Place::IN_BLOCKS.map(|place| Site::block(layer, place));
    let all = outside.into_iter().chain((0..config.depth).flat_map(inside));
    all.filter(|site| match site.place {
        Place::AttnQNorm | Place::AttnKNorm => config.qk_norm != QkNorm::None,
        Place::AttnGate => config.gate != Gate::None,
        // Branches side by side join the stream at once.
        Place::ResidMid => !config.branches.parallel(),
        _ => true,
    })
}

/// Whether the recipe of the paper's table has an activation quantiser at `site`, one of [`sites`]: thirteen places per block
/// and two outside.
pub fn has_quantiser(config: &ModelConfig, site: Site) -> bool {
    // Without a skip there is no β, and the branch's output is what goes on.
    let scaled = config.has_beta()
        && match site.place {
            Place::AttnOut | Place::AttnBranch => config.attn_skip().is_some(),
            _ => config.mlp_skip().is_some(),
        };
    match site.place {
        Place::Embed
        | Place::AttnQ
        | Place::AttnK
        | Place::AttnV
        | Place::AttnScores
        | Place::AttnProbs
        | Place::AttnContext
        | Place::AttnQNorm
        | Place::AttnKNorm
        | Place::ResidMid
        | Place::MlpHidden
        | Place::Resid => true,
        Place::AttnIn => site.layer.is_some_and(|l| config.attn_norm(l) != Norm::None),
        Place::MlpIn => config.norm != Norm::None,
        Place::AttnOut | Place::MlpOut => !scaled,
        Place::AttnBranch | Place::MlpBranch => scaled,
        Place::FinalNorm => config.final_norm != Norm::None,
        // Gates stay in float.
        Place::AttnGate | Place::Logits => false,
    }
}

/// Whether a parameter is quantised as a weight: matrices and norm gains; not head, attention gates, biases, and scalars
/// such as β and α.
pub fn is_quantised_weight(name: &str) -> bool {
    let matrix = name.ends_with(".weight") && name != "head.weight" && !name.contains(".attn.gate.");
    matrix || name.ends_with("norm.gain")
}

/// Whether a parameter may be quantised at all: matrices, the head's among them, and norm gains; not attention gates.
pub fn may_be_quantised(name: &str) -> bool {
    is_quantised_weight(name) || name == "head.weight"
}

/// Whether a site is what a matrix of a block reads.
pub fn is_product_input(site: Site) -> bool {
    matches!(site.place, Place::AttnIn | Place::AttnContext | Place::MlpIn | Place::MlpHidden)
}

/// Whether a site is the residual stream, between blocks or inside one.
pub fn is_residual(site: Site) -> bool {
    matches!(site.place, Place::Embed | Place::ResidMid | Place::Resid)
}

/// Whether a parameter is a matrix that multiplies activations, the head's apart.
pub fn is_product_weight(name: &str) -> bool {
    let table = name.starts_with("embed.") && name != "embed.proj.weight";
    is_quantised_weight(name) && name.ends_with(".weight") && !table
}

/// The site whose values a matrix reads; `None` where no site stands right before it.
pub fn input_of(weight: &str) -> Option<Site> {
    let outside = match weight {
        "head.weight" => Some(Site::outside(Place::FinalNorm)),
        _ => None,
    };
    outside.or_else(|| {
        let (layer, matrix) = weight.strip_prefix("blocks.")?.split_once('.')?;
        let place = match matrix {
            "attn.q.weight" | "attn.k.weight" | "attn.v.weight" => Place::AttnIn,
            "attn.out.weight" => Place::AttnContext,
            "mlp.up.weight" | "mlp.gate.weight" => Place::MlpIn,
            "mlp.down.weight" => Place::MlpHidden,
            _ => return None,
        };
        Some(Site::block(layer.parse().ok()?, place))
    })
}
