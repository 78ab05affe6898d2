//! Metrics and readiness of a node: snapshots of each part's counters, read when a scrape arrives.

use crate::config::Config;
use crate::export::{
    WireSide, certificate_families, client_families, disk_families, gauge, meta_families, wire_families,
};
use crate::observe::{Observed, Readiness};
use crate::overview::{self, Lags, Overview};
use crate::service::NodeService;
use plinth_client::Client;
use plinth_meta::{MetaStats, ReplicaState};
use plinth_protocol::map::State;
use plinth_protocol::meta::Query;
use plinth_protocol::{GROUP_SYSTEM, NodeId, Role};
use plinth_transport::BoxFuture;
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a node asks the system group whether it still answers.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often the leader of the system group counts the whole cluster, in probes.
const OVERVIEW_EVERY_PROBES: u32 = 10;
/// Everything that can keep a node from being ready, with how bad it is.
const CHECKS: [(&str, &str); 5] =
    [("S201", "critical"), ("S202", "critical"), ("S203", "critical"), ("S204", "critical"), ("S205", "critical")];
/// How long that answer may take before the node calls itself not ready.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);

/// The node's registry, and what the parts' snapshots are turned into.
pub struct Measures {
    registry: Registry,
    parts: Arc<PartMeasures>,
}

/// The collector over a node's parts.
struct PartMeasures {
    service: NodeService,
    roles: String,
    node: NodeId,
    /// Purpose, first and last moment of each certificate.
    certificates: Mutex<Vec<(&'static str, SystemTime, SystemTime)>>,
    wires: Mutex<Vec<WireSide>>,
    lags: Mutex<Lags>,
    overview: Mutex<Overview>,
    client: Mutex<Option<Client>>,
    meta: Mutex<MetaStats>,
    /// Why the system group does not answer, where it does not.
    trouble: Mutex<Option<String>>,
}

impl Measures {
    /// Makes the registry of a node.
    pub fn new(config: &Config, node: NodeId, service: NodeService) -> Result<Measures, prometheus::Error> {
        let mut roles: Vec<String> = config.node.roles.iter().map(|&role| Role::from(role).to_string()).collect();
        roles.sort();
        let parts = Arc::new(PartMeasures {
            service,
            roles: roles.join("+"),
            node,
            certificates: Mutex::default(),
            wires: Mutex::default(),
            lags: Mutex::default(),
            overview: Mutex::default(),
            client: Mutex::default(),
            meta: Mutex::default(),
            trouble: Mutex::default(),
        });
        let registry = Registry::new();
        registry.register(Box::new(Shared(parts.clone())))?;
        Ok(Measures { registry, parts })
    }

    /// Adds the node's client once it is connected.
    pub fn set_client(&self, client: Client) {
        *lock(&self.parts.client) = Some(client);
    }

    /// Adds a certificate: what it is for, its first and its last moment.
    pub fn add_certificate(&self, purpose: &'static str, from: SystemTime, until: SystemTime) {
        lock(&self.parts.certificates).push((purpose, from, until));
    }

    /// Adds a side of the node transport.
    pub fn add_wire(&self, side: WireSide) {
        lock(&self.parts.wires).push(side);
    }

    /// Asks the system group again and again whether it answers, until the node stops.
    pub async fn probe(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        for count in 0.. {
            self.look_at_groups(count % OVERVIEW_EVERY_PROBES == 0).await;
            if let Some(client) = self.parts.client() {
                let query = Query::Map(Some(client.map().epoch));
                let answer = client.query(GROUP_SYSTEM, query, Instant::now() + PROBE_TIME_MAX).await;
                let trouble = answer.err().map(|failure| failure.to_string());
                let before = std::mem::replace(&mut *lock(&self.parts.trouble), trouble.clone());
                match (before, trouble) {
                    (None, Some(reason)) => tracing::warn!(event = "not_ready", reason, "metadata does not answer"),
                    (Some(_), None) => tracing::info!(event = "ready", "metadata answers again"),
                    _ => {}
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PROBE_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Takes the voter's counters, and now and then counts the cluster where this node leads.
    async fn look_at_groups(&self, whole: bool) {
        let Some(node) = self.parts.service.parts.meta.get() else { return };
        let stats = node.stats().await;
        lock(&self.parts.lags).look(Instant::now(), &stats.groups);
        let client = self.parts.client().filter(|_| whole && overview::leads(&stats));
        *lock(&self.parts.meta) = stats;
        if let Some(client) = client {
            let overview = Overview::ask(&client).await;
            *lock(&self.parts.overview) = overview;
        }
    }

    /// Returns the node's registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Observed for Measures {
    fn readiness(&self) -> Readiness {
        self.parts.readiness()
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(node) = self.parts.service.parts.meta.get() {
                *lock(&self.parts.meta) = node.stats().await;
            }
        })
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the registry own a collector that the node shares.
struct Shared(Arc<PartMeasures>);

impl Collector for Shared {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}

impl PartMeasures {
    fn client(&self) -> Option<Client> {
        lock(&self.client).clone()
    }

    fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        let Some(client) = self.client() else {
            readiness.read.push(("S201", "the cluster's map is not known yet".into()));
            return readiness;
        };
        if lock(&self.trouble).is_some() {
            // The socket asks for no login: where the metadata nodes are stands in the log alone.
            readiness.read.push(("S202", "metadata does not answer: no leader or no majority".into()));
        }
        {
            let meta = lock(&self.meta);
            let stopped = meta.groups.iter().filter(|group| group.state == ReplicaState::Stopped).count();
            if stopped > 0 {
                readiness.read.push(("S204", format!("{stopped} replicas here have stopped; the log says why")));
            } else if meta.recovering > 0 {
                let text = format!("{} replicas here are being brought back; the log says why", meta.recovering);
                readiness.read.push(("S204", text));
            }
            if let Some(why) = &meta.no_room {
                readiness.write.push(("S205", format!("no room for growth: {why}")));
            }
        }
        let map = client.map();
        let mut domains: Vec<&str> = map
            .disks
            .iter()
            .filter(|disk| disk.state == State::Up)
            .filter_map(|disk| map.node(disk.node))
            .filter(|node| matches!(node.state, State::Up | State::Suspect))
            .map(|node| node.domain.as_str())
            .collect();
        domains.sort_unstable();
        domains.dedup();
        // A stripe is acknowledged with one fragment owed; a cluster of one node counts its disks, not domains.
        let single = map.nodes.iter().filter(|node| node.roles.contains(&Role::Storage)).count() == 1;
        let needed = if single { 1 } else { (map.code.width() - 1).max(usize::from(map.code.k)) };
        if domains.len() < needed {
            readiness
                .write
                .push(("S203", format!("{} writable domains, code {} needs {needed}", domains.len(), map.code)));
        }
        readiness
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = vec![gauge(
            "plinth_build_info",
            "What runs here; always 1.",
            vec![(
                vec![
                    ("version", env!("CARGO_PKG_VERSION").into()),
                    ("role", self.roles.clone()),
                    ("feature_level", "1".into()),
                ],
                1.0,
            )],
        )];
        let ready = self.readiness();
        let modes = [("write", ready.write.is_empty() && ready.read.is_empty()), ("read", ready.read.is_empty())];
        let values = modes.map(|(mode, ready)| (vec![("mode", mode.to_string())], f64::from(u8::from(ready))));
        families.push(gauge("plinth_node_ready", "Whether traffic may be sent here.", values.to_vec()));
        let found = |code: &str| ready.read.iter().chain(&ready.write).any(|(reason, _)| *reason == code);
        let checks = CHECKS.map(|(code, severity)| {
            (vec![("code", code.into()), ("severity", severity.into())], f64::from(u8::from(found(code))))
        });
        families.push(gauge("plinth_health_check", "Checks that found a problem: 1.", checks.to_vec()));
        families.extend(certificate_families(&lock(&self.certificates), crate::node::wall_clock()));
        families.extend(wire_families(&lock(&self.wires)));
        if let Some(storage) = self.service.parts.storage.get() {
            families.extend(disk_families(storage));
        }
        if self.service.parts.meta.get().is_some() {
            let stats = lock(&self.meta);
            let map = self.client().map(|client| client.map());
            let lags = lock(&self.lags);
            let at_risk = map.as_ref().map_or(0, |map| lags.at_risk(self.node, map));
            families.extend(meta_families(&stats, at_risk));
            families.push(lags.family(self.node));
            if let Some(map) = map.filter(|_| overview::leads(&stats)) {
                families.extend(lock(&self.overview).families(&map));
            }
        }
        // A family without a line is left out: some scrapers refuse it.
        families.retain(|family| !family.get_metric().is_empty());
        if let Some(client) = self.client() {
            families.extend(client_families(&client));
        }
        families
    }
}
