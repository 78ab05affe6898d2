//! Why the journal refuses, and what the caller should do.

use crate::disk::{Area, DiskError, SegmentIndex};
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};
use plinth_protocol::{Failure, FailureKind};

/// An error of opening, formatting or recovering a disk.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk did not do what it was asked.
    #[error("{area:?}: {source}")]
    Disk {
        /// Where.
        area: Area,
        /// Why.
        source: DiskError,
    },
    /// The folder could not be opened, locked or listed.
    #[error("{what}: {source}")]
    Folder {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process holds the disk.
    #[error("the disk is locked by another process")]
    Locked,
    /// Writes to a segment by a process that has ended are still on their way to the device, or another process has
    /// opened the segment by itself.
    #[error("segment {0} is still locked: writes of a process that has ended are under way, or another one holds it")]
    SegmentLocked(SegmentIndex),
    /// The folder carries something already; formatting would destroy it.
    #[error("refusing to format: the disk carries {0}")]
    Occupied(String),
    /// No superblock could be read by agreement.
    #[error("no readable superblock: {0}")]
    NoSuperblock(String),
    /// The disk is not the one that the caller expects.
    #[error("foreign disk: found cluster {found_cluster}, disk {found_disk}, incarnation {found_incarnation}")]
    Foreign {
        /// Cluster in the superblock.
        found_cluster: ClusterId,
        /// Disk in the superblock.
        found_disk: DiskId,
        /// Incarnation in the superblock.
        found_incarnation: Incarnation,
    },
    /// The disk was written by a newer version with features that are not known here.
    #[error("incompatible features {0:#x}: written by a newer version")]
    Incompatible(u64),
    /// A parameter is outside its bounds.
    #[error("{0}")]
    Invalid(String),
    /// A write or sync failed while the disk was being mounted.
    #[error("fenced while mounting: {0}")]
    Fenced(String),
    /// A segment is not as it must be.
    #[error("segment {0}: {1}")]
    Segment(SegmentIndex, String),
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let kind = match &error {
            JournalError::Disk { .. }
            | JournalError::Folder { .. }
            | JournalError::Locked
            | JournalError::SegmentLocked(_)
            | JournalError::Fenced(_) => FailureKind::Unavailable,
            JournalError::NoSuperblock(_) | JournalError::Segment(..) => FailureKind::Corrupt,
            JournalError::Occupied(_) | JournalError::Foreign { .. } => FailureKind::Conflict,
            JournalError::Incompatible(_) | JournalError::Invalid(_) => FailureKind::Invalid,
        };
        Failure::new(kind, error.to_string())
    }
}

/// Why an append, a read, a release or a checkpoint was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A queue is full, or a segment is still being made; try again after the next completion.
    #[error("busy")]
    Busy,
    /// No free segment left for this class of append.
    #[error("full")]
    Full,
    /// A write or sync has failed; nothing more is taken, ever, by this mount.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The request itself is impossible: a caller's mistake.
    #[error("invalid: {0}")]
    Invalid(&'static str),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let kind = match &refused {
            Refused::Busy => FailureKind::Busy,
            Refused::Full => FailureKind::Full,
            Refused::Fenced(_) => FailureKind::Unavailable,
            Refused::Invalid(_) => FailureKind::Invalid,
        };
        Failure::new(kind, refused.to_string())
    }
}
