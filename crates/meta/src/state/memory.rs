//! Rows in ordered maps: for tests and the simulator.
//!
//! Families are shared maps that are copied when they change while a view or the flushed state
//! still holds them, so that a view costs a few counters. [`MemoryStore::crash`] returns to the
//! last flush, as RocksDB does without a write-ahead log.

use super::StateError;
use super::store::{Batch, Cursor, FAMILIES, Family, KeyRange, Store, View, dump};
use plinth_protocol::wire::{Wire, WireError};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Families = [Arc<Rows>; FAMILIES];

/// The file that holds all rows of a checkpoint.
const CHECKPOINT_FILE: &str = "rows";

/// Rows in memory. A clone is another handle on the same rows.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    current: Families,
    flushed: Families,
    /// Writes still to be refused, as RocksDB refuses them while it catches up.
    stalls: u32,
}

impl MemoryStore {
    /// Makes a store without rows.
    pub fn new() -> Self {
        MemoryStore::default()
    }

    /// Loses everything since the last flush.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.current = state.flushed.clone();
    }

    /// Refuses the next writes: the database asks for time.
    pub fn stall(&self, writes: u32) {
        self.lock().stalls = writes;
    }

    /// Makes a store of the rows that [`Store::checkpoint`] wrote into `folder`.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        for (family, (key, value)) in read_checkpoint(folder)? {
            batch.put(family, key, value);
        }
        store.write(&batch)?;
        store.flush()?;
        Ok(store)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics: it only swaps maps")
    }
}

impl Store for MemoryStore {
    type View<'a> = MemoryView;

    fn view(&self) -> MemoryView {
        MemoryView { families: self.lock().current.clone() }
    }

    fn write(&self, batch: &Batch) -> Result<(), StateError> {
        let mut state = self.lock();
        if let Some(left) = state.stalls.checked_sub(1) {
            state.stalls = left;
            return Err(StateError::Stalled);
        }
        for (family, key, value) in batch.changes() {
            let rows = Arc::make_mut(&mut state.current[family as usize]);
            match value {
                Some(value) => rows.insert(key.to_vec(), value.to_vec()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StateError> {
        let mut state = self.lock();
        state.flushed = state.current.clone();
        Ok(())
    }

    fn get_flushed(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.lock().flushed[family as usize].get(key).cloned())
    }

    // A checkpoint's file is the one thing that this store keeps on a disk.
    #[allow(clippy::disallowed_methods)]
    fn checkpoint(&self, folder: &Path) -> Result<(), StateError> {
        self.flush()?;
        let mut bytes = Vec::new();
        for (family, key, value) in dump(&self.view())? {
            let row = (family as u8, (bytes::Bytes::from(key), bytes::Bytes::from(value)));
            plinth_protocol::wire::encode_counted(&row, &mut bytes);
        }
        let context = |source| StateError::Io { context: format!("checkpoint {}", folder.display()), source };
        std::fs::create_dir(folder).map_err(context)?;
        std::fs::write(folder.join(CHECKPOINT_FILE), bytes).map_err(context)
    }

    fn get_in_checkpoint(folder: &Path, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let rows = read_checkpoint(folder)?;
        Ok(rows.into_iter().find(|(of, (at, _))| *of == family && at == key).map(|(_, (_, value))| value))
    }

    fn verify(&self) -> Result<(), StateError> {
        Ok(())
    }
}

type CheckpointRow = (Family, (Vec<u8>, Vec<u8>));

#[allow(clippy::disallowed_methods)]
fn read_checkpoint(folder: &Path) -> Result<Vec<CheckpointRow>, StateError> {
    let bytes = std::fs::read(folder.join(CHECKPOINT_FILE))
        .map_err(|source| StateError::Io { context: format!("checkpoint {}", folder.display()), source })?;
    type Row = (u8, (bytes::Bytes, bytes::Bytes));
    let unreadable = |source| StateError::Row { family: "checkpoint", source };
    let rows = Vec::<Row>::decode(&bytes).map_err(unreadable)?;
    rows.into_iter()
        .map(|(family, (key, value))| {
            let family = Family::ALL.get(usize::from(family)).copied().ok_or(WireError::OutOfRange("family"));
            Ok((family.map_err(unreadable)?, (key.to_vec(), value.to_vec())))
        })
        .collect()
}

/// The rows of one moment.
pub struct MemoryView {
    families: Families,
}

impl View for MemoryView {
    type Cursor<'a> = MemoryCursor<'a>;

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.families[family as usize].get(key).cloned())
    }

    fn cursor(&self, family: Family, range: &KeyRange) -> Result<MemoryCursor<'_>, StateError> {
        let rows = &*self.families[family as usize];
        let mut cursor = MemoryCursor { rows, end: range.end.clone(), at: None, walk: None };
        cursor.seek(&range.start)?;
        Ok(cursor)
    }
}

/// A walk over one family's rows.
pub struct MemoryCursor<'a> {
    rows: &'a Rows,
    end: Option<Vec<u8>>,
    at: Option<(&'a Vec<u8>, &'a Vec<u8>)>,
    walk: Option<std::collections::btree_map::Range<'a, Vec<u8>, Vec<u8>>>,
}

impl Cursor for MemoryCursor<'_> {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        self.at.map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    fn step(&mut self) -> Result<(), StateError> {
        let end = self.end.as_deref();
        let next = self.walk.as_mut().and_then(Iterator::next);
        self.at = next.filter(|(key, _)| end.is_none_or(|end| key.as_slice() < end));
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StateError> {
        let from: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(key), Bound::Unbounded);
        self.walk = Some(self.rows.range::<[u8], _>(from));
        self.step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_returns_to_the_last_flush() {
        let store = MemoryStore::new();
        let write = |key: &[u8]| {
            let mut batch = Batch::new();
            batch.put(Family::State, key.to_vec(), b"v".to_vec());
            store.write(&batch).unwrap();
        };
        write(b"a");
        store.flush().unwrap();
        let before = store.view();
        write(b"b");
        assert_eq!(before.get(Family::State, b"b").unwrap(), None, "views do not move");
        assert_eq!(store.get_flushed(Family::State, b"b").unwrap(), None);
        store.crash();
        assert!(store.view().get(Family::State, b"a").unwrap().is_some());
        assert!(store.view().get(Family::State, b"b").unwrap().is_none());
    }

    #[test]
    fn checkpoint_opens_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Family::Objects, b"k".to_vec(), vec![1, 0, 255]);
        store.write(&batch).unwrap();
        store.checkpoint(&folder.path().join("c")).unwrap();
        let copy = MemoryStore::open(&folder.path().join("c")).unwrap();
        assert_eq!(dump(&copy.view()).unwrap(), dump(&store.view()).unwrap());
    }
}
