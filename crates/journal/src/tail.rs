//! The tails of the streams: what the last batch left behind, and where a new one may begin.
//!
//! Every record says, per stream, up to where all was durable when it was written: the floors. The
//! highest floors that anything readable names are the truth; records above them belong to one
//! batch that was never acknowledged as far as the disk knows. Of that batch the longest run
//! without a hole is kept; the rest is cut. What is missing at or below a floor is damage.

use crate::batch::Tail;
use crate::blocking::Blocking;
use crate::disk::{Area, Disk, DiskError, SegmentIndex};
use crate::fields::u64_at;
use crate::journal::BATCH_RECORDS_MAX;
use crate::record::{
    Generation, HEAD_BYTES, Head, KIND_MOUNT, KIND_SEAL, MOUNT_BODY_BYTES, Position, STREAM_COUNT, Sequence, Stream,
    sum_fits,
};
use crate::recovery::{Cut, Damage, Found};
use crate::segment::HeadBlock;
use crate::superblock::{FloorSlot, StreamEnd, Superblock};
use crate::walk::{Entry, Step, Walk};
use plinth_protocol::buffer::{AlignedBuf, round_up_to_block};
use std::collections::BTreeMap;

/// A segment that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsedSegment {
    pub segment: SegmentIndex,
    pub generation: Generation,
    prior: Option<(SegmentIndex, Generation)>,
    /// Where a scan begins instead of at the first record: offset, sequence and hash before it.
    pub skip: Option<(u32, Sequence, u64)>,
}

/// What the analysis of the tails has found.
pub(crate) struct Tails {
    /// Per stream, the segments that count, newest first.
    pub used: [Vec<UsedSegment>; STREAM_COUNT],
    /// Segments in use that hold nothing but what was cut.
    pub void: Vec<SegmentIndex>,
    /// The last sequence known durable.
    pub floor: Sequence,
    /// Per stream, the last sequence known durable.
    pub known_floors: [Sequence; STREAM_COUNT],
    /// The last sequence that is kept.
    pub kept: Sequence,
    pub cut: Option<Cut>,
    /// The streams' last records.
    pub ends: [Option<StreamEnd>; STREAM_COUNT],
    /// Where streams that can go on in their segment do.
    pub tails: [Option<Tail>; STREAM_COUNT],
    /// The first sequence that no batch can ever have used.
    pub next_sequence: Sequence,
    /// Records above the floor that are kept: to be made durable before anything names them as such.
    pub unproven: Vec<Head>,
    /// Sequences that a mount has made void: strictly between the two.
    voids: Vec<(Sequence, Sequence)>,
}

/// A segment whose records have been walked.
struct Walked {
    used: UsedSegment,
    steps: Vec<Step>,
}

impl Walked {
    fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.steps.iter().filter_map(|step| match step {
            Step::Record(entry) => Some(entry),
            _ => None,
        })
    }
}

/// The highest floors, sequence and mount that anything has named.
struct Known {
    floors: [Sequence; STREAM_COUNT],
    floor: Sequence,
    highest: Sequence,
    mount: u32,
}

impl Known {
    fn learn(&mut self, floors: &[Sequence; STREAM_COUNT], sequence: Sequence, mount: u32) {
        for (known, floor) in self.floors.iter_mut().zip(floors) {
            *known = (*known).max(*floor);
            self.floor = self.floor.max(*floor);
        }
        self.highest = self.highest.max(sequence).max(self.floor);
        self.mount = self.mount.max(mount);
    }
}

impl Tails {
    /// Reads the newest segments of each stream and decides. Damage found on the way is added to `damage`.
    pub fn analyse<D: Disk>(
        io: &mut Blocking<D>,
        superblock: &Superblock,
        slots: &[FloorSlot],
        found: &BTreeMap<SegmentIndex, Found>,
        damage: &mut Vec<Damage>,
    ) -> Tails {
        let mut known =
            Known { floors: [Sequence(0); STREAM_COUNT], floor: Sequence(0), highest: Sequence(0), mount: 0 };
        let used = sort_segments(found, &mut known, damage);
        for slot in slots {
            known.learn(&slot.floors, Sequence(0), slot.mount);
        }
        known.learn(&superblock.floors, Sequence(0), 0);
        if let Some(mark) = superblock.checkpoint.as_ref().map(|checkpoint| checkpoint.mark) {
            let floors = mark.ends.map(|end| end.map_or(Sequence(0), |end| end.sequence));
            known.learn(&floors, mark.sequence, 0);
            known.floor = known.floor.max(mark.sequence);
        }
        let walked = walk_tails(io, superblock, &used, &mut known);
        if known.mount > superblock.mount {
            damage.push(Damage::SuperblockBehind { mount: known.mount });
        }
        let mut tails = Tails {
            used,
            void: Vec::new(),
            floor: known.floor,
            known_floors: known.floors,
            kept: known.floor,
            cut: None,
            ends: [None; STREAM_COUNT],
            tails: [None; STREAM_COUNT],
            next_sequence: Sequence(0),
            unproven: Vec::new(),
            voids: Vec::new(),
        };
        tails.keep_what_is_whole(io, &walked);
        let highest = known.highest.max(tails.kept).max(superblock.base);
        // One batch may have been lost without a trace: leap over all that it can have used.
        tails.next_sequence = Sequence(highest.0 + BATCH_RECORDS_MAX as u64 + 1);
        tails.drop_void_segments();
        tails.find_lost_segments(found, damage);
        for stream in Stream::ALL {
            tails.find_end(stream, &walked[stream.index()], damage);
        }
        tails
    }

    /// Returns whether a record counts: kept, and not made void by a later mount.
    pub fn counts(&self, sequence: Sequence) -> bool {
        sequence <= self.kept && !self.voids.iter().any(|(kept, mount)| sequence > *kept && sequence < *mount)
    }

    /// Returns each stream's last record that counts: durable once the tail has been synced.
    pub fn floors(&self) -> [Sequence; STREAM_COUNT] {
        self.ends.map(|end| end.map_or(Sequence(0), |end| end.sequence))
    }

    /// Returns whether a gap in a stream hides something that was durable: it lies below a floor.
    pub fn is_damage(&self, stream: Stream, after: Sequence, before: Sequence) -> bool {
        before <= self.floor || after < self.known_floors[stream.index()]
    }

    /// Keeps the longest run of records above the floor without a hole.
    fn keep_what_is_whole<D: Disk>(&mut self, io: &mut Blocking<D>, walked: &[Vec<Walked>; STREAM_COUNT]) {
        let all = || walked.iter().flatten().flat_map(Walked::entries);
        let mut mounts = BTreeMap::new();
        for entry in all().filter(|entry| is_mount(entry)) {
            if let Some(kept) = read_kept(io, entry) {
                self.voids.push((kept, entry.head.sequence));
                mounts.entry(kept).or_insert(*entry);
            }
        }
        let mut above = BTreeMap::new();
        for stream in Stream::ALL {
            for walked in &walked[stream.index()] {
                // Behind a gap of the torn batch nothing counts; behind damage the chain begins anew.
                let mut is_trusted = true;
                for step in &walked.steps {
                    match step {
                        Step::Gap { after, before, .. } => is_trusted = self.is_damage(stream, *after, *before),
                        Step::Record(entry) if is_trusted && entry.head.sequence > self.floor => {
                            above.insert(entry.head.sequence, *entry);
                        }
                        _ => {}
                    }
                }
            }
        }
        loop {
            let mounted = mounts.get(&self.kept).filter(|mount| above.contains_key(&mount.head.sequence));
            let next = mounted.or_else(|| above.get(&Sequence(self.kept.0 + 1)));
            let Some(entry) = next.filter(|entry| is_whole(io, entry)) else { break };
            self.kept = entry.head.sequence;
            self.unproven.push(entry.head);
        }
        // A mount that was itself cut makes nothing void.
        let kept = self.kept;
        self.voids.retain(|(_, mount)| *mount <= kept);
        let records = all().filter(|entry| entry.head.sequence > kept).count() as u32;
        self.cut = (records > 0).then_some(Cut { kept, records });
    }

    /// Segments that were opened by what is cut hold nothing.
    fn drop_void_segments(&mut self) {
        let mut used = std::mem::take(&mut self.used);
        for segments in &mut used {
            segments.retain(|used| {
                let counts = self.counts(Sequence(used.generation.0));
                if !counts {
                    self.void.push(used.segment);
                }
                counts
            });
        }
        self.used = used;
    }

    /// A segment that another one follows must be there, in the same life or a later one.
    fn find_lost_segments(&self, found: &BTreeMap<SegmentIndex, Found>, damage: &mut Vec<Damage>) {
        for used in self.used.iter().flatten() {
            let Some((segment, generation)) = used.prior else { continue };
            let is_lost = match found.get(&segment).map(|found| found.block) {
                Some(HeadBlock::Head(head)) => head.generation < generation,
                Some(HeadBlock::Damaged) => false,
                Some(HeadBlock::Blank) | None => true,
            };
            if is_lost {
                damage.push(Damage::SegmentLost { segment, generation });
            }
        }
    }

    /// Finds a stream's last record, and whether it can go on behind it.
    fn find_end(&mut self, stream: Stream, walked: &[Walked], damage: &mut Vec<Damage>) {
        let floor = self.known_floors[stream.index()];
        let newest = self.used[stream.index()].first().map(|used| used.segment);
        let mut is_damaged = false;
        for walked in walked {
            let segment = walked.used.segment;
            for step in &walked.steps {
                let found = match step {
                    Step::Gap { from, until, after, before }
                        if self.counts(*before) && self.is_damage(stream, *after, *before) =>
                    {
                        let from = Position { segment, offset: *from };
                        Damage::Stretch { from, until: *until, after: *after, before: Some(*before) }
                    }
                    Step::Unreadable { offset, error } => {
                        Damage::Unreadable { position: Position { segment, offset: *offset }, error: error.clone() }
                    }
                    _ => continue,
                };
                is_damaged |= Some(segment) == newest;
                damage.push(found);
            }
        }
        let counted = walked
            .iter()
            .find_map(|walked| walked.entries().rev().find(|entry| self.counts(entry.head.sequence)).copied());
        let last = counted.map_or(Sequence(0), |entry| entry.head.sequence);
        if last < floor {
            is_damaged = true;
            damage.push(Damage::Missing { stream, last, floor });
        }
        let Some(Entry { head, hash, .. }) = counted else { return };
        let Position { segment, offset } = head.position;
        let mut end = StreamEnd {
            segment,
            generation: head.generation,
            offset: offset + head.record_bytes(),
            sequence: last,
            chain: hash,
        };
        if head.kind == KIND_SEAL {
            end.offset = u32::MAX;
        } else if !is_damaged && Some(segment) == newest {
            let StreamEnd { segment, generation, offset, .. } = end;
            self.tails[stream.index()] = Some(Tail { segment, generation, offset });
        }
        self.ends[stream.index()] = Some(end);
    }
}

/// Returns each stream's segments in use, newest first.
fn sort_segments(
    found: &BTreeMap<SegmentIndex, Found>,
    known: &mut Known,
    damage: &mut Vec<Damage>,
) -> [Vec<UsedSegment>; STREAM_COUNT] {
    let mut used: [Vec<UsedSegment>; STREAM_COUNT] = Default::default();
    for (segment, found) in found {
        match found.block {
            HeadBlock::Blank => {}
            HeadBlock::Damaged => damage.push(Damage::SegmentHead { segment: *segment }),
            HeadBlock::Head(head) => {
                known.learn(&head.floors, Sequence(head.generation.0), head.mount);
                if head.used {
                    let (generation, prior) = (head.generation, head.prior);
                    let segment = UsedSegment { segment: *segment, generation, prior, skip: None };
                    used[head.stream.index()].push(segment);
                }
            }
        }
    }
    for segments in &mut used {
        segments.sort_by_key(|used| std::cmp::Reverse(used.generation));
    }
    used
}

/// Walks each stream's segments from the newest back until one begins at or below the floor.
fn walk_tails<D: Disk>(
    io: &mut Blocking<D>,
    superblock: &Superblock,
    used: &[Vec<UsedSegment>; STREAM_COUNT],
    known: &mut Known,
) -> [Vec<Walked>; STREAM_COUNT] {
    let mut walked: [Vec<Walked>; STREAM_COUNT] = Default::default();
    loop {
        let mut has_moved = false;
        for stream in Stream::ALL {
            let (used, walked) = (&used[stream.index()], &mut walked[stream.index()]);
            let reaches_floor = walked.last().is_some_and(|walked| walked.used.generation.0 <= known.floor.0);
            let Some(used) = used.get(walked.len()).filter(|_| !reaches_floor) else { continue };
            has_moved = true;
            let (bytes, stamp) = (superblock.segment_bytes, superblock.stamp);
            let mut walk = Walk::new(used.segment, used.generation, stream, stamp, bytes);
            let mut steps = Vec::new();
            while let Some(step) = walk.next(io) {
                if let Step::Record(entry) = &step {
                    known.learn(&entry.head.floors, entry.head.sequence, entry.head.mount);
                }
                steps.push(step);
            }
            walked.push(Walked { used: *used, steps });
        }
        if !has_moved {
            return walked;
        }
    }
}

/// Whether a record says what a mount has kept: a mount, or the seal that one has written.
fn is_mount(entry: &Entry) -> bool {
    matches!(entry.head.kind, KIND_MOUNT | KIND_SEAL) && entry.head.body_bytes as usize == MOUNT_BODY_BYTES
}

/// Reads a whole record by its head.
pub(crate) fn read_record<D: Disk>(io: &mut Blocking<D>, head: &Head) -> Result<AlignedBuf, DiskError> {
    let Position { segment, offset } = head.position;
    let buffer = AlignedBuf::zeroed(round_up_to_block(head.record_bytes() as usize));
    io.read(Area::Segment(segment), u64::from(offset), buffer)
}

/// Returns the sequence that a mount has kept, where its body verifies.
fn read_kept<D: Disk>(io: &mut Blocking<D>, entry: &Entry) -> Option<Sequence> {
    let record = read_record(io, &entry.head).ok()?;
    let body = &record[HEAD_BYTES..HEAD_BYTES + MOUNT_BODY_BYTES];
    sum_fits(body, entry.head.body_crc).then(|| Sequence(u64_at(body, 0)))
}

/// Returns whether body and payload of a record verify. What can't be read is not whole: nobody
/// has been told that it is durable.
fn is_whole<D: Disk>(io: &mut Blocking<D>, entry: &Entry) -> bool {
    let Ok(record) = read_record(io, &entry.head) else { return false };
    let head = &entry.head;
    let body = &record[HEAD_BYTES..HEAD_BYTES + head.body_bytes as usize];
    sum_fits(body, head.body_crc) && sum_fits(&record[head.payload_offset() as usize..], head.payload_crc)
}
