//! Voters in one process over the in-process link, each on a runtime of its own, with folders on disk.

use bytes::Bytes;
use plinth_meta::{MetaConfig, MetaError, MetaLimits, MetaNode};
use plinth_protocol::map::{ClusterMap, NodeRecord, ShardRecord, ShardStart, State};
use plinth_protocol::meta::*;
use plinth_protocol::object::{Body, Etag, ObjectBody, StoredHeaders};
use plinth_protocol::stripe::Code;
use plinth_protocol::*;
use plinth_transport::{BoxFuture, Identity, LocalNetwork, Request, Response, Service};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;
use tokio::time::Instant;

pub const SHARD: GroupId = GroupId(1);
pub const BUCKET: BucketId = BucketId(0xb0);
/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

static SEED: AtomicU64 = AtomicU64::new(1);

/// What a node answers: its voter's calls, and pings.
struct Door(Mutex<Option<MetaNode>>);

impl Service for Door {
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let node = self.0.lock().unwrap().clone();
        Box::pin(async move {
            let node = node.ok_or_else(|| Failure::new(FailureKind::Unavailable, "starting"))?;
            match request.method {
                Method::Raft => node.handle_raft(request.caller.node, request.header, request.payload).await,
                Method::Ping => Ok(Response::default()),
                _ => Err(Failure::new(FailureKind::Invalid, "not served here")),
            }
        })
    }
}

struct Voter {
    runtime: Runtime,
    node: MetaNode,
}

/// A cluster of voters.
pub struct Cluster {
    pub network: LocalNetwork,
    pub limits: MetaLimits,
    root: tempfile::TempDir,
    founding: Founding,
    voters: Mutex<BTreeMap<NodeId, Voter>>,
    requests: AtomicU64,
    /// By how many milliseconds each voter's wall clock is ahead.
    skews: Mutex<BTreeMap<NodeId, Arc<AtomicI64>>>,
}

pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn quick_limits() -> MetaLimits {
    MetaLimits {
        election_ms_min: 400,
        election_ms_max: 800,
        heartbeat_ms: 100,
        log_segment_bytes: 1 << 20,
        log_segments_max: 64,
        ..MetaLimits::default()
    }
}

fn record(node: NodeId) -> NodeRecord {
    NodeRecord {
        node,
        name: format!("meta{}", node.0),
        roles: vec![Role::Meta],
        address: format!("meta{}:1", node.0),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: format!("meta{}", node.0),
        version: None,
        public_key: None,
    }
}

fn identity(node: NodeId) -> Identity {
    Identity { cluster: ClusterId(7), node, roles: vec![Role::Meta], incarnation: Incarnation(1) }
}

impl Cluster {
    /// Makes a cluster that `count` voters found; none is started.
    pub fn new(count: u64, limits: MetaLimits) -> Cluster {
        let voters: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let start = ShardStart { bucket: BucketId(0), key: String::new() };
        let map = ClusterMap {
            cluster: ClusterId(7),
            epoch: Epoch(1),
            nodes: voters.iter().copied().map(record).collect(),
            disks: vec![],
            pgs: vec![],
            shards: vec![ShardRecord { group: SHARD, start, voters: voters.clone() }],
            code: Code::new(1, 2),
            fragment_bytes_max: 1 << 20,
            name: "test".into(),
            voters,
            feature_level: 1,
            denied_nodes: vec![],
            revoked_certificates: vec![],
        };
        Cluster {
            network: LocalNetwork::new(),
            limits,
            root: tempfile::tempdir().unwrap(),
            founding: Founding { map, keys: vec![] },
            voters: Mutex::default(),
            requests: AtomicU64::new(1),
            skews: Mutex::default(),
        }
    }

    /// Makes a cluster of voters that have started.
    pub async fn started(count: u64) -> Arc<Cluster> {
        let cluster = Arc::new(Cluster::new(count, quick_limits()));
        for node in 1..=count {
            cluster.start(NodeId(node)).await.unwrap();
        }
        cluster
    }

    pub fn folder(&self, node: NodeId) -> PathBuf {
        self.root.path().join(node.0.to_string())
    }

    fn config(&self, node: NodeId) -> MetaConfig {
        let skew = self.skew(node);
        let founds = self.founding.map.voters.contains(&node);
        MetaConfig {
            cluster: ClusterId(7),
            node,
            folder: self.folder(node),
            found: founds.then(|| self.founding.clone()),
            clock: Arc::new(move || wall_ms().saturating_add_signed(skew.load(Ordering::Relaxed))),
            seed: SEED.fetch_add(1, Ordering::Relaxed) ^ 0xfeed_0000_0000,
            limits: self.limits.clone(),
        }
    }

    fn skew(&self, node: NodeId) -> Arc<AtomicI64> {
        self.skews.lock().unwrap().entry(node).or_default().clone()
    }

    /// Sets a voter's wall clock ahead, or behind, by so many milliseconds; it may run meanwhile.
    pub fn set_skew(&self, node: NodeId, ms: i64) {
        self.skew(node).store(ms, Ordering::Relaxed);
    }

    /// Sees to it that a voter leads a group.
    pub async fn make_lead(&self, node: NodeId, group: GroupId) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.await_leader(group).await;
            if leader == node {
                return;
            }
            assert!(Instant::now() < deadline, "{node} does not come to lead {group}");
            self.stop(leader).await;
            self.start(leader).await.unwrap();
        }
    }

    /// Starts a voter; waits while its last life still holds the folder's locks.
    pub async fn start(&self, node: NodeId) -> Result<(), MetaError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let link = Arc::new(self.network.link(identity(node)));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let door = Arc::new(Door(Mutex::new(None)));
            let starting = MetaNode::start(self.config(node), link.clone());
            match runtime.spawn(starting).await.unwrap() {
                Ok(meta) => {
                    *door.0.lock().unwrap() = Some(meta.clone());
                    self.network.attach(identity(node), door);
                    self.voters.lock().unwrap().insert(node, Voter { runtime, node: meta });
                    return Ok(());
                }
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => {
                    runtime.shutdown_background();
                    return Err(error);
                }
            }
        }
    }

    /// Ends a voter without a word to anyone: its tasks vanish where they stand.
    pub fn kill(&self, node: NodeId) {
        self.network.detach(node);
        let voter = self.voters.lock().unwrap().remove(&node).expect("runs");
        drop(voter.node);
        voter.runtime.shutdown_background();
    }

    /// Stops a voter in good order.
    pub async fn stop(&self, node: NodeId) {
        let voter = self.voters.lock().unwrap().remove(&node).expect("runs");
        voter.runtime.spawn(voter.node.shutdown()).await.unwrap();
        self.network.detach(node);
        voter.runtime.shutdown_background();
    }

    pub fn node(&self, node: NodeId) -> MetaNode {
        self.voters.lock().unwrap()[&node].node.clone()
    }

    /// Returns a voter and the runtime that it lives on.
    pub fn voter(&self, node: NodeId) -> (MetaNode, tokio::runtime::Handle) {
        let voters = self.voters.lock().unwrap();
        (voters[&node].node.clone(), voters[&node].runtime.handle().clone())
    }

    pub fn running(&self) -> Vec<NodeId> {
        self.voters.lock().unwrap().keys().copied().collect()
    }

    /// Asks a running voter something on its own runtime.
    pub async fn ask(&self, node: NodeId, request: MetaRequest, wait: Duration) -> Result<Reply, Failure> {
        let (meta, handle) = {
            let voters = self.voters.lock().unwrap();
            let Some(voter) = voters.get(&node) else {
                return Err(Failure::new(FailureKind::Unavailable, "is down"));
            };
            (voter.node.clone(), voter.runtime.handle().clone())
        };
        let asked = handle.spawn(async move { meta.handle_meta(request, Instant::now() + wait).await });
        asked.await.unwrap_or_else(|_| Err(Failure::new(FailureKind::Unknown, "was killed")))
    }

    /// Asks until somebody answers, as a client does: one request id over all tries.
    pub async fn request(&self, request: MetaRequest) -> Reply {
        let deadline = Instant::now() + PATIENCE;
        let mut leader = None;
        let mut turn = 0;
        loop {
            let running = self.running();
            let node = leader.take().filter(|node| running.contains(node)).or_else(|| {
                turn += 1;
                running.get(turn % running.len().max(1)).copied()
            });
            if let Some(node) = node {
                match self.ask(node, request.clone(), Duration::from_secs(2)).await {
                    Ok(reply) => return reply,
                    Err(failure) => {
                        let last = matches!(failure.kind, FailureKind::Invalid | FailureKind::Internal);
                        assert!(!last && Instant::now() < deadline, "{node}: {failure}");
                        leader = failure.leader;
                    }
                }
            }
            if leader.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    pub fn mutation(&self, group: GroupId, command: Command) -> Mutation {
        // The time first, as clients do.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let request = RequestId(now << 80 | u128::from(self.requests.fetch_add(1, Ordering::Relaxed)));
        Mutation { group, request, writer: None, token: None, command, issued: None, seen: None }
    }

    pub fn register(&self, node: NodeId) -> Command {
        let mut node = record(node);
        // Id 0 asks for a new one.
        node.node = NodeId(0);
        Command::RegisterNode(RegisterNode { node, public_key: None })
    }

    /// Waits until group 0 holds a record of so many voters.
    pub async fn await_records(&self, count: usize) {
        let recorded = until(|| async {
            match self.query(GROUP_SYSTEM, Query::Voters).await {
                Reply::Voters(list) => (list.voters.len() >= count).then_some(()),
                _ => None,
            }
        });
        recorded.await.expect("voters are recorded");
    }

    /// Returns the boot counter and the floor that group 0 holds of a voter.
    pub async fn recorded(&self, node: NodeId) -> (u64, u64) {
        match self.query(GROUP_SYSTEM, Query::Voters).await {
            Reply::Voters(list) => {
                let record = list.voters.iter().find(|record| record.node == node).expect("the voter is recorded");
                (record.boot, record.floor)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits until group 0's record of a voter is past the given one: a later boot, and then a higher floor.
    pub async fn await_recorded_past(&self, node: NodeId, past: (u64, u64)) {
        let risen = until(|| async {
            let (boot, floor) = self.recorded(node).await;
            (boot > past.0 && floor > past.1).then_some(())
        });
        risen.await.expect("the voter's promise is recorded");
    }

    /// Waits until nothing of a voter's last life holds its folder.
    pub async fn wait_unlocked(&self, node: NodeId) {
        let folder = self.folder(node);
        let free = until(|| async { held(&folder).is_empty().then_some(()) }).await;
        free.unwrap_or_else(|| panic!("the folder is not let go: {:?}", held(&folder)));
    }

    /// Waits until a voter's log of the shard holds fewer entries than this.
    pub async fn await_purge(&self, node: NodeId, entries: u64) {
        let purged = until(|| async {
            let stats = self.node(node).stats().await;
            let shard = stats.groups.into_iter().find(|group| group.group == SHARD)?;
            (shard.log_entries < entries).then_some(())
        });
        purged.await.unwrap_or_else(|| panic!("the log of {node} is not purged"));
    }

    pub async fn run(&self, group: GroupId, command: Command) -> Outcome {
        match self.request(MetaRequest::Mutate(self.mutation(group, command))).await {
            Reply::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    pub async fn query(&self, group: GroupId, query: Query) -> Reply {
        self.request(MetaRequest::Query(GroupQuery { group, query, seen: None })).await
    }

    pub async fn open_bucket(&self) {
        assert_eq!(self.run(SHARD, Command::OpenBucket(BUCKET)).await, Outcome::Done);
    }

    pub async fn put(&self, key: &str, bytes: usize) {
        match self.run(SHARD, put_command(key, bytes)).await {
            Outcome::Object(_) => {}
            other => panic!("put {key}: {other:?}"),
        }
    }

    /// Returns a key's row as it stands.
    pub async fn row(&self, key: &str) -> plinth_protocol::object::ObjectRow {
        let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key.into(), body: false });
        match self.query(SHARD, query).await {
            Reply::Object(view) => view.row,
            other => panic!("get {key}: {other:?}"),
        }
    }

    pub async fn has(&self, key: &str) -> bool {
        let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key.into(), body: false });
        match self.query(SHARD, query).await {
            Reply::Object(_) => true,
            Reply::Absent(_) => false,
            other => panic!("get {key}: {other:?}"),
        }
    }

    pub async fn map(&self) -> ClusterMap {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self.running().into_iter().next().unwrap();
            let request = MetaRequest::Query(GroupQuery { group: GROUP_SYSTEM, query: Query::Map(None), seen: None });
            let node = self.leader(GROUP_SYSTEM).await.unwrap_or(known);
            if let Ok(Reply::Map(map)) = self.ask(node, request, Duration::from_secs(2)).await {
                return map;
            }
            assert!(Instant::now() < deadline, "no map");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the leader of a group that a majority of the running voters names.
    pub async fn leader(&self, group: GroupId) -> Option<NodeId> {
        let mut votes: BTreeMap<NodeId, usize> = BTreeMap::new();
        let running = self.running();
        for node in &running {
            if let Some(leader) = self.status(*node, group).await.and_then(|status| status.leader) {
                *votes.entry(leader).or_default() += 1;
            }
        }
        votes.into_iter().find(|(leader, count)| count * 2 > running.len() && running.contains(leader)).map(|(l, _)| l)
    }

    pub async fn await_leader(&self, group: GroupId) -> NodeId {
        let found = until(|| async { self.leader(group).await });
        found.await.unwrap_or_else(|| panic!("no leader of {group}"))
    }

    pub async fn status(&self, node: NodeId, group: GroupId) -> Option<RaftGroupStatus> {
        let meta = self.voters.lock().unwrap().get(&node).map(|voter| voter.node.clone())?;
        match meta.handle_admin(AdminRequest::RaftStatus).await {
            Ok(AdminReply::RaftStatus(status)) => status.groups.into_iter().find(|status| status.group == group),
            _ => None,
        }
    }

    /// Asks the leader of the system group for a change, as an operator's command line does.
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.await_leader(GROUP_SYSTEM).await;
            let (meta, handle) = {
                let voters = self.voters.lock().unwrap();
                (voters[&leader].node.clone(), voters[&leader].runtime.handle().clone())
            };
            let asked = request.clone();
            match handle.spawn(async move { meta.handle_admin(asked).await }).await.unwrap() {
                Err(failure) if is_passing(failure.kind) && Instant::now() < deadline => {}
                other => return other,
            }
        }
    }
}

/// Whether an operator would ask again: no leader yet, or one that has not confirmed its lease.
fn is_passing(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::NotLeader | FailureKind::Unavailable)
}

/// Ends the voters and waits until they have let go of their folders: RocksDB's threads must not see the end of the
/// process, nor the folders go away under them.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for node in self.running() {
            self.kill(node);
        }
        let deadline = Instant::now() + PATIENCE;
        while !held(self.root.path()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Files in a folder that this process holds open.
fn held(folder: &Path) -> Vec<PathBuf> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let paths = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    paths.filter(|path| path.starts_with(folder)).collect()
}

fn is_locked(error: &MetaError) -> bool {
    let text = error.to_string();
    text.contains("lock")
}

pub fn put_command(key: &str, bytes: usize) -> Command {
    let inline = Bytes::from(vec![key.len() as u8; bytes]);
    Command::PutObject(PutObject {
        bucket: BUCKET,
        key: key.into(),
        size_bytes: bytes as u64,
        etag: Etag { md5: [7; 16], parts: None },
        checksum: None,
        body: ObjectBody { headers: StoredHeaders { standard: vec![], user: vec![] }, body: Body::Inline(inline) },
        expectation: None,
    })
}

/// Polls until something is there, for at most [`PATIENCE`].
pub async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn absent_put(key: &str) -> Command {
    match put_command(key, 100) {
        Command::PutObject(put) => {
            let expectation = Some(Expectation { kind: ExpectationKind::Absent, etag: None });
            Command::PutObject(PutObject { expectation, ..put })
        }
        other => other,
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, path) = entry.map(|entry| (entry.file_type().unwrap(), entry.path())).unwrap();
        let target = to.join(path.file_name().unwrap());
        match entry.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// A reference to a stripe that nobody has written.
pub fn stripe(sequence: u64) -> plinth_protocol::stripe::StripeRef {
    plinth_protocol::stripe::StripeRef {
        stripe: StripeId::new(WriterId(5), sequence, 0),
        pg: PgId(3),
        generation: 1,
        code: Code::new(1, 2),
        payload_bytes: 10,
        fragment_payload_bytes: 10,
        missing: None,
        plain_bytes: None,
        sealing: None,
        pack_offset: None,
    }
}

pub fn put_stripes(key: &str, stripes: Vec<plinth_protocol::stripe::StripeRef>) -> Command {
    match put_command(key, 10) {
        Command::PutObject(put) => {
            let body = ObjectBody { body: Body::Stripes(stripes), ..put.body };
            Command::PutObject(PutObject { body, ..put })
        }
        other => other,
    }
}
