//! The end of a Parquet file: its columns, and where the row groups keep one of them.
//!
//! The last eight bytes are the footer's length and `PAR1`; the footer is a `FileMetaData` of the format's Thrift
//! definition. Of all it says only the column asked for is kept, in a few numbers for each row group.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::codec::Codec;
use super::error::{ParquetFault, damaged, unsupported};
use super::thrift::{Kind, Thrift};

const MAGIC: &[u8; 4] = b"PAR1";
/// The same with an encrypted footer.
const MAGIC_ENCRYPTED: &[u8; 4] = b"PARE";
/// Names of columns in a message.
const SHOWN: usize = 20;
/// The physical type of strings.
const BYTE_ARRAY: i64 = 6;
/// The converted type of decimal numbers, which may be stored as byte arrays.
const DECIMAL: i64 = 5;

/// One column's part of a row group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Its first byte in the file.
    pub(super) start: u64,
    /// Its length in the file, in bytes.
    pub(super) length: u64,
    /// Rows, those without a value included.
    pub(super) rows: u64,
    pub(super) codec: Codec,
}

/// Where a column of strings lies.
#[derive(Debug)]
pub(super) struct Column {
    /// Whether rows may have no value.
    pub(super) optional: bool,
    /// For each row group, in the order of the file.
    pub(super) chunks: Vec<Chunk>,
}

/// Finds the column `key`.
pub(super) fn read<R: Read + Seek>(source: &mut R, key: &str) -> Result<Column, ParquetFault> {
    let length = source.seek(SeekFrom::End(0))?;
    if length < 12 {
        return damaged(format!("expected at least 12 bytes, found {length}"));
    }
    let (mut head, mut tail) = ([0; 4], [0; 8]);
    source.seek(SeekFrom::Start(0))?;
    source.read_exact(&mut head)?;
    source.seek(SeekFrom::Start(length - 8))?;
    source.read_exact(&mut tail)?;
    let (footer, magic) = tail.split_at(4);
    if head == *MAGIC_ENCRYPTED || magic == MAGIC_ENCRYPTED {
        return unsupported("it is encrypted");
    }
    if head != *MAGIC || magic != MAGIC {
        return damaged("expected it to begin and to end with PAR1");
    }
    // Four bytes, by the split above.
    let footer = u64::from(u32::from_le_bytes(footer.try_into().unwrap_or_default()));
    if footer > length - 12 {
        return damaged(format!("a footer of {footer} bytes does not fit into {length}"));
    }
    let body = length - 8 - footer;
    source.seek(SeekFrom::Start(body))?;
    let mut thrift = Thrift::new(BufReader::new(source), footer);
    let mut found: Option<Found> = None;
    let mut chunks = Vec::new();
    thrift.fields(Kind::Struct, |t, field, kind| match field {
        2 => {
            found = Some(find(t, kind, key)?);
            Ok(())
        }
        4 => {
            let Some(found) = &found else { return damaged("its row groups come before its columns") };
            for _ in 0..t.structs(kind)? {
                chunks.push(row_group(t, found.leaf, body)?);
            }
            Ok(())
        }
        8 => unsupported("it is encrypted"),
        _ => t.skip(kind),
    })?;
    let Some(found) = found else { return damaged("its footer names no columns") };
    // One column's chunks do not lie over each other: so their bytes are read once, and no more than there are.
    let bytes = chunks.iter().try_fold(0_u64, |sum, chunk: &Chunk| sum.checked_add(chunk.length));
    if bytes.is_none_or(|bytes| bytes > body) {
        return damaged("the parts of its column are longer than the file");
    }
    Ok(Column { optional: found.optional, chunks })
}

struct Found {
    /// Number of the column among those that hold values.
    leaf: u64,
    optional: bool,
}

/// A node of the schema; groups have children, columns a type.
#[derive(Default)]
struct Node {
    name: String,
    physical: Option<i64>,
    converted: Option<i64>,
    /// 0 for required, 1 for optional, 2 for repeated.
    repetition: i64,
    children: u64,
}

/// Reads the schema, a tree in preorder, and finds the column among the children of its root.
fn find<R: Read>(t: &mut Thrift<R>, kind: Kind, key: &str) -> Result<Found, ParquetFault> {
    let count = t.structs(kind)?;
    let mut found = None;
    let mut names: Vec<String> = Vec::new();
    let mut columns = 0_u64;
    let mut leaves = 0;
    // Children that the groups above the next node still expect, the root's first.
    let mut open: Vec<u64> = Vec::new();
    for at in 0..count {
        let node = node(t)?;
        if at == 0 {
            open.push(node.children);
            continue;
        }
        while open.last() == Some(&0) {
            open.pop();
        }
        let Some(expected) = open.last_mut() else { return damaged("its schema has a column too many") };
        *expected -= 1;
        if open.len() == 1 {
            columns += 1;
            if found.is_none() && node.name == key {
                check(&node, key)?;
                found = Some(Found { leaf: leaves, optional: node.repetition == 1 });
            }
            if names.len() < SHOWN {
                names.push(node.name);
            }
        }
        match node.children {
            0 => leaves += 1,
            children => open.push(children),
        }
    }
    if open.iter().any(|&expected| expected > 0) {
        return damaged("its schema lacks a column");
    }
    found.ok_or_else(|| {
        let more = columns - names.len() as u64;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        ParquetFault::NoColumn { key: key.into(), columns: format!("{}{more}", names.join(", ")) }
    })
}

fn node<R: Read>(t: &mut Thrift<R>) -> Result<Node, ParquetFault> {
    let mut node = Node::default();
    t.fields(Kind::Struct, |t, field, kind| {
        match field {
            1 => node.physical = Some(t.integer(kind)?),
            3 => node.repetition = t.integer(kind)?,
            4 => node.name = t.text(kind)?,
            5 => node.children = t.count(kind)?,
            6 => node.converted = Some(t.integer(kind)?),
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    Ok(node)
}

/// Refuses a column that does not hold one string for each row.
fn check(node: &Node, key: &str) -> Result<(), ParquetFault> {
    let found = match (node.children, node.physical, node.repetition) {
        (1.., ..) => "lists or structs",
        (_, Some(BYTE_ARRAY), 0 | 1) if node.converted == Some(DECIMAL) => "decimal numbers",
        (_, Some(BYTE_ARRAY), 0 | 1) => return Ok(()),
        (_, Some(BYTE_ARRAY), _) => "lists",
        (_, Some(0), _) => "truth values",
        (_, Some(1..=3), _) => "whole numbers",
        (_, Some(4 | 5), _) => "floating-point numbers",
        (_, Some(7), _) => "bytes of a fixed length",
        _ => return damaged(format!("its column `{key}` has no known type")),
    };
    Err(ParquetFault::Type { key: key.into(), found: found.into() })
}

/// Reads a row group; `body` is the length of the file before its footer.
fn row_group<R: Read>(t: &mut Thrift<R>, leaf: u64, body: u64) -> Result<Chunk, ParquetFault> {
    let (mut rows, mut chunk) = (None, None);
    t.fields(Kind::Struct, |t, field, kind| {
        match field {
            1 => {
                for at in 0..t.structs(kind)? {
                    if at == leaf {
                        chunk = Some(column_chunk(t, body)?);
                    } else {
                        t.skip(Kind::Struct)?;
                    }
                }
            }
            3 => rows = Some(t.count(kind)?),
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    match (rows, chunk) {
        (Some(rows), Some(chunk)) if chunk.rows == rows => Ok(chunk),
        (Some(rows), Some(Chunk { rows: values, .. })) => {
            damaged(format!("a row group of {rows} rows has {values} values in the column"))
        }
        _ => damaged("a row group lacks the column or the number of its rows"),
    }
}

fn column_chunk<R: Read>(t: &mut Thrift<R>, body: u64) -> Result<Chunk, ParquetFault> {
    let mut chunk = None;
    t.fields(Kind::Struct, |t, field, kind| {
        match field {
            1 if !t.text(kind)?.is_empty() => return unsupported("its columns are in other files"),
            1 => {}
            3 => chunk = Some(column_metadata(t, kind, body)?),
            8 | 9 => return unsupported("its column is encrypted"),
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    chunk.map_or_else(|| damaged("a row group does not say where the column is"), Ok)
}

fn column_metadata<R: Read>(t: &mut Thrift<R>, kind: Kind, body: u64) -> Result<Chunk, ParquetFault> {
    let (mut physical, mut codec, mut rows, mut length) = (None, None, None, None);
    let (mut data, mut dictionary) = (None, None);
    t.fields(kind, |t, field, kind| {
        match field {
            1 => physical = Some(t.integer(kind)?),
            4 => codec = Some(t.integer(kind)?),
            5 => rows = Some(t.count(kind)?),
            7 => length = Some(t.count(kind)?),
            9 => data = Some(t.count(kind)?),
            11 => dictionary = Some(t.count(kind)?),
            _ => t.skip(kind)?,
        }
        Ok(())
    })?;
    let (Some(codec), Some(rows), Some(length)) = (codec, rows, length) else {
        return damaged("a row group does not say where the column is");
    };
    if physical != Some(BYTE_ARRAY) {
        return damaged("a row group and the schema do not agree on the type of the column");
    }
    // Some writers put 0 where there is no such page.
    let Some(start) = [data, dictionary].into_iter().flatten().filter(|&at| at > 0).min() else {
        return damaged("a row group does not say where the column is");
    };
    if start < MAGIC.len() as u64 || start.checked_add(length).is_none_or(|end| end > body) {
        return damaged(format!("{length} bytes of the column from byte {start} on lie outside of the file"));
    }
    Ok(Chunk { start, length, rows, codec: Codec::of(codec)? })
}
