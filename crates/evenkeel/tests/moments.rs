//! The terms of moment control: golden values from NumPy, and the identity that makes them worth reading, namely
//! that they sum to the change of the moment.

use evenkeel::checkpoint::read_tensors;
use evenkeel::metrics::ChannelStats;
use evenkeel::metrics::moments::{MomentKind, MomentTerms, moment_terms};
use proptest::prelude::*;
use std::path::PathBuf;

const KINDS: [(&str, MomentKind); 2] = [("neuron", MomentKind::Neuron), ("element", MomentKind::Element)];

fn listed(t: &MomentTerms) -> [f64; 8] {
    [t.m2, t.m4, t.u21, t.u22, t.u41, t.u42, t.u43, t.u44]
}

/// Largest distance of the terms' sum from the change of the moments, over the sum of the terms' sizes.
fn gap(kind: MomentKind, x: &[f32], y: &[f32], width: usize) -> f64 {
    let (terms, after) = (moment_terms(kind, x, y, width), moment_terms(kind, y, y, width));
    let second = ((after.m2 - terms.m2) - terms.m2_change()).abs();
    let fourth = ((after.m4 - terms.m4) - terms.m4_change()).abs();
    let sizes = [terms.u21.abs() + terms.u22, terms.u41.abs() + terms.u42 + terms.u43.abs() + terms.u44];
    // Where nothing moved there is nothing to compare to, and the change must be exactly nothing too.
    let over = |error: f64, size: f64| if error == 0.0 { 0.0 } else { error / size };
    over(second, sizes[0]).max(over(fourth, sizes[1]))
}

#[test]
fn terms_agree_with_numpy() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/moments.safetensors");
    let all = read_tensors(&path).unwrap();
    let mut seen = 0;
    for (name, x) in all.iter().filter_map(|(k, x)| Some((k.strip_prefix("x.")?, x))) {
        let width = x.dims()[1];
        let flat = |key: String| all[&key].flatten_all().unwrap();
        let (x, y) = (flat(format!("x.{name}")), flat(format!("y.{name}")));
        let (x, y) = (x.to_vec1::<f32>().unwrap(), y.to_vec1::<f32>().unwrap());
        for (key, kind) in KINDS {
            let want = flat(format!("{key}.{name}")).to_vec1::<f64>().unwrap();
            let got = listed(&moment_terms(kind, &x, &y, width));
            // A term may be a small rest of large sums: its error is measured by the moment and its change.
            let scale = want[2..].iter().fold(0.0f64, |m, v| m.max(v.abs()));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = (got - want).abs();
                let size = if i < 2 { want.abs() } else { scale };
                assert!(error <= 1e-12 * size, "{key}.{name}, entry {i}: {got} and {want}");
            }
            let gap = gap(kind, &x, &y, width);
            assert!(gap < 1e-6, "{key}.{name}: the terms miss the change by {gap:e}");
            seen += 1;
        }
    }
    assert_eq!(seen, 24);
}

#[test]
fn no_step_has_no_terms_and_what_is_not_finite_stays_so() {
    let x = [1.0f32, -2.0, 3.0, 0.5, 0.0, 4.0];
    for (_, kind) in KINDS {
        let still = moment_terms(kind, &x, &x, 3);
        assert_eq!(listed(&still)[2..], [0.0; 6]);
        assert!(still.ratio().is_some());
        let mut broken = x;
        broken[4] = f32::NAN;
        let terms = moment_terms(kind, &x, &broken, 3);
        assert!(terms.m4.is_finite() && terms.m4_change().is_nan());
        assert_eq!(moment_terms(kind, &broken, &x, 3).ratio(), None);
        assert_eq!(moment_terms(kind, &[0.0; 6], &x, 3).ratio(), None);
        assert!(moment_terms(kind, &[], &[], 3).m2.is_nan());
    }
}

proptest! {
    #[test]
    fn terms_sum_to_the_change(
        x in proptest::collection::vec(-1e3f32..1e3, 60),
        y in proptest::collection::vec(-1e3f32..1e3, 60),
        // From hardly moved to another matrix altogether.
        share in (-4.0f32..0.0).prop_map(|e| 10f32.powf(e)),
        width in prop::sample::select(vec![1usize, 4, 12, 60]),
    ) {
        let moved: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + share * (y - x)).collect();
        for (_, kind) in KINDS {
            let gap = gap(kind, &x, &moved, width);
            prop_assert!(gap < 1e-6, "{:?}: {:e}", kind, gap);
        }
    }

    #[test]
    fn neuron_ratio_is_the_kurtosis_of_eq_1(x in proptest::collection::vec(-1e3f32..1e3, 48)) {
        let mut stats = ChannelStats::default();
        stats.add(&x, 6);
        let ratio = moment_terms(MomentKind::Neuron, &x, &x, 6).ratio();
        match stats.kurtosis() {
            Some(kurtosis) => prop_assert!((ratio.unwrap() - kurtosis).abs() < 1e-9 * kurtosis),
            None => prop_assert_eq!(ratio, None),
        }
    }

    #[test]
    fn terms_have_the_degree_of_their_name(x in proptest::collection::vec(-10f32..10.0, 24),
                                           delta in proptest::collection::vec(-10f32..10.0, 24)) {
        // Whole numbers and a doubled step, so that nothing is rounded.
        let whole = |v: &[f32]| v.iter().map(|v| v.round()).collect::<Vec<f32>>();
        let (x, delta) = (whole(&x), whole(&delta));
        let step = |k: f32| x.iter().zip(&delta).map(|(x, d)| x + k * d).collect::<Vec<f32>>();
        for (_, kind) in KINDS {
            let one = moment_terms(kind, &x, &step(1.0), 6);
            let two = moment_terms(kind, &x, &step(2.0), 6);
            for (a, b, factor) in [
                (one.u21, two.u21, 2.0), (one.u22, two.u22, 4.0), (one.u41, two.u41, 2.0),
                (one.u42, two.u42, 4.0), (one.u43, two.u43, 8.0), (one.u44, two.u44, 16.0),
            ] {
                prop_assert!((b - factor * a).abs() <= 1e-9 * b.abs().max(1e-9), "{} {} {}", a, b, factor);
            }
        }
    }
}
