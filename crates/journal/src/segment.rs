//! Segment heads: the life of a segment.
//!
//! A segment's first and last block hold its head, twice the same, each within one 512-byte sector
//! so that it can't be torn; records lie between. Integers are little-endian.
//!
//! | offset | bytes | content                                                                   |
//! |--------|-------|---------------------------------------------------------------------------|
//! | 0      | 8     | magic `PLNSEG1\n`                                                          |
//! | 8      | 2     | format version: 1                                                         |
//! | 10     | 1     | state: 1 used, 2 free                                                     |
//! | 11     | 1     | stream                                                                    |
//! | 12     | 4     | number of the segment                                                     |
//! | 16     | 4     | bytes of the segment                                                      |
//! | 20     | 4     | mount under which this was written                                        |
//! | 24     | 8     | stamp of the disk                                                         |
//! | 32     | 8     | generation: sequence of the first record                                  |
//! | 40     | 4     | prior segment of the stream; 0xffff_ffff: none                            |
//! | 44     | 4     | zero                                                                      |
//! | 48     | 8     | prior segment's generation                                                |
//! | 56     | 24    | durable floors: per stream, the last sequence known durable at this write |
//! | 80     | 44    | zero                                                                      |
//! | 124    | 4     | CRC-32 of bytes [0, 124)                                                  |
//!
//! A block of zeros is a segment that was never used. Of two heads that differ, the higher
//! generation counts, and of one generation the free one: a release was under way.

use crate::disk::SegmentIndex;
use crate::fields::{crc_fits, get, put, put_crc, u32_at, u64_at};
use crate::record::{Generation, STREAM_COUNT, Sequence, Stream, floors_at, put_floors};
use plinth_protocol::buffer::BLOCK_BYTES;

/// Offset of a segment's first record in bytes.
pub const RECORDS_START: u32 = BLOCK_BYTES as u32;
/// Least bytes of a segment.
pub const SEGMENT_BYTES_MIN: u32 = 64 << 10;
/// Most bytes of a segment.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;

const SEGMENT_MAGIC: [u8; 8] = *b"PLNSEG1\n";
const SEGMENT_VERSION: u16 = 1;
const CRC_OFFSET: usize = 124;
const NO_SEGMENT: u32 = u32::MAX;

/// Returns where records must end in a segment of `segment_bytes`: before the second head.
pub(crate) const fn records_end(segment_bytes: u32) -> u32 {
    segment_bytes - BLOCK_BYTES as u32
}

/// A segment's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Whether its records count.
    pub used: bool,
    /// The stream that filled it.
    pub stream: Stream,
    /// Its number.
    pub segment: SegmentIndex,
    /// Its size.
    pub segment_bytes: u32,
    /// Mount under which this was written.
    pub mount: u32,
    /// The disk's random stamp.
    pub stamp: u64,
    /// Its life.
    pub generation: Generation,
    /// The stream's segment before it.
    pub prior: Option<(SegmentIndex, Generation)>,
    /// Per stream, the last sequence known durable when this was written.
    pub floors: [Sequence; STREAM_COUNT],
}

/// What a head block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadBlock {
    /// Zeros: never used.
    Blank,
    /// A whole head of this very segment and disk.
    Head(SegmentHead),
    /// Anything else.
    Damaged,
}

impl SegmentHead {
    /// Writes the head into a zeroed block.
    pub fn encode(&self, block: &mut [u8]) {
        put(block, 0, SEGMENT_MAGIC);
        put(block, 8, SEGMENT_VERSION.to_le_bytes());
        block[10] = if self.used { 1 } else { 2 };
        block[11] = self.stream as u8;
        put(block, 12, self.segment.0.to_le_bytes());
        put(block, 16, self.segment_bytes.to_le_bytes());
        put(block, 20, self.mount.to_le_bytes());
        put(block, 24, self.stamp.to_le_bytes());
        put(block, 32, self.generation.0.to_le_bytes());
        let (prior, prior_generation) = self.prior.unwrap_or((SegmentIndex(NO_SEGMENT), Generation(0)));
        put(block, 40, prior.0.to_le_bytes());
        put(block, 48, prior_generation.0.to_le_bytes());
        put_floors(block, 56, &self.floors);
        put_crc(block, CRC_OFFSET);
    }

    /// Reads one of the two head blocks of `segment`.
    pub fn decode(block: &[u8], segment: SegmentIndex, stamp: u64) -> HeadBlock {
        if block.iter().all(|byte| *byte == 0) {
            return HeadBlock::Blank;
        }
        let whole = block.len() >= CRC_OFFSET + 4
            && block[..8] == SEGMENT_MAGIC
            && crc_fits(block, CRC_OFFSET)
            && get(block, 8) == SEGMENT_VERSION.to_le_bytes()
            && matches!(block[10], 1 | 2);
        let Some(stream) = whole.then(|| Stream::from_number(block[11])).flatten() else {
            return HeadBlock::Damaged;
        };
        let prior = SegmentIndex(u32_at(block, 40));
        let head = SegmentHead {
            used: block[10] == 1,
            stream,
            segment: SegmentIndex(u32_at(block, 12)),
            segment_bytes: u32_at(block, 16),
            mount: u32_at(block, 20),
            stamp: u64_at(block, 24),
            generation: Generation(u64_at(block, 32)),
            prior: (prior.0 != NO_SEGMENT).then(|| (prior, Generation(u64_at(block, 48)))),
            floors: floors_at(block, 56),
        };
        if head.segment == segment && head.stamp == stamp { HeadBlock::Head(head) } else { HeadBlock::Damaged }
    }
}

impl HeadBlock {
    /// Returns what the two head blocks of a segment say together.
    pub fn merge(front: HeadBlock, back: HeadBlock) -> HeadBlock {
        match (front, back) {
            (HeadBlock::Head(a), HeadBlock::Head(b)) => {
                let newer = (b.generation, !b.used) > (a.generation, !a.used);
                HeadBlock::Head(if newer { b } else { a })
            }
            (HeadBlock::Head(head), _) | (_, HeadBlock::Head(head)) => HeadBlock::Head(head),
            (HeadBlock::Blank, HeadBlock::Blank) => HeadBlock::Blank,
            (HeadBlock::Damaged, _) | (_, HeadBlock::Damaged) => HeadBlock::Damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(generation: u64, used: bool) -> HeadBlock {
        HeadBlock::Head(SegmentHead {
            used,
            stream: Stream::Relocation,
            segment: SegmentIndex(4),
            segment_bytes: SEGMENT_BYTES_MIN,
            mount: 2,
            stamp: 77,
            generation: Generation(generation),
            prior: Some((SegmentIndex(1), Generation(3))),
            floors: [Sequence(5), Sequence(0), Sequence(6)],
        })
    }

    #[test]
    fn the_newer_head_counts_and_a_release_beats_its_own_life() {
        assert_eq!(HeadBlock::merge(head(5, true), head(9, true)), head(9, true));
        assert_eq!(HeadBlock::merge(head(5, false), head(5, true)), head(5, false));
        assert_eq!(HeadBlock::merge(head(5, true), head(5, false)), head(5, false));
        assert_eq!(HeadBlock::merge(HeadBlock::Damaged, head(5, true)), head(5, true));
        assert_eq!(HeadBlock::merge(HeadBlock::Blank, HeadBlock::Damaged), HeadBlock::Damaged);
    }

    #[test]
    fn a_head_fits_in_one_sector_and_only_its_place() {
        let HeadBlock::Head(written) = head(5, true) else { unreachable!() };
        let mut block = vec![0; BLOCK_BYTES];
        written.encode(&mut block);
        assert!(block[512..].iter().all(|byte| *byte == 0));
        assert_eq!(SegmentHead::decode(&block, SegmentIndex(4), 77), head(5, true));
        assert_eq!(SegmentHead::decode(&block, SegmentIndex(5), 77), HeadBlock::Damaged);
        assert_eq!(SegmentHead::decode(&block, SegmentIndex(4), 78), HeadBlock::Damaged);
        assert_eq!(SegmentHead::decode(&vec![0; BLOCK_BYTES], SegmentIndex(4), 77), HeadBlock::Blank);
    }
}
