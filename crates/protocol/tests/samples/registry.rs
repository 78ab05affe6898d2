//! The cluster map, and the system group's rows.

use super::Samples;
use super::object::{BUCKET, TIME, key};
use bytes::Bytes;
use plinth_protocol::map::*;
use plinth_protocol::meta::{
    AccessKeyRow, CertificateRow, Founding, JoinTokenRow, RevokedCertificate, UsedToken, VoterRecord,
};
use plinth_protocol::stripe::Code;
use plinth_protocol::{ClusterId, DiskId, Epoch, GroupId, Incarnation, NodeId, PgId, Role};

pub const DISK: DiskId = DiskId(0xd15c_0000_0000_0000_0000_0000_0000_0001);

pub fn node() -> NodeRecord {
    NodeRecord {
        node: NodeId(7),
        name: "node-7".into(),
        roles: vec![Role::Storage, Role::Meta],
        address: "node-7.example:7400".into(),
        incarnation: Incarnation(2),
        state: State::Up,
        domain: "rack-1".into(),
        version: Some("0.1.0".into()),
        public_key: Some([0x0b; 32]),
    }
}

pub fn disk() -> DiskRecord {
    DiskRecord {
        disk: DISK,
        node: NodeId(7),
        incarnation: Incarnation(1),
        state: State::Draining,
        name: "node-7/d0".into(),
        size_bytes: 20 << 40,
        used_bytes: Some(7 << 40),
        quarantined: Some(2),
        write_stop_bytes: None,
    }
}

pub fn pg() -> PlacementGroup {
    PlacementGroup {
        pg: PgId(300),
        generation: 2,
        code: Code::new(1, 1),
        disks: vec![DISK, DiskId(DISK.0 + 1)],
        closed: true,
    }
}

pub fn shard() -> ShardRecord {
    ShardRecord {
        group: GroupId(1),
        start: ShardStart { bucket: BUCKET, key: key() },
        voters: vec![NodeId(1), NodeId(2), NodeId(300)],
    }
}

pub fn map() -> ClusterMap {
    ClusterMap {
        cluster: ClusterId(0xc105_7e40_0000_0000_0000_0000_0000_0002),
        epoch: Epoch(41),
        nodes: vec![node(), NodeRecord { node: NodeId(8), version: None, public_key: None, ..node() }],
        disks: vec![disk()],
        pgs: vec![pg()],
        shards: vec![shard()],
        code: Code::new(4, 2),
        fragment_bytes_max: 4 << 20,
        name: "warehouse".into(),
        voters: vec![NodeId(1), NodeId(2), NodeId(3)],
        feature_level: 1,
        denied_nodes: vec![NodeId(8)],
        revoked_certificates: vec![certificate().serial],
    }
}

/// A map without anything in it.
fn bare_map() -> ClusterMap {
    ClusterMap {
        nodes: vec![],
        disks: vec![],
        pgs: vec![],
        shards: vec![],
        voters: vec![],
        denied_nodes: vec![],
        revoked_certificates: vec![],
        ..map()
    }
}

pub fn access_key() -> AccessKeyRow {
    AccessKeyRow {
        id: "PLEXAMPLE".into(),
        wrapped_secret: Bytes::from_static(b"\xff\xfe wrapped").into(),
        account: "root".into(),
        created: TIME,
        description: Some("backup".into()),
    }
}

pub fn join_token() -> JoinTokenRow {
    JoinTokenRow {
        hash: std::array::from_fn(|at| 0x80 + at as u8),
        expires: TIME,
        roles: vec![Role::Gateway, Role::Storage],
        used: Some(used_token()),
    }
}

fn used_token() -> UsedToken {
    UsedToken { node: NodeId(7), public_key: [0x0b; 32] }
}

pub fn certificate() -> CertificateRow {
    CertificateRow {
        serial: 0x4142_4344_4546_4748_494a_4b4c_4d4e_4f50,
        node: NodeId(1 << 62),
        roles: vec![Role::Admin],
        valid_from_s: 1_800_000_000,
        valid_until_s: 1_800_086_400,
        public_key: [0x0b; 32],
        operator: Some("mai".into()),
    }
}

pub fn revoked() -> RevokedCertificate {
    RevokedCertificate { serial: certificate().serial, valid_until_s: certificate().valid_until_s }
}

pub fn voter() -> VoterRecord {
    VoterRecord { node: NodeId(1), log: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, boot: 5, floor: 123_456 }
}

pub fn founding() -> Founding {
    Founding { map: map(), keys: vec![access_key()] }
}

pub fn samples(samples: &mut Samples) {
    samples.numbered(State::ALL);
    samples.record([node(), NodeRecord { roles: vec![], version: None, public_key: None, ..node() }]);
    samples.record([
        disk(),
        DiskRecord { used_bytes: None, quarantined: None, ..disk() },
        DiskRecord { write_stop_bytes: Some(6 << 40), ..disk() },
    ]);
    samples.record([pg(), PlacementGroup { closed: false, ..pg() }]);
    samples.record([shard().start, ShardStart { bucket: plinth_protocol::BucketId(0), key: String::new() }]);
    samples.record([shard()]);
    samples.record([map(), bare_map()]);
    samples.record([access_key(), AccessKeyRow { description: None, ..access_key() }]);
    samples.record([join_token(), JoinTokenRow { used: None, ..join_token() }]);
    samples.record([used_token()]);
    samples.record([certificate(), CertificateRow { operator: None, ..certificate() }]);
    samples.record([revoked()]);
    samples.record([voter()]);
    samples.record([founding(), Founding { map: bare_map(), keys: vec![] }]);
}
