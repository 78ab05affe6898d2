//! A cluster of fakes behind the in-process link: disks that are maps, and one state machine that
//! answers for all groups with just the commands that the client sends.

#![allow(dead_code, unused_imports)] // Each test file takes what it needs.

mod disk;
mod meta;

pub use disk::{FakeDisk, Mood};
pub use meta::FakeMeta;

use bytes::Bytes;
use plinth_client::{Client, ClientConfig};
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, PlacementGroup, ShardRecord, ShardStart, State};
use plinth_protocol::meta::{Command, ObjectQuery, ObjectView, Outcome, PutObject, Query, Reply};
use plinth_protocol::object::{Body, Etag};
use plinth_protocol::stripe::{Code, Owner, StripeRef};
use plinth_protocol::{
    BucketId, ClusterId, DiskId, Epoch, Failure, FailureKind, FragmentId, GroupId, Incarnation, NodeId, PgId, Role,
};
use plinth_transport::{Identity, LocalNetwork, Peer, Request, Response, Service};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

pub const CLUSTER: ClusterId = ClusterId(7);
pub const GATEWAY: NodeId = NodeId(100);
pub const BUCKET: BucketId = BucketId(42);

/// The shape of a fake cluster.
pub struct Shape {
    pub code: Code,
    pub nodes: u64,
    pub fragment_bytes_max: u32,
    /// First keys of the shards of bucket [`BUCKET`] behind the first shard.
    pub splits: Vec<&'static str>,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { code: Code::new(3, 2), nodes: 6, fragment_bytes_max: 4 << 16, splits: Vec::new() }
    }
}

pub struct Cluster {
    pub network: LocalNetwork,
    pub disks: BTreeMap<DiskId, Arc<FakeDisk>>,
    pub meta: Arc<FakeMeta>,
    /// Wall time in milliseconds, as the client sees it.
    pub wall: Arc<AtomicU64>,
}

pub fn identity(node: NodeId, role: Role) -> Identity {
    Identity { cluster: CLUSTER, node, roles: vec![role], incarnation: Incarnation(1) }
}

pub fn disk_of(node: u64) -> DiskId {
    DiskId(1000 + u128::from(node))
}

/// Routes storage requests to the node's one disk.
struct StorageService(Arc<FakeDisk>);

impl Service for StorageService {
    fn serve(&self, request: Request) -> plinth_transport::BoxFuture<'static, Result<Response, Failure>> {
        let disk = self.0.clone();
        Box::pin(async move { disk.serve(request).await })
    }
}

pub struct MetaService(pub Arc<FakeMeta>, pub NodeId);

impl Service for MetaService {
    fn serve(&self, request: Request) -> plinth_transport::BoxFuture<'static, Result<Response, Failure>> {
        let (meta, node) = (self.0.clone(), self.1);
        Box::pin(async move { meta.serve(node, request) })
    }
}

impl Cluster {
    pub fn new(shape: Shape) -> Cluster {
        let network = LocalNetwork::new();
        let map = map_of(&shape);
        let meta = Arc::new(FakeMeta::new(map));
        for node in 1..=3 {
            let service = Arc::new(MetaService(meta.clone(), NodeId(node)));
            network.attach(identity(NodeId(node), Role::Meta), service);
        }
        let mut disks = BTreeMap::new();
        for node in 11..11 + shape.nodes {
            let disk = Arc::new(FakeDisk::new(disk_of(node)));
            network.attach(identity(NodeId(node), Role::Storage), Arc::new(StorageService(disk.clone())));
            disks.insert(disk_of(node), disk);
        }
        Cluster { network, disks, meta, wall: Arc::new(AtomicU64::new(1_700_000_000_000)) }
    }

    pub fn config(&self) -> ClientConfig {
        let peers = (1..=3).map(|node| Peer { node: NodeId(node), incarnation: None, address: String::new() });
        let wall = self.wall.clone();
        let mut config =
            ClientConfig::new(GATEWAY, peers.collect(), Arc::new(move || wall.load(Ordering::Relaxed)), [3; 32]);
        config.connect_timeout = Duration::from_secs(5);
        config
    }

    pub async fn client(&self) -> Client {
        self.client_with(self.config()).await
    }

    pub async fn client_with(&self, config: ClientConfig) -> Client {
        let link = Arc::new(self.network.link(identity(GATEWAY, Role::Gateway)));
        Client::connect(config, link).await.expect("the fake cluster answers")
    }

    pub fn disk(&self, node: u64) -> &FakeDisk {
        &self.disks[&disk_of(node)]
    }

    /// Cuts a storage node off.
    pub fn kill(&self, node: u64) {
        self.network.cut(GATEWAY, NodeId(node));
    }

    pub fn revive(&self, node: u64) {
        self.network.heal(GATEWAY, NodeId(node));
    }

    /// All fragments of a stripe that any disk holds.
    pub fn fragments_of(&self, stripe: &StripeRef) -> Vec<FragmentId> {
        let mut found: Vec<FragmentId> = self.disks.values().flat_map(|disk| disk.fragments()).collect();
        found.retain(|fragment| fragment.stripe == stripe.stripe);
        found.sort();
        found
    }

    /// The disk that holds a fragment.
    pub fn holder(&self, fragment: FragmentId) -> Option<DiskId> {
        self.disks.iter().find(|(_, disk)| disk.fragments().contains(&fragment)).map(|(id, _)| *id)
    }
}

fn map_of(shape: &Shape) -> ClusterMap {
    let nodes: Vec<u64> = (11..11 + shape.nodes).collect();
    let record = |node: u64, role: Role| NodeRecord {
        node: NodeId(node),
        name: format!("node{node}"),
        roles: vec![role],
        address: String::new(),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: format!("node{node}"),
        version: None,
        public_key: None,
    };
    let width = shape.code.width();
    let mut pgs = Vec::new();
    // Rotations and their mirror images: every disk leads as often as every other.
    for turn in 0..nodes.len() * 2 {
        let mut ring = nodes.clone();
        if turn >= nodes.len() {
            ring.reverse();
        }
        ring.rotate_left(turn % nodes.len());
        let disks = ring.iter().take(width).map(|&node| disk_of(node)).collect();
        let pg = PgId(turn as u32);
        pgs.push(PlacementGroup { pg, generation: 1, code: shape.code, disks, closed: false });
    }
    let voters: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let start = |bucket, key: &str| ShardStart { bucket, key: key.into() };
    let mut shards = vec![ShardRecord { group: GroupId(1), start: start(BucketId(0), ""), voters: voters.clone() }];
    for (position, split) in shape.splits.iter().enumerate() {
        let group = GroupId(2 + position as u64);
        shards.push(ShardRecord { group, start: start(BUCKET, split), voters: voters.clone() });
    }
    ClusterMap {
        cluster: CLUSTER,
        epoch: Epoch(1),
        nodes: (1..=3)
            .map(|node| record(node, Role::Meta))
            .chain(nodes.iter().map(|&node| record(node, Role::Storage)))
            .collect(),
        disks: nodes
            .iter()
            .map(|&node| DiskRecord {
                disk: disk_of(node),
                node: NodeId(node),
                incarnation: Incarnation(1),
                state: State::Up,
                name: format!("node{node}/d0"),
                size_bytes: 1 << 40,
                used_bytes: None,
                quarantined: None,
                write_stop_bytes: None,
            })
            .collect(),
        pgs,
        shards,
        code: shape.code,
        fragment_bytes_max: shape.fragment_bytes_max,
        name: "fake".into(),
        voters,
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    }
}

pub fn owner(key: &str) -> Owner {
    Owner { bucket: BUCKET, key: key.into(), upload: None, part: None, ordinal: 0, offset: 0 }
}

/// Bytes that look like nothing in particular and differ by seed.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Writes bytes in steps; returns their body.
pub async fn write(client: &Client, key: &str, bytes: &[u8], step: usize, known: bool) -> Result<Body, Failure> {
    let mut writer = client.write(owner(key), known.then_some(bytes.len() as u64));
    for part in bytes.chunks(step.max(1)) {
        writer.write(part).await?;
    }
    writer.finish().await
}

/// Publishes a body as an object.
pub async fn publish(client: &Client, key: &str, size: usize, body: Body) -> Result<Outcome, Failure> {
    let put = PutObject {
        bucket: BUCKET,
        key: key.into(),
        size_bytes: size as u64,
        etag: Etag { md5: [0; 16], parts: None },
        checksum: None,
        body: plinth_protocol::object::ObjectBody { headers: no_headers(), body },
        expectation: None,
    };
    client.mutate(client.group_of(BUCKET, key), Command::PutObject(put), None, soon()).await
}

pub fn no_headers() -> plinth_protocol::object::StoredHeaders {
    plinth_protocol::object::StoredHeaders { standard: Vec::new(), user: Vec::new() }
}

pub async fn put(client: &Client, key: &str, bytes: &[u8]) -> Result<Body, Failure> {
    let body = write(client, key, bytes, 100_000, true).await?;
    publish(client, key, bytes.len(), body.clone()).await?;
    Ok(body)
}

pub async fn view(client: &Client, key: &str) -> Result<ObjectView, Failure> {
    let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key.into(), body: true });
    match client.query(client.group_of(BUCKET, key), query, soon()).await? {
        Reply::Object(view) => Ok(view),
        other => Err(Failure::new(FailureKind::NotFound, format!("{other:?}"))),
    }
}

pub async fn read(client: &Client, key: &str, view: &ObjectView, range: Range<u64>) -> Result<Vec<u8>, Failure> {
    let mut reader = client.open(BUCKET, key, view, range);
    let mut bytes = Vec::new();
    while let Some(part) = reader.next().await {
        bytes.extend_from_slice(&part?);
    }
    Ok(bytes)
}

pub async fn get(client: &Client, key: &str) -> Result<Vec<u8>, Failure> {
    let view = view(client, key).await?;
    let size = view.row.size_bytes;
    read(client, key, &view, 0..size).await
}

pub fn stripes(body: &Body) -> &[StripeRef] {
    match body {
        Body::Stripes(stripes) => stripes,
        _ => &[],
    }
}

/// Polls until a condition holds; fails after ten seconds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn reply_bytes(reply: &impl plinth_protocol::wire::Wire) -> Response {
    Response { header: Bytes::from(reply.to_wire()), payload: Vec::new() }
}
