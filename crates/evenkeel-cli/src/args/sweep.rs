//! What was typed after `sweep` and `experiment`, and what a sweep says to a run of its own.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How the runs of a sweep are made.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Runs at a time; each has its share of --threads
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Only part I of N, for machines that share the folders of records
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// TOML file: [run], [grid], [[variant]], seeds
    pub(crate) file: PathBuf,
    /// Folder for runs, records and the report; continues what is there [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) jobs: JobArgs,
    /// Columns of the table; repeatable [default: val_loss, kurtosis_peak, kurtosis, and the cost of each scheme]
    #[arg(long, value_name = "NAME")]
    pub(crate) figure: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Experiment {
    /// Its name, or a file of your own
    #[arg(required_unless_present_any = ["all", "list"], conflicts_with_all = ["all", "list"])]
    pub(crate) name: Option<String>,
    /// All of them, and docs/reproduction.md
    #[arg(long, conflicts_with = "list")]
    pub(crate) all: bool,
    /// Name them
    #[arg(long)]
    pub(crate) list: bool,
    /// Minutes on two cores, or the paper's size, tokens and data
    #[arg(long, value_enum, default_value_t = ExperimentScale::Small, value_name = "SCALE")]
    pub(crate) scale: ExperimentScale,
    /// Folder for data, runs and pages
    #[arg(long, default_value = "runs/experiments", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Folder of the records of finished runs
    #[arg(long, default_value = "experiments/runs", value_name = "DIR")]
    pub(crate) records: PathBuf,
    /// With --all: the page to write, its pictures beside it in img/reproduction
    #[arg(long, default_value = "docs/reproduction.md", value_name = "FILE")]
    pub(crate) page: PathBuf,
    /// Keep the checkpoints of finished runs
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) jobs: JobArgs,
}

/// How large the runs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExperimentScale {
    /// Minutes
    Small,
    /// The paper's
    Full,
}

#[derive(Debug, Args)]
pub(crate) struct Cell {
    /// Folder that holds cell.json
    pub(crate) dir: PathBuf,
}
