//! Buckets: rows in group 0 that every shard has to know of. How they come and go is [`crate::saga`]'s to say.

use crate::client::{Client, unexpected};
use crate::saga::{self, Groups};
use plinth_protocol::meta::{BucketsPage, BucketsQuery, Command, CreateBucket, Outcome, Query, Reply};
use plinth_protocol::object::{BucketRow, BucketState};
use plinth_protocol::{BucketId, Failure, GROUP_SYSTEM, GroupId};
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
        let bucket = BucketId(self.inner.chance.u64());
        let create = CreateBucket { bucket, name: name.into(), owner: owner.into(), location, numbered: true };
        saga::create(&self.groups(), create).await
    }

    /// Deletes an empty bucket from every shard and group 0. The outcome is `Done`, or the refusal
    /// `NoSuchBucket`, also where another bucket has the name by now, or `BucketNotEmpty`.
    pub async fn delete_bucket(&self, name: &str, bucket: BucketId) -> Result<Outcome, Failure> {
        let outcome = saga::delete(&self.groups(), name, bucket).await;
        self.inner.buckets.forget(name);
        outcome
    }

    /// Takes a bucket that stands half-way to where it was going.
    pub(crate) async fn resume_bucket(&self, row: BucketRow) -> Result<(), Failure> {
        tracing::info!(bucket = %row.bucket, state = ?row.state, "bucket found half-way: going on");
        saga::finish(&self.groups(), row).await.map(drop)
    }

    /// Returns the groups as a saga sees them, for [`BUCKET_TIMEOUT`] from now on.
    fn groups(&self) -> ClusterGroups<'_> {
        ClusterGroups { client: self, deadline: Instant::now() + BUCKET_TIMEOUT }
    }

    async fn bucket_row(&self, name: &str, deadline: Instant) -> Result<Option<BucketRow>, Failure> {
        match self.query(GROUP_SYSTEM, Query::Bucket(name.into()), deadline).await? {
            Reply::Bucket(row) => Ok(Some(row)),
            Reply::Absent(_) => Ok(None),
            _ => Err(unexpected("Bucket")),
        }
    }
}

/// The groups of a cluster, until a deadline.
struct ClusterGroups<'a> {
    client: &'a Client,
    deadline: Instant,
}

impl Groups for ClusterGroups<'_> {
    async fn mutate(&self, group: GroupId, command: Command) -> Result<Outcome, Failure> {
        self.client.mutate(group, command, None, self.deadline).await
    }

    async fn bucket_row(&self, name: &str) -> Result<Option<BucketRow>, Failure> {
        self.client.bucket_row(name, self.deadline).await
    }

    fn shard_groups(&self) -> Vec<GroupId> {
        self.client.chart().shard_groups().into_iter().collect()
    }
}
