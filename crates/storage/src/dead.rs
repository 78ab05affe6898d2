//! Dead records: what still lies on the disk of fragments that were deleted, moved or replaced.
//!
//! A record that the index no longer points at goes on existing until its segment is released.
//! Start-up would find it again, so whatever made it dead must be found as well: a newer record of
//! the same fragment, or a tombstone. This table says for each (fragment, segment) with a dead
//! record whether a tombstone holds it down and in which segment that tombstone lies. When the last
//! segment with a dead record of a fragment has been released, its tombstone is needless.

use plinth_protocol::{FragmentId, StripeId};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    stripe: [u64; 2],
    index: u8,
    segment: u32,
}

impl Key {
    fn new(fragment: FragmentId, segment: u32) -> Self {
        let stripe = [(fragment.stripe.0 >> 64) as u64, fragment.stripe.0 as u64];
        Key { stripe, index: fragment.index, segment }
    }

    fn fragment(self) -> FragmentId {
        let [high, low] = self.stripe.map(u128::from);
        FragmentId { stripe: StripeId(high << 64 | low), index: self.index }
    }
}

/// A dead record: its fragment, its segment, and the segment of the tombstone where one is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadRecord {
    /// The fragment.
    pub fragment: FragmentId,
    /// The segment in which the dead record lies.
    pub segment: u32,
    /// The segment of the tombstone; none where a newer record of the fragment lives.
    pub tombstone: Option<u32>,
}

/// The dead records of one disk.
#[derive(Default)]
pub struct DeadRecords {
    records: BTreeMap<Key, Option<u32>>,
    /// Entries by segment of their tombstone.
    tombstones: BTreeMap<u32, u32>,
}

impl DeadRecords {
    /// Returns how many (fragment, segment) pairs have dead records.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Returns how many entries need a tombstone that lies in this segment.
    pub fn tombstones_in(&self, segment: u32) -> u32 {
        self.tombstones.get(&segment).copied().unwrap_or(0)
    }

    /// Returns whether a needed tombstone holds the fragment down.
    pub fn is_tombstoned(&self, fragment: FragmentId) -> bool {
        self.of(fragment).any(|(_, tombstone)| tombstone.is_some())
    }

    fn of(&self, fragment: FragmentId) -> impl Iterator<Item = (Key, Option<u32>)> + '_ {
        let range = Key::new(fragment, 0)..=Key::new(fragment, u32::MAX);
        self.records.range(range).map(|(&key, &tombstone)| (key, tombstone))
    }

    /// Notes a record that a newer one of the same fragment has superseded.
    pub fn supersede(&mut self, fragment: FragmentId, segment: u32) {
        self.records.entry(Key::new(fragment, segment)).or_insert(None);
    }

    /// Notes that a newer record of the fragment lives: no tombstone is needed for the older ones.
    pub fn revive(&mut self, fragment: FragmentId) {
        self.point(fragment, None);
    }

    /// Notes a durable tombstone of the fragment in segment `tombstone`, newer than all its records.
    pub fn bury(&mut self, fragment: FragmentId, tombstone: u32) {
        self.point(fragment, Some(tombstone));
    }

    fn point(&mut self, fragment: FragmentId, tombstone: Option<u32>) {
        let range = Key::new(fragment, 0)..=Key::new(fragment, u32::MAX);
        for (_, place) in self.records.range_mut(range) {
            forget(&mut self.tombstones, std::mem::replace(place, tombstone));
            if let Some(segment) = tombstone {
                *self.tombstones.entry(segment).or_insert(0) += 1;
            }
        }
    }

    /// Forgets the dead records of a segment, which has been released durably. Tombstones that no
    /// other dead record needs are needless from now on.
    pub fn release(&mut self, segment: u32) {
        let tombstones = &mut self.tombstones;
        self.records.retain(|key, tombstone| {
            if key.segment == segment {
                forget(tombstones, *tombstone);
            }
            key.segment != segment
        });
    }

    /// Returns the fragments whose needed tombstones lie in this segment, each once, in id order.
    pub fn buried_in(&self, segment: u32) -> Vec<FragmentId> {
        let needed = self.records.iter().filter(|(_, tombstone)| **tombstone == Some(segment));
        let mut fragments: Vec<FragmentId> = needed.map(|(key, _)| key.fragment()).collect();
        fragments.dedup();
        fragments
    }

    /// Forgets that the tombstones in a segment are needed: a planted bug.
    #[cfg(test)]
    pub fn drop_tombstones(&mut self, segment: u32) {
        self.records.values_mut().filter(|place| **place == Some(segment)).for_each(|place| *place = None);
        self.tombstones.remove(&segment);
    }

    /// Walks over all entries in (fragment, segment) order.
    pub fn iter(&self) -> impl Iterator<Item = DeadRecord> + '_ {
        self.records.iter().map(|(key, &tombstone)| DeadRecord {
            fragment: key.fragment(),
            segment: key.segment,
            tombstone,
        })
    }

    /// Puts an entry of a checkpoint back.
    pub fn restore(&mut self, record: DeadRecord) {
        let old = self.records.insert(Key::new(record.fragment, record.segment), record.tombstone);
        forget(&mut self.tombstones, old.flatten());
        if let Some(segment) = record.tombstone {
            *self.tombstones.entry(segment).or_insert(0) += 1;
        }
    }
}

fn forget(tombstones: &mut BTreeMap<u32, u32>, segment: Option<u32>) {
    let Some(segment) = segment else { return };
    let count = tombstones.get_mut(&segment).expect("every entry with a tombstone is counted");
    *count -= 1;
    if *count == 0 {
        tombstones.remove(&segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(number: u128) -> FragmentId {
        FragmentId { stripe: StripeId(number << 60), index: 2 }
    }

    #[test]
    fn tombstone_outlives_every_older_record() {
        let mut dead = DeadRecords::default();
        dead.supersede(fragment(1), 3);
        dead.supersede(fragment(1), 5);
        dead.supersede(fragment(2), 5);
        assert!(!dead.is_tombstoned(fragment(1)));
        dead.bury(fragment(1), 9);
        assert_eq!((dead.is_tombstoned(fragment(1)), dead.tombstones_in(9)), (true, 2));
        dead.release(3);
        assert!(dead.is_tombstoned(fragment(1)), "segment 5 still holds a record");
        assert_eq!(dead.buried_in(9), [fragment(1)]);
        dead.release(5);
        assert!(!dead.is_tombstoned(fragment(1)));
        assert_eq!((dead.count(), dead.tombstones_in(9)), (0, 0));
    }

    #[test]
    fn moved_tombstone_is_counted_where_it_lies() {
        let mut dead = DeadRecords::default();
        dead.supersede(fragment(1), 3);
        dead.bury(fragment(1), 9);
        dead.bury(fragment(1), 12);
        assert_eq!((dead.tombstones_in(9), dead.tombstones_in(12)), (0, 1));
        dead.revive(fragment(1));
        assert_eq!((dead.tombstones_in(12), dead.is_tombstoned(fragment(1)), dead.count()), (0, false, 1));
    }

    #[test]
    fn entries_survive_a_round_trip() {
        let mut dead = DeadRecords::default();
        dead.supersede(fragment(1), 3);
        dead.supersede(fragment(4), 3);
        dead.bury(fragment(4), 8);
        let mut copy = DeadRecords::default();
        dead.iter().for_each(|record| copy.restore(record));
        assert!(copy.iter().eq(dead.iter()));
        assert_eq!(copy.tombstones_in(8), 1);
    }
}
