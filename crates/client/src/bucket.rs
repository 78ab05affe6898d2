//! Buckets: rows in group 0 that every shard has to know of.
//!
//! A bucket comes and goes in steps, each a commit of its own in one group, each harmless when
//! repeated. The row's state in group 0 says which way it was going, so that whoever finds it
//! half-way can go on:
//!
//! | step   | create                          | delete                                            |
//! |--------|---------------------------------|---------------------------------------------------|
//! | 1      | row appears as `Opening`        | row becomes `Closing`                             |
//! | 2      | every shard opens the bucket    | every shard closes it, which proves it empty there |
//! | 3      | row becomes `Active`            | row goes; or, not empty: shards open again, `Active` |

use crate::client::{Client, unexpected};
use plinth_protocol::meta::{
    BucketsPage, BucketsQuery, Command, CreateBucket, Outcome, Query, Refusal, RefusalKind, Reply,
};
use plinth_protocol::object::{BucketRow, BucketState};
use plinth_protocol::{BucketId, Failure, FailureKind, GROUP_SYSTEM};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a whole saga, or one look at a bucket, may take.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(15);
/// Most buckets remembered; beyond them the memory starts anew.
const CACHE_ENTRIES_MAX: usize = 10_000;
/// How long a bucket is remembered. The shard refuses a bucket that is closed, so that an old entry
/// costs a wasted request, not a wrong answer.
const CACHE_FOR: Duration = Duration::from_secs(10);

/// Buckets that were seen active, by name. What was absent is never remembered.
#[derive(Default)]
pub(crate) struct BucketCache {
    entries: Mutex<HashMap<String, (Arc<BucketRow>, Instant)>>,
}

impl BucketCache {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Arc<BucketRow>, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &str) -> Option<Arc<BucketRow>> {
        let entries = self.lock();
        let (row, seen) = entries.get(name)?;
        (seen.elapsed() < CACHE_FOR).then(|| row.clone())
    }

    fn put(&self, row: Arc<BucketRow>) {
        let mut entries = self.lock();
        if entries.len() >= CACHE_ENTRIES_MAX {
            entries.clear();
        }
        entries.insert(row.name.clone(), (row, Instant::now()));
    }

    fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Forgets everything: a shard refused a bucket that was thought to be there.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}

impl Client {
    /// Returns an active bucket by name, from memory of the last seconds where possible. When a shard
    /// answers `NoSuchBucket`, that memory has been dropped: ask again, once, and see whether the
    /// bucket's id is another one.
    pub async fn bucket(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        match self.inner.buckets.get(name) {
            Some(row) => Ok(Some(row)),
            None => self.bucket_now(name).await,
        }
    }

    /// Returns an active bucket by name as group 0 has it now.
    pub async fn bucket_now(&self, name: &str) -> Result<Option<Arc<BucketRow>>, Failure> {
        let row = self.bucket_row(name, Instant::now() + BUCKET_TIMEOUT).await?;
        let Some(row) = row.filter(|row| row.state == BucketState::Active).map(Arc::new) else {
            self.inner.buckets.forget(name);
            return Ok(None);
        };
        self.inner.buckets.put(row.clone());
        Ok(Some(row))
    }

    /// Returns a page of buckets in name order; those half-way in or out are among them, with their state.
    pub async fn buckets(&self, query: BucketsQuery) -> Result<BucketsPage, Failure> {
        let deadline = Instant::now() + BUCKET_TIMEOUT;
        match self.query(GROUP_SYSTEM, Query::Buckets(query), deadline).await? {
            Reply::Buckets(page) => Ok(page),
            _ => Err(unexpected("Buckets")),
        }
    }

    /// Creates a bucket in group 0 and every shard. The outcome is the active row, or the refusal
    /// `BucketExists` or `BucketOwnedByYou`.
    pub async fn create_bucket(&self, name: &str, owner: &str, location: Option<String>) -> Result<Outcome, Failure> {
        let deadline = Instant::now() + BUCKET_TIMEOUT;
        let bucket = BucketId(self.inner.chance.u64());
        let command = || CreateBucket { bucket, name: name.into(), owner: owner.into(), location: location.clone() };
        let mut outcome = self.mutate(GROUP_SYSTEM, Command::CreateBucket(command()), None, deadline).await?;
        if taken(&outcome) {
            // The row may stand there because somebody crashed half-way: then finish that first.
            let Some(row) = self.bucket_row(name, deadline).await? else { return Ok(outcome) };
            match row.state {
                BucketState::Active => return Ok(outcome),
                BucketState::Opening if row.owner == owner => outcome = Outcome::Bucket(row),
                BucketState::Opening => return Ok(outcome),
                BucketState::Closing => {
                    if self.finish_delete(row.bucket, deadline).await? != Outcome::Done {
                        return Ok(outcome);
                    }
                    outcome = self.mutate(GROUP_SYSTEM, Command::CreateBucket(command()), None, deadline).await?;
                }
            }
        }
        match outcome {
            Outcome::Bucket(row) => self.finish_create(row, deadline).await,
            refused => Ok(refused),
        }
    }

    /// Deletes an empty bucket from every shard and group 0. The outcome is `Done`, or the refusal
    /// `NoSuchBucket`, also where another bucket has the name by now, or `BucketNotEmpty`.
    pub async fn delete_bucket(&self, name: &str, bucket: BucketId) -> Result<Outcome, Failure> {
        let deadline = Instant::now() + BUCKET_TIMEOUT;
        let row = self.bucket_row(name, deadline).await?.filter(|row| row.bucket == bucket);
        let Some(row) = row else {
            self.inner.buckets.forget(name);
            return Ok(no_such_bucket(name));
        };
        match row.state {
            BucketState::Opening => return Ok(no_such_bucket(name)),
            BucketState::Closing => {}
            BucketState::Active => {
                let begun = self.mutate(GROUP_SYSTEM, Command::BeginDeleteBucket(row.bucket), None, deadline).await?;
                if let Outcome::Refused(_) = begun {
                    return Ok(begun);
                }
            }
        }
        let outcome = self.finish_delete(row.bucket, deadline).await;
        self.inner.buckets.forget(name);
        outcome
    }

    /// Takes a bucket that stands half-way to where it was going.
    pub(crate) async fn resume_bucket(&self, row: BucketRow) -> Result<(), Failure> {
        let deadline = Instant::now() + BUCKET_TIMEOUT;
        tracing::info!(bucket = %row.bucket, state = ?row.state, "bucket found half-way: going on");
        match row.state {
            BucketState::Opening => self.finish_create(row, deadline).await.map(drop),
            BucketState::Closing => self.finish_delete(row.bucket, deadline).await.map(drop),
            BucketState::Active => Ok(()),
        }
    }

    async fn bucket_row(&self, name: &str, deadline: Instant) -> Result<Option<BucketRow>, Failure> {
        match self.query(GROUP_SYSTEM, Query::Bucket(name.into()), deadline).await? {
            Reply::Bucket(row) => Ok(Some(row)),
            Reply::Absent(_) => Ok(None),
            _ => Err(unexpected("Bucket")),
        }
    }

    /// Opens the bucket in every shard, then shows it.
    async fn finish_create(&self, row: BucketRow, deadline: Instant) -> Result<Outcome, Failure> {
        self.open_in_shards(row.bucket, deadline).await?;
        match self.mutate(GROUP_SYSTEM, Command::ActivateBucket(row.bucket), None, deadline).await? {
            Outcome::Bucket(row) => Ok(Outcome::Bucket(row)),
            Outcome::Done => Ok(Outcome::Bucket(BucketRow { state: BucketState::Active, ..row })),
            other => Ok(other),
        }
    }

    async fn open_in_shards(&self, bucket: BucketId, deadline: Instant) -> Result<(), Failure> {
        for group in self.chart().shard_groups() {
            if let Outcome::Refused(refusal) = self.mutate(group, Command::OpenBucket(bucket), None, deadline).await? {
                return Err(Failure::new(FailureKind::Internal, format!("{group} does not open: {}", refusal.text)));
            }
        }
        Ok(())
    }

    /// Closes the bucket in every shard, then removes its row; or opens and keeps it where a shard
    /// still has objects.
    async fn finish_delete(&self, bucket: BucketId, deadline: Instant) -> Result<Outcome, Failure> {
        for group in self.chart().shard_groups() {
            let refusal = match self.mutate(group, Command::CloseBucket(bucket), None, deadline).await {
                Ok(Outcome::Refused(refusal)) if refusal.kind == RefusalKind::BucketNotEmpty => refusal,
                Ok(Outcome::Refused(refusal)) if refusal.kind == RefusalKind::NoSuchBucket => continue,
                Ok(Outcome::Refused(refusal)) => return Ok(Outcome::Refused(refusal)),
                Ok(_) => continue,
                Err(failure) if failure.kind == FailureKind::Conflict => {
                    Refusal { kind: RefusalKind::BucketNotEmpty, text: failure.text }
                }
                Err(failure) => return Err(failure),
            };
            // Open again before the row says so: a crash between the two leaves a row that is still
            // closing, which is resumed, not an active bucket that a shard refuses.
            self.open_in_shards(bucket, deadline).await?;
            self.mutate(GROUP_SYSTEM, Command::KeepBucket(bucket), None, deadline).await?;
            return Ok(Outcome::Refused(refusal));
        }
        match self.mutate(GROUP_SYSTEM, Command::RemoveBucket(bucket), None, deadline).await? {
            // Somebody else took the same way and was faster.
            Outcome::Refused(refusal) if refusal.kind == RefusalKind::NoSuchBucket => Ok(Outcome::Done),
            // Somebody else found it not empty and kept it: our closing must not stand.
            Outcome::Refused(refusal) => {
                self.open_in_shards(bucket, deadline).await?;
                Ok(Outcome::Refused(refusal))
            }
            _ => Ok(Outcome::Done),
        }
    }
}

fn taken(outcome: &Outcome) -> bool {
    let kinds = [RefusalKind::BucketExists, RefusalKind::BucketOwnedByYou, RefusalKind::AlreadyExists];
    matches!(outcome, Outcome::Refused(refusal) if kinds.contains(&refusal.kind))
}

fn no_such_bucket(name: &str) -> Outcome {
    Outcome::Refused(Refusal { kind: RefusalKind::NoSuchBucket, text: format!("no bucket {name}") })
}
