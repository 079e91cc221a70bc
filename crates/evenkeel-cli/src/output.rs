//! The only place that prints: results on stdout, everything else on stderr.
//!
//! A closed pipe is a quiet end: when the reader of stdout goes away the program exits 0 at once. Results are never
//! coloured, so they are written as they are; only stderr goes through anstream.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::io::Write;

/// Writes text to stdout.
pub(crate) fn result(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        // The reader went away.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => stop(&format!("the result cannot be written: {e}"), "check where stdout goes"),
    }
}

/// Writes one line to stdout.
pub(crate) fn line(text: &str) {
    result(&format!("{text}\n"));
}

/// Writes one JSON object to stdout.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(e) => stop(&format!("the result cannot be written as JSON: {e}"), "leave out --json"),
    }
}

/// Ends the program when a result cannot be delivered.
fn stop(message: &str, hint: &str) -> ! {
    error(message, hint);
    std::process::exit(2)
}

/// Writes one line to stderr; a stderr that is gone is ignored.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// One sentence, an empty line, a hint.
pub(crate) fn error(message: &str, hint: &str) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let cyan = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
    note(&format!("{red}error:{red:#} {message}\n\n{cyan}hint:{cyan:#} {hint}"));
}
