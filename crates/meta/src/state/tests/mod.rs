//! Tests of the machine as a whole: commands in, outcomes, rows and replies out.

mod admission;
mod bench;
mod buckets;
mod differential;
mod discards;
mod forged;
mod format;
mod listing;
mod objects;
mod recall;
mod system;
mod uploads;

use super::store::dump;
use super::{Family, LogPosition, Machine, MemoryStore, Store, keys};
use bytes::Bytes;
use md5::{Digest, Md5};
use plinth_protocol::meta::*;
use plinth_protocol::object::*;
use plinth_protocol::stripe::{Code, StripeRef};
use plinth_protocol::*;

pub const BUCKET: BucketId = BucketId(0xb0);
const SHARD: GroupId = GroupId(1);
pub const START_MS: u64 = 1_800_000_000_000;

/// A machine with a log: counts entries, draws request ids, moves the clock.
pub struct Replica<S: Store> {
    pub machine: Machine<S>,
    pub index: u64,
    pub now_ms: u64,
    pub group: GroupId,
    pub requests: u128,
    /// Every entry applied so far, to be applied again.
    pub log: Vec<(LogPosition, HybridTime, Vec<Mutation>)>,
}

pub fn position(index: u64) -> LogPosition {
    LogPosition { term: 1, leader: NodeId(1), index }
}

impl<S: Store> Replica<S> {
    pub fn new(store: S, group: GroupId) -> Self {
        let machine = Machine::open(store, group).unwrap();
        Replica { machine, index: 0, now_ms: START_MS, group, requests: 0, log: Vec::new() }
    }

    pub fn mutation(&mut self, command: Command) -> Mutation {
        self.requests += 1;
        Mutation {
            group: self.group,
            request: RequestId(self.requests),
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        }
    }

    /// Applies mutations as one entry.
    pub fn apply(&mut self, mutations: Vec<Mutation>) -> Vec<Outcome> {
        self.index += 1;
        let now = HybridTime::from_millis(self.now_ms);
        let outcomes = self.machine.apply(position(self.index), now, &mutations).unwrap();
        self.log.push((position(self.index), now, mutations));
        outcomes
    }

    pub fn apply_one(&mut self, mutation: Mutation) -> Outcome {
        self.apply(vec![mutation]).pop().unwrap()
    }

    /// Applies one command under a request id of its own, a millisecond later.
    pub fn run(&mut self, command: Command) -> Outcome {
        self.now_ms += 1;
        let mutation = self.mutation(command);
        self.apply_one(mutation)
    }

    pub fn query(&self, query: Query) -> Reply {
        let typed = self.machine.query(&query).unwrap();
        let mut encoded = Vec::new();
        self.machine.reader().query_encoded(&query, &mut encoded).unwrap();
        assert_eq!(Reply::decode(&encoded).as_ref(), Ok(&typed), "both forms of an answer agree");
        typed
    }

    pub fn stat(&self) -> ShardStat {
        match self.query(Query::ShardStat) {
            Reply::ShardStat(stat) => stat,
            other => panic!("{other:?}"),
        }
    }

    pub fn object(&self, key: &str) -> Option<ObjectView> {
        match self.query(Query::Object(ObjectQuery { bucket: BUCKET, key: key.into(), body: true })) {
            Reply::Object(view) => Some(view),
            Reply::Absent(RefusalKind::NoSuchKey) => None,
            other => panic!("{other:?}"),
        }
    }

    /// All stripes in the queue of deferred deletes, oldest first.
    pub fn doomed(&self) -> Vec<StripeId> {
        self.due_rows().into_iter().flat_map(|row| row.stripes).map(|stripe| stripe.stripe).collect()
    }

    pub fn due_rows(&self) -> Vec<DueDelete> {
        let query = DueQuery { before: HybridTime(u64::MAX), after: None, limit: 1000, age_ms: None };
        match self.query(Query::DueDeletes(query)) {
            Reply::DueDeletes(page) => page.rows,
            other => panic!("{other:?}"),
        }
    }

    pub fn owed(&self) -> Vec<FillInRow> {
        let query = DueQuery { before: HybridTime(u64::MAX), after: None, limit: 1000, age_ms: None };
        match self.query(Query::FillIns(query)) {
            Reply::FillIns(page) => page.rows,
            other => panic!("{other:?}"),
        }
    }

    pub fn rows(&self, family: Family) -> usize {
        dump(&self.machine.store().view()).unwrap().iter().filter(|row| row.0 == family).count()
    }

    /// Checks that the counters are the sums of the rows (V16).
    pub fn assert_counters(&self) {
        let stat = self.stat();
        let objects = self.rows(Family::Objects) as u64;
        assert_eq!(stat.objects, objects);
        assert_eq!(stat.buckets.iter().map(|(_, usage)| usage.objects).sum::<u64>(), objects);
        assert_eq!(stat.buckets.iter().map(|(_, usage)| usage.bytes).sum::<u64>(), stat.object_bytes);
        assert_eq!(stat.uploads, self.rows(Family::Uploads) as u64);
        assert_eq!(stat.deferred_deletes, self.rows(Family::Deletes) as u64);
        assert_eq!(stat.fill_ins, self.rows(Family::FillIns) as u64);
        let tags = [keys::DISCARDED_UPLOADS, keys::DISCARDED_BUCKETS].concat();
        let rows = dump(&self.machine.store().view()).unwrap();
        let discards = rows.iter().filter(|row| row.0 == Family::State && tags.contains(&row.1[0])).count();
        assert_eq!(stat.discards.unwrap_or(0), discards as u64);
        assert_eq!(self.rows(Family::Tokens), self.rows(Family::TokenExpiry));
        assert_eq!(self.rows(Family::Objects), self.rows(Family::Bodies));
    }
}

/// A shard with one open bucket.
pub fn shard() -> Replica<MemoryStore> {
    let mut replica = Replica::new(MemoryStore::new(), SHARD);
    assert_eq!(replica.run(Command::OpenBucket(BUCKET)), Outcome::Done);
    replica
}

pub fn md5_of(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

pub fn etag_of(bytes: &[u8]) -> Etag {
    Etag { md5: md5_of(bytes), parts: None }
}

pub fn stripe(sequence: u64, bytes: u64) -> StripeRef {
    StripeRef {
        stripe: StripeId::new(WriterId(5), sequence, 0),
        pg: PgId(3),
        generation: 1,
        code: Code::new(3, 2),
        payload_bytes: bytes,
        fragment_payload_bytes: bytes.div_ceil(3).max(1) as u32,
        missing: None,
        plain_bytes: None,
        sealing: None,
        pack_offset: None,
    }
}

pub fn headers() -> StoredHeaders {
    StoredHeaders {
        standard: vec![("content-type".into(), "text/plain".into())],
        user: vec![("colour".into(), "blue".into())],
    }
}

pub fn put_inline(key: &str, bytes: &'static [u8]) -> PutObject {
    PutObject {
        bucket: BUCKET,
        key: key.into(),
        size_bytes: bytes.len() as u64,
        etag: etag_of(bytes),
        checksum: None,
        body: ObjectBody { headers: headers(), body: Body::Inline(Bytes::from_static(bytes)) },
        expectation: None,
    }
}

pub fn put_stripes(key: &str, stripes: Vec<StripeRef>) -> PutObject {
    PutObject {
        bucket: BUCKET,
        key: key.into(),
        size_bytes: stripes.iter().map(StripeRef::object_bytes).sum(),
        etag: etag_of(key.as_bytes()),
        checksum: None,
        body: ObjectBody { headers: headers(), body: Body::Stripes(stripes) },
        expectation: None,
    }
}

pub fn delete(key: &str) -> DeleteObject {
    DeleteObject { bucket: BUCKET, key: key.into(), expectation: None }
}

pub fn expect(kind: ExpectationKind, etag: Option<&str>) -> Option<Expectation> {
    Some(Expectation { kind, etag: etag.map(str::to_owned) })
}

#[track_caller]
pub fn assert_refused(outcome: Outcome, kind: RefusalKind) {
    match outcome {
        Outcome::Refused(refusal) => assert_eq!(refusal.kind, kind, "{}", refusal.text),
        other => panic!("{other:?} instead of {kind:?}"),
    }
}

#[track_caller]
pub fn object_row(outcome: Outcome) -> ObjectRow {
    match outcome {
        Outcome::Object(row) => row,
        other => panic!("{other:?}"),
    }
}

use plinth_protocol::wire::Wire;
