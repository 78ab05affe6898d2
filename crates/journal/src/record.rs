//! Records: how an append lies in a segment.
//!
//! A record is a head of 128 bytes, the body right behind it, zeros up to a whole block, then the
//! payload in whole blocks, untouched. A small body thus shares the head's first block. Integers
//! are little-endian.
//!
//! | offset | bytes | content                                                                   |
//! |--------|-------|---------------------------------------------------------------------------|
//! | 0      | 8     | magic `PLNREC1\n`                                                          |
//! | 8      | 2     | format version: 1                                                         |
//! | 10     | 1     | kind: 1 seal, 2 mount, from 16 on the consumer's                           |
//! | 11     | 1     | stream: 0 main, 1 relocation, 2 checkpoint                                |
//! | 12     | 4     | body length in bytes                                                      |
//! | 16     | 4     | payload length in bytes, whole blocks                                     |
//! | 20     | 4     | CRC-32 of the body                                                        |
//! | 24     | 4     | CRC-32 of the payload                                                     |
//! | 28     | 4     | mount: how often the disk had been mounted, this time included            |
//! | 32     | 8     | sequence: unique and ascending over the life of the disk                  |
//! | 40     | 8     | generation of the segment: the sequence of its first record               |
//! | 48     | 4     | number of the segment                                                     |
//! | 52     | 4     | offset of the record in the segment in bytes                              |
//! | 56     | 8     | stamp: drawn at random when the disk was formatted                        |
//! | 64     | 8     | chain: CRC-64/NVME of the 128 head bytes of the stream's previous record   |
//! | 72     | 24    | durable floors: per stream, the last sequence known durable at this write |
//! | 96     | 28    | zero                                                                      |
//! | 124    | 4     | CRC-32 of bytes [0, 124)                                                  |
//!
//! A seal ends its segment. A mount's body is 8 bytes: the last sequence that the recovery kept;
//! sequences between it and the mount's own are void for ever. Where a segment has no room left for
//! more than a seal, a mount writes its body in a seal; other seals have none.

use crate::disk::SegmentIndex;
use crate::fields::{crc_fits, get, put, put_crc, u32_at, u64_at};
use crate::planted::{Bug, planted};
use plinth_protocol::buffer::{BLOCK_BYTES, round_up_to_block};
use std::fmt;

/// Bytes of a record's head; the body follows.
pub const HEAD_BYTES: usize = 128;
/// Most bytes in a body.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Most bytes in a payload.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// The lowest kind that a consumer may give its records.
pub const KIND_CONSUMER_MIN: u8 = 16;

pub(crate) const KIND_SEAL: u8 = 1;
pub(crate) const KIND_MOUNT: u8 = 2;
/// Bytes of a mount's body: the sequence that it has kept.
pub(crate) const MOUNT_BODY_BYTES: usize = 8;
pub(crate) const RECORD_MAGIC: [u8; 8] = *b"PLNREC1\n";
pub(crate) const RECORD_VERSION: u16 = 1;
const HEAD_CRC_OFFSET: usize = 124;

/// The place of a record in the one order of its disk: unique, ascending, with gaps at mounts.
/// 0 stands before the first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}
impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One life of a segment between two recyclings: the sequence of its first record. 0 where the
/// segment was never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}
impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a record goes. Each stream fills a segment of its own, so that records of one age or use
/// lie together; all streams share one order of sequences and one group commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// New records.
    Main = 0,
    /// Records that compaction moves.
    Relocation = 1,
    /// The consumer's checkpoints.
    Checkpoint = 2,
}

/// How many streams there are.
pub const STREAM_COUNT: usize = 3;

impl Stream {
    /// All streams, by number.
    pub const ALL: [Stream; STREAM_COUNT] = [Stream::Main, Stream::Relocation, Stream::Checkpoint];

    pub(crate) fn from_number(number: u8) -> Option<Stream> {
        Stream::ALL.get(usize::from(number)).copied()
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Where a record starts on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment.
    pub segment: SegmentIndex,
    /// Byte offset of the record's head in the segment, whole blocks.
    pub offset: u32,
}

/// Returns the bytes on disk of head and body: the payload's offset in its record.
pub const fn head_and_body_bytes(body: usize) -> usize {
    round_up_to_block(HEAD_BYTES + body)
}

/// Returns the bytes on disk of a whole record. `payload` is whole blocks.
pub const fn record_bytes(body: usize, payload: usize) -> usize {
    head_and_body_bytes(body) + payload
}

/// A record's head as it was read or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the record is; from [`KIND_CONSUMER_MIN`] on the consumer's own.
    pub kind: u8,
    /// Its stream.
    pub stream: Stream,
    /// Bytes of body.
    pub body_bytes: u32,
    /// Bytes of payload, whole blocks.
    pub payload_bytes: u32,
    /// CRC-32 of the body.
    pub body_crc: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
    /// Mount under which it was written.
    pub mount: u32,
    /// Its place in the order.
    pub sequence: Sequence,
    /// The segment's life.
    pub generation: Generation,
    /// Where it was meant to be.
    pub position: Position,
    /// The disk's random stamp.
    pub stamp: u64,
    /// Hash of the stream's previous head.
    pub chain: u64,
    /// Per stream, the last sequence known durable when this was written.
    pub floors: [Sequence; STREAM_COUNT],
}

/// Why bytes are not the record that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No head of this version, or one whose checksum fails.
    #[error("no record head")]
    Head,
    /// A whole head, but of another disk or place: a misdirected or stale write.
    #[error("record of another place")]
    Identity,
    /// The input ends before the record does.
    #[error("record is cut short")]
    Truncated,
    /// The body's checksum fails.
    #[error("body checksum mismatch")]
    Body,
    /// The payload's checksum fails.
    #[error("payload checksum mismatch")]
    Payload,
}

/// Returns the chain hash of a head's bytes, for the stream's next record.
pub(crate) fn chain_hash(head: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &head[..HEAD_BYTES])
}

impl Head {
    /// Bytes of the whole record on disk.
    pub fn record_bytes(&self) -> u32 {
        self.payload_offset() + self.payload_bytes
    }

    /// Bytes of head and body on disk: where the payload starts.
    pub fn payload_offset(&self) -> u32 {
        head_and_body_bytes(self.body_bytes as usize) as u32
    }

    /// Writes the head into the first [`HEAD_BYTES`] of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..HEAD_BYTES];
        out.fill(0);
        put(out, 0, RECORD_MAGIC);
        put(out, 8, RECORD_VERSION.to_le_bytes());
        out[10] = self.kind;
        out[11] = self.stream as u8;
        put(out, 12, self.body_bytes.to_le_bytes());
        put(out, 16, self.payload_bytes.to_le_bytes());
        put(out, 20, self.body_crc.to_le_bytes());
        put(out, 24, self.payload_crc.to_le_bytes());
        put(out, 28, self.mount.to_le_bytes());
        put(out, 32, self.sequence.0.to_le_bytes());
        put(out, 40, self.generation.0.to_le_bytes());
        put(out, 48, self.position.segment.0.to_le_bytes());
        put(out, 52, self.position.offset.to_le_bytes());
        put(out, 56, self.stamp.to_le_bytes());
        put(out, 64, self.chain.to_le_bytes());
        put_floors(out, 72, &self.floors);
        put_crc(out, HEAD_CRC_OFFSET);
    }

    /// Reads a head; only checks that it is whole and of this version.
    pub fn decode(input: &[u8]) -> Result<Head, RecordError> {
        let input = input.get(..HEAD_BYTES).ok_or(RecordError::Truncated)?;
        if input[..8] != RECORD_MAGIC
            || !crc_fits(input, HEAD_CRC_OFFSET)
            || get(input, 8) != RECORD_VERSION.to_le_bytes()
        {
            return Err(RecordError::Head);
        }
        let head = Head {
            kind: input[10],
            stream: Stream::from_number(input[11]).ok_or(RecordError::Head)?,
            body_bytes: u32_at(input, 12),
            payload_bytes: u32_at(input, 16),
            body_crc: u32_at(input, 20),
            payload_crc: u32_at(input, 24),
            mount: u32_at(input, 28),
            sequence: Sequence(u64_at(input, 32)),
            generation: Generation(u64_at(input, 40)),
            position: Position { segment: SegmentIndex(u32_at(input, 48)), offset: u32_at(input, 52) },
            stamp: u64_at(input, 56),
            chain: u64_at(input, 64),
            floors: floors_at(input, 72),
        };
        let bounded = head.body_bytes as usize <= BODY_BYTES_MAX
            && head.payload_bytes as usize <= PAYLOAD_BYTES_MAX
            && (head.payload_bytes as usize).is_multiple_of(BLOCK_BYTES);
        if bounded { Ok(head) } else { Err(RecordError::Head) }
    }
}

pub(crate) fn put_floors(out: &mut [u8], offset: usize, floors: &[Sequence; STREAM_COUNT]) {
    for (index, floor) in floors.iter().enumerate() {
        put(out, offset + 8 * index, floor.0.to_le_bytes());
    }
}

pub(crate) fn floors_at(input: &[u8], offset: usize) -> [Sequence; STREAM_COUNT] {
    std::array::from_fn(|index| Sequence(u64_at(input, offset + 8 * index)))
}

/// A whole record in memory, verified.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Its head.
    pub head: Head,
    /// Its body.
    pub body: &'a [u8],
    /// Its payload.
    pub payload: &'a [u8],
}

/// Verifies a whole record that was read from `position` of the disk with this stamp, in the
/// segment's life `generation`: head, identity, body and payload.
pub fn verify_record(
    input: &[u8],
    position: Position,
    generation: Generation,
    stamp: u64,
) -> Result<RecordView<'_>, RecordError> {
    let head = Head::decode(input)?;
    if head.position != position || head.generation != generation || head.stamp != stamp {
        return Err(RecordError::Identity);
    }
    let input = input.get(..head.record_bytes() as usize).ok_or(RecordError::Truncated)?;
    let body = &input[HEAD_BYTES..HEAD_BYTES + head.body_bytes as usize];
    let payload = &input[head.payload_offset() as usize..];
    if !sum_fits(body, head.body_crc) {
        return Err(RecordError::Body);
    }
    if !sum_fits(payload, head.payload_crc) {
        return Err(RecordError::Payload);
    }
    Ok(RecordView { head, body, payload })
}

/// Returns whether the CRC-32 of body or payload is the head's.
pub(crate) fn sum_fits(bytes: &[u8], crc: u32) -> bool {
    planted(Bug::IgnoreChecksum) || crc32fast::hash(bytes) == crc
}
