//! Every metric against NumPy in float64 on awkward inputs (tests/golden/metrics.*, made by
//! scripts/golden/metrics.py), and what `inspect` reports against the formulas written out here, applied to
//! the dumped activations.

use candle_core::{DType, Tensor};
use evenkeel::checkpoint::read_tensors;
use evenkeel::data::Batch;
use evenkeel::inspect::{self, Options, activations};
use evenkeel::metrics::{
    AttentionTap, GramMode, GramSpec, MassiveActivation, MassiveTap, Metrics, Selection, SiteStats,
    WeightFigures,
};
use evenkeel::model::{Transformer, preset};
use evenkeel::tap::{Place, Site};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn golden() -> (BTreeMap<String, Tensor>, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let expected = std::fs::read(folder.join("metrics.json")).unwrap();
    (read_tensors(&folder.join("metrics.safetensors")).unwrap(), serde_json::from_slice(&expected).unwrap())
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Both undefined, or equal to 1e-5. Correlations may cancel to nearly 0: there, to 1e-12.
#[track_caller]
fn agree(what: &str, got: Option<f64>, want: Option<f64>) {
    match (got, want) {
        (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-5 * b.abs() + 1e-12, "{what}: {a}, not {b}"),
        (a, b) => assert_eq!(a, b, "{what}"),
    }
}

fn cases<'a>(
    all: &'a BTreeMap<String, Tensor>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
    all.iter().filter_map(move |(name, t)| Some((name.strip_prefix(prefix)?, t)))
}

#[test]
fn metrics_of_a_site_agree_with_numpy() {
    let (all, want) = golden();
    let mut count = 0;
    for (case, x) in cases(&all, "x.") {
        let (_, tokens, width) = x.dims3().unwrap();
        let (data, want) = (floats(x), &want["sites"][case]);
        assert!(want.is_object(), "no expectation for {case}");
        let of = |mode, at_once: bool| {
            let gram = Some(GramSpec { tokens: None, mode });
            let mut stats = SiteStats::new(Selection { gram, ..Selection::everything() });
            let piece = if at_once { data.len() } else { tokens * width };
            data.chunks(piece).for_each(|part| stats.add(part, tokens, width));
            stats.metrics()
        };
        for at_once in [true, false] {
            let (batch, sequence) = (of(GramMode::Batch, at_once), of(GramMode::Sequence, at_once));
            for name in Metrics::NAMES {
                assert!(want.get(name).is_some(), "{case} {name}");
                agree(&format!("{case} {name}"), batch.get(name), want[name].as_f64());
                let per_sequence = &want.get(format!("{name}_sequence")).unwrap_or(&want[name]).as_f64();
                agree(&format!("{case} {name} per sequence"), sequence.get(name), *per_sequence);
            }
        }
        count += 1;
    }
    assert!(count >= 20);
}

#[test]
fn massive_activations_agree_with_numpy() {
    let (all, want) = golden();
    for (case, want) in want["massive"].as_object().unwrap() {
        let x = &all[&format!("x.{case}")];
        let (_, tokens, width) = x.dims3().unwrap();
        let mut tap = MassiveTap::new(5);
        tap.add(Site::outside(Place::Embed), &floats(x), tokens, width);
        let (got, want) = (tap.into_found(), want.as_array().unwrap());
        assert_eq!(got.len(), want.len(), "{case}");
        for (got, want) in got.iter().zip(want) {
            let place = [got.sequence, got.position as u64, got.channel as u64].map(Value::from);
            assert_eq!(place, ["sequence", "position", "channel"].map(|k| want[k].clone()), "{case}");
            agree(case, Some(got.value), want["value"].as_f64());
            agree(case, got.ratio_to_median, want["ratio_to_median"].as_f64());
        }
    }
}

#[test]
fn attention_agrees_with_numpy() {
    let (all, want) = golden();
    for (case, scores) in cases(&all, "scores.") {
        let (_, heads, _, tokens) = scores.dims4().unwrap();
        let mut tap = AttentionTap::new(true);
        tap.add_scores(2, &floats(scores), heads, tokens);
        tap.add_probs(2, &floats(&all[&format!("probs.{case}")]), heads, tokens);
        let (got, want) = (tap.reports(), want["attention"][case].as_array().unwrap());
        assert_eq!(got.len(), want.len(), "{case}");
        for (head, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!((got.layer, got.head), (2, head));
            agree(case, got.entropy, want["entropy"].as_f64());
            agree(case, got.max_logit, want["max_logit"].as_f64());
            agree(case, got.mass_first, want["mass_first"].as_f64());
        }
    }
}

#[test]
fn weight_figures_agree_with_numpy() {
    let (all, want) = golden();
    for (case, w) in cases(&all, "w.") {
        let (got, want) = (WeightFigures::of(&floats(w)), &want["weights"][case]);
        agree(case, got.rms, want["rms"].as_f64());
        agree(case, got.max_abs, want["max_abs"].as_f64());
        agree(case, got.max_over_rms, want["max_over_rms"].as_f64());
        agree(case, got.kurtosis_entries, want["kurtosis_entries"].as_f64());
    }
}

/// The formulas as they stand in docs/metrics.md, for activations without special cases.
mod plain {
    pub(super) fn mean(x: impl IntoIterator<Item = f64>) -> f64 {
        let (mut sum, mut n) = (0.0, 0);
        for v in x {
            sum += v;
            n += 1;
        }
        sum / n as f64
    }

    fn eq1(rows: &[Vec<f64>]) -> Option<f64> {
        let squares: Vec<f64> = (0..rows[0].len()).map(|j| mean(rows.iter().map(|r| r[j] * r[j]))).collect();
        let size = mean(squares.iter().copied());
        (size > 0.0).then(|| mean(squares.iter().map(|s| s * s)) / (size * size))
    }

    pub(super) fn lower_median(x: impl IntoIterator<Item = f64>) -> f64 {
        let mut sorted: Vec<f64> = x.into_iter().map(f64::abs).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) / 2]
    }

    fn peak(x: &[f64]) -> f64 {
        x.iter().fold(0.0, |m, v| m.max(v.abs()))
    }

    fn variance(x: &[f64]) -> f64 {
        let mu = mean(x.iter().copied());
        x.iter().map(|v| (v - mu).powi(2)).sum::<f64>() / (x.len() - 1) as f64
    }

    /// Mean and RMS off-diagonal entry of V Vᵀ.
    fn off_diagonal(vectors: &[Vec<f64>]) -> (f64, f64) {
        let (mut sum, mut squares) = (0.0, 0.0);
        for (i, a) in vectors.iter().enumerate() {
            for (j, b) in vectors.iter().enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                if i != j {
                    sum += dot;
                    squares += dot * dot;
                }
            }
        }
        let pairs = (vectors.len() * (vectors.len() - 1)) as f64;
        (sum / pairs, (squares / pairs).sqrt())
    }

    pub(super) fn metrics(x: &[f64], tokens: usize, d: usize) -> Vec<(&'static str, Option<f64>)> {
        let rows: Vec<Vec<f64>> = x.chunks(d).map(<[f64]>::to_vec).collect();
        let n = rows.len();
        let less = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..n).map(|i| (0..d).map(|j| rows[i][j] - of(i, j)).collect()).collect()
        };
        let row_means: Vec<f64> = rows.iter().map(|r| mean(r.iter().copied())).collect();
        let channel_means: Vec<f64> = (0..d).map(|j| mean(rows.iter().map(|r| r[j]))).collect();
        let sequences: Vec<&[f64]> = x.chunks(tokens * d).collect();
        let elementwise = |s: &&[f64]| {
            let mu = mean(s.iter().copied());
            mean(s.iter().map(|v| (v - mu).powi(4))) / (variance(s).powi(2) + 1e-6)
        };
        let excess = |r: &Vec<f64>| (mean(r.iter().map(|v| v.powi(4))) / variance(r).powi(2) - 3.0).max(0.0);
        let ratios: Vec<f64> = rows
            .iter()
            .filter(|r| lower_median(r.iter().copied()) > 0.0)
            .map(|r| peak(r) / lower_median(r.iter().copied()))
            .collect();
        let rms = mean(x.iter().map(|v| v * v)).sqrt();
        let scaled = |by: f64| rows.iter().map(move |r| r.iter().map(|v| v / rms / by).collect::<Vec<f64>>());
        let inputs: Vec<Vec<f64>> = scaled((d as f64).sqrt()).collect();
        let features: Vec<Vec<f64>> = {
            let unit: Vec<Vec<f64>> = scaled((n as f64).sqrt()).collect();
            (0..d).map(|j| unit.iter().map(|r| r[j]).collect()).collect()
        };
        let directions: Vec<Vec<f64>> = rows
            .iter()
            .map(|r| r.iter().map(|v| v / r.iter().map(|v| v * v).sum::<f64>().sqrt()).collect())
            .collect();
        let (corr_mean, corr_rms) = off_diagonal(&inputs);
        let feature_rms = off_diagonal(&features).1;
        let norms = features.iter().map(|f| f.iter().map(|v| v * v).sum::<f64>());
        let trace: f64 = norms.clone().sum();
        let frobenius = norms.map(|s| s * s).sum::<f64>() + feature_rms.powi(2) * (d * (d - 1)) as f64;
        vec![
            ("kurtosis", eq1(&rows)),
            ("kurtosis_centred", eq1(&less(&|i, _| row_means[i]))),
            ("kurtosis_mean_removed", eq1(&less(&|_, j| channel_means[j]))),
            ("kurtosis_elementwise", Some(mean(sequences.iter().map(elementwise)))),
            ("kurtosis_excess_token", Some(mean(rows.iter().map(excess)))),
            ("mmr", (!ratios.is_empty()).then(|| mean(ratios.iter().copied()))),
            ("mmr_skipped", Some((n - ratios.len()) as f64)),
            ("rms", Some(rms)),
            ("max_abs", Some(peak(x))),
            ("inf_norm", Some(mean(sequences.iter().map(|s| peak(s))))),
            ("input_corr_mean", Some(corr_mean)),
            ("input_cos_mean", Some(off_diagonal(&directions).0)),
            ("input_corr_rms", Some(corr_rms)),
            ("feature_corr_rms", Some(feature_rms)),
            ("effective_rank", Some(trace * trace / frobenius)),
        ]
    }
}

#[test]
fn inspect_reports_what_the_dumped_activations_say() {
    for name in ["pre_ln", "op"] {
        let mut config = preset(name).unwrap();
        (config.depth, config.width, config.heads, config.vocab, config.context) = (2, 24, 3, 37, 12);
        let model = Transformer::new(config, 5).unwrap();
        let ids: Vec<u32> = (0..36).map(|i| (i * i * 7 + 3) % 37).collect();
        let batch = Batch { inputs: ids.clone(), targets: ids.clone(), sequences: 3, context: 12 };
        let report =
            inspect::inspect(&model, std::iter::once(Ok(batch)), &Options::exact(), &mut |_, _| {}).unwrap();
        let dump = activations(&model, &ids, 3).unwrap();
        assert_eq!(report.sites.len(), dump.len());
        assert_eq!(
            (report.gram_tokens, report.gram, report.attention_tokens),
            (Some(36), Some(GramMode::Batch), 36)
        );
        let mut largest = Vec::new();
        for site in &report.sites {
            let x = &dump[&site.site];
            let (_, tokens, width) = x.dims3().unwrap();
            let x: Vec<f64> = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (metric, want) in plain::metrics(&x, tokens, width) {
                agree(&format!("{name} {} {metric}", site.site), site.metrics.get(metric), want);
            }
            largest.extend(x.iter().map(|v| v.abs()));
        }
        largest.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(report.massive.len(), 20);
        for (MassiveActivation { site, sequence, position, channel, value, ratio_to_median }, want) in
            report.massive.iter().zip(&largest)
        {
            assert_eq!(value.abs(), *want, "{site}");
            let x = &dump[site];
            let at = x.get(*sequence as usize).unwrap().get(*position).unwrap().get(*channel).unwrap();
            assert_eq!(f64::from(at.to_scalar::<f32>().unwrap()), *value, "{site}");
            let median = plain::lower_median(floats(x).iter().map(|&v| f64::from(v)));
            agree(site, *ratio_to_median, (median > 0.0).then(|| value.abs() / median));
        }
        assert_eq!(report.attention.len(), 2 * 3);
        for head in &report.attention {
            let entropy = head.entropy.unwrap();
            assert!((0.0..=12f64.ln()).contains(&entropy) && head.max_logit.is_some());
            // Query 0 has token 0 only.
            assert!((1.0 / 12.0..=1.0).contains(&head.mass_first.unwrap()));
        }
        let matrices = model.parameters().iter().filter(|p| p.tensor.rank() >= 2).count();
        assert_eq!(report.weights.len(), matrices);
    }
}

#[test]
fn a_stream_of_batches_keeps_gram_metrics_to_the_residual_stream_and_looks_at_one_batch_of_attention() {
    let mut config = preset("pre_ln").unwrap();
    (config.depth, config.width, config.heads, config.vocab, config.context) = (2, 24, 3, 37, 12);
    let model = Transformer::new(config, 5).unwrap();
    let ids: Vec<u32> = (0..72).map(|i| (i * i * 5 + 1) % 37).collect();
    let batch = |ids: &[u32]| {
        let sequences = ids.len() / 12;
        Ok(Batch { inputs: ids.to_vec(), targets: ids.to_vec(), sequences, context: 12 })
    };
    let parts = ids.chunks(24).map(batch);
    let stream = inspect::inspect(&model, parts, &Options::stream(), &mut |_, _| {}).unwrap();
    assert_eq!((stream.tokens, stream.gram_tokens, stream.attention_tokens), (72, Some(72), 24));
    let whole =
        inspect::inspect(&model, std::iter::once(batch(&ids)), &Options::stream(), &mut |_, _| {}).unwrap();
    for (stream, whole) in stream.sites.iter().zip(&whole.sites) {
        for name in Metrics::NAMES {
            agree(&format!("{} {name}", stream.site), stream.metrics.get(name), whole.metrics.get(name));
        }
        let on_stream = stream.site == "embed" || stream.site.ends_with(".resid");
        assert_eq!(stream.metrics.effective_rank.is_some(), on_stream, "{}", stream.site);
    }
    // The same entries, counted over all batches; ratios are to the batch's own median.
    let places = |m: &MassiveActivation| (m.site.clone(), m.sequence, m.position, m.channel, m.value);
    assert!(stream.massive.iter().map(places).eq(whole.massive.iter().map(places)));
    let mut summary =
        inspect::inspect(&model, std::iter::once(batch(&ids)), &Options::summary(), &mut |_, _| {}).unwrap();
    assert_eq!(summary.summary, whole.summary);
    assert!(summary.massive.is_empty() && summary.attention.is_empty() && summary.weights.is_empty());
    assert!(summary.gram.take().is_none());
}

/// However often the inputs make the model's parts be asked for, and whether these are held or read, the figures are the same.
#[test]
fn passes_over_the_parts_change_nothing() {
    let mut config = preset("op").unwrap();
    (config.depth, config.width, config.heads, config.vocab, config.context) = (2, 24, 3, 37, 12);
    config.tie_head = true;
    let model = Transformer::new(config, 5).unwrap();
    let batch = |i: u32| {
        let inputs: Vec<u32> = (0..24).map(|j| (i * 31 + j * j * 5 + 1) % 37).collect();
        Ok(Batch { targets: inputs.clone(), inputs, sequences: 2, context: 12 })
    };
    let at_once = Options::stream();
    let one_by_one = Options { held_elements: 1, ..at_once };
    let mut told = Vec::new();
    let report = |parts: &dyn evenkeel::model::Parts, options: &Options, told: &mut Vec<(u64, u64)>| {
        let mut progress = |done, total| told.push((done, total));
        let mut report = inspect::inspect(parts, (0..3).map(batch), options, &mut progress).unwrap();
        report.peak_memory_bytes = None;
        (serde_json::to_value(&report).unwrap(), report.strips)
    };
    let expected = report(&model, &at_once, &mut told);
    assert_eq!(told.last(), Some(&(4, 4)), "embedding, two blocks, head");
    let passes = report(&model, &one_by_one, &mut told);
    assert!(expected == passes);
    assert_eq!(told.last(), Some(&(12, 12)), "three times over");
    let dir = tempfile::tempdir().unwrap();
    evenkeel::checkpoint::write_model(dir.path(), &model, None).unwrap();
    let on_disk = evenkeel::checkpoint::OnDisk::open(dir.path()).unwrap();
    on_disk.with_parts(|parts| assert!(expected == report(parts, &one_by_one, &mut told))).unwrap();
}
