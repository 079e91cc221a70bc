//! Parameters: named tensors in a fixed order, made by initialisation or taken from a checkpoint.
//!
//! A model is built by asking a [`Source`] for each parameter in turn, so that a new model and a loaded one
//! go through the same code. Random initialisation is counter-based: a parameter's values depend on the
//! seed and its name alone, so two models share what they have in common.

use super::ModelError;
use super::matrix::{Matrix, StoredMatrix};
use super::transformer::Reader;
use crate::random::{mix, uniform as uniform_below_one};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A parameter of a model.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name, such as `blocks.3.attn.q.weight`.
    pub name: String,
    /// Its index in the model's list and in [`crate::tape::Gradients`].
    pub index: usize,
    /// Its values. Clones share storage: the optimiser's change is seen everywhere.
    pub tensor: Tensor,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// N(0, std²).
    Normal(f64),
    /// One value everywhere.
    Constant(f64),
    /// A square matrix with orthonormal columns.
    Orthogonal,
}

/// Where parameters come from.
pub enum Source<'a> {
    /// Fresh, from this seed.
    Seed(u64),
    /// These tensors, by name. Each is taken out; what remains was not asked for.
    Tensors(&'a mut BTreeMap<String, Tensor>),
    /// Read one by one, as they are asked for.
    Reader(&'a Reader<'a>),
    /// Matrices that are stored otherwise than as parameters, by name, each taken out; the rest is read.
    Stored(&'a mut BTreeMap<String, StoredMatrix>, &'a Reader<'a>),
    /// Shapes only: zero-sized stand-ins for counting (`--dry-run`).
    Shapes,
}

/// Collects the parameters of a model while it is built.
pub struct Builder<'a> {
    source: Source<'a>,
    /// The parameters so far.
    pub parameters: Vec<Parameter>,
    /// Their shapes, also when only shapes are wanted.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// The matrices that are stored otherwise.
    pub stored: BTreeMap<String, Arc<StoredMatrix>>,
    problems: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Starts with nothing.
    pub fn new(source: Source<'a>) -> Self {
        let (parameters, shapes, stored, problems) = Default::default();
        Self { source, parameters, shapes, stored, problems }
    }

    /// Whether nothing but shapes is wanted.
    pub fn counts_only(&self) -> bool {
        matches!(self.source, Source::Shapes)
    }

    /// How many parameters there are so far.
    pub fn mark(&self) -> usize {
        self.parameters.len()
    }

    /// Those since there were `mark`.
    pub fn since(&self, mark: usize) -> Vec<Parameter> {
        self.parameters[mark..].to_vec()
    }

    /// The next parameter.
    ///
    /// # Errors
    /// If memory cannot be had. A missing or misshapen tensor is noted and reported by [`Self::finish`], all at once.
    pub fn parameter(
        &mut self,
        name: String,
        shape: &[usize],
        start: Start,
    ) -> Result<Parameter, ModelError> {
        self.shapes.push((name.clone(), shape.to_vec()));
        let tensor = match &mut self.source {
            Source::Seed(seed) => initial(*seed, &name, shape, start)?,
            Source::Shapes => Tensor::zeros(0, DType::F32, &Device::Cpu)?,
            Source::Reader(read) | Source::Stored(_, read) => read(&name, shape)?,
            Source::Tensors(map) => match map.remove(&name) {
                Some(tensor) if tensor.dims() == shape => tensor.contiguous()?,
                found => {
                    self.problems.push(match found {
                        Some(t) => format!("{name} has shape {:?}, not {shape:?}", t.dims()),
                        None => format!("{name} is missing"),
                    });
                    Tensor::zeros(shape, DType::F32, &Device::Cpu)?
                }
            },
        };
        let parameter = Parameter { name, index: self.parameters.len(), tensor };
        self.parameters.push(parameter.clone());
        Ok(parameter)
    }

    /// The next parameter, a matrix (out, in). One that is stored otherwise holds its bias, so that none is asked for.
    ///
    /// # Errors
    /// As [`Self::parameter`].
    pub(super) fn matrix(
        &mut self,
        name: String,
        shape: [usize; 2],
        start: Start,
    ) -> Result<Matrix, ModelError> {
        let stored = match &mut self.source {
            Source::Stored(matrices, _) => matrices.remove(&name),
            _ => None,
        };
        let Some(stored) = stored else { return Ok(Matrix::Float(self.parameter(name, &shape, start)?)) };
        if stored.shape() != shape {
            self.problems.push(format!("{name} has shape {:?}, not {shape:?}", stored.shape()));
        }
        self.shapes.push((name.clone(), shape.to_vec()));
        let stored = Arc::new(stored);
        self.stored.insert(name, stored.clone());
        Ok(Matrix::Stored(stored))
    }

    /// Notes a vector that a stored matrix holds.
    pub(super) fn held(&mut self, name: String, size: usize) {
        self.shapes.push((name, vec![size]));
    }

    /// All parameters.
    ///
    /// # Errors
    /// Every discrepancy between the given tensors and what the model needs.
    pub fn finish(mut self) -> Result<Vec<Parameter>, ModelError> {
        if let Source::Tensors(map) = &self.source {
            self.problems.extend(map.keys().map(|name| format!("{name} is not part of this model")));
        }
        if let Source::Stored(map, _) = &self.source {
            self.problems.extend(map.keys().map(|name| format!("{name} is not part of this model")));
        }
        if self.problems.is_empty() {
            Ok(self.parameters)
        } else {
            Err(ModelError::Weights { problems: self.problems })
        }
    }
}

fn initial(seed: u64, name: &str, shape: &[usize], start: Start) -> Result<Tensor, ModelError> {
    let n: usize = shape.iter().product();
    let data = match start {
        Start::Constant(value) => vec![value as f32; n],
        Start::Normal(std) => normal_values(seed, name, n, std),
        Start::Orthogonal => orthogonal_values(seed, name, shape[0]),
    };
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// `n` values of N(0, std²), by Box and Muller from a counter: value i depends on (seed, name, i) alone.
fn normal_values(seed: u64, name: &str, n: usize, std: f64) -> Vec<f32> {
    let key = name.bytes().fold(mix(seed ^ 0x6576_656e_6b65_656c), |h, b| mix(h ^ b as u64));
    let uniform = |counter: u64| {
        // In (0, 1], so that the logarithm is finite.
        uniform_below_one(key, counter) + 1.0 / (1u64 << 53) as f64
    };
    (0..n as u64)
        .map(|i| {
            let pair = i & !1;
            let radius = (-2.0 * uniform(pair).ln()).sqrt();
            let angle = std::f64::consts::TAU * uniform(pair + 1);
            let value = if i == pair { radius * angle.cos() } else { radius * angle.sin() };
            (value * std) as f32
        })
        .collect()
}

/// The orthogonal factor of a random n × n matrix.
fn orthogonal_values(seed: u64, name: &str, n: usize) -> Vec<f32> {
    // On one thread, so that the bits do not depend on how many there are.
    faer::set_global_parallelism(faer::Par::Seq);
    let random = normal_values(seed, name, n * n, 1.0);
    let q = faer::Mat::from_fn(n, n, |r, c| random[r * n + c] as f64).qr().compute_thin_Q();
    (0..n * n).map(|i| q[(i / n, i % n)] as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_values_are_normal_and_depend_on_the_name() {
        let n = 100_000;
        let x = normal_values(1, "a", n, 2.0);
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64;
        let fourth = x.iter().map(|&v| (v as f64 - mean).powi(4)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 4.0).abs() < 0.1);
        assert!((fourth / variance / variance - 3.0).abs() < 0.1);
        assert_eq!(normal_values(1, "a", 5, 2.0)[..], x[..5]);
        assert_ne!(normal_values(1, "b", 5, 2.0)[..], x[..5]);
        assert_ne!(normal_values(2, "a", 5, 2.0)[..], x[..5]);
    }

    #[test]
    fn orthogonal_values_are_orthogonal() {
        let n = 9;
        let q = orthogonal_values(1, "a", n);
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| q[k * n + i] as f64 * q[k * n + j] as f64).sum();
                assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-6);
            }
        }
    }
}
