//! The attention branch: projections, attention with its variants, gate, output.
//!
//! Shapes: b sequences, t tokens, d width, h heads, k key heads; `x_btd` is (b, t, d).

use super::ModelError;
use super::config::{AttentionMatrix, Gate, ModelConfig, Norm, Projection, QkNorm, QueryInit, ValueInit};
use super::layers::{Gain, Joint, Linear, NormLayer, param, visit};
use super::params::{Builder, Parameter, Start};
use crate::ops::{self, AttentionSpec, Dropout, Epsilon, Inner, QkNormSpec, Rope};
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::{Result as CandleResult, Tensor};
use std::cell::RefCell;
use std::sync::Arc;

/// Gain, and bias if the norm has one, of one side of QK-norm.
type HeadNorm = (Parameter, Option<Parameter>);

/// The attention branch of one block.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) norm: Option<NormLayer>,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<(HeadNorm, HeadNorm)>,
    shaped: Option<[Parameter; 3]>,
    gate: Option<GateLayer>,
    joint: Joint,
    spec: AttentionSpec,
    qk_norm_eps: Epsilon,
    dropout: f64,
    dropout_residual: f64,
}

/// Where the logits of a gate come from.
#[derive(Clone, Debug)]
enum GateLayer {
    /// One for each head, whatever the input: bias (h).
    Constant(Parameter),
    /// Linear in each head's channels: weight (h, d_head), bias (h).
    Slice(Parameter, Parameter),
    /// A network of each head's channels: up (h, r, d_head) and (h r), down (h, r) and (h).
    Network([Parameter; 2], [Parameter; 2]),
    /// Linear in all channels.
    All(Parameter, Parameter),
}

impl Attention {
    pub(super) fn new(
        b: &mut Builder,
        layer: usize,
        c: &ModelConfig,
        rope: Option<Arc<Rope>>,
    ) -> Result<Self, ModelError> {
        let at = |name: &str| format!("blocks.{layer}.attn.{name}");
        let (d, d_q, d_kv) = (c.width, c.d_attention(), c.kv_heads() * c.d_head());
        let norm: Norm = c.attn_norm(layer);
        let identity = c.value_init == ValueInit::Identity;
        let projection =
            |b: &mut Builder, name: &str, sizes, which| Linear::projection(b, at(name), sizes, which, c);
        let passing = |b: &mut Builder, name: &str, sizes, which| match identity {
            true => Linear::identity(b, at(name), d, c.has_bias(which)),
            false => Linear::projection(b, at(name), sizes, which, c),
        };
        Ok(Self {
            norm: NormLayer::new(b, &at("norm"), norm, c)?,
            q: match c.query_init {
                QueryInit::Random => projection(b, "q", [d, d_q], Projection::Q)?,
                QueryInit::Zero => {
                    Linear::new(b, at("q"), [d, d_q], Start::Constant(0.0), c.has_bias(Projection::Q))?
                }
            },
            k: projection(b, "k", [d, d_kv], Projection::K)?,
            v: passing(b, "v", [d, d_kv], Projection::V)?,
            qk_norm: match c.qk_norm {
                QkNorm::None => None,
                kind => Some((head_norm(b, at("q_norm"), kind, c)?, head_norm(b, at("k_norm"), kind, c)?)),
            },
            shaped: match c.attention_matrix {
                AttentionMatrix::Softmax => None,
                AttentionMatrix::Shaped => {
                    let mut gain = |part: &str| {
                        b.parameter(at(&format!("shaped.{part}")), &[c.heads], Start::Constant(1.0))
                    };
                    Some([gain("identity")?, gain("attention")?, gain("centre")?])
                }
            },
            gate: GateLayer::new(b, &at("gate"), c)?,
            joint: Joint {
                out: passing(b, "out", [d_q, d], Projection::Out)?,
                beta: Gain::beta(b, at("beta"), c.attn_skip(), c)?,
                skip: c.attn_skip(),
            },
            spec: AttentionSpec {
                kv_heads: c.kv_heads(),
                causal: c.causal,
                window: c.window(layer),
                softcap: c.logit_softcap,
                softmax: c.softmax(),
                rope,
                ..AttentionSpec::causal(c.heads)
            },
            qk_norm_eps: match c.qk_norm {
                QkNorm::RmsInside => Epsilon::Inside(c.qk_norm_eps),
                QkNorm::None | QkNorm::Rms | QkNorm::Layer => Epsilon::Outside(c.qk_norm_eps),
            },
            dropout: c.dropout_attention,
            dropout_residual: c.dropout_residual,
        })
    }

    /// `onto` joined by attention of `h_btd`.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        h_btd: &Value,
        onto_btd: Value,
    ) -> Result<Value, ModelError> {
        let site = |place| Site::block(layer, place);
        let h_btd = &visit(tap, site(Place::AttnIn), h_btd.clone())?;
        let q_btd = visit(tap, site(Place::AttnQ), self.q.forward(tape, h_btd, None)?)?;
        let k_btk = visit(tap, site(Place::AttnK), self.k.forward(tape, h_btd, None)?)?;
        let v_btk = visit(tap, site(Place::AttnV), self.v.forward(tape, h_btd, None)?)?;
        let mut context_btd = self.mix(tape, tap, layer, &q_btd, &k_btk, &v_btk)?;
        if let Some(gains) = &self.shaped {
            let [a, b, c] = gains.each_ref().map(|p| param(tape, p));
            let all = values_so_far(tape, layer, &v_btk)?;
            context_btd = ops::shaped(tape, &context_btd, &v_btk, all.as_ref(), [&a, &b, &c])?;
        }
        context_btd = visit(tap, site(Place::AttnContext), context_btd)?;
        if let Some(gate) = &self.gate {
            context_btd = gate.forward(tape, tap, site(Place::AttnGate), h_btd, &context_btd)?;
        }
        let sites = [site(Place::AttnOut), site(Place::AttnBranch)];
        let dropout = Dropout::of(tape, self.dropout_residual, place(layer, 1));
        Ok(self.joint.forward(tape, tap, sites, onto_btd, &context_btd, dropout)?)
    }

    /// Each head's values, weighted by its probabilities.
    fn mix(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        layer: usize,
        q_btd: &Value,
        k_btk: &Value,
        v_btk: &Value,
    ) -> CandleResult<Value> {
        let site = |place| Site::block(layer, place);
        let values =
            self.qk_norm.as_ref().map(|(q, k)| (HeadNormValues::new(tape, q), HeadNormValues::new(tape, k)));
        let qk_norm = values.as_ref().map(|(q, k)| QkNormSpec {
            q_gain: &q.gain,
            k_gain: &k.gain,
            biases: q.bias.as_ref().zip(k.bias.as_ref()),
            eps: self.qk_norm_eps,
        });
        let spec =
            &AttentionSpec { dropout: Dropout::of(tape, self.dropout, place(layer, 0)), ..self.spec.clone() };
        let at = |inner| match inner {
            Inner::QNorm => site(Place::AttnQNorm),
            Inner::KNorm => site(Place::AttnKNorm),
            Inner::Scores => site(Place::AttnScores),
            Inner::Probs => site(Place::AttnProbs),
        };
        let inside = [Inner::QNorm, Inner::KNorm, Inner::Scores, Inner::Probs];
        let looked = inside.iter().any(|&inner| tap.wants(at(inner)));
        let changes = looked && tap.transforms();
        let tap = RefCell::new(tap);
        let wants = |inner| tap.borrow().wants(at(inner));
        let visit = |inner, x| tap.borrow_mut().visit(at(inner), x);
        let seen = |inner, x: Tensor| if wants(inner) { visit(inner, x) } else { Ok(x) };
        if let Some(mut cache) = tape.cache() {
            let cache = cache.before(layer)?;
            if changes {
                return ops::attention_cached_composed(q_btd, k_btk, v_btk, qk_norm, spec, cache, seen);
            }
            let context_btd = ops::attention_cached(tape, q_btd, k_btk, v_btk, qk_norm, spec, cache)?;
            if looked {
                ops::look_inside_attention_cached(q_btd, k_btk, qk_norm, spec, cache, wants, visit)?;
            }
            return Ok(context_btd);
        }
        if changes {
            return ops::attention_composed(&Tape::off(), q_btd, k_btk, v_btk, qk_norm, spec, seen);
        }
        if looked {
            // Who only looks must not change a bit of what is computed: the kernel below runs all the same.
            ops::look_inside_attention(q_btd, k_btk, v_btk, qk_norm, spec, wants, visit)?;
        }
        ops::attention(tape, q_btd, k_btk, v_btk, qk_norm, spec)
    }
}

/// The values of all tokens so far, if these go on from a cache; v has been added to it.
fn values_so_far(tape: &Tape, layer: usize, v_btk: &Value) -> CandleResult<Option<Value>> {
    let Some(mut cache) = tape.cache() else { return Ok(None) };
    let values = cache.at(layer)?.values(v_btk.tensor().dtype())?;
    let (sequences, _, width) = v_btk.tensor().dims3()?;
    Ok(Some(Value::constant(values.reshape((sequences, values.dim(1)?, width))?)))
}

/// A number for each dropout of the model: of the embedding, and three in each block.
pub(super) fn place(layer: usize, which: u64) -> u64 {
    1 + 3 * layer as u64 + which
}

struct HeadNormValues {
    gain: Value,
    bias: Option<Value>,
}

impl HeadNormValues {
    fn new(tape: &Tape, (gain, bias): &HeadNorm) -> Self {
        Self { gain: param(tape, gain), bias: bias.as_ref().map(|b| param(tape, b)) }
    }
}

fn head_norm(b: &mut Builder, name: String, kind: QkNorm, c: &ModelConfig) -> Result<HeadNorm, ModelError> {
    let mut vector =
        |part: &str, value| b.parameter(format!("{name}.{part}"), &[c.d_head()], Start::Constant(value));
    let gain = vector("gain", 1.0)?;
    let bias = if kind == QkNorm::Layer { Some(vector("bias", 0.0)?) } else { None };
    Ok((gain, bias))
}

impl GateLayer {
    fn new(b: &mut Builder, name: &str, c: &ModelConfig) -> Result<Option<Self>, ModelError> {
        let (d, h, d_head) = (c.width, c.heads, c.d_head());
        // Between the two matrices of a gate's network, after Bondarenko et al.
        let r = (d_head / 4).max(1);
        let mut weight = |part: &str, shape: &[usize], fan_in| {
            b.parameter(format!("{name}.{part}"), shape, Start::Normal(c.init.std(fan_in)))
        };
        let weights = match c.gate {
            Gate::None => return Ok(None),
            Gate::PerHead => Vec::new(),
            Gate::PerToken => vec![weight("weight", &[h, d_head], d_head)?],
            Gate::Mlp => vec![weight("up.weight", &[h, r, d_head], d_head)?, weight("weight", &[h, r], r)?],
            Gate::AllFeatures => vec![weight("weight", &[h, d], d)?],
            Gate::Elementwise => vec![weight("weight", &[d, d], d)?],
        };
        let open = (c.gate_init / (1.0 - c.gate_init)).ln();
        let mut bias =
            |part: &str, size, value| b.parameter(format!("{name}.{part}"), &[size], Start::Constant(value));
        Ok(Some(match (c.gate, &weights[..]) {
            (Gate::PerToken, [w]) => Self::Slice(w.clone(), bias("bias", h, open)?),
            (Gate::Mlp, [up, down]) => Self::Network(
                [up.clone(), bias("up.bias", h * r, 0.0)?],
                [down.clone(), bias("bias", h, open)?],
            ),
            (Gate::AllFeatures, [w]) => Self::All(w.clone(), bias("bias", h, open)?),
            (Gate::Elementwise, [w]) => Self::All(w.clone(), bias("bias", d, open)?),
            _ => Self::Constant(bias("bias", h, open)?),
        }))
    }

    /// The context, gated.
    fn forward(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        site: Site,
        h_btd: &Value,
        context_btd: &Value,
    ) -> CandleResult<Value> {
        let logits = self.logits(tape, h_btd)?;
        if tap.wants(site) {
            let open = tap.visit(site, ops::openness(logits.tensor())?)?;
            if tap.transforms() {
                return Ok(Value::constant(ops::gate_by(context_btd.tensor(), &open)?));
            }
        }
        ops::sigmoid_gate(tape, context_btd, &logits)
    }

    /// Logits (b, t, h), or (b, t, d) for a gate on each channel.
    fn logits(&self, tape: &Tape, h_btd: &Value) -> CandleResult<Value> {
        let p = |parameter: &Parameter| param(tape, parameter);
        match self {
            Self::Constant(bias) => {
                let (sequences, tokens, _) = h_btd.tensor().dims3()?;
                ops::constant_logits(tape, &p(bias), sequences, tokens)
            }
            Self::Slice(weight, bias) => ops::gate_logits(tape, h_btd, &p(weight), &p(bias)),
            Self::Network(up, down) => {
                let ([u, ub], [w, wb]) = (up.each_ref().map(p), down.each_ref().map(p));
                ops::gate_network(tape, h_btd, [&u, &ub], [&w, &wb])
            }
            Self::All(weight, bias) => ops::linear(tape, h_btd, &p(weight), Some(&p(bias)), None),
        }
    }
}
