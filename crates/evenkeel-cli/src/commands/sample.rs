//! `sample MODEL --prompt TEXT`.

use super::model::Runnable;
use super::text::tokenizer;
use crate::args::{KvCache, Sample};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::cache::CacheKind;
use evenkeel::decode::Decoder;
use evenkeel::sample::{SampleSettings, Throughput, sample};
use serde_json::{Value, json};

pub(crate) fn run(args: Sample, settings: &Settings) -> Result<Exit, Failure> {
    let range = |ok: bool, message: &str| {
        if ok { Ok(()) } else { Err(Failure::input(message, "`evenkeel sample --help` gives the defaults")) }
    };
    range(
        args.temperature.is_finite() && args.temperature >= 0.0,
        "--temperature must be a number of at least 0",
    )?;
    range(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p must lie above 0 and be at most 1")?;
    range((1..=MOST_SAMPLES).contains(&args.samples), "--samples must lie between 1 and 4096")?;
    let (runnable, folder) = Runnable::open(&args.model, settings)?;
    let model = runnable.model();
    let tokenizer = tokenizer(&folder)?;
    let prompt = tokenizer.encode(&args.prompt)?;
    if prompt.is_empty() {
        return Err(Failure::input("the prompt is empty", "give some text with --prompt \"fn main\""));
    }
    let draw = SampleSettings {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: settings.seed.unwrap_or(0),
        samples: args.samples,
    };
    let mut ids = vec![Vec::new(); args.samples];
    let mut shown = 0;
    // One is shown as it grows.
    let streams = args.samples == 1 && !settings.json;
    // Refused before anything is printed.
    let window = &prompt[prompt.len().saturating_sub(model.config().context)..];
    model.check_input(window, 1)?;
    if streams {
        output::result(&args.prompt);
    }
    let mut emit = |sample: usize, id| {
        let Some(ids) = ids.get_mut(sample) else { return false };
        ids.push(id);
        if streams {
            let text = tokenizer.decode(ids);
            // A character may still be incomplete: its bytes are shown once they are whole.
            if !text.ends_with('\u{fffd}') {
                output::result(text.get(shown..).unwrap_or_default());
                shown = text.len();
            }
        }
        true
    };
    let (cache, stop) = (args.kv_cache.map(KvCache::kind), tokenizer.separator());
    let done = match &runnable {
        Runnable::Float(model) => {
            let decoder = Decoder::new(model, 1, cache.unwrap_or(CacheKind::F32))?;
            sample(decoder, &prompt, stop, draw, &mut emit)?
        }
        Runnable::Integer(integer) => sample(integer.decoder(1, cache)?, &prompt, stop, draw, &mut emit)?,
    };
    let texts: Vec<String> = ids.iter().map(|ids| tokenizer.decode(ids)).collect();
    if settings.json {
        let samples: Vec<Value> =
            texts.iter().zip(&ids).map(|(text, ids)| json!({"text": text, "tokens": ids.len()})).collect();
        output::json(&json!({
            "schema": 1, "prompt": args.prompt, "text": texts.first(), "tokens": ids.first().map(Vec::len),
            "samples": samples, "kv_cache": args.kv_cache.map(KvCache::name), "cache_bytes": done.cache_bytes,
            "prefill_tokens_per_second": done.prefill_rate(), "decode_tokens_per_second": done.decode_rate(),
        }));
    } else if streams {
        output::line(texts.first().and_then(|text| text.get(shown..)).unwrap_or_default());
    } else {
        let whole: Vec<String> = texts.iter().map(|text| format!("{}{text}", args.prompt)).collect();
        output::line(&whole.join("\n\n"));
    }
    if !settings.quiet {
        output::note(&speed(&done));
    }
    Ok(Exit::Done)
}

/// More samples than anyone reads; beyond it a typing error only exhausts memory.
const MOST_SAMPLES: usize = 4096;

/// What it took, as a line.
fn speed(done: &Throughput) -> String {
    let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.0} tokens/s"));
    format!(
        "prefill {} tokens, {}; decode {} tokens, {}; keys and values {:.1} MiB",
        done.prefill_tokens,
        rate(done.prefill_rate()),
        done.decode_tokens,
        rate(done.decode_rate()),
        done.cache_bytes as f64 / f64::from(1 << 20)
    )
}
