//! What a sweep would cost, without running it.

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use evenkeel::Hint;
use evenkeel::report::{Align, Table};
use evenkeel::sweep::{Cell, Records};
use evenkeel::train::{MemoryPlan, plan_memory};
use serde_json::json;

/// A run's sizes. Where the vocabulary is left to the data, which is not opened, its tables are not counted.
pub(crate) fn cost(cell: &Cell) -> Result<MemoryPlan, Failure> {
    let mut config = cell.config.clone();
    config.model.vocab = config.model.vocab.max(1);
    plan_memory(&config).map_err(|e| Failure::input(format!("{}: {e}", cell.name()), e.hint()))
}

/// Whether each makes a network, which is better known before the first is trained than hours later.
pub(crate) fn check(cells: &[Cell]) -> Result<(), Failure> {
    cells.iter().try_for_each(|cell| cost(cell).map(|_| ()))
}

/// Multiplications and additions of training: 6 for each parameter and token, attention left out.
pub(crate) fn flops(plan: &MemoryPlan) -> f64 {
    6.0 * plan.parameters as f64 * plan.tokens as f64
}

pub(crate) fn print(cells: &[Cell], records: &Records, settings: &Settings) -> Result<(), Failure> {
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("key", Align::Left),
        ("parameters", Align::Right),
        ("tokens", Align::Right),
        ("memory", Align::Right),
        ("state", Align::Left),
    ]);
    let (mut left, mut tokens, mut work, mut rows) = (0, 0u64, 0.0, Vec::new());
    // How fast this machine, or whichever made the records, has been.
    let (mut seconds, mut done_work) = (0.0, 0.0);
    for cell in cells {
        let plan = cost(cell)?;
        let memory =
            plan.weights_bytes + plan.gradients_bytes + plan.optimizer_bytes + plan.activations_bytes;
        let record = records.get(&cell.key);
        match record {
            Some(record) => {
                seconds += record.origin.seconds * record.origin.threads as f64;
                done_work += flops(&plan);
            }
            None => {
                left += 1;
                tokens += plan.tokens;
                work += flops(&plan);
            }
        }
        let state = if record.is_some() { "done" } else { "to do" };
        table.push([
            cell.name(),
            cell.key.clone(),
            plan.parameters.to_string(),
            plan.tokens.to_string(),
            format!("{:.0} MiB", memory as f64 / (1 << 20) as f64),
            state.into(),
        ]);
        rows.push(json!({"run": cell.name(), "key": cell.key, "plan": plan, "done": record.is_some()}));
    }
    let core_seconds = (done_work > 0.0).then(|| seconds * work / done_work);
    if settings.json {
        output::json(&json!({
            "schema": 1,
            "dry_run": true,
            "runs": rows,
            "left": {"runs": left, "tokens": tokens, "flops": work, "core_seconds": core_seconds},
        }));
        return Ok(());
    }
    output::result(&table.to_text());
    output::line(&format!("{left} of {} runs to do, {tokens} tokens, {work:.1e} operations", cells.len()));
    if let Some(core_seconds) = core_seconds.filter(|_| left > 0) {
        output::line(&format!(
            "about {:.0} minutes of one core, as the finished ones took",
            core_seconds / 60.0
        ));
    }
    Ok(())
}
