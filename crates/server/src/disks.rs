//! A node's disks: which it has, which of them are there, and what the cluster is told of them.
//!
//! A node remembers in `disks.toml`, in its data folder, every disk that it has ever opened and under
//! which folder. A remembered folder that is empty is a file system that is not mounted, or a disk that was
//! exchanged: it is not formatted, the disk is reported as down, and the others serve. Only an
//! operator's order, `plinth disk add`, makes an empty folder a new disk then. Disks that were added by
//! command are opened at every start, as those of the configuration are.

use crate::config::Config;
use crate::files;
use crate::init;
use crate::service::ProcessControl;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::draw;
use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, DiskRecord, State};
use plinth_protocol::meta::{
    AdminReply, AdminRequest, Command, DiskFolder, NodeReason, Outcome, Query, Reply, SetDiskState,
};
use plinth_protocol::storage::DiskStat;
use plinth_protocol::{DiskId, Failure, FailureKind, GROUP_SYSTEM, Incarnation, NodeId};
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode};
use plinth_transport::{BoxFuture, Identity};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// How often a storage node reports its disks to the system group.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How long one report of all disks may take.
const REPORT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a disk may still be held by the process that served it last.
const LOCK_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause before such a disk is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Reports that operators wait for at once.
const WAITING_MAX: usize = 16;
/// Name of the file in the node's data folder.
const FILE: &str = "disks.toml";
/// Version of that file.
const FILE_VERSION: u32 = 1;

/// A disk that the node has opened once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDisk {
    /// Its folder, absolute.
    pub path: PathBuf,
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Whether it was added by command and stands in no configuration.
    pub added: bool,
}

impl KnownDisk {
    fn identity(&self) -> Option<(DiskId, Incarnation)> {
        Some((DiskId(u128::from_str_radix(&self.id, 16).ok()?), Incarnation(self.incarnation)))
    }
}

/// The file `disks.toml`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskFile {
    version: u32,
    #[serde(default)]
    disk: Vec<KnownDisk>,
}

/// What a node knows of its disks over restarts.
pub struct Memory {
    file: PathBuf,
    disks: Mutex<Vec<KnownDisk>>,
    /// Why disks are not in service, by folder.
    troubles: Mutex<BTreeMap<PathBuf, String>>,
    /// Held while a disk is added: two orders for one folder must not format it at once.
    adding: tokio::sync::Mutex<()>,
}

impl Memory {
    /// Reads what the node knows; nothing at its first start.
    pub fn load(data: &Path) -> Result<Memory, Trouble> {
        let file = data.join(FILE);
        if !files::exists(&file) {
            return Ok(Memory {
                file,
                disks: Mutex::default(),
                troubles: Mutex::default(),
                adding: Default::default(),
            });
        }
        let text = files::read_text(&file).map_err(|error| init::file_trouble(&file, error))?;
        let wrong = |what: String| Trouble::new(Exit::Failed, "E2016", format!("{}: {what}", file.display()));
        let content: DiskFile = toml::from_str(&text).map_err(|error| wrong(error.message().to_string()))?;
        if content.version != FILE_VERSION {
            return Err(wrong(format!("version {} is not known here", content.version)));
        }
        if let Some(bad) = content.disk.iter().find(|disk| disk.identity().is_none()) {
            return Err(wrong(format!("\"{}\" is no disk id", bad.id)));
        }
        let (disks, troubles) = (Mutex::new(content.disk), Mutex::default());
        Ok(Memory { file, disks, troubles, adding: Default::default() })
    }

    fn at(&self, path: &Path) -> Option<KnownDisk> {
        self.lock().iter().find(|disk| disk.path == path).cloned()
    }

    /// Returns the folders of disks that were added by command.
    fn added(&self) -> Vec<PathBuf> {
        self.lock().iter().filter(|disk| disk.added).map(|disk| disk.path.clone()).collect()
    }

    /// Writes down what stands at a folder now. Waits for the file: for blocking threads.
    fn remember(&self, disk: KnownDisk) -> Result<(), Trouble> {
        let mut disks = self.lock();
        let mut changed = disks.clone();
        match changed.iter_mut().find(|known| known.path == disk.path) {
            Some(known) if *known == disk => return Ok(()),
            Some(known) => *known = disk,
            None => changed.push(disk),
        }
        let content = DiskFile { version: FILE_VERSION, disk: changed };
        let text = toml::to_string_pretty(&content).expect("the file's types all have a TOML form");
        files::write_secret(&self.file, text.as_bytes()).map_err(|error| init::file_trouble(&self.file, error))?;
        // Only now: what is not in the file must be written by the next try.
        *disks = content.disk;
        Ok(())
    }

    /// Writes down every disk in service.
    fn remember_all(&self, storage: &StorageNode) -> Result<(), Trouble> {
        for metrics in storage.metrics() {
            let Some(stat) = storage.disks().into_iter().find(|stat| stat.disk == metrics.disk) else { continue };
            let added = self.at(&metrics.path).is_some_and(|known| known.added);
            self.remember(known_disk(metrics.path, &stat, added))?;
        }
        Ok(())
    }

    /// Returns the disks that the node has had and that are not in service.
    fn missing(&self, storage: &StorageNode) -> Vec<DiskId> {
        self.missing_disks(storage).iter().filter_map(KnownDisk::identity).map(|(disk, _)| disk).collect()
    }

    fn missing_disks(&self, storage: &StorageNode) -> Vec<KnownDisk> {
        let here: Vec<DiskId> = storage.disks().iter().map(|stat| stat.disk).collect();
        let is_missing = |known: &&KnownDisk| known.identity().is_none_or(|(disk, _)| !here.contains(&disk));
        self.lock().iter().filter(is_missing).cloned().collect()
    }

    /// Says which disks the node named `name` has had and does not serve, why, and what to do.
    pub fn reasons(&self, storage: &StorageNode, name: &str) -> Vec<NodeReason> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = |known: KnownDisk| {
            let why = troubles.get(&known.path).map_or("the node's log says why", String::as_str);
            let text = format!("disk {} at {} is not in service: {why}", known.id, known.path.display());
            NodeReason { code: "D201".into(), text, next: add_command(name, &known.path) }
        };
        self.missing_disks(storage).into_iter().map(reason).collect()
    }

    fn note_trouble(&self, path: &Path, text: &str) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.insert(path.to_owned(), text.to_owned());
    }

    /// Whether the node has had a disk.
    fn had_disks(&self) -> bool {
        !self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<KnownDisk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the order that makes a folder a new disk.
fn add_command(node: &str, path: &Path) -> String {
    format!("plinth disk add {node} {}", path.display())
}

fn known_disk(path: PathBuf, stat: &DiskStat, added: bool) -> KnownDisk {
    KnownDisk { path, id: stat.disk.to_string(), incarnation: stat.incarnation.0, added }
}

/// Prepares the disks of the configuration and those that were added by command. A disk that is not where
/// it was is left out, loudly; a node that has had disks goes on without any, so that it can be told which to open. Fails
/// where a new node has none.
pub fn prepare(config: &Config, identity: &Identity, memory: &Memory) -> Result<Vec<DiskConfig>, Trouble> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in config.storage.disks.iter().cloned().chain(memory.added()) {
        // A disk that was added by command may stand in the configuration by now.
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let (mut disks, mut last) = (Vec::new(), None);
    for path in paths {
        match prepare_known(config, identity, memory, path.clone()) {
            Ok(disk) => disks.push(disk),
            Err(trouble) => {
                memory.note_trouble(&path, &trouble.text);
                tracing::error!(path = %path.display(), reason = trouble.text, "disk not in service");
                last = Some(trouble);
            }
        }
    }
    match last {
        Some(trouble) if disks.is_empty() && !memory.had_disks() => Err(trouble),
        _ => Ok(disks),
    }
}

fn prepare_known(config: &Config, identity: &Identity, memory: &Memory, path: PathBuf) -> Result<DiskConfig, Trouble> {
    let Some(known) = memory.at(&path) else { return prepare_new(config, identity, path) };
    let entries = files::list(&path).map_err(|error| init::file_trouble(&path, error))?;
    if files::is_blank(&entries) {
        let text = format!(
            "{} is empty and held disk {}: mount its file system and start the node again, or make it a new disk: {}",
            path.display(),
            known.id,
            add_command(&config.node.name, &path)
        );
        return Err(Trouble::new(Exit::Failed, "E2017", text));
    }
    // A disk is known by its id: disks that were swapped are used where they are.
    Ok(DiskConfig { path, expected: None })
}

/// Name of the file that every disk's folder has (`plinth_journal`'s folder).
const SUPERBLOCK: &str = "superblock";
/// Entries of a foreign folder that are named.
const ENTRIES_TOLD_MAX: usize = 3;

/// Refuses a folder that holds something, but no disk.
fn require_disk(path: &Path, entries: &[PathBuf]) -> Result<(), Trouble> {
    if entries.iter().any(|entry| entry.file_name().is_some_and(|name| name == SUPERBLOCK)) {
        return Ok(());
    }
    let names = entries.iter().filter_map(|entry| entry.file_name()).map(|name| name.to_string_lossy());
    let names: Vec<_> = names.take(ENTRIES_TOLD_MAX).collect();
    let text = format!(
        "{} is not empty and holds no Plinth disk (it has {}{}): name an empty folder, or move these files away. \
         Nothing was changed",
        path.display(),
        names.join(", "),
        if entries.len() > ENTRIES_TOLD_MAX { " …" } else { "" }
    );
    Err(Trouble::new(Exit::Conflict, "E2018", text))
}

/// Formats an empty disk folder; leaves one that carries a disk as it is.
fn prepare_new(config: &Config, identity: &Identity, path: PathBuf) -> Result<DiskConfig, Trouble> {
    let entries = files::list(&path).map_err(|error| init::file_trouble(&path, error))?;
    if !files::is_blank(&entries) {
        require_disk(&path, &entries)?;
    } else {
        let capacity = match config.storage.capacity_bytes {
            0 => files::space_bytes(&path).map_err(|error| init::file_trouble(&path, error))?,
            bytes => bytes,
        };
        let disk = DiskId(u128::from_le_bytes(draw()));
        let format = FormatConfig {
            path: path.clone(),
            cluster: identity.cluster,
            disk,
            incarnation: Incarnation(1),
            segment_bytes: config.storage.segment_bytes as u32,
            size_bytes: capacity,
            stamp: u64::from_le_bytes(draw()),
        };
        plinth_storage::format_disk(&format).map_err(|error| Trouble::new(Exit::Failed, "E2011", error.to_string()))?;
        tracing::info!(%disk, "empty disk folder formatted");
    }
    Ok(DiskConfig { path, expected: None })
}

/// Opens the disks of a storage node and writes down which they are.
pub async fn open(config: &Config, identity: &Identity, memory: &Arc<Memory>) -> Result<StorageNode, Trouble> {
    let preparing = (config.clone(), identity.clone(), memory.clone());
    let disks = blocking(move || prepare(&preparing.0, &preparing.1, &preparing.2)).await?;
    let deadline = Instant::now() + LOCK_TIME_MAX;
    let storage = loop {
        match StorageNode::open(StorageConfig::new(identity.cluster, disks.clone())).await {
            Err(error) if error.is_locked() && Instant::now() < deadline => tokio::time::sleep(LOCK_PAUSE).await,
            // Each disk's trouble is logged. A node that has had disks stays up to be told of another.
            Err(error) if !error.is_locked() && memory.had_disks() => {
                for disk in &disks {
                    memory.note_trouble(&disk.path, &error.to_string());
                }
                let none = StorageNode::open(StorageConfig::new(identity.cluster, Vec::new())).await;
                break none.map_err(|error| Trouble::new(Exit::Failed, "E2011", error.to_string()))?;
            }
            opened => break opened.map_err(|error| Trouble::new(Exit::Failed, "E2011", error.to_string()))?,
        }
    };
    for disk in disks {
        open_late(&storage, disk, deadline).await;
    }
    let (memory, opened) = (memory.clone(), storage.clone());
    blocking(move || memory.remember_all(&opened)).await?;
    Ok(storage)
}

/// Does what formats, writes and syncs where nothing else waits for it: a disk's first segment takes seconds.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on disks never panics, and the runtime outlives it")
}

/// Opens a disk that the last process still held: a killed process's ring ends a moment after the process.
async fn open_late(storage: &StorageNode, disk: DiskConfig, deadline: Instant) {
    while !storage.metrics().iter().any(|open| open.path == disk.path) {
        match storage.add_disk(disk.clone()).await {
            Ok(opened) => tracing::info!(disk = %opened.disk, "disk is free and in service"),
            Err(error) if error.is_locked() && Instant::now() < deadline => tokio::time::sleep(LOCK_PAUSE).await,
            // Said when the disks were opened together.
            Err(_) => return,
        }
    }
}

/// Orders a report of all disks now; answered with all that the system group has taken so far.
pub type ReportOrder = oneshot::Sender<BTreeSet<DiskId>>;

/// Makes the way on which reports are ordered.
pub fn report_orders() -> (mpsc::Sender<ReportOrder>, mpsc::Receiver<ReportOrder>) {
    mpsc::channel(WAITING_MAX)
}

/// Orders that a storage node carries out for itself.
pub struct OwnControl {
    /// The node's disks.
    pub storage: StorageNode,
    /// What it knows of them.
    pub memory: Arc<Memory>,
    /// Its configuration.
    pub config: Config,
    /// Its identity.
    pub identity: Identity,
    /// The way to its reports.
    pub reports: mpsc::Sender<ReportOrder>,
}

impl ProcessControl for OwnControl {
    fn control(&self, request: AdminRequest) -> BoxFuture<'static, Result<AdminReply, Failure>> {
        let (storage, memory) = (self.storage.clone(), self.memory.clone());
        let (config, identity, reports) = (self.config.clone(), self.identity.clone(), self.reports.clone());
        Box::pin(async move {
            let folder = match request {
                AdminRequest::AddDisk(path) => DiskFolder { path, create: false },
                AdminRequest::AddDiskFolder(folder) => folder,
                _ => {
                    return Err(Failure::new(
                        FailureKind::Invalid,
                        "only a demo stops and starts its nodes by command",
                    ));
                }
            };
            let path = PathBuf::from(folder.path);
            let disk = add(&storage, &memory, &config, &identity, &path, folder.create).await?;
            let (order, reported) = oneshot::channel();
            let report = match reports.try_send(order) {
                Ok(()) => tokio::time::timeout(REPORT_TIME_MAX, reported).await.ok().and_then(Result::ok),
                Err(_) => None,
            };
            let registered = match report {
                Some(taken) if taken.contains(&disk) => "registered",
                Some(_) => "not registered yet: the node's log says why",
                None => "not registered yet: the cluster did not answer",
            };
            Ok(AdminReply::Done(format!(
                "{} is disk {disk}, {registered}; the node opens it at every start. To use it: plinth layout apply",
                path.display()
            )))
        })
    }
}

async fn add(
    storage: &StorageNode,
    memory: &Arc<Memory>,
    config: &Config,
    identity: &Identity,
    path: &Path,
    create: bool,
) -> Result<DiskId, Failure> {
    let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
    if !path.is_absolute() {
        return Err(invalid(format!("{}: name the folder from the root of the node's file system", path.display())));
    }
    if !create {
        require_folder(path, &config.node.name)?;
    }
    let _alone = memory.adding.lock().await;
    let added = !config.storage.disks.iter().any(|known| known == path);
    let known = match at(storage, path) {
        // In service, but not in the file: writing it failed when the disk was added, and is made up for now.
        Some(stat) if memory.at(path).is_none_or(|known| known.id != stat.disk.to_string()) => {
            known_disk(path.to_path_buf(), &stat, added)
        }
        Some(_) => {
            return Err(Failure::new(FailureKind::Conflict, format!("{} is in service already", path.display())));
        }
        None => {
            let (config, identity, path) = (config.clone(), identity.clone(), path.to_path_buf());
            let disk = blocking(move || {
                files::make_folder(&path).map_err(|error| init::file_trouble(&path, error))?;
                prepare_new(&config, &identity, path)
            });
            let disk = disk.await.map_err(|trouble| match trouble.exit {
                Exit::Conflict => Failure::new(FailureKind::Conflict, trouble.text),
                _ => invalid(trouble.text),
            })?;
            let path = disk.path.clone();
            let opened = storage.add_disk(disk).await.map_err(|error| invalid(error.to_string()))?;
            KnownDisk { path, id: opened.disk.to_string(), incarnation: opened.incarnation.0, added }
        }
    };
    let (memory, (disk, _)) = (memory.clone(), known.identity().expect("made from a disk's own id"));
    let remembered = blocking(move || memory.remember(known)).await;
    remembered.map_err(|trouble| Failure::new(FailureKind::Internal, trouble.text))?;
    Ok(disk)
}

/// Refuses a path that does not exist: a folder made in its place would lie on the root disk.
fn require_folder(path: &Path, node: &str) -> Result<(), Failure> {
    if files::exists(path) {
        return Ok(());
    }
    let text = format!(
        "{} does not exist on {node}: mount the disk there, or add --create to make the folder on the file system that \
         is there now",
        path.display()
    );
    Err(Failure::new(FailureKind::NotFound, text))
}

/// Returns the disk in service at a folder.
fn at(storage: &StorageNode, path: &Path) -> Option<DiskStat> {
    let open = storage.metrics().into_iter().find(|disk| disk.path == path)?;
    storage.disks().into_iter().find(|stat| stat.disk == open.disk)
}

/// What a storage node tells the system group, again and again.
pub struct Reporter {
    /// The node's client.
    pub client: Client,
    /// Its disks.
    pub storage: StorageNode,
    /// What it knows of them.
    pub memory: Arc<Memory>,
    /// Its id.
    pub node: NodeId,
    /// Its name, in front of its disks' names.
    pub name: String,
}

impl Reporter {
    /// Registers disks and reports how full they are, until the node stops.
    pub async fn run(self, mut orders: mpsc::Receiver<ReportOrder>, mut stop: watch::Receiver<bool>) {
        let mut order: Option<ReportOrder> = None;
        let mut reported = BTreeSet::new();
        loop {
            match self.report(&mut reported).await {
                // An operator that no longer waits is not told.
                Ok(()) => drop(order.take().map(|order| order.send(reported.clone()))),
                Err(failure) => tracing::warn!(%failure, "disk report failed"),
            }
            order = tokio::select! {
                () = tokio::time::sleep(REPORT_EVERY) => None,
                Some(order) = orders.recv() => Some(order),
                _ = stop.wait_for(|stop| *stop) => return,
            };
        }
    }

    /// Tells the system group of each disk; one that is refused, a copy or an old image say, silences no other. Fails
    /// where the cluster can't be asked at all.
    async fn report(&self, reported: &mut BTreeSet<DiskId>) -> Result<(), Failure> {
        let deadline = Instant::now() + REPORT_TIME_MAX;
        let mut map = match self.client.query(GROUP_SYSTEM, Query::Map(None), deadline).await? {
            Reply::Map(map) => map,
            _ => return Err(Failure::new(FailureKind::Unavailable, "the cluster has not been founded")),
        };
        for (number, stat) in self.storage.disks().iter().enumerate() {
            let is_first = !reported.contains(&stat.disk);
            let Some(command) = self.judge(&map, number, stat, is_first) else {
                reported.insert(stat.disk);
                continue;
            };
            if let Command::RegisterDisk(record) = &command {
                // The next disk's name is chosen against this one's.
                map.disks.push(record.clone());
            }
            match self.send(command, deadline).await {
                Ok(()) => drop(reported.insert(stat.disk)),
                Err(failure) => tracing::warn!(disk = %stat.disk, %failure, "disk report refused"),
            }
        }
        // Whatever the node itself remembers: a disk that group 0 has here and that is not here is not up.
        let here: BTreeSet<DiskId> = self.storage.disks().iter().map(|stat| stat.disk).collect();
        let own = map.disks.iter().filter(|record| record.node == self.node).map(|record| record.disk);
        let gone: BTreeSet<DiskId> =
            own.chain(self.memory.missing(&self.storage)).filter(|disk| !here.contains(disk)).collect();
        for disk in gone {
            if map.disk(disk).is_some_and(|record| record.node == self.node && record.state == State::Up) {
                tracing::error!(%disk, "disk is missing");
                let down = SetDiskState { disk, state: Some(State::Down), used_bytes: None, quarantined: None };
                if let Err(failure) = self.send(Command::SetDiskState(down), deadline).await {
                    tracing::warn!(%disk, %failure, "disk report refused");
                }
            }
        }
        Ok(())
    }

    /// Decides what is to be said of a disk, if anything: exact figures at a process's first report,
    /// later on only what is worth an epoch of the map.
    fn judge(&self, map: &ClusterMap, number: usize, stat: &DiskStat, is_first: bool) -> Option<Command> {
        let wanted = if stat.fenced.is_some() { State::Failed } else { State::Up };
        let record = |name: String| DiskRecord {
            disk: stat.disk,
            node: self.node,
            incarnation: stat.incarnation,
            state: wanted,
            name,
            size_bytes: stat.size_bytes,
            used_bytes: Some(stat.used_bytes),
            quarantined: Some(stat.quarantined),
            write_stop_bytes: stat.write_stop_bytes,
        };
        let Some(known) = map.disk(stat.disk) else {
            return Some(Command::RegisterDisk(record(free_name(map, &self.name, number))));
        };
        let is_back = matches!(known.state, State::Suspect | State::Down);
        let figures = (Some(stat.used_bytes), Some(stat.quarantined));
        let is_news = is_first
            && ((known.used_bytes, known.quarantined) != figures || known.write_stop_bytes != stat.write_stop_bytes);
        // Whether the largest fragment fits is told at once, however little that changes.
        let now = record(known.name.clone());
        let turns = known.takes(map.fragment_bytes_max) != now.takes(map.fragment_bytes_max);
        if wanted == State::Up && (is_back || is_news || turns) {
            // New processes know their disks better than the map does.
            return Some(Command::RegisterDisk(now));
        }
        // A restarted process has a healthy ring again, but only an operator brings a failed disk back.
        let state = (wanted == State::Failed && known.state == State::Up).then_some(State::Failed);
        if state.is_none() && !known.misleads(stat.used_bytes, stat.quarantined) {
            return None;
        }
        let (used_bytes, quarantined) = figures;
        Some(Command::SetDiskState(SetDiskState { disk: stat.disk, state, used_bytes, quarantined }))
    }

    async fn send(&self, command: Command, deadline: Instant) -> Result<(), Failure> {
        match self.client.mutate(GROUP_SYSTEM, command, None, deadline).await? {
            Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
            _ => Ok(()),
        }
    }
}

/// A name that no disk of the map has: the node's own count, which is no stable order, or the next free number.
fn free_name(map: &ClusterMap, base: &str, number: usize) -> String {
    let mut names = (number..).map(|number| format!("{base}/d{number}"));
    names.find(|name| map.disks.iter().all(|disk| disk.name != *name)).expect("there are more numbers than disks")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::service;

    /// A node's configuration with disks of these names; all its folders are there, and empty.
    fn config(folder: &Path, disks: &[&str]) -> Config {
        let file = folder.join("plinth.toml");
        files::write_public(&file, crate::config::default_text().as_bytes()).unwrap();
        let mut config = Config::load(&file, &[]).unwrap();
        config.storage.segment_bytes = 16 << 20;
        config.storage.capacity_bytes = 16 * (16 << 20);
        config.storage.disks = disks.iter().map(|name| folder.join(name)).collect();
        for path in config.storage.disks.iter().chain([&config.node.data]) {
            files::make_folder(path).unwrap();
        }
        config
    }

    fn identity() -> Identity {
        let roles = vec![plinth_protocol::Role::Storage];
        let cluster = plinth_protocol::ClusterId(7);
        Identity { cluster, node: NodeId(1), roles, incarnation: Incarnation(1) }
    }

    fn load(config: &Config) -> Arc<Memory> {
        Arc::new(Memory::load(&config.node.data).unwrap())
    }

    #[tokio::test]
    async fn an_empty_folder_that_held_a_disk_is_not_formatted() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["first"]), identity());
        let (first, second) = (config.storage.disks[0].clone(), folder.path().join("extra"));
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        let added = add(&storage, &memory, &config, &identity, &second, true).await.unwrap();
        storage.shutdown().await;

        // As after a reboot without this mount.
        files::remove_tree(&first).unwrap();
        files::make_folder(&first).unwrap();
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        assert_eq!(storage.disks().iter().map(|stat| stat.disk).collect::<Vec<_>>(), [added], "the added one is back");
        assert!(files::list(&first).unwrap().is_empty(), "nothing was written where a disk was");
        assert_eq!(memory.missing(&storage).len(), 1);

        // Only an order that names the folder makes it a new disk.
        add(&storage, &memory, &config, &identity, &first, true).await.unwrap();
        assert_eq!(storage.disks().len(), 2);
        assert_eq!(memory.missing(&storage), []);
        storage.shutdown().await;
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        assert_eq!(storage.disks().len(), 2);
        storage.shutdown().await;
    }

    #[tokio::test]
    async fn swapped_disks_are_used_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["one", "two"]), identity());
        let [one, two, aside] = ["one", "two", "aside"].map(|name| folder.path().join(name));
        let memory = load(&config);
        open(&config, &identity, &memory).await.unwrap().shutdown().await;
        let before = (memory.at(&one).unwrap().id, memory.at(&two).unwrap().id);
        for (from, to) in [(&one, &aside), (&two, &one), (&aside, &two)] {
            std::fs::rename(from, to).unwrap();
        }
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        assert_eq!((storage.disks().len(), memory.missing(&storage)), (2, vec![]));
        assert_eq!((memory.at(&two).unwrap().id, memory.at(&one).unwrap().id), before);
        storage.shutdown().await;
    }

    #[tokio::test]
    async fn disks_that_the_last_process_still_holds_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["one", "two"]), identity());
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let memory = load(&config);
        open(&config, &identity, &memory).await.unwrap().shutdown().await;
        // First one disk is held, then both.
        for held in [vec![two.clone()], vec![one.clone(), two.clone()]] {
            let disks = held.into_iter().map(|path| DiskConfig { path, expected: None }).collect();
            let last = StorageNode::open(StorageConfig::new(identity.cluster, disks)).await.unwrap();
            let ending = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                last.shutdown().await;
            });
            let storage = open(&config, &identity, &memory).await.unwrap();
            assert_eq!(storage.disks().len(), 2);
            ending.await.unwrap();
            storage.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_folder_is_added_once_and_by_its_whole_path() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["d1"]), identity());
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        let again = add(&storage, &memory, &config, &identity, &config.storage.disks[0], true).await.unwrap_err();
        assert_eq!(again.kind, FailureKind::Conflict);
        let relative = add(&storage, &memory, &config, &identity, Path::new("d9"), true).await.unwrap_err();
        assert_eq!(relative.kind, FailureKind::Invalid);
        storage.shutdown().await;
    }

    #[tokio::test]
    async fn a_path_that_does_not_exist_or_holds_other_files_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["d1"]), identity());
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        let typo = folder.path().join("mnt/dsik");
        let refused = add(&storage, &memory, &config, &identity, &typo, false).await.unwrap_err();
        assert_eq!(refused.kind, FailureKind::NotFound);
        assert!(refused.text.contains("--create") && !files::exists(&typo), "{}", refused.text);
        let dirty = folder.path().join("dirty");
        files::make_folder(&dirty).unwrap();
        files::write_public(&dirty.join("holiday.jpg"), b"x").unwrap();
        for create in [false, true] {
            let refused = add(&storage, &memory, &config, &identity, &dirty, create).await.unwrap_err();
            assert!(refused.text.contains("holds no Plinth disk (it has holiday.jpg)"), "{}", refused.text);
            assert_eq!(refused.kind, FailureKind::Conflict);
        }
        // As mkfs.ext4 leaves a new file system.
        let fresh = folder.path().join("fresh");
        files::make_folder(&fresh.join("lost+found")).unwrap();
        add(&storage, &memory, &config, &identity, &fresh, false).await.unwrap();
        storage.shutdown().await;
    }

    #[tokio::test]
    async fn a_disk_that_could_not_be_written_down_is_by_the_next_order() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["d1"]), identity());
        let extra = folder.path().join("extra");
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        // As a full file system: the draft can't be made.
        let draft = config.node.data.join(FILE).with_extension("draft");
        files::make_folder(&draft).unwrap();
        let failed = add(&storage, &memory, &config, &identity, &extra, true).await.unwrap_err();
        assert_eq!(failed.kind, FailureKind::Internal);
        files::remove_tree(&draft).unwrap();
        let added = add(&storage, &memory, &config, &identity, &extra, true).await.unwrap();
        let again = add(&storage, &memory, &config, &identity, &extra, true).await.unwrap_err();
        assert_eq!(again.kind, FailureKind::Conflict);
        storage.shutdown().await;
        let memory = load(&config);
        assert_eq!(memory.added(), [extra]);
        let storage = open(&config, &identity, &memory).await.unwrap();
        assert!(storage.disks().iter().any(|stat| stat.disk == added));
        storage.shutdown().await;
    }

    #[tokio::test]
    async fn a_disk_that_was_added_and_is_configured_later_is_opened_once() {
        let folder = tempfile::tempdir().unwrap();
        let (mut config, identity) = (config(folder.path(), &["d1"]), identity());
        let [extra, other] = ["extra", "other"].map(|name| folder.path().join(name));
        for path in [&extra, &other] {
            files::make_folder(path).unwrap();
        }
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        add(&storage, &memory, &config, &identity, &extra, true).await.unwrap();
        storage.shutdown().await;
        config.storage.disks.extend([extra.clone(), other]);
        let disks = prepare(&config, &identity, &load(&config)).unwrap();
        assert_eq!(disks.into_iter().map(|disk| disk.path).collect::<Vec<_>>(), config.storage.disks);
    }

    #[tokio::test]
    async fn a_disk_that_the_cluster_refuses_silences_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (config, identity) = (config(folder.path(), &["one", "two", "gone"]), identity());
        let gone = folder.path().join("gone");
        open(&config, &identity, &load(&config)).await.unwrap().shutdown().await;
        files::remove_tree(&gone).unwrap();
        files::make_folder(&gone).unwrap();
        let memory = load(&config);
        let storage = open(&config, &identity, &memory).await.unwrap();
        let missing = memory.missing(&storage)[0];
        let known = DiskRecord {
            disk: missing,
            node: service::fake::ASKER,
            incarnation: Incarnation(1),
            state: State::Up,
            name: "s1/d9".into(),
            size_bytes: 1 << 30,
            used_bytes: None,
            quarantined: None,
            write_stop_bytes: None,
        };
        // Whichever comes first is another node's, as a copy would be.
        let stats = storage.disks();
        let (copy, sound) = (stats[0].disk, stats[1].disk);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let taken = heard.clone();
        let client = service::fake::client(vec![known], move |command| {
            let told = match command {
                Command::RegisterDisk(record) if record.disk == copy => {
                    return Err(Failure::new(FailureKind::Denied, "another node's"));
                }
                Command::RegisterDisk(record) => (record.disk, record.state),
                Command::SetDiskState(set) => (set.disk, set.state.unwrap()),
                other => panic!("{other:?}"),
            };
            taken.lock().unwrap().push(told);
            Ok(Outcome::Done)
        });
        let client = client.await;
        let node = service::fake::ASKER;
        let reporter = Reporter { client, storage: storage.clone(), memory, node, name: "s1".into() };
        let mut reported = BTreeSet::new();
        reporter.report(&mut reported).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), [(sound, State::Up), (missing, State::Down)]);
        assert_eq!(reported, BTreeSet::from([sound]), "the refused one is told again");
        storage.shutdown().await;
    }
}
