//! The replicated state machine: what every voter of a group computes alike from its log.
//!
//! [`Machine::apply`] is a pure function of the log: no clock, no chance, no map-iteration order.
//! It turns one log entry into one atomic batch of rows, the applied position among them, so that
//! a crash leaves the state of some entry's end and never half an entry. [`Reader::query`] answers
//! from a consistent view of the rows while later entries are being applied.
//!
//! Start at [`store`] for the key-value face with its two implementations ([`MemoryStore`],
//! [`RocksStore`]), [`keys`] for how keys keep their order, [`rows`] for the byte form of rows,
//! then [`machine`]. What commands do lies in `objects`, `uploads`, `garbage`, `buckets` (object
//! shards) and `registry`, `directory` (the system group); `listing` and `query` read;
//! [`placement`] plans placement groups, [`layout`] decides whether a new plan is wanted.

pub mod keys;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod placement;
pub mod rocks;
pub mod rows;
pub mod store;

mod admission;
mod buckets;
mod certificates;
mod directory;
mod discards;
mod error;
mod garbage;
mod listing;
mod multipart;
mod objects;
mod query;
mod recall;
mod registry;
mod uploads;
mod work;

#[cfg(test)]
mod tests;

pub use admission::{ENTRY_ROWS_MAX, check, row_operations};
pub use error::StateError;
pub(crate) use machine::grows;
pub use machine::{Applied, Background, LogPosition, Machine, Reader};
pub use memory::MemoryStore;
pub use rocks::{Fault, RocksMemory, RocksStore};
pub use store::{Batch, Cursor, Family, KeyRange, Store, View};
