//! `compare A B`.

use super::model;
use crate::args::Compare;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::compare::{ModelComparison, RunsComparison, compare_models, compare_runs, is_run};
use evenkeel::report::compare::Comparison;
use evenkeel::report::findings;
use evenkeel::report::run::read_run;
use evenkeel::report::scale::scientific;
use evenkeel::report::table::{Align, Table, cell};
use serde_json::json;
use std::path::Path;

/// Tensors that a terminal shows.
const LISTED: usize = 20;

pub(crate) fn run(args: Compare, settings: &Settings) -> Result<Exit, Failure> {
    let tolerance = args.tolerance.unwrap_or(0.0);
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(Failure::input(
            "--tolerance must be a number from 0",
            "give for example --tolerance 1e-6",
        ));
    }
    let runs = is_run(&args.a) && is_run(&args.b);
    if let Some(out) = &args.out {
        if !runs {
            return Err(Failure::input(
                "--out writes the curves of two runs, and these are not two run directories",
                "leave --out out, or give two folders that `evenkeel train` wrote",
            ));
        }
        super::report::check(out, settings)?;
    }
    let (difference, value, text) = match runs {
        true => of_runs(&args, tolerance)?,
        false => of_models(&args, tolerance, settings)?,
    };
    if let Some(out) = args.out.as_ref().filter(|_| !settings.dry_run) {
        super::report::write(&Comparison::new(vec![read_run(&args.a)?, read_run(&args.b)?]), out)?;
    }
    if settings.json {
        let mut object = json!({
            "schema": 1,
            "kind": if runs { "runs" } else { "models" },
            "a": args.a,
            "b": args.b,
            "equal": difference.is_none(),
            "first_difference": difference,
        });
        if let (Some(object), serde_json::Value::Object(more)) = (object.as_object_mut(), value) {
            object.extend(more);
        }
        output::json(&object);
    } else {
        output::result(&text);
        output::line(&match (&difference, tolerance > 0.0) {
            (None, false) => "equal, bit for bit".into(),
            (None, true) => format!("equal within {}", scientific(tolerance, 3)),
            (Some(what), _) => format!("not equal: {what}"),
        });
        if let Some(out) = args.out.as_ref().filter(|_| !settings.dry_run) {
            output::line(&format!("page: {}", out.join("index.html").display()));
        }
    }
    Ok(if args.assert_equal && difference.is_some() { Exit::No } else { Exit::Done })
}

/// The first difference, the figures, and the text of a comparison.
type Found = (Option<String>, serde_json::Value, String);

fn of_models(args: &Compare, tolerance: f64, settings: &Settings) -> Result<Found, Failure> {
    let (a, b) = (model::locate(&args.a, settings)?, model::locate(&args.b, settings)?);
    let found = compare_models(&a, &b)?;
    let text = models_text(&found);
    Ok((found.first_difference(tolerance), to_value(&found)?, text))
}

fn of_runs(args: &Compare, tolerance: f64) -> Result<Found, Failure> {
    let found = compare_runs(&args.a, &args.b, tolerance)?;
    let text = runs_text(&found, &args.a, &args.b);
    Ok((found.first_difference(), to_value(&found)?, text))
}

fn to_value(found: &impl serde::Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(found)
        .map_err(|e| Failure::input(format!("the result cannot be written as JSON: {e}"), "leave out --json"))
}

fn models_text(found: &ModelComparison) -> String {
    let mut text = String::new();
    if found.renamed {
        text += "the files have no name in common, so both were read as models and are compared by evenkeel's names\n";
    }
    for (which, names) in [("first", &found.only_a), ("second", &found.only_b)] {
        if !names.is_empty() {
            text += &format!("only in the {which}: {}\n", listed(names));
        }
    }
    for shape in &found.shapes {
        text += &format!("{}: shape {:?} in the first, {:?} in the second\n", shape.name, shape.a, shape.b);
    }
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("numbers", Align::Right),
        ("identical", Align::Right),
        ("largest difference", Align::Right),
        ("relative", Align::Right),
        ("RMS", Align::Right),
        ("over RMS", Align::Right),
    ]);
    let mut changed: Vec<_> = found.tensors.iter().filter(|t| !t.is_same(0.0)).collect();
    // What is undefined is worse than any number.
    let size = |rms: Option<f64>| rms.unwrap_or(f64::INFINITY);
    changed.sort_by(|a, b| size(b.rms_rel).total_cmp(&size(a.rms_rel)));
    let short = |v: f64| scientific(v, 2);
    for tensor in changed.iter().take(LISTED) {
        table.push([
            tensor.name.clone(),
            findings::count(tensor.elements),
            findings::count(tensor.identical),
            cell(tensor.max_abs, short),
            cell(tensor.max_rel, short),
            cell(tensor.rms, short),
            cell(tensor.rms_rel, short),
        ]);
    }
    if !table.rows.is_empty() {
        text += &table.to_text();
    }
    if changed.len() > LISTED {
        text += &format!("and {} more tensors; --json has all of them\n", changed.len() - LISTED);
    }
    let (numbers, identical) = found.numbers();
    text + &format!(
        "{} of {} tensors in common are identical, {} of {} numbers\n",
        found.tensors.len() - changed.len(),
        found.tensors.len(),
        findings::count(identical),
        findings::count(numbers)
    )
}

fn listed(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn runs_text(found: &RunsComparison, a: &Path, b: &Path) -> String {
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let mut text = String::new();
    if !found.config.is_empty() {
        let mut table = Table::new(&[
            ("configuration", Align::Left),
            (a.as_str(), Align::Left),
            (b.as_str(), Align::Left),
        ]);
        for key in &found.config {
            let value = |v: &Option<String>| v.clone().unwrap_or_else(|| "–".into());
            table.push([key.key.clone(), value(&key.a), value(&key.b)]);
        }
        text += &table.to_text();
        text.push('\n');
    }
    let mut table = Table::new(&[
        ("", Align::Left),
        (a.as_str(), Align::Right),
        (b.as_str(), Align::Right),
        ("difference", Align::Right),
    ]);
    let mut row = |name: String, a: Option<f64>, b: Option<f64>, write: fn(f64) -> String| {
        let difference = a.zip(b).map(|(a, b)| b - a);
        let signed = |v: f64| if v == 0.0 { "0".to_string() } else { format!("{v:+.4}") };
        table.push([name, cell(a, write), cell(b, write), cell(difference, signed)]);
    };
    let [first, second] = &found.ends;
    let loss = |v: f64| format!("{v:.4}");
    row("last step".into(), Some(first.step as f64), Some(second.step as f64), |v| findings::count(v as u64));
    row("training loss".into(), first.train_loss, second.train_loss, loss);
    row("validation loss".into(), first.val_loss, second.val_loss, loss);
    row("best validation loss".into(), first.val_loss_best, second.val_loss_best, loss);
    if first.val_accuracy.or(second.val_accuracy).is_some() {
        row("validation accuracy".into(), first.val_accuracy, second.val_accuracy, loss);
    }
    for site in &found.kurtosis {
        row(format!("kurtosis at {}", site.site), site.a, site.b, findings::kurtosis);
    }
    text += &table.to_text();
    text.push('\n');
    for log in &found.logs {
        let lines = log.lines.map(|n| n.map_or("none".into(), |n| findings::count(n as u64)));
        let what = match (&log.first, log.unmatched) {
            (None, [0, 0]) => "the same".into(),
            (None, [a, b]) => format!("the same where both have a line; {} have none in the other", a + b),
            (Some(first), _) => format!("differ from step {} on, in {}", first.step, first.key),
        };
        text += &format!("{}: {} and {} lines, {what}\n", log.file, lines[0], lines[1]);
    }
    if let Some(weights) = &found.weights {
        let (numbers, identical) = weights.numbers();
        let steps = found.checkpoint_steps.map(|step| step.map_or("–".into(), findings::count));
        text += &format!(
            "weights of steps {} and {}: {} of {} numbers identical\n",
            steps[0],
            steps[1],
            findings::count(identical),
            findings::count(numbers)
        );
    }
    text
}
