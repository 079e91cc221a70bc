//! How pages are packed, and unpacking them.

use std::io::Read;

use super::error::{ParquetFault, damaged, unsupported};
use crate::data::packing::{Packing, unpack};

/// Snappy makes no more than this many bytes of one: its best is a copy of 64 bytes in three.
const SNAPPY_MOST: usize = 24;

/// What packs the pages of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    None,
    Snappy,
    Gzip,
    Zstd,
}

impl Codec {
    /// By its number in the format.
    pub(super) fn of(number: i64) -> Result<Self, ParquetFault> {
        let other = match number {
            0 => return Ok(Codec::None),
            1 => return Ok(Codec::Snappy),
            2 => return Ok(Codec::Gzip),
            6 => return Ok(Codec::Zstd),
            3 => "LZO",
            4 => "Brotli",
            5 | 7 => "LZ4",
            _ => return damaged(format!("its column is packed by the unknown codec {number}")),
        };
        unsupported(format!("its column is packed by {other}, and snappy, gzip and zstd are read"))
    }

    /// Unpacks a page that is said to be `size` bytes. No more than that is made of it, and memory grows with what is
    /// there.
    pub(super) fn unpack(self, packed: Vec<u8>, size: usize) -> Result<Vec<u8>, ParquetFault> {
        let unpacked = match self {
            Codec::None => packed,
            Codec::Snappy => {
                let promised = snap::raw::decompress_len(&packed).unwrap_or(usize::MAX);
                if promised != size || size > packed.len().saturating_mul(SNAPPY_MOST) {
                    return damaged(format!("a page of {} bytes cannot hold {size}", packed.len()));
                }
                let unpacked = snap::raw::Decoder::new().decompress_vec(&packed);
                unpacked.or_else(|problem| damaged(format!("a page cannot be unpacked: {problem}")))?
            }
            Codec::Gzip | Codec::Zstd => {
                let packing = if self == Codec::Gzip { Packing::Gzip } else { Packing::Zstd };
                let mut unpacked = Vec::new();
                // One byte more, to see that there are too many.
                let read =
                    unpack(packed.as_slice(), packing).take(size as u64 + 1).read_to_end(&mut unpacked);
                if let Err(problem) = read {
                    return damaged(format!("a page cannot be unpacked: {problem}"));
                }
                unpacked
            }
        };
        match unpacked.len() == size {
            true => Ok(unpacked),
            false => damaged(format!("a page of {size} bytes has {}", unpacked.len())),
        }
    }
}
