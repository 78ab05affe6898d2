//! How much of each segment lives, and which segment is worth compacting.
//!
//! Bytes count as live from the moment their record is queued for appending, so that nothing is
//! promised twice, until the index points elsewhere. What must not move or vanish pins its segment:
//! quarantined records, records of unknown kind, unreadable stretches, checkpoint parts, records
//! that are not durable yet.

use plinth_protocol::map::WRITE_STOP_PERCENT;
use std::collections::BTreeMap;

/// Below this share of live bytes, in percent, a sealed segment is compacted.
pub const COMPACT_LIVE_PERCENT: u64 = 75;
/// Below this share of used bytes, in percent, a segment was closed early and counts as compactable.
const CLOSED_EARLY_PERCENT: u64 = 50;
/// Under pressure a segment is compacted where at least one part in so many comes free.
const PRESSURE_GAIN_PART: u64 = 32;
/// Used bytes of every segment that are no record of ours: its head, its seal, a mount record.
const SEGMENT_OVERHEAD_BYTES: u64 = 3 * 4096;
/// Live bytes that a needed tombstone stands for.
pub const TOMBSTONE_BYTES: u64 = 24;

/// Share of the disk, in percent, at which puts of class Repair stop as well.
pub const REPAIR_STOP_PERCENT: u64 = 92;
/// Segments that puts never fill: the open ends of the three streams, and the reserve of compaction.
pub const SEGMENTS_APART: u64 = 5;

/// Returns how many live bytes a disk may hold before puts stop.
pub fn stop_bytes(size_bytes: u64, segment_bytes: u64, repair: bool) -> u64 {
    let (percent, packed) = if repair { (REPAIR_STOP_PERCENT, 97) } else { (WRITE_STOP_PERCENT, 95) };
    let packable = size_bytes.saturating_sub(SEGMENTS_APART * segment_bytes) / 100 * packed;
    (size_bytes / 100 * percent).min(packable)
}

/// What is known of a segment beside the journal's own words.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct SegmentUse {
    live_bytes: u64,
    /// Records queued for appending whose durability has not been told.
    undurable: u32,
    /// Quarantined fragments and damage found by recovery.
    quarantined: u32,
    /// Live records of checkpoints.
    checkpoints: u32,
}

/// Live bytes by segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Space {
    segments: BTreeMap<u32, SegmentUse>,
    live_bytes: u64,
}

/// A sealed segment as a candidate for compaction.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The segment's number.
    pub segment: u32,
    /// Bytes appended to it.
    pub used_bytes: u64,
    /// Needed tombstones in it.
    pub tombstones: u64,
}

impl Space {
    /// Returns the bytes of all live records.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Returns the bytes of the live records in a segment.
    pub fn live_in(&self, segment: u32) -> u64 {
        self.segments.get(&segment).map_or(0, |used| used.live_bytes)
    }

    /// Returns how much of the quarantine lies in no fragment's entry: damage that pins segments.
    pub fn is_pinned(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_some_and(|used| used.quarantined + used.checkpoints + used.undurable > 0)
    }

    fn segment(&mut self, segment: u32) -> &mut SegmentUse {
        self.segments.entry(segment).or_default()
    }

    /// Counts a record as live.
    pub fn add(&mut self, segment: u32, bytes: u64) {
        self.segment(segment).live_bytes += bytes;
        self.live_bytes += bytes;
    }

    /// Counts a record as dead.
    pub fn remove(&mut self, segment: u32, bytes: u64) {
        let used = self.segment(segment);
        used.live_bytes = used.live_bytes.checked_sub(bytes).expect("what dies has been counted as live");
        self.live_bytes -= bytes;
    }

    /// Notes a record that was queued for appending.
    pub fn begin(&mut self, segment: u32) {
        self.segment(segment).undurable += 1;
    }

    /// Notes that a queued record is durable, or never will be.
    pub fn end(&mut self, segment: u32) {
        let used = self.segment(segment);
        used.undurable = used.undurable.checked_sub(1).expect("every end has its begin");
    }

    /// Pins a segment because of damage or quarantine.
    pub fn pin(&mut self, segment: u32) {
        self.segment(segment).quarantined += 1;
    }

    /// Takes back one pin.
    pub fn unpin(&mut self, segment: u32) {
        let used = self.segment(segment);
        used.quarantined = used.quarantined.checked_sub(1).expect("every unpin has its pin");
    }

    /// Counts a record of a checkpoint: live, and never moved.
    pub fn add_checkpoint(&mut self, segment: u32, bytes: u64) {
        self.add(segment, bytes);
        self.segment(segment).checkpoints += 1;
    }

    /// Counts a record of a superseded checkpoint as dead.
    pub fn remove_checkpoint(&mut self, segment: u32, bytes: u64) {
        self.remove(segment, bytes);
        self.segment(segment).checkpoints -= 1;
    }

    /// Returns whether nothing in the segment is needed. `tombstones` counts the needed ones in it.
    pub fn is_releasable(&self, segment: u32, tombstones: u64) -> bool {
        tombstones == 0 && !self.is_pinned(segment) && self.live_in(segment) == 0
    }

    /// Forgets a released segment.
    pub fn forget(&mut self, segment: u32) {
        if let Some(used) = self.segments.remove(&segment) {
            assert_eq!(used.live_bytes, 0, "a released segment holds nothing live");
        }
    }

    /// Returns the candidate with the smallest share of live bytes, where any is worth the work.
    pub fn victim(
        &self,
        candidates: impl Iterator<Item = Candidate>,
        segment_bytes: u64,
        pressure: bool,
    ) -> Option<u32> {
        let free = candidates.filter(|candidate| !self.is_pinned(candidate.segment));
        let weighed = free.map(|candidate| {
            let live = self.live_in(candidate.segment) + candidate.tombstones * TOMBSTONE_BYTES;
            (live, candidate)
        });
        // What holds nothing live is released as it is.
        let worthy = weighed.filter(|&(live, candidate)| {
            let closed_early = candidate.used_bytes * 100 < segment_bytes * CLOSED_EARLY_PERCENT;
            let records = candidate.used_bytes.saturating_sub(SEGMENT_OVERHEAD_BYTES);
            let mostly_dead = live * 100 < records * COMPACT_LIVE_PERCENT;
            // Only what is dead comes free: moving a segment without dead records would go on for ever.
            let gains = records >= live + segment_bytes / PRESSURE_GAIN_PART;
            live > 0 && (mostly_dead || closed_early || pressure && gains)
        });
        worthy.min_by_key(|&(live, candidate)| (live, candidate.segment)).map(|(_, candidate)| candidate.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(used: &[(u32, u64)]) -> Vec<Candidate> {
        used.iter().map(|&(segment, used_bytes)| Candidate { segment, used_bytes, tombstones: 0 }).collect()
    }

    #[test]
    fn least_live_segment_is_chosen_and_pinned_ones_never() {
        let mut space = Space::default();
        for (segment, live) in [(1, 700), (2, 300), (3, 100), (4, 950)] {
            space.add(segment, live << 10);
        }
        space.pin(3);
        let used = 1012 << 10;
        let all = candidates(&[(1, used), (2, used), (3, used), (4, used)]);
        assert_eq!(space.victim(all.iter().copied(), 1 << 20, false), Some(2));
        space.remove(2, 300 << 10);
        assert!(space.is_releasable(2, 0) && !space.is_releasable(2, 1) && !space.is_releasable(3, 0));
        let full = candidates(&[(4, used)]);
        assert_eq!(space.victim(full.iter().copied(), 1 << 20, false), None);
        assert_eq!(space.victim(full.iter().copied(), 1 << 20, true), Some(4));
        space.add(4, 40 << 10);
        assert_eq!(space.victim(full.iter().copied(), 1 << 20, true), None, "all records in it live");
        assert_eq!(space.live_bytes(), 1790 << 10);
    }

    #[test]
    fn records_under_way_pin_their_segment() {
        let mut space = Space::default();
        space.begin(7);
        assert!(!space.is_releasable(7, 0));
        space.end(7);
        assert!(space.is_releasable(7, 0));
        space.add_checkpoint(7, 50);
        assert!(space.is_pinned(7));
        space.remove_checkpoint(7, 50);
        assert!(space.is_releasable(7, 0));
    }

    #[test]
    fn stop_leaves_room_for_compaction_on_small_disks() {
        assert_eq!(stop_bytes(10_000, 1, false), 8_500);
        assert_eq!(stop_bytes(10_000, 1, true), 9_200);
        assert_eq!(stop_bytes(1_000, 100, false), 475);
        assert_eq!(stop_bytes(400, 100, false), 0);
    }
}
