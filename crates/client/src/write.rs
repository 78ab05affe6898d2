//! Writing an object: inline while it is tiny, else stripe by stripe.

use crate::client::Client;
use crate::config::{SHORT_STRIPES_MAX, STAGED_BYTES_MAX, STRIPES_IN_FLIGHT_MAX};
use crate::filling::Filling;
use crate::layout::StripeShape;
use crate::memory::{Held, Pool};
use bytes::Bytes;
use plinth_protocol::object::{Body, INLINE_BYTES_MAX};
use plinth_protocol::stripe::{Owner, StripeRef};
use plinth_protocol::{Failure, FailureKind};
use std::collections::VecDeque;
use tokio::task::{AbortHandle, JoinHandle};

impl Client {
    /// Starts an object or part. The writer fills in the owner's ordinal and offset; `size_hint` is
    /// the object's size in bytes where it is known: a wrong one costs space, nothing else.
    pub fn write(&self, owner: Owner, size_hint: Option<u64>) -> ObjectWriter {
        ObjectWriter {
            client: self.clone(),
            owner: Owner { ordinal: 0, offset: 0, ..owner },
            size_hint,
            staged: Vec::new(),
            open: None,
            short_stripes: 0,
            done: Vec::new(),
            in_flight: VecDeque::new(),
        }
    }
}

/// Takes an object's bytes and makes them durable. Dropping it abandons the object: what reached
/// the disks is garbage that nothing refers to.
pub struct ObjectWriter {
    client: Client,
    /// Whose bytes the next stripe holds; its offset is where that stripe starts.
    owner: Owner,
    size_hint: Option<u64>,
    /// Bytes that have come since the last stripe, while they are too few to open one for: all of them may yet go into
    /// the row, or their sender may be slow.
    staged: Vec<u8>,
    /// The stripe that is being filled, and its memory.
    open: Option<(Filling, Held)>,
    /// Stripes that were closed early.
    short_stripes: usize,
    done: Vec<StripeRef>,
    in_flight: VecDeque<InFlight>,
}

/// A stripe on its way; dropped, it is cancelled.
struct InFlight {
    task: JoinHandle<Result<StripeRef, Failure>>,
    _cancel: CancelOnDrop,
}

struct CancelOnDrop(AbortHandle);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InFlight {
    async fn arrived(self) -> Result<StripeRef, Failure> {
        let gone = |_| Failure::new(FailureKind::Internal, "the task of a stripe ended before it was done");
        self.task.await.map_err(gone)?
    }
}

impl ObjectWriter {
    /// Takes the next bytes; waits while the client's memory for writing is taken or too many of
    /// the object's stripes are on their way. After an error the object can only be dropped.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            if self.open.is_none() && self.staged.len() + bytes.len() < STAGED_BYTES_MAX {
                self.staged.extend_from_slice(bytes);
                return Ok(());
            }
            let staged = std::mem::take(&mut self.staged);
            self.fill(&staged).await?;
            bytes = self.fill_one(bytes).await?;
        }
        Ok(())
    }

    /// Takes note that the sender of the object is silent. Where others wait for memory, the open stripe is sent as it
    /// is, so that its memory comes free. Fails with `Busy` where that has happened too often for one object.
    pub async fn handle_stall(&mut self) -> Result<(), Failure> {
        if self.open.is_none() || !self.client.inner.write_budget.is_wanted() {
            return Ok(());
        }
        if self.short_stripes >= SHORT_STRIPES_MAX {
            return Err(Failure::new(FailureKind::Busy, "others wait for the memory that a slow upload holds"));
        }
        self.short_stripes += 1;
        self.dispatch().await
    }

    async fn fill(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            bytes = self.fill_one(bytes).await?;
        }
        Ok(())
    }

    /// Fills the open stripe, or a new one; returns the bytes that it has no room for.
    async fn fill_one<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        let filling = self.open_stripe().await?;
        let taken = filling.take(bytes);
        let rest = &bytes[taken..];
        if filling.is_full() && !(rest.is_empty() && self.is_all()) {
            self.dispatch().await?;
        }
        Ok(rest)
    }

    /// Returns whether the object is complete if the hint is right: then its last stripe is sent by
    /// `finish` itself, without a task of its own.
    fn is_all(&self) -> bool {
        let payload = self.open.as_ref().map_or(0, |(filling, _)| filling.payload() as u64);
        self.size_hint == Some(self.owner.offset + payload)
    }

    /// Returns the open stripe; opens one, when its memory is free, where there is none.
    async fn open_stripe(&mut self) -> Result<&mut Filling, Failure> {
        if self.open.is_none() {
            let chart = self.client.chart();
            let (code, fragment_bytes_max) = (chart.code(), chart.map.fragment_bytes_max);
            let left = self.size_hint.and_then(|size| size.checked_sub(self.owner.offset)).filter(|&left| left > 0);
            let shape = StripeShape::choose(code, fragment_bytes_max, left);
            let bytes = shape.fragment_sizes(code).map(Pool::capacity).sum();
            let held = self.client.inner.write_budget.acquire(bytes).await;
            let stripe = self.client.new_stripe_id().await?;
            self.open = Some((Filling::new(stripe, code, shape, &self.client.inner.pool)?, held));
        }
        Ok(&mut self.open.as_mut().expect("opened above").0)
    }

    /// Sends the open stripe in a task of its own; waits while too many are on their way.
    async fn dispatch(&mut self) -> Result<(), Failure> {
        while self.in_flight.len() >= STRIPES_IN_FLIGHT_MAX {
            let oldest = self.in_flight.pop_front().expect("not empty");
            self.done.push(oldest.arrived().await?);
        }
        let (filling, held) = self.open.take().expect("a stripe is open");
        let owner = self.next_owner(filling.payload());
        let client = self.client.clone();
        let task = tokio::spawn(async move {
            let reference = client.send_stripe(filling.close(), owner).await;
            drop(held);
            reference
        });
        let cancel = CancelOnDrop(task.abort_handle());
        self.in_flight.push_back(InFlight { task, _cancel: cancel });
        Ok(())
    }

    /// Returns the owner of the stripe that is closed now, and moves on behind it.
    fn next_owner(&mut self, payload: usize) -> Owner {
        let owner = self.owner.clone();
        self.owner.ordinal += 1;
        self.owner.offset += payload as u64;
        owner
    }

    /// Makes the rest durable; returns where the bytes are. Nothing refers to them until the caller
    /// commits a row with this body.
    pub async fn finish(mut self) -> Result<Body, Failure> {
        let staged = std::mem::take(&mut self.staged);
        if self.open.is_none() && self.owner.ordinal == 0 && staged.len() <= INLINE_BYTES_MAX {
            return Ok(Body::Inline(Bytes::from(staged)));
        }
        self.fill(&staged).await?;
        let last = match self.open.take() {
            Some((filling, held)) => {
                let owner = self.next_owner(filling.payload());
                let reference = self.client.send_stripe(filling.close(), owner).await?;
                drop(held);
                Some(reference)
            }
            None => None,
        };
        while let Some(oldest) = self.in_flight.pop_front() {
            self.done.push(oldest.arrived().await?);
        }
        self.done.extend(last);
        Ok(Body::Stripes(self.done))
    }
}
