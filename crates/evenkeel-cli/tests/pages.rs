//! Pages in a browser: `scripts/check_pages.py` opens each in headless Chromium, narrow and wide, light and dark. Skipped, and
//! said so, where there is no Chromium or no Python.

mod common;

use common::{Sandbox, lossy};
use evenkeel::report::{
    Corpus, QuickstartContext, QuickstartRun, QuickstartSummary, quickstart_page, read_run,
};
use std::path::Path;
use std::process::Command;

/// How the script judges, and what it prints; nothing where it has no browser.
#[allow(clippy::print_stderr)]
fn check(pages: &[&Path]) -> Option<(i32, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/check_pages.py");
    let output = Command::new("python3").arg(script).args(pages).output();
    let ran = output
        .ok()
        .and_then(|output| Some((output.status.code()?, lossy(&output.stdout) + &lossy(&output.stderr))));
    // 3 is the script's word for no browser; anything else that it cannot do is a fault.
    let looked = ran.filter(|(code, _)| *code != 3);
    if looked.is_none() {
        eprintln!("skipped: no Chromium or no Python to look at the pages with");
    }
    looked
}

/// The logs of a run under another name and seed, every loss a little other.
fn sibling(sandbox: &Sandbox, run: &str, name: &str, seed: u32) {
    for log in ["metrics.jsonl", "stats.jsonl", "moments.jsonl", "optim.jsonl", "run.json"] {
        let text = sandbox.read(&format!("{run}/{log}"));
        sandbox.write(
            &format!("{name}/{log}"),
            text.replace("\"train/loss\":5.", &format!("\"train/loss\":5.{seed}")),
        );
    }
    let config = sandbox.read(&format!("{run}/resolved.toml"));
    sandbox.write(&format!("{name}/resolved.toml"), config.replace("seed = 0", &format!("seed = {seed}")));
}

fn quickstart(sandbox: &Sandbox) {
    let run = |name: &str, block: &str, optimizer: &str, lr_peak| QuickstartRun {
        name: name.into(),
        block: block.into(),
        optimizer: optimizer.into(),
        lr_peak,
        steps: 20,
        parameters: 5_821_952,
        tokens_per_sec: Some(8123.4),
        val_loss: Some(3.0),
        kurtosis_mean: Some(1.2),
        kurtosis_max: Some(1.4),
        kurtosis_max_site: Some("blocks.0.resid".into()),
        float_perplexity: Some(20.0),
        w8a8_perplexity: Some(21.0),
        dir: name.into(),
    };
    let summary = QuickstartSummary {
        schema: 1,
        corpus: Corpus { files: 1234, bytes: 12_345_678 },
        runs: vec![
            run("op", "op", "soap", 6e-3),
            run("a-s1", "pre_ln", "adamw", 3e-3),
            run("a-s2", "op", "soap", 1e-2),
            run("b-s0", "pre_ln", "adamw", 1e-2),
        ],
    };
    let curves: Vec<_> = summary.runs.iter().map(|r| read_run(&sandbox.path(&r.dir)).unwrap()).collect();
    let context = QuickstartContext { command: "evenkeel quickstart".into(), ..QuickstartContext::default() };
    sandbox.write("quickstart/index.html", quickstart_page(&summary, &curves, &context));
}

#[test]
fn every_page_is_right_in_a_browser() {
    let sandbox = Sandbox::with_data();
    sandbox.config("tiny.toml", "op", "soap");
    let sets = [
        "train.steps=20",
        "train.log_every_steps=2",
        "train.eval_every_steps=10",
        "telemetry.stats_every_steps=2",
        "telemetry.gram_every_steps=4",
        "telemetry.token_metrics=true",
        "telemetry.moments_every_steps=2",
        "telemetry.optim_every_steps=4",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    sandbox.ok(&[&["train", "tiny.toml", "--out", "op"][..], &sets].concat());
    let text = ["--data", "data", "--tokens", "1024"];
    let quantize = ["quantize", "op", "--attribution", "--attribution-tokens", "64", "--report", "op/w8a8"];
    sandbox.ok(&[&quantize[..], &text].concat());
    sandbox.ok(&[&["inspect", "op", "--report", "inspect"][..], &text].concat());
    for (name, seed) in
        [("a-s1", 1), ("a-s2", 2), ("a-s3", 3), ("b-s0", 0), ("c-with-a-rather-long-name-s0", 0)]
    {
        sibling(&sandbox, "op", name, seed);
    }
    sandbox.ok(&["report", "op", "--out", "one"]);
    let six =
        ["report", "op", "a-s1", "a-s2", "a-s3", "b-s0", "c-with-a-rather-long-name-s0", "--out", "six"];
    sandbox.ok(&six);
    quickstart(&sandbox);
    let pages = ["one", "six", "inspect", "op/w8a8", "quickstart"];
    let pages = pages.map(|page| sandbox.path(&format!("{page}/index.html")));
    let pages: Vec<&Path> = pages.iter().map(|page| page.as_path()).collect();
    let Some((code, said)) = check(&pages) else { return };
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches("  none").count(), pages.len() * 6, "{said}");

    // What is looked for is found.
    let page = sandbox.read("one/index.html");
    let broken = page.replacen("<main>", "<main><div style=\"width:3000px\">wide</div>", 1);
    sandbox.write(
        "broken/index.html",
        broken.replace("<table>", "<p>").replace("prefers-color-scheme:dark", "width:0"),
    );
    let (code, said) = check(&[&sandbox.path("broken/index.html")]).unwrap();
    assert_eq!(code, 1, "{said}");
    for fault in ["the page is 30", "no table under", "scheme is not followed"] {
        assert!(said.contains(fault), "{fault}: {said}");
    }
}
