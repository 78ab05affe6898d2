//! The Raft log of a node: one journal for all groups, one sync per batch over all of them.
//!
//! Votes and entries are one ordered durable stream. [`view`] is what a group's log looks like now
//! (in RAM, readable the moment an append returns); [`record`] is how each change becomes bytes;
//! [`replay`] reads them back; [`engine`] decides what is written, when it counts, and which segments may go; [`handle`] is the
//! thread that owns the journal and the face towards the rest of the crate.

pub(crate) mod engine;
pub(crate) mod handle;
pub(crate) mod holdings;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod view;

#[cfg(test)]
mod format;
#[cfg(test)]
mod full;
#[cfg(test)]
mod model;

use plinth_protocol::NodeId;
use plinth_protocol::wire::{Wire, WireError};
use std::fmt;

/// The place of an entry in a group's log: who led when it was proposed, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term of the leader that proposed the entry.
    pub term: u64,
    /// That leader.
    pub leader: NodeId,
    /// The entry's number, from 0 on, without holes.
    pub index: u64,
}

/// Bytes of an encoded [`LogId`]: term, leader, index, each 8 bytes little-endian.
pub(crate) const LOG_ID_BYTES: usize = 24;

impl Wire for LogId {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.leader.0.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
    }

    fn decode(input: &[u8]) -> Result<Self, WireError> {
        let input: &[u8; LOG_ID_BYTES] = input.try_into().map_err(|_| WireError::OutOfRange("log id"))?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&input[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Ok(LogId { term: word(0), leader: NodeId(word(8)), index: word(16) })
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.term, self.leader, self.index)
    }
}
