//! Attention that goes on where a cache ends: to the tokens before, whose keys and values are cached, and to the new ones, which
//! are added there.

use super::all_fast;
use super::attention::{
    AttentionSpec, Inner, QkNormSpec, kernel_shape, norm_values, normed_and_turned, prepare, weighted_values,
};
use crate::cache::LayerCache;
use crate::slices::{slice, tensor};
use crate::tape::{Tape, Value};
use candle_core::{Result, Tensor, bail};
use evenkeel_kernels::attention as kernel;

/// As [`super::attention`] of new tokens. Nothing is recorded.
///
/// # Errors
/// If shapes disagree, or attention is not causal.
pub fn attention_cached(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    cache: &mut LayerCache,
) -> Result<Value> {
    let _span = tape.span("attention");
    let (norm, eps) = norm_values(qk_norm.as_ref());
    let inputs: Vec<&Value> = [q, k, v].into_iter().chain(&norm).collect();
    if !all_fast(&inputs) || spec.dropout.is_some() {
        return attention_cached_composed(q, k, v, qk_norm, spec, cache, |_, x| Ok(x));
    }
    let shape = kernel_shape(q.tensor(), spec, tape.compute())?;
    check(spec, cache, shape.sequences, shape.d_head)?;
    let past = cache.tokens();
    let rope = spec.rope.as_ref().map(|rope| rope.at_least(past + shape.tokens));
    let mut out = vec![0.0; q.tensor().elem_count()];
    {
        let (qs, ks, vs) = (slice(q.tensor())?, slice(k.tensor())?, slice(v.tensor())?);
        let guards = norm.iter().map(|v| slice(v.tensor())).collect::<Result<Vec<_>>>()?;
        let prepare = prepare(&guards, eps, rope.as_deref(), past);
        kernel::forward_cached(shape, &qs, &ks, &vs, prepare, cache.heads_mut(), &mut out);
    }
    Ok(Value::constant(tensor(out, q.tensor().shape())?))
}

/// The same from candle primitives, with `inner` called at every place inside; scores and probabilities are
/// (sequences, heads, new tokens, all tokens).
///
/// # Errors
/// As there, or what `inner` returns.
pub fn attention_cached_composed(
    q: &Value,
    k: &Value,
    v: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    cache: &mut LayerCache,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<Value> {
    let (sequences, tokens, width) = q.tensor().dims3()?;
    let d_head = width / spec.heads;
    check(spec, cache, sequences, d_head)?;
    let past = cache.tokens();
    let (q, k) = turned(q, k, qk_norm, spec, past, &mut inner)?;
    cache.append(&k, &v.tensor().reshape((sequences, tokens, spec.kv_heads, d_head))?)?;
    meet(&q, spec, cache, past, inner)
}

/// Shows `inner` the places inside that it wants, after [`attention_cached`] of the same inputs, and changes nothing.
///
/// # Errors
/// If shapes disagree, or what `inner` returns.
pub fn look_inside_attention_cached(
    q: &Value,
    k: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    cache: &LayerCache,
    wants: impl Fn(Inner) -> bool,
    mut inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<()> {
    let past = cache.tokens().saturating_sub(q.tensor().dim(1)?);
    let mut seen = |place, x: Tensor| match wants(place) {
        true => inner(place, x.clone()).map(|_| x),
        false => Ok(x),
    };
    let (q, _) = turned(q, k, qk_norm, spec, past, &mut seen)?;
    if wants(Inner::Scores) || wants(Inner::Probs) {
        meet(&q, spec, cache, past, seen)?;
    }
    Ok(())
}

/// Queries and keys (sequences, tokens, heads, d_head), normed and turned from position `past` on.
fn turned(
    q: &Value,
    k: &Value,
    qk_norm: Option<QkNormSpec>,
    spec: &AttentionSpec,
    past: usize,
    inner: &mut dyn FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (norm, eps) = norm_values(qk_norm.as_ref());
    let norm: Vec<Tensor> = norm.iter().map(|v| v.tensor().clone()).collect();
    normed_and_turned(q.tensor(), k.tensor(), &norm, eps, spec, past, inner)
}

/// The context of turned queries, of which the first stands at `past`, among all that is cached.
fn meet(
    q: &Tensor,
    spec: &AttentionSpec,
    cache: &LayerCache,
    past: usize,
    inner: impl FnMut(Inner, Tensor) -> Result<Tensor>,
) -> Result<Value> {
    let (keys, values) = (cache.keys(q.dtype())?, cache.values(q.dtype())?);
    Ok(Value::constant(weighted_values(q, &keys, &values, spec, past, inner)?))
}

fn check(spec: &AttentionSpec, cache: &LayerCache, sequences: usize, d_head: usize) -> Result<()> {
    if !spec.causal {
        bail!("attention to later tokens cannot go on from a cache");
    }
    cache.check(sequences, spec.kv_heads, d_head)
}
