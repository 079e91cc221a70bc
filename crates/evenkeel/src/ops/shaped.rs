//! Shaped attention (Noci et al., arXiv 2306.17759): the attention matrix a I + b P - c C per head, with P the
//! probabilities, C the uniform causal matrix (1/(i+1) at and below the diagonal) and learned a, b, c.
//!
//! With zero queries P is C, so that a = b = c leaves the identity: a block without a skip then starts by passing its
//! input on. Only P v needs attention's kernel; the other two terms are composed around it. Where tokens go on from a cache, C has
//! their rows alone, and meets the values of all tokens so far.

use super::attention::shared_by_heads;
use crate::tape::{Tape, Value};
use candle_core::{DType, Device, Result, Tensor};

/// `a v + b (P v) - c (C v)`: `context` = P v (sequences, tokens, heads · d_head), v (sequences, tokens, kv_heads · d_head),
/// gains a, b, c of shape (heads). `all` is v of every token so far, of which the last are those of `v`; without it there are no
/// others. Composed only.
///
/// # Errors
/// If shapes disagree.
pub fn shaped(
    tape: &Tape,
    context: &Value,
    v: &Value,
    all: Option<&Value>,
    [a, b, c]: [&Value; 3],
) -> Result<Value> {
    let _span = tape.span("shaped");
    let (sequences, tokens, width) = context.tensor().dims3()?;
    let heads = a.tensor().dim(0)?;
    let d_head = width / heads;
    let kv_heads = v.tensor().dim(2)? / d_head;
    let inputs: Vec<&Value> = [context, v, a, b, c].into_iter().chain(all).collect();
    tape.compose(&inputs, |t| {
        let gain = |g: &Tensor| g.reshape((heads, 1));
        let of_heads =
            |v: &Tensor| shared_by_heads(&v.reshape((sequences, v.dim(1)?, kv_heads, d_head))?, heads);
        let pv = t[0].reshape((sequences, tokens, heads, d_head))?;
        let v = of_heads(&t[1])?;
        let all = t.get(5).map_or(Ok(v.clone()), of_heads)?;
        let positions = all.dim(1)?;
        let all = all.reshape((sequences, positions, width))?;
        let means = uniform(tokens, positions, v.dtype())?.broadcast_matmul(&all)?;
        let means = means.reshape((sequences, tokens, heads, d_head))?;
        let sum = (v.broadcast_mul(&gain(&t[2])?)? + pv.broadcast_mul(&gain(&t[3])?)?)?;
        (sum - means.broadcast_mul(&gain(&t[4])?)?)?.reshape((sequences, tokens, width))
    })
}

/// The last `tokens` rows of the causal matrix of `positions` tokens whose rows are uniform.
fn uniform(tokens: usize, positions: usize, dtype: DType) -> Result<Tensor> {
    let entry = |i: usize, j: usize| if j > i { 0.0 } else { 1.0 / (i + 1) as f64 };
    let first = positions.saturating_sub(tokens);
    let rows = (first..positions).flat_map(|i| (0..positions).map(move |j| entry(i, j)));
    Tensor::from_vec(rows.collect::<Vec<f64>>(), (tokens, positions), &Device::Cpu)?.to_dtype(dtype)
}
