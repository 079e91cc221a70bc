//! The part of the zip format that torch.save writes: entries that are stored as they are, with or without zip64.
//!
//! A zip file is read from its end: the end record says where the central directory is, which says where the entries
//! are. Each of them has a second header before its bytes, which has to agree.

use super::error::{Fault, damaged, shown};
use std::ops::Range;

const END: u32 = 0x0605_4b50;
const END_LEN: usize = 22;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const LOCATOR64_LEN: usize = 20;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// The longest comment behind an end record.
const LONGEST_COMMENT: usize = 0xffff;
/// What a 32-bit field holds whose value is in a zip64 field.
const IN_64: u64 = 0xffff_ffff;
/// Flags of an entry: encrypted; sizes behind the bytes and not before them; parts encrypted.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const SIZES_BEHIND: u16 = 1 << 3;

/// One file in the archive.
#[derive(Debug, PartialEq)]
pub struct Entry<'a> {
    /// Its path.
    pub name: &'a str,
    /// Where its bytes are in the archive.
    pub bytes: Range<usize>,
}

/// All entries, sorted by name.
///
/// # Errors
/// If the bytes are not a whole zip file, or an entry is compressed, encrypted, there twice or laid over another.
pub fn parse(file: &[u8]) -> Result<Vec<Entry<'_>>, Fault> {
    let directory = find_directory(file)?;
    let mut entries = Vec::new();
    let mut taken = Vec::new();
    let mut at = directory.bytes.start;
    for _ in 0..directory.entries {
        let central = Central::read(file, at, directory.bytes.end)?;
        at = central.end;
        let (entry, begin) = central.locate(file, directory.bytes.start)?;
        taken.push(begin..entry.bytes.end);
        entries.push(entry);
    }
    if at != directory.bytes.end {
        return damaged("its zip directory is longer than its entries");
    }
    taken.sort_by_key(|range| (range.start, range.end));
    if taken.array_windows().any(|[a, b]| a.end > b.start) {
        return damaged("entries of the zip archive lie over each other");
    }
    entries.sort_by(|a, b| a.name.cmp(b.name));
    match entries.array_windows().find(|[a, b]| a.name == b.name) {
        Some([twice, _]) => damaged(format!("the zip archive holds {} twice", shown(twice.name))),
        None => Ok(entries),
    }
}

struct Directory {
    bytes: Range<usize>,
    entries: u64,
}

fn find_directory(file: &[u8]) -> Result<Directory, Fault> {
    let Some(last) = file.len().checked_sub(END_LEN) else {
        return damaged("it is too short for a zip archive");
    };
    let first = last.saturating_sub(LONGEST_COMMENT);
    let is_end = |&at: &usize| {
        field32(file, at) == Some(END) && field16(file, at + 20).map(usize::from) == Some(last - at)
    };
    let Some(end) = (first..=last).rev().find(is_end) else {
        return damaged("it has no end of a zip archive; it was cut, or is another format");
    };
    let disks = field32(file, end + 4).unwrap_or(1);
    let here = field16(file, end + 8).unwrap_or_default();
    let mut entries = u64::from(field16(file, end + 10).unwrap_or_default());
    let mut size = u64::from(field32(file, end + 12).unwrap_or_default());
    let mut begin = u64::from(field32(file, end + 16).unwrap_or_default());
    let mut limit = end;
    if disks != 0 || u64::from(here) != entries {
        return Err(Fault::Unsupported("it is one part of a zip archive in several".into()));
    }
    if entries == 0xffff || size == IN_64 || begin == IN_64 {
        limit = find_end64(file, end)?;
        let of = |offset: usize| field64(file, limit + offset).unwrap_or_default();
        if field64(file, limit + 16) != Some(0) || of(24) != of(32) {
            return Err(Fault::Unsupported("it is one part of a zip archive in several".into()));
        }
        (entries, size, begin) = (of(32), of(40), of(48));
    }
    let bytes = range(begin, size).filter(|bytes| bytes.end <= limit);
    match bytes {
        Some(bytes) => Ok(Directory { bytes, entries }),
        None => {
            damaged(format!("its zip directory is said to be {size} bytes from {begin}, where it cannot be"))
        }
    }
}

/// Where the zip64 end record is, which the locator before the end record says.
fn find_end64(file: &[u8], end: usize) -> Result<usize, Fault> {
    let locator = end.checked_sub(LOCATOR64_LEN).filter(|&at| field32(file, at) == Some(LOCATOR64));
    let at = locator.and_then(|at| usize::try_from(field64(file, at + 8)?).ok());
    match at.filter(|&at| field32(file, at) == Some(END64) && at.saturating_add(56) <= end - LOCATOR64_LEN) {
        Some(at) => Ok(at),
        None => damaged("its zip64 end record is not where it is said to be"),
    }
}

/// An entry as the directory describes it.
struct Central<'a> {
    name: &'a str,
    header: u64,
    size: u64,
    flags: u16,
    /// Where the description ends.
    end: usize,
}

impl<'a> Central<'a> {
    fn read(file: &'a [u8], at: usize, limit: usize) -> Result<Self, Fault> {
        let cut = || Fault::Damaged("its zip directory has fewer entries than it says".into());
        let directory = file.get(at..limit).ok_or_else(cut)?;
        if field32(directory, 0) != Some(CENTRAL) {
            return Err(cut());
        }
        let short = |offset| field16(directory, offset).ok_or_else(cut);
        let long = |offset| field32(directory, offset).map(u64::from).ok_or_else(cut);
        let name_end = 46 + usize::from(short(28)?);
        let extra_end = name_end + usize::from(short(30)?);
        let len = extra_end + usize::from(short(32)?);
        let name = directory.get(46..name_end).ok_or_else(cut)?;
        let extra = directory.get(name_end..extra_end).ok_or_else(cut)?;
        if directory.len() < len {
            return Err(cut());
        }
        let Ok(name) = std::str::from_utf8(name) else {
            return damaged("the name of an entry of the zip archive is not UTF-8");
        };
        let (flags, method) = (short(8)?, short(10)?);
        if method != 0 || flags & ENCRYPTED != 0 {
            let how = if method == 0 { "encrypted" } else { "compressed" };
            return Err(Fault::Unsupported(format!(
                "{} in it is {how}, and torch.save stores every entry as it is",
                shown(name)
            )));
        }
        let mut wide = wide_fields(extra);
        let mut full = |short: u64| match short {
            IN_64 => wide.next().ok_or_else(|| Fault::Damaged(format!("{} lacks a zip64 size", shown(name)))),
            _ => Ok(short),
        };
        let (unpacked, packed, header) = (full(long(24)?)?, full(long(20)?)?, full(long(42)?)?);
        if unpacked != packed || short(34)? != 0 {
            return damaged(format!("the sizes of {} do not agree", shown(name)));
        }
        Ok(Self { name, header, size: packed, flags, end: at + len })
    }

    /// The entry, whose header and bytes have to lie before the directory, and where its header begins.
    fn locate(self, file: &'a [u8], limit: usize) -> Result<(Entry<'a>, usize), Fault> {
        let found = || {
            let begin = usize::try_from(self.header).ok()?;
            let header = file.get(begin..limit).filter(|header| field32(header, 0) == Some(LOCAL))?;
            let name_end = 30 + usize::from(field16(header, 26)?);
            let same_name = header.get(30..name_end)? == self.name.as_bytes();
            let same_size = field16(header, 6)? & SIZES_BEHIND != 0
                || [18, 22].into_iter().all(|at| {
                    field32(header, at).map(u64::from).is_some_and(|size| size == IN_64 || size == self.size)
                });
            let alike = field16(header, 8)? == 0 && (field16(header, 6)? ^ self.flags) & ENCRYPTED == 0;
            let data = begin + name_end + usize::from(field16(header, 28)?);
            let bytes = range(data as u64, self.size).filter(|bytes| bytes.end <= limit)?;
            (same_name && same_size && alike).then_some((Entry { name: self.name, bytes }, begin))
        };
        match found() {
            Some(found) => Ok(found),
            None => damaged(format!("{} is not where the zip directory says", shown(self.name))),
        }
    }
}

/// The numbers of the zip64 field among the extra fields of an entry; none if it has no such field.
fn wide_fields(extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut rest = extra;
    let mut wide: &[u8] = &[];
    while let (Some(id), Some(len)) = (field16(rest, 0), field16(rest, 2)) {
        let Some((field, after)) = rest.get(4..).and_then(|body| body.split_at_checked(usize::from(len)))
        else {
            break;
        };
        if id == 1 {
            wide = field;
        }
        rest = after;
    }
    wide.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b))
}

fn range(begin: u64, len: u64) -> Option<Range<usize>> {
    let begin = usize::try_from(begin).ok()?;
    Some(begin..begin.checked_add(usize::try_from(len).ok()?)?)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn field16(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn field32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn field64(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An archive of stored entries; with `wide` every size and place is in zip64 fields.
    pub(crate) fn archive(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        let short = |n: usize| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
        for (name, bytes) in entries {
            let begin = file.len();
            let numbers = [bytes.len(), bytes.len(), begin].map(|n| (n as u64).to_le_bytes()).concat();
            let extra = if wide { [&[1, 0, 24, 0][..], &numbers].concat() } else { Vec::new() };
            let tail = [name.len() as u16, extra.len() as u16].map(u16::to_le_bytes).concat();
            let sizes = [[0; 4], short(bytes.len()), short(bytes.len())].concat();
            file.extend(
                [&LOCAL.to_le_bytes()[..], &[0; 10], &sizes, &tail, name.as_bytes(), &extra, bytes].concat(),
            );
            let head =
                [&CENTRAL.to_le_bytes()[..], &[0; 12], &sizes, &tail, &[0; 10], &short(begin)].concat();
            directory.extend([&head, name.as_bytes(), &extra].concat());
        }
        let (begin, end, count) = (file.len(), file.len() + directory.len(), entries.len());
        file.extend(&directory);
        if wide {
            let numbers = [count, count, directory.len(), begin].map(|n| (n as u64).to_le_bytes()).concat();
            file.extend([&END64.to_le_bytes()[..], &44u64.to_le_bytes(), &[0; 12], &numbers].concat());
            file.extend(
                [&LOCATOR64.to_le_bytes()[..], &[0; 4], &(end as u64).to_le_bytes(), &[1, 0, 0, 0]].concat(),
            );
        }
        let count = [count as u16; 2].map(u16::to_le_bytes).concat();
        file.extend(
            [&END.to_le_bytes()[..], &[0; 4], &count, &short(directory.len()), &short(begin), &[0; 2]]
                .concat(),
        );
        file
    }

    fn refusal(file: &[u8]) -> String {
        parse(file).unwrap_err().to_string()
    }

    /// Where a signature is for the n-th time.
    fn find(file: &[u8], signature: u32, n: usize) -> usize {
        (0..file.len()).filter(|&at| field32(file, at) == Some(signature)).nth(n).unwrap()
    }

    #[test]
    fn entries_are_found_with_and_without_zip64() {
        for wide in [false, true] {
            let file = archive(&[("x/b", b"two"), ("x/a", b"")], wide);
            let entries = parse(&file).unwrap();
            assert_eq!(entries.iter().map(|e| e.name).collect::<Vec<_>>(), ["x/a", "x/b"]);
            assert_eq!(&file[entries[1].bytes.clone()], b"two");
            for len in 0..file.len() {
                assert!(parse(&file[..len]).is_err(), "{wide} {len}");
            }
            assert_eq!(parse(&archive(&[], wide)).unwrap(), []);
        }
    }

    #[test]
    fn what_is_not_stored_plainly_is_refused() {
        let file = archive(&[("x/a", b"data")], false);
        let central = find(&file, CENTRAL, 0);
        let with = |at: usize, value: u8| {
            let mut file = file.clone();
            file[at] = value;
            refusal(&file)
        };
        assert!(with(central + 10, 8).contains("x/a in it is compressed"));
        assert!(with(central + 8, 1).contains("x/a in it is encrypted"));
        assert!(with(8, 8).contains("x/a is not where the zip directory says"));
        assert!(with(6, 1).contains("x/a is not where"));
    }

    #[test]
    fn a_directory_that_lies_is_refused() {
        assert!(refusal(&archive(&[("a", b"1"), ("a", b"2")], false)).contains("holds a twice"));
        let file = archive(&[("a", b"1234"), ("b", b"5678")], false);
        let (second, end) = (find(&file, CENTRAL, 1), find(&file, END, 0));
        let with = |changes: &[(usize, u8)]| {
            let mut file = file.clone();
            changes.iter().for_each(|&(at, value)| file[at] = value);
            refusal(&file)
        };
        assert!(with(&[(30, b'c')]).contains("a is not where"));
        assert!(with(&[(second + 42, 0)]).contains("b is not where"));
        assert!(with(&[(second + 20, 5), (second + 24, 5)]).contains("b is not where"));
        assert!(with(&[(second + 24, 5)]).contains("sizes of b do not agree"));
        assert!(with(&[(second + 27, 0x7f), (second + 23, 0x7f)]).contains("b is not where"));
        assert!(with(&[(end + 8, 3), (end + 10, 3)]).contains("fewer entries"));
        assert!(with(&[(end + 8, 1), (end + 10, 1)]).contains("longer than its entries"));
        assert!(with(&[(end + 19, 0x7f)]).contains("where it cannot be"));
        assert!(with(&[(end + 4, 1)]).contains("in several"));
    }

    #[test]
    fn entries_over_each_other_are_refused() {
        // Entry a holds all of entry b, header and bytes.
        let inner = archive(&[("b", b"5678")], false);
        let b = &inner[..30 + 1 + 4];
        let mut file = archive(&[("a", b), ("b", b"5678")], false);
        let second = find(&file, CENTRAL, 1);
        file[second + 42..second + 46].copy_from_slice(&31u32.to_le_bytes());
        assert!(refusal(&file).contains("lie over each other"));
    }

    #[test]
    fn a_zip64_end_elsewhere_is_refused() {
        let file = archive(&[("a", b"1")], true);
        let locator = find(&file, LOCATOR64, 0);
        for (at, value) in [(locator, 0), (locator + 8, 0), (locator + 15, 0xff)] {
            let mut file = file.clone();
            file[at] = value;
            assert!(refusal(&file).contains("zip64 end record"));
        }
    }
}
