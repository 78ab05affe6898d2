//! Every word of the protocol against golden files. `PLINTH_BLESS=1` writes them anew: a sample that
//! is added, or a field that is new; bytes that stand in them already do not change.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

#[path = "../../../tests/format/golden.rs"]
mod golden;
mod samples;

use plinth_protocol::frame::{CHECKSUM_CRC32, SEAL_BYTES, fold};
use plinth_protocol::wire::{WireError, encode_field, encode_varint};
use samples::{Form, Samples, read_hex};
use std::collections::BTreeSet;
use std::path::Path;

fn messages() -> Samples {
    let mut samples = Samples::default();
    samples::object::samples(&mut samples);
    samples::registry::samples(&mut samples);
    samples::storage::samples(&mut samples);
    samples::commands::samples(&mut samples);
    samples::queries::samples(&mut samples);
    samples::admin::samples(&mut samples);
    samples
}

/// The golden files, each with what it holds.
fn golden_files() -> [(&'static str, Samples); 2] {
    [("protocol_fragment.hex", samples::fragment::samples()), ("protocol_messages.hex", messages())]
}

fn found_text(samples: &Samples) -> String {
    samples.list.iter().map(|sample| sample.to_hex()).collect()
}

fn golden_bytes(name: &str, samples: &Samples) -> Vec<(String, Vec<u8>)> {
    read_hex(&golden::golden(name, &found_text(samples)))
}

/// The declarations of `macro_name!` in the crate's sources, their tests apart.
fn declared(macro_name: &str, keyword: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in std::fs::read_dir(Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let shipped = text.split("#[cfg(test)]").next().unwrap();
        for body in shipped.split(&format!("\n{macro_name}! {{\n")).skip(1) {
            let line = body.lines().find_map(|line| line.trim().strip_prefix(keyword)).unwrap();
            names.insert(line.split_whitespace().next().unwrap().to_string());
        }
    }
    assert!(!names.is_empty(), "{macro_name}! declares nothing");
    names
}

#[test]
fn bytes_are_those_of_the_golden_files() {
    for (name, samples) in golden_files() {
        golden::assert_golden(name, &found_text(&samples));
    }
}

#[test]
fn golden_bytes_decode_to_what_they_were_made_from() {
    for (name, samples) in golden_files() {
        let golden = golden_bytes(name, &samples);
        assert_eq!(golden.len(), samples.list.len());
        for (sample, (called, bytes)) in samples.list.iter().zip(golden) {
            assert_eq!(sample.name, called);
            assert_eq!(sample.is_read_from(&bytes), Ok(true), "{called}");
        }
    }
}

#[test]
fn names_of_samples_are_distinct_but_for_choices() {
    for (name, samples) in golden_files() {
        let named = || samples.list.iter().filter(|sample| sample.form != Form::Choice).map(|sample| &sample.name);
        assert_eq!(named().collect::<BTreeSet<_>>().len(), named().count(), "{name}");
    }
}

#[test]
fn samples_show_every_field_and_every_variant() {
    for (name, samples) in golden_files() {
        for (kind, coverage) in samples.coverage {
            assert!(coverage.tags.is_sorted_by(|low, high| low < high), "{kind}: tags ascend");
            let shown: Vec<u64> = coverage.shown.into_iter().collect();
            assert_eq!(shown, coverage.tags, "{name}: tags of {kind} in samples, and those that it has");
        }
    }
}

#[test]
fn samples_show_every_type_of_the_crate() {
    let mut names = declared("record", "pub struct ");
    names.extend(declared("choice", "pub enum "));
    names.extend(declared("numbered", "pub enum "));
    let shown: BTreeSet<&str> =
        golden_files().iter().flat_map(|(_, samples)| samples.coverage.keys().copied()).collect();
    let missing: Vec<_> = names.iter().filter(|name| !shown.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "types without a sample: {missing:?}");
}

#[test]
fn records_of_newer_writers_are_refused_or_read_as_their_fields_demand() {
    for (name, samples) in golden_files() {
        for (sample, (_, mut bytes)) in samples.list.iter().zip(golden_bytes(name, &samples)) {
            if sample.form != Form::Record {
                continue;
            }
            let next = samples.coverage[sample.kind].tags.last().unwrap() + 1;
            encode_field(next, true, &7u64, &mut bytes);
            assert_eq!(sample.is_read_from(&bytes), Ok(true), "{}: an ignorable field is passed over", sample.name);
            encode_field(next + 1, false, &7u64, &mut bytes);
            let refused = Err(WireError::UnknownField(next + 1));
            assert_eq!(sample.is_read_from(&bytes), refused, "{}: a required one is not", sample.name);
        }
    }
}

#[test]
fn unknown_fields_deep_in_a_golden_message_count_as_well() {
    let samples = messages();
    let at = samples.list.iter().position(|sample| sample.name == "MetaRequest::Mutate").unwrap();
    let mut bytes = golden_bytes("protocol_messages.hex", &samples).swap_remove(at).1;
    encode_field(100, true, &"a hint".to_string(), &mut bytes);
    assert_eq!(samples.list[at].is_read_from(&bytes), Ok(true));
    encode_field(101, false, &true, &mut bytes);
    assert_eq!(samples.list[at].is_read_from(&bytes), Err(WireError::UnknownField(101)));
}

#[test]
fn variants_of_newer_writers_are_refused() {
    for (name, samples) in golden_files() {
        for (sample, (_, bytes)) in samples.list.iter().zip(golden_bytes(name, &samples)) {
            if sample.form != Form::Choice {
                continue;
            }
            // All tags of variants are below 128: one byte.
            let next = samples.coverage[sample.kind].tags.last().unwrap() + 1;
            let mut newer = Vec::new();
            encode_varint(next, &mut newer);
            newer.extend_from_slice(&bytes[1..]);
            assert_eq!(sample.is_read_from(&newer), Err(WireError::UnknownVariant(next)), "{}", sample.name);
        }
    }
}

#[test]
fn truncated_golden_messages_are_never_read_as_themselves() {
    for (name, samples) in golden_files() {
        for (sample, (_, bytes)) in samples.list.iter().zip(golden_bytes(name, &samples)) {
            for length in 0..bytes.len() {
                assert_ne!(sample.is_read_from(&bytes[..length]), Ok(true), "{}, {length} bytes", sample.name);
            }
        }
    }
}

/// The table in `frame.rs`, byte for byte.
#[test]
fn frame_and_trailer_stand_where_the_table_says() {
    let golden = golden_bytes("protocol_fragment.hex", &samples::fragment::samples());
    let (short, encrypted) = (&golden[0].1, &golden[1].1);
    let n = short.len();
    assert!(short[..200].iter().enumerate().all(|(at, byte)| *byte == at as u8));
    assert_eq!(short[200], 0xee);
    assert!(short[201..n - 16].iter().all(|byte| *byte == 0), "padding and an absent seal are zeros");
    let sum = crc32fast::hash(&[&short[..n - 16], &short[n - 12..]].concat());
    assert_eq!(short[n - 16..n - 12], sum.to_le_bytes());
    assert_eq!((short[n - 12], short[n - 11]), (CHECKSUM_CRC32, 9));
    assert_eq!(short[n - 10..n - 8], 0x0102u16.to_le_bytes());
    assert_eq!(short[n - 8..], fold(samples::fragment::fragment().stripe).to_le_bytes());
    let n = encrypted.len();
    let seal: [u8; SEAL_BYTES] = std::array::from_fn(|at| 0xa0 + at as u8);
    assert_eq!((encrypted[n - 45], &encrypted[n - 44..n - 16]), (0xee, &seal[..]));
}
