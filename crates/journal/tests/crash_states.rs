//! Enumerated crash states: each moment between two I/Os of a run, with every subset of the writes
//! that were not flushed and the newest survivor torn. `PLINTH_CRASH_STATES` says how many.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

use harness::{World, formatted};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRng, TestRunner};

/// States where the variable says nothing else.
const STATES: u64 = 8000;
/// States that are taken from one run at most, so that many runs share the number.
const STATES_PER_RUN_MAX: u64 = 700;

#[test]
fn every_crash_state_of_appends_recovers() {
    let total = std::env::var("PLINTH_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(Default::default()));
    let (mut states, mut runs) = (0, 0u64);
    while states < total {
        let steps = harness::steps().new_tree(&mut runner).unwrap().current();
        let mut disk = formatted(runs);
        disk.start_trace();
        let mut world = World::new(disk, runs).unwrap();
        world.states_left = STATES_PER_RUN_MAX.min(total - states);
        world.take_apart().unwrap_or_else(|why| panic!("run {runs}, first mount: {why}"));
        world.run(&steps).unwrap_or_else(|why| panic!("run {runs}: {why}; steps {steps:?}"));
        states += world.counts.get("state").copied().unwrap_or(0);
        runs += 1;
        assert!(runs < total, "runs without crash states");
    }
    println!("{states} crash states of {runs} runs");
}
