//! The byte forms of the calls between voters, held to a golden file.

use super::message::*;
use super::words::{MembershipWords, StoredMembershipWords};
use crate::golden::{assert_golden, line};
use crate::ledger::VoterIdentity;
use crate::log::LogId;
use crate::log::record::{EntryKind, LogEntry, VoteWords, decode_entry_head, encode_entry_head};
use bytes::Bytes;
use plinth_protocol::wire::Wire;
use plinth_protocol::{GroupId, HybridTime, NodeId};
use std::collections::BTreeMap;

fn id(index: u64) -> LogId {
    LogId { term: 3, leader: NodeId(2), index }
}

fn vote() -> VoteWords {
    VoteWords { term: 3, node: NodeId(2), committed: true }
}

fn identity() -> VoterIdentity {
    VoterIdentity { node: NodeId(2), log: 0x11, boot: 4, session: 5, floor: 600 }
}

fn snapshot() -> SnapshotWords {
    let nodes = BTreeMap::from([(NodeId(2), "host2:1".to_owned())]);
    let membership = MembershipWords { configs: vec![vec![NodeId(2)]], nodes };
    SnapshotWords { last: Some(id(9)), membership: StoredMembershipWords { at: Some(id(1)), membership } }
}

fn heads() -> Bytes {
    let entry = LogEntry { id: id(8), kind: EntryKind::Batch, payload: Bytes::from_static(b"payload") };
    let mut heads = Vec::new();
    encode_entry_head(&entry, &mut heads);
    assert_eq!(decode_entry_head(&heads).unwrap(), (entry.id, entry.kind, entry.payload.len()));
    Bytes::from(heads)
}

fn request(call: RaftCall, body: &impl Wire) -> RaftHeader {
    let (from, expected, body) = (identity(), Some(0x12), body.to_bytes());
    RaftHeader {
        call,
        group: GroupId(1),
        from,
        expected,
        body,
        refused: None,
        address: None,
        wall_ms: None,
        time: None,
    }
}

fn reply(body: Bytes) -> RaftReply {
    RaftReply { from: identity(), body, no_room: false, wall_ms: None, time: None }
}

#[test]
fn requests_are_those_of_the_golden_file() {
    let append =
        AppendWords { vote: vote(), previous: Some(id(7)), committed: Some(id(6)), heads: heads(), keep_from: None };
    let heartbeat = AppendWords { vote: vote(), previous: None, committed: None, heads: Bytes::new(), keep_from: None };
    let ballot = BallotWords { vote: vote(), last: Some(id(9)), transfer: true };
    let transfer = TransferWords { from: vote(), to: NodeId(3), last: Some(id(9)) };
    let begin = SnapshotBegin { transfer: 7, vote: vote(), snapshot: snapshot() };
    let chunk = SnapshotChunk { transfer: 7, name: "000012.sst".into(), offset: 1 << 20 };
    let file = SnapshotFile { name: "000012.sst".into(), size_bytes: 70_000, checksum: 0x0102_0304 };
    let end = SnapshotEnd { transfer: 7, vote: vote(), snapshot: snapshot(), files: vec![file.clone()] };
    let piece = FetchPiece { transfer: 7, name: "000012.sst".into(), offset: 1 << 20, length: 4096 };
    let learner = Learner { node: NodeId(4), address: "host4:1".into() };
    let (wall_ms, time) = (Some(1_767_225_600_000), Some(HybridTime(1_767_225_600_000 << 16)));
    let change = |change: Change| request(RaftCall::Change, &change);
    assert_golden(
        "meta_raft_requests.hex",
        &[
            line("append", &request(RaftCall::Append, &append)),
            line("heartbeat", &request(RaftCall::Append, &heartbeat)),
            line("vote", &request(RaftCall::Vote, &ballot)),
            line("pre-vote", &request(RaftCall::PreVote, &ballot)),
            line("transfer", &request(RaftCall::Transfer, &transfer)),
            line("snapshot-begin", &request(RaftCall::SnapshotBegin, &begin)),
            line("snapshot-chunk", &request(RaftCall::SnapshotChunk, &chunk)),
            line("snapshot-end", &request(RaftCall::SnapshotEnd, &end)),
            line("change-add-learner", &change(Change::AddLearner(learner.clone()))),
            line("change-promote", &change(Change::Promote(NodeId(4)))),
            line("change-remove", &change(Change::Remove(NodeId(4)))),
            line("change-transfer", &change(Change::Transfer(NodeId(4)))),
            line(
                "vote-with-address",
                &RaftHeader { address: Some("host2:1".into()), ..request(RaftCall::Vote, &ballot) },
            ),
            line("reach", &request(RaftCall::Reach, &learner)),
            line("refused", &RaftHeader { refused: Some("wiped".into()), ..request(RaftCall::PreVote, &ballot) }),
            line("append-words", &append),
            line("ballot-words", &ballot),
            line("transfer-words", &transfer),
            line("snapshot-begin-words", &begin),
            line("snapshot-chunk-words", &chunk),
            line("snapshot-end-words", &end),
            line("snapshot-file", &file),
            line("identity", &identity()),
            line("append-words-with-floor", &AppendWords { keep_from: Some(300), ..append }),
            line("fetch-begin", &request(RaftCall::FetchBegin, &FetchBegin { transfer: 7 })),
            line("fetch-piece", &request(RaftCall::FetchPiece, &piece)),
            line("fetch-end", &request(RaftCall::FetchEnd, &FetchBegin { transfer: 7 })),
            line("fetch-begin-words", &FetchBegin { transfer: 7 }),
            line("fetch-piece-words", &piece),
            line("heartbeat-timed", &RaftHeader { wall_ms, time, ..request(RaftCall::Append, &heartbeat) }),
        ],
    );
}

#[test]
fn replies_are_those_of_the_golden_file() {
    let ballot = BallotReply { vote: vote(), granted: true, last: Some(id(9)) };
    let changed = VotePair { expected: vote(), actual: VoteWords { term: 4, ..vote() } };
    let behind = LogPair { expected: Some(id(9)), actual: Some(id(8)) };
    let files = vec![FetchFile { name: "000012.sst".into(), size_bytes: 70_000 }];
    let offer = FetchOffer { snapshot: snapshot(), files };
    let (wall_ms, time) = (Some(1_767_225_600_000), Some(HybridTime(1_767_225_600_000 << 16)));
    let append = |words: AppendReply| words.to_bytes();
    let transfer = |words: TransferReply| words.to_bytes();
    assert_eq!(AppendReply::decode(&append(AppendReply::Partial(id(8)))), Ok(AppendReply::Partial(id(8))));
    assert_golden(
        "meta_raft_replies.hex",
        &[
            line("append-success", &reply(append(AppendReply::Success))),
            line("append-conflict", &reply(append(AppendReply::Conflict))),
            line("append-higher-vote", &reply(append(AppendReply::HigherVote(vote())))),
            line("append-partial", &reply(append(AppendReply::Partial(id(8))))),
            line("ballot", &reply(ballot.to_bytes())),
            line("transfer-accepted", &reply(transfer(TransferReply::Accepted))),
            line("transfer-vote-changed", &reply(transfer(TransferReply::VoteChanged(changed.clone())))),
            line("transfer-not-flushed", &reply(transfer(TransferReply::NotFlushed(behind.clone())))),
            line("snapshot-begin", &reply(vote().to_bytes())),
            line("snapshot-chunk", &reply(nothing())),
            line("snapshot-end", &reply(vote().to_bytes())),
            line("change", &reply(nothing())),
            line("append-success-without-room", &RaftReply { no_room: true, ..reply(append(AppendReply::Success)) }),
            line("fetch-offer", &reply(offer.to_bytes())),
            line("fetch-offer-words", &offer),
            line("append-reply-words", &AppendReply::HigherVote(vote())),
            line("ballot-reply-words", &ballot),
            line("transfer-vote-changed-words", &TransferReply::VoteChanged(changed)),
            line("transfer-not-flushed-words", &TransferReply::NotFlushed(behind)),
            line("append-success-timed", &RaftReply { wall_ms, time, ..reply(append(AppendReply::Success)) }),
        ],
    );
}
