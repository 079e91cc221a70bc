//! Files that appear whole or not at all.
//!
//! A file is written under another name in the same folder, synced, and renamed over its final
//! name; after a crash there is either the old file or the new one. [`AtomicFile`] streams, and
//! [`write()`] takes bytes that are there already. What is dropped before it is complete is removed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

/// A file in the making. Dropping it without [`AtomicFile::persist`] removes it.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once persisted.
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Starts a file that will appear at `path`.
    ///
    /// # Errors
    /// If the file beside it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let partial = partial_name(path);
        let file = File::create(&partial)?;
        Ok(Self { path: path.to_path_buf(), partial, file: Some(BufWriter::with_capacity(1 << 18, file)) })
    }

    /// Where the file will appear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.apply(|file| file.write_all(bytes))
    }

    /// Writes `bytes` over the beginning of the file, for headers that are known only at the end.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.apply(|file| {
            file.seek(io::SeekFrom::Start(0))?;
            file.write_all(bytes)?;
            file.seek(io::SeekFrom::End(0)).map(|_| ())
        })
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn persist(mut self) -> io::Result<()> {
        self.apply(|file| {
            file.flush()?;
            file.get_ref().sync_all()
        })?;
        // Closed before the rename, which Windows wants.
        self.file = None;
        fs::rename(&self.partial, &self.path).inspect_err(|_| {
            let _ = fs::remove_file(&self.partial);
        })?;
        sync_folder_of(&self.path);
        Ok(())
    }

    fn apply(&mut self, f: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        match &mut self.file {
            Some(file) => f(file),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Writes `bytes` to `path` in one go.
///
/// # Errors
/// If the disk refuses.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.persist()
}

/// A name beside `path` that no other process uses: hidden, so that no corpus picks it up.
pub(crate) fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

/// Makes a rename in the folder of `path` last through a power cut. A file system that cannot
/// sync folders is not an error: the file itself has been synced.
pub(crate) fn sync_folder_of(path: &Path) {
    if cfg!(unix) {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_persisted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"0123rest").unwrap();
        assert!(!path.exists());
        file.rewrite_start(b"head").unwrap();
        file.write(b"!").unwrap();
        file.persist().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"headrest!");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
