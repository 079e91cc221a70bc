//! Copies matrices of bytes into the layout of the micro-kernels.

use super::micro::{LINE, PANEL};
use crate::gemm::pack::{Places, transpose};
use crate::isa::multiversion;
use std::ops::Range;

/// A read-only matrix of bytes whose rows start `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a, T> Bytes<'a, T> {
    /// # Panics
    /// If the last row ends past the data.
    pub(super) fn new(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        let end = match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(columns)),
        };
        assert!(end.is_some_and(|end| end <= data.len()), "the last row must end inside the data");
        Self { data, rows, columns, stride }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.columns]
    }
}

/// A packed matrix, seen by a product: panels of [`PANEL`] outputs, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    groups: &'a [u32],
    pitch: usize,
    outputs: usize,
    /// First line of groups that takes part.
    line: usize,
    inner: usize,
}

impl<'a> Panels<'a> {
    /// Groups that a packed matrix takes.
    pub(super) fn size(outputs: usize, inner: usize) -> usize {
        outputs.div_ceil(PANEL) * pitch(inner)
    }

    /// `groups` of [`Panels::size`].
    pub(super) fn new(groups: &'a [u32], outputs: usize, inner: usize) -> Self {
        debug_assert!(groups.len() >= Self::size(outputs, inner));
        Self { groups, pitch: pitch(inner), outputs, line: 0, inner }
    }

    /// A part of the inner dimension, which begins with a whole line: at a multiple of 64.
    pub(super) fn part(self, inner: Range<usize>) -> Self {
        debug_assert!(inner.start.is_multiple_of(4 * LINE) && inner.end <= self.inner);
        Self { line: self.line + inner.start / (4 * LINE), inner: inner.len(), ..self }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// The panel that begins with this output, from the first line that takes part.
    pub(super) fn panel(&self, output: usize) -> &'a [u32] {
        let panel = &self.groups[output / PANEL * self.pitch..][..self.pitch];
        &panel[self.line * LINE * PANEL..]
    }

    /// The weights of one output.
    pub(super) fn unpack(&self, output: usize, out: &mut [i8]) {
        let groups = self.panel(output).iter().skip(output % PANEL).step_by(PANEL);
        for (out, group) in out.chunks_mut(4).zip(groups) {
            for (out, byte) in out.iter_mut().zip(group.to_le_bytes()) {
                *out = byte as i8;
            }
        }
    }
}

/// Groups from one panel to the next.
fn pitch(inner: usize) -> usize {
    inner.div_ceil(4 * LINE) * LINE * PANEL
}

multiversion! {
    /// Packs `rows` of `x` for a kernel that takes `height` of them; what lies past the rows and past a row's end is zero.
    fn pack_rows(x: Bytes<u8>, rows: Range<usize>, height: usize, out: &mut [u8]) {
        let blocks = x.columns.div_ceil(64);
        for r in 0..height {
            let row: &[u8] = if r < rows.len() { x.row(rows.start + r) } else { &[] };
            let (lines, rest) = row.as_chunks::<64>();
            let mut write = |block: usize, line: &[u8; 64]| {
                out[(block * height + r) * 64..][..64].copy_from_slice(line);
            };
            for (block, line) in lines.iter().enumerate() {
                write(block, line);
            }
            let mut line = [0; 64];
            line[..rest.len()].copy_from_slice(rest);
            for block in lines.len()..blocks {
                write(block, &line);
                line = [0; 64];
            }
        }
    }
}

/// As the kernels take `x`. `out` holds a line of 64 bytes for each of `height` rows and each 64 columns begun.
pub(super) fn pack_x(x: Bytes<u8>, rows: Range<usize>, height: usize, out: &mut [u8]) {
    pack_rows(x, rows, height, out);
}

/// Packs a matrix that lies as in a checkpoint, (outputs, inner), into panels that begin with output `first`, as many as
/// `out` holds. What lies past an end is zero. `sums` gets Σ over the inner dimension of each output.
pub(super) fn pack_outputs(w: Bytes<i8>, first: usize, out: &mut [u32], sums: &mut [i32]) {
    sum_rows(w, first, sums);
    let pitch = pitch(w.columns);
    if pitch == 0 {
        return;
    }
    for (panel, out) in out.chunks_exact_mut(pitch).enumerate() {
        for half in 0..PANEL / LINE {
            let output = first + panel * PANEL + half * LINE;
            for line in 0..pitch / (LINE * PANEL) {
                let lying = stage(w, output, line * 64);
                let start = line * LINE * PANEL + half * LINE;
                let places: Places = std::array::from_fn(|g| start + g * PANEL);
                transpose(lying.0.as_slice(), LINE, &places, out);
            }
        }
    }
}

/// Sixteen lines of sixteen groups.
#[repr(C, align(64))]
struct Stage([u32; LINE * LINE]);

multiversion! {
    /// Sixty-four columns from `column` on of sixteen rows from `row` on.
    fn stage(w: Bytes<i8>, row: usize, column: usize) -> Stage {
        let mut lying = Stage([0; LINE * LINE]);
        for (i, groups) in lying.0.as_chunks_mut::<LINE>().0.iter_mut().enumerate() {
            if row + i >= w.rows {
                break;
            }
            let source = &w.row(row + i)[column..];
            if let Some(source) = source.first_chunk::<64>() {
                let words: &[[i8; 4]; LINE] = source.as_chunks().0.try_into().expect("sixteen");
                *groups = words.map(word);
            } else {
                for (group, source) in groups.iter_mut().zip(source.chunks(4)) {
                    let mut four = [0; 4];
                    four[..source.len()].copy_from_slice(source);
                    *group = word(four);
                }
            }
        }
        lying
    }
}

/// Four bytes as they lie.
#[inline(always)]
fn word(four: [i8; 4]) -> u32 {
    u32::from_le_bytes(four.map(|byte| byte as u8))
}

multiversion! {
    fn sum_rows(w: Bytes<i8>, first: usize, sums: &mut [i32]) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = w.row(first + i).iter().map(|&v| i32::from(v)).sum();
        }
    }
}

multiversion! {
    /// Packs a matrix that lies across, (inner, outputs), whole. What lies past an end is zero.
    fn pack_inner(w: Bytes<i8>, out: &mut [u32]) {
        let pitch = pitch(w.rows);
        for (panel, out) in out.chunks_exact_mut(pitch.max(1)).enumerate() {
            let first = panel * PANEL;
            let width = PANEL.min(w.columns - first);
            for (g, out) in out.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let run = |i: usize| {
                    let mut run = [0i8; PANEL];
                    if 4 * g + i < w.rows {
                        let source = &w.row(4 * g + i)[first..first + width];
                        match <&[i8; PANEL]>::try_from(source) {
                            Ok(source) => run = *source,
                            Err(_) => run[..width].copy_from_slice(source),
                        }
                    }
                    run
                };
                let runs = [run(0), run(1), run(2), run(3)];
                for j in 0..PANEL {
                    out[j] = word([runs[0][j], runs[1][j], runs[2][j], runs[3][j]]);
                }
            }
        }
    }
}

/// As [`pack_outputs`] for a matrix that lies across, (inner, outputs). `out` is of [`Panels::size`].
pub(super) fn pack_across(w: Bytes<i8>, out: &mut [u32]) {
    pack_inner(w, out);
}
