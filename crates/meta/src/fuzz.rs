//! Fuzz bodies over the state machine: plain functions over bytes that nobody vouches for. They
//! panic where a promise is broken: an entry that stops a replica, two replicas that come to
//! different rows. The ordinary tests run them on samples of every command and on seeded changes of
//! those (`state/tests/forged.rs`); a fuzzer calls them as they are:
//!
//! ```text
//! cargo fuzz init && cargo fuzz add command   # fuzz_target!(|data: &[u8]| plinth_meta::fuzz::command(data));
//! ```

use crate::batch::decode_batch;
use crate::state::store::dump;
use crate::state::{LogPosition, Machine, MemoryStore, Store, check, placement};
use bytes::Bytes;
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, ShardRecord, ShardStart, State};
use plinth_protocol::meta::*;
use plinth_protocol::object::{Body, Etag, ObjectBody, StoredHeaders};
use plinth_protocol::stripe::Code;
use plinth_protocol::wire::Wire;
use plinth_protocol::*;

/// Longest input: bounds memory and time of one run.
const INPUT_BYTES_MAX: usize = 64 << 10;
const SHARD: GroupId = GroupId(1);

/// A mutation in wire form, applied twice under different requests, with work before it that lets it
/// in and work behind it that uses what it left. It is applied whether the leader would propose it or not: an
/// entry may come from an older leader.
pub fn command(data: &[u8]) {
    let Ok(mutation) = Mutation::decode(&data[..data.len().min(INPUT_BYTES_MAX)]) else { return };
    let group = if check(SHARD, &of(SHARD, &mutation)).is_err_and(|failure| failure.text.contains("kind of group")) {
        GROUP_SYSTEM
    } else {
        SHARD
    };
    let mutation = of(group, &mutation);
    let proposed = check(group, &mutation).is_ok();
    for rules in [0, RULES_STRICT] {
        let mut replicas = [Replica::new(group, rules), Replica::new(group, rules)];
        for replica in &mut replicas {
            before(&mutation.command).into_iter().for_each(|command| drop(replica.run(command)));
            let outcome = replica.apply(&mutation);
            let again = Mutation { request: RequestId(mutation.request.0 ^ 1), ..mutation.clone() };
            replica.apply(&again);
            if proposed && rules == RULES_STRICT {
                assert!(!impossible(&outcome), "the leader and apply judge alike: {outcome:?}");
            }
            behind(&mutation.command).into_iter().for_each(|command| drop(replica.run(command)));
            replica.ask();
        }
        let [one, other] = replicas.map(|replica| dump(&replica.machine.store().view()).expect("rows read back"));
        assert!(one == other, "two replicas hold the same rows");
    }
}

/// The payload of a log entry: read or refused; what is read is applied to shard and system group.
pub fn entry(data: &[u8]) {
    let Ok((time, mutations)) = decode_batch(&data[..data.len().min(INPUT_BYTES_MAX)]) else { return };
    for group in [SHARD, GROUP_SYSTEM] {
        let mut replica = Replica::new(group, RULES_STRICT);
        let mutations: Vec<Mutation> = mutations.iter().map(|mutation| of(group, mutation)).collect();
        replica.entry(time, &mutations);
        replica.run(Command::RaiseFence(WriterId(1)));
        replica.ask();
    }
}

/// A report of a disk: of its registration, and of what it holds.
pub fn storage_report(data: &[u8]) {
    let data = &data[..data.len().min(INPUT_BYTES_MAX)];
    let commands = [
        DiskRecord::decode(data).ok().map(Command::RegisterDisk),
        SetDiskState::decode(data).ok().map(Command::SetDiskState),
    ];
    for command in commands.into_iter().flatten() {
        let mutation = Mutation {
            group: GROUP_SYSTEM,
            request: RequestId(1),
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        };
        self::command(&mutation.to_wire());
    }
}

fn of(group: GroupId, mutation: &Mutation) -> Mutation {
    Mutation { group, ..mutation.clone() }
}

fn impossible(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(refusal) if refusal.text.contains("impossible"))
}

struct Replica {
    machine: Machine<MemoryStore>,
    group: GroupId,
    index: u64,
}

impl Replica {
    fn new(group: GroupId, rules: u32) -> Self {
        let machine = Machine::open(MemoryStore::new(), group).expect("an empty store opens");
        let mut replica = Replica { machine, group, index: 0 };
        match group {
            GROUP_SYSTEM => drop(replica.run(Command::Found(Box::new(founding())))),
            _ => drop(replica.run(Command::RaiseRules(rules))),
        }
        replica
    }

    fn entry(&mut self, now: HybridTime, mutations: &[Mutation]) -> Vec<Outcome> {
        self.index += 1;
        let at = LogPosition { term: 1, leader: NodeId(1), index: self.index };
        self.machine.apply(at, now, mutations).expect("no entry stops a replica")
    }

    fn apply(&mut self, mutation: &Mutation) -> Outcome {
        let outcomes = self.entry(HybridTime(self.index << 16), std::slice::from_ref(mutation));
        outcomes.into_iter().next().expect("an outcome for each mutation")
    }

    fn run(&mut self, command: Command) -> Outcome {
        let request = RequestId(u128::from(self.index) << 64);
        self.apply(&Mutation {
            group: self.group,
            request,
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        })
    }

    /// Asks what walks over all rows.
    fn ask(&self) {
        let due = || DueQuery { before: HybridTime(u64::MAX), after: None, limit: LIST_ENTRIES_MAX, age_ms: None };
        let queries = match self.group {
            GROUP_SYSTEM => vec![Query::Map(None), Query::Voters, Query::AccessKeys],
            _ => vec![Query::ShardStat, Query::DueDeletes(due()), Query::FillIns(due())],
        };
        for query in queries {
            let reply = self.machine.query(&query);
            if let Ok(Reply::Map(map)) = &reply {
                // A plan over any disks that got into the map is made or refused.
                let _ = placement::plan(map, Code::new(1, 0));
            }
        }
    }
}

fn founding() -> Founding {
    let voters = vec![NodeId(1)];
    let start = ShardStart { bucket: BucketId(0), key: String::new() };
    let map = ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(1),
        nodes: vec![node(NodeId(1))],
        disks: Vec::new(),
        pgs: Vec::new(),
        shards: vec![ShardRecord { group: SHARD, start, voters: voters.clone() }],
        code: Code::new(1, 0),
        fragment_bytes_max: 1 << 20,
        name: String::new(),
        voters,
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    Founding { map, keys: Vec::new() }
}

fn node(node: NodeId) -> NodeRecord {
    NodeRecord {
        node,
        name: node.to_string(),
        roles: vec![Role::Storage],
        address: String::new(),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: node.to_string(),
        version: None,
        public_key: None,
    }
}

fn disk(disk: DiskId) -> DiskRecord {
    DiskRecord {
        disk,
        node: NodeId(1),
        incarnation: Incarnation(1),
        state: State::Up,
        name: String::new(),
        size_bytes: 1 << 40,
        used_bytes: None,
        quarantined: None,
        write_stop_bytes: None,
    }
}

fn no_headers() -> StoredHeaders {
    StoredHeaders { standard: Vec::new(), user: Vec::new() }
}

fn create(bucket: BucketId, key: &str, upload: UploadId) -> Vec<Command> {
    let create = CreateUpload { bucket, key: key.into(), upload, headers: no_headers(), algorithm: None, kind: None };
    vec![Command::OpenBucket(bucket), Command::CreateUpload(create)]
}

/// What must stand for the command to reach its own checks.
fn before(command: &Command) -> Vec<Command> {
    match command {
        Command::PutObject(PutObject { bucket, .. })
        | Command::DeleteObject(DeleteObject { bucket, .. })
        | Command::CreateUpload(CreateUpload { bucket, .. }) => vec![Command::OpenBucket(*bucket)],
        Command::PutPart(put) => create(put.bucket, &put.key, put.upload),
        Command::CompleteUpload(complete) => create(complete.bucket, &complete.key, complete.upload),
        Command::AbortUpload(abort) => create(abort.bucket, &abort.key, abort.upload),
        Command::SetDiskState(set) => vec![Command::RegisterDisk(disk(set.disk))],
        Command::ChangePlacement(change) => {
            let disks = change.add.iter().flat_map(|pg| &pg.disks);
            disks.take(32).map(|id| Command::RegisterDisk(disk(*id))).collect()
        }
        _ => Vec::new(),
    }
}

/// What uses the sizes and counters that the command may have left.
fn behind(command: &Command) -> Vec<Command> {
    let over = |bucket: BucketId, key: &str| {
        let etag = Etag { md5: [0; 16], parts: None };
        let body = ObjectBody { headers: no_headers(), body: Body::Inline(Bytes::new()) };
        let put = PutObject { bucket, key: key.into(), size_bytes: 0, etag, checksum: None, body, expectation: None };
        let delete = DeleteObject { bucket, key: key.into(), expectation: None };
        vec![Command::PutObject(put), Command::DeleteObject(delete), Command::CloseBucket(bucket)]
    };
    let complete = |put: &PutPart| {
        let etag = Etag { md5: put.part.md5, parts: None }.to_string();
        let checksum = put.part.checksum.as_ref().map(|checksum| checksum.value.clone());
        Command::CompleteUpload(CompleteUpload {
            bucket: put.bucket,
            key: put.key.clone(),
            upload: put.upload,
            parts: vec![CompletePart { number: put.number, etag, checksum }],
            expectation: None,
            size_bytes: None,
            checksum: None,
        })
    };
    match command {
        Command::PutObject(put) => over(put.bucket, &put.key),
        Command::DeleteObject(delete) => over(delete.bucket, &delete.key),
        Command::PutPart(put) => [vec![complete(put)], over(put.bucket, &put.key)].concat(),
        Command::CompleteUpload(complete) => over(complete.bucket, &complete.key),
        Command::CreateUpload(create) => over(create.bucket, &create.key),
        Command::Found(_) | Command::RegisterNode(_) | Command::RegisterDisk(_) => {
            let register =
                RegisterNode { node: NodeRecord { name: "new".into(), ..node(NodeId(0)) }, public_key: None };
            vec![Command::RegisterNode(register), Command::RegisterWriter(NodeId(1))]
        }
        _ => Vec::new(),
    }
}
