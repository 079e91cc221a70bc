//! Every command that the documentation shows, run as it is written, so that none can rot.
//!
//! A page is a session. Its blocks `console` (or `sh`, `bash`) hold commands and no output; they run from top to bottom,
//! together with the commands in its tables, in a folder that looks like a small clone of the repository
//! ([`sandbox`]). What makes them small is a table there, [`sandbox::SMALL`]. What cannot run here (it needs data,
//! Python, the network, Cargo, or long) says so in its info string and is checked without running ([`check`]), as are
//! commands in running text. Blocks `toml` must be configurations, schemes or sweeps that the program reads. Links
//! and paths must lead somewhere ([`links`]). How to write all this is in CONTRIBUTING.md.
//!
//! Pages are found by listing `docs`; each known one has a test of its own, so that they run in parallel and can be
//! chosen by name, and those that are not listed here run in one more.
#![cfg(unix)]

mod check;
mod links;
mod page;
mod sandbox;
mod shell;

use page::{How, Kind, Page};
use sandbox::Sandbox;
use std::path::{Path, PathBuf};

/// The page whose commands make what all others take for granted.
const FIRST: &str = "docs/README.md";

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// Every page, by its path below the root: Markdown at the root, in `docs`, and beside the scripts.
fn pages() -> Vec<String> {
    let mut found = vec!["bench/README.md".to_string(), "scripts/golden/README.md".to_string()];
    for (folder, prefix) in [(".", ""), ("docs", "docs/")] {
        for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") && name != "CHANGELOG.md" {
                found.push(format!("{prefix}{name}"));
            }
        }
    }
    found.sort();
    found
}

/// Goes through a page in a sandbox of its own and fails with everything that went wrong.
fn follow(name: &str) {
    let page = Page::read(&repository(), name);
    let mut wrong = page.complaints.clone();
    wrong.extend(links::broken(&repository(), &page));
    if name == FIRST {
        // Its commands ran when the first sandbox was made.
        if let Err(failures) = sandbox::first() {
            wrong.extend(failures.clone());
        }
    } else {
        let runs = page.steps.iter().any(|step| step.how == How::Run);
        let sandbox = if runs { Sandbox::new() } else { Sandbox::empty() };
        wrong.extend(go_through(&page, &sandbox));
    }
    assert!(wrong.is_empty(), "{} in {name}:\n\n{}\n", wrong.len(), wrong.join("\n\n"));
}

/// What goes wrong when a page's steps are taken in order. What follows a failure may fail because of it.
fn go_through(page: &Page, sandbox: &Sandbox) -> Vec<String> {
    let mut wrong = Vec::new();
    for step in &page.steps {
        let result = match (&step.kind, step.how) {
            (Kind::Command { text, exit }, How::Run) => sandbox.run(text, *exit),
            (Kind::Command { text, .. } | Kind::Script(text), _) => check::commands(text, &repository()),
            (Kind::File { name, text, reader }, _) => sandbox.file(name.as_deref(), text, *reader),
        };
        if let Err(reason) = result {
            wrong.push(format!("{}:{}: {reason}", page.name, step.line));
        }
    }
    wrong
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(#[test]
        fn $test() {
            follow($page);
        })*

        /// Pages that have a test above.
        const KNOWN: &[&str] = &[$($page),*];
    };
}

pages! {
    architecture: "ARCHITECTURE.md",
    contributing: "CONTRIBUTING.md",
    readme: "README.md",
    bench: "bench/README.md",
    docs: "docs/README.md",
    blocks: "docs/blocks.md",
    checkpoints: "docs/checkpoints.md",
    cluster: "docs/cluster.md",
    command_line: "docs/command-line.md",
    data: "docs/data.md",
    experiments: "docs/experiments.md",
    metrics: "docs/metrics.md",
    optimizers: "docs/optimizers.md",
    performance: "docs/performance.md",
    quantisation: "docs/quantisation.md",
    quickstart: "docs/quickstart.md",
    reports: "docs/reports.md",
    sampling: "docs/sampling.md",
    sweeps: "docs/sweeps.md",
    tracking: "docs/tracking.md",
    training: "docs/training.md",
    vision: "docs/vision.md",
    golden: "scripts/golden/README.md",
}

#[test]
fn pages_without_a_test_of_their_own() {
    let pages = pages();
    for page in KNOWN {
        assert!(pages.iter().any(|p| p == page), "{page} is listed in this test and does not exist");
    }
    let rest: Vec<_> = pages.iter().filter(|page| !KNOWN.contains(&page.as_str())).collect();
    // Each on a thread of its own: a page that fails must not keep the next from being looked at.
    std::thread::scope(|scope| {
        let running: Vec<_> = rest.iter().map(|page| scope.spawn(|| follow(page))).collect();
        let failed = running.into_iter().filter_map(|page| page.join().err()).count();
        assert_eq!(failed, 0, "pages among {rest:?}, see above");
    });
}

/// `docs/README.md` names every page of the folder.
#[test]
fn every_page_is_in_the_index() {
    let index = Page::read(&repository(), FIRST);
    for page in pages() {
        if let Some(file) = page.strip_prefix("docs/").filter(|_| page != FIRST) {
            assert!(index.links.iter().any(|(_, to)| to == file), "{FIRST} does not link to {file}");
        }
    }
}

/// The runner itself: commands in tables count as those in blocks do.
#[test]
fn commands_of_tables_run() {
    let page = Page::read(&repository(), "README.md");
    let runs = page.steps.iter().filter(|step| step.how == How::Run).count();
    assert!(runs >= 15, "README.md has {runs} commands that run");
}

/// The runner itself: what rots is found.
#[test]
fn what_rots_is_found() {
    let text = "# Title\n\n[gone](no/such/file.md), [no heading](#nowhere), `scripts/no_such_script.py`, `scripts/NAME.py`\n\n\
        ```console\nevenkeel config lost\ncat missing.txt\nfalse # exit 1\n\
        evenkeel config show op \\\n  | grep -c preset\n```\n\n\
        ```console needs-data\nevenkeel train x.toml --set data.pth=y\nsrun -n 1 evenkeel train big.toml --outt runs/big\n```\n\n\
        ```console needs-cargo\ncargo run --release --example no_such_example\njust no-such-recipe\n```\n\n\
        ```console needs-python\npython3 scripts/no_such_script.py\npython3 bench/compare.py --no-such-flag\n```\n\n\
        ```toml\n[model]\ndpth = 3\n```\n\n```console sometimes\ntrue\n```\n\n```console\n$ true\npython3 x.py\n```\n\n\
        | a | b |\n| --- | --- |\n| bad | `evenkeel bench lost` |\n\nSee `evenkeel eval --modl x`.\n";
    let page = Page::parse("page.md", text);
    let mut wrong = page.complaints.clone();
    wrong.extend(links::broken(&repository(), &page));
    wrong.extend(go_through(&page, &Sandbox::empty()));
    let found = |line: usize| wrong.iter().filter(|w| w.starts_with(&format!("page.md:{line}: "))).count();
    assert_eq!(found(3), 3, "{wrong:#?}");
    for line in [6, 7, 14, 15, 19, 20, 24, 25, 28, 33, 38, 39, 44, 46] {
        assert_eq!(found(line), 1, "line {line}: {wrong:#?}");
    }
    assert_eq!(wrong.len(), 3 + 14, "{wrong:#?}");
}
