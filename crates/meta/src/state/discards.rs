//! Heavy work put off: uploads of many parts, and buckets with many uploads, that a command has
//! dropped.
//!
//! The command that drops them takes away what readers go by (the upload's row, the object's row, the
//! bucket's openness) and writes one row; `TakeApart` then removes the part rows a bounded number at a
//! time, and queues their stripes in the batch in which the rows go (I4). The retention of a stripe
//! counts from there: later than the command, never earlier.
//!
//! What a discarded upload still owns is decided when it is taken apart, from the rows as they are
//! then: a part that the key's current object lists stays, whatever the row says.

use super::objects::Holder;
use super::rows::{self, DiscardedBucket, DiscardedUpload};
use super::store::{Family, KeyRange, View};
use super::work::{Row, Work, count_down, count_up};
use super::{StateError, keys};
use bytes::Bytes;
use plinth_protocol::meta::{Outcome, RULES_STRICT};
use plinth_protocol::object::{Body, ObjectBody, ObjectRow, PartRow, UploadRow};
use plinth_protocol::{BucketId, HybridTime, UploadId};

/// Most row operations that the commands of one entry spend on taking things apart themselves.
const INLINE_ROWS_MAX: usize = 10_000;
/// Most parts that a command removes itself; few in unit tests, so that every suite meets both ways.
pub(super) const PARTS_INLINE_MAX: usize = if cfg!(test) { 2 } else { 64 };
/// Most bytes of their rows.
const PARTS_INLINE_BYTES_MAX: usize = 256 << 10;
/// Row operations of one `TakeApart`.
pub(super) const TAKE_APART_ROWS_MAX: usize = 5_000;
/// Bytes of part rows that one `TakeApart` reads, but for the last one.
const TAKE_APART_BYTES_MAX: usize = 2 << 20;
/// Discarded uploads or buckets that one `TakeApart` looks at.
const DISCARDS_MAX: usize = 256;

/// What is left of a command's room.
struct Room {
    rows: usize,
    bytes: usize,
}

impl Room {
    fn spend(&mut self, rows: usize, bytes: usize) {
        self.rows = self.rows.saturating_sub(rows);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

impl<V: View> Work<'_, V> {
    /// Removes all part rows of an upload and queues their stripes: at once where they are few, else as background work.
    pub(super) fn drop_parts(&mut self, bucket: BucketId, key: &str, upload: UploadId) -> Result<(), StateError> {
        let range = KeyRange::of_prefix(&keys::upload(bucket, key, upload));
        let bounded = self.follows(RULES_STRICT);
        let (mut parts, mut bytes) = (Vec::new(), 0);
        let mut few = true;
        self.each(Family::Parts, &range, |place, row| {
            bytes += row.len();
            few = !bounded || (parts.len() < PARTS_INLINE_MAX && bytes <= PARTS_INLINE_BYTES_MAX);
            if few {
                parts.push((place.to_vec(), row.to_vec()));
            }
            Ok(few)
        })?;
        if bounded && !(few && self.has_room(&parts)) {
            return self.discard_upload(bucket, key, upload);
        }
        parts.into_iter().try_for_each(|part| self.drop_part(bucket, key, upload, part))
    }

    /// Removes the part rows with these numbers, which a finished upload does not list.
    pub(super) fn drop_unlisted(
        &mut self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        numbers: &[u16],
    ) -> Result<(), StateError> {
        if self.follows(RULES_STRICT) && numbers.len() > PARTS_INLINE_MAX {
            return self.discard_upload(bucket, key, upload);
        }
        for number in numbers {
            let place = keys::part(bucket, key, upload, *number);
            if let Some(row) = self.get(Family::Parts, &place)? {
                self.drop_part(bucket, key, upload, (place, row))?;
            }
        }
        Ok(())
    }

    fn drop_part(&mut self, bucket: BucketId, key: &str, upload: UploadId, part: Row) -> Result<(), StateError> {
        let (place, row) = part;
        let number = keys::parse_part_number(&place).map_err(rows::unreadable(Family::Parts))?;
        let part: PartRow = rows::decode(Family::Parts, &row)?;
        self.free(Holder { bucket, key, part: Some((upload, number)) }, &part.body);
        self.batch.delete(Family::Parts, place);
        Ok(())
    }

    /// Takes the room for parts from what the entry may spend; returns whether there was enough.
    fn has_room(&mut self, parts: &[Row]) -> bool {
        // A part row with its stripes has at most one row more for each 32 bytes: what a stripe owes.
        let needed: usize = parts.iter().map(|(_, row)| 2 + row.len() / 32).sum();
        let fits = self.taken_apart + needed <= INLINE_ROWS_MAX;
        if fits {
            self.taken_apart += needed;
        }
        fits
    }

    fn discard_upload(&mut self, bucket: BucketId, key: &str, upload: UploadId) -> Result<(), StateError> {
        let place = keys::discarded_upload(bucket, key, upload);
        if self.get(Family::State, &place)?.is_none() {
            count_up(self.discards(), 1);
        }
        // From the first part on, also where a row was there: what was kept then may go now.
        self.put(Family::State, place, &DiscardedUpload { at: self.now, from: None });
        Ok(())
    }

    /// Leaves all uploads of a bucket that is being closed to background work.
    pub(super) fn discard_bucket(&mut self, bucket: BucketId) -> Result<(), StateError> {
        let place = keys::discarded_bucket(bucket);
        if self.get(Family::State, &place)?.is_none() {
            count_up(self.discards(), 1);
        }
        // No upload here was begun behind this time: entries have one time for all that they do.
        let opened = self.bucket(bucket)?.ok().map(|row| row.record.opened);
        let at = opened.map_or(self.now, |opened| self.now.max(opened));
        self.put(Family::State, place, &DiscardedBucket { at, after: None });
        Ok(())
    }

    /// Returns the time of an opening of a bucket: behind that of every upload that waits to be taken apart.
    pub(super) fn opening_time(&self, bucket: BucketId) -> Result<HybridTime, StateError> {
        let waiting: Option<DiscardedBucket> = self.read(Family::State, &keys::discarded_bucket(bucket))?;
        Ok(waiting.map_or(self.now, |row| self.now.max(HybridTime(row.at.0.saturating_add(1)))))
    }

    /// Returns whether an upload's parts wait to be taken apart.
    pub(super) fn is_discarded(&self, bucket: BucketId, key: &str, upload: UploadId) -> Result<bool, StateError> {
        Ok(self.get(Family::State, &keys::discarded_upload(bucket, key, upload))?.is_some())
    }

    fn discards(&mut self) -> &mut u64 {
        self.shard.record.discards.get_or_insert(0)
    }

    /// Takes apart what waits, within the bounds of one entry.
    pub(super) fn take_apart(&mut self) -> Result<Outcome, StateError> {
        let mut room = Room { rows: TAKE_APART_ROWS_MAX, bytes: TAKE_APART_BYTES_MAX };
        for (place, row) in self.scan(Family::State, &KeyRange::of_prefix(keys::DISCARDED_BUCKETS), DISCARDS_MAX)? {
            if room.is_spent() {
                return Ok(Outcome::Done);
            }
            self.take_bucket_apart(place, &row, &mut room)?;
        }
        for (place, row) in self.scan(Family::State, &KeyRange::of_prefix(keys::DISCARDED_UPLOADS), DISCARDS_MAX)? {
            if room.is_spent() {
                return Ok(Outcome::Done);
            }
            self.take_upload_apart(place, &row, &mut room)?;
        }
        Ok(Outcome::Done)
    }

    /// Makes discarded uploads of a discarded bucket's uploads.
    fn take_bucket_apart(&mut self, place: Vec<u8>, row: &[u8], room: &mut Room) -> Result<(), StateError> {
        let bucket = keys::parse_open_bucket(&place).map_err(rows::unreadable(Family::State))?;
        let mut discarded: DiscardedBucket = rows::decode(Family::State, row)?;
        let opened = self.bucket(bucket)?.ok().map(|row| row.record.opened);
        let mut range = keys::prefix(bucket, "");
        if let Some(after) = &discarded.after {
            range.start = [after, &[0][..]].concat();
        }
        let limit = room.rows.div_ceil(4);
        let uploads = self.scan(Family::Uploads, &range, limit)?;
        let done = uploads.len() < limit;
        for (place, row) in uploads {
            room.spend(4, row.len());
            discarded.after = Some(Bytes::copy_from_slice(&place));
            let upload: UploadRow = rows::decode(Family::Uploads, &row)?;
            if opened.is_some_and(|opened| upload.initiated >= opened) {
                continue; // Begun since the bucket was opened again.
            }
            let parsed = keys::parse(&place).map_err(rows::unreadable(Family::Uploads))?;
            let id = keys::parse_upload(parsed.suffix).map_err(rows::unreadable(Family::Uploads))?;
            self.discard_upload(bucket, &parsed.key, id)?;
            self.batch.delete(Family::Uploads, place);
            count_down(&mut self.shard.record.uploads, 1);
        }
        self.end_or_keep(place, done, &discarded);
        Ok(())
    }

    /// Removes the parts of a discarded upload that nothing lists.
    fn take_upload_apart(&mut self, place: Vec<u8>, row: &[u8], room: &mut Room) -> Result<(), StateError> {
        let mut discarded: DiscardedUpload = rows::decode(Family::State, row)?;
        let parsed = keys::parse(&place[1..]).map_err(rows::unreadable(Family::State))?;
        let upload = keys::parse_upload(parsed.suffix).map_err(rows::unreadable(Family::State))?;
        let (bucket, key) = (parsed.bucket, parsed.key.as_str());
        let listed = self.listed_numbers(bucket, key, upload)?;
        let mut range = KeyRange::of_prefix(&keys::upload(bucket, key, upload));
        range.start = keys::part(bucket, key, upload, discarded.from.unwrap_or(0));
        let (mut parts, mut done) = (Vec::new(), true);
        self.each(Family::Parts, &range, |place, row| {
            if room.is_spent() {
                done = false;
                return Ok(false);
            }
            let number = keys::parse_part_number(place).map_err(rows::unreadable(Family::Parts))?;
            discarded.from = Some(number.saturating_add(1));
            if listed.binary_search(&number).is_ok() {
                room.spend(1, row.len());
                return Ok(true);
            }
            room.spend(2 + row.len() / 32, row.len());
            parts.push((number, place.to_vec(), rows::decode::<PartRow>(Family::Parts, row)?));
            Ok(true)
        })?;
        let mut doomed = Vec::new();
        for (number, place, part) in parts {
            doomed.extend(self.forget_owed(Holder { bucket, key, part: Some((upload, number)) }, &part.body));
            self.batch.delete(Family::Parts, place);
        }
        self.doom(Holder { bucket, key, part: None }, doomed.into_iter());
        self.end_or_keep(place, done, &discarded);
        Ok(())
    }

    /// Returns the numbers of the parts, ascending, that the key's current object has of an upload.
    fn listed_numbers(&self, bucket: BucketId, key: &str, upload: UploadId) -> Result<Vec<u16>, StateError> {
        let place = keys::object(bucket, key);
        let row: Option<ObjectRow> = self.read(Family::Objects, &place)?;
        if row.is_none_or(|row| row.upload != Some(upload)) {
            return Ok(Vec::new());
        }
        let body: Option<ObjectBody> = self.read(Family::Bodies, &place)?;
        Ok(match body.map(|body| body.body) {
            Some(Body::Parts(spans)) => spans.into_iter().map(|span| span.number).collect(),
            _ => Vec::new(),
        })
    }

    fn end_or_keep<T: plinth_protocol::wire::Wire>(&mut self, place: Vec<u8>, done: bool, row: &T) {
        if done {
            self.batch.delete(Family::State, place);
            count_down(self.discards(), 1);
        } else {
            self.put(Family::State, place, row);
        }
    }
}
