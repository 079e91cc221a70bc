//! Replays recorded gradients through one of evenkeel's optimisers, to compare it with another implementation.
//!
//! ```console
//! cargo run --release --example replay_optimizer -- --config optim.toml --trace trace.safetensors --out steps.safetensors
//! ```
//!
//! `--trace` holds `param.NAME`, where each parameter starts, and `grad.STEP.NAME` for STEP 0, 1, ...; `--out` gets
//! `param.STEP.NAME`, each parameter after that step. `--config` is TOML with a table `[optim]`, as for training: `name`,
//! `lr_peak`, `weight_decay` and the optimiser's own keys. What it leaves out has the default of training, except that every
//! gradient is used as it stands and every step is alike unless the file says otherwise: the rate is constant and does not
//! warm up, nothing is clipped, and `max_precond_dim` is the references' 10000. There are no parameter groups: weight decay
//! applies to every parameter, Muon takes every matrix, and refreshes are not spread. Float64 traces are computed in float64.

use candle_core::{DType, Tensor};
use clap::Parser;
use evenkeel::checkpoint::{read_tensors, write_tensors};
use evenkeel::config::{ConfigError, RunConfig};
use evenkeel::optim::{self, OptimizerName, Rule, Slot, State};
use evenkeel::{Error, Hint};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use toml::{Table, Value};

/// Replays recorded gradients through an optimiser
#[derive(Parser)]
struct Args {
    /// TOML file with a table [optim]
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Safetensors file with param.NAME and grad.STEP.NAME
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Safetensors file that gets param.STEP.NAME
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A sentence and a hint.
struct Refusal(String, String);

impl<E: Into<Error>> From<E> for Refusal {
    fn from(e: E) -> Self {
        let e = e.into();
        Self(e.to_string(), e.hint())
    }
}

fn main() -> ExitCode {
    match replay(&Args::parse()) {
        Ok(summary) => {
            anstream::println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(Refusal(problem, hint)) => {
            anstream::eprintln!("error: {problem}\n\nhint: {hint}");
            ExitCode::from(2)
        }
    }
}

fn replay(args: &Args) -> Result<String, Refusal> {
    let config = settings(args)?;
    let trace = Trace::read(args)?;
    let schedule = config.schedule(trace.gradients.len() as u64);
    let rule = config.rule.build();
    let mut states = vec![State::default(); trace.parameters.len()];
    let mut skips = optim::skip::SkipState::default();
    let mut out = BTreeMap::new();
    for (step, gradients) in trace.gradients.iter().enumerate() {
        let norm = optim::global_norm(gradients)?;
        if config.skip_rule().judge(&mut skips, 0.0, norm).is_none() {
            optim::clip_value(gradients, config.clip_value)?;
            optim::clip(gradients, optim::global_norm(gradients)?, config.clip_norm)?;
            let parts = trace.parameters.iter().zip(gradients).zip(&mut states);
            let mut slots: Vec<Slot> = parts
                .map(|(((_, parameter), gradient), state)| Slot {
                    parameter,
                    gradient,
                    state,
                    lr: schedule.lr(step as u64),
                    weight_decay: config.weight_decay,
                    phase: 0,
                })
                .collect();
            rule.step(&mut slots)?;
        }
        for (name, parameter) in &trace.parameters {
            out.insert(format!("param.{step}.{name}"), parameter.copy()?);
        }
    }
    write_tensors(&args.out, &out)?;
    let (steps, parameters) = (trace.gradients.len(), trace.parameters.len());
    Ok(format!("{steps} steps of {} on {parameters} parameters in {}", rule.name(), args.out.display()))
}

/// The table `[optim]` over the defaults of a replay.
fn settings(args: &Args) -> Result<optim::OptimConfig, Refusal> {
    let path = args.config.clone();
    let text =
        std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    let mut file = text.parse::<Table>().map_err(|e| ConfigError::Syntax {
        path,
        problem: e.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let Some(Value::Table(given)) = file.remove("optim") else {
        let hint = "write for example [optim] with name = \"soap\" and lr_peak = 3e-3 below it";
        return Err(Refusal(format!("{} has no table [optim]", args.config.display()), hint.into()));
    };
    let mut optim = Table::new();
    optim.insert("schedule".into(), Value::String("constant".into()));
    optim.insert("warmup_fraction".into(), Value::Float(0.0));
    optim.insert("clip_norm".into(), Value::Float(0.0));
    if let Some(name) = given.get("name").and_then(Value::as_str).and_then(OptimizerName::from_name)
        && let Ok(Value::Table(reference)) = Value::try_from(Rule::defaults(name))
        && let Some(dim) = reference.get("max_precond_dim")
    {
        optim.insert("max_precond_dim".into(), dim.clone());
    }
    optim.extend(given);
    let config = RunConfig::from_table(Table::from_iter([("optim".to_string(), Value::Table(optim))]), &[])?;
    match config.optim.group.is_empty() {
        true => Ok(config.optim),
        false => Err(Refusal(
            "[[optim.group]] means nothing in a replay: every parameter is treated alike".into(),
            "remove the groups, or replay the parameters of each group by themselves".into(),
        )),
    }
}

/// What was recorded.
struct Trace {
    /// By name.
    parameters: Vec<(String, Tensor)>,
    /// For each step, in the order of the parameters.
    gradients: Vec<Vec<Tensor>>,
}

impl Trace {
    fn read(args: &Args) -> Result<Self, Refusal> {
        let all = read_tensors(&args.trace)?;
        let refuse = |problem: String| {
            let hint =
                "a trace holds param.NAME and, for every step from 0 on and every NAME, grad.STEP.NAME";
            Refusal(format!("{}: {problem}", args.trace.display()), hint.into())
        };
        let mut parameters = Vec::new();
        for (name, tensor) in &all {
            if let Some(name) = name.strip_prefix("param.") {
                if ![DType::F32, DType::F64].contains(&tensor.dtype()) {
                    return Err(refuse(format!("param.{name} holds no floating-point numbers")));
                }
                parameters.push((name.to_string(), tensor.copy()?));
            }
        }
        if parameters.is_empty() {
            return Err(refuse("there is no parameter in it".into()));
        }
        let mut gradients = Vec::new();
        let has = |step: usize| all.keys().any(|name| name.starts_with(&format!("grad.{step}.")));
        while has(gradients.len()) {
            let step = gradients.len();
            let mut of_step = Vec::with_capacity(parameters.len());
            for (name, parameter) in &parameters {
                let key = format!("grad.{step}.{name}");
                match all.get(&key) {
                    None => return Err(refuse(format!("{key} is missing"))),
                    Some(gradient) if gradient.dims() != parameter.dims() => {
                        let (own, wanted) = (gradient.dims(), parameter.dims());
                        return Err(refuse(format!("{key} has shape {own:?} and its parameter {wanted:?}")));
                    }
                    Some(gradient) => of_step.push(gradient.to_dtype(parameter.dtype())?.copy()?),
                }
            }
            gradients.push(of_step);
        }
        let counted = gradients.len() * parameters.len();
        let recorded = all.keys().filter(|name| name.starts_with("grad.")).count();
        if counted != recorded {
            return Err(refuse(format!(
                "{} gradients belong to no parameter or to no step that follows on the one before",
                recorded - counted
            )));
        }
        Ok(Self { parameters, gradients })
    }
}
