//! Random sequences of operations, crashes among them, against a reference model.
//!
//! The model keeps, for every fragment, the set of states in which it may rightly be. An operation
//! that was acknowledged leaves one state; one that a crash cut short adds its own.

use super::{Content, Sim, small_options};
use plinth_journal::{Area, SegmentIndex};
use plinth_protocol::storage::{IoClass, StorageReply};
use plinth_protocol::{FailureKind, FragmentId};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Sequences of an ordinary run; `PLINTH_SEQUENCES` asks for more.
pub const SEQUENCES: u32 = 3_000;
/// Stripes that a sequence works on: few, so that operations meet.
const STRIPES: u8 = 24;
const SEGMENT_BYTES: u32 = 64 << 10;
const SEGMENTS: u32 = 24;

#[derive(Clone, Debug)]
pub enum Op {
    Put { stripe: u8, class: IoClass },
    PutOther { stripe: u8 },
    Delete { stripes: Vec<u8> },
    Read { stripe: u8 },
    Stat { stripe: u8 },
    List,
    Checkpoint,
    Settle,
    Turns { count: u8 },
    Crash,
    Kill,
    Restart,
    Rot { stripe: u8, at: u16, bit: u8 },
    ReadError,
    WriteError { nth: u8 },
    SyncError { nth: u8 },
}

pub fn op() -> impl Strategy<Value = Op> {
    let stripe = 0..STRIPES;
    let class = prop_oneof![4 => Just(IoClass::Write), 1 => Just(IoClass::Repair)];
    prop_oneof![
        60 => (stripe.clone(), class).prop_map(|(stripe, class)| Op::Put { stripe, class }),
        4 => stripe.clone().prop_map(|stripe| Op::PutOther { stripe }),
        26 => prop::collection::vec(stripe.clone(), 1..6).prop_map(|stripes| Op::Delete { stripes }),
        16 => stripe.clone().prop_map(|stripe| Op::Read { stripe }),
        4 => stripe.clone().prop_map(|stripe| Op::Stat { stripe }),
        3 => Just(Op::List),
        8 => Just(Op::Checkpoint),
        8 => Just(Op::Settle),
        24 => (1u8..8).prop_map(|count| Op::Turns { count }),
        7 => Just(Op::Crash),
        4 => Just(Op::Kill),
        4 => Just(Op::Restart),
        4 => (stripe, any::<u16>(), 0u8..8).prop_map(|(stripe, at, bit)| Op::Rot { stripe, at, bit }),
        2 => Just(Op::ReadError),
        1 => (0u8..6).prop_map(|nth| Op::WriteError { nth }),
        1 => (0u8..6).prop_map(|nth| Op::SyncError { nth }),
    ]
}

/// A state of a fragment: absent, or present in one variant of its bytes.
type State = Option<u8>;

struct Fragment {
    content: Content,
    possible: BTreeSet<State>,
    rotted: bool,
    deleted_once: bool,
}

#[derive(Clone)]
enum Asked {
    Put { stripe: u8, variant: u8 },
    Delete { stripes: Vec<u8> },
    Read { stripe: u8 },
    Stat { stripe: u8 },
}

impl Asked {
    fn touches(&self, stripe: u8) -> bool {
        match self {
            Asked::Put { stripe: own, .. } | Asked::Read { stripe: own } | Asked::Stat { stripe: own } => {
                *own == stripe
            }
            Asked::Delete { stripes } => stripes.contains(&stripe),
        }
    }

    fn outcome(&self) -> Option<State> {
        match self {
            Asked::Put { variant, .. } => Some(Some(*variant)),
            Asked::Delete { .. } => Some(None),
            Asked::Read { .. } | Asked::Stat { .. } => None,
        }
    }
}

struct Flight {
    asked: Asked,
    /// States that other operations may give the fragments while this one is under way.
    raced: BTreeMap<u8, BTreeSet<State>>,
    /// Whether a fragment that it touches was damaged when it was asked.
    rotted: bool,
}

/// Rare paths that the sequences of a run must have taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Coverage {
    pub checkpoints_loaded: u64,
    pub tails_cut: u64,
    pub fenced: u64,
    pub segments_released: u64,
    pub moved_bytes: u64,
    pub moved_tombstones: u64,
    pub corrupt: u64,
    pub refused_full: u64,
    pub records_replayed: u64,
}

impl Coverage {
    fn note(&mut self, sim: &Sim) {
        let stats = sim.engine.stats().snapshot();
        self.segments_released += stats.segments_released;
        self.moved_bytes += stats.moved_bytes;
        self.moved_tombstones += stats.moved_tombstones;
        self.corrupt += stats.errors_checksum;
        self.refused_full += stats.refused_full;
        self.fenced += u64::from(stats.fenced.is_some());
        self.checkpoints_loaded += u64::from(sim.report.checkpoint.is_some());
        self.tails_cut += u64::from(sim.report.cut.is_some());
        self.records_replayed += sim.report.replayed;
    }
}

struct World {
    sim: Option<Sim>,
    fragments: BTreeMap<u8, Fragment>,
    flights: BTreeMap<u64, Flight>,
    fence_planned: bool,
    coverage: Coverage,
}

type Check = Result<(), TestCaseError>;

fn fail(text: impl Into<String>) -> TestCaseError {
    TestCaseError::fail(text.into())
}

fn content_of(stripe: u8, variant: u8) -> Content {
    // One to three blocks, a few of two frames.
    let payload = match stripe % 8 {
        7 => 20_000,
        other => 500 + usize::from(other) * 1_700,
    };
    Content { variant, ..Content::new(u64::from(stripe), payload) }
}

impl World {
    fn new(seed: u64) -> World {
        let fragments = (0..STRIPES).map(|stripe| {
            let content = content_of(stripe, 0);
            let possible = BTreeSet::from([None]);
            (stripe, Fragment { content, possible, rotted: false, deleted_once: false })
        });
        let sim = Sim::new(seed, SEGMENT_BYTES, SEGMENTS, small_options());
        World {
            sim: Some(sim),
            fragments: fragments.collect(),
            flights: BTreeMap::new(),
            fence_planned: false,
            coverage: Coverage::default(),
        }
    }

    fn sim(&mut self) -> &mut Sim {
        self.sim.as_mut().expect("only a crash takes it, and brings one back")
    }

    fn stripe_of(&self, id: FragmentId) -> Option<u8> {
        self.fragments.iter().find(|(_, fragment)| fragment.content.id() == id).map(|(stripe, _)| *stripe)
    }

    fn ask(&mut self, asked: Asked, class: IoClass) {
        let number = match &asked {
            Asked::Put { stripe, variant } => self.sim().put_as(class, &content_of(*stripe, *variant)),
            Asked::Delete { stripes } => {
                let ids: Vec<FragmentId> = stripes.iter().map(|stripe| content_of(*stripe, 0).id()).collect();
                self.sim().delete(&ids)
            }
            Asked::Read { stripe } => self.sim().read(content_of(*stripe, 0).id()),
            Asked::Stat { stripe } => self.sim().stat(content_of(*stripe, 0).id()),
        };
        let mut raced: BTreeMap<u8, BTreeSet<State>> = BTreeMap::new();
        for flight in self.flights.values_mut() {
            for stripe in (0..STRIPES).filter(|stripe| flight.asked.touches(*stripe) && asked.touches(*stripe)) {
                raced.entry(stripe).or_default().extend(flight.asked.outcome());
                flight.raced.entry(stripe).or_default().extend(asked.outcome());
            }
        }
        if let Asked::Read { stripe } | Asked::Stat { stripe } = asked {
            // A read may show what was true when it was asked.
            raced.entry(stripe).or_default().extend(&self.fragments[&stripe].possible);
        }
        let rotted = self.fragments.iter().any(|(stripe, fragment)| fragment.rotted && asked.touches(*stripe));
        self.flights.insert(number, Flight { asked, raced, rotted });
    }

    fn collect(&mut self) -> Check {
        let answers = std::mem::take(&mut *self.sim().mailbox.answers.borrow_mut());
        for (number, answer) in answers {
            let Some(flight) = self.flights.remove(&number) else { continue };
            match (flight.asked.clone(), answer) {
                (Asked::Put { stripe, variant }, answer) => self.check_put(stripe, variant, &flight, answer)?,
                (Asked::Delete { stripes }, answer) => self.check_delete(&stripes, &flight, answer)?,
                (Asked::Read { stripe }, answer) => self.check_read(stripe, &flight, answer, false)?,
                (Asked::Stat { stripe }, answer) => self.check_read(stripe, &flight, answer, true)?,
            }
        }
        Ok(())
    }

    fn settle_state(&mut self, stripe: u8, flight: &Flight, state: State) {
        let fragment = self.fragments.get_mut(&stripe).expect("all stripes are known");
        let raced = flight.raced.get(&stripe).filter(|raced| !raced.is_empty());
        if raced.is_none() {
            fragment.possible.clear();
            fragment.rotted = false;
        }
        fragment.possible.insert(state);
        fragment.possible.extend(raced.into_iter().flatten().copied());
        fragment.deleted_once |= state.is_none();
    }

    fn is_fenced(&mut self) -> bool {
        self.sim().engine.stat().fenced.is_some()
    }

    fn check_put(&mut self, stripe: u8, variant: u8, flight: &Flight, answer: plinth_storage::Answer) -> Check {
        let raced = flight.raced.get(&stripe).cloned().unwrap_or_default();
        let fenced = self.is_fenced();
        let used = self.sim().engine.stat();
        let fragment = self.fragments.get_mut(&stripe).expect("all stripes are known");
        let other = |state: &State| state.is_some_and(|held| held != variant);
        match answer {
            Ok((StorageReply::Stored, _)) => {
                // Over a damaged copy any whole one is taken: what it held cannot be told.
                if !fragment.rotted && !fragment.possible.iter().chain(&raced).any(|state| !other(state)) {
                    return Err(fail(format!("stripe {stripe}: other bytes were confirmed as stored")));
                }
                self.settle_state(stripe, flight, Some(variant));
            }
            Ok(other) => return Err(fail(format!("a put answered {other:?}"))),
            Err(failure) => match failure.kind {
                FailureKind::Conflict if fragment.deleted_once || raced.contains(&None) => {}
                FailureKind::Invalid if fragment.possible.iter().chain(&raced).any(other) => {}
                FailureKind::Full if used.used_bytes * 5 > used.size_bytes * 2 => {}
                FailureKind::Unavailable if fenced => drop(fragment.possible.insert(Some(variant))),
                _ => return Err(fail(format!("put of stripe {stripe} refused: {failure}"))),
            },
        }
        Ok(())
    }

    fn check_delete(&mut self, stripes: &[u8], flight: &Flight, answer: plinth_storage::Answer) -> Check {
        let fenced = self.is_fenced();
        let distinct: BTreeSet<u8> = stripes.iter().copied().collect();
        match answer {
            Ok((StorageReply::Deleted(deleted), _)) => {
                let (mut sure, mut perhaps) = (0, 0);
                for stripe in &distinct {
                    let fragment = &self.fragments[stripe];
                    let raced = flight.raced.get(stripe);
                    let cloud: BTreeSet<State> =
                        fragment.possible.iter().chain(raced.into_iter().flatten()).copied().collect();
                    sure += u32::from(!cloud.contains(&None));
                    perhaps += u32::from(cloud.iter().any(Option::is_some));
                }
                if deleted.found < sure || deleted.found > perhaps {
                    let found = deleted.found;
                    return Err(fail(format!("delete found {found}, should be {sure} to {perhaps}")));
                }
                distinct.into_iter().for_each(|stripe| self.settle_state(stripe, flight, None));
            }
            Ok(other) => return Err(fail(format!("a delete answered {other:?}"))),
            Err(failure) if failure.kind == FailureKind::Unavailable && fenced => {
                for stripe in distinct {
                    let fragment = self.fragments.get_mut(&stripe).expect("all stripes are known");
                    fragment.possible.insert(None);
                    fragment.deleted_once = true;
                }
            }
            Err(failure) => return Err(fail(format!("delete refused: {failure}"))),
        }
        Ok(())
    }

    fn check_read(&mut self, stripe: u8, flight: &Flight, answer: plinth_storage::Answer, stat: bool) -> Check {
        let fragment = &self.fragments[&stripe];
        let raced = flight.raced.get(&stripe);
        let cloud: BTreeSet<State> = fragment.possible.iter().chain(raced.into_iter().flatten()).copied().collect();
        match answer {
            Ok((StorageReply::Header(header), _)) if stat => {
                if header.fragment != fragment.content.id() || cloud.iter().all(Option::is_none) {
                    return Err(fail(format!("stripe {stripe}: a header that should not be")));
                }
            }
            Ok((StorageReply::Frames, frames)) if !stat => {
                let held = cloud.iter().flatten().any(|variant| content_of(stripe, *variant).frames() == frames);
                if !held {
                    return Err(fail(format!("stripe {stripe}: wrong bytes, possible {cloud:?}")));
                }
            }
            Ok(other) => return Err(fail(format!("a read answered {other:?}"))),
            Err(failure) => match failure.kind {
                FailureKind::NotFound if cloud.contains(&None) => {}
                FailureKind::Corrupt if fragment.rotted || flight.rotted => {}
                _ => return Err(fail(format!("stripe {stripe}: read failed: {failure}, possible {cloud:?}"))),
            },
        }
        Ok(())
    }

    /// What was under way when the power went may have happened or not.
    fn cut_short(&mut self) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            let Some(outcome) = flight.asked.outcome() else { continue };
            for (_, fragment) in self.fragments.iter_mut().filter(|(stripe, _)| flight.asked.touches(**stripe)) {
                fragment.possible.insert(outcome);
                fragment.deleted_once |= outcome.is_none();
            }
        }
        self.fence_planned = false;
    }

    fn settle(&mut self) -> Check {
        self.sim().settle();
        self.collect()
    }

    /// Reads every fragment and lists all: each state must be a possible one, and stays from now on.
    fn audit(&mut self) -> Check {
        self.settle()?;
        // What a fenced disk has under way may show only after the next start.
        let fenced = self.is_fenced();
        for stripe in 0..STRIPES {
            let id = content_of(stripe, 0).id();
            let answer = self.sim().read_now(id);
            let fragment = self.fragments.get_mut(&stripe).expect("all stripes are known");
            let state = match answer {
                Ok(frames) => {
                    let held = [0, 1].into_iter().find(|variant| content_of(stripe, *variant).frames() == frames);
                    Some(Some(held.ok_or_else(|| fail(format!("stripe {stripe}: wrong bytes")))?))
                }
                Err(failure) if failure.kind == FailureKind::NotFound => Some(None),
                Err(failure) if failure.kind == FailureKind::Corrupt && fragment.rotted => None,
                Err(failure) => return Err(fail(format!("stripe {stripe}: audit read failed: {failure}"))),
            };
            let Some(state) = state else { continue };
            if !fragment.possible.contains(&state) {
                let possible = &fragment.possible;
                return Err(fail(format!("stripe {stripe} is {state:?}, may be {possible:?}")));
            }
            if !fenced {
                fragment.possible = BTreeSet::from([state]);
            }
        }
        self.check_list()
    }

    fn check_list(&mut self) -> Check {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = self.sim().list(after, 5);
            after = page.last().map(|(id, _)| *id);
            listed.extend(page);
            if !more {
                break;
            }
        }
        if !listed.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(fail("the list is not in order"));
        }
        for (id, bytes) in &listed {
            let stripe = self.stripe_of(*id).ok_or_else(|| fail(format!("{id} listed, never put")))?;
            let fragment = &self.fragments[&stripe];
            if !fragment.possible.iter().any(Option::is_some) || fragment.content.frames().len() != *bytes as usize {
                return Err(fail(format!("stripe {stripe} is listed wrongly")));
            }
        }
        for (stripe, fragment) in &self.fragments {
            let present = !fragment.possible.contains(&None) && !fragment.rotted;
            if present && !listed.iter().any(|(id, _)| *id == fragment.content.id()) {
                return Err(fail(format!("stripe {stripe} is not listed")));
            }
        }
        Ok(())
    }

    fn reopen(&mut self, how: impl FnOnce(Sim) -> Sim) -> Check {
        self.collect()?;
        self.cut_short();
        if let Some(sim) = &self.sim {
            self.coverage.note(sim);
        }
        self.sim = self.sim.take().map(how);
        let report = &self.sim().report;
        if report.checkpoint_rejected.is_some() || !report.foreign.is_empty() || !report.damage.is_empty() {
            return Err(fail(format!("start-up found damage that was never done: {report:?}")));
        }
        self.audit()
    }

    fn rot(&mut self, stripe: u8, at: u16, bit: u8) -> Check {
        self.settle()?;
        if self.fence_planned {
            // Above a floor that was never written rot looks like a torn tail: a known limit.
            return Ok(());
        }
        let id = content_of(stripe, 0).id();
        let Some(entry) = self.sim().engine.entry(id) else { return Ok(()) };
        let fragment = self.fragments.get_mut(&stripe).expect("all stripes are known");
        fragment.rotted = true;
        let head = plinth_journal::head_and_body_bytes(usize::from(entry.place.body_bytes)) as u64;
        let payload = u64::from(entry.place.payload_blocks) * 4096;
        let offset = u64::from(entry.place.block) * 4096 + head + u64::from(at) % payload;
        self.sim().disk.rot(Area::Segment(SegmentIndex(entry.place.segment)), offset, bit);
        Ok(())
    }

    fn run(&mut self, op: &Op) -> Check {
        match op {
            Op::Put { stripe, class } => self.ask(Asked::Put { stripe: *stripe, variant: 0 }, *class),
            Op::PutOther { stripe } => self.ask(Asked::Put { stripe: *stripe, variant: 1 }, IoClass::Write),
            Op::Delete { stripes } => self.ask(Asked::Delete { stripes: stripes.clone() }, IoClass::Background),
            Op::Read { stripe } => self.ask(Asked::Read { stripe: *stripe }, IoClass::Read),
            Op::Stat { stripe } => self.ask(Asked::Stat { stripe: *stripe }, IoClass::Read),
            Op::List => {
                self.settle()?;
                self.check_list()?;
            }
            Op::Checkpoint => {
                self.sim().engine.request_checkpoint();
            }
            Op::Settle => self.settle()?,
            Op::Turns { count } => self.sim().turns(usize::from(*count)),
            Op::Crash => self.reopen(Sim::crash)?,
            Op::Kill => self.reopen(Sim::kill)?,
            Op::Restart => self.reopen(Sim::restart)?,
            Op::Rot { stripe, at, bit } => self.rot(*stripe, *at, *bit)?,
            Op::ReadError => {
                self.settle()?;
                self.sim().disk.fail_at(plinth_journal::sim::SimOp::Read, 0);
                self.audit()?;
            }
            Op::WriteError { nth } => {
                self.fence_planned = true;
                self.sim().disk.fail_at(plinth_journal::sim::SimOp::Write, u64::from(*nth));
            }
            Op::SyncError { nth } => {
                self.fence_planned = true;
                self.sim().disk.fail_at(plinth_journal::sim::SimOp::Sync, u64::from(*nth));
            }
        }
        self.collect()
    }
}

/// Runs one sequence; tells which rare paths it took.
pub fn run_sequence(seed: u64, ops: &[Op], coverage: &RefCell<Coverage>) -> Check {
    let mut world = World::new(seed);
    world.coverage = coverage.borrow().clone();
    for op in ops {
        world.run(op)?;
    }
    world.reopen(Sim::crash)?;
    world.audit()?;
    *coverage.borrow_mut() = world.coverage;
    Ok(())
}

/// Runs `sequences` random sequences; returns what the first failing one says, shrunk.
pub fn run_sequences(sequences: u32, seed: u8) -> Result<Coverage, String> {
    let config = Config { cases: sequences, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = (any::<u64>(), prop::collection::vec(op(), 20..100));
    let coverage = RefCell::new(Coverage::default());
    match runner.run(&strategy, |(seed, ops)| run_sequence(seed, &ops, &coverage)) {
        Ok(()) => Ok(coverage.into_inner()),
        Err(TestError::Fail(reason, (seed, ops))) => Err(format!("{reason}\nseed {seed}\n{ops:?}")),
        Err(error) => Err(error.to_string()),
    }
}
