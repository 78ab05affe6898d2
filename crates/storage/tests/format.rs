//! The bodies and tables of storage's records, against golden files. `PLINTH_BLESS=1` writes them
//! anew: only for a new version of a format.

#![allow(clippy::disallowed_methods)]

#[path = "../../../tests/format/golden.rs"]
mod golden;

use plinth_protocol::stripe::{Code, FragmentHeader, Owner, Sealing, StripeRef};
use plinth_protocol::wire::Wire;
use plinth_protocol::{BucketId, FragmentId, PgId, StripeId, UploadId, WriterId};
use plinth_storage::checkpoint::{
    PartPlace, PartRows, RootBody, Rows, SegmentLife, Table, decode_note, decode_rows, encode_note,
};
use plinth_storage::tombstone::TombstoneBody;
use plinth_storage::{DeadRecord, IndexEntry, Place};

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

fn fragment(number: u64) -> FragmentId {
    FragmentId { stripe: StripeId::new(WriterId(0x0102_0304_0506), number, 0xabcdef), index: number as u8 }
}

fn place(segment: u32) -> Place {
    Place { segment, block: 0xfedc, body_bytes: 300, payload_blocks: 1024 }
}

fn header() -> FragmentHeader {
    FragmentHeader {
        fragment: fragment(3),
        stripe: StripeRef {
            stripe: fragment(3).stripe,
            pg: PgId(17),
            generation: 2,
            code: Code::new(8, 3),
            payload_bytes: 1_000_000,
            fragment_payload_bytes: 125_000,
            missing: Some(0b100),
            plain_bytes: Some(2_000_000),
            sealing: Some(Sealing { algorithm: 1, key: 9, nonce: 7 }),
            pack_offset: None,
        },
        owner: Some(Owner {
            bucket: BucketId(5),
            key: "a/key".into(),
            upload: Some(UploadId(6)),
            part: Some(2),
            ordinal: 1,
            offset: 1_000_000,
        }),
        made: 0x1234_5678,
    }
}

fn records() -> String {
    let entries = [
        IndexEntry { fragment: fragment(1), place: place(7), quarantined: false },
        IndexEntry { fragment: fragment(2), place: place(8), quarantined: true },
    ];
    let dead = [
        DeadRecord { fragment: fragment(1), segment: 5, tombstone: None },
        DeadRecord { fragment: fragment(4), segment: 5, tombstone: Some(9) },
    ];
    let lives = [
        SegmentLife { segment: 5, life: 1000, damaged: false },
        SegmentLife { segment: 7, life: u64::MAX - 1, damaged: true },
    ];

    let mut text = String::from("# Records of a storage disk: bodies, and rows of checkpoint tables.\n");
    text += &hex("fragment body", &header().to_wire());
    let tombstone = TombstoneBody { fragments: vec![fragment(1), fragment(4)] };
    assert_eq!(TombstoneBody::decode(&tombstone.to_wire()).as_ref(), Ok(&tombstone));
    text += &hex("tombstone body", &tombstone.to_wire());
    let mut tables = [Table::Segments, Table::Index, Table::Dead].map(|table| PartRows::new(table, 2));
    lives.iter().for_each(|life| tables[0].push_segment(*life));
    entries.iter().for_each(|entry| tables[1].push_entry(entry));
    dead.iter().for_each(|record| tables[2].push_dead(record));
    let rows = [Rows::Segments(lives.to_vec()), Rows::Index(entries.to_vec()), Rows::Dead(dead.to_vec())];
    for (part, rows) in tables.into_iter().zip(rows) {
        let (body, payload) = part.finish(3);
        assert_eq!(decode_rows(&body, &payload), Ok(rows));
        text += &hex(&format!("{:?} part body", body.table), &body.to_wire());
        text += &hex(&format!("{:?} part rows", body.table), &payload);
    }
    let root = RootBody {
        checkpoint: 3,
        replay_from: 12_345,
        parts: vec![PartPlace::from(place(20)), PartPlace::from(place(21))],
        fragments: 2,
    };
    text += &hex("root body", &root.to_wire());
    let note = Place { payload_blocks: 0, ..place(21) };
    assert_eq!(decode_note(&encode_note(note)), Ok(note));
    text + &hex("superblock note", &encode_note(note))
}

#[test]
fn record_bodies_are_those_of_the_golden_file() {
    golden::assert_golden("storage_records.hex", &records());
}

#[test]
fn truncated_or_padded_notes_are_refused() {
    let note = encode_note(place(21));
    assert!(decode_note(&note[..note.len() - 1]).is_err());
    assert!(decode_note(&[]).is_err());
}
