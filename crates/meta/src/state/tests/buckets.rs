//! Buckets in a shard: open, closed, empty or not.

use super::*;

#[test]
fn unopened_bucket_is_refused_for_reads_and_writes() {
    let mut shard = shard();
    let other = BucketId(9);
    let put = PutObject { bucket: other, ..put_inline("k", b"x") };
    assert_refused(shard.run(Command::PutObject(put)), RefusalKind::NoSuchBucket);
    let absent = Reply::Absent(RefusalKind::NoSuchBucket);
    assert_eq!(shard.query(Query::Object(ObjectQuery { bucket: other, key: "k".into(), body: true })), absent);
    let list =
        ListQuery { bucket: other, prefix: "".into(), delimiter: None, after: None, after_prefix: false, limit: 9 };
    assert_eq!(shard.query(Query::List(list)), absent, "L6");
}

#[test]
fn b3_close_wants_no_objects_and_aborts_uploads() {
    let mut shard = shard();
    shard.run(Command::PutObject(put_inline("k", b"x")));
    assert_refused(shard.run(Command::CloseBucket(BUCKET)), RefusalKind::BucketNotEmpty);
    shard.run(Command::DeleteObject(delete("k")));
    for id in [1, 2] {
        let create = CreateUpload {
            bucket: BUCKET,
            key: "u".into(),
            upload: UploadId(id),
            headers: headers(),
            algorithm: None,
            kind: None,
        };
        shard.run(Command::CreateUpload(create));
        let part = PartRow {
            size_bytes: 8,
            md5: md5_of(b"p"),
            modified: HybridTime(0),
            checksum: None,
            body: Body::Stripes(vec![stripe(id as u64, 8)]),
            request: RequestId(0),
        };
        shard.run(Command::PutPart(PutPart { bucket: BUCKET, key: "u".into(), upload: UploadId(id), number: 1, part }));
    }
    assert_eq!(shard.run(Command::CloseBucket(BUCKET)), Outcome::Done);
    assert_eq!(shard.run(Command::CloseBucket(BUCKET)), Outcome::Done, "closing is repeatable");
    assert_eq!((shard.rows(Family::Uploads), shard.rows(Family::Parts), shard.doomed().len()), (0, 0, 2));
    assert_refused(shard.run(Command::PutObject(put_inline("k", b"x"))), RefusalKind::NoSuchBucket);
    shard.assert_counters();
}

#[test]
fn b3_racing_put_and_close_in_one_entry_one_fails() {
    for put_first in [true, false] {
        let mut shard = shard();
        let put = shard.mutation(Command::PutObject(put_inline("k", b"x")));
        let close = shard.mutation(Command::CloseBucket(BUCKET));
        let outcomes = shard.apply(if put_first { vec![put, close] } else { vec![close, put] });
        assert!(!matches!(outcomes[0], Outcome::Refused(_)));
        let kind = if put_first { RefusalKind::BucketNotEmpty } else { RefusalKind::NoSuchBucket };
        assert_refused(outcomes[1].clone(), kind);
    }
}

#[test]
fn usage_is_counted_per_bucket() {
    let mut shard = shard();
    shard.run(Command::OpenBucket(BucketId(1)));
    shard.run(Command::OpenBucket(BUCKET));
    shard.run(Command::PutObject(put_inline("k", b"four")));
    shard.run(Command::PutObject(put_inline("k", b"seven77")));
    shard.run(Command::PutObject(PutObject { bucket: BucketId(1), ..put_inline("k", b"xx") }));
    let usage = |objects, bytes| BucketUsage { objects, bytes };
    assert_eq!(shard.stat().buckets, [(BucketId(1), usage(1, 2)), (BUCKET, usage(1, 7))]);
    shard.assert_counters();
}
