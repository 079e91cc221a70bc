//! What torch.save makes of tensors: a zip archive with one folder, in it `data.pkl`, a pickle that describes them,
//! and `data/KEY`, the numbers behind them.

use super::error::{Fault, damaged, shown};
use super::values::{Value, Values};
use super::view::{Stored, View};
use super::zip::Entry;
use super::{of_tensor, pickle, zip};
use std::ops::Range;

/// What the format of before PyTorch 1.6 begins with: a pickle of protocol 2 of the number 0x1950a86a20f9469cfc6c.
const LEGACY: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The newest format of the archive that is known.
const NEWEST: u64 = 10;
/// Tensors may share numbers, and two names one tensor. How many bytes they may have together for each byte of the
/// file; more can only be meant to keep a reader busy.
const MOST_SHARED: usize = 64;

/// The tensors of a file, by name.
///
/// # Errors
/// If the bytes are not a whole file of torch.save, or anything but tensors is asked of the reader.
pub fn parse(file: &[u8]) -> Result<Vec<(String, View)>, Fault> {
    if file.starts_with(&LEGACY) {
        return Err(Fault::Legacy);
    }
    let archive = Archive { file, entries: zip::parse(file)? };
    let folder = archive.folder()?;
    archive.check_version(folder)?;
    let Pickled { tensors, names } = pickle::run(archive.get(&format!("{folder}/data.pkl"))?)?;
    let name_of = |tensor| {
        names.iter().find(|(_, of)| *of == tensor).map_or("that it does not name", |(name, _)| *name)
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.into_iter().enumerate() {
        views.push(tensor.view(&archive, folder).map_err(|fault| of_tensor(name_of(index), fault))?);
    }
    let mut seen = 0usize;
    let mut named = Vec::with_capacity(names.len());
    for (name, tensor) in names {
        let Some(view) = views.get(tensor) else {
            return damaged("its pickle names a tensor it does not make");
        };
        seen = seen.saturating_add(view.bytes());
        if seen / MOST_SHARED > file.len() {
            return damaged("its tensors repeat the file's numbers too often");
        }
        named.push((name.to_string(), view.clone()));
    }
    Ok(named)
}

struct Archive<'a> {
    file: &'a [u8],
    entries: Vec<Entry<'a>>,
}

impl<'a> Archive<'a> {
    /// The one folder that everything is in.
    fn folder(&self) -> Result<&'a str, Fault> {
        let folder =
            |entry: &Entry<'a>| entry.name.strip_suffix("/data.pkl").filter(|name| !name.contains('/'));
        let mut folders = self.entries.iter().filter_map(folder);
        match (folders.next(), folders.next()) {
            (Some(folder), None) => Ok(folder),
            (None, _) => damaged("it is a zip archive without the data.pkl that torch.save writes"),
            (Some(_), Some(_)) => damaged("it is a zip archive with more than one data.pkl"),
        }
    }

    fn check_version(&self, folder: &str) -> Result<(), Fault> {
        let version = std::str::from_utf8(self.get(&format!("{folder}/version"))?).unwrap_or_default().trim();
        if version.parse::<u64>().is_ok_and(|version| version > NEWEST) {
            return Err(Fault::Unsupported(format!(
                "it has version {version} of PyTorch's archives, above {NEWEST}"
            )));
        }
        if version.parse::<u64>().is_err() {
            return damaged(format!("it gives its version as \"{}\"", shown(version)));
        }
        match self.find(&format!("{folder}/byteorder")).and_then(|bytes| self.file.get(bytes)) {
            None | Some(b"little") => Ok(()),
            Some(b"big") => {
                Err(Fault::Unsupported("its numbers were written on a big-endian machine".into()))
            }
            Some(_) => damaged("it gives no known byte order"),
        }
    }

    fn find(&self, name: &str) -> Option<Range<usize>> {
        let at = self.entries.binary_search_by(|entry| entry.name.cmp(name)).ok()?;
        self.entries.get(at).map(|entry| entry.bytes.clone())
    }

    fn get(&self, name: &str) -> Result<&'a [u8], Fault> {
        match self.find(name).and_then(|bytes| self.file.get(bytes)) {
            Some(bytes) => Ok(bytes),
            None => damaged(format!("it lacks its entry {}", shown(name))),
        }
    }
}

/// The classes and functions that a pickle of tensors needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Global {
    /// torch._utils._rebuild_tensor_v2.
    Tensor,
    /// torch._utils._rebuild_parameter.
    Parameter,
    /// collections.OrderedDict.
    OrderedDict,
    /// torch.FloatStorage and its like.
    Storage(Stored),
}

impl Global {
    /// The one of that name.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn find(module: &str, name: &str) -> Result<Self, Fault> {
        Ok(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_parameter") => Global::Parameter,
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "FloatStorage") => Global::Storage(Stored::F32),
            ("torch", "HalfStorage") => Global::Storage(Stored::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Stored::BF16),
            ("torch", "DoubleStorage") => Global::Storage(Stored::F64),
            ("torch", "LongStorage") => Global::Storage(Stored::I64),
            ("torch", "IntStorage") => Global::Storage(Stored::I32),
            ("torch", "ShortStorage") => Global::Storage(Stored::I16),
            ("torch", "CharStorage") => Global::Storage(Stored::I8),
            ("torch", "ByteStorage") => Global::Storage(Stored::U8),
            ("torch", "BoolStorage") => Global::Storage(Stored::Bool),
            _ => return Err(Fault::Global(format!("{}.{}", shown(module), shown(name)))),
        })
    }
}

/// The numbers behind tensors, as a pickle describes them.
#[derive(Clone, Copy, Debug)]
struct Storage<'a> {
    stored: Stored,
    key: &'a str,
    /// Numbers.
    len: usize,
}

/// A tensor whose sizes have not been looked at yet: most pickles make as many as they name, but none has to.
#[derive(Clone, Copy, Debug)]
struct Rebuilt<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Value,
    strides: Value,
}

/// What a pickle has made so far.
#[derive(Default)]
pub struct Torch<'a> {
    storages: Vec<Storage<'a>>,
    tensors: Vec<Rebuilt<'a>>,
}

impl<'a> Torch<'a> {
    /// The storage that a persistent id describes: ("storage", class, key, device, numbers).
    ///
    /// # Errors
    /// If it is none.
    pub fn storage(&mut self, values: &Values<'a>, id: Value) -> Result<Value, Fault> {
        let described = || match *values.members(id)? {
            [kind, Value::Global(Global::Storage(stored)), key, _device, len]
                if values.as_text(kind) == Some("storage") =>
            {
                Some(Storage { stored, key: values.as_text(key)?, len: values.as_size(len)? })
            }
            _ => None,
        };
        let Some(storage) = described() else {
            return damaged("its pickle asks for a storage it does not describe");
        };
        self.storages.push(storage);
        Ok(Value::Storage((self.storages.len() - 1) as u32))
    }

    /// What a function of the allow-list makes of its arguments.
    ///
    /// # Errors
    /// If they are not those that torch.save writes.
    pub fn call(
        &mut self,
        values: &mut Values<'a>,
        function: Value,
        arguments: Value,
    ) -> Result<Value, Fault> {
        match (function, values.members(arguments)) {
            (Value::Global(Global::OrderedDict), Some([])) => Ok(values.dict()),
            (Value::Global(Global::Parameter), Some([tensor @ Value::Tensor(_), _requires_grad, _hooks])) => {
                Ok(*tensor)
            }
            (
                Value::Global(Global::Tensor),
                Some(&[Value::Storage(storage), offset, shape, strides, _requires_grad, _hooks, ..]),
            ) => {
                let storage = self.storages.get(storage as usize).copied();
                let (Some(storage), Some(offset)) = (storage, values.as_size(offset)) else {
                    return damaged("its pickle makes a tensor from a place that is none");
                };
                self.tensors.push(Rebuilt { storage, offset, shape, strides });
                Ok(Value::Tensor((self.tensors.len() - 1) as u32))
            }
            _ => damaged("its pickle calls a function with arguments that torch.save does not write"),
        }
    }

    /// The tensors in the dictionary that a pickle leaves, or in its entry "state_dict" or "model" where it holds none.
    ///
    /// # Errors
    /// If there are none, a name comes twice, or a tensor's sizes are none.
    pub fn result(&self, values: &Values<'a>, result: Value) -> Result<Pickled<'a>, Fault> {
        let mut names = named(values, result)?;
        for inner in ["state_dict", "model"] {
            if names.is_empty() {
                let is_inner = |(key, _): &(Value, Value)| values.as_text(*key) == Some(inner);
                let dict = values.entries(result).find(is_inner).map_or(Value::Other, |(_, dict)| dict);
                names = named(values, dict)?;
            }
        }
        if names.is_empty() {
            return Err(Fault::Unsupported("its pickle is no dictionary of tensors by name".into()));
        }
        names.sort_unstable();
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a.0 == b.0) {
            return damaged(format!("its pickle holds tensor {} twice", shown(twice.0)));
        }
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let (Some(shape), Some(strides)) =
                (values.as_sizes(tensor.shape), values.as_sizes(tensor.strides))
            else {
                return damaged("its pickle makes a tensor of a shape that is none");
            };
            tensors.push(Described { storage: tensor.storage, offset: tensor.offset, shape, strides });
        }
        Ok(Pickled { tensors, names })
    }
}

/// The tensors in a dictionary and their names; what else is in it is passed over.
fn named<'a>(values: &Values<'a>, dict: Value) -> Result<Vec<(&'a str, usize)>, Fault> {
    let mut names = Vec::new();
    for (key, value) in values.entries(dict) {
        if let Value::Tensor(tensor) = value {
            match values.as_text(key) {
                Some(name) => names.push((name, tensor as usize)),
                None => return damaged("its pickle holds a tensor under what is no name"),
            }
        }
    }
    Ok(names)
}

/// What a pickle describes.
#[derive(Debug)]
pub struct Pickled<'a> {
    tensors: Vec<Described<'a>>,
    /// Names, sorted, and which tensor each is.
    names: Vec<(&'a str, usize)>,
}

impl Pickled<'_> {
    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| *name)
    }
}

/// A tensor as a pickle describes it.
#[derive(Debug)]
struct Described<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Described<'_> {
    /// The tensor in the file, if its numbers are there.
    fn view(self, archive: &Archive, folder: &str) -> Result<View, Fault> {
        let Storage { stored, key, len } = self.storage;
        let entry = format!("{folder}/data/{key}");
        let Some(bytes) = archive.find(&entry) else {
            return damaged(format!("it lacks its entry {}", shown(&entry)));
        };
        if len.checked_mul(stored.size()) != Some(bytes.len()) {
            return damaged(format!(
                "entry {} has {} bytes instead of {len} numbers of {}",
                shown(&entry),
                bytes.len(),
                stored.name()
            ));
        }
        View::strided(stored, self.shape, self.strides, self.offset, bytes, archive.file.len())
    }
}
