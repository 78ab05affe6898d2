//! A voter: its groups, their leaders' duties, and what it answers.

use crate::{MetaConfig, MetaError, MetaStats};
use bytes::Bytes;
use plinth_protocol::meta::{AdminReply, AdminRequest, MetaRequest, Reply};
use plinth_protocol::{Failure, NodeId};
use plinth_transport::{Link, Response};
use std::sync::Arc;
use tokio::time::Instant;

/// The metadata of one node: a voter of the system group and of object shards. Cheap to clone.
#[derive(Clone)]
pub struct MetaNode {
    config: Arc<MetaConfig>,
}

#[allow(unused_variables)]
impl MetaNode {
    /// Opens the voter's log and databases, and takes part in its groups from then on. Returns without waiting for
    /// a leader. Fails with `Damaged` where the voter must not vote again.
    pub async fn start(config: MetaConfig, link: Arc<dyn Link>) -> Result<MetaNode, MetaError> {
        unimplemented!("being written")
    }

    /// Decides a mutation or answers a query. Fails with `NotLeader` where another node leads the group, with
    /// `Busy` where too much waits, with `Unknown` where a mutation may or may not have been decided: ask again
    /// with the same request id.
    pub async fn handle_meta(&self, request: MetaRequest, deadline: Instant) -> Result<Reply, Failure> {
        unimplemented!("being written")
    }

    /// As [`MetaNode::handle_meta`], with the reply's bytes; listings are not taken apart on the way.
    pub async fn handle_meta_encoded(&self, request: MetaRequest, deadline: Instant) -> Result<Bytes, Failure> {
        unimplemented!("being written")
    }

    /// Answers a message of another voter, after its identity has been checked against group 0's record.
    pub async fn handle_raft(&self, from: NodeId, header: Bytes, payload: Bytes) -> Result<Response, Failure> {
        unimplemented!("being written")
    }

    /// Answers an operator. Changes of membership must reach the leader of the system group.
    pub async fn handle_admin(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        unimplemented!("being written")
    }

    /// Returns the voter's counters.
    pub async fn stats(&self) -> MetaStats {
        unimplemented!("being written")
    }

    /// Gives leadership away, flushes, and closes log and databases.
    pub async fn shutdown(self) {
        unimplemented!("being written")
    }
}
