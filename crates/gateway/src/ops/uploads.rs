//! ListParts and ListMultipartUploads.

use http::Response;
use plinth_protocol::meta::{
    LIST_ENTRIES_MAX, PartsPage, PartsQuery, Query, Reply, UploadEntry, UploadsPage, UploadsQuery,
};
use plinth_protocol::object::{ChecksumAlgorithm, ChecksumKind, Etag};
use plinth_protocol::{FailureKind, UploadId};

use super::list::{encoding, page_size, term};
use super::multipart::{open_upload, upload_id};
use super::unexpected;
use crate::checksum;
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::journey::Stage;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::xml::{UrlEncoded, Writer};

/// ListParts.
pub(super) async fn list_parts<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let upload = upload_id(call.head)?;
    let limit = page_size(&call.head.query, "max-parts")?;
    let marker = call.head.query.number("part-number-marker", 0, u64::from(u16::MAX))?.unwrap_or(0);
    let encoding = encoding(&call.head.query)?;
    let open = open_upload(call, upload).await?;
    let key = call.head.key().to_owned();
    // Markers above the last number show nothing; `from` is inclusive.
    let from = u16::try_from(marker + 1).unwrap_or(u16::MAX);
    let page = if limit == 0 {
        PartsPage { parts: Vec::new(), more: false }
    } else {
        let query = Query::Parts(PartsQuery { bucket, key: key.clone(), upload, from, limit });
        match call.inner.store.query(bucket, &key, query, call.deadline()).await? {
            Reply::Parts(page) => page,
            Reply::Absent(kind) => return Err(kind.into()),
            _ => return Err(unexpected("Parts")),
        }
    };
    call.journey.end(Stage::Row);
    let account = &call.verified.credential.account;
    let mut xml = Writer::document(800 + page.parts.len() * 240);
    xml.root("ListPartsResult");
    xml.text("Bucket", call.head.bucket());
    xml.name("Key", &key, encoding);
    xml.text("UploadId", &upload.to_string());
    xml.open("Initiator");
    xml.text("ID", account);
    xml.text("DisplayName", account);
    xml.close("Initiator");
    xml.owner(account);
    xml.plain("StorageClass", b"STANDARD");
    let algorithm = open.algorithm.unwrap_or(ChecksumAlgorithm::Crc64Nvme);
    xml.plain("ChecksumAlgorithm", checksum::value_name(algorithm).as_bytes());
    let kind = open.kind.unwrap_or(ChecksumKind::FullObject);
    xml.plain("ChecksumType", checksum::kind_name(kind).as_bytes());
    xml.number("PartNumberMarker", marker);
    let last = page.parts.last().map_or(0, |(number, _)| u64::from(*number));
    xml.number("NextPartNumberMarker", last);
    xml.number("MaxParts", u64::from(limit));
    xml.flag("IsTruncated", page.more);
    for (number, part) in &page.parts {
        xml.open("Part");
        xml.number("PartNumber", u64::from(*number));
        xml.plain("LastModified", &Seconds::from_millis(part.modified.millis()).xml());
        xml.etag("ETag", &Etag { md5: part.md5, parts: None });
        xml.number("Size", part.size_bytes);
        if let Some(checksum) = &part.checksum {
            xml.text(checksum::element_name(checksum.algorithm), &checksum::show(checksum));
        }
        xml.close("Part");
    }
    xml.close("ListPartsResult");
    Ok(reply::xml(xml))
}

/// ListMultipartUploads: by key, then upload id; pages with both markers (M8).
pub(super) async fn list_uploads<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let bucket = call.bucket()?.bucket;
    let query = &call.head.query;
    let prefix = term(query, "prefix")?;
    let delimiter = Some(term(query, "delimiter")?).filter(|text| !text.is_empty());
    let key_marker = term(query, "key-marker")?;
    let id_marker = term(query, "upload-id-marker")?;
    let encoding = encoding(query)?;
    let limit = page_size(query, "max-uploads")?;
    let after_upload = match id_marker.as_str() {
        // Without a key marker the id marker means nothing.
        "" => None,
        _ if key_marker.is_empty() => None,
        text => Some(UploadId(
            u128::from_str_radix(text, 16)
                .map_err(|_| S3Error::argument("upload-id-marker", text, "Invalid uploadId marker"))?,
        )),
    };
    let ask = UploadsQuery {
        bucket,
        prefix: prefix.clone(),
        delimiter: delimiter.clone(),
        after_key: Some(key_marker.clone()).filter(|key| !key.is_empty()),
        after_upload,
        limit: limit.clamp(1, LIST_ENTRIES_MAX),
    };
    let mut page = call.inner.store.uploads(ask).await.map_err(|failure| match failure.kind {
        FailureKind::NotFound => S3Error::from(Code::NoSuchBucket),
        _ => failure.into(),
    })?;
    if limit == 0 {
        page.uploads.clear();
        page.prefixes.clear();
        page.more = false;
    }
    call.journey.end(Stage::Row);
    let account = &call.verified.credential.account;
    let mut xml = Writer::document(600 + page.uploads.len() * 400);
    xml.root("ListMultipartUploadsResult");
    xml.text("Bucket", call.head.bucket());
    xml.name("KeyMarker", &key_marker, encoding);
    xml.text("UploadIdMarker", &id_marker);
    write_next_markers(&mut xml, &page, encoding);
    if let Some(delimiter) = &delimiter {
        xml.name("Delimiter", delimiter, encoding);
    }
    xml.name("Prefix", &prefix, encoding);
    if encoding == UrlEncoded::Yes {
        xml.plain("EncodingType", b"url");
    }
    xml.number("MaxUploads", u64::from(limit));
    xml.flag("IsTruncated", page.more);
    for entry in &page.uploads {
        write_upload(&mut xml, entry, account, encoding);
    }
    for prefix in &page.prefixes {
        xml.open("CommonPrefixes");
        xml.name("Prefix", prefix, encoding);
        xml.close("CommonPrefixes");
    }
    xml.close("ListMultipartUploadsResult");
    Ok(reply::xml(xml))
}

/// Where the next page begins: behind the last upload or the last common prefix, whichever is later.
fn write_next_markers(xml: &mut Writer, page: &UploadsPage, encoding: UrlEncoded) {
    match (page.uploads.last(), page.prefixes.last()) {
        _ if !page.more => {}
        (Some(entry), prefix) if prefix.is_none_or(|prefix| entry.key > *prefix) => {
            xml.name("NextKeyMarker", &entry.key, encoding);
            xml.text("NextUploadIdMarker", &entry.upload.to_string());
        }
        (_, Some(prefix)) => xml.name("NextKeyMarker", prefix, encoding),
        _ => {}
    }
}

/// One `Upload` of a listing.
fn write_upload(xml: &mut Writer, entry: &UploadEntry, account: &str, encoding: UrlEncoded) {
    xml.open("Upload");
    xml.name("Key", &entry.key, encoding);
    xml.text("UploadId", &entry.upload.to_string());
    xml.open("Initiator");
    xml.text("ID", account);
    xml.text("DisplayName", account);
    xml.close("Initiator");
    xml.owner(account);
    xml.plain("StorageClass", b"STANDARD");
    xml.plain("Initiated", &Seconds::from_millis(entry.row.initiated.millis()).xml());
    if let Some(algorithm) = entry.row.algorithm {
        xml.plain("ChecksumAlgorithm", checksum::value_name(algorithm).as_bytes());
    }
    if let Some(kind) = entry.row.kind {
        xml.plain("ChecksumType", checksum::kind_name(kind).as_bytes());
    }
    xml.close("Upload");
}
