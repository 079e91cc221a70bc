//! Parameter groups: which rule, learning rate and decay a parameter gets, by its name.
//!
//! By default weight decay applies to matrices and embeddings and to nothing else: biases, norm gains and
//! scalar gains are left alone. `[[optim.group]]` tables make exceptions; of those that match, the last that sets a key
//! has it.

use super::config::{OptimConfig, Rule};
use super::{Optimizer, Slot, State, condition};
use crate::names::{BadPattern, NameFilter};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// One exception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Globs over parameter names, such as `embed.*` or `blocks.*.mlp.*.weight`.
    #[serde(rename = "match")]
    pub patterns: Vec<String>,
    /// Factor on the learning rate; absent: as without this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_factor: Option<f64>,
    /// Weight decay instead of the run's; absent: as without this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Another optimiser; absent: as without this group. In files its name, or a table with `name` and its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Rule>,
}

/// What a parameter gets.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Member {
    /// Index of its rule.
    rule: usize,
    lr_factor: f64,
    weight_decay: f64,
    phase: u64,
}

/// The rules of a run and which parameter follows which.
pub struct Groups {
    rules: Vec<Box<dyn Optimizer>>,
    members: Vec<Member>,
    shapes: Vec<Vec<usize>>,
}

/// A parameter, its gradient and its state.
pub type Parts<'a> = (&'a Tensor, &'a Tensor, &'a mut State);

impl Groups {
    /// Assigns parameters, given as name and shape in the model's order.
    ///
    /// # Errors
    /// A pattern that is not a glob.
    pub fn new<'a>(
        config: &OptimConfig,
        parameters: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> std::result::Result<Self, BadPattern> {
        let filter = |group: &GroupConfig| NameFilter::new(&group.patterns);
        let filters = config.group.iter().map(filter).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut rules = vec![config.rule.build()];
        // Which rule each group's optimiser has become, and the rule of the main optimiser's own exceptions.
        let own = match &config.rule {
            Rule::Muon(muon) => {
                rules.push(Box::new(muon.others()) as Box<dyn Optimizer>);
                Some((NameFilter::new(&muon.adamw_match)?, rules.len() - 1))
            }
            _ => None,
        };
        let mut of_group = Vec::with_capacity(config.group.len());
        for group in &config.group {
            of_group.push(group.optimizer.as_ref().map(|rule| {
                rules.push(rule.build());
                rules.len() - 1
            }));
        }
        let (mut members, mut shapes) = (Vec::new(), Vec::new());
        for (name, shape) in parameters {
            let mut member = Member {
                rule: own.as_ref().filter(|(filter, _)| filter.matches(name)).map_or(0, |(_, rule)| *rule),
                lr_factor: 1.0,
                weight_decay: if shape.len() >= 2 { config.weight_decay } else { 0.0 },
                phase: 0,
            };
            for (i, group) in config.group.iter().enumerate().filter(|(i, _)| filters[*i].matches(name)) {
                member.rule = of_group[i].unwrap_or(member.rule);
                member.lr_factor = group.lr_factor.unwrap_or(member.lr_factor);
                member.weight_decay = group.weight_decay.unwrap_or(member.weight_decay);
            }
            members.push(member);
            shapes.push(shape.to_vec());
        }
        let mut groups = Self { rules, members, shapes };
        groups.spread();
        Ok(groups)
    }

    /// Gives the parameters whose rule wants it phases, the costliest first and each to the step with least to do. All
    /// ranks that know the whole model come to the same result, whichever parameters are theirs.
    fn spread(&mut self) {
        let wants = |i: usize| self.rules[self.members[i].rule].periodic(&self.shapes[i]).map(|p| (i, p));
        let mut work: Vec<_> = (0..self.members.len()).filter_map(wants).collect();
        work.sort_by(|a, b| b.1.cost.total_cmp(&a.1.cost));
        let longest = work.iter().map(|(_, p)| p.every).max().unwrap_or(0);
        // More steps than parameters need no look: the first that are free will do.
        let mut load = vec![0.0f64; longest.min(work.len() as u64) as usize];
        for (i, periodic) in work {
            let steps = load.len().min(periodic.every as usize);
            let least = (0..steps).min_by(|&a, &b| load[a].total_cmp(&load[b])).unwrap_or(0);
            load[least] += periodic.cost;
            self.members[i].phase = least as u64;
        }
    }

    /// Takes one step at learning rate `lr` on all parameters, given in the order of [`Self::new`].
    ///
    /// # Errors
    /// What the rules return.
    pub fn step<'a>(&self, parameters: impl IntoIterator<Item = Parts<'a>>, lr: f64) -> Result<()> {
        let mut by_rule: Vec<Vec<Slot>> = self.rules.iter().map(|_| Vec::new()).collect();
        for ((parameter, gradient, state), member) in parameters.into_iter().zip(&self.members) {
            by_rule[member.rule].push(Slot {
                parameter,
                gradient,
                state,
                lr: lr * member.lr_factor,
                weight_decay: member.weight_decay,
                phase: member.phase,
            });
        }
        for (rule, mut slots) in self.rules.iter().zip(by_rule) {
            if !slots.is_empty() {
                rule.step(&mut slots)?;
            }
        }
        Ok(())
    }

    /// The rule of the main optimiser.
    pub fn name(&self) -> &'static str {
        self.rules[0].name()
    }

    /// The rule that parameter `index` follows.
    pub fn rule(&self, index: usize) -> &dyn Optimizer {
        &*self.rules[self.members[index].rule]
    }

    /// Scalars of state in all.
    pub fn state_elements(&self) -> u64 {
        let of = |(index, shape): (usize, &Vec<usize>)| self.rule(index).state(shape);
        let tensors = self.shapes.iter().enumerate().flat_map(of);
        tensors.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// The first tensor of a state that parameter `index`'s rule does not have, or has in another shape.
    pub fn misfit<'s>(&self, index: usize, state: &'s State) -> Option<&'s str> {
        let known = self.rule(index).state(&self.shapes[index]);
        let fits = |name: &str, tensor: &Tensor| known.iter().any(|(k, s)| *k == name && s == tensor.dims());
        state.tensors.iter().find(|(name, tensor)| !fits(name, tensor)).map(|(name, _)| name.as_str())
    }

    /// The worst condition number of all parameters' factors, as last estimated.
    ///
    /// # Errors
    /// If a state is not as its rule left it.
    pub fn condition(&self, states: &[State]) -> Result<Option<f64>> {
        let mut worst: Option<f64> = None;
        for state in states {
            worst = match (worst, condition(state)?) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::super::OptimizerName;
    use super::*;

    fn group(patterns: &[&str]) -> GroupConfig {
        let patterns = patterns.iter().map(|p| p.to_string()).collect();
        GroupConfig { patterns, lr_factor: None, weight_decay: None, optimizer: None }
    }

    const NAMES: [(&str, &[usize]); 4] = [
        ("embed.token.weight", &[8, 4]),
        ("embed.position.weight", &[8, 4]),
        ("blocks.0.mlp.up.weight", &[4, 4]),
        ("final_norm.gain", &[4]),
    ];

    #[test]
    fn vectors_do_not_decay_and_the_last_to_set_a_key_wins() {
        let mut config = OptimConfig::defaults(OptimizerName::Adamw);
        config.group = vec![
            GroupConfig { lr_factor: Some(0.5), weight_decay: Some(0.0), ..group(&["embed.*"]) },
            GroupConfig { lr_factor: Some(2.0), ..group(&["embed.token.*"]) },
        ];
        let groups = Groups::new(&config, NAMES).unwrap();
        let got: Vec<_> = groups.members.iter().map(|m| (m.lr_factor, m.weight_decay)).collect();
        assert_eq!(got, [(2.0, 0.0), (0.5, 0.0), (1.0, 0.1), (1.0, 0.0)]);
        config.group = vec![group(&["["])];
        assert!(Groups::new(&config, NAMES).is_err());
    }

    #[test]
    fn a_group_may_have_another_optimiser_and_muon_leaves_embeddings_alone() {
        let mut config = OptimConfig::defaults(OptimizerName::Soap);
        config.group = vec![GroupConfig {
            optimizer: Some(Rule::defaults(OptimizerName::Adamw)),
            ..group(&["embed.*"])
        }];
        let names = |c: &OptimConfig| {
            let groups = Groups::new(c, NAMES).unwrap();
            (0..4).map(|i| groups.rule(i).name()).collect::<Vec<_>>()
        };
        assert_eq!(names(&config), ["adamw", "adamw", "soap", "soap"]);
        let mut muon = OptimConfig::defaults(OptimizerName::Muon);
        assert_eq!(names(&muon), ["adamw", "adamw", "muon", "muon"]);
        muon.group = config.group;
        muon.group[0].optimizer = Some(Rule::defaults(OptimizerName::Sgd));
        assert_eq!(names(&muon), ["sgd", "sgd", "muon", "muon"]);
    }

    #[test]
    fn refreshes_are_spread_evenly() {
        let mut config = OptimConfig::defaults(OptimizerName::Soap);
        let shapes: Vec<(String, Vec<usize>)> =
            (0..40).map(|i| (format!("w{i}"), vec![8 << (i % 3), 8])).collect();
        let named = || shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice()));
        assert!(Groups::new(&config, named()).unwrap().members.iter().all(|m| m.phase == 0));
        let Rule::Soap(soap) = &mut config.rule else { unreachable!() };
        soap.basis.spread_refresh = true;
        let groups = Groups::new(&config, named()).unwrap();
        let mut load = [0.0; 10];
        for (m, (_, shape)) in groups.members.iter().zip(&shapes) {
            load[m.phase as usize] += shape.iter().map(|&d| (d as f64).powi(3)).sum::<f64>();
        }
        let (most, least) =
            (load.iter().copied().fold(0.0, f64::max), load.iter().copied().fold(1e9, f64::min));
        // 13 of the largest over 10 steps: at best two in some.
        assert!(most < 2.1 * (32f64.powi(3) + 512.0) && least > 32f64.powi(3) / 2.0, "{load:?}");
    }
}
