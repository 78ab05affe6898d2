//! Planted bugs: each is caught by the suites that claim to. Run with `--features planted-bugs`.

#![cfg(feature = "planted-bugs")]
#![allow(clippy::disallowed_methods)]

mod sim;

use plinth_storage::planted::{BUGS, plant};
use sim::crash_states::enumerate;
use sim::model::run_sequences;

/// Sequences within which a planted bug must be found.
const SEQUENCES: u32 = 2_000;

#[test]
fn every_planted_bug_is_caught_by_random_sequences() {
    for bug in BUGS {
        plant(Some(bug));
        let caught = run_sequences(SEQUENCES, 1);
        plant(None);
        match caught {
            Err(failure) => println!("{bug}: {}", failure.lines().next().unwrap_or_default()),
            Ok(coverage) => panic!("{bug} was not caught: {coverage:?}"),
        }
    }
    run_sequences(200, 1).expect("without a bug the same sequences pass");
}

#[test]
fn planted_bugs_of_durability_are_caught_by_enumerated_crash_states() {
    for bug in ["ack-before-durable", "delete-without-tombstone-sync", "checkpoint-mark-late"] {
        plant(Some(bug));
        let caught = enumerate(1, 1_500);
        plant(None);
        println!("{bug}: {:?}", caught.expect_err(bug));
    }
}
