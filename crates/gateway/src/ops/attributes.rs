//! GetObjectAttributes, and the truthful answers about tags and access control lists.

use http::{HeaderValue, Response, header};
use plinth_protocol::object::{Body as Place, ChecksumAlgorithm, ObjectRow, PartSpan};

use super::bucket::owner_only;
use super::object_view;
use crate::checksum;
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::xml::Writer;

/// Parts in one page, at most.
const PARTS_MAX: usize = 1000;
const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];

/// GetObjectAcl: the owner has full control.
pub(super) async fn acl<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    object_view(call, false).await?;
    Ok(reply::xml(owner_only(&call.bucket()?.owner)))
}

/// GetObjectTagging: no object has tags until they can be set.
pub(super) async fn tagging<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    object_view(call, false).await?;
    let mut xml = Writer::document(200);
    xml.root("Tagging");
    xml.open("TagSet");
    xml.close("TagSet");
    xml.close("Tagging");
    Ok(reply::xml(xml))
}

/// Which part numbers a page shows.
struct PartsPage {
    after: usize,
    limit: usize,
}

/// GetObjectAttributes.
pub(super) async fn attributes<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let Some(wanted) = call.head.header("x-amz-object-attributes")? else {
        return Code::InvalidRequest.fail("Missing required header for this request: x-amz-object-attributes");
    };
    let wanted: Vec<String> =
        wanted.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    if let Some(other) = wanted.iter().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(S3Error::argument("x-amz-object-attributes", other, "Invalid attribute name specified."));
    }
    let page = PartsPage {
        after: number(call, "x-amz-part-number-marker")?.unwrap_or(0),
        limit: number(call, "x-amz-max-parts")?.unwrap_or(PARTS_MAX).min(PARTS_MAX),
    };
    let view = object_view(call, true).await?;
    let row = &view.row;
    let has = |name: &str| wanted.iter().any(|wanted| wanted == name);
    let mut xml = Writer::document(600);
    xml.root("GetObjectAttributesResponse");
    if has("ETag") {
        // Without quotes, unlike everywhere else.
        xml.text("ETag", &row.etag.to_string());
    }
    if let Some(checksum) = row.checksum.as_ref().filter(|_| has("Checksum")) {
        xml.open("Checksum");
        xml.text(checksum::element_name(checksum.algorithm), &checksum::show(checksum));
        xml.plain("ChecksumType", checksum::kind_name(checksum.kind).as_bytes());
        xml.close("Checksum");
    }
    if let Some(Place::Parts(spans)) = view.body.as_ref().map(|body| &body.body).filter(|_| has("ObjectParts")) {
        write_parts(&mut xml, row, spans, &page);
    }
    if has("StorageClass") {
        xml.plain("StorageClass", b"STANDARD");
    }
    if has("ObjectSize") {
        xml.number("ObjectSize", row.size_bytes);
    }
    xml.close("GetObjectAttributesResponse");
    let mut response = reply::xml(xml);
    let modified = HeaderValue::try_from(Seconds::from_millis(row.modified.millis()).http());
    response.headers_mut().insert(header::LAST_MODIFIED, modified.expect("a date is a valid header value"));
    Ok(response)
}

fn number<S: Store>(call: &Call<'_, S>, name: &str) -> S3Result<Option<usize>> {
    let Some(text) = call.head.header(name)? else { return Ok(None) };
    match text.parse::<u32>() {
        Ok(number) => Ok(Some(number as usize)),
        Err(_) => Err(S3Error::argument(name, &text, format!("{name} is not a number."))),
    }
}

/// Lists parts only when they carry checksums; the count is shown always.
fn write_parts(xml: &mut Writer, row: &ObjectRow, spans: &[PartSpan], page: &PartsPage) {
    xml.open("ObjectParts");
    xml.number("PartsCount", spans.len() as u64);
    let algorithm: Option<ChecksumAlgorithm> = row.checksum.as_ref().map(|checksum| checksum.algorithm);
    if let Some(algorithm) = algorithm.filter(|_| spans.iter().all(|span| span.checksum.is_some())) {
        let shown: Vec<(usize, &PartSpan)> =
            spans.iter().enumerate().skip(page.after).take(page.limit).map(|(at, span)| (at + 1, span)).collect();
        let last = shown.last().map_or(page.after, |(number, _)| *number);
        xml.number("PartNumberMarker", page.after as u64);
        xml.number("NextPartNumberMarker", last as u64);
        xml.number("MaxParts", page.limit as u64);
        xml.flag("IsTruncated", last < spans.len() && page.limit > 0);
        for (number, span) in shown {
            xml.open("Part");
            if let Some(value) = &span.checksum {
                xml.text(checksum::element_name(algorithm), &checksum::show_value(value));
            }
            xml.number("PartNumber", number as u64);
            xml.number("Size", span.size_bytes);
            xml.close("Part");
        }
    }
    xml.close("ObjectParts");
}
