//! What each attention head does: how spread its probabilities are, how large its logits, how much goes to
//! token 0.
//!
//! Entropy that collapses is what OP's regulator guards against; a head that gives its mass to the first
//! token (an "attention sink") is where massive activations come from. The heads' matrices exist only in the
//! composed form of attention, which is slow and holds heads × T × T numbers per sequence: look at one batch,
//! not at a corpus.

use super::finite;
use super::site::plain;
use crate::slices::slice;
use crate::tap::{Place, Site, Tap};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Figures of one head; undefined if what it saw was not finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadReport {
    /// Block.
    pub layer: usize,
    /// Head in the block.
    pub head: usize,
    /// Mean over queries of -Σ_j p_j ln p_j, with 0 ln 0 = 0: from 0 (one token) to ln T (all alike).
    pub entropy: Option<f64>,
    /// Largest scaled score a query has with a token it may look at.
    pub max_logit: Option<f64>,
    /// Mean over queries of the probability of token 0. A causal query 0 has no choice: it counts 1.
    pub mass_first: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Sums {
    queries: u64,
    entropy: f64,
    mass_first: f64,
    max_logit: f64,
}

/// Gathers [`HeadReport`]s; changes nothing.
pub struct AttentionTap {
    causal: bool,
    heads: BTreeMap<(usize, usize), Sums>,
}

impl AttentionTap {
    /// For models in which a token sees those before it and itself (`causal`), or all.
    pub fn new(causal: bool) -> Self {
        Self { causal, heads: BTreeMap::new() }
    }

    fn sums(&mut self, layer: usize, head: usize) -> &mut Sums {
        self.heads.entry((layer, head)).or_insert(Sums {
            queries: 0,
            entropy: 0.0,
            mass_first: 0.0,
            max_logit: f64::NEG_INFINITY,
        })
    }

    /// Adds probabilities of block `layer`, of shape (sequences, `heads`, `tokens`, `tokens`).
    pub fn add_probs(&mut self, layer: usize, probs: &[f32], heads: usize, tokens: usize) {
        for (i, matrix) in matrices(probs, tokens) {
            let (mut entropy, mut mass_first) = (0.0, 0.0);
            for row in matrix.chunks_exact(tokens) {
                // p ln p is 0 at 0 and NaN where p is.
                let term = |&p: &f32| if p == 0.0 { 0.0 } else { -f64::from(p) * f64::from(p).ln() };
                entropy += row.iter().map(term).sum::<f64>();
                mass_first += f64::from(row[0]);
            }
            let sums = self.sums(layer, i % heads);
            sums.queries += tokens as u64;
            sums.entropy += entropy;
            sums.mass_first += mass_first;
        }
    }

    /// Adds scores of block `layer`, scaled and before the mask, of the same shape.
    pub fn add_scores(&mut self, layer: usize, scores: &[f32], heads: usize, tokens: usize) {
        let causal = self.causal;
        for (i, matrix) in matrices(scores, tokens) {
            let sums = self.sums(layer, i % heads);
            for (query, row) in matrix.chunks_exact(tokens).enumerate() {
                let seen = if causal { &row[..=query] } else { row };
                for &score in seen {
                    let score = f64::from(score);
                    if score > sums.max_logit || score.is_nan() {
                        sums.max_logit = score;
                    }
                }
            }
        }
    }

    /// The figures, by block and head.
    pub fn reports(&self) -> Vec<HeadReport> {
        let report = |(&(layer, head), sums): (&(usize, usize), &Sums)| HeadReport {
            layer,
            head,
            entropy: finite(sums.entropy / sums.queries as f64),
            max_logit: finite(sums.max_logit),
            mass_first: finite(sums.mass_first / sums.queries as f64),
        };
        self.heads.iter().map(report).collect()
    }
}

/// The T × T matrices with their number, sequence by sequence and head by head.
fn matrices(x: &[f32], tokens: usize) -> impl Iterator<Item = (usize, &[f32])> {
    x.chunks_exact((tokens * tokens).max(1)).enumerate()
}

impl Tap for AttentionTap {
    fn wants(&self, site: Site) -> bool {
        matches!(site.place, Place::AttnScores | Place::AttnProbs)
    }

    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let (_, heads, _, tokens) = x.dims4()?;
        let plain = plain(&x)?;
        // These places are inside blocks.
        let layer = site.layer.unwrap_or(0);
        match site.place {
            Place::AttnScores => self.add_scores(layer, &slice(&plain)?, heads, tokens),
            _ => self.add_probs(layer, &slice(&plain)?, heads, tokens),
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_heads_by_hand() {
        let mut tap = AttentionTap::new(true);
        // Head 0 looks at token 0 only; head 1 is even. Scores above the diagonal do not count.
        tap.add_probs(3, &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.5, 0.5], 2, 2);
        tap.add_scores(3, &[-1.0, 99.0, -2.0, -3.0, 0.5, 99.0, 0.25, 0.75], 2, 2);
        let [a, b] = tap.reports()[..] else { panic!() };
        assert_eq!((a.layer, a.head, b.head), (3, 0, 1));
        assert_eq!((a.entropy, a.max_logit, a.mass_first), (Some(0.0), Some(-1.0), Some(1.0)));
        assert_eq!((b.max_logit, b.mass_first), (Some(0.75), Some(0.75)));
        assert!((b.entropy.unwrap() - 2.0f64.ln() / 2.0).abs() < 1e-12);
        let mut all = AttentionTap::new(false);
        all.add_scores(0, &[-1.0, 99.0, -2.0, -3.0], 1, 2);
        assert_eq!((all.reports()[0].max_logit, all.reports()[0].entropy), (Some(99.0), None));
    }

    #[test]
    fn nan_is_undefined() {
        let mut tap = AttentionTap::new(true);
        tap.add_probs(0, &[f32::NAN, 0.0, 0.5, 0.5], 1, 2);
        tap.add_scores(0, &[f32::NAN, 0.0, 7.0, 0.5], 1, 2);
        let report = tap.reports()[0];
        assert_eq!((report.entropy, report.max_logit, report.mass_first), (None, None, None));
    }
}
