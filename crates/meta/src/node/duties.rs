//! What a voter does by itself: every replica keeps its log short; the leader of the system group
//! founds the cluster, records voters, and watches over the nodes.

use super::{Inner, Proposer};
use crate::raft::group::RaftGroup;
use crate::raft::machine::blocking;
use crate::room::Sizes;
use crate::state::Background;
use crate::{MetaError, MetaLimits};
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
/// How long a node may take to answer a ping.
const PING_TIME_MAX: Duration = Duration::from_secs(2);
/// Pings in a row that nobody at a node's address took, after which it is `Suspect` without waiting for its silence:
/// its process has ended.
const REFUSED_PINGS_MAX: u32 = 2;
/// How often floors that moved are recorded at most.
const FLOOR_INTERVAL: Duration = Duration::from_secs(5);

/// Flushes and purges a replica, and keeps its time running where it leads, for as long as it lives.
pub(super) async fn keep(group: RaftGroup, proposer: Arc<Proposer>) {
    let mut flushed_at = Instant::now();
    loop {
        tokio::time::sleep(KEEP_INTERVAL).await;
        if group.keep(flushed_at.elapsed()).await {
            flushed_at = Instant::now();
        }
        proposer.keep_time().await;
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
    /// Pings in a row that were refused at once.
    refused: BTreeMap<NodeId, u32>,
    since: Instant,
    pinged: Option<Instant>,
    recorded: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        Watch {
            founded: false,
            heard: BTreeMap::new(),
            refused: BTreeMap::new(),
            since: Instant::now(),
            pinged: None,
            recorded: None,
        }
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
    match inner.command(GROUP_SYSTEM, Command::Found(Box::new(founding)), COMMAND_MAX).await {
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
    // A node that is stopping has said so; who leads next watches from here.
    if inner.leaving.load(Ordering::Acquire) {
        return;
    }
    let now = Instant::now();
    let heard: BTreeMap<NodeId, Ping> = heard.into_iter().chain([(own, Ping::Answered)]).collect();
    for (node, ping) in &heard {
        let refused = watch.refused.remove(node).unwrap_or(0);
        match ping {
            Ping::Answered => drop(watch.heard.insert(*node, now)),
            Ping::Refused => drop(watch.refused.insert(*node, refused.saturating_add(1))),
            Ping::Silent => {}
        }
    }
    for node in map.nodes.iter().filter(|node| watched(node.state)) {
        let seen = Seen {
            answered: heard.get(&node.node) == Some(&Ping::Answered),
            silent: now.duration_since(watch.heard.get(&node.node).copied().unwrap_or(watch.since)),
            refused: watch.refused.get(&node.node).copied().unwrap_or(0),
        };
        let state = next_state(node.state, &seen, &inner.config.limits);
        if state != node.state {
            tracing::info!(node = %node.node, address = node.address, from = ?node.state, to = ?state, "node state");
            let command = Command::SetNodeState(SetNodeState { node: node.node, state });
            if let Err(failure) = inner.command(GROUP_SYSTEM, command, COMMAND_MAX).await {
                tracing::debug!(node = %node.node, %failure, "node state is set later");
            }
        }
    }
}

/// What a round of pings has shown of a node.
struct Seen {
    answered: bool,
    /// How long it has not answered.
    silent: Duration,
    /// Pings in a row, this round's the last, that were refused at once.
    refused: u32,
}

/// Decides a node's state. Only an answer makes it `Up`: one that said that it stops stays `Down`, and a new leader
/// takes its predecessor's word until it knows better.
fn next_state(known: State, seen: &Seen, limits: &MetaLimits) -> State {
    if seen.answered {
        State::Up
    } else if known == State::Down || seen.silent >= Duration::from_millis(limits.down_ms) {
        State::Down
    } else if seen.silent >= Duration::from_millis(limits.suspect_ms) || seen.refused >= REFUSED_PINGS_MAX {
        State::Suspect
    } else {
        known
    }
}

/// Whether the state is one that pings decide.
fn watched(state: State) -> bool {
    matches!(state, State::Up | State::Suspect | State::Down)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ping {
    Answered,
    /// Failed before its time was up: nobody listens there, or the node says that it stops.
    Refused,
    Silent,
}

async fn ping(inner: &Arc<Inner>, node: &NodeRecord) -> (NodeId, Ping) {
    let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
    let call = Call { method: Method::Ping, header: Default::default(), payload: Vec::new(), deadline: PING_TIME_MAX };
    let started = Instant::now();
    let ping = match inner.wires.link.call(&peer, call).await {
        Ok(_) => Ping::Answered,
        // Too busy to answer is alive.
        Err(failure) if failure.kind == FailureKind::Busy => Ping::Answered,
        Err(_) if started.elapsed() < PING_TIME_MAX / 2 => Ping::Refused,
        Err(_) => Ping::Silent,
    };
    (node.node, ping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_brings_a_node_up() {
        let limits = MetaLimits::default();
        let seen = |answered, silent_ms, refused| Seen { answered, silent: Duration::from_millis(silent_ms), refused };
        for (known, seen, expected) in [
            (State::Up, seen(true, 0, 0), State::Up),
            (State::Down, seen(true, 0, 0), State::Up),
            // It said a moment ago that it stops.
            (State::Down, seen(false, 500, 1), State::Down),
            (State::Up, seen(false, 1_000, 1), State::Up),
            (State::Up, seen(false, 2_000, REFUSED_PINGS_MAX), State::Suspect),
            (State::Up, seen(false, limits.suspect_ms, 0), State::Suspect),
            (State::Suspect, seen(false, 1_000, 0), State::Suspect),
            (State::Suspect, seen(false, limits.down_ms, 0), State::Down),
        ] {
            assert_eq!(next_state(known, &seen, &limits), expected, "{known:?}");
        }
    }
}
