//! How the program ends: exit codes, and errors as one sentence with a hint.

use crate::output;
use evenkeel::{Error, Hint};
use std::process::ExitCode;

/// How a command that ran to its end judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// It ran, and the verdict is no.
    No,
    /// Interrupted.
    Interrupted,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Interrupted => 130,
        })
    }
}

/// Bad usage, configuration or input.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: String,
}

impl Failure {
    pub(crate) fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    /// Prints the sentence and the hint on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        output::error(&self.message, &self.hint);
        ExitCode::from(2)
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        let e: Error = e.into();
        Self { hint: e.hint(), message: e.to_string() }
    }
}

/// What clap could not parse; or the help and version that it was asked for.
pub(crate) fn usage(e: &clap::Error) -> ExitCode {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match e.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::SUCCESS,
        };
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let message = "a command is missing";
        return Failure::input(
            message,
            "`evenkeel --help` lists the commands, `evenkeel COMMAND --help` what each takes",
        )
        .report();
    }
    let rendered = e.to_string();
    let first: Vec<&str> = rendered.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
    let message = first.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_string();
    let suggestion =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(|kind| match e.get(kind) {
                Some(ContextValue::String(s)) => Some(s.clone()),
                Some(ContextValue::Strings(s)) => s.first().cloned(),
                _ => None,
            });
    let hint = match suggestion {
        Some(name) => format!("did you mean `{name}`?"),
        None => "add --help to the command to see what it takes".into(),
    };
    Failure::input(message, hint).report()
}
