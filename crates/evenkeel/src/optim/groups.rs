//! Parameter groups: which rule, learning rate and decay a parameter gets, by its name.
//!
//! By default weight decay applies to matrices and embeddings and to nothing else: biases, norm gains and
//! scalar gains are left alone. `[[optim.group]]` tables make exceptions; the last one that matches wins. What a group does
//! not set is the run's: a group with another optimiser keeps the run's learning rate and decay unless it has its own.

use super::config::{OptimConfig, OptimizerName, Rule};
use super::{Optimizer, Slot, State};
use crate::names::{BadPattern, NameFilter};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One exception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Another optimiser; absent: the run's. In files its name, or a table with `name` and its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Rule>,
}

fn one() -> f64 {
    1.0
}

/// Groups that cannot be made.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GroupsError {
    /// A pattern that is not a glob.
    #[error("optim.group: {0}")]
    Pattern(#[from] BadPattern),
    /// A group that no parameter belongs to.
    #[error("optim.group[{index}] matches no parameter: none of this model's is called {patterns}")]
    Empty {
        /// Which group.
        index: usize,
        /// Its globs.
        patterns: String,
    },
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

/// A rule and the name of its optimiser.
type Named = (&'static str, Box<dyn Optimizer>);

/// Where a rule stands, and the parameters that it leaves to another.
struct Chosen {
    rule: usize,
    others: Option<(NameFilter, usize)>,
}

impl Chosen {
    /// Adds a rule, and the one that it leaves parameters to, to those of a run.
    fn add(rules: &mut Vec<Named>, rule: &Rule) -> std::result::Result<Self, BadPattern> {
        rules.push((rule.name(), rule.build()));
        let chosen = rules.len() - 1;
        let Rule::Muon(muon) = rule else { return Ok(Self { rule: chosen, others: None }) };
        rules.push((OptimizerName::Adamw.name(), Box::new(muon.others())));
        Ok(Self { rule: chosen, others: Some((NameFilter::new(&muon.adamw_match)?, chosen + 1)) })
    }

    /// The rule for a parameter of this name.
    fn of(&self, name: &str) -> usize {
        match &self.others {
            Some((filter, others)) if filter.matches(name) => *others,
            _ => self.rule,
        }
    }
}

/// The rules of a run and which parameter follows which.
pub struct Groups {
    rules: Vec<Named>,
    members: Vec<Member>,
    shapes: Vec<Vec<usize>>,
}

/// A parameter, its gradient and its state.
pub type Parts<'a> = (&'a Tensor, &'a Tensor, &'a mut State);

impl Groups {
    /// Assigns parameters, given as name and shape in the model's order.
    ///
    /// # Errors
    /// A pattern that is not a glob, or a group without parameters.
    pub fn new<'a>(
        config: &OptimConfig,
        parameters: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> std::result::Result<Self, GroupsError> {
        let filter = |group: &GroupConfig| NameFilter::new(&group.patterns);
        let filters = config.group.iter().map(filter).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut rules = Vec::new();
        let main = Chosen::add(&mut rules, &config.rule)?;
        let mut of_group = Vec::with_capacity(config.group.len());
        for group in &config.group {
            of_group.push(group.optimizer.as_ref().map(|rule| Chosen::add(&mut rules, rule)).transpose()?);
        }
        let (mut members, mut shapes) = (Vec::new(), Vec::new());
        let mut used = vec![false; filters.len()];
        for (name, shape) in parameters {
            let mut matching = None;
            for (i, filter) in filters.iter().enumerate() {
                if filter.matches(name) {
                    (used[i], matching) = (true, Some(i));
                }
            }
            let group = matching.map(|i| &config.group[i]);
            let default = if shape.len() >= 2 { config.weight_decay } else { 0.0 };
            members.push(Member {
                rule: matching.and_then(|i| of_group[i].as_ref()).unwrap_or(&main).of(name),
                lr_factor: group.map_or(1.0, |g| g.lr_factor),
                weight_decay: group.and_then(|g| g.weight_decay).unwrap_or(default),
                phase: 0,
            });
            shapes.push(shape.to_vec());
        }
        if let Some(index) = used.iter().position(|used| !used) {
            let patterns = config.group[index].patterns.join(", ");
            return Err(GroupsError::Empty { index, patterns });
        }
        let mut groups = Self { rules, members, shapes };
        groups.spread();
        Ok(groups)
    }

    /// Gives the parameters whose rule wants it phases, the costliest first and each to the step with least to do.
    fn spread(&mut self) {
        let wants = |i: usize| self.rule(i).periodic(&self.shapes[i]).map(|p| (i, p));
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
        for ((_, rule), mut slots) in self.rules.iter().zip(by_rule) {
            if !slots.is_empty() {
                rule.step(&mut slots)?;
            }
        }
        Ok(())
    }

    /// The main optimiser.
    pub fn name(&self) -> &'static str {
        self.rules[0].0
    }

    /// The optimiser that parameter `index` belongs to.
    pub fn name_of(&self, index: usize) -> &'static str {
        self.rules[self.members[index].rule].0
    }

    fn rule(&self, index: usize) -> &dyn Optimizer {
        &*self.rules[self.members[index].rule].1
    }

    /// Scalars of state in all.
    pub fn state_elements(&self) -> u64 {
        let of = |(index, shape): (usize, &Vec<usize>)| self.rule(index).state(shape);
        let tensors = self.shapes.iter().enumerate().flat_map(of);
        tensors.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// What is wrong with a state that was read for parameter `index`: a tensor that its rule does not have, has in
    /// another shape, or misses. `None` if it fits, or is that of a parameter which was never moved.
    pub fn misfit(&self, index: usize, state: &State) -> Option<String> {
        if state.tensors.is_empty() && state.steps == 0 {
            return None;
        }
        let known = self.rule(index).state(&self.shapes[index]);
        for (name, tensor) in &state.tensors {
            match known.iter().find(|(k, _)| k == name) {
                None => return Some(format!("{} has no state \"{name}\"", self.name_of(index))),
                Some((_, shape)) if shape != tensor.dims() => {
                    return Some(format!("\"{name}\" is {:?} and should be {shape:?}", tensor.dims()));
                }
                Some(_) => {}
            }
        }
        // Checkpoints of the first version have no eigenvalues.
        let needed = |name: &&str| !super::eigenbasis::VALUES.contains(name);
        let missing = known.iter().map(|(k, _)| *k).filter(needed).find(|k| !state.tensors.contains_key(*k));
        missing.map(|name| format!("\"{name}\" is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(patterns: &[&str]) -> GroupConfig {
        let patterns = patterns.iter().map(|p| p.to_string()).collect();
        GroupConfig { patterns, lr_factor: 1.0, weight_decay: None, optimizer: None }
    }

    const NAMES: [(&str, &[usize]); 4] = [
        ("embed.token.weight", &[8, 4]),
        ("embed.position.weight", &[8, 4]),
        ("blocks.0.mlp.up.weight", &[4, 4]),
        ("final_norm.gain", &[4]),
    ];

    #[test]
    fn vectors_do_not_decay_and_the_last_match_wins() {
        let mut config = OptimConfig::defaults(OptimizerName::Adamw);
        config.group = vec![
            GroupConfig { lr_factor: 0.5, weight_decay: Some(0.0), ..group(&["embed.*"]) },
            GroupConfig { lr_factor: 2.0, ..group(&["embed.token.*"]) },
        ];
        let groups = Groups::new(&config, NAMES).unwrap();
        let got: Vec<_> = groups.members.iter().map(|m| (m.lr_factor, m.weight_decay)).collect();
        assert_eq!(got, [(2.0, 0.1), (0.5, 0.0), (1.0, 0.1), (1.0, 0.0)]);
        config.group = vec![group(&["["])];
        assert!(matches!(Groups::new(&config, NAMES), Err(GroupsError::Pattern(_))));
        config.group = vec![group(&["embed.*"]), group(&["lm_head.*"])];
        assert!(matches!(Groups::new(&config, NAMES), Err(GroupsError::Empty { index: 1, .. })));
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
            (0..4).map(|i| groups.name_of(i)).collect::<Vec<_>>()
        };
        assert_eq!(names(&config), ["adamw", "adamw", "soap", "soap"]);
        let mut muon = OptimConfig::defaults(OptimizerName::Muon);
        assert_eq!(names(&muon), ["adamw", "adamw", "muon", "muon"]);
        muon.group = config.group.clone();
        muon.group[0].optimizer = Some(Rule::defaults(OptimizerName::Sgd));
        assert_eq!(names(&muon), ["sgd", "sgd", "muon", "muon"]);
        // A group's Muon leaves the same parameters to AdamW as the main one.
        config.group = vec![GroupConfig { optimizer: Some(muon.rule), ..group(&["*.weight"]) }];
        assert_eq!(names(&config), ["adamw", "adamw", "muon", "soap"]);
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
