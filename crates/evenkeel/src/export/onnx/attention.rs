//! Attention as operators. Query heads that share a key head lie side by side on an axis of their own, over which the
//! matrix products broadcast: (b, k, g, t, c) with b sequences, k key heads, g query heads for each, t tokens, c channels.

use super::graph::{Attribute, Edge};
use super::layers::FLOAT;
use super::model::Writer;
use crate::export::Result;
use crate::model::config::{AttentionMatrix, Gate, Positions, QkNorm};
use crate::ops::{Rope, Softmax};
use crate::tap::{Place, Site};

/// Score of a hidden key: far below any other, and finite.
const HIDDEN: f32 = -1e30;

impl Writer<'_> {
    /// `onto` joined by attention of `h`.
    pub(super) fn attention(&mut self, layer: usize, h: &Edge, onto: Edge) -> Result<Edge> {
        let c = self.model.config;
        let at = |name: &str| format!("blocks.{layer}.attn.{name}");
        let site = |place| Site::block(layer, place);
        let h = &self.visit(site(Place::AttnIn), h.clone());
        let mut projected = |name: &str, place| -> Result<Edge> {
            let y = self.linear(&at(name), h)?;
            Ok(self.visit(site(place), y))
        };
        let q = projected("q", Place::AttnQ)?;
        let k = projected("k", Place::AttnK)?;
        let v = projected("v", Place::AttnV)?;
        let mut context = self.mix(layer, &q, &k, &v)?;
        if c.attention_matrix == AttentionMatrix::Shaped {
            context = self.shaped(layer, &context, &v)?;
        }
        context = self.visit(site(Place::AttnContext), context);
        if c.gate != Gate::None {
            context = self.gated(layer, h, &context)?;
        }
        let branch = self.linear(&at("out"), &context)?;
        let branch = self.visit(site(Place::AttnOut), branch);
        self.join(onto, branch, at("beta"), c.attn_skip(), site(Place::AttnBranch))
    }

    /// Each head's values, weighted by its probabilities, and merged.
    fn mix(&mut self, layer: usize, q: &Edge, k: &Edge, v: &Edge) -> Result<Edge> {
        let c = self.model.config;
        let site = |place| Site::block(layer, place);
        let (heads, kv_heads, d_head) = (c.heads as i64, c.kv_heads() as i64, c.d_head() as i64);
        let mut q = self.reshape(q, &[0, 0, heads, d_head]);
        let mut k = self.reshape(k, &[0, 0, kv_heads, d_head]);
        if c.qk_norm != QkNorm::None {
            q = self.head_norm(&format!("blocks.{layer}.attn.q_norm"), &q)?;
            q = self.visit(site(Place::AttnQNorm), q);
            k = self.head_norm(&format!("blocks.{layer}.attn.k_norm"), &k)?;
            k = self.visit(site(Place::AttnKNorm), k);
        }
        if c.positions == Positions::Rope {
            q = self.rotated(&q);
            k = self.rotated(&k);
        }
        let q = self.reshape(&q, &[0, 0, kv_heads, heads / kv_heads, d_head]);
        let q = self.transpose(&q, &[0, 2, 3, 1, 4]);
        let k = self.reshape(&k, &[0, 0, kv_heads, 1, d_head]);
        let k = self.transpose(&k, &[0, 2, 3, 4, 1]);
        let v = self.reshape(v, &[0, 0, kv_heads, 1, d_head]);
        let v = self.transpose(&v, &[0, 2, 3, 1, 4]);

        let scores = self.graph.node("MatMul", &[&q, &k]);
        let scale = self.graph.float(1.0 / (d_head as f32).sqrt());
        let mut scores = self.graph.node("Mul", &[&scores, &scale]);
        if c.logit_softcap > 0.0 {
            let cap = self.graph.float(c.logit_softcap as f32);
            scores = self.graph.node("Div", &[&scores, &cap]);
            scores = self.graph.node("Tanh", &[&scores]);
            scores = self.graph.node("Mul", &[&scores, &cap]);
        }
        let scores = self.visit(site(Place::AttnScores), scores);
        let hidden = self.mask(c.window(layer));
        let least = self.graph.float(HIDDEN);
        let scores = self.graph.node("Where", &[&hidden, &least, &scores]);
        let probs = self.softmax(&scores);
        let probs = self.visit(site(Place::AttnProbs), probs);
        let context = self.graph.node("MatMul", &[&probs, &v]);
        let context = self.transpose(&context, &[0, 3, 1, 2, 4]);
        Ok(self.reshape(&context, &[0, 0, heads * d_head]))
    }

    /// QK-norm over the last axis.
    fn head_norm(&mut self, name: &str, x: &Edge) -> Result<Edge> {
        let c = self.model.config;
        let eps = c.qk_norm_eps as f32;
        let y = match c.qk_norm {
            QkNorm::None => return Ok(x.clone()),
            QkNorm::Layer => return self.layer_norm(name, eps, x),
            QkNorm::Rms => self.rms(x, |w, square| w.outside_root(square, eps)),
            QkNorm::RmsInside => self.rms(x, |w, square| w.inside_root(square, eps)),
        };
        let gain = self.param(&format!("{name}.gain"))?;
        Ok(self.graph.node("Mul", &[&y, &gain]))
    }

    /// x (b, t, heads, c), each token turned by its angles.
    fn rotated(&mut self, x: &Edge) -> Edge {
        let (d_head, rotated) = (self.model.config.d_head(), self.model.config.rotated());
        let half = rotated / 2;
        let (cos, sin) = self.angles();
        let (a, b) = (self.channels(x, 0, half), self.channels(x, half, rotated));
        let mut times = |x: &Edge, y: &Edge| self.graph.node("Mul", &[x, y]);
        let [a_cos, a_sin, b_cos, b_sin] =
            [times(&a, &cos), times(&a, &sin), times(&b, &cos), times(&b, &sin)];
        let mut parts =
            vec![self.graph.node("Sub", &[&a_cos, &b_sin]), self.graph.node("Add", &[&b_cos, &a_sin])];
        if rotated < d_head {
            parts.push(self.channels(x, rotated, d_head));
        }
        let parts: Vec<&Edge> = parts.iter().collect();
        self.graph.node_with("Concat", &parts, &[("axis", Attribute::Int(-1))])
    }

    /// Cosines and sines (t, 1, half) of the tokens at hand, out of tables for every position of the context.
    fn angles(&mut self) -> (Edge, Edge) {
        if let Some(angles) = &self.angles {
            return angles.clone();
        }
        let c = self.model.config;
        let rope = Rope::new(c.rope_base, c.rotated(), c.context, c.rope_scaling);
        let (cos, sin) = rope.tables();
        let half = c.rotated() / 2;
        let [cos, sin] = [("rope.cos", cos), ("rope.sin", sin)].map(|(name, values)| {
            let table = self.graph.floats(name.into(), vec![c.context, half], values);
            let rows = self.graph.node("Gather", &[&table, &self.positions]);
            self.unsqueeze(&rows, 1)
        });
        self.angles.insert((cos, sin)).clone()
    }

    /// Which keys (columns) are hidden from which queries (rows): those after it, and those before its window.
    fn mask(&mut self, window: usize) -> Edge {
        if let Some(mask) = self.masks.get(&window) {
            return mask.clone();
        }
        let positions = self.positions.clone();
        let (rows, columns) = (self.unsqueeze(&positions, 1), self.unsqueeze(&positions, 0));
        let mut hidden = self.graph.node("Greater", &[&columns, &rows]);
        if window > 0 {
            let behind = self.graph.node("Sub", &[&rows, &columns]);
            let window = self.graph.int(window as i64);
            let before = self.graph.node("GreaterOrEqual", &[&behind, &window]);
            hidden = self.graph.node("Or", &[&hidden, &before]);
        }
        self.masks.insert(window, hidden.clone());
        hidden
    }

    /// Probabilities of masked scores.
    fn softmax(&mut self, scores: &Edge) -> Edge {
        let last = [("axis", Attribute::Int(-1))];
        match self.model.config.softmax() {
            Softmax::Standard => self.graph.node_with("Softmax", &[scores], &last),
            Softmax::Clipped { gamma, eta } => {
                let probs = self.graph.node_with("Softmax", &[scores], &last);
                let [stretch, gamma, zero, one] =
                    [(eta - gamma) as f32, gamma as f32, 0.0, 1.0].map(|v| self.graph.float(v));
                let probs = self.graph.node("Mul", &[&probs, &stretch]);
                let probs = self.graph.node("Add", &[&probs, &gamma]);
                self.graph.node("Clip", &[&probs, &zero, &one])
            }
            Softmax::NullSlot => {
                let (axis, zero) = (self.graph.ints(&[-1]), self.graph.float(0.0));
                let peak = self.graph.node("ReduceMax", &[scores, &axis]);
                let peak = self.graph.node("Max", &[&peak, &zero]);
                let exp = self.graph.node("Sub", &[scores, &peak]);
                let exp = self.graph.node("Exp", &[&exp]);
                let slot = self.graph.node("Neg", &[&peak]);
                let slot = self.graph.node("Exp", &[&slot]);
                let sum = self.graph.node("ReduceSum", &[&exp, &axis]);
                let sum = self.graph.node("Add", &[&sum, &slot]);
                self.graph.node("Div", &[&exp, &sum])
            }
        }
    }

    /// a v + b context - c means, the means being those of the values so far; a, b, c per head.
    fn shaped(&mut self, layer: usize, context: &Edge, v: &Edge) -> Result<Edge> {
        let c = self.model.config;
        let (heads, kv_heads, d_head) = (c.heads as i64, c.kv_heads() as i64, c.d_head() as i64);
        let one = self.graph.int(1);
        let sums = self.graph.node("CumSum", &[v, &one]);
        let counts = self.graph.node("Add", &[&self.positions, &one]);
        let counts = self.graph.node_with("Cast", &[&counts], &[("to", Attribute::Int(FLOAT))]);
        let counts = self.unsqueeze(&counts, 1);
        let means = self.graph.node("Div", &[&sums, &counts]);
        let mut term = |x: &Edge, heads_of: i64, part: &str| -> Result<Edge> {
            // (b, t, k, g, c), with one query head for each key head in what the key heads share.
            let x = self.reshape(x, &[0, 0, kv_heads, heads_of / kv_heads, d_head]);
            let gain = self.param(&format!("blocks.{layer}.attn.shaped.{part}"))?;
            let gain = self.reshape(&gain, &[kv_heads, heads / kv_heads, 1]);
            Ok(self.graph.node("Mul", &[&x, &gain]))
        };
        let values = term(v, kv_heads, "identity")?;
        let mixed = term(context, heads, "attention")?;
        let means = term(&means, kv_heads, "centre")?;
        let sum = self.graph.node("Add", &[&values, &mixed]);
        let sum = self.graph.node("Sub", &[&sum, &means]);
        Ok(self.reshape(&sum, &[0, 0, heads * d_head]))
    }

    /// The context, times a sigmoid gate for each head or channel.
    fn gated(&mut self, layer: usize, h: &Edge, context: &Edge) -> Result<Edge> {
        let c = self.model.config;
        let name = format!("blocks.{layer}.attn.gate");
        let (heads, d_head) = (c.heads as i64, c.d_head() as i64);
        let logits = match c.gate {
            Gate::None => return Ok(context.clone()),
            Gate::AllFeatures | Gate::Elementwise => self.linear(&name, h)?,
            Gate::PerHead => self.param(&format!("{name}.bias"))?,
            Gate::PerToken => {
                let h = self.reshape(h, &[0, 0, heads, d_head]);
                self.weighted_sum(&name, &h)?
            }
            Gate::Mlp => {
                // (b, t, h, 1, c) and (h, r, c): each head has r weighted sums.
                let h = self.reshape(h, &[0, 0, heads, 1, d_head]);
                let up = self.param(&format!("{name}.up.weight"))?;
                let products = self.graph.node("Mul", &[&h, &up]);
                let last = self.graph.ints(&[-1]);
                let keep = [("keepdims", Attribute::Int(0))];
                let hidden = self.graph.node_with("ReduceSum", &[&products, &last], &keep);
                let bias = self.param(&format!("{name}.up.bias"))?;
                let bias = self.reshape(&bias, &[heads, -1]);
                let hidden = self.graph.node("Add", &[&hidden, &bias]);
                let hidden = self.graph.node("Relu", &[&hidden]);
                self.weighted_sum(&name, &hidden)?
            }
        };
        let open = self.graph.node("Sigmoid", &[&logits]);
        let mut open = self.visit(Site::block(layer, Place::AttnGate), open);
        if c.gate == Gate::Elementwise {
            return Ok(self.graph.node("Mul", &[context, &open]));
        }
        let split = self.reshape(context, &[0, 0, heads, d_head]);
        open = self.unsqueeze(&open, -1);
        let gated = self.graph.node("Mul", &[&split, &open]);
        Ok(self.reshape(&gated, &[0, 0, heads * d_head]))
    }

    /// Σ x W + b over the last axis, with a row of W for each head: x (b, t, h, c) to (b, t, h).
    fn weighted_sum(&mut self, name: &str, x: &Edge) -> Result<Edge> {
        let weight = self.param(&format!("{name}.weight"))?;
        let products = self.graph.node("Mul", &[x, &weight]);
        let last = self.graph.ints(&[-1]);
        let sum = self.graph.node_with("ReduceSum", &[&products, &last], &[("keepdims", Attribute::Int(0))]);
        let bias = self.param(&format!("{name}.bias"))?;
        Ok(self.graph.node("Add", &[&sum, &bias]))
    }
}
