//! What quantising the models of runs cost, from the files that `quantize` and `quickstart` left in their directories: any
//! `*.json` beside the logs (`w8a8.json`), and the `summary.json` of a page in a folder of its own (`quantize --report
//! RUN/w8a8`).

use super::findings;
use super::html::Block;
use super::run::{RunCurves, read_bounded};
use super::table::{Align, Table, cell};
use std::path::{Path, PathBuf};

/// What quantising the model of a run cost: the headline of a file that `quantize --json`, `quantize --report` or `quickstart`
/// wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// The file, within the run directory.
    pub file: String,
    /// The scheme's name.
    pub scheme: String,
    /// What was done to the model before.
    pub repairs: Vec<String>,
    /// Perplexity in float and quantised.
    pub perplexity: [Option<f64>; 2],
    /// Bytes in float and quantised.
    pub bytes: [Option<u64>; 2],
    /// Mean over tokens of KL(float ‖ quantised), nats.
    pub kl: Option<f64>,
    /// Share of tokens whose most likely next token stays the same.
    pub top1_agreement: Option<f64>,
}

/// What `quantize` left in the folder or one below it, in the order of the files' names.
pub(super) fn read_quantised(dir: &Path) -> Vec<Quantised> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    };
    let top = entries(dir);
    let below = top.iter().filter(|p| p.is_dir()).map(|p| p.join("summary.json"));
    let mut files: Vec<PathBuf> = top
        .iter()
        .filter(|p| p.extension().is_some_and(|end| end == "json"))
        .cloned()
        .chain(below)
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    let one = |path: &PathBuf| {
        let value: serde_json::Value = serde_json::from_str(&read_bounded(path)?).ok()?;
        let (float, int) = (value.get("float")?, value.get("quantized")?);
        let both = |key: &str| [float.get(key), int.get(key)];
        let repairs = value.get("repairs").and_then(serde_json::Value::as_array);
        Some(Quantised {
            file: path.strip_prefix(dir).unwrap_or(path).display().to_string(),
            scheme: value.get("scheme")?.as_str()?.to_string(),
            repairs: repairs.into_iter().flatten().filter_map(|r| Some(r.as_str()?.to_string())).collect(),
            perplexity: both("perplexity").map(|v| v?.as_f64()),
            bytes: both("bytes").map(|v| v?.as_u64()),
            kl: int.get("kl").and_then(serde_json::Value::as_f64),
            top1_agreement: int.get("top1_agreement").and_then(serde_json::Value::as_f64),
        })
    };
    files.iter().filter_map(one).collect()
}

/// A row for each result; `None` if no run has one.
pub(super) fn quantised_table(runs: &[RunCurves]) -> Option<Block> {
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("scheme", Align::Left),
        ("perplexity", Align::Right),
        ("quantised", Align::Right),
        ("cost", Align::Right),
        ("KL, nats", Align::Right),
        ("same top token", Align::Right),
        ("size", Align::Right),
        ("quantised", Align::Right),
        ("file", Align::Left),
    ]);
    for (run, one) in runs.iter().flat_map(|run| run.quantised.iter().map(move |one| (run, one))) {
        let [float, int] = one.perplexity.map(findings::finite);
        let cost = float.zip(int).filter(|(float, _)| *float > 0.0).map(|(float, int)| int / float - 1.0);
        let [float_bytes, int_bytes] = one.bytes.map(|b| b.map_or("–".into(), findings::bytes));
        let scheme = std::iter::once(&one.scheme).chain(&one.repairs).cloned().collect::<Vec<_>>();
        table.push([
            run.name.clone(),
            scheme.join(" + "),
            cell(float, findings::perplexity),
            cell(int, findings::perplexity),
            cell(cost, findings::percent),
            cell(one.kl, |v| format!("{v:.5}")),
            cell(one.top1_agreement, |v| format!("{:.2}%", 100.0 * v)),
            float_bytes,
            int_bytes,
            one.file.clone(),
        ]);
    }
    let caption = "What quantising the models cost, as `quantize` and `quickstart` found it and left it in the run \
                   directories. A file whose model was trained on since is of the model as it was.";
    (!table.rows.is_empty()).then(|| Block::Table(table, caption.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_a_row_and_what_is_undefined_a_dash() {
        let one = Quantised {
            file: "w8a8.json".into(),
            scheme: "w8a8".into(),
            repairs: vec!["hadamard".into()],
            perplexity: [Some(20.0), Some(21.0)],
            bytes: [Some(4000), None],
            kl: None,
            top1_agreement: Some(0.5),
        };
        let runs = [RunCurves { name: "a".into(), quantised: vec![one], ..RunCurves::default() }];
        let Some(Block::Table(table, _)) = quantised_table(&runs) else { panic!("no table") };
        let row =
            ["a", "w8a8 + hadamard", "20.00", "21.00", "+5.00%", "–", "50.00%", "4.0 kB", "–", "w8a8.json"];
        assert_eq!(table.rows, [row]);
        assert!(quantised_table(&[RunCurves::default()]).is_none());
    }
}
