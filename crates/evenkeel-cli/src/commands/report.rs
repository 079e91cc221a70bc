//! `report RUN... --out DIR`.

use crate::args::Report;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::report::ReportError;
use evenkeel::report::compare::Comparison;
use evenkeel::report::run::read_run;
use serde_json::json;

pub(crate) fn run(args: Report, settings: &Settings) -> Result<Exit, Failure> {
    let runs = args.runs.iter().map(|dir| read_run(dir)).collect::<Result<Vec<_>, ReportError>>()?;
    let comparison = Comparison::new(runs);
    let page = args.out.join("index.html");
    if !settings.dry_run {
        // A report has both, a run's own one too.
        let earlier = page.is_file() && args.out.join("summary.json").is_file();
        let known = earlier || !args.out.exists();
        let empty = || std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_none());
        if !(known || empty() || settings.force) {
            return Err(Failure::input(
                format!("{} exists and is not the folder of an earlier report", args.out.display()),
                "name a new folder, or add --force to write into this one",
            ));
        }
        let write = |source| ReportError::Write { path: args.out.clone(), source };
        std::fs::create_dir_all(&args.out).map_err(write)?;
        comparison.write(&args.out)?;
    }
    if settings.json {
        output::json(&json!({"schema": 1, "page": page, "runs": comparison.summary()}));
    } else {
        output::result(&comparison.table().to_text());
        output::line(&format!("page: {}", page.display()));
    }
    Ok(Exit::Done)
}
