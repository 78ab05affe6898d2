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
//! | 56     | 68    | zero                                                                      |
//! | 124    | 4     | CRC-32 of bytes [0, 124)                                                  |
//!
//! A block of zeros is a segment that was never used.
