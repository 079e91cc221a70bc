//! The tensors of an int8 folder, each checked when it is asked for.

use super::super::grid::Quantiser;
use super::super::spec::Spec;
use super::folder::{activation, scale_of, zero_of};
use super::grids::{ActivationGrid, input_grid, is_token};
use crate::checkpoint::CheckpointError;
use crate::model::config::ModelConfig;
use crate::model::{Bf16Matrix, InputGrid, IntBias, IntMatrix, ModelError, StoredMatrix};
use crate::slices::tensor;
use crate::tap::Site;
use candle_core::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The mapped file and the tensors in it.
pub(super) struct Stored<'a> {
    /// The file.
    pub(super) path: PathBuf,
    /// What it holds.
    pub(super) tensors: SafeTensors<'a>,
}

impl Stored<'_> {
    fn damaged(&self, problem: String) -> CheckpointError {
        CheckpointError::Damaged { path: self.path.clone(), problem }
    }

    fn get(&self, name: &str, dtypes: &[Dtype]) -> std::result::Result<TensorView<'_>, CheckpointError> {
        let view =
            self.tensors.tensor(name).map_err(|_| self.damaged(format!("it holds no tensor {name}")))?;
        match dtypes.contains(&view.dtype()) {
            true => Ok(view),
            false => Err(self.damaged(format!("{name} is {:?}, not one of {dtypes:?}", view.dtype()))),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    fn floats(&self, name: &str) -> std::result::Result<Vec<f32>, CheckpointError> {
        let view = self.get(name, &[Dtype::F32])?;
        Ok(words(view.data(), f32::from_le_bytes))
    }

    /// Steps of a quantised tensor, all positive.
    fn scales(&self, name: &str) -> std::result::Result<Vec<f32>, CheckpointError> {
        let scales = self.floats(&scale_of(name))?;
        match !scales.is_empty() && scales.iter().all(|s| *s > 0.0 && s.is_finite()) {
            true => Ok(scales),
            false => Err(self.damaged(format!("{} holds a scale that is not positive", scale_of(name)))),
        }
    }

    fn is_quantised(&self, name: &str) -> bool {
        self.has(&scale_of(name))
    }

    /// Whether a parameter is stored in fewer bits than float32.
    pub(super) fn is_matrix(&self, name: &str) -> bool {
        self.is_quantised(name) || self.tensors.tensor(name).is_ok_and(|view| view.dtype() == Dtype::BF16)
    }

    /// Steps of a quantised parameter, and whether its integers are 0..=255.
    pub(super) fn steps(&self, name: &str) -> std::result::Result<Option<(Vec<f32>, bool)>, CheckpointError> {
        match self.is_quantised(name) {
            true => {
                Ok(Some((self.scales(name)?, self.get(name, &[Dtype::I8, Dtype::U8])?.dtype() == Dtype::U8)))
            }
            false => Ok(None),
        }
    }

    /// A bias that is stored in units of its layer's sums, in float32; `None` for any other parameter.
    pub(super) fn integer_bias(
        &self,
        config: &ModelConfig,
        grids: &BTreeMap<Site, ActivationGrid>,
        name: &str,
    ) -> std::result::Result<Option<Vec<f32>>, CheckpointError> {
        let (weight, view) = match (name.strip_suffix(".bias"), self.tensors.tensor(name)) {
            (Some(stem), Ok(view)) if view.dtype() == Dtype::I32 => (format!("{stem}.weight"), view),
            _ => return Ok(None),
        };
        let scales = self.scales(&weight)?;
        let InputGrid::Static(grid) = input_grid(config, grids, &weight) else {
            return Err(
                self.damaged(format!("{name} is I32, and the grid of its layer's input is not known"))
            );
        };
        let step = |i: usize| scales.get(i).or(scales.first()).copied().unwrap_or(0.0) * grid.scale;
        let bias = words(view.data(), i32::from_le_bytes).into_iter().enumerate();
        Ok(Some(bias.map(|(i, b)| b as f32 * step(i)).collect()))
    }

    /// The grid at a site whose quantiser is `spec`.
    pub(super) fn grid(
        &self,
        site: Site,
        spec: Spec,
    ) -> std::result::Result<ActivationGrid, CheckpointError> {
        if is_token(spec) {
            return Ok(ActivationGrid::Token);
        }
        let name = activation(site);
        let scale = self.scales(&name)?;
        let zero = self.get(&zero_of(&name), &[Dtype::U8])?;
        match (&scale[..], zero.data()) {
            (&[scale], &[zero]) => Ok(ActivationGrid::Static(Quantiser {
                bits: 8,
                scale: f64::from(scale),
                zero_point: i32::from(zero),
                low: 0,
                high: 255,
            })),
            _ => Err(self.damaged(format!("{name} has more than one grid"))),
        }
    }

    /// A matrix as it multiplies.
    pub(super) fn matrix(
        &self,
        config: &ModelConfig,
        grids: &BTreeMap<Site, ActivationGrid>,
        name: &str,
    ) -> std::result::Result<StoredMatrix, CheckpointError> {
        let view = self.get(name, &[Dtype::I8, Dtype::U8, Dtype::BF16])?;
        if view.dtype() == Dtype::BF16 && name != "head.weight" {
            return Err(self.damaged(format!("{name} is BF16, and only a head is")));
        }
        if view.dtype() != Dtype::BF16 {
            let zero = self.get(&zero_of(name), &[Dtype::I32])?;
            if words(zero.data(), i32::from_le_bytes).iter().any(|&z| z != 0) {
                return Err(self.damaged(format!("{} is not 0, and weights are symmetric", zero_of(name))));
            }
        }
        let &[outputs, inner] = view.shape() else {
            return Err(self.damaged(format!("{name} has shape {:?}, which is no matrix", view.shape())));
        };
        let fits = |problem: String| self.damaged(format!("{name}: {problem}"));
        if view.dtype() == Dtype::BF16 {
            let values = words(view.data(), u16::from_le_bytes);
            return Bf16Matrix::new(values, [outputs, inner]).map(StoredMatrix::Bf16).map_err(fits);
        }
        let unsigned = view.dtype() == Dtype::U8;
        // Signed bytes multiply: 0..=255 is moved to -128..=127, and 0 with it.
        let shift = |b: &u8| if unsigned { b.wrapping_sub(128) as i8 } else { *b as i8 };
        let integers: Vec<i8> = view.data().iter().map(shift).collect();
        let bias_name = name.strip_suffix(".weight").map(|stem| format!("{stem}.bias")).unwrap_or_default();
        let bias = match self.tensors.tensor(&bias_name) {
            Err(_) => IntBias::None,
            Ok(bias) if bias.dtype() == Dtype::I32 => IntBias::Int(words(bias.data(), i32::from_le_bytes)),
            Ok(_) => IntBias::Float(self.floats(&bias_name)?),
        };
        let zero_point = if unsigned { -128 } else { 0 };
        let input = input_grid(config, grids, name);
        IntMatrix::new(&integers, [outputs, inner], self.scales(name)?, zero_point, input, bias)
            .map(|matrix| StoredMatrix::Int8(Arc::new(matrix)))
            .map_err(fits)
    }

    /// A parameter in float32.
    pub(super) fn parameter(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ModelError> {
        let unreadable = |problem: String| ModelError::Unreadable { name: name.to_string(), problem };
        let view = self
            .get(name, &[Dtype::F32, Dtype::BF16, Dtype::I8, Dtype::U8])
            .map_err(|e| unreadable(e.to_string()))?;
        if view.shape() != shape {
            return Err(unreadable(format!("it has shape {:?}, not {shape:?}", view.shape())));
        }
        let values: Vec<f32> = match (view.dtype(), self.is_quantised(name)) {
            (Dtype::F32, _) => words(view.data(), f32::from_le_bytes),
            (Dtype::BF16, _) => {
                let wide = |half: u16| f32::from_bits(u32::from(half) << 16);
                words(view.data(), u16::from_le_bytes).into_iter().map(wide).collect()
            }
            (_, false) => return Err(unreadable("it has no scale".into())),
            (dtype, true) => {
                let scales = self.scales(name).map_err(|e| unreadable(e.to_string()))?;
                let rows = if scales.len() == 1 { 1 } else { shape.first().copied().unwrap_or(1) };
                if scales.len() != rows {
                    return Err(unreadable(format!(
                        "its {} scales fit neither it nor its rows",
                        scales.len()
                    )));
                }
                let value = |b: &u8| if dtype == Dtype::U8 { f32::from(*b) } else { f32::from(*b as i8) };
                let width = (view.data().len() / rows.max(1)).max(1);
                let rows = view.data().chunks(width).zip(&scales);
                rows.flat_map(|(row, scale)| row.iter().map(move |b| scale * value(b))).collect()
            }
        };
        Ok(tensor(values, shape)?)
    }
}

fn words<T, const N: usize>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)).collect()
}
