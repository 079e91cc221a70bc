//! Two models, tensor by tensor.
//!
//! The tensors are those that the files hold, by their names there. Two folders that share no name (a run and what was exported
//! from it) are both read as models of ours, and compared by our names. Numbers are the same if their bits are: -0 is not 0, and
//! a NaN is the same NaN.

use super::finite;
use crate::checkpoint::weights::Weights;
use crate::checkpoint::{CheckpointError, OnDisk, resolve};
use crate::error::Result;
use crate::model::Transformer;
use crate::slices::slice;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

/// How two models differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelComparison {
    /// Whether the names are ours, since the files had none in common.
    pub renamed: bool,
    /// Tensors that only the first has.
    pub only_a: Vec<String>,
    /// Tensors that only the second has.
    pub only_b: Vec<String>,
    /// Tensors of another shape in each.
    pub shapes: Vec<ShapeDifference>,
    /// Tensors that both have in one shape, by name.
    pub tensors: Vec<TensorDifference>,
}

/// A tensor of two shapes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShapeDifference {
    /// Its name.
    pub name: String,
    /// Its shape in the first.
    pub a: Vec<usize>,
    /// Its shape in the second.
    pub b: Vec<usize>,
}

/// How a tensor differs. Differences are null where a number of one of the two is not finite and the other's is not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// What its numbers are stored as in each; those of different types are compared as float32.
    pub stored: [&'static str; 2],
    /// Numbers it has.
    pub elements: u64,
    /// Numbers whose bits are the same in both.
    pub identical: u64,
    /// Largest |a - b|.
    pub max_abs: Option<f64>,
    /// Largest |a - b| / max(|a|, |b|).
    pub max_rel: Option<f64>,
    /// RMS of a - b.
    pub rms: Option<f64>,
    /// RMS of a - b over the RMS of a; null where a is 0 and b is not.
    pub rms_rel: Option<f64>,
}

impl TensorDifference {
    /// Whether it is the same, bit for bit for a tolerance of 0, else with `rms_rel` at most that.
    pub fn is_same(&self, tolerance: f64) -> bool {
        let within = tolerance > 0.0 && self.rms_rel.is_some_and(|rms| rms <= tolerance);
        self.stored[0] == self.stored[1] && self.identical == self.elements || within
    }
}

impl ModelComparison {
    /// A sentence on the first tensor, by name, that is not the same; `None` if all are.
    pub fn first_difference(&self, tolerance: f64) -> Option<String> {
        if let Some(name) = self.only_a.first() {
            return Some(format!("tensor {name} is only in the first"));
        }
        if let Some(name) = self.only_b.first() {
            return Some(format!("tensor {name} is only in the second"));
        }
        if let Some(ShapeDifference { name, a, b }) = self.shapes.first() {
            return Some(format!("tensor {name} has shape {a:?} in the first and {b:?} in the second"));
        }
        let other = self.tensors.iter().find(|t| !t.is_same(tolerance))?;
        if other.stored[0] != other.stored[1] {
            let [a, b] = other.stored;
            return Some(format!(
                "tensor {} is stored as {a} in the first and {b} in the second",
                other.name
            ));
        }
        let changed = other.elements - other.identical;
        let size = other.max_abs.map_or("not finite".into(), |v| format!("{v:.3e} at most"));
        Some(format!(
            "tensor {}: {changed} of {} numbers differ, the difference is {size}",
            other.name, other.elements
        ))
    }

    /// Numbers of the tensors that both have, and how many are the same in both.
    pub fn numbers(&self) -> (u64, u64) {
        let sum = |value: fn(&TensorDifference) -> u64| self.tensors.iter().map(value).sum();
        (sum(|t| t.elements), sum(|t| t.identical))
    }
}

/// Compares the models that two MODELs mean: run directories, checkpoints, Hugging Face or int8 folders.
///
/// # Errors
/// If one is no model, or its files cannot be read.
pub fn compare_models(a: &Path, b: &Path) -> Result<ModelComparison> {
    let open = |path: &Path| -> Result<Source> {
        let weights = Weights::open(&resolve(path)?).map_err(CheckpointError::from)?;
        Ok(Source::Stored(weights))
    };
    let (mut first, mut second) = (open(a)?, open(b)?);
    let mut renamed = false;
    if first.names().is_disjoint(&second.names())
        && let (Ok(one), Ok(other)) = (loaded(a), loaded(b))
    {
        (first, second, renamed) = (one, other, true);
    }
    let (in_a, in_b) = (first.names(), second.names());
    let only = |x: &BTreeSet<String>, y: &BTreeSet<String>| x.difference(y).cloned().collect();
    let mut found = ModelComparison {
        renamed,
        only_a: only(&in_a, &in_b),
        only_b: only(&in_b, &in_a),
        ..ModelComparison::default()
    };
    for name in in_a.intersection(&in_b) {
        let (shape_a, shape_b) = (first.shape(name), second.shape(name));
        if shape_a == shape_b {
            found.tensors.push(difference(name, &first, &second)?);
        } else {
            found.shapes.push(ShapeDifference { name: name.clone(), a: shape_a, b: shape_b });
        }
    }
    Ok(found)
}

/// Where a model's tensors are.
enum Source {
    /// In files, by their names there.
    Stored(Weights),
    /// In memory, by our names.
    Loaded(Box<Transformer>),
}

fn loaded(path: &Path) -> Result<Source> {
    Ok(Source::Loaded(Box::new(OnDisk::open(path)?.load()?)))
}

impl Source {
    fn names(&self) -> BTreeSet<String> {
        match self {
            Source::Stored(weights) => weights.names().map(String::from).collect(),
            Source::Loaded(model) => model.parameters().iter().map(|p| p.name.clone()).collect(),
        }
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let shape = match self {
            Source::Stored(weights) => weights.shape(name),
            Source::Loaded(model) => {
                model.parameters().iter().find(|p| p.name == name).map(|p| p.tensor.dims())
            }
        };
        shape.unwrap_or_default().to_vec()
    }

    fn stored(&self, name: &str) -> &'static str {
        match self {
            Source::Stored(weights) => weights.stored(name).map_or("", |stored| stored.name()),
            Source::Loaded(_) => "F32",
        }
    }

    /// The bytes as stored, and the numbers as float32.
    fn read(&self, name: &str) -> Result<(Cow<'_, [u8]>, Vec<f32>)> {
        match self {
            Source::Stored(weights) => {
                let raw = weights.raw(name).map_err(CheckpointError::from)?;
                let numbers = weights.read(name).map_err(CheckpointError::from)?;
                Ok((raw, numbers))
            }
            Source::Loaded(model) => {
                let found = model.parameters().iter().find(|p| p.name == name);
                let numbers = match found {
                    Some(parameter) => slice(&parameter.tensor)?.to_vec(),
                    None => Vec::new(),
                };
                let raw = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
                Ok((Cow::Owned(raw), numbers))
            }
        }
    }
}

fn difference(name: &str, first: &Source, second: &Source) -> Result<TensorDifference> {
    let stored = [first.stored(name), second.stored(name)];
    let ((raw_a, a), (raw_b, b)) = (first.read(name)?, second.read(name)?);
    let size = raw_a.len() / a.len().max(1);
    let identical = if stored[0] == stored[1] && size > 0 {
        raw_a.chunks_exact(size).zip(raw_b.chunks_exact(size)).filter(|(a, b)| a == b).count()
    } else {
        a.iter().zip(&b).filter(|(a, b)| a.to_bits() == b.to_bits()).count()
    };
    let (mut max_abs, mut max_rel, mut squares, mut energy) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(&b) {
        if a.to_bits() == b.to_bits() {
            energy += f64::from(a) * f64::from(a);
            continue;
        }
        let (a, b) = (f64::from(a), f64::from(b));
        let apart = (a - b).abs();
        // Not `max`, which passes NaN by.
        let apart = if apart.is_finite() { apart } else { f64::INFINITY };
        max_abs = max_abs.max(apart);
        let largest = a.abs().max(b.abs());
        max_rel = max_rel.max(if largest > 0.0 { apart / largest } else { 0.0 });
        (squares, energy) = (squares + apart * apart, energy + a * a);
    }
    let count = a.len().max(1) as f64;
    let rms_rel = if squares == 0.0 { 0.0 } else { (squares / energy).sqrt() };
    Ok(TensorDifference {
        name: name.to_string(),
        stored,
        elements: a.len() as u64,
        identical: identical as u64,
        max_abs: finite(max_abs),
        max_rel: finite(max_rel),
        rms: finite((squares / count).sqrt()),
        rms_rel: finite(rms_rel),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::write_tensors;
    use candle_core::{Device, Tensor};
    use std::collections::BTreeMap;

    /// A folder that holds tensors; only its files are looked at.
    fn folder(tensors: &[(&str, &[f32])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let tensor = |v: &[f32]| Tensor::from_vec(v.to_vec(), v.len(), &Device::Cpu).unwrap();
        let tensors: BTreeMap<_, _> = tensors.iter().map(|(n, v)| (n.to_string(), tensor(v))).collect();
        write_tensors(&dir.path().join("model.safetensors"), &tensors).unwrap();
        dir
    }

    fn compared(a: &[(&str, &[f32])], b: &[(&str, &[f32])]) -> ModelComparison {
        compare_models(folder(a).path(), folder(b).path()).unwrap()
    }

    #[test]
    fn a_model_is_the_same_as_itself_nan_and_all() {
        let same = compared(&[("x", &[1.0, f32::NAN, -0.0])], &[("x", &[1.0, f32::NAN, -0.0])]);
        assert_eq!((same.first_difference(0.0), same.numbers()), (None, (3, 3)));
        assert_eq!(same.tensors[0].max_abs, Some(0.0));
    }

    #[test]
    fn differences_are_those_worked_out_by_hand() {
        let found = compared(&[("x", &[3.0, -4.0, 0.0, 12.0])], &[("x", &[3.0, -5.0, -0.0, 12.0])]);
        let x = &found.tensors[0];
        assert_eq!((x.elements, x.identical), (4, 2), "-0 is not 0");
        assert_eq!((x.max_abs, x.max_rel, x.rms), (Some(1.0), Some(0.2), Some(0.5)));
        assert_eq!(x.rms_rel, Some(1.0 / 13.0));
        assert!(found.first_difference(0.07).unwrap().contains("2 of 4 numbers differ"));
        assert_eq!(found.first_difference(0.08), None);
        let broken = compared(&[("x", &[1.0])], &[("x", &[f32::NAN])]);
        assert_eq!((broken.tensors[0].max_abs, broken.tensors[0].rms_rel), (None, None));
        assert!(broken.first_difference(1e9).unwrap().contains("not finite"));
    }

    #[test]
    fn names_and_shapes_come_first() {
        let found = compared(
            &[("a", &[1.0]), ("x", &[1.0]), ("y", &[1.0, 2.0])],
            &[("x", &[1.0]), ("y", &[1.0]), ("z", &[1.0])],
        );
        assert_eq!((&found.only_a[..], &found.only_b[..]), (&["a".to_string()][..], &["z".to_string()][..]));
        assert_eq!((&found.shapes[0].a[..], &found.shapes[0].b[..]), (&[2][..], &[1][..]));
        assert_eq!(found.first_difference(0.0).unwrap(), "tensor a is only in the first");
    }
}
