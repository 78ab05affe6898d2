//! The cluster map: nodes, disks, placement groups, shards, under one epoch.

use crate::ids::{BucketId, ClusterId, DiskId, Epoch, GroupId, Incarnation, NodeId, PgId};
use crate::rpc::Role;
use crate::stripe::Code;
use crate::{numbered, record};

numbered! {
    /// What group 0 holds of a node or a disk. Only group 0 changes it.
    pub enum State {
        /// Serves.
        Up = 1,
        /// Silent for seconds, or nobody listens at its address: avoided for new stripes.
        Suspect = 2,
        /// Known not to serve.
        Down = 3,
        /// Given up: its contents are to be rebuilt elsewhere.
        Failed = 4,
        /// Being emptied.
        Draining = 5,
        /// Emptied and gone for good.
        Retired = 6,
    }
}

record! {
    /// A node as group 0 knows it.
    pub struct NodeRecord {
        1 => node: NodeId,
        /// A name for people: letters, digits, `-`; unique in the cluster.
        2 => name: String,
        3 => roles: Vec<Role>,
        /// Host and port of the node-to-node socket.
        4 => address: String,
        5 => incarnation: Incarnation,
        6 => state: State,
        /// The failure domain, by default the node's own name.
        7 => domain: String,
        8 -> version: Option<String>,
        /// SHA-256 of the public key in the node's certificate, once it is known: no other certificate is believed.
        16 -> public_key: Option<[u8; 32]>,
    }
}

record! {
    /// A disk as group 0 knows it.
    pub struct DiskRecord {
        1 => disk: DiskId,
        2 => node: NodeId,
        3 => incarnation: Incarnation,
        4 => state: State,
        /// Name for people: `<node>/d<number>`.
        5 => name: String,
        6 => size_bytes: u64,
        7 -> used_bytes: Option<u64>,
        /// Damage found on it and kept aside, as last reported.
        8 -> quarantined: Option<u64>,
        /// Used bytes from which on it takes no new objects: less than its share of the size where it has few segments,
        /// some of which are kept free for compaction.
        9 -> write_stop_bytes: Option<u64>,
    }
}

/// Share of a disk's size, as one part in so many, from which a change of its used bytes is worth a
/// new epoch of the map.
pub const USED_BYTES_STEPS: u64 = 100;

/// Share of a disk's size, in percent, at which writes stop where the disk does not say otherwise.
pub const WRITE_STOP_PERCENT: u64 = 85;

impl DiskRecord {
    /// Returns the used bytes from which on the disk takes no new objects.
    pub fn write_stop(&self) -> u64 {
        self.write_stop_bytes.unwrap_or(self.size_bytes / 100 * WRITE_STOP_PERCENT)
    }

    /// Returns whether the disk takes one more fragment of this size, by the figures here.
    pub fn takes(&self, fragment_bytes: u32) -> bool {
        self.used_bytes.unwrap_or(0).saturating_add(u64::from(fragment_bytes)) <= self.write_stop()
    }

    /// Returns whether newer figures differ so much from these that the map should show them: used bytes by a
    /// hundredth of the disk, or by half of themselves, so that they are never far off, and few; damage always.
    pub fn misleads(&self, used_bytes: u64, quarantined: u64) -> bool {
        let is_half_off = |shown: u64, now: u64| shown != now && shown.abs_diff(now) >= shown.max(now).div_ceil(2);
        let used = self.used_bytes.is_none_or(|shown| {
            let step = (self.size_bytes / USED_BYTES_STEPS).max(1);
            shown.abs_diff(used_bytes) >= step || is_half_off(shown, used_bytes)
        });
        used || self.quarantined.unwrap_or(0) != quarantined
    }
}

record! {
    /// A placement group: an explicit list of k+m disks in distinct failure domains.
    pub struct PlacementGroup {
        1 => pg: PgId,
        /// Counts up whenever a slot moves.
        2 => generation: u32,
        3 => code: Code,
        /// One disk a slot, k+m of them.
        4 => disks: Vec<DiskId>,
        /// Takes no new stripes any more: replaced by newer groups.
        5 => closed: bool,
    }
}

record! {
    /// A shard: the Raft group that owns a range of (bucket, key).
    pub struct ShardRecord {
        1 => group: GroupId,
        /// First (bucket, key) of the range; the range ends where the next shard's begins.
        2 => start: ShardStart,
        3 => voters: Vec<NodeId>,
    }
}

record! {
    /// The first place that a shard owns.
    pub struct ShardStart {
        1 => bucket: BucketId,
        2 => key: String,
    }
}

record! {
    /// Everything that a client of the cluster needs to find its way.
    pub struct ClusterMap {
        1 => cluster: ClusterId,
        2 => epoch: Epoch,
        3 => nodes: Vec<NodeRecord>,
        4 => disks: Vec<DiskRecord>,
        5 => pgs: Vec<PlacementGroup>,
        6 => shards: Vec<ShardRecord>,
        /// The code of new stripes.
        7 => code: Code,
        /// Largest fragment on disk in bytes, a multiple of the frame.
        8 => fragment_bytes_max: u32,
        /// Name for people.
        9 => name: String,
        /// The voters of the system group.
        10 => voters: Vec<NodeId>,
        /// The finalised feature level.
        11 => feature_level: u32,
        /// Nodes with which no other speaks.
        16 -> denied_nodes: Vec<NodeId>,
        /// Serial numbers of certificates that nobody believes any more.
        17 -> revoked_certificates: Vec<u128>,
    }
}

impl ClusterMap {
    /// Returns the node with this id.
    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.iter().find(|record| record.node == node)
    }

    /// Returns the disk with this id.
    pub fn disk(&self, disk: DiskId) -> Option<&DiskRecord> {
        self.disks.iter().find(|record| record.disk == disk)
    }

    /// Returns the placement group with this id.
    pub fn pg(&self, pg: PgId) -> Option<&PlacementGroup> {
        match self.pgs.get(pg.0 as usize) {
            Some(record) if record.pg == pg => Some(record),
            _ => self.pgs.iter().find(|record| record.pg == pg),
        }
    }

    /// Returns the shard that owns a key, where the map has any.
    pub fn shard(&self, bucket: BucketId, key: &str) -> Option<&ShardRecord> {
        self.shards.iter().rev().find(|shard| (shard.start.bucket, shard.start.key.as_str()) <= (bucket, key))
    }
}
