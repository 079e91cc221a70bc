//! Ctrl-C and SIGTERM: once asks the work to stop after its step, twice stops at once.

use crate::failure::Failure;
use crate::output;
use evenkeel::train::Control;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is said when training is asked to stop.
pub(crate) const TRAINING: &str = "stopping after this step and writing a checkpoint";

/// Listens for the rest of the program's life; `stopping` is said at the first signal.
pub(crate) fn listen(quiet: bool, stopping: &'static str) -> Result<Control, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if !quiet {
            output::note(&format!("{stopping}; once more stops at once"));
        }
    })
    .map_err(|e| Failure::input(format!("cannot listen for Ctrl-C: {e}"), "run it in an ordinary shell"))?;
    Ok(Control { stop })
}
