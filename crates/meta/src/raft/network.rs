//! Openraft's network on the transport: each call is one `Method::Raft` with our own header.
//!
//! Requests and replies carry the sender's identity; a reply from a voter that must not be heard is
//! an error here, so that openraft never counts it.

use super::machine::{RaftSnapshot, SnapshotFolder, blocking, drop_blocking};
use super::message::{
    AppendReply, AppendWords, BallotReply, BallotWords, RaftCall, RaftHeader, RaftReply, SnapshotBegin, SnapshotChunk,
    SnapshotEnd, SnapshotFile, SnapshotWords, TransferReply, TransferWords,
};
use super::words::{Config, RaftVote, from_raft, from_raft_vote, to_log_entry, to_raft, to_raft_vote};
use crate::clock::NodeClock;
use crate::files::Files;
use crate::ledger::Ledger;
use crate::log::record::{VoteWords, encode_entry_head};
use crate::retention::Retention;
use crate::room::Room;
use crate::{MetaError, MetaLimits};
use bytes::Bytes;
use futures_util::stream::FuturesOrdered;
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::{RPCOption, RaftNetworkFactory, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkV2};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, GroupId, Method, NodeId};
use plinth_transport::{Call, Link, Peer};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Pieces of a snapshot that are under way at one time: fewer than a receiver puts aside where they overtake each other.
pub(super) const PIECES_IN_FLIGHT: usize = 4;
/// How often a piece is tried before the transfer is given up.
pub(super) const PIECE_TRIES_MAX: u32 = 20;
/// Pause before a piece is tried again.
pub(super) const PIECE_RETRY: Duration = Duration::from_millis(500);

/// What all calls of a node share.
pub(crate) struct Wires {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) limits: MetaLimits,
    pub(crate) room: Room,
    pub(crate) retention: Retention,
    pub(crate) clock: Arc<NodeClock>,
    /// Counts snapshot transfers; with the session it makes their ids unique.
    pub(crate) transfers: AtomicU64,
}

impl Wires {
    /// Calls a voter and returns its reply's own record, after its identity has been checked.
    pub(crate) async fn call(
        &self,
        peer: &Peer,
        group: GroupId,
        call: RaftCall,
        body: Bytes,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, Failure> {
        Ok(self.send(peer, group, call, body, payload, deadline).await?.0)
    }

    /// As [`Wires::call`], without a payload there and with the reply's.
    pub(crate) async fn exchange(
        &self,
        peer: &Peer,
        group: GroupId,
        call: RaftCall,
        body: Bytes,
        deadline: Duration,
    ) -> Result<(Bytes, Bytes), Failure> {
        self.send(peer, group, call, body, Vec::new(), deadline).await
    }

    async fn send(
        &self,
        peer: &Peer,
        group: GroupId,
        call: RaftCall,
        body: Bytes,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(Bytes, Bytes), Failure> {
        let (from, expected) = (self.ledger.identity(), self.ledger.expected(peer.node));
        let wall_ms = Some(self.clock.wall_ms());
        let time = if call == RaftCall::Append { self.clock.peek(group) } else { None };
        let (refused, address) = (self.ledger.refusal_of(peer.node), self.link.own_address().map(str::to_owned));
        let header = RaftHeader { call, group, from, expected, body, refused, address, wall_ms, time }.to_bytes();
        let answer = self.link.call(peer, Call { method: Method::Raft, header, payload, deadline }).await;
        let answer = answer.inspect_err(|failure| self.ledger.note_failure(peer.node, failure))?;
        let reply = RaftReply::decode(&answer.header)?;
        if reply.from.node != peer.node {
            let text = format!("{} answered in the place of {}", reply.from.node, peer.node);
            return Err(Failure::new(FailureKind::Denied, text));
        }
        self.ledger.admit(&reply.from)?;
        self.ledger.note_standing(peer.node, None);
        self.clock.note(peer.node, reply.wall_ms);
        if let Some(time) = reply.time.filter(|_| self.clock.peek(group).is_none()) {
            self.clock.follow(group, time);
        }
        self.room.note_peer(peer.node, reply.no_room);
        Ok((reply.body, answer.payload))
    }

    /// Returns a new transfer's name.
    pub(crate) fn transfer(&self) -> u128 {
        let identity = self.ledger.identity();
        let count = self.transfers.fetch_add(1, Ordering::Relaxed);
        u128::from(identity.session) << 64 | u128::from(count)
    }
}

/// Makes the networks of one group.
pub(crate) struct Factory {
    pub(crate) wires: Arc<Wires>,
    pub(crate) group: GroupId,
}

impl RaftNetworkFactory<Config> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Network {
        Network { wires: self.wires.clone(), group: self.group, target: NodeId(target), address: node.addr.clone() }
    }
}

/// The way from one replica to one other.
pub(crate) struct Network {
    wires: Arc<Wires>,
    group: GroupId,
    target: NodeId,
    /// The address in the membership; the cluster map's goes before it.
    address: String,
}

impl Network {
    async fn call(
        &self,
        call: RaftCall,
        body: Bytes,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, Failure> {
        let address = self.wires.ledger.address(self.target).unwrap_or_else(|| self.address.clone());
        let peer = Peer { node: self.target, incarnation: None, address };
        self.wires.call(&peer, self.group, call, body, payload, deadline).await
    }

    async fn ballot(
        &self,
        call: RaftCall,
        rpc: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        let words = BallotWords {
            vote: from_raft_vote(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(from_raft),
            transfer: rpc.leadership_transfer,
        };
        let body = self.call(call, words.to_bytes(), Vec::new(), option.soft_ttl()).await.map_err(rpc_error)?;
        let reply = BallotReply::decode(&body).map_err(|error| rpc_error(error.into()))?;
        Ok(VoteResponse {
            vote: to_raft_vote(&reply.vote),
            vote_granted: reply.granted,
            last_log_id: reply.last.map(to_raft),
        })
    }

    /// Sends a checkpoint's files and has them installed.
    async fn send_snapshot(
        &self,
        vote: VoteWords,
        snapshot: SnapshotWords,
        folder: &Path,
    ) -> Result<VoteWords, Failure> {
        let transfer = self.wires.transfer();
        let deadline = Duration::from_millis(self.wires.limits.snapshot_chunk_ms);
        let begin = SnapshotBegin { transfer, vote: vote.clone(), snapshot: snapshot.clone() };
        let reply = self.call(RaftCall::SnapshotBegin, begin.to_bytes(), Vec::new(), deadline).await?;
        let standing = VoteWords::decode(&reply)?;
        if overrules(&standing, &vote) {
            return Ok(standing);
        }
        let listing = (self.wires.files.clone(), folder.to_owned());
        let names = blocking(move || listing.0.list(&listing.1).map_err(MetaError::io("list a checkpoint"))).await?;
        let mut files = Vec::new();
        for name in names {
            files.push(self.send_file(transfer, folder.join(&name), name, deadline).await?);
        }
        let end = SnapshotEnd { transfer, vote, snapshot, files };
        // Checking, syncing and opening a large database takes longer than a piece of it.
        let reply = self.call(RaftCall::SnapshotEnd, end.to_bytes(), Vec::new(), deadline * 30).await?;
        Ok(VoteWords::decode(&reply)?)
    }

    /// Sends a file, several pieces at a time.
    async fn send_file(
        &self,
        transfer: u128,
        path: PathBuf,
        name: String,
        deadline: Duration,
    ) -> Result<SnapshotFile, Failure> {
        let chunk_bytes = self.wires.limits.snapshot_chunk_bytes;
        let mut checksum = crc32fast::Hasher::new();
        let (mut offset, mut is_read) = (0u64, false);
        let mut flying = FuturesOrdered::new();
        loop {
            while !is_read && flying.len() < PIECES_IN_FLIGHT {
                let (files, path) = (self.wires.files.clone(), path.clone());
                let read =
                    move || files.read_at(&path, offset, chunk_bytes).map_err(MetaError::io("read a checkpoint"));
                let bytes = Bytes::from(blocking(read).await?);
                checksum.update(&bytes);
                let chunk = SnapshotChunk { transfer, name: name.clone(), offset }.to_bytes();
                offset += bytes.len() as u64;
                is_read = bytes.len() < chunk_bytes;
                flying.push_back(self.send_chunk(chunk, bytes, deadline));
            }
            match flying.next().await {
                Some(sent) => sent?,
                None => return Ok(SnapshotFile { name, size_bytes: offset, checksum: checksum.finalize() }),
            }
        }
    }

    /// Sends a piece, again where the call fails: a connection that breaks does not cost what has come.
    async fn send_chunk(&self, chunk: Bytes, bytes: Bytes, deadline: Duration) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let sent = self.call(RaftCall::SnapshotChunk, chunk.clone(), vec![bytes.clone()], deadline).await;
            tries += 1;
            let may_pass = |kind| matches!(kind, FailureKind::Unknown | FailureKind::Unavailable | FailureKind::Busy);
            match sent {
                Err(failure) if may_pass(failure.kind) && tries < PIECE_TRIES_MAX => {
                    tokio::time::sleep(PIECE_RETRY).await;
                }
                sent => return sent.map(drop),
            }
        }
    }
}

/// Passes requests on. One without entries, which only tells how far the log is committed, waits for `delay` at most:
/// whatever comes next tells the same, and goes in its place. So a steady leader tells its followers of a commit with
/// the entries that follow it, in one message instead of two.
fn with_entries(
    requests: impl Stream<Item = AppendEntriesRequest<Config>> + OptionalSend + Unpin + 'static,
    delay: Duration,
) -> impl Stream<Item = AppendEntriesRequest<Config>> + OptionalSend + Unpin + 'static {
    let merged = stream::unfold(requests.fuse(), move |mut requests| async move {
        let mut request = requests.next().await?;
        let deadline = Instant::now() + delay;
        while request.entries.is_empty() {
            match timeout_at(deadline, requests.next()).await {
                Ok(Some(next)) => request = next,
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, requests))
    });
    Box::pin(merged)
}

/// Whether the standing vote is one under which a leader with `vote` no longer leads.
pub(crate) fn overrules(standing: &VoteWords, vote: &VoteWords) -> bool {
    (standing.term, standing.node) > (vote.term, vote.node)
}

impl RaftNetworkV2<Config> for Network {
    type SnapshotData = SnapshotFolder;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Config>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        let mut heads = Vec::with_capacity(rpc.entries.len() * crate::log::record::ENTRY_HEAD_BYTES);
        let mut payload = Vec::with_capacity(rpc.entries.len());
        for entry in rpc.entries {
            let entry = to_log_entry(entry);
            encode_entry_head(&entry, &mut heads);
            if !entry.payload.is_empty() {
                payload.push(entry.payload);
            }
        }
        let words = AppendWords {
            vote: from_raft_vote(&rpc.vote),
            previous: rpc.prev_log_id.as_ref().map(from_raft),
            committed: rpc.leader_commit.as_ref().map(from_raft),
            heads: Bytes::from(heads),
            keep_from: self.wires.retention.keep_from(self.group),
        };
        let body =
            self.call(RaftCall::Append, words.to_bytes(), payload, option.soft_ttl()).await.map_err(rpc_error)?;
        match AppendReply::decode(&body).map_err(|error| rpc_error(error.into()))? {
            AppendReply::Success => Ok(AppendEntriesResponse::Success),
            AppendReply::Conflict => Ok(AppendEntriesResponse::Conflict),
            AppendReply::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(to_raft_vote(&vote))),
            AppendReply::Partial(last) => Ok(AppendEntriesResponse::PartialSuccess(Some(to_raft(last)))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Config>, RPCError<Config>>>, RPCError<Config>>>
    where
        S: Stream<Item = AppendEntriesRequest<Config>> + OptionalSend + Unpin + 'static,
    {
        let delay = Duration::from_millis(self.wires.limits.commit_delay_ms);
        stream_append_sequential(self, with_entries(input, delay), option)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.ballot(RaftCall::Vote, rpc, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.ballot(RaftCall::PreVote, rpc, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let SnapshotFolder::Files(folder) = &snapshot.snapshot else {
            return Err(streaming_error(Failure::new(FailureKind::Internal, "a flushed position can't be sent")));
        };
        let words = SnapshotWords::from_raft(&snapshot.meta);
        tracing::info!(group = %self.group, peer = %self.target, last = ?words.last, "sending snapshot");
        let send = self.send_snapshot(from_raft_vote(&vote), words, folder.path());
        let cancelled = std::pin::pin!(cancel);
        let sent = tokio::select! {
            sent = send => sent.map(|standing| SnapshotResponse::new(to_raft_vote(&standing))).map_err(streaming_error),
            closed = cancelled => Err(StreamingError::Closed(closed)),
        };
        // The checkpoint goes with its files, the last names of large ones among them.
        drop_blocking(snapshot).await.map_err(|error| streaming_error(error.into()))?;
        sent
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Config>,
        option: RPCOption,
    ) -> Result<Result<(), TransferLeaderError<Config>>, RPCError<Config>> {
        let words = TransferWords {
            from: from_raft_vote(req.from_leader()),
            to: NodeId(*req.to_node_id()),
            last: req.last_log_id().map(from_raft),
        };
        let body =
            self.call(RaftCall::Transfer, words.to_bytes(), Vec::new(), option.soft_ttl()).await.map_err(rpc_error)?;
        match TransferReply::decode(&body).map_err(|error| rpc_error(error.into()))? {
            TransferReply::Accepted => Ok(Ok(())),
            TransferReply::VoteChanged(pair) => Ok(Err(TransferLeaderError::VoteChanged {
                expected: to_raft_vote(&pair.expected),
                actual: to_raft_vote(&pair.actual),
            })),
            TransferReply::NotFlushed(pair) => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: pair.expected.map(to_raft),
                actual: pair.actual.map(to_raft),
            })),
        }
    }
}

/// What openraft should do about a failed call: back off from a peer that is not there, else try again soon.
fn rpc_error(failure: Failure) -> RPCError<Config> {
    match failure.kind {
        FailureKind::Unknown | FailureKind::Busy => RPCError::Network(NetworkError::new(&failure)),
        _ => RPCError::Unreachable(Unreachable::new(&failure)),
    }
}

fn streaming_error(failure: Failure) -> StreamingError<Config> {
    StreamingError::Unreachable(Unreachable::new(&failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogId;
    use crate::log::record::{EntryKind, LogEntry};
    use crate::raft::words::{RaftLogId, from_log_entry};

    const LONG: Duration = Duration::from_secs(3600);

    fn id(index: u64) -> RaftLogId {
        to_raft(LogId { term: 1, leader: NodeId(1), index })
    }

    /// A request behind entry `previous`, with the `entries` after it and the news of a commit.
    fn request(previous: u64, entries: u64, committed: u64) -> AppendEntriesRequest<Config> {
        let entry = |index| {
            let id = LogId { term: 1, leader: NodeId(1), index };
            from_log_entry(LogEntry { id, kind: EntryKind::Blank, payload: Bytes::new() }).unwrap()
        };
        AppendEntriesRequest {
            vote: to_raft_vote(&VoteWords { term: 1, node: NodeId(1), committed: true }),
            prev_log_id: Some(id(previous)),
            leader_commit: Some(id(committed)),
            entries: (previous + 1..=previous + entries).map(entry).collect(),
        }
    }

    /// Previous entry, number of entries and commit of each request that goes out.
    async fn sent(requests: Vec<AppendEntriesRequest<Config>>) -> Vec<(u64, usize, u64)> {
        let index = |id: &Option<RaftLogId>| id.as_ref().unwrap().index;
        with_entries(stream::iter(requests), LONG)
            .map(|request| (index(&request.prev_log_id), request.entries.len(), index(&request.leader_commit)))
            .collect()
            .await
    }

    #[tokio::test]
    async fn a_commit_goes_with_the_entries_behind_it() {
        let requests = vec![request(5, 2, 5), request(7, 0, 6), request(7, 0, 7), request(7, 1, 7), request(8, 3, 7)];
        assert_eq!(sent(requests).await, [(5, 2, 5), (7, 1, 7), (8, 3, 7)]);
    }

    #[tokio::test]
    async fn a_commit_goes_alone_where_the_stream_ends() {
        assert_eq!(sent(vec![request(5, 1, 5), request(6, 0, 6)]).await, [(5, 1, 5), (6, 0, 6)]);
        assert_eq!(sent(vec![request(6, 0, 6)]).await, [(6, 0, 6)], "a probe is one, too");
    }

    #[tokio::test]
    async fn a_commit_goes_alone_after_the_delay_and_nothing_is_lost_behind_it() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let requests = stream::unfold(receiver, |mut receiver| async move {
            let request = receiver.recv().await?;
            Some((request, receiver))
        });
        let mut out = with_entries(Box::pin(requests), Duration::ZERO);
        sender.send(request(6, 0, 6)).unwrap();
        assert_eq!(out.next().await.unwrap().leader_commit, Some(id(6)));
        sender.send(request(6, 1, 6)).unwrap();
        assert_eq!(out.next().await.unwrap().entries.len(), 1);
        drop(sender);
        assert!(out.next().await.is_none());
    }
}
