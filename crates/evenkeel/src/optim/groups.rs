//! Parameter groups: which learning rate and decay a parameter gets, by its name.
//!
//! By default weight decay applies to matrices and embeddings and to nothing else: biases, norm gains and
//! scalar gains are left alone. `[[optim.group]]` tables make exceptions; the last one that matches wins.

use crate::names::{BadPattern, NameFilter};
use serde::{Deserialize, Serialize};

/// One exception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Globs over parameter names, such as `embed.*` or `blocks.*.mlp.*.weight`.
    #[serde(rename = "match")]
    pub patterns: Vec<String>,
    /// Factor on the learning rate.
    #[serde(default = "one")]
    pub lr_factor: f64,
    /// Weight decay instead of the run's; absent keeps the default rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// What a parameter gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Factor on the learning rate.
    pub lr_factor: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// The group of each named parameter with its number of axes.
///
/// # Errors
/// A pattern that is not a glob.
pub fn assign<'a>(
    parameters: impl IntoIterator<Item = (&'a str, usize)>,
    weight_decay: f64,
    exceptions: &[GroupConfig],
) -> Result<Vec<Group>, BadPattern> {
    let compiled: Vec<(NameFilter, &GroupConfig)> = exceptions
        .iter()
        .map(|e| Ok((NameFilter::new(&e.patterns)?, e)))
        .collect::<Result<_, BadPattern>>()?;
    Ok(parameters
        .into_iter()
        .map(|(name, axes)| {
            let default = if axes >= 2 { weight_decay } else { 0.0 };
            match compiled.iter().rev().find(|(filter, _)| filter.matches(name)) {
                Some((_, e)) => {
                    Group { lr_factor: e.lr_factor, weight_decay: e.weight_decay.unwrap_or(default) }
                }
                None => Group { lr_factor: 1.0, weight_decay: default },
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_do_not_decay_and_the_last_match_wins() {
        let exceptions = [
            GroupConfig { patterns: vec!["embed.*".into()], lr_factor: 0.5, weight_decay: Some(0.0) },
            GroupConfig { patterns: vec!["embed.token.*".into()], lr_factor: 2.0, weight_decay: None },
        ];
        let names = [("embed.token.weight", 2), ("embed.position.weight", 2), ("final_norm.gain", 1)];
        let groups = assign(names, 0.1, &exceptions).unwrap();
        assert_eq!(groups[0], Group { lr_factor: 2.0, weight_decay: 0.1 });
        assert_eq!(groups[1], Group { lr_factor: 0.5, weight_decay: 0.0 });
        assert_eq!(groups[2], Group { lr_factor: 1.0, weight_decay: 0.0 });
    }
}
