//! The node: one thread and one ring per disk behind one asynchronous face.
//!
//! A request costs one send to its disk's thread and one answer back. Requests name a disk and its
//! incarnation; whatever does not fit is refused before it reaches a thread.

use crate::budget::{BYTES_IN_FLIGHT_MAX, Budget, Permit, REQUEST_BYTES};
use crate::engine::{Answer, Command, Engine, EngineOptions, Opened, RecoveryReport, Request, Ticket};
use crate::error::StorageError;
use crate::stats::{DiskStats, DiskStatsSnapshot};
use bytes::Bytes;
use plinth_journal::driver::{QueueBounds, SendRefused, spawn};
use plinth_journal::{DiskIdentity, Format, Handle, JournalError, Recovery, UringDisk};
use plinth_protocol::buffer::into_aligned;
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};
use plinth_protocol::storage::{DiskStat, StorageAction, StorageReply, StorageRequest};
use plinth_protocol::{Failure, FailureKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Most requests on their way to one disk's thread.
pub const REQUESTS_MAX: usize = 4096;
/// What a caller is told to wait, in milliseconds, where the node or the way to a thread is full.
const BUSY_RETRY_MS: u64 = 20;
/// Largest segment that a disk may have: the index counts its blocks in 16 bits.
pub const SEGMENT_BYTES_MAX: u32 = 256 << 20;

/// A disk that the node shall serve.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The disk's folder.
    pub path: PathBuf,
    /// Which disk it must be; anything else is refused. `None` takes whatever was formatted there.
    pub expected: Option<(DiskId, Incarnation)>,
}

/// What a node needs to start.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// The cluster: disks of another one are refused.
    pub cluster: ClusterId,
    /// The disks.
    pub disks: Vec<DiskConfig>,
    /// Bounds and habits of every disk's engine.
    pub engine: EngineOptions,
    /// Most bytes in flight, all disks together.
    pub bytes_in_flight_max: u64,
}

impl StorageConfig {
    /// Makes a configuration with the default bounds.
    pub fn new(cluster: ClusterId, disks: Vec<DiskConfig>) -> Self {
        StorageConfig { cluster, disks, engine: EngineOptions::default(), bytes_in_flight_max: BYTES_IN_FLIGHT_MAX }
    }
}

/// What a fresh disk shall be. Ids and stamp are the caller's chance.
#[derive(Clone, Debug)]
pub struct FormatConfig {
    /// The disk's folder: empty, or absent.
    pub path: PathBuf,
    /// The cluster that it becomes part of.
    pub cluster: ClusterId,
    /// Its id, drawn at random.
    pub disk: DiskId,
    /// Its incarnation, 1 for a new disk.
    pub incarnation: Incarnation,
    /// Bytes of a segment: 256 MiB by default, 64 MiB embedded.
    pub segment_bytes: u32,
    /// Most bytes that the disk may use; rounded down to whole segments.
    pub size_bytes: u64,
    /// A random number, in every record of the disk.
    pub stamp: u64,
}

/// Makes a folder a disk. Refuses one that carries anything, and sizes that no disk can have. Blocks while the
/// first segment is written.
pub fn format_disk(config: &FormatConfig) -> Result<(), StorageError> {
    let fail = |source| StorageError::Journal { path: config.path.display().to_string(), source };
    let segment_count_max = u32::try_from(config.size_bytes / u64::from(config.segment_bytes.max(1)));
    let segment_count_max = segment_count_max.unwrap_or(u32::MAX);
    if config.segment_bytes > SEGMENT_BYTES_MAX {
        return Err(fail(JournalError::Invalid(format!("a segment has at most {SEGMENT_BYTES_MAX} bytes"))));
    }
    let least = crate::space::SEGMENTS_APART + 3;
    if u64::from(segment_count_max) < least {
        return Err(fail(JournalError::Invalid(format!("a disk needs room for {least} segments"))));
    }
    let format = Format {
        identity: DiskIdentity { cluster: config.cluster, disk: config.disk, incarnation: config.incarnation },
        segment_bytes: config.segment_bytes,
        segment_count_max,
        segment_count_initial: 1,
        fill: plinth_journal::Fill::Allocated,
        stamp: config.stamp,
    };
    let mut disk = UringDisk::create(&config.path).map_err(fail)?;
    plinth_journal::format(&mut disk, &format).map_err(fail)
}

/// The way back to an asynchronous caller. Holds the request's share of the budget.
struct Caller {
    sender: oneshot::Sender<Answer>,
    permit: Permit,
}

impl Ticket for Caller {
    fn is_cancelled(&self) -> bool {
        self.sender.is_closed()
    }

    fn reserve(&mut self, bytes: u64) -> bool {
        self.permit.grow(bytes)
    }

    fn answer(self, answer: Answer) {
        let answer = answer.map(|(reply, bytes)| {
            let bytes = if bytes.is_empty() { bytes } else { self.permit.guard(bytes) };
            (reply, bytes)
        });
        // A caller that has gone is not told.
        let _ = self.sender.send(answer);
    }
}

/// A disk in service.
struct Port {
    path: PathBuf,
    identity: DiskIdentity,
    handle: Handle<Command<Caller>>,
    stats: Arc<DiskStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    cluster: ClusterId,
    engine: EngineOptions,
    budget: Arc<Budget>,
    ports: RwLock<BTreeMap<DiskId, Arc<Port>>>,
}

/// The counters of one disk, for metrics.
#[derive(Clone, Debug)]
pub struct DiskMetrics {
    /// The disk.
    pub disk: DiskId,
    /// Its folder.
    pub path: PathBuf,
    /// Its counters.
    pub stats: DiskStatsSnapshot,
}

/// What a disk said when it was opened.
#[derive(Debug)]
pub struct OpenedDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What its start-up found.
    pub report: RecoveryReport,
}

/// A storage node. Cheap to clone; the disks stop when the last clone is gone.
#[derive(Clone)]
pub struct StorageNode {
    shared: Arc<Shared>,
}

impl StorageNode {
    /// Opens all disks, side by side. A disk that cannot be opened does not hinder the others: it is
    /// logged, and missing in [`StorageNode::disks`]. Fails only where none of them can be opened.
    pub async fn open(config: StorageConfig) -> Result<StorageNode, StorageError> {
        let shared = Shared {
            cluster: config.cluster,
            engine: config.engine,
            budget: Budget::new(config.bytes_in_flight_max),
            ports: RwLock::default(),
        };
        let node = StorageNode { shared: Arc::new(shared) };
        let opening: Vec<_> = config.disks.into_iter().map(|disk| tokio::spawn(node.clone().open_disk(disk))).collect();
        let (mut opened, mut failed) = (0, None);
        for disk in opening {
            match disk.await.unwrap_or(Err(StorageError::ShuttingDown)) {
                Ok(_) => opened += 1,
                Err(error) => {
                    tracing::error!(%error, "disk not in service");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if opened == 0 => Err(error),
            _ => Ok(node),
        }
    }

    /// Takes another disk into service while the node runs.
    pub async fn add_disk(&self, disk: DiskConfig) -> Result<OpenedDisk, StorageError> {
        self.clone().open_disk(disk).await
    }

    async fn open_disk(self, config: DiskConfig) -> Result<OpenedDisk, StorageError> {
        let shared = self.shared.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let path = config.path.clone();
            let opened = open_port(shared.cluster, &shared.engine, config);
            opened.map_err(|error| error.at(&path))
        });
        let (port, report) = opening.await.unwrap_or(Err(StorageError::ShuttingDown))?;
        let DiskIdentity { disk, incarnation, .. } = port.identity;
        let mut ports = self.shared.ports.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if ports.contains_key(&disk) {
            return Err(StorageError::Duplicate(disk));
        }
        ports.insert(disk, Arc::new(port));
        Ok(OpenedDisk { disk, incarnation, report })
    }

    fn port(&self, disk: DiskId) -> Option<Arc<Port>> {
        self.ports_now().get(&disk).cloned()
    }

    fn ports_now(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<DiskId, Arc<Port>>> {
        self.shared.ports.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Serves a request until `deadline`. The payload of a put should be block-aligned: otherwise it
    /// is copied once.
    ///
    /// Fails with `Unavailable` where the disk is not here under this incarnation, with `Busy` where
    /// too much is in flight, with `Conflict` where a put names a deleted fragment, and as the disk's
    /// engine decides.
    pub async fn handle(
        &self,
        request: StorageRequest,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(StorageReply, Vec<Bytes>), Failure> {
        let StorageRequest { disk, incarnation, class, action } = request;
        let Some(port) = self.port(disk) else {
            return Err(Failure::new(FailureKind::Unavailable, format!("disk {disk} is not in service here")));
        };
        if port.identity.incarnation != incarnation {
            let here = port.identity.incarnation;
            let text = format!("disk {disk} is {here} here, not {incarnation}");
            return Err(Failure::new(FailureKind::Unavailable, text));
        }
        if matches!(action, StorageAction::Disk) {
            return Ok((StorageReply::Disk(port.stat()), Vec::new()));
        }
        let changes = matches!(action, StorageAction::Put(_) | StorageAction::Delete(_));
        // A read takes the memory for its frames when it begins: only its disk knows how many there are.
        let bytes = REQUEST_BYTES + payload.len() as u64;
        let Some(permit) = self.shared.budget.take(bytes) else {
            return Err(busy("too many bytes are in flight in this process"));
        };
        let (sender, answer) = oneshot::channel();
        let request = Request {
            class,
            action,
            payload: into_aligned(payload),
            arrived: Instant::now().into_std(),
            deadline: deadline.into_std(),
            ticket: Caller { sender, permit },
        };
        match port.handle.send(Command::Serve(request), bytes as usize) {
            Ok(()) => {}
            Err(SendRefused::Busy(_)) => return Err(busy("the way to the disk's thread is full")),
            Err(SendRefused::Gone(_)) => return Err(ended()),
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer.map(|(reply, bytes)| {
                let parts = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
                (reply, parts)
            }),
            Ok(Err(_)) => Err(if changes { unknown("the disk's thread ended") } else { ended() }),
            Err(_) if changes => Err(unknown("time ran out")),
            Err(_) => Err(Failure::new(FailureKind::Unavailable, "time ran out")),
        }
    }

    /// Returns sizes and counters of all disks in service.
    pub fn disks(&self) -> Vec<DiskStat> {
        self.ports_now().values().map(|port| port.stat()).collect()
    }

    /// Returns the counters of all disks in service, for metrics.
    pub fn metrics(&self) -> Vec<DiskMetrics> {
        let ports = self.ports_now();
        let metrics = ports.iter().map(|(&disk, port)| DiskMetrics {
            disk,
            path: port.path.clone(),
            stats: port.stats.snapshot(),
        });
        metrics.collect()
    }

    /// Returns the bytes of requests in flight, all disks together.
    pub fn bytes_in_flight(&self) -> u64 {
        self.shared.budget.used_bytes()
    }

    /// Stops all disks: what was begun is finished, a checkpoint written, the threads joined.
    /// Requests that come later are refused.
    pub async fn shutdown(self) {
        let ports = {
            let mut ports = self.shared.ports.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            std::mem::take(&mut *ports)
        };
        for port in ports.values() {
            // A full queue is drained by the thread: the shutdown must get in.
            while let Err(SendRefused::Busy(_)) = port.handle.send(Command::Shutdown, 0) {
                tokio::task::yield_now().await;
            }
        }
        let join = tokio::task::spawn_blocking(move || {
            for port in ports.into_values() {
                let thread = port.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
                drop(port);
                if let Some(thread) = thread
                    && thread.join().is_err()
                {
                    tracing::error!("a disk's thread panicked");
                }
            }
        });
        let _ = join.await;
    }
}

impl Port {
    fn stat(&self) -> DiskStat {
        DiskStat {
            disk: self.identity.disk,
            incarnation: self.identity.incarnation,
            size_bytes: self.stats.size_bytes.load(Relaxed),
            used_bytes: self.stats.used_bytes.load(Relaxed),
            fragments: self.stats.fragments.load(Relaxed),
            fenced: self.stats.fenced.get().cloned(),
            quarantined: self.stats.quarantined.load(Relaxed),
            write_stop_bytes: Some(self.stats.write_stop_bytes.load(Relaxed)),
        }
    }
}

fn busy(text: &str) -> Failure {
    Failure { retry_after_ms: Some(BUSY_RETRY_MS), ..Failure::new(FailureKind::Busy, text) }
}

fn ended() -> Failure {
    Failure::new(FailureKind::Unavailable, "the disk's thread has ended")
}

fn unknown(text: &str) -> Failure {
    Failure::new(FailureKind::Unknown, format!("{text} while the change was under way"))
}

/// Why a disk's thread did not come up.
enum OpenError {
    Journal(JournalError),
    Thread(std::io::Error),
}

impl From<std::io::Error> for OpenError {
    fn from(error: std::io::Error) -> Self {
        OpenError::Thread(error)
    }
}

impl OpenError {
    fn at(self, path: &Path) -> StorageError {
        let path = path.display().to_string();
        match self {
            OpenError::Journal(source) => StorageError::Journal { path, source },
            OpenError::Thread(source) => StorageError::Thread { path, source },
        }
    }
}

/// Starts the thread of a disk, which opens, recovers and then serves it.
fn open_port(
    cluster: ClusterId,
    options: &EngineOptions,
    config: DiskConfig,
) -> Result<(Port, RecoveryReport), OpenError> {
    let DiskConfig { path, expected } = config;
    let options = options.clone();
    let folder = path.clone();
    let open = move || {
        let disk = UringDisk::open(&folder).map_err(OpenError::Journal)?;
        let expected = expected.map(|(disk, incarnation)| DiskIdentity { cluster, disk, incarnation });
        let recovery = Recovery::start(disk, expected).map_err(OpenError::Journal)?;
        let identity = recovery.superblock().identity;
        if identity.cluster != cluster {
            return Err(OpenError::Journal(JournalError::Foreign {
                found_cluster: identity.cluster,
                found_disk: identity.disk,
                found_incarnation: identity.incarnation,
            }));
        }
        let Opened { engine, disk, report } =
            Engine::<Caller>::recover(Instant::now().into_std(), recovery, options).map_err(OpenError::Journal)?;
        let stats = engine.stats();
        Ok((engine, disk, (identity, stats, report)))
    };
    let bounds = QueueBounds { requests_max: REQUESTS_MAX, bytes_max: BYTES_IN_FLIGHT_MAX as usize };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (handle, (identity, stats, report), thread) = spawn(&format!("disk-{name}"), bounds, open)?;
    tracing::info!(disk = %identity.disk, fragments = report.fragments, replayed = report.replayed, "disk in service");
    Ok((Port { path, identity, handle, stats, thread: Mutex::new(Some(thread)) }, report))
}
