//! The superblock: what the disk is, and where recovery starts.

use crate::disk::SegmentIndex;
use crate::record::{Generation, STREAM_COUNT, Sequence};
use bytes::Bytes;
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};

/// Most bytes of a checkpoint's or a floor slot's note.
pub const NOTE_BYTES_MAX: usize = 256;

/// Whose disk it must be, or no mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: Incarnation,
}

/// What a fresh disk shall be.
#[derive(Clone, Debug)]
pub struct Format {
    /// Whose disk it becomes.
    pub identity: DiskIdentity,
    /// Bytes of each segment: whole blocks, 64 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// Most segments; they are made as they are needed.
    pub segment_count_max: u32,
    /// Segments made at once, at least 1.
    pub segment_count_initial: u32,
    /// A random number of the disk's own, in every record: the caller's chance.
    pub stamp: u64,
}

/// The superblock as it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Features that a version which does not know them may ignore.
    pub features_compatible: u64,
    /// Features that a version which does not know them may read past, but not write.
    pub features_ro_compatible: u64,
    /// Features that a version which does not know them must refuse.
    pub features_incompatible: u64,
    /// Whose disk it is.
    pub identity: DiskIdentity,
    /// Counts superblock updates.
    pub sequence: u64,
    /// Bytes of each segment.
    pub segment_bytes: u32,
    /// Most segments.
    pub segment_count_max: u32,
    /// Counts mounts: the boot counter.
    pub mount: u32,
    /// The disk's random number.
    pub stamp: u64,
    /// Where recovery starts.
    pub checkpoint: Option<Checkpoint>,
}

/// A consumer's checkpoint: its state up to a mark is kept elsewhere, and `note` says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The state holds every record up to here.
    pub mark: Mark,
    /// The consumer's own words, at most [`NOTE_BYTES_MAX`]: for example the position of the checkpoint's root record.
    pub note: Bytes,
}

/// The end of the durable records at one moment: per stream, and over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Every record up to this sequence stands before the mark, every other one behind it.
    pub sequence: Sequence,
    /// The end of each stream.
    pub ends: [Option<StreamEnd>; STREAM_COUNT],
}

/// The end of a stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// Its segment.
    pub segment: SegmentIndex,
    /// The segment's life.
    pub generation: Generation,
    /// Byte offset behind the last record.
    pub offset: u32,
    /// The last record of the stream.
    pub sequence: Sequence,
    /// Chain hash of the last record.
    pub chain: u64,
}
