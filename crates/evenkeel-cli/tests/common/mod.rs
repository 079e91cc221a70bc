//! What every test of the program needs: a folder of its own, a small corpus made on the spot, data, a tiny
//! configuration, and ways to run the program that also judge how it ended.
//!
//! The program runs inside the folder and is given relative paths, so that what it prints holds no path of the
//! machine. Nothing is downloaded, and equal tests print equal text.
// Each test file is a crate of its own and uses some of these.
#![allow(dead_code)]

pub(crate) mod events;

use assert_cmd::Command;
use evenkeel::checkpoint::read_tensors;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// Every preset of text of this version.
pub(crate) const PRESETS: [&str; 14] = [
    "pre_ln",
    "pre_rms",
    "pre_srms",
    "post_ln",
    "op",
    "op_paper",
    "op_tanh",
    "op_no_entropy",
    "layerscale",
    "gated_attention",
    "clipped_softmax",
    "parallel",
    "skipless",
    "osp",
];

/// Every preset of images, which follow them.
pub(crate) const IMAGE_PRESETS: [&str; 4] = ["vit", "vit_layerscale", "vit_op", "vit_b16"];

/// A temporary folder that the program is run in; it goes away with this value.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("evenkeel-test").tempdir().unwrap() }
    }

    /// A folder with `data` (one id per byte, 257 in all) and `tiny.toml`.
    pub(crate) fn with_data() -> Self {
        let sandbox = Self::new();
        sandbox.corpus("corpus", 40);
        sandbox.ok(&["data", "tokenize", "corpus", "--bytes", "--out", "data"]);
        sandbox.config("tiny.toml", "op", "adamw");
        sandbox
    }

    /// The same and a finished run `run` of the preset.
    pub(crate) fn with_run(preset: &str) -> Self {
        let sandbox = Self::with_data();
        sandbox.config("tiny.toml", preset, "adamw");
        sandbox.ok(&["train", "tiny.toml", "--out", "run", "--threads", "1"]);
        sandbox
    }

    /// Where `relative` lies.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, relative: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Reads a text file.
    pub(crate) fn read(&self, relative: &str) -> String {
        let path = self.path(relative);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Reads any file.
    pub(crate) fn bytes(&self, relative: &str) -> Vec<u8> {
        let path = self.path(relative);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Copies a file within the folder, making the folders above the target.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        let bytes = self.bytes(from);
        self.write(to, bytes);
    }

    /// Every file below the folder with its bytes.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.insert(path.clone(), Vec::new());
                    walk(&path, found);
                } else {
                    found.insert(path.clone(), std::fs::read(&path).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.dir.path(), &mut found);
        found
    }

    /// Writes a folder of text files, about 4 KB each.
    pub(crate) fn corpus(&self, folder: &str, files: usize) {
        for i in 0..files {
            self.write(&format!("{folder}/part-{i:02}.txt"), text(i as u64, 4000));
        }
    }

    /// Writes a configuration: 2 blocks of 32 channels and 2 heads, 32 tokens of context, 50 steps of 8 sequences.
    pub(crate) fn config(&self, file: &str, preset: &str, optimizer: &str) {
        let text = format!(
            "[model]\npreset = \"{preset}\"\ndepth = 2\nwidth = 32\nheads = 2\ncontext = 32\n\n\
             [data]\npath = \"data\"\n\n\
             [optim]\nname = \"{optimizer}\"\nlr_peak = 3e-3\n\n\
             [train]\nsteps = 50\nbatch_sequences = 8\neval_tokens = 1024\n"
        );
        self.write(file, text);
    }

    /// The program, about to run in this folder without colour, bars, or settings of the user.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("evenkeel");
        // All but the instruction set, so that a test run can be held to one.
        let foreign = |name: &str| name.starts_with("EVENKEEL_") && name != "EVENKEEL_ISA";
        for (name, _) in std::env::vars().filter(|(name, _)| foreign(name)) {
            command.env_remove(name);
        }
        command
            .env("NO_COLOR", "1")
            .current_dir(self.dir.path())
            .args(args)
            .timeout(Duration::from_secs(120));
        command
    }

    /// Runs the program and demands an exit code.
    pub(crate) fn run(&self, args: &[&str], code: i32) -> Output {
        let output = self.command(args).output().unwrap();
        let (stdout, stderr) = (lossy(&output.stdout), lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\nstdout: {stdout}\nstderr: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        output
    }

    /// Runs what must succeed; gives stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args, 0).stdout).unwrap()
    }

    /// Runs what must succeed with `--json`; gives the object after looking at its `schema`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        let text = self.ok(&args);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"));
        assert_eq!(value["schema"], 1, "{args:?}");
        value
    }

    /// Runs what must be refused: exit code 2, nothing on stdout, and on stderr one line that begins with
    /// `error:`, an empty line, and one that begins with `hint:`. Gives stderr.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args, 2);
        assert_eq!(lossy(&output.stdout), "", "{args:?} printed a result and failed");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let stderr = stderr.replace(&self.dir.path().display().to_string(), "[DIR]");
        let (message, hint) =
            stderr.split_once("\n\n").unwrap_or_else(|| panic!("{args:?}: no hint in {stderr:?}"));
        let message = message.strip_prefix("error: ").unwrap_or_else(|| panic!("{args:?}: {stderr:?}"));
        let hint = hint.strip_prefix("hint: ").and_then(|h| h.strip_suffix('\n'));
        let hint = hint.unwrap_or_else(|| panic!("{args:?}: {stderr:?}"));
        for (what, line) in [("message", message), ("hint", hint)] {
            assert!(
                !line.trim().is_empty() && !line.contains('\n'),
                "{args:?}: {what} is not one line: {stderr:?}"
            );
        }
        stderr
    }

    /// The lines of a log.
    pub(crate) fn lines(&self, relative: &str) -> Vec<Value> {
        self.read(relative).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The tensors of a safetensors file as numbers, with their shapes.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let read = read_tensors(path).unwrap();
    read.into_iter()
        .map(|(name, t)| {
            let flat = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (name, (t.dims().to_vec(), flat.into_iter().map(f64::from).collect()))
        })
        .collect()
}

/// Text for messages.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// About `bytes` bytes of something like source code; the same for the same seed.
pub(crate) fn text(seed: u64, bytes: usize) -> String {
    const NAMES: [&str; 12] = [
        "count", "total", "width", "depth", "index", "token", "value", "state", "table", "line", "rest",
        "sum",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut draw = |n: usize| {
        // The usual 64-bit linear congruence; its high bits are good enough for text.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut out = String::with_capacity(bytes + 100);
    while out.len() < bytes {
        let (a, b, c) = (NAMES[draw(12)], NAMES[draw(12)], NAMES[draw(12)]);
        out += &match draw(4) {
            0 => format!("    let {a} = {b} + {c};\n"),
            1 => format!("fn {a}_{b}({c}: u64) -> u64 {{\n"),
            2 => format!("    return {a} * {};\n}}\n\n", draw(100)),
            _ => format!("    if {a} > {b} {{ {c} = {}; }}\n", draw(10)),
        };
    }
    out
}

/// The keys of an object.
pub(crate) fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A number, which null is not.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Whether two numbers agree to a relative difference.
pub(crate) fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * a.abs().max(b.abs()).max(1e-12)
}
