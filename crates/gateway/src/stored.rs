//! Headers that are stored with an object and given back: the standard ones verbatim, user metadata
//! under its own rules (H5).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use plinth_protocol::object::StoredHeaders;

use crate::error::{Code, S3Error, S3Result};
use crate::head::Head;

/// User metadata, names and values together.
const METADATA_BYTES_MAX: usize = 2 << 10;
/// One stored standard header.
const STANDARD_VALUE_BYTES_MAX: usize = 8 << 10;
const PREFIX: &str = "x-amz-meta-";
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Standard headers that an object keeps.
const STANDARD: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::EXPIRES,
];

/// Reads the headers to store from a request.
///
/// # Errors
/// `MetadataTooLarge` above 2 KiB of user metadata; `InvalidArgument` for metadata that no header can carry.
pub fn read(head: &Head) -> S3Result<StoredHeaders> {
    let mut standard = Vec::new();
    for name in &STANDARD {
        let Some(value) = head.header(name.as_str())? else { continue };
        let value = if name == header::CONTENT_ENCODING { without_aws_chunked(&value) } else { value.into_owned() };
        if value.len() > STANDARD_VALUE_BYTES_MAX {
            return Err(S3Error::argument(name.as_str(), "", "The header's value is too long."));
        }
        if !value.is_empty() {
            standard.push((name.as_str().to_owned(), value));
        }
    }
    let mut user: Vec<(String, String)> = Vec::new();
    let mut bytes = 0;
    for name in head.headers.keys() {
        let Some(short) = name.as_str().strip_prefix(PREFIX) else { continue };
        let value = head.header(name.as_str())?.unwrap_or_default().into_owned();
        bytes += short.len() + value.len();
        user.push((short.to_owned(), value));
    }
    // A presigner may hoist metadata into the query; there it is signed, and counts the same.
    for (name, value) in head.query.pairs() {
        let folded = name.to_ascii_lowercase();
        let Some(short) = folded.strip_prefix(PREFIX) else { continue };
        let is_header = HeaderName::try_from(folded.as_str()).is_ok() && HeaderValue::try_from(value).is_ok();
        match user.iter().find(|(known, _)| known == short) {
            Some((_, known)) if known == value => continue,
            Some(_) => return Err(S3Error::argument(&folded, value, "The metadata stands twice, with two values.")),
            // It could never be given back.
            None if !is_header => return Err(S3Error::argument(&folded, value, "The metadata is no valid header.")),
            None => {}
        }
        bytes += short.len() + value.len();
        user.push((short.to_owned(), value.to_owned()));
    }
    if bytes > METADATA_BYTES_MAX {
        return Err(S3Error::from(Code::MetadataTooLarge)
            .element("Size", bytes.to_string())
            .element("MaxSizeAllowed", METADATA_BYTES_MAX.to_string()));
    }
    Ok(StoredHeaders { standard, user })
}

/// Takes the transfer's own coding out of `Content-Encoding`; others stay (K5).
fn without_aws_chunked(value: &str) -> String {
    if !value.contains("aws-chunked") {
        return value.to_owned();
    }
    let rest = value.split(',').map(str::trim).filter(|coding| !coding.eq_ignore_ascii_case("aws-chunked"));
    rest.collect::<Vec<_>>().join(",")
}

/// Puts stored headers into a response.
pub fn write(stored: &StoredHeaders, out: &mut HeaderMap) {
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(DEFAULT_CONTENT_TYPE));
    for (name, value) in &stored.standard {
        let name = HeaderName::try_from(name.as_str());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            out.insert(name, value);
        }
    }
    for (name, value) in &stored.user {
        let name = HeaderName::try_from(format!("{PREFIX}{name}"));
        if let (Ok(name), Ok(value)) = (name, user_value(value)) {
            out.insert(name, value);
        }
    }
}

/// Writes a value of user metadata: ASCII as it is, anything else as RFC 2047 encoded words.
fn user_value(value: &str) -> Result<HeaderValue, header::InvalidHeaderValue> {
    /// An encoded word has at most 75 characters: 45 bytes in base64 fit.
    const WORD_BYTES_MAX: usize = 45;
    if value.is_ascii() {
        return HeaderValue::try_from(value);
    }
    let mut out = String::new();
    let mut word = String::new();
    let push = |word: &mut String, out: &mut String| {
        if !word.is_empty() {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(&format!("=?UTF-8?B?{}?=", BASE64.encode(word.as_bytes())));
            word.clear();
        }
    };
    for character in value.chars() {
        if word.len() + character.len_utf8() > WORD_BYTES_MAX {
            push(&mut word, &mut out);
        }
        word.push(character);
    }
    push(&mut word, &mut out);
    HeaderValue::try_from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h5_values_beyond_ascii_come_back_as_encoded_words() {
        assert_eq!(user_value("plain").expect("valid"), "plain");
        assert_eq!(user_value("é").expect("valid"), "=?UTF-8?B?w6k=?=");
        let long = user_value(&"é".repeat(40)).expect("valid");
        assert!(long.to_str().expect("ASCII").split(' ').all(|word| word.len() <= 75));
    }

    #[test]
    fn k5_aws_chunked_leaves_the_content_encoding() {
        assert_eq!(without_aws_chunked("aws-chunked"), "");
        assert_eq!(without_aws_chunked("gzip,aws-chunked"), "gzip");
        assert_eq!(without_aws_chunked("aws-chunked, gzip, br"), "gzip,br");
        assert_eq!(without_aws_chunked("gzip"), "gzip");
    }
}
