//! One row of attention scores to probabilities, and the way back.
//!
//! With scaled scores s, capped to C tanh(s / C) if there is a cap: `p = exp(s - lse)`, where lse = log Σ exp over the
//! keys that are seen, and over a null slot of score 0 if there is one. Clipped probabilities are
//! `P = clip((η - γ) p + γ, 0, 1)`.
//!
//! Backward, with dP the gradient of the probabilities: dp = (η - γ) dP where P is not clipped, ds = p (dp - Σ p dp),
//! and for the cap ds (1 - tanh²). Without clipping Σ p dp is the product of the output and its gradient, which costs a
//! row of d_head instead of one of keys; the null slot adds nothing to it, since its value is 0.

use crate::isa::multiversion;
use crate::math;

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Softmax {
    /// exp(s) / Σ exp(s).
    #[default]
    Standard,
    /// exp(s) / (1 + Σ exp(s)): a slot of score and value 0 beside the keys.
    NullSlot,
    /// clip((η - γ) softmax + γ, 0, 1), γ at most 0 and η at least 1.
    Clipped {
        /// γ
        gamma: f32,
        /// η
        eta: f32,
    },
}

/// What happens to a row of raw products q · k.
#[derive(Clone, Copy)]
pub(super) struct ScoreRow {
    pub(super) scale: f32,
    pub(super) softcap: f32,
    pub(super) softmax: Softmax,
}

impl ScoreRow {
    /// Raw products to probabilities in place; entries from `visible` on become 0. Returns log Σ exp.
    pub(super) fn forward(self, row: &mut [f32], visible: usize) -> f32 {
        let mut scale = self.scale;
        if self.softcap > 0.0 {
            cap(&mut row[..visible], scale, self.softcap);
            scale = 1.0;
        }
        let lse = softmax_row(row, visible, scale, self.softmax == Softmax::NullSlot);
        if let Softmax::Clipped { gamma, eta } = self.softmax {
            clip(&mut row[..visible], gamma, eta);
        }
        lse
    }

    /// Raw products to scores in place: scaled, and capped if there is a cap.
    pub(super) fn scaled(self, row: &mut [f32]) {
        match self.softcap > 0.0 {
            true => cap(row, self.scale, self.softcap),
            false => row.iter_mut().for_each(|v| *v *= self.scale),
        }
    }

    /// `scores`, raw products, becomes probabilities; `d_probs` becomes the gradient of the raw products. `dot` is the
    /// product of the output's row and its gradient.
    pub(super) fn backward(
        self,
        scores: &mut [f32],
        d_probs: &mut [f32],
        visible: usize,
        lse: f32,
        dot: f32,
    ) {
        let (seen, hidden) = scores.split_at_mut(visible);
        let (d_seen, d_hidden) = d_probs.split_at_mut(visible);
        hidden.fill(0.0);
        d_hidden.fill(0.0);
        if self.softcap > 0.0 {
            cap(seen, self.scale, self.softcap);
            // The cap's derivative, 1 - (s / C)², belongs to ds: everything before is linear in it.
            let slopes: Vec<f32> =
                seen.iter().map(|s| 1.0 - (s / self.softcap) * (s / self.softcap)).collect();
            self.uncapped_backward(seen, d_seen, 1.0, lse, dot);
            for (d, slope) in d_seen.iter_mut().zip(slopes) {
                *d *= slope * self.scale;
            }
        } else {
            self.uncapped_backward(seen, d_seen, self.scale, lse, dot);
        }
    }

    fn uncapped_backward(self, seen: &mut [f32], d_seen: &mut [f32], scale: f32, lse: f32, dot: f32) {
        match self.softmax {
            Softmax::Standard | Softmax::NullSlot => softmax_row_backward(seen, d_seen, scale, lse, dot),
            Softmax::Clipped { gamma, eta } => clipped_row_backward(seen, d_seen, scale, lse, gamma, eta),
        }
    }
}

multiversion! {
    fn cap(row: &mut [f32], scale: f32, softcap: f32) {
        for v in row {
            *v = softcap * math::tanh(*v * scale / softcap);
        }
    }
}

multiversion! {
    fn clip(row: &mut [f32], gamma: f32, eta: f32) {
        for v in row {
            *v = ((eta - gamma) * *v + gamma).clamp(0.0, 1.0);
        }
    }
}

multiversion! {
    fn softmax_row(row: &mut [f32], visible: usize, scale: f32, null_slot: bool) -> f32 {
        let (seen, hidden) = row.split_at_mut(visible);
        let mut peak = math::max(seen) * scale;
        if null_slot && peak < 0.0 {
            peak = 0.0;
        }
        let (chunks, rest) = seen.as_chunks_mut::<{ math::LANES }>();
        let mut lanes = [0.0f32; math::LANES];
        for chunk in chunks {
            for (v, lane) in chunk.iter_mut().zip(&mut lanes) {
                *v = math::exp(*v * scale - peak);
                *lane += *v;
            }
        }
        // The rest as a chunk of its own: one by one they would take as long as all the others.
        let mut last = [0.0f32; math::LANES];
        last[..rest.len()].copy_from_slice(rest);
        for v in &mut last {
            *v = math::exp(*v * scale - peak);
        }
        rest.copy_from_slice(&last[..rest.len()]);
        let mut sum = math::fold(lanes) + rest.iter().sum::<f32>();
        if null_slot {
            sum += math::exp(-peak);
        }
        let inv = 1.0 / sum;
        for v in seen.iter_mut() {
            *v *= inv;
        }
        hidden.fill(0.0);
        peak + sum.ln()
    }
}

multiversion! {
    fn softmax_row_backward(seen: &mut [f32], d_seen: &mut [f32], scale: f32, lse: f32, dot: f32) {
        for (s, d) in seen.iter_mut().zip(d_seen) {
            let p = math::exp(*s * scale - lse);
            *s = p;
            *d = p * (*d - dot) * scale;
        }
    }
}

multiversion! {
    fn clipped_row_backward(
        seen: &mut [f32],
        d_seen: &mut [f32],
        scale: f32,
        lse: f32,
        gamma: f32,
        eta: f32,
    ) {
        let stretch = eta - gamma;
        for (s, d) in seen.iter_mut().zip(d_seen.iter_mut()) {
            *s = math::exp(*s * scale - lse);
            let stretched = stretch * *s + gamma;
            *d = if (0.0..=1.0).contains(&stretched) { stretch * *d } else { 0.0 };
        }
        let dot = math::sum_by2(seen, d_seen, |p, d| p * d);
        for (s, d) in seen.iter_mut().zip(d_seen) {
            *d = *s * (*d - dot) * scale;
            *s = (stretch * *s + gamma).clamp(0.0, 1.0);
        }
    }
}
