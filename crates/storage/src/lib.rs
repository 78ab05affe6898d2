//! The storage node: fragments on local disks.
//!
//! A fragment arrives whole, as frames that each carry checksum and identity. The [`Engine`] of its
//! disk verifies them, appends them to the disk's journal as one record, and answers when the record
//! is durable. A compact index in RAM says where each fragment lies; deletes are tombstone records;
//! segments that are mostly dead are compacted. What fails a check is quarantined: never returned,
//! never deleted. The node decides nothing about the life of a fragment.
//!
//! [`StorageNode`] is the face to the process: it runs one thread and one ring per disk and routes
//! requests to them. The engine itself does no I/O and takes time as an argument, so that tests and
//! the simulator drive the same code on a simulated disk. DESIGN.md has invariants, formats and the
//! crash argument.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

// The suites of tests/ plant bugs in the crate's own test build: they know it by its name.
#[cfg(test)]
extern crate self as plinth_storage;
#[cfg(test)]
#[path = "../tests/sim/mod.rs"]
mod sim;

mod admission;
mod budget;
pub mod checkpoint;
mod dead;
mod engine;
mod error;
mod index;
mod node;
mod planted;
mod queue;
mod space;
mod stats;
pub mod tombstone;

pub use admission::FRAGMENT_BYTES_MAX;
pub use budget::BYTES_IN_FLIGHT_MAX;
pub use dead::DeadRecord;
pub use engine::{Answer, Command, Engine, EngineOptions, Opened, RecoveryReport, Request, Ticket};
pub use error::StorageError;
pub use index::{IndexEntry, Place};
pub use node::{
    DiskConfig, DiskMetrics, FormatConfig, OpenedDisk, SEGMENT_BYTES_MAX, StorageConfig, StorageNode, format_disk,
};
pub use stats::{DiskStats, DiskStatsSnapshot, HistogramSnapshot};
