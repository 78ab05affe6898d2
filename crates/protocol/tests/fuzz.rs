//! The fuzz bodies on the golden files' bytes, on seeded changes of them, and on the bytes that once
//! broke something. `PLINTH_FUZZ_RUNS` raises the number of changes of each sample, `PLINTH_SEED` moves them.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

#[path = "../../../tests/format/mutate.rs"]
mod mutate;
#[allow(dead_code)]
#[path = "samples/mod.rs"]
mod samples;

use plinth_protocol::fuzz::{meta_message, storage_report, stripe_reference};

const BODIES: [fn(&[u8]); 3] = [stripe_reference, storage_report, meta_message];

fn corpus() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/format");
    let files = ["protocol_fragment.hex", "protocol_messages.hex"];
    let texts = files.map(|name| std::fs::read_to_string(format!("{folder}/{name}")).unwrap());
    texts.iter().flat_map(|text| samples::read_hex(text)).map(|(_, bytes)| bytes).collect()
}

#[test]
fn changed_messages_never_panic() {
    let corpus = corpus();
    assert!(corpus.len() > 100);
    for sample in &corpus {
        BODIES.iter().for_each(|body| body(sample));
    }
    mutate::each_change(&corpus, 400, |bytes| BODIES.iter().for_each(|body| body(bytes)));
}

#[test]
fn a_million_nested_answers_are_refused() {
    // Outcome 9 of a reply (72) holds another outcome.
    for tag in 0..32u8 {
        meta_message(&[&[2, 72][..], &vec![tag; 1 << 20]].concat());
        meta_message(&[&[72][..], &vec![tag; 1 << 20]].concat());
    }
}
