//! The paper's findings as experiments: which runs show each, what the paper found, and a judge that compares.
//!
//! [`mod@file`] reads an experiment: groups of runs at two scales, and claims. A [`claim`] is a sentence with a rule that can be
//! checked on records ([`crate::sweep::RunRecord`]). [`library`] holds the experiments of the repository, [`page`] writes the
//! pages. Runs of several experiments that are the same run are made once, since a record is found by its key.

pub mod claim;
mod error;
pub mod file;
pub mod library;
pub mod page;

pub use claim::{Claim, Judgement, Verdict};
pub use error::ExperimentError;
pub use file::{Experiment, Scale};
