//! Damaged files, made from sound ones by chance, and what readers do with them.
//!
//! A case is a function of the seed and its number: a sound file, changed once or more. Every reader gets every
//! case, whatever kind of file it began as.

use crate::memory::peak_of;
use evenkeel::Hint;
use evenkeel::checkpoint::weights::{Fault, View, index, pickle, safetensors, torch, zip};
use evenkeel::random::key;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How much a reader may hold: this many bytes for each of the file's, and a MiB.
pub(crate) const BYTES_PER_BYTE: usize = 64;

/// Reads all there is in a file; whether it was accepted.
type Reader = fn(&[u8]) -> Result<(), Fault>;

pub(crate) const READERS: [(&str, Reader); 4] = [
    ("safetensors", read_safetensors),
    ("torch", read_torch),
    ("pickle", read_pickle),
    ("index", read_index),
];

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
    for ((name, reader), accepted) in READERS.iter().zip(&mut outcome.accepted) {
        let (result, held) = peak_of(|| catch_unwind(AssertUnwindSafe(|| reader(file))));
        match result {
            Err(_) => return Err(format!("the reader of {name} panicked")),
            Ok(Err(fault)) => assert!(!fault.to_string().is_empty() && !fault.hint().is_empty()),
            Ok(Ok(())) => *accepted = true,
        }
        if held > BYTES_PER_BYTE * file.len() + (1 << 20) {
            return Err(format!("the reader of {name} held {held} bytes for a file of {}", file.len()));
        }
        outcome.held = outcome.held.max(held);
    }
    Ok(outcome)
}

/// Sound files of every kind.
pub(crate) struct Seeds(pub(crate) Vec<Vec<u8>>);

impl Seeds {
    pub(crate) fn new() -> Self {
        let state: &[u8] = include_bytes!("../../tests/golden/weights/state.bin");
        let nested: &[u8] = include_bytes!("../../tests/golden/weights/nested.bin");
        let mut seeds = vec![state.to_vec(), nested.to_vec()];
        for file in [state, nested] {
            let entries = zip::parse(file).unwrap_or_default();
            let described = entries.iter().filter(|entry| entry.name.ends_with("data.pkl"));
            seeds.extend(described.map(|entry| file[entry.bytes.clone()].to_vec()));
        }
        seeds.push(include_bytes!("../../tests/golden/weights/state.safetensors").to_vec());
        for header in [
            r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
            r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},
                "b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"U8","shape":[0,9],"data_offsets":[16,16]}} "#,
        ] {
            let data = if header.contains("BF16") { 16 } else { 24 };
            seeds.push(
                [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![63; data]].concat(),
            );
        }
        for text in [
            r#"{"metadata":{"total_size":24},"weight_map":{"a":"model-1-of-2.safetensors","b":"model-2-of-2.safetensors"}}"#,
            r#"{"weight_map": {"layers.0.weight": "x.bin", "layers.0.bias": "x.bin", "head": "y.bin"}}"#,
        ] {
            seeds.push(text.into());
        }
        Self(seeds)
    }

    /// The file of a case.
    pub(crate) fn case(&self, seed: u64, number: u64) -> Vec<u8> {
        let mut dice = Dice { key: key(&[seed, number]), thrown: 0 };
        let mut file = self.any(&mut dice).clone();
        // One change half of the time, two a quarter of the time, and so on.
        self.change(&mut file, &mut dice);
        while dice.below(2) == 0 {
            self.change(&mut file, &mut dice);
        }
        file
    }

    fn any(&self, dice: &mut Dice) -> &Vec<u8> {
        &self.0[dice.below(self.0.len())]
    }

    fn change(&self, file: &mut Vec<u8>, dice: &mut Dice) {
        let at = dice.below(file.len() + 1);
        match dice.below(32) {
            0..6 => flip(file, at, 1 << dice.below(8)),
            6..11 => flip(file, at, dice.below(256) as u8),
            11..20 => lie(file, at, dice),
            20..24 => digit(file, at, dice),
            24..26 => file.truncate(at),
            26..28 => {
                let other = self.any(dice);
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
    let largest = u64::MAX >> (64 - 8 * width);
    let len = file.len() as u64;
    let extremes = [
        0,
        1,
        2,
        largest,
        largest - 1,
        largest / 2,
        largest / 2 + 1,
        largest / 8,
        len,
        len - len.min(1),
        len + 1,
        at as u64,
        dice.below(1 << 16) as u64,
    ];
    let number = extremes[dice.below(extremes.len())].to_le_bytes();
    file.iter_mut().skip(at).zip(&number[..width]).for_each(|(to, from)| *to = *from);
}

/// Changes the next digit of a number written out.
fn digit(file: &mut [u8], at: usize, dice: &mut Dice) {
    if let Some(byte) = file.iter_mut().skip(at).find(|byte| byte.is_ascii_digit()) {
        *byte = b'0' + dice.below(10) as u8;
    }
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
