//! Recovery: from a disk as a crash left it to a journal that can append.

use crate::blocking::Blocking;
use crate::disk::{Action, Area, Disk, DiskError, Done, SUPER_BYTES, SegmentIndex};
use crate::error::JournalError;
use crate::record::{
    Generation, HEAD_BYTES, KIND_CONSUMER_MIN, Position, RecordError, STREAM_COUNT, Sequence, Stream, sum_fits,
    verify_record,
};
use crate::segment::{HeadBlock, RECORDS_START, SegmentHead, records_end};
use crate::superblock::{COPY_OFFSETS, Checkpoint, DiskIdentity, FloorSlot, Format, Mark, SLOT_OFFSETS, Superblock};
use crate::tail::{Tails, UsedSegment};
use crate::walk::{Entry, Step, Walk, Window};
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use std::collections::BTreeMap;

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
    /// The superblock is older than records that it should know: it was rolled back.
    SuperblockBehind {
        /// The highest mount that a record or slot names.
        mount: u32,
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

/// Makes an empty disk a journal's. Refuses a disk that carries anything.
pub fn format<D: Disk>(disk: &mut D, format: &Format) -> Result<(), JournalError> {
    format.check()?;
    let mut io = Blocking { disk };
    if let Some((segment, _)) = io.disk.segments().first() {
        return Err(JournalError::Occupied(format!("segment {segment}")));
    }
    let area = Area::Super;
    let content = io
        .read(area, 0, AlignedBuf::zeroed(SUPER_BYTES as usize))
        .map_err(|source| JournalError::Disk { area, source })?;
    if content.iter().any(|byte| *byte != 0) {
        return Err(JournalError::Occupied("a super area that is not blank".into()));
    }
    for segment in 0..format.segment_count_initial {
        io.create(SegmentIndex(segment), u64::from(format.segment_bytes), format.fill)?;
    }
    // The superblock comes last: a disk that a crash has left half formatted does not mount.
    write_superblock(&mut io, [0, 1, 2, 3], &Superblock::fresh(format))
}

/// Reads the superblock by agreement, without mounting.
pub fn inspect<D: Disk>(disk: &mut D) -> Result<Superblock, JournalError> {
    Superblock::agree(&read_copies(&mut Blocking { disk })?)
}

/// Writes all copies: two, a sync, two more, a sync.
pub(crate) fn write_superblock<D: Disk>(
    io: &mut Blocking<D>,
    order: [u8; 4],
    superblock: &Superblock,
) -> Result<(), JournalError> {
    for pair in order.chunks(2) {
        let block = |copy: &u8| (Area::Super, COPY_OFFSETS[usize::from(*copy)], superblock.encode(*copy).freeze());
        io.write_all(pair.iter().map(block).collect())?;
        io.sync_all(&[Area::Super])?;
    }
    Ok(())
}

/// Reads blocks; what the device refuses counts as absent.
fn read_blocks<D: Disk>(io: &mut Blocking<D>, places: &[(Area, u64)]) -> Vec<Result<AlignedBuf, DiskError>> {
    let read = |(area, offset): &(Area, u64)| Action::Read {
        area: *area,
        offset: *offset,
        buffer: AlignedBuf::zeroed(BLOCK_BYTES),
    };
    let block = |done| match done {
        Done::Read(buffer) => buffer,
        other => unreachable!("a read ends as a read, not as {other:?}"),
    };
    io.run_all(places.iter().map(read).collect()).into_iter().map(|result| result.map(block)).collect()
}

fn read_copies<D: Disk>(io: &mut Blocking<D>) -> Result<[Option<Superblock>; 4], JournalError> {
    let blocks = read_blocks(io, &COPY_OFFSETS.map(|offset| (Area::Super, offset)));
    if let Some(Err(source)) = blocks.iter().find(|block| block.is_err())
        && blocks.iter().all(Result::is_err)
    {
        return Err(JournalError::Disk { area: Area::Super, source: source.clone() });
    }
    let mut copies = [const { None }; 4];
    for (copy, block) in blocks.iter().enumerate() {
        copies[copy] = block.as_ref().ok().and_then(|block| Superblock::decode(block, copy as u8));
    }
    Ok(copies)
}

/// What the two heads of an existing segment say.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub block: HeadBlock,
    /// The two heads differ: one must be written again.
    pub is_split: bool,
}

/// Where the scan of one stream stands.
struct Cursor {
    /// Segments still to be walked, newest first.
    segments: Vec<UsedSegment>,
    /// The stream's last record that counts: behind it nothing is left to look for.
    last: Sequence,
    current: Option<Current>,
    peeked: Option<Entry>,
}

struct Current {
    segment: UsedSegment,
    is_newest: bool,
    walk: Walk,
}

/// A recovery under way: an iterator of records in the order of their sequences; then [`Recovery::resume`].
pub struct Recovery<D: Disk> {
    pub(crate) io: Blocking<D>,
    pub(crate) superblock: Superblock,
    pub(crate) copies: [Option<Superblock>; 4],
    pub(crate) slot: FloorSlot,
    has_slot: bool,
    pub(crate) found: BTreeMap<SegmentIndex, Found>,
    pub(crate) tails: Tails,
    pub(crate) damage: Vec<Damage>,
    cursors: [Cursor; STREAM_COUNT],
    skipped: Sequence,
}

impl<D: Disk> Recovery<D> {
    /// Reads superblock, floor slots, segment heads and the tails of all streams; decides what is
    /// torn and what is damaged. Writes nothing. `expected` None takes whatever disk it is.
    pub fn start(disk: D, expected: Option<DiskIdentity>) -> Result<Recovery<D>, JournalError> {
        let mut io = Blocking { disk };
        let copies = read_copies(&mut io)?;
        let superblock = Superblock::agree(&copies)?;
        superblock.check(expected)?;
        let slots = read_blocks(&mut io, &SLOT_OFFSETS.map(|offset| (Area::Super, offset)));
        let decode = |block: &Result<AlignedBuf, DiskError>| {
            block.as_ref().ok().and_then(|block| FloorSlot::decode(block, superblock.stamp))
        };
        let slots: Vec<FloorSlot> = slots.iter().filter_map(decode).collect();
        let found = read_segment_heads(&mut io, &superblock)?;
        let mut damage = Vec::new();
        let tails = Tails::analyse(&mut io, &superblock, &slots, &found, &mut damage);
        let slot = slots.into_iter().max_by_key(|slot| slot.counter);
        let cursor = |stream: Stream| Cursor {
            segments: tails.used[stream.index()].clone(),
            last: tails.ends[stream.index()].map_or(Sequence(0), |end| end.sequence),
            current: None,
            peeked: None,
        };
        let cursors = Stream::ALL.map(cursor);
        Ok(Recovery {
            io,
            copies,
            has_slot: slot.is_some(),
            slot: FloorSlot { stamp: superblock.stamp, ..slot.unwrap_or_default() },
            superblock,
            found,
            tails,
            damage,
            cursors,
            skipped: Sequence(0),
        })
    }

    /// Returns the superblock as it was found; `mount` counts up only at [`Recovery::resume`].
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns the newest checkpoint.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.superblock.checkpoint.as_ref()
    }

    /// Returns the last sequence that is known to have been durable.
    pub fn floor(&self) -> Sequence {
        self.tails.floor
    }

    /// Returns the last sequence that recovery keeps.
    pub fn kept(&self) -> Sequence {
        self.tails.kept
    }

    /// Returns the note of the newest floor slot.
    pub fn slot_note(&self) -> Option<&Bytes> {
        self.has_slot.then_some(&self.slot.note)
    }

    /// Lets the scan begin behind a mark (of a checkpoint) instead of at the oldest segment. Before
    /// the first record. What is skipped is not looked at: its damage is for a scrub to find.
    pub fn skip_to(&mut self, mark: &Mark) {
        self.skipped = mark.sequence;
        for (stream, cursor) in self.cursors.iter_mut().enumerate() {
            assert!(cursor.current.is_none(), "a mark is given before the scan begins");
            let Some(end) = mark.ends[stream] else { continue };
            cursor.segments.retain(|segment| segment.generation >= end.generation);
            if let Some(oldest) = cursor.segments.last_mut()
                && (oldest.segment, oldest.generation) == (end.segment, end.generation)
            {
                oldest.skip = Some((end.offset, end.sequence, end.chain));
            }
        }
    }

    /// Walks on until the stream's next record that counts, or its end.
    fn peek(&mut self, stream: Stream) {
        while self.cursors[stream.index()].peeked.is_none() {
            let cursor = &mut self.cursors[stream.index()];
            if cursor.current.is_none() {
                let Some(segment) = cursor.segments.pop() else { return };
                let bytes = self.superblock.segment_bytes;
                let mut walk = Walk::new(segment.segment, segment.generation, stream, self.superblock.stamp, bytes);
                if let Some((offset, last, chain)) = segment.skip {
                    walk.skip_to(offset, last, chain);
                }
                cursor.current = Some(Current { segment, is_newest: cursor.segments.is_empty(), walk });
            }
            let current = cursor.current.as_mut().expect("set just above");
            match current.walk.next(&mut self.io) {
                None => cursor.current = None,
                Some(Step::Record(entry)) => {
                    let sequence = entry.head.sequence;
                    if sequence > self.skipped && self.tails.counts(sequence) {
                        cursor.peeked = Some(entry);
                    }
                    if sequence >= cursor.last && cursor.segments.is_empty() {
                        cursor.current = None;
                    }
                }
                Some(step) => {
                    let (segment, is_newest) = (current.segment, current.is_newest);
                    self.judge(stream, segment.segment, is_newest, step);
                }
            }
        }
    }

    /// Says whether what is missing was durable.
    fn judge(&mut self, stream: Stream, segment: SegmentIndex, is_newest: bool, step: Step) {
        let damage = match step {
            Step::Gap { from, until, after, before }
                if self.tails.counts(before) && self.tails.is_damage(stream, after, before) =>
            {
                Damage::Stretch { from: Position { segment, offset: from }, until, after, before: Some(before) }
            }
            Step::End { sealed: false, offset, last } if !is_newest => Damage::Stretch {
                from: Position { segment, offset },
                until: records_end(self.superblock.segment_bytes),
                after: last,
                before: None,
            },
            Step::Unreadable { offset, error } => Damage::Unreadable { position: Position { segment, offset }, error },
            _ => return,
        };
        self.report(damage);
    }

    fn report(&mut self, damage: Damage) {
        if !self.damage.contains(&damage) {
            tracing::warn!(disk = %self.superblock.identity.disk, ?damage, "damage found in the journal");
            self.damage.push(damage);
        }
    }

    /// Reads a record's body; None, and damage, where it does not verify.
    fn load(&mut self, stream: usize, entry: Entry) -> Option<Recovered> {
        let head = entry.head;
        let length = HEAD_BYTES + head.body_bytes as usize;
        let segment = head.position.segment;
        let current = self.cursors[stream].current.as_mut();
        let mut apart = Window::new(segment);
        let end = records_end(self.superblock.segment_bytes);
        // The walk's window holds the body, unless the walk has gone on to another segment.
        let bytes = match current.filter(|current| current.segment.segment == segment) {
            Some(current) => current.walk.bytes(&mut self.io, head.position.offset, length),
            None => apart.bytes(&mut self.io, head.position.offset, length, false, end),
        };
        let body = match bytes {
            Ok(bytes) => &bytes[HEAD_BYTES..],
            Err(error) => {
                self.report(Damage::Unreadable { position: head.position, error });
                return None;
            }
        };
        if !sum_fits(body, head.body_crc) {
            self.report(Damage::Body { sequence: head.sequence, position: head.position });
            return None;
        }
        Some(recovered(&entry, Bytes::copy_from_slice(body)))
    }

    /// Reads a record anew, body and payload, and verifies it. For checkpoints: a record that the
    /// consumer's note leads to.
    pub fn read(&mut self, position: Position) -> Result<(Recovered, Bytes), JournalError> {
        let bytes = self.superblock.segment_bytes;
        let refuse = |why: String| JournalError::Segment(position.segment, why);
        let Some(Found { block: HeadBlock::Head(SegmentHead { used: true, generation, .. }), .. }) =
            self.found.get(&position.segment).copied()
        else {
            return Err(refuse("not in use".into()));
        };
        let is_inside = (RECORDS_START..records_end(bytes)).contains(&position.offset)
            && position.offset.is_multiple_of(BLOCK_BYTES as u32);
        if !is_inside {
            return Err(refuse(format!("no record can start at {}", position.offset)));
        }
        let area = Area::Segment(position.segment);
        let disk_error = |source| JournalError::Disk { area, source };
        let block =
            self.io.read(area, u64::from(position.offset), AlignedBuf::zeroed(BLOCK_BYTES)).map_err(disk_error)?;
        let head = crate::record::Head::decode(&block).map_err(|error| refuse(error.to_string()))?;
        if u64::from(position.offset) + u64::from(head.record_bytes()) > u64::from(records_end(bytes)) {
            return Err(refuse(RecordError::Truncated.to_string()));
        }
        let whole = AlignedBuf::zeroed(head.record_bytes() as usize);
        let whole = self.io.read(area, u64::from(position.offset), whole).map_err(disk_error)?.freeze();
        let view = verify_record(&whole, position, generation, self.superblock.stamp)
            .map_err(|error| refuse(error.to_string()))?;
        let entry = Entry { head: view.head, hash: 0 };
        Ok((recovered(&entry, whole.slice_ref(view.body)), whole.slice_ref(view.payload)))
    }

    /// Returns the damage found so far: complete once `next` has returned None.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Returns the torn tail that was cut, where there was one.
    pub fn cut(&self) -> Option<Cut> {
        self.tails.cut
    }

    /// Gives the disk back without mounting it.
    pub fn abandon(self) -> D {
        self.io.disk
    }
}

/// The consumer's records, in order of sequence, all streams together.
impl<D: Disk> Iterator for Recovery<D> {
    type Item = Recovered;

    fn next(&mut self) -> Option<Recovered> {
        loop {
            for stream in Stream::ALL {
                self.peek(stream);
            }
            let sequence = |cursor: &Cursor| cursor.peeked.map(|entry| entry.head.sequence);
            let nearest = Stream::ALL
                .into_iter()
                .filter_map(|stream| Some((sequence(&self.cursors[stream.index()])?, stream)))
                .min()?;
            let stream = nearest.1.index();
            let entry = self.cursors[stream].peeked.take().expect("the nearest has been peeked");
            if entry.head.kind < KIND_CONSUMER_MIN {
                continue;
            }
            if let Some(recovered) = self.load(stream, entry) {
                return Some(recovered);
            }
        }
    }
}

fn recovered(entry: &Entry, body: Bytes) -> Recovered {
    let head = entry.head;
    Recovered {
        sequence: head.sequence,
        stream: head.stream,
        kind: head.kind,
        position: head.position,
        generation: head.generation,
        body,
        payload_offset: head.payload_offset(),
        payload_bytes: head.payload_bytes,
    }
}

/// Reads both heads of every segment.
fn read_segment_heads<D: Disk>(
    io: &mut Blocking<D>,
    superblock: &Superblock,
) -> Result<BTreeMap<SegmentIndex, Found>, JournalError> {
    let segments = io.disk.segments();
    let mut places = Vec::with_capacity(2 * segments.len());
    for (segment, bytes) in &segments {
        if *bytes != u64::from(superblock.segment_bytes) {
            return Err(JournalError::Segment(
                *segment,
                format!("{bytes} bytes instead of {}", superblock.segment_bytes),
            ));
        }
        let area = Area::Segment(*segment);
        places.extend([(area, 0), (area, u64::from(records_end(superblock.segment_bytes)))]);
    }
    let blocks = read_blocks(io, &places);
    let decode = |segment, block: &Result<AlignedBuf, DiskError>| match block {
        Ok(block) => SegmentHead::decode(block, segment, superblock.stamp),
        Err(_) => HeadBlock::Damaged,
    };
    let found = segments.iter().zip(blocks.chunks(2)).map(|((segment, _), pair)| {
        let (front, back) = (decode(*segment, &pair[0]), decode(*segment, &pair[1]));
        (*segment, Found { block: HeadBlock::merge(front, back), is_split: front != back })
    });
    Ok(found.collect())
}
