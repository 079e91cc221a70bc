//! `sweep` through the program: what it makes, in parts, several at a time, stopped and gone on with, and what it refuses.
//!
//! Means and standard errors are computed again here, from the records, with formulas of their own: for two seeds the mean is
//! half the sum and its standard error half the distance.

mod common;

use common::{Sandbox, close, lossy, number};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

/// One block of 16 channels on 16 tokens, 12 steps of 4 sequences.
const TINY: &str = "[model]\ndepth = 1\nwidth = 16\nheads = 2\nvocab = 257\ncontext = 16\n\n[data]\npath = \"data\"\n\n\
    [train]\nsteps = 12\nbatch_sequences = 4\neval_tokens = 512\nlog_every_steps = 1\n\n[telemetry]\nstats_every_steps = 3\n";
/// Two variants, two rates, two seeds.
const RATES: &str = "title = \"Rates\"\nbase = \"base.toml\"\nseeds = [0, 1]\n\n\
    [measure]\ninspect_tokens = 512\nquantize = [\"w8a8\"]\nquantize_tokens = 512\n\n\
    [grid]\noptim.lr_peak = [1e-3, 1e-2]\n\n\
    [[variant]]\nname = \"Pre-LN\"\nset = { model.preset = \"pre_ln\" }\n\n\
    [[variant]]\nname = \"OP\"\nset = { model.preset = \"op\" }\n";

/// Data, `base.toml` and `rates.toml`.
fn prepared() -> Sandbox {
    let sandbox = Sandbox::with_data();
    sandbox.write("base.toml", TINY);
    sandbox.write("rates.toml", RATES);
    sandbox
}

/// The records below a sweep's folder, by key.
fn records(sandbox: &Sandbox, out: &str) -> BTreeMap<String, Value> {
    let folder = std::fs::read_dir(sandbox.path(&format!("{out}/records"))).unwrap();
    let names = folder.map(|e| e.unwrap().file_name().into_string().unwrap());
    let record = |name: String| {
        let record: Value = serde_json::from_str(&sandbox.read(&format!("{out}/records/{name}"))).unwrap();
        let key = record["key"].as_str().unwrap().to_string();
        assert_eq!(name, format!("{key}.json"));
        (key, record)
    };
    names.map(record).collect()
}

/// The same without what a run's speed and share of threads decide.
fn outcomes(sandbox: &Sandbox, out: &str) -> BTreeMap<String, Value> {
    let mut records = records(sandbox, out);
    for record in records.values_mut() {
        let origin = record["origin"].as_object_mut().unwrap();
        assert!(number(&origin.remove("seconds").unwrap()) > 0.0);
        assert!(origin.remove("threads").unwrap().as_u64() >= Some(1));
    }
    records
}

/// What is printed, without the line that names the page.
fn table(stdout: &str, out: &str) -> String {
    let page = format!("page: {out}/index.html\n");
    stdout.strip_suffix(&page).unwrap_or_else(|| panic!("{stdout:?} does not end with {page:?}")).to_string()
}

fn modified(sandbox: &Sandbox, folder: &str) -> BTreeMap<PathBuf, SystemTime> {
    let files = std::fs::read_dir(sandbox.path(folder)).unwrap().map(|e| e.unwrap().path());
    files.map(|p| (p.clone(), p.metadata().unwrap().modified().unwrap())).collect()
}

/// Mean over residual sites of what `values` gives for each.
fn over_sites(sites: &Value, value: impl Fn(&Value) -> f64) -> f64 {
    let sites = sites.as_object().unwrap();
    sites.values().map(value).sum::<f64>() / sites.len() as f64
}

#[test]
fn every_run_is_made_once_and_summed_up_over_seeds() {
    let sandbox = prepared();
    let first = sandbox.run(&["sweep", "rates.toml", "--out", "a", "--threads", "1"], 0);
    let (stdout, stderr) = (lossy(&first.stdout), lossy(&first.stderr));
    let done = |i: usize| stderr.contains(&format!("{i}/8 "));
    assert!((1..=8).all(done), "{stderr}");
    let records = records(&sandbox, "a");
    assert_eq!(records.len(), 8);

    let summary: Value = serde_json::from_str(&sandbox.read("a/summary.json")).unwrap();
    assert_eq!((&summary["schema"], &summary["title"]), (&1.into(), &"Rates".into()));
    let groups = summary["groups"].as_array().unwrap();
    let names: Vec<&str> = groups.iter().map(|g| g["settings"].as_str().unwrap()).collect();
    let expected = ["Pre-LN, lr_peak 1e-3", "Pre-LN, lr_peak 0.01", "OP, lr_peak 1e-3", "OP, lr_peak 0.01"];
    assert_eq!(names, expected);
    let settings = [("pre_ln", 1e-3), ("pre_ln", 1e-2), ("op", 1e-3), ("op", 1e-2)];
    for (group, (preset, rate)) in groups.iter().zip(settings) {
        let of_seed = |seed: u64| {
            let is = |r: &&Value| {
                let c = &r["config"];
                c["model"]["preset"] == preset && c["optim"]["lr_peak"] == rate && c["train"]["seed"] == seed
            };
            records.values().find(is).unwrap_or_else(|| panic!("{preset} {rate} {seed}"))
        };
        let (a, b) = (of_seed(0), of_seed(1));
        for (run, record) in group["runs"].as_array().unwrap().iter().zip([a, b]) {
            assert_eq!(run["key"], record["key"]);
            assert_eq!((&record["status"], &record["step"]), (&"finished".into(), &12.into()));
        }
        let peak = |r: &Value| {
            let sites = &r["curves"]["sites"]["kurtosis"];
            let steps = r["curves"]["steps"].as_array().unwrap().len();
            let at = |i: usize| over_sites(sites, |curve| number(&curve[i]));
            (0..steps).map(at).fold(f64::MIN, f64::max)
        };
        let cost = |r: &Value| {
            let q = &r["quantised"][0];
            number(&q["perplexity"]) / number(&q["float_perplexity"]) - 1.0
        };
        let figures: [(&str, [f64; 2]); 4] = [
            ("val_loss", [a, b].map(|r| number(&r["val_loss"]))),
            ("kurtosis_peak", [a, b].map(peak)),
            ("kurtosis", [a, b].map(|r| over_sites(&r["sites"]["kurtosis"], number))),
            ("w8a8_cost", [a, b].map(cost)),
        ];
        for (name, [a, b]) in figures {
            let figure = &group["figures"][name];
            assert_eq!(figure["count"], 2, "{name}");
            assert_ne!(a, b, "{name} does not depend on the seed");
            assert!((number(&figure["mean"]) - (a + b) / 2.0).abs() < 1e-9, "{name}: {figure}");
            assert!(
                (number(&figure["standard_error"]) - (a - b).abs() / 2.0).abs() < 1e-9,
                "{name}: {figure}"
            );
            for (value, expected) in figure["values"].as_array().unwrap().iter().zip([a, b]) {
                assert!(close(number(&value["value"]), expected, 1e-9), "{name}: {figure}");
            }
        }
        let [a, b] = figures[0].1;
        let loss = format!("{:.3} ± {:.3}", (a + b) / 2.0, (a - b).abs() / 2.0);
        let row = stdout.lines().find(|l| l.starts_with(group["settings"].as_str().unwrap())).unwrap();
        assert!(row.contains(&loss), "{row} does not say {loss}");
    }
    let header: Vec<&str> = stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["settings", "runs", "val_loss", "kurtosis_peak", "kurtosis", "w8a8_cost"]);
    let page = sandbox.read("a/index.html");
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("<svg") && page.contains("OP, lr_peak 0.01")
    );
    assert!(
        !page.contains("NaN") && !page.contains("http://") && !page.contains("src="),
        "not self-contained"
    );
    for picture in ["train_loss", "kurtosis", "layers", "loss-kurtosis"] {
        assert!(sandbox.read(&format!("a/{picture}.svg")).contains("<svg"), "{picture}");
    }
    assert!(sandbox.read("a/summary.md").contains("| OP, lr\\_peak 0.01 "));

    // The same command has nothing left to do; another column is only a matter of the table.
    let before = modified(&sandbox, "a/records");
    let again = sandbox.run(&["sweep", "rates.toml", "--out", "a", "--threads", "1"], 0);
    assert_eq!(lossy(&again.stderr), "8 of 8 runs have a record already\n");
    assert_eq!(lossy(&again.stdout), stdout);
    let other = sandbox.json(&[
        "sweep",
        "rates.toml",
        "--out",
        "a",
        "--figure",
        "mmr@embed",
        "--figure",
        "perplexity",
    ]);
    let figures: Vec<&String> = other["groups"][0]["figures"].as_object().unwrap().keys().collect();
    assert_eq!(figures, ["mmr@embed", "perplexity"]);
    assert_eq!(modified(&sandbox, "a/records"), before);
}

#[test]
fn parts_make_the_whole_however_many_run_at_a_time() {
    let sandbox = prepared();
    let sweep = |out: &str, more: &[&str]| {
        table(&sandbox.ok(&[&["sweep", "rates.toml", "--out", out], more].concat()), out)
    };
    let whole = sweep("one", &["--threads", "1"]);
    assert_eq!(sweep("two", &["--jobs", "2", "--threads", "2"]), whole);
    assert_eq!(sandbox.read("one/summary.json"), sandbox.read("two/summary.json"));
    assert_eq!(outcomes(&sandbox, "one"), outcomes(&sandbox, "two"));

    let mut keys = BTreeSet::new();
    for (part, runs) in [("1/3", 3), ("2/3", 3), ("3/3", 2)] {
        let before = keys.len();
        // One process with three threads, which change nothing either.
        let made = sweep("parts", &["--shard", part, "--threads", "3"]);
        keys.extend(records(&sandbox, "parts").into_keys());
        assert_eq!(keys.len(), before + runs, "part {part}");
        assert_eq!(made == whole, part == "3/3", "{made}");
    }
    assert_eq!(outcomes(&sandbox, "parts"), outcomes(&sandbox, "one"));
    assert_eq!(sandbox.read("parts/summary.json"), sandbox.read("one/summary.json"));
    for bad in ["0/3", "4/3", "x", "1/0", "1", "/", "1/x", ""] {
        let said = sandbox.refused(&["sweep", "rates.toml", "--out", "none", "--shard", bad]);
        assert!(said.contains(&format!("not \"{bad}\"")) && said.contains("--shard 2/8"), "{said}");
    }
    assert!(!sandbox.path("none").exists());
}

#[test]
fn a_dry_run_counts_and_touches_nothing() {
    let sandbox = prepared();
    let before = sandbox.files();
    let plan = sandbox.ok(&["sweep", "rates.toml", "--out", "a", "--dry-run"]);
    let rows: Vec<&str> = plan.lines().skip(2).take(8).collect();
    assert!(rows.iter().all(|row| row.ends_with("to do")), "{plan}");
    assert!(
        rows[0].starts_with("Pre-LN, lr_peak 1e-3, seed 0 ")
            && rows[7].starts_with("OP, lr_peak 0.01, seed 1 ")
    );
    // 12 steps of 4 sequences of 16 tokens.
    let total = format!("8 of 8 runs to do, {} tokens, ", 8 * 12 * 4 * 16);
    assert!(plan.lines().last().unwrap().starts_with(&total), "{plan}");
    let plan = sandbox.json(&["sweep", "rates.toml", "--out", "a", "--dry-run"]);
    assert_eq!((&plan["left"]["runs"], &plan["left"]["tokens"]), (&8.into(), &6144.into()));
    assert_eq!(plan["left"]["core_seconds"], Value::Null);
    assert!(sandbox.files() == before, "a dry run wrote something");

    sandbox.ok(&["sweep", "rates.toml", "--out", "a", "--shard", "1/2", "-q"]);
    let before = sandbox.files();
    let records = records(&sandbox, "a");
    let later = sandbox.json(&["sweep", "rates.toml", "--out", "a", "--dry-run"]);
    for (first, run) in plan["runs"].as_array().unwrap().iter().zip(later["runs"].as_array().unwrap()) {
        assert_eq!((&first["run"], &first["key"], &first["plan"]), (&run["run"], &run["key"], &run["plan"]));
        let record = records.get(run["key"].as_str().unwrap());
        assert_eq!(run["done"], record.is_some());
        // What was foreseen is what came.
        if let Some(record) = record {
            assert_eq!(run["plan"]["parameters"], record["parameters"]);
            assert_eq!(run["plan"]["tokens"], 768);
        }
    }
    assert_eq!((&later["left"]["runs"], &later["left"]["tokens"]), (&4.into(), &3072.into()));
    assert!(number(&later["left"]["core_seconds"]) > 0.0);
    let shown = sandbox.ok(&["sweep", "rates.toml", "--out", "a", "--dry-run"]);
    assert_eq!(shown.lines().filter(|l| l.ends_with(" done")).count(), 4, "{shown}");
    assert!(shown.contains("4 of 8 runs to do, 3072 tokens"), "{shown}");
    assert!(sandbox.files() == before, "a dry run wrote something");
}

#[test]
fn what_is_no_sweep_is_refused_and_leaves_no_trace() {
    let sandbox = prepared();
    let base = "base = \"base.toml\"\n";
    let cases: [(&str, &[&str]); 13] = [
        ("[grid]\noptim.lr_peek = [1e-3]", &["lr_peek 1e-3: unknown key `optim.lr_peek`", "`optim.lr_peak`"]),
        ("[run]\nmodel.widht = 16", &["unknown key `model.widht`", "`model.width`"]),
        ("[grid]\noptim.lr_peak = 1e-3", &["bad.toml: [grid] optim.lr_peak must be a list"]),
        ("[grid]\noptim.lr_peak = []", &["bad.toml: [grid] optim.lr_peak must be a list"]),
        (
            "[[variant]]\nname = \"A\"\n[[variant]]\nname = \"B\"\nset = { model.depth = 1 }",
            &["A, seed 0 and B, seed 0"],
        ),
        (
            "[[variant]]\nname = \"A\"\n[[variant]]\nname = \"A\"\nset = { model.depth = 2 }",
            &["called \"A\""],
        ),
        ("seeds = [1, 1]", &["seed 1", "are one run"]),
        ("[grid]\nmodel.width = [16, 17]", &["width 17, seed 0: ", "heads"]),
        ("sedes = [1]", &["bad.toml: line 2: ", "sedes"]),
        ("[measure]\nquantize = [\"w9\"]", &["\"w9\"", "w8a8"]),
        ("jobs = 0", &["jobs must be at least 1"]),
        ("jobs = 4000", &["--jobs must lie between 1 and 1024"]),
        ("[grid", &["bad.toml: line 2: "]),
    ];
    for (text, expected) in cases {
        sandbox.write("bad.toml", format!("{base}{text}\n"));
        let said = sandbox.refused(&["sweep", "bad.toml", "--out", "a"]);
        assert!(expected.iter().all(|e| said.contains(e)), "{text}: {said}");
        assert!(!sandbox.path("a").exists(), "{text}: a folder was left");
    }
    sandbox.write("bad.toml", "base = \"none.toml\"\n");
    assert!(sandbox.refused(&["sweep", "bad.toml", "--out", "a"]).contains("cannot read none.toml: "));
    assert!(sandbox.refused(&["sweep", "none.toml", "--out", "a"]).contains("cannot read none.toml: "));
    let options: [(&[&str], &str); 5] = [
        (&["--seed", "3"], "--seed has no meaning for a sweep"),
        (&["--jobs", "0"], "--jobs must lie between 1 and 1024"),
        (&["--figure", "nonsense"], "no figure named \"nonsense\""),
        (&["--figure", "kurtosis", "--figure", "w9_cost"], "no figure named \"w9_cost\""),
        (&["--set", "optim.lr_peak=1e-4"], "are one run"),
    ];
    for (more, expected) in options {
        let said = sandbox.refused(&[&["sweep", "rates.toml", "--out", "a"], more].concat());
        assert!(said.contains(expected), "{said}");
        assert!(!sandbox.path("a").exists(), "{more:?}: a folder was left");
    }
    let before = sandbox.files();
    let said = sandbox.refused(&["sweep", "rates.toml", "--out", "corpus"]);
    assert!(said.contains("corpus is not empty and holds no sweep") && said.contains("--out"), "{said}");
    assert!(sandbox.files() == before, "a foreign folder was written into");
}

#[test]
fn a_run_that_cannot_be_made_ends_the_sweep_and_takes_nothing_away() {
    let sandbox = prepared();
    sandbox.write(
        "data.toml",
        "base = \"base.toml\"\nseeds = [0, 1]\n[grid]\ndata.path = [\"data\", \"missing\"]\n",
    );
    let said = sandbox.refused(&["sweep", "data.toml", "--out", "a", "-q"]);
    assert!(said.starts_with("error: path missing, seed 0: missing does not exist"), "{said}");
    assert!(said.contains("evenkeel data tokenize"), "{said}");
    let made = records(&sandbox, "a");
    let paths: Vec<&Value> = made.values().map(|r| &r["config"]["data"]["path"]).collect();
    assert_eq!(paths, ["data", "data"]);

    // With the data there, only what is missing is made.
    let before = modified(&sandbox, "a/records");
    for file in ["train_000000.bin", "val_000000.bin", "tokenizer.json", "data.json"] {
        if sandbox.path(&format!("data/{file}")).is_file() {
            sandbox.copy(&format!("data/{file}"), &format!("missing/{file}"));
        }
    }
    let rest = sandbox.run(&["sweep", "data.toml", "--out", "a"], 0);
    assert!(
        lossy(&rest.stderr).starts_with("2 of 4 runs have a record already\n"),
        "{}",
        lossy(&rest.stderr)
    );
    let after = modified(&sandbox, "a/records");
    assert_eq!(after.len(), 4);
    assert!(before.iter().all(|(path, time)| after[path] == *time), "a record was written again");

    // A record that is damaged is named, not passed over and not replaced.
    let (damaged, _) = before.first_key_value().unwrap();
    let whole = std::fs::read(damaged).unwrap();
    std::fs::write(damaged, &whole[..whole.len() / 2]).unwrap();
    let said = sandbox.refused(&["sweep", "data.toml", "--out", "a"]);
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&format!("a/records/{name} is no record of a run: ")), "{said}");
    assert!(said.contains("hint: remove the file, and its run is made again"), "{said}");
    assert_eq!(std::fs::read(damaged).unwrap(), whole[..whole.len() / 2]);
    // As the hint says; from its last checkpoint, so it is the same record but for the time.
    std::fs::remove_file(damaged).unwrap();
    sandbox.ok(&["sweep", "data.toml", "--out", "a", "-q"]);
    let strip = |bytes: &[u8]| {
        let mut record: Value = serde_json::from_slice(bytes).unwrap();
        record["origin"]["seconds"].take();
        record
    };
    assert_eq!(strip(&std::fs::read(damaged).unwrap()), strip(&whole));
}

#[test]
fn runs_that_diverge_or_overflow_are_shown_and_end_nothing() {
    let sandbox = prepared();
    sandbox
        .write("rates.toml", "base = \"base.toml\"\nseeds = [0, 1]\n[grid]\noptim.lr_peak = [1e6, 1e-3]\n");
    let shown = sandbox.ok(&["sweep", "rates.toml", "--out", "a", "-q"]);
    let row = |start: &str| shown.lines().find(|l| l.starts_with(start)).unwrap().to_string();
    assert!(row("lr_peak 1e6 ").contains(" diverged "), "{shown}");
    assert!(row("lr_peak 1e-3 ").contains(" ± "), "{shown}");
    for record in records(&sandbox, "a").values() {
        let diverged = record["config"]["optim"]["lr_peak"] == 1e6;
        assert_eq!(record["status"], if diverged { "diverged" } else { "finished" });
        assert_eq!(record["reason"].is_string(), diverged);
        assert_eq!(record["val_loss"].is_number(), !diverged);
    }
    // Nobody stops this one: its loss, and so its perplexity, is beyond numbers.
    sandbox.write(
        "rates.toml",
        "base = \"base.toml\"\n[measure]\nquantize = [\"w8a8\"]\n[run]\ntrain.guard_loss_factor = 1e30\noptim.lr_peak = 30.0\n\
         [[variant]]\nname = \"OP\"\nset = { model.preset = \"op\" }\n",
    );
    let args = ["sweep", "rates.toml", "--out", "b", "--figure", "val_loss", "--figure", "w8a8_perplexity"];
    let shown = sandbox.ok(&args);
    assert_eq!(records(&sandbox, "b").values().next().unwrap()["quantised"][0]["perplexity"], Value::Null);
    assert!(shown.contains(" diverged"), "{shown}");
    assert_eq!(sandbox.ok(&args), shown, "its record can be read again");
}

#[cfg(unix)]
mod stopped {
    use super::{Sandbox, Value, lossy, outcomes, records, table};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const STEPS: u64 = 60;

    /// Two runs at a time, in a process group of their own, as a shell starts a command.
    fn start(sandbox: &Sandbox, out: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["sweep", "rates.toml", "--out", out, "--jobs", "2", "--threads", "2"])
            .current_dir(sandbox.path(""))
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Sends a signal to the process, or to its group: what a terminal does at Ctrl-C.
    fn signal(child: &Child, name: &str, group: bool) {
        let target = if group { format!("-- -{}", child.id()) } else { child.id().to_string() };
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {target}")]).status().unwrap();
        assert!(sent.success(), "kill -s {name} {target}");
    }

    fn folders(sandbox: &Sandbox, out: &str) -> Vec<String> {
        let Ok(found) = std::fs::read_dir(sandbox.path(&format!("{out}/runs"))) else { return Vec::new() };
        let mut keys: Vec<String> = found.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        keys.sort();
        keys.into_iter().map(|key| format!("{out}/runs/{key}")).collect()
    }

    /// The length of all logs together: it is another as soon as a run is on its way.
    fn logs(sandbox: &Sandbox, out: &str) -> u64 {
        let log = |dir: &String| std::fs::metadata(sandbox.path(&format!("{dir}/metrics.jsonl")));
        folders(sandbox, out).iter().filter_map(|dir| log(dir).ok()).map(|m| m.len()).sum()
    }

    fn wait(what: &str, mut until: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !until() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Whether no process works on any run, and each has a record or was left with a checkpoint of where it stopped.
    fn at_rest(sandbox: &Sandbox, out: &str) -> bool {
        folders(sandbox, out).iter().all(|dir| {
            let lock = std::fs::File::options().write(true).open(sandbox.path(&format!("{dir}/lock")));
            if lock.is_ok_and(|lock| lock.try_lock().is_err()) {
                return false;
            }
            // One that was stopped before its first step has told nothing yet.
            let Ok(text) = std::fs::read_to_string(sandbox.path(&format!("{dir}/run.json"))) else {
                return true;
            };
            let info: Value = serde_json::from_str(&text).unwrap();
            let step = info["step"].as_u64().unwrap();
            match info["status"].as_str().unwrap() {
                "finished" => step == STEPS,
                "interrupted" => {
                    step == 0
                        || sandbox.path(&format!("{dir}/checkpoints/step-{step:06}/state.json")).is_file()
                }
                _ => false,
            }
        })
    }

    #[test]
    fn killed_five_times_it_comes_to_the_same_end() {
        let sandbox = super::prepared();
        let slower = super::TINY
            .replace("depth = 1\nwidth = 16", "depth = 2\nwidth = 32")
            .replace("context = 16", "context = 32")
            .replace("batch_sequences = 4", "batch_sequences = 24\ncheckpoint_every_steps = 10")
            .replace("steps = 12", &format!("steps = {STEPS}"));
        sandbox.write("base.toml", slower);
        // What is killed, how, after so many milliseconds, and whether the next one waits until all is quiet.
        let rounds = [
            ("KILL", false, 37, true),
            ("INT", true, 90, true),
            ("KILL", true, 5, false),
            ("TERM", false, 64, true),
            ("KILL", false, 110, false),
        ];
        for (i, (name, group, delay, quiet)) in rounds.into_iter().enumerate() {
            let before = logs(&sandbox, "a");
            let mut child = start(&sandbox, "a");
            wait("a run's first step", || {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "round {i}: the sweep ended by itself: {ended:?}");
                logs(&sandbox, "a") != before
            });
            std::thread::sleep(Duration::from_millis(delay));
            assert!(child.try_wait().unwrap().is_none(), "round {i}: it was over before it could be stopped");
            signal(&child, name, group);
            let output = child.wait_with_output().unwrap();
            let stderr = lossy(&output.stderr);
            if name == "KILL" {
                assert_eq!(output.status.code(), None, "{stderr}");
            } else {
                assert_eq!(output.status.code(), Some(130), "{stderr}");
                assert!(stderr.contains("stopping the runs after their steps"), "{stderr}");
                assert!(stderr.ends_with("stopped; the same command goes on\n"), "{stderr}");
                assert!(at_rest(&sandbox, "a"), "round {i}: a run was not brought to a checkpoint");
            }
            if quiet {
                wait(&format!("round {i}: the ends of all runs"), || at_rest(&sandbox, "a"));
                let still = logs(&sandbox, "a");
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(logs(&sandbox, "a"), still, "round {i}: a run goes on without its sweep");
            }
        }
        assert!(
            records(&sandbox, "a").len() < 8,
            "the sweep was over before it was killed for the last time"
        );
        let args = |out| ["sweep", "rates.toml", "--out", out, "--jobs", "2", "--threads", "2", "-q"];
        let ended = table(&sandbox.ok(&args("a")), "a");
        let straight = table(&sandbox.ok(&args("b")), "b");
        assert_eq!(ended, straight);
        assert_eq!(sandbox.read("a/summary.json"), sandbox.read("b/summary.json"));
        assert_eq!(outcomes(&sandbox, "a"), outcomes(&sandbox, "b"));
        for dir in folders(&sandbox, "a") {
            let logged = sandbox.lines(&format!("{dir}/metrics.jsonl"));
            let steps: Vec<u64> = logged.iter().map(|l| l["step"].as_u64().unwrap()).collect();
            assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "{dir}");
        }
    }
}
