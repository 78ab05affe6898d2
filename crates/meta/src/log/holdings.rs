//! What the journal holds of each group, as of the last record given to it.
//!
//! Callers change a group's view before its record is written, so the view runs ahead of the
//! journal. What may be released, and what must be written once more before that, is decided from
//! here alone: changed only when a record enters the journal, in the journal's order.

use super::LogId;
use super::engine::Place;
use super::record::{LogEntry, StateRecord, VoteWords};
use super::view::GroupView;
use plinth_journal::SegmentIndex;
use plinth_protocol::GroupId;
use std::collections::VecDeque;

/// Entries that stand in one record, as far as they are live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) place: Place,
    /// Number of the first live entry.
    pub(crate) first: u64,
    /// Number behind the last live entry.
    pub(crate) end: u64,
}

/// What the journal holds of one group.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    vote: Option<VoteWords>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    runs: VecDeque<Run>,
}

impl Holding {
    /// Takes over what recovery has found.
    pub(crate) fn of_view(view: &GroupView) -> Self {
        let mut holding =
            Holding { vote: view.vote.clone(), committed: view.committed, purged: view.purged, runs: VecDeque::new() };
        for slot in view.slots(0..u64::MAX) {
            let place = slot.place.expect("recovered entries have a place");
            let index = slot.id.index;
            match holding.runs.back_mut() {
                Some(run) if run.place.sequence == place.sequence && run.end == index => run.end += 1,
                _ => holding.runs.push_back(Run { place, first: index, end: index + 1 }),
            }
        }
        holding
    }

    pub(crate) fn append(&mut self, entries: &[LogEntry], committed: Option<LogId>, place: Place) {
        self.committed = self.committed.max(committed);
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.runs.push_back(Run { place, first: first.id.index, end: last.id.index + 1 });
        }
    }

    pub(crate) fn set_vote(&mut self, vote: VoteWords) {
        self.vote = Some(vote);
    }

    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        let end = last.map_or(0, |last| last.index + 1);
        while self.runs.back().is_some_and(|run| run.first >= end) {
            self.runs.pop_back();
        }
        if let Some(run) = self.runs.back_mut() {
            run.end = run.end.min(end);
        }
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged >= upto) {
            return;
        }
        while self.runs.front().is_some_and(|run| run.end <= upto.index + 1) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.first = run.first.max(upto.index + 1);
        }
        self.purged = Some(upto);
    }

    /// Returns all runs with live entries.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// Returns the runs with live entries in a segment.
    pub(crate) fn runs_in(&self, segment: SegmentIndex) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.place.position.segment == segment)
    }

    /// Notes that the entries of a run stand in other records now.
    pub(crate) fn carried(&mut self, old: &Run, new: Vec<Run>) {
        let same = |run: &Run| run.place.sequence == old.place.sequence && run.first == old.first;
        if let Some(at) = self.runs.iter().position(same) {
            self.runs.remove(at);
            for (offset, run) in new.into_iter().enumerate() {
                self.runs.insert(at + offset, run);
            }
        }
    }

    /// Returns the record that repeats what stands.
    pub(crate) fn state(&self, group: GroupId) -> StateRecord {
        StateRecord { group, vote: self.vote.clone(), committed: self.committed, purged: self.purged }
    }
}
