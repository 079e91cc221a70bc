//! The hybrid of runs and packed bits that levels and indices into a dictionary are written in.
//!
//! A stretch begins with a number of variable length. If its last bit is 0, the rest counts how often the value behind
//! it comes; if it is 1, the rest counts groups of eight values of `width` bits each, the first in the lowest bits.

use super::error::{ParquetFault, damaged};

/// Reads such numbers from a part of a page.
#[derive(Debug)]
pub(super) struct Hybrid {
    at: usize,
    end: usize,
    /// Bits of a value, at most 32.
    width: u32,
    stretch: Stretch,
}

#[derive(Debug)]
enum Stretch {
    Run { value: u32, left: u64 },
    Packed { first_bit: u64, left: u64 },
}

impl Hybrid {
    /// Numbers of `width` bits in the bytes from `at` to `end` of a page.
    pub(super) fn new(at: usize, end: usize, width: u32) -> Result<Self, ParquetFault> {
        match width {
            0..=32 => Ok(Self { at, end, width, stretch: Stretch::Run { value: 0, left: 0 } }),
            _ => damaged(format!("a page has numbers of {width} bits")),
        }
    }

    /// The next number and how often it comes at least.
    pub(super) fn peek(&mut self, page: &[u8]) -> Result<(u32, u64), ParquetFault> {
        loop {
            match self.stretch {
                Stretch::Run { left: 0, .. } | Stretch::Packed { left: 0, .. } => self.advance(page)?,
                Stretch::Run { value, left } => return Ok((value, left)),
                Stretch::Packed { first_bit, .. } => return Ok((bits(page, first_bit, self.width), 1)),
            }
        }
    }

    /// Passes over `count` numbers, no more than [`Self::peek`] said.
    pub(super) fn take(&mut self, count: u64) {
        match &mut self.stretch {
            Stretch::Run { left, .. } => *left = left.saturating_sub(count),
            Stretch::Packed { first_bit, left } => {
                *first_bit += count * u64::from(self.width);
                *left = left.saturating_sub(count);
            }
        }
    }

    fn advance(&mut self, page: &[u8]) -> Result<(), ParquetFault> {
        let head = varint(page, &mut self.at, self.end)?;
        let count = head >> 1;
        if count == 0 {
            return damaged("a page has an empty stretch of numbers");
        }
        let room = (self.end - self.at) as u64;
        if head & 1 == 0 {
            let bytes = self.width.div_ceil(8) as usize;
            if bytes as u64 > room {
                return damaged("a page ends within its numbers");
            }
            let mut value = [0; 4];
            value[..bytes].copy_from_slice(&page[self.at..self.at + bytes]);
            self.at += bytes;
            self.stretch = Stretch::Run { value: u32::from_le_bytes(value), left: count };
        } else {
            // Eight values of `width` bits are `width` bytes.
            let bytes = count.saturating_mul(u64::from(self.width));
            if bytes > room {
                return damaged("a page ends within its numbers");
            }
            let left = count.saturating_mul(8);
            self.stretch = Stretch::Packed { first_bit: self.at as u64 * 8, left };
            self.at += bytes as usize;
        }
        Ok(())
    }
}

/// A number of variable length at `at`, which moves behind it.
pub(super) fn varint(page: &[u8], at: &mut usize, end: usize) -> Result<u64, ParquetFault> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = page[..end].get(*at) else { return damaged("a page ends within its numbers") };
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    damaged("a page has a number of more than 64 bits")
}

/// `width` bits, at most 32, from bit `first` of the page on, which holds them.
pub(super) fn bits(page: &[u8], first: u64, width: u32) -> u32 {
    let at = (first / 8) as usize;
    let mut window = [0; 8];
    let end = page.len().min(at + 8);
    window[..end - at].copy_from_slice(&page[at..end]);
    let value = u64::from_le_bytes(window) >> (first % 8);
    (value & ((1 << width) - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the format's documentation: the numbers 0 to 7 in three bits each.
    #[test]
    fn the_documented_example_is_read() {
        let page = [0b0000_0011, 0b1000_1000, 0b1100_0110, 0b1111_1010, 0b0000_1010, 0b0000_0110];
        let mut hybrid = Hybrid::new(0, page.len(), 3).unwrap();
        let mut read = Vec::new();
        while read.len() < 13 {
            let (value, count) = hybrid.peek(&page).unwrap();
            hybrid.take(count);
            read.extend(vec![value; count as usize]);
        }
        assert_eq!(read, [0, 1, 2, 3, 4, 5, 6, 7, 6, 6, 6, 6, 6]);
        assert!(hybrid.peek(&page).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Hybrid::new(0, 0, 33).is_err());
        for page in [&[0_u8][..], &[1], &[2], &[3], &[0x80; 12], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert!(Hybrid::new(0, page.len(), 9).unwrap().peek(page).is_err(), "{page:?}");
        }
        // No bits at all are zeros.
        assert_eq!(Hybrid::new(0, 1, 0).unwrap().peek(&[8]).unwrap(), (0, 4));
    }
}
