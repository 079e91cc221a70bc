//! Token shards: the `.bin` files of llm.c.
//!
//! A shard is a header of 256 little-endian int32, of which the first three are used (magic
//! number, version, number of tokens) and the rest are zero, then the ids and nothing else:
//!
//! | ids | magic | version | for vocabularies |
//! | --- | --- | --- | --- |
//! | uint16 | 20240520 | 1 | up to 65536 (GPT-2 in llm.c) |
//! | uint32 | 20240801 | 7 | above (Llama 3 in llm.c) |
//!
//! So FineWeb shards made for llm.c can be read, and llm.c can read ours. [`ShardWriter`] streams
//! and the file appears only when it is complete. [`Shard::open`] checks the header against the
//! length of the file before anything is allocated; [`Shard::read`] then reads anywhere with
//! positioned reads, which the page cache makes as cheap as a memory map. A map would need
//! `unsafe`, and would end the program if another one cut the file short meanwhile.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::DataError;
use crate::files::AtomicFile;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 1024;
/// The count in the header is an int32.
pub const MAX_SHARD_TOKENS: u64 = i32::MAX as u64;

/// The type of the ids in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenDtype {
    /// Two bytes for each id, for vocabularies up to 65536.
    Uint16,
    /// Four bytes for each id.
    Uint32,
}

impl TokenDtype {
    /// The type for ids from 0 to `vocab` - 1.
    pub fn for_vocab(vocab: usize) -> Self {
        if vocab <= 1 << 16 { Self::Uint16 } else { Self::Uint32 }
    }

    /// Bytes for each id.
    pub fn bytes(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Uint32 => 4,
        }
    }

    /// The name in `data.json`: "uint16" or "uint32".
    pub fn name(self) -> &'static str {
        match self {
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
        }
    }

    fn max_id(self) -> u32 {
        match self {
            Self::Uint16 => u32::from(u16::MAX),
            Self::Uint32 => u32::MAX,
        }
    }

    fn magic(self) -> i32 {
        match self {
            Self::Uint16 => 20_240_520,
            Self::Uint32 => 20_240_801,
        }
    }

    fn version(self) -> i32 {
        match self {
            Self::Uint16 => 1,
            Self::Uint32 => 7,
        }
    }

    fn of_magic(magic: i32) -> Option<Self> {
        [Self::Uint16, Self::Uint32].into_iter().find(|dtype| dtype.magic() == magic)
    }
}

/// A shard in the making. Dropping it without [`ShardWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    dtype: TokenDtype,
    tokens: u64,
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Starts a shard that will appear at `path`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn create(path: &Path, dtype: TokenDtype) -> Result<Self, DataError> {
        let mut file = AtomicFile::create(path).map_err(DataError::io("create", path))?;
        file.write(&[0; HEADER_BYTES]).map_err(DataError::io("write", path))?;
        Ok(Self { file, dtype, tokens: 0, buffer: Vec::new() })
    }

    /// The number of tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Appends ids.
    ///
    /// # Errors
    /// [`DataError::IdTooLarge`] if one does not fit the type, [`DataError::ShardTokens`] if the
    /// count would not fit the header, [`DataError::Io`].
    pub fn write(&mut self, ids: &[u32]) -> Result<(), DataError> {
        let tokens = self.tokens + ids.len() as u64;
        if tokens > MAX_SHARD_TOKENS {
            return Err(DataError::ShardTokens { tokens });
        }
        let max = self.dtype.max_id();
        if let Some(&id) = ids.iter().find(|&&id| id > max) {
            return Err(DataError::IdTooLarge {
                path: self.file.path().to_path_buf(),
                id,
                max,
                dtype: self.dtype.name(),
            });
        }
        self.buffer.clear();
        match self.dtype {
            // No bits are lost: every id is at most 65535.
            TokenDtype::Uint16 => {
                let pairs = ids.iter().flat_map(|&id| (id as u16).to_le_bytes());
                self.buffer.extend(pairs);
            }
            TokenDtype::Uint32 => self.buffer.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        self.file.write(&self.buffer).map_err(DataError::io("write", self.file.path()))?;
        self.tokens = tokens;
        Ok(())
    }

    /// Writes the header, syncs, and gives the shard its name. Returns the number of tokens.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn finish(mut self) -> Result<u64, DataError> {
        let mut header = [0_u8; 12];
        // `write` has kept the count within an int32.
        let fields = [self.dtype.magic(), self.dtype.version(), self.tokens as i32];
        for (bytes, field) in header.chunks_exact_mut(4).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        let path = self.file.path().to_path_buf();
        self.file.rewrite_start(&header).map_err(DataError::io("write", &path))?;
        self.file.persist().map_err(DataError::io("write", &path))?;
        Ok(self.tokens)
    }
}

/// A shard that has been opened and found sound.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    dtype: TokenDtype,
    len: u64,
}

impl Shard {
    /// Opens a shard and checks its header and length.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::ShardTooShort`], [`DataError::ShardByteOrder`],
    /// [`DataError::ShardMagic`], [`DataError::ShardVersion`], [`DataError::ShardCount`],
    /// [`DataError::ShardTruncated`], [`DataError::ShardTrailing`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(DataError::io("read", path))?;
        let metadata = file.metadata().map_err(DataError::io("read", path))?;
        let bytes = metadata.len();
        if metadata.is_file() && bytes < HEADER_BYTES as u64 {
            return Err(DataError::ShardTooShort { path: path.to_path_buf(), bytes });
        }
        let mut header = [0_u8; HEADER_BYTES];
        file.read_exact(&mut header).map_err(DataError::io("read", path))?;
        let field = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&header[4 * at..4 * at + 4]);
            i32::from_le_bytes(bytes)
        };
        let (magic, version, count) = (field(0), field(1), field(2));
        let path = path.to_path_buf();
        let Some(dtype) = TokenDtype::of_magic(magic) else {
            return Err(match TokenDtype::of_magic(magic.swap_bytes()) {
                Some(_) => DataError::ShardByteOrder { path },
                None => DataError::ShardMagic { path, found: magic },
            });
        };
        if version != dtype.version() {
            return Err(DataError::ShardVersion { path, found: version, expected: dtype.version() });
        }
        let Ok(len) = u64::try_from(count) else {
            return Err(DataError::ShardCount { path, found: count });
        };
        let expected = HEADER_BYTES as u64 + len * dtype.bytes() as u64;
        if bytes < expected {
            return Err(DataError::ShardTruncated { path, expected, found: bytes });
        }
        if bytes > expected {
            return Err(DataError::ShardTrailing { path, expected, found: bytes });
        }
        Ok(Self { path, file, dtype, len })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The type of the ids.
    pub fn dtype(&self) -> TokenDtype {
        self.dtype
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `out.len()` ids from position `start` on, and checks that they are below `vocab`
    /// where that is known.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] past the end, [`DataError::IdBeyondVocab`], [`DataError::Io`].
    pub fn read(&self, start: u64, out: &mut [u32], vocab: Option<usize>) -> Result<(), DataError> {
        let end = start.saturating_add(out.len() as u64);
        if end > self.len {
            return Err(DataError::OutOfRange { split: "shard", start, end, len: self.len });
        }
        let width = self.dtype.bytes();
        let mut bytes = vec![0_u8; out.len() * width];
        let offset = HEADER_BYTES as u64 + start * width as u64;
        read_exact_at(&self.file, &mut bytes, offset).map_err(DataError::io("read", &self.path))?;
        match self.dtype {
            TokenDtype::Uint16 => {
                for (id, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *id = u32::from(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            TokenDtype::Uint32 => {
                for (id, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *id = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
        if let Some(vocab) = vocab
            && let Some(at) = out.iter().position(|&id| id as usize >= vocab)
        {
            return Err(DataError::IdBeyondVocab {
                path: self.path.clone(),
                position: start + at as u64,
                id: out[at],
                vocab,
            });
        }
        Ok(())
    }
}

/// Reads at an offset without moving a cursor, so that a shard can be shared between threads.
#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    use std::io::{Error, ErrorKind};
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(Error::from(ErrorKind::UnexpectedEof)),
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn write(dir: &Path, dtype: TokenDtype, ids: &[u32]) -> PathBuf {
        let path = dir.join("a.bin");
        let mut writer = ShardWriter::create(&path, dtype).unwrap();
        for part in ids.chunks(7) {
            writer.write(part).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), ids.len() as u64);
        path
    }

    #[test]
    fn the_bytes_are_those_of_llm_c() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = fs::read(write(dir.path(), TokenDtype::Uint16, &[50256, 1])).unwrap();
        let mut expected = vec![0_u8; 1024];
        expected[..12].copy_from_slice(&[0x88, 0xD8, 0x34, 0x01, 1, 0, 0, 0, 2, 0, 0, 0]);
        expected.extend([0x50, 0xC4, 1, 0]);
        assert_eq!(bytes, expected);
        let bytes = fs::read(write(dir.path(), TokenDtype::Uint32, &[128_000])).unwrap();
        assert_eq!(bytes[..12], [0xA1, 0xD9, 0x34, 0x01, 7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[1024..], [0x00, 0xF4, 0x01, 0x00]);
    }

    #[test]
    fn the_type_follows_from_the_vocabulary() {
        assert_eq!(TokenDtype::for_vocab(65_536), TokenDtype::Uint16);
        assert_eq!(TokenDtype::for_vocab(65_537), TokenDtype::Uint32);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_written_is_read(
            ids in proptest::collection::vec(0_u32..=65_535, 0..100),
            wide: bool,
            from in 0_usize..100,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let dtype = if wide { TokenDtype::Uint32 } else { TokenDtype::Uint16 };
            let shard = Shard::open(&write(dir.path(), dtype, &ids)).unwrap();
            prop_assert_eq!(shard.len(), ids.len() as u64);
            prop_assert_eq!(shard.dtype(), dtype);
            let from = from.min(ids.len());
            let mut out = vec![0; ids.len() - from];
            shard.read(from as u64, &mut out, None).unwrap();
            prop_assert_eq!(&out[..], &ids[from..]);
        }

        #[test]
        fn no_file_makes_it_panic(
            start in proptest::collection::vec(any::<u8>(), 0..40),
            length in 0_usize..1100,
            magic in 0_u8..3,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.bin");
            let mut bytes = vec![0; length];
            let head = match magic {
                0 => vec![],
                1 => 20_240_520_i32.to_le_bytes().to_vec(),
                _ => [20_240_801_i32.to_le_bytes(), 7_i32.to_le_bytes()].concat(),
            };
            for (to, from) in bytes.iter_mut().zip(head.into_iter().chain(start)) {
                *to = from;
            }
            fs::write(&path, &bytes).unwrap();
            if let Ok(shard) = Shard::open(&path) {
                let tokens = shard.len() * shard.dtype().bytes() as u64;
                prop_assert_eq!(tokens, length as u64 - 1024);
            }
        }
    }

    /// Opens a good shard of three tokens after `change` has spoilt its bytes.
    fn spoilt(change: impl Fn(&mut Vec<u8>)) -> DataError {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), TokenDtype::Uint16, &[1, 2, 3]);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        Shard::open(&path).unwrap_err()
    }

    #[test]
    fn too_short_for_a_header() {
        let error = spoilt(|bytes| bytes.truncate(1023));
        assert!(matches!(error, DataError::ShardTooShort { bytes: 1023, .. }));
        assert!(matches!(spoilt(Vec::clear), DataError::ShardTooShort { bytes: 0, .. }));
    }

    #[test]
    fn wrong_magic() {
        let error = spoilt(|bytes| bytes[0] ^= 1);
        assert!(matches!(error, DataError::ShardMagic { found: 20_240_521, .. }));
    }

    #[test]
    fn other_byte_order() {
        let error = spoilt(|bytes| bytes[..4].reverse());
        assert!(matches!(error, DataError::ShardByteOrder { .. }));
    }

    #[test]
    fn wrong_version_for_the_magic() {
        let error = spoilt(|bytes| bytes[4] = 7);
        assert!(matches!(error, DataError::ShardVersion { found: 7, expected: 1, .. }));
    }

    #[test]
    fn negative_count() {
        let error = spoilt(|bytes| bytes[11] = 0xFF);
        assert!(matches!(error, DataError::ShardCount { found, .. } if found < 0));
    }

    #[test]
    fn cut_short_or_too_long() {
        let error = spoilt(|bytes| bytes.truncate(1029));
        assert!(matches!(error, DataError::ShardTruncated { expected: 1030, found: 1029, .. }));
        let huge = spoilt(|bytes| bytes[8..12].copy_from_slice(&i32::MAX.to_le_bytes()));
        assert!(matches!(huge, DataError::ShardTruncated { .. }));
        let error = spoilt(|bytes| bytes.push(0));
        assert!(matches!(error, DataError::ShardTrailing { expected: 1030, found: 1031, .. }));
    }

    #[test]
    fn ids_are_checked_on_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.bin");
        let mut writer = ShardWriter::create(&path, TokenDtype::Uint16).unwrap();
        let error = writer.write(&[5, 65_536]).unwrap_err();
        assert!(matches!(error, DataError::IdTooLarge { id: 65_536, .. }));
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let shard = Shard::open(&write(dir.path(), TokenDtype::Uint16, &[1, 9, 2])).unwrap();
        let mut out = [0; 2];
        shard.read(0, &mut out, Some(10)).unwrap();
        let error = shard.read(1, &mut out, Some(9)).unwrap_err();
        assert!(matches!(error, DataError::IdBeyondVocab { position: 1, id: 9, .. }));
        assert!(matches!(shard.read(2, &mut out, None), Err(DataError::OutOfRange { .. })));
    }
}
