//! Copies a matrix into the layout of the micro-kernels, converting to the compute type on the way.
//!
//! The unit is a tile of sixteen free indices (rows of `a`, columns of `b`) by sixteen groups. `a` wants a line of
//! sixteen groups for each free index, `b` a line of sixteen free indices for each group; a source runs along the
//! inner dimension or across it. Where they agree a tile is sixteen copied lines, where they differ it is transposed in
//! registers, in float32 straight from the source. Sources are read in the order of their memory, up to [`STRIPS`]
//! neighbouring tiles at a time, and fetched ahead: one line of each of sixteen distant rows after another defeats
//! every prefetcher.

use super::View;
use super::micro::{Element, Kernel};
use crate::isa::{self, multiversion};

/// Tiles side by side that are read from a source together: 192 free indices, 12 KiB.
const STRIPS: usize = 12;

/// A tile on its way, sixteen lines of sixteen groups.
#[repr(C, align(64))]
struct Stage([u32; 256]);

impl Stage {
    const EMPTY: Stage = Stage([0; 256]);
    const PLACES: Places = [0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240];
}

/// Where the lines of a tile begin in a buffer.
pub(crate) type Places = [usize; 16];

/// A tile of a source: its first free index and group, and the free index at which zeros begin.
#[derive(Clone, Copy)]
struct Tile {
    free: usize,
    end: usize,
    group: usize,
}

/// Packs groups `depth..depth + deep` of rows `first..first + count` of `a`. `out` gets, for each tile of the
/// kernel, the groups rounded up to 16, times its rows; rows and groups past the end are zero.
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
    let per_tile = blocks * 16 * kernel.rows;
    let padded = count.next_multiple_of(kernel.rows);
    let along = a.column_stride == 1;
    for start in (0..padded).step_by(16 * STRIPS) {
        let rows = (padded - start).min(16 * STRIPS);
        let mut places = [[0; 16]; STRIPS];
        for row in 0..rows {
            let of_tile = (start + row) / kernel.rows * per_tile;
            places[row / 16][row % 16] = of_tile + (start + row) % kernel.rows * 16;
        }
        let mut tile = |strip: usize, block: usize| {
            let free = first + start + 16 * strip;
            let tile = Tile { free, end: first + count, group: depth + block * 16 };
            let places = places[strip].map(|place| place + block * 16 * kernel.rows);
            let lines = (rows - 16 * strip).min(16);
            // Along, the rows below come next; across, the groups below.
            let ahead = 16 * if along { a.row_stride } else { a.column_stride * kernel.element.per_group() };
            move_tile(kernel.element, a, tile, Lines::Free, &places[..lines], ahead, out);
        };
        let strips = rows.div_ceil(16);
        if along {
            (0..strips).for_each(|strip| (0..blocks).for_each(|block| tile(strip, block)));
        } else {
            (0..blocks).for_each(|block| (0..strips).for_each(|strip| tile(strip, block)));
        }
    }
}

/// Panels that are packed together.
pub(super) fn panels_at_once(kernel: Kernel) -> usize {
    16 * STRIPS / kernel.columns
}

/// Packs panels of `b`, given as its transpose, from column `first` on into `out`. Columns and groups past the end
/// are zero. At most [`panels_at_once`].
pub(super) fn pack_b(kernel: Kernel, b_transposed: View, first: usize, out: &mut [u32]) {
    let (x, width) = (b_transposed, kernel.columns);
    let (groups, pitch) = (kernel.groups(x.columns), kernel.panel(x.columns));
    let strips = out.len() / pitch * width / 16;
    let along = x.column_stride == 1;
    let mut tile = |strip: usize, group: usize| {
        let tile = Tile { free: first + 16 * strip, end: x.rows, group };
        let (panel, part) = (strip * 16 / width, strip * 16 % width);
        let start = panel * pitch + group * width + part;
        let places: Places = std::array::from_fn(|i| start + i * width);
        let lines = (groups - group).min(16);
        let ahead = if along { 64 } else { 16 * x.column_stride * kernel.element.per_group() };
        move_tile(kernel.element, x, tile, Lines::Group, &places[..lines], ahead, out);
    };
    if along {
        (0..strips).for_each(|strip| (0..groups).step_by(16).for_each(|group| tile(strip, group)));
    } else {
        (0..groups).step_by(16).for_each(|group| (0..strips).for_each(|strip| tile(strip, group)));
    }
}

/// What a line of a packed tile holds sixteen of, so what each line stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// One free index, sixteen groups.
    Free,
    /// One group, sixteen free indices.
    Group,
}

/// Moves one tile to `places`, as many lines as there are, and fetches what lies `ahead` elements further.
#[inline]
fn move_tile(
    element: Element,
    x: View,
    tile: Tile,
    lines: Lines,
    places: &[usize],
    ahead: usize,
    out: &mut [u32],
) {
    let per = element.per_group();
    let stride = if x.column_stride == 1 { x.row_stride } else { x.column_stride };
    let start = tile.free * x.row_stride + tile.group * per * x.column_stride;
    let source = x.data.as_ptr().wrapping_add(start);
    for i in 0..16 {
        isa::prefetch(source.wrapping_add(i * stride + ahead));
    }
    let as_it_lies = if x.column_stride == 1 { Lines::Free } else { Lines::Group };
    let whole = tile.free + 16 <= tile.end && (tile.group + 16) * per <= x.columns;
    if let (Element::F32, true, Ok(places)) = (element, whole, <&Places>::try_from(places)) {
        let source = &x.data[start..start + 15 * stride + 16];
        return match lines == as_it_lies {
            true => copy(source, stride, places, out),
            false => transpose(source, stride, places, out),
        };
    }
    if lines == as_it_lies {
        return copy_lines(element, x, tile, places, out);
    }
    let mut lying = Stage::EMPTY;
    copy_lines(element, x, tile, &Stage::PLACES, &mut lying.0);
    if let Ok(places) = <&Places>::try_from(places) {
        return transpose(lying.0.as_slice(), 16, places, out);
    }
    let mut turned = Stage::EMPTY;
    transpose(lying.0.as_slice(), 16, &Stage::PLACES, &mut turned.0);
    for (line, &place) in turned.0.as_chunks::<16>().0.iter().zip(places) {
        out[place..place + 16].copy_from_slice(line);
    }
}

multiversion! {
    /// The lines of a tile as they lie in the source, converted; zero past any end.
    fn copy_lines(element: Element, x: View, tile: Tile, places: &[usize], out: &mut [u32]) {
        let per = element.per_group();
        for (i, &place) in places.iter().enumerate() {
            let line: &mut [u32; 16] = (&mut out[place..place + 16]).try_into().expect("sixteen");
            if x.column_stride == 1 {
                let row = tile.free + i;
                let row = if row < tile.end { &x.data[row * x.row_stride..][..x.columns] } else { &[] };
                let start = (tile.group * per).min(row.len());
                let source = &row[start..(start + 16 * per).min(row.len())];
                match element {
                    Element::F32 => line_of(source, line, f32::to_bits),
                    Element::Bf16AsF32 => line_of(source, line, |x| bf16_bits(x) << 16),
                    Element::Bf16Pair => line_of_pairs(source, line),
                }
            } else {
                let k = (tile.group + i) * per;
                let have = tile.end.saturating_sub(tile.free).min(16);
                let run = |k: usize| match k < x.columns && have > 0 {
                    true => &x.data[k * x.column_stride + tile.free..][..have],
                    false => &[],
                };
                match element {
                    Element::F32 => line_of(run(k), line, f32::to_bits),
                    Element::Bf16AsF32 => line_of(run(k), line, |x| bf16_bits(x) << 16),
                    Element::Bf16Pair => line_of_two(run(k), run(k + 1), line),
                }
            }
        }
    }
}

/// All at once, in registers: the result is not yet in memory, so no aliasing hinders the compiler.
#[inline(always)]
fn words<const N: usize>(source: &[f32; N], bits: impl Fn(f32) -> u32) -> [u32; N] {
    let mut words = [0; N];
    for i in 0..N {
        words[i] = bits(source[i]);
    }
    words
}

#[inline(always)]
fn line_of(source: &[f32], line: &mut [u32; 16], bits: impl Fn(f32) -> u32) {
    if let Ok(source) = <&[f32; 16]>::try_from(source) {
        *line = words(source, bits);
        return;
    }
    line.fill(0);
    for (l, s) in line.iter_mut().zip(source) {
        *l = bits(*s);
    }
}

/// Pairs of neighbours.
#[inline(always)]
fn line_of_pairs(source: &[f32], line: &mut [u32; 16]) {
    if let Ok(source) = <&[f32; 32]>::try_from(source) {
        // As they lie in memory, the even one of a pair is the low half of its word.
        let bits = words(source, bf16_bits);
        for i in 0..16 {
            line[i] = bits[2 * i] | bits[2 * i + 1] << 16;
        }
        return;
    }
    line.fill(0);
    for (i, s) in source.iter().enumerate() {
        line[i / 2] |= bf16_bits(*s) << (16 * (i % 2));
    }
}

/// Pairs of one from each.
#[inline(always)]
fn line_of_two(even: &[f32], odd: &[f32], line: &mut [u32; 16]) {
    if let (Ok(even), Ok(odd)) = (<&[f32; 16]>::try_from(even), <&[f32; 16]>::try_from(odd)) {
        let (even, odd) = (words(even, bf16_bits), words(odd, bf16_bits));
        for i in 0..16 {
            line[i] = even[i] | odd[i] << 16;
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
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// A type of four bytes that may stand in a tile.
pub(crate) trait Word: Copy {
    fn bits(self) -> u32;
}

impl Word for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Word for u32 {
    fn bits(self) -> u32 {
        self
    }
}

/// Line i of the result is the one of `source` that begins at `i * stride`.
fn copy(source: &[f32], stride: usize, places: &Places, out: &mut [u32]) {
    for (i, &place) in places.iter().enumerate() {
        // By value, so that it becomes a few wide moves.
        let line: [f32; 16] = source[i * stride..i * stride + 16].try_into().expect("sixteen");
        out[place..place + 16].copy_from_slice(&line.map(f32::to_bits));
    }
}

/// Line j of the result is element j of each of the sixteen lines of `source` that begin `stride` apart.
pub(crate) fn transpose<W: Word>(source: &[W], stride: usize, places: &Places, out: &mut [u32]) {
    let last = stride.checked_mul(15).and_then(|start| start.checked_add(16));
    assert!(last.is_some_and(|last| last <= source.len()), "a tile must lie inside its source");
    assert!(places.iter().all(|&place| place + 16 <= out.len()), "a tile must lie inside its target");
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::Isa;
        let (source, out) = (source.as_ptr().cast::<f32>(), out.as_mut_ptr().cast::<f32>());
        match isa::active() {
            // SAFETY: checked above; `active` is at most what this machine has; a word is four bytes.
            Isa::Amx | Isa::Avx512 => return unsafe { transpose_avx512(source, stride, places, out) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { transpose_avx2(source, stride, places, out) },
            _ => {}
        }
    }
    for (j, &place) in places.iter().enumerate() {
        for i in 0..16 {
            out[place + i] = source[i * stride + j].bits();
        }
    }
}

/// Four squares of eight by eight: pairs of lines, pairs of pairs, then halves of registers.
///
/// # Safety
/// Sixteen readable elements at every line of `source`, sixteen writable ones at every place of `out`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(source: *const f32, stride: usize, places: &Places, out: *mut f32) {
    use std::arch::x86_64::*;
    for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
        // SAFETY: by the contract.
        let x: [__m256; 8] =
            std::array::from_fn(|i| unsafe { _mm256_loadu_ps(source.add((row + i) * stride + column)) });
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
        for i in 0..4 {
            let halves = (
                _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]),
                _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]),
            );
            // SAFETY: by the contract.
            unsafe {
                _mm256_storeu_ps(out.add(places[column + i] + row), halves.0);
                _mm256_storeu_ps(out.add(places[column + 4 + i] + row), halves.1);
            }
        }
    }
}

/// Pairs of lines, pairs of pairs, then quarters of registers, twice.
///
/// # Safety
/// That of [`transpose_avx2`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(source: *const f32, stride: usize, places: &Places, out: *mut f32) {
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_ps();
    let (mut pairs, mut fours) = ([zero; 16], [zero; 16]);
    // SAFETY: by the contract.
    let load = |i: usize| unsafe { _mm512_loadu_ps(source.add(i * stride)) };
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
    // SAFETY: by the contract.
    let store = |i: usize, v| unsafe { _mm512_storeu_ps(out.add(places[i]), v) };
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
