//! The table `[optim]`: which rule, and what a run does around it.

use super::groups::GroupConfig;
use super::skip::SkipRule;
use super::{
    AdaFactor, AdamW, Muon, Optimizer, RotatedAdaFactor, Schedule, ScheduleKind, Sgd, Shampoo, Soap,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Gradient descent with momentum.
    Sgd,
    /// A factored second moment.
    Adafactor,
    /// The same with the settings of PyTorch's.
    AdafactorTorch,
    /// AdaFactor in Shampoo's eigenbasis.
    RotatedAdafactor,
    /// Roots of Shampoo's factors.
    Shampoo,
    /// Adam in Shampoo's eigenbasis.
    Soap,
    /// Orthogonalised momentum.
    Muon,
}

impl OptimizerName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Adamw,
        Self::Sgd,
        Self::Adafactor,
        Self::AdafactorTorch,
        Self::RotatedAdafactor,
        Self::Shampoo,
        Self::Soap,
        Self::Muon,
    ];

    /// As written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Sgd => "sgd",
            Self::Adafactor => "adafactor",
            Self::AdafactorTorch => "adafactor_torch",
            Self::RotatedAdafactor => "rotated_adafactor",
            Self::Shampoo => "shampoo",
            Self::Soap => "soap",
            Self::Muon => "muon",
        }
    }

    /// The optimiser of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }

    /// Other names of keys of this optimiser, as users of other implementations know them, and the keys.
    pub fn aliases(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Sgd | Self::Muon => &[("momentum", "beta1")],
            _ => &[],
        }
    }

    /// The key that is also called `name`.
    pub fn alias(self, name: &str) -> Option<&'static str> {
        self.aliases().iter().find(|(other, _)| *other == name).map(|(_, key)| *key)
    }
}

/// An optimiser with its settings, keyed by `name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Rule {
    /// Adam with decoupled weight decay: [`AdamW`].
    Adamw(AdamW),
    /// Gradient descent with momentum: [`Sgd`].
    Sgd(Sgd),
    /// A factored second moment: [`AdaFactor`].
    Adafactor(AdaFactor),
    /// The same with the settings of PyTorch's: [`AdaFactor::torch`].
    AdafactorTorch(AdaFactor),
    /// AdaFactor in Shampoo's eigenbasis: [`RotatedAdaFactor`].
    RotatedAdafactor(RotatedAdaFactor),
    /// Roots of Shampoo's factors: [`Shampoo`].
    Shampoo(Shampoo),
    /// Adam in Shampoo's eigenbasis: [`Soap`].
    Soap(Soap),
    /// Orthogonalised momentum: [`Muon`].
    Muon(Muon),
}

impl Rule {
    /// The defaults of an optimiser, those of its published reference where it has one.
    pub fn defaults(name: OptimizerName) -> Self {
        match name {
            OptimizerName::Adamw => Self::Adamw(AdamW::default()),
            OptimizerName::Sgd => Self::Sgd(Sgd::default()),
            OptimizerName::Adafactor => Self::Adafactor(AdaFactor::default()),
            OptimizerName::AdafactorTorch => Self::AdafactorTorch(AdaFactor::torch()),
            OptimizerName::RotatedAdafactor => Self::RotatedAdafactor(RotatedAdaFactor::default()),
            OptimizerName::Shampoo => Self::Shampoo(Shampoo::default()),
            OptimizerName::Soap => Self::Soap(Soap::default()),
            OptimizerName::Muon => Self::Muon(Muon::default()),
        }
    }

    /// The defaults of a run: `max_precond_dim` is 2048, which leaves the vocabulary side of embedding and head alone, as the
    /// references' 10000 does for vocabularies above it.
    pub fn for_training(name: OptimizerName) -> Self {
        let mut rule = Self::defaults(name);
        match &mut rule {
            Self::Soap(soap) => soap.basis.max_precond_dim = 2048,
            Self::RotatedAdafactor(rotated) => rotated.basis.max_precond_dim = 2048,
            Self::Shampoo(shampoo) => shampoo.max_precond_dim = 2048,
            _ => {}
        }
        rule
    }

    /// Which optimiser.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Adamw(_) => OptimizerName::Adamw,
            Self::Sgd(_) => OptimizerName::Sgd,
            Self::Adafactor(_) => OptimizerName::Adafactor,
            Self::AdafactorTorch(_) => OptimizerName::AdafactorTorch,
            Self::RotatedAdafactor(_) => OptimizerName::RotatedAdafactor,
            Self::Shampoo(_) => OptimizerName::Shampoo,
            Self::Soap(_) => OptimizerName::Soap,
            Self::Muon(_) => OptimizerName::Muon,
        }
        .name()
    }

    /// The rule itself.
    pub fn build(&self) -> Box<dyn Optimizer> {
        match self.clone() {
            Self::Adamw(rule) => Box::new(rule),
            Self::Sgd(rule) => Box::new(rule),
            Self::Adafactor(rule) | Self::AdafactorTorch(rule) => Box::new(rule),
            Self::RotatedAdafactor(rule) => Box::new(rule),
            Self::Shampoo(rule) => Box::new(rule),
            Self::Soap(rule) => Box::new(rule),
            Self::Muon(rule) => Box::new(rule),
        }
    }
}

/// The table `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OptimConfig {
    /// Which optimiser, and its own keys.
    #[serde(flatten)]
    pub rule: Rule,
    /// Learning rate after the warm-up.
    pub lr_peak: f64,
    /// Shape of the schedule after the warm-up.
    pub schedule: ScheduleKind,
    /// Share of all steps that warm up, if `warmup_steps` is 0.
    pub warmup_fraction: f64,
    /// Steps that warm up; 0 means use the fraction.
    pub warmup_steps: u64,
    /// Share of all steps at the end in which the schedule `wsd` decays.
    pub decay_fraction: f64,
    /// Learning rate at the end over its peak.
    pub final_fraction: f64,
    /// Weight decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
    /// Largest absolute value of a gradient's entry, before the norm is taken for `clip_norm`; 0 turns this off.
    pub clip_value: f64,
    /// A step whose loss or gradient norm is not finite is left out instead of ending the run.
    pub skip_nonfinite: bool,
    /// A step whose gradient norm is above this factor times the recent average is left out; 0 turns this off.
    pub skip_spike_factor: f64,
    /// Steps in a row that may be left out.
    pub skip_patience_steps: u64,
    /// Exceptions by parameter name. In files: `[[optim.group]]`.
    // Left out where there are none: below `group = []` a file could not have an [[optim.group]].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<GroupConfig>,
}

impl OptimConfig {
    /// The defaults of an optimiser.
    pub fn defaults(name: OptimizerName) -> Self {
        Self {
            rule: Rule::for_training(name),
            lr_peak: match name {
                OptimizerName::Adamw | OptimizerName::Adafactor => 1e-3,
                OptimizerName::AdafactorTorch => 1e-2,
                OptimizerName::Sgd => 0.1,
                OptimizerName::Soap | OptimizerName::RotatedAdafactor | OptimizerName::Shampoo => 3e-3,
                OptimizerName::Muon => 0.02,
            },
            schedule: ScheduleKind::Linear,
            warmup_fraction: 0.05,
            warmup_steps: 0,
            decay_fraction: 0.2,
            final_fraction: 0.0,
            // PyTorch's SGD adds decay to the gradient, where the usual size is another.
            weight_decay: if name == OptimizerName::Sgd { 1e-4 } else { 0.1 },
            clip_norm: 1.0,
            clip_value: 0.0,
            skip_nonfinite: false,
            skip_spike_factor: 0.0,
            skip_patience_steps: 10,
            group: Vec::new(),
        }
    }

    /// When steps are left out.
    pub fn skip_rule(&self) -> SkipRule {
        SkipRule {
            nonfinite: self.skip_nonfinite,
            spike_factor: self.skip_spike_factor,
            patience: self.skip_patience_steps,
        }
    }

    /// The schedule over a run of `steps`.
    pub fn schedule(&self, steps: u64) -> Schedule {
        Schedule {
            kind: self.schedule,
            peak: self.lr_peak,
            warmup: match self.warmup_steps {
                0 => (self.warmup_fraction * steps as f64).ceil() as u64,
                n => n,
            },
            steps,
            decay_fraction: self.decay_fraction,
            final_fraction: self.final_fraction,
        }
    }
}
