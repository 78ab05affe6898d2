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
//! A seal has no body and ends its segment. A mount's body is 8 bytes: the last sequence that the
//! recovery kept; sequences between it and the mount's own are void for ever.

use crate::disk::SegmentIndex;
use plinth_protocol::buffer::round_up_to_block;
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
pub(crate) const RECORD_MAGIC: [u8; 8] = *b"PLNREC1\n";
pub(crate) const RECORD_VERSION: u16 = 1;

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
