//! Our type configuration of openraft, and the byte formats of what it hands us.

use crate::MetaError;
use crate::log::LogId;
use crate::log::record::{EntryKind, LogEntry, VoteWords};
use bytes::Bytes;
use openraft::impls::BasicNode;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};
use plinth_protocol::meta::Outcome;
use plinth_protocol::wire::{Wire, WireError};
use plinth_protocol::{NodeId, record};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Openraft with our commands: the payload of an entry is a batch of mutations, already bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Config;

impl RaftTypeConfig for Config {
    type D = Batch;
    type R = Vec<Outcome>;
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = RaftLeaderId;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Batch, u64, BasicNode>;
    type Entry = openraft::Entry<Self::LeaderId, Self::Payload>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type RaftLeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type RaftLogId = openraft::LogId<RaftLeaderId>;
pub(crate) type RaftVote = openraft::Vote<RaftLeaderId>;
pub(crate) type RaftEntry = openraft::Entry<RaftLeaderId, EntryPayload<Batch, u64, BasicNode>>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftLeaderId, u64, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftLeaderId, u64, BasicNode>;

/// The bytes of a batch of mutations (`crate::batch`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch(pub(crate) Bytes);

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

/// Takes the result of a proposal where it is made, without a channel in between.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(take: impl FnOnce(T) + Send + 'static) -> Self {
        Callback(Box::new(take))
    }
}

impl<C: RaftTypeConfig, T: OptionalSend + 'static> openraft::raft::responder::Responder<C, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// Returns openraft's form of a log id.
pub(crate) fn to_raft(id: LogId) -> RaftLogId {
    RaftLogId { leader_id: RaftLeaderId { term: id.term, node_id: id.leader.0 }, index: id.index }
}

/// Returns our form of a log id.
pub(crate) fn from_raft(id: &RaftLogId) -> LogId {
    LogId { term: id.leader_id.term, leader: NodeId(id.leader_id.node_id), index: id.index }
}

/// Returns openraft's form of a vote.
pub(crate) fn to_raft_vote(vote: &VoteWords) -> RaftVote {
    RaftVote { leader_id: RaftLeaderId { term: vote.term, node_id: vote.node.0 }, committed: vote.committed }
}

/// Returns our form of a vote.
pub(crate) fn from_raft_vote(vote: &RaftVote) -> VoteWords {
    VoteWords { term: vote.leader_id.term, node: NodeId(vote.leader_id.node_id), committed: vote.committed }
}

record! {
    /// A membership: the voters (two lists while it is changing) and the addresses of all members.
    pub struct MembershipWords {
        1 => configs: Vec<Vec<NodeId>>,
        2 => nodes: BTreeMap<NodeId, String>,
    }
}

record! {
    /// A membership, and where in the log it stands.
    pub struct StoredMembershipWords {
        1 => at: Option<LogId>,
        2 => membership: MembershipWords,
    }
}

impl MembershipWords {
    pub(crate) fn from_raft(membership: &Membership) -> Self {
        MembershipWords {
            configs: membership
                .get_joint_config()
                .iter()
                .map(|config| config.iter().map(|node| NodeId(*node)).collect())
                .collect(),
            nodes: membership.nodes().map(|(node, basic)| (NodeId(*node), basic.addr.clone())).collect(),
        }
    }

    pub(crate) fn to_raft(&self) -> Result<Membership, WireError> {
        let configs: Vec<BTreeSet<u64>> =
            self.configs.iter().map(|config| config.iter().map(|node| node.0).collect()).collect();
        let nodes: BTreeMap<u64, BasicNode> =
            self.nodes.iter().map(|(node, address)| (node.0, BasicNode::new(address))).collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|_| WireError::OutOfRange("membership"))
    }
}

/// Returns the bytes of a membership and its place.
pub(crate) fn encode_stored(stored: &StoredMembership) -> Vec<u8> {
    StoredMembershipWords {
        at: stored.log_id().as_ref().map(from_raft),
        membership: MembershipWords::from_raft(stored.membership()),
    }
    .to_wire()
}

/// Reads a membership and its place.
pub(crate) fn decode_stored(bytes: &[u8]) -> Result<StoredMembership, WireError> {
    let words = StoredMembershipWords::decode(bytes)?;
    Ok(StoredMembership::new(words.at.map(to_raft), words.membership.to_raft()?))
}

/// Returns an entry as the log keeps it. Batches are not copied.
pub(crate) fn to_log_entry(entry: RaftEntry) -> LogEntry {
    let id = from_raft(&entry.log_id);
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(batch) => (EntryKind::Batch, batch.0),
        EntryPayload::Membership(membership) => {
            (EntryKind::Membership, MembershipWords::from_raft(&membership).to_bytes())
        }
    };
    LogEntry { id, kind, payload }
}

/// Returns an entry as openraft wants it.
pub(crate) fn from_log_entry(entry: LogEntry) -> Result<RaftEntry, MetaError> {
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Batch => EntryPayload::Normal(Batch(entry.payload)),
        EntryKind::Membership => EntryPayload::Membership(MembershipWords::decode(&entry.payload)?.to_raft()?),
    };
    Ok(RaftEntry { log_id: to_raft(entry.id), payload })
}
