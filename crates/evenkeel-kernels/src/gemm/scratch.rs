//! Cache-line-aligned work buffers that are kept and handed out again.
//!
//! Packing needs megabytes at every product. Memory that was just used is in cache and already mapped; a
//! fresh allocation of that size is neither (page faults were a quarter of a step's time without this).

use std::sync::Mutex;

/// One cache line of sixteen four-byte groups.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

/// Buffers not in use. More than this many are freed.
const KEEP: usize = 64;
static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// A buffer whose contents are unspecified at first; it goes back when dropped.
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// At least `groups` groups, rounded up to whole lines.
    pub(crate) fn take(groups: usize) -> Self {
        let lines = groups.div_ceil(16);
        let reused = {
            let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // The smallest that is large enough, so that small requests do not occupy large buffers.
            let best = (0..pool.len()).filter(|&i| pool[i].len() >= lines).min_by_key(|&i| pool[i].len());
            best.map(|i| pool.swap_remove(i))
        };
        Self(reused.unwrap_or_else(|| vec![Line([0; 16]); lines]))
    }

    /// The groups, to read.
    pub(crate) fn groups(&self) -> &[u32] {
        groups(&self.0)
    }

    /// The groups, to write.
    pub(crate) fn groups_mut(&mut self) -> &mut [u32] {
        groups_mut(&mut self.0)
    }

    /// The buffer as bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any bytes are a `u8`, and any four are a `u32`.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }

    /// The buffer as signed integers, to write.
    pub(crate) fn integers_mut(&mut self) -> &mut [i32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// The groups of some lines, to read.
pub(crate) fn groups(lines: &[Line]) -> &[u32] {
    // SAFETY: a `Line` is exactly sixteen `u32` without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// The groups of some lines, to write.
pub(crate) fn groups_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pool.len() < KEEP {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}
