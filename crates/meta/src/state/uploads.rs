//! Multipart uploads: open, add parts, complete, abort.
//!
//! Part rows are keyed by upload, and stay there when the upload becomes an object: Complete
//! writes the object's two rows and moves no data.

use super::multipart;
use super::objects::{Holder, check_expectation, same_etag};
use super::store::{Family, KeyRange, View};
use super::work::{Decided, Work, decided, refusal, refuse};
use super::{StateError, keys, rows};
use bytes::Bytes;
use plinth_protocol::meta::{
    AbortUpload, CompletePart, CompleteUpload, CreateUpload, Outcome, PutPart, Refusal, RefusalKind,
};
use plinth_protocol::object::{
    Body, Checksum, ChecksumAlgorithm, ChecksumKind, Etag, ObjectBody, ObjectRow, PART_NUMBER_MAX, PartRow, PartSpan,
    UploadRow, check_key,
};
use plinth_protocol::{BucketId, RequestId, UploadId};

/// Smallest part but the last, in bytes (S3).
pub(super) const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest object in bytes (S3: 10,000 parts of 5 GiB).
pub(super) const OBJECT_BYTES_MAX: u64 = PART_NUMBER_MAX as u64 * (5 << 30);
/// Part rows read at a time while an upload is taken apart.
const PARTS_AT_ONCE: usize = PART_NUMBER_MAX as usize;

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
        if let Some(open) = self.read::<UploadRow>(Family::Uploads, &key)? {
            let same = open.request == request;
            let taken = || refuse(RefusalKind::AlreadyExists, "the upload id is taken");
            return Ok(if same { Outcome::Done } else { taken() });
        }
        let row = UploadRow {
            initiated: self.now,
            headers: create.headers.clone(),
            algorithm: create.algorithm,
            kind,
            request,
        };
        self.put(Family::Uploads, key, &row);
        self.shard.record.uploads += 1;
        Ok(Outcome::Done)
    }

    pub(super) fn put_part(&mut self, request: RequestId, put: &PutPart) -> Result<Outcome, StateError> {
        decided!(self.bucket(put.bucket));
        if put.number == 0 || put.number > PART_NUMBER_MAX {
            return Ok(refuse(RefusalKind::Invalid, "part numbers are 1 to 10,000"));
        }
        let upload: Option<UploadRow> = self.read(Family::Uploads, &keys::upload(put.bucket, &put.key, put.upload))?;
        let Some(upload) = upload else {
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
        let key = keys::upload(abort.bucket, &abort.key, abort.upload);
        if self.get(Family::Uploads, &key)?.is_none() {
            return Ok(no_such_upload());
        }
        self.drop_upload(abort.bucket, &abort.key, abort.upload)?;
        Ok(Outcome::Done)
    }

    /// Removes an open upload with its parts.
    pub(super) fn drop_upload(&mut self, bucket: BucketId, key: &str, upload: UploadId) -> Result<(), StateError> {
        self.drop_parts(bucket, key, upload, &[])?;
        self.batch.delete(Family::Uploads, keys::upload(bucket, key, upload));
        self.shard.record.uploads -= 1;
        Ok(())
    }

    /// Removes the part rows of an upload but those with the numbers `kept` (ascending), and queues
    /// their stripes.
    pub(super) fn drop_parts(
        &mut self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        kept: &[u16],
    ) -> Result<(), StateError> {
        for (place, part) in self.parts(bucket, key, upload)? {
            let number = keys::parse_part_number(&place).map_err(rows::unreadable(Family::Parts))?;
            if kept.binary_search(&number).is_err() {
                self.free(Holder { bucket, key, part: Some((upload, number)) }, &part.body);
                self.batch.delete(Family::Parts, place);
            }
        }
        Ok(())
    }

    fn parts(&self, bucket: BucketId, key: &str, upload: UploadId) -> Result<Vec<(Vec<u8>, PartRow)>, StateError> {
        let range = KeyRange::of_prefix(&keys::upload(bucket, key, upload));
        let parts = self.scan(Family::Parts, &range, PARTS_AT_ONCE)?;
        parts.into_iter().map(|(place, row)| Ok((place, rows::decode(Family::Parts, &row)?))).collect()
    }

    pub(super) fn complete_upload(
        &mut self,
        request: RequestId,
        complete: &CompleteUpload,
    ) -> Result<Outcome, StateError> {
        decided!(self.bucket(complete.bucket));
        let key = keys::upload(complete.bucket, &complete.key, complete.upload);
        let list = multipart::list_hash(complete);
        let Some(upload) = self.read::<UploadRow>(Family::Uploads, &key)? else {
            // M5: the same list gets the same answer, another one none.
            let first = self.recall(keys::Memory::Upload, complete.upload.0)?;
            let same = self.valid(&first).filter(|first| first.parameters == Some(list));
            return Ok(same.map_or_else(no_such_upload, |first| first.outcome.clone()));
        };
        let listed = decided!(self.listed_parts(complete));
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
        let kept: Vec<u16> = listed.iter().map(|part| part.number).collect();
        self.drop_parts(complete.bucket, &complete.key, complete.upload, &kept)?;
        self.batch.delete(Family::Uploads, key);
        self.shard.record.uploads -= 1;
        let outcome = Outcome::Object(row);
        self.remember_upload(complete.upload, list, &outcome)?;
        Ok(outcome)
    }

    /// Finds the parts that a Complete names, in its order (M3).
    fn listed_parts(&self, complete: &CompleteUpload) -> Decided<Vec<Listed>> {
        if complete.parts.is_empty() {
            return Ok(Err(refusal(RefusalKind::InvalidPart, "no parts are named")));
        }
        if !complete.parts.is_sorted_by(|one, next| one.number < next.number) {
            return Ok(Err(refusal(RefusalKind::InvalidPartOrder, "part numbers do not ascend")));
        }
        let mut rows: std::collections::BTreeMap<u16, PartRow> = std::collections::BTreeMap::new();
        for (place, row) in self.parts(complete.bucket, &complete.key, complete.upload)? {
            rows.insert(keys::parse_part_number(&place).map_err(rows::unreadable(Family::Parts))?, row);
        }
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
        Ok(complete.parts.iter().map(&mut find).collect())
    }
}

/// A part that a Complete names, and its row.
struct Listed {
    number: u16,
    row: PartRow,
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
    let (_, front) = listed.split_last().expect("a part list that is empty was refused before");
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
