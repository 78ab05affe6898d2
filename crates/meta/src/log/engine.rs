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
//!
//! A full log is no error: entries wait for room, and go on by themselves once there is some. What
//! makes room (purges, releases) and what must not wait (votes) may take the journal's reserve, and
//! passes waiting entries where their order does not matter.

use super::LogId;
use super::holdings::{Holding, Run};
use super::record::{
    ENTRIES_HEAD_BYTES, ENTRY_HEAD_BYTES, LogEntry, PurgeRecord, RecordKind, StateRecord, TruncateRecord, VoteRecord,
    VoteWords, decode_entries, encode_entries, encode_entries_into,
};
use super::replay::Replay;
use super::view::GroupView;
use crate::MetaError;
use crate::planted::{Bug, planted};
use bytes::Bytes;
use plinth_journal::record::verify_record;
use plinth_journal::{
    Append, Completion, Disk, Event, Generation, Journal, JournalError, JournalOptions, Operation, Placed, Position,
    ReadToken, Recovery, Refused, SegmentIndex, SegmentState, Sequence, Stream, head_and_body_bytes,
};
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::wire::Wire;
use plinth_protocol::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    Reading { segment: SegmentIndex, missing: usize, found: BTreeMap<Sequence, Vec<LogEntry>> },
    /// State and carry records wait for their sync.
    Writing { segment: SegmentIndex, sequence: Sequence },
    /// The journal has been told; [`Event::Released`] follows.
    Waiting,
}

/// Where carried entries of a group stand once that is durable; until then they are read at their old places.
struct Moved {
    sequence: Sequence,
    group: GroupId,
    entries: Vec<(LogId, Place)>,
}

/// An answered read of a record: the bytes of its body.
pub(crate) type ReadResult = Result<Bytes, MetaError>;

/// What a read is for.
enum ReadFor<R> {
    Caller {
        reply: R,
        place: Place,
    },
    /// Entries to be carried; whether this is the second try: one misdirected read is not rot.
    Carry {
        place: Place,
        is_last: bool,
    },
}

/// The engine. `T` names a change to its asker, `R` a read.
pub(crate) struct RaftLog<T, R> {
    journal: Journal,
    groups: Arc<Groups>,
    holdings: BTreeMap<GroupId, Holding>,
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
    moved: VecDeque<Moved>,
    /// A segment may have become free of live entries.
    release_due: bool,
    /// Entries wait for room.
    is_full: bool,
    /// The log is being closed: nothing waits for room any more.
    is_stopping: bool,
    scratch: Vec<u8>,
    /// Records with live entries that can't be read back, found while their segment was to go.
    damaged: BTreeSet<Sequence>,
}

/// Changes that wait for room, and what may pass them.
///
/// A vote may: it is no part of what waits, and a leader or candidate must not stand still. A purge may where all
/// that it drops has been written. The rest of a group keeps its order.
#[derive(Default)]
struct Held {
    /// Groups of which something waits, with the number of the first entry that does.
    groups: BTreeMap<GroupId, u64>,
}

impl Held {
    fn lets_pass(&self, change: &Change) -> bool {
        match change {
            Change::Append(..) => self.groups.is_empty(),
            Change::Vote(..) => true,
            Change::Purge(group, upto) => self.groups.get(group).is_none_or(|first| upto.index < *first),
            Change::Truncate(group, _) | Change::State(group) => !self.groups.contains_key(group),
        }
    }

    fn hold(&mut self, change: &Change) {
        if let Change::Append(group, entries) = change {
            let first = entries.first().map_or(0, |entry| entry.id.index);
            self.groups.entry(*group).or_insert(first);
        }
    }
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
        let mut replay = Replay::default();
        for record in recovery.by_ref() {
            replay.take(&record).map_err(damaged)?;
        }
        if let Some(damage) = recovery.damage().first() {
            return Err(damaged(format!("{damage:?}")));
        }
        replay.finish(&groups).map_err(damaged)?;
        let holdings = groups.all().into_iter().map(|(group, view)| (group, Holding::of_view(&lock(&view)))).collect();
        let cut_records = recovery.cut().map_or(0, |cut| cut.records);
        let (journal, disk) = recovery.resume(now, options).map_err(journal_error)?;
        let superblock = journal.superblock();
        let (log_id, boot) = (superblock.identity.disk.0, u64::from(superblock.mount));
        floor.store(journal.durable().0, Ordering::Release);
        let log = RaftLog {
            journal,
            groups,
            holdings,
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
            moved: VecDeque::new(),
            release_due: true,
            is_full: false,
            is_stopping: false,
            scratch: Vec::new(),
            damaged: BTreeSet::new(),
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

    /// Returns how many records with live entries were found that can't be read back. Their segments stay as long as
    /// the entries live, and the next start refuses such a log.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged.len()
    }

    /// Returns the journal, for its counters.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns whether entries wait for room.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Prepares a clean stop: the state of every group, then the floor slot. Entries that wait for room are given up:
    /// nobody was told that they are durable.
    pub(crate) fn stop(&mut self) {
        self.is_stopping = true;
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
        self.show_moved(sequence);
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

    /// Gives the journal what it takes; the rest waits for the next completion, or for room.
    fn drain_backlog(&mut self) {
        let (mut held, mut at) = (Held::default(), 0);
        while let Some((change, _)) = self.backlog.get(at) {
            if !held.lets_pass(change) {
                held.hold(change);
                at += 1;
                continue;
            }
            let reserve = !matches!(change, Change::Append(..));
            let mut body = std::mem::take(&mut self.scratch);
            body.clear();
            let kind = encode(&self.groups, change, &mut body);
            let placed = self.append(kind, &body, reserve);
            self.scratch = body;
            match placed {
                Err(Refused::Busy) => return,
                Err(Refused::Full) => {
                    let (change, _) = &self.backlog[at];
                    held.hold(change);
                    if reserve {
                        // Not even the reserve is left: nothing passes.
                        break;
                    }
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let (change, done) = self.backlog.remove(at).expect("the loop's condition saw it");
            match placed {
                Ok(placed) => self.after_append(change, done, placed),
                Err(refused) => self.finished.push((done, Err(refused.to_string()))),
            }
        }
        self.note_full(at < self.backlog.len() || !held.groups.is_empty());
    }

    /// Notes whether changes wait for room. A log that is being closed waits no longer.
    fn note_full(&mut self, is_full: bool) {
        if is_full && !self.is_full {
            tracing::warn!("raft log is full: entries wait until there is room");
            self.release_due = true;
        } else if self.is_full && !is_full {
            tracing::info!("raft log has room again");
        }
        self.is_full = is_full;
        if is_full && self.is_stopping {
            let given_up = self.backlog.drain(..).map(|(_, done)| (done, Err(Refused::Full.to_string())));
            self.finished.extend(given_up);
            self.is_full = false;
        }
    }

    /// Appends a record; `reserve` is for what makes room or must not wait for it.
    fn append(&mut self, kind: RecordKind, body: &[u8], reserve: bool) -> Result<Placed, Refused> {
        if !reserve && self.journal.is_reserve_in_use() {
            // The open segment may be one of the reserve's.
            return Err(Refused::Full);
        }
        let append = Append { stream: Stream::Main, kind: kind as u8, body, payload: Bytes::new(), reserve };
        self.journal.append(append)
    }

    /// Notes where entries lie and who waits for the record.
    fn after_append(&mut self, change: Change, done: T, placed: Placed) {
        let early = match change {
            Change::Append(..) => planted(Bug::AckEntriesBeforeDurable),
            Change::Vote(..) => planted(Bug::VoteBeforeDurable),
            _ => false,
        };
        let mut appended = None;
        match change {
            Change::Append(group, entries) => {
                let place = self.place(&placed, &entries);
                let view = self.groups.get(group);
                let mut view = lock(&view);
                for (id, place) in places_of(&entries, place) {
                    // A slot that has gone meanwhile was truncated: that change is on its way here.
                    if let Some(slot) = view.slot_mut(id.index).filter(|slot| slot.id == id) {
                        slot.place = Some(place);
                    }
                }
                self.holdings.entry(group).or_default().append(&entries, view.committed, place);
                appended = entries.last().map(|last| (group, last.id.index + 1));
                self.release_due |= self.journal.free_bytes() < self.limits.free_bytes_min;
            }
            Change::Vote(group, vote) => self.holdings.entry(group).or_default().set_vote(vote),
            Change::Truncate(group, last) => self.holdings.entry(group).or_default().truncate_after(last),
            Change::Purge(group, upto) => {
                self.holdings.entry(group).or_default().purge(upto);
                self.release_due = true;
            }
            Change::State(_) => {}
        }
        if early {
            self.finished.push((done, Ok(())));
            return;
        }
        self.waiting.push_back(Waiting { sequence: placed.sequence, done, appended });
    }

    /// Returns where the first payload of a record that was just placed lies.
    fn place(&self, placed: &Placed, entries: &[LogEntry]) -> Place {
        let info = self.journal.segment(placed.position.segment);
        let generation = info.expect("a record was just placed in the segment").generation;
        let payload: usize = entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.payload.len()).sum();
        let record_bytes = head_and_body_bytes(ENTRIES_HEAD_BYTES + payload) as u32;
        let (position, sequence) = (placed.position, placed.sequence);
        Place { position, generation, sequence, record_bytes, offset: (ENTRIES_HEAD_BYTES + ENTRY_HEAD_BYTES) as u32 }
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
        let (ReadFor::Caller { place, .. } | ReadFor::Carry { place, .. }) = read;
        let body = match result {
            Ok(bytes) => open_record(&bytes.freeze(), place, self.journal.superblock().stamp),
            Err(error) => Err(MetaError::Stopped(error.to_string())),
        };
        self.end_read(token, body);
    }

    fn end_read(&mut self, token: ReadToken, body: ReadResult) {
        match self.reads.remove(&token) {
            Some(ReadFor::Caller { reply, .. }) => self.answered.push((reply, body)),
            Some(ReadFor::Carry { place, is_last: false }) if body.is_err() => self.read_carried(place, true),
            Some(ReadFor::Carry { place, .. }) => self.take_carried(place, body),
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
        let segment = oldest.segment;
        let live = self.live_places(segment);
        let live_bytes: u64 = live.iter().map(|place| u64::from(place.record_bytes)).sum();
        if live_bytes > self.limits.carry_bytes_max && !self.may_carry_much(live_bytes) {
            return;
        }
        self.release = Some(Release::Reading { segment, missing: live.len(), found: BTreeMap::new() });
        for place in live {
            self.read_carried(place, false);
        }
        self.drain_reads();
    }

    /// Whether space is so scarce that many live entries of the oldest segment may be written once more. Only where that
    /// gains room: much of the log must be dead, and the copy must fit, in the reserve at worst, which the release fills
    /// again.
    fn may_carry_much(&self, carried_bytes: u64) -> bool {
        let segment_bytes = u64::from(self.journal.superblock().segment_bytes);
        // Records do not fill segments to the last byte.
        let fits = carried_bytes + segment_bytes / 4 <= self.journal.left_bytes();
        let made_bytes = self.journal.segments().count() as u64 * segment_bytes;
        let runs = self.holdings.values().flat_map(Holding::runs);
        let live_bytes: u64 = runs.map(|run| u64::from(run.place.record_bytes)).sum();
        let is_scarce = self.journal.free_bytes() < self.limits.free_bytes_min;
        is_scarce && fits && live_bytes <= made_bytes / 2
    }

    /// Asks for a record whose entries must be carried.
    fn read_carried(&mut self, place: Place, is_last: bool) {
        let token = self.read_token();
        self.reads.insert(token, ReadFor::Carry { place, is_last });
        self.read_backlog.push_back((token, place));
    }

    /// Returns the records of a segment in which entries are live.
    fn live_places(&self, segment: SegmentIndex) -> Vec<Place> {
        let runs = self.holdings.values().flat_map(|holding| holding.runs_in(segment));
        let by_sequence: BTreeMap<Sequence, Place> = runs.map(|run| (run.place.sequence, run.place)).collect();
        by_sequence.into_values().collect()
    }

    /// Takes a record that was read because entries in it must be carried.
    fn take_carried(&mut self, place: Place, body: ReadResult) {
        let Some(Release::Reading { segment, missing, found }) = &mut self.release else { return };
        let read = body.and_then(|body| Ok(decode_entries(&body)?));
        match read {
            Ok(record) => {
                let entries = record.entries.into_iter().map(|(entry, _)| entry).collect();
                if found.insert(place.sequence, entries).is_none() {
                    *missing = missing.saturating_sub(1);
                }
            }
            Err(error) => {
                if self.damaged.insert(place.sequence) {
                    tracing::error!(
                        %segment, place = ?place.position, %error,
                        "live log entries can't be read back: their segment stays; a restart before the other voters \
                         have let them go will refuse this log"
                    );
                }
                self.release = None;
            }
        }
    }

    /// Writes what must outlive the segment: entries that are still live there, and every group's state.
    fn write_carry(&mut self, segment: SegmentIndex, found: &BTreeMap<Sequence, Vec<LogEntry>>) {
        let mut last = None;
        let live: Vec<(GroupId, Run)> = self
            .holdings
            .iter()
            .flat_map(|(group, holding)| holding.runs_in(segment).map(move |run| (*group, *run)))
            .filter(|_| !planted(Bug::ReleaseWithoutCarry))
            .collect();
        // From the last entry to the first: recovery puts each in front of those that it has.
        for (group, run) in live.into_iter().rev() {
            let read = found.get(&run.place.sequence).map_or(&[][..], Vec::as_slice);
            let inside = |entry: &&LogEntry| (run.first..run.end).contains(&entry.id.index);
            let entries: Vec<LogEntry> = read.iter().filter(inside).cloned().collect();
            if entries.len() as u64 != run.end - run.first {
                return self.put_off_release(segment, &"a record lacks entries");
            }
            match self.carry(group, &run, &entries) {
                Ok(sequence) => last = Some(sequence),
                Err(refused) => return self.put_off_release(segment, &refused),
            }
        }
        let states: Vec<StateRecord> = self.holdings.iter().map(|(group, holding)| holding.state(*group)).collect();
        for state in states {
            match self.append(RecordKind::State, &state.to_wire(), true) {
                Ok(placed) => last = Some(placed.sequence),
                Err(refused) => return self.put_off_release(segment, &refused),
            }
        }
        let sequence = last.unwrap_or(self.journal.durable());
        self.release = Some(Release::Writing { segment, sequence });
    }

    /// Tells the views where carried entries stand, once they are durable there.
    fn show_moved(&mut self, durable: Sequence) {
        while let Some(Moved { group, entries, .. }) = self.moved.pop_front_if(|moved| moved.sequence <= durable) {
            let view = self.groups.get(group);
            let mut view = lock(&view);
            for (id, place) in entries {
                if let Some(slot) = view.slot_mut(id.index).filter(|slot| slot.id == id) {
                    slot.place = Some(place);
                }
            }
        }
    }

    /// Writes live entries of one run once more.
    fn carry(&mut self, group: GroupId, run: &Run, entries: &[LogEntry]) -> Result<Sequence, Refused> {
        let (mut runs, mut moved, mut last) = (Vec::new(), Vec::new(), run.place.sequence);
        for part in split(entries, self.limits.carry_record_bytes_max).into_iter().rev() {
            let placed = self.append(RecordKind::Carry, &encode_entries(group, None, part), true)?;
            let place = self.place(&placed, part);
            let sequence = placed.sequence;
            moved.push(Moved { sequence, group, entries: places_of(part, place).collect() });
            runs.insert(0, Run { place, first: part[0].id.index, end: part[0].id.index + part.len() as u64 });
            last = placed.sequence;
        }
        // Only now: where a part was refused the whole run is carried again later.
        self.moved.extend(moved);
        self.holdings.entry(group).or_default().carried(run, runs);
        Ok(last)
    }

    fn put_off_release(&mut self, segment: SegmentIndex, why: &dyn std::fmt::Display) {
        tracing::debug!(%segment, %why, "release of a log segment is put off");
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

/// Returns where each entry of a record lies, from the place of the first one.
fn places_of(entries: &[LogEntry], first: Place) -> impl Iterator<Item = (LogId, Place)> {
    entries.iter().scan(first, |place, entry| {
        let here = *place;
        place.offset += (ENTRY_HEAD_BYTES + entry.payload.len()) as u32;
        Some((entry.id, here))
    })
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

/// Returns the error of a journal that could not be opened.
pub(crate) fn journal_error(error: JournalError) -> MetaError {
    match error {
        JournalError::Invalid(reason) => MetaError::Invalid(reason),
        error @ (JournalError::NoSuperblock(_) | JournalError::Segment(..)) => MetaError::Corrupt(error.to_string()),
        error => MetaError::Stopped(format!("log: {error}")),
    }
}
