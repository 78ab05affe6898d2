//! Slows down who fails to prove who they are: guessing must not be cheap, and must not lock out the owner.
//!
//! A token bucket for each pair of access key and source address; made-up keys of a source share one. A failure takes a token; once there
//! is none, the refusal comes late. Whoever signs right is never delayed, also with the same key.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often one more is allowed.
const REFILL_EVERY: Duration = Duration::from_secs(1);
/// How late a refusal comes when none is.
pub const REFUSAL_DELAY: Duration = Duration::from_secs(1);
/// Most pairs remembered; beyond them the memory starts anew.
const PAIRS_MAX: usize = 10_000;

/// What is remembered of failures.
pub struct Throttle {
    /// Failures of one key from one source that are answered at once.
    failures_free: u32,
    hasher: RandomState,
    buckets: Mutex<HashMap<u64, Bucket>>,
}

struct Bucket {
    tokens: u32,
    /// When tokens were last added.
    filled: Instant,
}

impl Throttle {
    /// Starts without any memory.
    pub fn new(failures_free: u32) -> Self {
        Throttle { failures_free, hasher: RandomState::new(), buckets: Mutex::default() }
    }

    /// Notes a failure at `now`; returns how long its answer has to wait.
    pub fn failed(&self, now: Instant, source: IpAddr, access_key: &str) -> Duration {
        let pair = self.hasher.hash_one((source, access_key));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= PAIRS_MAX && !buckets.contains_key(&pair) {
            buckets.clear();
        }
        let bucket = buckets.entry(pair).or_insert(Bucket { tokens: self.failures_free, filled: now });
        let earned =
            (now.duration_since(bucket.filled).as_millis() / REFILL_EVERY.as_millis()).min(self.failures_free.into());
        if earned > 0 {
            bucket.tokens = bucket.tokens.saturating_add(earned as u32).min(self.failures_free);
            bucket.filled = now;
        }
        match bucket.tokens.checked_sub(1) {
            Some(left) => {
                bucket.tokens = left;
                Duration::ZERO
            }
            None => REFUSAL_DELAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_delayed_once_they_are_many_and_forgiven_with_time() {
        let (throttle, start) = (Throttle::new(20), Instant::now());
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let free = (0..100).take_while(|_| throttle.failed(start, here, "A").is_zero()).count();
        assert_eq!(free, 20);
        assert!(throttle.failed(start, there, "A").is_zero(), "another source");
        assert!(throttle.failed(start, here, "B").is_zero(), "another key");
        let later = start + REFILL_EVERY * 3;
        let free = (0..100).take_while(|_| throttle.failed(later, here, "A").is_zero()).count();
        assert_eq!(free, 3);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (throttle, now) = (Throttle::new(20), Instant::now());
        for key in 0..PAIRS_MAX + 10 {
            throttle.failed(now, IpAddr::from([10, 0, 0, 1]), &key.to_string());
        }
        assert_eq!(throttle.buckets.lock().expect("not poisoned").len(), 10);
    }
}
