//! Shampoo's eigenbases, and what SOAP and rotated AdaFactor do in them.
//!
//! For a matrix G (m × n): factors L = EMA of G Gᵀ and R = EMA of Gᵀ G, which start at zero, and their eigenvectors Q_L
//! and Q_R. Factors are symmetric; in the state only their lower triangle is kept up. A call with gradient G:
//!
//! ```text
//! g' = Q_Lᵀ G Q_R                      with the bases of before this call
//! (u', step) = rule(g')                moments are kept in the rotated space
//! p ← p - step · Q_L u' Q_Rᵀ,          then p ← p (1 - lr·wd)
//! L ← β L + (1-β) G Gᵀ,  R likewise
//! every k calls: sort each basis by estimated eigenvalue diag(Qᵀ L Q), Q ← QR(L Q); second moments are permuted
//!                with the columns, m is rotated back with the old basis and forward with the new
//! ```
//!
//! The first call makes the factors, takes the bases by eigendecomposition and moves nothing, not even by decay; n stays 0.
//! Vectors have no basis unless `precondition_1d` is set, and what has more than two axes has none. This follows the
//! published reference implementation of SOAP (Vyas et al., arXiv 2409.11321); where other implementations differ there is
//! a key.

use super::arith::{Factor, blend_outer, matmul, step_then_decay};
use super::linalg::{eigen, power_iteration};
use super::{Optimizer, Periodic, Side, Slot, State};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How bases are made and kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Eigenbasis {
    /// Decay of L and R; negative means β2 (`beta2`, whatever the second moment itself uses).
    pub shampoo_beta: f64,
    /// Calls between refreshes of the bases; 0 means never.
    pub precondition_frequency: u64,
    /// A side longer than this keeps the identity. 10000 as in the reference; a run's default is 2048.
    pub max_precond_dim: usize,
    /// Only the shorter side (rows, if both are equal) has a basis; the other keeps the identity.
    pub one_sided: bool,
    /// Vectors have a factor and a basis too.
    pub precondition_1d: bool,
    /// The first call only takes the bases. If false, it goes on with them as the first step.
    pub skip_first: bool,
    /// L and R take the gradient, and a refresh happens, before the step instead of after it.
    pub current_gradient: bool,
    /// Refreshes of different parameters fall on different steps, evenly, so that no single step is slow.
    pub spread_refresh: bool,
}

impl Default for Eigenbasis {
    fn default() -> Self {
        Self {
            shampoo_beta: -1.0,
            precondition_frequency: 10,
            max_precond_dim: 10_000,
            one_sided: false,
            precondition_1d: false,
            skip_first: true,
            current_gradient: false,
            spread_refresh: false,
        }
    }
}

/// What an optimiser does in the rotated space.
pub(super) trait Inside: Send + Sync {
    /// The optimiser's name.
    const NAME: &'static str;

    /// How its bases are made and kept.
    fn basis(&self) -> &Eigenbasis;

    /// Names and shapes of its moments. `m` follows a basis by rotation; `v`, `row` and `column` by permutation.
    fn moments(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)>;

    /// Takes the rotated gradient; gives the rotated direction and the size of the step along it.
    fn direction(&self, gradient: &Tensor, slot: &mut Slot) -> Result<(Tensor, f64)>;

    /// What becomes of the direction once it is rotated back.
    fn finish(&self, direction: Tensor) -> Result<Tensor> {
        Ok(direction)
    }

    /// Decay of the second moment, and of the factors unless they have their own.
    fn beta2(&self) -> f64;
}

impl<R: Inside> Optimizer for R {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn step(&self, slots: &mut [Slot]) -> Result<()> {
        self.basis().step(self, slots)
    }

    fn state(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        self.basis().state(self, shape)
    }

    fn periodic(&self, shape: &[usize]) -> Option<Periodic> {
        let basis = self.basis();
        Periodic::of(basis.sides(shape), basis.precondition_frequency).filter(|_| basis.spread_refresh)
    }
}

/// The tensors of one side.
struct Names {
    side: Side,
    factor: &'static str,
    basis: &'static str,
    values: &'static str,
}

const SIDES: [Names; 2] = [
    Names { side: Side::Left, factor: "gg_left", basis: "q_left", values: VALUES[0] },
    Names { side: Side::Right, factor: "gg_right", basis: "q_right", values: VALUES[1] },
];

/// Where the eigenvalues of the factors stand, as estimated at the last refresh.
pub(super) const VALUES: [&str; 2] = ["eigenvalues_left", "eigenvalues_right"];

/// How a basis is made.
#[derive(Clone, Copy)]
enum Refresh {
    Eigendecomposition,
    PowerIteration,
}

/// One basis that is due.
#[derive(Clone, Copy)]
struct Due {
    slot: usize,
    side: usize,
    refresh: Refresh,
}

struct NewBasis {
    vectors: Tensor,
    values: Tensor,
    /// Old column that each new column grew from; `None` if there was no old basis.
    order: Option<Vec<u32>>,
}

/// What a call does with one slot.
#[derive(Clone, Copy)]
struct Call {
    first: bool,
    moves: bool,
}

impl Eigenbasis {
    /// The length of each side that has a basis.
    fn sides(&self, shape: &[usize]) -> [Option<usize>; 2] {
        let short = |d: usize| Some(d).filter(|&d| d <= self.max_precond_dim);
        match *shape {
            [d] if self.precondition_1d => [short(d), None],
            [rows, columns] if self.one_sided && rows <= columns => [short(rows), None],
            [_, columns] if self.one_sided => [None, short(columns)],
            [rows, columns] => [short(rows), short(columns)],
            _ => [None, None],
        }
    }

    fn state(&self, rule: &impl Inside, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        let mut all = rule.moments(shape);
        for (names, d) in SIDES.iter().zip(self.sides(shape)) {
            if let Some(d) = d {
                all.extend([(names.factor, vec![d, d]), (names.basis, vec![d, d]), (names.values, vec![d])]);
            }
        }
        all
    }

    /// One call on every slot.
    fn step(&self, rule: &impl Inside, slots: &mut [Slot]) -> Result<()> {
        let mut calls = Vec::with_capacity(slots.len());
        for slot in slots.iter_mut() {
            calls.push(self.begin(rule, slot)?);
        }
        let due = |when: &dyn Fn(Call) -> bool, refresh| -> Vec<Due> {
            let of = |(slot, call): (usize, &Call)| when(*call).then_some(slot);
            let slots = calls.iter().enumerate().filter_map(of);
            slots.flat_map(|slot| [0, 1].map(|side| Due { slot, side, refresh })).collect()
        };
        let first = due(&|call| call.first, Refresh::Eigendecomposition);
        let later = due(&|call| !call.first, Refresh::PowerIteration);
        self.change_bases(slots, first)?;
        if self.current_gradient {
            self.refresh(slots, &later)?;
        }
        // Side by side: products of small matrices do not keep all threads busy one after the other.
        slots.par_iter_mut().zip(&calls).with_max_len(1).try_for_each(|(slot, call)| {
            if call.moves {
                move_parameter(rule, slot)?;
            }
            match call.first || self.current_gradient {
                true => Ok(()),
                false => self.take_gradient(rule, slot),
            }
        })?;
        if !self.current_gradient {
            self.refresh(slots, &later)?;
        }
        Ok(())
    }

    /// Counts the step, makes what is missing, and adds the gradient to the factors where that comes first.
    fn begin(&self, rule: &impl Inside, slot: &mut Slot) -> Result<Call> {
        let first = slot.state.tensors.is_empty();
        let call = Call { first, moves: !first || !self.skip_first };
        slot.state.steps += u64::from(call.moves);
        if first {
            let shape = slot.parameter.dims();
            slot.state.begin(&rule.moments(shape), slot.parameter)?;
            for (names, d) in SIDES.iter().zip(self.sides(shape)) {
                if let Some(d) = d {
                    slot.state.begin(&[(names.factor, vec![d, d])], slot.parameter)?;
                }
            }
        }
        if first || self.current_gradient {
            self.take_gradient(rule, slot)?;
        }
        Ok(call)
    }

    /// L ← β L + (1-β) G Gᵀ and R ← β R + (1-β) Gᵀ G.
    fn take_gradient(&self, rule: &impl Inside, slot: &Slot) -> Result<()> {
        let beta = if self.shampoo_beta < 0.0 { rule.beta2() } else { self.shampoo_beta };
        let gradient = as_matrix(slot.gradient)?;
        for names in &SIDES {
            if let Some(factor) = slot.state.tensors.get(names.factor) {
                blend_outer(factor, &gradient, names.side, beta, 1.0 - beta)?;
            }
        }
        Ok(())
    }

    /// Refreshes the bases whose turn it is.
    fn refresh(&self, slots: &mut [Slot], candidates: &[Due]) -> Result<()> {
        let every = self.precondition_frequency;
        let turn = |slot: &Slot| every > 0 && (slot.state.steps + slot.phase).is_multiple_of(every);
        let due = candidates.iter().filter(|due| turn(&slots[due.slot])).copied().collect();
        self.change_bases(slots, due)
    }

    /// Makes new bases, a task each, and takes the moments into them.
    fn change_bases(&self, slots: &mut [Slot], mut due: Vec<Due>) -> Result<()> {
        due.retain(|due| slots[due.slot].state.tensors.contains_key(SIDES[due.side].factor));
        let states: Vec<&State> = slots.iter().map(|slot| &*slot.state).collect();
        let make = |due: &Due| new_basis(states[due.slot], &SIDES[due.side], due.refresh);
        let made = due.par_iter().with_max_len(1).map(make).collect::<Result<Vec<NewBasis>>>()?;
        drop(states);
        let mut made = made.into_iter();
        for both in due.chunk_by(|a, b| a.slot == b.slot) {
            let new: Vec<_> = both.iter().map(|due| due.side).zip(made.by_ref()).collect();
            change_basis(slots[both[0].slot].state, new)?;
        }
        Ok(())
    }
}

fn move_parameter(rule: &impl Inside, slot: &mut Slot) -> Result<()> {
    let rotated = rotate(slot.gradient, slot.state, Direction::In)?;
    let (direction, step) = rule.direction(&rotated, slot)?;
    drop(rotated);
    let direction = rule.finish(rotate(&direction, slot.state, Direction::Out)?)?;
    step_then_decay(slot.parameter, &direction, step, slot.keep())
}

fn new_basis(state: &State, names: &Names, refresh: Refresh) -> Result<NewBasis> {
    let factor = state.get(names.factor)?;
    let (vectors, values, order) = match refresh {
        Refresh::Eigendecomposition => {
            let eigen = eigen(factor)?;
            (eigen.vectors, eigen.values, None)
        }
        Refresh::PowerIteration => {
            let new = power_iteration(factor, state.get(names.basis)?)?;
            (new.vectors, new.values, Some(new.order))
        }
    };
    let values = Tensor::new(values, &Device::Cpu)?.to_dtype(factor.dtype())?.to_device(factor.device())?;
    Ok(NewBasis { vectors, values, order })
}

/// Puts new bases in place: m goes back through the old ones and forward through the new, second moments are permuted.
fn change_basis(state: &mut State, new: Vec<(usize, NewBasis)>) -> Result<()> {
    let rotated = SIDES.iter().any(|names| state.tensors.contains_key(names.basis));
    let m = state.tensors.get("m").filter(|_| rotated).cloned();
    let back = m.map(|m| rotate(&m, state, Direction::Out)).transpose()?;
    for (side, basis) in new {
        if let Some(order) = basis.order {
            let order = Tensor::new(order, basis.vectors.device())?;
            for (moment, axis) in [("v", side), (["row", "column"][side], 0)] {
                if let Some(x) = state.tensors.get(moment) {
                    let x = x.index_select(&order, axis)?;
                    state.tensors.insert(moment.into(), x);
                }
            }
        }
        state.tensors.insert(SIDES[side].basis.into(), basis.vectors);
        state.tensors.insert(SIDES[side].values.into(), basis.values);
    }
    if let Some(m) = back {
        let m = rotate(&m, state, Direction::In)?;
        state.tensors.insert("m".into(), m);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Direction {
    /// Qᵀ_L x Q_R: into the eigenbasis.
    In,
    /// Q_L x Qᵀ_R: back.
    Out,
}

/// Rotates a matrix by the bases that the state has, a vector as a column; what has none comes back as it is.
fn rotate(x: &Tensor, state: &State, direction: Direction) -> Result<Tensor> {
    let basis = |name| state.tensors.get(name);
    let turn = |q| match direction {
        Direction::In => Factor::Transposed(q),
        Direction::Out => Factor::As(q),
    };
    let back = |q| match direction {
        Direction::In => Factor::As(q),
        Direction::Out => Factor::Transposed(q),
    };
    let matrix = as_matrix(x)?;
    let rotated = match (basis("q_left"), basis("q_right")) {
        (None, None) => return Ok(x.clone()),
        (Some(left), None) => matmul(turn(left), Factor::As(&matrix))?,
        (None, Some(right)) => matmul(Factor::As(&matrix), back(right))?,
        // By way of the transpose, so that each basis is the left factor of its product: that one is packed a block at
        // a time as it is used, the right one as a whole beforehand, and bases are the larger ones.
        (Some(left), Some(right)) => {
            let half = matmul(turn(right), Factor::Transposed(&matrix))?;
            matmul(turn(left), Factor::Transposed(&half))?
        }
    };
    rotated.reshape(x.shape())
}

/// A vector as a matrix of one column.
fn as_matrix(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 1 { x.unsqueeze(1) } else { Ok(x.clone()) }
}
