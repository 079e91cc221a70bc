//! Repairs: what users of int8 do to a trained model with outliers, so that what training without them saves can be seen.
//!
//! [`smooth()`] (SmoothQuant) and [`rotate()`] (Hadamard) change the float model without changing its function; [`gptq`] rounds
//! weights so that what the matrices give stays close, [`bias`] takes out the mean error that is left. They apply in this
//! order: rotate, smooth, calibrate, GPTQ, bias correction. A rotation would put gains back that smoothing has made.
//! None knows a scheme of quantisation: what rounds weights is a [`Rounding`].

pub mod bias;
mod calibration;
pub mod gptq;
mod hadamard;
pub mod rotate;
pub mod smooth;
mod weights;

#[cfg(test)]
mod testing;

pub use bias::{BiasReport, bias_correction};
pub use calibration::{Calibration, InputStatistics};
pub use gptq::{GptqOptions, GptqSite};
pub use rotate::{Rotated, rotate};
pub use smooth::{SmoothSite, Smoothed, smooth};

use crate::error::Hint;
use crate::model::{Input, ModelError, Transformer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Strength of SmoothQuant if none is given, the paper's.
pub const SMOOTH_ALPHA: f64 = 0.5;

/// Seed of the random signs of a rotation.
const SIGNS: u64 = 0;

/// A repair by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repair {
    /// `hadamard`: the stream and the values are rotated. Needs nothing.
    Rotate,
    /// `smoothquant` or `smoothquant=0.7`: outlier channels move into the weights. Needs calibration.
    Smooth {
        /// Strength between 0 and 1.
        alpha: f64,
    },
    /// `gptq` or `gptq=0.05`: weights are rounded column by column. Needs calibration and a rounding.
    Gptq(GptqOptions),
    /// `bias-correction`: biases take the mean error of the rounded matrices. Needs calibration and a rounding.
    Bias,
}

impl Repair {
    /// Its name without a number.
    pub fn name(self) -> &'static str {
        match self {
            Repair::Rotate => "hadamard",
            Repair::Smooth { .. } => "smoothquant",
            Repair::Gptq(_) => "gptq",
            Repair::Bias => "bias-correction",
        }
    }

    /// Whether it wants the model to be run on data.
    pub fn needs_calibration(self) -> bool {
        self != Repair::Rotate
    }

    /// Whether it is a matter of how weights are rounded, and not of the float model.
    pub fn needs_rounding(self) -> bool {
        matches!(self, Repair::Gptq(_) | Repair::Bias)
    }
}

impl FromStr for Repair {
    type Err = RepairError;

    fn from_str(text: &str) -> Result<Self, RepairError> {
        let (name, number) = text.split_once('=').map_or((text, None), |(name, number)| (name, Some(number)));
        let number = |default: f64, range: std::ops::RangeInclusive<f64>| match number {
            None => Ok(default),
            Some(given) => {
                given.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| RepairError::Number {
                    repair: name.into(),
                    given: given.into(),
                    low: *range.start(),
                    high: *range.end(),
                })
            }
        };
        match (name, text.contains('=')) {
            ("smoothquant", _) => Ok(Repair::Smooth { alpha: number(SMOOTH_ALPHA, 0.0..=1.0)? }),
            ("gptq", _) => {
                let options = GptqOptions::default();
                Ok(Repair::Gptq(GptqOptions { damp: number(options.damp, 1e-6..=1e3)?, ..options }))
            }
            ("hadamard", false) => Ok(Repair::Rotate),
            ("bias-correction", false) => Ok(Repair::Bias),
            _ => Err(RepairError::Unknown { name: text.into() }),
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Repair::Smooth { alpha } => write!(f, "smoothquant={alpha}"),
            Repair::Gptq(options) => write!(f, "gptq={}", options.damp),
            Repair::Rotate | Repair::Bias => f.write_str(self.name()),
        }
    }
}

/// A repair that cannot be made.
#[derive(Debug, Error)]
pub enum RepairError {
    /// No repair of that name.
    #[error(
        "there is no repair named \"{name}\"; known are \"smoothquant\", \"smoothquant=ALPHA\", \"hadamard\", \"gptq\", \
         \"gptq=DAMP\" and \"bias-correction\""
    )]
    Unknown {
        /// As given.
        name: String,
    },
    /// A number out of its range.
    #[error("{repair}={given} must be a number between {low} and {high}")]
    Number {
        /// The repair.
        repair: String,
        /// As given.
        given: String,
        /// Smallest.
        low: f64,
        /// Largest.
        high: f64,
    },
    /// No calibration data.
    #[error("the repair needs at least one batch of calibration data")]
    NoCalibration,
    /// A site that the calibration did not reach.
    #[error("{site} was not reached in calibration, so its inputs are unknown")]
    Uncalibrated {
        /// The site.
        site: String,
    },
    /// NaN or infinity.
    #[error("{name} holds values that are not finite, so it cannot be repaired")]
    NonFinite {
        /// Site or parameter.
        name: String,
    },
    /// A model that a rotation would change.
    #[error(
        "the model cannot be rotated without changing what it computes: model.{key} stands in the way, since {why}"
    )]
    NotRotatable {
        /// The key below `[model]`.
        key: &'static str,
        /// What about it.
        why: &'static str,
    },
    /// A Gram matrix that has no Cholesky factor.
    #[error(
        "the inputs at {site} have a Gram matrix that is not positive definite, so they cannot guide the rounding"
    )]
    NotPositive {
        /// The site.
        site: String,
    },
    /// The model cannot be run or put together.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tensor library refused.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Hint for RepairError {
    fn hint(&self) -> String {
        match self {
            RepairError::Unknown { .. } => "use one of these names".into(),
            RepairError::Number { repair, .. } => format!("leave the number out: \"{repair}\" has a default"),
            RepairError::NoCalibration => "give --calib-batches 4 or more".into(),
            RepairError::Uncalibrated { .. } => "calibrate and repair the same model".into(),
            RepairError::NonFinite { .. } => {
                "the model has diverged; repair an earlier checkpoint of the run".into()
            }
            RepairError::NotRotatable { .. } => "use \"smoothquant\", which takes what can be folded".into(),
            RepairError::NotPositive { .. } => "raise the damping: \"gptq=0.1\"".into(),
            RepairError::Model(e) => e.hint(),
            RepairError::Tensor(_) => "run again with RUST_BACKTRACE=1 and report what it prints".into(),
        }
    }
}

/// A scheme's way of rounding weights. Matrices are (out, in), row by row; vectors are matrices of one row. All values are
/// finite.
pub trait Rounding {
    /// Whether the parameter is rounded at all.
    fn rounds(&self, name: &str) -> bool;

    /// Every entry at the nearest value of the grids that the scheme chooses for `w`.
    fn round(&self, name: &str, w: &[f32], shape: (usize, usize)) -> Vec<f32>;

    /// For rounding `w` one column after the other.
    fn columns<'a>(&'a self, name: &'a str, w: &[f32], shape: (usize, usize)) -> Box<dyn Columns + 'a>;
}

/// Rounds a matrix (out, in) column by column, the first column first. One step for the matrix or for each row is chosen
/// before; steps for groups of columns are chosen when the group begins, from what its columns have become by then.
pub trait Columns {
    /// How many columns a group has; 0 where steps are fixed before the first column.
    fn group(&self) -> usize {
        0
    }

    /// Called before the group that begins with column `first`: `w` is (out, columns of the group), row by row.
    fn start(&mut self, first: usize, w: &[f32]) {
        let _ = (first, w);
    }

    /// Rounds column `column`, of as many entries as there are rows.
    fn round(&mut self, column: usize, w: &mut [f32]);
}

/// What was done to the float model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FloatRepairs {
    /// How it was rotated, if it was.
    pub rotated: Option<Rotated>,
    /// What became of each site in smoothing; empty without it.
    pub smoothed: Vec<SmoothSite>,
}

/// What was done in rounding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundedRepairs {
    /// Errors of the matrices that GPTQ rounded; empty without it.
    pub gptq: Vec<GptqSite>,
    /// Which biases were corrected, if any were to be.
    pub bias: Option<BiasReport>,
}

/// The repairs among `repairs` that leave the model in float, in their order: rotate, then smooth.
///
/// # Errors
/// Those of [`rotate()`], [`Calibration::of`] and [`smooth()`].
pub fn repair_float(
    model: &Transformer,
    repairs: &[Repair],
    calibration: &[Input],
) -> Result<(Transformer, FloatRepairs), RepairError> {
    let (mut model, mut report) = (model.clone(), FloatRepairs::default());
    if repairs.contains(&Repair::Rotate) {
        let (rotated, how) = rotate(&model, SIGNS)?;
        (model, report.rotated) = (rotated, Some(how));
    }
    let alpha =
        repairs.iter().find_map(|r| if let Repair::Smooth { alpha } = r { Some(*alpha) } else { None });
    if let Some(alpha) = alpha {
        let maxima = Calibration::of(&model, calibration, false)?;
        (model, report.smoothed) = smooth(&model, &maxima, alpha)?;
    }
    Ok((model, report))
}

/// The model with its weights rounded, by GPTQ if `repairs` has it and else to the nearest, and its biases corrected if
/// `repairs` has that. A head that is the token table gets a float copy of it.
///
/// # Errors
/// Those of [`gptq::gptq_model`], [`gptq::nearest_model`] and [`bias_correction`].
pub fn repair_rounded(
    model: &Transformer,
    repairs: &[Repair],
    calibration: &[Input],
    rounding: &dyn Rounding,
) -> Result<(Transformer, RoundedRepairs), RepairError> {
    let mut report = RoundedRepairs::default();
    let options =
        repairs.iter().find_map(|r| if let Repair::Gptq(options) = r { Some(*options) } else { None });
    let mut rounded = match options {
        Some(options) => {
            let (rounded, sites) = gptq::gptq_model(model, calibration, rounding, options)?;
            report.gptq = sites;
            rounded
        }
        None => gptq::nearest_model(model, rounding)?,
    };
    if repairs.contains(&Repair::Bias) {
        let means = Calibration::of(model, calibration, false)?;
        let (corrected, how) = bias_correction(model, &rounded, &means)?;
        (rounded, report.bias) = (corrected, Some(how));
    }
    Ok((rounded, report))
}

#[cfg(test)]
mod tests {
    use super::testing::{AbsMax, difference, inputs, perturbed, variants};
    use super::*;

    #[test]
    fn repairs_are_known_by_their_names() {
        for (text, repair) in [
            ("hadamard", Repair::Rotate),
            ("smoothquant", Repair::Smooth { alpha: 0.5 }),
            ("smoothquant=0.7", Repair::Smooth { alpha: 0.7 }),
            ("gptq", Repair::Gptq(GptqOptions::default())),
            ("gptq=0.05", Repair::Gptq(GptqOptions { damp: 0.05, ..GptqOptions::default() })),
            ("bias-correction", Repair::Bias),
        ] {
            assert_eq!(text.parse::<Repair>().unwrap(), repair);
            assert_eq!(repair.to_string().parse::<Repair>().unwrap(), repair);
        }
        for bad in [
            "",
            "quarot",
            "hadamard=1",
            "bias-correction=0",
            "smoothquant=",
            "smoothquant=1.5",
            "gptq=x",
            "gptq=0",
        ] {
            let error = bad.parse::<Repair>().unwrap_err();
            assert!(error.to_string().contains(bad) && !error.hint().is_empty(), "{error}");
        }
    }

    #[test]
    fn all_together_leave_the_float_model_as_it_was_and_the_rounded_one_closer_to_it() {
        let repairs = [
            Repair::Bias,
            Repair::Gptq(GptqOptions::default()),
            Repair::Smooth { alpha: 0.5 },
            Repair::Rotate,
        ];
        let rounding = AbsMax { bits: 4, group: 8 };
        for name in ["pre_ln", "pre_rms", "op_paper", "tied"] {
            let model = perturbed(&variants().into_iter().find(|v| v.0 == name).unwrap().1);
            let (float, done) = repair_float(&model, &repairs, &inputs()).unwrap();
            assert!(difference(&model, &float) < 1e-5, "{name}");
            // A rotation leaves a gain to every norm, and no norm is before the branches of the block without them.
            let kept = done.smoothed.iter().filter(|s| matches!(s.outcome, Smoothed::Kept { .. })).count();
            assert_eq!((done.rotated.unwrap().stream, kept), (24, if name == "op_paper" { 3 } else { 0 }));
            let (plain, _) = repair_rounded(&float, &[], &inputs(), &rounding).unwrap();
            let (rounded, done) = repair_rounded(&float, &repairs, &inputs(), &rounding).unwrap();
            assert!(!done.gptq.is_empty() && !done.bias.unwrap().corrected.is_empty());
            let [before, after] = [&plain, &rounded].map(|rounded| difference(&float, rounded));
            assert!(after < before, "{name}: {before} to {after}");
        }
    }
}
