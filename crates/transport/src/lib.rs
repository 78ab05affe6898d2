//! The only way in which nodes talk, Raft included.
//!
//! A caller holds a [`Link`] and calls a [`Peer`]; the callee implements [`Service`]. Between the
//! two a call is a header, a payload and a deadline; dropping its future cancels it on both sides.
//!
//! [`TlsLink`] and [`Server`] carry calls over TCP and mutual TLS 1.3 with certificates of the
//! cluster's own [`authority`]: the callee knows the caller's [`Identity`], the caller knows that
//! it reached the node and the incarnation that it dialled, and who may call what is one table
//! ([`plinth_protocol::Method::callers`]) that stands before every service. [`LocalLink`] carries
//! the same calls inside one process, with faults to order, for the demo, tests and simulator.
//!
//! Read [`frame`] for the bytes, `session` for TLS, `channel` for how bytes become frames, `link` and
//! `caller` for the calling side, `server` and `serving` for the serving side.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod authority;
mod budget;
mod call;
mod caller;
pub mod certificate;
mod channel;
mod counters;
mod credentials;
mod error;
pub mod frame;
mod gate;
mod link;
mod local;
mod name;
mod pulse;
mod server;
mod serving;
mod session;
mod slots;

pub use authority::{Authority, Fingerprint, NodeCertificate, NodeKey};
pub use call::{
    BoxFuture, Call, DEADLINE_MAX, HEADER_BYTES_MAX, Identity, Link, PAYLOAD_BYTES_MAX, Peer, Reply, Request, Response,
    Service,
};
pub use certificate::CertificateFacts;
pub use counters::{DURATION_BOUNDS_US, MethodSnapshot, PeerSnapshot, Snapshot};
pub use credentials::{Credentials, provider as tls_provider};
pub use error::TransportError;
pub use gate::{HANDSHAKES_MAX, HANDSHAKES_PER_SECOND_MAX, HandshakeGate, Pass, source_of};
pub use link::{TlsLink, call_joining};
pub use local::{Fault, Judge, LocalLink, LocalNetwork, Passage};
pub use name::NodeName;
pub use server::{Allowed, BYTES_IN_FLIGHT_MAX, Server, ServerConfig};
