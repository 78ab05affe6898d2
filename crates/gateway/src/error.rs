//! Every S3 error code, its status and its text: the only file that spells them.
//!
//! An [`S3Error`] carries what clients parse: the code, a sentence, and the extra elements that
//! belong to it (`BucketName`, `Key`, `CanonicalRequest` …). Failures of the cluster and decided
//! refusals of the namespace become codes here.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use plinth_protocol::meta::{Refusal, RefusalKind};
use plinth_protocol::{Failure, FailureKind};
use std::borrow::Cow;
use std::fmt;

use crate::xml::Writer;

macro_rules! codes {
    ($($code:ident $status:literal $text:literal;)*) => {
        /// An S3 error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Code { $(#[doc = $text] $code,)* }

        impl Code {
            /// Every code, for tables and tests.
            pub const ALL: &'static [Code] = &[$(Code::$code,)*];

            /// Returns the name as it stands in `<Code>`.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$code => stringify!($code),)* }
            }

            /// Returns the HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Code::$code => $status,)* }
            }

            /// Returns the sentence that stands in `<Message>` where nothing more precise is known.
            pub const fn text(self) -> &'static str {
                match self { $(Code::$code => $text,)* }
            }
        }
    };
}

codes! {
    NotModified 304 "Not Modified";

    InvalidArgument 400 "Invalid Argument";
    InvalidRequest 400 "Invalid Request";
    InvalidURI 400 "Couldn't parse the specified URI.";
    MalformedXML 400 "The XML you provided was not well-formed or did not validate against our published schema.";
    InvalidBucketName 400 "The specified bucket is not valid.";
    KeyTooLongError 400 "Your key is too long.";
    MetadataTooLarge 400 "Your metadata headers exceed the maximum allowed metadata size.";
    RequestHeaderSectionTooLarge 400 "Your request header section exceeds the maximum allowed size.";
    MaxMessageLengthExceeded 400 "Your request was too large.";
    EntityTooLarge 400 "Your proposed upload exceeds the maximum allowed size.";
    InvalidPart 400 "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag.";
    InvalidPartOrder 400 "The list of parts was not in ascending order. The parts list must be specified in order by part number.";
    EntityTooSmall 400 "Your proposed upload is smaller than the minimum allowed object size.";
    BadDigest 400 "The checksum or Content-MD5 you specified did not match what we received.";
    InvalidDigest 400 "The Content-MD5 you specified is not valid.";
    XAmzContentSHA256Mismatch 400 "The provided 'x-amz-content-sha256' header does not match what was computed.";
    IncompleteBody 400 "You did not provide the number of bytes specified by the length headers.";
    MalformedTrailerError 400 "The request contained trailing data that was not well-formed or did not conform to our published schema.";
    AuthorizationHeaderMalformed 400 "The authorization header that you provided is not valid.";
    AuthorizationQueryParametersError 400 "The authorization query parameters that you provided are not valid.";
    InvalidToken 400 "The provided token is malformed or otherwise not valid.";
    RequestTimeout 400 "Your socket connection to the server was not read from or written to within the timeout period.";
    InvalidStorageClass 400 "The storage class you specified is not valid.";
    AccessControlListNotSupported 400 "The bucket does not allow ACLs.";
    IdempotencyParameterMismatch 400 "The request uses a client token of an earlier request with other parameters.";

    AccessDenied 403 "Access Denied";
    InvalidAccessKeyId 403 "The AWS Access Key Id you provided does not exist in our records.";
    SignatureDoesNotMatch 403 "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
    RequestTimeTooSkewed 403 "The difference between the request time and the server's time is too large.";
    InvalidChunkSizeError 403 "A chunk of the body is larger than allowed.";

    NoSuchBucket 404 "The specified bucket does not exist.";
    NoSuchKey 404 "The specified key does not exist.";
    NoSuchUpload 404 "The specified multipart upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.";
    NoSuchConfiguration 404 "The specified configuration does not exist.";

    MethodNotAllowed 405 "The specified method is not allowed against this resource.";

    BucketAlreadyExists 409 "The requested bucket name is not available. Select a different name and try again.";
    BucketAlreadyOwnedByYou 409 "Your previous request to create the named bucket succeeded and you already own it.";
    BucketNotEmpty 409 "The bucket you tried to delete is not empty.";
    OperationAborted 409 "A conflicting operation is in progress against this resource. Try again.";
    ConditionalRequestConflict 409 "A conflicting operation occurred during this request. Nothing was changed; try again.";

    MissingContentLength 411 "You must provide the Content-Length HTTP header.";
    PreconditionFailed 412 "At least one of the preconditions you specified did not hold.";
    InvalidRange 416 "The requested range is not satisfiable.";
    InvalidPartNumber 416 "The requested partnumber is not satisfiable.";

    InternalError 500 "An internal error occurred. Try again.";
    NotImplemented 501 "A header or operation you provided implies functionality that is not implemented.";
    SlowDown 503 "Reduce your request rate.";
    ServiceUnavailable 503 "The service is unavailable now. Try again.";
    InsufficientStorage 507 "The cluster is full.";
}

/// What a client is told of a change that may or may not have happened.
const UNDECIDED: &str =
    "The outcome of the request is not known now. Repeat it; with a client token the repetition settles it.";

/// Seconds that `Retry-After` names where the failure does not say.
const RETRY_AFTER_S: u64 = 1;

/// An error as a client sees it. Small to move: everything is behind one pointer.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .0.code.name(), .0.message)]
pub struct S3Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    message: Cow<'static, str>,
    elements: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    closes: bool,
    /// What the cluster said: for the log, never for the client.
    cause: Option<String>,
}

/// What an operation answers.
pub type S3Result<T> = Result<T, S3Error>;

impl From<Code> for S3Error {
    fn from(code: Code) -> Self {
        S3Error::new(code, code.text())
    }
}

impl Code {
    /// Makes the error with a sentence of its own.
    pub fn with(self, message: impl Into<Cow<'static, str>>) -> S3Error {
        S3Error::new(self, message)
    }

    /// Makes an `Err` with a sentence of its own.
    pub fn fail<T>(self, message: impl Into<Cow<'static, str>>) -> S3Result<T> {
        Err(S3Error::new(self, message))
    }
}

impl S3Error {
    /// Makes an error with a sentence of its own.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        S3Error(Box::new(Inner {
            code,
            message: message.into(),
            elements: Vec::new(),
            headers: Vec::new(),
            closes: false,
            cause: None,
        }))
    }

    /// Makes the refusal of something that is not implemented, by its name.
    pub fn not_implemented(what: &str) -> Self {
        let mut error = S3Error::new(Code::NotImplemented, format!("{what} is not implemented."));
        error.0.elements.push(("Header", what.to_owned()));
        error
    }

    /// Makes an `InvalidArgument` that names the argument and its value.
    pub fn argument(name: &str, value: &str, message: impl Into<Cow<'static, str>>) -> Self {
        S3Error::new(Code::InvalidArgument, message).element("ArgumentName", name).element("ArgumentValue", value)
    }

    /// Adds an element behind `<Message>`.
    pub fn element(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.0.elements.push((name, text.into()));
        self
    }

    /// Adds a response header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Says the same for a request that only reads: there is no outcome to settle.
    pub fn for_a_read(mut self) -> Self {
        if self.0.code == Code::ServiceUnavailable {
            self.0.message = Code::ServiceUnavailable.text().into();
        }
        self
    }

    /// Makes the connection close behind the answer.
    pub fn closing(mut self) -> Self {
        self.0.closes = true;
        self
    }

    /// Notes what the cluster said, for [`S3Error::tell`].
    pub fn because(mut self, cause: impl ToString) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// Tells the log what the cluster said, under the id of the request that it kept from success.
    pub fn tell(&self, request_id: &str) {
        let Some(cause) = &self.0.cause else { return };
        if self.0.code == Code::InternalError {
            tracing::error!(event = "s3_failed", request_id, %cause, "request failed inside the cluster");
        } else {
            tracing::warn!(event = "s3_failed", request_id, %cause, "cluster cannot decide now");
        }
    }

    /// Returns the code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Returns whether the connection is to close behind the answer.
    pub fn closes(&self) -> bool {
        self.0.closes
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.code.status()).expect("the table holds valid statuses")
    }

    /// Adds the error's own headers to a response.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0.headers {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Writes `<Error>` with its particulars, without the XML declaration.
    pub fn write_xml(&self, xml: &mut Writer, resource: &str, request_id: &str, host_id: &str) {
        xml.open("Error");
        xml.text("Code", self.0.code.name());
        xml.text("Message", &self.0.message);
        for (name, value) in &self.0.elements {
            xml.text(name, value);
        }
        xml.text("Resource", resource);
        xml.text("RequestId", request_id);
        xml.text("HostId", host_id);
        xml.close("Error");
    }

    /// Returns whether an element of this name has been added.
    pub fn has_element(&self, name: &str) -> bool {
        self.element_text(name).is_some()
    }

    /// Returns the text of an element that has been added.
    pub fn element_text(&self, name: &str) -> Option<&str> {
        self.0.elements.iter().find(|(element, _)| *element == name).map(|(_, text)| text.as_str())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn retry_after(milliseconds: Option<u64>) -> HeaderValue {
    HeaderValue::from(milliseconds.map_or(RETRY_AFTER_S, |ms| ms.div_ceil(1000).max(1)))
}

impl From<Failure> for S3Error {
    /// Spells a failure of the cluster. Nothing that might have happened is called a 4xx.
    fn from(failure: Failure) -> Self {
        let retry = retry_after(failure.retry_after_ms);
        match failure.kind {
            FailureKind::Busy => S3Error::from(Code::SlowDown).header(header::RETRY_AFTER, retry).because(failure),
            FailureKind::Full => S3Error::from(Code::InsufficientStorage).because(failure),
            FailureKind::Conflict => S3Error::from(Code::OperationAborted),
            FailureKind::NotFound | FailureKind::Corrupt | FailureKind::Internal | FailureKind::Invalid => {
                S3Error::from(Code::InternalError).because(failure)
            }
            FailureKind::Unknown => {
                let error = S3Error::new(Code::ServiceUnavailable, UNDECIDED).header(header::RETRY_AFTER, retry);
                error.because(failure)
            }
            FailureKind::Unavailable | FailureKind::NotLeader | FailureKind::Fenced | FailureKind::Denied => {
                S3Error::from(Code::ServiceUnavailable).header(header::RETRY_AFTER, retry).because(failure)
            }
        }
    }
}

impl From<RefusalKind> for S3Error {
    fn from(kind: RefusalKind) -> Self {
        Refusal { kind, text: String::new() }.into()
    }
}

impl From<Refusal> for S3Error {
    /// Spells a decided refusal of the namespace.
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            RefusalKind::PreconditionFailed => Code::PreconditionFailed,
            RefusalKind::NoSuchKey => Code::NoSuchKey,
            RefusalKind::NoSuchBucket => Code::NoSuchBucket,
            RefusalKind::NoSuchUpload => Code::NoSuchUpload,
            RefusalKind::BucketNotEmpty => Code::BucketNotEmpty,
            RefusalKind::BucketExists | RefusalKind::AlreadyExists => Code::BucketAlreadyExists,
            RefusalKind::BucketOwnedByYou => Code::BucketAlreadyOwnedByYou,
            RefusalKind::InvalidPart => Code::InvalidPart,
            RefusalKind::InvalidPartOrder => Code::InvalidPartOrder,
            RefusalKind::PartTooSmall => Code::EntityTooSmall,
            RefusalKind::SizeMismatch | RefusalKind::InvalidChecksum => Code::InvalidRequest,
            RefusalKind::BadDigest => Code::BadDigest,
            RefusalKind::TokenMismatch => Code::IdempotencyParameterMismatch,
            RefusalKind::ObjectTooLarge => Code::EntityTooLarge,
            RefusalKind::WriterFenced
            | RefusalKind::StaleEpoch
            | RefusalKind::StaleAttempt
            | RefusalKind::Expired
            | RefusalKind::IssuedInFuture => {
                let error = S3Error::from(Code::ServiceUnavailable).header(header::RETRY_AFTER, retry_after(None));
                return error.because(format!("{:?}: {}", refusal.kind, refusal.text));
            }
            // Nothing that an S3 request which passed our checks can cause.
            RefusalKind::NoSuchNode
            | RefusalKind::NoSuchDisk
            | RefusalKind::NoSuchAccessKey
            | RefusalKind::InvalidToken
            | RefusalKind::VoterRefused
            | RefusalKind::AlreadyFounded
            | RefusalKind::Invalid
            | RefusalKind::NoSuchCertificate => {
                return S3Error::from(Code::InternalError).because(format!("{:?}: {}", refusal.kind, refusal.text));
            }
        };
        // The namespace's sentence says which part or size; S3's own is the fallback.
        let precise = matches!(code, Code::InvalidPart | Code::InvalidRequest | Code::EntityTooSmall);
        if precise && !refusal.text.is_empty() { S3Error::new(code, refusal.text) } else { code.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_http_knows() {
        for code in Code::ALL {
            assert_eq!(S3Error::from(*code).status().as_u16(), code.status(), "{code}");
            assert!(!code.text().is_empty());
        }
    }

    #[test]
    fn what_the_cluster_said_is_kept_for_the_log_and_from_the_client() {
        for kind in [FailureKind::Corrupt, FailureKind::Unavailable, FailureKind::Fenced, FailureKind::Invalid] {
            let error = S3Error::from(Failure::new(kind, "disk 7 of s3"));
            assert_eq!(error.0.cause, Some(format!("{kind:?}: disk 7 of s3")));
            let mut xml = Writer::bare();
            error.write_xml(&mut xml, "/b/k", "1", "2");
            assert!(!String::from_utf8(xml.into_vec()).expect("text").contains("disk 7"));
        }
    }

    #[test]
    fn reads_are_not_told_of_client_tokens_and_every_refusal_of_the_cluster_has_its_cause() {
        for kind in FailureKind::ALL.iter().copied().filter(|kind| *kind != FailureKind::Conflict) {
            let error = S3Error::from(Failure::new(kind, "x"));
            assert!(error.0.cause.is_some(), "{kind:?}");
            assert_eq!(error.0.message.contains("client token"), kind == FailureKind::Unknown, "{kind:?}");
            assert!(!error.for_a_read().0.message.contains("client token"));
        }
    }

    #[test]
    fn an_unknown_outcome_is_never_a_client_error() {
        for kind in [FailureKind::Unknown, FailureKind::Unavailable, FailureKind::NotLeader, FailureKind::Fenced] {
            let error = S3Error::from(Failure::new(kind, "x"));
            assert_eq!(error.status(), 503);
            let mut headers = HeaderMap::new();
            error.write_headers(&mut headers);
            assert!(headers.contains_key(header::RETRY_AFTER));
        }
    }

    #[test]
    fn an_error_escapes_what_it_quotes() {
        let mut xml = Writer::bare();
        S3Error::argument("a", "<&\r", "b\"").write_xml(&mut xml, "/x&y", "1", "2");
        let text = String::from_utf8(xml.into_vec()).expect("UTF-8");
        assert!(text.contains("<ArgumentValue>&lt;&amp;&#xD;</ArgumentValue>"), "{text}");
        assert!(text.contains("<Resource>/x&amp;y</Resource>"));
    }
}
