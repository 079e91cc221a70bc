//! Two models' predictions of the same tokens, side by side.

use rayon::prelude::*;

/// Sums over tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Comparison {
    /// Tokens compared.
    pub(super) tokens: u64,
    float_loss: f64,
    quantised_loss: f64,
    kl: f64,
    agreements: u64,
}

impl Comparison {
    /// Adds logits (tokens, vocab) of both and the tokens that came.
    pub(super) fn add(&mut self, float: &[f32], quantised: &[f32], targets: &[u32], vocab: usize) {
        let rows: Vec<(f64, f64, f64, bool)> = float
            .par_chunks(vocab)
            .zip(quantised.par_chunks(vocab))
            .zip(targets)
            .map(|((f, q), &target)| compare_row(f, q, target as usize))
            .collect();
        for (f, q, kl, same) in rows {
            self.tokens += 1;
            self.float_loss += f;
            self.quantised_loss += q;
            self.kl += kl;
            self.agreements += same as u64;
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }

    /// Mean cross-entropy of the float model, nats.
    pub(super) fn float_loss(&self) -> f64 {
        self.mean(self.float_loss)
    }

    /// Mean cross-entropy of the quantised model, nats.
    pub(super) fn quantised_loss(&self) -> f64 {
        self.mean(self.quantised_loss)
    }

    /// Mean KL(float ‖ quantised), nats.
    pub(super) fn kl(&self) -> f64 {
        self.mean(self.kl)
    }

    /// Share of tokens with the same most likely successor.
    pub(super) fn agreement(&self) -> f64 {
        self.mean(self.agreements as f64)
    }
}

/// Losses of both, KL(float ‖ quantised), and whether the most likely token is the same.
fn compare_row(f: &[f32], q: &[f32], target: usize) -> (f64, f64, f64, bool) {
    let ((best_f, lse_f), (best_q, lse_q)) = (log_sum_exp(f), log_sum_exp(q));
    let kl = f
        .iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (a as f64 - lse_f, b as f64 - lse_q);
            a.exp() * (a - b)
        })
        .sum::<f64>();
    (lse_f - f[target] as f64, lse_q - q[target] as f64, kl, best_f == best_q)
}

/// The first of the largest entries, and ln Σ exp(x).
pub(super) fn log_sum_exp(x: &[f32]) -> (usize, f64) {
    let (best, peak) = x
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |(i, m), (j, &v)| if v > m { (j, v) } else { (i, m) });
    let sum: f64 = x.iter().map(|&v| ((v - peak) as f64).exp()).sum();
    (best, peak as f64 + sum.ln())
}
