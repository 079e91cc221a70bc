//! Every preset and every kind of block through the program: thirty steps, the configuration read back, the checkpoint
//! evaluated.

mod common;

use common::{PRESETS, Sandbox, close, number};
use std::collections::BTreeMap;

/// The `[model]` tables of every preset, and of the variants that the golden files hold.
fn variants() -> BTreeMap<String, toml::Table> {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/blocks.json");
    let golden: BTreeMap<String, toml::Table> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let of_preset = |name: &str| toml::Table::from_iter([("preset".to_string(), toml::Value::from(name))]);
    let sizes = [("depth", 2), ("width", 16), ("heads", 2), ("context", 16)];
    PRESETS
        .iter()
        .map(|name| (format!("preset {name}"), of_preset(name)))
        .chain(golden)
        .map(|(name, mut table)| {
            table.remove("vocab");
            for (key, size) in sizes {
                table.entry(key).or_insert(toml::Value::from(size));
            }
            (name, table)
        })
        .collect()
}

#[test]
fn thirty_steps_of_every_block() {
    let sandbox = Sandbox::with_data();
    let all = variants();
    assert!(all.len() > 50);
    for (name, model) in all {
        let mut run: toml::Table = "[data]\npath = 'data'\n[optim]\nlr_peak = 1e-2\n\
                                    [train]\nsteps = 30\nbatch_sequences = 8\neval_tokens = 1024\n"
            .parse()
            .unwrap();
        run.insert("model".into(), toml::Value::Table(model));
        sandbox.write("block.toml", toml::to_string(&run).unwrap());
        let report = sandbox.json(&["train", "block.toml", "--out", "run", "--force"]);
        assert_eq!(
            (report["status"].as_str(), report["step"].as_u64()),
            (Some("finished"), Some(30)),
            "{name}"
        );
        let first = number(&sandbox.lines("run/metrics.jsonl")[0]["train/loss"]);
        let (last, val) = (number(&report["train_loss"]), number(&report["val_loss"]));
        assert!(last < first, "{name}: the loss went from {first} to {last}");
        // What was run is what is written, and what is written is read again.
        let resolved = sandbox.json(&["config", "check", "run/resolved.toml"]);
        let given = sandbox.json(&["config", "check", "block.toml"]);
        for (key, value) in given["config"]["model"].as_object().unwrap() {
            if key != "vocab" {
                assert_eq!(&resolved["config"]["model"][key], value, "{name}: {key}");
            }
        }
        let args = ["eval", "run", "--data", "data"];
        let evaluated = number(&sandbox.json(&args)["loss"]);
        assert!(close(evaluated, val, 0.05), "{name}: {evaluated} by eval, {val} at the end of the run");
    }
}
