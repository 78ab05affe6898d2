//! Methods, roles and failures: the frame around every request between nodes.

use crate::ids::NodeId;
use crate::wire::WireError;
use crate::{numbered, record};
use std::fmt;

numbered! {
    /// What a node does. One node may have several.
    pub enum Role {
        /// Speaks S3; holds no state.
        Gateway = 1,
        /// Votes in Raft groups; keeps the namespace.
        Meta = 2,
        /// Keeps fragments on disks.
        Storage = 3,
        /// An operator's command line.
        Admin = 4,
        /// Holds only a join token: may ask for admission, nothing else.
        Joining = 5,
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Gateway => "gateway",
            Role::Meta => "meta",
            Role::Storage => "storage",
            Role::Admin => "admin",
            Role::Joining => "joining",
        })
    }
}

numbered! {
    /// The calls that a node answers. The header of each is a record of its own.
    pub enum Method {
        /// Openraft between voters; header and payload are `meta`'s own.
        Raft = 1,
        /// A linearizable read or a mutation of the namespace: `meta::MetaRequest`.
        Meta = 2,
        /// A request to a disk: `storage::StorageRequest`.
        Storage = 3,
        /// A request of an operator: `meta::AdminRequest`.
        Admin = 4,
        /// Admission of a new node by token: `meta::JoinRequest`.
        Join = 5,
        /// Liveness and identity of a node; empty header.
        Ping = 6,
        /// Renewal of the caller's own certificate: `meta::CertifyRequest`.
        Certify = 7,
    }
}

impl Method {
    /// Returns the roles that may call the method. A method without a row does not compile.
    pub const fn callers(self) -> &'static [Role] {
        match self {
            Method::Raft => &[Role::Meta],
            Method::Meta => &[Role::Gateway, Role::Meta, Role::Storage, Role::Admin],
            // What a role may order is a table of its own: `StorageAction::callers`.
            Method::Storage => &[Role::Gateway],
            Method::Admin => &[Role::Admin],
            Method::Join => &[Role::Joining],
            Method::Ping | Method::Certify => &[Role::Gateway, Role::Meta, Role::Storage, Role::Admin],
        }
    }
}

numbered! {
    /// What the caller of a failed request should do.
    pub enum FailureKind {
        /// Try again, perhaps elsewhere: no leader, no connection, time ran out before the work began.
        Unavailable = 1,
        /// Try again after the delay: a queue is full.
        Busy = 2,
        /// Read again: the state is not what the request expected.
        Conflict = 3,
        /// Tell the user: the request can never succeed as it is.
        Invalid = 4,
        /// There is no such thing.
        NotFound = 5,
        /// Bytes fail their checksum: read elsewhere and repair.
        Corrupt = 6,
        /// The caller may not do this.
        Denied = 7,
        /// No space left for this class of work.
        Full = 8,
        /// The work may or may not have happened; ask again with the same request id.
        Unknown = 9,
        /// Another node leads; `leader` names it where known.
        NotLeader = 10,
        /// A bug on the other side.
        Internal = 11,
        /// The writer has been fenced: take a new writer id, write the stripes anew.
        Fenced = 12,
    }
}

record! {
    /// Why a request failed, as it travels.
    pub struct Failure {
        1 => kind: FailureKind,
        2 => text: String,
        3 -> retry_after_ms: Option<u64>,
        4 -> leader: Option<NodeId>,
        /// Where the leader is: the caller's map may be older than the leader.
        5 -> leader_address: Option<String>,
    }
}

impl Failure {
    /// Makes a failure without delay or leader.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Failure { kind, text: text.into(), retry_after_ms: None, leader: None, leader_address: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}
impl std::error::Error for Failure {}
impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Failure::new(FailureKind::Invalid, error.to_string())
    }
}
