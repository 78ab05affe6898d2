//! Metrics and readiness of a node: snapshots of each part's counters, read when a scrape arrives.

use crate::config::{Config, RoleName};
use crate::disks::Memory;
use crate::export::{
    WireSide, certificate_families, client_families, disk_families, gauge, meta_families, wire_families,
};
use crate::observe::{Observed, Readiness, ReadyReason};
use crate::overview::{self, Lags, Overview};
use crate::process_metrics;
use crate::service::{NodeService, SelfReport};
use plinth_admin::verdict::{self, Answers, Collected, Stops, Verdict};
use plinth_admin::view;
use plinth_client::Client;
use plinth_meta::{MetaNode, MetaStats, VoterReport};
use plinth_protocol::map::{ClusterMap, State};
use plinth_protocol::meta::{CLOCK_BOUND_MS, DueQuery, NodeReason, NodeReport, Query};
use plinth_protocol::{Epoch, GROUP_SYSTEM, HybridTime, NodeId, Role};
use plinth_transport::BoxFuture;
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a node asks the metadata whether it still answers.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often the leader of the system group counts the whole cluster, in probes.
const OVERVIEW_EVERY_PROBES: u32 = 20;
/// Everything that can keep a node from being ready, with how bad it is. Those below S200 are the cluster's.
const CHECKS: [(&str, &str); 17] = [
    ("M101", "critical"),
    ("L401", "critical"),
    ("S201", "critical"),
    ("S202", "critical"),
    ("S203", "critical"),
    ("S204", "critical"),
    ("S205", "critical"),
    ("S206", "critical"),
    ("S207", "warning"),
    ("S208", "warning"),
    ("S209", "critical"),
    ("S210", "critical"),
    ("S211", "critical"),
    ("S212", "warning"),
    ("D201", "warning"),
    ("D202", "critical"),
    ("M107", "warning"),
];
/// How far a gateway's clock may be from the cluster's time before it takes no traffic, in milliseconds: it would refuse
/// requests as too old or too new (15 min) whose senders' clocks are right.
const CLOCK_OFFSET_MS_MAX: u64 = 5 * 60 * 1000;
/// From where on a node's clock is told to be wrong, in milliseconds: twice the bound of the cluster's time, which may
/// itself be off by one.
const CLOCK_OFFSET_MS_WARN: u64 = 2 * CLOCK_BOUND_MS;
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
    is_gateway: bool,
    node: NodeId,
    name: String,
    /// The folders of the node's disks.
    disks: OnceLock<Arc<Memory>>,
    /// Purpose, first and last moment of each certificate.
    certificates: Mutex<Vec<(&'static str, SystemTime, SystemTime)>>,
    wires: Mutex<Vec<WireSide>>,
    lags: Mutex<Lags>,
    overview: Mutex<Overview>,
    client: Mutex<Option<Client>>,
    meta: Mutex<MetaStats>,
    /// Why the system group does not answer, where it does not.
    trouble: Mutex<Option<String>>,
    /// Whether the log has been told that the wall clock is off.
    clock_told: AtomicBool,
}

impl Measures {
    /// Makes the registry of a node.
    pub fn new(config: &Config, node: NodeId, service: NodeService) -> Result<Measures, prometheus::Error> {
        let mut roles: Vec<String> = config.node.roles.iter().map(|&role| Role::from(role).to_string()).collect();
        roles.sort();
        let parts = Arc::new(PartMeasures {
            service,
            roles: roles.join("+"),
            is_gateway: config.has_role(RoleName::Gateway),
            node,
            name: config.node.name.clone(),
            disks: OnceLock::new(),
            certificates: Mutex::default(),
            wires: Mutex::default(),
            lags: Mutex::default(),
            overview: Mutex::default(),
            client: Mutex::default(),
            meta: Mutex::default(),
            trouble: Mutex::default(),
            clock_told: AtomicBool::new(false),
        });
        let own: Weak<dyn SelfReport> = Arc::downgrade(&(parts.clone() as Arc<dyn SelfReport>));
        let _ = parts.service.parts.own.set(own);
        let registry = Registry::new();
        registry.register(Box::new(Shared(parts.clone())))?;
        Ok(Measures { registry, parts })
    }

    /// Adds what the node knows of its disks.
    pub fn set_disks(&self, disks: Arc<Memory>) {
        let _ = self.parts.disks.set(disks);
    }

    /// Returns the node's client, where it is connected.
    pub fn client(&self) -> Option<Client> {
        self.parts.client()
    }

    /// Adds the node's client once it is connected.
    pub fn set_client(&self, client: Client) {
        *lock(&self.parts.client) = Some(client);
    }

    /// Sets the certificate of a purpose: its first and its last moment.
    pub fn set_certificate(&self, purpose: &'static str, from: SystemTime, until: SystemTime) {
        let mut certificates = lock(&self.parts.certificates);
        certificates.retain(|(known, _, _)| *known != purpose);
        certificates.push((purpose, from, until));
    }

    /// Adds a side of the node transport.
    pub fn add_wire(&self, side: WireSide) {
        lock(&self.parts.wires).push(side);
    }

    /// Asks the metadata again and again whether it still answers, and logs when the node gets ready or is so no more,
    /// until the node stops.
    pub async fn probe(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut told: Option<Vec<String>> = None;
        for count in 0.. {
            self.look_at_groups(count % OVERVIEW_EVERY_PROBES == 0).await;
            if let Some(client) = self.parts.client() {
                let trouble = self.ask_metadata(&client).await;
                *lock(&self.parts.trouble) = trouble;
                self.parts.look_at_clock(&client);
            }
            self.tell(&mut told);
            tokio::select! {
                () = tokio::time::sleep(PROBE_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Asks the system group, and on a gateway every object shard. Returns what does not answer.
    async fn ask_metadata(&self, client: &Client) -> Option<String> {
        let (map, deadline) = (client.map(), Instant::now() + PROBE_TIME_MAX);
        let mut questions = vec![(GROUP_SYSTEM, Query::Map(Some(map.epoch)))];
        if self.parts.is_gateway {
            // The cheapest question to a shard: the first of no rows.
            let none = DueQuery { before: HybridTime(0), after: None, limit: 1, age_ms: None };
            questions.extend(map.shards.iter().map(|shard| (shard.group, Query::FillIns(none.clone()))));
        }
        let asked = questions.into_iter().map(|(group, query)| client.query(group, query, deadline));
        futures_util::future::join_all(asked).await.into_iter().find_map(|answer| Some(answer.err()?.to_string()))
    }

    /// Logs why the node is not ready, when that changes.
    fn tell(&self, told: &mut Option<Vec<String>>) {
        let readiness = self.parts.readiness();
        let codes: Vec<String> = readiness.all().map(|reason| reason.code.clone()).collect();
        if told.as_ref() == Some(&codes) || (told.is_none() && codes.is_empty()) {
            return;
        }
        let why = lock(&self.parts.trouble).clone().unwrap_or_default();
        for reason in readiness.all() {
            let (code, text, next) = (&reason.code, &reason.text, &reason.next);
            match code.as_str() {
                // Where the metadata nodes are stands in the log alone.
                "S202" => tracing::warn!(event = "not_ready", code, text, next, why, "not ready"),
                _ => tracing::warn!(event = "not_ready", code, text, next, "not ready"),
            }
        }
        if codes.is_empty() {
            tracing::info!(event = "ready", "ready");
        }
        *told = Some(codes);
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

fn severity_of(code: &str) -> &'static str {
    CHECKS.iter().find(|(known, _)| *known == code).map_or("critical", |(_, severity)| severity)
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

impl SelfReport for PartMeasures {
    fn report(&self, known: Epoch) -> NodeReport {
        let meta = self.service.parts.meta.get();
        let seen = || self.client().map(|client| client.map()).filter(|map| map.epoch > known);
        let map = match meta {
            Some(meta) => meta.own_map(known),
            None => seen().map(|map| map.as_ref().clone()),
        };
        let (node, reasons) = (self.node, self.own_reasons_and_clock());
        let none = NodeReport { node, map: None, raft: None, voters: vec![], refused_by: vec![], reasons: vec![] };
        let report = meta.map_or(none, |meta| self.voter_report(meta));
        NodeReport { map, reasons, ..report }
    }
}

impl PartMeasures {
    fn client(&self) -> Option<Client> {
        lock(&self.client).clone()
    }

    /// Tells the log when the wall clock goes wrong, and when it is right again.
    fn look_at_clock(&self, client: &Client) {
        let Some(offset_ms) = client.clock_offset_ms() else { return };
        let off = offset_ms.unsigned_abs() >= CLOCK_OFFSET_MS_WARN;
        match (self.clock_told.swap(off, Ordering::Relaxed), off) {
            (false, true) => tracing::error!(
                event = "clock_off",
                offset_ms,
                "this node's wall clock is not the cluster's time: set it right (chrony, NTP)"
            ),
            (true, false) => tracing::info!(event = "clock_right", offset_ms, "this node's wall clock is right again"),
            _ => {}
        }
    }

    fn readiness(&self) -> Readiness {
        let own = self.own_reasons_and_clock();
        let mut readiness = Readiness::default();
        for reason in own {
            let stops = self.stops(&reason.code);
            readiness.add(ReadyReason { code: reason.code, text: reason.text, next: reason.next, stops });
        }
        let Some(client) = self.client() else {
            let text = "the cluster's map is not known yet".into();
            let next = "plinth status".into();
            readiness.add(ReadyReason { code: "S201".into(), text, next, stops: Stops::Everything });
            return readiness;
        };
        if lock(&self.trouble).is_some() {
            // The socket asks for no login: where the metadata nodes are stands in the log alone.
            let text = "metadata does not answer: no leader or no majority".into();
            let next = "plinth status".into();
            readiness.add(ReadyReason { code: "S202".into(), text, next, stops: Stops::Everything });
        }
        for reason in self.verdict(&client.map()).reasons {
            // Of what is wrong elsewhere only that concerns the node's readiness which stops reads or writes.
            if reason.stops != Stops::Nothing || reason.code == "D202" {
                let verdict::Reason { code, text, next, stops, .. } = reason;
                readiness.add(ReadyReason { code, text, next, stops });
            }
        }
        readiness
    }

    /// Judges the cluster by the map and what this node knows itself.
    fn verdict(&self, map: &ClusterMap) -> Verdict {
        let answers = self.own_answers();
        verdict::judge(&Collected { map, confirmed: true, answers: &answers, shards: None, demo: false })
    }

    /// What this node can answer itself.
    fn own_answers(&self) -> Answers {
        let report = self.service.parts.meta.get().map(|meta| (self.node, Ok(self.voter_report(meta))));
        report.into_iter().collect()
    }

    fn voter_report(&self, meta: &MetaNode) -> NodeReport {
        let VoterReport { raft, voters, refused_by } = meta.report();
        NodeReport { node: self.node, map: None, raft: Some(raft), voters, refused_by, reasons: Vec::new() }
    }

    /// What goes on no more at this node because of something that is wrong with itself.
    fn stops(&self, code: &str) -> Stops {
        match code {
            // A gateway that the leader can't reach serves its clients all the same.
            "S208" if self.is_gateway => Stops::Nothing,
            "D201" => Stops::Nothing,
            "S205" => Stops::Writes,
            _ => Stops::Everything,
        }
    }

    /// Returns what is wrong with this node itself, a gateway's clock included.
    fn own_reasons_and_clock(&self) -> Vec<NodeReason> {
        let mut reasons = self.own_reasons();
        let offset_ms = self.client().and_then(|client| client.clock_offset_ms()).unwrap_or(0);
        if self.is_gateway && offset_ms.unsigned_abs() >= CLOCK_OFFSET_MS_MAX {
            let text =
                format!("the clock is {} s off: signed requests are refused as too old or too new", offset_ms / 1000);
            reasons.push(NodeReason {
                code: "S211".into(),
                text,
                next: "set the node's clock right (chrony, NTP)".into(),
            });
        }
        reasons
    }

    /// Returns what is wrong with this node itself.
    fn own_reasons(&self) -> Vec<NodeReason> {
        let mut reasons = Vec::new();
        let mut add = |code: &str, text: String, next: &str| {
            reasons.push(NodeReason { code: code.into(), text, next: next.into() });
        };
        let name = &self.name;
        let now = crate::node::wall_clock();
        for (purpose, _, until) in lock(&self.certificates).iter().filter(|(_, _, until)| now > *until) {
            // Before all else: it is the reason for what follows.
            let ended = crate::identity::moment_text(*until);
            let remedy = match *purpose {
                "node" => "plinth cert reissue --config A_METADATA_NODES_PLINTH_TOML --node THIS_NODES_FOLDER",
                _ => "replace the files of gateway.tls_certificate and gateway.tls_private_key",
            };
            add("S210", format!("the {purpose} certificate ended on {ended}"), remedy);
        }
        if self.service.parts.leaving.load(Ordering::Acquire) {
            add("S207", "the node is stopping".into(), "wait for its end");
        } else if let Some(map) = self.client().map(|client| client.map())
            && let Some(own) = map.node(self.node)
            && matches!(own.state, State::Suspect | State::Down)
        {
            let state = view::state_text(own.state);
            let text = format!("the cluster has this node as {state}: its leader does not reach it at {}", own.address);
            add("S208", text, "plinth node list");
        }
        if let Some(meta) = self.service.parts.meta.get() {
            let report = meta.report();
            let stopped = report.raft.groups.iter().filter(|group| group.stopped.is_some()).count();
            if stopped > 0 {
                add("S204", format!("{stopped} replicas here have stopped; the log says why"), "start the node again");
            } else if lock(&self.meta).recovering > 0 {
                let recovering = lock(&self.meta).recovering;
                add("S204", format!("{recovering} replicas here are being brought back; the log says why"), "wait");
            }
            if let Some(why) = &lock(&self.meta).no_room {
                add("S205", format!("no room for growth: {why}"), "free room on its file system");
            }
            if let Some((_, reason)) = report.refused_by.first() {
                let text =
                    format!("the other voters refuse this one, which must not vote again under its id: {reason}");
                let remedy = format!("plinth raft remove {name} && plinth cluster token create --roles meta");
                add("S209", text, &remedy);
            }
        }
        if let (Some(storage), Some(disks)) = (self.service.parts.storage.get(), self.disks.get()) {
            if storage.disks().iter().all(|disk| disk.fenced.is_some()) {
                add("S206", "no disk is in service".into(), "plinth disk list");
            }
            reasons.extend(disks.reasons(storage, name));
        }
        reasons
    }

    /// Returns every check with whether it found a problem: those of the node everywhere, those of the cluster where this
    /// node leads the system group.
    fn checks(&self, ready: &Readiness) -> Vec<(Vec<(&'static str, String)>, f64)> {
        let mut found: BTreeSet<(String, String)> =
            ready.all().map(|reason| (reason.code.clone(), severity_of(&reason.code).to_string())).collect();
        let offset_ms = self.client().and_then(|client| client.clock_offset_ms()).unwrap_or(0);
        if offset_ms.unsigned_abs() >= CLOCK_OFFSET_MS_WARN {
            found.insert(("S212".into(), "warning".into()));
        }
        let mut known: BTreeSet<(String, String)> =
            CHECKS.iter().map(|(code, severity)| (code.to_string(), severity.to_string())).collect();
        if let Some(map) = self.client().map(|client| client.map()).filter(|_| overview::leads(&lock(&self.meta))) {
            let verdict = lock(&self.overview).verdict(&map, self.own_answers());
            let name = |severity: &str| if severity == "WARN" { "warning" } else { "critical" }.to_string();
            found.extend(verdict.reasons.iter().map(|reason| (reason.code.clone(), name(reason.severity))));
            let of_verdicts =
                verdict::CODES.iter().flat_map(|(code, severities)| severities.iter().map(move |one| (*code, *one)));
            known.extend(of_verdicts.map(|(code, severity)| (code.to_string(), name(severity))));
        }
        known.extend(found.iter().cloned());
        let line = |(code, severity): (String, String)| {
            let holds = found.contains(&(code.clone(), severity.clone()));
            (vec![("code", code), ("severity", severity)], f64::from(u8::from(holds)))
        };
        known.into_iter().map(line).collect()
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
        let modes = [("write", ready.writes()), ("read", ready.reads())];
        let values = modes.map(|(mode, ready)| (vec![("mode", mode.to_string())], f64::from(u8::from(ready))));
        families.push(gauge("plinth_node_ready", "Whether traffic may be sent here.", values.to_vec()));
        families.push(gauge("plinth_health_check", "Checks that found a problem: 1.", self.checks(&ready)));
        families.extend(process_metrics::families());
        families.extend(certificate_families(&lock(&self.certificates), crate::node::wall_clock()));
        families.extend(wire_families(&lock(&self.wires)));
        if let Some(storage) = self.service.parts.storage.get() {
            let map = self.client().map(|client| client.map());
            let name =
                |id| map.as_ref().and_then(|map| map.disk(id)).map_or_else(|| id.to_string(), |disk| disk.name.clone());
            families.extend(disk_families(storage, name));
        }
        if self.service.parts.meta.get().is_some() {
            let stats = lock(&self.meta);
            let map = self.client().map(|client| client.map());
            let lags = lock(&self.lags);
            let at_risk = map.as_ref().map_or(0, |map| self.verdict(map).metadata.at_risk);
            families.extend(meta_families(&stats, at_risk));
            families.push(lags.family(self.node));
            if let Some(map) = map.filter(|_| overview::leads(&stats)) {
                families.extend(lock(&self.overview).families(&map, self.own_answers()));
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
