//! A model as a row of stages: the embedding, the blocks one by one, and the final norm with the head. A pass may start at any of
//! them from the stream that enters it.

use super::simulation::{Quantises, explained};
use crate::error::Result;
use crate::model::{Input, ModelError, Parts, Transformer};
use crate::tape::{Tape, Value};

/// The stage that a site or a parameter belongs to: 0 for the embedding, then the blocks, then what comes after them.
pub(super) fn stage_of(name: &str, depth: usize) -> usize {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match block {
        Some(layer) => layer + 1,
        None if name.starts_with("embed") => 0,
        None => depth + 1,
    }
}

/// Names of the stages, in order.
pub(super) fn stage_names(depth: usize) -> impl Iterator<Item = String> {
    let blocks = (0..depth).map(|layer| format!("blocks.{layer}"));
    std::iter::once("embed".to_string()).chain(blocks).chain(std::iter::once("head".to_string()))
}

/// Where a pass starts.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// At the embedding.
    Input(&'a Input),
    /// At this stage, 1 or later, with the stream (b, t, d) that enters it.
    Stage(usize, &'a Value),
}

/// What a pass gave.
pub(super) struct Trace {
    /// The stream (b, t, d) that left the embedding, each block and the final norm.
    pub(super) left: Vec<Value>,
    /// (b, t, v).
    pub(super) logits: Value,
}

impl Trace {
    /// A whole pass.
    ///
    /// # Errors
    /// If the input does not fit the model, or a quantiser refuses.
    pub(super) fn of(model: &Transformer, tap: &mut impl Quantises, input: &Input) -> Result<Self> {
        let mut left = Vec::new();
        let logits = logits(model, tap, Start::Input(input), &mut |x| left.push(x.clone()))?;
        Ok(Self { left, logits })
    }

    /// The start at `stage` of a pass over `input` that went as this one so far.
    pub(super) fn start<'a>(&'a self, stage: usize, input: &'a Input) -> Start<'a> {
        let entering = stage.checked_sub(1).and_then(|before| self.left.get(before));
        entering.map_or(Start::Input(input), |x| Start::Stage(stage, x))
    }
}

/// Logits (b, t, v) of a pass; `left` is shown what leaves each stage, and of the last what leaves the final norm.
///
/// # Errors
/// If the input does not fit the model, or a quantiser refuses.
pub(super) fn logits(
    model: &Transformer,
    tap: &mut impl Quantises,
    start: Start,
    left: &mut dyn FnMut(&Value),
) -> Result<Value> {
    let outcome = through(model, tap, start, left);
    explained(outcome, tap)
}

fn through(
    model: &Transformer,
    tap: &mut impl Quantises,
    start: Start,
    left: &mut dyn FnMut(&Value),
) -> std::result::Result<Value, ModelError> {
    let tape = Tape::off();
    let (first, mut x_btd) = match start {
        Start::Input(input) => {
            input.check(model.config())?;
            let x_btd = model.embedding()?.forward(&tape, tap, input)?;
            left(&x_btd);
            (0, x_btd)
        }
        Start::Stage(stage, x_btd) => (stage.saturating_sub(1), x_btd.clone()),
    };
    for layer in first..model.config().depth {
        x_btd = model.block(layer)?.forward(&tape, tap, &x_btd)?;
        left(&x_btd);
    }
    let head = model.head()?;
    let x_btd = head.final_norm(&tape, tap, &x_btd)?;
    left(&x_btd);
    head.logits(&tape, tap, &x_btd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_stage() {
        for (name, stage) in [
            ("embed", 0),
            ("embed.token.weight", 0),
            ("blocks.0.resid", 1),
            ("blocks.11.attn.q.weight", 12),
            ("final_norm", 13),
            ("final_norm.gain", 13),
            ("head.weight", 13),
            ("logits", 13),
        ] {
            assert_eq!(stage_of(name, 12), stage, "{name}");
        }
        assert_eq!(stage_names(1).collect::<Vec<_>>(), ["embed", "blocks.0", "head"]);
    }
}
