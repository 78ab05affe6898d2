//! The saga of buckets on real state machines, step by step: every order of the steps of two actors, and many orders of
//! three with crashes, with requests that arrive late. Whatever happens, a PUT that was acknowledged never sits in a
//! removed bucket, a removed bucket never opens again, and an active one is open everywhere.
//!
//! The actors run the client's own code; what they ask of a group waits until the schedule lets it through.
//! `PLINTH_SEQUENCES` raises the number of random schedules, `PLINTH_SEED` moves them.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use bytes::Bytes;
use plinth_client::saga::{self, Groups};
use plinth_meta::state::{LogPosition, Machine, MemoryStore};
use plinth_protocol::meta::*;
use plinth_protocol::object::{Body, BucketRow, BucketState, Etag, ObjectBody, StoredHeaders};
use plinth_protocol::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

const SHARDS: [GroupId; 2] = [GroupId(1), GroupId(2)];
const NAME: &str = "photos";

/// What an actor asks, and where its answer goes.
enum Asked {
    Mutate(GroupId, Box<Command>),
    Row,
}

#[derive(Default)]
struct Slot {
    asked: Option<Asked>,
    answer: Option<Answer>,
}

enum Answer {
    Outcome(Outcome),
    Row(Option<BucketRow>),
}

/// The groups as one actor sees them: a question stays in the slot until the schedule answers it.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Slot>>);

impl Line {
    async fn ask(&self, asked: Asked) -> Answer {
        self.0.lock().unwrap().asked = Some(asked);
        std::future::poll_fn(|_| match self.0.lock().unwrap().answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }
}

impl Groups for Line {
    async fn mutate(&self, group: GroupId, command: Command) -> Result<Outcome, Failure> {
        match self.ask(Asked::Mutate(group, Box::new(command))).await {
            Answer::Outcome(outcome) => Ok(outcome),
            Answer::Row(_) => unreachable!("a mutation has an outcome"),
        }
    }

    async fn bucket_row(&self, _: &str) -> Result<Option<BucketRow>, Failure> {
        match self.ask(Asked::Row).await {
            Answer::Row(row) => Ok(row),
            Answer::Outcome(_) => unreachable!("a query has a reply"),
        }
    }

    fn shard_groups(&self) -> Vec<GroupId> {
        SHARDS.to_vec()
    }
}

/// What an actor is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Create,
    Delete,
    /// Looks the bucket up, and puts an object into the second shard under the id that it saw.
    Put,
    /// The same, and deletes it again.
    PutAndDelete,
}

type Running = Pin<Box<dyn Future<Output = Result<Outcome, Failure>>>>;

struct Actor {
    part: Part,
    line: Line,
    running: Option<Running>,
    outcome: Option<Result<Outcome, Failure>>,
}

fn put(bucket: BucketId) -> Command {
    let headers = StoredHeaders { standard: vec![], user: vec![] };
    Command::PutObject(PutObject {
        bucket,
        key: "key".into(),
        size_bytes: 0,
        etag: Etag { md5: [0; 16], parts: None },
        checksum: None,
        body: ObjectBody { headers, body: Body::Inline(Bytes::new()) },
        expectation: None,
    })
}

impl Actor {
    fn new(part: Part, id: u64) -> Self {
        let line = Line::default();
        let own = line.clone();
        let create = CreateBucket {
            bucket: BucketId(id),
            name: NAME.into(),
            owner: "me".into(),
            location: None,
            numbered: true,
        };
        let running: Running = match part {
            Part::Create => Box::pin(async move { saga::create(&own, create).await }),
            Part::Delete => Box::pin(async move {
                // As a gateway does: it looks the bucket up, judges the caller, and deletes what it saw.
                let seen = own.bucket_row(NAME).await?;
                match seen {
                    Some(row) => saga::delete(&own, NAME, row.bucket).await,
                    None => Err(Failure::new(FailureKind::NotFound, "no bucket")),
                }
            }),
            Part::Put | Part::PutAndDelete => Box::pin(async move {
                let row = own.bucket_row(NAME).await?.filter(|row| row.state == BucketState::Active);
                let Some(row) = row else { return Err(Failure::new(FailureKind::NotFound, "no bucket")) };
                let outcome = own.mutate(SHARDS[1], put(row.bucket)).await?;
                if part == Part::PutAndDelete {
                    let delete = DeleteObject { bucket: row.bucket, key: "key".into(), expectation: None };
                    return own.mutate(SHARDS[1], Command::DeleteObject(delete)).await;
                }
                Ok(outcome)
            }),
        };
        let mut actor = Actor { part, line, running: Some(running), outcome: None };
        actor.poll();
        actor
    }

    fn poll(&mut self) {
        let Some(running) = &mut self.running else { return };
        if let Poll::Ready(outcome) = running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            (self.running, self.outcome) = (None, Some(outcome));
        }
    }

    fn waits(&self) -> bool {
        self.running.is_some()
    }

    /// Dies between two steps; what it had asked may still arrive.
    fn crash(&mut self) -> Option<Asked> {
        self.running = None;
        self.line.0.lock().unwrap().asked.take()
    }
}

/// Group 0 and two shards, and what must never be.
struct World {
    system: Machine<MemoryStore>,
    shards: [Machine<MemoryStore>; 2],
    entries: u64,
    ids: BTreeSet<BucketId>,
    removed: BTreeSet<BucketId>,
    /// Buckets in which an acknowledged object is, or may be.
    holding: BTreeSet<BucketId>,
    trace: RefCell<Vec<String>>,
}

impl World {
    fn new() -> Self {
        let open = |group| Machine::open(MemoryStore::new(), group).unwrap();
        World {
            system: open(GROUP_SYSTEM),
            shards: SHARDS.map(open),
            entries: 0,
            ids: BTreeSet::new(),
            removed: BTreeSet::new(),
            holding: BTreeSet::new(),
            trace: RefCell::default(),
        }
    }

    fn row(&self) -> Option<BucketRow> {
        match self.system.query(&Query::Bucket(NAME.into())).unwrap() {
            Reply::Bucket(row) => Some(row),
            _ => None,
        }
    }

    fn is_open(&self, shard: usize, bucket: BucketId) -> bool {
        let query = Query::Object(ObjectQuery { bucket, key: "none".into(), body: false });
        self.shards[shard].query(&query).unwrap() != Reply::Absent(RefusalKind::NoSuchBucket)
    }

    fn apply(&mut self, group: GroupId, command: Command) -> Outcome {
        self.entries += 1;
        let at = LogPosition { term: 1, leader: NodeId(1), index: self.entries };
        let request = RequestId(u128::from(self.entries));
        let mutation =
            Mutation { group, request, writer: None, token: None, command: command.clone(), issued: None, seen: None };
        let machine = match SHARDS.iter().position(|shard| *shard == group) {
            Some(shard) => &mut self.shards[shard],
            None => &mut self.system,
        };
        let outcome = machine.apply(at, HybridTime(self.entries << 16), &[mutation]).unwrap().remove(0);
        let short: String = format!("{command:?}").chars().take(90).collect();
        self.trace.borrow_mut().push(format!("{group} {short} -> {outcome:?}"));
        match (&command, &outcome) {
            (Command::PutObject(put), Outcome::Object(_)) => drop(self.holding.insert(put.bucket)),
            (Command::DeleteObject(delete), Outcome::Deleted(_)) => drop(self.holding.remove(&delete.bucket)),
            (Command::RemoveAttempt(change), Outcome::Done) => drop(self.removed.insert(change.bucket)),
            (Command::RemoveBucket(bucket), Outcome::Done) => drop(self.removed.insert(*bucket)),
            _ => {}
        }
        if let Outcome::Bucket(row) = &outcome {
            self.ids.insert(row.bucket);
        }
        self.check();
        outcome
    }

    fn answer(&mut self, asked: Asked) -> Answer {
        match asked {
            Asked::Mutate(group, command) => Answer::Outcome(self.apply(group, *command)),
            Asked::Row => Answer::Row(self.row()),
        }
    }

    fn check(&self) {
        let story = || self.trace.borrow().join("\n");
        for bucket in &self.removed {
            assert!(!self.holding.contains(bucket), "an acknowledged object is in a removed bucket:\n{}", story());
            for shard in 0..2 {
                assert!(!self.is_open(shard, *bucket), "a removed bucket is open:\n{}", story());
            }
        }
        if let Some(row) = self.row().filter(|row| row.state == BucketState::Active) {
            let open = (0..2).all(|shard| self.is_open(shard, row.bucket));
            assert!(open, "an active bucket is closed somewhere:\n{}", story());
        }
    }

    /// Housekeeping comes by, after everything that was under way has ended.
    fn settle(&mut self) {
        if let Some(row) = self.row().filter(|row| row.state != BucketState::Active) {
            let line = Line::default();
            let own = line.clone();
            let running: Running = Box::pin(async move { saga::finish(&own, row).await });
            let mut actor = Actor { part: Part::Delete, line, running: Some(running), outcome: None };
            actor.poll();
            while actor.waits() {
                self.step(&mut actor);
            }
        }
        let story = || self.trace.borrow().join("\n");
        let row = self.row();
        assert!(row.as_ref().is_none_or(|row| row.state == BucketState::Active), "half-way for ever:\n{}", story());
        for bucket in self.ids.iter().filter(|id| row.as_ref().is_none_or(|row| row.bucket != **id)) {
            let open = (0..2).any(|shard| self.is_open(shard, *bucket));
            assert!(!open, "a bucket without a row is open:\n{}", story());
        }
        for bucket in &self.holding {
            assert!(row.as_ref().is_some_and(|row| row.bucket == *bucket), "an object without a bucket:\n{}", story());
        }
    }

    /// Lets an actor's question through.
    fn step(&mut self, actor: &mut Actor) {
        let asked = actor.line.0.lock().unwrap().asked.take().expect("an actor that waits has asked");
        let answer = self.answer(asked);
        actor.line.0.lock().unwrap().answer = Some(answer);
        actor.poll();
    }
}

/// A world in which the bucket exists, or does not, and the actors.
fn scene(exists: bool, parts: &[Part]) -> (World, Vec<Actor>) {
    let mut world = World::new();
    if exists {
        let mut creator = Actor::new(Part::Create, 99);
        while creator.waits() {
            world.step(&mut creator);
        }
        assert!(matches!(creator.outcome, Some(Ok(Outcome::Bucket(_)))));
    }
    let actors = parts.iter().enumerate().map(|(at, part)| Actor::new(*part, at as u64 + 1)).collect();
    (world, actors)
}

/// Runs a schedule: which actor goes next, for as long as it says; then each to its end. Returns who could have gone
/// at each point.
fn run(exists: bool, parts: &[Part], schedule: &[usize]) -> Vec<Vec<usize>> {
    let (mut world, mut actors) = scene(exists, parts);
    let mut choices = Vec::new();
    loop {
        let ready: Vec<usize> = (0..actors.len()).filter(|at| actors[*at].waits()).collect();
        if ready.is_empty() {
            break;
        }
        let next = schedule.get(choices.len()).copied().unwrap_or(ready[0]);
        choices.push(ready);
        world.step(&mut actors[next]);
    }
    for actor in &actors {
        if actor.part == Part::Put && matches!(actor.outcome, Some(Ok(Outcome::Object(_)))) {
            assert!(!world.holding.is_empty(), "an acknowledged object is gone");
        }
    }
    world.settle();
    choices
}

/// Tries every schedule; returns how many there are.
fn exhaust(exists: bool, parts: &[Part]) -> usize {
    let (mut schedule, mut runs) = (Vec::new(), 0);
    loop {
        let choices = run(exists, parts, &schedule);
        runs += 1;
        // What was not prescribed took the first that could go: the last point with another one left goes there next.
        schedule.extend(choices[schedule.len()..].iter().map(|ready| ready[0]));
        loop {
            let Some(last) = schedule.pop() else { return runs };
            let ready = &choices[schedule.len()];
            let at = ready.iter().position(|actor| *actor == last).unwrap();
            if let Some(next) = ready.get(at + 1) {
                schedule.push(*next);
                break;
            }
        }
    }
}

#[test]
fn every_order_of_two_actors_keeps_the_promises() {
    use Part::*;
    let mut runs = 0;
    for exists in [false, true] {
        for parts in [[Create, Delete], [Create, Create], [Delete, Delete], [Delete, Put], [Delete, PutAndDelete]] {
            runs += exhaust(exists, &parts);
        }
    }
    assert!(runs > 1_000, "{runs} orders");
}

/// The case that was found: a deleter that slept before it opened the bucket again.
#[test]
fn a_paused_deleter_never_reopens_a_removed_bucket() {
    use Part::*;
    let runs = exhaust(true, &[Delete, Delete, Put][..2]);
    assert!(runs > 100);
    // Both deleters, and an object that comes and goes between their steps.
    let mut numbers = Numbers(5);
    for _ in 0..20_000 {
        random(&mut numbers, true, &[Delete, Delete, PutAndDelete]);
    }
}

/// A small generator of numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ word >> 31) % bound as u64) as usize
    }
}

/// A random schedule with crashes, whose last requests arrive at any later time.
fn random(numbers: &mut Numbers, exists: bool, parts: &[Part]) {
    let (mut world, mut actors) = scene(exists, parts);
    let mut late = Vec::new();
    loop {
        let ready: Vec<usize> = (0..actors.len()).filter(|at| actors[*at].waits()).collect();
        let turns = ready.len() + late.len();
        if turns == 0 {
            break;
        }
        match numbers.below(turns) {
            at if at < ready.len() => match numbers.below(12) {
                0 => late.extend(actors[ready[at]].crash()),
                // Asleep for a while: several steps of others come first.
                _ => world.step(&mut actors[ready[at]]),
            },
            at => {
                let asked = late.swap_remove(at - ready.len());
                world.answer(asked);
            }
        }
    }
    world.settle();
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn crashes_and_late_requests_keep_the_promises() {
    use Part::*;
    let seed = setting("PLINTH_SEED", 1);
    for sequence in 0..setting("PLINTH_SEQUENCES", 10_000) {
        let mut numbers = Numbers(seed << 32 | sequence);
        let parts: Vec<Part> =
            (0..2 + numbers.below(3)).map(|_| [Create, Delete, Put, PutAndDelete][numbers.below(4)]).collect();
        let exists = numbers.below(2) == 0;
        let caught = std::panic::catch_unwind(move || random(&mut numbers, exists, &parts.clone()));
        assert!(caught.is_ok(), "seed {seed}, sequence {sequence}");
    }
}
