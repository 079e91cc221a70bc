//! How a parameter of ours lies in a tensor of theirs: reading it out of there, and putting it back for export.

use crate::checkpoint::weights::Weights;
use crate::model::ModelConfig;
use std::collections::BTreeMap;

/// Where the numbers of one of our parameters are in a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::checkpoint) enum Layout {
    /// The same tensor.
    Same,
    /// The same numbers in another shape, such as a convolution's kernel.
    Reshaped,
    /// A matrix stored (in, out), as GPT-2 does.
    Transposed,
    /// Part i of three matrices side by side, stored (in, 3 · out); of a bias, the i-th third.
    FusedColumns(usize),
    /// Part i of three, stored head after head: (heads · 3 · d_head, in), as GPT-NeoX does.
    FusedHeads(usize),
    /// After so many rows that are not used: OPT and RoBERTa count positions from 2.
    SkipRows(usize),
    /// The stored number plus 1, as Gemma's gains.
    PlusOne,
    /// Plus the first row of another tensor: BERT's token types, of which a single text has the first.
    PlusFirstRow(&'static str),
    /// After unused rows, plus such a row.
    SkipRowsPlusFirstRow(usize, &'static str),
    /// Not stored: the same number everywhere.
    Constant(f32),
}

use Layout::{
    Constant, FusedColumns, FusedHeads, PlusFirstRow, PlusOne, Reshaped, Same, SkipRows,
    SkipRowsPlusFirstRow, Transposed,
};

impl Layout {
    /// Whether there is a stored tensor at all.
    pub(in crate::checkpoint) fn is_stored(self) -> bool {
        !matches!(self, Constant(_))
    }

    /// Whether a stored tensor of shape `stored` holds a parameter of shape `ours`.
    pub(in crate::checkpoint) fn fits(self, stored: &[usize], ours: &[usize]) -> bool {
        let rows_before = |rows: usize| match (stored, ours) {
            ([s, rest @ ..], [o, ours @ ..]) => *s == o + rows && rest == ours,
            _ => false,
        };
        match self {
            Same | PlusOne | PlusFirstRow(_) => stored == ours,
            Reshaped => stored.iter().product::<usize>() == ours.iter().product::<usize>(),
            Transposed => matches!((stored, ours), ([a, b], [c, d]) if (a, b) == (d, c)),
            FusedColumns(_) => match (stored, ours) {
                ([columns], [ours]) => *columns == 3 * ours,
                ([rows, columns], [out, inputs]) => rows == inputs && *columns == 3 * out,
                _ => false,
            },
            FusedHeads(_) => match (stored, ours) {
                ([rows, rest @ ..], [ours, inputs @ ..]) => *rows == 3 * ours && rest == inputs,
                _ => false,
            },
            SkipRows(rows) | SkipRowsPlusFirstRow(rows, _) => rows_before(rows),
            Constant(_) => true,
        }
    }

    /// What a stored tensor has to look like, in words.
    pub(in crate::checkpoint) fn expected(self, ours: &[usize]) -> String {
        let mut shape = ours.to_vec();
        match (self, &mut shape[..]) {
            (Transposed, [a, b]) => std::mem::swap(a, b),
            (FusedColumns(_), [a, b]) => (*a, *b) = (*b, 3 * *a),
            (FusedColumns(_) | FusedHeads(_), [a, ..]) => *a *= 3,
            (SkipRows(rows) | SkipRowsPlusFirstRow(rows, _), [a, ..]) => *a += rows,
            (Reshaped, _) => return format!("{} numbers", ours.iter().product::<usize>()),
            _ => {}
        }
        format!("{shape:?}")
    }

    /// Our parameter of shape `ours` out of the stored numbers, whose shape [fits](Self::fits). `first_row` is that of
    /// the other tensor, where one is added.
    pub(in crate::checkpoint) fn read(
        self,
        stored: Vec<f32>,
        ours: &[usize],
        config: &ModelConfig,
        first_row: &[f32],
    ) -> Vec<f32> {
        let count: usize = ours.iter().product();
        let width = ours.last().copied().unwrap_or(1).max(1);
        match self {
            Same | Reshaped => stored,
            Transposed => transposed(&stored, ours[1], ours[0], 0, ours[0]),
            FusedColumns(i) if ours.len() == 1 => stored[i * count..(i + 1) * count].to_vec(),
            FusedColumns(i) => transposed(&stored, ours[1], 3 * ours[0], i * ours[0], ours[0]),
            FusedHeads(_) => self.head_rows(ours, config).flat_map(|rows| stored[rows].to_vec()).collect(),
            SkipRows(rows) => stored[rows * width..].to_vec(),
            PlusOne => stored.into_iter().map(|v| v + 1.0).collect(),
            PlusFirstRow(_) => plus(stored, first_row),
            SkipRowsPlusFirstRow(rows, _) => plus(stored[rows * width..].to_vec(), first_row),
            Constant(value) => vec![value; count],
        }
    }

    /// Puts a parameter where it is stored, and says whether it can: only the layouts of the classes that are exported are
    /// written. The tensor is made with zeros when its first part comes.
    fn write(self, ours: &[f32], shape: &[usize], stored: &mut Stored) -> bool {
        match self {
            Same => *stored = Stored { shape: shape.to_vec(), data: ours.to_vec() },
            Transposed => {
                let data = transposed(ours, shape[0], shape[1], 0, shape[1]);
                *stored = Stored { shape: vec![shape[1], shape[0]], data };
            }
            FusedColumns(i) => {
                let (rows, out) = if shape.len() == 1 { (1, ours.len()) } else { (shape[1], shape[0]) };
                let fused = if shape.len() == 1 { vec![3 * out] } else { vec![rows, 3 * out] };
                stored.make(fused);
                for r in 0..rows {
                    for c in 0..out {
                        stored.data[r * 3 * out + i * out + c] = ours[c * rows + r];
                    }
                }
            }
            SkipRows(rows) => {
                let mut longer = shape.to_vec();
                longer[0] += rows;
                stored.make(longer);
                let skipped = stored.data.len() - ours.len();
                stored.data[skipped..].copy_from_slice(ours);
            }
            _ => return false,
        }
        true
    }

    /// Where each head's rows of this part are among the numbers of a tensor of fused heads.
    fn head_rows(self, ours: &[usize], config: &ModelConfig) -> impl Iterator<Item = std::ops::Range<usize>> {
        let part = if let FusedHeads(i) = self { i } else { 0 };
        let inputs: usize = ours[1..].iter().product();
        let size = config.d_head() * inputs;
        (0..config.heads).map(move |head| {
            let at = (3 * head + part) * size;
            at..at + size
        })
    }
}

/// A tensor in the making, for export.
#[derive(Clone, Debug, Default)]
pub(in crate::checkpoint) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

impl Stored {
    fn make(&mut self, shape: Vec<usize>) {
        if self.data.is_empty() {
            self.data = vec![0.0; shape.iter().product()];
            self.shape = shape;
        }
    }
}

/// Columns `first..first + count` of a (rows, columns) matrix as rows.
fn transposed(x: &[f32], rows: usize, columns: usize, first: usize, count: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * count);
    for c in first..first + count {
        out.extend((0..rows).map(|r| x[r * columns + c]));
    }
    out
}

/// Rows with `row` added to each.
fn plus(mut x: Vec<f32>, row: &[f32]) -> Vec<f32> {
    for values in x.chunks_mut(row.len().max(1)) {
        for (v, r) in values.iter_mut().zip(row) {
            *v += r;
        }
    }
    x
}

/// A parameter of ours, by the part of its name after `blocks.{i}.` or its whole name, and where it is stored. In names of
/// theirs `{}` stands for the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) ours: &'static str,
    /// The name, and others under which it is found in older files.
    pub(super) theirs: &'static [&'static str],
    pub(super) layout: Layout,
}

/// An entry.
pub(super) const fn entry(ours: &'static str, theirs: &'static [&'static str], layout: Layout) -> Entry {
    Entry { ours, theirs, layout }
}

/// Where every parameter of a model is stored.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct Map {
    pub(super) entries: Vec<Entry>,
    /// What may stand before a stored name; the first is written on export.
    pub(super) prefixes: &'static [&'static str],
    /// Beginnings that are written with no prefix, such as those of heads.
    pub(super) bare: &'static [&'static str],
    /// Names of a head's own matrix, which in a model with a tied head may only repeat the token table.
    pub(super) twins: &'static [&'static str],
    /// Ends of names of tensors that the model does not need.
    pub(super) ignored: Vec<&'static str>,
}

/// A parameter found in a file.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct Found {
    pub(in crate::checkpoint) layout: Layout,
    /// Stored name; empty for what is not stored.
    pub(in crate::checkpoint) name: String,
    /// Stored name of the tensor whose first row is added.
    pub(in crate::checkpoint) row_of: Option<String>,
}

impl Map {
    fn entry<'p>(&self, parameter: &'p str) -> Option<(Entry, Option<&'p str>)> {
        let inside = parameter.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        let (layer, rest) = inside.map_or((None, parameter), |(layer, rest)| (Some(layer), rest));
        let of_block = |e: &Entry| e.theirs.first().is_none_or(|t| t.contains("{}") == layer.is_some());
        let found = self.entries.iter().find(|e| e.ours == rest && of_block(e));
        found.map(|e| (*e, layer))
    }

    /// Every name under which the parameter may be stored, the one of today first.
    fn names(&self, theirs: &[&str], layer: Option<&str>) -> Vec<String> {
        let place = |name: &str| name.replace("{}", layer.unwrap_or(""));
        let mut names = Vec::new();
        for name in theirs {
            match self.bare.iter().any(|b| name.starts_with(b)) {
                true => names.push(place(name)),
                false => names.extend(self.prefixes.iter().map(|prefix| format!("{prefix}{}", place(name)))),
            }
        }
        names
    }

    /// Where the parameter is in `weights`, or the names it was looked for.
    pub(in crate::checkpoint) fn find(&self, weights: &Weights, parameter: &str) -> Result<Found, String> {
        let Some((entry, layer)) = self.entry(parameter) else {
            return Err(format!("{parameter}, which this architecture does not store"));
        };
        if let Constant(_) = entry.layout {
            return Ok(Found { layout: entry.layout, name: String::new(), row_of: None });
        }
        let look = |theirs: &[&str]| {
            let names = self.names(theirs, layer);
            let found = names.iter().find(|name| weights.shape(name).is_some()).cloned();
            found.ok_or_else(|| names.into_iter().next().unwrap_or_default())
        };
        let name = look(entry.theirs)?;
        let row_of = match entry.layout {
            PlusFirstRow(other) | SkipRowsPlusFirstRow(_, other) => Some(look(&[other])?),
            _ => None,
        };
        Ok(Found { layout: entry.layout, name, row_of })
    }

    /// The matrix of a tied head that is stored beside the token table, if there is one.
    pub(in crate::checkpoint) fn twin(&self, weights: &Weights) -> Option<String> {
        self.names(self.twins, None).into_iter().find(|name| weights.shape(name).is_some())
    }

    /// Whether a stored tensor may be left over.
    pub(in crate::checkpoint) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|end| match end.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning) || name.contains(&format!(".{beginning}")),
            None => name.ends_with(end),
        })
    }

    /// The name under which today's files have the parameter.
    pub(super) fn stored_name(&self, parameter: &str) -> Option<String> {
        let (entry, layer) = self.entry(parameter)?;
        self.names(entry.theirs, layer).into_iter().next()
    }

    /// Puts a parameter where today's files have it.
    pub(in crate::checkpoint) fn write(
        &self,
        parameter: &str,
        shape: &[usize],
        data: &[f32],
        out: &mut BTreeMap<String, Stored>,
    ) -> Result<(), String> {
        let (entry, _) = self.entry(parameter).ok_or_else(|| parameter.to_string())?;
        let name = self.stored_name(parameter).ok_or_else(|| parameter.to_string())?;
        match entry.layout.write(data, shape, out.entry(name).or_default()) {
            true => Ok(()),
            false => Err(format!("{parameter} has a layout that is only read")),
        }
    }
}
