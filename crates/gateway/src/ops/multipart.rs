//! Multipart uploads: create, add parts, complete, abort.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use plinth_protocol::meta::{
    AbortUpload, Command, CompletePart, CompleteUpload, CreateUpload, Outcome, PutPart, Query, Reply, UploadQuery,
};
use plinth_protocol::object::{
    Body as Place, Checksum, ChecksumAlgorithm, ChecksumKind, Etag, ObjectRow, PART_NUMBER_MAX, PartRow, UploadRow,
};
use plinth_protocol::stripe::Owner;
use plinth_protocol::{HybridTime, RequestId, UploadId};

use super::copy::{Done, answer_when_done};
use super::put::receive;
use super::{decided, put_checksum, put_etag, put_replayed, unexpected};
use crate::checksum::{self, ALGORITHMS, BodyDigest};
use crate::conditions;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::{COMMIT_WAIT_MAX, Call};
use crate::head::Head;
use crate::journey::Stage;
use crate::payload::Claims;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::stored;
use crate::support::{COMPLETE, check_document};
use crate::token::{TokenScope, add_record};
use crate::xml::{Element, Writer, XmlLimits, parse};

/// Reads `uploadId`: anything that we did not hand out is no upload.
pub(super) fn upload_id(head: &Head) -> S3Result<UploadId> {
    let text = head.query.get("uploadId").unwrap_or_default();
    let ours = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match u128::from_str_radix(text, 16) {
        Ok(id) if ours => Ok(UploadId(id)),
        _ => Err(Code::NoSuchUpload.into()),
    }
}

/// Reads `partNumber`, 1 to 10,000.
pub(super) fn part_number(head: &Head) -> S3Result<u16> {
    let text = head.query.get("partNumber").unwrap_or_default();
    match text.parse::<u16>() {
        Ok(number @ 1..=PART_NUMBER_MAX) => Ok(number),
        _ => {
            Err(S3Error::argument("partNumber", text, "Part number must be an integer between 1 and 10000, inclusive"))
        }
    }
}

/// Reads an open upload.
///
/// # Errors
/// `NoSuchUpload`.
pub(super) async fn open_upload<S: Store>(call: &mut Call<'_, S>, upload: UploadId) -> S3Result<UploadRow> {
    let bucket = call.bucket()?.bucket;
    let query = Query::Upload(UploadQuery { bucket, key: call.head.key().to_owned(), upload });
    let reply = call.inner.store.query(bucket, call.head.key(), query, call.deadline()).await?;
    call.journey.end(Stage::Row);
    match reply {
        Reply::Upload(row) => Ok(row),
        Reply::Absent(kind) => Err(kind.into()),
        _ => Err(unexpected("Upload")),
    }
}

/// The algorithm that parts of an upload store: its own, or CRC64NVME where it names none.
pub(super) fn part_algorithm(upload: &UploadRow) -> ChecksumAlgorithm {
    upload.algorithm.unwrap_or(ChecksumAlgorithm::Crc64Nvme)
}

/// CreateMultipartUpload: metadata and checksum algorithm are fixed here (M7).
pub(super) async fn create<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let headers = stored::read(call.head)?;
    let algorithm = call.head.header("x-amz-checksum-algorithm")?;
    let algorithm = algorithm.map(|text| checksum::parse_algorithm(&text)).transpose()?;
    let kind = call.head.header("x-amz-checksum-type")?.map(|text| checksum::parse_kind(&text)).transpose()?;
    let kind = match (algorithm, kind) {
        (Some(algorithm), kind) => Some(checksum::multipart_kind(algorithm, kind)?),
        (None, Some(_)) => {
            return Code::InvalidRequest
                .fail("The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.");
        }
        (None, None) => None,
    };
    let token = TokenScope::read(call.head, call.verified, call.operation, None)?;
    let upload = token.as_ref().map_or_else(|| UploadId(call.inner.store.draw()), TokenScope::upload_id);
    let create = CreateUpload { bucket, key: key.clone(), upload, headers, algorithm, kind };
    let token = token.map(|token| token.complete(|hash| add_record(hash, &create)));
    let deadline = call.deadline();
    let outcome = call.inner.store.mutate(bucket, &key, Command::CreateUpload(create), token, deadline).await?;
    call.journey.end(Stage::Commit);
    let (_, replayed) = decided(outcome)?;
    let mut xml = Writer::document(400);
    xml.root("InitiateMultipartUploadResult");
    xml.text("Bucket", call.head.bucket());
    xml.text("Key", &key);
    xml.text("UploadId", &upload.to_string());
    xml.close("InitiateMultipartUploadResult");
    let mut response = reply::xml(xml);
    if let (Some(algorithm), Some(kind)) = (algorithm, kind) {
        let out = response.headers_mut();
        out.insert("x-amz-checksum-algorithm", HeaderValue::from_static(checksum::value_name(algorithm)));
        out.insert("x-amz-checksum-type", HeaderValue::from_static(checksum::kind_name(kind)));
    }
    put_replayed(&mut response, replayed);
    Ok(response)
}

/// Returns the row of a part whose bytes are stored; the shard stamps it.
pub(super) fn part_row(digest: BodyDigest, place: Place) -> PartRow {
    PartRow {
        size_bytes: digest.size_bytes,
        md5: digest.md5,
        modified: HybridTime(0),
        checksum: digest.checksum,
        body: place,
        request: RequestId(0),
    }
}

/// UploadPart.
pub(super) async fn upload_part<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let (upload, number) = (upload_id(call.head)?, part_number(call.head)?);
    let claims = Claims::read(call.head, call.verified.presigned)?;
    let token = TokenScope::read(call.head, call.verified, call.operation, None)?;
    let open = open_upload(call, upload).await?;
    let algorithm = part_algorithm(&open);
    if open.algorithm.is_some() && claims.algorithm().is_some_and(|claimed| claimed != algorithm) {
        return Code::InvalidRequest.fail(format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}",
            checksum::value_name(algorithm)
        ));
    }
    let owner = Owner { bucket, key: key.clone(), upload: Some(upload), part: Some(number), ordinal: 0, offset: 0 };
    let (digest, place) = receive(call, owner, &claims, algorithm).await?;
    let part = part_row(digest, place);
    let token = token.map(|token| {
        token.complete(|hash| {
            hash.field(&upload.0.to_le_bytes()).field(&number.to_le_bytes()).field(&part.md5);
        })
    });
    let put = PutPart { bucket, key: key.clone(), upload, number, part };
    let deadline = call.deadline();
    let outcome = call.inner.store.mutate(bucket, &key, Command::PutPart(put), token, deadline).await?;
    call.journey.end(Stage::Commit);
    let (Outcome::Part(row), replayed) = decided(outcome)? else { return Err(unexpected("Part")) };
    let mut response = reply::empty(StatusCode::OK);
    put_etag(response.headers_mut(), &Etag { md5: row.md5, parts: None });
    if let Some(checksum) = &row.checksum {
        put_checksum(response.headers_mut(), checksum);
        // Types belong to objects, not to parts.
        response.headers_mut().remove("x-amz-checksum-type");
    }
    put_replayed(&mut response, replayed);
    Ok(response)
}

/// AbortMultipartUpload (M6).
pub(super) async fn abort<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let upload = upload_id(call.head)?;
    let token = TokenScope::read(call.head, call.verified, call.operation, None)?;
    let token = token.map(|token| {
        token.complete(|hash| {
            hash.field(&upload.0.to_le_bytes());
        })
    });
    let abort = Command::AbortUpload(AbortUpload { bucket, key: key.clone(), upload });
    let deadline = call.deadline();
    let outcome = call.inner.store.mutate(bucket, &key, abort, token, deadline).await?;
    call.journey.end(Stage::Commit);
    let (_, replayed) = decided(outcome)?;
    let mut response = reply::empty(StatusCode::NO_CONTENT);
    put_replayed(&mut response, replayed);
    Ok(response)
}

/// One part as the document lists it.
#[derive(Debug)]
struct Listed {
    part: CompletePart,
    algorithm: Option<ChecksumAlgorithm>,
}

fn read_document(body: &[u8]) -> S3Result<Vec<Listed>> {
    let root = parse(body, XmlLimits::LARGE)?;
    check_document(&root, &COMPLETE)?;
    let parts = root.children.iter().map(read_part).collect::<S3Result<Vec<_>>>()?;
    if parts.is_empty() || parts.len() > usize::from(PART_NUMBER_MAX) {
        return Err(Code::MalformedXML.into());
    }
    if !parts.windows(2).all(|pair| pair[0].part.number < pair[1].part.number) {
        return Err(Code::InvalidPartOrder.into());
    }
    Ok(parts)
}

fn read_part(element: &Element) -> S3Result<Listed> {
    let number = element.child_text("PartNumber")?.ok_or(Code::MalformedXML)?.trim();
    let number = number.parse().ok().filter(|number| (1..=PART_NUMBER_MAX).contains(number)).ok_or_else(|| {
        S3Error::argument("PartNumber", number, "PartNumber must be an integer between 1 and 10000, inclusive")
    })?;
    let etag = element.child_text("ETag")?.ok_or(Code::MalformedXML)?.trim().trim_matches('"').to_owned();
    let mut found: Option<(ChecksumAlgorithm, Bytes)> = None;
    for algorithm in ALGORITHMS {
        let Some(text) = element.child_text(checksum::element_name(algorithm))? else { continue };
        let (value, _) = checksum::parse_value(algorithm, text.trim())?;
        if found.replace((algorithm, value)).is_some() {
            return Code::InvalidRequest.fail("A part carries several checksums.");
        }
    }
    let (algorithm, checksum) = found.unzip();
    Ok(Listed { part: CompletePart { number, etag, checksum }, algorithm })
}

/// The checksum of the whole object as the client states it.
fn stated_checksum(head: &Head) -> S3Result<Option<(ChecksumAlgorithm, Bytes, Option<u16>)>> {
    let mut found = None;
    for algorithm in ALGORITHMS {
        let Some(text) = head.header(checksum::header_name(algorithm))? else { continue };
        let (value, parts) = checksum::parse_value(algorithm, &text)?;
        if found.replace((algorithm, value, parts)).is_some() {
            return Code::InvalidRequest
                .fail("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.");
        }
    }
    Ok(found)
}

/// CompleteMultipartUpload.
pub(super) async fn complete<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let key = call.head.key().to_owned();
    let upload = upload_id(call.head)?;
    let expectation = conditions::write_expectation(call.head, false)?;
    let size_bytes = match call.head.header("x-amz-mp-object-size")? {
        Some(text) => Some(
            text.parse::<u64>()
                .map_err(|_| S3Error::argument("x-amz-mp-object-size", &text, "The size is not a number."))?,
        ),
        None => None,
    };
    let stated = stated_checksum(call.head)?;
    let asked = call.head.header("x-amz-checksum-type")?.map(|text| checksum::parse_kind(&text)).transpose()?;
    let token = TokenScope::read(call.head, call.verified, call.operation, expectation.as_ref())?;
    // The checksum headers speak of the object, not of this document.
    let claims = Claims::read_md5(call.head)?;
    let body = call.document(&claims, XmlLimits::LARGE).await?;
    let listed = read_document(&body)?;
    // A finished upload is gone: the shard then knows a repeated Complete by its list (M5).
    let open = match open_upload(call, upload).await {
        Ok(open) => Some(open),
        Err(error) if error.code() == Code::NoSuchUpload => None,
        Err(error) => return Err(error),
    };
    let checksum = agree(open.as_ref(), &listed, stated, asked)?;
    let complete = CompleteUpload {
        bucket,
        key: key.clone(),
        upload,
        parts: listed.into_iter().map(|listed| listed.part).collect(),
        expectation,
        size_bytes,
        checksum,
    };
    let token = token.map(|token| token.complete(|hash| add_record(hash, &complete)));
    let location = location(call.head);
    let name = call.head.bucket().to_owned();
    let store = call.inner.store.clone();
    let work = async move {
        let deadline = tokio::time::Instant::now() + COMMIT_WAIT_MAX;
        let command = Command::CompleteUpload(complete);
        let outcome = store.mutate(bucket, &key, command, token, deadline).await?;
        let (Outcome::Object(row), replayed) = decided(outcome)? else { return Err(unexpected("Object")) };
        Ok(Done { xml: write_result(&location, &name, &key, &row), replayed })
    };
    let answer = answer_when_done(call, Box::pin(work)).await;
    call.journey.end(Stage::Commit);
    answer
}

/// Judges the checksums of a Complete against its upload (K3), and returns the object's as stated.
fn agree(
    open: Option<&UploadRow>,
    listed: &[Listed],
    stated: Option<(ChecksumAlgorithm, Bytes, Option<u16>)>,
    asked: Option<ChecksumKind>,
) -> S3Result<Option<Checksum>> {
    let algorithm = open.map(part_algorithm);
    let kind = open.map(|open| open.kind.unwrap_or(ChecksumKind::FullObject));
    if let Some(algorithm) = algorithm
        && listed.iter().filter_map(|listed| listed.algorithm).any(|other| other != algorithm)
    {
        return Code::InvalidRequest.fail("The checksum of a part is of another algorithm than the upload's.");
    }
    if let (Some(asked), Some(kind)) = (asked, kind)
        && asked != kind
    {
        return Code::BadDigest.fail(format!(
            "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
            checksum::kind_name(kind)
        ));
    }
    let Some((stated, value, parts)) = stated else { return Ok(None) };
    if algorithm.is_some_and(|algorithm| algorithm != stated) {
        return Code::InvalidRequest.fail("The stated checksum is of another algorithm than the upload's.");
    }
    let kind =
        kind.or(asked).unwrap_or(if parts.is_some() { ChecksumKind::Composite } else { ChecksumKind::FullObject });
    Ok(Some(Checksum { algorithm: stated, kind, value, parts }))
}

fn location(head: &Head) -> String {
    let scheme = if head.encrypted { "https" } else { "http" };
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    format!("{scheme}://{host}{}", head.raw_path)
}

fn write_result(location: &str, bucket: &str, key: &str, row: &ObjectRow) -> Writer {
    let mut xml = Writer::document(600);
    xml.root("CompleteMultipartUploadResult");
    xml.text("Location", location);
    xml.text("Bucket", bucket);
    xml.text("Key", key);
    xml.etag("ETag", &row.etag);
    if let Some(checksum) = &row.checksum {
        xml.text(checksum::element_name(checksum.algorithm), &checksum::show(checksum));
        xml.plain("ChecksumType", checksum::kind_name(checksum.kind).as_bytes());
    }
    xml.close("CompleteMultipartUploadResult");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn m3_part_lists_must_ascend_and_not_be_empty() {
        let list = |numbers: &[u16]| {
            let parts: String = numbers
                .iter()
                .map(|number| format!("<Part><PartNumber>{number}</PartNumber><ETag>&quot;a&quot;</ETag></Part>"))
                .collect();
            read_document(format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>").as_bytes())
        };
        assert_eq!(list(&[1, 5, 7]).expect("gaps are allowed")[1].part.etag, "a");
        assert_eq!(list(&[]).expect_err("empty").code(), Code::MalformedXML);
        assert_eq!(list(&[2, 1]).expect_err("descends").code(), Code::InvalidPartOrder);
        assert_eq!(list(&[1, 1]).expect_err("repeats").code(), Code::InvalidPartOrder);
        assert_eq!(list(&[0]).expect_err("zero").code(), Code::InvalidArgument);
        assert_eq!(list(&[10_001]).expect_err("large").code(), Code::InvalidArgument);
    }

    #[test]
    fn ten_thousand_parts_with_checksums_fit_the_limits() {
        let parts: String = (1..=10_000)
            .map(|number| {
                format!("<Part><PartNumber>{number}</PartNumber><ETag>a</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part>")
            })
            .collect();
        let body = format!("<CompleteMultipartUpload xmlns='u'>{parts}</CompleteMultipartUpload>");
        assert_eq!(read_document(body.as_bytes()).expect("fits").len(), 10_000);
    }

    proptest! {
        #[test]
        fn any_part_list_is_read_or_refused_cleanly(noise in "(<CompleteMultipartUpload>|<Part>|<PartNumber>1</PartNumber>|<ETag>a</ETag>|</Part>|</CompleteMultipartUpload>|<x/>|&){0,12}") {
            let _ = read_document(noise.as_bytes());
        }
    }
}
