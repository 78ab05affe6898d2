//! Bounds the request bodies that are in flight: admitted before they are read, or not at all.
//!
//! A body counts with what it holds, not with its length: an entry when it is admitted, then what its sender has sent
//! lately. One whose sender stalls counts as at its beginning, since what came has moved on; so many slow uploads hold
//! little. What a source or an account may hold depends on what is free: whoever comes later always finds a place.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::chunked::SIGNED_CHUNK_BYTES_MAX;
use crate::error::{Code, S3Error, S3Result};
use http::{HeaderValue, header};

/// What one body may hold in memory while it streams, beside signed chunks: buffers of the socket, pieces that wait for
/// their MD5, and its part of what waits for stripes.
pub const BODY_RESERVE_BYTES_MAX: u64 = 4 << 20;
/// What a body counts with when it is admitted, and while its sender is silent.
pub const BODY_ENTRY_BYTES: u64 = 64 << 10;
/// Budget of a gateway whose operator sets none.
pub const BODY_BYTES_IN_FLIGHT: u64 = 1 << 30;
/// Least budget that admits a body of any kind: one with the largest signed chunks is held up to a whole chunk.
pub const BODY_BYTES_IN_FLIGHT_MIN: u64 = 32 << 20;
/// Bodies grow in such steps, so that not every piece asks for the lock.
const GROWTH_BYTES: u64 = 256 << 10;
/// A source may hold so many times what is free: alone four fifths of the budget.
const SOURCE_TIMES_FREE: u64 = 4;
/// An account may hold so many times what is free: alone eight ninths of the budget.
const ACCOUNT_TIMES_FREE: u64 = 8;

const _: () = assert!(BODY_BYTES_IN_FLIGHT_MIN >= BODY_RESERVE_BYTES_MAX + SIGNED_CHUNK_BYTES_MAX + GROWTH_BYTES);

/// The budget of one gateway.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    held: Mutex<Holdings>,
    max: u64,
}

#[derive(Default)]
struct Holdings {
    all: u64,
    sources: HashMap<IpAddr, u64>,
    accounts: HashMap<Arc<str>, u64>,
}

/// Whose body it is.
#[derive(Clone)]
pub struct Sender {
    /// The address that it comes from; of IPv6 the 64 bits in front.
    pub source: IpAddr,
    /// The account that asks.
    pub account: Arc<str>,
}

/// A share of the budget; given back when dropped.
pub struct Reservation {
    inner: Arc<Inner>,
    sender: Sender,
    bytes: u64,
}

fn slow_down() -> S3Error {
    S3Error::from(Code::SlowDown).header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

fn add<K: Hash + Eq>(holders: &mut HashMap<K, u64>, holder: K, bytes: u64) {
    let held = holders.entry(holder).or_default();
    *held = held.saturating_add(bytes);
}

fn remove<K: Hash + Eq>(holders: &mut HashMap<K, u64>, holder: &K, bytes: u64) {
    if let Some(held) = holders.get_mut(holder) {
        *held = held.saturating_sub(bytes);
        if *held == 0 {
            holders.remove(holder);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Holdings> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holdings {
    fn take(&mut self, sender: &Sender, bytes: u64) {
        self.all = self.all.saturating_add(bytes);
        add(&mut self.sources, sender.source, bytes);
        add(&mut self.accounts, Arc::clone(&sender.account), bytes);
    }

    fn give(&mut self, sender: &Sender, bytes: u64) {
        self.all = self.all.saturating_sub(bytes);
        remove(&mut self.sources, &sender.source, bytes);
        remove(&mut self.accounts, &sender.account, bytes);
    }
}

impl Admission {
    /// Makes a budget of this many bytes.
    pub fn new(max: u64) -> Self {
        Admission { inner: Arc::new(Inner { held: Mutex::default(), max }) }
    }

    /// Admits a body of this length.
    ///
    /// # Errors
    /// `SlowDown` where the budget, or the sender's share of it, is spent.
    pub fn admit(&self, length: u64, sender: &Sender) -> S3Result<Reservation> {
        let bytes = length.min(BODY_ENTRY_BYTES);
        let mut held = self.inner.lock();
        let Some(free) = self.inner.max.checked_sub(held.all).filter(|free| *free >= bytes) else {
            return Err(slow_down());
        };
        let of_source = held.sources.get(&sender.source).copied().unwrap_or(0);
        let of_account = held.accounts.get(&sender.account).copied().unwrap_or(0);
        if of_source > free.saturating_mul(SOURCE_TIMES_FREE) || of_account > free.saturating_mul(ACCOUNT_TIMES_FREE) {
            return Err(slow_down());
        }
        held.take(sender, bytes);
        drop(held);
        Ok(Reservation { inner: Arc::clone(&self.inner), sender: sender.clone(), bytes })
    }

    /// Returns the bytes reserved now.
    pub fn held_bytes(&self) -> u64 {
        self.inner.lock().all
    }
}

impl Reservation {
    /// Makes the share cover a body that has sent `received` bytes since it last stalled, and of which `waiting` bytes
    /// wait for a signature.
    ///
    /// # Errors
    /// `SlowDown` where the budget is spent.
    pub fn grow_to(&mut self, received: u64, waiting: u64) -> S3Result<()> {
        let bytes = received.min(BODY_RESERVE_BYTES_MAX).saturating_add(waiting);
        if bytes <= self.bytes {
            return Ok(());
        }
        let more = bytes.next_multiple_of(GROWTH_BYTES) - self.bytes;
        let mut held = self.inner.lock();
        if held.all.saturating_add(more) > self.inner.max {
            return Err(slow_down());
        }
        held.take(&self.sender, more);
        self.bytes += more;
        Ok(())
    }

    /// Makes the share that of a body whose sender is silent; `waiting` bytes wait for a signature.
    pub fn shrink(&mut self, waiting: u64) {
        let bytes = waiting.saturating_add(BODY_ENTRY_BYTES);
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.inner.lock().give(&self.sender, less);
            self.bytes = bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.lock().give(&self.sender, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sender(source: u8, account: &str) -> Sender {
        Sender { source: IpAddr::from([10, 0, 0, source]), account: account.into() }
    }

    #[test]
    fn bodies_beyond_the_budget_are_refused_before_they_are_read() {
        let admission = Admission::new(MIB);
        let mut first = admission.admit(u64::MAX, &sender(1, "a")).expect("fits");
        assert_eq!(admission.held_bytes(), BODY_ENTRY_BYTES);
        first.grow_to(MIB, 0).expect("fits");
        assert_eq!(admission.admit(5 * MIB, &sender(2, "b")).err().expect("does not fit").code(), Code::SlowDown);
        assert_eq!(admission.held_bytes(), MIB, "a refused body holds nothing");
        assert_eq!(first.grow_to(MIB, 1).expect_err("does not fit").code(), Code::SlowDown);
        first.shrink(0);
        assert_eq!(admission.held_bytes(), BODY_ENTRY_BYTES);
        drop(first);
        assert_eq!(admission.held_bytes(), 0);
        let held = admission.inner.lock();
        assert!(held.sources.is_empty() && held.accounts.is_empty());
    }

    #[test]
    fn thousands_of_silent_uploads_hold_little() {
        let admission = Admission::new(BODY_BYTES_IN_FLIGHT);
        let slow: Vec<_> = (0..1_000)
            .map(|_| {
                let mut body = admission.admit(5 << 30, &sender(1, "a")).expect("fits");
                body.grow_to(20 * MIB, 0).expect("fits");
                body.shrink(0);
                body
            })
            .collect();
        assert!(admission.held_bytes() <= 64 * MIB);
        admission.admit(5 << 30, &sender(1, "a")).expect("also of the same source and account");
        drop(slow);
    }

    #[test]
    fn neither_a_source_nor_an_account_takes_everything() {
        let admission = Admission::new(100 * MIB);
        let fill = |sender: &Sender| {
            let mut bodies = Vec::new();
            while let Ok(mut body) = admission.admit(5 << 30, sender) {
                if body.grow_to(4 * MIB, 0).is_err() {
                    break;
                }
                bodies.push(body);
            }
            bodies
        };
        let greedy = fill(&sender(1, "a"));
        assert!((76..=86).contains(&(admission.held_bytes() / MIB)), "{}", admission.held_bytes());
        // Another source of the account still comes in, up to the account's share.
        let second = fill(&sender(2, "a"));
        assert!(!second.is_empty());
        assert!((86..=94).contains(&(admission.held_bytes() / MIB)), "{}", admission.held_bytes());
        assert!(admission.admit(1, &sender(3, "a")).is_err(), "the account's share is spent");
        admission.admit(5 << 30, &sender(3, "b")).expect("another account finds a place");
        drop((greedy, second));
        assert_eq!(admission.held_bytes(), 0);
    }
}
