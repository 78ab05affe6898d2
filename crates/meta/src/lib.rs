//! The namespace and the cluster map, replicated through Raft.
//!
//! A node with the meta role runs one [`MetaNode`]: a voter of the system group (nodes, disks,
//! placement, buckets, access keys) and of object shards (objects, uploads, deferred deletes).
//! A mutation that reaches a group's leader is merged with all others that wait, becomes one log
//! entry, is replicated, and is decided by the state machine that every voter runs alike; a query is
//! answered after the leader has confirmed that it still leads.
//!
//! `state` decides and knows nothing of Raft; `raft` is the one module that knows openraft; `log`
//! is the Raft log on the journal, one for all groups of a node; `ledger` refuses voters that have
//! lost their memory; `node` puts them together. DESIGN.md has the formats and the crash argument.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod batch;
mod clock;
mod config;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod golden;
mod hearing;
mod ledger;
mod log;
mod node;
mod planted;
mod raft;
mod retention;
mod room;
pub mod state;
mod stats;

pub use config::{MetaConfig, MetaLimits, WallClock};
pub use error::MetaError;
pub use node::{MetaNode, VoterReport};
pub use stats::{COMMIT_BUCKETS_MS, GroupStats, MetaStats, ReplicaState};
