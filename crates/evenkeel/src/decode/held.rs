//! The tokens that a decoder has run, and which ones it runs next.

use crate::model::ModelError;

/// Tokens of each sequence, all of one number, for the time when the context is full.
pub(crate) struct Held {
    ids: Vec<Vec<u32>>,
}

/// What to run next.
pub(crate) struct Next {
    /// Tokens of each sequence, (sequences, tokens).
    pub(crate) input: Vec<u32>,
    /// How many of each.
    pub(crate) tokens: usize,
    /// Whether they are a new beginning: what is cached has to go first.
    pub(crate) anew: bool,
}

impl Held {
    /// Nothing of so many sequences.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn new(sequences: usize) -> Result<Self, ModelError> {
        match sequences {
            0 => Err(ModelError::Empty),
            _ => Ok(Self { ids: vec![Vec::new(); sequences] }),
        }
    }

    /// Number of sequences.
    pub(crate) fn sequences(&self) -> usize {
        self.ids.len()
    }

    /// Tokens held of each.
    pub(crate) fn tokens(&self) -> usize {
        self.ids.first().map_or(0, Vec::len)
    }

    /// What has to be run for `ids`, (sequences, tokens), to follow. `beginning` says how many of the latest tokens make a new
    /// beginning, if the cache cannot go on, from the number of tokens there will be and that of the new ones.
    ///
    /// # Errors
    /// If there are no ids, or not as many for each sequence.
    pub(crate) fn next(
        &self,
        ids: &[u32],
        beginning: impl Fn(usize, usize) -> Option<usize>,
    ) -> Result<Next, ModelError> {
        let new = ids.len() / self.sequences();
        if new == 0 || !ids.len().is_multiple_of(self.sequences()) {
            return Err(ModelError::Empty);
        }
        let anew = beginning(self.tokens() + new, new);
        let tokens = anew.unwrap_or(new);
        // The latest `tokens` of each sequence.
        let latest = |(held, new): (&Vec<u32>, &[u32])| -> Vec<u32> {
            let skipped = held.len() + new.len() - tokens;
            held.iter().chain(new).skip(skipped).copied().collect()
        };
        let input = self.ids.iter().zip(ids.chunks_exact(new)).flat_map(latest).collect();
        Ok(Next { input, tokens, anew: anew.is_some() })
    }

    /// Adds what has been run.
    pub(crate) fn add(&mut self, next: &Next) {
        for (held, input) in self.ids.iter_mut().zip(next.input.chunks_exact(next.tokens)) {
            held.extend(input);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ids.iter_mut().for_each(Vec::clear);
    }

    /// All sequences, `times` times one after the other.
    pub(crate) fn repeat(&mut self, times: usize) {
        self.ids = vec![self.ids.clone(); times].concat();
    }
}

/// How many tokens a decoder begins anew with when `total`, of them `new` new ones, are more than the context holds: half a
/// context of those it has, and the new ones.
pub(crate) fn when_full(context: usize, total: usize, new: usize) -> Option<usize> {
    (total > context).then(|| context.min(context / 2 + new).min(total))
}
