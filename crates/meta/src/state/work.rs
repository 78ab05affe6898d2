//! One entry being applied: the view before it, the changes so far, the counters.
//!
//! Handlers check first and change then: a refusal leaves no change behind, so the batch never
//! holds half a command.

use super::keys::Memory;
use super::machine::serves;
use super::rows::{self, Kept, OpenBucketRow, ShardRow};
use super::store::{Batch, Cursor, Family, KeyRange, View};
use super::{StateError, keys};
use plinth_protocol::meta::{Command, Mutation, Outcome, RULES_STRICT, Refusal, RefusalKind};
use plinth_protocol::wire::{Record, Wire};
use plinth_protocol::{BucketId, GroupId, HybridTime, RequestId, WriterId};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// One entry's work on a view.
pub(super) struct Work<'a, V: View> {
    view: &'a V,
    pub(super) group: GroupId,
    pub(super) index: u64,
    pub(super) now: HybridTime,
    /// What `now` is for everything that expires: behind it by the jumps of time that nobody has confirmed.
    pub(super) expiry_now: HybridTime,
    pub(super) batch: Batch,
    pub(super) shard: Kept<ShardRow>,
    shard_before: ShardRow,
    buckets: BTreeMap<BucketId, Bucket>,
    /// Deferred deletes queued so far by this entry: part of their keys.
    pub(super) deferred: u32,
    /// Changes of buckets numbered so far by this entry.
    pub(super) attempts: u64,
    /// Row operations of this entry that took something apart.
    pub(super) taken_apart: usize,
}

/// An open bucket's row, before the entry and now; none where the bucket is closed.
struct Bucket {
    before: Option<Kept<OpenBucketRow>>,
    now: Option<Kept<OpenBucketRow>>,
}

/// Returns a decided refusal.
pub(super) fn refuse(kind: RefusalKind, text: impl Into<String>) -> Outcome {
    Outcome::Refused(refusal(kind, text))
}

/// Returns a refusal that is not an outcome yet.
pub(super) fn refusal(kind: RefusalKind, text: impl Into<String>) -> Refusal {
    Refusal { kind, text: text.into() }
}

/// Raises a counter. Counters stay at their bound instead of failing: what they count has been decided.
pub(super) fn count_up(counter: &mut u64, by: u64) {
    *counter = counter.saturating_add(by);
}

/// Lowers a counter. One that a sum beyond its bound has spoilt stays at zero.
pub(super) fn count_down(counter: &mut u64, by: u64) {
    *counter = counter.saturating_sub(by);
}

/// What a handler says: an outcome, or a refusal found on the way.
pub(super) type Decided<T> = Result<Result<T, Refusal>, StateError>;

/// Leaves a handler early with a refusal.
macro_rules! decided {
    ($decided:expr) => {
        match $decided? {
            Ok(value) => value,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        }
    };
}
pub(super) use decided;

impl<'a, V: View> Work<'a, V> {
    pub(super) fn begin(view: &'a V, group: GroupId, index: u64, now: HybridTime) -> Result<Self, StateError> {
        let shard = match view.get(Family::State, keys::SHARD)? {
            Some(row) => Kept::decode(Family::State, &row)?,
            None => Kept::new(EMPTY_SHARD),
        };
        let (shard_before, buckets, batch) = (shard.record.clone(), BTreeMap::new(), Batch::new());
        let expiry_now = now.before(shard.record.expiry_held_ms.unwrap_or(0));
        Ok(Work {
            view,
            group,
            index,
            now,
            expiry_now,
            batch,
            shard,
            shard_before,
            buckets,
            deferred: 0,
            attempts: 0,
            taken_apart: 0,
        })
    }

    /// Puts the counters into the batch and hands it over.
    pub(super) fn finish(mut self) -> Batch {
        for (bucket, row) in self.buckets {
            match row.now {
                now if now == row.before => {}
                Some(now) => self.batch.put(Family::State, keys::open_bucket(bucket), now.encode()),
                None => self.batch.delete(Family::State, keys::open_bucket(bucket)),
            }
        }
        if self.shard.record != self.shard_before {
            self.batch.put(Family::State, keys::SHARD.to_vec(), self.shard.encode());
        }
        self.batch
    }

    /// Decides one mutation: a known request gets its first outcome again.
    pub(super) fn decide(&mut self, mutation: &Mutation) -> Result<Outcome, StateError> {
        if mutation.group != self.group || !serves(self.group, &mutation.command) {
            return Ok(refuse(RefusalKind::Invalid, "the command is for another group"));
        }
        // Until it is removed it counts, also after its time: only with the removal does the watermark rise.
        if let Some(first) = self.recall(Memory::Request, mutation.request.0)? {
            return Ok(first.outcome);
        }
        // Neither refusal is remembered: the first one stands for ever, the second says nothing about the request.
        if let Err(refusal) = self.check_issued(mutation.issued) {
            return Ok(Outcome::Refused(refusal));
        }
        let outcome = self.decide_new(mutation)?;
        self.remember_request(mutation.request, &outcome, mutation.issued);
        Ok(outcome)
    }

    /// Lets expiry wait for so long: time has jumped further than any idle group's log does.
    pub(super) fn hold_expiry(&mut self, gap_ms: u64) {
        let held = self.shard.record.expiry_held_ms.unwrap_or(0).saturating_add(gap_ms);
        self.shard.record.expiry_held_ms = Some(held);
        self.expiry_now = self.now.before(held);
    }

    fn confirm_time(&mut self) -> Outcome {
        self.shard.record.expiry_held_ms = None;
        self.expiry_now = self.now;
        Outcome::Done
    }

    fn decide_new(&mut self, mutation: &Mutation) -> Result<Outcome, StateError> {
        let Some(token) = &mutation.token else {
            return self.decide_unfenced(mutation);
        };
        let known = self.recall(Memory::Token, token.scope)?;
        if let Some(first) = self.valid(&known) {
            if first.parameters == Some(token.parameters) {
                return Ok(Outcome::Replayed(Box::new(first.outcome.clone())));
            }
            if token.strict {
                return Ok(refuse(RefusalKind::TokenMismatch, "the token came with other parameters before"));
            }
        }
        let outcome = self.decide_unfenced(mutation)?;
        self.remember_token(token, &outcome, known);
        Ok(outcome)
    }

    fn decide_unfenced(&mut self, mutation: &Mutation) -> Result<Outcome, StateError> {
        if let Some(writer) = mutation.writer
            && let Err(refusal) = self.check_fence(writer)
        {
            return Ok(Outcome::Refused(refusal));
        }
        self.execute(mutation.request, &mutation.command)
    }

    fn execute(&mut self, request: RequestId, command: &Command) -> Result<Outcome, StateError> {
        match command {
            Command::PutObject(put) => self.put_object(request, put),
            Command::DeleteObject(delete) => self.delete_object(delete),
            Command::CreateUpload(create) => self.create_upload(request, create),
            Command::PutPart(put) => self.put_part(request, put),
            Command::CompleteUpload(complete) => self.complete_upload(request, complete),
            Command::AbortUpload(abort) => self.abort_upload(abort),
            Command::OpenBucket(bucket) => self.open_bucket(*bucket, 0),
            Command::CloseBucket(bucket) => self.close_bucket(*bucket, 0),
            Command::OpenAttempt(change) => self.open_bucket(change.bucket, change.attempt),
            Command::CloseAttempt(change) => self.close_bucket(change.bucket, change.attempt),
            Command::FillIn(filled) => self.fill_in(filled),
            Command::FinishDeletes(finish) => self.finish_deletes(finish),
            Command::RaiseFence(writer) => {
                let fence = &mut self.shard.record.fence;
                *fence = (*fence).max(*writer);
                Ok(Outcome::Done)
            }
            Command::TakeApart => self.take_apart(),
            Command::RaiseRules(rules) => Ok(self.raise_rules(*rules)),
            Command::ConfirmTime => Ok(self.confirm_time()),
            Command::CreateBucket(create) => self.create_bucket(create),
            Command::ActivateBucket(bucket) => self.activate_bucket(*bucket),
            Command::BeginDeleteBucket(bucket) => self.begin_delete_bucket(*bucket),
            Command::KeepBucket(bucket) => self.keep_bucket(*bucket),
            Command::RemoveBucket(bucket) => self.remove_bucket(*bucket),
            Command::RegisterWriter(node) => self.register_writer(*node),
            Command::Found(founding) => self.found(founding),
            Command::RegisterNode(register) => self.register_node(register),
            Command::RegisterDisk(disk) => self.register_disk(disk),
            Command::AnnounceAddress(announced) => self.announce_address(announced),
            Command::SetNodeState(set) => self.set_node_state(set),
            Command::SetDiskState(set) => self.set_disk_state(set),
            Command::ChangePlacement(change) => self.change_placement(change),
            Command::SetVoters(set) => self.set_voters(set),
            Command::CreateAccessKey(key) => self.create_access_key(key),
            Command::RevokeAccessKey(id) => self.revoke_access_key(id),
            Command::CreateJoinToken(token) => self.create_join_token(token),
            Command::ConsumeJoinToken(consume) => self.consume_join_token(consume),
            Command::RecordVoter(voter) => self.record_voter(voter),
            Command::ActivateAttempt(change) => self.activate_attempt(change),
            Command::BeginDeleteAttempt(bucket) => self.begin_delete_attempt(*bucket),
            Command::ReopenBucket(change) => self.reopen_bucket(change),
            Command::RemoveAttempt(change) => self.remove_attempt(change),
            Command::AdmitNode(admit) => self.admit_node(admit),
            Command::RevokeJoinToken(hash) => self.revoke_join_token(hash),
            Command::RecordCertificate(certificate) => self.record_certificate(certificate),
            Command::RevokeCertificate(serial) => self.revoke_certificate(*serial),
            Command::DenyNode(deny) => self.deny_node(deny),
        }
    }

    /// Decides by later rules from the next mutation on. Entries before it keep theirs, so that a
    /// replica that applies an old log again decides as those that have flushed it long ago.
    fn raise_rules(&mut self, rules: u32) -> Outcome {
        if rules > RULES_STRICT {
            return refuse(RefusalKind::Invalid, format!("rules {rules} are not known here"));
        }
        let known = &mut self.shard.record.rules;
        *known = (*known).max(Some(rules));
        Outcome::Done
    }

    /// Whether the group has been told to decide by these rules.
    pub(super) fn follows(&self, rules: u32) -> bool {
        self.shard.record.rules.unwrap_or(0) >= rules
    }

    /// Checks a writer against the fence (I2).
    pub(super) fn check_fence(&self, writer: WriterId) -> Result<(), Refusal> {
        let fence = self.shard.record.fence;
        if writer < fence {
            return Err(refusal(RefusalKind::WriterFenced, format!("{writer} is below the fence {fence}")));
        }
        Ok(())
    }

    /// Returns the value under a key as the entry's changes so far leave it.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.batch.get(family, key) {
            Some(change) => Ok(change.map(<[u8]>::to_vec)),
            None => self.view.get(family, key),
        }
    }

    /// Reads the record under a key.
    pub(super) fn read<T: Wire>(&self, family: Family, key: &[u8]) -> Result<Option<T>, StateError> {
        self.get(family, key)?.map(|row| rows::decode(family, &row)).transpose()
    }

    /// Reads the record under a key, to be rewritten in place.
    pub(super) fn read_kept<T: Record>(&self, family: Family, key: &[u8]) -> Result<Option<Kept<T>>, StateError> {
        self.get(family, key)?.map(|row| Kept::decode(family, &row)).transpose()
    }

    /// Puts a record under a key.
    pub(super) fn put<T: Wire>(&mut self, family: Family, key: Vec<u8>, record: &T) {
        self.batch.put(family, key, rows::encode(record));
    }

    /// Returns up to `limit` rows of a range as the entry's changes so far leave them.
    pub(super) fn scan(&self, family: Family, range: &KeyRange, limit: usize) -> Result<Vec<Row>, StateError> {
        let mut found = Vec::new();
        self.each(family, range, |key, value| {
            if found.len() < limit {
                found.push((key.to_vec(), value.to_vec()));
            }
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    /// Shows the rows of a range as the entry's changes so far leave them, for as long as `visit` wants more.
    pub(super) fn each(
        &self,
        family: Family,
        range: &KeyRange,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StateError>,
    ) -> Result<(), StateError> {
        let mut cursor = self.view.cursor(family, range)?;
        let in_range = |key: &&Vec<u8>| range.end.as_ref().is_none_or(|end| *key < end);
        let mut changes = self.batch.family(family).range(range.start.clone()..);
        let mut change = changes.next().filter(|(key, _)| in_range(key));
        let mut more = true;
        while more {
            let (changed, replaces) = match (change, cursor.item()) {
                (None, None) => break,
                (Some((key, value)), Some((at, _))) if key.as_slice() <= at => (Some((key, value)), key == at),
                (Some((key, value)), None) => (Some((key, value)), false),
                (_, Some((at, value))) => {
                    more = visit(at, value)?;
                    (None, true)
                }
            };
            if let Some((key, value)) = changed {
                if let Some(value) = value {
                    more = visit(key, value)?;
                }
                change = changes.next().filter(|(key, _)| in_range(key));
            }
            if replaces {
                cursor.step()?;
            }
        }
        Ok(())
    }

    /// Returns the open bucket's row, to be changed; the refusal where the shard does not serve it.
    pub(super) fn bucket(&mut self, bucket: BucketId) -> Decided<&mut Kept<OpenBucketRow>> {
        let row = &mut self.load_bucket(bucket)?.now;
        Ok(row.as_mut().ok_or_else(|| refusal(RefusalKind::NoSuchBucket, format!("bucket {bucket} is not open here"))))
    }

    fn load_bucket(&mut self, bucket: BucketId) -> Result<&mut Bucket, StateError> {
        if let Entry::Vacant(place) = self.buckets.entry(bucket) {
            let row = self.view.get(Family::State, &keys::open_bucket(bucket))?;
            let before = row.map(|row| Kept::decode(Family::State, &row)).transpose()?;
            place.insert(Bucket { now: before.clone(), before });
        }
        Ok(self.buckets.get_mut(&bucket).expect("put there in the lines above"))
    }

    /// Opens a bucket or, with none, closes it.
    pub(super) fn set_bucket(&mut self, bucket: BucketId, row: Option<OpenBucketRow>) -> Result<(), StateError> {
        self.load_bucket(bucket)?.now = row.map(Kept::new);
        Ok(())
    }
}

/// A row's key and value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

const EMPTY_SHARD: ShardRow = ShardRow {
    fence: WriterId(0),
    objects: 0,
    object_bytes: 0,
    uploads: 0,
    deferred_deletes: 0,
    fill_ins: 0,
    requests: 0,
    tokens: 0,
    finished_uploads: 0,
    requests_due: None,
    tokens_due: None,
    uploads_due: None,
    rules: None,
    discards: None,
    forgotten: None,
    expiry_held_ms: None,
};
