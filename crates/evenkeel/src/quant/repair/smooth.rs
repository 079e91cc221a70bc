//! SmoothQuant (Xiao et al., arXiv 2211.10438): activations' outlier channels are made smaller, the columns of the matrices
//! that read them larger by as much, and what comes before takes the factors over.
//!
//! Channel j of a site is divided by s_j = max|x_j|^α / max|W_j|^(1-α), W_j the columns of all matrices that read it. The
//! division goes into the gain of a norm before a branch, into the rows of the value matrix, or into those of the MLP's first
//! matrix where nothing or only a (leaky or squared) ReLU stands between. Computed is the same function.

use super::RepairError;
use super::calibration::{Calibration, head_reader, input_sites, readers};
use super::weights::Weights;
use crate::model::Transformer;
use crate::model::config::{Branches, Gate, ModelConfig, Nonlinearity, Norm, NormPosition};
use crate::ops::Activation;
use crate::tap::{Place, Site};

/// What became of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SmoothSite {
    /// The site.
    pub site: Site,
    /// Whether its channels were scaled.
    pub outcome: Smoothed,
}

/// Whether a site's channels could be scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum Smoothed {
    /// They were.
    Folded {
        /// The norm or matrix that took the factors over, such as `blocks.0.attn.norm`.
        into: String,
        /// s: what each channel was divided by.
        scales: Vec<f32>,
        /// The largest over the median of the channels' maxima, before and after.
        spread: [f64; 2],
    },
    /// They were not.
    Kept {
        /// Why not.
        why: &'static str,
    },
}

/// What takes the factors over.
enum Source {
    /// Gain and bias of a norm.
    Norm(String),
    /// Rows of a matrix, each divided by s to this power.
    Rows(String, f64),
    /// Rows of the value matrix, each read by the query heads of its group.
    Values(String),
}

/// The model with its inputs of matrices smoothed by strength `alpha`, between 0 (all of the difficulty stays in the activations)
/// and 1 (all goes to the weights); and what became of each site. `maxima` are of this very model.
///
/// # Errors
/// If a site was not calibrated, or the parameters are not float32.
pub fn smooth(
    model: &Transformer,
    maxima: &Calibration,
    alpha: f64,
) -> Result<(Transformer, Vec<SmoothSite>), RepairError> {
    let mut weights = Weights::of(model)?;
    weights.merge_identity();
    let c = model.config();
    // In a parallel block with one norm the MLP reads what attention reads, and is scaled with it.
    let shared = |site: &Site| c.branches == Branches::Parallel && site.place == Place::MlpIn;
    let mut sites = Vec::new();
    for site in input_sites(c).into_iter().filter(|site| !shared(site)) {
        let outcome = match source(c, site) {
            Err(why) => Smoothed::Kept { why },
            Ok(source) => fold(&mut weights, site, &source, &maxima.at(site)?.maxima, alpha),
        };
        sites.push(SmoothSite { site, outcome });
    }
    Ok((weights.into_model()?, sites))
}

/// What comes before a site, if it can take factors over; else why not.
fn source(c: &ModelConfig, site: Site) -> Result<Source, &'static str> {
    let block = site.layer.map_or_else(String::new, |layer| format!("blocks.{layer}."));
    match site.place {
        Place::AttnIn => norm_source(c, c.attn_norm(site.layer.unwrap_or(0)), format!("{block}attn.norm")),
        Place::MlpIn => norm_source(c, c.mlp_norm(), format!("{block}mlp.norm")),
        Place::AttnContext => Ok(Source::Values(format!("{block}attn.v"))),
        Place::MlpHidden => match c.activation {
            // The matrix that is not gated is multiplied in.
            Nonlinearity::Gated(_) => Ok(Source::Rows(format!("{block}mlp.up"), 1.0)),
            Nonlinearity::Plain(Activation::Relu | Activation::LeakyRelu(_)) => {
                Ok(Source::Rows(format!("{block}mlp.up"), 1.0))
            }
            Nonlinearity::Plain(Activation::SquaredRelu) => Ok(Source::Rows(format!("{block}mlp.up"), 0.5)),
            Nonlinearity::Plain(Activation::Gelu | Activation::GeluTanh | Activation::Silu) => {
                Err("the nonlinearity before it lets no factor pass")
            }
        },
        _ if c.tie_head && head_reader(c) == "head" => Err("the head that reads it is the token table"),
        _ => before_branch(c.final_norm, "final_norm".into()),
    }
}

fn norm_source(c: &ModelConfig, norm: Norm, name: String) -> Result<Source, &'static str> {
    match c.norm_position {
        NormPosition::Pre => before_branch(norm, name),
        NormPosition::Post | NormPosition::PostStream => {
            Err("it is the residual stream, which the skip reads too")
        }
    }
}

/// A norm whose output nothing but the branch or the head reads.
fn before_branch(norm: Norm, name: String) -> Result<Source, &'static str> {
    match norm {
        Norm::Layer | Norm::Rms | Norm::Dyt => Ok(Source::Norm(name)),
        Norm::Srms | Norm::Ss => Err("the norm before it has no gain for each channel"),
        Norm::None => Err("no norm stands before it: it is the residual stream"),
    }
}

/// Scales a site's channels, and says by how much.
fn fold(weights: &mut Weights, site: Site, source: &Source, maxima: &[f32], alpha: f64) -> Smoothed {
    let c = weights.config.clone();
    let mut matrices = readers(&c, site);
    if c.branches == Branches::Parallel && site.place == Place::AttnIn {
        matrices.extend(readers(&c, Site { place: Place::MlpIn, ..site }));
    }
    let mut columns = vec![0.0f32; maxima.len()];
    for matrix in &matrices {
        for row in weights.data(&format!("{matrix}.weight")).chunks(maxima.len().max(1)) {
            columns.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
    }
    // Query heads that share their values share the factors.
    let group = match source {
        Source::Values(_) => c.heads / c.kv_heads(),
        Source::Norm(_) | Source::Rows(..) => 1,
    };
    let (inputs, columns) = (gathered(maxima, group, c.d_head()), gathered(&columns, group, c.d_head()));
    let own: Vec<f64> = inputs.iter().zip(&columns).map(|(&x, &w)| strength(x, w, alpha)).collect();
    let scales = spread_out(&own, group, c.d_head());

    for matrix in &matrices {
        weights.scale_columns(matrix, &scales);
    }
    if site.place == Place::AttnIn {
        scale_gate(weights, &format!("blocks.{}.attn.gate", site.layer.unwrap_or(0)), &scales);
    }
    let inverse = |power: f64| own.iter().map(|s| s.powf(-power)).collect::<Vec<_>>();
    let into = match source {
        Source::Rows(matrix, power) => {
            weights.scale_rows(matrix, &inverse(*power));
            matrix
        }
        Source::Values(matrix) => {
            weights.scale_rows(matrix, &inverse(1.0));
            matrix
        }
        Source::Norm(norm) => {
            for part in ["gain", "bias"] {
                let vector = weights.data_mut(&format!("{norm}.{part}"));
                vector.iter_mut().zip(&own).for_each(|(v, s)| *v = (f64::from(*v) / s) as f32);
            }
            norm
        }
    };
    let before: Vec<f64> = maxima.iter().map(|&v| f64::from(v)).collect();
    let after: Vec<f64> = before.iter().zip(&scales).map(|(v, s)| v / s).collect();
    Smoothed::Folded {
        into: into.clone(),
        scales: scales.iter().map(|&s| s as f32).collect(),
        spread: [spread(before), spread(after)],
    }
}

/// s of a channel; 1 where there is nothing to weigh against each other.
fn strength(input: f32, weight: f32, alpha: f64) -> f64 {
    let (x, w) = (f64::from(input), f64::from(weight));
    if x == 0.0 || w == 0.0 {
        return 1.0;
    }
    // No factor may take a weight or an activation out of float32.
    (x.powf(alpha) / w.powf(1.0 - alpha)).clamp(1e-5, 1e5)
}

/// The largest over a group of heads, for each channel that they share: (heads, d) to (heads / group, d).
fn gathered(x: &[f32], group: usize, d: usize) -> Vec<f32> {
    if group == 1 {
        return x.to_vec();
    }
    let most = |heads: &[f32]| {
        (0..d).map(|i| heads.iter().skip(i).step_by(d).fold(0.0f32, |a, &b| a.max(b))).collect::<Vec<_>>()
    };
    x.chunks(group * d).flat_map(most).collect()
}

/// The other way: each head of a group gets what the group has.
fn spread_out(x: &[f64], group: usize, d: usize) -> Vec<f64> {
    if group == 1 {
        return x.to_vec();
    }
    x.chunks(d).flat_map(|head| std::iter::repeat_n(head, group).flatten().copied()).collect()
}

/// The gate on attention reads what the projections read, all channels or those of its head.
fn scale_gate(weights: &mut Weights, gate: &str, scales: &[f64]) {
    let heads = weights.config.heads;
    match weights.config.gate {
        Gate::None | Gate::PerHead => {}
        Gate::AllFeatures | Gate::Elementwise => weights.scale_columns(gate, scales),
        Gate::PerToken | Gate::Mlp => {
            let first = if weights.config.gate == Gate::Mlp { ".up" } else { "" };
            let weight = weights.data_mut(&format!("{gate}{first}.weight"));
            let (part, d) = ((weight.len() / heads).max(1), (scales.len() / heads).max(1));
            for (head, scales) in weight.chunks_mut(part).zip(scales.chunks(d)) {
                for row in head.chunks_mut(d) {
                    row.iter_mut().zip(scales).for_each(|(v, s)| *v = (f64::from(*v) * s) as f32);
                }
            }
        }
    }
}

/// Largest over median; 0 if all are zero.
fn spread(mut maxima: Vec<f64>) -> f64 {
    maxima.sort_by(f64::total_cmp);
    let most = maxima.last().copied().unwrap_or(0.0);
    let median = maxima.get(maxima.len() / 2).copied().filter(|&m| m > 0.0);
    median.map_or(0.0, |m| most / m)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, inputs, inputs_of, perturbed, variants};
    use super::*;

    fn smoothed(model: &Transformer, alpha: f64) -> (Transformer, Vec<SmoothSite>) {
        smooth(model, &Calibration::of(model, &inputs_of(model.config()), false).unwrap(), alpha).unwrap()
    }

    fn folded(sites: &[SmoothSite]) -> Vec<String> {
        let into = |s: &SmoothSite| match &s.outcome {
            Smoothed::Folded { into, .. } => Some(into.clone()),
            Smoothed::Kept { .. } => None,
        };
        sites.iter().filter_map(into).collect()
    }

    #[test]
    fn the_function_stays_the_same() {
        for (name, config) in variants() {
            let model = perturbed(&config);
            for alpha in [0.3, 0.8] {
                let (after, sites) = smoothed(&model, alpha);
                let moved = difference(&model, &after);
                assert!(moved < 1e-5, "{name} moved by {moved}");
                // Values can always take factors over.
                assert!(folded(&sites).len() >= config.depth, "{name}: {sites:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_folded_is_named() {
        let kept = |name: &str| -> Vec<String> {
            let config = variants().into_iter().find(|v| v.0 == name).unwrap().1;
            let (_, sites) = smoothed(&perturbed(&config), 0.5);
            let kept = sites.iter().filter(|s| matches!(s.outcome, Smoothed::Kept { .. }));
            kept.map(|s| s.site.to_string()).collect()
        };
        assert!(kept("pre_ln").is_empty() && kept("parallel").is_empty());
        let stream = ["blocks.0.attn.in", "blocks.0.mlp.in", "blocks.1.attn.in", "blocks.1.mlp.in"];
        assert_eq!(kept("op"), stream);
        assert_eq!(kept("op_paper"), stream[1..]);
        assert_eq!(kept("post_ln"), [&stream[..], &["final_norm"]].concat());
        assert_eq!(kept("osp"), [&stream[..], &["final_norm"]].concat());
        assert_eq!(kept("gelu"), ["blocks.0.mlp.hidden", "blocks.1.mlp.hidden"]);
        assert_eq!(kept("tied"), ["final_norm"]);
    }

    #[test]
    fn an_outlier_channel_moves_into_the_weights() {
        let model = perturbed(&variants().into_iter().find(|v| v.0 == "pre_ln").unwrap().1);
        let mut planted = Weights::of(&model).unwrap();
        planted.data_mut("blocks.1.attn.norm.gain")[3] = 300.0;
        let planted = planted.into_model().unwrap();
        let (after, sites) = smoothed(&planted, 0.5);
        let site = sites.iter().find(|s| s.site == Site::block(1, Place::AttnIn)).unwrap();
        let Smoothed::Folded { scales, spread, .. } = &site.outcome else { panic!("{site:?}") };
        assert!(spread[0] > 100.0 && spread[1] < spread[0] / 8.0, "{spread:?}");
        assert!(scales.iter().enumerate().all(|(j, &s)| j == 3 || s < scales[3]));
        // By α = 1/2, activations and weights of a channel end with the same maximum.
        let site = Site::block(1, Place::MlpHidden);
        let calibration = Calibration::of(&after, &inputs(), false).unwrap();
        let maxima = &calibration.at(site).unwrap().maxima;
        let weights = Weights::of(&after).unwrap();
        for (j, &x) in maxima.iter().enumerate().filter(|(_, x)| **x > 0.0) {
            let column = weights.data("blocks.1.mlp.down.weight").iter().skip(j).step_by(maxima.len());
            let w = column.fold(0.0f32, |most, w| most.max(w.abs()));
            assert!((x / w - 1.0).abs() < 1e-3, "{j}: {x} {w}");
        }
    }

    #[test]
    fn heads_that_share_values_share_factors() {
        assert_eq!(gathered(&[1.0, 5.0, 3.0, 2.0, 0.0, 7.0, 9.0, 1.0], 2, 2), [3.0, 5.0, 9.0, 7.0]);
        assert_eq!(spread_out(&[1.0, 2.0, 3.0, 4.0], 2, 2), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    }
}
