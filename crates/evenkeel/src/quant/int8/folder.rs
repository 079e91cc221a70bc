//! The int8 folder: config.json and model.safetensors, a MODEL like any other.
//!
//! Quantised parameters are I8 (U8 if nothing is negative) with `NAME.scale`, F32, of one entry or one for each output, and
//! `NAME.zero_point`, I32. Biases of layers whose input's grid is known are I32, in units of the sums; a bfloat16 head is
//! BF16; everything else is F32. A static grid of a site is `activation.SITE.scale`, F32, and `activation.SITE.zero_point`, U8.

use super::super::QuantError;
use super::super::grid::{Cell, Quantiser};
use super::super::places::sites;
use super::super::rounding::Layout;
use super::super::scheme::{HeadFormat, Plan};
use super::super::simulation::Simulation;
use super::super::spec::{Format, Scale, Spec};
use super::super::tap::QuantTap;
use super::super::weights::WeightRounding;
use super::grids::{ActivationGrid, input_grid, is_bytes};
use super::stored::Stored;
use super::{Description, IntegerModel};
use crate::checkpoint::{CheckpointError, Raw, files, raw_file};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::{InputGrid, Reader, StoredMatrix, Transformer};
use crate::slices::{slice, tensor};
use crate::tap::Site;
use candle_core::Tensor;
use evenkeel_kernels::memory::MappedFile;
use evenkeel_kernels::quant::quantise;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// `model_type` of its config.json.
pub const MODEL_TYPE: &str = "evenkeel_int8";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// Version of the layout.
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct ConfigFile {
    model_type: String,
    model: ModelConfig,
    quantization: Description,
}

fn floats(values: &[f32], shape: Vec<usize>) -> Raw {
    Raw { dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

fn ints(values: &[i32]) -> Raw {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Raw { dtype: Dtype::I32, shape: vec![values.len()], bytes }
}

/// Largest bias, in units of the sums, of a layer of so many inputs: with larger ones, which stay float32, sums could overflow.
fn largest_bias(inner: usize) -> f64 {
    (i64::from(i32::MAX) - 255 * 255 * inner as i64) as f64
}

/// Whether the model of a plan can be written.
///
/// # Errors
/// The first quantiser whose values are no bytes.
pub fn check(plan: &Plan) -> std::result::Result<(), QuantError> {
    let of_bytes = |spec: &Spec| {
        let layout = Layout::of_weight(spec.granularity);
        spec.format == (Format::Int { bits: 8, symmetric: true })
            && spec.scale == Scale::Float
            && matches!(layout, Layout::Tensor | Layout::Row)
    };
    let weight =
        plan.weights.iter().find(|(_, spec)| !of_bytes(spec)).map(|(name, spec)| (name.clone(), spec));
    let site = plan
        .activations
        .iter()
        .find(|(_, spec)| !is_bytes(**spec))
        .map(|(site, spec)| (site.to_string(), spec));
    match weight.or(site) {
        Some((site, spec)) => Err(QuantError::NotInt8 { site, words: spec.to_string() }),
        None => Ok(()),
    }
}

/// Writes a calibrated model into an existing folder.
///
/// # Errors
/// If a quantiser's values are no bytes, or the disk refuses.
pub fn write(simulation: &Simulation, tokenizer: Option<&Path>, dir: &Path) -> Result<()> {
    let path = dir.join(WEIGHTS);
    let (config, bytes) = contents(simulation, &path)?;
    files::write(&path, &bytes)?;
    files::write_json(&dir.join(CONFIG), &config)?;
    if let Some(tokenizer) = tokenizer {
        files::write(&dir.join("tokenizer.json"), &files::read(tokenizer)?)?;
    }
    Ok(())
}

/// The model that [`read`] makes of what [`write()`] writes, without a folder.
///
/// # Errors
/// If a quantiser's values are no bytes.
pub fn convert(simulation: &Simulation) -> Result<IntegerModel> {
    let nowhere = PathBuf::from("memory");
    let (file, bytes) = contents(simulation, &nowhere)?;
    Ok(model(Folder { dir: nowhere.clone(), file, path: nowhere, bytes: Bytes::Held(bytes) })?)
}

/// The two files' contents.
fn contents(simulation: &Simulation, path: &Path) -> Result<(ConfigFile, Vec<u8>)> {
    let plan = simulation.plan();
    let rounded = simulation.rounded();
    let config = rounded.model.config();
    let mut grids = BTreeMap::new();
    for a in simulation.quantisers() {
        let grid = ActivationGrid::of(&a)
            .ok_or_else(|| QuantError::NotInt8 { site: a.site.to_string(), words: a.spec.to_string() })?;
        grids.insert(a.site, grid);
    }
    let mut entries = BTreeMap::new();
    for p in rounded.model.parameters() {
        let values = slice(&p.tensor)?;
        let shape = p.tensor.dims().to_vec();
        match rounded.weights.get(&p.name) {
            Some(w) => integers(&p.name, w, &values, shape, &mut entries)?,
            None if p.name == "head.weight" && plan.head == HeadFormat::Bf16 => {
                // They lie on bfloat16 already: the lower halves are 0.
                let bytes = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
                entries.insert(p.name.clone(), Raw { dtype: Dtype::BF16, shape, bytes });
            }
            None => {
                let layer = p.name.strip_suffix(".bias").map(|stem| format!("{stem}.weight"));
                let matrix =
                    layer.and_then(|name| rounded.model.parameters().iter().find(|p| p.name == name));
                let bias = matrix.and_then(|matrix| {
                    let weight = (matrix.name.as_str(), rounded.weights.get(&matrix.name)?);
                    integer_bias(config, &grids, weight, matrix.tensor.dims().last().copied()?, &values)
                });
                let entry = bias.map_or_else(|| floats(&values, shape), |b| ints(&b));
                entries.insert(p.name.clone(), entry);
            }
        }
    }
    for (site, grid) in &grids {
        if let ActivationGrid::Static(q) = grid {
            entries.insert(scale_of(&activation(*site)), floats(&[q.scale as f32], vec![1]));
            let zero = Raw { dtype: Dtype::U8, shape: vec![1], bytes: vec![q.zero_point as u8] };
            entries.insert(zero_of(&activation(*site)), zero);
        }
    }
    let bytes = raw_file(path, &entries)?;
    let file = ConfigFile {
        model_type: MODEL_TYPE.into(),
        model: config.clone(),
        quantization: Description {
            schema: SCHEMA,
            scheme: plan.scheme.clone(),
            repairs: simulation.repairs().to_vec(),
            calib_tokens: simulation.calib_tokens(),
            activations: plan.activations.iter().map(|(s, spec)| (s.to_string(), spec.to_string())).collect(),
        },
    };
    Ok((file, bytes))
}

pub(super) fn activation(site: Site) -> String {
    format!("activation.{site}")
}

pub(super) fn scale_of(name: &str) -> String {
    format!("{name}.scale")
}

pub(super) fn zero_of(name: &str) -> String {
    format!("{name}.zero_point")
}

/// The integers of values that lie on their grid, and the grid.
fn integers(
    name: &str,
    w: &WeightRounding,
    values: &[f32],
    shape: Vec<usize>,
    entries: &mut BTreeMap<String, Raw>,
) -> Result<()> {
    let refused = || QuantError::NotInt8 { site: name.to_string(), words: w.spec.to_string() };
    let grids: Vec<Quantiser> = w
        .rounding
        .cells
        .iter()
        .map(|cell| match cell {
            Cell::Int(q) if q.bits == 8 && q.zero_point == 0 => Ok(*q),
            _ => Err(refused()),
        })
        .collect::<std::result::Result<_, _>>()?;
    let width = match w.rounding.layout {
        Layout::Tensor => values.len(),
        Layout::Row => shape.last().copied().unwrap_or(1),
        Layout::Column | Layout::Group(_) => return Err(refused().into()),
    };
    let rows = values.chunks(width.max(1)).zip(&grids);
    // Bytes either way: both kinds keep the lower eight bits.
    let bytes: Vec<u8> = rows.flat_map(|(row, q)| quantise(row, q.grid())).map(|q| q as u8).collect();
    let unsigned = grids.first().is_some_and(|q| q.low == 0);
    let dtype = if unsigned { Dtype::U8 } else { Dtype::I8 };
    let scales: Vec<f32> = grids.iter().map(|q| q.scale as f32).collect();
    entries.insert(scale_of(name), floats(&scales, vec![scales.len()]));
    entries.insert(zero_of(name), ints(&[0]));
    entries.insert(name.to_string(), Raw { dtype, shape, bytes });
    Ok(())
}

/// A bias in units of its layer's sums, if these are known beforehand and it fits. The layer has `inner` inputs.
fn integer_bias(
    config: &ModelConfig,
    grids: &BTreeMap<Site, ActivationGrid>,
    (weight, rounding): (&str, &WeightRounding),
    inner: usize,
    values: &[f32],
) -> Option<Vec<i32>> {
    let (cells, largest) = (&rounding.rounding.cells, largest_bias(inner));
    let InputGrid::Static(grid) = input_grid(config, grids, weight) else { return None };
    let unit = |i: usize| {
        let cell = if cells.len() == 1 { cells.first() } else { cells.get(i) };
        cell.map(|cell| f64::from(cell.scale() as f32 * grid.scale))
    };
    let bias = |(i, &b): (usize, &f32)| {
        let units = (f64::from(b) / unit(i)?).round_ties_even();
        (units.abs() <= largest).then_some(units as i32)
    };
    values.iter().enumerate().map(bias).collect()
}

/// Whether a folder holds an integer model.
pub fn is_integer(dir: &Path) -> bool {
    let config = files::read_json::<serde_json::Value>(&dir.join(CONFIG));
    config.is_ok_and(|config| config.get("model_type").is_some_and(|t| t == MODEL_TYPE))
}

/// A folder that is open.
struct Folder {
    dir: PathBuf,
    file: ConfigFile,
    path: PathBuf,
    bytes: Bytes,
}

/// Those of model.safetensors.
enum Bytes {
    Mapped(MappedFile),
    Held(Vec<u8>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(file) => file.as_ref(),
            Bytes::Held(bytes) => bytes,
        }
    }
}

impl Folder {
    fn open(dir: &Path) -> std::result::Result<Self, CheckpointError> {
        let config = dir.join(CONFIG);
        let file: ConfigFile = files::read_json(&config)?;
        if file.quantization.schema != SCHEMA {
            let problem = format!("it has schema {}, and {SCHEMA} is known", file.quantization.schema);
            return Err(CheckpointError::Damaged { path: config, problem });
        }
        let path = dir.join(WEIGHTS);
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        let mapped = MappedFile::new(&File::open(&path).map_err(io)?).map_err(io)?;
        Ok(Self { dir: dir.to_path_buf(), file, path, bytes: Bytes::Mapped(mapped) })
    }

    fn stored(&self) -> std::result::Result<Stored<'_>, CheckpointError> {
        let tensors = SafeTensors::deserialize(self.bytes.as_ref())
            .map_err(|e| CheckpointError::Damaged { path: self.path.clone(), problem: e.to_string() })?;
        Ok(Stored { path: self.path.clone(), tensors })
    }

    fn shapes(&self) -> std::result::Result<Vec<(String, Vec<usize>)>, CheckpointError> {
        let fit = |source| CheckpointError::Model { path: self.dir.clone(), source };
        Transformer::shapes(self.file.model.clone()).map_err(fit)
    }

    /// Quantiser and grid of each quantised site.
    fn sites(
        &self,
        stored: &Stored,
    ) -> std::result::Result<BTreeMap<Site, (Spec, ActivationGrid)>, CheckpointError> {
        let known: BTreeMap<String, Site> =
            sites(&self.file.model).map(|site| (site.to_string(), site)).collect();
        let damaged = |problem: String| CheckpointError::Damaged { path: self.dir.join(CONFIG), problem };
        let mut found = BTreeMap::new();
        for (name, words) in &self.file.quantization.activations {
            let site = known.get(name).ok_or_else(|| damaged(format!("the model has no site {name}")))?;
            let spec = Spec::ACTIVATION.with(words).map_err(|e| damaged(e.to_string()))?;
            if !is_bytes(spec) {
                return Err(damaged(format!("{name} has the quantiser \"{words}\", which is none of bytes")));
            }
            found.insert(*site, (spec, stored.grid(*site, spec)?));
        }
        Ok(found)
    }
}

/// Reads a folder that [`write()`] made.
///
/// # Errors
/// If it is not there, damaged, or its tensors do not fit its configuration.
pub fn read(dir: &Path) -> std::result::Result<IntegerModel, CheckpointError> {
    model(Folder::open(dir)?)
}

fn model(folder: Folder) -> std::result::Result<IntegerModel, CheckpointError> {
    let shapes = folder.shapes()?;
    let stored = folder.stored()?;
    let sites = folder.sites(&stored)?;
    let specs = sites.iter().map(|(&site, &(spec, _))| (site, spec)).collect();
    let grids = sites.into_iter().map(|(site, (_, grid))| (site, grid)).collect();
    let config = &folder.file.model;
    let mut matrices = BTreeMap::new();
    for (name, shape) in shapes {
        if shape.len() == 2 && stored.is_matrix(&name) {
            matrices.insert(name.clone(), stored.matrix(config, &grids, &name)?);
        }
    }
    let held: usize = matrices.values().map(StoredMatrix::bytes).sum();
    let reader: &Reader = &|name: &str, shape: &[usize]| stored.parameter(name, shape);
    let model = Transformer::stored(config.clone(), &mut matrices, reader)
        .map_err(|source| CheckpointError::Model { path: folder.dir.clone(), source })?;
    let bytes = held + model.parameters().iter().map(|p| 4 * p.tensor.elem_count()).sum::<usize>();
    let tap = QuantTap::fixed(&specs, &grids);
    Ok(IntegerModel::new(model, tap, grids, folder.file.quantization, bytes))
}

/// A folder's model in float32, on its grids, for those who write it in another format.
pub struct Dequantised {
    /// What the model is.
    pub config: ModelConfig,
    /// Every parameter.
    pub parameters: BTreeMap<String, Tensor>,
    /// Steps of the quantised ones, one or one for each row, and whether their integers are 0..=255.
    pub weights: BTreeMap<String, (Vec<f32>, bool)>,
    /// Grids of the activations.
    pub activations: BTreeMap<Site, ActivationGrid>,
}

/// Reads a folder that [`write()`] made as floats.
///
/// # Errors
/// As [`read`].
pub fn dequantised(dir: &Path) -> std::result::Result<Dequantised, CheckpointError> {
    let folder = Folder::open(dir)?;
    let shapes = folder.shapes()?;
    let stored = folder.stored()?;
    let activations = folder.sites(&stored)?.into_iter().map(|(site, (_, grid))| (site, grid)).collect();
    let (mut parameters, mut weights) = (BTreeMap::new(), BTreeMap::new());
    for (name, shape) in shapes {
        let fit = |source| CheckpointError::Model { path: dir.to_path_buf(), source };
        let tensor = match stored.integer_bias(&folder.file.model, &activations, &name)? {
            Some(bias) => tensor(bias, shape)?,
            None => stored.parameter(&name, &shape).map_err(fit)?,
        };
        if let Some(steps) = stored.steps(&name)? {
            weights.insert(name.clone(), steps);
        }
        parameters.insert(name, tensor);
    }
    Ok(Dequantised { config: folder.file.model, parameters, weights, activations })
}
