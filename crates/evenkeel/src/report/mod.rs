//! Turning measurements into something to read: tables, charts, pages.
//!
//! Everything here works from plain numbers and from the files of a run directory; nothing in it
//! touches a tensor. The order of reading is the order of dependence:
//!
//! * [`svg`]: escaping, measuring text, and writing SVG elements;
//! * [`scale`]: linear and logarithmic axes, their ticks and labels;
//! * [`palette`]: colours, dashes and markers, and the style sheet of every chart;
//! * [`chart`], [`multiples`], [`bars`], [`stacked`], [`heat`], [`heat_grid`]: the kinds of figure, of which
//!   the first two share their `panel` (plot) and `legend`; `ticks` thins labels out;
//! * [`table`]: a table as HTML, as plain text and as Markdown;
//! * [`html`]: one self-contained page;
//! * [`run`]: the logs of a run directory;
//! * [`compare`]: the page about one or more runs, with `settings` (which of them differ in their seed only), `plate` (a figure
//!   that is a file too), `curve_figures`, `site_figures`, `moment_figures`, `update_figures`, `quantised` and [`run_page()`]
//!   as its parts;
//! * [`inspect_page()`] about a model, with `int8_section`, `stream_section`, `strips` and
//!   `attention_section` as its parts, and [`revisions_page`] about several revisions of one;
//! * [`quantize_page()`] about a quantised model, with `cost_section` and `error_maps` as its parts;
//! * `figures`: the figures that the pages about runs have in common;
//! * [`quickstart`]: the summary and page of the quickstart, whose sentences [`findings`] works
//!   out from the numbers.
//!
//! A page is written with [`write_file`], so that it is either the old one or the new one and
//! never half of it.

mod attention_section;
pub mod bars;
pub mod chart;
pub mod compare;
mod cost_section;
mod curve_figures;
mod error_maps;
mod figures;
pub mod findings;
pub mod heat;
pub mod heat_grid;
pub mod html;
pub mod inspect_page;
mod int8_section;
mod legend;
mod moment_figures;
pub mod multiples;
pub mod palette;
mod panel;
mod plate;
pub mod quantised;
pub mod quantize_page;
pub mod quickstart;
pub mod revisions;
pub mod run;
pub mod run_page;
pub mod scale;
pub(crate) mod settings;
mod site_figures;
pub mod stacked;
mod stream_section;
mod strips;
pub mod svg;
pub mod table;
mod ticks;
mod update_figures;

pub use bars::{Bar, BarChart, BarGroup};
pub use chart::{Draw, Legend, LineChart, Point, Series};
pub use heat::{Columns, HeatMap, HeatRow};
pub use heat_grid::HeatGrid;
pub use html::{Block, Figure, Page, Section};
pub use inspect_page::inspect_page;
pub use multiples::SmallMultiples;
pub use palette::{Colour, Dash, Marker, Style};
pub use quantised::Quantised;
pub use quantize_page::{quantize_figures, quantize_page, write_quantize_report};
pub use quickstart::{Corpus, QuickstartContext, QuickstartRun, QuickstartSummary, quickstart_page};
pub use revisions::{Revision, revisions_chart, revisions_page};
pub use run::{Curve, Firing, MetricLine, MomentLine, RunCurves, StatLine, UpdateLine, read_run};
pub use run_page::run_page;
pub use scale::Scale;
pub use stacked::{Part, StackedBar, StackedBars};
pub use svg::Target;
pub use table::{Align, Table};

use std::path::{Path, PathBuf};

/// How making a report can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder holds no `metrics.jsonl`, so it is not a run directory.
    #[error("{} holds no metrics.jsonl, which every run directory has", dir.display())]
    NotARun {
        /// The folder that was given.
        dir: PathBuf,
    },
    /// A file could not be read.
    #[error("{} could not be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A line of a JSON-lines file is not the object it should be, and it is not a torn last line.
    #[error("{} line {line}: expected {expected}, but {reason}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What a line of this file holds.
        expected: &'static str,
        /// What the parser found instead.
        reason: String,
    },
    /// A summary file is not the JSON it should be.
    #[error("{} is not a quickstart summary: {reason}", path.display())]
    BadSummary {
        /// The file.
        path: PathBuf,
        /// What the parser found instead.
        reason: String,
    },
    /// A summary file was written by a version whose schema this one does not know.
    #[error("{} has \"schema\": {found}, and this version reads {expected}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The schema in the file.
        found: u32,
        /// The schema this version reads.
        expected: u32,
    },
    /// A report could not be written.
    #[error("{} could not be written: {source}", path.display())]
    Write {
        /// The file that should have appeared.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl crate::error::Hint for ReportError {
    fn hint(&self) -> String {
        match self {
            ReportError::NotARun { .. } => {
                "give the folder that `evenkeel train` wrote, the one with run.json in it".into()
            }
            ReportError::Read { .. } => "check that the file exists and that you may read it".into(),
            ReportError::BadLine { line, .. } => format!(
                "the file was changed after it was written, or two runs wrote to it: look at line \
                 {line}, and remove it if it is rubbish"
            ),
            ReportError::BadSummary { .. } => {
                "run `evenkeel quickstart` again, or give the summary.json that it wrote".into()
            }
            ReportError::Schema { .. } => "read it with the version of evenkeel that wrote it".into(),
            ReportError::Write { .. } => {
                "check that the folder exists, that you may write to it, and that the disk is not \
                 full"
                    .into()
            }
        }
    }
}

/// Writes `text` to `path` by writing beside it, syncing and renaming: a reader sees the old
/// file or the new one, whole. The folder must exist.
///
/// # Errors
/// [`ReportError::Write`] with the path that should have appeared.
pub fn write_file(path: &Path, text: &str) -> Result<(), ReportError> {
    crate::files::write(path, text.as_bytes())
        .map_err(|source| ReportError::Write { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Hint;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.html");
        write_file(&path, "old").unwrap();
        write_file(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn writing_into_a_missing_folder_names_the_file_and_has_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("index.html");
        let error = write_file(&path, "x").unwrap_err();
        assert!(error.to_string().contains("index.html"), "{error}");
        assert!(!error.hint().is_empty());
    }
}
