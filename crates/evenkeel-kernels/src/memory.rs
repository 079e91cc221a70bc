//! The allocator that a program with big buffers wants, and its two settings; and files in memory without a copy.
//!
//! A training step makes and drops hundreds of megabytes of activations. A general allocator gives such pages back to
//! the system and takes them anew, each to be cleared and faulted in: a tenth to a quarter of a step. And with pages of
//! 4 KiB, a walk down a column of a matrix misses the translation cache at every row. mimalloc can keep its pages and
//! ask for pages of 2 MiB; it has to be told.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: evenkeel_kernels::memory::Allocator = evenkeel_kernels::memory::ALLOCATOR;
//!
//! fn main() {
//!     evenkeel_kernels::memory::keep_pages();
//! }
//! ```

pub use mimalloc::MiMalloc as Allocator;

use std::fs::File;
use std::io;

/// The value of the `#[global_allocator]`.
pub const ALLOCATOR: Allocator = Allocator;

/// mimalloc's option to back its arenas with pages of 2 MiB, transparently, where the system has them. The numbers
/// are those of `mi_option_t` in mimalloc.h of versions 2 and 3, which the bindings name only in part.
const ALLOW_LARGE_OS_PAGES: libmimalloc_sys::mi_option_t = 6;
/// mimalloc's option for how many milliseconds unused pages are kept; negative: always.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed pages in the process and asks for large ones. Call it first thing in `main`: it holds for pages that
/// are taken from the system afterwards. Without [`Allocator`] as the global allocator it does nothing of use.
/// `MIMALLOC_ALLOW_LARGE_OS_PAGES` and `MIMALLOC_PURGE_DELAY` in the environment win.
pub fn keep_pages() {
    // SAFETY: sets two integers behind a mutex-free table of defaults; both indices exist in versions 2 and 3.
    unsafe {
        libmimalloc_sys::mi_option_set_default(ALLOW_LARGE_OS_PAGES, 1);
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1);
    }
}

/// The bytes of a file, brought into memory as they are looked at.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a whole file. Whoever cuts the file short meanwhile ends this process when it looks there.
    ///
    /// # Errors
    /// If the system cannot map it.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private and only read, as bytes, for which every value is valid. What the type system cannot
        // promise is that nobody changes the file meanwhile. Programs write files of weights beside their place and
        // rename them, which leaves a map as it was; where one is written over in place, readers of a map can see bytes
        // of both versions, as readers of the file do. So no caller may rely on bytes to be the same when it looks
        // again: those in this workspace check lengths and copy numbers out.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }

    /// Gives back the memory of what has been looked at; it is read again when it is looked at again. Where the system
    /// cannot do that, nothing happens.
    pub fn forget(&self) {
        #[cfg(unix)]
        // SAFETY: the map is of a file, private and never written to, so that its pages hold nothing that the file does not.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
