//! The real disk: a folder of files, opened O_DIRECT, driven through one io_uring.
//!
//! The ring belongs to the thread that made it (SINGLE_ISSUER) and completes only when that thread
//! looks (DEFER_TASKRUN). All data goes through it: writes, reads and syncs of segments and super
//! area, and the zeros of a new segment where they are written. A write that must be durable at once carries RWF_DSYNC.
//! Each flight keeps its memory until the kernel has given it back; dropping the disk waits for that.

use crate::disk::{
    Action, Area, Completion, Disk, DiskError, Done, Fill, OPERATIONS_MAX, OpId, Operation, SegmentIndex, Waker,
};
use crate::error::JournalError;
use crate::folder::Folder;
use bytes::Bytes;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use plinth_protocol::buffer::AlignedBuf;
use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Entries of the submission queue: each flight has at most one, and the wake-up has one.
const ENTRIES: u32 = 512;
/// Bytes of zeros that one write puts into a new segment.
const ZEROS_BYTES: usize = 1 << 20;
/// Names the read of the wake-up counter.
const WAKE: u64 = u64::MAX;

/// A segment on its way into being.
struct Creation {
    segment: SegmentIndex,
    bytes: u64,
    fill: Fill,
    /// Zeros written so far.
    written: u64,
    step: CreationStep,
    /// Until it has its name.
    file: Option<File>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CreationStep {
    Allocate,
    Zero,
    Sync,
    SyncDirectory,
}

enum Task {
    Write { parts: Vec<Bytes>, vector: Vec<libc::iovec>, wanted: u64 },
    Read { buffer: AlignedBuf },
    Sync,
    Create(Creation),
    Remove,
}

struct Flight {
    id: OpId,
    task: Task,
}

/// A disk in a folder. Lives on the thread that made it.
pub struct UringDisk {
    ring: IoUring,
    folder: Folder,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Operations that failed before they reached the ring.
    failed: Vec<Completion>,
    zeros: Bytes,
    wake: Arc<File>,
    wake_buffer: Box<[u8; 8]>,
    is_wake_armed: bool,
    /// Not to be sent to another thread: the ring would refuse its calls.
    thread: PhantomData<*const ()>,
}

impl UringDisk {
    /// Opens a formatted folder and locks it against other processes.
    pub fn open(folder: &Path) -> Result<UringDisk, JournalError> {
        UringDisk::over(Folder::open(folder)?)
    }

    /// Makes the super area in an empty folder (made where absent) and opens it. Refuses a folder
    /// that carries anything but an empty `lost+found`.
    pub fn create(folder: &Path) -> Result<UringDisk, JournalError> {
        UringDisk::over(Folder::create(folder)?)
    }

    fn over(folder: Folder) -> Result<UringDisk, JournalError> {
        let failed = |what: &str| {
            let what = what.to_string();
            move |source| JournalError::Folder { what, source }
        };
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
            .map_err(failed("make the ring"))?;
        Ok(UringDisk {
            ring,
            folder,
            flights: (0..OPERATIONS_MAX).map(|_| None).collect(),
            free: (0..OPERATIONS_MAX).rev().collect(),
            failed: Vec::new(),
            zeros: AlignedBuf::zeroed(ZEROS_BYTES).freeze(),
            wake: Arc::new(eventfd().map_err(failed("make the wake-up counter"))?),
            wake_buffer: Box::new([0; 8]),
            is_wake_armed: false,
            thread: PhantomData,
        })
    }

    fn fd(&self, area: Area) -> Option<Fd> {
        let file = match area {
            Area::Super => &self.folder.superblock,
            Area::Segment(segment) => &self.folder.segments.get(&segment)?.0,
        };
        Some(Fd(file.as_raw_fd()))
    }

    /// Puts an entry into the submission queue.
    fn push(&mut self, entry: squeue::Entry, name: u64) {
        let entry = entry.user_data(name);
        // SAFETY: whatever the entry points to belongs to a flight (or to the disk itself: zeros,
        // wake buffer) that is dropped only after the entry's completion; see `Drop`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has room for every flight and the wake-up");
    }

    /// Turns an action into a flight and its first entry; an error where it can't even start.
    fn start(&mut self, action: Action, index: usize) -> Result<Task, DiskError> {
        let name = index as u64;
        match action {
            Action::Write { area, offset, parts, durable } => {
                let fd = self.fd(area).ok_or(DiskError::NoArea(area))?;
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                let wanted = parts.iter().map(|part| part.len() as u64).sum();
                let vector: Vec<libc::iovec> = if parts.len() > 1 { parts.iter().map(iovec).collect() } else { vec![] };
                let entry = match parts.as_slice() {
                    [part] => {
                        opcode::Write::new(fd, part.as_ptr(), part.len() as u32).offset(offset).rw_flags(flags).build()
                    }
                    _ => opcode::Writev::new(fd, vector.as_ptr(), vector.len() as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                };
                self.push(entry, name);
                Ok(Task::Write { parts, vector, wanted })
            }
            Action::Read { area, offset, mut buffer } => {
                let fd = self.fd(area).ok_or(DiskError::NoArea(area))?;
                let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(offset).build();
                self.push(entry, name);
                Ok(Task::Read { buffer })
            }
            Action::Sync { area } => {
                let fd = self.fd(area).ok_or(DiskError::NoArea(area))?;
                self.push(opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(), name);
                Ok(Task::Sync)
            }
            Action::Create { segment, bytes, fill } => {
                let file = self.folder.begin_segment(segment).map_err(|error| disk_error(&error))?;
                let entry = opcode::Fallocate::new(Fd(file.as_raw_fd()), bytes).build();
                self.push(entry, name);
                let step = CreationStep::Allocate;
                Ok(Task::Create(Creation { segment, bytes, fill, written: 0, step, file: Some(file) }))
            }
            Action::Remove { segment } => {
                self.folder.remove_segment(segment).map_err(|error| disk_error(&error))?;
                let entry = opcode::Fsync::new(Fd(self.folder.directory.as_raw_fd())).build();
                self.push(entry, name);
                Ok(Task::Remove)
            }
        }
    }

    /// Takes the end of one entry; returns the operation's end unless another entry follows.
    fn finish(&mut self, index: usize, result: i32) -> Option<Completion> {
        let Flight { id, task } = self.flights[index].take().expect("an entry's flight lives until its completion");
        let ended = match (task, result) {
            (Task::Create(creation), result) => match self.continue_creation(creation, result, index) {
                Ok(Some(creation)) => {
                    self.flights[index] = Some(Flight { id, task: Task::Create(creation) });
                    return None;
                }
                Ok(None) => Ok(Done::Created),
                Err(error) => Err(error),
            },
            (_, errno) if errno < 0 => Err(DiskError::Errno(-errno)),
            (Task::Write { wanted, parts, vector }, done) => {
                drop((parts, vector));
                whole(done, wanted).map(|()| Done::Written)
            }
            (Task::Read { buffer }, done) => whole(done, buffer.len() as u64).map(|()| Done::Read(buffer)),
            (Task::Sync, _) => Ok(Done::Synced),
            (Task::Remove, _) => Ok(Done::Removed),
        };
        self.free.push(index);
        Some(Completion { id, result: ended })
    }

    /// Takes the next step of a new segment: space, zeros where they are to be written, sync, name, sync of the directory.
    fn continue_creation(
        &mut self,
        mut creation: Creation,
        result: i32,
        index: usize,
    ) -> Result<Option<Creation>, DiskError> {
        let is_unsupported = creation.step == CreationStep::Allocate && result == -libc::EOPNOTSUPP;
        if result < 0 && !is_unsupported {
            return Err(self.give_up(&creation, &io::Error::from_raw_os_error(-result)));
        }
        match creation.step {
            // Blocks that are set aside read as zeros, and the sync makes size and space durable before the segment
            // has a name: nothing that is written to it later depends on more than its own sync.
            CreationStep::Allocate if creation.fill == Fill::Allocated && !is_unsupported => {
                creation.step = CreationStep::Sync;
            }
            CreationStep::Allocate => creation.step = CreationStep::Zero,
            CreationStep::Zero if result == 0 => {
                return Err(self.give_up(&creation, &io::ErrorKind::WriteZero.into()));
            }
            CreationStep::Zero => {
                creation.written += result as u64;
                if creation.written == creation.bytes {
                    creation.step = CreationStep::Sync;
                }
            }
            CreationStep::Sync => {
                let file = creation.file.take().expect("the file is ours until it has its name");
                if let Err(error) = self.folder.finish_segment(creation.segment, file, creation.bytes) {
                    return Err(self.give_up(&creation, &error));
                }
                creation.step = CreationStep::SyncDirectory;
                let directory = Fd(self.folder.directory.as_raw_fd());
                self.push(opcode::Fsync::new(directory).build(), index as u64);
                return Ok(Some(creation));
            }
            CreationStep::SyncDirectory => return Ok(None),
        }
        let fd = Fd(creation.file.as_ref().expect("the file is ours until it has its name").as_raw_fd());
        let entry = if creation.step == CreationStep::Zero {
            let count = (creation.bytes - creation.written).min(ZEROS_BYTES as u64) as u32;
            opcode::Write::new(fd, self.zeros.as_ptr(), count).offset(creation.written).build()
        } else {
            opcode::Fsync::new(fd).build()
        };
        self.push(entry, index as u64);
        Ok(Some(creation))
    }

    fn give_up(&mut self, creation: &Creation, error: &io::Error) -> DiskError {
        if creation.step != CreationStep::SyncDirectory {
            self.folder.drop_unfinished(creation.segment);
        }
        disk_error(error)
    }

    fn arm_wake(&mut self) {
        if !self.is_wake_armed {
            let fd = Fd(self.wake.as_raw_fd());
            let entry = opcode::Read::new(fd, self.wake_buffer.as_mut_ptr(), 8).build();
            self.push(entry, WAKE);
            self.is_wake_armed = true;
        }
    }

    /// Submits what is queued and waits for one completion, at most as long as `timeout`.
    fn enter(&mut self, timeout: Option<Duration>) {
        let entered = match timeout {
            Some(Duration::ZERO) => {
                let mut queue = self.ring.submission();
                queue.sync();
                if queue.is_empty() && !queue.taskrun() {
                    return;
                }
                drop(queue);
                self.ring.submit()
            }
            Some(timeout) => {
                let time = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            None => self.ring.submit_and_wait(1),
        };
        match entered {
            Ok(_) => {}
            // Nothing happened in time, or the kernel wants us to reap first: the caller comes back.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM)
                ) => {}
            // Flights can neither be finished nor given up: their memory is the kernel's.
            Err(error) => panic!("the ring of a disk is broken: {error}"),
        }
    }

    fn collect(&mut self, completions: &mut Vec<Completion>) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            if entry.user_data() == WAKE {
                self.is_wake_armed = false;
            } else if let Some(completion) = self.finish(entry.user_data() as usize, entry.result()) {
                completions.push(completion);
            }
        }
    }

    fn flights_count(&self) -> usize {
        OPERATIONS_MAX - self.free.len()
    }
}

fn iovec(part: &Bytes) -> libc::iovec {
    libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
}

fn whole(done: i32, wanted: u64) -> Result<(), DiskError> {
    let done = done as u64;
    if done == wanted { Ok(()) } else { Err(DiskError::Short { done, wanted }) }
}

fn disk_error(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::NoSpace,
        Some(errno) => DiskError::Errno(errno),
        None => DiskError::Errno(libc::EIO),
    }
}

fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is passed; the result is checked before it is used.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl Disk for UringDisk {
    fn segments(&self) -> Vec<(SegmentIndex, u64)> {
        self.folder.segments.iter().map(|(segment, (_, bytes))| (*segment, *bytes)).collect()
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn submit(&mut self, operation: Operation) {
        operation.action.assert_aligned();
        let Operation { id, action } = operation;
        let index = self.free.pop().expect("the driver asks for room first");
        match self.start(action, index) {
            Ok(task) => self.flights[index] = Some(Flight { id, task }),
            Err(error) => {
                self.free.push(index);
                self.failed.push(Completion { id, result: Err(error) });
            }
        }
    }

    fn reap(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.append(&mut self.failed);
        let has_wakers = Arc::strong_count(&self.wake) > 1;
        if has_wakers {
            self.arm_wake();
        }
        let nothing_comes = self.flights_count() == 0 && !has_wakers;
        let waits = completions.len() == before && !(timeout.is_none() && nothing_comes);
        // A completion that is here already must not be waited behind.
        self.collect(completions);
        let waits = waits && completions.len() == before && (self.is_wake_armed || !has_wakers);
        self.enter(if waits { timeout } else { Some(Duration::ZERO) });
        self.collect(completions);
    }

    fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Waker::new(move || {
            // The counter is full only where nobody has slept for 2⁶⁴ calls: then nobody needs waking.
            let _ = (&*wake).write(&1u64.to_ne_bytes());
        })
    }
}

/// Waits until the kernel has given back all memory.
impl Drop for UringDisk {
    fn drop(&mut self) {
        if self.is_wake_armed {
            let _ = (&*self.wake).write(&1u64.to_ne_bytes());
        }
        let mut completions = Vec::new();
        while self.flights_count() > 0 || self.is_wake_armed {
            self.enter(None);
            self.collect(&mut completions);
        }
    }
}
