//! Thrift's compact protocol, as far as Parquet's footer and page headers need it.
//!
//! A struct is a list of numbered fields, each with the kind of its value; what a reader does not know it skips, so
//! that files of later versions stay readable. Numbers are of variable length. Nothing is believed: a reader stops
//! after the bytes it was allowed, does work in proportion to them, and takes no nesting deeper than a few levels.

use std::io::Read;

use super::error::{ParquetFault, damaged};

/// How deep structs may lie in each other; Parquet's own lie four deep.
const DEEPEST: u32 = 16;

/// The kinds of values that are told apart; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    /// An integer of 16 to 64 bits.
    Integer,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

impl Kind {
    fn of(number: u8) -> Result<Self, ParquetFault> {
        Ok(match number {
            1 => Kind::True,
            2 => Kind::False,
            3 => Kind::Byte,
            4..=6 => Kind::Integer,
            7 => Kind::Double,
            8 => Kind::Binary,
            // A set is written as a list is.
            9 | 10 => Kind::List,
            11 => Kind::Map,
            12 => Kind::Struct,
            _ => return damaged(format!("its metadata has a value of the unknown kind {number}")),
        })
    }
}

/// Reads values one after the other.
pub(super) struct Thrift<R> {
    source: R,
    /// Bytes that may still be read.
    left: u64,
}

impl<R: Read> Thrift<R> {
    /// A reader that takes at most `limit` bytes.
    pub(super) fn new(source: R, limit: u64) -> Self {
        Self { source, left: limit }
    }

    /// Bytes that may still be read.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn exact(&mut self, into: &mut [u8]) -> Result<(), ParquetFault> {
        match self.left.checked_sub(into.len() as u64) {
            Some(left) => self.left = left,
            None => return damaged("its metadata is cut short"),
        }
        self.source.read_exact(into).map_err(ParquetFault::from)
    }

    fn byte(&mut self) -> Result<u8, ParquetFault> {
        let mut byte = [0];
        self.exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64, ParquetFault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        damaged("its metadata has a number of more than 64 bits")
    }

    /// An integer of any width.
    pub(super) fn integer(&mut self, kind: Kind) -> Result<i64, ParquetFault> {
        self.demand(kind, Kind::Integer)?;
        let zigzag = self.varint()?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// An integer that counts something.
    pub(super) fn count(&mut self, kind: Kind) -> Result<u64, ParquetFault> {
        let value = self.integer(kind)?;
        u64::try_from(value).or_else(|_| damaged(format!("its metadata counts {value} of something")))
    }

    /// A text; what is no UTF-8 is replaced.
    pub(super) fn text(&mut self, kind: Kind) -> Result<String, ParquetFault> {
        self.demand(kind, Kind::Binary)?;
        let length = self.varint()?;
        if length > self.left {
            return damaged("its metadata is cut short");
        }
        // No longer than what is there, by the line above.
        let mut bytes = vec![0; length as usize];
        self.exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The number of elements of a list of structs.
    pub(super) fn structs(&mut self, kind: Kind) -> Result<u64, ParquetFault> {
        self.demand(kind, Kind::List)?;
        match self.list()? {
            (Kind::Struct, length) => Ok(length),
            (_, 0) => Ok(0),
            (other, _) => damaged(format!("its metadata lists {other:?} where structs belong")),
        }
    }

    fn list(&mut self) -> Result<(Kind, u64), ParquetFault> {
        let head = self.byte()?;
        let length = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        // An empty list may leave the kind open.
        let kind = if length == 0 { Kind::Byte } else { Kind::of(head & 15)? };
        match length > self.left {
            true => damaged("its metadata has a list longer than itself"),
            false => Ok((kind, length)),
        }
    }

    /// Calls `field` with the number and the kind of each field of a struct. It has to read the value, or skip it.
    pub(super) fn fields(
        &mut self,
        kind: Kind,
        mut field: impl FnMut(&mut Self, i64, Kind) -> Result<(), ParquetFault>,
    ) -> Result<(), ParquetFault> {
        self.demand(kind, Kind::Struct)?;
        let mut number = 0_i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            number = match head >> 4 {
                0 => self.integer(Kind::Integer)?,
                more => number.saturating_add(i64::from(more)),
            };
            field(self, number, Kind::of(head & 15)?)?;
        }
    }

    /// Reads past a value of a field.
    pub(super) fn skip(&mut self, kind: Kind) -> Result<(), ParquetFault> {
        self.skip_within(kind, DEEPEST, false)
    }

    fn skip_within(&mut self, kind: Kind, depth: u32, element: bool) -> Result<(), ParquetFault> {
        let Some(deeper) = depth.checked_sub(1) else {
            return damaged("its metadata is nested too deep");
        };
        match kind {
            // The kind of a field says it all; an element of a list is a byte.
            Kind::True | Kind::False if !element => Ok(()),
            Kind::True | Kind::False | Kind::Byte => self.byte().map(drop),
            Kind::Integer => self.varint().map(drop),
            Kind::Double => self.exact(&mut [0; 8]),
            Kind::Binary => {
                let length = self.varint()?;
                self.pass(length)
            }
            Kind::List => {
                let (kind, length) = self.list()?;
                (0..length).try_for_each(|_| self.skip_within(kind, deeper, true))
            }
            Kind::Map => {
                let length = self.varint()?;
                if length == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                let (key, value) = (Kind::of(kinds >> 4)?, Kind::of(kinds & 15)?);
                for _ in 0..length {
                    self.skip_within(key, deeper, true)?;
                    self.skip_within(value, deeper, true)?;
                }
                Ok(())
            }
            Kind::Struct => self.fields(kind, |this, _, kind| this.skip_within(kind, deeper, false)),
        }
    }

    fn pass(&mut self, length: u64) -> Result<(), ParquetFault> {
        if length > self.left {
            return damaged("its metadata is cut short");
        }
        self.left -= length;
        let passed = std::io::copy(&mut (&mut self.source).take(length), &mut std::io::sink())?;
        if passed < length { damaged("its metadata is cut short") } else { Ok(()) }
    }

    fn demand(&self, found: Kind, expected: Kind) -> Result<(), ParquetFault> {
        match found == expected {
            true => Ok(()),
            false => damaged(format!("its metadata has {found:?} where {expected:?} belongs")),
        }
    }
}
