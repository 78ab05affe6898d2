//! PutObject, DeleteObject, conditions, fences, fill-ins, deferred deletes.

use super::*;
use crate::state::StateError;
use ExpectationKind::*;

#[test]
fn put_publishes_row_and_body() {
    let mut shard = shard();
    let row = object_row(shard.run(Command::PutObject(put_inline("k", b"hello"))));
    assert_eq!((row.size_bytes, row.modified.millis()), (5, shard.now_ms));
    let view = shard.object("k").unwrap();
    assert_eq!(view.row, row);
    assert_eq!(view.body.unwrap().body, Body::Inline(Bytes::from_static(b"hello")));
    let head = shard.query(Query::Object(ObjectQuery { bucket: BUCKET, key: "k".into(), body: false }));
    assert_eq!(head, Reply::Object(ObjectView { row, body: None }));
    shard.assert_counters();
}

/// The conditional table of s3.md, line by line.
#[test]
fn conditions_follow_the_table() {
    let etag = etag_of(b"one").to_string();
    let quoted = format!("\"{etag}\"");
    type Line<'a> = (ExpectationKind, Option<&'a str>, bool, Option<RefusalKind>);
    let put: &[Line] = &[
        (Absent, None, false, None),
        (Absent, None, true, Some(RefusalKind::PreconditionFailed)),
        (Matches, Some(&etag), false, Some(RefusalKind::NoSuchKey)),
        (Matches, Some(&etag), true, None),
        (Matches, Some(&quoted), true, None),
        (Matches, Some("0"), true, Some(RefusalKind::PreconditionFailed)),
        (Present, None, false, Some(RefusalKind::NoSuchKey)),
        (Present, None, true, None),
    ];
    for (kind, etag, present, refusal) in put {
        for deletes in [false, true] {
            let mut shard = shard();
            if *present {
                object_row(shard.run(Command::PutObject(put_inline("k", b"one"))));
            }
            let expectation = expect(*kind, *etag);
            let outcome = shard.run(match deletes {
                false => Command::PutObject(PutObject { expectation, ..put_inline("k", b"two") }),
                true => Command::DeleteObject(DeleteObject { expectation, ..delete("k") }),
            });
            match refusal {
                Some(refusal) => {
                    assert_refused(outcome, *refusal);
                    let left = shard.object("k").map(|view| view.row.etag);
                    assert_eq!(left, present.then(|| etag_of(b"one")), "a refusal changes nothing");
                }
                None => assert!(!matches!(outcome, Outcome::Refused(_)), "{kind:?} {etag:?} {present} {outcome:?}"),
            }
            shard.assert_counters();
        }
    }
}

#[test]
fn c2_of_racing_creators_in_one_entry_one_wins() {
    let mut shard = shard();
    let create = PutObject { expectation: expect(Absent, None), ..put_inline("k", b"x") };
    let racers: Vec<Mutation> = (0..5).map(|_| shard.mutation(Command::PutObject(create.clone()))).collect();
    let outcomes = shard.apply(racers);
    assert!(matches!(outcomes[0], Outcome::Object(_)));
    for outcome in &outcomes[1..] {
        assert_refused(outcome.clone(), RefusalKind::PreconditionFailed);
    }
    shard.assert_counters();
}

#[test]
fn overwritten_and_deleted_stripes_are_queued_in_the_same_entry() {
    let mut shard = shard();
    shard.run(Command::PutObject(put_stripes("k", vec![stripe(1, 100), stripe(2, 50)])));
    assert!(shard.doomed().is_empty());
    shard.run(Command::PutObject(put_stripes("k", vec![stripe(3, 10)])));
    assert_eq!(shard.doomed(), [stripe(1, 1).stripe, stripe(2, 1).stripe]);
    assert_eq!(shard.run(Command::DeleteObject(delete("k"))), Outcome::Deleted(true));
    assert_eq!(shard.doomed().len(), 3);
    assert_eq!(shard.run(Command::DeleteObject(delete("k"))), Outcome::Deleted(false), "D1");
    shard.assert_counters();
    let rows: Vec<Bytes> = shard.due_rows().into_iter().map(|row| row.row).collect();
    shard.run(Command::FinishDeletes(FinishDeletes { rows: vec![rows[0].clone(), Bytes::from_static(b"none")] }));
    assert_eq!(shard.doomed(), [stripe(3, 1).stripe]);
    shard.assert_counters();
}

#[test]
fn due_deletes_are_paged_by_age() {
    let mut shard = shard();
    for number in 0..5 {
        shard.run(Command::PutObject(put_stripes("k", vec![stripe(number, 9)])));
    }
    let rows = shard.due_rows();
    assert!(rows.is_sorted_by_key(|row| row.at));
    let page =
        |before, after, limit| match shard.query(Query::DueDeletes(DueQuery { before, after, limit, age_ms: None })) {
            Reply::DueDeletes(page) => (page.rows, page.more),
            other => panic!("{other:?}"),
        };
    let all = HybridTime(u64::MAX);
    assert_eq!(page(rows[2].at, None, 10), (rows[..2].to_vec(), false));
    assert_eq!(page(all, None, 2), (rows[..2].to_vec(), true));
    assert_eq!(page(all, Some(rows[1].row.clone()), 2), (rows[2..].to_vec(), false));
}

#[test]
fn many_stripes_are_queued_in_bounded_rows() {
    let mut shard = shard();
    let count = crate::state::garbage::STRIPES_PER_DELETE_MAX as u64 * 2 + 1;
    shard.run(Command::PutObject(put_stripes("k", (0..count).map(|n| stripe(n, 1)).collect())));
    shard.run(Command::DeleteObject(delete("k")));
    assert_eq!((shard.stat().deferred_deletes, shard.doomed().len()), (3, count as usize));
}

#[test]
fn shared_packs_are_never_queued_with_one_tenant() {
    let mut shard = shard();
    let slot = StripeRef { pack_offset: Some(4096), ..stripe(1, 1000) };
    let put = PutObject { size_bytes: 10, ..put_stripes("k", vec![slot]) };
    object_row(shard.run(Command::PutObject(put)));
    shard.run(Command::DeleteObject(delete("k")));
    assert!(shard.doomed().is_empty());
}

#[test]
fn fenced_writers_are_refused() {
    let mut shard = shard();
    shard.run(Command::RaiseFence(WriterId(6)));
    shard.run(Command::RaiseFence(WriterId(4)));
    assert_eq!(shard.stat().fence, WriterId(6), "a fence only rises");
    // The stripes' own writer counts, whatever the sender says.
    assert_refused(shard.run(Command::PutObject(put_stripes("k", vec![stripe(1, 9)]))), RefusalKind::WriterFenced);
    let mut mutation = shard.mutation(Command::PutObject(put_inline("k", b"x")));
    mutation.writer = Some(WriterId(5));
    assert_refused(shard.apply_one(mutation), RefusalKind::WriterFenced);
    let mut mutation = shard.mutation(Command::PutObject(put_inline("k", b"x")));
    mutation.writer = Some(WriterId(6));
    object_row(shard.apply_one(mutation));
}

#[test]
fn owed_fragments_are_cleared_bit_by_bit() {
    let mut shard = shard();
    let incomplete = StripeRef { missing: Some(0b1_0010), ..stripe(2, 7) };
    shard.run(Command::PutObject(put_stripes("k", vec![stripe(1, 5), incomplete.clone()])));
    let owed = shard.owed();
    assert_eq!((owed.len(), owed[0].owner.ordinal, owed[0].owner.offset), (1, 1, 5));
    let fill =
        |fragments| Command::FillIn(FilledIn { owner: owed[0].owner.clone(), stripe: incomplete.stripe, fragments });
    assert_eq!(shard.run(fill(0b10)), Outcome::Done);
    let missing = |shard: &Replica<MemoryStore>| match shard.object("k").unwrap().body.unwrap().body {
        Body::Stripes(stripes) => stripes[1].missing,
        other => panic!("{other:?}"),
    };
    assert_eq!((missing(&shard), shard.owed()[0].stripe.missing), (Some(0b1_0000), Some(0b1_0000)));
    shard.run(fill(0b1_0000));
    assert_eq!((missing(&shard), shard.owed().len()), (None, 0));
    shard.run(fill(0b1_0000));
    shard.assert_counters();
}

#[test]
fn fill_in_of_a_stripe_that_is_gone_changes_nothing() {
    let mut shard = shard();
    let incomplete = StripeRef { missing: Some(1), ..stripe(2, 7) };
    shard.run(Command::PutObject(put_stripes("k", vec![incomplete.clone()])));
    let owner = shard.owed()[0].owner.clone();
    shard.run(Command::PutObject(put_stripes("k", vec![StripeRef { missing: Some(1), ..stripe(3, 7) }])));
    assert_eq!(shard.owed().len(), 1, "what the overwritten stripe owed is forgotten with it");
    shard.run(Command::FillIn(FilledIn { owner, stripe: incomplete.stripe, fragments: 1 }));
    assert_eq!(shard.owed()[0].stripe.missing, Some(1));
    shard.assert_counters();
}

#[test]
fn t2_modified_never_goes_back_although_the_clock_does() {
    let mut shard = shard();
    let first = object_row(shard.run(Command::PutObject(put_inline("k", b"1"))));
    shard.now_ms -= 60_000;
    let second = object_row(shard.run(Command::PutObject(put_inline("k", b"2"))));
    assert!(second.modified > first.modified);
    assert_eq!(shard.machine.time(), second.modified);
}

#[test]
fn nonsense_is_refused_without_effect() {
    let mut shard = shard();
    let long = "x".repeat(1025);
    let refused = [
        PutObject { key: String::new(), ..put_inline("", b"x") },
        put_inline(&long, b"x"),
        PutObject { size_bytes: 9, ..put_inline("k", b"x") },
        PutObject { size_bytes: 9, ..put_stripes("k", vec![stripe(1, 10)]) },
        PutObject { body: ObjectBody { headers: headers(), body: Body::Parts(vec![]) }, ..put_inline("k", b"x") },
        put_stripes("k", vec![StripeRef { fragment_payload_bytes: 0, ..stripe(1, 10) }]),
    ];
    for put in refused {
        assert_refused(shard.run(Command::PutObject(put)), RefusalKind::Invalid);
    }
    assert_refused(shard.run(Command::RegisterWriter(NodeId(1))), RefusalKind::Invalid);
    let mut foreign = shard.mutation(Command::PutObject(put_inline("k", b"x")));
    assert!(crate::state::check(SHARD, &foreign).is_ok());
    foreign.group = GroupId(9);
    assert!(crate::state::check(SHARD, &foreign).is_err());
    assert_refused(shard.apply_one(foreign), RefusalKind::Invalid);
    assert!(shard.machine.query(&Query::AccessKeys).is_err());
    assert_eq!(shard.rows(Family::Objects), 0);
}

#[test]
fn crash_loses_only_entries_behind_the_flush_and_replay_restores_them() {
    let store = MemoryStore::new();
    let mut shard = Replica::new(store.clone(), SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    for number in 0..6 {
        shard.run(Command::PutObject(put_stripes(&format!("k{}", number % 3), vec![stripe(number, 5)])));
        if number == 2 {
            assert_eq!(shard.machine.flush().unwrap(), Some(position(shard.index)));
        }
    }
    let before = dump(&store.view()).unwrap();
    let flushed = shard.machine.reader().flushed().unwrap().position.unwrap();
    store.crash();
    let mut again = Machine::open(store.clone(), SHARD).unwrap();
    assert_eq!(again.position(), Some(&flushed));
    for (at, now, mutations) in shard.log.iter().filter(|(at, ..)| at.index > flushed.index) {
        again.apply(at.clone(), *now, mutations).unwrap();
    }
    assert_eq!(dump(&store.view()).unwrap(), before);
}

#[test]
fn an_entry_that_the_database_has_no_time_for_is_applied_again() {
    let mut shard = shard();
    let mutations = vec![shard.mutation(Command::PutObject(put_inline("k", b"x")))];
    let (at, now) = (position(10), HybridTime::from_millis(START_MS + 1));
    shard.machine.store().stall(2);
    let before = dump(&shard.machine.store().view()).unwrap();
    for _ in 0..2 {
        assert!(matches!(shard.machine.apply(at.clone(), now, &mutations), Err(StateError::Stalled)));
        assert_eq!(dump(&shard.machine.store().view()).unwrap(), before);
    }
    assert!(matches!(shard.machine.apply(at, now, &mutations).unwrap()[..], [Outcome::Object(_)]));
    assert!(shard.object("k").is_some());
}

#[test]
fn membership_and_blank_entries_move_the_position() {
    let mut shard = shard();
    shard.machine.apply_blank(position(10)).unwrap();
    shard.machine.apply_membership(position(11), b"voters").unwrap();
    let applied = shard.machine.reader().applied().unwrap();
    assert_eq!((applied.position, applied.membership), (Some(position(11)), Some(Bytes::from_static(b"voters"))));
    assert!(applied.time.millis() > START_MS);
    let folder = tempfile::tempdir().unwrap();
    let copied = shard.machine.reader().checkpoint(&folder.path().join("copy")).unwrap();
    assert_eq!(copied, shard.machine.reader().applied().unwrap());
}
