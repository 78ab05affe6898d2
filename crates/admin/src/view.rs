//! What operators are shown: pure functions from the map and the counters to views.

use crate::report::{Report, bytes_text};
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, State};
use plinth_protocol::meta::{LayoutOutcome, RaftStatus, ShardStat};
use plinth_protocol::{GROUP_SYSTEM, NodeId, Role};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;

/// Share of a disk's bytes at which writes stop, in percent (design, section 4).
pub const WRITE_STOP_PERCENT: u64 = 85;
/// Share of a disk's bytes, in percent, from which on `status` warns of the write stop.
const WRITE_STOP_NEAR_PERCENT: u64 = 80;

/// The cluster on one screen.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id.
    pub id: String,
    /// `OK`, `WARN` or `CRITICAL`.
    pub health: &'static str,
    /// Why it is not OK, each with the next command.
    pub reasons: Vec<Reason>,
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
    /// The program's version.
    pub version: &'static str,
}

/// One reason why a cluster is not OK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `WARN` or `CRITICAL`.
    pub severity: &'static str,
    /// A code that stays the same for ever.
    pub code: &'static str,
    /// What is wrong and what it means.
    pub text: String,
    /// The command to look further.
    pub next: String,
}

/// Judges a cluster.
pub fn status(map: &ClusterMap, raft: &[(NodeRecord, RaftStatus)], shards: &[ShardStat]) -> StatusView {
    let is_whole = |status: &RaftStatus| status.groups.iter().all(|group| group.stopped.is_none());
    let answered = |id: &NodeId| raft.iter().any(|(node, status)| node.node == *id && is_whole(status));
    let voters_up = map.voters.iter().filter(|id| answered(id)).count();
    let groups = 1 + map.shards.len();
    let led = led_groups(map, raft);
    let storage: Vec<&NodeRecord> = map.nodes.iter().filter(|node| node.roles.contains(&Role::Storage)).collect();
    let used_bytes = map.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.used_bytes.unwrap_or(0)));
    let serving = map.disks.iter().filter(|disk| is_serving(map, disk));
    let raw = serving.fold(0u64, |sum, disk| sum.saturating_add(disk.size_bytes));
    let quorum = map.voters.len() / 2 + 1;
    let total = |of: fn(&ShardStat) -> u64| shards.iter().map(of).fold(0, u64::saturating_add);
    let owed_stripes = total(|shard| shard.fill_ins);
    let mut view = StatusView {
        cluster: map.name.clone(),
        id: map.cluster.to_string(),
        health: "OK",
        reasons: Vec::new(),
        voters_up,
        voters: map.voters.len(),
        groups,
        leaderless: groups.saturating_sub(led),
        silent_shards: map.shards.len().saturating_sub(shards.len()),
        can_lose: voters_up.saturating_sub(quorum),
        storage_up: storage.iter().filter(|node| node.state == State::Up).count(),
        storage: storage.len(),
        disks_up: map.disks.iter().filter(|disk| is_serving(map, disk)).count(),
        disks: map.disks.len(),
        code: map.code.to_string(),
        owed_stripes,
        usable_bytes: raw / map.code.width() as u64 * u64::from(map.code.k) / 100 * WRITE_STOP_PERCENT,
        used_bytes,
        objects: total(|shard| shard.objects),
        object_bytes: total(|shard| shard.object_bytes),
        deferred_deletes: total(|shard| shard.deferred_deletes),
        version: env!("CARGO_PKG_VERSION"),
    };
    view.reasons = reasons(map, raft, &view);
    view.health = if view.reasons.iter().any(|reason| reason.severity == "CRITICAL") {
        "CRITICAL"
    } else if view.reasons.is_empty() {
        "OK"
    } else {
        "WARN"
    };
    view
}

/// Counts the groups that some voter knows a leader of.
fn led_groups(map: &ClusterMap, raft: &[(NodeRecord, RaftStatus)]) -> usize {
    let ids = std::iter::once(GROUP_SYSTEM).chain(map.shards.iter().map(|shard| shard.group));
    ids.filter(|id| {
        raft.iter().flat_map(|(_, status)| &status.groups).any(|group| group.group == *id && group.leader.is_some())
    })
    .count()
}

fn is_serving(map: &ClusterMap, disk: &DiskRecord) -> bool {
    disk.state == State::Up && map.node(disk.node).is_some_and(|node| node.state == State::Up)
}

/// Returns code and text for each replica that has stopped or is not what it should be; what is said of a node's replicas alike
/// stands once.
fn replica_troubles(raft: &[(NodeRecord, RaftStatus)]) -> Vec<(&'static str, String)> {
    let (mut troubles, mut told) = (Vec::new(), BTreeSet::new());
    for (node, group) in raft.iter().flat_map(|(node, status)| status.groups.iter().map(move |group| (node, group))) {
        if let Some(why) = &group.condition {
            if told.insert((node.name.as_str(), why.as_str())) {
                troubles.push(("M105", format!("node {}: {why}", node.name)));
            }
        } else if let Some(why) = &group.stopped {
            let text =
                format!("node {} takes part in {} no more until it is started again: {why}", node.name, group.group);
            troubles.push(("M104", text));
        }
    }
    troubles
}

fn reasons(map: &ClusterMap, raft: &[(NodeRecord, RaftStatus)], view: &StatusView) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |severity, code, text: String, next: &str| {
        reasons.push(Reason { severity, code, text, next: next.to_string() });
    };
    if view.leaderless > 0 {
        let text =
            format!("{} of {} metadata groups have no leader: no reads, no writes", view.leaderless, view.groups);
        add("CRITICAL", "M101", text, "plinth raft status");
    }
    if view.silent_shards > 0 {
        let text = format!("{} of {} object shards do not answer", view.silent_shards, map.shards.len());
        add("CRITICAL", "M103", text, "plinth raft status");
    }
    if view.voters_up < view.voters {
        let text = format!(
            "{} of {} metadata nodes take part; {} more may be lost",
            view.voters_up, view.voters, view.can_lose
        );
        add(if view.can_lose == 0 && view.voters > 1 { "CRITICAL" } else { "WARN" }, "M102", text, "plinth node list");
    }
    for (code, text) in replica_troubles(raft) {
        add("WARN", code, text, "plinth raft status");
    }
    for node in map.nodes.iter().filter(|node| node.state != State::Up && node.roles.contains(&Role::Storage)) {
        add("WARN", "N201", format!("node {} is {}", node.name, state_text(node.state)), "plinth node list");
    }
    let down = failed_domains(map);
    if down > usize::from(map.code.m) {
        let text = format!(
            "{down} failure domains do not serve, the code {} bears {}: some objects can't be read",
            map.code, map.code.m
        );
        add("CRITICAL", "D202", text, "plinth disk list");
    }
    for disk in map.disks.iter().filter(|disk| disk.state != State::Up) {
        add("WARN", "D201", format!("disk {} is {}", disk.name, state_text(disk.state)), "plinth disk list");
    }
    for disk in map.disks.iter().filter(|disk| is_serving(map, disk) && disk.size_bytes > 0) {
        let percent = (u128::from(disk.used_bytes.unwrap_or(0)) * 100 / u128::from(disk.size_bytes)) as u64;
        if percent >= WRITE_STOP_PERCENT {
            let text = format!("disk {} is {percent} % full: it takes no new objects", disk.name);
            add("CRITICAL", "D204", text, "plinth disk list");
        } else if percent >= WRITE_STOP_NEAR_PERCENT {
            let text = format!(
                "disk {} is {percent} % full; from {WRITE_STOP_PERCENT} % on it takes no new objects",
                disk.name
            );
            add("WARN", "D203", text, "plinth disk list");
        }
    }
    if view.owed_stripes > 0 {
        add(
            "WARN",
            "R301",
            format!("{} stripes owe fragments; fill-in is under way", view.owed_stripes),
            "plinth status",
        );
    }
    if map.pgs.iter().all(|pg| pg.closed) {
        add("CRITICAL", "L401", "no placement group takes new stripes".into(), "plinth layout apply");
    }
    reasons
}

fn failed_domains(map: &ClusterMap) -> usize {
    let mut domains: Vec<&str> = map
        .disks
        .iter()
        .filter(|disk| !is_serving(map, disk))
        .filter_map(|disk| map.node(disk.node).map(|node| node.domain.as_str()))
        .collect();
    domains.sort_unstable();
    domains.dedup();
    domains.len()
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
            "CAPACITY   usable {} (to the {WRITE_STOP_PERCENT} % write stop)   on disks {} with parity   objects {} in {} ({:.1} %)\n",
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
    /// Whether it may be stopped now without harm to reads and writes.
    pub safe_to_stop: bool,
    /// Why.
    pub reason: String,
}

/// Lists nodes.
pub fn nodes(map: &ClusterMap, raft: &[(NodeRecord, RaftStatus)]) -> Vec<NodeView> {
    let voters_up = map.voters.iter().filter(|id| raft.iter().any(|(node, _)| node.node == **id)).count();
    map.nodes
        .iter()
        .map(|node| {
            let own: Vec<&DiskRecord> = map.disks.iter().filter(|disk| disk.node == node.node).collect();
            let (safe_to_stop, reason) = safe_to_stop(map, node, voters_up);
            NodeView {
                name: node.name.clone(),
                id: node.node.0,
                roles: node.roles.iter().map(Role::to_string).collect(),
                domain: node.domain.clone(),
                state: state_text(node.state),
                disks_up: own.iter().filter(|disk| is_serving(map, disk)).count(),
                disks: own.len(),
                address: node.address.clone(),
                safe_to_stop,
                reason,
            }
        })
        .collect()
}

fn safe_to_stop(map: &ClusterMap, node: &NodeRecord, voters_up: usize) -> (bool, String) {
    let quorum = map.voters.len() / 2 + 1;
    if map.voters.contains(&node.node) && voters_up <= quorum {
        return (false, format!("{voters_up} voters answer and {quorum} must"));
    }
    if node.roles.contains(&Role::Storage) {
        let mut domains: Vec<&str> = map
            .disks
            .iter()
            .filter(|disk| !is_serving(map, disk))
            .filter_map(|disk| map.node(disk.node).map(|node| node.domain.as_str()))
            .chain([node.domain.as_str()])
            .collect();
        domains.sort_unstable();
        domains.dedup();
        if domains.len() > usize::from(map.code.m) {
            return (
                false,
                format!("{} failure domains would be gone, the code {} bears {}", domains.len(), map.code, map.code.m),
            );
        }
    }
    (true, "yes".into())
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
    /// Open placement groups that it is a member of.
    pub groups: usize,
}

/// Lists disks.
pub fn disks(map: &ClusterMap) -> Vec<DiskView> {
    by_name(map)
        .map(|disk| {
            let node = map.node(disk.node);
            let serving = is_serving(map, disk) || disk.state != State::Up;
            DiskView {
                name: disk.name.clone(),
                id: disk.disk.to_string(),
                node: node.map_or_else(|| disk.node.to_string(), |node| node.name.clone()),
                state: if serving { state_text(disk.state) } else { "NODE DOWN" },
                incarnation: disk.incarnation.0,
                size_bytes: disk.size_bytes,
                used_bytes: disk.used_bytes,
                quarantined: disk.quarantined,
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

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::map::{PlacementGroup, ShardRecord, ShardStart};
    use plinth_protocol::meta::RaftGroupStatus;
    use plinth_protocol::stripe::{Code, MATRIX_VANDERMONDE};
    use plinth_protocol::{BucketId, ClusterId, DiskId, Epoch, GroupId, Incarnation, PgId, WriterId};

    /// Three voters and six disks on nodes of their own, all up and a tenth full.
    fn map() -> ClusterMap {
        let node = |id: u64, role| NodeRecord {
            node: NodeId(id),
            name: format!("n{id}"),
            roles: vec![role],
            address: String::new(),
            incarnation: Incarnation(1),
            state: State::Up,
            domain: format!("h{id}"),
            version: None,
        };
        let disk = |id: u64| DiskRecord {
            disk: DiskId(u128::from(id)),
            node: NodeId(id),
            incarnation: Incarnation(1),
            state: State::Up,
            name: format!("n{id}/d0"),
            size_bytes: 1_000,
            used_bytes: Some(100),
            quarantined: None,
        };
        let code = Code { matrix: MATRIX_VANDERMONDE, k: 3, m: 2 };
        let (voters, storage) = ((1..=3).map(|id| node(id, Role::Meta)), (4..=9).map(|id| node(id, Role::Storage)));
        ClusterMap {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            nodes: voters.chain(storage).collect(),
            disks: (4..=9).map(disk).collect(),
            pgs: vec![PlacementGroup {
                pg: PgId(0),
                generation: 1,
                code,
                disks: (4..=8).map(|id| DiskId(u128::from(id as u64))).collect(),
                closed: false,
            }],
            shards: vec![ShardRecord {
                group: GroupId(1),
                start: ShardStart { bucket: BucketId(0), key: String::new() },
                voters: (1..=3).map(NodeId).collect(),
            }],
            code,
            fragment_bytes_max: 1 << 20,
            name: "test".into(),
            voters: (1..=3).map(NodeId).collect(),
            feature_level: 1,
        }
    }

    /// What the voters in `who` answer: both groups are led by the first.
    fn raft(map: &ClusterMap, who: &[u64]) -> Vec<(NodeRecord, RaftStatus)> {
        let group = |id| RaftGroupStatus {
            group: id,
            leader: Some(NodeId(who[0])),
            term: 1,
            last_log: 1,
            applied: 1,
            voters: map.voters.clone(),
            learners: vec![],
            matched: vec![],
            stopped: None,
            condition: None,
        };
        let status = RaftStatus { groups: vec![group(GROUP_SYSTEM), group(GroupId(1))] };
        who.iter().map(|id| (map.node(NodeId(*id)).unwrap().clone(), status.clone())).collect()
    }

    fn stat() -> ShardStat {
        let fence = WriterId(0);
        ShardStat {
            objects: 1,
            object_bytes: 1,
            uploads: 0,
            deferred_deletes: 0,
            fill_ins: 0,
            fence,
            buckets: vec![],
            discards: None,
        }
    }

    fn codes(map: &ClusterMap, who: &[u64]) -> (&'static str, Vec<&'static str>) {
        let view = status(map, &raft(map, who), &[stat()]);
        (view.health, view.reasons.iter().map(|reason| reason.code).collect())
    }

    #[test]
    fn a_whole_cluster_is_ok() {
        assert_eq!(codes(&map(), &[1, 2, 3]), ("OK", vec![]));
    }

    #[test]
    fn a_replica_that_has_stopped_counts_as_lost() {
        let map = map();
        let mut raft = raft(&map, &[1, 2, 3]);
        raft[2].1.groups[1].stopped = Some("no space".into());
        let view = status(&map, &raft, &[stat()]);
        let codes: Vec<&str> = view.reasons.iter().map(|reason| reason.code).collect();
        assert_eq!((view.voters_up, view.can_lose, codes), (2, 0, vec!["M102", "M104"]));
        assert!(view.reasons[1].text.contains("n3") && view.reasons[1].text.contains("no space"));
    }

    #[test]
    fn a_replica_that_comes_back_by_itself_is_told_once_and_without_a_restart() {
        let map = map();
        let mut raft = raft(&map, &[1, 2, 3]);
        for group in &mut raft[2].1.groups {
            group.condition = Some("no room for growth: 5 MiB are free".into());
        }
        let view = status(&map, &raft, &[stat()]);
        let codes: Vec<&str> = view.reasons.iter().map(|reason| reason.code).collect();
        assert_eq!((view.voters_up, codes), (3, vec!["M105"]), "it takes part all the while");
        assert!(!view.reasons[0].text.contains("started again"), "{}", view.reasons[0].text);
    }

    #[test]
    fn a_shard_that_does_not_answer_is_told() {
        let map = map();
        let view = status(&map, &raft(&map, &[1, 2, 3]), &[]);
        assert_eq!((view.health, view.reasons[0].code), ("CRITICAL", "M103"));
    }

    #[test]
    fn lost_voters_and_disks_are_told_by_what_more_may_be_lost() {
        assert_eq!(codes(&map(), &[2, 3]), ("CRITICAL", vec!["M102"]), "none more may be lost");
        let mut map = map();
        for (at, id) in [4, 5, 6].into_iter().enumerate() {
            map.disks[at].state = State::Down;
            map.nodes.iter_mut().find(|node| node.node == NodeId(id)).unwrap().state = State::Down;
            let (health, found) = codes(&map, &[1, 2, 3]);
            assert_eq!(health == "CRITICAL", at == 2, "the code bears two");
            assert_eq!(found.contains(&"D202"), at == 2);
            assert_eq!(found.iter().filter(|code| **code == "D201").count(), at + 1);
        }
    }

    #[test]
    fn full_disks_are_told_before_and_when_they_take_no_more() {
        let mut map = map();
        for (used, health, expected) in [
            (799, "OK", vec![]),
            (800, "WARN", vec!["D203"]),
            (849, "WARN", vec!["D203"]),
            (850, "CRITICAL", vec!["D204"]),
        ] {
            map.disks[0].used_bytes = Some(used);
            assert_eq!(codes(&map, &[1, 2, 3]), (health, expected), "{used} of 1,000 bytes");
        }
        map.disks[0].used_bytes = Some(u64::MAX / 16);
        map.disks[0].size_bytes = u64::MAX / 16;
        assert_eq!(codes(&map, &[1, 2, 3]).1, ["D204"]);
    }
}
