//! What the program says of itself to other programs: completions, manual pages, the schema of configurations.
// What is skipped is said.
#![allow(clippy::print_stdout)]

mod common;

use common::{PRESETS, Sandbox, keys, lossy};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// Every command as it is typed after `evenkeel`, found by asking --help.
fn commands(sandbox: &Sandbox) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![String::new()];
    while let Some(command) = open.pop() {
        let help = sandbox.ok(&[&command.split_whitespace().collect::<Vec<_>>()[..], &["--help"]].concat());
        let Some((_, list)) = help.split_once("\nCommands:\n") else { continue };
        for line in list.lines().take_while(|line| !line.is_empty()) {
            // Continued lines are indented further.
            let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
            let name = name.split_whitespace().next().unwrap();
            if name != "help" {
                let below = format!("{command} {name}").trim().to_string();
                open.push(below.clone());
                found.insert(below);
            }
        }
    }
    assert!(found.contains("data tokenize") && found.contains("config schema"), "{found:?}");
    found
}

/// Runs a program that may not be there.
fn try_run(program: &str, args: &[&str], sandbox: &Sandbox) -> Option<std::process::Output> {
    let output = Command::new(program).args(args).current_dir(sandbox.path("")).output().ok();
    if output.is_none() {
        println!("skipped: no {program}");
    }
    output
}

#[test]
fn every_shell_has_a_script_that_names_every_command() {
    let sandbox = Sandbox::new();
    let commands = commands(&sandbox);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = sandbox.ok(&["completions", shell]);
        for word in commands.iter().flat_map(|command| command.split(' ')) {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(script.contains("train-bpe") && script.contains("no-progress"), "{shell}");
        let json = sandbox.json(&["completions", shell]);
        assert_eq!((json["shell"].as_str(), json["script"].as_str()), (Some(shell), Some(script.as_str())));
        let file = format!("completions.{shell}");
        sandbox.write(&file, script);
        if ["bash", "zsh", "fish"].contains(&shell)
            && let Some(output) = try_run(shell, &["-n", &file], &sandbox)
        {
            assert!(output.status.success(), "{shell}: {}", lossy(&output.stderr));
        }
    }
    let stderr = sandbox.refused(&["completions", "bahs"]);
    assert!(stderr.contains("did you mean `bash`"), "{stderr}");
    sandbox.refused(&["completions"]);
}

#[test]
fn bash_completes_what_is_typed() {
    let sandbox = Sandbox::new();
    sandbox.write("completions.bash", sandbox.ok(&["completions", "bash"]));
    for (words, expected) in [
        ("evenkeel qua", "quantize"),
        ("evenkeel config sc", "schema"),
        ("evenkeel completions f", "fish"),
        ("evenkeel data tokenize --train-b", "--train-bpe"),
        ("evenkeel export --to compressed", "compressed-tensors"),
    ] {
        let last = words.split(' ').next_back().unwrap();
        let before = words.split(' ').rev().nth(1).unwrap();
        let script = format!(
            "source completions.bash; COMP_WORDS=({words}); COMP_CWORD={}; \
             _evenkeel evenkeel '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            words.split(' ').count() - 1
        );
        let Some(output) = try_run("bash", &["--norc", "-c", &script], &sandbox) else { return };
        assert_eq!(lossy(&output.stdout).trim(), expected, "{words}: {}", lossy(&output.stderr));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let sandbox = Sandbox::new();
    let expected: BTreeSet<String> = commands(&sandbox)
        .iter()
        .map(|command| format!("evenkeel-{}.1", command.replace(' ', "-")))
        .chain(["evenkeel.1".to_string()])
        .collect();
    let dry = sandbox.json(&["man", "pages", "--dry-run"]);
    assert!(!sandbox.path("pages").exists());
    sandbox.write("pages/evenkeel-train.1", "of an earlier version");
    sandbox.write("pages/other.1", "of another program");
    let stdout = sandbox.ok(&["man", "pages"]);
    assert!(stdout.starts_with(&format!("{} pages", expected.len())), "{stdout}");
    let listed: BTreeSet<String> =
        dry["pages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_string()).collect();
    assert_eq!(listed, expected);
    assert_eq!(sandbox.read("pages/other.1"), "of another program");
    let written = std::fs::read_dir(sandbox.path("pages")).unwrap().count();
    assert_eq!(written, expected.len() + 1);
    for name in &expected {
        let path = format!("pages/{name}");
        let page = sandbox.read(&path);
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
        assert!(page.contains(env!("CARGO_PKG_VERSION")), "{name}");
        if let Some(output) = try_run("groff", &["-man", "-ww", "-z", &path], &sandbox) {
            assert!(output.status.success(), "{name}");
            assert_eq!(lossy(&output.stderr), "", "{name}");
        }
    }
    assert!(sandbox.read("pages/evenkeel-data-tokenize.1").contains("evenkeel data tokenize"));
    sandbox.write("file", "");
    let stderr = sandbox.refused(&["man", "file"]);
    assert!(stderr.contains("file"), "{stderr}");
}

#[test]
fn the_schema_knows_every_key_of_every_preset() {
    let sandbox = Sandbox::new();
    let schema: Value = serde_json::from_str(&sandbox.ok(&["config", "schema"])).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(sandbox.json(&["config", "schema"])["config"], schema);
    let tables = &schema["properties"];
    for preset in PRESETS {
        let shown = &sandbox.json(&["config", "show", preset])["config"];
        for table in ["model", "data", "train", "telemetry"] {
            assert!(keys(&shown[table]).is_subset(&keys(&tables[table]["properties"])), "{preset} {table}");
        }
        let presets = tables["model"]["properties"]["preset"]["enum"].as_array().unwrap();
        assert!(presets.iter().any(|name| name == preset));
    }
    let op: Value =
        serde_json::from_str(&sandbox.ok(&["config", "schema", "--set", "model.preset=op"])).unwrap();
    assert_eq!(op["properties"]["model"]["properties"]["norm"]["default"], "none");
    assert_eq!(tables["model"]["properties"]["norm"]["default"], "layer");
    let choices: Vec<&str> = tables["train"]["properties"]["precision"]["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["const"].as_str().unwrap())
        .collect();
    assert_eq!(choices, ["f32", "bf16"]);
    sandbox.refused(&["config", "schema", "--set", "model.preset=opp"]);
}
