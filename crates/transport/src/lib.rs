//! The only way in which nodes talk, Raft included.
//!
//! A caller holds a [`Link`] and calls a [`Peer`]; the callee implements [`Service`]. Between the
//! two a call is a header, a payload and a deadline; dropping its future cancels it on both sides.
//!
//! `TlsLink` and `Server` carry calls over TCP and mutual TLS 1.3 with certificates of the
//! cluster's own `authority`: the callee knows the caller's [`Identity`], the caller knows that
//! it reached the node and the incarnation that it dialled, and who may call what is one table
//! ([`plinth_protocol::Method::callers`]) that stands before every service. [`LocalLink`] carries
//! the same calls inside one process, with faults to order, for the demo, tests and simulator.
//!
//! Read `frame` for the bytes, `session` for TLS, `channel` for how bytes become frames,
//! `caller` for the calling side and `server` for the serving side.

pub mod authority;
mod call;
mod credentials;
mod error;
pub mod frame;
mod local;
mod name;
mod session;

pub use authority::{Authority, Fingerprint, NodeCertificate, NodeKey};
pub use call::{
    BoxFuture, Call, DEADLINE_MAX, HEADER_BYTES_MAX, Identity, Link, PAYLOAD_BYTES_MAX, Peer, Reply, Request, Response,
    Service,
};
pub use credentials::Credentials;
pub use error::TransportError;
pub use local::{Fault, Judge, LocalLink, LocalNetwork, Passage};
pub use name::NodeName;
