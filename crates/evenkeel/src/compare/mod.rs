//! Two runs, or two models, beside each other: what differs, by how much, and where it begins.
//!
//! [`compare_models`] reads the tensors of two folders one pair at a time. [`compare_runs`] reads configurations and logs, and
//! the weights of the newest checkpoints; two runs are the same if all of it is but the clock and the memory of the machine.
//! Both answer `first_difference` with a sentence, or nothing where there is none: bit for bit, or within a tolerance.
//!
//! ```no_run
//! # fn main() -> evenkeel::Result<()> {
//! let runs = evenkeel::compare::compare_runs("runs/a".as_ref(), "runs/b".as_ref(), 0.0)?;
//! match runs.first_difference() {
//!     None => println!("the same, bit for bit"),
//!     Some(what) => println!("not the same: {what}"),
//! }
//! # Ok(())
//! # }
//! ```

mod logs;
mod models;
mod runs;

pub use logs::{LogComparison, LogDifference};
pub use models::{ModelComparison, ShapeDifference, TensorDifference, compare_models};
pub use runs::{KeyDifference, RunsComparison, SiteDifference, compare_runs};

use std::path::Path;

/// Whether a folder is a run directory, with logs, and not only a model.
pub fn is_run(path: &Path) -> bool {
    path.join("metrics.jsonl").is_file()
}

/// What is not finite is undefined.
fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|v| v.is_finite())
}
