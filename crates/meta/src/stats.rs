//! What a voter tells its metrics.

use plinth_protocol::{GroupId, NodeId};

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaState {
    /// Receives entries, does not vote.
    Learner,
    /// Follows a leader, or waits for one.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Stopped after an error; needs an operator.
    Stopped,
}

/// Upper bounds of the buckets of [`GroupStats::commit_buckets`], in milliseconds; a last one is open.
pub const COMMIT_BUCKETS_MS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096];

/// One group as one voter sees it.
#[derive(Debug, Clone)]
pub struct GroupStats {
    /// The group.
    pub group: GroupId,
    /// What this replica is.
    pub state: ReplicaState,
    /// The leader, where one is known.
    pub leader: Option<NodeId>,
    /// How often the leader has changed since the start.
    pub leader_changes: u64,
    /// The present term.
    pub term: u64,
    /// Number of the last entry.
    pub last_log: u64,
    /// Number of the last entry applied.
    pub applied: u64,
    /// Proposals by how long they took from queue to applied: counts per bucket of [`COMMIT_BUCKETS_MS`].
    pub commit_buckets: [u64; 13],
    /// Sum of these durations in microseconds.
    pub commit_us_total: u64,
    /// Mutations answered.
    pub mutations: u64,
    /// Entries proposed: mutations divided by entries is the merging.
    pub entries: u64,
    /// Proposals that failed or whose outcome is unknown.
    pub failed_proposals: u64,
    /// Linearizable reads answered.
    pub reads: u64,
    /// Rounds of leadership confirmation for them.
    pub read_rounds: u64,
    /// On the leader: entries that each peer lags behind.
    pub peer_lag: Vec<(NodeId, u64)>,
    /// Bytes of the database's files.
    pub database_bytes: u64,
    /// Entries in the log.
    pub log_entries: u64,
    /// Bytes of their payloads.
    pub log_bytes: u64,
    /// By how many milliseconds the median of the voters' clocks is ahead of the group's time, behind it where negative:
    /// told where this replica leads and it is beyond the bound, else 0.
    pub clock_stray_ms: i64,
}

/// A voter's counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct MetaStats {
    /// Each open group.
    pub groups: Vec<GroupStats>,
    /// Batches of the log made durable.
    pub log_batches: u64,
    /// Records of the log made durable.
    pub log_records: u64,
    /// Bytes written to the log.
    pub log_bytes_written: u64,
    /// Syncs of the log.
    pub log_syncs: u64,
    /// Bytes that the log can still take.
    pub log_free_bytes: u64,
    /// Bytes that the log may have in all.
    pub log_size_bytes: u64,
    /// Why this voter takes no growth, where its log or file system is short of room.
    pub no_room: Option<String>,
    /// Replicas that answer nothing for now and are being brought back: rebuilt from a peer, or waiting for space.
    pub recovering: usize,
    /// Records of the log with entries that are needed and can't be read back.
    pub log_damaged: u64,
    /// Raft messages refused because their sender is not the voter that group 0 knows.
    pub refused_messages: u64,
}
