//! One block on bytes: norm, queries, keys and values, attention, the sum; norm, MLP, the sum.

use super::decoder::LayerKeys;
use super::parts::{Ingredients, OwnedNorm, Product, factors};
use super::{Work, fitted};
use crate::model::config::{Norm, QkNorm};
use crate::ops::Activation;
use crate::tap::{Place, Site};
use evenkeel_kernels::int8::attention::IntAttention;
use evenkeel_kernels::int8::joint::{Joint, layer_onto};
use evenkeel_kernels::int8::layer::layer_u8;
use evenkeel_kernels::int8::norm::{HeadNorm, head_norm_u8, norm_u8};
use evenkeel_kernels::int8::requantise::Terms;
use evenkeel_kernels::quant::Grid;

/// Which tokens a pass runs.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// Number of sequences.
    pub(super) sequences: usize,
    /// Tokens of each.
    pub(super) tokens: usize,
    /// Tokens of each before these, whose keys and values are there.
    pub(super) past: usize,
    /// Tokens from one sequence's keys to the next one's.
    pub(super) capacity: usize,
}

impl Span {
    fn rows(&self) -> usize {
        self.sequences * self.tokens
    }
}

/// A block with its grids.
pub(super) struct FusedBlock {
    entering: Grid,
    attn_norm: Option<(OwnedNorm, Grid)>,
    q: Projection,
    k: Projection,
    v: Projection,
    qk_norm: Option<QkNorms>,
    attention: IntAttention,
    context: Grid,
    attn: Branch,
    mlp_norm: Option<(OwnedNorm, Grid)>,
    up: Projection,
    mlp: Branch,
}

/// A layer and the grid of its output.
struct Projection {
    product: Product,
    activation: Option<Activation>,
    grid: Grid,
}

/// Gains and grids of queries and of keys.
struct QkNorms {
    q: (Vec<f32>, Grid),
    k: (Vec<f32>, Grid),
    eps: f32,
    eps_inside: bool,
}

/// A branch's last matrix and how it joins the stream.
struct Branch {
    out: Product,
    beta: Option<Vec<f32>>,
    grid: Grid,
    skip: f32,
    /// The stream before and after.
    before: Grid,
    after: Grid,
}

impl FusedBlock {
    /// Block `layer`, which the stream enters on `entering`, and the grid on which it leaves; `None` if it is of another kind.
    pub(super) fn new(parts: &mut Ingredients, layer: usize, entering: Grid) -> Option<(Self, Grid)> {
        let c = parts.config();
        let at = |place| Site::block(layer, place);
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let (attn_norm, attn_in) =
            normed(parts, &name("attn.norm"), c.attn_norm(layer), at(Place::AttnIn), entering)?;
        let projection = |parts: &mut Ingredients, part: &str, place, input| {
            let product = parts.product(&name(part), input)?;
            Some(Projection { product, activation: None, grid: parts.grid(at(place))? })
        };
        let q = projection(parts, "attn.q.weight", Place::AttnQ, attn_in)?;
        let k = projection(parts, "attn.k.weight", Place::AttnK, attn_in)?;
        let v = projection(parts, "attn.v.weight", Place::AttnV, attn_in)?;
        let qk_norm = match c.qk_norm {
            QkNorm::None => None,
            kind => Some(QkNorms {
                q: (parts.vector(&name("attn.q_norm.gain"))?, parts.grid(at(Place::AttnQNorm))?),
                k: (parts.vector(&name("attn.k_norm.gain"))?, parts.grid(at(Place::AttnKNorm))?),
                eps: c.qk_norm_eps as f32,
                eps_inside: kind == QkNorm::RmsInside,
            }),
        };
        let attention = IntAttention {
            sequences: 0,
            queries: 0,
            keys: 0,
            kv_stride: 0,
            heads: c.heads,
            kv_heads: c.kv_heads(),
            d_head: c.d_head(),
            causal: true,
            window: c.window(layer),
            scale: (1.0 / (c.d_head() as f64).sqrt()) as f32,
            softmax: c.softmax().kernel(),
            q: qk_norm.as_ref().map_or(q.grid, |norm| norm.q.1),
            k: qk_norm.as_ref().map_or(k.grid, |norm| norm.k.1),
            v: v.grid,
            scores: Some(parts.grid(at(Place::AttnScores))?),
            probs: Some(parts.grid(at(Place::AttnProbs))?),
        };
        let context = parts.grid(at(Place::AttnContext))?;
        let middle = parts.grid(at(Place::ResidMid))?;
        let place = if c.has_beta() { Place::AttnBranch } else { Place::AttnOut };
        let attn = Branch {
            out: parts.product(&name("attn.out.weight"), context)?,
            beta: beta(parts, &name("attn.beta"))?,
            grid: parts.grid(at(place))?,
            skip: c.attn_skip()? as f32,
            before: entering,
            after: middle,
        };
        let (mlp_norm, mlp_in) = normed(parts, &name("mlp.norm"), c.mlp_norm(), at(Place::MlpIn), middle)?;
        let up = Projection {
            activation: Some(c.activation.activation()),
            ..projection(parts, "mlp.up.weight", Place::MlpHidden, mlp_in)?
        };
        let leaving = parts.grid(at(Place::Resid))?;
        let place = if c.has_beta() { Place::MlpBranch } else { Place::MlpOut };
        let mlp = Branch {
            out: parts.product(&name("mlp.down.weight"), up.grid)?,
            beta: beta(parts, &name("mlp.beta"))?,
            grid: parts.grid(at(place))?,
            skip: c.mlp_skip()? as f32,
            before: middle,
            after: leaving,
        };
        let block =
            Self { entering, attn_norm, q, k, v, qk_norm, attention, context, attn, mlp_norm, up, mlp };
        Some((block, leaving))
    }

    /// Runs the tokens of `work.stream`, in place; `keys` gets their keys and values after those it holds.
    pub(super) fn forward(&self, span: Span, work: &mut Work, keys: &mut LayerKeys) {
        let (rows, d) = (span.rows(), self.attn.out.weights().outputs());
        let stream = fitted(&mut work.stream, rows * d);
        let x = enter(&self.attn_norm, self.entering, stream, d, &mut work.normed);
        let q = self.q.forward(x, rows, &mut work.q);
        let k = self.k.forward(x, rows, &mut work.k);
        let v = self.v.forward(x, rows, &mut work.v);
        if let Some(norms) = &self.qk_norm {
            let norm = |gain| HeadNorm { gain, eps: norms.eps, eps_inside: norms.eps_inside };
            head_norm_u8(q, self.q.grid, norm(&norms.q.0), norms.q.1);
            head_norm_u8(k, self.k.grid, norm(&norms.k.0), norms.k.1);
        }
        keys.store(k, v, span);
        let attention = IntAttention {
            sequences: span.sequences,
            queries: span.tokens,
            keys: span.past + span.tokens,
            kv_stride: span.capacity,
            ..self.attention
        };
        let context = fitted(&mut work.context, q.len());
        attention.forward_u8(q, keys.keys(), keys.values(), self.context, context);
        self.attn.forward(context, rows, stream);
        let x = enter(&self.mlp_norm, self.attn.after, stream, d, &mut work.normed);
        let hidden = self.up.forward(x, rows, &mut work.hidden);
        self.mlp.forward(hidden, rows, stream);
    }
}

impl Projection {
    fn forward<'a>(&self, x: &[u8], rows: usize, buffer: &'a mut Vec<u8>) -> &'a mut [u8] {
        let w = self.product.weights();
        let out = fitted(buffer, rows * w.outputs());
        let terms = Terms { activation: self.activation, ..self.product.terms() };
        layer_u8(x, rows, w, terms, self.grid, out);
        out
    }
}

impl Branch {
    fn forward(&self, x: &[u8], rows: usize, stream: &mut [u8]) {
        let joint = Joint {
            beta: self.beta.as_deref().map(factors),
            branch: self.grid,
            skip: self.skip,
            stream: self.before,
            sum: self.after,
        };
        layer_onto(x, rows, self.out.weights(), self.out.terms(), joint, stream);
    }
}

/// The norm `name` with its grid, and the grid of what a branch reads: the stream's own where no norm stands.
#[allow(clippy::type_complexity)]
fn normed(
    parts: &mut Ingredients,
    name: &str,
    norm: Norm,
    site: Site,
    stream: Grid,
) -> Option<(Option<(OwnedNorm, Grid)>, Grid)> {
    match parts.norm(name, norm)? {
        Some(norm) => {
            let grid = parts.grid(site)?;
            Some((Some((norm, grid)), grid))
        }
        None => Some((None, stream)),
    }
}

/// β of a branch; `Some(None)` if it is 1.
fn beta(parts: &Ingredients, name: &str) -> Option<Option<Vec<f32>>> {
    let c = parts.config();
    match (c.has_beta(), c.beta_trainable) {
        (false, _) => Some(None),
        (true, true) => parts.vector(name).map(Some),
        (true, false) => Some(Some(vec![c.beta.resolve(c.depth) as f32])),
    }
}

/// What a branch reads of the stream.
fn enter<'a>(
    norm: &Option<(OwnedNorm, Grid)>,
    grid: Grid,
    stream: &'a [u8],
    width: usize,
    buffer: &'a mut Vec<u8>,
) -> &'a [u8] {
    let Some((norm, to)) = norm else { return stream };
    let out = fitted(buffer, stream.len());
    norm_u8(stream, width, grid, norm.kernel(), *to, out);
    out
}
