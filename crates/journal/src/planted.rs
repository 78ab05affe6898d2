//! Planted bugs: deliberate mistakes that the suites must catch. Compiled only with the feature
//! `planted-bugs`, picked by the variable `PLINTH_BUG`; otherwise every question is a constant no.

/// The mistakes that can be planted in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `skip-sync`: a batch counts as durable when its writes have completed.
    SkipSync,
    /// `ignore-checksum`: bodies and payloads are believed as they are read.
    IgnoreChecksum,
    /// `ack-before-durable`: a batch is reported as soon as it is submitted.
    AckBeforeDurable,
    /// `accept-stale-record`: recovery believes any record whose own head verifies.
    AcceptStaleRecord,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 4] = [Bug::SkipSync, Bug::IgnoreChecksum, Bug::AckBeforeDurable, Bug::AcceptStaleRecord];

    /// The name that `PLINTH_BUG` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Bug::SkipSync => "skip-sync",
            Bug::IgnoreChecksum => "ignore-checksum",
            Bug::AckBeforeDurable => "ack-before-durable",
            Bug::AcceptStaleRecord => "accept-stale-record",
        }
    }
}

/// Returns whether this mistake is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub use switched::plant;
#[cfg(feature = "planted-bugs")]
pub(crate) use switched::planted;

#[cfg(feature = "planted-bugs")]
mod switched {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = Cell::new(from_environment());
    }

    fn from_environment() -> Option<Bug> {
        let name = std::env::var("PLINTH_BUG").ok()?;
        Bug::ALL.into_iter().find(|bug| bug.name() == name)
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug, or none, for this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
