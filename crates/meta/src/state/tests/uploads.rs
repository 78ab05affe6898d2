//! The multipart family: M1 to M8 as far as the shard decides them, K2, K3.

use super::*;
use crate::state::uploads::PART_BYTES_MIN;
use ChecksumAlgorithm::*;

const UPLOAD: UploadId = UploadId(77);

fn create(key: &str, upload: UploadId) -> CreateUpload {
    CreateUpload { bucket: BUCKET, key: key.into(), upload, headers: headers(), algorithm: None, kind: None }
}

fn part(number: u16, size_bytes: u64, sequence: u64) -> PutPart {
    let part = PartRow {
        size_bytes,
        md5: md5_of(&[number as u8, sequence as u8]),
        modified: HybridTime(0),
        checksum: None,
        body: Body::Stripes(vec![stripe(sequence, size_bytes)]),
        request: RequestId(0),
    };
    PutPart { bucket: BUCKET, key: "k".into(), upload: UPLOAD, number, part }
}

fn listed(parts: &[&PutPart]) -> Vec<CompletePart> {
    let line = |put: &&PutPart| CompletePart {
        number: put.number,
        etag: Etag { md5: put.part.md5, parts: None }.to_string(),
        checksum: put.part.checksum.as_ref().map(|sum| sum.value.clone()),
    };
    parts.iter().map(line).collect()
}

fn complete(parts: Vec<CompletePart>) -> CompleteUpload {
    CompleteUpload {
        bucket: BUCKET,
        key: "k".into(),
        upload: UPLOAD,
        parts,
        expectation: None,
        size_bytes: None,
        checksum: None,
    }
}

/// A shard with an open upload and parts 1, 2 (5 MiB) and 4 (7 bytes).
fn with_parts() -> (Replica<MemoryStore>, [PutPart; 3]) {
    let mut shard = shard();
    assert_eq!(shard.run(Command::CreateUpload(create("k", UPLOAD))), Outcome::Done);
    let parts = [part(1, PART_BYTES_MIN, 1), part(2, PART_BYTES_MIN, 2), part(4, 7, 4)];
    for put in parts.iter().rev() {
        assert!(matches!(shard.run(Command::PutPart(put.clone())), Outcome::Part(_)));
    }
    (shard, parts)
}

fn parts_of(shard: &Replica<MemoryStore>, from: u16, limit: u32) -> Result<(Vec<u16>, bool), RefusalKind> {
    let query = PartsQuery { bucket: BUCKET, key: "k".into(), upload: UPLOAD, from, limit };
    match shard.query(Query::Parts(query)) {
        Reply::Parts(page) => Ok((page.parts.iter().map(|(number, _)| *number).collect(), page.more)),
        Reply::Absent(kind) => Err(kind),
        other => panic!("{other:?}"),
    }
}

#[test]
fn complete_publishes_without_moving_parts() {
    let (mut shard, parts) = with_parts();
    assert!(shard.object("k").is_none(), "M7: an open upload does not make its key exist");
    let row = object_row(shard.run(Command::CompleteUpload(complete(listed(&[&parts[0], &parts[2]])))));
    assert_eq!((row.size_bytes, row.upload), (PART_BYTES_MIN + 7, Some(UPLOAD)));
    let joined = [parts[0].part.md5, parts[2].part.md5].concat();
    assert_eq!(row.etag, Etag { md5: md5_of(&joined), parts: Some(2) });
    assert_eq!(row.modified.millis(), shard.now_ms, "T2");
    let body = shard.object("k").unwrap().body.unwrap();
    assert_eq!(body.headers, headers());
    let spans = vec![
        PartSpan { number: 1, size_bytes: PART_BYTES_MIN, checksum: None },
        PartSpan { number: 4, size_bytes: 7, checksum: None },
    ];
    assert_eq!(body.body, Body::Parts(spans));
    assert_eq!(parts_of(&shard, 0, 10), Ok((vec![1, 4], false)), "the manifest of the finished upload");
    assert_eq!(shard.doomed(), [stripe(2, 1).stripe], "M2: the part left out is freed");
    shard.assert_counters();
    shard.run(Command::DeleteObject(delete("k")));
    assert_eq!((shard.rows(Family::Parts), shard.doomed().len()), (0, 3));
    assert_eq!(parts_of(&shard, 0, 10), Err(RefusalKind::NoSuchUpload));
    shard.assert_counters();
}

#[test]
fn m1_sizes_are_judged_at_complete() {
    let (mut shard, parts) = with_parts();
    let small_first = part(3, PART_BYTES_MIN - 1, 9);
    shard.run(Command::PutPart(small_first.clone()));
    let list = listed(&[&parts[0], &small_first, &parts[2]]);
    assert_refused(shard.run(Command::CompleteUpload(complete(list))), RefusalKind::PartTooSmall);
    let list = listed(&[&parts[0], &small_first]);
    object_row(shard.run(Command::CompleteUpload(complete(list))));
}

#[test]
fn m2_part_sent_again_replaces() {
    let (mut shard, parts) = with_parts();
    let again = part(4, 9, 40);
    shard.run(Command::PutPart(again.clone()));
    assert_eq!(shard.doomed(), [stripe(4, 1).stripe]);
    assert_refused(shard.run(Command::CompleteUpload(complete(listed(&[&parts[2]])))), RefusalKind::InvalidPart);
    object_row(shard.run(Command::CompleteUpload(complete(listed(&[&again])))));
    shard.assert_counters();
}

#[test]
fn m3_lists_are_judged() {
    let (mut shard, parts) = with_parts();
    let [one, two, four] = &parts;
    let other = CompletePart { etag: "00".repeat(16), ..listed(&[one])[0].clone() };
    let unknown = CompletePart { number: 3, ..listed(&[one])[0].clone() };
    let stated = |size| CompleteUpload { size_bytes: Some(size), ..complete(listed(&[one, four])) };
    let cases = [
        (complete(listed(&[two, one])), RefusalKind::InvalidPartOrder),
        (complete(listed(&[one, one])), RefusalKind::InvalidPartOrder),
        (complete(vec![other]), RefusalKind::InvalidPart),
        (complete(vec![unknown]), RefusalKind::InvalidPart),
        (complete(vec![]), RefusalKind::InvalidPart),
        (stated(1), RefusalKind::SizeMismatch),
        (CompleteUpload { upload: UploadId(1), ..complete(listed(&[one])) }, RefusalKind::NoSuchUpload),
        (CompleteUpload { key: "other".into(), ..complete(listed(&[one])) }, RefusalKind::NoSuchUpload),
    ];
    for (command, kind) in cases {
        assert_refused(shard.run(Command::CompleteUpload(command)), kind);
    }
    assert!(shard.doomed().is_empty() && shard.object("k").is_none());
    object_row(shard.run(Command::CompleteUpload(stated(PART_BYTES_MIN + 7))));
}

#[test]
fn m5_finished_complete_is_answered_again_for_a_day() {
    let (mut shard, parts) = with_parts();
    let list = listed(&parts.each_ref());
    let first = shard.run(Command::CompleteUpload(complete(list.clone())));
    object_row(first.clone());
    let quoted: Vec<CompletePart> = list
        .iter()
        .map(|part| CompletePart { etag: format!("\"{}\"", part.etag.to_uppercase()), ..part.clone() })
        .collect();
    shard.run(Command::DeleteObject(delete("k")));
    shard.now_ms += TOKEN_MEMORY_MS - 1_000;
    assert_eq!(shard.run(Command::CompleteUpload(complete(quoted))), first);
    let other = complete(list[..2].to_vec());
    assert_refused(shard.run(Command::CompleteUpload(other)), RefusalKind::NoSuchUpload);
    shard.now_ms += 2_000;
    assert_refused(shard.run(Command::CompleteUpload(complete(list))), RefusalKind::NoSuchUpload);
}

#[test]
fn m6_complete_and_abort_one_wins() {
    for complete_first in [true, false] {
        let (mut shard, parts) = with_parts();
        let finish = shard.mutation(Command::CompleteUpload(complete(listed(&[&parts[2]]))));
        let abort = AbortUpload { bucket: BUCKET, key: "k".into(), upload: UPLOAD };
        let abort = shard.mutation(Command::AbortUpload(abort));
        let outcomes = shard.apply(if complete_first { vec![finish, abort] } else { vec![abort, finish] });
        assert!(!matches!(outcomes[0], Outcome::Refused(_)));
        assert_refused(outcomes[1].clone(), RefusalKind::NoSuchUpload);
        assert_eq!(shard.object("k").is_some(), complete_first);
        assert_eq!(shard.rows(Family::Parts), usize::from(complete_first), "a key that HEADs can be read");
        assert_refused(shard.run(Command::PutPart(parts[0].clone())), RefusalKind::NoSuchUpload);
        shard.assert_counters();
    }
}

#[test]
fn complete_obeys_conditions_and_frees_what_it_overwrites() {
    let (mut shard, parts) = with_parts();
    shard.run(Command::PutObject(put_stripes("k", vec![stripe(50, 5)])));
    let expectation = expect(ExpectationKind::Absent, None);
    let finish = CompleteUpload { expectation, ..complete(listed(&[&parts[2]])) };
    assert_refused(shard.run(Command::CompleteUpload(finish)), RefusalKind::PreconditionFailed);
    assert_eq!(shard.stat().uploads, 1, "a refused Complete leaves the upload open");
    object_row(shard.run(Command::CompleteUpload(complete(listed(&[&parts[2]])))));
    assert!(shard.doomed().contains(&stripe(50, 1).stripe));
    assert_eq!(shard.stat().objects, 1);
    shard.assert_counters();
}

#[test]
fn parts_are_paged_by_number() {
    let (mut shard, _) = with_parts();
    assert_eq!(parts_of(&shard, 0, 2), Ok((vec![1, 2], true)));
    assert_eq!(parts_of(&shard, 3, 2), Ok((vec![4], false)));
    assert_eq!(parts_of(&shard, 5, 2), Ok((vec![], false)));
    shard.run(Command::AbortUpload(AbortUpload { bucket: BUCKET, key: "k".into(), upload: UPLOAD }));
    assert_eq!(parts_of(&shard, 0, 2), Err(RefusalKind::NoSuchUpload));
    assert_eq!(shard.doomed().len(), 3);
    shard.assert_counters();
}

#[test]
fn fill_in_finds_its_stripe_in_a_finished_part() {
    let (mut shard, _) = with_parts();
    let mut owing = part(5, 9, 60);
    owing.part.body = Body::Stripes(vec![StripeRef { missing: Some(4), ..stripe(60, 9) }]);
    shard.run(Command::PutPart(owing.clone()));
    let owner = shard.owed()[0].owner.clone();
    assert_eq!((owner.upload, owner.part), (Some(UPLOAD), Some(5)));
    object_row(shard.run(Command::CompleteUpload(complete(listed(&[&owing])))));
    shard.run(Command::FillIn(FilledIn { owner, stripe: stripe(60, 1).stripe, fragments: 4 }));
    let query = PartsQuery { bucket: BUCKET, key: "k".into(), upload: UPLOAD, from: 5, limit: 1 };
    let Reply::Parts(page) = shard.query(Query::Parts(query)) else { panic!() };
    assert_eq!(page.parts[0].1.body, Body::Stripes(vec![stripe(60, 9)]));
    assert!(shard.owed().is_empty());
    shard.assert_counters();
}

fn sum(algorithm: ChecksumAlgorithm, value: &[u8]) -> Option<Checksum> {
    let kind = ChecksumKind::FullObject;
    Some(Checksum { algorithm, kind, value: Bytes::copy_from_slice(value), parts: None })
}

#[test]
fn k2_composite_sums_want_every_parts_checksum() {
    let mut shard = shard();
    shard.run(Command::CreateUpload(CreateUpload { algorithm: Some(Sha256), ..create("k", UPLOAD) }));
    let mut put = part(1, 9, 1);
    assert_refused(shard.run(Command::PutPart(put.clone())), RefusalKind::InvalidChecksum);
    put.part.checksum = sum(Crc32, &[0; 4]);
    assert_refused(shard.run(Command::PutPart(put.clone())), RefusalKind::InvalidChecksum);
    put.part.checksum = sum(Sha256, &[7; 31]);
    assert_refused(shard.run(Command::PutPart(put.clone())), RefusalKind::InvalidChecksum);
    put.part.checksum = sum(Sha256, &[7; 32]);
    shard.run(Command::PutPart(put.clone()));
    let list = listed(&[&put]);
    let unnamed = vec![CompletePart { checksum: None, ..list[0].clone() }];
    assert_refused(shard.run(Command::CompleteUpload(complete(unnamed))), RefusalKind::InvalidChecksum);
    let other = vec![CompletePart { checksum: Some(Bytes::from_static(&[8; 32])), ..list[0].clone() }];
    assert_refused(shard.run(Command::CompleteUpload(complete(other))), RefusalKind::InvalidPart);
    let row = object_row(shard.run(Command::CompleteUpload(complete(list))));
    let checksum = row.checksum.unwrap();
    assert_eq!((checksum.kind, checksum.parts), (ChecksumKind::Composite, Some(1)));
}

#[test]
fn k3_stated_checksum_must_be_that_of_the_parts() {
    let mut shard = shard();
    shard.run(Command::CreateUpload(CreateUpload {
        algorithm: Some(Crc32),
        kind: Some(ChecksumKind::FullObject),
        ..create("k", UPLOAD)
    }));
    let mut put = part(1, 9, 1);
    // CRC-32 of "123456789".
    put.part.checksum = sum(Crc32, &0xcbf4_3926_u32.to_be_bytes());
    shard.run(Command::PutPart(put.clone()));
    let mut finish =
        |checksum| shard.run(Command::CompleteUpload(CompleteUpload { checksum, ..complete(listed(&[&put])) }));
    assert_refused(finish(sum(Crc32, &[0; 4])), RefusalKind::BadDigest);
    assert_refused(finish(sum(Crc32c, &[0; 4])), RefusalKind::InvalidChecksum);
    let right = sum(Crc32, &0xcbf4_3926_u32.to_be_bytes());
    let composite = right.clone().map(|sum| Checksum { kind: ChecksumKind::Composite, ..sum });
    assert_refused(finish(composite), RefusalKind::BadDigest);
    assert_eq!(object_row(finish(right.clone())).checksum, right);
}

#[test]
fn k1_crc64_of_parts_makes_the_objects_where_none_was_asked_for() {
    let mut shard = shard();
    shard.run(Command::CreateUpload(create("k", UPLOAD)));
    let mut put = part(1, 9, 1);
    put.part.checksum = sum(Crc64Nvme, &0xae8b_1486_0a79_9888_u64.to_be_bytes());
    shard.run(Command::PutPart(put.clone()));
    let row = object_row(shard.run(Command::CompleteUpload(complete(listed(&[&put])))));
    assert_eq!(row.checksum, sum(Crc64Nvme, &0xae8b_1486_0a79_9888_u64.to_be_bytes()));
}

#[test]
fn impossible_checksum_types_are_refused_at_create() {
    let mut shard = shard();
    for (algorithm, kind) in [(Some(Crc64Nvme), ChecksumKind::Composite), (None, ChecksumKind::Composite)] {
        let create = CreateUpload { algorithm, kind: Some(kind), ..create("k", UPLOAD) };
        assert_refused(shard.run(Command::CreateUpload(create)), RefusalKind::InvalidChecksum);
    }
}

#[test]
fn m8_uploads_are_listed_by_key_then_id() {
    let mut shard = shard();
    for (key, id) in [("b", 2), ("a/x", 9), ("b", 1), ("a/y", 3), ("c", 4)] {
        shard.run(Command::CreateUpload(create(key, UploadId(id))));
    }
    let page = |delimiter: Option<&str>, after: Option<(&str, Option<u128>)>, limit| {
        let query = UploadsQuery {
            bucket: BUCKET,
            prefix: "".into(),
            delimiter: delimiter.map(str::to_owned),
            after_key: after.map(|(key, _)| key.to_owned()),
            after_upload: after.and_then(|(_, id)| id).map(UploadId),
            limit,
        };
        match shard.query(Query::Uploads(query)) {
            Reply::Uploads(page) => {
                let lines: Vec<String> =
                    page.uploads.iter().map(|entry| format!("{}#{}", entry.key, entry.upload.0)).collect();
                (lines.join(" "), page.prefixes.join(" "), page.more)
            }
            other => panic!("{other:?}"),
        }
    };
    let s = str::to_owned;
    assert_eq!(page(None, None, 10), (s("a/x#9 a/y#3 b#1 b#2 c#4"), s(""), false));
    assert_eq!(page(None, None, 3), (s("a/x#9 a/y#3 b#1"), s(""), true));
    assert_eq!(page(None, Some(("b", Some(1))), 3), (s("b#2 c#4"), s(""), false));
    assert_eq!(page(None, Some(("b", None)), 3), (s("c#4"), s(""), false));
    assert_eq!(page(Some("/"), None, 2), (s("b#1"), s("a/"), true));
    assert_eq!(page(Some("/"), Some(("a/", None)), 2), (s("b#1 b#2"), s(""), true));
    assert_eq!(page(None, None, 0), (s(""), s(""), false));
}
