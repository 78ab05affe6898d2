//! Random sequences against the reference model.

#![allow(clippy::disallowed_methods)]

mod sim;

use sim::model::{SEQUENCES, run_sequences};

#[test]
fn random_sequences_agree_with_the_model() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let sequences = number("PLINTH_SEQUENCES").unwrap_or(SEQUENCES);
    let seed = number("PLINTH_SEED").unwrap_or(1) as u8;
    let coverage = run_sequences(sequences, seed).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{sequences} sequences: {coverage:?}");
    if sequences >= SEQUENCES {
        let taken = [
            coverage.checkpoints_loaded,
            coverage.tails_cut,
            coverage.fenced,
            coverage.segments_released,
            coverage.moved_bytes,
            coverage.moved_tombstones,
            coverage.corrupt,
            coverage.records_replayed,
        ];
        assert!(taken.iter().all(|&count| count > 50), "a path is hardly ever taken: {coverage:?}");
    }
}
