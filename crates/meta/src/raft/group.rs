//! One running group: a replica with its log, its machine and its peers, in our own words.

use super::fetch::Outgoing;
use super::machine::{Shard, ShardMachine, SnapshotFolder, blocking, drop_blocking};
use super::message::{
    AppendReply, AppendWords, BallotReply, BallotWords, Change, FetchBegin, LogPair, RaftCall, SnapshotBegin,
    SnapshotChunk, SnapshotEnd, TransferReply, TransferWords, VotePair, nothing, open,
};
use super::network::{Factory, Wires, overrules};
use super::snapshot::Incoming;
use super::store::LogStore;
use super::words::{
    Batch, Callback, Config, RaftEntry, from_log_entry, from_raft, from_raft_vote, to_raft, to_raft_vote,
};

use crate::log::LogId;
use crate::log::handle::GroupLog;
use crate::log::record::{ENTRY_HEAD_BYTES, LogEntry, VoteWords, decode_entry_head};
use crate::stats::ReplicaState;
use crate::{MetaError, MetaLimits};
use bytes::Bytes;
use openraft::async_runtime::watch::{Watch, WatchReceiver};
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::BasicNode;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use openraft::{AsyncRuntime, ChangeMembers, ReadPolicy, ServerState, SnapshotPolicy, TokioRuntime};
use plinth_protocol::meta::{Outcome, RaftGroupStatus};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

type Raft = openraft::Raft<Config, ShardMachine>;

/// Milliseconds that a removed leader goes on to lead, so that followers hear of its removal.
const STEP_DOWN_MS: u64 = 150;
/// Most milliseconds by which news of a commit may be late: of its removal, too.
const COMMIT_DELAY_MS_MAX: u64 = STEP_DOWN_MS / 3;
/// Bytes that a flush needs beside the rows: manifests, filters, indexes.
const FLUSH_ROOM_BYTES: u64 = 16 << 20;
/// How long a new learner may be silent before it is given up.
const LEARNER_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often is looked at how far it is.
const LEARNER_LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a snapshot may take on its way, all pieces together.
const SNAPSHOT_TIME_MS: u64 = 6 * 3600 * 1000;

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProposeError {
    /// Another node leads; nothing was proposed.
    NotLeader(Option<NodeId>),
    /// This node leads but may not take proposals at this moment; nothing was proposed.
    NotYet,
    /// It may or may not be decided: leadership went over meanwhile.
    Unknown,
    /// The replica has stopped; it may or may not be decided.
    Stopped(String),
}

/// One replica of one group. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RaftGroup {
    pub(crate) group: GroupId,
    node: NodeId,
    raft: Raft,
    shard: Arc<Shard>,
    log: GroupLog,
    pub(super) wires: Arc<Wires>,
    pub(super) folder: PathBuf,
    incoming: Arc<tokio::sync::Mutex<Option<Incoming>>>,
    pub(super) outgoing: Arc<tokio::sync::Mutex<Option<Outgoing>>>,
}

/// What a replica answers to a peer's call.
pub(crate) struct Answer {
    /// The reply's own record.
    pub(crate) body: Bytes,
    /// Bytes beside it.
    pub(crate) payload: Vec<Bytes>,
}

/// What a group's metrics show at one moment.
pub(crate) struct GroupMoment {
    pub(crate) state: ReplicaState,
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
}

impl RaftGroup {
    /// Starts the replica: recovers log and state, then takes part.
    pub(crate) async fn start(
        group: GroupId,
        node: NodeId,
        wires: Arc<Wires>,
        log: GroupLog,
        shard: Arc<Shard>,
        machine: ShardMachine,
        folder: PathBuf,
    ) -> Result<RaftGroup, MetaError> {
        let config = Arc::new(raft_config(group, &wires.limits)?);
        let store = LogStore::new(log.clone(), wires.limits.append_bytes_max);
        let factory = Factory { wires: wires.clone(), group };
        let raft = Raft::build(node.0, config, factory, store, machine)
            .await
            .map_err(|fatal| MetaError::Stopped(format!("{group}: {fatal}")))?;
        shard.set_running();
        raft.run();
        let (incoming, outgoing) = Default::default();
        Ok(RaftGroup { group, node, raft, shard, log, wires, folder, incoming, outgoing })
    }

    /// Founds the group with these voters, where it has not been founded. Every founding voter may call it.
    pub(crate) async fn initialize(&self, voters: &BTreeMap<NodeId, String>) -> Result<(), MetaError> {
        let members: BTreeMap<u64, BasicNode> =
            voters.iter().map(|(node, address)| (node.0, BasicNode::new(address))).collect();
        match self.raft.initialize(members).await {
            // An error of the interface means: the log is not empty, so the group has been founded.
            Ok(()) | Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(MetaError::Invalid(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(MetaError::Stopped(fatal.to_string())),
        }
    }

    /// Returns the node that the replica is on.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the replica's rows.
    pub(crate) fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// Returns the group's part of the log.
    pub(crate) fn log(&self) -> &GroupLog {
        &self.log
    }

    /// Proposes a batch; `take` is called with the outcomes once it is applied here, or with why not.
    pub(crate) async fn propose(
        &self,
        batch: Bytes,
        take: impl FnOnce(Result<Vec<Outcome>, ProposeError>) + Send + 'static,
    ) {
        // Openraft drops the responder without a word when it stops: the guard still answers.
        let mut guard = Some(TakeOnce(Some(take)));
        let responder = Callback::new(move |result: openraft::raft::ClientWriteResult<Config>| {
            if let Some(take) = guard.take() {
                take.call(match result {
                    Ok(response) => Ok(response.data),
                    Err(error) => Err(propose_error(&error)),
                });
            }
        });
        // Where openraft has stopped it drops the responder, and the guard answers.
        let _ = self.raft.client_write_ff(Batch(batch), Some(responder)).await;
    }

    /// Confirms that this node leads and has applied everything committed before the call.
    pub(crate) async fn read_index(&self) -> Result<(), Failure> {
        let linearizer = match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                return Err(self.not_leader(&forward));
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
                return Err(Failure::new(FailureKind::Unavailable, error.to_string()));
            }
            Err(RaftError::Fatal(fatal)) => return Err(stopped(&fatal)),
        };
        linearizer.await_ready(&self.raft).await.map(drop).map_err(|fatal| stopped(&fatal))
    }

    fn not_leader(&self, forward: &ForwardToLeader<Config>) -> Failure {
        let leader = forward.leader_id.map(NodeId).filter(|leader| *leader != self.node);
        let mut failure = Failure::new(FailureKind::NotLeader, format!("{} is led elsewhere", self.group));
        failure.leader = leader;
        failure
    }

    /// Returns who leads, what this replica is, and the term.
    pub(crate) fn moment(&self) -> GroupMoment {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let state = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => ReplicaState::Stopped,
            (_, ServerState::Learner) => ReplicaState::Learner,
            (_, ServerState::Follower) => ReplicaState::Follower,
            (_, ServerState::Candidate) => ReplicaState::Candidate,
            (_, ServerState::Leader) => ReplicaState::Leader,
        };
        GroupMoment { state, leader: metrics.current_leader.map(NodeId), term: metrics.current_term }
    }

    /// Returns why the replica has stopped, where it has.
    pub(crate) fn failure(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        // Stopped is what an orderly shutdown leaves behind: no failure.
        metrics.running_state.as_ref().err().filter(|fatal| !matches!(fatal, Fatal::Stopped)).map(ToString::to_string)
    }

    /// Returns the way to be told of any change of the replica's state.
    pub(crate) fn changes(&self) -> GroupChanges {
        GroupChanges(self.raft.metrics())
    }

    /// Returns whether this node leads the group.
    pub(crate) fn is_leader(&self) -> bool {
        self.moment().state == ReplicaState::Leader
    }

    /// Returns the replica's view of the group.
    pub(crate) fn status(&self) -> RaftGroupStatus {
        let stopped = self.failure();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        RaftGroupStatus {
            group: self.group,
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.as_ref().map_or(0, |id| id.index),
            voters: membership.voter_ids().map(NodeId).collect::<BTreeSet<_>>().into_iter().collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            matched: matched.map(|(node, id)| (NodeId(*node), id.as_ref().map_or(0, |id| id.index))).collect(),
            stopped,
            condition: None,
        }
    }

    /// Flushes the database and purges the log, where enough has been applied or enough time has gone by.
    pub(crate) async fn keep(&self, since_flush: Duration) -> bool {
        let limits = &self.wires.limits;
        let bytes = self.shard.unflushed_bytes.load(Ordering::Relaxed);
        let entries = self.shard.unflushed_entries.load(Ordering::Relaxed);
        let old = entries > 0 && since_flush >= Duration::from_millis(limits.flush_ms);
        let due = bytes >= limits.flush_bytes || entries >= limits.flush_entries || old;
        let due = due && self.may_flush(bytes);
        if due {
            // An error means that the replica has stopped, which its metrics tell.
            let _ = self.raft.trigger().snapshot().await;
        }
        if let Err(failure) = self.drop_offer(None).await {
            tracing::debug!(group = %self.group, %failure, "an unused checkpoint goes later");
        }
        if let Some(upto) = self.purge_upto() {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
        due
    }

    /// Whether a flush finds room: one that does not would stop the database.
    fn may_flush(&self, unflushed_bytes: u64) -> bool {
        let needed_bytes = unflushed_bytes.saturating_mul(2).saturating_add(FLUSH_ROOM_BYTES);
        match self.wires.files.free_bytes(&self.folder) {
            Ok(free_bytes) if free_bytes < needed_bytes => {
                tracing::warn!(group = %self.group, free_bytes, needed_bytes, "flush waits for room");
                false
            }
            // Where the file system does not say, the flush finds out.
            _ => true,
        }
    }

    /// Returns up to where the log may go: flushed, and beyond what is kept for followers that lag.
    fn purge_upto(&self) -> Option<u64> {
        if self.shard.is_log_held() {
            return None;
        }
        let flushed = self.shard.flushed()?.index;
        let wires = &self.wires;
        if let Some(keep_from) = self.first_lacked() {
            wires.retention.set_keep_from(self.group, Some(keep_from));
        }
        self.log.with_view(|view| wires.retention.purge_upto(self.group, view, flushed, &wires.limits))
    }

    /// Returns the first entry that some member lacks, on the leader.
    fn first_lacked(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?;
        // One of which nothing is known lacks everything; who is alone lacks nothing.
        Some(matched.values().map(|id| id.as_ref().map_or(0, |id| id.index + 1)).min().unwrap_or(u64::MAX))
    }

    /// Changes the membership; only on the leader.
    pub(crate) async fn change(&self, change: Change) -> Result<(), Failure> {
        let changed = match change {
            Change::AddLearner(learner) => {
                let node = learner.node;
                let added = self.raft.add_learner(node.0, BasicNode::new(learner.address), false).await;
                if added.is_ok() {
                    return self.wait_for_learner(node).await;
                }
                added.map(drop)
            }
            Change::Promote(node) => {
                let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
                self.raft.change_membership(voters, true).await.map(drop)
            }
            Change::Remove(node) => {
                let nodes = BTreeSet::from([node.0]);
                let voters: BTreeSet<u64> = self.raft.voter_ids().collect();
                let change = match voters.contains(&node.0) {
                    true => ChangeMembers::RemoveVoters(nodes),
                    false => ChangeMembers::RemoveNodes(nodes),
                };
                self.raft.change_membership(change, false).await.map(drop)
            }
            Change::Transfer(node) => return self.transfer(node).await,
        };
        match changed {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(self.not_leader(&forward)),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(Failure::new(FailureKind::Conflict, error.to_string()))
            }
            Err(RaftError::APIError(error)) => Err(Failure::new(FailureKind::Unknown, error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// Waits until a learner has what the log held at the call, for as long as it answers.
    async fn wait_for_learner(&self, node: NodeId) -> Result<(), Failure> {
        let (started, goal) = (Instant::now(), self.status().last_log);
        loop {
            let status = self.status();
            if status.leader != Some(self.node) {
                return Err(Failure::new(FailureKind::NotLeader, format!("{} is led elsewhere now", self.group)));
            }
            if status.matched.iter().any(|(peer, matched)| *peer == node && *matched >= goal) {
                return Ok(());
            }
            let silence = self.wires.ledger.silence(node).unwrap_or(Duration::MAX).min(started.elapsed());
            if silence >= LEARNER_SILENCE_MAX {
                let seconds = LEARNER_SILENCE_MAX.as_secs();
                let text = format!("it has not taken part in {} for {seconds} s", self.group);
                return Err(Failure::new(FailureKind::Unavailable, text));
            }
            tokio::time::sleep(LEARNER_LOOK_EVERY).await;
        }
    }

    async fn transfer(&self, node: NodeId) -> Result<(), Failure> {
        self.raft.trigger().transfer_leader(node.0).await.map_err(|fatal| stopped(&fatal))
    }

    /// Gives leadership to the voter whose log is longest, where this node leads and there is another.
    pub(crate) async fn give_away(&self) {
        self.give_away_to(|_| true).await;
    }

    /// As [`RaftGroup::give_away`], to one of the voters that `may` lead.
    pub(crate) async fn give_away_to(&self, may: impl Fn(NodeId) -> bool) {
        if !self.is_leader() {
            return;
        }
        let status = self.status();
        let others = status.matched.iter().filter(|(node, _)| *node != self.node && status.voters.contains(node));
        let others = others.filter(|(node, _)| may(*node));
        if let Some((node, _)) = others.max_by_key(|(_, matched)| *matched) {
            // Where it fails an election follows; nothing is lost but time.
            let _ = self.transfer(*node).await;
        }
    }

    /// Stops the replica. Its database is flushed first, so that the next start has little to apply.
    pub(crate) async fn stop(&self) {
        let shard = self.shard.clone();
        if let Err(error) = blocking(move || shard.flush()).await {
            tracing::warn!(group = %self.group, %error, "flush before the stop failed");
        }
        self.end().await;
    }

    /// Stops the replica as it is: what its database has not flushed, the log has.
    pub(crate) async fn end(&self) {
        // An error says that the core task has panicked, which the panic hook has reported.
        let _ = self.raft.shutdown().await;
    }
}

/// Answering the calls of other voters.
impl RaftGroup {
    /// Answers a call. The caller's identity has been checked.
    pub(crate) async fn handle(&self, call: RaftCall, body: &Bytes, payload: Bytes) -> Result<Answer, Failure> {
        let body = match call {
            RaftCall::FetchPiece => {
                let piece = self.handle_fetch_piece(open(body)?).await?;
                return Ok(Answer { body: nothing(), payload: vec![piece] });
            }
            RaftCall::Append => self.handle_append(open(body)?, payload).await,
            RaftCall::Vote | RaftCall::PreVote => self.handle_ballot(call, open(body)?).await,
            RaftCall::Transfer => self.handle_transfer(open(body)?).await,
            RaftCall::SnapshotBegin => self.handle_snapshot_begin(open(body)?).await,
            RaftCall::SnapshotChunk => self.handle_snapshot_chunk(open(body)?, payload).await,
            RaftCall::SnapshotEnd => self.handle_snapshot_end(open(body)?).await,
            RaftCall::Change => self.change(open(body)?).await.map(|()| nothing()),
            RaftCall::FetchBegin => self.handle_fetch_begin(open(body)?).await,
            RaftCall::FetchEnd => {
                let end: FetchBegin = open(body)?;
                self.drop_offer(Some(end.transfer)).await.map(|()| nothing())
            }
            RaftCall::Reach => Err(Failure::new(FailureKind::Invalid, "this call is for no group")),
        };
        Ok(Answer { body: body?, payload: Vec::new() })
    }

    async fn handle_append(&self, words: AppendWords, payload: Bytes) -> Result<Bytes, Failure> {
        check_term(words.vote.term)?;
        if words.keep_from.is_some() {
            self.wires.retention.set_keep_from(self.group, words.keep_from);
        }
        let mut entries = Vec::with_capacity(words.heads.len() / ENTRY_HEAD_BYTES);
        let mut at = 0;
        for head in words.heads.chunks(ENTRY_HEAD_BYTES) {
            let (id, kind, length) = decode_entry_head(head)?;
            if length > payload.len() - at {
                return Err(Failure::new(FailureKind::Corrupt, "entries are cut short"));
            }
            check_next(entries.last().map(|entry: &RaftEntry| from_raft(&entry.log_id)).or(words.previous), id)?;
            let entry = LogEntry { id, kind, payload: payload.slice(at..at + length) };
            entries.push(from_log_entry(entry)?);
            at += length;
        }
        let request = AppendEntriesRequest {
            vote: to_raft_vote(&words.vote),
            prev_log_id: words.previous.map(to_raft),
            entries,
            leader_commit: words.committed.map(to_raft),
        };
        let reply = match self.raft.append_entries(request).await.map_err(fatal_of)? {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(from_raft_vote(&vote)),
            AppendEntriesResponse::PartialSuccess(Some(last)) => AppendReply::Partial(from_raft(&last)),
            AppendEntriesResponse::PartialSuccess(None) => {
                return Err(Failure::new(FailureKind::Internal, "nothing of the entries was appended"));
            }
        };
        Ok(reply.to_bytes())
    }

    async fn handle_ballot(&self, call: RaftCall, words: BallotWords) -> Result<Bytes, Failure> {
        check_term(words.vote.term)?;
        let mut request = VoteRequest::new(to_raft_vote(&words.vote), words.last.map(to_raft));
        request.leadership_transfer = words.transfer;
        let response = match call {
            RaftCall::PreVote => self.raft.pre_vote(request).await,
            _ => self.raft.vote(request).await,
        }
        .map_err(fatal_of)?;
        let reply = BallotReply {
            vote: from_raft_vote(&response.vote),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(from_raft),
        };
        Ok(reply.to_bytes())
    }

    async fn handle_transfer(&self, words: TransferWords) -> Result<Bytes, Failure> {
        check_term(words.from.term)?;
        let request = TransferLeaderRequest::new(to_raft_vote(&words.from), words.to.0, words.last.map(to_raft));
        let reply = match self.raft.handle_transfer_leader(request).await.map_err(|fatal| stopped(&fatal))? {
            Ok(()) => TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => TransferReply::VoteChanged(VotePair {
                expected: from_raft_vote(&expected),
                actual: from_raft_vote(&actual),
            }),
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => TransferReply::NotFlushed(LogPair {
                expected: expected.as_ref().map(from_raft),
                actual: actual.as_ref().map(from_raft),
            }),
        };
        Ok(reply.to_bytes())
    }

    fn standing_vote(&self, asked: &VoteWords) -> VoteWords {
        self.log.with_view(|view| view.vote.clone()).unwrap_or_else(|| asked.clone())
    }

    async fn handle_snapshot_begin(&self, begin: SnapshotBegin) -> Result<Bytes, Failure> {
        check_term(begin.vote.term)?;
        let standing = self.standing_vote(&begin.vote);
        if !overrules(&standing, &begin.vote) {
            let (files, folder) = (self.wires.files.clone(), self.folder.clone());
            let incoming = blocking(move || Incoming::begin(files, &folder, begin.transfer)).await?;
            // One that broke off goes with its files.
            let before = self.incoming.lock().await.replace(incoming);
            drop_blocking(before).await?;
        }
        Ok(standing.to_bytes())
    }

    async fn handle_snapshot_chunk(&self, chunk: SnapshotChunk, payload: Bytes) -> Result<Bytes, Failure> {
        let mut slot = self.incoming.lock().await;
        let Some(mut incoming) = slot.take_if(|incoming| incoming.transfer() == chunk.transfer) else {
            return Err(Failure::new(FailureKind::Conflict, "another snapshot is being received"));
        };
        // On an error the transfer is dropped, and its folder with it.
        let taken = blocking(move || {
            incoming.take(&chunk.name, chunk.offset, payload)?;
            Ok(incoming)
        });
        *slot = Some(taken.await?);
        Ok(nothing())
    }

    async fn handle_snapshot_end(&self, end: SnapshotEnd) -> Result<Bytes, Failure> {
        check_term(end.vote.term)?;
        let incoming = self.incoming.lock().await.take_if(|incoming| incoming.transfer() == end.transfer);
        let Some(incoming) = incoming else {
            return Err(Failure::new(FailureKind::Conflict, "another snapshot is being received"));
        };
        let files = end.files;
        let folder = blocking(move || incoming.finish(&files)).await?;
        let meta = end.snapshot.to_raft()?;
        tracing::info!(group = %self.group, last = ?end.snapshot.last, "snapshot received");
        let snapshot = super::machine::RaftSnapshot { meta, snapshot: SnapshotFolder::Files(folder) };
        let response = self.raft.install_full_snapshot(to_raft_vote(&end.vote), snapshot).await;
        let response = response.map_err(|fatal| stopped(&fatal))?;
        Ok(from_raft_vote(&response.vote).to_bytes())
    }
}

/// Tells of changes of a replica's state.
pub(crate) struct GroupChanges(Metrics);

type Metrics = <<TokioRuntime as AsyncRuntime>::Watch as Watch>::Receiver<openraft::RaftMetrics<Config>>;

impl GroupChanges {
    /// Waits for the next change; false once the replica is gone.
    pub(crate) async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// Calls a closure once: with what it is given, or, when dropped unused, with `Unknown`.
struct TakeOnce<F: FnOnce(Result<Vec<Outcome>, ProposeError>)>(Option<F>);

impl<F: FnOnce(Result<Vec<Outcome>, ProposeError>)> TakeOnce<F> {
    fn call(mut self, result: Result<Vec<Outcome>, ProposeError>) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}

impl<F: FnOnce(Result<Vec<Outcome>, ProposeError>)> Drop for TakeOnce<F> {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err(ProposeError::Stopped("the replica has stopped".into())));
        }
    }
}

fn propose_error(error: &ClientWriteError<Config>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) if forward.reason == ForwardReason::LeaseExpired => {
            ProposeError::NotYet
        }
        ClientWriteError::ForwardToLeader(forward) => ProposeError::NotLeader(forward.leader_id.map(NodeId)),
        ClientWriteError::LogEntryDiscarded(_) => ProposeError::Unknown,
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => ProposeError::Unknown,
    }
}

fn stopped(fatal: &Fatal<Config>) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("replica stopped: {fatal}"))
}

fn fatal_of(error: RaftError<Config>) -> Failure {
    Failure::new(FailureKind::Unavailable, error.to_string())
}

/// Terms and indexes that a message may name stay below this: counting never gets there, and what comes next can
/// always be counted.
const COUNT_MAX: u64 = 1 << 56;

fn check_term(term: u64) -> Result<(), Failure> {
    match term < COUNT_MAX {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Invalid, format!("term {term} is none of ours"))),
    }
}

/// Checks that an entry follows the one before it, as openraft takes for granted.
fn check_next(before: Option<LogId>, id: LogId) -> Result<(), Failure> {
    let follows = before.is_none_or(|before| before.index.checked_add(1) == Some(id.index) && before.term <= id.term);
    match follows && id.index < COUNT_MAX && id.term < COUNT_MAX {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Invalid, format!("entry {id} does not follow {before:?}"))),
    }
}

/// Openraft's settings. Snapshots and purging are ordered by [`RaftGroup::keep`], never by its own policy.
fn raft_config(group: GroupId, limits: &MetaLimits) -> Result<openraft::Config, MetaError> {
    if limits.commit_delay_ms > COMMIT_DELAY_MS_MAX {
        let text = format!("commit_delay_ms is {}, at most {COMMIT_DELAY_MS_MAX}", limits.commit_delay_ms);
        return Err(MetaError::Invalid(text));
    }
    let config = openraft::Config {
        cluster_name: format!("plinth-{group}"),
        election_timeout_min: limits.election_ms_min,
        election_timeout_max: limits.election_ms_max,
        heartbeat_interval: limits.heartbeat_ms,
        // Under load appends prove liveness as well.
        heartbeat_min_interval: Some(limits.heartbeat_ms / 2),
        install_snapshot_timeout: SNAPSHOT_TIME_MS,
        max_payload_entries: limits.append_entries_max,
        replication_lag_threshold: limits.snapshot_lag_entries,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        removed_leader_step_down: openraft::StepDownPolicy::After(STEP_DOWN_MS),
        allow_log_reversion: Some(false),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| MetaError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_limits_suit_openraft() {
        raft_config(GroupId(1), &MetaLimits::default()).unwrap();
    }
}
