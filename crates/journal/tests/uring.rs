//! The real disk, on a temporary folder.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

use bytes::Bytes;
use harness::{IDENTITY, body, disk_format, options, payload};
use plinth_journal::*;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a test waits for the disk.
const PATIENCE: Duration = Duration::from_secs(20);

fn now() -> Instant {
    Instant::now()
}

fn fresh(folder: &Path) -> UringDisk {
    let mut disk = UringDisk::create(folder).expect("an empty folder");
    format(&mut disk, &disk_format()).expect("a blank disk");
    disk
}

/// Drives the journal until it has nothing left to do.
fn settle(journal: &mut Journal, disk: &mut UringDisk) -> Vec<Event> {
    let deadline = now() + PATIENCE;
    let (mut events, mut completions) = (Vec::new(), Vec::new());
    while !journal.is_idle() {
        while disk.room() > 0
            && let Some(operation) = journal.poll_disk(now())
        {
            disk.submit(operation);
        }
        disk.reap(Some(Duration::from_millis(100)), &mut completions);
        for completion in completions.drain(..) {
            journal.handle_completion(now(), completion);
        }
        events.extend(std::iter::from_fn(|| journal.poll_event()));
        assert!(now() < deadline, "the disk takes too long");
    }
    events
}

fn append(journal: &mut Journal, disk: &mut UringDisk, append: impl Fn() -> (Vec<u8>, Bytes)) -> Placed {
    loop {
        let (body, payload) = append();
        match journal.append(Append { stream: Stream::Main, kind: 20, body: &body, payload, reserve: true }) {
            Ok(placed) => return placed,
            Err(Refused::Busy) => drop(settle(journal, disk)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn records_survive_a_restart_on_a_real_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let disk = fresh(folder.path());
    let recovery = Recovery::start(disk, Some(IDENTITY)).unwrap();
    let (mut journal, mut disk) = recovery.resume(now(), options()).unwrap();
    let content = |seed: u64| (body(seed, 200), payload(seed, (seed % 4) as usize));
    let placed: Vec<_> = (0..30).map(|seed| append(&mut journal, &mut disk, || content(seed))).collect();
    let events = settle(&mut journal, &mut disk);
    assert!(matches!(events.last(), Some(Event::Durable(last)) if *last >= placed[29].sequence));
    let at = placed[3].position;
    journal.read(ReadToken(9), at.segment, at.offset + placed[3].payload_offset, 3 * 4096).unwrap();
    let events = settle(&mut journal, &mut disk);
    assert!(matches!(&events[..], [Event::Read(ReadToken(9), Ok(bytes))] if bytes[..] == payload(3, 3)[..]));
    drop(disk);

    let disk = UringDisk::open(folder.path()).unwrap();
    let mut recovery = Recovery::start(disk, Some(IDENTITY)).unwrap();
    for (seed, placed) in placed.iter().enumerate() {
        let found = recovery.next().expect("every record is there");
        assert_eq!((found.sequence, found.position), (placed.sequence, placed.position));
        let (body, payload) = content(seed as u64);
        assert_eq!(found.body, body);
        assert_eq!(recovery.read(found.position).unwrap().1, payload);
    }
    assert!(recovery.next().is_none() && recovery.damage().is_empty() && recovery.cut().is_none());
    let (journal, _) = recovery.resume(now(), options()).unwrap();
    assert_eq!(journal.superblock().mount, 2);
}

#[test]
fn formatting_refuses_a_folder_that_carries_anything() {
    let folder = tempfile::tempdir().unwrap();
    drop(fresh(folder.path()));
    assert!(matches!(UringDisk::create(folder.path()), Err(JournalError::Occupied(_))));
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("photo.jpg"), b"dear to someone").unwrap();
    assert!(matches!(UringDisk::create(other.path()), Err(JournalError::Occupied(name)) if name == "photo.jpg"));
    let mounted = tempfile::tempdir().unwrap();
    std::fs::create_dir(mounted.path().join("lost+found")).unwrap();
    fresh(mounted.path());
}

#[test]
fn a_folder_is_locked_while_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let disk = fresh(folder.path());
    assert!(matches!(UringDisk::open(folder.path()), Err(JournalError::Locked)));
    drop(disk);
    UringDisk::open(folder.path()).unwrap();
}

#[test]
fn another_disk_is_not_mounted() {
    let folder = tempfile::tempdir().unwrap();
    drop(fresh(folder.path()));
    let disk = UringDisk::open(folder.path()).unwrap();
    let other = DiskIdentity { incarnation: plinth_protocol::ids::Incarnation(4), ..IDENTITY };
    assert!(matches!(Recovery::start(disk, Some(other)), Err(JournalError::Foreign { .. })));
}

#[test]
fn every_file_is_opened_past_the_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let _disk = fresh(folder.path());
    let root = folder.path().canonicalize().unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if !target.starts_with(&root) || target == root {
            continue;
        }
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & libc::O_DIRECT, 0, "{} is open with flags {flags:o}", target.display());
        seen += 1;
    }
    assert_eq!(seen, 2, "superblock and one segment are open");
}

#[test]
fn an_unfinished_segment_is_removed_at_open() {
    let folder = tempfile::tempdir().unwrap();
    drop(fresh(folder.path()));
    std::fs::write(folder.path().join("00000001.tmp"), b"half").unwrap();
    let disk = UringDisk::open(folder.path()).unwrap();
    assert_eq!(disk.segments().len(), 1);
    assert!(!folder.path().join("00000001.tmp").exists());
}

/// Counts appends and answers each when it is durable: the smallest engine.
struct Counter {
    journal: Journal,
    waiting: std::collections::VecDeque<(Sequence, std::sync::mpsc::Sender<Sequence>)>,
    is_ending: bool,
}

impl Engine for Counter {
    type Request = (Vec<u8>, std::sync::mpsc::Sender<Sequence>);

    fn handle_request(&mut self, _: Instant, (body, answer): Self::Request) {
        let append = Append { stream: Stream::Main, kind: 20, body: &body, payload: Bytes::new(), reserve: true };
        let placed = self.journal.append(append).expect("there is room for this test");
        self.waiting.push_back((placed.sequence, answer));
    }

    fn handle_completion(&mut self, now: Instant, completion: Completion) {
        self.journal.handle_completion(now, completion);
    }

    fn handle_turn(&mut self, _: Instant) {
        while let Some(event) = self.journal.poll_event() {
            let Event::Durable(last) = event else { continue };
            while self.waiting.front().is_some_and(|(sequence, _)| *sequence <= last) {
                let (sequence, answer) = self.waiting.pop_front().unwrap();
                answer.send(sequence).unwrap();
            }
        }
    }

    fn poll_disk(&mut self, now: Instant) -> Option<Operation> {
        self.journal.poll_disk(now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.journal.deadline()
    }

    fn handle_hangup(&mut self, _: Instant) {
        self.journal.stop();
        self.is_ending = true;
    }

    fn is_finished(&self) -> bool {
        self.is_ending && self.waiting.is_empty() && self.journal.is_idle()
    }
}

#[test]
fn a_disk_thread_answers_and_ends_with_its_last_handle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    let open = move || -> Result<(Counter, UringDisk, u32), Box<dyn std::error::Error + Send + Sync>> {
        let mut disk = UringDisk::create(&path)?;
        format(&mut disk, &Format { segment_bytes: 1 << 20, ..disk_format() })?;
        let (journal, disk) = Recovery::start(disk, Some(IDENTITY))?.resume(now(), options())?;
        let mount = journal.superblock().mount;
        Ok((Counter { journal, waiting: Default::default(), is_ending: false }, disk, mount))
    };
    let bounds = driver::QueueBounds { requests_max: 64, bytes_max: 1 << 20 };
    let (handle, mount, thread) = driver::spawn("disk-test", bounds, open).unwrap();
    assert_eq!(mount, 1);
    let (sender, answers) = std::sync::mpsc::channel();
    for index in 0..30u8 {
        let other = handle.clone();
        other.send((vec![index; 100], sender.clone()), 100).unwrap();
        if index % 3 == 0 {
            // Now and then let the thread fall asleep before the next request.
            answers.recv_timeout(PATIENCE).unwrap();
        }
    }
    let rest: Vec<_> = (0..20).map(|_| answers.recv_timeout(PATIENCE).unwrap()).collect();
    assert!(rest.is_sorted());
    drop(handle);
    thread.join().unwrap();
    let mut recovery = Recovery::start(UringDisk::open(folder.path()).unwrap(), Some(IDENTITY)).unwrap();
    assert_eq!(std::iter::from_fn(|| recovery.next()).count(), 30);
    assert_eq!(recovery.floor(), recovery.kept(), "a clean stop leaves the floor in a slot");
}

#[test]
fn a_segment_that_a_killed_process_still_writes_to_is_not_mounted() {
    let folder = tempfile::tempdir().unwrap();
    drop(fresh(folder.path()));
    // What is in flight holds the open file, and with it its lock, after its process has ended.
    let in_flight = std::fs::File::open(folder.path().join("00000000.seg")).unwrap();
    in_flight.try_lock().unwrap();
    let started = now();
    let lands = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(in_flight);
    });
    let disk = UringDisk::open(folder.path()).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200), "mounted while writes could still land");
    lands.join().unwrap();
    let other = std::fs::File::open(folder.path().join("00000000.seg")).unwrap();
    assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)), "its own files are locked");
    drop(disk);
    other.try_lock().unwrap();
}

#[test]
fn a_segment_is_locked_from_its_making_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut disk) =
        Recovery::start(fresh(folder.path()), None).unwrap().resume(now(), options()).unwrap();
    append(&mut journal, &mut disk, || (body(1, 100), payload(1, 1)));
    settle(&mut journal, &mut disk);
    let made = std::fs::File::open(folder.path().join("00000001.seg")).expect("made in advance");
    assert!(matches!(made.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
}

/// The kernel's part of the argument: an operation in flight keeps the lock of its file although the file was closed.
#[test]
fn a_lock_lasts_as_long_as_an_operation_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name is a string with its end, alive over the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let file = open();
    file.try_lock().unwrap();
    let mut ring = io_uring::IoUring::new(4).unwrap();
    let mut byte = [0u8; 1];
    let descriptor = io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd(&file));
    let read = io_uring::opcode::Read::new(descriptor, byte.as_mut_ptr(), 1).build();
    // SAFETY: `byte` outlives the operation: its completion is waited for below.
    unsafe { ring.submission().push(&read).unwrap() };
    ring.submit().unwrap();
    drop(file);
    let mut other = open();
    assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)), "closed, but still in use");
    std::io::Write::write_all(&mut other, b"x").unwrap();
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().result(), 1);
    assert_eq!(byte, *b"x");
    let deadline = now() + PATIENCE;
    while other.try_lock().is_err() {
        assert!(now() < deadline, "the lock ends with the operation");
        std::thread::yield_now();
    }
}

#[test]
fn an_allocated_segment_reads_as_zeros_and_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = UringDisk::create(folder.path()).unwrap();
    format(&mut disk, &Format { fill: Fill::Allocated, ..disk_format() }).unwrap();
    let segment = std::fs::read(folder.path().join("00000000.seg")).unwrap();
    assert!(segment.len() == harness::SEGMENT_BYTES as usize && segment.iter().all(|byte| *byte == 0));
    let options = JournalOptions { new_segments: NewSegments::ByBatch, ..options() };
    let (mut journal, mut disk) = Recovery::start(disk, Some(IDENTITY)).unwrap().resume(now(), options).unwrap();
    let content = |seed: u64| (body(seed, 200), payload(seed, (seed % 4) as usize));
    let placed: Vec<_> = (0..30).map(|seed| append(&mut journal, &mut disk, || content(seed))).collect();
    settle(&mut journal, &mut disk);
    drop(disk);
    let mut recovery = Recovery::start(UringDisk::open(folder.path()).unwrap(), Some(IDENTITY)).unwrap();
    let found: Vec<_> = recovery.by_ref().map(|record| record.sequence).collect();
    assert_eq!(found, placed.iter().map(|placed| placed.sequence).collect::<Vec<_>>());
    assert!(recovery.damage().is_empty() && recovery.cut().is_none());
}
