//! Safetensors files of ours: float32, float64 and int64, written in a fixed order with one metadata key, so that equal
//! tensors make equal bytes.

use super::{CheckpointError, Result, files};
use crate::model::Input;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Writes tensors by name, atomically.
///
/// # Errors
/// If the disk refuses, or a tensor is none of float32, float64 and int64.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let damaged = |problem: String| CheckpointError::Damaged { path: path.to_path_buf(), problem };
    let mut raw = BTreeMap::new();
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes) = match tensor.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            other => return Err(damaged(format!("tensor {name} has dtype {other:?}, which is not written"))),
        };
        raw.insert(name.clone(), Raw { dtype, shape: tensor.dims().to_vec(), bytes });
    }
    write_raw(path, &raw)
}

/// A tensor as a file has it, of a dtype that the tensor library may not know.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Little-endian.
    pub(crate) bytes: Vec<u8>,
}

/// Writes tensors by name, atomically.
///
/// # Errors
/// If the disk refuses, or a tensor has not as many bytes as its shape asks for.
pub(crate) fn write_raw(path: &Path, tensors: &BTreeMap<String, Raw>) -> Result<()> {
    files::write(path, &raw_file(path, tensors)?)
}

/// The contents of a safetensors file that is to stand at `path`.
///
/// # Errors
/// If a tensor has not as many bytes as its shape asks for.
pub(crate) fn raw_file(path: &Path, tensors: &BTreeMap<String, Raw>) -> Result<Vec<u8>> {
    let damaged = |problem: String| CheckpointError::Damaged { path: path.to_path_buf(), problem };
    let views = tensors
        .iter()
        .map(|(name, Raw { dtype, shape, bytes })| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| damaged(e.to_string()))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| damaged(e.to_string()))
}

/// Reads all tensors of a file, by name; half precision becomes float32.
///
/// # Errors
/// If the file cannot be read, is not safetensors, or holds another dtype than floats and int32 or int64.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let damaged = |problem: String| CheckpointError::Damaged { path: path.to_path_buf(), problem };
    let bytes = files::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let tensor = match view.dtype() {
            Dtype::F32 => {
                Tensor::from_vec(numbers(view.data(), f32::from_le_bytes), view.shape(), &Device::Cpu)?
            }
            Dtype::I64 => {
                Tensor::from_vec(numbers(view.data(), i64::from_le_bytes), view.shape(), &Device::Cpu)?
            }
            Dtype::I32 => {
                let wide = numbers(view.data(), i32::from_le_bytes).into_iter().map(i64::from).collect();
                Tensor::from_vec::<_, i64>(wide, view.shape(), &Device::Cpu)?
            }
            Dtype::F64 => {
                Tensor::from_vec(numbers(view.data(), f64::from_le_bytes), view.shape(), &Device::Cpu)?
            }
            Dtype::BF16 => half(&view, DType::BF16)?,
            Dtype::F16 => half(&view, DType::F16)?,
            other => return Err(damaged(format!("tensor {name} has dtype {other:?}, which is not read"))),
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Images as an image processor makes them: the tensor `pixel_values` (images, colours, height, width) of a file.
///
/// # Errors
/// If the file cannot be read, or holds no such tensor.
pub fn read_images(path: &Path) -> Result<Input> {
    let pixels = read_tensors(path)?.remove("pixel_values").filter(|p| p.rank() == 4);
    let pixels = pixels.ok_or_else(|| CheckpointError::Damaged {
        path: path.to_path_buf(),
        problem: "it should hold `pixel_values` of (images, colours, height, width)".into(),
    })?;
    Ok(Input::Images { pixels: pixels.to_dtype(DType::F32)?.contiguous()? })
}

/// Half precision, widened.
fn half(view: &TensorView, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Little-endian numbers of N bytes each; safetensors has checked that the length is a multiple.
fn numbers<const N: usize, T>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|c| read(*c)).collect()
}
