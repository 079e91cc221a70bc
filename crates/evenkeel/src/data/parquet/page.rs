//! Pages: their headers, and the values of one page in order.
//!
//! A column's part of a row group is a dictionary, perhaps, and data pages. A data page has a level for each row where
//! rows may have no value (0: it has none), and then the values of the others in one of the encodings below. Version 2
//! of data pages differs in that levels are not packed with the values.

use std::io::Read;

use super::codec::Codec;
use super::delta::Delta;
use super::error::{ParquetFault, damaged, unsupported};
use super::hybrid::Hybrid;
use super::thrift::{Kind, Thrift};

/// The longest header of a page: the statistics in it may hold long texts.
const LONGEST_HEADER: u64 = 16 << 20;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageKind {
    Data {
        levels_encoding: i64,
    },
    DataV2 {
        levels: u64,
        repetition: u64,
        packed: bool,
    },
    Dictionary,
    /// An index, which is not needed.
    Other,
}

/// The header of a page.
#[derive(Debug)]
struct Header {
    kind: PageKind,
    packed: u64,
    unpacked: u64,
    checksum: Option<u32>,
    values: u64,
    encoding: i64,
}

/// A page that was read: a dictionary, or rows.
pub(super) enum Page {
    Dictionary(Dictionary),
    Data(Box<DataPage>),
    Other,
}

/// Strings that data pages give the numbers of.
#[derive(Debug)]
pub(super) struct Dictionary {
    bytes: Vec<u8>,
    /// Where each lies in them.
    texts: Vec<(u32, u32)>,
}

/// The rows of a page.
#[derive(Debug)]
pub(super) struct DataPage {
    bytes: Vec<u8>,
    levels: Option<Levels>,
    values: Values,
    /// Rows not yet given out.
    pub(super) rows: u64,
}

/// Which rows have a value.
#[derive(Debug)]
struct Levels {
    /// In a buffer of their own in version 2, which has them outside of the packed part.
    own: Option<Vec<u8>>,
    numbers: Hybrid,
}

#[derive(Debug)]
enum Values {
    Plain { at: usize },
    Numbered(Hybrid),
    Lengths { lengths: Delta, at: usize },
    Prefixes { prefixes: Delta, lengths: Delta, at: usize, last: Vec<u8> },
}

/// What the next rows are.
pub(super) enum Next<'a> {
    Value(&'a [u8]),
    /// So many without a value.
    Nulls(u64),
}

/// Reads the next page from `source`, of which `left` bytes belong to the column. Returns it and its length in the file.
pub(super) fn read<R: Read>(
    source: &mut R,
    left: u64,
    codec: Codec,
    optional: bool,
) -> Result<(Page, u64), ParquetFault> {
    let mut thrift = Thrift::new(&mut *source, left.min(LONGEST_HEADER));
    let before = thrift.left();
    let header = header(&mut thrift)?;
    let of_header = before - thrift.left();
    if header.packed > left - of_header {
        return damaged(format!("a page of {} bytes is longer than the rest of its column", header.packed));
    }
    // No longer than the file, by the line above.
    let mut bytes = vec![0; header.packed as usize];
    source.read_exact(&mut bytes)?;
    if header.checksum.is_some_and(|sum| sum != crc32(&bytes)) {
        return damaged("the checksum of a page does not fit");
    }
    let page = match header.kind {
        PageKind::Other => Page::Other,
        PageKind::Dictionary => {
            Page::Dictionary(dictionary(codec.unpack(bytes, header.unpacked as usize)?, &header)?)
        }
        PageKind::Data { .. } | PageKind::DataV2 { .. } => {
            Page::Data(Box::new(data(bytes, &header, codec, optional)?))
        }
    };
    Ok((page, of_header + header.packed))
}

fn header<R: Read>(t: &mut Thrift<R>) -> Result<Header, ParquetFault> {
    let (mut kind, mut sizes, mut checksum) = (None, (None, None), None);
    let (mut values, mut encoding, mut levels_encoding) = (0, 0, 3);
    let (mut levels, mut repetition, mut packed) = (0, 0, true);
    t.fields(Kind::Struct, |t, field, k| {
        match field {
            1 => kind = Some(t.integer(k)?),
            2 => sizes.1 = Some(t.count(k)?),
            3 => sizes.0 = Some(t.count(k)?),
            // The field is signed, its bits are the sum's.
            4 => checksum = Some(t.integer(k)? as u32),
            5 | 7 | 8 => t.fields(k, |t, inner, k| {
                match (field, inner) {
                    (_, 1) => values = t.count(k)?,
                    (5 | 7, 2) | (8, 4) => encoding = t.integer(k)?,
                    (5, 3) => levels_encoding = t.integer(k)?,
                    (8, 5) => levels = t.count(k)?,
                    (8, 6) => repetition = t.count(k)?,
                    (8, 7) => packed = k == Kind::True,
                    _ => t.skip(k)?,
                }
                Ok(())
            })?,
            _ => t.skip(k)?,
        }
        Ok(())
    })?;
    let kind = match kind {
        Some(0) => PageKind::Data { levels_encoding },
        Some(2) => PageKind::Dictionary,
        Some(3) => PageKind::DataV2 { levels, repetition, packed },
        Some(_) => PageKind::Other,
        None => return damaged("a page does not say what it is"),
    };
    match sizes {
        // The format's sizes have 32 bits.
        (Some(packed @ 0..=0x7fff_ffff), Some(unpacked @ 0..=0x7fff_ffff)) => {
            Ok(Header { kind, packed, unpacked, checksum, values, encoding })
        }
        _ => damaged("a page does not say how long it is"),
    }
}

fn dictionary(bytes: Vec<u8>, header: &Header) -> Result<Dictionary, ParquetFault> {
    if !matches!(header.encoding, 0 | 2) {
        return unsupported(format!("its dictionary has the encoding {}", header.encoding));
    }
    // Each has a length of four bytes.
    if header.values > bytes.len() as u64 / 4 {
        return damaged(format!("a dictionary of {} texts has {} bytes", header.values, bytes.len()));
    }
    let mut texts = Vec::with_capacity(header.values as usize);
    let mut at = 0;
    for _ in 0..header.values {
        let (begin, end) = plain(&bytes, at)?;
        texts.push((begin as u32, end as u32));
        at = end;
    }
    Ok(Dictionary { bytes, texts })
}

/// Where the string lies whose length is written at `at`.
fn plain(bytes: &[u8], at: usize) -> Result<(usize, usize), ParquetFault> {
    let Some(length) = bytes.get(at..at + 4).and_then(|four| four.try_into().ok()) else {
        return damaged("a page ends within its values");
    };
    let begin = at + 4;
    let length = u32::from_le_bytes(length) as usize;
    if length > bytes.len() - begin {
        return damaged(format!("a page has a value of {length} bytes, longer than its rest"));
    }
    Ok((begin, begin + length))
}

fn data(bytes: Vec<u8>, header: &Header, codec: Codec, optional: bool) -> Result<DataPage, ParquetFault> {
    let size = header.unpacked as usize;
    let (bytes, levels, at) = match header.kind {
        PageKind::DataV2 { levels, repetition, packed } => {
            let before = repetition.saturating_add(levels);
            if before > header.packed || before > header.unpacked {
                return damaged("the levels of a page are longer than itself");
            }
            let (first, before) = (repetition as usize, before as usize);
            let own = bytes[first..before].to_vec();
            let rest = bytes[before..].to_vec();
            let codec = if packed { codec } else { Codec::None };
            let bytes =
                if rest.is_empty() && size == before { rest } else { codec.unpack(rest, size - before)? };
            let numbers = Hybrid::new(0, own.len(), 1)?;
            (bytes, optional.then_some(Levels { own: Some(own), numbers }), 0)
        }
        PageKind::Data { levels_encoding } if optional => {
            if levels_encoding != 3 {
                return unsupported(format!("its levels have the encoding {levels_encoding}"));
            }
            let bytes = codec.unpack(bytes, size)?;
            // Their length stands before them, as that of a string does.
            let (begin, end) = plain(&bytes, 0)?;
            (bytes, Some(Levels { own: None, numbers: Hybrid::new(begin, end, 1)? }), end)
        }
        _ => (codec.unpack(bytes, size)?, None, 0),
    };
    let values = match header.encoding {
        0 => Values::Plain { at },
        // A page without values may be empty.
        2 | 8 => match bytes.get(at) {
            Some(&width) => Values::Numbered(Hybrid::new(at + 1, bytes.len(), width.into())?),
            None => Values::Plain { at },
        },
        6 => {
            let (lengths, at) = Delta::new(&bytes, at)?;
            Values::Lengths { lengths, at }
        }
        7 => {
            let (prefixes, at) = Delta::new(&bytes, at)?;
            let (lengths, at) = Delta::new(&bytes, at)?;
            if prefixes.left() != lengths.left() {
                return damaged("a page has more beginnings than ends of strings, or fewer");
            }
            Values::Prefixes { prefixes, lengths, at, last: Vec::new() }
        }
        other => return unsupported(format!("its column has the encoding {other}")),
    };
    Ok(DataPage { bytes, levels, values, rows: header.values })
}

impl DataPage {
    /// The next row or rows; there have to be some left.
    pub(super) fn next<'a>(
        &'a mut self,
        dictionary: Option<&'a Dictionary>,
    ) -> Result<Next<'a>, ParquetFault> {
        if let Some(levels) = &mut self.levels {
            let (level, count) = levels.numbers.peek(levels.own.as_deref().unwrap_or(&self.bytes))?;
            let count = if level == 0 { count.min(self.rows) } else { 1 };
            levels.numbers.take(count);
            if level == 0 {
                self.rows -= count;
                return Ok(Next::Nulls(count));
            }
        }
        self.rows -= 1;
        self.values.next(&self.bytes, dictionary).map(Next::Value)
    }
}

impl Values {
    fn next<'a>(
        &'a mut self,
        bytes: &'a [u8],
        dictionary: Option<&'a Dictionary>,
    ) -> Result<&'a [u8], ParquetFault> {
        match self {
            Values::Plain { at } => {
                let (begin, end) = plain(bytes, *at)?;
                *at = end;
                Ok(&bytes[begin..end])
            }
            Values::Numbered(numbers) => {
                let Some(dictionary) = dictionary else {
                    return damaged("a page refers to a dictionary, and there is none before it");
                };
                let (number, _) = numbers.peek(bytes)?;
                numbers.take(1);
                match dictionary.texts.get(number as usize) {
                    Some(&(begin, end)) => Ok(&dictionary.bytes[begin as usize..end as usize]),
                    None => damaged(format!("a page refers to text {number} of {}", dictionary.texts.len())),
                }
            }
            Values::Lengths { lengths, at } => piece(bytes, at, lengths.next(bytes)?),
            Values::Prefixes { prefixes, lengths, at, last } => {
                let prefix = prefixes.next(bytes)?;
                match usize::try_from(prefix) {
                    Ok(prefix) if prefix <= last.len() => last.truncate(prefix),
                    _ => return damaged("a string begins as one that is shorter than the beginning"),
                }
                last.extend_from_slice(piece(bytes, at, lengths.next(bytes)?)?);
                Ok(last)
            }
        }
    }
}

/// The next `length` bytes.
fn piece<'a>(bytes: &'a [u8], at: &mut usize, length: i64) -> Result<&'a [u8], ParquetFault> {
    let begin = *at;
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() - begin => {
            *at = begin + length;
            Ok(&bytes[begin..*at])
        }
        _ => damaged(format!("a page has a value of {length} bytes, longer than its rest")),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}
