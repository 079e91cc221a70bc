//! Passes over parameters, gradients and state, in place, on any device.
//!
//! Tensors of float32 on the CPU go through one pass of a kernel; anything else, float64 for instance, through the
//! same formula in tensor operations. Coefficients are float64 here and rounded once where a kernel takes them.

use super::Side;
use crate::slices::{is_fast, slice, tensor, with_slice_mut, with_slices_mut};
use candle_core::{DType, Device, Result, Tensor};
use evenkeel_kernels::factored;
use evenkeel_kernels::gemm::{self, Compute, View, Write, blend_gram, gemm_new, gemm_serial};
use evenkeel_kernels::optimizer as kernel;
use evenkeel_kernels::xent::scale_in_place;

/// What Adam's moments and direction depend on.
#[derive(Clone, Copy)]
pub(super) struct Adam {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    /// 1 / √(1 - β2ⁿ), or 1 where v is used as it is.
    pub(super) inv_sqrt_correction: f64,
    pub(super) eps: f64,
}

impl Adam {
    fn betas(&self) -> kernel::Betas {
        kernel::Betas::new(self.beta1, self.beta2)
    }
}

/// Overwrites a tensor's elements; every clone of it sees the change.
pub(super) fn write(target: &Tensor, value: &Tensor) -> Result<()> {
    target.flatten_all()?.slice_set(&value.flatten_all()?.contiguous()?, 0, 0)
}

/// a / b for b ≥ 0, and 0 where b is 0.
fn quotient(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.eq(0.0)?.where_cond(&b.zeros_like()?, &(a / b)?)
}

/// m ← β1 m + (1-β1) g, v ← β2 v + (1-β2) g², p ← p · keep - step · m / (√v · correction + ε).
pub(super) fn adamw(
    p: &Tensor,
    g: &Tensor,
    (m, v): (&Tensor, &Tensor),
    a: Adam,
    step: f64,
    keep: f64,
) -> Result<()> {
    if !is_fast(p) {
        let u = adam_direction(g, (m, v), a)?;
        return decay_then_step(p, &u, step, keep);
    }
    let c = kernel::AdamW {
        betas: a.betas(),
        step_size: step as f32,
        inv_sqrt_correction: a.inv_sqrt_correction as f32,
        eps: a.eps as f32,
        keep: keep as f32,
    };
    let g = slice(g)?;
    with_slices_mut(&[p, m, v], |s| {
        if let [p, m, v] = s {
            kernel::adamw(p, &g, m, v, c);
        }
        Ok(())
    })
}

/// The moments as in [`adamw`]; returns m / (√v · correction + ε).
pub(super) fn adam_direction(g: &Tensor, (m, v): (&Tensor, &Tensor), a: Adam) -> Result<Tensor> {
    if !is_fast(g) {
        blend(m, g, a.beta1, 1.0 - a.beta1)?;
        blend(v, &g.sqr()?, a.beta2, 1.0 - a.beta2)?;
        return quotient(m, &v.sqrt()?.affine(a.inv_sqrt_correction, a.eps)?);
    }
    let mut u = vec![0.0; g.elem_count()];
    {
        let g = slice(g)?;
        with_slices_mut(&[m, v], |s| {
            if let [m, v] = s {
                let (correction, eps) = (a.inv_sqrt_correction as f32, a.eps as f32);
                kernel::adam_direction(&g, m, v, &mut u, a.betas(), correction, eps);
            }
            Ok(())
        })?;
    }
    tensor(u, g.shape())
}

/// y ← decay · y + weight · x.
pub(super) fn blend(y: &Tensor, x: &Tensor, decay: f64, weight: f64) -> Result<()> {
    if !is_fast(y) {
        return write(y, &((y * decay)? + (x * weight)?)?);
    }
    let x = slice(x)?;
    with_slice_mut(y, |y| {
        kernel::blend(y, &x, decay as f32, weight as f32);
        Ok(())
    })
}

/// x ← x · factor.
pub(super) fn scale(x: &Tensor, factor: f64) -> Result<()> {
    if !is_fast(x) {
        return write(x, &(x * factor)?);
    }
    with_slice_mut(x, |x| {
        scale_in_place(x, factor as f32);
        Ok(())
    })
}

/// x ← x, no further from 0 than `limit`.
pub(super) fn clamp(x: &Tensor, limit: f64) -> Result<()> {
    if !is_fast(x) {
        return write(x, &x.clamp(-limit, limit)?);
    }
    let limit = limit as f32;
    with_slice_mut(x, |x| {
        x.iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
        Ok(())
    })
}

/// p ← p · keep - step · u.
pub(super) fn decay_then_step(p: &Tensor, u: &Tensor, step: f64, keep: f64) -> Result<()> {
    blend(p, u, keep, -step)
}

/// p ← (p - step · u) · keep.
pub(super) fn step_then_decay(p: &Tensor, u: &Tensor, step: f64, keep: f64) -> Result<()> {
    if !is_fast(p) {
        return write(p, &((p - (u * step)?)? * keep)?);
    }
    let u = slice(u)?;
    with_slice_mut(p, |p| {
        kernel::step_then_decay(p, &u, step as f32, keep as f32);
        Ok(())
    })
}

/// m ← β1 m + weight · u, then p ← p · keep - step · m.
pub(super) fn momentum_step(
    p: &Tensor,
    u: &Tensor,
    m: &Tensor,
    beta1: f64,
    weight: f64,
    step: f64,
    keep: f64,
) -> Result<()> {
    sgd(p, u, m, Sgd { momentum: beta1, take: weight, nesterov: None, penalty: 0.0, lr: step, keep })
}

/// What one step of gradient descent with momentum depends on.
#[derive(Clone, Copy)]
pub(super) struct Sgd {
    pub(super) momentum: f64,
    pub(super) take: f64,
    pub(super) nesterov: Option<f64>,
    pub(super) penalty: f64,
    pub(super) lr: f64,
    pub(super) keep: f64,
}

/// g ← g + penalty · p, buffer ← momentum · buffer + take · g, p ← p · keep - lr · (buffer, or g + nesterov · buffer).
pub(super) fn sgd(p: &Tensor, g: &Tensor, buffer: &Tensor, c: Sgd) -> Result<()> {
    if !is_fast(p) {
        let g = (g + (p * c.penalty)?)?;
        blend(buffer, &g, c.momentum, c.take)?;
        let direction = match c.nesterov {
            Some(lead) => (g + (buffer * lead)?)?,
            None => buffer.clone(),
        };
        return decay_then_step(p, &direction, c.lr, c.keep);
    }
    let g = slice(g)?;
    let c = kernel::Sgd {
        momentum: c.momentum as f32,
        take: c.take as f32,
        nesterov: c.nesterov.map(|lead| lead as f32),
        penalty: c.penalty as f32,
        lr: c.lr as f32,
        keep: c.keep as f32,
    };
    with_slices_mut(&[p, buffer], |s| {
        if let [p, buffer] = s {
            kernel::sgd(p, &g, buffer, c);
        }
        Ok(())
    })
}

/// Means of g² over each row and each column of a matrix.
pub(super) fn mean_squares(g: &Tensor) -> Result<(Tensor, Tensor)> {
    if !is_fast(g) {
        let squares = g.sqr()?;
        return Ok((squares.mean(1)?, squares.mean(0)?));
    }
    let (rows, columns) = g.dims2()?;
    let (by_row, by_column) = factored::mean_squares(&slice(g)?, rows, columns);
    let narrow = |x: Vec<f64>| x.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
    Ok((tensor(narrow(by_row), rows)?, tensor(narrow(by_column), columns)?))
}

/// x / (max(row · column, floor) + ε), 0 where that divisor is 0.
pub(super) fn divide_factored(
    x: &Tensor,
    rows: &Tensor,
    columns: &Tensor,
    floor: f64,
    eps: f64,
) -> Result<Tensor> {
    if !is_fast(x) {
        let root = rows.unsqueeze(1)?.broadcast_mul(&columns.unsqueeze(0)?)?;
        return quotient(x, &(root.maximum(floor)? + eps)?);
    }
    let mut u = vec![0.0; x.elem_count()];
    factored::divide(&slice(x)?, &slice(rows)?, &slice(columns)?, floor as f32, eps as f32, &mut u);
    tensor(u, x.shape())
}

/// g / max(√v, floor) element by element, 0 where that divisor is 0.
pub(super) fn divide_root(g: &Tensor, v: &Tensor, floor: f64) -> Result<Tensor> {
    quotient(g, &v.sqrt()?.maximum(floor)?)
}

/// Σ x² in float64.
pub(super) fn sum_squares(x: &Tensor) -> Result<f64> {
    if !is_fast(x) {
        // Summed where it is; not every device knows float64.
        let sum = x.sqr()?.sum_all()?.to_device(&Device::Cpu)?;
        return sum.to_dtype(DType::F64)?.to_scalar();
    }
    Ok(kernel::sum_squares(&slice(x)?))
}

/// Σ (a - b)² in float64.
pub(super) fn sum_squared_differences(a: &Tensor, b: &Tensor) -> Result<f64> {
    if !is_fast(a) {
        return sum_squares(&(a - b)?);
    }
    Ok(kernel::sum_squared_differences(&slice(a)?, &slice(b)?))
}

/// √ mean x².
pub(super) fn rms(x: &Tensor) -> Result<f64> {
    Ok((sum_squares(x)? / x.elem_count().max(1) as f64).sqrt())
}

/// A matrix as a factor of a product: itself or its transpose.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    As(&'a Tensor),
    Transposed(&'a Tensor),
}

impl Factor<'_> {
    fn tensor(&self) -> &Tensor {
        match self {
            Factor::As(x) | Factor::Transposed(x) => x,
        }
    }

    fn composed(&self) -> Result<Tensor> {
        match self {
            Factor::As(x) => Ok((*x).clone()),
            Factor::Transposed(x) => x.t()?.contiguous(),
        }
    }

    fn view<'b>(&self, data: &'b [f32]) -> Result<View<'b>> {
        let (rows, columns) = self.tensor().dims2()?;
        let view = View::new(data, rows, columns);
        Ok(match self {
            Factor::As(_) => view,
            Factor::Transposed(_) => view.t(),
        })
    }
}

/// A matrix product on all threads.
pub(super) fn matmul(a: Factor, b: Factor) -> Result<Tensor> {
    if !is_fast(a.tensor()) {
        return a.composed()?.matmul(&b.composed()?);
    }
    let (x, y) = (slice(a.tensor())?, slice(b.tensor())?);
    let (a, b) = (a.view(&x)?, b.view(&y)?);
    tensor(gemm_new(Compute::F32, a, b, |_, _, _| {}), (a.rows(), b.columns()))
}

/// The same on the calling thread, for tasks that run side by side.
pub(super) fn matmul_serial(a: Factor, b: Factor) -> Result<Tensor> {
    if !is_fast(a.tensor()) {
        return a.composed()?.matmul(&b.composed()?);
    }
    let (x, y) = (slice(a.tensor())?, slice(b.tensor())?);
    let (a, b) = (a.view(&x)?, b.view(&y)?);
    let mut c = vec![0.0; a.rows() * b.columns()];
    gemm_serial(Compute::F32, a, b, &mut c, b.columns(), Write::Replace);
    tensor(c, (a.rows(), b.columns()))
}

/// The lower triangle of a symmetric matrix ← decay · itself + weight · x xᵀ (left) or xᵀ x (right). What lies above the
/// diagonal means nothing afterwards.
pub(super) fn blend_outer(gg: &Tensor, x: &Tensor, side: Side, decay: f64, weight: f64) -> Result<()> {
    if !is_fast(gg) {
        let t = x.t()?.contiguous()?;
        let product = match side {
            Side::Left => x.matmul(&t)?,
            Side::Right => t.matmul(x)?,
        };
        return blend(gg, &product, decay, weight);
    }
    let (rows, columns) = x.dims2()?;
    let x = slice(x)?;
    let view = View::new(&x, rows, columns);
    let view = match side {
        Side::Left => view,
        Side::Right => view.t(),
    };
    with_slice_mut(gg, |gg| {
        blend_gram(Compute::F32, view, gg, decay as f32, weight as f32);
        Ok(())
    })
}

/// Makes a matrix of which the lower triangle is meant symmetric, in place.
pub(super) fn mirror(x: &Tensor) -> Result<()> {
    mirror_by(x, gemm::mirror)
}

/// The same on the calling thread, for tasks that run side by side.
pub(super) fn mirror_serial(x: &Tensor) -> Result<()> {
    mirror_by(x, gemm::mirror_serial)
}

fn mirror_by(x: &Tensor, kernel: fn(&mut [f32], usize)) -> Result<()> {
    let n = x.dim(0)?;
    if !is_fast(x) {
        let lower = Tensor::tril2(n, DType::U8, x.device())?;
        return write(x, &lower.where_cond(x, &x.t()?.contiguous()?)?);
    }
    with_slice_mut(x, |x| {
        kernel(x, n);
        Ok(())
    })
}
