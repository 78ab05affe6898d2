//! CopyObject and UploadPartCopy: one contract for both. Copies are physical: the bytes are read,
//! proved again and written anew.

use http::Response;
use plinth_protocol::meta::{Command, ObjectQuery, ObjectView, Outcome, PutObject, PutPart, Query, Reply};
use plinth_protocol::object::{
    Body as Place, BucketRow, Checksum, ChecksumAlgorithm, Etag, KEY_BYTES_MAX, ObjectBody, ObjectRow, StoredHeaders,
};
use plinth_protocol::stripe::Owner;
use plinth_protocol::{BucketId, HybridTime};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use super::multipart::{open_upload, part_algorithm, part_number, part_row, upload_id};
use super::{decided, put_replayed, unexpected};
use crate::checksum::{self, BodyDigest, BodySums};
use crate::conditions::{self, Verdict};
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::{COMMIT_WAIT_MAX, Call, authorised_bucket, check_owner};
use crate::head::{Head, Target, decode};
use crate::journey::Stage;
use crate::range;
use crate::reply::{self, Body, KEEP_ALIVE_EVERY};
use crate::store::{BodyReader, BodyWriter, Store};
use crate::stored;
use crate::token::{TokenScope, add_record};
use crate::xml::Writer;

/// Largest source of a copy.
const COPY_BYTES_MAX: u64 = 5 << 30;

/// Reads `x-amz-copy-source`: the leading `/` is optional, `?versionId=` is split off literally, the
/// rest is percent-decoded once (Y1).
///
/// # Errors
/// `InvalidArgument`; `NotImplemented` for an access-point ARN.
pub(super) fn parse_source(text: &str) -> S3Result<Target> {
    let bad = || {
        S3Error::argument(
            "x-amz-copy-source",
            text,
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        )
    };
    if text.starts_with("arn:") {
        return Err(S3Error::not_implemented("An access-point ARN in x-amz-copy-source"));
    }
    let (path, version) = match text.rsplit_once("?versionId=") {
        Some((path, version)) => (path, Some(version)),
        None => (text, None),
    };
    if version.is_some_and(|version| version != "null") {
        return Err(S3Error::argument("x-amz-copy-source", text, "Invalid version id specified"));
    }
    let decoded = decode(path, false).map_err(|_| bad())?;
    let decoded = decoded.strip_prefix('/').unwrap_or(&decoded);
    match decoded.split_once('/') {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok(Target { bucket: Some(bucket.to_owned()), key: Some(key.to_owned()) })
        }
        _ => Err(bad()),
    }
}

struct Source {
    bucket: Arc<BucketRow>,
    key: String,
    view: ObjectView,
}

/// Finds the source: the same authorisation as any read, then its conditions (Y2).
async fn source<S: Store>(call: &mut Call<'_, S>) -> S3Result<Source> {
    let text = call.head.header("x-amz-copy-source")?.ok_or(Code::InvalidArgument)?.into_owned();
    let target = parse_source(&text)?;
    let (Some(name), Some(key)) = (target.bucket, target.key) else { return Err(Code::InvalidArgument.into()) };
    if key.len() > KEY_BYTES_MAX {
        return Err(Code::KeyTooLongError.into());
    }
    let account = call.verified.credential.account.clone();
    let bucket = authorised_bucket(&call.inner.store, &name, &account, false).await?;
    let bucket = bucket.ok_or_else(|| S3Error::from(Code::NoSuchBucket).element("BucketName", name))?;
    check_owner(call.head, "x-amz-source-expected-bucket-owner", Some(&bucket))?;
    let query = Query::Object(ObjectQuery { bucket: bucket.bucket, key: key.clone(), body: true });
    let view = match call.inner.store.query(bucket.bucket, &key, query, call.deadline()).await? {
        Reply::Object(view) => view,
        Reply::Absent(kind) => return Err(S3Error::from(kind).element("Key", key)),
        _ => return Err(unexpected("Object")),
    };
    match conditions::judge_read(call.head, "x-amz-copy-source-", &view.row)? {
        Verdict::Proceed => {}
        // A copy is no read: what would be "not modified" there is a failed condition here.
        Verdict::NotModified => return Err(conditions::failed("x-amz-copy-source-If-None-Match")),
        Verdict::Failed(condition) => return Err(conditions::failed(&format!("x-amz-copy-source-{condition}"))),
    }
    call.journey.end(Stage::Row);
    Ok(Source { bucket, key, view })
}

/// Reads a range of an object and writes it under another owner.
async fn transfer<S: Store>(
    store: &S,
    source: &Source,
    bytes: Range<u64>,
    owner: Owner,
    mut sums: BodySums,
) -> S3Result<(BodyDigest, Place)> {
    let length = bytes.end - bytes.start;
    let mut writer = store.write(owner, Some(length));
    match source.view.body.as_ref().map(|body| &body.body) {
        Some(Place::Inline(whole)) => {
            let bytes = bytes.start as usize..bytes.end as usize;
            let piece =
                if bytes.end <= whole.len() { whole.slice(bytes) } else { return Err(Code::InternalError.into()) };
            sums.update(&piece).await;
            writer.write(&piece).await?;
        }
        _ if length == 0 => {}
        _ => {
            let mut reader = store.open(source.bucket.bucket, &source.key, &source.view, bytes);
            while let Some(piece) = poll_fn(|cx| reader.poll_next(cx)).await {
                let piece = piece.map_err(super::get::read_failure)?;
                sums.update(&piece).await;
                writer.write(&piece).await?;
            }
        }
    }
    let (digest, md5) = sums.finish();
    if digest.size_bytes != length {
        let cause = format!("source of a copy came short: {} of {length} bytes", digest.size_bytes);
        return Err(S3Error::from(Code::InternalError).because(cause));
    }
    let (md5, place) = md5.finish_beside(writer.finish()).await;
    Ok((digest.with_md5(md5), place?))
}

/// What a long work leads to.
pub(super) struct Done {
    /// The answer's document.
    pub xml: Writer,
    /// Whether it is the first answer given again.
    pub replayed: bool,
}

type Work = Pin<Box<dyn Future<Output = S3Result<Done>> + Send>>;

/// Waits for a long work; where it outlasts the first answer, 200 goes out and white space keeps the
/// connection alive until the result or the error is there (M4).
pub(super) async fn answer_when_done<S: Store>(call: &mut Call<'_, S>, mut work: Work) -> S3Result<Response<Body>> {
    if let Ok(done) = tokio::time::timeout(KEEP_ALIVE_EVERY, &mut work).await {
        return done.map(|done| {
            let mut response = reply::xml(done.xml);
            put_replayed(&mut response, done.replayed);
            response
        });
    }
    let (resource, request_id) = (call.head.raw_path.clone(), call.journey.request_id().to_owned());
    let metrics = call.inner.metrics.clone();
    Ok(reply::xml_waiting(Box::pin(async move {
        let document = match work.await {
            // The headers have gone out: that it is a repetition can't be told any more.
            Ok(done) => done.xml.into_vec(),
            Err(error) => {
                metrics.failed(error.code().name());
                error.tell(&request_id);
                let mut xml = Writer::bare();
                error.write_xml(&mut xml, &resource, &request_id, "");
                return xml.into_vec();
            }
        };
        // The declaration has gone out already, before the white space.
        let start = document.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        document[start..].to_vec()
    })))
}

/// CopyObject.
pub(super) async fn copy_object<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let target = call.bucket()?;
    let key = call.head.key().to_owned();
    let expectation = conditions::write_expectation(call.head, false)?;
    let directive = call.head.header("x-amz-metadata-directive")?;
    let replaces = directive.as_deref() == Some("REPLACE");
    let given = stored::read(call.head)?;
    let token = TokenScope::read(call.head, call.verified, call.operation, expectation.as_ref())?;
    let source = source(call).await?;
    let row = &source.view.row;
    if row.size_bytes > COPY_BYTES_MAX {
        return Code::InvalidRequest
            .fail("The specified copy source is larger than the maximum allowable size for a copy source: 5368709120");
    }
    let algorithm = copy_algorithm(call, row)?;
    let is_self = source.bucket.bucket == target.bucket && source.key == key;
    if is_self && !replaces && !names_a_change(call.head) {
        return Code::InvalidRequest.fail("This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.");
    }
    let headers = match (replaces, &source.view.body) {
        (true, _) => given,
        (false, Some(body)) => body.headers.clone(),
        (false, None) => StoredHeaders { standard: Vec::new(), user: Vec::new() },
    };
    let sums = BodySums::new(call.inner.hasher.body(row.size_bytes), Some(algorithm), None);
    let copy = Copy { bucket: target.bucket, key, headers, expectation, sums };
    let store = call.inner.store.clone();
    let work = async move { copy.run(&store, source, token).await };
    answer_when_done(call, Box::pin(work)).await
}

/// Returns whether a copy names a property of the new object. Naming one counts as a change, also where it is what the
/// object has (Y3).
fn names_a_change(head: &Head) -> bool {
    ["x-amz-storage-class", "x-amz-checksum-algorithm"].iter().any(|name| head.has(name))
}

/// The algorithm of a copy: the one asked for, else the source's own (Y3).
fn copy_algorithm<S: Store>(call: &Call<'_, S>, row: &ObjectRow) -> S3Result<ChecksumAlgorithm> {
    match call.head.header("x-amz-checksum-algorithm")? {
        Some(text) => checksum::parse_algorithm(&text),
        None => Ok(row.checksum.as_ref().map_or(ChecksumAlgorithm::Crc64Nvme, |checksum| checksum.algorithm)),
    }
}

/// A copy that has been judged.
struct Copy {
    bucket: BucketId,
    key: String,
    headers: StoredHeaders,
    expectation: Option<plinth_protocol::meta::Expectation>,
    sums: BodySums,
}

impl Copy {
    async fn run<S: Store>(self, store: &S, source: Source, token: Option<TokenScope>) -> S3Result<Done> {
        let owner =
            Owner { bucket: self.bucket, key: self.key.clone(), upload: None, part: None, ordinal: 0, offset: 0 };
        let size_bytes = source.view.row.size_bytes;
        let (digest, place) = transfer(store, &source, 0..size_bytes, owner, self.sums).await?;
        let token = token.map(|token| {
            token.complete(|hash| {
                hash.field(&source.bucket.bucket.0.to_le_bytes()).field(source.key.as_bytes());
                hash.field(&digest.md5);
                add_record(hash, &self.headers);
                if let Some(expectation) = &self.expectation {
                    add_record(hash, expectation);
                }
            })
        });
        let put = PutObject {
            bucket: self.bucket,
            key: self.key.clone(),
            size_bytes,
            // A copy is one plain object, also of a multipart source (E2).
            etag: Etag { md5: digest.md5, parts: None },
            checksum: digest.checksum,
            body: ObjectBody { headers: self.headers, body: place },
            expectation: self.expectation,
        };
        let deadline = tokio::time::Instant::now() + COMMIT_WAIT_MAX;
        let outcome = store.mutate(self.bucket, &self.key, Command::PutObject(put), token, deadline).await?;
        let (Outcome::Object(row), replayed) = decided(outcome)? else { return Err(unexpected("Object")) };
        let mut xml = Writer::document(400);
        write_result(&mut xml, "CopyObjectResult", &row.etag, row.modified, row.checksum.as_ref());
        Ok(Done { xml, replayed })
    }
}

fn write_result(xml: &mut Writer, root: &str, etag: &Etag, modified: HybridTime, checksum: Option<&Checksum>) {
    xml.root(root);
    xml.etag("ETag", etag);
    xml.plain("LastModified", &Seconds::from_millis(modified.millis()).xml());
    if let Some(checksum) = checksum {
        xml.text(checksum::element_name(checksum.algorithm), &checksum::show(checksum));
        xml.plain("ChecksumType", checksum::kind_name(checksum.kind).as_bytes());
    }
    xml.close(root);
}

/// UploadPartCopy.
pub(super) async fn upload_part_copy<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let (upload, number) = (upload_id(call.head)?, part_number(call.head)?);
    let token = TokenScope::read(call.head, call.verified, call.operation, None)?;
    let open = open_upload(call, upload).await?;
    let algorithm = part_algorithm(&open);
    let source = source(call).await?;
    let size = source.view.row.size_bytes;
    let bytes = match call.head.header("x-amz-copy-source-range")? {
        Some(text) => range::parse_copy_source(&text, size)?,
        None => 0..size,
    };
    if bytes.end - bytes.start > COPY_BYTES_MAX {
        return Code::InvalidRequest
            .fail("The specified copy source is larger than the maximum allowable size for a copy source: 5368709120");
    }
    let store = call.inner.store.clone();
    let sums = BodySums::new(call.inner.hasher.body(bytes.end - bytes.start), Some(algorithm), None);
    let work = async move {
        let owner = Owner { bucket, key: key.clone(), upload: Some(upload), part: Some(number), ordinal: 0, offset: 0 };
        let (digest, place) = transfer(&store, &source, bytes, owner, sums).await?;
        let part = part_row(digest, place);
        let token = token.map(|token| {
            token.complete(|hash| {
                hash.field(&upload.0.to_le_bytes()).field(&number.to_le_bytes()).field(&part.md5);
                hash.field(&source.bucket.bucket.0.to_le_bytes()).field(source.key.as_bytes());
            })
        });
        let put = PutPart { bucket, key: key.clone(), upload, number, part };
        let deadline = tokio::time::Instant::now() + COMMIT_WAIT_MAX;
        let outcome = store.mutate(bucket, &key, Command::PutPart(put), token, deadline).await?;
        let (Outcome::Part(row), replayed) = decided(outcome)? else { return Err(unexpected("Part")) };
        let mut xml = Writer::document(400);
        let etag = Etag { md5: row.md5, parts: None };
        write_result(&mut xml, "CopyPartResult", &etag, row.modified, row.checksum.as_ref());
        Ok(Done { xml, replayed })
    };
    answer_when_done(call, Box::pin(work)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source_of(text: &str) -> (String, String) {
        let target = parse_source(text).expect("valid");
        (target.bucket.expect("a bucket"), target.key.expect("a key"))
    }

    #[test]
    fn y1_sources_are_decoded_once() {
        let pair = |bucket: &str, key: &str| (bucket.to_owned(), key.to_owned());
        assert_eq!(source_of("/b/k"), pair("b", "k"));
        assert_eq!(source_of("b/k"), pair("b", "k"));
        assert_eq!(source_of("b/a%2Bb+c%20d%252F"), pair("b", "a+b+c d%2F"));
        assert_eq!(source_of("b%2Fk"), pair("b", "k"));
        assert_eq!(source_of("b/k?versionId=null"), pair("b", "k"));
        assert_eq!(source_of("b/k%3FversionId=x"), pair("b", "k?versionId=x"));
        assert_eq!(source_of("b//k"), pair("b", "/k"));
        for bad in ["", "b", "/b/", "//k", "b/k?versionId=abc", "b/%zz"] {
            assert_eq!(parse_source(bad).expect_err(bad).code(), Code::InvalidArgument);
        }
        let arn = parse_source("arn:aws:s3:us-east-1:1:accesspoint/a/object/k").expect_err("refused");
        assert_eq!(arn.code(), Code::NotImplemented);
    }

    proptest! {
        #[test]
        fn any_source_parses_or_fails_cleanly(text in ".{0,60}") {
            let _ = parse_source(&text);
        }
    }
}
