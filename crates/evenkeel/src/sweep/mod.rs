//! Many runs from one file: every combination of settings, each with several seeds.
//!
//! [`mod@file`] says what is run, [`mod@key`] names a run by everything that determines it, [`record`] keeps what came of it in one
//! small file, [`figure`] are the numbers that can be asked of a record, and [`summary`] is the table over seeds. A run that
//! has a record is never run again, wherever the record was made.
//!
//! ```toml
//! title = "Rates"
//! seeds = [0, 1, 2]
//!
//! [run]                                    # a configuration, as in `evenkeel train`
//! data.path = "data/rust"
//! model.preset = "pre_ln"
//!
//! [grid]                                   # every combination of these ...
//! optim.lr_peak = [1e-3, 3e-3]
//!
//! [[variant]]                              # ... with each of these
//! name = "Pre-LN"
//!
//! [[variant]]
//! name = "OP"
//! set = { model.preset = "op" }
//! ```

mod error;
pub mod figure;
pub mod file;
pub mod key;
pub mod page;
pub mod plot;
pub mod record;
pub mod summary;

pub use error::SweepError;
pub use figure::Figure;
pub use file::{Cell, Sweep, shard};
pub use key::key;
pub use plot::Plot;
pub use record::{Measure, Quantised, Records, RunRecord, Status};
pub use summary::{Estimate, Group, groups};
