//! Whether voters have room for growth.
//!
//! A log or a file system that is full to the last byte stops a voter: nothing can be flushed, so nothing can be purged. So
//! leaders refuse growth well before (`Full`), while deletes and housekeeping, which make room, go on. A voter tells with
//! every reply whether it is short; growth goes on as long as the leader and a majority have room.

use crate::log::engine::lock;
use crate::log::handle::LogStat;
use plinth_protocol::{Failure, FailureKind, NodeId};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long a peer's word counts.
const PEER_WORD_MAX: Duration = Duration::from_secs(10);
/// Part of the log, one in so many bytes, that growth leaves to deletes and housekeeping.
const LOG_PART_KEPT: u64 = 8;
/// Once short, a voter wants one in so many bytes more than the least before it takes growth again.
const MORE_PART: u64 = 8;

/// What a voter knows of its own room and of its peers'.
#[derive(Default)]
pub(crate) struct Room {
    /// Why this voter takes no growth, where it does not.
    own: Mutex<Option<String>>,
    /// Peers without room, and when they last said so.
    peers: Mutex<BTreeMap<NodeId, Instant>>,
    /// Whether anybody is short: then a mutation pays for a look.
    is_any_short: AtomicBool,
}

/// How much room a voter has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) log: LogStat,
    /// Bytes that the file system can still take.
    pub(crate) free_bytes: u64,
    /// Bytes of them that are kept for what makes room.
    pub(crate) free_bytes_min: u64,
}

impl Room {
    /// Whether this voter asks for no growth.
    pub(crate) fn is_short(&self) -> bool {
        lock(&self.own).is_some()
    }

    /// Returns why this voter takes no growth, where it does not.
    pub(crate) fn shortage(&self) -> Option<String> {
        lock(&self.own).clone()
    }

    /// Whether a peer has said lately that it is short.
    pub(crate) fn is_peer_short(&self, peer: NodeId) -> bool {
        lock(&self.peers).get(&peer).is_some_and(|at| at.elapsed() < PEER_WORD_MAX)
    }

    /// Takes a peer's word.
    pub(crate) fn note_peer(&self, peer: NodeId, is_short: bool) {
        if !is_short && !self.is_any_short.load(Ordering::Acquire) {
            return;
        }
        let mut peers = lock(&self.peers);
        match is_short {
            true => drop(peers.insert(peer, Instant::now())),
            false => drop(peers.remove(&peer)),
        }
        let is_any_short = !peers.is_empty() || self.is_short();
        self.is_any_short.store(is_any_short, Ordering::Release);
    }

    /// Takes how much room this voter has.
    pub(crate) fn note_own(&self, sizes: &Sizes) {
        let mut own = lock(&self.own);
        let found = shortage(sizes, own.is_some());
        match (&*own, &found) {
            (None, Some(why)) => tracing::warn!(%why, "this metadata node has no room for growth"),
            (Some(_), None) => tracing::info!("this metadata node has room for growth again"),
            _ => {}
        }
        *own = found;
        let is_any_short = own.is_some() || !lock(&self.peers).is_empty();
        self.is_any_short.store(is_any_short, Ordering::Release);
    }

    /// Fails with `Full` where growth must not go on: this voter, the leader, is short, or so many peers are that no
    /// majority has room.
    pub(crate) fn check_growth(&self, node: NodeId, voters: impl FnOnce() -> Vec<NodeId>) -> Result<(), Failure> {
        if !self.is_any_short.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(why) = self.shortage() {
            return Err(Failure::new(FailureKind::Full, format!("metadata node {node} has no room for growth: {why}")));
        }
        let voters = voters();
        let short = voters.iter().filter(|voter| self.is_peer_short(**voter)).count();
        if (voters.len() - short) * 2 <= voters.len() {
            let text = format!("{short} of {} metadata nodes have no room for growth", voters.len());
            return Err(Failure::new(FailureKind::Full, text));
        }
        Ok(())
    }
}

/// Says why a voter takes no growth, where it does not. One that was short wants a little more than the least.
fn shortage(sizes: &Sizes, was_short: bool) -> Option<String> {
    let wanted = |bytes: u64| if was_short { bytes.saturating_add(bytes / MORE_PART) } else { bytes };
    let Sizes { log, free_bytes, free_bytes_min } = sizes;
    let mib = |bytes: u64| bytes >> 20;
    if log.is_full {
        return Some("its Raft log is full; it goes on by itself once there is room".into());
    }
    if *free_bytes < wanted(*free_bytes_min) {
        let (free, kept) = (mib(*free_bytes), mib(wanted(*free_bytes_min)));
        return Some(format!("its file system has {free} MiB free, of which {kept} MiB are kept for deletes"));
    }
    let log_bytes = log.free_bytes.min(log.made_bytes.saturating_add(*free_bytes));
    let log_kept = wanted(log.size_bytes / LOG_PART_KEPT);
    if log_bytes < log_kept {
        let (free, kept) = (mib(log_bytes), mib(log_kept));
        return Some(format!("its Raft log has {free} MiB free, of which {kept} MiB are kept for deletes"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sizes(log_free: u64, log_made: u64, free: u64) -> Sizes {
        let log = LogStat {
            free_bytes: log_free * MIB,
            made_bytes: log_made * MIB,
            size_bytes: 800 * MIB,
            ..LogStat::default()
        };
        Sizes { log, free_bytes: free * MIB, free_bytes_min: 100 * MIB }
    }

    #[test]
    fn voter_is_short_well_before_its_log_or_its_file_system_is_full() {
        assert_eq!(shortage(&sizes(700, 30, 1000), false), None);
        assert!(shortage(&sizes(99, 30, 1000), false).unwrap().contains("Raft log has 99 MiB free"));
        assert!(shortage(&sizes(700, 30, 99), false).unwrap().contains("file system has 99 MiB free"));
        let full = LogStat { is_full: true, ..sizes(700, 30, 1000).log };
        assert!(shortage(&Sizes { log: full, ..sizes(700, 30, 1000) }, false).unwrap().contains("full"));
    }

    #[test]
    fn log_segments_that_the_file_system_can_not_hold_are_no_room() {
        let narrow = Sizes { free_bytes_min: 10 * MIB, ..sizes(700, 30, 50) };
        assert!(shortage(&narrow, false).unwrap().contains("Raft log has 80 MiB free"));
        assert_eq!(shortage(&Sizes { free_bytes_min: 10 * MIB, ..sizes(700, 60, 50) }, false), None);
    }

    #[test]
    fn voter_that_was_short_wants_more_than_the_least() {
        assert_eq!(shortage(&sizes(700, 30, 105), false), None);
        assert!(shortage(&sizes(700, 30, 105), true).is_some());
        assert_eq!(shortage(&sizes(700, 30, 113), true), None);
    }

    #[tokio::test]
    async fn growth_goes_on_while_leader_and_majority_have_room() {
        let room = Room::default();
        let voters = || vec![NodeId(1), NodeId(2), NodeId(3)];
        let grow = || room.check_growth(NodeId(1), voters).map_err(|failure| failure.kind);
        assert_eq!(grow(), Ok(()));
        room.note_peer(NodeId(2), true);
        assert_eq!(grow(), Ok(()), "two of three have room");
        room.note_peer(NodeId(3), true);
        assert_eq!(grow(), Err(FailureKind::Full));
        room.note_peer(NodeId(2), false);
        assert_eq!(grow(), Ok(()));
        room.note_own(&sizes(700, 30, 5));
        assert_eq!(grow(), Err(FailureKind::Full), "a leader without room takes no growth");
        room.note_own(&sizes(700, 30, 500));
        assert_eq!(grow(), Ok(()));
    }
}
