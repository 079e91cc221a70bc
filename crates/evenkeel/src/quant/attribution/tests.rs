//! Attribution of small models whose every cost can be had another way.

use super::*;
use crate::data::{Dataset, SamplerSettings, Split, TrainSampler, ValidationBlocks};
use crate::model::{ModelConfig, preset};
use crate::quant::repair::Repair;
use crate::quant::{QuantReport, Scheme};
use crate::slices::tensor;
use crate::tape::Tape;
use std::sync::Arc;

const CONTEXT: usize = 8;
const SEQUENCES: usize = 12;

fn config(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (3, 16, 2, 23, CONTEXT);
    c
}

/// A model that is sure of what it predicts, so that an error anywhere in it costs loss.
fn sure(config: ModelConfig) -> Transformer {
    let model = Transformer::new(config, 3).unwrap();
    scaled(&model, |name, _| if name.ends_with("weight") { 6.0 } else { 1.0 })
}

/// Each entry times what `factor` says of its parameter and its place in the last axis.
fn scaled(model: &Transformer, factor: impl Fn(&str, usize) -> f32) -> Transformer {
    let scale = |p: &crate::model::Parameter| {
        let width = p.tensor.dims().last().copied().unwrap_or(1);
        let values = slice(&p.tensor)?;
        let values = values.iter().enumerate().map(|(i, v)| v * factor(&p.name, i % width)).collect();
        Ok(tensor(values, p.tensor.shape())?)
    };
    model.map_parameters(scale).unwrap()
}

/// What the model itself would write, in sequences as long as its context.
fn written_by(model: &Transformer) -> Arc<Dataset> {
    let mut ids: Vec<u32> = vec![1];
    for step in 0..SEQUENCES * CONTEXT {
        // A nudge at the start of each sequence keeps the text from going round in circles.
        let nudge = if step % CONTEXT == 0 { step as u32 / 3 } else { 0 };
        let start = step - step % CONTEXT;
        let logits = model.last_logits(&Tape::off(), &mut NoTap, &ids[start..], 1).unwrap();
        let (best, _) = log_sum_exp(&slice(logits.tensor()).unwrap());
        ids.push((best as u32 + nudge) % model.config().vocab as u32);
    }
    Arc::new(Dataset::from_memory(ids.clone(), ids, model.config().vocab))
}

fn blocks(dataset: &Arc<Dataset>) -> ValidationBlocks {
    ValidationBlocks::new(dataset.clone(), Split::Val, CONTEXT, 5, None).unwrap()
}

fn count(dataset: &Arc<Dataset>) -> u64 {
    blocks(dataset).blocks()
}

struct Case {
    simulation: Simulation,
    dataset: Arc<Dataset>,
    report: QuantReport,
}

impl Case {
    fn new(model: &Transformer, scheme: &Scheme, repairs: &[Repair]) -> Self {
        let dataset = written_by(model);
        let settings = SamplerSettings { context: CONTEXT, batch_sequences: 4, seed: 0 };
        let sampler = TrainSampler::new(dataset.clone(), settings).unwrap();
        let calibration = sampler.calibration(0, 2, 4).collect::<std::result::Result<Vec<_>, _>>().unwrap();
        let mut simulation = Simulation::new(model, scheme, repairs, &calibration, &mut || {}).unwrap();
        let report = simulation.evaluate(model, blocks(&dataset), &mut |_| {}).unwrap();
        Self { simulation, dataset, report }
    }

    fn attribution(&self) -> Attribution {
        let whole = self
            .simulation
            .attribute(blocks(&self.dataset), count(&self.dataset), &mut |_, _| ControlFlow::Continue(()));
        whole.unwrap().unwrap()
    }
}

fn w8a8(overrides: &[(&str, &str)]) -> Scheme {
    let mut scheme = Scheme::preset("w8a8").unwrap();
    overrides.iter().for_each(|(pattern, words)| scheme.set(pattern, words).unwrap());
    scheme
}

/// A channel of what the head reads is a thousand times as large as the others, and its column of the head that much
/// smaller: nothing changes in float.
#[test]
fn a_site_with_an_outlier_channel_is_found_first() {
    let model = sure(config("pre_ln"));
    let planted = scaled(&model, |name, column| match (name, column) {
        ("final_norm.gain" | "final_norm.bias", 5) => 1000.0,
        ("head.weight", 5) => 1e-3,
        _ => 1.0,
    });
    // The gain would suffer as much.
    let found = Case::new(&planted, &w8a8(&[("final_norm.gain", "float")]), &[]).attribution();
    let full = found.full_increase();
    let first = |costs: &[QuantiserCost], cost: &dyn Fn(&QuantiserCost) -> f64| {
        let mut all: Vec<_> = costs.iter().map(|c| (cost(c), c.quantiser.clone())).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(all[0].1, "final_norm", "{:?}", &all[..4]);
        (all[0].0, all[1].0)
    };
    let (alone, next) = first(&found.alone, &|c| c.loss_increase);
    assert!(alone > 0.1 && alone > 2.0 * next, "{alone}, then {next}");
    let (gain, next) = first(&found.without, &|c| full - c.loss_increase);
    assert!(gain > 0.1 && gain > 2.0 * next, "{gain}, then {next}");
    // And in the last stage.
    let steps = found.cumulative.windows(2).map(|w| w[1].loss_increase - w[0].loss_increase);
    let steps: Vec<f64> = steps.collect();
    assert!(steps.iter().all(|step| step <= &steps[3]), "{steps:?}");
    let relative: Vec<f64> = found.deviation.iter().map(|d| d.relative.unwrap()).collect();
    assert!(relative[5] > 2.0 * relative[3], "{relative:?}");
}

#[test]
fn everything_on_is_what_the_report_says() {
    let smooth_and_more = ["smoothquant", "gptq", "bias-correction"].map(|name| name.parse().unwrap());
    let tied = |name| ModelConfig { tie_head: true, ..config(name) };
    let bf16 = Scheme { head: HeadFormat::Bf16, ..w8a8(&[]) };
    let preset = |name| Scheme::preset(name).unwrap();
    for (what, config, scheme, repairs) in [
        ("plain", config("pre_ln"), w8a8(&[]), &[][..]),
        ("op", config("op"), w8a8(&[]), &[]),
        ("parallel", config("parallel"), w8a8(&[]), &[]),
        ("bf16 head", tied("pre_ln"), bf16, &[]),
        ("int8 head", tied("pre_ln"), preset("w8a8_int8_head"), &[]),
        ("tokens", config("op"), preset("w8a8_token"), &[]),
        ("groups", config("pre_ln"), preset("mxfp4"), &[]),
        ("logits", config("pre_ln"), w8a8(&[("logits", "min_max")]), &[]),
        ("repaired", config("pre_ln"), w8a8(&[]), &smooth_and_more),
        ("rotated", tied("pre_rms"), w8a8(&[]), &[Repair::Rotate]),
    ] {
        let case = Case::new(&sure(config), &scheme, repairs);
        let found = case.attribution();
        let full = found.full_increase();
        let [float, quantised] =
            [case.report.float.perplexity, case.report.quantized.perplexity].map(f64::ln);
        let of_all = found.float_loss + full;
        assert!((of_all - quantised).abs() < 1e-9, "{what}: {of_all}, not {quantised}");
        // A repaired model computes the same in another order.
        let bound = if repairs.is_empty() { 1e-9 } else { 1e-5 };
        assert!((found.float_loss - float).abs() < bound, "{what}: {}, not {float}", found.float_loss);
        assert_eq!(found.tokens, (SEQUENCES * CONTEXT) as u64);
        let summary = &case.report.summary;
        let quantisers = summary.weight_quantisers + summary.activation_quantisers;
        assert_eq!(found.alone.len(), quantisers + usize::from(what == "bf16 head"), "{what}");
        assert_eq!((found.cumulative.len(), found.deviation.len()), (5, 6));

        // Every parameter that differs belongs to some quantiser.
        let all: Vec<String> = switches(&case.simulation).into_iter().flat_map(|s| s.parameters).collect();
        let quantised = &case.simulation.rounded().model;
        let made = with_parameters(case.simulation.float(), quantised, &all).unwrap();
        for (a, b) in made.parameters().iter().zip(quantised.parameters()) {
            assert_eq!(*slice(&a.tensor).unwrap(), *slice(&b.tensor).unwrap(), "{what}: {}", a.name);
        }
    }
}

#[test]
fn a_single_quantiser_costs_everything_alone_and_nothing_without() {
    let scheme = w8a8(&[("*", "float"), ("blocks.1.attn.in", "int4")]);
    let found = Case::new(&sure(config("pre_ln")), &scheme, &[]).attribution();
    let [alone, without] = [&found.alone, &found.without].map(|costs| {
        assert_eq!(costs.len(), 1);
        assert_eq!(
            (costs[0].quantiser.as_str(), costs[0].kind),
            ("blocks.1.attn.in", QuantiserKind::Activation)
        );
        costs[0].loss_increase
    });
    assert!(alone == found.full_increase() && alone != 0.0 && without == 0.0, "{alone} {without}");
    let steps: Vec<f64> = found.cumulative.iter().map(|c| c.loss_increase).collect();
    assert_eq!(steps, [0.0, 0.0, alone, alone, alone]);
    assert_eq!(found.deviation[1].relative, Some(0.0));
}

/// A pass that starts in the middle gives what a whole one does, and no quantiser costs nothing.
#[test]
fn passes_may_start_anywhere() {
    let case = Case::new(&sure(config("op")), &w8a8(&[]), &[]);
    let (float, quantised) = (case.simulation.float(), &case.simulation.rounded().model);
    let mut switches = switches(&case.simulation);
    let nothing =
        Switch { name: String::new(), kind: QuantiserKind::Weight, stage: 2, parameters: Vec::new() };
    switches.push(nothing);
    let tap = case.simulation.activation_quantisers().clone();
    let mut board = Switchboard { float, quantised, tap, switches: &switches };
    let batch = blocks(&case.dataset).next().unwrap().unwrap();
    let input = Input::from(batch.clone());
    let whole = |model: &Transformer, tap: &mut QuantTap| {
        let logits = logits(model, tap, Start::Input(&input), &mut |_| {}).unwrap();
        losses(&logits, &batch.targets).unwrap()
    };
    let of_all = whole(quantised, &mut board.tap);
    board.tap.enable_where(|_| false);
    let of_float = whole(float, &mut board.tap);
    let sums = board.measure(&batch, &mut || true).unwrap().unwrap();
    for (i, switch) in switches.iter().enumerate() {
        let alone = board.alone(switch, Start::Input(&input)).unwrap();
        let without = board.without(switch, Start::Input(&input)).unwrap();
        let loss = |logits: &Value| losses(logits, &batch.targets).unwrap();
        let (alone, without) = (Tally::of(&loss(&alone), &of_float), Tally::of(&loss(&without), &of_all));
        assert_eq!((alone, without), (sums.alone[i], sums.without[i]), "{}", switch.name);
    }
    let (alone, without) = (sums.alone.last().unwrap(), sums.without.last().unwrap());
    assert_eq!((alone.loss, alone.squares), (sums.float, 0.0));
    assert_eq!((without.loss, without.squares), (sums.cumulative.last().unwrap().loss, 0.0));
}

#[test]
fn a_stop_keeps_whole_batches() {
    let case = Case::new(&sure(config("pre_ln")), &w8a8(&[]), &[]);
    let stopped_after = |share: f64| {
        let mut last = (0, 0);
        let found =
            case.simulation.attribute(blocks(&case.dataset), count(&case.dataset), &mut |done, total| {
                assert!(done > last.0 && done <= total);
                last = (done, total);
                if done as f64 >= share * total as f64 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        (found.unwrap(), last)
    };
    assert_eq!(stopped_after(0.0).0, None);
    // Batches have 5, 5 and 2 sequences.
    assert_eq!(stopped_after(0.5).0.map(|found| found.tokens), Some(5 * CONTEXT as u64));
    let (whole, (done, total)) = stopped_after(2.0);
    assert_eq!((whole, done), (Some(case.attribution()), total));
}

#[test]
fn the_standard_error_is_that_of_a_mean() {
    let tally = [(1.0, 0.5), (2.0, 2.5), (4.0, 1.0)].map(|(a, b)| Tally::of(&[a], &[b]));
    let all = Tally::of(&[1.0, 2.0, 4.0], &[0.5, 2.5, 1.0]);
    assert_eq!(tally.into_iter().reduce(|a, b| a + b), Some(all));
    // Differences 0.5, -0.5 and 3: their mean is 1, their mean square 9.5 / 3.
    assert!((all.standard_error(3.0) - ((9.5 / 3.0 - 1.0) / 3.0f64).sqrt()).abs() < 1e-12);
    assert_eq!(Tally::of(&[1.0, 2.0], &[0.75, 1.75]).standard_error(2.0), 0.0);
}

#[test]
fn the_report_has_the_documented_keys() {
    let mut case = Case::new(&sure(config("pre_ln")), &w8a8(&[]), &[]);
    let keys = |value: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let json = serde_json::to_value(&case.report).unwrap();
    assert!(json.get("attribution").is_none());
    case.report.attribution = Some(case.attribution());
    let json = &serde_json::to_value(&case.report).unwrap()["attribution"];
    assert_eq!(keys(json), ["alone", "cumulative", "deviation", "float_loss", "tokens", "without"]);
    for list in ["alone", "without"] {
        assert_eq!(keys(&json[list][0]), ["kind", "loss_increase", "quantiser", "standard_error"]);
        let kinds: Vec<&str> =
            json[list].as_array().unwrap().iter().filter_map(|c| c["kind"].as_str()).collect();
        assert!(kinds.contains(&"weight") && kinds.contains(&"activation"));
    }
    assert_eq!(keys(&json["cumulative"][0]), ["loss_increase", "standard_error", "through"]);
    assert_eq!(keys(&json["deviation"][0]), ["relative", "site"]);
    let again: QuantReport = serde_json::from_value(serde_json::to_value(&case.report).unwrap()).unwrap();
    assert_eq!(again.attribution, case.report.attribution);
}
