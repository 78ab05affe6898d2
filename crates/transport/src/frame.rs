//! Frames: what two nodes send each other inside the encrypted connection.
//!
//! A frame is a prefix of 32 bytes, a header and a payload, one behind the other:
//!
//! | offset | bytes | content                                                                  |
//! |--------|-------|--------------------------------------------------------------------------|
//! | 0      | 1     | frame version: 1                                                         |
//! | 1      | 1     | kind: 1 hello, 2 request, 3 response, 4 failure, 5 cancel, 6 ping, 7 goodbye |
//! | 2      | 1     | method of a request, else 0                                              |
//! | 3      | 1     | flags: bits 0–3 must be understood (none is defined), bits 4–7 may be ignored |
//! | 4      | 4     | deadline of a request: milliseconds that the caller still waits, else 0  |
//! | 8      | 8     | request id; 0 in hello, ping and goodbye                                 |
//! | 16     | 4     | header bytes, at most 1 MiB                                              |
//! | 20     | 4     | payload bytes, at most 8 MiB; 0 unless request or response               |
//! | 24     | 4     | CRC-32 of the payload                                                    |
//! | 28     | 4     | CRC-32 of bytes [0, 28) and of the header                                |
//! | 32     | …     | header, then payload                                                     |
//!
//! Integers are little-endian; the CRC is that of IEEE 802.3 (`crc32fast`). The header of a hello is
//! a [`Hello`] record, that of a failure and of a goodbye a [`Failure`] record; requests and
//! responses carry the method's own record. The first frame of each side is its hello.
//!
//! The decoder allocates only what a checked length asks for: the header grows as its bytes arrive,
//! the payload's buffer is made after the checksum of prefix and header has been verified.

use crate::call::{HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX};
use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::pool::BufferPool;
use plinth_protocol::{ClusterId, Failure, FailureKind, Incarnation, Method, NodeId, numbered, record, wire::Wire};
use std::sync::Arc;

/// The version of the frame format that this code speaks.
pub const FRAME_VERSION: u8 = 1;
/// The version of the conversation that this code speaks: hello, kinds and their meaning.
pub const HELLO_VERSION: u32 = 1;
/// Bytes of a frame before its header.
pub const PREFIX_BYTES: usize = 32;
/// Largest header of a hello, cancel, ping or goodbye in bytes.
pub const CONTROL_HEADER_BYTES_MAX: usize = 4096;
/// Bytes that a header may claim at once; beyond it grows with what arrives.
const HEADER_BYTES_AT_ONCE: usize = 16 << 10;
/// The flags that a reader must understand.
const FLAGS_REQUIRED: u8 = 0x0f;

numbered! {
    /// What a frame is for.
    pub enum FrameKind {
        /// Who I am and whom I meant; first frame of each side.
        Hello = 1,
        /// A call.
        Request = 2,
        /// The answer of a call that succeeded.
        Response = 3,
        /// The answer of a call that failed.
        Failure = 4,
        /// The caller no longer waits.
        Cancel = 5,
        /// I am alive.
        Ping = 6,
        /// I take no new requests on this connection, and why.
        Goodbye = 7,
    }
}

numbered! {
    /// What a connection is for: each kind of work has its own, so that bulk never delays a vote.
    pub enum Lane {
        /// Small calls: namespace, Raft, pings.
        Small = 1,
        /// Fragments and snapshots.
        Bulk = 2,
    }
}

record! {
    /// The first frame of each side. Node and roles are proved by the certificate; a hello that
    /// claims another node is refused.
    pub struct Hello {
        /// The conversation's version: [`HELLO_VERSION`].
        1 => version: u32,
        /// The cluster that the sender belongs to, 0 for a joining node that does not know it.
        2 => cluster: ClusterId,
        /// The sender's node id, 0 for one that joins.
        3 => node: NodeId,
        /// The sender's incarnation, 0 for one that joins.
        4 => incarnation: Incarnation,
        /// What the connection is for.
        5 => lane: Lane,
        /// The incarnation that the sender means to talk to, where it knows it.
        6 => peer_incarnation: Option<Incarnation>,
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The other side speaks a newer format.
    #[error("frame version {0}")]
    Version(u8),
    /// The kind is not known.
    #[error("frame kind {0}")]
    Kind(u8),
    /// The method is not known.
    #[error("method {0}")]
    Method(u8),
    /// A flag that must be understood is not known.
    #[error("flags {0:#04x}")]
    Flags(u8),
    /// A length is above its bound.
    #[error("length above the bound")]
    Length,
    /// Prefix or header fail their checksum.
    #[error("header checksum mismatch")]
    HeaderChecksum,
    /// The payload of this request or response fails its checksum.
    #[error("payload checksum mismatch in request {0}")]
    PayloadChecksum(u64),
    /// The frame is valid but does not belong here.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
}

/// The fields of a prefix, lengths and checksums apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// What the frame is for.
    pub kind: FrameKind,
    /// The method, in requests only.
    pub method: Option<Method>,
    /// Milliseconds that the caller still waits, in requests.
    pub deadline_ms: u32,
    /// The request that the frame belongs to.
    pub id: u64,
}

/// A frame that arrived whole and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The fields of the prefix.
    pub head: FrameHead,
    /// The header.
    pub header: Bytes,
    /// The payload in an aligned buffer.
    pub payload: Bytes,
}

/// A frame ready to leave: nothing but the prefix is copied.
#[derive(Debug)]
pub struct OutFrame {
    /// The encoded prefix.
    pub prefix: [u8; PREFIX_BYTES],
    /// The header.
    pub header: Bytes,
    /// The payload's parts.
    pub payload: Vec<Bytes>,
}

impl OutFrame {
    /// Makes a frame. Header and payload must be within their bounds.
    pub fn new(head: FrameHead, header: Bytes, payload: Vec<Bytes>) -> Self {
        let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
        assert!(header.len() <= HEADER_BYTES_MAX && payload_bytes <= PAYLOAD_BYTES_MAX, "bounds are checked before");
        let mut payload_sum = crc32fast::Hasher::new();
        payload.iter().for_each(|part| payload_sum.update(part));
        let mut prefix = [0; PREFIX_BYTES];
        prefix[0] = FRAME_VERSION;
        prefix[1] = head.kind as u8;
        prefix[2] = head.method.map_or(0, |method| method as u8);
        prefix[4..8].copy_from_slice(&head.deadline_ms.to_le_bytes());
        prefix[8..16].copy_from_slice(&head.id.to_le_bytes());
        prefix[16..20].copy_from_slice(&(header.len() as u32).to_le_bytes());
        prefix[20..24].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
        prefix[24..28].copy_from_slice(&payload_sum.finalize().to_le_bytes());
        let sum = head_sum(&prefix, &header);
        prefix[28..32].copy_from_slice(&sum.to_le_bytes());
        OutFrame { prefix, header, payload }
    }

    /// Makes a frame without request, header or payload: a ping.
    pub fn ping() -> Self {
        Self::control(FrameKind::Ping, 0, Bytes::new())
    }

    /// Makes a cancel for a request.
    pub fn cancel(id: u64) -> Self {
        Self::control(FrameKind::Cancel, id, Bytes::new())
    }

    /// Makes a hello.
    pub fn hello(hello: &Hello) -> Self {
        Self::control(FrameKind::Hello, 0, hello.to_bytes())
    }

    /// Makes a goodbye with its reason.
    pub fn goodbye(kind: FailureKind, text: &str) -> Self {
        Self::control(FrameKind::Goodbye, 0, Failure::new(kind, text).to_bytes())
    }

    /// Makes the answer of a failed request.
    pub fn failure(id: u64, failure: &Failure) -> Self {
        Self::control(FrameKind::Failure, id, failure.to_bytes())
    }

    fn control(kind: FrameKind, id: u64, header: Bytes) -> Self {
        OutFrame::new(FrameHead { kind, method: None, deadline_ms: 0, id }, header, Vec::new())
    }

    /// Returns the frame's bytes on the wire.
    pub fn bytes(&self) -> usize {
        PREFIX_BYTES + self.header.len() + self.payload.iter().map(Bytes::len).sum::<usize>()
    }
}

fn head_sum(prefix: &[u8; PREFIX_BYTES], header: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&prefix[..28]);
    sum.update(header);
    sum.finalize()
}

/// A prefix whose fields and lengths have been checked.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    raw: [u8; PREFIX_BYTES],
    head: FrameHead,
    header_bytes: usize,
    payload_bytes: usize,
}

impl Prefix {
    fn decode(raw: [u8; PREFIX_BYTES], bounds: Bounds) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        if raw[0] != FRAME_VERSION {
            return Err(FrameError::Version(raw[0]));
        }
        let kind = FrameKind::try_from(raw[1]).map_err(|_| FrameError::Kind(raw[1]))?;
        let method = match (kind, raw[2]) {
            (FrameKind::Request, method) => Some(Method::try_from(method).map_err(|_| FrameError::Method(method))?),
            (_, 0) => None,
            (_, method) => return Err(FrameError::Method(method)),
        };
        if raw[3] & FLAGS_REQUIRED != 0 {
            return Err(FrameError::Flags(raw[3]));
        }
        let (header_max, payload_max) = match kind {
            FrameKind::Request | FrameKind::Response => (bounds.header_bytes_max, bounds.payload_bytes_max),
            FrameKind::Failure => (bounds.header_bytes_max, 0),
            _ => (CONTROL_HEADER_BYTES_MAX, 0),
        };
        let (header_bytes, payload_bytes) = (word(16) as usize, word(20) as usize);
        if header_bytes > header_max || payload_bytes > payload_max {
            return Err(FrameError::Length);
        }
        let id = u64::from(word(12)) << 32 | u64::from(word(8));
        let head = FrameHead { kind, method, deadline_ms: word(4), id };
        Ok(Prefix { raw, head, header_bytes, payload_bytes })
    }

    fn payload_sum(&self) -> u32 {
        u32::from_le_bytes([self.raw[24], self.raw[25], self.raw[26], self.raw[27]])
    }

    fn verify(&self, header: &[u8]) -> Result<(), FrameError> {
        let sum = u32::from_le_bytes([self.raw[28], self.raw[29], self.raw[30], self.raw[31]]);
        if head_sum(&self.raw, header) == sum { Ok(()) } else { Err(FrameError::HeaderChecksum) }
    }
}

/// What a decoder accepts.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Largest header of a request, response or failure in bytes.
    pub header_bytes_max: usize,
    /// Largest payload in bytes.
    pub payload_bytes_max: usize,
}

impl Bounds {
    /// The bounds between nodes that have proved who they are.
    pub const NODE: Bounds = Bounds { header_bytes_max: HEADER_BYTES_MAX, payload_bytes_max: PAYLOAD_BYTES_MAX };
    /// The bounds before that, and for nodes that join.
    pub const STRANGER: Bounds = Bounds { header_bytes_max: 64 << 10, payload_bytes_max: 0 };
}

enum Stage {
    Prefix { raw: [u8; PREFIX_BYTES], filled: usize },
    Header { prefix: Prefix, header: Vec<u8> },
    Payload { prefix: Prefix, header: Bytes, payload: AlignedBuf, filled: usize, sum: crc32fast::Hasher },
}

impl Stage {
    const START: Stage = Stage::Prefix { raw: [0; PREFIX_BYTES], filled: 0 };
}

/// Turns plaintext, in pieces of any size, into frames.
pub struct Decoder {
    stage: Stage,
    bounds: Bounds,
    pool: Arc<BufferPool>,
}

impl Decoder {
    /// Starts before a frame. Payloads come to lie in buffers of the pool.
    pub fn new(bounds: Bounds, pool: Arc<BufferPool>) -> Self {
        Decoder { stage: Stage::START, bounds, pool }
    }

    /// Changes what is accepted from the next frame on.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Returns whether the input so far ended with a whole frame.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.stage, Stage::Prefix { filled: 0, .. })
    }

    /// Takes bytes from the front of `input` until a frame is whole or the input is used up.
    ///
    /// After an error the connection can only be closed: where the next frame begins is unknown.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::START);
            let (next, frame) = match stage {
                Stage::Prefix { raw, filled } => (decode_prefix(raw, filled, input, self.bounds)?, None),
                Stage::Header { prefix, header } => decode_header(prefix, header, input, &self.pool)?,
                Stage::Payload { prefix, header, payload, filled, sum } => {
                    decode_payload(prefix, header, payload, filled, sum, input)?
                }
            };
            self.stage = next;
            if frame.is_some() {
                return Ok(frame);
            }
            if input.is_empty() && !self.is_complete() {
                return Ok(None);
            }
        }
    }

    /// Whether the stage needs no more bytes: an empty header behind a whole prefix.
    fn is_complete(&self) -> bool {
        matches!(&self.stage, Stage::Header { prefix, header } if header.len() == prefix.header_bytes)
    }
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    front
}

fn decode_prefix(
    mut raw: [u8; PREFIX_BYTES],
    filled: usize,
    input: &mut &[u8],
    bounds: Bounds,
) -> Result<Stage, FrameError> {
    let piece = take(input, PREFIX_BYTES - filled);
    raw[filled..filled + piece.len()].copy_from_slice(piece);
    let filled = filled + piece.len();
    if filled < PREFIX_BYTES {
        return Ok(Stage::Prefix { raw, filled });
    }
    let prefix = Prefix::decode(raw, bounds)?;
    Ok(Stage::Header { prefix, header: Vec::with_capacity(prefix.header_bytes.min(HEADER_BYTES_AT_ONCE)) })
}

fn decode_header(
    prefix: Prefix,
    mut header: Vec<u8>,
    input: &mut &[u8],
    pool: &Arc<BufferPool>,
) -> Result<(Stage, Option<Frame>), FrameError> {
    header.extend_from_slice(take(input, prefix.header_bytes - header.len()));
    if header.len() < prefix.header_bytes {
        return Ok((Stage::Header { prefix, header }, None));
    }
    prefix.verify(&header)?;
    let header = Bytes::from(header);
    if prefix.payload_bytes == 0 {
        // Nothing was summed, so the sum must be that of nothing.
        if prefix.payload_sum() != 0 {
            return Err(FrameError::PayloadChecksum(prefix.head.id));
        }
        return Ok((Stage::START, Some(Frame { head: prefix.head, header, payload: Bytes::new() })));
    }
    let payload = pool.take(prefix.payload_bytes);
    Ok((Stage::Payload { prefix, header, payload, filled: 0, sum: crc32fast::Hasher::new() }, None))
}

fn decode_payload(
    prefix: Prefix,
    header: Bytes,
    mut payload: AlignedBuf,
    filled: usize,
    mut sum: crc32fast::Hasher,
    input: &mut &[u8],
) -> Result<(Stage, Option<Frame>), FrameError> {
    let piece = take(input, prefix.payload_bytes - filled);
    payload[filled..filled + piece.len()].copy_from_slice(piece);
    sum.update(piece);
    let filled = filled + piece.len();
    if filled < prefix.payload_bytes {
        return Ok((Stage::Payload { prefix, header, payload, filled, sum }, None));
    }
    if sum.finalize() != prefix.payload_sum() {
        return Err(FrameError::PayloadChecksum(prefix.head.id));
    }
    Ok((Stage::START, Some(Frame { head: prefix.head, header, payload: payload.freeze() })))
}

#[cfg(test)]
mod tests;
