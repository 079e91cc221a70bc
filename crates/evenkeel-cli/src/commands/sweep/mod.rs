//! `sweep FILE`: every combination of settings in a file, under several seeds.
//!
//! Everything is kept below `--out`: `runs/KEY/`, `records/KEY.json`, and the report. A run that has a record is done; one
//! that was cut off goes on from its last checkpoint. The same command goes on where an earlier one was stopped.

pub(crate) mod cell;
pub(crate) mod plan;
pub(crate) mod runner;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use crate::signals;
use evenkeel::checkpoint::CheckpointError;
use evenkeel::sweep::page::SweepPage;
use evenkeel::sweep::{Figure, Records, Sweep, groups, summary};
use runner::{Done, Runner};
use std::path::Path;

pub(crate) fn run(args: args::sweep::Sweep, settings: &Settings) -> Result<Exit, Failure> {
    let mut sweep = Sweep::load(&args.file, &settings.overrides)?;
    if settings.seed.is_some() {
        return Err(Failure::input(
            "--seed has no meaning for a sweep, whose file says its seeds",
            "write seeds = [0, 1, 2] in the file",
        ));
    }
    let part = runner::shard(args.jobs.shard.as_deref())?;
    let jobs = runner::jobs(args.jobs.jobs.or(sweep.jobs).unwrap_or(1))?;
    let figures = figures(&args.figure, &sweep)?;
    let stem = args.file.file_stem().map_or("sweep".into(), |s| s.to_string_lossy().into_owned());
    let out = args.out.unwrap_or_else(|| Path::new("runs").join(&stem));
    let mine = evenkeel::sweep::shard(&sweep.cells, part);
    plan::check(&sweep.cells)?;
    let mut records = Records::open(&out.join("records"))?;
    if settings.dry_run {
        plan::print(&mine, &records, settings)?;
        return Ok(Exit::Done);
    }
    refuse_foreign(&out, settings)?;
    let control = signals::listen(settings.quiet, runner::STOPPING)?;
    let runner =
        Runner { out: &out, records: &out.join("records"), data: &|_| None, keep: true, jobs, settings };
    let done = runner.run(&mine, &mut records, &control)?;
    if done == Done::Interrupted {
        return Ok(Exit::Interrupted);
    }
    // What other machines have added is shown too, and what nobody has made yet is not.
    for cell in &sweep.cells {
        records.reread(&cell.key)?;
    }
    sweep.cells.retain(|c| records.get(&c.key).is_some());
    let groups = groups(&sweep.cells, &records);
    let page = SweepPage { title: &sweep.title, groups: &groups, figures: &figures };
    page.write(&out)?;
    if settings.json {
        output::json(&page.json());
    } else {
        output::result(&summary::table(&groups, &figures).to_text());
        output::line(&format!("page: {}", out.join("index.html").display()));
    }
    Ok(Exit::Done)
}

/// Only a new or empty folder, or one that a sweep has begun.
fn refuse_foreign(out: &Path, settings: &Settings) -> Result<(), Failure> {
    let io = |source| CheckpointError::Io { path: out.to_path_buf(), source };
    let occupied = out.exists() && std::fs::read_dir(out).map_err(io)?.next().is_some();
    if occupied && !out.join("records").is_dir() && !settings.force {
        return Err(Failure::input(
            format!("{} is not empty and holds no sweep", out.display()),
            "choose another folder with --out, or add --force to write into this one",
        ));
    }
    std::fs::create_dir_all(out.join("records")).map_err(io)?;
    Ok(())
}

fn figures(asked: &[String], sweep: &Sweep) -> Result<Vec<Figure>, Failure> {
    let mut names: Vec<String> = asked.to_vec();
    if names.is_empty() {
        names = ["val_loss", "accuracy", "kurtosis_peak", "kurtosis"].map(String::from).into();
        names.extend(sweep.measure.quantize.iter().map(|scheme| format!("{scheme}_cost")));
    }
    Ok(names.iter().map(|n| Figure::parse(n)).collect::<Result<_, _>>()?)
}
