//! Quantisation schemes: what each preset plans for each model, overrides, and what is refused.

use evenkeel::data::Batch;
use evenkeel::error::Hint;
use evenkeel::model::config::{Norm, NormPosition};
use evenkeel::model::{ModelConfig, Transformer, preset, presets};
use evenkeel::quant::scheme::Residual;
use evenkeel::quant::spec::{Format, Granularity, Range};
use evenkeel::quant::{HeadFormat, PRESETS, Plan, QuantError, Scheme, Simulation};

/// A model preset with twelve blocks, as small as it goes.
fn config(name: &str) -> ModelConfig {
    let mut c = preset(name).unwrap();
    (c.depth, c.width, c.heads, c.vocab, c.context) = (12, 8, 2, 7, 4);
    c
}

fn plan(scheme: &Scheme, config: ModelConfig) -> Result<Plan, QuantError> {
    let model = Transformer::new(config, 1).unwrap();
    scheme.plan(model.config(), model.parameters().iter().map(|p| p.name.as_str()))
}

/// The models whose places are settled.
fn pre_norm_models() -> Vec<ModelConfig> {
    let all = presets().map(|(name, _)| config(name)).filter(|c| !c.reads_images());
    all.filter(|c| c.norm_position == NormPosition::Pre).collect()
}

/// `w8a8` with the overrides.
fn w8a8(overrides: &[(&str, &str)]) -> Scheme {
    let mut scheme = Scheme::preset("w8a8").unwrap();
    overrides.iter().for_each(|(pattern, words)| scheme.set(pattern, words).unwrap());
    scheme
}

/// The quantiser at a site, as words.
fn at(plan: &Plan, site: &str) -> Option<String> {
    plan.activations.iter().find(|(s, _)| s.to_string() == site).map(|(_, spec)| spec.to_string())
}

#[test]
fn every_preset_parses_and_comes_back_from_its_text() {
    for (name, about, text) in PRESETS {
        let scheme = Scheme::preset(name).unwrap();
        assert_eq!(scheme.name, name);
        assert!(!about.is_empty() && Scheme::from_toml("other", text).unwrap().name == "other");
        assert_eq!(Scheme::from_toml("", &scheme.to_toml()).unwrap(), scheme, "{name}");
    }
    let scheme = w8a8(&[("blocks.0.*", "float"), ("head.weight", "int4 channel")]);
    assert_eq!(Scheme::from_toml("", &scheme.to_toml()).unwrap(), scheme);
}

#[test]
fn presets_have_so_many_quantisers() {
    // Per block six matrices, and two gains: of its norms, or of queries and keys. Outside them two tables and the final
    // norm's gain, of `op` also the embedding's.
    let counts = |name| match name {
        "w8a8" | "w8a8_channel" => [(8 * 12 + 3, 13 * 12 + 2), (8 * 12 + 4, 13 * 12 + 2)],
        "w8a8_int8_head" => [(8 * 12 + 4, 13 * 12 + 2), (8 * 12 + 5, 13 * 12 + 2)],
        "w4a16" => [(6 * 12, 0); 2],
        _ => [(6 * 12, 4 * 12); 2],
    };
    for (name, _, _) in PRESETS {
        let scheme = Scheme::preset(name).unwrap();
        let found = ["pre_ln", "op"].map(|model| {
            let plan = plan(&scheme, config(model)).unwrap();
            (plan.weights.len(), plan.activations.len())
        });
        assert_eq!(found, counts(name), "{name}");
    }
}

/// A site that a plan names and a forward pass never reaches would be an error here.
#[test]
fn every_preset_runs_on_every_pre_norm_model() {
    let batch = Batch { inputs: vec![1, 2, 3, 4, 5, 6, 0, 1], targets: vec![0; 8], sequences: 2, context: 4 };
    let models = pre_norm_models();
    assert!(models.len() >= 13);
    let mut runs = 0;
    for config in models {
        let config = ModelConfig { depth: 2, ..config };
        let model = Transformer::new(config, 1).unwrap();
        for (name, _, _) in PRESETS {
            for residual in [Residual::Float, Residual::Int8] {
                let scheme = Scheme { residual, ..Scheme::preset(name).unwrap() };
                let what = format!("{name} of {}", model.config().preset);
                let simulation =
                    Simulation::new(&model, &scheme, &[], std::slice::from_ref(&batch), &mut || {});
                let mut simulation = simulation.unwrap_or_else(|e| panic!("{what}: {e}"));
                let logits = simulation.logits(&batch.inputs, 2).unwrap();
                let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
                assert!(logits.iter().all(|v| v.is_finite()), "{what}");
                runs += 1;
            }
        }
    }
    assert!(runs >= 13 * 11 * 2);
}

#[test]
fn words_for_all_reach_no_site_that_a_model_lacks() {
    for config in pre_norm_models() {
        let name = config.preset.clone();
        let (parallel, qk, gate) = (config.branches.parallel(), &config.qk_norm, &config.gate);
        let lacking = [
            (parallel, "resid_mid"),
            (format!("{qk:?}") == "None", "attn.q_norm"),
            (format!("{gate:?}") == "None", "attn.gate"),
        ];
        let plan = plan(&w8a8(&[("*", "min_max")]), config.clone()).unwrap();
        for (lacks, place) in lacking {
            let planned = at(&plan, &format!("blocks.3.{place}")).is_some();
            assert_eq!(planned, !lacks, "{name} {place}");
        }
    }
}

#[test]
fn overrides_replace_words_or_take_a_quantiser_away() {
    let float = plan(&w8a8(&[("blocks.3.*", "float")]), config("pre_ln")).unwrap();
    assert_eq!((float.weights.len(), float.activations.len()), (99 - 8, 158 - 13));
    let words = plan(&w8a8(&[("blocks.*.mlp.down.weight", "int4 channel")]), config("pre_ln")).unwrap();
    for (name, spec) in &words.weights {
        let changed = name.ends_with("mlp.down.weight");
        let (format, granularity) = match changed {
            true => (Format::Int { bits: 4, symmetric: true }, Granularity::Channel),
            false => (Format::Int { bits: 8, symmetric: true }, Granularity::Tensor),
        };
        assert_eq!((spec.format, spec.granularity, spec.range), (format, granularity, Range::MseFixed));
    }
    // A site that the scheme leaves in float starts from int8 for activations.
    let added = plan(&w8a8(&[("logits", "token dynamic")]), config("pre_ln")).unwrap();
    assert_eq!(added.activations.len(), 159);
    assert_eq!(at(&added, "logits").as_deref(), Some("int8 asymmetric token dynamic"));
}

#[test]
fn of_several_globs_the_last_in_name_order_wins() {
    // In whatever order they are given: `blocks.*` stands before `blocks.0.*`, and that before `blocks.0.resid`.
    let given = [("blocks.0.resid", "running"), ("blocks.*", "float"), ("blocks.0.*", "min_max")];
    for turn in 0..3 {
        let mut given = given;
        given.rotate_left(turn);
        let plan = plan(&w8a8(&given), config("pre_ln")).unwrap();
        assert_eq!(at(&plan, "blocks.1.resid"), None);
        let range = |site| at(&plan, site).unwrap().split(' ').next_back().unwrap().to_string();
        assert_eq!((range("blocks.0.resid"), range("blocks.0.mlp.in")), ("running".into(), "min_max".into()));
    }
}

#[test]
fn a_glob_that_matches_nothing_is_an_error() {
    let error = plan(&w8a8(&[("blocks.12.*", "float")]), config("pre_ln")).unwrap_err();
    assert!(
        matches!(&error, QuantError::PatternFitsNothing { pattern } if pattern == "blocks.12.*"),
        "{error}"
    );
    assert!(error.to_string().contains("blocks.12.*") && !error.hint().is_empty());
    let mut scheme = w8a8(&[]);
    scheme.set("blocks.[", "float").unwrap();
    assert!(matches!(plan(&scheme, config("pre_ln")), Err(QuantError::SchemeText { .. })));
}

#[test]
fn an_int8_head_is_a_weight_and_has_a_quantised_input() {
    let tied = || ModelConfig { tie_head: true, ..config("pre_ln") };
    let preset = Scheme::preset("w8a8_int8_head").unwrap();
    let apart = plan(&preset, config("pre_ln")).unwrap();
    assert_eq!(apart.weights["head.weight"].to_string(), "int8 symmetric channel static mse:0");
    assert_eq!(apart.weights["embed.token.weight"].to_string(), "int8 symmetric tensor static mse_fixed");
    // Tied, both are one matrix, and the head's words hold for it.
    let shared = plan(&preset, tied()).unwrap();
    assert!(!shared.weights.contains_key("head.weight"));
    assert_eq!(shared.weights["embed.token.weight"], apart.weights["head.weight"]);
    assert_eq!((shared.weights.len(), shared.head), (99, HeadFormat::Int8));

    // Under `products` the head brings its input, and the tied table.
    let token = Scheme { head: HeadFormat::Int8, ..Scheme::preset("w8a8_token").unwrap() };
    for config in [config("pre_ln"), tied()] {
        let plan = plan(&token, config).unwrap();
        assert_eq!((plan.weights.len(), plan.activations.len()), (6 * 12 + 1, 4 * 12 + 1));
        assert!(at(&plan, "final_norm").is_some());
    }
    let float = plan(&Scheme::preset("w8a8").unwrap(), tied()).unwrap();
    assert_eq!((float.weights.len(), float.head), (99, HeadFormat::Float));
}

#[test]
fn overrides_of_the_head_decide_what_it_is() {
    let tied = || ModelConfig { tie_head: true, ..config("pre_ln") };
    for config in [config("pre_ln"), tied()] {
        let mut scheme = Scheme::preset("w8a8_token").unwrap();
        scheme.set("head.weight", "int8 channel").unwrap();
        let added = plan(&scheme, config.clone()).unwrap();
        assert_eq!((added.head, added.weights.len(), added.activations.len()), (HeadFormat::Int8, 73, 49));
        let mut scheme = Scheme { head: HeadFormat::Int8, ..scheme };
        scheme.set("head.weight", "float").unwrap();
        let taken = plan(&scheme, config).unwrap();
        assert_eq!((taken.head, taken.weights.len(), taken.activations.len()), (HeadFormat::Float, 72, 48));
    }
}

#[test]
fn a_float_stream_leaves_its_readers_to_quantise() {
    let scheme = Scheme { residual: Residual::Float, ..Scheme::preset("w8a8").unwrap() };
    let op = plan(&scheme, config("op")).unwrap();
    // The stream has 25 sites; 24 matrices' inputs come in their place.
    assert_eq!(op.activations.len(), 158 - 25 + 24);
    let with_norms = plan(&scheme, config("pre_ln")).unwrap();
    assert_eq!(with_norms.activations.len(), 158 - 25);
    let on_grid = plan(&Scheme::preset("w8a8").unwrap(), config("op")).unwrap();
    for (site, float, int8) in
        [("blocks.4.attn.in", true, false), ("blocks.4.mlp.in", true, false), ("blocks.4.resid", false, true)]
    {
        assert_eq!((at(&op, site).is_some(), at(&on_grid, site).is_some()), (float, int8), "{site}");
    }
    // A norm before the first attention alone.
    let first = plan(&Scheme::preset("w8a8").unwrap(), config("op_paper")).unwrap();
    assert!(at(&first, "blocks.0.attn.in").is_some() && at(&first, "blocks.1.attn.in").is_none());
    // Without a final norm the head reads the stream.
    let bare = || ModelConfig { final_norm: Norm::None, ..config("op") };
    for (residual, wants) in [(Residual::Float, true), (Residual::Int8, false)] {
        let scheme = Scheme { residual, ..Scheme::preset("w8a8_int8_head").unwrap() };
        assert_eq!(at(&plan(&scheme, bare()).unwrap(), "final_norm").is_some(), wants);
    }
}

#[test]
fn a_scheme_of_floats_fits_nothing() {
    let text = "weights = \"float\"\nactivations = \"float\"\nplaces = \"all\"\nhead = \"HEAD\"\nresidual = \"float\"\n";
    let with_head = |head| Scheme::from_toml("bare", &text.replace("HEAD", head)).unwrap();
    let error = plan(&with_head("float"), config("pre_ln")).unwrap_err();
    assert!(matches!(&error, QuantError::FitsNothing { scheme } if scheme == "bare"), "{error}");
    assert!(plan(&with_head("bf16"), config("pre_ln")).is_ok());
}

#[test]
fn steps_that_nothing_has_are_refused() {
    let text = |weights: &str, activations: &str| {
        let rest = "places = \"all\"\nhead = \"float\"\nresidual = \"int8\"\n";
        Scheme::from_toml("t", &format!("weights = \"{weights}\"\nactivations = \"{activations}\"\n{rest}"))
    };
    assert!(text("int8", "int8").is_ok());
    for (weights, activations, says) in [
        ("int8 token", "int8", "no tokens"),
        ("int8", "int8 token static", "dynamic"),
        ("int8", "int8 group:32", "dynamic"),
        ("int8", "int8 channel dynamic", "static"),
        ("int8", "e4m3 mx static", "static"),
        ("e4m3 kl", "int8", "integer"),
        ("int8 nv", "int8", "floating-point"),
    ] {
        let error = text(weights, activations).unwrap_err();
        assert!(matches!(error, QuantError::Words { .. }), "{error}");
        assert!(error.to_string().contains(says) && !error.hint().is_empty(), "{error}");
    }
    // Words of an override may suit weights only or activations only, but must suit what they are for.
    assert!(plan(&w8a8(&[("blocks.0.attn.in", "token dynamic")]), config("pre_ln")).is_ok());
    assert!(plan(&w8a8(&[("blocks.0.*", "token dynamic")]), config("pre_ln")).is_err());
    assert!(w8a8(&[]).set("embed", "token static").is_err());
}

#[test]
fn unknown_words_and_names_come_with_the_known_ones() {
    let error = w8a8(&[]).set("embed", "int8 perchannel").unwrap_err();
    assert!(matches!(&error, QuantError::UnknownWord { word, .. } if word == "perchannel"), "{error}");
    let message = error.to_string();
    for word in
        ["int2", "e4m3", "symmetric", "group:N", "dynamic", "running_percentile:P", "mse_fixed", "kl", "mx"]
    {
        assert!(message.contains(word), "{word} is not in {message}");
    }
    let error = Scheme::preset("w9a9").unwrap_err().to_string();
    assert!(PRESETS.iter().all(|(name, _, _)| error.contains(name)), "{error}");
    let error = Scheme::from_toml("mine", "weight = \"int8\"").unwrap_err().to_string();
    assert!(error.contains("mine") && error.contains("weight"), "{error}");
}

#[test]
fn other_norm_positions_are_refused() {
    let error = plan(&Scheme::preset("w8a8").unwrap(), config("post_ln")).unwrap_err();
    assert!(matches!(error, QuantError::PostNorm), "{error}");
}
