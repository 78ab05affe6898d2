//! Objects: publish, overwrite, delete.

use super::store::{Family, View};
use super::work::{Decided, Work, count_down, count_up, decided, refusal, refuse};
use super::{StateError, keys};
use plinth_protocol::meta::{
    DeleteObject, Expectation, ExpectationKind, Outcome, PutObject, RULES_STRICT, Refusal, RefusalKind,
};
use plinth_protocol::object::{Body, Etag, INLINE_ROW_BYTES_MAX, ObjectBody, ObjectRow, check_key};
use plinth_protocol::stripe::{Owner, StripeRef};
use plinth_protocol::{BucketId, RequestId};

/// Whose bytes a body holds: an object's own, or those of one of its parts.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub bucket: BucketId,
    pub key: &'a str,
    pub part: Option<(plinth_protocol::UploadId, u16)>,
}

impl Holder<'_> {
    /// Returns the key of the row that refers to the stripes.
    pub(super) fn row(&self) -> Vec<u8> {
        match self.part {
            None => keys::object(self.bucket, self.key),
            Some((upload, number)) => keys::part(self.bucket, self.key, upload, number),
        }
    }
}

/// Decides a condition by the table of s3.md.
pub(super) fn check_expectation(expectation: Option<&Expectation>, current: Option<&Etag>) -> Result<(), Refusal> {
    let Some(expectation) = expectation else {
        return Ok(());
    };
    let missing = || Err(refusal(RefusalKind::NoSuchKey, "the condition wants the key to exist"));
    let failed = |text: &str| Err(refusal(RefusalKind::PreconditionFailed, text));
    match (expectation.kind, current) {
        (ExpectationKind::Absent, None) | (ExpectationKind::Present, Some(_)) => Ok(()),
        (ExpectationKind::Absent, Some(_)) => failed("the key exists"),
        (ExpectationKind::Present | ExpectationKind::Matches, None) => missing(),
        (ExpectationKind::Matches, Some(etag)) => {
            let wanted = expectation.etag.as_deref().unwrap_or_default();
            if same_etag(wanted, etag) { Ok(()) } else { failed("the ETag differs") }
        }
    }
}

/// Compares an ETag as a client writes it, with quotes or without (E3).
pub(super) fn same_etag(text: &str, etag: &Etag) -> bool {
    text.trim_matches('"').eq_ignore_ascii_case(&etag.to_string())
}

impl<V: View> Work<'_, V> {
    pub(super) fn put_object(&mut self, request: RequestId, put: &PutObject) -> Result<Outcome, StateError> {
        decided!(self.bucket(put.bucket));
        if check_key(&put.key).is_err() {
            return Ok(refuse(RefusalKind::Invalid, "a key has 1 to 1,024 bytes"));
        }
        if let Err(refusal) = self.check_body(&put.body.body, put.size_bytes) {
            return Ok(Outcome::Refused(refusal));
        }
        let key = keys::object(put.bucket, &put.key);
        let old: Option<ObjectRow> = self.read(Family::Objects, &key)?;
        // A late copy of the same request: its stripes are the ones referred to, not garbage.
        if let Some(own) = old.as_ref().filter(|row| row.request == request) {
            return Ok(Outcome::Object(own.clone()));
        }
        if let Err(refusal) = check_expectation(put.expectation.as_ref(), old.as_ref().map(|row| &row.etag)) {
            return Ok(Outcome::Refused(refusal));
        }
        let row = ObjectRow {
            size_bytes: put.size_bytes,
            etag: put.etag.clone(),
            modified: self.now,
            checksum: put.checksum.clone(),
            upload: None,
            request,
        };
        decided!(self.publish(put.bucket, &put.key, old.as_ref(), &row, &put.body));
        let holder = Holder { bucket: put.bucket, key: &put.key, part: None };
        self.owe_fragments(holder, &put.body.body);
        Ok(Outcome::Object(row))
    }

    pub(super) fn delete_object(&mut self, delete: &DeleteObject) -> Result<Outcome, StateError> {
        decided!(self.bucket(delete.bucket));
        let key = keys::object(delete.bucket, &delete.key);
        let old: Option<ObjectRow> = self.read(Family::Objects, &key)?;
        if let Err(refusal) = check_expectation(delete.expectation.as_ref(), old.as_ref().map(|row| &row.etag)) {
            return Ok(Outcome::Refused(refusal));
        }
        let Some(old) = old else {
            return Ok(Outcome::Deleted(false));
        };
        self.displace(delete.bucket, &delete.key, &old)?;
        self.batch.delete(Family::Objects, key.clone());
        self.batch.delete(Family::Bodies, key);
        Ok(Outcome::Deleted(true))
    }

    /// Puts an object's two rows, and frees what stood there before.
    pub(super) fn publish(
        &mut self,
        bucket: BucketId,
        key: &str,
        old: Option<&ObjectRow>,
        row: &ObjectRow,
        body: &ObjectBody,
    ) -> Decided<()> {
        if let Some(old) = old {
            self.displace(bucket, key, old)?;
        }
        match self.bucket(bucket)? {
            Ok(usage) => {
                count_up(&mut usage.record.objects, 1);
                count_up(&mut usage.record.bytes, row.size_bytes);
            }
            Err(refusal) => return Ok(Err(refusal)),
        }
        count_up(&mut self.shard.record.objects, 1);
        count_up(&mut self.shard.record.object_bytes, row.size_bytes);
        let place = keys::object(bucket, key);
        self.put(Family::Objects, place.clone(), row);
        self.put(Family::Bodies, place, body);
        Ok(Ok(()))
    }

    /// Takes an object out of the counters and queues its stripes. Its rows are the caller's to
    /// remove or replace; part rows go here.
    fn displace(&mut self, bucket: BucketId, key: &str, old: &ObjectRow) -> Result<(), StateError> {
        if let Ok(usage) = self.bucket(bucket)? {
            count_down(&mut usage.record.objects, 1);
            count_down(&mut usage.record.bytes, old.size_bytes);
        }
        count_down(&mut self.shard.record.objects, 1);
        count_down(&mut self.shard.record.object_bytes, old.size_bytes);
        if let Some(upload) = old.upload {
            return self.drop_parts(bucket, key, upload);
        }
        let body: Option<ObjectBody> = self.read(Family::Bodies, &keys::object(bucket, key))?;
        if let Some(body) = body {
            self.free(Holder { bucket, key, part: None }, &body.body);
        }
        Ok(())
    }

    /// Checks that a body is possible for its size and that its writers are not fenced.
    pub(super) fn check_body(&self, body: &Body, size_bytes: u64) -> Result<(), Refusal> {
        let invalid = |text: &str| Err(refusal(RefusalKind::Invalid, text));
        if self.follows(RULES_STRICT)
            && let Err(error) = body.check(size_bytes)
        {
            return invalid(&format!("the body is impossible: {error}"));
        }
        match body {
            Body::Inline(bytes) if bytes.len() > INLINE_ROW_BYTES_MAX => invalid("too many bytes for a row"),
            Body::Inline(bytes) if bytes.len() as u64 != size_bytes => invalid("size and inline bytes differ"),
            Body::Inline(_) => Ok(()),
            Body::Parts(_) => invalid("parts come from CompleteUpload alone"),
            Body::Stripes(stripes) => {
                let sound = |stripe: &StripeRef| stripe.pack_offset.is_some() || stripe.fragment_payload_bytes > 0;
                if !stripes.iter().all(sound) {
                    return invalid("a stripe without payload");
                }
                let packed = stripes.iter().any(|stripe| stripe.pack_offset.is_some());
                let held: u64 = stripes.iter().map(StripeRef::object_bytes).fold(0, u64::saturating_add);
                if !packed && held != size_bytes {
                    return invalid("size and stripes differ");
                }
                stripes.iter().try_for_each(|stripe| self.check_fence(stripe.stripe.writer()))
            }
        }
    }
}

/// Returns a holder's name as fragments carry it.
pub(super) fn owner(holder: Holder<'_>, ordinal: u32, offset: u64) -> Owner {
    Owner {
        bucket: holder.bucket,
        key: holder.key.to_owned(),
        upload: holder.part.map(|(upload, _)| upload),
        part: holder.part.map(|(_, number)| number),
        ordinal,
        offset,
    }
}
