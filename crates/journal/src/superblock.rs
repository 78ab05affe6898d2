//! The superblock: what the disk is, and where recovery starts.
//!
//! Four copies lie at [`COPY_OFFSETS`] of the super area, one block each. Integers are
//! little-endian.
//!
//! | offset | bytes | content                                                                   |
//! |--------|-------|---------------------------------------------------------------------------|
//! | 0      | 8     | magic `PLNSUPR1`                                                          |
//! | 8      | 2     | format version: 1                                                         |
//! | 10     | 1     | number of the copy, 0 to 3                                                |
//! | 11     | 1     | whether a checkpoint follows at 128                                       |
//! | 12     | 4     | mount: counts mounts                                                      |
//! | 16     | 8     | compatible features: who does not know one may ignore it                  |
//! | 24     | 8     | read-only compatible features: who does not know one may not write        |
//! | 32     | 8     | incompatible features: who does not know one must refuse                  |
//! | 40     | 16    | cluster id                                                                |
//! | 56     | 16    | disk id                                                                   |
//! | 72     | 8     | incarnation                                                               |
//! | 80     | 8     | sequence: counts superblock updates                                       |
//! | 88     | 8     | stamp: the disk's random number                                           |
//! | 96     | 4     | bytes of each segment                                                     |
//! | 100    | 4     | most segments                                                             |
//! | 104    | 8     | base: the first sequence that the current mount may use                    |
//! | 112    | 16    | zero                                                                      |
//! | 128    | 8     | checkpoint's mark: sequence                                               |
//! | 136    | 120   | checkpoint's mark: per stream an end of 40 bytes, see below               |
//! | 256    | 2     | length of the checkpoint's note                                           |
//! | 258    | 256   | the note                                                                  |
//! | 514    | 6     | zero                                                                      |
//! | 520    | 24    | durable floors per stream when the current mount began                    |
//! | 544    | 3548  | zero                                                                      |
//! | 4092   | 4     | CRC-32 of bytes [0, 4092)                                                 |
//!
//! A stream's end: segment 4 (0xffff_ffff: the stream is empty), offset 4, generation 8, sequence 8,
//! chain hash 8, zero 8.
//!
//! A copy counts where its checksum fits. The superblock is the one of the highest sequence that
//! two copies agree on; one copy alone never decides. An update first writes two copies while the
//! two others still agree, syncs, then writes those and syncs again: at each moment two whole
//! copies of one state are durable.
//!
//! The floor slots lie at [`SLOT_OFFSETS`] and are written by turns when the journal is quiet, so
//! that rot of the newest batch can be told from a torn tail:
//!
//! | offset | bytes | content                                                                   |
//! |--------|-------|---------------------------------------------------------------------------|
//! | 0      | 8     | magic `PLNFLOR1`                                                          |
//! | 8      | 2     | format version: 1                                                         |
//! | 10     | 2     | length of the consumer's note                                             |
//! | 12     | 4     | mount                                                                     |
//! | 16     | 8     | stamp of the disk                                                         |
//! | 24     | 8     | counter: the higher one is the newer slot                                 |
//! | 32     | 24    | durable floors per stream                                                 |
//! | 56     | 256   | the note                                                                  |
//! | 312    | 196   | zero                                                                      |
//! | 508    | 4     | CRC-32 of bytes [0, 508)                                                  |

use crate::disk::{Fill, SegmentIndex};
use crate::error::JournalError;
use crate::fields::{crc_fits, get, put, put_crc, u32_at, u64_at};
use crate::record::{Generation, STREAM_COUNT, Sequence, floors_at, put_floors};
use crate::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};

/// Where the four copies lie in the super area, in bytes.
pub const COPY_OFFSETS: [u64; 4] = [0, 256 << 10, 512 << 10, 768 << 10];
/// Where the two floor slots lie in the super area, in bytes.
pub const SLOT_OFFSETS: [u64; 2] = [128 << 10, 640 << 10];
/// Incompatible features that this version knows.
pub const FEATURES_INCOMPATIBLE_KNOWN: u64 = 0;
/// Read-only compatible features that this version knows.
pub const FEATURES_RO_COMPATIBLE_KNOWN: u64 = 0;

const MAGIC: [u8; 8] = *b"PLNSUPR1";
const SLOT_MAGIC: [u8; 8] = *b"PLNFLOR1";
const VERSION: u16 = 1;
const CRC_OFFSET: usize = BLOCK_BYTES - 4;
const SLOT_CRC_OFFSET: usize = 508;
const NO_SEGMENT: u32 = u32::MAX;

/// Most bytes of a checkpoint's or a floor slot's note.
pub const NOTE_BYTES_MAX: usize = 256;

/// Whose disk it must be, or no mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: Incarnation,
}

/// What a fresh disk shall be.
#[derive(Clone, Debug)]
pub struct Format {
    /// Whose disk it becomes.
    pub identity: DiskIdentity,
    /// Bytes of each segment: whole blocks, 64 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// Most segments; they are made as they are needed.
    pub segment_count_max: u32,
    /// Segments made at once, at least 1.
    pub segment_count_initial: u32,
    /// How they are made.
    pub fill: Fill,
    /// A random number of the disk's own, in every record: the caller's chance.
    pub stamp: u64,
}

/// The superblock as it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Features that a version which does not know them may ignore.
    pub features_compatible: u64,
    /// Features that a version which does not know them may read past, but not write.
    pub features_ro_compatible: u64,
    /// Features that a version which does not know them must refuse.
    pub features_incompatible: u64,
    /// Whose disk it is.
    pub identity: DiskIdentity,
    /// Counts superblock updates.
    pub sequence: u64,
    /// Bytes of each segment.
    pub segment_bytes: u32,
    /// Most segments.
    pub segment_count_max: u32,
    /// Counts mounts: the boot counter.
    pub mount: u32,
    /// The first sequence that the current mount may use: a mount that leaves no trace uses up its own.
    pub base: Sequence,
    /// Per stream, the last record that was durable when the current mount began.
    pub floors: [Sequence; STREAM_COUNT],
    /// The disk's random number.
    pub stamp: u64,
    /// Where recovery starts.
    pub checkpoint: Option<Checkpoint>,
}

/// A consumer's checkpoint: its state up to a mark is kept elsewhere, and `note` says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The state holds every record up to here.
    pub mark: Mark,
    /// The consumer's own words, at most [`NOTE_BYTES_MAX`]: for example the position of the checkpoint's root record.
    pub note: Bytes,
}

/// The end of the durable records at one moment: per stream, and over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Every record up to this sequence stands before the mark, every other one behind it.
    pub sequence: Sequence,
    /// The end of each stream.
    pub ends: [Option<StreamEnd>; STREAM_COUNT],
}

/// The end of a stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// Its segment.
    pub segment: SegmentIndex,
    /// The segment's life.
    pub generation: Generation,
    /// Byte offset behind the last record.
    pub offset: u32,
    /// The last record of the stream.
    pub sequence: Sequence,
    /// Chain hash of the last record.
    pub chain: u64,
}

impl Format {
    /// Checks the bounds.
    pub fn check(&self) -> Result<(), JournalError> {
        let bytes = self.segment_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(BLOCK_BYTES as u32) {
            return Err(JournalError::Invalid(format!("segment of {bytes} bytes: 64 KiB to 1 GiB in whole blocks")));
        }
        if self.segment_count_initial == 0 || self.segment_count_initial > self.segment_count_max {
            return Err(JournalError::Invalid("at least one segment, at most segment_count_max".into()));
        }
        if self.segment_count_max == NO_SEGMENT {
            return Err(JournalError::Invalid("too many segments".into()));
        }
        Ok(())
    }
}

impl Superblock {
    /// Returns the superblock of a fresh disk.
    pub(crate) fn fresh(format: &Format) -> Superblock {
        Superblock {
            features_compatible: 0,
            features_ro_compatible: 0,
            features_incompatible: 0,
            identity: format.identity,
            sequence: 1,
            segment_bytes: format.segment_bytes,
            segment_count_max: format.segment_count_max,
            mount: 0,
            base: Sequence(1),
            floors: [Sequence(0); STREAM_COUNT],
            stamp: format.stamp,
            checkpoint: None,
        }
    }

    /// Returns the block of one copy.
    pub(crate) fn encode(&self, copy: u8) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        put(&mut block, 0, MAGIC);
        put(&mut block, 8, VERSION.to_le_bytes());
        block[10] = copy;
        block[11] = u8::from(self.checkpoint.is_some());
        put(&mut block, 12, self.mount.to_le_bytes());
        put(&mut block, 16, self.features_compatible.to_le_bytes());
        put(&mut block, 24, self.features_ro_compatible.to_le_bytes());
        put(&mut block, 32, self.features_incompatible.to_le_bytes());
        put(&mut block, 40, self.identity.cluster.0.to_le_bytes());
        put(&mut block, 56, self.identity.disk.0.to_le_bytes());
        put(&mut block, 72, self.identity.incarnation.0.to_le_bytes());
        put(&mut block, 80, self.sequence.to_le_bytes());
        put(&mut block, 88, self.stamp.to_le_bytes());
        put(&mut block, 96, self.segment_bytes.to_le_bytes());
        put(&mut block, 100, self.segment_count_max.to_le_bytes());
        put(&mut block, 104, self.base.0.to_le_bytes());
        put_floors(&mut block, 520, &self.floors);
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.encode(&mut block);
        }
        put_crc(&mut block, CRC_OFFSET);
        block
    }

    /// Reads one copy; None where it is not whole or not of this place.
    pub(crate) fn decode(block: &[u8], copy: u8) -> Option<Superblock> {
        let whole = block.len() == BLOCK_BYTES
            && block[..8] == MAGIC
            && crc_fits(block, CRC_OFFSET)
            && get(block, 8) == VERSION.to_le_bytes()
            && block[10] == copy;
        if !whole {
            return None;
        }
        let checkpoint = if block[11] == 0 { None } else { Some(Checkpoint::decode(block)?) };
        Some(Superblock {
            features_compatible: u64_at(block, 16),
            features_ro_compatible: u64_at(block, 24),
            features_incompatible: u64_at(block, 32),
            identity: DiskIdentity {
                cluster: ClusterId(u128::from_le_bytes(get(block, 40))),
                disk: DiskId(u128::from_le_bytes(get(block, 56))),
                incarnation: Incarnation(u64_at(block, 72)),
            },
            sequence: u64_at(block, 80),
            segment_bytes: u32_at(block, 96),
            segment_count_max: u32_at(block, 100),
            mount: u32_at(block, 12),
            base: Sequence(u64_at(block, 104)),
            floors: floors_at(block, 520),
            stamp: u64_at(block, 88),
            checkpoint,
        })
    }

    /// Returns the superblock that two copies agree on, of the highest sequence.
    pub(crate) fn agree(copies: &[Option<Superblock>; 4]) -> Result<Superblock, JournalError> {
        let agreed =
            copies.iter().flatten().filter(|one| copies.iter().flatten().filter(|two| two == one).count() >= 2);
        let Some(best) = agreed.max_by_key(|superblock| superblock.sequence) else {
            let whole = copies.iter().flatten().count();
            return Err(JournalError::NoSuperblock(format!("{whole} of 4 copies are whole, no two agree")));
        };
        if copies.iter().flatten().any(|other| other.sequence == best.sequence && other != best) {
            return Err(JournalError::NoSuperblock(format!("copies of sequence {} contradict", best.sequence)));
        }
        Ok(best.clone())
    }

    /// Returns the order in which an update writes the copies: two, a sync, two more. Copies that
    /// are not of the current state come first, so that two current ones stay until two new are durable.
    pub(crate) fn update_order(copies: &[Option<Superblock>; 4], current: &Superblock) -> [u8; 4] {
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|copy| copies[usize::from(*copy)].as_ref() == Some(current));
        order
    }

    /// Refuses what this version must not read.
    pub(crate) fn check(&self, expected: Option<DiskIdentity>) -> Result<(), JournalError> {
        let unknown = self.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(JournalError::Incompatible(unknown));
        }
        if expected.is_some_and(|expected| expected != self.identity) {
            let DiskIdentity { cluster, disk, incarnation } = self.identity;
            return Err(JournalError::Foreign {
                found_cluster: cluster,
                found_disk: disk,
                found_incarnation: incarnation,
            });
        }
        let bounded = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            && self.segment_bytes.is_multiple_of(BLOCK_BYTES as u32);
        if bounded { Ok(()) } else { Err(JournalError::NoSuperblock("segment size out of bounds".into())) }
    }
}

impl Checkpoint {
    fn encode(&self, block: &mut [u8]) {
        assert!(self.note.len() <= NOTE_BYTES_MAX, "a note is at most 256 bytes");
        put(block, 128, self.mark.sequence.0.to_le_bytes());
        for (index, end) in self.mark.ends.iter().enumerate() {
            let at = 136 + 40 * index;
            put(block, at, end.map_or(NO_SEGMENT, |end| end.segment.0).to_le_bytes());
            if let Some(end) = end {
                put(block, at + 4, end.offset.to_le_bytes());
                put(block, at + 8, end.generation.0.to_le_bytes());
                put(block, at + 16, end.sequence.0.to_le_bytes());
                put(block, at + 24, end.chain.to_le_bytes());
            }
        }
        put(block, 256, (self.note.len() as u16).to_le_bytes());
        block[258..258 + self.note.len()].copy_from_slice(&self.note);
    }

    fn decode(block: &[u8]) -> Option<Checkpoint> {
        let end = |index: usize| {
            let at = 136 + 40 * index;
            let segment = u32_at(block, at);
            (segment != NO_SEGMENT).then(|| StreamEnd {
                segment: SegmentIndex(segment),
                offset: u32_at(block, at + 4),
                generation: Generation(u64_at(block, at + 8)),
                sequence: Sequence(u64_at(block, at + 16)),
                chain: u64_at(block, at + 24),
            })
        };
        let length = usize::from(u16::from_le_bytes(get(block, 256)));
        let note = block.get(258..258 + length).filter(|note| note.len() <= NOTE_BYTES_MAX)?;
        let mark = Mark { sequence: Sequence(u64_at(block, 128)), ends: std::array::from_fn(end) };
        Some(Checkpoint { mark, note: Bytes::copy_from_slice(note) })
    }
}

/// A floor slot: what was known durable at a quiet moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FloorSlot {
    /// Mount under which it was written.
    pub mount: u32,
    /// The disk's stamp.
    pub stamp: u64,
    /// The higher one is the newer.
    pub counter: u64,
    /// Durable floors per stream.
    pub floors: [Sequence; STREAM_COUNT],
    /// The consumer's note.
    pub note: Bytes,
}

impl FloorSlot {
    /// Returns the slot's block.
    pub fn encode(&self) -> AlignedBuf {
        assert!(self.note.len() <= NOTE_BYTES_MAX, "a note is at most 256 bytes");
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        put(&mut block, 0, SLOT_MAGIC);
        put(&mut block, 8, VERSION.to_le_bytes());
        put(&mut block, 10, (self.note.len() as u16).to_le_bytes());
        put(&mut block, 12, self.mount.to_le_bytes());
        put(&mut block, 16, self.stamp.to_le_bytes());
        put(&mut block, 24, self.counter.to_le_bytes());
        put_floors(&mut block, 32, &self.floors);
        block[56..56 + self.note.len()].copy_from_slice(&self.note);
        put_crc(&mut block, SLOT_CRC_OFFSET);
        block
    }

    /// Reads a slot of the disk with this stamp; None where it was never written or is not whole.
    pub fn decode(block: &[u8], stamp: u64) -> Option<FloorSlot> {
        let whole = block[..8] == SLOT_MAGIC
            && crc_fits(block, SLOT_CRC_OFFSET)
            && get(block, 8) == VERSION.to_le_bytes()
            && u64_at(block, 16) == stamp;
        let length = usize::from(u16::from_le_bytes(get(block, 10)));
        if !whole || length > NOTE_BYTES_MAX {
            return None;
        }
        Some(FloorSlot {
            mount: u32_at(block, 12),
            stamp,
            counter: u64_at(block, 24),
            floors: floors_at(block, 32),
            note: Bytes::copy_from_slice(&block[56..56 + length]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(sequence: u64) -> Superblock {
        let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), incarnation: Incarnation(3) };
        let format = Format {
            identity,
            segment_bytes: SEGMENT_BYTES_MIN,
            segment_count_max: 4,
            segment_count_initial: 1,
            fill: Fill::Written,
            stamp: 9,
        };
        Superblock { sequence, mount: sequence as u32, ..Superblock::fresh(&format) }
    }

    #[test]
    fn a_copy_decodes_only_at_its_own_place() {
        let block = superblock(5).encode(2);
        assert_eq!(Superblock::decode(&block, 2), Some(superblock(5)));
        assert_eq!(Superblock::decode(&block, 1), None);
    }

    #[test]
    fn one_copy_alone_decides_nothing() {
        let (old, new) = (superblock(5), superblock(6));
        let copies = [Some(new), Some(old.clone()), Some(old.clone()), None];
        assert_eq!(Superblock::agree(&copies).unwrap(), old);
        assert!(Superblock::agree(&[Some(old), None, None, None]).is_err());
    }

    #[test]
    fn copies_of_one_sequence_that_contradict_are_refused() {
        let (one, mut two) = (superblock(5), superblock(5));
        two.stamp = 1;
        let copies = [Some(one.clone()), Some(one), Some(two.clone()), Some(two)];
        assert!(matches!(Superblock::agree(&copies), Err(JournalError::NoSuperblock(_))));
    }

    #[test]
    fn an_update_leaves_an_agreed_superblock_in_each_crash_state() {
        // Every pattern of good, outdated and broken copies from which a superblock can be read.
        let (current, next) = (superblock(6), superblock(7));
        for pattern in 0..81usize {
            let state = |copy: u32| pattern / 3usize.pow(copy) % 3;
            let copies: [Option<Superblock>; 4] = std::array::from_fn(|copy| match state(copy as u32) {
                0 => Some(current.clone()),
                1 => Some(superblock(5)),
                _ => None,
            });
            if Superblock::agree(&copies).ok().as_ref() != Some(&current) {
                continue;
            }
            let order = Superblock::update_order(&copies, &current);
            // Step by step: each copy of a pair is old, torn or new before its sync.
            let mut written = copies.clone();
            for pair in order.chunks(2) {
                for outcome in 0..9usize {
                    let mut crashed = written.clone();
                    for (index, copy) in pair.iter().enumerate() {
                        match outcome / 3usize.pow(index as u32) % 3 {
                            0 => {}
                            1 => crashed[usize::from(*copy)] = None,
                            _ => crashed[usize::from(*copy)] = Some(next.clone()),
                        }
                    }
                    let agreed = Superblock::agree(&crashed).unwrap();
                    assert!(agreed == current || agreed == next, "pattern {pattern}, outcome {outcome}");
                }
                pair.iter().for_each(|copy| written[usize::from(*copy)] = Some(next.clone()));
            }
            assert_eq!(Superblock::agree(&written).unwrap(), next);
        }
    }
}
