//! The layers that blocks are made of, as operators: quantisers, parameters, linear maps, norms, gains, nonlinearities.

use super::graph::{Attribute, Edge, Kind};
use super::model::Writer;
use crate::export::{ActivationGrid, Result, WeightGrid};
use crate::model::config::Norm;
use crate::ops::Activation;
use crate::tap::Site;

/// A factor on a value.
pub(super) enum Gain {
    /// A number.
    Fixed(f64),
    /// A parameter.
    Learned(String),
}

/// What Cast calls float32.
pub(super) const FLOAT: i64 = 1;

/// Of the steps and zero points of a parameter's grid.
fn grid_shape(grid: &WeightGrid) -> Vec<usize> {
    if grid.scales.len() == 1 { vec![] } else { vec![grid.scales.len()] }
}

impl Writer<'_> {
    /// `x` through the quantiser of `site`, if it has one.
    pub(super) fn visit(&mut self, site: Site, x: Edge) -> Edge {
        self.visited.insert(site);
        let Some(ActivationGrid::Static { scale, zero_point }) = self.model.activations.get(&site) else {
            return x;
        };
        let scale = self.graph.float(*scale);
        let zero = self.graph.bytes(format!("byte({zero_point})"), Kind::U8, vec![], *zero_point);
        let q = self.graph.node("QuantizeLinear", &[&x, &scale, &zero]);
        self.graph.node("DequantizeLinear", &[&q, &scale, &zero])
    }

    /// The steps of a parameter's grid: a scalar, or a vector with an entry for each row.
    fn steps(&mut self, name: &str, grid: &WeightGrid) -> Edge {
        self.graph.floats(format!("{name}.scale"), grid_shape(grid), &grid.scales)
    }

    /// `x`, integers of a parameter's grid, as floats. `axis` is where the grid's rows lie in it.
    fn dequantised(&mut self, name: &str, grid: &WeightGrid, x: &Edge, axis: i64) -> Edge {
        let kind = if grid.is_unsigned() { Kind::U8 } else { Kind::I8 };
        let scale = self.steps(name, grid);
        let zero = self.graph.bytes(format!("{name}.zero_point"), kind, grid_shape(grid), 0);
        let axis = [("axis", Attribute::Int(axis))];
        // A single step has no axis.
        let axis = if grid.scales.len() == 1 { &[][..] } else { &axis };
        self.graph.node_with("DequantizeLinear", &[x, &scale, &zero], axis)
    }

    /// A parameter as floats, with rows and columns exchanged if that is asked for.
    fn parameter(&mut self, name: &str, transposed: bool) -> Result<Edge> {
        let tensor = self.model.parameter(name)?;
        let grid = self.model.weights.get(name);
        let stored = self.graph.parameter(name, tensor, grid, transposed);
        Ok(match grid {
            Some(grid) => self.dequantised(name, grid, &stored, i64::from(transposed)),
            None => stored,
        })
    }

    /// A parameter of any shape.
    pub(super) fn param(&mut self, name: &str) -> Result<Edge> {
        self.parameter(name, false)
    }

    /// A matrix (out, in), stored as MatMul takes it: (in, out).
    pub(super) fn matrix(&mut self, name: &str) -> Result<Edge> {
        self.parameter(name, true)
    }

    /// Rows of a table.
    pub(super) fn rows(&mut self, table: &str, rows: &Edge) -> Result<Edge> {
        let tensor = self.model.parameter(table)?;
        let grid = self.model.weights.get(table);
        let stored = self.graph.parameter(table, tensor, grid, false);
        // Integers are picked first: making floats of the whole table at each run would cost more than the model.
        let picked = self.graph.node("Gather", &[&stored, rows]);
        let Some(grid) = grid else { return Ok(picked) };
        if grid.scales.len() == 1 {
            return Ok(self.dequantised(table, grid, &picked, 0));
        }
        let steps = self.steps(table, grid);
        let steps = self.graph.node("Gather", &[&steps, rows]);
        let steps = self.unsqueeze(&steps, -1);
        let picked = self.graph.node_with("Cast", &[&picked], &[("to", Attribute::Int(FLOAT))]);
        Ok(self.graph.node("Mul", &[&picked, &steps]))
    }

    /// x Wᵀ + b, around the identity if the projection has that part.
    pub(super) fn linear(&mut self, name: &str, x: &Edge) -> Result<Edge> {
        let weight = self.matrix(&format!("{name}.weight"))?;
        let mut y = self.graph.node("MatMul", &[x, &weight]);
        let bias = format!("{name}.bias");
        if self.model.has(&bias) {
            let bias = self.param(&bias)?;
            y = self.graph.node("Add", &[&y, &bias]);
        }
        if !self.model.has(&format!("{name}.skip")) {
            return Ok(y);
        }
        let passed = self.scaled(x.clone(), &Gain::Learned(format!("{name}.skip")))?;
        let y = self.scaled(y, &Gain::Learned(format!("{name}.gain")))?;
        Ok(self.graph.node("Add", &[&passed, &y]))
    }

    /// `x` times a gain.
    pub(super) fn scaled(&mut self, x: Edge, gain: &Gain) -> Result<Edge> {
        let gain = match gain {
            Gain::Fixed(1.0) => return Ok(x),
            Gain::Fixed(number) => self.graph.float(*number as f32),
            Gain::Learned(name) => self.param(name)?,
        };
        Ok(self.graph.node("Mul", &[&x, &gain]))
    }

    /// A gain that is learned if there is such a parameter.
    pub(super) fn gain(&self, name: String, fixed: f64) -> Gain {
        if self.model.has(&name) { Gain::Learned(name) } else { Gain::Fixed(fixed) }
    }

    /// `x` through the norm `name`.
    pub(super) fn norm(&mut self, name: &str, norm: Norm, x: &Edge) -> Result<Edge> {
        let eps = self.model.config.norm_eps as f32;
        let part = |part: &str| format!("{name}.{part}");
        match norm {
            Norm::None => Ok(x.clone()),
            Norm::Layer => self.layer_norm(name, eps, x),
            Norm::Srms => Ok(self.rms(x, |w, square| w.inside_root(square, eps))),
            Norm::Rms | Norm::Ss => {
                let y = self.rms(x, |w, square| w.inside_root(square, eps));
                self.scaled(y, &Gain::Learned(part("gain")))
            }
            Norm::Dyt => {
                let y = self.scaled(x.clone(), &Gain::Learned(part("alpha")))?;
                let y = self.graph.node("Tanh", &[&y]);
                let y = self.scaled(y, &Gain::Learned(part("gain")))?;
                let bias = self.param(&part("bias"))?;
                Ok(self.graph.node("Add", &[&y, &bias]))
            }
        }
    }

    /// LayerNorm over the last axis, with the gain and bias of `name`.
    pub(super) fn layer_norm(&mut self, name: &str, eps: f32, x: &Edge) -> Result<Edge> {
        let (gain, bias) = (self.param(&format!("{name}.gain"))?, self.param(&format!("{name}.bias"))?);
        let settings = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(eps))];
        Ok(self.graph.node_with("LayerNormalization", &[x, &gain, &bias], &settings))
    }

    /// `x` over its root mean square along the last axis; `root` makes that of the mean square.
    pub(super) fn rms(&mut self, x: &Edge, root: impl FnOnce(&mut Self, Edge) -> Edge) -> Edge {
        let square = self.graph.node("Mul", &[x, x]);
        let last = self.graph.ints(&[-1]);
        let mean = self.graph.node("ReduceMean", &[&square, &last]);
        let root = root(self, mean);
        self.graph.node("Div", &[x, &root])
    }

    /// √(x + ε).
    pub(super) fn inside_root(&mut self, x: Edge, eps: f32) -> Edge {
        let eps = self.graph.float(eps);
        let sum = self.graph.node("Add", &[&x, &eps]);
        self.graph.node("Sqrt", &[&sum])
    }

    /// √x + ε.
    pub(super) fn outside_root(&mut self, x: Edge, eps: f32) -> Edge {
        let root = self.graph.node("Sqrt", &[&x]);
        let eps = self.graph.float(eps);
        self.graph.node("Add", &[&root, &eps])
    }

    /// act(x).
    pub(super) fn activation(&mut self, act: Activation, x: &Edge) -> Edge {
        match act {
            Activation::Relu => self.graph.node("Relu", &[x]),
            Activation::LeakyRelu(slope) => {
                self.graph.node_with("LeakyRelu", &[x], &[("alpha", Attribute::Float(slope))])
            }
            Activation::Gelu => self.graph.node("Gelu", &[x]),
            Activation::GeluTanh => {
                self.graph.node_with("Gelu", &[x], &[("approximate", Attribute::Text("tanh"))])
            }
            Activation::Silu => {
                let open = self.graph.node("Sigmoid", &[x]);
                self.graph.node("Mul", &[x, &open])
            }
            Activation::SquaredRelu => {
                let y = self.graph.node("Relu", &[x]);
                self.graph.node("Mul", &[&y, &y])
            }
        }
    }

    /// x in another shape; 0 keeps a dimension and -1 takes what is left.
    pub(super) fn reshape(&mut self, x: &Edge, shape: &[i64]) -> Edge {
        let shape = self.graph.ints(shape);
        self.graph.node("Reshape", &[x, &shape])
    }

    /// x with its axes in another order.
    pub(super) fn transpose(&mut self, x: &Edge, order: &[i64]) -> Edge {
        self.graph.node_with("Transpose", &[x], &[("perm", Attribute::Ints(order.to_vec()))])
    }

    /// x with an axis of size 1.
    pub(super) fn unsqueeze(&mut self, x: &Edge, axis: i64) -> Edge {
        let axis = self.graph.ints(&[axis]);
        self.graph.node("Unsqueeze", &[x, &axis])
    }

    /// Channels `from..to` of the last axis.
    pub(super) fn channels(&mut self, x: &Edge, from: usize, to: usize) -> Edge {
        let [from, to, last] = [from as i64, to as i64, -1].map(|v| self.graph.ints(&[v]));
        self.graph.node("Slice", &[x, &from, &to, &last])
    }
}
