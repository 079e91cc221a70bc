//! The folder that a page is followed in: a small clone of the repository, and in it what `docs/README.md` makes, whose
//! commands run first. `evenkeel` on its path is the program with the arguments of [`SMALL`] behind those that were
//! written.
//!
//! Words that pages use for something of the reader's (`RUN`, `MODEL`) are folders of that name here, so that commands
//! run letter for letter.

use crate::page::{Page, Reader};
use crate::{FIRST, go_through, repository};
use assert_cmd::Command;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Arguments that make commands small: what a command line looks like (a pattern of the shell), and flags with their
/// values. They replace the flag where it was written, but for `--set`, of which the last counts.
pub(crate) const SMALL: &[(&str, &[(&str, &str)])] = &[
    (
        "train *",
        &[
            ("--set", "train.steps=4"),
            ("--set", "train.batch_sequences=2"),
            ("--set", "train.eval_tokens=512"),
            ("--set", "train.checkpoint_every_steps=2"),
            ("--set", "telemetry.stats_every_steps=2"),
            ("--set", "model.depth=2"),
            ("--set", "model.width=32"),
            ("--set", "model.heads=2"),
            ("--set", "model.context=32"),
        ],
    ),
    // 32 x 32 pixels in patches of 4, and the class token.
    ("train vit*", &[("--set", "model.context=65")]),
    (
        "sweep *",
        &[
            ("--set", "train.steps=4"),
            ("--set", "train.batch_sequences=2"),
            ("--set", "train.eval_tokens=512"),
            ("--set", "train.checkpoint_every_steps=2"),
            ("--set", "telemetry.stats_every_steps=2"),
            ("--set", "model.depth=1"),
            ("--set", "model.width=32"),
            ("--set", "model.heads=2"),
            ("--set", "model.context=32"),
        ],
    ),
    // Their smallest is minutes; tests of the command train less.
    ("experiment *", &[("--dry-run", "")]),
    // tests/quickstart.rs runs it; even its shortest run takes half a minute.
    ("quickstart*", &[("--dry-run", ""), ("--corpus", "docs")]),
    // The same tokens as those that are there, made again.
    ("data tokenize *", &[("--force", "")]),
    ("quantize *", &[("--tokens", "512"), ("--calib-batches", "1")]),
    ("quantize *--attribution*", &[("--attribution-tokens", "64")]),
    ("inspect *", &[("--tokens", "512")]),
    ("eval *", &[("--tokens", "512")]),
    ("bench gemm*", &[("--rounds", "1")]),
    ("bench gemm*", SIZES),
    ("bench ops*", &[("--rounds", "1"), ("--heads", "2")]),
    ("bench ops*", SIZES),
    ("bench step*", &[("--steps", "1"), ("--depth", "1"), ("--heads", "2")]),
    ("bench step*", SIZES),
    (
        "bench telemetry*",
        &[("--steps", "1"), ("--depth", "1"), ("--heads", "2"), ("--pairs", "1"), ("--gram-pairs", "1")],
    ),
    ("bench telemetry*", SIZES),
    (
        "bench decode*",
        &[("--rounds", "1"), ("--depth", "1"), ("--heads", "2"), ("--prompt", "4"), ("--tokens", "4")],
    ),
    ("bench decode*", SIZES),
    ("bench int8*", &[("--repeat", "1"), ("--depth", "1"), ("--heads", "2")]),
    ("bench int8*", SIZES),
    (
        "bench scale*",
        &[
            ("--width", "32,64"),
            ("--depth", "1,2"),
            ("--context", "16,32"),
            ("--sequences", "1,2"),
            ("--vocab", "64"),
            ("--d-head", "32"),
            ("--steps", "1"),
        ],
    ),
];

/// What `bench` takes for the shapes of a model.
const SIZES: &[(&str, &str)] =
    &[("--width", "32"), ("--vocab", "64"), ("--context", "16"), ("--sequences", "2")];

/// Files and folders of the repository that a sandbox has; source code only a part, to be tokenised.
const CLONED: [&str; 6] = [
    "README.md",
    "docs",
    "experiments",
    "crates/evenkeel-kernels/src",
    "crates/evenkeel/src/tape",
    "examples",
];

/// Folders under the names by which pages speak of the reader's.
const NAMED: [(&str, &str); 2] = [("runs/a", "RUN"), ("model", "MODEL")];

/// The longest that a command may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A folder to follow a page in; it goes away with this value.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    /// A folder without anything but the program.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("evenkeel-documented").tempdir().unwrap();
        let bin = dir.path().join(".bin");
        std::fs::create_dir(&bin).unwrap();
        let program = bin.join("evenkeel");
        std::fs::write(&program, small_program()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        Self { dir }
    }

    /// A clone in which the commands of `docs/README.md` were run.
    pub(crate) fn new() -> Self {
        let sandbox = Self::empty();
        let made = first().as_ref().unwrap_or_else(|_| panic!("the commands of {FIRST} fail: see its test"));
        copy(made, sandbox.dir.path());
        sandbox
    }

    /// Runs shell text and says what was wrong with its end.
    pub(crate) fn run(&self, text: &str, exit: i32) -> Result<(), String> {
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("EVENKEEL_") && n != "EVENKEEL_ISA") {
            command.env_remove(name);
        }
        command
            .args(["-o", "pipefail", "-c", text])
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{path}", self.dir.path().join(".bin").display()))
            .env("NO_COLOR", "1")
            .env("HF_HOME", self.dir.path().join(".hf"))
            .env("HF_HUB_OFFLINE", "1")
            .timeout(TIMEOUT);
        let output = command.output().map_err(|e| format!("`{text}`: bash does not start: {e}"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
        let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
        if output.status.code() == Some(exit) && !stderr.contains("panicked at") {
            return Ok(());
        }
        let ended =
            output.status.code().map_or("a signal, or the time limit".into(), |code| format!("exit {code}"));
        // Much of a long output is a table that says nothing about the failure.
        let from = stdout.char_indices().rev().nth(500).map_or(0, |(at, _)| at);
        Err(format!(
            "`{text}`\nends with {ended} instead of {exit}\nstderr: {stderr}\nstdout: {}",
            &stdout[from..]
        ))
    }

    /// Lays a file down and has it read.
    pub(crate) fn file(&self, name: Option<&str>, text: &str, reader: Reader) -> Result<(), String> {
        let name = name.unwrap_or("unnamed.toml");
        std::fs::write(self.dir.path().join(name), text).map_err(|e| format!("{name}: {e}"))?;
        match reader {
            Reader::Config => self.run(&format!("evenkeel config check {name}"), 0),
            Reader::Scheme => {
                self.run(&format!("evenkeel quantize runs/a --data data/rust --scheme {name} --dry-run"), 0)
            }
            Reader::Sweep => self.run(&format!("evenkeel sweep {name} --dry-run"), 0),
            Reader::Toml => {
                toml::from_str::<toml::Table>(text).map(|_| ()).map_err(|e| format!("{name}: {e}"))
            }
        }
    }
}

/// The folder that all sandboxes are copies of, or what went wrong while it was made.
pub(crate) fn first() -> &'static Result<PathBuf, Vec<String>> {
    static MADE: OnceLock<Result<PathBuf, Vec<String>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let sandbox = Sandbox::empty();
        let root = sandbox.dir.path();
        for part in CLONED {
            let (from, to) = (repository().join(part), root.join(part));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            copy(&from, &to);
        }
        let wrong = go_through(&Page::read(&repository(), FIRST), &sandbox);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for (made, name) in NAMED {
            copy(&root.join(made), &root.join(name));
        }
        // A value that lives as long as the process is never dropped, so this one lies where Cargo clears away.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("documented");
        if kept.exists() {
            std::fs::remove_dir_all(&kept).unwrap();
        }
        copy(root, &kept);
        Ok(kept)
    })
}

/// Copies a file, or a folder and what is in it.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

/// The program's stand-in: a script that takes away what [`SMALL`] replaces and adds what it says.
fn small_program() -> String {
    let mut script = String::from("#!/usr/bin/env bash\nflags=() values=()\n");
    for (pattern, arguments) in SMALL {
        let pattern = pattern.replace(' ', "\\ ");
        for (flag, value) in *arguments {
            writeln!(script, "case \"$*\" in {pattern}) flags+=({flag}) values+=('{value}');; esac").unwrap();
        }
    }
    write!(
        script,
        r#"kept=()
while [ $# -gt 0 ]; do
  drop=0
  for i in "${{!flags[@]}}"; do
    [ "${{flags[i]}}" = --set ] && continue
    case "$1" in
      "${{flags[i]}}") drop=1; [ -n "${{values[i]}}" ] && drop=2;;
      "${{flags[i]}}"=*) drop=1;;
    esac
  done
  [ $drop = 0 ] && kept+=("$1") && drop=1
  shift $drop
done
for i in "${{!flags[@]}}"; do
  kept+=("${{flags[i]}}")
  [ -n "${{values[i]}}" ] && kept+=("${{values[i]}}")
done
exec '{}' "${{kept[@]}}"
"#,
        env!("CARGO_BIN_EXE_evenkeel")
    )
    .unwrap();
    script
}
