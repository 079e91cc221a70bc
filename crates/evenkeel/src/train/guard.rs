//! The guard: stops a run that has become pointless, and says where it broke.

use crate::error::Result;
use crate::model::{Examples, Transformer};
use crate::slices::slice;
use crate::tap::{Site, Tap};
use crate::tape::Tape;
use candle_core::Tensor;
use std::fmt;

/// Why a run was stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Divergence {
    /// The loss is NaN or infinite.
    NonFiniteLoss {
        /// The first site whose activations are not finite, if the forward pass shows one.
        site: Option<String>,
    },
    /// A gradient is NaN or infinite though the loss is not.
    NonFiniteGradient {
        /// The first parameter whose gradient is not finite.
        parameter: Option<String>,
    },
    /// The loss stayed far above where it began.
    Loss {
        /// The loss now.
        loss: f64,
        /// The limit it stayed above.
        limit: f64,
        /// For how many steps.
        steps: u64,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Divergence::NonFiniteLoss { site: Some(site) } => {
                write!(f, "the loss is not finite; the first non-finite value appeared at {site}")
            }
            Divergence::NonFiniteLoss { site: None } => {
                f.write_str("the loss is not finite, though every activation is")
            }
            Divergence::NonFiniteGradient { parameter } => write!(
                f,
                "a gradient is not finite, first that of {}",
                parameter.as_deref().unwrap_or("an unknown parameter")
            ),
            Divergence::Loss { loss, limit, steps } => {
                write!(f, "the loss is {loss:.3} and has been above {limit:.3} for {steps} steps")
            }
        }
    }
}

/// Watches loss and gradient norm.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Factor on the first loss.
    pub factor: f64,
    /// Steps in a row above it.
    pub patience: u64,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Steps in a row above the limit so far.
    pub count: u64,
}

impl Guard {
    /// Looks at one step's figures before they are used. Names of sites are found by `locate`.
    pub fn check(&mut self, loss: f64, grad_norm: f64) -> Option<Divergence> {
        if !loss.is_finite() {
            return Some(Divergence::NonFiniteLoss { site: None });
        }
        if !grad_norm.is_finite() {
            return Some(Divergence::NonFiniteGradient { parameter: None });
        }
        let limit = self.factor * *self.first_loss.get_or_insert(loss);
        self.count = if loss > limit { self.count + 1 } else { 0 };
        (self.patience > 0 && self.count >= self.patience).then_some(Divergence::Loss {
            loss,
            limit,
            steps: self.count,
        })
    }
}

struct FirstNonFinite(Option<Site>);

impl Tap for FirstNonFinite {
    fn wants(&self, _: Site) -> bool {
        self.0.is_none()
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        if self.0.is_none() && !all_finite(&x)? {
            self.0 = Some(site);
        }
        Ok(x)
    }
}

fn all_finite(x: &Tensor) -> candle_core::Result<bool> {
    Ok(slice(&x.contiguous()?)?.iter().all(|v| v.is_finite()))
}

/// Fills in where the non-finite value appeared: runs the batch again and looks at every site in order, or
/// looks through the gradients.
///
/// # Errors
/// If the forward pass fails.
pub(super) fn locate(
    divergence: Divergence,
    model: &Transformer,
    batch: &Examples,
    gradients: &[Tensor],
) -> Result<Divergence> {
    Ok(match divergence {
        Divergence::NonFiniteLoss { .. } => {
            let mut tap = FirstNonFinite(None);
            for one in batch.micro(1)? {
                model.logits_of(&Tape::off(), &mut tap, &one.input)?;
                if tap.0.is_some() {
                    break;
                }
            }
            Divergence::NonFiniteLoss { site: tap.0.map(|s| s.to_string()) }
        }
        Divergence::NonFiniteGradient { .. } => {
            let mut parameter = None;
            for (p, g) in model.parameters().iter().zip(gradients) {
                if !all_finite(g)? {
                    parameter = Some(p.name.clone());
                    break;
                }
            }
            Divergence::NonFiniteGradient { parameter }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_and_recovery() {
        let mut guard = Guard { factor: 1.5, patience: 2, first_loss: None, count: 0 };
        assert_eq!(guard.check(4.0, 1.0), None);
        assert_eq!(guard.check(7.0, 1.0), None);
        assert_eq!(guard.check(5.0, 1.0), None);
        assert_eq!(guard.check(7.0, 1.0), None);
        assert!(matches!(guard.check(7.0, 1.0), Some(Divergence::Loss { steps: 2, .. })));
        assert!(matches!(guard.check(f64::NAN, 1.0), Some(Divergence::NonFiniteLoss { .. })));
        assert!(matches!(guard.check(1.0, f64::INFINITY), Some(Divergence::NonFiniteGradient { .. })));
    }
}
