//! What `quantize` prints on a terminal.

use crate::output;
use evenkeel::quant::{Attribution, QuantReport, QuantiserCost};
use evenkeel::report::{Align, Table};

/// Quantisers that a list of the costliest shows.
const LISTED: usize = 8;

/// The headline, the largest errors, and what each quantiser costs if that was measured.
pub(super) fn report(report: &QuantReport) {
    let (f, q, s) = (&report.float, &report.quantized, &report.summary);
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    output::line(&format!("float       perplexity {:>9.3}   {:>8.2} MiB", f.perplexity, mib(f.bytes)));
    output::line(&format!(
        "{:11} perplexity {:>9.3}   {:>8.2} MiB   {:+.2}%",
        report.scheme,
        q.perplexity,
        mib(q.bytes),
        s.perplexity_increase_percent
    ));
    output::line(&format!("KL {:.5} nats, same most likely token {:.2}%", q.kl, 100.0 * q.top1_agreement));
    let mut worst: Vec<_> = report.sites.iter().filter_map(|site| Some((site.error?, &site.site))).collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    output::line("largest relative errors:");
    for (error, site) in worst.iter().take(5) {
        output::line(&format!("  {:6.2}%  {site}", 100.0 * error));
    }
    output::line(&format!(
        "calibrated on {} tokens, evaluated on {}; {} weight and {} activation quantisers",
        s.calib_tokens, s.eval_tokens, s.weight_quantisers, s.activation_quantisers
    ));
    if let Some(attribution) = &report.attribution {
        costs(attribution);
    }
}

fn costs(attribution: &Attribution) {
    let full = attribution.full_increase();
    output::line(&format!(
        "\nwhat the quantisers cost, on {} tokens: together {full:+.5} ± {:.5} nats over a float loss of {:.4}",
        attribution.tokens,
        attribution.full_error(),
        attribution.float_loss
    ));
    let alone = |cost: &QuantiserCost| cost.loss_increase;
    list("with this one alone", "nats", &attribution.alone, alone);
    let gain = |cost: &QuantiserCost| full - cost.loss_increase;
    list("left out of all", "nats gained", &attribution.without, gain);
    let steps = attribution.cumulative.iter().map(|c| format!("{} {:+.5}", c.through, c.loss_increase));
    output::line(&format!("\nquantised through: {}", steps.collect::<Vec<_>>().join(", ")));
}

/// The costliest by `cost`, in nats with their standard error, and as what that does to perplexity.
fn list(title: &str, unit: &str, costs: &[QuantiserCost], cost: impl Fn(&QuantiserCost) -> f64) {
    let mut order: Vec<(f64, &QuantiserCost)> = costs.iter().map(|c| (cost(c), c)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let columns =
        [(title, Align::Left), (unit, Align::Right), ("±", Align::Right), ("perplexity", Align::Right)];
    let mut table = Table::new(&columns);
    for (nats, cost) in order.into_iter().take(LISTED) {
        let (percent, error) = (100.0 * nats.exp_m1(), cost.standard_error);
        let figures = [format!("{nats:+.5}"), format!("{error:.5}"), format!("{percent:+.2}%")];
        table.push(std::iter::once(cost.quantiser.clone()).chain(figures));
    }
    output::result(&format!("\n{}", table.to_text()));
}
