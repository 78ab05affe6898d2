//! Planted bugs: deliberate mistakes that the suites must catch. Only the crate's own test build can
//! plant one, for one thread; in every other build each question is a constant no.

/// The mistakes that can be planted in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A batch counts as durable when its writes have completed.
    SkipSync,
    /// Bodies and payloads are believed as they are read.
    IgnoreChecksum,
    /// A batch is reported as soon as it is submitted.
    AckBeforeDurable,
    /// Recovery believes any record whose own head verifies.
    AcceptStaleRecord,
    /// Recovery takes the tail that it reads for durable.
    TrustUnsyncedTail,
    /// Recovery takes the segment heads that it reads for durable.
    TrustUnsyncedHeads,
    /// Recovery takes the superblock copies that it reads for durable.
    TrustUnsyncedSuperblock,
}

/// Returns whether this mistake is planted.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use switched::planted;

#[cfg(test)]
mod switched {
    use super::Bug;
    use crate::harness::{enumerate_states, run_sequences};
    use std::cell::Cell;

    /// Random sequences within which each bug must show; the suites run many more.
    const SEQUENCES: u32 = 600;
    /// Enumerated crash states within which those of durability must show.
    const STATES: u64 = 4_000;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Returns whether a suite fails with a bug planted.
    fn caught<T>(bug: Bug, suite: impl FnOnce() -> Result<T, String>) -> bool {
        PLANTED.set(Some(bug));
        let result = suite();
        PLANTED.set(None);
        if let Err(why) = &result {
            println!("{bug:?}: caught: {}", why.chars().take(100).collect::<String>());
        }
        result.is_err()
    }

    #[test]
    fn random_sequences_catch_every_planted_bug() {
        for bug in [
            Bug::SkipSync,
            Bug::IgnoreChecksum,
            Bug::AckBeforeDurable,
            Bug::AcceptStaleRecord,
            Bug::TrustUnsyncedTail,
            Bug::TrustUnsyncedHeads,
        ] {
            assert!(caught(bug, || run_sequences(SEQUENCES)), "{bug:?} was not caught");
        }
        run_sequences(50).expect("without a bug the same sequences pass");
    }

    #[test]
    fn enumerated_states_catch_the_planted_bugs_of_durability() {
        for bug in [Bug::SkipSync, Bug::AckBeforeDurable, Bug::TrustUnsyncedTail, Bug::TrustUnsyncedSuperblock] {
            assert!(caught(bug, || enumerate_states(STATES)), "{bug:?} was not caught");
        }
    }
}
