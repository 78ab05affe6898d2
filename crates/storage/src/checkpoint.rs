//! Checkpoints of the index: how they are cut into records.
//!
//! A checkpoint is a run of part records (kind [`KIND_CHECKPOINT_PART`]) and one root record (kind
//! [`KIND_CHECKPOINT_ROOT`]) behind them. Bodies are wire records ([`PartBody`], [`RootBody`]); the
//! payload of a part is a table of fixed rows, zero-padded to whole blocks. Integers are
//! little-endian.
//!
//! | table    | bytes | row                                                                        |
//! |----------|-------|----------------------------------------------------------------------------|
//! | segments | 16    | segment u32, flags u32 (1 = holds damage or records not understood), life u64 |
//! | index    | 28    | stripe u128, index u8, flags u8 (1 = quarantined), body bytes u16, segment u32, block u16, payload blocks u16 |
//! | dead     | 28    | stripe u128, index u8, flags u8 (1 = tombstone), zero u16, segment u32, tombstone's segment u32 |
//!
//! The note in the journal's superblock leads to the root: three varints, its segment, block, and
//! body bytes.

use crate::dead::DeadRecord;
use crate::index::{IndexEntry, Place};
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, round_up_to_block};
use plinth_protocol::wire::{WireError, decode_varint, encode_varint};
use plinth_protocol::{FragmentId, StripeId, numbered, record};

/// Record kind of a part.
pub const KIND_CHECKPOINT_PART: u8 = 18;
/// Record kind of a root.
pub const KIND_CHECKPOINT_ROOT: u8 = 19;

/// Largest payload of a part in bytes: about half a millisecond of encoding.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// Bytes of a row of the index and dead tables.
const ROW_BYTES: usize = 28;
/// Bytes of a row of the segment table.
const SEGMENT_ROW_BYTES: usize = 16;

/// Rows of the index and dead tables that fit in a part.
pub const PART_ROWS_MAX: usize = PART_BYTES_MAX / ROW_BYTES;
/// Rows of the segment table that fit in a part.
pub const PART_SEGMENTS_MAX: usize = PART_BYTES_MAX / SEGMENT_ROW_BYTES;

numbered! {
    /// What the rows of a part are.
    pub enum Table {
        /// Lives of the segments in use when the checkpoint began.
        Segments = 1,
        /// Fragments.
        Index = 2,
        /// Dead records.
        Dead = 3,
    }
}

record! {
    /// The body of a part record.
    pub struct PartBody {
        1 => checkpoint: u64,
        2 => table: Table,
        3 => rows: u32,
        /// CRC-32 of the rows.
        4 => checksum: u32,
    }
}

record! {
    /// The body of a root record: a checkpoint counts only once its root is durable.
    pub struct RootBody {
        1 => checkpoint: u64,
        /// Records from this sequence number on must be replayed on top.
        2 => replay_from: u64,
        /// Parts in order.
        3 => parts: Vec<PartPlace>,
        /// Rows of the index tables in all.
        4 => fragments: u64,
    }
}

record! {
    /// Where a part lies.
    pub struct PartPlace {
        1 => segment: u32,
        2 => block: u16,
        3 => body_bytes: u16,
        4 => payload_blocks: u16,
    }
}

impl From<Place> for PartPlace {
    fn from(place: Place) -> Self {
        let Place { segment, block, body_bytes, payload_blocks } = place;
        PartPlace { segment, block, body_bytes, payload_blocks }
    }
}

impl From<&PartPlace> for Place {
    fn from(part: &PartPlace) -> Self {
        let &PartPlace { segment, block, body_bytes, payload_blocks } = part;
        Place { segment, block, body_bytes, payload_blocks }
    }
}

/// A segment and the life in which a checkpoint saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLife {
    /// The segment's number.
    pub segment: u32,
    /// Which use of the segment it is; differs after every reuse.
    pub life: u64,
    /// Whether it holds damage or records that are not understood: it is kept for that.
    pub damaged: bool,
}

/// Rows of one kind on their way into a part.
pub struct PartRows {
    table: Table,
    buffer: AlignedBuf,
    length: usize,
    rows: u32,
}

impl PartRows {
    /// Begins a part with room for `rows` rows.
    pub fn new(table: Table, rows: usize) -> Self {
        let each = if table == Table::Segments { SEGMENT_ROW_BYTES } else { ROW_BYTES };
        let bytes = (rows * each).min(PART_BYTES_MAX);
        PartRows { table, buffer: AlignedBuf::zeroed(round_up_to_block(bytes)), length: 0, rows: 0 }
    }

    fn row(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.length;
        self.length += bytes;
        self.rows += 1;
        &mut self.buffer[start..start + bytes]
    }

    /// Appends a fragment.
    pub fn push_entry(&mut self, entry: &IndexEntry) {
        let (id, place) = (entry.fragment, entry.place);
        let row = self.row(ROW_BYTES);
        row[..16].copy_from_slice(&id.stripe.0.to_le_bytes());
        row[16] = id.index;
        row[17] = u8::from(entry.quarantined);
        row[18..20].copy_from_slice(&place.body_bytes.to_le_bytes());
        row[20..24].copy_from_slice(&place.segment.to_le_bytes());
        row[24..26].copy_from_slice(&place.block.to_le_bytes());
        row[26..28].copy_from_slice(&place.payload_blocks.to_le_bytes());
    }

    /// Appends a dead record.
    pub fn push_dead(&mut self, dead: &DeadRecord) {
        let row = self.row(ROW_BYTES);
        row[..16].copy_from_slice(&dead.fragment.stripe.0.to_le_bytes());
        row[16] = dead.fragment.index;
        row[17] = u8::from(dead.tombstone.is_some());
        row[20..24].copy_from_slice(&dead.segment.to_le_bytes());
        row[24..28].copy_from_slice(&dead.tombstone.unwrap_or(0).to_le_bytes());
    }

    /// Appends a segment's life.
    pub fn push_segment(&mut self, segment: SegmentLife) {
        let row = self.row(SEGMENT_ROW_BYTES);
        row[..4].copy_from_slice(&segment.segment.to_le_bytes());
        row[4] = u8::from(segment.damaged);
        row[8..16].copy_from_slice(&segment.life.to_le_bytes());
    }

    /// Returns the part's body and payload.
    pub fn finish(self, checkpoint: u64) -> (PartBody, Bytes) {
        let checksum = crc32fast::hash(&self.buffer[..self.length]);
        let body = PartBody { checkpoint, table: self.table, rows: self.rows, checksum };
        (body, self.buffer.freeze())
    }
}

/// The rows of a part as they were read.
#[derive(Debug, PartialEq, Eq)]
pub enum Rows {
    /// Lives of segments.
    Segments(Vec<SegmentLife>),
    /// Fragments.
    Index(Vec<IndexEntry>),
    /// Dead records.
    Dead(Vec<DeadRecord>),
}

/// Reads the rows of a part; fails where length or checksum do not fit.
pub fn decode_rows(body: &PartBody, payload: &[u8]) -> Result<Rows, WireError> {
    let each = if body.table == Table::Segments { SEGMENT_ROW_BYTES } else { ROW_BYTES };
    let length = body.rows as usize * each;
    let rows = payload.get(..length).ok_or(WireError::Truncated)?;
    if crc32fast::hash(rows) != body.checksum {
        return Err(WireError::Malformed("checksum of a checkpoint part"));
    }
    let rows = rows.chunks_exact(each);
    Ok(match body.table {
        Table::Segments => Rows::Segments(
            rows.map(|row| SegmentLife {
                segment: u32_at(row, 0),
                life: u64::from(u32_at(row, 8)) | u64::from(u32_at(row, 12)) << 32,
                damaged: row[4] & 1 != 0,
            })
            .collect(),
        ),
        Table::Index => Rows::Index(rows.map(decode_entry).collect()),
        Table::Dead => Rows::Dead(rows.map(decode_dead).collect()),
    })
}

fn decode_entry(row: &[u8]) -> IndexEntry {
    IndexEntry {
        fragment: fragment_at(row),
        place: Place {
            segment: u32_at(row, 20),
            block: u16_at(row, 24),
            body_bytes: u16_at(row, 18),
            payload_blocks: u16_at(row, 26),
        },
        quarantined: row[17] & 1 != 0,
    }
}

fn decode_dead(row: &[u8]) -> DeadRecord {
    let tombstone = (row[17] & 1 != 0).then(|| u32_at(row, 24));
    DeadRecord { fragment: fragment_at(row), segment: u32_at(row, 20), tombstone }
}

fn fragment_at(row: &[u8]) -> FragmentId {
    let stripe = row[..16].try_into().map(u128::from_le_bytes).expect("16 bytes are 16 bytes");
    FragmentId { stripe: StripeId(stripe), index: row[16] }
}

fn u16_at(row: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([row[at], row[at + 1]])
}

fn u32_at(row: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

/// Returns the note for the journal's superblock: where the root lies.
pub fn encode_note(root: Place) -> Bytes {
    let mut note = Vec::with_capacity(12);
    for number in [u64::from(root.segment), u64::from(root.block), u64::from(root.body_bytes)] {
        encode_varint(number, &mut note);
    }
    Bytes::from(note)
}

/// Reads the note in the journal's superblock; its place has no payload.
pub fn decode_note(mut note: &[u8]) -> Result<Place, WireError> {
    let mut number = |name| decode_varint(&mut note).map(|number| (number, name));
    let (segment, block, body_bytes) = (number("segment")?, number("block")?, number("body bytes")?);
    let narrow = |(number, name): (u64, &'static str)| u16::try_from(number).map_err(|_| WireError::OutOfRange(name));
    Ok(Place {
        segment: u32::try_from(segment.0).map_err(|_| WireError::OutOfRange(segment.1))?,
        block: narrow(block)?,
        body_bytes: narrow(body_bytes)?,
        payload_blocks: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_damage_shows() {
        let entries: Vec<IndexEntry> = (0..1000u32)
            .map(|number| IndexEntry {
                fragment: FragmentId { stripe: StripeId(u128::from(number) << 99 | 5), index: number as u8 },
                place: Place { segment: number * 7, block: 65_535, body_bytes: number as u16, payload_blocks: 1024 },
                quarantined: number % 2 == 0,
            })
            .collect();
        let mut rows = PartRows::new(Table::Index, entries.len());
        entries.iter().for_each(|entry| rows.push_entry(entry));
        let (body, payload) = rows.finish(9);
        assert_eq!(decode_rows(&body, &payload), Ok(Rows::Index(entries)));
        let mut bad = payload.to_vec();
        bad[500] ^= 1;
        assert!(decode_rows(&body, &bad).is_err());
        assert!(decode_rows(&body, &payload[..4096]).is_err());
    }
}
