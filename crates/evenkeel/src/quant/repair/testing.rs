//! Models, inputs and a rounding for the tests of repairs.

use super::{Columns, Rounding};
use crate::model::config::{
    AttentionMatrix, Beta, Gate, Norm, NormPosition, Positions, Projection, QueryInit, Readout,
    SoftmaxChoice, ValueInit,
};
use crate::model::{Input, ModelConfig, Parts, Transformer, preset, presets};
use crate::slices::{slice, tensor};
use crate::tap::NoTap;
use crate::tape::Tape;

type Change = fn(&mut ModelConfig);

const SETTINGS: &[(&str, &str, Change)] = &[
    ("post_stream", "pre_ln", |c| c.norm_position = NormPosition::PostStream),
    ("post_rms", "post_ln", |c| c.norm = Norm::Rms),
    ("ss everywhere", "post_ln", |c| (c.norm, c.embed_norm, c.final_norm) = (Norm::Ss, Norm::Ss, Norm::Ss)),
    ("dyt", "pre_ln", |c| (c.norm, c.embed_norm, c.final_norm) = (Norm::Dyt, Norm::Dyt, Norm::Dyt)),
    ("trainable gains", "op", |c| (c.beta_trainable, c.alpha_trainable, c.alpha) = (true, true, 0.7)),
    ("fixed gains", "pre_ln", |c| {
        (c.beta, c.alpha, c.attn_skip, c.mlp_skip) = (Beta::Value(0.3), 0.7, 0.9, 0.5)
    }),
    ("no skip at all", "skipless", |c| c.mlp_skip = 0.0),
    ("tied", "pre_ln", |c| c.tie_head = true),
    ("tied with projections", "osp", |c| (c.tie_head, c.final_norm) = (true, Norm::Layer)),
    ("op with rope", "op", |c| c.positions = Positions::Rope),
    ("clipped", "pre_ln", |c| c.softmax = SoftmaxChoice::Clipped(-0.05, 1.03)),
    ("null slot", "pre_ln", |c| c.softmax = SoftmaxChoice::NullSlot),
    ("gate per_head", "pre_ln", |c| c.gate = Gate::PerHead),
    ("gate mlp", "pre_ln", |c| c.gate = Gate::Mlp),
    ("gate all_features", "pre_ln", |c| c.gate = Gate::AllFeatures),
    ("gate elementwise", "pre_ln", |c| c.gate = Gate::Elementwise),
    ("grouped queries", "op_paper", |c| (c.heads, c.kv_heads) = (6, 2)),
    ("wide heads", "pre_ln", |c| (c.heads, c.head_dim, c.kv_heads) = (4, 8, 1)),
    ("shaped", "pre_ln", |c| (c.kv_heads, c.attention_matrix) = (1, AttentionMatrix::Shaped)),
    ("identity values", "pre_ln", |c| (c.value_init, c.query_init) = (ValueInit::Identity, QueryInit::Zero)),
    ("parallel with alpha", "parallel", |c| c.alpha = 0.6),
    ("leaky_relu", "pre_ln", |c| activation(c, "leaky_relu(0.1)")),
    ("gelu", "pre_ln", |c| activation(c, "gelu")),
    ("squared_relu", "pre_ln", |c| activation(c, "squared_relu")),
    ("swiglu with biases", "pre_ln", |c| {
        activation(c, "swiglu");
        c.biases.push(Projection::Gate);
    }),
    ("narrow embedding", "pre_ln", |c| c.embed_dim = 3),
    ("narrow tied embedding", "pre_ln", |c| (c.embed_dim, c.tie_head) = (3, true)),
    ("scaled embedding", "pre_ln", |c| (c.embed_scale, c.tie_head) = (2.5, true)),
    ("images", "pre_ln", |c| {
        (c.patch_size, c.image, c.context, c.causal) = (2, [4, 6, 3], 7, false);
        c.readout = Readout::First;
    }),
    ("transform and bias before the head", "pre_ln", |c| {
        (c.head_transform, c.head_bias, c.tie_head) = (true, true, true);
    }),
];

fn activation(c: &mut ModelConfig, name: &str) {
    c.activation = name.to_string().try_into().unwrap();
}

fn tiny(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context, c.mlp_ratio) = (2, 24, 3, 17, 12, 2);
    c
}

/// Every preset, and settings that no preset uses.
pub(super) fn variants() -> Vec<(String, ModelConfig)> {
    // Presets of images differ from others in nothing that a repair knows; "images" above stands for them.
    let named = presets().map(|(name, _)| (name.to_string(), tiny(name))).filter(|v| !v.1.reads_images());
    let set = SETTINGS.iter().map(|(name, base, change)| {
        let mut c = tiny(base);
        change(&mut c);
        (name.to_string(), c)
    });
    named.chain(set).collect()
}

/// A model whose parameters are away from their symmetric starting points.
pub(super) fn perturbed(config: &ModelConfig) -> Transformer {
    let mut i = 0u64;
    let model = Transformer::new(config.clone(), 5).unwrap();
    let moved = model.map_parameters(|p| {
        i += 1;
        let values = slice(&p.tensor)?.to_vec();
        let noise = |j: usize| ((i * 7919 + j as u64 * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        let values = values.into_iter().enumerate().map(|(j, v)| v + 0.3 * noise(j)).collect();
        Ok(tensor(values, p.tensor.shape())?)
    });
    moved.unwrap()
}

/// Three batches of two sequences of twelve tokens.
pub(super) fn inputs() -> Vec<Input> {
    let ids = |k: u32| (0..24).map(|i| (i * i * 3 + i * k + 5 * k) % 17).collect();
    (1..4).map(|k| Input::Tokens { ids: ids(k), sequences: 2 }).collect()
}

/// Inputs of the kind that a model reads.
pub(super) fn inputs_of(c: &ModelConfig) -> Vec<Input> {
    let [height, width, colours] = c.image;
    let n = 4 * colours * height * width;
    let pixels = (0..n).map(|i| (i * 7919 % 211) as f32 / 100.0 - 1.0).collect();
    let pixels = || tensor(pixels, (4, colours, height, width)).unwrap();
    if c.reads_images() { vec![Input::Images { pixels: pixels() }] } else { inputs() }
}

/// Logits of all inputs.
pub(super) fn logits(model: &Transformer) -> Vec<f32> {
    let (tape, head) = (Tape::off(), model.head().unwrap());
    let of = |input: Input| {
        let stream = model.run(&tape, &mut NoTap, &input).unwrap();
        let logits = head.logits(&tape, &mut NoTap, &stream).unwrap();
        slice(logits.tensor()).unwrap().to_vec()
    };
    inputs_of(model.config()).into_iter().flat_map(of).collect()
}

/// Largest difference of two models' logits, relative to the root mean square of the first.
pub(super) fn difference(a: &Transformer, b: &Transformer) -> f64 {
    let (a, b) = (logits(a), logits(b));
    let rms = (a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / a.len() as f64).sqrt();
    a.iter().zip(&b).fold(0.0f64, |most, (a, b)| most.max(f64::from((a - b).abs()))) / rms
}

/// Symmetric rounding of matrices of the blocks to `bits` bits, a step for each row, or for each row and group of columns.
pub(super) struct AbsMax {
    pub(super) bits: u32,
    pub(super) group: usize,
}

impl AbsMax {
    fn steps(&self, w: &[f32], columns: usize) -> Vec<f32> {
        let levels = ((1 << (self.bits - 1)) - 1) as f32;
        w.chunks(columns)
            .map(|row| row.iter().fold(0.0f32, |m, v| m.max(v.abs())).max(1e-8) / levels)
            .collect()
    }
}

fn nearest(v: f32, step: f32) -> f32 {
    (v / step).round_ties_even() * step
}

impl Rounding for AbsMax {
    fn rounds(&self, name: &str) -> bool {
        name.starts_with("blocks.") && name.ends_with(".weight") && !name.contains(".attn.gate.")
    }

    fn round(&self, _: &str, w: &[f32], (_, columns): (usize, usize)) -> Vec<f32> {
        let group = if self.group == 0 { columns } else { self.group };
        let rows = w.chunks(columns).flat_map(|row| row.chunks(group));
        rows.flat_map(|part| {
            let step = self.steps(part, part.len())[0];
            part.iter().map(move |&v| nearest(v, step))
        })
        .collect()
    }

    fn columns<'a>(&'a self, _: &'a str, w: &[f32], (_, columns): (usize, usize)) -> Box<dyn Columns + 'a> {
        Box::new(AbsMaxColumns { rounding: self, steps: self.steps(w, columns), columns })
    }
}

struct AbsMaxColumns<'a> {
    rounding: &'a AbsMax,
    steps: Vec<f32>,
    columns: usize,
}

impl Columns for AbsMaxColumns<'_> {
    fn group(&self) -> usize {
        self.rounding.group
    }

    fn start(&mut self, first: usize, w: &[f32]) {
        self.steps = self.rounding.steps(w, self.rounding.group.min(self.columns - first));
    }

    fn round(&mut self, _: usize, w: &mut [f32]) {
        w.iter_mut().zip(&self.steps).for_each(|(v, &step)| *v = nearest(*v, step));
    }
}
