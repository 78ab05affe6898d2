//! Start-up: the last checkpoint, the log behind it, and what to do with what cannot be read.
//!
//! Nothing is deleted here. A record of unknown kind, an unreadable body, a lost stretch: each pins
//! its segment, is counted and reported; the fragments around it go on.

use super::checkpointing::Checkpointing;
use super::{Engine, EngineOptions, Phase, Ticket, place_of};
use crate::admission::{FRAGMENT_BYTES_MAX, HEADER_BYTES_MAX};
use crate::checkpoint::{
    KIND_CHECKPOINT_PART, KIND_CHECKPOINT_ROOT, PartBody, PartPlace, RootBody, Rows, decode_note, decode_rows,
};
use crate::dead::DeadRecords;
use crate::index::{Index, IndexEntry, Place};
use crate::node::SEGMENT_BYTES_MAX;
use crate::queue::Queues;
use crate::space::Space;
use crate::stats::DiskStats;
use crate::tombstone::{KIND_FRAGMENT, KIND_TOMBSTONE, TombstoneBody};
use plinth_journal::{
    Cut, Damage, Disk, Generation, Journal, JournalError, Position, Recovered, Recovery, SegmentIndex, SegmentState,
};
use plinth_protocol::FragmentId;
use plinth_protocol::buffer::BLOCK_BYTES;
use plinth_protocol::stripe::FragmentHeader;
use plinth_protocol::wire::Wire;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// What start-up found.
#[derive(Debug, Default)]
pub struct RecoveryReport {
    /// Fragments in the index.
    pub fragments: usize,
    /// Records replayed behind the checkpoint.
    pub replayed: u64,
    /// Number of the checkpoint that was loaded.
    pub checkpoint: Option<u64>,
    /// Why the newest checkpoint could not be used; everything was scanned instead.
    pub checkpoint_rejected: Option<String>,
    /// Records that are not understood: kept, never touched. Place and why.
    pub foreign: Vec<(Position, String)>,
    /// What the journal found damaged below its durable floor.
    pub damage: Vec<Damage>,
    /// The torn tail that was cut.
    pub cut: Option<Cut>,
}

/// An engine that is ready to serve, its disk, and what was found.
pub struct Opened<T, D> {
    /// The engine.
    pub engine: Engine<T>,
    /// Its disk.
    pub disk: D,
    /// What start-up found.
    pub report: RecoveryReport,
}

/// The state of a disk while it is being rebuilt.
#[derive(Default)]
struct Rebuild {
    index: Index,
    dead: DeadRecords,
    /// The life in which each segment's entries were seen.
    lives: BTreeMap<u32, Generation>,
    checkpoint_places: Vec<Place>,
    checkpoint_number: u64,
    /// Segments with damage that was found before the checkpoint.
    damaged_segments: BTreeSet<u32>,
    report: RecoveryReport,
}

impl<T: Ticket> Engine<T> {
    /// Brings a disk back: loads its checkpoint, replays the log behind it, mounts it.
    ///
    /// Fails where the journal cannot be mounted; damage of single records is reported instead.
    pub fn recover<D: Disk>(
        now: Instant,
        mut recovery: Recovery<D>,
        options: EngineOptions,
    ) -> Result<Opened<T, D>, JournalError> {
        let segment_bytes = recovery.superblock().segment_bytes;
        if segment_bytes > SEGMENT_BYTES_MAX {
            let text = format!("segments of {segment_bytes} bytes: a storage disk has at most {SEGMENT_BYTES_MAX}");
            return Err(JournalError::Invalid(text));
        }
        let mut rebuild = Rebuild::default();
        rebuild.load_checkpoint(&mut recovery);
        for record in recovery.by_ref() {
            rebuild.replay(&record);
        }
        rebuild.report.damage = recovery.damage().to_vec();
        rebuild.report.cut = recovery.cut();
        let (journal, disk) = recovery.resume(now, options.journal.clone())?;
        rebuild.drop_released(&journal);
        rebuild.quarantine_damage();
        let report = std::mem::take(&mut rebuild.report);
        let engine = rebuild.into_engine(journal, options, &report);
        let report = RecoveryReport { fragments: engine.index.count(), ..report };
        engine.publish();
        Ok(Opened { engine, disk, report })
    }
}

impl Rebuild {
    fn load_checkpoint<D: Disk>(&mut self, recovery: &mut Recovery<D>) {
        let Some(checkpoint) = recovery.checkpoint().cloned() else { return };
        match self.read_checkpoint(recovery, &checkpoint.note) {
            Ok(()) => recovery.skip_to(&checkpoint.mark),
            Err(reason) => {
                tracing::warn!(reason, "checkpoint of the index cannot be used; scanning everything");
                let report = RecoveryReport { checkpoint_rejected: Some(reason), ..Default::default() };
                *self = Rebuild { report, ..Rebuild::default() };
            }
        }
    }

    fn read_checkpoint<D: Disk>(&mut self, recovery: &mut Recovery<D>, note: &[u8]) -> Result<(), String> {
        let root_place = decode_note(note).map_err(|error| error.to_string())?;
        let (record, _) = recovery.read(root_place.position()).map_err(|error| error.to_string())?;
        if record.kind != KIND_CHECKPOINT_ROOT {
            return Err(format!("record of kind {} where the checkpoint's root should be", record.kind));
        }
        let root = RootBody::decode(&record.body).map_err(|error| error.to_string())?;
        for part in &root.parts {
            self.read_part(recovery, &root, part)?;
        }
        if self.index.count() as u64 > root.fragments {
            return Err("the parts hold more fragments than the root says".to_owned());
        }
        self.checkpoint_number = root.checkpoint;
        self.report.checkpoint = Some(root.checkpoint);
        self.checkpoint_places = root.parts.iter().map(Place::from).chain([root_place]).collect();
        Ok(())
    }

    fn read_part<D: Disk>(
        &mut self,
        recovery: &mut Recovery<D>,
        root: &RootBody,
        part: &PartPlace,
    ) -> Result<(), String> {
        let (record, payload) = recovery.read(Place::from(part).position()).map_err(|error| error.to_string())?;
        let body = PartBody::decode(&record.body).map_err(|error| error.to_string())?;
        if record.kind != KIND_CHECKPOINT_PART || body.checkpoint != root.checkpoint {
            return Err("a part belongs to another checkpoint".to_owned());
        }
        match decode_rows(&body, &payload).map_err(|error| error.to_string())? {
            Rows::Segments(rows) => {
                self.damaged_segments.extend(rows.iter().filter(|row| row.damaged).map(|row| row.segment));
                self.lives.extend(rows.into_iter().map(|row| (row.segment, Generation(row.life))));
            }
            // What lies in a segment opened after the mark comes with the replay.
            Rows::Index(rows) => {
                for entry in rows.into_iter().filter(|entry| self.lives.contains_key(&entry.place.segment)) {
                    self.index.insert(entry);
                }
            }
            Rows::Dead(rows) => {
                let known = rows.into_iter().filter(|record| self.lives.contains_key(&record.segment));
                known.for_each(|record| self.dead.restore(record));
            }
        }
        Ok(())
    }

    fn replay(&mut self, record: &Recovered) {
        self.report.replayed += 1;
        self.enter_life(record.position.segment.0, record.generation);
        match record.kind {
            KIND_FRAGMENT => match FragmentHeader::decode(&record.body) {
                Ok(header)
                    if record.payload_bytes as usize <= FRAGMENT_BYTES_MAX && record.body.len() <= HEADER_BYTES_MAX =>
                {
                    self.replay_fragment(header.fragment, record);
                }
                Ok(_) => self.foreign(record.position, "fragment or header larger than any may be".to_owned()),
                Err(error) => self.foreign(record.position, format!("fragment header: {error}")),
            },
            KIND_TOMBSTONE => match TombstoneBody::decode(&record.body) {
                Ok(body) => self.replay_tombstone(&body.fragments, record.position.segment.0),
                Err(error) => self.foreign(record.position, format!("tombstone: {error}")),
            },
            // Parts of the checkpoint in force are known by its root; all others are dead.
            KIND_CHECKPOINT_PART | KIND_CHECKPOINT_ROOT => {}
            kind => self.foreign(record.position, format!("record of unknown kind {kind}")),
        }
    }

    fn replay_fragment(&mut self, fragment: FragmentId, record: &Recovered) {
        let place = place_of(record.position, record.body.len(), record.payload_bytes as usize);
        let known = self.index.get(fragment);
        if known.is_some_and(|known| known.place == place) {
            return;
        }
        if let Some(old) = self.index.insert(IndexEntry { fragment, place, quarantined: false }) {
            self.dead.supersede(fragment, old.place.segment);
        }
        self.dead.revive(fragment);
    }

    fn replay_tombstone(&mut self, fragments: &[FragmentId], segment: u32) {
        for &fragment in fragments {
            if let Some(old) = self.index.remove(fragment) {
                self.dead.supersede(fragment, old.place.segment);
            }
            self.dead.bury(fragment, segment);
        }
    }

    fn foreign(&mut self, position: Position, why: String) {
        tracing::warn!(?position, why, "record not understood: kept, its segment is pinned");
        self.report.foreign.push((position, why));
    }

    /// The segment is in this life: whatever is known of an earlier one was released with it.
    fn enter_life(&mut self, segment: u32, generation: Generation) {
        match self.lives.insert(segment, generation) {
            Some(known) if known != generation => self.purge(segment),
            _ => {}
        }
    }

    fn purge(&mut self, segment: u32) {
        let gone: Vec<FragmentId> = self.entries_in(segment).map(|entry| entry.fragment).collect();
        for fragment in gone {
            self.index.remove(fragment);
        }
        self.dead.release(segment);
        self.damaged_segments.remove(&segment);
    }

    fn entries_in(&self, segment: u32) -> impl Iterator<Item = IndexEntry> + '_ {
        self.index.iter_after(None).filter(move |entry| entry.place.segment == segment)
    }

    /// Drops what the checkpoint knew of segments that have been released since.
    fn drop_released(&mut self, journal: &Journal) {
        let lives = std::mem::take(&mut self.lives);
        for (segment, life) in lives {
            let lost = self
                .report
                .damage
                .iter()
                .any(|damage| matches!(damage, Damage::SegmentLost { segment: lost, .. } if lost.0 == segment));
            let released = match journal.segment(SegmentIndex(segment)) {
                Some(info) if info.state == SegmentState::Quarantined => false,
                Some(info) => {
                    info.generation != life || matches!(info.state, SegmentState::Free | SegmentState::Creating)
                }
                None => true,
            };
            if lost {
                self.quarantine_segment(segment);
            } else if released {
                self.purge(segment);
            }
        }
    }

    fn quarantine_segment(&mut self, segment: u32) {
        let entries: Vec<IndexEntry> = self.entries_in(segment).collect();
        for entry in entries {
            self.index.insert(IndexEntry { quarantined: true, ..entry });
        }
    }

    /// Marks the fragments whose records the journal found damaged.
    fn quarantine_damage(&mut self) {
        let mut damaged: HashMap<(u32, u16), ()> = HashMap::new();
        for damage in &self.report.damage {
            tracing::warn!(?damage, "damage found at start: kept, its segment is pinned");
            if let Damage::Body { position, .. } | Damage::Payload { position, .. } = damage {
                damaged.insert((position.segment.0, (position.offset as usize / BLOCK_BYTES) as u16), ());
            }
        }
        if damaged.is_empty() {
            return;
        }
        let hit = |entry: &IndexEntry| damaged.contains_key(&(entry.place.segment, entry.place.block));
        let entries: Vec<IndexEntry> = self.index.iter_after(None).filter(hit).collect();
        for entry in entries {
            self.index.insert(IndexEntry { quarantined: true, ..entry });
        }
    }

    /// Counts live bytes and pins from what has been found.
    fn space(&self) -> Space {
        let mut space = Space::default();
        for entry in self.index.iter_after(None) {
            space.add(entry.place.segment, entry.place.record_bytes());
            if entry.quarantined {
                space.pin(entry.place.segment);
            }
        }
        for place in &self.checkpoint_places {
            space.add_checkpoint(place.segment, place.record_bytes());
        }
        self.damaged_segments.iter().for_each(|segment| space.pin(*segment));
        space
    }

    /// Joins the segments with damage that this start has found to those known before. Returns how
    /// much damage that is: what was found, and one for each segment that was not looked at again.
    fn join_damage(&mut self, report: &RecoveryReport) -> u64 {
        let mut found: BTreeSet<u32> = report.foreign.iter().map(|(position, _)| position.segment.0).collect();
        found.extend(report.damage.iter().filter_map(|damage| match damage {
            Damage::SegmentHead { segment } | Damage::SegmentLost { segment, .. } => Some(segment.0),
            Damage::Stretch { from: position, .. }
            | Damage::Body { position, .. }
            | Damage::Payload { position, .. }
            | Damage::Unreadable { position, .. } => Some(position.segment.0),
            Damage::Missing { .. } | Damage::SuperblockBehind { .. } => None,
        }));
        let known = self.damaged_segments.difference(&found).count();
        self.damaged_segments.append(&mut found);
        (report.foreign.len() + report.damage.len() + known) as u64
    }

    fn into_engine<T: Ticket>(
        mut self,
        journal: Journal,
        options: EngineOptions,
        report: &RecoveryReport,
    ) -> Engine<T> {
        let damage_count = self.join_damage(report);
        let space = self.space();
        let superblock = journal.superblock();
        Engine {
            disk: superblock.identity.disk,
            incarnation: superblock.identity.incarnation,
            segment_bytes: u64::from(superblock.segment_bytes),
            options,
            index: self.index,
            dead: self.dead,
            space,
            damage_count,
            damaged_segments: self.damaged_segments,
            queues: Queues::default(),
            appended: VecDeque::new(),
            pending: HashMap::new(),
            deletes: super::delete::Deletes::default(),
            reads: HashMap::new(),
            read_token: 0,
            read_bytes: 0,
            reads_blocked: false,
            writes_blocked: false,
            compaction: None,
            compaction_stuck: false,
            reclaim_due: true,
            reclaimed: None,
            looks: 0,
            last_segment: u32::MAX,
            checkpointing: Checkpointing::loaded(self.checkpoint_number, self.checkpoint_places, report.replayed),
            fenced: journal.fenced().map(str::to_owned),
            phase: Phase::Serving,
            turn_again: None,
            expiry_at: None,
            stats: Arc::new(DiskStats::default()),
            journal,
        }
    }
}
