//! What the quickstart's numbers say, in sentences.
//!
//! Every sentence is worked out from the summary, so a run in which the expected did not happen
//! says so. The thresholds are here and nowhere else: two excesses of kurtosis over its floor of
//! 1 within a factor of `ALIKE` count as alike, and a run counts as training if its loss fell
//! by at least half of what the best run's fell.

use super::quickstart::{QuickstartRun, QuickstartSummary};
use super::run::RunCurves;
use super::scale::scientific;

/// Excess kurtosis within this factor counts as the same.
const ALIKE: f64 = 1.25;
/// Excess kurtosis below this is the floor itself, to the accuracy of the sums.
const FLOOR: f64 = 1e-6;

/// A block as the literature writes it.
pub fn block_name(block: &str) -> String {
    match block.to_ascii_lowercase().replace('-', "_").as_str() {
        "pre" | "pre_ln" | "preln" | "pre_layernorm" => "Pre-LN".into(),
        "pre_rms" | "pre_rmsnorm" => "Pre-RMSNorm".into(),
        "post" | "post_ln" => "Post-LN".into(),
        "op" => "OP".into(),
        "op_paper" => "OP (paper)".into(),
        _ => block.to_string(),
    }
}

/// An optimiser as the literature writes it.
pub fn optimizer_name(optimizer: &str) -> String {
    match optimizer.to_ascii_lowercase().as_str() {
        "adamw" => "AdamW".into(),
        "adam" => "Adam".into(),
        "soap" => "SOAP".into(),
        "adafactor" => "AdaFactor".into(),
        "rotated_adafactor" => "rotated AdaFactor".into(),
        "shampoo" => "Shampoo".into(),
        "muon" => "Muon".into(),
        "sgd" => "SGD".into(),
        _ => optimizer.to_string(),
    }
}

impl QuickstartRun {
    /// Block and optimiser: `Pre-LN + AdamW`.
    pub fn side(&self) -> String {
        let (block, optimizer) = (block_name(&self.block), optimizer_name(&self.optimizer));
        format!("{block} + {optimizer}")
    }

    /// Block, optimiser and learning rate: `Pre-LN + AdamW, lr 3e-3`.
    pub fn label(&self) -> String {
        format!("{}, lr {}", self.side(), rate(self.lr_peak))
    }

    /// What int8 does to perplexity, as a share of it: 0.01 is one per cent worse.
    pub fn int8_cost(&self) -> Option<f64> {
        let (float, int8) = (finite(self.float_perplexity)?, finite(self.w8a8_perplexity)?);
        finite(Some(int8 / float - 1.0)).filter(|_| float > 0.0)
    }
}

pub(super) fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite())
}

/// The runs of the two sides that are compared, each in order of its learning rate.
struct Sides<'a> {
    baseline: Vec<&'a QuickstartRun>,
    ours: Vec<&'a QuickstartRun>,
}

impl<'a> Sides<'a> {
    fn of(summary: &'a QuickstartSummary) -> Option<Self> {
        let side = |name: &str| -> Vec<&QuickstartRun> {
            let mut runs: Vec<_> = summary.runs.iter().filter(|r| r.side() == name).collect();
            runs.sort_by(|a, b| a.lr_peak.total_cmp(&b.lr_peak));
            runs
        };
        let (baseline, ours) = (side("Pre-LN + AdamW"), side("OP + SOAP"));
        (!baseline.is_empty() && !ours.is_empty()).then_some(Sides { baseline, ours })
    }

    /// Each side's run at its largest rate.
    fn larger(&self) -> (&'a QuickstartRun, &'a QuickstartRun) {
        // `of` has seen to it that neither is empty.
        (self.baseline[self.baseline.len() - 1], self.ours[self.ours.len() - 1])
    }
}

/// The paragraphs under the title: what was measured at the larger rate, and what that says.
pub fn headline(summary: &QuickstartSummary) -> Vec<String> {
    let Some(sides) = Sides::of(summary) else {
        return vec![
            "This summary does not hold runs of both Pre-LN + AdamW and OP + SOAP, so there is \
             no comparison to make."
                .into(),
        ];
    };
    let (a, b) = sides.larger();
    let at = if a.lr_peak == b.lr_peak {
        format!("At the larger learning rate, {}, the", rate(a.lr_peak))
    } else {
        let rates = (rate(a.lr_peak), rate(b.lr_peak));
        format!("At each side's largest learning rate here, {} and {}, the", rates.0, rates.1)
    };
    let first = format!(
        "{at} residual stream of {} ends with {}; that of {} ends with {}. {}",
        a.side(),
        kurtosis_of(a),
        b.side(),
        kurtosis_of(b),
        verdict(a, b)
    );
    vec![first, int8_headline(a, b)]
}

fn kurtosis_of(run: &QuickstartRun) -> String {
    let mean = match finite(run.kurtosis_mean) {
        Some(mean) => format!("a mean kurtosis of {}", kurtosis(mean)),
        None => "no defined mean kurtosis".into(),
    };
    match (finite(run.kurtosis_max), &run.kurtosis_max_site) {
        (Some(max), Some(site)) => {
            format!("{mean} and {} at its worst site, `{site}`", kurtosis(max))
        }
        (Some(max), None) => format!("{mean} and {} at its worst site", kurtosis(max)),
        _ => mean,
    }
}

/// How the baseline's excess kurtosis compares: mean first, and the worst site if it disagrees.
fn verdict(a: &QuickstartRun, b: &QuickstartRun) -> String {
    let (name_a, name_b) = (a.side(), b.side());
    let excess = |value: Option<f64>| finite(value).map(|k| k - 1.0);
    let (Some(ea), Some(eb)) = (excess(a.kurtosis_mean), excess(b.kurtosis_mean)) else {
        return "Without both means there is no verdict.".into();
    };
    let order = compare(ea, eb);
    let mut text = match order {
        Order::Worse if eb > FLOOR => format!(
            "Above the floor of 1, the mean of {name_a} is {} times that of {name_b}.",
            times(ea / eb)
        ),
        Order::Worse => format!("{name_b} stays at the floor of 1, and {name_a} does not."),
        Order::Alike => "In this run the two are alike: above the floor of 1 their means are within \
                         a quarter of each other, and the difference that the paper reports does \
                         not show."
            .into(),
        Order::Better => format!(
            "In this run {name_a} is not the worse of the two: its mean lies closer to the floor \
             of 1 than that of {name_b}, against what the paper reports."
        ),
    };
    if let (Some(ea), Some(eb)) = (excess(a.kurtosis_max), excess(b.kurtosis_max)) {
        let worst = compare(ea, eb);
        if worst != order {
            let relation = match worst {
                Order::Worse => "is higher than that",
                Order::Alike => "is about that",
                Order::Better => "is lower than that",
            };
            text.push_str(&format!(" The worst site of {name_a}, however, {relation} of {name_b}."));
        }
    }
    text
}

/// The baseline against ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Worse,
    Alike,
    Better,
}

fn compare(a: f64, b: f64) -> Order {
    let (a, b) = (a.max(FLOOR), b.max(FLOOR));
    if a > b * ALIKE {
        Order::Worse
    } else if b > a * ALIKE {
        Order::Better
    } else {
        Order::Alike
    }
}

fn int8_headline(a: &QuickstartRun, b: &QuickstartRun) -> String {
    match (a.int8_cost(), b.int8_cost()) {
        (Some(ca), Some(cb)) => format!(
            "Quantising weights and activations to eight bits (W8A8) changes validation \
             perplexity by {} for {} and by {} for {}.",
            percent(ca),
            a.side(),
            percent(cb),
            b.side()
        ),
        (None, None) => "The cost of int8 was not measured for either.".into(),
        (Some(cost), None) => one_cost(a, b, cost),
        (None, Some(cost)) => one_cost(b, a, cost),
    }
}

fn one_cost(known: &QuickstartRun, unknown: &QuickstartRun, cost: f64) -> String {
    format!(
        "Quantising weights and activations to eight bits (W8A8) changes validation perplexity \
         by {} for {}; for {} it is undefined.",
        percent(cost),
        known.side(),
        unknown.side()
    )
}

/// Why there are two learning rates, and whether the runs at the larger one trained.
pub fn rates(summary: &QuickstartSummary, curves: &[RunCurves]) -> String {
    let Some(sides) = Sides::of(summary) else {
        let each: Vec<String> = summary.runs.iter().map(QuickstartRun::label).collect();
        return format!("The runs: {}.", each.join("; "));
    };
    let (best_a, best_b) = (sides.baseline[0], sides.ours[0]);
    let (a, b) = sides.larger();
    let first = format!(
        "Each side is trained at two learning rates, the first its own best from a search whose \
         results are committed with the code: {} for {} and {} for {}.",
        rate(best_a.lr_peak),
        best_a.side(),
        rate(best_b.lr_peak),
        best_b.side()
    );
    let single = |best: &QuickstartRun, large: &QuickstartRun| best.lr_peak == large.lr_peak;
    if single(best_a, a) && single(best_b, b) {
        return format!("{first} This summary holds no run at a larger rate.");
    }
    let second = if a.lr_peak == b.lr_peak {
        format!("The second is one larger rate for both, {},", rate(a.lr_peak))
    } else {
        let larger: Vec<String> = [(best_a, a), (best_b, b)]
            .into_iter()
            .filter(|(best, large)| !single(best, large))
            .map(|(_, large)| format!("{} for {}", rate(large.lr_peak), large.side()))
            .collect();
        format!("The second is a larger one, {},", larger.join(" and "))
    };
    let failed: Vec<String> =
        [a, b].into_iter().filter(|run| !trained(run, summary, curves)).map(QuickstartRun::side).collect();
    let outcome =
        if failed.is_empty() { "at which both still train" } else { "chosen so that both still train" };
    let mut text = format!(
        "{first} {second} {outcome}: outliers grow with the learning rate, so the larger one \
         shows in minutes what would otherwise take a long run."
    );
    if !failed.is_empty() {
        text.push_str(&format!(
            " In this run {} did not train at it: the loss is undefined, or fell by less than \
             half of what it fell in the best run.",
            failed.join(" and ")
        ));
    }
    text
}

/// Whether a run's loss fell by at least half of what the best run's fell. Where the logs do not
/// show the start, a defined loss must do.
fn trained(run: &QuickstartRun, summary: &QuickstartSummary, curves: &[RunCurves]) -> bool {
    let Some(loss) = finite(run.val_loss) else {
        return false;
    };
    let best = summary.runs.iter().filter_map(|r| finite(r.val_loss));
    let best = best.fold(loss, f64::min);
    let logged = run.curves(curves).map(RunCurves::train_loss);
    let start = logged.and_then(|points| points.into_iter().find(|p| p.1.is_finite()));
    start.is_none_or(|(_, start)| start - loss >= 0.5 * (start - best))
}

/// What int8 cost here, and what it costs after training in full.
pub fn int8(summary: &QuickstartSummary) -> String {
    let costs: Vec<f64> = summary.runs.iter().filter_map(|r| r.int8_cost()).collect();
    let low = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = costs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let here = if costs.is_empty() {
        "The cost of int8 was not measured in these runs.".to_string()
    } else {
        let range = if percent(low) == percent(high) {
            format!("by {}", percent(low))
        } else {
            format!("by {} to {}", percent(low), percent(high))
        };
        let size = if high < 0.01 {
            "which is little for every run: minutes of training do not grow the outliers that \
             break int8"
        } else if high < 0.05 {
            "which is still little: minutes of training grow few of the outliers that break int8"
        } else {
            "which at its highest is a real loss, even after so short a training"
        };
        format!("In these runs int8 changes perplexity {range}, {size}.")
    };
    format!(
        "{here} The published figures are for training in full: for OPT-125m perplexity goes \
         from 16.00 to 63.4 with Pre-LN and Adam, and from 14.71 to 14.87 with OP and SOAP (He \
         et al., NeurIPS 2024, https://arxiv.org/abs/2405.19279)."
    )
}

/// A learning rate: `3e-3`.
pub fn rate(value: f64) -> String {
    scientific(value, 2)
}

/// A kurtosis, with decimals as its size deserves.
pub fn kurtosis(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 100.0 => format!("{value:.2}"),
        size if size < 1e5 => format!("{value:.0}"),
        _ => scientific(value, 2),
    }
}

/// A perplexity.
pub fn perplexity(value: f64) -> String {
    match value.abs() {
        size if size < 1e3 => format!("{value:.2}"),
        size if size < 1e5 => format!("{value:.0}"),
        _ => scientific(value, 2),
    }
}

/// Any other figure, with about four digits.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..10.0).contains(&size) => format!("{value:.4}"),
        size if (10.0..1e4).contains(&size) => format!("{value:.2}"),
        _ => scientific(value, 3),
    }
}

/// A share as per cent with its sign: 0.0042 is `+0.42%`.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    let text = match value.abs() {
        size if size < 0.005 => return "0.00%".into(),
        size if size < 100.0 => format!("{value:+.2}"),
        size if size < 1e5 => format!("{value:+.0}"),
        _ => format!("+{}", scientific(value, 1)),
    };
    format!("{text}%")
}

fn times(ratio: f64) -> String {
    match ratio {
        r if r < 10.0 => format!("{r:.1}"),
        r if r < 1e5 => format!("{r:.0}"),
        r => scientific(r, 1),
    }
}

/// A count with commas: 1,234,567.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size in powers of a thousand: `12.3 MB`.
pub fn bytes(value: u64) -> String {
    let (mut size, mut unit) = (value as f64, "bytes");
    for next in ["kB", "MB", "GB", "TB"] {
        if size < 999.95 {
            break;
        }
        (size, unit) = (size / 1000.0, next);
    }
    if unit == "bytes" { format!("{value} bytes") } else { format!("{size:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::quickstart::tests::summary;

    fn with_means(pre: Option<f64>, op: Option<f64>) -> String {
        let mut summary = summary();
        summary.runs[1].kurtosis_mean = pre;
        summary.runs[3].kurtosis_mean = op;
        headline(&summary).join(" ")
    }

    #[test]
    fn the_headline_says_what_was_measured() {
        let text = headline(&summary()).join(" ");
        for expected in ["3e-3", "3.410", "1.080", "`blocks.0.resid`", "30 times", "+0.42%"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn a_run_without_the_effect_says_so() {
        assert!(with_means(Some(1.05), Some(3.0)).contains("is not the worse"));
        assert!(with_means(Some(1.08), Some(1.08)).contains("are alike"));
        assert!(with_means(Some(1.5), Some(1.0)).contains("stays at the floor"));
        for undefined in [None, Some(f64::NAN)] {
            let text = with_means(undefined, Some(1.1));
            assert!(text.contains("no verdict") && !text.contains("NaN"), "{text}");
        }
    }

    #[test]
    fn a_worst_site_that_disagrees_is_named() {
        let mut summary = summary();
        summary.runs[1].kurtosis_max = Some(1.01);
        let text = headline(&summary).join(" ");
        assert!(text.contains("however, is lower than that of OP + SOAP"), "{text}");
        summary.runs[1].kurtosis_max = summary.runs[3].kurtosis_max;
        let text = headline(&summary).join(" ");
        assert!(text.contains("however, is about that"), "{text}");
    }

    #[test]
    fn a_run_that_did_not_train_is_named() {
        let mut summary = summary();
        assert!(rates(&summary, &[]).contains("at which both still train"));
        summary.runs[1].val_loss = None;
        let text = rates(&summary, &[]);
        assert!(text.contains("Pre-LN + AdamW did not train"), "{text}");
        summary.runs.truncate(3);
        let text = rates(&summary, &[]);
        assert!(text.contains("a larger one, 3e-3 for Pre-LN + AdamW, chosen"), "{text}");
        summary.runs.truncate(1);
        assert!(headline(&summary)[0].contains("no comparison"));
    }

    #[test]
    fn the_cost_of_int8_is_called_what_it_is() {
        let mut summary = summary();
        assert!(int8(&summary).contains("little for every run"));
        summary.runs[1].w8a8_perplexity = Some(60.0);
        assert!(int8(&summary).contains("a real loss"));
        for run in &mut summary.runs {
            run.w8a8_perplexity = None;
        }
        assert!(int8(&summary).contains("not measured"));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(percent(-0.00001), "0.00%");
        assert_eq!(percent(2.9625), "+296%");
        assert_eq!(rate(0.003), "3e-3");
        assert_eq!(figure(1.1), "1.1000");
        assert_eq!(figure(1e-6), "1e-6");
        assert_eq!(figure(f64::NAN), "–");
    }
}
