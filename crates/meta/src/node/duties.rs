//! What a voter does by itself: every replica keeps its log short; the leader of the system group
//! founds the cluster, records voters, and watches over the nodes.

use super::Inner;
use crate::MetaError;
use crate::raft::group::RaftGroup;
use crate::raft::machine::blocking;
use crate::room::Sizes;
use crate::state::Background;
use plinth_protocol::map::{ClusterMap, NodeRecord, State};
use plinth_protocol::meta::{Command, Outcome, Query, RULES_STRICT, RefusalKind, Reply, SetNodeState};
use plinth_protocol::{FailureKind, GROUP_SYSTEM, GroupId, Method, NodeId};
use plinth_transport::{Call, Peer};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often a replica looks whether its database should be flushed and its log purged.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often a voter looks at its room.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// How often leadership is given away for want of room at most.
const GIVE_AWAY_INTERVAL: Duration = Duration::from_secs(10);
/// How often the leader of the system group looks around.
const DUTY_INTERVAL: Duration = Duration::from_millis(250);
/// How long a command of the leader's own may take.
const COMMAND_MAX: Duration = Duration::from_secs(5);
/// Commands of background work of one shard in one round, and the pause between two.
const COMMANDS_PER_ROUND_MAX: usize = 100;
const COMMAND_PAUSE: Duration = Duration::from_millis(20);
/// How often floors that moved are recorded at most.
const FLOOR_INTERVAL: Duration = Duration::from_secs(5);

/// Flushes and purges a replica, for as long as it lives.
pub(super) async fn keep(group: RaftGroup) {
    let mut flushed_at = Instant::now();
    loop {
        tokio::time::sleep(KEEP_INTERVAL).await;
        if group.keep(flushed_at.elapsed()).await {
            flushed_at = Instant::now();
        }
    }
}

/// Looks at the room of log and file system, for as long as the node lives. A leader without room gives leadership to
/// a voter that has some.
pub(super) async fn watch_room(node: Weak<Inner>) {
    let mut given_away: Option<Instant> = None;
    loop {
        let Some(inner) = node.upgrade() else { return };
        if let Some(sizes) = measure_room(&inner).await {
            inner.wires.room.note_own(&sizes);
        }
        if inner.wires.room.is_short() && given_away.is_none_or(|at| at.elapsed() >= GIVE_AWAY_INTERVAL) {
            given_away = Some(Instant::now());
            for group in inner.open_groups() {
                group.raft.give_away_to(|voter| !inner.wires.room.is_peer_short(voter)).await;
            }
        }
        drop(inner);
        tokio::time::sleep(ROOM_INTERVAL).await;
    }
}

/// Returns how much room the voter has; none where it is stopping, or its file system does not say.
async fn measure_room(inner: &Arc<Inner>) -> Option<Sizes> {
    let log = inner.log.lock().await.as_ref()?.stat().await?;
    let (files, folder) = (inner.wires.files.clone(), inner.config.folder.clone());
    let free = blocking(move || files.free_bytes(&folder).map_err(MetaError::io("look for room"))).await;
    Some(Sizes { log, free_bytes: free.ok()?, free_bytes_min: inner.config.limits.room_bytes_min })
}

/// What the leader of an object shard does: has it decide by the rules that this version knows, and take apart what
/// heavy commands have put off.
pub(super) async fn tend(node: Weak<Inner>, group: GroupId) {
    loop {
        tokio::time::sleep(DUTY_INTERVAL).await;
        let Some(inner) = node.upgrade() else { return };
        let Ok(open) = inner.group(group) else { continue };
        for _ in 0..COMMANDS_PER_ROUND_MAX {
            let Ok(background) = open.raft.shard().reader().background() else { break };
            let command = match background {
                _ if !open.raft.is_leader() => break,
                Background { rules, .. } if rules < RULES_STRICT => Command::RaiseRules(RULES_STRICT),
                Background { discards: 1.., .. } => Command::TakeApart,
                _ => break,
            };
            if let Err(failure) = inner.command(group, command, COMMAND_MAX).await {
                tracing::debug!(%group, %failure, "background work goes on later");
                break;
            }
            // Others' mutations come first.
            tokio::time::sleep(COMMAND_PAUSE).await;
        }
    }
}

/// Counts changes of leadership, and reports a replica that stops.
pub(super) async fn watch(node: Weak<Inner>, group: RaftGroup, leader_changes: Arc<AtomicU64>) {
    let mut changes = group.changes();
    let mut last = None;
    while changes.next().await {
        if let Some(reason) = group.failure() {
            if let Some(inner) = node.upgrade() {
                super::recovery::handle_stop(&inner, group.group, &reason);
            }
            return;
        }
        let moment = group.moment();
        let leads = moment.leader.map(|leader| (leader, moment.term));
        if leads.is_some() && leads != last {
            leader_changes.fetch_add(1, Ordering::Relaxed);
            let leader = moment.leader.map_or_else(|| "none".to_string(), |leader| leader.to_string());
            tracing::info!(group = %group.group, leader, term = moment.term, "leader");
            last = leads;
        }
    }
}

/// What the leader of the system group remembers between two looks.
struct Watch {
    founded: bool,
    heard: BTreeMap<NodeId, Instant>,
    since: Instant,
    pinged: Option<Instant>,
    recorded: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        Watch { founded: false, heard: BTreeMap::new(), since: Instant::now(), pinged: None, recorded: None }
    }
}

/// The duties of the system group's leader, for as long as the node lives.
pub(super) async fn run(node: Weak<Inner>) {
    let mut watch: Option<Watch> = None;
    loop {
        tokio::time::sleep(DUTY_INTERVAL).await;
        let Some(inner) = node.upgrade() else { return };
        let leads = inner.group(GROUP_SYSTEM).is_ok_and(|group| group.raft.is_leader());
        if !leads {
            watch = None;
            continue;
        }
        look_around(&inner, watch.get_or_insert_with(Watch::new)).await;
    }
}

async fn look_around(inner: &Arc<Inner>, watch: &mut Watch) {
    if !watch.founded {
        watch.founded = found(inner).await;
        if !watch.founded {
            return;
        }
    }
    record_voters(inner, watch).await;
    let interval = Duration::from_millis(inner.config.limits.ping_ms);
    if watch.pinged.is_none_or(|at| at.elapsed() >= interval) {
        watch.pinged = Some(Instant::now());
        ping_nodes(inner, watch).await;
    }
}

/// Founds the cluster, where that has not been done. Returns whether it is founded.
async fn found(inner: &Arc<Inner>) -> bool {
    if map(inner).await.is_some() {
        return true;
    }
    let Some(founding) = inner.config.found.clone() else { return false };
    match inner.command(GROUP_SYSTEM, Command::Found(founding), COMMAND_MAX).await {
        Ok(Outcome::Refused(refusal)) if refusal.kind != RefusalKind::AlreadyFounded => {
            tracing::error!(reason = refusal.text, "the cluster can't be founded");
            false
        }
        Ok(_) => true,
        Err(failure) => {
            tracing::warn!(%failure, "founding is tried again");
            false
        }
    }
}

async fn map(inner: &Arc<Inner>) -> Option<ClusterMap> {
    match inner.query(GROUP_SYSTEM, Query::Map(None), Instant::now() + COMMAND_MAX).await {
        Ok(Reply::Map(map)) => Some(map),
        _ => None,
    }
}

/// Writes down what has been heard of the voters: new ones and new starts at once, floors now and then.
async fn record_voters(inner: &Arc<Inner>, watch: &mut Watch) {
    let due = watch.recorded.is_none_or(|at| at.elapsed() >= FLOOR_INTERVAL);
    let step = if due { inner.config.limits.floor_step } else { u64::MAX };
    for record in inner.ledger.unrecorded(step) {
        watch.recorded = Some(Instant::now());
        let voter = record.node;
        match inner.command(GROUP_SYSTEM, Command::RecordVoter(record), COMMAND_MAX).await {
            Ok(Outcome::Refused(refusal)) => tracing::error!(%voter, reason = refusal.text, "voter not recorded"),
            Ok(_) => {}
            Err(failure) => tracing::debug!(%voter, %failure, "voter is recorded later"),
        }
    }
}

/// Pings every node and writes down whose state has changed.
async fn ping_nodes(inner: &Arc<Inner>, watch: &mut Watch) {
    let Some(map) = map(inner).await else { return };
    let own = inner.config.node;
    let pings = map.nodes.iter().filter(|node| node.node != own && watched(node.state)).map(|node| ping(inner, node));
    let heard = futures_util::future::join_all(pings).await;
    let now = Instant::now();
    watch.heard.extend(heard.into_iter().flatten().chain([own]).map(|node| (node, now)));
    let limits = &inner.config.limits;
    let (suspect, down) = (Duration::from_millis(limits.suspect_ms), Duration::from_millis(limits.down_ms));
    for node in map.nodes.iter().filter(|node| watched(node.state)) {
        let heard_at = watch.heard.get(&node.node).copied();
        let silent = now.duration_since(heard_at.unwrap_or(watch.since));
        let state = match silent {
            silent if silent >= down => State::Down,
            silent if silent >= suspect => State::Suspect,
            // A new leader takes its predecessor's word until it knows better.
            _ if heard_at.is_none() => node.state,
            _ => State::Up,
        };
        if state != node.state {
            tracing::info!(node = %node.node, address = node.address, from = ?node.state, to = ?state, "node state");
            let command = Command::SetNodeState(SetNodeState { node: node.node, state });
            if let Err(failure) = inner.command(GROUP_SYSTEM, command, COMMAND_MAX).await {
                tracing::debug!(node = %node.node, %failure, "node state is set later");
            }
        }
    }
}

/// Whether the state is one that pings decide.
fn watched(state: State) -> bool {
    matches!(state, State::Up | State::Suspect | State::Down)
}

async fn ping(inner: &Arc<Inner>, node: &NodeRecord) -> Option<NodeId> {
    let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
    let deadline = Duration::from_millis(inner.config.limits.ping_ms);
    let call = Call { method: Method::Ping, header: Default::default(), payload: Vec::new(), deadline };
    match inner.wires.link.call(&peer, call).await {
        Ok(_) => Some(node.node),
        // Too busy to answer is alive.
        Err(failure) if failure.kind == FailureKind::Busy => Some(node.node),
        Err(_) => None,
    }
}
