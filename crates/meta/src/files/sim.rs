//! The file seam in RAM, with crashes.
//!
//! What is not synced may be lost, in any combination: bytes of a file until the file is synced
//! (a piece may also be torn), names in a folder until that folder is synced. A change of names
//! within one folder is atomic, as POSIX demands of a rename; a rename between two folders is two
//! changes. Syncing a file does not make its name durable. That is more pessimistic than any file
//! system that keeps an order of its own.

use super::Files;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Component, Path};
use std::sync::{Mutex, MutexGuard};

type Inode = u64;
const ROOT: Inode = 0;

/// A file or a folder, durable or not.
#[derive(Debug, Clone, Hash)]
enum Node {
    File(Vec<u8>),
    Folder(BTreeMap<String, Inode>),
}

/// A change that a crash may undo.
#[derive(Debug, Clone)]
enum Change {
    /// Names of one folder, all or none.
    Names(Inode, Vec<(String, Option<Inode>)>),
    /// Bytes at an offset of a file.
    Bytes(Inode, usize, Vec<u8>),
    /// The file becomes empty.
    Empty(Inode),
}

impl Change {
    fn of(&self) -> Inode {
        match self {
            Change::Names(inode, _) | Change::Bytes(inode, ..) | Change::Empty(inode) => *inode,
        }
    }
}

/// What a crash leaves of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Kept,
    /// The first half of the bytes; all of a change of names.
    Torn,
}

/// A disk at one moment: what is durable, and what is not yet.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    /// Every inode that was ever made, as it is durably: new ones are empty until synced.
    durable: BTreeMap<Inode, Node>,
    pending: Vec<Change>,
    /// What the test had noted when the moment came.
    pub(crate) mark: u64,
}

impl Default for Moment {
    fn default() -> Self {
        Moment { durable: BTreeMap::from([(ROOT, Node::Folder(BTreeMap::new()))]), pending: Vec::new(), mark: 0 }
    }
}

fn change(nodes: &mut BTreeMap<Inode, Node>, change: &Change, torn: bool) {
    let node = nodes.get_mut(&change.of()).expect("inodes are never forgotten");
    match (node, change) {
        (Node::Folder(names), Change::Names(_, changes)) => {
            for (name, inode) in changes {
                match inode {
                    Some(inode) => names.insert(name.clone(), *inode),
                    None => names.remove(name),
                };
            }
        }
        (Node::File(bytes), Change::Bytes(_, offset, piece)) => {
            let piece = if torn { &piece[..piece.len() / 2] } else { piece };
            // A lost piece in front leaves zeros.
            bytes.resize(bytes.len().max(offset + piece.len()), 0);
            bytes[*offset..offset + piece.len()].copy_from_slice(piece);
        }
        (Node::File(bytes), Change::Empty(_)) => bytes.clear(),
        _ => unreachable!("changes of names are made to folders, others to files"),
    }
}

impl Moment {
    /// Returns how many changes a crash may undo.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the disk behind a crash with these fates of the pending changes, oldest first.
    pub(crate) fn crash(&self, fates: &[Fate]) -> SimFiles {
        let mut durable = self.durable.clone();
        for (pending, fate) in self.pending.iter().zip(fates) {
            if *fate != Fate::Lost {
                change(&mut durable, pending, *fate == Fate::Torn);
            }
        }
        SimFiles::new(Moment { durable, pending: Vec::new(), mark: self.mark })
    }

    /// Everything as the running system sees it.
    fn visible(&self) -> BTreeMap<Inode, Node> {
        let mut nodes = self.durable.clone();
        self.pending.iter().for_each(|pending| change(&mut nodes, pending, false));
        nodes
    }
}

/// A file system in RAM that remembers every moment between two operations.
#[derive(Debug)]
pub(crate) struct SimFiles {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    now: Moment,
    visible: BTreeMap<Inode, Node>,
    next: Inode,
    moments: Vec<Moment>,
    /// Operations that still succeed, where the disk is to fail.
    successes: Option<u64>,
}

impl State {
    /// Counts an operation that changes something; fails where that was ordered.
    fn operate(&mut self) -> io::Result<()> {
        match &mut self.successes {
            Some(0) => Err(io::Error::other("the disk fails")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn record(&mut self, changes: Vec<Change>) {
        for pending in changes {
            change(&mut self.visible, &pending, false);
            self.now.pending.push(pending);
            self.moments.push(self.now.clone());
        }
    }

    fn make(&mut self, node: Node) -> Inode {
        let inode = self.next;
        self.next += 1;
        self.now.durable.insert(inode, node.clone());
        self.visible.insert(inode, node);
        inode
    }

    fn names(&self, inode: Inode) -> io::Result<&BTreeMap<String, Inode>> {
        match &self.visible[&inode] {
            Node::Folder(names) => Ok(names),
            Node::File(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut inode = ROOT;
        for name in parts(path) {
            inode = *self.names(inode)?.get(&name).ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        }
        Ok(inode)
    }

    /// Returns the folder in which a path's last name stands, and that name.
    fn find_parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = parts(path).pop().ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((self.find(path.parent().unwrap_or(Path::new("/")))?, name))
    }

    /// Returns the changes that remove what stands under a name, children first.
    fn removal(&self, folder: Inode, name: &str, inode: Inode, out: &mut Vec<Change>) {
        if let Node::Folder(names) = &self.visible[&inode] {
            for (child, of) in names {
                self.removal(inode, child, *of, out);
            }
        }
        out.push(Change::Names(folder, vec![(name.to_owned(), None)]));
    }

    fn sync(&mut self, inode: Inode) {
        let (synced, pending) = self.now.pending.drain(..).partition(|pending: &Change| pending.of() == inode);
        self.now.pending = pending;
        let synced: Vec<Change> = synced;
        synced.iter().for_each(|synced| change(&mut self.now.durable, synced, false));
        self.moments.push(self.now.clone());
    }
}

fn parts(path: &Path) -> Vec<String> {
    let name = |part: Component| match part {
        Component::Normal(name) => Some(name.to_str().expect("test paths are UTF-8").to_owned()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

impl SimFiles {
    fn new(now: Moment) -> SimFiles {
        let visible = now.visible();
        let next = now.durable.keys().max().map_or(ROOT + 1, |last| last + 1);
        SimFiles { state: Mutex::new(State { visible, next, moments: vec![now.clone()], now, successes: None }) }
    }

    /// An empty disk.
    pub(crate) fn empty() -> SimFiles {
        SimFiles::new(Moment::default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has every operation that changes something fail behind the next `successes` ones.
    pub(crate) fn fail_after(&self, successes: u64) {
        self.lock().successes = Some(successes);
    }

    /// Notes what a crash from now on must not undo.
    pub(crate) fn set_mark(&self, mark: u64) {
        let mut state = self.lock();
        state.now.mark = mark;
        let moment = state.now.clone();
        state.moments.push(moment);
    }

    /// Returns the moments since the last call: one behind each operation that changed anything.
    pub(crate) fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.lock().moments)
    }

    /// Returns a number that is the same for disks that look the same.
    pub(crate) fn digest(&self) -> u64 {
        fn walk(state: &State, inode: Inode, hasher: &mut DefaultHasher) {
            match &state.visible[&inode] {
                Node::File(bytes) => bytes.hash(hasher),
                Node::Folder(names) => {
                    names.len().hash(hasher);
                    for (name, child) in names {
                        name.hash(hasher);
                        walk(state, *child, hasher);
                    }
                }
            }
        }
        let mut hasher = DefaultHasher::new();
        walk(&self.lock(), ROOT, &mut hasher);
        hasher.finish()
    }
}

impl Files for SimFiles {
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        match state.find(folder) {
            Ok(inode) => Ok(state.names(inode)?.keys().cloned().collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let mut inode = ROOT;
        for name in parts(folder) {
            inode = match state.names(inode)?.get(&name) {
                Some(child) => *child,
                None => {
                    let child = state.make(Node::Folder(BTreeMap::new()));
                    state.record(vec![Change::Names(inode, vec![(name, Some(child))])]);
                    child
                }
            };
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let inode = match state.find(path) {
            Ok(inode) => inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (folder, name) = state.find_parent(path)?;
        let mut changes = Vec::new();
        state.removal(folder, &name, inode, &mut changes);
        state.record(changes);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let inode = state.find(from)?;
        let ((old, old_name), (new, new_name)) = (state.find_parent(from)?, state.find_parent(to)?);
        let (gone, come) = ((old_name, None), (new_name, Some(inode)));
        let changes = match old == new {
            true => vec![Change::Names(old, vec![gone, come])],
            false => vec![Change::Names(new, vec![come]), Change::Names(old, vec![gone])],
        };
        state.record(changes);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let inode = state.find(folder)?;
        state.names(inode)?;
        state.sync(inode);
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let state = self.lock();
        match state.find(path).map(|inode| &state.visible[&inode]) {
            Ok(Node::File(bytes)) => Ok(Some(bytes.clone())),
            Ok(Node::Folder(_)) => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.read(path)?.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        let start = bytes.len().min(offset as usize);
        Ok(bytes[start..bytes.len().min(start + length)].to_vec())
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let inode = match state.find(path) {
            Ok(inode) => {
                if offset == 0 {
                    state.record(vec![Change::Empty(inode)]);
                }
                inode
            }
            Err(_) => {
                let (folder, name) = state.find_parent(path)?;
                let inode = state.make(Node::File(Vec::new()));
                state.record(vec![Change::Names(folder, vec![(name, Some(inode))])]);
                inode
            }
        };
        if !bytes.is_empty() {
            state.record(vec![Change::Bytes(inode, offset as usize, bytes.to_vec())]);
        }
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let inode = state.find(path)?;
        state.sync(inode);
        Ok(())
    }

    fn size_bytes(&self, folder: &Path) -> io::Result<u64> {
        let state = self.lock();
        let mut open = vec![state.find(folder)?];
        let mut sum = 0;
        while let Some(inode) = open.pop() {
            match &state.visible[&inode] {
                Node::File(bytes) => sum += bytes.len() as u64,
                Node::Folder(names) => open.extend(names.values()),
            }
        }
        Ok(sum)
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        let bytes = self.read(path)?.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        Ok(bytes.len() as u64)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_file_systems_do_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let real = super::super::SystemFiles;
        let sim = SimFiles::empty();
        sim.create_folder(folder.path()).unwrap();
        let (at, both): (_, [&dyn Files; 2]) = (|name: &str| folder.path().join(name), [&real, &sim]);
        let results = both.map(|files| {
            files.create_folder(&at("a/b")).unwrap();
            files.write_at(&at("a/b/one"), 0, b"hello").unwrap();
            files.write_at(&at("a/b/one"), 5, b" world").unwrap();
            files.write_at(&at("a/two"), 0, b"long text").unwrap();
            files.write_at(&at("a/two"), 0, b"short").unwrap();
            files.rename(&at("a/b"), &at("c")).unwrap();
            files.sync_file(&at("c/one")).unwrap();
            files.sync_folder(&at("c")).unwrap();
            files.write_at(&at("c/three"), 0, b"").unwrap();
            files.rename(&at("c/three"), &at("a/two")).unwrap();
            files.create_folder(&at("gone/deep")).unwrap();
            files.write_at(&at("gone/deep/x"), 0, b"x").unwrap();
            files.remove(&at("gone")).unwrap();
            files.remove(&at("gone")).unwrap();
            (
                [files.list(&at("")).unwrap(), files.list(&at("a")).unwrap(), files.list(&at("none")).unwrap()],
                [files.read(&at("c/one")).unwrap(), files.read(&at("a/two")).unwrap(), files.read(&at("no")).unwrap()],
                files.read_at(&at("c/one"), 4, 3).unwrap(),
                files.read_at(&at("c/one"), 99, 3).unwrap(),
                files.size_bytes(&at("")).unwrap(),
                [files.read_at(&at("no"), 0, 1).is_err(), files.rename(&at("no"), &at("yes")).is_err()],
            )
        });
        assert_eq!(results[0], results[1]);
    }

    #[test]
    fn crash_keeps_what_was_synced_and_any_part_of_the_rest() {
        let sim = SimFiles::empty();
        sim.write_at(Path::new("/kept"), 0, b"abcd").unwrap();
        sim.sync_file(Path::new("/kept")).unwrap();
        sim.sync_folder(Path::new("/")).unwrap();
        sim.write_at(Path::new("/kept"), 4, b"efgh").unwrap();
        sim.write_at(Path::new("/new"), 0, b"xy").unwrap();
        let moment = sim.take_moments().pop().unwrap();
        assert_eq!(moment.pending(), 3, "bytes of one, name and bytes of the other");
        let read = |fates: [Fate; 3], path: &str| moment.crash(&fates).read(Path::new(path)).unwrap();
        assert_eq!(read([Fate::Lost; 3], "/kept").unwrap(), b"abcd");
        assert_eq!(read([Fate::Torn, Fate::Lost, Fate::Kept], "/kept").unwrap(), b"abcdef");
        assert_eq!(read([Fate::Torn, Fate::Lost, Fate::Kept], "/new"), None);
        assert_eq!(read([Fate::Lost, Fate::Kept, Fate::Lost], "/new").unwrap(), b"");
    }
}
