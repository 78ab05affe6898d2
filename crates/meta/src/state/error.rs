//! Why the state machine can't go on.

use plinth_protocol::wire::WireError;
use plinth_protocol::{Failure, FailureKind};

/// Why a store or a row could not be read or written. None of these is an answer to a client: the
/// replica stops and is rebuilt from its peers.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A row's bytes are not what was written, or a newer version wrote them.
    #[error("row in family {family} can't be read: {source}")]
    Row {
        /// The column family's name.
        family: &'static str,
        /// What is wrong with the bytes.
        #[source]
        source: WireError,
    },
    /// The database failed; it takes no more writes.
    #[error("database: {0}")]
    Database(String),
    /// A file or folder beside the database failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database asks for time: flushes or compactions have to catch up. Nothing was written; the same entry may be
    /// applied again.
    #[error("the database asks for time")]
    Stalled,
    /// An earlier error stopped this replica.
    #[error("replica stopped after an earlier error: {0}")]
    Stopped(String),
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let kind = match &error {
            StateError::Row { .. } => FailureKind::Corrupt,
            StateError::Database(_) | StateError::Io { .. } | StateError::Stalled | StateError::Stopped(_) => {
                FailureKind::Unavailable
            }
        };
        Failure::new(kind, error.to_string())
    }
}
