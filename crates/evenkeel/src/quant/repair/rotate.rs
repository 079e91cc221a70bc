//! Hadamard rotation of the residual stream and of the values (QuaRot, Ashkboos et al., arXiv 2404.00456; R1 and R2 of
//! SpinQuant, Liu et al., arXiv 2405.16406), merged into the weights: an outlier channel is spread over all channels.
//!
//! With an orthogonal Q the stream x becomes x Q: what writes to it is multiplied by Q, what reads it by Qᵀ. RMSNorm commutes
//! with that once its gain is in the matrices behind it. LayerNorm does so too if Q leaves the mean over channels what it
//! is, so that Q is chosen that way wherever there is one; SliceGPT's way of centring what is written (arXiv 2401.15024) is not
//! open to a model that reads the stream without a norm. A norm whose output is the stream itself keeps its gain, which
//! therefore has to be the same for all channels. In each head a smaller rotation stands between values and output matrix.
//! Computed is the same function; the model is refused if it would not be.

use super::RepairError;
use super::calibration::{head_reader, readers};
use super::hadamard::Rotation;
use super::weights::{Weights, name_of};
use crate::model::Transformer;
use crate::model::config::{Branches, Gate, Norm, NormPosition, Positions, Projection, Readout};
use crate::tap::{Place, Site};

/// How a model was rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Order of the Hadamard matrix on the stream: the width, or a divisor of it where no matrix of that order is known.
    pub stream: usize,
    /// The same for the values of a head; `None` where a gate on each channel stands in the way.
    pub head: Option<usize>,
}

/// The model with its stream rotated at random by `seed`, and by what. Gains of norms end in matrices, biases of norms in
/// biases (added where there were none), and the head is no longer tied to the token table.
///
/// # Errors
/// [`RepairError::NotRotatable`] with the part that does not allow it; or the parameters are not float32.
pub fn rotate(model: &Transformer, seed: u64) -> Result<(Transformer, Rotated), RepairError> {
    let mut w = Weights::of(model)?;
    if w.config.readout == Readout::None {
        return refuse("readout", "without a head nothing would turn the stream back");
    }
    w.merge_identity();
    w.merge_channel_gains();
    widen_gates(&mut w)?;
    if !w.config.has_embed_proj() {
        w.untie();
    }
    merge_embedding_norm(&mut w);
    fold_norms(&mut w)?;

    let c = w.config.clone();
    let centred = [c.norm, c.first_norm, c.embed_norm, c.final_norm].contains(&Norm::Layer);
    let stream = Rotation::new(c.width, seed, centred);
    rotate_ends(&mut w, &stream);
    (0..c.depth).for_each(|layer| rotate_block(&mut w, layer, &stream));
    let head = (c.gate != Gate::Elementwise).then(|| Rotation::new(c.d_head(), seed, false));
    if let Some(head) = &head {
        (0..c.depth).for_each(|layer| rotate_heads(&mut w, layer, head));
    }
    let rotated = Rotated { stream: stream.order(), head: head.map(|h| h.order()) };
    Ok((w.into_model()?, rotated))
}

fn refuse<T>(key: &'static str, why: &'static str) -> Result<T, RepairError> {
    Err(RepairError::NotRotatable { key, why })
}

/// A gate on each head's own channels becomes one on all channels, which it reads once they are mixed.
fn widen_gates(w: &mut Weights) -> Result<(), RepairError> {
    match w.config.gate {
        Gate::Mlp => return refuse("gate", "its network reads each head's own channels"),
        Gate::PerToken => w.config.gate = Gate::AllFeatures,
        Gate::None | Gate::PerHead | Gate::AllFeatures | Gate::Elementwise => return Ok(()),
    }
    let (heads, width) = (w.config.heads, w.config.width);
    for name in (0..w.config.depth).map(|layer| format!("blocks.{layer}.attn.gate.weight")) {
        let own = w.take(&name).unwrap_or_default();
        let mut all = vec![0.0; heads * width];
        // Head h owns the channels from h · d_head on.
        let d = (width / heads).max(1);
        for (h, (row, own)) in all.chunks_mut(width).zip(own.chunks(d)).enumerate() {
            row.iter_mut().skip(h * d).zip(own).for_each(|(to, &from)| *to = from);
        }
        w.insert(name, vec![heads, width], all);
    }
    Ok(())
}

/// A norm of a token's own vector alone can be taken beforehand.
fn merge_embedding_norm(w: &mut Weights) {
    let c = w.config.clone();
    let alone = c.positions != Positions::Learned && !c.reads_images() && !c.has_embed_proj();
    if !alone || c.tie_head || !matches!(c.embed_norm, Norm::Layer | Norm::Rms) {
        return;
    }
    let (gain, bias) = (w.doubles("embed.norm.gain"), w.doubles("embed.norm.bias"));
    for row in w.data_mut("embed.token.weight").chunks_mut(c.width) {
        let mut x: Vec<f64> = row.iter().map(|&v| f64::from(v) * c.embed_scale).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / c.width as f64;
        if c.embed_norm == Norm::Layer {
            let mean = mean(&x);
            x.iter_mut().for_each(|v| *v -= mean);
        }
        let square: Vec<f64> = x.iter().map(|v| v * v).collect();
        let root = (mean(&square) + c.norm_eps).sqrt();
        let bias = bias.iter().copied().chain(std::iter::repeat(0.0));
        for (((v, x), gain), bias) in row.iter_mut().zip(x).zip(&gain).zip(bias) {
            *v = (x / root * gain + bias) as f32;
        }
    }
    for part in ["gain", "bias"] {
        w.take(&format!("embed.norm.{part}"));
    }
    (w.config.embed_norm, w.config.embed_scale) = (Norm::None, 1.0);
}

/// A matrix that reads a norm's output, and the factor on it.
type Reader = (String, f64);

/// Brings every norm into a form that commutes with the rotation.
fn fold_norms(w: &mut Weights) -> Result<(), RepairError> {
    let c = w.config.clone();
    let before_branches = c.norm_position == NormPosition::Pre;
    on_the_stream(w, "embed.norm", "embed_norm", c.embed_norm)?;
    for layer in 0..c.depth {
        let (attn, mlp) = (format!("blocks.{layer}.attn.norm"), format!("blocks.{layer}.mlp.norm"));
        let key = if c.norm == Norm::None { "first_norm" } else { "norm" };
        if before_branches {
            before_readers(w, &attn, key, c.attn_norm(layer), &attention_readers(w, layer))?;
            before_readers(w, &mlp, "norm", c.mlp_norm(), &mlp_readers(w, layer))?;
        } else {
            on_the_stream(w, &attn, key, c.attn_norm(layer))?;
            on_the_stream(w, &mlp, "norm", c.mlp_norm())?;
        }
    }
    before_head(w, c.final_norm)
}

/// What reads the norm before attention: in a parallel block with one norm the MLP too.
fn attention_readers(w: &Weights, layer: usize) -> Vec<Reader> {
    let c = &w.config;
    let matrices = readers(c, Site::block(layer, Place::AttnIn));
    let mut all: Vec<Reader> = matrices.into_iter().map(|m| (m, 1.0)).collect();
    if reads_stream(c.gate) {
        all.push((format!("blocks.{layer}.attn.gate"), 1.0));
    }
    if c.branches == Branches::Parallel {
        all.extend(mlp_readers(w, layer));
    }
    all
}

fn mlp_readers(w: &Weights, layer: usize) -> Vec<Reader> {
    let matrices = readers(&w.config, Site::block(layer, Place::MlpIn));
    matrices.into_iter().map(|m| (m, w.alpha(layer))).collect()
}

/// Whether a gate has a matrix over all channels.
fn reads_stream(gate: Gate) -> bool {
    matches!(gate, Gate::AllFeatures | Gate::Elementwise)
}

/// A norm whose output is the stream.
fn on_the_stream(w: &Weights, name: &str, key: &'static str, norm: Norm) -> Result<(), RepairError> {
    let gain = w.data(&format!("{name}.gain"));
    let uneven = gain.windows(2).any(|pair| pair[0] != pair[1]);
    match norm {
        Norm::Dyt => refuse(key, DYT),
        Norm::Layer | Norm::Rms if uneven => {
            refuse(key, "its output is the stream itself, and its gain differs between channels")
        }
        Norm::Layer | Norm::Rms | Norm::Srms | Norm::Ss | Norm::None => Ok(()),
    }
}

const DYT: &str = "\"dyt\" works on each channel by itself";

/// Gain and bias of a norm into the matrices that alone read it.
fn before_readers(
    w: &mut Weights,
    name: &str,
    key: &'static str,
    norm: Norm,
    matrices: &[Reader],
) -> Result<(), RepairError> {
    let Some((gain, bias)) = gain_and_bias(w, name, key, norm)? else { return Ok(()) };
    for (matrix, factor) in matrices {
        if let Some(bias) = &bias {
            if let Some(projection) = projection_of(matrix) {
                w.ensure_bias(projection);
            }
            let added: Vec<f64> = w.times(matrix, bias).iter().map(|v| v * factor).collect();
            w.add_to_bias(matrix, &added);
        }
        w.scale_columns(matrix, &gain);
    }
    Ok(())
}

/// The same for the final norm, whose bias ends behind matrices that have none.
fn before_head(w: &mut Weights, norm: Norm) -> Result<(), RepairError> {
    let Some((gain, bias)) = gain_and_bias(w, "final_norm", "final_norm", norm)? else { return Ok(()) };
    let first = head_reader(&w.config);
    if let Some(mut bias) = bias {
        let mut matrix = first;
        if matrix == "head.proj" {
            bias = w.times(matrix, &bias);
            matrix = if w.config.head_transform { "head.transform" } else { "head" };
        }
        let head = if w.config.tie_head { "embed.token" } else { "head" };
        let added = w.times(if matrix == "head" { head } else { matrix }, &bias);
        if matrix == "head" && !w.config.head_bias {
            w.config.head_bias = true;
            w.insert("head.bias".into(), vec![w.config.vocab], vec![0.0; w.config.vocab]);
        }
        w.add_to_bias(matrix, &added);
    }
    w.scale_columns(first, &gain);
    Ok(())
}

/// A gain for each channel, and a bias that is not zero.
type GainAndBias = (Vec<f64>, Option<Vec<f64>>);

/// Takes gain and bias out of a norm, where it has a gain for each channel; the bias only if it is not zero.
fn gain_and_bias(
    w: &mut Weights,
    name: &str,
    key: &'static str,
    norm: Norm,
) -> Result<Option<GainAndBias>, RepairError> {
    match norm {
        Norm::None | Norm::Srms | Norm::Ss => return Ok(None),
        Norm::Dyt => return refuse(key, DYT),
        Norm::Layer | Norm::Rms => {}
    }
    let [gain, bias] = ["gain", "bias"].map(|part| format!("{name}.{part}"));
    let taken = (w.doubles(&gain), Some(w.doubles(&bias)).filter(|b| b.iter().any(|&v| v != 0.0)));
    w.fill(&gain, 1.0);
    w.fill(&bias, 0.0);
    Ok(Some(taken))
}

fn projection_of(matrix: &str) -> Option<Projection> {
    use Projection::{Gate, K, Q, Up, V};
    [Q, K, V, Gate, Up].into_iter().find(|&p| {
        matrix
            .strip_prefix("blocks.")
            .is_some_and(|m| m.split_once('.').is_some_and(|(_, name)| name == name_of(p)))
    })
}

/// The way in and the way out.
fn rotate_ends(w: &mut Weights, q: &Rotation) {
    let c = w.config.clone();
    // Positions are added before a square matrix and after another.
    let position_before = c.has_embed_proj() && c.d_embed() == c.width;
    if !position_before {
        q.rows(w.data_mut("embed.position.weight"));
    }
    match c.has_embed_proj() {
        true => q.columns(w.data_mut("embed.proj.weight")),
        false => q.rows(w.data_mut("embed.token.weight")),
    }
    q.columns(w.data_mut("embed.patch.weight"));
    for row in ["embed.patch.bias", "embed.class", "embed.norm.bias"] {
        q.rows(w.data_mut(row));
    }
    q.rows(w.data_mut(&format!("{}.weight", head_reader(&c))));
}

/// What reads and writes the stream in a block.
fn rotate_block(w: &mut Weights, layer: usize, q: &Rotation) {
    let c = w.config.clone();
    let at = |part: &str| format!("blocks.{layer}.{part}");
    let mut reading = readers(&c, Site::block(layer, Place::AttnIn));
    reading.extend(readers(&c, Site::block(layer, Place::MlpIn)));
    if reads_stream(c.gate) {
        reading.push(at("attn.gate"));
    }
    for matrix in reading {
        q.rows(w.data_mut(&format!("{matrix}.weight")));
    }
    for matrix in [at("attn.out"), at("mlp.down")] {
        q.columns(w.data_mut(&format!("{matrix}.weight")));
        q.rows(w.data_mut(&format!("{matrix}.bias")));
    }
    // Of norms on the stream; those before a branch have none left.
    for norm in [at("attn.norm"), at("mlp.norm")] {
        q.rows(w.data_mut(&format!("{norm}.bias")));
    }
}

/// The values of each head, and the columns of the output matrix that read them.
fn rotate_heads(w: &mut Weights, layer: usize, q: &Rotation) {
    let (width, d_head) = (w.config.width, w.config.d_head());
    for head in w.data_mut(&format!("blocks.{layer}.attn.v.weight")).chunks_mut(d_head * width) {
        q.columns(head);
    }
    q.rows(w.data_mut(&format!("blocks.{layer}.attn.v.bias")));
    q.rows(w.data_mut(&format!("blocks.{layer}.attn.out.weight")));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, inputs, perturbed, variants};
    use super::*;
    use crate::metrics::channel::kurtosis;
    use crate::tap::Tap;
    use crate::tape::Tape;
    use candle_core::Tensor;

    /// Norms on the stream with one gain for all channels, which is what they start with.
    fn with_even_norms(model: &Transformer) -> Transformer {
        let mut w = Weights::of(model).unwrap();
        let names: Vec<String> = model.parameters().iter().map(|p| p.name.clone()).collect();
        let post = w.config.norm_position != NormPosition::Pre;
        for name in names.iter().filter(|n| n.ends_with("norm.gain")) {
            if name == "embed.norm.gain" || (post && name.starts_with("blocks.")) {
                w.fill(name, 0.8);
            }
        }
        w.into_model().unwrap()
    }

    #[test]
    fn the_function_stays_the_same_or_the_model_is_refused() {
        let mut refused = Vec::new();
        for (name, config) in variants() {
            let model = with_even_norms(&perturbed(&config));
            match rotate(&model, 7) {
                Ok((after, rotated)) => {
                    let moved = difference(&model, &after);
                    assert!(moved < 1e-5, "{name} moved by {moved}");
                    assert_eq!(rotated.stream, config.width, "{name}");
                }
                Err(RepairError::NotRotatable { key, .. }) => refused.push((name, key)),
                Err(e) => panic!("{name}: {e}"),
            }
        }
        assert_eq!(refused, [("dyt".to_string(), "embed_norm"), ("gate mlp".to_string(), "gate")]);
    }

    #[test]
    fn an_uneven_gain_on_the_stream_is_refused_by_its_key() {
        for (name, refused) in [
            ("op", Some("embed_norm")),
            ("op_tanh", Some("embed_norm")),
            ("post_ln", Some("embed_norm")),
            ("post_stream", Some("norm")),
            // Without learned positions the norm is taken of the table.
            ("op with rope", None),
            ("op_paper", None),
            ("pre_ln", None),
        ] {
            let config = variants().into_iter().find(|v| v.0 == name).unwrap().1;
            let key = match rotate(&perturbed(&config), 7) {
                Err(RepairError::NotRotatable { key, .. }) => Some(key),
                outcome => outcome.map(|_| None).unwrap(),
            };
            assert_eq!(key, refused, "{name}");
        }
    }

    /// Mean squares of the channels of the stream that leaves the first block.
    #[derive(Default)]
    struct Stream(Vec<f64>);

    impl Tap for Stream {
        fn wants(&self, site: Site) -> bool {
            site == Site::block(0, Place::Resid)
        }
        fn visit(&mut self, _: Site, x: Tensor) -> candle_core::Result<Tensor> {
            self.0 = x.sqr()?.mean((0, 1))?.to_dtype(candle_core::DType::F64)?.to_vec1()?;
            Ok(x)
        }
    }

    #[test]
    fn a_planted_outlier_channel_is_spread() {
        for name in ["pre_ln", "pre_rms", "op_paper"] {
            let config = variants().into_iter().find(|v| v.0 == name).unwrap().1;
            let mut planted = Weights::of(&perturbed(&config)).unwrap();
            let width = planted.config.width;
            planted.data_mut("embed.token.weight").iter_mut().skip(3).step_by(width).for_each(|v| *v = 60.0);
            let planted = planted.into_model().unwrap();
            let (after, _) = rotate(&planted, 1).unwrap();
            let [before, after] = [&planted, &after].map(|model| {
                let mut stream = Stream::default();
                model.run(&Tape::off(), &mut stream, &inputs()[0]).unwrap();
                kurtosis(&stream.0).unwrap()
            });
            assert!(before > 15.0 && after < 3.0, "{name}: {before} to {after}");
        }
    }
}
