//! `data tokenize`, `data inspect` and `data fetch`.

use crate::args::{Data, DataCommand, Fetch, Tokenize};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::data::{
    self, DatasetSummary, SplitOutcome, TokenizeProgress, TokenizeSettings, TokenizeStage, TokenizerChoice,
    ValSplit,
};
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Data, settings: &Settings) -> Result<Exit, Failure> {
    match args.command {
        DataCommand::Tokenize(args) => tokenize(args, settings),
        DataCommand::Fetch(args) => fetch(args, settings),
        DataCommand::Inspect { dir } => {
            let summary = data::inspect(&dir, 32)?;
            print(&summary, &dir, settings);
            Ok(Exit::Done)
        }
    }
}

fn tokenize(args: Tokenize, settings: &Settings) -> Result<Exit, Failure> {
    let mut s = TokenizeSettings::new(args.inputs, args.out.clone());
    s.globs = args.glob;
    s.text_key = args.text_key;
    s.seed = settings.seed.unwrap_or(0);
    s.force = settings.force;
    if let Some(file) = args.tokenizer {
        s.tokenizer = TokenizerChoice::File(file);
    } else if args.bytes {
        s.tokenizer = TokenizerChoice::Bytes;
    } else if let Some(n) = args.train_bpe {
        s.tokenizer = TokenizerChoice::TrainBpe(n);
    }
    if !args.val.is_empty() {
        s.val = ValSplit::Files(args.val);
    } else if let Some(fraction) = args.val_fraction {
        s.val = ValSplit::Fraction(fraction);
    }
    if settings.dry_run {
        let mut corpus = data::Corpus::find(&data::CorpusSettings {
            inputs: s.inputs.clone(),
            globs: s.globs.clone(),
            text_key: s.text_key.clone(),
        })?;
        let named = corpus.take_validation().filter(|_| matches!(s.val, ValSplit::Named(_)));
        let val_files = named.map_or(0, |validation| validation.files().len());
        let files = corpus.files().len() + val_files;
        if settings.json {
            let object = json!({
                "schema": 1, "dry_run": true, "files": files, "validation_files": val_files, "out": args.out
            });
            output::json(&object);
        } else {
            let val =
                if val_files > 0 { format!(", {val_files} of them for validation,") } else { String::new() };
            output::line(&format!("would read {files} files{val} and write {}", args.out.display()));
        }
        return Ok(Exit::Done);
    }
    let bar = progress::bar(settings, 0, "{prefix:12} {bar:24} {bytes}/{total_bytes} {eta} left");
    let report = data::tokenize(&s, &mut |p: TokenizeProgress| {
        bar.set_prefix(match p.stage {
            TokenizeStage::Reading => "reading",
            TokenizeStage::TrainingBpe => "training BPE",
            TokenizeStage::Encoding => "encoding",
        });
        if let Some(total) = p.total_bytes {
            bar.set_length(total);
        }
        bar.set_position(p.bytes);
    })?;
    bar.finish_and_clear();
    if !settings.quiet {
        for skipped in report.skipped.iter().take(if settings.verbose { usize::MAX } else { 3 }) {
            output::note(&format!("skipped {}: {:?}", skipped.path.display(), skipped.reason));
        }
        if report.skipped.len() > 3 && !settings.verbose {
            output::note(&format!("skipped {} files in all; -v lists them", report.skipped.len()));
        }
        if report.null_rows > 0 {
            output::note(&format!("left out {} rows without a text (null)", report.null_rows));
        }
        if let [first, ..] = &report.other_splits[..] {
            let (first, count) = (first.display(), report.other_splits.len());
            output::note(&format!(
                "left out {count} files of other splits, {first} for one; name them to read them"
            ));
        }
        if let SplitOutcome::WithinDocument { .. } = report.split {
            output::note("there is one document only: its last part was kept for validation");
        }
    }
    print(&report.summary, &args.out, settings);
    Ok(Exit::Done)
}

#[cfg(not(feature = "hub"))]
fn fetch(args: Fetch, _: &Settings) -> Result<Exit, Failure> {
    Err(Failure::input(
        format!("{} cannot be downloaded: this build has no network", args.repo),
        format!(
            "build with `cargo install --path crates/evenkeel-cli --features hub`, or download it with `huggingface-cli download --repo-type dataset {} --local-dir DIR`",
            args.repo
        ),
    ))
}

#[cfg(feature = "hub")]
fn fetch(args: Fetch, settings: &Settings) -> Result<Exit, Failure> {
    use evenkeel::checkpoint::hub::{self, datasets};
    let Some(name) = hub::parse(&args.repo) else {
        return Err(Failure::input(
            format!("`{}` is no dataset on the Hub: expected OWNER/NAME or OWNER/NAME@REVISION", args.repo),
            "a folder on this machine needs no download: name it to `evenkeel data tokenize`",
        ));
    };
    let selection = datasets::Selection { split: args.split, files: args.files, max_bytes: args.max_bytes };
    let mut told = |file: &str| {
        if !settings.quiet {
            output::note(&format!("downloading {file}"));
        }
    };
    let failed = evenkeel::checkpoint::CheckpointError::from;
    let fetched = datasets::fetch(&name, &hub::cache_dir(), &selection, &mut told).map_err(failed)?;
    let folder = args.out.as_deref().unwrap_or(&fetched.snapshot);
    if args.out.is_some() {
        datasets::lay_out(&name, &fetched, folder).map_err(failed)?;
    }
    if settings.json {
        output::json(&json!({
            "schema": 1, "path": folder, "files": fetched.files, "bytes": fetched.bytes, "left": fetched.left
        }));
        return Ok(Exit::Done);
    }
    if fetched.left > 0 && !settings.quiet {
        output::note(&format!("left {} files for --max-bytes", fetched.left));
    }
    output::line(&folder.display().to_string());
    Ok(Exit::Done)
}

fn print(summary: &DatasetSummary, dir: &Path, settings: &Settings) {
    if settings.json {
        output::json(summary);
        return;
    }
    output::line(&format!("{}", dir.display()));
    for (name, split) in [("train", &summary.train), ("val", &summary.val)] {
        output::line(&format!("{name:10} {} tokens in {} shards", split.tokens, split.shards));
    }
    if let Some(vocab) = summary.vocab {
        output::line(&format!("vocabulary {vocab}"));
    }
}
