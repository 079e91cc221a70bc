//! The experiments of this repository, built into the program.

use super::{Experiment, ExperimentError};

macro_rules! files {
    ($folder:literal, $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../experiments/", $folder, $name, ".toml")))),*]
    };
}

/// In the order of the paper, and of the page that they make together.
const EXPERIMENTS: &[(&str, &str)] = files!(
    "",
    "norms",
    "op_layers",
    "learning_rate",
    "adam_epsilon",
    "rotation",
    "signal_propagation",
    "final_norm",
    "entropy_regulation",
    "moments",
    "vit",
    "w8a8",
    "damage",
);

/// Configurations that several of them start from.
const BASES: &[(&str, &str)] =
    files!("base/", "small_text", "small_vit", "codeparrot", "languini", "opt_125m", "imagenet");

/// Every name.
pub fn names() -> impl Iterator<Item = &'static str> {
    EXPERIMENTS.iter().map(|e| e.0)
}

/// The text of a base.
pub fn base(name: &str) -> Option<&'static str> {
    BASES.iter().find(|b| b.0 == name).map(|b| b.1)
}

/// The experiment of that name.
///
/// # Errors
/// [`ExperimentError::Unknown`] if there is none.
pub fn experiment(name: &str) -> Result<Experiment, ExperimentError> {
    match EXPERIMENTS.iter().find(|e| e.0 == name) {
        Some((name, text)) => Experiment::parse(name, text),
        None => {
            let near = |n: &&str| strsim::jaro_winkler(n, name);
            let nearest = names().max_by(|a, b| near(a).total_cmp(&near(b))).filter(|n| near(n) > 0.7);
            Err(ExperimentError::Unknown { name: name.to_string(), nearest: nearest.map(String::from) })
        }
    }
}

/// All of them.
///
/// # Errors
/// Never for those of the repository, which a test reads.
pub fn all() -> Result<Vec<Experiment>, ExperimentError> {
    names().map(experiment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::Scale;

    #[test]
    fn every_experiment_is_one_at_both_scales() {
        for name in names() {
            let e = experiment(name).unwrap_or_else(|e| panic!("{e}"));
            assert!(!e.claims.is_empty() && !e.figures.is_empty(), "{name}");
            for scale in [Scale::Small, Scale::Full] {
                let sweep = e.sweep(scale, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
                let mut model = sweep.cells[0].config.model.clone();
                model.vocab = model.vocab.max(8);
                model.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(sweep.cells.len() > 1, "{name}");
            }
            let small = e.sweep(Scale::Small, &[]).unwrap();
            let seeds = small.cells.iter().filter(|c| c.group == small.cells[0].group).count();
            assert!(seeds >= 3, "{name}: an ordering needs three seeds");
        }
    }

    #[test]
    fn a_name_that_is_nearly_one_is_suggested() {
        let e = experiment("entropy_regulators").unwrap_err().to_string();
        assert!(e.ends_with("the nearest is \"entropy_regulation\""), "{e}");
        assert!(experiment("zzz").unwrap_err().to_string().ends_with("\"zzz\""));
    }
}
