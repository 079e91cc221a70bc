//! Eigenvectors, QR and Newton-Schulz.
//!
//! Eigendecomposition and QR run on the CPU, one matrix per task and each on one thread: faer sums per thread, so
//! results would depend on the number of threads otherwise. Newton-Schulz is matrix products, on any device.

use super::arith::{Factor, blend_outer, matmul, matmul_serial, sum_squares};
use super::{Side, arith};
use candle_core::{DType, Device, Result, Tensor, bail};
use faer::traits::RealField;
use faer::{Mat, MatRef, Par};

/// Eigenvectors as columns, by descending eigenvalue, and the eigenvalues.
pub(super) struct Eigen {
    pub(super) vectors: Tensor,
    pub(super) values: Vec<f64>,
}

/// Of a symmetric matrix, given by its lower triangle; in float64 if float32 does not converge.
///
/// # Errors
/// If it holds NaN or infinity, or does not converge.
pub(super) fn eigen(symmetric: &Tensor) -> Result<Eigen> {
    let found = match symmetric.dtype() {
        DType::F64 => None,
        _ => decompose::<f32>(symmetric, DType::F32)?,
    };
    match found {
        Some(eigen) => Ok(eigen),
        None => match decompose::<f64>(symmetric, DType::F64)? {
            Some(eigen) => Ok(eigen),
            None => {
                let d = symmetric.dim(0)?;
                bail!("the eigendecomposition of a {d} x {d} preconditioner did not converge");
            }
        },
    }
}

/// In one precision; `None` if it does not converge there.
///
/// Rows that are zero next to the largest, words that no batch held for instance, are left out: their eigenvectors are the
/// unit vectors, and the iteration is slow to find out, or never does. That changes the matrix by less than rounding: an
/// entry is at most the root of the product of its two on the diagonal.
fn decompose<T: Number>(symmetric: &Tensor, dtype: DType) -> Result<Option<Eigen>> {
    faer::set_global_parallelism(Par::Seq);
    let d = symmetric.dim(0)?;
    let entries = rows_of::<T>(symmetric, dtype)?;
    let Some(scale) = largest(&entries, d) else {
        bail!("a preconditioner is not finite; the gradients that made it were not either");
    };
    let least = scale * T::EPSILON * T::EPSILON;
    let (live, dead): (Vec<usize>, Vec<usize>) = (0..d).partition(|&i| entries[i * d + i].into() > least);
    if live.is_empty() {
        let vectors = Tensor::eye(d, symmetric.dtype(), symmetric.device())?;
        return Ok(Some(Eigen { vectors, values: vec![0.0; d] }));
    }
    // Factors of small gradients are tiny: at their own scale the squares inside the iteration would underflow.
    let at = |i: usize, j: usize| T::from_f64(entries[live[i.max(j)] * d + live[i.min(j)]].into() / scale);
    let matrix = Mat::from_fn(live.len(), live.len(), at);
    drop(entries);
    let Ok(eigen) = matrix.self_adjoint_eigen(faer::Side::Lower) else { return Ok(None) };
    let (u, s) = (eigen.U(), eigen.S().column_vector());
    let value = |i: usize| if i < live.len() { s[i].into() * scale } else { 0.0 };
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    let mut vectors = vec![T::zero_impl(); d * d];
    for (c, &from) in order.iter().enumerate() {
        match from.checked_sub(live.len()) {
            Some(i) => vectors[dead[i] * d + c] = T::one_impl(),
            None => live.iter().enumerate().for_each(|(r, &row)| vectors[row * d + c] = u[(r, from)]),
        }
    }
    let values: Vec<f64> = order.into_iter().map(value).collect();
    if values.iter().any(|v| !v.is_finite()) || vectors.iter().any(|&v| !v.into().is_finite()) {
        return Ok(None);
    }
    Ok(Some(Eigen { vectors: like(vectors, d, symmetric)?, values }))
}

/// The largest magnitude on and below the diagonal; `None` if an entry there is not finite.
fn largest<T: Number>(entries: &[T], d: usize) -> Option<f64> {
    let lower = entries.chunks_exact(d.max(1)).enumerate().flat_map(|(r, row)| &row[..=r]);
    lower.map(|&v| v.into().abs()).try_fold(0.0f64, |most, v| v.is_finite().then(|| most.max(v)))
}

/// A number that faer and candle both know.
trait Number: RealField + Copy + Into<f64> + candle_core::WithDType {
    /// Distance from 1 to the next larger number.
    const EPSILON: f64;
}
impl Number for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
}
impl Number for f64 {
    const EPSILON: f64 = f64::EPSILON;
}

/// Lines that are copied side by side from one layout to the other: as many as fill a cache line.
const LINES: usize = 16;

/// A square matrix by rows.
fn by_rows<T: Number>(matrix: MatRef<T>) -> Vec<T> {
    let d = matrix.nrows();
    let mut rows = vec![T::zero_impl(); d * d];
    for first in (0..d).step_by(LINES) {
        let some = first..d.min(first + LINES);
        for r in 0..d {
            for c in some.clone() {
                rows[r * d + c] = matrix[(r, c)];
            }
        }
    }
    rows
}

/// The other way: a matrix by columns, column c being `column(c)` of a matrix by rows.
fn by_columns<T: Number>(rows: &[T], d: usize, column: impl Fn(usize) -> usize) -> Vec<T> {
    let mut columns = vec![T::zero_impl(); d * d];
    for first in (0..d).step_by(LINES) {
        let some = first..d.min(first + LINES);
        for c in 0..d {
            for r in some.clone() {
                columns[c * d + r] = rows[r * d + column(c)];
            }
        }
    }
    columns
}

/// A square matrix of the type and on the device of another.
fn like<T: Number>(entries: Vec<T>, d: usize, other: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(entries, (d, d), &Device::Cpu)?.to_dtype(other.dtype())?.to_device(other.device())
}

/// A basis after one power iteration.
pub(super) struct Refreshed {
    pub(super) vectors: Tensor,
    /// Estimated eigenvalues, descending.
    pub(super) values: Vec<f64>,
    /// The old column that each new column grew from.
    pub(super) order: Vec<u32>,
}

/// One power iteration with a symmetric matrix, given by its lower triangle, and a QR decomposition, the columns sorted
/// by estimated eigenvalue before it.
///
/// # Errors
/// If the result is not finite.
pub(super) fn power_iteration(symmetric: &Tensor, basis: &Tensor) -> Result<Refreshed> {
    let whole = symmetric.copy()?;
    arith::mirror_serial(&whole)?;
    let product = matmul_serial(Factor::As(&whole), Factor::As(basis))?;
    drop(whole);
    match symmetric.dtype() {
        DType::F64 => orthogonalise::<f64>(&product, basis, DType::F64),
        _ => orthogonalise::<f32>(&product, basis, DType::F32),
    }
}

fn orthogonalise<T: Number>(product: &Tensor, basis: &Tensor, dtype: DType) -> Result<Refreshed> {
    faer::set_global_parallelism(Par::Seq);
    let d = basis.dim(0)?;
    let (p, q) = (rows_of::<T>(product, dtype)?, rows_of::<T>(basis, dtype)?);
    let mut estimate = vec![0.0f64; d];
    for (p, q) in p.chunks_exact(d).zip(q.chunks_exact(d)) {
        for ((e, &p), &q) in estimate.iter_mut().zip(p).zip(q) {
            *e += Into::<f64>::into(p) * Into::<f64>::into(q);
        }
    }
    drop(q);
    let mut order: Vec<u32> = (0..d as u32).collect();
    order.sort_by(|&a, &b| estimate[b as usize].total_cmp(&estimate[a as usize]));
    let sorted = by_columns(&p, d, |c| order[c] as usize);
    drop(p);
    let q = MatRef::from_column_major_slice(&sorted, d, d).qr().compute_thin_Q();
    drop(sorted);
    let vectors = by_rows(q.as_ref());
    if vectors.iter().any(|&v| !Into::<f64>::into(v).is_finite()) {
        bail!("a preconditioner basis is not finite; the gradients that made it were not either");
    }
    Ok(Refreshed {
        vectors: like(vectors, d, basis)?,
        values: order.iter().map(|&c| estimate[c as usize]).collect(),
        order,
    })
}

/// An inverse root, and the eigenvalues of what it is the root of.
pub(super) struct Root {
    pub(super) matrix: Tensor,
    pub(super) values: Tensor,
}

/// (A + ridge · λ_max I)^-exponent of a symmetric A whose eigenvalues below 0 are rounding and count as 0.
///
/// # Errors
/// As [`eigen`].
pub(super) fn inverse_root(symmetric: &Tensor, exponent: f64, ridge: f64) -> Result<Root> {
    let Eigen { vectors, values } = eigen(symmetric)?;
    let most = values.first().copied().unwrap_or(0.0).max(0.0);
    // No direction is raised by more than 1e15 above another, or a product of roots would leave the range of float32.
    let least = most * 10f64.powf(-15.0 / exponent);
    let root = |v: &f64| match v.max(0.0) + ridge * most {
        0.0 => 0.0,
        v => v.max(least).powf(-exponent),
    };
    let here =
        |x: Vec<f64>| Tensor::new(x, &Device::Cpu)?.to_dtype(vectors.dtype())?.to_device(vectors.device());
    let roots = here(values.iter().map(root).collect())?;
    let scaled = vectors.broadcast_mul(&roots.unsqueeze(0)?)?;
    let matrix = matmul_serial(Factor::As(&scaled), Factor::Transposed(&vectors))?;
    Ok(Root { matrix, values: here(values)? })
}

/// The quintic whose iteration takes singular values to about 1 (Jordan, "Muon", 2024).
pub(super) const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// An approximately orthogonal matrix with the singular vectors of `x`: x / ‖x‖, then `steps` times
/// x ← a x + (b A + c A²) x with A = x xᵀ, on the transpose where that makes A smaller. Singular values end between
/// about 0.7 and 1.2.
pub(super) fn newton_schulz(x: &Tensor, steps: usize, eps: f64) -> Result<Tensor> {
    let [a, b, c] = QUINTIC;
    let (rows, columns) = x.dims2()?;
    let tall = rows > columns;
    let x = if tall { x.t()?.contiguous()? } else { x.clone() };
    let norm = sum_squares(&x)?.sqrt().max(eps);
    // A tensor of its own: the iteration works in place.
    let x = (&x * norm.recip().min(1e38))?;
    let n = rows.min(columns);
    let gram = Tensor::zeros((n, n), x.dtype(), x.device())?;
    for _ in 0..steps {
        blend_outer(&gram, &x, Side::Left, 0.0, 1.0)?;
        arith::mirror(&gram)?;
        // b A + c A²; A is symmetric, so A² = A Aᵀ.
        let polynomial = gram.copy()?;
        blend_outer(&polynomial, &gram, Side::Left, b, c)?;
        arith::mirror(&polynomial)?;
        let moved = matmul(Factor::As(&polynomial), Factor::As(&x))?;
        arith::blend(&x, &moved, a, 1.0)?;
    }
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

fn rows_of<T: candle_core::WithDType>(matrix: &Tensor, dtype: DType) -> Result<Vec<T>> {
    matrix.to_device(&Device::Cpu)?.to_dtype(dtype)?.flatten_all()?.to_vec1()
}
