//! Fully quantised attention: bytes in, integer products, a float32 softmax between them, bytes or float32 out.
//!
//! With levels on grids of step s and zero point z, for each head:
//!
//! * scores `y = s_q s_k scale · Σ (q - z_q)(k - z_k)`, the sum exact; rounded to their grid, before the mask, if they have one;
//! * probabilities: a float32 softmax over the keys that a query sees, rounded to their grid if they have one; keys that it does
//!   not see have probability 0;
//! * context `s_p s_v · Σ (p - z_p)(v - z_v)`, the sum exact; without a grid for the probabilities a float32 product.
//!
//! Zero points never enter a product: `Σ (q - z_q)(k - z_k) = Σ q k - z_q Σ k - z_k Σ q + d z_q z_k`.
//!
//! A task is a stretch of queries of the query heads of one sequence that share a key head. It packs the keys and values that
//! they see, then walks tiles of as many queries as the micro-kernel has rows: the scores of a tile, and the bytes
//! that they become, stay in L1 and L2, and a causal task computes no keys after its tile.

use super::micro::Kernel;
use super::pack::{Bytes, Panels, pack_across, pack_outputs};
use super::requantise::quantise_u8_serial;
use super::softmax::{PAD, corrected, probabilities};
use super::{Path, Room, multiply};
use crate::attention::Softmax;
use crate::gemm::scratch::Scratch;
use crate::gemm::{Compute, Packed, View, Write, gemm_serial_packed};
use crate::isa::multiversion;
use crate::quant::{Grid, fake_quantise_serial};
use crate::threads::Shared;
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a task: enough for packing keys and values to cost little beside using them.
const QUERIES: usize = 192;
/// Most keys, and most channels of a head: 255 · 255 · 33025 is below 2³¹.
pub const MAX_KEYS: usize = 33_025;

/// Sizes, switches and grids of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct IntAttention {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of each sequence that have a query: the last of its keys.
    pub queries: usize,
    /// Tokens of each sequence that have a key and a value, at most [`MAX_KEYS`].
    pub keys: usize,
    /// Tokens from one sequence to the next in `k` and `v`, at least `keys`: the capacity of a cache.
    pub kv_stride: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads, which divides `heads`: query head h uses key head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Channels per head.
    pub d_head: usize,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// How many of these it sees, itself included: the latest. 0 means all; only causal attention has a window.
    pub window: usize,
    /// Factor on the scores, usually 1/√d_head.
    pub scale: f32,
    /// How scores become probabilities.
    pub softmax: Softmax,
    /// The grid of the queries, of bytes.
    pub q: Grid,
    /// The grid of the keys, of bytes 0..=255, although `k` holds them less 128.
    pub k: Grid,
    /// The grid of the values, as that of the keys.
    pub v: Grid,
    /// The grid of the scores; `None` leaves them float32.
    pub scores: Option<Grid>,
    /// The grid of the probabilities, of bytes; `None` leaves them and their product with the values float32.
    pub probs: Option<Grid>,
}

impl IntAttention {
    /// Attention of `q`, (sequences, queries, heads · d_head), to `k` and `v`, (sequences, kv_stride, kv_heads · d_head) of levels
    /// less 128, into `out` of the shape of `q`. The last sequence need not have its full stride.
    ///
    /// # Panics
    /// If sizes disagree or a grid that must be of bytes is not.
    pub fn forward(&self, q: &[u8], k: &[i8], v: &[i8], out: &mut [f32]) {
        assert_eq!(q.len(), out.len());
        let out = Shared::new(out);
        // SAFETY: `run` hands out every stretch of the output once.
        self.run(q, k, v, |at, row| unsafe {
            std::slice::from_raw_parts_mut(out.at(at), row.len()).copy_from_slice(row);
        });
    }

    /// As [`IntAttention::forward`], rounded to bytes on the grid `context`.
    ///
    /// # Panics
    /// As [`IntAttention::forward`].
    pub fn forward_u8(&self, q: &[u8], k: &[i8], v: &[i8], context: Grid, out: &mut [u8]) {
        assert_eq!(q.len(), out.len());
        let out = Shared::new(out);
        // SAFETY: as above.
        self.run(q, k, v, |at, row| unsafe {
            quantise_u8_serial(row, context, std::slice::from_raw_parts_mut(out.at(at), row.len()));
        });
    }

    /// Hands each query's d_head numbers of each head to `write`, with the place of the first in the output.
    fn run(&self, q: &[u8], k: &[i8], v: &[i8], write: impl Fn(usize, &[f32]) + Sync) {
        self.check(q, k, v);
        if q.is_empty() {
            return;
        }
        let stretches = self.queries.div_ceil(QUERIES);
        (0..self.sequences * self.kv_heads * stretches).into_par_iter().for_each(|task| {
            let (pair, stretch) = (task / stretches, task % stretches);
            let queries = stretch * QUERIES..self.queries.min((stretch + 1) * QUERIES);
            self.task((pair / self.kv_heads, pair % self.kv_heads), queries, q, [k, v], &write);
        });
    }

    fn check(&self, q: &[u8], k: &[i8], v: &[i8]) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "kv_heads must divide heads");
        assert!(self.causal || self.window == 0, "a window belongs to causal attention");
        assert!(self.queries <= self.keys && self.keys <= self.kv_stride, "queries are the last of the keys");
        assert!(self.keys <= MAX_KEYS && self.d_head <= MAX_KEYS, "sums over more could overflow");
        assert_eq!(q.len(), self.sequences * self.queries * self.heads * self.d_head);
        let tokens = self.sequences.saturating_sub(1) * self.kv_stride + self.keys;
        let least = tokens.min(self.sequences * self.kv_stride) * self.kv_heads * self.d_head;
        assert!(k.len() >= least && v.len() >= least, "k and v must hold every key");
    }

    /// The keys that a query sees.
    fn seen(&self, query: usize) -> Range<usize> {
        if !self.causal {
            return 0..self.keys;
        }
        let end = self.keys - self.queries + query + 1;
        if self.window == 0 { 0..end } else { end.saturating_sub(self.window)..end }
    }

    /// The keys that any of some queries sees, widened to whole [`PAD`]: those past the last are packed as zeros.
    fn seen_by(&self, queries: &Range<usize>) -> Range<usize> {
        let (first, end) = (self.seen(queries.start).start, self.seen(queries.end - 1).end);
        first / PAD * PAD..end.next_multiple_of(PAD)
    }

    /// These tokens' rows of one key head of one sequence.
    fn key_rows<'a>(
        &self,
        x: &'a [i8],
        sequence: usize,
        kv_head: usize,
        keys: &Range<usize>,
    ) -> Bytes<'a, i8> {
        let stride = self.kv_heads * self.d_head;
        let first = (sequence * self.kv_stride + keys.start) * stride + kv_head * self.d_head;
        Bytes::new(&x[first..], keys.end.min(self.keys) - keys.start, self.d_head, stride)
    }

    /// The context of some queries of the heads that share a key head.
    fn task(
        &self,
        (sequence, kv_head): (usize, usize),
        queries: Range<usize>,
        q: &[u8],
        [k, v]: [&[i8]; 2],
        write: &(impl Fn(usize, &[f32]) + Sync),
    ) {
        let (d, width, group) = (self.d_head, self.heads * self.d_head, self.heads / self.kv_heads);
        let keys = self.seen_by(&queries);
        let [k, v] = [k, v].map(|x| self.key_rows(x, sequence, kv_head, &keys));
        let (packed, values) = (Keys::new(k), Values::new(v, self.v, self.probs));
        let mut tile = Tile::new(Kernel::select(Path::active(), queries.len()));
        for head in kv_head * group..(kv_head + 1) * group {
            let start = sequence * self.queries * width + head * d;
            let q = Bytes::new(&q[start..], self.queries, d, width);
            for first in queries.clone().step_by(tile.kernel.rows) {
                let some = first..queries.end.min(first + tile.kernel.rows);
                self.probabilities(&mut tile, q, some, keys.start, &packed);
                values.context(&mut tile, |i, row| write(start + (first + i) * width, row));
            }
        }
    }

    /// The probabilities of a tile of queries. `origin` is the first key that is packed.
    fn probabilities(
        &self,
        tile: &mut Tile,
        q: Bytes<u8>,
        queries: Range<usize>,
        origin: usize,
        keys: &Keys,
    ) {
        let seen = self.seen_by(&queries);
        tile.keys = seen.start - origin..seen.end - origin;
        tile.probs.clear();
        let n = seen.len();
        tile.levels.resize(queries.len() * n, 0);
        if self.probs.is_none() {
            tile.probs.resize(queries.len() * tile.keys.end, 0.0);
        }
        tile.row.resize(n, 0.0);
        let (z_q, z_k) = (integer(self.q), integer(self.k) - 128);
        let factor = self.q.scale * self.k.scale * self.scale;
        let sums_of_keys = &keys.sums[tile.keys.clone()];
        let first = queries.start;
        multiply(
            tile.kernel,
            q,
            queries,
            keys.panels(),
            tile.keys.clone(),
            &mut tile.room,
            |query, _, sums| {
                let row = &mut tile.row;
                let constant = z_k * (self.d_head as i32 * z_q - sum(q.row(query)));
                corrected(sums, sums_of_keys, z_q, constant, factor, row);
                if let Some(grid) = self.scores {
                    fake_quantise_serial(row, grid);
                }
                let visible = self.seen(query);
                row[..visible.start - seen.start].fill(f32::NEG_INFINITY);
                row[visible.end - seen.start..].fill(f32::NEG_INFINITY);
                probabilities(row, self.softmax);
                let i = query - first;
                match self.probs {
                    Some(grid) => quantise_u8_serial(row, grid, &mut tile.levels[i * n..][..n]),
                    None => tile.probs[i * tile.keys.end..][tile.keys.clone()].copy_from_slice(row),
                }
            },
        );
    }
}

/// What a tile of queries needs from stage to stage, kept for the next tile.
struct Tile {
    kernel: Kernel,
    room: Room,
    /// The keys that its queries see, counted from the first packed one.
    keys: Range<usize>,
    /// One query's scores of these.
    row: Vec<f32>,
    /// The probabilities, (queries, keys), as bytes if they have a grid.
    levels: Vec<u8>,
    /// As numbers if they have none, from the first packed key on.
    probs: Vec<f32>,
    /// One query's context, or each one's.
    context: Vec<f32>,
}

impl Tile {
    fn new(kernel: Kernel) -> Self {
        let (row, levels, probs, context) = Default::default();
        Self { kernel, room: Room::default(), keys: 0..0, row, levels, probs, context }
    }
}

/// Keys as the right-hand side of a product: (keys, d_head), packed, with zeros to whole [`PAD`].
struct Keys {
    groups: Scratch,
    /// Σ over the channels of each.
    sums: Vec<i32>,
    d_head: usize,
}

impl Keys {
    fn new(k: Bytes<i8>) -> Self {
        let keys = k.rows().next_multiple_of(PAD);
        let size = Panels::size(keys, k.columns());
        let (mut groups, mut sums) = (Scratch::take(size), vec![0; keys]);
        pack_outputs(k, 0, &mut groups.groups_mut()[..size], &mut sums[..k.rows()]);
        Self { groups, sums, d_head: k.columns() }
    }

    fn panels(&self) -> Panels<'_> {
        Panels::new(self.groups.groups(), self.sums.len(), self.d_head)
    }
}

/// Values as the right-hand side of a product: (keys, d_head), packed across, with zeros to whole [`PAD`].
enum Values<'a> {
    /// For probabilities on the grid `probs`.
    Bytes { rows: Bytes<'a, i8>, groups: Scratch, values: Grid, probs: Grid },
    /// For probabilities that are numbers.
    Numbers { packed: Packed, d_head: usize },
}

impl<'a> Values<'a> {
    fn new(rows: Bytes<'a, i8>, values: Grid, probs: Option<Grid>) -> Self {
        let (keys, d_head) = (rows.rows().next_multiple_of(PAD), rows.columns());
        if let Some(probs) = probs {
            let size = Panels::size(d_head, keys);
            let mut groups = Scratch::take(size);
            pack_across(rows, &mut groups.groups_mut()[..size]);
            return Values::Bytes { rows, groups, values, probs };
        }
        let mut numbers = vec![0.0; keys * d_head];
        for (row, out) in (0..rows.rows()).zip(numbers.chunks_exact_mut(d_head.max(1))) {
            dequantise_row(rows.row(row), values, out);
        }
        Values::Numbers {
            packed: Packed::new_serial(Compute::F32, View::new(&numbers, keys, d_head)),
            d_head,
        }
    }

    /// Hands the context of each query of a tile to `write`, with its number in the tile.
    fn context(&self, tile: &mut Tile, write: impl Fn(usize, &[f32])) {
        match self {
            Values::Bytes { rows, groups, values, probs } => {
                let (n, d) = (tile.keys.len(), rows.columns());
                let (z_p, z_v) = (integer(*probs), integer(*values) - 128);
                let mut sums_of_values = vec![0; d];
                if z_p != 0 {
                    let keys = tile.keys.start..tile.keys.end.min(rows.rows());
                    keys.for_each(|key| add_to(rows.row(key), &mut sums_of_values));
                }
                tile.context.resize(d, 0.0);
                let p = Bytes::new(&tile.levels, tile.levels.len() / n, n, n);
                let keys = rows.rows().next_multiple_of(PAD);
                let panels = Panels::new(groups.groups(), d, keys).part(tile.keys.clone());
                let factor = probs.scale * values.scale;
                multiply(tile.kernel, p, 0..p.rows(), panels, 0..d, &mut tile.room, |i, _, sums| {
                    let constant = z_v * (n as i32 * z_p - sum(p.row(i)));
                    corrected(sums, &sums_of_values, z_p, constant, factor, &mut tile.context);
                    write(i, &tile.context);
                });
            }
            Values::Numbers { packed, d_head } => {
                let (n, d) = (tile.keys.end, *d_head);
                let queries = tile.probs.len() / n;
                tile.context.resize(queries * d, 0.0);
                let p = View::new(&tile.probs, queries, n);
                gemm_serial_packed(p, packed, d, &mut tile.context, d, Write::Replace);
                for (i, row) in tile.context.chunks_exact(d).enumerate() {
                    write(i, row);
                }
            }
        }
    }
}

/// A grid's zero point.
fn integer(grid: Grid) -> i32 {
    grid.zero_point as i32
}

multiversion! {
    fn sum(x: &[u8]) -> i32 {
        x.iter().map(|&v| i32::from(v)).sum()
    }
}

multiversion! {
    fn add_to(row: &[i8], sums: &mut [i32]) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum += i32::from(v);
        }
    }
}

multiversion! {
    fn dequantise_row(levels: &[i8], grid: Grid, out: &mut [f32]) {
        for (out, &level) in out.iter_mut().zip(levels) {
            *out = grid.scale * (f32::from(level) + 128.0 - grid.zero_point);
        }
    }
}
