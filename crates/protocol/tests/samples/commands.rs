//! Mutations of the namespace and the registry.

use super::Samples;
use super::fragment::{fragment, owner};
use super::object::*;
use super::registry::{DISK, access_key, certificate, disk, founding, join_token, node, pg, shard, voter};
use bytes::Bytes;
use plinth_protocol::map::State;
use plinth_protocol::meta::*;
use plinth_protocol::object::{ChecksumAlgorithm, ChecksumKind};
use plinth_protocol::stripe::Code;
use plinth_protocol::{Epoch, GROUP_SYSTEM, GroupId, NodeId, PgId, WriterId};

fn expectation() -> Expectation {
    Expectation { kind: ExpectationKind::Matches, etag: Some("d41d8cd98f00b204e9800998ecf8427e".into()) }
}

fn put_object() -> PutObject {
    PutObject {
        bucket: BUCKET,
        key: key(),
        size_bytes: 16,
        etag: etag(),
        checksum: Some(checksum()),
        body: object_body(),
        expectation: Some(expectation()),
    }
}

fn delete_object() -> DeleteObject {
    DeleteObject { bucket: BUCKET, key: key(), expectation: Some(expectation()) }
}

fn create_upload() -> CreateUpload {
    CreateUpload {
        bucket: BUCKET,
        key: key(),
        upload: UPLOAD,
        headers: headers(),
        algorithm: Some(ChecksumAlgorithm::Crc32c),
        kind: Some(ChecksumKind::FullObject),
    }
}

fn put_part() -> PutPart {
    PutPart { bucket: BUCKET, key: key(), upload: UPLOAD, number: 10_000, part: part_row() }
}

fn complete_part() -> CompletePart {
    CompletePart {
        number: 10_000,
        etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
        checksum: Some(Bytes::from_static(b"\x01\x02\x03\x04")),
    }
}

fn complete_upload() -> CompleteUpload {
    CompleteUpload {
        bucket: BUCKET,
        key: key(),
        upload: UPLOAD,
        parts: vec![CompletePart { number: 1, checksum: None, ..complete_part() }, complete_part()],
        expectation: Some(Expectation { kind: ExpectationKind::Absent, etag: None }),
        size_bytes: Some(5 << 30),
        checksum: Some(checksum()),
    }
}

fn abort_upload() -> AbortUpload {
    AbortUpload { bucket: BUCKET, key: key(), upload: UPLOAD }
}

fn filled_in() -> FilledIn {
    FilledIn { owner: owner(), stripe: fragment().stripe, fragments: 0b101 }
}

fn finish_deletes() -> FinishDeletes {
    FinishDeletes { rows: vec![Bytes::from_static(b"\x00row 1"), Bytes::from_static(b"\x00row 2")] }
}

fn create_bucket() -> CreateBucket {
    CreateBucket {
        bucket: BUCKET,
        name: "a-bucket".into(),
        owner: "root".into(),
        location: Some("eu-central-1".into()),
        numbered: true,
    }
}

fn bucket_attempt() -> BucketAttempt {
    BucketAttempt { bucket: BUCKET, attempt: 5 << 16 | 1 }
}

fn register_node() -> RegisterNode {
    RegisterNode { node: node(), public_key: Some(std::array::from_fn(|at| 0x40 + at as u8)) }
}

fn node_address() -> NodeAddress {
    NodeAddress { node: NodeId(7), address: "node-7.example:7400".into() }
}

fn set_node_state() -> SetNodeState {
    SetNodeState { node: NodeId(7), state: State::Down }
}

fn set_disk_state() -> SetDiskState {
    SetDiskState { disk: DISK, state: Some(State::Failed), used_bytes: Some(7 << 40), quarantined: Some(3) }
}

fn bare_disk_state() -> SetDiskState {
    SetDiskState { state: None, used_bytes: None, quarantined: None, ..set_disk_state() }
}

fn change_placement() -> ChangePlacement {
    ChangePlacement {
        planned_on: Epoch(41),
        add: vec![pg()],
        close: vec![PgId(1), PgId(2)],
        code: Some(Code::new(4, 2)),
    }
}

fn consume_join_token() -> ConsumeJoinToken {
    ConsumeJoinToken { hash: join_token().hash, roles: join_token().roles }
}

fn admit_node() -> AdmitNode {
    AdmitNode { token: join_token().hash, register: register_node() }
}

fn shard_commands() -> Vec<Command> {
    vec![
        Command::PutObject(put_object()),
        Command::DeleteObject(delete_object()),
        Command::CreateUpload(create_upload()),
        Command::PutPart(put_part()),
        Command::CompleteUpload(complete_upload()),
        Command::AbortUpload(abort_upload()),
        Command::OpenBucket(BUCKET),
        Command::CloseBucket(BUCKET),
        Command::FillIn(filled_in()),
        Command::FinishDeletes(finish_deletes()),
        Command::RaiseFence(WriterId(9)),
        Command::RaiseRules(RULES_STRICT),
        Command::TakeApart,
        Command::OpenAttempt(bucket_attempt()),
        Command::CloseAttempt(bucket_attempt()),
        Command::ConfirmTime,
    ]
}

fn system_commands() -> Vec<Command> {
    vec![
        Command::CreateBucket(create_bucket()),
        Command::ActivateBucket(BUCKET),
        Command::BeginDeleteBucket(BUCKET),
        Command::KeepBucket(BUCKET),
        Command::RemoveBucket(BUCKET),
        Command::RegisterWriter(NodeId(7)),
        Command::Found(Box::new(founding())),
        Command::RegisterNode(register_node()),
        Command::RegisterDisk(disk()),
        Command::AnnounceAddress(node_address()),
        Command::SetNodeState(set_node_state()),
        Command::SetDiskState(set_disk_state()),
        Command::ChangePlacement(change_placement()),
        Command::SetVoters(SetVoters { shard: shard() }),
        Command::CreateAccessKey(access_key()),
        Command::RevokeAccessKey("PLEXAMPLE".into()),
        Command::CreateJoinToken(join_token()),
        Command::ConsumeJoinToken(consume_join_token()),
        Command::RecordVoter(voter()),
        Command::ActivateAttempt(bucket_attempt()),
        Command::BeginDeleteAttempt(BUCKET),
        Command::ReopenBucket(bucket_attempt()),
        Command::RemoveAttempt(bucket_attempt()),
        Command::AdmitNode(Box::new(admit_node())),
        Command::RevokeJoinToken(join_token().hash),
        Command::RecordCertificate(certificate()),
        Command::RevokeCertificate(certificate().serial),
        Command::DenyNode(DenyNode { node: NodeId(8), denied: true }),
    ]
}

fn token() -> ClientToken {
    ClientToken {
        scope: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        parameters: 0x1112_1314_1516_1718_191a_1b1c_1d1e_1f20,
        memory_ms: TOKEN_MEMORY_MS,
        strict: true,
    }
}

pub fn mutation() -> Mutation {
    Mutation {
        group: GroupId(1),
        request: REQUEST,
        writer: Some(WriterId(9)),
        token: Some(token()),
        command: Command::DeleteObject(delete_object()),
        issued: None,
        seen: None,
    }
}

fn timed_mutation() -> Mutation {
    Mutation { issued: Some(TIME), seen: Some(TIME.next()), ..mutation() }
}

fn bare_mutation() -> Mutation {
    let command = Command::RegisterWriter(NodeId(7));
    Mutation { group: GROUP_SYSTEM, request: REQUEST, writer: None, token: None, command, issued: None, seen: None }
}

pub fn samples(samples: &mut Samples) {
    samples.numbered(ExpectationKind::ALL);
    samples.record([expectation(), Expectation { kind: ExpectationKind::Present, etag: None }]);
    samples.record([put_object(), PutObject { checksum: None, expectation: None, ..put_object() }]);
    samples.record([delete_object(), DeleteObject { expectation: None, ..delete_object() }]);
    samples.record([create_upload(), CreateUpload { algorithm: None, kind: None, ..create_upload() }]);
    samples.record([put_part()]);
    samples.record([complete_part(), CompletePart { checksum: None, ..complete_part() }]);
    let bare =
        CompleteUpload { parts: vec![], expectation: None, size_bytes: None, checksum: None, ..complete_upload() };
    samples.record([complete_upload(), bare]);
    samples.record([abort_upload()]);
    samples.record([filled_in()]);
    samples.record([finish_deletes(), FinishDeletes { rows: vec![] }]);
    let unnumbered = CreateBucket { numbered: false, ..create_bucket() };
    samples.record([create_bucket(), CreateBucket { location: None, ..unnumbered.clone() }, unnumbered]);
    samples.record([bucket_attempt()]);
    samples.record([register_node(), RegisterNode { public_key: None, ..register_node() }]);
    samples.record([set_node_state()]);
    samples.record([node_address()]);
    samples.record([set_disk_state(), bare_disk_state()]);
    let bare = ChangePlacement { add: vec![], close: vec![], code: None, ..change_placement() };
    samples.record([change_placement(), bare]);
    samples.record([SetVoters { shard: shard() }]);
    samples.record([consume_join_token()]);
    samples.record([admit_node()]);
    samples.record([DenyNode { node: NodeId(8), denied: true }, DenyNode { node: NodeId(8), denied: false }]);
    samples.choice(shard_commands());
    samples.choice(system_commands());
    samples.record([token(), ClientToken { strict: false, ..token() }]);
    samples.record([mutation(), bare_mutation(), timed_mutation()]);
}
