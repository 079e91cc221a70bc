//! `eval MODEL`.

use super::calibration::predicted;
use super::model::Runnable;
use super::text::{Ids, MOST_CONTEXT, Source, blocks};
use crate::args::Eval;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::model::Transformer;
use evenkeel::quant::int8::Seen;
use evenkeel::tap::{NoTap, Tap};
use evenkeel::tape::Tape;
use evenkeel::train::{Evaluation, evaluate};
use serde_json::json;

pub(crate) fn run(args: Eval, settings: &Settings) -> Result<Exit, Failure> {
    let (runnable, folder) = Runnable::open(&args.model, settings)?;
    let model = runnable.model();
    let mut quantisers = runnable.quantisers();
    let mut none = NoTap;
    let mut tap = Seen::new(&mut quantisers, &mut none);
    if args.text.ids.is_some() && args.cut.context.is_some() {
        return Err(Failure::input(
            "--context cuts running text, and --ids are run as they are given",
            "leave --context out",
        ));
    }
    let context = args.cut.context(model.config(), MOST_CONTEXT)?;
    let evaluation = match Source::open(&args.text, &folder, model.config())? {
        Source::Stream(dataset) => evaluate(model, blocks(&dataset, context, None)?, Some(&mut tap))?,
        Source::Ids(ids) => next_token_loss(model, &mut tap, &ids)?,
    };
    if settings.json {
        output::json(&json!({
            "schema": 1,
            "tokens": evaluation.tokens,
            "loss": finite(evaluation.loss),
            "perplexity": finite(evaluation.perplexity()),
        }));
    } else {
        output::line(&format!(
            "loss {:.4}, perplexity {:.3} over {} tokens",
            evaluation.loss,
            evaluation.perplexity(),
            evaluation.tokens
        ));
    }
    Ok(if evaluation.loss.is_finite() { Exit::Done } else { Exit::No })
}

fn next_token_loss(model: &Transformer, tap: &mut dyn Tap, ids: &Ids) -> Result<Evaluation, Failure> {
    let batch = predicted(ids)?;
    let loss = model.loss(&Tape::off(), tap, &batch.inputs, &batch.targets, batch.sequences)?;
    let loss = loss.tensor().to_scalar::<f32>().map_err(evenkeel::Error::from)? as f64;
    Ok(Evaluation { tokens: batch.targets.len() as u64, loss })
}

fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}
