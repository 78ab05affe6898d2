//! The system group's registry: the cluster map row by row, writers, voters.
//!
//! Every change of the map bumps its epoch in the same batch; a command that changes nothing
//! leaves the epoch alone, so that equal epochs always mean equal maps.

use super::rows::{self, Kept, MapHeader, NodeRow, WriterRow};
use super::store::{Family, KeyRange, View};
use super::work::{Decided, Work, decided, refusal, refuse};
use super::{StateError, keys};
use plinth_protocol::map::{DiskRecord, NodeRecord, PlacementGroup, ShardRecord, State};
use plinth_protocol::meta::{
    ADDRESS_BYTES_MAX, ChangePlacement, Founding, NodeAddress, Outcome, Refusal, RefusalKind, RegisterNode,
    SetDiskState, SetNodeState, SetVoters, VoterRecord,
};
use plinth_protocol::wire::{Record, Wire};
use plinth_protocol::{Epoch, GROUP_SYSTEM, Incarnation, NodeId, WriterId};
use std::collections::BTreeSet;

/// Writer ids are 48 bits wide.
const WRITERS_MAX: u64 = 1 << 48;

fn not_founded() -> Refusal {
    refusal(RefusalKind::Invalid, "the cluster has not been founded")
}

/// Whether a text is `<host>:<port>` and short enough to keep.
fn is_address(text: &str) -> bool {
    let parts =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()));
    text.len() <= ADDRESS_BYTES_MAX && parts.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl<V: View> Work<'_, V> {
    pub(super) fn header(&self) -> Decided<Kept<MapHeader>> {
        let header = self.read_kept(Family::Registry, &keys::header())?;
        Ok(header.ok_or_else(not_founded))
    }

    fn put_header(&mut self, header: &Kept<MapHeader>) {
        self.batch.put(Family::Registry, keys::header(), header.encode());
    }

    pub(super) fn bump_epoch(&mut self, mut header: Kept<MapHeader>) {
        header.record.epoch = Epoch(header.record.epoch.0.saturating_add(1));
        self.put_header(&header);
    }

    /// Reads all records under one tag of the registry.
    pub(super) fn registered<T: Wire>(&self, tag: u8) -> Result<Vec<T>, StateError> {
        let rows = self.scan(Family::Registry, &KeyRange::of_prefix(&[tag]), usize::MAX)?;
        rows.into_iter().map(|(_, row)| rows::decode(Family::Registry, &row)).collect()
    }

    pub(super) fn rewrite<T: Record + PartialEq>(&mut self, key: Vec<u8>, row: &Kept<T>) {
        self.batch.put(Family::Registry, key, row.encode());
    }

    pub(super) fn found(&mut self, founding: &Founding) -> Result<Outcome, StateError> {
        if self.header()?.is_ok() {
            return Ok(refuse(RefusalKind::AlreadyFounded, "the cluster has been founded already"));
        }
        let map = &founding.map;
        let last = map.nodes.iter().map(|node| node.node.0).max().unwrap_or(0);
        let header = MapHeader {
            cluster: map.cluster,
            epoch: map.epoch.max(Epoch(1)),
            code: map.code,
            fragment_bytes_max: map.fragment_bytes_max,
            name: map.name.clone(),
            voters: map.voters.clone(),
            feature_level: map.feature_level,
            next_node: NodeId(last.saturating_add(1)),
            next_writer: WriterId(1),
            denied: map.denied_nodes.clone(),
            revoked: Vec::new(),
        };
        self.put_header(&Kept::new(header));
        for node in &map.nodes {
            let row = NodeRow { node: NodeRecord { public_key: None, ..node.clone() }, public_key: node.public_key };
            self.put(Family::Registry, keys::node(node.node), &row);
        }
        for disk in &map.disks {
            self.put(Family::Registry, keys::disk(disk.disk), disk);
        }
        for pg in &map.pgs {
            self.put(Family::Registry, keys::pg(pg.pg), pg);
        }
        for shard in &map.shards {
            self.put(Family::Registry, keys::shard(shard.group), shard);
        }
        for key in &founding.keys {
            self.put(Family::Registry, keys::access_key(&key.id), key);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn register_writer(&mut self, node: NodeId) -> Result<Outcome, StateError> {
        let mut header = decided!(self.header());
        if self.get(Family::Registry, &keys::node(node))?.is_none() {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{node} is not registered")));
        }
        let writer = header.record.next_writer;
        // 48 bits of writers last for millions of years.
        if writer.0 >= WRITERS_MAX {
            return Ok(refuse(RefusalKind::Invalid, "all writer ids have been handed out"));
        }
        header.record.next_writer = WriterId(writer.0 + 1);
        self.put_header(&header);
        self.put(Family::Registry, keys::writer(writer), &WriterRow { node, at: self.now });
        Ok(Outcome::Writer(writer))
    }

    pub(super) fn register_node(&mut self, register: &RegisterNode) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        let taken = |row: &NodeRow| row.node.name == register.node.name && row.node.node != register.node.node;
        if self.registered::<NodeRow>(keys::registry::NODE)?.iter().any(taken) {
            return Ok(refuse(RefusalKind::AlreadyExists, "another node has this name"));
        }
        if register.node.node == NodeId(0) {
            self.add_node(header, register)
        } else {
            self.renew_node(header, register)
        }
    }

    fn add_node(&mut self, mut header: Kept<MapHeader>, register: &RegisterNode) -> Result<Outcome, StateError> {
        let id = header.record.next_node;
        let Some(next) = id.0.checked_add(1) else {
            return Ok(refuse(RefusalKind::Invalid, "all node ids have been handed out"));
        };
        header.record.next_node = NodeId(next);
        let node = NodeRecord {
            node: id,
            incarnation: Incarnation(1),
            state: State::Up,
            public_key: None,
            ..register.node.clone()
        };
        self.put(Family::Registry, keys::node(id), &NodeRow { node: node.clone(), public_key: register.public_key });
        self.bump_epoch(header);
        Ok(Outcome::Node(node))
    }

    fn renew_node(&mut self, header: Kept<MapHeader>, register: &RegisterNode) -> Result<Outcome, StateError> {
        let id = register.node.node;
        let Some(mut row) = self.read_kept::<NodeRow>(Family::Registry, &keys::node(id))? else {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{id} is not registered")));
        };
        let known = &row.record.node;
        if known.state == State::Retired {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{id} is retired for good")));
        }
        // Draining is an operator's order and outlives a restart.
        let state = if known.state == State::Draining { State::Draining } else { State::Up };
        let incarnation = Incarnation(known.incarnation.0.saturating_add(1));
        let node = NodeRecord { incarnation, state, public_key: None, ..register.node.clone() };
        row.record.node = node.clone();
        row.record.public_key = register.public_key.or(row.record.public_key);
        self.rewrite(keys::node(id), &row);
        self.bump_epoch(header);
        Ok(Outcome::Node(node))
    }

    /// Takes over where a node says that it is. An address that another node has is taken over too: whoever is
    /// there proves who it is, and nodes that change places can't both be first.
    pub(super) fn announce_address(&mut self, announced: &NodeAddress) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        let key = keys::node(announced.node);
        let Some(mut row) = self.read_kept::<NodeRow>(Family::Registry, &key)? else {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is not registered", announced.node)));
        };
        if row.record.node.state == State::Retired {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is retired for good", announced.node)));
        }
        if !is_address(&announced.address) {
            return Ok(refuse(RefusalKind::Invalid, "an address is HOST:PORT"));
        }
        if row.record.node.address != announced.address {
            row.record.node.address = announced.address.clone();
            self.rewrite(key, &row);
            self.bump_epoch(header);
        }
        Ok(Outcome::Node(row.record.node))
    }

    pub(super) fn register_disk(&mut self, disk: &DiskRecord) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        if self.get(Family::Registry, &keys::node(disk.node))?.is_none() {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is not registered", disk.node)));
        }
        let key = keys::disk(disk.disk);
        let Some(mut row) = self.read_kept::<DiskRecord>(Family::Registry, &key)? else {
            self.put(Family::Registry, key, disk);
            self.bump_epoch(header);
            return Ok(Outcome::Done);
        };
        let known = row.record.clone();
        if disk.incarnation < known.incarnation {
            let text =
                format!("the disk is known as {}, {} is a copy or an old image", known.incarnation, disk.incarnation);
            return Ok(refuse(RefusalKind::AlreadyExists, text));
        }
        let returns = disk.incarnation > known.incarnation || matches!(known.state, State::Suspect | State::Down);
        let state = if returns { State::Up } else { known.state };
        let used_bytes = disk.used_bytes.or(known.used_bytes);
        let quarantined = disk.quarantined.or(known.quarantined);
        let write_stop_bytes = disk.write_stop_bytes.or(known.write_stop_bytes);
        row.record = DiskRecord { state, used_bytes, quarantined, write_stop_bytes, ..disk.clone() };
        if row.record != known {
            self.rewrite(key, &row);
            self.bump_epoch(header);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_node_state(&mut self, set: &SetNodeState) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        let key = keys::node(set.node);
        let Some(mut row) = self.read_kept::<NodeRow>(Family::Registry, &key)? else {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is not registered", set.node)));
        };
        if row.record.node.state != set.state {
            row.record.node.state = set.state;
            self.rewrite(key, &row);
            self.bump_epoch(header);
        }
        Ok(Outcome::Node(row.record.node))
    }

    pub(super) fn set_disk_state(&mut self, set: &SetDiskState) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        let key = keys::disk(set.disk);
        let Some(mut row) = self.read_kept::<DiskRecord>(Family::Registry, &key)? else {
            return Ok(refuse(RefusalKind::NoSuchDisk, format!("disk {} is not registered", set.disk)));
        };
        let disk = &mut row.record;
        let before = disk.clone();
        disk.state = set.state.unwrap_or(disk.state);
        if let Some(used) = set.used_bytes {
            let quarantined = set.quarantined.or(disk.quarantined);
            if disk.misleads(used, quarantined.unwrap_or(0)) {
                (disk.used_bytes, disk.quarantined) = (Some(used), quarantined);
            }
        }
        if row.record != before {
            self.rewrite(key, &row);
            self.bump_epoch(header);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn change_placement(&mut self, change: &ChangePlacement) -> Result<Outcome, StateError> {
        let mut header = decided!(self.header());
        let epoch = header.record.epoch;
        if change.planned_on != epoch {
            let text = format!("planned on {}, the map is at {epoch}", change.planned_on);
            return Ok(refuse(RefusalKind::StaleEpoch, text));
        }
        let mut named = BTreeSet::new();
        for pg in &change.add {
            if !named.insert(pg.pg) {
                return Ok(refuse(RefusalKind::AlreadyExists, format!("{} is given twice", pg.pg)));
            }
            decided!(self.check_pg(pg));
        }
        let mut closing = Vec::new();
        for id in &change.close {
            match self.read_kept::<PlacementGroup>(Family::Registry, &keys::pg(*id))? {
                Some(row) if !named.contains(id) => closing.push(row),
                _ => return Ok(refuse(RefusalKind::Invalid, format!("{id} can't be closed: it is new or unknown"))),
            }
        }
        for pg in &change.add {
            self.put(Family::Registry, keys::pg(pg.pg), pg);
        }
        for mut row in closing {
            row.record.closed = true;
            self.rewrite(keys::pg(row.record.pg), &row);
        }
        header.record.code = change.code.unwrap_or(header.record.code);
        self.bump_epoch(header);
        Ok(Outcome::Done)
    }

    /// Checks a new placement group, or a new generation of a known one.
    fn check_pg(&self, pg: &PlacementGroup) -> Decided<()> {
        let distinct: BTreeSet<_> = pg.disks.iter().collect();
        if pg.disks.len() != pg.code.width() || distinct.len() != pg.disks.len() {
            return Ok(Err(refusal(
                RefusalKind::Invalid,
                format!("{} needs {} different disks", pg.pg, pg.code.width()),
            )));
        }
        for disk in &pg.disks {
            if self.get(Family::Registry, &keys::disk(*disk))?.is_none() {
                return Ok(Err(refusal(RefusalKind::NoSuchDisk, format!("disk {disk} is not registered"))));
            }
        }
        let known: Option<PlacementGroup> = self.read(Family::Registry, &keys::pg(pg.pg))?;
        if known.is_some_and(|known| known.generation >= pg.generation || known.code != pg.code) {
            return Ok(Err(refusal(RefusalKind::AlreadyExists, format!("{} exists in this generation", pg.pg))));
        }
        Ok(Ok(()))
    }

    pub(super) fn set_voters(&mut self, set: &SetVoters) -> Result<Outcome, StateError> {
        let mut header = decided!(self.header());
        let shard = &set.shard;
        if shard.group == GROUP_SYSTEM {
            if header.record.voters != shard.voters {
                header.record.voters = shard.voters.clone();
                self.bump_epoch(header);
            }
            return Ok(Outcome::Done);
        }
        let key = keys::shard(shard.group);
        let known = self.read_kept::<ShardRecord>(Family::Registry, &key)?;
        let mut row = known.clone().unwrap_or_else(|| Kept::new(shard.clone()));
        row.record = shard.clone();
        if known.as_ref() != Some(&row) {
            self.rewrite(key, &row);
            self.bump_epoch(header);
        }
        Ok(Outcome::Done)
    }

    /// Records a voter's promise. Another log id means a wiped voter; a boot that is not newer or
    /// a floor that went back means an old image. In one and the same boot only a risen floor is news.
    pub(super) fn record_voter(&mut self, voter: &VoterRecord) -> Result<Outcome, StateError> {
        let refused = |text: String| Ok(refuse(RefusalKind::VoterRefused, text));
        let key = keys::voter(voter.node);
        let Some(mut row) = self.read_kept::<VoterRecord>(Family::Registry, &key)? else {
            self.put(Family::Registry, key, voter);
            return Ok(Outcome::Done);
        };
        let known = &row.record;
        if voter.log != known.log {
            return refused(format!("the log of {} is another one: wiped?", voter.node));
        }
        if voter.floor < known.floor {
            return refused(format!("{} has lost log records: {} of {}", voter.node, voter.floor, known.floor));
        }
        if voter.boot < known.boot || (voter.boot == known.boot && voter.floor == known.floor) {
            return refused(format!("boot {} of {} is not newer than {}", voter.boot, voter.node, known.boot));
        }
        row.record = voter.clone();
        self.rewrite(key, &row);
        Ok(Outcome::Done)
    }
}
