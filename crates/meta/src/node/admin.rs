//! An operator's requests: status, voters, placement.

use super::Inner;
use crate::ledger::remedy;
use crate::raft::message::{Change, Learner, RaftCall};
use crate::state::layout::{self, LayoutError};
use bytes::Bytes;
use plinth_protocol::map::{ClusterMap, NodeRecord, ShardRecord, ShardStart, State};
use plinth_protocol::meta::{
    AdminReply, AdminRequest, Command, LayoutOrder, LayoutOutcome, Outcome, Query, Reply, SetVoters,
};
use plinth_protocol::wire::Wire;
use plinth_protocol::{BucketId, Failure, FailureKind, GROUP_SYSTEM, GroupId, Method, NodeId, Role};
use plinth_transport::{Call, Peer};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long one step of a change may take, catching up apart.
const STEP_MAX: Duration = Duration::from_secs(10);
/// How long a node may take to show that it can be reached.
const REACH_MAX: Duration = Duration::from_secs(2);
/// Pause between two tries of a step.
const STEP_RETRY: Duration = Duration::from_millis(100);

/// Answers an operator.
pub(super) async fn handle(inner: &Arc<Inner>, request: AdminRequest) -> Result<AdminReply, Failure> {
    match request {
        AdminRequest::RaftStatus => Ok(AdminReply::RaftStatus(inner.raft_status())),
        AdminRequest::AddVoter(node) => add_voter(inner, node).await.map(AdminReply::Done),
        AdminRequest::RemoveVoter(node) => remove_voter(inner, node).await.map(AdminReply::Done),
        AdminRequest::RebuildPlacement => rebuild_placement(inner).await.map(AdminReply::Done),
        AdminRequest::ApplyLayout(order) => apply_layout(inner, &order).await.map(AdminReply::Layout),
        AdminRequest::AddDisk(_)
        | AdminRequest::AddDiskFolder(_)
        | AdminRequest::StopNode(_)
        | AdminRequest::StartNode(_)
        | AdminRequest::Report(_)
        | AdminRequest::CertifyOperator(_) => {
            Err(Failure::new(FailureKind::Invalid, "a voter does not serve this request"))
        }
    }
}

/// Returns the map as it stands; fails with `NotLeader` where this node does not lead the system group.
async fn map(inner: &Arc<Inner>) -> Result<ClusterMap, Failure> {
    match inner.query(GROUP_SYSTEM, Query::Map(None), Instant::now() + STEP_MAX).await? {
        Reply::Map(map) => Ok(map),
        _ => Err(Failure::new(FailureKind::Unavailable, "the cluster has not been founded")),
    }
}

fn meta_node(map: &ClusterMap, node: NodeId) -> Result<NodeRecord, Failure> {
    let record =
        map.node(node).ok_or_else(|| Failure::new(FailureKind::NotFound, format!("{node} is not registered")))?;
    if !record.roles.contains(&Role::Meta) {
        return Err(Failure::new(FailureKind::Invalid, format!("{node} does not have the meta role")));
    }
    Ok(record.clone())
}

fn all_groups(map: &ClusterMap) -> Vec<GroupId> {
    std::iter::once(GROUP_SYSTEM).chain(map.shards.iter().map(|shard| shard.group)).collect()
}

/// Tells a voter whether this node reaches one that shall become a voter; fails with `Conflict` where it does not.
pub(super) async fn reach(inner: &Arc<Inner>, newcomer: &Learner) -> Result<(), Failure> {
    if newcomer.node == inner.config.node {
        return Ok(());
    }
    let peer = Peer { node: newcomer.node, incarnation: None, address: newcomer.address.clone() };
    let call = Call { method: Method::Ping, header: Bytes::new(), payload: Vec::new(), deadline: REACH_MAX };
    match inner.wires.link.call(&peer, call).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.kind == FailureKind::Busy => Ok(()),
        Err(failure) => {
            let own = inner.ledger.name(inner.config.node);
            Err(Failure::new(FailureKind::Conflict, format!("{own} does not reach it: {}", failure.text)))
        }
    }
}

/// Makes a registered node a voter of every group, or of none: a learner everywhere first, a voter once it has caught
/// up everywhere.
async fn add_voter(inner: &Arc<Inner>, node: NodeId) -> Result<String, Failure> {
    let _alone = inner.voters.lock().await;
    let map = map(inner).await?;
    let record = meta_node(&map, node)?;
    let name = &record.name;
    if let Some(reason) = inner.ledger.refusal_of(node) {
        return Err(never_again(name, &reason));
    }
    let groups = all_groups(&map);
    let missing: Vec<GroupId> = groups.iter().copied().filter(|group| !votes(inner, &map, *group, node)).collect();
    if missing.is_empty() {
        return Ok(format!("{name} votes in all {} groups already: nothing was changed", groups.len()));
    }
    check_reach(inner, &map, &record).await?;
    let failure = match join_groups(inner, &map, &record, &missing).await {
        Ok(()) => return Ok(format!("{name} votes in {} groups", groups.len())),
        // The next leader is asked again, and goes on where this one stopped.
        Err(failure) if failure.kind == FailureKind::NotLeader => return Err(failure),
        Err(failure) => failure,
    };
    let undone = leave_groups(inner, &map, node, &missing).await;
    if let Some(reason) = inner.ledger.refusal_of(node) {
        return Err(never_again(name, &reason));
    }
    let end = match undone {
        Ok(()) => "nothing was changed".to_owned(),
        Err(error) => format!("undoing it failed, too ({}); see plinth raft status", error.text),
    };
    Err(Failure::new(FailureKind::Conflict, format!("{name} was not added: {}; {end}", failure.text)))
}

/// Says that a voter has lost its memory, and what to do.
fn never_again(name: &str, reason: &str) -> Failure {
    let text = format!("{name} must not vote again under its id: {reason}. Do: {}", remedy(name));
    Failure::new(FailureKind::Conflict, text)
}

/// Whether a node votes in a group, by the map and by the group itself.
fn votes(inner: &Inner, map: &ClusterMap, group: GroupId, node: NodeId) -> bool {
    let in_group = inner.group(group).is_ok_and(|open| open.raft.status().voters.contains(&node));
    voters_of(map, group).contains(&node) && in_group
}

/// Makes sure that every voter that answers reaches the newcomer: one that some of them can't reach would count in
/// majorities and not help them.
async fn check_reach(inner: &Arc<Inner>, map: &ClusterMap, record: &NodeRecord) -> Result<(), Failure> {
    let newcomer = Learner { node: record.node, address: record.address.clone() };
    let refuse = |failure: Failure| {
        let text = format!(
            "{0} was not added: {1}; is its process running, is its address right, does a firewall let it through? \
             Then: plinth raft add {0}",
            record.name, failure.text
        );
        Failure::new(FailureKind::Conflict, text)
    };
    reach(inner, &newcomer).await.map_err(refuse)?;
    let others = map.voters.iter().filter(|voter| **voter != inner.config.node && **voter != record.node);
    let asked = others.filter_map(|voter| map.node(*voter)).map(|voter| async {
        let peer = Peer { node: voter.node, incarnation: None, address: voter.address.clone() };
        let body = newcomer.to_bytes();
        inner.wires.call(&peer, GROUP_SYSTEM, RaftCall::Reach, body, Vec::new(), REACH_MAX * 2).await
    });
    for answer in futures_util::future::join_all(asked).await {
        match answer {
            Err(failure) if failure.kind == FailureKind::Conflict => return Err(refuse(failure)),
            // A voter that is down itself can't tell, and helps no majority either way.
            _ => {}
        }
    }
    Ok(())
}

/// Adds a node to groups: learner in all of them, then voter in all of them.
async fn join_groups(
    inner: &Arc<Inner>,
    map: &ClusterMap,
    record: &NodeRecord,
    groups: &[GroupId],
) -> Result<(), Failure> {
    let node = record.node;
    for group in groups {
        let learner = Learner { node, address: record.address.clone() };
        let catch_up = Duration::from_millis(inner.config.limits.catch_up_ms);
        change(inner, map, *group, Change::AddLearner(learner), catch_up).await?;
    }
    for group in groups {
        change(inner, map, *group, Change::Promote(node), STEP_MAX).await?;
        set_voters(inner, *group, |voters| voters.push(node)).await?;
    }
    Ok(())
}

/// Takes a node out of groups, whatever it is in each.
async fn leave_groups(inner: &Arc<Inner>, map: &ClusterMap, node: NodeId, groups: &[GroupId]) -> Result<(), Failure> {
    let mut result = Ok(());
    for group in groups {
        let status = inner.group(*group)?.raft.status();
        if !status.voters.contains(&node) && !status.learners.contains(&node) {
            continue;
        }
        let left = set_voters(inner, *group, |voters| voters.retain(|voter| *voter != node)).await;
        let left = left.and(change(inner, map, *group, Change::Remove(node), STEP_MAX).await);
        result = result.and(left);
    }
    result
}

/// Removes a voter from every group. Refuses where the rest could not decide anything.
async fn remove_voter(inner: &Arc<Inner>, node: NodeId) -> Result<String, Failure> {
    let _alone = inner.voters.lock().await;
    let map = map(inner).await?;
    let name = inner.ledger.name(node);
    let takes_part = |group: &GroupId| {
        let status = inner.group(*group).map(|open| open.raft.status());
        let member = status.is_ok_and(|status| status.voters.contains(&node) || status.learners.contains(&node));
        member || voters_of(&map, *group).contains(&node)
    };
    let groups: Vec<GroupId> = all_groups(&map).into_iter().filter(takes_part).collect();
    if groups.is_empty() {
        return Ok(format!("{name} votes in no group: nothing was changed"));
    }
    for group in &groups {
        check_removal(inner, &map, *group, node).await?;
    }
    if node == inner.config.node {
        return give_away_and_refuse(inner).await;
    }
    for group in &groups {
        if leader_of(inner, &map, *group).await? == node {
            change(inner, &map, *group, Change::Transfer(inner.config.node), STEP_MAX).await?;
            wait_for_other_leader(inner, &map, *group, node).await?;
        }
        // The map first: a client must not be sent to a node that is gone.
        set_voters(inner, *group, |voters| voters.retain(|voter| *voter != node)).await?;
        change(inner, &map, *group, Change::Remove(node), STEP_MAX).await?;
    }
    let left = map.voters.iter().filter(|voter| **voter != node).count();
    let spare = left.saturating_sub(left / 2 + 1);
    Ok(format!("{name} votes in no group any more; {left} voters are left, of which {spare} may be lost"))
}

/// A leader can't see its own removal through: another must lead first.
async fn give_away_and_refuse(inner: &Arc<Inner>) -> Result<String, Failure> {
    let group = inner.group(GROUP_SYSTEM)?;
    group.raft.give_away().await;
    let deadline = Instant::now() + STEP_MAX;
    while group.raft.is_leader() && Instant::now() < deadline {
        tokio::time::sleep(STEP_RETRY).await;
    }
    Err(super::proposer::not_leader(group.raft.moment().leader))
}

/// Refuses a removal that would leave a group without a majority that answers.
async fn check_removal(inner: &Arc<Inner>, map: &ClusterMap, group: GroupId, node: NodeId) -> Result<(), Failure> {
    let voters = voters_of(map, group);
    let rest: Vec<NodeId> = voters.iter().copied().filter(|voter| *voter != node).collect();
    if rest.is_empty() {
        let name = inner.ledger.name(node);
        let text = format!("{name} is the only voter of {group}: add another one first (plinth raft add)");
        return Err(Failure::new(FailureKind::Invalid, text));
    }
    let up = |voter: &&NodeId| {
        let is_up = |record: &NodeRecord| record.state == State::Up && inner.ledger.refusal_of(**voter).is_none();
        map.node(**voter).is_some_and(is_up) || **voter == inner.config.node
    };
    let answering = rest.iter().filter(up).count();
    if answering * 2 <= rest.len() {
        let text = format!("of the {} voters of {group} that would be left only {answering} are up", rest.len());
        return Err(Failure::new(FailureKind::Conflict, text));
    }
    Ok(())
}

fn voters_of(map: &ClusterMap, group: GroupId) -> Vec<NodeId> {
    match map.shards.iter().find(|shard| shard.group == group) {
        Some(shard) => shard.voters.clone(),
        None => map.voters.clone(),
    }
}

/// Writes a group's voters into the map as it stands now: since the change began it may have had another leader, and
/// another order.
async fn set_voters(inner: &Arc<Inner>, group: GroupId, edit: impl FnOnce(&mut Vec<NodeId>)) -> Result<(), Failure> {
    let map = map(inner).await?;
    let mut voters = voters_of(&map, group);
    edit(&mut voters);
    voters.sort();
    voters.dedup();
    let start = map.shards.iter().find(|shard| shard.group == group).map(|shard| shard.start.clone());
    let start = start.unwrap_or(ShardStart { bucket: BucketId(0), key: String::new() });
    let shard = ShardRecord { group, start, voters };
    match inner.command(GROUP_SYSTEM, Command::SetVoters(SetVoters { shard }), STEP_MAX).await? {
        Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
        _ => Ok(()),
    }
}

/// Has a group's leader change its membership; tries again while leadership moves or another change is under way.
async fn change(
    inner: &Arc<Inner>,
    map: &ClusterMap,
    group: GroupId,
    change: Change,
    wait: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let tried = tokio::time::timeout(left, try_change(inner, map, group, change.clone(), left)).await;
        let failure = match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(FailureKind::Unavailable, format!("{group}: the change takes too long")),
        };
        let again = match failure.kind {
            FailureKind::NotLeader | FailureKind::Conflict | FailureKind::Unknown => true,
            // A learner that does not answer has been waited for already.
            FailureKind::Unavailable => !matches!(change, Change::AddLearner(_)),
            _ => false,
        };
        if !again || Instant::now() + STEP_RETRY >= deadline {
            return Err(failure);
        }
        tokio::time::sleep(STEP_RETRY).await;
    }
}

async fn try_change(
    inner: &Arc<Inner>,
    map: &ClusterMap,
    group: GroupId,
    change: Change,
    deadline: Duration,
) -> Result<(), Failure> {
    let leader = leader_of(inner, map, group).await?;
    if leader == inner.config.node {
        return inner.group(group)?.raft.change(change).await;
    }
    let address = map.node(leader).map(|record| record.address.clone()).unwrap_or_default();
    let peer = Peer { node: leader, incarnation: None, address };
    inner.wires.call(&peer, group, RaftCall::Change, change.to_bytes(), Vec::new(), deadline).await.map(drop)
}

/// Returns who leads a group, as this node's replica of it knows.
async fn leader_of(inner: &Arc<Inner>, map: &ClusterMap, group: GroupId) -> Result<NodeId, Failure> {
    let leader = inner.group(group).ok().and_then(|open| open.raft.moment().leader);
    let known = leader.filter(|leader| map.node(*leader).is_some());
    known.ok_or_else(|| Failure::new(FailureKind::NotLeader, format!("no leader of {group} is known")))
}

async fn wait_for_other_leader(
    inner: &Arc<Inner>,
    map: &ClusterMap,
    group: GroupId,
    node: NodeId,
) -> Result<(), Failure> {
    let deadline = Instant::now() + STEP_MAX;
    loop {
        match leader_of(inner, map, group).await {
            Ok(leader) if leader != node => return Ok(()),
            _ if Instant::now() >= deadline => {
                return Err(Failure::new(FailureKind::Unavailable, format!("{node} still leads {group}")));
            }
            _ => tokio::time::sleep(STEP_RETRY).await,
        }
    }
}

/// Decides an order for the placement groups and commits what it changes.
async fn apply_layout(inner: &Arc<Inner>, order: &LayoutOrder) -> Result<LayoutOutcome, Failure> {
    let map = map(inner).await?;
    let (change, outcome) = layout::arrange(&map, order).map_err(|error| {
        let kind = if matches!(error, LayoutError::Code(_)) { FailureKind::Invalid } else { FailureKind::Conflict };
        Failure::new(kind, format!("layout apply: {error}. Nothing was changed"))
    })?;
    let Some(change) = change else { return Ok(outcome) };
    match inner.command(GROUP_SYSTEM, Command::ChangePlacement(change), STEP_MAX).await? {
        Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
        _ => Ok(outcome),
    }
}

/// Answers the older form of the order, in words.
async fn rebuild_placement(inner: &Arc<Inner>) -> Result<String, Failure> {
    let order = LayoutOrder { code: None, skip_down: false, less_redundancy: false, dry_run: false };
    let done = apply_layout(inner, &order).await?;
    Ok(format!("{} placement groups added, {} closed, code {} for new stripes", done.added, done.closed, done.code))
}
