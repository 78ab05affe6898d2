//! Heavy commands are one bounded entry each: what they drop is gone at once, and taken apart later, exactly once.

use super::*;
use crate::state::discards::PARTS_INLINE_MAX;
use crate::state::uploads::PART_BYTES_MIN;
use std::collections::BTreeSet;

/// Rows that an entry may change, at most.
const ROWS_MAX: usize = 25_000;
/// Rows of a command that puts its work off.
const PUT_OFF_ROWS_MAX: usize = 20;
const PARTS_MAX: u16 = PART_NUMBER_MAX;

fn ruled() -> Replica<MemoryStore> {
    let mut shard = shard();
    assert_eq!(shard.run(Command::RaiseRules(RULES_STRICT)), Outcome::Done);
    shard
}

/// Draws a stripe id for each part of each upload.
fn sequence(upload: u128, number: u16) -> u64 {
    (upload as u64) << 16 | u64::from(number)
}

fn create(key: &str, upload: u128) -> Command {
    let (bucket, key, upload) = (BUCKET, key.into(), UploadId(upload));
    Command::CreateUpload(CreateUpload { bucket, key, upload, headers: headers(), algorithm: None, kind: None })
}

fn part(key: &str, upload: u128, number: u16) -> Command {
    let part = PartRow {
        size_bytes: PART_BYTES_MIN,
        md5: md5_of(&number.to_be_bytes()),
        modified: HybridTime(0),
        checksum: None,
        body: Body::Stripes(vec![StripeRef {
            missing: number.is_multiple_of(5).then_some(1),
            ..stripe(sequence(upload, number), PART_BYTES_MIN)
        }]),
        request: RequestId(0),
    };
    Command::PutPart(PutPart { bucket: BUCKET, key: key.into(), upload: UploadId(upload), number, part })
}

fn complete(key: &str, upload: u128, numbers: impl Iterator<Item = u16>) -> Command {
    let line = |number: u16| {
        let etag = Etag { md5: md5_of(&number.to_be_bytes()), parts: None }.to_string();
        CompletePart { number, etag, checksum: None }
    };
    let parts = numbers.map(line).collect();
    let (bucket, key, upload) = (BUCKET, key.into(), UploadId(upload));
    Command::CompleteUpload(CompleteUpload {
        bucket,
        key,
        upload,
        parts,
        expectation: None,
        size_bytes: None,
        checksum: None,
    })
}

fn abort(key: &str, upload: u128) -> Command {
    Command::AbortUpload(AbortUpload { bucket: BUCKET, key: key.into(), upload: UploadId(upload) })
}

/// Opens an upload with parts 1 to `count`.
fn upload(shard: &mut Replica<MemoryStore>, key: &str, upload: u128, count: u16) {
    assert_eq!(shard.run(create(key, upload)), Outcome::Done);
    let numbers: Vec<u16> = (1..=count).collect();
    for numbers in numbers.chunks(500) {
        let mutations = numbers.iter().map(|number| shard.mutation(part(key, upload, *number))).collect();
        assert!(shard.apply(mutations).iter().all(|outcome| matches!(outcome, Outcome::Part(_))));
    }
}

/// Takes everything apart that waits, entry by bounded entry; returns how many it took.
fn take_apart(shard: &mut Replica<MemoryStore>) -> usize {
    for count in 0..1_000 {
        if shard.stat().discards.is_none() {
            return count;
        }
        assert_eq!(shard.run(Command::TakeApart), Outcome::Done);
        assert!(shard.machine.rows_changed() < ROWS_MAX, "{} rows", shard.machine.rows_changed());
        shard.assert_counters();
    }
    panic!("it never ends");
}

/// All stripes that wait for their deletion, each once.
fn all_doomed(shard: &Replica<MemoryStore>) -> BTreeSet<StripeId> {
    let doomed = shard.doomed();
    let distinct: BTreeSet<StripeId> = doomed.iter().copied().collect();
    assert_eq!(doomed.len(), distinct.len(), "each stripe is queued once");
    distinct
}

fn stripes_of(upload: u128, numbers: impl Iterator<Item = u16>) -> BTreeSet<StripeId> {
    numbers.map(|number| StripeId::new(WriterId(5), sequence(upload, number), 0)).collect()
}

fn parts_of(shard: &Replica<MemoryStore>, key: &str, upload: u128) -> Option<usize> {
    let query = PartsQuery { bucket: BUCKET, key: key.into(), upload: UploadId(upload), from: 0, limit: 1000 };
    match shard.query(Query::Parts(query)) {
        Reply::Parts(page) => Some(page.parts.len()),
        Reply::Absent(RefusalKind::NoSuchUpload) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn displacing_an_object_of_10_000_parts_is_a_small_entry() {
    for overwrite in [false, true] {
        let mut shard = ruled();
        upload(&mut shard, "k", 1, PARTS_MAX);
        object_row(shard.run(complete("k", 1, 1..=PARTS_MAX)));
        assert!(shard.machine.rows_changed() < PUT_OFF_ROWS_MAX, "Complete moves nothing");
        assert_eq!(shard.stat().discards, None);
        if overwrite {
            object_row(shard.run(Command::PutObject(put_inline("k", b"new"))));
        } else {
            assert_eq!(shard.run(Command::DeleteObject(delete("k"))), Outcome::Deleted(true));
        }
        assert!(shard.machine.rows_changed() < PUT_OFF_ROWS_MAX, "{} rows", shard.machine.rows_changed());
        let deleted = HybridTime::from_millis(shard.now_ms);
        assert_eq!(shard.object("k").is_some(), overwrite);
        assert_eq!((parts_of(&shard, "k", 1), shard.doomed().len()), (None, 0), "gone for readers at once");
        shard.assert_counters();
        assert!(take_apart(&mut shard) > 1, "in several entries");
        assert_eq!(all_doomed(&shard), stripes_of(1, 1..=PARTS_MAX));
        assert!(
            shard.due_rows().iter().all(|row| row.at > deleted),
            "the retention counts from later, never from earlier"
        );
        assert_eq!((shard.rows(Family::Parts), shard.rows(Family::FillIns)), (0, 0));
    }
}

#[test]
fn aborting_10_000_parts_is_a_small_entry() {
    let mut shard = ruled();
    upload(&mut shard, "k", 1, PARTS_MAX);
    assert_eq!(shard.run(abort("k", 1)), Outcome::Done);
    assert!(shard.machine.rows_changed() < PUT_OFF_ROWS_MAX);
    assert_eq!(parts_of(&shard, "k", 1), None);
    assert_refused(shard.run(part("k", 1, 1)), RefusalKind::NoSuchUpload);
    assert_refused(shard.run(complete("k", 1, 1..=1)), RefusalKind::NoSuchUpload);
    assert_refused(shard.run(create("k", 1)), RefusalKind::AlreadyExists);
    take_apart(&mut shard);
    assert_eq!(all_doomed(&shard), stripes_of(1, 1..=PARTS_MAX));
}

#[test]
fn parts_that_a_complete_leaves_out_go_and_the_listed_ones_stay() {
    let mut shard = ruled();
    upload(&mut shard, "k", 1, PARTS_MAX);
    let even = || (1..=PARTS_MAX).filter(|number| number.is_multiple_of(2));
    let odd = || (1..=PARTS_MAX).filter(|number| !number.is_multiple_of(2));
    object_row(shard.run(complete("k", 1, even())));
    assert!(shard.machine.rows_changed() < PUT_OFF_ROWS_MAX);
    assert_refused(shard.run(create("k", 1)), RefusalKind::AlreadyExists);
    shard.run(Command::TakeApart);
    assert!(shard.stat().discards.is_some(), "half-way");
    assert_eq!(parts_of(&shard, "k", 1), Some(1000));
    take_apart(&mut shard);
    assert_eq!(all_doomed(&shard), stripes_of(1, odd()));
    assert_eq!(shard.rows(Family::Parts), even().count());
    // The object is replaced while parts of its upload are being taken apart: all of them go, none twice.
    upload(&mut shard, "j", 2, PARTS_MAX);
    object_row(shard.run(complete("j", 2, odd())));
    shard.run(Command::TakeApart);
    object_row(shard.run(Command::PutObject(put_inline("j", b"new"))));
    object_row(shard.run(Command::PutObject(put_inline("k", b"new"))));
    take_apart(&mut shard);
    assert_eq!(all_doomed(&shard), &stripes_of(1, 1..=PARTS_MAX) | &stripes_of(2, 1..=PARTS_MAX));
    assert_eq!(shard.rows(Family::Parts), 0);
}

#[test]
fn closing_a_bucket_with_many_uploads_is_a_small_entry() {
    let mut shard = ruled();
    for id in 0..2_000u128 {
        upload(&mut shard, &format!("k{id}"), id, 3);
    }
    let close = |attempt| Command::CloseAttempt(BucketAttempt { bucket: BUCKET, attempt });
    assert_eq!(shard.run(close(5)), Outcome::Done);
    assert!(shard.machine.rows_changed() < PUT_OFF_ROWS_MAX, "{}", shard.machine.rows_changed());
    // Opened again at once: another shard was not empty. What was dropped stays dropped, what is new stays.
    assert_eq!(shard.run(Command::OpenAttempt(BucketAttempt { bucket: BUCKET, attempt: 6 })), Outcome::Done);
    let listed = |shard: &Replica<MemoryStore>| {
        let query = UploadsQuery {
            bucket: BUCKET,
            prefix: "".into(),
            delimiter: None,
            after_key: None,
            after_upload: None,
            limit: 1000,
        };
        match shard.query(Query::Uploads(query)) {
            Reply::Uploads(page) => page.uploads.into_iter().map(|entry| entry.key).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(listed(&shard), Vec::<String>::new());
    assert_eq!(parts_of(&shard, "k7", 7), None);
    assert_refused(shard.run(part("k7", 7, 1)), RefusalKind::NoSuchUpload);
    assert_refused(shard.run(abort("k7", 7)), RefusalKind::NoSuchUpload);
    assert_refused(shard.run(create("k7", 7)), RefusalKind::AlreadyExists);
    upload(&mut shard, "k7", 9_999, 2);
    assert_eq!(listed(&shard), ["k7"]);
    take_apart(&mut shard);
    assert_eq!((listed(&shard).len(), shard.rows(Family::Uploads), shard.rows(Family::Parts)), (1, 1, 2));
    let all = (0..2_000u128).flat_map(|id| stripes_of(id, 1..=3)).collect();
    assert_eq!(dooms_by_page(&shard), all);
}

#[test]
fn uploads_of_one_entry_are_told_apart_by_the_bucket_they_were_begun_in() {
    let mut shard = ruled();
    let change = |attempt| BucketAttempt { bucket: BUCKET, attempt };
    let commands = |shard: &mut Replica<MemoryStore>, round: u128| {
        let create = |id: u128| create("k", round * 10 + id);
        let (close, open) = (Command::CloseAttempt(change(5)), Command::OpenAttempt(change(6)));
        let commands = match round {
            0 => vec![create(1), create(2), create(3), close, open, create(4)],
            _ => vec![create(1), Command::CloseAttempt(change(7)), Command::OpenAttempt(change(8)), create(2)],
        };
        let mutations: Vec<Mutation> = commands.into_iter().map(|command| shard.mutation(command)).collect();
        mutations
    };
    let both = [commands(&mut shard, 0), commands(&mut shard, 1)].concat();
    assert!(shard.apply(both).iter().all(|outcome| *outcome == Outcome::Done));
    for id in [1, 2, 3, 4, 11] {
        assert_refused(shard.run(part("k", id, 1)), RefusalKind::NoSuchUpload);
    }
    assert!(matches!(shard.run(part("k", 12, 1)), Outcome::Part(_)));
    take_apart(&mut shard);
    assert_eq!((shard.rows(Family::Uploads), shard.rows(Family::Parts)), (1, 1));
}

/// As [`all_doomed`], over more than one page.
fn dooms_by_page(shard: &Replica<MemoryStore>) -> BTreeSet<StripeId> {
    let (mut found, mut after) = (BTreeSet::new(), None);
    loop {
        let query = DueQuery { before: HybridTime(u64::MAX), after: after.clone(), limit: 1000, age_ms: None };
        let Reply::DueDeletes(page) = shard.query(Query::DueDeletes(query)) else { panic!("deferred deletes") };
        for stripe in page.rows.iter().flat_map(|row| &row.stripes) {
            assert!(found.insert(stripe.stripe), "each stripe is queued once");
        }
        after = page.rows.last().map(|row| row.row.clone());
        if !page.more {
            return found;
        }
    }
}

#[test]
fn an_entry_that_displaces_many_objects_stays_bounded() {
    let mut shard = ruled();
    let count = PARTS_INLINE_MAX as u16;
    for id in 0..4_000u128 {
        upload(&mut shard, &format!("k{id}"), id, count);
        object_row(shard.run(complete(&format!("k{id}"), id, 1..=count)));
    }
    let deletes = (0..4_000).map(|id| shard.mutation(Command::DeleteObject(delete(&format!("k{id}"))))).collect();
    shard.apply(deletes);
    // Beside the parts: two rows of the object, two of what is remembered, one put off or a queued stripe each.
    assert!(shard.machine.rows_changed() < 4_000 * 8 + 10_000, "{}", shard.machine.rows_changed());
    assert!(shard.stat().discards.is_some());
    take_apart(&mut shard);
    let all = (0..4_000u128).flat_map(|id| stripes_of(id, 1..=count)).collect();
    assert_eq!(dooms_by_page(&shard), all);
}

#[test]
fn logs_from_before_the_rules_are_applied_as_they_were() {
    let mut shard = shard();
    upload(&mut shard, "k", 1, 200);
    object_row(shard.run(complete("k", 1, 1..=200)));
    shard.run(Command::DeleteObject(delete("k")));
    assert_eq!((shard.stat().discards, shard.doomed().len(), shard.rows(Family::Parts)), (None, 200, 0));
}
