//! The client itself: one per process, shared by all its tasks.

use crate::bucket::BucketCache;
use crate::chance::Chance;
use crate::chart::Chart;
use crate::config::{ClientConfig, META_CALLS_MAX, REBUILD_BYTES_MAX};
use crate::counters::{CounterSnapshot, Counters};
use crate::health::{ExtraShare, Percentile95, Uptime};
use crate::memory::{Budget, Pool};
use crate::readers::Readers;
use crate::times::GroupTimes;
use crate::writer_id::WriterSlot;
use plinth_protocol::map::ClusterMap;
use plinth_protocol::stripe::Code;
use plinth_protocol::{BucketId, ClusterId, Epoch, Failure, FailureKind, GROUP_SYSTEM, GroupId, HybridTime, NodeId};
use plinth_transport::{Link, Peer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// First guess of the time within which most reads are answered.
const READ_LATENCY_FIRST: Duration = Duration::from_millis(50);
/// First guess of the time within which most writes are durable.
const WRITE_LATENCY_FIRST: Duration = Duration::from_millis(200);

/// How often idle buffers are looked at.
const POOL_TRIM_EVERY: Duration = Duration::from_secs(2);

/// Puts and gets objects across the cluster's meta and storage nodes. Clones are cheap and share
/// everything: connections, map, budgets, counters.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// What all clones share.
pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) bootstrap: Vec<Arc<Peer>>,
    pub(crate) chance: Chance,
    pub(crate) uptime: Uptime,
    pub(crate) counters: Counters,
    chart: RwLock<Arc<Chart>>,
    pub(crate) leaders: Mutex<HashMap<GroupId, NodeId>>,
    /// Groups that nobody answered for, and when that was last seen.
    pub(crate) away: Mutex<HashMap<GroupId, Instant>>,
    /// Held while the map is refreshed; when that last happened.
    pub(crate) refreshing: tokio::sync::Mutex<Option<Instant>>,
    pub(crate) times: GroupTimes,
    pub(crate) meta_calls: Semaphore,
    pub(crate) buckets: BucketCache,
    pub(crate) writer: WriterSlot,
    pub(crate) write_budget: Budget,
    pub(crate) read_budget: Budget,
    pub(crate) readers: Readers,
    /// Inputs of ranges that are being rebuilt, beside what their readers hold.
    pub(crate) rebuild_budget: Budget,
    pub(crate) pool: Arc<Pool>,
    pub(crate) read_latency: Percentile95,
    pub(crate) write_latency: Percentile95,
    pub(crate) extra_reads: ExtraShare,
}

impl Client {
    /// Learns the map from one of the configured meta peers and starts to keep it fresh. Fails with
    /// `Unavailable` when no peer answers within the configured time.
    pub async fn connect(config: ClientConfig, link: Arc<dyn Link>) -> Result<Client, Failure> {
        let client = Client { inner: Arc::new(Inner::new(config, link)) };
        let deadline = Instant::now() + client.inner.config.connect_timeout;
        client.fetch_map(deadline).await?;
        tokio::spawn(keep_map_fresh(Arc::downgrade(&client.inner)));
        Ok(client)
    }

    /// Makes a client that knows no map yet: [`Client::refresh_map`] learns it. For callers that want to say more than
    /// that nobody answered.
    pub fn unconnected(config: ClientConfig, link: Arc<dyn Link>) -> Client {
        Client { inner: Arc::new(Inner::new(config, link)) }
    }

    /// Returns the map as last learned.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.chart().map.clone()
    }

    /// Returns the group that owns a key. Without any shard in the map it is the system group,
    /// which refuses objects.
    pub fn group_of(&self, bucket: BucketId, key: &str) -> GroupId {
        self.chart().map.shard(bucket, key).map_or(GROUP_SYSTEM, |shard| shard.group)
    }

    /// Returns the counters as they stand.
    pub fn counters(&self) -> CounterSnapshot {
        let mut snapshot = self.inner.counters.snapshot();
        snapshot.write_bytes_held = self.inner.write_budget.held_bytes();
        snapshot.read_bytes_held = self.inner.read_budget.held_bytes();
        snapshot
    }

    /// Draws 128 random bits, for upload ids and request ids.
    pub fn draw(&self) -> u128 {
        self.inner.chance.u128()
    }

    /// Returns wall time by the configured clock: for signatures and people, never for what is stored.
    pub fn now(&self) -> HybridTime {
        HybridTime::from_millis((self.inner.config.clock)())
    }

    /// Returns a group's time as last seen and gone on since; nothing before its first answer.
    pub fn group_time(&self, group: GroupId) -> Option<HybridTime> {
        self.inner.times.now(group)
    }

    /// Returns the time to be written into the headers of new fragments.
    pub(crate) fn made(&self) -> u64 {
        self.group_time(GROUP_SYSTEM).unwrap_or_else(|| self.now()).0
    }

    /// Returns by how many milliseconds this machine's wall clock is ahead of the cluster's time, behind it where
    /// negative; nothing before the system group's first answer.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        let time = self.group_time(GROUP_SYSTEM)?.millis();
        Some((self.inner.config.clock)() as i64 - time as i64)
    }

    pub(crate) fn chart(&self) -> Arc<Chart> {
        self.inner.chart.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a map over, unless a newer one is known.
    pub(crate) fn take_map(&self, map: ClusterMap) {
        let mut chart = self.inner.chart.write().unwrap_or_else(PoisonError::into_inner);
        if map.epoch > chart.map.epoch {
            *chart = Arc::new(Chart::new(map, Some(&chart)));
        }
    }

    /// Returns how to reach a node that the map or the configuration knows.
    pub(crate) fn find_peer(&self, chart: &Chart, node: NodeId) -> Option<Arc<Peer>> {
        let configured = || self.inner.bootstrap.iter().find(|peer| peer.node == node).cloned();
        chart.peer(node).or_else(configured)
    }
}

impl Inner {
    fn new(config: ClientConfig, link: Arc<dyn Link>) -> Self {
        Inner {
            link,
            bootstrap: config.peers.iter().cloned().map(Arc::new).collect(),
            chance: Chance::new(config.seed),
            uptime: Uptime::new(),
            counters: Counters::default(),
            chart: RwLock::new(Arc::new(Chart::new(empty_map(), None))),
            leaders: Mutex::default(),
            away: Mutex::default(),
            refreshing: tokio::sync::Mutex::new(None),
            times: GroupTimes::default(),
            meta_calls: Semaphore::new(META_CALLS_MAX),
            buckets: BucketCache::default(),
            writer: WriterSlot::default(),
            write_budget: Budget::new(config.write_bytes_max),
            read_budget: Budget::new(config.read_bytes_max),
            readers: Readers::default(),
            rebuild_budget: Budget::new(REBUILD_BYTES_MAX),
            pool: Pool::new(config.pool_bytes_max),
            read_latency: Percentile95::new(READ_LATENCY_FIRST),
            write_latency: Percentile95::new(WRITE_LATENCY_FIRST),
            extra_reads: ExtraShare::new(),
            config,
        }
    }
}

/// The map before the first one is learned: nothing, under epoch 0.
fn empty_map() -> ClusterMap {
    ClusterMap {
        cluster: ClusterId(0),
        epoch: Epoch(0),
        nodes: Vec::new(),
        disks: Vec::new(),
        pgs: Vec::new(),
        shards: Vec::new(),
        code: Code::new(1, 0),
        fragment_bytes_max: 0,
        name: String::new(),
        voters: Vec::new(),
        feature_level: 0,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    }
}

/// Asks for a newer map from time to time, until the last clone of the client is gone.
async fn keep_map_fresh(inner: Weak<Inner>) {
    let mut trimmed = Instant::now();
    loop {
        let Some(pause) = inner.upgrade().map(|inner| inner.chance.jitter(inner.config.map_refresh_every)) else {
            return;
        };
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        if trimmed.elapsed() >= POOL_TRIM_EVERY {
            trimmed = Instant::now();
            inner.pool.trim();
        }
        if let Err(failure) = (Client { inner }).refresh_map().await {
            tracing::debug!(%failure, "map not refreshed");
        }
    }
}

/// Makes the failure that says that the other side broke the protocol.
pub(crate) fn unexpected(what: &str) -> Failure {
    Failure::new(FailureKind::Internal, format!("unexpected answer: {what}"))
}
