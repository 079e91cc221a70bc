//! GPTQ (Frantar et al., arXiv 2210.17323): the columns of a matrix are rounded one after the other, and what each loses is made
//! up for by the columns that are still to come, as far as the inputs' correlations allow.
//!
//! For W (out, in) and inputs X (in, tokens) it lowers ‖(W - Ŵ) X‖². With H = X Xᵀ + λ 1, where λ is `damp` times the mean of
//! the diagonal, and H⁻¹ = Uᵀ U with U upper triangular, column j leaves the error e = (w_j - ŵ_j) / U_jj, and each later
//! column k becomes w_k - e U_jk. All of this is in float64. A channel that calibration never saw is uncorrelated with all
//! others, so that its column is rounded to the nearest and touches none.
//!
//! A model is rounded block by block: what calibrates a block has gone through the rounded blocks before it, and the Gram
//! matrices and factors of one block alone are held. The largest factor, that of 3072 hidden channels, takes 75 MB, and three
//! more of its size while it is made.

use super::calibration::{InputTap, block_sites, head_reader, readers};
use super::{Calibration, Columns, RepairError, Rounding};
use crate::model::config::Readout;
use crate::model::{Input, ModelError, Parts, Streamed, Transformer};
use crate::slices::{slice, tensor};
use crate::tap::{NoTap, Place, Site};
use crate::tape::{Tape, Value};
use candle_core::Tensor;
use evenkeel_kernels::gemm::{Compute, View, gemm_new};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_upper_triangular;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// How GPTQ is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqOptions {
    /// λ over the mean of the diagonal, above 0.
    pub damp: f64,
    /// Columns after which the rest of the matrix is brought up to date. Speed alone depends on it.
    pub block: usize,
}

impl Default for GptqOptions {
    /// Those of the paper.
    fn default() -> Self {
        Self { damp: 0.01, block: 128 }
    }
}

/// The factor U of inputs: H⁻¹ = Uᵀ U.
pub struct Factor {
    /// Row by row; zeros below the diagonal.
    upper: Vec<f64>,
    channels: usize,
}

impl Factor {
    /// Of Σ x xᵀ, (channels, channels), of which what is on and below the diagonal is read. Any positive factor on it changes
    /// nothing. `None` if it is misshapen or not positive definite in spite of `damp`.
    pub fn of(gram: &[f32], channels: usize, damp: f64) -> Option<Self> {
        if channels == 0 || gram.len() != channels * channels {
            return None;
        }
        // On one thread, so that the bits do not depend on how many there are.
        faer::set_global_parallelism(Par::Seq);
        let mean = gram.iter().step_by(channels + 1).map(|&v| f64::from(v)).sum::<f64>() / channels as f64;
        // Inputs that are all zero leave every column on its own.
        let scale = if mean > 0.0 { 1.0 / mean } else { 1.0 };
        // Upside down, the lower factor of H is an upper one: H = V Vᵀ, and U = V⁻¹.
        let flipped = Mat::from_fn(channels, channels, |r, c| {
            let (r, c) = (channels - 1 - r.max(c), channels - 1 - r.min(c));
            let damping = if r == c { damp.max(f64::MIN_POSITIVE) } else { 0.0 };
            f64::from(gram[c * channels + r]) * scale + damping
        });
        let factor = flipped.llt(faer::Side::Lower).ok()?;
        let mut inverse = Mat::<f64>::zeros(channels, channels);
        invert_upper_triangular(inverse.as_mut(), factor.L().reverse_rows_and_cols(), Par::Seq);
        let entry = |i: usize| inverse[(i / channels, i % channels)];
        let upper: Vec<f64> = (0..channels * channels).map(entry).collect();
        upper.iter().all(|v| v.is_finite()).then_some(Self { upper, channels })
    }

    /// Row j of U.
    fn row(&self, j: usize) -> &[f64] {
        &self.upper[j * self.channels..(j + 1) * self.channels]
    }
}

/// Rounds a matrix (out, channels of `factor`), given row by row. `w` of another length stays as it is.
pub fn gptq(w: &mut [f32], factor: &Factor, block: usize, columns: &mut dyn Columns) {
    let channels = factor.channels;
    let rows = w.len() / channels;
    if rows * channels != w.len() || rows == 0 {
        return;
    }
    // A group is chosen from up-to-date columns if it does not reach beyond its block.
    let group = columns.group();
    let block = block.max(group).max(1).next_multiple_of(group.max(1));
    let mut matrix = by_columns(w, channels);
    for first in (0..channels).step_by(block) {
        let last = channels.min(first + block);
        let (done, rest) = matrix.split_at_mut(last * rows);
        let errors = round_block(&mut done[first * rows..], factor, first..last, rows, columns);
        if last < channels {
            let count = last - first;
            let u = MatRef::from_row_major_slice(&factor.upper, channels, channels);
            let u = u.submatrix(first, last, count, channels - last);
            let errors = MatRef::from_row_major_slice(&errors, count, rows);
            let rest = MatMut::from_row_major_slice_mut(rest, channels - last, rows);
            matmul(rest, Accum::Add, u.transpose(), errors, -1.0, Par::Seq);
        }
    }
    for (c, column) in matrix.chunks_exact(rows).enumerate() {
        w.iter_mut().skip(c).step_by(channels).zip(column).for_each(|(w, &v)| *w = v as f32);
    }
}

/// (rows, channels) to (channels, rows).
fn by_columns(w: &[f32], channels: usize) -> Vec<f64> {
    (0..channels).flat_map(|c| w.iter().skip(c).step_by(channels).map(|&v| f64::from(v))).collect()
}

/// Rounds the columns `range`, which `block` holds one after the other, and returns what each leaves: e by columns.
fn round_block(
    block: &mut [f64],
    factor: &Factor,
    range: std::ops::Range<usize>,
    rows: usize,
    columns: &mut dyn Columns,
) -> Vec<f64> {
    let group = columns.group();
    let mut errors = Vec::with_capacity(block.len());
    for j in range.clone() {
        let (_, now) = block.split_at_mut((j - range.start) * rows);
        if group > 0 && j % group == 0 {
            let width = group.min(now.len() / rows);
            let start: Vec<f32> = (0..rows)
                .flat_map(|r| now.iter().skip(r).step_by(rows).take(width).map(|&v| v as f32))
                .collect();
            columns.start(j, &start);
        }
        let (column, later) = now.split_at_mut(rows);
        let mut rounded: Vec<f32> = column.iter().map(|&v| v as f32).collect();
        columns.round(j, &mut rounded);
        let u = factor.row(j);
        let left: Vec<f64> = column.iter().zip(&rounded).map(|(w, &q)| (w - f64::from(q)) / u[j]).collect();
        column.iter_mut().zip(&rounded).for_each(|(w, &q)| *w = f64::from(q));
        for (column, u) in later.chunks_exact_mut(rows).zip(&u[j + 1..]) {
            column.iter_mut().zip(&left).for_each(|(w, e)| *w -= e * u);
        }
        errors.extend(left);
    }
    errors
}

/// What rounding a matrix costs: √(‖(W - Ŵ) X‖² / ‖W X‖²) over the calibration.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqSite {
    /// The matrix, such as `blocks.0.attn.q.weight`.
    pub matrix: String,
    /// With each entry at its nearest.
    pub nearest: f64,
    /// With GPTQ.
    pub gptq: f64,
}

/// The model with every parameter that `rounding` rounds at its nearest. A head that is a rounded token table gets a float copy
/// of it.
///
/// # Errors
/// If a parameter is not finite or not float32.
pub fn nearest_model(model: &Transformer, rounding: &dyn Rounding) -> Result<Transformer, RepairError> {
    let (weights, untied) = Rounded::new(model, rounding, &[])?;
    let mut config = model.config().clone();
    config.tie_head &= !untied;
    Ok(Transformer::from_tensors(config, &mut weights.tensors.into_inner())?)
}

/// The model with its weights rounded: the matrices of the blocks, and the first after the final norm, by GPTQ; what else
/// `rounding` rounds, to the nearest. And what that costs at each matrix.
///
/// # Errors
/// If there is no calibration, the model cannot run on it, or something is not finite.
pub fn gptq_model(
    model: &Transformer,
    calibration: &[Input],
    rounding: &dyn Rounding,
    options: GptqOptions,
) -> Result<(Transformer, Vec<GptqSite>), RepairError> {
    if calibration.is_empty() {
        return Err(RepairError::NoCalibration);
    }
    calibration.iter().try_for_each(|input| input.check(model.config()))?;
    let mut config = model.config().clone();
    let end = Site::outside(Place::FinalNorm);
    let mut sites: Vec<Site> = (0..config.depth).flat_map(block_sites).collect();
    // The token table is no matrix of the head's own.
    let headed = config.readout != Readout::None && !(config.tie_head && head_reader(&config) == "head");
    sites.extend(headed.then_some(end));
    let guided: Vec<String> = sites.iter().flat_map(|&site| readers(&config, site)).collect();
    let (weights, untied) = Rounded::new(model, rounding, &guided)?;
    config.tie_head &= !untied;

    let reader = |name: &str, _: &[usize]| weights.get(name);
    let parts = Streamed::new(config.clone(), &reader)?;
    let tape = Tape::off();
    let mut report = Vec::new();
    let embedding = parts.embedding()?;
    let entering = calibration.iter().map(|input| embedding.forward(&tape, &mut NoTap, input));
    let mut streams: Vec<Value> = entering.collect::<Result<_, _>>()?;
    for layer in 0..config.depth {
        let mut tap = InputTap::new(&config, true);
        let block = parts.block(layer)?;
        for x in &streams {
            block.forward(&tape, &mut tap, x)?;
        }
        let inputs = tap.finish()?;
        for site in block_sites(layer) {
            weights.round_readers(site, &readers(&config, site), &inputs, options, &mut report)?;
        }
        let block = parts.block(layer)?;
        for x in &mut streams {
            *x = block.forward(&tape, &mut NoTap, x)?;
        }
    }
    if headed {
        let mut tap = InputTap::new(&config, rounding.rounds(&format!("{}.weight", head_reader(&config))));
        let head = parts.head()?;
        for x in &streams {
            head.final_norm(&tape, &mut tap, x)?;
        }
        weights.round_readers(end, &readers(&config, end), &tap.finish()?, options, &mut report)?;
    }
    Ok((Transformer::from_tensors(config, &mut weights.tensors.into_inner())?, report))
}

/// A model's parameters on their way from float to rounded.
struct Rounded<'a> {
    tensors: RefCell<BTreeMap<String, Tensor>>,
    rounding: &'a dyn Rounding,
}

impl<'a> Rounded<'a> {
    /// All that is rounded but the matrices named `later` at its nearest; and whether the head had to be untied.
    fn new(
        model: &Transformer,
        rounding: &'a dyn Rounding,
        later: &[String],
    ) -> Result<(Self, bool), RepairError> {
        let mut tensors = BTreeMap::new();
        let mut untied = false;
        for p in model.parameters() {
            let rounds = rounding.rounds(&p.name);
            let values = finite(&p.name, &p.tensor)?;
            let waits =
                p.name.strip_suffix(".weight").is_some_and(|matrix| later.iter().any(|l| l == matrix));
            if !rounds || waits {
                tensors.insert(p.name.clone(), p.tensor.clone());
                continue;
            }
            if model.config().tie_head && p.name == "embed.token.weight" {
                tensors.insert("head.weight".into(), p.tensor.clone());
                untied = true;
            }
            let rounded = rounding.round(&p.name, &values, matrix_shape(&p.tensor));
            tensors.insert(p.name.clone(), tensor(rounded, p.tensor.shape())?);
        }
        Ok((Self { tensors: RefCell::new(tensors), rounding }, untied))
    }

    fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        let found = self.tensors.borrow().get(name).cloned();
        found.ok_or_else(|| ModelError::Unreadable { name: name.into(), problem: "there is none".into() })
    }

    /// Rounds the matrices that read a site.
    fn round_readers(
        &self,
        site: Site,
        matrices: &[String],
        calibration: &Calibration,
        options: GptqOptions,
        report: &mut Vec<GptqSite>,
    ) -> Result<(), RepairError> {
        let names = matrices.iter().map(|matrix| format!("{matrix}.weight"));
        let names: Vec<String> = names.filter(|name| self.rounding.rounds(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let gram = &calibration.at(site)?.gram;
        let channels = calibration.at(site)?.maxima.len();
        let factor = Factor::of(gram, channels, options.damp)
            .ok_or_else(|| RepairError::NotPositive { site: site.to_string() })?;
        for name in names {
            let float = self.get(&name)?;
            let (w, shape) = (slice(&float)?.to_vec(), matrix_shape(&float));
            let mut rounded = w.clone();
            let mut columns = self.rounding.columns(&name, &w, shape);
            gptq(&mut rounded, &factor, options.block, &mut *columns);
            drop(columns);
            report.push(GptqSite {
                matrix: name.clone(),
                nearest: output_error(&w, &self.rounding.round(&name, &w, shape), gram, channels),
                gptq: output_error(&w, &rounded, gram, channels),
            });
            self.tensors.borrow_mut().insert(name, tensor(rounded, float.shape())?);
        }
        Ok(())
    }
}

/// A parameter's values, all finite.
fn finite(name: &str, parameter: &Tensor) -> Result<Vec<f32>, RepairError> {
    let values = slice(parameter)?.to_vec();
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(RepairError::NonFinite { name: name.into() }),
    }
}

/// As a matrix: rows and the length of the last axis.
fn matrix_shape(parameter: &Tensor) -> (usize, usize) {
    let columns = parameter.dims().last().copied().unwrap_or(1).max(1);
    (parameter.elem_count() / columns, columns)
}

/// √(‖(W - Ŵ) X‖² / ‖W X‖²) from X Xᵀ; 0 if there is no output.
fn output_error(w: &[f32], rounded: &[f32], gram: &[f32], channels: usize) -> f64 {
    let lost: Vec<f32> = w.iter().zip(rounded).map(|(w, q)| w - q).collect();
    let energy = |w: &[f32]| -> f64 {
        let (w_view, gram) =
            (View::new(w, w.len() / channels, channels), View::new(gram, channels, channels));
        let product = gemm_new(Compute::F32, w_view, gram, |_, _, _| {});
        product.iter().zip(w).map(|(&p, &w)| f64::from(p) * f64::from(w)).sum()
    };
    let all = energy(w);
    if all > 0.0 { (energy(&lost).max(0.0) / all).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{AbsMax, difference, inputs, inputs_of, perturbed, variants};
    use super::*;
    use crate::random::uniform;
    use faer::linalg::solvers::DenseSolveCore;

    /// Correlated inputs (channels, tokens): a few directions and noise. The last channel is never seen.
    fn correlated(channels: usize, tokens: usize) -> Vec<f32> {
        let noise = |key: u64, i: usize| uniform(key, i as u64) * 2.0 - 1.0;
        let mut x = vec![0.0; channels * tokens];
        for c in 0..channels - 1 {
            for t in 0..tokens {
                let common: f64 = (0..3).map(|k| noise(k, c) * noise(10 + k, t)).sum();
                x[c * tokens + t] = (common + 0.2 * noise(20, c * tokens + t)) as f32;
            }
        }
        x
    }

    fn gram(x: &[f32], channels: usize) -> Vec<f32> {
        let tokens = x.len() / channels;
        let row = |c: usize| &x[c * tokens..(c + 1) * tokens];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        (0..channels * channels).map(|i| dot(row(i / channels), row(i % channels))).collect()
    }

    fn weights(rows: usize, channels: usize) -> Vec<f32> {
        (0..rows * channels).map(|i| (uniform(99, i as u64) * 2.0 - 1.0) as f32).collect()
    }

    /// Optimal Brain Quantization in a fixed order, as it is stated: after each column the inverse of what is left of H.
    fn stated(w: &[f32], gram: &[f32], channels: usize, damp: f64, columns: &mut dyn Columns) -> Vec<f32> {
        let mean = (0..channels).map(|i| f64::from(gram[i * channels + i])).sum::<f64>() / channels as f64;
        let mut matrix: Vec<Vec<f64>> =
            w.chunks(channels).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
        for j in 0..channels {
            let left = channels - j;
            let h = Mat::from_fn(left, left, |r, c| {
                f64::from(gram[(j + r) * channels + j + c]) + if r == c { damp * mean } else { 0.0 }
            });
            let inverse = h.partial_piv_lu().inverse();
            let group = columns.group();
            if group > 0 && j % group == 0 {
                let end = channels.min(j + group);
                let values: Vec<f32> =
                    matrix.iter().flat_map(|row| row[j..end].iter().map(|&v| v as f32)).collect();
                columns.start(j, &values);
            }
            let mut rounded: Vec<f32> = matrix.iter().map(|row| row[j] as f32).collect();
            columns.round(j, &mut rounded);
            for (row, &q) in matrix.iter_mut().zip(&rounded) {
                let error = (row[j] - f64::from(q)) / inverse[(0, 0)];
                for k in 0..left {
                    row[j + k] -= error * inverse[(0, k)];
                }
                row[j] = f64::from(q);
            }
        }
        matrix.into_iter().flatten().map(|v| v as f32).collect()
    }

    #[test]
    fn agrees_with_the_statement_and_beats_the_nearest() {
        let (rows, channels, tokens) = (6, 40, 90);
        let (w, x) = (weights(rows, channels), correlated(channels, tokens));
        let gram = gram(&x, channels);
        for (bits, group, block) in [(4, 0, 16), (4, 0, 7), (3, 0, 128), (4, 8, 16), (4, 16, 7), (3, 12, 5)] {
            let rounding = AbsMax { bits, group };
            let shape = (rows, channels);
            let want = stated(&w, &gram, channels, 0.01, &mut *rounding.columns("w", &w, shape));
            let factor = Factor::of(&gram, channels, 0.01).unwrap();
            let mut got = w.clone();
            gptq(&mut got, &factor, block, &mut *rounding.columns("w", &w, shape));
            let worst = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst < 1e-5, "{bits} bits, groups of {group}, blocks of {block}: {worst}");
            let nearest = rounding.round("w", &w, shape);
            let [lost, more] = [&got, &nearest].map(|q| output_error(&w, q, &gram, channels));
            assert!(lost < 0.6 * more, "{bits} bits, groups of {group}: {lost} after {more}");
        }
    }

    #[test]
    fn scale_of_the_inputs_does_not_matter_and_a_channel_never_seen_is_rounded_to_the_nearest() {
        let (rows, channels) = (5, 24);
        let (w, x) = (weights(rows, channels), correlated(channels, 60));
        let rounding = AbsMax { bits: 4, group: 0 };
        let rounded = |gram: &[f32]| {
            let mut q = w.clone();
            let factor = Factor::of(gram, channels, 0.01).unwrap();
            gptq(&mut q, &factor, 8, &mut *rounding.columns("w", &w, (rows, channels)));
            q
        };
        let plain = gram(&x, channels);
        let doubled: Vec<f32> = plain.iter().map(|v| v * 1024.0).collect();
        assert_eq!(rounded(&plain), rounded(&doubled));
        let nearest = rounding.round("w", &w, (rows, channels));
        let last = |q: &[f32]| q.iter().skip(channels - 1).step_by(channels).copied().collect::<Vec<_>>();
        assert_eq!(last(&rounded(&plain)), last(&nearest));
        assert_eq!(rounded(&vec![0.0; channels * channels]), nearest);
        assert!(Factor::of(&plain, channels - 1, 0.01).is_none());
        assert!(Factor::of(&[f32::NAN; 4], 2, 0.01).is_none());
    }

    #[test]
    fn every_model_comes_nearer_to_itself_than_by_rounding_to_the_nearest() {
        let (mut nearer, mut all) = (0, 0);
        for (name, config) in variants() {
            let model = perturbed(&config);
            let rounding = AbsMax { bits: 4, group: 0 };
            let (rounded, sites) =
                gptq_model(&model, &inputs_of(&config), &rounding, GptqOptions::default()).unwrap();
            let per_block = if config.activation.is_gated() { 7 } else { 6 };
            assert_eq!(sites.len(), per_block * config.depth, "{name}");
            let lost: f64 = sites.iter().map(|s| s.gptq).sum();
            let before: f64 = sites.iter().map(|s| s.nearest).sum();
            assert!(lost < 0.9 * before, "{name}: {lost} after {before}");
            let nearest = nearest_model(&model, &rounding).unwrap();
            nearer += usize::from(difference(&model, &rounded) < difference(&model, &nearest));
            all += 1;
        }
        assert!(nearer * 4 > all * 3, "{nearer} of {all}");
    }

    #[test]
    fn bad_models_and_no_data_are_refused() {
        let model = perturbed(&variants()[0].1);
        let rounding = AbsMax { bits: 8, group: 0 };
        let none = gptq_model(&model, &[], &rounding, GptqOptions::default());
        assert!(matches!(none, Err(RepairError::NoCalibration)));
        let broken = model
            .map_parameters(|p| {
                Ok(if p.name == "blocks.1.mlp.up.weight" {
                    (&p.tensor * f64::NAN)?
                } else {
                    p.tensor.clone()
                })
            })
            .unwrap();
        let broken = gptq_model(&broken, &inputs(), &rounding, GptqOptions::default());
        assert!(matches!(broken, Err(RepairError::NonFinite { name }) if name == "blocks.1.mlp.up.weight"));
    }
}
