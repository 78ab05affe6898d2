//! GetObject and HeadObject: one function, so that their headers cannot differ.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use plinth_protocol::meta::ObjectView;
use plinth_protocol::object::{Body as Place, Checksum, ChecksumKind, ObjectRow, PartSpan};
use plinth_protocol::{Failure, FailureKind};
use std::future::poll_fn;
use std::ops::Range;

use super::{etag_value, object_view, put_checksum, put_etag};
use crate::conditions::{self, Verdict};
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::head::Head;
use crate::journey::Stage;
use crate::range::ByteRange;
use crate::reply::{self, Body};
use crate::store::{BodyReader, Store};
use crate::stored;
use crate::support::Operation;

/// Query parameters that replace a header of a successful answer.
const OVERRIDES: [(&str, HeaderName); 6] = [
    ("response-content-type", header::CONTENT_TYPE),
    ("response-content-language", header::CONTENT_LANGUAGE),
    ("response-expires", header::EXPIRES),
    ("response-cache-control", header::CACHE_CONTROL),
    ("response-content-disposition", header::CONTENT_DISPOSITION),
    ("response-content-encoding", header::CONTENT_ENCODING),
];

/// What of the object the answer shows.
struct Slice {
    bytes: Range<u64>,
    /// 206 with Content-Range.
    is_partial: bool,
    /// The part asked for, where it was one.
    part: Option<PartSlice>,
}

struct PartSlice {
    checksum: Option<Bytes>,
    /// Number of parts, where the object has any.
    count: Option<usize>,
}

/// GetObject and HeadObject.
pub(super) async fn get_object<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let part = call.head.query.number("partNumber", 1, 10_000)?;
    let mut ranges = call.head.headers.get_all(header::RANGE).iter();
    // Several ranges, in one header or in several, count as none (R1).
    let range_header = match (ranges.next(), ranges.next()) {
        (Some(range), None) => range.to_str().ok(),
        _ => None,
    };
    if part.is_some() && range_header.is_some() {
        return Code::InvalidRequest.fail("Cannot specify both Range header and partNumber query parameter");
    }
    let mut failed: Option<(ObjectRow, Failure)> = None;
    loop {
        let view = object_view(call, true).await?;
        if let Some((_, failure)) = failed.take_if(|(row, _)| *row == view.row) {
            return Err(read_failure(failure));
        }
        judge(call.head, &view.row)?;
        let slice = match part {
            Some(number) => part_slice(&view, number)?,
            None => range_slice(call.head, range_header, &view.row)?,
        };
        let mut response = reply::empty(if slice.is_partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
        write_headers(call.head, &view, &slice, response.headers_mut())?;
        if call.operation == Operation::HeadObject {
            return Ok(response);
        }
        let row = view.row.clone();
        match open(call, view, slice.bytes).await {
            Ok(body) => {
                *response.body_mut() = body;
                return Ok(response);
            }
            // Replaced between its row and its bytes: what stands there now is read instead.
            Err(failure) if failed.is_none() && is_gone(&failure) => failed = Some((row, failure)),
            Err(failure) => return Err(read_failure(failure)),
        }
    }
}

/// Returns whether a read failed as it does when the object was replaced or deleted meanwhile.
fn is_gone(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::Conflict | FailureKind::NotFound)
}

fn judge(head: &Head, row: &ObjectRow) -> S3Result<()> {
    match conditions::judge_read(head, "", row)? {
        Verdict::Proceed => Ok(()),
        Verdict::Failed(condition) => Err(conditions::failed(condition)),
        Verdict::NotModified => {
            let modified = HeaderValue::try_from(Seconds::from_millis(row.modified.millis()).http());
            Err(S3Error::from(Code::NotModified)
                .header(header::ETAG, etag_value(&row.etag))
                .header(header::LAST_MODIFIED, modified.expect("a date is a valid header value")))
        }
    }
}

fn range_slice(head: &Head, range: Option<&str>, row: &ObjectRow) -> S3Result<Slice> {
    let whole = Slice { bytes: 0..row.size_bytes, is_partial: false, part: None };
    let Some(range) = range.and_then(ByteRange::parse) else { return Ok(whole) };
    let if_range = head.header("if-range")?;
    if !conditions::range_still_holds(if_range.as_deref(), row) {
        return Ok(whole);
    }
    Ok(Slice { bytes: range.resolve(row.size_bytes)?, is_partial: true, part: None })
}

fn part_slice(view: &ObjectView, number: u64) -> S3Result<Slice> {
    let row = &view.row;
    let spans: Option<&[PartSpan]> = match view.body.as_ref().map(|body| &body.body) {
        Some(Place::Parts(spans)) => Some(spans),
        _ => None,
    };
    let Some(spans) = spans else {
        // An object that was not multipart is its own part 1.
        if number != 1 {
            return Err(Code::InvalidPartNumber.into());
        }
        let part = Some(PartSlice { checksum: None, count: None });
        return Ok(Slice { bytes: 0..row.size_bytes, is_partial: row.size_bytes > 0, part });
    };
    // Parts are counted as the object has them: gaps in the upload's numbers are gone.
    let at = usize::try_from(number - 1).unwrap_or(usize::MAX);
    let span = spans.get(at).ok_or(Code::InvalidPartNumber)?;
    let start = spans[..at].iter().fold(0u64, |sum, span| sum.saturating_add(span.size_bytes));
    let part = PartSlice { checksum: span.checksum.clone(), count: Some(spans.len()) };
    Ok(Slice { bytes: start..start.saturating_add(span.size_bytes), is_partial: span.size_bytes > 0, part: Some(part) })
}

fn write_headers(head: &Head, view: &ObjectView, slice: &Slice, out: &mut HeaderMap) -> S3Result<()> {
    let row = &view.row;
    if let Some(body) = &view.body {
        stored::write(&body.headers, out);
    }
    put_etag(out, &row.etag);
    let modified = Seconds::from_millis(row.modified.millis()).http();
    out.insert(header::LAST_MODIFIED, HeaderValue::try_from(modified).expect("a date is a valid header value"));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let length = slice.bytes.end - slice.bytes.start;
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if slice.is_partial {
        let range = format!("bytes {}-{}/{}", slice.bytes.start, slice.bytes.end - 1, row.size_bytes);
        out.insert(header::CONTENT_RANGE, HeaderValue::try_from(range).expect("digits are a valid header value"));
    }
    if let Some(count) = slice.part.as_ref().and_then(|part| part.count) {
        out.insert("x-amz-mp-parts-count", HeaderValue::from(count));
    }
    if head.has("x-amz-checksum-mode") {
        write_checksum(row, slice, out);
    }
    for (name, target) in &OVERRIDES {
        let Some(value) = head.query.get(name) else { continue };
        let parsed = HeaderValue::from_bytes(value.as_bytes());
        out.insert(target, parsed.map_err(|_| S3Error::argument(name, value, "The value is not a valid header."))?);
    }
    Ok(())
}

/// Shows the checksum of what is sent: the object's, or a part's; never one of a range (K4).
fn write_checksum(row: &ObjectRow, slice: &Slice, out: &mut HeaderMap) {
    let Some(whole) = &row.checksum else { return };
    match &slice.part {
        None if slice.is_partial => {}
        None => put_checksum(out, whole),
        Some(part) => match (&part.checksum, part.count) {
            (Some(value), _) => {
                let checksum =
                    Checksum { algorithm: whole.algorithm, kind: whole.kind, value: value.clone(), parts: None };
                put_checksum(out, &checksum);
            }
            // A single-part object's part is the whole.
            (None, None) if whole.kind == ChecksumKind::FullObject => put_checksum(out, whole),
            (None, _) => {}
        },
    }
}

/// Opens the object up to its first bytes, so that a failure is still an S3 error; later ones break
/// the connection (X3).
async fn open<S: Store>(call: &mut Call<'_, S>, mut view: ObjectView, bytes: Range<u64>) -> Result<Body, Failure> {
    let internal = |text: &str| Err(Failure::new(FailureKind::Internal, text));
    let length = bytes.end - bytes.start;
    if length == 0 {
        return Ok(Body::empty());
    }
    if let Some(Place::Inline(whole)) = view.body.as_mut().map(|body| &mut body.body) {
        let whole = std::mem::take(whole);
        if whole.len() as u64 != view.row.size_bytes {
            return internal("row and inline bytes differ");
        }
        return Ok(Body::whole(whole.slice(bytes.start as usize..bytes.end as usize)));
    }
    let Ok(bucket) = call.bucket().map(|row| row.bucket) else { return internal("an object without a bucket") };
    let mut reader = call.inner.store.open(bucket, call.head.key(), &view, bytes);
    let first = poll_fn(|cx| reader.poll_next(cx)).await;
    call.journey.end(Stage::FirstBytes);
    match first {
        Some(Ok(first)) if first.len() as u64 <= length => Ok(Body::stream(first, Box::new(reader), length)),
        Some(Ok(_)) | None => internal("the object's length is not what its row says"),
        Some(Err(failure)) => Err(failure),
    }
}

/// A read that cannot be served now may be served later, whatever the reason.
pub(super) fn read_failure(failure: Failure) -> S3Error {
    match failure.kind {
        FailureKind::Corrupt | FailureKind::NotFound => {
            S3Error::from(Code::InternalError).because(format!("object cannot be read: {failure}"))
        }
        // Replaced while it was read, or a disk that has moved on: the next try reads what is there.
        FailureKind::Conflict => Failure { kind: FailureKind::Unavailable, ..failure }.into(),
        _ => failure.into(),
    }
}
