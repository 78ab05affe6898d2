//! Chance: every random draw of the client, from the seed that it was given.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A generator that all tasks of the client share.
pub(crate) struct Chance {
    rng: Mutex<StdRng>,
}

impl Chance {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Chance { rng: Mutex::new(StdRng::from_seed(seed)) }
    }

    fn lock(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws 128 bits.
    pub(crate) fn u128(&self) -> u128 {
        let mut rng = self.lock();
        u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())
    }

    /// Draws 64 bits.
    pub(crate) fn u64(&self) -> u64 {
        self.lock().next_u64()
    }

    /// Draws a number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.lock().random_range(0..bound) }
    }

    /// Draws a time between half of `around` and one and a half of it, so that many clients that
    /// were woken by one event do not act at once.
    pub(crate) fn jitter(&self, around: Duration) -> Duration {
        around / 2 + Duration::from_micros(self.below(around.as_micros() as u64 + 1))
    }
}
