//! The engine: appends become batches, batches become durable, in order.

use crate::disk::{Completion, Operation, SegmentIndex};
use crate::error::Refused;
use crate::record::{Generation, Position, Sequence, Stream};
use crate::superblock::{Checkpoint, Mark, Superblock};
use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;
use std::time::{Duration, Instant};

/// Bounds and habits of a journal; every default suits a storage disk.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Bytes of appends that may wait for their sync, batch in flight included.
    pub queue_bytes_max: usize,
    /// Bytes of one batch. At most a quarter of a segment is used.
    pub batch_bytes_max: usize,
    /// Bytes of reads in flight.
    pub read_bytes_max: usize,
    /// Free segments that only `reserve` appends may take.
    pub segments_reserved: u32,
    /// Free segments, ready to be written, that are kept in advance.
    pub segments_ready: u32,
    /// How long the journal is quiet before the durable floor is written to a slot.
    pub floor_delay: Duration,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions {
            queue_bytes_max: 64 << 20,
            batch_bytes_max: 8 << 20,
            read_bytes_max: 64 << 20,
            segments_reserved: 2,
            segments_ready: 1,
            floor_delay: Duration::from_millis(100),
        }
    }
}

/// One record to be appended.
pub struct Append<'a> {
    /// Where it goes.
    pub stream: Stream,
    /// What it is: at least [`crate::KIND_CONSUMER_MIN`].
    pub kind: u8,
    /// Its body: copied behind the head.
    pub body: &'a [u8],
    /// Its payload: empty, or block-aligned whole blocks; written as it is, without a copy.
    pub payload: Bytes,
    /// Whether it may take reserved segments: deletes and compaction, which make room.
    pub reserve: bool,
}

/// Where an append will be durable once [`Event::Durable`] has reached its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its place on the disk.
    pub position: Position,
    /// Bytes of head and body: where the payload starts behind `position`.
    pub payload_offset: u32,
}

/// Names a read to its asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadToken(pub u64);

/// What the journal has to tell, in order.
#[derive(Debug)]
pub enum Event {
    /// Every append up to and including this sequence is durable.
    Durable(Sequence),
    /// A read has ended. The bytes are as the disk gave them: the asker verifies them.
    Read(ReadToken, Result<AlignedBuf, crate::disk::DiskError>),
    /// The release is durable; the segment may be recycled from now on.
    Released(SegmentIndex),
    /// The checkpoint is what the next recovery starts from.
    CheckpointSet,
    /// A write or sync has failed. Nothing more is acknowledged; reads go on.
    Fenced(String),
}

/// A segment as the journal sees it; live bytes are the consumer's to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub segment: SegmentIndex,
    /// Its life; changes when it is recycled.
    pub generation: Generation,
    /// What it is used for.
    pub state: SegmentState,
    /// Bytes appended to it, heads and padding included.
    pub used_bytes: u32,
}

/// The states of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Pre-written, waiting to be opened.
    Free,
    /// Being made.
    Creating,
    /// The end of this stream.
    Open(Stream),
    /// Full or closed; may be released.
    Sealed(Stream),
    /// Released by the consumer; not yet durable, or still being read.
    Releasing,
    /// Its head is damaged: kept as it is until the consumer releases it.
    Quarantined,
}

/// Counters since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Batches made durable.
    pub batches: u64,
    /// Records made durable.
    pub records: u64,
    /// Bytes written by batches, heads and padding included.
    pub bytes: u64,
    /// Syncs, durable writes included.
    pub syncs: u64,
    /// Reads that ended.
    pub reads: u64,
}

/// The append engine of one disk. Does no I/O itself: operations come out of
/// [`Journal::poll_disk`], completions go into [`Journal::handle_completion`].
pub struct Journal {
    superblock: Superblock,
}

#[allow(unused_variables)]
impl Journal {
    /// Queues a record. It is durable once [`Event::Durable`] reaches the returned sequence.
    pub fn append(&mut self, now: Instant, append: Append<'_>) -> Result<Placed, Refused> {
        unimplemented!("being written")
    }
    /// Queues a read of `length` bytes, whole blocks, at `offset` of a segment.
    pub fn read(&mut self, token: ReadToken, segment: SegmentIndex, offset: u32, length: u32) -> Result<(), Refused> {
        unimplemented!("being written")
    }
    /// Gives a sealed segment back: nothing in it is needed any more. Durable with the next batch.
    pub fn release(&mut self, segment: SegmentIndex) -> Result<(), Refused> {
        unimplemented!("being written")
    }
    /// Ends the stream's open segment, so that it can be released or compacted; a no-op where none is open.
    pub fn seal(&mut self, now: Instant, stream: Stream) -> Result<(), Refused> {
        unimplemented!("being written")
    }
    /// Makes the checkpoint the start of the next recovery. One at a time.
    pub fn set_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), Refused> {
        unimplemented!("being written")
    }
    /// Returns the end of what is durable: where a recovery continues for a consumer whose checkpoint holds all before.
    pub fn mark(&self) -> Mark {
        unimplemented!("being written")
    }
    /// Keeps up to [`crate::NOTE_BYTES_MAX`] bytes beside the floor in the two alternating slots, written when idle.
    pub fn set_slot_note(&mut self, now: Instant, note: Bytes) -> Result<(), Refused> {
        unimplemented!("being written")
    }
    /// Returns the next operation for the disk.
    pub fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        unimplemented!("being written")
    }
    /// Takes the end of an operation.
    pub fn handle_completion(&mut self, now: Instant, completion: Completion) {
        unimplemented!("being written")
    }
    /// Returns the next thing to tell the consumer.
    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!("being written")
    }
    /// Returns when [`Journal::poll_disk`] should be asked again although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        unimplemented!("being written")
    }
    /// Returns whether nothing is queued or in flight, floor slot included: a clean stop.
    pub fn is_idle(&self) -> bool {
        unimplemented!("being written")
    }
    /// Asks for the floor slot to be written at once, for a clean stop.
    pub fn stop(&mut self, now: Instant) {
        unimplemented!("being written")
    }
    /// Returns why the journal is fenced, where it is.
    pub fn fenced(&self) -> Option<&str> {
        unimplemented!("being written")
    }
    /// Returns the last durable sequence.
    pub fn durable(&self) -> Sequence {
        unimplemented!("being written")
    }
    /// Returns all segments that exist, in order of their numbers.
    pub fn segments(&self) -> impl Iterator<Item = SegmentInfo> + '_ {
        std::iter::empty()
    }
    /// Returns one segment.
    pub fn segment(&self, segment: SegmentIndex) -> Option<SegmentInfo> {
        unimplemented!("being written")
    }
    /// Returns the bytes that can still be appended: free and not yet made segments, reserve excluded.
    pub fn free_bytes(&self) -> u64 {
        unimplemented!("being written")
    }
    /// Returns the bytes of all segments that the disk may have.
    pub fn size_bytes(&self) -> u64 {
        unimplemented!("being written")
    }
    /// Returns the most bytes of head, body and payload that one record may take in this journal.
    pub fn record_bytes_max(&self) -> u32 {
        unimplemented!("being written")
    }
    /// Returns the superblock of this mount; its `mount` is the boot counter.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }
    /// Returns the counters.
    pub fn stats(&self) -> JournalStats {
        unimplemented!("being written")
    }
}
