//! Graphs and their bytes, without a runtime: a protobuf is read back, a graph runs in its order and names what it uses.

use super::*;
use crate::export::{ActivationGrid, WeightGrid};
use crate::model::{ModelConfig, Transformer, preset, presets};
use crate::tap::{Place, Site, Tap};
use crate::tape::Tape;
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Every site that a forward pass comes by.
#[derive(Default)]
struct Seen(BTreeSet<Site>);

impl Tap for Seen {
    fn wants(&self, _: Site) -> bool {
        true
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        self.0.insert(site);
        Ok(x)
    }
}

fn tiny(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (2, 12, 3, 11, 8);
    c
}

fn grid(scales: usize) -> WeightGrid {
    WeightGrid { scales: vec![0.01; scales], low: -128, high: 127, bits: 8 }
}

/// With grids for everything: every parameter, matrices by row, and every site.
fn quantised(model: &Transformer) -> Quantised<'_> {
    let mut quantised = Quantised::float(model);
    for p in model.parameters() {
        let rows = if p.tensor.rank() == 2 { p.tensor.dims()[0] } else { 1 };
        quantised.weights.insert(p.name.clone(), grid(rows));
    }
    let mut seen = Seen::default();
    model.logits(&Tape::off(), &mut seen, &[1, 2, 3, 4], 2).unwrap();
    let grid = ActivationGrid::Static { scale: 0.05, zero_point: 128 };
    quantised.activations = seen.0.into_iter().map(|site| (site, grid)).collect();
    quantised
}

fn bytes(model: &Quantised) -> Vec<u8> {
    let graph = graph(model).unwrap();
    let file = file(&graph).unwrap();
    let mut bytes = Vec::new();
    file.write(&graph, |piece| {
        bytes.extend(piece);
        Ok(())
    })
    .unwrap();
    assert_eq!(bytes.len() as u64, file.size, "the length that the graph's field was given");
    bytes
}

/// A field of a message as it was read.
#[derive(Debug, PartialEq)]
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// A message's fields by number, in order.
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Field<'_>>> {
    let mut fields = BTreeMap::<u64, Vec<Field>>::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            other => panic!("wire type {other}"),
        };
        fields.entry(key >> 3).or_default().push(field);
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (first, rest) = bytes.split_at(count);
    *bytes = rest;
    first
}

fn messages<'a>(fields: &[Field<'a>]) -> Vec<BTreeMap<u64, Vec<Field<'a>>>> {
    let message = |f: &Field<'a>| match f {
        Field::Bytes(bytes) => self::fields(bytes),
        other => panic!("{other:?} is no message"),
    };
    fields.iter().map(message).collect()
}

fn text(field: &Field) -> String {
    match field {
        Field::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?} is no text"),
    }
}

#[test]
fn a_file_reads_back_as_the_graph_that_it_was_written_from() {
    let model = Transformer::new(tiny("pre_ln"), 1).unwrap();
    let model = quantised(&model);
    let graph = graph(&model).unwrap();
    let bytes = bytes(&model);
    let file = fields(&bytes);
    assert_eq!(file[&1], [Field::Number(9)]);
    assert_eq!(messages(&file[&8])[0][&2], [Field::Number(proto::OPSET)]);
    let read = &messages(&file[&7])[0];
    let nodes = messages(&read[&1]);
    assert_eq!(nodes.len(), graph.nodes.len());
    for (read, node) in nodes.iter().zip(&graph.nodes) {
        assert_eq!(read[&1].iter().map(text).collect::<Vec<_>>(), node.inputs);
        assert_eq!((text(&read[&2][0]), text(&read[&4][0])), (node.output.clone(), node.op.to_string()));
        let attributes = read.get(&5).map_or(Vec::new(), |f| messages(f));
        for (read, (name, attribute)) in attributes.iter().zip(&node.attributes) {
            assert_eq!(text(&read[&1][0]), *name);
            match attribute {
                graph::Attribute::Int(value) => assert_eq!(read[&3], [Field::Number(*value as u64)]),
                graph::Attribute::Float(value) => assert_eq!(read[&2], [Field::Float(*value)]),
                graph::Attribute::Text(value) => assert_eq!(text(&read[&4][0]), *value),
                graph::Attribute::Ints(values) => {
                    let values: Vec<Field> = values.iter().map(|&v| Field::Number(v as u64)).collect();
                    assert_eq!(read[&8], values);
                }
            }
        }
    }
    let tensors = messages(&read[&5]);
    assert_eq!(tensors.len(), graph.initializers.len());
    for (read, initializer) in tensors.iter().zip(&graph.initializers) {
        assert_eq!(text(&read[&8][0]), initializer.name);
        assert_eq!(read[&9], [Field::Bytes(&initializer.bytes().unwrap())]);
        let dims = read.get(&1).map_or(Vec::new(), |dims| dims.iter().collect());
        let shape: Vec<Field> = initializer.shape.iter().map(|&d| Field::Number(d as u64)).collect();
        assert_eq!(dims, shape.iter().collect::<Vec<_>>());
    }
    assert_eq!(messages(&read[&11]).iter().map(|m| text(&m[&1][0])).collect::<Vec<_>>(), ["input_ids"]);
    assert_eq!(messages(&read[&12]).iter().map(|m| text(&m[&1][0])).collect::<Vec<_>>(), ["logits"]);
}

#[test]
fn nodes_run_in_order_and_use_everything_that_the_file_holds() {
    for (name, _) in presets().filter(|(name, _)| !tiny(name).reads_images()) {
        let model = Transformer::new(tiny(name), 1).unwrap();
        let mut models = vec![Quantised::float(&model)];
        models.push(quantised(&model));
        for model in models {
            let graph = graph(&model).unwrap();
            let mut known: BTreeSet<&str> = graph.inputs.iter().map(|p| p.name.as_str()).collect();
            known.extend(graph.initializers.iter().map(|i| i.name.as_str()));
            let mut used = BTreeSet::new();
            for node in &graph.nodes {
                for input in &node.inputs {
                    assert!(
                        known.contains(input.as_str()),
                        "{name}: {} reads {input} too early",
                        node.output
                    );
                    used.insert(input.as_str());
                }
                assert!(known.insert(&node.output), "{name}: {} is made twice", node.output);
            }
            assert!(graph.outputs.iter().all(|p| known.contains(p.name.as_str())));
            for initializer in &graph.initializers {
                assert!(used.contains(initializer.name.as_str()), "{name}: {} is not used", initializer.name);
            }
            for parameter in model.parameters.keys() {
                let stored = graph.initializers.iter().any(|i| i.name == *parameter);
                assert!(stored, "{name}: {parameter} is not in the file");
            }
            let quantisers = graph.nodes.iter().filter(|n| n.op == "QuantizeLinear").count();
            assert_eq!(quantisers, model.activations.len(), "{name}");
            let bytes: usize = graph.initializers.iter().map(|i| i.bytes().unwrap().len()).sum();
            assert_eq!(bytes, graph.initializers.iter().map(|i| i.size()).sum::<usize>(), "{name}");
        }
    }
}

#[test]
fn integers_are_those_of_the_grid_and_lie_as_a_product_takes_them() {
    let model = Transformer::new(tiny("pre_ln"), 1).unwrap();
    let mut quantised = Quantised::float(&model);
    let name = "blocks.0.mlp.up.weight";
    let rows = quantised.parameters[name].dims()[0];
    let scales: Vec<f32> = (0..rows).map(|r| 0.002 + 0.001 * r as f32).collect();
    quantised.weights.insert(name.into(), WeightGrid { scales: scales.clone(), ..grid(1) });
    let graph = graph(&quantised).unwrap();
    let stored = graph.initializers.iter().find(|i| i.name == name).unwrap();
    let bytes = stored.bytes().unwrap();
    let weights = quantised.parameters[name].to_vec2::<f32>().unwrap();
    assert_eq!(stored.shape, [12, rows]);
    for (r, row) in weights.iter().enumerate() {
        for (c, w) in row.iter().enumerate() {
            let q = (w / scales[r]).round_ties_even().clamp(-128.0, 127.0);
            assert_eq!(f32::from(bytes[c * rows + r] as i8), q, "row {r}, column {c}");
        }
    }
    // Without a sign above 127.
    let mut gain = BTreeMap::from([("final_norm.gain".to_string(), grid(1))]);
    gain.values_mut().for_each(|g| (g.scales, g.low, g.high) = (vec![1.0 / 200.0], 0, 255));
    quantised.weights = gain;
    let graph = self::graph(&quantised).unwrap();
    let stored = graph.initializers.iter().find(|i| i.name == "final_norm.gain").unwrap();
    assert_eq!((stored.kind, stored.bytes().unwrap()), (graph::Kind::U8, vec![200; 12]));
}

#[test]
fn a_tied_head_shares_its_table_unless_their_numbers_differ() {
    let tied = ModelConfig { tie_head: true, ..tiny("pre_ln") };
    let model = Transformer::new(tied, 1).unwrap();
    let held = |quantised: &Quantised| {
        let graph = graph(quantised).unwrap();
        let names = ["embed.token.weight", "head.weight"];
        names.map(|name| graph.initializers.iter().find(|i| i.name == name).map(|i| i.kind))
    };
    use graph::Kind::{F32, I8};
    let mut quantised = Quantised::float(&model);
    assert_eq!(held(&quantised), [Some(F32), None]);
    quantised.weights.insert("embed.token.weight".into(), grid(11));
    assert_eq!(held(&quantised), [Some(I8), Some(F32)]);
    quantised.weights.insert("head.weight".into(), grid(1));
    assert_eq!(held(&quantised), [Some(I8), Some(I8)]);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let model = Transformer::new(tiny("op"), 1).unwrap();
    let good = quantised(&model);
    let dir = tempfile::tempdir().unwrap();
    let refusal = |change: &dyn Fn(&mut Quantised)| {
        let mut quantised = good.clone();
        change(&mut quantised);
        let error = write(&quantised, dir.path(), dir.path()).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        error.to_string()
    };
    let scores = Site::block(1, Place::AttnScores);
    let dynamic = refusal(&|q| {
        q.activations.insert(scores, ActivationGrid::DynamicToken);
    });
    assert!(dynamic.contains("blocks.1.attn.scores is quantised by token"), "{dynamic}");
    let place = refusal(&|q| {
        q.activations
            .insert(Site::block(7, Place::AttnQ), ActivationGrid::Static { scale: 1.0, zero_point: 0 });
    });
    assert!(place.contains("no place blocks.7.attn.q"), "{place}");
    let step = refusal(&|q| {
        q.activations.insert(scores, ActivationGrid::Static { scale: 0.0, zero_point: 0 });
    });
    assert!(step.contains("blocks.1.attn.scores has the step 0"), "{step}");
    let count = refusal(&|q| {
        q.weights.insert("blocks.0.attn.q.weight".into(), grid(5));
    });
    assert!(count.contains("has 5 steps, not 1 or one for each of 12 rows"), "{count}");
    let wide = refusal(&|q| {
        q.weights.insert("blocks.0.attn.q.weight".into(), WeightGrid { low: -1, high: 255, ..grid(1) });
    });
    assert!(wide.contains("integers from -1 to 255"), "{wide}");
    let missing = refusal(&|q| {
        q.parameters.remove("blocks.0.attn.q.weight");
    });
    assert!(missing.contains("blocks.0.attn.q.weight is missing"), "{missing}");
    let unknown = refusal(&|q| {
        q.weights.insert("blocks.9.attn.q.weight".into(), grid(1));
    });
    assert!(unknown.contains("blocks.9.attn.q.weight has a grid and is not part"), "{unknown}");

    let rope = ModelConfig {
        positions: Positions::Rope,
        head_dim: 4,
        rope_scaling: RopeScaling::Dynamic { factor: 2.0, original: 4.0 },
        ..tiny("op")
    };
    let model = Transformer::new(rope, 1).unwrap();
    let error = write(&Quantised::float(&model), dir.path(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("angles depend on the length"), "{error}");
    // Four gigabytes by its shape; its numbers are not asked for.
    let mut large = Graph::default();
    large.floats("large".into(), vec![1 << 30], &[]);
    let error = file(&large).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("takes 4.3 GB"), "{error}");
    let both = ModelConfig { causal: false, ..tiny("op") };
    let model = Transformer::new(both, 1).unwrap();
    let error = write(&Quantised::float(&model), dir.path(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("does not predict the next token"), "{error}");
}
