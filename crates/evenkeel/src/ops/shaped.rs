//! Shaped attention (Noci et al., arXiv 2306.17759): the attention matrix a I + b P - c C per head, with P the
//! probabilities, C the uniform causal matrix (1/(i+1) at and below the diagonal) and learned a, b, c.
//!
//! With zero queries P is C, so that a = b = c leaves the identity: a block without a skip then starts by passing its
//! input on. Only P v needs attention's kernel; the other two terms are composed around it.

use super::attention::shared_by_heads;
use crate::tape::{Tape, Value};
use candle_core::{DType, Device, Result, Tensor};

/// `a v + b (P v) - c (C v)`: `context` = P v (sequences, tokens, heads · d_head), v (sequences, tokens, kv_heads · d_head),
/// gains a, b, c of shape (heads). Composed only.
///
/// # Errors
/// If shapes disagree.
pub fn shaped(tape: &Tape, context: &Value, v: &Value, [a, b, c]: [&Value; 3]) -> Result<Value> {
    let _span = tape.span("shaped");
    let (sequences, tokens, width) = context.tensor().dims3()?;
    let heads = a.tensor().dim(0)?;
    let d_head = width / heads;
    let kv_heads = v.tensor().dim(2)? / d_head;
    tape.compose(&[context, v, a, b, c], |t| {
        let gain = |g: &Tensor| g.reshape((heads, 1));
        let pv = t[0].reshape((sequences, tokens, heads, d_head))?;
        let v = shared_by_heads(&t[1].reshape((sequences, tokens, kv_heads, d_head))?, heads)?;
        let means = uniform(tokens, v.dtype())?.broadcast_matmul(&v.reshape((sequences, tokens, width))?)?;
        let means = means.reshape((sequences, tokens, heads, d_head))?;
        let sum = (v.broadcast_mul(&gain(&t[2])?)? + pv.broadcast_mul(&gain(&t[3])?)?)?;
        (sum - means.broadcast_mul(&gain(&t[4])?)?)?.reshape((sequences, tokens, width))
    })
}

/// The causal matrix whose rows are uniform.
fn uniform(tokens: usize, dtype: DType) -> Result<Tensor> {
    let entry = |i: usize, j: usize| if j > i { 0.0 } else { 1.0 / (i + 1) as f64 };
    let rows: Vec<f64> = (0..tokens).flat_map(|i| (0..tokens).map(move |j| entry(i, j))).collect();
    Tensor::from_vec(rows, (tokens, tokens), &Device::Cpu)?.to_dtype(dtype)
}
