//! `completions SHELL`: the script that a shell sources, made from the arguments themselves.

use crate::args::Args;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde_json::json;

pub(crate) fn run(shell: Shell, settings: &Settings) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    generate(shell, &mut Args::command(), "evenkeel", &mut script);
    let script = String::from_utf8_lossy(&script);
    if settings.json {
        output::json(&json!({"schema": 1, "shell": shell.to_string(), "script": script}));
    } else {
        output::result(&script);
    }
    Ok(Exit::Done)
}
