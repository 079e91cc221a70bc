//! Repairs and a scheme together: the model repaired in float, then rounded by the scheme's own grids.

use super::grid::Cell;
use super::repair::{Columns, Repair, Rounding as Rounds, repair_float, repair_rounded};
use super::rounding::{Layout, Rounding, WeightCells};
use super::scheme::{Plan, Scheme};
use super::weights::{Rounded, quantise_weights};
use crate::data::Batch;
use crate::error::Result;
use crate::model::{Input, Transformer};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A repaired model, in float and rounded.
pub(super) struct Prepared {
    /// The scheme settled for it.
    pub(super) plan: Plan,
    /// In float, with the parameters of the rounded one: a head that is stored in another way than the token table it was
    /// tied to has a copy of it.
    pub(super) float: Transformer,
    /// With its weights on their grids.
    pub(super) rounded: Rounded,
}

impl Prepared {
    fn new(plan: Plan, float: &Transformer, rounded: Rounded) -> Result<Self> {
        let find = |name: &str| float.parameters().iter().find(|p| p.name == name);
        let float = rounded.model.map_parameters(|p| {
            let own = find(&p.name).or_else(|| find("embed.token.weight"));
            Ok(own.unwrap_or(p).tensor.clone())
        })?;
        Ok(Self { plan, float, rounded })
    }
}

/// Repairs the model, settles the scheme for it, and rounds it.
///
/// # Errors
/// If the scheme does not fit, a repair cannot be made, or a weight is not finite.
pub(super) fn prepare(
    model: &Transformer,
    scheme: &Scheme,
    repairs: &[Repair],
    calibration: &[Batch],
) -> Result<Prepared> {
    let plan_of =
        |model: &Transformer| scheme.plan(model.config(), model.parameters().iter().map(|p| p.name.as_str()));
    if repairs.is_empty() {
        let plan = plan_of(model)?;
        let rounded = quantise_weights(model, &plan)?;
        return Prepared::new(plan, model, rounded);
    }
    let inputs: Vec<Input> = calibration.iter().cloned().map(Input::from).collect();
    let (model, _) = repair_float(model, repairs, &inputs)?;
    let plan = plan_of(&model)?;
    let nearest = quantise_weights(&model, &plan)?;
    if !repairs.iter().any(|r| r.needs_rounding()) {
        return Prepared::new(plan, &model, nearest);
    }
    let rounding = PlanRounding { plan: &plan, cells: RefCell::default() };
    let (repaired, _) = repair_rounded(&model, repairs, &inputs, &rounding)?;
    let mut cells = rounding.cells.into_inner();
    let tensors: BTreeMap<&str, _> =
        repaired.parameters().iter().map(|p| (p.name.as_str(), &p.tensor)).collect();
    let merged = nearest.model.map_parameters(|p| {
        let repaired = tensors.get(p.name.as_str()).filter(|_| inside(&p.name));
        Ok(repaired.map_or(&p.tensor, |tensor| *tensor).clone())
    })?;
    let mut weights = nearest.weights;
    for (name, w) in &mut weights {
        if let Some(rounding) = cells.remove(name).filter(|_| inside(name)) {
            w.rounding = rounding;
        }
    }
    Prepared::new(plan, &model, Rounded { model: merged, weights })
}

/// Whether repairs decide how a parameter is rounded: tables stay as the scheme rounds them, and so does a head that is one.
fn inside(name: &str) -> bool {
    name.starts_with("blocks.") || name.starts_with("head.")
}

/// A plan as repairs round by it; keeps the cells it chose.
struct PlanRounding<'a> {
    plan: &'a Plan,
    cells: RefCell<BTreeMap<String, Rounding>>,
}

impl Rounds for PlanRounding<'_> {
    fn rounds(&self, name: &str) -> bool {
        self.plan.weights.contains_key(name) && inside(name)
    }

    fn round(&self, name: &str, w: &[f32], (_, width): (usize, usize)) -> Vec<f32> {
        let mut rounded = w.to_vec();
        let spec = self.plan.weights.get(name);
        // All values are finite, by the contract of the trait.
        if let Some(Ok(rounding)) = spec.map(|&spec| Rounding::of_weight(name, spec, w, width)) {
            rounding.apply(&mut rounded, width);
            self.cells.borrow_mut().insert(name.to_string(), rounding);
        }
        rounded
    }

    fn columns<'a>(
        &'a self,
        name: &'a str,
        w: &[f32],
        (rows, width): (usize, usize),
    ) -> Box<dyn Columns + 'a> {
        let spec = self.plan.weights.get(name).copied().unwrap_or(super::Spec::WEIGHT);
        let layout = Layout::of_weight(spec.granularity);
        let own = WeightCells::of(spec, w);
        let fixed = match layout {
            Layout::Group(_) => None,
            _ => Rounding::of_weight(name, spec, w, width).ok(),
        };
        let cells = match &fixed {
            Some(Rounding { layout: Layout::Tensor, cells }) => vec![cells[0]; rows],
            Some(rounding) => rounding.cells.clone(),
            None => Vec::new(),
        };
        if let Some(fixed) = fixed {
            self.cells.borrow_mut().insert(name.to_string(), fixed);
        }
        let groups = match layout {
            Layout::Group(n) => Some(n.clamp(1, width.max(1))),
            _ => None,
        };
        Box::new(PlanColumns { all: &self.cells, name, own, layout, groups, rows, cells, passed: Vec::new() })
    }
}

/// A matrix that is rounded column by column.
struct PlanColumns<'a> {
    all: &'a RefCell<BTreeMap<String, Rounding>>,
    name: &'a str,
    own: WeightCells,
    layout: Layout,
    /// Columns of a group, where cells belong to groups.
    groups: Option<usize>,
    rows: usize,
    /// Of the rows, for the columns at hand.
    cells: Vec<Cell>,
    /// Cells of the groups so far, group by group.
    passed: Vec<Vec<Cell>>,
}

impl Columns for PlanColumns<'_> {
    fn group(&self) -> usize {
        self.groups.unwrap_or(0)
    }

    fn start(&mut self, _: usize, w: &[f32]) {
        let width = w.len() / self.rows.max(1);
        self.cells = w.chunks(width.max(1)).map(|row| self.own.cell(row)).collect();
        self.passed.push(self.cells.clone());
        // Row by row, as a tensor's cells are kept.
        let cells = (0..self.rows).flat_map(|row| self.passed.iter().map(move |group| group[row])).collect();
        self.all.borrow_mut().insert(self.name.to_string(), Rounding { layout: self.layout, cells });
    }

    fn round(&mut self, _: usize, w: &mut [f32]) {
        for (v, cell) in w.iter_mut().zip(&self.cells) {
            cell.round_serial(std::slice::from_mut(v));
        }
    }
}
