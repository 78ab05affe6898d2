//! Enumerated crash states: each moment between two I/Os of a run, with every subset of the writes
//! that were not flushed and the newest survivor torn. `PLINTH_CRASH_STATES` says how many.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

/// States where the variable says nothing else.
const STATES: u64 = 8000;

#[test]
fn every_crash_state_of_appends_recovers() {
    let total = std::env::var("PLINTH_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES);
    let runs = harness::enumerate_states(total).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{total} crash states of {runs} runs");
}
