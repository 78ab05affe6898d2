//! The disk seam: the few operations that the journal asks of a disk.
//!
//! A disk is a super area of [`SUPER_BYTES`] and numbered segments of one fixed size. Everything is
//! addressed by (area, offset) in whole blocks, so that the same bytes can lie in a folder of files
//! today and on a raw device later. Operations are submitted, run in any order, and come back as
//! completions. A write is volatile until a [`Action::Sync`] of its area that was submitted after
//! the write's completion has completed, or until the write itself completes where it asks to be
//! `durable`.

use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES, is_block_aligned};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the super area: superblock copies and floor slots.
pub const SUPER_BYTES: u64 = 1 << 20;
/// Most operations that a disk has in flight: the room of every implementation, so that what is tried on the simulated
/// disk meets the bounds of the real one.
pub const OPERATIONS_MAX: usize = 256;
/// Most buffers in one write: the kernel's bound on a vector.
pub const WRITE_PARTS_MAX: usize = 1024;

/// A segment by its number on its disk, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub u32);

impl fmt::Display for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}
impl fmt::Debug for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A part of the disk that is addressed, and made durable, on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Superblock copies and floor slots.
    Super,
    /// One segment.
    Segment(SegmentIndex),
}

/// Names an operation from its submission to its completion; never reused while in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// How the blocks of a new segment come to be. Either way they read as zeros until they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros are written, so that no later write changes the file system's own records: a small record is then durable
    /// with one write. Each byte of the disk's first use is written twice.
    Written,
    /// Space is only set aside; each block's first write makes it the segment's own. Where the file system can't do
    /// that, zeros are written.
    Allocated,
}

/// What a disk is asked to do. Offsets and lengths are whole blocks.
pub enum Action {
    /// Writes the parts one behind the other; at most [`WRITE_PARTS_MAX`] parts, each block-aligned.
    Write {
        /// Where.
        area: Area,
        /// Byte offset in the area.
        offset: u64,
        /// What; kept alive until the completion.
        parts: Vec<Bytes>,
        /// Whether the write must be durable when it completes.
        durable: bool,
    },
    /// Fills the buffer's visible length.
    Read {
        /// Where.
        area: Area,
        /// Byte offset in the area.
        offset: u64,
        /// Comes back in [`Done::Read`].
        buffer: AlignedBuf,
    },
    /// Makes every completed write to the area durable.
    Sync {
        /// Which area.
        area: Area,
    },
    /// Makes a segment of `bytes` that reads as zeros; its size, its space and its directory entry are durable.
    Create {
        /// Its number; must not exist.
        segment: SegmentIndex,
        /// Its size.
        bytes: u64,
        /// Whether its blocks are written before they are used.
        fill: Fill,
    },
    /// Removes a segment durably.
    Remove {
        /// Its number.
        segment: SegmentIndex,
    },
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Write { area, offset, parts, durable } => {
                let bytes: usize = parts.iter().map(Bytes::len).sum();
                write!(f, "write {area:?}+{offset} {bytes} bytes{}", if *durable { " durable" } else { "" })
            }
            Action::Read { area, offset, buffer } => write!(f, "read {area:?}+{offset} {} bytes", buffer.len()),
            Action::Sync { area } => write!(f, "sync {area:?}"),
            Action::Create { segment, bytes, fill } => write!(f, "create {segment} {bytes} bytes, {fill:?}"),
            Action::Remove { segment } => write!(f, "remove {segment}"),
        }
    }
}

impl Action {
    /// Panics where an offset, length or buffer is not what a device can take: our mistake.
    pub fn assert_aligned(&self) {
        match self {
            Action::Write { offset, parts, .. } => {
                assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "write offset is a whole block");
                assert!(!parts.is_empty() && parts.len() <= WRITE_PARTS_MAX, "a write has 1 to 1024 parts");
                assert!(parts.iter().all(|part| !part.is_empty() && is_block_aligned(part)), "parts are aligned");
            }
            Action::Read { offset, buffer, .. } => {
                assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "read offset is a whole block");
                assert!(!buffer.is_empty() && is_block_aligned(buffer), "read buffer is aligned");
            }
            Action::Create { bytes, .. } => assert!(bytes.is_multiple_of(BLOCK_BYTES as u64)),
            Action::Sync { .. } | Action::Remove { .. } => {}
        }
    }
}

/// An action under its name.
#[derive(Debug)]
pub struct Operation {
    /// Comes back in the completion.
    pub id: OpId,
    /// What to do.
    pub action: Action,
}

/// What a successful operation brings back.
pub enum Done {
    /// All bytes were written.
    Written,
    /// The buffer, filled.
    Read(AlignedBuf),
    /// The area is durable.
    Synced,
    /// The segment exists, durably, and reads as zeros.
    Created,
    /// The segment is gone.
    Removed,
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Done::Written => f.write_str("written"),
            Done::Read(buffer) => write!(f, "read {} bytes", buffer.len()),
            Done::Synced => f.write_str("synced"),
            Done::Created => f.write_str("created"),
            Done::Removed => f.write_str("removed"),
        }
    }
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub id: OpId,
    /// How it ended.
    pub result: Result<Done, DiskError>,
}

/// Why a disk did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The device or file system answered with this errno.
    #[error("disk error: {}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// No space for a new segment. Existing segments can still be written.
    #[error("no space for a new segment")]
    NoSpace,
    /// Fewer bytes were transferred than asked for.
    #[error("short transfer: {done} of {wanted} bytes")]
    Short {
        /// Bytes transferred.
        done: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The area does not exist.
    #[error("no such area: {0:?}")]
    NoArea(Area),
}

/// A disk as the journal sees it. Two implementations: [`crate::UringDisk`], [`crate::SimDisk`].
pub trait Disk {
    /// Returns the segments that exist, in ascending order, with their sizes in bytes.
    fn segments(&self) -> Vec<(SegmentIndex, u64)>;

    /// Returns how many operations can be submitted now.
    fn room(&self) -> usize;

    /// Takes an operation; there must be [`Disk::room`]. It may start only at the next `reap`.
    fn submit(&mut self, operation: Operation);

    /// Starts what was submitted and appends what has ended to `completions`. Waits for the first
    /// completion or a [`Waker`]'s call: not at all for `Some(ZERO)`, for ever with `None`. Returns
    /// at once when nothing is in flight and `timeout` is `None` and nobody holds a waker.
    fn reap(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>);

    /// Returns what another thread calls to end a `reap` that waits.
    fn waker(&self) -> Waker;
}

impl<D: Disk + ?Sized> Disk for &mut D {
    fn segments(&self) -> Vec<(SegmentIndex, u64)> {
        (**self).segments()
    }
    fn room(&self) -> usize {
        (**self).room()
    }
    fn submit(&mut self, operation: Operation) {
        (**self).submit(operation);
    }
    fn reap(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>) {
        (**self).reap(timeout, completions);
    }
    fn waker(&self) -> Waker {
        (**self).waker()
    }
}

/// Ends a waiting [`Disk::reap`], from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// Makes a waker from what wakes.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Waker(Arc::new(wake))
    }

    /// Ends the current or the next waiting `reap`.
    pub fn wake(&self) {
        (self.0)();
    }
}
