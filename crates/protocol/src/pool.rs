//! Buffers that are used again.
//!
//! Fresh memory costs a page fault per 4 KiB, more than decrypting and copying the bytes that come to
//! lie in it. Buffers of [`POOLED_BYTES_MIN`] and more therefore return here when the last handle on
//! their bytes is dropped. What has lain unused since the last trim is given back to the system.

use crate::buffer::{AlignedBuf, round_up_to_block};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Smaller buffers come from the allocator: it keeps their memory itself.
pub const POOLED_BYTES_MIN: usize = 64 << 10;
/// Bytes that one pool keeps unused. Of one in use, up to four times the bytes that were asked for may be taken, where
/// they are few: bounds on bytes in flight count what was asked for.
pub const POOL_BYTES_MAX: usize = 24 << 20;
/// Time between two trims.
const TRIM_INTERVAL: Duration = Duration::from_secs(4);
/// Capacities are whole multiples of this.
const GRAIN_BYTES: usize = 64 << 10;

/// Unused buffers of the connections, or of the disks, that share it.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// By capacity.
    buffers: BTreeMap<usize, Vec<AlignedBuf>>,
    bytes: usize,
    /// The fewest bytes that lay unused since the last trim.
    idle_bytes: usize,
    trimmed: Option<Instant>,
}

impl Free {
    /// Takes out a buffer of a capacity in the range, the smallest that there is.
    fn take(&mut self, capacities: std::ops::RangeInclusive<usize>) -> Option<AlignedBuf> {
        let capacity = *self.buffers.range(capacities).next()?.0;
        self.take_exact(capacity)
    }

    fn take_exact(&mut self, capacity: usize) -> Option<AlignedBuf> {
        let class = self.buffers.get_mut(&capacity)?;
        let buffer = class.pop();
        if class.is_empty() {
            self.buffers.remove(&capacity);
        }
        self.bytes -= buffer.as_ref().map_or(0, AlignedBuf::capacity);
        self.idle_bytes = self.idle_bytes.min(self.bytes);
        buffer
    }

    fn largest(&self) -> Option<usize> {
        self.buffers.last_key_value().map(|(capacity, _)| *capacity)
    }
}

impl BufferPool {
    /// Makes an empty pool.
    pub fn new() -> Arc<Self> {
        let free = Free { buffers: BTreeMap::new(), bytes: 0, idle_bytes: 0, trimmed: None };
        Arc::new(BufferPool { free: Mutex::new(free) })
    }

    /// Returns a buffer of this length that comes back here when it is dropped. Its contents are zeros or what
    /// an earlier user of it left: the caller overwrites all of it before anyone sees it.
    pub fn take(self: &Arc<Self>, length: usize) -> AlignedBuf {
        if length < POOLED_BYTES_MIN {
            return AlignedBuf::zeroed(length);
        }
        let capacity = length.next_multiple_of(GRAIN_BYTES);
        let pooled = self.lock().take(capacity..=2 * capacity);
        let mut buffer = pooled.unwrap_or_else(|| AlignedBuf::zeroed(capacity));
        buffer.set_home(Arc::downgrade(self));
        // The rest of the last block is written to disks together with the payload: it is zeros.
        buffer.set_len(round_up_to_block(length));
        buffer[length..].fill(0);
        buffer.set_len(length);
        buffer
    }

    /// Takes a buffer back that no longer has a home, so that it is freed where it is evicted.
    pub(crate) fn give(&self, buffer: AlignedBuf) {
        let capacity = buffer.capacity();
        let mut evicted = Vec::new();
        let mut free = self.lock();
        free.bytes += capacity;
        free.buffers.entry(capacity).or_default().push(buffer);
        while free.bytes > POOL_BYTES_MAX {
            let Some(largest) = free.largest() else { break };
            evicted.extend(free.take_exact(largest));
        }
        drop(free);
        // Memory goes back to the system outside the lock.
        drop(evicted);
    }

    /// Gives back to the system what has lain unused since the last trim, every few seconds.
    pub fn trim(&self, now: Instant) {
        let mut evicted = Vec::new();
        let mut free = self.lock();
        if free.trimmed.is_some_and(|trimmed| now < trimmed + TRIM_INTERVAL) {
            return;
        }
        free.trimmed = Some(now);
        let keep = free.bytes - free.idle_bytes;
        while free.bytes > keep {
            let Some(largest) = free.largest() else { break };
            evicted.extend(free.take_exact(largest));
        }
        free.idle_bytes = free.bytes;
        drop(free);
        drop(evicted);
    }

    /// Returns the bytes that lie unused.
    pub fn free_bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::is_block_aligned;

    #[test]
    fn buffers_return_with_the_last_handle() {
        let pool = BufferPool::new();
        let mut buffer = pool.take(1 << 20);
        buffer.fill(7);
        let bytes = buffer.freeze();
        let slice = bytes.slice(100..);
        drop(bytes);
        assert_eq!((pool.free_bytes(), slice[0]), (0, 7));
        drop(slice);
        assert_eq!(pool.free_bytes(), 1 << 20);
        let again = pool.take((1 << 20) - 5000);
        assert_eq!((pool.free_bytes(), again.len()), (0, (1 << 20) - 5000));
        assert!(is_block_aligned(&again[..4096]));
        // A much larger buffer than needed is not taken.
        drop(again);
        let small = pool.take(POOLED_BYTES_MIN);
        assert_eq!((pool.free_bytes(), small.len()), (1 << 20, POOLED_BYTES_MIN));
    }

    #[test]
    fn unused_bytes_are_bounded_and_trimmed() {
        let pool = BufferPool::new();
        let many: Vec<_> = (0..100).map(|number| pool.take((1 << 20) + number * GRAIN_BYTES)).collect();
        drop(many);
        assert!(pool.free_bytes() <= POOL_BYTES_MAX && pool.free_bytes() > 0);
        let now = Instant::now();
        pool.trim(now);
        pool.trim(now + TRIM_INTERVAL / 2);
        assert!(pool.free_bytes() > 0);
        pool.trim(now + TRIM_INTERVAL);
        assert_eq!(pool.free_bytes(), 0);
    }
}
