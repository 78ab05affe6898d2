//! The verdict on a cluster: a pure function of what was collected about it.
//!
//! One place computes how many voters take part, how many more may be lost, whether reads, writes and service go on,
//! what would stop with each node, and why. `status`, `node list`, `/health/ready` and the metrics all show its results.

use crate::report::bytes_text;
use crate::view::state_text;
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, PlacementGroup, State};
use plinth_protocol::meta::{NodeReport, RaftGroupStatus, ShardStat, VoterSight};
use plinth_protocol::stripe::Code;
use plinth_protocol::{GROUP_SYSTEM, GroupId, NodeId, Role};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Share of a disk's bytes before its write stop, in percent, in which `status` warns of it.
const WRITE_STOP_NEAR_PERCENT: u64 = 5;
/// Every code that a verdict may hold, with the severities that it may have: what metrics export, so that each can be
/// alerted on before it has ever been seen. Codes of nodes' own reasons are among them.
pub const CODES: &[(&str, &[&str])] = &[
    ("D201", &["WARN"]),
    ("D202", &["CRITICAL"]),
    ("D203", &["WARN"]),
    ("D204", &["CRITICAL"]),
    ("G501", &["CRITICAL"]),
    ("L401", &["CRITICAL"]),
    ("M101", &["CRITICAL"]),
    ("M102", &["WARN", "CRITICAL"]),
    ("M103", &["CRITICAL"]),
    ("M104", &["WARN"]),
    ("M105", &["WARN"]),
    ("M106", &["CRITICAL"]),
    ("M107", &["WARN"]),
    ("M108", &["WARN"]),
    ("M109", &["WARN"]),
    ("M110", &["WARN"]),
    ("M111", &["WARN"]),
    ("N201", &["WARN"]),
    ("R301", &["WARN"]),
    ("S203", &["CRITICAL"]),
];
/// A voter that its leader has not heard for longer, in milliseconds, does not take part. Heartbeats come every 250.
const HEARD_MS_MAX: u64 = 2_500;

/// What each node answered when it was asked: its report, or why there is none.
pub type Answers = BTreeMap<NodeId, Result<NodeReport, String>>;

/// What is known of a cluster at one moment.
#[derive(Clone, Copy)]
pub struct Collected<'a> {
    /// The cluster map.
    pub map: &'a ClusterMap,
    /// Whether a majority of the metadata nodes confirmed the map; else it is what some node had seen.
    pub confirmed: bool,
    /// Answers of the nodes that were asked; one that is not in here was not, and its state in the map counts.
    pub answers: &'a Answers,
    /// Counts of the object shards that answered, where they were asked.
    pub shards: Option<&'a [ShardStat]>,
    /// Whether the commands to run are a demo's.
    pub demo: bool,
}

/// What goes on no more because of a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stops {
    /// Everything goes on.
    Nothing,
    /// Objects above the inline limit can't be written.
    Writes,
    /// Neither reads nor writes work.
    Everything,
}

/// One reason why a cluster is not OK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `WARN` or `CRITICAL`.
    pub severity: &'static str,
    /// A code that stays the same for ever.
    pub code: String,
    /// What is wrong and what it means.
    pub text: String,
    /// What to do: a command where one helps.
    pub next: String,
    /// What does not work because of it.
    pub stops: Stops,
}

/// The metadata's part of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Voters of the system group that take part in all their groups.
    pub voters_up: usize,
    /// Voters of the system group.
    pub voters: usize,
    /// Voters that may be lost more before a group stops.
    pub can_lose: usize,
    /// Groups without a leader that has a majority.
    pub leaderless: usize,
    /// Groups that work and could not lose one more voter, although they have several.
    pub at_risk: usize,
}

/// What would stop with a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopAnswer {
    /// `reads`, `writes`, `service`: each with why.
    pub stops: Vec<(&'static str, String)>,
}

/// The verdict.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Why the cluster is not OK, the worst first.
    pub reasons: Vec<Reason>,
    /// Votes.
    pub metadata: Metadata,
    /// Nodes whose state is worse than the map has it, with the state to show.
    pub states: BTreeMap<NodeId, &'static str>,
    /// What would stop with each node.
    pub stop: BTreeMap<NodeId, StopAnswer>,
    /// Gateways that serve, and in all.
    pub gateways: (usize, usize),
}

impl Verdict {
    /// Returns `OK`, `WARN` or `CRITICAL`.
    pub fn health(&self) -> &'static str {
        // CRITICAL comes before WARN.
        self.reasons.iter().map(|reason| reason.severity).min().unwrap_or("OK")
    }

    /// Returns whether the metadata answers, as all reads and writes need.
    pub fn reads(&self) -> bool {
        self.reasons.iter().all(|reason| reason.stops != Stops::Everything)
    }

    /// Returns whether objects of any size can be written.
    pub fn writes(&self) -> bool {
        self.reasons.iter().all(|reason| reason.stops == Stops::Nothing)
    }
}

/// Judges a cluster.
pub fn judge(collected: &Collected<'_>) -> Verdict {
    let votes = Votes::count(collected);
    let storage = Storage::count(collected);
    let gateways: Vec<&NodeRecord> = of_role(collected.map, Role::Gateway).collect();
    let serving = gateways.iter().filter(|node| collected.serves(node)).count();
    let mut found = Found::default();
    votes.reasons(collected, &mut found);
    storage.reasons(collected, &mut found);
    disk_reasons(collected, &mut found);
    if serving == 0 && !gateways.is_empty() {
        let names: Vec<&str> = gateways.iter().map(|node| node.name.as_str()).collect();
        let next = collected.start(names[0]);
        found.critical("G501", format!("no gateway serves S3; there are {}", names.join(", ")), next, Stops::Nothing);
    }
    node_reasons(collected, &mut found);
    let mut reasons = found.0;
    // Stable: within a severity the order of finding holds.
    reasons.sort_by_key(|reason| reason.severity);
    let stop = collected.map.nodes.iter().map(|node| {
        let mut answer = StopAnswer::default();
        votes.stop(collected, node, &mut answer);
        storage.stop(collected, node, &mut answer);
        if node.roles.contains(&Role::Gateway) && collected.serves(node) && serving == 1 {
            answer.stops.push(("service", format!("{} is the only gateway that serves", node.name)));
        }
        (node.node, answer)
    });
    let stop = stop.collect();
    Verdict {
        reasons,
        metadata: votes.metadata.clone(),
        states: votes.states,
        stop,
        gateways: (serving, gateways.len()),
    }
}

fn of_role(map: &ClusterMap, role: Role) -> impl Iterator<Item = &NodeRecord> {
    map.nodes.iter().filter(move |node| node.roles.contains(&role))
}

impl Collected<'_> {
    fn report(&self, node: NodeId) -> Option<&NodeReport> {
        self.answers.get(&node)?.as_ref().ok()
    }

    fn name(&self, node: NodeId) -> String {
        self.map.node(node).map_or_else(|| node.to_string(), |node| node.name.clone())
    }

    /// Whether a node serves: group 0 has it as up, and it answered where it was asked.
    pub fn serves(&self, node: &NodeRecord) -> bool {
        node.state == State::Up && self.answers.get(&node.node).is_none_or(Result::is_ok)
    }

    /// Whether a disk serves.
    pub fn disk_serves(&self, disk: &DiskRecord) -> bool {
        disk.state == State::Up && self.map.node(disk.node).is_some_and(|node| self.serves(node))
    }

    /// Returns how to start a node.
    fn start(&self, name: &str) -> String {
        match self.demo {
            true => format!("plinth --demo node start {name}"),
            false => format!("start {name} (on its machine: plinth server --config FILE)"),
        }
    }

    fn command(&self, words: &str) -> String {
        format!("plinth {}{words}", if self.demo { "--demo " } else { "" })
    }
}

#[derive(Default)]
struct Found(Vec<Reason>);

impl Found {
    fn warn(&mut self, code: &str, text: String, next: String) {
        self.add("WARN", code, text, next, Stops::Nothing);
    }

    fn critical(&mut self, code: &str, text: String, next: String, stops: Stops) {
        self.add("CRITICAL", code, text, next, stops);
    }

    fn add(&mut self, severity: &'static str, code: &str, text: String, next: String, stops: Stops) {
        self.0.push(Reason { severity, code: code.to_owned(), text, next, stops });
    }
}

/// Why a voter does not take part.
enum Absence {
    Refused(String),
    Silent(String),
    Unheard(String),
    Stopped(String),
    /// Stopped, and comes back by itself.
    Recovering(String),
}

/// The voters, and who of them takes part.
struct Votes {
    metadata: Metadata,
    absent: BTreeMap<NodeId, Absence>,
    /// Groups in which a voter of the map does not vote.
    missing: BTreeMap<NodeId, Vec<GroupId>>,
    groups: Vec<Group>,
    states: BTreeMap<NodeId, &'static str>,
}

struct Group {
    voters: Vec<NodeId>,
    present: BTreeSet<NodeId>,
    led: bool,
}

impl Group {
    fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

impl Votes {
    fn count(collected: &Collected<'_>) -> Votes {
        let map = collected.map;
        let shards = map.shards.iter().map(|shard| (shard.group, &shard.voters));
        let ids: Vec<(GroupId, &Vec<NodeId>)> = std::iter::once((GROUP_SYSTEM, &map.voters)).chain(shards).collect();
        let all: BTreeSet<NodeId> = ids.iter().flat_map(|(_, voters)| voters.iter().copied()).collect();
        let absent: BTreeMap<NodeId, Absence> =
            all.iter().filter_map(|voter| Some((*voter, absence(collected, *voter)?))).collect();
        let mut missing: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        let mut groups = Vec::new();
        for (id, voters) in ids {
            let leader = leader(collected, id);
            let members =
                leader.and_then(|(leader, _)| group_of(collected.report(leader)?, id)).map(|group| &group.voters);
            let mut present = BTreeSet::new();
            for voter in voters.iter().filter(|voter| !absent.contains_key(voter)) {
                match members {
                    Some(members) if !members.contains(voter) => missing.entry(*voter).or_default().push(id),
                    _ => drop(present.insert(*voter)),
                }
            }
            let majority = present.len() > voters.len() / 2;
            let led = match leader {
                Some((leader, _)) => majority && (present.contains(&leader) || !voters.contains(&leader)),
                // Whoever was asked takes no part in the group: a majority that confirms the map leads it, too.
                None => collected.confirmed && reports(collected).all(|report| group_of(report, id).is_none()),
            };
            groups.push(Group { voters: voters.clone(), present, led });
        }
        let spare = |group: &Group| group.present.len().saturating_sub(group.quorum());
        let whole = |voter: &&NodeId| !absent.contains_key(voter) && !missing.contains_key(voter);
        let metadata = Metadata {
            voters_up: map.voters.iter().filter(whole).count(),
            voters: map.voters.len(),
            can_lose: groups.iter().map(spare).min().unwrap_or(0),
            leaderless: groups.iter().filter(|group| !group.led).count(),
            at_risk: groups.iter().filter(|group| group.led && group.voters.len() > 1 && spare(group) == 0).count(),
        };
        let states = states(collected, &absent);
        Votes { metadata, absent, missing, groups, states }
    }

    fn reasons(&self, collected: &Collected<'_>, found: &mut Found) {
        let Metadata { voters_up, voters, can_lose, leaderless, .. } = self.metadata;
        let has_raft = |answer: &&NodeId| collected.report(**answer).is_some_and(|report| report.raft.is_some());
        if !collected.confirmed {
            let known: Vec<String> =
                collected.answers.keys().filter(has_raft).map(|node| collected.name(*node)).collect();
            let text = format!(
                "the metadata nodes have no majority: no reads, no writes. Shown is what {} knew at epoch {} of the map; it \
                 may be out of date",
                if known.is_empty() { "a node".into() } else { known.join(", ") },
                collected.map.epoch.0
            );
            found.critical("M106", text, self.bring_back(collected), Stops::Everything);
        } else if leaderless > 0 {
            let text =
                format!("{leaderless} of {} metadata groups have no leader: no reads, no writes", self.groups.len());
            found.critical("M101", text, self.bring_back(collected), Stops::Everything);
        }
        if !self.absent.is_empty() {
            let severity = if can_lose == 0 && voters > 1 { "CRITICAL" } else { "WARN" };
            let text = format!("{voters_up} of {voters} metadata nodes take part; {can_lose} more may be lost");
            found.add(severity, "M102", text, self.bring_back(collected), Stops::Nothing);
        }
        for (voter, absence) in &self.absent {
            let name = collected.name(*voter);
            let (code, text, next) = match absence {
                Absence::Refused(reason) => {
                    let next = format!(
                        "{} && {}",
                        collected.command(&format!("raft remove {name}")),
                        collected.command("cluster token create --roles meta")
                    );
                    ("M110", format!("voter {name} is refused by the others and counts for nothing: {reason}"), next)
                }
                Absence::Silent(why) => {
                    let text = format!(
                        "voter {name} does not answer: {why}. Only if it is lost for good: {}, then join a new node",
                        collected.command(&format!("raft remove {name}"))
                    );
                    ("M108", text, collected.start(&name))
                }
                Absence::Unheard(why) => {
                    ("M109", format!("voter {name} is not heard: {why}"), restart(collected, &name))
                }
                Absence::Recovering(why) => ("M105", format!("node {name}: {why}"), collected.command("raft status")),
                Absence::Stopped(why) => ("M104", format!("node {name} {why}"), restart(collected, &name)),
            };
            found.warn(code, text, next);
        }
        self.group_reasons(collected, found);
    }

    /// What is wrong with groups whose voters take part.
    fn group_reasons(&self, collected: &Collected<'_>, found: &mut Found) {
        let voters = self.metadata.voters;
        let silent_shards =
            collected.shards.map_or(0, |shards| collected.map.shards.len().saturating_sub(shards.len()));
        if silent_shards > 0 {
            let text = format!("{silent_shards} of {} object shards do not answer", collected.map.shards.len());
            found.critical("M103", text, collected.command("raft status"), Stops::Everything);
        }
        let held_ms =
            collected.shards.into_iter().flatten().filter_map(|shard| shard.expiry_held_ms).max().unwrap_or(0);
        if held_ms > 0 {
            let text = format!(
                "time jumped by {} h, so deleted data is kept for as long; confirm it unless clocks are wrong",
                held_ms / 3_600_000
            );
            found.warn("M111", text, collected.command("clock confirm"));
        }
        let conditions: Vec<_> = conditions(collected).filter(|(node, ..)| !self.absent.contains_key(node)).collect();
        // Growth goes on as long as the leader and a majority have room.
        let short = conditions.iter().filter(|(_, why, _)| why.contains("no room"));
        let refused =
            short.clone().any(|(_, _, leads)| *leads) || short.count() > voters - (voters / 2 + 1).min(voters);
        for (node, why, _) in conditions {
            let text = format!("node {}: {why}", collected.name(node));
            match refused && why.contains("no room") {
                true => found.critical("M105", text, collected.command("raft status"), Stops::Writes),
                false => found.warn("M105", text, collected.command("raft status")),
            }
        }
        for (voter, groups) in &self.missing {
            let name = collected.name(*voter);
            let text = format!("{name} does not vote in {} of {} groups", groups.len(), self.groups.len());
            found.warn("M107", text, collected.command(&format!("raft add {name}")));
        }
    }

    /// What brings the voters back that don't take part.
    fn bring_back(&self, collected: &Collected<'_>) -> String {
        let silent = self.absent.iter().find(|(_, absence)| matches!(absence, Absence::Silent(_)));
        match silent.or(self.absent.iter().next()) {
            Some((voter, Absence::Silent(_))) => collected.start(&collected.name(*voter)),
            Some((voter, Absence::Refused(_))) => collected.command(&format!("raft remove {}", collected.name(*voter))),
            _ => collected.command("raft status"),
        }
    }

    fn stop(&self, collected: &Collected<'_>, node: &NodeRecord, answer: &mut StopAnswer) {
        for group in self.groups.iter().filter(|group| group.present.contains(&node.node)) {
            let (left, quorum) = (group.present.len() - 1, group.quorum());
            if left < quorum {
                let what = match collected.map.voters.len() {
                    1 => format!("{} is the only metadata node", node.name),
                    _ => format!("{left} voters would take part and {quorum} must"),
                };
                answer.stops.extend([("reads", what.clone()), ("writes", what)]);
                return;
            }
        }
    }
}

fn restart(collected: &Collected<'_>, name: &str) -> String {
    match collected.demo {
        true => format!("plinth --demo node stop {name} && plinth --demo node start {name}"),
        false => format!("see the log of {name}; start its process again"),
    }
}

/// Returns why a voter does not take part, where it does not.
fn absence(collected: &Collected<'_>, voter: NodeId) -> Option<Absence> {
    let refused_elsewhere = collected
        .answers
        .iter()
        .filter(|(node, _)| **node != voter)
        .find_map(|(_, answer)| sight(answer.as_ref().ok()?, voter)?.refused.clone());
    let own = collected.report(voter);
    let refused = refused_elsewhere.or_else(|| Some(own?.refused_by.first()?.1.clone()));
    if let Some(reason) = refused {
        return Some(Absence::Refused(reason));
    }
    match collected.answers.get(&voter) {
        Some(Err(why)) => return Some(Absence::Silent(why.clone())),
        Some(Ok(report)) => {
            let Some(raft) = &report.raft else {
                return Some(Absence::Stopped("runs, but its metadata part does not".into()));
            };
            let stopped = raft.groups.iter().find(|group| group.stopped.is_some());
            if let Some(why) = stopped.and_then(|group| group.condition.clone()) {
                return Some(Absence::Recovering(why));
            }
            if let Some((group, why)) = stopped.and_then(|group| Some((group.group, group.stopped.as_ref()?))) {
                let text = format!("takes part in {group} no more until it is started again: {why}");
                return Some(Absence::Stopped(text));
            }
        }
        None => {
            let state = collected.map.node(voter).map_or(State::Retired, |node| node.state);
            if !matches!(state, State::Up | State::Draining) {
                return Some(Absence::Silent(format!("it is {}", state_text(state))));
            }
        }
    }
    let groups = std::iter::once(GROUP_SYSTEM).chain(collected.map.shards.iter().map(|shard| shard.group));
    for group in groups {
        let Some((leader, _)) = leader(collected, group).filter(|(leader, _)| *leader != voter) else { continue };
        let Some(report) = collected.report(leader).filter(|report| !report.voters.is_empty()) else { continue };
        if !group_of(report, group).is_some_and(|group| group.voters.contains(&voter)) {
            continue;
        }
        let heard_ms = sight(report, voter).and_then(|sight| sight.heard_ms);
        if heard_ms.is_none_or(|ms| ms > HEARD_MS_MAX) {
            let ago = heard_ms.map_or("at all".into(), |ms| format!("for {} s", ms / 1000));
            return Some(Absence::Unheard(format!("{} leads and has not heard it {ago}", collected.name(leader))));
        }
    }
    None
}

/// Returns what is not as it should be with replicas that take part, once for each node, and whether it leads such a group.
fn conditions<'a>(collected: &Collected<'a>) -> impl Iterator<Item = (NodeId, &'a str, bool)> {
    let mut told: BTreeMap<(NodeId, &str), bool> = BTreeMap::new();
    for (node, report) in collected.answers.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?))) {
        for group in report.raft.iter().flat_map(|raft| &raft.groups) {
            if let Some(why) = &group.condition {
                *told.entry((node, why.as_str())).or_default() |= group.leader == Some(node);
            }
        }
    }
    told.into_iter().map(|((node, why), leads)| (node, why, leads))
}

fn sight(report: &NodeReport, voter: NodeId) -> Option<&VoterSight> {
    report.voters.iter().find(|sight| sight.node == voter)
}

fn group_of(report: &NodeReport, id: GroupId) -> Option<&RaftGroupStatus> {
    report.raft.as_ref()?.groups.iter().find(|group| group.group == id)
}

/// Returns the reports that count: a voter that is refused knows nothing.
fn reports<'a>(collected: &Collected<'a>) -> impl Iterator<Item = &'a NodeReport> {
    collected.answers.values().flatten().filter(|report| report.refused_by.is_empty())
}

/// Returns the leader of a group in the newest term that any node knows of.
fn leader(collected: &Collected<'_>, id: GroupId) -> Option<(NodeId, u64)> {
    let groups = reports(collected).filter_map(|report| group_of(report, id));
    groups.filter_map(|group| Some((group.leader?, group.term))).max_by_key(|(_, term)| *term)
}

/// Returns the states to show where they are worse than the map has them.
fn states(collected: &Collected<'_>, absent: &BTreeMap<NodeId, Absence>) -> BTreeMap<NodeId, &'static str> {
    let mut states = BTreeMap::new();
    for node in collected.map.nodes.iter().filter(|node| node.state == State::Up) {
        let state = match (absent.get(&node.node), collected.answers.get(&node.node)) {
            (Some(Absence::Refused(_)), _) => "REFUSED",
            (Some(Absence::Stopped(_)), _) => "STOPPED",
            (Some(Absence::Unheard(_)), _) => "UNHEARD",
            (_, Some(Err(_))) => "SILENT",
            _ => continue,
        };
        states.insert(node.node, state);
    }
    states
}

/// Returns how many fragments of a stripe must be durable before a write is answered: all but one, and one more than
/// are needed to read.
pub fn write_quorum(code: Code) -> usize {
    if code.m == 0 { code.width() } else { (code.width() - 1).max(usize::from(code.k) + 1) }
}

/// The disks, counted by placement group.
struct Storage {
    /// Groups, open or closed, that have too few disks to read from.
    unreadable: usize,
    /// Open groups that take new stripes, and the most disks that take writes in any open group.
    writable: usize,
    best: usize,
    open: usize,
    owed: u64,
    /// Nodes with which some group falls below what reads need, and with how many disks left.
    ends_reads: BTreeMap<NodeId, usize>,
    /// Nodes with which no open group takes stripes any more.
    ends_writes: BTreeSet<NodeId>,
}

impl Storage {
    fn count(collected: &Collected<'_>) -> Storage {
        let map = collected.map;
        let disks: HashMap<_, _> = map.disks.iter().map(|disk| (disk.disk, disk)).collect();
        let fill_ins = collected.shards.unwrap_or_default().iter().map(|shard| shard.fill_ins);
        let owed = fill_ins.fold(0, u64::saturating_add);
        let mut storage = Storage {
            unreadable: 0,
            writable: 0,
            best: 0,
            open: 0,
            owed,
            ends_reads: BTreeMap::new(),
            ends_writes: BTreeSet::new(),
        };
        // For each node: writable groups that it is in, and those of them that stay writable without it.
        let mut through: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
        for pg in &map.pgs {
            let members: Vec<&DiskRecord> = pg.disks.iter().filter_map(|disk| disks.get(disk).copied()).collect();
            let serving: Vec<&DiskRecord> = members.into_iter().filter(|disk| collected.disk_serves(disk)).collect();
            let readable = usize::from(pg.code.k);
            // A stripe that owes a fragment has one fewer to read from.
            let safe = readable + usize::from(owed > 0 && pg.code.m > 0);
            storage.unreadable += usize::from(serving.len() < readable);
            for (node, count) in by_node(&serving) {
                let left = serving.len() - count;
                if serving.len() >= readable && left < safe {
                    let least = storage.ends_reads.entry(node).or_insert(left);
                    *least = (*least).min(left);
                }
            }
            if is_open(map, pg) {
                let taking: Vec<&DiskRecord> = serving.iter().filter(|disk| !is_full(map, disk)).copied().collect();
                storage.open += 1;
                storage.best = storage.best.max(taking.len());
                if taking.len() >= write_quorum(pg.code) {
                    storage.writable += 1;
                    for (node, count) in by_node(&taking) {
                        let entry = through.entry(node).or_default();
                        entry.0 += 1;
                        entry.1 += usize::from(taking.len() - count >= write_quorum(pg.code));
                    }
                }
            }
        }
        let ends = |(_, (member, stays)): &(NodeId, (usize, usize))| storage.writable - member + stays == 0;
        storage.ends_writes = through.into_iter().filter(ends).map(|(node, _)| node).collect();
        storage
    }

    fn reasons(&self, collected: &Collected<'_>, found: &mut Found) {
        let map = collected.map;
        let away: Vec<&NodeRecord> = of_role(map, Role::Storage).filter(|node| !collected.serves(node)).collect();
        let next = match away.first() {
            Some(node) => collected.start(&node.name),
            None => collected.command("disk list"),
        };
        if self.unreadable > 0 {
            let text = format!(
                "{} of {} placement groups have too few disks to read from: some objects can't be read",
                self.unreadable,
                map.pgs.len()
            );
            found.critical("D202", text, next.clone(), Stops::Nothing);
        }
        if self.open == 0 {
            let text = "no placement group takes new stripes".into();
            found.critical("L401", text, collected.command("layout apply"), Stops::Writes);
        } else if self.writable == 0 {
            let text = format!(
                "objects above 4 KiB can't be written: code {} needs {} disks of a placement group that take writes, the best \
                 has {}",
                map.code,
                write_quorum(map.code),
                self.best
            );
            found.critical("S203", text, next.clone(), Stops::Writes);
        }
        if self.owed > 0 {
            let whole = map.disks.iter().all(|disk| collected.disk_serves(disk));
            let (how, next) = match whole {
                true => ("fill-in is under way", collected.command("disk list")),
                false => ("they are filled in once their disks serve again", next),
            };
            found.warn("R301", format!("{} stripes owe fragments; {how}", self.owed), next);
        }
    }

    fn stop(&self, collected: &Collected<'_>, node: &NodeRecord, answer: &mut StopAnswer) {
        let code = collected.map.code;
        if let Some(left) = self.ends_reads.get(&node.node) {
            let owed = if self.owed > 0 { format!(" and {} stripes owe a fragment", self.owed) } else { String::new() };
            let text = format!("{left} disks of a placement group would be left{owed}");
            answer.stops.push(("reads", text));
        }
        let takes_part =
            of_role(collected.map, Role::Storage).any(|one| one.node == node.node) && collected.serves(node);
        if self.ends_writes.contains(&node.node) {
            let text = format!("code {code} needs {} disks of a placement group", write_quorum(code));
            answer.stops.push(("writes", text));
        } else if takes_part && self.open > 0 && self.writable == 0 {
            answer.stops.push(("writes", "they have stopped already".into()));
        }
    }
}

fn by_node(disks: &[&DiskRecord]) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for disk in disks {
        *counts.entry(disk.node).or_insert(0) += 1;
    }
    counts
}

/// Whether a placement group is one that new stripes may go to.
fn is_open(map: &ClusterMap, pg: &PlacementGroup) -> bool {
    !pg.closed && pg.code == map.code
}

/// Returns how full a disk is, in percent.
pub fn full_percent(disk: &DiskRecord) -> u64 {
    (u128::from(disk.used_bytes.unwrap_or(0)) * 100 / u128::from(disk.size_bytes.max(1))) as u64
}

/// Whether a disk refuses the largest fragment: what is smaller may still fit, objects of any size do not.
fn is_full(map: &ClusterMap, disk: &DiskRecord) -> bool {
    !disk.takes(map.fragment_bytes_max)
}

/// Tells a disk that takes no new objects, or soon will not. The stop is a disk's own: one of few segments keeps some
/// of them free, so that it can still be compacted, and stops long before it looks full.
fn full_reason(map: &ClusterMap, disk: &DiskRecord) -> Option<(bool, String)> {
    let (used, stop) = (disk.used_bytes.unwrap_or(0), disk.write_stop());
    let near = stop.saturating_sub(disk.size_bytes / 100 * WRITE_STOP_NEAR_PERCENT);
    if (used < near && !is_full(map, disk)) || disk.size_bytes == 0 {
        return None;
    }
    let percent = full_percent(disk);
    let figures = format!(
        "its objects take {} of {} ({percent} %), writes stop at {}",
        bytes_text(used),
        bytes_text(disk.size_bytes),
        bytes_text(stop)
    );
    match is_full(map, disk) {
        true => Some((true, format!("disk {} takes no new objects: {figures}", disk.name))),
        false => Some((false, format!("disk {} is near its write stop: {figures}", disk.name))),
    }
}

/// Disks that don't serve although their node does, and disks that are full or nearly so.
fn disk_reasons(collected: &Collected<'_>, found: &mut Found) {
    for disk in &collected.map.disks {
        let node = collected.map.node(disk.node);
        if disk.state != State::Up {
            // The node knows its folder, and better what to do.
            let id = disk.disk.to_string();
            let reasons = collected.report(disk.node).map_or(&[][..], |report| &report.reasons);
            let is_told = reasons.iter().any(|reason| reason.code == "D201" && reason.text.contains(&id));
            if !is_told {
                let text = format!("disk {} is {}", disk.name, state_text(disk.state));
                let next = match node {
                    Some(node) if !collected.serves(node) => collected.start(&node.name),
                    Some(node) if disk.state == State::Failed => {
                        let add = collected.command(&format!("disk add {} PATH", node.name));
                        format!("{add} && {}", collected.command("layout apply"))
                    }
                    _ => collected.command("disk list"),
                };
                found.warn("D201", text, next);
            }
        } else if let Some((is_full, text)) = full_reason(collected.map, disk).filter(|_| collected.disk_serves(disk)) {
            let next = "add a disk (plinth disk add) or delete objects".to_string();
            match is_full {
                true => found.critical("D204", text, next, Stops::Nothing),
                false => found.warn("D203", text, next),
            }
        }
    }
}

/// What nodes say of themselves, and nodes that don't serve.
fn node_reasons(collected: &Collected<'_>, found: &mut Found) {
    let voters = &collected.map.voters;
    // A metadata node that votes nowhere has no duty: a voter that was removed, one that is to be added.
    let has_duty = |node: &&NodeRecord| voters.contains(&node.node) || node.roles != [Role::Meta];
    for node in collected.map.nodes.iter().filter(has_duty) {
        if let Some(report) = collected.report(node.node) {
            for reason in &report.reasons {
                let next = reason.next.replacen("plinth ", &collected.command(""), 1);
                found.warn(&reason.code, format!("{} says: {}", node.name, reason.text), next);
            }
        }
        if collected.serves(node) || voters.contains(&node.node) {
            continue;
        }
        let text = match collected.answers.get(&node.node) {
            Some(Err(why)) if node.state == State::Up => format!("node {} does not answer: {why}", node.name),
            _ => format!("node {} is {}", node.name, state_text(node.state)),
        };
        found.warn("N201", text, collected.start(&node.name));
    }
}

#[cfg(test)]
mod tests;
