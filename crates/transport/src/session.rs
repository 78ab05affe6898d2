//! TLS over buffers: records in, plaintext out, and the reverse. No socket in here.
//!
//! rustls' unbuffered interface lets one large read bring many records and one large write take many
//! away. Plaintext of a record goes straight from rustls to the frame decoder.

use crate::error::TransportError;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, ServerConfig};
use std::sync::Arc;

/// Most plaintext in one record (RFC 8446, 5.1).
pub(crate) const RECORD_PLAINTEXT_MAX: usize = 16 << 10;
/// Room that one sealed record takes at most: plaintext, header, type, tag, and a key update before it.
pub(crate) const RECORD_BYTES_MAX: usize = RECORD_PLAINTEXT_MAX + 256;

/// What the session can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The handshake goes on: send what is in the output, then read.
    Handshake,
    /// Plaintext can be sealed and opened.
    Open,
    /// The peer closed its direction; nothing more arrives.
    PeerClosed,
}

/// One TLS connection of either side.
pub(crate) enum Session {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What both sides' connections have in common.
trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Bytes that wait to be written to the socket.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Output {
    /// Returns the bytes that are still to be written.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets bytes that have been written.
    pub(crate) fn written(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives memory back where nothing waits.
    pub(crate) fn shrink(&mut self, capacity: usize) {
        if self.start == self.end && self.bytes.len() > capacity {
            self.bytes = Vec::new();
        }
    }

    /// Returns at least `count` bytes of room behind what waits.
    fn room(&mut self, count: usize) -> &mut [u8] {
        let needed = self.end + count;
        if needed > self.bytes.len() {
            self.bytes.resize(needed.next_power_of_two().max(4 * RECORD_PLAINTEXT_MAX), 0);
        }
        &mut self.bytes[self.end..]
    }
}

impl Session {
    pub(crate) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TransportError> {
        Ok(Session::Client(Box::new(UnbufferedClientConnection::new(config, name)?)))
    }

    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Self, TransportError> {
        Ok(Session::Server(Box::new(UnbufferedServerConnection::new(config)?)))
    }

    /// Returns the certificates that the peer showed, leaf first.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Session::Client(session) => session.peer_certificates(),
            Session::Server(session) => session.peer_certificates(),
        }
    }

    /// Opens all whole records of `incoming`, hands their plaintext to `sink` and appends handshake
    /// records to `output`. Returns how many bytes of `incoming` are used up, and what comes next.
    ///
    /// After an error `output` may hold an alert that is worth sending; where only `sink` failed, the
    /// remaining records are opened and dropped, so that the session can still send.
    pub(crate) fn open(
        &mut self,
        incoming: &mut [u8],
        output: &mut Output,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), TransportError>,
    ) -> (usize, Result<Progress, TransportError>) {
        match self {
            Session::Client(session) => open(&mut **session, incoming, output, sink),
            Session::Server(session) => open(&mut **session, incoming, output, sink),
        }
    }

    /// Seals `plaintext`, at most one record's, behind what waits in `output`.
    ///
    /// `incoming` are the bytes of an unfinished record, if any: rustls wants to see them always.
    pub(crate) fn seal(
        &mut self,
        plaintext: &[u8],
        incoming: &mut [u8],
        output: &mut Output,
    ) -> Result<(), TransportError> {
        match self {
            Session::Client(session) => seal(&mut **session, Some(plaintext), incoming, output),
            Session::Server(session) => seal(&mut **session, Some(plaintext), incoming, output),
        }
    }

    /// Appends the alert that ends this side's direction.
    pub(crate) fn close(&mut self, incoming: &mut [u8], output: &mut Output) -> Result<(), TransportError> {
        match self {
            Session::Client(session) => seal(&mut **session, None, incoming, output),
            Session::Server(session) => seal(&mut **session, None, incoming, output),
        }
    }
}

fn open<R: Records>(
    records: &mut R,
    incoming: &mut [u8],
    output: &mut Output,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), TransportError>,
) -> (usize, Result<Progress, TransportError>) {
    let mut used = 0;
    let mut failure = None;
    let mut broken = false;
    loop {
        let UnbufferedStatus { mut discard, state } = records.process(&mut incoming[used..]);
        let progress = match state {
            // rustls queues an alert behind an error: fetch it before giving up.
            Err(error) => {
                let error = failure.take().unwrap_or(TransportError::Tls(error));
                if std::mem::replace(&mut broken, true) {
                    return (used, Err(error));
                }
                failure = Some(error);
                None
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let taken = record.map_err(TransportError::Tls).and_then(|record| {
                        discard += record.discard;
                        if failure.is_none() { sink(record.payload) } else { Ok(()) }
                    });
                    failure = failure.or(taken.err());
                }
                None
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(|room| data.encode(room), output);
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Progress::Handshake),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Progress::Open),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Progress::PeerClosed),
            Ok(_) => return (used, Err(TransportError::Closed("early data is not spoken"))),
        };
        used += discard;
        if let Some(progress) = progress {
            return (used, failure.map_or(Ok(progress), Err));
        }
    }
}

fn encode(mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, output: &mut Output) {
    let mut count = RECORD_BYTES_MAX;
    loop {
        match write(output.room(count)) {
            Ok(written) => {
                output.end += written;
                return;
            }
            Err(EncodeError::InsufficientSize(error)) => count = error.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

fn seal<R: Records>(
    records: &mut R,
    plaintext: Option<&[u8]>,
    incoming: &mut [u8],
    output: &mut Output,
) -> Result<(), TransportError> {
    loop {
        let UnbufferedStatus { discard, state } = records.process(incoming);
        if discard != 0 {
            return Err(TransportError::Closed("records were left unopened"));
        }
        match state? {
            ConnectionState::EncodeTlsData(mut data) => encode(|room| data.encode(room), output),
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            ConnectionState::WriteTraffic(mut traffic) => {
                let mut count = RECORD_BYTES_MAX;
                loop {
                    let room = output.room(count);
                    let done = match plaintext {
                        Some(plaintext) => traffic.encrypt(plaintext, room),
                        None => traffic.queue_close_notify(room),
                    };
                    match done {
                        Ok(written) => {
                            output.end += written;
                            return Ok(());
                        }
                        Err(EncryptError::InsufficientSize(error)) => count = error.required_size,
                        Err(error) => return Err(TransportError::Tls(rustls::Error::General(error.to_string()))),
                    }
                }
            }
            _ => return Err(TransportError::Closed("the session cannot send")),
        }
    }
}
