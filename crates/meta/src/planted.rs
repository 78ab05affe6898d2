//! Planted bugs: mistakes on order, so that a suite can prove that it would notice them.
//!
//! Compiled only with the feature `planted-bugs`; the environment variable `PLINTH_BUG` picks one,
//! and [`plant`] overrules it for a thread. Without the feature every question is a constant no.

/// The mistakes that can be planted in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `vote-before-durable`: a vote counts as soon as it is queued.
    VoteBeforeDurable,
    /// `ack-entries-before-durable`: entries count as soon as they are queued.
    AckEntriesBeforeDurable,
    /// `release-without-carry`: a log segment goes although entries in it are live.
    ReleaseWithoutCarry,
    /// `install-before-sync`: a snapshot counts before its bytes are durable.
    InstallBeforeSync,
    /// `rename-before-sync`: the file that names the database is renamed before it is durable.
    RenameBeforeSync,
    /// `apply-without-index`: the applied position is not in the batch of its effects.
    ApplyWithoutIndex,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 6] = [
        Bug::VoteBeforeDurable,
        Bug::AckEntriesBeforeDurable,
        Bug::ReleaseWithoutCarry,
        Bug::InstallBeforeSync,
        Bug::RenameBeforeSync,
        Bug::ApplyWithoutIndex,
    ];

    /// The name that `PLINTH_BUG` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Bug::VoteBeforeDurable => "vote-before-durable",
            Bug::AckEntriesBeforeDurable => "ack-entries-before-durable",
            Bug::ReleaseWithoutCarry => "release-without-carry",
            Bug::InstallBeforeSync => "install-before-sync",
            Bug::RenameBeforeSync => "rename-before-sync",
            Bug::ApplyWithoutIndex => "apply-without-index",
        }
    }
}

/// Returns whether this mistake is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

/// Returns whether the mistake of this name is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: &str) -> bool {
    false
}

/// Returns whether the mistake of this name is planted.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is(name: &str) -> bool {
    Bug::ALL.into_iter().any(|bug| bug.name() == name && planted(bug))
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
