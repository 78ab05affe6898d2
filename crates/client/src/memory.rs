//! Memory: budgets that all writers and readers of a client share, and buffers that are used again.
//!
//! A budget is a semaphore over bytes: whoever wants more waits, in order of arrival, and that
//! waiting is the back-pressure that reaches the S3 client. Buffers go back to a pool, so that a
//! stream of 1 MiB objects does not map, touch and unmap fresh pages each time.

use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of a budget stands for.
const UNIT_BYTES: usize = 4096;

/// Bytes that may be held at a time.
#[derive(Clone)]
pub(crate) struct Budget {
    semaphore: Arc<Semaphore>,
    units: usize,
}

/// Bytes held; given back when dropped.
pub(crate) struct Held {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, u32::MAX as usize);
        Budget { semaphore: Arc::new(Semaphore::new(units)), units }
    }

    /// Returns the permits for `bytes`. What exceeds the whole budget can still go alone.
    fn permits(&self, bytes: usize) -> u32 {
        bytes.div_ceil(UNIT_BYTES).clamp(1, self.units) as u32
    }

    /// Waits until `bytes` are free and takes them; first come, first served.
    pub(crate) async fn acquire(&self, bytes: usize) -> Held {
        let permit = self.semaphore.clone().acquire_many_owned(self.permits(bytes)).await;
        Held { _permit: permit.expect("budgets are never closed") }
    }

    /// Takes `bytes` where they are free at once.
    pub(crate) fn try_acquire(&self, bytes: usize) -> Option<Held> {
        let permit = self.semaphore.clone().try_acquire_many_owned(self.permits(bytes)).ok()?;
        Some(Held { _permit: permit })
    }

    /// Returns the bytes that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        ((self.units - self.semaphore.available_permits()) * UNIT_BYTES) as u64
    }
}

/// Ties bytes to the budget that they were counted in: it is given back when the last slice goes.
pub(crate) fn with_held(bytes: Bytes, held: Held) -> Bytes {
    struct Counted {
        bytes: Bytes,
        _held: Held,
    }
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Counted { bytes, _held: held })
}

/// Smallest buffer that is pooled: 8 KiB; smaller ones come cheaply from the allocator.
const CLASS_BITS_MIN: u32 = 13;
/// Largest buffer that is pooled: 4 MiB.
const CLASS_BITS_MAX: u32 = 22;
const CLASSES: usize = (CLASS_BITS_MAX - CLASS_BITS_MIN + 1) as usize;

/// Idle buffers by power-of-two capacity.
pub(crate) struct Pool {
    classes: [Mutex<Vec<AlignedBuf>>; CLASSES],
    idle_bytes: AtomicUsize,
    idle_bytes_max: usize,
}

impl Pool {
    pub(crate) fn new(idle_bytes_max: usize) -> Arc<Self> {
        let classes = std::array::from_fn(|_| Mutex::default());
        Arc::new(Pool { classes, idle_bytes: AtomicUsize::new(0), idle_bytes_max })
    }

    /// Returns the class whose buffers hold `bytes`, where there is one.
    fn class(bytes: usize) -> Option<usize> {
        let bits = bytes.next_power_of_two().trailing_zeros();
        (CLASS_BITS_MIN..=CLASS_BITS_MAX).contains(&bits).then(|| (bits - CLASS_BITS_MIN) as usize)
    }

    /// Returns the memory that a buffer for `bytes` really takes.
    pub(crate) fn capacity(bytes: usize) -> usize {
        Self::class(bytes).map_or(bytes, |class| 1 << (class as u32 + CLASS_BITS_MIN))
    }

    /// Returns a buffer of `bytes`. **Its content is arbitrary**: whoever takes it writes all of it.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Buffer {
        let class = Self::class(bytes);
        let mut idle = class.and_then(|class| self.lock(class).pop());
        if let Some(found) = &idle {
            self.idle_bytes.fetch_sub(found.capacity(), Relaxed);
        }
        let mut memory = idle.take().unwrap_or_else(|| AlignedBuf::zeroed(Self::capacity(bytes)));
        memory.set_len(bytes);
        Buffer { memory: Some(memory), pool: self.clone() }
    }

    fn give_back(&self, memory: AlignedBuf) {
        let capacity = memory.capacity();
        let Some(class) = Self::class(capacity).filter(|_| capacity.is_power_of_two()) else { return };
        if self.idle_bytes.fetch_add(capacity, Relaxed) + capacity > self.idle_bytes_max {
            self.idle_bytes.fetch_sub(capacity, Relaxed);
            return;
        }
        self.lock(class).push(memory);
    }

    fn lock(&self, class: usize) -> MutexGuard<'_, Vec<AlignedBuf>> {
        self.classes[class].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block-aligned buffer that returns to its pool when it is dropped, also as [`Bytes`].
pub(crate) struct Buffer {
    memory: Option<AlignedBuf>,
    pool: Arc<Pool>,
}

impl Buffer {
    fn memory(&self) -> &AlignedBuf {
        self.memory.as_ref().expect("present until dropped")
    }

    /// Shortens the buffer to `bytes`.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        assert!(bytes <= self.len());
        self.memory.as_mut().expect("present until dropped").set_len(bytes);
    }

    /// Turns the buffer into shareable bytes without a copy.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.memory()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().expect("present until dropped")
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_the_idle_ones_are_bounded() {
        let pool = Pool::new(3 << 20);
        let first = pool.take(1_000_000);
        assert_eq!((first.len(), Pool::capacity(1_000_000)), (1_000_000, 1 << 20));
        let place = first.as_ptr();
        drop(first.freeze());
        assert_eq!(pool.take(600_000).as_ptr(), place);
        drop((0..5).map(|_| pool.take(1 << 20)).collect::<Vec<_>>());
        assert_eq!(pool.idle_bytes.load(Relaxed), 3 << 20);
    }

    #[test]
    fn small_and_huge_buffers_are_not_kept() {
        let pool = Pool::new(64 << 20);
        drop((pool.take(4096), pool.take(5 << 20)));
        assert_eq!(pool.idle_bytes.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn budgets_bound_and_give_back() {
        let budget = Budget::new(1 << 20);
        let held = budget.acquire(1 << 20).await;
        assert!(budget.try_acquire(1).is_none());
        let bytes = with_held(Bytes::from_static(b"abc"), held);
        let slice = bytes.slice(1..2);
        drop(bytes);
        assert_eq!(budget.held_bytes(), 1 << 20, "a slice keeps the whole");
        drop(slice);
        assert_eq!(budget.held_bytes(), 0);
        assert!(budget.try_acquire(usize::MAX / 2).is_some(), "what exceeds the budget goes alone");
    }
}
