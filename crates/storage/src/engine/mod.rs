//! The engine of one disk: decides everything, does no I/O.
//!
//! Requests come in through [`Engine::handle_request`], wait in the queue of their class, and turn
//! into appends and reads of the journal. What the journal tells comes back in log order and is
//! applied to the index in that order: the index in RAM is at every moment what a recovery of the
//! durable records would build. Nothing is answered before it is durable.

mod checkpointing;
mod compaction;
mod delete;
mod put;
mod read;
mod recovery;

pub use recovery::{Opened, RecoveryReport};

use crate::dead::DeadRecords;
use crate::index::{Index, IndexEntry, Place};
use crate::queue::{Queues, limit};
use crate::space::{Space, stop_bytes};
use crate::stats::{DiskStats, add};
use bytes::Bytes;
use checkpointing::Checkpointing;
use compaction::Compaction;
use plinth_journal::{
    Completion, Event, Journal, JournalOptions, NewSegments, Operation, Placed, Position, ReadToken, SegmentIndex,
    Sequence, head_and_body_bytes,
};
use plinth_protocol::buffer::BLOCK_BYTES;
use plinth_protocol::ids::{DiskId, Incarnation};
use plinth_protocol::storage::{
    DiskStat, FragmentEntry, FragmentPage, IoClass, LIST_FRAGMENTS_MAX, ListFragments, StorageAction, StorageReply,
};
use plinth_protocol::{Failure, FailureKind, FragmentId};
use read::ReadWork;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Bytes of reads that are with the journal at one time: what a waiting read may have to let pass.
pub const READS_IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;
/// Bytes of requests begun in one turn, so that the disk gets its first write while others are checked.
const TURN_BYTES_MAX: u64 = 4 << 20;
/// How often waiting requests are looked through for passed deadlines.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes that a request without payload counts in its queue.
const SMALL_REQUEST_BYTES: u64 = BLOCK_BYTES as u64;

/// The answer to a request: the reply's header and, for a read, its frames.
pub type Answer = Result<(StorageReply, Bytes), Failure>;

/// The way back to whoever asked.
pub trait Ticket {
    /// Whether nobody waits for the answer any more.
    fn is_cancelled(&self) -> bool;

    /// Takes memory for a read's bytes out of the process's budget; false where too little is left.
    fn reserve(&mut self, bytes: u64) -> bool;

    /// Gives the answer.
    fn answer(self, answer: Answer);
}

/// A request to a disk.
pub struct Request<T> {
    /// Its class: queue and share.
    pub class: IoClass,
    /// What to do.
    pub action: StorageAction,
    /// Frames of a put, empty otherwise.
    pub payload: Bytes,
    /// When it came; for the duration that metrics show.
    pub arrived: Instant,
    /// When it need not begin any more.
    pub deadline: Instant,
    /// Who asked.
    pub ticket: T,
}

/// What the disk's thread is asked. Requests are moved once, into a queue: boxing them would cost more.
#[allow(clippy::large_enum_variant)]
pub enum Command<T> {
    /// Serve a request.
    Serve(Request<T>),
    /// Finish what has begun, write a checkpoint, stop.
    Shutdown,
}

/// Bounds and habits of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The journal's own.
    pub journal: JournalOptions,
    /// Bytes appended after which a checkpoint is written; also at least sixteen times its own size.
    pub checkpoint_log_bytes: u64,
    /// How often segments are looked through for some to release or compact.
    pub reclaim_interval: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            // Most of what a disk holds came in large records: each of their bytes is written once.
            journal: JournalOptions { new_segments: NewSegments::ByBatch, ..JournalOptions::default() },
            checkpoint_log_bytes: 1 << 30,
            reclaim_interval: Duration::from_millis(200),
        }
    }
}

/// A request that was let in, with what has been found out about it.
struct Admitted<T> {
    request: Request<T>,
    /// The header's wire bytes, once a put has passed its check.
    checked: Option<Vec<u8>>,
    /// Whether memory for a read's bytes has been reserved.
    reserved: bool,
}

/// What a queued append does once it is durable.
enum Effect<T> {
    Put { fragment: FragmentId, place: Place, payload: Bytes, waiters: Vec<Waiter<T>> },
    Tombstone { fragments: Vec<FragmentId>, segment: u32 },
    TombstoneMoved { fragments: Vec<FragmentId>, segment: u32 },
    Moved { fragment: FragmentId, from: Place, to: Place },
    CheckpointPart { place: Place },
    CheckpointRoot { place: Place },
}

/// An append that is not durable yet.
struct Appended<T> {
    sequence: Sequence,
    queued: Instant,
    effect: Effect<T>,
}

/// Someone who waits for an append.
struct Waiter<T> {
    class: IoClass,
    arrived: Instant,
    ticket: T,
}

/// Appends of a fragment that are not durable yet.
#[derive(Default)]
struct Pending {
    put: Option<Sequence>,
    deletes: u32,
}

/// How the engine comes to its end.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Phase {
    Serving,
    /// Asked to stop: finishes what it holds, then writes a checkpoint.
    Draining,
    /// The last checkpoint is set or was given up; the journal comes to rest.
    Stopping,
    /// The handles vanished without a shutdown: stops as if killed.
    Abandoned,
}

/// The engine of one disk.
pub struct Engine<T> {
    disk: DiskId,
    incarnation: Incarnation,
    options: EngineOptions,
    journal: Journal,
    segment_bytes: u64,
    index: Index,
    dead: DeadRecords,
    space: Space,
    /// Damage that is no fragment's entry: unknown kinds, unreadable stretches.
    damage_count: u64,
    /// Segments that hold such damage; each checkpoint says so, since a start from it does not look again.
    damaged_segments: BTreeSet<u32>,
    queues: Queues<Admitted<T>>,
    appended: VecDeque<Appended<T>>,
    pending: HashMap<FragmentId, Pending>,
    deletes: delete::Deletes<T>,
    reads: HashMap<ReadToken, (u64, ReadWork<T>)>,
    read_token: u64,
    read_bytes: u64,
    reads_blocked: bool,
    writes_blocked: bool,
    compaction: Option<Compaction>,
    /// A copy found no room: nothing is compacted until a record dies or a segment comes free.
    compaction_stuck: bool,
    reclaim_due: bool,
    /// When segments were last looked through.
    reclaimed: Option<Instant>,
    /// How often segments were looked through.
    looks: u64,
    /// The segment of the last append.
    last_segment: u32,
    checkpointing: Checkpointing,
    fenced: Option<String>,
    phase: Phase,
    /// More could be begun at once.
    turn_again: Option<Instant>,
    expiry_at: Option<Instant>,
    stats: Arc<DiskStats>,
}

impl<T: Ticket> Engine<T> {
    /// Returns the counters, shared with whoever exports them.
    pub fn stats(&self) -> Arc<DiskStats> {
        self.stats.clone()
    }

    /// Returns sizes and counters as `DiskStat` words.
    pub fn stat(&self) -> DiskStat {
        DiskStat {
            disk: self.disk,
            incarnation: self.incarnation,
            size_bytes: self.journal.size_bytes(),
            used_bytes: self.space.live_bytes(),
            fragments: self.index.count() as u64,
            fenced: self.fenced.clone(),
            quarantined: self.index.quarantined() as u64 + self.damage_count,
            write_stop_bytes: Some(self.write_stop_bytes()),
        }
    }

    fn write_stop_bytes(&self) -> u64 {
        stop_bytes(self.journal.size_bytes(), self.segment_bytes, false)
    }

    /// Returns what is known of a fragment: for the tests and the simulator's invariants.
    pub fn entry(&self, fragment: FragmentId) -> Option<IndexEntry> {
        self.index.get(fragment)
    }

    /// Returns the bytes of memory that the index takes.
    pub fn index_memory_bytes(&self) -> usize {
        self.index.memory_bytes()
    }

    /// Returns how often all segments were looked through for some to release or compact: for the tests.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// Returns how many requests wait or are under way.
    pub fn in_flight(&self) -> usize {
        self.queues.count() + self.appended.len() + self.reads.len() + self.deletes.waiting()
    }

    /// Takes a request: refuses it, answers it from RAM, or queues it.
    pub fn handle_request(&mut self, now: Instant, request: Request<T>) {
        if self.phase != Phase::Serving {
            return self.refuse(request, Failure::new(FailureKind::Unavailable, "the disk is shutting down"));
        }
        let bytes = match &request.action {
            StorageAction::Put(_) => request.payload.len() as u64 + SMALL_REQUEST_BYTES,
            StorageAction::Read(read) => match self.index.get(read.fragment) {
                None => return self.refuse(request, Failure::new(FailureKind::NotFound, "no such fragment")),
                Some(entry) => {
                    let frames = u64::from(read.count) * plinth_protocol::frame::FRAME_BYTES as u64;
                    frames.min(u64::from(entry.place.payload_blocks) * BLOCK_BYTES as u64)
                }
            },
            StorageAction::Delete(_) | StorageAction::Stat(_) => SMALL_REQUEST_BYTES,
            StorageAction::List(list) => {
                let page = self.list(list);
                return self.answer(now, request, page);
            }
            StorageAction::Disk => {
                let stat = StorageReply::Disk(self.stat());
                return self.answer(now, request, Ok((stat, Bytes::new())));
            }
        };
        let class = request.class;
        if let Err(admitted) = self.queues.push(class, bytes, Admitted { request, checked: None, reserved: false }) {
            add(&self.stats.refused_busy, 1);
            let retry_after_ms = Some(limit(class).retry_after_ms);
            let busy = Failure::new(FailureKind::Busy, format!("the {class:?} queue is full"));
            self.refuse(admitted.request, Failure { retry_after_ms, ..busy });
        }
        self.expiry_at.get_or_insert(now + EXPIRY_INTERVAL);
    }

    fn list(&self, list: &ListFragments) -> Answer {
        if list.limit == 0 || list.limit > LIST_FRAGMENTS_MAX {
            return Err(Failure::new(FailureKind::Invalid, format!("a page has 1 to {LIST_FRAGMENTS_MAX} fragments")));
        }
        // A quarantined fragment is none that anybody could count on.
        let mut entries = self.index.iter_after(list.after).filter(|entry| !entry.quarantined);
        let fragments: Vec<FragmentEntry> = entries
            .by_ref()
            .take(list.limit as usize)
            .map(|entry| FragmentEntry {
                fragment: entry.fragment,
                bytes: u32::from(entry.place.payload_blocks) * BLOCK_BYTES as u32,
            })
            .collect();
        let more = entries.next().is_some();
        Ok((StorageReply::Fragments(FragmentPage { fragments, more }), Bytes::new()))
    }

    fn refuse(&self, request: Request<T>, failure: Failure) {
        request.ticket.answer(Err(failure));
    }

    fn answer(&self, now: Instant, request: Request<T>, answer: Answer) {
        let Request { class, arrived, ticket, .. } = request;
        self.finish(now, Waiter { class, arrived, ticket }, answer);
    }

    /// Answers and counts the time that it took.
    fn finish(&self, now: Instant, waiter: Waiter<T>, answer: Answer) {
        let operations = &self.stats.operations[waiter.class as usize - 1];
        operations.record_duration(now.saturating_duration_since(waiter.arrived));
        waiter.ticket.answer(answer);
    }

    /// Begins what the queues, the journal and the bounds allow.
    fn pump(&mut self, now: Instant) {
        let mut begun_bytes = 0;
        self.turn_again = None;
        loop {
            if begun_bytes >= TURN_BYTES_MAX {
                self.turn_again = Some(now);
                return;
            }
            let (writes, reads) = (!self.writes_blocked, !self.reads_blocked);
            let room = READS_IN_FLIGHT_BYTES_MAX.saturating_sub(self.read_bytes);
            let idle = self.read_bytes == 0;
            let ready = |_: IoClass, bytes: u64, admitted: &Admitted<T>| match admitted.request.action {
                StorageAction::Put(_) => writes,
                StorageAction::Read(_) | StorageAction::Stat(_) => reads && (bytes <= room || idle),
                _ => true,
            };
            let Some((_, bytes, admitted)) = self.queues.pop(ready) else { return };
            begun_bytes += bytes;
            self.begin(now, bytes, admitted);
        }
    }

    fn begin(&mut self, now: Instant, bytes: u64, admitted: Admitted<T>) {
        let request = &admitted.request;
        if request.ticket.is_cancelled() && !matches!(request.action, StorageAction::Delete(_)) {
            add(&self.stats.cancelled, 1);
            return;
        }
        if now >= request.deadline {
            return self.expire(admitted);
        }
        match request.action {
            StorageAction::Put(_) => self.begin_put(now, bytes, admitted),
            StorageAction::Read(_) => self.begin_read(now, bytes, admitted),
            StorageAction::Stat(_) => self.begin_stat(now, bytes, admitted),
            StorageAction::Delete(_) => self.begin_delete(now, admitted.request),
            StorageAction::List(_) | StorageAction::Disk => unreachable!("answered on arrival"),
        }
    }

    fn expire(&self, admitted: Admitted<T>) {
        add(&self.stats.errors_timeout, 1);
        let text = "the deadline passed before the work began";
        self.refuse(admitted.request, Failure::new(FailureKind::Unavailable, text));
    }

    /// Puts a request back to the front of its queue: the journal or the disk has no room right now.
    fn put_back(&mut self, bytes: u64, admitted: Admitted<T>) {
        self.queues.push_front(admitted.request.class, bytes, admitted);
    }

    fn expire_waiting(&mut self, now: Instant) {
        if self.expiry_at.is_none_or(|at| now < at) {
            return;
        }
        let gone = |admitted: &Admitted<T>| now >= admitted.request.deadline || admitted.request.ticket.is_cancelled();
        for admitted in self.queues.drain_where(gone) {
            if admitted.request.ticket.is_cancelled() {
                add(&self.stats.cancelled, 1);
            } else {
                self.expire(admitted);
            }
        }
        self.expiry_at = (self.queues.count() > 0).then_some(now + EXPIRY_INTERVAL);
    }

    fn drain_events(&mut self, now: Instant) {
        let mut others = Vec::new();
        // The journal may reuse a released segment as soon as anything is appended: what is known of
        // its old life goes before anything else is done.
        while let Some(event) = self.journal.poll_event() {
            match event {
                Event::Released(segment) => self.handle_released(segment),
                other => others.push(other),
            }
        }
        for event in others {
            match event {
                Event::Durable(sequence) => self.handle_durable(now, sequence),
                Event::Read(token, result) => self.handle_read(now, token, result),
                Event::Released(_) => unreachable!("taken out above"),
                Event::CheckpointSet => self.handle_checkpoint_set(),
                Event::Fenced(reason) => self.handle_fenced(now, reason),
            }
        }
    }

    fn handle_released(&mut self, segment: SegmentIndex) {
        self.dead.release(segment.0);
        self.space.forget(segment.0);
        (self.reclaim_due, self.compaction_stuck) = (true, false);
        add(&self.stats.segments_released, 1);
    }

    /// Applies, in log order, every append that is durable now.
    fn handle_durable(&mut self, now: Instant, durable: Sequence) {
        let mut records = 0;
        let mut oldest = now;
        while self.appended.front().is_some_and(|front| front.sequence <= durable) {
            let Appended { queued, effect, .. } = self.appended.pop_front().expect("front was seen");
            oldest = oldest.min(queued);
            records += 1;
            match effect {
                Effect::Put { fragment, place, payload, waiters } => {
                    self.apply_put(fragment, place);
                    add(&self.stats.written_bytes, payload.len() as u64);
                    for waiter in waiters {
                        self.finish(now, waiter, Ok((StorageReply::Stored, Bytes::new())));
                    }
                }
                Effect::Tombstone { fragments, segment } => self.apply_tombstone(&fragments, segment),
                Effect::TombstoneMoved { fragments, segment } => self.apply_tombstone_moved(&fragments, segment),
                Effect::Moved { fragment, from, to } => self.apply_moved(fragment, from, to),
                Effect::CheckpointPart { place } => self.apply_checkpoint_part(place),
                Effect::CheckpointRoot { place } => self.apply_checkpoint_root(place),
            }
        }
        if records > 0 {
            self.stats.sync.record_duration(now.saturating_duration_since(oldest));
            self.stats.batch_records.record(records);
        }
        self.finish_deletes(now, durable);
    }

    fn handle_fenced(&mut self, now: Instant, reason: String) {
        tracing::error!(disk = %self.disk, reason, "disk fenced: it takes no more writes");
        add(&self.stats.errors_eio, 1);
        let failure = fenced_failure(&reason);
        self.fenced = Some(reason);
        for appended in std::mem::take(&mut self.appended) {
            if let Effect::Put { waiters, .. } = appended.effect {
                waiters.into_iter().for_each(|waiter| self.finish(now, waiter, Err(failure.clone())));
            }
        }
        self.pending.clear();
        self.fail_deletes(now, &failure);
        self.compaction = None;
        self.checkpointing = Checkpointing::default();
    }

    fn stop_if_drained(&mut self, now: Instant) {
        if self.phase != Phase::Draining || self.in_flight() > 0 {
            return;
        }
        // What the last checkpoint does not hold would have to be scanned for at the next start.
        if self.fenced.is_none() && self.checkpointing.is_idle() && self.checkpointing.has_changes() {
            return self.begin_checkpoint(now);
        }
        if self.checkpointing.is_idle() {
            self.phase = Phase::Stopping;
            self.journal.stop();
        }
    }

    fn publish(&self) {
        let stats = &self.stats;
        stats.used_bytes.store(self.space.live_bytes(), Relaxed);
        stats.size_bytes.store(self.journal.size_bytes(), Relaxed);
        stats.write_stop_bytes.store(self.write_stop_bytes(), Relaxed);
        stats.fragments.store(self.index.count() as u64, Relaxed);
        stats.quarantined.store(self.index.quarantined() as u64 + self.damage_count, Relaxed);
        if self.fenced.is_some() && stats.fenced.get().is_none() {
            let _ = stats.fenced.set(self.fenced.clone().unwrap_or_default());
        }
    }

    /// Notes an append and what it will do.
    fn note_append(&mut self, now: Instant, placed: Placed, effect: Effect<T>) {
        let segment = placed.position.segment.0;
        self.space.begin(segment);
        // A segment was sealed for this one to be opened: perhaps it can be released now.
        self.reclaim_due |= std::mem::replace(&mut self.last_segment, segment) != segment;
        if !matches!(effect, Effect::CheckpointPart { .. } | Effect::CheckpointRoot { .. }) {
            self.checkpointing.note_change();
        }
        self.appended.push_back(Appended { sequence: placed.sequence, queued: now, effect });
    }
}

impl<T: Ticket + Send + 'static> plinth_journal::Engine for Engine<T> {
    type Request = Command<T>;

    fn handle_request(&mut self, now: Instant, command: Command<T>) {
        match command {
            Command::Serve(request) => Engine::handle_request(self, now, request),
            Command::Shutdown => self.handle_shutdown(),
        }
    }

    fn handle_completion(&mut self, now: Instant, completion: Completion) {
        Engine::handle_completion(self, now, completion);
    }

    fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        Engine::poll_disk(self, now)
    }

    fn handle_turn(&mut self, now: Instant) {
        Engine::handle_turn(self, now);
    }

    fn deadline(&self) -> Option<Instant> {
        Engine::deadline(self)
    }

    fn is_finished(&self) -> bool {
        Engine::is_finished(self)
    }

    fn handle_hangup(&mut self, _now: Instant) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Abandoned;
        }
    }
}

/// The face of the engine to a loop that drives it: the disk's thread, a test, the simulator.
impl<T: Ticket> Engine<T> {
    /// Takes the end of a disk operation.
    pub fn handle_completion(&mut self, now: Instant, completion: Completion) {
        self.journal.handle_completion(now, completion);
    }

    /// Returns the next operation for the disk.
    pub fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        self.journal.poll_disk(now)
    }

    /// Does what is due: applies what the journal tells, begins what can begin, reclaims space.
    pub fn handle_turn(&mut self, now: Instant) {
        self.drain_events(now);
        if self.phase == Phase::Abandoned {
            return;
        }
        self.expire_waiting(now);
        (self.writes_blocked, self.reads_blocked) = (false, false);
        self.pump(now);
        self.flush_deletes(now);
        if self.fenced.is_none() && self.phase != Phase::Stopping {
            self.reclaim(now);
            self.step_checkpoint(now);
        }
        self.stop_if_drained(now);
        self.publish();
    }

    /// Asks for a graceful end: what was begun is finished, a checkpoint is written.
    pub fn handle_shutdown(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
            self.compaction = None;
        }
    }

    /// Returns when [`Engine::handle_turn`] should come again although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let reclaim_at = self.next_look().filter(|_| self.reclaim_due);
        [self.journal.deadline(), self.turn_again, self.expiry_at, reclaim_at].into_iter().flatten().min()
    }

    /// Returns whether the end has come: nothing is under way any more.
    pub fn is_finished(&self) -> bool {
        match self.phase {
            Phase::Serving | Phase::Draining => false,
            Phase::Stopping => self.journal.is_idle() || self.fenced.is_some(),
            Phase::Abandoned => self.journal.is_idle(),
        }
    }
}

fn fenced_failure(reason: &str) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("the disk is fenced: {reason}"))
}

/// Puts the place of a record together from where the journal placed it.
fn place_of(position: Position, body_bytes: usize, payload_bytes: usize) -> Place {
    let block = position.offset as usize / BLOCK_BYTES;
    Place {
        segment: position.segment.0,
        block: u16::try_from(block).expect("a segment has at most 65,536 blocks"),
        body_bytes: u16::try_from(body_bytes).expect("bodies are bounded far below 64 KiB"),
        payload_blocks: u16::try_from(payload_bytes / BLOCK_BYTES).expect("payloads are bounded far below 256 MiB"),
    }
}

impl Place {
    /// Bytes of head and body on disk.
    fn head_bytes(self) -> usize {
        head_and_body_bytes(usize::from(self.body_bytes))
    }

    /// Bytes of the payload on disk.
    fn payload_bytes(self) -> usize {
        usize::from(self.payload_blocks) * BLOCK_BYTES
    }

    /// Bytes of the whole record on disk.
    fn record_bytes(self) -> u64 {
        (self.head_bytes() + self.payload_bytes()) as u64
    }

    /// Byte offset of the record's head in its segment.
    fn offset(self) -> u32 {
        u32::from(self.block) * BLOCK_BYTES as u32
    }

    fn segment_index(self) -> SegmentIndex {
        SegmentIndex(self.segment)
    }

    fn position(self) -> Position {
        Position { segment: self.segment_index(), offset: self.offset() }
    }
}
