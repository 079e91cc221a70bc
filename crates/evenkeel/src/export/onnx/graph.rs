//! A graph of ONNX operators in the making. Nodes are appended in the order in which they run.

use crate::export::{Result, WeightGrid};
use crate::slices::slice;
use candle_core::Tensor;
use std::collections::BTreeSet;

/// A value in the graph, by name.
pub(super) type Edge = String;

/// Element types that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    I8,
    U8,
    I64,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::I8 | Kind::U8 => 1,
            Kind::I64 => 8,
        }
    }
}

/// A setting of an operator.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attribute {
    Float(f32),
    Int(i64),
    Text(&'static str),
    Ints(Vec<i64>),
}

/// An operator with one output.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) op: &'static str,
    pub(super) inputs: Vec<Edge>,
    pub(super) output: Edge,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
}

/// A dimension of an input or output of the whole graph.
#[derive(Clone, Debug)]
pub(super) enum Dim {
    Named(&'static str),
    Size(usize),
}

/// An input or output of the whole graph.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: Edge,
    pub(super) kind: Kind,
    pub(super) shape: Vec<Dim>,
}

/// Numbers that the file holds.
#[derive(Clone, Debug)]
pub(super) struct Initializer {
    pub(super) name: Edge,
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
    content: Content,
}

/// Where an initializer's numbers come from. Parameters are read when they are written.
#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Parameter { tensor: Tensor, grid: Option<WeightGrid>, transposed: bool },
}

impl Initializer {
    /// Bytes of its numbers.
    pub(super) fn size(&self) -> usize {
        self.shape.iter().product::<usize>() * self.kind.bytes()
    }

    /// Its numbers, little-endian, row by row.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let (tensor, grid, transposed) = match &self.content {
            Content::Bytes(bytes) => return Ok(bytes.clone()),
            Content::Parameter { tensor, grid, transposed } => (tensor, grid, *transposed),
        };
        let Some(grid) = grid else {
            let tensor = if transposed { tensor.t()?.contiguous()? } else { tensor.contiguous()? };
            return Ok(slice(&tensor)?.iter().flat_map(|v| v.to_le_bytes()).collect());
        };
        let bytes = grid.bytes(&tensor.contiguous()?)?;
        match tensor.dims() {
            // The grid's steps follow the rows, so that integers are made first and transposed after.
            [_, columns] if transposed && *columns > 0 => {
                Ok((0..*columns).flat_map(|c| bytes.iter().skip(c).step_by(*columns).copied()).collect())
            }
            _ => Ok(bytes),
        }
    }
}

/// Nodes, numbers, inputs and outputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) initializers: Vec<Initializer>,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    /// What the names of new nodes begin with.
    scope: String,
    known: BTreeSet<Edge>,
}

impl Graph {
    /// Names nodes from here on after the part of the model that they compute.
    pub(super) fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Appends an operator.
    pub(super) fn node(&mut self, op: &'static str, inputs: &[&Edge]) -> Edge {
        self.node_with(op, inputs, &[])
    }

    /// Appends an operator with settings.
    pub(super) fn node_with(
        &mut self,
        op: &'static str,
        inputs: &[&Edge],
        attributes: &[(&'static str, Attribute)],
    ) -> Edge {
        let output = format!("{}/{op}_{}", self.scope, self.nodes.len());
        let inputs = inputs.iter().map(|&i| i.clone()).collect();
        self.nodes.push(Node { op, inputs, output: output.clone(), attributes: attributes.to_vec() });
        output
    }

    /// Gives the last value the name of an output of the graph.
    pub(super) fn output(&mut self, value: &Edge, port: Port) {
        let name = port.name.clone();
        self.outputs.push(port);
        self.nodes.push(Node {
            op: "Identity",
            inputs: vec![value.clone()],
            output: name,
            attributes: vec![],
        });
    }

    /// A number.
    pub(super) fn float(&mut self, value: f32) -> Edge {
        self.numbers(format!("float({value:?})"), Kind::F32, vec![], || value.to_le_bytes().to_vec())
    }

    /// An integer.
    pub(super) fn int(&mut self, value: i64) -> Edge {
        self.numbers(format!("int({value})"), Kind::I64, vec![], || value.to_le_bytes().to_vec())
    }

    /// A list of integers: axes or a shape.
    pub(super) fn ints(&mut self, values: &[i64]) -> Edge {
        let bytes = || values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.numbers(format!("ints{values:?}"), Kind::I64, vec![values.len()], bytes)
    }

    /// Floats of shape `shape`.
    pub(super) fn floats(&mut self, name: String, shape: Vec<usize>, values: &[f32]) -> Edge {
        self.numbers(name, Kind::F32, shape, || values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Bytes of shape `shape`, all the same.
    pub(super) fn bytes(&mut self, name: String, kind: Kind, shape: Vec<usize>, value: u8) -> Edge {
        let count = shape.iter().product();
        self.numbers(name, kind, shape, || vec![value; count])
    }

    /// A parameter, as integers if there is a grid, with rows and columns exchanged if that is asked for.
    pub(super) fn parameter(
        &mut self,
        name: &str,
        tensor: &Tensor,
        grid: Option<&WeightGrid>,
        transposed: bool,
    ) -> Edge {
        let mut shape = tensor.dims().to_vec();
        if transposed {
            shape.reverse();
        }
        let kind = match grid {
            None => Kind::F32,
            Some(grid) if grid.is_unsigned() => Kind::U8,
            Some(_) => Kind::I8,
        };
        let content = Content::Parameter { tensor: tensor.clone(), grid: grid.cloned(), transposed };
        self.add(Initializer { name: name.into(), kind, shape, content })
    }

    fn numbers(
        &mut self,
        name: String,
        kind: Kind,
        shape: Vec<usize>,
        bytes: impl FnOnce() -> Vec<u8>,
    ) -> Edge {
        if self.known.contains(&name) {
            return name;
        }
        self.add(Initializer { name, kind, shape, content: Content::Bytes(bytes()) })
    }

    /// Each name once: who asks again means the same numbers.
    fn add(&mut self, initializer: Initializer) -> Edge {
        let name = initializer.name.clone();
        if self.known.insert(name.clone()) {
            self.initializers.push(initializer);
        }
        name
    }
}
