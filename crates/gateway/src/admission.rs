//! Bounds the request bodies that are in flight: admitted before they are read, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chunked::SIGNED_CHUNK_BYTES_MAX;
use crate::error::{Code, S3Error, S3Result};
use http::{HeaderValue, header};

/// What one body may hold in memory while it streams: buffers of the socket and of open stripes.
pub const BODY_RESERVE_BYTES_MAX: u64 = 12 << 20;
/// Budget of a gateway whose operator sets none.
pub const BODY_BYTES_IN_FLIGHT: u64 = 1 << 30;
/// Least budget that admits a body of any kind: one with the largest signed chunks is held up to a whole chunk.
pub const BODY_BYTES_IN_FLIGHT_MIN: u64 = 32 << 20;

const _: () = assert!(BODY_BYTES_IN_FLIGHT_MIN >= BODY_RESERVE_BYTES_MAX + SIGNED_CHUNK_BYTES_MAX);

/// The budget of one gateway.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    held: AtomicU64,
    max: u64,
}

/// A share of the budget; given back when dropped.
pub struct Reservation {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Admission {
    /// Makes a budget of this many bytes.
    pub fn new(max: u64) -> Self {
        Admission { inner: Arc::new(Inner { held: AtomicU64::new(0), max }) }
    }

    /// Admits a body of this length, which holds at most [`BODY_RESERVE_BYTES_MAX`] at a time.
    ///
    /// # Errors
    /// `SlowDown` where the budget is spent.
    pub fn admit(&self, length: u64) -> S3Result<Reservation> {
        self.reserve(length.min(BODY_RESERVE_BYTES_MAX))
    }

    fn reserve(&self, bytes: u64) -> S3Result<Reservation> {
        let held = self.inner.held.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation { inner: Arc::clone(&self.inner), bytes };
        if held + bytes > self.inner.max {
            return Err(S3Error::from(Code::SlowDown).header(header::RETRY_AFTER, HeaderValue::from_static("1")));
        }
        Ok(reservation)
    }

    /// Returns the bytes reserved now.
    pub fn held_bytes(&self) -> u64 {
        self.inner.held.load(Ordering::Relaxed)
    }
}

impl Reservation {
    /// Grows the share so that it covers `bytes` beyond what every body may hold.
    ///
    /// # Errors
    /// `SlowDown` where the budget is spent.
    pub fn grow_to(&mut self, bytes: u64) -> S3Result<()> {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let held = self.inner.held.fetch_add(more, Ordering::Relaxed);
            self.bytes = bytes;
            if held + more > self.inner.max {
                return Err(Code::SlowDown.into());
            }
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_beyond_the_budget_are_refused_before_they_are_read() {
        let admission = Admission::new(100);
        let mut first = admission.admit(60).expect("fits");
        assert_eq!(admission.admit(60).err().expect("does not fit").code(), Code::SlowDown);
        assert_eq!(admission.held_bytes(), 60, "a refused body holds nothing");
        first.grow_to(90).expect("fits");
        assert_eq!(first.grow_to(101).expect_err("does not fit").code(), Code::SlowDown);
        drop(first);
        assert_eq!(admission.held_bytes(), 0);
    }
}
