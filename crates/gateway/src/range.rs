//! `Range` and `x-amz-copy-source-range`.

use crate::error::{Code, S3Error, S3Result};
use http::{HeaderValue, header};
use std::ops::Range;

/// What a `Range` header asks for. Anything that is not exactly one well-formed byte range counts
/// as no range at all (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-` or `bytes=first-last`.
    From {
        /// First byte.
        first: u64,
        /// Last byte, inclusive.
        last: Option<u64>,
    },
    /// `bytes=-count`: the last bytes.
    Last(u64),
}

impl ByteRange {
    /// Parses a header.
    pub fn parse(text: &str) -> Option<Self> {
        let range = text.trim().strip_prefix("bytes=")?.trim();
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // A number beyond 64 bits is larger than any object.
            Some(text.parse().unwrap_or(u64::MAX))
        };
        match (first, last) {
            ("", last) => Some(ByteRange::Last(number(last)?)),
            (first, "") => Some(ByteRange::From { first: number(first)?, last: None }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(ByteRange::From { first, last: Some(last) })
            }
        }
    }

    /// Returns the bytes of an object of this size that the range covers.
    ///
    /// # Errors
    /// `InvalidRange` where it covers none.
    pub fn resolve(self, size_bytes: u64) -> S3Result<Range<u64>> {
        let range = match self {
            ByteRange::From { first, last } => {
                first..last.map_or(size_bytes, |last| last.saturating_add(1)).min(size_bytes)
            }
            ByteRange::Last(count) => size_bytes.saturating_sub(count)..size_bytes,
        };
        if range.start < range.end { Ok(range) } else { Err(unsatisfiable(size_bytes)) }
    }
}

/// Returns the 416 with the object's size.
pub fn unsatisfiable(size_bytes: u64) -> S3Error {
    let size = HeaderValue::try_from(format!("bytes */{size_bytes}")).expect("digits are a valid header value");
    S3Error::from(Code::InvalidRange)
        .element("ActualObjectSize", size_bytes.to_string())
        .header(header::CONTENT_RANGE, size)
}

/// Parses `x-amz-copy-source-range`: both ends given, inside the source (Y4).
///
/// # Errors
/// `InvalidArgument` for any other form, `InvalidRange` outside the source.
pub fn parse_copy_source(text: &str, size_bytes: u64) -> S3Result<Range<u64>> {
    match ByteRange::parse(text) {
        Some(ByteRange::From { first, last: Some(last) }) if last < size_bytes => Ok(first..last + 1),
        Some(ByteRange::From { last: Some(_), .. }) => Err(S3Error::argument(
            "x-amz-copy-source-range",
            text,
            format!("Range specified is not valid for source object of size: {size_bytes}"),
        )),
        _ => Err(S3Error::argument(
            "x-amz-copy-source-range",
            text,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r1_one_range_or_none() {
        assert_eq!(ByteRange::parse("bytes=0-4"), Some(ByteRange::From { first: 0, last: Some(4) }));
        assert_eq!(ByteRange::parse("bytes=7-"), Some(ByteRange::From { first: 7, last: None }));
        assert_eq!(ByteRange::parse("bytes=-5"), Some(ByteRange::Last(5)));
        for whole in ["bytes=0-1,3-4", "bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "items=0-1", "0-1", "bytes=+1-2"]
        {
            assert_eq!(ByteRange::parse(whole), None, "{whole}");
        }
        assert_eq!(ByteRange::Last(50).resolve(10).expect("all of it"), 0..10);
    }

    #[test]
    fn r2_ranges_that_cover_nothing_are_416() {
        for (text, size) in
            [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-0", 0), ("bytes=-1", 0)]
        {
            let error = ByteRange::parse(text).expect("well-formed").resolve(size).expect_err(text);
            assert_eq!(error.code(), Code::InvalidRange);
        }
    }

    #[test]
    fn y4_copy_ranges_need_both_ends_inside() {
        assert_eq!(parse_copy_source("bytes=2-4", 5).expect("inside"), 2..5);
        for bad in ["bytes=2-5", "bytes=2-", "bytes=-2", "2-4", "bytes=0-1,2-3"] {
            assert!(parse_copy_source(bad, 5).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ranges_resolve_inside_the_object(first in 0u64..20, last in 0u64..20, size in 0u64..20) {
            let bytes: Vec<u64> = (0..size).collect();
            let reference: Vec<u64> = bytes.iter().copied().filter(|at| (first..=last).contains(at)).collect();
            match ByteRange::parse(&format!("bytes={first}-{last}")) {
                None => prop_assert!(first > last),
                Some(range) => match range.resolve(size) {
                    Ok(range) => prop_assert_eq!(range.collect::<Vec<_>>(), reference),
                    Err(_) => prop_assert!(reference.is_empty()),
                },
            }
        }

        #[test]
        fn any_text_is_a_range_or_none(text in ".{0,40}") {
            let _ = ByteRange::parse(&text).map(|range| range.resolve(5));
        }
    }
}
