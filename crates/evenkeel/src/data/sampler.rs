//! Batches as a pure function of (seed, step).
//!
//! A window is `context` + 1 tokens: the inputs, and the same shifted by one as targets. In an
//! epoch the training split is cut into windows whose inputs do not overlap, shifted by an offset
//! below `context` that is drawn for the epoch (so that a token does not always stand at the same
//! position), and a keyed [`Permutation`] gives their order. Sequence i of step s is the sample
//! number s · `batch_sequences` + i, counted through all epochs. Nothing is remembered between
//! steps: to resume at a step is to ask for it.
//!
//! ```text
//! tokens     | offset |<- context ->|<- context ->| ...        N tokens
//! window 0            [ x x x x x x   x ]                       inputs, and one target more
//! window 1                            [ x x x x x x   x ]
//! ```
//!
//! [`ValidationBlocks`] goes through a split in order, without overlap and without chance.

use std::sync::Arc;

use super::dataset::{Dataset, Split};
use super::error::DataError;
use super::permutation::Permutation;
use crate::random::key;

/// Tags that keep the random streams apart.
const ORDER: u64 = 1;
const OFFSET: u64 = 2;
const CALIBRATION: u64 = 3;

/// What a training batch looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerSettings {
    /// Tokens in a sequence, at least 1.
    pub context: usize,
    /// Sequences in a batch, at least 1.
    pub batch_sequences: usize,
    /// The seed of the order.
    pub seed: u64,
}

/// Sequences of token ids with their targets, both of shape (sequences, context), row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The ids that are seen.
    pub inputs: Vec<u32>,
    /// The id that follows each of them.
    pub targets: Vec<u32>,
    /// The number of rows.
    pub sequences: usize,
    /// The length of a row.
    pub context: usize,
}

impl Batch {
    /// The number of positions, sequences · context.
    pub fn tokens(&self) -> usize {
        self.inputs.len()
    }

    fn read(
        dataset: &Dataset,
        split: Split,
        context: usize,
        starts: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Self, DataError> {
        let sequences = starts.len();
        let mut batch = Batch {
            inputs: Vec::with_capacity(sequences * context),
            targets: Vec::with_capacity(sequences * context),
            sequences,
            context,
        };
        let mut window = vec![0; context + 1];
        for start in starts {
            dataset.read(split, start, &mut window)?;
            batch.inputs.extend_from_slice(&window[..context]);
            batch.targets.extend_from_slice(&window[1..]);
        }
        Ok(batch)
    }
}

/// Draws training batches.
#[derive(Debug, Clone)]
pub struct TrainSampler {
    dataset: Arc<Dataset>,
    settings: SamplerSettings,
    windows: u64,
    /// Offsets are below this, so that the last window ends within the split.
    offsets: u64,
}

impl TrainSampler {
    /// A sampler over the training split.
    ///
    /// # Errors
    /// [`DataError::CorpusTooShort`] below `context` + 1 tokens, [`DataError::ZeroSize`].
    pub fn new(dataset: Arc<Dataset>, settings: SamplerSettings) -> Result<Self, DataError> {
        require_positive("batch_sequences", settings.batch_sequences)?;
        let blocks = whole_blocks(&dataset, Split::Train, settings.context)?;
        let context = settings.context as u64;
        // The shift takes up to one window's room. A split with a single window cannot spare it.
        let (windows, offsets) =
            if blocks > 1 { (blocks - 1, context) } else { (1, dataset.len(Split::Train) - context) };
        Ok(Self { dataset, settings, windows, offsets })
    }

    /// The data that batches are drawn from.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The settings.
    pub fn settings(&self) -> SamplerSettings {
        self.settings
    }

    /// Windows in an epoch: each is drawn once before any is drawn again.
    pub fn windows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// How often the training split has been gone through before `step`.
    pub fn epochs_at(&self, step: u64) -> f64 {
        step as f64 * self.settings.batch_sequences as f64 / self.windows as f64
    }

    /// The batch of a step, counted from 0.
    ///
    /// # Errors
    /// [`DataError::IdBeyondVocab`], [`DataError::Io`].
    pub fn batch(&self, step: u64) -> Result<Batch, DataError> {
        let sequences = self.settings.batch_sequences;
        let first = step.wrapping_mul(sequences as u64);
        self.draw(self.settings.seed, first, sequences)
    }

    /// Batches of training windows for choosing quantisation ranges, drawn by a key of their own:
    /// the same seed gives other windows than training does.
    pub fn calibration(
        &self,
        seed: u64,
        batches: usize,
        sequences: usize,
    ) -> impl ExactSizeIterator<Item = Result<Batch, DataError>> + '_ {
        let seed = key(&[CALIBRATION, seed]);
        (0..batches).map(move |batch| self.draw(seed, (batch * sequences) as u64, sequences))
    }

    fn draw(&self, seed: u64, first: u64, sequences: usize) -> Result<Batch, DataError> {
        let starts = (0..sequences).map(|row| self.start(seed, first.wrapping_add(row as u64)));
        Batch::read(&self.dataset, Split::Train, self.settings.context, starts)
    }

    /// The position of the first token of a sample.
    fn start(&self, seed: u64, sample: u64) -> u64 {
        let (epoch, index) = (sample / self.windows, sample % self.windows);
        let order = Permutation::new(self.windows, key(&[ORDER, seed, epoch]));
        // The remainder is below the number of windows, so that there is always a place.
        let window = order.get(index).unwrap_or(index);
        let offset = key(&[OFFSET, seed, epoch]) % self.offsets;
        offset + window * self.settings.context as u64
    }
}

/// The blocks of a split in order: block i has the inputs [i·T, i·T + T) and the targets one
/// further, T being the context. What does not fill a block is left out. An iterator over batches,
/// of which the last may have fewer sequences.
#[derive(Debug, Clone)]
pub struct ValidationBlocks {
    dataset: Arc<Dataset>,
    split: Split,
    context: usize,
    sequences: usize,
    blocks: u64,
    next: u64,
}

impl ValidationBlocks {
    /// The blocks of `split`, `sequences` in a batch, and no more of them than have `max_tokens`
    /// targets together (but one at least).
    ///
    /// # Errors
    /// [`DataError::CorpusTooShort`] below `context` + 1 tokens, [`DataError::ZeroSize`].
    pub fn new(
        dataset: Arc<Dataset>,
        split: Split,
        context: usize,
        sequences: usize,
        max_tokens: Option<u64>,
    ) -> Result<Self, DataError> {
        require_positive("sequences", sequences)?;
        let mut blocks = whole_blocks(&dataset, split, context)?;
        if let Some(max_tokens) = max_tokens {
            blocks = blocks.min((max_tokens / context as u64).max(1));
        }
        Ok(Self { dataset, split, context, sequences, blocks, next: 0 })
    }

    /// The number of blocks in all, which is the number of sequences of all batches together.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The number of targets in all.
    pub fn tokens(&self) -> u64 {
        self.blocks * self.context as u64
    }
}

impl Iterator for ValidationBlocks {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.next;
        let rows = (self.blocks - first).min(self.sequences as u64);
        if rows == 0 {
            return None;
        }
        self.next += rows;
        let context = self.context as u64;
        let starts = (0..rows as usize).map(|row| (first + row as u64) * context);
        Some(Batch::read(&self.dataset, self.split, self.context, starts))
    }
}

fn require_positive(key: &'static str, size: usize) -> Result<(), DataError> {
    if size == 0 {
        return Err(DataError::ZeroSize { key });
    }
    Ok(())
}

/// How many windows fit without overlap of their inputs, at least one.
fn whole_blocks(dataset: &Dataset, split: Split, context: usize) -> Result<u64, DataError> {
    require_positive("context", context)?;
    let (have, need) = (dataset.len(split), context as u64 + 1);
    if have < need {
        return Err(DataError::CorpusTooShort { split: split.name(), have, need });
    }
    Ok((have - 1) / context as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A split in which every token is its own position.
    fn counting(tokens: u32) -> Arc<Dataset> {
        let ids: Vec<u32> = (0..tokens).collect();
        Arc::new(Dataset::from_memory(ids.clone(), ids, tokens as usize))
    }

    fn sampler(tokens: u32, context: usize, batch_sequences: usize, seed: u64) -> TrainSampler {
        let settings = SamplerSettings { context, batch_sequences, seed };
        TrainSampler::new(counting(tokens), settings).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_epoch_has_every_window_once(
            context in 1_usize..9,
            extra in 1_u32..300,
            seed: u64,
            epoch in 0_u64..3,
        ) {
            let tokens = context as u32 + extra;
            let sampler = sampler(tokens, context, 1, seed);
            let windows = sampler.windows_per_epoch();
            let mut seen = BTreeSet::new();
            for step in epoch * windows..(epoch + 1) * windows {
                let batch = sampler.batch(step).unwrap();
                prop_assert_eq!(batch.inputs.len(), context);
                for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                    prop_assert_eq!(input + 1, *target);
                    // No position is an input twice in an epoch.
                    prop_assert!(seen.insert(*input));
                }
            }
            prop_assert_eq!(seen.len() as u64, windows * context as u64);
            // Contiguous, and at most one window and a remainder are left out.
            let span = seen.last().unwrap() - seen.first().unwrap() + 1;
            prop_assert_eq!(span as usize, seen.len());
            prop_assert!((tokens as usize) < seen.len() + 2 * context + 1);
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let first = sampler(1000, 8, 4, 3);
        let batches: Vec<Batch> = (0..100).map(|step| first.batch(step).unwrap()).collect();
        let again = sampler(1000, 8, 4, 3);
        assert_eq!(again.batch(57).unwrap(), batches[57]);
        assert_eq!(again.batch(3).unwrap(), batches[3]);
        assert_ne!(sampler(1000, 8, 4, 4).batch(3).unwrap(), batches[3]);
        let distinct: BTreeSet<&[u32]> = batches.iter().map(|b| &b.inputs[..]).collect();
        assert_eq!(distinct.len(), 100);
    }

    #[test]
    fn the_batch_size_does_not_change_the_order_of_samples() {
        let (one, four) = (sampler(500, 8, 1, 9), sampler(500, 8, 4, 9));
        let rows: Vec<u32> = (20..24).flat_map(|step| one.batch(step).unwrap().inputs).collect();
        assert_eq!(four.batch(5).unwrap().inputs, rows);
    }

    #[test]
    fn epochs_differ_in_order_and_offset() {
        let sampler = sampler(1000, 8, 1, 0);
        let windows = sampler.windows_per_epoch();
        let offset = |epoch: u64| sampler.start(0, epoch * windows) % 8;
        let offsets: BTreeSet<u64> = (0..100).map(offset).collect();
        assert_eq!(offsets, (0..8).collect());
        let order = |epoch| -> Vec<u64> {
            (0..windows).map(|index| sampler.start(0, epoch * windows + index) / 8).collect()
        };
        assert_ne!(order(0), order(1));
        assert!((sampler.epochs_at(windows) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn calibration_draws_other_windows() {
        let sampler = sampler(10_000, 8, 4, 5);
        let collect = |seed| -> Vec<Batch> { sampler.calibration(seed, 3, 2).map(Result::unwrap).collect() };
        let batches = collect(5);
        assert_eq!(batches.len(), 3);
        assert_eq!((batches[0].sequences, batches[0].context), (2, 8));
        assert_ne!(batches[0], batches[1]);
        assert_eq!(batches, collect(5));
        assert_ne!(batches, collect(6));
        assert_ne!(batches[0].inputs, sampler.batch(0).unwrap().inputs[..16]);
    }

    #[test]
    fn validation_goes_through_in_order_and_drops_the_rest() {
        let blocks = |max| ValidationBlocks::new(counting(31), Split::Val, 5, 4, max).unwrap();
        let batches: Vec<Batch> = blocks(None).map(Result::unwrap).collect();
        assert_eq!(batches.len(), 2);
        assert_eq!((batches[0].sequences, batches[1].sequences), (4, 2));
        let inputs: Vec<u32> = batches.iter().flat_map(|b| b.inputs.clone()).collect();
        let targets: Vec<u32> = batches.iter().flat_map(|b| b.targets.clone()).collect();
        assert_eq!(inputs, (0..30).collect::<Vec<u32>>());
        assert_eq!(targets, (1..31).collect::<Vec<u32>>());
        assert_eq!(blocks(None).tokens(), 30);
        // Thirty tokens hold only five whole blocks and their targets.
        let short = ValidationBlocks::new(counting(30), Split::Val, 5, 4, None).unwrap();
        assert_eq!(short.blocks(), 5);
        assert_eq!(blocks(Some(14)).blocks(), 2);
        assert_eq!(blocks(Some(1)).blocks(), 1);
    }

    #[test]
    fn one_window_is_enough_and_less_is_an_error() {
        let sampler = sampler(9, 8, 2, 0);
        assert_eq!(sampler.windows_per_epoch(), 1);
        let batch = sampler.batch(7).unwrap();
        assert_eq!(batch.inputs[..8], batch.inputs[8..]);
        let settings = sampler.settings();
        let error = TrainSampler::new(counting(8), settings).unwrap_err();
        assert!(matches!(error, DataError::CorpusTooShort { split: "train", have: 8, need: 9 }));
        let error = ValidationBlocks::new(counting(8), Split::Val, 8, 1, None).unwrap_err();
        assert!(matches!(error, DataError::CorpusTooShort { split: "val", .. }));
        let zero = SamplerSettings { context: 0, ..settings };
        assert!(matches!(TrainSampler::new(counting(8), zero), Err(DataError::ZeroSize { key: "context" })));
    }
}
