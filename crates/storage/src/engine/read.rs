//! Reads: whatever comes from the disk is verified before anybody sees it.

use super::put::{other_bytes, stored};
use super::{Admitted, Engine, Request, Ticket, Waiter};
use crate::admission::frame_range;
use crate::index::{IndexEntry, Place};
use crate::planted::{Bug, planted};
use crate::queue::limit;
use crate::stats::add;
use bytes::Bytes;
use plinth_journal::{DiskError, HEAD_BYTES, ReadToken, Refused};
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::frame::{FrameError, verify_frames};
use plinth_protocol::storage::{StorageAction, StorageReply};
use plinth_protocol::stripe::FragmentHeader;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, FragmentId};
use std::time::Instant;

/// How often a range is read before its bytes count as damaged: one misdirected read is not rot.
pub(super) const READ_TRIES_MAX: u8 = 2;

/// A read that is with the journal, and what it is for.
pub(super) enum ReadWork<T> {
    /// Frames for a caller.
    Frames { waiter: Waiter<T>, fragment: FragmentId, place: Place, first: u16, range: (usize, usize), tries: u8 },
    /// The header for a caller.
    Header { waiter: Waiter<T>, fragment: FragmentId, place: Place, tries: u8 },
    /// The stored frames, to be compared with a put of the same fragment.
    Compare { bytes: u64, entry: IndexEntry, admitted: Box<Admitted<T>>, tries: u8 },
    /// A whole record that compaction moves.
    Move { entry: IndexEntry, tries: u8 },
}

impl<T: Ticket> Engine<T> {
    pub(super) fn begin_read(&mut self, now: Instant, bytes: u64, admitted: Admitted<T>) {
        let StorageAction::Read(read) = &admitted.request.action else { unreachable!("only reads come here") };
        let (fragment, first, count) = (read.fragment, read.first, read.count);
        let Some(place) = self.readable_place(fragment) else {
            return self.answer_unreadable(now, fragment, admitted.request);
        };
        let Some(range) = frame_range(place, first, count) else {
            let failure = Failure::new(FailureKind::Invalid, "the fragment has no such frames");
            return self.answer(now, admitted.request, Err(failure));
        };
        let make = |request: Request<T>| ReadWork::Frames {
            waiter: waiter_of(request),
            fragment,
            place,
            first,
            range,
            tries: 1,
        };
        self.submit_or_put_back(bytes, place, place.head_bytes() + range.0, range.1 - range.0, admitted, make);
    }

    pub(super) fn begin_stat(&mut self, now: Instant, bytes: u64, admitted: Admitted<T>) {
        let StorageAction::Stat(fragment) = admitted.request.action else { unreachable!("only stats come here") };
        let Some(place) = self.readable_place(fragment) else {
            return self.answer_unreadable(now, fragment, admitted.request);
        };
        let make = |request: Request<T>| ReadWork::Header { waiter: waiter_of(request), fragment, place, tries: 1 };
        self.submit_or_put_back(bytes, place, 0, place.head_bytes(), admitted, make);
    }

    fn readable_place(&self, fragment: FragmentId) -> Option<Place> {
        self.index.get(fragment).filter(|entry| !entry.quarantined).map(|entry| entry.place)
    }

    fn answer_unreadable(&self, now: Instant, fragment: FragmentId, request: Request<T>) {
        let failure = match self.index.get(fragment) {
            Some(_) => corrupt(fragment, "quarantined"),
            None => Failure::new(FailureKind::NotFound, "no such fragment"),
        };
        self.answer(now, request, Err(failure));
    }

    fn submit_or_put_back(
        &mut self,
        bytes: u64,
        place: Place,
        offset: usize,
        length: usize,
        mut admitted: Admitted<T>,
        make: impl FnOnce(Request<T>) -> ReadWork<T>,
    ) {
        if !std::mem::replace(&mut admitted.reserved, true) && !admitted.request.ticket.reserve(length as u64) {
            add(&self.stats.refused_busy, 1);
            let busy = Failure::new(FailureKind::Busy, "too many bytes are in flight in this process");
            let retry_after_ms = Some(limit(admitted.request.class).retry_after_ms);
            return self.refuse(admitted.request, Failure { retry_after_ms, ..busy });
        }
        match self.submit_read(place, offset, length) {
            Ok(token) => {
                self.reads.insert(token, (length as u64, make(admitted.request)));
            }
            Err(Refused::Busy) => {
                self.reads_blocked = true;
                self.put_back(bytes, admitted);
            }
            Err(refused) => self.refuse(admitted.request, Failure::from(refused)),
        }
    }

    /// Asks the journal for `length` bytes at `offset` of a record. The caller keeps the work.
    fn submit_read(&mut self, place: Place, offset: usize, length: usize) -> Result<ReadToken, Refused> {
        let token = ReadToken(self.read_token);
        let at = place.offset() + offset as u32;
        self.journal.read(token, place.segment_index(), at, length as u32)?;
        self.read_token += 1;
        self.read_bytes += length as u64;
        Ok(token)
    }

    /// Reads the stored frames of a fragment that is put again: a repeated put proves what it confirms.
    pub(super) fn begin_compare(&mut self, bytes: u64, entry: IndexEntry, admitted: Admitted<T>) {
        if entry.place.payload_bytes() != admitted.request.payload.len() {
            return self.refuse(admitted.request, other_bytes(entry.fragment));
        }
        match self.submit_read(entry.place, entry.place.head_bytes(), entry.place.payload_bytes()) {
            Ok(token) => {
                let length = entry.place.payload_bytes() as u64;
                self.reads.insert(
                    token,
                    (length, ReadWork::Compare { bytes, entry, admitted: Box::new(admitted), tries: 1 }),
                );
            }
            Err(Refused::Busy) => {
                self.reads_blocked = true;
                self.writes_blocked = true;
                self.put_back(bytes, admitted);
            }
            Err(refused) => self.refuse(admitted.request, Failure::from(refused)),
        }
    }

    /// Asks for a whole record that compaction wants to move.
    pub(super) fn begin_move(&mut self, entry: IndexEntry, tries: u8) -> Result<(), Refused> {
        let length = entry.place.record_bytes() as usize;
        let token = self.submit_read(entry.place, 0, length)?;
        self.reads.insert(token, (length as u64, ReadWork::Move { entry, tries }));
        Ok(())
    }

    pub(super) fn handle_read(&mut self, now: Instant, token: ReadToken, result: Result<AlignedBuf, DiskError>) {
        let (length, work) = self.reads.remove(&token).expect("the journal answers only what was asked");
        self.read_bytes -= length;
        if result.is_err() {
            add(&self.stats.errors_eio, 1);
        }
        let result = result.map(AlignedBuf::freeze);
        match work {
            ReadWork::Frames { .. } => self.finish_frames(now, work, result),
            ReadWork::Header { .. } => self.finish_header(now, work, result),
            ReadWork::Compare { .. } => self.finish_compare(now, work, result),
            ReadWork::Move { entry, tries } => self.finish_move_read(now, entry, tries, result),
        }
    }

    fn finish_frames(&mut self, now: Instant, work: ReadWork<T>, result: Result<Bytes, DiskError>) {
        let ReadWork::Frames { waiter, fragment, place, first, range, tries } = work else { return };
        let checked = match result {
            Ok(frames) => match check_frames(&frames, fragment, first) {
                Ok(()) => {
                    add(&self.stats.read_bytes, frames.len() as u64);
                    return self.finish(now, waiter, Ok((StorageReply::Frames, frames)));
                }
                Err(error) => Ok(error),
            },
            Err(error) => Err(error),
        };
        if let Some((place, tries)) = self.read_again(fragment, place, tries)
            && let Ok(token) = self.submit_read(place, place.head_bytes() + range.0, range.1 - range.0)
        {
            let work = ReadWork::Frames { waiter, fragment, place, first, range, tries };
            self.reads.insert(token, ((range.1 - range.0) as u64, work));
            return;
        }
        let failure = match checked {
            Ok(error) => self.damaged(fragment, place, &error.to_string()),
            Err(error) => unreadable(fragment, &error),
        };
        self.finish(now, waiter, Err(failure));
    }

    fn finish_header(&mut self, now: Instant, work: ReadWork<T>, result: Result<Bytes, DiskError>) {
        let ReadWork::Header { waiter, fragment, place, tries } = work else { return };
        let header = result.map(|head| header_of(&head, place, fragment));
        if let Ok(Some(header)) = header {
            return self.finish(now, waiter, Ok((StorageReply::Header(header), Bytes::new())));
        }
        if let Some((place, tries)) = self.read_again(fragment, place, tries)
            && let Ok(token) = self.submit_read(place, 0, place.head_bytes())
        {
            let work = ReadWork::Header { waiter, fragment, place, tries };
            self.reads.insert(token, (place.head_bytes() as u64, work));
            return;
        }
        let failure = match header {
            Ok(_) => self.damaged(fragment, place, "header damaged"),
            Err(error) => unreadable(fragment, &error),
        };
        self.finish(now, waiter, Err(failure));
    }

    fn finish_compare(&mut self, now: Instant, work: ReadWork<T>, result: Result<Bytes, DiskError>) {
        let ReadWork::Compare { bytes, entry, admitted, tries } = work else { return };
        let (fragment, place) = (entry.fragment, entry.place);
        let damaged = match &result {
            Ok(frames) if *frames == admitted.request.payload => return self.answer(now, admitted.request, stored()),
            Ok(frames) => check_frames(frames, fragment, 0).err(),
            Err(_) => None,
        };
        if (damaged.is_some() || result.is_err())
            && let Some((place, tries)) = self.read_again(fragment, place, tries)
            && let Ok(token) = self.submit_read(place, place.head_bytes(), place.payload_bytes())
        {
            let work = ReadWork::Compare { bytes, entry: IndexEntry { place, ..entry }, admitted, tries };
            self.reads.insert(token, (place.payload_bytes() as u64, work));
            return;
        }
        match (result, damaged) {
            (Err(error), _) => self.refuse(admitted.request, unreadable(fragment, &error)),
            (Ok(_), None) => self.refuse(admitted.request, other_bytes(fragment)),
            (Ok(_), Some(error)) => {
                // The copy on disk is damaged, the one in hand is not: it takes the place.
                self.damaged(fragment, place, &error.to_string());
                self.put_back(bytes, *admitted);
            }
        }
    }

    /// Where, and as which try, a failed read is done again: at the fragment's new place where it was
    /// moved meanwhile, at the old one for a second time otherwise.
    fn read_again(&self, fragment: FragmentId, place: Place, tries: u8) -> Option<(Place, u8)> {
        match self.index.get(fragment) {
            Some(now) if now.place != place && now.place.payload_blocks == place.payload_blocks => Some((now.place, 1)),
            _ => (tries < READ_TRIES_MAX).then_some((place, tries + 1)),
        }
    }

    /// Quarantines a fragment whose stored bytes failed their check, unless the index has moved on
    /// since they were read. Returns what the caller is told.
    pub(super) fn damaged(&mut self, fragment: FragmentId, place: Place, why: &str) -> Failure {
        add(&self.stats.errors_checksum, 1);
        match self.index.get(fragment) {
            Some(entry) if entry.place == place => {
                if !entry.quarantined {
                    tracing::warn!(%fragment, disk = %self.disk, why, "fragment quarantined");
                    self.index.insert(IndexEntry { quarantined: true, ..entry });
                    self.space.pin(place.segment);
                }
                corrupt(fragment, why)
            }
            Some(_) => Failure::new(FailureKind::Unavailable, "the fragment was moved while it was read"),
            None => Failure::new(FailureKind::NotFound, "no such fragment"),
        }
    }
}

fn waiter_of<T>(request: Request<T>) -> Waiter<T> {
    Waiter { class: request.class, arrived: request.arrived, ticket: request.ticket }
}

fn corrupt(fragment: FragmentId, why: &str) -> Failure {
    Failure::new(FailureKind::Corrupt, format!("fragment {fragment}: {why}"))
}

fn unreadable(fragment: FragmentId, error: &DiskError) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("fragment {fragment} cannot be read: {error}"))
}

/// Verifies frames as they came from the disk.
pub(super) fn check_frames(frames: &[u8], fragment: FragmentId, first: u16) -> Result<(), FrameError> {
    if planted(Bug::IgnoreFrameChecksum) {
        return Ok(());
    }
    verify_frames(frames, fragment, first)
}

/// Returns the fragment header out of a record's head and body, where it is whole and the right one.
pub(super) fn header_of(head: &[u8], place: Place, fragment: FragmentId) -> Option<FragmentHeader> {
    let body = body_of(head, place)?;
    FragmentHeader::decode(body).ok().filter(|header| header.fragment == fragment)
}

/// Returns the body out of a record's head and body, where its checksum fits.
pub(super) fn body_of(head: &[u8], place: Place) -> Option<&[u8]> {
    let body = head.get(HEAD_BYTES..HEAD_BYTES + usize::from(place.body_bytes))?;
    let stored = u32::from_le_bytes(head.get(20..24)?.try_into().ok()?);
    (crc32fast::hash(body) == stored).then_some(body)
}
