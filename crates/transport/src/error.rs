//! How the transport fails, and what a caller should do about it.

use crate::frame::FrameError;
use plinth_protocol::{Failure, FailureKind};

/// Why a certificate, a connection or a handshake was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// A certificate, key or request is not what it must be.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The TLS layer refused: chain, version, suite, record.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer sent bytes that are no frame.
    #[error("frame: {0}")]
    Frame(#[from] FrameError),
    /// The peer is not the cluster, node or incarnation that was meant, or may not connect.
    #[error("identity: {0}")]
    Identity(String),
    /// The peer said goodbye.
    #[error("closed by peer: {0}")]
    Goodbye(Failure),
    /// Connecting, reading or writing failed.
    #[error("connection: {0}")]
    Connection(std::sync::Arc<std::io::Error>),
    /// The peer sent nothing, or took nothing, for too long.
    #[error("silent: {0}")]
    Silent(&'static str),
    /// This side closed the connection.
    #[error("closed: {0}")]
    Closed(&'static str),
}

impl From<std::io::Error> for TransportError {
    fn from(error: std::io::Error) -> Self {
        TransportError::Connection(std::sync::Arc::new(error))
    }
}

impl TransportError {
    /// Returns the failure of a call: `Unknown` where the request may have reached the peer, else
    /// `Unavailable`.
    pub fn to_failure(&self, sent: bool) -> Failure {
        let kind = if sent { FailureKind::Unknown } else { FailureKind::Unavailable };
        Failure::new(kind, self.to_string())
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Certificate(_) => Failure::new(FailureKind::Invalid, error.to_string()),
            _ => error.to_failure(false),
        }
    }
}
