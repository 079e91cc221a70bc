//! `experiment` through the program: small runs, judged; records that are found wherever they are; and that the page of the
//! repository is what its records give.

mod common;

use common::{Sandbox, lossy, number};
use evenkeel::experiment::{Scale, library};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Two vision transformers of one block, whose images are drawn; claims that are true, open, and false.
const MINE: &str = r#"
title = "Two small ones"
section = "Nowhere"
about = "OP beside Pre-LN on drawn images."
figures = ["val_loss", "accuracy", "kurtosis_peak"]
plots = [{ curve = "kurtosis" }, { layers = "kurtosis" }, { x = "kurtosis_peak", y = "val_loss" }]

[small]
base = "small_vit"
seeds = [0, 1, 2]
run = { model.depth = 1, model.width = 16, model.heads = 2, train.steps = 6, train.batch_sequences = 4, train.eval_tokens = 650, data.train_images = 40, data.val_images = 40 }
note = "Six steps."

[full]
base = "imagenet"
seeds = [0]

[[variant]]
name = "Pre-LN"

[[variant]]
name = "OP"
set = { model.preset = "vit_op" }

[[claim]]
says = "The loss is a number."
paper = "1 against 2"
figure = "val_loss"
below = { groups = ["Pre-LN", "OP"], value = 1000 }

[[claim]]
says = "OP has lower kurtosis."
figure = "kurtosis"
rising = ["OP", "Pre-LN"]

[[claim]]
says = "The loss is huge."
figure = "val_loss"
above = { groups = ["Pre-LN", "OP"], value = 1000 }
"#;

fn modified(sandbox: &Sandbox, folder: &str) -> BTreeMap<PathBuf, SystemTime> {
    let files = std::fs::read_dir(sandbox.path(folder)).unwrap().map(|e| e.unwrap().path());
    files.map(|p| (p.clone(), p.metadata().unwrap().modified().unwrap())).collect()
}

fn records(sandbox: &Sandbox, folder: &str) -> Vec<Value> {
    let paths = modified(sandbox, folder).into_keys();
    paths.map(|p| serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap()).collect()
}

/// `rising = ["OP", "Pre-LN"]` of the mean kurtosis over sites, judged again from the records.
fn rises(records: &[Value]) -> &'static str {
    let of = |preset: &str, seed: u64| {
        let is =
            |r: &&Value| r["config"]["model"]["preset"] == preset && r["config"]["train"]["seed"] == seed;
        let sites = records.iter().find(is).unwrap()["sites"]["kurtosis"].as_object().unwrap();
        sites.values().map(number).sum::<f64>() / sites.len() as f64
    };
    let pairs = [0, 1, 2].map(|seed| (of("vit_op", seed), of("vit", seed)));
    let sum = pairs.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
    match (sum.0 < sum.1, pairs.iter().all(|p| p.0 < p.1)) {
        (true, true) => "yes",
        (true, false) => "in_the_mean",
        (false, _) => "no",
    }
}

/// The command that runs [`MINE`].
fn experiment<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["experiment", "mine.toml", "--records", "found"], more].concat()
}

#[test]
fn an_experiment_of_ones_own_is_run_once_and_judged() {
    let sandbox = Sandbox::new();
    sandbox.write("mine.toml", MINE);
    // One run of six: nothing is judged on that.
    let part = sandbox.json(&experiment(&["--out", "a", "--shard", "1/6", "--keep"]));
    let claims = part["experiments"][0]["claims"].as_array().unwrap();
    assert!(claims.iter().all(|c| c["verdict"] == "not_run"), "{part}");
    assert_eq!(records(&sandbox, "found").len(), 1);
    let kept = std::fs::read_dir(sandbox.path("a/runs")).unwrap().next().unwrap().unwrap().path();
    assert!(kept.join("checkpoints/step-000006/model.safetensors").is_file(), "--keep keeps checkpoints");

    let first = sandbox.run(&experiment(&["--out", "a", "--threads", "2"]), 0);
    assert!(
        lossy(&first.stderr).starts_with("1 of 6 runs have a record already\n"),
        "{}",
        lossy(&first.stderr)
    );
    let records = records(&sandbox, "found");
    assert_eq!(records.len(), 6);
    let kept: Vec<PathBuf> = std::fs::read_dir(sandbox.path("a/runs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|dir| dir.join("checkpoints").exists())
        .collect();
    assert_eq!(kept.len(), 1, "without --keep checkpoints of finished runs go: {kept:?}");

    let stdout = lossy(&first.stdout);
    assert!(stdout.starts_with("Two small ones (mine)\n\nsettings  runs "), "{stdout}");
    let rows = ["paper:    The loss is a number. (1 against 2)\n", "paper:    OP has lower kurtosis.\n"];
    assert!(rows.iter().all(|row| stdout.contains(row)), "{stdout}");
    let verdicts: Vec<&str> = stdout.lines().filter_map(|l| l.strip_prefix("verdict:  ")).collect();
    let open = rises(&records);
    assert_eq!(verdicts, ["yes", if open == "in_the_mean" { "in the mean only" } else { open }, "no"]);
    let losses: Vec<f64> = records
        .iter()
        .filter(|r| r["config"]["model"]["preset"] == "vit")
        .map(|r| number(&r["val_loss"]))
        .collect();
    let measured = format!("measured: Pre-LN {:.3} ± ", losses.iter().sum::<f64>() / 3.0);
    assert!(stdout.contains(&measured), "{stdout} does not say {measured}");
    assert!(stdout.ends_with("page: a/mine/index.html\n"), "{stdout}");

    let page = sandbox.read("a/mine/index.html");
    for text in
        ["Two small ones", "Six steps.", "The loss is huge.", "<svg", "1 against 2", "Mean ± standard error"]
    {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("NaN") && !page.contains("src="), "the page is not self-contained");
    for i in 1..=3 {
        assert!(sandbox.read(&format!("a/mine/mine-{i}.svg")).contains("<svg"));
    }

    // Records are found by their key: another folder for the rest makes no difference, and nothing is trained.
    let before = modified(&sandbox, "found");
    let again = sandbox.run(&experiment(&["--out", "b"]), 0);
    assert_eq!(lossy(&again.stderr), "6 of 6 runs have a record already\n");
    assert_eq!(lossy(&again.stdout).replace("b/mine", "a/mine"), stdout);
    assert!(!sandbox.path("b/runs").exists(), "a run was made again");
    assert_eq!(sandbox.read("b/mine/index.html"), page);
    let judged = sandbox.json(&experiment(&["--out", "b"]));
    let claims = judged["experiments"][0]["claims"].as_array().unwrap();
    let verdicts: Vec<&str> = claims.iter().map(|c| c["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["yes", open, "no"]);
    assert_eq!((&claims[0]["paper"], &claims[1]["paper"]), (&"1 against 2".into(), &Value::Null));
    assert_eq!(modified(&sandbox, "found"), before);
    // Whatever a record's file is called.
    let (path, _) = before.first_key_value().unwrap();
    std::fs::rename(path, path.with_file_name("renamed.json")).unwrap();
    let plan = sandbox.json(&experiment(&["--out", "c", "--dry-run"]));
    assert_eq!(plan["left"]["runs"], 0);

    std::fs::write(sandbox.path("found/renamed.json"), "{\"schema\": 1").unwrap();
    let said = sandbox.refused(&experiment(&["--out", "c"]));
    assert!(
        said.contains("found/renamed.json is no record of a run") && said.contains("remove the file"),
        "{said}"
    );
    assert!(!sandbox.path("c").exists());
}

#[test]
fn an_experiment_of_the_library_runs_on_other_data_and_at_another_size() {
    let sandbox = Sandbox::with_data();
    let mut args =
        vec!["experiment", "final_norm", "--records", "found", "--out", "a", "--threads", "2", "-q"];
    let settings = [
        "data.path=data",
        "model.vocab=257",
        "model.depth=1",
        "model.width=16",
        "model.heads=2",
        "model.context=16",
        "train.steps=2",
        "train.batch_sequences=2",
    ];
    settings.iter().for_each(|s| args.extend(["--set", s]));
    let shown = sandbox.ok(&args);
    assert!(shown.starts_with("The final norm undoes part of OP's gain (final_norm)\n"), "{shown}");
    assert_eq!(shown.matches("paper:    ").count(), 2);
    assert_eq!(shown.matches("\nmeasured: without ").count(), 2);
    assert!(!shown.contains("not run"), "{shown}");
    let records = records(&sandbox, "found");
    assert_eq!(records.len(), 6);
    for record in &records {
        assert_eq!((&record["step"], &record["quantised"][0]["scheme"]), (&2.into(), &"w8a8".into()));
        assert!(record["moments"].as_array().unwrap().iter().any(|m| m["site"] == "embed"), "{record}");
    }
    assert!(sandbox.read("a/final_norm/index.html").contains("evenkeel experiment final_norm --scale small"));
}

#[test]
fn what_is_no_experiment_is_refused() {
    let sandbox = Sandbox::new();
    let list = sandbox.ok(&["experiment", "--list"]);
    let listed: Vec<&str> = list.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(listed, library::names().collect::<Vec<_>>());
    let rows = sandbox.json(&["experiment", "--list"]);
    assert_eq!(rows["experiments"].as_array().unwrap().len(), listed.len());

    let options: [(&[&str], &[&str]); 6] = [
        (&["norm"], &["no experiment named \"norm\"", "the nearest is \"norms\"", "experiment --list"]),
        (&["entirely-different"], &["no experiment named \"entirely-different\"", "experiment --list"]),
        (&["none.toml"], &["none.toml: "]),
        (&["vit", "--seed", "1"], &["--seed has no meaning for an experiment"]),
        (&["vit", "--set", "model.widht=3"], &["`model.widht`", "`model.width`"]),
        (&["vit", "--jobs", "0"], &["--jobs must lie between 1 and"]),
    ];
    for (more, expected) in options {
        let said = sandbox.refused(&[&["experiment"], more].concat());
        assert!(expected.iter().all(|e| said.contains(e)), "{said}");
    }
    let files = [
        ("small_vit", "small_vat", "no base \"small_vat\""),
        ("rising = [\"OP\"", "rising = [\"OPP\"", "names \"OPP\", which is no variant"),
        ("figure = \"kurtosis\"", "figure = \"kurtosi\"", "no figure named \"kurtosi\""),
        ("rising = ", "rsing = ", "\"OP has lower kurtosis.\""),
        ("rising = ", "below = { groups = [\"OP\"], value = 1 }\nrising = ", "\"OP has lower kurtosis.\""),
        ("paper = ", "papper = ", "papper"),
        ("{ curve = ", "{ curv = ", "mine.toml: line 6: "),
        ("vit_op", "vit_opp", "vit_opp"),
        (
            "\n[[claim]]",
            "\n[[variant]]\nname = \"OP\"\nset = { model.depth = 2 }\n\n[[claim]]",
            "called \"OP\"",
        ),
        ("seeds = [0, 1, 2]", "seeds = []", "seeds is empty"),
    ];
    for (from, to, expected) in files {
        assert!(MINE.contains(from), "{from}");
        sandbox.write("mine.toml", MINE.replacen(from, to, 1));
        let said = sandbox.refused(&["experiment", "mine.toml"]);
        assert!(said.contains(expected), "{to}: {said}");
        for word in ["untagged", "enum ", "flattened"] {
            assert!(!said.contains(word), "{to}: words of the program's inside: {said}");
        }
    }
    assert!(!sandbox.path("runs").exists() && !sandbox.path("experiments").exists(), "a folder was left");
}

#[test]
fn all_of_them_share_their_runs_and_say_which_have_records() {
    let sandbox = Sandbox::new();
    let plan = |args: &[&str]| {
        let plan = sandbox.json(&[&["experiment", "--dry-run", "--records", "found"], args].concat());
        let runs = plan["runs"].as_array().unwrap().clone();
        let keys: BTreeSet<String> = runs.iter().map(|r| r["key"].as_str().unwrap().to_string()).collect();
        assert_eq!(keys.len(), runs.len(), "{args:?}: a run is there twice");
        assert_eq!(plan["left"]["runs"], runs.iter().filter(|r| r["done"] == false).count());
        let tokens = |r: &Value| r["plan"]["tokens"].as_u64().unwrap();
        let left: u64 = runs.iter().filter(|r| r["done"] == false).map(tokens).sum();
        assert_eq!(plan["left"]["tokens"], left);
        (keys, runs)
    };
    let (all, _) = plan(&["--all"]);
    let (mut shared, mut union) = (0, BTreeSet::new());
    for name in library::names() {
        let (keys, _) = plan(&[name]);
        shared += keys.len();
        union.extend(keys);
    }
    assert_eq!(all, union);
    assert!(all.len() > 50 && all.len() < shared, "{} runs, {shared} with those that are shared", all.len());
    let (mut parts, mut count) = (BTreeSet::new(), 0);
    for part in ["1/4", "2/4", "3/4", "4/4"] {
        let (keys, _) = plan(&["--all", "--shard", part]);
        count += keys.len();
        parts.extend(keys);
    }
    assert_eq!((&parts, count), (&all, all.len()));
    assert!(sandbox.files().is_empty(), "a dry run wrote something");

    // A record of one of them: that of a small run, with the configuration of the real one.
    sandbox.write("mine.toml", MINE);
    sandbox.ok(&["experiment", "mine.toml", "--records", "made", "--out", "a", "--shard", "1/6", "-q"]);
    let mut record = records(&sandbox, "made").remove(0);
    let cell = library::experiment("vit").unwrap().sweep(Scale::Small, &[]).unwrap().cells.remove(0);
    let table: toml::Table = cell.config.to_toml().unwrap().parse().unwrap();
    record["config"] = serde_json::to_value(table).unwrap();
    record["measure"] = serde_json::to_value(&cell.measure).unwrap();
    sandbox.write("found/any.json", record.to_string());
    let (_, runs) = plan(&["--all"]);
    let done: Vec<&Value> = runs.iter().filter(|r| r["done"] == true).map(|r| &r["key"]).collect();
    assert_eq!(done, [&Value::from(cell.key)]);
    let shown = sandbox.ok(&["experiment", "--all", "--dry-run", "--records", "found"]);
    assert_eq!(shown.lines().filter(|l| l.ends_with(" done")).count(), 1, "{shown}");
    assert!(shown.contains(&format!("{} of {} runs to do, ", all.len() - 1, all.len())), "{shown}");
}

/// docs/reproduction.md and its pictures are what the records of the repository give, byte for byte. Neither is there without
/// the other.
#[test]
fn the_page_of_the_repository_is_what_its_records_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let (folder, page) = (root.join("experiments/runs"), root.join("docs/reproduction.md"));
    let pictures = |docs: &Path| -> BTreeMap<String, Vec<u8>> {
        let Ok(found) = std::fs::read_dir(docs.join("img/reproduction")) else { return BTreeMap::new() };
        let files = found.map(|e| e.unwrap());
        files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
    };
    let records = folder.is_dir()
        && std::fs::read_dir(&folder)
            .unwrap()
            .any(|e| e.unwrap().path().extension().is_some_and(|e| e == "json"));
    assert_eq!(records, page.is_file(), "experiments/runs and docs/reproduction.md belong together");
    if !records {
        assert!(pictures(&root.join("docs")).is_empty(), "pictures of a page that is not there");
        return;
    }
    let sandbox = Sandbox::new();
    let folder = folder.to_str().unwrap();
    // Not one run is made here: it would take minutes, and be written beside the others.
    let plan = sandbox.json(&["experiment", "--all", "--dry-run", "--records", folder]);
    assert_eq!(plan["left"]["runs"], 0, "runs have no record: evenkeel experiment --all makes them");
    sandbox.ok(&[
        "experiment",
        "--all",
        "--records",
        folder,
        "--out",
        "out",
        "--page",
        "docs/reproduction.md",
        "-q",
    ]);
    let again = "not what the records give: evenkeel experiment --all writes it again";
    let committed = std::fs::read_to_string(&page).unwrap().replace("\r\n", "\n");
    assert!(sandbox.read("docs/reproduction.md") == committed, "docs/reproduction.md is {again}");
    let (made, committed) = (pictures(&sandbox.path("docs")), pictures(&root.join("docs")));
    assert_eq!(made.keys().collect::<Vec<_>>(), committed.keys().collect::<Vec<_>>());
    for (name, bytes) in made {
        assert!(bytes == committed[&name], "docs/img/reproduction/{name} is {again}");
    }
}
