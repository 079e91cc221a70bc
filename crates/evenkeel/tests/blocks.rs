//! Every kind of block against an independent statement of it in PyTorch, float64: activations at every site, loss, and the
//! gradient of every parameter. `scripts/golden/blocks.py` made the files; its head has all the formulas.

use candle_core::{DType, Tensor};
use evenkeel::checkpoint::read_tensors;
use evenkeel::config::RunConfig;
use evenkeel::inspect::activations;
use evenkeel::model::{ModelConfig, Transformer};
use evenkeel::tap::{NoTap, Site, Tap};
use evenkeel::tape::{Gradients, Tape};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Tensors = BTreeMap<String, Tensor>;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// All tensors of all variants, by "VARIANT/KIND.NAME".
fn tensors() -> Tensors {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let blocks = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("blocks_") && name.ends_with(".safetensors")
    });
    blocks.flat_map(|path| read_tensors(&path).unwrap()).collect()
}

/// The variants with their configurations, read as a run's file would be.
fn variants() -> Vec<(String, ModelConfig)> {
    let text = std::fs::read_to_string(folder().join("blocks.json")).unwrap();
    let all: BTreeMap<String, toml::Table> = serde_json::from_str(&text).unwrap();
    let config = |table: toml::Table| {
        let run = toml::Table::from_iter([("model".to_string(), toml::Value::Table(table))]);
        RunConfig::from_table(run, &[]).unwrap().model
    };
    all.into_iter().map(|(name, table)| (name, config(table))).collect()
}

fn part(all: &Tensors, variant: &str, kind: &str) -> Tensors {
    let prefix = format!("{variant}/{kind}.");
    all.iter().filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_string(), v.clone()))).collect()
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn ids(t: &Tensor) -> (Vec<u32>, usize) {
    let rows = t.to_vec2::<i64>().unwrap();
    (rows.concat().into_iter().map(|v| v as u32).collect(), rows.len())
}

fn peak(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Largest difference over the largest magnitude of `want`, or `least` if that is larger.
fn deviation(got: &[f64], want: &[f64], least: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / peak(want).max(least)
}

#[derive(Default)]
struct Inside(BTreeMap<String, Tensor>);

impl Tap for Inside {
    fn wants(&self, site: Site) -> bool {
        !site.place.has_channels()
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        // One sequence comes after the other.
        let before = self.0.remove(&site.to_string());
        let all = before.map_or(Ok(x.clone()), |before| Tensor::cat(&[&before, &x], 0))?;
        self.0.insert(site.to_string(), all);
        Ok(x)
    }
}

/// Kernels in float32 to 1e-5, compositions in float64 to what the files' float32 holds.
#[test]
fn every_block_computes_what_pytorch_computes() {
    let all = tensors();
    let variants = variants();
    assert!(variants.len() > 40);
    for (name, config) in &variants {
        let model = Transformer::from_tensors(config.clone(), &mut part(&all, name, "param"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (ids, sequences) = ids(&all[&format!("{name}/ids")]);
        let (targets, _) = self::ids(&all[&format!("{name}/targets")]);
        let sites = part(&all, name, "site");
        assert!(sites.len() >= 4, "{name}");
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 3e-7)] {
            let model = model.to_dtype(dtype).unwrap();
            let mut seen = activations_as(&model, &ids, sequences);
            let mut inside = Inside::default();
            model.logits(&Tape::off(), &mut inside, &ids, sequences).unwrap();
            seen.extend(inside.0);
            for (site, want) in &sites {
                let got = seen.get(site).unwrap_or_else(|| panic!("{name}: no site {site}"));
                assert_eq!(got.dims(), want.dims(), "{name}: {site}");
                let d = deviation(&floats(got), &floats(want), 1e-30);
                assert!(d < tolerance, "{name}: {site} deviates by {d:e} in {dtype:?}");
            }

            let mut gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor)).unwrap();
            let tape = Tape::recording();
            let loss = model.loss(&tape, &mut NoTap, &ids, &targets, sequences).unwrap();
            let (got, want) = (floats(loss.tensor())[0], floats(&all[&format!("{name}/loss")])[0]);
            assert!((got - want).abs() < tolerance * want, "{name}: the loss is {got}, not {want}");
            tape.backward(&loss, 1.0, &mut gradients).unwrap();
            let wanted = part(&all, name, "grad");
            assert_eq!(wanted.is_empty(), name == "op_official", "{name}");
            let largest = wanted.values().map(|t| peak(&floats(t))).fold(0.0, f64::max);
            for p in model.parameters().iter().filter(|_| !wanted.is_empty()) {
                let (got, want) = (floats(gradients.get(p.index)), floats(&wanted[&p.name]));
                if peak(&want) < 1e-9 * largest {
                    // Zero in real numbers: what a key's bias adds, softmax ignores. What is left is rounding noise.
                    assert!(p.name.ends_with("bias") && peak(&got) < 1e-6 * largest, "{name}: {}", p.name);
                    continue;
                }
                let d = deviation(&got, &want, 1e-2 * largest);
                assert!(d < 2.0 * tolerance, "{name}: gradient of {} deviates by {d:e} in {dtype:?}", p.name);
            }
        }
    }
}

/// As [`activations`], in the model's own dtype.
fn activations_as(model: &Transformer, ids: &[u32], sequences: usize) -> Tensors {
    struct All(Tensors);
    impl Tap for All {
        fn wants(&self, site: Site) -> bool {
            site.place.has_channels()
        }
        fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
            self.0.insert(site.to_string(), x.clone());
            Ok(x)
        }
    }
    let mut all = All(Tensors::new());
    model.logits(&Tape::off(), &mut all, ids, sequences).unwrap();
    assert_eq!(all.0.len(), activations(model, ids, sequences).unwrap().len());
    all.0
}

#[test]
fn every_configuration_survives_a_round_trip() {
    for (name, config) in variants() {
        let table = toml::Table::try_from(&config).unwrap();
        let run = toml::Table::from_iter([("model".to_string(), toml::Value::Table(table))]);
        assert_eq!(RunConfig::from_table(run, &[]).unwrap().model, config, "{name}");
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), config, "{name}");
    }
}
