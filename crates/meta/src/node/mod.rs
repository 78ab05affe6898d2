//! A voter: its groups, their leaders' duties, and what it answers.

mod admin;
mod duties;
mod groups;
mod proposer;
mod reads;
mod recovery;
mod voter_file;

use crate::ledger::Ledger;
use crate::log::engine::lock;
use crate::log::handle::NodeLog;
use crate::raft::group::{Answer, RaftGroup};
use crate::raft::machine::blocking;
use crate::raft::message::{Learner, RaftCall, RaftHeader, RaftReply};
use crate::raft::network::Wires;
use crate::state::{self, RocksMemory};
use crate::stats::{GroupStats, MetaStats, ReplicaState};
use crate::{MetaConfig, MetaError};
use bytes::Bytes;
use plinth_protocol::map::ClusterMap;
use plinth_protocol::meta::{
    AdminReply, AdminRequest, Command, GroupQuery, MetaRequest, Mutation, Outcome, Query, RaftStatus, Reply,
    TimedReply, VoterSight,
};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Epoch, Failure, FailureKind, GROUP_SYSTEM, GroupId, HybridTime, NodeId, RequestId};
use plinth_transport::{Link, Response};
use proposer::Proposer;
use reads::Reads;
use recovery::Ailment;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a stopping voter waits for another to take over its groups.
const HAND_OVER_MAX: Duration = Duration::from_millis(1_500);
/// Retention of deleted data where the asker does not tell its own, as gateways before this field did not.
const RETENTION_MS_UNTOLD: u64 = 60_000;
/// How long it waits for calls in flight to let go of the log.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// The metadata of one node: a voter of the system group and of object shards. Cheap to clone.
#[derive(Clone)]
pub struct MetaNode {
    inner: Arc<Inner>,
}

/// What a voter knows; nothing of it was confirmed by a majority.
#[derive(Debug, Clone)]
pub struct VoterReport {
    /// Its groups.
    pub raft: RaftStatus,
    /// The other voters as it hears them.
    pub voters: Vec<VoterSight>,
    /// Voters that refuse to hear this one, each with why.
    pub refused_by: Vec<(NodeId, String)>,
}

/// One open group with its queues and tasks.
pub(crate) struct OpenGroup {
    pub(crate) raft: RaftGroup,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) leader_changes: Arc<AtomicU64>,
    /// The database is damaged or has stopped: no reads are answered.
    pub(crate) is_fenced: AtomicBool,
    tasks: Vec<JoinHandle<()>>,
}

pub(crate) struct Inner {
    pub(crate) config: MetaConfig,
    pub(crate) wires: Arc<Wires>,
    pub(crate) ledger: Arc<Ledger>,
    memory: RocksMemory,
    log: tokio::sync::Mutex<Option<NodeLog>>,
    groups: RwLock<BTreeMap<GroupId, Arc<OpenGroup>>>,
    /// Replicas that are being brought back.
    ailments: Mutex<BTreeMap<GroupId, Ailment>>,
    duties: Mutex<Vec<JoinHandle<()>>>,
    requests: AtomicU64,
    /// Held while voters change: of two orders at once each would write the map that it read first.
    voters: tokio::sync::Mutex<()>,
    /// Whether the node is stopping.
    leaving: AtomicBool,
}

impl MetaNode {
    /// Opens the voter's log and databases, and takes part in its groups from then on. Returns without waiting for
    /// a leader. Fails with `Damaged` where the voter must not vote again.
    pub async fn start(config: MetaConfig, link: Arc<dyn Link>) -> Result<MetaNode, MetaError> {
        let inner = groups::open_node(config, link).await?;
        let duties = tokio::spawn(duties::run(Arc::downgrade(&inner)));
        let room = tokio::spawn(duties::watch_room(Arc::downgrade(&inner)));
        lock(&inner.duties).extend([duties, room]);
        Ok(MetaNode { inner })
    }

    /// Decides a mutation or answers a query. Fails with `NotLeader` where another node leads the group, with
    /// `Busy` where too much waits, with `Unknown` where a mutation may or may not have been decided: ask again
    /// with the same request id.
    pub async fn handle_meta(&self, request: MetaRequest, deadline: Instant) -> Result<Reply, Failure> {
        let (group, seen) = seen_by(&request);
        let answer = match request {
            MetaRequest::Mutate(mutation) => {
                // What the sender has seen is not part of what is decided.
                let mutation = Mutation { seen: None, ..mutation };
                self.inner.mutate(&mutation, seen, deadline).await.map(Reply::Outcome)
            }
            MetaRequest::Query(GroupQuery { group, query, .. }) => self.inner.query(group, query, deadline).await,
        };
        let reply = answer.map_err(|failure| self.inner.with_address(failure))?;
        match seen {
            Some(_) => self.inner.timed(group, reply.to_bytes()),
            None => Ok(reply),
        }
    }

    /// As [`MetaNode::handle_meta`], with the reply's bytes; listings are not taken apart on the way.
    pub async fn handle_meta_encoded(&self, request: MetaRequest, deadline: Instant) -> Result<Bytes, Failure> {
        match request {
            MetaRequest::Query(GroupQuery { group, query, seen }) => {
                let answer = self.inner.query_encoded(group, query, deadline).await;
                let reply = answer.map_err(|failure| self.inner.with_address(failure))?;
                match seen {
                    Some(_) => Ok(self.inner.timed(group, reply)?.to_bytes()),
                    None => Ok(reply),
                }
            }
            mutate => Ok(self.handle_meta(mutate, deadline).await?.to_bytes()),
        }
    }

    /// Answers a message of another voter, after its identity has been checked against group 0's record.
    pub async fn handle_raft(&self, from: NodeId, header: Bytes, payload: Bytes) -> Result<Response, Failure> {
        let header = RaftHeader::decode(&header)?;
        if header.from.node != from {
            return Err(Failure::new(FailureKind::Denied, format!("{from} speaks for {}", header.from.node)));
        }
        let ledger = &self.inner.ledger;
        ledger.admit(&header.from)?;
        ledger.check_addressee(header.expected).inspect_err(|failure| ledger.note_failure(from, failure))?;
        ledger.note_standing(from, header.refused.as_deref());
        if let Some(address) = &header.address {
            self.inner.wires.link.learn_address(from, address);
        }
        let clock = &self.inner.wires.clock;
        clock.note(from, header.wall_ms);
        let Answer { body, payload } = match header.call {
            RaftCall::Reach => {
                admin::reach(&self.inner, &Learner::decode(&header.body)?).await?;
                Answer { body: Bytes::new(), payload: Vec::new() }
            }
            call => {
                let group = self.inner.group_for(header.group, call).await?;
                if let Some(time) = header.time.filter(|_| call == RaftCall::Append && !group.raft.is_leader()) {
                    clock.follow(header.group, time);
                }
                group.raft.handle(call, &header.body, payload).await?
            }
        };
        let no_room = self.inner.wires.room.is_short();
        let (wall_ms, time) = (Some(clock.wall_ms()), clock.peek(header.group));
        let reply = RaftReply { from: self.inner.ledger.identity(), body, no_room, wall_ms, time };
        Ok(Response { header: reply.to_bytes(), payload })
    }

    /// Answers an operator. Changes of membership must reach the leader of the system group.
    pub async fn handle_admin(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        admin::handle(&self.inner, request).await
    }

    /// Returns what the voter knows of its groups and of the other voters, at once and from its own replicas.
    pub fn report(&self) -> VoterReport {
        let ledger = &self.inner.ledger;
        VoterReport { raft: self.inner.raft_status(), voters: ledger.sights(), refused_by: ledger.refused_by() }
    }

    /// Returns the cluster map of this node's own replica, where newer than `known`. Others may have gone on since.
    pub fn own_map(&self, known: Epoch) -> Option<ClusterMap> {
        let group = self.inner.group(GROUP_SYSTEM).ok()?;
        match group.raft.shard().reader().query(&Query::Map(None)) {
            Ok(Reply::Map(map)) if map.epoch > known => Some(map),
            _ => None,
        }
    }

    /// Ends the leader's watch over the nodes: this one is stopping, and shall not call itself up again.
    pub fn leave(&self) {
        self.inner.leaving.store(true, Ordering::Release);
    }

    /// Returns the voter's counters.
    pub async fn stats(&self) -> MetaStats {
        let log = match &*self.inner.log.lock().await {
            Some(log) => log.stat().await.unwrap_or_default(),
            None => Default::default(),
        };
        // The sizes of the databases' files are asked of the file system.
        let groups = self.inner.open_groups();
        let counted = tokio::task::spawn_blocking(move || groups.iter().map(|group| group_stats(group)).collect());
        MetaStats {
            groups: counted.await.unwrap_or_default(),
            log_batches: log.journal.batches,
            log_records: log.journal.records,
            log_bytes_written: log.journal.bytes,
            log_syncs: log.journal.syncs,
            log_free_bytes: log.free_bytes,
            log_size_bytes: log.size_bytes,
            no_room: self.inner.wires.room.shortage(),
            recovering: self.inner.recovering(),
            log_damaged: log.damaged as u64,
            refused_messages: self.inner.ledger.refused(),
        }
    }

    /// Gives leadership away, as far as others take it over within a moment; the node goes on serving.
    pub async fn hand_over(&self) {
        self.inner.hand_over().await;
    }

    /// Gives leadership away, flushes, and closes log and databases.
    pub async fn shutdown(self) {
        for task in lock(&self.inner.duties).drain(..) {
            task.abort();
        }
        self.inner.hand_over().await;
        // Without the log no message opens a group behind our back.
        let log = self.inner.log.lock().await.take();
        let groups = std::mem::take(&mut *self.inner.groups.write().unwrap_or_else(|e| e.into_inner()));
        for group in groups.values() {
            group.raft.stop().await;
            group.tasks.iter().for_each(JoinHandle::abort);
        }
        drop(groups);
        if let Some(log) = log {
            // A call that is still being answered may hold on to the log.
            if tokio::time::timeout(CLOSE_MAX, log.close()).await.is_err() {
                tracing::warn!("raft log was left open: calls are still in flight");
            }
        }
    }
}

impl Inner {
    /// Returns an open group.
    pub(crate) fn group(&self, group: GroupId) -> Result<Arc<OpenGroup>, Failure> {
        let groups = self.groups.read().unwrap_or_else(|e| e.into_inner());
        groups.get(&group).cloned().ok_or_else(|| MetaError::NoGroup(group).into())
    }

    /// Returns all open groups.
    pub(crate) fn open_groups(&self) -> Vec<Arc<OpenGroup>> {
        self.groups.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
    }

    /// Returns the group that a message is for; one that this node is to join is opened.
    async fn group_for(self: &Arc<Self>, group: GroupId, call: RaftCall) -> Result<Arc<OpenGroup>, Failure> {
        match self.group(group) {
            Ok(open) => Ok(open),
            Err(_) if lock(&self.ailments).get(&group).is_some_and(|ailment| ailment.is_closed) => {
                self.check_closed(group)?;
                self.group(group)
            }
            Err(_) if matches!(call, RaftCall::Append | RaftCall::SnapshotBegin) => {
                // A task of its own: the caller's deadline must not end it halfway, with the database still locked.
                let inner = self.clone();
                let joining = tokio::spawn(async move { groups::join(&inner, group).await });
                joining
                    .await
                    .map_err(|error| Failure::new(FailureKind::Unavailable, error.to_string()))?
                    .map_err(Into::into)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Puts a reply beside the group's time.
    fn timed(&self, group: GroupId, reply: Bytes) -> Result<Reply, Failure> {
        let time = self.wires.clock.peek(group).unwrap_or(HybridTime(0));
        Ok(Reply::Timed(TimedReply { time, reply }))
    }

    /// Decides a mutation in its group. `seen` is the highest time that its sender has seen anywhere.
    pub(crate) async fn mutate(
        &self,
        mutation: &Mutation,
        seen: Option<HybridTime>,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        self.check_closed(mutation.group)?;
        let group = self.group(mutation.group)?;
        let moment = group.raft.moment();
        if moment.state != ReplicaState::Leader {
            return Err(proposer::not_leader(moment.leader));
        }
        if state::grows(&mutation.command) {
            self.wires.room.check_growth(self.config.node, || group.raft.status().voters)?;
        }
        if seen.is_some() {
            group.proposer.now(seen);
        }
        group.proposer.mutate(mutation, deadline).await
    }

    /// Decides a command of this node's own.
    pub(crate) async fn command(&self, group: GroupId, command: Command, wait: Duration) -> Result<Outcome, Failure> {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        // The time first, as clients do: what is remembered and forgotten next stands side by side.
        let own = u128::from(self.config.seed) << 16 | u128::from(count as u16);
        let request = RequestId(u128::from((self.config.clock)()) << 80 | own);
        // Never repeated: each has an id of its own, so nothing depends on when it was issued.
        let mutation = Mutation { group, request, writer: None, token: None, command, issued: None, seen: None };
        self.mutate(&mutation, None, Instant::now() + wait).await
    }

    /// Returns a group that may be asked, once it has applied everything that was committed before the call.
    async fn readable(&self, group: GroupId, deadline: Instant) -> Result<Arc<OpenGroup>, Failure> {
        self.check_closed(group)?;
        let open = self.group(group)?;
        if open.is_fenced.load(Ordering::Acquire) {
            return Err(recovery::fenced());
        }
        open.reads.ready(deadline).await?;
        Ok(open)
    }

    /// Answers a query at a read index.
    pub(crate) async fn query(
        self: &Arc<Self>,
        group: GroupId,
        query: Query,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let open = self.readable(group, deadline).await?;
        let query = by_own_time(query, open.proposer.now(None));
        let reader = open.raft.shard().reader();
        let answer = match walks(&query) {
            true => blocking(move || Ok(reader.query(&query))).await?,
            false => reader.query(&query),
        };
        recovery::judge_read(self, &open, answer)
    }

    /// As [`Inner::query`], with the reply's bytes.
    async fn query_encoded(
        self: &Arc<Self>,
        group: GroupId,
        query: Query,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        let open = self.readable(group, deadline).await?;
        let query = by_own_time(query, open.proposer.now(None));
        let reader = open.raft.shard().reader();
        let walks = walks(&query);
        let answer = move || {
            let mut out = Vec::new();
            reader.query_encoded(&query, &mut out).map(|()| Bytes::from(out))
        };
        let answer = match walks {
            true => blocking(move || Ok(answer())).await?,
            false => answer(),
        };
        recovery::judge_read(self, &open, answer)
    }

    /// Says where the leader is that a failure names.
    fn with_address(&self, failure: Failure) -> Failure {
        let leader_address = failure.leader.and_then(|leader| self.ledger.address(leader));
        Failure { leader_address, ..failure }
    }

    /// Waits a little for others to lead the groups that this node leads.
    async fn hand_over(&self) {
        let groups = self.open_groups();
        for group in &groups {
            group.raft.give_away().await;
        }
        let handed = async {
            for group in &groups {
                let mut changes = group.raft.changes();
                let alone = group.raft.status().voters.len() < 2;
                while !alone && group.raft.is_leader() && changes.next().await {}
            }
        };
        // Where nobody takes over in time, an election follows.
        let _ = tokio::time::timeout(HAND_OVER_MAX, handed).await;
    }
}

/// Returns the group that a request is for, and what its sender has seen.
fn seen_by(request: &MetaRequest) -> (GroupId, Option<HybridTime>) {
    match request {
        MetaRequest::Mutate(mutation) => (mutation.group, mutation.seen),
        MetaRequest::Query(query) => (query.group, query.seen),
    }
}

/// Holds the age of rows that are asked for to the group's own time: no sender's clock makes deleted data old.
fn by_own_time(mut query: Query, now: HybridTime) -> Query {
    match &mut query {
        Query::DueDeletes(due) => {
            let age_ms = due.age_ms.unwrap_or(RETENTION_MS_UNTOLD);
            due.before = due.before.min(now.before(age_ms).next());
        }
        Query::FillIns(due) => due.before = due.before.min(now.before(due.age_ms.unwrap_or(0)).next()),
        _ => {}
    }
    query
}

/// Whether a query may walk over many rows: those leave the tasks' threads.
fn walks(query: &Query) -> bool {
    !matches!(
        query,
        Query::Object(_) | Query::Upload(_) | Query::Bucket(_) | Query::AccessKey(_) | Query::Map(_) | Query::Voters
    )
}

fn group_stats(open: &OpenGroup) -> GroupStats {
    let status = open.raft.status();
    let moment = open.raft.moment();
    let proposals = &open.proposer.stats;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (log_entries, log_bytes) = open.raft.log().with_view(|view| view.size());
    GroupStats {
        group: status.group,
        state: moment.state,
        leader: moment.leader,
        leader_changes: count(&open.leader_changes),
        term: moment.term,
        last_log: status.last_log,
        applied: status.applied,
        commit_buckets: std::array::from_fn(|at| count(&proposals.commit_buckets[at])),
        commit_us_total: count(&proposals.commit_us_total),
        mutations: count(&proposals.mutations),
        entries: count(&proposals.entries),
        failed_proposals: count(&proposals.failed),
        reads: count(&open.reads.answered),
        read_rounds: count(&open.reads.rounds),
        peer_lag: status.matched.iter().map(|(node, at)| (*node, status.last_log.saturating_sub(*at))).collect(),
        database_bytes: open.raft.shard().database_bytes(),
        log_entries: log_entries as u64,
        log_bytes,
        clock_stray_ms: open.proposer.stray_ms(),
    }
}
