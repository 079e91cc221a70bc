//! `report RUN... --out DIR`.

use crate::args::Report;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::report::ReportError;
use evenkeel::report::compare::Comparison;
use evenkeel::report::run::read_run;
use serde_json::json;
use std::path::Path;

pub(crate) fn run(args: Report, settings: &Settings) -> Result<Exit, Failure> {
    let runs = args.runs.iter().map(|dir| read_run(dir)).collect::<Result<Vec<_>, ReportError>>()?;
    let comparison = Comparison::new(runs);
    let page = args.out.join("index.html");
    if !settings.dry_run {
        check(&args.out, settings)?;
        write(&comparison, &args.out)?;
    }
    if settings.json {
        output::json(&json!({"schema": 1, "page": page, "runs": comparison.summary()}));
    } else {
        output::result(&comparison.table().to_text());
        output::line(&format!("page: {}", page.display()));
    }
    Ok(Exit::Done)
}

/// Refuses a folder that is not empty and holds no report.
pub(super) fn check(out: &Path, settings: &Settings) -> Result<(), Failure> {
    // A report has both, a run's own one too.
    let earlier = out.join("index.html").is_file() && out.join("summary.json").is_file();
    let known = earlier || !out.exists();
    let empty = || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if known || empty() || settings.force {
        return Ok(());
    }
    Err(Failure::input(
        format!("{} exists and is not the folder of an earlier report", out.display()),
        "name a new folder, or add --force to write into this one",
    ))
}

/// Writes a report, making its folder.
pub(super) fn write(comparison: &Comparison, out: &Path) -> Result<(), Failure> {
    let failed = |source| ReportError::Write { path: out.to_path_buf(), source };
    std::fs::create_dir_all(out).map_err(failed)?;
    Ok(comparison.write(out)?)
}
