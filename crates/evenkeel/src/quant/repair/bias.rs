//! Bias correction (Nagel et al., arXiv 1906.04721, section 4.2): a rounded matrix shifts the mean of what it gives, and the bias
//! takes that back.
//!
//! With inputs of mean E\[x\], from calibration of the float model: b ← b + (W - Ŵ) E\[x\]. A matrix without a bias stays as it
//! is: a bias is a property of a model, which rounding should not change.

use super::calibration::{Calibration, input_sites, readers};
use super::{RepairError, weights::Weights};
use crate::model::Transformer;

/// What became of the rounded matrices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BiasReport {
    /// Those whose bias was corrected, and the root mean square of the correction.
    pub corrected: Vec<(String, f64)>,
    /// Those that have no bias.
    pub skipped: Vec<String>,
}

/// `rounded`, whose weights are those of `float` rounded, with its biases corrected. `means` are of `float`.
///
/// # Errors
/// If a site was not calibrated, or the parameters are not float32.
pub fn bias_correction(
    float: &Transformer,
    rounded: &Transformer,
    means: &Calibration,
) -> Result<(Transformer, BiasReport), RepairError> {
    let (before, mut after) = (Weights::of(float)?, Weights::of(rounded)?);
    let mut report = BiasReport::default();
    for site in input_sites(float.config()) {
        let mean: Vec<f64> = means.at(site)?.means().collect();
        for matrix in readers(float.config(), site) {
            let (weight, bias) = (format!("{matrix}.weight"), format!("{matrix}.bias"));
            if before.data(&weight) == after.data(&weight) || before.data(&weight).is_empty() {
                continue;
            }
            if after.data(&bias).is_empty() {
                report.skipped.push(matrix);
                continue;
            }
            let shift: Vec<f64> = before
                .times(&matrix, &mean)
                .iter()
                .zip(after.times(&matrix, &mean))
                .map(|(w, q)| w - q)
                .collect();
            after.add_to_bias(&matrix, &shift);
            let square = shift.iter().map(|v| v * v).sum::<f64>() / shift.len().max(1) as f64;
            report.corrected.push((matrix, square.sqrt()));
        }
    }
    Ok((after.into_model()?, report))
}

#[cfg(test)]
mod tests {
    use super::super::gptq::nearest_model;
    use super::super::testing::{AbsMax, difference, inputs, perturbed, variants};
    use super::*;
    use crate::model::ModelConfig;
    use crate::tap::{Place, Site, Tap};
    use crate::tape::Tape;
    use candle_core::Tensor;

    fn named(name: &str) -> ModelConfig {
        variants().into_iter().find(|v| v.0 == name).unwrap().1
    }

    /// Mean of the first block's queries, over all tokens.
    #[derive(Default)]
    struct Queries(Vec<Vec<f64>>);

    impl Tap for Queries {
        fn wants(&self, site: Site) -> bool {
            site == Site::block(0, Place::AttnQ)
        }
        fn visit(&mut self, _: Site, x: Tensor) -> candle_core::Result<Tensor> {
            self.0.push(x.mean((0, 1))?.to_dtype(candle_core::DType::F64)?.to_vec1()?);
            Ok(x)
        }
    }

    fn mean_queries(model: &Transformer) -> Vec<f64> {
        let mut tap = Queries::default();
        for input in &inputs() {
            model.run(&Tape::off(), &mut tap, input).unwrap();
        }
        (0..tap.0[0].len()).map(|i| tap.0.iter().map(|m| m[i]).sum::<f64>() / tap.0.len() as f64).collect()
    }

    #[test]
    fn the_mean_of_what_a_matrix_gives_is_restored() {
        let model = perturbed(&named("pre_ln"));
        let means = Calibration::of(&model, &inputs(), false).unwrap();
        let rounded = nearest_model(&model, &AbsMax { bits: 3, group: 0 }).unwrap();
        let (corrected, report) = bias_correction(&model, &rounded, &means).unwrap();
        assert_eq!((report.corrected.len(), report.skipped.len()), (12, 0));
        let [want, before, after] = [&model, &rounded, &corrected].map(mean_queries);
        let off = |x: &[f64]| x.iter().zip(&want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        // The inputs of the first block's queries are the same before and after.
        assert!(off(&before) > 1e-2 && off(&after) < 1e-5, "{} to {}", off(&before), off(&after));
        assert!(difference(&model, &corrected) < difference(&model, &rounded));
    }

    #[test]
    fn matrices_without_a_bias_are_skipped_and_counted() {
        let model = perturbed(&named("op_paper"));
        let means = Calibration::of(&model, &inputs(), false).unwrap();
        let rounded = nearest_model(&model, &AbsMax { bits: 4, group: 0 }).unwrap();
        let (_, report) = bias_correction(&model, &rounded, &means).unwrap();
        let corrected: Vec<&str> = report.corrected.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(corrected, ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.1.attn.q", "blocks.1.attn.k"]);
        assert_eq!(report.skipped.len(), 8);
        let same = bias_correction(&model, &model, &means).unwrap();
        assert_eq!(same.1, BiasReport::default());
    }
}
