//! One socket with TLS and frames on it: bytes in and out, frames in and out, nothing else.
//!
//! Reading takes as much as the socket has, opens the records in place and decodes the frames; a
//! payload's bytes are copied once, from the opened record into their aligned buffer. Writing gathers
//! small frames into one record and many records into one write; payloads are sealed from where they
//! lie. Both buffers grow with traffic up to a bound and shrink when it ends.

use crate::error::TransportError;
use crate::frame::{Bounds, Decoder, Frame, OutFrame, PREFIX_BYTES};
use crate::session::{Output, Progress, RECORD_PLAINTEXT_MAX, Session};
use bytes::{Buf, Bytes};
use plinth_protocol::pool::BufferPool;
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Most bytes that one connection reads at once.
pub(crate) const INCOMING_BYTES_MAX: usize = 256 << 10;
/// Sealed bytes of one connection beyond which nothing more is sealed until the socket takes some.
pub(crate) const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Either buffer of a connection at rest. A record fits.
const BUFFER_BYTES_MIN: usize = 32 << 10;
/// Pieces up to this size are gathered into a common record; larger ones are sealed where they lie.
const GATHER_BYTES_MAX: usize = 4 << 10;

/// A connection of either side.
pub(crate) struct Channel {
    socket: TcpStream,
    session: Session,
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    output: Output,
    decoder: Decoder,
    /// Frames that arrived and wait to be looked at; bounded by what one read brings.
    inbox: VecDeque<Frame>,
    /// Plaintext of the record that is being gathered.
    record: Vec<u8>,
    /// What is left of the frame that is being sealed.
    pieces: VecDeque<Bytes>,
    activity: Activity,
    pool: Arc<BufferPool>,
}

/// What happened since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Activity {
    /// Bytes arrived.
    pub(crate) heard: bool,
    /// A frame was queued.
    pub(crate) sent: bool,
    /// The socket took bytes.
    pub(crate) wrote: bool,
}

impl Channel {
    pub(crate) fn new(
        socket: TcpStream,
        session: Session,
        bounds: Bounds,
        pool: Arc<BufferPool>,
    ) -> Result<Self, TransportError> {
        // Head and body of a call leave in one write; nothing is gained by waiting for more.
        socket.set_nodelay(true)?;
        Ok(Channel {
            socket,
            session,
            incoming: vec![0; BUFFER_BYTES_MIN],
            start: 0,
            end: 0,
            output: Output::default(),
            decoder: Decoder::new(bounds, pool.clone()),
            inbox: VecDeque::new(),
            record: Vec::with_capacity(RECORD_PLAINTEXT_MAX),
            pieces: VecDeque::new(),
            activity: Activity::default(),
            pool,
        })
    }

    /// Returns the certificates that the peer showed, leaf first.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.peer_certificates()
    }

    /// Changes what is accepted from the next frame on.
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.decoder.set_bounds(bounds);
    }

    /// Drives the TLS handshake to its end.
    pub(crate) async fn handshake(&mut self) -> Result<(), TransportError> {
        loop {
            let progress = self.open();
            // An alert that says why is worth sending, also when it is the last thing.
            let flushed = poll_fn(|cx| self.poll_flush(cx)).await;
            match progress? {
                Progress::Open => return flushed,
                Progress::PeerClosed => return Err(TransportError::Closed("peer ended the handshake")),
                Progress::Handshake => flushed?,
            }
            poll_fn(|cx| self.poll_fill(cx)).await?;
        }
    }

    /// Sends a frame whole.
    pub(crate) async fn send(&mut self, frame: OutFrame) -> Result<(), TransportError> {
        self.push(frame)?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for the next frame.
    pub(crate) async fn receive(&mut self) -> Result<Frame, TransportError> {
        loop {
            if let Some(frame) = self.inbox.pop_front() {
                return Ok(frame);
            }
            poll_fn(|cx| self.poll_read(cx)).await?;
        }
    }

    /// Returns the next frame that has arrived.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        self.inbox.pop_front()
    }

    /// Reads once and opens what has come.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        ready!(self.poll_fill(cx))?;
        Poll::Ready(match self.open()? {
            Progress::PeerClosed if self.inbox.is_empty() => Err(TransportError::Closed("peer closed the connection")),
            _ => Ok(()),
        })
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if self.end == self.incoming.len() {
            if self.start > 0 {
                self.incoming.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else if self.incoming.len() < INCOMING_BYTES_MAX {
                self.incoming.resize((self.incoming.len() * 2).min(INCOMING_BYTES_MAX), 0);
            } else {
                return Poll::Ready(Err(TransportError::Closed("a handshake message is too large")));
            }
        }
        let room = self.incoming.len() - self.end;
        let mut buffer = ReadBuf::new(&mut self.incoming[self.end..]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()));
        }
        self.end += count;
        self.activity.heard = true;
        if count == room && self.start == 0 && self.incoming.len() < INCOMING_BYTES_MAX {
            // There was more than the buffer could take: next time it takes more.
            self.incoming.resize(self.incoming.len() * 2, 0);
        }
        Poll::Ready(Ok(()))
    }

    fn open(&mut self) -> Result<Progress, TransportError> {
        let Channel { session, incoming, start, end, output, decoder, inbox, .. } = self;
        let mut sink = |mut plaintext: &[u8]| {
            while let Some(frame) = decoder.decode(&mut plaintext)? {
                inbox.push_back(frame);
            }
            Ok(())
        };
        let (used, progress) = session.open(&mut incoming[*start..*end], output, &mut sink);
        *start += used;
        if *start == *end {
            (*start, *end) = (0, 0);
        } else if *start > 0 && incoming.len() - *end < BUFFER_BYTES_MIN / 2 {
            // Keep the unfinished record at the front, so that the next read is a large one.
            incoming.copy_within(*start..*end, 0);
            (*start, *end) = (0, *end - *start);
        }
        progress
    }

    /// Returns whether another frame may be pushed.
    pub(crate) fn wants_frame(&self) -> bool {
        self.pieces.is_empty() && self.output.pending().len() < OUTPUT_BYTES_MAX
    }

    /// Takes a frame for sending. Its payload stays where it is until the socket has room.
    pub(crate) fn push(&mut self, frame: OutFrame) -> Result<(), TransportError> {
        self.activity.sent = true;
        self.gather(&frame.prefix)?;
        debug_assert!(self.pieces.is_empty(), "frames leave one behind the other");
        self.pieces.extend(std::iter::once(frame.header).chain(frame.payload).filter(|piece| !piece.is_empty()));
        self.seal_pieces()
    }

    fn gather(&mut self, plaintext: &[u8]) -> Result<(), TransportError> {
        const { assert!(PREFIX_BYTES <= GATHER_BYTES_MAX && GATHER_BYTES_MAX <= RECORD_PLAINTEXT_MAX) }
        if self.record.len() + plaintext.len() > RECORD_PLAINTEXT_MAX {
            self.seal_record()?;
        }
        self.record.extend_from_slice(plaintext);
        Ok(())
    }

    fn seal_record(&mut self) -> Result<(), TransportError> {
        if !self.record.is_empty() {
            self.session.seal(&self.record, &mut self.incoming[self.start..self.end], &mut self.output)?;
            self.record.clear();
        }
        Ok(())
    }

    /// Seals what is left of the current frame, as far as the output's bound allows.
    fn seal_pieces(&mut self) -> Result<(), TransportError> {
        while let Some(mut piece) = self.pieces.pop_front() {
            if piece.len() <= GATHER_BYTES_MAX {
                self.gather(&piece)?;
                continue;
            }
            self.seal_record()?;
            while !piece.is_empty() {
                if self.output.pending().len() >= OUTPUT_BYTES_MAX {
                    self.pieces.push_front(piece);
                    return Ok(());
                }
                let count = piece.len().min(RECORD_PLAINTEXT_MAX);
                self.session.seal(&piece[..count], &mut self.incoming[self.start..self.end], &mut self.output)?;
                piece.advance(count);
            }
        }
        Ok(())
    }

    /// Writes until everything that was pushed has been taken by the socket.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        loop {
            self.seal_pieces()?;
            if self.pieces.is_empty() {
                self.seal_record()?;
            }
            if self.output.pending().is_empty() {
                return Poll::Ready(Ok(()));
            }
            while !self.output.pending().is_empty() {
                let count = ready!(Pin::new(&mut self.socket).poll_write(cx, self.output.pending()))?;
                self.activity.wrote = true;
                self.output.written(count);
            }
        }
    }

    /// Says that this side ends, as far as the socket takes it at once.
    pub(crate) fn close(&mut self) {
        let closed = self.session.close(&mut self.incoming[self.start..self.end], &mut self.output);
        if closed.is_ok() && self.pieces.is_empty() {
            // What the socket does not take now is lost with the connection; the peer sees it break.
            let _ = self.socket.try_write(self.output.pending());
        }
    }

    /// Returns whether more waits for the socket than frames can have put there: the peer makes TLS answer (key
    /// updates) and takes no answers.
    pub(crate) fn is_clogged(&self) -> bool {
        self.output.pending().len() > 2 * OUTPUT_BYTES_MAX
    }

    /// Returns whether sealed bytes wait for the socket.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.pending().is_empty()
    }

    /// Returns what happened since the last call; a connection on which nothing did gives memory back.
    pub(crate) fn take_activity(&mut self, now: Instant) -> Activity {
        self.pool.trim(now.into_std());
        let activity = std::mem::take(&mut self.activity);
        if !activity.heard && self.start == self.end && self.incoming.len() > BUFFER_BYTES_MIN {
            self.incoming = vec![0; BUFFER_BYTES_MIN];
        }
        if !activity.wrote {
            self.output.shrink(BUFFER_BYTES_MIN);
        }
        activity
    }
}
