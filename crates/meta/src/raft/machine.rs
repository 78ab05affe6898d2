//! Openraft's state machine on our own: entries in, rows and outcomes out; snapshots as folders.

use super::snapshot::{FolderGuard, ShardFolder};
use super::words::{
    Config, RaftLeaderId, SnapshotMeta, StoredMembership, decode_stored, encode_stored, from_raft, to_raft,
};
use crate::MetaError;
use crate::batch::decode_batch;
use crate::files::Files;
use crate::log::LogId;
use crate::log::engine::lock;
use crate::state::{Applied, LogPosition, Machine, Reader, RocksMemory, RocksStore, StateError};
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use plinth_protocol::meta::{Command, Mutation};
use plinth_protocol::{GROUP_SYSTEM, GroupId};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long an entry waits for a database that asks for time before it is tried again.
const STALL_PAUSE: Duration = Duration::from_millis(5);

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
            hook,
        });
        Ok((shard.clone(), ShardMachine { shard, machine: Some(machine) }))
    }

    /// Returns a reader of the rows as they stand now.
    pub(crate) fn reader(&self) -> Reader<RocksStore> {
        lock(&self.reader).clone()
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
    /// Absent only while a snapshot is being installed.
    machine: Option<Machine<RocksStore>>,
}

impl ShardMachine {
    fn machine(&mut self) -> Result<&mut Machine<RocksStore>, io::Error> {
        self.machine
            .as_mut()
            .ok_or_else(|| io::Error::other("the replica lost its database while a snapshot was installed"))
    }

    /// Takes a step of the machine; where the database asks for time, again a little later.
    async fn take<R>(
        &mut self,
        mut step: impl FnMut(&mut Machine<RocksStore>) -> Result<R, StateError>,
    ) -> Result<R, io::Error> {
        loop {
            match step(self.machine()?) {
                Err(StateError::Stalled) => tokio::time::sleep(STALL_PAUSE).await,
                taken => return Ok(taken.map_err(MetaError::from)?),
            }
        }
    }

    async fn apply_batch(
        &mut self,
        at: LogPosition,
        payload: &[u8],
    ) -> Result<Vec<plinth_protocol::meta::Outcome>, io::Error> {
        let (time, mutations) = decode_batch(payload)?;
        let outcomes = self.take(|machine| machine.apply(at.clone(), time, &mutations)).await?;
        if let Some(hook) = &self.shard.hook
            && mutations.iter().any(changes_registry)
        {
            hook(&self.shard.reader());
        }
        Ok(outcomes)
    }
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

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Config>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = from_raft(&entry.log_id);
            let at = position_of(id);
            let mut bytes = 0;
            let outcomes = match entry.payload {
                EntryPayload::Blank => {
                    self.take(|machine| machine.apply_blank(at.clone())).await?;
                    Vec::new()
                }
                EntryPayload::Normal(batch) => {
                    bytes = batch.0.len() as u64;
                    self.apply_batch(at, &batch.0).await?
                }
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership);
                    let stored = encode_stored(&stored);
                    self.take(|machine| machine.apply_membership(at.clone(), &stored)).await?;
                    Vec::new()
                }
            };
            self.shard.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.shard.unflushed_entries.fetch_add(1, Ordering::Relaxed);
            if let Some(responder) = responder {
                responder.send(outcomes);
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
