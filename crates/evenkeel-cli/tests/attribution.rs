//! `quantize --attribution` and `--report`.

mod common;

use common::{Sandbox, keys, number};
use serde_json::Value;

const FLAGS: [&str; 9] = [
    "quantize",
    "run",
    "--data",
    "data",
    "--calib-batches",
    "2",
    "--attribution",
    "--attribution-tokens",
    "256",
];

fn list<'a>(attribution: &'a Value, name: &str) -> &'a Vec<Value> {
    attribution[name].as_array().unwrap()
}

#[test]
fn attribution_names_every_quantiser() {
    let sandbox = Sandbox::with_run("pre_ln");
    let report = sandbox.json(&FLAGS);
    let attribution = &report["attribution"];
    let expected = ["tokens", "float_loss", "alone", "without", "cumulative", "deviation"];
    assert_eq!(keys(attribution), expected.into());
    assert_eq!(attribution["tokens"], 256);
    let names = |list: &[Value], key: &str| -> Vec<String> {
        let mut names: Vec<String> = list.iter().map(|v| v[key].as_str().unwrap().to_string()).collect();
        names.sort();
        names
    };
    let sites = names(report["sites"].as_array().unwrap(), "site");
    assert_eq!(names(list(attribution, "alone"), "quantiser"), sites);
    assert_eq!(names(list(attribution, "without"), "quantiser"), sites);
    let through: Vec<&str> =
        list(attribution, "cumulative").iter().filter_map(|step| step["through"].as_str()).collect();
    assert_eq!(through, ["embed", "blocks.0", "blocks.1", "head"]);
    let deviation: Vec<&str> =
        list(attribution, "deviation").iter().filter_map(|site| site["site"].as_str()).collect();
    assert_eq!(deviation, ["embed", "blocks.0.resid", "blocks.1.resid", "final_norm", "logits"]);
    assert!(list(attribution, "deviation").iter().all(|s| (1e-4..0.5).contains(&number(&s["relative"]))));
    assert!(list(attribution, "alone").iter().all(|c| number(&c["loss_increase"]).abs() < 0.5));
    // The rest of the report is what it is without.
    let mut without = report.clone();
    without.as_object_mut().unwrap().remove("attribution");
    assert_eq!(sandbox.json(&FLAGS[..6]), without);

    let text = sandbox.ok(&FLAGS);
    for part in [
        "what the quantisers cost, on 256 tokens",
        "with this one alone",
        "left out of all",
        "quantised through: embed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let rows = text.lines().filter(|line| line.starts_with("blocks.") && line.ends_with('%')).count();
    assert!(rows > 8, "{text}");
}

#[test]
fn a_page_is_written_with_its_numbers_and_figures() {
    let sandbox = Sandbox::with_run("op");
    let flags = [&FLAGS[..], &["--report", "page", "--repair", "smoothquant"]].concat();
    let report = sandbox.json(&flags);
    let summary: Value = serde_json::from_str(&sandbox.read("page/summary.json")).unwrap();
    assert_eq!(summary, report);
    let html = sandbox.read("page/index.html");
    for part in
        ["Quantisation of run", "Which quantiser costs what", "What rounding takes away", "smoothquant=0.5"]
    {
        assert!(html.contains(part), "{part}");
    }
    for figure in ["costs", "cumulative", "deviation", "activation_errors", "weight_errors"] {
        assert!(sandbox.read(&format!("page/{figure}.svg")).starts_with("<svg"), "{figure}");
    }
    assert!(!html.contains("NaN") && !html.contains("<script"));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let sandbox = Sandbox::with_run("op");
    sandbox.write("file", "");
    let base = ["quantize", "run", "--data", "data"];
    let with = |more: &[&str]| sandbox.refused(&[&base[..], more].concat());
    assert!(with(&["--report", "file"]).contains("is a file"));
    assert!(with(&["--attribution", "--attribution-tokens", "0"]).contains("nothing to evaluate"));
    assert!(with(&["--attribution-tokens", "64"]).contains("--attribution"));
}
