//! A journal on a simulated disk beside a model of what it has promised.
#![allow(dead_code, clippy::unwrap_used, clippy::disallowed_methods)]

use bytes::Bytes;
use plinth_journal::sim::{Chance, SimOp};
use plinth_journal::*;
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

pub const SEGMENT_BYTES: u32 = 64 << 10;
pub const SEGMENTS: u32 = 7;
/// Of how many unflushed writes every subset is tried; older ones survive.
pub const SUBSET_WRITES_MAX: usize = 6;
pub const IDENTITY: DiskIdentity =
    DiskIdentity { cluster: ClusterId(7), disk: DiskId(0xd15c), incarnation: Incarnation(3) };

pub fn disk_format() -> Format {
    Format {
        identity: IDENTITY,
        segment_bytes: SEGMENT_BYTES,
        segment_count_max: SEGMENTS,
        segment_count_initial: 1,
        fill: Fill::Written,
        stamp: 0x5eed_5eed_5eed_5eed,
    }
}

pub fn options() -> JournalOptions {
    JournalOptions { queue_bytes_max: 256 << 10, ..JournalOptions::default() }
}

pub fn formatted(seed: u64) -> SimDisk {
    let mut disk = SimDisk::new(seed, SEGMENTS);
    format(&mut disk, &disk_format()).expect("a blank disk can be formatted");
    disk
}

/// Bytes that depend on the seed only, block-aligned.
pub fn payload(seed: u64, blocks: usize) -> Bytes {
    if blocks == 0 {
        return Bytes::new();
    }
    let mut buffer = AlignedBuf::zeroed(blocks * 4096);
    let mut chance = Chance::new(seed);
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&chance.draw().to_le_bytes());
    }
    buffer.freeze()
}

pub fn body(seed: u64, bytes: usize) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    (0..bytes).map(|_| chance.draw() as u8).collect()
}

#[derive(Clone, Debug)]
pub enum Step {
    Append {
        stream: u8,
        body: u16,
        blocks: u8,
        reserve: bool,
    },
    /// Submits what there is and lets a part of it complete.
    Turn,
    /// Turns until idle.
    Settle,
    /// Lets time pass, so that the floor slot is due.
    Wait,
    Seal {
        stream: u8,
    },
    Release {
        nth: u8,
    },
    Checkpoint,
    Read {
        nth: u8,
    },
    Crash,
    /// Ends the process and starts it again; the power stays, nothing is flushed.
    Kill,
    /// Ends recovery while it writes: its nth write or sync fails first. Then the power is cut once
    /// more, or only the process starts anew.
    CrashTwice {
        write: bool,
        nth: u8,
        power: bool,
    },
    /// A write or sync fails: the journal fences; then a crash, or a new process on the same medium.
    Fail {
        write: bool,
        nth: u8,
        power: bool,
    },
    /// Stops cleanly and starts again.
    Restart,
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (
        prop_oneof![6 => Just(0u8), 2 => Just(1u8), 1 => Just(2u8)],
        prop_oneof![4 => 0u16..300, 1 => 3900u16..4200, 1 => 0u16..9000],
        prop_oneof![3 => Just(0u8), 2 => 1u8..4, 1 => 1u8..11],
        any::<bool>(),
    );
    let step = prop_oneof![
        40 => append.prop_map(|(stream, body, blocks, reserve)| Step::Append { stream, body, blocks, reserve }),
        20 => Just(Step::Turn),
        6 => Just(Step::Settle),
        3 => Just(Step::Wait),
        1 => (0u8..3).prop_map(|stream| Step::Seal { stream }),
        6 => any::<u8>().prop_map(|nth| Step::Release { nth }),
        2 => Just(Step::Checkpoint),
        3 => any::<u8>().prop_map(|nth| Step::Read { nth }),
        6 => Just(Step::Crash),
        3 => Just(Step::Kill),
        2 => (any::<bool>(), 0u8..8, any::<bool>())
            .prop_map(|(write, nth, power)| Step::CrashTwice { write, nth, power }),
        3 => (any::<bool>(), 0u8..3, any::<bool>()).prop_map(|(write, nth, power)| Step::Fail { write, nth, power }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..110)
}

#[derive(Clone, Debug)]
pub struct Record {
    pub kind: u8,
    pub body: Vec<u8>,
    pub payload: Bytes,
    pub placed: Placed,
    pub generation: Generation,
    pub acknowledged: bool,
}

pub struct World {
    pub disk: Option<SimDisk>,
    pub journal: Option<Journal>,
    pub now: Instant,
    chance: Chance,
    /// Every record that may be on the disk.
    pub records: BTreeMap<Sequence, Record>,
    /// Sequences that an earlier recovery has not returned: they must never come back.
    gone: BTreeSet<Sequence>,
    /// Lives of segments whose release has been told.
    released: BTreeSet<(SegmentIndex, Generation)>,
    /// Lives of segments whose release has been asked for.
    releasing: BTreeSet<(SegmentIndex, Generation)>,
    checkpoint: Option<Checkpoint>,
    checkpoint_asked: Option<Checkpoint>,
    reads: BTreeMap<ReadToken, Sequence>,
    next_token: u64,
    mount: u32,
    /// Crash states still to be tried, where every moment of the disk's trace is taken apart.
    pub states_left: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

macro_rules! ensure {
    ($cond:expr, $($why:tt)*) => { if !$cond { return Err(format!($($why)*)); } };
}

pub type Checked<T> = Result<T, String>;

impl World {
    /// Mounts a formatted disk.
    pub fn new(disk: SimDisk, seed: u64) -> Checked<World> {
        let mut world = World {
            disk: Some(disk),
            journal: None,
            now: Instant::now(),
            chance: Chance::new(seed),
            records: BTreeMap::new(),
            gone: BTreeSet::new(),
            released: BTreeSet::new(),
            releasing: BTreeSet::new(),
            checkpoint: None,
            checkpoint_asked: None,
            reads: BTreeMap::new(),
            next_token: 0,
            mount: 0,
            states_left: 0,
            counts: BTreeMap::new(),
        };
        world.recover()?;
        Ok(world)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn run(&mut self, steps: &[Step]) -> Checked<()> {
        for step in steps {
            self.step(step)?;
        }
        self.settle()?;
        self.crash_and_recover()
    }

    fn step(&mut self, step: &Step) -> Checked<()> {
        match *step {
            Step::Append { stream, body, blocks, reserve } => self.append(stream, body, blocks, reserve)?,
            Step::Turn => self.turn()?,
            Step::Settle => self.settle()?,
            Step::Wait => {
                self.now += Duration::from_millis(150);
                self.turn()?;
            }
            Step::Seal { stream } => {
                let journal = self.journal.as_mut().unwrap();
                journal.seal(Stream::ALL[usize::from(stream)]).map_err(|error| error.to_string())?;
            }
            Step::Release { nth } => self.release(nth)?,
            Step::Checkpoint => self.set_checkpoint()?,
            Step::Read { nth } => self.read(nth)?,
            Step::Crash => self.crash_and_recover()?,
            Step::Kill => {
                self.count("kill");
                self.restart_after(false)?;
            }
            Step::CrashTwice { write, nth, power } => self.crash_twice(write, nth, power)?,
            Step::Fail { write, nth, power } => self.fail(write, nth, power)?,
            Step::Restart => self.restart()?,
        }
        Ok(())
    }

    pub fn append(&mut self, stream: u8, body_bytes: u16, blocks: u8, reserve: bool) -> Checked<()> {
        let seed = self.chance.draw();
        let body = body(seed, usize::from(body_bytes));
        let payload = payload(seed ^ 1, usize::from(blocks));
        let kind = KIND_CONSUMER_MIN + (seed % 5) as u8;
        let journal = self.journal.as_mut().unwrap();
        let append =
            Append { stream: Stream::ALL[usize::from(stream)], kind, body: &body, payload: payload.clone(), reserve };
        match journal.append(append) {
            Ok(placed) => {
                let generation = journal.segment(placed.position.segment).unwrap().generation;
                let record = Record { kind, body, payload, placed, generation, acknowledged: false };
                ensure!(!self.gone.contains(&placed.sequence), "sequence {} is used again", placed.sequence);
                let before = self.records.insert(placed.sequence, record);
                ensure!(before.is_none(), "sequence {} is used twice", placed.sequence);
                self.count("append");
            }
            Err(Refused::Busy) => {
                self.count("busy");
                self.turn()?;
            }
            Err(Refused::Full) => self.count("full"),
            Err(error) => return Err(format!("append: {error}")),
        }
        Ok(())
    }

    /// Submits what there is, reaps once, and checks what the journal tells.
    pub fn turn(&mut self) -> Checked<()> {
        let (journal, disk) = (self.journal.as_mut().unwrap(), self.disk.as_mut().unwrap());
        while disk.room() > 0
            && let Some(operation) = journal.poll_disk(self.now)
        {
            disk.submit(operation);
        }
        let mut completions = Vec::new();
        disk.reap(Some(Duration::ZERO), &mut completions);
        for completion in completions {
            journal.handle_completion(self.now, completion);
        }
        if self.states_left > 0 {
            // Before the events: what the disk did in this turn had not been told by then.
            self.take_apart()?;
        }
        self.events()
    }

    /// The same promises on another disk.
    fn fork(&self, disk: SimDisk) -> World {
        World {
            disk: Some(disk),
            journal: None,
            now: self.now,
            chance: Chance::new(self.states_left),
            records: self.records.clone(),
            gone: self.gone.clone(),
            released: self.released.clone(),
            releasing: self.releasing.clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_asked: self.checkpoint_asked.clone(),
            reads: BTreeMap::new(),
            next_token: 0,
            // Updates of the boot counter may be among what is lost.
            mount: 0,
            states_left: 0,
            counts: BTreeMap::new(),
        }
    }

    /// Tries the crash states of each moment since the last call: every subset of the last writes
    /// that are not flushed, and the newest survivor torn.
    pub fn take_apart(&mut self) -> Checked<()> {
        let disk = self.disk.as_mut().unwrap();
        let moments = disk.take_trace();
        disk.start_trace();
        for moment in moments {
            // One moment in three, so that the states are spread over the whole run.
            if self.chance.below(3) > 0 {
                continue;
            }
            let sectors: Vec<_> = moment.unflushed().iter().map(|(_, _, sectors)| *sectors).collect();
            let counted = sectors.len().min(SUBSET_WRITES_MAX);
            for subset in 0..1u32 << counted {
                let whole = |index: usize| {
                    index + counted < sectors.len() || subset >> (index + counted - sectors.len()) & 1 == 1
                };
                let survivals: Vec<_> = (0..sectors.len())
                    .map(|index| if whole(index) { sim::Survival::Whole } else { sim::Survival::Lost })
                    .collect();
                self.try_state(&moment, &survivals)?;
                let Some(newest) = (0..sectors.len()).rev().find(|index| whole(*index)) else { continue };
                for torn in [1, sectors[newest] / 2, sectors[newest] - 1] {
                    let mut survivals = survivals.clone();
                    survivals[newest] = sim::Survival::Head(torn);
                    self.try_state(&moment, &survivals)?;
                    survivals[newest] = sim::Survival::Tail(torn);
                    self.try_state(&moment, &survivals)?;
                }
            }
        }
        Ok(())
    }

    /// Crashes to this state, recovers, writes a little, crashes again with nothing lost and with
    /// everything lost, recovers again.
    fn try_state(&mut self, moment: &SimDisk, survivals: &[sim::Survival]) -> Checked<()> {
        if self.states_left == 0 {
            return Ok(());
        }
        self.states_left -= 1;
        let mut disk = moment.clone();
        disk.crash_with(survivals);
        let mut fork = self.fork(disk);
        let again = |fork: &mut World, kept: bool| {
            fork.recover()?;
            fork.append(0, 10, 0, true)?;
            fork.turn()?;
            fork.journal = None;
            fork.disk.as_mut().unwrap().crash_with(if kept { &[sim::Survival::Whole; 8] } else { &[] });
            fork.recover()
        };
        let kept = self.states_left.is_multiple_of(2);
        again(&mut fork, kept)
            .map_err(|why| format!("crash state {survivals:?} of {:?}: {why}", moment.unflushed()))?;
        self.count("state");
        Ok(())
    }

    fn events(&mut self) -> Checked<()> {
        while let Some(event) = self.journal.as_mut().unwrap().poll_event() {
            match event {
                Event::Durable(last) => {
                    for (_, record) in self.records.range_mut(..=last) {
                        record.acknowledged = true;
                    }
                    // The promise, checked at the moment it is given.
                    self.check_durable(last)?;
                }
                Event::Read(token, result) => {
                    // A read whose segment was released meanwhile is nobody's any more.
                    let Some(sequence) = self.reads.remove(&token) else { continue };
                    let record = &self.records[&sequence];
                    let bytes = result.map_err(|error| error.to_string())?;
                    ensure!(bytes[..] == record.payload[..], "read of {sequence} returned other bytes");
                    self.count("read");
                }
                Event::Released(segment) => {
                    let lives: Vec<_> = self.releasing.iter().filter(|(asked, _)| *asked == segment).copied().collect();
                    for life in lives {
                        self.releasing.remove(&life);
                        self.released.insert(life);
                        self.records.retain(|_, record| (record.placed.position.segment, record.generation) != life);
                    }
                    self.count("released");
                }
                Event::CheckpointSet => self.checkpoint = self.checkpoint_asked.take(),
                Event::Fenced(_) => self.count("fenced"),
            }
        }
        Ok(())
    }

    /// The newest acknowledged record must be whole in the durable image, body and payload.
    fn check_durable(&self, last: Sequence) -> Checked<()> {
        let Some((_, record)) = self.records.range(..=last).next_back() else { return Ok(()) };
        let area = Area::Segment(record.placed.position.segment);
        let start = u64::from(record.placed.position.offset);
        let disk = self.disk.as_ref().unwrap();
        let body = disk.durable_bytes(area, start + HEAD_BYTES as u64, record.body.len());
        let at = start + u64::from(record.placed.payload_offset);
        let payload = disk.durable_bytes(area, at, record.payload.len());
        let is_durable = body == record.body && payload == record.payload;
        ensure!(is_durable, "{} was acknowledged before it was durable", record.placed.sequence);
        Ok(())
    }

    pub fn settle(&mut self) -> Checked<()> {
        for _ in 0..10_000 {
            self.turn()?;
            if self.journal.as_ref().unwrap().is_idle() {
                return Ok(());
            }
        }
        Err("the journal never becomes idle".into())
    }

    fn release(&mut self, nth: u8) -> Checked<()> {
        let journal = self.journal.as_mut().unwrap();
        let sealed: Vec<_> = journal.segments().filter(|info| matches!(info.state, SegmentState::Sealed(_))).collect();
        let Some(info) = sealed.get(usize::from(nth) % sealed.len().max(1)) else { return Ok(()) };
        match journal.release(info.segment) {
            Ok(()) => {
                self.releasing.insert((info.segment, info.generation));
                // What is read from it may go from now on.
                let life = (info.segment, info.generation);
                let records = &self.records;
                self.reads.retain(|_, sequence| {
                    let record = &records[sequence];
                    (record.placed.position.segment, record.generation) != life
                });
                self.settle()?;
            }
            Err(Refused::Invalid("the newest segment of its stream")) => {}
            Err(error) => return Err(format!("release: {error}")),
        }
        Ok(())
    }

    fn set_checkpoint(&mut self) -> Checked<()> {
        let journal = self.journal.as_mut().unwrap();
        let note = Bytes::copy_from_slice(&self.chance.draw().to_le_bytes());
        let checkpoint = Checkpoint { mark: journal.mark(), note };
        match journal.set_checkpoint(checkpoint.clone()) {
            Ok(()) => self.checkpoint_asked = Some(checkpoint),
            Err(Refused::Busy) => {}
            Err(error) => return Err(format!("checkpoint: {error}")),
        }
        Ok(())
    }

    fn read(&mut self, nth: u8) -> Checked<()> {
        let readable: Vec<_> =
            self.records.values().filter(|record| record.acknowledged && !record.payload.is_empty()).collect();
        let Some(record) = readable.get(usize::from(nth) % readable.len().max(1)) else { return Ok(()) };
        if self.releasing.contains(&(record.placed.position.segment, record.generation)) {
            return Ok(());
        }
        let token = ReadToken(self.next_token);
        self.next_token += 1;
        let Position { segment, offset } = record.placed.position;
        let sequence = record.placed.sequence;
        let length = record.payload.len() as u32;
        let at = offset + record.placed.payload_offset;
        self.reads.insert(token, sequence);
        self.journal.as_mut().unwrap().read(token, segment, at, length).map_err(|error| error.to_string())
    }

    pub fn crash_and_recover(&mut self) -> Checked<()> {
        self.restart_after(true)
    }

    /// Starts again after a power cut, or after the process alone has died.
    fn restart_after(&mut self, power: bool) -> Checked<()> {
        self.journal = None;
        self.reads.clear();
        let disk = self.disk.as_mut().unwrap();
        if power {
            disk.crash();
            return self.recover();
        }
        disk.kill();
        // Until the mount is done, a power cut may still take what this recovery has seen.
        let mut earlier = self.fork(SimDisk::new(0, 0));
        let states_left = std::mem::take(&mut self.states_left);
        self.recover()?;
        if states_left > 0 {
            (earlier.states_left, earlier.disk) = (states_left, self.disk.take());
            earlier.take_apart()?;
            (self.states_left, self.disk) = (earlier.states_left, earlier.disk);
            *self.counts.entry("state").or_default() += states_left - self.states_left;
        }
        Ok(())
    }

    fn crash_twice(&mut self, write: bool, nth: u8, power: bool) -> Checked<()> {
        self.journal = None;
        self.reads.clear();
        let disk = self.disk.as_mut().unwrap();
        disk.crash();
        disk.fail_at(if write { SimOp::Write } else { SimOp::Sync }, u64::from(nth));
        let mut disk = self.disk.take().unwrap();
        let result = {
            let recovery = Recovery::start(&mut disk, Some(IDENTITY)).map_err(|error| error.to_string())?;
            recovery.resume(self.now, options()).map(|_| ())
        };
        if result.is_err() {
            self.count("crash in mount");
        }
        self.mount = self.mount.max(inspect_mount(&mut disk.clone())?);
        self.disk = Some(disk);
        self.restart_after(power)
    }

    fn fail(&mut self, write: bool, nth: u8, power: bool) -> Checked<()> {
        let disk = self.disk.as_mut().unwrap();
        disk.fail_at(if write { SimOp::Write } else { SimOp::Sync }, u64::from(nth));
        for _ in 0..4 {
            if self.journal.as_ref().unwrap().fenced().is_none() {
                self.append(0, 100, 1, true)?;
                self.turn()?;
            }
        }
        if self.journal.as_ref().unwrap().fenced().is_some() {
            let append = Append { stream: Stream::Main, kind: 16, body: &[], payload: Bytes::new(), reserve: true };
            let refused = self.journal.as_mut().unwrap().append(append);
            ensure!(matches!(refused, Err(Refused::Fenced(_))), "a fenced journal took an append: {refused:?}");
            let durable = self.journal.as_ref().unwrap().durable();
            self.settle()?;
            ensure!(self.journal.as_ref().unwrap().durable() == durable, "a fenced journal acknowledged");
        }
        self.restart_after(power)
    }

    fn restart(&mut self) -> Checked<()> {
        self.journal.as_mut().unwrap().stop();
        self.settle()?;
        self.journal = None;
        let acknowledged = self.records.values().filter(|record| record.acknowledged).count();
        self.recover()?;
        let kept = self.records.len();
        ensure!(kept == acknowledged, "a clean stop lost records: {kept} of {acknowledged}");
        Ok(())
    }

    /// Recovers, compares with the model, and mounts.
    pub fn recover(&mut self) -> Checked<()> {
        let disk = self.disk.take().unwrap();
        let mut recovery = Recovery::start(disk, Some(IDENTITY)).map_err(|error| format!("start: {error}"))?;
        ensure!(recovery.superblock().mount >= self.mount, "the boot counter went back");
        self.check_checkpoint(&recovery)?;
        let mut skipped = Sequence(0);
        if let Some(checkpoint) = recovery.checkpoint().cloned()
            && self.chance.below(2) == 0
        {
            skipped = checkpoint.mark.sequence;
            recovery.skip_to(&checkpoint.mark);
        }
        let mut found = BTreeMap::new();
        let mut order = VecDeque::new();
        for record in recovery.by_ref() {
            order.push_back(record.sequence);
            found.insert(record.sequence, record);
        }
        ensure!(order.iter().is_sorted() && order.len() == found.len(), "records out of order: {order:?}");
        ensure!(recovery.damage().is_empty(), "damage without damage: {:?}", recovery.damage());
        if recovery.cut().is_some() {
            self.count("cut");
        }
        self.compare(&mut recovery, &found, skipped)?;
        let (journal, disk) = recovery.resume(self.now, options()).map_err(|error| format!("resume: {error}"))?;
        let mount = journal.superblock().mount;
        ensure!(mount > self.mount, "mount {mount} is not counted");
        self.mount = mount;
        (self.journal, self.disk) = (Some(journal), Some(disk));
        self.count("recovery");
        if self.states_left > 0 { self.take_apart() } else { Ok(()) }
    }

    fn check_checkpoint(&mut self, recovery: &Recovery<SimDisk>) -> Checked<()> {
        let found = recovery.checkpoint().cloned();
        let asked = self.checkpoint_asked.take();
        let is_right = found == self.checkpoint || (asked.is_some() && found == asked);
        ensure!(is_right, "checkpoint {found:?} is neither {:?} nor {asked:?}", self.checkpoint);
        self.checkpoint = found;
        Ok(())
    }

    fn compare(
        &mut self,
        recovery: &mut Recovery<SimDisk>,
        found: &BTreeMap<Sequence, Recovered>,
        skipped: Sequence,
    ) -> Checked<()> {
        let releasing = std::mem::take(&mut self.releasing);
        if skipped > Sequence(0) {
            // Whether these releases have happened shows only to a recovery that skips nothing.
            self.releasing = releasing.clone();
        }
        let mut hole = None;
        let mut lost = Vec::new();
        for (sequence, record) in &self.records {
            let life = (record.placed.position.segment, record.generation);
            if *sequence <= skipped {
                ensure!(!found.contains_key(sequence), "{sequence} lies before the mark");
                continue;
            }
            match found.get(sequence) {
                None if releasing.contains(&life) => lost.push(*sequence),
                None if record.acknowledged => return Err(format!("{sequence} was acknowledged and is lost")),
                None => {
                    hole.get_or_insert(*sequence);
                    lost.push(*sequence);
                }
                Some(recovered) => {
                    ensure!(
                        recovered.kind == record.kind && recovered.body == record.body,
                        "{sequence} came back with another body"
                    );
                    ensure!(recovered.position == record.placed.position, "{sequence} came back elsewhere");
                    ensure!(hole.is_none(), "{sequence} came back behind the hole at {hole:?}");
                    let (_, payload) =
                        recovery.read(recovered.position).map_err(|error| format!("{sequence}: {error}"))?;
                    ensure!(payload == record.payload, "{sequence} came back with another payload");
                }
            }
        }
        for sequence in found.keys() {
            ensure!(!self.gone.contains(sequence), "{sequence} came back from the dead");
            ensure!(self.records.contains_key(sequence), "{sequence} was never written");
        }
        for sequence in lost {
            self.records.remove(&sequence);
            self.gone.insert(sequence);
        }
        for record in self.records.values_mut() {
            // What a recovery has returned is durable from now on.
            record.acknowledged = true;
        }
        Ok(())
    }
}

fn inspect_mount(disk: &mut SimDisk) -> Checked<u32> {
    let superblock = inspect(disk).map_err(|error| error.to_string())?;
    // The update may still vanish with the crash: only what is there afterwards counts.
    Ok(superblock.mount.saturating_sub(1))
}

/// States that are taken from one run at most, so that many runs share the number.
const STATES_PER_RUN_MAX: u64 = 700;

/// Tries `total` crash states; returns of how many runs they are, or what failed.
pub fn enumerate_states(total: u64) -> Checked<u64> {
    use proptest::test_runner::{Config, TestRng, TestRunner};
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(Default::default()));
    let (mut states, mut runs) = (0, 0u64);
    while states < total {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let mut disk = formatted(runs);
        disk.start_trace();
        let mut world = World::new(disk, runs)?;
        world.states_left = STATES_PER_RUN_MAX.min(total - states);
        world.take_apart().map_err(|why| format!("run {runs}, first mount: {why}"))?;
        world.run(&steps).map_err(|why| format!("run {runs}: {why}; steps {steps:?}"))?;
        states += world.counts.get("state").copied().unwrap_or(0);
        runs += 1;
        ensure!(runs < total, "runs without crash states");
    }
    Ok(runs)
}

/// Runs `cases` random sequences; the error is a shrunk failing one.
pub fn run_sequences(cases: u32) -> Result<BTreeMap<&'static str, u64>, String> {
    use proptest::test_runner::{Config, TestRunner};
    let counts = std::cell::RefCell::new(BTreeMap::new());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let blank = formatted(0);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&(any::<u64>(), steps()), |(seed, steps)| {
        let mut disk = blank.clone();
        disk.reseed(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(disk, seed ^ 0xabcd)?;
            let result = world.run(&steps);
            for (what, count) in &world.counts {
                *counts.borrow_mut().entry(*what).or_default() += count;
            }
            result
        }));
        match outcome {
            Ok(result) => result.map_err(TestCaseError::fail),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic".into());
                Err(TestCaseError::fail(text))
            }
        }
    });
    match result {
        Ok(()) => Ok(counts.into_inner()),
        Err(proptest::test_runner::TestError::Fail(reason, (seed, steps))) => {
            Err(format!("{reason}; seed {seed}, steps {steps:?}"))
        }
        Err(error) => Err(error.to_string()),
    }
}
