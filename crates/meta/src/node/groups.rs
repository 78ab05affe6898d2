//! Opening a voter and its groups.

use super::voter_file::{self, LogPlan};
use super::{Inner, OpenGroup, Proposer, Reads};
use crate::clock::NodeClock;
use crate::files::{Files, SystemFiles};
use crate::ledger::Ledger;
use crate::log::engine::lock;
use crate::log::handle::{GroupLog, LogConfig, NodeLog};
use crate::raft::group::RaftGroup;
use crate::raft::machine::{RegistryHook, Shard, blocking};
use crate::raft::network::Wires;
use crate::retention::Retention;
use crate::room::Room;
use crate::state::{Reader, RocksMemory, RocksStore};
use crate::{MetaConfig, MetaError};
use plinth_protocol::map::ClusterMap;
use plinth_protocol::meta::{Query, Reply, VoterRecord};
use plinth_protocol::{GROUP_SYSTEM, GroupId, NodeId};
use plinth_transport::Link;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

/// Most groups on one voter.
const GROUPS_MAX: usize = 1024;

/// Opens log and groups of a voter.
pub(super) async fn open_node(config: MetaConfig, link: Arc<dyn Link>) -> Result<Arc<Inner>, MetaError> {
    let files: Arc<dyn Files> = Arc::new(SystemFiles);
    let (opening, opening_files) = (config.clone(), files.clone());
    let log = blocking(move || open_log(&opening, opening_files.as_ref())).await?;
    let session = mix(config.seed ^ 0x5e55);
    let ledger = Arc::new(Ledger::new(config.node, log.log_id, log.boot, session, log.floor.clone()));
    let limits = config.limits.clone();
    let memory = RocksMemory::new(limits.database_cache_bytes, limits.database_buffer_bytes);
    let clock = Arc::new(NodeClock::new(config.node, config.clock.clone()));
    let wires = Arc::new(Wires {
        link,
        ledger: ledger.clone(),
        files,
        limits,
        clock,
        room: Room::default(),
        retention: Retention::default(),
        transfers: AtomicU64::new(0),
    });
    let mut groups = existing_groups(&config, wires.files.as_ref())?;
    groups.extend(log.known_groups());
    let inner = Arc::new(Inner {
        config,
        wires,
        ledger,
        memory,
        log: tokio::sync::Mutex::new(Some(log)),
        groups: RwLock::default(),
        ailments: Mutex::default(),
        duties: Mutex::default(),
        requests: AtomicU64::new(0),
        voters: tokio::sync::Mutex::default(),
        leaving: AtomicBool::new(false),
    });
    if let Some(found) = inner.config.found.as_ref().map(|found| found.map.clone()) {
        groups.extend(found_groups(&found, inner.config.node).into_keys());
    }
    // The system group comes first: it holds what this voter's log must have reached.
    for group in groups {
        join(&inner, group).await?;
    }
    Ok(inner)
}

fn open_log(config: &MetaConfig, files: &dyn Files) -> Result<NodeLog, MetaError> {
    let folder = config.folder.join("log");
    let log_id = u128::from(mix(config.seed)) << 64 | u128::from(mix(config.seed ^ 0x1065));
    let plan = voter_file::plan(files, &config.folder, &folder, config.cluster, config.node, log_id)?;
    let format = match plan {
        LogPlan::Open => None,
        LogPlan::Format(log_id) => Some(log_id),
    };
    let limits = &config.limits;
    let log = NodeLog::open(LogConfig {
        node: config.node,
        cluster: config.cluster,
        folder,
        format,
        segment_bytes: limits.log_segment_bytes,
        segment_count_max: limits.log_segments_max,
        cache_bytes_max: limits.log_cache_bytes,
    })?;
    if format.is_some() {
        voter_file::confirm(files, &config.folder)?;
    }
    Ok(log)
}

fn groups_folder(config: &MetaConfig) -> PathBuf {
    config.folder.join("groups")
}

fn existing_groups(config: &MetaConfig, files: &dyn Files) -> Result<BTreeSet<GroupId>, MetaError> {
    let names = files.list(&groups_folder(config)).map_err(MetaError::io("list the groups"))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).map(GroupId).collect())
}

/// Returns the groups of a founding map in which the node votes, with the addresses of their voters.
fn found_groups(map: &ClusterMap, node: NodeId) -> BTreeMap<GroupId, BTreeMap<NodeId, String>> {
    let addresses = |voters: &[NodeId]| -> BTreeMap<NodeId, String> {
        let address = |node: &NodeId| map.node(*node).map(|record| record.address.clone()).unwrap_or_default();
        voters.iter().map(|node| (*node, address(node))).collect()
    };
    let shards = map.shards.iter().map(|shard| (shard.group, shard.voters.as_slice()));
    std::iter::once((GROUP_SYSTEM, map.voters.as_slice()))
        .chain(shards)
        .filter(|(_, voters)| voters.contains(&node))
        .map(|(group, voters)| (group, addresses(voters)))
        .collect()
}

/// Opens a group, where it is not open: its database, its replica, its queues and tasks.
pub(super) async fn join(inner: &Arc<Inner>, group: GroupId) -> Result<Arc<OpenGroup>, MetaError> {
    let log = inner.log.lock().await;
    if let Ok(open) = inner.group(group) {
        return Ok(open);
    }
    let Some(log) = log.as_ref() else {
        return Err(MetaError::Stopped("the voter is stopping".into()));
    };
    if inner.open_groups().len() >= GROUPS_MAX {
        return Err(MetaError::Invalid(format!("more than {GROUPS_MAX} groups")));
    }
    let open = Arc::new(open_group(inner, group, log.group(group)).await?);
    inner.groups.write().unwrap_or_else(|e| e.into_inner()).insert(group, open.clone());
    Ok(open)
}

/// Refuses a database that lacks entries which the log no longer has: they were flushed before they were purged, so
/// the database was lost or rolled back, and what it would say is not what this voter has promised.
fn check_database(node: NodeId, group: GroupId, log: &GroupLog, shard: &Shard) -> Result<(), MetaError> {
    let (purged, flushed) = (log.with_view(|view| view.purged), shard.flushed());
    match purged {
        Some(purged) if flushed.is_none_or(|flushed| flushed.index < purged.index) => {
            let held = flushed.map_or("nothing".to_owned(), |flushed| format!("entries up to {flushed}"));
            let reason = format!("the database of {group} holds {held}, but the log was purged up to {purged}");
            Err(MetaError::Damaged { node, reason })
        }
        _ => Ok(()),
    }
}

/// Brings the log in line with rows that came from a peer, where a crash or a close came before that: what the log holds
/// up to the rows' end is done with, and where it holds another entry there, all of it was never committed.
async fn reconcile(log: &GroupLog, shard: &Shard) -> Result<(), MetaError> {
    let Some(end) = shard.flushed() else { return Ok(()) };
    let (purged, last, at_end) = log.with_view(|view| (view.purged, view.last(), view.id_at(end.index)));
    if at_end == Some(end) || purged.is_some_and(|purged| purged.index >= end.index) {
        return Ok(());
    }
    if last.is_some_and(|last| last.index >= end.index) {
        tracing::warn!(%end, "entries that were never committed are dropped from the log");
        log.truncate_after(purged).await?;
    }
    log.purge(end).await
}

async fn open_group(inner: &Arc<Inner>, group: GroupId, log: GroupLog) -> Result<OpenGroup, MetaError> {
    let config = &inner.config;
    let folder = groups_folder(config).join(group.0.to_string());
    let hook = (group == GROUP_SYSTEM).then(|| registry_hook(inner.ledger.clone()));
    let (files, memory, database) = (inner.wires.files.clone(), inner.memory.clone(), folder.clone());
    let (shard, machine) = blocking(move || {
        let parent = database.parent().map(Path::to_path_buf).unwrap_or_default();
        files.create_folder(&parent).map_err(MetaError::io("make the groups' folder"))?;
        Shard::open(group, files, memory, database, hook)
    })
    .await?;
    check_database(config.node, group, &log, &shard)?;
    reconcile(&log, &shard).await?;
    if group == GROUP_SYSTEM {
        let records = voter_records(&shard.reader())?;
        inner.ledger.check_self(&records).map_err(|reason| MetaError::Damaged { node: config.node, reason })?;
    }
    let raft = RaftGroup::start(group, config.node, inner.wires.clone(), log, shard, machine, folder).await?;
    if let Some(found) = &config.found
        && let Some(voters) = found_groups(&found.map, config.node).get(&group)
    {
        raft.initialize(voters).await?;
    }
    let proposer = Proposer::new(raft.clone(), config.limits.clone(), inner.wires.clock.clone());
    let reads = Reads::new(raft.clone(), config.limits.queue_reads_max);
    let leader_changes = Arc::new(AtomicU64::new(0));
    let mut tasks = vec![
        tokio::spawn(proposer.clone().run()),
        tokio::spawn(reads.clone().run()),
        tokio::spawn(super::duties::keep(raft.clone(), proposer.clone())),
        tokio::spawn(super::duties::watch(Arc::downgrade(inner), raft.clone(), leader_changes.clone())),
    ];
    if group != GROUP_SYSTEM {
        tasks.push(tokio::spawn(super::duties::tend(Arc::downgrade(inner), group)));
    }
    let is_fenced = AtomicBool::new(false);
    Ok(OpenGroup { raft, proposer, reads, leader_changes, is_fenced, tasks })
}

/// Keeps the ledger in step with what group 0 holds, as far as this replica has applied it.
fn registry_hook(ledger: Arc<Ledger>) -> RegistryHook {
    let turn = Mutex::new(());
    Arc::new(move |reader: &Reader<RocksStore>| {
        let _turn = lock(&turn);
        // Rows that can't be read say nothing: what is known of the voters stays.
        if let Ok(records) = voter_records(reader) {
            ledger.set_recorded(records);
        }
        if let Ok(Reply::Map(map)) = reader.query(&Query::Map(None)) {
            ledger.set_names(map.nodes.iter().map(|node| (node.node, node.name.clone())).collect());
            ledger.set_addresses(map.nodes.into_iter().map(|node| (node.node, node.address)).collect());
        }
    })
}

fn voter_records(reader: &Reader<RocksStore>) -> Result<Vec<VoterRecord>, MetaError> {
    match reader.query(&Query::Voters) {
        Ok(Reply::Voters(list)) => Ok(list.voters),
        Ok(_) => Ok(Vec::new()),
        Err(failure) => Err(MetaError::Database(format!("the voters can't be read: {failure}"))),
    }
}

/// Spreads a seed over 64 bits (splitmix64).
fn mix(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
