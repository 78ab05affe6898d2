//! The key-value face under the state machine: column families in byte order, atomic batches,
//! consistent views, flush and checkpoint.
//!
//! There is no write-ahead log here: a crash leaves the rows of the last [`Store::flush`] (or of a
//! later one that the store did by itself), over all families alike, and the Raft log is applied
//! again from the position that those rows name.

use super::StateError;
use std::collections::BTreeMap;
use std::path::Path;

/// A column family. Numbers and names are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// Rows of current versions: all that LIST reads.
    Objects = 0,
    /// Headers and places of bytes of current versions.
    Bodies = 1,
    /// Older versions (none before versioning exists).
    Versions = 2,
    /// Open multipart uploads.
    Uploads = 3,
    /// Parts of open and finished uploads.
    Parts = 4,
    /// Stripes to be destroyed, oldest first.
    Deletes = 5,
    /// Stripes that owe fragments.
    FillIns = 6,
    /// Events and replication (none yet).
    Outbox = 7,
    /// Remembered outcomes.
    Tokens = 8,
    /// Remembered outcomes by expiry.
    TokenExpiry = 9,
    /// Applied position, membership, counters, open buckets.
    State = 10,
    /// The system group's records.
    Registry = 11,
}

/// How many column families there are.
pub const FAMILIES: usize = 12;

impl Family {
    /// Every family, by number.
    pub const ALL: [Family; FAMILIES] = [
        Family::Objects,
        Family::Bodies,
        Family::Versions,
        Family::Uploads,
        Family::Parts,
        Family::Deletes,
        Family::FillIns,
        Family::Outbox,
        Family::Tokens,
        Family::TokenExpiry,
        Family::State,
        Family::Registry,
    ];

    /// Returns the family's name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Objects => "objects",
            Family::Bodies => "bodies",
            Family::Versions => "versions",
            Family::Uploads => "uploads",
            Family::Parts => "parts",
            Family::Deletes => "deletes",
            Family::FillIns => "fill-ins",
            Family::Outbox => "outbox",
            Family::Tokens => "tokens",
            Family::TokenExpiry => "token-expiry",
            Family::State => "state",
            Family::Registry => "registry",
        }
    }
}

/// A range of keys in one family: from `start` up to, not including, `end` (none = to the last).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Vec<u8>,
    /// First key behind the range.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Returns the range of all keys that begin with `prefix`.
    pub fn of_prefix(prefix: &[u8]) -> Self {
        KeyRange { start: prefix.to_vec(), end: successor(prefix) }
    }

    /// Returns whether the key lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// Returns the first byte string behind all those that begin with `prefix`; none if there is none.
pub fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut next = prefix[..=kept].to_vec();
    next[kept] += 1;
    Some(next)
}

/// A consistent state of the rows.
pub trait View {
    /// A position in one family of this view.
    type Cursor<'a>: Cursor
    where
        Self: 'a;

    /// Returns the value under a key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Returns a cursor on the first row of the range.
    fn cursor(&self, family: Family, range: &KeyRange) -> Result<Self::Cursor<'_>, StateError>;
}

/// A forward walk over a range of rows.
pub trait Cursor {
    /// Returns the row at the cursor, or nothing behind the last one.
    fn item(&self) -> Option<(&[u8], &[u8])>;

    /// Moves to the next row.
    fn step(&mut self) -> Result<(), StateError>;

    /// Moves to the first row at or behind `key`, inside the range.
    fn seek(&mut self, key: &[u8]) -> Result<(), StateError>;
}

/// Rows of one shard replica. Writing takes one writer at a time; views may be read from any
/// thread meanwhile.
pub trait Store: Send + Sync + Sized + 'static {
    /// A consistent state of the rows.
    type View<'a>: View
    where
        Self: 'a;

    /// Returns the rows as they stand now; later batches do not show in it.
    fn view(&self) -> Self::View<'_>;

    /// Applies all changes of the batch or, at a crash, none. Any error is final.
    fn write(&self, batch: &Batch) -> Result<(), StateError>;

    /// Makes everything written so far survive a crash.
    fn flush(&self) -> Result<(), StateError>;

    /// Returns the value under a key as a crash at this moment would leave it.
    fn get_flushed(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Writes a copy of the rows, durable on return, into `folder`, which must not exist yet.
    fn checkpoint(&self, folder: &Path) -> Result<(), StateError>;

    /// Opens a folder that [`Store::checkpoint`] made, for reading alone, and returns the value under a key.
    fn get_in_checkpoint(folder: &Path, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Reads every row's bytes from the device and compares them with their checksums.
    fn verify(&self) -> Result<(), StateError>;
}

/// Changes to be applied together. A later change of a key replaces an earlier one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    families: [BTreeMap<Vec<u8>, Option<Vec<u8>>>; FAMILIES],
}

impl Batch {
    /// Makes a batch without changes.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Puts a value under a key.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.families[family as usize].insert(key, Some(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.families[family as usize].insert(key, None);
    }

    /// Returns what the batch does to a key: nothing, a removal, or a value.
    pub fn get(&self, family: Family, key: &[u8]) -> Option<Option<&[u8]>> {
        self.families[family as usize].get(key).map(Option::as_deref)
    }

    /// Returns the changes of one family in key order.
    pub fn family(&self, family: Family) -> &BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        &self.families[family as usize]
    }

    /// Returns all changes, by family and key.
    pub fn changes(&self) -> impl Iterator<Item = (Family, &[u8], Option<&[u8]>)> {
        Family::ALL.into_iter().flat_map(|family| {
            self.family(family).iter().map(move |(key, value)| (family, key.as_slice(), value.as_deref()))
        })
    }

    /// Returns how many rows the batch changes.
    pub fn rows(&self) -> usize {
        self.families.iter().map(BTreeMap::len).sum()
    }

    /// Returns whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.families.iter().all(BTreeMap::is_empty)
    }
}

/// A row with its place.
pub type DumpedRow = (Family, Vec<u8>, Vec<u8>);

/// Returns every row of a view, by family and key: for comparing replicas.
pub fn dump<V: View>(view: &V) -> Result<Vec<DumpedRow>, StateError> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        let mut cursor = view.cursor(family, &KeyRange::default())?;
        while let Some((key, value)) = cursor.item() {
            rows.push((family, key.to_vec(), value.to_vec()));
            cursor.step()?;
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successor_stands_behind_every_extension() {
        assert_eq!(successor(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(successor(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }
}
