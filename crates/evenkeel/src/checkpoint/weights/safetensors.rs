//! The header of a safetensors file: 8 bytes of length, JSON, then the numbers of all tensors without a gap.

use super::error::{Fault, damaged, shown};
use super::view::{Stored, View};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The longest header that is read, as in the reference implementation.
const LONGEST_HEADER: usize = 100_000_000;

/// The tensors of a file, by name.
///
/// # Errors
/// If the bytes are not a whole safetensors file, or a tensor has a dtype that is not read.
pub fn parse(file: &[u8]) -> Result<Vec<(String, View)>, Fault> {
    let Some((length, rest)) = file.split_first_chunk() else {
        return damaged(format!("{} bytes are too few for a safetensors file", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .filter(|&n| n <= LONGEST_HEADER)
        .and_then(|n| rest.get(..n))
        .and_then(|bytes| std::str::from_utf8(bytes).ok());
    let Some(header) = header.filter(|text| text.starts_with('{')) else {
        return damaged(format!(
            "its first 8 bytes announce a JSON header of {length} bytes, which {} bytes do not begin with",
            rest.len()
        ));
    };
    let Header(mut tensors) =
        serde_json::from_str(header).map_err(|e| Fault::Damaged(format!("its header: {e}")))?;
    check_names(&mut tensors)?;
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let data = rest.len() - header.len();
    let mut filled = 0;
    let mut views = Vec::with_capacity(tensors.len());
    for (name, Described { dtype, shape, data_offsets: (begin, end) }) in tensors {
        if begin != filled || end < begin || end > data {
            return damaged(format!(
                "tensor {} is said to lie at bytes {begin} to {end}, where {filled} to at most {data} are left",
                shown(&name)
            ));
        }
        filled = end;
        let Some(stored) = stored(&dtype) else {
            return Err(Fault::Dtype { tensor: shown(&name), dtype: shown(&dtype) });
        };
        let base = file.len() - data;
        let view = View::contiguous(stored, shape, base + begin..base + end)
            .map_err(|fault| super::of_tensor(&name, fault))?;
        views.push((name, view));
    }
    match filled == data {
        true => Ok(views),
        false => damaged(format!("its tensors fill {filled} bytes and it holds {data}")),
    }
}

fn check_names(tensors: &mut [(String, Described)]) -> Result<(), Fault> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    match tensors.array_windows().find(|[a, b]| a.0 == b.0) {
        Some([twice, _]) => damaged(format!("it describes tensor {} twice", shown(&twice.0))),
        None => Ok(()),
    }
}

fn stored(dtype: &str) -> Option<Stored> {
    use Stored::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
    [F32, F16, BF16, F64, I64, I32, I16, I8, U8, Bool].into_iter().find(|s| s.name() == dtype)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// A list and not a map: a name that comes twice has to be seen twice.
struct Header(Vec<(String, Described)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "__metadata__" => _ = map.next_value::<IgnoredAny>()?,
                        _ => tensors.push((name, map.next_value()?)),
                    }
                }
                Ok(Header(tensors))
            }
        }
        from.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    fn refusal(file: &[u8]) -> String {
        parse(file).unwrap_err().to_string()
    }

    /// Entries `name: dtype, shape, begin, end`, refused with a message that contains all of `words`.
    fn refused(entries: &[(&str, &str, &str, u64, u64)], data: usize, words: &[&str]) {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, dtype, shape, begin, end)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        let message = refusal(&file(&format!("{{{}}}", entries.join(",")), data));
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }

    #[test]
    fn a_file_that_was_cut_is_refused_wherever() {
        let whole = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#, 8);
        let views = parse(&whole).unwrap();
        assert_eq!((views[0].1.shape(), views[0].1.bytes()), (&[2][..], 8));
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len}");
        }
        assert!(refusal(&[whole, vec![0]].concat()).contains("fill 8 bytes and it holds 9"));
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let mut long = file("{}", 0);
        long[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(refusal(&long).contains("a JSON header of 1152921504606846976 bytes"));
        assert!(refusal(&file("[]", 0)).contains("do not begin with"));
        assert!(refusal(&file("{\"a\":", 0)).contains("its header"));
        assert!(refusal(&file(r#"{"a":1}"#, 0)).contains("its header"));
        assert!(refusal(&file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0)).contains("its header"));
        let metadata = r#"{"__metadata__":{"format":"pt"}}"#;
        assert!(parse(&file(metadata, 0)).unwrap().is_empty());
    }

    #[test]
    fn offsets_that_lie_are_refused() {
        refused(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[2]", 4, 12)], 12, &["tensor b", "bytes 4 to 12"]);
        refused(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[1]", 12, 16)], 16, &["tensor b", "12 to 16"]);
        refused(&[("a", "F32", "[3]", 0, 12)], 8, &["bytes 0 to 12", "at most 8"]);
        refused(&[("a", "F32", "[1]", 8, 4)], 8, &["bytes 8 to 4"]);
        refused(&[("a", "F32", "[0]", 0, 0), ("b", "F32", "[1]", 0, u64::MAX)], 8, &["tensor b"]);
    }

    #[test]
    fn shapes_that_lie_are_refused() {
        refused(&[("a", "F32", "[3]", 0, 8)], 8, &["tensor a", "does not fill 8 bytes"]);
        refused(&[("a", "F32", "[4294967296,4294967296]", 0, 8)], 8, &["tensor a", "can be counted"]);
        refused(&[("a", "F64", "[4611686018427387904]", 0, 0)], 0, &["does not fill 0 bytes"]);
        refused(&[("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4)], 4, &["9 axes"]);
    }

    #[test]
    fn names_twice_and_unknown_dtypes_are_refused() {
        refused(&[("a", "U8", "[1]", 0, 1), ("a", "U8", "[1]", 1, 2)], 2, &["tensor a twice"]);
        refused(&[("a", "F8_E4M3", "[1]", 0, 1)], 1, &["tensor a as F8_E4M3"]);
    }
}
