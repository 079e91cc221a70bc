//! Reading configurations: precedence, types, what is refused, round trips.

use super::*;

fn load(text: &str) -> Result<RunConfig, ConfigError> {
    RunConfig::from_table(text.parse().unwrap(), &[])
}

#[test]
fn defaults_survive_a_round_trip() {
    for (preset, _) in model::presets() {
        for optimizer in OptimizerName::ALL {
            let config = RunConfig::defaults(preset, optimizer).unwrap();
            assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
        }
    }
}

#[test]
fn a_file_that_spells_a_preset_out_is_not_laid_over_another() {
    let set = [Override::text("model.preset", "gated_attention")];
    let with = |text: &str| RunConfig::from_table(text.parse().unwrap(), &set);
    let sizes = with("[model]\npreset = 'op'\ndepth = 3\ninit_from = 'x'").unwrap();
    assert_eq!((sizes.model.preset.as_str(), sizes.model.depth), ("gated_attention", 3));
    assert_eq!(sizes.model.gate, model::config::Gate::PerToken);
    let error = with("[model]\npreset = 'op'\nbeta = 0.1\ngate = 'none'").unwrap_err().to_string();
    assert!(error.contains("beta, gate") && error.contains("\"op\""), "{error}");
    assert!(with("[model]\npreset = 'gated_attention'\nbeta = 0.1").is_ok());
}

#[test]
fn precedence_and_types() {
    let file = "[model]\npreset = 'op'\ndepth = 3\nbeta = 0.25\ninit_from = 'x'\n[optim]\nlr_peak = 1";
    let set = [Override::parse("model.depth=5").unwrap(), Override::new("model.init", "normal(0.02)")];
    let config = RunConfig::from_table(file.parse().unwrap(), &set).unwrap();
    assert_eq!((config.model.depth, config.optim.lr_peak), (5, 1.0));
    assert_eq!(config.model.beta, model::config::Beta::Value(0.25));
    assert_eq!(config.model.init, model::config::Init::Normal(0.02));
    assert_eq!(config.init_from, "x");
    assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn errors_name_the_key() {
    let message = |text: &str| load(text).unwrap_err().to_string();
    assert!(message("[optim]\nlr_peek = 1").contains("`optim.lr_peak`"));
    assert!(message("[model]\ndepth = 'x'").contains("`model.depth` must be a whole number"));
    assert!(message("[model]\npreset = 'opp'").contains("pre_ln, pre_rms, pre_srms, post_ln, op, op_paper"));
    assert!(message("[optim]\nname = 'adamw'\nmomentum = 3").contains("unknown key"));
    assert!(message("[optim]\nprecondition_frequency = 3").contains("unknown key"));
    assert!(message("[train]\nsteps = 0").contains("train.steps"));
    assert!(message("[model]\nnorm = 'lyer'").contains("lyer"));
    assert!(Override::parse("novalue").is_err());
}

#[test]
fn alarms_are_completed_kept_and_absent_by_default() {
    let defaults = RunConfig::defaults("op", OptimizerName::Soap).unwrap().to_toml().unwrap();
    assert!(!defaults.contains("alarm"), "{defaults}");
    let file = "[[alarm]]\nmetric = 'kurtosis'\nabove = 10\n\
                [[alarm]]\nmetric = 'rms'\nabove = 2.5\nsites = ['final_norm']\npatience = 3\naction = 'stop'";
    let config = load(file).unwrap();
    assert_eq!(
        config.alarm[0],
        AlarmConfig {
            metric: "kurtosis".into(),
            sites: vec!["embed".into(), "blocks.*.resid".into()],
            above: 10.0,
            patience: 1,
            action: AlarmAction::Log,
        }
    );
    assert_eq!((config.alarm[1].patience, config.alarm[1].action), (3, AlarmAction::Stop));
    assert_eq!(config.telemetry.measured_sites(&config.alarm).last().unwrap(), "final_norm");
    assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
    let set = Override::parse("alarm=[{metric='mmr', above=4}]").unwrap();
    let over = RunConfig::from_table(file.parse().unwrap(), &[set]).unwrap();
    assert_eq!((over.alarm.len(), over.alarm[0].metric.as_str()), (1, "mmr"));
}

#[test]
fn bad_alarms_name_what_is_near() {
    let error = |keys: &str| load(&format!("[[alarm]]\n{keys}")).unwrap_err();
    for (keys, part) in [
        ("metric = 'kurtosi'\nabove = 1", "the nearest is \"kurtosis\""),
        ("metric = 'rms'\nabov = 1", "`alarm[0].above`"),
        ("metric = 'rms'", "`alarm[0]` has no `above`"),
        ("above = 1", "`alarm[0]` has no `metric`"),
        ("metric = 'rms'\nabove = inf", "`alarm[0].above` must be a finite number"),
        ("metric = 'rms'\nabove = 'much'", "`alarm[0].above` must be a number"),
        ("metric = 'rms'\nabove = 1\npatience = 0", "`alarm[0].patience`"),
        ("metric = 'rms'\nabove = 1\npatience = -1", "`alarm[0].patience`"),
        ("metric = 'rms'\nabove = 1\naction = 'halt'", "`alarm[0].action`"),
        ("metric = 'rms'\nabove = 1\nsites = ['{']", "alarm[0].sites: \"{\" is not a glob"),
        ("metric = 'rms'\nabove = 1\nsites = []", "names no site"),
        ("metric = 'rms'\nabove = 1\n[telemetry]\nstats_every_steps = 0", "stats_every_steps is 0"),
    ] {
        let error = error(keys);
        assert!(error.to_string().contains(part), "{keys}: {error}");
    }
    assert!(error("metric = 'rms'\nabov = 1").hint().contains("[[alarm]]"));
    assert!(load("[[alarms]]\nmetric = 'rms'").unwrap_err().to_string().contains("`alarm`"));
    assert!(load("alarm = [3]").unwrap_err().to_string().contains("`alarm[0]` must be a table, not 3"));
}

#[test]
fn environment_names_become_paths() {
    let found = Override::from_environment(
        [("EVENKEEL_SET_OPTIM__LR_PEAK".to_string(), "2e-3".to_string()), ("HOME".into(), "/".into())]
            .into_iter(),
    );
    assert_eq!(found, vec![Override::new("optim.lr_peak", "2e-3")]);
}

#[test]
fn a_size_stands_for_numbers_that_the_file_may_change() {
    let load = |text: &str, set: &[Override]| RunConfig::from_table(text.parse().unwrap(), set);
    let sizes = |c: RunConfig| (c.model.preset, c.model.depth, c.model.width, c.model.heads, c.model.context);
    let config = load("[model]\npreset = 'op'\nsize = '320m'\ndepth = 3", &[]).unwrap();
    assert!(!config.to_toml().unwrap().contains("320m"));
    assert_eq!(sizes(config), ("op".into(), 3, 1024, 16, 512));
    let set = [Override::text("model.size", "7b")];
    assert_eq!(sizes(load("[model]\npreset = 'osp'", &set).unwrap()), ("osp".into(), 32, 4096, 32, 2048));
    let error = load("[model]\nwidth = 8\ndepth = 1", &set).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.size cannot be set to \"7b\": the file sets depth, width, which would stay"
    );
    let error = load("[model]\nsize = '7B'", &[]).unwrap_err();
    assert!(error.to_string().contains("known are codeparrot, 100m, 320m, 1.2b, 7b"), "{error}");
    assert!(error.hint().contains("describes the sizes"));
    assert!(matches!(load("[model]\nsize = 7", &[]), Err(ConfigError::Type { .. })));
}

#[test]
fn an_optimiser_set_from_outside_needs_every_setting_of_the_files_set_too() {
    let load = |set: &[Override]| {
        let file = "[optim]\nlr_peak = 1e-3\nbeta1 = 0.9\nbeta2 = 0.999";
        RunConfig::from_table(file.parse().unwrap(), set)
    };
    let soap = Override::text("optim.name", "soap");
    let betas = [("optim.beta1", "0.8"), ("optim.beta2", "0.95")].map(|(k, v)| Override::new(k, v));
    let stay = |set: &[Override]| load(set).unwrap_err().to_string();
    assert!(stay(std::slice::from_ref(&soap)).ends_with("sets beta1, beta2, which would stay"));
    assert!(stay(&[soap.clone(), betas[0].clone()]).ends_with("sets beta2, which would stay"));
    let config = load(&[soap, betas[0].clone(), betas[1].clone()]).unwrap().to_toml().unwrap();
    assert!(config.contains("beta1 = 0.8") && config.contains("beta2 = 0.95"), "{config}");
}
