//! A cluster in memory: the namespace's decisions by the contract, the bytes in a map.

use bytes::Bytes;
use md5::{Digest, Md5};
use plinth_gateway::{BodyReader, BodyWriter, Store};
use plinth_protocol::meta::*;
use plinth_protocol::object::*;
use plinth_protocol::stripe::{Code, Owner, StripeRef};
use plinth_protocol::{BucketId, Failure, FailureKind, HybridTime, PgId, RequestId, StripeId, UploadId, WriterId};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

const PART_BYTES_MIN: u64 = 5 << 20;
const READ_BYTES: usize = 64 << 10;

#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    drawn: Arc<AtomicU64>,
    pub faults: Arc<Mutex<Faults>>,
}

/// What goes wrong next.
#[derive(Default, Clone)]
pub struct Faults {
    /// Every commit fails so.
    pub commit: Option<FailureKind>,
    /// Every commit takes so long.
    pub commit_delay: Option<Duration>,
    /// Reading fails behind so many bytes.
    pub read_after: Option<u64>,
    /// The next object that is opened is replaced by these bytes, and what was opened is gone.
    pub replaced_at_open: Option<Bytes>,
    /// Opened objects fail at their first bytes.
    pub open: Option<FailureKind>,
    /// How often the store was asked anything.
    pub calls: u64,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, Arc<BucketRow>>,
    objects: BTreeMap<(u64, String), (ObjectRow, ObjectBody)>,
    uploads: BTreeMap<(u64, String, u128), Upload>,
    parts: HashMap<u128, BTreeMap<u16, PartRow>>,
    finished: HashMap<u128, (Vec<CompletePart>, Outcome)>,
    tokens: HashMap<u128, (u128, Outcome)>,
    blobs: HashMap<StripeId, Bytes>,
    last: u64,
}

struct Upload {
    row: UploadRow,
}

fn refused(kind: RefusalKind) -> Outcome {
    Outcome::Refused(Refusal { kind, text: String::new() })
}

#[allow(clippy::disallowed_methods)]
fn wall_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.faults.lock().expect("not poisoned").calls += 1;
        self.state.lock().expect("not poisoned")
    }

    /// Returns all keys, for tests that must see that nothing was left.
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").objects.keys().map(|(_, key)| key.clone()).collect()
    }

    pub fn calls(&self) -> u64 {
        self.faults.lock().expect("not poisoned").calls
    }

    /// Gives a bucket to another account.
    pub fn give_away(&self, name: &str, owner: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        let row = state.buckets.get_mut(name).expect("a bucket");
        *row = Arc::new(BucketRow { owner: owner.into(), ..BucketRow::clone(row) });
    }

    pub fn put_quietly(&self, bucket: &str, key: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        let id = state.buckets[bucket].bucket.0;
        let row = ObjectRow {
            size_bytes: 0,
            etag: Etag { md5: Md5::digest(b"").into(), parts: None },
            modified: HybridTime::from_millis(wall_ms()),
            checksum: None,
            upload: None,
            request: RequestId(0),
        };
        let headers = StoredHeaders { standard: Vec::new(), user: Vec::new() };
        state.objects.insert((id, key.into()), (row, ObjectBody { headers, body: Body::Inline(Bytes::new()) }));
    }
}

impl State {
    fn now(&mut self) -> HybridTime {
        self.last = HybridTime::from_millis(wall_ms()).max(HybridTime(self.last).next()).0;
        HybridTime(self.last)
    }

    fn has_bucket(&self, bucket: BucketId) -> bool {
        self.buckets.values().any(|row| row.bucket == bucket)
    }

    fn judge(&self, place: &(u64, String), expectation: Option<&Expectation>) -> Result<(), Box<Outcome>> {
        let Some(expectation) = expectation else { return Ok(()) };
        let current = self.objects.get(place).map(|(row, _)| row.etag.to_string());
        let failed = Err(Box::new(refused(RefusalKind::PreconditionFailed)));
        match (expectation.kind, current) {
            (ExpectationKind::Absent, None) | (ExpectationKind::Present, Some(_)) => Ok(()),
            (ExpectationKind::Absent, Some(_)) => failed,
            (_, None) => Err(Box::new(refused(RefusalKind::NoSuchKey))),
            (ExpectationKind::Matches, Some(etag)) if Some(&etag) == expectation.etag.as_ref() => Ok(()),
            (ExpectationKind::Matches, Some(_)) => failed,
        }
    }

    fn apply(&mut self, command: Command) -> Outcome {
        match command {
            Command::PutObject(put) => self.put(put),
            Command::DeleteObject(delete) => {
                let place = (delete.bucket.0, delete.key);
                if !self.has_bucket(delete.bucket) {
                    return refused(RefusalKind::NoSuchBucket);
                }
                match self.judge(&place, delete.expectation.as_ref()) {
                    Ok(()) => Outcome::Deleted(self.objects.remove(&place).is_some()),
                    Err(outcome) => *outcome,
                }
            }
            Command::CreateUpload(create) => {
                let row = UploadRow {
                    initiated: self.now(),
                    headers: create.headers,
                    algorithm: create.algorithm,
                    kind: create.kind,
                    request: RequestId(0),
                };
                self.uploads.insert((create.bucket.0, create.key, create.upload.0), Upload { row });
                Outcome::Done
            }
            Command::PutPart(put) => {
                if !self.uploads.contains_key(&(put.bucket.0, put.key, put.upload.0)) {
                    return refused(RefusalKind::NoSuchUpload);
                }
                let row = PartRow { modified: self.now(), ..put.part };
                self.parts.entry(put.upload.0).or_default().insert(put.number, row.clone());
                Outcome::Part(row)
            }
            Command::CompleteUpload(complete) => self.complete(complete),
            Command::AbortUpload(abort) => match self.uploads.remove(&(abort.bucket.0, abort.key, abort.upload.0)) {
                Some(_) => {
                    self.parts.remove(&abort.upload.0);
                    Outcome::Done
                }
                None => refused(RefusalKind::NoSuchUpload),
            },
            other => panic!("not a command of the gateway: {other:?}"),
        }
    }

    fn put(&mut self, put: PutObject) -> Outcome {
        if !self.has_bucket(put.bucket) {
            return refused(RefusalKind::NoSuchBucket);
        }
        let place = (put.bucket.0, put.key);
        if let Err(outcome) = self.judge(&place, put.expectation.as_ref()) {
            return *outcome;
        }
        let row = ObjectRow {
            size_bytes: put.size_bytes,
            etag: put.etag,
            modified: self.now(),
            checksum: put.checksum,
            upload: None,
            request: RequestId(0),
        };
        self.objects.insert(place, (row.clone(), put.body));
        Outcome::Object(row)
    }

    fn complete(&mut self, complete: CompleteUpload) -> Outcome {
        let place = (complete.bucket.0, complete.key.clone(), complete.upload.0);
        let Some(upload) = self.uploads.get(&place) else {
            return match self.finished.get(&complete.upload.0) {
                Some((list, outcome)) if *list == complete.parts => outcome.clone(),
                _ => refused(RefusalKind::NoSuchUpload),
            };
        };
        let known = self.parts.get(&complete.upload.0).cloned().unwrap_or_default();
        let mut listed = Vec::new();
        for part in &complete.parts {
            let Some(row) = known.get(&part.number) else { return refused(RefusalKind::InvalidPart) };
            let stored = row.checksum.as_ref().map(|checksum| checksum.value.clone());
            if (Etag { md5: row.md5, parts: None }).to_string() != part.etag
                || part.checksum.is_some() && part.checksum != stored
            {
                return refused(RefusalKind::InvalidPart);
            }
            listed.push((part.number, row.clone()));
        }
        let (_, front) = listed.split_last().expect("never empty");
        if front.iter().any(|(_, row)| row.size_bytes < PART_BYTES_MIN) {
            return refused(RefusalKind::PartTooSmall);
        }
        let size_bytes: u64 = listed.iter().map(|(_, row)| row.size_bytes).sum();
        if complete.size_bytes.is_some_and(|stated| stated != size_bytes) {
            return refused(RefusalKind::SizeMismatch);
        }
        let object = (complete.bucket.0, complete.key.clone());
        if let Err(outcome) = self.judge(&object, complete.expectation.as_ref()) {
            return *outcome;
        }
        let checksum = match object_checksum(&upload.row, &listed) {
            checksum if complete.checksum.is_none() || complete.checksum == checksum => checksum,
            _ => return refused(RefusalKind::BadDigest),
        };
        let mut md5 = Md5::new();
        listed.iter().for_each(|(_, row)| md5.update(row.md5));
        let spans = listed.iter().map(|(number, row)| PartSpan {
            number: *number,
            size_bytes: row.size_bytes,
            checksum: row.checksum.as_ref().map(|checksum| checksum.value.clone()),
        });
        let body = ObjectBody { headers: upload.row.headers.clone(), body: Body::Parts(spans.collect()) };
        let row = ObjectRow {
            size_bytes,
            etag: Etag { md5: md5.finalize().into(), parts: Some(listed.len() as u16) },
            modified: self.now(),
            checksum,
            upload: Some(complete.upload),
            request: RequestId(0),
        };
        self.objects.insert(object, (row.clone(), body));
        self.uploads.remove(&place);
        self.parts.insert(complete.upload.0, listed.into_iter().collect());
        self.finished.insert(complete.upload.0, (complete.parts, Outcome::Object(row.clone())));
        Outcome::Object(row)
    }

    fn bytes_of(&self, row: &ObjectRow, body: &Body) -> Vec<u8> {
        match body {
            Body::Inline(bytes) => bytes.to_vec(),
            Body::Stripes(stripes) => stripes.iter().flat_map(|stripe| self.blobs[&stripe.stripe].to_vec()).collect(),
            Body::Parts(spans) => {
                let parts = &self.parts[&row.upload.expect("multipart").0];
                spans.iter().flat_map(|span| self.bytes_of(row, &parts[&span.number].body)).collect()
            }
        }
    }
}

fn object_checksum(upload: &UploadRow, listed: &[(u16, PartRow)]) -> Option<Checksum> {
    use crc_fast::CrcAlgorithm;
    let algorithm = upload.algorithm.unwrap_or(ChecksumAlgorithm::Crc64Nvme);
    let kind = upload.kind.unwrap_or(ChecksumKind::FullObject);
    let values: Vec<(u64, Bytes)> = listed
        .iter()
        .map(|(_, row)| Some((row.size_bytes, row.checksum.as_ref()?.value.clone())))
        .collect::<Option<_>>()?;
    let crc = match algorithm {
        ChecksumAlgorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        ChecksumAlgorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
        _ => CrcAlgorithm::Crc64Nvme,
    };
    let width = values[0].1.len();
    let value = match kind {
        ChecksumKind::FullObject => {
            let number = |value: &Bytes| value.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            let mut all = values.iter();
            let first = number(&all.next().expect("a part").1);
            let sum = all.fold(first, |sum, (size, value)| crc_fast::checksum_combine(crc, sum, number(value), *size));
            Bytes::copy_from_slice(&sum.to_be_bytes()[8 - width..])
        }
        ChecksumKind::Composite => {
            let joined: Vec<u8> = values.iter().flat_map(|(_, value)| value.to_vec()).collect();
            match algorithm {
                ChecksumAlgorithm::Sha256 => {
                    Bytes::copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &joined).as_ref())
                }
                ChecksumAlgorithm::Sha1 => Bytes::copy_from_slice(
                    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &joined).as_ref(),
                ),
                _ => Bytes::copy_from_slice(&crc_fast::checksum(crc, &joined).to_be_bytes()[8 - width..]),
            }
        }
    };
    let parts = (kind == ChecksumKind::Composite).then_some(listed.len() as u16);
    Some(Checksum { algorithm, kind, value, parts })
}

impl Store for Fake {
    type Writer = FakeWriter;
    type Reader = FakeReader;

    async fn bucket(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        Ok(self.lock().buckets.get(name).cloned())
    }

    async fn bucket_now(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        self.bucket(name).await
    }

    async fn buckets(&self, query: BucketsQuery) -> Result<BucketsPage, Failure> {
        let state = self.lock();
        let mut found: Vec<BucketRow> = state
            .buckets
            .values()
            .filter(|row| row.name.starts_with(&query.prefix) && Some(&row.name) > query.after.as_ref())
            .map(|row| BucketRow::clone(row))
            .collect();
        let more = found.len() > query.limit as usize;
        found.truncate(query.limit as usize);
        Ok(BucketsPage { buckets: found, more })
    }

    async fn create_bucket(&self, name: &str, owner: &str, location: Option<String>) -> Result<Outcome, Failure> {
        let bucket = BucketId(self.draw() as u64);
        let mut state = self.lock();
        if let Some(row) = state.buckets.get(name) {
            let own = row.owner == owner;
            return Ok(refused(if own { RefusalKind::BucketOwnedByYou } else { RefusalKind::BucketExists }));
        }
        let row = BucketRow {
            bucket,
            name: name.into(),
            created: state.now(),
            state: BucketState::Active,
            owner: owner.into(),
            location,
            attempt: None,
            reopening: false,
        };
        state.buckets.insert(name.into(), Arc::new(row.clone()));
        Ok(Outcome::Bucket(row))
    }

    async fn delete_bucket(&self, name: &str, bucket: BucketId) -> Result<Outcome, Failure> {
        let mut state = self.lock();
        let row = state.buckets.get(name).cloned();
        let Some(row) = row.filter(|row| row.bucket == bucket) else { return Ok(refused(RefusalKind::NoSuchBucket)) };
        if state.objects.keys().any(|(bucket, _)| *bucket == row.bucket.0) {
            return Ok(refused(RefusalKind::BucketNotEmpty));
        }
        state.uploads.retain(|(bucket, _, _), _| *bucket != row.bucket.0);
        state.buckets.remove(name);
        Ok(Outcome::Done)
    }

    async fn mutate(
        &self,
        _bucket: BucketId,
        _key: &str,
        command: Command,
        token: Option<ClientToken>,
        _deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let faults = {
            let mut faults = self.faults.lock().expect("not poisoned");
            faults.calls += 1;
            faults.clone()
        };
        if let Some(delay) = faults.commit_delay {
            tokio::time::sleep(delay).await;
        }
        if let Some(kind) = faults.commit {
            return Err(Failure::new(kind, "planted"));
        }
        let mut state = self.lock();
        if let Some(token) = &token
            && let Some((parameters, outcome)) = state.tokens.get(&token.scope)
        {
            if *parameters == token.parameters {
                return Ok(Outcome::Replayed(Box::new(outcome.clone())));
            }
            if token.strict {
                return Ok(refused(RefusalKind::TokenMismatch));
            }
        }
        let outcome = state.apply(command);
        if let Some(token) = token {
            state.tokens.insert(token.scope, (token.parameters, outcome.clone()));
        }
        Ok(outcome)
    }

    async fn query(&self, bucket: BucketId, key: &str, query: Query, _deadline: Instant) -> Result<Reply, Failure> {
        let state = self.lock();
        if !state.has_bucket(bucket) {
            return Ok(Reply::Absent(RefusalKind::NoSuchBucket));
        }
        Ok(match query {
            Query::Object(object) => match state.objects.get(&(bucket.0, key.to_owned())) {
                Some((row, body)) => {
                    Reply::Object(ObjectView { row: row.clone(), body: object.body.then(|| body.clone()) })
                }
                None => Reply::Absent(RefusalKind::NoSuchKey),
            },
            Query::Upload(upload) => match state.uploads.get(&(bucket.0, key.to_owned(), upload.upload.0)) {
                Some(upload) => Reply::Upload(upload.row.clone()),
                None => Reply::Absent(RefusalKind::NoSuchUpload),
            },
            Query::Parts(ask) => {
                let empty = BTreeMap::new();
                let parts = state.parts.get(&ask.upload.0).unwrap_or(&empty);
                let mut found: Vec<(u16, PartRow)> =
                    parts.range(ask.from..).map(|(number, row)| (*number, row.clone())).collect();
                let more = found.len() > ask.limit as usize;
                found.truncate(ask.limit as usize);
                Reply::Parts(PartsPage { parts: found, more })
            }
            other => panic!("not a query of the gateway: {other:?}"),
        })
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, Failure> {
        let state = self.lock();
        if !state.has_bucket(query.bucket) {
            return Err(Failure::new(FailureKind::NotFound, "bucket"));
        }
        let mut page = ListPage { entries: Vec::new(), prefixes: Vec::new(), more: false };
        for ((bucket, key), (row, _)) in &state.objects {
            if *bucket != query.bucket.0 || !key.starts_with(&query.prefix) {
                continue;
            }
            if let Some(after) = &query.after
                && (key <= after || query.after_prefix && key.starts_with(after.as_str()))
            {
                continue;
            }
            let rest = &key[query.prefix.len()..];
            let cut = query.delimiter.as_deref().and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()));
            let prefix = cut.map(|cut| key[..query.prefix.len() + cut].to_owned());
            if prefix.is_some() && page.prefixes.last() == prefix.as_ref() {
                continue;
            }
            if page.entries.len() + page.prefixes.len() == query.limit as usize {
                page.more = true;
                break;
            }
            match prefix {
                Some(prefix) => page.prefixes.push(prefix),
                None => page.entries.push((key.clone(), row.clone())),
            }
        }
        Ok(page)
    }

    async fn uploads(&self, query: UploadsQuery) -> Result<UploadsPage, Failure> {
        let state = self.lock();
        let mut page = UploadsPage { uploads: Vec::new(), prefixes: Vec::new(), more: false };
        for ((bucket, key, upload), open) in &state.uploads {
            let behind = match (&query.after_key, query.after_upload) {
                (None, _) => true,
                (Some(after), Some(id)) => (key, *upload) > (after, id.0),
                (Some(after), None) => key > after,
            };
            if *bucket != query.bucket.0 || !key.starts_with(&query.prefix) || !behind {
                continue;
            }
            if page.uploads.len() == query.limit as usize {
                page.more = true;
                break;
            }
            page.uploads.push(UploadEntry { key: key.clone(), upload: UploadId(*upload), row: open.row.clone() });
        }
        Ok(page)
    }

    fn write(&self, _owner: Owner, _size_hint: Option<u64>) -> FakeWriter {
        FakeWriter { fake: self.clone(), bytes: Vec::new() }
    }

    fn open(&self, bucket: BucketId, key: &str, view: &ObjectView, range: Range<u64>) -> FakeReader {
        let (replaced, fails) = {
            let mut faults = self.faults.lock().expect("not poisoned");
            (faults.replaced_at_open.take(), faults.open)
        };
        let mut state = self.state.lock().expect("not poisoned");
        let fails = fails.or(replaced.is_some().then_some(FailureKind::Conflict));
        if let Some(bytes) = replaced {
            let modified = state.now();
            let (row, body) = state.objects.get_mut(&(bucket.0, key.to_owned())).expect("an object");
            row.size_bytes = bytes.len() as u64;
            row.etag = Etag { md5: Md5::digest(&bytes).into(), parts: None };
            row.modified = modified;
            body.body = Body::Inline(bytes);
        }
        let whole = state.bytes_of(&view.row, &view.body.as_ref().expect("asked for").body);
        let bytes = Bytes::from(whole).slice(range.start as usize..range.end as usize);
        FakeReader { bytes, sent: 0, fails_after: self.faults.lock().expect("not poisoned").read_after, fails }
    }

    fn draw(&self) -> u128 {
        let mut drawn = self.drawn.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        u128::from(drawn) << 64 | u128::from(drawn.rotate_left(17))
    }

    fn now(&self) -> HybridTime {
        HybridTime::from_millis(wall_ms())
    }
}

pub struct FakeWriter {
    fake: Fake,
    bytes: Vec<u8>,
}

impl BodyWriter for FakeWriter {
    async fn handle_stall(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    async fn finish(self) -> Result<Body, Failure> {
        if self.bytes.len() <= INLINE_BYTES_MAX {
            return Ok(Body::Inline(self.bytes.into()));
        }
        let drawn = self.fake.draw();
        let stripe = StripeId::new(WriterId(1), (drawn >> 80) as u64, drawn as u32 & 0xFF_FFFF);
        let length = self.bytes.len() as u64;
        self.fake.lock().blobs.insert(stripe, self.bytes.into());
        Ok(Body::Stripes(vec![StripeRef {
            stripe,
            pg: PgId(0),
            generation: 1,
            code: Code::new(1, 0),
            payload_bytes: length,
            fragment_payload_bytes: length as u32,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        }]))
    }
}

pub struct FakeReader {
    bytes: Bytes,
    sent: u64,
    fails_after: Option<u64>,
    fails: Option<FailureKind>,
}

impl BodyReader for FakeReader {
    fn poll_next(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        if let Some(kind) = self.fails.take() {
            return Poll::Ready(Some(Err(Failure::new(kind, "planted"))));
        }
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        if self.fails_after.is_some_and(|after| self.sent >= after) {
            return Poll::Ready(Some(Err(Failure::new(FailureKind::Unavailable, "planted"))));
        }
        let piece = self.bytes.split_to(self.bytes.len().min(READ_BYTES));
        self.sent += piece.len() as u64;
        Poll::Ready(Some(Ok(piece)))
    }
}
