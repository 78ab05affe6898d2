//! The log's thread, and its face towards the rest of the crate.
//!
//! One thread and one ring per node drive the [`RaftLog`] engine; callers change a group's view at
//! once, under its lock, and send the change to the thread, which makes it durable and answers.

use super::LogId;
use super::engine::{Change, Groups, LogLimits, Opened, Place, RaftLog, ReadResult, journal_error, lock};
use super::record::{LogEntry, VoteWords, decode_entries};
use super::view::GroupView;
use crate::MetaError;
use plinth_journal::driver::{self, Engine, QueueBounds, SendRefused};
use plinth_journal::{
    Completion, DiskIdentity, Format, Handle, JournalOptions, JournalStats, Operation, SegmentState, UringDisk,
};
use plinth_protocol::{ClusterId, DiskId, GroupId, HybridTime, Incarnation, NodeId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Called once a change is durable, or with why it never will be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), String>) + Send>;
type ReadDone = Box<dyn FnOnce(ReadResult) + Send>;

/// Segments that entries must leave alone.
const SEGMENTS_RESERVED: u32 = 2;
/// Requests that may wait for the log's thread.
const REQUESTS_MAX: usize = 1 << 16;
/// Bytes of entries that may wait for the log's thread.
const REQUEST_BYTES_MAX: usize = 256 << 20;
/// How long a caller waits before it tries a full queue again.
const QUEUE_RETRY: Duration = Duration::from_millis(1);

/// What other threads ask of the log's thread.
pub(crate) enum Request {
    Change(Change, Done),
    Read(Place, ReadDone),
    Stat(oneshot::Sender<LogStat>),
}

/// Counters of the log since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogStat {
    pub(crate) journal: JournalStats,
    /// Bytes that ordinary entries can still take, segments that are still to be made included.
    pub(crate) free_bytes: u64,
    /// Bytes of those of them that stand on the disk already.
    pub(crate) made_bytes: u64,
    pub(crate) size_bytes: u64,
    /// Entries wait for room.
    pub(crate) is_full: bool,
    /// Records with live entries that can't be read back.
    pub(crate) damaged: usize,
}

/// Where the log lies and how large it may grow.
pub(crate) struct LogConfig {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) folder: PathBuf,
    /// Makes an empty log under this id; otherwise the folder must hold one.
    pub(crate) format: Option<u128>,
    pub(crate) segment_bytes: u32,
    pub(crate) segment_count_max: u32,
    pub(crate) cache_bytes_max: usize,
}

struct LogEngine {
    log: RaftLog<Done, ReadDone>,
    hung_up: bool,
}

impl LogEngine {
    fn stat(&self) -> LogStat {
        let journal = self.log.journal();
        let free = journal.segments().filter(|info| info.state == SegmentState::Free).count();
        LogStat {
            journal: journal.stats(),
            free_bytes: journal.free_bytes(),
            made_bytes: free as u64 * u64::from(journal.record_bytes_max()),
            size_bytes: journal.size_bytes(),
            is_full: self.log.is_full(),
            damaged: self.log.damaged(),
        }
    }

    fn answer(&mut self) {
        for (done, result) in self.log.poll_finished() {
            done(result);
        }
        for (done, result) in self.log.poll_answered() {
            done(result);
        }
    }
}

impl Engine for LogEngine {
    type Request = Request;

    fn handle_request(&mut self, _now: Instant, request: Request) {
        match request {
            Request::Change(change, done) => self.log.handle_change(change, done),
            Request::Read(place, done) => self.log.handle_read(place, done),
            Request::Stat(reply) => {
                // The asker may have given up.
                let _ = reply.send(self.stat());
            }
        }
    }

    fn handle_completion(&mut self, now: Instant, completion: Completion) {
        self.log.handle_completion(now, completion);
    }

    fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        self.log.poll_disk(now)
    }

    fn handle_turn(&mut self, _now: Instant) {
        self.log.handle_turn();
        self.answer();
    }

    fn deadline(&self) -> Option<Instant> {
        self.log.deadline()
    }

    fn is_finished(&self) -> bool {
        self.hung_up && self.log.is_idle()
    }

    fn handle_hangup(&mut self, _now: Instant) {
        self.hung_up = true;
        self.log.stop();
    }
}

/// The running log of a node.
pub(crate) struct NodeLog {
    handle: Handle<Request>,
    groups: Arc<Groups>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Every record below this sequence number is durable.
    pub(crate) floor: Arc<AtomicU64>,
    /// Drawn at random when the log was formatted.
    pub(crate) log_id: u128,
    /// Counts the starts.
    pub(crate) boot: u64,
}

impl NodeLog {
    /// Opens the log, or makes an empty one where the configuration says so. Blocks while it is read back.
    pub(crate) fn open(config: LogConfig) -> Result<NodeLog, MetaError> {
        let groups = Arc::new(Groups::default());
        let floor = Arc::new(AtomicU64::new(0));
        let (shared, shared_floor) = (groups.clone(), floor.clone());
        let bounds = QueueBounds { requests_max: REQUESTS_MAX, bytes_max: REQUEST_BYTES_MAX };
        let opened = driver::spawn("raft-log", bounds, move || {
            open_engine(&config, shared, shared_floor).map_err(Opening::Meta)
        });
        let (handle, (log_id, boot), thread) = opened.map_err(|opening| match opening {
            Opening::Meta(error) => error,
            Opening::Thread(error) => MetaError::io("start the raft log's thread")(error),
        })?;
        Ok(NodeLog { handle, groups, thread: Mutex::new(Some(thread)), floor, log_id, boot })
    }

    /// Returns the groups that the log knows.
    pub(crate) fn known_groups(&self) -> Vec<GroupId> {
        self.groups.all().into_iter().map(|(group, _)| group).collect()
    }

    /// Returns one group's part of the log.
    pub(crate) fn group(&self, group: GroupId) -> GroupLog {
        GroupLog { group, view: self.groups.get(group), handle: self.handle.clone() }
    }

    /// Returns the log's counters.
    pub(crate) async fn stat(&self) -> Option<LogStat> {
        let (reply, answer) = oneshot::channel();
        self.handle.send(Request::Stat(reply), 0).ok()?;
        answer.await.ok()
    }

    /// Writes what stands once more and ends the thread. All [`GroupLog`]s must have been dropped.
    pub(crate) async fn close(self) {
        for (group, _) in self.groups.all() {
            let change = Request::Change(Change::State(group), Box::new(|_| {}));
            // A fenced or ended log has nothing to close.
            let _ = self.handle.send(change, 0);
        }
        let thread = lock(&self.thread).take();
        drop(self.handle);
        if let Some(thread) = thread {
            // The thread's panic has been reported by the panic hook.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Why the log's thread did not start.
enum Opening {
    Meta(MetaError),
    Thread(std::io::Error),
}

impl From<std::io::Error> for Opening {
    fn from(error: std::io::Error) -> Self {
        Opening::Thread(error)
    }
}

type OpenedEngine = (LogEngine, UringDisk, (u128, u64));

fn open_engine(config: &LogConfig, groups: Arc<Groups>, floor: Arc<AtomicU64>) -> Result<OpenedEngine, MetaError> {
    let disk = match config.format {
        Some(log_id) => {
            let mut disk = UringDisk::create(&config.folder).map_err(journal_error)?;
            plinth_journal::format(&mut disk, &log_format(config, log_id)).map_err(journal_error)?;
            disk
        }
        None => UringDisk::open(&config.folder).map_err(journal_error)?,
    };
    let limits = LogLimits {
        cache_bytes_max: config.cache_bytes_max,
        carry_bytes_max: u64::from(config.segment_bytes) / 8,
        carry_record_bytes_max: (config.segment_bytes as usize / 8).min(1 << 20),
        free_bytes_min: u64::from(config.segment_bytes) * u64::from(config.segment_count_max) / 4,
    };
    let options = log_options();
    // The seam of time: this runs on the log's own thread, which goes on with the same clock.
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    let Opened { log, disk, log_id, boot, cut_records } =
        RaftLog::open(now, config.node, disk, groups, floor, options, limits)?;
    if cut_records > 0 {
        tracing::info!(records = cut_records, "torn tail of the raft log cut");
    }
    Ok((LogEngine { log, hung_up: false }, disk, (log_id, boot)))
}

/// Returns how the journal of a log keeps its segments. The reserve is for purges, votes and what a release repeats, and
/// stands on the disk before it is needed: a file system that is full must not take it away.
pub(crate) fn log_options() -> JournalOptions {
    JournalOptions {
        segments_reserved: SEGMENTS_RESERVED,
        segments_ready: SEGMENTS_RESERVED + 1,
        ..JournalOptions::default()
    }
}

/// Returns how the journal of a log is formatted.
pub(crate) fn log_format(config: &LogConfig, log_id: u128) -> Format {
    let identity = DiskIdentity { cluster: config.cluster, disk: DiskId(log_id), incarnation: Incarnation(1) };
    Format {
        identity,
        segment_bytes: config.segment_bytes,
        segment_count_max: config.segment_count_max,
        segment_count_initial: 2,
        fill: plinth_journal::Fill::Written,
        stamp: (log_id >> 64) as u64 ^ log_id as u64,
    }
}

/// One group's part of the log. Cheap to clone; one caller at a time changes it.
#[derive(Clone)]
pub(crate) struct GroupLog {
    group: GroupId,
    view: Arc<Mutex<GroupView>>,
    handle: Handle<Request>,
}

/// An entry that is not cached: its number in the list, its id and where it lies.
type Missing = (usize, LogId, Place);

impl GroupLog {
    /// Appends entries: readable on return, durable when `done` is called.
    pub(crate) async fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), MetaError> {
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        {
            let mut view = lock(&self.view);
            for entry in &entries {
                view.append(entry, None).map_err(|hole| MetaError::Corrupt(hole.to_string()))?;
            }
        }
        self.send(Request::Change(Change::Append(self.group, entries), done), bytes).await
    }

    /// Waits until everything that the group's view shows is durable.
    pub(crate) async fn settle(&self) -> Result<(), MetaError> {
        self.change(Change::State(self.group)).await
    }

    /// Saves a vote: durable on return.
    pub(crate) async fn save_vote(&self, vote: VoteWords) -> Result<(), MetaError> {
        lock(&self.view).vote = Some(vote.clone());
        self.change(Change::Vote(self.group, vote)).await
    }

    /// Drops the entries behind `last`: durable on return.
    pub(crate) async fn truncate_after(&self, last: Option<LogId>) -> Result<(), MetaError> {
        lock(&self.view).truncate_after(last);
        self.change(Change::Truncate(self.group, last)).await
    }

    /// Drops the entries up to `upto`. Where a crash undoes it, they are dropped again later.
    pub(crate) async fn purge(&self, upto: LogId) -> Result<(), MetaError> {
        lock(&self.view).purge(upto);
        self.send(Request::Change(Change::Purge(self.group, upto), Box::new(|_| {})), 0).await
    }

    /// Notes up to where the group is committed; written with the next entries, and at a clean stop.
    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        lock(&self.view).committed = committed;
    }

    /// Looks at the group's view.
    pub(crate) fn with_view<R>(&self, look: impl FnOnce(&GroupView) -> R) -> R {
        look(&lock(&self.view))
    }

    /// Returns the latest time stamp of any entry that was ever in the log.
    pub(crate) fn time(&self) -> HybridTime {
        lock(&self.view).time.0
    }

    /// Returns the entries of a range, as far as they exist, from its start on; ends early behind
    /// `bytes_max` bytes, but not before the first entry.
    pub(crate) async fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogEntry>, MetaError> {
        loop {
            let (mut entries, missing) = self.collect(range.clone(), bytes_max);
            if missing.is_empty() {
                return Ok(entries.into_iter().flatten().collect());
            }
            if self.fetch(&mut entries, &missing).await? {
                return Ok(entries.into_iter().flatten().collect());
            }
        }
    }

    /// Returns cached entries of a range, and the places of the others by their number in the list.
    fn collect(&self, range: Range<u64>, bytes_max: usize) -> (Vec<Option<LogEntry>>, Vec<Missing>) {
        let view = lock(&self.view);
        let (mut entries, mut missing, mut bytes) = (Vec::new(), Vec::new(), 0usize);
        for slot in view.slots(range) {
            bytes = bytes.saturating_add(slot.length as usize);
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            let cached = slot.cached();
            if cached.is_none() {
                let place = slot.place.expect("only entries with a place leave the cache");
                missing.push((entries.len(), slot.id, place));
            }
            entries.push(cached);
        }
        (entries, missing)
    }

    /// Reads what is missing from the journal. Returns false where it has gone meanwhile.
    async fn fetch(
        &self,
        entries: &mut [Option<LogEntry>],
        missing: &[(usize, LogId, Place)],
    ) -> Result<bool, MetaError> {
        let mut bodies = BTreeMap::new();
        for (_, _, place) in missing {
            if let std::collections::btree_map::Entry::Vacant(vacant) = bodies.entry(place.sequence) {
                let (done, answer) = oneshot::channel();
                let reply: ReadDone = Box::new(move |body| drop(done.send(body)));
                self.send(Request::Read(*place, reply), 0).await?;
                vacant.insert(answer);
            }
        }
        let mut read: BTreeMap<LogId, LogEntry> = BTreeMap::new();
        for (_, answer) in bodies {
            let body = answer.await.map_err(|_| stopped())?;
            match body.and_then(|body| Ok(decode_entries(&body)?)) {
                Ok(record) => read.extend(record.entries.into_iter().map(|(entry, _)| (entry.id, entry))),
                // Purged or moved meanwhile: the segment may be another's by now.
                Err(_) if self.has_moved(missing) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        for (at, id, place) in missing {
            let entry = read.remove(id);
            entries[*at] =
                Some(entry.ok_or_else(|| MetaError::Corrupt(format!("log record {:?} lacks {id}", place.position)))?);
        }
        Ok(true)
    }

    fn has_moved(&self, missing: &[(usize, LogId, Place)]) -> bool {
        let view = lock(&self.view);
        missing.iter().any(|(_, id, place)| {
            !view.slots(id.index..id.index + 1).any(|slot| slot.id == *id && slot.place == Some(*place))
        })
    }

    /// Sends a change and waits until it is durable.
    async fn change(&self, change: Change) -> Result<(), MetaError> {
        let (done, answer) = oneshot::channel();
        let reply: Done = Box::new(move |result| drop(done.send(result)));
        self.send(Request::Change(change, reply), 0).await?;
        answer.await.map_err(|_| stopped())?.map_err(MetaError::Stopped)
    }

    /// Sends a request, waiting where the queue is full.
    async fn send(&self, mut request: Request, bytes: usize) -> Result<(), MetaError> {
        loop {
            match self.handle.send(request, bytes) {
                Ok(()) => return Ok(()),
                Err(SendRefused::Gone(_)) => return Err(stopped()),
                Err(SendRefused::Busy(back)) => request = back,
            }
            tokio::time::sleep(QUEUE_RETRY).await;
        }
    }
}

fn stopped() -> MetaError {
    MetaError::Stopped("the raft log's thread has ended".into())
}
