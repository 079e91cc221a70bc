//! What can be said of a command without running it: the program parses its arguments and knows its keys, and what
//! Cargo, just, Python or the shell would be given is there.

use crate::shell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Folders whose paths must exist when a command runs or reads one.
const SOURCES: [&str; 4] = ["scripts/", "bench/", "crates/", ".ci/"];
/// Optimisers whose settings `--set` may name.
const OPTIMIZERS: [&str; 8] =
    ["adamw", "sgd", "adafactor", "adafactor_torch", "rotated_adafactor", "shampoo", "soap", "muon"];

/// Checks every command of shell text.
pub(crate) fn commands(text: &str, repository: &Path) -> Result<(), String> {
    if text.starts_with("#!") || text.contains("\n") {
        let syntax = output(Command::new("bash").args(["-n", "-c", text]));
        said(&syntax, 0).map_err(|said| format!("bash does not read this:\n{text}\n{said}"))?;
    }
    for words in shell::lex(text).commands {
        let words: Vec<&str> =
            words.iter().map(String::as_str).filter(|word| !["...", "…"].contains(word)).collect();
        command(&words, repository).map_err(|reason| format!("`{}`: {reason}", words.join(" ")))?;
    }
    Ok(())
}

/// Checks one simple command.
fn command(words: &[&str], repository: &Path) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    match program.rsplit('/').next().unwrap_or(program) {
        "evenkeel" => own(arguments),
        "cargo" => cargo(arguments, repository),
        "just" => match arguments.iter().find(|word| !word.starts_with('-')) {
            Some(recipe) => just(recipe, repository),
            None => Ok(()),
        },
        "python" | "python3" | "pip" => python(arguments, repository),
        "bash" | "sh" => match arguments.first().filter(|word| !word.starts_with('-')) {
            Some(script) => shell_script(script, &arguments[1..], repository),
            None => Ok(()),
        },
        script if script.ends_with(".py") => python(words, repository),
        _ if SOURCES.iter().any(|folder| program.starts_with(folder)) => {
            shell_script(program, arguments, repository)
        }
        // Behind a program that starts others, such as srun, nohup or sbatch.
        _ => {
            let script = |word: &&str| SOURCES.iter().any(|f| word.starts_with(f)) && word.ends_with(".sh");
            if let Some(script) = arguments.iter().copied().find(|word| script(word)) {
                return shell_script(script, &[], repository);
            }
            // GNU parallel's own arguments are those behind `:::`.
            let end = arguments.iter().position(|word| *word == ":::").unwrap_or(arguments.len());
            match arguments[..end].iter().position(|word| *word == "evenkeel") {
                Some(at) => own(&arguments[at + 1..end]),
                None => Ok(()),
            }
        }
    }
}

/// The program reads its arguments one after the other, so that help asked for at the end comes only if all before it
/// were understood. A variable is the reader's, and stands for a number as well as for a word.
fn own(arguments: &[&str]) -> Result<(), String> {
    let variable = |word: &&str| word.starts_with('$') && !word.contains('/');
    let arguments: Vec<&str> = arguments.iter().map(|w| if variable(w) { "1" } else { *w }).collect();
    let parsed = output(program().args(&arguments).arg("--help"));
    said(&parsed, 0)?;
    if !matches!(arguments.first(), Some(&("train" | "config"))) {
        return Ok(());
    }
    for pair in arguments.windows(2).filter(|pair| pair[0] == "--set") {
        // A key may belong to one optimiser only.
        let unknown = OPTIMIZERS.iter().all(|name| {
            let optimizer = format!("optim.name={name}");
            let shown =
                output(program().args(["config", "show", "op", "--set", &optimizer, "--set", pair[1]]));
            String::from_utf8_lossy(&shown.stderr).contains("unknown key")
        });
        if unknown {
            return Err(format!("no optimiser's configuration has the key of {}", pair[1]));
        }
    }
    Ok(())
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
}

/// Examples, tests, packages and features that Cargo is asked for.
fn cargo(arguments: &[&str], repository: &Path) -> Result<(), String> {
    let manifest = |file: &str| std::fs::read_to_string(repository.join(file)).unwrap_or_default();
    let own = manifest("crates/evenkeel-cli/Cargo.toml");
    let given = |flags: &[&str]| {
        let pair =
            arguments.windows(2).take_while(|pair| pair[0] != "--").find(|pair| flags.contains(&pair[0]));
        pair.map(|pair| pair[1].to_string())
    };
    if let Some(example) = given(&["--example"]) {
        let manifest: toml::Table = own.parse().map_err(|e| format!("{e}"))?;
        let examples = manifest["example"].as_array().ok_or("there are no examples")?;
        let found = examples.iter().find(|e| e["name"].as_str() == Some(&example));
        let found = found.ok_or(format!("there is no example {example}"))?;
        let source = format!("crates/evenkeel-cli/{}", found["path"].as_str().unwrap_or_default());
        let behind = arguments.iter().skip_while(|word| **word != "--").skip(1);
        return flags(&[repository.join(source)], behind.copied());
    }
    let crates = std::fs::read_dir(repository.join("crates")).map_err(|e| e.to_string())?;
    let crates: Vec<_> = crates.flatten().map(|entry| entry.path()).collect();
    if let Some(package) = given(&["-p", "--package"])
        && !crates.iter().any(|path| path.ends_with(&package))
    {
        return Err(format!("there is no crate {package}"));
    }
    if let Some(test) = given(&["--test"]) {
        let test = |path: &Path| {
            path.join(format!("tests/{test}.rs")).exists()
                || path.join(format!("tests/{test}/main.rs")).exists()
        };
        if !crates.iter().any(|path| test(path)) {
            return Err("there is no such test".into());
        }
    }
    if let Some(path) = given(&["--path"])
        && !repository.join(&path).exists()
    {
        return Err(format!("there is no {path}"));
    }
    if let Some(feature) = given(&["--features"])
        && !own.lines().any(|line| line.starts_with(&format!("{feature} =")))
    {
        return Err(format!("there is no feature {feature}"));
    }
    Ok(())
}

/// A recipe of the justfile.
fn just(recipe: &str, repository: &Path) -> Result<(), String> {
    let file = std::fs::read_to_string(repository.join("justfile")).map_err(|e| format!("justfile: {e}"))?;
    let is = |line: &str| line.strip_prefix(recipe).is_some_and(|rest| rest.starts_with([':', ' ']));
    if file.lines().any(is) { Ok(()) } else { Err("the justfile has no such recipe".into()) }
}

/// A script and its flags, or a list of packages.
fn python(arguments: &[&str], repository: &Path) -> Result<(), String> {
    if let Some(list) = arguments.windows(2).find(|pair| pair[0] == "-r").map(|pair| pair[1])
        && !repository.join(list).exists()
    {
        return Err(format!("there is no {list}"));
    }
    let Some(at) = arguments.iter().position(|word| word.ends_with(".py")) else { return Ok(()) };
    // A name with a variable in it is made by a loop.
    if arguments[at].contains('$') {
        return Ok(());
    }
    let script = repository.join(arguments[at]);
    if !script.exists() {
        return Err(format!("there is no {}", arguments[at]));
    }
    // Compiled in memory, since a cache beside the script would change the repository.
    let compile = "import sys; compile(open(sys.argv[1], encoding='utf-8').read(), sys.argv[1], 'exec')";
    if let Ok(compiled) = Command::new("python3").args(["-c", compile]).arg(&script).output() {
        said(&compiled, 0)?;
    }
    // Flags may be those of a module beside it.
    let beside = |line: &str| {
        let module =
            line.strip_prefix("from ").or(line.strip_prefix("import "))?.split_whitespace().next()?;
        Some(script.with_file_name(format!("{module}.py"))).filter(|path| path.exists())
    };
    let text = std::fs::read_to_string(&script).map_err(|e| e.to_string())?;
    let sources: Vec<_> = std::iter::once(script.clone()).chain(text.lines().filter_map(beside)).collect();
    flags(&sources, arguments[at + 1..].iter().copied())
}

/// A script of the shell and its flags.
fn shell_script(script: &str, arguments: &[&str], repository: &Path) -> Result<(), String> {
    let path = repository.join(script);
    if !path.exists() {
        return Err(format!("there is no {script}"));
    }
    said(&output(Command::new("bash").arg("-n").arg(&path)), 0)?;
    flags(&[path], arguments.iter().copied())
}

/// Whether sources name every flag that the first is given. `--a-b` may be a field `a_b` there.
fn flags<'a>(sources: &[PathBuf], arguments: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut text = String::new();
    for source in sources {
        text += &std::fs::read_to_string(source).map_err(|e| format!("{}: {e}", source.display()))?;
    }
    for flag in arguments.filter(|word| word.starts_with("--") && word.len() > 2) {
        let flag = flag.split('=').next().unwrap_or(flag);
        if !text.contains(flag) && !text.contains(&flag[2..].replace('-', "_")) {
            return Err(format!("{flag} is no flag of {}", sources[0].display()));
        }
    }
    Ok(())
}

fn output(command: &mut Command) -> Output {
    command.env("NO_COLOR", "1").stdin(Stdio::null()).output().expect("the program starts")
}

/// Whether a program ended as it should, or what it said.
fn said(output: &Output, exit: i32) -> Result<(), String> {
    if output.status.code() == Some(exit) {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim_end().to_string())
}
