//! The only place where bytes become durable.
//!
//! A journal owns one disk: recycled segments of fixed size and a superblock. Consumers append
//! records (a kind, a body, perhaps a block-aligned payload); everything queued goes to the disk as
//! one batch and is made durable by one sync; only then is any of it reported as durable. An error
//! of a write or a sync fences the journal for good.
//!
//! [`Disk`] is the seam: [`UringDisk`] is a folder of O_DIRECT files behind one io_uring,
//! [`SimDisk`] a disk in memory that crashes. [`Journal`] decides and never does I/O:
//! [`Recovery`] turns a disk into a journal and yields its records, [`driver`] is the loop of one
//! thread per disk that storage and the Raft log share. DESIGN.md has the crash argument; the
//! byte tables stand in [`record`], [`segment`] and [`superblock`].

#![cfg_attr(test, allow(clippy::disallowed_methods))]

// The suites of tests/ plant bugs in the crate's own test build: they know it by its name.
#[cfg(test)]
extern crate self as plinth_journal;
#[cfg(test)]
#[path = "../tests/harness/mod.rs"]
mod harness;

mod batch;
mod blocking;
pub mod disk;
pub mod driver;
mod error;
mod fields;
mod folder;
mod journal;
mod mount;
mod planted;
pub mod record;
mod recovery;
pub mod segment;
pub mod sim;
mod staging;
pub mod superblock;
mod table;
mod tail;
mod uring;
mod walk;

pub use disk::{
    Action, Area, Completion, Disk, DiskError, Done, Fill, OpId, Operation, SUPER_BYTES, SegmentIndex, Waker,
};
pub use driver::{Engine, Handle};
pub use error::{JournalError, Refused};
pub use journal::{
    Append, Event, Journal, JournalOptions, JournalStats, NewSegments, Placed, ReadToken, SegmentInfo, SegmentState,
};
pub use record::{
    BODY_BYTES_MAX, Generation, HEAD_BYTES, KIND_CONSUMER_MIN, PAYLOAD_BYTES_MAX, Position, Sequence, Stream,
    head_and_body_bytes, record_bytes,
};
pub use recovery::{Cut, Damage, Recovered, Recovery, format, inspect};
pub use sim::SimDisk;
pub use superblock::{Checkpoint, DiskIdentity, Format, Mark, NOTE_BYTES_MAX, StreamEnd, Superblock};
pub use uring::UringDisk;
