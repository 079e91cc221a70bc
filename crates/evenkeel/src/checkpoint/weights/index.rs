//! The index of weights that are spread over several files: which tensor is in which file.

use super::error::{Fault, damaged, shown};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Names of tensors and of the files they are in, in the order of the names.
///
/// # Errors
/// If the bytes are no such index, a tensor comes twice, or a file is not simply the name of a file beside the index.
pub fn parse(file: &[u8]) -> Result<Vec<(String, String)>, Fault> {
    let Index { weight_map: Pairs(mut pairs) } =
        serde_json::from_slice(file).map_err(|e| Fault::Damaged(e.to_string()))?;
    pairs.sort();
    if let Some([(twice, _), _]) = pairs.array_windows().find(|[a, b]| a.0 == b.0) {
        return damaged(format!("it names tensor {} twice", shown(twice)));
    }
    match pairs.iter().find(|(_, file)| !is_plain(file)) {
        Some((_, file)) => {
            Err(Fault::Unsupported(format!("it names \"{}\", which is no file beside it", shown(file))))
        }
        None => Ok(pairs),
    }
}

/// Whether a name stays in its folder on every system.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && !name.contains(|c: char| "/\\:".contains(c) || c.is_control())
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// A list and not a map: a name that comes twice has to be seen twice.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_index_is_read() {
        let pairs =
            parse(br#"{"metadata":{"total_size":8},"weight_map":{"b":"2.bin","a":"1.bin"}}"#).unwrap();
        assert_eq!(pairs, [("a".into(), "1.bin".into()), ("b".into(), "2.bin".into())]);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        assert!(refusal("{}").contains("weight_map"));
        assert!(refusal(r#"{"weight_map":{"a":1}}"#).contains("damaged"));
        assert!(refusal(r#"{"weight_map":{"a":"x","#).contains("damaged"));
        assert!(refusal(r#"{"weight_map":{"a":"x","a":"y"}}"#).contains("tensor a twice"));
    }

    #[test]
    fn files_elsewhere_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\\\b", "C:x", "a\\u0000"] {
            let message = refusal(&format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#));
            assert!(message.contains("no file beside it"), "{name}: {message}");
        }
    }
}
