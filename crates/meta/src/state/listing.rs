//! Pages of keys: objects and open uploads, with prefixes and delimiters.
//!
//! The walk reads one family in key order and seeks past a common prefix instead of walking
//! through it, so that a page costs about as many steps as it has lines (L2).

use super::rows::{self, OpenBucketRow, ROW_VERSION};
use super::store::{Cursor, Family, View};
use super::{StateError, keys};
use plinth_protocol::meta::{LIST_ENTRIES_MAX, ListPage, ListQuery, UploadEntry, UploadsPage, UploadsQuery};
use plinth_protocol::object::{ObjectRow, UploadRow};
use plinth_protocol::wire::{encode_field, encode_varint};
use plinth_protocol::{BucketId, HybridTime, UploadId};

/// Where the lines of a listing go.
trait Lines {
    fn entry(&mut self, key: &str, row: &[u8]) -> Result<(), StateError>;
    fn prefix(&mut self, prefix: &str);
}

impl Lines for ListPage {
    fn entry(&mut self, key: &str, row: &[u8]) -> Result<(), StateError> {
        let row: ObjectRow = rows::decode(Family::Objects, row)?;
        self.entries.push((key.to_owned(), row));
        Ok(())
    }

    fn prefix(&mut self, prefix: &str) {
        self.prefixes.push(prefix.to_owned());
    }
}

/// Answers a listing of objects.
pub(super) fn list<V: View>(view: &V, query: &ListQuery) -> Result<ListPage, StateError> {
    let mut page = ListPage { entries: Vec::new(), prefixes: Vec::new(), more: false };
    page.more = walk(view, query, &mut page)?;
    Ok(page)
}

/// Answers a listing in the wire form of [`ListPage`]. Rows are copied as they stand: a row's
/// fields and an `ObjectRow` on the wire are the same bytes.
pub(super) fn list_encoded<V: View>(view: &V, query: &ListQuery, out: &mut Vec<u8>) -> Result<(), StateError> {
    let mut lines = EncodedLines {
        entries: Vec::with_capacity(ENTRY_BYTES_USUAL * query.limit.min(1000) as usize),
        prefixes: Vec::new(),
    };
    let more = walk(view, query, &mut lines)?;
    if !lines.entries.is_empty() {
        encode_varint(ENTRIES_TAG << 1, out);
        encode_varint(lines.entries.len() as u64, out);
        out.extend_from_slice(&lines.entries);
    }
    encode_field(PREFIXES_TAG, false, &lines.prefixes, out);
    encode_field(MORE_TAG, false, &more, out);
    Ok(())
}

/// Tags of `ListPage`; a test holds them to the protocol's.
const ENTRIES_TAG: u64 = 1;
const PREFIXES_TAG: u64 = 2;
const MORE_TAG: u64 = 3;
/// Room for one line: what most rows and keys fit in.
const ENTRY_BYTES_USUAL: usize = 160;

struct EncodedLines {
    entries: Vec<u8>,
    prefixes: Vec<String>,
}

impl Lines for EncodedLines {
    fn entry(&mut self, key: &str, row: &[u8]) -> Result<(), StateError> {
        let fields = rows::fields(row).map_err(rows::unreadable(Family::Objects))?;
        debug_assert_eq!(row[0], ROW_VERSION);
        let out = &mut self.entries;
        encode_varint((counted_bytes(key.len()) + counted_bytes(fields.len())) as u64, out);
        encode_varint(key.len() as u64, out);
        out.extend_from_slice(key.as_bytes());
        encode_varint(fields.len() as u64, out);
        out.extend_from_slice(fields);
        Ok(())
    }

    fn prefix(&mut self, prefix: &str) {
        self.prefixes.push(prefix.to_owned());
    }
}

/// Bytes of a value behind its varint length.
fn counted_bytes(length: usize) -> usize {
    let bits = usize::BITS - (length | 1).leading_zeros();
    bits.div_ceil(7) as usize + length
}

/// Walks over the lines of a page; returns whether anything follows it.
fn walk<V: View>(view: &V, query: &ListQuery, lines: &mut impl Lines) -> Result<bool, StateError> {
    let limit = query.limit.min(LIST_ENTRIES_MAX);
    let mut range = keys::prefix(query.bucket, &query.prefix);
    if let Some(after) = &query.after {
        let start = match query.after_prefix {
            true => keys::behind_prefix(query.bucket, after),
            false => Some(keys::behind(query.bucket, after)),
        };
        let Some(start) = start else {
            return Ok(false);
        };
        range.start = range.start.max(start);
    }
    if limit == 0 {
        return Ok(false);
    }
    let mut cursor = view.cursor(Family::Objects, &range)?;
    let mut shown = 0;
    while let Some((place, row)) = cursor.item() {
        if shown == limit {
            return Ok(true);
        }
        shown += 1;
        let key = keys::parse_object(place).map_err(rows::unreadable(Family::Objects))?;
        let Some(common) = common_prefix(&key, &query.prefix, query.delimiter.as_deref()) else {
            lines.entry(&key, row)?;
            cursor.step()?;
            continue;
        };
        lines.prefix(common);
        let Some(behind) = keys::behind_prefix(query.bucket, common) else {
            return Ok(false);
        };
        drop(key);
        cursor.seek(&behind)?;
    }
    Ok(false)
}

/// Returns the common prefix that a key is rolled up into: up to and including the first delimiter
/// behind the listing's prefix.
fn common_prefix<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let found = key.get(prefix.len()..)?.find(delimiter)?;
    Some(&key[..prefix.len() + found + delimiter.len()])
}

/// Returns when a bucket was opened last, where it is open. Uploads from before that have been dropped with it, also
/// where their rows still wait to be taken apart.
pub(super) fn opened<V: View>(view: &V, bucket: BucketId) -> Result<Option<HybridTime>, StateError> {
    let row = view.get(Family::State, &keys::open_bucket(bucket))?;
    let row: Option<OpenBucketRow> = row.map(|row| rows::decode(Family::State, &row)).transpose()?;
    Ok(row.map(|row| row.opened))
}

/// Answers a listing of open uploads, by key, then upload id (M8).
pub(super) fn uploads<V: View>(view: &V, query: &UploadsQuery) -> Result<UploadsPage, StateError> {
    let mut page = UploadsPage { uploads: Vec::new(), prefixes: Vec::new(), more: false };
    let limit = query.limit.min(LIST_ENTRIES_MAX) as usize;
    let mut range = keys::prefix(query.bucket, &query.prefix);
    let Some(start) = uploads_start(query) else {
        return Ok(page);
    };
    range.start = range.start.max(start);
    if limit == 0 {
        return Ok(page);
    }
    let opened = opened(view, query.bucket)?;
    let mut cursor = view.cursor(Family::Uploads, &range)?;
    while let Some((place, row)) = cursor.item() {
        let parsed = keys::parse(place).map_err(rows::unreadable(Family::Uploads))?;
        let upload_row: UploadRow = rows::decode(Family::Uploads, row)?;
        if opened.is_none_or(|opened| upload_row.initiated < opened) {
            cursor.step()?;
            continue;
        }
        if page.uploads.len() + page.prefixes.len() == limit {
            page.more = true;
            break;
        }
        let Some(common) = common_prefix(&parsed.key, &query.prefix, query.delimiter.as_deref()) else {
            let upload = keys::parse_upload(parsed.suffix).map_err(rows::unreadable(Family::Uploads))?;
            page.uploads.push(UploadEntry { key: parsed.key, upload, row: upload_row });
            cursor.step()?;
            continue;
        };
        page.prefixes.push(common.to_owned());
        match keys::behind_prefix(query.bucket, common) {
            Some(behind) => cursor.seek(&behind)?,
            None => break,
        }
    }
    Ok(page)
}

/// Returns where a page of uploads starts; none behind the very last key.
fn uploads_start(query: &UploadsQuery) -> Option<Vec<u8>> {
    let Some(after) = &query.after_key else {
        return Some(Vec::new());
    };
    // A marker that is itself a common prefix of this listing has been shown: on behind all of it.
    if common_prefix(after, &query.prefix, query.delimiter.as_deref()) == Some(after)
        && after.starts_with(&query.prefix)
    {
        return keys::behind_prefix(query.bucket, after);
    }
    match query.after_upload {
        Some(UploadId(u128::MAX)) | None => Some(keys::behind(query.bucket, after)),
        Some(upload) => Some(keys::upload(query.bucket, after, UploadId(upload.0 + 1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_bytes_are_those_of_the_wire() {
        for length in [0usize, 1, 127, 128, 129, 16_383, 16_384, 70_000] {
            let mut out = Vec::new();
            encode_varint(length as u64, &mut out);
            assert_eq!(counted_bytes(length), out.len() + length);
        }
    }

    #[test]
    fn delimiters_may_be_long_and_start_behind_the_prefix() {
        assert_eq!(common_prefix("a/b/c", "", Some("/")), Some("a/"));
        assert_eq!(common_prefix("a/b/c", "a/", Some("/")), Some("a/b/"));
        assert_eq!(common_prefix("a--b", "a", Some("--")), Some("a--"));
        assert_eq!(common_prefix("a-b", "a", Some("--")), None);
        assert_eq!(common_prefix("a/b", "", Some("")), None);
    }
}
