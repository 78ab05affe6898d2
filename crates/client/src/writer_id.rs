//! The writer id: group 0 hands one out to each gateway incarnation, never twice.
//!
//! An id is changed for a new one in the background, while stripes go on under the old one: nothing
//! but a client's very first stripe, or the first one behind a fence, ever waits for group 0. Those
//! that wait share one request, and its failure.

use crate::client::{Client, unexpected};
use crate::config::WRITER_ROTATION;
use plinth_protocol::meta::{Command, Outcome};
use plinth_protocol::{Failure, GROUP_SYSTEM, StripeId, WriterId};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long the request for a writer id may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a rotation that failed is tried again.
const ROTATION_RETRY: Duration = Duration::from_secs(30);

/// Largest writer id: 48 bits of a stripe id.
const WRITER_MAX: u64 = (1 << 48) - 1;

/// A writer id in use, and the sequence of its stripes.
struct WriterLease {
    writer: WriterId,
    taken: Instant,
    sequence: AtomicU64,
}

/// The writer id of a client.
#[derive(Default)]
pub(crate) struct WriterSlot {
    current: Mutex<Option<Arc<WriterLease>>>,
    /// Held by whoever asks group 0; when the last request failed, and how.
    asking: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    /// When a rotation may be tried: absent before the first.
    rotate_after: Mutex<Option<Instant>>,
}

impl WriterSlot {
    fn current(&self) -> Option<Arc<WriterLease>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes an id into use, unless a later one is.
    fn set(&self, lease: Arc<WriterLease>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|known| known.writer < lease.writer) {
            *current = Some(lease);
        }
    }

    /// Returns whether the caller shall rotate now; the others go on meanwhile.
    fn begins_rotation(&self, now: Instant) -> bool {
        let mut after = self.rotate_after.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = after.is_none_or(|after| now >= after);
        if begins {
            *after = Some(now + ROTATION_RETRY);
        }
        begins
    }
}

impl Client {
    /// Makes a stripe id that never existed before.
    pub(crate) async fn new_stripe_id(&self) -> Result<StripeId, Failure> {
        let lease = match self.inner.writer.current() {
            Some(lease) => lease,
            None => self.first_lease().await?,
        };
        if lease.taken.elapsed() >= WRITER_ROTATION && self.inner.writer.begins_rotation(Instant::now()) {
            let client = self.clone();
            tokio::spawn(async move {
                match client.take_lease().await {
                    Ok(lease) => client.inner.writer.set(lease),
                    Err(failure) => tracing::info!(%failure, "no new writer id yet: the old one stays in use"),
                }
            });
        }
        let sequence = lease.sequence.fetch_add(1, Relaxed);
        Ok(StripeId::new(lease.writer, sequence, self.inner.chance.below(1 << 24) as u32))
    }

    /// Takes a writer id where there is none. Whoever comes while another one asks waits for that answer, and takes
    /// its failure as its own.
    async fn first_lease(&self) -> Result<Arc<WriterLease>, Failure> {
        let came = Instant::now();
        let mut failed = self.inner.writer.asking.lock().await;
        if let Some(lease) = self.inner.writer.current() {
            return Ok(lease);
        }
        if let Some((_, failure)) = failed.as_ref().filter(|(at, _)| *at > came) {
            return Err(failure.clone());
        }
        match self.take_lease().await {
            Ok(lease) => {
                *failed = None;
                self.inner.writer.set(lease.clone());
                Ok(lease)
            }
            Err(failure) => {
                *failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Asks group 0 for a writer id.
    async fn take_lease(&self) -> Result<Arc<WriterLease>, Failure> {
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        let command = Command::RegisterWriter(self.inner.config.node);
        let writer = match self.mutate(GROUP_SYSTEM, command, None, deadline).await? {
            Outcome::Writer(writer) if writer.0 <= WRITER_MAX => writer,
            _ => return Err(unexpected("RegisterWriter")),
        };
        tracing::info!(%writer, "writer id taken");
        Ok(Arc::new(WriterLease { writer, taken: Instant::now(), sequence: AtomicU64::new(0) }))
    }

    /// Stops using a writer id that a shard has fenced; the next stripe gets a new one.
    pub(crate) fn retire_writer(&self, writer: Option<WriterId>) {
        let Some(writer) = writer else { return };
        let mut current = self.inner.writer.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|lease| lease.writer <= writer) {
            tracing::warn!(%writer, "writer id fenced");
            *current = None;
        }
    }
}
