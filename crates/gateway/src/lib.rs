//! Speaks S3 over HTTP and turns it into calls of the cluster's client.
//!
//! A connection is accepted by [`serve`] and watched below the parser (`guard`); each request
//! walks through `gateway` in a fixed order: it is read (`head`), routed and checked against one
//! support table (`support`), proved (`signature`), admitted (`admission`), its body proved while
//! it streams (`payload`, `chunked`, `hashing`), and answered by one function in `ops`. S3's error codes
//! stand in `error` alone; XML is written and read in `xml`. What the gateway asks of the cluster
//! is the [`Store`] trait, which the client crate fills.
//!
//! Refuse, never ignore: a word of S3's vocabulary that is not implemented is answered with 501 and
//! its name, never passed over. `DESIGN.md` beside this crate tells why the front is our own.

mod admission;
mod checksum;
mod chunked;
mod conditions;
mod dates;
mod error;
mod gateway;
mod guard;
mod hashing;
mod head;
mod journey;
mod metrics;
mod ops;
mod pace;
mod payload;
mod pieces;
mod range;
mod reply;
mod server;
mod signature;
mod store;
mod stored;
pub mod support;
mod throttle;
mod token;
mod xml;

pub use admission::{BODY_BYTES_IN_FLIGHT, BODY_BYTES_IN_FLIGHT_MIN, BODY_ENTRY_BYTES, BODY_RESERVE_BYTES_MAX};
pub use error::{Code, S3Error};
pub use gateway::{COMMIT_WAIT_MAX, DRAIN_BYTES_MAX, Gateway, GatewayConfig};
pub use journey::KeyLogging;
pub use metrics::Metrics;
pub use pace::{BODY_RATE_MIN, Patience};
pub use server::serve;
pub use signature::{Credential, KeyRing, StaticKeys};
pub use store::{BodyReader, BodyWriter, Store};
