//! `export MODEL --to FORMAT --out DIR`.

use super::model;
use super::place::{self, Place};
use crate::args::{Export, Format};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::hf::{Target, export};
use serde_json::json;

pub(crate) fn run(args: Export, settings: &Settings) -> Result<Exit, Failure> {
    let target = match args.to {
        Format::Hf => Target::Auto,
        Format::Gpt2 => Target::Gpt2,
        Format::Opt => Target::Opt,
        Format::Llama => Target::Llama,
        Format::Evenkeel => Target::Evenkeel,
    };
    let (model, folder) = model::load(&args.model, settings)?;
    place::check(&args.out, &folder, &WRITTEN, settings)?;
    let tokenizer = Some(folder.join("tokenizer.json")).filter(|path| path.is_file());
    // Made beside its place, so that a folder of that name is always whole.
    let place = Place::new(&args.out, settings.dry_run)?;
    let written = export(place.beside(), &model, tokenizer.as_deref(), target)?;
    place.finish(&args.out)?;
    if settings.json {
        output::json(&json!({
            "schema": 1, "dry_run": settings.dry_run, "out": args.out, "format": written.name(),
            "parameters": model.parameter_count(),
        }));
        return Ok(Exit::Done);
    }
    if settings.dry_run && args.out.exists() {
        output::line(&format!("would replace what an export left at {}", args.out.display()));
    }
    let verb = if settings.dry_run { "would write" } else { "wrote" };
    output::line(&format!(
        "{verb} {} parameters as {} to {}",
        model.parameter_count(),
        written.name(),
        args.out.display()
    ));
    let trust = if written == Target::Evenkeel { ", trust_remote_code=True" } else { "" };
    let out = args.out.display();
    output::line(&format!("load it with AutoModelForCausalLM.from_pretrained(\"{out}\"{trust})"));
    Ok(Exit::Done)
}

/// What an export writes; a folder that holds anything else is nobody's to remove.
const WRITTEN: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modeling_evenkeel.py"];
