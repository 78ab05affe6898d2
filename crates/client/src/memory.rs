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
    /// How many wait for bytes.
    waiting: Arc<AtomicUsize>,
}

/// Bytes held; given back when dropped.
pub(crate) struct Held {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, u32::MAX as usize);
        Budget { semaphore: Arc::new(Semaphore::new(units)), units, waiting: Arc::default() }
    }

    /// Returns the permits for `bytes`. What exceeds the whole budget can still go alone.
    fn permits(&self, bytes: usize) -> u32 {
        bytes.div_ceil(UNIT_BYTES).clamp(1, self.units) as u32
    }

    /// Waits until `bytes` are free and takes them; first come, first served.
    pub(crate) async fn acquire(&self, bytes: usize) -> Held {
        if let Some(held) = self.try_acquire(bytes) {
            return held;
        }
        let _waits = Waits::begin(&self.waiting);
        let permit = self.semaphore.clone().acquire_many_owned(self.permits(bytes)).await;
        Held { _permit: permit.expect("budgets are never closed") }
    }

    /// Takes `bytes` where they are free at once and nobody waits for them.
    pub(crate) fn try_acquire(&self, bytes: usize) -> Option<Held> {
        if self.is_wanted() {
            return None;
        }
        let permit = self.semaphore.clone().try_acquire_many_owned(self.permits(bytes)).ok()?;
        Some(Held { _permit: permit })
    }

    /// Returns whether anybody waits for bytes.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Returns the bytes that nobody holds.
    pub(crate) fn free_bytes(&self) -> usize {
        self.semaphore.available_permits() * UNIT_BYTES
    }

    /// Returns the bytes that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        ((self.units - self.semaphore.available_permits()) * UNIT_BYTES) as u64
    }
}

/// Counts one that waits, until dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Ties bytes to the budget that they were counted in: it is given back when the last slice goes.
pub(crate) fn with_held(bytes: Bytes, held: Option<Held>) -> Bytes {
    struct Counted {
        bytes: Bytes,
        _held: Held,
    }
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let Some(held) = held else { return bytes };
    Bytes::from_owner(Counted { bytes, _held: held })
}

/// Smallest buffer that is pooled: 8 KiB; smaller ones come cheaply from the allocator.
const CLASS_BITS_MIN: u32 = 13;
/// Largest buffer that is pooled: 4 MiB.
const CLASS_BITS_MAX: u32 = 22;
const CLASSES: usize = (CLASS_BITS_MAX - CLASS_BITS_MIN + 1) as usize;

/// Buffers by power-of-two capacity, kept for the next taker.
pub(crate) struct Pool {
    classes: [Mutex<Class>; CLASSES],
    /// Bytes of all pooled buffers, idle and out.
    bytes: AtomicUsize,
    /// Above this, idle buffers make room for new ones, and returned ones are freed.
    bytes_max: usize,
}

/// The idle buffers of one capacity.
#[derive(Default)]
struct Class {
    idle: Vec<AlignedBuf>,
    /// Fewest idle buffers since the last trim: so many were not needed.
    low: usize,
}

impl Class {
    fn pop(&mut self) -> Option<AlignedBuf> {
        let found = self.idle.pop();
        self.low = self.low.min(self.idle.len());
        found
    }
}

impl Pool {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        let classes = std::array::from_fn(|_| Mutex::default());
        Arc::new(Pool { classes, bytes: AtomicUsize::new(0), bytes_max })
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
        let idle = class.and_then(|class| self.lock(class).pop());
        let mut memory = idle.unwrap_or_else(|| {
            let capacity = Self::capacity(bytes);
            if class.is_some() {
                self.make_room(capacity);
                self.bytes.fetch_add(capacity, Relaxed);
            }
            AlignedBuf::zeroed(capacity)
        });
        memory.set_len(bytes);
        Buffer { memory: Some(memory), pool: self.clone() }
    }

    /// Frees idle buffers, large ones first, until `capacity` more bytes fit or none is idle.
    fn make_room(&self, capacity: usize) {
        for class in (0..CLASSES).rev() {
            while self.bytes.load(Relaxed) + capacity > self.bytes_max {
                let Some(freed) = self.lock(class).pop() else { break };
                self.bytes.fetch_sub(freed.capacity(), Relaxed);
            }
        }
    }

    fn give_back(&self, memory: AlignedBuf) {
        let capacity = memory.capacity();
        let Some(class) = Self::class(capacity).filter(|_| capacity.is_power_of_two()) else { return };
        if self.bytes.load(Relaxed) > self.bytes_max {
            self.bytes.fetch_sub(capacity, Relaxed);
            return;
        }
        self.lock(class).idle.push(memory);
    }

    /// Frees a quarter of the buffers that nobody needed since the last trim.
    pub(crate) fn trim(&self) {
        for class in 0..CLASSES {
            let freed: Vec<AlignedBuf> = {
                let mut class = self.lock(class);
                let count = class.low.div_ceil(4);
                let keep = class.idle.len() - count;
                let freed = class.idle.split_off(keep);
                class.low = class.idle.len();
                freed
            };
            self.bytes.fetch_sub(freed.iter().map(AlignedBuf::capacity).sum(), Relaxed);
        }
    }

    fn lock(&self, class: usize) -> MutexGuard<'_, Class> {
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

    fn idle(pool: &Pool) -> usize {
        (0..CLASSES).map(|class| pool.lock(class).idle.iter().map(AlignedBuf::capacity).sum::<usize>()).sum()
    }

    #[test]
    fn buffers_come_back_and_are_bounded() {
        let pool = Pool::new(3 << 20);
        let first = pool.take(1_000_000);
        assert_eq!((first.len(), Pool::capacity(1_000_000)), (1_000_000, 1 << 20));
        let place = first.as_ptr();
        drop(first.freeze());
        assert_eq!(pool.take(600_000).as_ptr(), place);
        drop((0..5).map(|_| pool.take(1 << 20)).collect::<Vec<_>>());
        assert_eq!((idle(&pool), pool.bytes.load(Relaxed)), (3 << 20, 3 << 20));
        let small = pool.take(100_000);
        assert_eq!((idle(&pool), pool.bytes.load(Relaxed)), (2 << 20, (2 << 20) + (1 << 17)), "room was made");
        drop(small);
    }

    #[test]
    fn buffers_that_nobody_needs_are_freed_over_time() {
        let pool = Pool::new(8 << 20);
        drop((0..8).map(|_| pool.take(1 << 20)).collect::<Vec<_>>());
        pool.trim();
        assert_eq!(idle(&pool), 8 << 20, "they were needed since the last trim");
        (0..40).for_each(|_| pool.trim());
        assert_eq!((idle(&pool), pool.bytes.load(Relaxed)), (0, 0));
    }

    #[test]
    fn small_and_huge_buffers_are_not_kept() {
        let pool = Pool::new(64 << 20);
        drop((pool.take(4096), pool.take(5 << 20)));
        assert_eq!((idle(&pool), pool.bytes.load(Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn budgets_bound_and_give_back() {
        let budget = Budget::new(1 << 20);
        let held = budget.acquire(1 << 20).await;
        assert!(budget.try_acquire(1).is_none());
        let bytes = with_held(Bytes::from_static(b"abc"), Some(held));
        let slice = bytes.slice(1..2);
        drop(bytes);
        assert_eq!(budget.held_bytes(), 1 << 20, "a slice keeps the whole");
        drop(slice);
        assert_eq!(budget.held_bytes(), 0);
        assert!(budget.try_acquire(usize::MAX / 2).is_some(), "what exceeds the budget goes alone");
    }
}
