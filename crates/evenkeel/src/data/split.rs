//! Which documents are kept for validation.
//!
//! A document goes to validation if a hash of (seed, index) falls below the fraction, so that its
//! side depends on nothing else: appending documents to a corpus leaves the earlier ones where
//! they were. Three cases bend this rule, since an empty side is of no use: with two documents or
//! more one is moved to a side that would be empty, the one whose size is nearest to what that
//! side should have; and a single document is cut near its end.

use super::dataset::Split;
use crate::random::key;

/// How validation text was set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum SplitOutcome {
    /// There is none: the fraction was 0, or the only document is a single character.
    None,
    /// The validation files were named.
    Files,
    /// By a hash of the document's index.
    ByDocument {
        /// One document was moved to a side that would have been empty.
        moved: bool,
    },
    /// The one document was cut.
    WithinDocument {
        /// Bytes of text before the cut, which are for training.
        at_byte: usize,
    },
}

/// The side of each document, given the sizes in bytes of all of them, and whether one was moved.
/// `fraction` is from 0 up to, not including, 1.
pub(super) fn split_documents(sizes: &[u64], seed: u64, fraction: f64) -> (Vec<Split>, bool) {
    let mut sides: Vec<Split> = (0..sizes.len() as u64)
        .map(|index| if hash_fraction(seed, index) < fraction { Split::Val } else { Split::Train })
        .collect();
    if fraction <= 0.0 || sizes.len() < 2 {
        return (sides, false);
    }
    let total = sizes.iter().sum::<u64>() as f64;
    for (side, share) in [(Split::Val, fraction), (Split::Train, 1.0 - fraction)] {
        if !sides.contains(&side) {
            let distance = |size: u64| (size as f64 - share * total).abs();
            let nearest = (0..sizes.len()).min_by(|&a, &b| distance(sizes[a]).total_cmp(&distance(sizes[b])));
            if let Some(nearest) = nearest {
                sides[nearest] = side;
            }
            // Both sides cannot be empty, and what is moved leaves another document behind.
            return (sides, true);
        }
    }
    (sides, false)
}

/// Where to cut a single document so that about `fraction` of it comes after: at the line boundary
/// nearest to that place, or between two characters if that boundary is far off. `None` for a text
/// of fewer than two characters.
pub(super) fn cut_point(text: &str, fraction: f64) -> Option<usize> {
    let target = (text.len() as f64 * (1.0 - fraction)) as usize;
    let target = text.floor_char_boundary(target.min(text.len()));
    let inside = |at: &usize| (1..text.len()).contains(at);
    let before = text[..target].rfind('\n').map(|at| at + 1);
    let after = text[target..].find('\n').map(|at| target + at + 1);
    let line = [before, after].into_iter().flatten().filter(inside).min_by_key(|at| at.abs_diff(target));
    // A boundary that is far off would make validation much larger or smaller than asked for; in
    // a text so small that lines are coarse, whole lines are worth more than the exact share.
    let far = ((text.len() - target) / 2).max(256);
    line.filter(|at| at.abs_diff(target) <= far).or_else(|| {
        let first = text.chars().next().map_or(0, char::len_utf8);
        Some(target.max(first))
            .filter(inside)
            .or_else(|| text.char_indices().next_back().map(|(at, _)| at).filter(inside))
    })
}

/// A number from 0 up to, not including, 1.
fn hash_fraction(seed: u64, index: u64) -> f64 {
    // The tag keeps this apart from the keys of the sampler.
    let hash = key(&[0x7370_6c69_7400_0000, seed, index]);
    // 53 bits are what a double holds exactly.
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn val_count(sides: &[Split]) -> usize {
        sides.iter().filter(|&&side| side == Split::Val).count()
    }

    #[test]
    fn the_share_is_about_the_fraction_and_depends_on_the_seed() {
        let sizes = vec![10; 10_000];
        let (sides, moved) = split_documents(&sizes, 0, 0.05);
        assert!((400..600).contains(&val_count(&sides)) && !moved);
        assert_ne!(split_documents(&sizes, 1, 0.05).0, sides);
        assert_eq!(split_documents(&sizes[..500], 0, 0.05).0, sides[..500]);
        assert_eq!(val_count(&split_documents(&sizes, 0, 0.0).0), 0);
    }

    #[test]
    fn the_document_that_is_moved_is_of_the_right_size() {
        let sizes = [1_000_000, 10, 60_000];
        // A fraction that no hash is below, and one that every hash is below.
        let seed = (0..).find(|&s| (0..3).all(|i| hash_fraction(s, i) > 0.06)).unwrap();
        let (sides, moved) = split_documents(&sizes, seed, 0.05);
        assert_eq!(sides, [Split::Train, Split::Train, Split::Val]);
        assert!(moved);
        let seed = (0..).find(|&s| (0..3).all(|i| hash_fraction(s, i) < 0.9)).unwrap();
        let (sides, moved) = split_documents(&sizes, seed, 0.94);
        assert_eq!(sides, [Split::Val, Split::Val, Split::Train]);
        assert!(moved);
    }

    #[test]
    fn a_document_is_cut_at_a_line() {
        let text = "0123456\n".repeat(1000);
        let at = cut_point(&text, 0.05).unwrap();
        assert_eq!(at % 8, 0);
        assert!((7580..7620).contains(&at), "{at}");
        // The only line boundary is far from the place.
        let text = format!("head\n{}", "é".repeat(5000));
        let at = cut_point(&text, 0.1).unwrap();
        assert!((8990..9010).contains(&at), "{at}");
        assert_eq!(cut_point("a\nb\n", 0.05), Some(2));
        assert_eq!(cut_point("x", 0.5), None);
        assert_eq!(cut_point("éé", 0.01), Some(2));
    }

    proptest! {
        #[test]
        fn two_documents_or_more_fill_both_sides(
            sizes in proptest::collection::vec(1_u64..1000, 2..20),
            seed: u64,
            fraction in 0.0001..0.9999,
        ) {
            let (sides, _) = split_documents(&sizes, seed, fraction);
            prop_assert!((1..sides.len()).contains(&val_count(&sides)));
        }

        #[test]
        fn a_cut_is_inside_and_between_characters(
            text in "([a-z]|\n|é|🦀){0,40}",
            fraction in 0.0001..0.9999,
        ) {
            match cut_point(&text, fraction) {
                Some(at) => prop_assert!(at > 0 && at < text.len() && text.is_char_boundary(at)),
                None => prop_assert!(text.chars().count() < 2),
            }
        }
    }
}
