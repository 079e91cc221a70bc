//! The rows of one head, and what is done to queries and keys before they meet: a norm over the head's channels, then a
//! rotation by position; and back.
//!
//! QK-RMSNorm divides a row by its RMS over d_head, `x / (rms(x) + ε) · gain`, ε outside the root, or inside it,
//! `x / √(mean(x²) + ε) · gain`; with biases it is a LayerNorm, `(x - μ) / √(var + ε) · gain + bias`. One gain (and bias) vector is shared by all heads.
//!
//! A rotation turns the pair of channels (c, c + half) of a row at position t by the angle whose cosine and sine stand in
//! row t of [`Rope`]; channels from 2 · half on stay as they are. It is orthogonal: backwards it turns the other way.

use crate::gemm::View;
use crate::isa::multiversion;
use crate::math;
use crate::threads::{Shared, sum_in_order};

/// Where the rows of one head of one sequence are in a (sequences, tokens, heads · d_head) tensor.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    start: usize,
    stride: usize,
    tokens: usize,
    d_head: usize,
}

impl Rows {
    pub(super) fn new(tokens: usize, heads: usize, d_head: usize, sequence: usize, head: usize) -> Self {
        let stride = heads * d_head;
        Self { start: sequence * tokens * stride + head * d_head, stride, tokens, d_head }
    }

    /// Index of the first element of row `token`.
    pub(super) fn at(self, token: usize) -> usize {
        self.start + token * self.stride
    }

    /// Elements from one row to the next.
    pub(super) fn stride(self) -> usize {
        self.stride
    }

    pub(super) fn view(self, x: &[f32], first: usize, count: usize) -> View<'_> {
        View::strided(&x[self.at(first)..], count, self.d_head, self.stride)
    }

    /// The rows side by side, (tokens, d_head).
    pub(super) fn gathered(self, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.tokens * self.d_head);
        for token in 0..self.tokens {
            out.extend_from_slice(&x[self.at(token)..][..self.d_head]);
        }
        out
    }

    /// Puts rows that are side by side in their places.
    ///
    /// # Safety
    /// The rows must lie inside the buffer, and nobody else may touch them meanwhile.
    pub(super) unsafe fn scatter(self, rows: &[f32], out: &Shared<f32>) {
        for (token, row) in rows.chunks_exact(self.d_head).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.at(self.at(token)), self.d_head) };
        }
    }
}

/// QK-norm: gains of d_head, ε, and the biases that make it a LayerNorm.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a> {
    /// Gain of the queries.
    pub q_gain: &'a [f32],
    /// Gain of the keys.
    pub k_gain: &'a [f32],
    /// Biases of queries and keys: with them a LayerNorm, without an RMSNorm.
    pub biases: Option<(&'a [f32], &'a [f32])>,
    /// Added to the RMS, to the mean square, or to the LayerNorm's variance.
    pub eps: f32,
    /// Whether the RMSNorm has ε inside the root. A LayerNorm always has.
    pub eps_inside: bool,
}

impl QkNorm<'_> {
    fn epsilon(&self) -> Epsilon {
        Epsilon { value: self.eps, inside: self.eps_inside }
    }
}

/// Rotary positions: cosines and sines of the angles of each position, (positions, half) each.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Cosines; at least one row per token.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Pairs of channels that are turned.
    pub half: usize,
}

/// What is done to queries and keys, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prepare<'a> {
    /// A norm over d_head.
    pub norm: Option<QkNorm<'a>>,
    /// A rotation by position.
    pub rope: Option<Rope<'a>>,
}

/// One side of the norm.
#[derive(Clone, Copy)]
struct Affine<'a> {
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: Epsilon,
}

/// ε, and where it stands.
#[derive(Clone, Copy)]
struct Epsilon {
    value: f32,
    inside: bool,
}

impl Epsilon {
    /// 1 / RMS, kept from infinity.
    #[inline(always)]
    fn reciprocal(self, mean_square: f32) -> f32 {
        match self.inside {
            true => 1.0 / (mean_square + self.value).sqrt(),
            false => 1.0 / (mean_square.sqrt() + self.value),
        }
    }
}

/// Gradients of one side's gain and bias; empty where there is none.
#[derive(Default)]
pub(super) struct Gradient {
    pub(super) gain: Vec<f64>,
    pub(super) bias: Vec<f64>,
}

impl Gradient {
    pub(super) fn zero(prepare: Prepare, d_head: usize) -> Self {
        let size = |there: bool| if there { vec![0.0; d_head] } else { Vec::new() };
        let biased = prepare.norm.is_some_and(|n| n.biases.is_some());
        Self { gain: size(prepare.norm.is_some()), bias: size(biased) }
    }

    /// The sums over tasks, in their order.
    pub(super) fn sum(parts: Vec<Self>, d_head: usize) -> Self {
        let (gains, biases): (Vec<_>, Vec<_>) = parts.into_iter().map(|p| (p.gain, p.bias)).unzip();
        Self { gain: sum_in_order(gains, d_head), bias: sum_in_order(biases, d_head) }
    }
}

impl<'a> Prepare<'a> {
    /// Asserts that vectors and tables fit rows of `d_head` at positions below `tokens`.
    pub(super) fn check(self, tokens: usize, d_head: usize) {
        let fits = |x: &[f32]| x.len() == d_head;
        let norm = self.norm.is_none_or(|n| {
            fits(n.q_gain) && fits(n.k_gain) && n.biases.is_none_or(|(q, k)| fits(q) && fits(k))
        });
        assert!(norm, "gains and biases must be d_head long");
        let rope = self.rope.is_none_or(|r| {
            2 * r.half <= d_head && r.cos.len() >= tokens * r.half && r.sin.len() >= tokens * r.half
        });
        assert!(rope, "the table of angles must hold every position");
    }

    /// The head's queries side by side, ready to meet keys; `None` if they are ready as they are.
    pub(super) fn queries(self, rows: Rows, q: &[f32]) -> Option<Vec<f32>> {
        self.prepared(rows, q, self.query_side())
    }

    /// The same of keys.
    pub(super) fn keys(self, rows: Rows, k: &[f32]) -> Option<Vec<f32>> {
        self.prepared(rows, k, self.key_side())
    }

    /// Turns the gradient of prepared queries into that of `q`, in place, and adds to those of gain and bias.
    pub(super) fn queries_backward(self, rows: Rows, q: &[f32], dy: &mut [f32], sums: &mut Gradient) {
        self.prepared_backward(rows, q, self.query_side(), dy, sums);
    }

    /// The same of keys.
    pub(super) fn keys_backward(self, rows: Rows, k: &[f32], dy: &mut [f32], sums: &mut Gradient) {
        self.prepared_backward(rows, k, self.key_side(), dy, sums);
    }

    fn query_side(self) -> Option<Affine<'a>> {
        self.norm.map(|n| Affine { gain: n.q_gain, bias: n.biases.map(|b| b.0), eps: n.epsilon() })
    }

    fn key_side(self) -> Option<Affine<'a>> {
        self.norm.map(|n| Affine { gain: n.k_gain, bias: n.biases.map(|b| b.1), eps: n.epsilon() })
    }

    fn prepared(self, rows: Rows, x: &[f32], side: Option<Affine>) -> Option<Vec<f32>> {
        if side.is_none() && self.rope.is_none() {
            return None;
        }
        let mut out = rows.gathered(x);
        for (token, row) in out.chunks_exact_mut(rows.d_head).enumerate() {
            match side {
                Some(Affine { gain, bias: None, eps }) => rms_row(row, gain, eps),
                Some(Affine { gain, bias: Some(bias), eps }) => layer_row(row, gain, bias, eps.value),
                None => {}
            }
            if let Some(rope) = self.rope {
                rope.turn(row, token, 1.0);
            }
        }
        Some(out)
    }

    fn prepared_backward(
        self,
        rows: Rows,
        x: &[f32],
        side: Option<Affine>,
        dy: &mut [f32],
        sums: &mut Gradient,
    ) {
        for (token, dy) in dy.chunks_exact_mut(rows.d_head).enumerate() {
            if let Some(rope) = self.rope {
                rope.turn(dy, token, -1.0);
            }
            let x = &x[rows.at(token)..][..rows.d_head];
            match side {
                Some(Affine { gain, bias: None, eps }) => rms_row_backward(x, gain, eps, dy, &mut sums.gain),
                Some(Affine { gain, bias: Some(_), eps }) => {
                    layer_row_backward(x, gain, eps.value, dy, sums);
                }
                None => {}
            }
        }
    }
}

impl Rope<'_> {
    /// Turns a row at position `token`; by the opposite angles if `sign` is -1.
    fn turn(self, row: &mut [f32], token: usize, sign: f32) {
        let at = token * self.half..(token + 1) * self.half;
        let (low, high) = row.split_at_mut(self.half);
        turn_pairs(low, &mut high[..self.half], &self.cos[at.clone()], &self.sin[at], sign);
    }
}

multiversion! {
    fn turn_pairs(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for ((a, b), (c, s)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            let (x, y, s) = (*a, *b, sign * s);
            *a = x * c - y * s;
            *b = y * c + x * s;
        }
    }
}

multiversion! {
    fn rms_row(row: &mut [f32], gain: &[f32], eps: Epsilon) {
        let r = eps.reciprocal(math::sum_by(row, |v| v * v) / row.len() as f32);
        for (v, g) in row.iter_mut().zip(gain) {
            *v = *v * r * g;
        }
    }
}

/// With y = x r g, r = 1/(rms + ε): dx = r (dy g) - x r² (Σ dy g x) / (d rms); with ε inside the root 1/r takes the place
/// of rms.
fn rms_row_backward(x: &[f32], gain: &[f32], eps: Epsilon, dy: &mut [f32], d_gain: &mut [f64]) {
    let d = x.len();
    let mean_square = math::sum_by(x, |v| v * v) / d as f32;
    let r = eps.reciprocal(mean_square);
    let rms = if eps.inside { 1.0 / r } else { mean_square.sqrt() };
    for c in 0..d {
        d_gain[c] += (dy[c] * x[c] * r) as f64;
        dy[c] *= gain[c];
    }
    let dot = math::sum_by2(dy, x, |a, b| a * b);
    // At rms = 0 the norm has no derivative; the limit of its first term is used.
    let pull = if rms > 0.0 { dot * r * r / (d as f32 * rms) } else { 0.0 };
    for c in 0..d {
        dy[c] = dy[c] * r - x[c] * pull;
    }
}

/// Mean and 1/√(variance + ε) of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = math::sum_by(x, |v| v) / n;
    let variance = math::sum_by(x, |v| (v - mean) * (v - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

multiversion! {
    fn layer_row(row: &mut [f32], gain: &[f32], bias: &[f32], eps: f32) {
        let (mean, r) = moments(row, eps);
        for ((v, g), b) in row.iter_mut().zip(gain).zip(bias) {
            *v = (*v - mean) * r * g + b;
        }
    }
}

/// With x̂ = (x - μ) r and h = dy g: dx = r (h - mean(h) - x̂ mean(h x̂)).
fn layer_row_backward(x: &[f32], gain: &[f32], eps: f32, dy: &mut [f32], sums: &mut Gradient) {
    let (mean, r) = moments(x, eps);
    let inv = 1.0 / x.len() as f32;
    for c in 0..x.len() {
        sums.gain[c] += (dy[c] * (x[c] - mean) * r) as f64;
        sums.bias[c] += dy[c] as f64;
        dy[c] *= gain[c];
    }
    let mean_h = math::sum_by(dy, |h| h) * inv;
    let mean_hx = math::sum_by2(dy, x, |h, x| h * ((x - mean) * r)) * inv;
    for c in 0..x.len() {
        dy[c] = r * (dy[c] - mean_h - (x[c] - mean) * r * mean_hx);
    }
}
