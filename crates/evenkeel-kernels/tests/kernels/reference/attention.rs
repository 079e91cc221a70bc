//! Softmax attention with optional QK-RMSNorm, one score at a time.
//!
//! How errors flow: a score is off by the product's bound; with η = max_j |scale| Σ|q||k_j|, the exponent that goes
//! into the softmax is off by δ = η (bound + 5 u), a probability relatively by e^{2δ} - 1 and the roundings of the
//! sum. Everything after that is linear, so the errors are sums of the same products with absolute values.

use super::{Expected, U, depth, product_bound};
use evenkeel_kernels::attention::{Shape, Softmax};

/// One call.
#[derive(Clone)]
pub(crate) struct Attention {
    pub(crate) shape: Shape,
    pub(crate) q: Vec<f64>,
    pub(crate) k: Vec<f64>,
    pub(crate) v: Vec<f64>,
    /// Gains of queries and keys, and ε.
    pub(crate) qk_norm: Option<(Vec<f64>, Vec<f64>, f64)>,
}

/// What flows back.
pub(crate) struct Gradients {
    pub(crate) q: Expected,
    pub(crate) k: Expected,
    pub(crate) v: Expected,
    pub(crate) gains: Option<(Expected, Expected)>,
}

/// One head of one sequence. Rows are tokens.
struct Head {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    /// Softmax of each row over the keys it sees.
    probs: Vec<Vec<f64>>,
    /// Relative error of a row's probabilities in the forward and in the backward.
    forward_error: Vec<f64>,
    backward_error: Vec<f64>,
    lse: Expected,
    out: Vec<Expected>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_abs(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

fn rms(x: &[f64]) -> f64 {
    (dot(x, x) / x.len() as f64).sqrt()
}

impl Attention {
    fn at(&self, b: usize, h: usize, t: usize) -> usize {
        ((b * self.shape.tokens + t) * self.shape.heads + h) * self.shape.d_head
    }

    fn rows(&self, x: &[f64], b: usize, h: usize) -> Vec<Vec<f64>> {
        (0..self.shape.tokens).map(|t| x[self.at(b, h, t)..][..self.shape.d_head].to_vec()).collect()
    }

    fn normed(&self, x: &[f64], b: usize, h: usize, gain: Option<&Vec<f64>>) -> Vec<Vec<f64>> {
        let mut rows = self.rows(x, b, h);
        if let (Some(gain), Some((_, _, eps))) = (gain, &self.qk_norm) {
            for row in &mut rows {
                let r = 1.0 / (rms(row) + eps);
                row.iter_mut().zip(gain).for_each(|(v, g)| *v *= r * g);
            }
        }
        rows
    }

    /// Relative error of a normalised query or key.
    fn norm_error(&self) -> f64 {
        if self.qk_norm.is_some() { (0.5 * depth(self.shape.d_head) + 6.0) * U } else { 0.0 }
    }

    fn head(&self, b: usize, h: usize) -> Head {
        let s = self.shape;
        let scale = s.scale as f64;
        let norm = self.qk_norm.as_ref();
        let q = self.normed(&self.q, b, h, norm.map(|n| &n.0));
        let k = self.normed(&self.k, b, h, norm.map(|n| &n.1));
        let v = self.rows(&self.v, b, h);
        let mut head = Head {
            q,
            k,
            v,
            probs: Vec::new(),
            forward_error: Vec::new(),
            backward_error: Vec::new(),
            lse: Expected::default(),
            out: Vec::new(),
        };
        for i in 0..s.tokens {
            let keys = if s.causal { i + 1 } else { s.tokens };
            let z: Vec<f64> = (0..keys).map(|j| scale * dot(&head.q[i], &head.k[j])).collect();
            let eta = (0..keys).map(|j| scale.abs() * dot_abs(&head.q[i], &head.k[j])).fold(0.0, f64::max);
            let peak = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| (z - peak).exp()).sum();
            let lse = peak + sum.ln();
            let probs: Vec<f64> = z.iter().map(|z| (z - lse).exp()).collect();
            let roundings = (depth(keys) + 12.0) * U;
            let delta = eta * (product_bound(s.compute, s.d_head) + 2.1 * self.norm_error() + 5.0 * U);
            let forward_error = (2.0 * delta).exp_m1() + roundings;
            let lse_error = delta + roundings + 3.0 * U * (eta + lse.abs());
            let backward_error = (delta + lse_error + 2.0 * U * (eta + lse.abs())).exp_m1() + 6.0 * U;
            let mut out = Expected::default();
            for c in 0..s.d_head {
                let (mut value, mut size) = (0.0, 0.0);
                let mut largest = 0.0f64;
                for (p, v) in probs.iter().zip(&head.v) {
                    value += p * v[c];
                    size += (p * v[c]).abs();
                    largest = largest.max(v[c].abs());
                }
                let relative = forward_error + 1.05 * product_bound(s.compute, s.tokens);
                // The last term: e^x below 2⁻¹²⁶ counts as zero.
                out.push(value, relative * size + 2e-38 * keys as f64 * largest);
            }
            head.probs.push(probs);
            head.forward_error.push(forward_error);
            head.backward_error.push(backward_error);
            head.lse.push(lse, lse_error);
            head.out.push(out);
        }
        head
    }

    /// The output and log Σ exp.
    pub(crate) fn forward(&self) -> (Expected, Expected) {
        let s = self.shape;
        let mut out = Expected::zeros(self.q.len());
        let mut lse = Expected::default();
        for (b, h) in heads(s) {
            let head = self.head(b, h);
            for (t, row) in head.out.iter().enumerate() {
                place(&mut out, self.at(b, h, t), row);
            }
            lse.value.extend(head.lse.value);
            lse.error.extend(head.lse.error);
        }
        (out, lse)
    }

    /// The gradients of Σ d_out · out.
    pub(crate) fn backward(&self, d_out: &[f64]) -> Gradients {
        let s = self.shape;
        let (d, n) = (s.d_head, self.q.len());
        let mut all = Gradients {
            q: Expected::zeros(n),
            k: Expected::zeros(n),
            v: Expected::zeros(n),
            gains: self.qk_norm.as_ref().map(|_| (Expected::zeros(d), Expected::zeros(d))),
        };
        let scale = s.scale as f64;
        let product = product_bound(s.compute, s.tokens) + 2.0 * self.norm_error();
        for (b, h) in heads(s) {
            let head = self.head(b, h);
            let d_out = self.rows(d_out, b, h);
            let none = || vec![Expected::zeros(d); s.tokens];
            let (mut dq, mut dk, mut dv) = (none(), none(), none());
            for i in 0..s.tokens {
                let total = dot(&d_out[i], &head.out[i].value);
                let total_error = dot_abs(&d_out[i], &head.out[i].error)
                    + (depth(d) + 2.0) * U * dot_abs(&d_out[i], &head.out[i].value);
                for (j, &p) in head.probs[i].iter().enumerate() {
                    let dp = dot(&d_out[i], &head.v[j]);
                    let dp_error = product_bound(s.compute, d) * dot_abs(&d_out[i], &head.v[j]);
                    let ds = p * (dp - total) * scale;
                    let relative = head.backward_error[i] + 3.0 * U;
                    let ds_error = scale.abs()
                        * (p * (relative * (dp.abs() + total.abs()) + dp_error + total_error)
                            + 2e-38 * (dp.abs() + total.abs()));
                    for c in 0..d {
                        let add = |to: &mut Expected, a: f64, error: f64, b: f64| {
                            to.value[c] += a * b;
                            to.error[c] += 1.05 * (error + product * a.abs()) * b.abs();
                        };
                        add(&mut dq[i], ds, ds_error, head.k[j][c]);
                        add(&mut dk[j], ds, ds_error, head.q[i][c]);
                        add(&mut dv[j], p, relative * p + 2e-38, d_out[i][c]);
                    }
                }
            }
            if let (Some((q_gain, k_gain, eps)), Some(sums)) = (&self.qk_norm, &mut all.gains) {
                for t in 0..s.tokens {
                    let at = self.at(b, h, t);
                    through_norm(&self.q[at..][..d], q_gain, *eps, &mut dq[t], &mut sums.0);
                    through_norm(&self.k[at..][..d], k_gain, *eps, &mut dk[t], &mut sums.1);
                }
            }
            for t in 0..s.tokens {
                let at = self.at(b, h, t);
                place(&mut all.q, at, &dq[t]);
                place(&mut all.k, at, &dk[t]);
                place(&mut all.v, at, &dv[t]);
            }
        }
        all
    }
}

fn heads(s: Shape) -> impl Iterator<Item = (usize, usize)> {
    (0..s.sequences).flat_map(move |b| (0..s.heads).map(move |h| (b, h)))
}

fn place(all: &mut Expected, at: usize, row: &Expected) {
    all.value[at..at + row.value.len()].copy_from_slice(&row.value);
    all.error[at..at + row.error.len()].copy_from_slice(&row.error);
}

/// y = x r g with r = 1/(rms + ε): dx = r g dy - x r² Σ(dy g x) / (d rms), and the gain gets dy x r.
fn through_norm(x: &[f64], gain: &[f64], eps: f64, dy: &mut Expected, gain_sum: &mut Expected) {
    let d = x.len();
    let (root, roundings) = (rms(x), (2.0 * depth(d) + 14.0) * U);
    let r = 1.0 / (root + eps);
    let (mut dot, mut size, mut error) = (0.0, 0.0, 0.0);
    for c in 0..d {
        gain_sum.value[c] += dy.value[c] * x[c] * r;
        gain_sum.error[c] += (dy.error[c] + roundings * dy.value[c].abs()) * x[c].abs() * r;
        dot += dy.value[c] * gain[c] * x[c];
        size += (dy.value[c] * gain[c] * x[c]).abs();
        error += (dy.error[c] * gain[c] * x[c]).abs();
    }
    let pull = r * r / (d as f64 * root);
    for c in 0..d {
        let direct = r * gain[c].abs();
        dy.error[c] = direct * (dy.error[c] + roundings * dy.value[c].abs())
            + x[c].abs() * pull * (error + roundings * size);
        dy.value[c] = r * gain[c] * dy.value[c] - x[c] * pull * dot;
    }
}

#[test]
fn reference_gradients_are_the_derivatives_of_the_reference_forward() {
    use super::{numeric_gradient, same_gradient, wide};
    use crate::common::fill;
    use evenkeel_kernels::gemm::Compute;
    for causal in [false, true] {
        let shape = Shape {
            sequences: 1,
            tokens: 4,
            heads: 2,
            kv_heads: 2,
            d_head: 3,
            causal,
            window: 0,
            scale: 0.7,
            softcap: 0.0,
            softmax: Softmax::Standard,
            compute: Compute::F32,
        };
        let case = Attention {
            shape,
            q: wide(&fill(24, 1)),
            k: wide(&fill(24, 2)),
            v: wide(&fill(24, 3)),
            qk_norm: Some((wide(&fill(3, 4)), wide(&fill(3, 5)), 1e-2)),
        };
        let d_out = wide(&fill(24, 6));
        let loss = |case: Attention| dot(&case.forward().0.value, &d_out);
        let got = case.backward(&d_out);
        let numeric = |x: &[f64], with: &dyn Fn(&mut Attention, Vec<f64>)| {
            numeric_gradient(x, |x| {
                let mut case = case.clone();
                with(&mut case, x.to_vec());
                loss(case)
            })
        };
        same_gradient("q", &got.q.value, &numeric(&case.q, &|c, x| c.q = x));
        same_gradient("k", &got.k.value, &numeric(&case.k, &|c, x| c.k = x));
        same_gradient("v", &got.v.value, &numeric(&case.v, &|c, x| c.v = x));
        let (q_gain, k_gain) = got.gains.unwrap();
        let norm = case.qk_norm.clone().unwrap();
        same_gradient("q gain", &q_gain.value, &numeric(&norm.0, &|c, x| c.qk_norm.as_mut().unwrap().0 = x));
        same_gradient("k gain", &k_gain.value, &numeric(&norm.1, &|c, x| c.qk_norm.as_mut().unwrap().1 = x));
    }
}
