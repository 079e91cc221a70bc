//! SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's factors.
//!
//! For a matrix G (m × n) with factors L = EMA of G Gᵀ and R = EMA of Gᵀ G and bases Q_L, Q_R:
//!
//! ```text
//! g' = Q_Lᵀ G Q_R                      with the bases of before this step
//! m ← β1 m + (1-β1) g'    v ← β2 v + (1-β2) g'²      both kept in the rotated space
//! p ← p - lr √(1-β2ⁿ)/(1-β1ⁿ) · Q_L (m / (√v + ε)) Q_Rᵀ,   then p ← p (1 - lr·wd)
//! L ← β L + (1-β) G Gᵀ,  R likewise    with the current gradient, after the step
//! every k steps: sort each basis by estimated eigenvalue (v follows), Q ← QR(L Q), m changes basis
//! ```
//!
//! The first call makes L and R, takes the bases by eigendecomposition, and moves nothing; n stays 0. ε is
//! added to √v before bias correction. A side longer than `max_precond_dim` keeps the identity. Vectors are
//! plain Adam with the same ε placement. All of this follows the published reference implementation.
//!
//! Defaults: β = (0.95, 0.95), ε = 1e-8, k = 10. State of an m × n matrix: 2mn + 2m² + 2n² floats.
//!
//! ```
//! use evenkeel::optim::{Optimizer, Slot, Soap, State};
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let p = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let g = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu)?;
//! let rule = Soap {
//!     beta1: 0.95, beta2: 0.95, shampoo_beta: 0.95, eps: 1e-8,
//!     precondition_frequency: 10, max_precond_dim: 2048,
//! };
//! let mut state = State::default();
//! for _ in 0..2 {
//!     rule.step(&mut [Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.1, weight_decay: 0.0 }])?;
//! }
//! assert_eq!(state.steps, 1); // the first call only takes the bases
//! # Ok(())
//! # }
//! ```

use super::{Optimizer, Slot, State};
use crate::slices::{slice, tensor, with_slice_mut, with_slices_mut};
use candle_core::{Result, Tensor, bail};
use evenkeel_kernels::gemm::{Compute, View, Write, gemm};
use evenkeel_kernels::optimizer as kernel;
use faer::{Mat, MatRef, Par, Side};
use rayon::prelude::*;

/// SOAP's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Soap {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decay of L and R.
    pub shampoo_beta: f64,
    /// Added to √v.
    pub eps: f64,
    /// Steps between refreshes of the bases; 0 means never.
    pub precondition_frequency: u64,
    /// A side longer than this keeps the identity.
    pub max_precond_dim: usize,
}

/// The two sides of a matrix and the names of their tensors: factor, basis.
const SIDES: [(&str, &str); 2] = [("gg_left", "q_left"), ("gg_right", "q_right")];

impl Optimizer for Soap {
    fn name(&self) -> &'static str {
        "soap"
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        // Decompositions run one per task on one thread each, whatever features faer was built with.
        faer::set_global_parallelism(Par::Seq);
        let mut refreshed = Vec::new();
        for (i, slot) in slots.iter_mut().enumerate() {
            if slot.state.tensors.is_empty() {
                self.begin(slot)?;
                refreshed.push((i, Basis::Eigen));
                continue;
            }
            self.adam_step(slot)?;
            self.update_factors(slot)?;
            if self.precondition_frequency > 0 && slot.state.steps % self.precondition_frequency == 0 {
                refreshed.push((i, Basis::PowerIteration));
            }
        }
        // One matrix per task, each decomposed on one thread, so that the sums have one order.
        let jobs: Vec<(usize, usize, Basis)> = refreshed
            .iter()
            .flat_map(|&(i, kind)| [(i, 0, kind), (i, 1, kind)])
            .filter(|&(i, side, _)| slots[i].state.tensors.contains_key(SIDES[side].0))
            .collect();
        let states: Vec<&State> = slots.iter().map(|s| &*s.state).collect();
        let bases: Vec<Result<NewBasis>> = jobs
            .par_iter()
            .map(|&(i, side, kind)| {
                let (factor, basis) = SIDES[side];
                let gg = &states[i].tensors[factor];
                match kind {
                    Basis::Eigen => eigenbasis(gg),
                    Basis::PowerIteration => refresh(gg, &states[i].tensors[basis]),
                }
            })
            .collect();
        drop(states);
        let mut new: Vec<[Option<NewBasis>; 2]> = slots.iter().map(|_| [None, None]).collect();
        for ((i, side, _), basis) in jobs.into_iter().zip(bases) {
            new[i][side] = Some(basis?);
        }
        for (slot, new) in slots.iter_mut().zip(new) {
            if new.iter().any(Option::is_some) {
                change_basis(slot.state, new)?;
            }
        }
        Ok(())
    }

    fn state_elements(&self, shape: &[usize]) -> usize {
        let moments = 2 * shape.iter().product::<usize>();
        let factors: usize =
            self.preconditioned(shape).iter().zip(shape).filter(|(on, _)| **on).map(|(_, d)| 2 * d * d).sum();
        moments + factors
    }
}

#[derive(Clone, Copy)]
enum Basis {
    Eigen,
    PowerIteration,
}

struct NewBasis {
    q: Tensor,
    /// Old column that each new column grew from; `None` if there was no old basis.
    order: Option<Vec<usize>>,
}

impl Soap {
    /// Which sides of a parameter have a factor. Vectors have none.
    fn preconditioned(&self, shape: &[usize]) -> [bool; 2] {
        match shape {
            [m, n] => [*m <= self.max_precond_dim, *n <= self.max_precond_dim],
            _ => [false, false],
        }
    }

    /// The first call: zero moments and the first factors; nothing moves.
    fn begin(&self, slot: &mut Slot) -> Result<()> {
        let p = slot.parameter;
        for name in ["m", "v"] {
            slot.state.tensors.insert(name.into(), p.zeros_like()?);
        }
        for (side, on) in self.preconditioned(p.dims()).into_iter().enumerate() {
            if on {
                let d = p.dims()[side];
                slot.state.tensors.insert(SIDES[side].0.into(), tensor(vec![0.0; d * d], (d, d))?);
            }
        }
        self.update_factors(slot)
    }

    fn adam_step(&self, slot: &mut Slot) -> Result<()> {
        let state = &mut *slot.state;
        state.steps += 1;
        let n = state.steps as i32;
        let rotated = rotate(slot.gradient, state, Direction::In)?;
        let u = slot.parameter.zeros_like()?;
        {
            let g = slice(&rotated)?;
            with_slices_mut(&[&state.tensors["m"], &state.tensors["v"], &u], |s| {
                if let [m, v, u] = s {
                    kernel::adam_direction(
                        &g,
                        m,
                        v,
                        u,
                        kernel::Betas::new(self.beta1, self.beta2),
                        self.eps as f32,
                    );
                }
                Ok(())
            })?;
        }
        let u = rotate(&u, state, Direction::Out)?;
        let step = slot.lr * (1.0 - self.beta2.powi(n)).sqrt() / (1.0 - self.beta1.powi(n));
        let u = slice(&u)?;
        with_slice_mut(slot.parameter, |p| {
            kernel::step_then_decay(p, &u, step as f32, (1.0 - slot.lr * slot.weight_decay) as f32);
            Ok(())
        })
    }

    /// L ← β L + (1-β) G Gᵀ and R ← β R + (1-β) Gᵀ G.
    fn update_factors(&self, slot: &mut Slot) -> Result<()> {
        let [rows, columns] = *slot.gradient.dims() else { return Ok(()) };
        let g = slice(slot.gradient)?;
        let g = View::new(&g, rows, columns);
        for (side, (factor, _)) in SIDES.iter().enumerate() {
            let Some(gg) = slot.state.tensors.get(*factor) else { continue };
            let d = gg.dim(0)?;
            let mut product = vec![0.0; d * d];
            let (a, b) = if side == 0 { (g, g.t()) } else { (g.t(), g) };
            gemm(Compute::F32, a, b, &mut product, Write::Replace);
            with_slice_mut(gg, |gg| {
                kernel::lerp(gg, &product, (1.0 - self.shampoo_beta) as f32);
                Ok(())
            })?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    /// Qᵀ_L x Q_R: into the eigenbasis.
    In,
    /// Q_L x Qᵀ_R: back.
    Out,
}

/// Rotates a matrix by the bases that the state has; anything else comes back as it is.
fn rotate(x: &Tensor, state: &State, direction: Direction) -> Result<Tensor> {
    let mut x = x.clone();
    if let Some(q) = state.tensors.get("q_left") {
        x = multiply_left(q, &x, direction)?;
    }
    if let Some(q) = state.tensors.get("q_right") {
        x = multiply_right(&x, q, direction)?;
    }
    Ok(x)
}

fn multiply_left(q: &Tensor, x: &Tensor, direction: Direction) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (qs, xs) = (slice(q)?, slice(x)?);
    let q = View::new(&qs, rows, rows);
    let q = match direction {
        Direction::In => q.t(),
        Direction::Out => q,
    };
    let mut out = vec![0.0; rows * columns];
    gemm(Compute::F32, q, View::new(&xs, rows, columns), &mut out, Write::Replace);
    tensor(out, (rows, columns))
}

fn multiply_right(x: &Tensor, q: &Tensor, direction: Direction) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (qs, xs) = (slice(q)?, slice(x)?);
    let q = View::new(&qs, columns, columns);
    let q = match direction {
        Direction::In => q,
        Direction::Out => q.t(),
    };
    let mut out = vec![0.0; rows * columns];
    gemm(Compute::F32, View::new(&xs, rows, columns), q, &mut out, Write::Replace);
    tensor(out, (rows, columns))
}

/// Puts the new bases in place: m goes back through the old and forward through the new, v is permuted.
fn change_basis(state: &mut State, new: [Option<NewBasis>; 2]) -> Result<()> {
    let had_bases = SIDES.iter().any(|(_, q)| state.tensors.contains_key(*q));
    let m = rotate(&state.tensors["m"], state, Direction::Out)?;
    for (side, basis) in new.into_iter().enumerate() {
        let Some(basis) = basis else { continue };
        if let Some(order) = basis.order {
            let v = permute(&state.tensors["v"], side, &order)?;
            state.tensors.insert("v".into(), v);
        }
        state.tensors.insert(SIDES[side].1.into(), basis.q);
    }
    if had_bases {
        let m = rotate(&m, state, Direction::In)?;
        state.tensors.insert("m".into(), m);
    }
    Ok(())
}

/// Rows (side 0) or columns (side 1) of a matrix in another order.
fn permute(x: &Tensor, side: usize, order: &[usize]) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let xs = slice(x)?;
    let at = |r: usize, c: usize| match side {
        0 => xs[order[r] * columns + c],
        _ => xs[r * columns + order[c]],
    };
    let out = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect();
    tensor(out, (rows, columns))
}

fn to_faer(x: &Tensor) -> Result<Mat<f32>> {
    let (rows, columns) = x.dims2()?;
    Ok(MatRef::from_row_major_slice(&slice(x)?, rows, columns).to_owned())
}

/// Columns of `q` in the given order, as a row-major tensor.
fn from_faer(q: MatRef<f32>, order: impl Fn(usize) -> usize) -> Result<Tensor> {
    let (rows, columns) = (q.nrows(), q.ncols());
    let data: Vec<f32> = (0..rows * columns).map(|i| q[(i / columns, order(i % columns))]).collect();
    if data.iter().any(|v| !v.is_finite()) {
        bail!("a preconditioner basis is not finite; the gradients that made it were not either");
    }
    tensor(data, (rows, columns))
}

/// Eigenvectors of a symmetric matrix, by descending eigenvalue; float64 if float32 does not converge.
fn eigenbasis(gg: &Tensor) -> Result<NewBasis> {
    let matrix = to_faer(gg)?;
    let d = matrix.nrows();
    let q = match matrix.self_adjoint_eigen(Side::Lower) {
        Ok(eigen) => from_faer(eigen.U(), |c| d - 1 - c)?,
        Err(_) => {
            let wide = Mat::from_fn(d, d, |i, j| matrix[(i, j)] as f64);
            let Ok(eigen) = wide.self_adjoint_eigen(Side::Lower) else {
                bail!("the eigendecomposition of a {d} x {d} preconditioner did not converge");
            };
            let narrow = Mat::from_fn(d, d, |i, j| eigen.U()[(i, j)] as f32);
            from_faer(narrow.as_ref(), |c| d - 1 - c)?
        }
    };
    Ok(NewBasis { q, order: None })
}

/// One power iteration and a QR decomposition, the columns sorted by estimated eigenvalue before it.
fn refresh(gg: &Tensor, q: &Tensor) -> Result<NewBasis> {
    let (gg, q) = (to_faer(gg)?, to_faer(q)?);
    let d = q.nrows();
    let product = &gg * &q;
    let estimate: Vec<f64> =
        (0..d).map(|c| (0..d).map(|r| q[(r, c)] as f64 * product[(r, c)] as f64).sum()).collect();
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&a, &b| estimate[b].total_cmp(&estimate[a]));
    let sorted = Mat::from_fn(d, d, |r, c| product[(r, order[c])]);
    let q = sorted.qr().compute_thin_Q();
    Ok(NewBasis { q: from_faer(q.as_ref(), |c| c)?, order: Some(order) })
}
