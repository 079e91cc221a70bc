//! Reads TensorBoard's event files: a decoder of its own, which shares nothing with the writer. What is not exactly as
//! the format wants it is a panic.

use std::collections::BTreeMap;
use std::path::Path;

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// A number.
    Scalar(f32),
    /// Lines of text.
    Text(Vec<String>),
}

/// The fields of a message: numbers, and the bytes of what has a length.
#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Everything in the one event file of a folder, in its order: tags, each with the steps and what is said there.
pub(crate) fn read(folder: &Path) -> BTreeMap<String, Vec<(u64, Said)>> {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("not one file: {files:?}") };
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".evenkeel"), "{name}");
    let mut tags: BTreeMap<String, Vec<(u64, Said)>> = BTreeMap::new();
    let mut last = (0, 0.0);
    for (i, event) in records(&std::fs::read(file).unwrap()).iter().enumerate() {
        let fields = fields(event);
        let number = |key| {
            fields.iter().find_map(|(k, f)| {
                if let (true, Field::Number(n)) = (*k == key, f) { Some(*n) } else { None }
            })
        };
        let wall = f64::from_bits(number(1).expect("no wall time"));
        assert!(wall > 1.7e9 && wall >= last.1, "{wall} after {}", last.1);
        let step = number(2).unwrap_or(0);
        assert!(step >= last.0, "step {step} after {}", last.0);
        last = (step, wall);
        let version = bytes(&fields, 3);
        assert_eq!(version, if i == 0 { vec![&b"brain.Event:2"[..]] } else { Vec::new() });
        for summary in bytes(&fields, 5) {
            for value in bytes(&self::fields(summary), 1) {
                let (tag, said) = value_of(value);
                tags.entry(tag).or_default().push((step, said));
            }
        }
    }
    tags
}

fn value_of(value: &[u8]) -> (String, Said) {
    let value = fields(value);
    let tag = String::from_utf8(bytes(&value, 1)[0].to_vec()).unwrap();
    let scalar = value.iter().find(|(key, _)| *key == 2);
    if let Some((_, Field::Number(bits))) = scalar {
        return (tag, Said::Scalar(f32::from_bits(u32::try_from(*bits).unwrap())));
    }
    let tensor = fields(bytes(&value, 8)[0]);
    let texts = bytes(&tensor, 8).iter().map(|t| String::from_utf8(t.to_vec()).unwrap()).collect();
    let plugin = fields(bytes(&fields(bytes(&value, 9)[0]), 1)[0]).len();
    assert_eq!(plugin, 1);
    (tag, Said::Text(texts))
}

fn bytes<'a>(fields: &[(u64, Field<'a>)], key: u64) -> Vec<&'a [u8]> {
    let of = |(k, field): &(u64, Field<'a>)| match field {
        Field::Bytes(bytes) if *k == key => Some(*bytes),
        _ => None,
    };
    fields.iter().filter_map(of).collect()
}

fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let mut fixed = |length: usize| {
            let mut word = [0; 8];
            word[..length].copy_from_slice(take(&mut message, length));
            u64::from_le_bytes(word)
        };
        let field = match key & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => Field::Number(fixed(8)),
            5 => Field::Number(fixed(4)),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(take(&mut message, length))
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for i in 0..10 {
        let byte = take(message, 1)[0];
        value += u64::from(byte % 128) << (7 * i);
        if byte < 128 {
            return value;
        }
    }
    panic!("a number of more than ten bytes");
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(length);
    *bytes = tail;
    head
}

fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !file.is_empty() {
        let length = take(&mut file, 8);
        assert_eq!(word(take(&mut file, 4)), masked(length), "checksum of a length");
        let message = take(&mut file, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(word(take(&mut file, 4)), masked(message), "checksum of a message");
        found.push(message);
    }
    found
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

/// CRC-32C, four bits at a time.
fn masked(bytes: &[u8]) -> u32 {
    const NIBBLES: [u32; 16] = [
        0x0000_0000,
        0x105e_c76f,
        0x20bd_8ede,
        0x30e3_49b1,
        0x417b_1dbc,
        0x5125_dad3,
        0x61c6_9362,
        0x7198_540d,
        0x82f6_3b78,
        0x92a8_fc17,
        0xa24b_b5a6,
        0xb215_72c9,
        0xc38d_26c4,
        0xd3d3_e1ab,
        0xe330_a81a,
        0xf36e_6f75,
    ];
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        crc = NIBBLES[(crc & 15) as usize] ^ (crc >> 4);
        crc = NIBBLES[(crc & 15) as usize] ^ (crc >> 4);
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}
