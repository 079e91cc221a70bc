//! A page about a model as `evenkeel quantize` found it: what quantisation costs, which quantiser costs what, and what rounding
//! takes away at each place; and the same figures as files.

use super::cost_section::{Cost, bar_chart, cost_section, costs, cumulative_chart, deviation_chart, nats};
use super::error_maps::{error_maps, error_section};
use super::findings;
use super::html::{Block, Page, Section, WIDE};
use super::inspect_page::code;
use super::int8_section::percent;
use super::svg::Target;
use super::table::{Align, Table, cell};
use super::{ReportError, write_file};
use crate::quant::{Attribution, QuantReport};
use std::path::Path;

/// The page about the model called `name`. What was not measured is left out.
pub fn quantize_page(report: &QuantReport, name: &str) -> Page {
    let parts = [
        Some(headline(report)),
        report.attribution.as_ref().map(cost_section),
        error_section(report),
        Some(measured(report)),
    ];
    Page {
        title: format!("Quantisation of {name}"),
        lead: lead(report),
        sections: parts.into_iter().flatten().collect(),
    }
}

/// The figures of the page as SVG documents, with the names of their files.
pub fn quantize_figures(report: &QuantReport) -> Vec<(&'static str, String)> {
    let maps = error_maps(&report.sites);
    let maps = maps.iter().map(|map| (map.file, map.render(WIDE, Target::File)));
    let of_costs = report.attribution.iter().flat_map(|attribution| {
        [
            ("costs.svg", bar_chart(&costs(attribution)).render(Target::File)),
            ("cumulative.svg", cumulative_chart(attribution).render(Target::File)),
            ("deviation.svg", deviation_chart(attribution).render(Target::File)),
        ]
    });
    of_costs.chain(maps).collect()
}

/// Writes `index.html`, `summary.json`, which is what `quantize --json` prints, and the figures into `folder`, which must exist.
///
/// # Errors
/// The file that cannot be written.
pub fn write_quantize_report(report: &QuantReport, name: &str, folder: &Path) -> Result<(), ReportError> {
    for (file, figure) in quantize_figures(report) {
        write_file(&folder.join(file), &figure)?;
    }
    let summary = folder.join("summary.json");
    let json = serde_json::to_string_pretty(report)
        .map_err(|e| ReportError::Write { path: summary.clone(), source: e.into() })?;
    write_file(&summary, &format!("{json}\n"))?;
    write_file(&folder.join("index.html"), &quantize_page(report, name).render())
}

/// What the numbers say, in a few sentences.
fn lead(report: &QuantReport) -> Vec<String> {
    let (float, quantised) = (&report.float, &report.quantized);
    let perplexity = |value: f64| cell(Some(value), findings::perplexity);
    let mut first = format!(
        "Quantised with {}, the model's perplexity goes from {} to {}{}, and its size from {} to {}.",
        code(&report.scheme),
        perplexity(float.perplexity),
        perplexity(quantised.perplexity),
        increase(report).map_or(String::new(), |percent| format!(" ({percent})")),
        findings::bytes(float.bytes),
        findings::bytes(quantised.bytes)
    );
    if !report.repairs.is_empty() {
        let repairs: Vec<String> = report.repairs.iter().map(|repair| code(repair)).collect();
        first.push_str(&format!(" It was repaired first: {}.", repairs.join(", ")));
    }
    let worst = report.summary.worst_site.as_ref().and_then(|worst| {
        let error = report.sites.iter().find(|site| site.site == *worst)?.error?;
        Some(format!("Rounding takes most away at {}, {}.", code(worst), percent(error)))
    });
    let costs = report.attribution.as_ref().map(cost_sentence);
    let second: Vec<String> = costs.into_iter().chain(worst).collect();
    let paragraphs = [first, second.join(" ")];
    paragraphs.into_iter().filter(|paragraph| !paragraph.is_empty()).collect()
}

/// The increase of perplexity; `None` if it is not finite.
fn increase(report: &QuantReport) -> Option<String> {
    let percent = findings::finite(Some(report.summary.perplexity_increase_percent))?;
    Some(findings::percent(percent / 100.0))
}

fn cost_sentence(attribution: &Attribution) -> String {
    let costs = costs(attribution);
    // What is below two standard errors is named in the figure, not here.
    let most = |cost: fn(&Cost) -> (f64, f64)| {
        let sure = costs.iter().filter(|c| cost(c).0 > 2.0 * cost(c).1);
        sure.max_by(|a, b| cost(a).0.total_cmp(&cost(b).0))
    };
    let alone = most(|c| (c.alone, c.errors[0])).map(|c| (c.name, nats(c.alone, c.errors[0])));
    let gain = most(|c| (c.gain, c.errors[1])).map(|c| (c.name, nats(c.gain, c.errors[1])));
    match (alone, gain) {
        (None, None) => format!(
            "On {} tokens no quantiser costs more by itself than chance would explain.",
            findings::count(attribution.tokens)
        ),
        (Some((name, alone)), Some((other, gain))) if name == other => format!(
            "The costliest quantiser is {}: {alone} by itself, and without it the others cost {gain} less.",
            code(name)
        ),
        (alone, gain) => {
            let alone = alone.map(|(name, nats)| format!("By itself {} costs most, {nats}.", code(name)));
            let gain = gain.map(|(name, nats)| format!("Leaving out {} helps most, by {nats}.", code(name)));
            alone.into_iter().chain(gain).collect::<Vec<_>>().join(" ")
        }
    }
}

fn headline(report: &QuantReport) -> Section {
    let (float, quantised) = (&report.float, &report.quantized);
    let mut table = Table::new(&[
        ("model", Align::Left),
        ("perplexity", Align::Right),
        ("size", Align::Right),
        ("KL, nats", Align::Right),
        ("same top token", Align::Right),
    ]);
    let perplexity = |value: f64| cell(Some(value), |v| format!("{v:.3}"));
    table.push([
        "float".into(),
        perplexity(float.perplexity),
        findings::bytes(float.bytes),
        "–".into(),
        "–".into(),
    ]);
    table.push([
        report.scheme.clone(),
        perplexity(quantised.perplexity),
        findings::bytes(quantised.bytes),
        cell(Some(quantised.kl), |v| format!("{v:.5}")),
        cell(Some(quantised.top1_agreement), |v| format!("{:.2}%", 100.0 * v)),
    ]);
    let caption = "Before and after. KL is the mean over tokens of KL(float ‖ quantised); the last column is the share of \
                   tokens whose most likely successor stays the same. Sizes count quantised weights as packed integers with \
                   their scales, and the rest as float32.";
    Section { title: "What quantisation costs".into(), blocks: vec![Block::Table(table, caption.into())] }
}

/// What was done, and over how much text.
fn measured(report: &QuantReport) -> Section {
    let summary = &report.summary;
    let repairs = match report.repairs.is_empty() {
        true => "none".into(),
        false => report.repairs.join(", "),
    };
    let count = |n: usize| findings::count(n as u64);
    let mut terms = vec![
        ("scheme", report.scheme.clone()),
        ("repairs", repairs),
        ("weight quantisers", count(summary.weight_quantisers)),
        ("activation quantisers", count(summary.activation_quantisers)),
        ("calibration batches", count(summary.calib_batches)),
        ("tokens of calibration", findings::count(summary.calib_tokens)),
        ("tokens evaluated", findings::count(summary.eval_tokens)),
    ];
    let attributed = report.attribution.as_ref().map(|a| findings::count(a.tokens));
    terms.extend(attributed.map(|tokens| ("tokens of attribution", tokens)));
    let terms = terms.into_iter().map(|(term, text)| (term.to_string(), text)).collect();
    Section { title: "What was measured".into(), blocks: vec![Block::Terms(terms)] }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::{
        CumulativeCost, FloatSide, QuantSide, QuantSite, QuantSummary, QuantiserCost, QuantiserKind,
        SiteDeviation,
    };

    /// A quantiser with an error and a range.
    pub(in super::super) fn site(name: &str, error: Option<f64>) -> QuantSite {
        QuantSite {
            site: name.into(),
            quantiser: "int8 asymmetric tensor static running_percentile:99.999".into(),
            bits: 8,
            scales: Some(1),
            scale: Some(0.05),
            zero_point: Some(128),
            lo: Some(-6.4),
            hi: Some(6.35),
            error,
        }
    }

    /// Noise in 0..1 that is the same each time.
    fn noise(i: usize) -> f64 {
        ((i as f64 * 12.9898).sin() * 43_758.545_3).rem_euclid(1.0)
    }

    const PLACES: [&str; 13] = [
        "attn.in",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.scores",
        "attn.probs",
        "attn.context",
        "attn.out",
        "resid_mid",
        "mlp.in",
        "mlp.hidden",
        "mlp.out",
        "resid",
    ];
    const MATRICES: [&str; 6] = [
        "attn.q.weight",
        "attn.k.weight",
        "attn.v.weight",
        "attn.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    ];

    fn names(layers: usize) -> Vec<String> {
        let inside = (0..layers).flat_map(|layer| {
            MATRICES.iter().chain(&PLACES).map(move |kind| format!("blocks.{layer}.{kind}"))
        });
        let before = ["embed.token.weight", "embed"].map(String::from);
        before.into_iter().chain(inside).chain(["final_norm".to_string()]).collect()
    }

    /// Costs of a model of `layers` blocks; the last stream costs most, and some cost less than nothing.
    pub(in super::super) fn attribution(layers: usize) -> Attribution {
        let worst = format!("blocks.{}.resid", layers.saturating_sub(1));
        let costs = |from: usize, sign: f64, base: f64| -> Vec<QuantiserCost> {
            let cost = |(i, quantiser): (usize, String)| {
                let kind = match quantiser.ends_with(".weight") {
                    true => QuantiserKind::Weight,
                    false => QuantiserKind::Activation,
                };
                let own = if quantiser == worst { 0.2 } else { 0.02 * noise(i + from).powi(4) - 0.0002 };
                QuantiserCost { quantiser, kind, loss_increase: base + sign * own, standard_error: 0.0015 }
            };
            names(layers).into_iter().enumerate().map(cost).collect()
        };
        let blocks = |suffix: &'static str| (0..layers).map(move |layer| format!("blocks.{layer}{suffix}"));
        let all = std::iter::once("embed".to_string()).chain(blocks("")).chain(["head".to_string()]);
        let sites = std::iter::once("embed".to_string()).chain(blocks(".resid"));
        let sites = sites.chain(["final_norm", "logits"].map(String::from));
        let stages = layers as f64 + 1.0;
        Attribution {
            tokens: 8192,
            float_loss: 3.2871,
            alone: costs(0, 1.0, 0.0),
            without: costs(1000, -1.0, 0.35),
            cumulative: all
                .enumerate()
                .map(|(i, through)| CumulativeCost {
                    through,
                    loss_increase: 0.35 * (i as f64 / stages).powi(2),
                    standard_error: 0.002,
                })
                .collect(),
            deviation: sites
                .enumerate()
                .map(|(i, site)| SiteDeviation { site, relative: Some(0.004 * 1.3f64.powi(i as i32)) })
                .collect(),
        }
    }

    /// A report of a model of `layers` blocks.
    pub(in super::super) fn synthetic(layers: usize) -> QuantReport {
        let error = |(i, name): (usize, String)| {
            let grown = if name.ends_with(".resid") { 0.01 * i as f64 / layers.max(1) as f64 } else { 0.0 };
            let error = 0.004 + 0.03 * noise(i).powi(2) + grown;
            site(&name, Some(error))
        };
        let sites: Vec<QuantSite> = names(layers).into_iter().enumerate().map(error).collect();
        QuantReport {
            schema: 1,
            scheme: "w8a8".into(),
            repairs: vec!["smoothquant=0.5".into(), "gptq=0.01".into()],
            float: FloatSide { perplexity: 26.765, bytes: 497_759_232 },
            quantized: QuantSide {
                perplexity: 37.98,
                bytes: 163_037_184,
                kl: 0.34812,
                top1_agreement: 0.7811,
            },
            summary: QuantSummary {
                calib_batches: 4,
                calib_tokens: 32_768,
                eval_tokens: 65_536,
                weight_quantisers: sites.iter().filter(|s| s.site.ends_with(".weight")).count(),
                activation_quantisers: sites.iter().filter(|s| !s.site.ends_with(".weight")).count(),
                perplexity_increase_percent: 41.9,
                worst_site: Some("final_norm".into()),
            },
            sites,
            attribution: Some(attribution(layers)),
        }
    }

    #[test]
    fn the_page_tells_what_the_numbers_say() {
        let html = quantize_page(&synthetic(12), "opt").render();
        for part in [
            "<h1>Quantisation of opt</h1>",
            "with <code>w8a8</code>, the model&#39;s perplexity goes from 26.77 to 37.98 (+41.90%), and its size from \
             497.8 MB to 163.0 MB.",
            "It was repaired first: <code>smoothquant=0.5</code>, <code>gptq=0.01</code>.",
            "The costliest quantiser is <code>blocks.11.resid</code>: 0.2000 ± 0.0015 nats (perplexity +22.14%) by itself, \
             and without it the others cost 0.2000 ± 0.0015 nats (perplexity +22.14%) less.",
            "Rounding takes most away at <code>final_norm</code>",
            "What quantisation costs",
            "Which quantiser costs what",
            "What rounding takes away",
            "78.11%",
            "0.34812",
            "8,192",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("NaN") && !html.contains("src=") && !html.contains("<script"));
        let figures = html.matches("<figure").count();
        assert_eq!(figures, 5);
        assert!((1..=figures).all(|i| html.contains(&format!("Figure {i} as a table"))));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let mut report = synthetic(2);
        (report.attribution, report.repairs) = (None, Vec::new());
        let html = quantize_page(&report, "none").render();
        assert!(!html.contains("Which quantiser costs what") && !html.contains("repaired first"));
        assert!(!html.contains("tokens of attribution"));
        let files: Vec<&str> = quantize_figures(&report).iter().map(|f| f.0).collect();
        assert_eq!(files, ["activation_errors.svg", "weight_errors.svg"]);
        report.sites.clear();
        assert!(quantize_figures(&report).is_empty());
        assert!(!quantize_page(&report, "none").render().contains("<svg"));
    }

    #[test]
    fn undefined_figures_are_dashes() {
        let mut report = synthetic(2);
        report.sites.iter_mut().for_each(|s| (s.error, s.lo, s.hi, s.scales) = (None, None, None, None));
        (report.quantized.perplexity, report.summary.perplexity_increase_percent) = (f64::NAN, f64::INFINITY);
        let attribution = report.attribution.as_mut().unwrap();
        let costs = attribution.alone.iter_mut().chain(&mut attribution.without);
        costs.for_each(|c| c.loss_increase = f64::NAN);
        attribution.cumulative.iter_mut().for_each(|c| c.loss_increase = f64::NAN);
        attribution.deviation.iter_mut().for_each(|d| d.relative = None);
        let html = quantize_page(&report, "").render();
        assert!(
            html.contains("–") && html.contains("no data") && !html.contains("NaN") && !html.contains("inf")
        );
        assert!(html.contains("no quantiser costs more by itself than chance would explain."));
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let mut report = synthetic(1);
        let evil = "<script>`x` https://a.b</script>";
        report.sites.iter_mut().for_each(|s| s.site = format!("blocks.0.{evil}"));
        report.sites.iter_mut().for_each(|s| s.quantiser = evil.into());
        (report.scheme, report.repairs) = (evil.into(), vec![evil.into()]);
        report.summary.worst_site = Some(format!("blocks.0.{evil}"));
        let attribution = report.attribution.as_mut().unwrap();
        let costs = attribution.alone.iter_mut().chain(&mut attribution.without);
        costs.for_each(|c| c.quantiser = evil.into());
        attribution.cumulative.iter_mut().for_each(|c| c.through = evil.into());
        attribution.deviation.iter_mut().for_each(|d| d.site = evil.into());
        let html = quantize_page(&report, evil).render();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
        for (_, svg) in quantize_figures(&report) {
            assert!(!svg.contains("<script"));
        }
    }

    #[test]
    fn a_large_model_has_a_page_that_can_be_mailed() {
        let size = |layers| {
            let html = quantize_page(&synthetic(layers), "large").render();
            assert!(!html.contains("NaN"));
            html.len()
        };
        let large = size(100);
        assert!(large < 250_000, "{large} bytes");
        assert!(size(1) < 80_000);
    }

    #[test]
    fn a_folder_holds_page_numbers_and_figures() {
        let folder = tempfile::tempdir().unwrap();
        let report = synthetic(3);
        write_quantize_report(&report, "opt", folder.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let figures = ["activation_errors.svg", "costs.svg", "cumulative.svg", "deviation.svg"];
        assert_eq!(names, [&figures[..], &["index.html", "summary.json", "weight_errors.svg"]].concat());
        let read: QuantReport =
            serde_json::from_str(&std::fs::read_to_string(folder.path().join("summary.json")).unwrap())
                .unwrap();
        assert_eq!(read.attribution, report.attribution);
    }
}
