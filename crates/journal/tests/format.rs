//! The bytes on disk, against golden files. `PLINTH_BLESS=1` writes them anew: only for a new version of a format.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../../../tests/format/golden.rs"]
mod golden;
mod harness;

use bytes::Bytes;
use harness::{IDENTITY, SEGMENT_BYTES, disk_format, formatted, options, payload};
use plinth_journal::record::verify_record;
use plinth_journal::superblock::{COPY_OFFSETS, SLOT_OFFSETS};
use plinth_journal::*;
use std::time::{Duration, Instant};

/// The lines of `bytes`, 32 bytes each behind their offset, without those that are all zeros.
fn hex(name: &str, bytes: &[u8]) -> String {
    let mut text = format!("# {name}: {} bytes, zeros left out\n", bytes.len());
    for (index, line) in bytes.chunks(32).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            text += &format!("{:03x} ", index * 32);
            text.extend(line.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
    }
    text
}

/// A disk with one checkpoint, one record of each shape, a floor slot and a released segment.
fn example() -> (SimDisk, Vec<Placed>) {
    let start = Instant::now();
    let (mut journal, mut disk) =
        Recovery::start(formatted(1), Some(IDENTITY)).unwrap().resume(start, options()).unwrap();
    let mut placed = Vec::new();
    let mut settle = |journal: &mut Journal, now: Instant| {
        let mut completions = Vec::new();
        loop {
            while disk.room() > 0
                && let Some(operation) = journal.poll_disk(now)
            {
                disk.submit(operation);
            }
            disk.reap(Some(Duration::ZERO), &mut completions);
            completions.drain(..).for_each(|completion| journal.handle_completion(now, completion));
            if journal.is_idle() {
                return;
            }
        }
    };
    for (body, blocks) in [(&b"small body"[..], 0), (b"with a payload", 1)] {
        let append = Append { stream: Stream::Main, kind: 17, body, payload: payload(5, blocks), reserve: false };
        placed.push(journal.append(append).unwrap());
        settle(&mut journal, start);
    }
    let mark = journal.mark();
    journal.set_checkpoint(Checkpoint { mark, note: Bytes::from_static(b"where the index is") }).unwrap();
    settle(&mut journal, start);
    journal.set_slot_note(start, Bytes::from_static(b"a vote")).unwrap();
    settle(&mut journal, start + Duration::from_secs(1));
    (disk, placed)
}

#[test]
fn formats_are_what_they_were() {
    let (disk, placed) = example();
    let segment = placed[0].position.segment;
    let area = Area::Segment(segment);
    let end = u64::from(SEGMENT_BYTES) - 4096;
    let mut text = String::new();
    text += &hex("superblock copy 0", &disk.durable_bytes(Area::Super, COPY_OFFSETS[0], 4096));
    text += &hex("superblock copy 3", &disk.durable_bytes(Area::Super, COPY_OFFSETS[3], 4096));
    text += &hex("floor slot 1", &disk.durable_bytes(Area::Super, SLOT_OFFSETS[1], 4096));
    text += &hex("segment head, front", &disk.durable_bytes(area, 0, 4096));
    text += &hex("segment head, back", &disk.durable_bytes(area, end, 4096));
    text += &hex("mount record", &disk.durable_bytes(area, 4096, 4096));
    for placed in &placed {
        text += &hex("record", &disk.durable_bytes(area, u64::from(placed.position.offset), 4096));
    }
    golden::assert_golden("journal_disk.hex", &text);
}

#[test]
fn a_golden_record_is_read_and_every_flipped_bit_shows() {
    let (disk, placed) = example();
    let Placed { position, .. } = placed[1];
    let start = u64::from(position.offset);
    let mut bytes = disk.durable_bytes(Area::Segment(position.segment), start, record_bytes(14, 4096));
    let generation = verify_generation(&bytes);
    let stamp = disk_format().stamp;
    let view = verify_record(&bytes, position, generation, stamp).unwrap();
    assert_eq!((view.body, view.payload), (&b"with a payload"[..], &payload(5, 1)[..]));
    for byte in (0..HEAD_BYTES + 14).chain(4096..bytes.len()) {
        bytes[byte] ^= 1 << (byte % 8);
        assert!(verify_record(&bytes, position, generation, stamp).is_err(), "byte {byte}");
        bytes[byte] ^= 1 << (byte % 8);
    }
    let beside = Position { offset: position.offset + 4096, ..position };
    assert!(verify_record(&bytes, beside, generation, stamp).is_err(), "a misdirected write shows");
    assert!(verify_record(&bytes, position, generation, stamp ^ 1).is_err(), "another disk's record shows");
}

fn verify_generation(record: &[u8]) -> Generation {
    plinth_journal::record::Head::decode(record).unwrap().generation
}
