//! Buckets in an object shard: which ones it serves.
//!
//! The system group knows buckets by name; a shard only knows which ids are open. A bucket that is
//! not open is refused for reads and writes alike, so that a PUT and a DeleteBucket that race are
//! decided by their order in this log (B3).

use super::rows::OpenBucketRow;
use super::store::{Family, View};
use super::work::{Work, refuse};
use super::{StateError, keys, rows};
use plinth_protocol::BucketId;
use plinth_protocol::meta::{Outcome, RefusalKind};

/// Open uploads aborted per read while a bucket closes.
const UPLOADS_AT_ONCE: usize = 1_000;

impl<V: View> Work<'_, V> {
    pub(super) fn open_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        if self.bucket(bucket)?.is_err() {
            self.set_bucket(bucket, Some(OpenBucketRow { opened: self.now, objects: 0, bytes: 0 }))?;
        }
        Ok(Outcome::Done)
    }

    pub(super) fn close_bucket(&mut self, bucket: BucketId) -> Result<Outcome, StateError> {
        let objects = match self.bucket(bucket)? {
            Ok(row) => row.record.objects,
            Err(_) => return Ok(Outcome::Done),
        };
        if objects > 0 {
            return Ok(refuse(RefusalKind::BucketNotEmpty, format!("{objects} objects are left")));
        }
        loop {
            let uploads = self.scan(Family::Uploads, &keys::prefix(bucket, ""), UPLOADS_AT_ONCE)?;
            for (place, _) in &uploads {
                let parsed = keys::parse(place).map_err(rows::unreadable(Family::Uploads))?;
                let upload = keys::parse_upload(parsed.suffix).map_err(rows::unreadable(Family::Uploads))?;
                self.drop_upload(bucket, &parsed.key, upload)?;
            }
            if uploads.len() < UPLOADS_AT_ONCE {
                break;
            }
        }
        self.set_bucket(bucket, None)?;
        Ok(Outcome::Done)
    }
}
