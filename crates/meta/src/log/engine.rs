//! What is written to the journal, when it counts, and which segments may go. Does no I/O.
//!
//! Changes of all groups enter in order and become records of one journal stream; a change counts
//! once the journal tells that its sequence is durable, and changes are answered in that order. So a
//! vote is never overtaken by an entry that depends on it.
//!
//! A segment goes when no group has a live entry in it. Before that every group's vote, committed
//! and purged log ids are written once more (`state`), and entries of slow groups that would pin the
//! segment are carried to the end of the log (`carry`), as long as they are few or space is scarce;
//! the release waits until both are durable.

use super::LogId;
use super::record::{
    ENTRIES_HEAD_BYTES, ENTRY_HEAD_BYTES, LogEntry, PurgeRecord, RecordKind, StateRecord, TruncateRecord, VoteRecord,
    VoteWords, decode_entries, encode_entries, encode_entries_into,
};
use super::view::{GroupView, Slot};
use crate::{MetaError, planted};
use bytes::Bytes;
use plinth_journal::record::verify_record;
use plinth_journal::{
    Append, Completion, Disk, Event, Generation, Journal, JournalError, JournalOptions, Operation, Placed, Position,
    ReadToken, Recovered, Recovery, Refused, SegmentIndex, SegmentState, Sequence, Stream, head_and_body_bytes,
};
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::wire::Wire;
use plinth_protocol::{GroupId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Where the journal has an entry's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The record's place on the disk.
    pub(crate) position: Position,
    /// The life of the segment.
    pub(crate) generation: Generation,
    /// The record's place in the order.
    pub(crate) sequence: Sequence,
    /// Bytes of the whole record, whole blocks.
    pub(crate) record_bytes: u32,
    /// Where the payload starts in the record's body.
    pub(crate) offset: u32,
}

/// The views of all groups, shared between the engine and the callers.
#[derive(Default)]
pub(crate) struct Groups {
    map: Mutex<BTreeMap<GroupId, Arc<Mutex<GroupView>>>>,
}

impl Groups {
    /// Returns the view of a group; an empty one where the log has none.
    pub(crate) fn get(&self, group: GroupId) -> Arc<Mutex<GroupView>> {
        lock(&self.map).entry(group).or_default().clone()
    }

    /// Returns all views, in order of groups.
    pub(crate) fn all(&self) -> Vec<(GroupId, Arc<Mutex<GroupView>>)> {
        lock(&self.map).iter().map(|(group, view)| (*group, view.clone())).collect()
    }
}

/// Locks a mutex; a panic elsewhere ends the process, so what it guards is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change of a group's log. The view has it already.
pub(crate) enum Change {
    /// Entries behind the last one.
    Append(GroupId, Vec<LogEntry>),
    /// A vote.
    Vote(GroupId, VoteWords),
    /// Entries behind the given one are dropped.
    Truncate(GroupId, Option<LogId>),
    /// Entries up to the given one are dropped.
    Purge(GroupId, LogId),
    /// What stands is written once more: before a clean stop.
    State(GroupId),
}

/// Bounds and habits of the log.
#[derive(Debug, Clone)]
pub(crate) struct LogLimits {
    /// Bytes of payload that stay in RAM, per group.
    pub(crate) cache_bytes_max: usize,
    /// Live bytes in the oldest segment up to which they are carried to the end, so that it can go.
    pub(crate) carry_bytes_max: u64,
    /// Bytes of one carry record.
    pub(crate) carry_record_bytes_max: usize,
    /// Free bytes below which the oldest segment is carried whatever it holds.
    pub(crate) free_bytes_min: u64,
}

struct Waiting<T> {
    sequence: Sequence,
    done: T,
    /// Entries of this group below this number are durable then.
    appended: Option<(GroupId, u64)>,
}

/// The release of the oldest segment under way.
enum Release {
    /// Payloads of entries to be carried are being read.
    Reading { segment: SegmentIndex, missing: usize, found: BTreeMap<GroupId, Vec<LogEntry>> },
    /// State and carry records wait for their sync.
    Writing { segment: SegmentIndex, sequence: Sequence },
    /// The journal has been told; [`Event::Released`] follows.
    Waiting,
}

/// An answered read of a record: the bytes of its body.
pub(crate) type ReadResult = Result<Bytes, MetaError>;

/// What a read is for.
enum ReadFor<R> {
    Caller { reply: R, place: Place },
    Carry { place: Place },
}

/// The engine. `T` names a change to its asker, `R` a read.
pub(crate) struct RaftLog<T, R> {
    journal: Journal,
    groups: Arc<Groups>,
    floor: Arc<AtomicU64>,
    limits: LogLimits,
    /// Changes that the journal has not taken yet.
    backlog: VecDeque<(Change, T)>,
    waiting: VecDeque<Waiting<T>>,
    /// Reads that the journal has not taken yet.
    read_backlog: VecDeque<(ReadToken, Place)>,
    reads: BTreeMap<ReadToken, ReadFor<R>>,
    read_next: u64,
    finished: Vec<(T, Result<(), String>)>,
    answered: Vec<(R, ReadResult)>,
    release: Option<Release>,
    /// A segment may have become free of live entries.
    release_due: bool,
    scratch: Vec<u8>,
}

/// A log that has been read back: the views, and the disk's own account of it.
pub(crate) struct Opened<T, R, D> {
    pub(crate) log: RaftLog<T, R>,
    pub(crate) disk: D,
    /// Drawn at random when the log was formatted.
    pub(crate) log_id: u128,
    /// Counts the starts.
    pub(crate) boot: u64,
    /// What was torn at the end and cut.
    pub(crate) cut_records: u32,
}

impl<T, R> RaftLog<T, R> {
    /// Reads a formatted log back. Fails with `Damaged` where anything is missing that was durable.
    pub(crate) fn open<D: Disk>(
        now: Instant,
        node: NodeId,
        disk: D,
        groups: Arc<Groups>,
        floor: Arc<AtomicU64>,
        options: JournalOptions,
        limits: LogLimits,
    ) -> Result<Opened<T, R, D>, MetaError> {
        let damaged = |reason: String| MetaError::Damaged { node, reason };
        let mut recovery = Recovery::start(disk, None).map_err(journal_error)?;
        while let Some(record) = recovery.next() {
            replay(&groups, &record).map_err(damaged)?;
        }
        if let Some(damage) = recovery.damage().first() {
            return Err(damaged(format!("{damage:?}")));
        }
        for (group, view) in groups.all() {
            settle(group, &mut lock(&view), limits.cache_bytes_max).map_err(damaged)?;
        }
        let cut_records = recovery.cut().map_or(0, |cut| cut.records);
        let (journal, disk) = recovery.resume(now, options).map_err(journal_error)?;
        let superblock = journal.superblock();
        let (log_id, boot) = (superblock.identity.disk.0, u64::from(superblock.mount));
        floor.store(journal.durable().0, Ordering::Release);
        let log = RaftLog {
            journal,
            groups,
            floor,
            limits,
            backlog: VecDeque::new(),
            waiting: VecDeque::new(),
            read_backlog: VecDeque::new(),
            reads: BTreeMap::new(),
            read_next: 0,
            finished: Vec::new(),
            answered: Vec::new(),
            release: None,
            release_due: true,
            scratch: Vec::new(),
        };
        Ok(Opened { log, disk, log_id, boot, cut_records })
    }

    /// Takes a change; [`RaftLog::poll_finished`] tells when it is durable.
    pub(crate) fn handle_change(&mut self, change: Change, done: T) {
        if let Some(reason) = self.journal.fenced() {
            let reason = reason.to_owned();
            self.finished.push((done, Err(reason)));
            return;
        }
        self.backlog.push_back((change, done));
        self.drain_backlog();
    }

    /// Takes a read of the record at a place; [`RaftLog::poll_answered`] brings its body.
    pub(crate) fn handle_read(&mut self, place: Place, reply: R) {
        let token = self.read_token();
        self.reads.insert(token, ReadFor::Caller { reply, place });
        self.read_backlog.push_back((token, place));
        self.drain_reads();
    }

    /// Takes the end of a disk operation.
    pub(crate) fn handle_completion(&mut self, now: Instant, completion: Completion) {
        self.journal.handle_completion(now, completion);
    }

    /// Returns the next disk operation.
    pub(crate) fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        self.journal.poll_disk(now)
    }

    /// Does what the last completions allow.
    pub(crate) fn handle_turn(&mut self) {
        while let Some(event) = self.journal.poll_event() {
            self.handle_event(event);
        }
        self.drain_backlog();
        self.drain_reads();
        self.advance_release();
    }

    /// Returns the changes that have become durable, or never will.
    pub(crate) fn poll_finished(&mut self) -> Vec<(T, Result<(), String>)> {
        std::mem::take(&mut self.finished)
    }

    /// Returns the reads that have ended.
    pub(crate) fn poll_answered(&mut self) -> Vec<(R, ReadResult)> {
        std::mem::take(&mut self.answered)
    }

    /// Returns when the journal wants a turn although nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.journal.deadline()
    }

    /// Returns the journal, for its counters.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Prepares a clean stop: the state of every group, then the floor slot.
    pub(crate) fn stop(&mut self) {
        self.journal.stop();
    }

    /// Returns whether every change and read is answered and nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        let fenced = self.journal.fenced().is_some();
        self.backlog.is_empty()
            && self.waiting.is_empty()
            && self.reads.is_empty()
            && (fenced || self.journal.is_idle())
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Durable(sequence) => self.handle_durable(sequence),
            Event::Read(token, result) => self.handle_read_end(token, result),
            Event::Released(_) => {
                self.release = None;
                self.release_due = true;
            }
            Event::CheckpointSet => {}
            Event::Fenced(reason) => self.handle_fenced(&reason),
        }
    }

    fn handle_durable(&mut self, sequence: Sequence) {
        self.floor.store(sequence.0, Ordering::Release);
        while self.waiting.front().is_some_and(|waiting| waiting.sequence <= sequence) {
            let waiting = self.waiting.pop_front().expect("the loop's condition saw it");
            if let Some((group, end)) = waiting.appended {
                let view = self.groups.get(group);
                let mut view = lock(&view);
                view.set_durable(end);
                view.evict(self.limits.cache_bytes_max);
            }
            self.finished.push((waiting.done, Ok(())));
        }
    }

    fn handle_fenced(&mut self, reason: &str) {
        let waiting = self.waiting.drain(..).map(|waiting| waiting.done);
        let backlog = self.backlog.drain(..).map(|(_, done)| done);
        self.finished.extend(waiting.chain(backlog).map(|done| (done, Err(reason.to_owned()))));
    }

    /// Gives the journal what it takes; the rest waits for the next completion.
    fn drain_backlog(&mut self) {
        while let Some((change, _)) = self.backlog.front() {
            let mut body = std::mem::take(&mut self.scratch);
            body.clear();
            let kind = encode(&self.groups, change, &mut body);
            let placed = self.append(kind, &body);
            self.scratch = body;
            if placed == Err(Refused::Busy) {
                return;
            }
            let (change, done) = self.backlog.pop_front().expect("the loop's condition saw it");
            match placed {
                Ok(placed) => self.after_append(change, done, placed),
                Err(refused) => self.finished.push((done, Err(refused.to_string()))),
            }
        }
    }

    fn append(&mut self, kind: RecordKind, body: &[u8]) -> Result<Placed, Refused> {
        let append = Append { stream: Stream::Main, kind: kind as u8, body, payload: Bytes::new(), reserve: false };
        self.journal.append(append)
    }

    /// Notes where entries lie and who waits for the record.
    fn after_append(&mut self, change: Change, done: T, placed: Placed) {
        let early = match change {
            Change::Append(..) => planted::is("ack-before-durable"),
            Change::Vote(..) => planted::is("vote-before-durable"),
            _ => false,
        };
        let mut appended = None;
        match change {
            Change::Append(group, entries) => {
                let generation = self.generation(&placed);
                note_places(&mut lock(&self.groups.get(group)), &entries, &placed, generation);
                appended = entries.last().map(|last| (group, last.id.index + 1));
                self.release_due |= self.journal.free_bytes() < self.limits.free_bytes_min;
            }
            Change::Purge(..) => self.release_due = true,
            Change::Vote(..) | Change::Truncate(..) | Change::State(_) => {}
        }
        if early {
            self.finished.push((done, Ok(())));
            return;
        }
        self.waiting.push_back(Waiting { sequence: placed.sequence, done, appended });
    }

    fn generation(&self, placed: &Placed) -> Generation {
        let info = self.journal.segment(placed.position.segment);
        info.expect("a record was just placed in the segment").generation
    }

    fn read_token(&mut self) -> ReadToken {
        self.read_next += 1;
        ReadToken(self.read_next)
    }

    fn drain_reads(&mut self) {
        while let Some((token, place)) = self.read_backlog.front().copied() {
            let Position { segment, offset } = place.position;
            match self.journal.read(token, segment, offset, place.record_bytes) {
                Ok(()) => {}
                Err(Refused::Busy) => return,
                Err(refused) => self.end_read(token, Err(MetaError::Stopped(refused.to_string()))),
            }
            self.read_backlog.pop_front();
        }
    }

    fn handle_read_end(&mut self, token: ReadToken, result: Result<AlignedBuf, plinth_journal::DiskError>) {
        let Some(read) = self.reads.get(&token) else { return };
        let (ReadFor::Caller { place, .. } | ReadFor::Carry { place }) = read;
        let body = match result {
            Ok(bytes) => open_record(&bytes.freeze(), place, self.journal.superblock().stamp),
            Err(error) => Err(MetaError::Stopped(error.to_string())),
        };
        self.end_read(token, body);
    }

    fn end_read(&mut self, token: ReadToken, body: ReadResult) {
        match self.reads.remove(&token) {
            Some(ReadFor::Caller { reply, .. }) => self.answered.push((reply, body)),
            Some(ReadFor::Carry { place }) => self.take_carried(place, body),
            None => {}
        }
    }
}

/// Reading old entries and letting old segments go.
impl<T, R> RaftLog<T, R> {
    /// Lets the oldest segment go, step by step.
    fn advance_release(&mut self) {
        if self.journal.fenced().is_some() {
            return;
        }
        match self.release.take() {
            None if self.release_due => self.begin_release(),
            None => {}
            Some(Release::Reading { segment, missing: 0, found }) => self.write_carry(segment, &found),
            Some(Release::Writing { segment, sequence }) if self.journal.durable() >= sequence => {
                match self.journal.release(segment) {
                    Ok(()) => self.release = Some(Release::Waiting),
                    Err(Refused::Busy) => self.release = Some(Release::Writing { segment, sequence }),
                    Err(refused) => tracing::warn!(%segment, %refused, "segment could not be released"),
                }
            }
            Some(other) => self.release = Some(other),
        }
    }

    /// Chooses the oldest sealed segment where it can go, and starts to read what must be carried.
    fn begin_release(&mut self) {
        self.release_due = false;
        let sealed = self.journal.segments().filter(|info| info.state == SegmentState::Sealed(Stream::Main));
        let Some(oldest) = sealed.min_by_key(|info| info.generation) else { return };
        let live = self.live_slots(oldest.segment);
        let live_bytes: u64 = live.values().flatten().map(|slot| u64::from(slot.length)).sum();
        let scarce = self.journal.free_bytes() < self.limits.free_bytes_min;
        if live_bytes > self.limits.carry_bytes_max && !scarce {
            return;
        }
        let mut found: BTreeMap<GroupId, Vec<LogEntry>> = BTreeMap::new();
        let mut places: Vec<Place> = Vec::new();
        for (group, slots) in live {
            for slot in slots {
                match (slot.cached(), slot.place) {
                    (Some(entry), _) => found.entry(group).or_default().push(entry),
                    (None, Some(place)) if places.iter().all(|known| known.sequence != place.sequence) => {
                        places.push(place);
                    }
                    _ => {}
                }
            }
        }
        let segment = oldest.segment;
        self.release = Some(Release::Reading { segment, missing: places.len(), found });
        for place in places {
            let token = self.read_token();
            self.reads.insert(token, ReadFor::Carry { place });
            self.read_backlog.push_back((token, place));
        }
        self.drain_reads();
    }

    /// Returns the live slots of a segment, by group.
    fn live_slots(&self, segment: SegmentIndex) -> BTreeMap<GroupId, Vec<Slot>> {
        let mut live = BTreeMap::new();
        for (group, view) in self.groups.all() {
            let view = lock(&view);
            let inside = |slot: &&Slot| slot.place.is_some_and(|place| place.position.segment == segment);
            let slots: Vec<Slot> = view.slots(0..u64::MAX).filter(inside).cloned().collect();
            if !slots.is_empty() {
                live.insert(group, slots);
            }
        }
        live
    }

    /// Takes a record that was read because entries in it must be carried.
    fn take_carried(&mut self, place: Place, body: ReadResult) {
        let Some(Release::Reading { segment, missing, found }) = &mut self.release else { return };
        let read = body.and_then(|body| Ok(decode_entries(&body)?));
        match read {
            Ok(entries) => {
                *missing = missing.saturating_sub(1);
                found.entry(entries.group).or_default().extend(entries.entries.into_iter().map(|(entry, _)| entry));
            }
            Err(error) => {
                tracing::error!(%segment, place = ?place.position, %error, "live log entries can't be read back");
                self.release = None;
            }
        }
    }

    /// Writes what must outlive the segment: entries that are still live there, and every group's state.
    fn write_carry(&mut self, segment: SegmentIndex, found: &BTreeMap<GroupId, Vec<LogEntry>>) {
        let mut last = None;
        for (group, slots) in self.live_slots(segment) {
            let read = found.get(&group).map_or(&[][..], Vec::as_slice);
            let by_id: BTreeMap<LogId, &LogEntry> = read.iter().map(|entry| (entry.id, entry)).collect();
            let live: Vec<LogEntry> =
                slots.iter().filter_map(|slot| by_id.get(&slot.id).map(|entry| (*entry).clone())).collect();
            if live.len() != slots.len() {
                // Entries were appended to the segment meanwhile, or none could be found: look again later.
                self.release_due = true;
                return;
            }
            for part in split(&live, self.limits.carry_record_bytes_max) {
                let body = encode_entries(group, None, part);
                match self.append(RecordKind::Carry, &body) {
                    Ok(placed) => {
                        let generation = self.generation(&placed);
                        note_places(&mut lock(&self.groups.get(group)), part, &placed, generation);
                        last = Some(placed.sequence);
                    }
                    Err(refused) => return self.put_off_release(segment, &refused),
                }
            }
        }
        for (group, _) in self.groups.all() {
            let mut body = Vec::new();
            let kind = encode(&self.groups, &Change::State(group), &mut body);
            match self.append(kind, &body) {
                Ok(placed) => last = Some(placed.sequence),
                Err(refused) => return self.put_off_release(segment, &refused),
            }
        }
        let sequence = last.unwrap_or(self.journal.durable());
        self.release = Some(Release::Writing { segment, sequence });
    }

    fn put_off_release(&mut self, segment: SegmentIndex, refused: &Refused) {
        tracing::debug!(%segment, %refused, "release of a log segment is put off");
        self.release = None;
        self.release_due = true;
    }
}

/// Encodes a change as a record's body.
fn encode(groups: &Groups, change: &Change, out: &mut Vec<u8>) -> RecordKind {
    match change {
        Change::Append(group, entries) => {
            let committed = lock(&groups.get(*group)).committed;
            encode_entries_into(*group, committed, entries, out);
            RecordKind::Entries
        }
        Change::Vote(group, vote) => {
            VoteRecord { group: *group, vote: vote.clone() }.encode(out);
            RecordKind::Vote
        }
        Change::Truncate(group, last) => {
            TruncateRecord { group: *group, last: *last }.encode(out);
            RecordKind::Truncate
        }
        Change::Purge(group, upto) => {
            PurgeRecord { group: *group, upto: *upto }.encode(out);
            RecordKind::Purge
        }
        Change::State(group) => {
            let view = groups.get(*group);
            let view = lock(&view);
            let (vote, committed, purged) = (view.vote.clone(), view.committed, view.purged);
            StateRecord { group: *group, vote, committed, purged }.encode(out);
            RecordKind::State
        }
    }
}

/// Notes where the entries of a record lie, for those that are still the group's.
fn note_places(view: &mut GroupView, entries: &[LogEntry], placed: &Placed, generation: Generation) {
    let mut offset = ENTRIES_HEAD_BYTES;
    let payload: usize = entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.payload.len()).sum();
    let record_bytes = head_and_body_bytes(ENTRIES_HEAD_BYTES + payload) as u32;
    for entry in entries {
        offset += ENTRY_HEAD_BYTES;
        if let Some(slot) = view.slot_mut(entry.id.index)
            && slot.id == entry.id
        {
            let (position, sequence) = (placed.position, placed.sequence);
            slot.place = Some(Place { position, generation, sequence, record_bytes, offset: offset as u32 });
        }
        offset += entry.payload.len();
    }
}

/// Splits entries into runs of at most `bytes_max` bytes of payload, at least one entry each.
fn split(entries: &[LogEntry], bytes_max: usize) -> Vec<&[LogEntry]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if at > start && bytes + entry.payload.len() > bytes_max {
            parts.push(&entries[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += entry.payload.len();
    }
    if start < entries.len() {
        parts.push(&entries[start..]);
    }
    parts
}

/// Verifies a record that was read back and returns its body.
fn open_record(bytes: &Bytes, place: &Place, stamp: u64) -> ReadResult {
    let corrupt =
        |what: &dyn std::fmt::Display| MetaError::Corrupt(format!("log record at {:?}: {what}", place.position));
    let record = verify_record(bytes, place.position, place.generation, stamp).map_err(|error| corrupt(&error))?;
    if record.head.sequence != place.sequence {
        return Err(corrupt(&"another record"));
    }
    Ok(bytes.slice_ref(record.body))
}

/// Puts one record into the views, as it happened.
fn replay(groups: &Groups, record: &Recovered) -> Result<(), String> {
    let bad = |error: &dyn std::fmt::Display| format!("record {} can't be read: {error}", record.sequence);
    let kind = RecordKind::try_from(record.kind).map_err(|error| bad(&error))?;
    match kind {
        RecordKind::Entries => {
            let entries = decode_entries(&record.body).map_err(|error| bad(&error))?;
            let view = groups.get(entries.group);
            let mut view = lock(&view);
            view.committed = view.committed.max(entries.committed);
            for (entry, offset) in &entries.entries {
                view.append(entry, Some(place_of(record, *offset))).map_err(|hole| bad(&hole))?;
            }
        }
        RecordKind::Carry => {
            let entries = decode_entries(&record.body).map_err(|error| bad(&error))?;
            let view = groups.get(entries.group);
            let mut view = lock(&view);
            for (entry, offset) in entries.entries.iter().rev() {
                let place = place_of(record, *offset);
                match view.slot_mut(entry.id.index) {
                    Some(slot) if slot.id == entry.id => slot.place = Some(place),
                    Some(slot) => return Err(bad(&format!("carries {} where {} stands", entry.id, slot.id))),
                    None => view.prepend(entry, place).map_err(|hole| bad(&hole))?,
                }
            }
        }
        RecordKind::Vote => {
            let vote = VoteRecord::decode(&record.body).map_err(|error| bad(&error))?;
            lock(&groups.get(vote.group)).vote = Some(vote.vote);
        }
        RecordKind::Truncate => {
            let truncate = TruncateRecord::decode(&record.body).map_err(|error| bad(&error))?;
            lock(&groups.get(truncate.group)).truncate_after(truncate.last);
        }
        RecordKind::Purge => {
            let purge = PurgeRecord::decode(&record.body).map_err(|error| bad(&error))?;
            lock(&groups.get(purge.group)).purge(purge.upto);
        }
        RecordKind::State => {
            let state = StateRecord::decode(&record.body).map_err(|error| bad(&error))?;
            let view = groups.get(state.group);
            let mut view = lock(&view);
            view.vote = state.vote;
            view.committed = view.committed.max(state.committed);
            if let Some(purged) = state.purged {
                view.purge(purged);
            }
        }
    }
    Ok(())
}

fn place_of(record: &Recovered, offset: u32) -> Place {
    let record_bytes = record.payload_offset + record.payload_bytes;
    let (position, generation, sequence) = (record.position, record.generation, record.sequence);
    Place { position, generation, sequence, record_bytes, offset }
}

/// Checks a view after the last record: no hole behind what was purged.
fn settle(group: GroupId, view: &mut GroupView, cache_bytes_max: usize) -> Result<(), String> {
    let expected = view.purged.map_or(0, |purged| purged.index + 1);
    if view.first_index() != expected {
        return Err(format!("{group} lacks the entries from {expected} to {}", view.first_index()));
    }
    view.committed = view.committed.min(view.last());
    view.set_durable(view.next_index());
    view.evict(cache_bytes_max);
    Ok(())
}

/// Returns the error of a journal that could not be opened.
pub(crate) fn journal_error(error: JournalError) -> MetaError {
    match error {
        JournalError::Invalid(reason) => MetaError::Invalid(reason),
        error @ (JournalError::NoSuperblock(_) | JournalError::Segment(..)) => MetaError::Corrupt(error.to_string()),
        error => MetaError::Stopped(format!("log: {error}")),
    }
}
