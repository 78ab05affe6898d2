//! The folder of a disk: its files, its lock, its directory entries. One of the seams where files
//! are met; data goes through the ring alone.
//!
//! `superblock` holds the super area and the lock; `NNNNNNNN.seg` are the segments. A segment that
//! is still being made is called `NNNNNNNN.tmp`, so that one that bears its name is whole.
//!
//! Every file that the ring writes to is locked (`flock`). Such a lock belongs to the open file, not to the process: it
//! ends when the last reference to the open file is gone, and each operation in flight holds one. So whoever gets the
//! lock knows that nothing of a process that was killed before can still land in the file.
#![allow(clippy::disallowed_methods)]

use crate::disk::{SUPER_BYTES, SegmentIndex};
use crate::error::JournalError;
use plinth_protocol::buffer::AlignedBuf;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SUPER_NAME: &str = "superblock";
const SEGMENT_SUFFIX: &str = ".seg";
const UNFINISHED_SUFFIX: &str = ".tmp";
/// What mkfs leaves behind in a fresh file system.
const LOST_AND_FOUND: &str = "lost+found";

/// How long an open waits for the superblock's lock: one small write of a process that was killed may hold it.
const SUPERBLOCK_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long an open waits for the segments' locks: the writes that a process left in flight when it was killed.
const SEGMENTS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between two tries of a lock.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// An open, locked folder.
pub(crate) struct Folder {
    path: PathBuf,
    pub directory: File,
    pub superblock: File,
    pub segments: BTreeMap<SegmentIndex, (File, u64)>,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> JournalError {
    let what = what.into();
    move |source| JournalError::Folder { what, source }
}

/// Opens a file past the page cache.
fn open_direct(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).custom_flags(libc::O_DIRECT).mode(0o600);
    options.open(path)
}

/// Locks an open file until its last reference is gone; `held` where somebody else has it beyond `until`.
fn lock(file: &File, until: Instant, held: JournalError) -> Result<(), JournalError> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return Err(held),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::Error(error)) => return Err(failed("lock a file of the disk")(error)),
        }
    }
}

fn lock_superblock(superblock: &File) -> Result<(), JournalError> {
    lock(superblock, Instant::now() + SUPERBLOCK_WAIT_MAX, JournalError::Locked)
}

impl Folder {
    /// Makes the super area in an empty folder, made where absent.
    pub fn create(path: &Path) -> Result<Folder, JournalError> {
        std::fs::create_dir_all(path).map_err(failed(format!("make {}", path.display())))?;
        for entry in std::fs::read_dir(path).map_err(failed("list the folder"))? {
            let entry = entry.map_err(failed("list the folder"))?;
            let is_mkfs = entry.file_name() == LOST_AND_FOUND
                && std::fs::read_dir(entry.path()).is_ok_and(|mut content| content.next().is_none());
            if !is_mkfs {
                return Err(JournalError::Occupied(entry.file_name().to_string_lossy().into_owned()));
            }
        }
        let superblock = open_direct(&path.join(SUPER_NAME), true).map_err(failed("make the superblock"))?;
        lock_superblock(&superblock)?;
        superblock
            .write_all_at(&AlignedBuf::zeroed(SUPER_BYTES as usize), 0)
            .and_then(|()| superblock.sync_all())
            .map_err(failed("write the superblock"))?;
        let directory = File::open(path).map_err(failed("open the folder"))?;
        directory.sync_all().map_err(failed("sync the folder"))?;
        if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
            // The folder's own name must survive too, where it has just been made.
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("sync the parent folder"))?;
        }
        Ok(Folder { path: path.to_path_buf(), directory, superblock, segments: BTreeMap::new() })
    }

    /// Opens and locks a folder that [`Folder::create`] has made, and each of its segments.
    pub fn open(path: &Path) -> Result<Folder, JournalError> {
        let superblock = open_direct(&path.join(SUPER_NAME), false).map_err(failed("open the superblock"))?;
        lock_superblock(&superblock)?;
        let length = superblock.metadata().map_err(failed("measure the superblock"))?.len();
        if length != SUPER_BYTES {
            return Err(JournalError::NoSuperblock(format!("the superblock file has {length} bytes")));
        }
        let directory = File::open(path).map_err(failed("open the folder"))?;
        let mut segments = BTreeMap::new();
        let segments_until = Instant::now() + SEGMENTS_WAIT_MAX;
        for entry in std::fs::read_dir(path).map_err(failed("list the folder"))? {
            let entry = entry.map_err(failed("list the folder"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(segment) = parse_segment(&name, SEGMENT_SUFFIX) {
                let file = open_direct(&entry.path(), false).map_err(failed(format!("open {name}")))?;
                lock(&file, segments_until, JournalError::SegmentLocked(segment))?;
                let length = file.metadata().map_err(failed(format!("measure {name}")))?.len();
                segments.insert(segment, (file, length));
            } else if parse_segment(&name, UNFINISHED_SUFFIX).is_some() {
                // A crash came while this segment was being made: nothing was ever written to it.
                std::fs::remove_file(entry.path()).map_err(failed(format!("remove {name}")))?;
            } else if name != SUPER_NAME && name != LOST_AND_FOUND {
                // Somebody else's; it stays as it is.
                tracing::warn!(%name, "foreign file in a disk's folder");
            }
        }
        Ok(Folder { path: path.to_path_buf(), directory, superblock, segments })
    }

    fn segment_path(&self, segment: SegmentIndex, suffix: &str) -> PathBuf {
        self.path.join(format!("{segment}{suffix}"))
    }

    /// Makes an empty file for a segment under its unfinished name.
    pub fn begin_segment(&self, segment: SegmentIndex) -> io::Result<File> {
        if self.segments.contains_key(&segment) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let path = self.segment_path(segment, UNFINISHED_SUFFIX);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                let file = open_direct(&path, true)?;
                file.try_lock()?;
                Ok(file)
            }
        }
    }

    /// Gives a segment that is whole its name; the directory is still to be synced.
    pub fn finish_segment(&mut self, segment: SegmentIndex, file: File, bytes: u64) -> io::Result<()> {
        let (from, to) = (self.segment_path(segment, UNFINISHED_SUFFIX), self.segment_path(segment, SEGMENT_SUFFIX));
        std::fs::rename(from, to)?;
        self.segments.insert(segment, (file, bytes));
        Ok(())
    }

    /// Removes what was begun and can't be finished; a failure leaves it to the next open.
    pub fn drop_unfinished(&self, segment: SegmentIndex) {
        if let Err(error) = std::fs::remove_file(self.segment_path(segment, UNFINISHED_SUFFIX)) {
            tracing::warn!(%segment, %error, "unfinished segment stays until the next start");
        }
    }

    /// Removes a segment; the directory is still to be synced.
    pub fn remove_segment(&mut self, segment: SegmentIndex) -> io::Result<()> {
        std::fs::remove_file(self.segment_path(segment, SEGMENT_SUFFIX))?;
        self.segments.remove(&segment);
        Ok(())
    }
}

fn parse_segment(name: &str, suffix: &str) -> Option<SegmentIndex> {
    let digits = name.strip_suffix(suffix)?;
    let is_number = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok().map(SegmentIndex)).flatten()
}
