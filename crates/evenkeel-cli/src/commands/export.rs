//! `export MODEL --to FORMAT --out DIR`.

use super::model;
use super::place::{self, Place};
use crate::args::{Export, Format};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::hf::{Target, export};
use evenkeel::checkpoint::{self, CheckpointError};
use evenkeel::export::{Quantised, compressed, onnx};
use evenkeel::model::Transformer;
use evenkeel::quant::int8::{self, Dequantised};
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Export, settings: &Settings) -> Result<Exit, Failure> {
    let model = Source::open(&args, settings)?;
    let folder = model::locate(&args.model, settings)?;
    let folder = checkpoint::resolve(&folder)?;
    place::check(&args.out, &folder, &WRITTEN, settings)?;
    // Made beside its place, so that a folder of that name is always whole.
    let place = Place::new(&args.out, settings.dry_run)?;
    let written = write(&model, &folder, place.beside(), args.to)?;
    place.finish(&args.out)?;
    if settings.json {
        output::json(&json!({
            "schema": 1, "dry_run": settings.dry_run, "out": args.out, "format": written.name,
            "parameters": model.parameter_count(), "in_float": written.lost,
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
    if let [first, rest @ ..] = &written.lost[..] {
        output::line(&format!(
            "{} quantisers have no place in this format and run in float there, {first} {}",
            written.lost.len(),
            if rest.is_empty() { "alone" } else { "among them (--json names all)" },
        ));
    }
    Ok(Exit::Done)
}

/// What is exported.
enum Source {
    Float(Box<Transformer>),
    Integers(Box<Dequantised>),
}

impl Source {
    fn open(args: &Export, settings: &Settings) -> Result<Self, Failure> {
        let folder = model::locate(&args.model, settings)?;
        let takes_integers = matches!(args.to, Format::Onnx | Format::CompressedTensors);
        if takes_integers && folder.is_dir() && int8::is_integer(&folder) {
            return Ok(Self::Integers(Box::new(int8::dequantised(&folder)?)));
        }
        Ok(Self::Float(Box::new(model::load(&args.model, settings)?.0)))
    }

    fn parameter_count(&self) -> usize {
        match self {
            Self::Float(model) => model.parameter_count(),
            Self::Integers(model) => model.parameters.values().map(|p| p.elem_count()).sum(),
        }
    }

    fn quantised(&self) -> Quantised<'_> {
        match self {
            Self::Float(model) => Quantised::float(model),
            Self::Integers(model) => Quantised::integers(model),
        }
    }
}

/// What was written.
struct Written {
    name: &'static str,
    /// The Python that loads it from a folder.
    loader: fn(&Path) -> String,
    /// Quantisers that the format has no place for.
    lost: Vec<String>,
}

fn write(model: &Source, from: &Path, to: &Path, format: Format) -> Result<Written, Failure> {
    let target = match format {
        Format::Hf => Target::Auto,
        Format::Gpt2 => Target::Gpt2,
        Format::Opt => Target::Opt,
        Format::Llama => Target::Llama,
        Format::Evenkeel => Target::Evenkeel,
        Format::Onnx => {
            onnx::write(&model.quantised(), from, to)?;
            let loader =
                |out: &Path| format!("onnxruntime.InferenceSession(\"{}\")", out.join(onnx::FILE).display());
            return Ok(Written { name: "onnx", loader, lost: Vec::new() });
        }
        Format::CompressedTensors => {
            let lost = compressed::write(&model.quantised(), from, to)?.lost;
            return Ok(Written { name: "compressed-tensors", loader: |out| from_pretrained(out, ""), lost });
        }
    };
    let Source::Float(model) = model else {
        return Err(CheckpointError::Integers { path: from.to_path_buf() }.into());
    };
    let tokenizer = Some(from.join("tokenizer.json")).filter(|path| path.is_file());
    let target = export(to, model, tokenizer.as_deref(), target)?;
    let loader: fn(&Path) -> String = match target {
        Target::Evenkeel => |out| from_pretrained(out, ", trust_remote_code=True"),
        _ => |out| from_pretrained(out, ""),
    };
    Ok(Written { name: target.name(), loader, lost: Vec::new() })
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
