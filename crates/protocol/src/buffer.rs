//! Memory that a disk with O_DIRECT can write as it is.
//!
//! A payload is received, coded and written from one aligned buffer; [`AlignedBuf::freeze`] turns
//! it into [`Bytes`] without a copy, so that everything between door and disk passes `Bytes`.

use crate::pool::BufferPool;
use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Weak;

/// The unit of device I/O in bytes: every buffer starts and ends at a multiple of it.
pub const BLOCK_BYTES: usize = 4096;

/// Rounds `length` up to whole blocks.
pub const fn round_up_to_block(length: usize) -> usize {
    length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// A block-aligned buffer of whole blocks, all of them initialised. One that came from a [`BufferPool`]
/// goes back there when it is dropped.
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
    length: usize,
    home: Weak<BufferPool>,
}

// SAFETY: the buffer owns its memory alone; nothing in it is tied to a thread, its home neither, which is a mutex over
// buffers like this.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only through `Deref`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `length` zero bytes; the capacity is rounded up to whole blocks (at least one).
    pub fn zeroed(length: usize) -> Self {
        let capacity = round_up_to_block(length).max(BLOCK_BYTES);
        // SAFETY: the layout's size is never zero.
        let start = unsafe { alloc_zeroed(Self::layout(capacity)) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(Self::layout(capacity)));
        AlignedBuf { start, capacity, length, home: Weak::new() }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES)
            .expect("a block is a power of two and buffers are far below isize::MAX")
    }

    /// Bytes that the buffer can hold: whole blocks.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the visible length, at most the capacity.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity);
        self.length = length;
    }

    /// Has the buffer go to a pool when it is dropped.
    pub(crate) fn set_home(&mut self, home: Weak<BufferPool>) {
        self.home = home;
    }

    /// Turns the buffer into shareable bytes without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(pool) = self.home.upgrade() {
            let AlignedBuf { start, capacity, .. } = *self;
            // The memory's new owner: this one is gone, and frees nothing.
            pool.give(AlignedBuf { start, capacity, length: capacity, home: Weak::new() });
            return;
        }
        // SAFETY: allocated in `zeroed` with this very layout, and given to no pool.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` ≤ `capacity` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.length, self.capacity)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Whether a device can take these bytes as they are: aligned start, whole blocks.
pub fn is_block_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(BLOCK_BYTES)
}

/// Returns the bytes as they are where a device can take them, else an aligned, zero-padded copy.
pub fn into_aligned(bytes: Bytes) -> Bytes {
    if is_block_aligned(&bytes) {
        return bytes;
    }
    let mut copy = AlignedBuf::zeroed(round_up_to_block(bytes.len()));
    copy[..bytes.len()].copy_from_slice(&bytes);
    copy.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_buffers_stay_aligned() {
        let mut buf = AlignedBuf::zeroed(5000);
        buf[4999] = 7;
        assert_eq!(buf.capacity(), 8192);
        buf.set_len(8192);
        let bytes = buf.freeze();
        assert!(is_block_aligned(&bytes));
        assert_eq!(bytes[4999], 7);
        assert!(is_block_aligned(&into_aligned(bytes.slice(1..10))));
    }
}
