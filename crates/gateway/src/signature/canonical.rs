//! The canonical request: what a SigV4 signature covers, byte for byte.

use std::borrow::Cow;

use crate::error::{Code, S3Error, S3Result};
use crate::head::Head;

/// Returns whether SigV4 leaves a byte unencoded.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push_encoded(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(HEX[usize::from(byte >> 4)] as char);
    out.push(HEX[usize::from(byte & 15)] as char);
}

/// Encodes what was left unencoded; escapes stay as sent, so that no two requests that differ in
/// meaning share a canonical form.
fn encoded<'a>(text: &'a str, keep: impl Fn(u8) -> bool, plus: &str) -> Cow<'a, str> {
    if text.bytes().all(|byte| is_unreserved(byte) || byte == b'%' || keep(byte)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b'+' => out.push_str(plus),
            byte if is_unreserved(byte) || byte == b'%' || keep(byte) => out.push(byte as char),
            byte => push_encoded(&mut out, byte),
        }
    }
    Cow::Owned(out)
}

/// Returns the canonical forms of a path: as sent, and with its special characters encoded where
/// that differs.
pub fn paths(raw: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let second = match encoded(raw, |byte| byte == b'/', "%2B") {
        Cow::Owned(path) => Some(Cow::Owned(path)),
        Cow::Borrowed(_) => None,
    };
    std::iter::once(Cow::Borrowed(raw)).chain(second)
}

/// Returns the canonical query: sorted, repeats kept, without the signature itself.
fn query(raw: &str) -> String {
    let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (encoded(name, |_| false, "%20"), encoded(value, |_| false, "%20")))
        .collect();
    pairs.sort();
    let mut out = String::with_capacity(raw.len() + 8);
    for (name, value) in &pairs {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
    out
}

/// Appends a header value trimmed, runs of spaces folded into one.
fn push_value(out: &mut Vec<u8>, value: &[u8]) {
    let value = value.trim_ascii();
    let mut last = 0;
    for &byte in value {
        if byte == b' ' && last == b' ' {
            continue;
        }
        out.push(byte);
        last = byte;
    }
}

/// Builds the canonical request.
pub fn canonical_request(head: &Head, path: &str, signed_headers: &str, payload: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b'\n');
    out.extend_from_slice(path.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(query(&head.raw_query).as_bytes());
    out.push(b'\n');
    for name in signed_headers.split(';') {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        for (at, value) in head.headers.get_all(name).iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            push_value(&mut out, value.as_bytes());
        }
        out.push(b'\n');
    }
    out.push(b'\n');
    out.extend_from_slice(signed_headers.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload.as_bytes());
    out
}

/// Refuses headers of our vocabulary that the signature does not cover: whoever holds a signed
/// request must not be able to change what it does (S2).
pub fn check_headers_are_signed(head: &Head, signed_headers: &str) -> S3Result<()> {
    let names = || signed_headers.split(';');
    let well_formed =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase());
    if !names().all(well_formed) || !names().any(|name| name == "host") {
        return Err(Code::AccessDenied.with("SignedHeaders must be lower-case names and include host."));
    }
    let mut unsigned: Vec<&str> = Vec::new();
    for name in head.headers.keys() {
        let name = name.as_str();
        let ours = name.starts_with("x-amz-") || name.starts_with("x-plinth-");
        if ours && !names().any(|signed| signed == name) {
            unsigned.push(name);
        }
    }
    if unsigned.is_empty() {
        return Ok(());
    }
    unsigned.sort_unstable();
    Err(S3Error::new(Code::AccessDenied, "There were headers present in the request which were not signed")
        .element("HeadersNotSigned", unsigned.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s1_queries_are_sorted_and_repeats_kept() {
        assert_eq!(query("b=2&a&b=1&a%20c=x/y&X-Amz-Signature=f"), "a=&a%20c=x%2Fy&b=1&b=2");
        assert_eq!(query("prefix=a+b"), "prefix=a%20b");
    }

    #[test]
    fn s1_paths_are_signed_as_sent() {
        let forms = |raw| paths(raw).collect::<Vec<_>>();
        assert_eq!(forms("/b//./..%2Fc"), ["/b//./..%2Fc"]);
        assert_eq!(forms("/b/a+b(c)"), ["/b/a+b(c)", "/b/a%2Bb%28c%29"]);
        assert_eq!(forms("/b/é"), ["/b/é", "/b/%C3%A9"]);
    }

    #[test]
    fn values_are_trimmed_and_spaces_folded() {
        let mut out = Vec::new();
        push_value(&mut out, b"  a   b\t ");
        assert_eq!(out, b"a b");
    }
}
