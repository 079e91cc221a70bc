//! Whole numbers as differences: the encoding DELTA_BINARY_PACKED, in which lengths of strings are written.
//!
//! A head gives the numbers of a block, of its parts, the count of all, and the first. Each block has its smallest
//! difference, the width in bits of each part, and the differences beyond the smallest, packed. Numbers are decoded as
//! they are asked for, because a few bytes can stand for any count of them.

use super::error::{ParquetFault, damaged};
use super::hybrid::{bits, varint};

/// Reads such numbers from a page.
#[derive(Debug)]
pub(super) struct Delta {
    at: usize,
    block: u64,
    parts: u64,
    /// Numbers not yet given out.
    left: u64,
    next: i64,
    smallest: i64,
    /// Where the widths of the block's parts are, and which part comes next.
    widths: usize,
    part: u64,
    /// The part being read: its width, its next bit, and what is left of it.
    width: u32,
    bit: u64,
    of_part: u64,
}

impl Delta {
    /// Numbers from `at` on. Returns them, and where what follows them begins.
    pub(super) fn new(page: &[u8], mut at: usize) -> Result<(Self, usize), ParquetFault> {
        let end = page.len();
        let block = varint(page, &mut at, end)?;
        let parts = varint(page, &mut at, end)?;
        let count = varint(page, &mut at, end)?;
        let next = zigzag(varint(page, &mut at, end)?);
        // The format demands multiples of 128 and of 32.
        let sound = parts > 0 && block.is_multiple_of(128) && block > 0 && block.is_multiple_of(parts);
        if !sound || !(block / parts).is_multiple_of(32) || parts > end as u64 || block > 1 << 32 {
            return damaged(format!("a page has blocks of {block} numbers in {parts} parts"));
        }
        let delta = Self {
            at,
            block,
            parts,
            left: count,
            next,
            smallest: 0,
            widths: 0,
            part: parts,
            width: 0,
            bit: 0,
            of_part: 0,
        };
        let behind = delta.end(page)?;
        Ok((delta, behind))
    }

    /// How many numbers are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn per_part(&self) -> u64 {
        self.block / self.parts
    }

    /// Where the numbers end: the last block has only the parts that it needs.
    fn end(&self, page: &[u8]) -> Result<usize, ParquetFault> {
        let mut at = self.at;
        // The first is in the head.
        let mut left = self.left.saturating_sub(1);
        while left > 0 {
            varint(page, &mut at, page.len())?;
            let widths = at;
            at += self.parts as usize;
            for part in 0..self.parts as usize {
                if left == 0 {
                    break;
                }
                let width = width(page, widths + part)?;
                at = match at.checked_add((self.per_part() / 8 * u64::from(width)) as usize) {
                    Some(at) if at <= page.len() => at,
                    _ => return damaged("a page ends within its numbers"),
                };
                left = left.saturating_sub(self.per_part());
            }
        }
        match at <= page.len() {
            true => Ok(at),
            false => damaged("a page ends within its numbers"),
        }
    }

    /// The next number.
    pub(super) fn next(&mut self, page: &[u8]) -> Result<i64, ParquetFault> {
        let Some(left) = self.left.checked_sub(1) else {
            return damaged("a page has fewer lengths than values");
        };
        self.left = left;
        let value = self.next;
        if left > 0 {
            if self.of_part == 0 {
                self.advance(page)?;
            }
            let beyond = bits(page, self.bit, self.width);
            self.bit += u64::from(self.width);
            self.of_part -= 1;
            self.next = value.wrapping_add(self.smallest).wrapping_add(i64::from(beyond));
        }
        Ok(value)
    }

    fn advance(&mut self, page: &[u8]) -> Result<(), ParquetFault> {
        if self.part == self.parts {
            self.smallest = zigzag(varint(page, &mut self.at, page.len())?);
            self.widths = self.at;
            self.at += self.parts as usize;
            self.part = 0;
        }
        self.width = width(page, self.widths + self.part as usize)?;
        self.part += 1;
        self.bit = self.at as u64 * 8;
        self.at += (self.per_part() / 8 * u64::from(self.width)) as usize;
        self.of_part = self.per_part();
        Ok(())
    }
}

fn width(page: &[u8], at: usize) -> Result<u32, ParquetFault> {
    match page.get(at) {
        Some(&width @ 0..=32) => Ok(width.into()),
        Some(width) => damaged(format!("a page has lengths of {width} bits")),
        None => damaged("a page ends within its numbers"),
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
