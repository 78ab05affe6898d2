//! Rows in RocksDB, one database per shard replica.
//!
//! There is no write-ahead log: the Raft log is it. Families are flushed atomically, so that a
//! crash leaves the rows of one moment, and the applied position among them says which. The first
//! error of a write is final: the database does not resume by itself, and this store refuses writes
//! from then on, so that the replica stops. [`RocksStore::fault`] says what its keeper shall do: open
//! the database again once there is room, or rebuild it from a peer.

use super::StateError;
use super::store::{Batch, Cursor, FAMILIES, Family, KeyRange, Store, View};
use librocksdb_sys as ffi;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    AsRawPtr, BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRawIterator, ErrorKind, FlushOptions, Options, ReadOptions, ReadTier, Snapshot, WriteBatch,
    WriteBufferManager, WriteOptions,
};
use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of one part of an index or filter: a lookup loads one part, never the whole of a large file's index.
const INDEX_PART_BYTES: usize = 4096;
/// Leaves it to the cache to learn how large its entries are.
const ENTRY_BYTES_UNKNOWN: usize = 0;
/// Default bytes of cached blocks, over all databases that share a [`RocksMemory`].
pub const CACHE_BYTES: usize = 64 << 20;
/// Default bytes of rows not yet flushed, over all databases that share a [`RocksMemory`].
pub const WRITE_BUFFERS_BYTES: usize = 64 << 20;
/// Bytes of unflushed rows in one family of one database that start a flush of all its families.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Memory is taken from the system in pieces of this many bytes: most families stay almost empty.
const ARENA_BLOCK_BYTES: usize = 128 << 10;
/// Bytes of a block of rows before compression: walks like large blocks, single reads small ones.
const WALK_BLOCK_BYTES: usize = 16 << 10;
const READ_BLOCK_BYTES: usize = 4 << 10;
/// Least bytes of a value of [`Family::Bodies`] that stands apart, in a file of bodies alone: compactions move its
/// key, and write the body itself again only where its file is one of the oldest.
const BODY_BYTES_APART: u64 = 1 << 10;
/// Part of the files of bodies, the oldest, whose living bodies each compaction that meets their keys moves into a new
/// file: so the room of dead ones comes back, and small files become large ones. A larger part costs more than it
/// frees (decision 15 of ARCHITECTURE.md).
const BODIES_MOVED: f64 = 0.05;
/// Part of dead bytes in those files from which they are compacted although nothing else asks for it.
const BODIES_DEAD_MAX: f64 = 0.5;
/// Bytes that such a move reads at once.
const BODIES_READ_BYTES: u64 = 2 << 20;
/// Part of a write buffer that is a filter of its keys, in families where most lookups find nothing.
const BUFFER_FILTER_RATIO: f64 = 0.02;
/// Bloom filter bits per key: about 1 % of the lookups of absent keys read a block.
const FILTER_BITS: f64 = 10.0;
/// Files that a database keeps open.
const OPEN_FILES_MAX: i32 = 256;
/// Flush and compaction threads, shared by all databases of the process.
const BACKGROUND_JOBS: i32 = 2;
/// Deletions within a run of rows of a file that have it compacted: what a queue leaves at its head.
const GRAVES_WINDOW: usize = 1024;
const GRAVES_TRIGGER: usize = 512;
/// Seconds for which a file of the lowest level of [`Family::Objects`] and [`Family::Bodies`] stays as it is, although
/// it could be written again to forget the order of its rows and what a reader's snapshot kept: a write of each file
/// for some bytes, which takes its blocks out of the cache. Families of queues are written again at once: their graves
/// would be in each walk's way.
const REWRITE_DELAY_S: u32 = 24 * 3600;
/// Kept info logs of a database, and bytes of each.
const INFO_LOGS: usize = 2;
const INFO_LOG_BYTES: usize = 1 << 20;
/// Checksum bytes per row in memtables and cached blocks.
const PROTECTION_BYTES: u8 = 8;

/// Cache and write buffers that the databases of a process share. Cheap to clone.
#[derive(Clone)]
pub struct RocksMemory {
    cache: Cache,
    buffers: WriteBufferManager,
}

impl RocksMemory {
    /// Makes a cache and a bound for unflushed rows, in bytes.
    pub fn new(cache_bytes: usize, write_buffers_bytes: usize) -> Self {
        RocksMemory {
            // Reads take no lock. What was read twice outlives what flushes and compactions leave there; bodies that
            // stand apart go first. RocksDB's header allows no blob cache of this kind, but their keys are of the one
            // form that it needs, and its own stress test runs it so.
            cache: Cache::new_hyper_clock_cache(cache_bytes, ENTRY_BYTES_UNKNOWN),
            buffers: WriteBufferManager::new_write_buffer_manager(write_buffers_bytes, false),
        }
    }
}

impl Default for RocksMemory {
    fn default() -> Self {
        RocksMemory::new(CACHE_BYTES, WRITE_BUFFERS_BYTES)
    }
}

/// Why a database is not to be used any longer as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A file could not be written for want of space. What stands is whole: the rows of the last flush.
    NoSpace(String),
    /// A file can't be read, or is not what was written.
    Damaged(String),
}

impl Fault {
    /// Sorts an error; none where it says nothing about the database's files.
    fn of(error: &rocksdb::Error) -> Option<Fault> {
        let text = error.to_string();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["No space left on device", "Disk quota exceeded"]) {
            return Some(Fault::NoSpace(text));
        }
        match error.kind() {
            ErrorKind::Corruption => Some(Fault::Damaged(text)),
            ErrorKind::IOError
                if says(&["Input/output error", "No such file", "Structure needs cleaning", "Bad message"]) =>
            {
                Some(Fault::Damaged(text))
            }
            _ => None,
        }
    }
}

/// The rows of one shard replica in one folder.
pub struct RocksStore {
    db: DB,
    write: WriteOptions,
    failed: AtomicBool,
    fault: OnceLock<Fault>,
}

fn failure(error: rocksdb::Error) -> StateError {
    StateError::Database(error.into_string())
}

impl RocksStore {
    /// Opens the database in `folder`, or makes one there.
    pub fn open(folder: &Path, memory: &RocksMemory) -> Result<Self, StateError> {
        let options = database_options(memory);
        let families =
            Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, memory)));
        let db = DB::open_cf_descriptors(&options, folder, families).map_err(failure)?;
        Ok(RocksStore::around(db))
    }

    fn open_read_only(folder: &Path) -> Result<Self, StateError> {
        let memory = RocksMemory::new(1 << 20, 1 << 20);
        let families =
            Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &memory)));
        let db =
            DB::open_cf_descriptors_read_only(&database_options(&memory), folder, families, false).map_err(failure)?;
        Ok(RocksStore::around(db))
    }

    fn around(db: DB) -> Self {
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        write.set_no_slowdown(true);
        RocksStore { db, write, failed: AtomicBool::new(false), fault: OnceLock::new() }
    }

    /// Returns why the database should be used no longer, where that has shown.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    /// Notes what an error says about the database, and returns it as ours.
    fn note(&self, error: rocksdb::Error) -> StateError {
        if let Some(fault) = Fault::of(&error) {
            // The first one counts.
            let _ = self.fault.set(fault);
        }
        failure(error)
    }

    /// Opens a folder that [`Store::checkpoint`] made, for reading alone, and compares all its files with their
    /// checksums.
    pub fn verify_checkpoint(folder: &Path) -> Result<(), StateError> {
        RocksStore::open_read_only(folder)?.verify()
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("all families were opened with the database")
    }

    fn check(&self) -> Result<(), StateError> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(StateError::Stopped("the database failed before".into())),
            false => Ok(()),
        }
    }

    /// Notes that the database is not to be trusted with anything more.
    fn fail<T>(&self, result: Result<T, rocksdb::Error>) -> Result<T, StateError> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Release);
            self.note(error)
        })
    }
}

fn database_options(memory: &RocksMemory) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_write_buffer_manager(&memory.buffers);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_keep_log_file_num(INFO_LOGS);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_stats_dump_period_sec(0);
    // SAFETY: the pointers are those of a live `Options` and of a factory that is made here; the options keep what it
    // holds, and it is destroyed once.
    unsafe {
        ffi::rocksdb_options_set_max_bgerror_resume_count(options.as_raw_ptr(), 0);
        let checksums = ffi::rocksdb_file_checksum_gen_crc32c_factory_create();
        ffi::rocksdb_options_set_file_checksum_gen_factory(options.as_raw_ptr(), checksums);
        ffi::rocksdb_file_checksum_gen_factory_destroy(checksums);
    }
    options
}

fn family_options(family: Family, memory: &RocksMemory) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&memory.cache);
    table.set_block_size(match family {
        Family::Bodies | Family::Tokens => READ_BLOCK_BYTES,
        _ => WALK_BLOCK_BYTES,
    });
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_bloom_filter(FILTER_BITS, false);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(INDEX_PART_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(bottommost(family));
    if family == Family::Bodies {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BODY_BYTES_APART);
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_blob_cache(&memory.cache);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(BODIES_MOVED);
        options.set_blob_gc_force_threshold(BODIES_DEAD_MAX);
        options.set_blob_compaction_readahead_size(BODIES_READ_BYTES);
    }
    if matches!(family, Family::Objects | Family::Tokens) {
        options.set_memtable_prefix_bloom_ratio(BUFFER_FILTER_RATIO);
        options.set_memtable_whole_key_filtering(true);
    }
    if matches!(family, Family::Tokens | Family::TokenExpiry | Family::Deletes | Family::FillIns | Family::Uploads) {
        options.add_compact_on_deletion_collector_factory(GRAVES_WINDOW, GRAVES_TRIGGER, 0.5);
    }
    // SAFETY: the pointer is that of a live `Options`, used within these calls.
    unsafe {
        ffi::rocksdb_options_set_paranoid_file_checks(options.as_raw_ptr(), 1);
        if matches!(family, Family::Objects | Family::Bodies) {
            ffi::rocksdb_options_set_bottommost_file_compaction_delay(options.as_raw_ptr(), REWRITE_DELAY_S);
        }
        ffi::rocksdb_options_set_memtable_protection_bytes_per_key(options.as_raw_ptr(), PROTECTION_BYTES.into());
        ffi::rocksdb_options_set_block_protection_bytes_per_key(options.as_raw_ptr(), PROTECTION_BYTES);
    }
    options
}

/// What is read by LIST and GET stays in the quickest form; the rest is packed tighter.
fn bottommost(family: Family) -> DBCompressionType {
    match family {
        Family::Objects | Family::Bodies => DBCompressionType::Lz4,
        _ => DBCompressionType::Zstd,
    }
}

impl Store for RocksStore {
    type View<'a> = RocksView<'a>;

    fn view(&self) -> RocksView<'_> {
        let snapshot = self.db.snapshot();
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        RocksView { store: self, options, snapshot }
    }

    fn write(&self, batch: &Batch) -> Result<(), StateError> {
        self.check()?;
        let mut out = WriteBatch::default();
        for family in Family::ALL.into_iter().filter(|family| !batch.family(*family).is_empty()) {
            let handle = self.family(family);
            for (key, value) in batch.family(family) {
                match value {
                    Some(value) => out.put_cf(handle, key, value),
                    None => out.delete_cf(handle, key),
                }
            }
        }
        match self.db.write_opt(out, &self.write) {
            // Told instead of waited for: the thread may be the only one of its runtime.
            Err(error) if error.kind() == ErrorKind::Incomplete => Err(StateError::Stalled),
            written => self.fail(written),
        }
    }

    fn flush(&self) -> Result<(), StateError> {
        self.check()?;
        let families: [&ColumnFamily; FAMILIES] = Family::ALL.map(|family| self.family(family));
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families: Vec<&&ColumnFamily> = families.iter().collect();
        self.fail(self.db.flush_cfs_opt(&families, &options))
    }

    fn get_flushed(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        self.db.get_cf_opt(self.family(family), key, &options).map_err(|error| self.note(error))
    }

    // RocksDB syncs the files it makes; the folder's own entry is ours to sync.
    #[allow(clippy::disallowed_methods)]
    fn checkpoint(&self, folder: &Path) -> Result<(), StateError> {
        self.check()?;
        self.fail(Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(folder)))?;
        let sync = |folder: &Path| std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        let parent = folder.parent().unwrap_or(Path::new("."));
        sync(folder)
            .and_then(|()| sync(parent))
            .map_err(|source| StateError::Io { context: format!("checkpoint {}", folder.display()), source })
    }

    fn get_in_checkpoint(folder: &Path, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let store = RocksStore::open_read_only(folder)?;
        store.db.get_cf(store.family(family), key).map_err(failure)
    }

    fn verify(&self) -> Result<(), StateError> {
        let mut error: *mut c_char = std::ptr::null_mut();
        // SAFETY: the database is open as long as `self.db` lives; the call reads its files, those of rows and those of
        // bodies, past the cache, and leaves either a null pointer or a C string of its own.
        unsafe { ffi::rocksdb_verify_file_checksums(self.db.as_raw_ptr(), &mut error) };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so it is the C string described above, and it is freed once, behind the copy.
        let text = unsafe {
            let text = CStr::from_ptr(error).to_string_lossy().into_owned();
            ffi::rocksdb_free(error.cast());
            text
        };
        Err(StateError::Database(text))
    }
}

/// The rows of one moment.
pub struct RocksView<'a> {
    store: &'a RocksStore,
    /// For single reads: refers to the snapshot, so it stands before it and goes first.
    options: ReadOptions,
    snapshot: Snapshot<'a>,
}

impl View for RocksView<'_> {
    type Cursor<'b>
        = RocksCursor<'b>
    where
        Self: 'b;

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let found = self.store.db.get_cf_opt(self.store.family(family), key, &self.options);
        found.map_err(|error| self.store.note(error))
    }

    fn cursor(&self, family: Family, range: &KeyRange) -> Result<RocksCursor<'_>, StateError> {
        let mut options = ReadOptions::default();
        if let Some(end) = &range.end {
            options.set_iterate_upper_bound(end.as_slice());
        }
        let mut rows = self.snapshot.raw_iterator_cf_opt(self.store.family(family), options);
        rows.seek(&range.start);
        let cursor = RocksCursor { store: self.store, rows };
        cursor.check()?;
        Ok(cursor)
    }
}

/// A walk over one family's rows.
pub struct RocksCursor<'a> {
    store: &'a RocksStore,
    rows: DBRawIterator<'a>,
}

impl RocksCursor<'_> {
    fn check(&self) -> Result<(), StateError> {
        match self.rows.valid() {
            true => Ok(()),
            false => self.rows.status().map_err(|error| self.store.note(error)),
        }
    }
}

impl Cursor for RocksCursor<'_> {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        self.rows.item()
    }

    fn step(&mut self) -> Result<(), StateError> {
        self.rows.next();
        self.check()
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.rows.seek(key);
        self.check()
    }
}
