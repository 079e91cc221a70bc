//! A page about a model as `evenkeel inspect` found it: where int8 breaks, the residual stream and its
//! channels, the largest activations, attention, and weights.

use super::attention_section::attention_section;
use super::findings;
use super::html::{Block, Page, Section};
use super::int8_section::{by_error, culprit_place, int8_section, percent, suffers, worst_place};
use super::stream_section::stream_section;
use super::table::{Align, Table, cell};
use crate::inspect::InspectReport;
use crate::metrics::int8::TOLERABLE;
use crate::metrics::{Int8Verdict, Remedy, Rounded};

/// Rows of the tables of the worst.
const LISTED: usize = 15;

/// The page about the model called `name`. Sections of what was not measured are left out.
pub fn inspect_page(report: &InspectReport, name: &str) -> Page {
    let parts = [
        int8_section(report),
        stream_section(report),
        massive(report),
        attention_section(&report.attention),
        weights(report),
        Some(measured(report)),
    ];
    Page {
        title: format!("Inspection of {name}"),
        lead: vec![verdict(report)],
        sections: parts.into_iter().flatten().collect(),
    }
}

/// What the numbers say, in two or three sentences.
fn verdict(report: &InspectReport) -> String {
    let mut sentences = vec![int8_sentence(&report.int8)];
    sentences.extend(worst_place(&report.int8).map(worst_sentence));
    let summary = &report.summary;
    let (mean, max) = (findings::finite(summary.kurtosis_mean), findings::finite(summary.kurtosis_max));
    sentences.push(match (mean, max) {
        (Some(mean), Some(max)) => {
            let place = summary.kurtosis_max_site.as_ref().map(|site| format!(", at {}", code(site)));
            format!(
                "The kurtosis of the residual stream is {} on average and {} at its highest{}; 1 is the floor.",
                findings::kurtosis(mean),
                findings::kurtosis(max),
                place.unwrap_or_default()
            )
        }
        _ => "The kurtosis of the residual stream is undefined: a site holds entries that are not finite, or \
              nothing but zeros."
            .into(),
    });
    sentences.retain(|sentence| !sentence.is_empty());
    sentences.join(" ")
}

fn int8_sentence(int8: &[Int8Verdict]) -> String {
    let suffering = int8.iter().filter(|v| suffers(v)).count();
    let (all, bound) = (findings::count(int8.len() as u64), percent(TOLERABLE));
    let broken = int8.iter().filter(|v| findings::finite(v.int8_error).is_none()).count();
    if broken > 0 {
        return format!(
            "{} of {all} rounded places hold entries that are not finite.",
            findings::count(broken as u64)
        );
    }
    match (int8.len(), suffering) {
        (0, _) => "What int8 would cost was not measured.".into(),
        (1, 0) => {
            format!("The one rounded place bears int8 with one step for the tensor: error within {bound}.")
        }
        (_, 0) => {
            format!("All {all} rounded places bear int8 with one step per tensor: errors within {bound}.")
        }
        (_, 1) => format!("One of {all} rounded places suffers from int8 with one step per tensor."),
        (_, some) => format!(
            "{} of {all} rounded places suffer from int8 with one step per tensor.",
            findings::count(some as u64)
        ),
    }
}

fn worst_sentence(worst: &Int8Verdict) -> String {
    let Some(error) = findings::finite(worst.int8_error) else {
        return format!("The first of them is {}.", code(&worst.site));
    };
    if error == 0.0 {
        return String::new();
    }
    let mut text = format!("The worst is {}, at {}", code(&worst.site), percent(error));
    if let Some(median) = findings::finite(worst.int8_error_median) {
        text.push_str(&format!(" and {} in the median", percent(median)));
    }
    if let Some(culprit) = &worst.culprit {
        let place = culprit_place(culprit, worst.kind);
        text.push_str(&format!(", where channel {} at {place} sets the step", culprit.channel));
    }
    text.push_str(match worst.remedy {
        Remedy::None => "",
        Remedy::PerToken => "; a step per token would mend it",
        Remedy::PerChannel => "; a step per channel would mend it",
        Remedy::SmoothQuant => "; SmoothQuant may mend it",
        Remedy::KeepInFloat => "; no 8-bit grid is fine enough for it",
    });
    text.push('.');
    text
}

/// A name set as code.
pub(super) fn code(name: &str) -> String {
    format!("`{}`", name.replace('`', "ˋ"))
}

fn massive(report: &InspectReport) -> Option<Section> {
    if report.massive.is_empty() {
        return None;
    }
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("sequence", Align::Right),
        ("token", Align::Right),
        ("channel", Align::Right),
        ("value", Align::Right),
        ("times the median", Align::Right),
    ]);
    for one in &report.massive {
        table.push([
            one.site.clone(),
            one.sequence.to_string(),
            one.position.to_string(),
            one.channel.to_string(),
            cell(Some(one.value), findings::figure),
            cell(one.ratio_to_median, findings::perplexity),
        ]);
    }
    let caption = "The largest activations of all, and how many times the median magnitude of their site \
                   they are. Sequences, tokens and channels are counted from 0.";
    Some(Section { title: "Massive activations".into(), blocks: vec![Block::Table(table, caption.into())] })
}

fn weights(report: &InspectReport) -> Option<Section> {
    let mut blocks = Vec::new();
    if !report.weights.is_empty() {
        let mut order: Vec<_> = report.weights.iter().collect();
        let size = |ratio: Option<f64>| findings::finite(ratio).unwrap_or(f64::NEG_INFINITY);
        order.sort_by(|a, b| size(b.figures.max_over_rms).total_cmp(&size(a.figures.max_over_rms)));
        let mut table = Table::new(&[
            ("matrix", Align::Left),
            ("shape", Align::Right),
            ("max over RMS", Align::Right),
            ("RMS", Align::Right),
            ("largest", Align::Right),
            ("kurtosis of entries", Align::Right),
        ]);
        for one in order.into_iter().take(LISTED) {
            let shape: Vec<String> = one.shape.iter().map(usize::to_string).collect();
            table.push([
                one.name.clone(),
                shape.join(" × "),
                cell(one.figures.max_over_rms, findings::perplexity),
                cell(one.figures.rms, findings::figure),
                cell(one.figures.max_abs, findings::figure),
                cell(one.figures.kurtosis_entries, findings::kurtosis),
            ]);
        }
        let caption = "The matrices whose largest entry is farthest above their RMS. A Gaussian matrix of a \
                       million entries has about 5, and a kurtosis of 3 over its entries.";
        blocks.push(Block::Table(table, caption.into()));
    }
    let rounded: Vec<&Int8Verdict> =
        by_error(&report.int8).into_iter().filter(|v| v.kind == Rounded::Weight).collect();
    if !rounded.is_empty() {
        let mut table = Table::new(&[
            ("matrix", Align::Left),
            ("error", Align::Right),
            ("per output channel", Align::Right),
            ("remedy", Align::Left),
        ]);
        for one in rounded.into_iter().take(LISTED) {
            table.push([
                one.site.clone(),
                cell(one.int8_error, percent),
                cell(one.int8_error_channel, percent),
                one.remedy.label().into(),
            ]);
        }
        let caption = "The matrices that lose most to int8 with one step for the matrix, and with a step per \
                       output channel instead.";
        blocks.push(Block::Table(table, caption.into()));
    }
    (!blocks.is_empty()).then(|| Section { title: "Weights".into(), blocks })
}

/// What was looked at, and over how much text.
fn measured(report: &InspectReport) -> Section {
    let model = &report.model;
    let mut terms = vec![
        ("model", model.architecture.clone()),
        ("parameters", findings::count(model.parameters)),
        ("blocks", model.depth.to_string()),
        ("channels", model.width.to_string()),
        ("tokens", findings::count(report.tokens)),
    ];
    let others = [
        ("tokens of the correlations", report.gram_tokens),
        ("tokens of attention", Some(report.attention_tokens).filter(|_| !report.attention.is_empty())),
        ("tokens of int8", Some(report.int8_tokens).filter(|_| !report.int8.is_empty())),
    ];
    terms.extend(others.into_iter().filter_map(|(name, tokens)| Some((name, findings::count(tokens?)))));
    terms.extend(report.peak_memory_bytes.map(|bytes| ("largest memory", findings::bytes(bytes))));
    let terms = terms.into_iter().map(|(term, text)| (term.to_string(), text)).collect();
    Section { title: "What was measured".into(), blocks: vec![Block::Terms(terms)] }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::inspect::{ModelSummary, SiteReport};
    use crate::metrics::{
        ChannelStrip, Culprit, HeadReport, KurtosisSummary, MassiveActivation, Metrics, WeightReport,
    };
    use crate::tap::{Place, Site};

    /// A report in which nothing was measured.
    pub(in super::super) fn empty() -> InspectReport {
        InspectReport {
            schema: 1,
            model: ModelSummary { architecture: "gpt2".into(), parameters: 0, depth: 0, width: 0 },
            tokens: 0,
            gram_tokens: None,
            gram: None,
            attention_tokens: 0,
            sites: Vec::new(),
            massive: Vec::new(),
            attention: Vec::new(),
            weights: Vec::new(),
            gains: Vec::new(),
            int8: Vec::new(),
            int8_tokens: 0,
            strips: Vec::new(),
            peak_memory_bytes: None,
            summary: KurtosisSummary { kurtosis_mean: None, kurtosis_max: None, kurtosis_max_site: None },
        }
    }

    /// Noise in 0..1 that is the same each time.
    fn noise(i: usize) -> f64 {
        ((i as f64 * 12.9898).sin() * 43_758.545_3).rem_euclid(1.0)
    }

    fn verdict_of(site: Site, error: f64) -> Int8Verdict {
        Int8Verdict {
            site: site.to_string(),
            layer: site.layer,
            kind: Rounded::Activation,
            int8_error: Some(error),
            int8_error_median: Some(error),
            sqnr_db: Some(-20.0 * error.log10()),
            int8_error_token: Some(error / 3.0),
            int8_error_channel: Some(error / 9.0),
            culprit: Some(Culprit {
                channel: 138,
                sequence: Some(0),
                position: 0,
                token: Some(198),
                text: Some("\n".into()),
                value: 900.0,
            }),
            remedy: if error > TOLERABLE { Remedy::PerToken } else { Remedy::None },
        }
    }

    /// A model of `layers` blocks of `width` channels, two of them outliers from the middle on; `size` scales
    /// them.
    pub(in super::super) fn synthetic(layers: usize, width: usize, heads: usize, size: f64) -> InspectReport {
        let mut report = empty();
        report.model =
            ModelSummary { architecture: "gpt2".into(), parameters: 124_439_808, depth: layers, width };
        (report.tokens, report.attention_tokens, report.int8_tokens) = (32_768, 1024, 32_768);
        let stream = std::iter::once(Site::outside(Place::Embed))
            .chain((0..layers).map(|i| Site::block(i, Place::Resid)));
        for (i, site) in stream.enumerate() {
            let grown = size * (i as f64 / (1.0 + layers as f64 / 8.0)).min(4.0);
            let kurtosis = 1.0 + grown * grown;
            let metrics = Metrics {
                kurtosis: Some(kurtosis),
                kurtosis_mean_removed: Some(1.0 + grown * 0.1),
                mmr: Some(4.0 + 10.0 * grown),
                rms: Some(1.0 + i as f64 * 0.2),
                max_abs: Some(9.0 + 60.0 * grown),
                inf_norm: Some(8.0 + 50.0 * grown),
                input_cos_mean: Some(0.1 + 0.8 * i as f64 / (layers + 1) as f64),
                input_corr_mean: Some(0.1),
                input_corr_rms: (i % 2 == 0).then_some(0.3),
                ..Metrics::default()
            };
            report.sites.push(SiteReport { site: site.to_string(), layer: site.layer, metrics });
            let rms = |c: usize| match c {
                _ if c == width / 5 => 1.0 + 30.0 * grown,
                _ if c == width / 2 => 1.0 + 8.0 * grown,
                _ => (noise(c + i * width) + noise(c) - 1.0).exp(),
            };
            let rms = (0..width).map(rms).collect();
            report.strips.push(ChannelStrip { site: site.to_string(), layer: site.layer, rms });
            // It never falls from site to site.
            report.summary.kurtosis_max = Some(kurtosis);
            report.summary.kurtosis_max_site = Some(site.to_string());
        }
        let all: Vec<f64> = report.sites.iter().filter_map(|s| s.metrics.kurtosis).collect();
        report.summary.kurtosis_mean = Some(all.iter().sum::<f64>() / all.len() as f64);
        let places = [
            Place::Resid,
            Place::ResidMid,
            Place::AttnIn,
            Place::AttnQ,
            Place::AttnK,
            Place::AttnV,
            Place::AttnContext,
            Place::AttnOut,
            Place::MlpIn,
            Place::MlpHidden,
            Place::MlpOut,
        ];
        for layer in 0..layers {
            for (k, &place) in places.iter().enumerate() {
                let grown =
                    if place == Place::Resid { 0.3 * size * layer as f64 / layers as f64 } else { 0.0 };
                let error = 0.006 + 0.02 * noise(layer * 20 + k) + 0.004 * k as f64 + grown;
                report.int8.push(verdict_of(Site::block(layer, place), error));
            }
            for (k, matrix) in
                ["attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"].iter().enumerate()
            {
                let name = format!("blocks.{layer}.{matrix}.weight");
                let mut one =
                    verdict_of(Site::block(layer, Place::MlpIn), 0.012 + 0.006 * noise(layer + 9 * k));
                (one.site, one.kind, one.int8_error_token) = (name.clone(), Rounded::Weight, None);
                report.int8.push(one);
                let figures = crate::metrics::WeightFigures {
                    rms: Some(0.02),
                    max_abs: Some(0.3),
                    max_over_rms: Some(15.0 + noise(k)),
                    kurtosis_entries: None,
                };
                report.weights.push(WeightReport { name, shape: vec![width, width], figures });
            }
            for head in 0..heads {
                let entropy = (head > 0 || layer > 0).then_some(1.0 + 3.0 * noise(head + layer * heads));
                let mass_first = Some(noise(7 * head + layer) * layer as f64 / layers as f64);
                report.attention.push(HeadReport { layer, head, entropy, max_logit: Some(12.5), mass_first });
            }
        }
        let embed = verdict_of(Site::outside(Place::Embed), 0.02);
        report.int8.push(embed);
        report.massive = (0..10)
            .map(|i| MassiveActivation {
                site: "blocks.0.resid".into(),
                sequence: i,
                position: 0,
                channel: 138,
                value: -900.25 + i as f64,
                ratio_to_median: (i > 0).then_some(1234.0),
            })
            .collect();
        report
    }

    #[test]
    fn the_page_tells_what_the_numbers_say() {
        let html = inspect_page(&synthetic(12, 768, 12, 1.0), "gpt2").render();
        assert!(html.contains("<h1>Inspection of gpt2</h1>"));
        for part in [
            "rounded places suffer from int8 with one step per tensor",
            "The worst is <code>blocks.11.resid</code>",
            "where channel 138 at token 0, “\\n” sets the step; a step per token would mend it.",
            "kurtosis of the residual stream is",
            "Where int8 breaks",
            "Residual stream",
            "Massive activations",
            "Attention",
            "Weights",
            "124,439,808",
            "stands for 2 neighbouring channels",
            "-899.25",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("NaN") && !html.contains("src=") && !html.contains("<script"));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let html = inspect_page(&empty(), "none").render();
        assert!(html.contains("What int8 would cost was not measured."));
        assert!(html.contains("is undefined") && !html.contains("Where int8 breaks"));
        assert!(!html.contains("Attention") && !html.contains("Weights") && !html.contains("<svg"));
    }

    #[test]
    fn undefined_figures_are_dashes() {
        let mut report = synthetic(1, 1, 1, 1.0);
        for one in &mut report.int8 {
            (one.int8_error, one.sqnr_db, one.int8_error_token, one.int8_error_channel) =
                (None, None, None, None);
            one.culprit = None;
        }
        report.sites.iter_mut().for_each(|s| s.metrics = Metrics::default());
        report.strips.iter_mut().for_each(|s| s.rms = vec![f64::NAN]);
        report.weights.iter_mut().for_each(|w| w.figures = Default::default());
        for head in &mut report.attention {
            (head.entropy, head.mass_first, head.max_logit) = (None, None, None);
        }
        report.massive[0].value = f64::NAN;
        report.summary.kurtosis_mean = None;
        let html = inspect_page(&report, "").render();
        assert!(html.contains("–") && html.contains("no data") && !html.contains("NaN"));
        assert!(html.contains("is undefined") && !html.contains("The worst is"));
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let mut report = synthetic(2, 8, 1, 1.0);
        let evil = "<script>`x` https://a.b</script>";
        report.int8.iter_mut().for_each(|v| v.site = evil.into());
        report.int8.iter_mut().flat_map(|v| &mut v.culprit).for_each(|c| c.text = Some(evil.into()));
        report.sites.iter_mut().for_each(|s| s.site = format!("{evil}.resid"));
        report.strips.iter_mut().for_each(|s| s.site = evil.into());
        report.massive.iter_mut().for_each(|m| m.site = evil.into());
        report.weights.iter_mut().for_each(|w| w.name = evil.into());
        report.model.architecture = evil.into();
        report.summary.kurtosis_max_site = Some(evil.into());
        let html = inspect_page(&report, evil).render();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
    }

    #[test]
    fn a_large_model_has_a_page_that_can_be_mailed() {
        let size = |layers, width, heads| {
            let html = inspect_page(&synthetic(layers, width, heads, 1.0), "large").render();
            assert!(!html.contains("NaN"));
            html.len()
        };
        let large = size(100, 4096, 32);
        assert!(large < 400_000, "{large} bytes");
        assert!(size(1, 64, 1) < 100_000);
    }
}
