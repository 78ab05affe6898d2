//! ListObjectsV2 and ListObjects: a page of keys straight into a buffer.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use plinth_protocol::FailureKind;
use plinth_protocol::meta::{LIST_ENTRIES_MAX, ListPage, ListQuery};
use plinth_protocol::object::{ChecksumKind, ObjectRow};

use crate::checksum;
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Call;
use crate::head::Query;
use crate::journey::Stage;
use crate::reply::{self, Body};
use crate::store::Store;
use crate::xml::{UrlEncoded, Writer};

/// Longest prefix, delimiter or marker in bytes.
const TERM_BYTES_MAX: usize = 1024;
/// Format of a continuation token; older ones stay readable.
const TOKEN_VERSION: u8 = 1;

/// Where a listing goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The last key or common prefix shown.
    pub after: String,
    /// Whether it is a common prefix.
    pub is_prefix: bool,
}

/// Writes an opaque token: version, flags, name.
pub(super) fn encode_token(after: &str, is_prefix: bool) -> String {
    let mut bytes = vec![TOKEN_VERSION, u8::from(is_prefix)];
    bytes.extend_from_slice(after.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a token.
///
/// # Errors
/// `InvalidArgument` for anything that we did not write.
pub(super) fn decode_token(token: &str) -> S3Result<Place> {
    let bad = || S3Error::argument("continuation-token", token, "The continuation token provided is incorrect");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    match bytes.as_slice() {
        [TOKEN_VERSION, flag @ (0 | 1), name @ ..] if !name.is_empty() && name.len() <= TERM_BYTES_MAX => {
            let after = std::str::from_utf8(name).map_err(|_| bad())?.to_owned();
            Ok(Place { after, is_prefix: *flag == 1 })
        }
        _ => Err(bad()),
    }
}

/// What both versions of the operation ask for.
struct Terms {
    prefix: String,
    delimiter: Option<String>,
    max_keys: u32,
    encoding: UrlEncoded,
}

pub(super) fn term(query: &Query, name: &str) -> S3Result<String> {
    let text = query.get(name).unwrap_or_default();
    if text.len() > TERM_BYTES_MAX {
        return Err(S3Error::argument(name, "", format!("{name} is longer than {TERM_BYTES_MAX} bytes.")));
    }
    Ok(text.to_owned())
}

pub(super) fn encoding(query: &Query) -> S3Result<UrlEncoded> {
    match query.get("encoding-type") {
        None | Some("") => Ok(UrlEncoded::No),
        Some("url") => Ok(UrlEncoded::Yes),
        Some(other) => Err(S3Error::argument("encoding-type", other, "Invalid Encoding Method specified in Request")),
    }
}

/// Reads a page size: above 1,000 counts as 1,000 (L3).
pub(super) fn page_size(query: &Query, name: &str) -> S3Result<u32> {
    match query.get(name) {
        None | Some("") => Ok(LIST_ENTRIES_MAX),
        Some(text) => match text.parse::<u32>() {
            Ok(size) if i32::try_from(size).is_ok() => Ok(size.min(LIST_ENTRIES_MAX)),
            _ => Err(S3Error::argument(
                name,
                text,
                format!("Argument {name} must be an integer between 0 and 2147483647"),
            )),
        },
    }
}

fn terms(query: &Query) -> S3Result<Terms> {
    Ok(Terms {
        prefix: term(query, "prefix")?,
        delimiter: Some(term(query, "delimiter")?).filter(|text| !text.is_empty()),
        max_keys: page_size(query, "max-keys")?,
        encoding: encoding(query)?,
    })
}

async fn page<S: Store>(call: &mut Call<'_, S>, terms: &Terms, place: Option<Place>) -> S3Result<ListPage> {
    let bucket = call.bucket()?.bucket;
    if terms.max_keys == 0 {
        return Ok(ListPage { entries: Vec::new(), prefixes: Vec::new(), more: false });
    }
    let (after, after_prefix) = match place {
        Some(place) => (Some(place.after), place.is_prefix),
        None => (None, false),
    };
    let query = ListQuery {
        bucket,
        prefix: terms.prefix.clone(),
        delimiter: terms.delimiter.clone(),
        after,
        after_prefix,
        limit: terms.max_keys,
    };
    let page = call.inner.store.list(query).await.map_err(|failure| match failure.kind {
        FailureKind::NotFound => S3Error::from(Code::NoSuchBucket),
        _ => failure.into(),
    });
    call.journey.end(Stage::Row);
    page
}

/// Returns the last thing on a page: where the next one starts.
fn last_shown(page: &ListPage) -> Option<Place> {
    let key = page.entries.last().map(|(key, _)| key);
    match (key, page.prefixes.last()) {
        (Some(key), Some(prefix)) if key > prefix => Some(Place { after: key.clone(), is_prefix: false }),
        (_, Some(prefix)) => Some(Place { after: prefix.clone(), is_prefix: true }),
        (Some(key), None) => Some(Place { after: key.clone(), is_prefix: false }),
        (None, None) => None,
    }
}

/// ListObjectsV2.
pub(super) async fn list_v2<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    let query = &call.head.query;
    let terms = terms(query)?;
    let start_after = term(query, "start-after")?;
    let token = query.get("continuation-token");
    let fetch_owner = matches!(query.get("fetch-owner"), Some("true"));
    let place = match token {
        Some(token) => Some(decode_token(token)?),
        None if start_after.is_empty() => None,
        None => Some(Place { after: start_after.clone(), is_prefix: false }),
    };
    let token = token.map(str::to_owned);
    let page = page(call, &terms, place).await?;
    let owner = fetch_owner.then(|| call.verified.credential.account.clone());

    let mut xml = Writer::document(600 + page.entries.len() * 320 + page.prefixes.len() * 80);
    xml.root("ListBucketResult");
    xml.text("Name", call.head.bucket());
    xml.name("Prefix", &terms.prefix, terms.encoding);
    if let Some(token) = &token {
        xml.text("ContinuationToken", token);
    }
    if let Some(next) = last_shown(&page).filter(|_| page.more) {
        xml.text("NextContinuationToken", &encode_token(&next.after, next.is_prefix));
    }
    if !start_after.is_empty() {
        xml.name("StartAfter", &start_after, terms.encoding);
    }
    xml.number("KeyCount", (page.entries.len() + page.prefixes.len()) as u64);
    write_page(&mut xml, &page, &terms, owner.as_deref());
    xml.close("ListBucketResult");
    Ok(reply::xml(xml))
}

/// ListObjects, the first version: NextMarker only with a delimiter (L4).
pub(super) async fn list_v1<S: Store>(call: &mut Call<'_, S>) -> S3Result<Response<Body>> {
    if let Some(other) = call.head.query.get("list-type") {
        return Err(S3Error::argument("list-type", other, "Invalid List Type specified in Request"));
    }
    let terms = terms(&call.head.query)?;
    let marker = term(&call.head.query, "marker")?;
    let place =
        (!marker.is_empty()).then(|| Place { is_prefix: is_common_prefix(&marker, &terms), after: marker.clone() });
    let page = page(call, &terms, place).await?;
    let owner = call.verified.credential.account.clone();

    let mut xml = Writer::document(600 + page.entries.len() * 420 + page.prefixes.len() * 80);
    xml.root("ListBucketResult");
    xml.text("Name", call.head.bucket());
    xml.name("Prefix", &terms.prefix, terms.encoding);
    xml.name("Marker", &marker, terms.encoding);
    if let Some(next) = last_shown(&page).filter(|_| page.more && terms.delimiter.is_some()) {
        xml.name("NextMarker", &next.after, terms.encoding);
    }
    write_page(&mut xml, &page, &terms, Some(&owner));
    xml.close("ListBucketResult");
    Ok(reply::xml(xml))
}

/// Returns whether a marker is what NextMarker says for a common prefix: everything under it has
/// been shown with it.
fn is_common_prefix(marker: &str, terms: &Terms) -> bool {
    let Some(delimiter) = terms.delimiter.as_deref() else { return false };
    let Some(rest) = marker.strip_prefix(terms.prefix.as_str()) else { return false };
    rest.find(delimiter).is_some_and(|at| at + delimiter.len() == rest.len())
}

fn write_page(xml: &mut Writer, page: &ListPage, terms: &Terms, owner: Option<&str>) {
    xml.number("MaxKeys", u64::from(terms.max_keys));
    if let Some(delimiter) = &terms.delimiter {
        xml.name("Delimiter", delimiter, terms.encoding);
    }
    if terms.encoding == UrlEncoded::Yes {
        xml.plain("EncodingType", b"url");
    }
    xml.flag("IsTruncated", page.more);
    for (key, row) in &page.entries {
        write_entry(xml, key, row, terms.encoding, owner);
    }
    for prefix in &page.prefixes {
        xml.open("CommonPrefixes");
        xml.name("Prefix", prefix, terms.encoding);
        xml.close("CommonPrefixes");
    }
}

fn write_entry(xml: &mut Writer, key: &str, row: &ObjectRow, encoding: UrlEncoded, owner: Option<&str>) {
    xml.open("Contents");
    xml.name("Key", key, encoding);
    xml.plain("LastModified", &Seconds::from_millis(row.modified.millis()).xml());
    xml.etag("ETag", &row.etag);
    if let Some(checksum) = &row.checksum {
        xml.plain("ChecksumAlgorithm", checksum::value_name(checksum.algorithm).as_bytes());
        let kind: ChecksumKind = checksum.kind;
        xml.plain("ChecksumType", checksum::kind_name(kind).as_bytes());
    }
    xml.number("Size", row.size_bytes);
    if let Some(owner) = owner {
        xml.owner(owner);
    }
    xml.plain("StorageClass", b"STANDARD");
    xml.close("Contents");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn l3_page_sizes_have_bounds() {
        let size = |text: &str| page_size(&Query::parse(&format!("max-keys={text}")).expect("a query"), "max-keys");
        assert_eq!(size("0").expect("allowed"), 0);
        assert_eq!(size("5000").expect("capped"), 1000);
        assert_eq!(size("").expect("default"), 1000);
        for bad in ["-1", "x", "2147483648", "1.5"] {
            assert_eq!(size(bad).expect_err(bad).code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn l4_a_marker_that_names_a_common_prefix_skips_it() {
        let terms = |prefix: &str| Terms {
            prefix: prefix.into(),
            delimiter: Some("/".into()),
            max_keys: 1,
            encoding: UrlEncoded::No,
        };
        assert!(is_common_prefix("a/", &terms("")));
        assert!(is_common_prefix("p/a/", &terms("p/")));
        assert!(!is_common_prefix("a/b", &terms("")));
        assert!(!is_common_prefix("a/b/", &terms("")));
        assert!(!is_common_prefix("a", &terms("")));
    }

    proptest! {
        #[test]
        fn l4_tokens_survive_and_forgeries_are_refused(name in ".{1,60}", is_prefix: bool, noise in ".{0,40}") {
            let place = decode_token(&encode_token(&name, is_prefix)).unwrap();
            prop_assert_eq!(place, Place { after: name, is_prefix });
            let _ = decode_token(&noise);
        }
    }
}
