//! Openraft's state machine on our own: entries in, rows and outcomes out; snapshots as folders.

use super::applier::{Applier, Step, Work, patiently};
use super::snapshot::{FolderGuard, ShardFolder};
use super::words::{
    Config, RaftLeaderId, SnapshotMeta, StoredMembership, decode_stored, encode_stored, from_raft, to_raft,
};
use crate::MetaError;
use crate::batch::decode_batch;
use crate::files::Files;
use crate::log::LogId;
use crate::log::engine::lock;
use crate::state::{Applied, LogPosition, Machine, Reader, RocksMemory, RocksStore};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use plinth_protocol::meta::{Command, Mutation};
use plinth_protocol::{GROUP_SYSTEM, GroupId, HybridTime};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most entries that go to the applying thread at once.
const ENTRIES_PER_TURN_MAX: usize = 64;

/// A snapshot with what it holds.
pub(crate) type RaftSnapshot = openraft::Snapshot<RaftLeaderId, u64, openraft::impls::BasicNode, SnapshotFolder>;

/// What a snapshot is, from the moment it is made to the moment it is installed.
pub(crate) enum SnapshotFolder {
    /// What the database has flushed: nothing to send, only to know how far the log may go.
    Flushed,
    /// A folder of files: a checkpoint to be sent, or a snapshot received and durable.
    Files(FolderGuard),
}

/// Called after commands of the system group have changed voters or the map.
pub(crate) type RegistryHook = Arc<dyn Fn(&Reader<RocksStore>) + Send + Sync>;

/// What a replica's machine shares with its readers and its keeper.
pub(crate) struct Shard {
    pub(crate) group: GroupId,
    files: Arc<dyn Files>,
    memory: RocksMemory,
    folder: Mutex<ShardFolder>,
    reader: Mutex<Reader<RocksStore>>,
    /// Set once openraft runs: before, a snapshot is asked for only by its position.
    running: AtomicBool,
    /// Bytes and entries applied since the last flush began.
    pub(crate) unflushed_bytes: AtomicU64,
    pub(crate) unflushed_entries: AtomicU64,
    /// The last position that a flush has made durable.
    flushed: Mutex<Option<LogId>>,
    /// The log must keep what it has: the rows are about to be a peer's.
    is_log_held: AtomicBool,
    /// The time of the last command applied.
    time: AtomicU64,
    hook: Option<RegistryHook>,
}

impl Shard {
    /// Opens the database that counts, and returns its machine.
    pub(crate) fn open(
        group: GroupId,
        files: Arc<dyn Files>,
        memory: RocksMemory,
        folder: PathBuf,
        hook: Option<RegistryHook>,
    ) -> Result<(Arc<Shard>, ShardMachine), MetaError> {
        let folder = ShardFolder::open(files.clone(), folder)?;
        let machine = open_machine(group, &folder.database(), &memory)?;
        let flushed = machine.position().map(log_id_of);
        let reader = machine.reader();
        let time = AtomicU64::new(machine.time().0);
        if let Some(hook) = &hook {
            hook(&reader);
        }
        let shard = Arc::new(Shard {
            group,
            files,
            memory,
            folder: Mutex::new(folder),
            reader: Mutex::new(reader),
            running: AtomicBool::new(false),
            unflushed_bytes: AtomicU64::new(0),
            unflushed_entries: AtomicU64::new(0),
            flushed: Mutex::new(flushed),
            is_log_held: AtomicBool::new(false),
            time,
            hook,
        });
        // The thread keeps no database open that nobody else uses.
        let applying = Arc::downgrade(&shard);
        let apply = move |machine: &mut _, step, is_stopped: &dyn Fn() -> bool| match applying.upgrade() {
            Some(shard) => shard.apply(machine, step, is_stopped),
            None => Err(MetaError::Stopped("the replica has been closed".into())),
        };
        let applier = Applier::start(group, apply)?;
        Ok((shard.clone(), ShardMachine { shard, machine: Some(machine), applier }))
    }

    /// Returns a reader of the rows as they stand now.
    pub(crate) fn reader(&self) -> Reader<RocksStore> {
        lock(&self.reader).clone()
    }

    /// Returns the time of the last command applied.
    pub(crate) fn time(&self) -> HybridTime {
        HybridTime(self.time.load(Ordering::Acquire))
    }

    /// Tells that openraft runs: from now on a snapshot that is asked for will be sent.
    pub(crate) fn set_running(&self) {
        self.running.store(true, Ordering::Release);
    }

    /// Returns the position up to which the log may go.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        *lock(&self.flushed)
    }

    /// Sets whether the log must keep all that it has.
    pub(crate) fn hold_log(&self, is_held: bool) {
        self.is_log_held.store(is_held, Ordering::Release);
    }

    /// Returns whether the log must keep all that it has.
    pub(crate) fn is_log_held(&self) -> bool {
        self.is_log_held.load(Ordering::Acquire)
    }

    /// Returns the bytes of the database's files.
    pub(crate) fn database_bytes(&self) -> u64 {
        let path = lock(&self.folder).database();
        self.files.size_bytes(&path).unwrap_or(0)
    }

    /// Applies one entry and answers for it. Blocks.
    fn apply(
        &self,
        machine: &mut Machine<RocksStore>,
        step: Step,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), MetaError> {
        let Step { at, work, answer } = step;
        let mut bytes = 0;
        let mut outcomes = Vec::new();
        match work {
            Work::Blank => patiently(is_stopped, || machine.apply_blank(at.clone()))?,
            Work::Membership(stored) => patiently(is_stopped, || machine.apply_membership(at.clone(), &stored))?,
            Work::Batch(payload) => {
                bytes = payload.len() as u64;
                let (time, mutations) = decode_batch(&payload)?;
                outcomes = patiently(is_stopped, || machine.apply(at.clone(), time, &mutations))?;
                self.time.fetch_max(machine.time().0, Ordering::AcqRel);
                if let Some(hook) = &self.hook
                    && mutations.iter().any(changes_registry)
                {
                    hook(&self.reader());
                }
            }
        }
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unflushed_entries.fetch_add(1, Ordering::Relaxed);
        if let Some(answer) = answer {
            answer(outcomes);
        }
        Ok(())
    }

    /// Makes everything applied durable, and returns what that is. Blocks.
    pub(crate) fn flush(&self) -> Result<SnapshotMeta, MetaError> {
        self.unflushed_bytes.store(0, Ordering::Relaxed);
        self.unflushed_entries.store(0, Ordering::Relaxed);
        let reader = self.reader();
        reader.flush()?;
        let meta = meta_of(&reader.flushed()?)?;
        let position = meta.last_log_id.as_ref().map(from_raft);
        let mut flushed = lock(&self.flushed);
        *flushed = (*flushed).max(position);
        Ok(meta)
    }

    /// Makes a checkpoint for sending. Blocks.
    pub(super) fn checkpoint(&self) -> Result<(SnapshotMeta, FolderGuard), MetaError> {
        let path = lock(&self.folder).copy_path();
        let guard = FolderGuard::new(self.files.clone(), path);
        let applied = self.reader().checkpoint(guard.path())?;
        Ok((meta_of(&applied)?, guard))
    }

    /// Puts a peer's database in the place of the present one, which no replica uses any more, and returns the old one's
    /// folder. The next replica opens it. Blocks.
    pub(crate) fn replace(&self, meta: &SnapshotMeta, received: FolderGuard) -> Result<FolderGuard, MetaError> {
        let adopted = lock(&self.folder).adopt(received)?;
        let machine = open_machine(self.group, adopted.path(), &self.memory)?;
        let (found, expected) = (machine.position().map(log_id_of), meta.last_log_id.as_ref().map(from_raft));
        drop(machine);
        if found != expected {
            return Err(MetaError::Corrupt(format!("the peer's rows end at {found:?}, not at {expected:?}")));
        }
        lock(&self.folder).switch(adopted)
    }

    /// Puts a received database in the place of the present one, and returns its machine. Blocks.
    fn install(&self, meta: &SnapshotMeta, received: FolderGuard) -> Result<Installed, MetaError> {
        let adopted = lock(&self.folder).adopt(received)?;
        let machine = open_machine(self.group, adopted.path(), &self.memory)?;
        let (found, expected) = (machine.position().map(log_id_of), meta.last_log_id.as_ref().map(from_raft));
        if found != expected {
            return Err(MetaError::Corrupt(format!("snapshot holds {found:?}, not {expected:?}")));
        }
        let old = lock(&self.folder).switch(adopted)?;
        *lock(&self.reader) = machine.reader();
        *lock(&self.flushed) = found;
        self.time.fetch_max(machine.time().0, Ordering::AcqRel);
        if let Some(hook) = &self.hook {
            hook(&machine.reader());
        }
        Ok(Installed { machine, old })
    }
}

/// A new database in service, and the folder of the old one, which goes with it.
struct Installed {
    machine: Machine<RocksStore>,
    old: FolderGuard,
}

fn open_machine(
    group: GroupId,
    path: &std::path::Path,
    memory: &RocksMemory,
) -> Result<Machine<RocksStore>, MetaError> {
    Ok(Machine::open(RocksStore::open(path, memory)?, group)?)
}

fn log_id_of(position: &LogPosition) -> LogId {
    LogId { term: position.term, leader: position.leader, index: position.index }
}

fn position_of(id: LogId) -> LogPosition {
    LogPosition { term: id.term, leader: id.leader, index: id.index }
}

fn meta_of(applied: &Applied) -> Result<SnapshotMeta, MetaError> {
    Ok(SnapshotMeta {
        last_log_id: applied.position.as_ref().map(|position| to_raft(log_id_of(position))),
        last_membership: membership_of(applied)?,
    })
}

fn membership_of(applied: &Applied) -> Result<StoredMembership, MetaError> {
    match &applied.membership {
        Some(bytes) => Ok(decode_stored(bytes)?),
        None => Ok(StoredMembership::default()),
    }
}

/// The state machine of one replica, as openraft drives it.
pub(crate) struct ShardMachine {
    shard: Arc<Shard>,
    /// Absent while entries are applied.
    machine: Option<Machine<RocksStore>>,
    applier: Applier,
}

impl ShardMachine {
    fn machine(&mut self) -> Result<&mut Machine<RocksStore>, io::Error> {
        self.machine.as_mut().ok_or_else(machine_lost)
    }

    /// Applies a run of entries on the replica's own thread.
    async fn take_turn(&mut self, steps: Vec<Step>) -> Result<(), io::Error> {
        let machine = self.machine.take().ok_or_else(machine_lost)?;
        let (machine, taken) = self.applier.apply(machine, steps).await?;
        self.machine = Some(machine);
        Ok(taken?)
    }
}

fn machine_lost() -> io::Error {
    io::Error::other("the replica lost its database while entries were applied")
}

/// Makes a step of an entry.
fn step_of((entry, responder): EntryResponder<Config>) -> Step {
    let work = match entry.payload {
        EntryPayload::Blank => Work::Blank,
        EntryPayload::Normal(batch) => Work::Batch(batch.0),
        EntryPayload::Membership(membership) => {
            Work::Membership(encode_stored(&StoredMembership::new(Some(entry.log_id), membership)))
        }
    };
    let answer = responder.map(|responder| {
        let answer: Box<dyn FnOnce(_) + Send> = Box::new(move |outcomes| responder.send(outcomes));
        answer
    });
    Step { at: position_of(from_raft(&entry.log_id)), work, answer }
}

/// Whether voters or addresses may differ after this mutation.
fn changes_registry(mutation: &Mutation) -> bool {
    mutation.group == GROUP_SYSTEM
        && matches!(
            mutation.command,
            Command::Found(_) | Command::RegisterNode(_) | Command::RecordVoter(_) | Command::SetVoters(_)
        )
}

impl RaftStateMachine<Config> for ShardMachine {
    type SnapshotData = SnapshotFolder;
    type SnapshotBuilder = Flusher;

    async fn applied_state(&mut self) -> Result<(Option<super::words::RaftLogId>, StoredMembership), io::Error> {
        let applied = self.machine()?.reader().applied().map_err(MetaError::from)?;
        let meta = meta_of(&applied)?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Config>, io::Error>> + Unpin + OptionalSend,
    {
        // Openraft's stream must not be asked again once it has ended.
        let mut entries = entries.fuse();
        while let Some(first) = entries.try_next().await? {
            let mut steps = vec![step_of(first)];
            // What is there already goes along; nothing is waited for.
            let mut broken = None;
            while steps.len() < ENTRIES_PER_TURN_MAX && broken.is_none() {
                match entries.next().now_or_never().flatten() {
                    Some(Ok(entry)) => steps.push(step_of(entry)),
                    Some(Err(error)) => broken = Some(error),
                    None => break,
                }
            }
            self.take_turn(steps).await?;
            if let Some(error) = broken {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Flusher { shard: self.shard.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFolder) -> Result<(), io::Error> {
        let SnapshotFolder::Files(folder) = snapshot else {
            return Err(io::Error::other("the database already holds what it has flushed"));
        };
        // Let go of the old database only when the new one stands: a failure leaves the old one in service.
        let (shard, meta) = (self.shard.clone(), meta.clone());
        let Installed { machine, old } = blocking(move || shard.install(&meta, folder)).await?;
        // The old database closes, unless a reader still uses it; then its files go.
        let replaced = self.machine.replace(machine);
        Ok(drop_blocking((replaced, old)).await?)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        if self.machine()?.position().is_none() {
            return Ok(None);
        }
        let shard = self.shard.clone();
        if !shard.running.load(Ordering::Acquire) {
            let meta = meta_of(&shard.reader().flushed().map_err(MetaError::from)?)?;
            if meta.last_log_id.is_none() {
                return Ok(None);
            }
            return Ok(Some(RaftSnapshot { meta, snapshot: SnapshotFolder::Flushed }));
        }
        let (meta, folder) = blocking(move || shard.checkpoint()).await?;
        Ok(Some(RaftSnapshot { meta, snapshot: SnapshotFolder::Files(folder) }))
    }
}

/// Makes what is applied durable, so that the log may go: our way to build a snapshot.
pub(crate) struct Flusher {
    shard: Arc<Shard>,
}

impl RaftSnapshotBuilder<Config> for Flusher {
    type SnapshotData = SnapshotFolder;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let shard = self.shard.clone();
        let meta = blocking(move || shard.flush()).await?;
        Ok(RaftSnapshot { meta, snapshot: SnapshotFolder::Flushed })
    }
}

/// Runs what waits for a disk away from the tasks.
pub(crate) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, MetaError> + Send + 'static,
) -> Result<R, MetaError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(MetaError::Stopped(format!("blocking work ended early: {error}"))),
    }
}

/// Drops what closes a database or takes a folder along: either may take long.
pub(crate) async fn drop_blocking(dropped: impl Send + 'static) -> Result<(), MetaError> {
    blocking(move || {
        drop(dropped);
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, encode_mutation};
    use crate::files::SystemFiles;
    use crate::raft::words::Batch;
    use plinth_protocol::{HybridTime, NodeId, RequestId};
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    /// On a runtime of one worker, as in the smallest node: an entry that takes as long as it likes holds up no task.
    #[tokio::test]
    async fn heartbeats_go_on_while_an_entry_is_applied() {
        let folder = tempfile::tempdir().unwrap();
        let (applying, seen) = channel();
        let (go_on, gate) = sync_channel(0);
        let gate = Mutex::new(gate);
        let hook: RegistryHook = Arc::new(move |_| {
            // The first call opens the database; the next ones are in the middle of an entry.
            applying.send(()).unwrap();
            let _ = lock(&gate).recv_timeout(Duration::from_secs(10));
        });
        let path = folder.path().join("0");
        let open = tokio::task::spawn_blocking(move || {
            Shard::open(GROUP_SYSTEM, Arc::new(SystemFiles), RocksMemory::new(1 << 20, 1 << 20), path, Some(hook))
        });
        seen.recv().unwrap();
        go_on.send(()).unwrap();
        let (_shard, mut machine) = open.await.unwrap().unwrap();
        let command = Command::SetVoters(plinth_protocol::meta::SetVoters {
            shard: plinth_protocol::map::ShardRecord {
                group: GroupId(1),
                start: plinth_protocol::map::ShardStart { bucket: plinth_protocol::BucketId(0), key: String::new() },
                voters: vec![NodeId(1)],
            },
        });
        let mutation = Mutation {
            group: GROUP_SYSTEM,
            request: RequestId(1),
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        };
        let mut batch = BatchBuilder::with_capacity(0);
        batch.push(&encode_mutation(&mutation));
        let id = to_raft(LogId { term: 1, leader: NodeId(1), index: 1 });
        let entry = openraft::Entry { log_id: id, payload: EntryPayload::Normal(Batch(batch.finish(HybridTime(1)))) };
        let apply = tokio::spawn(async move {
            // As openraft's own, the stream panics when it is asked behind its end.
            let entries = futures_util::stream::unfold(Some(entry), |left| async { Some((Ok((left?, None)), None)) });
            machine.apply(Box::pin(entries)).await.unwrap();
            machine
        });
        // This task is the heartbeat: it runs on the same worker, and only it lets the entry go on.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while seen.try_recv().is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the entry is being applied");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!apply.is_finished());
        go_on.send(()).unwrap();
        let mut machine = apply.await.unwrap();
        assert_eq!(machine.machine().unwrap().position().unwrap().index, 1);
    }
}
