//! Reading the log back: records in, views out.
//!
//! Entries come in the journal's order, which is not the order of their numbers where old ones were
//! carried; so they are gathered by number and joined once all has been read. A hole then, or an
//! entry where another stands, is damage: the log never writes such a thing.

use super::LogId;
use super::engine::{Groups, Place, lock};
use super::record::{
    EntryKind, LogEntry, PurgeRecord, RecordKind, StateRecord, TruncateRecord, VoteRecord, VoteWords, decode_entries,
};
use super::view::{HybridTime0, Slot};
use crate::batch::batch_time;
use plinth_journal::Recovered;
use plinth_protocol::GroupId;
use plinth_protocol::wire::{Wire, WireError};
use std::collections::BTreeMap;

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Replay {
    groups: BTreeMap<GroupId, Gathered>,
}

#[derive(Default)]
struct Gathered {
    vote: Option<VoteWords>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    time: HybridTime0,
    slots: BTreeMap<u64, Slot>,
}

impl Replay {
    /// Takes the next record. An error says what can't be.
    pub(crate) fn take(&mut self, record: &Recovered) -> Result<(), String> {
        self.read(record).map_err(|why| format!("record {}: {why}", record.sequence))
    }

    fn read(&mut self, record: &Recovered) -> Result<(), String> {
        let text = |error: WireError| error.to_string();
        match RecordKind::try_from(record.kind).map_err(text)? {
            RecordKind::Entries | RecordKind::Carry => {
                let entries = decode_entries(&record.body).map_err(text)?;
                let group = self.groups.entry(entries.group).or_default();
                group.committed = group.committed.max(entries.committed);
                for (entry, offset) in &entries.entries {
                    group.place(entry, place_of(record, *offset))?;
                }
            }
            RecordKind::Vote => {
                let vote = VoteRecord::decode(&record.body).map_err(text)?;
                self.groups.entry(vote.group).or_default().vote = Some(vote.vote);
            }
            RecordKind::Truncate => {
                let truncate = TruncateRecord::decode(&record.body).map_err(text)?;
                let end = truncate.last.map_or(0, |last| last.index + 1);
                drop(self.groups.entry(truncate.group).or_default().slots.split_off(&end));
            }
            RecordKind::Purge => {
                let purge = PurgeRecord::decode(&record.body).map_err(text)?;
                self.groups.entry(purge.group).or_default().purge(purge.upto);
            }
            RecordKind::State => {
                let state = StateRecord::decode(&record.body).map_err(text)?;
                let group = self.groups.entry(state.group).or_default();
                group.vote = state.vote;
                group.committed = group.committed.max(state.committed);
                if let Some(purged) = state.purged {
                    group.purge(purged);
                }
            }
        }
        Ok(())
    }

    /// Joins what was gathered into views.
    pub(crate) fn finish(self, groups: &Groups) -> Result<(), String> {
        for (group, gathered) in self.groups {
            let first = gathered.purged.map_or(0, |purged| purged.index + 1);
            for (expected, index) in (first..).zip(gathered.slots.keys()) {
                if *index != expected {
                    return Err(format!("{group} lacks the entries from {expected} to {index}"));
                }
            }
            let view = groups.get(group);
            let mut view = lock(&view);
            (view.vote, view.purged, view.time) = (gathered.vote, gathered.purged, gathered.time);
            view.restore(gathered.slots.into_values());
            view.committed = gathered.committed.min(view.last());
        }
        Ok(())
    }
}

impl Gathered {
    fn place(&mut self, entry: &LogEntry, place: Place) -> Result<(), String> {
        if entry.kind == EntryKind::Batch
            && let Ok(time) = batch_time(&entry.payload)
        {
            self.time = self.time.max(HybridTime0(time));
        }
        let length = entry.payload.len() as u32;
        // Payloads stay on the disk until somebody asks: the log may be larger than RAM.
        let slot = Slot { id: entry.id, kind: entry.kind, length, place: Some(place), payload: None };
        match self.slots.insert(entry.id.index, slot) {
            Some(old) if old.id != entry.id => Err(format!("{} comes where {} stands", entry.id, old.id)),
            _ => Ok(()),
        }
    }

    fn purge(&mut self, upto: LogId) {
        if self.purged.is_none_or(|purged| purged < upto) {
            self.slots = self.slots.split_off(&(upto.index + 1));
            self.purged = Some(upto);
        }
    }
}

fn place_of(record: &Recovered, offset: u32) -> Place {
    let (position, generation, sequence) = (record.position, record.generation, record.sequence);
    let record_bytes = record.payload_offset + record.payload_bytes;
    Place { position, generation, sequence, record_bytes, offset }
}
