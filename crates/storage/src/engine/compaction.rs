//! Space reclaim: dead segments are released, mostly dead ones emptied first.
//!
//! One segment at a time. Its live records are found by walking over the index in steps, read,
//! verified, and appended again in the relocation stream; needed tombstones are written anew. The
//! source is released only when nothing in it is needed any more: every copy is durable by then.

use super::read::{READ_TRIES_MAX, body_of, check_frames, header_of};
use super::{Effect, Engine, Ticket, place_of};
use crate::index::{IndexEntry, Place};
#[cfg(test)]
use crate::planted::{Bug, planted};
use crate::space::Candidate;
use crate::stats::add;
use crate::tombstone::{KIND_FRAGMENT, TOMBSTONE_FRAGMENTS_MAX, TombstoneBody};
use bytes::Bytes;
use plinth_journal::{Append, DiskError, Refused, SegmentIndex, SegmentState, Stream};
use plinth_protocol::FragmentId;
use std::time::Instant;

/// Index entries that one turn of a compaction looks at.
const SCAN_ENTRIES_PER_TURN: usize = 16_384;
/// Bytes that compaction has under way, reads and appends together, while there is room enough.
const MOVE_BYTES_MAX: u64 = 4 << 20;
/// The same while free segments are short.
const MOVE_BYTES_PRESSED_MAX: u64 = 16 << 20;
/// While free segments are short, segments are looked through so many times as often.
const PRESSED_INTERVAL_PART: u32 = 40;
/// Puts see pressure when no more than so many segments are left for them.
const PRESSURE_SEGMENTS: u64 = 2;

/// The compaction of one segment.
pub(super) struct Compaction {
    source: u32,
    /// The last entry of the index that has been looked at.
    cursor: Option<FragmentId>,
    scanned: bool,
    /// Entries found and not yet begun.
    found: Vec<IndexEntry>,
    /// Bytes of records being read or appended.
    moving_bytes: u64,
    /// Tombstones to be written anew; absent until the scan has ended.
    tombstones: Option<Vec<FragmentId>>,
    /// Tombstone records appended anew and not durable yet.
    tombstone_records: u32,
}

impl Compaction {
    fn new(source: u32) -> Self {
        Compaction {
            source,
            cursor: None,
            scanned: false,
            found: Vec::new(),
            moving_bytes: 0,
            tombstones: None,
            tombstone_records: 0,
        }
    }
}

impl<T: Ticket> Engine<T> {
    /// Returns whether few segments are left for puts.
    fn is_pressed(&self) -> bool {
        self.journal.free_bytes() <= PRESSURE_SEGMENTS * self.segment_bytes
    }

    /// Returns whether reclaim is under way or could free anything.
    pub(super) fn may_gain_room(&self) -> bool {
        self.reclaim_due
            || self.compaction.is_some()
            || self.journal.segments().any(|info| info.state == SegmentState::Releasing)
            || self.choose_victim().is_some()
    }

    fn sealed(&self) -> impl Iterator<Item = Candidate> + '_ {
        let sealed = self.journal.segments().filter(|info| matches!(info.state, SegmentState::Sealed(_)));
        sealed.map(|info| Candidate {
            segment: info.segment.0,
            used_bytes: u64::from(info.used_bytes),
            tombstones: u64::from(self.dead.tombstones_in(info.segment.0)),
        })
    }

    fn choose_victim(&self) -> Option<u32> {
        if self.compaction_stuck {
            return None;
        }
        self.space.victim(self.sealed(), self.segment_bytes, self.is_pressed())
    }

    /// When the segments may be looked through again; at once where they never were. A look walks over all of them: it
    /// must not be part of every turn, however often something dies.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let parts = if self.is_pressed() { PRESSED_INTERVAL_PART } else { 1 };
        self.reclaimed.map(|at| at + self.options.reclaim_interval / parts)
    }

    /// Releases what is dead, chooses a segment to compact, and goes on with the one chosen.
    pub(super) fn reclaim(&mut self, now: Instant) {
        if self.reclaim_due && self.next_look().is_none_or(|at| now >= at) {
            self.reclaim_due = false;
            self.reclaimed = Some(now);
            self.looks += 1;
            self.release_dead();
            if self.compaction.is_none() && self.phase == super::Phase::Serving {
                self.compaction = self.choose_victim().map(Compaction::new);
            }
        }
        self.step_compaction(now);
        if self.writes_blocked && !self.may_gain_room() {
            // Nothing comes free: the puts that wait for room are told so in the next turn.
            self.turn_again = Some(now);
        }
    }

    fn release_dead(&mut self) {
        let releasable = |candidate: &Candidate| self.space.is_releasable(candidate.segment, candidate.tombstones);
        let dead: Vec<u32> = self.sealed().filter(releasable).map(|candidate| candidate.segment).collect();
        for segment in dead {
            // The newest segment of a stream stays until it has a successor: asked again then.
            if self.journal.release(SegmentIndex(segment)) == Err(Refused::Busy) {
                self.reclaim_due = true;
            }
        }
    }

    fn step_compaction(&mut self, now: Instant) {
        let Some(mut compaction) = self.compaction.take() else { return };
        self.scan_index(&mut compaction);
        let bound = if self.is_pressed() { MOVE_BYTES_PRESSED_MAX } else { MOVE_BYTES_MAX };
        while compaction.moving_bytes < bound {
            let Some(entry) = compaction.found.pop() else { break };
            // A fragment that is being deleted is left behind: a copy would outlive its tombstone.
            let current = self.index.get(entry.fragment).is_some_and(|now| now == entry);
            if !current || self.pending.contains_key(&entry.fragment) {
                continue;
            }
            if self.begin_move(entry, 1).is_err() {
                compaction.found.push(entry);
                break;
            }
            compaction.moving_bytes += entry.place.record_bytes();
        }
        let moved = compaction.scanned && compaction.found.is_empty() && compaction.moving_bytes == 0;
        if moved && self.move_tombstones(now, &mut compaction) && compaction.tombstone_records == 0 {
            // Whatever could not be moved pins the segment or is being deleted; the next look decides.
            self.reclaim_due = true;
            return;
        }
        if !compaction.scanned && compaction.found.is_empty() {
            self.turn_again = Some(now);
        }
        self.compaction = Some(compaction);
    }

    fn scan_index(&self, compaction: &mut Compaction) {
        if compaction.scanned || !compaction.found.is_empty() {
            return;
        }
        let mut looked_at = 0;
        for entry in self.index.iter_after(compaction.cursor).take(SCAN_ENTRIES_PER_TURN) {
            compaction.cursor = Some(entry.fragment);
            looked_at += 1;
            if entry.place.segment == compaction.source && !entry.quarantined {
                compaction.found.push(entry);
            }
        }
        compaction.scanned = looked_at < SCAN_ENTRIES_PER_TURN;
    }

    /// A record to be moved has been read.
    pub(super) fn finish_move_read(
        &mut self,
        now: Instant,
        entry: IndexEntry,
        tries: u8,
        result: Result<Bytes, DiskError>,
    ) {
        let bytes = entry.place.record_bytes();
        if !self.append_move(now, entry, tries, result)
            && let Some(compaction) = &mut self.compaction
        {
            compaction.moving_bytes = compaction.moving_bytes.saturating_sub(bytes);
        }
    }

    /// Appends a record anew; tells whether it is on its way.
    fn append_move(&mut self, now: Instant, entry: IndexEntry, tries: u8, result: Result<Bytes, DiskError>) -> bool {
        let IndexEntry { fragment, place, .. } = entry;
        let current = self.index.get(fragment).is_some_and(|now| now == entry);
        if !current || self.pending.contains_key(&fragment) || self.compaction.is_none() {
            return false;
        }
        let Some(record) = self.check_move(entry, tries, result) else { return false };
        let Some(record) = record else { return true };
        let payload = record.slice(place.head_bytes()..);
        let body = body_of(&record, place).expect("the body was checked above");
        let append =
            Append { stream: Stream::Relocation, kind: KIND_FRAGMENT, body, payload: payload.clone(), reserve: true };
        match self.journal.append(append) {
            Ok(placed) => {
                let to = place_of(placed.position, body.len(), payload.len());
                self.space.add(to.segment, to.record_bytes());
                self.note_append(now, placed, Effect::Moved { fragment, from: place, to });
                true
            }
            Err(refused) => {
                match (refused, &mut self.compaction) {
                    (Refused::Busy, Some(compaction)) => compaction.found.push(entry),
                    // Even the reserve is used up: no sense in reading more until something comes free.
                    (Refused::Full, _) => self.compaction_stuck = true,
                    _ => {}
                }
                false
            }
        }
    }

    /// Verifies a record that was read to be moved. `Some(None)`: it is being read once more.
    fn check_move(&mut self, entry: IndexEntry, tries: u8, result: Result<Bytes, DiskError>) -> Option<Option<Bytes>> {
        let (fragment, place) = (entry.fragment, entry.place);
        if let Ok(record) = &result
            && header_of(record, place, fragment).is_some()
            && check_frames(&record[place.head_bytes()..], fragment, 0).is_ok()
        {
            return Some(Some(record.clone()));
        }
        if tries < READ_TRIES_MAX && self.begin_move(entry, tries + 1).is_ok() {
            return Some(None);
        }
        // It stays where it is, its segment with it.
        self.damaged(fragment, place, if result.is_ok() { "damaged, seen by a move" } else { "unreadable" });
        None
    }

    /// A moved record is durable: the index points at the copy.
    pub(super) fn apply_moved(&mut self, fragment: FragmentId, from: Place, to: Place) {
        self.space.end(to.segment);
        add(&self.stats.moved_bytes, to.record_bytes());
        if let Some(compaction) = &mut self.compaction {
            compaction.moving_bytes = compaction.moving_bytes.saturating_sub(from.record_bytes());
        }
        let old = self.index.get(fragment).filter(|entry| entry.place == from);
        let old = old.expect("a fragment under a move is neither deleted nor replaced");
        self.index.insert(IndexEntry { fragment, place: to, quarantined: false });
        self.bury_record(&old);
    }

    /// Writes the needed tombstones of the source anew; tells whether all are on their way.
    fn move_tombstones(&mut self, now: Instant, compaction: &mut Compaction) -> bool {
        #[cfg(test)]
        if planted(Bug::DropTombstoneEarly) {
            self.dead.drop_tombstones(compaction.source);
            return true;
        }
        let source = compaction.source;
        let tombstones = compaction.tombstones.get_or_insert_with(|| self.dead.buried_in(source));
        while !tombstones.is_empty() {
            let start = tombstones.len().saturating_sub(TOMBSTONE_FRAGMENTS_MAX);
            let needed = |fragment: &FragmentId| self.dead.is_tombstoned(*fragment);
            let fragments: Vec<FragmentId> = tombstones[start..].iter().copied().filter(needed).collect();
            if !fragments.is_empty() {
                if self.append_tombstone(now, Stream::Relocation, &TombstoneBody { fragments }).is_err() {
                    return false;
                }
                compaction.tombstone_records += 1;
            }
            tombstones.truncate(start);
        }
        true
    }

    /// A tombstone written anew is durable: it holds down what the old one did.
    pub(super) fn apply_tombstone_moved(&mut self, fragments: &[FragmentId], segment: u32) {
        self.space.end(segment);
        if let Some(compaction) = &mut self.compaction {
            compaction.tombstone_records = compaction.tombstone_records.saturating_sub(1);
        }
        add(&self.stats.moved_tombstones, fragments.len() as u64);
        for &fragment in fragments {
            if self.dead.is_tombstoned(fragment) {
                self.dead.bury(fragment, segment);
            }
        }
        self.reclaim_due = true;
    }
}
