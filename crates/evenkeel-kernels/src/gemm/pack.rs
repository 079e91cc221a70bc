//! Copies a matrix into the layout of the micro-kernels, converting to the compute type on the way.
//!
//! The unit is a [`Tile`] of sixteen free indices (rows of `a`, columns of `b`) by sixteen groups. A source that runs
//! along the inner dimension is converted line by line; one that runs across it gives sixteen free indices of one
//! group at a time. `a` wants lines along, `b` wants lines across: where source and target differ the tile is
//! transposed in registers. Sources are read in the order of their memory, as many neighbouring tiles at a time as
//! [`STRIPS`], since one line of each of sixteen distant rows after another defeats every prefetcher.

use super::View;
use super::micro::{Element, Kernel};
use crate::isa::{self, Isa, multiversion};

/// Sixteen lines of sixteen groups.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[u32; 16]; 16]);

/// Tiles side by side that are read from a source together: 192 free indices, 12 KiB.
const STRIPS: usize = 12;

/// Packs groups `depth..depth + deep` of rows `first..first + count` of `a`. `out` gets, for each tile, the groups
/// rounded up to 16, times the rows of a tile; rows and groups past the end are zero.
pub(super) fn pack_a(
    kernel: Kernel,
    a: View,
    first: usize,
    count: usize,
    depth: usize,
    deep: usize,
    out: &mut [u32],
) {
    let blocks = deep.div_ceil(16);
    if blocks == 0 {
        return;
    }
    let tile_size = blocks * 16 * kernel.rows;
    let padded = count.next_multiple_of(kernel.rows);
    // Where sixteen groups of a row go.
    let place = |row: usize, block: usize| {
        row / kernel.rows * tile_size + (block * kernel.rows + row % kernel.rows) * 16
    };
    if a.column_stride == 1 {
        for row in 0..padded {
            let inside = (row < count).then_some(first + row);
            let (start, step) = (place(row, 0), 16 * kernel.rows);
            lines_along(kernel.element, a, inside, depth, blocks, &mut out[start..], step);
        }
        return;
    }
    let mut stage = [Tile([[0; 16]; 16]); STRIPS];
    for row in (0..padded).step_by(16 * STRIPS) {
        let have = count.saturating_sub(row).min(16 * STRIPS);
        let wide = (padded - row).min(16 * STRIPS);
        let stage = &mut stage[..wide.div_ceil(16)];
        for block in 0..blocks {
            lines_across(kernel.element, a, first + row, have, depth + block * 16, stage);
            for (strip, tile) in stage.iter_mut().enumerate() {
                transpose(tile);
                for (i, line) in tile.0.iter().enumerate().take(wide - 16 * strip) {
                    out[place(row + 16 * strip + i, block)..][..16].copy_from_slice(line);
                }
            }
        }
    }
}

/// Panels that are packed together.
pub(super) fn panels_at_once(kernel: Kernel) -> usize {
    16 * STRIPS / kernel.columns
}

/// Packs panels of `b`, given as its transpose, from column `first` on into `out`: groups × columns of each. Columns
/// and groups past the end are zero. At most [`panels_at_once`].
pub(super) fn pack_b(kernel: Kernel, b_transposed: View, first: usize, out: &mut [u32]) {
    let width = kernel.columns;
    let groups = kernel.groups(b_transposed.columns);
    let have = b_transposed.rows.saturating_sub(first);
    let strips = out.len() / (groups * 16);
    let mut stage = [Tile([[0; 16]; 16]); STRIPS];
    let mut write = |strip: usize, block: usize, tile: &Tile| {
        let (panel, part) = (strip * 16 / width, strip * 16 % width);
        for (i, line) in tile.0.iter().enumerate().take(groups - block) {
            let at = panel * groups * width + (block + i) * width + part;
            out[at..at + 16].copy_from_slice(line);
        }
    };
    if b_transposed.column_stride == 1 {
        for strip in 0..strips {
            let tile = &mut stage[0];
            for block in (0..groups).step_by(16) {
                for (i, line) in tile.0.iter_mut().enumerate() {
                    let row = strip * 16 + i;
                    let inside = (row < have).then_some(first + row);
                    lines_along(kernel.element, b_transposed, inside, block, 1, line, 16);
                }
                transpose(tile);
                write(strip, block, tile);
            }
        }
        return;
    }
    let stage = &mut stage[..strips];
    for block in (0..groups).step_by(16) {
        lines_across(kernel.element, b_transposed, first, have.min(16 * strips), block, stage);
        for (strip, tile) in stage.iter().enumerate() {
            write(strip, block, tile);
        }
    }
}

multiversion! {
    /// `lines` times sixteen groups of a row, from group `group` on, each `step` after the one before; zero past the
    /// end, and if there is no such row.
    fn lines_along(
        element: Element,
        x: View,
        row: Option<usize>,
        group: usize,
        lines: usize,
        out: &mut [u32],
        step: usize,
    ) {
        let row = row.map_or(&[][..], |row| &x.data[row * x.row_stride..][..x.columns]);
        for i in 0..lines {
            let per_line = 16 * element.per_group();
            let start = (group * element.per_group() + i * per_line).min(row.len());
            let source = &row[start..(start + per_line).min(row.len())];
            let line = &mut out[i * step..][..16];
            match element {
                Element::F32 => line_f32(source, line, f32::to_bits),
                Element::Bf16AsF32 => line_f32(source, line, |x| bf16_bits(x) << 16),
                Element::Bf16Pair => line_bf16(source, line),
            }
        }
    }
}

multiversion! {
    /// Line i of each tile: group `group + i` of sixteen rows, `have` of them from `first` on through all tiles; zero
    /// past either end.
    fn lines_across(element: Element, x: View, first: usize, have: usize, group: usize, tiles: &mut [Tile]) {
        let per = element.per_group();
        for i in 0..16 {
            let k = (group + i) * per;
            let run = |k: usize| match k < x.columns && have > 0 {
                true => &x.data[k * x.column_stride + first..][..have],
                false => &[],
            };
            let (even, odd) = (run(k), if per == 2 { run(k + 1) } else { &[] });
            // The next block's lines lie up to a page apart, which no prefetcher of the processor foresees.
            let ahead = x.data.as_ptr().wrapping_add((k + 16 * per) * x.column_stride + first);
            for (strip, tile) in tiles.iter_mut().enumerate() {
                for next in 0..per {
                    isa::prefetch(ahead.wrapping_add(next * x.column_stride + 16 * strip));
                }
                let part = |run: &'_ [f32]| -> (usize, usize) {
                    ((16 * strip).min(run.len()), (16 * strip + 16).min(run.len()))
                };
                let ((a, b), (c, d)) = (part(even), part(odd));
                let line = &mut tile.0[i];
                match element {
                    Element::F32 => line_f32(&even[a..b], line, f32::to_bits),
                    Element::Bf16AsF32 => line_f32(&even[a..b], line, |x| bf16_bits(x) << 16),
                    Element::Bf16Pair => line_two_bf16(&even[a..b], &odd[c..d], line),
                }
            }
        }
    }
}

#[inline(always)]
fn line_f32(source: &[f32], line: &mut [u32], bits: impl Fn(f32) -> u32) {
    if let (Ok(source), Ok(line)) = (<&[f32; 16]>::try_from(source), <&mut [u32; 16]>::try_from(&mut *line)) {
        for (l, s) in line.iter_mut().zip(source) {
            *l = bits(*s);
        }
        return;
    }
    line.fill(0);
    for (l, s) in line.iter_mut().zip(source) {
        *l = bits(*s);
    }
}

#[inline(always)]
fn line_bf16(source: &[f32], line: &mut [u32]) {
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
    line.fill(0);
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
    match isa::active() {
        // SAFETY: `active` is at most what this machine has.
        Isa::Amx | Isa::Avx512 => return unsafe { transpose_avx512(tile) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { transpose_avx2(tile) },
        _ => {}
    }
    let source = tile.0;
    for (i, line) in tile.0.iter_mut().enumerate() {
        for (j, v) in line.iter_mut().enumerate() {
            *v = source[j][i];
        }
    }
}

/// Four squares of eight by eight: pairs of lines, pairs of pairs, then halves of registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transpose_avx2(tile: &mut Tile) {
    use std::arch::x86_64::*;
    let lines = tile.0.as_mut_ptr();
    let square = |row: usize, column: usize| -> [__m256; 8] {
        // SAFETY: a tile is sixteen aligned lines of sixteen, and row and column are 0 or 8.
        let x: [__m256; 8] =
            std::array::from_fn(|i| unsafe { _mm256_load_ps(lines.add(row + i).cast::<f32>().add(column)) });
        let pair = |i: usize| {
            (_mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]))
        };
        let four = |a: (__m256, __m256), b: (__m256, __m256)| {
            [
                _mm256_shuffle_ps::<0x44>(a.0, b.0),
                _mm256_shuffle_ps::<0xee>(a.0, b.0),
                _mm256_shuffle_ps::<0x44>(a.1, b.1),
                _mm256_shuffle_ps::<0xee>(a.1, b.1),
            ]
        };
        let (top, bottom) = (four(pair(0), pair(1)), four(pair(2), pair(3)));
        std::array::from_fn(|i| match i {
            0..4 => _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]),
            _ => _mm256_permute2f128_ps::<0x31>(top[i - 4], bottom[i - 4]),
        })
    };
    let squares = [(0, 0), (0, 8), (8, 0), (8, 8)].map(|(row, column)| (row, column, square(row, column)));
    for (row, column, square) in squares {
        for (i, line) in square.into_iter().enumerate() {
            // SAFETY: as above; the square has been read, and so has the one it overwrites.
            unsafe { _mm256_store_ps(lines.add(column + i).cast::<f32>().add(row), line) };
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
