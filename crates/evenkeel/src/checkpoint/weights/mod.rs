//! Weights in the files that Hugging Face repositories hold: safetensors, PyTorch's .bin, either in one file or in
//! several with an index.
//!
//! Files are mapped, not read: opening costs as much as their headers, and reading a tensor as much as the tensor.
//! Such files come from anywhere, so nothing in them is believed. Each reader is a function from bytes to where
//! tensors lie or to a [`Fault`]; it runs nothing that a file asks for, does work linear in the file's length, and holds
//! no more memory than a small multiple of it. `examples/fuzz_readers` tries them on a million damaged files.

mod digest;
mod error;
pub mod index;
pub mod pickle;
pub mod safetensors;
#[cfg(test)]
mod tests;
pub mod torch;
pub mod values;
pub mod view;
pub mod zip;

pub use error::{Fault, WeightsError};
pub use view::{Stored, View};

use crate::random;
pub(super) use error::shown;
use evenkeel_kernels::memory::MappedFile;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Shorthand.
type Result<T> = std::result::Result<T, WeightsError>;

const SAFETENSORS: &str = "model.safetensors";
const TORCH: &str = "pytorch_model.bin";

/// Where every tensor of a model lies. Nothing is read until it is asked for. The files must not be changed meanwhile.
#[derive(Debug)]
pub struct Weights {
    files: Vec<Mapped>,
    /// Sorted by name.
    tensors: Vec<Tensor>,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    bytes: MappedFile,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    file: usize,
    view: View,
}

impl Weights {
    /// The weights in a folder: model.safetensors, or the files that model.safetensors.index.json names, or
    /// pytorch_model.bin, or the files that pytorch_model.bin.index.json names; the first of these that is there.
    ///
    /// # Errors
    /// If there is none of them, or something is wrong with it.
    pub fn open(dir: &Path) -> Result<Self> {
        for name in [SAFETENSORS, TORCH] {
            let (single, index) = (dir.join(name), dir.join(format!("{name}.index.json")));
            if single.is_file() {
                return Self::open_files(&[single]);
            }
            if index.is_file() {
                return Self::open_index(&index);
            }
        }
        Err(WeightsError::None { dir: dir.to_path_buf() })
    }

    /// The weights in files that together hold a model; safetensors by the end of their name, else PyTorch's.
    ///
    /// # Errors
    /// If a file is not what its name says, or two hold the same tensor.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let (weights, twice) = Self::parse(paths)?;
        match paths.first() {
            Some(path) if !twice.is_empty() => {
                Err(WeightsError::Disagree { path: path.clone(), problems: twice })
            }
            _ => Ok(weights),
        }
    }

    /// The weights in the files that an index names; all have to be beside it.
    ///
    /// # Errors
    /// If a file is missing or not what its name says, or the index and the files do not name the same tensors.
    pub fn open_index(path: &Path) -> Result<Self> {
        let placed = index::parse(map(path)?.bytes.as_ref())
            .map_err(|fault| WeightsError::File { path: path.to_path_buf(), fault })?;
        let shards: BTreeSet<&str> = placed.iter().map(|(_, shard)| shard.as_str()).collect();
        let dir = path.parent().unwrap_or(Path::new(""));
        let (there, missing): (Vec<&str>, Vec<&str>) =
            shards.into_iter().partition(|shard| dir.join(shard).is_file());
        if !missing.is_empty() {
            let missing = missing.into_iter().map(String::from).collect();
            return Err(WeightsError::MissingShards { path: path.to_path_buf(), missing });
        }
        let paths: Vec<_> = there.into_iter().map(|shard| dir.join(shard)).collect();
        let (weights, mut problems) = Self::parse(&paths)?;
        problems.extend(weights.contradictions(&placed));
        match problems.is_empty() {
            true => Ok(weights),
            false => Err(WeightsError::Disagree { path: path.to_path_buf(), problems }),
        }
    }

    /// What several files hold, and a sentence on each tensor that two of them do.
    fn parse(paths: &[PathBuf]) -> Result<(Self, Vec<String>)> {
        let mut weights = Self { files: Vec::new(), tensors: Vec::new() };
        for (file, path) in paths.iter().enumerate() {
            let mapped = map(path)?;
            let parsed = match path.extension().is_some_and(|end| end == "safetensors") {
                true => safetensors::parse(mapped.bytes.as_ref()),
                false => torch::parse(mapped.bytes.as_ref()),
            };
            let tensors = parsed.map_err(|fault| WeightsError::File { path: path.clone(), fault })?;
            weights.tensors.extend(tensors.into_iter().map(|(name, view)| Tensor { name, file, view }));
            weights.files.push(mapped);
        }
        weights.tensors.sort_by(|a, b| (&a.name, a.file).cmp(&(&b.name, b.file)));
        let pairs = weights.tensors.array_windows().filter(|[a, b]| a.name == b.name);
        let twice = pairs.map(|[a, b]| {
            format!("tensor {} is in both {} and {}", shown(&a.name), weights.file_of(a), weights.file_of(b))
        });
        let twice = twice.collect();
        Ok((weights, twice))
    }

    /// What an index says and the files do not, and the other way round.
    fn contradictions(&self, placed: &[(String, String)]) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, shard) in placed {
            let first = self.tensors.partition_point(|tensor| tensor.name < *name);
            let mut same = self.tensors.iter().skip(first).take_while(|tensor| tensor.name == *name);
            if !same.any(|tensor| self.file_of(tensor) == *shard) {
                problems.push(format!("{} does not hold tensor {}", shown(shard), shown(name)));
            }
        }
        let known = |name: &String| placed.binary_search_by(|(placed, _)| placed.cmp(name)).is_ok();
        for tensor in self.tensors.iter().filter(|tensor| !known(&tensor.name)) {
            problems.push(format!("{} holds tensor {} as well", self.file_of(tensor), shown(&tensor.name)));
        }
        problems
    }

    fn file_of(&self, tensor: &Tensor) -> String {
        let name = self.files.get(tensor.file).and_then(|file| file.path.file_name());
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        let at = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| WeightsError::NoTensor { name: name.into() })
    }

    /// The bytes that a tensor lies in.
    fn bytes_of(&self, tensor: &Tensor) -> &[u8] {
        self.files.get(tensor.file).map(|file| file.bytes.as_ref()).unwrap_or_default()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Sizes of a tensor's axes.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|tensor| tensor.view.shape())
    }

    /// What a tensor's numbers are stored as.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        self.find(name).map(|tensor| tensor.view.stored())
    }

    /// A tensor's numbers as float32, row-major.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        let numbers = tensor.view.read(self.bytes_of(tensor));
        self.forget(tensor);
        Ok(numbers)
    }

    /// A tensor's numbers as they are stored, row-major.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub(crate) fn raw(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = self.get(name)?;
        Ok(tensor.view.raw(self.bytes_of(tensor)))
    }

    /// Rows of the first axis of a tensor, as float32, row-major.
    ///
    /// # Errors
    /// If there is no such tensor, or it does not have these rows.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        match tensor.view.rows(rows.clone()) {
            Some(part) => Ok(part.read(self.bytes_of(tensor))),
            None => {
                let held = tensor.view.shape().first().copied().unwrap_or(0);
                Err(WeightsError::NoRows { name: name.into(), rows, held })
            }
        }
    }

    /// What has been copied out of a tensor's file need not stay in memory.
    fn forget(&self, tensor: &Tensor) {
        self.files[tensor.file].bytes.forget();
    }

    /// Bytes of all tensors, as stored.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.view.bytes() as u64).sum()
    }

    /// A fingerprint of the names, shapes, dtypes and numbers of all tensors, in the order of their names: the same
    /// for the same tensors whatever files they are in. It is not cryptographic. Reads everything.
    pub fn digest(&self) -> u64 {
        self.tensors.iter().fold(0, |digest, tensor| {
            let shape: Vec<u64> = tensor.view.shape().iter().map(|&n| n as u64).collect();
            let digest = random::key(&[
                digest,
                digest::bytes(tensor.name.as_bytes()),
                digest::bytes(tensor.view.stored().name().as_bytes()),
                random::key(&shape),
                shape.len() as u64,
                digest::bytes(&tensor.view.raw(self.bytes_of(tensor))),
            ]);
            self.forget(tensor);
            digest
        })
    }
}

fn map(path: &Path) -> Result<Mapped> {
    let bytes = File::open(path).and_then(|file| MappedFile::new(&file));
    match bytes {
        Ok(bytes) => Ok(Mapped { path: path.to_path_buf(), bytes }),
        Err(source) => Err(WeightsError::Io { path: path.to_path_buf(), source }),
    }
}

/// Says which tensor a fault was found in.
fn of_tensor(name: &str, fault: Fault) -> Fault {
    match fault {
        Fault::Damaged(problem) => Fault::Damaged(format!("tensor {}: {problem}", shown(name))),
        Fault::Unsupported(problem) => Fault::Unsupported(format!("tensor {}: {problem}", shown(name))),
        other => other,
    }
}
