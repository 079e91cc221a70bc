//! The table `[optim]`: an optimiser's keys, `[[optim.group]]`, and the ranges that types do not express.

use super::{ConfigError, Override, overlay, shown};
use crate::names::NameFilter;
use crate::optim::{OptimConfig, OptimizerName, Rule, ScheduleKind};
use toml::{Table, Value};

/// The optimiser that a table names.
pub(super) fn name_of(table: Option<&Value>, path: &str) -> Result<OptimizerName, ConfigError> {
    match table {
        None => Ok(OptimizerName::Adamw),
        Some(Value::String(name)) => OptimizerName::from_name(name).ok_or_else(|| ConfigError::UnknownName {
            kind: "optimizer",
            name: name.clone(),
            known: OptimizerName::ALL.map(OptimizerName::name).join(", "),
        }),
        Some(other) => {
            Err(ConfigError::Type { key: path.to_string(), expected: "a string".into(), found: shown(other) })
        }
    }
}

/// Gives keys that are known by another name their own. One level of precedence at a time, so that a weaker one does not
/// win by its name.
pub(super) fn resolve_aliases(
    table: &mut Table,
    optimizer: OptimizerName,
    path: &str,
) -> Result<(), ConfigError> {
    let known: Vec<(String, &str)> =
        table.keys().filter_map(|key| Some((key.clone(), optimizer.alias(key)?))).collect();
    for (key, own) in known {
        if let Some(value) = table.remove(&key)
            && table.insert(own.into(), value).is_some()
        {
            return Err(ConfigError::Value {
                problem: format!("`{path}.{key}` and `{path}.{own}` are one key: give one of them"),
            });
        }
    }
    Ok(())
}

/// Keys of `[optim]` that mean the same for every optimiser that has them.
const COMMON: [&str; 15] = [
    "name",
    "lr_peak",
    "schedule",
    "warmup_fraction",
    "warmup_steps",
    "decay_fraction",
    "final_fraction",
    "weight_decay",
    "clip_norm",
    "clip_value",
    "skip_nonfinite",
    "skip_spike_factor",
    "skip_patience_steps",
    "group",
    "max_precond_dim",
];

/// Applies overrides to a file: the optimiser is settled first, since it decides what keys mean. One that is set from
/// outside over a file that spells another's settings out is refused, since it would run with those, unless all of them are
/// set from outside as well.
pub(super) fn apply(user: &mut Table, overrides: &[Override]) -> Result<OptimizerName, ConfigError> {
    let named = |table: &Table| name_of(table.get("optim").and_then(|o| o.get("name")), "optim.name");
    let mut both = user.clone();
    for o in overrides {
        o.apply(&mut both)?;
    }
    let (given, optimizer) = (named(user).ok(), named(&both)?);
    if let Some(Value::Table(table)) = user.get_mut("optim") {
        if let Some(given) = given.filter(|given| *given != optimizer) {
            let replaced = |key: &str| {
                overrides.iter().any(|o| {
                    let own = o.key.strip_prefix("optim.");
                    own.is_some_and(|own| {
                        own == key || optimizer.alias(own).is_some_and(|known| known == key)
                    })
                })
            };
            refuse_settings_of(given, optimizer, table, &replaced)?;
        }
        resolve_aliases(table, optimizer, "optim")?;
    }
    for o in overrides {
        let mut own = o.clone();
        match (o.key.strip_prefix("optim.").and_then(|key| optimizer.alias(key)), &mut own.value) {
            (Some(known), _) => own.key = format!("optim.{known}"),
            (None, Value::Table(table)) if o.key == "optim" => resolve_aliases(table, optimizer, "optim")?,
            _ => {}
        }
        own.apply(user)?;
    }
    Ok(optimizer)
}

fn refuse_settings_of(
    given: OptimizerName,
    set: OptimizerName,
    table: &Table,
    replaced: &dyn Fn(&str) -> bool,
) -> Result<(), ConfigError> {
    let stays = |key: &&str| !COMMON.contains(key) && !replaced(key);
    let own: Vec<&str> = table.keys().map(String::as_str).filter(stays).collect();
    if own.is_empty() {
        return Ok(());
    }
    let more = if own.len() > 3 { ", ..." } else { "" };
    let by_default = if table.contains_key("name") { "" } else { ", the default," };
    Err(ConfigError::Optimizer {
        given: format!("\"{}\"{by_default}", given.name()),
        set: set.name().to_string(),
        keys: format!("{}{more}", own[..own.len().min(3)].join(", ")),
    })
}

/// The user's `[[optim.group]]` tables with their optimisers written out.
pub(super) fn complete_groups(groups: Vec<Value>) -> Result<Vec<Value>, ConfigError> {
    let complete = |(i, mut group): (usize, Value)| {
        let Some(optimizer) = group.as_table_mut().and_then(|g| g.remove("optimizer")) else {
            return Ok(group);
        };
        let path = format!("optim.group[{i}].optimizer");
        let mut given = match optimizer {
            Value::Table(table) => table,
            name => Table::from_iter([("name".to_string(), name)]),
        };
        let name = name_of(given.get("name"), &path)?;
        resolve_aliases(&mut given, name, &path)?;
        let written = Value::try_from(Rule::for_training(name));
        let Ok(Value::Table(mut full)) = written else {
            return Err(ConfigError::Value { problem: format!("`{path}` cannot be written out") });
        };
        overlay(&mut full, given, &path)?;
        if let Some(group) = group.as_table_mut() {
            group.insert("optimizer".into(), Value::Table(full));
        }
        Ok(group)
    };
    groups.into_iter().enumerate().map(complete).collect()
}

fn refuse(problem: String) -> Result<(), ConfigError> {
    Err(ConfigError::Value { problem })
}

fn at_least_zero(key: &str, value: f64) -> Result<(), ConfigError> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => refuse(format!("{key} must be a number of at least 0, not {value}")),
    }
}

pub(super) fn validate(o: &OptimConfig) -> Result<(), ConfigError> {
    if !(o.lr_peak.is_finite() && o.lr_peak > 0.0) {
        return refuse("optim.lr_peak must be a positive number".into());
    }
    for (key, value) in [
        ("weight_decay", o.weight_decay),
        ("clip_norm", o.clip_norm),
        ("clip_value", o.clip_value),
        ("skip_spike_factor", o.skip_spike_factor),
    ] {
        at_least_zero(&format!("optim.{key}"), value)?;
    }
    if o.skip_spike_factor > 0.0 && o.skip_spike_factor <= 1.0 {
        return refuse(
            "optim.skip_spike_factor must be above 1, since it is a factor on the average norm".into(),
        );
    }
    if o.skip_patience_steps == 0 && (o.skip_nonfinite || o.skip_spike_factor > 0.0) {
        return refuse("optim.skip_patience_steps must be at least 1, or no step can be left out".into());
    }
    for (key, value) in [
        ("warmup_fraction", o.warmup_fraction),
        ("decay_fraction", o.decay_fraction),
        ("final_fraction", o.final_fraction),
    ] {
        if !(0.0..=1.0).contains(&value) {
            return refuse(format!("optim.{key} must lie between 0 and 1, not {value}"));
        }
    }
    if o.schedule == ScheduleKind::InverseSqrt && o.warmup_steps == 0 && o.warmup_fraction == 0.0 {
        return refuse(
            "optim.schedule = \"inverse_sqrt\" falls from the end of the warm-up: set warmup_steps or warmup_fraction"
                .into(),
        );
    }
    validate_rule(&o.rule, "optim")?;
    for (i, group) in o.group.iter().enumerate() {
        NameFilter::new(&group.patterns).map_err(|e| ConfigError::Value { problem: e.to_string() })?;
        for value in [Some(group.lr_factor), group.weight_decay].into_iter().flatten() {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(
                    "lr_factor and weight_decay of an [[optim.group]] must be numbers of at least 0".into(),
                );
            }
        }
        if let Some(rule) = &group.optimizer {
            validate_rule(rule, &format!("optim.group[{i}].optimizer"))?;
        }
    }
    Ok(())
}

/// By the name of the key, which means the same in every optimiser.
fn validate_rule(rule: &Rule, path: &str) -> Result<(), ConfigError> {
    let table = match Value::try_from(rule) {
        Ok(Value::Table(table)) => table,
        _ => return refuse(format!("`{path}` cannot be written out")),
    };
    for (key, value) in &table {
        let full = format!("{path}.{key}");
        let (usable, wanted) = match (key.as_str(), value) {
            ("beta1" | "beta2" | "adamw_beta1" | "adamw_beta2" | "dampening", Value::Float(v)) => {
                ((0.0..1.0).contains(v), "be at least 0 and below 1")
            }
            ("shampoo_beta", Value::Float(v)) => (*v < 1.0, "be below 1 (a negative value means beta2)"),
            ("exponent", Value::Float(v)) => (*v > 0.0 && *v <= 0.5, "be above 0 and at most 0.5"),
            ("newton_schulz_steps", Value::Integer(v)) => ((1..=100).contains(v), "lie between 1 and 100"),
            (_, Value::Float(v)) => (v.is_finite() && *v >= 0.0, "be a number of at least 0"),
            _ => continue,
        };
        if !usable {
            return refuse(format!("{full} must {wanted}, not {value}"));
        }
    }
    match rule {
        Rule::Sgd(sgd) if sgd.nesterov && (sgd.beta1 == 0.0 || sgd.dampening > 0.0) => {
            refuse(format!("{path}.nesterov needs momentum (beta1) and no dampening"))
        }
        Rule::Muon(muon) => match NameFilter::new(&muon.adamw_match) {
            Ok(_) => Ok(()),
            Err(e) => refuse(format!("{path}.adamw_match: {e}")),
        },
        _ => Ok(()),
    }
}
