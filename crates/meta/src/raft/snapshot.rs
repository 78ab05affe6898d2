//! A shard's folder: which database counts, and how a received one takes its place.
//!
//! ```text
//! groups/<group>/CURRENT        the name of the database that counts, and a newline
//! groups/<group>/db.<n>/        databases; only the named one counts
//! groups/<group>/incoming.<t>/  a snapshot that is being received
//! groups/<group>/copy.<n>/      a checkpoint that is being sent
//! ```
//!
//! A received snapshot is installed in this order: every file synced, their folder synced, the
//! folder renamed to `db.<n+1>`, the group's folder synced, the database opened there, `CURRENT.new`
//! written and synced, renamed to `CURRENT`, the group's folder synced. The rename of `CURRENT` is
//! the one moment at which the new database counts: a crash before leaves the old one, a crash
//! after the new one, whole either way, since all its bytes were durable before it was named. The
//! log is purged only after that. At start whatever `CURRENT` does not name is removed.

use super::message::{FetchFile, SnapshotFile};
use crate::MetaError;
use crate::files::Files;
use crate::planted::{Bug, planted};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(test)]
mod crash_states;

const CURRENT: &str = "CURRENT";
const CURRENT_NEW: &str = "CURRENT.new";
/// Longest name of a file in a snapshot, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Most pieces that may have overtaken others, over all files of a snapshot.
const EARLY_PIECES_MAX: usize = 16;
/// Most files in a snapshot.
const SNAPSHOT_FILES_MAX: usize = 100_000;

/// The folder of one group's databases.
pub(crate) struct ShardFolder {
    files: Arc<dyn Files>,
    folder: PathBuf,
    current: String,
    number: u64,
}

/// A folder that is removed when nobody needs it any more.
pub(crate) struct FolderGuard {
    files: Arc<dyn Files>,
    path: Option<PathBuf>,
}

impl FolderGuard {
    pub(crate) fn new(files: Arc<dyn Files>, path: PathBuf) -> Self {
        FolderGuard { files, path: Some(path) }
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().expect("the path is taken only when the guard ends")
    }

    /// Keeps the folder and returns it.
    fn keep(mut self) -> PathBuf {
        self.path.take().expect("the path is taken only when the guard ends")
    }
}

impl Drop for FolderGuard {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = self.files.remove(&path)
        {
            // The next start removes it.
            tracing::warn!(folder = %path.display(), %error, "left-over folder could not be removed");
        }
    }
}

impl ShardFolder {
    /// Opens the folder, makes it where absent, and removes what does not count.
    pub(crate) fn open(files: Arc<dyn Files>, folder: PathBuf) -> Result<Self, MetaError> {
        let context = || format!("open {}", folder.display());
        files.create_folder(&folder).map_err(MetaError::io(context()))?;
        let named = files.read(&folder.join(CURRENT)).map_err(MetaError::io(context()))?;
        let names = files.list(&folder).map_err(MetaError::io(context()))?;
        let current = match named {
            Some(bytes) => {
                let name = parse_current(&bytes).ok_or_else(|| {
                    MetaError::Corrupt(format!("{} names no database", folder.join(CURRENT).display()))
                })?;
                if !names.contains(&name) {
                    return Err(MetaError::Corrupt(format!("{} lacks {name}, which it names", folder.display())));
                }
                Some(name)
            }
            None => {
                check_unused(files.as_ref(), &folder, &names)?;
                None
            }
        };
        for name in names.iter().filter(|name| *name != CURRENT && Some(*name) != current.as_ref()) {
            files.remove(&folder.join(name)).map_err(MetaError::io(context()))?;
        }
        match current {
            Some(current) => {
                let number = number_of(&current).unwrap_or(0);
                Ok(ShardFolder { files, folder, current, number })
            }
            None => {
                let mut shard = ShardFolder { files, folder, current: String::new(), number: 0 };
                let path = shard.next();
                shard.files.create_folder(&path).map_err(MetaError::io(format!("make {}", path.display())))?;
                shard.sync_parents()?;
                shard.point(&path)?;
                Ok(shard)
            }
        }
    }

    /// Returns the database that counts.
    pub(crate) fn database(&self) -> PathBuf {
        self.folder.join(&self.current)
    }

    /// Returns where a checkpoint for sending may be made.
    pub(crate) fn copy_path(&mut self) -> PathBuf {
        self.number += 1;
        self.folder.join(format!("copy.{}", self.number))
    }

    /// Moves a received, synced folder to where the next database lies; it does not count yet.
    pub(crate) fn adopt(&mut self, received: FolderGuard) -> Result<FolderGuard, MetaError> {
        let path = self.next();
        let context = format!("move {} to {}", received.path().display(), path.display());
        self.files.rename(received.path(), &path).map_err(MetaError::io(context.clone()))?;
        let old_parent = received.keep();
        let adopted = FolderGuard::new(self.files.clone(), path);
        if let Some(parent) = old_parent.parent().filter(|parent| *parent != self.folder) {
            self.files.sync_folder(parent).map_err(MetaError::io(context.clone()))?;
        }
        self.files.sync_folder(&self.folder).map_err(MetaError::io(context))?;
        Ok(adopted)
    }

    /// Makes an adopted database the one that counts; returns the old one.
    pub(crate) fn switch(&mut self, adopted: FolderGuard) -> Result<FolderGuard, MetaError> {
        let old = self.database();
        // Kept whatever comes: where pointing fails half-way, `CURRENT` may name it already. The next start decides.
        let path = adopted.keep();
        self.point(&path)?;
        Ok(FolderGuard::new(self.files.clone(), old))
    }

    fn next(&mut self) -> PathBuf {
        self.number += 1;
        self.folder.join(format!("db.{}", self.number))
    }

    /// Makes the folder itself durable, with those above it that may be new: the groups' and the voter's.
    fn sync_parents(&self) -> Result<(), MetaError> {
        for folder in self.folder.ancestors().take(3).filter(|folder| !folder.as_os_str().is_empty()) {
            self.files.sync_folder(folder).map_err(MetaError::io(format!("sync {}", folder.display())))?;
        }
        Ok(())
    }

    /// Writes `CURRENT` so that it names `path`.
    fn point(&mut self, path: &Path) -> Result<(), MetaError> {
        let name = path.file_name().and_then(|name| name.to_str()).expect("databases are named by `next`").to_owned();
        let (new, current) = (self.folder.join(CURRENT_NEW), self.folder.join(CURRENT));
        let io = |error| MetaError::io(format!("name {name} in {}", current.display()))(error);
        self.files.write_at(&new, 0, format!("{name}\n").as_bytes()).map_err(io)?;
        if !planted(Bug::RenameBeforeSync) {
            self.files.sync_file(&new).map_err(io)?;
        }
        self.files.rename(&new, &current).map_err(io)?;
        self.files.sync_folder(&self.folder).map_err(io)?;
        self.current = name;
        Ok(())
    }
}

/// Fails with `Corrupt` where no database is named although one has been used: the first one is empty until its name is durable.
fn check_unused(files: &dyn Files, folder: &Path, names: &[String]) -> Result<(), MetaError> {
    for name in names.iter().filter(|name| number_of(name).is_some()) {
        let database = folder.join(name);
        let held = files.list(&database).map_err(MetaError::io(format!("look at {}", database.display())))?;
        if !held.is_empty() {
            let current = folder.join(CURRENT);
            return Err(MetaError::Corrupt(format!("{} names no database, but {name} holds one", current.display())));
        }
    }
    Ok(())
}

fn parse_current(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    number_of(name).map(|_| name.to_owned())
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("db.")?.parse().ok()
}

/// A snapshot that is being received, file by file.
pub(crate) struct Incoming {
    files: Arc<dyn Files>,
    folder: FolderGuard,
    transfer: u128,
    received: BTreeMap<String, Received>,
}

/// One file as far as it has come.
#[derive(Default)]
struct Received {
    size_bytes: u64,
    checksum: crc32fast::Hasher,
    /// Pieces that have overtaken others, by their offset.
    early: BTreeMap<u64, Bytes>,
}

impl Incoming {
    /// Makes the folder of a transfer.
    pub(crate) fn begin(files: Arc<dyn Files>, group_folder: &Path, transfer: u128) -> Result<Self, MetaError> {
        let path = group_folder.join(format!("incoming.{transfer:032x}"));
        files.create_folder(&path).map_err(MetaError::io(format!("make {}", path.display())))?;
        let folder = FolderGuard::new(files.clone(), path);
        Ok(Incoming { files, folder, transfer, received: BTreeMap::new() })
    }

    /// Returns which transfer it is.
    pub(crate) fn transfer(&self) -> u128 {
        self.transfer
    }

    /// Takes a piece of a file. A few may overtake others, and a piece may come again.
    pub(crate) fn take(&mut self, name: &str, offset: u64, bytes: Bytes) -> Result<(), MetaError> {
        let plain = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.');
        if !plain || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
            return Err(MetaError::Corrupt(format!("snapshot file name {name:?}")));
        }
        if self.received.len() >= SNAPSHOT_FILES_MAX && !self.received.contains_key(name) {
            return Err(MetaError::Corrupt("snapshot has too many files".into()));
        }
        let early: usize = self.received.values().map(|file| file.early.len()).sum();
        let file = self.received.entry(name.to_owned()).or_default();
        if offset > file.size_bytes {
            if early >= EARLY_PIECES_MAX {
                let size_bytes = file.size_bytes;
                return Err(MetaError::Corrupt(format!(
                    "snapshot file {name} continues at {offset}, not at {size_bytes}"
                )));
            }
            file.early.insert(offset, bytes);
            return Ok(());
        }
        let path = self.folder.path().join(name);
        let mut next = Some((offset, bytes));
        while let Some((offset, bytes)) = next.take() {
            // One that came before: its reply was lost. An empty file is made by its only, empty piece.
            let is_again = offset < file.size_bytes;
            let is_end = bytes.is_empty() && offset > 0;
            if !(is_again || is_end) {
                let write = self.files.write_at(&path, offset, &bytes);
                write.map_err(MetaError::io(format!("write {}", path.display())))?;
                file.size_bytes += bytes.len() as u64;
                file.checksum.update(&bytes);
            }
            next = file.early.remove_entry(&file.size_bytes);
        }
        Ok(())
    }

    /// Makes what came durable, where the files are those of the list and as long.
    pub(crate) fn finish_sizes(self, listed: &[FetchFile]) -> Result<FolderGuard, MetaError> {
        let listed = listed.iter().map(|file| {
            let checksum = self.received.get(&file.name).map_or(0, |received| received.checksum.clone().finalize());
            SnapshotFile { name: file.name.clone(), size_bytes: file.size_bytes, checksum }
        });
        let listed: Vec<SnapshotFile> = listed.collect();
        self.finish(&listed)
    }

    /// Checks what came against the sender's list and makes it durable.
    pub(crate) fn finish(self, listed: &[SnapshotFile]) -> Result<FolderGuard, MetaError> {
        if listed.len() != self.received.len() {
            let (count, expected) = (self.received.len(), listed.len());
            return Err(MetaError::Corrupt(format!("snapshot of {expected} files arrived with {count}")));
        }
        for file in listed {
            let whole = self.received.get(&file.name).is_some_and(|received| {
                received.size_bytes == file.size_bytes
                    && received.early.is_empty()
                    && received.checksum.clone().finalize() == file.checksum
            });
            if !whole {
                return Err(MetaError::Corrupt(format!("snapshot file {} arrived damaged", file.name)));
            }
        }
        let folder = self.folder.path();
        let io = |error| MetaError::io(format!("sync {}", folder.display()))(error);
        if planted(Bug::InstallBeforeSync) {
            return Ok(self.folder);
        }
        for name in self.received.keys() {
            self.files.sync_file(&folder.join(name)).map_err(io)?;
        }
        self.files.sync_folder(folder).map_err(io)?;
        Ok(self.folder)
    }
}
