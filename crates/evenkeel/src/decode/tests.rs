//! Going on from a cache against running everything at once, for every causal variant.

use super::*;
use crate::model::ModelConfig;
use crate::model::config::{Positions, QkNorm};
use crate::model::tests::{IDS, perturbed, tiny, variants};
use crate::tap::{Place, Site};
use candle_core::DType;

/// Tokens of each of the two sequences of IDS.
const TOKENS: usize = IDS.len() / 2;

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Positions `first..first + count` of both sequences of IDS.
fn piece(first: usize, count: usize) -> Vec<u32> {
    IDS.chunks(TOKENS).flat_map(|ids| ids[first..first + count].to_vec()).collect()
}

/// Logits (2, vocab) of position `at` when all is run at once.
fn whole(model: &Transformer, at: usize) -> Vec<f64> {
    let logits = model.logits(&Tape::off(), &mut NoTap, &IDS, 2).unwrap();
    values(&logits.tensor().narrow(1, at, 1).unwrap())
}

/// Largest difference of two lists over the largest size in the second.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let peak = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / peak
}

/// The largest distance from [`whole`] after each of the `pieces`.
fn worst(model: &Transformer, kind: CacheKind, tap: &mut dyn Tap, pieces: &[usize]) -> f64 {
    let mut decoder = Decoder::new(model, 2, kind).unwrap();
    let mut worst = 0.0f64;
    for &count in pieces {
        let logits = decoder.run(tap, &piece(decoder.len(), count)).unwrap();
        assert_eq!(logits.dims(), [2, model.config().vocab]);
        worst = worst.max(distance(&values(&logits), &whole(model, decoder.len() - 1)));
    }
    assert_eq!(decoder.len(), TOKENS);
    worst
}

const PIECES: [&[usize]; 4] = [&[1; TOKENS], &[2, 1, 2], &[4, 1], &[TOKENS]];

/// Every variant that predicts the next token.
fn causal() -> impl Iterator<Item = (String, ModelConfig)> {
    variants().into_iter().filter(|(_, config)| config.predicts_next_token())
}

#[test]
fn every_variant_goes_on_as_if_it_had_been_run_at_once() {
    assert!(causal().count() > 50);
    for (name, config) in causal() {
        let wide = perturbed(&config);
        let narrow = wide.to_dtype(DType::F32).unwrap();
        for pieces in PIECES {
            let by_kernel = worst(&narrow, CacheKind::F32, &mut NoTap, pieces);
            assert!(by_kernel < 1e-5, "{name} {pieces:?}: {by_kernel}");
            let composed = worst(&wide, CacheKind::F32, &mut NoTap, pieces);
            assert!(composed < 1e-5, "{name} {pieces:?}, composed: {composed}");
        }
    }
}

/// A step of bfloat16 is 1/128 of a number and it is rounded by half of that; one of int8 is 1/255 of the range of a head's
/// channels. In these models, whose logits are sums of a few such, neither comes near a tenth of the largest logit.
#[test]
fn short_caches_stay_near() {
    for (name, config) in causal() {
        let model = perturbed(&config).to_dtype(DType::F32).unwrap();
        for (kind, bound) in [(CacheKind::Bf16, 0.05), (CacheKind::Int8, 0.05)] {
            for pieces in PIECES {
                let found = worst(&model, kind, &mut NoTap, pieces);
                assert!(found < bound, "{name} {kind:?} {pieces:?}: {found}");
            }
        }
    }
}

/// Wants everything, and gives it back as something new if it is said to transform.
struct Everything {
    transforms: bool,
    seen: Vec<(Site, Vec<usize>)>,
}

impl Everything {
    fn new(transforms: bool) -> Self {
        Self { transforms, seen: Vec::new() }
    }
}

impl Tap for Everything {
    fn wants(&self, _: Site) -> bool {
        true
    }
    fn visit(&mut self, site: Site, x: Tensor) -> candle_core::Result<Tensor> {
        self.seen.push((site, x.dims().to_vec()));
        if self.transforms { x.copy() } else { Ok(x) }
    }
    fn transforms(&self) -> bool {
        self.transforms
    }
}

#[test]
fn taps_see_new_tokens_against_all_keys() {
    for (name, config) in causal() {
        let model = perturbed(&config).to_dtype(DType::F32).unwrap();
        for kind in [CacheKind::F32, CacheKind::Int8] {
            let run = |tap: &mut dyn Tap| {
                let mut decoder = Decoder::new(&model, 2, kind).unwrap();
                decoder.run(tap, &piece(0, 3)).unwrap();
                values(&decoder.run(tap, &piece(3, 2)).unwrap())
            };
            let plain = run(&mut NoTap);
            let mut looking = Everything::new(false);
            assert_eq!(run(&mut looking), plain, "{name}: looking changes no bit");
            let mut reaching = Everything::new(true);
            let found = distance(&run(&mut reaching), &plain);
            // A key that falls on the other side of a level moves by a whole one.
            let bound = if kind == CacheKind::F32 { 1e-5 } else { 0.05 };
            assert!(found < bound, "{name} {kind:?}: {found}");
            for tap in [looking, reaching] {
                for place in [Place::AttnScores, Place::AttnProbs] {
                    let shapes: Vec<_> = tap.seen.iter().filter(|s| s.0 == Site::block(1, place)).collect();
                    let dims: Vec<&[usize]> = shapes.iter().map(|s| &s.1[..]).collect();
                    let heads = config.heads;
                    assert_eq!(dims, [[2, heads, 3, 3], [2, heads, 2, 5]], "{name}");
                }
                let q_norms = tap.seen.iter().filter(|s| s.0 == Site::block(0, Place::AttnQNorm)).count();
                assert_eq!(q_norms, if config.qk_norm == QkNorm::None { 0 } else { 2 });
                let logits = tap.seen.iter().find(|s| s.0 == Site::outside(Place::Logits)).unwrap();
                assert_eq!(logits.1, [2, 1, config.vocab]);
            }
        }
    }
}

#[test]
fn a_full_context_begins_anew_with_its_latest_half() {
    for positions in [Positions::Learned, Positions::Rope] {
        let config = ModelConfig { context: 6, positions, ..tiny("op") };
        let model = Transformer::new(config, 3).unwrap();
        let ids = |range: std::ops::Range<u32>| range.map(|i| i * 3 % 7).collect::<Vec<u32>>();
        let fresh =
            |ids: &[u32]| values(&Decoder::new(&model, 1, CacheKind::F32).unwrap().prefill(ids).unwrap());
        let mut decoder = Decoder::new(&model, 1, CacheKind::F32).unwrap();
        // Longer than the context from the start: its last tokens.
        let first = decoder.prefill(&ids(0..8)).unwrap();
        assert_eq!((decoder.len(), values(&first)), (6, fresh(&ids(2..8))));
        // Full: half a context and the new token.
        let next = decoder.decode(&ids(8..9)).unwrap();
        assert_eq!((decoder.len(), values(&next)), (4, fresh(&ids(5..9))));
        decoder.prefill(&ids(9..11)).unwrap();
        assert_eq!(decoder.len(), 6);
        let next = decoder.prefill(&ids(11..15)).unwrap();
        assert_eq!((decoder.len(), values(&next)), (6, fresh(&ids(9..15))));
        decoder.reset();
        assert!(decoder.is_empty() && decoder.cache_bytes() == 0);
        assert_eq!(values(&decoder.prefill(&ids(2..8)).unwrap()), fresh(&ids(2..8)));
    }
}

#[test]
fn angles_that_change_with_the_length_are_made_again() {
    let mut config = tiny("pre_ln");
    config.positions = Positions::Rope;
    for scaling in ["dynamic(4, 2)", "llama3(8, 1, 4, 4)"] {
        config.rope_scaling = RopeScaling::try_from(scaling.to_string()).unwrap();
        let model = perturbed(&config).to_dtype(DType::F32).unwrap();
        let mut decoder = Decoder::new(&model, 2, CacheKind::F32).unwrap();
        for end in 1..=TOKENS {
            let next = values(&decoder.decode(&piece(end - 1, 1)).unwrap());
            let all = model.logits(&Tape::off(), &mut NoTap, &piece(0, end), 2).unwrap();
            let found = distance(&next, &values(&all.tensor().narrow(1, end - 1, 1).unwrap()));
            assert!(found < 1e-5, "{scaling} at {end}: {found}");
            assert_eq!(decoder.len(), end);
        }
    }
}

#[test]
fn copies_of_a_sequence_go_different_ways() {
    let model = Transformer::new(tiny("pre_rms"), 3).unwrap();
    let run = |ids: &[u32]| {
        let mut decoder = Decoder::new(&model, 1, CacheKind::Bf16).unwrap();
        decoder.prefill(&ids[..2]).unwrap();
        values(&decoder.decode(&ids[2..]).unwrap())
    };
    let mut decoder = Decoder::new(&model, 1, CacheKind::Bf16).unwrap();
    decoder.prefill(&[1, 4]).unwrap();
    let mut both = decoder.repeated(2);
    assert_eq!((both.sequences(), both.len()), (2, 2));
    // 2 blocks of keys and values, 8 channels, 2 bytes.
    assert_eq!(both.cache_bytes(), 2 * 2 * (2 * 2 * 8 * 2));
    let logits = values(&both.decode(&[2, 6]).unwrap());
    assert!(distance(&logits, &[run(&[1, 4, 2]), run(&[1, 4, 6])].concat()) < 1e-6);
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let new = |config: ModelConfig, n| {
        let model = Transformer::new(config, 1).unwrap();
        Decoder::new(&model, n, CacheKind::F32).map(|_| ())
    };
    let encoder = ModelConfig { causal: false, ..tiny("pre_ln") };
    assert!(matches!(new(encoder, 1), Err(ModelError::NoNextToken)));
    assert!(matches!(new(tiny("pre_ln"), 0), Err(ModelError::Empty)));
    let model = Transformer::new(tiny("pre_ln"), 1).unwrap();
    let mut decoder = Decoder::new(&model, 2, CacheKind::F32).unwrap();
    decoder.prefill(&piece(0, 3)).unwrap();
    assert!(matches!(decoder.prefill(&[]), Err(ModelError::Empty)));
    assert!(matches!(decoder.prefill(&[1, 2, 3]), Err(ModelError::Empty)));
    assert!(matches!(decoder.decode(&[1, 2, 3, 4]), Err(ModelError::Empty)));
    assert!(matches!(decoder.decode(&[1, 7]), Err(ModelError::IdBeyondVocabulary { id: 7, .. })));
    // A pass that fails on the way leaves nothing.
    struct Stop;
    impl Tap for Stop {
        fn wants(&self, site: Site) -> bool {
            site.place == Place::MlpOut
        }
        fn visit(&mut self, _: Site, _: Tensor) -> candle_core::Result<Tensor> {
            candle_core::bail!("stopped")
        }
    }
    assert!(decoder.run(&mut Stop, &piece(3, 1)).is_err());
    assert_eq!(decoder.len(), 3);
    let next = values(&decoder.prefill(&piece(3, 2)).unwrap());
    assert!(distance(&next, &whole(&model, TOKENS - 1)) < 1e-5);
}
