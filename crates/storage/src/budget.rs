//! The bound on bytes in flight in a storage process, all disks together.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes in flight: payloads of puts from arrival to durable, and of reads from arrival until
/// the transport has let go of them. Leaves half of a storage process's 300 MiB to index and code.
pub const BYTES_IN_FLIGHT_MAX: u64 = 128 << 20;

/// What a request counts beside its payload: its own structures and header.
pub const REQUEST_BYTES: u64 = 4096;

/// Counts bytes in flight against a bound.
pub struct Budget {
    used: AtomicU64,
    bound: u64,
}

impl Budget {
    /// Makes a budget of `bound` bytes.
    pub fn new(bound: u64) -> Arc<Self> {
        Arc::new(Budget { used: AtomicU64::new(0), bound })
    }

    /// Takes `bytes` out of the budget, where so many are left.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.bound);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).ok()?;
        Some(Permit { budget: self.clone(), bytes })
    }

    /// Returns the bytes in flight.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes taken out of a budget; they go back when it is dropped.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Permit {
    /// Takes `bytes` more out of the budget, where so many are left.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let more = self.budget.take(bytes);
        let grown = more.is_some();
        if let Some(mut more) = more {
            self.bytes += std::mem::take(&mut more.bytes);
        }
        grown
    }

    /// Ties the permit to bytes: it goes back when the last clone of them is dropped.
    pub fn guard(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Guarded { bytes, _permit: self })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

struct Guarded {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_when_the_last_clone_is_dropped() {
        let budget = Budget::new(100);
        let mut permit = budget.take(50).unwrap();
        assert!(permit.grow(10) && !permit.grow(41));
        assert!(budget.take(41).is_none());
        let bytes = permit.guard(Bytes::from_static(b"frames"));
        let clone = bytes.slice(2..);
        drop(bytes);
        assert_eq!((budget.used_bytes(), &clone[..]), (60, &b"ames"[..]));
        drop(clone);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.take(100).is_some());
    }
}
