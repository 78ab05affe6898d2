//! Bytes in flight over all connections of a server: who may read on, and who waits.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// A bound on bytes that many connections share. A connection takes what has arrived already and
/// asks before it reads on, so the bound is passed by at most one read of each connection.
pub(crate) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
    waiting: Mutex<Vec<Waker>>,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Budget { used: AtomicUsize::new(0), bytes_max, waiting: Mutex::default() }
    }

    /// Counts bytes that have arrived.
    pub(crate) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, SeqCst);
    }

    /// Counts bytes as gone, and wakes those who wait once the sum is within the bound.
    pub(crate) fn release(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, SeqCst);
        if before > self.bytes_max && before - bytes <= self.bytes_max {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Returns whether the sum is above the bound; then the waker is called when it no longer is.
    pub(crate) fn is_over(&self, waker: &Waker) -> bool {
        if self.used.load(SeqCst) <= self.bytes_max {
            return false;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        // Looked at again under the lock: a release in between has woken nobody.
        self.used.load(SeqCst) > self.bytes_max
    }

    /// Returns the bytes in flight.
    pub(crate) fn used(&self) -> usize {
        self.used.load(SeqCst)
    }
}
