//! `export MODEL --to FORMAT --out DIR`.

use super::model;
use crate::args::{Export, Format};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::checkpoint::CheckpointError;
use evenkeel::checkpoint::hf::{Target, export};
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Export, settings: &Settings) -> Result<Exit, Failure> {
    let target = match args.to {
        Format::Hf => Target::Auto,
        Format::Gpt2 => Target::Gpt2,
        Format::Opt => Target::Opt,
        Format::Llama => Target::Llama,
        Format::Evenkeel => Target::Evenkeel,
    };
    let (model, folder) = model::load(&args.model, settings)?;
    check_place(&args.out, &folder, settings)?;
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

/// Refuses a place that something else holds; with --force, only an earlier export makes way.
fn check_place(out: &Path, model: &Path, settings: &Settings) -> Result<(), Failure> {
    if !out.exists() {
        return Ok(());
    }
    if let (Ok(a), Ok(b)) = (out.canonicalize(), model.canonicalize())
        && b.starts_with(&a)
    {
        return Err(Failure::input(
            format!("--out {} holds the model that is exported", out.display()),
            "name a new folder",
        ));
    }
    let entries = std::fs::read_dir(out).map_err(io(out))?.flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let foreign = names.iter().find(|name| !WRITTEN.contains(&name.as_str()));
    match (names.is_empty(), settings.force) {
        (true, _) => Ok(()),
        (false, true) => match foreign {
            None => Ok(()),
            Some(name) => Err(Failure::input(
                format!("{} holds {name}, which no export writes", out.display()),
                "name a new folder: --force replaces only what an export wrote",
            )),
        },
        (false, false) => Err(Failure::input(
            format!("{} exists and is not empty", out.display()),
            "name a new folder, or add --force to replace an earlier export",
        )),
    }
}

/// A folder in the making.
struct Place {
    beside: std::path::PathBuf,
    kept: bool,
}

impl Place {
    fn new(out: &Path, dry_run: bool) -> Result<Self, Failure> {
        let name = out.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| {
            Failure::input(format!("{} names no folder", out.display()), "give a path that ends in a name")
        })?;
        let hidden = format!(".{name}.partial-{}", std::process::id());
        // What is tried out leaves no trace beside the place either.
        let beside = match dry_run {
            true => std::env::temp_dir().join(hidden),
            false => out.with_file_name(hidden),
        };
        std::fs::create_dir_all(&beside).map_err(io(&beside))?;
        Ok(Self { beside, kept: !dry_run })
    }

    fn beside(&self) -> &Path {
        &self.beside
    }

    fn finish(self, out: &Path) -> Result<(), Failure> {
        if self.kept {
            if out.exists() {
                std::fs::remove_dir_all(out).map_err(io(out))?;
            }
            std::fs::rename(&self.beside, out).map_err(io(out))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already where it was given its name.
        let _ = std::fs::remove_dir_all(&self.beside);
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}
