//! Multipart uploads: open, add parts, complete, abort.
//!
//! Part rows are keyed by upload, and stay there when the upload becomes an object: Complete
//! writes the object's two rows and moves no data.

use super::multipart;
use super::objects::{Holder, check_expectation, same_etag};
use super::store::{Family, KeyRange, View};
use super::work::{Decided, Work, count_down, count_up, decided, refusal, refuse};
use super::{StateError, keys, rows};
use bytes::Bytes;
use plinth_protocol::meta::{
    AbortUpload, CompletePart, CompleteUpload, CreateUpload, Outcome, PutPart, RULES_STRICT, Refusal, RefusalKind,
};
use plinth_protocol::object::{
    Body, Checksum, ChecksumAlgorithm, ChecksumKind, Etag, OBJECT_BYTES_MAX, ObjectBody, ObjectRow, PART_NUMBER_MAX,
    PartRow, PartSpan, UploadRow, check_key,
};
use plinth_protocol::wire::{Fields, Record, Wire, WireError};
use plinth_protocol::{BucketId, RequestId, UploadId};
use std::collections::BTreeMap;

/// Smallest part but the last, in bytes (S3).
pub(super) const PART_BYTES_MIN: u64 = 5 << 20;

fn no_such_upload() -> Outcome {
    refuse(RefusalKind::NoSuchUpload, "the upload was completed, aborted, or never was")
}

impl<V: View> Work<'_, V> {
    pub(super) fn create_upload(&mut self, request: RequestId, create: &CreateUpload) -> Result<Outcome, StateError> {
        decided!(self.bucket(create.bucket));
        if check_key(&create.key).is_err() {
            return Ok(refuse(RefusalKind::Invalid, "a key has 1 to 1,024 bytes"));
        }
        let kind = match (create.algorithm, create.kind) {
            (Some(algorithm), asked) => match multipart::kind_of(algorithm, asked) {
                Some(kind) => Some(kind),
                None => {
                    return Ok(refuse(RefusalKind::InvalidChecksum, "algorithm and checksum type do not go together"));
                }
            },
            (None, Some(_)) => return Ok(refuse(RefusalKind::InvalidChecksum, "a checksum type without algorithm")),
            (None, None) => None,
        };
        let key = keys::upload(create.bucket, &create.key, create.upload);
        let taken = || Ok(refuse(RefusalKind::AlreadyExists, "the upload id is taken"));
        if let Some(open) = self.open_upload(create.bucket, &create.key, create.upload)? {
            return if open.request == request { Ok(Outcome::Done) } else { taken() };
        }
        // Rows of an upload of this id wait to be taken apart, or are those of the object that it became.
        if self.follows(RULES_STRICT) && self.has_rows(create.bucket, &create.key, create.upload)? {
            return taken();
        }
        let opened = decided!(self.bucket(create.bucket)).record.opened;
        let row = UploadRow {
            initiated: self.now.max(opened),
            headers: create.headers.clone(),
            algorithm: create.algorithm,
            kind,
            request,
        };
        self.put(Family::Uploads, key, &row);
        count_up(&mut self.shard.record.uploads, 1);
        Ok(Outcome::Done)
    }

    fn has_rows(&self, bucket: BucketId, key: &str, upload: UploadId) -> Result<bool, StateError> {
        let object: Option<ObjectRow> = self.read(Family::Objects, &keys::object(bucket, key))?;
        Ok(object.is_some_and(|row| row.upload == Some(upload))
            || self.get(Family::Uploads, &keys::upload(bucket, key, upload))?.is_some()
            || self.is_discarded(bucket, key, upload)?)
    }

    pub(super) fn put_part(&mut self, request: RequestId, put: &PutPart) -> Result<Outcome, StateError> {
        decided!(self.bucket(put.bucket));
        if put.number == 0 || put.number > PART_NUMBER_MAX {
            return Ok(refuse(RefusalKind::Invalid, "part numbers are 1 to 10,000"));
        }
        let Some(upload) = self.open_upload(put.bucket, &put.key, put.upload)? else {
            return Ok(no_such_upload());
        };
        if let Err(refusal) = check_part(&upload, &put.part) {
            return Ok(Outcome::Refused(refusal));
        }
        if let Err(refusal) = self.check_body(&put.part.body, put.part.size_bytes) {
            return Ok(Outcome::Refused(refusal));
        }
        let holder = Holder { bucket: put.bucket, key: &put.key, part: Some((put.upload, put.number)) };
        let key = holder.row();
        if let Some(old) = self.read::<PartRow>(Family::Parts, &key)? {
            // A late copy of the same request: its stripes are the ones referred to, not garbage.
            if old.request == request {
                return Ok(Outcome::Part(old));
            }
            self.free(holder, &old.body);
        }
        let row = PartRow { modified: self.now, request, ..put.part.clone() };
        self.put(Family::Parts, key, &row);
        self.owe_fragments(holder, &row.body);
        Ok(Outcome::Part(row))
    }

    pub(super) fn abort_upload(&mut self, abort: &AbortUpload) -> Result<Outcome, StateError> {
        decided!(self.bucket(abort.bucket));
        if self.open_upload(abort.bucket, &abort.key, abort.upload)?.is_none() {
            return Ok(no_such_upload());
        }
        self.drop_upload(abort.bucket, &abort.key, abort.upload)?;
        Ok(Outcome::Done)
    }

    /// Removes an open upload with its parts.
    pub(super) fn drop_upload(&mut self, bucket: BucketId, key: &str, upload: UploadId) -> Result<(), StateError> {
        self.drop_parts(bucket, key, upload)?;
        self.batch.delete(Family::Uploads, keys::upload(bucket, key, upload));
        count_down(&mut self.shard.record.uploads, 1);
        Ok(())
    }

    /// Returns the row of an open upload. One from before its bucket was opened last has been dropped with the
    /// bucket, also where its row still waits to be taken apart.
    fn open_upload(&mut self, bucket: BucketId, key: &str, upload: UploadId) -> Result<Option<UploadRow>, StateError> {
        let opened = self.bucket(bucket)?.ok().map(|row| row.record.opened);
        let row: Option<UploadRow> = self.read(Family::Uploads, &keys::upload(bucket, key, upload))?;
        Ok(row.filter(|row| opened.is_some_and(|opened| row.initiated >= opened)))
    }

    pub(super) fn complete_upload(
        &mut self,
        request: RequestId,
        complete: &CompleteUpload,
    ) -> Result<Outcome, StateError> {
        decided!(self.bucket(complete.bucket));
        let key = keys::upload(complete.bucket, &complete.key, complete.upload);
        let list = multipart::list_hash(complete);
        let Some(upload) = self.open_upload(complete.bucket, &complete.key, complete.upload)? else {
            // M5: the same list gets the same answer, another one none.
            let first = self.recall(keys::Memory::Upload, complete.upload.0)?;
            let same = self.valid(&first).filter(|first| first.parameters == Some(list));
            return Ok(same.map_or_else(no_such_upload, |first| first.outcome.clone()));
        };
        let (listed, unlisted) = decided!(self.listed_parts(complete));
        let size_bytes = match check_sizes(&listed, complete.size_bytes) {
            Ok(size) => size,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let checksum = match object_checksum(&upload, complete, &listed) {
            Ok(checksum) => checksum,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let old: Option<ObjectRow> = self.read(Family::Objects, &keys::object(complete.bucket, &complete.key))?;
        let current: Option<&Etag> = old.as_ref().map(|row| &row.etag);
        if let Err(refusal) = check_expectation(complete.expectation.as_ref(), current) {
            return Ok(Outcome::Refused(refusal));
        }
        let row = ObjectRow {
            size_bytes,
            etag: multipart::etag(listed.iter().map(|part| &part.row.md5)),
            modified: self.now,
            checksum,
            upload: Some(complete.upload),
            request,
        };
        let body = ObjectBody { headers: upload.headers, body: Body::Parts(spans(&listed)) };
        decided!(self.publish(complete.bucket, &complete.key, old.as_ref(), &row, &body));
        self.drop_unlisted(complete.bucket, &complete.key, complete.upload, &unlisted)?;
        self.batch.delete(Family::Uploads, key);
        count_down(&mut self.shard.record.uploads, 1);
        let outcome = Outcome::Object(row);
        self.remember_upload(complete.upload, list, &outcome)?;
        Ok(outcome)
    }

    /// Finds the parts that a Complete names, in its order (M3), and the numbers of the others.
    fn listed_parts(&self, complete: &CompleteUpload) -> Decided<(Vec<Listed>, Vec<u16>)> {
        if complete.parts.is_empty() {
            return Ok(Err(refusal(RefusalKind::InvalidPart, "no parts are named")));
        }
        if !complete.parts.is_sorted_by(|one, next| one.number < next.number) {
            return Ok(Err(refusal(RefusalKind::InvalidPartOrder, "part numbers do not ascend")));
        }
        let (mut rows, mut unlisted) = (BTreeMap::new(), Vec::new());
        let range = KeyRange::of_prefix(&keys::upload(complete.bucket, &complete.key, complete.upload));
        self.each(Family::Parts, &range, |place, row| {
            let number = keys::parse_part_number(place).map_err(rows::unreadable(Family::Parts))?;
            match complete.parts.binary_search_by_key(&number, |part| part.number) {
                Ok(_) => drop(rows.insert(number, PartHead::decode(row).map_err(rows::unreadable(Family::Parts))?)),
                Err(_) => unlisted.push(number),
            }
            Ok(true)
        })?;
        let mut find = |part: &CompletePart| {
            let invalid = |text: &str| refusal(RefusalKind::InvalidPart, format!("part {}: {text}", part.number));
            let row = rows.remove(&part.number).ok_or_else(|| invalid("never uploaded"))?;
            if !same_etag(&part.etag, &Etag { md5: row.md5, parts: None }) {
                return Err(invalid("has another ETag"));
            }
            let stored = row.checksum.as_ref().map(|checksum| &checksum.value);
            if part.checksum.as_ref().is_some_and(|stated| Some(stated) != stored) {
                return Err(invalid("has another checksum"));
            }
            Ok(Listed { number: part.number, row })
        };
        let listed: Result<Vec<Listed>, Refusal> = complete.parts.iter().map(&mut find).collect();
        Ok(listed.map(|listed| (listed, unlisted)))
    }
}

/// What a Complete needs of a part's row: all but where its bytes are, which may be thousands of stripes.
struct PartHead {
    size_bytes: u64,
    md5: [u8; 16],
    checksum: Option<Checksum>,
}

impl PartHead {
    fn decode(row: &[u8]) -> Result<Self, WireError> {
        let (mut size_bytes, mut md5, mut checksum) = (None, None, None);
        let mut fields = Fields::new(rows::fields(row)?);
        while let Some(field) = fields.next()? {
            match field.tag {
                1 => size_bytes = Some(u64::decode(field.value)?),
                2 => md5 = Some(<[u8; 16]>::decode(field.value)?),
                4 => checksum = Some(Checksum::decode(field.value)?),
                tag if !field.ignorable && !PartRow::TAGS.contains(&tag) => return Err(WireError::UnknownField(tag)),
                _ => {}
            }
        }
        let size_bytes = size_bytes.ok_or(WireError::MissingField(1))?;
        Ok(PartHead { size_bytes, md5: md5.ok_or(WireError::MissingField(2))?, checksum })
    }
}

/// A part that a Complete names, and its row.
struct Listed {
    number: u16,
    row: PartHead,
}

fn check_part(upload: &UploadRow, part: &PartRow) -> Result<(), Refusal> {
    let invalid = |text: &str| Err(refusal(RefusalKind::InvalidChecksum, text));
    match (&part.checksum, upload.algorithm) {
        (None, Some(_)) => invalid("the upload wants a checksum with every part"),
        (Some(given), Some(wanted)) if given.algorithm != wanted => {
            invalid("the upload has another checksum algorithm")
        }
        (Some(given), _) if given.value.len() != multipart::value_bytes(given.algorithm) => {
            invalid("the checksum has a wrong length")
        }
        _ => Ok(()),
    }
}

/// Judges part sizes (M1) and returns the object's.
fn check_sizes(listed: &[Listed], stated: Option<u64>) -> Result<u64, Refusal> {
    let front = listed.split_last().map_or(&[][..], |(_, front)| front);
    if let Some(small) = front.iter().find(|part| part.row.size_bytes < PART_BYTES_MIN) {
        return Err(refusal(RefusalKind::PartTooSmall, format!("part {} is below 5 MiB", small.number)));
    }
    let size = listed.iter().map(|part| part.row.size_bytes).fold(0, u64::saturating_add);
    if size > OBJECT_BYTES_MAX {
        return Err(refusal(RefusalKind::ObjectTooLarge, "an object has at most 48.8 TiB"));
    }
    if stated.is_some_and(|stated| stated != size) {
        return Err(refusal(RefusalKind::SizeMismatch, format!("the parts hold {size} bytes")));
    }
    Ok(size)
}

/// Works out the object's checksum, and compares it with what the client states (K2, K3).
fn object_checksum(
    upload: &UploadRow,
    complete: &CompleteUpload,
    listed: &[Listed],
) -> Result<Option<Checksum>, Refusal> {
    let invalid = |text: &str| Err(refusal(RefusalKind::InvalidChecksum, text));
    let Some((algorithm, kind)) = effective_algorithm(upload, listed) else {
        if complete.checksum.is_some() {
            return invalid("the parts were uploaded without such a checksum");
        }
        return Ok(None);
    };
    let named = || complete.parts.iter().all(|part| part.checksum.is_some());
    if upload.algorithm.is_some() && kind == ChecksumKind::Composite && !named() {
        return invalid("every part's checksum must be named");
    }
    let values: Option<Vec<(u64, &[u8])>> = listed
        .iter()
        .map(|part| part.row.checksum.as_ref().map(|checksum| (part.row.size_bytes, &checksum.value[..])))
        .collect();
    let Some(values) = values else {
        return invalid("a part was uploaded without checksum");
    };
    let sum = multipart::checksum(algorithm, kind, &values);
    match &complete.checksum {
        Some(stated) if stated.algorithm != algorithm => invalid("the upload has another checksum algorithm"),
        Some(stated) if !agrees(stated, &sum) => {
            Err(refusal(RefusalKind::BadDigest, "the stated checksum is not that of the parts"))
        }
        _ => Ok(Some(sum)),
    }
}

fn agrees(stated: &Checksum, sum: &Checksum) -> bool {
    stated.kind == sum.kind && stated.value == sum.value && stated.parts.is_none_or(|parts| Some(parts) == sum.parts)
}

/// Returns the algorithm and kind of the object's checksum: the upload's, or CRC-64/NVME where the
/// upload names none and every part carries it.
fn effective_algorithm(upload: &UploadRow, listed: &[Listed]) -> Option<(ChecksumAlgorithm, ChecksumKind)> {
    if let Some(algorithm) = upload.algorithm {
        return multipart::kind_of(algorithm, upload.kind).map(|kind| (algorithm, kind));
    }
    let plain = |part: &Listed| {
        part.row.checksum.as_ref().is_some_and(|checksum| checksum.algorithm == ChecksumAlgorithm::Crc64Nvme)
    };
    listed.iter().all(plain).then_some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject))
}

fn spans(listed: &[Listed]) -> Vec<PartSpan> {
    let value = |part: &Listed| part.row.checksum.as_ref().map(|checksum| Bytes::clone(&checksum.value));
    listed
        .iter()
        .map(|part| PartSpan { number: part.number, size_bytes: part.row.size_bytes, checksum: value(part) })
        .collect()
}
