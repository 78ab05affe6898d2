//! Random sequences of appends, crashes and recoveries against a model of what was promised.
//! `PLINTH_SEQUENCES` says how many.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

/// Sequences of about 55 steps where the variable says nothing else.
const SEQUENCES: u32 = 2500;

#[test]
fn random_sequences_keep_every_promise() {
    let cases = std::env::var("PLINTH_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(SEQUENCES);
    let counts = harness::run_sequences(cases).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{cases} sequences: {counts:?}");
    // Paths that must have been walked, or the run proves little.
    for path in ["append", "busy", "full", "read", "released", "fenced", "crash in mount", "kill", "cut", "recovery"] {
        assert!(counts.contains_key(path), "never reached: {path}");
    }
}
