//! Mounting: the last steps of a recovery, the first ones that write.

use crate::blocking::Blocking;
use crate::disk::{Area, Disk, SegmentIndex};
use crate::error::JournalError;
use crate::journal::{Beginning, Journal, JournalOptions, SegmentState};
use crate::planted::{Bug, planted};
use crate::record::{Generation, Position, Sequence, Stream, verify_record};
use crate::recovery::{Recovery, write_superblock};
use crate::segment::{HeadBlock, SegmentHead, records_end};
use crate::superblock::{COPY_OFFSETS, FEATURES_RO_COMPATIBLE_KNOWN, Superblock};
use crate::table::SegmentTable;
use crate::tail::read_record;
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use std::time::Instant;

impl<D: Disk> Recovery<D> {
    /// Counts the mount, makes what is kept durable, voids what was cut, and returns the engine and
    /// its disk. The caller has looked at the damage: resuming over it is its decision.
    ///
    /// The order matters. What the last batch left is made durable before anything may name it so. Then the
    /// mount is counted, before it writes anything else, so that no two mounts ever write under one
    /// number. The mount records overwrite what was cut and carry a sequence beyond all that can
    /// have been used.
    pub fn resume(mut self, now: Instant, options: JournalOptions) -> Result<(Journal, D), JournalError> {
        let unknown = self.superblock.features_ro_compatible & !FEATURES_RO_COMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(JournalError::Incompatible(unknown));
        }
        self.renew_last_batch()?;
        self.renew_superblock()?;
        let order = Superblock::update_order(&self.copies, &self.superblock);
        self.superblock.mount += 1;
        self.superblock.sequence += 1;
        self.superblock.base = self.tails.next_sequence;
        self.superblock.floors = self.tails.floors();
        write_superblock(&mut self.io, order, &self.superblock)?;

        let kept = self.tails.kept;
        let void = self.tails.void.clone();
        let table = self.table();
        let mut ends = self.tails.ends;
        for end in ends.iter_mut().flatten() {
            end.offset = end.offset.min(records_end(self.superblock.segment_bytes));
        }
        let beginning = Beginning {
            table,
            tails: self.tails.tails,
            ends,
            floors: self.superblock.floors,
            durable: kept,
            next_sequence: self.tails.next_sequence,
            slot: self.slot,
            superblock: self.superblock,
        };
        let mut journal = Journal::new(beginning, options);
        for segment in void {
            journal.queue_release(segment);
        }
        drive_mount(&mut self.io, &mut journal, now, kept)?;
        Ok((journal, self.io.disk))
    }

    /// Writes once more, and syncs, what the last batch has written and recovery keeps. The process
    /// may have died before the batch's sync, or the sync may have failed: then the medium shows
    /// bytes that a later power cut still takes away, and that a second sync alone need not save.
    ///
    /// What the last batch wrote names no higher floors than anything else: records above the floor,
    /// and segment heads of just these floors. Heads of a segment that differ are made equal as well.
    fn renew_last_batch(&mut self) -> Result<(), JournalError> {
        let mut areas = Vec::new();
        let unproven = std::mem::take(&mut self.tails.unproven);
        for head in unproven.into_iter().filter(|_| !planted(Bug::TrustUnsyncedTail)) {
            let Position { segment, offset } = head.position;
            let area = Area::Segment(segment);
            let record = read_record(&mut self.io, &head).map_err(|source| JournalError::Disk { area, source })?;
            verify_record(&record, head.position, head.generation, head.stamp)
                .map_err(|error| JournalError::Segment(segment, format!("read twice, and now: {error}")))?;
            self.io.write_all(vec![(area, u64::from(offset), record.freeze())])?;
            areas.push(area);
        }
        let end = u64::from(records_end(self.superblock.segment_bytes));
        let mut writes = Vec::new();
        for (segment, found) in &self.found {
            let HeadBlock::Head(head) = found.block else { continue };
            let is_unproven = head.floors == self.tails.known_floors
                && !self.tails.void.contains(segment)
                && !planted(Bug::TrustUnsyncedHeads);
            if found.is_split || is_unproven {
                let area = Area::Segment(*segment);
                let block = head_block(&head);
                writes.extend([(area, 0, block.clone()), (area, end, block)]);
                areas.push(area);
            }
        }
        self.io.write_all(writes)?;
        areas.sort_unstable();
        areas.dedup();
        self.io.sync_all(&areas)
    }

    /// Writes once more, and syncs, the copies that hold the superblock as it was found. An update
    /// may have ended before its sync: writing the other copies now could leave no two that agree.
    fn renew_superblock(&mut self) -> Result<(), JournalError> {
        let found = |copy: &usize| self.copies[*copy].as_ref() == Some(&self.superblock);
        let block = |copy: usize| (Area::Super, COPY_OFFSETS[copy], self.superblock.encode(copy as u8).freeze());
        if planted(Bug::TrustUnsyncedSuperblock) {
            return Ok(());
        }
        let writes = (0..COPY_OFFSETS.len()).filter(found).map(block).collect();
        self.io.write_all(writes)?;
        self.io.sync_all(&[Area::Super])
    }

    /// Returns the table of what was found.
    fn table(&self) -> SegmentTable {
        let mut table = SegmentTable::new(self.superblock.segment_count_max);
        let open = |segment: SegmentIndex, stream: Stream| {
            self.tails.tails[stream.index()].filter(|tail| tail.segment == segment)
        };
        let full = records_end(self.superblock.segment_bytes);
        for (segment, found) in &self.found {
            let (generation, state, used) = match found.block {
                HeadBlock::Blank => (Generation(0), SegmentState::Free, 0),
                HeadBlock::Damaged => (Generation(0), SegmentState::Quarantined, full),
                HeadBlock::Head(head) if !head.used => (head.generation, SegmentState::Free, 0),
                HeadBlock::Head(head) => match open(*segment, head.stream) {
                    Some(tail) => (head.generation, SegmentState::Open(head.stream), tail.offset),
                    None => (head.generation, SegmentState::Sealed(head.stream), full),
                },
            };
            table.insert(*segment, generation, state, used);
        }
        table
    }
}

fn head_block(head: &SegmentHead) -> Bytes {
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
    head.encode(&mut block);
    block.freeze()
}

/// Writes the mount records and the free heads, and waits until they are durable.
fn drive_mount<D: Disk>(
    io: &mut Blocking<D>,
    journal: &mut Journal,
    now: Instant,
    kept: Sequence,
) -> Result<(), JournalError> {
    let last = journal.stage_mount(kept);
    let mut completions = Vec::new();
    loop {
        while io.disk.room() > 0
            && let Some(operation) = journal.poll_disk(now)
        {
            io.disk.submit(operation);
        }
        if journal.is_idle() && journal.durable() >= last {
            // Nobody waits for the mount's own events.
            while journal.poll_event().is_some() {}
            return Ok(());
        }
        io.disk.reap(None, &mut completions);
        for completion in completions.drain(..) {
            journal.handle_completion(now, completion);
        }
        if let Some(why) = journal.fenced() {
            return Err(JournalError::Fenced(why.to_string()));
        }
    }
}
