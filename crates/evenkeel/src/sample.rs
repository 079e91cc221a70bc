//! Text from a model: temperature, top-k, top-p, from a seed.
//!
//! The context is run again for every token; a cache of keys and values comes with the integer model.

use crate::error::Result;
use crate::model::Transformer;
use crate::random::{key, uniform};
use crate::slices::slice;
use crate::tap::NoTap;
use crate::tape::Tape;

/// How to choose the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// Tokens to add at most.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together hold this probability.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

/// Continues `prompt` token by token, calling `emit` with each; stops at `stop` or when `emit` returns false.
///
/// # Errors
/// If the prompt is empty or holds ids beyond the vocabulary.
pub fn sample(
    model: &Transformer,
    prompt: &[u32],
    stop: Option<u32>,
    settings: SampleSettings,
    emit: &mut dyn FnMut(u32) -> bool,
) -> Result<()> {
    let mut ids = prompt.to_vec();
    let (context, vocab) = (model.config().context, model.config().vocab);
    for i in 0..settings.max_tokens {
        let window = &ids[ids.len().saturating_sub(context)..];
        let logits = model.logits(&Tape::off(), &mut NoTap, window, 1)?;
        let logits = slice(logits.tensor())?;
        let next =
            choose(&logits[logits.len() - vocab..], settings, uniform(key(&[settings.seed]), i as u64));
        if Some(next) == stop || !emit(next) {
            break;
        }
        ids.push(next);
    }
    Ok(())
}

/// The token that a uniform draw `u` in [0, 1) picks.
fn choose(logits: &[f32], settings: SampleSettings, u: f64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if settings.temperature <= 0.0 {
        return order[0] as u32;
    }
    if settings.top_k > 0 {
        order.truncate(settings.top_k);
    }
    let peak = logits[order[0]] as f64;
    let weights: Vec<f64> =
        order.iter().map(|&i| ((logits[i] as f64 - peak) / settings.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < weights.len() && (kept == 0 || mass < settings.top_p * total) {
        mass += weights[kept];
        kept += 1;
    }
    let mut left = u * mass;
    for (i, w) in weights[..kept].iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return order[i] as u32;
        }
    }
    order[kept - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: SampleSettings =
        SampleSettings { max_tokens: 1, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };

    #[test]
    fn filters_keep_the_likely_tokens() {
        let logits = [0.0, 3.0, 1.0, 2.0];
        assert_eq!(choose(&logits, SampleSettings { temperature: 0.0, ..ALL }, 0.99), 1);
        assert_eq!(choose(&logits, ALL, 0.0), 1);
        assert_eq!(choose(&logits, ALL, 0.9999), 0);
        assert_eq!(choose(&logits, SampleSettings { top_k: 2, ..ALL }, 0.9999), 3);
        assert_eq!(choose(&logits, SampleSettings { top_p: 0.5, ..ALL }, 0.9999), 1);
    }
}
