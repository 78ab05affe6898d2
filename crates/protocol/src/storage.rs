//! Requests to a disk. The payload of a put and of a read reply is a run of frames.

use crate::ids::{DiskId, FragmentId, Incarnation};
use crate::stripe::FragmentHeader;
use crate::{choice, numbered, record};

numbered! {
    /// The class of a disk request: each has its own bounded queue and share.
    pub enum IoClass {
        /// A client waits for bytes.
        Read = 1,
        /// A client waits for durability.
        Write = 2,
        /// A client waits for a rebuilt range.
        DegradedRead = 3,
        /// Fill-in and rebuild.
        Repair = 4,
        /// Verification.
        Scrub = 5,
        /// Deletion and space reclaim.
        Background = 6,
    }
}

record! {
    /// A request to one disk. The disk answers only under the incarnation that was addressed.
    pub struct StorageRequest {
        1 => disk: DiskId,
        2 => incarnation: Incarnation,
        3 => class: IoClass,
        4 => action: StorageAction,
    }
}

choice! {
    /// What the disk shall do.
    pub enum StorageAction {
        /// Store a fragment durably; the RPC's payload is its frames. Repeating it is harmless.
        1 => Put(FragmentHeader),
        /// Return frames of a fragment as the RPC's payload, each verified before it leaves.
        2 => Read(ReadFrames),
        /// Delete fragments durably; absent ones are counted, not an error.
        3 => Delete(DeleteFragments),
        /// List fragments in id order.
        4 => List(ListFragments),
        /// Describe one fragment: its header.
        5 => Stat(FragmentId),
        /// Describe the disk: its sizes and counters.
        6 => Disk,
    }
}

record! {
    /// A run of frames of one fragment.
    pub struct ReadFrames {
        1 => fragment: FragmentId,
        2 => first: u16,
        3 => count: u16,
    }
}

record! {
    /// Fragments to delete, at most [`DELETE_FRAGMENTS_MAX`].
    pub struct DeleteFragments {
        1 => fragments: Vec<FragmentId>,
    }
}

/// Most fragments in one delete request.
pub const DELETE_FRAGMENTS_MAX: usize = 256;
/// Most fragments in one list reply.
pub const LIST_FRAGMENTS_MAX: u32 = 4096;

record! {
    /// A page of the fragment index.
    pub struct ListFragments {
        1 => after: Option<FragmentId>,
        2 => limit: u32,
    }
}

choice! {
    /// The reply's header; frames of a read travel as payload.
    pub enum StorageReply {
        1 => Stored,
        2 => Frames,
        3 => Deleted(DeletedFragments),
        4 => Fragments(FragmentPage),
        5 => Header(FragmentHeader),
        6 => Disk(DiskStat),
    }
}

record! {
    /// How many fragments a delete found.
    pub struct DeletedFragments {
        1 => found: u32,
    }
}

record! {
    /// A page of the fragment index; `more` tells whether another follows.
    pub struct FragmentPage {
        1 => fragments: Vec<FragmentEntry>,
        2 => more: bool,
    }
}

record! {
    /// A fragment as the index knows it.
    pub struct FragmentEntry {
        1 => fragment: FragmentId,
        /// Bytes of frames on disk.
        2 => bytes: u32,
    }
}

record! {
    /// Sizes in bytes and counters of one disk.
    pub struct DiskStat {
        1 => disk: DiskId,
        2 => incarnation: Incarnation,
        /// Bytes of all segments, free ones included.
        3 => size_bytes: u64,
        /// Bytes of live records.
        4 => used_bytes: u64,
        5 => fragments: u64,
        /// Why the disk takes no more writes until an operator acts: a write or sync has failed. A full
        /// disk is not fenced.
        6 => fenced: Option<String>,
        /// Fragments that failed a check and are kept aside, and other damage found on the disk.
        7 => quarantined: u64,
        /// Used bytes from which on puts are refused.
        8 -> write_stop_bytes: Option<u64>,
    }
}
