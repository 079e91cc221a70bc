//! `experiment NAME`: runs what shows a finding of the paper, judges it, and prints paper, measured, verdict.
//!
//! A run is made once, whichever experiments it belongs to: `--records` holds what came of each. The folder of a clone holds
//! those of the repository, so that there only what is missing is trained.

use super::quickstart::corpus;
use super::sweep::plan;
use super::sweep::runner::{self, Done, Runner};
use crate::args;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use crate::signals;
use evenkeel::checkpoint::CheckpointError;
use evenkeel::experiment::file::distinct;
use evenkeel::experiment::page::{Result as Judged, reproduction};
use evenkeel::experiment::{Experiment, Scale, library};
use evenkeel::report::write_file;
use evenkeel::sweep::{Records, Sweep, groups, shard};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `data.path` of the small experiments on text: made here, wherever it lies.
const SMALL_TEXT: &str = "small-text";

pub(crate) fn run(args: args::sweep::Experiment, settings: &Settings) -> Result<Exit, Failure> {
    if args.list {
        list(settings)?;
        return Ok(Exit::Done);
    }
    let scale = match args.scale {
        args::sweep::ExperimentScale::Small => Scale::Small,
        args::sweep::ExperimentScale::Full => Scale::Full,
    };
    let experiments = match &args.name {
        None => library::all()?,
        Some(name) if name.ends_with(".toml") => vec![Experiment::load(Path::new(name))?],
        Some(name) => vec![library::experiment(name)?],
    };
    if settings.seed.is_some() {
        return Err(Failure::input(
            "--seed has no meaning for an experiment, which says its seeds",
            "leave it out",
        ));
    }
    let sweeps: Vec<Sweep> =
        experiments.iter().map(|e| e.sweep(scale, &settings.overrides)).collect::<Result<_, _>>()?;
    let all = distinct(sweeps.iter().flat_map(|s| &s.cells));
    plan::check(&all)?;
    let mine = shard(&all, runner::shard(args.jobs.shard.as_deref())?);
    // Small models keep one core busy and no more.
    let usual = if scale == Scale::Small { settings.threads.min(runner::MOST_JOBS) } else { 1 };
    let jobs = runner::jobs(args.jobs.jobs.unwrap_or(usual))?;
    let mut records = Records::open(&args.records)?;
    if settings.dry_run {
        plan::print(&mine, &records, settings)?;
        return Ok(Exit::Done);
    }
    let control = signals::listen(settings.quiet, runner::STOPPING)?;
    let missing = mine.iter().filter(|c| records.get(&c.key).is_none());
    let small = args.out.join("data").join(SMALL_TEXT);
    if missing.clone().any(|c| c.config.data.path == SMALL_TEXT) {
        corpus::tokenised(&corpus::read(None)?, &small)?;
    }
    let data = |path: &str| -> Option<PathBuf> { (path == SMALL_TEXT).then(|| small.clone()) };
    let runner =
        Runner { out: &args.out, records: &args.records, data: &data, keep: args.keep, jobs, settings };
    if runner.run(&mine, &mut records, &control)? == Done::Interrupted {
        return Ok(Exit::Interrupted);
    }
    let mut results = Vec::new();
    for (experiment, sweep) in experiments.iter().zip(&sweeps) {
        results.push(Judged::new(experiment, groups(&sweep.cells, &records))?);
    }
    let page = write_pages(&results, scale, &args)?;
    print(&results, &page, settings);
    Ok(Exit::Done)
}

/// A page for each, and for all of them docs/reproduction.md.
fn write_pages(results: &[Judged], scale: Scale, args: &args::sweep::Experiment) -> Result<PathBuf, Failure> {
    let folder = |path: &Path| {
        let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
        std::fs::create_dir_all(path).map_err(io)
    };
    let mut last = args.out.clone();
    for result in results {
        let dir = args.out.join(&result.experiment.name);
        folder(&dir)?;
        for (name, picture) in result.pictures() {
            write_file(&dir.join(name), &picture)?;
        }
        last = dir.join("index.html");
        write_file(&last, &result.page(scale))?;
    }
    if !args.all {
        return Ok(last);
    }
    let pictures = "img/reproduction";
    let beside = args.page.parent().unwrap_or(Path::new("")).join(pictures);
    folder(&beside)?;
    for (name, picture) in results.iter().flat_map(Judged::pictures) {
        write_file(&beside.join(name), &picture)?;
    }
    write_file(&args.page, &reproduction(results, scale, pictures))?;
    Ok(args.page.clone())
}

fn print(results: &[Judged], page: &Path, settings: &Settings) {
    if settings.json {
        let experiments: Vec<_> = results
            .iter()
            .map(|r| json!({"name": r.experiment.name, "title": r.experiment.title, "claims": r.judgements}))
            .collect();
        output::json(&json!({"schema": 1, "page": page, "experiments": experiments}));
        return;
    }
    for result in results {
        output::result(&result.to_text());
    }
    output::line(&format!("page: {}", page.display()));
}

fn list(settings: &Settings) -> Result<(), Failure> {
    let all = library::all()?;
    if settings.json {
        let rows: Vec<_> =
            all.iter().map(|e| json!({"name": e.name, "title": e.title, "section": e.section})).collect();
        output::json(&json!({"schema": 1, "experiments": rows}));
    } else {
        all.iter().for_each(|e| output::line(&format!("{:20} {}", e.name, e.title)));
    }
    Ok(())
}
