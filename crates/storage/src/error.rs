//! Why a storage node could not be opened, formatted or changed.

use plinth_journal::JournalError;
use plinth_protocol::ids::DiskId;
use plinth_protocol::{Failure, FailureKind};

/// An error of the node as a whole; requests fail with [`Failure`] instead.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The journal below could not open, format or read a disk.
    #[error("disk {path}: {source}")]
    Journal {
        /// The disk's folder.
        path: String,
        /// Why.
        source: JournalError,
    },
    /// The disk is already in use by this node.
    #[error("disk {0} is already in use by this node")]
    Duplicate(DiskId),
    /// The disk's thread could not be started.
    #[error("disk {path}: cannot start its thread: {source}")]
    Thread {
        /// The disk's folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl StorageError {
    /// Whether another process holds the disk, or the last one has not quite ended yet.
    pub fn is_locked(&self) -> bool {
        let held = |source: &JournalError| matches!(source, JournalError::Locked | JournalError::SegmentLocked(_));
        matches!(self, StorageError::Journal { source, .. } if held(source))
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let text = error.to_string();
        match error {
            StorageError::Journal { source, .. } => Failure { text, ..Failure::from(source) },
            StorageError::Duplicate(_) => Failure::new(FailureKind::Conflict, text),
            StorageError::Thread { .. } | StorageError::ShuttingDown => Failure::new(FailureKind::Unavailable, text),
        }
    }
}
