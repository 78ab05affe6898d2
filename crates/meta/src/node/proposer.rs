//! Mutations on their way into the log: all that wait become one entry.
//!
//! While `entries_in_flight_max` entries wait for their commit, mutations gather; then all of them,
//! within the bounds of an entry, go as the next one. So a lone mutation goes at once, and a crowd
//! shares one replication, one sync and one apply.

use crate::MetaLimits;
use crate::batch::{BatchBuilder, encode_mutation};
use crate::clock::NodeClock;
use crate::log::engine::lock;
use crate::raft::group::{ProposeError, RaftGroup};
use crate::state;
use crate::stats::COMMIT_BUCKETS_MS;
use plinth_protocol::meta::{Mutation, Outcome};
use plinth_protocol::{Failure, FailureKind, HybridTime, NodeId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long a leader that may not take proposals yet waits before it tries again.
const NOT_YET_DELAY: Duration = Duration::from_millis(10);
/// How far the last stamp in a group's log may lie back, in milliseconds. A longer gap means that the group stood still;
/// one above a day holds expiry up (`state::machine`).
const STAMP_GAP_MS_MAX: u64 = 60 * 60 * 1000;
/// What a caller is told to wait where the queue is full, in milliseconds.
const BUSY_RETRY_MS: u64 = 50;

struct Waiting {
    encoded: Vec<u8>,
    /// Row operations that applying it may take.
    rows: usize,
    since: Instant,
    reply: oneshot::Sender<Result<Outcome, Failure>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// Counters of one group's proposals.
#[derive(Default)]
pub(crate) struct ProposalStats {
    pub(crate) commit_buckets: [AtomicU64; 13],
    pub(crate) commit_us_total: AtomicU64,
    pub(crate) mutations: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl ProposalStats {
    fn record(&self, took: Duration) {
        let ms = took.as_millis() as u64;
        let bucket = COMMIT_BUCKETS_MS.partition_point(|bound| *bound < ms);
        self.commit_buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.commit_us_total.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        self.mutations.fetch_add(1, Ordering::Relaxed);
    }
}

/// The queue in front of one group. Shared between callers and the group's task.
pub(crate) struct Proposer {
    group: RaftGroup,
    limits: MetaLimits,
    clock: Arc<NodeClock>,
    queue: Mutex<Queue>,
    in_flight: AtomicUsize,
    wake: Notify,
    pub(crate) stats: ProposalStats,
}

impl Proposer {
    /// Makes the queue of a group; [`Proposer::run`] must be spawned.
    pub(crate) fn new(group: RaftGroup, limits: MetaLimits, clock: Arc<NodeClock>) -> Arc<Proposer> {
        Arc::new(Proposer {
            group,
            limits,
            clock,
            queue: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            wake: Notify::new(),
            stats: ProposalStats::default(),
        })
    }

    /// Queues a mutation and waits for its outcome.
    pub(crate) async fn mutate(&self, mutation: &Mutation, deadline: Instant) -> Result<Outcome, Failure> {
        state::check(self.group.group, mutation)?;
        let answer = self.enqueue(encode_mutation(mutation), state::row_operations(&mutation.command))?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::new(FailureKind::Unknown, "the replica is stopping")),
            Err(_) => Err(Failure::new(FailureKind::Unknown, "no commit before the deadline")),
        }
    }

    fn enqueue(&self, encoded: Vec<u8>, rows: usize) -> Result<oneshot::Receiver<Result<Outcome, Failure>>, Failure> {
        if encoded.len() > self.limits.mutation_bytes_max {
            let text = format!("mutation of {} bytes exceeds {}", encoded.len(), self.limits.mutation_bytes_max);
            return Err(Failure::new(FailureKind::Invalid, text));
        }
        let (reply, answer) = oneshot::channel();
        let mut queue = lock(&self.queue);
        if queue.bytes + encoded.len() > self.limits.queue_bytes_max {
            let mut failure = Failure::new(FailureKind::Busy, "too many mutations wait");
            failure.retry_after_ms = Some(BUSY_RETRY_MS);
            return Err(failure);
        }
        queue.bytes += encoded.len();
        queue.waiting.push_back(Waiting { encoded, rows, since: Instant::now(), reply });
        drop(queue);
        if self.in_flight.load(Ordering::Acquire) < self.limits.entries_in_flight_max {
            self.wake.notify_one();
        }
        Ok(answer)
    }

    /// Proposes what waits, for as long as the group lives.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            if self.in_flight.load(Ordering::Acquire) >= self.limits.entries_in_flight_max {
                self.wake.notified().await;
                continue;
            }
            let batch = self.take_batch();
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            self.propose(batch).await;
        }
    }

    /// Takes what fits into one entry; those whose caller has gone are dropped.
    fn take_batch(&self) -> Vec<Waiting> {
        let mut queue = lock(&self.queue);
        let (mut batch, mut bytes, mut rows) = (Vec::new(), 0, 0);
        while let Some(next) = queue.waiting.front() {
            let long = bytes + next.encoded.len() > self.limits.entry_bytes_max;
            let heavy = rows + next.rows > state::ENTRY_ROWS_MAX;
            if ((long || heavy) && !batch.is_empty()) || batch.len() >= self.limits.entry_mutations_max {
                break;
            }
            let next = queue.waiting.pop_front().expect("the loop's condition saw it");
            queue.bytes -= next.encoded.len();
            if next.reply.is_closed() {
                continue;
            }
            bytes += next.encoded.len();
            rows += next.rows;
            batch.push(next);
        }
        batch
    }

    async fn propose(self: &Arc<Self>, batch: Vec<Waiting>) {
        let bytes = batch.iter().map(|waiting| waiting.encoded.len()).sum();
        let mut builder = BatchBuilder::with_capacity(bytes);
        for waiting in &batch {
            builder.push(&waiting.encoded);
        }
        let payload = builder.finish(self.stamp());
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let proposer = self.clone();
        self.group.propose(payload, move |result| proposer.finish(batch, result)).await;
    }

    /// Returns a time after every entry of the log.
    fn stamp(&self) -> HybridTime {
        self.clock.stamp(self.group.group, self.floor(), || self.group.status().voters)
    }

    /// Returns the group's time, as its leader; later than `seen`, as far as the bound allows.
    pub(crate) fn now(&self, seen: Option<HybridTime>) -> HybridTime {
        self.clock.now(self.group.group, self.floor(), || self.group.status().voters, seen)
    }

    /// Returns how far the voters' clocks are from the group's time, where that is beyond the bound and this node leads.
    pub(crate) fn stray_ms(&self) -> i64 {
        if self.group.is_leader() { self.clock.stray_ms(self.group.group) } else { 0 }
    }

    /// The latest stamp in the log or in the rows.
    fn floor(&self) -> HybridTime {
        self.group.log().time().max(self.group.shard().time())
    }

    /// Moves the time on where this node leads; where nobody wrote for long, with an empty entry, so that the log tells
    /// an idle group from one that stood still.
    pub(crate) async fn keep_time(self: &Arc<Self>) {
        if !self.group.is_leader() {
            return;
        }
        let (floor, now) = (self.floor(), self.now(None));
        let idle = self.in_flight.load(Ordering::Acquire) == 0;
        if idle && floor != HybridTime(0) && now.millis().saturating_sub(floor.millis()) >= STAMP_GAP_MS_MAX {
            self.propose(Vec::new()).await;
        }
    }

    /// Answers the callers of a batch.
    fn finish(self: &Arc<Self>, batch: Vec<Waiting>, result: Result<Vec<Outcome>, ProposeError>) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        match result {
            Ok(outcomes) => {
                self.stats.entries.fetch_add(1, Ordering::Relaxed);
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    self.stats.record(waiting.since.elapsed());
                    // The caller may have stopped waiting.
                    let _ = waiting.reply.send(Ok(outcome));
                }
            }
            Err(ProposeError::NotYet) => return self.put_back(batch),
            Err(error) => {
                self.stats.failed.fetch_add(batch.len() as u64, Ordering::Relaxed);
                let failure = failure_of(&error);
                for waiting in batch {
                    let _ = waiting.reply.send(Err(failure.clone()));
                }
            }
        }
        self.wake.notify_one();
    }

    /// Lets a batch that was not proposed wait a little longer, in front.
    fn put_back(self: &Arc<Self>, batch: Vec<Waiting>) {
        let mut queue = lock(&self.queue);
        for waiting in batch.into_iter().rev() {
            queue.bytes += waiting.encoded.len();
            queue.waiting.push_front(waiting);
        }
        drop(queue);
        let proposer = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(NOT_YET_DELAY).await;
            proposer.wake.notify_one();
        });
    }
}

/// Makes the failure that sends a caller to the leader.
pub(crate) fn not_leader(leader: Option<NodeId>) -> Failure {
    let mut failure = Failure::new(FailureKind::NotLeader, "another node leads the group");
    failure.leader = leader;
    failure
}

fn failure_of(error: &ProposeError) -> Failure {
    match error {
        ProposeError::NotLeader(leader) => not_leader(*leader),
        ProposeError::NotYet => Failure::new(FailureKind::Unavailable, "the leader is not ready yet"),
        ProposeError::Unknown => Failure::new(FailureKind::Unknown, "leadership changed before the commit"),
        ProposeError::Stopped(reason) => Failure::new(FailureKind::Unknown, reason.clone()),
    }
}
