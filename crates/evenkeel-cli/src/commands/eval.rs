//! `eval MODEL`.

use super::model::Runnable;
use super::text::{MOST_CONTEXT, Source, blocks};
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
        Source::Ids(batch) => next_token_loss(model, &mut tap, &batch.ids, batch.sequences)?,
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

/// Each sequence's tokens but the last are inputs, all but the first are targets.
fn next_token_loss(
    model: &Transformer,
    tap: &mut dyn Tap,
    ids: &[u32],
    sequences: usize,
) -> Result<Evaluation, Failure> {
    let tokens = ids.len() / sequences;
    if tokens < 2 {
        return Err(Failure::input(
            "sequences of one token predict nothing",
            "give sequences of at least two token ids",
        ));
    }
    let inputs: Vec<u32> = ids.chunks(tokens).flat_map(|r| r[..tokens - 1].to_vec()).collect();
    let targets: Vec<u32> = ids.chunks(tokens).flat_map(|r| r[1..].to_vec()).collect();
    let loss = model.loss(&Tape::off(), tap, &inputs, &targets, sequences)?;
    let loss = loss.tensor().to_scalar::<f32>().map_err(evenkeel::Error::from)? as f64;
    Ok(Evaluation { tokens: targets.len() as u64, loss })
}

fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}
