//! Text from a model: temperature, top-k, top-p, from a seed.
//!
//! The prompt is run once, and every token once after it: [`crate::decode::Decoder`] keeps the keys and values of those before.

use crate::decode::Continues;
use crate::error::Result;
use crate::model::ModelError;
use crate::random::{key, uniform};
use crate::slices::slice;
use std::time::Instant;

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
    /// Continuations, drawn at once.
    pub samples: usize,
}

/// What was run, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Throughput {
    /// Tokens of the prompt that were run, once for all samples.
    pub prefill_tokens: usize,
    /// Time for them.
    pub prefill_seconds: f64,
    /// Tokens that were run after it, of all samples, those of finished ones included.
    pub decode_tokens: usize,
    /// Time for them, draws and the time of `emit` left out.
    pub decode_seconds: f64,
    /// Most bytes that keys and values have taken.
    pub cache_bytes: usize,
}

impl Throughput {
    /// Tokens of the prompt per second; `None` if there was no time.
    pub fn prefill_rate(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill_seconds)
    }

    /// Tokens after the prompt per second; `None` if there were none.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// Continues `prompt`, which `decoder` has not seen, token by token, calling `emit` with the number of the sample and each token; a sample ends at `stop`,
/// and all end when `emit` returns false. Of a prompt longer than the model's context the last tokens count; what happens when
/// the context is full stands in [`crate::decode`].
///
/// # Errors
/// If the prompt is empty or holds ids beyond the vocabulary, or no samples are wanted.
pub fn sample(
    mut decoder: impl Continues,
    prompt: &[u32],
    stop: Option<u32>,
    settings: SampleSettings,
    emit: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Throughput> {
    if settings.samples == 0 {
        return Err(ModelError::Empty.into());
    }
    let mut done = Throughput::default();
    let begun = Instant::now();
    let prompt_logits = decoder.prefill(prompt)?;
    (done.prefill_tokens, done.prefill_seconds) = (decoder.held(), begun.elapsed().as_secs_f64());
    let mut decoder = decoder.repeated(settings.samples);
    done.cache_bytes = decoder.cache_bytes();
    let mut logits = prompt_logits.repeat((settings.samples, 1))?;
    let keys: Vec<u64> = (0..settings.samples).map(|sample| draws(settings.seed, sample)).collect();
    let mut ended = vec![false; settings.samples];
    for i in 0..settings.max_tokens {
        let mut next = Vec::with_capacity(settings.samples);
        {
            let logits = slice(&logits)?;
            let rows = logits.chunks_exact((logits.len() / settings.samples).max(1)).zip(&keys);
            next.extend(rows.map(|(row, &key)| choose(row, settings, uniform(key, i as u64))));
        }
        for (sample, (&id, ended)) in next.iter().zip(&mut ended).enumerate() {
            *ended |= Some(id) == stop;
            if !*ended && !emit(sample, id) {
                return Ok(done);
            }
        }
        if ended.iter().all(|&ended| ended) || i + 1 == settings.max_tokens {
            break;
        }
        let begun = Instant::now();
        logits = decoder.prefill(&next)?;
        done.decode_seconds += begun.elapsed().as_secs_f64();
        done.decode_tokens += settings.samples;
        done.cache_bytes = done.cache_bytes.max(decoder.cache_bytes());
    }
    Ok(done)
}

/// The key of a sample's draws; the first has that of the seed alone.
fn draws(seed: u64, sample: usize) -> u64 {
    match sample {
        0 => key(&[seed]),
        n => key(&[seed, n as u64]),
    }
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
    use crate::cache::CacheKind;
    use crate::decode::Decoder;
    use crate::model::tests::tiny;
    use crate::model::{ModelConfig, Transformer};
    use crate::tap::NoTap;
    use crate::tape::Tape;

    const ALL: SampleSettings =
        SampleSettings { max_tokens: 1, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0, samples: 1 };

    #[test]
    fn filters_keep_the_likely_tokens() {
        let logits = [0.0, 3.0, 1.0, 2.0];
        assert_eq!(choose(&logits, SampleSettings { temperature: 0.0, ..ALL }, 0.99), 1);
        assert_eq!(choose(&logits, ALL, 0.0), 1);
        assert_eq!(choose(&logits, ALL, 0.9999), 0);
        assert_eq!(choose(&logits, SampleSettings { top_k: 2, ..ALL }, 0.9999), 3);
        assert_eq!(choose(&logits, SampleSettings { top_p: 0.5, ..ALL }, 0.9999), 1);
    }

    /// What each sample draws.
    fn drawn(model: &Transformer, stop: Option<u32>, settings: SampleSettings) -> Vec<Vec<u32>> {
        drawn_from(Decoder::new(model, 1, CacheKind::F32).unwrap(), stop, settings)
    }

    fn drawn_from(decoder: Decoder, stop: Option<u32>, settings: SampleSettings) -> Vec<Vec<u32>> {
        let mut ids = vec![Vec::new(); settings.samples];
        let mut emit = |sample: usize, id| {
            ids[sample].push(id);
            true
        };
        sample(decoder, &[1, 4], stop, settings, &mut emit).unwrap();
        ids
    }

    #[test]
    fn a_cache_does_not_change_the_draws() {
        for name in ["op", "pre_rms"] {
            let model = Transformer::new(ModelConfig { context: 40, ..tiny(name) }, 3).unwrap();
            for seed in 0..4 {
                let settings = SampleSettings { max_tokens: 38, seed, ..ALL };
                let mut ids = vec![1u32, 4];
                for i in 0..settings.max_tokens {
                    let logits = model.logits(&Tape::off(), &mut NoTap, &ids, 1).unwrap();
                    let logits = slice(logits.tensor()).unwrap();
                    let last = &logits[logits.len() - model.config().vocab..];
                    ids.push(choose(last, settings, uniform(key(&[seed]), i as u64)));
                }
                assert_eq!(drawn(&model, None, settings), [ids[2..].to_vec()], "{name} {seed}");
            }
        }
    }

    #[test]
    fn samples_are_drawn_side_by_side_and_end_alone() {
        let model = Transformer::new(ModelConfig { context: 40, ..tiny("op") }, 3).unwrap();
        let settings = SampleSettings { max_tokens: 30, ..ALL };
        let three = drawn(&model, None, SampleSettings { samples: 3, ..settings });
        assert_eq!(three[..1], drawn(&model, None, settings));
        assert!(three[0] != three[1] && three[1] != three[2]);
        let ending = drawn(&model, Some(5), SampleSettings { samples: 3, ..settings });
        for (ended, all) in ending.iter().zip(&three) {
            assert_eq!(*ended, all.iter().copied().take_while(|&id| id != 5).collect::<Vec<_>>());
        }
        // Beyond the context, and in a cache of 8 bits.
        let (int8, long) = (CacheKind::Int8, SampleSettings { max_tokens: 100, ..settings });
        assert_eq!(drawn_from(Decoder::new(&model, 1, int8).unwrap(), None, long)[0].len(), 100);
    }

    #[test]
    fn what_was_run_is_counted() {
        let model = Transformer::new(tiny("op"), 3).unwrap();
        let settings = SampleSettings { max_tokens: 3, samples: 2, ..ALL };
        let decoder = || Decoder::new(&model, 1, CacheKind::F32).unwrap();
        let done = sample(decoder(), &[1, 4], None, settings, &mut |_, _| true).unwrap();
        assert_eq!((done.prefill_tokens, done.decode_tokens), (2, 4));
        assert!(done.prefill_rate().is_some() && done.decode_rate().is_some());
        // Two blocks, keys and values, two samples of four tokens, eight channels.
        assert_eq!(done.cache_bytes, 2 * 2 * (2 * 4) * 8 * 4);
        let settings = SampleSettings { samples: 0, ..settings };
        assert!(sample(decoder(), &[1], None, settings, &mut |_, _| true).is_err());
    }
}
