//! Reading an object.

use crate::client::Client;
use bytes::Bytes;
use plinth_protocol::meta::ObjectView;
use plinth_protocol::{BucketId, Failure};
use std::ops::Range;
use std::task::{Context, Poll};

impl Client {
    /// Reads a range of an object as a query with `body` returned it. The range must lie within the
    /// object.
    pub fn open(&self, bucket: BucketId, key: &str, view: &ObjectView, range: Range<u64>) -> ObjectReader {
        let _ = (bucket, key, view, range);
        ObjectReader { client: self.clone() }
    }
}

/// Yields an object's bytes in order, each verified.
pub struct ObjectReader {
    client: Client,
}

impl ObjectReader {
    /// Returns the next bytes; nothing at the end. An error ends the body.
    pub async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`ObjectReader::next`], for callers that poll.
    pub fn poll_next(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let _ = &self.client;
        Poll::Ready(Some(Err(Failure::new(plinth_protocol::FailureKind::Unavailable, "being written"))))
    }
}
