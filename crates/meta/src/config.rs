//! What a voter is told at its start, and every limit that it keeps.

use plinth_protocol::meta::Founding;
use plinth_protocol::{ClusterId, NodeId};
use std::path::PathBuf;
use std::sync::Arc;

/// Returns milliseconds since 1970 by the wall clock.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a voter starts.
#[derive(Clone)]
pub struct MetaConfig {
    /// The cluster that the voter belongs to.
    pub cluster: ClusterId,
    /// The voter.
    pub node: NodeId,
    /// Where the voter keeps its log and its databases; made where absent.
    pub folder: PathBuf,
    /// The founding of the cluster, the same for all founding voters (`map.voters`, whose addresses stand in
    /// `map.nodes`); may be given at every start, counts only where the cluster has not been founded.
    pub found: Option<Founding>,
    /// The wall clock.
    pub clock: WallClock,
    /// A random number of this start's own.
    pub seed: u64,
    /// Bounds and times.
    pub limits: MetaLimits,
}

/// Bounds and times of a voter. Every default suits a production voter.
#[derive(Debug, Clone)]
pub struct MetaLimits {
    /// Shortest time, in milliseconds, that a follower waits beyond the leader's lease before it stands for election.
    pub election_ms_min: u64,
    /// Longest such time, in milliseconds; as long is the leader's lease, within which nobody votes for another. A
    /// silent leader is thus replaced after `election_ms_max` and `election_ms_min` to twice `election_ms_max`.
    pub election_ms_max: u64,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds for which a follower may learn of a commit later than it could, so that the entries behind it carry
    /// the news; at most 50: a leader that has been removed goes on for 150 so that the others hear of it.
    pub commit_delay_ms: u64,
    /// Bytes of mutations merged into one entry.
    pub entry_bytes_max: usize,
    /// Mutations merged into one entry.
    pub entry_mutations_max: usize,
    /// Bytes of one mutation; larger ones are refused as `Invalid`.
    pub mutation_bytes_max: usize,
    /// Entries of a group that wait for their commit at one time; more mutations gather meanwhile.
    pub entries_in_flight_max: usize,
    /// Bytes of mutations that wait in one group; beyond that the answer is `Busy`.
    pub queue_bytes_max: usize,
    /// Reads that wait in one group; beyond that the answer is `Busy`.
    pub queue_reads_max: usize,
    /// Bytes of entries in one message to a follower.
    pub append_bytes_max: usize,
    /// Entries in one message to a follower.
    pub append_entries_max: u64,
    /// Bytes of a log segment.
    pub log_segment_bytes: u32,
    /// Most segments of the log.
    pub log_segments_max: u32,
    /// Free bytes of the file system of log and databases below which growth is refused, and flushes and deletes go on.
    pub room_bytes_min: u64,
    /// Bytes of recent entries kept in RAM, per group.
    pub log_cache_bytes: usize,
    /// Bytes of entries that are kept, per group, although all of them are applied and flushed and no member lacks them.
    pub log_keep_bytes: u64,
    /// Bytes of entries that are kept, over all groups, for members that lag further behind; at most a quarter of the log.
    pub log_lag_bytes: u64,
    /// Bytes of entries applied after which the database is flushed and the log purged.
    pub flush_bytes: u64,
    /// Entries applied after which that happens.
    pub flush_entries: u64,
    /// Milliseconds after which that happens although little has been applied.
    pub flush_ms: u64,
    /// Entries behind the leader from which on a follower is sent a snapshot, where the log no longer has them all.
    pub snapshot_lag_entries: u64,
    /// Bytes of one piece of a snapshot.
    pub snapshot_chunk_bytes: usize,
    /// Milliseconds that one piece of a snapshot may take.
    pub snapshot_chunk_ms: u64,
    /// Bytes of the cache that the databases of all groups share.
    pub database_cache_bytes: usize,
    /// Bytes of rows not yet flushed, over the databases of all groups.
    pub database_buffer_bytes: usize,
    /// Milliseconds between two pings of every node by the leader of the system group.
    pub ping_ms: u64,
    /// Milliseconds of silence after which a node is `Suspect`.
    pub suspect_ms: u64,
    /// Milliseconds of silence after which a node is `Down`.
    pub down_ms: u64,
    /// Records by which a voter's durable floor must have moved before group 0 is told.
    pub floor_step: u64,
    /// Milliseconds that a new learner may take to catch up.
    pub catch_up_ms: u64,
}

impl Default for MetaLimits {
    fn default() -> Self {
        MetaLimits {
            election_ms_min: 350,
            election_ms_max: 700,
            heartbeat_ms: 180,
            commit_delay_ms: 20,
            entry_bytes_max: 1 << 20,
            entry_mutations_max: 1_024,
            mutation_bytes_max: 2 << 20,
            entries_in_flight_max: 2,
            queue_bytes_max: 64 << 20,
            queue_reads_max: 100_000,
            append_bytes_max: 4 << 20,
            append_entries_max: 256,
            log_segment_bytes: 32 << 20,
            log_segments_max: 64,
            room_bytes_min: 512 << 20,
            log_cache_bytes: 16 << 20,
            log_keep_bytes: 32 << 20,
            log_lag_bytes: 512 << 20,
            flush_bytes: 64 << 20,
            flush_entries: 200_000,
            flush_ms: 600_000,
            snapshot_lag_entries: 100_000,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_chunk_ms: 10_000,
            database_cache_bytes: 64 << 20,
            database_buffer_bytes: 64 << 20,
            ping_ms: 1_000,
            suspect_ms: 5_000,
            down_ms: 30_000,
            floor_step: 10_000,
            catch_up_ms: 600_000,
        }
    }
}
