//! Every crash state of a scenario of puts, deletes, checkpoints and compaction recovers.

#![allow(clippy::disallowed_methods)]

mod sim;

use sim::crash_states::enumerate;

/// Crash states of an ordinary run, per seed; `PLINTH_CRASH_STATES` asks for more.
const STATES: usize = 1_500;

#[test]
fn every_crash_state_recovers() {
    let states = std::env::var("PLINTH_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES);
    let mut checked = 0;
    for seed in 1..=3 {
        checked += enumerate(seed, states).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    println!("{checked} crash states");
    assert!(checked >= 3_000, "only {checked} crash states were reached");
}
