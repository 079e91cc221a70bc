//! Multi-head softmax attention with optional QK-RMSNorm; q, k, v and the context are
//! (sequences, tokens, heads · d_head).
//!
//! A tap that wants a site inside (normalised q and k, scores, probabilities) gets the composition;
//! everything else runs the tiled kernel.

use super::all_fast;
use crate::slices::{slice, tensor};
use crate::tape::{Tape, Value};
use candle_core::{D, DType, Result, Tensor};
use evenkeel_kernels::attention::{self as kernel, QkNorm, Shape};

/// Sizes and switches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Number of heads; d_head is width / heads.
    pub heads: usize,
    /// Whether a token sees only itself and the tokens before it.
    pub causal: bool,
}

/// QK-RMSNorm: gains of shape (d_head) for queries and keys, ε outside the root.
#[derive(Clone, Copy)]
pub struct QkNormSpec<'a> {
    /// Gain of the queries, shared by all heads.
    pub q_gain: &'a Value,
    /// Gain of the keys.
    pub k_gain: &'a Value,
    /// Added to the RMS.
    pub eps: f64,
}

/// A place inside the operation where a tap may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Normalised queries, (sequences, tokens, width).
    QNorm,
    /// Normalised keys.
    KNorm,
    /// Scaled scores before the mask, (sequences, heads, tokens, tokens).
    Scores,
    /// Probabilities.
    Probs,
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
    spec: AttentionSpec,
) -> Result<Value> {
    let _span = tape.span("attention");
    let mut inputs = vec![q, k, v];
    if let Some(n) = &qk_norm {
        inputs.extend([n.q_gain, n.k_gain]);
    }
    if !all_fast(&inputs) {
        return attention_composed(tape, q, k, v, qk_norm, spec, |_, x| Ok(x));
    }
    let (sequences, tokens, width) = q.tensor().dims3()?;
    let d_head = width / spec.heads;
    let shape = Shape {
        sequences,
        tokens,
        heads: spec.heads,
        d_head,
        causal: spec.causal,
        scale: 1.0 / (d_head as f32).sqrt(),
        compute: tape.compute(),
    };
    let eps = qk_norm.as_ref().map_or(0.0, |n| n.eps as f32);
    let gains = qk_norm.map(|n| (n.q_gain.clone(), n.k_gain.clone()));
    let mut out = vec![0.0; q.tensor().elem_count()];
    let lse = {
        let (qs, ks, vs) = (slice(q.tensor())?, slice(k.tensor())?, slice(v.tensor())?);
        let guards = gains
            .as_ref()
            .map(|(a, b)| Ok::<_, candle_core::Error>((slice(a.tensor())?, slice(b.tensor())?)));
        let guards = guards.transpose()?;
        let norm = guards.as_ref().map(|(a, b)| QkNorm { q_gain: a, k_gain: b, eps });
        kernel::forward(shape, &qs, &ks, &vs, norm, &mut out)
    };
    let out = tensor(out, q.tensor().shape())?;
    let (q, k, v, context) = (q.clone(), k.clone(), v.clone(), out.clone());
    Ok(tape.push("attention", out, &inputs, move |dy, sink| {
        let g = {
            let (qs, ks, vs) = (slice(q.tensor())?, slice(k.tensor())?, slice(v.tensor())?);
            let (out, dy) = (slice(&context)?, slice(&dy)?);
            let guards = gains
                .as_ref()
                .map(|(a, b)| Ok::<_, candle_core::Error>((slice(a.tensor())?, slice(b.tensor())?)));
            let guards = guards.transpose()?;
            let norm = guards.as_ref().map(|(a, b)| QkNorm { q_gain: a, k_gain: b, eps });
            kernel::backward(shape, &qs, &ks, &vs, norm, &out, &lse, &dy)
        };
        for (value, gradient) in [(&q, g.q), (&k, g.k), (&v, g.v)] {
            sink.add(value, tensor(gradient, value.tensor().shape())?)?;
        }
        if let (Some((q_gain, k_gain)), Some((dq, dk))) = (&gains, g.gains) {
            for (value, sums) in [(q_gain, dq), (k_gain, dk)] {
                sink.add(value, tensor(sums.iter().map(|&v| v as f32).collect(), d_head)?)?;
            }
        }
        Ok(())
    }))
}

/// The same from candle primitives, with `inner` called at every place inside.
///
/// # Errors
/// If shapes disagree, or what `inner` returns.
pub fn attention_composed(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: AttentionSpec,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<Value> {
    let mut inputs = vec![q, k, v];
    let eps = qk_norm.as_ref().map(|n| n.eps);
    if let Some(n) = &qk_norm {
        inputs.extend([n.q_gain, n.k_gain]);
    }
    let (sequences, tokens, width) = q.tensor().dims3()?;
    let (heads, d_head) = (spec.heads, width / spec.heads);
    tape.compose(&inputs, |t| {
        let split = |x: &Tensor| x.reshape((sequences, tokens, heads, d_head));
        let heads_first = |x: &Tensor| split(x)?.transpose(1, 2)?.contiguous();
        let (mut q, mut k) = (t[0].clone(), t[1].clone());
        if let Some(eps) = eps {
            let normalise = |x: &Tensor, gain: &Tensor| -> Result<Tensor> {
                let x = split(x)?;
                let rms = x.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
                x.broadcast_div(&(rms + eps)?)?.broadcast_mul(gain)?.reshape((sequences, tokens, width))
            };
            q = inner(Inner::QNorm, normalise(&q, &t[3])?)?;
            k = inner(Inner::KNorm, normalise(&k, &t[4])?)?;
        }
        let (q, k, v) = (heads_first(&q)?, heads_first(&k)?, heads_first(&t[2])?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? * (1.0 / (d_head as f64).sqrt()))?;
        let mut scores = inner(Inner::Scores, scores)?;
        if spec.causal {
            scores =
                scores.broadcast_add(&causal_mask(tokens, scores.dtype())?.to_device(scores.device())?)?;
        }
        let peak = scores.max_keepdim(D::Minus1)?.detach();
        let exp = scores.broadcast_sub(&peak)?.exp()?;
        let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let probs = inner(Inner::Probs, probs)?;
        probs.matmul(&v)?.transpose(1, 2)?.reshape((sequences, tokens, width))
    })
}

/// 0 where a token may look, -1e30 after it: far below any score, and finite, so that 0 · mask stays 0.
fn causal_mask(tokens: usize, dtype: DType) -> Result<Tensor> {
    let mask: Vec<f32> =
        (0..tokens).flat_map(|i| (0..tokens).map(move |j| if j > i { -1e30 } else { 0.0 })).collect();
    Tensor::from_vec(mask, (tokens, tokens), &candle_core::Device::Cpu)?.to_dtype(dtype)
}
