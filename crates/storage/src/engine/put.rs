//! Puts: checked whole before a byte is written, stored once, answered when durable.

use super::{Admitted, Effect, Engine, Ticket, Waiter, fenced_failure, place_of};
use crate::admission::check_put;
use crate::index::{IndexEntry, Place};
use crate::planted::{Bug, planted};
use crate::space::stop_bytes;
use crate::stats::add;
use crate::tombstone::KIND_FRAGMENT;
use bytes::Bytes;
use plinth_journal::{Append, Refused, Stream, record_bytes};
use plinth_protocol::storage::{IoClass, StorageAction, StorageReply};
use plinth_protocol::{Failure, FailureKind, FragmentId};
use std::time::Instant;

/// What a caller is told to wait, in milliseconds, while compaction makes room.
const ROOM_RETRY_MS: u64 = 500;

impl<T: Ticket> Engine<T> {
    pub(super) fn begin_put(&mut self, now: Instant, bytes: u64, mut admitted: Admitted<T>) {
        if let Some(reason) = &self.fenced {
            let failure = fenced_failure(reason);
            return self.refuse(admitted.request, failure);
        }
        let StorageAction::Put(header) = &admitted.request.action else { unreachable!("only puts come here") };
        let fragment = header.fragment;
        if admitted.checked.is_none() {
            match check_put(header, &admitted.request.payload) {
                Ok(body) => admitted.checked = Some(body),
                Err(failure) => {
                    if failure.kind == FailureKind::Corrupt {
                        add(&self.stats.errors_checksum, 1);
                    }
                    return self.refuse(admitted.request, failure);
                }
            }
        }
        if let Some(admitted) = self.meet_existing(bytes, fragment, admitted) {
            self.append_put(now, bytes, fragment, admitted);
        }
    }

    /// Deals with a put of a fragment that is here already, on its way, or deleted. Gives it back
    /// where it is new, or replaces a quarantined one.
    fn meet_existing(&mut self, bytes: u64, fragment: FragmentId, admitted: Admitted<T>) -> Option<Admitted<T>> {
        let pending = self.pending.get(&fragment);
        if pending.is_some_and(|pending| pending.deletes > 0) || self.dead.is_tombstoned(fragment) {
            let text = format!("fragment {fragment} has been deleted; its id is not used again");
            self.refuse(admitted.request, Failure::new(FailureKind::Conflict, text));
            return None;
        }
        if let Some(sequence) = pending.and_then(|pending| pending.put) {
            let at = self.appended.binary_search_by(|appended| appended.sequence.cmp(&sequence));
            let at = at.expect("a pending put waits among the appends");
            let Effect::Put { payload, waiters, .. } = &mut self.appended[at].effect else {
                unreachable!("a pending put's sequence is a put's")
            };
            if *payload != admitted.request.payload {
                self.refuse(admitted.request, other_bytes(fragment));
                return None;
            }
            let request = admitted.request;
            waiters.push(Waiter { class: request.class, arrived: request.arrived, ticket: request.ticket });
            return None;
        }
        match self.index.get(fragment) {
            Some(entry) if !entry.quarantined => {
                self.begin_compare(bytes, entry, admitted);
                None
            }
            _ => Some(admitted),
        }
    }

    fn append_put(&mut self, now: Instant, bytes: u64, fragment: FragmentId, admitted: Admitted<T>) {
        let body = admitted.checked.as_deref().expect("checked above");
        let payload = admitted.request.payload.clone();
        let total = record_bytes(body.len(), payload.len()) as u64;
        if total > u64::from(self.journal.record_bytes_max()) {
            let text = format!("a record of {total} bytes is more than a segment of this disk takes");
            return self.refuse(admitted.request, Failure::new(FailureKind::Invalid, text));
        }
        let repair = admitted.request.class == IoClass::Repair;
        if self.space.live_bytes() + total > stop_bytes(self.journal.size_bytes(), self.segment_bytes, repair) {
            return self.refuse_full(admitted);
        }
        let append =
            Append { stream: Stream::Main, kind: KIND_FRAGMENT, body, payload: payload.clone(), reserve: false };
        match self.journal.append(append) {
            Ok(placed) => {
                let place = place_of(placed.position, body.len(), payload.len());
                self.space.add(place.segment, place.record_bytes());
                self.pending.entry(fragment).or_default().put = Some(placed.sequence);
                let request = admitted.request;
                let waiter = Waiter { class: request.class, arrived: request.arrived, ticket: request.ticket };
                let mut waiters = vec![waiter];
                if planted(Bug::AckBeforeDurable) {
                    waiters.drain(..).for_each(|waiter| self.finish(now, waiter, stored()));
                }
                self.note_append(now, placed, Effect::Put { fragment, place, payload, waiters });
            }
            Err(Refused::Busy) => {
                self.writes_blocked = true;
                self.put_back(bytes, admitted);
            }
            Err(Refused::Full) if self.may_gain_room() => {
                self.writes_blocked = true;
                self.put_back(bytes, admitted);
            }
            Err(Refused::Full) => self.refuse_full(admitted),
            Err(Refused::Fenced(reason)) => self.refuse(admitted.request, fenced_failure(&reason)),
            Err(Refused::Invalid(text)) => self.refuse(admitted.request, Failure::new(FailureKind::Invalid, text)),
        }
    }

    fn refuse_full(&self, admitted: Admitted<T>) {
        add(&self.stats.refused_full, 1);
        let full = Failure::new(FailureKind::Full, "the disk is full for this class");
        self.refuse(admitted.request, Failure { retry_after_ms: Some(ROOM_RETRY_MS), ..full });
    }

    /// A put is durable: the index points at it.
    pub(super) fn apply_put(&mut self, fragment: FragmentId, place: Place) {
        self.space.end(place.segment);
        if let Some(pending) = self.pending.get_mut(&fragment) {
            pending.put = None;
            if pending.deletes == 0 {
                self.pending.remove(&fragment);
            }
        }
        if let Some(old) = self.index.insert(IndexEntry { fragment, place, quarantined: false }) {
            self.bury_record(&old);
        }
        self.dead.revive(fragment);
    }

    /// Accounts for a record that the index no longer points at.
    pub(super) fn bury_record(&mut self, old: &IndexEntry) {
        self.space.remove(old.place.segment, old.place.record_bytes());
        self.dead.supersede(old.fragment, old.place.segment);
        if old.quarantined {
            self.space.unpin(old.place.segment);
        }
        (self.reclaim_due, self.compaction_stuck) = (true, false);
    }
}

pub(super) fn other_bytes(fragment: FragmentId) -> Failure {
    Failure::new(FailureKind::Invalid, format!("fragment {fragment} exists with other bytes"))
}

pub(super) fn stored() -> super::Answer {
    Ok((StorageReply::Stored, Bytes::new()))
}
