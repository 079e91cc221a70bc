//! `eval MODEL`.

use super::calibration::predicted;
use super::model::Runnable;
use super::text::{MOST_CONTEXT, Source, blocks};
use crate::args::Eval;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::train::mean_loss;
use serde_json::json;
use std::time::Instant;

pub(crate) fn run(args: Eval, settings: &Settings) -> Result<Exit, Failure> {
    let (runnable, folder) = Runnable::open(&args.model, settings)?;
    let model = runnable.model();
    if args.text.ids.is_some() && args.cut.context.is_some() {
        return Err(Failure::input(
            "--context cuts running text, and --ids are run as they are given",
            "leave --context out",
        ));
    }
    let context = args.cut.context(model.config(), MOST_CONTEXT)?;
    let begun = Instant::now();
    let evaluation = match Source::open(&args.text, &folder, model.config())? {
        Source::Stream(dataset) => {
            mean_loss(blocks(&dataset, context, args.tokens)?, |batch| runnable.loss(batch))?
        }
        Source::Ids(ids) => mean_loss(std::iter::once(Ok(predicted(&ids)?)), |batch| runnable.loss(batch))?,
    };
    if !settings.quiet {
        let rate = evaluation.tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        output::note(&format!("{rate:.0} tokens/s{}", runnable.path()));
    }
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

fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}
