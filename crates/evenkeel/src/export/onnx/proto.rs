//! The protobuf encoding of a [`Graph`]: a file that onnx and onnxruntime read.
//!
//! Written by hand: eight messages of a few fields each need two wire types and a varint. That is shorter than their
//! structs for a protobuf crate would be, adds no dependency and no code generator, and lets the file be written one
//! initializer at a time, so that a model is not held in memory twice. Numbers are those of onnx.proto.

use super::graph::{Attribute, Graph, Initializer, Kind, Node};
use crate::export::Result;

/// Version of the file format that came with the operator set.
const IR_VERSION: u64 = 9;
/// The operator set: the first with GELU as one operator.
pub(super) const OPSET: u64 = 20;

/// A message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// The beginning of a field of `length` bytes, which the caller appends.
    fn open(&mut self, field: u64, length: usize) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(length as u64);
        self
    }

    fn text(&mut self, field: u64, text: &str) -> &mut Self {
        self.open(field, text.len()).0.extend(text.as_bytes());
        self
    }

    fn message(&mut self, field: u64, make: impl FnOnce(&mut Message)) -> &mut Self {
        let mut inner = Message::default();
        make(&mut inner);
        self.open(field, inner.0.len()).0.extend(inner.0);
        self
    }
}

/// A file: everything before the initializers, and how many bytes it has with them.
pub(super) struct File {
    /// ModelProto up to the graph's last field, which the initializers are.
    start: Vec<u8>,
    /// Bytes of the whole file.
    pub(super) size: u64,
}

impl File {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut body = Message::default();
        graph.nodes.iter().for_each(|node| {
            body.message(1, |m| encode_node(m, node));
        });
        body.text(2, "evenkeel");
        for (field, values) in [(11, &graph.inputs), (12, &graph.outputs)] {
            for value in values {
                body.message(field, |m| {
                    m.text(1, &value.name).message(2, |m| {
                        m.message(1, |m| encode_type(m, value.kind, &value.shape));
                    });
                });
            }
        }
        let initializers: u64 = graph.initializers.iter().map(|i| (head(i).len() + i.size()) as u64).sum();
        let mut start = Message::default();
        start.integer(1, IR_VERSION).text(2, "evenkeel").text(3, env!("CARGO_PKG_VERSION"));
        start.message(8, |m| {
            m.integer(2, OPSET);
        });
        start.open(7, body.0.len() + initializers as usize).0.extend(body.0);
        let size = start.0.len() as u64 + initializers;
        Self { start: start.0, size }
    }

    /// Hands the file's bytes to `write`, piece by piece.
    pub(super) fn write(&self, graph: &Graph, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        write(&self.start)?;
        for initializer in &graph.initializers {
            write(&head(initializer))?;
            write(&initializer.bytes()?)?;
        }
        Ok(())
    }
}

/// An initializer's field up to its numbers, which are the last of it.
fn head(initializer: &Initializer) -> Vec<u8> {
    let size = initializer.size();
    let mut tensor = Message::default();
    initializer.shape.iter().for_each(|&dim| {
        tensor.integer(1, dim as u64);
    });
    tensor.integer(2, data_type(initializer.kind)).text(8, &initializer.name).open(9, size);
    let mut field = Message::default();
    field.open(5, tensor.0.len() + size).0.extend(tensor.0);
    field.0
}

fn encode_node(m: &mut Message, node: &Node) {
    node.inputs.iter().for_each(|input| {
        m.text(1, input);
    });
    // A node is named as what it makes.
    m.text(2, &node.output).text(3, &node.output).text(4, node.op);
    for (name, attribute) in &node.attributes {
        m.message(5, |m| {
            m.text(1, name);
            match attribute {
                Attribute::Float(value) => m.float(2, *value).integer(20, 1),
                // A negative number is written as its two's complement of 64 bits.
                Attribute::Int(value) => m.integer(3, *value as u64).integer(20, 2),
                Attribute::Text(text) => m.text(4, text).integer(20, 3),
                Attribute::Ints(values) => {
                    values.iter().for_each(|&v| {
                        m.integer(8, v as u64);
                    });
                    m.integer(20, 7)
                }
            };
        });
    }
}

/// Element type and shape: a dimension is a number, or the name of what differs from run to run.
fn encode_type(m: &mut Message, kind: Kind, shape: &[super::graph::Dim]) {
    use super::graph::Dim;
    m.integer(1, data_type(kind)).message(2, |m| {
        for dim in shape {
            m.message(1, |m| {
                match dim {
                    Dim::Size(size) => m.integer(1, *size as u64),
                    Dim::Named(name) => m.text(2, name),
                };
            });
        }
    });
}

fn data_type(kind: Kind) -> u64 {
    match kind {
        Kind::F32 => 1,
        Kind::U8 => 2,
        Kind::I8 => 3,
        Kind::I64 => 7,
    }
}
