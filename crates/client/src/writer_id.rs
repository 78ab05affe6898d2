//! The writer id: group 0 hands one out to each gateway incarnation, never twice.

use crate::client::{Client, unexpected};
use crate::config::WRITER_ROTATION;
use plinth_protocol::meta::{Command, Outcome};
use plinth_protocol::{Failure, GROUP_SYSTEM, StripeId, WriterId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// How long the request for a writer id may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// A writer id in use, and the sequence of its stripes.
pub(crate) struct WriterLease {
    writer: WriterId,
    taken: Instant,
    sequence: AtomicU64,
}

impl Client {
    /// Makes a stripe id that never existed before.
    pub(crate) async fn new_stripe_id(&self) -> Result<StripeId, Failure> {
        let lease = self.writer_lease().await?;
        let sequence = lease.sequence.fetch_add(1, Relaxed);
        Ok(StripeId::new(lease.writer, sequence, self.inner.chance.below(1 << 24) as u32))
    }

    /// Returns the writer id in use; takes a new one at the first call and after its time.
    async fn writer_lease(&self) -> Result<Arc<WriterLease>, Failure> {
        let mut current = self.inner.writer.lock().await;
        if let Some(lease) = current.as_ref().filter(|lease| lease.taken.elapsed() < WRITER_ROTATION) {
            return Ok(lease.clone());
        }
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        let command = Command::RegisterWriter(self.inner.config.node);
        // Boxed: `mutate` retires a fenced writer, which comes back here by type, never in fact.
        let outcome = Box::pin(self.mutate(GROUP_SYSTEM, command, None, deadline)).await?;
        let Outcome::Writer(writer) = outcome else { return Err(unexpected("RegisterWriter")) };
        tracing::info!(%writer, "writer id taken");
        let lease = Arc::new(WriterLease { writer, taken: Instant::now(), sequence: AtomicU64::new(0) });
        *current = Some(lease.clone());
        Ok(lease)
    }

    /// Stops using a writer id that a shard has fenced; the next stripe gets a new one.
    pub(crate) async fn retire_writer(&self, writer: Option<WriterId>) {
        let Some(writer) = writer else { return };
        let mut current = self.inner.writer.lock().await;
        if current.as_ref().is_some_and(|lease| lease.writer <= writer) {
            tracing::warn!(%writer, "writer id fenced");
            *current = None;
        }
    }
}
