//! Conditions: on reads decided here, on writes handed to the commit.

use plinth_protocol::meta::{Expectation, ExpectationKind};
use plinth_protocol::object::{Etag, ObjectRow};

use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::head::Head;

/// Names of the four conditional headers; copies prefix them.
const IF_MATCH: &str = "if-match";
const IF_NONE_MATCH: &str = "if-none-match";
const IF_MODIFIED_SINCE: &str = "if-modified-since";
const IF_UNMODIFIED_SINCE: &str = "if-unmodified-since";

/// What a conditional read does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// 304.
    NotModified,
    /// 412; names the header that failed.
    Failed(&'static str),
}

/// Returns whether one of the ETags in a header is the object's (E3). Weak tags match only where
/// `weak` allows them.
fn matches(list: &str, etag: &Etag, weak: bool) -> bool {
    let own = etag.to_string();
    list.split(',').map(str::trim).any(|tag| {
        let (tag, is_weak) = match tag.strip_prefix("W/") {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        tag == "*" && !is_weak || (weak || !is_weak) && tag.trim_matches('"') == own
    })
}

/// Decides a read's conditions in RFC 9110's order, section 13.2.2, under a header prefix (empty,
/// or `x-amz-copy-source-`).
///
/// # Errors
/// `InvalidArgument` where headers contradict their query parameters.
pub fn judge_read(head: &Head, prefix: &str, row: &ObjectRow) -> S3Result<Verdict> {
    let header = |name: &str| head.header(&format!("{prefix}{name}"));
    // A date that cannot be read counts as absent (RFC 9110, sections 13.1.3 and 13.1.4).
    let date = |name: &str| Ok::<_, S3Error>(header(name)?.and_then(|text| Seconds::parse_http(&text)));
    let modified = Seconds::from_millis(row.modified.millis());
    if let Some(list) = header(IF_MATCH)? {
        if !matches(&list, &row.etag, false) {
            return Ok(Verdict::Failed("If-Match"));
        }
    } else if date(IF_UNMODIFIED_SINCE)?.is_some_and(|since| modified > since) {
        return Ok(Verdict::Failed("If-Unmodified-Since"));
    }
    if let Some(list) = header(IF_NONE_MATCH)? {
        if matches(&list, &row.etag, true) {
            return Ok(Verdict::NotModified);
        }
    } else if date(IF_MODIFIED_SINCE)?.is_some_and(|since| modified <= since) {
        return Ok(Verdict::NotModified);
    }
    Ok(Verdict::Proceed)
}

/// Decides whether `If-Range` lets a range through (R3): a strong ETag or a date that match exactly
/// (RFC 9110, section 13.1.5).
pub fn range_still_holds(if_range: Option<&str>, row: &ObjectRow) -> bool {
    let Some(text) = if_range else { return true };
    match Seconds::parse_http(text) {
        Some(date) => Seconds::from_millis(row.modified.millis()) == date,
        None => !text.starts_with("W/") && text.trim_matches('"') == row.etag.to_string(),
    }
}

/// Reads the condition of a write or delete for the commit to decide.
///
/// # Errors
/// `NotImplemented` for everything that the table of section 3 (Conditional) does not have (C1).
pub fn write_expectation(head: &Head, deletes: bool) -> S3Result<Option<Expectation>> {
    for name in [IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
        if head.headers.contains_key(name) {
            return Err(S3Error::not_implemented(&format!("The header {name} on a write")));
        }
    }
    let if_match = head.header(IF_MATCH)?;
    let if_none_match = head.header(IF_NONE_MATCH)?;
    match (if_match, if_none_match) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(S3Error::not_implemented("If-Match together with If-None-Match on a write")),
        (None, Some(text)) if text == "*" && !deletes => {
            Ok(Some(Expectation { kind: ExpectationKind::Absent, etag: None }))
        }
        (None, Some(_)) => Err(S3Error::not_implemented("If-None-Match with a value other than * on a write")),
        (Some(text), None) => matching(&text).map(Some),
    }
}

/// Reads an ETag or `*` that must match.
///
/// # Errors
/// `NotImplemented` for a list of ETags or a weak one.
pub fn matching(text: &str) -> S3Result<Expectation> {
    let text = text.trim();
    if text == "*" {
        return Ok(Expectation { kind: ExpectationKind::Present, etag: None });
    }
    if text.contains(',') || text.starts_with("W/") {
        return Err(S3Error::not_implemented("If-Match with several or weak ETags on a write"));
    }
    Ok(Expectation { kind: ExpectationKind::Matches, etag: Some(text.trim_matches('"').to_owned()) })
}

/// Returns the 412 that names the failed condition.
pub fn failed(condition: &str) -> S3Error {
    S3Error::from(Code::PreconditionFailed).element("Condition", condition)
}
