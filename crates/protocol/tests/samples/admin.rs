//! Failures, the operator's requests, and admission of new nodes.

use super::Samples;
use super::registry::{map, node};
use bytes::Bytes;
use plinth_protocol::meta::*;
use plinth_protocol::stripe::Code;
use plinth_protocol::{Epoch, Failure, FailureKind, GroupId, Method, NodeId, Role};

fn failure() -> Failure {
    Failure {
        kind: FailureKind::NotLeader,
        text: "another node leads".into(),
        retry_after_ms: Some(500),
        leader: Some(NodeId(300)),
        leader_address: Some("node-300.example:7400".into()),
    }
}

fn group() -> RaftGroupStatus {
    RaftGroupStatus {
        group: GroupId(1),
        leader: Some(NodeId(1)),
        term: 5,
        last_log: 1_000,
        applied: 999,
        voters: vec![NodeId(1), NodeId(2), NodeId(3)],
        learners: vec![NodeId(4)],
        matched: vec![(NodeId(2), 998), (NodeId(3), 1_000)],
        stopped: None,
        condition: None,
    }
}

fn lone_group() -> RaftGroupStatus {
    let stopped = Some("no space left on device".into());
    RaftGroupStatus { leader: None, voters: vec![], learners: vec![], matched: vec![], stopped, ..group() }
}

fn status() -> RaftStatus {
    RaftStatus { groups: vec![group(), lone_group()] }
}

fn join_request() -> JoinRequest {
    JoinRequest {
        token: String::from("plj-0123456789").into(),
        csr: "-----BEGIN CERTIFICATE REQUEST-----".into(),
        name: "node-7".into(),
        roles: vec![Role::Storage],
        address: "node-7.example:7400".into(),
        domain: Some("rack-1".into()),
    }
}

fn join_reply() -> JoinReply {
    JoinReply {
        node: node(),
        certificate: "-----BEGIN CERTIFICATE-----".into(),
        ca: "-----BEGIN CERTIFICATE----- (CA)".into(),
        map: map(),
        wrapping_key: Some(Bytes::from_static(&[0x5a; 32]).into()),
        ca_private_key: Some(Bytes::from_static(b"-----BEGIN PRIVATE KEY-----").into()),
        certificate_lifetime_s: Some(7_776_000),
    }
}

fn disk_folder() -> DiskFolder {
    DiskFolder { path: "/srv/disk-7".into(), create: true }
}

fn layout_order() -> LayoutOrder {
    LayoutOrder { code: Some(Code::new(2, 2)), skip_down: true, less_redundancy: true, dry_run: true }
}

fn layout_outcome() -> LayoutOutcome {
    LayoutOutcome {
        changed: true,
        added: 100,
        closed: 120,
        code: Code::new(2, 2),
        code_before: Code::new(3, 2),
        disks: vec!["s1/d0".into(), "s2/d0".into()],
        kept_down: vec!["s2/d0".into()],
        left_out: vec!["s3/d0".into()],
        dry_run: true,
    }
}

fn sight() -> VoterSight {
    VoterSight { node: NodeId(2), heard_ms: Some(250), refused: Some("its log was wiped".into()) }
}

fn reason() -> NodeReason {
    NodeReason { code: "S206".into(), text: "no disk".into(), next: "plinth disk add s1 /data/d0".into() }
}

fn report() -> NodeReport {
    NodeReport {
        node: NodeId(1),
        map: Some(map()),
        raft: Some(status()),
        voters: vec![sight()],
        refused_by: vec![(NodeId(3), "boot 2 is older than boot 3".into())],
        reasons: vec![reason()],
    }
}

fn lone_report() -> NodeReport {
    NodeReport { map: None, raft: None, voters: vec![], refused_by: vec![], reasons: vec![], ..report() }
}

fn bare_join_reply() -> JoinReply {
    JoinReply { wrapping_key: None, ca_private_key: None, certificate_lifetime_s: None, ..join_reply() }
}

fn certify_operator() -> CertifyOperator {
    CertifyOperator { name: "mai".into(), csr: "-----BEGIN CERTIFICATE REQUEST-----".into(), days: 365 }
}

pub fn samples(samples: &mut Samples) {
    samples.numbered(Role::ALL);
    samples.numbered(Method::ALL);
    samples.numbered(FailureKind::ALL);
    samples.record([failure(), Failure::new(FailureKind::Internal, "")]);
    samples.choice([
        AdminRequest::RaftStatus,
        AdminRequest::AddVoter(NodeId(4)),
        AdminRequest::RemoveVoter(NodeId(4)),
        AdminRequest::RebuildPlacement,
        AdminRequest::AddDisk("data/d1".into()),
        AdminRequest::StopNode("storage-1".into()),
        AdminRequest::StartNode("storage-1".into()),
        AdminRequest::ApplyLayout(layout_order()),
        AdminRequest::AddDiskFolder(disk_folder()),
        AdminRequest::Report(Epoch(42)),
        AdminRequest::CertifyOperator(certify_operator()),
    ]);
    let condition = Some("no room for growth".into());
    samples.record([group(), lone_group(), RaftGroupStatus { condition, ..group() }]);
    samples.record([status(), RaftStatus { groups: vec![] }]);
    samples.choice([
        AdminReply::Done("epoch 42".into()),
        AdminReply::RaftStatus(status()),
        AdminReply::Layout(layout_outcome()),
        AdminReply::Report(Box::new(lone_report())),
        AdminReply::Certificate("-----BEGIN".into()),
    ]);
    samples.record([sight(), VoterSight { heard_ms: None, refused: None, ..sight() }]);
    samples.record([reason()]);
    samples.record([report(), lone_report()]);
    samples.record([layout_order(), LayoutOrder { code: None, ..layout_order() }]);
    samples.record([layout_outcome()]);
    samples.record([disk_folder(), DiskFolder { create: false, ..disk_folder() }]);
    samples.record([certify_operator()]);
    let csr = Some("-----BEGIN CERTIFICATE REQUEST-----".to_string());
    samples.record([CertifyRequest { csr }, CertifyRequest { csr: None }]);
    let certificate = Some("-----BEGIN CERTIFICATE-----".to_string());
    samples.record([CertifyReply { certificate }, CertifyReply { certificate: None }]);
    samples.record([join_request(), JoinRequest { roles: vec![], domain: None, ..join_request() }]);
    samples.record([join_reply(), bare_join_reply()]);
}
