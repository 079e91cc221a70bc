//! How the output of a product is cut into blocks. An element's sum runs in the same order whatever block it is in.

use std::ops::Range;

/// Fewest columns of a block where there are more.
const FEWEST: usize = 192;

/// Blocks of whole tiles.
pub(crate) struct Cut {
    shape: [usize; 2],
    tile: [usize; 2],
    /// Blocks below and beside each other.
    blocks: [usize; 2],
}

impl Cut {
    /// Blocks of at most 192 rows, enough for a panel to be worth fetching into a near cache, and of at most about
    /// `widest` columns; where the shape allows, at least four for each thread. All but equal, since
    /// the largest decides when the last thread is done. Neither axis of `shape` is empty.
    pub(crate) fn new(shape: [usize; 2], tile: [usize; 2], widest: usize, threads: usize) -> Self {
        let [rows, columns] = shape;
        let below = rows.div_ceil(192);
        let below = if below < threads { below } else { below.next_multiple_of(threads) };
        let wide = columns.div_ceil((4 * threads).div_ceil(below)).clamp(FEWEST.min(widest), widest);
        let most = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
        Self { shape, tile, blocks: [below.min(most[0]), columns.div_ceil(wide).min(most[1])] }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks[0] * self.blocks[1]
    }

    pub(crate) fn rows(&self, block: usize) -> Range<usize> {
        self.part(0, block / self.blocks[1])
    }

    pub(crate) fn columns(&self, block: usize) -> Range<usize> {
        self.part(1, block % self.blocks[1])
    }

    /// Part `i` of an axis, in whole tiles but for the last.
    fn part(&self, axis: usize, i: usize) -> Range<usize> {
        let (size, tile, parts) = (self.shape[axis], self.tile[axis], self.blocks[axis]);
        let tiles = size.div_ceil(tile);
        i * tiles / parts * tile..size.min((i + 1) * tiles / parts * tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_once_and_are_all_but_equal() {
        for (m, n) in [(1, 1), (5, 700), (384, 384), (4096, 384), (4096, 8192), (193, 513), (191, 2)] {
            for (tile, threads) in
                [([12, 32], 1), ([6, 16], 2), ([4, 16], 3), ([32, 32], 16), ([12, 32], 200)]
            {
                let cut = Cut::new([m, n], tile, 512, threads);
                let mut seen = vec![0u8; m * n];
                let mut sizes = Vec::new();
                for block in 0..cut.blocks() {
                    let (rows, columns) = (cut.rows(block), cut.columns(block));
                    sizes.push(rows.len().div_ceil(tile[0]));
                    assert!(
                        !rows.is_empty() && rows.len() <= 192 && !columns.is_empty() && columns.len() <= 528
                    );
                    for row in rows {
                        seen[row * n..][columns.clone()].iter_mut().for_each(|s| *s += 1);
                    }
                }
                assert!(seen.iter().all(|&s| s == 1), "{m} {n} {threads}");
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
        }
    }
}
