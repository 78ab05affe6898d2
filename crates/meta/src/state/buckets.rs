//! Buckets in an object shard: which ones it serves.
//!
//! The system group knows buckets by name; a shard only knows which ids are open. A bucket that is
//! not open is refused for reads and writes alike, so that a PUT and a DeleteBucket that race are
//! decided by their order in this log (B3).
//!
//! Group 0 numbers the changes of buckets. A shard keeps the highest number that it has seen of a bucket, and refuses
//! what comes late: the opening of a creation that a deletion has overtaken never opens a removed bucket again.

use super::rows::{ClosedBucketRow, OpenBucketRow};
use super::store::{Family, View};
use super::work::{Decided, Work, decided, refusal, refuse};
use super::{StateError, keys, rows};
use plinth_protocol::BucketId;
use plinth_protocol::meta::{Outcome, RULES_STRICT, RefusalKind};

/// Most open uploads that the entry which closes a bucket drops itself; few in unit tests, so that every suite meets
/// both ways.
const UPLOADS_INLINE_MAX: usize = if cfg!(test) { 1 } else { 16 };

impl<V: View> Work<'_, V> {
    /// Opens a bucket for a change, unless a later one has been here.
    pub(super) fn open_bucket(&mut self, bucket: BucketId, attempt: u64) -> Result<Outcome, StateError> {
        decided!(self.check_attempt(bucket, attempt));
        match self.bucket(bucket)? {
            // What came without a number leaves none.
            Ok(row) if attempt > 0 => row.record.attempt = Some(attempt),
            Ok(_) => {}
            Err(_) => {
                let (attempt, opened) = ((attempt > 0).then_some(attempt), self.opening_time(bucket)?);
                self.set_bucket(bucket, Some(OpenBucketRow { opened, objects: 0, bytes: 0, attempt }))?;
                self.batch.delete(Family::State, keys::closed_bucket(bucket));
            }
        }
        Ok(Outcome::Done)
    }

    /// Refuses a change that is older than one that has opened or closed the bucket here.
    fn check_attempt(&mut self, bucket: BucketId, attempt: u64) -> Decided<()> {
        let known = match self.bucket(bucket)? {
            Ok(row) => row.record.attempt,
            Err(_) => {
                let closed: Option<ClosedBucketRow> = self.read(Family::State, &keys::closed_bucket(bucket))?;
                closed.map(|row| row.attempt)
            }
        };
        let known = known.unwrap_or(0);
        Ok(match attempt < known {
            true => Err(refusal(RefusalKind::StaleAttempt, format!("change {attempt} comes after change {known}"))),
            false => Ok(()),
        })
    }

    pub(super) fn close_bucket(&mut self, bucket: BucketId, attempt: u64) -> Result<Outcome, StateError> {
        decided!(self.check_attempt(bucket, attempt));
        if attempt > 0 {
            return self.close_attempt(bucket, attempt);
        }
        self.close_open_bucket(bucket)
    }

    /// Closes a bucket and remembers the change by which that was done, also where it was never open: what
    /// would open it may be on its way.
    fn close_attempt(&mut self, bucket: BucketId, attempt: u64) -> Result<Outcome, StateError> {
        let outcome = self.close_open_bucket(bucket)?;
        if outcome == Outcome::Done {
            self.put(Family::State, keys::closed_bucket(bucket), &ClosedBucketRow { attempt });
        }
        Ok(outcome)
    }

    fn close_open_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let objects = match self.bucket(bucket)? {
            Ok(row) => row.record.objects,
            Err(_) => return Ok(Outcome::Done),
        };
        if objects > 0 {
            return Ok(refuse(RefusalKind::BucketNotEmpty, format!("{objects} objects are left")));
        }
        self.drop_uploads(bucket)?;
        self.set_bucket(bucket, None)?;
        Ok(Outcome::Done)
    }

    /// Removes all open uploads of a bucket: at once where they are few, else as background work. They are gone for
    /// readers with the bucket, and stay so when it is opened again.
    fn drop_uploads(&mut self, bucket: BucketId) -> Result<(), StateError> {
        let range = keys::prefix(bucket, "");
        let limit = if self.follows(RULES_STRICT) { UPLOADS_INLINE_MAX + 1 } else { usize::MAX };
        let uploads = self.scan(Family::Uploads, &range, limit)?;
        if uploads.len() == limit {
            return self.discard_bucket(bucket);
        }
        for (place, _) in &uploads {
            let parsed = keys::parse(place).map_err(rows::unreadable(Family::Uploads))?;
            let upload = keys::parse_upload(parsed.suffix).map_err(rows::unreadable(Family::Uploads))?;
            self.drop_upload(bucket, &parsed.key, upload)?;
        }
        Ok(())
    }
}
