//! What a node counts about its calls, as plain numbers for its metrics.

use plinth_protocol::{Failure, FailureKind, Method, NodeId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the duration buckets in microseconds; one more bucket takes what is longer.
pub const DURATION_BOUNDS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000, 10_000_000];

/// Peers that are counted one by one; those beyond share one entry under node id 0.
pub const PEERS_COUNTED_MAX: usize = 4096;

const KINDS: usize = FailureKind::ALL.len();
const METHODS: usize = Method::ALL.len();

/// The counters of one side of the transport.
#[derive(Default)]
pub(crate) struct Counters {
    methods: [MethodCounters; METHODS],
    peers: Mutex<BTreeMap<NodeId, Arc<PeerCounters>>>,
    pub(crate) connections_opened: AtomicU64,
    pub(crate) connections_closed: AtomicU64,
    pub(crate) handshakes_refused: AtomicU64,
    pub(crate) handshakes_throttled: AtomicU64,
    pub(crate) checksum_mismatches: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) reading_paused: AtomicU64,
}

#[derive(Default)]
struct MethodCounters {
    calls: AtomicU64,
    duration_us: AtomicU64,
    buckets: [AtomicU64; DURATION_BOUNDS_US.len() + 1],
}

/// The counters of one peer.
#[derive(Default)]
pub(crate) struct PeerCounters {
    calls: AtomicU64,
    failures: [AtomicU64; KINDS],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl PeerCounters {
    pub(crate) fn add_bytes(&self, sent: usize, received: usize) {
        self.sent_bytes.fetch_add(sent as u64, Relaxed);
        self.received_bytes.fetch_add(received as u64, Relaxed);
    }
}

impl Counters {
    pub(crate) fn peer(&self, node: NodeId) -> Arc<PeerCounters> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let node = if peers.len() < PEERS_COUNTED_MAX || peers.contains_key(&node) { node } else { NodeId(0) };
        peers.entry(node).or_default().clone()
    }

    pub(crate) fn record(&self, peer: &PeerCounters, method: Method, took: Duration, failure: Option<&Failure>) {
        let counters = &self.methods[method as usize - 1];
        let took_us = took.as_micros() as u64;
        counters.calls.fetch_add(1, Relaxed);
        counters.duration_us.fetch_add(took_us, Relaxed);
        let bucket = DURATION_BOUNDS_US.partition_point(|bound| *bound < took_us);
        counters.buckets[bucket].fetch_add(1, Relaxed);
        peer.calls.fetch_add(1, Relaxed);
        if let Some(failure) = failure {
            peer.failures[failure.kind as usize - 1].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let methods = Method::ALL.iter().zip(&self.methods).map(|(method, counters)| {
            let buckets = counters.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
            let (calls, duration_us) = (counters.calls.load(Relaxed), counters.duration_us.load(Relaxed));
            (*method, MethodSnapshot { calls, duration_us, buckets })
        });
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peers = peers.iter().map(|(node, counters)| {
            let failures = FailureKind::ALL.iter().zip(&counters.failures);
            let failures = failures.map(|(kind, count)| (*kind, count.load(Relaxed))).filter(|(_, count)| *count > 0);
            let snapshot = PeerSnapshot {
                calls: counters.calls.load(Relaxed),
                failures: failures.collect(),
                sent_bytes: counters.sent_bytes.load(Relaxed),
                received_bytes: counters.received_bytes.load(Relaxed),
            };
            (*node, snapshot)
        });
        Snapshot {
            methods: methods.collect(),
            peers: peers.collect(),
            connections_opened: self.connections_opened.load(Relaxed),
            connections_closed: self.connections_closed.load(Relaxed),
            handshakes_refused: self.handshakes_refused.load(Relaxed),
            handshakes_throttled: self.handshakes_throttled.load(Relaxed),
            checksum_mismatches: self.checksum_mismatches.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            reading_paused: self.reading_paused.load(Relaxed),
        }
    }
}

/// The counters of one side at one moment; all count up from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By method.
    pub methods: BTreeMap<Method, MethodSnapshot>,
    /// By the node on the other side.
    pub peers: BTreeMap<NodeId, PeerSnapshot>,
    /// Connections that finished their handshake.
    pub connections_opened: u64,
    /// Connections that ended after it.
    pub connections_closed: u64,
    /// Connections that were refused before or during it, for whatever reason.
    pub handshakes_refused: u64,
    /// Connections that were closed unread because too many came at once.
    pub handshakes_throttled: u64,
    /// Frames whose header or payload failed its checksum.
    pub checksum_mismatches: u64,
    /// Calls whose caller stopped waiting.
    pub cancelled: u64,
    /// How often a connection stopped reading because too many bytes were in flight.
    pub reading_paused: u64,
}

/// The counters of one method.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MethodSnapshot {
    /// Calls that ended, failed ones included.
    pub calls: u64,
    /// Time that they took together, in microseconds.
    pub duration_us: u64,
    /// Calls by duration: up to each of [`DURATION_BOUNDS_US`], then longer ones.
    pub buckets: Vec<u64>,
}

/// The counters of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSnapshot {
    /// Calls that ended, failed ones included.
    pub calls: u64,
    /// Failures by kind; kinds that did not occur are absent.
    pub failures: BTreeMap<FailureKind, u64>,
    /// Bytes of headers and payloads sent.
    pub sent_bytes: u64,
    /// Bytes of headers and payloads received.
    pub received_bytes: u64,
}
