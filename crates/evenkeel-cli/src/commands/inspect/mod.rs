//! `inspect MODEL...`.

mod inputs;
mod limits;
mod print;

use super::model;
use crate::args::{Gram, Inspect};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::progress;
use crate::settings::Settings;
use evenkeel::checkpoint;
use evenkeel::data::Tokenizer;
use evenkeel::inspect::{self, Options};
use evenkeel::metrics::GramMode;
use evenkeel::report::{
    self, Page, ReportError, Revision, Target, inspect_page, revisions_chart, revisions_page,
};
use inputs::Inputs;
use limits::{Limit, verdict};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Inspect, settings: &Settings) -> Result<Exit, Failure> {
    let limits = args.fail_above.iter().map(|t| Limit::parse(t)).collect::<Result<Vec<_>, _>>()?;
    if let [model] = &args.models[..] {
        let report = one(&args, model, settings)?.report;
        if settings.json {
            output::json(&report);
        } else {
            print::report(&report);
        }
        if let Some(dir) = &args.report {
            let name = model.display().to_string();
            write_page(dir, &inspect_page(&report, &name), &report, None, settings)?;
        }
        return Ok(verdict(&limits, &report, ""));
    }
    if args.dump.is_some() {
        return Err(Failure::input("--dump is of one model", "name a single MODEL with --dump"));
    }
    let revisions =
        args.models.iter().map(|m| one(&args, m, settings)).collect::<Result<Vec<_>, Failure>>()?;
    let warnings = warnings(&revisions);
    for warning in &warnings {
        output::note(&format!("warning: {warning}"));
    }
    let summary = json!({
        "schema": 1,
        "models": revisions.iter().map(|r| json!({
            "name": r.name, "step": r.step, "digest": r.digest, "report": r.report,
        })).collect::<Vec<_>>(),
        "warnings": warnings,
    });
    if settings.json {
        output::json(&summary);
    } else {
        print::revisions(&revisions);
    }
    if let Some(dir) = &args.report {
        let figure = revisions_chart(&revisions, Target::File);
        write_page(dir, &revisions_page(&revisions, &warnings), &summary, Some(&figure), settings)?;
    }
    let exits = revisions.iter().map(|r| verdict(&limits, &r.report, &format!(" of {}", r.name)));
    Ok(if exits.collect::<Vec<_>>().contains(&Exit::No) { Exit::No } else { Exit::Done })
}

/// Inspects one model.
fn one(args: &Inspect, path: &Path, settings: &Settings) -> Result<Revision, Failure> {
    let on_disk = model::open(path, settings)?;
    let config = on_disk.config();
    let mode = match args.gram {
        Gram::Batch => GramMode::Batch,
        Gram::Sequence => GramMode::Sequence,
    };
    let with = |options: Options| Options { top_k: args.top_k, ..options }.with_gram(mode);
    let inputs = Inputs::open(args, &on_disk)?;
    let dump = args.dump.as_ref().filter(|_| !settings.dry_run);
    let bar = progress::bar(settings, 0, "{prefix} {bar:24} {pos}/{len} · {eta} left");
    bar.set_prefix(format!("inspecting {}", path.display()));
    let mut told = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut report = on_disk.with_parts(|parts| {
        let report = match &inputs {
            Inputs::Batch(input) => inspect::inspect(
                parts,
                std::iter::once(Ok(input.clone())),
                &with(Options::exact()),
                &mut told,
            )?,
            Inputs::Stream(stream) => {
                inspect::inspect(parts, stream.batches(args.tokens)?, &with(Options::stream()), &mut told)?
            }
        };
        if let (Some(path), Some(first)) = (dump, inputs.first(args.tokens)?) {
            inspect::dump(parts, &first, path)?;
        }
        Ok::<_, Failure>(report)
    })??;
    bar.finish_and_clear();
    if !config.reads_images()
        && let Ok(Some(tokenizer)) = Tokenizer::load_folder(on_disk.folder())
    {
        for culprit in report.int8.iter_mut().filter_map(|v| v.culprit.as_mut()) {
            culprit.text = culprit.token.map(|token| tokenizer.decode(&[token]));
        }
    }
    Ok(Revision {
        name: path.display().to_string(),
        step: step_of(path).or_else(|| step_of(on_disk.folder())),
        // Of one model nobody asks; it takes a reading of all weights.
        digest: if args.models.len() > 1 { format!("{:016x}", on_disk.digest()) } else { String::new() },
        report,
    })
}

/// The training step in a name: `step-000500`, `model@step1000`, `checkpoint-500`.
fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (before, digits) = name.split_at(name.len() - digits);
    let before = before.trim_end_matches(['-', '_']);
    let counted = before.ends_with("step") || before.ends_with("checkpoint");
    digits.parse().ok().filter(|_| counted)
}

/// What should make a reader of the curve stop: the same weights under two names, models of different shapes.
fn warnings(revisions: &[Revision]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (i, b) in revisions.iter().enumerate() {
        if let Some(a) = revisions[..i].iter().find(|a| a.digest == b.digest) {
            warnings.push(format!("{} and {} have identical weights.", a.name, b.name));
        }
    }
    let shape = |r: &Revision| (r.report.model.depth, r.report.model.width);
    if let Some(first) = revisions.first()
        && let Some(other) = revisions.iter().find(|r| shape(r) != shape(first))
    {
        warnings.push(format!("{} and {} differ in depth or width.", first.name, other.name));
    }
    warnings
}

/// Writes a page, its numbers, and a figure of its own if there is one.
fn write_page(
    dir: &Path,
    page: &Page,
    summary: &impl Serialize,
    figure: Option<&str>,
    settings: &Settings,
) -> Result<(), Failure> {
    let place = dir.join("index.html");
    if settings.dry_run {
        output::note(&format!("would write {}", place.display()));
        return Ok(());
    }
    let write = |source| ReportError::Write { path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(write)?;
    report::write_file(&place, &page.render())?;
    checkpoint::files::write_json(&dir.join("summary.json"), summary)?;
    if let Some(figure) = figure {
        report::write_file(&dir.join("kurtosis.svg"), figure)?;
    }
    output::note(&format!("page: {}", place.display()));
    Ok(())
}
