//! The log against a reference model: random operations of three groups, crashes that keep any
//! subset of unflushed writes, and every crash state of a short run.
//!
//! All changes of a mount form one ordered list. Whatever a crash leaves must be the state after
//! some prefix of that list, and the prefix must reach at least to the last change that was
//! acknowledged: nothing acknowledged is lost, nothing is out of order, nothing is half there.

use super::LogId;
use super::engine::{Change, Groups, LogLimits, Opened, RaftLog, lock};
use super::record::{EntryKind, LogEntry, VoteWords};
use crate::MetaError;
use plinth_journal::sim::{Chance, SimFaults, Survival};
use plinth_journal::{
    Area, Disk, DiskIdentity, Format, JournalOptions, SegmentState, SimDisk, segment::SEGMENT_BYTES_MIN,
};
use plinth_protocol::{ClusterId, DiskId, GroupId, Incarnation, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Random sequences where `PLINTH_SEQUENCES` says nothing else.
const SEQUENCES: u64 = 400;
/// Operations of a sequence.
const OPERATIONS: u64 = 60;
/// Enumerated crash states where `PLINTH_STATES` says nothing else.
const STATES: usize = 6_000;
const GROUPS: u64 = 3;
const SEGMENTS_MAX: u32 = 24;
/// Bytes of live entries in a group from which on the test purges.
const GROUP_BYTES_MAX: usize = 120_000;

type Checked<T> = Result<T, String>;

/// What a group's log must look like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GroupModel {
    vote: Option<VoteWords>,
    purged: Option<LogId>,
    entries: Vec<LogEntry>,
}

type Model = BTreeMap<GroupId, GroupModel>;

impl GroupModel {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.id).or(self.purged)
    }
}

struct World {
    chance: Chance,
    now: Instant,
    disk: Option<SimDisk>,
    log: Option<RaftLog<usize, (GroupId, LogId)>>,
    groups: Arc<Groups>,
    /// The model after each change of this mount; the first one is what the mount began with.
    states: Vec<Model>,
    /// Changes of this mount that were acknowledged, counted.
    acknowledged: usize,
    term: u64,
    crashes: u64,
    /// What the disk does wrong in every life but the first.
    faults: SimFaults,
}

fn limits() -> LogLimits {
    LogLimits {
        cache_bytes_max: 8_000,
        carry_bytes_max: 20_000,
        carry_record_bytes_max: 10_000,
        free_bytes_min: 300_000,
    }
}

fn options() -> JournalOptions {
    super::handle::log_options()
}

// The clock of the test: where it starts does not matter.
#[allow(clippy::disallowed_methods)]
fn start_of_time() -> Instant {
    Instant::now()
}

impl World {
    fn new(seed: u64) -> Checked<World> {
        let mut disk = SimDisk::new(seed, SEGMENTS_MAX);
        let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), incarnation: Incarnation(1) };
        let format = Format {
            identity,
            segment_bytes: SEGMENT_BYTES_MIN,
            segment_count_max: SEGMENTS_MAX,
            segment_count_initial: 2,
            fill: plinth_journal::Fill::Written,
            stamp: seed,
        };
        plinth_journal::format(&mut disk, &format).map_err(|error| error.to_string())?;
        let mut world = World {
            chance: Chance::new(seed ^ 0xabcd),
            now: start_of_time(),
            disk: Some(disk),
            log: None,
            groups: Arc::default(),
            states: vec![Model::new()],
            acknowledged: 0,
            term: 1,
            crashes: 0,
            faults: SimFaults::default(),
        };
        world.open()?;
        Ok(world)
    }

    fn open(&mut self) -> Checked<()> {
        let mut disk = self.disk.take().expect("the disk is here between two lives");
        disk.set_faults(self.faults);
        self.groups = Arc::default();
        let (groups, floor) = (self.groups.clone(), Arc::new(AtomicU64::new(0)));
        let opened = RaftLog::open(self.now, NodeId(1), disk, groups, floor, options(), limits());
        let Opened { log, disk, .. } = opened.map_err(|error: MetaError| format!("recovery refuses: {error}"))?;
        (self.log, self.disk) = (Some(log), Some(disk));
        Ok(())
    }

    /// What the log shows, with every payload; those that are not in RAM are read back.
    fn observe(&mut self) -> Checked<Model> {
        let mut seen = Model::new();
        for (group, view) in self.groups.all() {
            let slots: Vec<_> = lock(&view).slots(0..u64::MAX).cloned().collect();
            let mut entries = Vec::new();
            for slot in slots {
                let entry = match slot.cached() {
                    Some(entry) => entry,
                    None => self.read_back(group, slot.id)?,
                };
                entries.push(entry);
            }
            let view = lock(&view);
            let model = GroupModel { vote: view.vote.clone(), purged: view.purged, entries };
            if model != GroupModel::default() {
                seen.insert(group, model);
            }
        }
        Ok(seen)
    }

    fn read_back(&mut self, group: GroupId, id: LogId) -> Checked<LogEntry> {
        let place = {
            let view = self.groups.get(group);
            let mut view = lock(&view);
            view.slot_mut(id.index).and_then(|slot| slot.place).ok_or("an evicted entry has no place")?
        };
        self.log.as_mut().expect("open").handle_read(place, (group, id));
        for _ in 0..200 {
            self.turn()?;
            for ((_, read), body) in self.log.as_mut().expect("open").poll_answered() {
                let body = body.map_err(|error| format!("read of {read}: {error}"))?;
                let record = super::record::decode_entries(&body).map_err(|error| error.to_string())?;
                if let Some((entry, _)) = record.entries.into_iter().find(|(entry, _)| entry.id == id) {
                    return Ok(entry);
                }
            }
        }
        Err(format!("{id} of {group} can't be read back"))
    }

    /// Lets the disk do some of what it was asked.
    fn turn(&mut self) -> Checked<()> {
        self.now += Duration::from_millis(1);
        let (log, disk) = (self.log.as_mut().expect("open"), self.disk.as_mut().expect("open"));
        while disk.room() > 0
            && let Some(operation) = log.poll_disk(self.now)
        {
            disk.submit(operation);
        }
        let mut completions = Vec::new();
        disk.reap(Some(Duration::ZERO), &mut completions);
        for completion in completions {
            log.handle_completion(self.now, completion);
        }
        log.handle_turn();
        for (ticket, result) in log.poll_finished() {
            result.map_err(|why| format!("change {ticket} failed: {why}"))?;
            if ticket != self.acknowledged + 1 {
                // Only a planted bug answers out of order.
                self.acknowledged = self.acknowledged.max(ticket);
                continue;
            }
            self.acknowledged = ticket;
        }
        Ok(())
    }

    fn settle(&mut self) -> Checked<()> {
        for _ in 0..2_000 {
            self.turn()?;
            if self.log.as_ref().expect("open").is_idle() {
                return Ok(());
            }
            self.now += Duration::from_millis(200);
        }
        Err("the log never comes to rest".into())
    }

    /// Cuts the power and checks what is left.
    fn crash(&mut self) -> Checked<()> {
        self.log = None;
        let disk = self.disk.as_mut().expect("between two lives");
        disk.crash();
        self.crashes += 1;
        self.recover()
    }

    fn recover(&mut self) -> Checked<()> {
        self.open()?;
        let seen = self.observe()?;
        let found = (self.acknowledged..self.states.len()).rev().find(|at| self.states[*at] == seen);
        let Some(at) = found else {
            let (acknowledged, all) = (self.acknowledged, self.states.len() - 1);
            let earlier = self.states.iter().position(|state| *state == seen);
            return Err(format!(
                "{acknowledged} of {all} changes were acknowledged; recovered is the state after {earlier:?}: {:?}",
                brief(&seen)
            ));
        };
        self.states = vec![self.states[at].clone()];
        self.acknowledged = 0;
        Ok(())
    }

    fn change(&mut self, change: Change) -> Checked<()> {
        let mut model = self.states.last().expect("never empty").clone();
        apply(&mut model, &change);
        self.show(&change)?;
        self.states.push(model);
        let ticket = self.states.len() - 1;
        self.log.as_mut().expect("open").handle_change(change, ticket);
        Ok(())
    }

    /// Changes the view as the log's callers do, before the change is queued.
    fn show(&mut self, change: &Change) -> Checked<()> {
        let view = |group: &GroupId| self.groups.get(*group);
        match change {
            Change::Append(group, entries) => {
                for entry in entries {
                    lock(&view(group)).append(entry, None).map_err(|hole| hole.to_string())?;
                }
            }
            Change::Vote(group, vote) => lock(&view(group)).vote = Some(vote.clone()),
            Change::Truncate(group, last) => lock(&view(group)).truncate_after(*last),
            Change::Purge(group, upto) => lock(&view(group)).purge(*upto),
            Change::State(_) => {}
        }
        Ok(())
    }

    fn operate(&mut self) -> Checked<()> {
        let group = GroupId(self.chance.below(GROUPS));
        let model = self.states.last().expect("never empty").get(&group).cloned().unwrap_or_default();
        let bytes: usize = model.entries.iter().map(|entry| entry.payload.len()).sum();
        if bytes > GROUP_BYTES_MAX {
            let upto = model.entries[model.entries.len() * 3 / 4].id;
            return self.change(Change::Purge(group, upto));
        }
        match self.chance.below(20) {
            0..=8 => {
                let entries = self.draw_entries(&model);
                self.change(Change::Append(group, entries))
            }
            9..=10 => {
                self.term += 1;
                let vote = VoteWords { term: self.term, node: NodeId(1), committed: self.chance.below(2) == 0 };
                self.change(Change::Vote(group, vote))
            }
            11 if !model.entries.is_empty() => {
                let keep = self.chance.below(model.entries.len() as u64) as usize;
                // Who truncates does so for another leader: an id never comes twice.
                self.term += 1;
                let last = if keep == 0 { model.purged } else { Some(model.entries[keep - 1].id) };
                self.change(Change::Truncate(group, last))
            }
            12 if !model.entries.is_empty() => {
                let at = self.chance.below(model.entries.len() as u64) as usize;
                self.change(Change::Purge(group, model.entries[at].id))
            }
            13 => self.crash(),
            14 => {
                self.settle()?;
                let seen = self.observe()?;
                if self.states.last() != Some(&seen) {
                    return Err(format!("at rest the log shows {:?}", brief(&seen)));
                }
                Ok(())
            }
            _ => self.turn(),
        }
    }

    fn draw_entries(&mut self, model: &GroupModel) -> Vec<LogEntry> {
        let first = model.last().map_or(0, |last| last.index + 1);
        let count = 1 + self.chance.below(3);
        (first..first + count)
            .map(|index| {
                let length = [0, 20, 300, 5_000, 14_000][self.chance.below(5) as usize];
                let payload: Vec<u8> = (0..length).map(|at: u64| (at ^ index ^ self.term) as u8).collect();
                let id = LogId { term: self.term, leader: NodeId(1), index };
                LogEntry {
                    id,
                    kind: if length == 0 { EntryKind::Blank } else { EntryKind::Membership },
                    payload: payload.into(),
                }
            })
            .collect()
    }
}

fn apply(model: &mut Model, change: &Change) {
    let mut of = |group: &GroupId| -> GroupModel { model.remove(group).unwrap_or_default() };
    let (group, changed) = match change {
        Change::Append(group, entries) => {
            let mut group_model = of(group);
            group_model.entries.extend(entries.iter().cloned());
            (group, group_model)
        }
        Change::Vote(group, vote) => (group, GroupModel { vote: Some(vote.clone()), ..of(group) }),
        Change::Truncate(group, last) => {
            let mut group_model = of(group);
            group_model.entries.retain(|entry| last.is_some_and(|last| entry.id.index <= last.index));
            (group, group_model)
        }
        Change::Purge(group, upto) => {
            let mut group_model = of(group);
            group_model.entries.retain(|entry| entry.id.index > upto.index);
            (group, GroupModel { purged: Some(*upto), ..group_model })
        }
        Change::State(group) => (group, of(group)),
    };
    if changed != GroupModel::default() {
        model.insert(*group, changed);
    }
}

/// A state in short: vote's term, purged, first and last entry of each group.
fn brief(model: &Model) -> Vec<String> {
    let index = |id: Option<&LogId>| id.map(|id| id.index);
    model
        .iter()
        .map(|(group, model)| {
            let (first, last) = (model.entries.first().map(|e| &e.id), model.entries.last().map(|e| &e.id));
            let term = model.vote.as_ref().map(|vote| vote.term);
            format!(
                "{group}: term {term:?} purged {:?} {:?}..={:?}",
                index(model.purged.as_ref()),
                index(first),
                index(last)
            )
        })
        .collect()
}

fn run_sequence(seed: u64) -> Checked<u64> {
    run_sequence_with(seed, SimFaults::default())
}

fn run_sequence_with(seed: u64, faults: SimFaults) -> Checked<u64> {
    let mut world = World::new(seed)?;
    world.faults = faults;
    for _ in 0..OPERATIONS {
        world.operate().map_err(|why| format!("seed {seed}: {why}"))?;
    }
    world.crash().map_err(|why| format!("seed {seed}: {why}"))?;
    Ok(world.crashes)
}

fn count_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn log_keeps_what_it_acknowledged_over_any_crash() {
    let sequences = count_from("PLINTH_SEQUENCES", SEQUENCES);
    let first = count_from("PLINTH_SEED", 0);
    let mut crashes = 0;
    for seed in first..first + sequences {
        crashes += run_sequence(seed).unwrap();
    }
    println!("{sequences} random sequences of {OPERATIONS} operations from seed {first}, {crashes} crashes");
    assert!(crashes > sequences, "crashes happen");
}

/// Runs a short sequence and tries crash states at each moment; returns how many.
fn take_apart(seed: u64, states_left: usize) -> Checked<usize> {
    let mut world = World::new(seed)?;
    world.disk.as_mut().expect("open").start_trace();
    let mut tried = 0;
    for _ in 0..OPERATIONS {
        let acknowledged = world.acknowledged;
        match world.chance.below(3) {
            0 => world.turn()?,
            _ => world.operate()?,
        }
        if world.states.len() == 1 {
            // A crash came by: what was traced belongs to a former life.
            world.disk.as_mut().expect("open").start_trace();
            continue;
        }
        let disk = world.disk.as_mut().expect("open");
        let moments = disk.take_trace();
        disk.start_trace();
        for moment in moments {
            tried += try_states(&world, &moment, acknowledged, states_left - tried)?;
        }
        if tried >= states_left {
            break;
        }
    }
    Ok(tried)
}

/// Every subset of the last six unflushed writes, and the newest survivor torn.
fn try_states(world: &World, moment: &SimDisk, acknowledged: usize, states_left: usize) -> Checked<usize> {
    let sectors: Vec<usize> = moment.unflushed().iter().map(|(_, _, sectors)| *sectors).collect();
    let counted = sectors.len().min(6);
    let mut tried = 0;
    for subset in 0..1u32 << counted {
        let whole = |at: usize| at + counted < sectors.len() || subset >> (at + counted - sectors.len()) & 1 == 1;
        let keep = |at: usize| if whole(at) { Survival::Whole } else { Survival::Lost };
        let mut survivals = vec![(0..sectors.len()).map(keep).collect::<Vec<_>>()];
        if let Some(newest) = (0..sectors.len()).rev().find(|at| whole(*at)) {
            for torn in [1, sectors[newest] / 2] {
                let mut head = survivals[0].clone();
                head[newest] = Survival::Head(torn);
                let mut tail = survivals[0].clone();
                tail[newest] = Survival::Tail(torn);
                survivals.extend([head, tail]);
            }
        }
        for survivals in survivals {
            if tried >= states_left {
                return Ok(tried);
            }
            tried += 1;
            try_state(world, moment, acknowledged, &survivals)?;
        }
    }
    Ok(tried)
}

fn try_state(world: &World, moment: &SimDisk, acknowledged: usize, survivals: &[Survival]) -> Checked<()> {
    let mut disk = moment.clone();
    disk.crash_with(survivals);
    let mut fork = World {
        chance: Chance::new(1),
        now: world.now,
        disk: Some(disk),
        log: None,
        groups: Arc::default(),
        states: world.states.clone(),
        acknowledged,
        term: world.term,
        crashes: 0,
        faults: SimFaults::default(),
    };
    fork.recover().map_err(|why| format!("crash state {survivals:?}: {why}"))
}

/// Entries of a group, each of its own record.
fn append_one(world: &mut World, group: GroupId, index: u64, bytes: usize) -> Checked<()> {
    let id = LogId { term: 1, leader: NodeId(1), index };
    let entry = LogEntry { id, kind: EntryKind::Membership, payload: vec![index as u8; bytes].into() };
    world.change(Change::Append(group, vec![entry]))?;
    world.settle()
}

#[test]
fn a_live_entry_that_cannot_be_read_when_it_is_to_be_carried_is_counted_and_its_segment_stays() {
    let mut world = World::new(3).unwrap();
    let (slow, busy) = (GroupId(1), GroupId(2));
    append_one(&mut world, slow, 0, 300).unwrap();
    let place = lock(&world.groups.get(slow)).slot_mut(0).and_then(|slot| slot.place).unwrap();
    let segment = place.position.segment;
    let at = u64::from(place.position.offset) + 200;
    world.disk.as_mut().unwrap().rot(Area::Segment(segment), at, 3);
    // The busy group fills the segment and purges: only the slow group's entry is left in it.
    for index in 0..20 {
        append_one(&mut world, busy, index, 14_000).unwrap();
        let upto = LogId { term: 1, leader: NodeId(1), index };
        world.change(Change::Purge(busy, upto)).unwrap();
        world.settle().unwrap();
    }
    let log = world.log.as_ref().unwrap();
    assert_eq!(log.damaged(), 1, "counted once, however often it is met");
    assert!(matches!(log.journal().segment(segment).unwrap().state, SegmentState::Sealed(_)));
    // Once the entry is needed no more, its segment goes like any other.
    world.change(Change::Purge(slow, LogId { term: 1, leader: NodeId(1), index: 0 })).unwrap();
    append_one(&mut world, busy, 20, 14_000).unwrap();
    world.settle().unwrap();
    let log = world.log.as_ref().unwrap();
    let info = log.journal().segment(segment).unwrap();
    assert!(info.state == SegmentState::Free || info.generation != place.generation, "{info:?}");
}

#[test]
fn every_crash_state_of_a_short_run_recovers() {
    let wanted = count_from("PLINTH_STATES", STATES as u64) as usize;
    let mut tried = 0;
    for seed in 0.. {
        tried += take_apart(seed, wanted - tried).unwrap();
        if tried >= wanted {
            println!("{tried} enumerated crash states");
            return;
        }
    }
}

mod planted {
    use super::*;
    use crate::planted::{Bug, plant};

    /// Sequences within which a planted bug must show.
    const SEQUENCES_MAX: u64 = 300;

    /// Enumerated crash states within which it must show.
    const STATES_MAX: usize = 3_000;

    fn random_sequences_show(bug: Bug) -> bool {
        plant(Some(bug));
        (0..SEQUENCES_MAX).any(|seed| run_sequence(seed).is_err())
    }

    fn crash_states_show(bug: Bug) -> bool {
        plant(Some(bug));
        (0..SEQUENCES_MAX).any(|seed| take_apart(seed, STATES_MAX).is_err())
    }

    #[test]
    fn both_suites_notice_votes_that_count_before_they_are_durable() {
        assert!(random_sequences_show(Bug::VoteBeforeDurable));
        assert!(crash_states_show(Bug::VoteBeforeDurable));
    }

    #[test]
    fn both_suites_notice_entries_that_count_before_they_are_durable() {
        assert!(random_sequences_show(Bug::AckEntriesBeforeDurable));
        assert!(crash_states_show(Bug::AckEntriesBeforeDurable));
    }

    #[test]
    fn random_sequences_notice_segments_that_go_with_live_entries() {
        assert!(random_sequences_show(Bug::ReleaseWithoutCarry));
    }

    #[test]
    fn random_sequences_notice_syncs_that_do_nothing() {
        let faults = SimFaults { lying_sync: 1_000_000, ..SimFaults::default() };
        assert!((0..SEQUENCES_MAX).any(|seed| run_sequence_with(seed, faults).is_err()));
    }
}
