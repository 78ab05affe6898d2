//! Each planted bug is caught by the random sequences: a suite that can't fail proves nothing.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
#![cfg(feature = "planted-bugs")]

mod harness;

use plinth_journal::planted::{Bug, plant};

/// Sequences within which each bug must show; the suite runs many more.
const SEQUENCES: u32 = 600;

#[test]
fn random_sequences_catch_every_planted_bug() {
    std::panic::set_hook(Box::new(|_| {}));
    for bug in Bug::ALL {
        plant(Some(bug));
        let result = harness::run_sequences(SEQUENCES);
        plant(None);
        let caught = result.expect_err(bug.name());
        println!("{}: caught: {}", bug.name(), caught.chars().take(100).collect::<String>());
    }
    let _ = std::panic::take_hook();
}
