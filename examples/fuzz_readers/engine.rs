//! Damaged files, made from sound ones by chance, and what readers do with them.
//!
//! A case is a function of the seed and its number: a sound file, or what lies deep in one, changed once or more. Every
//! reader gets every case, whatever kind of file it began as.

use crate::memory::peak_of;
use evenkeel::Hint;
use evenkeel::checkpoint::weights::{Fault, View, index, pickle, safetensors, torch, zip};
use evenkeel::data::packing::{Packing, unpack};
use evenkeel::data::parquet::{ParquetTexts, Row};
use evenkeel::random::key;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How much a reader may hold: this many bytes for each of the file's, and what stands beside the reader.
pub(crate) const BYTES_PER_BYTE: usize = 64;

/// Reads all there is in a file, or says what is wrong with it.
type Reader = fn(&[u8]) -> Result<(), String>;

/// Each with the bytes that it may hold whatever the file is: gzip keeps 32 KiB and a decoder of zstd its tables; both
/// make much text of few bytes, of which no more than [`MOST_TEXT`] is asked for, but zstd looks back on all of it.
pub(crate) const READERS: [(&str, Reader, usize); 7] = [
    ("safetensors", |file| told(read_safetensors(file)), 1 << 20),
    ("torch", |file| told(read_torch(file)), 1 << 20),
    ("pickle", |file| told(read_pickle(file)), 1 << 20),
    ("index", |file| told(read_index(file)), 1 << 20),
    ("gzip", |file| read_packed(file, Packing::Gzip), 1 << 20),
    ("zstd", |file| read_packed(file, Packing::Zstd), 8 << 20),
    ("parquet", read_parquet, 8 << 20),
];

/// Text that is read of a packed file or a table, at most: a few bytes may stand for any number of texts.
const MOST_TEXT: u64 = 1 << 20;
const MOST_ROWS: u64 = 10_000;

/// The message of a fault, which has to have one, and a hint.
fn told<E: std::fmt::Display + Hint>(read: Result<(), E>) -> Result<(), String> {
    read.map_err(|fault| {
        assert!(!fault.hint().is_empty());
        fault.to_string()
    })
}

fn read_packed(file: &[u8], packing: Packing) -> Result<(), String> {
    let read = std::io::copy(&mut unpack(file, packing).take(MOST_TEXT), &mut std::io::sink());
    match read.map_err(|problem| problem.to_string())? {
        // Nothing at all is sound zstd, and of no use here.
        0 => Err("nothing is in it".into()),
        _ => Ok(()),
    }
}

fn read_parquet(file: &[u8]) -> Result<(), String> {
    told((|| {
        let mut texts = ParquetTexts::open(Cursor::new(file), "text")?;
        let (mut bytes, mut rows) = (0, 0);
        while let Some(row) = texts.next_row()? {
            if let Row::Text { text, .. } = row {
                bytes += text.len() as u64;
            }
            rows += 1;
            if bytes > MOST_TEXT || rows > MOST_ROWS {
                break;
            }
        }
        Ok::<_, evenkeel::data::parquet::ParquetFault>(())
    })())
}

fn read_safetensors(file: &[u8]) -> Result<(), Fault> {
    safetensors::parse(file).map(|tensors| read_all(file, &tensors))
}

fn read_torch(file: &[u8]) -> Result<(), Fault> {
    torch::parse(file).map(|tensors| read_all(file, &tensors))
}

fn read_pickle(file: &[u8]) -> Result<(), Fault> {
    pickle::run(file).map(|described| assert!(described.names().is_sorted()))
}

fn read_index(file: &[u8]) -> Result<(), Fault> {
    index::parse(file).map(|pairs| assert!(pairs.is_sorted()))
}

/// Reads every tensor of a file that was accepted, whole and in part; what is read has to have the promised size.
fn read_all(file: &[u8], tensors: &[(String, View)]) {
    for (_, view) in tensors {
        let numbers = view.read(file);
        assert_eq!(numbers.len(), view.shape().iter().product::<usize>());
        if let Some(&rows) = view.shape().first() {
            let part = view.rows(rows / 2..rows).map(|part| part.read(file)).unwrap_or_default();
            assert_eq!(part.len(), numbers.len() / rows.max(1) * (rows - rows / 2));
        }
    }
}

/// What the readers did with one case.
pub(crate) struct Outcome {
    /// For each reader.
    pub(crate) accepted: [bool; READERS.len()],
    /// The most bytes that one of them held.
    pub(crate) held: usize,
}

/// Gives one file to every reader.
///
/// # Errors
/// Which reader panicked or held too much.
pub(crate) fn judge(file: &[u8]) -> Result<Outcome, String> {
    let mut outcome = Outcome { accepted: [false; READERS.len()], held: 0 };
    for ((name, reader, beside), accepted) in READERS.iter().zip(&mut outcome.accepted) {
        let (result, held) = peak_of(|| catch_unwind(AssertUnwindSafe(|| reader(file))));
        match result {
            Err(_) => return Err(format!("the reader of {name} panicked")),
            Ok(Err(fault)) => assert!(!fault.is_empty()),
            Ok(Ok(())) => *accepted = true,
        }
        if held > BYTES_PER_BYTE * file.len() + beside {
            return Err(format!("the reader of {name} held {held} bytes for a file of {}", file.len()));
        }
        outcome.held = outcome.held.max(held);
    }
    Ok(outcome)
}

/// Sound files of every kind.
pub(crate) struct Seeds(Vec<Seed>);

/// A sound file: what is changed of it, and what is put around that unchanged, so that a change to what lies deep in a
/// file is not refused for what lies around it.
struct Seed {
    body: Vec<u8>,
    around: Around,
}

enum Around {
    Nothing,
    /// The length of a safetensors header before it, and these numbers behind.
    Header(Vec<u8>),
    /// A zip archive in which it is the first of these entries; the others are as they are.
    Archive(Vec<(String, Vec<u8>)>),
}

impl Seed {
    fn whole(body: &[u8]) -> Self {
        Self { body: body.to_vec(), around: Around::Nothing }
    }

    /// The file with another body.
    fn file(&self, body: Vec<u8>) -> Vec<u8> {
        match &self.around {
            Around::Nothing => body,
            Around::Header(numbers) => [&(body.len() as u64).to_le_bytes()[..], &body, numbers].concat(),
            Around::Archive(entries) => archive(entries, &body),
        }
    }
}

impl Seeds {
    pub(crate) fn new() -> Self {
        let mut seeds = Vec::new();
        for file in [
            &include_bytes!("../../tests/golden/weights/state.bin")[..],
            include_bytes!("../../tests/golden/weights/nested.bin"),
        ] {
            let parsed = zip::parse(file).unwrap_or_default();
            let mut entries: Vec<_> = parsed
                .iter()
                .map(|entry| (entry.name.to_string(), file[entry.bytes.clone()].to_vec()))
                .collect();
            entries.sort_by_key(|(name, _)| !name.ends_with("/data.pkl"));
            let described = entries[0].1.clone();
            seeds.push(Seed::whole(file));
            seeds.push(Seed::whole(&described));
            seeds.push(Seed { body: described, around: Around::Archive(entries) });
        }
        let state = include_bytes!("../../tests/golden/weights/state.safetensors");
        seeds.push(Seed::whole(state));
        for (header, numbers) in [
            (r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#, 24),
            (
                r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},
                "b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"U8","shape":[0,9],"data_offsets":[16,16]}} "#,
                16,
            ),
        ] {
            seeds.push(Seed { body: header.into(), around: Around::Header(vec![63; numbers]) });
        }
        for text in [
            r#"{"metadata":{"total_size":24},"weight_map":{"a":"model-1-of-2.safetensors","b":"model-2-of-2.safetensors"}}"#,
            r#"{"weight_map": {"layers.0.weight": "x.bin", "layers.0.bias": "x.bin", "head": "y.bin"}}"#,
        ] {
            seeds.push(Seed::whole(text.as_bytes()));
        }
        for file in [
            &include_bytes!("../../tests/golden/datasets/lines.jsonl.gz")[..],
            include_bytes!("../../tests/golden/datasets/members.jsonl.gz"),
            include_bytes!("../../tests/golden/datasets/lines.jsonl.zst"),
            include_bytes!("../../tests/golden/datasets/frames.jsonl.zst"),
            include_bytes!("../../tests/golden/datasets/none_dict_v2.parquet"),
            include_bytes!("../../tests/golden/datasets/snappy_dict_v1.parquet"),
            include_bytes!("../../tests/golden/datasets/gzip_plain_v1.parquet"),
            include_bytes!("../../tests/golden/datasets/zstd_plain_v2.parquet"),
            include_bytes!("../../tests/golden/datasets/nulls_dict_v2.parquet"),
            include_bytes!("../../tests/golden/datasets/delta_length.parquet"),
            include_bytes!("../../tests/golden/datasets/delta_strings.parquet"),
            include_bytes!("../../tests/golden/datasets/neighbours.parquet"),
        ] {
            seeds.push(Seed::whole(file));
        }
        Self(seeds)
    }

    /// The sound files.
    pub(crate) fn sound(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(|seed| seed.file(seed.body.clone()))
    }

    /// The file of a case.
    pub(crate) fn case(&self, seed: u64, number: u64) -> Vec<u8> {
        let mut dice = Dice { key: key(&[seed, number]), thrown: 0 };
        let chosen = self.any(&mut dice);
        let mut body = chosen.body.clone();
        // One change half of the time, two a quarter of the time, and so on.
        self.change(&mut body, &mut dice);
        while dice.below(2) == 0 {
            self.change(&mut body, &mut dice);
        }
        chosen.file(body)
    }

    fn any(&self, dice: &mut Dice) -> &Seed {
        &self.0[dice.below(self.0.len())]
    }

    fn change(&self, file: &mut Vec<u8>, dice: &mut Dice) {
        let at = dice.below(file.len() + 1);
        match dice.below(32) {
            0..6 => flip(file, at, 1 << dice.below(8)),
            6..11 => flip(file, at, dice.below(256) as u8),
            11..17 => lie(file, at, dice),
            17..20 => widen(file, at, dice),
            20..24 => digits(file, at, dice),
            24..26 => file.truncate(at),
            26..28 => {
                let other = &self.any(dice).body;
                file.truncate(at);
                file.extend(&other[dice.below(other.len() + 1)..]);
            }
            28..30 => {
                let inserted: Vec<u8> = (0..=dice.below(16)).map(|_| dice.below(256) as u8).collect();
                file.splice(at..at, inserted);
            }
            30 => _ = file.drain(at..file.len().min(at + dice.below(64))),
            // What is there, over and over; seldom often, for it takes long.
            _ => {
                let part = file[at..file.len().min(at + 1 + dice.below(24))].to_vec();
                let most = if dice.below(16) == 0 { 4096 } else { 32 };
                file.splice(at..at, part.repeat(dice.below(most)));
            }
        }
    }
}

fn flip(file: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = file.get_mut(at) {
        *byte ^= bits;
    }
}

/// Writes an extreme number over a field of 1, 2, 4 or 8 bytes.
fn lie(file: &mut [u8], at: usize, dice: &mut Dice) {
    let width = 1 << dice.below(4);
    let number = extreme(width, file.len(), dice).to_le_bytes();
    file.iter_mut().skip(at).zip(&number[..width]).for_each(|(to, from)| *to = *from);
}

/// An extreme number of some bytes.
fn extreme(width: usize, len: usize, dice: &mut Dice) -> u64 {
    let largest = u64::MAX >> (64 - 8 * width);
    let len = len as u64;
    let near = dice.below(1 << 16) as u64;
    let extremes =
        [0, 1, 2, largest, largest - 1, largest / 2, largest / 2 + 1, largest / 8, len, len + 1, near];
    extremes[dice.below(extremes.len())]
}

/// Puts an extreme number of four bytes in the place of the next that a pickle writes in one.
fn widen(file: &mut Vec<u8>, at: usize, dice: &mut Dice) {
    let rest = &file[at..];
    if let Some(found) = rest.iter().position(|&byte| byte == b'K').filter(|found| found + 2 <= rest.len()) {
        let number = extreme(4, file.len(), dice).to_le_bytes();
        let instruction = [b"J", &number[..4]].concat();
        file.splice(at + found..at + found + 2, instruction);
    }
}

/// Changes the next digit of a number written out, or puts more behind it.
fn digits(file: &mut Vec<u8>, at: usize, dice: &mut Dice) {
    if let Some(found) = file[at..].iter().position(u8::is_ascii_digit) {
        let more = if dice.below(2) == 0 { 1 } else { 1 + dice.below(20) };
        let digits: Vec<u8> = (0..more).map(|_| b'0' + dice.below(10) as u8).collect();
        file.splice(at + found..at + found + 1, digits);
    }
}

/// A zip archive of stored entries, the first with these bytes instead of its own.
fn archive(entries: &[(String, Vec<u8>)], first: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (i, (name, bytes)) in entries.iter().enumerate() {
        let bytes = if i == 0 { first } else { bytes };
        let [begin, len] = [file.len(), bytes.len()].map(|n| (n as u32).to_le_bytes());
        // Checksum, size packed and unpacked, length of the name; no extra field.
        let described = [&[0; 4][..], &len, &len, &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        file.extend([b"PK\x03\x04", &[0; 10][..], &described, name.as_bytes(), bytes].concat());
        directory
            .extend([b"PK\x01\x02", &[0; 12][..], &described, &[0; 10], &begin, name.as_bytes()].concat());
    }
    let [begin, len] = [file.len(), directory.len()].map(|n| (n as u32).to_le_bytes());
    let count = (entries.len() as u16).to_le_bytes();
    file.extend([&directory[..], b"PK\x05\x06", &[0; 4], &count, &count, &len, &begin, &[0; 2]].concat());
    file
}

/// Chance, by counting.
struct Dice {
    key: u64,
    thrown: u64,
}

impl Dice {
    /// A number below `bound`, which is above 0; the last few bounds of 2^64 are nobody's.
    fn below(&mut self, bound: usize) -> usize {
        self.thrown += 1;
        (key(&[self.key, self.thrown]) % bound as u64) as usize
    }
}
