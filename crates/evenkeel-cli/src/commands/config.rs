//! `config list`, `config show PRESET`, `config schema`, `config check FILE`.

use crate::args::{Config, ConfigCommand};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::config::{Override, RunConfig};
use evenkeel::model::{presets, sizes};
use evenkeel::quant::{PRESETS, Scheme};
use serde_json::json;

pub(crate) fn run(args: Config, settings: &Settings) -> Result<Exit, Failure> {
    match args.command {
        ConfigCommand::List if settings.json => {
            let presets: Vec<_> = presets().map(|(n, d)| json!({"name": n, "description": d})).collect();
            let schemes: Vec<_> =
                PRESETS.iter().map(|(n, d, _)| json!({"name": n, "description": d})).collect();
            let sizes: Vec<_> =
                sizes().iter().map(|s| json!({"name": s.name, "description": s.description})).collect();
            output::json(&json!({"schema": 1, "presets": presets, "sizes": sizes, "schemes": schemes}));
        }
        ConfigCommand::List => {
            for (name, description) in presets() {
                output::line(&format!("{name:15} {description}"));
            }
            output::line("\nSizes, for any preset (model.size):");
            for size in sizes() {
                output::line(&format!("{:15} {}", size.name, size.description));
            }
            output::line("\nQuantisation schemes:");
            for (name, description, _) in PRESETS {
                output::line(&format!("{name:15} {description}"));
            }
        }
        ConfigCommand::Show { preset } if PRESETS.iter().any(|p| p.0 == preset) => {
            let scheme = Scheme::preset(&preset)?;
            if settings.json {
                output::json(&json!({"schema": 1, "scheme": scheme}));
            } else {
                output::result(&scheme.to_toml());
            }
        }
        ConfigCommand::Show { preset } => {
            let mut overrides = settings.overrides.clone();
            overrides.push(Override::text("model.preset", &preset));
            let config = RunConfig::from_table(Default::default(), &overrides)?;
            show(&config, settings)?;
        }
        ConfigCommand::Schema => {
            // With --set model.preset=NAME the defaults of [model] are those of that preset.
            let schema = RunConfig::from_table(Default::default(), &settings.overrides)?.schema()?;
            if settings.json {
                output::json(&json!({"schema": 1, "config": schema}));
            } else {
                output::json(&schema);
            }
        }
        ConfigCommand::Check { file } => {
            let config = RunConfig::load(&file, &settings.overrides)?;
            let mut model = config.model.clone();
            // The vocabulary may come from the data, which is not opened here.
            model.vocab = model.vocab.max(1);
            model.validate()?;
            if settings.json {
                show(&config, settings)?;
            } else {
                output::line(&format!("{} is a valid configuration", file.display()));
            }
        }
    }
    Ok(Exit::Done)
}

fn show(config: &RunConfig, settings: &Settings) -> Result<(), Failure> {
    if settings.json {
        output::json(&json!({"schema": 1, "config": config}));
    } else {
        output::result(&config.to_toml()?);
    }
    Ok(())
}
