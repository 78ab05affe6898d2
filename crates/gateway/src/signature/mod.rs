//! Proves who sent a request: one verifier for every form of SigV4.
//!
//! Header and query credentials, plain and chunked payloads, with and without trailers: all of them
//! pass [`Verifier::verify`], which returns who asked and how the body must be checked. Reference:
//! "Authenticating Requests (AWS Signature Version 4)" of the S3 API.

mod canonical;
mod keys;

use aws_lc_rs::{constant_time, digest, hmac};
use http::header;
use plinth_protocol::meta::is_access_key_id;
use std::borrow::Cow;
use std::sync::Arc;

use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::head::Head;
use canonical::{canonical_request, check_headers_are_signed};
use keys::DerivedKeys;
pub use keys::{Credential, KeyRing, StaticKeys};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Largest difference between a header-signed request's time and ours.
const SKEW_S_MAX: i64 = 15 * 60;
/// Longest life of a presigned URL: 7 days.
const PRESIGNED_S_MAX: i64 = 604_800;

/// How the body is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadProof {
    /// Not at all by the signature.
    Unsigned,
    /// The SHA-256 of the whole body is in the signature.
    Hash([u8; 32]),
    /// `aws-chunked`; chunks carry signatures or not, trailers follow or not.
    Chunked {
        /// Every chunk and the trailer are signed.
        signed: bool,
        /// Trailers follow the last chunk.
        trailer: bool,
    },
}

impl PayloadProof {
    fn parse(text: &str) -> S3Result<Self> {
        let chunked = |signed, trailer| Ok(PayloadProof::Chunked { signed, trailer });
        match text {
            "UNSIGNED-PAYLOAD" => Ok(PayloadProof::Unsigned),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => chunked(false, true),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => chunked(true, false),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => chunked(true, true),
            "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD" | "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER" => {
                Err(S3Error::not_implemented("The signature algorithm AWS4-ECDSA-P256-SHA256"))
            }
            _ => match hex_32(text) {
                Some(hash) => Ok(PayloadProof::Hash(hash)),
                None => Err(S3Error::argument(
                    "x-amz-content-sha256",
                    text,
                    "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, one of the STREAMING forms, or a SHA-256 in hexadecimal.",
                )),
            },
        }
    }
}

fn hex_32(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = crate::head::hex_byte(pair)?;
    }
    Some(out)
}

/// Who sent a request, and what remains to be proved about its body.
pub struct Verified {
    /// The access key and its account.
    pub credential: Arc<Credential>,
    /// How the body is proved.
    pub payload: PayloadProof,
    /// Whether the credentials stood in the query.
    pub presigned: bool,
    /// Signs the chunks of a signed chunked body.
    pub chunks: Option<ChunkSigner>,
    signed_headers: String,
}

impl Verified {
    /// Returns whether a header was covered by the signature.
    pub fn is_signed(&self, name: &str) -> bool {
        self.signed_headers.split(';').any(|signed| signed == name)
    }
}

/// The chain of chunk signatures: each covers the one before it.
pub struct ChunkSigner {
    key: Arc<hmac::Key>,
    date: String,
    scope: String,
    previous: String,
}

impl ChunkSigner {
    /// Makes a signer that accepts nothing.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, b"key"));
        ChunkSigner { key, date: String::new(), scope: String::new(), previous: String::new() }
    }

    /// Returns whether `signature` is the next one of the chain, for a chunk with this SHA-256; moves
    /// on where it is.
    pub fn accepts_chunk(&mut self, hash: &[u8], signature: &str) -> bool {
        let empty = hex(digest::digest(&digest::SHA256, b"").as_ref());
        let to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{}\n{}",
            self.date,
            self.scope,
            self.previous,
            empty,
            hex(hash)
        );
        self.advance(&to_sign, signature)
    }

    /// Returns whether `signature` covers the trailer's canonical text.
    pub fn accepts_trailer(&mut self, canonical: &[u8], signature: &str) -> bool {
        let hash = hex(digest::digest(&digest::SHA256, canonical).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{}\n{hash}", self.date, self.scope, self.previous);
        self.advance(&to_sign, signature)
    }

    fn advance(&mut self, to_sign: &str, signature: &str) -> bool {
        let computed = hex(hmac::sign(&self.key, to_sign.as_bytes()).as_ref());
        let same = constant_time::verify_slices_are_equal(computed.as_bytes(), signature.as_bytes()).is_ok();
        self.previous = computed;
        same
    }
}

/// Writes bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)] as char);
        out.push(HEX[usize::from(byte & 15)] as char);
    }
    out
}

/// What a request claims about its signature, from the header or the query.
struct Claim<'a> {
    /// `access-key/date/region/s3/aws4_request`.
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
    date: Seconds,
    /// Seconds that a presigned URL lives; absent for header credentials.
    expires: Option<i64>,
}

struct Scope<'a> {
    access_key: &'a str,
    /// `access-key/date/region`: names a derived key.
    derived: &'a str,
    date: &'a str,
    region: &'a str,
    /// `date/region/s3/aws4_request`.
    text: &'a str,
}

/// Verifies requests against a key ring.
pub struct Verifier {
    region: String,
    region_is_strict: bool,
    keys: Arc<dyn KeyRing>,
    derived: DerivedKeys,
}

impl Verifier {
    /// Makes a verifier. With `region_is_strict` only the configured region is accepted.
    pub fn new(region: String, region_is_strict: bool, keys: Arc<dyn KeyRing>) -> Self {
        Verifier { region, region_is_strict, keys, derived: DerivedKeys::default() }
    }

    /// Proves a request's signature at the time `now`.
    ///
    /// # Errors
    /// The code that section 3 (SigV4) of the S3 contract names for each fault; a request without
    /// credentials is denied.
    pub async fn verify(&self, head: &Head, now: Seconds) -> S3Result<Verified> {
        let claim = claim(head)?;
        let presigned = claim.expires.is_some();
        let scope = self.scope(&claim)?;
        check_times(&claim, &scope, now)?;
        if head.has("x-amz-security-token") {
            return Err(Code::InvalidToken.into());
        }
        check_headers_are_signed(head, claim.signed_headers)?;
        let payload_text = match head.header("x-amz-content-sha256")? {
            Some(text) => text.into_owned(),
            None if presigned => "UNSIGNED-PAYLOAD".to_owned(),
            None => {
                return Code::InvalidRequest.fail("Missing required header for this request: x-amz-content-sha256");
            }
        };
        let payload = PayloadProof::parse(&payload_text)?;
        // No key has such an id: nobody need be asked, and nothing remembered.
        if !is_access_key_id(scope.access_key) {
            return Err(Code::InvalidAccessKeyId.into());
        }
        let credential = self.keys.find(scope.access_key).await.map_err(S3Error::from)?;
        let credential = credential
            .ok_or_else(|| S3Error::from(Code::InvalidAccessKeyId).element("AWSAccessKeyId", scope.access_key))?;
        let key = self.derived.get(&credential, scope.derived, scope.date, scope.region);

        check_signature(head, &claim, &scope, &payload_text, &key)?;
        let chunks = matches!(payload, PayloadProof::Chunked { signed: true, .. }).then(|| ChunkSigner {
            key,
            date: claim.date.amz(),
            scope: scope.text.to_owned(),
            previous: claim.signature.to_owned(),
        });
        Ok(Verified { credential, payload, presigned, chunks, signed_headers: claim.signed_headers.to_owned() })
    }

    fn scope<'a>(&self, claim: &Claim<'a>) -> S3Result<Scope<'a>> {
        let malformed = |text: &str| {
            let code = match claim.expires {
                Some(_) => Code::AuthorizationQueryParametersError,
                None => Code::AuthorizationHeaderMalformed,
            };
            S3Error::new(code, text.to_owned())
        };
        // From the right: an access key may hold anything but what follows it.
        let mut fields = claim.credential.rsplitn(5, '/');
        let mut field = || {
            fields.next().ok_or_else(|| malformed("The Credential is malformed; expecting \"<your-access-key>/YYYYMMDD/REGION/SERVICE/aws4_request\"."))
        };
        let (terminator, service, region, date, access_key) = (field()?, field()?, field()?, field()?, field()?);
        if terminator != "aws4_request" {
            return Err(malformed("The Credential must end with \"aws4_request\"."));
        }
        if service != "s3" {
            return Err(malformed("The Credential names a service other than \"s3\"."));
        }
        let region_is_well_formed = (1..=64).contains(&region.len())
            && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !region_is_well_formed || self.region_is_strict && region != self.region {
            let text = format!("The region '{region}' is wrong; expecting '{}'.", self.region);
            return Err(malformed(&text).element("Region", self.region.clone()));
        }
        if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) || access_key.is_empty() {
            return Err(malformed("The Credential is malformed: access key or date."));
        }
        let text = &claim.credential[access_key.len() + 1..];
        let derived = &claim.credential[..access_key.len() + 1 + date.len() + 1 + region.len()];
        Ok(Scope { access_key, derived, date, region, text })
    }
}

fn check_times(claim: &Claim<'_>, scope: &Scope<'_>, now: Seconds) -> S3Result<()> {
    let amz = claim.date.amz();
    if scope.date != &amz[..8] {
        let text =
            format!("Invalid credential date \"{}\": it differs from the request's, \"{}\".", scope.date, &amz[..8]);
        return Err(S3Error::new(
            if claim.expires.is_some() {
                Code::AuthorizationQueryParametersError
            } else {
                Code::AuthorizationHeaderMalformed
            },
            text,
        ));
    }
    let iso = |at: Seconds| String::from_utf8_lossy(&at.xml()).into_owned();
    let age = now.0 - claim.date.0;
    match claim.expires {
        Some(expires) if age > expires => Err(Code::AccessDenied
            .with("Request has expired")
            .element("Expires", iso(Seconds(claim.date.0 + expires)))
            .element("ServerTime", iso(now))),
        Some(_) if age < -SKEW_S_MAX => {
            Err(Code::AccessDenied.with("Request is not yet valid").element("ServerTime", iso(now)))
        }
        None if age.abs() > SKEW_S_MAX => Err(S3Error::from(Code::RequestTimeTooSkewed)
            .element("RequestTime", amz)
            .element("ServerTime", iso(now))
            .element("MaxAllowedSkewMilliseconds", (SKEW_S_MAX * 1000).to_string())),
        _ => Ok(()),
    }
}

fn check_signature(head: &Head, claim: &Claim<'_>, scope: &Scope<'_>, payload: &str, key: &hmac::Key) -> S3Result<()> {
    let mut shown = None;
    for (path, query) in forms(head) {
        let request = canonical_request(head, &path, &query, claim.signed_headers, payload);
        let hash = hex(digest::digest(&digest::SHA256, &request).as_ref());
        let to_sign = format!("{ALGORITHM}\n{}\n{}\n{hash}", claim.date.amz(), scope.text);
        let computed = hex(hmac::sign(key, to_sign.as_bytes()).as_ref());
        if constant_time::verify_slices_are_equal(computed.as_bytes(), claim.signature.as_bytes()).is_ok() {
            return Ok(());
        }
        shown.get_or_insert((request, to_sign));
    }
    let (request, to_sign) = shown.expect("there is always the canonical form");
    Err(S3Error::from(Code::SignatureDoesNotMatch)
        .element("AWSAccessKeyId", scope.access_key)
        .element("StringToSign", to_sign)
        .element("SignatureProvided", claim.signature)
        .element("CanonicalRequest", String::from_utf8_lossy(&request)))
}

/// Returns the forms of path and query that a signature may cover: the canonical one; and, where it differs, the path
/// as sent, because some clients sign what they send. Both name one object.
fn forms(head: &Head) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let (path, query) = (canonical::path(&head.raw_path), canonical::query(&head.raw_query));
    let as_sent = (path != head.raw_path).then(|| (Cow::Borrowed(head.raw_path.as_str()), Cow::Owned(query.clone())));
    std::iter::once((path, Cow::Owned(query))).chain(as_sent)
}

fn claim(head: &Head) -> S3Result<Claim<'_>> {
    let mut authorizations = head.headers.get_all(header::AUTHORIZATION).iter();
    let authorization = authorizations.next();
    if authorizations.next().is_some() {
        return Code::InvalidArgument.fail("Only one Authorization header is allowed.");
    }
    let in_query = ["x-amz-algorithm", "x-amz-credential", "x-amz-signature"]
        .iter()
        .any(|name| head.query.get_folded(name).is_some());
    match (authorization, in_query) {
        (Some(value), true) => {
            let text = String::from_utf8_lossy(value.as_bytes());
            let scheme = text.split(' ').next().unwrap_or_default();
            Err(S3Error::argument(
                "Authorization",
                scheme,
                "Only one auth mechanism allowed; use either the Authorization header or the X-Amz-Algorithm query parameter.",
            ))
        }
        (Some(value), false) => {
            let text = value.to_str().map_err(|_| S3Error::from(Code::AuthorizationHeaderMalformed))?;
            header_claim(head, text)
        }
        (None, true) => query_claim(head),
        (None, false) if head.query.has("AWSAccessKeyId") || head.query.has("Signature") => Err(outdated()),
        (None, false) => Err(Code::AccessDenied.into()),
    }
}

fn outdated() -> S3Error {
    Code::InvalidRequest
        .with("The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
}

fn header_claim<'a>(head: &'a Head, text: &'a str) -> S3Result<Claim<'a>> {
    let malformed = |text: &'static str| Code::AuthorizationHeaderMalformed.with(text);
    let Some(rest) = text.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with(' ')) else {
        return Err(outdated());
    };
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in rest.split(',') {
        let (name, value) = field.trim().split_once('=').ok_or_else(|| malformed("A field has no '='."))?;
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => return Err(malformed("A field is unknown.")),
        };
        if slot.replace(value).is_some() {
            return Err(malformed("A field stands twice."));
        }
    }
    let (Some(credential), Some(signed_headers), Some(signature)) = (credential, signed_headers, signature) else {
        return Err(malformed("Credential, SignedHeaders and Signature are all required."));
    };
    let date = match head.headers.get("x-amz-date") {
        Some(value) => value.to_str().ok().and_then(Seconds::parse_amz),
        None => head
            .headers
            .get(header::DATE)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| Seconds::parse_http(text).or_else(|| Seconds::parse_amz(text))),
    };
    let date =
        date.ok_or_else(|| Code::AccessDenied.with("AWS authentication requires a valid Date or x-amz-date header"))?;
    Ok(Claim { credential, signed_headers, signature, date, expires: None })
}

fn query_claim(head: &Head) -> S3Result<Claim<'_>> {
    let malformed = |text: String| Code::AuthorizationQueryParametersError.with(text);
    let parameter = |name: &str| {
        let mut found = head.query.pairs().filter(|(known, _)| *known == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Ok(value),
            _ => Err(malformed(format!("Query-string authentication version 4 requires {name} once."))),
        }
    };
    if parameter("X-Amz-Algorithm")? != ALGORITHM {
        return Err(malformed(format!("X-Amz-Algorithm only supports \"{ALGORITHM}\".")));
    }
    let date = Seconds::parse_amz(parameter("X-Amz-Date")?)
        .ok_or_else(|| malformed("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"".into()))?;
    let expires = parameter("X-Amz-Expires")?;
    let expires = match expires.parse::<i64>() {
        Ok(seconds) if (1..=PRESIGNED_S_MAX).contains(&seconds) => seconds,
        Ok(seconds) if seconds > PRESIGNED_S_MAX => {
            return Err(malformed("X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds".into()));
        }
        _ => return Err(malformed("X-Amz-Expires should be a positive number".into())),
    };
    Ok(Claim {
        credential: parameter("X-Amz-Credential")?,
        signed_headers: parameter("X-Amz-SignedHeaders")?,
        signature: parameter("X-Amz-Signature")?,
        date,
        expires: Some(expires),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
