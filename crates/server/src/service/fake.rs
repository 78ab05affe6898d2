//! A cluster of one metadata node that answers what a test has it answer.

use crate::node::client_config;
use bytes::Bytes;
use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, State};
use plinth_protocol::meta::{Command, GroupQuery, MetaRequest, Outcome, Query, Reply};
use plinth_protocol::stripe::Code;
use plinth_protocol::wire::Wire;
use plinth_protocol::{ClusterId, Epoch, Failure, FailureKind, Incarnation, NodeId, Role};
use plinth_transport::{BoxFuture, Identity, LocalNetwork, Request, Response, Service};
use std::sync::Arc;

/// The node that asks.
pub const ASKER: NodeId = NodeId(1);
/// The metadata node.
pub const VOTER: NodeId = NodeId(9);

struct Voter<D, A> {
    map: ClusterMap,
    decide: D,
    answer: A,
}

impl<D, A> Service for Voter<D, A>
where
    D: Fn(Command) -> Result<Outcome, Failure> + Send + Sync + 'static,
    A: Fn(Query) -> Result<Reply, Failure> + Send + Sync + 'static,
{
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let reply = match MetaRequest::decode(&request.header).unwrap() {
            MetaRequest::Mutate(mutation) => (self.decide)(mutation.command).map(Reply::Outcome),
            MetaRequest::Query(GroupQuery { query: Query::Map(_), .. }) => Ok(Reply::Map(self.map.clone())),
            MetaRequest::Query(GroupQuery { query, .. }) => (self.answer)(query),
        };
        Box::pin(async move { Ok(Response { header: reply?.to_bytes(), payload: Vec::<Bytes>::new() }) })
    }
}

fn identity(node: NodeId, role: Role) -> Identity {
    Identity { cluster: ClusterId(7), node, roles: vec![role], incarnation: Incarnation(1) }
}

/// Returns the cluster's map with these disks.
pub fn map(disks: Vec<DiskRecord>) -> ClusterMap {
    let voter = NodeRecord {
        node: VOTER,
        name: "m1".into(),
        roles: vec![Role::Meta],
        address: "127.0.0.1:1".into(),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: "m1".into(),
        version: None,
        public_key: None,
    };
    ClusterMap {
        cluster: ClusterId(7),
        epoch: Epoch(1),
        nodes: vec![voter],
        disks,
        pgs: Vec::new(),
        shards: Vec::new(),
        code: Code::new(1, 0),
        fragment_bytes_max: 1 << 20,
        name: "fake".into(),
        voters: vec![VOTER],
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    }
}

/// Returns a client of a cluster that knows these disks and decides as it is told.
pub async fn client(
    disks: Vec<DiskRecord>,
    decide: impl Fn(Command) -> Result<Outcome, Failure> + Send + Sync + 'static,
) -> Client {
    client_answering(disks, decide, |_| Err(Failure::new(FailureKind::Invalid, "the fake knows the map alone"))).await
}

/// As [`client`], with answers to queries other than the one for the map.
pub async fn client_answering(
    disks: Vec<DiskRecord>,
    decide: impl Fn(Command) -> Result<Outcome, Failure> + Send + Sync + 'static,
    answer: impl Fn(Query) -> Result<Reply, Failure> + Send + Sync + 'static,
) -> Client {
    let map = map(disks);
    let network = LocalNetwork::new();
    network.attach(identity(VOTER, Role::Meta), Arc::new(Voter { map, decide, answer }));
    let link = Arc::new(network.link(identity(ASKER, Role::Storage)));
    Client::connect(client_config(ASKER, &["9@127.0.0.1:1".into()], None), link).await.unwrap()
}
