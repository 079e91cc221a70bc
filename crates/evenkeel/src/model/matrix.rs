//! The matrix of a layer: a parameter in float32, or stored in fewer bits and multiplied as it is stored.
//!
//! In integers a product is y = s_x s_w (Σ x w - z_x Σ w - z_w Σ x + K z_x z_w) + b with bytes x, signed bytes w, their steps
//! s and zero points z, K the inner dimension; everything in the brackets is exact. The input comes in float32, as from every
//! other layer, and is put on its grid first: where a quantiser stands before the matrix it lies there already.

use super::params::Parameter;
use crate::slices::{slice, tensor};
use candle_core::{Result, Tensor, bail};
use evenkeel_kernels::activation::{self, Activation};
use evenkeel_kernels::gemm::{Compute, View, gemm_new};
use evenkeel_kernels::int8::layer::{Rows, layer};
use evenkeel_kernels::int8::requantise::{Scale, Terms, quantise_u8, quantise_u8_serial, row_grid};
use evenkeel_kernels::int8::{MAX_INNER, PackedI8};
use evenkeel_kernels::quant::Grid;
use rayon::prelude::*;
use std::fmt;
use std::sync::Arc;

/// A matrix of shape (out, in).
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    /// A parameter.
    Float(Parameter),
    /// Stored otherwise.
    Stored(Arc<StoredMatrix>),
}

impl Matrix {
    /// Whether it adds its layer's bias itself.
    pub(super) fn holds_bias(&self) -> bool {
        matches!(self, Self::Stored(matrix) if matches!(**matrix, StoredMatrix::Int8(_)))
    }
}

/// A matrix in fewer bits than float32, with the bias that is added to its products.
pub enum StoredMatrix {
    /// Signed bytes.
    Int8(Arc<IntMatrix>),
    /// bfloat16.
    Bf16(Bf16Matrix),
}

/// The grid of what a matrix multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InputGrid {
    /// Known beforehand: 0..=255.
    Static(Grid),
    /// Of each token's own range.
    Token,
}

/// A bias in the unit of the sums, or in float32.
#[derive(Clone, Debug, PartialEq)]
pub enum IntBias {
    /// None.
    None,
    /// round(b / (s_x s_w)), which needs the input's step beforehand.
    Int(Vec<i32>),
    /// As it is.
    Float(Vec<f32>),
}

/// A matrix of signed bytes: the only copy in memory is the one that products read.
pub struct IntMatrix {
    packed: PackedI8,
    /// Step of all, or of each output.
    scales: Vec<f32>,
    /// Integer that stands for 0: -128 for weights without negative entries, whose integers are stored less 128.
    zero_point: i32,
    input: InputGrid,
    /// In float32; one in integers is part of `fixed`.
    bias: Option<Vec<f32>>,
    /// The integer bias and, where the input's grid is known, -z_x Σ w + K z_x z_w; and s_x s_w, or s_w alone.
    fixed: (Vec<i32>, Vec<f32>),
}

impl IntMatrix {
    /// A matrix (outputs, inner) of integers w with steps (one, or one for each output).
    ///
    /// # Errors
    /// If sizes disagree, the inner dimension is so long that sums could overflow, or an integer bias comes without a static
    /// grid.
    pub fn new(
        integers: &[i8],
        [outputs, inner]: [usize; 2],
        scales: Vec<f32>,
        zero_point: i32,
        input: InputGrid,
        bias: IntBias,
    ) -> std::result::Result<Self, String> {
        if integers.len() != outputs * inner {
            return Err(format!("{} integers are no {outputs} x {inner} matrix", integers.len()));
        }
        if inner > MAX_INNER {
            return Err(format!("rows of {inner} are too long for 32-bit sums, at most {MAX_INNER}"));
        }
        // No bracket of the formula exceeds the largest x - z_x times the largest w - z_w, 128 or 255, for each product.
        let most = inner as i64 * 255 * if zero_point == 0 { 128 } else { 255 };
        let room = i64::from(i32::MAX) - most;
        let larger = |bias: &Vec<i32>| bias.iter().any(|b| i64::from(*b).abs() > room);
        if room < 0 || matches!(&bias, IntBias::Int(bias) if larger(bias)) {
            return Err(format!("sums over {inner} integers and their bias could overflow"));
        }
        if scales.len() != 1 && scales.len() != outputs {
            return Err(format!("{} scales do not fit {outputs} outputs", scales.len()));
        }
        let fits = match &bias {
            IntBias::None => true,
            IntBias::Int(b) => b.len() == outputs && matches!(input, InputGrid::Static(_)),
            IntBias::Float(b) => b.len() == outputs,
        };
        if !fits {
            return Err(format!("the bias does not fit {outputs} outputs"));
        }
        let packed = PackedI8::new(integers, outputs, inner);
        let mut offset = match &bias {
            IntBias::Int(bias) => bias.clone(),
            IntBias::None | IntBias::Float(_) => vec![0; outputs],
        };
        let mut step = 1.0;
        if let InputGrid::Static(grid) = input {
            let zero = grid.zero_point as i32;
            // These may wrap; what they add up to with a product's sum does not.
            let constant = (inner as i32).wrapping_mul(zero * zero_point);
            for (offset, sum) in offset.iter_mut().zip(packed.sums()) {
                *offset = offset.wrapping_add(constant).wrapping_sub(zero.wrapping_mul(*sum));
            }
            step = grid.scale;
        }
        let fixed = (offset, scales.iter().map(|scale| scale * step).collect());
        let bias = match bias {
            IntBias::Float(bias) => Some(bias),
            IntBias::None | IntBias::Int(_) => None,
        };
        Ok(Self { packed, scales, zero_point, input, bias, fixed })
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.packed.outputs(), self.packed.inner()]
    }

    /// The integers as products take them.
    pub fn packed(&self) -> &PackedI8 {
        &self.packed
    }

    /// The grid of the input.
    pub fn input(&self) -> InputGrid {
        self.input
    }

    /// Whether [`Self::terms`] are all there is: the input's grid is known beforehand, and the weights have no zero point.
    pub fn is_plain(&self) -> bool {
        self.zero_point == 0 && matches!(self.input, InputGrid::Static(_))
    }

    /// What turns sums into outputs, as far as all rows share it.
    pub fn terms(&self) -> Terms<'_> {
        let (offset, scales) = &self.fixed;
        let scale = match scales[..] {
            [only] => Scale::One(only),
            _ => Scale::Columns(scales),
        };
        Terms { offset, scale, bias: self.bias.as_deref(), activation: None }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, Vec::len);
        self.packed.bytes() + 4 * (self.scales.len() + bias + self.fixed.0.len() + self.fixed.1.len())
    }

    /// act(x Wᵀ + b) of `rows` rows.
    fn forward(&self, x: &[f32], rows: usize, act: Option<Activation>) -> Vec<f32> {
        let [outputs, inner] = self.shape();
        let mut bytes = vec![0u8; x.len()];
        let grids: Vec<Grid> = match self.input {
            InputGrid::Static(grid) => {
                quantise_u8(x, grid, &mut bytes);
                Vec::new()
            }
            InputGrid::Token => {
                let rows = bytes.par_chunks_mut(inner.max(1)).zip(x.par_chunks(inner.max(1)));
                let quantise = |(bytes, x): (&mut [u8], &[f32])| {
                    let grid = row_grid(x);
                    quantise_u8_serial(x, grid, bytes);
                    grid
                };
                rows.map(quantise).collect()
            }
        };
        let mut y = vec![0.0f32; rows * outputs];
        let terms = Terms { activation: act, ..self.terms() };
        let by_row = Rows {
            grids: matches!(self.input, InputGrid::Token).then_some(&grids),
            weight_zero_point: self.zero_point,
        };
        layer(&bytes, rows, &self.packed, terms, by_row, &mut y);
        y
    }

    /// Row `id` in float32.
    ///
    /// # Panics
    /// If there is no such row or `out` is not as long as one.
    pub fn row_into(&self, id: usize, out: &mut [f32]) {
        let mut row = vec![0i8; self.packed.inner()];
        self.packed.row(id, &mut row);
        let scale = if self.scales.len() == 1 { self.scales[0] } else { self.scales[id] };
        for (out, &w) in out.iter_mut().zip(&row) {
            *out = scale * (i32::from(w) - self.zero_point) as f32;
        }
    }
}

/// A matrix of bfloat16.
pub struct Bf16Matrix {
    values: Vec<u16>,
    shape: [usize; 2],
}

/// Outputs that are widened to float32 at a time.
const WIDENED: usize = 1024;

impl Bf16Matrix {
    /// The upper halves of float32 values, (outputs, inner).
    ///
    /// # Errors
    /// If sizes disagree.
    pub fn new(values: Vec<u16>, [outputs, inner]: [usize; 2]) -> std::result::Result<Self, String> {
        match values.len() == outputs * inner {
            true => Ok(Self { values, shape: [outputs, inner] }),
            false => Err(format!("{} values are no {outputs} x {inner} matrix", values.len())),
        }
    }

    /// x Wᵀ of `rows` rows, a block of outputs after the other.
    fn forward(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let [outputs, inner] = self.shape;
        let mut y = vec![0.0; rows * outputs];
        for (i, block) in self.values.chunks(WIDENED * inner.max(1)).enumerate() {
            let wide: Vec<f32> = block.par_iter().map(|&v| widened(v)).collect();
            let count = block.len() / inner.max(1);
            let part = gemm_new(
                Compute::F32,
                View::new(x, rows, inner),
                View::new(&wide, count, inner).t(),
                |_, _, _| {},
            );
            for (y, part) in y.chunks_mut(outputs).zip(part.chunks(count)) {
                y[i * WIDENED..][..count].copy_from_slice(part);
            }
        }
        y
    }
}

fn widened(v: u16) -> f32 {
    f32::from_bits(u32::from(v) << 16)
}

impl StoredMatrix {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Int8(matrix) => matrix.shape(),
            Self::Bf16(matrix) => matrix.shape,
        }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Int8(matrix) => matrix.bytes(),
            Self::Bf16(matrix) => 2 * matrix.values.len(),
        }
    }

    /// act(x Wᵀ + b): x (..., in) to (..., out).
    ///
    /// # Errors
    /// If shapes disagree.
    pub(super) fn forward(&self, x: &Tensor, act: Option<Activation>) -> Result<Tensor> {
        let [outputs, inner] = self.shape();
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inner => *last = outputs,
            _ => bail!("a matrix of {outputs} x {inner} cannot multiply {:?}", x.shape()),
        }
        let x = x.contiguous()?;
        let x = slice(&x)?;
        let rows = x.len() / inner.max(1);
        let y = match self {
            Self::Int8(matrix) => matrix.forward(&x, rows, act),
            Self::Bf16(matrix) => {
                let mut y = matrix.forward(&x, rows);
                if let Some(act) = act {
                    activation::forward(act, &mut y);
                }
                y
            }
        };
        tensor(y, shape)
    }

    /// Rows `ids` in float32, (ids, in).
    ///
    /// # Errors
    /// If there is no such row.
    pub(super) fn rows(&self, ids: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
        let ([outputs, inner], count) = (self.shape(), ids.len());
        let mut out = Vec::with_capacity(count * inner);
        for id in ids {
            if id >= outputs {
                bail!("there is no row {id} in a table of {outputs}");
            }
            match self {
                Self::Int8(matrix) => {
                    let start = out.len();
                    out.resize(start + inner, 0.0);
                    matrix.row_into(id, &mut out[start..]);
                }
                Self::Bf16(matrix) => {
                    out.extend(matrix.values[id * inner..][..inner].iter().map(|&v| widened(v)));
                }
            }
        }
        tensor(out, (count, inner))
    }
}

impl fmt::Debug for StoredMatrix {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [outputs, inner] = self.shape();
        let kind = if matches!(self, Self::Int8(_)) { "int8" } else { "bf16" };
        write!(f, "{kind} matrix {outputs} x {inner}")
    }
}
