//! Slices between pages that cannot be touched.
//!
//! A slice flush with the end of its pages faults at the first read or write past its end, one flush with the start
//! at the first before it. Away from both, at a byte offset from a cache line, the bytes around the slice are canaries:
//! a write changes them, and a read brings in NaN. What a kernel only reads is also write-protected.
//!
//! Offsets are multiples of 4: a reference to a float32 elsewhere is undefined behaviour before any kernel runs.

use std::cell::RefCell;
use std::ffi::c_int;

/// Where a slice lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its last byte is the last before an inaccessible page.
    End,
    /// Its first byte is the first after an inaccessible page.
    Start,
    /// This many bytes after a multiple of 64.
    Offset(usize),
}

impl Place {
    /// Both ends and all sixteen offsets within a cache line.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Self::End, Self::Start].into_iter().chain((0..64).step_by(4).map(Self::Offset))
    }
}

/// All bits set: a float32 NaN, and a token number that no vocabulary has.
const CANARY: u8 = 0xff;

/// Accessible pages between two inaccessible ones, with a slice inside.
struct Guarded {
    map: *mut u8,
    map_length: usize,
    /// The accessible part.
    pages: *mut u8,
    pages_length: usize,
    /// The slice, in bytes from `pages`.
    from: usize,
    length: usize,
}

impl Guarded {
    fn new(length: usize, place: Place) -> Self {
        // SAFETY: no memory is involved.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let pages_length = (length + 3 * 64).next_multiple_of(page);
        let map_length = pages_length + 2 * page;
        let private = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping, at an address of the system's choice.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), map_length, libc::PROT_NONE, private, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED, "no memory for guarded pages");
        let map: *mut u8 = map.cast();
        // SAFETY: one page into a mapping of at least three.
        let pages = unsafe { map.add(page) };
        let from = match place {
            Place::End => pages_length - length,
            Place::Start => 0,
            Place::Offset(bytes) => 64 + bytes,
        };
        let guarded = Self { map, map_length, pages, pages_length, from, length };
        guarded.protect(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the accessible part, which nobody has seen yet.
        unsafe { pages.write_bytes(CANARY, pages_length) };
        guarded
    }

    fn protect(&self, protection: c_int) {
        // SAFETY: whole pages of this mapping.
        let failed = unsafe { libc::mprotect(self.pages.cast(), self.pages_length, protection) };
        assert_eq!(failed, 0, "protection of guarded pages");
    }

    fn start<T>(&self) -> *mut T {
        assert_eq!(align_of::<T>(), 4);
        // SAFETY: inside the mapping.
        unsafe { self.pages.add(self.from).cast() }
    }

    fn intact(&self) -> bool {
        // SAFETY: accessible bytes outside the slice: nobody has a reference to them.
        let bytes = |from, length| unsafe { std::slice::from_raw_parts(self.pages.add(from), length) };
        let end = self.from + self.length;
        let (before, after) = (bytes(0, self.from), bytes(end, self.pages_length - end));
        before.iter().chain(after).all(|&b| b == CANARY)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the arena that lent the slice is gone, so its references are too.
        unsafe { libc::munmap(self.map.cast(), self.map_length) };
    }
}

/// Hands out slices, all in the same kind of place, and looks at their surroundings afterwards.
pub(crate) struct Arena {
    /// `None`: ordinary memory.
    place: Option<Place>,
    guarded: RefCell<Vec<Guarded>>,
    ordinary: RefCell<Vec<Box<[u32]>>>,
}

impl Arena {
    pub(crate) fn new(place: Option<Place>) -> Self {
        Self { place, guarded: RefCell::default(), ordinary: RefCell::default() }
    }

    fn copy<T: Copy>(&self, values: &[T]) -> *mut T {
        let start = match self.place {
            Some(place) => {
                let guarded = Guarded::new(size_of_val(values), place);
                let start = guarded.start();
                self.guarded.borrow_mut().push(guarded);
                start
            }
            None => {
                assert_eq!((size_of::<T>(), align_of::<T>()), (4, 4));
                let mut memory = vec![0u32; values.len()].into_boxed_slice();
                let start = memory.as_mut_ptr().cast();
                self.ordinary.borrow_mut().push(memory);
                start
            }
        };
        // SAFETY: `start` is that of new memory of this size and alignment.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), start, values.len()) };
        start
    }

    /// A copy of `values` that a kernel may read.
    pub(crate) fn read<T: Copy>(&self, values: &[T]) -> &[T] {
        let start = self.copy(values);
        if let Some(guarded) = self.guarded.borrow().last() {
            guarded.protect(libc::PROT_READ);
        }
        // SAFETY: initialised memory, never moved or written until the arena is dropped.
        unsafe { std::slice::from_raw_parts(start, values.len()) }
    }

    /// A copy of `values` that a kernel may write.
    #[allow(clippy::mut_from_ref)] // Each call lends memory of its own.
    pub(crate) fn write<T: Copy>(&self, values: &[T]) -> &mut [T] {
        let start = self.copy(values);
        // SAFETY: initialised memory of this call's own, never moved until the arena is dropped.
        unsafe { std::slice::from_raw_parts_mut(start, values.len()) }
    }

    /// Whether every canary is alive.
    pub(crate) fn intact(&self) -> bool {
        self.guarded.borrow().iter().all(Guarded::intact)
    }
}

#[test]
fn a_write_beside_the_slice_is_seen() {
    for bytes in (0..64).step_by(4) {
        for beside in [-1isize, 7] {
            let arena = Arena::new(Some(Place::Offset(bytes)));
            let x = arena.write(&[0.0f32; 7]);
            assert_eq!(x.as_ptr() as usize % 64, bytes);
            let start = x.as_mut_ptr();
            assert!(arena.intact());
            // SAFETY: inside the accessible pages.
            unsafe { start.offset(beside).write(0.0) };
            assert!(!arena.intact());
        }
    }
}

#[test]
fn an_access_past_an_end_faults() {
    // The access happens in a child, whose death is the expected result.
    let dies = |access: &dyn Fn()| {
        // SAFETY: the child makes one memory access and exits; neither needs a lock of another thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            access();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child above.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        libc::WIFSIGNALED(status) && [libc::SIGSEGV, libc::SIGBUS].contains(&libc::WTERMSIG(status))
    };
    for n in [0, 1, 7, 16, 1000] {
        for (place, outside) in [(Place::End, n as isize), (Place::Start, -1)] {
            let arena = Arena::new(Some(place));
            let start = arena.write(&vec![0.0f32; n]).as_mut_ptr();
            // SAFETY: this is to fault, in the child.
            assert!(dies(&|| unsafe { _ = start.offset(outside).read_volatile() }));
            // SAFETY: as above.
            assert!(dies(&|| unsafe { start.offset(outside).write_volatile(1.0) }));
            if n > 0 {
                let start = arena.read(&vec![0.0f32; n]).as_ptr().cast_mut();
                // SAFETY: an ordinary read; a write is to fault, in the child.
                assert!(!dies(&|| unsafe { _ = start.read_volatile() }));
                // SAFETY: as above.
                assert!(dies(&|| unsafe { start.write_volatile(1.0) }));
            }
        }
    }
}
