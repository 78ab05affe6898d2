//! One state machine for all groups: just what the client asks for, decided at once.

use super::reply_bytes;
use bytes::Bytes;
use plinth_protocol::map::ClusterMap;
use plinth_protocol::meta::*;
use plinth_protocol::object::{Body, BucketRow, BucketState, ObjectBody, ObjectRow, PartRow, PartSpan};
use plinth_protocol::stripe::{Owner, StripeRef};
use plinth_protocol::wire::Wire;
use plinth_protocol::{
    BucketId, Failure, FailureKind, GROUP_SYSTEM, GroupId, HybridTime, Method, NodeId, RequestId, UploadId, WriterId,
};
use plinth_transport::{Request, Response};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

#[derive(Default)]
pub struct State {
    pub map: Option<ClusterMap>,
    pub writers: u64,
    pub fence: u64,
    pub buckets: BTreeMap<String, BucketRow>,
    pub open: BTreeSet<(GroupId, BucketId)>,
    pub attempts: BTreeMap<(GroupId, BucketId), u64>,
    pub objects: BTreeMap<(BucketId, String), (ObjectRow, ObjectBody)>,
    pub parts: BTreeMap<(UploadId, u16), PartRow>,
    pub fill_ins: BTreeMap<u64, (GroupId, Owner, StripeRef)>,
    pub deletes: BTreeMap<u64, (GroupId, HybridTime, Vec<StripeRef>)>,
    pub outcomes: HashMap<RequestId, Outcome>,
    pub applied: Vec<(GroupId, Command)>,
    next: u64,
}

pub struct FakeMeta {
    pub state: Mutex<State>,
    pub leader: AtomicU64,
    /// Wall time of the leader in milliseconds.
    pub wall: AtomicU64,
    /// This many mutations are applied, but their answers lost.
    pub lose_answers: AtomicUsize,
    /// What every call is answered with once an answer has been lost.
    pub after_loss: Mutex<Option<FailureKind>>,
    has_lost: AtomicBool,
    /// Nobody gets a writer id: group 0 is away.
    pub no_writers: AtomicBool,
    pub calls: AtomicUsize,
}

impl FakeMeta {
    pub fn new(map: ClusterMap) -> Self {
        let state = State { map: Some(map), ..State::default() };
        FakeMeta {
            state: Mutex::new(state),
            leader: AtomicU64::new(2),
            wall: AtomicU64::new(1_700_000_000_000),
            lose_answers: AtomicUsize::new(0),
            after_loss: Mutex::new(None),
            has_lost: AtomicBool::new(false),
            no_writers: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        }
    }

    pub fn serve(&self, node: NodeId, request: Request) -> Result<Response, Failure> {
        assert_eq!(request.method, Method::Meta);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let leader = NodeId(self.leader.load(Ordering::Relaxed));
        if node != leader {
            let failure = Failure::new(FailureKind::NotLeader, "not I");
            return Err(Failure { leader: Some(leader), leader_address: Some("there".into()), ..failure });
        }
        if let Some(kind) = *self.after_loss.lock().unwrap()
            && self.has_lost.load(Ordering::Relaxed)
        {
            return Err(Failure::new(kind, "after the loss"));
        }
        let mut state = self.state.lock().unwrap();
        let now = HybridTime::from_millis(self.wall.load(Ordering::Relaxed));
        let timed = |reply: Reply| reply_bytes(&Reply::Timed(TimedReply { time: now, reply: reply.to_bytes() }));
        match MetaRequest::decode(&request.header)? {
            MetaRequest::Mutate(Mutation { command: Command::RegisterWriter(_), .. })
                if self.no_writers.load(Ordering::Relaxed) =>
            {
                Err(Failure::new(FailureKind::Unavailable, "group 0 is away"))
            }
            MetaRequest::Query(query) => Ok(timed(state.query(now, query.group, query.query))),
            MetaRequest::Mutate(mutation) => {
                let known = state.outcomes.get(&mutation.request).cloned();
                let outcome = known.unwrap_or_else(|| state.apply(now, &mutation));
                state.outcomes.insert(mutation.request, outcome.clone());
                let lost =
                    self.lose_answers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if lost.is_ok() {
                    self.has_lost.store(true, Ordering::Relaxed);
                    return Err(Failure::new(FailureKind::Unknown, "the answer was lost"));
                }
                Ok(timed(Reply::Outcome(outcome)))
            }
        }
    }
}

fn refuse(kind: RefusalKind) -> Outcome {
    Outcome::Refused(Refusal { kind, text: format!("{kind:?}") })
}

fn row_key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn row_number(key: &Bytes) -> u64 {
    u64::from_be_bytes(key[..].try_into().unwrap())
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Publishes an object made of the parts of an upload.
    pub fn complete(&mut self, bucket: BucketId, key: &str, upload: UploadId, numbers: &[u16]) -> ObjectView {
        let mut spans = Vec::new();
        for number in numbers {
            let size_bytes = self.parts[&(upload, *number)].size_bytes;
            spans.push(PartSpan { number: *number, size_bytes, checksum: None });
        }
        let size = spans.iter().map(|span| span.size_bytes).sum();
        let mut row = object_row(size);
        row.upload = Some(upload);
        let body = ObjectBody { headers: super::no_headers(), body: Body::Parts(spans) };
        self.objects.insert((bucket, key.into()), (row.clone(), body.clone()));
        ObjectView { row, body: Some(body) }
    }

    pub fn apply(&mut self, at: HybridTime, mutation: &Mutation) -> Outcome {
        let group = mutation.group;
        self.applied.push((group, mutation.command.clone()));
        if mutation.writer.is_some_and(|writer| writer.0 < self.fence) {
            return refuse(RefusalKind::WriterFenced);
        }
        match mutation.command.clone() {
            Command::RegisterWriter(_) => {
                self.writers += 1;
                Outcome::Writer(WriterId(self.writers))
            }
            Command::PutObject(put) => {
                if let Some((_, old)) = self.objects.remove(&(put.bucket, put.key.clone())) {
                    self.defer_delete(group, at, &old.body);
                }
                self.owe(group, &put);
                let row = object_row(put.size_bytes);
                self.objects.insert((put.bucket, put.key), (row.clone(), put.body));
                Outcome::Object(row)
            }
            Command::DeleteObject(delete) => {
                let old = self.objects.remove(&(delete.bucket, delete.key));
                if let Some((_, old)) = &old {
                    self.defer_delete(group, at, &old.body);
                }
                Outcome::Deleted(old.is_some())
            }
            Command::PutPart(put) => {
                self.parts.insert((put.upload, put.number), put.part.clone());
                Outcome::Part(put.part)
            }
            Command::FillIn(filled) => {
                let bodies = self.objects.values_mut().filter_map(|(_, body)| match &mut body.body {
                    Body::Stripes(stripes) => Some(stripes.iter_mut()),
                    _ => None,
                });
                let owing = self.fill_ins.values_mut().map(|row| &mut row.2);
                for stripe in bodies.flatten().chain(owing).filter(|stripe| stripe.stripe == filled.stripe) {
                    stripe.missing = stripe.missing.map(|bits| bits & !filled.fragments).filter(|&bits| bits != 0);
                }
                self.fill_ins.retain(|_, row| row.2.missing.is_some());
                Outcome::Done
            }
            Command::FinishDeletes(finish) => {
                finish.rows.iter().for_each(|row| drop(self.deletes.remove(&row_number(row))));
                Outcome::Done
            }
            command => self.apply_bucket(group, command),
        }
    }

    fn apply_bucket(&mut self, group: GroupId, command: Command) -> Outcome {
        if let Command::OpenBucket(id) = command {
            self.open.insert((group, id));
            return Outcome::Done;
        }
        let number = self.number();
        let change = |buckets: &mut BTreeMap<String, BucketRow>, id: BucketId, attempt: Option<u64>| {
            let Some(row) = buckets.values().find(|row| row.bucket == id) else {
                return Err(RefusalKind::NoSuchBucket);
            };
            match attempt.is_some_and(|attempt| attempt != row.attempt.unwrap_or(0)) {
                true => Err(RefusalKind::StaleAttempt),
                false => Ok(row.name.clone()),
            }
        };
        let (id, attempt) = match &command {
            Command::OpenAttempt(change)
            | Command::CloseAttempt(change)
            | Command::ActivateAttempt(change)
            | Command::ReopenBucket(change)
            | Command::RemoveAttempt(change) => (change.bucket, Some(change.attempt)),
            Command::BeginDeleteAttempt(id) => (*id, None),
            Command::CreateBucket(create) => (create.bucket, None),
            other => panic!("the client does not send {other:?}"),
        };
        if matches!(command, Command::OpenAttempt(_) | Command::CloseAttempt(_)) {
            let seen = self.attempts.entry((group, id)).or_default();
            if attempt.unwrap() < *seen {
                return refuse(RefusalKind::StaleAttempt);
            }
            *seen = attempt.unwrap();
        } else if !matches!(command, Command::CreateBucket(_)) {
            let name = match change(&mut self.buckets, id, attempt) {
                Ok(name) => name,
                Err(kind) => return refuse(kind),
            };
            let row = self.buckets.get_mut(&name).unwrap();
            match command {
                Command::ActivateAttempt(_) => (row.state, row.reopening) = (BucketState::Active, false),
                Command::BeginDeleteAttempt(_) if row.state == BucketState::Active || row.attempt.is_none() => {
                    (row.state, row.attempt) = (BucketState::Closing, Some(number));
                }
                Command::ReopenBucket(_) => (row.reopening, row.attempt) = (true, Some(number)),
                Command::RemoveAttempt(_) if row.state == BucketState::Closing => {
                    self.buckets.remove(&name);
                    return Outcome::Done;
                }
                _ => {}
            }
            return Outcome::Bucket(row.clone());
        }
        match command {
            Command::CreateBucket(create) => {
                if let Some(row) = self.buckets.get(&create.name) {
                    let mine = row.owner == create.owner;
                    return refuse(if mine { RefusalKind::BucketOwnedByYou } else { RefusalKind::BucketExists });
                }
                let row = BucketRow {
                    bucket: create.bucket,
                    name: create.name.clone(),
                    created: HybridTime(0),
                    state: BucketState::Opening,
                    owner: create.owner,
                    location: create.location,
                    attempt: create.numbered.then_some(number),
                    reopening: false,
                };
                self.buckets.insert(create.name, row.clone());
                Outcome::Bucket(row)
            }
            Command::OpenAttempt(_) => {
                self.open.insert((group, id));
                Outcome::Done
            }
            Command::CloseAttempt(_) => {
                let shard = |key: &str| self.map.as_ref().unwrap().shard(id, key).unwrap().group;
                if self.objects.keys().any(|(bucket, key)| *bucket == id && shard(key) == group) {
                    return refuse(RefusalKind::BucketNotEmpty);
                }
                self.open.remove(&(group, id));
                Outcome::Done
            }
            other => panic!("the client does not send {other:?}"),
        }
    }

    fn owe(&mut self, group: GroupId, put: &PutObject) {
        let Body::Stripes(stripes) = &put.body.body else { return };
        for (ordinal, stripe) in stripes.iter().enumerate().filter(|(_, stripe)| stripe.missing.is_some()) {
            let mut owner = super::owner(&put.key);
            owner.ordinal = ordinal as u32;
            let number = self.number();
            self.fill_ins.insert(number, (group, owner, stripe.clone()));
        }
    }

    fn defer_delete(&mut self, group: GroupId, at: HybridTime, body: &Body) {
        if let Body::Stripes(stripes) = body {
            let number = self.number();
            self.deletes.insert(number, (group, at, stripes.clone()));
        }
    }

    pub fn query(&self, now: HybridTime, group: GroupId, query: Query) -> Reply {
        let map = self.map.as_ref().unwrap();
        match query {
            Query::Map(known) if known == Some(map.epoch) => Reply::MapUnchanged,
            Query::Map(_) => Reply::Map(map.clone()),
            Query::Bucket(name) => match self.buckets.get(&name) {
                Some(row) => Reply::Bucket(row.clone()),
                None => Reply::Absent(RefusalKind::NoSuchBucket),
            },
            Query::Buckets(_) => {
                Reply::Buckets(BucketsPage { buckets: self.buckets.values().cloned().collect(), more: false })
            }
            Query::Object(object) => match self.objects.get(&(object.bucket, object.key)) {
                Some((row, body)) => Reply::Object(ObjectView { row: row.clone(), body: Some(body.clone()) }),
                None => Reply::Absent(RefusalKind::NoSuchKey),
            },
            Query::Parts(parts) => {
                let rows = self.parts.range((parts.upload, parts.from)..=(parts.upload, u16::MAX));
                let page = rows.take(parts.limit as usize).map(|((_, number), row)| (*number, row.clone()));
                Reply::Parts(PartsPage { parts: page.collect(), more: false })
            }
            Query::List(list) => Reply::List(self.list(group, &list)),
            Query::FillIns(due) => {
                let from = due.after.map_or(0, |after| row_number(&after) + 1);
                let mut rows = self.fill_ins.range(from..).filter(|(_, row)| row.0 == group);
                let page = rows.by_ref().take(due.limit as usize).map(|(number, (_, owner, stripe))| FillInRow {
                    row: row_key(*number),
                    owner: owner.clone(),
                    stripe: stripe.clone(),
                });
                Reply::FillIns(FillInPage { rows: page.collect(), more: rows.next().is_some() })
            }
            Query::DueDeletes(due) => {
                let from = due.after.map_or(0, |after| row_number(&after) + 1);
                let before = now.before(due.age_ms.unwrap());
                let old = |row: &(GroupId, HybridTime, Vec<StripeRef>)| row.0 == group && row.1 <= before;
                let mut rows = self.deletes.range(from..).filter(|(_, row)| old(row));
                let page = rows.by_ref().take(due.limit as usize).map(|(number, (_, at, stripes))| DueDelete {
                    row: row_key(*number),
                    at: *at,
                    stripes: stripes.clone(),
                });
                Reply::DueDeletes(DuePage { rows: page.collect(), more: rows.next().is_some() })
            }
            Query::ShardStat => Reply::Absent(RefusalKind::NoSuchKey),
            other => panic!("the client does not ask {other:?} of {group} ({GROUP_SYSTEM})"),
        }
    }

    fn list(&self, group: GroupId, list: &ListQuery) -> ListPage {
        let map = self.map.as_ref().unwrap();
        let mut page = ListPage { entries: Vec::new(), prefixes: Vec::new(), more: false };
        for ((bucket, key), (row, _)) in &self.objects {
            let mine = *bucket == list.bucket && map.shard(*bucket, key).unwrap().group == group;
            let after = list.after.as_deref();
            let shown =
                after.is_some_and(|after| key.as_str() <= after || (list.after_prefix && key.starts_with(after)));
            if !mine || shown || !key.starts_with(&list.prefix) {
                continue;
            }
            let rest = &key[list.prefix.len()..];
            let cut = list.delimiter.as_ref().and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len()));
            let prefix = cut.map(|cut| key[..list.prefix.len() + cut].to_string());
            if prefix.as_ref().is_some_and(|prefix| page.prefixes.last() == Some(prefix)) {
                continue;
            }
            if page.entries.len() + page.prefixes.len() == list.limit as usize {
                page.more = true;
                break;
            }
            match prefix {
                Some(prefix) => page.prefixes.push(prefix),
                None => page.entries.push((key.clone(), row.clone())),
            }
        }
        page
    }
}

pub fn object_row(size_bytes: u64) -> ObjectRow {
    ObjectRow {
        size_bytes,
        etag: plinth_protocol::object::Etag { md5: [0; 16], parts: None },
        modified: HybridTime(1),
        checksum: None,
        upload: None,
        request: RequestId(0),
    }
}
