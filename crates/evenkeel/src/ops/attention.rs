//! Multi-head softmax attention and its variants; q and the context are (sequences, tokens, heads · d_head), k and v
//! (sequences, tokens, kv_heads · d_head).
//!
//! A tap that wants a site inside (normalised q and k, scores, probabilities) gets the composition, and so does dropout on
//! the probabilities; everything else runs the tiled kernel.

use super::all_fast;
use super::dropout::Dropout;
use super::rope::Rope;
use crate::slices::{Slice, slice, tensor};
use crate::tape::{Tape, Value};
use candle_core::{D, DType, Result, Tensor};
use evenkeel_kernels::attention::{self as kernel, Prepare, QkNorm, Shape};
use evenkeel_kernels::gemm::Compute;
use std::sync::Arc;

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Softmax {
    /// exp(s) / Σ exp(s).
    Standard,
    /// exp(s) / (1 + Σ exp(s)): a slot of score and value 0 beside the keys.
    NullSlot,
    /// clip((η - γ) softmax + γ, 0, 1), γ at most 0 and η at least 1.
    Clipped {
        /// γ
        gamma: f64,
        /// η
        eta: f64,
    },
}

impl Softmax {
    /// As the kernels take it.
    pub(crate) fn kernel(self) -> kernel::Softmax {
        match self {
            Softmax::Standard => kernel::Softmax::Standard,
            Softmax::NullSlot => kernel::Softmax::NullSlot,
            Softmax::Clipped { gamma, eta } => {
                kernel::Softmax::Clipped { gamma: gamma as f32, eta: eta as f32 }
            }
        }
    }

    /// Of scores whose hidden entries are far below any other.
    fn composed(self, scores: &Tensor) -> Result<Tensor> {
        let mut peak = scores.max_keepdim(D::Minus1)?.detach();
        if self == Softmax::NullSlot {
            peak = peak.maximum(0.0)?.detach();
        }
        let exp = scores.broadcast_sub(&peak)?.exp()?;
        let mut sum = exp.sum_keepdim(D::Minus1)?;
        if self == Softmax::NullSlot {
            sum = (sum + peak.neg()?.exp()?)?;
        }
        let probs = exp.broadcast_div(&sum)?;
        match self {
            Softmax::Clipped { gamma, eta } => ((probs * (eta - gamma))? + gamma)?.clamp(0.0, 1.0),
            _ => Ok(probs),
        }
    }
}

/// Sizes and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads; d_head is width / heads.
    pub heads: usize,
    /// Number of key and value heads, which divides `heads`: query head h uses key head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Whether a token sees only itself and the tokens before it.
    pub causal: bool,
    /// How many of these it sees, itself included: the latest. 0 means all; a window needs `causal`.
    pub window: usize,
    /// C of the cap C tanh(score / C) on scaled scores; 0 means none.
    pub softcap: f64,
    /// How scores become probabilities.
    pub softmax: Softmax,
    /// The rotation of queries and keys by position.
    pub rope: Option<Arc<Rope>>,
    /// Dropout on the probabilities.
    pub dropout: Option<Dropout>,
}

impl AttentionSpec {
    /// Causal attention as everywhere, with as many key heads as query heads.
    pub fn causal(heads: usize) -> Self {
        Self {
            heads,
            kv_heads: heads,
            causal: true,
            window: 0,
            softcap: 0.0,
            softmax: Softmax::Standard,
            rope: None,
            dropout: None,
        }
    }
}

/// QK-norm over each head's channels: an RMSNorm with ε outside the root or inside it, or with biases a LayerNorm. Gains and
/// biases are of shape (d_head).
#[derive(Clone, Copy)]
pub struct QkNormSpec<'a> {
    /// Gain of the queries, shared by all heads.
    pub q_gain: &'a Value,
    /// Gain of the keys.
    pub k_gain: &'a Value,
    /// Biases of queries and keys.
    pub biases: Option<(&'a Value, &'a Value)>,
    /// Where ε stands.
    pub eps: Epsilon,
}

/// ε of QK-norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epsilon {
    /// Added to the RMS (the paper's authors). A LayerNorm has none such: it takes it as [`Self::Inside`].
    Outside(f64),
    /// Added to the mean square or the variance, inside the root (Qwen3).
    Inside(f64),
}

impl Epsilon {
    fn value(self) -> f64 {
        match self {
            Epsilon::Outside(eps) | Epsilon::Inside(eps) => eps,
        }
    }
}

impl QkNormSpec<'_> {
    /// Gains, then biases; queries first.
    fn values(&self) -> Vec<Value> {
        let mut values = vec![self.q_gain.clone(), self.k_gain.clone()];
        values.extend(self.biases.iter().flat_map(|(q, k)| [(*q).clone(), (*k).clone()]));
        values
    }
}

/// The parameters of the norm, none without one, and its ε.
pub(super) fn norm_values(qk_norm: Option<&QkNormSpec>) -> (Vec<Value>, Epsilon) {
    qk_norm.map_or((Vec::new(), Epsilon::Outside(0.0)), |norm| (norm.values(), norm.eps))
}

/// A place inside the operation where a tap may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Normalised queries, (sequences, tokens, heads · d_head), before any rotation.
    QNorm,
    /// Normalised keys, (sequences, tokens, kv_heads · d_head).
    KNorm,
    /// Scaled and capped scores before the mask, (sequences, heads, tokens, tokens).
    Scores,
    /// Probabilities.
    Probs,
}

/// The kernel's view of norm and rotation from position `first` on, over locked parameters.
pub(super) fn prepare<'a>(
    norm: &'a [Slice],
    eps: Epsilon,
    rope: Option<&'a Rope>,
    first: usize,
) -> Prepare<'a> {
    let (eps_inside, eps) = (matches!(eps, Epsilon::Inside(_)), eps.value() as f32);
    let norm = match norm {
        [q_gain, k_gain] => Some(QkNorm { q_gain, k_gain, biases: None, eps, eps_inside }),
        [q_gain, k_gain, q_bias, k_bias] => {
            Some(QkNorm { q_gain, k_gain, biases: Some((q_bias, k_bias)), eps, eps_inside })
        }
        _ => None,
    };
    Prepare { norm, rope: rope.map(|rope| rope.kernel(first)) }
}

/// `softmax(q kᵀ / √d_head) v` per head.
///
/// # Errors
/// If shapes disagree.
pub fn attention(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
) -> Result<Value> {
    let _span = tape.span("attention");
    let (norm, eps) = norm_values(qk_norm.as_ref());
    let inputs: Vec<&Value> = [q, k, v].into_iter().chain(&norm).collect();
    if !all_fast(&inputs) || spec.dropout.is_some() {
        return attention_composed(tape, q, k, v, qk_norm, spec, |_, x| Ok(x));
    }
    let shape = kernel_shape(q.tensor(), spec, tape.compute())?;
    let (tokens, d_head) = (shape.tokens, shape.d_head);
    let rope = spec.rope.as_ref().map(|rope| rope.at_least(tokens));
    let norm_tensors: Vec<Tensor> = norm.iter().map(|v| v.tensor().clone()).collect();
    let mut out = vec![0.0; q.tensor().elem_count()];
    let lse = {
        let (qs, ks, vs) = (slice(q.tensor())?, slice(k.tensor())?, slice(v.tensor())?);
        let guards = norm_tensors.iter().map(slice).collect::<Result<Vec<_>>>()?;
        kernel::forward(shape, &qs, &ks, &vs, prepare(&guards, eps, rope.as_deref(), 0), &mut out)
    };
    let out = tensor(out, q.tensor().shape())?;
    let (q, k, v, context) = (q.clone(), k.clone(), v.clone(), out.clone());
    let captured = norm.clone();
    Ok(tape.push("attention", out, &inputs, move |dy, sink| {
        let g = {
            let (qs, ks, vs) = (slice(q.tensor())?, slice(k.tensor())?, slice(v.tensor())?);
            let (out, dy) = (slice(&context)?, slice(&dy)?);
            let guards = norm_tensors.iter().map(slice).collect::<Result<Vec<_>>>()?;
            kernel::backward(shape, &qs, &ks, &vs, prepare(&guards, eps, rope.as_deref(), 0), &out, &lse, &dy)
        };
        for (value, gradient) in [(&q, g.q), (&k, g.k), (&v, g.v)] {
            sink.add(value, tensor(gradient, value.tensor().shape())?)?;
        }
        let sums = [g.gains, g.biases].into_iter().flatten().flat_map(|(dq, dk)| [dq, dk]);
        for (value, sums) in captured.iter().zip(sums) {
            sink.add(value, tensor(sums.iter().map(|&v| v as f32).collect(), d_head)?)?;
        }
        Ok(())
    }))
}

/// Shows `inner` the places inside that it wants, and changes nothing: normalised queries and keys of the whole batch, scores
/// and probabilities of one sequence after the other, whose matrices are large.
///
/// # Errors
/// If shapes disagree, or what `inner` returns.
pub fn look_inside_attention(
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    wants: impl Fn(Inner) -> bool,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (norm, eps) = norm_values(qk_norm.as_ref());
    let inputs: Vec<&Value> = [q, k, v].into_iter().chain(&norm).collect();
    if !all_fast(&inputs) || spec.dropout.is_some() {
        let seen = |place, x: Tensor| if wants(place) { inner(place, x) } else { Ok(x) };
        return attention_composed(&Tape::off(), q, k, v, qk_norm, spec, seen).map(|_| ());
    }
    let (sequences, tokens, width) = q.tensor().dims3()?;
    for (i, (place, x, heads)) in
        [(Inner::QNorm, q, spec.heads), (Inner::KNorm, k, spec.kv_heads)].into_iter().enumerate()
    {
        if let Some(gain) = norm.get(i).filter(|_| wants(place)) {
            let split = x.tensor().reshape((sequences, tokens, heads, width / spec.heads))?;
            let bias = norm.get(2 + i).map(Value::tensor);
            inner(place, normalised(&split, gain.tensor(), bias, eps)?)?;
        }
    }
    if !wants(Inner::Scores) && !wants(Inner::Probs) {
        return Ok(());
    }
    let rope = spec.rope.as_ref().map(|rope| rope.at_least(tokens));
    let shape = Shape { sequences: 1, ..kernel_shape(q.tensor(), spec, Compute::F32)? };
    let matrix = (1, spec.heads, tokens, tokens);
    for b in 0..sequences {
        let (scores, probs) = {
            let (qs, ks) = (slice(q.tensor())?, slice(k.tensor())?);
            let guards = norm.iter().map(|v| slice(v.tensor())).collect::<Result<Vec<_>>>()?;
            let (q_size, k_size) = (qs.len() / sequences, ks.len() / sequences);
            kernel::matrices(
                shape,
                &qs[b * q_size..(b + 1) * q_size],
                &ks[b * k_size..(b + 1) * k_size],
                prepare(&guards, eps, rope.as_deref(), 0),
            )
        };
        for (place, values) in [(Inner::Scores, scores), (Inner::Probs, probs)] {
            if wants(place) {
                inner(place, tensor(values, matrix)?)?;
            }
        }
    }
    Ok(())
}

/// Sizes and switches as the kernel takes them.
pub(super) fn kernel_shape(q: &Tensor, spec: &AttentionSpec, compute: Compute) -> Result<Shape> {
    let (sequences, tokens, width) = q.dims3()?;
    let d_head = width / spec.heads;
    Ok(Shape {
        sequences,
        tokens,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        d_head,
        causal: spec.causal,
        window: spec.window,
        scale: 1.0 / (d_head as f32).sqrt(),
        softcap: spec.softcap as f32,
        softmax: spec.softmax.kernel(),
        compute,
    })
}

/// The same as [`attention`] from candle primitives, with `inner` called at every place inside.
///
/// # Errors
/// If shapes disagree, or what `inner` returns.
pub fn attention_composed(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<Value> {
    let (norm, eps) = norm_values(qk_norm.as_ref());
    let inputs: Vec<&Value> = [q, k, v].into_iter().chain(&norm).collect();
    let (sequences, tokens, width) = q.tensor().dims3()?;
    tape.compose(&inputs, |t| {
        let (q, k) = normed_and_turned(&t[0], &t[1], &t[3..], eps, spec, 0, &mut inner)?;
        let v = t[2].reshape((sequences, tokens, spec.kv_heads, width / spec.heads))?;
        weighted_values(&q, &k, &v, spec, 0, inner)
    })
}

/// Queries and keys as they meet, (sequences, tokens, heads, d_head), the first token at position `first`. `norm` holds the
/// gains of queries and keys, and then the biases.
pub(super) fn normed_and_turned(
    q: &Tensor,
    k: &Tensor,
    norm: &[Tensor],
    eps: Epsilon,
    spec: &AttentionSpec,
    first: usize,
    inner: &mut dyn FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (sequences, tokens, width) = q.dims3()?;
    let split = |x: &Tensor, heads: usize| x.reshape((sequences, tokens, heads, width / spec.heads));
    let (mut q, mut k) = (split(q, spec.heads)?, split(k, spec.kv_heads)?);
    if let [q_gain, k_gain, biases @ ..] = norm {
        q = split(&inner(Inner::QNorm, normalised(&q, q_gain, biases.first(), eps)?)?, spec.heads)?;
        k = split(&inner(Inner::KNorm, normalised(&k, k_gain, biases.get(1), eps)?)?, spec.kv_heads)?;
    }
    match &spec.rope {
        Some(rope) => Ok((rope.composed(&q, first)?, rope.composed(&k, first)?)),
        None => Ok((q, k)),
    }
}

/// The context (sequences, tokens, heads · d_head) of queries (sequences, tokens, heads, d_head), of which the first stands at
/// position `first`, among keys and values (sequences, positions, kv_heads, d_head).
pub(super) fn weighted_values(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &AttentionSpec,
    first: usize,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (sequences, tokens, heads, d_head) = q.dims4()?;
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q, k) = (heads_first(q)?, heads_first(&shared_by_heads(k, heads)?)?);
    let v = heads_first(&shared_by_heads(v, heads)?)?;
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * (1.0 / (d_head as f64).sqrt()))?;
    if spec.softcap > 0.0 {
        scores = ((scores / spec.softcap)?.tanh()? * spec.softcap)?;
    }
    let mut scores = inner(Inner::Scores, scores)?;
    if spec.causal {
        let mask = causal_mask(first, tokens, spec.window, scores.dtype())?.to_device(scores.device())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let mut probs = inner(Inner::Probs, spec.softmax.composed(&scores)?)?;
    if let Some(dropout) = spec.dropout {
        probs = (&probs * dropout.mask(probs.dims(), probs.dtype())?)?;
    }
    probs.matmul(&v)?.transpose(1, 2)?.reshape((sequences, tokens, heads * d_head))
}

/// QK-norm of x (sequences, tokens, heads, d_head), merged again.
fn normalised(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: Epsilon) -> Result<Tensor> {
    let (sequences, tokens, heads, d_head) = x.dims4()?;
    let y = match bias {
        None => {
            let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
            let rms = match eps {
                Epsilon::Outside(eps) => (mean_square.sqrt()? + eps)?,
                Epsilon::Inside(eps) => (mean_square + eps)?.sqrt()?,
            };
            x.broadcast_div(&rms)?.broadcast_mul(gain)?
        }
        Some(bias) => {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            centred
                .broadcast_div(&(variance + eps.value())?.sqrt()?)?
                .broadcast_mul(gain)?
                .broadcast_add(bias)?
        }
    };
    y.reshape((sequences, tokens, heads * d_head))
}

/// x (sequences, tokens, kv_heads, d_head) with each head repeated for the query heads that share it.
pub(super) fn shared_by_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (sequences, tokens, kv_heads, d_head) = x.dims4()?;
    if kv_heads == heads {
        return Ok(x.clone());
    }
    let group = heads / kv_heads;
    let repeated = x.unsqueeze(3)?.broadcast_as((sequences, tokens, kv_heads, group, d_head))?;
    repeated.contiguous()?.reshape((sequences, tokens, heads, d_head))
}

/// (tokens, first + tokens), for tokens from position `first` on: 0 where one may look, -1e30 after it and before its window: far
/// below any score, and finite, so that 0 · mask stays 0.
fn causal_mask(first: usize, tokens: usize, window: usize, dtype: DType) -> Result<Tensor> {
    let hidden = |i: usize, j: usize| j > i || window > 0 && i - j >= window;
    let entry = |i: usize, j: usize| if hidden(i, j) { -1e30 } else { 0.0 };
    let end = first + tokens;
    let mask: Vec<f32> = (first..end).flat_map(|i| (0..end).map(move |j| entry(i, j))).collect();
    Tensor::from_vec(mask, (tokens, end), &candle_core::Device::Cpu)?.to_dtype(dtype)
}
