//! Forged mutations: sizes near 2^64, impossible stripes, reports beyond any disk. None stops a replica, each is
//! an outcome or a failure `Invalid`.

#[path = "../../../../../tests/format/mutate.rs"]
mod mutate;

use super::*;
use crate::fuzz;
use crate::state::check;
use mutate::Numbers;
use plinth_protocol::map::{DiskRecord, State};
use plinth_protocol::stripe::{FRAGMENT_PAYLOAD_BYTES_MAX, Owner};

const HUGE: [u64; 5] = [u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64, 1 << 56];

fn forged(sequence: u64, bytes: u64) -> StripeRef {
    StripeRef { payload_bytes: bytes, fragment_payload_bytes: u32::MAX, ..stripe(sequence, 1) }
}

fn put_forged(key: &str, stripes: Vec<StripeRef>) -> PutObject {
    let mut put = put_stripes(key, Vec::new());
    put.size_bytes = stripes.iter().map(StripeRef::object_bytes).fold(0, u64::saturating_add);
    put.body.body = Body::Stripes(stripes);
    put
}

#[test]
fn forged_sizes_never_stop_a_replica() {
    for bytes in HUGE {
        let mut shard = shard();
        for key in ["a", "b", "a"] {
            let missing = |stripe| StripeRef { missing: Some(0b11111), ..stripe };
            let stripes = (0..3).map(|at| missing(forged(at, bytes))).collect();
            let put = shard.mutation(Command::PutObject(put_forged(key, stripes)));
            assert_eq!(check(SHARD, &put).unwrap_err().kind, FailureKind::Invalid, "the leader refuses it");
            // An older leader did not: the entry is in the log.
            shard.apply_one(put);
        }
        for key in ["b", "a", "a"] {
            shard.run(Command::DeleteObject(delete(key)));
        }
        shard.run(Command::PutObject(put_inline("k", b"sound")));
        assert_eq!(shard.run(Command::DeleteObject(delete("k"))), Outcome::Deleted(true));
    }
}

#[test]
fn strict_rules_refuse_impossible_bodies_in_apply() {
    let mut shard = shard();
    assert_eq!(shard.run(Command::RaiseRules(RULES_STRICT)), Outcome::Done);
    assert_refused(shard.run(Command::RaiseRules(u32::MAX)), RefusalKind::Invalid);
    let sound = || stripe(1, 9000);
    let impossible = [
        vec![forged(1, u64::MAX)],
        vec![forged(1, 1 << 63), forged(2, 1 << 63)],
        vec![StripeRef { fragment_payload_bytes: 0, ..sound() }],
        vec![StripeRef { missing: Some(1 << 31), ..sound() }],
        vec![StripeRef { missing: Some(0b111), ..sound() }],
        vec![StripeRef { plain_bytes: Some(u64::MAX), ..sound() }],
        vec![StripeRef { pack_offset: Some(u64::MAX), ..sound() }],
        vec![sound(), sound()],
    ];
    for stripes in impossible {
        let put = put_forged("k", stripes);
        assert_refused(shard.run(Command::PutObject(put.clone())), RefusalKind::Invalid);
        let create = CreateUpload {
            bucket: BUCKET,
            key: "k".into(),
            upload: UploadId(1),
            headers: headers(),
            algorithm: None,
            kind: None,
        };
        shard.run(Command::CreateUpload(create));
        let part = PartRow {
            size_bytes: put.size_bytes,
            md5: [0; 16],
            modified: HybridTime(0),
            checksum: None,
            body: put.body.body,
            request: RequestId(0),
        };
        let part = PutPart { bucket: BUCKET, key: "k".into(), upload: UploadId(1), number: 1, part };
        assert_refused(shard.run(Command::PutPart(part)), RefusalKind::Invalid);
    }
    object_row(shard.run(Command::PutObject(put_stripes("k", vec![sound(), stripe(2, 1)]))));
    shard.assert_counters();
}

#[test]
fn rules_are_those_of_the_log_not_of_the_voter() {
    let mut shard = shard();
    let before = shard.run(Command::PutObject(put_forged("k", vec![forged(1, 1 << 40)])));
    shard.run(Command::RaiseRules(RULES_STRICT));
    let behind = shard.run(Command::PutObject(put_forged("k", vec![forged(2, 1 << 40)])));
    let mut again = Machine::open(MemoryStore::new(), SHARD).unwrap();
    let log = std::mem::take(&mut shard.log);
    let outcomes: Vec<_> =
        log.iter().map(|(at, now, mutations)| again.apply(at.clone(), *now, mutations).unwrap().remove(0)).collect();
    assert_eq!((&outcomes[1], &outcomes[3]), (&before, &behind));
    assert!(!matches!(before, Outcome::Refused(_)), "accepted when it was written, and for ever");
    assert_refused(behind, RefusalKind::Invalid);
}

#[test]
fn forged_registry_never_stops_the_system_group() {
    let node = |id: u64| plinth_protocol::map::NodeRecord {
        node: NodeId(id),
        name: format!("n{id}"),
        roles: vec![Role::Storage],
        address: String::new(),
        incarnation: Incarnation(u64::MAX),
        state: State::Up,
        domain: String::new(),
        version: None,
        public_key: None,
    };
    let mut system = Replica::new(MemoryStore::new(), GROUP_SYSTEM);
    let map = plinth_protocol::map::ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(u64::MAX),
        nodes: vec![node(1), node(u64::MAX)],
        disks: vec![],
        pgs: vec![],
        shards: vec![],
        code: Code::new(1, 0),
        fragment_bytes_max: u32::MAX,
        name: String::new(),
        voters: vec![],
        feature_level: u32::MAX,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    let found = system.mutation(Command::Found(Box::new(Founding { map, keys: vec![] })));
    assert_eq!(check(GROUP_SYSTEM, &found).unwrap_err().kind, FailureKind::Invalid);
    assert_eq!(system.apply_one(found), Outcome::Done);
    let register = |id| Command::RegisterNode(RegisterNode { node: node(id), public_key: None });
    system.run(register(1));
    assert_refused(system.run(register(0)), RefusalKind::Invalid);
    for disk in 1..=3u128 {
        let record = DiskRecord {
            disk: DiskId(disk),
            node: NodeId(1),
            incarnation: Incarnation(u64::MAX),
            state: State::Up,
            name: String::new(),
            size_bytes: u64::MAX,
            used_bytes: Some(u64::MAX),
            quarantined: Some(u64::MAX),
            write_stop_bytes: Some(u64::MAX),
        };
        let register = system.mutation(Command::RegisterDisk(record));
        assert_eq!(check(GROUP_SYSTEM, &register).unwrap_err().kind, FailureKind::Invalid);
        system.apply_one(register);
        let report =
            SetDiskState { disk: DiskId(disk), state: None, used_bytes: Some(u64::MAX - 1), quarantined: Some(1) };
        let report = system.mutation(Command::SetDiskState(report));
        assert_eq!(check(GROUP_SYSTEM, &report).unwrap_err().kind, FailureKind::Invalid);
        system.apply_one(report);
    }
    let Reply::Map(map) = system.query(Query::Map(None)) else { panic!("a map") };
    crate::state::placement::plan(&map, Code::new(1, 0)).unwrap();
}

/// Wire forms of every command of the golden files, and of some whose sizes are long integers, so that a change of
/// one leaves the lengths around it right.
fn corpus() -> Vec<Vec<u8>> {
    let mut numbers = Numbers(7);
    let mut corpus = Vec::new();
    let mut add = |command: Command| {
        let mutation = Mutation {
            group: SHARD,
            request: RequestId(9),
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        };
        corpus.push(mutation.to_wire());
    };
    for at in 0..24u64 {
        let any = |numbers: &mut Numbers| match numbers.below(4) {
            0 => HUGE[numbers.below(HUGE.len())],
            1 => numbers.next(),
            2 => FRAGMENT_PAYLOAD_BYTES_MAX,
            _ => numbers.next() >> 40,
        };
        let some = |numbers: &mut Numbers| StripeRef {
            fragment_payload_bytes: any(numbers) as u32,
            missing: (numbers.below(2) == 0).then(|| numbers.next() as u32 & 0x1f),
            plain_bytes: (numbers.below(4) == 0).then(|| any(numbers)),
            pack_offset: (numbers.below(4) == 0).then(|| any(numbers)),
            ..forged(numbers.next() >> 30, any(numbers))
        };
        let stripes: Vec<StripeRef> = (0..=numbers.below(3)).map(|_| some(&mut numbers)).collect();
        let put = put_forged("k", stripes.clone());
        add(Command::PutObject(put.clone()));
        add(Command::PutObject(put_stripes("k", vec![stripe(at, 1 << 20), stripe(at + 100, 77)])));
        let part = PartRow {
            size_bytes: put.size_bytes,
            md5: [1; 16],
            modified: HybridTime(u64::MAX),
            checksum: None,
            body: put.body.body,
            request: RequestId(0),
        };
        let number = (at % 3) as u16 * 5000;
        add(Command::PutPart(PutPart { bucket: BUCKET, key: "k".into(), upload: UploadId(1), number, part }));
        let owner =
            Owner { bucket: BUCKET, key: "k".into(), upload: None, part: None, ordinal: u32::MAX, offset: u64::MAX };
        add(Command::FillIn(FilledIn { owner, stripe: stripes[0].stripe, fragments: u32::MAX }));
    }
    for size_bytes in [1 << 40, u64::MAX] {
        let disk = DiskRecord {
            disk: DiskId(1),
            node: NodeId(1),
            incarnation: Incarnation(u64::MAX),
            state: State::Up,
            name: "d".into(),
            size_bytes,
            used_bytes: Some(u64::MAX),
            quarantined: Some(u64::MAX),
            write_stop_bytes: Some(u64::MAX),
        };
        add(Command::RegisterDisk(disk));
        let report = SetDiskState { disk: DiskId(1), state: None, used_bytes: Some(size_bytes), quarantined: Some(1) };
        add(Command::SetDiskState(report));
    }
    corpus
}

#[test]
fn changed_mutations_never_stop_a_replica() {
    let mut corpus = corpus();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/format");
    let text = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    corpus.extend(read_hex(&text("protocol_messages.hex")));
    for name in ["meta_object_commands.hex", "meta_system_commands.hex"] {
        corpus.extend(read_commands(&text(name)));
    }
    for sample in &corpus {
        fuzz::command(sample);
        fuzz::entry(&[&[1, 0, 0, 0, 0, 0, 0, 0, 0][..], &encoded_list(sample)].concat());
        fuzz::storage_report(sample);
    }
    mutate::each_change(&corpus, 100, |bytes| {
        fuzz::command(bytes);
        fuzz::storage_report(bytes);
        fuzz::entry(&[&[1, 0, 0, 0, 0, 0, 0, 0, 0][..], &encoded_list(bytes)].concat());
    });
}

fn encoded_list(item: &[u8]) -> Vec<u8> {
    vec![Bytes::copy_from_slice(item)].to_wire()
}

/// Reads the commands of a golden file of this crate (name and digits in a line), each as a mutation.
fn read_commands(text: &str) -> Vec<Vec<u8>> {
    let bytes = |digits: &str| -> Vec<u8> {
        (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let commands = lines.filter_map(|(_, digits)| Command::decode(&bytes(digits)).ok());
    let mutation = |command| {
        Mutation { group: SHARD, request: RequestId(3), writer: None, token: None, command, issued: None, seen: None }
            .to_wire()
    };
    let found: Vec<Vec<u8>> = commands.map(mutation).collect();
    assert!(found.len() > 5);
    found
}

/// Reads the samples of a golden file of the protocol.
fn read_hex(text: &str) -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# ") {
            let length = head.rsplit_once(": ").and_then(|(_, length)| length.strip_suffix(" bytes"));
            samples.push(vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)]);
        } else if let (Some((offset, digits)), Some(sample)) = (line.split_once(' '), samples.last_mut()) {
            let offset = usize::from_str_radix(offset, 16).unwrap();
            for at in 0..digits.len() / 2 {
                sample[offset + at] = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
            }
        }
    }
    samples.retain(|sample| !sample.is_empty());
    samples
}
