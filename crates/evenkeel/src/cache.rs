//! The keys and values of the tokens that a model has seen, so that the next ones need not run them again.
//!
//! A [`crate::tape::Tape`] may hold one: the forward pass then continues the sequences of the cache. Keys are kept after QK-norm
//! and rotation, values as they are; memory grows with what is held.

use crate::model::ModelConfig;
use crate::slices::{slice, tensor};
use candle_core::{DType, Result, Tensor, bail};
pub use evenkeel_kernels::attention::CacheKind;
use evenkeel_kernels::attention::HeadCache;

/// Keys and values of all blocks, for a batch of sequences of equal length.
#[derive(Clone, Debug)]
pub struct KvCache {
    sequences: usize,
    tokens: usize,
    layers: Vec<LayerCache>,
}

/// Keys and values of one block: those of each key head of each sequence.
#[derive(Clone, Debug)]
pub struct LayerCache {
    heads: Vec<HeadCache>,
    kv_heads: usize,
    d_head: usize,
}

impl KvCache {
    /// An empty cache for `sequences` sequences of this model.
    pub fn new(config: &ModelConfig, sequences: usize, kind: CacheKind) -> Self {
        let (kv_heads, d_head) = (config.kv_heads(), config.d_head());
        let heads = vec![HeadCache::new(kind, d_head); sequences * kv_heads];
        let layers = vec![LayerCache { heads, kv_heads, d_head }; config.depth];
        Self { sequences, tokens: 0, layers }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Tokens held of each sequence.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Bytes of the keys and values that are held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.heads).map(HeadCache::bytes).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.tokens = 0;
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            head.truncate(0);
        }
    }

    /// Counts `tokens` that have now passed every block.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// All sequences, `times` times one after the other.
    pub(crate) fn repeat(&mut self, times: usize) {
        self.sequences *= times;
        for layer in &mut self.layers {
            layer.heads = vec![layer.heads.clone(); times].concat();
        }
    }

    /// The cache of block `layer` before this pass: what a pass that failed left in it is gone.
    ///
    /// # Errors
    /// If the model of the cache has no such block.
    pub(crate) fn before(&mut self, layer: usize) -> Result<&mut LayerCache> {
        let tokens = self.tokens;
        let found = self.at(layer)?;
        found.heads.iter_mut().for_each(|head| head.truncate(tokens));
        Ok(found)
    }

    /// The same with what this pass has added.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn at(&mut self, layer: usize) -> Result<&mut LayerCache> {
        let blocks = self.layers.len();
        let Some(found) = self.layers.get_mut(layer) else {
            bail!("block {layer} was given a cache of {blocks} blocks");
        };
        Ok(found)
    }
}

impl LayerCache {
    /// Tokens held.
    pub(crate) fn tokens(&self) -> usize {
        self.heads.first().map_or(0, HeadCache::tokens)
    }

    /// Refuses keys of other sizes than the cache was made for.
    ///
    /// # Errors
    /// If there are others.
    pub(crate) fn check(&self, sequences: usize, kv_heads: usize, d_head: usize) -> Result<()> {
        if self.heads.len() != sequences * kv_heads || (self.kv_heads, self.d_head) != (kv_heads, d_head) {
            bail!(
                "a cache for {} sequences of {} key heads of {} channels was given {sequences} of {kv_heads} of {d_head}",
                self.heads.len() / self.kv_heads.max(1),
                self.kv_heads,
                self.d_head
            );
        }
        Ok(())
    }

    /// For the kernel: sequence after sequence, and its key heads in their order.
    pub(crate) fn heads_mut(&mut self) -> &mut [HeadCache] {
        &mut self.heads
    }

    /// Adds keys and values (sequences, tokens, kv_heads, d_head) of any float dtype; kept as float32 at best.
    ///
    /// # Errors
    /// If shapes disagree.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (sequences, tokens, kv_heads, d_head) = keys.dims4()?;
        self.check(sequences, kv_heads, d_head)?;
        let heads_first = |x: &Tensor| x.transpose(1, 2)?.to_dtype(DType::F32)?.contiguous();
        let (keys, values) = (heads_first(keys)?, heads_first(values)?);
        let (keys, values) = (slice(&keys)?, slice(&values)?);
        let rows = (tokens * d_head).max(1);
        for ((head, keys), values) in self.heads.iter_mut().zip(keys.chunks(rows)).zip(values.chunks(rows)) {
            head.append(keys, values);
        }
        Ok(())
    }

    /// All keys, (sequences, tokens, kv_heads, d_head), as they are read.
    ///
    /// # Errors
    /// If the tensor library refuses.
    pub(crate) fn keys(&self, dtype: DType) -> Result<Tensor> {
        self.gathered(dtype, |head, out| out.extend_from_slice(&head.keys()))
    }

    /// All values.
    ///
    /// # Errors
    /// If the tensor library refuses.
    pub(crate) fn values(&self, dtype: DType) -> Result<Tensor> {
        self.gathered(dtype, |head, out| out.extend_from_slice(&head.values()))
    }

    fn gathered(&self, dtype: DType, read: impl Fn(&HeadCache, &mut Vec<f32>)) -> Result<Tensor> {
        let (tokens, sequences) = (self.tokens(), self.heads.len() / self.kv_heads.max(1));
        let mut rows = Vec::with_capacity(self.heads.len() * tokens * self.d_head);
        self.heads.iter().for_each(|head| read(head, &mut rows));
        let heads_first = tensor(rows, (sequences, self.kv_heads, tokens, self.d_head))?;
        heads_first.transpose(1, 2)?.to_dtype(dtype)
    }
}
