//! The quickstart's summary and its page.
//!
//! `evenkeel quickstart` trains small models of two kinds, Pre-LN blocks with AdamW and OP blocks
//! with SOAP, on whatever text the machine has, measures their outlier features and quantises
//! them to int8. [`QuickstartSummary`] is the machine-readable result, [`quickstart_page`] the
//! one to look at. The sentences of the page come from [`findings`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ReportError;
use super::figures::{int8_figure, loss_figure, mean_figure, shown, site_figure};
use super::findings;
use super::html::{Block, Page, Section};
use super::run::RunCurves;
use super::table::{Align, Table, cell};

/// What the quickstart measured. Undefined figures are `null` in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuickstartSummary {
    /// Version of this format: [`QuickstartSummary::SCHEMA`].
    pub schema: u32,
    /// What was trained on.
    pub corpus: Corpus,
    /// The runs, in the order they are to be shown.
    pub runs: Vec<QuickstartRun>,
}

/// The text the quickstart found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    /// Number of files read.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// One trained, inspected and quantised model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuickstartRun {
    /// Name of the run; its curves have the same.
    pub name: String,
    /// Block preset, such as `pre` or `op`.
    pub block: String,
    /// Optimiser, such as `adamw` or `soap`.
    pub optimizer: String,
    /// Peak learning rate.
    pub lr_peak: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Trained parameters.
    pub parameters: u64,
    /// Training speed.
    pub tokens_per_sec: Option<f64>,
    /// Validation loss at the end, nats per token.
    pub val_loss: Option<f64>,
    /// Mean kurtosis over the residual stream at the end.
    pub kurtosis_mean: Option<f64>,
    /// Largest kurtosis over the residual stream at the end.
    pub kurtosis_max: Option<f64>,
    /// Site of the largest.
    pub kurtosis_max_site: Option<String>,
    /// Validation perplexity in float.
    pub float_perplexity: Option<f64>,
    /// Validation perplexity with int8 weights and activations.
    pub w8a8_perplexity: Option<f64>,
    /// The run directory, relative to the summary where possible.
    pub dir: String,
}

/// How the quickstart was made, as text for the end of the page. Empty entries are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuickstartContext {
    /// Version of evenkeel and its git revision.
    pub version: String,
    /// The command as typed.
    pub command: String,
    /// Processor, threads, operating system.
    pub host: String,
    /// The seed.
    pub seed: String,
    /// The model: blocks, width, heads, vocabulary, context.
    pub model: String,
    /// Which files the corpus is, beyond their number.
    pub corpus: String,
    /// How long it took or was given.
    pub minutes: String,
    /// When.
    pub date: String,
}

impl QuickstartSummary {
    /// The version of the format that this code reads and writes.
    pub const SCHEMA: u32 = 1;

    /// Reads a summary.
    ///
    /// # Errors
    /// [`ReportError::Read`], [`ReportError::BadSummary`], or [`ReportError::Schema`].
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let bytes =
            std::fs::read(path).map_err(|source| ReportError::Read { path: path.to_path_buf(), source })?;
        let summary: Self = serde_json::from_slice(&bytes).map_err(|error| ReportError::BadSummary {
            path: path.to_path_buf(),
            reason: error.to_string(),
        })?;
        if summary.schema != Self::SCHEMA {
            return Err(ReportError::Schema {
                path: path.to_path_buf(),
                found: summary.schema,
                expected: Self::SCHEMA,
            });
        }
        Ok(summary)
    }

    /// The main table, for the page as well as for a terminal.
    pub fn table(&self) -> Table {
        use Align::{Left, Right};
        let mut table = Table::new(&[
            ("run", Left),
            ("val. loss", Right),
            ("mean kurtosis", Right),
            ("worst", Right),
            ("at", Left),
            ("perplexity", Right),
            ("W8A8", Right),
            ("cost", Right),
        ]);
        for run in &self.runs {
            table.push([
                run.label(),
                cell(run.val_loss, |v| format!("{v:.3}")),
                cell(run.kurtosis_mean, findings::kurtosis),
                cell(run.kurtosis_max, findings::kurtosis),
                run.kurtosis_max_site.clone().unwrap_or_else(|| "–".into()),
                cell(run.float_perplexity, findings::perplexity),
                cell(run.w8a8_perplexity, findings::perplexity),
                cell(run.int8_cost(), findings::percent),
            ]);
        }
        table
    }
}

impl QuickstartRun {
    /// The curves of this run: those of its name, or else of its directory's.
    pub fn curves<'a>(&self, curves: &'a [RunCurves]) -> Option<&'a RunCurves> {
        let folder = Path::new(&self.dir).file_name().map(|n| n.to_string_lossy());
        curves.iter().find(|c| c.name == self.name).or_else(|| {
            let folder = folder.as_deref()?;
            curves.iter().find(|c| c.name == folder)
        })
    }
}

/// The page about a quickstart: headline, results, four figures, and how it was made. `runs` are
/// the curves as [`read_run`](super::read_run) reads them, matched by name; a run without curves
/// is in the table and missing from the figures.
pub fn quickstart_page(
    summary: &QuickstartSummary,
    runs: &[RunCurves],
    context: &QuickstartContext,
) -> String {
    let shown = shown(summary, runs);
    let section = |title: &str, blocks| Section { title: title.into(), blocks };
    Page {
        title: "Outlier features, trained and measured on this machine".into(),
        lead: findings::headline(summary),
        sections: vec![
            section(
                "Results",
                vec![
                    Block::Table(summary.table(), TABLE_CAPTION.into()),
                    Block::Text(findings::rates(summary, runs)),
                ],
            ),
            section("Training", vec![loss_figure(&shown)]),
            section(
                "Outlier features",
                vec![
                    Block::Markup(KURTOSIS.into()),
                    Block::Markup(KURTOSIS_FORMULA.into()),
                    Block::Markup(KURTOSIS_RANGE.into()),
                    site_figure(&shown),
                    mean_figure(&shown),
                ],
            ),
            section("Quantising to int8", vec![Block::Text(findings::int8(summary)), int8_figure(&shown)]),
            section("How this was made", provenance(summary, context)),
        ],
    }
    .render()
}

const TABLE_CAPTION: &str = "Every model at the end of its training. Kurtosis is taken over the \
residual stream (the embedding and what leaves each block), worst is the largest of these sites; \
perplexity is of the validation text, W8A8 the same with weights and activations in int8.";

const KURTOSIS: &str = "<p>An outlier feature is a channel whose activations are far larger than \
those of the others. It is measured by the kurtosis of the channels’ root mean squares: with \
<math><msub><mi>s</mi><mi>j</mi></msub></math> the root mean square of channel \
<math><mi>j</mi></math> over all tokens, and <math><mi>d</mi></math> channels (He et al., \
Eq 1),</p>";

const KURTOSIS_FORMULA: &str = "<div class=\"formula\"><math display=\"block\">\
<mi>Kurt</mi><mo>=</mo><mfrac><mrow><mfrac><mn>1</mn><mi>d</mi></mfrac>\
<munder><mo>∑</mo><mi>j</mi></munder><msubsup><mi>s</mi><mi>j</mi><mn>4</mn></msubsup></mrow>\
<msup><mrow><mo>(</mo><mfrac><mn>1</mn><mi>d</mi></mfrac><munder><mo>∑</mo><mi>j</mi></munder>\
<msubsup><mi>s</mi><mi>j</mi><mn>2</mn></msubsup><mo>)</mo></mrow><mn>2</mn></msup></mfrac>\
</math></div>";

const KURTOSIS_RANGE: &str = "<p>It lies between 1, when all channels are equally large, and \
<math><mi>d</mi></math>, when one channel holds everything. Since 1 is the floor, Figure 2 shows \
what lies above it.</p>";

fn provenance(summary: &QuickstartSummary, context: &QuickstartContext) -> Vec<Block> {
    let corpus =
        format!("{} files, {}", findings::count(summary.corpus.files), findings::bytes(summary.corpus.bytes));
    let corpus = match context.corpus.as_str() {
        "" => corpus,
        more => format!("{corpus}: {more}"),
    };
    let terms = [
        ("Version", context.version.as_str()),
        ("Date", &context.date),
        ("Host", &context.host),
        ("Time", &context.minutes),
        ("Corpus", &corpus),
        ("Model", &context.model),
        ("Seed", &context.seed),
    ];
    let terms = terms.iter().filter(|(_, text)| !text.is_empty());
    let terms = terms.map(|(name, text)| (name.to_string(), text.to_string()));
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("steps", Align::Right),
        ("parameters", Align::Right),
        ("tokens per second", Align::Right),
        ("folder", Align::Left),
    ]);
    for run in &summary.runs {
        table.push([
            run.label(),
            findings::count(run.steps),
            findings::count(run.parameters),
            cell(run.tokens_per_sec, |v| findings::count(v.round() as u64)),
            run.dir.clone(),
        ]);
    }
    let mut blocks = vec![Block::Terms(terms.collect())];
    if !context.command.is_empty() {
        blocks.push(Block::Text("The command:".into()));
        blocks.push(Block::Code(context.command.clone()));
    }
    let caption = "The runs and where their logs and checkpoints are.";
    blocks.push(Block::Table(table, caption.into()));
    blocks
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::run::{MetricLine, StatLine};

    /// Four runs as the quickstart makes them; the second and fourth at the larger rate.
    pub(in crate::report) fn summary() -> QuickstartSummary {
        let run = |name: &str, block: &str, optimizer: &str, lr_peak, mean, max, int8| QuickstartRun {
            name: name.into(),
            block: block.into(),
            optimizer: optimizer.into(),
            lr_peak,
            steps: 750,
            parameters: 5_821_952,
            tokens_per_sec: Some(8123.4),
            val_loss: Some(3.0),
            kurtosis_mean: Some(mean),
            kurtosis_max: Some(max),
            kurtosis_max_site: Some("blocks.0.resid".into()),
            float_perplexity: Some(20.0),
            // Short in binary, so that any JSON parser gives the same number back.
            w8a8_perplexity: Some(f64::round(20480.0 * (1.0 + int8)) / 1024.0),
            dir: format!("runs/{name}"),
        };
        QuickstartSummary {
            schema: 1,
            corpus: Corpus { files: 1234, bytes: 12_345_678 },
            runs: vec![
                run("pre-adamw", "pre", "adamw", 1e-3, 1.2, 1.4, 0.0011),
                run("pre-adamw-large", "pre", "adamw", 3e-3, 3.41, 9.22, 0.0042),
                run("op-soap", "op", "soap", 2e-3, 1.06, 1.1, 0.0004),
                run("op-soap-large", "op", "soap", 3e-3, 1.08, 1.14, 0.0005),
            ],
        }
    }

    fn curves(name: &str) -> RunCurves {
        let metrics = (0..300).map(|i| MetricLine {
            step: i * 10,
            tokens: Some(i * 40960),
            train_loss: (i != 150).then(|| 3.0 + 5.0 / (i as f64 + 1.0)),
            val_loss: (i % 100 == 99).then_some(3.1),
            ..MetricLine::default()
        });
        let stat = |i: u64, layer: Option<u64>| StatLine {
            step: i * 10,
            site: layer.map_or("embed".into(), |l| format!("blocks.{l}.resid")),
            layer,
            metrics: crate::metrics::Metrics {
                kurtosis: match i {
                    7 => None,
                    8 => Some(1.0),
                    _ => Some(1.0 + 0.001 * i as f64),
                },
                ..Default::default()
            },
        };
        RunCurves {
            name: name.into(),
            dir: name.into(),
            metrics: metrics.collect(),
            stats: (0..300).flat_map(|i| [None, Some(0), Some(1)].map(|layer| stat(i, layer))).collect(),
            ..RunCurves::default()
        }
    }

    #[test]
    fn the_json_has_exactly_the_agreed_keys_and_round_trips() {
        let mut summary = summary();
        summary.runs.truncate(1);
        summary.runs[0].kurtosis_max = None;
        summary.runs[0].w8a8_perplexity = Some(f64::NAN);
        let json = serde_json::to_string(&summary).unwrap();
        assert_eq!(
            json,
            "{\"schema\":1,\"corpus\":{\"files\":1234,\"bytes\":12345678},\"runs\":[{\
             \"name\":\"pre-adamw\",\"block\":\"pre\",\"optimizer\":\"adamw\",\"lr_peak\":0.001,\
             \"steps\":750,\"parameters\":5821952,\"tokens_per_sec\":8123.4,\"val_loss\":3.0,\
             \"kurtosis_mean\":1.2,\"kurtosis_max\":null,\
             \"kurtosis_max_site\":\"blocks.0.resid\",\"float_perplexity\":20.0,\
             \"w8a8_perplexity\":null,\"dir\":\"runs/pre-adamw\"}]}"
        );
        summary.runs[0].w8a8_perplexity = None;
        let back: QuickstartSummary = serde_json::from_str(&json).unwrap();
        assert_eq!(back, summary);
    }

    #[test]
    fn a_summary_is_read_and_a_foreign_schema_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        let mut written = summary();
        std::fs::write(&path, serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(QuickstartSummary::read(&path).unwrap(), written);
        written.schema = 9;
        std::fs::write(&path, serde_json::to_string(&written).unwrap()).unwrap();
        let error = QuickstartSummary::read(&path).unwrap_err();
        assert!(error.to_string().contains("\"schema\": 9"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        let error = QuickstartSummary::read(&path).unwrap_err();
        assert!(matches!(error, ReportError::BadSummary { .. }));
    }

    #[test]
    fn the_page_has_its_figures_and_no_number_that_is_none() {
        let summary = summary();
        // One run is found by its name, one by its folder, the others have no curves.
        let runs = [curves("pre-adamw"), curves("op-soap-large")];
        let context = QuickstartContext {
            command: "evenkeel quickstart --corpus 'a & b'".into(),
            ..QuickstartContext::default()
        };
        let html = quickstart_page(&summary, &runs, &context);
        for figure in 1..=4 {
            assert!(html.contains(&format!("<b>Figure {figure}.</b>")));
        }
        assert!(html.contains("&#39;a &amp; b&#39;") && html.contains("1,234 files, 12.3 MB"));
        for svg in html.split("<svg").skip(1) {
            let svg = svg.split("</svg>").next().unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert_eq!(html, quickstart_page(&summary, &runs, &context));
    }

    #[test]
    fn a_page_of_nothing_is_still_a_page() {
        let mut summary = summary();
        summary.runs.clear();
        let html = quickstart_page(&summary, &[], &QuickstartContext::default());
        assert!(html.ends_with("</html>\n") && html.contains("no data"));
    }
}
