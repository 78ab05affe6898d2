//! What one metadata node knows of the whole cluster: how far its peers lag, and, where it leads the system group, the
//! states of all nodes, the pool and the buckets.

use crate::export::gauge;
use plinth_admin::verdict::{self, Answers, Collected, Verdict};
use plinth_admin::view;
use plinth_client::Client;
use plinth_meta::{GroupStats, MetaStats, ReplicaState};
use plinth_protocol::map::{ClusterMap, State};
use plinth_protocol::meta::{BucketsQuery, LIST_ENTRIES_MAX, Query, Reply, ShardStat};
use plinth_protocol::{BucketId, GROUP_SYSTEM, GroupId, NodeId};
use prometheus::proto::MetricFamily;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Looks back at a group's log, one a second: longer lags are shown as this many seconds and more.
const LOOKS_MAX: usize = 120;
/// Buckets with metrics of their own; the rest is one line, `__other__`.
const BUCKETS_MAX: usize = 100;
/// How long the shards may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How far the peers of the groups that a node leads lag behind it, in time.
#[derive(Default)]
pub struct Lags {
    /// When the log's end was where, for each group that this node leads.
    looks: BTreeMap<GroupId, VecDeque<(Instant, u64)>>,
    /// Each peer's lag in each group at the last look.
    lags: BTreeMap<(GroupId, NodeId), Duration>,
}

impl Lags {
    /// Looks at the groups; meant for once a second.
    pub fn look(&mut self, now: Instant, groups: &[GroupStats]) {
        let led = |group: &&GroupStats| group.state == ReplicaState::Leader;
        self.looks.retain(|id, _| groups.iter().filter(led).any(|group| group.group == *id));
        self.lags.clear();
        for group in groups.iter().filter(led) {
            let looks = self.looks.entry(group.group).or_default();
            looks.push_back((now, group.last_log));
            if looks.len() > LOOKS_MAX {
                looks.pop_front();
            }
            for (peer, entries) in &group.peer_lag {
                let has = group.last_log.saturating_sub(*entries);
                // It lags since the first look at which the log held more than it has.
                let since = looks.iter().find(|(_, last_log)| *last_log > has).map_or(now, |(at, _)| *at);
                self.lags.insert((group.group, *peer), now - since);
            }
        }
    }

    /// Returns each peer's lag in the group where it is worst.
    fn worst(&self) -> BTreeMap<NodeId, Duration> {
        let mut worst = BTreeMap::new();
        for ((_, peer), lag) in &self.lags {
            let entry = worst.entry(*peer).or_insert(*lag);
            *entry = (*entry).max(*lag);
        }
        worst
    }

    /// Exports the lags.
    pub fn family(&self, own: NodeId) -> MetricFamily {
        let peers = self.worst().into_iter().filter(|(peer, _)| *peer != own);
        let values = peers.map(|(peer, lag)| (vec![("peer", peer.to_string())], lag.as_secs_f64()));
        gauge(
            "plinth_raft_peer_lag_seconds",
            "How far a voter lags behind, in the group where it is worst.",
            values.collect(),
        )
    }
}

/// The cluster as the leader of the system group sees it.
#[derive(Default, Clone)]
pub struct Overview {
    shards: Vec<ShardStat>,
    names: BTreeMap<BucketId, String>,
}

impl Overview {
    /// Asks the shards for their counts.
    pub async fn ask(client: &Client) -> Overview {
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        let mut overview = Overview::default();
        for shard in &client.map().shards {
            if let Ok(Reply::ShardStat(stat)) = client.query(shard.group, Query::ShardStat, deadline).await {
                overview.shards.push(stat);
            }
        }
        let query = BucketsQuery { prefix: String::new(), after: None, limit: LIST_ENTRIES_MAX, account: None };
        if let Ok(Reply::Buckets(page)) = client.query(GROUP_SYSTEM, Query::Buckets(query), deadline).await {
            overview.names = page.buckets.into_iter().map(|bucket| (bucket.bucket, bucket.name)).collect();
        }
        overview
    }

    /// Judges the cluster by the map, the shards' counts and what this node knows itself.
    pub fn verdict(&self, map: &ClusterMap, answers: Answers) -> Verdict {
        let shards = (!self.shards.is_empty()).then_some(&self.shards[..]);
        verdict::judge(&Collected { map, confirmed: true, answers: &answers, shards, demo: false })
    }

    /// Exports the whole cluster's values.
    pub fn families(&self, map: &ClusterMap, answers: Answers) -> Vec<MetricFamily> {
        // Before the first count the shards have not been asked.
        let shards = (!self.shards.is_empty()).then_some(&self.shards[..]);
        let collected = Collected { map, confirmed: true, answers: &answers, shards, demo: false };
        let status = view::status(&collected);
        let pool = || vec![("pool", "default".to_string())];
        let one = |value: u64| vec![(vec![], value as f64)];
        let (objects, bytes) = self.buckets();
        let deferred = self.shards.iter().map(|shard| shard.deferred_deletes).fold(0, u64::saturating_add);
        vec![
            gauge(
                "plinth_cluster_health",
                "The verdict on the cluster: 1 for the one that holds.",
                healths(status.health),
            ),
            gauge("plinth_node_state", "State of each node: 1 for the one that holds.", node_states(map)),
            gauge(
                "plinth_pool_usable_bytes",
                "Object bytes that fit until the write stop.",
                vec![(pool(), status.usable_bytes as f64)],
            ),
            gauge(
                "plinth_pool_used_bytes",
                "Bytes on disks, parity included.",
                vec![(pool(), status.used_bytes as f64)],
            ),
            gauge("plinth_fill_in_fragments", "Stripes that owe a fragment.", one(status.owed_stripes)),
            gauge("plinth_gc_pending_stripes", "Deleted stripes that wait for the safe point.", one(deferred)),
            gauge(
                "plinth_expiry_held_seconds",
                "How long expiry waits since a jump of time that nobody has confirmed.",
                one(status.expiry_held_ms / 1000),
            ),
            gauge("plinth_bucket_objects", "Live objects.", objects),
            gauge("plinth_bucket_bytes", "Bytes of live objects.", bytes),
        ]
    }

    #[allow(clippy::type_complexity)]
    fn buckets(&self) -> (Vec<(Vec<(&'static str, String)>, f64)>, Vec<(Vec<(&'static str, String)>, f64)>) {
        let mut usage: BTreeMap<BucketId, (u64, u64)> = BTreeMap::new();
        for (bucket, part) in self.shards.iter().flat_map(|shard| &shard.buckets) {
            let whole = usage.entry(*bucket).or_default();
            *whole = (whole.0.saturating_add(part.objects), whole.1.saturating_add(part.bytes));
        }
        let mut named: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let mut sorted: Vec<_> = usage.into_iter().collect();
        sorted.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
        for (at, (bucket, (objects, bytes))) in sorted.into_iter().enumerate() {
            let name = self.names.get(&bucket).filter(|_| at < BUCKETS_MAX).map_or("__other__", String::as_str);
            let whole = named.entry(name.to_string()).or_default();
            *whole = (whole.0.saturating_add(objects), whole.1.saturating_add(bytes));
        }
        let label = |name: &String| vec![("bucket", name.clone())];
        let objects = named.iter().map(|(name, (objects, _))| (label(name), *objects as f64)).collect();
        let bytes = named.iter().map(|(name, (_, bytes))| (label(name), *bytes as f64)).collect();
        (objects, bytes)
    }
}

fn healths(health: &str) -> Vec<(Vec<(&'static str, String)>, f64)> {
    let one = |state: &str| (vec![("state", state.to_lowercase())], f64::from(u8::from(state == health)));
    ["OK", "WARN", "CRITICAL"].map(one).to_vec()
}

fn node_states(map: &ClusterMap) -> Vec<(Vec<(&'static str, String)>, f64)> {
    const STATES: [State; 6] = [State::Up, State::Suspect, State::Down, State::Failed, State::Draining, State::Retired];
    let mut values = Vec::new();
    for node in &map.nodes {
        for state in STATES {
            let labels = vec![("node", node.name.clone()), ("state", view::state_text(state).to_lowercase())];
            values.push((labels, f64::from(u8::from(node.state == state))));
        }
    }
    values
}

/// Returns whether a node leads the system group.
pub fn leads(stats: &MetaStats) -> bool {
    stats.groups.iter().any(|group| group.group == GROUP_SYSTEM && group.state == ReplicaState::Leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(last_log: u64, peer_lag: Vec<(NodeId, u64)>) -> GroupStats {
        GroupStats {
            group: GROUP_SYSTEM,
            state: ReplicaState::Leader,
            leader: Some(NodeId(1)),
            leader_changes: 1,
            term: 1,
            last_log,
            applied: last_log,
            commit_buckets: [0; 13],
            commit_us_total: 0,
            mutations: 0,
            entries: 0,
            failed_proposals: 0,
            reads: 0,
            read_rounds: 0,
            peer_lag,
            database_bytes: 0,
            log_entries: 0,
            log_bytes: 0,
            clock_stray_ms: 0,
        }
    }

    #[tokio::test]
    async fn lag_is_the_time_since_the_log_held_more_than_the_peer_has() {
        let mut lags = Lags::default();
        let start = Instant::now();
        // Peer 2 keeps up, peer 3 stopped at entry 10, under a load of 10 entries a second.
        for second in 0..8 {
            let last_log = 10 + second * 10;
            let groups = [led(last_log, vec![(NodeId(1), 0), (NodeId(2), 3), (NodeId(3), last_log - 10)])];
            lags.look(start + Duration::from_secs(second), &groups);
        }
        let worst = lags.worst();
        assert_eq!(worst[&NodeId(2)], Duration::ZERO);
        assert_eq!(worst[&NodeId(3)], Duration::from_secs(6));
        // Without load a peer that has everything does not lag.
        lags.look(start + Duration::from_secs(60), &[led(80, vec![(NodeId(2), 0), (NodeId(3), 0)])]);
        assert_eq!(lags.worst()[&NodeId(3)], Duration::ZERO);
    }
}
