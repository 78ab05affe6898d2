//! How fast a peer must take or send the bytes of a body.
//!
//! Only the time that we wait for the peer counts, not what the cluster takes. In each window of waiting the peer has a
//! grace; from then on it must have moved a least rate on average. A peer that was fast once is judged anew in the next
//! window.

use std::time::Duration;

/// Least average rate of a body in either direction, bytes a second.
pub const BODY_RATE_MIN: u64 = 1 << 10;

/// A shorter wait is none.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// The times that a gateway gives its clients.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a body may be silent in either direction.
    pub silent_max: Duration,
    /// From so much waiting on, the least rate counts.
    pub grace: Duration,
    /// From so much silence on, an upload gives memory back that others wait for.
    pub stalled_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            silent_max: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            stalled_after: Duration::from_millis(500),
        }
    }
}

/// The pace of one body.
pub struct Pace {
    patience: Patience,
    waited: Duration,
    moved: u64,
}

impl Pace {
    /// Starts a body.
    pub fn new(patience: Patience) -> Self {
        Pace { patience, waited: Duration::ZERO, moved: 0 }
    }

    /// Takes note that after waiting so long, so many bytes have moved; returns whether what moved before was fast
    /// enough. What follows a pause is judged at the next one: its first bytes are no measure.
    pub fn handle_moved(&mut self, waited: Duration, bytes: u64) -> bool {
        let mut is_fast = true;
        if waited >= PAUSE_MIN && self.waited > self.patience.grace {
            let least = u128::from(BODY_RATE_MIN) * self.waited.as_millis() / 1000;
            is_fast = u128::from(self.moved) >= least;
            if self.waited > self.patience.grace * 2 {
                (self.waited, self.moved) = (Duration::ZERO, 0);
            }
        }
        self.waited += waited;
        self.moved = self.moved.saturating_add(bytes);
        is_fast
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_body_slower_than_the_least_rate_is_cut_after_its_grace() {
        let cut_after = |bytes: u64| {
            let mut pace = Pace::new(Patience::default());
            (1..=300u32).find(|_| !pace.handle_moved(SECOND, bytes))
        };
        assert_eq!(cut_after(BODY_RATE_MIN), None);
        assert_eq!(cut_after(BODY_RATE_MIN - 1), Some(32));
        assert_eq!(cut_after(1), Some(32));
    }

    #[test]
    fn having_been_fast_once_does_not_help_for_ever() {
        let mut pace = Pace::new(Patience::default());
        assert!(pace.handle_moved(Duration::ZERO, 1 << 30));
        let cut = (1..=300u32).find(|_| !pace.handle_moved(SECOND, 1));
        assert!(cut.is_some_and(|seconds| seconds <= 61 + 32), "{cut:?}");
    }

    #[test]
    fn a_pause_before_much_is_no_slowness() {
        let mut pace = Pace::new(Patience::default());
        for _ in 0..20 {
            assert!(pace.handle_moved(SECOND * 50, 16 << 10), "the first record after a pause");
            assert!((0..10).all(|_| pace.handle_moved(Duration::ZERO, 16 << 10)));
        }
    }
}
