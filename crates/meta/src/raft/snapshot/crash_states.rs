//! Every crash state of installing snapshots.
//!
//! A run founds a shard's folder, installs snapshots over it, drops a transfer half-way and keeps a
//! checkpoint beside it, all on [`SimFiles`]. Behind each operation the power is cut: what was not
//! synced survives in many combinations, and the folder is opened again as a start does it. It must
//! hold one version of the database, whole, none older than the version that the log may have been
//! purged to, and go on from there. A start that is cut short in its turn must change nothing of that.
//!
//! RocksDB is stood in for by folders of files whose bytes are compared one by one; that RocksDB itself
//! opens them after a crash is what [`real_database_opens_after_every_crash_state`] sees to. What RocksDB
//! writes while it is open is its own affair, and not modelled.

use super::*;
use crate::files::SystemFiles;
use crate::files::sim::{Fate, Moment, SimFiles};
use std::collections::BTreeSet;

const FOLDER: &str = "/data/groups/7";
/// Versions that a run installs behind the first.
const INSTALLS: u64 = 3;
/// Pending changes up to which every combination of lost and kept is tried.
const SUBSET_CHANGES_MAX: usize = 9;
/// Combinations drawn at random where there are more.
const DRAWN: u64 = 300;
/// Crash states that a run must at least try.
const STATES_MIN: usize = 5_000;

type Checked<T> = Result<T, String>;

/// The files of one version of a database.
type Database = Vec<(String, Vec<u8>)>;

/// What the versions look like: the real bytes of one, or made up.
trait Versions {
    fn database(&self, version: u64) -> Database;
}

/// Made-up databases: some files that all versions have, one of their own.
struct MadeUp;

impl Versions for MadeUp {
    fn database(&self, version: u64) -> Database {
        let file = |name: &str, bytes: usize| {
            let bytes = (0..bytes as u64).map(|at| (at * 7 + version * 31) as u8).collect();
            (name.to_owned(), bytes)
        };
        vec![file("CURRENT", 16), file("MANIFEST-000005", 90), file(&format!("00{version}.sst"), 200)]
    }
}

fn io(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Writes a database as RocksDB leaves one behind: durable.
fn write_database(files: &dyn Files, folder: &Path, database: &Database) -> Checked<()> {
    for (name, bytes) in database {
        files.write_at(&folder.join(name), 0, bytes).map_err(io)?;
        files.sync_file(&folder.join(name)).map_err(io)?;
    }
    files.sync_folder(folder).map_err(io)
}

/// Receives and installs a version in pieces of 64 bytes, as a follower does.
fn install(
    files: &Arc<SimFiles>,
    shard: &mut ShardFolder,
    versions: &dyn Versions,
    version: u64,
    piece_bytes: usize,
) -> Checked<()> {
    let incoming = receive(files, versions, version, piece_bytes, usize::MAX)?;
    let list = |(name, bytes): &(String, Vec<u8>)| SnapshotFile {
        name: name.clone(),
        size_bytes: bytes.len() as u64,
        checksum: crc32fast::hash(bytes),
    };
    let listed: Vec<SnapshotFile> = versions.database(version).iter().map(list).collect();
    let received = incoming.finish(&listed).map_err(io)?;
    let adopted = shard.adopt(received).map_err(io)?;
    // Opening it leaves traces that nobody has synced.
    files.write_at(&adopted.path().join("LOG"), 0, b"opened").map_err(io)?;
    let old = shard.switch(adopted).map_err(io)?;
    // Now openraft hears of it, and may purge the log up to this version.
    files.set_mark(version);
    drop(old);
    Ok(())
}

/// Receives the first `files_max` files of a version.
fn receive(
    files: &Arc<SimFiles>,
    versions: &dyn Versions,
    version: u64,
    piece_bytes: usize,
    files_max: usize,
) -> Checked<Incoming> {
    let mut incoming = Incoming::begin(files.clone(), Path::new(FOLDER), u128::from(version)).map_err(io)?;
    for (name, bytes) in versions.database(version).into_iter().take(files_max) {
        // As the sender does: the last piece is one that is not full, if only an empty one.
        for at in 0..=bytes.len() / piece_bytes {
            let piece = &bytes[at * piece_bytes..bytes.len().min((at + 1) * piece_bytes)];
            incoming.take(&name, (at * piece_bytes) as u64, Bytes::copy_from_slice(piece)).map_err(io)?;
        }
    }
    Ok(incoming)
}

/// Runs a folder's whole life and returns each moment of it.
fn live(versions: &dyn Versions, piece_bytes: usize) -> Checked<Vec<Moment>> {
    let files = Arc::new(SimFiles::empty());
    files.create_folder(Path::new("/data")).map_err(io)?;
    files.sync_folder(Path::new("/")).map_err(io)?;
    let mut shard = ShardFolder::open(files.clone(), FOLDER.into()).map_err(io)?;
    write_database(files.as_ref(), &shard.database(), &versions.database(1))?;
    files.set_mark(1);
    for version in 2..2 + INSTALLS {
        // A checkpoint that is being sent, and a transfer that breaks off.
        let copy = FolderGuard::new(files.clone(), shard.copy_path());
        files.create_folder(copy.path()).map_err(io)?;
        write_database(files.as_ref(), copy.path(), &versions.database(version - 1))?;
        let broken = receive(&files, versions, version + 100, piece_bytes, 1)?;
        if version % 2 == 0 {
            drop(broken);
            install(&files, &mut shard, versions, version, piece_bytes)?;
            drop(copy);
        } else {
            drop(copy);
            install(&files, &mut shard, versions, version, piece_bytes)?;
            drop(broken);
        }
    }
    Ok(files.take_moments())
}

/// Fates of a moment's pending changes, worth trying.
fn fates(moment: &Moment) -> Vec<Vec<Fate>> {
    let count = moment.pending();
    let of_bits = |bits: u64| (0..count).map(|at| if bits >> at & 1 == 1 { Fate::Kept } else { Fate::Lost }).collect();
    let mut all: Vec<Vec<Fate>> = Vec::new();
    if count <= SUBSET_CHANGES_MAX {
        all.extend((0..1u64 << count).map(of_bits));
    } else {
        // Prefixes, each change lost alone, each kept alone, and many at random.
        for at in 0..=count {
            all.push((0..count).map(|other| if other < at { Fate::Kept } else { Fate::Lost }).collect());
            all.push((0..count).map(|other| if other == at { Fate::Lost } else { Fate::Kept }).collect());
            all.push((0..count).map(|other| if other == at { Fate::Kept } else { Fate::Lost }).collect());
        }
        let mut chance = plinth_journal::sim::Chance::new(count as u64);
        for _ in 0..DRAWN {
            all.push((0..count).map(|_| [Fate::Lost, Fate::Kept, Fate::Torn][chance.below(3) as usize]).collect());
        }
    }
    for at in 0..count {
        all.push((0..count).map(|other| if other == at { Fate::Torn } else { Fate::Kept }).collect());
    }
    all
}

/// Opens the folder as a start does, and returns the version that it holds, whole.
fn recover(files: &Arc<SimFiles>, versions: &dyn Versions, mark: u64) -> Checked<(ShardFolder, Option<u64>)> {
    let shard = ShardFolder::open(files.clone(), FOLDER.into()).map_err(io)?;
    let names = files.list(&shard.database()).map_err(io)?;
    let holds = |version: &u64| {
        versions.database(*version).iter().all(|(name, bytes)| {
            files.read(&shard.database().join(name)).is_ok_and(|found| found.as_ref() == Some(bytes))
        })
    };
    let found = (1..2 + INSTALLS).rev().find(holds);
    match found {
        Some(version) if version < mark => Err(format!("version {version} counts, but the log was purged to {mark}")),
        Some(version) if version > mark + 1 => Err(format!("version {version} counts before it came")),
        None if mark > 0 => Err(format!("{names:?} is no whole database; the log was purged to {mark}")),
        found => Ok((shard, found)),
    }
}

/// Tries crash states of each moment; returns how many differed.
fn enumerate(versions: &dyn Versions, piece_bytes: usize) -> Checked<usize> {
    let mut seen = BTreeSet::new();
    for moment in live(versions, piece_bytes)? {
        for fates in fates(&moment) {
            let files = Arc::new(moment.crash(&fates));
            if seen.insert((moment.mark, files.digest())) {
                try_state(&files, versions, moment.mark)
                    .map_err(|why| format!("purged to {}, fates {fates:?}: {why}", moment.mark))?;
            }
        }
    }
    Ok(seen.len())
}

/// A start on a crash state, every cut of that start, and a snapshot on top of it.
fn try_state(files: &Arc<SimFiles>, versions: &dyn Versions, mark: u64) -> Checked<()> {
    let (mut shard, version) = recover(files, versions, mark)?;
    // From now on the replica answers with what it has found: that may not go back.
    let found = version.unwrap_or(0);
    for moment in files.take_moments() {
        for fate in [Fate::Lost, Fate::Kept] {
            let again = Arc::new(moment.crash(&vec![fate; moment.pending()]));
            let (_, after) = recover(&again, versions, mark).map_err(|why| format!("second crash: {why}"))?;
            if after.unwrap_or(0) != found {
                return Err(format!("version {found} counted, after a second crash {after:?}"));
            }
        }
    }
    let left = files.list(Path::new(FOLDER)).map_err(io)?;
    if left.len() != 2 {
        return Err(format!("left-overs: {left:?}"));
    }
    let next = (found + 1).clamp(1, 1 + INSTALLS);
    install(files, &mut shard, versions, next, 1 << 20).map_err(|why| format!("next snapshot: {why}"))?;
    match recover(files, versions, next)? {
        (_, Some(version)) if version == next => Ok(()),
        (_, other) => Err(format!("{other:?} counts behind the installation of {next}")),
    }
}

#[test]
fn every_crash_state_of_installation_leaves_one_whole_version() {
    let tried = enumerate(&MadeUp, 64).unwrap();
    println!("{tried} crash states of snapshot installation");
    assert!(tried >= STATES_MIN, "only {tried} crash states");
}

/// A disk that fails at any operation of an installation, and then loses everything or nothing that was not synced.
#[test]
fn every_failed_operation_leaves_one_whole_version() {
    for successes in 0.. {
        let files = Arc::new(SimFiles::empty());
        files.create_folder(Path::new("/data")).unwrap();
        files.sync_folder(Path::new("/")).unwrap();
        let mut shard = ShardFolder::open(files.clone(), FOLDER.into()).unwrap();
        write_database(files.as_ref(), &shard.database(), &MadeUp.database(1)).unwrap();
        files.set_mark(1);
        files.fail_after(successes);
        let installed = install(&files, &mut shard, &MadeUp, 2, 64);
        let moment = files.take_moments().pop().unwrap();
        for fate in [Fate::Lost, Fate::Kept] {
            let crashed = Arc::new(moment.crash(&vec![fate; moment.pending()]));
            recover(&crashed, &MadeUp, moment.mark)
                .unwrap_or_else(|why| panic!("{successes} successes, {fate:?}: {why}"));
        }
        if installed.is_ok() {
            assert!(successes > 10, "{successes} operations");
            return;
        }
    }
}

/// Several pieces are under way at a time, and one whose reply was lost is sent again.
#[test]
fn pieces_may_overtake_each_other_and_come_again() {
    let files = Arc::new(SimFiles::empty());
    files.create_folder(Path::new(FOLDER)).unwrap();
    let mut incoming = Incoming::begin(files.clone(), Path::new(FOLDER), 1).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let piece = |number: usize| Bytes::copy_from_slice(&bytes[(number * 64).min(256)..((number + 1) * 64).min(256)]);
    for number in [1, 0, 0, 3, 4, 2, 1, 4] {
        incoming.take("000012.sst", number as u64 * 64, piece(number)).unwrap();
    }
    incoming.take("empty", 0, Bytes::new()).unwrap();
    let file = |name: &str, bytes: &[u8]| SnapshotFile {
        name: name.into(),
        size_bytes: bytes.len() as u64,
        checksum: crc32fast::hash(bytes),
    };
    let folder = incoming.finish(&[file("000012.sst", &bytes), file("empty", &[])]).unwrap();
    assert_eq!(files.read(&folder.path().join("000012.sst")).unwrap(), Some(bytes.clone()));
    assert_eq!(files.read(&folder.path().join("empty")).unwrap(), Some(vec![]));
    let mut gap = Incoming::begin(files.clone(), Path::new(FOLDER), 2).unwrap();
    gap.take("000012.sst", 64, piece(1)).unwrap();
    assert!(gap.finish(&[file("000012.sst", &[])]).is_err(), "a piece that never came is missed");
    let mut flood = Incoming::begin(files, Path::new(FOLDER), 3).unwrap();
    let taken = (1..100).map(|number| flood.take("000012.sst", number * 64, piece(1))).filter(Result::is_ok).count();
    assert_eq!(taken, EARLY_PIECES_MAX, "what is put aside has a bound");
}

#[test]
fn suite_notices_a_snapshot_that_counts_before_it_is_durable() {
    crate::planted::plant(Some(Bug::InstallBeforeSync));
    let why = enumerate(&MadeUp, 64).expect_err("the planted bug shows");
    assert!(why.contains("no whole database"), "{why}");
}

#[test]
fn suite_notices_a_name_that_counts_before_it_is_durable() {
    crate::planted::plant(Some(Bug::RenameBeforeSync));
    let why = enumerate(&MadeUp, 64).expect_err("the planted bug shows");
    assert!(why.contains("names no database"), "{why}");
}

#[test]
fn database_without_a_name_is_never_thrown_away() {
    let files = Arc::new(SimFiles::empty());
    let shard = ShardFolder::open(files.clone(), FOLDER.into()).unwrap();
    write_database(files.as_ref(), &shard.database(), &MadeUp.database(1)).unwrap();
    files.remove(&Path::new(FOLDER).join(CURRENT)).unwrap();
    let error = ShardFolder::open(files.clone(), FOLDER.into()).err().expect("a lost name is damage");
    assert!(error.to_string().contains("names no database"), "{error}");
    assert_eq!(files.list(&shard.database()).unwrap().len(), 3, "nothing was removed");
}

const BODY_KEY: &[u8] = b"body";

fn body_of(version: u64) -> Vec<u8> {
    vec![version as u8; 3000]
}

/// Real databases: each version is a checkpoint with one more entry applied, and a body of its own.
struct Real {
    databases: Vec<Database>,
}

impl Real {
    fn make(folder: &Path) -> Real {
        use crate::state::{Batch, Family, LogPosition, Machine, RocksMemory, RocksStore, Store};
        let store = RocksStore::open(&folder.join("db"), &RocksMemory::default()).unwrap();
        let mut machine = Machine::open(store, plinth_protocol::GroupId(7)).unwrap();
        let databases = (1..2 + INSTALLS).map(|index| {
            // A body of the kind that stands in a file of its own, apart from the rows.
            let mut batch = Batch::new();
            batch.put(Family::Bodies, BODY_KEY.to_vec(), body_of(index));
            machine.store().write(&batch).unwrap();
            machine.apply_blank(LogPosition { term: 1, leader: plinth_protocol::NodeId(1), index }).unwrap();
            let copy = folder.join(format!("copy.{index}"));
            machine.reader().checkpoint(&copy).unwrap();
            let names = SystemFiles.list(&copy).unwrap();
            assert!(names.iter().any(|name| name.ends_with(".blob")), "{names:?}");
            let read = |name: String| (name.clone(), SystemFiles.read(&copy.join(&name)).unwrap().unwrap());
            names.into_iter().map(read).collect()
        });
        Real { databases: databases.collect() }
    }
}

impl Versions for Real {
    fn database(&self, version: u64) -> Database {
        // Transfers that break off are of no version in particular.
        self.databases[(version as usize - 1) % self.databases.len()].clone()
    }
}

#[test]
fn real_database_opens_after_every_crash_state() {
    use crate::state::{Family, Machine, RocksMemory, RocksStore, Store, View};
    let folder = tempfile::tempdir().unwrap();
    let versions = Real::make(folder.path());
    let mut opened = BTreeSet::new();
    for moment in live(&versions, 1 << 20).unwrap() {
        // Prefixes are enough here: whether a folder is whole has been checked byte by byte above.
        for kept in 0..=moment.pending() {
            let fate = |at: usize| if at < kept { Fate::Kept } else { Fate::Lost };
            let files = Arc::new(moment.crash(&(0..moment.pending()).map(fate).collect::<Vec<_>>()));
            let (shard, Some(version)) = recover(&files, &versions, moment.mark).unwrap() else { continue };
            if !opened.insert((version, files.digest())) {
                continue;
            }
            let copy = folder.path().join(format!("crashed.{}", opened.len()));
            SystemFiles.create_folder(&copy).unwrap();
            for name in files.list(&shard.database()).unwrap() {
                let bytes = files.read(&shard.database().join(&name)).unwrap().unwrap();
                SystemFiles.write_at(&copy.join(name), 0, &bytes).unwrap();
            }
            let store = RocksStore::open(&copy, &RocksMemory::default()).unwrap();
            let machine = Machine::open(store, plinth_protocol::GroupId(7)).unwrap();
            assert_eq!(machine.position().unwrap().index, version);
            let body = machine.store().view().get(Family::Bodies, BODY_KEY).unwrap();
            assert_eq!(body, Some(body_of(version)));
            drop(machine);
            SystemFiles.remove(&copy).unwrap();
        }
    }
    assert!(opened.len() as u64 > INSTALLS, "{} states were opened", opened.len());
}
