//! The head of a request, read once: bucket, key, query and headers as S3 means them.
//!
//! Path and query are kept as sent beside their decoded forms, because the signature covers the
//! former and the operation needs the latter. One typed [`Target`] serves authorisation and action.

use http::{HeaderMap, Method, Uri, header};
use std::borrow::Cow;

use crate::error::{Code, S3Error, S3Result};

/// Longest request line in bytes: method, target and version.
pub const REQUEST_LINE_BYTES_MAX: usize = 16 << 10;
/// Largest header section in bytes.
pub const HEADER_SECTION_BYTES_MAX: usize = 32 << 10;
/// Most header fields in one request.
pub const HEADER_COUNT_MAX: usize = 100;
/// Most parameters in one query.
pub const PARAMETER_COUNT_MAX: usize = 500;

/// What a request is about: the service, a bucket, or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The bucket's name; absent for requests to the service.
    pub bucket: Option<String>,
    /// The object's key; absent for requests to a bucket.
    pub key: Option<String>,
}

/// A request's head.
#[derive(Debug)]
pub struct Head {
    /// The HTTP method.
    pub method: Method,
    /// The path exactly as sent.
    pub raw_path: String,
    /// The query exactly as sent, without the question mark.
    pub raw_query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The decoded query.
    pub query: Query,
    /// Bucket and key.
    pub target: Target,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

impl Head {
    /// Reads a head. `base_domains` are the only hosts that make virtual-host addresses.
    ///
    /// # Errors
    /// `InvalidURI` where path or query cannot be decoded to UTF-8.
    pub fn read(
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        base_domains: &[String],
        encrypted: bool,
    ) -> S3Result<Self> {
        let raw_path = match uri.path() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        let raw_query = uri.query().unwrap_or_default().to_owned();
        let host = match headers.get(header::HOST) {
            Some(host) => host.to_str().map_err(|_| S3Error::from(Code::InvalidURI))?,
            None => "",
        };
        let target = locate(host, &raw_path, base_domains)?;
        let query = Query::parse(&raw_query)?;
        Ok(Head { method, raw_path, raw_query, headers, query, target, encrypted })
    }

    /// Returns a header's value as text: repeats are joined with commas, bytes that are not UTF-8
    /// count as Latin-1. `x-amz-*` query parameters of a signed URL count as headers (S3).
    ///
    /// # Errors
    /// `InvalidArgument` where a header and the parameter of the same name differ.
    pub fn header(&self, name: &str) -> S3Result<Option<Cow<'_, str>>> {
        let parameter = if name.starts_with("x-amz-") { self.query.get_folded(name) } else { None };
        let mut values = self.headers.get_all(name).iter();
        let Some(first) = values.next() else {
            return Ok(parameter.map(Cow::Borrowed));
        };
        let mut text = text_of(first.as_bytes());
        for value in values {
            let joined = text.to_mut();
            joined.push(',');
            joined.push_str(&text_of(value.as_bytes()));
        }
        if parameter.is_some_and(|parameter| parameter != text) {
            return Err(S3Error::argument(name, &text, "A header and the query parameter of the same name differ."));
        }
        Ok(Some(text))
    }

    /// Returns whether a header or its query parameter is there.
    pub fn has(&self, name: &str) -> bool {
        self.headers.contains_key(name) || name.starts_with("x-amz-") && self.query.get_folded(name).is_some()
    }

    /// Returns the declared length of the body on the wire, where there is one.
    pub fn content_length(&self) -> Option<u64> {
        self.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// Returns whether the body comes in chunks of HTTP's own framing.
    pub fn is_transfer_chunked(&self) -> bool {
        self.headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// Returns whether the client waits for `100 Continue`.
    pub fn expects_continue(&self) -> bool {
        self.headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    }

    /// Returns the bucket's name.
    pub fn bucket(&self) -> &str {
        self.target.bucket.as_deref().expect("the router sends bucket operations only here")
    }

    /// Returns the object's key.
    pub fn key(&self) -> &str {
        self.target.key.as_deref().expect("the router sends object operations only here")
    }
}

/// Reads a header's bytes as text: UTF-8 where they are, else Latin-1.
pub fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text.trim()),
        Err(_) => Cow::Owned(bytes.iter().map(|&byte| byte as char).collect::<String>().trim().to_owned()),
    }
}

fn locate(host: &str, raw_path: &str, base_domains: &[String]) -> S3Result<Target> {
    let path = raw_path.strip_prefix('/').ok_or(Code::InvalidURI)?;
    let (bucket, key) = match virtual_bucket(host, base_domains) {
        Some(bucket) => (Some(bucket), path),
        None => match path.split_once('/') {
            Some((bucket, key)) => (Some(decode(bucket, false)?), key),
            None => (Some(decode(path, false)?), ""),
        },
    };
    let bucket = bucket.filter(|bucket| !bucket.is_empty());
    if bucket.is_none() && !key.is_empty() {
        return Code::InvalidURI.fail("The bucket's name is empty.");
    }
    let key = decode(key, false)?;
    Ok(Target { bucket, key: Some(key).filter(|key| !key.is_empty()) })
}

/// Returns the host without its port; brackets of an IPv6 address stay.
fn without_port(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn virtual_bucket(host: &str, base_domains: &[String]) -> Option<String> {
    let host = without_port(host).to_ascii_lowercase();
    // Of base domains that lie in one another the longest counts: `s3.example.com` is no bucket of `example.com`.
    let fits = base_domains.iter().filter_map(|domain| host.strip_suffix(domain.as_str()));
    let prefix = fits.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).min_by_key(|prefix| prefix.len())?;
    let bucket = prefix.strip_suffix('.')?;
    (!bucket.is_empty()).then(|| bucket.to_owned())
}

/// Percent-decodes once. In a query `+` is a space; in a path it stays.
///
/// # Errors
/// `InvalidURI` for a broken escape or bytes that are not UTF-8.
pub fn decode(text: &str, plus_is_space: bool) -> S3Result<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let pair = bytes.get(at + 1..at + 3).and_then(hex_byte).ok_or(Code::InvalidURI)?;
                out.push(pair);
                at += 3;
                continue;
            }
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).map_err(|_| Code::InvalidURI.into())
}

/// Reads two hexadecimal digits.
pub fn hex_byte(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    match pair {
        [high, low] => Some((digit(*high)? * 16 + digit(*low)?) as u8),
        _ => None,
    }
}

/// The decoded query in the order sent.
#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses a raw query.
    ///
    /// # Errors
    /// `InvalidURI` where a name or value cannot be decoded, or there are more than [`PARAMETER_COUNT_MAX`].
    pub fn parse(raw: &str) -> S3Result<Self> {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() >= PARAMETER_COUNT_MAX {
                return Code::InvalidURI.fail("The query has too many parameters.");
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name, true)?, decode(value, true)?));
        }
        Ok(Query { pairs })
    }

    /// Returns the first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the first value of a name in any letter case.
    pub fn get_folded(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns whether the name is there.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns a number between bounds.
    ///
    /// # Errors
    /// `InvalidArgument` where the value is no number or outside.
    pub fn number(&self, name: &str, least: u64, most: u64) -> S3Result<Option<u64>> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
                _ => Err(S3Error::argument(name, text, format!("{name} is not a number from {least} to {most}."))),
            },
        }
    }

    /// Returns all pairs in the order sent.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Checks a bucket name: 3 to 63 characters, DNS form, no IP address.
pub fn is_bucket_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    (3..=63).contains(&name.len()) && name.split('.').all(label) && name.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(host: &str, path: &str) -> (Option<String>, Option<String>) {
        let domains = ["s3.example.com".to_owned()];
        let target = locate(host, path, &domains).expect("valid");
        (target.bucket, target.key)
    }

    #[test]
    fn a1_only_base_domains_make_virtual_hosts() {
        let both = |bucket: &str, key: &str| (Some(bucket.to_owned()), Some(key.to_owned()));
        assert_eq!(target("s3.example.com:9000", "/b/k"), both("b", "k"));
        assert_eq!(target("my.dotted.s3.example.com:9000", "/k/l"), both("my.dotted", "k/l"));
        assert_eq!(target("B.S3.EXAMPLE.COM", "/k"), both("b", "k"));
        assert_eq!(target("other.example.com", "/b/k"), both("b", "k"));
        assert_eq!(target("[::1]:9000", "/my.dotted/k"), both("my.dotted", "k"));
        assert_eq!(target("127.0.0.1:9000", "/b"), (Some("b".into()), None));
        assert_eq!(target("127.0.0.1:9000", "/"), (None, None));
        assert_eq!(target("b.s3.example.com", "/"), (Some("b".into()), None));
        assert_eq!(target("evils3.example.com", "/b/k"), both("b", "k"));
    }

    #[test]
    fn a1_of_nested_base_domains_the_longest_counts() {
        let domains = ["example.com".to_owned(), "s3.example.com".to_owned()];
        let bucket = |host: &str| virtual_bucket(host, &domains);
        assert_eq!(bucket("b.s3.example.com").as_deref(), Some("b"));
        assert_eq!(bucket("b.example.com").as_deref(), Some("b"));
        assert_eq!(bucket("s3.example.com:9000"), None);
        assert_eq!(bucket("example.com"), None);
        assert_eq!(bucket("xs3.example.com").as_deref(), Some("xs3"));
    }

    #[test]
    fn s1_the_path_is_decoded_once_and_never_normalised() {
        let key = |path: &str| target("h", path).1.expect("a key");
        assert_eq!(key("/b//a/./../c"), "/a/./../c");
        assert_eq!(key("/b/a%2Fb+c%2Bd%252F"), "a/b+c+d%2F");
        assert_eq!(key("/b/%C3%A9"), "é");
        assert!(locate("h", "/b/%zz", &[]).is_err());
        assert!(locate("h", "/b/%ff", &[]).is_err());
        assert!(locate("h", "//k", &[]).is_err());
    }

    #[test]
    fn bucket_names_are_dns_names() {
        for good in ["abc", "a.b-c.d", "0ab", &"a".repeat(63)] {
            assert!(is_bucket_name(good), "{good}");
        }
        for bad in ["ab", "Abc", "a_b", "-ab", "ab-", "a..b", "a.-b", "192.168.0.1", "", &"a".repeat(64)] {
            assert!(!is_bucket_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_key_never_leaves_its_bucket(path in "/[a-z]{3}/.{1,40}") {
            if let Ok(target) = locate("h", &path, &[]) {
                prop_assert_eq!(target.bucket.as_deref(), Some(&path[1..4]));
            }
        }

        #[test]
        fn queries_parse_or_fail_cleanly(raw in ".{0,60}") {
            let _ = Query::parse(&raw);
        }
    }
}
