//! A call as both sides see it, and the two seams: [`Link`] for the caller, [`Service`] for the callee.

use crate::certificate::CertificateFacts;
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use plinth_protocol::{ClusterId, Failure, FailureKind, Incarnation, Method, NodeId, Role};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Largest header of a request or a reply in bytes.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Largest payload of a request or a reply in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Longest deadline of a call; longer ones are cut to it.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A future in a box that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who a node is, as certificate and handshake prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster whose authority signed.
    pub cluster: ClusterId,
    /// The node; 0 for one that joins and has no id yet.
    pub node: NodeId,
    /// The roles that the certificate names.
    pub roles: Vec<Role>,
    /// The incarnation: the one that the certificate names; where an older certificate names none, the one that
    /// the node claims inside the encrypted handshake; 0 for one that joins.
    pub incarnation: Incarnation,
}

impl Identity {
    /// Returns the identity of a caller without a certificate: it may ask for admission, nothing else.
    pub fn anonymous(cluster: ClusterId) -> Self {
        Identity { cluster, node: NodeId(0), roles: vec![Role::Joining], incarnation: Incarnation(0) }
    }

    /// Returns whether one of the roles stands in the method's row of the role table.
    pub fn may_call(&self, method: Method) -> bool {
        self.roles.iter().any(|role| method.callers().contains(role))
    }

    /// Fails with `Denied` unless the role table lets the caller call the method.
    pub(crate) fn check_role(&self, method: Method) -> Result<(), Failure> {
        if self.may_call(method) {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Denied, format!("{} may not call {method:?}", self.node)))
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node that must answer.
    pub node: NodeId,
    /// The incarnation that must answer, where the caller knows it.
    pub incarnation: Option<Incarnation>,
    /// Host and port of the node-to-node socket.
    pub address: String,
}

impl Peer {
    /// Whoever of the cluster answers at the address. Only a node whose one role is `Admin` may dial
    /// this way: an operator's tool that knows an address and nothing else yet.
    pub fn at(address: impl Into<String>) -> Self {
        Peer { node: NodeId(0), incarnation: None, address: address.into() }
    }
}

/// A call that leaves.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is called.
    pub method: Method,
    /// The method's header record, at most [`HEADER_BYTES_MAX`].
    pub header: Bytes,
    /// Payload in parts that are sent one behind the other without a copy, together at most
    /// [`PAYLOAD_BYTES_MAX`].
    pub payload: Vec<Bytes>,
    /// Time that the call may take from now, connecting included; at most [`DEADLINE_MAX`].
    pub deadline: Duration,
}

/// The answer that arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The method's reply record.
    pub header: Bytes,
    /// The payload; its start is block-aligned.
    pub payload: Bytes,
}

/// A call that arrives, after the role table has let it pass.
#[derive(Debug)]
pub struct Request {
    /// Who calls.
    pub caller: Identity,
    /// The certificate that the caller showed; none inside a process and from a node that joins.
    pub certificate: Option<Arc<CertificateFacts>>,
    /// What is called.
    pub method: Method,
    /// The method's header record.
    pub header: Bytes,
    /// The payload; its start is block-aligned.
    pub payload: Bytes,
    /// When the caller stops waiting; work past it is dropped.
    pub deadline: Instant,
}

/// The answer that leaves.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The method's reply record, at most [`HEADER_BYTES_MAX`].
    pub header: Bytes,
    /// Payload in parts that are sent one behind the other without a copy, together at most
    /// [`PAYLOAD_BYTES_MAX`].
    pub payload: Vec<Bytes>,
}

/// The calling side of the transport.
pub trait Link: Send + Sync + 'static {
    /// Calls a peer. Dropping the future cancels the request on the other side.
    ///
    /// Fails with `Unavailable` where the request surely was not begun, with `Unknown` where it may
    /// have been, with `Corrupt` where the reply does not match its checksum, with `Invalid` where
    /// the call breaks a bound, and with whatever the service answers.
    fn call<'a>(&'a self, peer: &'a Peer, call: Call) -> BoxFuture<'a, Result<Reply, Failure>>;

    /// Takes note of an address at which a node may be found, beside the one that a caller names.
    fn learn_address(&self, _node: NodeId, _address: &str) {}

    /// Returns where others reach this node, where that is known.
    fn own_address(&self) -> Option<&str> {
        None
    }
}

/// The serving side of the transport.
pub trait Service: Send + Sync + 'static {
    /// Answers a request. The future is dropped when the caller cancels, when its deadline passes
    /// and when its connection breaks.
    ///
    /// The future's first poll runs on the task of the connection, and a future that is ready at
    /// once is answered from there: work of more than about 100 µs belongs behind an await.
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>>;

    /// Returns an upper estimate of the reply's bytes, which counts against the connection's bytes
    /// in flight while the request is served. Zero where replies are small.
    fn reply_bytes(&self, method: Method, header: &[u8]) -> usize {
        let _ = (method, header);
        0
    }
}

/// Checks header and payload against their bounds; returns the payload's bytes.
pub(crate) fn check_bounds(header: &Bytes, payload: &[Bytes]) -> Result<usize, Failure> {
    let bytes = payload.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
    if header.len() > HEADER_BYTES_MAX {
        return Err(Failure::new(FailureKind::Invalid, "header exceeds 1 MiB"));
    }
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(Failure::new(FailureKind::Invalid, "payload exceeds 8 MiB"));
    }
    Ok(bytes)
}

/// Joins a payload's parts into one run whose start is aligned; a single aligned part stays as it is.
pub(crate) fn join_aligned(mut parts: Vec<Bytes>) -> Bytes {
    parts.retain(|part| !part.is_empty());
    match parts.as_slice() {
        [] => return Bytes::new(),
        [only] if (only.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) => return only.clone(),
        _ => {}
    }
    let mut whole = AlignedBuf::zeroed(parts.iter().map(Bytes::len).sum());
    let mut at = 0;
    for part in &parts {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    whole.freeze()
}
