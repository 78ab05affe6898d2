//! A request's body, proved while it passes.
//!
//! [`Payload`] hides how the body is framed and signed: whoever reads it gets the object's bytes in
//! order, and an error instead of the end unless length, hash, chunk signatures and trailers are
//! right. [`Claims`] holds what the client says about the content, and judges the digest.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use plinth_protocol::object::ChecksumAlgorithm;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

use crate::admission::{Admission, Reservation, Sender};
use crate::checksum::{self, BodySums, ContentDigest};
use crate::chunked::Decoder;
use crate::error::{Code, S3Error, S3Result};
use crate::hashing;
use crate::head::Head;
use crate::pace::{Pace, Patience};
use crate::signature::{PayloadProof, Verified};

/// Largest body of a PUT or part.
pub const OBJECT_BODY_BYTES_MAX: u64 = 5 << 30;

/// What a body passes on its way in.
pub struct Door<'a> {
    /// The budget of all bodies.
    pub admission: &'a Admission,
    /// Whose body it is.
    pub sender: Sender,
    /// What its sender is given of time.
    pub patience: Patience,
}

/// A request's body.
pub struct Payload {
    incoming: Incoming,
    framing: Framing,
    length: u64,
    received: u64,
    /// Of those, what has come since the sender last stalled.
    received_lately: u64,
    pace: Pace,
    silent_max: Duration,
    waiting_since: Option<Instant>,
    reservation: Reservation,
    trailers: Vec<(String, String)>,
}

enum Framing {
    Plain { left: u64, hash: Option<(Box<Context>, [u8; 32])> },
    Chunked(Box<Decoder>),
    Ended,
}

/// Returns the length of the content, framing taken off.
///
/// # Errors
/// `MissingContentLength` without any, `InvalidArgument` for one that is no number.
pub fn content_length(head: &Head, proof: PayloadProof) -> S3Result<u64> {
    if let PayloadProof::Chunked { .. } = proof {
        if head.content_length().is_none() && !head.is_transfer_chunked() {
            return Err(Code::MissingContentLength.into());
        }
        let text = head.header("x-amz-decoded-content-length")?.ok_or(Code::MissingContentLength)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        return text
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| S3Error::argument("x-amz-decoded-content-length", &text, "The length is not a number."));
    }
    let length = head.content_length().ok_or(Code::MissingContentLength)?;
    // Framing that the payload hash does not announce would become part of the object (K5).
    if head.header("x-amz-decoded-content-length")?.is_some_and(|text| text.parse() != Ok(length)) {
        return Code::InvalidRequest
            .fail("x-amz-decoded-content-length without a STREAMING value of x-amz-content-sha256.");
    }
    Ok(length)
}

impl Payload {
    /// Prepares to read a body of at most `bytes_max`. Nothing is read yet: a client that waits for
    /// `100 Continue` gets an error instead.
    ///
    /// # Errors
    /// `EntityTooLarge`, `MissingContentLength`, `SlowDown`, or what is wrong with the declared
    /// trailers.
    pub fn open(
        head: &Head,
        verified: &mut Verified,
        incoming: &mut Option<Incoming>,
        door: Door<'_>,
        bytes_max: u64,
    ) -> S3Result<Self> {
        let length = content_length(head, verified.payload)?;
        if length > bytes_max {
            return Err(S3Error::from(Code::EntityTooLarge)
                .element("ProposedSize", length.to_string())
                .element("MaxSizeAllowed", bytes_max.to_string()));
        }
        let declared = declared_trailers(head)?;
        let reservation = door.admission.admit(length, &door.sender)?;
        // Only now is the body taken: until here an early refusal may drain it, or leave a client
        // that waits for 100 with the refusal instead.
        let incoming = incoming.take().ok_or(Code::InternalError)?;
        let framing = match verified.payload {
            PayloadProof::Unsigned => Framing::Plain { left: length, hash: None },
            PayloadProof::Hash(expected) => {
                Framing::Plain { left: length, hash: Some((Box::new(Context::new(&SHA256)), expected)) }
            }
            PayloadProof::Chunked { trailer, .. } => {
                Framing::Chunked(Box::new(Decoder::new(verified.chunks.take(), trailer, declared, length)))
            }
        };
        Ok(Payload {
            incoming,
            framing,
            length,
            received: 0,
            received_lately: 0,
            pace: Pace::new(door.patience),
            silent_max: door.patience.silent_max,
            waiting_since: None,
            reservation,
            trailers: Vec::new(),
        })
    }

    /// Returns the declared length of the content.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns the bytes received from the wire, framing included.
    pub fn received_bytes(&self) -> u64 {
        self.received
    }

    /// Takes note that the sender is silent and that what came has moved on: the body holds little meanwhile.
    pub fn handle_stall(&mut self) {
        self.received_lately = 0;
        self.reservation.shrink(self.waiting_bytes());
    }

    /// Returns the bytes that wait for a signature.
    fn waiting_bytes(&self) -> u64 {
        match &self.framing {
            Framing::Chunked(decoder) => decoder.held_bytes(),
            Framing::Plain { .. } | Framing::Ended => 0,
        }
    }

    /// Returns the next bytes of the content; nothing once everything has been proved.
    ///
    /// # Errors
    /// Whatever is wrong with the body; `RequestTimeout` where it stalls.
    pub async fn next(&mut self) -> S3Result<Option<Bytes>> {
        loop {
            match &mut self.framing {
                Framing::Ended => return Ok(None),
                Framing::Chunked(decoder) => {
                    if let Some(piece) = decoder.poll_piece() {
                        return Ok(Some(piece));
                    }
                }
                Framing::Plain { .. } => {}
            }
            let frame = self.frame().await?;
            match (&mut self.framing, frame) {
                (Framing::Ended, _) => return Ok(None),
                (Framing::Plain { left, hash }, Some(bytes)) => {
                    let length = bytes.len() as u64;
                    *left = left.checked_sub(length).ok_or(Code::IncompleteBody)?;
                    if let Some((hash, _)) = hash {
                        hash.update(&bytes);
                    }
                    return Ok(Some(bytes));
                }
                (Framing::Plain { .. }, None) => self.end_plain()?,
                (Framing::Chunked(decoder), Some(bytes)) => {
                    decoder.handle_bytes(bytes)?;
                    self.reservation.grow_to(self.received_lately, decoder.held_bytes())?;
                }
                (Framing::Chunked(decoder), None) => {
                    self.trailers = decoder.finish()?;
                    self.framing = Framing::Ended;
                }
            }
        }
    }

    fn end_plain(&mut self) -> S3Result<()> {
        let Framing::Plain { left, hash } = std::mem::replace(&mut self.framing, Framing::Ended) else { return Ok(()) };
        if left != 0 {
            return Err(Code::IncompleteBody.into());
        }
        let is_right = hash.is_none_or(|(hash, expected)| hash.finish().as_ref() == expected);
        if is_right { Ok(()) } else { Err(Code::XAmzContentSHA256Mismatch.into()) }
    }

    async fn frame(&mut self) -> S3Result<Option<Bytes>> {
        loop {
            // Kept over calls that were given up, as those are that look after a silent sender.
            let started = *self.waiting_since.get_or_insert_with(Instant::now);
            let next = std::future::poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx));
            let next = tokio::time::timeout_at(started + self.silent_max, next).await;
            self.waiting_since = None;
            let frame = match next {
                Err(_) => return Err(S3Error::from(Code::RequestTimeout).closing()),
                Ok(None) => return Ok(None),
                // The sender went away, or its framing was broken: the rest can never come.
                Ok(Some(Err(_))) => return Err(S3Error::from(Code::IncompleteBody).closing()),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            self.received += bytes.len() as u64;
            self.received_lately += bytes.len() as u64;
            if !self.pace.handle_moved(started.elapsed(), bytes.len() as u64) {
                return Err(S3Error::from(Code::RequestTimeout).closing());
            }
            self.reservation.grow_to(self.received_lately, self.waiting_bytes())?;
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    /// Returns the trailers, once the body has ended.
    pub fn trailers(&self) -> &[(String, String)] {
        &self.trailers
    }

    /// Reads a whole document into memory and checks what the client says about it.
    ///
    /// # Errors
    /// As [`Payload::next`] and [`Claims::check`].
    pub async fn read_document(&mut self, claims: &Claims) -> S3Result<Vec<u8>> {
        let mut out = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0).min(1 << 20));
        let mut sums = BodySums::new(hashing::Running::alone(), None, claims.algorithm());
        while let Some(bytes) = self.next().await? {
            sums.update(&bytes).await;
            out.extend_from_slice(&bytes);
        }
        let (digest, md5) = sums.finish();
        claims.check_md5(md5.finish().await)?;
        claims.check(&digest, self.trailers())?;
        Ok(out)
    }
}

fn declared_trailers(head: &Head) -> S3Result<Vec<String>> {
    let Some(text) = head.header("x-amz-trailer")? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for name in text.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()) {
        if !checksum::ALGORITHMS.iter().any(|algorithm| checksum::header_name(*algorithm) == name) {
            let text = format!("The value specified in the x-amz-trailer header is not supported: {name}");
            return Err(Code::InvalidRequest.with(text));
        }
        names.push(name);
    }
    Ok(names)
}

/// Where a claimed checksum stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claimed {
    Value(Bytes),
    Trailer,
    /// Only the algorithm is named: compute and store.
    Nothing,
}

/// What a client says about the content of a body.
#[derive(Debug, Default)]
pub struct Claims {
    md5: Option<[u8; 16]>,
    checksum: Option<(ChecksumAlgorithm, Claimed)>,
}

impl Claims {
    /// Reads `Content-MD5`, checksum headers, declared trailers and the named algorithm.
    ///
    /// # Errors
    /// `InvalidDigest` and `InvalidRequest` as section 3 (K3) has them.
    pub fn read(head: &Head, presigned: bool) -> S3Result<Self> {
        let md5 = head.header("content-md5")?.map(|text| checksum::parse_md5(&text)).transpose()?;
        let mut found: Option<(ChecksumAlgorithm, Claimed)> = None;
        let trailers = declared_trailers(head)?;
        for algorithm in checksum::ALGORITHMS {
            let name = checksum::header_name(algorithm);
            let value = head.header(name)?;
            let claimed = match value {
                Some(text) => match checksum::parse_value(algorithm, &text)? {
                    (value, None) => Claimed::Value(value),
                    (_, Some(_)) => return Code::InvalidRequest.fail(format!("Value for {name} header is invalid.")),
                },
                None if trailers.iter().any(|trailer| trailer == name) => Claimed::Trailer,
                None => continue,
            };
            if found.replace((algorithm, claimed)).is_some() {
                return Code::InvalidRequest
                    .fail("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.");
            }
        }
        if let Some(text) = head.header("x-amz-sdk-checksum-algorithm")? {
            let named = checksum::parse_algorithm(&text)?;
            match &found {
                Some((algorithm, _)) if *algorithm != named => {
                    return Code::InvalidRequest.fail("Value for x-amz-sdk-checksum-algorithm header is invalid.");
                }
                Some(_) => {}
                // Presigners hoist the algorithm without knowing the body.
                None if presigned => found = Some((named, Claimed::Nothing)),
                None => {
                    return Code::InvalidRequest.fail("x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.");
                }
            }
        }
        Ok(Claims { md5, checksum: found })
    }

    /// Reads only `Content-MD5`, for bodies whose checksum headers speak of something else.
    ///
    /// # Errors
    /// `InvalidDigest`.
    pub fn read_md5(head: &Head) -> S3Result<Self> {
        let md5 = head.header("content-md5")?.map(|text| checksum::parse_md5(&text)).transpose()?;
        Ok(Claims { md5, checksum: None })
    }

    /// Returns the algorithm that the client names.
    pub fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        self.checksum.as_ref().map(|(algorithm, _)| *algorithm)
    }

    /// Returns whether anything proves the content (K8).
    pub fn prove_anything(&self) -> bool {
        self.md5.is_some() || matches!(self.checksum, Some((_, Claimed::Value(_) | Claimed::Trailer)))
    }

    /// Returns whether the client says what the MD5 is.
    pub fn have_md5(&self) -> bool {
        self.md5.is_some()
    }

    /// Compares the claimed MD5, if any, with the computed one.
    ///
    /// # Errors
    /// `BadDigest`.
    pub fn check_md5(&self, computed: [u8; 16]) -> S3Result<()> {
        if self.md5.is_some_and(|md5| md5 != computed) {
            return Code::BadDigest.fail("The Content-MD5 you specified did not match what we received.");
        }
        Ok(())
    }

    /// Compares the claimed checksum, if any, with the computed one.
    ///
    /// # Errors
    /// `BadDigest`; `MalformedTrailerError` where a trailer is absent, `InvalidRequest` where its
    /// value cannot be read.
    pub fn check(&self, digest: &ContentDigest, trailers: &[(String, String)]) -> S3Result<()> {
        let Some((algorithm, claimed)) = &self.checksum else { return Ok(()) };
        let expected = match claimed {
            Claimed::Nothing => return Ok(()),
            Claimed::Value(value) => value.clone(),
            Claimed::Trailer => {
                let name = checksum::header_name(*algorithm);
                let trailer = trailers.iter().find(|(known, _)| known == name);
                let (_, text) = trailer.ok_or(Code::MalformedTrailerError)?;
                checksum::parse_value(*algorithm, text)?.0
            }
        };
        let computed = [&digest.checksum, &digest.verified]
            .into_iter()
            .flatten()
            .find(|checksum| checksum.algorithm == *algorithm)
            .expect("the algorithm that a client names is always computed");
        if computed.value != expected {
            return Code::BadDigest.fail(format!(
                "The {} you specified did not match the calculated checksum.",
                checksum::value_name(*algorithm)
            ));
        }
        Ok(())
    }
}
