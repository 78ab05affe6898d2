//! Exit codes and errors of every command: an interface that scripts rely on.

use plinth_protocol::{Failure, FailureKind};
use serde_json::{Value, json};

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The cluster can't be reached, or time ran out.
    Unreachable = 3,
    /// Denied.
    Denied = 4,
    /// There is no such thing.
    NotFound = 5,
    /// The state is not what the command expected.
    Conflict = 6,
    /// This build or cluster can't do it.
    Unsupported = 7,
    /// A check found a problem.
    Problem = 8,
    /// Some of it was done.
    Partial = 9,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

/// Why a command failed: what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {text}")]
pub struct Trouble {
    /// The exit code.
    pub exit: Exit,
    /// A code that stays the same for ever: `E` and four digits, the first one the area.
    pub code: &'static str,
    /// What failed, why, and what to do.
    pub text: String,
}

impl Trouble {
    /// Makes a trouble.
    pub fn new(exit: Exit, code: &'static str, text: impl Into<String>) -> Self {
        Trouble { exit, code, text: text.into() }
    }

    /// Returns the trouble as scripts read it.
    pub fn to_json(&self) -> Value {
        json!({"apiVersion": "plinth/v1", "kind": "Error", "code": self.code, "exit": self.exit as u8, "message": self.text})
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let (exit, code) = match failure.kind {
            FailureKind::Unavailable | FailureKind::Unknown | FailureKind::NotLeader => (Exit::Unreachable, "E1001"),
            FailureKind::Busy => (Exit::Unreachable, "E1002"),
            FailureKind::Denied => (Exit::Denied, "E1003"),
            FailureKind::NotFound => (Exit::NotFound, "E1004"),
            FailureKind::Conflict | FailureKind::Fenced => (Exit::Conflict, "E1005"),
            FailureKind::Invalid => (Exit::Usage, "E1006"),
            FailureKind::Full => (Exit::Failed, "E1007"),
            FailureKind::Corrupt => (Exit::Failed, "E1008"),
            FailureKind::Internal => (Exit::Failed, "E1009"),
        };
        Trouble::new(exit, code, failure.text)
    }
}
