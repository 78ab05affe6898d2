//! Founding, starting and stopping the nodes of an in-process cluster.

use plinth_client::{Client, ClientConfig};
use plinth_meta::state::placement;
use plinth_meta::{MetaConfig, MetaLimits, MetaNode};
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, ShardRecord, ShardStart, State};
use plinth_protocol::meta::{AdminRequest, Founding, MetaRequest};
use plinth_protocol::storage::StorageRequest;
use plinth_protocol::stripe::Code;
use plinth_protocol::wire::Wire;
use plinth_protocol::*;
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode};
use plinth_transport::{BoxFuture, Identity, Link, LocalNetwork, Peer, Request, Response, Service};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Segment size of the cluster's disks in bytes.
const SEGMENT_BYTES: u32 = 16 << 20;
/// Bytes that each disk may take.
const DISK_BYTES: u64 = 512 << 20;
/// The object shard.
const SHARD: GroupId = GroupId(1);
/// Id of the node on which the client runs.
const CLIENT_NODE: NodeId = NodeId(100);
/// The cluster's id.
const CLUSTER: ClusterId = ClusterId(0x51a7);

/// How many nodes of which kind a cluster has.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Metadata nodes.
    pub metas: u64,
    /// Storage nodes of one disk.
    pub storages: u64,
    /// Code of new stripes.
    pub code: Code,
    /// Largest fragment in bytes.
    pub fragment_bytes_max: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { metas: 3, storages: 6, code: Code::new(3, 2), fragment_bytes_max: 1 << 20 }
    }
}

/// A cluster in this process. Its folder goes when it is dropped.
pub struct Cluster {
    /// Faults are set here.
    pub network: LocalNetwork,
    /// The cluster as it was founded.
    pub map: ClusterMap,
    folder: tempfile::TempDir,
    metas: BTreeMap<NodeId, MetaNode>,
    storages: BTreeMap<NodeId, StorageNode>,
}

/// Answers for one node.
struct NodeService {
    meta: Option<MetaNode>,
    storage: Option<StorageNode>,
}

impl Service for NodeService {
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let (meta, storage) = (self.meta.clone(), self.storage.clone());
        Box::pin(async move {
            let absent = || Failure::new(FailureKind::Invalid, "the node has no such role");
            match request.method {
                Method::Ping => Ok(Response::default()),
                Method::Meta => {
                    let meta = meta.ok_or_else(absent)?;
                    let header =
                        meta.handle_meta_encoded(MetaRequest::decode(&request.header)?, request.deadline).await?;
                    Ok(Response { header, payload: Vec::new() })
                }
                Method::Raft => {
                    meta.ok_or_else(absent)?.handle_raft(request.caller.node, request.header, request.payload).await
                }
                Method::Admin => {
                    let reply = meta.ok_or_else(absent)?.handle_admin(AdminRequest::decode(&request.header)?).await?;
                    Ok(Response { header: reply.to_bytes(), payload: Vec::new() })
                }
                Method::Storage => {
                    let header = StorageRequest::decode(&request.header)?;
                    header.check_caller(request.caller.node, &request.caller.roles)?;
                    let (reply, payload) =
                        storage.ok_or_else(absent)?.handle(header, request.payload, request.deadline).await?;
                    Ok(Response { header: reply.to_bytes(), payload })
                }
                Method::Join | Method::Certify => Err(absent()),
            }
        })
    }
}

#[allow(clippy::disallowed_methods)]
fn wall_clock_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Cluster {
    /// Founds a cluster and starts all its nodes.
    pub async fn start(shape: Shape) -> Cluster {
        let folder = tempfile::tempdir().expect("the temporary folder takes a cluster");
        let map = found(&shape, folder.path());
        let mut cluster =
            Cluster { network: LocalNetwork::new(), map, folder, metas: BTreeMap::new(), storages: BTreeMap::new() };
        for node in cluster.nodes_with(Role::Storage).into_iter().chain(cluster.nodes_with(Role::Meta)) {
            cluster.start_node(node).await;
        }
        cluster
    }

    /// Returns the ids of the nodes with a role.
    pub fn nodes_with(&self, role: Role) -> Vec<NodeId> {
        self.map.nodes.iter().filter(|node| node.roles.contains(&role)).map(|node| node.node).collect()
    }

    /// Starts a node that does not run, on what it left behind.
    pub async fn start_node(&mut self, node: NodeId) {
        let record = self.map.node(node).expect("the node is in the founding map").clone();
        let identity =
            Identity { cluster: CLUSTER, node, roles: record.roles.clone(), incarnation: record.incarnation };
        if record.roles.contains(&Role::Storage) {
            let disk = DiskConfig { path: disk_folder(self.folder.path(), node), expected: None };
            let storage = StorageNode::open(StorageConfig::new(CLUSTER, vec![disk])).await.expect("the disk opens");
            self.network.attach(identity, Arc::new(NodeService { meta: None, storage: Some(storage.clone()) }));
            self.storages.insert(node, storage);
            return;
        }
        let config = MetaConfig {
            cluster: CLUSTER,
            node,
            folder: self.folder.path().join(node.to_string()),
            found: Some(Founding { map: self.map.clone(), keys: Vec::new() }),
            clock: Arc::new(wall_clock_ms),
            seed: node.0 ^ wall_clock_ms(),
            limits: MetaLimits { log_segment_bytes: 4 << 20, ..MetaLimits::default() },
        };
        let link: Arc<dyn Link> = Arc::new(self.network.link(identity.clone()));
        let meta = MetaNode::start(config, link).await.expect("the voter starts");
        self.network.attach(identity, Arc::new(NodeService { meta: Some(meta.clone()), storage: None }));
        self.metas.insert(node, meta);
    }

    /// Stops a node: calls to it fail from now on.
    pub async fn stop_node(&mut self, node: NodeId) {
        self.network.detach(node);
        if let Some(meta) = self.metas.remove(&node) {
            meta.shutdown().await;
        }
        if let Some(storage) = self.storages.remove(&node) {
            storage.shutdown().await;
        }
    }

    /// Connects a client of its own.
    pub async fn client(&self) -> Client {
        let identity =
            Identity { cluster: CLUSTER, node: CLIENT_NODE, roles: vec![Role::Gateway], incarnation: Incarnation(1) };
        let peers = self
            .map
            .nodes
            .iter()
            .filter(|node| node.roles.contains(&Role::Meta))
            .map(|node| Peer { node: node.node, incarnation: None, address: node.address.clone() })
            .collect();
        let seed = std::array::from_fn(|at| (wall_clock_ms() >> (at % 8)) as u8);
        let mut config = ClientConfig::new(CLIENT_NODE, peers, Arc::new(wall_clock_ms), seed);
        config.connect_timeout = Duration::from_secs(20);
        config.fill_in_after = Duration::ZERO;
        config.deferred_delete_after = Duration::ZERO;
        Client::connect(config, Arc::new(self.network.link(identity))).await.expect("the cluster answers")
    }
}

fn disk_folder(folder: &Path, node: NodeId) -> PathBuf {
    folder.join(format!("{node}-d0"))
}

/// Formats the disks and makes the founding map.
fn found(shape: &Shape, folder: &Path) -> ClusterMap {
    let node = |id: u64, role: Role| NodeRecord {
        node: NodeId(id),
        name: format!("{role}{id}"),
        roles: vec![role],
        address: format!("{id}"),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: format!("domain{id}"),
        version: None,
        public_key: None,
    };
    let metas = (1..=shape.metas).map(|id| node(id, Role::Meta));
    let storages = (1..=shape.storages).map(|id| node(shape.metas + id, Role::Storage));
    let gateway = node(CLIENT_NODE.0, Role::Gateway);
    let nodes: Vec<NodeRecord> = metas.chain(storages).chain([gateway]).collect();
    let disks: Vec<DiskRecord> =
        nodes.iter().filter(|node| node.roles.contains(&Role::Storage)).map(|node| format_disk(folder, node)).collect();
    let voters: Vec<NodeId> = (1..=shape.metas).map(NodeId).collect();
    let start = ShardStart { bucket: BucketId(0), key: String::new() };
    let mut map = ClusterMap {
        cluster: CLUSTER,
        epoch: Epoch(1),
        nodes,
        disks,
        pgs: Vec::new(),
        shards: vec![ShardRecord { group: SHARD, start, voters: voters.clone() }],
        code: shape.code,
        fragment_bytes_max: shape.fragment_bytes_max,
        name: "sim".into(),
        voters,
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    map.pgs = placement::plan(&map, shape.code).expect("the shape fits its code").add;
    map
}

fn format_disk(folder: &Path, node: &NodeRecord) -> DiskRecord {
    let disk = DiskId(u128::from(node.node.0) << 64 | 0xd15c);
    let format = FormatConfig {
        path: disk_folder(folder, node.node),
        cluster: CLUSTER,
        disk,
        incarnation: Incarnation(1),
        segment_bytes: SEGMENT_BYTES,
        size_bytes: DISK_BYTES,
        stamp: node.node.0,
    };
    plinth_storage::format_disk(&format).expect("an absent folder can be formatted");
    DiskRecord {
        disk,
        node: node.node,
        incarnation: Incarnation(1),
        state: State::Up,
        name: format!("{}/d0", node.name),
        size_bytes: DISK_BYTES,
        used_bytes: None,
        quarantined: None,
        write_stop_bytes: None,
    }
}
