//! A log that is full, or whose file system is: what waits, what passes, and that it goes on by itself.

use super::LogId;
use super::engine::{Change, Groups, LogLimits, Opened, RaftLog, lock};
use super::record::{EntryKind, LogEntry, VoteWords};
use plinth_journal::{Disk, DiskIdentity, Format, SimDisk, segment::SEGMENT_BYTES_MIN};
use plinth_protocol::{ClusterId, DiskId, GroupId, Incarnation, NodeId};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

const SEGMENTS_MAX: u32 = 8;
const GROUP: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);
/// Bytes of an entry: one block, fourteen in a segment.
const ENTRY_BYTES: usize = 3_000;
/// Turns of 200 ms within which whatever can happen has happened: a disk without space is tried again after 10 s.
const TURNS: u32 = 100;

type Finished = Vec<(u64, Result<(), String>)>;

struct World {
    now: Instant,
    disk: SimDisk,
    log: RaftLog<u64, ()>,
    groups: Arc<Groups>,
    finished: Finished,
}

fn limits() -> LogLimits {
    LogLimits { cache_bytes_max: 8_000, carry_bytes_max: 8_000, carry_record_bytes_max: 8_000, free_bytes_min: 130_000 }
}

fn open(disk: SimDisk, now: Instant) -> World {
    let (groups, floor) = (Arc::<Groups>::default(), Arc::new(AtomicU64::new(0)));
    let options = super::handle::log_options();
    let opened = RaftLog::open(now, NodeId(1), disk, groups.clone(), floor, options, limits()).unwrap();
    let Opened { log, disk, .. } = opened;
    World { now, disk, log, groups, finished: Vec::new() }
}

impl World {
    #[allow(clippy::disallowed_methods)]
    fn new(segments_max: u32) -> World {
        let mut disk = SimDisk::new(7, segments_max);
        let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), incarnation: Incarnation(1) };
        let format = Format {
            identity,
            segment_bytes: SEGMENT_BYTES_MIN,
            segment_count_max: SEGMENTS_MAX,
            segment_count_initial: 2,
            stamp: 7,
            fill: plinth_journal::Fill::Written,
        };
        plinth_journal::format(&mut disk, &format).unwrap();
        open(disk, Instant::now())
    }

    fn crash(mut self) -> World {
        self.disk.crash();
        open(self.disk, self.now)
    }

    fn settle(&mut self) {
        for _ in 0..TURNS {
            self.now += Duration::from_millis(200);
            while self.disk.room() > 0
                && let Some(operation) = self.log.poll_disk(self.now)
            {
                self.disk.submit(operation);
            }
            let mut completions = Vec::new();
            self.disk.reap(Some(Duration::ZERO), &mut completions);
            for completion in completions {
                self.log.handle_completion(self.now, completion);
            }
            self.log.handle_turn();
            self.finished.extend(self.log.poll_finished());
        }
    }

    /// Queues a change, as the log's callers do.
    fn change(&mut self, ticket: u64, change: Change) {
        let view = |group: &GroupId| self.groups.get(*group);
        match &change {
            Change::Append(group, entries) => {
                entries.iter().for_each(|entry| lock(&view(group)).append(entry, None).unwrap());
            }
            Change::Vote(group, vote) => lock(&view(group)).vote = Some(vote.clone()),
            Change::Truncate(group, last) => lock(&view(group)).truncate_after(*last),
            Change::Purge(group, upto) => lock(&view(group)).purge(*upto),
            Change::State(_) => {}
        }
        self.log.handle_change(change, ticket);
        self.settle();
    }

    fn append(&mut self, group: GroupId, index: u64) {
        let payload = vec![index as u8; ENTRY_BYTES].into();
        self.change(
            index,
            Change::Append(group, vec![LogEntry { id: id(index), kind: EntryKind::Membership, payload }]),
        );
    }

    /// Appends until an entry waits; returns its number.
    fn fill(&mut self) -> u64 {
        for index in 0..500 {
            self.append(GROUP, index);
            if !self.has(index) {
                assert!(self.log.is_full());
                return index;
            }
        }
        panic!("the log never fills");
    }

    fn has(&self, ticket: u64) -> bool {
        self.finished.contains(&(ticket, Ok(())))
    }

    fn assert_no_errors(&self) {
        let failed: Vec<_> = self.finished.iter().filter(|(_, result)| result.is_err()).collect();
        assert!(failed.is_empty(), "a full log is no error: {failed:?}");
    }

    fn last(&self, group: GroupId) -> Option<LogId> {
        lock(&self.groups.get(group)).last()
    }
}

fn id(index: u64) -> LogId {
    LogId { term: 1, leader: NodeId(1), index }
}

fn vote(term: u64) -> VoteWords {
    VoteWords { term, node: NodeId(1), committed: false }
}

#[test]
fn entries_wait_for_room_in_a_full_log_and_a_purge_makes_it() {
    let mut world = World::new(SEGMENTS_MAX);
    let stuck = world.fill();
    world.assert_no_errors();
    world.change(1001, Change::Vote(GROUP, vote(2)));
    world.change(1002, Change::Vote(OTHER, vote(3)));
    assert!(world.has(1001) && world.has(1002), "votes pass entries that wait: {:?}", world.finished.last());
    world.change(1003, Change::Purge(GROUP, id(stuck / 2)));
    assert!(world.has(1003), "a purge takes the reserve");
    world.settle();
    assert!(world.has(stuck), "what waited went on by itself");
    assert!(!world.log.is_full());
    world.assert_no_errors();
    let world = world.crash();
    assert_eq!(world.last(GROUP), Some(id(stuck)));
    let view = world.groups.get(GROUP);
    assert_eq!(lock(&view).vote, Some(vote(2)));
    assert_eq!(lock(&view).purged, Some(id(stuck / 2)));
}

#[test]
fn file_system_without_room_is_waited_for() {
    // The log may have eight segments, the file system holds four.
    let mut world = World::new(4);
    let stuck = world.fill();
    world.assert_no_errors();
    world.change(1001, Change::Vote(GROUP, vote(2)));
    assert!(world.has(1001), "the reserve stands on the disk already");
    world.disk.set_segments_max(SEGMENTS_MAX);
    world.settle();
    world.settle();
    assert!(world.has(stuck), "it went on by itself once there was room");
    world.assert_no_errors();
    assert_eq!(world.crash().last(GROUP), Some(id(stuck)));
}

#[test]
fn full_log_is_found_whole_after_a_crash_and_can_be_purged_then() {
    let mut world = World::new(SEGMENTS_MAX);
    let stuck = world.fill();
    for term in 2..6 {
        world.change(1000 + term, Change::Vote(GROUP, vote(term)));
    }
    let mut world = world.crash();
    assert_eq!(world.last(GROUP), Some(id(stuck - 1)), "what waited was never acknowledged");
    assert_eq!(lock(&world.groups.get(GROUP)).vote, Some(vote(5)));
    world.append(GROUP, stuck);
    assert!(world.log.is_full());
    world.change(2000, Change::Purge(GROUP, id(stuck - 2)));
    world.settle();
    assert!(world.has(2000) && world.has(stuck));
    world.assert_no_errors();
}

#[test]
fn what_depends_on_entries_that_wait_keeps_its_order() {
    let mut world = World::new(SEGMENTS_MAX);
    let stuck = world.fill();
    // Drops the entry that waits: it must not be written before it.
    world.change(3001, Change::Truncate(GROUP, Some(id(stuck - 1))));
    assert!(!world.has(3001));
    world.change(3002, Change::Purge(GROUP, id(stuck / 2)));
    world.settle();
    assert!(world.has(3001) && world.has(stuck), "in their order, once there was room");
    world.assert_no_errors();
    assert_eq!(world.crash().last(GROUP), Some(id(stuck - 1)));
}

#[test]
fn full_log_that_is_closed_gives_up_what_waits() {
    let mut world = World::new(SEGMENTS_MAX);
    let stuck = world.fill();
    world.log.stop();
    world.settle();
    assert!(world.finished.iter().any(|(ticket, result)| *ticket == stuck && result.is_err()));
    assert!(world.log.is_idle(), "a close does not wait for room");
}

/// Many rounds of filling, voting and purging, with crashes: nothing acknowledged goes, and the reserve is never used up.
#[test]
fn log_that_is_full_again_and_again_keeps_its_reserve() {
    let mut world = World::new(SEGMENTS_MAX);
    let mut next = 0;
    for round in 0..30u64 {
        loop {
            world.append(GROUP, next);
            if !world.has(next) {
                break;
            }
            next += 1;
        }
        for vote_in_round in 0..3 {
            let term = 10 * round + vote_in_round + 2;
            world.change(10_000 + term, Change::Vote(OTHER, vote(term)));
            assert!(world.has(10_000 + term), "round {round}");
        }
        world.change(20_000 + round, Change::Purge(GROUP, id(next - 3)));
        assert!(world.has(20_000 + round), "round {round}");
        world.settle();
        assert!(world.has(next), "round {round}");
        world.assert_no_errors();
        next += 1;
        if round % 4 == 3 {
            world = world.crash();
            assert_eq!(world.last(GROUP), Some(id(next - 1)), "round {round}");
        }
    }
}
