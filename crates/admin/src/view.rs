//! What operators are shown: pure functions from the map and the counters to views.

use crate::report::{Report, bytes_text};
pub use crate::verdict::Reason;
use crate::verdict::{self, Collected, StopAnswer};
use plinth_protocol::Role;
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, State};
use plinth_protocol::meta::{LayoutOutcome, ShardStat};
use serde::Serialize;
use serde_json::json;

/// The cluster on one screen.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id.
    pub id: String,
    /// `OK`, `WARN` or `CRITICAL`.
    pub health: &'static str,
    /// Why it is not OK, the worst first, each with what to do.
    pub reasons: Vec<Reason>,
    /// Whether a majority of the metadata nodes confirmed this; else it is what those that answer had seen.
    pub authoritative: bool,
    /// The map's epoch.
    pub epoch: u64,
    /// Whether reads work: the metadata answers. Some objects may lack disks all the same (D202).
    pub reads: bool,
    /// Whether objects of any size can be written.
    pub writes: bool,
    /// Gateways that serve.
    pub gateways_up: usize,
    /// Gateways in all.
    pub gateways: usize,
    /// Voters that answer and take part in all their groups.
    pub voters_up: usize,
    /// Voters in all.
    pub voters: usize,
    /// Raft groups.
    pub groups: usize,
    /// Groups without a leader.
    pub leaderless: usize,
    /// Object shards that did not answer; their objects are not counted.
    pub silent_shards: usize,
    /// Voters that may be lost more.
    pub can_lose: usize,
    /// Storage nodes that are up, and in all.
    pub storage_up: usize,
    /// Storage nodes in all.
    pub storage: usize,
    /// Disks that are up.
    pub disks_up: usize,
    /// Disks in all.
    pub disks: usize,
    /// The code of new stripes.
    pub code: String,
    /// Stripes that owe fragments.
    pub owed_stripes: u64,
    /// Object bytes that fit until the write stop.
    pub usable_bytes: u64,
    /// Bytes on disks, parity included.
    pub used_bytes: u64,
    /// Live objects.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Deleted stripes that wait for the safe point.
    pub deferred_deletes: u64,
    /// Milliseconds by which expiry waits since a jump of time that nobody has confirmed.
    pub expiry_held_ms: u64,
    /// The program's version.
    pub version: &'static str,
}

/// Shows a cluster and judges it.
pub fn status(collected: &Collected<'_>) -> StatusView {
    let verdict = verdict::judge(collected);
    let map = collected.map;
    let shards = collected.shards.unwrap_or_default();
    let storage: Vec<&NodeRecord> = map.nodes.iter().filter(|node| node.roles.contains(&Role::Storage)).collect();
    let serving: Vec<&DiskRecord> = map.disks.iter().filter(|disk| collected.disk_serves(disk)).collect();
    let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0, u64::saturating_add);
    let to_the_stop = sum(&mut serving.iter().map(|disk| disk.write_stop()));
    let total = |of: fn(&ShardStat) -> u64| shards.iter().map(of).fold(0, u64::saturating_add);
    StatusView {
        cluster: map.name.clone(),
        id: map.cluster.to_string(),
        health: verdict.health(),
        authoritative: collected.confirmed,
        epoch: map.epoch.0,
        reads: verdict.reads(),
        writes: verdict.writes(),
        gateways_up: verdict.gateways.0,
        gateways: verdict.gateways.1,
        voters_up: verdict.metadata.voters_up,
        voters: verdict.metadata.voters,
        groups: 1 + map.shards.len(),
        leaderless: verdict.metadata.leaderless,
        silent_shards: collected.shards.map_or(0, |shards| map.shards.len().saturating_sub(shards.len())),
        can_lose: verdict.metadata.can_lose,
        storage_up: storage.iter().filter(|node| collected.serves(node)).count(),
        storage: storage.len(),
        disks_up: serving.len(),
        disks: map.disks.len(),
        code: map.code.to_string(),
        owed_stripes: total(|shard| shard.fill_ins),
        usable_bytes: to_the_stop / map.code.width() as u64 * u64::from(map.code.k),
        used_bytes: sum(&mut map.disks.iter().map(|disk| disk.used_bytes.unwrap_or(0))),
        objects: total(|shard| shard.objects),
        object_bytes: total(|shard| shard.object_bytes),
        deferred_deletes: total(|shard| shard.deferred_deletes),
        expiry_held_ms: shards.iter().filter_map(|shard| shard.expiry_held_ms).max().unwrap_or(0),
        version: env!("CARGO_PKG_VERSION"),
        reasons: verdict.reasons,
    }
}

/// Returns a state as people read it.
pub fn state_text(state: State) -> &'static str {
    match state {
        State::Up => "UP",
        State::Suspect => "SUSPECT",
        State::Down => "DOWN",
        State::Failed => "FAILED",
        State::Draining => "DRAINING",
        State::Retired => "RETIRED",
    }
}

impl StatusView {
    /// Returns the screen.
    pub fn text(&self) -> String {
        let count = match self.reasons.len() {
            0 => String::new(),
            1 => "  1 reason".to_string(),
            many => format!("  {many} reasons"),
        };
        let mut text = format!("CLUSTER  {} ({}…)      HEALTH  {}{count}\n", self.cluster, &self.id[..4], self.health);
        for reason in &self.reasons {
            text.push_str(&format!("  {} {}  {}\n", reason.severity, reason.code, reason.text));
            text.push_str(&format!("             next: {}\n", reason.next));
        }
        let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
        if !self.authoritative {
            text.push_str(&format!("NOT CONFIRMED by a majority: the map as of epoch {}\n", self.epoch));
        }
        let goes = |goes| if goes { "yes" } else { "NO" };
        text.push_str(&format!(
            "SERVICE    reads {}, writes {}, {}/{} gateways\n",
            goes(self.reads),
            goes(self.writes),
            self.gateways_up,
            self.gateways
        ));
        text.push_str(&format!(
            "METADATA   {}/{} voters, {} groups, can lose {}\n",
            self.voters_up, self.voters, self.groups, self.can_lose
        ));
        text.push_str(&format!(
            "STORAGE    {}/{} nodes, {}/{} disks, code {}\n",
            self.storage_up, self.storage, self.disks_up, self.disks, self.code
        ));
        text.push_str(&format!("REDUNDANCY {} stripes owe fragments\n", self.owed_stripes));
        text.push_str(&format!(
            "CAPACITY   usable {} (to the write stop)   on disks {} with parity   objects {} in {} ({:.1} %)\n",
            bytes_text(self.usable_bytes),
            bytes_text(self.used_bytes),
            self.objects,
            bytes_text(self.object_bytes),
            percent(self.object_bytes, self.usable_bytes)
        ));
        text.push_str(&format!("DELETED    {} stripes wait for the safe point\n", self.deferred_deletes));
        text.push_str(&format!("VERSION    {}\n", self.version));
        text
    }
}

/// A node as `node list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// The node's name.
    pub name: String,
    /// The node's id.
    pub id: u64,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its failure domain.
    pub domain: String,
    /// Its state.
    pub state: &'static str,
    /// Its disks that are up.
    pub disks_up: usize,
    /// Its disks.
    pub disks: usize,
    /// The node-to-node address.
    pub address: String,
    /// Whether it may be stopped now: reads, writes and service go on.
    pub safe_to_stop: bool,
    /// What would stop with it: `reads`, `writes`, `service`.
    pub stops: Vec<&'static str>,
    /// Why.
    pub reason: String,
}

/// Lists nodes.
pub fn nodes(collected: &Collected<'_>) -> Vec<NodeView> {
    let verdict = verdict::judge(collected);
    let map = collected.map;
    map.nodes
        .iter()
        .map(|node| {
            let own: Vec<&DiskRecord> = map.disks.iter().filter(|disk| disk.node == node.node).collect();
            let answer = verdict.stop.get(&node.node).cloned().unwrap_or_default();
            NodeView {
                name: node.name.clone(),
                id: node.node.0,
                roles: node.roles.iter().map(Role::to_string).collect(),
                domain: node.domain.clone(),
                state: verdict.states.get(&node.node).copied().unwrap_or(state_text(node.state)),
                disks_up: own.iter().filter(|disk| collected.disk_serves(disk)).count(),
                disks: own.len(),
                address: node.address.clone(),
                safe_to_stop: answer.stops.is_empty(),
                stops: answer.stops.iter().map(|(what, _)| *what).collect(),
                reason: reason_text(&answer),
            }
        })
        .collect()
}

/// Says what stops with a node and why; the same cause is told once.
fn reason_text(answer: &StopAnswer) -> String {
    let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
    for (what, why) in &answer.stops {
        match causes.iter_mut().find(|(known, _)| known == why) {
            Some((_, stopping)) => stopping.push(what),
            None => causes.push((why, vec![what])),
        }
    }
    if causes.is_empty() {
        return "yes".into();
    }
    let texts = causes.into_iter().map(|(why, what)| {
        let verb = if what == ["service"] { "stops" } else { "stop" };
        format!("{} {verb}: {why}", what.join(" and "))
    });
    texts.collect::<Vec<_>>().join("; ")
}

impl NodeView {
    /// Returns the cells of a table row.
    pub fn cells(&self) -> Vec<String> {
        let disks = if self.disks == 0 { "-".into() } else { format!("{}/{}", self.disks_up, self.disks) };
        let safe = if self.safe_to_stop { self.reason.clone() } else { format!("no: {}", self.reason) };
        let state = self.state.to_string();
        // Nodes of a demo have no socket.
        let address = if self.address.ends_with(":0") { "-".into() } else { self.address.clone() };
        vec![self.name.clone(), self.roles.join(","), self.domain.clone(), state, disks, address, safe]
    }
}

/// Returns the disks in the order of their names.
fn by_name(map: &ClusterMap) -> impl Iterator<Item = &DiskRecord> {
    let mut disks: Vec<&DiskRecord> = map.disks.iter().collect();
    disks.sort_by_key(|disk| &disk.name);
    disks.into_iter()
}

/// A disk as `disk list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct DiskView {
    /// The disk's name.
    pub name: String,
    /// The disk's id.
    pub id: String,
    /// The node that holds it.
    pub node: String,
    /// Its state, `NODE DOWN` where its node does not serve.
    pub state: &'static str,
    /// Its incarnation.
    pub incarnation: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its used bytes, as last reported.
    pub used_bytes: Option<u64>,
    /// Damaged fragments and other damage kept aside, as last reported.
    pub quarantined: Option<u64>,
    /// Used bytes from which on it takes no new objects.
    pub write_stop_bytes: u64,
    /// Open placement groups that it is a member of.
    pub groups: usize,
}

/// Lists disks.
pub fn disks(collected: &Collected<'_>) -> Vec<DiskView> {
    let map = collected.map;
    by_name(map)
        .map(|disk| {
            let node = map.node(disk.node);
            let serving = collected.disk_serves(disk) || disk.state != State::Up;
            DiskView {
                name: disk.name.clone(),
                id: disk.disk.to_string(),
                node: node.map_or_else(|| disk.node.to_string(), |node| node.name.clone()),
                state: if serving { state_text(disk.state) } else { "NODE DOWN" },
                incarnation: disk.incarnation.0,
                size_bytes: disk.size_bytes,
                used_bytes: disk.used_bytes,
                quarantined: disk.quarantined,
                write_stop_bytes: disk.write_stop(),
                groups: map.pgs.iter().filter(|pg| !pg.closed && pg.disks.contains(&disk.disk)).count(),
            }
        })
        .collect()
}

impl DiskView {
    /// Returns the cells of a table row.
    pub fn cells(&self) -> Vec<String> {
        let fill = match self.used_bytes {
            Some(used) if self.size_bytes > 0 => format!("{:.1} %", used as f64 * 100.0 / self.size_bytes as f64),
            _ => "-".into(),
        };
        let used = self.used_bytes.map_or("-".into(), bytes_text);
        let state = self.state.to_string();
        let groups = self.groups.to_string();
        vec![
            self.name.clone(),
            self.node.clone(),
            state,
            bytes_text(self.size_bytes),
            used,
            fill,
            self.quarantined.map_or("-".into(), |count| count.to_string()),
            groups,
            self.id.clone(),
        ]
    }
}

/// The placement table, by disk.
#[derive(Debug, Clone, Serialize)]
pub struct LayoutView {
    /// The code of new stripes.
    pub code: String,
    /// Groups that take new stripes.
    pub open: usize,
    /// Groups that only keep old ones.
    pub closed: usize,
    /// The map's epoch.
    pub epoch: u64,
    /// Each disk's share.
    pub disks: Vec<ShareView>,
}

/// A disk's share of the placement groups.
#[derive(Debug, Clone, Serialize)]
pub struct ShareView {
    /// The disk's name.
    pub disk: String,
    /// Open groups that it is a member of.
    pub open_groups: usize,
    /// Closed groups that it is a member of.
    pub closed_groups: usize,
}

/// Shows the placement table.
pub fn layout(map: &ClusterMap) -> LayoutView {
    let count = |disk: &DiskRecord, closed: bool| {
        map.pgs.iter().filter(|pg| pg.closed == closed && pg.disks.contains(&disk.disk)).count()
    };
    LayoutView {
        code: map.code.to_string(),
        open: map.pgs.iter().filter(|pg| !pg.closed).count(),
        closed: map.pgs.iter().filter(|pg| pg.closed).count(),
        epoch: map.epoch.0,
        disks: by_name(map)
            .map(|disk| ShareView {
                disk: disk.name.clone(),
                open_groups: count(disk, false),
                closed_groups: count(disk, true),
            })
            .collect(),
    }
}

/// Tells what an order for the placement groups came to.
pub fn layout_change(done: &LayoutOutcome) -> Report {
    let value = json!({"changed": done.changed, "dry_run": done.dry_run, "groups_added": done.added,
        "groups_closed": done.closed, "code": done.code.to_string(), "code_before": done.code_before.to_string(),
        "disks": done.disks, "down_and_kept": done.kept_down, "left_out": done.left_out});
    let (count, code) = (done.disks.len(), done.code);
    let mut text = match (done.changed, done.dry_run) {
        (false, _) => {
            format!("nothing to do: the placement groups are over these {count} disks with code {code} already\n")
        }
        (true, true) => format!(
            "would add {} placement groups over {count} disks with code {code} and close {}; nothing has been changed\n",
            done.added, done.closed
        ),
        (true, false) => format!(
            "{} placement groups added over {count} disks, {} closed, code {code} for new stripes\n",
            done.added, done.closed
        ),
    };
    if done.changed && code != done.code_before {
        let (before, m, m_before) = (done.code_before, code.m, done.code_before.m);
        text.push_str(&format!(
            "code {before} -> {code}: new objects bear {m} lost failure domains, {m_before} before\n"
        ));
    }
    if !done.kept_down.is_empty() {
        let names = done.kept_down.join(", ");
        text.push_str(&format!("down, keeps its place: {names}. To plan without: plinth layout apply --skip-down\n"));
    }
    if !done.left_out.is_empty() {
        text.push_str(&format!("left out: {}\n", done.left_out.join(", ")));
    }
    Report::done("LayoutChange", value, text)
}
