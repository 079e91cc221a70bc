//! `eval MODEL`.

use super::calibration::predicted;
use super::images;
use super::model::Runnable;
use super::text::{MOST_CONTEXT, Source, blocks};
use crate::args::Eval;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::Settings;
use evenkeel::model::ModelError;
use evenkeel::train::{Evaluation, InOrder, evaluate, mean_loss};
use serde_json::json;
use std::time::Instant;

pub(crate) fn run(args: Eval, settings: &Settings) -> Result<Exit, Failure> {
    let (runnable, folder) = Runnable::open_any(&args.model, settings)?;
    let model = runnable.model();
    let config = model.config();
    if let Some(what) = &args.text.images {
        args.cut.refuse_for_images()?;
        let data = images::open(what, &folder, config, settings)?;
        let begun = Instant::now();
        let found = evaluate(model, images::blocks(&data, config, args.tokens)?, None)?;
        return Ok(report_images(&found, begun, settings));
    }
    if config.reads_images() {
        return Err(ModelError::WrongInput { wants: "images" }.into());
    }
    if args.text.ids.is_some() && args.cut.context.is_some() {
        return Err(Failure::input(
            "--context cuts running text, and --ids are run as they are given",
            "leave --context out",
        ));
    }
    let context = args.cut.context(config, MOST_CONTEXT)?;
    let begun = Instant::now();
    let evaluation = match Source::open(&args.text, &folder, config)? {
        Source::Stream(dataset) => {
            mean_loss(InOrder::from(blocks(&dataset, context, args.tokens)?), |batch| runnable.loss(batch))?
        }
        Source::Ids(ids) => {
            mean_loss(std::iter::once(Ok(predicted(&ids)?.into())), |batch| runnable.loss(batch))?
        }
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

fn report_images(found: &Evaluation, begun: Instant, settings: &Settings) -> Exit {
    if !settings.quiet {
        let rate = found.tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        output::note(&format!("{rate:.0} images/s"));
    }
    if settings.json {
        output::json(&json!({
            "schema": 1,
            "images": found.tokens,
            "loss": finite(found.loss),
            "accuracy": found.accuracy,
        }));
    } else {
        let percent = 100.0 * found.accuracy.unwrap_or(0.0);
        output::line(&format!("loss {:.4}, accuracy {percent:.2}% over {} images", found.loss, found.tokens));
    }
    if found.loss.is_finite() { Exit::Done } else { Exit::No }
}

fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}
