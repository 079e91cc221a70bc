//! What is watched while training, and what is done about it: moments.jsonl and alarms.jsonl, through the program.
//!
//! Bounds of alarms are taken from what a run without alarms measured, so that they are crossed whatever the
//! machine's rounding; what should fire is worked out again from stats.jsonl.
#![cfg(unix)]

mod common;

use common::{Sandbox, keys, lossy, number};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TERMS: [&str; 6] = ["u21", "u22", "u41", "u42", "u43", "u44"];

/// `--set` before each assignment.
fn sets<'a>(assignments: &[&'a str]) -> Vec<&'a str> {
    assignments.iter().flat_map(|set| ["--set", set]).collect()
}

fn train<'a>(out: &'a str, assignments: &[&'a str]) -> Vec<&'a str> {
    [&["train", "tiny.toml", "--out", out, "--threads", "1"][..], &sets(assignments)].concat()
}

fn step(line: &Value) -> u64 {
    line["step"].as_u64().unwrap()
}

fn at<'a>(lines: &'a [Value], site: &'a str) -> Vec<&'a Value> {
    lines.iter().filter(|l| l["site"] == site).collect()
}

/// Values of a metric at a site by step.
fn measured(sandbox: &Sandbox, run: &str, site: &str, metric: &str) -> Vec<(u64, f64)> {
    let lines = sandbox.lines(&format!("{run}/stats.jsonl"));
    at(&lines, site).iter().map(|l| (step(l), number(&l[metric]))).collect()
}

/// Steps at which an alarm of that bound and patience fires.
fn firings(values: &[(u64, f64)], above: f64, patience: usize) -> Vec<u64> {
    let is_above: Vec<bool> = values.iter().map(|v| v.1 > above).collect();
    (0..values.len())
        .filter(|&i| {
            let begin = (i + 1).checked_sub(patience);
            // Above for as long as the patience, and not for longer.
            begin.is_some_and(|b| is_above[b..=i].iter().all(|a| *a) && (b == 0 || !is_above[b - 1]))
        })
        .map(|i| values[i].0)
        .collect()
}

/// Half way between the smallest and the largest value: crossed at least once, unless nothing moves.
fn middle(values: &[(u64, f64)]) -> f64 {
    let lo = values.iter().fold(f64::INFINITY, |m, v| m.min(v.1));
    let hi = values.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.1));
    assert!(lo < hi, "{values:?}");
    (lo + hi) / 2.0
}

fn alarmed_steps(sandbox: &Sandbox, run: &str) -> Vec<u64> {
    sandbox.lines(&format!("{run}/alarms.jsonl")).iter().map(step).collect()
}

fn info(sandbox: &Sandbox, run: &str) -> Value {
    serde_json::from_str(&sandbox.read(&format!("{run}/run.json"))).unwrap()
}

#[test]
fn terms_sum_to_what_the_next_step_measures() {
    let sandbox = Sandbox::with_data();
    for (optimizer, kind) in [("adamw", "neuron"), ("soap", "neuron"), ("adamw", "element")] {
        sandbox.config("tiny.toml", "op", optimizer);
        let (out, moments) = (format!("{optimizer}-{kind}"), format!("telemetry.moments={kind}"));
        sandbox.ok(&train(&out, &["train.steps=12", "telemetry.moments_every_steps=1", &moments]));
        let lines = sandbox.lines(&format!("{out}/moments.jsonl"));
        assert_eq!(lines.len(), 12 * 3);
        for site in ["embed", "blocks.0.resid", "blocks.1.resid"] {
            let lines = at(&lines, site);
            assert_eq!(lines.iter().map(|l| step(l)).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
            let mut sums = [0.0; 6];
            for (i, line) in lines.iter().enumerate() {
                assert_eq!(line["moments"], kind);
                let (m2, m4) = (number(&line["m2"]), number(&line["m4"]));
                match kind {
                    "neuron" => assert!((number(&line["kurtosis"]) - m4 / (m2 * m2)).abs() < 1e-12),
                    _ => assert!(line["kurtosis"].is_null()),
                }
                for (term, sum) in TERMS.iter().zip(&mut sums) {
                    *sum += number(&line[*term]);
                    assert_eq!(number(&line[format!("cum_{term}")]), *sum, "{site} {term}");
                }
                let Some(next) = lines.get(i + 1) else { continue };
                for (moment, terms) in [("m2", &TERMS[..2]), ("m4", &TERMS[2..])] {
                    let terms: Vec<f64> = terms.iter().map(|t| number(&line[*t])).collect();
                    let change = number(&next[moment]) - number(&line[moment]);
                    let size: f64 = terms.iter().map(|t| t.abs()).sum();
                    let error = (change - terms.iter().sum::<f64>()).abs();
                    assert!(error <= 1e-6 * size, "{out} {site} step {i}, {moment}: {error:e} of {size:e}");
                }
            }
            // SOAP's first step moves nothing; later ones do.
            let first = TERMS.iter().all(|t| number(&lines[0][*t]) == 0.0);
            assert_eq!(first, optimizer == "soap", "{site}");
            assert!(number(&lines[5]["u42"]) > 0.0);
        }
        let page = sandbox.read(&format!("{out}/report/index.html"));
        assert!(page.contains("Moment control") && page.contains("quadratic, u42"));
    }
}

#[test]
fn looking_changes_nothing_and_is_off_by_default() {
    let sandbox = Sandbox::with_data();
    sandbox.ok(&train("plain", &["train.steps=12"]));
    assert!(!sandbox.path("plain/moments.jsonl").exists() && !sandbox.path("plain/alarms.jsonl").exists());
    let watched = [
        "train.steps=12",
        "telemetry.moments_every_steps=5",
        "telemetry.moment_sites=[\"blocks.*.mlp.hidden\", \"logits\"]",
        "telemetry.probe_sequences=3",
        "alarm=[{metric=\"rms\", above=0.0, sites=[\"final_norm\"]}]",
    ];
    sandbox.ok(&train("watched", &watched));
    for file in ["model.safetensors", "optim.safetensors"] {
        let of = |run: &str| sandbox.bytes(&format!("{run}/checkpoints/step-000012/{file}"));
        assert!(of("plain") == of("watched"), "{file}");
    }
    let lines = sandbox.lines("watched/moments.jsonl");
    let of = |site| at(&lines, site).iter().map(|l| step(l)).collect::<Vec<_>>();
    assert_eq!(of("blocks.1.mlp.hidden"), [1, 6, 11, 12]);
    assert_eq!(of("logits"), [1, 6, 11, 12]);
    assert_eq!(lines.len(), 3 * 4);
    // A site that only an alarm names is measured too; the others stay.
    let stats = sandbox.lines("watched/stats.jsonl");
    assert!(!at(&stats, "final_norm").is_empty() && !at(&stats, "embed").is_empty());
    assert_eq!(alarmed_steps(&sandbox, "watched"), [1]);
}

#[test]
fn without_validation_text_the_probe_is_training_text() {
    let sandbox = Sandbox::with_data();
    let shard = std::fs::read_dir(sandbox.path("data")).unwrap().flatten();
    let name = shard.map(|e| e.file_name().into_string().unwrap()).find(|n| n.starts_with("train_")).unwrap();
    let data = format!("data.path=data/{name}");
    let more = ["model.vocab=257", "train.steps=3", "telemetry.moments_every_steps=1"];
    sandbox.ok(&train("run", &[&[data.as_str()][..], &more].concat()));
    assert_eq!(sandbox.lines("run/moments.jsonl").len(), 3 * 3);
}

/// Makes steps slow enough to stop a run within them.
const SLOWER: [&str; 6] = [
    "model.width=64",
    "train.batch_sequences=48",
    "train.checkpoint_every_steps=10",
    "train.checkpoint_keep=10",
    "telemetry.stats_every_steps=3",
    "telemetry.moments_every_steps=1",
];

#[test]
fn sigkill_then_resume_gives_the_same_moments_and_alarms() {
    let sandbox = Sandbox::with_data();
    sandbox.ok(&train("unwatched", &SLOWER));
    let values = measured(&sandbox, "unwatched", "blocks.1.resid", "kurtosis");
    // Crossed early, so that it is above through the checkpoint; one late; and one that counts for long.
    let early = values.iter().map(|v| v.1).fold(f64::INFINITY, f64::min) - 1e-6;
    let alarms = format!(
        "alarm=[{{metric=\"kurtosis\", above={early:?}, patience=9}}, \
         {{metric=\"kurtosis\", above={:?}, sites=[\"blocks.1.resid\"]}}, {{metric=\"rms\", above=0.0}}]",
        middle(&values)
    );
    let all = [&SLOWER[..], &[alarms.as_str()]].concat();
    sandbox.ok(&train("straight", &all));
    let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(train("killed", &all))
        .current_dir(sandbox.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !sandbox.path("killed/checkpoints/step-000020/state.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !sandbox.path("killed/checkpoints/step-000050").exists(),
        "the run was over before it was killed"
    );
    sandbox.ok(&[&train("killed", &all)[..], &["--resume"]].concat());
    for log in ["moments.jsonl", "alarms.jsonl", "stats.jsonl", "checkpoints/step-000050/state.json"] {
        let of = |run: &str| sandbox.read(&format!("{run}/{log}"));
        assert!(of("straight") == of("killed"), "{log} differs");
    }
    let fired = alarmed_steps(&sandbox, "straight");
    // Patience of nine measurements at every third step: step 25, after the checkpoint that was resumed from or
    // one later; counts from before it are part of it.
    let late = firings(&measured(&sandbox, "straight", "blocks.1.resid", "kurtosis"), early, 9);
    assert_eq!(late, [25]);
    assert!(fired.contains(&25) && fired.contains(&1), "{fired:?}");
}

#[test]
fn an_alarm_is_logged_once_for_each_crossing() {
    let sandbox = Sandbox::with_data();
    let stats = "telemetry.stats_every_steps=1";
    sandbox.ok(&train("run", &[stats]));
    // The max-median ratio of a batch goes up and down from step to step.
    let values = measured(&sandbox, "run", "embed", "mmr");
    let above = middle(&values);
    for patience in [1, 2] {
        let out = format!("alarmed-{patience}");
        let alarm =
            format!("alarm=[{{metric=\"mmr\", sites=[\"embed\"], above={above:?}, patience={patience}}}]");
        let output = sandbox.run(&train(&out, &[stats, &alarm]), 0);
        let expected = firings(&values, above, patience);
        assert!(patience > 1 || !expected.is_empty(), "{values:?}");
        assert_eq!(alarmed_steps(&sandbox, &out), expected);
        let stderr = lossy(&output.stderr);
        assert_eq!(stderr.matches("alarm: mmr at embed is").count(), expected.len(), "{stderr}");
        let page = sandbox.read(&format!("{out}/report/index.html"));
        assert_eq!(page.contains("<h2>Alarms</h2>"), !expected.is_empty());
        for line in sandbox.lines(&format!("{out}/alarms.jsonl")) {
            let expected = ["above", "action", "metric", "patience", "site", "step", "value"];
            assert_eq!(keys(&line), expected.into_iter().collect());
            assert!(number(&line["value"]) > above);
            assert_eq!((&line["action"], &line["patience"]), (&"log".into(), &patience.into()));
        }
    }
    let quiet = sandbox
        .run(&[&train("quiet", &[stats, "alarm=[{metric=\"rms\", above=0.0}]"])[..], &["-q"]].concat(), 0);
    assert_eq!(lossy(&quiet.stderr), "");
}

#[test]
fn an_alarm_that_stops_leaves_a_checkpoint_and_the_run_can_go_on() {
    let sandbox = Sandbox::with_data();
    let stats = "telemetry.stats_every_steps=1";
    sandbox.ok(&train("run", &[stats]));
    let values = measured(&sandbox, "run", "embed", "rms");
    let above = middle(&values);
    let expected = firings(&values, above, 2);
    let alarm = |action: &str| {
        format!(
            "alarm=[{{metric=\"rms\", sites=[\"embed\"], above={above:?}, patience=2, action=\"{action}\"}}]"
        )
    };
    let (stop, log) = (alarm("stop"), alarm("log"));
    sandbox.ok(&train("logged", &[stats, &log]));
    let Some(&at) = expected.first().filter(|at| **at < 50) else {
        panic!("the bound is not crossed before the end: {values:?}")
    };

    let output = sandbox.run(&train("stopped", &[stats, &stop]), 1);
    let run = info(&sandbox, "stopped");
    assert_eq!((&run["status"], &run["step"]), (&"alarmed".into(), &at.into()));
    let reason = run["reason"].as_str().unwrap();
    assert!(reason.starts_with("rms at embed is ") && reason.contains("2 measurements"), "{reason}");
    let stdout = lossy(&output.stdout);
    assert!(stdout.starts_with(&format!("alarmed after {at} steps")) && stdout.contains(reason), "{stdout}");
    assert!(sandbox.path(&format!("stopped/checkpoints/step-{at:06}/state.json")).exists());
    assert!(sandbox.path("stopped/report/index.html").exists());
    assert_eq!(alarmed_steps(&sandbox, "stopped"), [at]);

    // Each further crossing stops it again, the one that has fired does not.
    for (i, &step) in expected.iter().enumerate().skip(1) {
        sandbox.run(&[&train("stopped", &[stats, &stop])[..], &["--resume"]].concat(), 1);
        assert_eq!(alarmed_steps(&sandbox, "stopped"), expected[..=i]);
        assert_eq!(info(&sandbox, "stopped")["step"], step);
    }
    if expected.last() != Some(&50) {
        sandbox.ok(&[&train("stopped", &[stats, &stop])[..], &["--resume"]].concat());
        assert_eq!(info(&sandbox, "stopped")["status"], "finished");
    }
    assert_eq!(sandbox.read("stopped/stats.jsonl"), sandbox.read("run/stats.jsonl"));
    for run in ["run", "stopped"] {
        let weights = |run: &str| sandbox.bytes(&format!("{run}/checkpoints/step-000050/model.safetensors"));
        assert!(weights(run) == weights("logged"), "{run}");
    }
    let logged = sandbox.read("logged/alarms.jsonl").replace("\"log\"", "\"stop\"");
    assert_eq!(sandbox.read("stopped/alarms.jsonl"), logged);
}

#[test]
fn an_alarm_can_write_a_checkpoint_and_alarms_may_change_when_a_run_goes_on() {
    let sandbox = Sandbox::with_data();
    let alarm = "alarm=[{metric=\"rms\", above=0.0, action=\"checkpoint\", patience=2}]";
    let output = sandbox.run(&[&train("run", &["train.steps=15", alarm])[..], &["-v"]].concat(), 0);
    // Measured are steps 1 and 11; one checkpoint for the three sites.
    assert_eq!(lossy(&output.stderr).matches("step-000011").count(), 1);
    assert_eq!(alarmed_steps(&sandbox, "run"), [11, 11, 11]);
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step-000015")).unwrap();
    let other = "alarm=[{metric=\"mmr\", above=0.5}]";
    let resumed = [&train("run", &["train.steps=15", other])[..], &["--resume"]].concat();
    sandbox.ok(&resumed);
    assert_eq!(alarmed_steps(&sandbox, "run"), [11, 11, 11, 15, 15, 15]);
    assert!(sandbox.read("run/resolved.toml").contains("metric = \"mmr\""));
    // With none left the log is cut all the same.
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step-000015")).unwrap();
    sandbox.ok(&[&train("run", &["train.steps=15"])[..], &["--resume"]].concat());
    assert_eq!(alarmed_steps(&sandbox, "run"), [11, 11, 11]);
    assert!(!sandbox.read("run/resolved.toml").contains("alarm"));
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let sandbox = Sandbox::with_data();
    for (set, message) in [
        ("alarm=[{metric=\"kurtosi\", above=3}]", "the nearest is \"kurtosis\""),
        ("alarm=[{metric=\"rms\", abov=3}]", "the nearest known key is `alarm[0].above`"),
        ("alarm=[{metric=\"rms\"}]", "has no `above`"),
        ("alarm=[{metric=\"rms\", above=nan}]", "must be a finite number"),
        ("alarm=[{metric=\"rms\", above=1, patience=0}]", "patience` must be at least 1"),
        ("alarm=[{metric=\"rms\", above=1, action=\"halt\"}]", "alarm[0].action"),
        ("alarm=[{metric=\"rms\", above=1, sites=[\"{\"]}]", "is not a glob"),
        ("alarm=[{metric=\"rms\", above=1, sites=[\"blocks.9.resid\"]}]", "watches no site"),
        ("alarm=3", "`alarm` must be a list"),
        ("telemetry.moment_sites=[\"{\"]", "telemetry.moment_sites"),
        ("telemetry.moments=\"channel\"", "telemetry.moments"),
        ("telemetry.moments_every_steps=-1", "telemetry.moments_every_steps"),
        ("telemetry.moment_every_steps=1", "the nearest known key is `telemetry.moments_every_steps`"),
        ("telemetry.probe_sequences=0", "telemetry.probe_sequences"),
        ("telemetry.gram=\"token\"", "telemetry.gram"),
        ("telemetry.gram_tokens=1", "telemetry.gram_tokens"),
        ("telemetry.token_metrics=1", "telemetry.token_metrics"),
    ] {
        let stderr = sandbox.refused(&[&train("run", &[set])[..], &["-q"]].concat());
        assert!(stderr.contains(message), "{set}: {stderr}");
    }
}
