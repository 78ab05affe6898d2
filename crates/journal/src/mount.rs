//! Mounting: the last steps of a recovery, the first ones that write.

use crate::blocking::Blocking;
use crate::disk::{Area, Disk, SegmentIndex};
use crate::error::JournalError;
use crate::journal::{Beginning, Journal, JournalOptions, SegmentState};
use crate::record::{Generation, Sequence, Stream};
use crate::recovery::{Recovery, write_superblock};
use crate::segment::{HeadBlock, SegmentHead, records_end};
use crate::superblock::{FEATURES_RO_COMPATIBLE_KNOWN, Superblock};
use crate::table::SegmentTable;
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use std::time::Instant;

impl<D: Disk> Recovery<D> {
    /// Counts the mount, makes what is kept durable, voids what was cut, and returns the engine and
    /// its disk. The caller has looked at the damage: resuming over it is its decision.
    ///
    /// The order matters. The kept tail is synced before anything may name it as durable. Then the
    /// mount is counted, before it writes anything else, so that no two mounts ever write under one
    /// number. The mount records overwrite what was cut and carry a sequence beyond all that can
    /// have been used.
    pub fn resume(mut self, now: Instant, options: JournalOptions) -> Result<(Journal, D), JournalError> {
        let unknown = self.superblock.features_ro_compatible & !FEATURES_RO_COMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(JournalError::Incompatible(unknown));
        }
        let unsynced = std::mem::take(&mut self.tails.unsynced);
        self.io.sync_all(&unsynced)?;
        let order = Superblock::update_order(&self.copies, &self.superblock);
        self.superblock.mount += 1;
        self.superblock.sequence += 1;
        self.superblock.base = self.tails.next_sequence;
        self.superblock.floors = self.tails.floors();
        write_superblock(&mut self.io, order, &self.superblock)?;
        self.heal_heads()?;

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

    /// Writes the heads of segments anew where the two differ: one was damaged, or a crash came
    /// between them.
    fn heal_heads(&mut self) -> Result<(), JournalError> {
        let end = u64::from(records_end(self.superblock.segment_bytes));
        let (mut writes, mut areas) = (Vec::new(), Vec::new());
        for (segment, found) in &self.found {
            let HeadBlock::Head(head) = found.block else { continue };
            if found.is_split {
                let area = Area::Segment(*segment);
                let block = head_block(&head);
                writes.extend([(area, 0, block.clone()), (area, end, block)]);
                areas.push(area);
            }
        }
        self.io.write_all(writes)?;
        self.io.sync_all(&areas)
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
