//! `man DIR`: evenkeel.1, evenkeel-data-tokenize.1, ..., made from the arguments themselves.

use crate::args::Args;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use evenkeel::report::{ReportError, write_file};
use serde_json::json;
use std::path::Path;

pub(crate) fn run(dir: &Path, settings: &Settings) -> Result<Exit, Failure> {
    let mut program = Args::command().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    collect(&program, &mut pages)?;
    if !settings.dry_run {
        let write = |source| ReportError::Write { path: dir.to_path_buf(), source };
        std::fs::create_dir_all(dir).map_err(write)?;
        for (name, text) in &pages {
            write_file(&dir.join(name), text)?;
        }
    }
    let names: Vec<&str> = pages.iter().map(|page| page.0.as_str()).collect();
    if settings.json {
        output::json(&json!({"schema": 1, "dir": dir, "pages": names}));
    } else {
        output::line(&format!(
            "{} pages; read one with: man {}",
            names.len(),
            dir.join("evenkeel.1").display()
        ));
    }
    Ok(Exit::Done)
}

/// The pages of a command and of those below it: names of files, and texts.
fn collect(command: &Command, pages: &mut Vec<(String, String)>) -> Result<(), Failure> {
    // A page's footer names the program and its version, which commands below it do not carry.
    let page =
        Man::new(command.clone()).source(concat!("evenkeel ", env!("CARGO_PKG_VERSION"))).manual("evenkeel");
    let mut text = Vec::new();
    page.render(&mut text).map_err(|e| {
        Failure::input(format!("{} cannot be written: {e}", page.get_filename()), "report this as a defect")
    })?;
    pages.push((page.get_filename(), String::from_utf8_lossy(&text).into_owned()));
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| collect(below, pages))
}
