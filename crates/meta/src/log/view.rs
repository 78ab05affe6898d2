//! What the log of one group looks like now: entries by number, vote, what is committed and purged.
//!
//! The view changes the moment an operation is called; durability follows. Payloads of recent
//! entries stay in RAM, within a byte budget; of older ones only the place in the journal is kept.

use super::LogId;
use super::engine::Place;
use super::record::{EntryKind, LogEntry, VoteWords};
use crate::batch::batch_time;
use bytes::Bytes;
use plinth_protocol::HybridTime;
use std::collections::VecDeque;
use std::ops::Range;

/// What an entry weighs beside its payload, where entries are kept by bytes.
const ENTRY_WEIGHT_BYTES: u64 = 256;

/// One entry as the view keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) id: LogId,
    pub(crate) kind: EntryKind,
    pub(crate) length: u32,
    /// Where the journal has the payload; unknown until the record has been appended there.
    pub(crate) place: Option<Place>,
    /// The payload, while it is cached.
    pub(crate) payload: Option<Bytes>,
}

impl Slot {
    /// Returns the entry, where its payload is in RAM.
    pub(crate) fn cached(&self) -> Option<LogEntry> {
        let payload = if self.length == 0 { Bytes::new() } else { self.payload.clone()? };
        Some(LogEntry { id: self.id, kind: self.kind, payload })
    }
}

/// Why an append can't be: it would leave a hole.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {found} can't follow: the next one is {expected}")]
pub(crate) struct Hole {
    pub(crate) expected: u64,
    pub(crate) found: LogId,
}

/// The log of one group.
#[derive(Debug, Default)]
pub(crate) struct GroupView {
    pub(crate) vote: Option<VoteWords>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The latest time stamp of any entry that was ever appended here.
    pub(crate) time: HybridTime0,
    slots: VecDeque<Slot>,
    /// Payload bytes in RAM.
    cached_bytes: usize,
    /// Number of slots at the front whose payload is no longer in RAM.
    evicted: usize,
    /// Entries below this number are durable.
    durable_end: u64,
}

/// [`HybridTime`] that starts at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HybridTime0(pub(crate) HybridTime);

impl Default for HybridTime0 {
    fn default() -> Self {
        HybridTime0(HybridTime(0))
    }
}

impl GroupView {
    /// Returns the last entry, or the last purged one where none is left.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    /// Returns the number of the first entry that is still there, or of the next to come.
    pub(crate) fn first_index(&self) -> u64 {
        self.slots.front().map_or(self.next_index(), |slot| slot.id.index)
    }

    /// Returns the number that the next entry must have.
    pub(crate) fn next_index(&self) -> u64 {
        self.last().map_or(0, |id| id.index + 1)
    }

    /// Returns how many entries are there, and the bytes of their payloads.
    pub(crate) fn size(&self) -> (usize, u64) {
        (self.slots.len(), self.slots.iter().map(|slot| u64::from(slot.length)).sum())
    }

    /// Returns the slots of a range of numbers, as far as they exist.
    pub(crate) fn slots(&self, range: Range<u64>) -> impl Iterator<Item = &Slot> {
        let first = self.first_index();
        let start = range.start.max(first).min(first + self.slots.len() as u64) - first;
        let end = (range.end.max(first) - first).clamp(start, self.slots.len() as u64);
        self.slots.range(start as usize..end as usize)
    }

    /// Returns the id of the entry with this number.
    pub(crate) fn id_at(&self, index: u64) -> Option<LogId> {
        self.slots(index..index.checked_add(1)?).next().map(|slot| slot.id)
    }

    /// Returns the slot with this number.
    pub(crate) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let first = self.first_index();
        self.slots.get_mut(index.checked_sub(first)? as usize)
    }

    /// Appends an entry behind the last one. A log that never held anything may start anywhere.
    pub(crate) fn append(&mut self, entry: &LogEntry, place: Option<Place>) -> Result<(), Hole> {
        let starts = self.slots.is_empty() && self.purged.is_none();
        if entry.id.index != self.next_index() && !starts {
            return Err(Hole { expected: self.next_index(), found: entry.id });
        }
        if entry.kind == EntryKind::Batch
            && let Ok(time) = batch_time(&entry.payload)
        {
            self.time = self.time.max(HybridTime0(time));
        }
        self.cached_bytes += entry.payload.len();
        self.slots.push_back(Slot {
            id: entry.id,
            kind: entry.kind,
            length: entry.payload.len() as u32,
            place,
            payload: Some(entry.payload.clone()),
        });
        Ok(())
    }

    /// Takes over the entries that recovery has found: durable, in order, not in RAM.
    pub(crate) fn restore(&mut self, slots: impl Iterator<Item = Slot>) {
        self.slots = slots.collect();
        self.evicted = self.slots.len();
        self.durable_end = self.next_index();
    }

    /// Drops the entries behind `last`; all of them where it is `None`.
    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        let keep_end = last.map_or(0, |id| id.index + 1);
        while self.slots.back().is_some_and(|slot| slot.id.index >= keep_end) {
            let slot = self.slots.pop_back().expect("the loop's condition saw it");
            self.cached_bytes -= slot.payload.map_or(0, |payload| payload.len());
        }
        self.evicted = self.evicted.min(self.slots.len());
        self.durable_end = self.durable_end.min(keep_end);
    }

    /// Drops the entries up to and with `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged >= upto) {
            return;
        }
        while self.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            let slot = self.slots.pop_front().expect("the loop's condition saw it");
            self.cached_bytes -= slot.payload.map_or(0, |payload| payload.len());
            self.evicted = self.evicted.saturating_sub(1);
        }
        self.purged = Some(upto);
    }

    /// Notes that entries below `end` are durable.
    pub(crate) fn set_durable(&mut self, end: u64) {
        self.durable_end = self.durable_end.max(end);
    }

    /// Drops payloads from RAM, oldest first, until at most `budget` bytes are left; entries that the
    /// journal can't be asked for yet stay.
    pub(crate) fn evict(&mut self, budget: usize) {
        while self.cached_bytes > budget {
            let Some(slot) = self.slots.get_mut(self.evicted) else { return };
            if slot.place.is_none() || slot.id.index >= self.durable_end {
                return;
            }
            self.cached_bytes -= slot.payload.take().map_or(0, |payload| payload.len());
            self.evicted += 1;
        }
    }

    /// Returns what the entries from a number on weigh.
    pub(crate) fn bytes_from(&self, first: u64) -> u64 {
        self.slots(first..u64::MAX).map(|slot| u64::from(slot.length) + ENTRY_WEIGHT_BYTES).sum()
    }

    /// Returns the last entry that may go: at most `flushed`, and so that `keep_bytes` of payload stay behind it.
    pub(crate) fn purge_candidate(&self, flushed: u64, keep_bytes: u64) -> Option<u64> {
        let mut kept = 0u64;
        for slot in self.slots.iter().rev() {
            // An entry without payload counts too: a quiet group must not keep entries for ever.
            kept += u64::from(slot.length) + ENTRY_WEIGHT_BYTES;
            if kept > keep_bytes && slot.id.index <= flushed {
                return Some(slot.id.index);
            }
        }
        None
    }

    /// Returns the last entry of each leader among the entries from `first` to `last`, and `last`.
    pub(crate) fn leader_ends(&self, range: Range<u64>) -> Vec<LogId> {
        let mut ends: Vec<LogId> = Vec::new();
        for slot in self.slots(range) {
            match ends.last_mut() {
                Some(end) if (end.term, end.leader) == (slot.id.term, slot.id.leader) => *end = slot.id,
                _ => ends.push(slot.id),
            }
        }
        ends
    }
}
