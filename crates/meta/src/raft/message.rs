//! The calls between voters: `Method::Raft`, header below, payload as the call says.
//!
//! Every message, request or reply, carries who sends it: node, log id, boot counter, session and
//! durable floor. The receiver compares that with what group 0 knows ([`crate::ledger`]) before
//! openraft hears the message.
//!
//! | call              | request's record (tags)                                      | payload           | reply's record                              |
//! |-------------------|--------------------------------------------------------------|-------------------|---------------------------------------------|
//! | 1 append          | 1 vote, 2 previous, 3 committed, 4 heads, 8 keep from        | entries' payloads | 1 success, 2 conflict, 3 vote, 4 partial    |
//! | 2 vote            | 1 vote, 2 last, 3 transfer                                   | none              | 1 vote, 2 granted, 3 last                   |
//! | 3 pre-vote        | as vote                                                      | none              | as vote                                     |
//! | 4 transfer        | 1 from, 2 to, 3 last                                         | none              | 1 accepted, 2 vote changed, 3 not flushed   |
//! | 5 snapshot begin  | 1 transfer, 2 vote, 3 snapshot                               | none              | vote                                        |
//! | 6 snapshot chunk  | 1 transfer, 2 name, 3 offset                                 | piece of the file | none                                        |
//! | 7 snapshot end    | 1 transfer, 2 vote, 3 snapshot, 4 files                      | none              | vote                                        |
//! | 8 change          | 1 add learner, 2 promote, 3 remove, 4 transfer               | none              | none                                        |
//! | 9 reach           | 1 node, 2 address                                            | none              | none                                        |
//! | 20 fetch begin    | 1 transfer                                                   | none              | 1 snapshot, 2 files (1 name, 2 bytes)       |
//! | 21 fetch piece    | 1 transfer, 2 name, 3 offset, 4 length                       | none              | none; payload: the piece                    |
//! | 22 fetch end      | 1 transfer                                                   | none              | none                                        |
//!
//! A request's header is 1 call, 2 group, 3 from, 4 expected log id, 5 the record, 6 why the receiver is refused, 7 the
//! sender's address, 20 wall clock, 21 the group's time; a reply's is 1 from, 2 the record, 8 whether the sender has little
//! room, 20 and 21 as a request's.
//! A vote is 1 term, 2 node, 3 committed; an identity 1 node, 2 log, 3 boot, 4 session, 5 floor; a snapshot 1 last, 2 membership
//! (1 at, 2 the membership: 1 configurations, 2 addresses by node); a file 1 name, 2 bytes, 3 CRC-32. All are tag-length
//! records (`protocol::wire`), held to `tests/format/meta_raft_*.hex`. The payload of an append is the payloads of its entries,
//! one behind the other.

use super::words::{MembershipWords, StoredMembershipWords};
use crate::ledger::VoterIdentity;
use crate::log::LogId;
use crate::log::record::VoteWords;
use bytes::Bytes;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, GroupId, HybridTime, NodeId, choice, numbered, record};

numbered! {
    /// What a message asks for.
    pub enum RaftCall {
        /// [`AppendWords`] → [`AppendReply`]; also the heartbeat.
        Append = 1,
        /// [`BallotWords`] → [`BallotReply`].
        Vote = 2,
        /// [`BallotWords`] → [`BallotReply`]; nothing is written.
        PreVote = 3,
        /// [`TransferWords`] → [`TransferReply`].
        Transfer = 4,
        /// [`SnapshotBegin`] → [`VoteWords`].
        SnapshotBegin = 5,
        /// [`SnapshotChunk`] → nothing.
        SnapshotChunk = 6,
        /// [`SnapshotEnd`] → [`VoteWords`].
        SnapshotEnd = 7,
        /// [`Change`] → nothing: a change of membership, for the group's leader.
        Change = 8,
        /// [`Learner`] → nothing: asks the receiver whether it reaches a node that shall become a voter.
        Reach = 9,
        /// [`FetchBegin`] → [`FetchOffer`]: a checkpoint for a replica that rebuilds itself.
        FetchBegin = 20,
        /// [`FetchPiece`] → nothing; the bytes are the reply's payload.
        FetchPiece = 21,
        /// [`FetchBegin`] → nothing: the checkpoint may go.
        FetchEnd = 22,
    }
}

record! {
    /// The header of every request.
    pub struct RaftHeader {
        1 => call: RaftCall,
        2 => group: GroupId,
        3 => from: VoterIdentity,
        /// The log id that the sender expects at the receiver, where it knows one.
        4 => expected: Option<u128>,
        /// The call's own record.
        5 => body: Bytes,
        /// Why the sender refuses to hear the receiver, where it does.
        6 -> refused: Option<String>,
        /// Where the sender is reached: it may have moved since the map was written.
        7 -> address: Option<String>,
        /// The sender's wall clock, in milliseconds since 1970.
        20 -> wall_ms: Option<u64>,
        /// From the group's leader: the group's time.
        21 -> time: Option<HybridTime>,
    }
}

record! {
    /// The header of every reply.
    pub struct RaftReply {
        1 => from: VoterIdentity,
        /// The reply's own record.
        2 => body: Bytes,
        /// The sender's log or file system is so full that it asks for no growth.
        8 -> no_room: bool,
        /// The sender's wall clock, in milliseconds since 1970.
        20 -> wall_ms: Option<u64>,
        /// The group's time, where the sender knows it: a leader that knows none goes on from it.
        21 -> time: Option<HybridTime>,
    }
}

record! {
    /// Entries for a follower; none: a heartbeat.
    pub struct AppendWords {
        1 => vote: VoteWords,
        2 => previous: Option<LogId>,
        3 => committed: Option<LogId>,
        /// Heads of the entries (`log::record`), 32 bytes each; their payloads are the call's payload.
        4 => heads: Bytes,
        /// The first entry that some member of the group lacks, where the leader knows: the log is kept from there on.
        8 -> keep_from: Option<u64>,
    }
}

choice! {
    /// What became of an append.
    pub enum AppendReply {
        1 => Success,
        2 => Conflict,
        3 => HigherVote(VoteWords),
        /// Appended up to here only.
        4 => Partial(LogId),
    }
}

record! {
    /// A request for a vote.
    pub struct BallotWords {
        1 => vote: VoteWords,
        2 => last: Option<LogId>,
        /// The leader asked for this election: its lease does not stand against it.
        3 => transfer: bool,
    }
}

record! {
    /// The answer to a request for a vote.
    pub struct BallotReply {
        1 => vote: VoteWords,
        2 => granted: bool,
        3 => last: Option<LogId>,
    }
}

record! {
    /// A leader gives its leadership away.
    pub struct TransferWords {
        1 => from: VoteWords,
        2 => to: NodeId,
        3 => last: Option<LogId>,
    }
}

choice! {
    /// The answer to a transfer.
    pub enum TransferReply {
        1 => Accepted,
        2 => VoteChanged(VotePair),
        3 => NotFlushed(LogPair),
    }
}

record! {
    /// The vote that was expected and the one that stands.
    pub struct VotePair {
        1 => expected: VoteWords,
        2 => actual: VoteWords,
    }
}

record! {
    /// The log end that was expected and the one that is flushed.
    pub struct LogPair {
        1 => expected: Option<LogId>,
        2 => actual: Option<LogId>,
    }
}

record! {
    /// What a snapshot holds.
    pub struct SnapshotWords {
        1 => last: Option<LogId>,
        2 => membership: StoredMembershipWords,
    }
}

record! {
    /// Announces a snapshot: earlier unfinished ones of the group are dropped.
    pub struct SnapshotBegin {
        /// Drawn at random for this transfer.
        1 => transfer: u128,
        2 => vote: VoteWords,
        3 => snapshot: SnapshotWords,
    }
}

record! {
    /// A piece of a file; pieces of a file come in order.
    pub struct SnapshotChunk {
        1 => transfer: u128,
        /// The file's name inside the folder.
        2 => name: String,
        3 => offset: u64,
    }
}

record! {
    /// Ends a snapshot: the receiver checks it against this list, makes it durable and installs it.
    pub struct SnapshotEnd {
        1 => transfer: u128,
        2 => vote: VoteWords,
        3 => snapshot: SnapshotWords,
        4 => files: Vec<SnapshotFile>,
    }
}

record! {
    /// One file of a snapshot.
    pub struct SnapshotFile {
        1 => name: String,
        2 => size_bytes: u64,
        /// CRC-32 (IEEE) over the whole file.
        3 => checksum: u32,
    }
}

record! {
    /// Asks for a checkpoint, or lets it go.
    pub struct FetchBegin {
        /// The asker's name for it.
        1 => transfer: u128,
    }
}

record! {
    /// A checkpoint that may be fetched.
    pub struct FetchOffer {
        1 => snapshot: SnapshotWords,
        2 => files: Vec<FetchFile>,
    }
}

record! {
    /// One file of it.
    pub struct FetchFile {
        1 => name: String,
        2 => size_bytes: u64,
    }
}

record! {
    /// Asks for a piece of a file; less comes where the file ends.
    pub struct FetchPiece {
        1 => transfer: u128,
        2 => name: String,
        3 => offset: u64,
        4 => length: u64,
    }
}

choice! {
    /// A change of a group's membership.
    pub enum Change {
        /// Adds a learner and waits until it has caught up.
        1 => AddLearner(Learner),
        /// Makes a learner a voter.
        2 => Promote(NodeId),
        /// Removes a voter or a learner.
        3 => Remove(NodeId),
        /// Gives leadership to a voter.
        4 => Transfer(NodeId),
    }
}

record! {
    /// A node that shall follow a group.
    pub struct Learner {
        1 => node: NodeId,
        2 => address: String,
    }
}

/// Reads the record inside a header.
pub(crate) fn open<T: Wire>(body: &Bytes) -> Result<T, Failure> {
    Ok(T::decode(body)?)
}

/// An empty record.
pub(crate) fn nothing() -> Bytes {
    Bytes::new()
}

impl SnapshotWords {
    pub(crate) fn from_raft(meta: &super::words::SnapshotMeta) -> Self {
        SnapshotWords {
            last: meta.last_log_id.as_ref().map(super::words::from_raft),
            membership: StoredMembershipWords {
                at: meta.last_membership.log_id().as_ref().map(super::words::from_raft),
                membership: MembershipWords::from_raft(meta.last_membership.membership()),
            },
        }
    }

    pub(crate) fn to_raft(&self) -> Result<super::words::SnapshotMeta, Failure> {
        Ok(super::words::SnapshotMeta {
            last_log_id: self.last.map(super::words::to_raft),
            last_membership: super::words::StoredMembership::new(
                self.membership.at.map(super::words::to_raft),
                self.membership.membership.to_raft()?,
            ),
        })
    }
}
