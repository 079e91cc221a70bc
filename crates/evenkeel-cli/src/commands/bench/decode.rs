//! `bench decode`: a prompt, then token by token, on random ids with a cache of keys and values.

use super::{at_least_one, median, milliseconds};
use crate::args::bench::{Decode as Args, Sizes};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::decode::Decoder;
use evenkeel::model::Transformer;
use evenkeel::random;
use evenkeel_kernels::isa;
use serde_json::json;
use std::time::Instant;

pub(super) fn run(args: Args, settings: &Settings) -> Result<Exit, Failure> {
    at_least_one("rounds", args.rounds, 1_000_000)?;
    at_least_one("prompt", args.prompt, args.context)?;
    at_least_one("tokens", args.tokens, args.context)?;
    if args.prompt + args.tokens > args.context {
        return Err(Failure::input(
            format!(
                "--prompt and --tokens are {} together, and --context is {}",
                args.prompt + args.tokens,
                args.context
            ),
            "give a longer --context",
        ));
    }
    let sizes =
        Sizes { width: args.width, vocab: args.vocab, context: args.context, sequences: args.sequences };
    let seed = settings.seed.unwrap_or(0);
    let model = Transformer::new(super::model(args.depth, args.heads, &sizes)?, seed)?;
    let ids = |stream: u64, count: usize| -> Vec<u32> {
        let key = random::key(&[seed, stream]);
        let id = |i: usize| (random::uniform(key, i as u64) * args.vocab as f64) as u32;
        (0..count).map(|i| id(i).min(args.vocab as u32 - 1)).collect()
    };
    let prompt = ids(0, args.sequences * args.prompt);
    let mut decoder = Decoder::new(&model, args.sequences, args.kv_cache.kind())?;
    // The first round is not counted: it faults pages in.
    let (mut prefill, mut step) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        decoder.reset();
        let begun = Instant::now();
        decoder.prefill(&prompt)?;
        let prefilled = begun.elapsed().as_secs_f64();
        let mut steps = Vec::with_capacity(args.tokens);
        for token in 0..args.tokens {
            let next = ids(1 + token as u64, args.sequences);
            let begun = Instant::now();
            decoder.decode(&next)?;
            steps.push(begun.elapsed().as_secs_f64());
        }
        if round > 0 {
            prefill.push(prefilled);
            step.extend(steps);
        }
    }
    let (prefill, step) = (median(&prefill), median(&step));
    let (prefill_rate, decode_rate) = (prompt.len() as f64 / prefill, args.sequences as f64 / step);
    let bytes = decoder.cache_bytes();
    if settings.json {
        output::json(&json!({
            "schema": 1,
            "prefill_tokens_per_second": prefill_rate,
            "decode_tokens_per_second": decode_rate,
            "prefill_seconds_median": prefill,
            "decode_seconds_median": step,
            "cache_bytes": bytes,
            "kv_cache": args.kv_cache.name(),
            "model": {
                "depth": args.depth, "width": args.width, "heads": args.heads, "vocab": args.vocab,
                "context": args.context, "parameters": model.parameter_count(),
            },
            "sequences": args.sequences,
            "prompt": args.prompt,
            "tokens": args.tokens,
            "threads": settings.threads,
            "isa": isa::active().name(),
        }));
        return Ok(Exit::Done);
    }
    let mib = bytes as f64 / f64::from(1 << 20);
    output::line(&format!("prefill {prefill_rate:>10.0} tokens/s, {} ms for all", milliseconds(prefill)));
    output::line(&format!("decode  {decode_rate:>10.0} tokens/s, {} ms a step", milliseconds(step)));
    output::line(&format!("cache   {mib:>10.1} MiB, {}", args.kv_cache.name()));
    Ok(Exit::Done)
}
