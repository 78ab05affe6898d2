//! What a client is told at its start, and the limits that it keeps.

use plinth_protocol::NodeId;
use plinth_transport::Peer;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Tells wall time in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Default of [`ClientConfig::write_bytes_max`].
pub const WRITE_BYTES_MAX: usize = 288 << 20;
/// Default of [`ClientConfig::read_bytes_max`].
pub const READ_BYTES_MAX: usize = 128 << 20;
/// Default of [`ClientConfig::pool_bytes_max`].
pub const POOL_BYTES_MAX: usize = WRITE_BYTES_MAX;
/// Bytes of fragments that all rebuilds of the client may hold as inputs; further ones wait.
pub const REBUILD_BYTES_MAX: usize = 64 << 20;
/// Most stripes of one object on their way to the disks, beside the one that is being filled.
pub const STRIPES_IN_FLIGHT_MAX: usize = 2;
/// Objects up to this size are one data fragment; larger ones are split over up to k.
pub const SPLIT_BYTES_MIN: u64 = 256 << 10;
/// Most bytes on disk that one read asks of a fragment.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Most bytes that one reader has asked for ahead of its caller.
pub const READ_AHEAD_BYTES_MAX: usize = 4 << 20;
/// What a reader asks for at a time where the memory of all readers is taken: it goes on at once, beyond the budget.
pub const READ_LEAN_BYTES_MAX: usize = 128 << 10;
/// A reader holds at most this part of what is free, so that whoever comes later finds some.
pub const READ_SHARE_OF_FREE: usize = 8;
/// Bytes of an object that wait, outside the budget of stripes, until so many have come that a stripe is opened.
pub const STAGED_BYTES_MAX: usize = 64 << 10;
/// Most stripes of one object that are closed before they are full because its sender stalled.
pub const SHORT_STRIPES_MAX: usize = 256;
/// Most calls to metadata groups at a time; further ones wait.
pub const META_CALLS_MAX: usize = 4096;
/// How long a writer id is used before the next one is taken.
pub const WRITER_ROTATION: Duration = Duration::from_secs(6 * 3600);

/// Default of [`ClientConfig::deferred_delete_after`].
pub const RETENTION: Duration = Duration::from_secs(15 * 60);

/// What a client is told at its start.
#[derive(Clone)]
pub struct ClientConfig {
    /// The node on which the client runs: group 0 hands out writer ids to it.
    pub node: NodeId,
    /// Meta nodes from which to learn the map; any one of them that answers will do.
    pub peers: Vec<Peer>,
    /// Wall time, for signatures, the order of request ids, and to tell people how far it is off.
    pub clock: Clock,
    /// Randomness from the operating system: request, bucket and stripe ids are drawn from it.
    pub seed: [u8; 32],
    /// How long `connect` tries to learn the map.
    pub connect_timeout: Duration,
    /// How often the map is asked for when nothing hints that it has changed: a new disk gets stripes, and a
    /// drained one no more, that much later. Costs one read of group 0.
    pub map_refresh_every: Duration,
    /// Bytes of stripe buffers that all writers of the client may hold; further ones wait.
    pub write_bytes_max: usize,
    /// Bytes that all readers of the client may hold or have asked for; further ones wait.
    pub read_bytes_max: usize,
    /// Bytes of buffers, in use and idle, above which none is kept for the next stripe. Less than
    /// `write_bytes_max` costs page faults under load: three times the processor time of large puts.
    pub pool_bytes_max: usize,
    /// Age, by the shard's own time, at which a deferred delete is carried out: the retention of deleted data. A read
    /// that began before the deletion and goes on for longer is cut.
    pub deferred_delete_after: Duration,
    /// Age, by the shard's own time, at which an owed fragment is filled in.
    pub fill_in_after: Duration,
    /// Pause between two rounds of housekeeping.
    pub housekeeping_every: Duration,
}

impl ClientConfig {
    /// Makes a configuration with the default limits.
    pub fn new(node: NodeId, peers: Vec<Peer>, clock: Clock, seed: [u8; 32]) -> Self {
        ClientConfig {
            node,
            peers,
            clock,
            seed,
            connect_timeout: Duration::from_secs(30),
            map_refresh_every: Duration::from_millis(500),
            write_bytes_max: WRITE_BYTES_MAX,
            read_bytes_max: READ_BYTES_MAX,
            pool_bytes_max: POOL_BYTES_MAX,
            deferred_delete_after: RETENTION,
            fill_in_after: Duration::from_secs(5),
            housekeeping_every: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for ClientConfig {
    /// Shows everything but the seed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("node", &self.node)
            .field("peers", &self.peers)
            .field("write_bytes_max", &self.write_bytes_max)
            .field("read_bytes_max", &self.read_bytes_max)
            .field("pool_bytes_max", &self.pool_bytes_max)
            .finish_non_exhaustive()
    }
}
