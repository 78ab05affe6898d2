//! Puts and gets objects across meta and storage nodes.
//!
//! A [`Client`] learns the cluster map and keeps it fresh, finds the leader of the group that owns
//! a key, and repeats a request under one id until it is answered. An [`ObjectWriter`] turns the
//! bytes of an object into stripes: copied once into frames, erasure-coded while warm, sent to a
//! placement group's disks and answered at the write quorum. An [`ObjectReader`] is the mirror: it
//! reads just the frames of a range, verifies each, and rebuilds from any k others what is
//! missing, slow or corrupt. Housekeeping fills in fragments that a hedged write owes and carries
//! out deferred deletes.
//!
//! Read `route` for the way to the metadata, `layout` and `filling` for how a stripe is laid out
//! and made, `send` for the quorum, `fetch` for degraded and hedged reads, `memory` for what
//! bounds it all.

mod bucket;
mod chance;
mod chart;
mod client;
mod config;
mod counters;
mod disk;
mod fetch;
mod filling;
mod health;
mod housekeeping;
mod layout;
mod list;
mod memory;
mod read;
mod readers;
mod route;
#[doc(hidden)]
pub mod saga;
mod send;
mod times;
mod write;
mod writer_id;

pub use client::Client;
pub use config::{
    CHUNK_BYTES_MAX, ClientConfig, Clock, META_CALLS_MAX, POOL_BYTES_MAX, READ_AHEAD_BYTES_MAX, READ_BYTES_MAX,
    READ_LEAN_BYTES_MAX, REBUILD_BYTES_MAX, RETENTION, SHORT_STRIPES_MAX, SPLIT_BYTES_MIN, STAGED_BYTES_MAX,
    STRIPES_IN_FLIGHT_MAX, WRITE_BYTES_MAX, WRITER_ROTATION,
};
pub use counters::{CALL_TIME_BOUNDS_US, CallTimes, CounterSnapshot};
pub use housekeeping::Housekeeping;
pub use read::ObjectReader;
pub use write::ObjectWriter;
