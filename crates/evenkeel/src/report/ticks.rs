//! Labels for things that have names or numbers of their own (blocks, revisions) and no round values: given
//! one label each, as many are kept as have room.

use super::chart::SIZE;
use super::scale::{Axis, Scale, Tick};
use super::svg::{ellipsize, text_width};

/// The widest a label may be where there are many, and where there are few, in pixels.
const WIDEST: [f64; 2] = [90.0, 220.0];

/// Where a label would stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Its centre, in pixels.
    pub(super) at: f64,
    /// Half of what it needs, with the distance to the next.
    pub(super) half: f64,
    /// The number of what it labels; what has none (the embedding before the blocks) comes first.
    pub(super) number: Option<usize>,
}

/// Which of the labels are shown, ascending: those without a number, and those whose number is a multiple of
/// the smallest of 1, 2, 5, 10, 20, … that keeps them apart.
pub(super) fn thin(marks: &[Mark]) -> Vec<usize> {
    let apart = |a: usize, b: usize| {
        let (a, b) = (&marks[a], &marks[b]);
        (a.at - b.at).abs() >= a.half + b.half - 1e-6
    };
    let mut first: Vec<usize> = Vec::new();
    for i in (0..marks.len()).filter(|&i| marks[i].number.is_none()) {
        if first.iter().all(|&kept| apart(kept, i)) {
            first.push(i);
        }
    }
    let steps = (0..8).flat_map(|e| [1, 2, 5].map(|m| m * 10usize.pow(e)));
    for step in steps {
        let even = |&i: &usize| marks[i].number.is_some_and(|n| n % step == 0);
        let numbered: Vec<usize> = (0..marks.len()).filter(even).collect();
        if numbered.windows(2).all(|pair| apart(pair[0], pair[1])) {
            let free = numbered.into_iter().filter(|&i| first.iter().all(|&kept| apart(kept, i)));
            let mut shown: Vec<usize> = first.iter().copied().chain(free).collect();
            shown.sort_unstable();
            return shown;
        }
    }
    first
}

/// An x axis `width` pixels long from the first of `ticks` to the last, with as many of them as have room.
pub(super) fn ticked(ticks: &[Tick], width: f64) -> Axis {
    let values = ticks.iter().map(|t| t.value);
    let (mut lo, mut hi) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if hi <= lo {
        (lo, hi) = (lo - 0.5, lo + 0.5);
    }
    let widest = (width / ticks.len().max(1) as f64).clamp(WIDEST[0], WIDEST[1]) - 8.0;
    let labels: Vec<String> = ticks.iter().map(|t| cut(&t.label, widest)).collect();
    let marks: Vec<Mark> = ticks
        .iter()
        .zip(&labels)
        .map(|(tick, label)| {
            let half = text_width(label, SIZE) / 2.0;
            let at = (tick.value - lo) / (hi - lo) * width;
            // A label at an end is moved inwards where it would leave the figure.
            let at = at.clamp(half - 20.0, (width + 10.0 - half).max(half - 20.0));
            Mark { at, half: half + 4.0, number: (tick.value >= 0.0).then_some(tick.value as usize) }
        })
        .collect();
    let major =
        thin(&marks).into_iter().map(|i| Tick { value: ticks[i].value, label: labels[i].clone() }).collect();
    Axis { scale: Scale::Linear, lo, hi, major, minor: Vec::new() }
}

/// `label` without its beginning where it is wider than `widest`: names of revisions differ at their ends.
fn cut(label: &str, widest: f64) -> String {
    let reversed = |text: &str| text.chars().rev().collect::<String>();
    reversed(&ellipsize(&reversed(label), SIZE, widest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(depth: usize) -> Vec<Tick> {
        let embed = Tick { value: -1.0, label: "embed".into() };
        let block = |i: usize| Tick { value: i as f64, label: i.to_string() };
        std::iter::once(embed).chain((0..depth).map(block)).collect()
    }

    fn shown(depth: usize, width: f64) -> Vec<String> {
        ticked(&layers(depth), width).major.into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn all_labels_are_shown_where_they_fit_and_round_ones_elsewhere() {
        assert_eq!(shown(4, 400.0), ["embed", "0", "1", "2", "3"]);
        assert_eq!(shown(48, 400.0), ["embed", "5", "10", "15", "20", "25", "30", "35", "40", "45"]);
        assert_eq!(shown(0, 400.0), ["embed"]);
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(cut("short", 90.0), "short");
        let long = cut("organisation/model@step1000", 90.0);
        assert!(long.starts_with('…') && long.ends_with("step1000"), "{long}");
    }

    #[test]
    fn shown_labels_keep_their_distance() {
        for depth in [1, 7, 100, 1000] {
            for width in [30.0, 200.0, 800.0] {
                let axis = ticked(&layers(depth), width);
                let place = |t: &Tick| axis.position(t.value).unwrap() * width;
                let halves = |t: &Tick| text_width(&t.label, SIZE) / 2.0;
                for pair in axis.major.windows(2).skip(1) {
                    assert!(place(&pair[1]) - place(&pair[0]) > halves(&pair[0]) + halves(&pair[1]));
                }
            }
        }
    }
}
