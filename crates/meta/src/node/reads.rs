//! Linearizable reads: one confirmation of leadership for all reads that wait.

use super::proposer::not_leader;
use crate::log::engine::lock;
use crate::raft::group::RaftGroup;
use crate::stats::ReplicaState;
use plinth_protocol::{Failure, FailureKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

type Waiter = oneshot::Sender<Result<(), Failure>>;

/// What a caller is told to wait where too many reads wait, in milliseconds.
const BUSY_RETRY_MS: u64 = 50;

/// The reads that wait in front of one group. Shared between callers and the group's task.
pub(crate) struct Reads {
    group: RaftGroup,
    waiting_max: usize,
    waiting: Mutex<Vec<Waiter>>,
    wake: Notify,
    pub(crate) answered: AtomicU64,
    pub(crate) rounds: AtomicU64,
}

impl Reads {
    /// Makes the queue of a group; [`Reads::run`] must be spawned.
    pub(crate) fn new(group: RaftGroup, waiting_max: usize) -> Arc<Reads> {
        Arc::new(Reads {
            group,
            waiting_max,
            waiting: Mutex::default(),
            wake: Notify::new(),
            answered: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
        })
    }

    /// Waits until this replica has applied everything that was committed before the call, and led then.
    pub(crate) async fn ready(&self, deadline: Instant) -> Result<(), Failure> {
        let moment = self.group.moment();
        if moment.state != ReplicaState::Leader {
            return Err(not_leader(moment.leader));
        }
        let (done, answer) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.len() >= self.waiting_max {
                let mut failure = Failure::new(FailureKind::Busy, "too many reads wait");
                failure.retry_after_ms = Some(BUSY_RETRY_MS);
                return Err(failure);
            }
            waiting.push(done);
        }
        self.wake.notify_one();
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::new(FailureKind::Unavailable, "the replica is stopping")),
            Err(_) => Err(Failure::new(FailureKind::Unavailable, "leadership not confirmed before the deadline")),
        }
    }

    /// Confirms leadership, batch after batch, for as long as the group lives.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let batch = std::mem::take(&mut *lock(&self.waiting));
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            let result = self.group.read_index().await;
            self.rounds.fetch_add(1, Ordering::Relaxed);
            self.answered.fetch_add(batch.len() as u64, Ordering::Relaxed);
            for waiter in batch {
                // The caller may have stopped waiting.
                let _ = waiter.send(result.clone());
            }
        }
    }
}
