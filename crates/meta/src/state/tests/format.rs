//! The byte forms of keys and rows, held to golden files in `tests/format`.
//!
//! `PLINTH_BLESS=1` writes the files anew; a change there is a change of the format.

use super::*;
use crate::golden::{assert_golden, line};
use crate::state::rows::{self, *};
use crate::state::{View, keys};
use plinth_protocol::map::*;
use plinth_protocol::stripe::{Owner, Sealing};
use proptest::prelude::*;

const KEY: &str = "a\u{0}/\u{e9}";

#[test]
fn keys_are_those_of_the_golden_file() {
    let bucket = BucketId(0x0102_0304_0506_0708);
    let upload = UploadId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
    let holder = keys::object(bucket, "k");
    assert_golden(
        "meta_keys.hex",
        &[
            ("object", keys::object(bucket, KEY)),
            ("upload", keys::upload(bucket, KEY, upload)),
            ("part", keys::part(bucket, KEY, upload, 258)),
            ("deferred", keys::deferred(HybridTime(0x0102_0304_0506_0708), 9, 10)),
            ("fill-in", keys::fill_in(StripeId::new(WriterId(1), 2, 3), &holder)),
            ("memory-request", keys::memory(keys::Memory::Request, 5)),
            ("memory-token", keys::memory(keys::Memory::Token, 5)),
            ("memory-upload", keys::memory(keys::Memory::Upload, 5)),
            ("expiry", keys::expiry(keys::Memory::Token, HybridTime(7), 5)),
            ("applied", keys::APPLIED.to_vec()),
            ("membership", keys::MEMBERSHIP.to_vec()),
            ("shard", keys::SHARD.to_vec()),
            ("open-bucket", keys::open_bucket(bucket)),
            ("closed-bucket", keys::closed_bucket(bucket)),
            ("discarded-upload", keys::discarded_upload(bucket, KEY, upload)),
            ("discarded-bucket", keys::discarded_bucket(bucket)),
            ("header", keys::header()),
            ("node", keys::node(NodeId(1))),
            ("disk", keys::disk(DiskId(2))),
            ("pg", keys::pg(PgId(3))),
            ("registry-shard", keys::shard(GroupId(4))),
            ("voter", keys::voter(NodeId(5))),
            ("writer", keys::writer(WriterId(6))),
            ("bucket-name", keys::bucket_name("photos")),
            ("bucket-id", keys::bucket_id(bucket)),
            ("access-key", keys::access_key("AK")),
            ("join-token", keys::join_token(&[7; 32])),
        ],
    );
}

fn full_stripe() -> StripeRef {
    StripeRef {
        missing: Some(5),
        plain_bytes: Some(2_000),
        sealing: Some(Sealing { algorithm: 1, key: 2, nonce: 3 }),
        pack_offset: Some(4_096),
        ..stripe(9, 1_000)
    }
}

fn full_object() -> ObjectRow {
    ObjectRow {
        size_bytes: 1_000,
        etag: Etag { md5: [0xe7; 16], parts: Some(3) },
        modified: HybridTime::from_millis(START_MS),
        checksum: Some(Checksum {
            algorithm: ChecksumAlgorithm::Crc32c,
            kind: ChecksumKind::Composite,
            value: Bytes::from_static(&[1, 2, 3, 4]),
            parts: Some(3),
        }),
        upload: Some(UploadId(6)),
        request: RequestId(7),
    }
}

fn full_owner() -> Owner {
    Owner { bucket: BUCKET, key: "k".into(), upload: Some(UploadId(6)), part: Some(2), ordinal: 1, offset: 500 }
}

fn full_part(object: &ObjectRow) -> PartRow {
    PartRow {
        size_bytes: 1_000,
        md5: [3; 16],
        modified: object.modified,
        checksum: object.checksum.clone(),
        body: Body::Stripes(vec![full_stripe()]),
        request: RequestId(7),
    }
}

#[test]
fn shard_rows_are_those_of_the_golden_file() {
    let object = full_object();
    let spans = vec![PartSpan { number: 2, size_bytes: 1_000, checksum: Some(Bytes::from_static(&[1])) }];
    let body = |body| ObjectBody { headers: headers(), body };
    let part = full_part(&object);
    let upload = UploadRow {
        initiated: object.modified,
        headers: headers(),
        algorithm: Some(ChecksumAlgorithm::Sha256),
        kind: Some(ChecksumKind::Composite),
        request: RequestId(7),
    };
    let deferred = DeferredDelete { at: object.modified, bucket: BUCKET, key: "k".into(), stripes: vec![stripe(1, 9)] };
    let owed = OwedFragments { at: object.modified, owner: full_owner(), stripe: full_stripe() };
    let outcome = Outcome::Object(object.clone());
    let remembered = Remembered { expires: object.modified, outcome, parameters: Some(8) };
    let shard = ShardRow {
        fence: WriterId(1),
        objects: 2,
        object_bytes: 3,
        uploads: 4,
        deferred_deletes: 5,
        fill_ins: 6,
        requests: 7,
        tokens: 8,
        finished_uploads: 9,
        requests_due: Some(HybridTime(10)),
        tokens_due: Some(HybridTime(11)),
        uploads_due: Some(HybridTime(12)),
        rules: None,
        discards: None,
        forgotten: None,
        expiry_held_ms: None,
    };
    let ruled = ShardRow { rules: Some(RULES_STRICT), discards: Some(13), ..shard.clone() };
    let open = OpenBucketRow { opened: object.modified, objects: 1, bytes: 2, attempt: None };
    let timed = ShardRow { forgotten: Some(HybridTime(20)), expiry_held_ms: Some(21), ..shard.clone() };
    assert_golden(
        "meta_shard_rows.hex",
        &[
            ("object", rows::encode(&object)),
            ("body-inline", rows::encode(&body(Body::Inline(Bytes::from_static(b"bytes"))))),
            ("body-stripes", rows::encode(&body(Body::Stripes(vec![full_stripe(), stripe(2, 7)])))),
            ("body-parts", rows::encode(&body(Body::Parts(spans)))),
            ("upload", rows::encode(&upload)),
            ("part", rows::encode(&part)),
            ("deferred-delete", rows::encode(&deferred)),
            ("owed-fragments", rows::encode(&owed)),
            ("remembered", rows::encode(&remembered)),
            ("applied", rows::encode(&AppliedRow { position: position(300), time: object.modified })),
            ("shard", rows::encode(&shard)),
            ("open-bucket", rows::encode(&open)),
            ("shard-with-rules", rows::encode(&ruled)),
            ("open-bucket-by-attempt", rows::encode(&OpenBucketRow { attempt: Some(3 << 16 | 1), ..open.clone() })),
            ("closed-bucket", rows::encode(&ClosedBucketRow { attempt: 3 << 16 | 1 })),
            ("discarded-upload", rows::encode(&DiscardedUpload { at: object.modified, from: Some(7) })),
            (
                "discarded-bucket",
                rows::encode(&DiscardedBucket { at: object.modified, after: Some(Bytes::from_static(b"row")) }),
            ),
            ("shard-timed", rows::encode(&timed)),
            ("expiring", rows::encode(&Expiring { issued: Some(HybridTime(22)) })),
        ],
    );
}

fn full_node() -> NodeRecord {
    NodeRecord {
        node: NodeId(1),
        name: "n".into(),
        roles: vec![Role::Meta, Role::Storage],
        address: "host:1".into(),
        incarnation: Incarnation(2),
        state: State::Up,
        domain: "rack".into(),
        version: Some("0.1".into()),
        public_key: None,
    }
}

fn full_disk() -> DiskRecord {
    DiskRecord {
        disk: DiskId(9),
        node: NodeId(1),
        incarnation: Incarnation(1),
        state: State::Draining,
        name: "n/d0".into(),
        size_bytes: 10,
        used_bytes: Some(5),
        quarantined: Some(3),
        write_stop_bytes: None,
    }
}

fn full_pg() -> PlacementGroup {
    let disks = vec![DiskId(8), DiskId(9)];
    PlacementGroup { pg: PgId(1), generation: 2, code: Code::new(1, 1), disks, closed: true }
}

fn full_registry_shard() -> ShardRecord {
    let start = ShardStart { bucket: BUCKET, key: "m".into() };
    ShardRecord { group: GroupId(1), start, voters: vec![NodeId(1)] }
}

fn full_access_key() -> AccessKeyRow {
    AccessKeyRow {
        id: "AK".into(),
        wrapped_secret: Bytes::from_static(b"w").into(),
        account: "root".into(),
        created: HybridTime(5),
        description: Some("d".into()),
    }
}

fn full_certificate() -> CertificateRow {
    CertificateRow {
        serial: 6,
        node: NodeId(1),
        roles: vec![Role::Meta],
        valid_from_s: 7,
        valid_until_s: 8,
        public_key: [4; 32],
        operator: Some("o".into()),
    }
}

fn full_founding() -> Founding {
    let map = ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(2),
        nodes: vec![full_node()],
        disks: vec![full_disk()],
        pgs: vec![full_pg()],
        shards: vec![full_registry_shard()],
        code: Code::new(1, 1),
        fragment_bytes_max: 1 << 20,
        name: "c".into(),
        voters: vec![NodeId(1)],
        feature_level: 1,
        denied_nodes: vec![NodeId(2)],
        revoked_certificates: vec![6],
    };
    Founding { map, keys: vec![full_access_key()] }
}

#[test]
fn registry_rows_are_those_of_the_golden_file() {
    let code = Code::new(1, 1);
    let header = MapHeader {
        cluster: ClusterId(1),
        epoch: Epoch(2),
        code,
        fragment_bytes_max: 1 << 20,
        name: "c".into(),
        voters: vec![NodeId(1)],
        feature_level: 1,
        next_node: NodeId(3),
        next_writer: WriterId(4),
        denied: vec![NodeId(2)],
        revoked: vec![RevokedCertificate { serial: 6, valid_until_s: 7 }],
    };
    let bucket = BucketRow {
        bucket: BUCKET,
        name: "photos".into(),
        created: HybridTime(5),
        state: BucketState::Active,
        owner: "root".into(),
        location: Some("eu".into()),
        attempt: None,
        reopening: false,
    };
    let numbered = BucketRow { attempt: Some(3 << 16 | 1), reopening: true, ..bucket.clone() };
    let used = Some(UsedToken { node: NodeId(1), public_key: [4; 32] });
    let token = JoinTokenRow { hash: [7; 32], expires: HybridTime(5), roles: vec![Role::Meta], used: None };
    let used_token = JoinTokenRow { used, ..token.clone() };
    assert_golden(
        "meta_registry_rows.hex",
        &[
            ("header", rows::encode(&header)),
            ("node", rows::encode(&NodeRow { node: full_node(), public_key: Some([4; 32]) })),
            ("disk", rows::encode(&full_disk())),
            ("pg", rows::encode(&full_pg())),
            ("shard", rows::encode(&full_registry_shard())),
            ("voter", rows::encode(&VoterRecord { node: NodeId(1), log: 2, boot: 3, floor: 4 })),
            ("writer", rows::encode(&WriterRow { node: NodeId(1), at: HybridTime(5) })),
            ("bucket", rows::encode(&bucket)),
            ("bucket-in-attempt", rows::encode(&numbered)),
            ("bucket-name", rows::encode(&BucketName { name: "photos".into() })),
            ("access-key", rows::encode(&full_access_key())),
            ("join-token", rows::encode(&token)),
            ("buckets-by-account", rows::encode(&BucketsByAccount { through: Some("photos".into()), complete: true })),
            ("used-join-token", rows::encode(&used_token)),
            ("certificate", rows::encode(&full_certificate())),
        ],
    );
}

/// The record that every founding voter proposes; `plinth init` writes it behind the version byte 1.
#[test]
fn founding_record_is_that_of_the_golden_file() {
    let (name, record) = line("founding-record", &full_founding());
    assert_golden("founding_record.hex", &[(name, [&[1], record.as_slice()].concat())]);
}

/// What the Raft log holds inside a batch, command by command.
#[test]
fn object_commands_are_those_of_the_golden_file() {
    let (bucket, key, upload) = (BUCKET, || "k".to_owned(), UploadId(6));
    let expectation = || expect(ExpectationKind::Matches, Some("\"e\""));
    let object = full_object();
    let part = full_part(&object);
    let put = PutObject {
        checksum: object.checksum.clone(),
        expectation: expectation(),
        ..put_stripes("k", vec![full_stripe()])
    };
    let (algorithm, kind) = (Some(ChecksumAlgorithm::Crc32c), Some(ChecksumKind::Composite));
    let create = CreateUpload { bucket, key: key(), upload, headers: headers(), algorithm, kind };
    let complete = CompleteUpload {
        bucket,
        key: key(),
        upload,
        parts: vec![CompletePart { number: 2, etag: "e".into(), checksum: Some(Bytes::from_static(&[1])) }],
        expectation: expectation(),
        size_bytes: Some(1_000),
        checksum: object.checksum.clone(),
    };
    let filled = FilledIn { owner: full_owner(), stripe: StripeId::new(WriterId(5), 9, 0), fragments: 5 };
    let token = ClientToken { scope: 8, parameters: 9, memory_ms: 10, strict: true };
    let mutation = Mutation {
        group: SHARD,
        request: RequestId(7),
        writer: Some(WriterId(5)),
        token: Some(token),
        command: Command::OpenBucket(bucket),
        issued: None,
        seen: None,
    };
    assert_golden(
        "meta_object_commands.hex",
        &[
            line("mutation", &mutation),
            line("put-object", &Command::PutObject(put)),
            line("put-inline", &Command::PutObject(put_inline("k", b"bytes"))),
            line("delete-object", &Command::DeleteObject(DeleteObject { expectation: expectation(), ..delete("k") })),
            line("create-upload", &Command::CreateUpload(create)),
            line("put-part", &Command::PutPart(PutPart { bucket, key: key(), upload, number: 2, part })),
            line("complete-upload", &Command::CompleteUpload(complete)),
            line("abort-upload", &Command::AbortUpload(AbortUpload { bucket, key: key(), upload })),
            line("open-bucket", &Command::OpenBucket(bucket)),
            line("close-bucket", &Command::CloseBucket(bucket)),
            line("fill-in", &Command::FillIn(filled)),
            line("finish-deletes", &Command::FinishDeletes(FinishDeletes { rows: vec![Bytes::from_static(b"row")] })),
            line("raise-fence", &Command::RaiseFence(WriterId(5))),
            line("raise-rules", &Command::RaiseRules(RULES_STRICT)),
            line("take-apart", &Command::TakeApart),
            line("open-attempt", &Command::OpenAttempt(BucketAttempt { bucket, attempt: 3 << 16 | 1 })),
            line("close-attempt", &Command::CloseAttempt(BucketAttempt { bucket, attempt: 3 << 16 | 1 })),
        ],
    );
}

#[test]
fn system_commands_are_those_of_the_golden_file() {
    let bucket = BUCKET;
    let (name, owner, location) = ("photos".into(), "root".into(), Some("eu".into()));
    let create = CreateBucket { bucket, name, owner, location, numbered: false };
    let attempt = || BucketAttempt { bucket, attempt: 3 << 16 | 1 };
    let placement = ChangePlacement {
        planned_on: Epoch(2),
        add: vec![full_pg()],
        close: vec![PgId(7)],
        code: Some(Code::new(1, 1)),
    };
    let disk_state =
        SetDiskState { disk: DiskId(9), state: Some(State::Up), used_bytes: Some(5), quarantined: Some(3) };
    let token = JoinTokenRow { hash: [7; 32], expires: HybridTime(5), roles: vec![Role::Meta], used: None };
    let register = RegisterNode { node: full_node(), public_key: Some([4; 32]) };
    let voter = VoterRecord { node: NodeId(1), log: 2, boot: 3, floor: 4 };
    assert_golden(
        "meta_system_commands.hex",
        &[
            line("create-bucket", &Command::CreateBucket(create.clone())),
            line("create-numbered-bucket", &Command::CreateBucket(CreateBucket { numbered: true, ..create })),
            line("activate-attempt", &Command::ActivateAttempt(attempt())),
            line("begin-delete-attempt", &Command::BeginDeleteAttempt(bucket)),
            line("reopen-bucket", &Command::ReopenBucket(attempt())),
            line("remove-attempt", &Command::RemoveAttempt(attempt())),
            line("activate-bucket", &Command::ActivateBucket(bucket)),
            line("begin-delete-bucket", &Command::BeginDeleteBucket(bucket)),
            line("keep-bucket", &Command::KeepBucket(bucket)),
            line("remove-bucket", &Command::RemoveBucket(bucket)),
            line("register-writer", &Command::RegisterWriter(NodeId(1))),
            line("found", &Command::Found(Box::new(full_founding()))),
            line("register-node", &Command::RegisterNode(register.clone())),
            line("register-disk", &Command::RegisterDisk(full_disk())),
            line(
                "announce-address",
                &Command::AnnounceAddress(NodeAddress { node: NodeId(1), address: "10.0.0.9:7000".into() }),
            ),
            line("set-node-state", &Command::SetNodeState(SetNodeState { node: NodeId(1), state: State::Suspect })),
            line("set-disk-state", &Command::SetDiskState(disk_state)),
            line("change-placement", &Command::ChangePlacement(placement)),
            line("set-voters", &Command::SetVoters(SetVoters { shard: full_registry_shard() })),
            line("create-access-key", &Command::CreateAccessKey(full_access_key())),
            line("revoke-access-key", &Command::RevokeAccessKey("AK".into())),
            line("create-join-token", &Command::CreateJoinToken(token)),
            line(
                "consume-join-token",
                &Command::ConsumeJoinToken(ConsumeJoinToken { hash: [7; 32], roles: vec![Role::Meta] }),
            ),
            line("record-voter", &Command::RecordVoter(voter)),
            line("admit-node", &Command::AdmitNode(Box::new(AdmitNode { token: [7; 32], register: register.clone() }))),
            line("revoke-join-token", &Command::RevokeJoinToken([7; 32])),
            line("record-certificate", &Command::RecordCertificate(full_certificate())),
            line("revoke-certificate", &Command::RevokeCertificate(6)),
            line("deny-node", &Command::DenyNode(DenyNode { node: NodeId(2), denied: true })),
        ],
    );
}

/// Design section 5 asks for about 190 bytes an object; LIST reads far less.
#[test]
fn rows_of_a_striped_object_are_small() {
    let mut shard = shard();
    shard.run(Command::PutObject(put_stripes("photos/2026/11/a.jpg", vec![stripe(1, 1 << 20)])));
    let view = shard.machine.store().view();
    let key = keys::object(BUCKET, "photos/2026/11/a.jpg");
    let row = view.get(Family::Objects, &key).unwrap().unwrap();
    let body = view.get(Family::Bodies, &key).unwrap().unwrap();
    assert!(row.len() <= 64, "{}", row.len());
    assert!(row.len() + body.len() + 2 * key.len() <= 280, "{} {}", row.len(), body.len());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, tail: Vec<u8>) {
        let mut versioned = vec![ROW_VERSION];
        versioned.extend_from_slice(&tail);
        for row in [&bytes, &versioned] {
            let _ = rows::decode::<ObjectRow>(Family::Objects, row);
            let _ = rows::decode::<ObjectBody>(Family::Bodies, row);
            let _ = rows::decode::<UploadRow>(Family::Uploads, row);
            let _ = rows::decode::<PartRow>(Family::Parts, row);
            let _ = rows::decode::<DeferredDelete>(Family::Deletes, row);
            let _ = rows::decode::<OwedFragments>(Family::FillIns, row);
            let _ = rows::decode::<Remembered>(Family::Tokens, row);
            let _ = Kept::<ShardRow>::decode(Family::State, row);
            let _ = Kept::<MapHeader>::decode(Family::Registry, row);
            let _ = Kept::<NodeRow>::decode(Family::Registry, row);
            let _ = Kept::<PlacementGroup>::decode(Family::Registry, row);
        }
    }

    /// One changed byte in a real row: read as something or refused, never a panic.
    #[test]
    fn damaged_rows_never_panic(at in 0usize..400, bit in 0u8..8) {
        let owed = OwedFragments { at: HybridTime(5), owner: full_owner(), stripe: full_stripe() };
        let body = ObjectBody { headers: headers(), body: Body::Stripes(vec![full_stripe(), stripe(2, 7)]) };
        for mut row in [rows::encode(&owed), rows::encode(&body), rows::encode(&full_object())] {
            let at = at % row.len();
            row[at] ^= 1 << bit;
            let _ = Kept::<OwedFragments>::decode(Family::FillIns, &row).map(|kept| kept.encode());
            let _ = rows::decode::<ObjectBody>(Family::Bodies, &row);
            let _ = rows::decode::<ObjectRow>(Family::Objects, &row);
        }
    }
}
