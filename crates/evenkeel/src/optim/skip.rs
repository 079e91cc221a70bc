//! Leaving out steps whose gradients would do harm: those that are not finite, and spikes.
//!
//! A spike is a gradient norm above `spike_factor` times the average of the norms of the steps that were taken, an
//! exponential one with decay 0.98 and corrected for bias, once there are 20. After `patience` steps left out in a row a
//! spike is taken all the same and the average begins anew, since it was wrong; a step that is not finite ends the run.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Decay of the average.
const DECAY: f64 = 0.98;
/// Steps that the average needs before it judges.
const YOUNG: u64 = 20;

/// What a run remembers of its gradient norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SkipState {
    /// Exponential sum of the norms of steps taken.
    pub average: f64,
    /// Steps taken.
    pub taken: u64,
    /// Steps left out.
    pub skipped: u64,
    /// Steps left out in a row.
    pub in_a_row: u64,
}

/// When steps are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SkipRule {
    /// Whether steps that are not finite are left out.
    pub nonfinite: bool,
    /// Factor on the average norm; 0 lets every spike pass.
    pub spike_factor: f64,
    /// Steps in a row that may be left out.
    pub patience: u64,
}

/// Why a step was left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skipped {
    /// Its loss or gradient norm is not finite.
    NonFinite,
    /// Its gradient norm is a spike.
    Spike {
        /// Gradient norm.
        norm: f64,
        /// The bound it is above.
        limit: f64,
    },
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Skipped::NonFinite => f.write_str("its loss or gradient is not finite"),
            Skipped::Spike { norm, limit } => write!(f, "its gradient norm {norm:.3} is above {limit:.3}"),
        }
    }
}

impl SkipRule {
    /// Judges a step by its figures and remembers them.
    pub fn judge(&self, state: &mut SkipState, loss: f64, norm: f64) -> Option<Skipped> {
        let found = match loss.is_finite() && norm.is_finite() {
            false => self.nonfinite.then_some(Skipped::NonFinite),
            true => {
                let corrected = state.average / (1.0 - DECAY.powf(state.taken.max(1) as f64));
                let limit = self.spike_factor * corrected;
                let judges = self.spike_factor > 0.0 && state.taken >= YOUNG;
                (judges && norm > limit).then_some(Skipped::Spike { norm, limit })
            }
        };
        if found.is_some() && state.in_a_row < self.patience {
            state.skipped += 1;
            state.in_a_row += 1;
            return found;
        }
        state.in_a_row = 0;
        if matches!(found, Some(Skipped::Spike { .. })) {
            (state.average, state.taken) = (0.0, 0);
        }
        if norm.is_finite() {
            state.average = DECAY * state.average + (1.0 - DECAY) * norm;
            state.taken += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_are_left_out_for_a_while_and_what_is_not_finite_too() {
        let rule = SkipRule { nonfinite: true, spike_factor: 3.0, patience: 2 };
        let mut state = SkipState::default();
        for _ in 0..YOUNG {
            assert_eq!(rule.judge(&mut state, 1.0, 2.0), None);
        }
        assert!((state.average / (1.0 - DECAY.powi(20)) - 2.0).abs() < 1e-12);
        assert_eq!(rule.judge(&mut state, 1.0, 5.9), None);
        let before = state;
        assert!(matches!(rule.judge(&mut state, 1.0, 7.0), Some(Skipped::Spike { norm: 7.0, .. })));
        assert_eq!(rule.judge(&mut state, f64::NAN, 1.0), Some(Skipped::NonFinite));
        assert_eq!((state.skipped, state.in_a_row), (2, 2));
        assert_eq!((state.average, state.taken), (before.average, before.taken));
        // The third in a row is taken, and the average learns of it.
        assert_eq!(rule.judge(&mut state, 1.0, 70.0), None);
        assert_eq!(state.in_a_row, 0);
        assert_eq!(state.taken, 1);
        let off = SkipRule { nonfinite: false, spike_factor: 0.0, patience: 10 };
        assert_eq!(off.judge(&mut state, f64::NAN, f64::NAN), None);
        assert_eq!(off.judge(&mut state, 1.0, 1e9), None);
    }
}
