//! The binary `evenkeel`: arguments → settings → library call → printer.
//!
//! stdout carries the result and nothing else; progress and logs go to stderr. Exit codes: 0 done; 1 it ran and
//! the verdict is no; 2 bad usage, configuration or input; 130 after an interruption.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod output;
mod progress;
mod settings;
mod signals;

use clap::Parser;
use evenkeel_kernels::memory;
use failure::{Exit, Failure};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::ALLOCATOR;

fn main() -> ExitCode {
    memory::keep_pages();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => return failure::usage(&e),
    };
    match run(args) {
        Ok(exit) => exit.code(),
        Err(failure) => failure.report(),
    }
}

fn run(args: args::Args) -> Result<Exit, Failure> {
    let settings = settings::Settings::new(args.common)?;
    rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global().map_err(|e| {
        Failure::input(format!("cannot start {} threads: {e}", settings.threads), "use fewer --threads")
    })?;
    let configured = matches!(
        &args.command,
        args::Command::Train(_)
            | args::Command::Config(_)
            | args::Command::Sweep(_)
            | args::Command::Experiment(_)
    );
    if settings.has_set && !configured {
        return Err(Failure::input(
            "--set changes a configuration, and this command reads none",
            "leave --set out; it belongs to `train`, `sweep`, `experiment` and `config`",
        ));
    }
    match args.command {
        args::Command::Quickstart(a) => commands::quickstart::run(a, &settings),
        args::Command::Data(a) => commands::data::run(a, &settings),
        args::Command::Train(a) => commands::train::run(a, &settings),
        args::Command::Eval(a) => commands::eval::run(a, &settings),
        args::Command::Inspect(a) => commands::inspect::run(a, &settings),
        args::Command::Report(a) => commands::report::run(a, &settings),
        args::Command::Sweep(a) => commands::sweep::run(a, &settings),
        args::Command::Experiment(a) => commands::experiment::run(a, &settings),
        args::Command::Cell(a) => commands::sweep::cell::run(a, &settings),
        args::Command::Compare(a) => commands::compare::run(a, &settings),
        args::Command::Quantize(a) => commands::quantize::run(a, &settings),
        args::Command::Sample(a) => commands::sample::run(a, &settings),
        args::Command::Export(a) => commands::export::run(a, &settings),
        args::Command::Bench(a) => commands::bench::run(a, &settings),
        args::Command::Doctor => commands::doctor::run(&settings),
        args::Command::Config(a) => commands::config::run(a, &settings),
        args::Command::Completions { shell } => commands::completions::run(shell, &settings),
        args::Command::Man { dir } => commands::man::run(&dir, &settings),
    }
}
