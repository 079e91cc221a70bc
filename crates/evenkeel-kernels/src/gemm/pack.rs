//! Copies a matrix into the layout of the micro-kernels, converting to the compute type on the way.
//!
//! Both sides are built from tiles of sixteen free indices (rows of `a`, columns of `b`) by sixteen groups. A
//! source that runs along the inner dimension is converted line by line; one that runs across it gives
//! sixteen free indices of one group at a time. `a` wants lines along, `b` wants lines across: where source
//! and target differ the tile is transposed in registers.

use super::micro::COLUMNS;
use super::{Compute, View};
use crate::isa::{self, Isa, multiversion};

/// Sixteen lines of sixteen groups.
#[repr(C, align(64))]
struct Tile([[u32; 16]; 16]);

/// Which rows of `a`, and how many in a tile.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) tile: usize,
}

/// Packs groups `depth..depth + deep` of some rows of `a`. `out` gets, for each tile, the groups rounded up to 16,
/// times the rows of a tile; rows past the end are zero.
pub(super) fn pack_a(compute: Compute, a: View, rows: Rows, depth: usize, deep: usize, out: &mut [u32]) {
    let tile_size = deep.next_multiple_of(16) * rows.tile;
    let mut tile = Tile([[0; 16]; 16]);
    let padded = rows.count.next_multiple_of(rows.tile);
    for row in (0..padded).step_by(16) {
        let have = rows.count.saturating_sub(row).min(16);
        for block in 0..deep.div_ceil(16) {
            let group = depth + block * 16;
            if a.column_stride == 1 {
                lines_along(compute, a, rows.first + row, have, group, &mut tile);
            } else {
                lines_across(compute, a, rows.first + row, have, group, &mut tile);
                transpose(&mut tile);
            }
            for (i, line) in tile.0.iter().enumerate().take(padded - row) {
                let (t, r) = ((row + i) / rows.tile, (row + i) % rows.tile);
                let at = t * tile_size + (block * rows.tile + r) * 16;
                out[at..at + 16].copy_from_slice(line);
            }
        }
    }
}

/// Packs columns `panel * 32..` of `b`, given as its transpose, into `out`: groups × 32. Columns past the end are
/// zero.
pub(super) fn pack_b_panel(compute: Compute, b_transposed: View, panel: usize, out: &mut [u32]) {
    let groups = compute.groups(b_transposed.columns);
    let out = &mut out[..groups * COLUMNS];
    let mut tile = Tile([[0; 16]; 16]);
    for half in 0..2 {
        let first = panel * COLUMNS + half * 16;
        let have = b_transposed.rows.saturating_sub(first).min(16);
        for block in (0..groups).step_by(16) {
            if b_transposed.column_stride == 1 {
                lines_along(compute, b_transposed, first, have, block, &mut tile);
                transpose(&mut tile);
            } else {
                lines_across(compute, b_transposed, first, have, block, &mut tile);
            }
            for (i, line) in tile.0.iter().enumerate().take(groups - block) {
                let at = (block + i) * COLUMNS + half * 16;
                out[at..at + 16].copy_from_slice(line);
            }
        }
    }
}

multiversion! {
    /// Line i of the tile: sixteen groups of row `first + i`, from group `group` on; zero past either end.
    fn lines_along(compute: Compute, x: View, first: usize, have: usize, group: usize, tile: &mut Tile) {
        let start = group * compute.per_group();
        let length = x.columns.saturating_sub(start).min(16 * compute.per_group());
        for (i, line) in tile.0.iter_mut().enumerate() {
            if i >= have || length == 0 {
                *line = [0; 16];
                continue;
            }
            let source = &x.data[(first + i) * x.row_stride + start..][..length];
            match compute {
                Compute::F32 => line_f32(source, line),
                Compute::Bf16 => line_bf16(source, line),
            }
        }
    }
}

multiversion! {
    /// Line i of the tile: group `group + i` of sixteen rows from `first` on; zero past either end.
    fn lines_across(compute: Compute, x: View, first: usize, have: usize, group: usize, tile: &mut Tile) {
        let per = compute.per_group();
        for (i, line) in tile.0.iter_mut().enumerate() {
            let k = (group + i) * per;
            let run = |k: usize| {
                if k < x.columns && have > 0 { &x.data[k * x.column_stride + first..][..have] } else { &[] }
            };
            match compute {
                Compute::F32 => line_f32(run(k), line),
                Compute::Bf16 => line_two_bf16(run(k), run(k + 1), line),
            }
        }
    }
}

#[inline(always)]
fn line_f32(source: &[f32], line: &mut [u32; 16]) {
    if let Ok(source) = <&[f32; 16]>::try_from(source) {
        for (l, s) in line.iter_mut().zip(source) {
            *l = s.to_bits();
        }
        return;
    }
    *line = [0; 16];
    for (l, s) in line.iter_mut().zip(source) {
        *l = s.to_bits();
    }
}

#[inline(always)]
fn line_bf16(source: &[f32], line: &mut [u32; 16]) {
    if let Ok(source) = <&[f32; 32]>::try_from(source) {
        let mut halves = [0u16; 32];
        for (h, s) in halves.iter_mut().zip(source) {
            *h = bf16_bits(*s) as u16;
        }
        for (l, h) in line.iter_mut().zip(halves.as_chunks::<2>().0) {
            *l = h[0] as u32 | (h[1] as u32) << 16;
        }
        return;
    }
    *line = [0; 16];
    for (i, s) in source.iter().enumerate() {
        line[i / 2] |= bf16_bits(*s) << (16 * (i % 2));
    }
}

#[inline(always)]
fn line_two_bf16(even: &[f32], odd: &[f32], line: &mut [u32; 16]) {
    if let (Ok(even), Ok(odd)) = (<&[f32; 16]>::try_from(even), <&[f32; 16]>::try_from(odd)) {
        for i in 0..16 {
            line[i] = bf16_bits(even[i]) | bf16_bits(odd[i]) << 16;
        }
        return;
    }
    *line = [0; 16];
    for (i, s) in even.iter().enumerate() {
        line[i] = bf16_bits(*s);
    }
    for (i, s) in odd.iter().enumerate() {
        line[i] |= bf16_bits(*s) << 16;
    }
}

/// The upper half of a float32, rounded to nearest, ties to even; NaN stays NaN, quietly.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

fn transpose(tile: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if isa::active() == Isa::Avx512 {
        // SAFETY: `active` is at most what this machine has.
        return unsafe { transpose_avx512(tile) };
    }
    let source = tile.0;
    for (i, line) in tile.0.iter_mut().enumerate() {
        for (j, v) in line.iter_mut().enumerate() {
            *v = source[j][i];
        }
    }
}

/// Pairs of groups, pairs of pairs, then quarters of registers, twice.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(tile: &mut Tile) {
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_ps();
    let (mut pairs, mut fours) = ([zero; 16], [zero; 16]);
    let lines = tile.0.as_mut_ptr();
    // SAFETY: a tile is sixteen aligned lines.
    let load = |i: usize| unsafe { _mm512_load_ps(lines.add(i).cast()) };
    for i in 0..8 {
        let (x, y) = (load(2 * i), load(2 * i + 1));
        pairs[2 * i] = _mm512_unpacklo_ps(x, y);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(x, y);
    }
    let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    for i in 0..4 {
        let p = &pairs[4 * i..4 * i + 4];
        fours[4 * i] = low(p[0], p[2]);
        fours[4 * i + 1] = high(p[0], p[2]);
        fours[4 * i + 2] = low(p[1], p[3]);
        fours[4 * i + 3] = high(p[1], p[3]);
    }
    // SAFETY: as above.
    let store = |i: usize, v| unsafe { _mm512_store_ps(lines.add(i).cast(), v) };
    for c in 0..4 {
        let even_top = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
        let odd_top = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
        let even_bottom = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let odd_bottom = _mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
        store(c, _mm512_shuffle_f32x4::<0x88>(even_top, even_bottom));
        store(4 + c, _mm512_shuffle_f32x4::<0x88>(odd_top, odd_bottom));
        store(8 + c, _mm512_shuffle_f32x4::<0xdd>(even_top, even_bottom));
        store(12 + c, _mm512_shuffle_f32x4::<0xdd>(odd_top, odd_bottom));
    }
}
