//! `sample MODEL --prompt TEXT`.

use super::model;
use super::text::tokenizer;
use crate::args::Sample;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::sample::{SampleSettings, sample};
use serde_json::json;

pub(crate) fn run(args: Sample, settings: &Settings) -> Result<Exit, Failure> {
    let range = |ok: bool, message: &str| {
        if ok { Ok(()) } else { Err(Failure::input(message, "`evenkeel sample --help` gives the defaults")) }
    };
    range(
        args.temperature.is_finite() && args.temperature >= 0.0,
        "--temperature must be a number of at least 0",
    )?;
    range(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p must lie above 0 and be at most 1")?;
    let (model, folder) = model::load(&args.model, settings)?;
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
    };
    let mut ids = Vec::new();
    let mut shown = 0;
    // Refused before anything is printed.
    let window = &prompt[prompt.len().saturating_sub(model.config().context)..];
    model.check_input(window, 1)?;
    if !settings.json {
        output::result(&args.prompt);
    }
    sample(&model, &prompt, tokenizer.separator(), draw, &mut |id| {
        ids.push(id);
        let text = tokenizer.decode(&ids);
        // A character may still be incomplete: its bytes are shown once they are whole.
        if !settings.json && !text.ends_with('\u{fffd}') {
            output::result(text.get(shown..).unwrap_or_default());
            shown = text.len();
        }
        true
    })?;
    if settings.json {
        let text = tokenizer.decode(&ids);
        output::json(&json!({"schema": 1, "prompt": args.prompt, "text": text, "tokens": ids.len()}));
    } else {
        let text = tokenizer.decode(&ids);
        output::line(text.get(shown..).unwrap_or_default());
    }
    Ok(Exit::Done)
}
