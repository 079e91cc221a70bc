//! tb/: the figures of the logs as one event file, which TensorBoard shows while the run goes on.
//!
//! The file is a sequence of records: the length of a message (u64, little-endian), the checksum of these eight bytes, the
//! message, its checksum. A checksum is CRC-32C, rotated by 15 bits and moved by a constant, so that one may be stored inside
//! what another is taken of. Messages are protobuf: `Event { wall_time = 1, step = 2, file_version = 3, summary = 5 }` with
//! `Summary { value = 1 }` and `Value { tag = 1, simple_value = 2, tensor = 8, metadata = 9 }`. A record is written in one go
//! and holds what one step says; a figure that is undefined is left out, as it is null in the logs.
//!
//! Resuming cuts the file at the first record past the checkpoint's step, or at one that a killed process left incomplete.

use super::alarms::AlarmLine;
use super::log::{StatsLine, StepLine};
use super::moments::MomentsLine;
use crate::checkpoint::{CheckpointError, files};
use crc::{CRC_32_ISCSI, Crc};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the first record of a file says.
const FILE_VERSION: &str = "brain.Event:2";
/// Numbers of a line that say where it belongs or what its figures were taken over.
const BOOKKEEPING: [&str; 4] = ["step", "layer", "mmr_tokens", "gram_tokens"];

/// Appends records to the event file of a run.
#[derive(Debug)]
pub(super) struct EventLog {
    path: PathBuf,
    file: File,
    /// Digits of a block's index in a tag.
    digits: usize,
}

impl EventLog {
    /// The event file in `folder` for a model of `depth` blocks, keeping what it says of the first `keep_to` steps. None if
    /// it is not wanted; one that is there is cut all the same.
    pub(super) fn open_if(
        wanted: bool,
        folder: &Path,
        keep_to: u64,
        depth: usize,
    ) -> Result<Option<Self>, CheckpointError> {
        let path = match existing(folder)? {
            Some(path) => path,
            None if wanted => {
                std::fs::create_dir_all(folder)
                    .map_err(|source| CheckpointError::Io { path: folder.to_path_buf(), source })?;
                folder.join(format!("events.out.tfevents.{}.evenkeel", wall_time() as u64))
            }
            None => return Ok(None),
        };
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        let kept = if path.exists() { intact(&files::read(&path)?, keep_to) } else { 0 };
        let mut file = File::options().create(true).append(true).open(&path).map_err(io)?;
        // Records are in the order of their steps, so what goes is the end of the file.
        file.set_len(kept as u64).map_err(io)?;
        if kept == 0 {
            file.write_all(&record(&version_event(wall_time()))).map_err(io)?;
        }
        // Two digits at least, so that runs of different depths can be compared.
        let digits = depth.saturating_sub(1).to_string().len().max(2);
        Ok(Some(Self { path, file, digits }).filter(|_| wanted))
    }

    /// The figures of a line of metrics.jsonl, each under its name there.
    pub(super) fn step(&mut self, line: &StepLine) -> Result<(), CheckpointError> {
        self.append(line.step, scalars(line, str::to_string))
    }

    /// The metrics of sites after one step, as `kurtosis/blocks.03.resid`.
    pub(super) fn stats<'a>(
        &mut self,
        step: u64,
        lines: impl IntoIterator<Item = &'a StatsLine>,
    ) -> Result<(), CheckpointError> {
        let of = |line: &StatsLine| {
            let site = padded(&line.site, self.digits);
            scalars(line, |metric| format!("{metric}/{site}"))
        };
        let values = lines.into_iter().flat_map(of).collect();
        self.append(step, values)
    }

    /// What a step did to the moments of sites, as `moments/blocks.03.resid/u42`.
    pub(super) fn moments(&mut self, step: u64, lines: &[MomentsLine]) -> Result<(), CheckpointError> {
        let of = |line: &MomentsLine| {
            let site = padded(&line.site, self.digits);
            scalars(line, |term| format!("moments/{site}/{term}"))
        };
        let values = lines.iter().flat_map(of).collect();
        self.append(step, values)
    }

    /// Alarms that fired after one step, as texts.
    pub(super) fn alarms(&mut self, step: u64, lines: &[AlarmLine]) -> Result<(), CheckpointError> {
        let text = lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
        let values = if text.is_empty() { Vec::new() } else { vec![("alarm".into(), Content::Text(text))] };
        self.append(step, values)
    }

    fn append(&mut self, step: u64, values: Vec<Value>) -> Result<(), CheckpointError> {
        if values.is_empty() {
            return Ok(());
        }
        let bytes = record(&summary_event(wall_time(), step, &values));
        let io = |source| CheckpointError::Io { path: self.path.clone(), source };
        self.file.write_all(&bytes).map_err(io)
    }
}

/// A tag and what is shown there.
type Value = (String, Content);

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Scalar(f32),
    Text(Vec<String>),
}

/// Every figure of a line that is defined, by its key.
fn scalars(line: &impl Serialize, tag: impl Fn(&str) -> String) -> Vec<Value> {
    // Lines are structs with named fields, which always become objects.
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(line) else { return Vec::new() };
    let figures = fields.iter().filter(|(key, _)| !BOOKKEEPING.contains(&key.as_str()));
    figures.filter_map(|(key, v)| Some((tag(key), Content::Scalar(v.as_f64()? as f32)))).collect()
}

/// A site's name with its block's index in so many digits: tags are shown in the order of the alphabet.
fn padded(site: &str, digits: usize) -> String {
    let parts = site.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    match parts {
        Some((layer, place)) => format!("blocks.{layer:0>digits$}.{place}"),
        None => site.to_string(),
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The event file of an earlier start of the run.
fn existing(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    if !folder.exists() {
        return Ok(None);
    }
    let io = |source| CheckpointError::Io { path: folder.to_path_buf(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    let ours = |name: &str| {
        let stamp = name.strip_prefix("events.out.tfevents.").and_then(|n| n.strip_suffix(".evenkeel"));
        stamp.is_some_and(|stamp| !stamp.is_empty() && stamp.bytes().all(|b| b.is_ascii_digit()))
    };
    let ours = entries
        .iter()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| ours(&n.to_string_lossy())));
    Ok(ours.min())
}

/// How many bytes from the beginning are whole records of steps up to `keep_to`; 0 if they are no event file.
fn intact(bytes: &[u8], keep_to: u64) -> usize {
    let mut at = 0;
    while let Some(message) = message_at(&bytes[at..]) {
        if step_of(message).is_none_or(|step| step > keep_to) {
            break;
        }
        at += message.len() + FRAME;
    }
    at
}

/// Bytes of a record around its message: length, its checksum, the message's checksum.
const FRAME: usize = 8 + 4 + 4;

/// The message of the record that `bytes` begin with; `None` if it is not whole.
fn message_at(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*sum) != checksum(length) {
        return None;
    }
    let (message, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    (u32::from_le_bytes(*rest.first_chunk::<4>()?) == checksum(message)).then_some(message)
}

/// The step of an event, 0 where it names none; `None` if it is no protobuf message.
fn step_of(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        let skipped = match key & 7 {
            0 => {
                let value = take_varint(&mut event)?;
                if key >> 3 == 2 {
                    step = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut event)?).ok()?,
            5 => 4,
            _ => return None,
        };
        event = event.split_at_checked(skipped)?.1;
    }
    Some(step)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of varying length: a text, or a message.
fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_int(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3);
    put_varint(out, value);
}

/// The beginning of every event.
fn event_at(wall_time: f64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend_from_slice(&wall_time.to_le_bytes());
    out
}

fn version_event(wall_time: f64) -> Vec<u8> {
    let mut out = event_at(wall_time);
    put_bytes(&mut out, 3, FILE_VERSION.as_bytes());
    out
}

fn summary_event(wall_time: f64, step: u64, values: &[Value]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, content) in values {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, tag.as_bytes());
        match content {
            Content::Scalar(scalar) => {
                value.push(2 << 3 | 5);
                value.extend_from_slice(&scalar.to_le_bytes());
            }
            Content::Text(texts) => put_text(&mut value, texts),
        }
        put_bytes(&mut summary, 1, &value);
    }
    let mut out = event_at(wall_time);
    put_int(&mut out, 2, step);
    put_bytes(&mut out, 5, &summary);
    out
}

/// `tensor = TensorProto { dtype = 1: DT_STRING, tensor_shape = 2 { dim = 2 { size = 1 } }, string_val = 8 }` and
/// `metadata = 9 { plugin_data = 1 { plugin_name = 1: "text" } }`.
fn put_text(value: &mut Vec<u8>, texts: &[String]) {
    let [mut dim, mut shape, mut tensor, mut plugin, mut metadata] = [const { Vec::new() }; 5];
    put_int(&mut dim, 1, texts.len() as u64);
    put_bytes(&mut shape, 2, &dim);
    put_int(&mut tensor, 1, 7);
    put_bytes(&mut tensor, 2, &shape);
    for text in texts {
        put_bytes(&mut tensor, 8, text.as_bytes());
    }
    put_bytes(&mut plugin, 1, b"text");
    put_bytes(&mut metadata, 1, &plugin);
    put_bytes(value, 8, &tensor);
    put_bytes(value, 9, &metadata);
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(message.len() + FRAME);
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(&length).to_le_bytes());
    out.extend_from_slice(message);
    out.extend_from_slice(&checksum(message).to_le_bytes());
    out
}

fn checksum(bytes: &[u8]) -> u32 {
    const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CASTAGNOLI.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by tensorboard's own record writer: scripts/golden/tensorboard_events.py.
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/events.out.tfevents.1764000000.evenkeel");

    /// The same: what a run says of its steps 0 (none), 1, 10 and 300.
    fn golden_records() -> Vec<Vec<u8>> {
        let wall = 1_764_000_000.25;
        let scalar = |tag: &str, value: f32| (tag.to_string(), Content::Scalar(value));
        let texts = ["rms at embed is 3.5000, above 3", "rms at blocks.0.resid is not finite, above 3"];
        let summaries = [
            (1, vec![scalar("train/loss", 5.545_177), scalar("lr", 0.0), scalar("mem/peak", 123_456_789.0)]),
            (10, vec![scalar("kurtosis/blocks.03.resid", 1.25), scalar("moments/embed/u42", -3.0e-12)]),
            (
                300,
                vec![
                    scalar("é", f32::INFINITY),
                    ("alarm".into(), Content::Text(texts.map(String::from).into())),
                ],
            ),
        ];
        let summaries = summaries
            .iter()
            .zip(1..)
            .map(|((step, values), i)| summary_event(wall + f64::from(i), *step, values));
        std::iter::once(version_event(wall)).chain(summaries).map(|message| record(&message)).collect()
    }

    #[test]
    fn bytes_are_those_of_tensorboard() {
        assert!(golden_records().concat() == GOLDEN);
    }

    #[test]
    fn a_file_is_cut_where_a_record_is_torn_damaged_or_too_late() {
        let records = golden_records();
        let mut ends = vec![0];
        ends.extend(records.iter().scan(0, |end, record| {
            *end += record.len();
            Some(*end)
        }));
        for (step, kept) in [(0, 1), (1, 2), (9, 2), (10, 3), (299, 3), (300, 4), (u64::MAX, 4)] {
            assert_eq!(intact(GOLDEN, step), ends[kept], "step {step}");
        }
        for length in 0..GOLDEN.len() {
            let whole = ends.iter().rev().find(|end| **end <= length).unwrap();
            assert_eq!(intact(&GOLDEN[..length], 300), *whole, "{length} bytes");
            let mut damaged = GOLDEN.to_vec();
            damaged[length] ^= 1 << (length % 8);
            assert_eq!(intact(&damaged, 300), *whole, "byte {length}");
        }
    }

    #[test]
    fn a_length_that_lies_reads_nothing_beyond_the_end() {
        for length in [5, 1 << 40, u64::MAX] {
            let length = length.to_le_bytes();
            let bytes = [&length[..], &checksum(&length).to_le_bytes(), b"abcd"].concat();
            assert_eq!(message_at(&bytes), None);
        }
        for event in [&[0x10][..], &[0x2a, 0xff, 0xff], &[0x13], &[0xff; 12], &[0x09, 1, 2]] {
            assert_eq!(step_of(event), None, "{event:?}");
        }
    }

    #[test]
    fn a_run_has_one_file_which_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tb");
        assert!(EventLog::open_if(false, &folder, 0, 2).unwrap().is_none());
        assert!(!folder.exists());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("events.out.tfevents.7.evenkeel"), GOLDEN).unwrap();
        std::fs::write(folder.join("events.out.tfevents.8.elsewhere"), "theirs").unwrap();
        let mut log = EventLog::open_if(true, &folder, 10, 101).unwrap().unwrap();
        let fired = AlarmLine {
            step: 11,
            metric: "rms".into(),
            site: "embed".into(),
            value: None,
            above: 3.0,
            patience: 1,
            action: crate::config::AlarmAction::Log,
        };
        log.alarms(11, &[]).unwrap();
        log.alarms(11, &[fired]).unwrap();
        assert_eq!(log.digits, 3);
        drop(log);
        let bytes = std::fs::read(folder.join("events.out.tfevents.7.evenkeel")).unwrap();
        let kept = golden_records()[..3].concat();
        assert!(bytes.starts_with(&kept));
        assert_eq!(intact(&bytes, 11), bytes.len());
        assert!(bytes.windows(6).any(|w| w == b"finite"));
        // Not wanted any more, and cut all the same; nothing of it left, and begun anew.
        assert!(EventLog::open_if(false, &folder, 10, 2).unwrap().is_none());
        assert_eq!(std::fs::read(folder.join("events.out.tfevents.7.evenkeel")).unwrap(), kept);
        std::fs::write(folder.join("events.out.tfevents.7.evenkeel"), "no records").unwrap();
        EventLog::open_if(true, &folder, 10, 2).unwrap().unwrap();
        let bytes = std::fs::read(folder.join("events.out.tfevents.7.evenkeel")).unwrap();
        assert!(
            step_of(message_at(&bytes).unwrap()) == Some(0) && bytes.ends_with(&bytes[bytes.len() - 4..])
        );
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn tags_are_in_order_and_bookkeeping_is_left_out() {
        assert_eq!(padded("blocks.3.attn.q_norm", 2), "blocks.03.attn.q_norm");
        assert_eq!(padded("blocks.13.resid", 2), "blocks.13.resid");
        assert_eq!(padded("final_norm", 2), "final_norm");
        let line = StatsLine {
            step: 4,
            site: "embed".into(),
            layer: Some(3),
            mmr_tokens: 256,
            gram_tokens: Some(9),
            metrics: crate::metrics::Metrics { rms: Some(0.5), ..Default::default() },
        };
        let expected =
            [("MMR_SKIPPED", 0.0), ("RMS", 0.5)].map(|(tag, v)| (tag.to_string(), Content::Scalar(v)));
        assert_eq!(scalars(&line, str::to_uppercase), expected);
    }
}
