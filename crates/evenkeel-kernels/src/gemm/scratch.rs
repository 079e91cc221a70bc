//! Cache-line-aligned work buffers that are kept and handed out again.
//!
//! Packing needs megabytes at every product. Memory that was just used is in cache and already mapped; a
//! fresh allocation of that size is neither (page faults were a quarter of a step's time without this).

use std::sync::Mutex;

/// One cache line of sixteen four-byte groups.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; 16]);

/// Buffers not in use. More than this many are freed.
const KEEP: usize = 64;
static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// A buffer whose contents are unspecified at first; it goes back when dropped.
pub(super) struct Scratch(Vec<Line>);

impl Scratch {
    /// At least `groups` groups, rounded up to whole lines.
    pub(super) fn take(groups: usize) -> Self {
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
    pub(super) fn groups(&self) -> &[u32] {
        // SAFETY: a `Line` is exactly sixteen `u32` without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    /// The groups, to write.
    pub(super) fn groups_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pool.len() < KEEP {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}
