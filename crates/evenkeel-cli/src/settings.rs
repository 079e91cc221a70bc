//! What the common options mean, settled once.

use crate::args::{Color, Common};
use crate::failure::Failure;
use evenkeel::config::Override;
use std::io::IsTerminal;

/// More threads than any machine has; beyond it a typing error only exhausts memory.
const MAX_THREADS: usize = 4096;

/// The common options, resolved and then immutable.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) overrides: Vec<Override>,
    /// Whether any `--set` was typed.
    pub(crate) has_set: bool,
    pub(crate) threads: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) json: bool,
    pub(crate) dry_run: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) bars: bool,
    pub(crate) force: bool,
}

impl Settings {
    pub(crate) fn new(common: Common) -> Result<Self, Failure> {
        if common.device != "cpu" {
            return Err(Failure::input(
                format!(
                    "this version computes on the CPU only, so --device {} cannot be used",
                    common.device
                ),
                "leave --device out, or give --device cpu",
            ));
        }
        let threads = match common.threads {
            Some(0) => {
                return Err(Failure::input("--threads must be at least 1", "leave it out to use all cores"));
            }
            Some(n) if n > MAX_THREADS => {
                return Err(Failure::input(
                    format!("--threads must be at most {MAX_THREADS}"),
                    "leave it out to use all cores",
                ));
            }
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        match common.color {
            Color::Auto => {}
            Color::Always => anstream::ColorChoice::Always.write_global(),
            Color::Never => anstream::ColorChoice::Never.write_global(),
        }
        let mut overrides = Override::from_environment(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        );
        for text in &common.set {
            overrides.push(Override::parse(text)?);
        }
        if let Some(seed) = common.seed {
            overrides.push(Override::new("train.seed", &seed.to_string()));
        }
        Ok(Self {
            overrides,
            has_set: !common.set.is_empty(),
            threads,
            seed: common.seed,
            json: common.json,
            dry_run: common.dry_run,
            quiet: common.quiet,
            verbose: common.verbose,
            bars: !common.no_progress && !common.quiet && std::io::stderr().is_terminal(),
            force: common.force,
        })
    }
}
