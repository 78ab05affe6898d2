//! Enumerated crash states: every moment of a scenario × subsets of what was not flushed.

use super::{Content, Sim, format_sim, small_options, start_of_time};
use plinth_journal::SimDisk;
use plinth_journal::sim::Survival;
use plinth_protocol::FailureKind;
use std::collections::BTreeMap;

/// Unflushed writes up to which every subset is tried; beyond, subsets that leave out or keep one.
const SUBSETS_MAX: usize = 5;

/// What must hold of a fragment at a moment of the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    Deleted,
    /// An operation on it is under way.
    Open,
}

/// Puts, deletes, a checkpoint, compaction and a second checkpoint under way, on small segments.
struct Scenario {
    sim: Sim,
    fates: BTreeMap<Content, Fate>,
    asked: Vec<(u64, Vec<Content>, Fate)>,
    moments: Vec<(SimDisk, BTreeMap<Content, Fate>)>,
}

impl Scenario {
    fn put(&mut self, contents: &[Content]) {
        for content in contents {
            let number = self.sim.put(content);
            self.asked.push((number, vec![*content], Fate::Stored));
            self.fates.insert(*content, Fate::Open);
        }
    }

    fn delete(&mut self, contents: &[Content]) {
        let ids: Vec<_> = contents.iter().map(Content::id).collect();
        let number = self.sim.delete(&ids);
        self.asked.push((number, contents.to_vec(), Fate::Deleted));
        contents.iter().for_each(|content| {
            self.fates.insert(*content, Fate::Open);
        });
    }

    /// One turn; keeps the disk's moments together with what was acknowledged before them.
    fn turn(&mut self) {
        self.sim.disk.start_trace();
        // Answers of this turn are given before its operations reach the disk.
        self.sim.turn();
        let Scenario { sim, fates, asked, moments } = self;
        asked.retain(|(number, contents, fate)| match sim.take(*number) {
            Some(answer) => {
                answer.expect("the scenario's requests succeed");
                contents.iter().for_each(|content| {
                    fates.insert(*content, *fate);
                });
                false
            }
            None => true,
        });
        let trace = sim.disk.take_trace();
        moments.extend(trace.into_iter().map(|moment| (moment, fates.clone())));
    }

    fn settle(&mut self) {
        for _ in 0..2_000 {
            self.turn();
            if self.asked.is_empty() {
                return;
            }
        }
        panic!("the scenario does not come to rest");
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }
}

fn play(seed: u64) -> Scenario {
    let sim = Sim::open(format_sim(seed, 64 << 10, 24), small_options(), start_of_time());
    let mut scenario = Scenario { sim, fates: BTreeMap::new(), asked: Vec::new(), moments: Vec::new() };
    let size = |stripe: u64| 3_000 + (900 * stripe as usize) % 14_000;
    let contents: Vec<Content> = (0..44).map(|stripe| Content::new(stripe, size(stripe))).collect();
    scenario.put(&contents[..24]);
    scenario.settle();
    scenario.delete(&contents[..5]);
    scenario.settle();
    scenario.sim.engine.request_checkpoint();
    scenario.turn();
    scenario.put(&contents[24..30]);
    scenario.turns(30);
    scenario.settle();
    let third: Vec<Content> = contents[5..30].iter().copied().filter(|content| content.stripe % 3 != 0).collect();
    scenario.delete(&third);
    scenario.put(&contents[30..]);
    scenario.settle();
    // Compaction runs by itself; the second checkpoint begins in its midst.
    scenario.turns(4);
    scenario.sim.engine.request_checkpoint();
    scenario.turns(60);
    let stats = scenario.sim.engine.stats().snapshot();
    assert!(stats.checkpoints >= 2 && stats.moved_bytes > 0 && stats.segments_released > 0, "{stats:?}");
    scenario
}

/// The ways in which a crash can leave `sectors` of unflushed writes, oldest first.
fn survivals(sectors: &[usize]) -> Vec<Vec<Survival>> {
    let count = sectors.len();
    let whole = |keep: &dyn Fn(usize) -> bool| -> Vec<Survival> {
        (0..count).map(|at| if keep(at) { Survival::Whole } else { Survival::Lost }).collect()
    };
    let mut all = Vec::new();
    if count <= SUBSETS_MAX {
        all.extend((0..1usize << count).map(|mask| whole(&|at| mask >> at & 1 == 1)));
    } else {
        all.extend((0..=count).map(|kept| whole(&|at| at < kept)));
        all.extend((0..count).map(|lost| whole(&|at| at != lost)));
        all.extend((0..count).map(|only| whole(&|at| at == only)));
    }
    // The newest write torn: its head, its tail, and sectors at random.
    if let Some(&last) = sectors.last() {
        for torn in [
            Survival::Head(1),
            Survival::Head(last / 2),
            Survival::Tail(last.div_ceil(2)),
            Survival::Torn { seed: last as u64, blocks: false },
        ] {
            let mut state = whole(&|_| true);
            *state.last_mut().expect("there is a last write") = torn;
            all.push(state);
        }
    }
    all
}

fn check(disk: SimDisk, fates: &BTreeMap<Content, Fate>) -> Result<(), String> {
    let mut sim = Sim::open(disk, small_options(), start_of_time());
    let report = &sim.report;
    if !report.damage.is_empty() || !report.foreign.is_empty() || report.checkpoint_rejected.is_some() {
        return Err(format!("start-up found damage that was never done: {report:?}"));
    }
    for (content, fate) in fates {
        let present = match sim.read_now(content.id()) {
            Ok(frames) if frames == content.frames() => true,
            Ok(_) => return Err(format!("{}: wrong bytes", content.id())),
            Err(failure) if failure.kind == FailureKind::NotFound => false,
            Err(failure) => return Err(format!("{}: {failure}", content.id())),
        };
        if (*fate == Fate::Stored && !present) || (*fate == Fate::Deleted && present) {
            return Err(format!("{} is {fate:?}, and present: {present}", content.id()));
        }
    }
    // What was recovered can be used: a put lands, and survives the next start.
    let fresh = Content::new(1_000, 9_000);
    sim.put_now(&fresh).map_err(|failure| failure.to_string())?;
    let mut sim = sim.crash();
    match sim.read_now(fresh.id()) {
        Ok(frames) if frames == fresh.frames() => Ok(()),
        other => Err(format!("a put after the crash is gone: {other:?}")),
    }
}

/// Checks at most `states_max` crash states, spread over the scenario; returns how many.
pub fn enumerate(seed: u64, states_max: usize) -> Result<usize, String> {
    let scenario = play(seed);
    let all: Vec<(usize, Vec<Survival>)> = scenario
        .moments
        .iter()
        .enumerate()
        .flat_map(|(at, (disk, _))| {
            let sectors: Vec<usize> = disk.unflushed().into_iter().map(|(_, _, sectors)| sectors).collect();
            survivals(&sectors).into_iter().map(move |state| (at, state))
        })
        .collect();
    let step = all.len().div_ceil(states_max).max(1);
    let mut checked = 0;
    for (at, state) in all.iter().step_by(step) {
        let (disk, fates) = &scenario.moments[*at];
        let mut disk = disk.clone();
        disk.crash_with(state);
        check(disk, fates).map_err(|failure| format!("moment {at}, survivals {state:?}: {failure}"))?;
        checked += 1;
    }
    Ok(checked)
}
