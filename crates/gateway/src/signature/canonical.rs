//! The canonical request: what a SigV4 signature covers, byte for byte.

use std::borrow::Cow;

use crate::error::{Code, S3Error, S3Result};
use crate::head::{HEADER_COUNT_MAX, Head, hex_byte};

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

/// Decodes each escape once and encodes it anew, as S1 has it: `%7E` and `~`, `%2f` and `%2F` are one form. What an escape
/// stands for never takes part in the structure: `%2F` stays an escape. `plus` is what an unencoded `+` means.
fn canonical<'a>(text: &'a str, keep: impl Fn(u8) -> bool, plus: &str) -> Cow<'a, str> {
    if text.bytes().all(|byte| is_unreserved(byte) || keep(byte)) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len() + 16);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'%' => match bytes.get(at..at + 2).and_then(hex_byte) {
                Some(meant) if is_unreserved(meant) => {
                    out.push(meant as char);
                    at += 2;
                }
                Some(meant) => {
                    push_encoded(&mut out, meant);
                    at += 2;
                }
                // A request with a broken escape is refused before it comes here.
                None => push_encoded(&mut out, byte),
            },
            b'+' => out.push_str(plus),
            byte if is_unreserved(byte) || keep(byte) => out.push(byte as char),
            byte => push_encoded(&mut out, byte),
        }
    }
    Cow::Owned(out)
}

/// Returns the canonical form of a path: segments stay as they are, `//`, `.` and `..` included.
pub fn path(raw: &str) -> Cow<'_, str> {
    canonical(raw, |byte| byte == b'/', "%2B")
}

/// Returns the canonical query: sorted, repeats kept, without the signature itself.
pub fn query(raw: &str) -> String {
    let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (canonical(name, |_| false, "%20"), canonical(value, |_| false, "%20")))
        .filter(|(name, _)| name != "X-Amz-Signature")
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
pub fn canonical_request(head: &Head, path: &str, query: &str, signed_headers: &str, payload: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b'\n');
    out.extend_from_slice(path.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(query.as_bytes());
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
///
/// The names must stand in ascending order, each once, as SigV4 has them: a list may cost no more than the headers that
/// a request may have.
pub fn check_headers_are_signed(head: &Head, signed_headers: &str) -> S3Result<()> {
    let malformed = |text: &'static str| Err(Code::AccessDenied.with(text));
    let mut names: Vec<&str> = Vec::with_capacity(16);
    for name in signed_headers.split(';') {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()) {
            return malformed("SignedHeaders must be lower-case names and include host.");
        }
        if names.last().is_some_and(|last| *last >= name) {
            return malformed("SignedHeaders must be sorted, each name once.");
        }
        if names.len() >= HEADER_COUNT_MAX {
            return malformed("SignedHeaders names more headers than a request may have.");
        }
        names.push(name);
    }
    let is_signed = |name: &str| names.binary_search(&name).is_ok();
    if !is_signed("host") {
        return malformed("SignedHeaders must be lower-case names and include host.");
    }
    let mut unsigned: Vec<&str> = Vec::new();
    for name in head.headers.keys() {
        let name = name.as_str();
        let ours = name.starts_with("x-amz-") || name.starts_with("x-plinth-");
        if ours && !is_signed(name) {
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
    use crate::head::{Query, decode};
    use proptest::prelude::*;

    #[test]
    fn s1_queries_are_sorted_and_repeats_kept() {
        assert_eq!(query("b=2&a&b=1&a%20c=x/y&X-Amz-Signature=f"), "a=&a%20c=x%2Fy&b=1&b=2");
        assert_eq!(query("prefix=a+b"), "prefix=a%20b");
        assert_eq!(query("prefix=%7e%2f%c3%a9&a%7Eb="), "a~b=&prefix=~%2F%C3%A9");
    }

    #[test]
    fn s1_paths_are_decoded_and_encoded_once() {
        for (raw, want) in [
            ("/b//./..%2Fc", "/b//./..%2Fc"),
            ("/b/a+b(c)", "/b/a%2Bb%28c%29"),
            ("/b/é", "/b/%C3%A9"),
            ("/b/a%7Eb%5Fc%2Dd%2Etxt", "/b/a~b_c-d.txt"),
            ("/b/%2f%c3%a9%2b", "/b/%2F%C3%A9%2B"),
            ("/b/%2541%25", "/b/%2541%25"),
        ] {
            assert_eq!(path(raw), want);
            assert_eq!(path(want), want, "a canonical path stays as it is");
        }
    }

    proptest! {
        /// Two requests with one canonical form mean the same: otherwise a signature for one would do for the other.
        #[test]
        fn s1_a_canonical_form_means_what_was_sent(text in "([a-zA-Z~/+&=.;(-]|%[0-7][0-9a-fA-F]){0,40}") {
            let raw = format!("/b/{text}");
            prop_assert_eq!(decode(&path(&raw), false).ok(), decode(&raw, false).ok());
            let mut sent: Vec<(String, String)> =
                Query::parse(&text).unwrap().pairs().map(|(name, value)| (name.into(), value.into())).collect();
            let signed = query(&text);
            let mut shown: Vec<(String, String)> =
                Query::parse(&signed).unwrap().pairs().map(|(name, value)| (name.into(), value.into())).collect();
            sent.sort();
            shown.sort();
            prop_assert_eq!(sent, shown);
        }
    }

    #[test]
    fn values_are_trimmed_and_spaces_folded() {
        let mut out = Vec::new();
        push_value(&mut out, b"  a   b\t ");
        assert_eq!(out, b"a b");
    }
}
