//! The crate's one error type, sorted by what the caller does.

use plinth_protocol::wire::WireError;
use plinth_protocol::{Failure, FailureKind, GroupId, NodeId};
use std::io;

/// Why the metadata of this node can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The setting can't work; tell the user.
    #[error("invalid setting: {0}")]
    Invalid(String),
    /// The Raft log is damaged at or below what this voter has acknowledged: it must never vote again under its id.
    #[error(
        "{node} must not vote again: its Raft log is damaged below the acknowledged floor: {reason}; replace it: plinth raft remove {node}, then join a new node under another name"
    )]
    Damaged {
        /// The voter.
        node: NodeId,
        /// What was found where.
        reason: String,
    },
    /// Bytes on disk or from a peer are not what was written.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// A file, folder or the journal's device failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The database of a shard failed.
    #[error("database: {0}")]
    Database(String),
    /// The group is not open on this node.
    #[error("{0} is not open on this node")]
    NoGroup(GroupId),
    /// The node or the group has stopped after an error of its disk, or is shutting down.
    #[error("stopped: {0}")]
    Stopped(String),
}

impl MetaError {
    /// Returns an adapter for `map_err` that says what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> MetaError {
        let context = context.into();
        move |source| MetaError::Io { context, source }
    }
}

impl From<WireError> for MetaError {
    fn from(error: WireError) -> Self {
        MetaError::Corrupt(error.to_string())
    }
}

impl From<crate::state::StateError> for MetaError {
    fn from(error: crate::state::StateError) -> Self {
        use crate::state::StateError;
        match error {
            StateError::Io { context, source } => MetaError::Io { context, source },
            StateError::Row { .. } => MetaError::Corrupt(error.to_string()),
            StateError::Database(_) | StateError::Stalled | StateError::Stopped(_) => {
                MetaError::Database(error.to_string())
            }
        }
    }
}

impl From<MetaError> for Failure {
    fn from(error: MetaError) -> Self {
        let kind = match &error {
            MetaError::Invalid(_) => FailureKind::Invalid,
            MetaError::Damaged { .. } | MetaError::Corrupt(_) => FailureKind::Corrupt,
            MetaError::NoGroup(_) => FailureKind::NotFound,
            MetaError::Io { .. } | MetaError::Database(_) | MetaError::Stopped(_) => FailureKind::Unavailable,
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<MetaError> for io::Error {
    fn from(error: MetaError) -> Self {
        io::Error::other(error)
    }
}
