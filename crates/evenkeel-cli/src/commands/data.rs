//! `data tokenize` and `data inspect`.

use crate::args::{Data, DataCommand, Tokenize};
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
        let corpus = data::Corpus::find(&data::CorpusSettings {
            inputs: s.inputs.clone(),
            globs: s.globs.clone(),
            text_key: s.text_key.clone(),
        })?;
        let files = corpus.files().len();
        if settings.json {
            output::json(&json!({"schema": 1, "dry_run": true, "files": files, "out": args.out}));
        } else {
            output::line(&format!("would read {files} files and write {}", args.out.display()));
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
        if let SplitOutcome::WithinDocument { .. } = report.split {
            output::note("there is one document only: its last part was kept for validation");
        }
    }
    print(&report.summary, &args.out, settings);
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
