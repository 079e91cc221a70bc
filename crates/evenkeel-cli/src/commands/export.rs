//! `export MODEL --to FORMAT --out DIR`.

use super::model;
use super::place::{self, Place};
use crate::args::{Export, Format};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::hf::{Target, export};
use evenkeel::export::{Quantised, onnx};
use evenkeel::model::Transformer;
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Export, settings: &Settings) -> Result<Exit, Failure> {
    let (model, folder) = model::load(&args.model, settings)?;
    place::check(&args.out, &folder, &WRITTEN, settings)?;
    // Made beside its place, so that a folder of that name is always whole.
    let place = Place::new(&args.out, settings.dry_run)?;
    let written = write(&model, &folder, place.beside(), args.to)?;
    place.finish(&args.out)?;
    if settings.json {
        output::json(&json!({
            "schema": 1, "dry_run": settings.dry_run, "out": args.out, "format": written.name,
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
        written.name,
        args.out.display()
    ));
    output::line(&format!("load it with {}", (written.loader)(&args.out)));
    Ok(Exit::Done)
}

/// What was written.
struct Written {
    name: &'static str,
    /// The Python that loads it from a folder.
    loader: fn(&Path) -> String,
}

fn write(model: &Transformer, from: &Path, to: &Path, format: Format) -> Result<Written, Failure> {
    let target = match format {
        Format::Hf => Target::Auto,
        Format::Gpt2 => Target::Gpt2,
        Format::Opt => Target::Opt,
        Format::Llama => Target::Llama,
        Format::Evenkeel => Target::Evenkeel,
        Format::Onnx => {
            onnx::write(&Quantised::float(model), from, to)?;
            let loader =
                |out: &Path| format!("onnxruntime.InferenceSession(\"{}\")", out.join(onnx::FILE).display());
            return Ok(Written { name: "onnx", loader });
        }
    };
    let tokenizer = Some(from.join("tokenizer.json")).filter(|path| path.is_file());
    let target = export(to, model, tokenizer.as_deref(), target)?;
    let loader: fn(&Path) -> String = match target {
        Target::Evenkeel => |out| from_pretrained(out, ", trust_remote_code=True"),
        _ => |out| from_pretrained(out, ""),
    };
    Ok(Written { name: target.name(), loader })
}

fn from_pretrained(out: &Path, settings: &str) -> String {
    format!("AutoModelForCausalLM.from_pretrained(\"{}\"{settings})", out.display())
}

/// What an export writes; a folder that holds anything else is nobody's to remove.
const WRITTEN: [&str; 6] = [
    "config.json",
    "model.safetensors",
    "model.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "modeling_evenkeel.py",
];
