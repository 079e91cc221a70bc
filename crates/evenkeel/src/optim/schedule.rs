//! Learning rate as a function of the step.
//!
//! With w steps of warm-up, n steps in all, peak η and final fraction f, for step s = 0, 1, ...:
//!
//! ```text
//! warm-up        s < w    η (s + 1) / w
//! then, with progress x = (s - w) / (n - w):
//! constant                η
//! linear                  η (f + (1 - f) (1 - x))
//! cosine                  η (f + (1 - f) (1 + cos πx) / 2)
//! wsd                     η, and in the last d = `decay_fraction` · n steps a straight line to f η
//! inverse_sqrt            η max(f, √(w / s)), with w at least 1
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The peak, for ever.
    Constant,
    /// A straight line from the peak to its final fraction.
    Linear,
    /// Half a cosine from the peak to its final fraction.
    Cosine,
    /// Warm-up, stable, decay: the peak, and near the end a straight line to its final fraction.
    Wsd,
    /// Falls as one over the square root of the step, no lower than the final fraction.
    InverseSqrt,
}

/// A warm-up followed by one of the shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Learning rate at the end of the warm-up.
    pub peak: f64,
    /// Steps of linear warm-up; step 0 already moves.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// Share of all steps in which [`ScheduleKind::Wsd`] decays.
    pub decay_fraction: f64,
    /// Learning rate after the last step over the peak.
    pub final_fraction: f64,
}

impl Schedule {
    /// The rate for step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        // How far a fall from `first` to the last step has come.
        let progress = |first: u64| {
            let span = self.steps.saturating_sub(first).max(1);
            (step.saturating_sub(first) as f64 / span as f64).min(1.0)
        };
        let shape = match self.kind {
            ScheduleKind::Constant => return self.peak,
            ScheduleKind::Linear => 1.0 - progress(self.warmup),
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress(self.warmup)).cos()),
            ScheduleKind::Wsd => {
                let decay = (self.decay_fraction * self.steps as f64).round() as u64;
                1.0 - progress(self.steps.saturating_sub(decay).max(self.warmup))
            }
            ScheduleKind::InverseSqrt => {
                let root = (self.warmup.max(1) as f64 / step.max(1) as f64).sqrt();
                return self.peak * root.max(self.final_fraction);
            }
        };
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_known_steps() {
        let s = Schedule {
            kind: ScheduleKind::Linear,
            peak: 1.0,
            warmup: 10,
            steps: 110,
            decay_fraction: 0.2,
            final_fraction: 0.1,
        };
        assert_eq!(s.lr(0), 0.1);
        assert_eq!(s.lr(9), 1.0);
        assert_eq!(s.lr(10), 1.0);
        assert!((s.lr(60) - 0.55).abs() < 1e-12);
        assert!((s.lr(110) - 0.1).abs() < 1e-12);
        assert!((s.lr(10_000) - 0.1).abs() < 1e-12);
        let c = Schedule { kind: ScheduleKind::Cosine, ..s };
        assert!((c.lr(60) - 0.55).abs() < 1e-12);
        assert!(c.lr(35) > s.lr(35));
        let flat = Schedule { kind: ScheduleKind::Constant, warmup: 0, ..s };
        assert_eq!((flat.lr(0), flat.lr(109)), (1.0, 1.0));
        // 22 steps of decay, from step 88 on.
        let wsd = Schedule { kind: ScheduleKind::Wsd, ..s };
        assert_eq!((wsd.lr(10), wsd.lr(88)), (1.0, 1.0));
        assert!((wsd.lr(99) - 0.55).abs() < 1e-12 && (wsd.lr(110) - 0.1).abs() < 1e-12);
        let all = Schedule { decay_fraction: 1.0, ..wsd };
        assert!((0..120).all(|step| all.lr(step) == s.lr(step)));
        let root = Schedule { kind: ScheduleKind::InverseSqrt, ..s };
        assert_eq!((root.lr(9), root.lr(10), root.lr(40)), (1.0, 1.0, 0.5));
        assert_eq!(root.lr(100_000), 0.1);
    }
}
