//! The JSON Schema (draft 2020-12) of a run's configuration, by which editors complete and check files.
//!
//! Types, choices and descriptions are those of the structs, through schemars; keys and defaults are those of the defaults
//! that a file is laid over ([`RunConfig::defaults`]). A file differs from the structs in a few ways that are settled
//! here: nothing has to be given, nothing unknown may be, `init_from` stands in `[model]`, an optimiser has its own keys
//! beside those of all, and a group's optimiser may be a name alone. Ranges that types do not express are left to
//! `evenkeel config check`.

use super::telemetry::{ALARM_REQUIRED, alarm_table};
use super::{ConfigError, RunConfig};
use crate::metrics::Metrics;
use crate::model;
use crate::optim::{OptimConfig, OptimizerName, Rule};
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

impl RunConfig {
    /// The schema of a configuration file. Defaults of `[model]` are this configuration's, those of `[optim]` each
    /// optimiser's own.
    ///
    /// # Errors
    /// Never for a configuration that was loaded.
    pub fn schema(&self) -> Result<Value, ConfigError> {
        // Without references: the same type has another default in another place.
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let mut root = settings.into_generator().into_root_schema_for::<RunConfig>().to_value();
        tidy(&mut root);
        let mut tables = object(root["properties"].take());
        let defaults = object(json_of(self)?);
        for name in ["model", "data", "train", "telemetry"] {
            if let (Some(table), Some(defaults)) = (tables.get_mut(name), defaults.get(name)) {
                close(table, &object(defaults.clone()));
            }
        }
        let init_from = tables.remove("init_from").unwrap_or_default();
        let model = &mut tables["model"]["properties"];
        model["init_from"] = with_default(init_from, Value::from(self.init_from.as_str()));
        model["preset"]["enum"] = model::presets().map(|p| p.0).collect();
        tables["optim"] = optim(tables["optim"].take())?;
        let alarm = &mut tables["alarm"]["items"];
        close(alarm, &optional(json_of(&alarm_table())?, &ALARM_REQUIRED));
        alarm["properties"]["metric"]["enum"] = Metrics::NAMES.into();
        alarm["required"] = ALARM_REQUIRED.into();
        Ok(json!({
            "$schema": root["$schema"],
            "title": "Configuration of an evenkeel training run",
            "type": "object",
            "properties": tables,
            "additionalProperties": false,
        }))
    }
}

/// `[optim]`: one way to write it for each optimiser.
fn optim(mut table: Value) -> Result<Value, ConfigError> {
    let rules = rules(table["oneOf"].take());
    let mut common = object(table["properties"].take());
    let mut group = common.remove("group").unwrap_or_default();
    let items = &mut group["items"];
    items["properties"]["optimizer"] = group_optimizer(items["properties"]["optimizer"].take(), &rules)?;
    items["properties"]["lr_factor"]["default"] = 1.0.into();
    let mut ways = Vec::new();
    for (name, rule) in &rules {
        let mut way = rule.clone();
        let mut properties = object(way["properties"].take());
        properties.extend(common.clone());
        way["properties"] = properties.into();
        close(&mut way, &object(json_of(&OptimConfig::defaults(*name))?));
        way["properties"]["group"] = group.clone();
        add_aliases(&mut way, *name);
        // The only one that need not be named.
        if *name != OptimizerName::Adamw {
            way["required"] = json!(["name"]);
        }
        ways.push(way);
    }
    Ok(json!({ "description": table["description"], "type": "object", "oneOf": ways }))
}

/// The optimiser of a group: a name, or a table with it and what differs from its defaults.
fn group_optimizer(schema: Value, rules: &[(OptimizerName, Value)]) -> Result<Value, ConfigError> {
    let names: Vec<&str> = rules.iter().map(|(name, _)| name.name()).collect();
    let mut ways = vec![json!({ "type": "string", "enum": names })];
    for (name, rule) in rules {
        let mut way = rule.clone();
        close(&mut way, &object(json_of(&Rule::for_training(*name))?));
        add_aliases(&mut way, *name);
        if *name != OptimizerName::Adamw {
            way["required"] = json!(["name"]);
        }
        ways.push(way);
    }
    Ok(json!({ "description": schema["description"], "anyOf": ways }))
}

/// The schema of each optimiser's own keys.
fn rules(ways: Value) -> Vec<(OptimizerName, Value)> {
    let Value::Array(ways) = ways else { return Vec::new() };
    let named = |mut way: Value| {
        let name = OptimizerName::from_name(way["properties"]["name"]["const"].as_str()?)?;
        way["title"] = name.name().into();
        Some((name, way))
    };
    ways.into_iter().filter_map(named).collect()
}

fn add_aliases(table: &mut Value, optimizer: OptimizerName) {
    for (alias, key) in optimizer.aliases() {
        let mut same = table["properties"][*key].clone();
        same["description"] = format!("Another name of `{key}`.").into();
        table["properties"][*alias] = same;
    }
}

/// Makes a table as files have it: the keys that there are defaults for and no others, none of them required.
fn close(table: &mut Value, defaults: &Object) {
    let properties = object(table["properties"].take()).into_iter();
    let known = properties.filter_map(|(key, schema)| {
        let default = defaults.get(&key)?.clone();
        Some((key, with_default(schema, default)))
    });
    table["properties"] = known.collect::<Object>().into();
    table["additionalProperties"] = false.into();
    if let Value::Object(table) = table {
        table.remove("required");
    }
}

/// Defaults of a table whose `required` keys have none.
fn optional(defaults: Value, required: &[&str]) -> Object {
    let without = |(key, value)| {
        if required.contains(&String::as_str(&key)) { (key, Value::Null) } else { (key, value) }
    };
    object(defaults).into_iter().map(without).collect()
}

/// The schema of a key with what it is if it is not given; null stands for no default, which TOML could not write.
fn with_default(mut schema: Value, default: Value) -> Value {
    if !default.is_null() && schema.get("const").is_none() {
        schema["default"] = default;
    }
    schema
}

/// Takes out what files have no use for: Rust's number formats, null, defaults of checkpoints, rustdoc's links.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for key in ["format", "default", "title"] {
                object.remove(key);
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = plain(text);
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if let [one] = &mut types[..] {
                    let one = one.take();
                    object.insert("type".into(), one);
                }
            }
            for (key, inner) in object.iter_mut() {
                match inner {
                    // Its keys are not the schema's.
                    Value::Object(properties) if key == "properties" => {
                        properties.values_mut().for_each(tidy)
                    }
                    inner => tidy(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A doc comment on one line, its links as plain names.
fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace("[`crate::", "`").replace("[`", "`").replace("`]", "`")
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

fn json_of(value: &impl Serialize) -> Result<Value, ConfigError> {
    serde_json::to_value(value).map_err(|e| ConfigError::Value { problem: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::to_table;
    use std::collections::BTreeSet;

    fn keys(value: &Value) -> BTreeSet<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// Why `value` is not what `schema` describes. Knows the keywords that the schema uses, and no others.
    fn problem(value: &Value, schema: &Value) -> Option<String> {
        let wrong = |what: &str| Some(format!("{value}: not {what} {schema}"));
        for (keyword, wanted) in schema.as_object().unwrap() {
            let list = || wanted.as_array().unwrap().iter();
            let fits = match keyword.as_str() {
                "$schema" | "title" | "description" | "default" => true,
                "type" => match wanted.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    other => panic!("type {other}"),
                },
                "const" => value == wanted,
                "enum" => list().any(|one| one == value),
                "minimum" => value.as_f64().is_none_or(|v| v >= wanted.as_f64().unwrap()),
                "minItems" => value.as_array().is_none_or(|v| v.len() as u64 >= wanted.as_u64().unwrap()),
                "maxItems" => value.as_array().is_none_or(|v| v.len() as u64 <= wanted.as_u64().unwrap()),
                // A name, a bracket, numbers and a bracket.
                "pattern" => {
                    let (name, _) = wanted.as_str().unwrap()[1..].split_once("\\(").unwrap();
                    value.as_str().is_some_and(|v| v.starts_with(&format!("{name}(")) && v.ends_with(')'))
                }
                "required" => list().all(|key| value.get(key.as_str().unwrap()).is_some()),
                "anyOf" => list().any(|one| problem(value, one).is_none()),
                "oneOf" => list().filter(|one| problem(value, one).is_none()).count() == 1,
                "items" => match value.as_array() {
                    Some(items) => items.iter().all(|item| problem(item, wanted).is_none()),
                    None => true,
                },
                "properties" => {
                    let inside = |(key, inner)| problem(value.get::<&String>(key)?, inner);
                    if let Some(problem) = wanted.as_object().unwrap().iter().find_map(inside) {
                        return Some(problem);
                    }
                    true
                }
                "additionalProperties" => {
                    assert_eq!(wanted, false);
                    keys(value).is_subset(&keys(&schema["properties"]))
                }
                other => panic!("keyword {other}"),
            };
            if !fits {
                return wrong(keyword);
            }
        }
        None
    }

    fn file(config: &RunConfig) -> Value {
        let text = config.to_toml().unwrap();
        serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
    }

    #[test]
    fn keys_are_those_of_the_defaults() {
        for optimizer in OptimizerName::ALL {
            let config = RunConfig::defaults("op", optimizer).unwrap();
            let (schema, file) = (config.schema().unwrap(), file(&config));
            assert_eq!(problem(&file, &schema), None);
            let tables = &schema["properties"];
            assert_eq!(
                keys(tables),
                [&keys(&file), &BTreeSet::from(["alarm"])].into_iter().flatten().copied().collect()
            );
            let mut all: Vec<(&str, &Value)> =
                ["model", "data", "train", "telemetry"].map(|t| (t, &tables[t])).to_vec();
            let ways = tables["optim"]["oneOf"].as_array().unwrap();
            assert_eq!(ways.len(), OptimizerName::ALL.len());
            all.push(("optim", ways.iter().find(|way| way["title"] == optimizer.name()).unwrap()));
            for (name, table) in all {
                let extra =
                    ["group", "momentum"].into_iter().filter(|key| table["properties"].get(*key).is_some());
                let known: BTreeSet<&str> = keys(&file[name]).into_iter().chain(extra).collect();
                assert_eq!(keys(&table["properties"]), known, "{name}");
                assert_eq!(table["additionalProperties"], false);
                for (key, schema) in table["properties"].as_object().unwrap() {
                    let said = schema["description"].as_str().unwrap_or_default();
                    // The name is described by the choice itself.
                    assert!(!said.is_empty() || (name, key.as_str()) == ("optim", "name"), "{name}.{key}");
                    assert!(!said.contains("[`") && !said.contains('\n'), "{said}");
                    let default = schema.get("default").or(schema.get("const"));
                    match file[name].get(key) {
                        Some(value) => assert_eq!(default, Some(value), "{name}.{key}"),
                        None => assert!(extra_key(key), "{name}.{key}"),
                    }
                }
            }
        }
    }

    fn extra_key(key: &str) -> bool {
        ["group", "momentum"].contains(&key)
    }

    #[test]
    fn files_that_load_are_valid_and_others_are_not() {
        let schema = RunConfig::defaults("pre_ln", OptimizerName::Adamw).unwrap().schema().unwrap();
        let said = |text: &str| {
            let table = text.parse::<toml::Table>().unwrap();
            let loads = RunConfig::from_table(table.clone(), &[]);
            let problem = problem(&serde_json::to_value(&table).unwrap(), &schema);
            assert_eq!(loads.is_ok(), problem.is_none(), "{text}: {loads:?} {problem:?}");
            problem.is_none()
        };
        for (preset, _) in model::presets() {
            assert!(said(&RunConfig::defaults(preset, OptimizerName::Soap).unwrap().to_toml().unwrap()));
        }
        for text in [
            "",
            "[model]\nbeta = 1\ninit_from = 'x'",
            "[model]\nbeta = 'inv_sqrt_depth'\nsoftmax = 'clipped(-0.03, 1)'\nactivation = 'leaky_relu(0.1)'",
            "[model]\nbiases = ['q', 'up']\nimage = [1, 2, 3]\nrope_scaling = 'llama3(8, 1, 4, 8192)'",
            "[optim]\nname = 'sgd'\nmomentum = 0.9",
            "[optim]\nbeta1 = 0.9",
            "[[optim.group]]\nmatch = ['embed.*']\noptimizer = 'soap'",
            "[[optim.group]]\nmatch = ['embed.*']\nweight_decay = 0\noptimizer = {name = 'muon', momentum = 0.5}",
            "[[alarm]]\nmetric = 'rms'\nabove = 1\naction = 'stop'",
        ] {
            assert!(said(text), "{text}");
        }
        for text in [
            "[modle]",
            "[model]\ndepht = 3",
            "[model]\ndepth = 'x'",
            "[model]\ndepth = -1",
            "[model]\nnorm = 'lyer'",
            "[model]\npreset = 'opp'",
            "[model]\ninit = 'normal'",
            "[model]\npadding_id = 1",
            "[optim]\nname = 'adam'",
            "[optim]\nprecondition_frequency = 3",
            "[optim]\nmomentum = 0.9",
            "[optim]\nname = 'soap'\ngroup = [{lr_factor = 2.0}]",
            "[[optim.group]]\nmatch = ['embed.*']\noptimizer = {name = 'muon', beta7 = 0.5}",
            "[train]\nprecision = 'f16'",
            "[telemetry]\ngram = 'token'",
            "[telemetry]\ntensorboard = 'yes'",
            "[[alarm]]\nmetric = 'rms'",
            "[[alarm]]\nmetric = 'rmss'\nabove = 1",
            "[[alarm]]\nmetric = 'rms'\nabove = 1\naction = 'halt'",
        ] {
            assert!(!said(text), "{text}");
        }
    }

    #[test]
    fn every_known_key_of_an_alarm_is_there() {
        let config = RunConfig::defaults("pre_ln", OptimizerName::Adamw).unwrap();
        let schema = config.schema().unwrap();
        let alarm = &schema["properties"]["alarm"]["items"]["properties"];
        assert_eq!(keys(alarm), alarm_table().keys().map(String::as_str).collect());
        assert_eq!((&alarm["patience"]["default"], alarm["above"].get("default")), (&json!(1), None));
        assert!(to_table(&config).is_ok());
    }
}
