//! Recovery: from a disk as a crash left it to a journal that can append.

use crate::disk::{Disk, DiskError, SegmentIndex};
use crate::error::JournalError;
use crate::journal::{Journal, JournalOptions};
use crate::record::{Generation, Position, Sequence, Stream};
use crate::superblock::{Checkpoint, DiskIdentity, Format, Mark, Superblock};
use bytes::Bytes;

/// A record that recovery found whole.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its stream.
    pub stream: Stream,
    /// The consumer's kind.
    pub kind: u8,
    /// Its place on the disk.
    pub position: Position,
    /// The segment's life.
    pub generation: Generation,
    /// Its body, verified.
    pub body: Bytes,
    /// Where the payload starts behind `position`.
    pub payload_offset: u32,
    /// Bytes of payload; not read, and verified only where above the durable floor.
    pub payload_bytes: u32,
}

/// Damage at or below the durable floor: something that was durable is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Both heads of a segment are damaged; its records are not looked at.
    SegmentHead {
        /// Which.
        segment: SegmentIndex,
    },
    /// A segment that a later one follows is not there in the life that it should have.
    SegmentLost {
        /// Which.
        segment: SegmentIndex,
        /// The life that is missing.
        generation: Generation,
    },
    /// No readable record where there must be one; recovery goes on at the next that verifies.
    Stretch {
        /// Where the last readable record ends.
        from: Position,
        /// Where the next readable record starts, or where the segment ends.
        until: u32,
        /// Last readable record before.
        after: Sequence,
        /// First readable record behind, where there is one.
        before: Option<Sequence>,
    },
    /// The head verifies, the body does not.
    Body {
        /// Which record.
        sequence: Sequence,
        /// Where.
        position: Position,
    },
    /// The head verifies, the payload does not.
    Payload {
        /// Which record.
        sequence: Sequence,
        /// Where.
        position: Position,
    },
    /// The stream ends before a record that is known to have been durable.
    Missing {
        /// Which stream.
        stream: Stream,
        /// The last record that verifies.
        last: Sequence,
        /// The record that must be there.
        floor: Sequence,
    },
    /// The device refused to read.
    Unreadable {
        /// Where.
        position: Position,
        /// How.
        error: DiskError,
    },
}

/// A torn tail: what an unfinished batch left behind. Nothing of it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The last record that is kept.
    pub kept: Sequence,
    /// Records behind it whose heads verify, dropped.
    pub records: u32,
}

/// A recovery under way. Records come in the order of their sequences; then [`Recovery::resume`].
pub struct Recovery<D: Disk> {
    disk: D,
    superblock: Superblock,
}

/// Makes an empty disk a journal's. Refuses a disk that carries anything.
#[allow(unused_variables)]
pub fn format<D: Disk>(disk: &mut D, format: &Format) -> Result<(), JournalError> {
    unimplemented!("being written")
}

/// Reads the superblock by agreement, without mounting.
#[allow(unused_variables)]
pub fn inspect<D: Disk>(disk: &mut D) -> Result<Superblock, JournalError> {
    unimplemented!("being written")
}

#[allow(unused_variables)]
impl<D: Disk> Recovery<D> {
    /// Reads superblock, floor slots, segment heads and the tails of all streams; decides what is torn and what is damaged.
    /// Writes nothing. `expected` None takes whatever disk it is.
    pub fn start(disk: D, expected: Option<DiskIdentity>) -> Result<Recovery<D>, JournalError> {
        unimplemented!("being written")
    }
    /// Returns the superblock as it was found; `mount` counts up only at [`Recovery::resume`].
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }
    /// Returns the newest checkpoint.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.superblock.checkpoint.as_ref()
    }
    /// Returns the last durable floor that is known, over all streams.
    pub fn floor(&self) -> Sequence {
        unimplemented!("being written")
    }
    /// Returns the note of the newest floor slot.
    pub fn slot_note(&self) -> Option<&Bytes> {
        unimplemented!("being written")
    }
    /// Lets the scan begin behind a mark (of a checkpoint) instead of at the oldest segment. Before the first `next`.
    pub fn skip_to(&mut self, mark: &Mark) {
        unimplemented!("being written")
    }
    /// Returns the next record of the consumer's, in order of sequence, checkpoints' stream included.
    pub fn next(&mut self) -> Result<Option<Recovered>, JournalError> {
        unimplemented!("being written")
    }
    /// Reads a record anew: body and payload, verified. For checkpoints.
    pub fn read(&mut self, position: Position) -> Result<(Recovered, Bytes), JournalError> {
        unimplemented!("being written")
    }
    /// Returns the damage found so far: complete once `next` has returned None.
    pub fn damage(&self) -> &[Damage] {
        unimplemented!("being written")
    }
    /// Returns the torn tail that was cut, where there was one.
    pub fn cut(&self) -> Option<Cut> {
        unimplemented!("being written")
    }
    /// Counts the mount, makes what is kept durable, voids what was cut, and returns the engine and its disk. The
    /// caller has looked at the damage: resuming over it is its decision.
    pub fn resume(self, options: JournalOptions) -> Result<(Journal, D), JournalError> {
        unimplemented!("being written")
    }
    /// Gives the disk back without mounting it.
    pub fn abandon(self) -> D {
        self.disk
    }
}
