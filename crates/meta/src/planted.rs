//! Planted bugs: mistakes on order, so that a suite can prove that it would notice them.
//!
//! Compiled only into the unit tests of this crate, where [`plant`] switches one on for a thread. Everywhere
//! else every question is a constant no.

/// The mistakes that can be planted in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A vote counts as soon as it is queued.
    VoteBeforeDurable,
    /// Entries count as soon as they are queued.
    AckEntriesBeforeDurable,
    /// A log segment goes although entries in it are live.
    ReleaseWithoutCarry,
    /// A snapshot counts before its bytes are durable.
    InstallBeforeSync,
    /// The file that names the database is renamed before it is durable.
    RenameBeforeSync,
    /// The applied position is not in the batch of its effects.
    ApplyWithoutIndex,
}

/// Returns whether this mistake is planted.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use switched::{plant, planted};

#[cfg(test)]
mod switched {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug, or none, for this thread.
    pub(crate) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
