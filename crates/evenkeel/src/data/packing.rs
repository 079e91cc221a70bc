//! Unpacking gzip and zstd as a stream.
//!
//! Both formats allow several members (gzip) or frames (zstd) one behind the other, as `cat a.gz b.gz` and parallel
//! compressors make them; all are read. Checksums are verified. A zstd frame says how far back it refers, and that much
//! of the text is held in memory: frames that ask for more than [`LARGEST_WINDOW`] are refused.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The largest window of a zstd frame, in bytes: what `zstd` itself takes unless it is told otherwise.
pub const LARGEST_WINDOW: u64 = 128 << 20;

/// Magic numbers of zstd: the 16 kinds of frames that are to be skipped.
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// It is not.
    None,
    /// gzip, as in `.gz`.
    Gzip,
    /// zstd, as in `.zst`.
    Zstd,
}

/// The bytes that `source` holds in that packing. What is damaged or cut short is an error of the kind
/// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::UnexpectedEof`], a window that is too large one of the kind
/// [`io::ErrorKind::Unsupported`].
pub fn unpack<'a>(source: impl Read + Send + 'a, packing: Packing) -> Box<dyn Read + Send + 'a> {
    match packing {
        Packing::None => Box::new(source),
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, source))),
        Packing::Zstd => Box::new(Zstd { source: BufReader::with_capacity(1 << 16, source), frame: None }),
    }
}

struct Zstd<R> {
    source: BufReader<R>,
    frame: Option<FrameDecoder>,
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(frame) = &mut self.frame else {
                match next_frame(&mut self.source)? {
                    Some(frame) => self.frame = Some(frame),
                    None => return Ok(0),
                }
                continue;
            };
            while frame.can_collect() == 0 && !frame.is_finished() {
                frame
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| invalid(&error))?;
            }
            let read = frame.read(into)?;
            if read > 0 {
                return Ok(read);
            }
            if frame.get_checksum_from_data().is_some_and(|sum| Some(sum) != frame.get_calculated_checksum())
            {
                return Err(invalid(&"the checksum does not fit"));
            }
            self.frame = None;
        }
    }
}

/// Reads up to the content of the next frame.
fn next_frame(source: &mut impl BufRead) -> io::Result<Option<FrameDecoder>> {
    loop {
        if source.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut magic = [0; 4];
        source.read_exact(&mut magic)?;
        if !SKIPPABLE.contains(&u32::from_le_bytes(magic)) {
            // A new decoder for each: one that is used again takes memory for the whole window at once.
            let mut frame = FrameDecoder::new();
            frame.set_max_window_size(LARGEST_WINDOW);
            return match frame.init(magic.chain(source)) {
                Ok(()) => Ok(Some(frame)),
                Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                    let asked = requested >> 20;
                    let problem = format!("it asks for a window of {asked} MiB, and 128 MiB are the most");
                    Err(io::Error::new(io::ErrorKind::Unsupported, problem))
                }
                Err(error) => Err(invalid(&error)),
            };
        }
        let mut length = [0; 4];
        source.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if io::copy(&mut source.take(length), &mut io::sink())? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn invalid(problem: &dyn std::fmt::Display) -> io::Error {
    // One line: some of these messages have several.
    let problem = problem.to_string().replace(['\n', '\r'], " ");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
