//! Random sequences against the reference model.

#![allow(clippy::disallowed_methods)]

mod sim;

use sim::model::{SEQUENCES, run_sequences};

#[test]
fn random_sequences_agree_with_the_model() {
    let sequences = std::env::var("PLINTH_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(SEQUENCES);
    let seed = std::env::var("PLINTH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    if let Err(failure) = run_sequences(sequences, seed) {
        panic!("{failure}");
    }
}
