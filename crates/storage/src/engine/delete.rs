//! Deletes: tombstones of many requests share a record; each is answered when its own is durable.

use super::{Effect, Engine, Pending, Request, Ticket, Waiter, fenced_failure};
use crate::planted::{Bug, planted};
use crate::tombstone::{KIND_TOMBSTONE, TOMBSTONE_FRAGMENTS_MAX, TombstoneBody};
use bytes::Bytes;
use plinth_journal::{Append, Refused, Sequence, Stream};
use plinth_protocol::storage::{DELETE_FRAGMENTS_MAX, DeletedFragments, StorageAction, StorageReply};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, FragmentId};
use std::collections::VecDeque;
use std::time::Instant;

/// A delete that waits, and how many of its fragments it found.
struct Deleter<T> {
    waiter: Waiter<T>,
    found: u32,
}

/// Deletes on their way to durability.
pub(super) struct Deletes<T> {
    /// Fragments whose tombstones are not appended yet.
    batch: Vec<FragmentId>,
    /// Who waits for the batch.
    batch_waiters: Vec<Deleter<T>>,
    /// Who waits for an append, in its order.
    waiting: VecDeque<(Sequence, Deleter<T>)>,
}

impl<T> Default for Deletes<T> {
    fn default() -> Self {
        Deletes { batch: Vec::new(), batch_waiters: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<T> Deletes<T> {
    pub(super) fn waiting(&self) -> usize {
        self.batch_waiters.len() + self.waiting.len()
    }
}

impl<T: Ticket> Engine<T> {
    pub(super) fn begin_delete(&mut self, now: Instant, request: Request<T>) {
        if let Some(reason) = &self.fenced {
            let failure = fenced_failure(reason);
            return self.refuse(request, failure);
        }
        let StorageAction::Delete(delete) = &request.action else { unreachable!("only deletes come here") };
        if delete.fragments.len() > DELETE_FRAGMENTS_MAX {
            let text = format!("a delete names at most {DELETE_FRAGMENTS_MAX} fragments");
            return self.refuse(request, Failure::new(FailureKind::Invalid, text));
        }
        let (mut found, mut must_wait) = (0, false);
        for &fragment in &delete.fragments {
            let pending = self.pending.get(&fragment);
            if pending.is_some_and(|pending| pending.deletes > 0) {
                must_wait = true;
            } else if pending.is_some() || self.index.get(fragment).is_some() {
                // A put that is not durable yet stands before the tombstone in the log: it dies.
                self.pending.entry(fragment).or_default().deletes = 1;
                self.deletes.batch.push(fragment);
                found += 1;
                must_wait = true;
            }
        }
        let waiter = Waiter { class: request.class, arrived: request.arrived, ticket: request.ticket };
        let deleter = Deleter { waiter, found };
        match must_wait {
            true => self.deletes.batch_waiters.push(deleter),
            false => self.finish_delete(now, deleter),
        }
    }

    /// Appends the tombstones of the batch.
    pub(super) fn flush_deletes(&mut self, now: Instant) {
        while !self.deletes.batch.is_empty() {
            let count = self.deletes.batch.len().min(TOMBSTONE_FRAGMENTS_MAX);
            let body = TombstoneBody { fragments: self.deletes.batch[..count].to_vec() };
            match self.append_tombstone(now, Stream::Main, &body) {
                Ok(_) => drop(self.deletes.batch.drain(..count)),
                Err(Refused::Busy) => return,
                Err(refused) => return self.fail_deletes(now, &Failure::from(refused)),
            }
        }
        // Whoever found only fragments that are being deleted already waits for those as well.
        let sequence = self.appended.back().map_or(self.journal.durable(), |last| last.sequence);
        let waiters = std::mem::take(&mut self.deletes.batch_waiters);
        if planted(Bug::DeleteWithoutTombstoneSync) {
            return waiters.into_iter().for_each(|deleter| self.finish_delete(now, deleter));
        }
        self.deletes.waiting.extend(waiters.into_iter().map(|deleter| (sequence, deleter)));
    }

    /// Appends one tombstone record: of a delete, or moved by compaction.
    pub(super) fn append_tombstone(
        &mut self,
        now: Instant,
        stream: Stream,
        body: &TombstoneBody,
    ) -> Result<(), Refused> {
        let bytes = body.to_wire();
        // Deletes make room: they may take what is kept back.
        let append = Append { stream, kind: KIND_TOMBSTONE, body: &bytes, payload: Bytes::new(), reserve: true };
        let placed = self.journal.append(append)?;
        let (fragments, segment) = (body.fragments.clone(), placed.position.segment.0);
        let effect = match stream {
            Stream::Relocation => Effect::TombstoneMoved { fragments, segment },
            _ => Effect::Tombstone { fragments, segment },
        };
        self.note_append(now, placed, effect);
        Ok(())
    }

    /// A tombstone is durable: its fragments are gone.
    pub(super) fn apply_tombstone(&mut self, fragments: &[FragmentId], segment: u32) {
        self.space.end(segment);
        for &fragment in fragments {
            if let Some(pending) = self.pending.get_mut(&fragment) {
                *pending = Pending { deletes: 0, ..std::mem::take(pending) };
                if pending.put.is_none() {
                    self.pending.remove(&fragment);
                }
            }
            if let Some(old) = self.index.remove(fragment) {
                self.bury_record(&old);
            }
            self.dead.bury(fragment, segment);
        }
        self.reclaim_due = true;
    }

    /// Answers the deletes whose tombstones are durable.
    pub(super) fn finish_deletes(&mut self, now: Instant, durable: Sequence) {
        while self.deletes.waiting.front().is_some_and(|(sequence, _)| *sequence <= durable) {
            let (_, deleter) = self.deletes.waiting.pop_front().expect("front was seen");
            self.finish_delete(now, deleter);
        }
    }

    fn finish_delete(&self, now: Instant, deleter: Deleter<T>) {
        let reply = StorageReply::Deleted(DeletedFragments { found: deleter.found });
        self.finish(now, deleter.waiter, Ok((reply, Bytes::new())));
    }

    /// Tells every waiting delete that it did not happen.
    pub(super) fn fail_deletes(&mut self, now: Instant, failure: &Failure) {
        for fragment in std::mem::take(&mut self.deletes.batch) {
            if let Some(pending) = self.pending.get_mut(&fragment) {
                pending.deletes = 0;
                if pending.put.is_none() {
                    self.pending.remove(&fragment);
                }
            }
        }
        let batch = std::mem::take(&mut self.deletes.batch_waiters);
        let fenced = if self.fenced.is_some() { std::mem::take(&mut self.deletes.waiting) } else { VecDeque::new() };
        for deleter in batch.into_iter().chain(fenced.into_iter().map(|(_, deleter)| deleter)) {
            self.finish(now, deleter.waiter, Err(failure.clone()));
        }
    }
}
