//! One stream of commands through both stores: outcomes and rows must be equal, also after a
//! crash and replay, and when the same log is applied twice.

use super::*;
use crate::state::{RocksMemory, RocksStore, rows};
use proptest::prelude::*;

/// A step of a stream.
#[derive(Debug, Clone)]
enum Step {
    Entry(Vec<Command>),
    Flush,
    /// What the database's files hold at this moment is all that is left of it.
    Crash,
    /// Lets some time pass, in milliseconds.
    Wait(u64),
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("a/b"), Just("a\u{0}"), Just("b"), Just("\u{e9}")].prop_map(str::to_owned)
}

fn any_body() -> impl Strategy<Value = (Body, u64)> {
    prop_oneof![
        // Of the sizes that stand in their row, and of those that stand apart.
        (any::<u8>(), prop_oneof![0usize..40, 900usize..4096]).prop_map(|(seed, size)| {
            let bytes: Vec<u8> = (0..size).map(|at| seed.wrapping_mul(at as u8)).collect();
            (Body::Inline(Bytes::from(bytes)), size as u64)
        }),
        (0u64..1 << 40, 1u64..6 << 20, proptest::option::of(1u32..31)).prop_map(|(sequence, bytes, missing)| {
            (Body::Stripes(vec![StripeRef { missing, ..stripe(sequence, bytes) }]), bytes)
        }),
    ]
}

fn any_expectation() -> impl Strategy<Value = Option<Expectation>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(expect(ExpectationKind::Absent, None)),
        1 => Just(expect(ExpectationKind::Present, None)),
        1 => Just(expect(ExpectationKind::Matches, Some(&etag_of(b"a").to_string()))),
    ]
}

fn any_bucket() -> impl Strategy<Value = BucketId> {
    prop_oneof![8 => Just(BUCKET), 1 => Just(BucketId(1)), 1 => Just(BucketId(u64::MAX))]
}

fn any_command() -> impl Strategy<Value = Command> {
    let upload = || (1u128..4).prop_map(UploadId);
    let put = (any_bucket(), any_key(), any_body(), any_expectation(), any::<bool>()).prop_map(
        |(bucket, key, (body, size_bytes), expectation, same)| {
            let etag = etag_of(if same { b"a" } else { key.as_bytes() });
            let body = ObjectBody { headers: headers(), body };
            Command::PutObject(PutObject { bucket, key, size_bytes, etag, checksum: None, body, expectation })
        },
    );
    let delete = (any_bucket(), any_key(), any_expectation())
        .prop_map(|(bucket, key, expectation)| Command::DeleteObject(DeleteObject { bucket, key, expectation }));
    let create = (any_bucket(), any_key(), upload()).prop_map(|(bucket, key, upload)| {
        Command::CreateUpload(CreateUpload { bucket, key, upload, headers: headers(), algorithm: None, kind: None })
    });
    let part = (any_bucket(), any_key(), upload(), 1u16..4, any_body()).prop_map(
        |(bucket, key, upload, number, (body, size_bytes))| {
            let md5 = md5_of(&[number as u8]);
            let (modified, request) = (HybridTime(0), RequestId(0));
            let part = PartRow { size_bytes, md5, modified, checksum: None, body, request };
            Command::PutPart(PutPart { bucket, key, upload, number, part })
        },
    );
    let complete = (any_bucket(), any_key(), upload(), proptest::sample::subsequence(vec![1u16, 2, 3], 1..4)).prop_map(
        |(bucket, key, upload, numbers)| {
            let etag = |number: u16| Etag { md5: md5_of(&[number as u8]), parts: None }.to_string();
            let line = |number: u16| CompletePart { number, etag: etag(number), checksum: None };
            let parts = numbers.into_iter().map(line).collect();
            let (expectation, size_bytes, checksum) = (None, None, None);
            Command::CompleteUpload(CompleteUpload { bucket, key, upload, parts, expectation, size_bytes, checksum })
        },
    );
    let abort = (any_bucket(), any_key(), upload())
        .prop_map(|(bucket, key, upload)| Command::AbortUpload(AbortUpload { bucket, key, upload }));
    prop_oneof![
        8 => put,
        4 => delete,
        3 => create,
        4 => part,
        3 => complete,
        1 => abort,
        2 => any_bucket().prop_map(Command::OpenBucket),
        1 => any_bucket().prop_map(Command::CloseBucket),
        1 => (any_bucket(), 0u64..4).prop_map(|(bucket, attempt)| Command::OpenAttempt(BucketAttempt { bucket, attempt })),
        1 => (any_bucket(), 0u64..4).prop_map(|(bucket, attempt)| Command::CloseAttempt(BucketAttempt { bucket, attempt })),
        1 => Just(Command::RaiseRules(RULES_STRICT)),
        1 => Just(Command::TakeApart),
        1 => (0u64..6).prop_map(|id| Command::RaiseFence(WriterId(id))),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(any_command(), 1..6).prop_map(Step::Entry),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => (0u64..2 * REQUEST_MEMORY_MS).prop_map(Step::Wait),
    ]
}

fn rows_of<S: Store>(replica: &Replica<S>) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    dump(&replica.machine.store().view()).unwrap()
}

/// Finishes work that commands leave behind: what fill-in and deletion jobs would send.
fn jobs<S: Store>(replica: &Replica<S>) -> Vec<Command> {
    let filled = replica
        .owed()
        .into_iter()
        .take(2)
        .map(|row| Command::FillIn(FilledIn { owner: row.owner, stripe: row.stripe.stripe, fragments: 0b101 }));
    let rows: Vec<Bytes> = replica.due_rows().into_iter().take(2).map(|row| row.row).collect();
    filled.chain([Command::FinishDeletes(FinishDeletes { rows })]).collect()
}

fn run_stream(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let shared = RocksMemory::new(1 << 20, 4 << 20);
    let mut live = folder.path().join("0");
    let mut memory = Replica::new(MemoryStore::new(), SHARD);
    let mut rocks = Replica::new(RocksStore::open(&live, &shared).unwrap(), SHARD);
    for step in steps {
        match step {
            Step::Entry(commands) => {
                for commands in [commands, jobs(&memory)] {
                    let mutations: Vec<Mutation> =
                        commands.into_iter().map(|command| memory.mutation(command)).collect();
                    assert_eq!(memory.apply(mutations.clone()), rocks.apply(mutations));
                }
            }
            Step::Flush => {
                rocks.machine.flush().unwrap();
                let flushed = rocks.machine.reader().flushed().unwrap();
                assert_eq!(flushed, memory.machine.reader().applied().unwrap());
                assert_eq!(flushed.position.as_ref(), rocks.machine.position(), "rows and position go together");
            }
            Step::Crash => {
                let crashed = folder.path().join(format!("{}", rocks.index));
                if crashed == live {
                    continue;
                }
                copy_files(&live, &crashed);
                live = crashed;
                let (log, index, now_ms) = (std::mem::take(&mut rocks.log), rocks.index, rocks.now_ms);
                let store = RocksStore::open(&live, &shared).unwrap();
                rocks = Replica { log, index, now_ms, ..Replica::new(store, SHARD) };
                let applied = rocks.machine.position().map_or(0, |at| at.index);
                for (at, now, mutations) in rocks.log.iter().filter(|(at, ..)| at.index > applied) {
                    rocks.machine.apply(at.clone(), *now, mutations).unwrap();
                }
            }
            Step::Wait(ms) => {
                memory.now_ms += ms;
                rocks.now_ms += ms;
            }
        }
    }
    assert_eq!(rows_of(&memory), rows_of(&rocks));
    memory.assert_counters();
    for _ in 0..100 {
        memory.run(Command::TakeApart);
    }
    memory.assert_counters();
    assert_no_leftovers(&memory);
    rocks.machine.reader().verify().unwrap();
    let mut again = Machine::open(MemoryStore::new(), SHARD).unwrap();
    for (at, now, mutations) in &memory.log {
        again.apply(at.clone(), *now, mutations).unwrap();
    }
    assert_eq!(dump(&again.store().view()).unwrap(), rows_of(&memory), "the same log twice gives the same rows");
}

/// Checks that nothing waits any more, and that every part row belongs to an open upload or is listed by an object.
fn assert_no_leftovers<S: Store>(replica: &Replica<S>) {
    let rows = rows_of(replica);
    let of = |family: Family| rows.iter().filter(move |row| row.0 == family);
    assert_eq!(replica.stat().discards, None);
    let uploads: Vec<&[u8]> = of(Family::Uploads).map(|row| &row.1[..]).collect();
    for (_, place, _) in of(Family::Parts) {
        let (upload, number) = place.split_at(place.len() - 2);
        let number = u16::from_be_bytes(number.try_into().unwrap());
        let holder = &upload[..upload.len() - 16];
        let listed = of(Family::Bodies).filter(|row| row.1 == holder).any(|(_, _, body)| {
            let body: ObjectBody = rows::decode(Family::Bodies, body).unwrap();
            matches!(body.body, Body::Parts(spans) if spans.iter().any(|span| span.number == number))
        });
        assert!(uploads.contains(&upload) || listed, "a part of nothing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn both_stores_and_every_replay_hold_the_same_rows(steps in proptest::collection::vec(any_step(), 1..30)) {
        run_stream([Step::Entry(vec![Command::OpenBucket(BUCKET)])].into_iter().chain(steps).collect());
    }
}

#[test]
fn suite_notices_a_position_that_is_not_in_the_batch() {
    let steps = || vec![Step::Entry(vec![Command::OpenBucket(BUCKET)]), Step::Flush, Step::Crash];
    run_stream(steps());
    crate::planted::plant(Some(crate::planted::Bug::ApplyWithoutIndex));
    assert!(std::panic::catch_unwind(|| run_stream(steps())).is_err());
}

/// Streams per run; `PLINTH_TEST_CASES` raises it for long runs.
fn cases() -> u32 {
    std::env::var("PLINTH_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

#[test]
fn rocks_checkpoint_opens_as_a_replica() {
    let folder = tempfile::tempdir().unwrap();
    let memory = RocksMemory::default();
    let mut shard = Replica::new(RocksStore::open(&folder.path().join("db"), &memory).unwrap(), SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    shard.run(Command::PutObject(put_inline("k", &[7; 2000])));
    shard.index += 1;
    shard.machine.apply_membership(position(shard.index), b"three voters").unwrap();
    let copy = folder.path().join("copy");
    let copied = shard.machine.reader().checkpoint(&copy).unwrap();
    assert_eq!(copied, shard.machine.reader().applied().unwrap());
    assert_eq!(copied.membership.as_deref(), Some(&b"three voters"[..]));
    shard.run(Command::PutObject(put_inline("later", b"x")));
    let other = Machine::open(RocksStore::open(&copy, &memory).unwrap(), SHARD).unwrap();
    assert_eq!(other.position(), copied.position.as_ref());
    let rows = dump(&other.store().view()).unwrap();
    assert_eq!(rows.iter().filter(|row| row.0 == Family::Objects).count(), 1);
    other.reader().verify().unwrap();
    assert!(shard.machine.reader().checkpoint(&copy).is_err(), "an existing folder is not overwritten");
}

/// Most tries to copy a database between two of its own clean-ups.
const COPIES_MAX: usize = 1000;

/// Copies the files of an open database as they lie: what a crash leaves of it. The database removes
/// files that it needs no longer in the background: a copy counts only where no file came or went.
fn copy_files(live: &std::path::Path, to: &std::path::Path) {
    let names = || {
        let entries = std::fs::read_dir(live).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    for _ in 0..COPIES_MAX {
        let before = names();
        std::fs::create_dir(to).unwrap();
        let whole = before.iter().all(|name| std::fs::copy(live.join(name), to.join(name)).is_ok());
        if whole && names() == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("the database never rests");
}

#[test]
fn crash_without_wal_leaves_one_moment_over_all_families() {
    let folder = tempfile::tempdir().unwrap();
    let memory = RocksMemory::default();
    let live = folder.path().join("db");
    let mut shard = Replica::new(RocksStore::open(&live, &memory).unwrap(), SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    for number in 0..50 {
        shard.run(Command::PutObject(put_stripes(&format!("k{}", number % 7), vec![stripe(number, 5)])));
        if number == 30 {
            assert_eq!(shard.machine.flush().unwrap(), Some(position(shard.index)));
        }
    }
    let flushed = shard.machine.reader().flushed().unwrap().position.unwrap();
    assert_eq!(flushed.index, 32);
    let crashed = folder.path().join("crashed");
    copy_files(&live, &crashed);
    let store = RocksStore::open(&crashed, &memory).unwrap();
    let mut again = Machine::open(store, SHARD).unwrap();
    assert_eq!(again.position(), Some(&flushed));
    for (at, now, mutations) in shard.log.iter().filter(|(at, ..)| at.index > flushed.index) {
        again.apply(at.clone(), *now, mutations).unwrap();
    }
    assert_eq!(dump(&again.store().view()).unwrap(), rows_of(&shard));
}

#[test]
fn views_stand_still_while_entries_are_applied() {
    use crate::state::View;
    let folder = tempfile::tempdir().unwrap();
    let store = RocksStore::open(&folder.path().join("db"), &RocksMemory::default()).unwrap();
    let mut shard = Replica::new(store, SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    shard.run(Command::PutObject(put_inline("a", b"x")));
    let reader = shard.machine.reader();
    let store = reader.store().clone();
    let view = store.view();
    let before = dump(&view).unwrap();
    shard.run(Command::PutObject(put_inline("b", b"x")));
    assert_eq!(dump(&view).unwrap(), before);
    assert!(view.get(Family::Objects, b"none").unwrap().is_none());
    assert!(shard.object("b").is_some());
}

#[test]
fn damaged_row_file_is_found() {
    damage_is_found("sst", b"some bytes in the row");
}

#[test]
fn damaged_body_file_is_found() {
    damage_is_found("blob", &[7; 2000]);
}

/// Damages each file of a kind, in a database of 200 bodies like this.
fn damage_is_found(kind: &str, body: &'static [u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let memory = RocksMemory::new(1 << 20, 4 << 20);
    let mut shard = Replica::new(RocksStore::open(&path, &memory).unwrap(), SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    for number in 0..200 {
        shard.run(Command::PutObject(put_inline(&format!("key-{number}"), body)));
    }
    shard.machine.flush().unwrap();
    shard.machine.reader().verify().unwrap();
    drop(shard);
    let mut damaged = 0;
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == kind) {
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
            std::fs::write(&file, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "there are files of the kind");
    let found = match RocksStore::open(&path, &memory) {
        Err(_) => true,
        Ok(store) => store.verify().is_err(),
    };
    assert!(found);
}
