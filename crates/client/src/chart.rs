//! The chart: the cluster map with what a client looks up in it all the time, and the choice of a
//! placement group for a new stripe.

use crate::chance::Chance;
use crate::health::DiskHealth;
use plinth_protocol::map::{ClusterMap, PlacementGroup, State};
use plinth_protocol::stripe::{Code, StripeRef};
use plinth_protocol::{DiskId, GROUP_SYSTEM, GroupId, Incarnation, NodeId};
use plinth_transport::Peer;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// How many placement groups are looked at to find two without a bad disk.
const DRAWS_MAX: usize = 8;

/// A disk, where it is, and how it has been doing.
pub(crate) struct Site {
    pub(crate) disk: DiskId,
    pub(crate) incarnation: Incarnation,
    pub(crate) peer: Arc<Peer>,
    /// Whether group 0 has both disk and node as serving.
    pub(crate) up: bool,
    /// Whether reads are worth a try: group 0 has neither disk nor node as not serving.
    pub(crate) readable: bool,
    /// Whether group 0 has the disk as gone for good.
    pub(crate) retired: bool,
    pub(crate) health: Arc<DiskHealth>,
}

/// The map under one epoch, indexed.
pub(crate) struct Chart {
    pub(crate) map: Arc<ClusterMap>,
    sites: HashMap<DiskId, Arc<Site>>,
    peers: HashMap<NodeId, Arc<Peer>>,
    /// Positions in `map.pgs` of the groups that take new stripes, each with the sum of free bytes
    /// of the groups up to and including it.
    open: Vec<(usize, u64)>,
}

impl Chart {
    /// Indexes a map; what is known of disks that an earlier chart held is kept.
    pub(crate) fn new(map: ClusterMap, before: Option<&Chart>) -> Self {
        let peers = map.nodes.iter().map(|node| {
            let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
            (node.node, Arc::new(peer))
        });
        let peers: HashMap<NodeId, Arc<Peer>> = peers.collect();
        let mut sites = HashMap::with_capacity(map.disks.len());
        for disk in &map.disks {
            let Some(peer) = peers.get(&disk.node) else { continue };
            let node_state = map.node(disk.node).map_or(State::Retired, |node| node.state);
            let silent = |state| matches!(state, State::Down | State::Failed | State::Retired);
            let known = before.and_then(|chart| chart.sites.get(&disk.disk));
            let same = known.filter(|site| site.incarnation == disk.incarnation);
            let site = Site {
                disk: disk.disk,
                incarnation: disk.incarnation,
                peer: peer.clone(),
                up: node_state == State::Up && disk.state == State::Up,
                readable: !silent(node_state) && !silent(disk.state),
                retired: disk.state == State::Retired,
                health: same.map_or_else(Arc::default, |site| site.health.clone()),
            };
            sites.insert(disk.disk, Arc::new(site));
        }
        let mut chart = Chart { map: Arc::new(map), sites, peers, open: Vec::new() };
        chart.open = chart.weigh();
        chart
    }

    /// Lists the open groups of the map's code with the running sum of their free bytes.
    fn weigh(&self) -> Vec<(usize, u64)> {
        let free: HashMap<DiskId, u64> = self
            .map
            .disks
            .iter()
            .map(|disk| (disk.disk, disk.size_bytes.saturating_sub(disk.used_bytes.unwrap_or(0))))
            .collect();
        let mut sum = 0;
        let mut open = Vec::new();
        for (position, pg) in self.map.pgs.iter().enumerate() {
            let usable = !pg.closed && pg.code == self.map.code && pg.disks.len() == pg.code.width();
            if usable && pg.disks.iter().all(|disk| self.sites.contains_key(disk)) {
                // In whole MiB and at least one, so that full groups can still be drawn as a last resort.
                let room = pg.disks.iter().map(|disk| free[disk] >> 20).min().unwrap_or(0);
                sum = u64::saturating_add(sum, room.max(1));
                open.push((position, sum));
            }
        }
        open
    }

    /// Returns the code of new stripes.
    pub(crate) fn code(&self) -> Code {
        self.map.code
    }

    /// Returns a disk.
    pub(crate) fn site(&self, disk: DiskId) -> Option<&Arc<Site>> {
        self.sites.get(&disk)
    }

    /// Returns where a fragment of a stripe belongs by the current map.
    pub(crate) fn site_of(&self, stripe: &StripeRef, index: u8) -> Option<&Arc<Site>> {
        let disk = self.map.pg(stripe.pg)?.disks.get(stripe.slot(index))?;
        self.sites.get(disk)
    }

    /// Returns how to reach a node.
    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.get(&node).cloned()
    }

    /// Returns the voters of a group.
    pub(crate) fn voters(&self, group: GroupId) -> &[NodeId] {
        if group == GROUP_SYSTEM {
            return &self.map.voters;
        }
        self.map.shards.iter().find(|shard| shard.group == group).map_or(&[], |shard| &shard.voters)
    }

    /// Returns the object shards' groups, each once.
    pub(crate) fn shard_groups(&self) -> BTreeSet<GroupId> {
        self.map.shards.iter().map(|shard| shard.group).collect()
    }

    /// Chooses a placement group for a new stripe: two drawn by free space, then the one whose
    /// busiest disk is least loaded. Groups with disks that are down, struck, full or in `shunned`
    /// are taken only where no other exists, those with the fewest such disks first.
    pub(crate) fn choose_pg(&self, chance: &Chance, now_ms: u64, shunned: &[DiskId]) -> Option<&PlacementGroup> {
        let (_, total) = *self.open.last()?;
        let mut sound: Vec<&PlacementGroup> = Vec::with_capacity(2);
        for _ in 0..DRAWS_MAX {
            let draw = chance.below(total);
            let pg = &self.map.pgs[self.open[self.open.partition_point(|&(_, sum)| sum <= draw)].0];
            if self.bad_disks(pg, now_ms, shunned) == 0 {
                sound.push(pg);
            }
            if sound.len() == 2 {
                break;
            }
        }
        match sound[..] {
            [] => self.choose_among_all(chance, now_ms, shunned),
            [only] => Some(only),
            [one, other, ..] => Some(if self.load(one) <= self.load(other) { one } else { other }),
        }
    }

    /// Looks at every open group, from a random one on, for the fewest bad disks and then the least load.
    fn choose_among_all(&self, chance: &Chance, now_ms: u64, shunned: &[DiskId]) -> Option<&PlacementGroup> {
        let start = chance.below(self.open.len() as u64) as usize;
        let (before, from) = self.open.split_at(start);
        let groups = from.iter().chain(before).map(|&(position, _)| &self.map.pgs[position]);
        groups.min_by_key(|pg| (self.bad_disks(pg, now_ms, shunned), self.load(pg)))
    }

    fn bad_disks(&self, pg: &PlacementGroup, now_ms: u64, shunned: &[DiskId]) -> usize {
        let bad = |disk: &&DiskId| {
            shunned.contains(disk) || !self.sites[*disk].up || !self.sites[*disk].health.takes_stripes(now_ms)
        };
        pg.disks.iter().filter(bad).count()
    }

    fn load(&self, pg: &PlacementGroup) -> u64 {
        pg.disks.iter().map(|disk| self.sites[disk].health.load()).max().unwrap_or(0)
    }
}
