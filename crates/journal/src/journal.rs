//! The engine: appends become batches, batches become durable, in order.
//!
//! At most one batch is in flight. Everything that is appended meanwhile gathers in the next one.
//! So at each crash only the records of one batch can be torn, and every record of a batch can say
//! that all before the batch is durable: the durable floor.

use crate::batch::{Batch, Flying, Opening, Tail};
use crate::disk::{Action, Area, Completion, DiskError, Done, Fill, OPERATIONS_MAX, OpId, Operation, SegmentIndex};
use crate::error::Refused;
use crate::planted::{Bug, planted};
use crate::record::{
    BODY_BYTES_MAX, Generation, KIND_CONSUMER_MIN, KIND_MOUNT, KIND_SEAL, PAYLOAD_BYTES_MAX, Position, STREAM_COUNT,
    Sequence, Stream, record_bytes,
};
use crate::segment::{RECORDS_START, records_end};
use crate::superblock::{
    COPY_OFFSETS, Checkpoint, FloorSlot, Mark, NOTE_BYTES_MAX, SLOT_OFFSETS, StreamEnd, Superblock,
};
use crate::table::SegmentTable;
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES, is_block_aligned};
use plinth_protocol::pool::BufferPool;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most records in one batch, seals included. A recovery leaps over so many sequences, so that
/// none that a lost batch has used is ever used again.
pub(crate) const BATCH_RECORDS_MAX: usize = 1024;
/// Most reads that are with the disk at one time: the rest of its room is kept for writes and syncs, so that however many
/// reads wait, a batch is on its way as soon as the one before is durable.
const READS_WITH_DISK_MAX: usize = OPERATIONS_MAX - 64;
/// Bytes that every open segment keeps for its seal.
const SEAL_BYTES: u32 = BLOCK_BYTES as u32;

/// Mean bytes of a batch below which its disk's new segments are written before they are used. The first write of a
/// block costs the file system a record of its own, about four blocks a sync: more than zeros where a batch is smaller.
const SMALL_BATCH_BYTES: u64 = 32 << 10;
/// Batches from which a mean is taken.
const MEAN_BATCHES_MIN: u64 = 64;

/// How a journal makes new segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSegments {
    /// Their blocks are written before they are used: for small records that somebody waits for.
    Written,
    /// Space is set aside, unless the batches since the last one were small: what a disk of large records holds is then
    /// written once.
    ByBatch,
}

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
    /// How new segments are made.
    pub new_segments: NewSegments,
    /// How long the journal is quiet before the durable floor is written to a slot.
    pub floor_delay: Duration,
    /// Where the memory of batches and reads comes from; journals of one process may share it.
    pub pool: Arc<BufferPool>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions {
            queue_bytes_max: 64 << 20,
            batch_bytes_max: 8 << 20,
            read_bytes_max: 64 << 20,
            segments_reserved: 2,
            segments_ready: 1,
            new_segments: NewSegments::Written,
            floor_delay: Duration::from_millis(100),
            pool: BufferPool::new(),
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

/// What an operation in flight is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    BatchWrite,
    BatchSync,
    Read { token: ReadToken, segment: SegmentIndex, bytes: usize },
    Create(SegmentIndex),
    Slot,
    Super,
}

/// A superblock update under way: two copies, a sync, two copies, a sync.
struct SuperUpdate {
    superblock: Superblock,
    step: u8,
    left: u8,
}

/// What recovery hands over.
pub(crate) struct Beginning {
    pub superblock: Superblock,
    pub table: SegmentTable,
    pub tails: [Option<Tail>; STREAM_COUNT],
    pub ends: [Option<StreamEnd>; STREAM_COUNT],
    pub floors: [Sequence; STREAM_COUNT],
    pub durable: Sequence,
    pub next_sequence: Sequence,
    pub slot: FloorSlot,
}

/// The append engine of one disk. Does no I/O itself: operations come out of
/// [`Journal::poll_disk`], completions go into [`Journal::handle_completion`].
pub struct Journal {
    options: JournalOptions,
    superblock: Superblock,
    table: SegmentTable,
    /// Where each stream's next record goes, and from which segment it came.
    tails: [Option<Tail>; STREAM_COUNT],
    /// The last segment of each stream, open or sealed: the next one's prior.
    priors: [Option<(SegmentIndex, Generation)>; STREAM_COUNT],
    /// Chain hash of each stream's last head that has been written.
    chains: [u64; STREAM_COUNT],
    ends: [Option<StreamEnd>; STREAM_COUNT],
    floors: [Sequence; STREAM_COUNT],
    durable: Sequence,
    next_sequence: Sequence,
    /// The mount's own record is still to be written: what the recovery has kept.
    mount_pending: Option<Sequence>,
    gathering: VecDeque<Batch>,
    flying: Option<Flying>,
    queued_bytes: usize,
    read_bytes: usize,
    purposes: Vec<Option<Purpose>>,
    purposes_free: Vec<usize>,
    /// Writes and syncs that the disk has not got yet: they go before any read.
    writes: VecDeque<Operation>,
    /// Reads that the disk has not got yet.
    reads: VecDeque<Operation>,
    /// Reads that are with the disk.
    reads_with_disk: usize,
    events: VecDeque<Event>,
    super_update: Option<SuperUpdate>,
    slot: FloorSlot,
    slot_in_flight: bool,
    /// Since when a floor waits to be written to a slot.
    slot_due: Option<Instant>,
    stopping: bool,
    fenced: Option<String>,
    stats: JournalStats,
    /// The counters when the last segment was made.
    stats_at_create: JournalStats,
}

impl Journal {
    pub(crate) fn new(beginning: Beginning, options: JournalOptions) -> Journal {
        let Beginning { superblock, table, tails, ends, floors, durable, next_sequence, slot } = beginning;
        Journal {
            options,
            superblock,
            table,
            priors: std::array::from_fn(|index| ends[index].map(|end| (end.segment, end.generation))),
            chains: std::array::from_fn(|index| ends[index].map_or(0, |end| end.chain)),
            tails,
            ends,
            floors,
            durable,
            next_sequence,
            mount_pending: None,
            gathering: VecDeque::new(),
            flying: None,
            queued_bytes: 0,
            read_bytes: 0,
            purposes: Vec::new(),
            purposes_free: Vec::new(),
            writes: VecDeque::new(),
            reads: VecDeque::new(),
            reads_with_disk: 0,
            events: VecDeque::new(),
            super_update: None,
            slot,
            slot_in_flight: false,
            slot_due: None,
            stopping: false,
            fenced: None,
            stats: JournalStats::default(),
            stats_at_create: JournalStats::default(),
        }
    }

    /// Queues a record. It is durable once [`Event::Durable`] reaches the returned sequence.
    pub fn append(&mut self, append: Append<'_>) -> Result<Placed, Refused> {
        if append.kind < KIND_CONSUMER_MIN {
            return Err(Refused::Invalid("kinds below 16 are the journal's own"));
        }
        if append.body.len() > BODY_BYTES_MAX || append.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refused::Invalid("body or payload above its bound"));
        }
        if !append.payload.is_empty() && !is_block_aligned(&append.payload) {
            return Err(Refused::Invalid("a payload is block-aligned whole blocks"));
        }
        self.place(append)
    }

    /// Places a record of any kind.
    pub(crate) fn place(&mut self, append: Append<'_>) -> Result<Placed, Refused> {
        self.check_fence()?;
        let bytes = record_bytes(append.body.len(), append.payload.len());
        if bytes > self.record_bytes_max() as usize {
            return Err(Refused::Invalid("record does not fit in a segment"));
        }
        if self.queued_bytes > 0 && self.queued_bytes + bytes > self.options.queue_bytes_max {
            return Err(Refused::Busy);
        }
        let index = append.stream.index();
        let end = records_end(self.superblock.segment_bytes);
        let reserved = if append.reserve { 0 } else { self.options.segments_reserved };
        if let Some(kept) = self.mount_pending {
            let segment = self.table.take_free(reserved)?;
            let opening = self.open_segment(append.stream, segment);
            let (stream, body) = (append.stream, kept.0.to_le_bytes());
            let mount = Append { stream, kind: KIND_MOUNT, body: &body, payload: Bytes::new(), reserve: true };
            self.stage(mount, Some(opening));
            self.mount_pending = None;
        }
        let fits = self.tails[index].is_some_and(|tail| tail.offset + bytes as u32 + SEAL_BYTES <= end);
        let mut opening = None;
        if !fits {
            let segment = self.table.take_free(reserved)?;
            self.seal_tail(append.stream);
            opening = Some(self.open_segment(append.stream, segment));
        }
        Ok(self.stage(append, opening))
    }

    /// Stages the records that begin a mount: one at the end of each stream that goes on. Where none
    /// does, the first segment that is opened will begin with it: there is no tail that a cut could
    /// have left. Returns the last one's sequence.
    pub(crate) fn stage_mount(&mut self, kept: Sequence) -> Sequence {
        let end = records_end(self.superblock.segment_bytes);
        let mut before = kept;
        for stream in Stream::ALL {
            let Some(tail) = self.tails[stream.index()] else { continue };
            // A mount is one block. Where only the seal fits, the seal says what the mount would.
            let has_room = tail.offset + BLOCK_BYTES as u32 + SEAL_BYTES <= end;
            let kind = if has_room { KIND_MOUNT } else { KIND_SEAL };
            let body = before.0.to_le_bytes();
            before =
                self.stage(Append { stream, kind, body: &body, payload: Bytes::new(), reserve: true }, None).sequence;
            if !has_room {
                self.tails[stream.index()] = None;
            }
        }
        if before == kept {
            self.mount_pending = Some(kept);
        }
        before
    }

    /// Ends the stream's open segment with a seal, where there is one.
    fn seal_tail(&mut self, stream: Stream) {
        if self.tails[stream.index()].is_some() {
            let seal = Append { stream, kind: KIND_SEAL, body: &[], payload: Bytes::new(), reserve: true };
            self.stage(seal, None);
            self.tails[stream.index()] = None;
        }
    }

    fn open_segment(&mut self, stream: Stream, segment: SegmentIndex) -> Opening {
        let generation = Generation(self.next_sequence.0);
        let prior = self.priors[stream.index()].replace((segment, generation));
        self.tails[stream.index()] = Some(Tail { segment, generation, offset: RECORDS_START });
        let row = self.table.row_mut(segment).expect("a free segment has a row");
        (row.generation, row.state, row.used_bytes) = (generation, SegmentState::Open(stream), RECORDS_START);
        row.is_durable = false;
        Opening { stream, segment, generation, prior }
    }

    /// Puts a record that has its place into the batch that gathers.
    fn stage(&mut self, append: Append<'_>, opening: Option<Opening>) -> Placed {
        let tail = self.tails[append.stream.index()].as_mut().expect("the caller has opened a segment");
        let bytes = record_bytes(append.body.len(), append.payload.len());
        let position = Position { segment: tail.segment, offset: tail.offset };
        let generation = tail.generation;
        tail.offset += bytes as u32;
        let row = self.table.row_mut(position.segment).expect("an open segment has a row");
        row.used_bytes = tail.offset;
        let sequence = self.next_sequence;
        self.next_sequence = Sequence(sequence.0 + 1);
        self.queued_bytes += bytes;

        let limit = self.options.batch_bytes_max.min(self.superblock.segment_bytes as usize / 4);
        let has_room = |batch: &Batch| batch.bytes + bytes <= limit && batch.record_count() < BATCH_RECORDS_MAX;
        if !self.gathering.back().is_some_and(has_room) {
            self.gathering.push_back(Batch::new(&self.options.pool));
        }
        let batch = self.gathering.back_mut().expect("pushed just above where absent");
        if let Some(opening) = opening {
            batch.add_opening(opening);
        }
        let payload_offset = batch.add_record(append, sequence, position, generation, bytes);
        Placed { sequence, position, payload_offset }
    }

    /// Queues a read of `length` bytes, whole blocks, at `offset` of a segment.
    pub fn read(&mut self, token: ReadToken, segment: SegmentIndex, offset: u32, length: u32) -> Result<(), Refused> {
        let block = BLOCK_BYTES as u32;
        let end = offset.checked_add(length).filter(|end| *end <= self.superblock.segment_bytes);
        if length == 0 || !offset.is_multiple_of(block) || !length.is_multiple_of(block) || end.is_none() {
            return Err(Refused::Invalid("a read is whole blocks within its segment"));
        }
        if self.table.row(segment).is_none() {
            return Err(Refused::Invalid("no such segment"));
        }
        let bytes = length as usize;
        if self.read_bytes > 0 && self.read_bytes + bytes > self.options.read_bytes_max {
            return Err(Refused::Busy);
        }
        self.read_bytes += bytes;
        self.table.read_started(segment);
        let buffer = self.options.pool.take(bytes);
        let action = Action::Read { area: Area::Segment(segment), offset: u64::from(offset), buffer };
        self.submit(Purpose::Read { token, segment, bytes }, action);
        Ok(())
    }

    /// Gives a sealed segment back: nothing in it is needed any more. Durable with the next batch,
    /// told by [`Event::Released`]. Refused for the newest segment of a stream: its successor's
    /// recovery needs it.
    pub fn release(&mut self, segment: SegmentIndex) -> Result<(), Refused> {
        self.check_fence()?;
        let row = self.table.row(segment).ok_or(Refused::Invalid("no such segment"))?;
        match row.state {
            SegmentState::Sealed(stream) if self.table.is_newest(stream, row.generation) => {
                return Err(Refused::Invalid("the newest segment of its stream"));
            }
            SegmentState::Sealed(_) | SegmentState::Quarantined => {}
            SegmentState::Open(_) => return Err(Refused::Busy),
            _ => return Err(Refused::Invalid("the segment is not sealed")),
        }
        self.queue_release(segment);
        Ok(())
    }

    /// Queues the free heads of a segment, whatever its state.
    pub(crate) fn queue_release(&mut self, segment: SegmentIndex) {
        let last = Generation(self.next_sequence.0 - 1);
        let row = self.table.row_mut(segment).expect("the caller has found the row");
        if row.state == SegmentState::Quarantined {
            // Its own generation is unknown; the new head must rank above whatever is there.
            row.generation = last;
        }
        row.state = SegmentState::Releasing;
        // At least one byte, until the release is durable: see `SegmentTable::read_ended`.
        row.used_bytes = row.used_bytes.max(1);
        if self.gathering.is_empty() {
            self.gathering.push_back(Batch::new(&self.options.pool));
        }
        let generation = row.generation;
        self.gathering.back_mut().expect("pushed just above where absent").add_release(segment, generation);
    }

    /// Ends the stream's open segment, so that it can be released once a newer one is open. A no-op
    /// where none is open.
    pub fn seal(&mut self, stream: Stream) -> Result<(), Refused> {
        self.check_fence()?;
        self.seal_tail(stream);
        Ok(())
    }

    /// Makes the checkpoint the start of the next recovery; [`Event::CheckpointSet`] tells when it
    /// is durable. One at a time; everything it refers to must be durable.
    pub fn set_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), Refused> {
        self.check_fence()?;
        if checkpoint.note.len() > NOTE_BYTES_MAX || checkpoint.mark.sequence > self.durable {
            return Err(Refused::Invalid("the note is too long, or the mark is not durable"));
        }
        if self.super_update.is_some() {
            return Err(Refused::Busy);
        }
        let mut superblock = self.superblock.clone();
        superblock.sequence += 1;
        superblock.checkpoint = Some(checkpoint);
        self.super_update = Some(SuperUpdate { superblock, step: 0, left: 0 });
        self.step_super_update();
        Ok(())
    }

    /// Returns the end of what is durable: where a recovery continues for a consumer whose
    /// checkpoint holds all before.
    pub fn mark(&self) -> Mark {
        Mark { sequence: self.durable, ends: self.ends }
    }

    /// Keeps up to [`NOTE_BYTES_MAX`] bytes beside the floor in the two alternating slots. Written
    /// when the journal is quiet; a crash before that loses it.
    pub fn set_slot_note(&mut self, now: Instant, note: Bytes) -> Result<(), Refused> {
        self.check_fence()?;
        if note.len() > NOTE_BYTES_MAX {
            return Err(Refused::Invalid("a note is at most 256 bytes"));
        }
        self.slot.note = note;
        self.slot_due = Some(now + self.options.floor_delay);
        Ok(())
    }

    /// Returns the next operation for the disk. Writes and syncs go first, and reads never take all of its room: a
    /// steady stream of reads must not keep a batch from starting.
    pub fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        if self.writes.is_empty() && self.fenced.is_none() {
            self.start_batch();
            self.start_create(now);
            self.start_slot(now);
        }
        if let Some(operation) = self.writes.pop_front() {
            return Some(operation);
        }
        if self.reads_with_disk < READS_WITH_DISK_MAX
            && let Some(operation) = self.reads.pop_front()
        {
            self.reads_with_disk += 1;
            return Some(operation);
        }
        self.options.pool.trim(now);
        None
    }

    fn start_batch(&mut self) {
        if self.flying.is_some() {
            return;
        }
        let Some(batch) = self.gathering.pop_front() else { return };
        let (flying, writes) = batch.launch(&self.superblock, &mut self.chains, self.floors, self.ends, self.durable);
        let alone = writes.len() == 1;
        for write in writes {
            let durable = alone && !planted(Bug::SkipSync);
            let action = Action::Write { area: write.area, offset: write.offset, parts: write.parts, durable };
            self.submit(Purpose::BatchWrite, action);
        }
        if planted(Bug::AckBeforeDurable) {
            self.events.push_back(Event::Durable(flying.last));
        }
        self.flying = Some(flying);
    }

    fn start_create(&mut self, now: Instant) {
        if self.stopping {
            return;
        }
        if let Some(segment) = self.table.next_to_create(now, self.options.segments_ready) {
            let bytes = u64::from(self.superblock.segment_bytes);
            let fill = self.next_fill();
            self.submit(Purpose::Create(segment), Action::Create { segment, bytes, fill });
        }
    }

    /// Decides how the next segment is made, by the batches since the last one.
    fn next_fill(&mut self) -> Fill {
        let before = std::mem::replace(&mut self.stats_at_create, self.stats);
        let (batches, bytes) = (self.stats.batches - before.batches, self.stats.bytes - before.bytes);
        let are_small = batches >= MEAN_BATCHES_MIN && bytes / batches < SMALL_BATCH_BYTES;
        match self.options.new_segments {
            NewSegments::ByBatch if !are_small => Fill::Allocated,
            NewSegments::ByBatch | NewSegments::Written => Fill::Written,
        }
    }

    fn start_slot(&mut self, now: Instant) {
        let is_quiet = self.flying.is_none() && self.gathering.is_empty() && !self.slot_in_flight;
        let is_due = self.slot_due.is_some_and(|due| now >= due || self.stopping);
        if !is_quiet || !is_due {
            return;
        }
        self.slot_due = None;
        self.slot_in_flight = true;
        self.slot.counter += 1;
        self.slot.mount = self.superblock.mount;
        self.slot.floors = self.floors;
        let offset = SLOT_OFFSETS[(self.slot.counter % 2) as usize];
        let parts = vec![self.slot.encode().freeze()];
        self.submit(Purpose::Slot, Action::Write { area: Area::Super, offset, parts, durable: true });
    }

    /// Two copies, a sync, two copies, a sync: one step each time all operations of a step are done.
    fn step_super_update(&mut self) {
        let Some(update) = &mut self.super_update else { return };
        update.step += 1;
        let copies: &[u8] = match update.step {
            1 => &[0, 1],
            3 => &[2, 3],
            _ => &[],
        };
        if update.step > 4 {
            let update = self.super_update.take().expect("looked at just above");
            self.superblock = update.superblock;
            self.events.push_back(Event::CheckpointSet);
            return;
        }
        update.left = copies.len().max(1) as u8;
        let mut actions = Vec::with_capacity(2);
        for copy in copies {
            let parts = vec![update.superblock.encode(*copy).freeze()];
            let offset = COPY_OFFSETS[usize::from(*copy)];
            actions.push(Action::Write { area: Area::Super, offset, parts, durable: false });
        }
        if copies.is_empty() {
            actions.push(Action::Sync { area: Area::Super });
        }
        for action in actions {
            self.submit(Purpose::Super, action);
        }
    }

    fn submit(&mut self, purpose: Purpose, action: Action) {
        let index = self.purposes_free.pop().unwrap_or_else(|| {
            self.purposes.push(None);
            self.purposes.len() - 1
        });
        self.purposes[index] = Some(purpose);
        let queue = if matches!(purpose, Purpose::Read { .. }) { &mut self.reads } else { &mut self.writes };
        queue.push_back(Operation { id: OpId(index as u64), action });
    }

    /// Takes the end of an operation.
    pub fn handle_completion(&mut self, now: Instant, completion: Completion) {
        let index = completion.id.0 as usize;
        let Some(purpose) = self.purposes.get_mut(index).and_then(Option::take) else { return };
        self.purposes_free.push(index);
        match (purpose, completion.result) {
            (Purpose::Read { token, segment, bytes }, result) => {
                self.read_bytes -= bytes;
                self.reads_with_disk -= 1;
                self.stats.reads += 1;
                self.table.read_ended(segment);
                let result = result.map(|done| match done {
                    Done::Read(buffer) => buffer,
                    other => unreachable!("a read ends as a read, not as {other:?}"),
                });
                self.events.push_back(Event::Read(token, result));
            }
            (Purpose::Create(segment), Err(DiskError::NoSpace)) => {
                // At most one line in the time after which it is tried again.
                tracing::warn!(disk = %self.superblock.identity.disk, "no room for a segment that the disk may have: its file system is full");
                self.table.not_created(now, segment);
            }
            (purpose, Err(error)) => {
                if let Purpose::Create(segment) = purpose {
                    self.table.not_created(now, segment);
                }
                self.fence(format!("{purpose:?}: {error}"));
            }
            (Purpose::Create(segment), Ok(_)) => self.table.created(segment),
            (Purpose::Slot, Ok(_)) => self.slot_in_flight = false,
            (Purpose::Super, Ok(_)) if self.fenced.is_none() => {
                let update = self.super_update.as_mut().expect("its operations belong to an update");
                update.left -= 1;
                if update.left == 0 {
                    self.step_super_update();
                }
            }
            (Purpose::BatchWrite, Ok(_)) if self.fenced.is_none() => self.batch_written(now),
            (Purpose::BatchSync, Ok(_)) if self.fenced.is_none() => self.batch_synced(now),
            (Purpose::Super | Purpose::BatchWrite | Purpose::BatchSync, Ok(_)) => {}
        }
    }

    fn batch_written(&mut self, now: Instant) {
        let flying = self.flying.as_mut().expect("its writes belong to a batch");
        flying.writes_left -= 1;
        if flying.writes_left > 0 {
            return;
        }
        if flying.areas.is_empty() || planted(Bug::SkipSync) {
            self.batch_durable(now);
            return;
        }
        let areas = std::mem::take(&mut flying.areas);
        flying.syncs_left = areas.len();
        for area in areas {
            self.submit(Purpose::BatchSync, Action::Sync { area });
        }
    }

    fn batch_synced(&mut self, now: Instant) {
        let flying = self.flying.as_mut().expect("its syncs belong to a batch");
        flying.syncs_left -= 1;
        if flying.syncs_left == 0 {
            self.batch_durable(now);
        }
    }

    fn batch_durable(&mut self, now: Instant) {
        let flying = self.flying.take().expect("the batch that has just ended");
        self.queued_bytes -= flying.bytes;
        self.ends = flying.ends;
        self.floors = flying.floors;
        for segment in flying.opened {
            if let Some(row) = self.table.row_mut(segment) {
                row.is_durable = true;
            }
        }
        for (segment, stream) in flying.sealed {
            if let Some(row) = self.table.row_mut(segment) {
                row.state = SegmentState::Sealed(stream);
            }
        }
        if flying.last > self.durable {
            self.durable = flying.last;
            self.events.push_back(Event::Durable(flying.last));
        }
        for segment in flying.releases {
            self.table.released(segment);
            self.events.push_back(Event::Released(segment));
        }
        self.stats.batches += 1;
        self.stats.syncs += flying.syncs;
        self.stats.records += flying.records;
        self.stats.bytes += flying.bytes as u64;
        self.slot_due = Some(now + self.options.floor_delay);
    }

    /// The disk has failed: nothing more is acknowledged or written, ever, by this mount. A sync is
    /// never tried again, because the kernel may have dropped what it could not write.
    fn fence(&mut self, why: String) {
        if self.fenced.is_some() {
            return;
        }
        tracing::error!(disk = %self.superblock.identity.disk, %why, "journal fenced");
        self.fenced = Some(why.clone());
        self.flying = None;
        self.gathering.clear();
        self.queued_bytes = 0;
        self.super_update = None;
        self.slot_due = None;
        for operation in std::mem::take(&mut self.writes) {
            let index = operation.id.0 as usize;
            self.purposes[index] = None;
            self.purposes_free.push(index);
        }
        self.events.push_back(Event::Fenced(why));
    }

    fn check_fence(&self) -> Result<(), Refused> {
        match &self.fenced {
            Some(why) => Err(Refused::Fenced(why.clone())),
            None => Ok(()),
        }
    }

    /// Returns the next thing to tell the consumer.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Journal::poll_disk`] should be asked again although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        self.slot_due
    }

    /// Returns whether nothing is queued or in flight; after [`Journal::stop`], also whether the
    /// floor slot is written.
    pub fn is_idle(&self) -> bool {
        let in_flight = self.purposes.len() - self.purposes_free.len();
        let has_work =
            !self.gathering.is_empty() || self.flying.is_some() || (self.stopping && self.slot_due.is_some());
        in_flight == 0 && (self.fenced.is_some() || !has_work)
    }

    /// Asks for the floor slot to be written at once, for a clean stop.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Returns why the journal is fenced, where it is.
    pub fn fenced(&self) -> Option<&str> {
        self.fenced.as_deref()
    }

    /// Returns the last durable sequence.
    pub fn durable(&self) -> Sequence {
        self.durable
    }

    /// Returns the sequence that the next append will get where it opens no segment.
    pub fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    /// Returns the bytes of appends that wait for their sync.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Returns all segments that exist, in order of their numbers.
    pub fn segments(&self) -> impl Iterator<Item = SegmentInfo> + '_ {
        self.table.infos()
    }

    /// Returns one segment.
    pub fn segment(&self, segment: SegmentIndex) -> Option<SegmentInfo> {
        let row = self.table.row(segment)?;
        Some(SegmentInfo { segment, generation: row.generation, state: row.state, used_bytes: row.used_bytes })
    }

    /// Returns the bytes that ordinary appends can still take: whole segments, reserve excluded, and
    /// the rest of the main stream's open one.
    pub fn free_bytes(&self) -> u64 {
        let segments = self.table.available().saturating_sub(self.options.segments_reserved);
        let end = records_end(self.superblock.segment_bytes) - SEAL_BYTES;
        let rest = self.tails[Stream::Main.index()].map_or(0, |tail| end.saturating_sub(tail.offset));
        u64::from(segments) * u64::from(self.record_bytes_max()) + u64::from(rest)
    }

    /// Returns the bytes that `reserve` appends can still take: whole segments, and the rest of the main stream's open one.
    pub fn left_bytes(&self) -> u64 {
        let end = records_end(self.superblock.segment_bytes) - SEAL_BYTES;
        let rest = self.tails[Stream::Main.index()].map_or(0, |tail| end.saturating_sub(tail.offset));
        u64::from(self.table.available()) * u64::from(self.record_bytes_max()) + u64::from(rest)
    }

    /// Returns whether `reserve` appends have begun to use the reserved segments. A consumer that must not lose them to
    /// ordinary appends holds those back until releases have filled the reserve again.
    pub fn is_reserve_in_use(&self) -> bool {
        self.table.available() < self.options.segments_reserved
    }

    /// Returns the bytes of all segments that the disk may have.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.superblock.segment_bytes) * u64::from(self.superblock.segment_count_max)
    }

    /// Returns the most bytes of head, body and payload that one record may take in this journal.
    pub fn record_bytes_max(&self) -> u32 {
        records_end(self.superblock.segment_bytes) - RECORDS_START - SEAL_BYTES
    }

    /// Returns the superblock of this mount; its `mount` is the boot counter.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns the counters.
    pub fn stats(&self) -> JournalStats {
        self.stats
    }
}
