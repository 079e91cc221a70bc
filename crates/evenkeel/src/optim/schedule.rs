//! Learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// Shape after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The peak, for ever.
    Constant,
    /// A straight line from the peak to its final fraction.
    Linear,
    /// Half a cosine from the peak to its final fraction.
    Cosine,
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
    /// Learning rate after the last step over the peak.
    pub final_fraction: f64,
}

impl Schedule {
    /// The rate for step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        let shape = match self.kind {
            ScheduleKind::Constant => return self.peak,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_known_steps() {
        let s =
            Schedule { kind: ScheduleKind::Linear, peak: 1.0, warmup: 10, steps: 110, final_fraction: 0.1 };
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
    }
}
