//! One tensor inside the bytes of a file: where its numbers lie, and how they become float32.

use super::error::{Fault, damaged};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// More axes than any weight has; with a bound the cost of a tensor's description has one too.
pub const MAX_AXES: usize = 8;

/// What a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a float32.
    BF16,
    /// IEEE double precision.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// A byte that is 0 for false.
    Bool,
}

impl Stored {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Stored::F64 | Stored::I64 => 8,
            Stored::F32 | Stored::I32 => 4,
            Stored::F16 | Stored::BF16 | Stored::I16 => 2,
            Stored::I8 | Stored::U8 | Stored::Bool => 1,
        }
    }

    /// The name that safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::F16 => "F16",
            Stored::BF16 => "BF16",
            Stored::F64 => "F64",
            Stored::I64 => "I64",
            Stored::I32 => "I32",
            Stored::I16 => "I16",
            Stored::I8 => "I8",
            Stored::U8 => "U8",
            Stored::Bool => "BOOL",
        }
    }
}

/// A tensor inside a file. That it lies within the bytes it was made for is checked when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    stored: Stored,
    shape: Vec<usize>,
    /// In numbers; none where the tensor is contiguous and row-major.
    strides: Option<Vec<usize>>,
    /// The byte where the first number begins.
    start: usize,
    /// Numbers.
    len: usize,
}

impl View {
    /// A tensor that fills `bytes` of a file.
    ///
    /// # Errors
    /// If it needs more or fewer bytes than that.
    pub fn contiguous(stored: Stored, shape: Vec<usize>, bytes: Range<usize>) -> Result<Self, Fault> {
        let len = count(&shape)?;
        let held = bytes.end.saturating_sub(bytes.start);
        if len.checked_mul(stored.size()) != Some(held) {
            return damaged(format!("shape {shape:?} of {} does not fill {held} bytes", stored.name()));
        }
        Ok(Self { stored, shape, strides: None, start: bytes.start, len })
    }

    /// A tensor whose numbers lie `strides` apart, from number `offset` of the storage at `bytes` of a file.
    ///
    /// # Errors
    /// If a number of it lies outside the storage, or it repeats numbers so often that it has more of them than the
    /// file has bytes.
    pub fn strided(
        stored: Stored,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        bytes: Range<usize>,
        file_len: usize,
    ) -> Result<Self, Fault> {
        let len = count(&shape)?;
        if shape.len() != strides.len() {
            return damaged(format!("shape {shape:?} does not go with strides {strides:?}"));
        }
        if len > file_len {
            return damaged(format!("a tensor of shape {shape:?} repeats the file's numbers too often"));
        }
        let held = bytes.end.saturating_sub(bytes.start) / stored.size();
        let axes = shape.iter().zip(&strides);
        let last = axes.clone().try_fold(offset, |at, (&count, &stride)| {
            at.checked_add(count.saturating_sub(1).checked_mul(stride)?)
        });
        if len > 0 && last.is_none_or(|last| last >= held) || offset > held {
            return damaged(format!(
                "shape {shape:?} with strides {strides:?} from {offset} does not fit a storage of {held} numbers"
            ));
        }
        let dense = row_major(&shape);
        let contiguous = len == 0 || axes.zip(&dense).all(|((&n, own), dense)| n == 1 || own == dense);
        let start = bytes.start + offset * stored.size();
        Ok(Self { stored, shape, strides: (!contiguous).then_some(strides), start, len })
    }

    /// What it is stored as.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Sizes of its axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of its numbers as stored, each counted as often as it is seen.
    pub fn bytes(&self) -> usize {
        self.len * self.stored.size()
    }

    /// Rows of the first axis; none if they are not there.
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let held = *self.shape.first()?;
        if rows.start > rows.end || rows.end > held {
            return None;
        }
        let per_row = self.len / held.max(1);
        let stride = self.strides.as_ref().and_then(|s| s.first().copied()).unwrap_or(per_row);
        let mut part = self.clone();
        part.len = per_row * rows.len();
        part.start += if part.len == 0 { 0 } else { rows.start * stride * self.stored.size() };
        if let Some(first) = part.shape.first_mut() {
            *first = rows.len();
        }
        Some(part)
    }

    /// The stored numbers, row-major; `file` are the bytes it was made for. Empty if they are others.
    pub fn raw<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.strides {
            _ if self.len == 0 => Cow::Borrowed(&[]),
            None => Cow::Borrowed(file.get(self.start..self.start + self.bytes()).unwrap_or_default()),
            Some(strides) => {
                let from = file.get(self.start..).unwrap_or_default();
                let axes: Vec<_> = self.shape.iter().copied().zip(strides.iter().copied()).collect();
                let mut out = Vec::with_capacity(self.bytes());
                match self.stored.size() {
                    1 => gather::<1>(from.as_chunks().0, 0, &axes, &mut out),
                    2 => gather::<2>(from.as_chunks().0, 0, &axes, &mut out),
                    4 => gather::<4>(from.as_chunks().0, 0, &axes, &mut out),
                    _ => gather::<8>(from.as_chunks().0, 0, &axes, &mut out),
                }
                Cow::Owned(out)
            }
        }
    }

    /// The numbers as float32, row-major; `file` are the bytes it was made for.
    pub fn read(&self, file: &[u8]) -> Vec<f32> {
        let raw = self.raw(file);
        match self.stored {
            Stored::F32 => numbers(&raw, f32::from_le_bytes),
            Stored::F16 => numbers(&raw, |b| f16(u16::from_le_bytes(b))),
            Stored::BF16 => numbers(&raw, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Stored::F64 => numbers(&raw, |b| f64::from_le_bytes(b) as f32),
            Stored::I64 => numbers(&raw, |b| i64::from_le_bytes(b) as f32),
            Stored::I32 => numbers(&raw, |b| i32::from_le_bytes(b) as f32),
            Stored::I16 => numbers(&raw, |b| f32::from(i16::from_le_bytes(b))),
            Stored::I8 => numbers(&raw, |b| f32::from(i8::from_le_bytes(b))),
            Stored::U8 => numbers(&raw, |[b]| f32::from(b)),
            Stored::Bool => numbers(&raw, |[b]| f32::from(u8::from(b != 0))),
        }
    }
}

/// Numbers of a shape. An axis of none does not hide others that are absurd.
fn count(shape: &[usize]) -> Result<usize, Fault> {
    if shape.len() > MAX_AXES {
        return Err(Fault::Unsupported(format!("it has a tensor of {} axes", shape.len())));
    }
    match shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1))) {
        None => damaged(format!("shape {shape:?} has more numbers than can be counted")),
        Some(_) if shape.contains(&0) => Ok(0),
        Some(product) => Ok(product),
    }
}

/// The strides of a contiguous tensor whose numbers have been counted.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    let mut product = 1;
    for (stride, &n) in strides.iter_mut().zip(shape).rev() {
        *stride = product;
        product *= n.max(1);
    }
    strides
}

/// Appends the numbers of a strided tensor, axis by axis; each axis is a count and a stride.
fn gather<const N: usize>(from: &[[u8; N]], at: usize, axes: &[(usize, usize)], out: &mut Vec<u8>) {
    match axes {
        [] => out.extend(from.get(at).into_iter().flatten()),
        [(count, stride)] => {
            (0..*count).for_each(|i| out.extend(from.get(at + i * stride).into_iter().flatten()))
        }
        [(count, stride), inner @ ..] => (0..*count).for_each(|i| gather(from, at + i * stride, inner, out)),
    }
}

/// Little-endian numbers of N bytes each, in parallel where there are many.
fn numbers<const N: usize>(raw: &[u8], number: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    const PART: usize = 1 << 16;
    let each = raw.as_chunks::<N>().0;
    match each.len() < PART {
        true => each.iter().map(|b| number(*b)).collect(),
        false => each.par_iter().with_min_len(PART).map(|b| number(*b)).collect(),
    }
}

/// Half precision, widened without a branch: moved into place the bits are a float32 that is 2^112 times too small,
/// subnormal numbers included, except that infinity and NaN need the exponent of theirs.
fn f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (u32::from(bits & 0x8000) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_precision_number_is_its_value() {
        for bits in 0..=u16::MAX {
            let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
            let size = match exponent {
                0 => mantissa * 2f64.powi(-24),
                31 if mantissa == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
            };
            let want = if bits >> 15 == 1 { -size } else { size };
            let got = f64::from(f16(bits));
            assert!(
                got.is_nan() && want.is_nan() || got.to_bits() == want.to_bits(),
                "{bits:#x} {got} {want}"
            );
        }
    }

    #[test]
    fn rows_of_a_view_are_rows_of_what_it_reads() {
        let file: Vec<u8> = (0..24).collect();
        let view = View::strided(Stored::U8, vec![4, 2, 3], vec![1, 4, 8], 0, 0..24, 24).unwrap();
        let whole = view.read(&file);
        assert_eq!(whole[..6], [0.0, 8.0, 16.0, 4.0, 12.0, 20.0]);
        assert_eq!(view.rows(1..3).unwrap().read(&file), whole[6..18]);
        assert_eq!(view.rows(4..4).unwrap().read(&file), [0.0; 0]);
        assert!(view.rows(3..5).is_none());
        let plain = View::contiguous(Stored::I16, vec![3, 4], 0..24).unwrap();
        assert_eq!(plain.rows(1..2).unwrap().read(&file), plain.read(&file)[4..8]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |shape: &[usize], strides: &[usize], offset| {
            View::strided(Stored::F32, shape.into(), strides.into(), offset, 0..40, 1000)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[3, 4], &[4, 1], 0).contains("does not fit a storage of 10 numbers"));
        assert!(refused(&[2], &[1], 9).contains("does not fit"));
        assert!(refused(&[2], &[usize::MAX], 9).contains("does not fit"));
        assert!(refused(&[0], &[1], 11).contains("does not fit"));
        assert!(refused(&[2, 2], &[1], 0).contains("does not go with strides"));
        assert!(refused(&[1 << 40], &[0], 0).contains("repeats the file's numbers too often"));
        assert!(refused(&[0, 1 << 40, 1 << 40], &[0, 0, 0], 0).contains("can be counted"));
        assert!(refused(&[1; 9], &[1; 9], 0).contains("9 axes"));
    }
}
