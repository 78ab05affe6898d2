//! Planted bugs: deliberate mistakes that the suites must catch. Only the crate's own test build can
//! plant one, for one thread; in every other build each question is a constant no.

/// The mistakes that can be planted in the storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Frames are believed as they are read.
    IgnoreFrameChecksum,
    /// A put is answered as soon as its record is queued.
    AckBeforeDurable,
    /// A delete is answered as soon as its tombstone is queued.
    DeleteWithoutTombstoneSync,
    /// Compaction forgets the tombstones of the segment that it empties.
    #[cfg(test)]
    DropTombstoneEarly,
    /// A checkpoint claims to hold everything up to its end, not up to its beginning.
    CheckpointMarkLate,
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
    use crate::sim::crash_states::enumerate;
    use crate::sim::model::run_sequences;
    use std::cell::Cell;

    /// Random sequences within which a planted bug must show.
    const SEQUENCES: u32 = 2_000;
    /// Enumerated crash states within which one of durability must show.
    const STATES: usize = 1_500;

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
            println!("{bug:?}: caught: {}", why.lines().next().unwrap_or_default());
        }
        result.is_err()
    }

    #[test]
    fn random_sequences_catch_every_planted_bug() {
        for bug in [
            Bug::IgnoreFrameChecksum,
            Bug::AckBeforeDurable,
            Bug::DeleteWithoutTombstoneSync,
            Bug::DropTombstoneEarly,
            Bug::CheckpointMarkLate,
        ] {
            assert!(caught(bug, || run_sequences(SEQUENCES, 1)), "{bug:?} was not caught");
        }
        run_sequences(200, 1).expect("without a bug the same sequences pass");
    }

    #[test]
    fn enumerated_states_catch_the_planted_bugs_of_durability() {
        for bug in [Bug::AckBeforeDurable, Bug::DeleteWithoutTombstoneSync, Bug::CheckpointMarkLate] {
            assert!(caught(bug, || enumerate(1, STATES)), "{bug:?} was not caught");
        }
    }
}
