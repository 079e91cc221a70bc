//! A page of Markdown as the steps that a reader takes: commands in blocks and tables, files, and what is only named.

use crate::shell;
use std::path::Path;

/// Whether a step is taken or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Run in the sandbox.
    Run,
    /// Checked without running: its info string says what it needs, or it stands in running text.
    Check,
}

/// What reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// `config check`.
    Config,
    /// `quantize --scheme`.
    Scheme,
    /// `sweep`.
    Sweep,
    /// Only a reader of TOML.
    Toml,
}

/// A step.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Shell text, and the code that it ends with.
    Command { text: String, exit: i32 },
    /// A shell script: a block that begins with `#!`.
    Script(String),
    /// A `toml` block, with the name that its first line may give it.
    File { name: Option<String>, text: String, reader: Reader },
}

/// A step with its place.
#[derive(Debug)]
pub(crate) struct Step {
    /// Line in the page, from 1.
    pub(crate) line: usize,
    pub(crate) how: How,
    pub(crate) kind: Kind,
}

/// A page, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Its path below the root of the repository.
    pub(crate) name: String,
    /// In the order in which they stand.
    pub(crate) steps: Vec<Step>,
    /// Targets of links, with their lines.
    pub(crate) links: Vec<(usize, String)>,
    /// Code in running text and tables, with its lines.
    pub(crate) code: Vec<(usize, String)>,
    /// What its headings are linked by.
    pub(crate) anchors: Vec<String>,
    /// Blocks that do not keep to the rules.
    pub(crate) complaints: Vec<String>,
}

/// Info-string words of commands that are not run.
const NEEDS: [&str; 6] =
    ["needs-data", "needs-network", "needs-python", "needs-cargo", "needs-cluster", "slow"];
/// Programs that a plain block may not hold, and the word that it needs.
const FOREIGN: [(&str, &str); 18] = [
    ("cargo", "needs-cargo"),
    ("just", "needs-cargo"),
    ("git", "needs-cargo"),
    ("python", "needs-python"),
    ("python3", "needs-python"),
    ("pip", "needs-python"),
    ("uv", "needs-python"),
    ("tensorboard", "needs-python"),
    ("curl", "needs-network"),
    ("wget", "needs-network"),
    ("hf", "needs-network"),
    ("huggingface-cli", "needs-network"),
    ("sbatch", "needs-cluster"),
    ("srun", "needs-cluster"),
    ("squeue", "needs-cluster"),
    ("ssh", "needs-cluster"),
    ("rsync", "needs-cluster"),
    ("parallel", "needs-cluster"),
];

impl Page {
    /// Reads a page of the repository.
    pub(crate) fn read(repository: &Path, name: &str) -> Self {
        let text = std::fs::read_to_string(repository.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self::parse(name, &text)
    }

    /// Takes Markdown apart.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut page = Page { name: name.to_string(), ..Default::default() };
        let mut lines = text.lines().enumerate();
        let mut prose: Vec<(usize, String)> = Vec::new();
        while let Some((i, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else {
                // A table's row stands for itself; other lines make paragraphs, in which code may be broken.
                if line.trim_start().starts_with('|') || line.trim().is_empty() || line.starts_with('#') {
                    page.paragraph(std::mem::take(&mut prose));
                    page.paragraph(vec![(i + 1, line.to_string())]);
                } else {
                    prose.push((i + 1, line.to_string()));
                }
                continue;
            };
            page.paragraph(std::mem::take(&mut prose));
            let indent = line.len() - line.trim_start().len();
            let block = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
            let block: Vec<String> =
                block.map(|line| line.get(indent..).unwrap_or(line.trim_start()).to_string()).collect();
            page.block(i + 1, info.trim(), &block);
        }
        page.paragraph(prose);
        page
    }

    fn complain(&mut self, line: usize, what: &str) {
        self.complaints.push(format!("{}:{line}: {what}", self.name));
    }

    /// A fenced block that opens on `line`.
    fn block(&mut self, line: usize, info: &str, block: &[String]) {
        let mut words = info.split_whitespace();
        let language = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        match language {
            "console" | "sh" | "bash" => {
                if let Some(word) = words.iter().find(|word| !NEEDS.contains(word)) {
                    return self.complain(line, &format!("no info word of commands: {word}"));
                }
                self.commands(line, &words, block);
            }
            "toml" => {
                let reader = match words[..] {
                    [] => Reader::Config,
                    ["scheme"] => Reader::Scheme,
                    ["sweep"] => Reader::Sweep,
                    ["other"] => Reader::Toml,
                    _ => {
                        return self
                            .complain(line, "toml is a configuration, or one of scheme, sweep, other");
                    }
                };
                let first = block.first().and_then(|line| line.strip_prefix("# "));
                let name = first.and_then(|first| first.split([' ', ':', ',']).next());
                let name = name.filter(|name| name.ends_with(".toml")).map(String::from);
                let kind = Kind::File { name, text: block.join("\n") + "\n", reader };
                self.steps.push(Step { line, how: How::Run, kind });
            }
            "" => self.complain(line, "the block does not say what it is: console, text, toml, ..."),
            _ => {}
        }
    }

    /// A block of commands.
    fn commands(&mut self, line: usize, words: &[&str], block: &[String]) {
        if block.first().is_some_and(|line| line.starts_with("#!")) {
            let kind = Kind::Script(block.join("\n"));
            return self.steps.push(Step { line, how: How::Check, kind });
        }
        for (i, text) in shell::commands(block) {
            let line = line + 1 + i;
            if text.starts_with("$ ") {
                self.complain(line, "commands stand without a prompt, and output in a block of its own");
                continue;
            }
            // What Cargo would build and run is there, and runs.
            let (text, own) = match from_cargo(&text) {
                Some(own) => (own, words == ["needs-cargo"]),
                None => (text, false),
            };
            let lexed = shell::lex(&text);
            let how = if words.is_empty() || own { How::Run } else { How::Check };
            if how == How::Run
                && let Some(need) = lexed.commands.iter().find_map(|command| foreign(&command[0]))
            {
                self.complain(
                    line,
                    &format!("`{}` is not run here: say {need} in the info string", text.trim()),
                );
                continue;
            }
            let exit = lexed.exit();
            self.steps.push(Step { line, how, kind: Kind::Command { text, exit } });
        }
    }

    /// Lines of running text, or one row of a table, or a heading.
    fn paragraph(&mut self, lines: Vec<(usize, String)>) {
        let Some((line, first)) = lines.first().cloned() else { return };
        if let Some(heading) = first.strip_prefix('#') {
            self.anchors.push(anchor(heading.trim_start_matches('#')));
        }
        let row = first.trim_start().starts_with('|');
        let text = lines.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
        let excepted =
            text.contains("<!-- not run: ") || NEEDS.iter().any(|n| text.contains(&format!("<!-- {n} -->")));
        let place = |at: usize| line + text[..at].matches('\n').count();
        for (at, code) in code_spans(&text) {
            let code = code.replace('\n', " ").replace("\\|", "|");
            let code = code.trim().to_string();
            let runs = row && !excepted && code.starts_with("evenkeel ");
            let text = from_cargo(&code).unwrap_or(code.clone());
            let program = shell::lex(&text).commands.first().map(|c| c[0].clone()).unwrap_or_default();
            let command = text.contains(' ') && (program == "evenkeel" || foreign(&program).is_some());
            if command || (text.contains(' ') && (program == "bash" || program.starts_with("scripts/"))) {
                let how = if runs { How::Run } else { How::Check };
                let exit = shell::lex(&text).exit();
                self.steps.push(Step { line: place(at), how, kind: Kind::Command { text, exit } });
            }
            self.code.push((place(at), code));
        }
        for (at, _) in text.match_indices("](") {
            // Not in code, and not an address elsewhere.
            let target = text[at + 2..].split([')', ' ', '\n']).next().unwrap_or_default();
            let in_code = code_spans(&text).any(|(from, code)| from <= at && at < from + code.len());
            if !in_code && !target.contains("://") && !target.starts_with("mailto:") {
                self.links.push((place(at), target.to_string()));
            }
        }
    }
}

/// `evenkeel X` for `cargo run ... -- X`.
fn from_cargo(text: &str) -> Option<String> {
    let (cargo, own) = text.split_once(" -- ")?;
    let mut words = cargo.split_whitespace();
    let builds = (words.next(), words.next()) == (Some("cargo"), Some("run"));
    (builds && words.all(|word| word == "--release" || word == "--locked")).then(|| format!("evenkeel {own}"))
}

/// The info word that a program needs.
fn foreign(program: &str) -> Option<&'static str> {
    let name = program.rsplit('/').next().unwrap_or(program);
    FOREIGN.iter().find(|(foreign, _)| *foreign == name).map(|(_, need)| *need)
}

/// Code between single backquotes, with where it begins.
fn code_spans(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split('`').enumerate().filter_map(move |(i, part)| {
        let from = at;
        at += part.len() + 1;
        (i % 2 == 1).then_some((from, part))
    })
}

/// What a heading is linked by: its letters, digits, hyphens and underscores in lower case, spaces as hyphens.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
