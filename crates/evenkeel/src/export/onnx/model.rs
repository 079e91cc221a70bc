//! The forward pass as operators: embedding, blocks, head. It follows the model's own, site by site.

use super::graph::{Dim, Edge, Graph, Kind, Port};
use super::layers::Gain;
use super::refused;
use crate::export::{HEAD, Quantised, Result, TOKEN_TABLE};
use crate::model::config::{Branches, NormPosition, Positions};
use crate::tap::{Place, Site};
use std::collections::{BTreeMap, BTreeSet};

/// A graph of a model in the making.
pub(super) struct Writer<'a> {
    pub(super) model: &'a Quantised<'a>,
    pub(super) graph: Graph,
    /// Sites that the graph has come by.
    pub(super) visited: BTreeSet<Site>,
    /// 0, 1, .. for the tokens of a sequence.
    pub(super) positions: Edge,
    /// What hides keys from queries, by window.
    pub(super) masks: BTreeMap<usize, Edge>,
    /// Cosines and sines of the tokens' angles, once they are there.
    pub(super) angles: Option<(Edge, Edge)>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(model: &'a Quantised<'a>) -> Self {
        let mut graph = Graph::default();
        let ids = "input_ids".to_string();
        let shape = vec![Dim::Named("batch"), Dim::Named("sequence")];
        graph.inputs.push(Port { name: ids.clone(), kind: Kind::I64, shape });
        graph.enter("input");
        let shape = graph.node("Shape", &[&ids]);
        let [zero, one] = [0, 1].map(|v| graph.int(v));
        let tokens = graph.node("Gather", &[&shape, &one]);
        let positions = graph.node("Range", &[&zero, &tokens, &one]);
        let (visited, masks) = (BTreeSet::new(), BTreeMap::new());
        Self { model, graph, visited, positions, masks, angles: None }
    }

    /// The whole of it.
    pub(super) fn graph(mut self) -> Result<Graph> {
        let mut x = self.embedding()?;
        for layer in 0..self.model.config.depth {
            x = self.block(layer, x)?;
        }
        let logits = self.head(&x)?;
        let vocab = Dim::Size(self.model.config.vocab);
        let shape = vec![Dim::Named("batch"), Dim::Named("sequence"), vocab];
        self.graph.output(&logits, Port { name: "logits".into(), kind: Kind::F32, shape });
        // A grid that nothing has come by would be lost without a word.
        if let Some(site) = self.model.activations.keys().find(|site| !self.visited.contains(site)) {
            return Err(refused(format!("it has no place {site} to quantise"), "quantise the model again"));
        }
        Ok(self.graph)
    }

    fn embedding(&mut self) -> Result<Edge> {
        let c = self.model.config;
        self.graph.enter("embed");
        let mut x = self.rows(TOKEN_TABLE, &"input_ids".to_string())?;
        x = self.scaled(x, &Gain::Fixed(c.embed_scale))?;
        // Where the table has another width than the stream, positions fit only behind the matrix between them.
        let position_last = c.d_embed() != c.width;
        if !position_last {
            x = self.with_positions(x)?;
        }
        if c.has_embed_proj() {
            x = self.linear("embed.proj", &x)?;
        }
        if position_last {
            x = self.with_positions(x)?;
        }
        let x = self.norm("embed.norm", c.embed_norm, &x)?;
        Ok(self.visit(Site::outside(Place::Embed), x))
    }

    fn with_positions(&mut self, x: Edge) -> Result<Edge> {
        if self.model.config.positions != Positions::Learned {
            return Ok(x);
        }
        let positions = self.positions.clone();
        let rows = self.rows("embed.position.weight", &positions)?;
        Ok(self.graph.node("Add", &[&x, &rows]))
    }

    fn block(&mut self, layer: usize, x: Edge) -> Result<Edge> {
        let c = self.model.config;
        let y = match c.branches {
            Branches::Sequential => {
                let x = self.branch(layer, x, Branch::Attention)?;
                let x = self.visit(Site::block(layer, Place::ResidMid), x);
                self.branch(layer, x, Branch::Mlp)?
            }
            Branches::Parallel | Branches::ParallelTwoNorms => {
                self.graph.enter(format!("blocks.{layer}.attn"));
                let h = self.norm(&format!("blocks.{layer}.attn.norm"), c.attn_norm(layer), &x)?;
                let onto = if c.norm_position == NormPosition::Pre { &x } else { &h };
                let sum = self.attention(layer, &h, onto.clone())?;
                self.graph.enter(format!("blocks.{layer}.mlp"));
                let h = match c.branches {
                    Branches::ParallelTwoNorms => {
                        self.norm(&format!("blocks.{layer}.mlp.norm"), c.mlp_norm(), &x)?
                    }
                    _ => h,
                };
                self.mlp(layer, h, sum)?
            }
        };
        Ok(self.visit(Site::block(layer, Place::Resid), y))
    }

    /// A branch of a sequential block with its norm, and the stream that it joins.
    fn branch(&mut self, layer: usize, x: Edge, branch: Branch) -> Result<Edge> {
        let c = self.model.config;
        let (name, norm) = match branch {
            Branch::Attention => (format!("blocks.{layer}.attn"), c.attn_norm(layer)),
            Branch::Mlp => (format!("blocks.{layer}.mlp"), c.mlp_norm()),
        };
        self.graph.enter(name.as_str());
        let name = format!("{name}.norm");
        let run = |w: &mut Self, h: Edge, onto: Edge| match branch {
            Branch::Attention => w.attention(layer, &h, onto),
            Branch::Mlp => w.mlp(layer, h, onto),
        };
        match c.norm_position {
            NormPosition::Pre => {
                let h = self.norm(&name, norm, &x)?;
                run(self, h, x)
            }
            NormPosition::Post => {
                let sum = run(self, x.clone(), x)?;
                self.norm(&name, norm, &sum)
            }
            NormPosition::PostStream => {
                let n = self.norm(&name, norm, &x)?;
                run(self, n.clone(), n)
            }
        }
    }

    fn mlp(&mut self, layer: usize, h: Edge, onto: Edge) -> Result<Edge> {
        let c = self.model.config;
        let at = |name: &str| format!("blocks.{layer}.mlp.{name}");
        let site = |place| Site::block(layer, place);
        let alpha = self.gain(at("alpha"), c.alpha);
        let h = self.scaled(h, &alpha)?;
        let h = self.visit(site(Place::MlpIn), h);
        let up = self.linear(&at("up"), &h)?;
        let act = c.activation.activation();
        let hidden = if c.activation.is_gated() {
            let gate = self.linear(&at("gate"), &h)?;
            let gate = self.activation(act, &gate);
            self.graph.node("Mul", &[&gate, &up])
        } else {
            self.activation(act, &up)
        };
        let hidden = self.visit(site(Place::MlpHidden), hidden);
        let branch = self.linear(&at("down"), &hidden)?;
        let branch = self.visit(site(Place::MlpOut), branch);
        self.join(onto, branch, at("beta"), c.mlp_skip(), site(Place::MlpBranch))
    }

    /// s x + β branch, or the branch alone where there is no skip.
    pub(super) fn join(
        &mut self,
        x: Edge,
        branch: Edge,
        beta: String,
        skip: Option<f64>,
        site: Site,
    ) -> Result<Edge> {
        let c = self.model.config;
        let Some(skip) = skip else { return Ok(self.visit(site, branch)) };
        let x = self.scaled(x, &Gain::Fixed(skip))?;
        let beta = self.gain(beta, c.beta.resolve(c.depth));
        let branch = self.scaled(branch, &beta)?;
        let branch = self.visit(site, branch);
        Ok(self.graph.node("Add", &[&x, &branch]))
    }

    fn head(&mut self, x: &Edge) -> Result<Edge> {
        let c = self.model.config;
        self.graph.enter("head");
        let x = self.norm("final_norm", c.final_norm, x)?;
        let mut x = self.visit(Site::outside(Place::FinalNorm), x);
        if c.has_embed_proj() {
            x = self.linear("head.proj", &x)?;
        }
        if c.head_transform {
            x = self.linear("head.transform", &x)?;
            x = self.activation(c.activation.activation(), &x);
            x = self.layer_norm("head.norm", c.norm_eps as f32, &x)?;
        }
        let float = |name: &str| !self.model.weights.contains_key(name);
        let weight = if c.tie_head && float(HEAD) && float(TOKEN_TABLE) {
            // One table in the file serves both.
            let table = self.param(TOKEN_TABLE)?;
            self.transpose(&table, &[1, 0])
        } else {
            self.matrix(HEAD)?
        };
        let mut logits = self.graph.node("MatMul", &[&x, &weight]);
        if c.head_bias {
            let bias = self.param("head.bias")?;
            logits = self.graph.node("Add", &[&logits, &bias]);
        }
        Ok(self.visit(Site::outside(Place::Logits), logits))
    }
}

/// A branch of a block.
#[derive(Clone, Copy)]
enum Branch {
    Attention,
    Mlp,
}
