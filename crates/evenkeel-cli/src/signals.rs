//! Ctrl-C and SIGTERM: once asks the work to stop after its step, twice stops at once.

use crate::failure::Failure;
use crate::output;
use evenkeel::train::Control;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Listens for the rest of the program's life.
pub(crate) fn listen(quiet: bool) -> Result<Control, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if !quiet {
            output::note("stopping after this step and writing a checkpoint; once more stops at once");
        }
    })
    .map_err(|e| Failure::input(format!("cannot listen for Ctrl-C: {e}"), "run it in an ordinary shell"))?;
    Ok(Control { stop })
}
