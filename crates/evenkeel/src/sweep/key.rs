//! The name of a run: a hash of everything that determines it.
//!
//! The text that is hashed is the resolved configuration, every key written out and sorted, and what is measured at the end.
//! A record keeps its configuration as it was resolved then; when it is read the configuration is resolved again, so that
//! a key which was added since, and has its default, changes no name.

use super::record::Measure;
use crate::config::{ConfigError, RunConfig};
use crate::random::{FNV_OFFSET, fnv1a, mix};
use toml::Value;

/// 16 hexadecimal digits that no other run has.
///
/// # Errors
/// Never for a configuration that was loaded.
pub fn key(config: &RunConfig, measure: &Measure) -> Result<String, ConfigError> {
    let bad = |e: String| ConfigError::Value { problem: e };
    let table: toml::Table = config.to_toml()?.parse().map_err(|e: toml::de::Error| bad(e.to_string()))?;
    let measure = Value::try_from(measure).map_err(|e| bad(e.to_string()))?;
    let mut text = String::new();
    canonical(&Value::Table(table), &mut text);
    canonical(&measure, &mut text);
    Ok(format!("{:016x}", mix(fnv1a(FNV_OFFSET, text.as_bytes()))))
}

/// Keys in order, and numbers that are equal written equally.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Table(table) => {
            let mut keys: Vec<&String> = table.keys().collect();
            keys.sort();
            out.push('{');
            for key in keys {
                out.push_str(key);
                out.push('=');
                canonical(&table[key], out);
                out.push(';');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(';');
            }
            out.push(']');
        }
        Value::Float(v) => out.push_str(&format!("{v:?}")),
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Override;

    fn of(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<Override> = overrides.iter().map(|o| Override::parse(o).unwrap()).collect();
        let config = RunConfig::from_table(text.parse().unwrap(), &overrides).unwrap();
        key(&config, &Measure::default()).unwrap()
    }

    #[test]
    fn what_is_written_out_changes_no_name_and_what_differs_does() {
        let plain = of("[model]\npreset = \"op\"", &[]);
        assert_eq!(plain.len(), 16);
        assert_eq!(plain, of("[train]\nseed = 0\n[model]\npreset = \"op\"\ndepth = 6", &[]));
        assert_eq!(plain, of("[model]\npreset = \"op\"\n[optim]\nlr_peak = 1e-3", &["optim.lr_peak=0.001"]));
        let resolved = RunConfig::from_table("[model]\npreset = \"op\"".parse().unwrap(), &[]).unwrap();
        assert_eq!(plain, of(&resolved.to_toml().unwrap(), &[]), "a resolved file is the same run");
        for other in ["train.seed=1", "optim.lr_peak=0.002", "telemetry.stats_every_steps=1", "data.path=x"] {
            assert_ne!(plain, of("[model]\npreset = \"op\"", &[other]), "{other}");
        }
        let config = RunConfig::from_table(toml::Table::new(), &[]).unwrap();
        let schemes = Measure { quantize: vec!["w8a8".into()], ..Measure::default() };
        assert_ne!(key(&config, &schemes).unwrap(), key(&config, &Measure::default()).unwrap());
    }
}
